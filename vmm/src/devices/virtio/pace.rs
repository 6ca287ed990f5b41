//! How much a disk does in a second: operations, bytes, and what goes at once after a time of rest.
//!
//! Requests that have to wait stay in the guest's ring, so nothing of them is under way when the machine is
//! paused or moved.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use host_api::DiskLimits;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::platform::bus::lock;

/// An operation is counted for each of so many bytes that a request moves, and once at least.
const UNIT: u64 = 8 << 10;

/// Limits, and when what has gone is paid for. A request takes the time that it takes at each limit, from
/// when the one before has had its time, or from a burst ago at the earliest. It knows no clock: times are
/// those since any instant.
#[derive(Debug, Default)]
struct Bucket {
    limits: DiskLimits,
    /// By operations and by bytes.
    paid: [Duration; 2],
}

impl Bucket {
    /// Replaces the limits. What has gone is forgotten.
    fn set(&mut self, limits: DiskLimits, now: Duration) {
        *self = Self { limits, paid: [now; 2] };
    }

    /// When the next request may go, if it may not now.
    fn due(&self, now: Duration) -> Option<Duration> {
        self.paid.into_iter().max().filter(|paid| *paid > now)
    }

    /// A request of so many bytes goes.
    fn took(&mut self, bytes: u64, now: Duration) {
        let earliest = now.saturating_sub(self.limits.burst());
        let amounts = [
            (bytes.div_ceil(UNIT).max(1), self.limits.max_iops.map(u64::from)),
            (bytes, self.limits.max_bytes_per_s),
        ];
        for (paid, (amount, limit)) in self.paid.iter_mut().zip(amounts) {
            let Some(limit) = limit else { continue };
            let nanos = u128::from(amount) * 1_000_000_000 / u128::from(limit.max(1));
            let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            *paid = (*paid).max(earliest).saturating_add(time);
        }
    }
}

/// The limits of one disk, which all its queues share.
#[derive(Debug)]
pub(super) struct Pace {
    bucket: Mutex<Bucket>,
    begin: Instant,
    changed: Notify,
    /// How often a queue waited.
    waited: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        let waited = AtomicU64::new(0);
        Self { bucket: Mutex::default(), begin: Instant::now(), changed: Notify::new(), waited }
    }
}

impl Pace {
    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Replaces the limits; who waits for the old ones waits no longer.
    pub fn set(&self, limits: DiskLimits) {
        lock(&self.bucket).set(limits, self.now());
        self.changed.notify_waiters();
    }

    /// Whether the next request may go now.
    pub fn is_ready(&self) -> bool {
        let bucket = lock(&self.bucket);
        bucket.limits.is_none() || bucket.due(self.now()).is_none()
    }

    /// A request that moves so many bytes goes.
    pub fn took(&self, bytes: u64) {
        let mut bucket = lock(&self.bucket);
        if !bucket.limits.is_none() {
            bucket.took(bytes, self.now());
        }
    }

    /// Waits until the next request may go, or the limits are others. Cancel safe.
    pub async fn wait(&self) {
        let changed = self.changed.notified();
        let due = lock(&self.bucket).due(self.now());
        let Some(due) = due else { return };
        self.waited.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            () = sleep_until(self.begin + due) => {}
            () = changed => {}
        }
    }

    /// How often a queue waited since the machine was built.
    pub fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limits(max_iops: Option<u32>, max_bytes_per_s: Option<u64>) -> DiskLimits {
        DiskLimits { max_iops, max_bytes_per_s, burst_ms: None }
    }

    /// A guest that always has more to do, looked at every millisecond for a time: requests and bytes.
    fn greedy(limits: DiskLimits, len: u64, seconds: u32) -> (u64, u64) {
        let mut bucket = Bucket::default();
        bucket.set(limits, Duration::ZERO);
        let (mut requests, mut bytes) = (0, 0);
        for turn in 0..seconds * 1000 {
            while bucket.due(MS * turn).is_none() {
                bucket.took(len, MS * turn);
                (requests, bytes) = (requests + 1, bytes + len);
            }
        }
        (requests, bytes)
    }

    fn near(got: u64, wanted: u64) {
        assert!(got.abs_diff(wanted) * 20 <= wanted, "{got} is not within 5 % of {wanted}");
    }

    #[test]
    fn what_goes_in_a_time_is_the_limit() {
        near(greedy(limits(Some(500), None), 4096, 60).0, 30_000);
        near(greedy(limits(Some(500), None), UNIT, 60).0, 30_000);
        // Larger ones count for each 8 KiB that they begin.
        near(greedy(limits(Some(500), None), 64 << 10, 60).0, 30_000 / 8);
        near(greedy(limits(Some(500), None), UNIT + 1, 60).0, 15_000);
        near(greedy(limits(None, Some(10_000_000)), 64 << 10, 60).1, 600_000_000);
        near(greedy(limits(None, Some(10_000_000)), 512, 60).1, 600_000_000);
        // With both, the narrower one is what counts.
        near(greedy(limits(Some(100), Some(1 << 30)), 4096, 60).0, 6000);
        near(greedy(limits(Some(1_000_000), Some(1 << 20)), 4096, 60).1, 60 << 20);
        // Requests that are longer than the limit are late, and no more.
        near(greedy(limits(None, Some(1 << 20)), 16 << 20, 1000).1, 1000 << 20);
    }

    #[test]
    fn rest_gives_one_burst_and_no_more() {
        for (burst_ms, wanted) in [(None, 101), (Some(0), 1), (Some(1000), 1001)] {
            let mut bucket = Bucket::default();
            let limits = DiskLimits { burst_ms, ..limits(Some(1000), None) };
            bucket.set(limits, Duration::ZERO);
            let later = Duration::from_secs(3600);
            let mut at_once = 0;
            while bucket.due(later).is_none() {
                bucket.took(512, later);
                at_once += 1;
            }
            assert_eq!(at_once, wanted, "{burst_ms:?}");
        }
    }

    #[test]
    fn other_limits_hold_at_once() {
        let mut bucket = Bucket::default();
        bucket.set(limits(Some(1), None), Duration::ZERO);
        bucket.took(1 << 30, Duration::ZERO);
        assert!(bucket.due(MS * 1_000_000).is_some());
        bucket.set(limits(Some(10), None), MS);
        assert_eq!(bucket.due(MS), None);
        bucket.set(DiskLimits::default(), MS);
        bucket.took(u64::MAX, MS);
        assert_eq!(bucket.due(MS), None);
    }

    proptest! {
        /// However requests come: in no time do more go than the limit, a burst and one request.
        #[test]
        fn never_more_than_the_limit_and_a_burst(
            requests in prop::collection::vec((0u64..1 << 20, 0u32..50), 1..300),
            iops in 1u32..5000,
        ) {
            let mut bucket = Bucket::default();
            bucket.set(limits(Some(iops), None), Duration::ZERO);
            let (mut now, mut gone, mut largest) = (Duration::ZERO, 0, 0);
            for (len, later) in requests {
                now += MS * later;
                if bucket.due(now).is_none() {
                    bucket.took(len, now);
                    let cost = len.div_ceil(UNIT).max(1);
                    (gone, largest) = (gone + cost, cost.max(largest));
                }
                let most = f64::from(iops) * (now + limits(None, None).burst()).as_secs_f64();
                prop_assert!(gone as f64 <= most + largest as f64 + 1.0, "{} of {}", gone, most);
            }
        }
    }
}
