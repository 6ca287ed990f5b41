//! One open of one file or folder, as a CREATE made it.

mod beginning;
pub mod channel_sequence;
pub mod close;
pub mod create;
pub mod creates;
pub mod file_times;
pub mod flush;
pub mod folder_changes;
pub mod in_the_way;
mod names;
pub mod persistent;
pub mod preserved;
mod range_locks;
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
use tokio::sync::{Notify, oneshot};

pub use close::Ended;

use crate::{
    budget::Held,
    client::{Awaited, Client},
    fs::{
        attributes::{self, Facts},
        listing::Listing,
        path::{RelPath, StreamName},
        permit::{Permit, gates},
        security, streams,
        volume::Volume,
    },
    open::{channel_sequence::ChannelSequence, persistent::StoredPlace, table::OpenFileTable},
    sharing::{
        caching::{self, BreakReason, LeaseId},
        file::{OpenFile, Refused},
        watches::{Change, Watch, Watches},
    },
    status::of_errno,
    users::{ClientId, User},
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
#[derive(Debug, Clone)]
pub struct CreateInfo {
    /// The client, as the user who opened has it.
    pub client: ClientId,
    /// The user who opened.
    pub user: Arc<User>,
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
    /// The key of the lease on the folder that the client says it has.
    pub parent_lease: Option<[u8; 16]>,
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
pub struct OpenState {
    /// Who has it; `None` while its client is away.
    pub client: Option<Weak<dyn Client>>,
    /// Kept when the client is away.
    pub durability: Durability,
    /// Sequence numbers of locks by index from 1; 255 is none.
    pub lock_sequences: Option<Box<[u8; LOCK_SEQUENCES]>>,
    /// Its place in the state store, if it is there and so outlives the server.
    pub(crate) promised: Option<StoredPlace>,
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
    /// The file that the stream belongs to, joined as the open is to its own file.
    pub base: Arc<OpenFile>,
}

/// Bytes of a sector (`LogicalBytesPerSector`).
pub const SECTOR: u64 = 512;

/// Whether a range is one of whole sectors.
pub fn whole_sectors(offset: u64, len: u64) -> bool {
    offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR)
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
    pub file: Arc<OpenFile>,
    /// The content, when it is a file that was opened for its content.
    pub data: Option<Arc<LocalFile>>,
    /// Names the file; for a stream the file it belongs to.
    pub(crate) handle: OwnedFd,
    /// The stream, if it is a named one; `file` and `data` are the stream's own then.
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
    /// The file was at least this long when this open last looked; it may have been cut since.
    pub known_end: AtomicU64,
    /// Wakes what waits on this open when it is closed.
    pub closed: Arc<Notify>,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// Where it comes from.
    pub origin: CreateInfo,
    /// A repeated CREATE gets the same answer, until the open is used (MS-SMB2 3.3.1.10,
    /// `IsReplayEligible`).
    pub replayable: AtomicBool,
    /// Which requests on it are too old.
    pub sequence: ChannelSequence,
    /// The content, its file's or its stream's, was changed through it.
    pub written: AtomicBool,
    /// Held while what the state store is to have of it is looked up and put there.
    pub(crate) noting: Mutex<()>,
    /// Who wants to know what became of it when it is closed.
    closer: Mutex<Option<oneshot::Sender<Ended>>>,
    /// It counts among the opens of its user.
    pub counted: Option<Held>,
    /// Its byte-range locks count, too.
    locks: Mutex<Held>,
    watch: OnceLock<Arc<Watch>>,
    state: Mutex<OpenState>,
    volume: Arc<Volume>,
    open_files: Arc<OpenFileTable>,
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
    pub file: Arc<OpenFile>,
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
    /// Where `file` is kept.
    pub open_files: Arc<OpenFileTable>,
    /// Its lease.
    pub lease: Option<LeaseId>,
    /// Where it comes from.
    pub origin: CreateInfo,
}

impl Open {
    /// Puts an open together.
    pub fn new(parts: Parts) -> Self {
        let Parts { id, access, ceiling, options, file, data, handle, .. } = parts;
        let Parts { stream, directory, volume, open_files, .. } = parts;
        volume.entered();
        let state = OpenState {
            client: None,
            durability: Durability::None,
            lock_sequences: None,
            promised: None,
        };
        Self {
            id,
            access,
            ceiling,
            options,
            file,
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
            closed: Arc::default(),
            lease: parts.lease,
            locks: Mutex::new(parts.origin.user.locks.count(0)),
            origin: parts.origin,
            counted: None,
            replayable: AtomicBool::new(false),
            sequence: ChannelSequence::default(),
            written: AtomicBool::new(false),
            noting: Mutex::new(()),
            closer: Mutex::new(None),
            watch: OnceLock::new(),
            state: Mutex::new(state),
            volume,
            open_files,
        }
    }

    /// Its name among the openers of its file.
    pub fn opener_id(&self) -> u64 {
        self.id.persistent
    }

    /// What changes over its life.
    pub fn state(&self) -> MutexGuard<'_, OpenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client that has it, if one is connected.
    pub fn client(&self) -> Option<Arc<dyn Client>> {
        let client = self.state().client.as_ref().and_then(Weak::upgrade);
        client.filter(|client| !client.ended())
    }

    /// The session that has it.
    pub fn session_id(&self) -> Option<SessionId> {
        self.client().map(|client| client.id())
    }

    /// Whether the client was told that its open outlives the server.
    pub fn is_persistent(&self) -> bool {
        matches!(self.state().durability, Durability::Persistent(_))
    }

    /// Kept whatever it caches.
    pub fn is_resilient(&self) -> bool {
        let durability = self.state().durability;
        matches!(durability, Durability::Resilient(_) | Durability::Persistent(_))
    }

    /// For how long it is to be kept now that its client is away (MS-SMB2 3.3.7.1).
    pub fn preserve_time(&self) -> Option<Duration> {
        let durability = self.state().durability;
        let cached = || {
            let (state, breaking) = self.file.caching(self.opener_id());
            // Locks are kept for whoever caches writes, as Windows does.
            let kept = state.has(LeaseState::WRITE) || !self.file.has_locks(self.opener_id());
            state.has(LeaseState::HANDLE) && !breaking && kept
        };
        durability.timeout().filter(|_| !matches!(durability, Durability::Durable(_)) || cached())
    }

    /// Tells others that what they have read is no longer so, before it is changed. Nobody is
    /// waited for: whoever caches writes was told when this open was made.
    pub fn break_read_caching(&self) -> Result<(), NtStatus> {
        match self.break_conflicting(BreakReason::Change) {
            Ok(()) | Err(Refused::Wait(_)) => Ok(()),
            Err(Refused::Status(status)) => Err(status),
            Err(Refused::Reparse(met)) => Err(met.status()),
        }
    }

    /// Asks others to give up what `cause` does not go together with.
    pub fn break_conflicting(&self, cause: BreakReason) -> Result<(), Refused> {
        self.open_files.break_for(&self.file, cause, (self.opener_id(), self.lease))
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
        caching::level_of(self.file.caching(self.opener_id()).0)
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
        self.watch.get_or_init(|| begin(&self.open_files.watches)).clone()
    }

    /// Tells those who watch its folder that its content has changed: of a named stream what is the
    /// stream's (MS-FSA 2.1.5.5).
    pub fn tell_written(&self) {
        let (action, filter) = match &self.stream {
            Some(_) => {
                (Action::MODIFIED_STREAM, ChangeFilter::STREAM_SIZE | ChangeFilter::STREAM_WRITE)
            }
            None => (Action::MODIFIED, ChangeFilter::SIZE | ChangeFilter::LAST_WRITE),
        };
        self.tell(action, filter);
    }

    /// Tells those who watch its folder that the file has changed, whichever stream of it is open.
    pub fn tell_modified(&self, filter: ChangeFilter) {
        if !self.open_files.is_watched() && !self.open_files.any_folder_cached() {
            return;
        }
        if let Ok(path) = self.path() {
            self.tell_of_file(&path, Action::MODIFIED, filter);
        }
    }

    /// Tells those who watch its folder what became of it.
    pub fn tell(&self, action: Action, filter: ChangeFilter) {
        if !self.open_files.is_watched() && !self.open_files.any_folder_cached() {
            return;
        }
        let Ok(path) = self.path() else { return };
        self.tell_at(&path, action, filter);
    }

    /// Tells those who watch its folder what became of it at that place.
    pub fn tell_at(&self, path: &RelPath, action: Action, filter: ChangeFilter) {
        self.tell_unless(path, action, filter, ChangeFilter::NONE);
    }

    /// Tells it of the file, whichever stream of it is open.
    pub(super) fn tell_of_file(&self, path: &RelPath, action: Action, filter: ChangeFilter) {
        let (volume, by) = (&*self.volume, self.origin.parent_lease);
        let (stream, unless) = (None, ChangeFilter::NONE);
        self.open_files.changed(&Change { volume, path, stream, action, filter, unless, by });
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
        self.open_files.changed(&Change { volume, path, stream, action, filter, unless, by });
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
    pub fn table(&self) -> &Arc<OpenFileTable> {
        &self.open_files
    }

    /// What the file is now; a stream has its own sizes.
    pub fn facts(&self) -> Result<Facts, NtStatus> {
        let mut facts = attributes::facts(self.handle()).map_err(of_errno)?;
        self.base_file().times.apply(&mut facts.times);
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

    /// Every right that a token has in the file.
    pub fn rights(&self, sids: &[Sid]) -> Result<Access, NtStatus> {
        let folder = self.volume.folder_of(&self.last_path()?).map_err(of_errno)?;
        security::access_in(self.handle(), folder.as_fd(), sids).map_err(of_errno)
    }

    /// The file itself: for a stream the file a stream belongs to.
    pub fn base_file(&self) -> &Arc<OpenFile> {
        self.stream.as_ref().map_or(&self.file, |stream| &stream.base)
    }

    /// Whether it, or the file that its stream belongs to, is to be deleted.
    pub fn delete_pending(&self) -> bool {
        let id = self.opener_id();
        self.file.delete_pending(id) || self.base_file().delete_pending(id)
    }

    /// Marks the name that it came by to be deleted when the last who did leaves, or takes that back.
    pub fn set_delete_pending(&self, pending: bool) {
        let by = self.origin.parent_lease;
        self.file.set_delete_pending(self.opener_id(), pending.then_some(by));
    }

    /// Fails unless any of the rights in `any` was granted.
    pub fn need(&self, any: Access) -> Result<(), NtStatus> {
        match self.access.any(any) || !gates::holds(gates::Gate::Right) {
            true => Ok(()),
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

    /// Whether it is the open of a stream that belongs to a folder.
    pub fn is_of_folder(&self) -> bool {
        self.stream.is_some() && attributes::facts(self.handle()).is_ok_and(|facts| facts.directory)
    }

    /// Whether a range is not one of whole sectors, and the open wants no buffering
    /// (MS-FSA 2.1.5.3, 2.1.5.4).
    pub fn misaligned(&self, offset: u64, len: u64) -> bool {
        let mode = CreateOptions(self.mode.load(Ordering::Relaxed));
        mode.has(CreateOptions::NO_INTERMEDIATE_BUFFERING) && !whole_sectors(offset, len)
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
