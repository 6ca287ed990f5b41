//! What Windows wants to know of a file and Linux keeps elsewhere or not at all.
//!
//! DOS attributes and a creation time that a client has set live in the extended attribute
//! `user.bulkhead`: a version byte (1), three zero bytes, the attributes and the time (FILETIME,
//! 0 if not set), little-endian. A file without it has ARCHIVE, a folder has none.

use std::os::fd::BorrowedFd;

use rustix::{
    fs::{AtFlags, FileType, Stat, StatxFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};
use smb_protocol::fscc::{FileAttributes, Times, filetime_from_unix, filetime_to_unix};

use super::magic_path;

const XATTR: &str = "user.bulkhead";
const VERSION: u8 = 1;
const LEN: usize = 16;

/// Attributes that a client may set and that we keep.
const KEPT: FileAttributes = FileAttributes(
    FileAttributes::READONLY.0
        | FileAttributes::HIDDEN.0
        | FileAttributes::SYSTEM.0
        | FileAttributes::ARCHIVE.0
        | FileAttributes::TEMPORARY.0
        | FileAttributes::SPARSE_FILE.0
        | FileAttributes::OFFLINE.0
        | FileAttributes::NOT_CONTENT_INDEXED.0,
);

/// What a file is, to Windows.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Times.
    pub times: Times,
    /// Attributes, never empty.
    pub attributes: FileAttributes,
    /// Allocated bytes.
    pub allocation_size: u64,
    /// Length in bytes; 0 for a folder.
    pub end_of_file: u64,
    /// File number.
    pub file_id: u64,
    /// Hard links.
    pub links: u32,
    /// Is a folder.
    pub directory: bool,
}

/// What the extended attribute holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    attributes: FileAttributes,
    creation: u64,
}

fn read_kept(fd: BorrowedFd<'_>, directory: bool) -> Kept {
    let mut raw = [0; LEN];
    let default = if directory { FileAttributes::NONE } else { FileAttributes::ARCHIVE };
    match rustix::fs::getxattr(magic_path(fd).as_str(), XATTR, &mut raw) {
        Ok(LEN) if raw[0] == VERSION => Kept {
            attributes: FileAttributes(u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]])),
            creation: u64::from_le_bytes([
                raw[8], raw[9], raw[10], raw[11], raw[12], raw[13], raw[14], raw[15],
            ]),
        },
        _ => Kept { attributes: default, creation: 0 },
    }
}

fn write_kept(fd: BorrowedFd<'_>, kept: Kept) -> Result<(), Errno> {
    let mut raw = [0; LEN];
    raw[0] = VERSION;
    raw[4..8].copy_from_slice(&kept.attributes.0.to_le_bytes());
    raw[8..].copy_from_slice(&kept.creation.to_le_bytes());
    match rustix::fs::setxattr(magic_path(fd).as_str(), XATTR, &raw, XattrFlags::empty()) {
        // A file system without extended attributes keeps what Linux keeps.
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Asks the file system about an open file.
pub fn facts(fd: BorrowedFd<'_>) -> Result<Facts, Errno> {
    let statx = rustix::fs::statx(
        fd,
        "",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME,
    )?;
    let directory = FileType::from_raw_mode(statx.stx_mode.into()) == FileType::Directory;
    let kept = read_kept(fd, directory);
    let time = |t: rustix::fs::StatxTimestamp| filetime_from_unix(t.tv_sec, t.tv_nsec);
    let has_birth = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
    let write = time(statx.stx_mtime);
    let birth = if has_birth { time(statx.stx_btime) } else { write };
    let mut attributes = kept.attributes;
    if directory {
        attributes |= FileAttributes::DIRECTORY;
    }
    if attributes == FileAttributes::NONE {
        attributes = FileAttributes::NORMAL;
    }
    Ok(Facts {
        times: Times {
            creation: if kept.creation != 0 { kept.creation } else { birth },
            access: time(statx.stx_atime),
            write,
            change: time(statx.stx_ctime),
        },
        attributes,
        allocation_size: if directory { 0 } else { statx.stx_blocks * 512 },
        end_of_file: if directory { 0 } else { statx.stx_size },
        file_id: statx.stx_ino,
        links: statx.stx_nlink,
        directory,
    })
}

/// Gives a file the attributes of a create or set request; NORMAL and nothing mean none.
pub fn set_attributes(fd: BorrowedFd<'_>, wanted: FileAttributes) -> Result<(), Errno> {
    let directory = is_directory(fd)?;
    let mut kept = read_kept(fd, directory);
    let sparse = kept.attributes.and(FileAttributes::SPARSE_FILE);
    let wanted = wanted.and(KEPT).without(FileAttributes::SPARSE_FILE).or(sparse);
    if wanted != kept.attributes {
        kept.attributes = wanted;
        write_kept(fd, kept)?;
    }
    Ok(())
}

/// Marks a file sparse, or not.
pub fn set_sparse(fd: BorrowedFd<'_>, sparse: bool) -> Result<(), Errno> {
    let mut kept = read_kept(fd, false);
    kept.attributes = if sparse {
        kept.attributes.or(FileAttributes::SPARSE_FILE)
    } else {
        kept.attributes.without(FileAttributes::SPARSE_FILE)
    };
    write_kept(fd, kept)
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat: Stat = rustix::fs::fstat(fd)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Sets times; 0, -1 and -2 leave them (MS-FSCC 2.4.7).
pub fn set_times(fd: BorrowedFd<'_>, times: &Times) -> Result<(), Errno> {
    let given = |t: u64| t != 0 && t < u64::MAX - 1;
    if given(times.creation) {
        let mut kept = read_kept(fd, is_directory(fd)?);
        kept.creation = times.creation;
        write_kept(fd, kept)?;
    }
    if given(times.access) || given(times.write) {
        let spec = |t: u64| {
            if given(t) {
                let (seconds, nanos) = filetime_to_unix(t);
                Timespec { tv_sec: seconds, tv_nsec: nanos.into() }
            } else {
                Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT }
            }
        };
        let stamps =
            Timestamps { last_access: spec(times.access), last_modification: spec(times.write) };
        let path = magic_path(fd);
        rustix::fs::utimensat(rustix::fs::CWD, path.as_str(), &stamps, AtFlags::empty())?;
    }
    Ok(())
}
