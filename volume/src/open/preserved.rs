//! Opens whose client is away: durable, resilient and persistent handles that wait to be taken up
//! again (MS-SMB2 3.3.7.1, 3.3.2.2, 3.3.2.4).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{budget::Held, open::Open};

/// Opens that nobody has, by their persistent name.
#[derive(Debug)]
pub struct DisconnectedOpens {
    opens: Mutex<HashMap<u64, Entry>>,
    most: AtomicUsize,
}

impl Default for DisconnectedOpens {
    fn default() -> Self {
        Self { opens: Mutex::default(), most: AtomicUsize::new(usize::MAX) }
    }
}

#[derive(Debug)]
struct Entry {
    open: Arc<Open>,
    until: Instant,
    /// It counts among those of its user that are kept, unless it does already.
    _counted: Option<Held>,
}

impl DisconnectedOpens {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.opens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how many opens are kept at most.
    pub fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Keeps an open for `time`; when too many are kept it is closed as if it were not durable.
    pub fn keep(&self, open: Arc<Open>, time: Duration) {
        // Those that outlive the server have their own limit, and what was promised them is kept.
        let remembered = open.is_in_store();
        let counted = if remembered { None } else { open.origin.user.kept.take(1) };
        let fits = remembered || counted.is_some();
        let entry = Entry { until: Instant::now() + time, open, _counted: counted };
        let mut opens = self.lock();
        let room = remembered || fits && opens.len() < self.most.load(Ordering::Relaxed);
        let unwanted =
            if room { opens.insert(entry.open.id.persistent, entry) } else { Some(entry) };
        drop(opens);
        drop(unwanted);
    }

    /// Whether an open is kept.
    pub fn has(&self, persistent: u64) -> bool {
        self.lock().contains_key(&persistent)
    }

    /// Looks at an open that is kept.
    pub fn get(&self, persistent: u64) -> Option<Arc<Open>> {
        self.lock().get(&persistent).map(|entry| entry.open.clone())
    }

    /// Takes an open that is kept.
    pub fn take(&self, persistent: u64) -> Option<Arc<Open>> {
        self.lock().remove(&persistent).map(|entry| entry.open)
    }

    /// Closes an open that is kept and, without its caching, is not worth it; resilient ones stay.
    pub fn drop_open(&self, persistent: u64) {
        let mut opens = self.lock();
        let gone = match opens.get(&persistent) {
            Some(entry) if !entry.open.is_resilient() => opens.remove(&persistent),
            _ => None,
        };
        drop(opens);
        drop(gone);
    }

    /// Closes what was kept long enough.
    pub fn sweep(&self, now: Instant) {
        let mut opens = self.lock();
        let over: Vec<u64> =
            opens.iter().filter(|(_, entry)| entry.until <= now).map(|(id, _)| *id).collect();
        let gone: Vec<Entry> = over.iter().filter_map(|id| opens.remove(id)).collect();
        drop(opens);
        drop(gone);
    }

    /// All that are kept.
    pub fn all(&self) -> Vec<Arc<Open>> {
        self.lock().values().map(|entry| entry.open.clone()).collect()
    }

    /// Lets go of all.
    pub fn clear(&self) {
        let gone = std::mem::take(&mut *self.lock());
        drop(gone);
    }

    /// Number of opens that are kept.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}
