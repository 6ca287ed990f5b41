//! Reads, writes, zeroes and discards on an open image.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use block_io::{Disk, Error, File, FlushGroup, Geometry, IoFuture, Result};
use futures_util::future::try_join_all;

use super::{
    alloc::Space,
    bat::{BatLayout, BlockState, Content, RawEntry},
    commit::{Headers, LogWriter},
    epoch::{Epochs, InFlight},
    table::{BatCache, Updated},
    zeroed,
};
use crate::{Guid, extent, parent::Told};

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
    /// The identity of the content from the first change on, if it was chosen.
    pub(super) next_content: OnceLock<Guid>,
    pub(super) headers: Headers,
    pub(super) log: tokio::sync::Mutex<LogWriter>,
    pub(super) flushes: FlushGroup,
    /// What a differencing image lacks.
    pub(super) parent: Option<Arc<dyn Disk>>,
    /// Held, one for many blocks, while a block of a differencing image changes its state.
    pub(super) fills: [tokio::sync::Mutex<()>; FILLS],
}

/// Blocks of a differencing image that can be filled at once.
const FILLS: usize = 16;

/// Where a run of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Nowhere: zeros.
    Zero,
    /// At this place of the file.
    File(u64),
    /// At the same place of the parent.
    Parent,
}

/// A run of a request: where it is in the request's buffer and where its bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Extent {
    buffer: Range<usize>,
    source: Source,
}

