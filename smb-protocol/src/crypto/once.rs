//! Each nonce of a key once: what keeps AES-GMAC and AES-GCM whole (NIST SP 800-38D section 8,
//! RFC 4543 section 9).
//!
//! ```text
//!       low                                    newest
//!  ─────┼──x──x──.──x──x──x──.──x──.──x──x──x──┼─────
//!  gone │  at most SPAN numbers: x signed, . not yet         kept: numbers that may be signed once
//!       │                                                    more although they are gone
//! ```

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, PoisonError},
};

/// A nonce may not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NonceError {
    /// The key has used it already, or so long ago that nobody remembers.
    #[error("the key has signed message {0} already, or cannot know that it has not")]
    Repeated(u64),
    /// The key has used all that it may.
    #[error("the key has protected as many messages as it may")]
    Exhausted,
}

/// Numbers that are remembered one by one: as many as a connection can have credits.
const SPAN: usize = 1 << 16;
/// Most numbers that are kept although they are behind the others.
const KEPT: usize = 1 << 16;
/// Numbers of one word.
const WORD: u64 = 64;
/// Words before that of the first number: messages of a connection may be signed in another order
/// than they are numbered.
const SLACK: u64 = 4;

/// The numbers that were used. Each is given out once; what is behind the last [`SPAN`] is taken
/// for used unless it is kept.
#[derive(Debug, Default)]
pub(super) struct Once(Mutex<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    /// The word that `words` begins with, once a number was used.
    low: Option<u64>,
    words: VecDeque<u64>,
    kept: BTreeSet<u64>,
}

impl Once {
    /// Uses a number.
    pub(super) fn take(&self, number: u64) -> Result<(), NonceError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(number)
    }

    /// Remembers a number that is going to be used, however many are used before.
    pub(super) fn keep(&self, number: u64) -> Result<(), NonceError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keep(number)
    }
}

impl Numbers {
    fn take(&mut self, number: u64) -> Result<(), NonceError> {
        let kept = self.kept.remove(&number);
        let (word, bit) = (number / WORD, 1 << (number % WORD));
        let low = self.low.get_or_insert(word.saturating_sub(SLACK));
        let Some(at) = word.checked_sub(*low) else {
            return if kept { Ok(()) } else { Err(NonceError::Repeated(number)) };
        };
        let most = SPAN / WORD as usize;
        if at >= (self.words.len() + most) as u64 {
            // So far ahead that nothing of what was remembered is in the window any more.
            self.words.clear();
            *low = word - (most as u64 - 1);
        }
        let at = (word - *low) as usize;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        if self.words[at] & bit != 0 {
            return Err(NonceError::Repeated(number));
        }
        self.words[at] |= bit;
        while self.words.len() > most || self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            *low += 1;
        }
        Ok(())
    }

    fn keep(&mut self, number: u64) -> Result<(), NonceError> {
        let (word, bit) = (number / WORD, 1 << (number % WORD));
        let used = match self.low.map_or(Some(word), |low| word.checked_sub(low)) {
            None => !self.kept.contains(&number),
            Some(at) => {
                let word = usize::try_from(at).ok().and_then(|at| self.words.get(at));
                word.is_some_and(|word| word & bit != 0)
            }
        };
        if used {
            return Err(NonceError::Repeated(number));
        }
        if self.kept.len() >= KEPT && !self.kept.contains(&number) {
            return Err(NonceError::Exhausted);
        }
        self.kept.insert(number);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_waits_for_long_is_used_once_if_it_was_kept() {
        let once = Once::default();
        once.take(1).unwrap();
        once.keep(2).unwrap();
        for number in 4..4 + 3 * SPAN as u64 {
            once.take(number).unwrap();
        }
        assert_eq!(once.take(2), Ok(()));
        assert_eq!(once.take(2), Err(NonceError::Repeated(2)));
        assert_eq!(once.keep(2), Err(NonceError::Repeated(2)));
        assert_eq!(once.take(3), Err(NonceError::Repeated(3)), "nobody kept it");
    }

    #[test]
    fn a_key_remembers_no_more_than_it_may() {
        let once = Once::default();
        // Only every 16th number is used, as by requests of 1 MiB.
        for number in 0..1_000_000u64 {
            once.take(number * 16).unwrap();
        }
        let numbers = once.0.lock().unwrap();
        assert!(numbers.words.len() <= SPAN / 64);
        drop(numbers);
        for number in 1..=KEPT as u64 {
            once.keep(20_000_000 + number).unwrap();
        }
        assert_eq!(once.keep(30_000_000), Err(NonceError::Exhausted));
    }

    #[test]
    fn one_that_is_far_ahead_ends_what_is_behind() {
        let once = Once::default();
        once.take(5).unwrap();
        once.take(u64::MAX - 1).unwrap();
        assert_eq!(once.take(u64::MAX - 1), Err(NonceError::Repeated(u64::MAX - 1)));
        assert_eq!(once.take(u64::MAX), Ok(()));
        assert_eq!(once.take(5), Err(NonceError::Repeated(5)));
        assert_eq!(once.take(6), Err(NonceError::Repeated(6)));
    }

    proptest! {
        /// Whatever is asked for in whatever order, no number is given twice, and those of a
        /// window of credits are given.
        #[test]
        fn no_number_twice(
            steps in prop::collection::vec((0u64..200_000, any::<bool>(), 0u64..3), 1..400),
        ) {
            let once = Once::default();
            let (mut given, mut newest) = (HashSet::new(), 0);
            for (number, keeps, ahead) in steps {
                let number = number + ahead * 100_000;
                if keeps && once.keep(number).is_ok() {
                    prop_assert!(!given.contains(&number));
                }
                match once.take(number) {
                    Ok(()) => prop_assert!(given.insert(number), "{number} was given twice"),
                    Err(_) => prop_assert!(!keeps || given.contains(&number) || number < newest),
                }
                newest = newest.max(number);
            }
        }
    }
}
