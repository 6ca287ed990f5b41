//! What Windows wants to know of a file and Linux keeps elsewhere or not at all.
//!
//! DOS attributes, a creation time and a change time that a client has set live in the extended
//! attribute `user.bulkhead`: a version byte (2), a byte that is 1 if a client has set the access time
//! and the file was not written since, two zero bytes, the attributes, the creation
//! time, the change time and the last moment at which the system's own change time may stand for
//! the latter to hold (each FILETIME, 0 if not set), little-endian. Without a change time it ends
//! before that, as version 1. A file without the attribute has ARCHIVE, a folder has none.

use std::{os::fd::BorrowedFd, sync::MutexGuard};

use rustix::{
    fs::{AtFlags, FileType, Stat, StatxFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};
use smb_protocol::fscc::{FileAttributes, Times, filetime_from_unix, filetime_to_unix};

use crate::{
    clock::now,
    fs::{descriptor::magic_path, number::number, reparse, shards::Shards},
};

const XATTR: &str = "user.bulkhead";
const VERSION: u8 = 2;
const LEN: usize = 32;
/// Version and length without a change time.
const FIRST: (u8, usize) = (1, 16);
/// How much later than we look at the clock the system may stamp what we then do, in 100 ns; each
/// try takes ten times as long.
const LATE: u64 = 20_000;

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

/// Attributes that say what a file is: no client sets them by asking for attributes, nor takes them
/// away so.
const OWN: FileAttributes =
    FileAttributes(FileAttributes::SPARSE_FILE.0 | FileAttributes::REPARSE_POINT.0);

/// What is kept when a client asks for these attributes.
fn asked(wanted: FileAttributes, old: FileAttributes) -> FileAttributes {
    wanted.and(KEPT).without(OWN).or(old.and(OWN))
}

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
    /// Tag of the reparse point that it is, 0 if it is none.
    pub reparse_tag: u32,
    /// Its access time is one that was set, and no write has moved it.
    pub(crate) access_set: bool,
}

/// What the extended attribute holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Kept {
    access_set: bool,
    attributes: FileAttributes,
    creation: u64,
    /// Change time, and until which moment of the system's it holds.
    change: Option<(u64, u64)>,
}

impl Kept {
    fn parse(raw: &[u8]) -> Option<Self> {
        if !matches!((*raw.first()?, raw.len()), (VERSION, LEN) | FIRST) {
            return None;
        }
        let number = |at: usize| raw.get(at..)?.first_chunk::<8>().map(|n| u64::from_le_bytes(*n));
        let change = number(16).zip(number(24)).filter(|(change, _)| *change != 0);
        let attributes = u32::from_le_bytes(*raw.get(4..)?.first_chunk()?);
        let access_set = raw.get(1) == Some(&1);
        let attributes = FileAttributes(attributes);
        Some(Self { access_set, attributes, creation: number(8)?, change })
    }

    fn encode(&self) -> Vec<u8> {
        let version = if self.change.is_some() { VERSION } else { FIRST.0 };
        let mut raw = vec![version, self.access_set.into(), 0, 0];
        raw.extend_from_slice(&self.attributes.0.to_le_bytes());
        raw.extend_from_slice(&self.creation.to_le_bytes());
        if let Some((change, until)) = self.change {
            raw.extend_from_slice(&change.to_le_bytes());
            raw.extend_from_slice(&until.to_le_bytes());
        }
        raw
    }
}

fn read_kept(fd: BorrowedFd<'_>, directory: bool) -> Kept {
    let mut raw = [0; LEN];
    let attributes = if directory { FileAttributes::NONE } else { FileAttributes::ARCHIVE };
    let got = rustix::fs::getxattr(magic_path(fd).as_str(), XATTR, &mut raw[..]);
    let kept = got.ok().and_then(|len| Kept::parse(raw.get(..len)?));
    kept.unwrap_or(Kept { attributes, ..Kept::default() })
}

