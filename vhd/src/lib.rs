//! Virtual-disk images as disks over any file.
//!
//! ```text
//!  Disk (block-io) ◄── vhdx::Vhdx ──► File (block-io): a local file, an open file on a share
//!       ▲
//!       └── convert: any disk to any disk, sparse-aware
//! ```
//!
//! - [`vhdx`]: the VHDX format (MS-VHDX), dynamic, fixed and differencing.
//! - [`classic`]: the VHD format before it, likewise.
//! - [`qcow2`]: QEMU's format: reading, and writing whole images.
//! - [`vmdk`]: VMware's format, for reading.
//! - [`chain`]: finding and opening the parents of differencing images.
//! - [`convert`]: copying between disks of any format.
//! - [`ops`]: changing images that nobody uses: size, parents, density, repair.
//! - [`set`]: the images of a VHD set.
//! - [`tracking`]: which parts of a disk changed since a point.
//! - [`import`]: taking over a disk that may change meanwhile.
//! - [`Format`], [`open_disk`]: choosing a format by name or by a file's ending.
//!
//! Everything here is driven through the [`block_io::File`] trait; nothing knows where a file is.

mod bytes;
pub mod chain;
pub mod classic;
pub mod convert;
mod error;
mod extent;
mod format;
mod guid;
pub mod import;
mod kept;
pub mod ops;
mod parent;
pub mod qcow2;
pub mod set;
pub mod tracking;
pub mod vhdx;
pub mod vmdk;

pub use error::{Damage, Error, Fault, Result, Structure};
pub use extent::{Extent, Place};
pub use format::{Format, open_disk};
pub use guid::{Guid, NoGuid};
