//! The VHD format (Virtual Hard Disk Image Format Specification 1.0), fixed, dynamic and
//! differencing, as a disk over any file. All its numbers are big-endian.
//!
//! ```text
//!  fixed:    | the disk's bytes                                          | footer |
//!  others:   | footer copy | header | block table | blocks ...           | footer |
//!  a block:  | bitmap of its sectors | its sectors |
//!
//!  new block        footer behind it ─► bitmap over the old footer ─► payload
//!  flush            payload and bitmaps durable ─► table entries ─► durable
//! ```
//!
//! There is no log. A crash may lose the footer at the end, never the copy at the front; blocks
//! that no table entry names are cut off when the image is next opened for writing.
//!
//! What an image written here has of a block it has whole, as `vhdx` does it; sector bitmaps that
//! others wrote are read in differencing images. A dynamic image's bitmaps say nothing that its
//! sectors do not: those never written are zeros.
//!
//! | file | role |
//! |---|---|
//! | `footer`, `header` | structures: parse and encode, no I/O |
//! | `places` | where a parent may be, by all that an image says of it |
//! | `load` | reading an image with every check, describing it |
//! | `disk`, `blocks` | reads and writes; new blocks and flush |
//! | `create` | making images |
//! | `edit`, `resize`, `repack`, `mend` | changing structures of an image that is not open as a disk |

mod blocks;
mod create;
mod disk;
pub(crate) mod edit;
pub mod footer;
pub mod header;
mod load;
pub(crate) mod mend;
mod places;
pub(crate) mod repack;
pub(crate) mod resize;

pub use create::{CreateOptions, DEFAULT_BLOCK_SIZE, Parent, create};
pub use disk::{OpenOptions, Vhd};
pub(crate) use edit::clone_parts;
pub use load::{Info, check, info};
pub use places::ParentPlaces;

/// The unit of every place in the file, and the only sector size.
pub const SECTOR: u64 = 512;
/// Largest disk: what 32-bit sector numbers of blocks reach.
pub const MAX_DISK: u64 = 2040 << 30;

/// The ones' complement of the sum of all bytes but the four at `at`.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}
