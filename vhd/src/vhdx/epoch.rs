//! Knowing when all requests that could still use a piece of the file are gone.
//!
//! A request counts itself into the current epoch before it looks up where its blocks are, and
//! out when its last byte is moved. Space given up at epoch `e` may be used anew once the epoch
//! has reached `e + 2`: an epoch only advances when the one before it is empty.
//!
//! ```text
//!  epoch 4: requests A B        space X given up here
//!  epoch 5: requests C          (4 is empty when 6 begins)
//!  epoch 6: X is nobody's
//! ```
//!
//! Threads count in places of their own, so that requests on several processors do not pass one
//! line of memory to and fro.

use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use tokio::sync::Notify;

/// Places to count in; more threads than these share some.
const SHARDS: usize = 16;

/// Requests of some threads in flight, by the parity of their epoch. On lines of memory of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard([AtomicU64; 2]);

/// Requests in flight, by epoch.
#[derive(Debug, Default)]
pub struct Epochs {
    current: AtomicU64,
    active: [Shard; SHARDS],
    closed: AtomicBool,
    idle: Notify,
}

/// A request in flight.
#[derive(Debug)]
pub struct InFlight<'a> {
    epochs: &'a Epochs,
    active: &'a AtomicU64,
}

/// The place in which this thread counts.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Relaxed) % SHARDS;
    }
    MINE.with(|mine| *mine)
}

impl Epochs {
    /// Counts a request in; `None` after [`Epochs::close`].
    pub fn enter(&self) -> Option<InFlight<'_>> {
        let Shard(counts) = &self.active[shard()];
        loop {
            let epoch = self.current.load(SeqCst);
            let active = &counts[(epoch % 2) as usize];
            active.fetch_add(1, SeqCst);
            let guard = InFlight { epochs: self, active };
            if self.closed.load(SeqCst) {
                return None;
            }
            if self.current.load(SeqCst) == epoch {
                return Some(guard);
            }
        }
    }

    /// The number of the current epoch.
    pub fn current(&self) -> u64 {
        self.current.load(SeqCst)
    }

    /// Advances as far as requests in flight allow, at most twice; returns the current epoch.
    /// Callers are serialised by a lock of their own.
    pub fn advance(&self) -> u64 {
        for _ in 0..2 {
            let epoch = self.current.load(SeqCst);
            let other = ((epoch + 1) % 2) as usize;
            if self.active.iter().any(|Shard(counts)| counts[other].load(SeqCst) != 0) {
                break;
            }
            self.current.store(epoch + 1, SeqCst);
        }
        self.current.load(SeqCst)
    }

    /// Lets no request in any more. Returns whether this call was the first.
    pub fn close(&self) -> bool {
        !self.closed.swap(true, SeqCst)
    }

    /// Whether [`Epochs::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Waits until no request is in flight; only after [`Epochs::close`].
    pub async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            let none = |Shard(counts): &Shard| counts.iter().all(|count| count.load(SeqCst) == 0);
            if self.active.iter().all(none) {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let last = self.active.fetch_sub(1, SeqCst) == 1;
        if last && self.epochs.closed.load(SeqCst) {
            self.epochs.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_requests_of_the_epoch_before() {
        let epochs = Epochs::default();
        let a = epochs.enter().unwrap();
        // One step: nobody was in the other slot. Not two: `a` is in this one.
        assert_eq!(epochs.advance(), 1);
        let b = epochs.enter().unwrap();
        assert_eq!(epochs.advance(), 1);
        drop(a);
        assert_eq!(epochs.advance(), 2);
        assert_eq!(epochs.advance(), 2);
        drop(b);
        assert_eq!(epochs.advance(), 4);
        assert!(epochs.close());
        assert!(epochs.enter().is_none());
    }
}
