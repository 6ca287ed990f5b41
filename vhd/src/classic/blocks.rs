//! The block table of an open image: finding blocks, making new ones, and the order in which
//! their entries become durable.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use block_io::{Error, Result};
use tokio::sync::{Mutex, MutexGuard};

use super::{
    SECTOR,
    disk::Inner,
    header,
    load::{ABSENT, Blocks},
};

/// Bytes copied from the parent at once.
const CHUNK: u64 = 1 << 20;
/// Blocks that can be made or completed at once.
const FILLS: usize = 16;

/// The table in memory: 4 bytes for each block.
#[derive(Debug)]
pub(super) struct Table {
    offset: u64,
    pub(super) block_size: u64,
    bitmap_len: u64,
    entries: Vec<AtomicU32>,
    /// Blocks of a differencing image of which all sectors are known to be here.
    whole: Vec<AtomicBool>,
    /// Held, one for many blocks, while a block is made or completed.
    fills: [Mutex<()>; FILLS],
    space: Mutex<Space>,
}

#[derive(Debug)]
struct Space {
    /// Where the next block goes; the footer stands there.
    end: u64,
    /// The file ends with the footer there.
    tidy: bool,
    /// Sectors of the table that differ from the file.
    dirty: BTreeSet<u64>,
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Not in the file.
    Absent,
    /// Its sectors begin here, all of them in the file.
    Whole(u64),
    /// Its bitmap and its sectors begin here; the bitmap says which are in the file.
    Partly(u64, u64),
}

impl Table {
    pub(super) fn new(blocks: &Blocks, tidy: bool, differencing: bool) -> Self {
        let count = if differencing { blocks.table.len() } else { 0 };
        Self {
            offset: blocks.header.table_offset,
            block_size: u64::from(blocks.header.block_size),
            bitmap_len: blocks.header.bitmap_len(),
            entries: blocks.table.iter().copied().map(AtomicU32::new).collect(),
            whole: (0..count).map(|_| AtomicBool::new(false)).collect(),
            fills: std::array::from_fn(|_| Mutex::default()),
            space: Mutex::new(Space { end: blocks.end, tidy, dirty: BTreeSet::new() }),
        }
    }

    /// Where a block is.
    pub(super) fn place(&self, block: u64) -> Place {
        let entry = self.entries.get(block as usize).map_or(ABSENT, |e| e.load(Ordering::Acquire));
        if entry == ABSENT {
            return Place::Absent;
        }
        let at = u64::from(entry) * SECTOR;
        match self.whole.get(block as usize) {
            Some(whole) if !whole.load(Ordering::Acquire) => {
                Place::Partly(at, at + self.bitmap_len)
            }
            _ => Place::Whole(at + self.bitmap_len),
        }
    }

    async fn filling(&self, block: u64) -> MutexGuard<'_, ()> {
        self.fills[block as usize % FILLS].lock().await
    }

    /// A sector of the table as it is now.
    fn sector(&self, index: u64) -> Vec<u8> {
        let first = (index * SECTOR / 4) as usize;
        let entries = (first..first + SECTOR as usize / 4)
            .map(|i| self.entries.get(i).map_or(ABSENT, |entry| entry.load(Ordering::Acquire)));
        entries.flat_map(u32::to_be_bytes).collect()
    }

    /// A bitmap that says that all sectors are here.
    fn full_bitmap(&self) -> Vec<u8> {
        header::full_bitmap(self.block_size, self.bitmap_len)
    }
}

impl Inner {
    /// The runs of sectors of a part of a block that are here, and those that are not. The
    /// highest bit of a byte is the first sector's.
    pub(super) async fn presence(
        &self,
        table: &Table,
        bitmap: u64,
        part: &Range<u64>,
    ) -> Result<Vec<(Range<u64>, bool)>> {
        let first = part.start % table.block_size / SECTOR;
        let count = (part.end - part.start) / SECTOR;
        let (from, to) = (first / 8, (first + count).div_ceil(8));
        let mut bits = vec![0; (to - from) as usize];
        block_io::read_exact_at(&*self.file, bitmap + from, &mut bits).await?;
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        for i in 0..count {
            let bit = first + i - from * 8;
            let here = bits[(bit / 8) as usize] << (bit % 8) & 0x80 != 0;
            let at = part.start + i * SECTOR;
            match runs.last_mut() {
                Some((run, kind)) if *kind == here => run.end = at + SECTOR,
                _ => runs.push((at..at + SECTOR, here)),
            }
        }
        Ok(runs)
    }

