//! What a differencing image has of its parent: reading it, and taking a block over whole.
//!
//! ```text
//!  NotPresent ──────────┐ the rest of the block is copied from the parent into its new place,
//!                       ├─► then the entry says FullyPresent; durable with the next flush
//!  PartiallyPresent ────┘ the sectors that the bitmap lacks are copied into the old place
//! ```
//!
//! So an image written here needs no sector bitmaps; those that others wrote are read.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use block_io::{Error, Result};
use tokio::sync::MutexGuard;

use super::{
    bat::{BlockState, Content, RawEntry},
    disk::{Extent, Inner, Source, push},
    table::Updated,
};
use crate::{Damage, Fault, Structure, parent};

/// Bytes copied from the parent at once.
const CHUNK: u64 = 1 << 20;

impl Inner {
    /// Held while a block of a differencing image changes its state; nothing for others.
    pub(super) async fn changing(&self, block: u64) -> Option<MutexGuard<'_, ()>> {
        self.parent.as_ref()?;
        Some(self.fills[block as usize % self.fills.len()].lock().await)
    }

    /// Reads the parent; zeros behind its end, if the image was made longer.
    pub(super) async fn read_parent(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        parent::read(self.parent.as_ref(), offset, buf).await
    }

    /// The parts of a range that may hold data in the parent.
    pub(super) async fn ranges_below(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        parent::ranges(self.parent.as_ref(), range).await
    }

    /// The runs of sectors of a part of a block that are here, and those that are not.
    pub(super) async fn presence(
        &self,
        block: u64,
        part: &Range<u64>,
    ) -> Result<Vec<(Range<u64>, bool)>> {
        let (index, byte) = self.layout.bitmap(block);
        let entry = loop {
            match self.bat.get(index) {
                Some(entry) => break entry,
                None => self.load_page(index).await?,
            }
        };
        let Some(base) = entry.data() else {
            let state = entry.state_bits();
            let fault = Fault::EntryState { index, state };
            return Err(Damage::new(Structure::Bat, self.bat_offset + index * 8, fault).into());
        };
        let sector = u64::from(self.geometry.logical_sector);
        let first = part.start % self.layout.block_size / sector;
        let count = (part.end - part.start) / sector;
        let (from, to) = (first / 8, (first + count).div_ceil(8));
        // At most 64 KiB: 2^19 sectors of a block of 256 MiB.
        let mut bits = vec![0; (to - from) as usize];
        self.read_payload(base + byte + from, &mut bits).await?;
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        for i in 0..count {
            let bit = first + i - from * 8;
            let here = bits[(bit / 8) as usize] >> (bit % 8) & 1 != 0;
            let at = part.start + i * sector;
            match runs.last_mut() {
                Some((run, kind)) if *kind == here => run.end = at + sector,
                _ => runs.push((at..at + sector, here)),
            }
        }
        Ok(runs)
    }

    /// Appends the runs of a part of a block that is partly here.
    pub(super) async fn sectors(
        &self,
        block: u64,
        base: u64,
        part: Range<u64>,
        offset: u64,
        extents: &mut Vec<Extent>,
    ) -> Result<()> {
        for (run, here) in self.presence(block, &part).await? {
            let at = (run.start - offset) as usize..(run.end - offset) as usize;
            let within = run.start % self.layout.block_size;
            push(extents, at, if here { Source::File(base + within) } else { Source::Parent });
        }
        Ok(())
    }

    /// Takes a block over whole; returns where it is, and whether `data` was written to its part
    /// of the block already.
    pub(super) async fn fill(
        self: &Arc<Self>,
        block: u64,
        data: Option<(&Range<u64>, &[u8])>,
    ) -> Result<(u64, bool)> {
        let _changes = self.changing(block).await;
        let size = self.layout.block_size;
        let all = block * size..block * size + self.layout.used(block);
        match self.entry(block).await?.content() {
            Content::Here(base) => Ok((base, false)),
            Content::Zero => Ok((self.allocate(block).await?, false)),
            Content::Partly(base) => {
                for (run, here) in self.presence(block, &all).await? {
                    if !here {
                        self.take_over(run, base).await?;
                    }
                }
                self.expose(block, base).await?;
                Ok((base, false))
            }
            Content::Below => {
                let place = Place { inner: self, at: Mutex::new(Some(self.place().await?)) };
                let base = place.get();
                let whole = data.is_some_and(|(part, _)| self.is_whole(block, part));
                if !whole {
                    for run in self.ranges_below(all).await? {
                        self.take_over(run, base).await?;
                    }
                }
                if let Some((part, bytes)) = data {
                    // Before anyone can see the block: what it had must not show through.
                    self.file.write_at(base + part.start % size, bytes).await?;
                }
                self.expose(block, base).await?;
                place.keep();
                Ok((base, data.is_some()))
            }
        }
    }

    /// Copies a run of a block from the parent to where the block is to be.
    async fn take_over(&self, run: Range<u64>, base: u64) -> Result<()> {
        let mut at = run.start;
        let mut buf = vec![0; CHUNK.min(run.end - run.start) as usize];
        while at < run.end {
            let n = (run.end - at).min(buf.len() as u64);
            let piece = &mut buf[..n as usize];
            self.read_parent(at, piece).await?;
            self.file.write_at(base + at % self.layout.block_size, piece).await?;
            at += n;
        }
        Ok(())
    }

    /// Zeroed space for a block, not yet known to the table.
    async fn place(&self) -> Result<u64> {
        loop {
            if let Some(at) = self.space().take(self.layout.block_size) {
                return Ok(at);
            }
            self.refill().await?;
        }
    }

    /// Says in the table that a block is wholly here. Its state is the caller's to guard.
    async fn expose(self: &Arc<Self>, block: u64, base: u64) -> Result<()> {
        let index = self.layout.index(block);
        let entry = RawEntry::new(BlockState::FullyPresent, base);
        loop {
            match self.bat.update(index, |_| Some(entry)) {
                Updated::Yes => return Ok(()),
                Updated::Left => return Err(Error::Corrupt("the block table refused".into())),
                Updated::Absent => self.load_page(index).await?,
                Updated::Full => self.flush().await?,
            }
        }
    }
}

/// Space for a block that is given back if the block does not come to be.
struct Place<'a> {
    inner: &'a Inner,
    at: Mutex<Option<u64>>,
}

impl Place<'_> {
    fn get(&self) -> u64 {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_default()
    }

    fn keep(self) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let at = self.at.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(at) = at {
            self.inner.space().give_back(at, self.inner.layout.block_size);
        }
    }
}
