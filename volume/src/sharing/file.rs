//! One file as all its openers see it: share modes, deletion, byte-range locks and what clients
//! may cache.
//!
//! ```text
//!  open::table ── by device and inode ─► OpenFile ─► users  openers.rs: who has it open, how
//!    │ opens, leases, creates by name     │      links      links.rs: by which of its names
//!    └ tells holders, lets openers wait   │      locks      locks.rs: byte ranges
//!                                         │      caching    caching.rs: oplocks and leases
//!                                         └      image      image.rs: other programs kept away
//! ```

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use rustix::io::Errno;
use smb_protocol::{
    NtStatus,
    msg::{
        context::LeaseState,
        create::{Access, ShareAccess},
    },
};
use tokio::sync::{Notify, futures::OwnedNotified};

use crate::{
    fs::{
        file_key::FileKey,
        path::RelPath,
        reparse::{Lost, Met},
    },
    sharing::{
        caching::{Caching, CachingRecord, GrantOwner, LeaseId, LeaseView},
        image,
        links::{Link, LinkId, Links},
        locks::{Intent, Locks, Range},
        next_name::NextName,
        openers::Openers,
    },
    status::of_errno,
    users::ClientId,
};

/// Names a create: `CreateGuid` and the client.
pub type CreateKey = ([u8; 16], ClientId);

/// Locks that one file can have.
pub const MAX_LOCKS: usize = 16_384;

/// Byte-range locks of all files, and how many there may be.
#[derive(Debug)]
pub(crate) struct LockCount {
    pub(crate) held: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

impl Default for LockCount {
    fn default() -> Self {
        Self { held: AtomicUsize::new(0), most: AtomicUsize::new(usize::MAX) }
    }
}

/// A file that is open.
#[derive(Debug)]
pub struct OpenFile {
    pub(crate) key: FileKey,
    pub(crate) state: Mutex<State>,
    /// Somebody caches something: what `state.caching` says, for those who do not take the lock.
    cached: AtomicBool,
    /// Number of byte-range locks.
    pub(crate) locked: AtomicUsize,
    pub(crate) all_locks: Arc<LockCount>,
    /// Told when a break is done, an open or a lock is gone.
    pub(crate) changed: Arc<Notify>,
    /// Times that are shown instead of the system's.
    pub times: crate::fs::times::Shown,
    /// What it is about to be called.
    pub next_name: Arc<NextName>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) users: Openers,
    pub(crate) links: Links,
    pub(crate) caching: Caching,
    pub(crate) locks: Locks,
    /// What other programs are kept from.
    pub(crate) image: Option<image::Held>,
    /// Opens that outlive the server.
    pub(crate) remembered: Vec<Remembered>,
}

/// An open that outlives the server.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) open: u64,
    /// Others do not get the file while its client is away.
    pub(crate) persistent: bool,
    /// What the state store has of its caching.
    pub(crate) caching: Option<CachingRecord>,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub struct Opener {
    /// Name of the open.
    pub id: u64,
    /// What it may do.
    pub access: Access,
    /// What others may do.
    pub share: ShareAccess,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// What throwing the content away takes beside that, for the moment of the CREATE: others must
    /// share it, and nobody after it needs to. Nothing if the content stays.
    pub overwrites: Access,
    /// It is told that the file will be back (MS-SMB2 3.3.5.9).
    pub smb3: bool,
    /// Who opens anew; `None` for an open that is taken up again.
    pub anew: Option<Newcomer>,
}

/// Who opens a file anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newcomer {
    /// `ClientGuid` of the connection.
    pub client: [u8; 16],
    /// `AppInstanceId` of the CREATE.
    pub app_instance: Option<[u8; 16]>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    pub(crate) id: u64,
    /// The name that it came by.
    pub(crate) link: LinkId,
    pub(crate) access: Access,
    pub(crate) share: ShareAccess,
    pub(crate) lease: Option<LeaseId>,
}

/// Why a file cannot be opened or changed now.
#[derive(Debug)]
pub enum Refused {
    /// With this status.
    Status(NtStatus),
    /// A client was told to give up what it caches; try again then.
    Wait(Wake),
    /// A reparse point is on the way.
    Reparse(Box<Met>),
}

/// When to try again.
#[derive(Debug)]
pub struct Wake {
    /// Something has changed.
    pub changed: OwnedNotified,
    /// Nobody needs to be waited for any longer.
    pub until: Instant,
    /// Gives another `changed`.
    pub again: Arc<Notify>,
    /// The file of which others have something, if it is one.
    pub file: Option<FileKey>,
}

impl Wake {
    /// Waits for the next change of a file, at most until then.
    pub fn new(again: Arc<Notify>, until: Instant) -> Self {
        Self { changed: again.clone().notified_owned(), until, again, file: None }
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Self::Status(of_errno(error))
    }
}

