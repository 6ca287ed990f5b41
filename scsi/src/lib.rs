//! SCSI: what any transport of commands (iSCSI, shared virtual disks over SMB) and any set of
//! logical units say to one another, as SAM-5 puts it.

mod device;
mod sense;

pub use device::{Completion, Device, Lun, Nexus, Request, Status, TaskAttribute};
pub use sense::{Sense, SenseKey};
