//! One CREATE on the volume: finding or making the file, access and share checks
//! (MS-FSA 2.1.5.1).

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use block_io::{Engine, LocalFile};
use rustix::{
    fs::{FileType, OFlags, Stat},
    io::Errno,
};
use smb_protocol::{
    FileId, NtStatus,
    fscc::FileAttributes,
    msg::{
        context::{self, names},
        create::{Access, CreateAction, CreateOptions, Disposition, Request},
    },
    security::Sid,
};

use crate::{
    command::Fail,
    session::Tree,
    status::of_errno,
    volume::{
        Found, RelPath, Volume, attributes,
        node::{Node, Nodes, Opener, Refused, caching::LeaseId},
        open::{Open, Origin, Parts},
        reopen, security,
    },
};

/// Rights that need the content of a file.
const CONTENT: Access =
    Access(Access::READ_DATA.0 | Access::EXECUTE.0 | Access::WRITE_DATA.0 | Access::APPEND_DATA.0);
/// Rights that change the content of a file.
const CHANGE: Access = Access(Access::WRITE_DATA.0 | Access::APPEND_DATA.0);
/// One CREATE on its way.
pub struct Job<'a> {
    /// What is asked.
    pub request: &'a Request<'a>,
    /// On which tree.
    pub tree: &'a Tree,
    /// Who asks.
    pub sids: &'a [Sid],
    /// Where.
    pub volume: Arc<Volume>,
    /// Files that are open.
    pub nodes: Arc<Nodes>,
    /// How the open will be named.
    pub id: FileId,
    /// Which file.
    pub path: RelPath,
    /// How content is read and written.
    pub engine: Engine,
    /// The lease that the open is to have.
    pub lease: Option<LeaseId>,
    /// Where the open comes from.
    pub origin: Origin,
}

