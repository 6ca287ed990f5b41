//! How long a disk's requests take, and which part of that its storage takes.
//!
//! ```text
//!  taken from the ring ─► waits in the host ─► storage: wire and server ─► … ─► told to the guest
//!  └──────────────────────────────── whole ────────────────────────────────┘
//! ```

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use block_io::{Histogram, Times};

use super::storage::Kind;

/// Counts the times of one disk's requests.
#[derive(Debug, Default)]
pub struct DiskTimes {
    /// Whole requests, from the ring to their status.
    pub(super) whole: Histogram,
    /// What the storage took: reads, writes (and what gives space back), flushes.
    storage: [Histogram; 3],
    /// What the storage works on now.
    under_way: AtomicU64,
    /// What it worked on when something came to it, added up, and how often something came.
    met: [AtomicU64; 2],
}

/// The times of a disk's requests as they stand, or between two moments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFigures {
    /// Whole requests, from the moment that the host took them from the ring to their end.
    pub whole: Times,
    /// What the storage took for reads, the wire to its server with it.
    pub read: Times,
    /// What it took for writes, and for giving space back.
    pub write: Times,
    /// What it took for making durable.
    pub flush: Times,
    /// Requests that the storage worked on when something came to it, added up, and how often that was.
    pub met: (u64, u64),
}

impl DiskTimes {
    /// Times work of the storage.
    pub(super) async fn storage<T>(&self, kind: Kind, work: impl Future<Output = T>) -> T {
        /// What is there as long as the storage works, though nobody waits for it any more.
        struct There<'a>(&'a AtomicU64);
        impl Drop for There<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        let there = There(&self.under_way);
        self.met[0].fetch_add(before + 1, Ordering::Relaxed);
        self.met[1].fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let done = work.await;
        self.storage[kind as usize].note(begun.elapsed(), 1);
        drop(there);
        done
    }

    /// How they stand now.
    pub fn figures(&self) -> DiskFigures {
        let [read, write, flush] = self.storage.each_ref().map(Histogram::times);
        let [met, times] = self.met.each_ref().map(|it| it.load(Ordering::Relaxed));
        DiskFigures { whole: self.whole.times(), read, write, flush, met: (met, times) }
    }
}

impl DiskFigures {
    /// What happened since an earlier moment of the same disk.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            whole: self.whole.since(&before.whole),
            read: self.read.since(&before.read),
            write: self.write.since(&before.write),
            flush: self.flush.since(&before.flush),
            met: (self.met.0.saturating_sub(before.met.0), self.met.1.saturating_sub(before.met.1)),
        }
    }

    /// Requests that the guest had in the storage at a time, in the mean of those that came to it.
    pub fn depth(&self) -> f64 {
        if self.met.1 == 0 { 0.0 } else { self.met.0 as f64 / self.met.1 as f64 }
    }

    /// Nanoseconds that the storage took, all requests together.
    pub fn storage_nanos(&self) -> u64 {
        self.read.nanos + self.write.nanos + self.flush.nanos
    }

    /// Nanoseconds that requests waited in the host, all together.
    pub fn host_nanos(&self) -> u64 {
        self.whole.nanos.saturating_sub(self.storage_nanos())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_the_storage_does_not_take_is_the_hosts() {
        let times = DiskTimes::default();
        let mut never = Box::pin(times.storage(Kind::Read, pending::<()>()));
        assert!((&mut never).now_or_never().is_none());
        let before = times.figures();
        times.storage(Kind::Flush, async {}).await;
        times.whole.note(Duration::from_secs(5), 1);
        let now = times.figures().since(&before);
        assert_eq!((now.flush.count(), now.read.count(), now.whole.count()), (1, 0, 1));
        assert_eq!(now.host_nanos(), 5_000_000_000 - now.storage_nanos());
        // It met itself and the read that does not end.
        assert!((now.depth() - 2.0).abs() < 1e-9);
        drop(never);
        assert_eq!(times.under_way.load(Ordering::Relaxed), 0);
    }
}