impl From<Lost> for Refused {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Status(status) => Self::Status(status),
            Lost::Reparse(met) => Self::Reparse(met),
        }
    }
}

impl From<NtStatus> for Refused {
    fn from(status: NtStatus) -> Self {
        Self::Status(status)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The name that an opener came by.
    pub(crate) fn link(&self, open: u64) -> Option<LinkId> {
        self.users.get(open).map(|user| user.link)
    }

    /// Whether the name that an opener came by is to go.
    pub(crate) fn is_going(&self, open: u64) -> bool {
        let link = self.link(open).and_then(|link| self.links.get(link));
        link.is_some_and(|link| link.delete_pending)
    }

    /// The name that an opener came by, if that is to be deleted when this one leaves.
    pub(crate) fn goes_with(&self, open: u64) -> Option<&Link> {
        let link = self.link(open).and_then(|link| self.links.get(link));
        link.filter(|link| link.goes_with_the_next())
    }

    /// What clients of opens that outlive the server may cache, where it has changed since the last
    /// call: by open, `None` for nothing.
    pub(crate) fn changed_caching(&mut self) -> Vec<(u64, Option<CachingRecord>)> {
        let mut changed = Vec::new();
        for Remembered { open, caching, .. } in &mut self.remembered {
            let now = self.caching.held(*open);
            if now != *caching {
                changed.push((*open, now));
                *caching = now;
            }
        }
        changed
    }
}

impl OpenFile {
    pub(crate) fn new(key: FileKey, all_locks: Arc<LockCount>) -> Arc<Self> {
        let state = State {
            users: Openers::default(),
            links: Links::default(),
            caching: Caching::default(),
            locks: Locks::default(),
            image: None,
            remembered: Vec::new(),
        };
        Arc::new(Self {
            key,
            state: Mutex::new(state),
            cached: AtomicBool::new(false),
            locked: AtomicUsize::new(0),
            all_locks,
            changed: Arc::default(),
            times: crate::fs::times::Shown::default(),
            next_name: Arc::default(),
        })
    }

    /// An open outlives the server from now on. `commit` puts it into the state store with what it
    /// caches, before that can change.
    pub fn remember<T>(
        &self,
        open: u64,
        persistent: bool,
        commit: impl FnOnce(Option<&CachingRecord>) -> T,
    ) -> T {
        let mut state = lock(&self.state);
        let caching = state.caching.held(open);
        state.remembered.push(Remembered { open, persistent, caching });
        commit(caching.as_ref())
    }

    /// What an open caches, as it would be remembered.
    pub fn caching_record(&self, open: u64) -> Option<CachingRecord> {
        lock(&self.state).caching.held(open)
    }

    /// An open had this of what it caches at a server that has ended.
    pub(crate) fn cached_again(&self, open: u64, holder: GrantOwner, caching: CachingRecord) {
        let mut state = lock(&self.state);
        state.caching.restore(open, holder, LeaseState(caching.state), caching.v2);
        self.show_caching(&state);
    }

    /// After each change of what is cached, before the lock is given back.
    pub(crate) fn show_caching(&self, state: &State) {
        self.cached.store(!state.caching.is_empty(), Ordering::Release);
    }

    /// Whether somebody caches something, as of the last change that is done.
    pub(crate) fn is_cached(&self) -> bool {
        self.cached.load(Ordering::Acquire)
    }

    /// An open is in the state store, with that of what it caches.
    pub(crate) fn remembered_again(
        &self,
        open: u64,
        persistent: bool,
        caching: Option<CachingRecord>,
    ) {
        lock(&self.state).remembered.push(Remembered { open, persistent, caching });
    }

    /// An open outlives the server no more.
    pub fn forget(&self, open: u64) {
        lock(&self.state).remembered.retain(|remembered| remembered.open != open);
    }

    /// All who have it open, and those who have a stream of it open.
    pub fn openers(&self) -> Vec<u64> {
        lock(&self.state).users.iter().map(|user| user.id).collect()
    }

    /// Which file it is.
    pub fn key(&self) -> FileKey {
        self.key
    }

    pub(crate) fn wake(&self, until: Instant) -> Refused {
        Refused::Wait(self.wake_by(until))
    }

    /// Resolves when something has changed.
    pub fn changed(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }

    /// Waits for the next change, at most until then.
    pub fn wake_by(&self, until: Instant) -> Wake {
        Wake { file: Some(self.key), ..Wake::new(self.changed.clone(), until) }
    }

    /// What an open caches, and whether it was told to give some of it up.
    pub fn caching(&self, open: u64) -> (LeaseState, bool) {
        lock(&self.state).caching.state(open)
    }

