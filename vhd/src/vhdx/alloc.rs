//! Space for new blocks.
//!
//! ```text
//!  grown past the end ──► fresh ─┐
//!                                ├─► a block takes it (zeros until written)
//!  punched after reuse ─► clean ─┘
//!        ▲
//!        │ table without it durable        all requests of its time gone
//!  retired (epoch) ◄────────────── retiring ◄──── discard
//! ```

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, MutexGuard, PoisonError},
};

use block_io::{Error, Result};

use super::{
    MAX_FILE, MIB,
    bat::{BlockState, ENTRY_SIZE, PAGE_ENTRIES, PAGE_SIZE, RawEntry},
    disk::Inner,
    space::SpaceMap,
    table::{Updated, page_of},
};
use crate::{Damage, Fault, Structure};

/// The file grows by about an eighth of itself, within these bounds.
const GROW_MIN: u64 = 32 * MIB;
const GROW_MAX: u64 = 512 * MIB;
/// Freed blocks made ready at once.
const REUSE_AT_ONCE: usize = 16;

/// The file's space, as the open image has it. Everything handed out or kept ready is claimed in
/// the map.
#[derive(Debug)]
pub(super) struct Space {
    map: SpaceMap,
    /// Length of the file.
    pub(super) file_len: u64,
    /// Zeros at the end of the file that no block has yet.
    fresh: Range<u64>,
    /// Zeroed blocks that no block of the disk has.
    clean: Vec<u64>,
    /// Given up in memory; the table in the file may still point there.
    retiring: Vec<u64>,
    /// Given up durably at an epoch; requests of that time may still be under way.
    retired: VecDeque<(u64, Vec<u64>)>,
}

impl Space {
    pub(super) fn new(map: SpaceMap, file_len: u64) -> Self {
        Self {
            map,
            file_len,
            fresh: 0..0,
            clean: Vec::new(),
            retiring: Vec::new(),
            retired: VecDeque::new(),
        }
    }

    /// Zeroed space for one block.
    pub(super) fn take(&mut self, block_size: u64) -> Option<u64> {
        if let Some(at) = self.clean.pop() {
            return Some(at);
        }
        let at = self.fresh.start;
        (self.fresh.end - at >= block_size).then(|| {
            self.fresh.start += block_size;
            at
        })
    }

    /// Space that was taken and never known to the table. It may hold anything now, so it is
    /// zeroed before it is used again.
    pub(super) fn give_back(&mut self, at: u64, block_size: u64) {
        self.map.release(at..at + block_size);
    }

    /// Notes that the table in memory no longer points at this space.
    pub(super) fn retire(&mut self, freed: Option<u64>) {
        self.retiring.extend(freed);
    }

    /// The space retired so far: to be given to [`Space::retired`] when the table is durable.
    pub(super) fn take_retiring(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.retiring)
    }

    /// The table without this space is durable.
    pub(super) fn retired(&mut self, epoch: u64, freed: Vec<u64>) {
        if !freed.is_empty() {
            self.retired.push_back((epoch, freed));
        }
    }

    /// Retired space that nobody can know of any more at `epoch`.
    fn take_retired(&mut self, epoch: u64) -> Vec<u64> {
        let mut free = Vec::new();
        while self.retired.front().is_some_and(|(retired, _)| retired + 2 <= epoch) {
            free.extend(self.retired.pop_front().into_iter().flat_map(|(_, freed)| freed));
        }
        free
    }

    /// The end of what is in use, in whole MiB: the file may be cut or must be extended to it.
    pub(super) fn used_end(&self) -> u64 {
        self.map.end()
    }

    /// Gives up what is kept ready; no request is in flight and everything is committed.
    pub(super) fn settle(&mut self, block_size: u64) {
        let retired = std::mem::take(&mut self.retired).into_iter().flat_map(|(_, freed)| freed);
        for at in retired.chain(std::mem::take(&mut self.clean)) {
            self.map.release(at..at + block_size);
        }
        self.map.release(std::mem::replace(&mut self.fresh, 0..0));
    }
}

impl Inner {
    pub(super) fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the table page of an entry into memory, with its checks.
    pub(super) async fn load_page(&self, index: u64) -> Result<()> {
        let page = page_of(index);
        let at = self.bat_offset + page as u64 * PAGE_SIZE;
        let mut bytes = vec![0; PAGE_SIZE as usize];
        let got = self.file.read_at(at, &mut bytes).await?;
        let first = page as u64 * PAGE_ENTRIES;
        let wanted = PAGE_ENTRIES.min(self.layout.entries.saturating_sub(first));
        if (got as u64) < wanted * ENTRY_SIZE {
            return Err(Damage::new(Structure::Bat, at, Fault::Truncated).into());
        }
        let known = self.space().file_len;
        // A reader finds blocks that were made since it opened the file.
        let file_len = if self.read_only { self.file.len().await?.max(known) } else { known };
        for (i, raw) in bytes.as_chunks::<8>().0.iter().enumerate().take(wanted as usize) {
            let entry = RawEntry(u64::from_le_bytes(*raw));
            self.layout.check_entry(first + i as u64, entry, self.bat_offset, file_len)?;
        }
        self.bat.insert(page, &bytes);
        Ok(())
    }

