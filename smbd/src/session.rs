//! Sessions and trees: who is talking, and about which share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use smb_protocol::{
    FileId, NtStatus, SessionId, TreeId,
    crypto::{OpeningKey, SealingKey, SigningKey},
    msg::{
        create::Access,
        oplock::{self, LeaseBreak, OplockBreak},
    },
    security::Sid,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::volume::{
    Volume,
    node::caching::{self, Break, Holder},
    open::Open,
};

/// An authenticated session.
#[derive(Debug)]
pub struct Session {
    /// Its name on the wire.
    pub id: SessionId,
    /// The user, folded.
    pub user: String,
    /// Who the user is to access lists: the user first, then groups.
    pub sids: Vec<Sid>,
    /// Signs and verifies.
    pub signing: SigningKey,
    /// Encrypts and decrypts, where the dialect can.
    pub sealing: Option<(SealingKey, OpeningKey)>,
    /// Unsigned requests are refused.
    pub must_sign: bool,
    /// Unencrypted requests are refused.
    pub must_encrypt: bool,
    ended: AtomicBool,
    trees: RwLock<HashMap<TreeId, Arc<Tree>>>,
    opens: RwLock<HashMap<u64, Entry>>,
    next_tree: AtomicU32,
    links: Mutex<Vec<Link>>,
}

/// A connection that carries a session.
#[derive(Debug)]
struct Link {
    connection: u64,
    notices: UnboundedSender<Notice>,
}

/// Something that a client is told unasked.
#[derive(Debug, Clone, Copy)]
pub struct Notice {
    /// The session it is about.
    pub session: SessionId,
    /// What.
    pub message: oplock::Message,
}

#[derive(Debug, Clone)]
struct Entry {
    tree: TreeId,
    open: Arc<Open>,
}

/// What a session is made of.
#[derive(Debug)]
pub struct Keys {
    /// Signs and verifies.
    pub signing: SigningKey,
    /// Encrypts and decrypts.
    pub sealing: Option<(SealingKey, OpeningKey)>,
}

/// A connection to a share.
#[derive(Debug)]
pub struct Tree {
    /// Its name on the wire.
    pub id: TreeId,
    /// Share name, folded.
    pub share: String,
    /// The share's folder; `None` for IPC$.
    pub volume: Option<Arc<Volume>>,
    /// Access that opens can have at most.
    pub maximal_access: Access,
    /// Unencrypted requests are refused.
    pub must_encrypt: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// A session without trees and opens.
    pub fn new(
        id: SessionId,
        user: String,
        sids: Vec<Sid>,
        keys: Keys,
        must_sign: bool,
        must_encrypt: bool,
    ) -> Self {
        Self {
            id,
            user,
            sids,
            signing: keys.signing,
            sealing: keys.sealing,
            must_sign,
            must_encrypt,
            ended: AtomicBool::new(false),
            trees: RwLock::default(),
            opens: RwLock::default(),
            next_tree: AtomicU32::new(1),
            links: Mutex::default(),
        }
    }

