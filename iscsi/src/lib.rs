//! iSCSI (RFC 7143): a target that carries SCSI commands to a device.
#![forbid(unsafe_code)]

pub mod budget;
pub mod chap;
pub mod config;
pub mod login;
pub mod negotiate;
pub mod pdu;
pub mod session;
pub mod text;
