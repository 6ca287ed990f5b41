//! What times one request along its way.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    SAMPLE, ShareMeter,
    path::{PathMeter, Phase},
};

/// Who counts the times of one request: nobody for most.
#[derive(Debug, Clone, Default)]
pub struct PathTimer(Option<Box<Counters>>);

#[derive(Debug, Clone)]
struct Counters {
    share: Option<Arc<ShareMeter>>,
    file: Arc<PathMeter>,
}

impl PathTimer {
    /// One that counts for a share and a file.
    pub(crate) fn new(share: Option<Arc<ShareMeter>>, file: Arc<PathMeter>) -> Self {
        Self(Some(Box::new(Counters { share, file })))
    }

    /// Whether it counts.
    pub(crate) fn counts(&self) -> bool {
        self.0.is_some()
    }

    /// The beginning of what is timed with [`PathTimer::end`].
    pub(crate) fn begin(&self) -> Option<Instant> {
        self.0.as_ref().map(|_| Instant::now())
    }

    /// Counts what began then, for itself and those requests that are not timed.
    pub(crate) fn end(&self, phase: Phase, begun: Option<Instant>) {
        if let Some(begun) = begun {
            self.note(phase, begun.elapsed());
        }
    }

    /// Counts a time, for itself and those requests that are not timed.
    pub(crate) fn note(&self, phase: Phase, took: Duration) {
        let Some(counters) = &self.0 else { return };
        counters.file.note(phase, took, SAMPLE);
        if let Some(share) = &counters.share {
            share.path.note(phase, took, SAMPLE);
        }
    }

    /// Times work of the storage that is waited for; every such request is timed, and counts for itself.
    pub(crate) async fn storage<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        match &self.0 {
            None => work.await,
            Some(counters) => match &counters.share {
                None => counters.file.storage(phase, work).await,
                Some(share) => share.path.storage(phase, counters.file.storage(phase, work)).await,
            },
        }
    }
}