    /// Ends the session: trees and opens are closed, but for those that are worth keeping;
    /// requests are refused from now on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.trees.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.close_where(|_| true, true);
    }

    /// The connection carries the session from now on.
    pub fn link(&self, connection: u64, notices: UnboundedSender<Notice>) {
        lock(&self.links).push(Link { connection, notices });
    }

    /// The connection is gone; whether any is left.
    pub fn unlink(&self, connection: u64) -> bool {
        let mut links = lock(&self.links);
        links.retain(|link| link.connection != connection);
        !links.is_empty()
    }

    /// Tells the client to give up caching; whether a connection took it (MS-SMB2 3.3.4.6).
    pub fn tell(&self, open: FileId, due: &Break) -> bool {
        let message = match due.holder {
            Holder::Open(_) => oplock::Message::Oplock(OplockBreak {
                level: caching::level_of(due.to),
                file_id: open,
            }),
            Holder::Lease(id) => oplock::Message::LeaseBreak(LeaseBreak {
                epoch: due.epoch,
                flags: due.acknowledge.into(),
                key: id.key,
                current: due.from.0,
                new: due.to.0,
            }),
        };
        let notice = Notice { session: self.id, message };
        lock(&self.links).iter().any(|link| link.notices.send(notice).is_ok())
    }

    /// Whether the session was ended.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Adds a tree.
    pub fn add_tree(
        &self,
        limit: usize,
        make: impl FnOnce(TreeId) -> Tree,
    ) -> Result<Arc<Tree>, NtStatus> {
        let mut trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        if trees.len() >= limit {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let tree = Arc::new(make(TreeId(self.next_tree.fetch_add(1, Ordering::Relaxed))));
        trees.insert(tree.id, tree.clone());
        Ok(tree)
    }

    /// A tree by name.
    pub fn tree(&self, id: TreeId) -> Option<Arc<Tree>> {
        self.trees.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Takes a tree away and closes its opens.
    pub fn remove_tree(&self, id: TreeId) -> bool {
        let known = self.trees.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.close_where(|tree| tree == id, false);
        known.is_some()
    }

    fn close_where(&self, which: impl Fn(TreeId) -> bool, keep: bool) {
        let mut opens = self.opens.write().unwrap_or_else(PoisonError::into_inner);
        let mut closed = Vec::new();
        opens.retain(|_, entry| {
            let close = which(entry.tree);
            if close {
                closed.push(entry.clone());
            }
            !close
        });
        drop(opens);
        for Entry { open, .. } in closed {
            open.closed.notify_waiters();
            if keep && let Some(time) = open.worth_keeping() {
                open.standing().session = Weak::new();
                open.nodes().clone().kept.keep(open, time);
            }
        }
    }

    /// Fails when one more open would pass the limit.
    pub fn room_for_open(&self, limit: usize) -> Result<(), NtStatus> {
        if self.open_count() >= limit {
            return Err(NtStatus::TOO_MANY_OPENED_FILES);
        }
        Ok(())
    }

    /// Adds an open.
    pub fn add_open(self: &Arc<Self>, tree: TreeId, open: Arc<Open>) {
        open.standing().session = Arc::downgrade(self);
        let mut opens = self.opens.write().unwrap_or_else(PoisonError::into_inner);
        opens.insert(open.id.volatile, Entry { tree, open });
    }

    /// An open by name, if it was made on `tree`.
    pub fn open(&self, tree: TreeId, id: FileId) -> Result<Arc<Open>, NtStatus> {
        let opens = self.opens.read().unwrap_or_else(PoisonError::into_inner);
        match opens.get(&id.volatile) {
            Some(entry) if entry.tree == tree && entry.open.id == id => Ok(entry.open.clone()),
            _ => Err(NtStatus::FILE_CLOSED),
        }
    }

    /// Takes an open away.
    pub fn close(&self, tree: TreeId, id: FileId) -> Result<Arc<Open>, NtStatus> {
        let open = self.open(tree, id)?;
        let mut opens = self.opens.write().unwrap_or_else(PoisonError::into_inner);
        match opens.remove(&id.volatile) {
            Some(_) => Ok(open),
            None => Err(NtStatus::FILE_CLOSED),
        }
    }

    /// Closes an open on whatever tree.
    pub fn close_open(&self, id: FileId) {
        let mut opens = self.opens.write().unwrap_or_else(PoisonError::into_inner);
        let gone = opens.remove(&id.volatile);
        drop(opens);
        if let Some(entry) = gone {
            entry.open.closed.notify_waiters();
        }
    }

    /// Number of opens.
    pub fn open_count(&self) -> usize {
        self.opens.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// All sessions of the server, by name.
#[derive(Debug, Default)]
pub struct Sessions {
    shards: [Mutex<HashMap<SessionId, Arc<Session>>>; 16],
}

impl Sessions {
    fn shard(&self, id: SessionId) -> &Mutex<HashMap<SessionId, Arc<Session>>> {
        &self.shards[(id.0 % 16) as usize]
    }

    /// Adds a session.
    pub fn add(&self, session: Arc<Session>) {
        lock(self.shard(session.id)).insert(session.id, session);
    }

    /// Takes a session away and ends it.
    pub fn end(&self, id: SessionId) {
        let session = lock(self.shard(id)).remove(&id);
        if let Some(session) = session {
            session.end();
        }
    }

    /// A session by name.
    pub fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        lock(self.shard(id)).get(&id).cloned()
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}
