//! Memory that one user may have the server hold, over all sessions and connections.
//!
//! ```text
//!  user ─► Budget (limits.user_bytes) ◄── Held: answers of pipes, folders being listed, changes
//!                                          that are watched, requests that wait
//! ```
//!
//! Each of these has a bound of its own; a user who has many of them meets this one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What one user may have held.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    most: usize,
}

/// Bytes that are held as long as this lives.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Takes bytes from it, if there are so many.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let mut held = Held { budget: self.clone(), bytes: 0 };
        held.resize(bytes).then_some(held)
    }

    /// Bytes that are held.
    #[cfg(any(test, feature = "testing"))]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Held {
    /// Holds that many bytes from now on; `false` if the budget does not have them, and what was
    /// held stays.
    pub fn resize(&mut self, bytes: usize) -> bool {
        let (held, most) = (&self.budget.held, self.budget.most);
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            let room = |held: usize| held.checked_add(more).filter(|held| *held <= most);
            if held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
                return false;
            }
        } else {
            held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The budgets of all users who have something held.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<HashMap<String, Weak<Budget>>>);

impl Budgets {
    /// The budget of a user, of `most` bytes.
    pub fn of(&self, user: &str, most: usize) -> Arc<Budget> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = all.get(user).and_then(Weak::upgrade) {
            return budget;
        }
        all.retain(|_, budget| budget.strong_count() > 0);
        let budget = Arc::new(Budget { held: AtomicUsize::new(0), most });
        all.insert(user.to_owned(), Arc::downgrade(&budget));
        budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_one_budget_and_gets_back_what_is_let_go() {
        let budgets = Budgets::default();
        let budget = budgets.of("U", 100);
        let mut first = budgets.of("U", 100).take(60).unwrap();
        assert!(budget.take(41).is_none());
        assert!(!first.resize(101));
        assert_eq!(budget.held(), 60);
        assert!(budgets.of("V", 100).take(100).is_some());
        let second = budget.take(40).unwrap();
        assert!(first.resize(10));
        assert_eq!(budget.held(), 50);
        drop((first, second));
        assert_eq!(budget.held(), 0);
    }
}
