//! What makes COMPARE AND WRITE, ORWRITE and WRITE ATOMIC one step to all other commands.
//!
//! ```text
//!  plain command ──► count up ──► nobody alone? ── yes ──► go           (two atomic steps)
//!                                      │ no
//!                                      ▼
//!                       table of ranges in order of arrival: go when no earlier range that
//!                       overlaps, and of which one is alone, is left
//!                                      ▲
//!  command alone ── say so ────────────┘ and when all that went the fast way are done
//! ```
//!
//! Nothing is held locked while a command waits, and whoever came first goes first. What an aborted
//! command goes on writing is alone on its blocks, and came before all that wait ([`Guard::stay`]).

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Set in the count while any command is alone or wants to be.
const ALONE: u64 = 1 << 63;

/// The ranges of a logical unit that commands are working on.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    /// Commands that went the fast way, and [`ALONE`].
    fast: AtomicU64,
    table: Mutex<Table>,
    changed: Notify,
    /// Guards of commands that were aborted and still write.
    late: AtomicUsize,
    /// The blocks of these together.
    late_blocks: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    next: i64,
    /// Of those that [stay](Guard::stay): before all others, so they count downwards.
    stayed: i64,
    /// In order of arrival.
    entries: Vec<Entry>,
    alone: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    ticket: i64,
    start: u64,
    end: u64,
    alone: bool,
}

/// A range is being worked on until this is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    lock: Arc<RangeLock>,
    /// `None`: it went the fast way.
    ticket: Option<i64>,
    start: u64,
    len: u64,
    late: bool,
}

impl RangeLock {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a command on blocks `start` to `start + len` beside others.
    pub(crate) async fn shared(self: &Arc<Self>, start: u64, len: u64) -> Guard {
        if self.fast.fetch_add(1, Ordering::AcqRel) & ALONE == 0 {
            return Guard { lock: Arc::clone(self), ticket: None, start, len, late: false };
        }
        self.leave_fast();
        self.queued(start, len, false).await
    }

    /// Begins a command that no other on these blocks sees half done.
    pub(crate) async fn alone(self: &Arc<Self>, start: u64, len: u64) -> Guard {
        self.queued(start, len, true).await
    }

    /// How many commands were aborted and still write.
    pub(crate) fn late(&self) -> usize {
        self.late.load(Ordering::Relaxed)
    }

    /// How many blocks they have together.
    pub(crate) fn late_blocks(&self) -> u64 {
        self.late_blocks.load(Ordering::Relaxed)
    }

    async fn queued(self: &Arc<Self>, start: u64, len: u64, alone: bool) -> Guard {
        let guard = self.enter(start, len, alone);
        let ticket = guard.ticket.unwrap_or_default();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.may_go(ticket) {
                return guard;
            }
            changed.await;
        }
    }

    fn enter(self: &Arc<Self>, start: u64, len: u64, alone: bool) -> Guard {
        let mut table = self.table();
        let ticket = table.next;
        table.next += 1;
        table.entries.push(Entry { ticket, start, end: start.saturating_add(len), alone });
        if alone {
            table.alone += 1;
            self.fast.fetch_or(ALONE, Ordering::AcqRel);
        }
        drop(table);
        Guard { lock: Arc::clone(self), ticket: Some(ticket), start, len, late: false }
    }

    fn may_go(&self, ticket: i64) -> bool {
        let table = self.table();
        let Some(own) = table.entries.iter().find(|entry| entry.ticket == ticket) else {
            return true;
        };
        // What went the fast way left no range behind.
        if own.alone && self.fast.load(Ordering::Acquire) & !ALONE != 0 {
            return false;
        }
        let earlier = table.entries.iter().take_while(|entry| entry.ticket < ticket);
        !earlier
            .filter(|entry| entry.alone || own.alone)
            .any(|entry| entry.start < own.end && own.start < entry.end)
    }

    fn leave_fast(&self) {
        if self.fast.fetch_sub(1, Ordering::AcqRel) == ALONE | 1 {
            self.changed.notify_waiters();
        }
    }

    fn leave(&self, ticket: i64) {
        let mut table = self.table();
        let at = table.entries.iter().position(|entry| entry.ticket == ticket);
        if at.is_some_and(|at| table.entries.remove(at).alone) {
            table.alone -= 1;
            if table.alone == 0 {
                self.fast.fetch_and(!ALONE, Ordering::AcqRel);
            }
        }
        drop(table);
        self.changed.notify_waiters();
    }
}

