//! Sessions, their channels and their trees: who is talking, over which connections, and about
//! which share.
//!
//! ```text
//!  Exchange ── Channel ──┐                 one channel for each connection of a session, with a
//!  Exchange ── Channel ──┴─► Session       signing key of its own; all share the cipher keys
//!                               ├─ trees
//!                               └─ opens
//! ```
//!
//! A session ends with its last channel, with LOGOFF, or when another takes its place.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use smb_protocol::{
    Dialect, FileId, NtStatus, SessionId, TreeId,
    crypto::{Cipher, OpeningKey, SealingKey, SigningKey},
    msg::{
        create::Access,
        oplock::{self, OplockBreak},
    },
    security::Sid,
};
use volume::{
    client::{Awaited, Client},
    fs::volume::Volume,
    open::Open,
    users::User,
    work::aside,
};

use crate::{
    breaks::delivery::{self, BreakNotification, Outbox},
    config::Share,
    meters::ShareMeter,
    rpc::pipe::{PIPES_PER_SESSION, Pipe},
    transport::Carrier,
    why_not_rdma::Told,
};

/// An authenticated session (MS-SMB2 3.3.1.8).
#[derive(Debug)]
pub struct Session {
    /// Its name on the wire.
    pub id: SessionId,
    /// Who has logged in.
    pub user: Arc<User>,
    /// Who the user is to access lists: the user first, then groups.
    pub sids: Vec<Sid>,
    /// `Session.SigningKey`: of the channel it began on, and what binding requests are signed
    /// with.
    pub signing: Arc<SigningKey>,
    /// Encrypts and decrypts, where the dialect can; shared by all channels.
    pub sealing: Option<Arc<Sealing>>,
    /// Unsigned requests are refused.
    pub must_sign: bool,
    /// Unencrypted requests are refused.
    pub must_encrypt: bool,
    /// What the connection it began on had negotiated.
    pub origin: NegotiatedContext,
    /// What its client was told of the server's interfaces.
    pub told: Told,
    /// When the right to it ends, as FILETIME; [`NEVER`] if it does not.
    expires: AtomicU64,
    channels: Mutex<Vec<ChannelInfo>>,
    /// The most channels that it had at a time.
    most_channels: AtomicUsize,
    ended: AtomicBool,
    /// Its client logged on again as nobody.
    anonymous: AtomicBool,
    trees: RwLock<ById<TreeId, Arc<Tree>>>,
    opens: RwLock<ById<u64, Entry>>,
    pipes: Mutex<ById<u64, (TreeId, Arc<Pipe>)>>,
    began: Instant,
    /// When it was last used, in seconds after `began`.
    used: AtomicU32,
    next_tree: AtomicU32,
}

/// A table by names that this server gave: nobody outside chooses which of them meet in one place,
/// so a quick hash does.
pub type ById<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

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
    pub sealing: Option<Sealing>,
}

/// Both keys of a session that can be encrypted.
#[derive(Debug)]
pub struct Sealing {
    /// `Session.EncryptionKey`: one for all channels, so no nonce comes twice.
    pub seals: SealingKey,
    /// `Session.DecryptionKey`.
    pub opens: OpeningKey,
}

/// What a logon came to.
#[derive(Debug)]
pub struct Logon {
    /// Name on the wire.
    pub id: SessionId,
    /// Who has logged in.
    pub user: Arc<User>,
    /// The user's identifier, then the groups'.
    pub sids: Vec<Sid>,
    /// Keys.
    pub keys: Keys,
    /// Unsigned requests are refused.
    pub must_sign: bool,
    /// Unencrypted requests are refused.
    pub must_encrypt: bool,
    /// What the connection had negotiated.
    pub origin: NegotiatedContext,
    /// When the right to it ends, as FILETIME, or [`NEVER`].
    pub expires: u64,
}

/// Expiry of a session that does not expire.
pub const NEVER: u64 = u64::MAX;

/// What binding another connection to a session is checked against (MS-SMB2 3.3.5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiatedContext {
    /// The dialect.
    pub dialect: Dialect,
    /// The cipher, if there is one.
    pub cipher: Option<Cipher>,
    /// The client.
    pub client_guid: [u8; 16],
}

/// Names a connection as long as the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A connection of a session.
#[derive(Debug, Clone)]
pub struct ChannelInfo {
    /// The connection.
    pub connection: ConnectionId,
    /// The client's address.
    pub peer: SocketAddr,
    /// What carries it.
    pub carrier: Carrier,
    /// Encrypted data may go by RDMA on it: `Connection.RDMATransformIds` has encryption.
    pub seals_remote: bool,
    /// The way to tell the client something unasked.
    pub outbox: Arc<Outbox>,
}

/// A session as one of its connections sees it.
#[derive(Debug)]
pub struct Channel {
    /// The session.
    pub session: Arc<Session>,
    /// `Channel.SigningKey`: signs and verifies on this connection.
    pub signing: Arc<SigningKey>,
    /// The connection.
    pub connection: ConnectionId,
}

