//! Files by their descriptors: opened again, named, measured, marked.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat},
    io::Errno,
};

use super::{file_key, path};
use crate::work::{self, aside};

/// Says which CREATE made a file: `CreateGuid` and `ClientGuid`.
pub type CreateTag = [u8; 32];

/// Where a file bears its mark until the open that made it is remembered elsewhere.
pub(crate) const MADE: &str = "user.bulkhead.made";

/// Whether a file bears a mark.
pub fn bears(fd: BorrowedFd<'_>, mark: &CreateTag) -> bool {
    let mut found = [0; 32];
    let path = magic_path(fd);
    rustix::fs::getxattr(path.as_str(), MADE, &mut found[..]) == Ok(32) && found == *mark
}

/// Takes the mark away that a file may bear.
pub fn unmark(fd: BorrowedFd<'_>) {
    // It does no harm where it stays: no other CREATE has its name.
    let _ = rustix::fs::removexattr(magic_path(fd).as_str(), MADE);
}

/// Bytes whose release is not worth another thread.
const SMALL: u64 = 64 << 20;

/// Closes what may be the last that keeps a removed file. The system gives its blocks back then,
/// which takes long for a large one, so another thread does it.
pub fn close_removed(fd: impl AsFd + Send + 'static) {
    let large = |stat: Stat| stat.st_nlink == 0 && stat.st_blocks as u64 * 512 > SMALL;
    if rustix::fs::fstat(fd.as_fd()).is_ok_and(large) {
        work::later(move || drop(fd));
    }
}

/// Sets the length of a file, aside if that frees many blocks.
pub fn set_length(fd: BorrowedFd<'_>, length: u64) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let frees = (stat.st_size as u64).saturating_sub(length).min(stat.st_blocks as u64 * 512);
    let cut = || rustix::fs::ftruncate(fd, length);
    if frees > SMALL { aside(cut) } else { cut() }
}

/// Where in the system's tree the file is that `fd` names; `NOENT` if the name that `fd` was opened
/// by is gone.
pub fn place_of(fd: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    /// What the system puts behind a name that is gone; a file may also be called so.
    const GONE: &[u8] = b" (deleted)";
    let text = rustix::fs::readlink(magic_path(fd).as_str(), Vec::new())?.into_bytes();
    let gone = text.ends_with(GONE);
    let place = PathBuf::from(OsString::from_vec(text));
    if gone {
        let named = rustix::fs::statat(rustix::fs::CWD, &place, AtFlags::SYMLINK_NOFOLLOW)?;
        if file_key::key(&named) != file_key::key(&rustix::fs::fstat(fd)?) {
            return Err(Errno::NOENT);
        }
    }
    Ok(place)
}

/// Opens what `fd` already names with other access; no path is followed.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(magic_path(fd.as_fd()).as_str(), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the file that `fd` names for writing.
pub fn reopen_for_writing(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::open(magic_path(fd).as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Bytes of an allocation unit, as clients are told.
pub fn cluster_size(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(rustix::fs::fstatvfs(fd)?.f_frsize.max(512))
}

/// The path under /proc by which a descriptor can be named where no call takes it.
pub fn magic_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Whether a name as the disk has it can be shown to Windows.
pub fn presentable(name: &OsStr) -> Option<&str> {
    std::str::from_utf8(name.as_bytes()).ok().filter(|text| path::valid_part(text))
}
