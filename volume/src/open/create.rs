//! One CREATE on the volume: finding or making the file, access and share checks
//! (MS-FSA 2.1.5.1).

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use block_io::{Engine, LocalFile};
use rustix::{
    fs::{FileType, OFlags, Stat},
    io::Errno,
};
use smb_protocol::{
    FileId, NtStatus,
    fscc::{FileAttributes, ea::Ea},
    msg::{
        context::{self, names},
        create::{Access, CreateAction, CreateOptions, Disposition, Request},
    },
    security::Sid,
};

use crate::{
    fs::{
        attributes::{self, Facts},
        descriptor::{CreateTag, bears, reopen, set_length},
        eas,
        path::{FileName, RelPath, StreamName, StreamPart},
        permit::gates,
        reparse::{self, Met},
        security,
        space::{check_room, reserve},
        streams,
        volume::{Found, Volume},
    },
    open::{
        CreateInfo, Open, Parts, StreamOpen,
        beginning::{Beginning, wanted_eas},
        table::OpenFileTable,
    },
    sharing::{
        caching::LeaseId,
        file::{Newcomer, OpenFile, Opener, Refused},
        modes::beside,
    },
};

/// Rights that need the content of a file.
const CONTENT: Access =
    Access(Access::READ_DATA.0 | Access::EXECUTE.0 | Access::WRITE_DATA.0 | Access::APPEND_DATA.0);
/// Rights that change the content of a file.
const CHANGE: Access = Access(Access::WRITE_DATA.0 | Access::APPEND_DATA.0);
/// One CREATE on its way.
pub struct CreateOperation<'a> {
    /// What is asked.
    pub request: &'a Request<'a>,
    /// What the tree grants at most.
    pub ceiling: Access,
    /// Who asks.
    pub sids: &'a [Sid],
    /// Where.
    pub volume: Arc<Volume>,
    /// Files that are open.
    pub open_files: Arc<OpenFileTable>,
    /// How the open will be named.
    pub id: FileId,
    /// Which file, and which part of it.
    pub name: FileName,
    /// How content is read and written.
    pub engine: Engine,
    /// The lease that the open is to have.
    pub lease: Option<LeaseId>,
    /// Where the open comes from.
    pub origin: CreateInfo,
    /// The client speaks SMB 3.
    pub smb3: bool,
    /// What a file bears that this CREATE makes, if its open is to outlive the server.
    pub mark: Option<CreateTag>,
    /// It may have been carried out before, by a server that ended before it could remember.
    pub replays: bool,
}

