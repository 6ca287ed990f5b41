//! Reads, writes, zeroes and discards on an open image.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use block_io::{Disk, Error, File, FlushGroup, Geometry, IoFuture, Result};
use futures_util::future::try_join_all;

use super::{
    alloc::Space,
    bat::{BatLayout, BlockState, RawEntry},
    commit::{Headers, LogWriter},
    epoch::{Epochs, InFlight},
    table::{BatCache, Updated},
    zero_range,
};

/// An open VHDX image; a [`Disk`].
///
/// All requests may run concurrently. Reads and writes of blocks that are present take no
/// asynchronous lock and write no metadata, but for the first change after opening, which gives
/// the image new identifiers. Dropping without [`Disk::close`] is like a crash of the program:
/// what was flushed is there.
#[derive(Debug)]
pub struct Vhdx {
    pub(super) inner: Arc<Inner>,
}

/// The state of an open image, shared with commits that outlive their callers.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) file: Arc<dyn File>,
    pub(super) geometry: Geometry,
    pub(super) layout: BatLayout,
    pub(super) fixed: bool,
    pub(super) bat_offset: u64,
    pub(super) read_only: bool,
    pub(super) bat: BatCache,
    pub(super) space: Mutex<Space>,
    pub(super) refill: tokio::sync::Mutex<()>,
    pub(super) epochs: Epochs,
    /// The identifiers were renewed: the image may be changed.
    pub(super) started: AtomicBool,
    pub(super) headers: Headers,
    pub(super) log: tokio::sync::Mutex<LogWriter>,
    pub(super) flushes: FlushGroup,
}

/// A run of a request: where it is in the request's buffer and in the file (`None`: nowhere).
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    buffer: Range<usize>,
    file: Option<u64>,
}

/// Appends a piece, merged with the last if they are neighbours in the file too.
fn push(extents: &mut Vec<Extent>, buffer: Range<usize>, file: Option<u64>) {
    if let Some(last) = extents.last_mut() {
        let follows = match (last.file, file) {
            (None, None) => true,
            (Some(a), Some(b)) => a + last.buffer.len() as u64 == b,
            _ => false,
        };
        if follows {
            last.buffer.end = buffer.end;
            return;
        }
    }
    extents.push(Extent { buffer, file });
}

