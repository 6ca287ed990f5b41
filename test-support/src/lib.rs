//! What tests of several crates share: our daemons and foreign programs as private processes on
//! loopback, a proxy that breaks connections, the payload guest's console, a client of SMB without a
//! connection.
//!
//! Every server started here has a folder of its own and a port that it alone has, and is stopped by
//! its process handle when the value is dropped. A check that cannot run here says so through
//! [`skip()`](skip()): where `BULKHEAD_REQUIRE` says that the machine has what is missing it fails
//! instead.
//!
//! No product crate depends on this one but in its `[dev-dependencies]`.

pub mod etcd;
#[cfg(feature = "vm")]
pub mod host;
#[cfg(feature = "vm")]
pub mod host_cli;
#[cfg(feature = "iscsi")]
pub mod initiator;
pub mod kdc;
mod pattern;
pub mod port;
pub mod process;
pub mod proxy;
pub mod samba;
mod skip;
#[cfg(feature = "smb")]
pub mod smb_caller;
pub mod smbd;

#[cfg(feature = "vm")]
pub use host::kvm;
pub use pattern::pattern;
pub use skip::{Need, Reason, skip};
