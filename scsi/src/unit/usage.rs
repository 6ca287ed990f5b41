//! What a logical unit has done, and how much it may do in a second.
//!
//! ```text
//!  command ──► nobody waits, and there is room ──► go
//!                │ no                               ▲
//!                ▼                                  │ there is room: the first
//!              those that wait, by arrival, ahead or behind by rank
//! ```

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::Rank;

/// How far a unit may run ahead of its limit after it did nothing: with less, commands that come
/// together would be late though the second has room for them.
const AHEAD: Duration = Duration::from_millis(100);

/// How much a logical unit may do in a second; what is more waits. `None`: as much as it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Commands that use the medium.
    pub commands: Option<u64>,
    /// Bytes that they move.
    pub bytes: Option<u64>,
}

/// What a logical unit has done since it was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Commands that read.
    pub reads: u64,
    /// Commands with data for the medium.
    pub writes: u64,
    /// All other commands.
    pub others: u64,
    /// Commands among these that ended with anything but GOOD.
    pub failed: u64,
    /// Bytes that went to initiators.
    pub bytes_read: u64,
    /// Bytes that came from them.
    pub bytes_written: u64,
    /// Commands that waited for a limit.
    pub delayed: u64,
}

/// What a command is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Other,
}

#[derive(Debug, Default)]
pub(crate) struct Meter {
    counts: [AtomicU64; 3],
    failed: AtomicU64,
    bytes: [AtomicU64; 2],
    delayed: AtomicU64,
    limited: Mutex<Limited>,
    /// There are limits: what `limited` says, for those who do not take the lock.
    has_limits: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct Limited {
    limits: Limits,
    /// When what was let through is paid for, by commands and by bytes.
    paid: [Option<Instant>; 2],
    /// Commands that wait, in the order in which they go, each with what wakes it.
    waiting: BTreeMap<Place, Arc<Notify>>,
    arrived: u64,
}

/// How much later a command may have come for each step of rank that it is ahead: whoever has the best
/// of ranks at all times still lets others through in a second or two.
const RANK: Duration = Duration::from_millis(50);

/// A command's place among those that wait: when it came, later by its rank, and its number.
type Place = (Instant, u64);

impl Limited {
    /// Until when the next command waits; `None`: it may go.
    fn due(&self, now: Instant) -> Option<Instant> {
        let limits = [self.limits.commands, self.limits.bytes];
        let paid = self
            .paid
            .iter()
            .zip(limits)
            .filter_map(|(paid, limit)| paid.filter(|_| limit.is_some()));
        paid.filter(|paid| *paid > now + AHEAD).max().map(|paid| paid - AHEAD)
    }

    /// Lets a command through.
    fn charge(&mut self, now: Instant, bytes: u64) {
        let costs = [(self.limits.commands, 1), (self.limits.bytes, bytes)];
        for (paid, (limit, amount)) in self.paid.iter_mut().zip(costs) {
            let Some(limit) = limit else { continue };
            let cost = Duration::from_secs_f64(amount as f64 / limit.max(1) as f64);
            *paid = Some(paid.map_or(now, |paid| paid.max(now)) + cost);
        }
    }

    /// Whether a command that waits goes now, or until when it waits; without a time: until it is the
    /// first.
    fn turn(&mut self, place: Place, now: Instant, bytes: u64) -> Result<(), Option<Instant>> {
        if self.waiting.first_key_value().map(|(first, _)| *first) != Some(place) {
            return Err(None);
        }
        if let Some(until) = self.due(now) {
            return Err(Some(until));
        }
        self.charge(now, bytes);
        Ok(())
    }

    /// Has the first of those that wait look again.
    fn wake(&self) {
        if let Some((_, first)) = self.waiting.first_key_value() {
            first.notify_one();
        }
    }
}

/// A command waits until this is dropped.
struct Waiting<'a> {
    meter: &'a Meter,
    place: Place,
    woken: Arc<Notify>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut limited = self.meter.limited();
        limited.waiting.remove(&self.place);
        limited.wake();
    }
}

