//! Byte-range locks of one file (MS-FSA 2.1.4.10, 2.1.5.8, 2.1.5.9).
//!
//! A file may have thousands of them, and each read, write and lock of it asks which are in its way. So
//! they are kept by length and place: a lock of at most so many bytes that reaches into a range begins at
//! most that many before it, and nothing further away is looked at.
//!
//! ```text
//!  lengths 0–1    ──┬─┬──────┬──          a range: in each row what begins in it,
//!  lengths 2–3    ────┬──────────         and shortly before it
//!  lengths 4–7    ──┬─────────┬──
//!  …                   ├range┤
//! ```

use std::{collections::BTreeMap, iter};

/// A range of bytes; its last byte is at most `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes; an empty range collides with ranges that it lies strictly inside.
    pub length: u64,
}

impl Range {
    /// A range, unless it would end behind the last byte there can be.
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        (length == 0 || offset.checked_add(length - 1).is_some()).then_some(Self { offset, length })
    }

    /// The empty range at the start is nowhere.
    fn is_nowhere(self) -> bool {
        (self.offset, self.length) == (0, 0)
    }

    fn overlaps(self, other: Self) -> bool {
        let behind = |range: Range| u128::from(range.offset) + u128::from(range.length);
        // Two ranges of the same place are one.
        if self.is_nowhere() || other.is_nowhere() {
            return false;
        }
        u128::from(self.offset) < behind(other) && u128::from(other.offset) < behind(self)
    }
}

/// What is done to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Its bytes are read.
    Read,
    /// Its bytes are changed.
    Write,
    /// It is locked; others may lock it shared too.
    Share,
    /// It is locked; nobody else may.
    Own,
}

/// A lock, without its range and its owner's other locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    open: u64,
    length: u64,
    exclusive: bool,
}

impl Held {
    /// Whether it forbids what `open` wants to do where it lies.
    fn forbids(&self, open: u64, intent: Intent) -> bool {
        match (self.exclusive, self.open == open) {
            (true, false) => true,
            // Even the owner may not own a range twice.
            (true, true) => intent == Intent::Own,
            (false, _) => matches!(intent, Intent::Write | Intent::Own),
        }
    }
}

/// Where a lock is kept: its row, its first byte, and the when of it, in this order.
type Place = (u32, u64, u64);

/// The row of locks of a length: that of the highest bit of it.
fn row(length: u64) -> u32 {
    length.max(1).ilog2()
}

/// Most bytes that a lock of a row has.
fn longest(row: u32) -> u64 {
    u64::MAX >> (63 - row.min(63))
}

/// All locks of one file.
#[derive(Debug, Default)]
pub struct Locks {
    held: BTreeMap<Place, Held>,
    /// By owner and the when of them.
    owners: BTreeMap<(u64, u64), Place>,
    /// The when of the next one.
    next: u64,
}

impl Locks {
    /// The rows that have locks, with the place of the first of each.
    fn rows(&self) -> impl Iterator<Item = Place> {
        let from = |row| self.held.range((row, 0, 0)..).next().map(|(place, _)| *place);
        iter::successors(from(0), move |(row, ..)| from(row + 1))
    }

    /// The locks that may overlap a range: all that do are among them.
    fn near(&self, range: Range) -> impl Iterator<Item = (Range, &Held)> {
        let end = u128::from(range.offset) + u128::from(range.length);
        let last = u64::try_from(end).unwrap_or(u64::MAX);
        self.rows().flat_map(move |(row, ..)| {
            let first = range.offset.saturating_sub(longest(row));
            self.held.range((row, first, 0)..=(row, last, u64::MAX)).map(
                |((_, offset, _), held)| (Range { offset: *offset, length: held.length }, held),
            )
        })
    }

    /// Whether what `open` wants to do meets a lock that forbids it.
    pub fn conflict(&self, open: u64, range: Range, intent: Intent) -> bool {
        self.near(range).any(|(place, held)| held.forbids(open, intent) && place.overlaps(range))
    }

    /// Whether what `open` wants to do to any of many ranges meets a lock that forbids it. Empty ranges
    /// meet none.
    pub fn conflict_any(
        &self,
        open: u64,
        ranges: impl Iterator<Item = Range>,
        intent: Intent,
    ) -> bool {
        let mut ranges = ranges.filter(|range| range.length > 0);
        ranges.any(|range| self.conflict(open, range, intent))
    }

    /// Whether any lock begins before the end of the file, which is at `end`.
    pub fn reach_into(&self, end: u64) -> bool {
        self.rows().any(|(_, offset, _)| offset < end)
    }

    /// Takes a lock if nothing forbids it.
    pub fn take(&mut self, open: u64, range: Range, exclusive: bool) -> bool {
        let intent = if exclusive { Intent::Own } else { Intent::Share };
        let free = !self.conflict(open, range, intent);
        if free {
            let place = (row(range.length), range.offset, self.next);
            self.held.insert(place, Held { open, length: range.length, exclusive });
            self.owners.insert((open, self.next), place);
            self.next += 1;
        }
        free
    }

    /// Releases the lock of exactly that range; of two the exclusive one, as it was taken first.
    pub fn release(&mut self, open: u64, range: Range) -> bool {
        let row = row(range.length);
        let same = self.held.range((row, range.offset, 0)..=(row, range.offset, u64::MAX));
        let mut mine = same.filter(|(_, held)| held.open == open && held.length == range.length);
        let Some(place) = mine.next().map(|(place, _)| *place) else { return false };
        self.held.remove(&place);
        self.owners.remove(&(open, place.2));
        true
    }

