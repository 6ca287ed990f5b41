//! A share's folder as Windows sees it: names, opens, sharing, attributes, listings.
//!
//! ```text
//!  name ("a\b.vhdx") ─► path (checked parts) ─► Volume::find (openat2 BENEATH, case folded)
//!                                                   │
//!  Open (one CREATE) ─► Node (one file: who has it open, how; delete pending) ─► LocalFile
//! ```
//!
//! Every path is resolved by the kernel below the share's folder; nothing leaves it, neither by
//! `..` nor by a symbolic link. A file is reached by descriptor from then on, never by path.

pub mod attributes;
pub mod kept;
pub mod listing;
pub mod node;
pub mod open;
pub mod path;
pub mod pattern;
pub mod security;

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use smb_protocol::{NtStatus, name::same_name};

use crate::status::of_errno;
pub use path::RelPath;

/// The folder of a share.
#[derive(Debug)]
pub struct Volume {
    root: OwnedFd,
}

/// Where a name leads.
#[derive(Debug)]
pub enum Found {
    /// To something; the path has the case that the disk has.
    Here {
        /// Opened without access to its content.
        fd: OwnedFd,
        /// What it is.
        stat: Stat,
        /// Its name as the disk has it.
        path: RelPath,
    },
    /// To nothing, but the folder it would be in is there.
    Missing {
        /// The name with the folder's part as the disk has it.
        path: RelPath,
    },
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

impl Volume {
    /// Opens a share's folder.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// The folder itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn openat(&self, path: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { OsStr::new(".") } else { path };
        loop {
            match rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, RESOLVE) {
                // The kernel saw a rename while it resolved the path.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn look(&self, path: &RelPath) -> Result<(OwnedFd, Stat), Errno> {
        let fd = self.openat(&path.to_os(), OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok((fd, stat))
    }

    /// Follows a name, first with its own case, then with Windows' rules.
    pub fn find(&self, wanted: &RelPath) -> Result<Found, NtStatus> {
        match self.look(wanted) {
            Ok((fd, stat)) => return Ok(Found::Here { fd, stat, path: wanted.clone() }),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(of_errno(error)),
        }
        let mut path = RelPath::root();
        let parts = wanted.parts();
        for (index, part) in parts.iter().enumerate() {
            let last = index + 1 == parts.len();
            let mut next = path.child(part);
            let known = match self.look(&next) {
                Ok(_) => true,
                Err(Errno::NOENT) => match self.fold(&path, part)? {
                    Some(real) => {
                        next = path.child(&real);
                        true
                    }
                    None => false,
                },
                Err(error) => return Err(of_errno(error)),
            };
            match (known, last) {
                (true, _) => path = next,
                (false, true) => return Ok(Found::Missing { path: next }),
                (false, false) => return Err(NtStatus::OBJECT_PATH_NOT_FOUND),
            }
        }
        match self.look(&path) {
            Ok((fd, stat)) => Ok(Found::Here { fd, stat, path }),
            Err(Errno::NOENT) => Ok(Found::Missing { path }),
            Err(error) => Err(of_errno(error)),
        }
    }

    /// The name in `folder` that Windows holds for the same as `part`.
    fn fold(&self, folder: &RelPath, part: &str) -> Result<Option<String>, NtStatus> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = match self.openat(&folder.to_os(), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOTDIR) => return Err(NtStatus::OBJECT_PATH_NOT_FOUND),
            Err(error) => return Err(of_errno(error)),
        };
        for entry in Dir::new(fd).map_err(of_errno)? {
            let entry = entry.map_err(of_errno)?;
            if let Ok(text) = entry.file_name().to_str()
                && same_name(text, part)
            {
                return Ok(Some(text.to_owned()));
            }
        }
        Ok(None)
    }

    /// Makes a regular file that must not be there yet, opened for reading and writing.
    pub fn create_file(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        self.openat(&path.to_os(), flags, Mode::from_raw_mode(0o644))
    }

    /// Makes a folder that must not be there yet.
    pub fn create_folder(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::mkdirat(&parent, &*name, Mode::from_raw_mode(0o755))?;
        self.openat(&path.to_os(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    fn parent(&self, path: &RelPath) -> Result<(OwnedFd, OsString), Errno> {
        let (parent, name) = path.split().ok_or(Errno::BUSY)?;
        let fd = self.openat(&parent.to_os(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        Ok((fd, OsString::from(name)))
    }

    /// Removes `path` if it still names the file that `stat` describes.
    pub fn remove(&self, path: &RelPath, stat: &Stat) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        let now = rustix::fs::statat(&parent, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(now.st_mode);
        let same = (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino);
        if !same && kind != FileType::Symlink {
            return Err(Errno::NOENT);
        }
        let flags = if kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&parent, &*name, flags)
    }

    /// The folder that `path` is in, opened without access to its content.
    pub fn folder_of(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        let folder = path.split().map_or_else(RelPath::root, |(folder, _)| folder);
        self.openat(&folder.to_os(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// Gives a file another name; `replace` allows that name to be taken.
    pub fn rename(&self, from: &RelPath, to: &RelPath, replace: bool) -> Result<(), Errno> {
        let (old, old_name) = self.parent(from)?;
        let (new, new_name) = self.parent(to)?;
        let flags = if replace {
            rustix::fs::RenameFlags::empty()
        } else {
            rustix::fs::RenameFlags::NOREPLACE
        };
        rustix::fs::renameat_with(&old, &*old_name, &new, &*new_name, flags)
    }

    /// Makes the names in the folder of `path` durable.
    pub fn sync_folder(&self, path: &RelPath) -> Result<(), Errno> {
        let parent = path.split().map_or_else(RelPath::root, |(parent, _)| parent);
        let fd = self.openat(&parent.to_os(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        rustix::fs::fsync(&fd)
    }
}

/// Opens what `fd` already names with other access; no path is followed.
pub fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(magic_path(fd.as_fd()).as_str(), flags | OFlags::CLOEXEC, Mode::empty())
}

/// The path under /proc by which a descriptor can be named where no call takes it.
pub fn magic_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Whether a name as the disk has it can be shown to Windows.
pub fn presentable(name: &OsStr) -> Option<&str> {
    std::str::from_utf8(name.as_bytes()).ok().filter(|text| path::valid_part(text))
}
