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
//! [`image_lock`] says who may use an image beside whom, for every program of the product and QEMU's.
//! [`FlushGroup`] merges concurrent flushes of anything; [`LowWater`] lets a socket's reader sleep
//! until much is there; a [`SplicePipe`] takes data from there to a file uncopied; [`Volatile`] is a
//! file without its flushes. With the feature `testing`, the module `testing` has files in memory
//! and files that lose what was not flushed.
//!
//! This crate knows no protocol and no image format.

#![warn(clippy::missing_errors_doc)]

mod disk;
mod error;
pub mod fiemap;
mod file;
mod flush;
pub mod image_lock;
mod local;
mod low_water;
mod splice_pipe;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod times;
mod volatile;

pub use disk::{Disk, Geometry, RawDisk};
pub use error::{Error, Result};
pub use file::{File, IoFuture, read_exact_at};
pub use flush::FlushGroup;
pub use image_lock::Claim;
pub use local::{Engine, LocalFile, LocalOptions};
pub use low_water::LowWater;
pub use splice_pipe::SplicePipe;
pub use times::{Histogram, Times};
pub use volatile::Volatile;
