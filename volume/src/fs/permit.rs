//! The one gate before a change.
//!
//! ```text
//!  Open::permit(right) ──┐  what the open was granted
//!                        ├─► Volume::permit(ceiling) ─► Permit ─► names, attributes, streams, lists
//!  CREATE, its tree ─────┘  is it the volume of now,
//!                           does its share let anything change
//! ```
//!
//! What changes a volume takes a [`Permit`], so nothing reaches it that was not asked here whether
//! the volume may be changed at all: one of the past is not (MS-FSA, `Volume.IsReadOnly`), nor is a
//! share that grants reading alone. Where a node of a cluster serves it there is another gate behind this
//! one, which closes by itself (`gate.rs`).

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Instant,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, XattrFlags},
    io::Errno,
};
use smb_protocol::{NtStatus, msg::create::Access};

use crate::fs::{
    descriptor::{CreateTag, MADE, magic_path, place_of},
    entry, file_key, gate, nameless,
    path::RelPath,
    volume::Volume,
};

/// Access to what may not be changed: read and execute.
pub const READ_ONLY: Access = Access(0x0012_00a9);

/// Rights that change something.
const CHANGES: Access = Access(
    Access::WRITE_DATA.0
        | Access::APPEND_DATA.0
        | Access::WRITE_EA.0
        | Access::DELETE_CHILD.0
        | Access::WRITE_ATTRIBUTES.0
        | Access::DELETE.0
        | Access::WRITE_DAC.0
        | Access::WRITE_OWNER.0,
);

/// The single checks, which the test of all of them opens one by one to see that it notices.
pub mod gates {
    /// A check that comes before a change.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Gate {
        /// A file's list says who gets which right.
        List,
        /// An open does what it was granted.
        Right,
        /// A name comes into a folder by a right in the folder.
        Folder,
        /// What a file holds is thrown away by rights in all of it.
        Overwrite,
        /// A name is taken from a file by a right to delete that file.
        Replaced,
    }

    #[cfg(any(test, feature = "testing"))]
    thread_local! {
        static OPEN: std::cell::Cell<Option<Gate>> = const { std::cell::Cell::new(None) };
    }

    /// From now on this thread passes a gate unchecked.
    #[cfg(any(test, feature = "testing"))]
    pub fn open(gate: Option<Gate>) {
        OPEN.set(gate);
    }

    /// Whether a check counts.
    #[cfg(any(test, feature = "testing"))]
    pub fn holds(gate: Gate) -> bool {
        OPEN.get() != Some(gate)
    }

    /// Whether a check counts: it does.
    #[cfg(not(any(test, feature = "testing")))]
    #[inline(always)]
    pub const fn holds(_: Gate) -> bool {
        true
    }
}

/// Says that whoever is about to change a volume may do so; there is no other way to change one.
#[derive(Debug, Clone, Copy)]
pub struct Permit<'a> {
    volume: &'a Volume,
}

impl Volume {
    /// Lets those change the volume whose share grants them `ceiling` at most.
    ///
    /// # Errors
    /// `MEDIA_WRITE_PROTECTED` for a volume of the past, `ACCESS_DENIED` on a share that may only be
    /// read.
    pub fn permit(&self, ceiling: Access) -> Result<Permit<'_>, NtStatus> {
        if self.past {
            return Err(NtStatus::MEDIA_WRITE_PROTECTED);
        }
        if !ceiling.any(CHANGES) {
            return Err(NtStatus::ACCESS_DENIED);
        }
        gate::pass();
        Ok(Permit { volume: self })
    }
}

