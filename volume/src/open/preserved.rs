//! Opens whose client is away: durable, resilient and persistent handles that wait to be taken up
//! again (MS-SMB2 3.3.7.1, 3.3.2.2, 3.3.2.4).

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use smb_protocol::msg::{context::LeaseState, create::Access};

use crate::{
    budget::Held,
    open::{Open, table::OpenFileTable},
    sharing::{
        file::{Newcomer, Opener, State, lock},
        modes::NON_BREAKING_ACCESS,
    },
};

/// Opens that nobody has, by their persistent name.
#[derive(Debug)]
pub struct DisconnectedOpens {
    opens: Mutex<HashMap<u64, Entry>>,
    most: AtomicUsize,
    /// Those whose file another node may still have (see `recover.rs`).
    late: Mutex<HashSet<u64>>,
}

impl Default for DisconnectedOpens {
    fn default() -> Self {
        Self { opens: Mutex::default(), most: AtomicUsize::new(usize::MAX), late: Mutex::default() }
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

    fn late(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an open is kept whose file is not ours yet: whoever takes it up waits.
    pub fn is_late(&self, persistent: u64) -> bool {
        self.late().contains(&persistent)
    }

    /// Says whether the file of an open that is kept is not ours yet.
    pub(super) fn set_late(&self, persistent: u64, late: bool) {
        match late {
            true => self.late().insert(persistent),
            false => self.late().remove(&persistent),
        };
    }

    /// Looks at an open that is kept.
    pub fn get(&self, persistent: u64) -> Option<Arc<Open>> {
        self.lock().get(&persistent).map(|entry| entry.open.clone())
    }

    /// Whether an open is kept that its own client is to take up before it opens the file like this: by
    /// another lease, or as the same instance of an application (MS-SMB2 3.3.5.9).
    fn is_due(&self, persistent: u64, by: &Opener) -> bool {
        let Some(Newcomer { client, app_instance }) = by.anew else { return false };
        let opens = self.lock();
        let Some(Entry { open, .. }) = opens.get(&persistent) else { return false };
        let other = by.lease.is_none() || open.lease != by.lease;
        let instance = app_instance.is_some() && open.origin.app_instance == app_instance;
        open.origin.client.guid == client && (other || instance)
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

impl State {
    /// Whether one of the opens is persistent.
    pub(super) fn will_be_back(&self, opens: &[u64]) -> bool {
        self.remembered.iter().any(|known| known.persistent && opens.contains(&known.open))
    }
}

impl OpenFileTable {
    /// Whether the client of a persistent open is away that did not cache its handle: whoever does is
    /// asked to give up something as soon as it is back, and until then others wait (MS-SMB2, note 301
    /// on 3.3.5.9). That client itself waits only for writes that are cached: it is to take up what it has
    /// first, unless it comes with the same lease, or only looks. Locks of such opens are nothing that
    /// others may meet unless writes are cached.
    pub(super) fn keeps_away(
        &self,
        state: &State,
        by: &Opener,
        ignored: impl Fn(u64) -> bool,
    ) -> bool {
        let looks = by.access.or(by.overwrites).without(NON_BREAKING_ACCESS) == Access::NONE;
        let locked = |open: u64| state.locks.of(open).next().is_some();
        let mut persistent = state.remembered.iter().filter(|known| known.persistent);
        let locks = state.locks.count() > 0 && persistent.clone().any(|known| locked(known.open));
        persistent.any(|known| {
            let (cached, _) = state.caching.state(known.open);
            let handle = cached.has(LeaseState::HANDLE);
            let asked = handle && (cached.has(LeaseState::WRITE) || !locks);
            let away = !asked && self.disconnected.has(known.open);
            let waits = looks || handle && cached.has(LeaseState::WRITE);
            let due = !waits && self.disconnected.is_due(known.open, by);
            (away || due) && !ignored(known.open)
        })
    }

    /// Whether the clients of all opens but `open` that hold something with it are away.
    fn is_alone(&self, state: &State, open: u64) -> bool {
        state.caching.holder_of(open).is_some_and(|(_, opens)| {
            opens.iter().all(|other| *other == open || self.disconnected.has(*other))
        })
    }

    /// The client of an open is away: of a persistent one, what its client is being told may not have
    /// come.
    pub fn client_left(&self, open: &Open) {
        let (file, id) = (&open.file, open.opener_id());
        let mut state = lock(&file.state);
        if !state.will_be_back(&[id]) {
            return;
        }
        if state.caching.state(id).1 && self.is_alone(&state, id) {
            state.caching.tell_later(id, Instant::now());
        }
        self.note_caching(file, &mut state);
    }

    /// The client of an open is back, with that epoch of its lease if it has one. Where one node serves
    /// the share, `alone`, a persistent open caches nothing beside its locks unless it caches writes,
    /// as on Windows; the answer says so.
    pub fn client_came(&self, open: &Open, epoch: Option<u16>, alone: bool) {
        let (file, id) = (&open.file, open.opener_id());
        let mut state = lock(&file.state);
        if !state.will_be_back(&[id]) || !self.is_alone(&state, id) {
            return;
        }
        let locked = state.caching.holder_of(id).is_some_and(|(_, opens)| {
            opens.iter().any(|open| state.locks.of(*open).next().is_some())
        });
        if alone && locked && !state.caching.state(id).0.has(LeaseState::WRITE) {
            state.caching.lose(id);
        }
        if let Some(epoch) = epoch {
            state.caching.take_epoch(id, epoch);
        }
        self.note_caching(file, &mut state);
    }

    /// Tells a client that is back, and has been answered, what it could not be told.
    pub fn tell_client(&self, open: &Open) {
        let mut state = lock(&open.file.state);
        let due = state.caching.tell_now(open.opener_id(), Instant::now());
        self.note_caching(&open.file, &mut state);
        drop(state);
        self.tell(&open.file, due.into_iter().collect());
    }
}
