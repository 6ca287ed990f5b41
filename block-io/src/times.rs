//! How long work takes: histograms that cost two additions a time, and what two moments of one say.
//!
//! No clock here: who measures brings the time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

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

/// Times of one kind of work, which any thread may count.
#[derive(Debug)]
pub struct Histogram {
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

impl Histogram {
    /// Counts a time `weight` times.
    pub fn note(&self, took: Duration, weight: u64) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&self.nanos, nanos.saturating_mul(weight));
        add(&self.buckets[bucket(nanos / 1000)], weight);
    }

    /// How it stands now.
    pub fn times(&self) -> Times {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = self.buckets.iter().map(load).enumerate();
        let buckets = counts.filter(|(_, count)| *count > 0);
        let buckets = buckets.map(|(bucket, count)| (bucket as u8, count)).collect();
        Times { nanos: load(&self.nanos), buckets }
    }

    /// Adds what another has counted.
    pub fn absorb(&self, other: &Times) {
        add(&self.nanos, other.nanos);
        for (bucket, count) in &other.buckets {
            add(&self.buckets[usize::from(*bucket)], *count);
        }
    }
}

/// Times of a [`Histogram`], as they stood at some moment or between two.
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
        let histogram = Histogram::default();
        for (micros, count) in times {
            histogram.note(Duration::from_micros(*micros), *count);
        }
        histogram.times()
    }

    /// What was counted since an earlier moment of the same histogram.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
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

    proptest! {
        /// A quantile is what sorting gives, up to the width of a bucket; differences count what came.
        #[test]
        fn quantiles_are_those_of_the_times(
            first in prop::collection::vec(0u64..40_000_000, 0..50),
            second in prop::collection::vec(0u64..40_000_000, 1..50),
            part in 0.01f64..1.0,
        ) {
            let meter = Histogram::default();
            let note = |micros: &u64| meter.note(Duration::from_micros(*micros), 1);
            first.iter().for_each(note);
            let before = meter.times();
            second.iter().for_each(note);
            let times = meter.times().since(&before);
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
