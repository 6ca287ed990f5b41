//! The two storage traits that everything in the product meets at, and local files behind them.
//!
//! - [`File`]: a positioned, growable byte range (a local file, or an open file on an SMB share).
//! - [`Disk`]: a fixed array of sectors (a VHDX image over any file, or a raw file).
//!
//! ```text
//!  virtio-blk / iSCSI / bulkhead disk ──► Disk ──► vhd ──► File ──► LocalFile  (page cache, io_uring)
//!                                                            └────► smb-client (a remote open)
//! ```
//!
//! This crate knows no protocol and no image format.

mod disk;
mod error;
mod file;

pub use disk::{Disk, Geometry, RawDisk};
pub use error::{Error, Result};
pub use file::{File, IoFuture, read_exact_at};
