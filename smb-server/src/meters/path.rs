//! Where the time of requests goes: one histogram for each part of a request's way, of each share, of
//! the files that are used most, and of each LUN.
//!
//! ```text
//!  bytes are there ─► Queue ─► Crypto ─► Break, Lock ─► Read, Write ─► Sync ─► Crypto ─► Send
//! ```
//!
//! What is done at once is timed for one request in 16 and counts 16 times; what waits is timed always
//! and counts once. So a histogram is about all requests, and costs little where they are quick.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

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
    /// Making durable.
    Sync,
    /// From its answer to the moment that the transport has taken it.
    Send,
}

impl Phase {
    /// All of them, in the order of the way.
    pub const ALL: [Self; 8] = [
        Self::Queue,
        Self::Break,
        Self::Lock,
        Self::Crypto,
        Self::Read,
        Self::Write,
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
            Self::Sync => "sync",
            Self::Send => "send",
        }
    }
}

/// Buckets of a histogram: four in each power of two of microseconds, up to two minutes; what takes
/// longer is in the last.
const BUCKETS: usize = 104;

/// The bucket of a time.
fn bucket(micros: u64) -> usize {
    if micros < 4 {
        return micros as usize;
    }
    let power = 63 - micros.leading_zeros();
    let within = (micros >> (power - 2)) & 3;
    ((u64::from(power) - 1) * 4 + within).min(BUCKETS as u64 - 1) as usize
}

/// The upper end of a bucket, which is not in it, in microseconds.
fn upper(bucket: usize) -> u64 {
    match bucket as u64 {
        low @ 0..4 => low + 1,
        high => (4 + high % 4 + 1) << (high / 4 - 1),
    }
}

/// Times of one part of the way.
#[derive(Debug)]
struct Histogram {
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { nanos: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; BUCKETS] }
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
        let histogram = &self.phases[phase as usize];
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&histogram.nanos, nanos.saturating_mul(weight));
        add(&histogram.buckets[bucket(nanos / 1000)], weight);
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
        let one = |histogram: &Histogram| {
            let counts = histogram.buckets.iter().map(load).enumerate();
            let buckets = counts.filter(|(_, count)| *count > 0);
            let buckets = buckets.map(|(bucket, count)| (bucket as u8, count)).collect();
            Times { nanos: load(&histogram.nanos), buckets }
        };
        PathFigures { phases: self.phases.each_ref().map(one), met: self.met.each_ref().map(load) }
    }

    /// Adds what another meter has counted.
    pub(super) fn absorb(&self, other: &PathFigures) {
        for (own, other) in self.phases.iter().zip(&other.phases) {
            add(&own.nanos, other.nanos);
            for (bucket, count) in &other.buckets {
                add(&own.buckets[usize::from(*bucket)], *count);
            }
        }
        self.met.iter().zip(other.met).for_each(|(own, other)| add(own, other));
    }
}

/// Times of one part of the way, as they stood at some moment or between two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    /// All times together, in nanoseconds.
    pub nanos: u64,
    /// How many lie in each bucket that has some, by the number of the bucket.
    buckets: Vec<(u8, u64)>,
}

impl Times {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// Their mean in microseconds; 0 where there are none.
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.nanos as f64 / 1e3 / count as f64,
        }
    }

    /// The time in microseconds that `part` of them do not exceed, from 0 to 1, as the upper end of its
    /// bucket: at most a quarter too much. 0 where there are none.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = self.count() as f64 * part;
        let mut below = 0;
        for (bucket, count) in &self.buckets {
            below += count;
            if below as f64 >= wanted {
                return upper(usize::from(*bucket));
            }
        }
        0
    }

    /// Times of which `one` in so many microseconds, as a table for tests has them.
    pub fn of(times: &[(u64, u64)]) -> Self {
        let meter = PathMeter::default();
        for (micros, count) in times {
            meter.note(Phase::Queue, Duration::from_micros(*micros), *count);
        }
        let [queue, ..] = meter.figures().phases;
        queue
    }

    fn since(&self, before: &Self) -> Self {
        let old = |bucket: u8| {
            let found = before.buckets.iter().find(|(other, _)| *other == bucket);
            found.map_or(0, |(_, count)| *count)
        };
        let grown = self.buckets.iter().map(|&(bucket, n)| (bucket, n.saturating_sub(old(bucket))));
        Self {
            nanos: self.nanos.saturating_sub(before.nanos),
            buckets: grown.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// How many lie at or below each power of four of microseconds, for a page of metrics: the upper end
    /// in seconds, and the count of that bucket alone.
    pub fn coarse(&self) -> Vec<(f64, u64)> {
        /// Powers of four up to 67 seconds, and what is above.
        const POWERS: u32 = 14;
        let end = |power: u32| 4u64 << (2 * power);
        let mut buckets: Vec<_> = (0..POWERS).map(|it| (end(it) as f64 / 1e6, 0)).collect();
        for (bucket, count) in &self.buckets {
            let place = (0..POWERS - 1).find(|power| upper(usize::from(*bucket)) <= end(*power));
            buckets[place.unwrap_or(POWERS - 1) as usize].1 += count;
        }
        buckets
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_is_no_wider_than_a_quarter_of_its_times() {
        let mut last = 0;
        for bucket in 4..BUCKETS - 1 {
            let (from, to) = (upper(bucket - 1), upper(bucket));
            assert!(to > from && (to - from) * 4 <= from, "{from} to {to}");
            assert_eq!((super::bucket(from), super::bucket(to - 1)), (bucket, bucket));
            last = to;
        }
        assert!(last > 50_000_000, "a minute has a bucket of its own: {last}");
        assert_eq!(super::bucket(u64::MAX), BUCKETS - 1);
    }

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

    proptest! {
        /// A quantile is what sorting gives, up to the width of a bucket; differences count what came.
        #[test]
        fn quantiles_are_those_of_the_times(
            first in prop::collection::vec(0u64..40_000_000, 0..50),
            second in prop::collection::vec(0u64..40_000_000, 1..50),
            part in 0.01f64..1.0,
        ) {
            let meter = PathMeter::default();
            let note = |micros: &u64| meter.note(Phase::Sync, Duration::from_micros(*micros), 1);
            first.iter().for_each(note);
            let before = meter.figures();
            second.iter().for_each(note);
            let grown = meter.figures().since(&before);
            let times = grown.of(Phase::Sync);
            prop_assert_eq!(times.count(), second.len() as u64);
            let mut sorted = second.clone();
            sorted.sort_unstable();
            let exact = sorted[((sorted.len() as f64 * part).ceil() as usize).max(1) - 1];
            let told = times.quantile(part);
            prop_assert!(told > exact && told <= exact + exact / 4 + 1, "{} for {}", told, exact);
            let coarse: u64 = times.coarse().iter().map(|(_, count)| count).sum();
            prop_assert_eq!(coarse, times.count());
        }
    }
}