    /// The lease of an open.
    pub fn lease(&self, open: u64) -> Option<LeaseView> {
        lock(&self.state).caching.lease(open)
    }

    /// Fails if a lock forbids `open` to read or write there.
    pub fn check_io(&self, open: u64, offset: u64, len: u64, write: bool) -> Result<(), NtStatus> {
        if self.locked.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let Some(range) = Range::new(offset, len) else { return Ok(()) };
        let intent = if write { Intent::Write } else { Intent::Read };
        if len > 0 && lock(&self.state).locks.conflict(open, range, intent) {
            return Err(NtStatus::FILE_LOCK_CONFLICT);
        }
        Ok(())
    }

    /// Fails if a lock forbids `open` to read or change any of these ranges, each an offset and a
    /// length: the check of [`OpenFile::check_io`] for all of them at one time.
    ///
    /// # Errors
    /// `FILE_LOCK_CONFLICT`.
    pub fn check_ranges(
        &self,
        open: u64,
        ranges: impl Iterator<Item = (u64, u64)>,
        write: bool,
    ) -> Result<(), NtStatus> {
        if self.locked.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let ranges = ranges.filter_map(|(offset, length)| Range::new(offset, length));
        let intent = if write { Intent::Write } else { Intent::Read };
        if lock(&self.state).locks.conflict_any(open, ranges, intent) {
            return Err(NtStatus::FILE_LOCK_CONFLICT);
        }
        Ok(())
    }

    pub(crate) fn count_locks(&self, state: &State) {
        let now = state.locks.count();
        let before = self.locked.swap(now, Ordering::AcqRel);
        // Wraps where there are fewer now.
        self.all_locks.held.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Takes a lock if nothing forbids it; whether it was taken.
    pub fn lock_range(&self, open: u64, range: Range, exclusive: bool) -> Result<bool, NtStatus> {
        let mut state = lock(&self.state);
        let LockCount { held, most } = &*self.all_locks;
        let full = held.load(Ordering::Relaxed) >= most.load(Ordering::Relaxed);
        if full || state.locks.count() >= MAX_LOCKS {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let taken = state.locks.take(open, range, exclusive);
        self.count_locks(&state);
        Ok(taken)
    }

    /// Releases a lock; whether there was one.
    pub fn unlock_range(&self, open: u64, range: Range) -> bool {
        let mut state = lock(&self.state);
        let released = state.locks.release(open, range);
        self.count_locks(&state);
        drop(state);
        self.changed.notify_waiters();
        released
    }

    /// Number of locks that an open holds.
    pub fn locks_of(&self, open: u64) -> Vec<(Range, bool)> {
        lock(&self.state).locks.of(open).collect()
    }

    /// Whether an open holds locks.
    pub fn has_locks(&self, open: u64) -> bool {
        self.locked.load(Ordering::Acquire) > 0 && lock(&self.state).locks.of(open).next().is_some()
    }

    /// Marks the name that an opener came by to be deleted when the last who did leaves, `by` whoever
    /// has a lease of that key on the folder; or takes that back (MS-FSA 2.1.5.15.3).
    pub fn set_delete_pending(&self, open: u64, by: Option<Option<[u8; 16]>>) {
        let mut state = lock(&self.state);
        if let Some(link) = state.link(open).and_then(|link| state.links.get_mut(link)) {
            link.delete_pending = by.is_some();
            link.deleter = by.flatten();
        }
    }

    /// Whether the name that an opener came by is to be deleted.
    pub fn delete_pending(&self, open: u64) -> bool {
        lock(&self.state).is_going(open)
    }

    /// Names that are to be deleted and are still there.
    pub fn names_going(&self) -> u32 {
        let state = lock(&self.state);
        state.links.iter().filter(|link| link.delete_pending && !link.gone).count() as u32
    }

    /// The name that an opener came by is gone, though some still use it.
    pub fn name_is_gone(&self, open: u64) {
        let mut state = lock(&self.state);
        if let Some(link) = state.link(open).and_then(|link| state.links.get_mut(link)) {
            link.gone = true;
        }
    }

    /// Where the name is now that an opener came by, from the root of the system.
    pub fn path(&self, open: u64) -> Option<RelPath> {
        let state = lock(&self.state);
        state.link(open).and_then(|link| state.links.get(link)).map(|link| link.path.clone())
    }

    /// Notes that the name that an opener came by is now `path`, from the root of the system.
    pub fn set_path(&self, open: u64, path: RelPath) {
        let mut state = lock(&self.state);
        if let Some(link) = state.link(open).and_then(|link| state.links.get_mut(link)) {
            link.path = path;
        }
    }

    /// Whether openers other than `id` forbid that the file is deleted or renamed.
    pub fn others_forbid_delete(&self, id: u64) -> bool {
        lock(&self.state).users.others_refuse_delete(id)
    }
}
