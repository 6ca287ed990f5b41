//! Byte-range locks of one file (MS-FSA 2.1.4.10, 2.1.5.8, 2.1.5.9).
//!
//! A file may have thousands of them, and each read, write and lock of it asks which are in its way. So
//! they are kept by length and place: one of a row reaches into a range if it begins there, or less than
//! the row's shortest length before it, or ends soon behind the range's first byte. Whoever asks looks at
//! those alone.
//!
//! ```text
//!  lengths 1      ───┬──────┬────         a range: in each row what begins in it, and shortly before
//!  lengths 2–3    ────┬──────────
//!  lengths 4–7    ──┬─────────┬──
//!  …                   ├range┤
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

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

/// A lock, without its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    open: u64,
    length: u64,
}

/// Where a lock is kept: its row, its first byte, and the when of it, in this order.
type Place = (u32, u64, u64);

/// The row of empty locks; the others are by the highest bit of their length.
const EMPTY: u32 = 64;

fn row(length: u64) -> u32 {
    length.checked_ilog2().unwrap_or(EMPTY)
}

/// The byte behind a range.
fn behind(range: Range) -> u128 {
    u128::from(range.offset) + u128::from(range.length)
}

/// The locks of one kind, by row and place.
#[derive(Debug, Default)]
struct Rows(BTreeMap<Place, Held>);

impl Rows {
    /// The rows that have locks, with the place of the first of each.
    fn firsts(&self) -> impl Iterator<Item = Place> {
        let from = |row| self.0.range((row, 0, 0)..).next().map(|(place, _)| *place);
        iter::successors(from(0), move |(row, ..)| from(row + 1))
    }

    /// Those of a row that begin behind `first` and before `end`, each with its range.
    fn between(
        &self,
        row: u32,
        first: Option<u64>,
        end: u128,
    ) -> impl Iterator<Item = (Range, &Held)> {
        let from = first.map_or(Some(0), |first| first.checked_add(1));
        let to = end.checked_sub(1).map(|last| u64::try_from(last).unwrap_or(u64::MAX));
        let ends = from.zip(to).filter(|(from, to)| from <= to);
        let held = ends.map(|(from, to)| self.0.range((row, from, 0)..=(row, to, u64::MAX)));
        let range = |(place, held): (&Place, _)| (place.1, held);
        held.into_iter()
            .flatten()
            .map(range)
            .map(|(offset, held): (u64, &Held)| (Range { offset, length: held.length }, held))
    }

    /// The lock of exactly that range that an open has had for longest.
    fn find(&self, open: u64, range: Range) -> Option<Place> {
        let row = row(range.length);
        let mut same = self.0.range((row, range.offset, 0)..=(row, range.offset, u64::MAX));
        let mine = same.find(|(_, held)| held.open == open && held.length == range.length);
        mine.map(|(place, _)| *place)
    }
}

/// All locks of one file.
#[derive(Debug, Default)]
pub struct Locks {
    /// No two of these overlap.
    exclusive: Rows,
    shared: Rows,
    /// Row, end and when of the shared ones.
    ends: BTreeSet<(u32, u128, u64)>,
    /// By owner and the when of them, with whether they are exclusive.
    owners: BTreeMap<(u64, u64), (Place, bool)>,
    /// The when of the next one.
    next: u64,
}

impl Locks {
    /// The exclusive locks that may overlap a range: all that do are among them, and in each row at most
    /// three others.
    fn near(&self, range: Range) -> impl Iterator<Item = (Range, &Held)> {
        self.exclusive.firsts().flat_map(move |(row, ..)| {
            let first = match row {
                EMPTY => Some(range.offset),
                row => range.offset.checked_sub(u64::MAX >> (63 - row)),
            };
            self.exclusive.between(row, first, behind(range))
        })
    }

