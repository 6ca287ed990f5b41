//! Latencies in buckets that are 1/32 wide of what they count.

use std::time::Duration;

/// Buckets per power of two.
const FINE: usize = 32;
const BUCKETS: usize = 60 * FINE;

/// Counts durations with a relative error below 1/32.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest: Duration,
}

/// Which bucket a number of nanoseconds falls into.
fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(FINE.ilog2() + 1);
    let fine = (nanos >> shift) as usize;
    (shift as usize * FINE + fine).min(BUCKETS - 1)
}

/// The largest number of nanoseconds of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket / FINE).saturating_sub(1);
    let fine = (bucket - shift * FINE) as u64;
    ((fine + 1) << shift) - 1
}

impl Histogram {
    /// A histogram that has counted nothing yet.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, longest: Duration::ZERO }
    }

    /// Counts one duration in its bucket.
    pub fn add(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.longest = self.longest.max(duration);
    }

    /// Counts what another has counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The longest duration that was counted.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The duration that the fraction `of` (0 to 1) of all do not exceed.
    pub fn quantile(&self, of: f64) -> Duration {
        let wanted = ((self.total as f64 * of).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper(bucket)).min(self.longest);
            }
        }
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn buckets_are_in_order_and_narrow(nanos in 0..u64::MAX >> 8) {
            let bucket = bucket(nanos);
            let top = upper(bucket);
            prop_assert!(top >= nanos);
            prop_assert!(top - nanos <= nanos / 32 + 1);
            prop_assert_eq!(super::bucket(top), bucket);
            prop_assert_eq!(super::bucket(top + 1), bucket + 1);
        }

        #[test]
        fn quantiles_match_a_sorted_list(
            list in prop::collection::vec(0..10_000_000u64, 1..300), of in 0.0..1.0f64,
        ) {
            let (mut a, mut b) = (Histogram::new(), Histogram::new());
            for (i, nanos) in list.iter().enumerate() {
                let half = if i % 2 == 0 { &mut a } else { &mut b };
                half.add(Duration::from_nanos(*nanos));
            }
            a.merge(&b);
            let mut sorted = list.clone();
            sorted.sort_unstable();
            let rank = ((list.len() as f64 * of).ceil() as usize).max(1);
            let exact = sorted[rank - 1];
            let got = a.quantile(of).as_nanos() as u64;
            prop_assert!(got >= exact && got <= exact + exact / 32 + 1, "{got} for {exact}");
            prop_assert_eq!(a.longest().as_nanos() as u64, sorted[list.len() - 1]);
            prop_assert_eq!(a.total(), list.len() as u64);
        }
    }
}
