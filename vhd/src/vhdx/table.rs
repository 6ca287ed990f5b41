//! The block table in memory, in pages of 4 KiB that come and go.
//!
//! ```text
//!  get/update ──► page (its own short lock) ── 512 entries
//!                   │ clean, unused   ─► dropped when too many are in memory
//!                   │ dirty           ─► stays until a commit takes a copy
//!                   └ being committed ─► stays until it stands in its place in the file
//! ```
//!
//! In front of the pages stand some entries that were asked for lately, each one word:
//!
//! ```text
//!  recent[index % 1024]:  | index / 1024 (17 bits) | MiB of the file (44 bits) | state (3 bits) |
//! ```
//!
//! A word is read without a lock, and written only under the lock of its entry's page, so what it says
//! of an entry is never older than the page.
//!
//! Nothing here waits or does I/O; a page that is not in memory is the caller's to load.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering, Ordering::SeqCst},
};

use super::{
    MIB,
    bat::{PAGE_ENTRIES, PAGE_SIZE, RawEntry},
};

/// Entries of one page.
type Entries = Box<[u64; PAGE_ENTRIES as usize]>;

/// The content of a page that a commit writes.
pub type PageBytes = Box<[u8; PAGE_SIZE as usize]>;

#[derive(Debug, Default)]
struct Slot {
    entries: Option<Entries>,
    used: bool,
    dirty: bool,
    committing: bool,
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updated {
    /// It was done.
    Yes,
    /// The page must be loaded first.
    Absent,
    /// A commit must come first: as many pages are dirty as one commit takes.
    Full,
    /// The decision was to leave the entry.
    Left,
}

/// The pages of one image's table.
#[derive(Debug)]
pub struct BatCache {
    slots: Vec<Mutex<Slot>>,
    resident: AtomicUsize,
    limit: usize,
    hand: AtomicUsize,
    dirty: Mutex<Vec<usize>>,
    max_dirty: usize,
    /// Entries asked for lately. Sequentially consistent, as [`super::epoch`] is: who reads an old
    /// word is counted by the time that it is looked for who may have read it.
    recent: Box<[AtomicU64]>,
}

/// Entries kept in front of the pages.
const RECENT: u64 = 1024;
/// Bits of a word below the entry's tag.
const TAG_SHIFT: u32 = 47;

/// An entry as one word; 0 if it cannot be, or is nothing to keep.
fn word(index: u64, entry: RawEntry) -> u64 {
    let tag = index / RECENT;
    if tag >> (64 - TAG_SHIFT) != 0 || entry.reserved() != 0 {
        return 0;
    }
    tag << TAG_SHIFT | (entry.offset() / MIB) << 3 | u64::from(entry.state_bits())
}

/// The entry that a word holds if it is that of `index`.
fn entry_of(index: u64, word: u64) -> Option<RawEntry> {
    let own = word != 0 && word >> TAG_SHIFT == index / RECENT;
    own.then_some(RawEntry(word & 7 | (word & ((1 << TAG_SHIFT) - 1)) >> 3 << 20))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The page that holds an entry.
pub fn page_of(index: u64) -> usize {
    (index / PAGE_ENTRIES) as usize
}

impl BatCache {
    /// A table of `pages` pages, of which about `limit` stay in memory and `max_dirty` at most
    /// are dirty at a time.
    pub fn new(pages: u64, limit: usize, max_dirty: usize) -> Self {
        Self {
            slots: (0..pages).map(|_| Mutex::default()).collect(),
            resident: AtomicUsize::new(0),
            limit: limit.max(1),
            hand: AtomicUsize::new(0),
            dirty: Mutex::default(),
            max_dirty: max_dirty.max(1),
            recent: (0..RECENT).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// An entry that was asked for lately, without a lock.
    pub fn recent(&self, index: u64) -> Option<RawEntry> {
        entry_of(index, self.recent[(index % RECENT) as usize].load(SeqCst))
    }

    /// An entry, or `None` if its page is not in memory.
    pub fn get(&self, index: u64) -> Option<RawEntry> {
        let mut slot = lock(self.slots.get(page_of(index))?);
        let entry = RawEntry(slot.entries.as_ref()?[(index % PAGE_ENTRIES) as usize]);
        slot.used = true;
        self.remember(index, entry);
        Some(entry)
    }

    /// Puts an entry in front; called with its page locked.
    fn remember(&self, index: u64, entry: RawEntry) {
        self.recent[(index % RECENT) as usize].store(word(index, entry), SeqCst);
    }

    /// Changes an entry to what `decide` makes of it, if anything.
    pub fn update(&self, index: u64, decide: impl FnOnce(RawEntry) -> Option<RawEntry>) -> Updated {
        let page = page_of(index);
        let Some(mutex) = self.slots.get(page) else { return Updated::Absent };
        let mut slot = lock(mutex);
        let Slot { entries, dirty, .. } = &mut *slot;
        let Some(entries) = entries else { return Updated::Absent };
        let entry = &mut entries[(index % PAGE_ENTRIES) as usize];
        let mut list = (!*dirty).then(|| lock(&self.dirty));
        if list.as_ref().is_some_and(|list| list.len() >= self.max_dirty) {
            return Updated::Full;
        }
        let Some(new) = decide(RawEntry(*entry)) else { return Updated::Left };
        *entry = new.0;
        self.remember(index, new);
        *dirty = true;
        if let Some(list) = &mut list {
            list.push(page);
        }
        Updated::Yes
    }

    /// Takes in a page read from the file, unless it is in memory already; may drop others.
    pub fn insert(&self, page: usize, bytes: &[u8]) {
        let Some(mutex) = self.slots.get(page) else { return };
        {
            let mut slot = lock(mutex);
            slot.used = true;
            if slot.entries.is_some() {
                return;
            }
            let mut entries: Entries = Box::new([0; PAGE_ENTRIES as usize]);
            for (entry, raw) in entries.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *entry = u64::from_le_bytes(*raw);
            }
            slot.entries = Some(entries);
        }
        if self.resident.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.evict(page);
        }
    }

    /// Drops the next page that was not used since the hand last passed.
    fn evict(&self, keep: usize) {
        for _ in 0..2 * self.slots.len() {
            let page = self.hand.fetch_add(1, Ordering::Relaxed) % self.slots.len();
            let mut slot = lock(&self.slots[page]);
            if page == keep || slot.entries.is_none() || slot.dirty || slot.committing {
                continue;
            }
            if !std::mem::take(&mut slot.used) {
                slot.entries = None;
                self.resident.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Whether no page waits for a commit to take it.
    pub fn is_clean(&self) -> bool {
        lock(&self.dirty).is_empty()
    }

    /// Takes copies of all dirty pages, in ascending order, for a commit; they are clean then
    /// and stay in memory until [`BatCache::committed`].
    pub fn take_dirty(&self) -> Vec<(usize, PageBytes)> {
        let mut pages = std::mem::take(&mut *lock(&self.dirty));
        pages.sort_unstable();
        let copy = |page: usize| {
            let mut slot = lock(&self.slots[page]);
            slot.dirty = false;
            slot.committing = true;
            let mut bytes: PageBytes = Box::new([0; PAGE_SIZE as usize]);
            if let Some(entries) = &slot.entries {
                for (raw, entry) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(entries.iter()) {
                    *raw = entry.to_le_bytes();
                }
            }
            (page, bytes)
        };
        pages.into_iter().map(copy).collect()
    }

    /// The pages stand in their place in the file.
    pub fn committed(&self, pages: impl IntoIterator<Item = usize>) {
        for page in pages {
            lock(&self.slots[page]).committing = false;
        }
    }

    /// Pages in memory.
    #[cfg(test)]
    fn resident(&self) -> usize {
        self.resident.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_front_is_the_entry() {
        use crate::vhdx::bat::BlockState::{FullyPresent, Unmapped};
        let largest = RawEntry::new(FullyPresent, ((1 << 44) - 1) * MIB);
        for index in [0, 1, 1023, 1024, 70_000, (1 << 26) + (1 << 14) - 1] {
            for entry in [RawEntry::new(Unmapped, 0), RawEntry::new(FullyPresent, MIB), largest] {
                assert_eq!(entry_of(index, word(index, entry)), Some(entry));
                assert_eq!(entry_of(index + 1024, word(index, entry)), None);
            }
        }
        assert_eq!(word(0, RawEntry(8)), 0, "reserved bits do not fit");
        assert_eq!(word(1 << 27, largest), 0, "the tag does not fit");

        let cache = BatCache::new(4, 10, 4);
        (0..4).for_each(|page| cache.insert(page, &[0; 4096]));
        assert_eq!(cache.recent(5), None);
        assert_eq!(cache.update(5, |_| Some(largest)), Updated::Yes);
        assert_eq!(cache.recent(5), Some(largest));
        // Another in its place, and back.
        assert_eq!((cache.get(5 + 1024), cache.recent(5)), (Some(RawEntry(0)), None));
        assert_eq!((cache.get(5), cache.recent(5)), (Some(largest), Some(largest)));
    }

    #[test]
    fn what_is_kept_in_front_is_never_older_than_the_page() {
        let cache = BatCache::new(8, 100, 8);
        (0..8).for_each(|page| cache.insert(page, &[0; 4096]));
        // Both have the same place in front.
        let entries = [7, 7 + 1024];
        std::thread::scope(|scope| {
            for index in entries {
                let cache = &cache;
                scope.spawn(move || {
                    for n in 1..20_000 {
                        let new =
                            RawEntry::new(crate::vhdx::bat::BlockState::FullyPresent, n * MIB);
                        assert_eq!(cache.update(index, |_| Some(new)), Updated::Yes);
                        let seen = cache.recent(index);
                        assert!(seen.is_none_or(|seen| seen == new), "{seen:?} after {new:?}");
                        assert_eq!(cache.get(index), Some(new));
                    }
                });
            }
            for index in entries {
                let cache = &cache;
                scope.spawn(move || {
                    let mut last = 0;
                    for n in 0..20_000 {
                        let entry = if n % 2 == 0 { cache.get(index) } else { cache.recent(index) };
                        let now = entry.map_or(last, |entry| entry.offset());
                        assert!(now >= last, "{now} after {last}");
                        last = now;
                    }
                });
            }
        });
    }

    #[test]
    fn pages_come_and_go_but_dirty_ones_stay() {
        let cache = BatCache::new(100, 10, 3);
        assert_eq!(cache.get(0), None);
        assert_eq!(cache.update(0, |_| None), Updated::Absent);
        for page in 0..100 {
            cache.insert(page, &[page as u8; 4096]);
            assert!(cache.get(page as u64 * 512).is_some());
            if page < 3 {
                assert_eq!(
                    cache.update(page as u64 * 512, |e| Some(RawEntry(e.0 + 1))),
                    Updated::Yes
                );
            }
        }
        assert!(cache.resident() <= 11, "{}", cache.resident());
        assert_eq!(cache.update(99 * 512, Some), Updated::Full);
        assert_eq!(cache.get(512), Some(RawEntry(0x0101_0101_0101_0102)));
        let dirty = cache.take_dirty();
        assert_eq!(dirty.iter().map(|(page, _)| *page).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(dirty[2].1[..9], [3, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(cache.update(99 * 512, Some), Updated::Yes);
        cache.committed([0, 1, 2]);
        assert!(!cache.is_clean());
    }
}
