//! Previous versions of a share: read-only copies of its tree that share their blocks with it.
//!
//! ```text
//!  <root of a share>/.bulkhead/snapshots/@GMT-2026.11.21-00.38.05/   the tree as it was then
//!                                        .new-…                     one that is being made
//!                                        .gone-…                    one that is being removed
//! ```
//!
//! On Btrfs, where the share is a subvolume, one is a snapshot of it, taken in an instant. On
//! other file systems whose files share blocks each file is cloned in turn: a file is never of
//! two times, but two files can be a moment apart. Only a finished copy has its name, so what a
//! crash leaves is never shown; it is removed when the next snapshot is made.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, XattrFlags,
    },
    io::Errno,
};
use smb_protocol::fscc::snapshots::SnapshotTime;

use crate::fs::{attributes, path::PRIVATE, space, streams, volume::Volume};

/// Deepest folder that is copied. Clients reach none that is deeper: its path is longer than the
/// system takes.
const DEPTH: usize = 2048;
/// Snapshots of one share.
const MOST: usize = 512;

/// Why a snapshot was not made or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system cannot share blocks.
    #[error("the file system of the share cannot share blocks; put the share on Btrfs or XFS")]
    Unsupported,
    /// There are too many.
    #[error("the share has {MOST} snapshots; delete some")]
    TooMany,
    /// There is none of that time.
    #[error("the share has no snapshot {0}")]
    Missing(SnapshotTime),
    /// The file system refused.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// Why not.
        source: Errno,
    },
}

type Result<T> = std::result::Result<T, SnapshotError>;

/// Says what was being done when the file system refused.
trait While<T> {
    fn when(self, what: impl Into<String>) -> Result<T>;
}

impl<T> While<T> for std::result::Result<T, Errno> {
    fn when(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| SnapshotError::System { what: what.into(), source })
    }
}

/// Snapshots of a share that are open.
#[derive(Debug, Default)]
pub struct Snapshots {
    open: Mutex<BTreeMap<SnapshotTime, Arc<Volume>>>,
    /// Held while one is made or removed.
    work: Mutex<()>,
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

fn open_at(folder: BorrowedFd<'_>, name: &CStr) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::openat(folder, name, FOLDER, Mode::empty())
}

/// Opens a folder below `folder`, made if it is missing.
fn made_at(folder: BorrowedFd<'_>, name: &str) -> std::result::Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    rustix::fs::openat(folder, name, FOLDER, Mode::empty())
}

impl Volume {
    fn snapshot_folder(&self, make: bool) -> std::result::Result<OwnedFd, Errno> {
        if make {
            let private = made_at(self.root(), PRIVATE)?;
            return made_at(private.as_fd(), "snapshots");
        }
        let private = rustix::fs::openat(self.root(), PRIVATE, FOLDER, Mode::empty())?;
        rustix::fs::openat(&private, "snapshots", FOLDER, Mode::empty())
    }

    /// When the snapshots were taken, the last first.
    pub fn snapshots(&self) -> std::result::Result<Vec<SnapshotTime>, Errno> {
        let folder = match self.snapshot_folder(false) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut times: Vec<SnapshotTime> = Vec::new();
        for entry in Dir::new(folder)? {
            let entry = entry?;
            if let Ok(time) = entry.file_name().to_str().unwrap_or("").parse() {
                times.push(time);
            }
        }
        times.sort_unstable_by(|a, b| b.cmp(a));
        Ok(times)
    }

