//! Credits: which message ids a client may use (MS-SMB2 3.3.1.1, 3.3.1.2, 3.3.5.2.3).
//!
//! ```text
//!        low                                  high
//!   ─────┼──x──x──.──x──.──.──.──.──.──.──.──.──┼─────
//!   used │  ids granted; x are used, . are free │ not granted yet
//! ```
//!
//! The window from `low` to `high` never grows beyond the limit, so a client that leaves out an
//! id stops being granted more instead of growing our memory.

use smb_protocol::MessageId;

/// The window of message ids of one connection.
#[derive(Debug)]
pub struct CreditWindow {
    low: u64,
    high: u64,
    limit: u64,
    /// One bit per id modulo its length; set when used.
    used: Vec<u64>,
}

impl CreditWindow {
    /// A window with the one credit that a new connection has.
    pub fn new(limit: u16) -> Self {
        let limit = u64::from(limit);
        let words = limit.next_multiple_of(64) as usize / 64;
        Self { low: 0, high: 1, limit, used: vec![0; words] }
    }

    fn bit(&self, id: u64) -> (usize, u64) {
        let at = id % (self.used.len() as u64 * 64);
        ((at / 64) as usize, 1 << (at % 64))
    }

    /// Uses `charge` ids from `id` on; `false` if any was not granted or is used already.
    pub fn consume(&mut self, id: MessageId, charge: u16) -> bool {
        let first = id.0;
        let Some(end) = first.checked_add(u64::from(charge.max(1))) else { return false };
        if first < self.low || end > self.high {
            return false;
        }
        let free = (first..end).all(|id| {
            let (word, bit) = self.bit(id);
            self.used[word] & bit == 0
        });
        if !free {
            return false;
        }
        for id in first..end {
            let (word, bit) = self.bit(id);
            self.used[word] |= bit;
        }
        while self.low < self.high {
            let (word, bit) = self.bit(self.low);
            if self.used[word] & bit == 0 {
                break;
            }
            self.used[word] &= !bit;
            self.low += 1;
        }
        true
    }

    /// How many ids the client may use: those that were granted, from the first that it has not used on.
    pub fn held(&self) -> u64 {
        self.high - self.low
    }

    /// Whether an id was granted and is not used yet.
    pub fn holds(&self, id: MessageId) -> bool {
        let (word, bit) = self.bit(id.0);
        (self.low..self.high).contains(&id.0) && self.used[word] & bit == 0
    }

    /// Grants up to `wanted` more ids and returns how many.
    pub fn grant(&mut self, wanted: u16) -> u16 {
        let room = self.limit - (self.high - self.low);
        let granted = u64::from(wanted).min(room);
        self.high += granted;
        granted as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_new_connection_has_one_credit() {
        let mut window = CreditWindow::new(64);
        assert!(!window.consume(MessageId(1), 1));
        assert!(window.consume(MessageId(0), 0));
        assert!(!window.consume(MessageId(0), 1));
        assert_eq!(window.grant(1000), 64);
        assert!(window.consume(MessageId(1), 64));
        assert_eq!(window.grant(1), 1);
    }

    proptest! {
        /// The window behaves as the set of ids granted and not used.
        #[test]
        fn as_a_set(steps in prop::collection::vec((0u64..40, 0u16..5, 0u16..20), 1..200)) {
            let mut window = CreditWindow::new(32);
            let mut free: BTreeSet<u64> = [0].into();
            let mut high = 1;
            for (ahead, charge, wanted) in steps {
                let id = free.first().map_or(high, |low| low + ahead);
                let ids: Vec<u64> = (id..id + u64::from(charge.max(1))).collect();
                let right = ids.iter().all(|id| free.contains(id));
                prop_assert_eq!(window.consume(MessageId(id), charge), right);
                prop_assert_eq!(window.holds(MessageId(id)), free.contains(&id) && !right);
                if right { ids.iter().for_each(|id| { free.remove(id); }); }
                let granted = window.grant(wanted);
                free.extend(high..high + u64::from(granted));
                high += u64::from(granted);
                let span = free.first().map_or(0, |low| high - low);
                prop_assert!(span <= 32);
                prop_assert!(granted == wanted || span == 32);
            }
        }
    }
}
