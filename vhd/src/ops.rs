//! Changing images that nobody uses: their size, their parents, their density, what is wrong.
//!
//! ```text
//!  ops ──► Vhdx, Vhd           content is moved through the disks
//!   │
//!   └───► vhdx::edit           structures: what changes together is one entry of the log
//!         classic::edit        structures: one sector after the other
//! ```
//!
//! Every operation can be interrupted at any point, by a crash or by dropping its future: the image
//! opens, passes the check and holds all that was flushed before, and the same call again completes
//! what was begun. Each has the file for itself meanwhile; [`merge()`] says what readers may see.
//! Images are VHDX or VHD; a [`Format`] says which.

mod compact;
mod compare;
mod ext4;
mod free;
mod identity;
mod map;
mod merge;
mod ntfs;
mod rebase;
mod repair;
mod resize;
mod trim;

pub use compact::{Compacted, compact};
pub use compare::compare;
pub use free::{Refusal, Volume, discard_free, free_space};
pub use identity::{Set, clone, set};
pub use map::{Mapped, map};
pub use merge::{Level, merge, merge_into};
pub use rebase::{rebase, relink};
pub use repair::{Action, Repair, Repaired, repair};
pub use resize::{ResizeOptions, resize};
pub use trim::trim;

use std::sync::Arc;

use block_io::{Disk, File};

use crate::{Error, Extent, Format, Result, classic, vhdx};

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes to deal with.
    pub total: u64,
}

/// An image open as a disk, in either format.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are one or two at a time")]
pub(crate) enum Image {
    Vhdx(vhdx::Vhdx),
    Vhd(classic::Vhd),
}

impl Image {
    pub(crate) async fn open(
        file: Arc<dyn File>,
        format: Format,
        parent: Option<Arc<dyn Disk>>,
        read_only: bool,
    ) -> Result<Self> {
        Ok(match format {
            Format::Vhdx => {
                let options =
                    vhdx::OpenOptions { parent, read_only, ..vhdx::OpenOptions::default() };
                Self::Vhdx(vhdx::Vhdx::open(file, options).await?)
            }
            Format::Vhd => {
                let options = classic::OpenOptions { parent, read_only };
                Self::Vhd(classic::Vhd::open(file, options).await?)
            }
            other => return Err(no_such(other)),
        })
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        match self {
            Self::Vhdx(disk) => disk,
            Self::Vhd(disk) => disk,
        }
    }

    /// The size of the disk below a differencing image.
    pub(crate) fn parent_size(&self) -> Option<u64> {
        match self {
            Self::Vhdx(disk) => disk.parent_size(),
            Self::Vhd(disk) => disk.parent_size(),
        }
    }

    pub(crate) async fn extents(&self, range: std::ops::Range<u64>) -> Result<Vec<Extent>> {
        Ok(match self {
            Self::Vhdx(disk) => disk.extents(range).await?,
            Self::Vhd(disk) => disk.extents(range).await?,
        })
    }
}

/// The refusal of an operation on a format without structures.
fn no_such(format: Format) -> Error {
    Error::Unsupported(format!("this operation on a {format} image"))
}
