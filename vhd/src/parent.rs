//! What a differencing image sees of the disk below it, which may be shorter.

use std::{ops::Range, sync::Arc};

use block_io::{Disk, Error, File, Geometry, IoFuture, Result};

/// Which parts of a file may hold data: [`File::allocated_ranges`] or [`File::written_ranges`].
pub type Told = fn(&dyn File, Range<u64>) -> IoFuture<'_, Vec<Range<u64>>>;

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

/// Stands for a parent when only what a child has itself is looked at. Reading it is an error.
#[derive(Debug)]
pub struct Unseen {
    /// Bytes per sector of the child.
    pub sector: u32,
}

const UNSEEN: &str = "reading below an image that was opened by itself";

impl Disk for Unseen {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: 0,
            logical_sector: self.sector,
            physical_sector: self.sector,
            discard_granularity: 0,
        }
    }

    fn read_at<'a>(&'a self, _offset: u64, _buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(async { Err(Error::Unsupported(UNSEEN)) })
    }

    fn write_at<'a>(&'a self, _offset: u64, _buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async { Err(Error::ReadOnly) })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, _offset: u64, _len: u64) -> IoFuture<'_, ()> {
        Box::pin(async { Err(Error::ReadOnly) })
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> IoFuture<'_, ()> {
        Box::pin(async { Err(Error::ReadOnly) })
    }

    fn allocated_ranges(&self, _range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async { Err(Error::Unsupported(UNSEEN)) })
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}
