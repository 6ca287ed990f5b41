//! Which megabytes of the file are taken.

use std::ops::Range;

use super::MIB;

/// A bitmap over the file in units of 1 MiB: 8 MiB of memory for a file of 64 TiB.
#[derive(Debug, Clone, Default)]
pub struct SpaceMap {
    words: Vec<u64>,
    /// No free unit below this.
    search_from: u64,
}

impl SpaceMap {
    fn units(range: &Range<u64>) -> Range<u64> {
        range.start / MIB..range.end.div_ceil(MIB)
    }

    fn get(&self, unit: u64) -> bool {
        self.words.get((unit / 64) as usize).is_some_and(|w| w >> (unit % 64) & 1 != 0)
    }

    /// Takes the units of `range`. Returns false, and takes none, if one is taken already.
    /// The caller bounds `range` (by the file's length or [`super::MAX_FILE`]).
    #[must_use]
    pub fn claim(&mut self, range: Range<u64>) -> bool {
        let units = Self::units(&range);
        if units.clone().any(|unit| self.get(unit)) {
            return false;
        }
        let words = units.end.div_ceil(64) as usize;
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        for unit in units {
            self.words[(unit / 64) as usize] |= 1 << (unit % 64);
        }
        true
    }

    /// Gives the units of `range` back.
    pub fn release(&mut self, range: Range<u64>) {
        let units = Self::units(&range);
        self.search_from = self.search_from.min(units.start);
        for unit in units {
            if let Some(word) = self.words.get_mut((unit / 64) as usize) {
                *word &= !(1 << (unit % 64));
            }
        }
    }

    /// Claims the first free run of `len` bytes (whole MiB) that ends at or before `limit`.
    pub fn claim_free(&mut self, len: u64, limit: u64) -> Option<u64> {
        let (want, limit) = (len / MIB, limit / MIB);
        let mut start = self.search_from;
        let mut first_free = None;
        let mut unit = start;
        while unit < limit {
            if unit.is_multiple_of(64)
                && self.words.get((unit / 64) as usize).is_some_and(|w| *w == u64::MAX)
            {
                unit += 64;
                start = unit;
                continue;
            }
            if self.get(unit) {
                unit += 1;
                start = unit;
                continue;
            }
            first_free.get_or_insert(unit);
            unit += 1;
            if unit - start == want {
                if first_free == Some(start) {
                    self.search_from = unit;
                }
                let range = start * MIB..unit * MIB;
                return self.claim(range.clone()).then_some(range.start);
            }
        }
        self.search_from = first_free.unwrap_or(limit).min(limit);
        None
    }

    /// The byte after the last taken unit.
    pub fn end(&self) -> u64 {
        let Some(i) = self.words.iter().rposition(|w| *w != 0) else { return 0 };
        (i as u64 * 64 + 64 - u64::from(self.words[i].leading_zeros())) * MIB
    }

    /// Takes all that is free before `limit`, which the caller bounds.
    pub fn take_all(&mut self, limit: u64) {
        for run in self.free_runs(limit) {
            let claimed = self.claim(run);
            debug_assert!(claimed, "it was free");
        }
    }

    /// Bytes of the file that are taken.
    pub fn taken(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * MIB
    }

    /// The free runs before `limit`.
    pub fn free_runs(&self, limit: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut add = |units: Range<u64>| {
            let range = units.start * MIB..(units.end * MIB).min(limit);
            match runs.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => runs.push(range),
            }
        };
        let units = limit.div_ceil(MIB);
        for (i, word) in self.words.iter().enumerate() {
            let first = i as u64 * 64;
            for unit in (first..first + 64).take_while(|unit| *unit < units) {
                if word >> (unit % 64) & 1 == 0 {
                    add(unit..unit + 1);
                }
            }
        }
        let mapped = self.words.len() as u64 * 64;
        if mapped < units {
            add(mapped..units);
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_finds_and_releases() {
        let mut map = SpaceMap::default();
        assert!(map.claim(0..4 * MIB));
        assert!(!map.claim(3 * MIB..5 * MIB));
        assert!(map.claim(6 * MIB..70 * MIB));
        assert_eq!(map.end(), 70 * MIB);
        assert_eq!(map.free_runs(72 * MIB), [4 * MIB..6 * MIB, 70 * MIB..72 * MIB]);
        assert_eq!(map.claim_free(4 * MIB, 70 * MIB), None);
        assert_eq!(map.claim_free(2 * MIB, 70 * MIB), Some(4 * MIB));
        assert_eq!(map.claim_free(MIB, 70 * MIB), None);
        map.release(10 * MIB..12 * MIB);
        assert_eq!(map.claim_free(MIB, 70 * MIB), Some(10 * MIB));
        assert_eq!(map.claim_free(MIB, 70 * MIB), Some(11 * MIB));
        assert_eq!(map.claim_free(MIB, 70 * MIB), None);
        map.release(10 * MIB..12 * MIB);
        map.take_all(80 * MIB + 5);
        assert_eq!((map.claim_free(MIB, 81 * MIB), map.end()), (None, 81 * MIB));
    }
}