impl Meter {
    fn limited(&self) -> MutexGuard<'_, Limited> {
        self.limited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        let mut limited = self.limited();
        (limited.limits, limited.paid) = (limits, [None; 2]);
        self.has_limits.store(limits != Limits::default(), Ordering::Release);
        limited.wake();
    }

    /// Waits until the limits let a command of so many bytes through, those of a lower rank before it; how
    /// long, if it had to.
    pub(crate) async fn pass(&self, rank: Rank, bytes: u64) -> Option<Duration> {
        if !self.has_limits.load(Ordering::Acquire) {
            return None;
        }
        let came = Instant::now();
        let waiting = {
            let mut limited = self.limited();
            let now = Instant::now();
            if limited.waiting.is_empty() && limited.due(now).is_none() {
                limited.charge(now, bytes);
                return None;
            }
            limited.arrived += 1;
            let place = (now + RANK * rank.steps(), limited.arrived);
            let woken = Arc::new(Notify::new());
            limited.waiting.insert(place, Arc::clone(&woken));
            Waiting { meter: self, place, woken }
        };
        self.delayed.fetch_add(1, Ordering::Relaxed);
        loop {
            let turn = self.limited().turn(waiting.place, Instant::now(), bytes);
            match turn {
                Ok(()) => return Some(came.elapsed()),
                Err(None) => waiting.woken.notified().await,
                Err(Some(until)) => {
                    tokio::select! {
                        () = waiting.woken.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    pub(crate) fn count(&self, kind: Kind, bytes: u64, good: bool) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(sum) = self.bytes.get(kind as usize) {
            sum.fetch_add(bytes, Ordering::Relaxed);
        }
        if !good {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [reads, writes, others] = self.counts.each_ref().map(get);
        let [bytes_read, bytes_written] = self.bytes.each_ref().map(get);
        let (failed, delayed) = (get(&self.failed), get(&self.delayed));
        Usage { reads, writes, others, failed, bytes_read, bytes_written, delayed }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    /// How long the last of so many commands that come together waits.
    fn waits(limits: Limits, commands: u32, bytes: u64) -> Duration {
        let began = Instant::now();
        let (mut now, mut limited) = (began, Limited { limits, ..Limited::default() });
        for _ in 0..commands {
            now = limited.due(now).unwrap_or(now);
            limited.charge(now, bytes);
        }
        now - began
    }

    #[test]
    fn what_is_more_than_a_second_has_room_for_waits_its_time() {
        let close = |a: Duration, b: u64| a.abs_diff(Duration::from_millis(b)).as_millis() < 2;
        let commands = Limits { commands: Some(100), bytes: None };
        assert_eq!(waits(commands, 10, 1 << 20), Duration::ZERO, "a tenth of a second's");
        assert!(close(waits(commands, 301, 0), 2900));
        let bytes = Limits { commands: None, bytes: Some(1 << 20) };
        assert!(close(waits(bytes, 5, 1 << 19), 1900));
        // The tighter one counts.
        let both = Limits { commands: Some(1000), bytes: Some(1 << 20) };
        assert!(close(waits(both, 5, 1 << 19), 1900));
        assert_eq!(waits(Limits::default(), 1 << 16, 1 << 30), Duration::ZERO);
    }

    /// One that was idle has not saved up more than a tenth of a second.
    #[test]
    fn time_that_passes_unused_is_not_saved() {
        let limits = Limits { commands: Some(10), bytes: None };
        let mut limited = Limited { limits, ..Limited::default() };
        let now = Instant::now();
        limited.charge(now, 0);
        let later = now + Duration::from_secs(3600);
        let mut waits = || {
            let due = limited.due(later);
            limited.charge(later, 0);
            due.is_some()
        };
        assert_eq!([waits(), waits(), waits(), waits()], [false, false, true, true]);
    }

    #[tokio::test]
    async fn those_that_wait_go_by_rank_and_then_as_they_came() {
        let meter = Meter::default();
        meter.set_limits(Limits { commands: None, bytes: Some(1) });
        meter.pass(Rank::MIDDLE, 1 << 20).await;
        let priorities = [0, 9, 3, 0, 1, 3];
        let order = Mutex::new(Vec::new());
        let commands = priorities.iter().enumerate().map(|(at, priority)| {
            let (meter, order) = (&meter, &order);
            async move {
                meter.pass(Rank::new(crate::TaskAttribute::Simple, *priority), 0).await;
                order.lock().expect("no panic").push(at);
            }
        });
        let mut all: Vec<_> = commands.map(Box::pin).collect();
        // One that is aborted while it is the first keeps nobody.
        let mut first = Box::pin(meter.pass(Rank::new(crate::TaskAttribute::HeadOfQueue, 0), 0));
        std::future::poll_fn(|context| {
            assert!(all.iter_mut().all(|it| it.as_mut().poll(context).is_pending()));
            assert!(first.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(first);
        // There is room for all of them, one after the other.
        meter.set_limits(Limits { commands: None, bytes: Some(1 << 20) });
        std::future::poll_fn(|context| {
            all.retain_mut(|it| it.as_mut().poll(context).is_pending());
            if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        assert_eq!(*order.lock().expect("no panic"), [4, 2, 5, 0, 3, 1]);
    }

    /// Limits that go let those through that wait.
    #[tokio::test]
    async fn limits_that_are_lifted_keep_nobody() {
        let meter = Meter::default();
        meter.set_limits(Limits { commands: None, bytes: Some(1) });
        meter.pass(Rank::MIDDLE, 1 << 40).await;
        let mut waits = Box::pin(meter.pass(Rank::MIDDLE, 1));
        std::future::poll_fn(|context| {
            assert!(waits.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        meter.set_limits(Limits::default());
        waits.await;
    }
}