impl CreateOperation<'_> {
    /// Carries the CREATE out: its open, and what became of the file.
    pub fn run(self) -> Result<(Open, CreateAction), Refused> {
        // Someone may make or remove the file between our look and our step; then look again.
        for _ in 0..16 {
            let outcome = match self.volume.find(&self.name.path)? {
                Found::Here { fd, stat, path } => self.existing(fd, stat, path),
                Found::Missing { .. } if self.name.part == StreamPart::OtherIndex => {
                    Err(NtStatus::OBJECT_NAME_NOT_FOUND.into())
                }
                Found::Missing { folder, path } => self.fresh(&folder, path),
            };
            match outcome {
                Err(Refused::Status(NtStatus::RETRY)) => {}
                other => return other,
            }
        }
        Err(NtStatus::SHARING_VIOLATION.into())
    }

    /// What is granted of what was asked for; `attributes` are those of the file that is there
    /// and `listed` is what its access list allows.
    fn granted(&self, attributes: FileAttributes, listed: Access) -> Result<Access, NtStatus> {
        let mut wanted = self.request.access.expand_generic();
        let mut allowed = self.ceiling.and(listed);
        let directory = attributes.has(FileAttributes::DIRECTORY);
        if attributes.has(FileAttributes::READONLY) && !directory {
            if wanted.any(CHANGE) {
                return Err(NtStatus::ACCESS_DENIED);
            }
            allowed = allowed.without(CHANGE.or(Access::DELETE_CHILD));
        }
        // MS-FSA 2.1.5.1.2.1: on a snapshot rights are granted as well, and each change is refused.
        let past = self.volume.is_snapshot();
        if wanted.has(Access::MAXIMUM_ALLOWED) {
            let most =
                if past { allowed.without(CHANGE.or(Access::DELETE_CHILD)) } else { allowed };
            wanted = wanted.without(Access::MAXIMUM_ALLOWED).or(most);
        }
        if wanted.any(Access::ALL.without(allowed)) {
            return Err(NtStatus::ACCESS_DENIED);
        }
        if self.request.options.has(CreateOptions::DELETE_ON_CLOSE) {
            if !wanted.has(Access::DELETE) {
                return Err(NtStatus::ACCESS_DENIED);
            }
            if attributes.has(FileAttributes::READONLY) || past {
                return Err(NtStatus::CANNOT_DELETE);
            }
        }
        Ok(wanted)
    }

    /// Fails when the name or the options want another kind of thing than the one that is there
    /// (MS-FSA 2.1.5.1, phase 7).
    fn check_kind(&self, directory: bool) -> Result<(), NtStatus> {
        let options = self.request.options;
        let part = &self.name.part;
        let wants_folder =
            options.has(CreateOptions::DIRECTORY_FILE) || *part == StreamPart::Folder;
        if wants_folder && matches!(part, StreamPart::Content | StreamPart::Named(_)) {
            return Err(NtStatus::NOT_A_DIRECTORY);
        }
        if directory {
            let wants_file = options.has(CreateOptions::NON_DIRECTORY_FILE)
                && matches!(part, StreamPart::Unsaid | StreamPart::Folder);
            if wants_file || *part == StreamPart::Content {
                return Err(NtStatus::FILE_IS_A_DIRECTORY);
            }
        } else if wants_folder {
            return Err(NtStatus::NOT_A_DIRECTORY);
        }
        if self.name.slash && !self.name.path.is_root() && (!directory || self.stream().is_some()) {
            return Err(NtStatus::OBJECT_NAME_INVALID);
        }
        Ok(())
    }

    /// The named stream that is asked for.
    fn stream(&self) -> Option<&StreamName> {
        match &self.name.part {
            StreamPart::Named(name) => Some(name),
            _ => None,
        }
    }

    /// Whether the content that is there is to be thrown away.
    fn cuts(&self) -> bool {
        !matches!(self.request.disposition, Disposition::OPEN | Disposition::OPEN_IF)
    }

    fn existing(
        &self,
        fd: OwnedFd,
        stat: Stat,
        path: RelPath,
    ) -> Result<(Open, CreateAction), Refused> {
        let options = self.request.options;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let directory = kind == FileType::Directory;
        if !directory && kind != FileType::RegularFile {
            // Pipes, sockets and devices of Linux are not files to Windows.
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        if self.name.part == StreamPart::OtherIndex {
            return Err(NtStatus::INVALID_PARAMETER.into());
        }
        let stream = self.stream();
        let made = self.has_made(fd.as_fd());
        let facts = attributes::facts(fd.as_fd())?;
        // MS-FSA 2.1.5.1.2: before all else that is asked of a file that is there.
        if facts.reparse_tag != 0
            && !options.has(CreateOptions::OPEN_REPARSE_POINT)
            && let Some(point) = reparse::of(&self.volume, fd.as_fd())?
        {
            let depth = self.name.path.parts().len();
            return Err(Refused::Reparse(Box::new(Met { point, depth })));
        }
        if self.request.disposition == Disposition::CREATE && stream.is_none() && !made {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        self.check_kind(directory)?;
        let cuts = self.cuts() && !made;
        if directory && cuts && stream.is_none() {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        if path.is_root() && stream.is_none() && options.has(CreateOptions::DELETE_ON_CLOSE) {
            return Err(NtStatus::CANNOT_DELETE.into());
        }
        let folder = self.volume.folder_of(&path)?;
        let mut listed = security::access_in(fd.as_fd(), folder.as_fd(), self.sids)?;
        if !gates::holds(gates::Gate::List) {
            listed = Access::ALL;
        }
        let access = self.granted(facts.attributes, listed)?;
        if let Some(stream) = stream {
            return self.in_stream(stream, fd, &stat, &path, (access, listed), &facts);
        }
        if cuts {
            let keep = FileAttributes::HIDDEN.or(FileAttributes::SYSTEM);
            let lost = facts.attributes.and(keep).without(self.request.attributes);
            if lost != FileAttributes::NONE {
                return Err(NtStatus::ACCESS_DENIED.into());
            }
            self.check_cut(&facts, listed, true)?;
        }
        let eas = if cuts { wanted_eas(self.request)? } else { Vec::new() };
        if !eas.is_empty() && !reparse::takes_eas(facts.reparse_tag) {
            return Err(NtStatus::EAS_NOT_SUPPORTED.into());
        }
        let joined = self.join(&stat, &path, self.opener(access, cuts))?;
        let data = self.content(&fd, access, directory, cuts, joined.file.as_ref())?;
        if let (true, Some(data)) = (cuts, &data) {
            self.overwrite(&fd, data, eas)?;
        }
        let open = self.open(fd, access, joined.keep(), data, directory, None);
        Ok((open, if made { CreateAction::CREATED } else { self.action(cuts) }))
    }

    /// Throws away what a file holds, its attributes and its streams. What can be refused comes
    /// before its content goes.
    fn overwrite(&self, fd: &OwnedFd, data: &LocalFile, eas: Vec<Ea>) -> Result<(), Refused> {
        let permit = self.volume.permit(self.ceiling)?;
        let allocation = self.allocation();
        if let Some(size) = allocation {
            check_room(data.as_fd(), size)?;
        }
        // All that the file had go, those that come with the request stay; all at once.
        let mut all = eas::list(fd.as_fd())?;
        all.iter_mut().for_each(|ea| ea.value.clear());
        all.extend(eas);
        if !all.is_empty() {
            eas::set(permit, fd.as_fd(), all)?;
        }
        let wanted = self.request.attributes.or(FileAttributes::ARCHIVE);
        attributes::set_attributes(fd.as_fd(), wanted)?;
        set_length(data.as_fd(), 0)?;
        if let Some(size) = allocation
            && let Err(error) = reserve(data.as_fd(), size)
        {
            tracing::debug!(%error, size, "space that was free a moment ago is not set aside");
        }
        // What is overwritten loses its streams too, but for those that someone has open.
        self.volume.streams().clear(fd.as_fd(), |stream| self.open_files.is_open(stream))?;
        Ok(())
    }

    /// Fails unless the content of a file, `whole`, or of a stream alone may be thrown away
    /// (MS-FSA 2.1.5.1.2): with a file go its extended attributes and its attributes.
    fn check_cut(&self, facts: &Facts, listed: Access, whole: bool) -> Result<(), NtStatus> {
        self.volume.permit(self.ceiling)?;
        let mut needed = self.cutting();
        if whole {
            needed |= Access::WRITE_EA | Access::WRITE_ATTRIBUTES;
        }
        let allowed = self.ceiling.and(listed).has(needed) || !gates::holds(gates::Gate::Overwrite);
        if facts.attributes.has(FileAttributes::READONLY) || !allowed {
            return Err(NtStatus::ACCESS_DENIED);
        }
        Ok(())
    }

    /// Fails unless a stream may be added to a file.
    fn check_added(&self, facts: &Facts, listed: Access) -> Result<(), NtStatus> {
        self.volume.permit(self.ceiling)?;
        if facts.attributes.has(FileAttributes::READONLY)
            || !self.ceiling.and(listed).has(Access::WRITE_DATA)
        {
            return Err(NtStatus::ACCESS_DENIED);
        }
        Ok(())
    }

    fn action(&self, cuts: bool) -> CreateAction {
        match self.request.disposition {
            Disposition::SUPERSEDE => CreateAction::SUPERSEDED,
            _ if cuts => CreateAction::OVERWRITTEN,
            _ => CreateAction::OPENED,
        }
    }

    /// Whether a file was made by the first copy of this CREATE.
    fn has_made(&self, fd: BorrowedFd<'_>) -> bool {
        self.replays && self.mark.is_some_and(|mark| bears(fd, &mark))
    }

    /// Opens or makes a named stream of a file that is there (MS-FSA 2.1.5.1.2).
    fn in_stream(
        &self,
        name: &StreamName,
        base: OwnedFd,
        base_stat: &Stat,
        path: &RelPath,
        (access, listed): (Access, Access),
        facts: &Facts,
    ) -> Result<(Open, CreateAction), Refused> {
        let disposition = self.request.disposition;
        let store = self.volume.streams();
        let found = store.find(base.as_fd(), name)?;
        let (cuts, made) = match &found {
            // Its first copy made it, and nothing else remembers that.
            Some((file, _)) if self.has_made(file.as_fd()) => (false, true),
            Some(_) if disposition == Disposition::CREATE => {
                return Err(NtStatus::OBJECT_NAME_COLLISION.into());
            }
            Some(_) => (self.cuts(), false),
            None if matches!(disposition, Disposition::OPEN | Disposition::OVERWRITE) => {
                return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
            }
            None => (false, true),
        };
        if made {
            // MS-FSA 2.1.5.1.2: a stream that is added is written.
            self.check_added(facts, listed)?;
        } else if cuts {
            self.check_cut(facts, listed, false)?;
        }
        let file = match found {
            Some((file, _)) => file,
            None => match store.create(base.as_fd(), name, self.mark.as_ref()) {
                Ok(file) => file,
                Err(Errno::EXIST) => return Err(NtStatus::RETRY.into()),
                Err(error) => return Err(error.into()),
            },
        };
        let opened = self.open_stream(name, &file, &base, base_stat, path, access, cuts);
        if opened.is_err()
            && made
            && let Ok(stat) = rustix::fs::fstat(&file)
        {
            let _ = store.remove(base.as_fd(), name, &stat);
        }
        Ok((opened?, if made { CreateAction::CREATED } else { self.action(cuts) }))
    }

    #[expect(clippy::too_many_arguments, reason = "a stream and the file it belongs to")]
    fn open_stream(
        &self,
        name: &StreamName,
        file: &OwnedFd,
        base: &OwnedFd,
        base_stat: &Stat,
        path: &RelPath,
        access: Access,
        cuts: bool,
    ) -> Result<Open, Refused> {
        let by = self.opener(access, cuts);
        let with_base = self.join(base_stat, path, beside(&by))?;
        let stat = rustix::fs::fstat(file)?;
        // A stream is one, by whatever name of its file it was reached.
        let joined = self.join(&stat, &RelPath::root(), by)?;
        let data = self.content(file, access, false, cuts, None)?;
        if let (true, Some(data)) = (cuts, &data) {
            set_length(data.as_fd(), 0)?;
        }
        let stream = StreamOpen {
            name: std::sync::Mutex::new(
                streams::name_of(file.as_fd()).unwrap_or_else(|| name.clone()),
            ),
            file: rustix::io::fcntl_dupfd_cloexec(file, 0)?,
            base: with_base.keep(),
        };
        let base = rustix::io::fcntl_dupfd_cloexec(base, 0)?;
        let open = self.open(base, access, joined.keep(), data, false, Some(stream));
        if cuts {
            open.note_write();
        }
        Ok(open)
    }

    fn opener(&self, access: Access, cuts: bool) -> Opener {
        let (id, share, lease) = (self.id.persistent, self.request.share, self.lease);
        let overwrites = if cuts { self.cutting() } else { Access::NONE };
        let CreateInfo { client, app_instance, .. } = self.origin;
        let anew = Some(Newcomer { client: client.guid, app_instance });
        Opener { id, access, share, lease, overwrites, smb3: self.smb3, anew }
    }

    /// The right that throwing the content away takes (MS-FSA 2.1.5.1.2).
    fn cutting(&self) -> Access {
        let supersedes = self.request.disposition == Disposition::SUPERSEDE;
        if supersedes { Access::DELETE } else { Access::WRITE_DATA }
    }

    /// Joins those who have the file open; leaves them again unless it is kept.
    fn join(&self, stat: &Stat, path: &RelPath, by: Opener) -> Result<Joined<'_>, Refused> {
        let file = self.open_files.join(stat, &self.volume.system(path), by)?;
        Ok(Joined { open_files: &self.open_files, file: Some(file), id: by.id })
    }

    /// Opens the content as far as the access needs it, or cutting it does. That of a file itself,
    /// which is open here, is claimed: no other program writes it meanwhile.
    fn content(
        &self,
        fd: &OwnedFd,
        access: Access,
        directory: bool,
        cuts: bool,
        file: Option<&Arc<OpenFile>>,
    ) -> Result<Option<Arc<LocalFile>>, Refused> {
        if directory || !(access.any(CONTENT) || cuts) {
            return Ok(None);
        }
        // Nothing of a snapshot is written, whatever was asked for, and so nobody is kept from it.
        let changes = access.any(CHANGE) || cuts;
        let writes = changes && !self.volume.is_snapshot();
        let content = self.local(reopen(fd, flags(access, writes))?, !writes)?;
        if let Some(file) = file.filter(|_| writes || !changes) {
            file.claim(self.id.persistent, &content, cuts)?;
        }
        Ok(Some(content))
    }

    fn local(&self, fd: OwnedFd, read_only: bool) -> Result<Arc<LocalFile>, Errno> {
        LocalFile::from_fd(fd, self.request.name.clone(), read_only, self.engine)
            .map(Arc::new)
            .map_err(|_| Errno::OPNOTSUPP)
    }

    fn open(
        &self,
        handle: OwnedFd,
        access: Access,
        file: Arc<OpenFile>,
        data: Option<Arc<LocalFile>>,
        directory: bool,
        stream: Option<StreamOpen>,
    ) -> Open {
        Open::new(Parts {
            id: self.id,
            access,
            ceiling: self.ceiling,
            options: self.request.options,
            file,
            data,
            handle,
            stream,
            directory,
            volume: self.volume.clone(),
            open_files: self.open_files.clone(),
            lease: self.lease,
            origin: self.origin.clone(),
        })
    }

    fn fresh(&self, folder: &OwnedFd, path: RelPath) -> Result<(Open, CreateAction), Refused> {
        let options = self.request.options;
        if matches!(self.request.disposition, Disposition::OPEN | Disposition::OVERWRITE) {
            return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
        }
        let stream = self.stream();
        let directory =
            options.has(CreateOptions::DIRECTORY_FILE) || self.name.part == StreamPart::Folder;
        if directory && matches!(self.name.part, StreamPart::Content | StreamPart::Named(_)) {
            return Err(NtStatus::NOT_A_DIRECTORY.into());
        }
        if self.name.slash && !directory {
            return Err(NtStatus::OBJECT_NAME_INVALID.into());
        }
        let adds = if directory { Access::APPEND_DATA } else { Access::WRITE_DATA };
        let permit = self.volume.permit(self.ceiling)?;
        if !self.ceiling.has(adds) {
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        if directory && self.request.attributes.has(FileAttributes::TEMPORARY) {
            return Err(NtStatus::INVALID_PARAMETER.into());
        }
        let read_only = self.request.attributes.has(FileAttributes::READONLY);
        if read_only && options.has(CreateOptions::DELETE_ON_CLOSE) {
            return Err(NtStatus::CANNOT_DELETE.into());
        }
        let access = self.granted(FileAttributes::NONE, Access::ALL)?;
        if let Some(lease) = self.lease {
            self.open_files.check_lease(lease, None)?;
        }
        let above = security::Above::of(folder.as_fd())?;
        if !above.access(self.sids).has(adds) {
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        let beginning = Beginning::of(self.request, directory, above, self.sids)?;
        let path = self.volume.tunnelled(folder.as_fd(), path);
        let (_, name) = path.split().ok_or(NtStatus::OBJECT_NAME_COLLISION)?;
        let mark = self.mark.as_ref().filter(|_| stream.is_none() && !directory);
        // What keeps others out, and what a replay looks for, is there before the name is. It costs a
        // file some 10 µs, so one that is open to all who may use the share begins afterwards.
        let first = mark.is_some() || beginning.keeps_out();
        let mut beginning = Some(beginning);
        let mut begin = |fd: BorrowedFd<'_>| -> Result<(), Refused> {
            let Some(beginning) = beginning.take() else { return Ok(()) };
            mark.map_or(Ok(()), |mark| permit.mark(fd, mark))?;
            beginning.give(permit, fd)
        };
        let made = match (directory, first) {
            (true, _) => permit.create_folder(folder.as_fd(), name, &mut begin),
            (false, true) => permit.create_prepared(folder.as_fd(), name, &mut begin),
            (false, false) => permit.create_file(folder.as_fd(), name).map(Ok),
        };
        let fd = match made {
            Ok(begun) => begun?,
            // It is there now, or its folder is gone or leads elsewhere: look again.
            Err(Errno::EXIST | Errno::LOOP) => return Err(NtStatus::RETRY.into()),
            Err(Errno::NOENT) => return Err(NtStatus::OBJECT_PATH_NOT_FOUND.into()),
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        let mut finish = || -> Result<Fresh, Refused> {
            begin(fd.as_fd())?;
            if let Some(name) = stream {
                let file = self.volume.streams().create(fd.as_fd(), name, self.mark.as_ref())?;
                let open = self.open_stream(name, &file, &fd, &stat, &path, access, false)?;
                return Ok(Fresh::Stream(Box::new(open)));
            }
            let joined = self.join(&stat, &path, self.opener(access, false))?;
            let mut data = None;
            if !directory && access.any(CONTENT) {
                let content = self.local(rustix::io::fcntl_dupfd_cloexec(&fd, 0)?, false)?;
                let id = self.id.persistent;
                joined.file.iter().try_for_each(|file| file.claim(id, &content, false))?;
                data = Some(content);
            }
            if !directory && let Some(size) = self.allocation() {
                reserve(fd.as_fd(), size)?;
            }
            Ok(Fresh::File(joined.keep(), data))
        };
        match finish() {
            Ok(Fresh::Stream(open)) => Ok((*open, CreateAction::CREATED)),
            Ok(Fresh::File(file, data)) => {
                let open = self.open(fd, access, file, data, directory, None);
                Ok((open, CreateAction::CREATED))
            }
            Err(error) => {
                // Whoever has opened it since it was made may have written to it already.
                if !self.open_files.is_open(&stat) {
                    let _ = permit.remove(&path, &stat);
                    let _ = permit.forget_streams(fd.as_fd());
                }
                Err(error)
            }
        }
    }

    /// The size that the client wants to be set aside (MS-SMB2 3.3.5.9.3).
    fn allocation(&self) -> Option<u64> {
        let data = context::find(&self.request.contexts, names::ALSI)?;
        let size = data.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))?;
        (size > 0 && size <= i64::MAX as u64).then_some(size)
    }
}

/// How the content is opened for an access.
fn flags(access: Access, writes: bool) -> OFlags {
    match (access.any(Access::READ_DATA.or(Access::EXECUTE)), writes) {
        (_, false) => OFlags::RDONLY,
        (false, true) => OFlags::WRONLY,
        (true, true) => OFlags::RDWR,
    }
}

/// Opens the content of a file again that an open had with that access; `name` is for messages.
pub fn content_again(
    fd: &OwnedFd,
    access: Access,
    name: &str,
    engine: Engine,
) -> Result<Option<Arc<LocalFile>>, Errno> {
    if !access.any(CONTENT) {
        return Ok(None);
    }
    let writes = access.any(CHANGE);
    LocalFile::from_fd(reopen(fd, flags(access, writes))?, name, !writes, engine)
        .map(|file| Some(Arc::new(file)))
        .map_err(|_| Errno::OPNOTSUPP)
}

/// What a CREATE made.
enum Fresh {
    /// A file or folder that has been joined, and its content if that is to be used.
    File(Arc<OpenFile>, Option<Arc<LocalFile>>),
    /// A file with a named stream.
    Stream(Box<Open>),
}

/// A place among those who have a file open.
struct Joined<'a> {
    open_files: &'a OpenFileTable,
    file: Option<Arc<OpenFile>>,
    id: u64,
}

impl Joined<'_> {
    /// The place is taken for good; who has it leaves by itself.
    fn keep(mut self) -> Arc<OpenFile> {
        self.file.take().expect("a place is kept once, by value")
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            self.open_files.leave(file, self.id, |_| {});
        }
    }
}
