//! iSCSI (RFC 7143): a target that carries SCSI commands to a device.
#![forbid(unsafe_code)]

pub mod chap;
pub mod negotiate;
pub mod pdu;
pub mod text;
