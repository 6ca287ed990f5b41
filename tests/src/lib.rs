//! What the cross-crate tests and the benchmarks share beside `test-support`, whose modules are
//! also named here.

pub mod bridge;
pub mod cluster;
pub mod conformance;
pub mod console;
pub mod field;
pub mod files;
pub mod interface;
pub mod iscsi;
pub mod iscsi_suite;
pub mod ledger;
pub mod libiscsi;
pub mod operate;
pub mod paths;
pub mod raw;
pub mod rpc;
pub mod slow_disk;
pub mod target;
pub mod torture;
pub mod usage;
pub mod volume;

pub use test_support::{
    Need, etcd, host_cli, initiator, kdc, pattern, port, process, proxy, samba, skip, smbd,
};
