//! One open of one file or folder, as a CREATE made it.

pub mod channel_sequence;
pub mod create;
pub mod file_times;
pub mod flush;
pub mod folder_changes;
pub mod persistent;
pub mod preserved;
pub mod record;
pub mod recover;
pub mod table;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use block_io::LocalFile;
use rustix::io::Errno;
use smb_protocol::{
    FileId, NtStatus, SessionId,
    msg::{
        context::LeaseState,
        create::{Access, CreateOptions, ShareAccess},
        notify::{Action, ChangeFilter},
        oplock::{OplockBreak, OplockLevel},
    },
    security::Sid,
};
use state_store::Commit;
use tokio::sync::{Notify, oneshot};

use crate::{
    client::{Awaited, Client},
    fs::{
        attributes::{self, Facts},
        descriptor::close_removed,
        file_key,
        listing::{self, Listing},
        path::{RelPath, StreamName},
        permit::{Permit, gates},
        security, streams,
        volume::Volume,
    },
    open::{channel_sequence::ChannelSequence, table::Nodes},
    quoted::Quoted,
    sharing::{
        caching::{self, Cause, LeaseId},
        file::{Node, Refused},
        watches::{Change, Watch, Watches},
    },
    status::of_errno,
};

/// A request on an open that is in progress.
#[derive(Debug)]
pub struct InProgress {
    open: Arc<Open>,
    number: u16,
}

impl InProgress {
    /// Begins a request with a client's sequence number; `None` if it must not change anything.
    pub fn begin(open: &Arc<Open>, number: u16, replay: bool) -> Option<Self> {
        open.sequence.begin(number, replay).then(|| Self { open: open.clone(), number })
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.open.sequence.end(self.number);
    }
}

/// How long an open is kept for a client that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Not at all.
    None,
    /// As long as it caches the handle, for that time (MS-SMB2 3.3.5.9.6, 3.3.5.9.10).
    Durable(Duration),
    /// In any case, for that time (MS-SMB2 3.3.5.15.9).
    Resilient(Duration),
    /// In any case, for that time, and beyond the end of the server (MS-SMB2 3.3.5.9.10).
    Persistent(Duration),
}

impl Durability {
    /// For how long it outlives its connection.
    pub fn timeout(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Durable(time) | Self::Resilient(time) | Self::Persistent(time) => Some(time),
        }
    }
}

/// What a CREATE said about its open that matters after it.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// `ClientGuid` of the connection.
    pub client: [u8; 16],
    /// The user, folded.
    pub user: String,
    /// Share name, folded.
    pub share: String,
    /// Name in the share, as asked for.
    pub name: String,
    /// `CreateGuid` of a durable request of version 2.
    pub create_guid: Option<[u8; 16]>,
    /// `AppInstanceId`.
    pub app_instance: Option<[u8; 16]>,
    /// `AppInstanceVersion`.
    pub app_version: Option<(u64, u64)>,
    /// The lease on the folder that the client says it has.
    pub parent_lease: Option<LeaseId>,
    /// What the CREATE did.
    pub action: u32,
    /// `DesiredAccess`.
    pub desired_access: Access,
    /// `ShareAccess`.
    pub share_access: ShareAccess,
}

/// Lock sequences that a client can have (MS-SMB2 3.3.1.10).
pub const LOCK_SEQUENCES: usize = 64;

/// What changes over the life of an open.
#[derive(Debug)]
pub struct Standing {
    /// Who has it; `None` while its client is away.
    pub client: Option<Weak<dyn Client>>,
    /// Kept when the client is away.
    pub durability: Durability,
    /// Sequence numbers of locks by index from 1; 255 is none.
    pub lock_sequences: Option<Box<[u8; LOCK_SEQUENCES]>>,
}

/// Options that `FileModeInformation` shows (MS-FSA 2.1.5.1, phase 3).
const MODES: CreateOptions = CreateOptions(
    CreateOptions::WRITE_THROUGH.0
        | CreateOptions::SEQUENTIAL_ONLY.0
        | CreateOptions::NO_INTERMEDIATE_BUFFERING.0
        | CreateOptions::SYNCHRONOUS_IO_ALERT.0
        | CreateOptions::SYNCHRONOUS_IO_NONALERT.0
        | CreateOptions::DELETE_ON_CLOSE.0,
);
/// Those that can be set (MS-FSA 2.1.5.15.8).
const MODES_SET: CreateOptions = CreateOptions(
    CreateOptions::WRITE_THROUGH.0
        | CreateOptions::SEQUENTIAL_ONLY.0
        | CreateOptions::SYNCHRONOUS_IO_ALERT.0
        | CreateOptions::SYNCHRONOUS_IO_NONALERT.0,
);