fn write_raw(fd: BorrowedFd<'_>, kept: Kept) -> Result<(), Errno> {
    let path = magic_path(fd);
    match rustix::fs::setxattr(path.as_str(), XATTR, &kept.encode(), XattrFlags::empty()) {
        // A file system without extended attributes keeps what Linux keeps.
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Keeps it; this itself changes the system's change time, which must not pass for a change.
fn write_kept(fd: BorrowedFd<'_>, mut kept: Kept) -> Result<(), Errno> {
    let Some((change, _)) = kept.change else { return write_raw(fd, kept) };
    let mut late = LATE;
    for _ in 0..4 {
        let until = now() + late;
        kept.change = Some((change, until));
        write_raw(fd, kept)?;
        let stat = rustix::fs::fstat(fd)?;
        let nanos = u32::try_from(stat.st_ctime_nsec).unwrap_or(0);
        if filetime_from_unix(stat.st_ctime, nanos) <= until {
            break;
        }
        late *= 10;
    }
    Ok(())
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
    let (write, access) = (time(statx.stx_mtime), time(statx.stx_atime));
    let birth = if has_birth { time(statx.stx_btime) } else { write };
    let mut attributes = kept.attributes;
    let mut reparse_tag = 0;
    if attributes.has(FileAttributes::REPARSE_POINT) {
        reparse_tag = reparse::tag_of(fd);
        if reparse_tag == 0 {
            attributes = attributes.without(FileAttributes::REPARSE_POINT);
        }
    }
    if directory {
        attributes |= FileAttributes::DIRECTORY;
    }
    if attributes == FileAttributes::NONE {
        attributes = FileAttributes::NORMAL;
    }
    Ok(Facts {
        times: Times {
            creation: if kept.creation != 0 { kept.creation } else { birth },
            // The system does not take a write for an access (MS-FSA 2.1.4.17).
            access: if kept.access_set { access } else { access.max(write) },
            write,
            change: match kept.change {
                Some((change, until)) if time(statx.stx_ctime) <= until => change,
                _ => time(statx.stx_ctime),
            },
        },
        attributes,
        allocation_size: if directory {
            0
        } else {
            allocated(fd, statx.stx_size, statx.stx_blocks)
        },
        end_of_file: if directory { 0 } else { statx.stx_size },
        file_id: number(fd, statx.stx_ino),
        links: statx.stx_nlink,
        directory,
        reparse_tag,
        access_set: kept.access_set,
    })
}

/// Bytes allocated to content. What ext4 counts may hold a block of extended attributes, which is
/// not the client's business, and would make every new file seem to have content.
pub fn allocated(fd: BorrowedFd<'_>, size: u64, blocks: u64) -> u64 {
    const BLOCK: u64 = 4096;
    let all = blocks * 512;
    let beyond = all.saturating_sub(size.next_multiple_of(BLOCK));
    if beyond >= BLOCK && has_attribute_block(fd) { all - BLOCK } else { all }
}

/// Whether the extended attributes of a file on ext4 are more than fit beside its inode of the
/// usual size.
fn has_attribute_block(fd: BorrowedFd<'_>) -> bool {
    const EXT4: i64 = 0xef53;
    const BESIDE_INODE: usize = 88;
    const ENTRY: usize = 16;
    if rustix::fs::fstatfs(fd).map(|stat| stat.f_type) != Ok(EXT4) {
        return false;
    }
    let path = magic_path(fd);
    let (mut names, mut value) = ([0u8; 1024], [0u8; 256]);
    let Ok(len) = rustix::fs::listxattr(path.as_str(), &mut names[..]) else { return true };
    let mut sum = 0;
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(len) = rustix::fs::getxattr(path.as_str(), name, &mut value[..]) else {
            return true;
        };
        let name = name.strip_prefix(b"user.").unwrap_or(name);
        sum += ENTRY + name.len().next_multiple_of(4) + len.next_multiple_of(4);
    }
    sum > BESIDE_INODE
}

/// What of attributes and times a request changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// New attributes; NORMAL means none.
    pub attributes: Option<FileAttributes>,
    /// When it was made.
    pub creation: Option<u64>,
    /// When it was last read.
    pub access: Option<u64>,
    /// Whether that is to stand until the file is written.
    pub access_set: Option<bool>,
    /// When its content was last changed.
    pub write: Option<u64>,
    /// When anything of it was last changed.
    pub change: Option<u64>,
}

/// Gives a file the attributes of a create or set request; NORMAL and nothing mean none.
pub fn set_attributes(fd: BorrowedFd<'_>, wanted: FileAttributes) -> Result<(), Errno> {
    set(fd, &Change { attributes: Some(wanted), ..Change::default() })
}

/// Gives a file attributes, as [`set_attributes`] does, and has its change time move even if it has
/// them.
///
/// # Errors
/// What the file system says.
pub fn touch(fd: BorrowedFd<'_>, wanted: FileAttributes) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let _alone = alone(&stat);
    let old = read_kept(fd, is_directory(&stat));
    let attributes = asked(wanted, old.attributes);
    write_raw(fd, Kept { attributes, change: None, ..old })
}

/// Changes when a file was last written, for the system, and nothing else.
///
/// # Errors
/// What the file system says.
pub fn set_write_time(fd: BorrowedFd<'_>, time: u64) -> Result<(), Errno> {
    let (seconds, nanos) = filetime_to_unix(time);
    let stamps = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    };
    rustix::fs::utimensat(rustix::fs::CWD, magic_path(fd).as_str(), &stamps, AtFlags::empty())
}