/// Appends a piece, merged with the last if they are neighbours in the buffer and where they are.
/// A write skips what it has written already, so the buffer may have gaps.
pub(super) fn push(extents: &mut Vec<Extent>, buffer: Range<usize>, source: Source) {
    if let Some(last) = extents.last_mut() {
        let follows = match (last.source, source) {
            (Source::File(a), Source::File(b)) => a + last.buffer.len() as u64 == b,
            (a, b) => a == b,
        };
        if follows && last.buffer.end == buffer.start {
            last.buffer.end = buffer.end;
            return;
        }
    }
    extents.push(Extent { buffer, source });
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
        if let Some(entry) = self.bat.recent(index) {
            return Ok(entry);
        }
        loop {
            if let Some(entry) = self.bat.get(index) {
                return Ok(entry);
            }
            self.load_page(index).await?;
        }
    }

    /// Where a range is in the file if it lies within one block that is present and was asked for
    /// lately: what most requests are.
    fn present(&self, offset: u64, len: usize) -> Option<u64> {
        let size = self.layout.block_size;
        let within = offset & (size - 1);
        if len as u64 > size - within {
            return None;
        }
        let index = self.layout.index(offset >> size.trailing_zeros());
        Some(self.bat.recent(index)?.data()? + within)
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _guard = self.enter()?;
        let mut extents = Vec::with_capacity(1);
        for (block, part) in self.blocks(offset..offset + buf.len() as u64) {
            let at = (part.start - offset) as usize..(part.end - offset) as usize;
            let within = part.start % self.layout.block_size;
            let source = match self.entry(block).await?.content() {
                Content::Here(base) => Source::File(base + within),
                Content::Below if self.parent.is_some() => Source::Parent,
                Content::Below | Content::Zero => Source::Zero,
                Content::Partly(base) => {
                    self.sectors(block, base, part, offset, &mut extents).await?;
                    continue;
                }
            };
            push(&mut extents, at, source);
        }
        let mut rest = buf;
        let mut reads: Vec<IoFuture<'_, ()>> = Vec::new();
        let last = extents.len();
        for (i, extent) in extents.into_iter().enumerate() {
            let (piece, after) = rest.split_at_mut(extent.buffer.len());
            rest = after;
            match extent.source {
                Source::Zero => piece.fill(0),
                // The usual case: nothing to join.
                Source::File(at) if i + 1 == last && reads.is_empty() => {
                    return self.read_payload(at, piece).await;
                }
                Source::File(at) => reads.push(Box::pin(self.read_payload(at, piece))),
                Source::Parent => {
                    let at = offset + extent.buffer.start as u64;
                    reads.push(Box::pin(self.read_parent(at, piece)));
                }
            }
        }
        try_join_all(reads).await.map(drop)
    }

    pub(super) async fn read_payload(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match block_io::read_exact_at(&*self.file, at, buf).await {
            Err(Error::OutOfRange { offset, size, .. }) => Err(Error::Corrupt(format!(
                "the file was cut to {size:#x} below the block at {offset:#x}"
            ))),
            other => other,
        }
    }

    async fn write(self: &Arc<Self>, offset: u64, buf: &[u8]) -> Result<()> {
        let _guard = self.enter_to_change().await?;
        let mut extents = Vec::with_capacity(1);
        for (block, part) in self.blocks(offset..offset + buf.len() as u64) {
            let at = (part.start - offset) as usize..(part.end - offset) as usize;
            let base = match self.entry(block).await?.data() {
                Some(base) => base,
                None if self.parent.is_some() => {
                    match self.fill(block, Some((&part, &buf[at.clone()]))).await? {
                        (_, true) => continue,
                        (base, false) => base,
                    }
                }
                None => self.allocate(block).await?,
            };
            push(&mut extents, at, Source::File(base + part.start % self.layout.block_size));
        }
        if let [Extent { source: Source::File(at), buffer }] = &extents[..] {
            return self.file.write_at(*at, &buf[buffer.clone()]).await;
        }
        let writes = extents.iter().filter_map(|extent| match extent.source {
            Source::File(at) => Some(self.file.write_at(at, &buf[extent.buffer.clone()])),
            Source::Zero | Source::Parent => None,
        });
        try_join_all(writes).await.map(drop)
    }

    /// Whether a part of a block is all of it that the disk has.
    pub(super) fn is_whole(&self, block: u64, part: &Range<u64>) -> bool {
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
            let _changes = self.changing(block).await;
            let content = self.entry(block).await?.content();
            if self.is_whole(block, &part) && content != Content::Zero && self.parent.is_some() {
                // What the parent has must not come to light again.
                self.set_empty(block, BlockState::Unmapped).await?;
                continue;
            }
            let Content::Here(base) = content else { continue };
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

    /// Makes a range zero: `kept`, and blocks that have space keep it.
    async fn write_zeroes(self: &Arc<Self>, offset: u64, len: u64, kept: bool) -> Result<()> {
        let kept = kept || self.fixed;
        self.geometry.check(offset, len)?;
        let _guard = self.enter_to_change().await?;
        for (block, part) in self.blocks(offset..offset + len) {
            let whole = self.is_whole(block, &part);
            let below = match self.entry(block).await?.content() {
                Content::Below | Content::Partly(_) => self.parent.is_some() && !whole,
                Content::Here(_) | Content::Zero => false,
            };
            if below {
                self.fill(block, None).await?;
            }
            let _changes = self.changing(block).await;
            let entry = self.entry(block).await?;
            match entry.data() {
                Some(base) if kept || !whole => {
                    let start = base + part.start % self.layout.block_size;
                    let range = start..start + (part.end - part.start);
                    zeroed(&*self.file, range, kept).await?;
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
    pub(super) async fn set_empty(self: &Arc<Self>, block: u64, state: BlockState) -> Result<()> {
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

    /// The parts of `range` that may hold data, where `told` says that of the file's own bytes.
    async fn ranges(&self, range: Range<u64>, told: Told) -> Result<Vec<Range<u64>>> {
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.geometry.size)?;
        let _guard = self.enter()?;
        let mut found: Vec<Range<u64>> = Vec::new();
        for (block, part) in self.blocks(range) {
            let mut add = |piece: Range<u64>| match found.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => found.push(piece),
            };
            match self.entry(block).await?.content() {
                Content::Here(base) => {
                    let at = base + part.start % self.layout.block_size;
                    let within = at..at + (part.end - part.start);
                    for piece in told(&*self.file, within).await? {
                        add(part.start + (piece.start - at)..part.start + (piece.end - at));
                    }
                }
                Content::Partly(_) => add(part),
                Content::Below => self.ranges_below(part).await?.into_iter().for_each(add),
                Content::Zero => {}
            }
        }
        Ok(found)
    }

    async fn extents(&self, range: Range<u64>) -> Result<Vec<extent::Extent>> {
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.geometry.size)?;
        let _guard = self.enter()?;
        let mut found = Vec::new();
        for (block, part) in self.blocks(range) {
            let within = part.start % self.layout.block_size;
            match self.entry(block).await?.content() {
                Content::Here(base) => {
                    extent::push(&mut found, part, extent::Place::File(base + within));
                }
                Content::Zero => extent::push(&mut found, part, extent::Place::Zero),
                Content::Below => extent::push(&mut found, part, extent::Place::Below),
                Content::Partly(base) => {
                    for (run, here) in self.presence(block, &part).await? {
                        let at = base + run.start % self.layout.block_size;
                        let place =
                            if here { extent::Place::File(at) } else { extent::Place::Below };
                        extent::push(&mut found, run, place);
                    }
                }
            }
        }
        Ok(found)
    }
}

impl Vhdx {
    /// What of a range this image has itself, whatever its parent has: all of the range, in order.
    /// What it costs grows with the range; ask for windows of a large disk.
    ///
    /// # Errors
    /// A range past the end; what the file says.
    pub async fn extents(&self, range: Range<u64>) -> Result<Vec<extent::Extent>> {
        self.inner.extents(range).await
    }

    /// Gives up what the image has of a block that reads the same without it: as zeros, or as the
    /// parent has it.
    pub(crate) async fn give_up(&self, block: u64, state: BlockState) -> Result<()> {
        let inner = &self.inner;
        let _guard = inner.enter_to_change().await?;
        let _changes = inner.changing(block).await;
        inner.set_empty(block, state).await
    }

    /// Makes the last block of a differencing image its own, unless it is empty or ends where the disk
    /// ends.
    pub(crate) async fn take_over_last(&self) -> Result<()> {
        let (inner, last) = (&self.inner, self.inner.layout.blocks - 1);
        let _guard = inner.enter_to_change().await?;
        if inner.layout.used(last) < inner.layout.block_size
            && matches!(inner.entry(last).await?.content(), Content::Below | Content::Partly(_))
        {
            inner.fill(last, None).await?;
        }
        Ok(())
    }

    /// As [`Disk::close`], but the file stays open.
    pub(crate) async fn end(&self) -> Result<()> {
        self.inner.end().await
    }

    /// The size of the disk below a differencing image.
    pub(crate) fn parent_size(&self) -> Option<u64> {
        self.inner.parent.as_ref().map(|parent| parent.geometry().size)
    }
}

impl Disk for Vhdx {
    fn geometry(&self) -> Geometry {
        self.inner.geometry
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            let inner = &*self.inner;
            inner.geometry.check(offset, buf.len() as u64)?;
            let guard = inner.enter()?;
            if let Some(at) = inner.present(offset, buf.len()) {
                return inner.read_payload(at, buf).await;
            }
            drop(guard);
            // Its own box keeps the usual case small.
            Box::pin(inner.read(offset, buf)).await
        })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            let inner = &self.inner;
            inner.geometry.check(offset, buf.len() as u64)?;
            if inner.started.load(Ordering::Acquire) {
                let guard = inner.enter()?;
                if let Some(at) = inner.present(offset, buf.len()) {
                    return inner.file.write_at(at, buf).await;
                }
                drop(guard);
            }
            Box::pin(inner.write(offset, buf)).await
        })
    }

    /// Its block is made first where it is not there: then only what is written is new in it.
    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            let inner = &self.inner;
            inner.geometry.check(offset, buf.len() as u64)?;
            let _guard = inner.enter_to_change().await?;
            let mut blocks = inner.blocks(offset..offset + buf.len() as u64);
            let (Some((block, part)), None) = (blocks.next(), blocks.next()) else {
                return Err(Error::Unsupported("writing several blocks as a whole"));
            };
            let base = match inner.entry(block).await?.data() {
                Some(base) => base,
                None if inner.parent.is_some() => inner.fill(block, None).await?.0,
                None => inner.allocate(block).await?,
            };
            inner.file.write_whole(base + part.start % inner.layout.block_size, buf).await
        })
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
        Box::pin(self.inner.write_zeroes(offset, len, false))
    }

    fn write_zeroes_kept(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.inner.write_zeroes(offset, len, true))
    }

    fn keeps_space(&self) -> bool {
        true
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(self.inner.ranges(range, |file, within| file.allocated_ranges(within)))
    }

    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(self.inner.ranges(range, |file, within| file.written_ranges(within)))
    }

    fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(self.inner.close())
    }
}