impl Permit<'_> {
    /// The volume that may be changed.
    pub(crate) fn volume(&self) -> &Volume {
        self.volume
    }

    /// Makes a regular file in a folder that must not be there yet, opened for reading and writing.
    ///
    /// # Errors
    /// `LOOP` if the folder has become a reparse point, as for all that comes into a folder; what the
    /// file system says.
    pub fn create_file(&self, folder: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let _entering = entry::begin(self.volume, folder)?;
        let fd = self.volume.names.change(folder, (None, Some(name)), || {
            let flags = flags | OFlags::CLOEXEC;
            rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o640))
        })?;
        self.regroup(fd)
    }

    /// Makes a regular file as [`Permit::create_file`] does, and has it prepared before it has its name:
    /// nobody opens it whom its list is about to keep out. The refusal of `prepare` is the inner one.
    ///
    /// # Errors
    /// As [`Permit::create_file`].
    pub fn create_prepared<E>(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
        prepare: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<Result<OwnedFd, E>, Errno> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let nameless = match rustix::fs::openat(folder, ".", flags, Mode::from_raw_mode(0o640)) {
            Ok(nameless) => self.regroup(nameless)?,
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                return self.create_aside(folder, name, prepare);
            }
            Err(error) => return Err(error),
        };
        if let Err(refused) = prepare(nameless.as_fd()) {
            return Ok(Err(refused));
        }
        self.link_in(nameless.as_fd(), folder, name)?;
        // A descriptor from before it had a name does not tell the name.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(folder, name, flags, Mode::empty())?;
        let same = file_key::key(&rustix::fs::fstat(&fd)?)
            == file_key::key(&rustix::fs::fstat(&nameless)?);
        if same { Ok(Ok(fd)) } else { Err(Errno::EXIST) }
    }

    /// [`Permit::create_prepared`] on a file system without nameless files: until the file is prepared it
    /// has a name that is none to clients.
    fn create_aside<E>(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
        prepare: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<Result<OwnedFd, E>, Errno> {
        let aside = nameless::name(nameless::LINK)?;
        let (fd, first) = match self.create_file(folder, &aside) {
            // A file system that takes no such name (vfat, exFAT) keeps no list either.
            Err(Errno::INVAL) => (self.create_file(folder, name)?, name),
            made => (made?, &*aside),
        };
        let prepared = prepare(fd.as_fd());
        let placed = match (&prepared, first == name) {
            (Ok(()), true) => return Ok(Ok(fd)),
            (Ok(()), false) => {
                self.volume.names.change(folder, (None, Some(name)), || place(folder, first, name))
            }
            (Err(_), _) => Err(Errno::CANCELED),
        };
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(folder, first, AtFlags::empty());
        }
        match prepared {
            Ok(()) => placed.map(|()| Ok(fd)),
            Err(refused) => Ok(Err(refused)),
        }
    }

    /// Has a file bear the mark of the CREATE that made it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn mark(&self, fd: BorrowedFd<'_>, mark: &CreateTag) -> Result<(), Errno> {
        rustix::fs::fsetxattr(fd, MADE, mark, XattrFlags::empty())
    }

    /// Gives what was made the group that is set.
    fn regroup(&self, fd: OwnedFd) -> Result<OwnedFd, Errno> {
        if self.volume.group.is_some() {
            rustix::fs::chownat(&fd, "", None, self.volume.group, AtFlags::EMPTY_PATH)?;
        }
        Ok(fd)
    }

    /// Makes a folder in another that must not be there yet, and has it prepared before it has its name:
    /// nobody comes into it whom its list is about to keep out. Until then it has a name that is none to
    /// clients. The refusal of `prepare` is the inner one.
    ///
    /// # Errors
    /// As [`Permit::create_file`].
    pub fn create_folder<E>(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
        prepare: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<Result<OwnedFd, E>, Errno> {
        let (aside, mut refused) = (nameless::name(nameless::NEW)?, None);
        let _entering = entry::begin(self.volume, folder)?;
        let made = self.volume.names.change(folder, (None, Some(name)), || {
            let make = |name: &str| rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o750));
            // A file system that takes no such name (vfat, exFAT) keeps no list either.
            let first = match make(&aside) {
                Err(Errno::INVAL) => make(name).map(|()| name)?,
                made => made.map(|()| &*aside)?,
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let placed = rustix::fs::openat(folder, first, flags, Mode::empty())
                .and_then(|fd| self.regroup(fd))
                .and_then(|fd| match prepare(fd.as_fd()) {
                    Ok(()) if first == name => Ok(fd),
                    Ok(()) => place(folder, first, name).map(|()| fd),
                    Err(error) => {
                        refused = Some(error);
                        Err(Errno::CANCELED)
                    }
                });
            if placed.is_err() {
                let _ = rustix::fs::unlinkat(folder, first, AtFlags::REMOVEDIR);
            }
            placed
        });
        match refused {
            Some(error) => Ok(Err(error)),
            None => made.map(Ok),
        }
    }

    /// Removes `path` if it still names the file that `stat` describes.
    pub fn remove(&self, path: &RelPath, stat: &Stat) -> Result<(), Errno> {
        let (parent, name) = self.volume.parent(path)?;
        let _alone = taken::names([(parent.as_fd(), &*name)])?;
        self.volume.names.change(parent.as_fd(), (name.to_str(), None), || {
            unlink_same(parent.as_fd(), &name, stat)
        })?;
        if let Ok(folder) = rustix::fs::fstat(&parent) {
            self.volume.tunnel.went(
                file_key::key(&folder),
                &name.to_string_lossy(),
                Instant::now(),
            );
        }
        Ok(())
    }

    /// Removes the name of what `fd` names, and the streams of a file that is gone with it. The
    /// name is the one it was opened by, which may be a symbolic link, or, if that is not there any
    /// more, the one that it has now.
    pub fn remove_open(&self, fd: BorrowedFd<'_>, opened: Option<&RelPath>) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        if let Some(opened) = opened
            && self.remove(opened, &stat).is_ok()
        {
            return self.forget_streams(fd);
        }
        let place = place_of(fd)?;
        match place.strip_prefix(place_of(self.volume.root())?) {
            Ok(below) => self.remove(&RelPath::from_system(below), &stat)?,
            // It was moved out of this share through one that holds it.
            Err(_) => remove_at(&place, &stat)?,
        }
        self.forget_streams(fd)
    }

    /// Removes the streams of a file that has no name any more.
    pub fn forget_streams(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        if stat.st_nlink == 0 { self.volume.streams().clear_all(fd) } else { Ok(()) }
    }

    /// Gives the file that `stat` describes, which `from` names, another name. That name is free, or
    /// the file that `replaced` describes loses it. `NOENT` if `from` names another file by now, and
    /// `EXIST` if `to` does.
    pub fn rename(
        &self,
        (from, stat): (&RelPath, &Stat),
        to: &RelPath,
        replaced: Option<&Stat>,
    ) -> Result<(), Errno> {
        let (old, old_name) = self.volume.parent(from)?;
        let (new, new_name) = self.volume.parent(to)?;
        let _alone = taken::names([(old.as_fd(), &*old_name), (new.as_fd(), &*new_name)])?;
        let names = |folder: &OwnedFd, name: &OsStr, file: &Stat| {
            let named = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok::<_, Errno>(file_key::key(&named) == file_key::key(file))
        };
        if !names(&old, &old_name, stat)? {
            return Err(Errno::NOENT);
        }
        if let Some(replaced) = replaced
            && !names(&new, &new_name, replaced)?
        {
            return Err(Errno::EXIST);
        }
        let replace = replaced.is_some();
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let rename = || rustix::fs::renameat_with(&old, &*old_name, &new, &*new_name, flags);
        let (from, to) = (rustix::fs::fstat(&old)?, rustix::fs::fstat(&new)?);
        // A folder that another file comes to or goes from is read anew.
        let only = |folder: &Stat| file_key::key(&from) == file_key::key(folder);
        if only(&to) && !replace {
            let names = (old_name.to_str(), new_name.to_str());
            return self.volume.names.change(old.as_fd(), names, rename);
        }
        let _entering = entry::begin(self.volume, new.as_fd())?;
        rename()
    }

    /// Gives what `fd` names one more name, which must be free, or the file that `replaced` describes
    /// loses it. The name is there all the time: it names the one file or the other. `EXIST` if it
    /// names a third by now.
    pub fn link(
        &self,
        fd: BorrowedFd<'_>,
        to: &RelPath,
        replaced: Option<&Stat>,
    ) -> Result<(), Errno> {
        let (folder, name) = self.volume.parent(to)?;
        let Some(replaced) = replaced else {
            return self.link_in(fd, folder.as_fd(), &name.to_string_lossy());
        };
        let _alone = taken::names([(folder.as_fd(), &*name)])?;
        let named = rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        if file_key::key(&named) != file_key::key(replaced) {
            return Err(Errno::EXIST);
        }
        let aside = nameless::name(nameless::LINK)?;
        self.link_in(fd, folder.as_fd(), &aside)?;
        let renamed = rustix::fs::renameat(&folder, aside.as_str(), &folder, &*name);
        if renamed.is_err() {
            rustix::fs::unlinkat(&folder, aside.as_str(), AtFlags::empty())?;
        }
        renamed
    }

    fn link_in(&self, fd: BorrowedFd<'_>, folder: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let path = magic_path(fd);
        let follow = AtFlags::SYMLINK_FOLLOW;
        let _entering = entry::begin(self.volume, folder)?;
        self.volume.names.change(folder, (None, Some(name)), || {
            rustix::fs::linkat(rustix::fs::CWD, path.as_str(), folder, name, follow)
        })
    }
}

