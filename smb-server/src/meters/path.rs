//! Where the time of requests goes: one histogram for each part of a request's way, of each share, of
//! the files that are used most, and of each LUN.
//!
//! ```text
//!  bytes are there ─► Queue ─► Crypto ─► Break, Lock ─► Read, Write, Unmap ─► Sync ─► Crypto ─► Send
//! ```
//!
//! What is done at once is timed for one request in 16 and counts 16 times; what waits is timed always
//! and counts once. So a histogram is about all requests, and costs little where they are quick.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use block_io::Histogram;
pub use block_io::Times;

/// A part of a request's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// From the moment that its last byte was received to the one that it is taken up.
    Queue,
    /// Until other clients have given up what they cache or have open.
    Break,
    /// Until a byte range is free.
    Lock,
    /// Verifying and decrypting it, signing and sealing its answer.
    Crypto,
    /// Reading from the file.
    Read,
    /// Writing to the file.
    Write,
    /// Giving space back, of a LUN.
    Unmap,
    /// Making durable.
    Sync,
    /// From its answer to the moment that the transport has taken it.
    Send,
}

impl Phase {
    /// All of them, in the order of the way.
    pub const ALL: [Self; 9] = [
        Self::Queue,
        Self::Break,
        Self::Lock,
        Self::Crypto,
        Self::Read,
        Self::Write,
        Self::Unmap,
        Self::Sync,
        Self::Send,
    ];

    /// Its word in labels and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Break => "break",
            Self::Lock => "lock",
            Self::Crypto => "crypto",
            Self::Read => "read",
            Self::Write => "write",
            Self::Unmap => "unmap",
            Self::Sync => "sync",
            Self::Send => "send",
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Times of all parts of the way, of one share, file or LUN.
#[derive(Debug, Default)]
pub struct PathMeter {
    phases: [Histogram; Phase::ALL.len()],
    /// What the storage works on now.
    in_storage: AtomicU64,
    /// What it worked on when something came to it, added up, and how often something came.
    met: [AtomicU64; 2],
}

impl PathMeter {
    /// Counts a time `weight` times.
    pub fn note(&self, phase: Phase, took: Duration, weight: u64) {
        self.phases[phase as usize].note(took, weight);
    }

    /// Times work of the storage, and counts it among what the storage works on.
    pub async fn storage<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        /// What is there as long as the storage works, though nobody waits for it any more.
        struct There<'a>(&'a AtomicU64);
        impl Drop for There<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.in_storage.fetch_add(1, Ordering::Relaxed);
        let there = There(&self.in_storage);
        add(&self.met[0], before + 1);
        add(&self.met[1], 1);
        let begun = Instant::now();
        let done = work.await;
        self.note(phase, begun.elapsed(), 1);
        drop(there);
        done
    }

    /// How it stands now.
    pub fn figures(&self) -> PathFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let phases = self.phases.each_ref().map(Histogram::times);
        PathFigures { phases, met: self.met.each_ref().map(load) }
    }

    /// Adds what another meter has counted.
    pub(super) fn absorb(&self, other: &PathFigures) {
        for (own, other) in self.phases.iter().zip(&other.phases) {
            own.absorb(other);
        }
        self.met.iter().zip(other.met).for_each(|(own, other)| add(own, other));
    }
}

/// Times of all parts of the way, as they stood at some moment or between two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathFigures {
    phases: [Times; Phase::ALL.len()],
    met: [u64; 2],
}

impl PathFigures {
    /// Those of one part of the way.
    pub fn of(&self, phase: Phase) -> &Times {
        &self.phases[phase as usize]
    }

    /// The same with other times of one part.
    #[must_use]
    pub fn with(mut self, phase: Phase, times: Times) -> Self {
        self.phases[phase as usize] = times;
        self
    }

    /// What happened since an earlier moment of the same meter.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let phase = |index: usize| self.phases[index].since(&before.phases[index]);
        let met = |index: usize| self.met[index].saturating_sub(before.met[index]);
        Self { phases: std::array::from_fn(phase), met: std::array::from_fn(met) }
    }

    /// Requests that the storage worked on at a time, in the mean of those that came to it; 0 if none came.
    pub fn storage_queue(&self) -> f64 {
        if self.met[1] == 0 { 0.0 } else { self.met[0] as f64 / self.met[1] as f64 }
    }

    /// The same with so many requests in the storage at a time.
    #[must_use]
    pub fn with_storage_queue(mut self, mean: u64) -> Self {
        self.met = [mean, 1];
        self
    }

    /// All times together, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.phases.iter().map(|it| it.nanos).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_goes_on_in_the_pool() {
        let (rest, gone) = (PathMeter::default(), PathMeter::default());
        gone.note(Phase::Read, Duration::from_millis(3), 16);
        rest.absorb(&gone.figures());
        assert_eq!(rest.figures(), gone.figures());
        assert_eq!(rest.figures().of(Phase::Read).count(), 16);
    }

    #[tokio::test]
    async fn the_storage_has_what_is_under_way() {
        let meter = PathMeter::default();
        let never = meter.storage(Phase::Read, std::future::pending::<()>());
        let mut never = Box::pin(never);
        assert!(futures_util::FutureExt::now_or_never(&mut never).is_none());
        meter.storage(Phase::Read, async {}).await;
        // The first met itself alone, the second both.
        assert!((meter.figures().storage_queue() - 1.5).abs() < 1e-9);
        drop(never);
        meter.storage(Phase::Read, async {}).await;
        assert!((meter.figures().storage_queue() - 4.0 / 3.0).abs() < 1e-9);
    }
}