    /// Whether a shared lock overlaps a range.
    fn is_shared(&self, range: Range) -> bool {
        self.shared.firsts().any(|(row, ..)| {
            if row == EMPTY {
                return self
                    .shared
                    .between(row, Some(range.offset), behind(range))
                    .next()
                    .is_some();
            }
            let shortest = 1u64 << row;
            let first = range.offset.checked_sub(shortest);
            let begins = || self.shared.between(row, first, behind(range)).next().is_some();
            // What ends no more than the shortest length behind the first byte begins before it or on it.
            let start = u128::from(range.offset);
            let soon = start + u128::from(shortest) - u128::from(range.length == 0);
            let ends = || {
                start < soon
                    && self.ends.range((row, start + 1, 0)..=(row, soon, u64::MAX)).next().is_some()
            };
            begins() || ends()
        })
    }

    /// Whether what `open` wants to do meets a lock that forbids it.
    pub fn conflict(&self, open: u64, range: Range, intent: Intent) -> bool {
        if range.is_nowhere() {
            return false;
        }
        // Even the owner may not own a range twice.
        let theirs = |held: &Held| held.open != open || intent == Intent::Own;
        matches!(intent, Intent::Write | Intent::Own) && self.is_shared(range)
            || self.near(range).any(|(place, held)| theirs(held) && place.overlaps(range))
    }

    /// Whether what `open` wants to do to any of many ranges meets a lock that forbids it: each lock is
    /// looked for among the ranges, which are no more than some thousands. Empty ranges meet none.
    pub fn conflict_any(
        &self,
        open: u64,
        ranges: impl Iterator<Item = Range>,
        intent: Intent,
    ) -> bool {
        let mut ranges: Vec<(u64, u128)> = ranges
            .filter(|range| range.length > 0)
            .map(|range| (range.offset, behind(range)))
            .collect();
        ranges.sort_unstable();
        // Those that overlap become one; that two touch is no reason: an empty lock may lie between.
        ranges.dedup_by(|next, before| {
            let one = u128::from(next.0) < before.1;
            if one {
                before.1 = before.1.max(next.1);
            }
            one
        });
        if let [(offset, end)] = ranges[..]
            && let Ok(length) = u64::try_from(end - u128::from(offset))
        {
            return self.conflict(open, Range { offset, length }, intent);
        }
        let meets = |(place, held): (&Place, &Held)| {
            let lock = Range { offset: place.1, length: held.length };
            let before = ranges.partition_point(|range| u128::from(range.0) < behind(lock));
            before.checked_sub(1).is_some_and(|last| ranges[last].1 > u128::from(lock.offset))
        };
        let theirs = |held: &Held| held.open != open || intent == Intent::Own;
        matches!(intent, Intent::Write | Intent::Own) && self.shared.0.iter().any(meets)
            || self.exclusive.0.iter().any(|it| theirs(it.1) && meets(it))
    }

    /// Whether any lock begins before the end of the file, which is at `end`.
    pub fn reach_into(&self, end: u64) -> bool {
        self.exclusive.firsts().chain(self.shared.firsts()).any(|(_, offset, _)| offset < end)
    }

    /// Takes a lock if nothing forbids it.
    pub fn take(&mut self, open: u64, range: Range, exclusive: bool) -> bool {
        let intent = if exclusive { Intent::Own } else { Intent::Share };
        let free = !self.conflict(open, range, intent);
        if free {
            let place = (row(range.length), range.offset, self.next);
            let rows = if exclusive { &mut self.exclusive } else { &mut self.shared };
            rows.0.insert(place, Held { open, length: range.length });
            if !exclusive {
                self.ends.insert((place.0, behind(range), self.next));
            }
            self.owners.insert((open, self.next), (place, exclusive));
            self.next += 1;
        }
        free
    }

    /// Releases the lock of exactly that range; of two the exclusive one, as it was taken first.
    pub fn release(&mut self, open: u64, range: Range) -> bool {
        let exclusive = self.exclusive.find(open, range).map(|place| (place, true));
        let shared = || self.shared.find(open, range).map(|place| (place, false));
        let Some((place, exclusive)) = exclusive.or_else(shared) else { return false };
        self.owners.remove(&(open, place.2));
        self.forget(place, exclusive);
        true
    }

    /// Releases everything that an open holds; whether there was anything.
    pub fn release_all(&mut self, open: u64) -> bool {
        let mut any = false;
        while let Some((owner, found)) = self.owners.range((open, 0)..=(open, u64::MAX)).next() {
            let (owner, (place, exclusive)) = (*owner, *found);
            self.owners.remove(&owner);
            self.forget(place, exclusive);
            any = true;
        }
        any
    }

