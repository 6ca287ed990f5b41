//! What one user may have of what all share: bytes, opens, locks, connections.
//!
//! ```text
//!  User ─► Budget ◄── Held: a pipe's answers, a folder being listed, changes that are watched,
//!                           requests that wait; an open, its locks; a connection
//! ```
//!
//! Each of these has a bound of its own; a user who has many of them meets this one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What one user has of one kind, and how much they may have.
#[derive(Debug, Default)]
pub struct Budget {
    held: AtomicUsize,
    most: AtomicUsize,
}

/// An amount that is held as long as this lives.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    amount: usize,
}

impl Budget {
    /// Nothing is held, and at most `most` may be.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most: AtomicUsize::new(most) })
    }

    /// From now on at most `most` is taken; what is held stays.
    pub fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Takes an amount from it, if there is so much.
    pub fn take(self: &Arc<Self>, amount: usize) -> Option<Held> {
        let mut held = Held { budget: self.clone(), amount: 0 };
        held.resize(amount).then_some(held)
    }

    /// Counts an amount that was granted before, by a server that has ended: there may be more held
    /// than may be taken.
    pub fn count(self: &Arc<Self>, amount: usize) -> Held {
        self.held.fetch_add(amount, Ordering::Relaxed);
        Held { budget: self.clone(), amount }
    }

    /// How much is held by all that was taken.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Held {
    /// Holds that much from now on; `false` if the budget does not have it, and what was held
    /// stays.
    pub fn resize(&mut self, amount: usize) -> bool {
        let held = &self.budget.held;
        if amount > self.amount {
            let most = self.budget.most.load(Ordering::Relaxed);
            let more = amount - self.amount;
            let room = |held: usize| held.checked_add(more).filter(|held| *held <= most);
            if held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
                return false;
            }
        } else {
            held.fetch_sub(self.amount - amount, Ordering::Relaxed);
        }
        self.amount = amount;
        true
    }

    /// Holds that much more, which was granted before: see [`Budget::count`].
    pub fn add(&mut self, more: usize) {
        self.budget.held.fetch_add(more, Ordering::Relaxed);
        self.amount += more;
    }

    /// How much this holds of its budget.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_is_given_back() {
        let budget = Budget::new(100);
        let mut first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none());
        assert!(!first.resize(101));
        assert_eq!(budget.held(), 60);
        let second = budget.take(40).unwrap();
        assert!(first.resize(10));
        assert_eq!(budget.held(), 50);
        drop((first, second));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_was_granted_before_counts_and_a_smaller_budget_takes_nothing_away() {
        let budget = Budget::new(10);
        let old = budget.count(15);
        assert!(budget.take(1).is_none());
        drop(old);
        let held = budget.take(10).unwrap();
        budget.limit(5);
        assert_eq!((budget.held(), held.amount()), (10, 10));
        assert!(budget.take(1).is_none());
    }
}
