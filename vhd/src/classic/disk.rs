//! Reads, writes, zeroes and discards on an open image.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use block_io::{Disk, Error, File, FlushGroup, Geometry, IoFuture};

use super::{
    SECTOR,
    blocks::{Place, Table},
    footer::{self, Footer, Kind},
    load::load,
};
use crate::{
    Result, extent,
    parent::{self, Told},
};

type Done<T> = block_io::Result<T>;

/// Bytes of the disk below whose allocation is asked for at once.
const WINDOW: u64 = 1 << 30;

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// What a differencing image lacks is read from this disk, which is only read; its identity is
    /// the caller's to check ([`crate::chain`] does). Not used by other images.
    pub parent: Option<Arc<dyn Disk>>,
    /// Never write. Implied by a file that is read-only.
    pub read_only: bool,
}

/// An open VHD image; a [`Disk`]. All requests may run concurrently.
#[derive(Debug)]
pub struct Vhd {
    inner: Inner,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) file: Arc<dyn File>,
    pub(super) geometry: Geometry,
    pub(super) footer: Footer,
    /// None in a fixed image.
    pub(super) table: Option<Table>,
    pub(super) flushes: FlushGroup,
    parent: Option<Arc<dyn Disk>>,
    read_only: bool,
    closed: AtomicBool,
}

impl Vhd {
    /// Opens the image in `file`, which the disk keeps until [`Disk::close`]. Nothing is written
    /// before the first change of the disk.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] naming structure, offset and fault;
    /// [`crate::Error::Differencing`] without the parent; what the file says.
    pub async fn open(file: Arc<dyn File>, options: OpenOptions) -> Result<Self> {
        let image = load(&*file).await?;
        let differencing = image.footer.kind == Kind::Differencing;
        let parent = options.parent.filter(|_| differencing);
        if differencing && parent.is_none() {
            let places = image.blocks.as_ref().map(|b| &b.parent);
            let named = places.and_then(|p| p.relative.iter().chain(&p.absolute).next());
            return Err(crate::Error::Differencing { parent: named.cloned().unwrap_or_default() });
        }
        if let Some(sector) = parent.as_ref().map(|p| p.geometry().logical_sector)
            && u64::from(sector) != SECTOR
        {
            let why = format!("the parent has {sector}-byte sectors, the image 512-byte ones");
            return Err(crate::Error::InvalidOptions(why));
        }
        let table = image.blocks.as_ref().map(|blocks| {
            let ends = blocks.end + footer::LEN as u64 == image.file_len;
            let whole = image.lost_footer.is_none() && image.lost_copy.is_none();
            Table::new(blocks, ends && whole, differencing)
        });
        let block = image.blocks.as_ref().map_or(0, |b| b.header.block_size);
        let geometry = Geometry {
            size: image.footer.size,
            logical_sector: SECTOR as u32,
            physical_sector: SECTOR as u32,
            discard_granularity: if differencing { 0 } else { block.min(4096) },
        };
        let inner = Inner {
            read_only: options.read_only || file.is_read_only(),
            file,
            geometry,
            footer: image.footer,
            table,
            flushes: FlushGroup::new(),
            parent,
            closed: AtomicBool::new(false),
        };
        Ok(Self { inner })
    }
}

impl Vhd {
    /// What of a range this image has itself, whatever its parent has: all of the range, in order.
    /// Zeros that it has are in its file.
    ///
    /// # Errors
    /// A range past the end; what the file says.
    pub async fn extents(&self, range: Range<u64>) -> Done<Vec<extent::Extent>> {
        self.inner.extents(range).await
    }

    /// Makes the last block of a differencing image its own, unless it ends where the disk ends.
    pub(crate) async fn take_over_last(&self) -> Done<()> {
        let inner = &self.inner;
        let size = inner.geometry.size;
        let Some(table) = inner.table.as_ref().filter(|t| !size.is_multiple_of(t.block_size))
        else {
            return Ok(());
        };
        inner.check_to_change(0, 0).await?;
        inner.whole(table, size / table.block_size, None).await?;
        inner.flush().await
    }

