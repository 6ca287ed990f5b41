//! Everything that is open: files by what they are, opens by their names, leases, creates that may
//! be repeated; who may join, and who is told to give up what it caches.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{
    client::{Awaited, Clients, Nobody},
    fs::{
        file_key::{FileKey, key},
        path::RelPath,
    },
    open::{Open, creates::Creates, persistent::PersistentOpens, preserved::DisconnectedOpens},
    sharing::{
        caching::{
            self, AckError, Break, BreakReason, CachingRecord, CachingRequest, GrantOwner, LeaseId,
        },
        file::{LockCount, OpenFile, Opener, Refused, State, Use, lock},
        links::Link,
        modes::{NON_BREAKING_ACCESS, conflicts, takes_part},
        watches::Watches,
    },
    users::Users,
    work::aside,
};
use dashmap::DashMap;
use rustix::fs::{FileType, Stat};
use smb_protocol::{
    NtStatus,
    msg::{context::LeaseState, create::Access, oplock::LeaseBreak},
};

/// More opens are not looked through on a thread that serves.
const MANY: usize = 2048;

/// How often somebody was told to give up what they cache.
#[derive(Debug, Default)]
pub struct BreakCount {
    leases: AtomicU64,
    oplocks: AtomicU64,
}

impl BreakCount {
    fn add(&self, holder: GrantOwner) {
        let counter = match holder {
            GrantOwner::Lease(_) => &self.leases,
            GrantOwner::Open(_) => &self.oplocks,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Breaks of leases, and of oplocks, since the start.
    pub fn told(&self) -> (u64, u64) {
        (self.leases.load(Ordering::Relaxed), self.oplocks.load(Ordering::Relaxed))
    }
}

/// Everything that is open.
#[derive(Debug)]
pub struct OpenFileTable {
    files: DashMap<FileKey, Arc<OpenFile>>,
    opens: DashMap<u64, Weak<Open>>,
    leases: Mutex<HashMap<LeaseId, Weak<OpenFile>>>,
    /// Creates that a client may repeat.
    pub creates: Creates,
    count: AtomicUsize,
    all_locks: Arc<LockCount>,
    /// Folders that are watched.
    pub watches: Arc<Watches>,
    /// Folders that somebody caches; once there was one it may stay counted.
    folders_cached: AtomicBool,
    /// Who is told of leases that are to be given up.
    clients: Arc<dyn Clients>,
    /// Who they are.
    pub users: Users,
    /// Opens whose client is away and may come back.
    pub disconnected: DisconnectedOpens,
    /// Opens that outlive the server.
    pub persistent_opens: PersistentOpens,
    /// Whom was told to give up what they cache.
    pub breaks: BreakCount,
    /// What a simulation does to the server.
    #[cfg(any(test, feature = "testing"))]
    pub faults: crate::faults::Faults,
}

impl Default for OpenFileTable {
    fn default() -> Self {
        Self::new(Arc::new(Nobody))
    }
}

impl OpenFileTable {
    /// Nothing is open; clients are told through `clients` of what they are to give up.
    pub fn new(clients: Arc<dyn Clients>) -> Self {
        Self {
            files: DashMap::new(),
            opens: DashMap::new(),
            leases: Mutex::default(),
            creates: Creates::default(),
            count: AtomicUsize::new(0),
            all_locks: Arc::default(),
            watches: Arc::default(),
            folders_cached: AtomicBool::new(false),
            clients,
            users: Users::default(),
            disconnected: DisconnectedOpens::default(),
            persistent_opens: PersistentOpens::default(),
            breaks: BreakCount::default(),
            #[cfg(any(test, feature = "testing"))]
            faults: crate::faults::Faults::default(),
        }
    }

    /// Says how many byte-range locks and opens of absent clients there may be.
    pub fn limit(&self, locks: usize, kept_opens: usize) {
        self.all_locks.most.store(locks, Ordering::Relaxed);
        self.disconnected.limit(kept_opens);
        self.persistent_opens.limit(kept_opens);
    }

    /// Adds an opener if those that are there agree; asks them to give up what they cache first.
    pub fn join(&self, stat: &Stat, path: &RelPath, by: Opener) -> Result<Arc<OpenFile>, Refused> {
        let mut breaks = Vec::new();
        // As long as the entry is held nobody takes the file away, or opens it.
        let new = || OpenFile::new(key(stat), self.all_locks.clone());
        let entry = self.files.entry(key(stat)).or_insert_with(new);
        let file = entry.clone();
        let mut state = lock(&file.state);
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let way = (path, folder || stat.st_nlink <= 1);
        let joined = self.admit(&file, &mut state, way, by, &mut breaks);
        self.note_caching(&file, &mut state);
        drop(state);
        drop(entry);
        self.tell(&file, breaks);
        joined.map(|()| file)
    }

    /// After a change of what is cached, before anyone can see it: what outlives the server goes into
    /// the state store, in the order in which it changes.
    pub(super) fn note_caching(&self, file: &OpenFile, state: &mut State) {
        self.persistent_opens.note_caching(state.changed_caching());
        file.show_caching(state);
    }

    fn admit(
        &self,
        file: &Arc<OpenFile>,
        state: &mut State,
        (path, only): (&RelPath, bool),
        by: Opener,
        breaks: &mut Vec<Break>,
    ) -> Result<(), Refused> {
        if state.links.is_going(path, only) {
            return Err(NtStatus::DELETE_PENDING.into());
        }
        #[cfg(any(test, feature = "testing"))]
        let ignored =
            |id| !self.faults.keeps(crate::faults::Rule::NotAvailable) && self.disconnected.has(id);
        #[cfg(not(any(test, feature = "testing")))]
        let ignored = |_| false;
        if self.keeps_away(state, &by, ignored) {
            // Its client will be back, and cannot be asked meanwhile.
            return Err(match by.smb3 {
                true => NtStatus::FILE_NOT_AVAILABLE.into(),
                false => NtStatus::SHARING_VIOLATION.into(),
            });
        }
        if let Some(id) = by.lease {
            self.check_lease(id, Some(file.key))?;
        }
        let me = (by.id, by.lease);
        let now = Instant::now();
        let takes = by.access.or(by.overwrites);
        if takes_part(takes) && state.users.exclude(takes, by.share) {
            let hinders = |other: &&Use| {
                takes_part(other.access)
                    && !ignored(other.id)
                    && (conflicts(takes, other.share) || conflicts(other.access, by.share))
            };
            let hindering: Vec<u64> = state.users.iter().filter(hinders).map(|u| u.id).collect();
            if !hindering.is_empty() {
                let concerns = |_: &GrantOwner, opens: &[u64]| {
                    opens.iter().any(|open| hindering.contains(open))
                };
                let wait = state.caching.break_for(BreakReason::Sharing, me, concerns, now, breaks);
                return Err(match wait {
                    Some(until) => file.wake(until),
                    None => NtStatus::SHARING_VIOLATION.into(),
                });
            }
        }
        let looks = takes.without(NON_BREAKING_ACCESS) == Access::NONE;
        let looks_closely =
            takes.without(NON_BREAKING_ACCESS.or(Access::READ_CONTROL)) == Access::NONE;
        if !looks {
            let overwrites = by.overwrites != Access::NONE;
            let cause = if overwrites { BreakReason::Overwrite } else { BreakReason::Open };
            let concerns = |holder: &GrantOwner, _: &[u64]| {
                !looks_closely || matches!(holder, GrantOwner::Open(_))
            };
            if let Some(until) = state.caching.break_for(cause, me, concerns, now, breaks) {
                return Err(file.wake(until));
            }
        }
        let Opener { id, access, share, lease, .. } = by;
        let link = state.links.enter(path, only);
        state.users.add(Use { id, link, access, share, lease });
        Ok(())
    }

    /// Fails if a lease is that of another file (MS-SMB2 3.3.5.9.8).
    pub fn check_lease(&self, id: LeaseId, key: Option<FileKey>) -> Result<(), NtStatus> {
        let holder = lock(&self.leases).get(&id).and_then(Weak::upgrade);
        match holder {
            Some(file) if Some(file.key) != key => Err(NtStatus::INVALID_PARAMETER),
            _ => Ok(()),
        }
    }

    /// Grants what can be granted of an oplock or lease to an open.
    pub fn acquire(&self, opened: &Open, want: CachingRequest) -> LeaseState {
        let (file, open, directory) = (&opened.file, opened.opener_id(), opened.directory);
        let mut state = lock(&file.state);
        let lease = match want {
            CachingRequest::Lease { id, .. } => Some(id),
            CachingRequest::Oplock(_) => None,
        };
        let others = state.users.iter().any(|user| {
            let other = user.id != open && (lease.is_none() || user.lease != lease);
            // Who only looks at attributes sees nothing of what is cached.
            let looks = user.access.without(NON_BREAKING_ACCESS) == Access::NONE;
            other && (lease.is_none() || !looks || takes_part(user.access))
        });
        let want = match want {
            // What is to be deleted is not worth keeping open.
            CachingRequest::Lease { id, state: wanted, v2 } if state.is_going(open) => {
                CachingRequest::Lease { id, state: wanted.without(LeaseState::HANDLE), v2 }
            }
            want => want,
        };
        // Locks behind the end are of nothing that could be cached.
        let end = || opened.length().unwrap_or(u64::MAX);
        let locked = state.locks.count() > 0 && state.locks.reach_into(end());
        let granted = state.caching.acquire(open, want, directory, others, locked);
        self.note_caching(file, &mut state);
        drop(state);
        if directory && granted != LeaseState::NONE {
            self.folders_cached.store(true, Ordering::Release);
        }
        if let Some(id) = lease {
            lock(&self.leases).insert(id, Arc::downgrade(file));
        }
        granted
    }

    /// Breaks what `cause` does not go together with. Fails when the doer must wait.
    pub fn break_for(
        &self,
        file: &Arc<OpenFile>,
        cause: BreakReason,
        by: (u64, Option<LeaseId>),
    ) -> Result<(), Refused> {
        self.break_where(file, cause, by, |_, _| true)
    }

    /// As [`OpenFileTable::break_for`], but only what those hold of whom `concerns` says so.
    pub(crate) fn break_where(
        &self,
        file: &Arc<OpenFile>,
        cause: BreakReason,
        by: (u64, Option<LeaseId>),
        concerns: impl Fn(&GrantOwner, &[u64]) -> bool,
    ) -> Result<(), Refused> {
        if !file.is_cached() {
            return Ok(());
        }
        let mut breaks = Vec::new();
        let mut state = lock(&file.state);
        let wait = state.caching.break_for(cause, by, concerns, Instant::now(), &mut breaks);
        self.note_caching(file, &mut state);
        let refused = wait.map(|until| file.wake(until));
        drop(state);
        self.tell(file, breaks);
        refused.map_or(Ok(()), Err)
    }

    /// Tells holders; one that cannot be reached loses what it holds, and with it the opens that
    /// were kept because of it.
    pub(super) fn tell(&self, file: &Arc<OpenFile>, breaks: Vec<Break>) {
        /// Holders that are quickly told.
        const FEW: usize = 64;
        if breaks.len() > FEW {
            aside(|| self.tell_each(file, breaks));
        } else {
            self.tell_each(file, breaks);
        }
    }

    fn tell_each(&self, file: &Arc<OpenFile>, breaks: Vec<Break>) {
        for due in breaks {
            self.breaks.add(due.holder);
            let (weak, holder, to) = (Arc::downgrade(file), due.holder, due.to);
            let awaited: Awaited = Box::new(move || {
                let awaits = |file: Arc<OpenFile>| lock(&file.state).caching.awaits(holder, to);
                !due.acknowledge || weak.upgrade().is_some_and(awaits)
            });
            let told = match due.holder {
                GrantOwner::Lease(id) => {
                    let message = LeaseBreak {
                        epoch: due.epoch,
                        flags: due.acknowledge.into(),
                        key: id.key,
                        current: due.from.0,
                        new: due.to.0,
                    };
                    self.clients.break_lease(id.client, message, awaited)
                }
                GrantOwner::Open(id) => {
                    let level = caching::level_of(due.to);
                    self.open(id).is_some_and(|open| open.break_oplock(level, awaited))
                }
            };
            if told {
                continue;
            }
            let mut state = lock(&file.state);
            if due.acknowledge && state.will_be_back(&due.opens) {
                due.opens.iter().for_each(|open| state.caching.tell_later(*open, Instant::now()));
                self.note_caching(file, &mut state);
                continue;
            }
            // MS-SMB2 3.3.4.7: nothing is left, and with it nothing to come back for.
            state.caching.unreachable(due.holder);
            self.note_caching(file, &mut state);
            drop(state);
            file.changed.notify_waiters();
            for open in due.opens {
                self.disconnected.drop_open(open);
            }
        }
    }

    /// An open that outlived its server had this of what it caches.
    pub fn remembered_again(
        &self,
        open: &Open,
        holder: GrantOwner,
        caching: Option<CachingRecord>,
    ) {
        let id = open.opener_id();
        if let Some(caching) = caching {
            open.file.cached_again(id, holder, caching);
            if open.directory {
                self.folders_cached.store(true, Ordering::Release);
            }
            if let GrantOwner::Lease(lease) = holder {
                lock(&self.leases).insert(lease, Arc::downgrade(&open.file));
            }
        }
        if open.is_in_store() {
            open.file.remembered_again(id, open.is_persistent(), caching);
        }
    }

    /// The holder of a lease has done as told.
    pub fn acknowledge_lease(&self, id: LeaseId, kept: LeaseState) -> Result<LeaseState, NtStatus> {
        let file = lock(&self.leases).get(&id).and_then(Weak::upgrade);
        let file = file.ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
        self.acknowledge(&file, GrantOwner::Lease(id), kept).map_err(|why| match why {
            AckError::NotHeld => NtStatus::OBJECT_NAME_NOT_FOUND,
            AckError::NotBreaking => NtStatus::UNSUCCESSFUL,
            AckError::TooMuch => NtStatus::REQUEST_NOT_ACCEPTED,
        })
    }

    /// A holder has done as told; what is to be given up after that, it is told at once.
    pub fn acknowledge(
        &self,
        file: &Arc<OpenFile>,
        holder: GrantOwner,
        kept: LeaseState,
    ) -> Result<LeaseState, AckError> {
        let mut state = lock(&file.state);
        let result = state.caching.acknowledge(holder, kept);
        let next = state.caching.next_break(holder, Instant::now());
        self.note_caching(file, &mut state);
        drop(state);
        self.tell(file, next.into_iter().collect());
        file.changed.notify_waiters();
        result
    }

    /// Makes an open known.
    pub fn add_open(&self, open: &Arc<Open>) {
        let id = open.opener_id();
        if self.opens.insert(id, Arc::downgrade(open)).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.creates.add(open);
    }

    /// An open by the name it has in its file.
    pub fn open(&self, id: u64) -> Option<Arc<Open>> {
        self.opens.get(&id).and_then(|open| open.upgrade())
    }

    /// An open is closed for good.
    pub fn forget(&self, open: &Open) {
        if self.opens.remove(&open.opener_id()).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        self.creates.forget(open);
    }

    /// Whether a client may cache what is in a folder.
    pub fn any_folder_cached(&self) -> bool {
        self.folders_cached.load(Ordering::Acquire)
    }

    /// Number of opens in the table.
    pub fn open_count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// All opens that are in the table now.
    pub fn all_opens(&self) -> Vec<Arc<Open>> {
        // None of them is dropped, and looks itself up, before all are there.
        let all = || self.opens.iter().filter_map(|open| open.upgrade()).collect();
        if self.open_count() > MANY { aside(all) } else { all() }
    }

    /// Takes an opener away. When it is the last that came by a name and that is to be deleted,
    /// `remove` does it first: nobody opens such a name, so no lock is held meanwhile. A file may have
    /// thousands of streams to go with it, and its entry shares its lock with those of other files.
    pub fn leave(&self, file: &OpenFile, id: u64, remove: impl FnOnce(&Link)) {
        let mut remove = Some(remove);
        let (entry, mut state) = loop {
            // As long as the entry is held nobody opens the file.
            let entry = self.files.entry(file.key);
            let state = lock(&file.state);
            let going = state.goes_with(id).cloned();
            let Some((link, remove)) = going.and_then(|link| Some((link, remove.take()?))) else {
                break (entry, state);
            };
            drop((state, entry));
            remove(&link);
        };
        let link = state.link(id);
        state.users.remove(id);
        state.claim_less();
        state.locks.release_all(id);
        file.count_locks(&state);
        let ended = state.caching.leave(id);
        self.note_caching(file, &mut state);
        if let Some(link) = link {
            state.links.leave(link);
        }
        let last = state.users.is_empty();
        drop(state);
        match entry {
            dashmap::Entry::Occupied(entry) if last => drop(entry.remove()),
            entry => drop(entry),
        }
        if let Some(lease) = ended {
            let mut leases = lock(&self.leases);
            if leases.get(&lease).is_some_and(|at| std::ptr::eq(at.as_ptr(), file)) {
                leases.remove(&lease);
            }
        }
        file.changed.notify_waiters();
    }

    /// Lets other programs have the files again that opens are kept for: the server that comes next
    /// claims them.
    pub fn claim_nothing(&self) {
        for file in &self.files {
            lock(&file.state).claim_nothing();
        }
    }

    /// What each file that is open gives.
    pub(crate) fn each_file<T>(
        &self,
        look: impl Fn(&Arc<OpenFile>) -> Option<Vec<T>> + Send,
    ) -> Vec<T>
    where
        T: Send,
    {
        let all = || self.files.iter().filter_map(|file| look(&file)).flatten().collect();
        if self.open_count() > MANY { aside(all) } else { all() }
    }

    /// Whether the file is open at all.
    pub fn is_open(&self, stat: &Stat) -> bool {
        self.files.contains_key(&key(stat))
    }

    /// The file, if it is open.
    pub fn get(&self, stat: &Stat) -> Option<Arc<OpenFile>> {
        self.files.get(&key(stat)).map(|file| file.clone())
    }

    /// Number of files that are open.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use smb_protocol::msg::create::ShareAccess;

    use super::*;
    use crate::sharing::locks::Range;

    fn join(
        open_files: &OpenFileTable,
        id: u64,
        access: Access,
        share: ShareAccess,
    ) -> Result<Arc<OpenFile>, Refused> {
        let stat = rustix::fs::stat("/").unwrap();
        open_files.join(&stat, &RelPath::root(), opener(id, access, share))
    }

    fn opener(id: u64, access: Access, share: ShareAccess) -> Opener {
        let (lease, overwrites) = (None, Access::NONE);
        Opener { id, access, share, lease, overwrites, smb3: true, anew: None }
    }

    /// Access × sharing of two openers, as MS-FSA 2.1.5.1.2 has it.
    #[test]
    fn sharing_is_symmetric_and_ignores_attribute_opens() {
        let r = Access::READ_DATA;
        let w = Access::WRITE_DATA;
        let all = ShareAccess(7);
        for (first, second, ok) in [
            ((r, ShareAccess::READ), (r, ShareAccess::READ), true),
            ((r, ShareAccess::READ), (w, all), false),
            ((w, all), (r, ShareAccess::READ), false),
            ((w, ShareAccess::NONE), (Access::READ_ATTRIBUTES, ShareAccess::NONE), true),
            ((w, ShareAccess::NONE), (r, all), false),
            ((r, ShareAccess::READ), (Access::DELETE, all), false),
        ] {
            let open_files = OpenFileTable::default();
            let file = join(&open_files, 1, first.0, first.1).unwrap();
            assert_eq!(join(&open_files, 2, second.0, second.1).is_ok(), ok);
            open_files.leave(&file, 1, |_| panic!("not to be deleted"));
            open_files.leave(&file, 2, |_| panic!("not to be deleted"));
            assert_eq!(open_files.file_count(), 0);
        }
    }

    #[test]
    fn locks_of_the_server_are_bounded_and_counted() {
        let open_files = OpenFileTable::default();
        open_files.limit(2, 0);
        let all = ShareAccess(7);
        let file = join(&open_files, 1, Access::READ_DATA, all).unwrap();
        let range = |at| Range::new(at, 1).unwrap();
        assert_eq!(file.lock_range(1, range(0), true), Ok(true));
        assert_eq!(file.lock_range(1, range(0), true), Ok(false));
        assert_eq!(file.lock_range(1, range(1), true), Ok(true));
        assert_eq!(file.lock_range(1, range(2), true), Err(NtStatus::INSUFFICIENT_RESOURCES));
        assert!(file.unlock_range(1, range(0)));
        assert_eq!(file.lock_range(1, range(2), true), Ok(true));
        open_files.leave(&file, 1, |_| panic!("not to be deleted"));
        assert_eq!(open_files.all_locks.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_last_opener_deletes() {
        let open_files = OpenFileTable::default();
        let open = |id| join(&open_files, id, Access::NONE, ShareAccess(7));
        let file = open(1).unwrap();
        open(2).unwrap();
        file.set_delete_pending(1, Some(None));
        assert!(matches!(open(3), Err(Refused::Status(NtStatus::DELETE_PENDING))));
        open_files.leave(&file, 1, |_| panic!("one is left"));
        let mut removed = false;
        open_files.leave(&file, 2, |_| removed = true);
        assert!(removed);
    }

    #[test]
    fn others_open_files_while_one_is_deleted() {
        const MANY: u64 = 500;
        let open_files = Arc::new(OpenFileTable::default());
        let file = join(&open_files, 1, Access::NONE, ShareAccess(7)).unwrap();
        file.set_delete_pending(1, Some(None));
        open_files.leave(&file, 1, |_| {
            let (done, told) = mpsc::channel();
            let others = open_files.clone();
            thread::spawn(move || {
                let opened = (2..MANY).all(|id| {
                    let mut stat = rustix::fs::stat("/").unwrap();
                    stat.st_ino = u64::MAX - id;
                    let by = opener(id, Access::NONE, ShareAccess(7));
                    others.join(&stat, &RelPath::root(), by).is_ok()
                });
                done.send(opened)
            });
            let opened = told.recv_timeout(Duration::from_secs(60));
            assert_eq!(opened, Ok(true), "a file that goes keeps no other from being opened");
            let again = join(&open_files, MANY, Access::NONE, ShareAccess(7));
            assert!(matches!(again, Err(Refused::Status(NtStatus::DELETE_PENDING))));
        });
    }
}