/// What an open of a named stream has beside one of a file.
#[derive(Debug)]
pub struct StreamOpen {
    /// The stream's name.
    pub name: Mutex<StreamName>,
    /// The file that holds its content, opened without access to it.
    pub file: OwnedFd,
    /// The file that the stream belongs to, joined as the open is to its own node.
    pub base: Arc<Node>,
}

/// What became of an open that was closed.
#[derive(Debug)]
pub struct Ended {
    /// Resolves when the state store has forgotten it, if that knew it.
    pub forgotten: Option<Commit>,
    /// Why its file is there though it was to be deleted.
    pub failed: Option<NtStatus>,
}

/// One open of one file, folder or named stream.
#[derive(Debug)]
pub struct Open {
    /// How the client names it.
    pub id: FileId,
    /// Access granted.
    pub access: Access,
    /// What the tree that it was made on grants at most, whatever becomes of the tree.
    pub ceiling: Access,
    /// Options of the create.
    pub options: CreateOptions,
    /// The file with its other openers.
    pub node: Arc<Node>,
    /// The content, when it is a file that was opened for its content.
    pub data: Option<Arc<LocalFile>>,
    /// Names the file; for a stream the file it belongs to.
    pub(crate) handle: OwnedFd,
    /// The stream, if it is a named one; `node` and `data` are the stream's own then.
    pub stream: Option<StreamOpen>,
    /// Is a folder.
    pub directory: bool,
    /// Delete the file when this open is closed.
    pub delete_on_close: AtomicBool,
    /// The name goes when this open is closed, not only when all are.
    pub posix_delete: AtomicBool,
    /// A listing under way.
    pub listing: Mutex<Option<Listing>>,
    /// Behind the last byte read or written; kept because clients ask for it.
    pub position: AtomicU64,
    /// `Mode`: options that show in `FileModeInformation` and that some sets change.
    pub mode: AtomicU32,
    /// Index of the extended attribute that is answered next.
    pub next_ea: AtomicUsize,
    /// The content of a stream was changed.
    pub(crate) wrote: AtomicBool,
    /// The file was at least this long when this open last looked; it may have been cut since.
    pub known_end: AtomicU64,
    /// Wakes what waits on this open when it is closed.
    pub closed: Arc<Notify>,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// Where it comes from.
    pub origin: Origin,
    /// A repeated CREATE gets the same answer, until the open is used (MS-SMB2 3.3.1.10,
    /// `IsReplayEligible`).
    pub replayable: AtomicBool,
    /// Which requests on it are too old.
    pub sequence: ChannelSequence,
    /// Its content was changed.
    pub written: AtomicBool,
    /// The state store knows it.
    pub(crate) remembered: AtomicBool,
    /// Held while what the state store is to have of it is looked up and put there.
    pub(crate) noting: Mutex<()>,
    /// Who wants to know what became of it when it is closed.
    closer: Mutex<Option<oneshot::Sender<Ended>>>,
    watch: OnceLock<Arc<Watch>>,
    standing: Mutex<Standing>,
    volume: Arc<Volume>,
    nodes: Arc<Nodes>,
}