    /// The share as it was at a time, if a snapshot was taken then.
    pub fn snapshot(&self, time: SnapshotTime) -> std::result::Result<Option<Arc<Volume>>, Errno> {
        let mut open = self.snapshots.open.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = match self.snapshot_folder(false) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let name = time.to_string();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&folder, name.as_str(), flags, Mode::empty()) {
            Ok(root) => {
                if let Some(volume) = open.get(&time) {
                    return Ok(Some(volume.clone()));
                }
                let mut volume = Volume::from_root(root, true)?;
                volume.elsewhere = self.elsewhere.clone();
                let volume = Arc::new(volume);
                open.insert(time, volume.clone());
                Ok(Some(volume))
            }
            Err(Errno::NOENT) => {
                open.remove(&time);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a snapshot of the share as it is now.
    ///
    /// # Errors
    /// Where the file system cannot, or refuses; nothing is left then.
    pub fn take_snapshot(&self) -> Result<SnapshotTime> {
        let _alone = self.snapshots.work.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.shares_blocks() {
            return Err(SnapshotError::Unsupported);
        }
        let folder = self.snapshot_folder(true).when("making the folder of snapshots")?;
        let there = self.snapshots().when("listing snapshots")?;
        if there.len() >= MOST {
            return Err(SnapshotError::TooMany);
        }
        self.clear_leavings(folder.as_fd())?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        // A second has one snapshot, and a later one has a later time.
        let last = there.first().map_or(0, |time| time.unix() + 1);
        let time = SnapshotTime::from_unix(now.max(last)).ok_or(SnapshotError::TooMany)?;
        let (name, fresh) = (time.to_string(), format!(".new-{time}"));
        let root = rustix::fs::openat(self.root(), ".", FOLDER, Mode::empty());
        let root = root.when("opening the share")?;
        if !snapshot_subvolume(root.as_fd(), folder.as_fd(), &fresh) {
            let made = made_at(folder.as_fd(), &fresh).when("making the snapshot's folder")?;
            let copied = deep(|| copy_tree(root.as_fd(), made.as_fd(), 0));
            if copied.is_err() {
                let _ = remove(folder.as_fd(), &fresh);
            }
            copied?;
            rustix::fs::syncfs(&made).when("writing the snapshot")?;
        }
        let named = rustix::fs::renameat_with(
            &folder,
            fresh.as_str(),
            &folder,
            name.as_str(),
            RenameFlags::NOREPLACE,
        );
        named.when("naming the snapshot")?;
        rustix::fs::fsync(&folder).when("naming the snapshot")?;
        Ok(time)
    }

    /// Removes a snapshot; what is open in it stays readable until it is closed.
    pub fn delete_snapshot(&self, time: SnapshotTime) -> Result<()> {
        let _alone = self.snapshots.work.lock().unwrap_or_else(PoisonError::into_inner);
        self.snapshots.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&time);
        let folder = self.snapshot_folder(false).map_err(|_| SnapshotError::Missing(time))?;
        let (name, gone) = (time.to_string(), format!(".gone-{time}"));
        match rustix::fs::renameat(&folder, name.as_str(), &folder, gone.as_str()) {
            Err(Errno::NOENT) => return Err(SnapshotError::Missing(time)),
            other => other.when("removing the snapshot's name")?,
        }
        remove(folder.as_fd(), &gone)
    }

    /// Removes what was being made or removed when the server ended.
    fn clear_leavings(&self, folder: BorrowedFd<'_>) -> Result<()> {
        let again = rustix::fs::openat(folder, ".", FOLDER, Mode::empty());
        let listing = again.and_then(Dir::new).when("listing snapshots")?;
        for entry in listing {
            let entry = entry.when("listing snapshots")?;
            let name = entry.file_name().to_string_lossy();
            if name.starts_with(".new-") || name.starts_with(".gone-") {
                remove(folder, &name)?;
            }
        }
        Ok(())
    }
}

/// Runs what goes down a tree on a thread whose stack is deep enough for [`DEPTH`] folders.
fn deep(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    const STACK: usize = 16 << 20;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
            .when("starting a thread")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Copies what a folder holds: files by sharing their blocks, with their extended attributes.
fn copy_tree(source: BorrowedFd<'_>, target: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > DEPTH {
        // One user's folders must not keep all others from their previous versions.
        let place = crate::fs::descriptor::place_of(source).unwrap_or_default();
        let end = place.components().rev().take(3).collect::<Vec<_>>();
        tracing::warn!(?end, "a folder nested more than {DEPTH} deep is not in the snapshot");
        return Ok(());
    }
    for entry in list(source)? {
        let name = entry.as_c_str();
        let shown = || name.to_string_lossy().into_owned();
        let stat = match rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error).when(shown()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let Ok(from) = open_at(source, name) else { continue };
                let mode = Mode::from_raw_mode(0o700);
                rustix::fs::mkdirat(target, name, mode).when(shown())?;
                let to = open_at(target, name).when(shown())?;
                if name.to_bytes() == PRIVATE.as_bytes() {
                    // Of what is the server's own only the streams belong to the files.
                    let streams = c"streams";
                    if let Ok(from) = open_at(from.as_fd(), streams) {
                        rustix::fs::mkdirat(&to, streams, mode).when(shown())?;
                        let to = open_at(to.as_fd(), streams).when(shown())?;
                        copy_tree(from.as_fd(), to.as_fd(), depth + 1)?;
                    }
                } else {
                    copy_tree(from.as_fd(), to.as_fd(), depth + 1)?;
                }
                copy_facts(from.as_fd(), to.as_fd(), &stat).when(shown())?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let from = match rustix::fs::openat(source, name, flags, Mode::empty()) {
                    Ok(from) => from,
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error).when(shown()),
                };
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let to = rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600));
                let to = to.when(shown())?;
                space::share(from.as_fd(), 0, to.as_fd(), 0, 0).when(shown())?;
                copy_facts(from.as_fd(), to.as_fd(), &stat).when(shown())?;
            }
            FileType::Symlink => {
                let Ok(leads) = rustix::fs::readlinkat(source, name, Vec::new()) else { continue };
                rustix::fs::symlinkat(leads, target, name).when(shown())?;
            }
            // Pipes, sockets and devices are not files to Windows.
            _ => {}
        }
    }
    Ok(())
}