/// Gives a new file or folder its name, which must be free.
fn place(folder: BorrowedFd<'_>, aside: &str, name: &str) -> Result<(), Errno> {
    match rustix::fs::renameat_with(folder, aside, folder, name, RenameFlags::NOREPLACE) {
        // A file system that cannot tell: what is there is looked for.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let _alone = taken::names([(folder, OsStr::new(name))])?;
            match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => rustix::fs::renameat(folder, aside, folder, name),
                Err(error) => Err(error),
            }
        }
        other => other,
    }
}

/// Names that are taken away from their files: one after the other, so that a name that was just
/// seen to be of a file is so until it is taken away. What other programs of the machine do in that
/// moment is not kept out.
mod taken {
    use std::{
        hash::{DefaultHasher, Hash, Hasher},
        sync::{MutexGuard, PoisonError},
    };

    use super::{BorrowedFd, Errno, OsStr, file_key};
    use crate::fs::shards::{Shards, place};

    static NAMES: Shards = Shards::new();

    /// Held while these names, each in its folder, are looked at and taken away.
    pub fn names<const N: usize>(
        names: [(BorrowedFd<'_>, &OsStr); N],
    ) -> Result<Vec<MutexGuard<'static, ()>>, Errno> {
        let mut shards = Vec::with_capacity(N);
        for (folder, name) in names {
            let mut hasher = DefaultHasher::new();
            let folder = file_key::key(&rustix::fs::fstat(folder)?);
            folder.hash(&mut hasher);
            name.hash(&mut hasher);
            shards.push(place((folder.0, hasher.finish())));
        }
        // In one order, so that nobody waits for who waits for them.
        shards.sort_unstable();
        shards.dedup();
        let hold = |shard| NAMES.at(shard).lock().unwrap_or_else(PoisonError::into_inner);
        Ok(shards.into_iter().map(hold).collect())
    }
}

/// Removes a name if it still names the file that `stat` describes, or is a link to it.
fn unlink_same(folder: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> Result<(), Errno> {
    let now = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(now.st_mode);
    let means = match kind {
        FileType::Symlink => rustix::fs::statat(folder, name, AtFlags::empty())?,
        _ => now,
    };
    if (means.st_dev, means.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(Errno::NOENT);
    }
    if kind != FileType::Directory {
        return rustix::fs::unlinkat(folder, name, AtFlags::empty());
    }
    match rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            nameless::clear(folder, name)?;
            rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
        }
        other => other,
    }
}