/// Changes attributes and times.
pub fn set(fd: BorrowedFd<'_>, to: &Change) -> Result<(), Errno> {
    if to.access.is_some() || to.write.is_some() {
        let spec = |time: Option<u64>| match time {
            Some(time) => {
                let (seconds, nanos) = filetime_to_unix(time);
                Timespec { tv_sec: seconds, tv_nsec: nanos.into() }
            }
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        };
        let stamps = Timestamps { last_access: spec(to.access), last_modification: spec(to.write) };
        let path = magic_path(fd);
        rustix::fs::utimensat(rustix::fs::CWD, path.as_str(), &stamps, AtFlags::empty())?;
    }
    let stat = rustix::fs::fstat(fd)?;
    let _alone = alone(&stat);
    let old = read_kept(fd, is_directory(&stat));
    let mut kept = old;
    if let Some(wanted) = to.attributes {
        kept.attributes = asked(wanted, kept.attributes);
    }
    if let Some(creation) = to.creation {
        kept.creation = creation;
    }
    if let Some(set) = to.access_set {
        kept.access_set = set;
    }
    // A change time that was set before ends with any other change.
    kept.change = to.change.map(|change| (change, 0));
    if kept != (Kept { change: None, ..old }) { write_kept(fd, kept) } else { Ok(()) }
}

/// Marks a file sparse, or not.
pub fn set_sparse(fd: BorrowedFd<'_>, sparse: bool) -> Result<(), Errno> {
    mark(fd, FileAttributes::SPARSE_FILE, sparse)
}

/// Marks a file or folder as a reparse point, or not.
pub(crate) fn mark_reparse(fd: BorrowedFd<'_>, is: bool) -> Result<(), Errno> {
    mark(fd, FileAttributes::REPARSE_POINT, is)
}

/// Whether it is marked as a reparse point.
pub(crate) fn is_marked_reparse(fd: BorrowedFd<'_>) -> bool {
    read_kept(fd, false).attributes.has(FileAttributes::REPARSE_POINT)
}

fn mark(fd: BorrowedFd<'_>, which: FileAttributes, is: bool) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let _alone = alone(&stat);
    let mut kept = read_kept(fd, is_directory(&stat));
    kept.attributes = if is { kept.attributes.or(which) } else { kept.attributes.without(which) };
    write_kept(fd, kept)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Held while what a file keeps is read, changed and written: of two who change something of it at one
/// time neither undoes what the other did. What other programs of the machine do is not kept out.
fn alone(stat: &Stat) -> MutexGuard<'static, ()> {
    static FILES: Shards = Shards::new();
    FILES.lock(stat)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_kept_round_trips(
            attributes in any::<u32>(),
            (access_set, creation) in any::<(bool, u64)>(),
            change in prop::option::of((1u64.., any::<u64>())),
        ) {
            let attributes = FileAttributes(attributes);
            let kept = Kept { access_set, attributes, creation, change };
            prop_assert_eq!(Kept::parse(&kept.encode()), Some(kept));
        }

        #[test]
        fn reading_what_is_kept_is_total(raw in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Kept::parse(&raw);
        }
    }

    #[test]
    fn times_are_kept_to_the_interval() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let file = File::create(&path).unwrap();
        let base = 132_000_000_012_345_678;
        let to = Change {
            creation: Some(base),
            access: Some(base + 1),
            access_set: Some(true),
            write: Some(base + 2),
            change: Some(base + 3),
            ..Change::default()
        };
        set(file.as_fd(), &to).unwrap();
        let times = facts(file.as_fd()).unwrap().times;
        let want = Times { creation: base, access: base + 1, write: base + 2, change: base + 3 };
        assert_eq!(times, want);
        // Any other change ends what was said of the last one.
        set_attributes(file.as_fd(), FileAttributes::HIDDEN).unwrap();
        assert!(facts(file.as_fd()).unwrap().times.change > base + 3);
        assert_eq!(facts(file.as_fd()).unwrap().times.creation, base);
        // A write is an access, too, unless that was set.
        assert_eq!(facts(file.as_fd()).unwrap().times.access, base + 1);
        set(file.as_fd(), &Change { access_set: Some(false), ..Change::default() }).unwrap();
        assert_eq!(facts(file.as_fd()).unwrap().times.access, base + 2);
    }
    /// What a client asks for and what a file is are changed through different opens at one time.
    #[test]
    fn who_changes_one_thing_keeps_what_others_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let file = File::create(&path).unwrap();
        let other = File::open(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..2000u64 {
                    let hidden = FileAttributes::HIDDEN;
                    set_attributes(other.as_fd(), hidden).unwrap();
                    let to = Change { creation: Some(1 + round), ..Change::default() };
                    set(other.as_fd(), &to).unwrap();
                    touch(other.as_fd(), FileAttributes::ARCHIVE).unwrap();
                }
            });
            for round in 0..2000 {
                let is = round % 2 == 0;
                mark_reparse(file.as_fd(), is).unwrap();
                for _ in 0..4 {
                    assert_eq!(is_marked_reparse(file.as_fd()), is, "round {round}");
                }
            }
        });
    }
}
