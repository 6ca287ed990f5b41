//! Sessions and trees: who is talking, and about which share.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use smb_protocol::{
    FileId, NtStatus, SessionId, TreeId,
    crypto::{OpeningKey, SealingKey, SigningKey},
    msg::create::Access,
    security::Sid,
};

use crate::volume::{Volume, open::Open};

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
    opens_of_server: Arc<AtomicUsize>,
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
        opens_of_server: Arc<AtomicUsize>,
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
            opens_of_server,
        }
    }

    /// Ends the session: trees and opens are closed, requests are refused from now on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.trees.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.close_where(|_| true);
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
        self.close_where(|tree| tree == id);
        known.is_some()
    }

    fn close_where(&self, which: impl Fn(TreeId) -> bool) {
        let mut opens = self.opens.write().unwrap_or_else(PoisonError::into_inner);
        let mut closed = Vec::new();
        opens.retain(|_, entry| {
            let close = which(entry.tree);
            if close {
                closed.push(entry.clone());
            }
            !close
        });
        self.opens_of_server.fetch_sub(closed.len(), Ordering::Relaxed);
        drop(opens);
        for entry in closed {
            entry.open.closed.notify_waiters();
        }
    }

    /// Fails when one more open would pass a limit.
    pub fn room_for_open(&self, of_session: usize, of_server: usize) -> Result<(), NtStatus> {
        let mine = self.opens.read().unwrap_or_else(PoisonError::into_inner).len();
        let all = self.opens_of_server.load(Ordering::Relaxed);
        if mine >= of_session || all >= of_server {
            return Err(NtStatus::TOO_MANY_OPENED_FILES);
        }
        Ok(())
    }

    /// Adds an open.
    pub fn add_open(&self, tree: TreeId, open: Arc<Open>) {
        self.opens_of_server.fetch_add(1, Ordering::Relaxed);
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

    /// An open by name, on whichever tree it was made.
    pub fn any_open(&self, id: FileId) -> Option<Arc<Open>> {
        let opens = self.opens.read().unwrap_or_else(PoisonError::into_inner);
        opens.get(&id.volatile).filter(|entry| entry.open.id == id).map(|entry| entry.open.clone())
    }

    /// Takes an open away.
    pub fn close(&self, tree: TreeId, id: FileId) -> Result<Arc<Open>, NtStatus> {
        let open = self.open(tree, id)?;
        let mut opens = self.opens.write().unwrap_or_else(PoisonError::into_inner);
        match opens.remove(&id.volatile) {
            Some(_) => {
                self.opens_of_server.fetch_sub(1, Ordering::Relaxed);
                Ok(open)
            }
            None => Err(NtStatus::FILE_CLOSED),
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