    /// Releases everything that an open holds; whether there was anything.
    pub fn release_all(&mut self, open: u64) -> bool {
        let mut any = false;
        while let Some((owner, place)) = self.owners.range((open, 0)..=(open, u64::MAX)).next() {
            let (owner, place) = (*owner, *place);
            self.owners.remove(&owner);
            self.held.remove(&place);
            any = true;
        }
        any
    }

    /// Number of locks on the file.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Locks of one open as `(range, exclusive)`, in the order in which they were taken.
    pub fn of(&self, open: u64) -> impl Iterator<Item = (Range, bool)> {
        self.owners.range((open, 0)..=(open, u64::MAX)).filter_map(|(_, place)| {
            let held = self.held.get(place)?;
            Some((Range { offset: place.1, length: held.length }, held.exclusive))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(offset: u64, length: u64) -> Range {
        Range::new(offset, length).unwrap()
    }

    #[test]
    fn ends_and_empty_ranges() {
        assert_eq!(Range::new(u64::MAX, 2), None);
        let last = range(u64::MAX, 1);
        let mut locks = Locks::default();
        assert!(locks.take(1, last, true));
        assert!(!locks.take(2, last, false));
        assert!(locks.take(2, range(10, 10), true));
        assert!(!locks.take(1, range(15, 0), true), "inside");
        assert!(locks.take(1, range(10, 0), true), "at the edge");
        assert!(locks.take(1, range(20, 0), true), "behind");
        assert!(locks.take(1, range(0, 0), true), "nowhere");
        assert!(!locks.release(1, range(10, 10)), "another's");
        assert!(locks.release(2, range(10, 10)));
    }

    /// What is looked at for a range does not grow with the locks elsewhere in the file.
    #[test]
    fn far_locks_are_not_looked_at() {
        let mut locks = Locks::default();
        for number in 0..16_000u64 {
            assert!(locks.take(number % 7, range(number * 1000, 1 + number % 900), true));
        }
        for number in (0..16_000).step_by(997) {
            let asked = range(number * 1000 + 950, 10);
            assert!(locks.near(asked).count() <= 2 * 10, "one or two in each of ten rows");
            assert!(!locks.conflict(9, asked, Intent::Write));
            assert!(locks.conflict(9, range(number * 1000, 1), Intent::Read));
        }
        assert_eq!(locks.of(3).count(), 16_000usize.div_ceil(7));
        assert!(locks.release_all(3) && !locks.release_all(3));
        assert_eq!(locks.count(), 16_000 - 16_000usize.div_ceil(7));
    }

    #[test]
    fn the_longest_locks_reach_from_the_first_byte_to_the_last() {
        let mut locks = Locks::default();
        assert!(locks.take(1, range(0, u64::MAX), true));
        assert!(locks.take(2, range(u64::MAX, 1), true));
        assert!(locks.conflict(3, range(u64::MAX - 1, 1), Intent::Read));
        assert!(locks.conflict(3, range(u64::MAX, 1), Intent::Read));
        assert!(locks.release(1, range(0, u64::MAX)));
        assert!(!locks.conflict(3, range(u64::MAX - 1, 1), Intent::Read));
        assert_eq!((locks.reach_into(u64::MAX), locks.count()), (false, 1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u64, u64, u64, bool),
        Release(u64, u64, u64),
        All(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = || (0u64..3, 0u64..12, 1u64..6);
        prop_oneof![
            (place(), any::<bool>()).prop_map(|((o, at, len), x)| Step::Take(o, at, len, x)),
            place().prop_map(|(o, at, len)| Step::Release(o, at, len)),
            (0u64..3).prop_map(Step::All),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Locks act as a table of who holds each byte how often.
        #[test]
        fn as_bytes(steps in prop::collection::vec(step(), 1..60)) {
            let mut locks = Locks::default();
            let mut model: Vec<(u64, u64, u64, bool)> = Vec::new();
            for step in steps {
                let touches = |at: u64, len: u64, h: &(u64, u64, u64, bool)| {
                    (at..at + len).any(|byte| (h.1..h.1 + h.2).contains(&byte))
                };
                match step {
                    Step::Take(open, at, len, exclusive) => {
                        let free = model.iter().filter(|h| touches(at, len, h)).all(|h| match h.3 {
                            true => h.0 == open && !exclusive,
                            false => !exclusive,
                        });
                        prop_assert_eq!(locks.take(open, range(at, len), exclusive), free);
                        if free { model.push((open, at, len, exclusive)); }
                    }
                    Step::Release(open, at, len) => {
                        let found = model.iter().position(|h| (h.0, h.1, h.2) == (open, at, len));
                        prop_assert_eq!(locks.release(open, range(at, len)), found.is_some());
                        found.map(|i| model.remove(i));
                    }
                    Step::All(open) => {
                        locks.release_all(open);
                        model.retain(|h| h.0 != open);
                    }
                }
                for byte in 0..18 {
                    for open in 0..3 {
                        let hits = |write: bool| model.iter().any(|h| touches(byte, 1, h)
                            && if h.3 { h.0 != open } else { write });
                        let one = range(byte, 1);
                        prop_assert_eq!(locks.conflict(open, one, Intent::Read), hits(false) && byte != u64::MAX);
                        prop_assert_eq!(locks.conflict(open, one, Intent::Write), hits(true));
                        for intent in [Intent::Read, Intent::Write, Intent::Own] {
                            let several = [range(byte, 2), range(17 - byte, 3), range(byte, 0)];
                            let any = several[..2].iter().any(|r| locks.conflict(open, *r, intent));
                            let found = locks.conflict_any(open, several.into_iter(), intent);
                            prop_assert_eq!(found, any);
                        }
                    }
                }
            }
        }
    }
}
