//! One file as all its openers see it: share modes, deletion, byte-range locks and what clients
//! may cache.

pub mod caching;
pub mod links;
pub mod locks;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use rustix::fs::{FileType, Stat};
use smb_protocol::{
    NtStatus,
    msg::{
        context::LeaseState,
        create::{Access, ShareAccess},
        oplock::{self, LeaseBreak},
    },
};
use state_store::{
    Batch, Commit,
    record::{self, CachingRecord, Kind},
};
use tokio::sync::{Notify, futures::OwnedNotified};

use self::{
    caching::{Break, Caching, Cause, Holder, LeaseId, LeaseView, NotSo, Want},
    links::{LinkId, Links},
    locks::{Intent, Locks, Range},
};
use super::{RelPath, changes::Watches, open::Open, stable::Stable};
use crate::{clients::Clients, notices::Notice};

/// Identity of a file on this machine: device and inode.
pub type NodeKey = (u64, u64);

/// Names a create: `CreateGuid` and `ClientGuid`.
pub type CreateKey = ([u8; 16], [u8; 16]);

/// Locks that one file can have.
pub const MAX_LOCKS: usize = 16_384;

/// Key of a file.
pub fn key(stat: &Stat) -> NodeKey {
    (stat.st_dev, stat.st_ino)
}

/// Everything that is open.
#[derive(Debug, Default)]
pub struct Nodes {
    shards: [Mutex<HashMap<NodeKey, Arc<Node>>>; 16],
    opens: [Mutex<HashMap<u64, Weak<Open>>>; 16],
    leases: Mutex<HashMap<LeaseId, Weak<Node>>>,
    /// Creates that a client may repeat, by `CreateGuid` and client.
    creates: Mutex<HashMap<CreateKey, Weak<Open>>>,
    creating: Arc<Mutex<HashSet<CreateKey>>>,
    count: AtomicUsize,
    all_locks: Arc<LockCount>,
    /// Folders that are watched.
    pub watches: Arc<Watches>,
    /// Folders that somebody caches; once there was one it may stay counted.
    folders_cached: AtomicBool,
    /// Who is connected.
    pub clients: Clients,
    /// Opens whose client is away and may come back.
    pub kept: super::kept::Kept,
    /// Opens that outlive the server.
    pub stable: super::stable::Stable,
}

/// Byte-range locks of all files, and how many there may be.
#[derive(Debug)]
struct LockCount {
    held: AtomicUsize,
    most: AtomicUsize,
}

impl Default for LockCount {
    fn default() -> Self {
        Self { held: AtomicUsize::new(0), most: AtomicUsize::new(usize::MAX) }
    }
}

/// A file that is open.
#[derive(Debug)]
pub struct Node {
    key: NodeKey,
    state: Mutex<State>,
    /// Somebody caches something.
    cached: AtomicBool,
    /// Number of byte-range locks.
    locked: AtomicUsize,
    all_locks: Arc<LockCount>,
    /// Told when a break is done, an open or a lock is gone.
    changed: Arc<Notify>,
    /// Times that are shown instead of the system's.
    pub times: super::times::Shown,
}

#[derive(Debug)]
struct State {
    users: Vec<Use>,
    links: Links,
    caching: Caching,
    locks: Locks,
    /// Persistent opens, with what the state store has of their caching.
    remembered: Vec<(u64, Option<CachingRecord>)>,
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
    /// The content is thrown away.
    pub overwrites: bool,
    /// It is told that the file will be back (MS-SMB2 3.3.5.9).
    pub smb3: bool,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    id: u64,
    /// The name that it came by.
    link: LinkId,
    access: Access,
    share: ShareAccess,
    lease: Option<LeaseId>,
}

/// A create in progress that its client may repeat.
#[derive(Debug)]
pub struct Creating {
    all: Arc<Mutex<HashSet<CreateKey>>>,
    key: CreateKey,
}

impl Drop for Creating {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.key);
    }
}

/// Why a file cannot be opened or changed now.
#[derive(Debug)]
pub enum Refused {
    /// With this status.
    Status(NtStatus),
    /// A client was told to give up what it caches; try again then.
    Wait(Wake),
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
}

impl Wake {
    /// Waits for the next change of a file, at most until then.
    pub fn new(again: Arc<Notify>, until: Instant) -> Self {
        Self { changed: again.clone().notified_owned(), until, again }
    }
}

