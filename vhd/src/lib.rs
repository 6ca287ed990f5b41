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
//! - [`folders`]: where the files may lie that an image names.
//! - [`convert`]: copying between disks of any format.
//! - [`ops`]: changing images that nobody uses: size, parents, density, repair.
//! - [`set`]: the images of a VHD set.
//! - [`tracking`]: which parts of a disk changed since a point.
//! - [`import`]: taking over a disk that may change meanwhile.
//! - [`probe`]: what a file that is called raw really is.
//! - [`Format`], [`open_disk`]: choosing a format by name or by a file's ending.
//! - [`blocking`]: all of it without an asynchronous runtime.
//!
//! Everything here is driven through the [`block_io::File`] trait; nothing knows where a file is but
//! [`chain::LocalFiles`] and [`blocking`].
//!
//! # Who may do what at the same time
//!
//! - One writer: a writable [`block_io::LocalFile`] claims its file ([`block_io::Claim`]), a file on a
//!   share is opened so that nobody else can write it. A second writer is refused with
//!   [`block_io::Error::Busy`].
//! - Readers that need an image as it is ([`block_io::LocalOptions::still`]), as many as there are, and
//!   no writer beside them: parents are opened so.
//! - Whoever only looks: that claims nothing and never writes. A log that a crash left
//!   is replayed in memory ([`vhdx::OpenOptions::read_only`]).
//! - All requests to an open disk may run at the same time, from any number of tasks.
//!
//! Memory does not grow with the disk: an image of 64 TiB has some thousand table pages in memory at
//! most (`vhd/tests/library.rs` measures it).
//!
//! # Example
//!
//! A dynamic VHDX of 1 TiB, a write that is durable, and what is in the file then:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), vhd::Error> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("disk.vhdx");
//! use std::sync::Arc;
//!
//! use block_io::{Disk, LocalFile, LocalOptions};
//! use vhd::vhdx::{self, CreateOptions, OpenOptions, Vhdx};
//!
//! let file = Arc::new(LocalFile::open(&path, &LocalOptions::create_new())?);
//! vhdx::create(file.clone(), &CreateOptions::new(1 << 40)).await?;
//!
//! let disk = Vhdx::open(file.clone(), OpenOptions::default()).await?;
//! disk.write_at(512 << 30, &[7; 4096]).await?;
//! disk.flush().await?;
//! disk.close().await?;
//!
//! let file = Arc::new(LocalFile::open(&path, &LocalOptions::read_only())?);
//! let report = vhdx::check(file).await?;
//! assert_eq!((report.is_clean(), report.allocated_blocks), (true, 1));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod blocking;
mod bytes;
pub mod chain;
pub mod classic;
pub mod convert;
mod error;
mod extent;
pub mod folders;
mod format;
mod guid;
pub mod import;
mod kept;
pub mod ops;
mod parent;
pub mod probe;
pub mod qcow2;
mod reading;
pub mod set;
mod staged;
pub mod tracking;
pub mod vhdx;
pub mod vmdk;

pub use error::{Damage, Error, Fault, Result, Structure};
pub use extent::{Extent, Place};
pub use format::{Format, open_disk};
pub use guid::{Guid, NoGuid};
