//! Unit attentions of a logical unit, for each nexus (SAM-5 5.14).

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::asc;

/// Most conditions that wait for one nexus; what comes then takes the place of the newest.
const MAX_WAITING: usize = 16;

/// What each nexus is owed.
#[derive(Debug, Default)]
pub(crate) struct Attentions {
    waiting: AtomicUsize,
    queues: Mutex<HashMap<u64, VecDeque<u16>>>,
}

impl Attentions {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, VecDeque<u16>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything waits for anybody: one atomic load.
    pub(crate) fn any(&self) -> bool {
        self.waiting.load(Ordering::Acquire) != 0
    }

    /// Establishes a condition for a nexus. One that waits already waits once; a power on or reset
    /// is told instead of all that came before it.
    pub(crate) fn establish(&self, nexus: u64, code: u16) {
        let mut queues = self.lock();
        let queue = queues.entry(nexus).or_default();
        let reset = matches!(code, asc::POWER_ON | asc::DEVICE_RESET);
        if reset {
            queue.clear();
        }
        if !queue.contains(&code) {
            if queue.len() == MAX_WAITING {
                queue.pop_back();
            }
            queue.push_back(code);
        }
        self.count(&queues);
    }

    /// Whether anything waits for a nexus.
    pub(crate) fn waits(&self, nexus: u64) -> bool {
        self.any() && self.lock().contains_key(&nexus)
    }

    /// The oldest condition, which is then told.
    pub(crate) fn take(&self, nexus: u64) -> Option<u16> {
        let mut queues = self.lock();
        let queue = queues.get_mut(&nexus)?;
        let code = queue.pop_front();
        if queue.is_empty() {
            queues.remove(&nexus);
        }
        self.count(&queues);
        code
    }

    /// One condition is known to the nexus by other means.
    pub(crate) fn clear(&self, nexus: u64, code: u16) {
        let mut queues = self.lock();
        if let Some(queue) = queues.get_mut(&nexus) {
            queue.retain(|it| *it != code);
            if queue.is_empty() {
                queues.remove(&nexus);
            }
        }
        self.count(&queues);
    }

    /// The nexus is gone.
    pub(crate) fn forget(&self, nexus: u64) {
        let mut queues = self.lock();
        queues.remove(&nexus);
        self.count(&queues);
    }

    fn count(&self, queues: &HashMap<u64, VecDeque<u16>>) {
        self.waiting.store(queues.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_told_once_in_order_and_a_reset_stands_for_those_before_it() {
        let attentions = Attentions::default();
        attentions.establish(1, asc::MODE_CHANGED);
        attentions.establish(1, asc::CAPACITY_CHANGED);
        attentions.establish(1, asc::MODE_CHANGED);
        assert_eq!(attentions.take(1), Some(asc::MODE_CHANGED));
        attentions.establish(1, asc::POWER_ON);
        assert_eq!(attentions.take(1), Some(asc::POWER_ON));
        assert_eq!(attentions.take(1), None);
        assert!(!attentions.any());
    }

    #[test]
    fn what_waits_for_a_nexus_has_a_bound() {
        let attentions = Attentions::default();
        for code in 0..1000 {
            attentions.establish(1, 0x4000 + code);
        }
        let mut told = 0;
        while attentions.take(1).is_some() {
            told += 1;
        }
        assert_eq!(told, MAX_WAITING);
    }
}