impl Inner {
    pub(super) fn enter(&self) -> Result<InFlight<'_>> {
        self.epochs.enter().ok_or(Error::Closed)
    }

    /// Everything a change needs first: not read-only, not closed, identifiers renewed.
    async fn enter_to_change(&self) -> Result<InFlight<'_>> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        let guard = self.enter()?;
        if !self.started.load(Ordering::Acquire) {
            self.start_session().await?;
        }
        Ok(guard)
    }

    /// The blocks of a byte range of the disk, each with its part of the range.
    fn blocks(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> + use<> {
        let size = self.layout.block_size;
        let Range { start, end } = range;
        (start / size..end.div_ceil(size))
            .map(move |block| (block, start.max(block * size)..end.min((block + 1) * size)))
    }

    /// The table entry of a payload block.
    pub(super) async fn entry(&self, block: u64) -> Result<RawEntry> {
        let index = self.layout.index(block);
        loop {
            if let Some(entry) = self.bat.get(index) {
                return Ok(entry);
            }
            self.load_page(index).await?;
        }
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.geometry.check(offset, buf.len() as u64)?;
        let _guard = self.enter()?;
        let mut extents = Vec::with_capacity(1);
        for (block, part) in self.blocks(offset..offset + buf.len() as u64) {
            let data = self.entry(block).await?.data();
            let file = data.map(|at| at + part.start % self.layout.block_size);
            let at = (part.start - offset) as usize..(part.end - offset) as usize;
            push(&mut extents, at, file);
        }
        let mut rest = buf;
        let mut reads = Vec::new();
        let last = extents.len();
        for (i, extent) in extents.into_iter().enumerate() {
            let (piece, after) = rest.split_at_mut(extent.buffer.len());
            rest = after;
            match extent.file {
                None => piece.fill(0),
                // The usual case: nothing to join.
                Some(at) if i + 1 == last && reads.is_empty() => {
                    return self.read_payload(at, piece).await;
                }
                Some(at) => reads.push(self.read_payload(at, piece)),
            }
        }
        try_join_all(reads).await.map(drop)
    }

    async fn read_payload(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match block_io::read_exact_at(&*self.file, at, buf).await {
            Err(Error::OutOfRange { offset, size, .. }) => Err(Error::Corrupt(format!(
                "the file was cut to {size:#x} below the block at {offset:#x}"
            ))),
            other => other,
        }
    }

    async fn write(self: &Arc<Self>, offset: u64, buf: &[u8]) -> Result<()> {
        self.geometry.check(offset, buf.len() as u64)?;
        let _guard = self.enter_to_change().await?;
        let mut extents = Vec::with_capacity(1);
        for (block, part) in self.blocks(offset..offset + buf.len() as u64) {
            let base = match self.entry(block).await?.data() {
                Some(base) => base,
                None => self.allocate(block).await?,
            };
            let at = (part.start - offset) as usize..(part.end - offset) as usize;
            push(&mut extents, at, Some(base + part.start % self.layout.block_size));
        }
        if let [Extent { file: Some(at), .. }] = extents[..] {
            return self.file.write_at(at, buf).await;
        }
        let writes = extents.iter().filter_map(|extent| {
            extent.file.map(|at| self.file.write_at(at, &buf[extent.buffer.clone()]))
        });
        try_join_all(writes).await.map(drop)
    }

    /// Whether a part of a block is all of it that the disk has.
    fn is_whole(&self, block: u64, part: &Range<u64>) -> bool {
        part.end - part.start == self.layout.used(block)
    }

    async fn discard(self: &Arc<Self>, offset: u64, len: u64) -> Result<()> {
        self.geometry.check(offset, len)?;
        let _guard = self.enter_to_change().await?;
        if self.fixed {
            // Fully provisioned stays fully provisioned (MS-VHDX 2.6.2.1).
            return Ok(());
        }
        for (block, part) in self.blocks(offset..offset + len) {
            let Some(base) = self.entry(block).await?.data() else { continue };
            if self.is_whole(block, &part) {
                self.set_empty(block, BlockState::Unmapped).await?;
            } else {
                let start = base + part.start % self.layout.block_size;
                match self.file.punch_hole(start..start + (part.end - part.start)).await {
                    Ok(()) | Err(Error::Unsupported(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn write_zeroes(self: &Arc<Self>, offset: u64, len: u64) -> Result<()> {
        self.geometry.check(offset, len)?;
        let _guard = self.enter_to_change().await?;
        for (block, part) in self.blocks(offset..offset + len) {
            let entry = self.entry(block).await?;
            let whole = self.is_whole(block, &part);
            match entry.data() {
                Some(base) if self.fixed || !whole => {
                    let start = base + part.start % self.layout.block_size;
                    let range = start..start + (part.end - part.start);
                    zero_range(&*self.file, range.clone()).await?;
                    if self.fixed {
                        match self.file.allocate(range).await {
                            Ok(()) | Err(Error::Unsupported(_)) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                // Says for every reader that the block is zeros, which it already is for this one.
                _ if entry.state_bits() != BlockState::Zero.bits() => {
                    self.set_empty(block, BlockState::Zero).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts a block into a state without data and retires its space.
    async fn set_empty(self: &Arc<Self>, block: u64, state: BlockState) -> Result<()> {
        let index = self.layout.index(block);
        loop {
            let updated = {
                let mut space = self.space();
                let mut freed = None;
                let updated = self.bat.update(index, |old| {
                    freed = old.owned();
                    Some(RawEntry::new(state, 0))
                });
                if updated == Updated::Yes {
                    space.retire(freed);
                }
                updated
            };
            match updated {
                Updated::Yes | Updated::Left => return Ok(()),
                Updated::Absent => self.load_page(index).await?,
                Updated::Full => self.flush().await?,
            }
        }
    }

    async fn ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.geometry.size)?;
        let _guard = self.enter()?;
        let mut found: Vec<Range<u64>> = Vec::new();
        for (block, part) in self.blocks(range) {
            let Some(base) = self.entry(block).await?.data() else { continue };
            let at = base + part.start % self.layout.block_size;
            let within = at..at + (part.end - part.start);
            for piece in self.file.allocated_ranges(within).await? {
                let piece = part.start + (piece.start - at)..part.start + (piece.end - at);
                match found.last_mut() {
                    Some(last) if last.end == piece.start => last.end = piece.end,
                    _ => found.push(piece),
                }
            }
        }
        Ok(found)
    }
}

impl Disk for Vhdx {
    fn geometry(&self) -> Geometry {
        self.inner.geometry
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.inner.read(offset, buf))
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.inner.write(offset, buf))
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async {
            let _guard = self.inner.enter()?;
            if self.inner.read_only { Ok(()) } else { self.inner.flush().await }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.inner.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.inner.write_zeroes(offset, len))
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(self.inner.ranges(range))
    }

    fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(self.inner.close())
    }
}
