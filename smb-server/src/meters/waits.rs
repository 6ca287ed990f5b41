//! Requests that wait for other clients now: whoever asks why something is slow hears of what has not
//! ended yet, too.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use volume::{fs::file_key::FileKey, sharing::locks::Range};

use super::{
    ShareMeter,
    path::{PathMeter, Phase},
};

/// All requests that wait for other clients.
#[derive(Debug, Default)]
pub struct Waits {
    next: AtomicU64,
    all: Mutex<HashMap<u64, WaitInfo>>,
}

/// A request that waits for other clients.
#[derive(Debug, Clone)]
pub struct WaitInfo {
    /// For what: [`Phase::Break`] or [`Phase::Lock`].
    pub phase: Phase,
    /// Its share, folded.
    pub share: String,
    /// The file, if it is known.
    pub file: Option<FileKey>,
    /// The byte range that it wants.
    pub range: Option<Range>,
    /// Since when.
    pub since: Instant,
}

/// A wait that is under way; it has ended when this is dropped, and is counted then.
#[derive(Debug)]
pub struct Wait {
    waits: Arc<Waits>,
    key: u64,
    phase: Phase,
    since: Instant,
    meters: (Option<Arc<ShareMeter>>, Option<Arc<PathMeter>>),
}

impl Waits {
    /// Begins a wait, which is counted for a share and a file.
    pub fn begin(
        self: &Arc<Self>,
        info: WaitInfo,
        share: Option<Arc<ShareMeter>>,
        file: Option<Arc<PathMeter>>,
    ) -> Wait {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let (phase, since) = (info.phase, info.since);
        self.all.lock().unwrap_or_else(PoisonError::into_inner).insert(key, info);
        Wait { waits: self.clone(), key, phase, since, meters: (share, file) }
    }

    /// The requests that wait now, in no order.
    pub fn all(&self) -> Vec<WaitInfo> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.waits.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        let took = self.since.elapsed();
        if let Some(share) = &self.meters.0 {
            share.path.note(self.phase, took, 1);
        }
        if let Some(file) = &self.meters.1 {
            file.note(self.phase, took, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_seen_while_it_lasts_and_counted_when_it_ends() {
        let (waits, meter) = (Arc::<Waits>::default(), Arc::<PathMeter>::default());
        let info = WaitInfo {
            phase: Phase::Lock,
            share: "VMS".to_owned(),
            file: Some((1, 2)),
            range: None,
            since: Instant::now(),
        };
        let wait = waits.begin(info, None, Some(meter.clone()));
        assert_eq!(waits.all().len(), 1);
        assert_eq!(meter.figures().of(Phase::Lock).count(), 0);
        drop(wait);
        assert!(waits.all().is_empty());
        assert_eq!(meter.figures().of(Phase::Lock).count(), 1);
    }
}
