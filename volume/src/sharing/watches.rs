//! Changes of folders: told to those who watch them (MS-FSA 2.1.4.1, MS-SMB2 3.3.5.19) and taken
//! from the caches of those who have a lease on them.
//!
//! What this server changes is seen; what other programs on this machine change is not.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use smb_protocol::{
    NtStatus,
    msg::notify::{Action, ChangeFilter, Event},
};
use tokio::sync::Notify;

use crate::{
    budget::{Budget, Held},
    fs::{file_key::FileKey, path::RelPath, volume::Volume},
    work::aside,
};

/// Watches that are quickly told.
const FEW: usize = 1024;

/// One thing that changed in a folder.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Where.
    pub volume: &'a Volume,
    /// What: its path in the share.
    pub path: &'a RelPath,
    /// Its stream, if that is what changed.
    pub stream: Option<&'a str>,
    /// How.
    pub action: Action,
    /// Which watches it is of interest to.
    pub filter: ChangeFilter,
    /// Watches of this hear of the same in another way.
    pub unless: ChangeFilter,
    /// The key of the lease on the folder of whoever changed it, who knows.
    pub by: Option<[u8; 16]>,
}

/// All folders that are watched.
#[derive(Debug, Default)]
pub struct Watches {
    by_folder: Mutex<HashMap<FileKey, Vec<Weak<Watch>>>>,
    count: AtomicUsize,
    /// Watches of whole trees that are interested in each kind of change.
    trees: [AtomicUsize; 12],
}

/// Kinds of changes that a filter names, by the number of their bit.
fn kinds(filter: ChangeFilter) -> impl Iterator<Item = usize> {
    (0..12).filter(move |bit| filter.0 >> bit & 1 == 1)
}

/// A folder that an open watches, from its first CHANGE_NOTIFY until it is closed.
#[derive(Debug)]
pub struct Watch {
    watches: Arc<Watches>,
    folder: FileKey,
    filter: ChangeFilter,
    tree: bool,
    /// Bytes of events that are kept between two requests.
    limit: usize,
    seen: Mutex<Seen>,
    budget: Arc<Budget>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Seen {
    events: Vec<Event>,
    /// What they take of the watcher's budget.
    held: Option<Held>,
    bytes: usize,
    /// More happened than could be kept.
    overflow: bool,
    /// The folder is about to go.
    gone: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watches {
    /// Begins to watch a folder.
    pub fn watch(
        self: &Arc<Self>,
        folder: FileKey,
        filter: ChangeFilter,
        tree: bool,
        limit: usize,
        budget: Arc<Budget>,
    ) -> Arc<Watch> {
        let watch = Arc::new(Watch {
            watches: self.clone(),
            folder,
            filter,
            tree,
            limit,
            seen: Mutex::default(),
            budget,
            wake: Arc::default(),
        });
        lock(&self.by_folder).entry(folder).or_default().push(Arc::downgrade(&watch));
        self.count.fetch_add(1, Ordering::Release);
        for kind in kinds(filter).filter(|_| tree) {
            self.trees[kind].fetch_add(1, Ordering::Release);
        }
        watch
    }

    /// Whether anything is watched.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Whether a change of that kind must be told to those who watch a whole tree.
    pub(crate) fn any_tree(&self, filter: ChangeFilter) -> bool {
        kinds(filter).any(|kind| self.trees[kind].load(Ordering::Acquire) > 0)
    }

    /// Tells those who watch `folder`; from further up only those who watch all below.
    pub(crate) fn tell(&self, folder: FileKey, from_above: bool, name: &str, change: &Change<'_>) {
        let watches: Vec<_> = match lock(&self.by_folder).get(&folder) {
            Some(watches) => watches.iter().filter_map(Weak::upgrade).collect(),
            None => return,
        };
        let many = watches.len() > FEW;
        let tell = || {
            for watch in watches {
                let concerned = watch.filter.any(change.filter) && !watch.filter.any(change.unless);
                if concerned && (watch.tree || !from_above) {
                    watch.see(Event { action: change.action, name: name.to_owned() });
                }
            }
        };
        if many { aside(tell) } else { tell() }
    }

    /// Those who watch a folder that is to be deleted are told so.
    pub fn gone(&self, folder: FileKey) {
        let watches: Vec<_> = match lock(&self.by_folder).get(&folder) {
            Some(watches) => watches.iter().filter_map(Weak::upgrade).collect(),
            None => return,
        };
        for watch in watches {
            lock(&watch.seen).gone = true;
            watch.wake.notify_waiters();
        }
    }
}

impl Watch {
    fn see(&self, event: Event) {
        let mut seen = lock(&self.seen);
        seen.bytes += event.wire_len();
        let bytes = seen.bytes + (seen.events.len() + 1) * size_of::<Event>();
        let room = match &mut seen.held {
            Some(held) => held.resize(bytes),
            none => {
                *none = self.budget.take(bytes);
                none.is_some()
            }
        };
        if seen.overflow || seen.bytes > self.limit || !room {
            seen.overflow = true;
            seen.events = Vec::new();
            seen.held = None;
        } else {
            seen.events.push(event);
        }
        drop(seen);
        self.wake.notify_one();
    }

    /// What happened since the last request; nothing when nothing did.
    fn take(&self, room: usize) -> Option<Result<Option<Vec<u8>>, NtStatus>> {
        let mut seen = lock(&self.seen);
        if seen.gone {
            return Some(Err(NtStatus::DELETE_PENDING));
        }
        if seen.events.is_empty() && !seen.overflow {
            return None;
        }
        let Seen { events, overflow, .. } = std::mem::take(&mut *seen);
        drop(seen);
        let bytes = Event::encode_all(&events);
        Some(Ok((!overflow && bytes.len() <= room).then_some(bytes)))
    }

    /// Waits for changes: what they are, or `None` where more happened than could be kept or has
    /// room in `room` bytes.
    ///
    /// # Errors
    /// `DELETE_PENDING` when the folder is about to go.
    pub async fn next(&self, room: usize) -> Result<Option<Vec<u8>>, NtStatus> {
        loop {
            let wake = self.wake.notified();
            if let Some(result) = self.take(room) {
                return result;
            }
            wake.await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut all = lock(&self.watches.by_folder);
        if let Some(watches) = all.get_mut(&self.folder) {
            // There may be thousands, so none but this is looked at.
            if let Some(at) = watches.iter().position(|one| std::ptr::eq(one.as_ptr(), self)) {
                watches.swap_remove(at);
            }
            if watches.is_empty() {
                all.remove(&self.folder);
            }
        }
        self.watches.count.fetch_sub(1, Ordering::Release);
        for kind in kinds(self.filter).filter(|_| self.tree) {
            self.watches.trees[kind].fetch_sub(1, Ordering::Release);
        }
    }
}