impl Job<'_> {
    /// Carries it out.
    pub fn run(self) -> Result<(Open, CreateAction), Fail> {
        // Someone may make or remove the file between our look and our step; then look again.
        for _ in 0..16 {
            let outcome = match self.volume.find(&self.path)? {
                Found::Here { fd, stat, path } => self.existing(fd, stat, path),
                Found::Missing { path } => self.fresh(path),
            };
            match outcome {
                Err(Fail::Status(NtStatus::RETRY)) => {}
                other => return other,
            }
        }
        Err(NtStatus::SHARING_VIOLATION.into())
    }

    /// What is granted of what was asked for; `attributes` are those of the file that is there
    /// and `listed` is what its access list allows.
    fn granted(&self, attributes: FileAttributes, listed: Access) -> Result<Access, NtStatus> {
        let mut wanted = self.request.access.expand_generic();
        let mut allowed = self.tree.maximal_access.and(listed);
        let directory = attributes.has(FileAttributes::DIRECTORY);
        if attributes.has(FileAttributes::READONLY) && !directory {
            if wanted.any(CHANGE) {
                return Err(NtStatus::ACCESS_DENIED);
            }
            allowed = allowed.without(CHANGE);
        }
        if wanted.has(Access::MAXIMUM_ALLOWED) {
            wanted = wanted.without(Access::MAXIMUM_ALLOWED).or(allowed);
        }
        if wanted.any(Access::ALL.without(allowed)) {
            return Err(NtStatus::ACCESS_DENIED);
        }
        if self.request.options.has(CreateOptions::DELETE_ON_CLOSE) {
            if !wanted.has(Access::DELETE) {
                return Err(NtStatus::ACCESS_DENIED);
            }
            if attributes.has(FileAttributes::READONLY) {
                return Err(NtStatus::CANNOT_DELETE);
            }
        }
        Ok(wanted)
    }

    fn existing(
        &self,
        fd: OwnedFd,
        stat: Stat,
        path: RelPath,
    ) -> Result<(Open, CreateAction), Fail> {
        let options = self.request.options;
        let disposition = self.request.disposition;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let directory = kind == FileType::Directory;
        if !directory && kind != FileType::RegularFile {
            // Pipes, sockets and devices of Linux are not files to Windows.
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        if disposition == Disposition::CREATE {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        if directory && options.has(CreateOptions::NON_DIRECTORY_FILE) {
            return Err(NtStatus::FILE_IS_A_DIRECTORY.into());
        }
        if !directory && options.has(CreateOptions::DIRECTORY_FILE) {
            return Err(NtStatus::NOT_A_DIRECTORY.into());
        }
        let cuts = !matches!(disposition, Disposition::OPEN | Disposition::OPEN_IF);
        if directory && cuts {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        if path.is_root() && options.has(CreateOptions::DELETE_ON_CLOSE) {
            return Err(NtStatus::CANNOT_DELETE.into());
        }
        let facts = attributes::facts(fd.as_fd())?;
        let mut listed = security::access(fd.as_fd(), self.sids)?;
        if !listed.has(Access::DELETE) && self.request.access.has(Access::DELETE) {
            // Whoever may delete what the folder holds may delete this (MS-FSA 2.1.5.1.2.1).
            let folder = self.volume.folder_of(&path)?;
            if security::access(folder.as_fd(), self.sids)?.has(Access::DELETE_CHILD) {
                listed |= Access::DELETE;
            }
        }
        let access = self.granted(facts.attributes, listed)?;
        if cuts {
            let keep = FileAttributes::HIDDEN.or(FileAttributes::SYSTEM);
            let lost = facts.attributes.and(keep).without(self.request.attributes);
            if facts.attributes.has(FileAttributes::READONLY)
                || lost != FileAttributes::NONE
                || !self.tree.maximal_access.and(listed).has(Access::WRITE_DATA)
            {
                return Err(NtStatus::ACCESS_DENIED.into());
            }
        }
        let sharing = if cuts { access.or(Access::WRITE_DATA) } else { access };
        let node = self.join(&stat, &path, sharing, cuts)?;
        let made = self.finish(fd, access, node.clone(), directory, cuts);
        match made {
            Ok(open) => {
                let action = match disposition {
                    Disposition::SUPERSEDE => CreateAction::SUPERSEDED,
                    _ if cuts => CreateAction::OVERWRITTEN,
                    _ => CreateAction::OPENED,
                };
                Ok((open, action))
            }
            Err(errno) => {
                self.nodes.leave(&node, self.id.persistent, |_| {});
                Err(errno.into())
            }
        }
    }

    fn join(
        &self,
        stat: &Stat,
        path: &RelPath,
        access: Access,
        overwrites: bool,
    ) -> Result<Arc<Node>, Refused> {
        let (id, share, lease) = (self.id.persistent, self.request.share, self.lease);
        self.nodes.join(stat, path, Opener { id, access, share, lease, overwrites })
    }

    fn finish(
        &self,
        fd: OwnedFd,
        access: Access,
        node: Arc<Node>,
        directory: bool,
        cuts: bool,
    ) -> Result<Open, Errno> {
        let mut data = None;
        if !directory && (access.any(CONTENT) || cuts) {
            let reads = access.any(Access::READ_DATA.or(Access::EXECUTE));
            let writes = access.any(CHANGE) || cuts;
            let flags = match (reads, writes) {
                (true, false) => OFlags::RDONLY,
                (false, true) => OFlags::WRONLY,
                _ => OFlags::RDWR,
            };
            let content = reopen(&fd, flags)?;
            if cuts {
                rustix::fs::ftruncate(&content, 0)?;
                let wanted = self.request.attributes.or(FileAttributes::ARCHIVE);
                attributes::set_attributes(fd.as_fd(), wanted)?;
            }
            data = Some(self.local(content, !writes)?);
        }
        Ok(self.open(fd, access, node, data, directory))
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
        node: Arc<Node>,
        data: Option<Arc<LocalFile>>,
        directory: bool,
    ) -> Open {
        Open::new(Parts {
            id: self.id,
            access,
            options: self.request.options,
            node,
            data,
            handle,
            directory,
            volume: self.volume.clone(),
            nodes: self.nodes.clone(),
            lease: self.lease,
            origin: self.origin.clone(),
        })
    }

    fn fresh(&self, path: RelPath) -> Result<(Open, CreateAction), Fail> {
        let options = self.request.options;
        if matches!(self.request.disposition, Disposition::OPEN | Disposition::OVERWRITE) {
            return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
        }
        let directory = options.has(CreateOptions::DIRECTORY_FILE);
        let adds = if directory { Access::APPEND_DATA } else { Access::WRITE_DATA };
        if !self.tree.maximal_access.has(adds) {
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        let read_only = self.request.attributes.has(FileAttributes::READONLY);
        if read_only && options.has(CreateOptions::DELETE_ON_CLOSE) {
            return Err(NtStatus::CANNOT_DELETE.into());
        }
        let access = self.granted(FileAttributes::NONE, Access::ALL)?;
        if let Some(lease) = self.lease {
            self.nodes.check_lease(lease, None)?;
        }
        let folder = security::own(self.volume.folder_of(&path)?.as_fd())?;
        if folder.as_ref().is_some_and(|folder| !folder.access_of(self.sids).has(adds)) {
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        let inherited = folder.and_then(|folder| folder.inherited(&self.sids[0], directory));
        let made = if directory {
            self.volume.create_folder(&path)
        } else {
            self.volume.create_file(&path)
        };
        let fd = match made {
            Ok(fd) => fd,
            // It is there now, or its folder is gone: look again.
            Err(Errno::EXIST) => return Err(NtStatus::RETRY.into()),
            Err(Errno::NOENT) => return Err(NtStatus::OBJECT_PATH_NOT_FOUND.into()),
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        let node = self.join(&stat, &path, access, false)?;
        let finish = || -> Result<Open, Errno> {
            let extra = self.request.attributes.without(FileAttributes::DIRECTORY);
            if extra.without(FileAttributes::NORMAL.or(FileAttributes::ARCHIVE))
                != FileAttributes::NONE
            {
                let base = if directory { FileAttributes::NONE } else { FileAttributes::ARCHIVE };
                attributes::set_attributes(fd.as_fd(), extra.or(base))?;
            }
            if let Some(descriptor) = &inherited {
                security::set(fd.as_fd(), descriptor)?;
            }
            let mut data = None;
            if !directory && access.any(CONTENT) {
                data = Some(self.local(rustix::io::fcntl_dupfd_cloexec(&fd, 0)?, false)?);
            }
            if !directory && let Some(size) = self.allocation() {
                reserve(&fd, size)?;
            }
            Ok(self.open(
                rustix::io::fcntl_dupfd_cloexec(&fd, 0)?,
                access,
                node.clone(),
                data,
                directory,
            ))
        };
        match finish() {
            Ok(open) => Ok((open, CreateAction::CREATED)),
            Err(error) => {
                let _ = self.volume.remove(&path, &stat);
                self.nodes.leave(&node, self.id.persistent, |_| {});
                Err(Fail::Status(of_errno(error)))
            }
        }
    }

    /// The size that the client wants to be set aside (MS-SMB2 2.2.13.2.6).
    fn allocation(&self) -> Option<u64> {
        let data = context::find(&self.request.contexts, names::ALSI)?;
        let size = data.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))?;
        (size > 0 && size <= i64::MAX as u64).then_some(size)
    }
}

/// Sets space aside without changing the length; a file system that cannot is not an error.
pub fn reserve(fd: &OwnedFd, size: u64) -> Result<(), Errno> {
    match rustix::fs::fallocate(fd, rustix::fs::FallocateFlags::KEEP_SIZE, 0, size) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}
