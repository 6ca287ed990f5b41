//! Byte-range locks of one file (MS-FSA 2.1.4.10, 2.1.5.8, 2.1.5.9).

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    open: u64,
    range: Range,
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

/// All locks of one file.
#[derive(Debug, Default)]
pub struct Locks {
    held: Vec<Held>,
}

impl Locks {
    /// Whether what `open` wants to do meets a lock that forbids it.
    pub fn conflict(&self, open: u64, range: Range, intent: Intent) -> bool {
        self.held.iter().any(|held| held.forbids(open, intent) && held.range.overlaps(range))
    }

    /// Whether what `open` wants to do to any of many ranges meets a lock that forbids it: in the
    /// time that it takes to sort the locks, not to compare each with each. Empty ranges meet none.
    pub fn conflict_any(
        &self,
        open: u64,
        ranges: impl Iterator<Item = Range>,
        intent: Intent,
    ) -> bool {
        let end = |range: Range| u128::from(range.offset) + u128::from(range.length);
        let mut held: Vec<(u64, u128)> = self
            .held
            .iter()
            .filter(|held| held.forbids(open, intent) && !held.range.is_nowhere())
            .map(|held| (held.range.offset, end(held.range)))
            .collect();
        held.sort_unstable();
        // Beside each lock stands the furthest end up to it.
        let mut furthest = 0;
        for (_, end) in &mut held {
            furthest = furthest.max(*end);
            *end = furthest;
        }
        ranges.filter(|range| range.length > 0).any(|range| {
            let before = held.partition_point(|(offset, _)| u128::from(*offset) < end(range));
            before.checked_sub(1).is_some_and(|last| held[last].1 > u128::from(range.offset))
        })
    }

    /// Whether any lock begins before the end of the file, which is at `end`.
    pub fn reach_into(&self, end: u64) -> bool {
        self.held.iter().any(|held| held.range.offset < end)
    }

    /// Takes a lock if nothing forbids it.
    pub fn take(&mut self, open: u64, range: Range, exclusive: bool) -> bool {
        let intent = if exclusive { Intent::Own } else { Intent::Share };
        let free = !self.conflict(open, range, intent);
        if free {
            self.held.push(Held { open, range, exclusive });
        }
        free
    }

    /// Releases the lock of exactly that range; of two the exclusive one, as it was taken first.
    pub fn release(&mut self, open: u64, range: Range) -> bool {
        let mine = |held: &Held| held.open == open && held.range == range;
        match self.held.iter().position(mine) {
            Some(at) => {
                self.held.remove(at);
                true
            }
            None => false,
        }
    }

    /// Releases everything that an open holds; whether there was anything.
    pub fn release_all(&mut self, open: u64) -> bool {
        let before = self.held.len();
        self.held.retain(|held| held.open != open);
        self.held.len() != before
    }

    /// Number of locks on the file.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Locks of one open as `(offset, length, exclusive)`.
    pub fn of(&self, open: u64) -> impl Iterator<Item = (Range, bool)> {
        self.held.iter().filter(move |held| held.open == open).map(|h| (h.range, h.exclusive))
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