    /// Gives a block space if it has none; returns where it is.
    ///
    /// The block reads as zeros until its first write lands; the table entry becomes durable
    /// with the next flush.
    pub(super) async fn allocate(self: &Arc<Self>, block: u64) -> Result<u64> {
        let index = self.layout.index(block);
        loop {
            let updated = {
                let mut space = self.space();
                let mut place = None;
                let mut freed = None;
                let updated = self.bat.update(index, |old| {
                    place = old.data();
                    if place.is_some() {
                        return None;
                    }
                    place = space.take(self.layout.block_size);
                    freed = old.owned();
                    place.map(|at| RawEntry::new(BlockState::FullyPresent, at))
                });
                if updated == Updated::Yes {
                    space.retire(freed);
                }
                if let (Updated::Yes | Updated::Left, Some(at)) = (updated, place) {
                    return Ok(at);
                }
                updated
            };
            match updated {
                Updated::Yes | Updated::Left => self.refill().await?,
                Updated::Absent => self.load_page(index).await?,
                Updated::Full => self.flush().await?,
            }
        }
    }

    /// Makes space ready for at least one block.
    pub(super) async fn refill(&self) -> Result<()> {
        let _one = self.refill.lock().await;
        let block_size = self.layout.block_size;
        {
            let space = self.space();
            if !space.clean.is_empty() || space.fresh.end - space.fresh.start >= block_size {
                return Ok(());
            }
        }
        self.reclaim().await?;
        // Holes among the blocks may hold anything: they are zeroed before they are used.
        let holes = {
            let mut space = self.space();
            if !space.clean.is_empty() {
                return Ok(());
            }
            let limit = space.file_len;
            let holes: Vec<u64> = std::iter::from_fn(|| space.map.claim_free(block_size, limit))
                .take(REUSE_AT_ONCE)
                .collect();
            holes
        };
        if !holes.is_empty() {
            for (i, at) in holes.iter().enumerate() {
                if let Err(error) = super::zero_range(&*self.file, *at..*at + block_size).await {
                    let mut space = self.space();
                    holes[i..].iter().for_each(|at| space.map.release(*at..*at + block_size));
                    return Err(error);
                }
                self.space().clean.push(*at);
            }
            return Ok(());
        }
        let (start, count) = {
            let space = self.space();
            let bytes = (space.file_len / 8).clamp(GROW_MIN, GROW_MAX);
            let start = space.file_len.next_multiple_of(MIB).max(space.used_end());
            (start, (bytes / block_size).max(1))
        };
        if start > MAX_FILE - count * block_size {
            return Err(Error::NoSpace);
        }
        // A full volume may still have room for less.
        let end = match self.file.set_len(start + count * block_size).await {
            Ok(()) => start + count * block_size,
            Err(Error::NoSpace) if count > 1 => {
                self.file.set_len(start + block_size).await?;
                start + block_size
            }
            Err(error) => return Err(error),
        };
        let mut space = self.space();
        space.file_len = end;
        if space.map.claim(start..end) {
            space.fresh = start..end;
            Ok(())
        } else {
            Err(Error::Corrupt("space past the end of the image is in use".into()))
        }
    }

    /// Turns retired space that nobody knows of any more into clean space, giving it back to the
    /// storage below meanwhile. Called with `refill` locked.
    async fn reclaim(&self) -> Result<()> {
        let block_size = self.layout.block_size;
        let freed = {
            let mut space = self.space();
            let epoch = self.epochs.advance();
            space.take_retired(epoch)
        };
        for at in freed {
            match self.file.punch_hole(at..at + block_size).await {
                Ok(()) => self.space().clean.push(at),
                // Zeroed when it is used again.
                Err(Error::Unsupported(_)) => self.space().map.release(at..at + block_size),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reclaims in the background what is free by now.
    pub(super) fn reclaim_later(self: &Arc<Self>) {
        if self.space().retired.is_empty() {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            let Ok(_one) = inner.refill.try_lock() else { return };
            if inner.epochs.is_closed() {
                return;
            }
            if let Err(error) = inner.reclaim().await {
                tracing::warn!(%error, "could not give back discarded space");
            }
        });
    }
}
