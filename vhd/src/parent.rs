//! What a differencing image sees of the disk below it, which may be shorter.

use std::{ops::Range, sync::Arc};

use block_io::{Disk, Result};

/// Fills `buf` from the parent at `offset`; zeros without one, and behind its end.
pub async fn read(parent: Option<&Arc<dyn Disk>>, offset: u64, buf: &mut [u8]) -> Result<()> {
    let Some(parent) = parent else {
        buf.fill(0);
        return Ok(());
    };
    let there = parent.geometry().size.saturating_sub(offset).min(buf.len() as u64) as usize;
    let (there, rest) = buf.split_at_mut(there);
    rest.fill(0);
    if there.is_empty() { Ok(()) } else { parent.read_at(offset, there).await }
}

/// The parts of a range that may hold data in the parent.
pub async fn ranges(parent: Option<&Arc<dyn Disk>>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let Some(parent) = parent else { return Ok(Vec::new()) };
    let end = range.end.min(parent.geometry().size);
    if range.start < end { parent.allocated_ranges(range.start..end).await } else { Ok(vec![]) }
}
