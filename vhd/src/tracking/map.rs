//! A map of granules in memory, changed without locks.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// One bit for each of something.
#[derive(Debug)]
pub(super) struct Map(Vec<AtomicU64>);

impl Map {
    /// A map of so many, none of them marked.
    pub(super) fn new(count: u64) -> Self {
        Self((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn get(&self, index: u64) -> bool {
        let word = self.0.get((index / 64) as usize);
        word.is_some_and(|word| word.load(SeqCst) >> (index % 64) & 1 != 0)
    }

    pub(super) fn set(&self, index: u64) {
        let bit = 1 << (index % 64);
        // A bit that is there costs no write to shared memory.
        if let Some(word) = self.0.get((index / 64) as usize)
            && word.load(SeqCst) & bit == 0
        {
            word.fetch_or(bit, SeqCst);
        }
    }

    pub(super) fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, SeqCst));
    }

    /// The words as they are now.
    pub(super) fn words(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.load(SeqCst)).collect()
    }

    /// Marks what these words have.
    pub(super) fn add(&self, words: &[u64]) {
        for (word, more) in self.0.iter().zip(words) {
            word.fetch_or(*more, SeqCst);
        }
    }
}

/// The runs of marked bits among the first `count`.
pub(super) fn runs(words: &[u64], count: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let mut rest = *word;
        let base = i as u64 * 64;
        while rest != 0 {
            let start = rest.trailing_zeros();
            let len = (rest >> start).trailing_ones();
            let run = base + u64::from(start)..(base + u64::from(start + len)).min(count);
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ if run.start < run.end => runs.push(run),
                _ => {}
            }
            let done = start + len;
            rest = if done == 64 { 0 } else { rest >> done << done };
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_the_marked_bits(words in prop::collection::vec(any::<u64>(), 1..4), ones: bool) {
            let words: Vec<u64> = words.iter().map(|w| if ones { w | w << 1 | w << 2 } else { *w }).collect();
            let count = words.len() as u64 * 64 - 5;
            let mut found = vec![false; words.len() * 64];
            let runs = runs(&words, count);
            for run in &runs {
                prop_assert!(run.start < run.end && run.end <= count);
                found[run.start as usize..run.end as usize].fill(true);
            }
            for (i, found) in found.into_iter().enumerate() {
                let marked = words[i / 64] >> (i % 64) & 1 != 0;
                prop_assert_eq!(found, marked && (i as u64) < count);
            }
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