/// Names in a folder, without those of itself and its parent.
fn list(folder: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder).when("listing a folder")? {
        let entry = entry.when("listing a folder")?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Gives a copy the owner, mode, extended attributes and times of its source.
fn copy_facts(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    stat: &Stat,
) -> std::result::Result<(), Errno> {
    use rustix::fs::{Gid, Uid};
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match rustix::fs::fchown(target, Some(owner), Some(group)) {
        // A server without that right owns the files that it serves.
        Err(Errno::PERM) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; 64 << 10];
    let used = rustix::fs::flistxattr(source, &mut names[..])?;
    let mut value = vec![0; 64 << 10];
    for name in names[..used].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = CString::new(name) else { continue };
        let len = match rustix::fs::fgetxattr(source, &name, &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error),
        };
        match rustix::fs::fsetxattr(target, &name, &value[..len], XattrFlags::empty()) {
            // Those of the system's own are not for everyone to set.
            Err(Errno::PERM | Errno::OPNOTSUPP) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    streams::adopt(target, stat.st_ino)?;
    let creation = attributes::facts(source)?.times.creation;
    let kept = attributes::Change { creation: Some(creation), ..Default::default() };
    attributes::set(target, &kept)?;
    let time = |tv_sec, nanos: u64| Timespec { tv_sec, tv_nsec: nanos.try_into().unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(target, &times)
}

/// Removes a folder with all it holds, or a subvolume.
fn remove(folder: BorrowedFd<'_>, name: &str) -> Result<()> {
    if destroy_subvolume(folder, name) {
        return Ok(());
    }
    let opened = rustix::fs::openat(folder, name, FOLDER, Mode::empty()).when(name)?;
    deep(|| remove_tree(opened.as_fd(), 0))?;
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).when(name)
}

fn remove_tree(folder: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > DEPTH + 8 {
        return Err(Errno::NAMETOOLONG)
            .when("removing folders that nobody here has nested so deep");
    }
    for name in list(folder)? {
        let shown = || name.to_string_lossy().into_owned();
        match open_at(folder, &name) {
            Ok(below) => {
                remove_tree(below.as_fd(), depth + 1)?;
                rustix::fs::unlinkat(folder, &*name, AtFlags::REMOVEDIR).when(shown())?;
            }
            Err(_) => rustix::fs::unlinkat(folder, &*name, AtFlags::empty()).when(shown())?,
        }
    }
    Ok(())
}

/// Takes a read-only snapshot of a Btrfs subvolume; `false` if that is not possible.
#[expect(unsafe_code, reason = "BTRFS_IOC_SNAP_CREATE_V2 has no safe wrapper")]
fn snapshot_subvolume(root: BorrowedFd<'_>, folder: BorrowedFd<'_>, name: &str) -> bool {
    use std::os::fd::AsRawFd;

    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

    /// `struct btrfs_ioctl_vol_args_v2` (linux/btrfs.h).
    #[repr(C)]
    struct Args {
        fd: i64,
        transid: u64,
        flags: u64,
        unused: [u64; 4],
        name: [u8; 4040],
    }
    const SNAP_CREATE_V2: Opcode = opcode::write::<Args>(0x94, 23);
    const READ_ONLY: u64 = 2;
    let mut args = Args {
        fd: root.as_raw_fd().into(),
        transid: 0,
        flags: READ_ONLY,
        unused: [0; 4],
        name: [0; 4040],
    };
    if !is_btrfs(root) || name.len() >= args.name.len() {
        return false;
    }
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the control reads one `btrfs_ioctl_vol_args_v2`, which `Args` lays out field by
    // field with a name that ends in a zero byte; its descriptor is borrowed for the whole call.
    unsafe { ioctl(folder, Setter::<SNAP_CREATE_V2, Args>::new(args)) }.is_ok()
}

/// Removes a Btrfs subvolume; `false` if it is none or may not be removed so.
#[expect(unsafe_code, reason = "BTRFS_IOC_SNAP_DESTROY has no safe wrapper")]
fn destroy_subvolume(folder: BorrowedFd<'_>, name: &str) -> bool {
    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

    /// `struct btrfs_ioctl_vol_args` (linux/btrfs.h).
    #[repr(C)]
    struct Args {
        fd: i64,
        name: [u8; 4088],
    }
    const SNAP_DESTROY: Opcode = opcode::write::<Args>(0x94, 15);
    let mut args = Args { fd: 0, name: [0; 4088] };
    if !is_btrfs(folder) || name.len() >= args.name.len() {
        return false;
    }
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the control reads one `btrfs_ioctl_vol_args`, which `Args` lays out field by field
    // with a name that ends in a zero byte.
    unsafe { ioctl(folder, Setter::<SNAP_DESTROY, Args>::new(args)) }.is_ok()
}

fn is_btrfs(fd: BorrowedFd<'_>) -> bool {
    const BTRFS: u64 = 0x9123_683e;
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u64 == BTRFS)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    /// On a file system that shares blocks; elsewhere the refusal is checked.
    #[test]
    fn a_snapshot_keeps_the_tree_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "first").unwrap();
        std::os::unix::fs::symlink("file", at("a/b/link")).unwrap();
        let volume = Volume::open(folder.path()).unwrap();
        assert!(volume.snapshots().unwrap().is_empty());
        if !volume.shares_blocks() {
            let refused = volume.take_snapshot();
            assert!(matches!(refused, Err(SnapshotError::Unsupported)), "{refused:?}");
            return;
        }
        let first = volume.take_snapshot().unwrap();
        fs::write(at("a/b/file"), "second and longer").unwrap();
        let second = volume.take_snapshot().unwrap();
        assert!(second > first);
        assert_eq!(volume.snapshots().unwrap(), [second, first]);
        let inside =
            |time: SnapshotTime| at(".bulkhead/snapshots").join(time.to_string()).join("a/b/file");
        assert_eq!(fs::read_to_string(inside(first)).unwrap(), "first");
        assert_eq!(fs::read_to_string(inside(second)).unwrap(), "second and longer");
        let (old, new) = (fs::metadata(at("a/b/file")).unwrap(), fs::metadata(inside(second)));
        assert_eq!(old.mtime_nsec(), new.unwrap().mtime_nsec());
        assert!(volume.snapshot(first).unwrap().is_some());
        volume.delete_snapshot(first).unwrap();
        assert!(volume.snapshot(first).unwrap().is_none());
        assert!(matches!(volume.delete_snapshot(first), Err(SnapshotError::Missing(_))));
        // What a crash left is removed with the next snapshot, and never listed.
        fs::create_dir_all(at(".bulkhead/snapshots/.new-x/y")).unwrap();
        assert_eq!(volume.snapshots().unwrap(), [second]);
        let third = volume.take_snapshot().unwrap();
        assert!(!at(".bulkhead/snapshots/.new-x").exists());
        assert!(!inside(third).ancestors().nth(3).unwrap().join(".bulkhead/snapshots").exists());
    }
}
