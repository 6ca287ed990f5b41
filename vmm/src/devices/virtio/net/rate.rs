//! How much goes through in a second.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Bytes in a second, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes, on the average.
    pub bytes_per_s: u64,
}

/// What goes at once after a time of rest.
const BURST: Duration = Duration::from_millis(20);

/// When the next frame may go. Each frame takes the time that its bytes take at the limit, from when
/// the one before has had its time, or from a burst ago at the earliest.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: Option<Limit>,
    /// When all that went has had its time.
    until: Option<Instant>,
}

impl Bucket {
    pub fn new(limit: Option<Limit>) -> Self {
        Self { limit, until: None }
    }

    /// A frame of `len` bytes goes.
    pub fn took(&mut self, len: usize) {
        self.took_at(len, Instant::now());
    }

    fn took_at(&mut self, len: usize, now: Instant) {
        let Some(Limit { bytes_per_s }) = self.limit else { return };
        let nanos = len as u64 * 1_000_000_000 / bytes_per_s.max(1);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.until.map_or(earliest, |until| until.max(earliest));
        self.until = Some(from + Duration::from_nanos(nanos));
    }

    fn is_ready_at(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// Whether the next frame may go now.
    pub fn is_ready(&self) -> bool {
        self.limit.is_none() || self.is_ready_at(Instant::now())
    }

    /// Waits until the next frame may go.
    pub async fn wait(&self) {
        if let (Some(_), Some(until)) = (self.limit, self.until) {
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_a_second_is_the_limit_and_a_burst() {
        let mut bucket = Bucket::new(Some(Limit { bytes_per_s: 1_000_000 }));
        let begin = Instant::now() + BURST * 2;
        let mut sent = 0u64;
        // Looked at every millisecond for ten seconds; there is always more.
        for millis in 0..10_000 {
            let now = begin + Duration::from_millis(millis);
            while bucket.is_ready_at(now) {
                bucket.took_at(1500, now);
                sent += 1500;
            }
        }
        let expected = 10_000_000 + 1_000_000 * BURST.as_millis() as u64 / 1000;
        assert!(sent.abs_diff(expected) <= 3000, "{sent}");
        assert!(Bucket::new(None).is_ready());
    }

    #[test]
    fn rest_gives_one_burst_and_no_more() {
        let mut bucket = Bucket::new(Some(Limit { bytes_per_s: 1_000_000 }));
        let begin = Instant::now() + BURST * 2;
        bucket.took_at(1000, begin);
        let later = begin + Duration::from_secs(3600);
        let mut at_once = 0;
        while bucket.is_ready_at(later) {
            bucket.took_at(1000, later);
            at_once += 1;
        }
        assert_eq!(at_once, 1 + BURST.as_millis());
    }
}
