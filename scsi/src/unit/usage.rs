//! What a logical unit has done, and how much it may do in a second.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

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
}

impl Limited {
    /// Lets a command through; until when it waits.
    fn take(&mut self, now: Instant, bytes: u64) -> Option<Instant> {
        let mut until = None;
        let costs = [(self.limits.commands, 1), (self.limits.bytes, bytes)];
        for (paid, (limit, amount)) in self.paid.iter_mut().zip(costs) {
            let Some(limit) = limit else { continue };
            let cost = Duration::from_secs_f64(amount as f64 / limit.max(1) as f64);
            let begins = paid.map_or(now, |paid| paid.max(now));
            *paid = Some(begins + cost);
            if begins > now + AHEAD {
                until = until.max(Some(begins - AHEAD));
            }
        }
        until
    }
}

impl Meter {
    pub(crate) fn set_limits(&self, limits: Limits) {
        let mut limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
        *limited = Limited { limits, ..Limited::default() };
        self.has_limits.store(limits != Limits::default(), Ordering::Release);
    }

    /// Waits until the limits let a command of so many bytes through.
    pub(crate) async fn pass(&self, bytes: u64) {
        if !self.has_limits.load(Ordering::Acquire) {
            return;
        }
        let until = {
            let mut limited = self.limited.lock().unwrap_or_else(PoisonError::into_inner);
            limited.take(Instant::now(), bytes)
        };
        if let Some(until) = until {
            self.delayed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep_until(until).await;
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
    use super::*;

    fn waits(limits: Limits, commands: u32, bytes: u64) -> Duration {
        let now = Instant::now();
        let mut limited = Limited { limits, ..Limited::default() };
        let last = (0..commands).map(|_| limited.take(now, bytes)).last().flatten();
        last.map_or(Duration::ZERO, |until| until - now)
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
        limited.take(now, 0);
        let later = now + Duration::from_secs(3600);
        let all: Vec<_> = (0..4).map(|_| limited.take(later, 0)).collect();
        assert!(all[..2].iter().all(Option::is_none), "{all:?}");
        assert!(all[2..].iter().all(Option::is_some), "{all:?}");
    }
}