    /// Sees that all of a block is here, with `data` in its part of it; returns where it is.
    pub(super) async fn whole(
        &self,
        table: &Table,
        block: u64,
        data: Option<(&Range<u64>, &[u8])>,
    ) -> Result<u64> {
        let _filling = table.filling(block).await;
        let start = block * table.block_size;
        let all = start..(start + table.block_size).min(self.geometry.size);
        let base = match table.place(block) {
            Place::Whole(base) => base,
            Place::Partly(bitmap, base) => {
                for (run, here) in self.presence(table, bitmap, &all).await? {
                    if !here {
                        self.take_over(table, run, base).await?;
                    }
                }
                // The bitmap must not be durable before what it speaks of.
                self.file.flush().await?;
                self.file.write_at(bitmap, &table.full_bitmap()).await?;
                table.whole[block as usize].store(true, Ordering::Release);
                base
            }
            Place::Absent => return self.add(table, block, all, data).await,
        };
        if let Some((part, bytes)) = data {
            self.file.write_at(base + part.start % table.block_size, bytes).await?;
        }
        Ok(base)
    }

    /// Makes a block. Nobody sees it before its content is there.
    async fn add(
        &self,
        table: &Table,
        block: u64,
        all: Range<u64>,
        data: Option<(&Range<u64>, &[u8])>,
    ) -> Result<u64> {
        let at = self.space_for_block(table).await?;
        let base = at + table.bitmap_len;
        self.file.write_at(at, &table.full_bitmap()).await?;
        if !data.is_some_and(|(part, _)| *part == all) {
            for run in self.ranges_below(all).await? {
                self.take_over(table, run, base).await?;
            }
        }
        if let Some((part, bytes)) = data {
            self.file.write_at(base + part.start % table.block_size, bytes).await?;
        }
        let mut space = table.space.lock().await;
        if let Some(whole) = table.whole.get(block as usize) {
            whole.store(true, Ordering::Release);
        }
        // Checked when the space was found.
        table.entries[block as usize].store((at / SECTOR) as u32, Ordering::Release);
        space.dirty.insert(block * 4 / SECTOR);
        Ok(base)
    }

    /// Room for a block, zeros behind its bitmap, with the footer behind it.
    async fn space_for_block(&self, table: &Table) -> Result<u64> {
        let mut space = table.space.lock().await;
        let at = space.end;
        let end = at + table.bitmap_len + table.block_size;
        if !u32::try_from(at / SECTOR).is_ok_and(|entry| entry != ABSENT) {
            return Err(Error::NoSpace);
        }
        self.file.write_at(end, &self.footer.encode()).await?;
        space.end = end;
        Ok(at)
    }

    /// Cuts off what a crash left behind the last block, and sees that the footer is there. What
    /// new blocks get are zeros then.
    pub(super) async fn tidy(&self, table: &Table) -> Result<()> {
        let mut space = table.space.lock().await;
        if !space.tidy {
            // Until the footer stands at the end again the copy is all there is.
            self.file.write_at(0, &self.footer.encode()).await?;
            self.file.flush().await?;
            self.file.set_len(space.end).await?;
            self.file.write_at(space.end, &self.footer.encode()).await?;
            self.file.flush().await?;
            space.tidy = true;
        }
        Ok(())
    }

    /// Makes everything durable: first what the new entries of the table speak of.
    pub(super) async fn flush(&self) -> Result<()> {
        let Some(table) = &self.table else { return self.file.flush().await };
        self.flushes
            .run(|| async {
                let sectors: Vec<(u64, Vec<u8>)> = {
                    let space = table.space.lock().await;
                    space.dirty.iter().map(|index| (*index, table.sector(*index))).collect()
                };
                self.commit(table, &sectors).await?;
                // What changed meanwhile is for the next flush.
                let mut space = table.space.lock().await;
                for (index, bytes) in sectors {
                    if table.sector(index) == bytes {
                        space.dirty.remove(&index);
                    }
                }
                Ok(())
            })
            .await
    }

    async fn commit(&self, table: &Table, sectors: &[(u64, Vec<u8>)]) -> Result<()> {
        self.file.flush().await?;
        if sectors.is_empty() {
            return Ok(());
        }
        for (index, bytes) in sectors {
            self.file.write_at(table.offset + index * SECTOR, bytes).await?;
        }
        self.file.flush().await
    }

    /// Copies a run of a block from the parent to where the block's sectors are to be.
    async fn take_over(&self, table: &Table, run: Range<u64>, base: u64) -> Result<()> {
        let mut at = run.start;
        let mut buf = vec![0; CHUNK.min(run.end - run.start) as usize];
        while at < run.end {
            let n = (run.end - at).min(buf.len() as u64);
            let piece = &mut buf[..n as usize];
            self.read_parent(at, piece).await?;
            self.file.write_at(base + at % table.block_size, piece).await?;
            at += n;
        }
        Ok(())
    }
}