impl From<NtStatus> for Refused {
    fn from(status: NtStatus) -> Self {
        Self::Status(status)
    }
}

/// Rights that take part in sharing; an opener with none of them neither blocks nor is blocked
/// (MS-FSA 2.1.5.1.2).
const READS: Access = Access(Access::READ_DATA.0 | Access::EXECUTE.0);
const WRITES: Access = Access(Access::WRITE_DATA.0 | Access::APPEND_DATA.0);
/// Who asks for no more than this leaves caches alone (MS-FSA 2.1.4.12).
const LOOKS: Access = Access(
    Access::READ_ATTRIBUTES.0 | Access::WRITE_ATTRIBUTES.0 | Access::SYNCHRONIZE.0 | BESIDE.0,
);

/// Marks the opener of a stream among those of its file: it takes part in the sharing of deletion
/// and of nothing else (MS-FSA 2.1.5.1.2.1). No client can ask for this bit.
pub const BESIDE: Access = Access(0x0800_0000);

fn conflicts(access: Access, share: ShareAccess) -> bool {
    access.any(READS) && !share.has(ShareAccess::READ)
        || access.any(WRITES) && !share.has(ShareAccess::WRITE)
        || access.has(Access::DELETE) && !share.has(ShareAccess::DELETE)
}

fn takes_part(access: Access) -> bool {
    access.any(READS.or(WRITES).or(Access::DELETE).or(BESIDE))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    fn shard(&self, key: NodeKey) -> &Mutex<HashMap<NodeKey, Arc<Node>>> {
        &self.shards[(key.1 % 16) as usize]
    }

    fn opens(&self, id: u64) -> &Mutex<HashMap<u64, Weak<Open>>> {
        &self.opens[(id % 16) as usize]
    }

    /// Says how many byte-range locks and opens of absent clients there may be.
    pub fn limit(&self, locks: usize, kept_opens: usize) {
        self.all_locks.most.store(locks, Ordering::Relaxed);
        self.kept.limit(kept_opens);
        self.stable.limit(kept_opens);
    }

    /// Adds an opener if those that are there agree; asks them to give up what they cache first.
    pub fn join(&self, stat: &Stat, path: &RelPath, by: Opener) -> Result<Arc<Node>, Refused> {
        let mut breaks = Vec::new();
        let mut shard = lock(self.shard(key(stat)));
        let node =
            shard.entry(key(stat)).or_insert_with(|| Node::new(key(stat), self.all_locks.clone()));
        let node = node.clone();
        let mut state = lock(&node.state);
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let way = (path, folder || stat.st_nlink <= 1);
        let joined = self.admit(&node, &mut state, way, by, &mut breaks);
        state.note_caching(&self.stable);
        node.cached.store(!state.caching.is_empty(), Ordering::Release);
        drop(state);
        drop(shard);
        self.tell(&node, breaks);
        joined.map(|()| node)
    }

    fn admit(
        &self,
        node: &Arc<Node>,
        state: &mut State,
        (path, only): (&RelPath, bool),
        by: Opener,
        breaks: &mut Vec<Break>,
    ) -> Result<(), Refused> {
        if state.links.is_going(path, only) {
            return Err(NtStatus::DELETE_PENDING.into());
        }
        if state.remembered.iter().any(|(id, _)| self.kept.has(*id)) {
            // Its client will be back, and what it caches is not taken away meanwhile.
            return Err(match by.smb3 {
                true => NtStatus::FILE_NOT_AVAILABLE.into(),
                false => NtStatus::SHARING_VIOLATION.into(),
            });
        }
        if let Some(id) = by.lease {
            self.check_lease(id, Some(node.key))?;
        }
        let me = (by.id, by.lease);
        let now = Instant::now();
        if takes_part(by.access) {
            let hinders = |other: &&Use| {
                takes_part(other.access)
                    && (conflicts(by.access, other.share) || conflicts(other.access, by.share))
            };
            let hindering: Vec<u64> = state.users.iter().filter(hinders).map(|u| u.id).collect();
            if !hindering.is_empty() {
                let concerns =
                    |_: &Holder, opens: &[u64]| opens.iter().any(|open| hindering.contains(open));
                let wait = state.caching.break_for(Cause::Sharing, me, concerns, now, breaks);
                return Err(match wait {
                    Some(until) => node.wake(until),
                    None => NtStatus::SHARING_VIOLATION.into(),
                });
            }
        }
        let looks = by.access.without(LOOKS) == Access::NONE;
        let looks_closely = by.access.without(LOOKS.or(Access::READ_CONTROL)) == Access::NONE;
        if !looks {
            let cause = if by.overwrites { Cause::Overwrite } else { Cause::Open };
            let concerns =
                |holder: &Holder, _: &[u64]| !looks_closely || matches!(holder, Holder::Open(_));
            if let Some(until) = state.caching.break_for(cause, me, concerns, now, breaks) {
                return Err(node.wake(until));
            }
        }
        let Opener { id, access, share, lease, .. } = by;
        let link = state.links.enter(path, only);
        state.users.push(Use { id, link, access, share, lease });
        Ok(())
    }

    /// Fails if a lease is that of another file (MS-SMB2 3.3.5.9.8).
    pub fn check_lease(&self, id: LeaseId, key: Option<NodeKey>) -> Result<(), NtStatus> {
        let holder = lock(&self.leases).get(&id).and_then(Weak::upgrade);
        match holder {
            Some(node) if Some(node.key) != key => Err(NtStatus::INVALID_PARAMETER),
            _ => Ok(()),
        }
    }

    /// Grants what can be granted of an oplock or lease to an open.
    pub fn acquire(&self, node: &Arc<Node>, open: u64, want: Want, directory: bool) -> LeaseState {
        let mut state = lock(&node.state);
        let lease = match want {
            Want::Lease { id, .. } => Some(id),
            Want::Oplock(_) => None,
        };
        let others = state.users.iter().any(|user| {
            let other = user.id != open && (lease.is_none() || user.lease != lease);
            other && (lease.is_none() || takes_part(user.access))
        });
        let want = match want {
            // What is to be deleted is not worth keeping open.
            Want::Lease { id, state: wanted, v2 } if state.is_going(open) => {
                Want::Lease { id, state: wanted.without(LeaseState::HANDLE), v2 }
            }
            want => want,
        };
        let locked = state.locks.len() > 0;
        let granted = state.caching.acquire(open, want, directory, others, locked);
        state.note_caching(&self.stable);
        node.cached.store(!state.caching.is_empty(), Ordering::Release);
        drop(state);
        if directory && granted != LeaseState::NONE {
            self.folders_cached.store(true, Ordering::Release);
        }
        if let Some(id) = lease {
            lock(&self.leases).insert(id, Arc::downgrade(node));
        }
        granted
    }

    /// Breaks what `cause` does not go together with. Fails when the doer must wait.
    pub fn break_for(
        &self,
        node: &Arc<Node>,
        cause: Cause,
        by: (u64, Option<LeaseId>),
    ) -> Result<(), Refused> {
        if !node.cached.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut breaks = Vec::new();
        let mut state = lock(&node.state);
        let wait = state.caching.break_for(cause, by, |_, _| true, Instant::now(), &mut breaks);
        state.note_caching(&self.stable);
        let refused = wait.map(|until| node.wake(until));
        node.cached.store(!state.caching.is_empty(), Ordering::Release);
        drop(state);
        self.tell(node, breaks);
        refused.map_or(Ok(()), Err)
    }

    /// Tells holders; one that cannot be reached loses what it holds, and with it the opens that
    /// were kept because of it.
    fn tell(&self, node: &Node, breaks: Vec<Break>) {
        for due in breaks {
            let told = match due.holder {
                Holder::Lease(id) => {
                    let message = oplock::Message::LeaseBreak(LeaseBreak {
                        epoch: due.epoch,
                        flags: due.acknowledge.into(),
                        key: id.key,
                        current: due.from.0,
                        new: due.to.0,
                    });
                    self.clients.tell(id.client, Notice { session: None, message })
                }
                Holder::Open(id) => {
                    let level = caching::level_of(due.to);
                    self.open(id).is_some_and(|open| open.break_oplock(level))
                }
            };
            if told {
                continue;
            }
            // MS-SMB2 3.3.4.7: nothing is left, and with it nothing to come back for.
            let mut state = lock(&node.state);
            state.caching.unreachable(due.holder);
            state.note_caching(&self.stable);
            drop(state);
            node.changed.notify_waiters();
            for open in due.opens {
                self.kept.drop_open(open);
            }
        }
    }

    /// An open that outlived its server had this of what it caches.
    pub fn remembered_again(&self, open: &Open, holder: Holder, caching: Option<CachingRecord>) {
        open.node.remembered_again(open.node_id(), open.is_persistent(), holder, caching);
        if let (Holder::Lease(id), Some(_)) = (holder, caching) {
            lock(&self.leases).insert(id, Arc::downgrade(&open.node));
        }
    }

    /// The holder of a lease has done as told.
    pub fn acknowledge_lease(&self, id: LeaseId, kept: LeaseState) -> Result<LeaseState, NtStatus> {
        let node = lock(&self.leases).get(&id).and_then(Weak::upgrade);
        let node = node.ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
        self.acknowledge(&node, Holder::Lease(id), kept).map_err(|why| match why {
            NotSo::NotHeld => NtStatus::OBJECT_NAME_NOT_FOUND,
            NotSo::NotBreaking => NtStatus::UNSUCCESSFUL,
            NotSo::TooMuch => NtStatus::REQUEST_NOT_ACCEPTED,
        })
    }

    /// A holder has done as told; what is to be given up after that, it is told at once.
    pub fn acknowledge(
        &self,
        node: &Node,
        holder: Holder,
        kept: LeaseState,
    ) -> Result<LeaseState, NotSo> {
        let mut state = lock(&node.state);
        let result = state.caching.acknowledge(holder, kept);
        let next = state.caching.next_break(holder, Instant::now());
        state.note_caching(&self.stable);
        node.cached.store(!state.caching.is_empty(), Ordering::Release);
        drop(state);
        self.tell(node, next.into_iter().collect());
        node.changed.notify_waiters();
        result
    }

    /// Makes an open known.
    pub fn add_open(&self, open: &Arc<Open>) {
        let id = open.node_id();
        if lock(self.opens(id)).insert(id, Arc::downgrade(open)).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(guid) = open.origin.create_guid {
            lock(&self.creates).insert((guid, open.origin.client), Arc::downgrade(open));
        }
    }

    /// An open by the name it has in its node.
    pub fn open(&self, id: u64) -> Option<Arc<Open>> {
        lock(self.opens(id)).get(&id).and_then(Weak::upgrade)
    }

    /// A create waits for others; it is in progress as long as the result lives.
    pub fn begin_create(&self, key: CreateKey) -> Creating {
        lock(&self.creating).insert(key);
        Creating { all: self.creating.clone(), key }
    }

    /// Whether a create is in progress.
    pub fn is_creating(&self, key: CreateKey) -> bool {
        lock(&self.creating).contains(&key)
    }

    /// The open that a create made, if it is still there.
    pub fn created(&self, key: CreateKey) -> Option<Arc<Open>> {
        lock(&self.creates).get(&key).and_then(Weak::upgrade)
    }

    /// An open is closed for good.
    pub fn forget(&self, open: &Open) {
        if lock(self.opens(open.node_id())).remove(&open.node_id()).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(guid) = open.origin.create_guid {
            let mut creates = lock(&self.creates);
            let key = (guid, open.origin.client);
            if creates.get(&key).is_some_and(|at| std::ptr::eq(at.as_ptr(), open)) {
                creates.remove(&key);
            }
        }
    }

    /// Whether a client may cache what is in a folder.
    pub fn any_folder_cached(&self) -> bool {
        self.folders_cached.load(Ordering::Acquire)
    }

    /// Number of opens.
    pub fn open_count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// All opens.
    pub fn all_opens(&self) -> Vec<Arc<Open>> {
        let shards = self.opens.iter();
        shards
            .flat_map(|shard| lock(shard).values().filter_map(Weak::upgrade).collect::<Vec<_>>())
            .collect()
    }

    /// Takes an opener away. When it was the last that came by a name and that is to be deleted,
    /// `remove` does it, before anyone can open it again.
    pub fn leave(&self, node: &Node, id: u64, remove: impl FnOnce(&RelPath)) {
        let mut shard = lock(self.shard(node.key));
        let mut state = lock(&node.state);
        let link = state.link(id);
        state.users.retain(|user| user.id != id);
        state.locks.release_all(id);
        node.count_locks(&state);
        let ended = state.caching.leave(id);
        state.note_caching(&self.stable);
        node.cached.store(!state.caching.is_empty(), Ordering::Release);
        if let Some(left) = link.and_then(|link| state.links.leave(link))
            && left.delete_pending
            && !left.gone
        {
            remove(&left.path);
        }
        if state.users.is_empty() {
            shard.remove(&node.key);
        }
        drop(state);
        drop(shard);
        if let Some(lease) = ended {
            let mut leases = lock(&self.leases);
            if leases.get(&lease).is_some_and(|at| std::ptr::eq(at.as_ptr(), node)) {
                leases.remove(&lease);
            }
        }
        node.changed.notify_waiters();
    }

    /// Whether anything strictly below `folder` is open.
    pub fn any_below(&self, device: u64, folder: &RelPath) -> bool {
        self.shards.iter().any(|shard| {
            lock(shard).values().any(|node| {
                let below = || lock(&node.state).links.iter().any(|at| at.path.is_below(folder));
                node.key.0 == device && below()
            })
        })
    }

    /// Whether the file is open at all.
    pub fn is_open(&self, stat: &Stat) -> bool {
        lock(self.shard(key(stat))).contains_key(&key(stat))
    }

    /// The file, if it is open.
    pub fn get(&self, stat: &Stat) -> Option<Arc<Node>> {
        lock(self.shard(key(stat))).get(&key(stat)).cloned()
    }

    /// Number of files that are open.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

impl State {
    /// The name that an opener came by.
    fn link(&self, open: u64) -> Option<LinkId> {
        self.users.iter().find(|user| user.id == open).map(|user| user.link)
    }

    /// Whether the name that an opener came by is to go.
    fn is_going(&self, open: u64) -> bool {
        let link = self.link(open).and_then(|link| self.links.get(link));
        link.is_some_and(|link| link.delete_pending)
    }

    /// Puts what clients of persistent opens may cache into the state store, where it has changed,
    /// in the order in which it changes.
    fn note_caching(&mut self, stable: &Stable) {
        if self.remembered.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        for (open, known) in &mut self.remembered {
            let now = self.caching.held(*open);
            if now != *known {
                let key = record::key(Kind::Caching, *open);
                batch = match &now {
                    Some(caching) => batch.put(key, caching.to_bytes()),
                    None => batch.delete(key),
                };
                *known = now;
            }
        }
        if !batch.is_empty() {
            stable.queue(batch);
        }
    }
}

impl Node {
    fn new(key: NodeKey, all_locks: Arc<LockCount>) -> Arc<Self> {
        let state = State {
            users: Vec::new(),
            links: Links::default(),
            caching: Caching::default(),
            locks: Locks::default(),
            remembered: Vec::new(),
        };
        Arc::new(Self {
            key,
            state: Mutex::new(state),
            cached: AtomicBool::new(false),
            locked: AtomicUsize::new(0),
            all_locks,
            changed: Arc::default(),
            times: super::times::Shown::default(),
        })
    }

    /// An open is persistent from now on: `batch` says so, and what it caches goes with it.
    pub fn remember(&self, open: u64, stable: &Stable, mut batch: Batch) -> Commit {
        let mut state = lock(&self.state);
        let caching = state.caching.held(open);
        if let Some(caching) = &caching {
            batch = batch.put(record::key(Kind::Caching, open), caching.to_bytes());
        }
        state.remembered.push((open, caching));
        stable.commit(batch)
    }

    /// What an open caches, as it would be remembered.
    pub fn caching_record(&self, open: u64) -> Option<CachingRecord> {
        lock(&self.state).caching.held(open)
    }

    /// An open that outlived its server had this of what it caches, and the state store has it if
    /// the open is persistent.
    fn remembered_again(
        &self,
        open: u64,
        persistent: bool,
        holder: Holder,
        caching: Option<CachingRecord>,
    ) {
        let mut state = lock(&self.state);
        if let Some(caching) = caching {
            state.caching.restore(open, holder, LeaseState(caching.state), caching.v2);
            self.cached.store(true, Ordering::Release);
        }
        if persistent {
            state.remembered.push((open, caching));
        }
    }

    /// An open is no longer persistent.
    pub fn forget(&self, open: u64) {
        lock(&self.state).remembered.retain(|(id, _)| *id != open);
    }

    /// Its persistent opens.
    pub fn remembered(&self) -> Vec<u64> {
        lock(&self.state).remembered.iter().map(|(id, _)| *id).collect()
    }

    /// Which file it is.
    pub fn key(&self) -> NodeKey {
        self.key
    }

    fn wake(&self, until: Instant) -> Refused {
        Refused::Wait(Wake::new(self.changed.clone(), until))
    }

    /// Resolves when something has changed.
    pub fn changed(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }

    /// Waits for the next change, at most until then.
    pub fn wake_by(&self, until: Instant) -> Wake {
        Wake::new(self.changed.clone(), until)
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

    fn count_locks(&self, state: &State) {
        let now = state.locks.len();
        let before = self.locked.swap(now, Ordering::AcqRel);
        // Wraps where there are fewer now.
        self.all_locks.held.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Takes a lock if nothing forbids it; whether it was taken.
    pub fn lock_range(&self, open: u64, range: Range, exclusive: bool) -> Result<bool, NtStatus> {
        let mut state = lock(&self.state);
        let LockCount { held, most } = &*self.all_locks;
        let full = held.load(Ordering::Relaxed) >= most.load(Ordering::Relaxed);
        if full || state.locks.len() >= MAX_LOCKS {
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

    /// Marks the name that an opener came by to be deleted when the last who did leaves, or takes
    /// that back (MS-FSA 2.1.5.15.3).
    pub fn set_delete_pending(&self, open: u64, pending: bool) {
        let mut state = lock(&self.state);
        if let Some(link) = state.link(open).and_then(|link| state.links.get_mut(link)) {
            link.delete_pending = pending;
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

    /// Whether someone has it open in a way that does not go together with this.
    pub fn forbids(&self, access: Access, share: ShareAccess) -> bool {
        lock(&self.state).users.iter().any(|other| {
            takes_part(other.access)
                && (conflicts(access, other.share) || conflicts(other.access, share))
        })
    }

    /// Whether openers other than `id` forbid that the file is deleted or renamed.
    pub fn others_forbid_delete(&self, id: u64) -> bool {
        lock(&self.state).users.iter().any(|user| {
            user.id != id && takes_part(user.access) && !user.share.has(ShareAccess::DELETE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(
        nodes: &Nodes,
        id: u64,
        access: Access,
        share: ShareAccess,
    ) -> Result<Arc<Node>, Refused> {
        let stat = rustix::fs::stat("/").unwrap();
        let by = Opener { id, access, share, lease: None, overwrites: false, smb3: true };
        nodes.join(&stat, &RelPath::root(), by)
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
            let nodes = Nodes::default();
            let node = join(&nodes, 1, first.0, first.1).unwrap();
            assert_eq!(join(&nodes, 2, second.0, second.1).is_ok(), ok);
            nodes.leave(&node, 1, |_| panic!("not to be deleted"));
            nodes.leave(&node, 2, |_| panic!("not to be deleted"));
            assert_eq!(nodes.len(), 0);
        }
    }

    #[test]
    fn locks_of_the_server_are_bounded_and_counted() {
        let nodes = Nodes::default();
        nodes.limit(2, 0);
        let all = ShareAccess(7);
        let node = join(&nodes, 1, Access::READ_DATA, all).unwrap();
        let range = |at| Range::new(at, 1).unwrap();
        assert_eq!(node.lock_range(1, range(0), true), Ok(true));
        assert_eq!(node.lock_range(1, range(0), true), Ok(false));
        assert_eq!(node.lock_range(1, range(1), true), Ok(true));
        assert_eq!(node.lock_range(1, range(2), true), Err(NtStatus::INSUFFICIENT_RESOURCES));
        assert!(node.unlock_range(1, range(0)));
        assert_eq!(node.lock_range(1, range(2), true), Ok(true));
        nodes.leave(&node, 1, |_| panic!("not to be deleted"));
        assert_eq!(nodes.all_locks.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_last_opener_deletes() {
        let nodes = Nodes::default();
        let open = |id| join(&nodes, id, Access::NONE, ShareAccess(7));
        let node = open(1).unwrap();
        open(2).unwrap();
        node.set_delete_pending(1, true);
        assert!(matches!(open(3), Err(Refused::Status(NtStatus::DELETE_PENDING))));
        nodes.leave(&node, 1, |_| panic!("one is left"));
        let mut removed = false;
        nodes.leave(&node, 2, |_| removed = true);
        assert!(removed);
    }
}