    /// Takes a lock out of the rows.
    fn forget(&mut self, place: Place, exclusive: bool) {
        if exclusive {
            self.exclusive.0.remove(&place);
        } else if let Some(held) = self.shared.0.remove(&place) {
            let (row, offset, when) = place;
            self.ends.remove(&(row, behind(Range { offset, length: held.length }), when));
        }
    }

    /// Number of locks on the file.
    pub fn count(&self) -> usize {
        self.owners.len()
    }

    /// Locks of one open as `(range, exclusive)`, in the order in which they were taken.
    pub fn of(&self, open: u64) -> impl Iterator<Item = (Range, bool)> {
        let mine = self.owners.range((open, 0)..=(open, u64::MAX)).map(|(_, found)| *found);
        mine.filter_map(|(place, exclusive)| {
            let rows = if exclusive { &self.exclusive } else { &self.shared };
            let length = rows.0.get(&place)?.length;
            Some((Range { offset: place.1, length }, exclusive))
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

    /// Who has a great many shared locks makes nobody look at them one by one: one that is in the way ends
    /// the search, and those that are not are not found.
    #[test]
    fn shared_locks_that_reach_a_range_are_found_at_once() {
        let mut locks = Locks::default();
        for number in 0..1000 {
            assert!(locks.take(1, range(number, 3000 + number % 7), false));
        }
        assert!(locks.is_shared(range(4000, 1)) && !locks.is_shared(range(4006, 1)));
        assert_eq!(locks.near(range(2000, 10)).count(), 0);
    }

    /// Ranges near the ends of all that there is, short, long and empty.
    fn any_range() -> impl Strategy<Value = Range> {
        let place = prop_oneof![0u64..20, (0u64..20).prop_map(|at| u64::MAX - at), (60u64..70)];
        let length = prop_oneof![0u64..10, 60u64..70, (0u64..20).prop_map(|less| u64::MAX - less)];
        (place, length).prop_map(|(offset, length)| {
            let most = (u64::MAX - offset).saturating_add(1);
            Range { offset, length: length.min(most) }
        })
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
        /// What is found by rows is what looking at each lock finds.
        #[test]
        fn as_a_list(
            steps in prop::collection::vec((0u64..3, any_range(), any::<bool>()), 1..25),
            asked in prop::collection::vec(any_range(), 12),
        ) {
            let mut locks = Locks::default();
            let mut model: Vec<(u64, Range, bool)> = Vec::new();
            let forbidden = |model: &[(u64, Range, bool)], open, range: Range, intent| {
                model.iter().any(|(owner, held, exclusive)| {
                    held.overlaps(range) && match (*exclusive, *owner == open) {
                        (true, mine) => !mine || intent == Intent::Own,
                        (false, _) => matches!(intent, Intent::Write | Intent::Own),
                    }
                })
            };
            for (open, place, exclusive) in steps {
                let intent = if exclusive { Intent::Own } else { Intent::Share };
                let free = !forbidden(&model, open, place, intent);
                prop_assert_eq!(locks.take(open, place, exclusive), free);
                if free { model.push((open, place, exclusive)); }
                for intent in [Intent::Read, Intent::Write, Intent::Share, Intent::Own] {
                    for range in &asked {
                        let expected = forbidden(&model, 1, *range, intent);
                        prop_assert_eq!(locks.conflict(1, *range, intent), expected, "{:?}", range);
                    }
                    let some = asked.iter().copied().filter(|range| range.length > 0);
                    let expected = some.clone().any(|range| forbidden(&model, 1, range, intent));
                    prop_assert_eq!(locks.conflict_any(1, some, intent), expected);
                }
                prop_assert_eq!(locks.count(), model.len());
            }
            while let Some((open, place, _)) = model.pop() {
                let exclusive = model.iter().position(|it| *it == (open, place, true));
                prop_assert!(locks.release(open, place));
                if let Some(at) = exclusive { model[at].2 = false; }
            }
            prop_assert_eq!((locks.count(), locks.ends.len()), (0, 0));
        }

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
