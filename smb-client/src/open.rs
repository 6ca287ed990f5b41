//! An open of a file that outlives connections.
//!
//! The open is asked to be durable: a batch oplock and a durable context, of version 2 with
//! SMB 3 (persistent where the share is continuously available), of version 1 with 2.1. Breaks
//! of the oplock are acknowledged at once, as nothing is cached here.
//!
//! Two counters keep the flush barrier: writes acknowledged, and how many of them had been when
//! the last successful flush began. If the server has lost the open while they differ, some of
//! those writes may be gone, and the open fails for good with [`Error::WritesLost`]. From the
//! moment that is decided, acknowledgements of the lost connection that are still on their way
//! to a caller no longer count: those writes are sent again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use smb_protocol::{
    Command, Dialect, FileId, HeaderFlags, NtStatus, TreeId,
    crypto::random,
    fscc::FileAttributes,
    msg::{
        close,
        context::{self, AppVersion, DurableV2, ReconnectV2, find, names},
        create::{self, Access, CreateOptions, Disposition, RawContext, ShareAccess},
        oplock::OplockLevel,
        tree_connect::ShareCapabilities,
    },
};
use tokio::time::Instant;

use crate::{
    Create, Error, OpenOptions, Result, Share,
    connection::{Connection, Cost},
    rules::Rule,
    session::{ConnectedTree, Inner, Link, Restore, expect},
    url::is_path_part,
};

/// How long to wait before asking again for a file that is not available yet.
const NOT_AVAILABLE_PAUSE: Duration = Duration::from_millis(250);
/// How long to wait before something is repeated whose first copy is in progress.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// What `ImpersonationLevel` is always asked for.
pub(crate) const IMPERSONATION: u32 = 2;

/// An open file, whatever connection it is on.
#[derive(Debug)]
pub(crate) struct Open {
    pub session: Arc<Inner>,
    share: String,
    pub path: String,
    pub options: OpenOptions,
    create_guid: Mutex<[u8; 16]>,
    slot: RwLock<Place>,
    /// Held by who takes the open up again.
    restoring: tokio::sync::Mutex<()>,
    acknowledged: AtomicU64,
    flushed: AtomicU64,
}

#[derive(Debug)]
struct Place {
    slot: Slot,
    /// The open is being taken up again: acknowledgements of the old connection do not count.
    stale: bool,
}

#[derive(Clone, Debug)]
enum Slot {
    Live(Live),
    Lost(Error),
    Closed,
}

/// Where the open is at present.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub link: Arc<Link>,
    pub tree: TreeId,
    pub file: FileId,
    durable: Durable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Durable {
    No,
    V1,
    V2 { flags: u32 },
}

impl Live {
    /// The channel on which the next request is carried soonest.
    pub fn pick(&self) -> Arc<Connection> {
        self.link.channels.pick()
    }
}

/// Puts a path into the form of the wire, or says that it is none.
pub(crate) fn wire_path(path: &str) -> Result<String> {
    let parts: Vec<_> = path.split(['\\', '/']).filter(|part| !part.is_empty()).collect();
    if parts.iter().all(|part| is_path_part(part)) {
        Ok(parts.join("\\"))
    } else {
        Err(Error::Path(path.to_owned()))
    }
}

impl Open {
    /// Opens a file. A connection that is lost meanwhile is replaced and the open tried again.
    pub async fn new(
        session: Arc<Inner>,
        share: &str,
        path: &str,
        options: OpenOptions,
    ) -> Result<Arc<Self>> {
        let open = Arc::new(Self {
            share: share.to_owned(),
            path: wire_path(path)?,
            options,
            create_guid: Mutex::new(random()),
            slot: RwLock::new(Place { slot: Slot::Closed, stale: false }),
            restoring: tokio::sync::Mutex::default(),
            acknowledged: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            session,
        });
        let mut patience = Patience::default();
        let (mut again, mut disposition) = (false, options.create);
        let since = Instant::now();
        loop {
            let link = open.session.link().await?;
            let result = async {
                let tree = link.tree(&open.session.options, &open.share).await?;
                let sent = std::mem::replace(&mut again, true);
                open.create(&link, tree, disposition, sent).await
            };
            match result.await {
                Ok(live) => {
                    open.set(Slot::Live(live));
                    let restored: Weak<dyn Restore> = Arc::<Self>::downgrade(&open);
                    open.session.register(restored);
                    return Ok(open);
                }
                // Another's open of it waits for its client, for so long at most as a server keeps
                // such opens (MS-SMB2 3.3.5.9); one's own from before a crash is another's too.
                Err(Error::Status { status: NtStatus::FILE_NOT_AVAILABLE, .. })
                    if since.elapsed() < open.session.options.reconnect_timeout =>
                {
                    tokio::time::sleep(NOT_AVAILABLE_PAUSE).await;
                }
                // Its first copy was carried out in a session that is gone (MS-SMB2 3.3.5.9.10), and
                // its answer is lost: what was to be made is made, and is opened once more. The
                // server gives the other open up, whose client is away.
                Err(error) if again && error.nt_status() == Some(NtStatus::DUPLICATE_OBJECTID) => {
                    *open.guid() = random();
                    (again, disposition) = (false, Create::Open);
                }
                Err(error) if error.nt_status() == Some(NtStatus::FILE_NOT_AVAILABLE) => {
                    return Err(error);
                }
                // Whether the server has opened it cannot be found out: it ends with the session.
                Err(error) if error.is_disconnect() && !open.is_replayable(&link) => {
                    link.channels.close(&error);
                    patience.recover(&open.session, &link, error).await?;
                }
                Err(error) => patience.recover(&open.session, &link, error).await?,
            }
        }
    }

