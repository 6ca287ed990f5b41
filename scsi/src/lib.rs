//! SCSI: what any transport of commands (iSCSI, shared virtual disks over SMB) and any set of
//! logical units say to one another, as SAM-5 puts it; and logical units, by SPC-4 and SBC-3, over
//! any disk.
//!
//! ```text
//!  transport ─► Device (device.rs) ◄── Units (units.rs) ◄── the program: add, remove, resize
//!                    │
//!                dispatch.rs: what stands against a command, in order
//!                    │   └─ cdb/: bytes to a typed command, by one table
//!        ┌───────────┼──────────────┬──────────────┬─────────────┐
//!     media.rs  provision.rs    reservation/     copy/     inquiry.rs, reports.rs
//!        └───────────┴── unit/: one unit's state ──┘
//!                    │
//!               block_io::Disk
//! ```
#![forbid(unsafe_code)]

mod asc;
mod call;
mod cdb;
mod copy;
mod device;
mod dispatch;
mod inquiry;
mod media;
mod ports;
mod provision;
mod refusal;
mod reports;
mod reservation;
mod sense;
mod store;
mod target;
mod unit;
mod units;

pub use copy::{ForeignTokens, TokenData, TokenError, TokenRead};
pub use device::{Completion, Device, Lun, Nexus, Rank, Request, Status, TaskAttribute};
pub use ports::{AccessState, Alua, PortGroup};
pub use sense::{Sense, SenseKey};
pub use store::{Kept, StoreFuture, UnitStore};
pub use target::LunAccess;
pub use unit::{Limits, LogicalUnit, QueueMeter, Space, Usage};
pub use units::{UnitInfo, Units, UnitsError, UnitsOptions};

#[cfg(test)]
mod tests;