fn remove_at(place: &Path, stat: &Stat) -> Result<(), Errno> {
    let (Some(folder), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(Errno::BUSY);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS;
    let folder = rustix::fs::openat2(rustix::fs::CWD, folder, flags, Mode::empty(), resolve)?;
    unlink_same(folder.as_fd(), name, stat)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fs::volume::Volume;

    /// A server that was killed while it made a folder in another keeps nobody from removing that.
    #[test]
    fn what_was_being_made_in_a_folder_goes_with_it() {
        let root = tempfile::tempdir().unwrap();
        let within = root.path().join("d");
        fs::create_dir_all(within.join(nameless::name(nameless::NEW).unwrap())).unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let stat = rustix::fs::stat(&within).unwrap();
        fs::write(within.join("kept"), "").unwrap();
        let path = RelPath::parse("d").unwrap();
        assert_eq!(permit.remove(&path, &stat), Err(Errno::NOTEMPTY));
        fs::remove_file(within.join("kept")).unwrap();
        permit.remove(&path, &stat).unwrap();
        assert!(!within.exists());
    }

    /// Nobody comes into a folder before it has its list, and one that is refused leaves nothing.
    #[test]
    fn a_folder_is_prepared_before_it_has_its_name() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let make = |name: &str, outcome: Result<(), NtStatus>| {
            permit.create_folder(volume.root(), name, |fd| {
                assert!(!root.path().join(name).exists());
                assert!(place_of(fd).unwrap().file_name().unwrap().to_string_lossy().contains(':'));
                outcome
            })
        };
        let fd = make("d", Ok(())).unwrap().unwrap();
        assert_eq!(place_of(fd.as_fd()).unwrap(), root.path().canonicalize().unwrap().join("d"));
        assert_eq!(make("e", Err(NtStatus::DISK_FULL)).unwrap().unwrap_err(), NtStatus::DISK_FULL);
        fs::write(root.path().join("f"), "").unwrap();
        let taken = |_: BorrowedFd<'_>| Ok::<_, NtStatus>(());
        for name in ["d", "f"] {
            let made = permit.create_folder(volume.root(), name, taken);
            assert_eq!(made.unwrap_err(), Errno::EXIST);
        }
        let mut names: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["d", "f"]);
    }

    /// Nobody opens a file before it has its list, whatever the file system can, and one that is refused
    /// leaves nothing.
    #[test]
    fn a_file_is_prepared_before_it_has_its_name() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let make = |name: &str, aside, outcome: Result<(), NtStatus>| {
            let prepare = |_: BorrowedFd<'_>| {
                assert!(!root.path().join(name).exists());
                outcome
            };
            match aside {
                true => permit.create_aside(volume.root(), name, prepare),
                false => permit.create_prepared(volume.root(), name, prepare),
            }
        };
        for (aside, name) in [(true, "a"), (false, "b")] {
            let fd = make(name, aside, Ok(())).unwrap().unwrap();
            let place = root.path().canonicalize().unwrap().join(name);
            assert_eq!(place_of(fd.as_fd()).unwrap(), place);
            let refused = make("c", aside, Err(NtStatus::DISK_FULL)).unwrap();
            assert_eq!(refused.unwrap_err(), NtStatus::DISK_FULL);
            let taken = |_: BorrowedFd<'_>| Ok::<_, NtStatus>(());
            let made = match aside {
                true => permit.create_aside(volume.root(), name, taken),
                false => permit.create_prepared(volume.root(), name, taken),
            };
            assert_eq!(made.unwrap_err(), Errno::EXIST);
        }
        let mut names: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
    }
}