    /// Whether a CREATE that is repeated is carried out once (MS-SMB2 3.2.4.1.11).
    fn is_replayable(&self, link: &Link) -> bool {
        self.options.durable && link.dialect().is_smb3()
    }

    fn guid(&self) -> MutexGuard<'_, [u8; 16]> {
        self.create_guid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, slot: Slot) {
        let mut place = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        *place = Place { slot, stale: false };
    }

    /// Where the open is at present.
    pub fn live(&self) -> Result<Live> {
        match &self.slot.read().unwrap_or_else(PoisonError::into_inner).slot {
            Slot::Live(live) => Ok(live.clone()),
            Slot::Lost(error) => Err(error.clone()),
            Slot::Closed => Err(Error::Closed),
        }
    }

    /// Whether the server has promised to keep the open when the connection is lost.
    pub fn is_durable(&self) -> bool {
        self.live().is_ok_and(|live| live.durable != Durable::No)
    }

    /// Notes that a write on `live` was acknowledged. An error means that the acknowledgement
    /// came too late to count, and the write must be sent again.
    pub fn note_write(&self, live: &Live) -> Result<()> {
        let place = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let late = |now: &Live| now.link.generation != live.link.generation || place.stale;
        let keeps = self.session.options.keeps(Rule::LateAcknowledgement);
        match &place.slot {
            Slot::Lost(_) if !keeps => Ok(()),
            Slot::Live(now) if !late(now) || !keeps => {
                self.acknowledged.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            Slot::Closed => Err(Error::Closed),
            _ => Err(Error::disconnected("lost as the answer came")),
        }
    }

    /// Writes acknowledged so far, to be given to [`Open::note_flush`].
    pub fn writes(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Notes that a flush succeeded which began after `writes` writes.
    pub fn note_flush(&self, writes: u64) {
        self.flushed.fetch_max(writes, Ordering::AcqRel);
    }

    fn has_unflushed(&self) -> bool {
        !self.options.write_through && self.writes() > self.flushed.load(Ordering::Acquire)
    }

    fn access(&self) -> Access {
        let read = Access::READ_DATA
            | Access::READ_EA
            | Access::READ_ATTRIBUTES
            | Access::READ_CONTROL
            | Access::SYNCHRONIZE;
        let write =
            Access::WRITE_DATA | Access::APPEND_DATA | Access::WRITE_EA | Access::WRITE_ATTRIBUTES;
        if self.options.write { read | write } else { read }
    }

    fn request<'a>(
        &self,
        disposition: Create,
        contexts: Vec<RawContext<'a>>,
    ) -> create::Request<'a> {
        let mut options = CreateOptions::NON_DIRECTORY_FILE;
        if self.options.write_through {
            options |= CreateOptions::WRITE_THROUGH;
        }
        create::Request {
            oplock: if self.options.durable { OplockLevel::BATCH } else { OplockLevel::NONE },
            impersonation: IMPERSONATION,
            access: self.access(),
            attributes: FileAttributes::NORMAL,
            share: match self.options.share {
                Share::None => ShareAccess::NONE,
                Share::Read => ShareAccess::READ,
                Share::ReadWrite => ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            },
            disposition: match disposition {
                Create::Open => Disposition::OPEN,
                Create::New => Disposition::CREATE,
                Create::OpenOrNew => Disposition::OPEN_IF,
                Create::Replace => Disposition::OVERWRITE_IF,
            },
            options,
            name: self.path.clone(),
            contexts,
        }
    }

    async fn create(
        &self,
        link: &Arc<Link>,
        tree: ConnectedTree,
        disposition: Create,
        again: bool,
    ) -> Result<Live> {
        let v2 = DurableV2 {
            timeout: u32::try_from(self.session.options.reconnect_timeout.as_millis())
                .unwrap_or(u32::MAX),
            flags: if tree.capabilities.has(ShareCapabilities::CONTINUOUS_AVAILABILITY) {
                DurableV2::PERSISTENT
            } else {
                0
            },
            create_guid: *self.guid(),
        }
        .to_bytes();
        let mut contexts = Vec::new();
        if self.options.durable {
            if link.dialect().is_smb3() {
                contexts.push(RawContext { name: names::DH2Q, data: &v2 });
            } else {
                contexts.push(RawContext { name: names::DHNQ, data: &[0; 16] });
            }
        }
        let (id, version);
        if let Some(instance) = self.options.instance.filter(|_| link.dialect().is_smb3()) {
            id = context::app_instance(instance.id);
            contexts.push(RawContext { name: names::APP_INSTANCE_ID, data: &id });
            if link.dialect() == Dialect::SMB_3_1_1 {
                version = AppVersion { high: instance.version, low: 0 }.to_bytes();
                contexts.push(RawContext { name: names::APP_INSTANCE_VERSION, data: &version });
            }
        }
        // A server that knows the request by its GUID carries it out once (MS-SMB2 3.2.4.1.11);
        // one that has no open of it does as if it were new.
        let marks = self.session.options.keeps(Rule::CreateReplayFlag);
        let flags = match again && marks && self.is_replayable(link) {
            true => HeaderFlags::REPLAY,
            false => HeaderFlags::NONE,
        };
        let request = self.request(disposition, contexts);
        self.send_create(link, tree.id, &request, None, flags).await
    }

    async fn send_create(
        &self,
        link: &Arc<Link>,
        tree: TreeId,
        request: &create::Request<'_>,
        known: Option<Durable>,
        flags: HeaderFlags,
    ) -> Result<Live> {
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let channel = link.channels.pick();
        let ticket = channel.submit(Command::CREATE, tree, Cost::LEAST, flags, encode).await?;
        let response = ticket.reply().await?;
        expect(&response, || format!("open {:?}", self.path))?;
        let body = create::Response::parse(&response.body)?;
        let durable = known.unwrap_or(
            if let Some([_, _, _, _, flags @ ..]) = find(&body.contexts, names::DH2Q) {
                let flags = flags.first_chunk().map_or(0, |flags| u32::from_le_bytes(*flags));
                Durable::V2 { flags }
            } else if find(&body.contexts, names::DHNQ).is_some() {
                Durable::V1
            } else {
                Durable::No
            },
        );
        link.channels.note_open(body.file_id, tree);
        Ok(Live { link: Arc::clone(link), tree, file: body.file_id, durable })
    }

    /// Takes the open up again on a new connection. An error means that the connection or the
    /// share failed; that the server has lost the open is kept for whoever uses it next.
    pub async fn restore(&self, link: &Arc<Link>) -> Result<()> {
        let _alone = self.restoring.lock().await;
        let (old, unflushed) = {
            let mut place = self.slot.write().unwrap_or_else(PoisonError::into_inner);
            let Slot::Live(old) = place.slot.clone() else { return Ok(()) };
            if old.link.generation >= link.generation {
                return Ok(());
            }
            place.stale = true;
            (old, self.has_unflushed())
        };
        let tree = link.tree(&self.session.options, &self.share).await?;
        let v1 = old.file.to_bytes();
        let context = match old.durable {
            Durable::No => None,
            Durable::V1 => Some((names::DHNC, v1.to_vec())),
            Durable::V2 { flags } => {
                let reconnect = ReconnectV2 { file_id: old.file, create_guid: *self.guid(), flags };
                Some((names::DH2C, reconnect.to_bytes()))
            }
        };
        let mut status = NtStatus::FILE_CLOSED;
        if let Some((name, data)) = &context {
            let request = self.request(Create::Open, vec![RawContext { name, data }]);
            match self
                .send_create(link, tree.id, &request, Some(old.durable), HeaderFlags::NONE)
                .await
            {
                Ok(live) => {
                    self.set(Slot::Live(live));
                    return Ok(());
                }
                Err(error) if error.is_disconnect() => return Err(error),
                Err(Error::Status { status: refused, .. }) => status = refused,
                Err(error) => return Err(error),
            }
        }
        let path = self.path.clone();
        if unflushed {
            tracing::error!(%path, %status, "server lost an open with unflushed writes");
            self.set(Slot::Lost(Error::WritesLost { path, status }));
            return Ok(());
        }
        if self.options.reopen {
            match self.create(link, tree, Create::Open, false).await {
                Ok(live) => {
                    self.set(Slot::Live(live));
                    return Ok(());
                }
                Err(error) if error.is_disconnect() => return Err(error),
                Err(Error::Status { status: refused, .. }) => status = refused,
                Err(error) => return Err(error),
            }
        }
        self.set(Slot::Lost(Error::HandleLost { path, status }));
        Ok(())
    }

    /// After an operation on `live` failed: restores what can be restored, or gives the error.
    pub async fn recover(&self, patience: &mut Patience, live: &Live, error: Error) -> Result<()> {
        patience.recover(&self.session, &live.link, error).await?;
        // A session takes up again what it knows. An open whose CREATE was answered as the one
        // before ended, and that was told only then, sees to itself.
        while live.link.channels.live() == 0
            && let Ok(now) = self.live()
            && now.link.generation == live.link.generation
        {
            let link = self.session.newer_link(live.link.generation).await?;
            match self.restore(&link).await {
                // Whether the server has given it back cannot be found out: it gets it back from
                // the session after.
                Err(error) if error.is_disconnect() => {
                    link.channels.close(&error);
                    self.session.newer_link(link.generation).await?;
                }
                result => return result,
            }
        }
        Ok(())
    }

    /// Closes the open at the server, on a new connection if need be, so that another can have
    /// the file. Closing twice is no error.
    pub async fn close(&self) -> Result<()> {
        let mut patience = Patience::default();
        let mut again = None;
        loop {
            let Ok(live) = self.live() else { return Ok(()) };
            let request = close::Request { flags: 0, file_id: live.file };
            let encode = |out: &mut Vec<u8>| request.encode(out);
            let repeated = again.replace(live.link.generation) == Some(live.link.generation);
            let error = match live.pick().call(Command::CLOSE, live.tree, encode).await {
                Ok(response) => match expect(&response, || format!("close {:?}", self.path)) {
                    Err(error) if error.is_disconnect() => error,
                    result => {
                        live.link.channels.forget_open(live.file);
                        self.set(Slot::Closed);
                        // It was closed on a channel that was lost before it said so.
                        let closed = response.header.status == NtStatus::FILE_CLOSED;
                        return if repeated && closed { Ok(()) } else { result };
                    }
                },
                Err(error) => error,
            };
            if let Err(error) = self.recover(&mut patience, &live, error).await {
                self.set(Slot::Closed);
                return Err(error);
            }
        }
    }

    /// Asks the server to close the open without waiting.
    pub fn close_soon(&self) {
        if let Ok(live) = self.live() {
            let request = close::Request { flags: 0, file_id: live.file };
            let encode = |out: &mut Vec<u8>| request.encode(out);
            // The way that the end of the session goes, which must not come before it.
            live.link.channels.main().send_and_forget(Command::CLOSE, live.tree, encode);
            live.link.channels.forget_open(live.file);
            self.set(Slot::Closed);
        }
    }
}

impl Restore for Open {
    fn restore<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<()>> {
        Box::pin(Self::restore(self, link))
    }
}

/// How long one operation has been trying to get through.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    since: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// Waits until an operation may be tried again after `error`, if that is how it can get
    /// through and there is time; else gives the error back. If `error` says that a channel was
    /// lost, that is at once while `link` has others, and else with the session after it. If it
    /// says that something older is still in progress on the file, it is after a little while.
    pub async fn recover(&mut self, session: &Inner, link: &Link, error: Error) -> Result<()> {
        let held_up = error.nt_status() == Some(NtStatus::FILE_NOT_AVAILABLE);
        if !error.is_disconnect() && !held_up {
            return Err(error);
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= session.options.reconnect_timeout {
            return Err(error);
        }
        if held_up {
            self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            tokio::time::sleep(self.pause).await;
            return Ok(());
        }
        // What a server says of the session holds on all its channels.
        if error.nt_status().is_some() {
            link.channels.close(&error);
        }
        if link.channels.live() > 0 {
            return Ok(());
        }
        session.newer_link(link.generation).await.map(drop)
    }
}