/// Opens that are quickly closed.
const FEW: usize = 16;

/// Connections that one session can have.
const CHANNELS: usize = 32;

/// A connection to a share.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Its name on the wire.
    pub id: TreeId,
    /// The share's name, folded.
    pub name: String,
    /// The share as it was when the tree was connected: a reload changes no tree.
    pub share: Arc<Share>,
    /// The share's folder; `None` for IPC$.
    pub volume: Option<Arc<Volume>>,
    /// Access that opens can have at most.
    pub maximal_access: Access,
    /// Opens may outlive the server, and what is changed is durable before it is answered.
    pub continuous: bool,
    /// Counts what is done with the share; `None` for IPC$.
    pub meter: Option<Arc<ShareMeter>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// A session without channels, trees and opens.
    pub fn new(logon: Logon) -> Self {
        Self {
            id: logon.id,
            user: logon.user,
            sids: logon.sids,
            signing: Arc::new(logon.keys.signing),
            sealing: logon.keys.sealing.map(Arc::new),
            must_sign: logon.must_sign,
            must_encrypt: logon.must_encrypt,
            origin: logon.origin,
            told: Told::default(),
            expires: AtomicU64::new(logon.expires),
            channels: Mutex::default(),
            most_channels: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            anonymous: AtomicBool::new(false),
            trees: RwLock::default(),
            opens: RwLock::default(),
            pipes: Mutex::default(),
            began: Instant::now(),
            used: AtomicU32::new(0),
            next_tree: AtomicU32::new(1),
        }
    }

    /// Adds a connection; fails on a session that has ended or has too many.
    pub fn join(
        self: &Arc<Self>,
        info: ChannelInfo,
        signing: Arc<SigningKey>,
    ) -> Result<Arc<Channel>, NtStatus> {
        let mut channels = lock(&self.channels);
        // Looked at under the lock, so that the last one to leave and a newcomer agree.
        if self.ended() {
            return Err(NtStatus::USER_SESSION_DELETED);
        }
        if channels.len() >= CHANNELS {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let connection = info.connection;
        channels.push(info);
        self.most_channels.fetch_max(channels.len(), Ordering::Relaxed);
        Ok(Arc::new(Channel { session: self.clone(), signing, connection }))
    }

    /// Takes a connection away; `true` if it was the last, with which the session is over.
    pub fn leave(&self, connection: ConnectionId) -> bool {
        let mut channels = lock(&self.channels);
        channels.retain(|channel| channel.connection != connection);
        let last = channels.is_empty();
        if last {
            self.ended.store(true, Ordering::Release);
        }
        last
    }

    /// The most connections that it had at a time.
    pub fn most_channels(&self) -> usize {
        self.most_channels.load(Ordering::Relaxed)
    }

    /// Its connections, the oldest first.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        lock(&self.channels).clone()
    }

    /// Whether the right to it has run out at `now` (FILETIME) and the client must log on again.
    pub fn expired(&self, now: impl FnOnce() -> u64) -> bool {
        match self.expires.load(Ordering::Relaxed) {
            NEVER => false,
            end => now() >= end,
        }
    }

    /// Whether it is nobody's for the time being.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous.load(Ordering::Relaxed)
    }

    /// Takes its user away, or gives it back.
    pub fn set_anonymous(&self, anonymous: bool) {
        self.anonymous.store(anonymous, Ordering::Relaxed);
    }

    /// Prolongs it after another logon.
    pub fn renew(&self, expires: u64) {
        self.expires.store(expires, Ordering::Relaxed);
    }

    /// Ends the session: trees and opens are closed, but for those that are worth keeping;
    /// requests are refused from now on.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.trees.write().unwrap_or_else(PoisonError::into_inner).clear();
        lock(&self.pipes).clear();
        self.close_where(|_| true, true);
    }

    /// Tells the client something about one of its opens, on other connections too as long as it
    /// is `awaited` that it has heard; whether a connection took it (MS-SMB2 3.3.4.6).
    fn tell(
        self: &Arc<Self>,
        message: oplock::Message,
        awaited: impl Fn() -> bool + Send + 'static,
    ) -> bool {
        let session = self.clone();
        let lines = move || lock(&session.channels).iter().map(|c| c.outbox.clone()).collect();
        delivery::tell(lines, BreakNotification { session: Some(self.id), message }, awaited)
    }

    /// Whether the session was ended.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Adds a tree connect, and gives it its number.
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

    /// The shares of its trees, folded.
    pub fn tree_shares(&self) -> Vec<String> {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        let mut shares: Vec<_> = trees.values().map(|tree| tree.name.clone()).collect();
        shares.sort_unstable();
        shares
    }

    /// A tree by name.
    pub fn tree(&self, id: TreeId) -> Option<Arc<Tree>> {
        self.trees.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Takes a tree away and closes its opens.
    pub fn remove_tree(&self, id: TreeId) -> bool {
        let known = self.trees.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        lock(&self.pipes).retain(|_, (tree, _)| *tree != id);
        self.close_where(|tree| tree == id, false);
        known.is_some()
    }

    /// Closes opens; those that are worth it are kept for their client if `keep`.
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
        // Each may have a file to remove, and there may be thousands.
        let close = |Entry { open, .. }: Entry| {
            open.closed.notify_waiters();
            if keep && let Some(time) = open.preserve_time() {
                open.state().client = None;
                open.table().client_left(&open);
                open.note_away(true);
                open.table().clone().disconnected.keep(open, time);
            }
        };
        if closed.len() > FEW {
            aside(|| closed.into_iter().for_each(close));
        } else {
            closed.into_iter().for_each(close);
        }
    }

    /// Fails when one more open would pass the limit.
    pub fn room_for_open(&self, limit: usize) -> Result<(), NtStatus> {
        if self.open_count() >= limit {
            return Err(NtStatus::TOO_MANY_OPENED_FILES);
        }
        Ok(())
    }

    /// Adds an open that was made on a tree.
    pub fn add_open(self: &Arc<Self>, tree: TreeId, open: Arc<Open>) {
        let client: Arc<dyn Client> = self.clone();
        open.state().client = Some(Arc::downgrade(&client));
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

    /// An open by name, with the tree that it was made on.
    pub fn any_open(&self, id: FileId) -> Option<(TreeId, Arc<Open>)> {
        let opens = self.opens.read().unwrap_or_else(PoisonError::into_inner);
        let entry = opens.get(&id.volatile).filter(|entry| entry.open.id == id)?;
        Some((entry.tree, entry.open.clone()))
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

    /// Adds a pipe that was opened on a tree.
    pub fn add_pipe(&self, tree: TreeId, pipe: Arc<Pipe>) -> Result<(), NtStatus> {
        let mut pipes = lock(&self.pipes);
        if pipes.len() >= PIPES_PER_SESSION {
            return Err(NtStatus::TOO_MANY_OPENED_FILES);
        }
        pipes.insert(pipe.id.volatile, (tree, pipe));
        Ok(())
    }

    /// A pipe by name, if it was opened on `tree`.
    pub fn pipe(&self, tree: TreeId, id: FileId) -> Result<Arc<Pipe>, NtStatus> {
        match lock(&self.pipes).get(&id.volatile) {
            Some((on, pipe)) if *on == tree && pipe.id == id => Ok(pipe.clone()),
            _ => Err(NtStatus::FILE_CLOSED),
        }
    }

    /// Takes a pipe away.
    pub fn close_pipe(&self, tree: TreeId, id: FileId) -> Result<(), NtStatus> {
        self.pipe(tree, id)?;
        lock(&self.pipes).remove(&id.volatile);
        Ok(())
    }

    /// How many trees it has on a share, folded.
    pub fn trees_of(&self, share: &str) -> usize {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        trees.values().filter(|tree| tree.name == share).count()
    }

    /// Notes that it is used.
    pub fn touch(&self) {
        self.used.store(self.age().as_secs() as u32, Ordering::Relaxed);
    }

    /// How long it has been there.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// How long it was not used (MS-SMB2 3.3.5.2.8).
    pub fn idle(&self) -> Duration {
        let used = Duration::from_secs(self.used.load(Ordering::Relaxed).into());
        self.age().saturating_sub(used)
    }

    /// Number of opens that it has.
    pub fn open_count(&self) -> usize {
        self.opens.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Client for Session {
    fn id(&self) -> SessionId {
        self.id
    }

    fn ended(&self) -> bool {
        self.ended()
    }

    fn break_oplock(self: Arc<Self>, message: OplockBreak, awaited: Awaited) -> bool {
        self.tell(oplock::Message::Oplock(message), awaited)
    }

    fn close_open(&self, id: FileId) {
        let mut opens = self.opens.write().unwrap_or_else(PoisonError::into_inner);
        let gone = opens.remove(&id.volatile);
        drop(opens);
        if let Some(entry) = gone {
            entry.open.closed.notify_waiters();
        }
    }
}

/// All sessions of the server, by name.
#[derive(Debug, Default)]
pub struct Sessions {
    shards: [Mutex<ById<SessionId, Arc<Session>>>; 16],
}

impl Sessions {
    fn shard(&self, id: SessionId) -> &Mutex<ById<SessionId, Arc<Session>>> {
        &self.shards[(id.0 % 16) as usize]
    }

    /// Adds a session under its id.
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

    /// All sessions, in the order of their names.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).values().cloned());
        }
        all.sort_by_key(|session| session.id);
        all
    }

    /// Number of sessions of the server.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}
