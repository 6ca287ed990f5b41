//! What the cross-crate tests and the benchmarks share beside `test-support`, whose modules are
//! also named here.

pub mod conformance;
pub mod files;
pub mod ledger;
pub mod paths;
pub mod target;
pub mod torture;
pub mod volume;

pub use test_support::{Need, host_cli, kdc, pattern, port, process, proxy, samba, skip, smbd};