    /// The blocks past the disk's end, up to `end`, that the disk below may have something of.
    pub(crate) async fn blocks_below(&self, end: u64) -> Done<Vec<usize>> {
        let mut found: Vec<usize> = Vec::new();
        let Some(table) = &self.inner.table else { return Ok(found) };
        let size = table.block_size;
        let mut at = self.inner.geometry.size.next_multiple_of(size);
        while at < end {
            let next = at.saturating_add(WINDOW).min(end);
            for range in self.inner.ranges_below(at..next).await? {
                let first = (range.start / size) as usize;
                let first = found.last().map_or(first, |last| first.max(last + 1));
                found.extend(first..range.end.div_ceil(size) as usize);
            }
            at = next;
        }
        Ok(found)
    }

    /// The size of the disk below a differencing image.
    pub(crate) fn parent_size(&self) -> Option<u64> {
        self.inner.parent.as_ref().map(|parent| parent.geometry().size)
    }
}

/// The blocks of a byte range, each with its part of the range.
fn parts(table: &Table, range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> + use<> {
    let size = table.block_size;
    (range.start / size..range.end.div_ceil(size))
        .map(move |block| (block, range.start.max(block * size)..range.end.min((block + 1) * size)))
}

impl Inner {
    fn check(&self, offset: u64, len: u64) -> Done<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.geometry.check(offset, len)
    }

    async fn check_to_change(&self, offset: u64, len: u64) -> Done<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        self.check(offset, len)?;
        match &self.table {
            Some(table) => self.tidy(table).await,
            None => Ok(()),
        }
    }

    /// Reads the parent; zeros behind its end, if the image is longer, and without one.
    pub(super) async fn read_parent(&self, offset: u64, buf: &mut [u8]) -> Done<()> {
        parent::read(self.parent.as_ref(), offset, buf).await
    }

    /// The parts of a range that may hold data in the parent.
    pub(super) async fn ranges_below(&self, range: Range<u64>) -> Done<Vec<Range<u64>>> {
        parent::ranges(self.parent.as_ref(), range).await
    }

    async fn read(&self, offset: u64, mut buf: &mut [u8]) -> Done<()> {
        self.check(offset, buf.len() as u64)?;
        let Some(table) = &self.table else {
            return block_io::read_exact_at(&*self.file, offset, buf).await;
        };
        for (block, part) in parts(table, offset..offset + buf.len() as u64) {
            let (piece, rest) = buf.split_at_mut((part.end - part.start) as usize);
            buf = rest;
            match table.place(block) {
                Place::Absent => self.read_parent(part.start, piece).await?,
                Place::Whole(base) => {
                    let at = base + part.start % table.block_size;
                    block_io::read_exact_at(&*self.file, at, piece).await?;
                }
                Place::Partly(bitmap, base) => {
                    let mut piece = piece;
                    for (run, here) in self.presence(table, bitmap, &part).await? {
                        let (bytes, rest) = piece.split_at_mut((run.end - run.start) as usize);
                        piece = rest;
                        if here {
                            let at = base + run.start % table.block_size;
                            block_io::read_exact_at(&*self.file, at, bytes).await?;
                        } else {
                            self.read_parent(run.start, bytes).await?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn write(&self, offset: u64, mut buf: &[u8]) -> Done<()> {
        self.check_to_change(offset, buf.len() as u64).await?;
        let Some(table) = &self.table else { return self.file.write_at(offset, buf).await };
        for (block, part) in parts(table, offset..offset + buf.len() as u64) {
            let (piece, rest) = buf.split_at((part.end - part.start) as usize);
            buf = rest;
            if let Place::Whole(base) = table.place(block) {
                self.file.write_at(base + part.start % table.block_size, piece).await?;
            } else {
                self.whole(table, block, Some((&part, piece))).await?;
            }
        }
        Ok(())
    }

    /// Its block is made first where it is not there: then only what is written is new in it.
    async fn write_whole(&self, offset: u64, buf: &[u8]) -> Done<()> {
        self.check_to_change(offset, buf.len() as u64).await?;
        let Some(table) = &self.table else { return self.file.write_whole(offset, buf).await };
        let mut blocks = parts(table, offset..offset + buf.len() as u64);
        match (blocks.next(), blocks.next()) {
            (Some((block, part)), None) => {
                let base = match table.place(block) {
                    Place::Whole(base) => base,
                    Place::Absent | Place::Partly(..) => self.whole(table, block, None).await?,
                };
                self.file.write_whole(base + part.start % table.block_size, buf).await
            }
            _ => Err(Error::Unsupported("writing several blocks as a whole")),
        }
    }

    async fn discard(&self, offset: u64, len: u64) -> Done<()> {
        self.check_to_change(offset, len).await?;
        let Some(table) = &self.table else { return Ok(()) };
        for (block, part) in parts(table, offset..offset + len) {
            let Place::Whole(base) = table.place(block) else { continue };
            let at = base + part.start % table.block_size;
            match self.file.punch_hole(at..at + (part.end - part.start)).await {
                Ok(()) | Err(Error::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, kept: bool) -> Done<()> {
        self.check_to_change(offset, len).await?;
        let Some(table) = &self.table else {
            return crate::vhdx::zeroed(&*self.file, offset..offset + len, kept).await;
        };
        for (block, part) in parts(table, offset..offset + len) {
            let base = match table.place(block) {
                Place::Absent if self.ranges_below(part.clone()).await?.is_empty() => continue,
                Place::Whole(base) => base,
                Place::Absent | Place::Partly(..) => self.whole(table, block, None).await?,
            };
            let at = base + part.start % table.block_size;
            crate::vhdx::zeroed(&*self.file, at..at + (part.end - part.start), kept).await?;
        }
        Ok(())
    }

    /// The parts of `range` that may hold data, where `told` says that of the file's own bytes.
    async fn ranges(&self, range: Range<u64>, told: Told) -> Done<Vec<Range<u64>>> {
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.geometry.size)?;
        let Some(table) = &self.table else { return told(&*self.file, range).await };
        let mut found: Vec<Range<u64>> = Vec::new();
        for (block, part) in parts(table, range) {
            let mut add = |piece: Range<u64>| match found.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => found.push(piece),
            };
            match table.place(block) {
                Place::Absent => self.ranges_below(part).await?.into_iter().for_each(add),
                Place::Partly(..) => add(part),
                Place::Whole(base) => {
                    let at = base + part.start % table.block_size;
                    let within = at..at + (part.end - part.start);
                    for piece in told(&*self.file, within).await? {
                        add(part.start + (piece.start - at)..part.start + (piece.end - at));
                    }
                }
            }
        }
        Ok(found)
    }

    async fn extents(&self, range: Range<u64>) -> Done<Vec<extent::Extent>> {
        let len = range.end.saturating_sub(range.start);
        Error::check_range(range.start, len, self.geometry.size)?;
        let mut found = Vec::new();
        let Some(table) = &self.table else {
            let place = extent::Place::File(range.start);
            extent::push(&mut found, range, place);
            return Ok(found);
        };
        for (block, part) in parts(table, range) {
            match table.place(block) {
                Place::Absent => extent::push(&mut found, part, extent::Place::Below),
                Place::Whole(base) => {
                    let at = base + part.start % table.block_size;
                    extent::push(&mut found, part, extent::Place::File(at));
                }
                Place::Partly(bitmap, base) => {
                    for (run, here) in self.presence(table, bitmap, &part).await? {
                        let at = base + run.start % table.block_size;
                        let place =
                            if here { extent::Place::File(at) } else { extent::Place::Below };
                        extent::push(&mut found, run, place);
                    }
                }
            }
        }
        Ok(found)
    }

    async fn close(&self) -> Done<()> {
        if !self.read_only && !self.closed.load(Ordering::Acquire) {
            self.flush().await?;
        }
        self.closed.store(true, Ordering::Release);
        self.file.close().await
    }
}

impl Disk for Vhd {
    fn geometry(&self) -> Geometry {
        self.inner.geometry
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.inner.read(offset, buf))
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.inner.write(offset, buf))
    }

    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.inner.write_whole(offset, buf))
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async {
            self.inner.check(0, 0)?;
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

    /// One with a parent does not: what is to be zero there takes up space in it.
    fn keeps_space(&self) -> bool {
        self.inner.parent.is_none()
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
