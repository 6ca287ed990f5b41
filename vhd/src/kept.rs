//! The last few of something that was read.

use std::collections::{HashMap, VecDeque};

/// What was put in last, by number.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    found: HashMap<u64, T>,
    order: VecDeque<u64>,
    most: usize,
}

impl<T: Clone> Kept<T> {
    /// Keeps `most` at most.
    pub(crate) fn new(most: usize) -> Self {
        Self { found: HashMap::new(), order: VecDeque::new(), most }
    }

    pub(crate) fn get(&self, key: u64) -> Option<T> {
        self.found.get(&key).cloned()
    }

    /// Keeps a value, and lets go of the one put in longest ago if there are too many.
    pub(crate) fn put(&mut self, key: u64, value: T) {
        if self.found.insert(key, value).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.found.remove(&oldest);
            }
        }
    }
}
