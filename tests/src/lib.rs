//! What the cross-crate tests and the benchmarks share: our daemons and foreign programs as
//! private processes on loopback.
//!
//! Every server started here has a folder of its own and a free port, and is stopped by its
//! process handle when the value is dropped. Tests that need a program which is not installed
//! print one line and pass.

pub mod files;
pub mod host;
pub mod kdc;
pub mod ledger;
pub mod paths;
pub mod process;
pub mod proxy;
pub mod samba;
pub mod smbd;
pub mod target;
pub mod torture;
pub mod volume;