impl Guard {
    /// Its command was aborted, and what it had begun to write goes on: until that has ended no other
    /// command goes on these blocks, also none that waits already.
    pub(crate) fn stay(&mut self) {
        let mut table = self.lock.table();
        let fast = self.ticket.is_none();
        let known = table.entries.iter().position(|entry| Some(entry.ticket) == self.ticket);
        if !known.is_some_and(|at| table.entries[at].alone) {
            // One that went beside others goes before those that came earlier and still wait: it waits
            // for nothing itself.
            if let Some(at) = known {
                table.entries.remove(at);
            }
            table.stayed -= 1;
            let ticket = table.stayed;
            let end = self.start.saturating_add(self.len);
            table.entries.insert(0, Entry { ticket, start: self.start, end, alone: true });
            self.ticket = Some(ticket);
            table.alone += 1;
            self.lock.fast.fetch_or(ALONE, Ordering::AcqRel);
        }
        drop(table);
        if fast {
            self.lock.leave_fast();
        }
        self.late = true;
        self.lock.late.fetch_add(1, Ordering::Relaxed);
        self.lock.late_blocks.fetch_add(self.len, Ordering::Relaxed);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.late {
            self.lock.late.fetch_sub(1, Ordering::Relaxed);
            self.lock.late_blocks.fetch_sub(self.len, Ordering::Relaxed);
        }
        match self.ticket {
            None => self.lock.leave_fast(),
            Some(ticket) => self.lock.leave(ticket),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn ready<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn who_is_alone_waits_for_those_before_and_holds_those_after_on_its_blocks() {
        let lock = Arc::new(RangeLock::default());
        let before = ready(pin!(lock.shared(0, 8))).expect("nobody is there");
        let mut alone = pin!(lock.alone(4, 4));
        assert!(ready(alone.as_mut()).is_none(), "a plain command is under way");
        let mut after = pin!(lock.shared(7, 1));
        assert!(ready(after.as_mut()).is_none(), "it came later");
        let elsewhere = ready(pin!(lock.shared(8, 8))).expect("other blocks");
        drop(before);
        let guard = ready(alone.as_mut()).expect("its turn");
        assert!(ready(after.as_mut()).is_none());
        drop(guard);
        assert!(ready(after.as_mut()).is_some());
        drop(elsewhere);
    }

    #[test]
    fn an_aborted_wait_leaves_nothing_behind() {
        let lock = Arc::new(RangeLock::default());
        let plain = ready(pin!(lock.shared(0, 1))).expect("nobody is there");
        {
            let mut alone = pin!(lock.alone(0, 1));
            assert!(ready(alone.as_mut()).is_none());
        }
        drop(plain);
        let guard = ready(pin!(lock.shared(0, 1))).expect("nobody is there");
        assert!(guard.ticket.is_none(), "the fast way is open again");
    }

    #[test]
    fn what_stays_keeps_those_away_who_wait_and_who_come() {
        for alone in [false, true] {
            let lock = Arc::new(RangeLock::default());
            let mut guard = match alone {
                true => ready(pin!(lock.alone(4, 4))),
                false => ready(pin!(lock.shared(4, 4))),
            }
            .expect("nobody is there");
            let mut waits = pin!(lock.alone(6, 1));
            assert!(ready(waits.as_mut()).is_none());
            guard.stay();
            assert_eq!(lock.late(), 1);
            assert!(ready(waits.as_mut()).is_none(), "{alone}");
            let mut comes = pin!(lock.shared(7, 8));
            assert!(ready(comes.as_mut()).is_none(), "{alone}");
            assert!(ready(pin!(lock.alone(0, 4))).is_some(), "other blocks");
            drop(guard);
            assert!(ready(waits.as_mut()).is_some());
            assert!(ready(comes.as_mut()).is_some());
            assert_eq!(lock.late(), 0);
        }
    }

    #[test]
    fn what_stays_keeps_those_away_who_came_before_it_and_wait() {
        let lock = Arc::new(RangeLock::default());
        let first = ready(pin!(lock.alone(0, 1))).expect("nobody is there");
        let mut earlier = pin!(lock.shared(0, 8));
        assert!(ready(earlier.as_mut()).is_none());
        let mut late = ready(pin!(lock.shared(4, 4))).expect("it does not meet the first");
        late.stay();
        drop(first);
        assert!(ready(earlier.as_mut()).is_none(), "its blocks are written still");
        drop(late);
        assert!(ready(earlier.as_mut()).is_some());
        assert_eq!((lock.late(), lock.late_blocks()), (0, 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn steps_of_those_who_are_alone_never_interleave() {
        let lock = Arc::new(RangeLock::default());
        let value = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200u64 {
            let (lock, value) = (Arc::clone(&lock), Arc::clone(&value));
            tasks.spawn(async move {
                if n % 4 == 0 {
                    let _guard = lock.shared(0, 1).await;
                    tokio::task::yield_now().await;
                    return;
                }
                let _guard = lock.alone(0, 1).await;
                let old = value.load(Ordering::SeqCst);
                tokio::task::yield_now().await;
                value.store(old + 1, Ordering::SeqCst);
            });
        }
        while tasks.join_next().await.is_some() {}
        assert_eq!(value.load(Ordering::SeqCst), 150);
    }
}
