//! The VHDX format (MS-VHDX), dynamic, fixed and differencing, as a disk over any file.
//!
//! ```text
//!  file:  | identifier, headers, region tables | log | metadata | block table | payload blocks ... |
//!          0                                    1 MiB boundaries from here on
//!
//!  write, block present     table in memory ──► payload write                   (no lock, no metadata)
//!  write, block absent      take zeroed space, change the table in memory, write the payload
//!  flush, table unchanged   one flush of the file
//!  flush, table changed     flush ─► one log entry of all changed pages ─► flush ─► pages in place
//! ```
//!
//! The order of a commit: payload is durable before the log entry that exposes it, the entry is
//! durable before the pages are written in place, and those are durable before the entry is given
//! up (by the flush that begins the next commit). Space that a discard frees is used anew only
//! after the table without it is durable and every request that could still know of it is gone.
//!
//! | file | role |
//! |---|---|
//! | `header`, `region`, `metadata`, `locator`, `bat`, `log` | structures: parse and encode, no I/O |
//! | `load`, `overlay`, `scan`, `open` | reading an image with every check, log replay |
//! | `table`, `space`, `epoch` | the open image's memory: table pages, free space, requests in flight |
//! | `disk`, `alloc`, `below`, `commit` | reads and writes; new blocks; the parent; flush and the headers |
//! | `edit`, `resize`, `repack`, `mend` | changing structures of an image that is not open as a disk |
//! | `items` | metadata items of one's own |
//! | `create`, `check`, `info` | making images, judging them, describing them |

mod alloc;
pub mod bat;
mod below;
mod check;
mod commit;
mod create;
mod disk;
pub(crate) mod edit;
mod epoch;
pub mod header;
mod info;
mod items;
mod load;
pub mod locator;
pub mod log;
pub(crate) mod mend;
pub mod metadata;
mod open;
mod overlay;
pub mod region;
pub(crate) mod repack;
pub(crate) mod resize;
mod scan;
mod space;
mod table;

pub use check::{Finding, Report, check};
pub use create::{CHILD_BLOCK_SIZE, CreateOptions, DEFAULT_BLOCK_SIZE, create};
pub use disk::Vhdx;
pub(crate) use edit::clone_parts;
pub use info::{Identity, Info, Kind, identity, info};
pub(crate) use items::replace_inherited;
pub use items::{
    MAX_INHERITED, UserItem, UserItemInfo, inherited_items, remove_user_item, set_user_item,
    user_item,
};
pub use open::OpenOptions;

use std::ops::Range;

use block_io::File;

/// 2^20 bytes, the unit of all placement in the file.
pub const MIB: u64 = 1 << 20;
/// Largest disk (MS-VHDX 2.6.2.2).
pub const MAX_DISK: u64 = 64 << 40;
/// Largest file believed in: four times the largest disk. Bounds the memory that a table entry
/// can cost.
pub const MAX_FILE: u64 = 256 << 40;
/// Where the two headers are (MS-VHDX 2.2.2).
pub const HEADER_OFFSETS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the two region tables are (MS-VHDX 2.2.3).
pub const REGION_TABLE_OFFSETS: [u64; 2] = [192 << 10, 256 << 10];

/// Makes a range read as zeros, by a hole where the file can.
pub(crate) async fn zero_range(file: &dyn File, range: Range<u64>) -> block_io::Result<()> {
    zeroed(file, range, false).await
}

/// Makes a range of a file zero: `kept`, and its space stays where it is.
pub(crate) async fn zeroed(file: &dyn File, range: Range<u64>, kept: bool) -> block_io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let done = match kept {
        true => file.zero_range(range.clone()).await,
        false => file.punch_hole(range.clone()).await,
    };
    match done {
        Err(block_io::Error::Unsupported(_)) => {}
        other => return other,
    }
    let zeros = vec![0; CHUNK.min(range.end - range.start) as usize];
    let mut at = range.start;
    while at < range.end {
        let n = CHUNK.min(range.end - at);
        file.write_at(at, &zeros[..n as usize]).await?;
        at += n;
    }
    Ok(())
}