/// What an [`Open`] is made of.
pub struct Parts {
    /// How the client names it.
    pub id: FileId,
    /// Access granted.
    pub access: Access,
    /// What the tree that it is made on grants at most.
    pub ceiling: Access,
    /// Options of the create.
    pub options: CreateOptions,
    /// The file with its other openers; joined as `id.volatile`.
    pub node: Arc<Node>,
    /// The content.
    pub data: Option<Arc<LocalFile>>,
    /// Names the file.
    pub handle: OwnedFd,
    /// The named stream.
    pub stream: Option<StreamOpen>,
    /// Is a folder.
    pub directory: bool,
    /// Where it is.
    pub volume: Arc<Volume>,
    /// Where `node` is kept.
    pub nodes: Arc<Nodes>,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Open {
    /// Puts an open together.
    pub fn new(parts: Parts) -> Self {
        let Parts { id, access, ceiling, options, node, data, handle, .. } = parts;
        let Parts { stream, directory, volume, nodes, .. } = parts;
        volume.entered();
        let standing =
            Standing { client: None, durability: Durability::None, lock_sequences: None };
        Self {
            id,
            access,
            ceiling,
            options,
            node,
            data,
            handle,
            stream,
            directory,
            delete_on_close: AtomicBool::new(options.has(CreateOptions::DELETE_ON_CLOSE)),
            posix_delete: AtomicBool::new(false),
            listing: Mutex::new(None),
            position: AtomicU64::new(0),
            known_end: AtomicU64::new(0),
            mode: AtomicU32::new(options.and(MODES).0),
            next_ea: AtomicUsize::new(0),
            wrote: AtomicBool::new(false),
            closed: Arc::default(),
            lease: parts.lease,
            origin: parts.origin,
            replayable: AtomicBool::new(false),
            sequence: ChannelSequence::default(),
            written: AtomicBool::new(false),
            remembered: AtomicBool::new(false),
            noting: Mutex::new(()),
            closer: Mutex::new(None),
            watch: OnceLock::new(),
            standing: Mutex::new(standing),
            volume,
            nodes,
        }
    }

    /// Its name among the openers of its node.
    pub fn node_id(&self) -> u64 {
        self.id.persistent
    }

    /// What changes over its life.
    pub fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client that has it, if one is connected.
    pub fn client(&self) -> Option<Arc<dyn Client>> {
        let client = self.standing().client.as_ref().and_then(Weak::upgrade);
        client.filter(|client| !client.ended())
    }

    /// The session that has it.
    pub fn session_id(&self) -> Option<SessionId> {
        self.client().map(|client| client.id())
    }

    /// Whether the client was told that its open outlives the server.
    pub fn is_persistent(&self) -> bool {
        matches!(self.standing().durability, Durability::Persistent(_))
    }

    /// Kept whatever it caches.
    pub fn is_resilient(&self) -> bool {
        let durability = self.standing().durability;
        matches!(durability, Durability::Resilient(_) | Durability::Persistent(_))
    }

    /// For how long it is to be kept now that its client is away (MS-SMB2 3.3.7.1).
    pub fn worth_keeping(&self) -> Option<Duration> {
        let durability = self.standing().durability;
        let cached = || {
            let (state, breaking) = self.node.caching(self.node_id());
            state.has(LeaseState::HANDLE) && !breaking
        };
        durability.timeout().filter(|_| !matches!(durability, Durability::Durable(_)) || cached())
    }

    /// Tells others that what they have read is no longer so, before it is changed. Nobody is
    /// waited for: whoever caches writes was told when this open was made.
    pub fn others_forget(&self) -> Result<(), NtStatus> {
        match self.others_let_go(Cause::Change) {
            Ok(()) | Err(Refused::Wait(_)) => Ok(()),
            Err(Refused::Status(status)) => Err(status),
        }
    }

    /// Asks others to give up what `cause` does not go together with.
    pub fn others_let_go(&self, cause: Cause) -> Result<(), Refused> {
        self.nodes.break_for(&self.node, cause, (self.node_id(), self.lease))
    }

    /// Lets go of it; what became of it if that closed it, and nothing if a request still has it,
    /// with whose end it is closed.
    pub fn let_go(self: Arc<Self>) -> Option<Ended> {
        let (tell, mut told) = oneshot::channel();
        *self.closer.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
        drop(self);
        told.try_recv().ok()
    }

    /// Closes it, whoever has it.
    pub fn close_for_good(&self) {
        match self.client() {
            Some(client) => client.close_open(self.id),
            None => drop(self.nodes.kept.take(self.id.persistent)),
        }
    }

    /// Tells its client to go down to an oplock of that level; whether it could be told.
    pub fn break_oplock(&self, level: OplockLevel, awaited: Awaited) -> bool {
        let message = OplockBreak { level, file_id: self.id };
        self.client().is_some_and(|client| client.break_oplock(message, awaited))
    }

    /// The oplock it has, as answers show it.
    pub fn oplock_level(&self) -> OplockLevel {
        if self.lease.is_some() {
            return OplockLevel::LEASE;
        }
        caching::level_of(self.node.caching(self.node_id()).0)
    }

    /// Names the file for calls that need no content.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The handle of a folder, for listings.
    pub fn folder(&self) -> &OwnedFd {
        &self.handle
    }

    /// The volume on which the file is.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// What it watches, begun by `begin` if nothing was yet.
    pub fn watch(&self, begin: impl FnOnce(&Arc<Watches>) -> Arc<Watch>) -> Arc<Watch> {
        self.watch.get_or_init(|| begin(&self.nodes.watches)).clone()
    }

    /// Tells those who watch its folder that it has changed.
    pub fn tell_modified(&self, filter: ChangeFilter) {
        self.tell(Action::MODIFIED, filter);
    }

    /// Tells those who watch its folder what became of it.
    pub fn tell(&self, action: Action, filter: ChangeFilter) {
        if !self.nodes.is_watched() && !self.nodes.any_folder_cached() {
            return;
        }
        let Ok(path) = self.path() else { return };
        self.tell_at(&path, action, filter);
    }

    /// Tells those who watch its folder what became of it at that place.
    pub fn tell_at(&self, path: &RelPath, action: Action, filter: ChangeFilter) {
        self.tell_unless(path, action, filter, ChangeFilter::NONE);
    }

    /// Tells it to those of them who do not watch for `unless`.
    pub fn tell_unless(
        &self,
        path: &RelPath,
        action: Action,
        filter: ChangeFilter,
        unless: ChangeFilter,
    ) {
        let stream = self.stream_name();
        let stream = stream.as_ref().map(|stream| stream.as_str());
        let (volume, by) = (&*self.volume, self.origin.parent_lease);
        self.nodes.changed(&Change { volume, path, stream, action, filter, unless, by });
    }

    /// What a change of its name is of interest to.
    pub fn name_filter(&self) -> ChangeFilter {
        match (&self.stream, self.directory) {
            (Some(_), _) => ChangeFilter::STREAM_NAME,
            (None, true) => ChangeFilter::DIR_NAME,
            (None, false) => ChangeFilter::FILE_NAME,
        }
    }

    /// Where files that are open are known.
    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// What the file is now; a stream has its own sizes.
    pub fn facts(&self) -> Result<Facts, NtStatus> {
        let mut facts = attributes::facts(self.handle()).map_err(of_errno)?;
        self.base_node().times.apply(&mut facts.times);
        if let Some(stream) = &self.stream {
            let stat = rustix::fs::fstat(&stream.file).map_err(of_errno)?;
            facts.end_of_file = u64::try_from(stat.st_size).unwrap_or(0);
            facts.allocation_size = streams::allocated_of(stream.file.as_fd(), &stat);
            facts.directory = false;
        }
        Ok(facts)
    }

    /// Length of the content in bytes.
    pub fn length(&self) -> Result<u64, NtStatus> {
        let handle = self.stream.as_ref().map_or(self.handle(), |stream| stream.file.as_fd());
        let stat = rustix::fs::fstat(handle).map_err(of_errno)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Sets the mode, as far as it can be set.
    pub fn set_mode(&self, mode: u32) -> Result<(), NtStatus> {
        let wanted = CreateOptions(mode);
        let now = CreateOptions(self.mode.load(Ordering::Relaxed));
        let waits = CreateOptions::SYNCHRONOUS_IO_ALERT.or(CreateOptions::SYNCHRONOUS_IO_NONALERT);
        // How an open waits can be changed, but not whether it does.
        if wanted.without(MODES_SET) != CreateOptions::NONE
            || wanted.any(waits) != now.any(waits)
            || wanted.has(waits)
        {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let mut set = MODES_SET;
        if now.has(CreateOptions::NO_INTERMEDIATE_BUFFERING) {
            set = set.without(CreateOptions::WRITE_THROUGH);
        }
        self.mode.store(now.without(set).or(wanted.and(set)).0, Ordering::Relaxed);
        Ok(())
    }

    /// What holds the content: the file, or that of the stream.
    pub fn holder(&self) -> BorrowedFd<'_> {
        self.stream.as_ref().map_or(self.handle(), |stream| stream.file.as_fd())
    }

    /// Where the file is in its share, as it is now. A file of several names may have lost the one
    /// that its descriptor came by: then it is the one that the opener is known by, for which the node
    /// is locked.
    pub fn path(&self) -> Result<RelPath, NtStatus> {
        match self.volume.path_of(self.handle()) {
            Err(Errno::NOENT) => self.other_name().ok_or(NtStatus::OBJECT_NAME_NOT_FOUND),
            other => other.map_err(of_errno),
        }
    }

    /// The path that the opener is known by, if the file is there.
    fn other_name(&self) -> Option<RelPath> {
        let path = self.known_path()?;
        let named = self.volume.stat_of(&path).ok()?;
        let own = rustix::fs::fstat(self.handle()).ok()?;
        (file_key::key(&named) == file_key::key(&own)).then_some(path)
    }

    fn known_path(&self) -> Option<RelPath> {
        self.volume.own(&self.base_node().path(self.node_id())?)
    }

    /// Where the file is or, if it has no name any more, was: for what is only shown.
    pub fn last_path(&self) -> Result<RelPath, NtStatus> {
        self.path().or_else(|status| self.known_path().ok_or(status))
    }

    /// Every right that a token has in the file.
    pub fn rights(&self, sids: &[Sid]) -> Result<Access, NtStatus> {
        let folder = self.volume.folder_of(&self.last_path()?).map_err(of_errno)?;
        security::access_in(self.handle(), folder.as_fd(), sids).map_err(of_errno)
    }

    /// The name from the root of the share, with the stream's if it is one: `\a\b:stream:$DATA`.
    pub fn full_name(&self) -> Result<String, NtStatus> {
        let mut name = self.last_path()?.to_windows();
        if let Some(stream) = self.stream_name() {
            name = format!("{name}:{}:$DATA", stream.as_str());
        }
        Ok(name)
    }

    /// The stream's name, if it is one.
    pub fn stream_name(&self) -> Option<StreamName> {
        let stream = self.stream.as_ref()?;
        Some(stream.name.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// The node of the file: that of the file a stream belongs to.
    pub fn base_node(&self) -> &Arc<Node> {
        self.stream.as_ref().map_or(&self.node, |stream| &stream.base)
    }

    /// Whether it, or the file that its stream belongs to, is to be deleted.
    pub fn delete_pending(&self) -> bool {
        let id = self.node_id();
        self.node.delete_pending(id) || self.base_node().delete_pending(id)
    }

    fn remove_stream(&self, stream: &StreamOpen) -> Result<(), NtStatus> {
        let name = stream.name.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.volume.permit(self.ceiling).and_then(|_| {
            rustix::fs::fstat(&stream.file)
                .and_then(|stat| self.volume.streams().remove(self.handle(), &name, &stat))
                .map_err(of_errno)
        });
        if let Err(status) = removed {
            let (file, stream) = (Quoted(&self.origin.name), Quoted(name.as_str()));
            tracing::warn!(%file, %stream, %status, "a stream that was to be deleted stays");
        }
        removed
    }

    /// Takes the name of the file away, and says which, if it was still there.
    fn remove_file(&self, opened: &RelPath) -> Result<Option<RelPath>, NtStatus> {
        let opened = self.volume.own(opened);
        // The node, which knows the name as well, is locked meanwhile.
        let path = match (self.volume.path_of(self.handle()), &opened) {
            (Ok(path), _) => path,
            (Err(_), Some(opened)) => opened.clone(),
            (Err(error), None) => return Err(of_errno(error)),
        };
        let removed = self.volume.permit(self.ceiling).and_then(|permit| {
            permit.remove_open(self.handle(), opened.as_ref()).map_err(of_errno)
        });
        if let Err(status) = removed {
            if status == NtStatus::OBJECT_NAME_NOT_FOUND {
                // Somebody else has taken the name away: there is nothing left to delete.
                return Ok(None);
            }
            let file = Quoted(&self.origin.name);
            tracing::warn!(%file, %status, "a file that was to be deleted on close stays");
            return Err(status);
        }
        Ok(Some(path))
    }

    /// Gives what may be the last descriptors of removed files to [`close_removed`].
    fn close_aside(&mut self) {
        // What takes their place names the share's folder, and nobody looks at it any more.
        let stand_in = || rustix::io::fcntl_dupfd_cloexec(self.volume.root(), 0);
        if let Some(stream) = &mut self.stream
            && let Ok(root) = stand_in()
        {
            close_removed(std::mem::replace(&mut stream.file, root));
        }
        if let Ok(root) = stand_in() {
            close_removed(std::mem::replace(&mut self.handle, root));
        }
        if let Some(data) = self.data.take() {
            close_removed(data);
        }
    }

    /// Fails unless any of the rights in `any` was granted.
    pub fn need(&self, any: Access) -> Result<(), NtStatus> {
        match self.access.any(any) || !gates::holds(gates::Gate::Right) {
            true => Ok(()),
            false if self.volume.is_past() => Err(NtStatus::MEDIA_WRITE_PROTECTED),
            false => Err(NtStatus::ACCESS_DENIED),
        }
    }

    /// The content, if this is a file opened with one of the rights in `any`.
    pub fn content(&self, any: Access) -> Result<&Arc<LocalFile>, NtStatus> {
        if self.directory {
            return Err(NtStatus::INVALID_DEVICE_REQUEST);
        }
        self.need(any)?;
        self.data.as_ref().ok_or(NtStatus::ACCESS_DENIED)
    }

    /// Whether each write must be durable before its answer.
    pub fn write_through(&self) -> bool {
        CreateOptions(self.mode.load(Ordering::Relaxed)).has(CreateOptions::WRITE_THROUGH)
    }
}

impl Open {
    /// Lets this open change something that needs one of the rights in `any`, whatever became of
    /// its tree since.
    ///
    /// # Errors
    /// Those of [`Volume::permit`], and `ACCESS_DENIED` without such a right.
    pub fn permit(&self, any: Access) -> Result<Permit<'_>, NtStatus> {
        let permit = self.volume().permit(self.ceiling)?;
        self.need(any)?;
        Ok(permit)
    }

    /// The content of a file that may be changed by one of the rights in `any`.
    pub fn writable(&self, any: Access) -> Result<&Arc<LocalFile>, NtStatus> {
        if self.directory {
            return Err(NtStatus::INVALID_DEVICE_REQUEST);
        }
        self.permit(any)?;
        self.content(any)
    }
}

impl Drop for Open {
    /// Closing is dropping the last reference: requests in flight hold one.
    fn drop(&mut self) {
        if self.nodes.stable.is_frozen() {
            // It is not closed: the server that comes next has it.
            return;
        }
        if self.is_remembered() {
            self.node.forget(self.node_id());
        }
        self.volume.left();
        // A folder that is not empty stays, and nobody hears of it (MS-FSA 2.1.5.5).
        let stays = self.directory
            && self.delete_on_close.load(Ordering::Acquire)
            && !listing::is_empty(&self.handle).unwrap_or(false);
        if self.delete_on_close.load(Ordering::Acquire) && !stays {
            let _ = self.others_let_go(Cause::Delete);
            self.node.set_delete_pending(self.node_id(), true);
            if self.directory {
                self.nodes.watches.gone(self.node.key());
            }
        }
        self.nodes.forget(self);
        self.date_writes();
        self.leave_times();
        let id = self.node_id();
        let (mut removed, mut failed) = (None, None);
        let mut remove = |path: &RelPath| match self.remove_file(path) {
            Ok(gone) => removed = gone,
            Err(status) => failed = Some(status),
        };
        if self.stream.is_none()
            && self.posix_delete.load(Ordering::Acquire)
            && self.node.delete_pending(id)
            && let Some(path) = self.node.path(id)
        {
            remove(&path);
            if removed.is_some() {
                self.node.name_is_gone(id);
            }
        }
        let mut remove = |path: &RelPath| match self.remove_file(path) {
            Ok(gone) => removed = gone,
            Err(status) => failed = Some(status),
        };
        match &self.stream {
            None => self.nodes.leave(&self.node, id, remove),
            Some(stream) => {
                let mut kept = None;
                self.nodes.leave(&self.node, id, |_| kept = self.remove_stream(stream).err());
                self.nodes.leave(&stream.base, id, &mut remove);
                failed = failed.or(kept);
            }
        }
        if removed.is_some() || self.stream.is_some() {
            self.close_aside();
        }
        match removed {
            Some(path) => {
                let filter =
                    if self.directory { ChangeFilter::DIR_NAME } else { ChangeFilter::FILE_NAME };
                let (volume, by) = (&*self.volume, self.origin.parent_lease);
                let (path, action) = (&path, Action::REMOVED);
                let (stream, unless) = (None, ChangeFilter::NONE);
                self.nodes.changed(&Change { volume, path, stream, action, filter, unless, by });
            }
            // Sizes and times that a listing shows are others now.
            None if self.written.load(Ordering::Relaxed) && self.nodes.any_folder_cached() => {
                if let Ok(path) = self.path() {
                    self.tell_at(&path, Action::MODIFIED, ChangeFilter::NONE);
                }
            }
            None => {}
        }
        // Last, so that a file that was to be deleted is, whenever the server ends.
        let teller = self.closer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let forgotten = self.forget();
        if let Some(teller) = teller {
            let _ = teller.send(Ended { forgotten, failed });
        }
    }
}
