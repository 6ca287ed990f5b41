//! Named streams (MS-FSCC 5, MS-FSA 2.1.1.5): each is a real file, so its content is read and
//! written as any other and has no limit of its own.
//!
//! ```text
//!  base file ── xattr user.bulkhead.streams: id (16 bytes), inode (8 bytes)
//!                  │
//!                  ▼
//!  <root of a share>/.bulkhead/streams/<id>/<SHA-256 of the folded name>
//!                                               └─ xattr user.bulkhead.name: the name
//!                                        /reparse: data of a reparse point too long for an attribute
//! ```
//!
//! The inode number tells a file from its copy: a copy made with its extended attributes names the
//! same folder but has no streams. A file that is removed by other means than this server leaves
//! its folder behind; [`crate::fs::sweep`] finds such folders when the server starts.
//!
//! Shares may lie inside one another, and a file's streams must be the same through all of them:
//! the folder is made below the outermost share that holds the file and looked for below all
//! shares on the same file system.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::digest;
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags, Stat, XattrFlags},
    io::Errno,
};
use smb_protocol::name::{fold, same_name};

use crate::fs::{
    attributes,
    descriptor::{CreateTag, MADE, magic_path},
    path::{PRIVATE, StreamName},
};
use crate::work::aside;

pub(crate) const MARK: &str = "user.bulkhead.streams";
const MARK_LEN: usize = 24;
const NAME: &str = "user.bulkhead.name";
/// Longest name of a stream in UTF-8.
const MAX_NAME: usize = 255 * 3;
/// Streams that one file can have.
const MAX_STREAMS: usize = 4096;
/// Streams of one file that are quickly gone through.
const FEW: usize = 64;
/// Length of the name of a stream's file.
const PLACE_LEN: usize = 64;

/// Identity of a file's streams.
pub(crate) type Id = [u8; 16];

/// A stream as listings show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its name, without colons.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// Allocated bytes.
    pub allocation: u64,
}

/// Where the streams of the files of one share are: the roots of all shares on its file system,
/// the preferred one first.
#[derive(Debug)]
pub struct StreamStore {
    homes: Vec<OwnedFd>,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &[u8]) -> Option<Id> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 32)?;
    let mut id = [0; 16];
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(id)
}

/// Where the stream is kept: names that are the same to Windows give the same file.
fn file_name(name: &StreamName) -> String {
    hex(digest::digest(&digest::SHA256, fold(name.as_str()).as_bytes()).as_ref())
}

/// Where Unicode's upper case says that it is kept.
fn former_name(name: &StreamName) -> String {
    let by_unicode = |c: char| {
        let mut upper = c.to_uppercase();
        upper.next().filter(|_| upper.next().is_none()).unwrap_or(c)
    };
    let folded: String = name.as_str().chars().map(by_unicode).collect();
    hex(digest::digest(&digest::SHA256, folded.as_bytes()).as_ref())
}

/// Where a stream of that name is now. Some were made when names were compared by Unicode's upper
/// case, and lie where that says.
fn place_of_stream(folder: BorrowedFd<'_>, name: &StreamName) -> Result<String, Errno> {
    let place = file_name(name);
    let former = former_name(name);
    if former == place {
        return Ok(place);
    }
    let bears = |place: &str, wanted: &StreamName| -> Result<Option<bool>, Errno> {
        match open_below(folder, place, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(file) => Ok(Some(
                name_of(file.as_fd()).is_some_and(|is| same_name(is.as_str(), wanted.as_str())),
            )),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    };
    match bears(&place, name)? {
        None if bears(&former, name)? == Some(true) => Ok(former),
        _ => Ok(place),
    }
}

/// Moves a stream of another name out of the place of `name`, where it lies because Unicode holds
/// the two for the same.
fn make_way(folder: BorrowedFd<'_>, name: &StreamName) -> Result<(), Errno> {
    let place = file_name(name);
    let file = match open_below(folder, &place, OFlags::PATH | OFlags::NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    match name_of(file.as_fd()) {
        Some(is) if !same_name(is.as_str(), name.as_str()) => {
            let own = file_name(&is);
            rustix::fs::renameat_with(folder, &*place, folder, &*own, RenameFlags::NOREPLACE)
        }
        _ => Ok(()),
    }
}

/// Bytes allocated to a stream.
pub fn allocated_of(file: BorrowedFd<'_>, stat: &Stat) -> u64 {
    let number = |n| u64::try_from(n).unwrap_or(0);
    attributes::allocated(file, number(stat.st_size), number(stat.st_blocks))
}

/// The name of a stream, from its file.
pub fn name_of(file: BorrowedFd<'_>) -> Option<StreamName> {
    let mut text = [0; MAX_NAME];
    let len = rustix::fs::getxattr(magic_path(file).as_str(), NAME, &mut text[..]).ok()?;
    StreamName::new(std::str::from_utf8(&text[..len]).ok()?)
}

/// The identity that an extended attribute gives a file, and the inode it was given to.
/// Whose streams a file says it has: nothing where it says nothing, or nothing that can be read.
///
/// # Errors
/// What keeps the file from being asked.
pub(crate) fn mark_of(path: &str) -> Result<Option<(Id, u64)>, Errno> {
    let mut raw = [0; MARK_LEN];
    let parse = |raw: &[u8; MARK_LEN]| {
        let (id, inode) = raw.split_first_chunk::<16>()?;
        Some((*id, u64::from_le_bytes(*inode.first_chunk()?)))
    };
    match rustix::fs::getxattr(path, MARK, &mut raw[..]) {
        Ok(MARK_LEN) => Ok(parse(&raw)),
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_mark(path: &str) -> Option<(Id, u64)> {
    mark_of(path).ok().flatten()
}

/// Makes the streams of a file that was copied with its mark, and whose streams were copied too,
/// those of the copy; `source` is the inode that it was copied from.
pub fn adopt(copy: BorrowedFd<'_>, source: u64) -> Result<(), Errno> {
    let path = magic_path(copy);
    match read_mark(&path) {
        Some((id, inode)) if inode == source => {
            let mut mark = id.to_vec();
            mark.extend_from_slice(&rustix::fs::fstat(copy)?.st_ino.to_le_bytes());
            rustix::fs::setxattr(path.as_str(), MARK, &mark, XattrFlags::REPLACE)
        }
        _ => Ok(()),
    }
}

pub(crate) fn open_below(
    home: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(home, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

pub(crate) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

impl StreamStore {
    /// The store over the roots `homes`; new folders are made below the first.
    pub fn new(homes: Vec<OwnedFd>) -> Self {
        Self { homes }
    }

    /// The identity of the streams of `base`, if it has any.
    fn id(base: BorrowedFd<'_>) -> Result<Option<Id>, Errno> {
        let Some((id, inode)) = read_mark(&magic_path(base)) else { return Ok(None) };
        Ok((rustix::fs::fstat(base)?.st_ino == inode).then_some(id))
    }

    pub(crate) fn folder_of(&self, id: Id) -> Result<Option<OwnedFd>, Errno> {
        let path = format!("{PRIVATE}/streams/{}", hex(&id));
        for home in &self.homes {
            match open_below(home.as_fd(), &path, FOLDER) {
                Err(Errno::NOENT) => {}
                other => return other.map(Some),
            }
        }
        Ok(None)
    }

    /// The folder with the streams of `base`, if it has any.
    pub(crate) fn folder(&self, base: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
        match Self::id(base)? {
            Some(id) => self.folder_of(id),
            None => Ok(None),
        }
    }

    /// The folder with the streams of `base`, made if there is none.
    pub(crate) fn make_folder(&self, base: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        loop {
            if let Some(folder) = self.folder(base)? {
                return Ok(folder);
            }
            let home = self.homes.first().ok_or(Errno::OPNOTSUPP)?;
            let id: Id = crate::clock::random().map_err(|_| Errno::IO)?;
            let mode = Mode::from_raw_mode(0o700);
            let path = format!("{PRIVATE}/streams/{}", hex(&id));
            for made in [PRIVATE, &format!("{PRIVATE}/streams"), &path] {
                match rustix::fs::mkdirat(home, made, mode) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            let mut mark = id.to_vec();
            mark.extend_from_slice(&rustix::fs::fstat(base)?.st_ino.to_le_bytes());
            let base_path = magic_path(base);
            // A mark that is not the file's own, or leads nowhere, is replaced.
            let flags = match read_mark(&base_path) {
                Some(_) => XattrFlags::REPLACE,
                None => XattrFlags::CREATE,
            };
            match rustix::fs::setxattr(base_path.as_str(), MARK, &mark, flags) {
                Ok(()) => {}
                Err(error) => {
                    let _ = rustix::fs::unlinkat(home, path.as_str(), AtFlags::REMOVEDIR);
                    // Someone else was faster: look again.
                    if error == Errno::EXIST || error == Errno::NODATA {
                        continue;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Finds a stream; the descriptor gives no access to its content.
    pub fn find(
        &self,
        base: BorrowedFd<'_>,
        name: &StreamName,
    ) -> Result<Option<(OwnedFd, Stat)>, Errno> {
        let Some(folder) = self.folder(base)? else { return Ok(None) };
        let place = place_of_stream(folder.as_fd(), name)?;
        match open_below(folder.as_fd(), &place, OFlags::PATH | OFlags::NOFOLLOW) {
            // That of another name lies in its place.
            Ok(fd)
                if name_of(fd.as_fd()).is_some_and(|is| !same_name(is.as_str(), name.as_str())) =>
            {
                Ok(None)
            }
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd)?;
                Ok(Some((fd, stat)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a stream that must not be there yet, opened for reading and writing; it may bear a
    /// mark from the beginning.
    ///
    /// # Errors
    /// `NOSPC` for one more than a file can have, `EXIST` for one that is there.
    pub fn create(
        &self,
        base: BorrowedFd<'_>,
        name: &StreamName,
        mark: Option<&CreateTag>,
    ) -> Result<OwnedFd, Errno> {
        let folder = self.make_folder(base)?;
        if names_in(folder.as_fd())?.len() >= MAX_STREAMS {
            return Err(Errno::NOSPC);
        }
        make_way(folder.as_fd(), name)?;
        // It gets its place only when it has its name.
        let fresh = fresh_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(&folder, fresh.as_str(), flags, mode)?;
        let placed =
            rustix::fs::fsetxattr(&fd, NAME, name.as_str().as_bytes(), XattrFlags::empty())
                .and_then(|()| match mark {
                    Some(mark) => rustix::fs::fsetxattr(&fd, MADE, mark, XattrFlags::empty()),
                    None => Ok(()),
                })
                .and_then(|()| {
                    let place = place_of_stream(folder.as_fd(), name)?;
                    let only_new = RenameFlags::NOREPLACE;
                    rustix::fs::renameat_with(&folder, fresh.as_str(), &folder, place, only_new)
                });
        if let Err(error) = placed {
            let _ = rustix::fs::unlinkat(&folder, fresh.as_str(), AtFlags::empty());
            return Err(error);
        }
        Ok(fd)
    }

    /// Makes the names of the streams of `base` durable, and the folders that hold them.
    pub fn sync(&self, base: BorrowedFd<'_>) -> Result<(), Errno> {
        let folder = self.folder(base)?.ok_or(Errno::NOENT)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The streams of all files, what is private, and the home.
        for above in [".", "..", "../..", "../../.."] {
            rustix::fs::fsync(rustix::fs::openat(&folder, above, flags, Mode::empty())?)?;
        }
        Ok(())
    }

    /// Removes a stream if it is still the file that `stat` describes.
    pub fn remove(
        &self,
        base: BorrowedFd<'_>,
        name: &StreamName,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let folder = self.folder(base)?.ok_or(Errno::NOENT)?;
        let place = place_of_stream(folder.as_fd(), name)?;
        let now = rustix::fs::statat(&folder, place.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        if now.st_ino != stat.st_ino {
            return Err(Errno::NOENT);
        }
        rustix::fs::unlinkat(&folder, place, AtFlags::empty())
    }

    /// Gives a stream another name; `replace` allows that name to be taken.
    pub fn rename(
        &self,
        base: BorrowedFd<'_>,
        from: &StreamName,
        to: &StreamName,
        replace: bool,
    ) -> Result<(), Errno> {
        let folder = self.folder(base)?.ok_or(Errno::NOENT)?;
        let old = place_of_stream(folder.as_fd(), from)?;
        make_way(folder.as_fd(), to)?;
        let new = place_of_stream(folder.as_fd(), to)?;
        let flags =
            if replace || old == new { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(&folder, old.as_str(), &folder, new.as_str(), flags)?;
        let file = open_below(folder.as_fd(), &new, OFlags::PATH | OFlags::NOFOLLOW)?;
        let text = to.as_str().as_bytes();
        rustix::fs::setxattr(magic_path(file.as_fd()).as_str(), NAME, text, XattrFlags::empty())
    }

    /// The named streams of a file, sorted by name.
    pub fn list(&self, base: BorrowedFd<'_>) -> Result<Vec<StreamEntry>, Errno> {
        let Some(folder) = self.folder(base)? else { return Ok(Vec::new()) };
        let names = names_in(folder.as_fd())?;
        let many = names.len() > FEW;
        let list = || entries(folder.as_fd(), names);
        Ok(if many { aside(list) } else { list() })
    }

    /// Removes the streams of a file that was overwritten, but for those that are `kept`.
    pub fn clear(&self, base: BorrowedFd<'_>, kept: impl Fn(&Stat) -> bool) -> Result<(), Errno> {
        let Some(id) = Self::id(base)? else { return Ok(()) };
        self.clear_where(id, |name| name.len() == PLACE_LEN, kept)
    }

    /// Removes the streams of a file that is gone, and what is kept beside them.
    pub fn clear_all(&self, base: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some(id) = Self::id(base)? else { return Ok(()) };
        self.clear_folder(id, |_| false)
    }

    pub(crate) fn clear_folder(&self, id: Id, kept: impl Fn(&Stat) -> bool) -> Result<(), Errno> {
        self.clear_where(id, |_| true, kept)
    }

    fn clear_where(
        &self,
        id: Id,
        which: impl Fn(&OsStr) -> bool,
        kept: impl Fn(&Stat) -> bool,
    ) -> Result<(), Errno> {
        let Some(folder) = self.folder_of(id)? else { return Ok(()) };
        let mut names = names_in(folder.as_fd())?;
        names.retain(|name| which(name));
        let many = names.len() > FEW;
        let remove = || {
            for name in names {
                let stat = rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| !kept(&stat)) {
                    let _ = rustix::fs::unlinkat(&folder, &name, AtFlags::empty());
                }
            }
            let path = format!("{PRIVATE}/streams/{}", hex(&id));
            for home in &self.homes {
                match rustix::fs::unlinkat(home, path.as_str(), AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        if many { aside(remove) } else { remove() }
    }
}

/// What begins the name of what is being made in a folder of streams.
pub(crate) const FRESH: &str = "new-";

/// What begins such a name if it is of this process: a number that no other has.
pub(crate) fn own_fresh() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| {
        let number = crate::clock::random::<8>().map_or(0, u64::from_ne_bytes);
        format!("{FRESH}{}-{number:016x}-", std::process::id())
    })
}

/// A name in a folder of streams that nothing there has yet.
pub(crate) fn fresh_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}{}", own_fresh(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What listings show of the streams `names` in `folder`, sorted by name.
fn entries(folder: BorrowedFd<'_>, names: Vec<OsString>) -> Vec<StreamEntry> {
    let mut list = Vec::new();
    for name in names.into_iter().filter(|name| name.len() == PLACE_LEN).take(MAX_STREAMS) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(folder, &name, flags, Mode::empty()) else { continue };
        let (Some(name), Ok(stat)) = (name_of(fd.as_fd()), rustix::fs::fstat(&fd)) else {
            continue;
        };
        list.push(StreamEntry {
            name: name.as_str().to_owned(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            allocation: allocated_of(fd.as_fd(), &stat),
        });
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

pub(crate) fn names_in(folder: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(folder, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(fd)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fs::sweep::{Swept, sweep};

    fn name(text: &str) -> StreamName {
        StreamName::new(text).unwrap()
    }

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn store(root: &std::path::Path) -> StreamStore {
        StreamStore::new(vec![open(root)])
    }

    #[test]
    fn streams_that_lie_where_unicode_says_stay_reachable() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("f"), "").unwrap();
        let (base, store) = (open(&root.path().join("f")), store(root.path()));
        // Under the rule of Unicode this name and "KIZ" were one, and so lay in one place.
        store.create(base.as_fd(), &name("k\u{131}z"), None).unwrap();
        let folder = store.folder(base.as_fd()).unwrap().unwrap();
        let former = hex(digest::digest(&digest::SHA256, b"KIZ").as_ref());
        let now = file_name(&name("k\u{131}z"));
        assert_ne!(now, former);
        rustix::fs::renameat(&folder, now.as_str(), &folder, former.as_str()).unwrap();
        let (_, stat) = store.find(base.as_fd(), &name("K\u{131}Z")).unwrap().expect("it is there");
        // The other name has its own, which that place does not hinder.
        assert!(store.find(base.as_fd(), &name("kiz")).unwrap().is_none());
        store.rename(base.as_fd(), &name("k\u{131}z"), &name("other"), false).unwrap();
        store.create(base.as_fd(), &name("kiz"), None).unwrap();
        store.remove(base.as_fd(), &name("OTHER"), &stat).unwrap();
        assert_eq!(store.list(base.as_fd()).unwrap().len(), 1);
    }

    #[test]
    fn streams_come_and_go_without_regard_to_case() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "x").unwrap();
        let store = store(root.path());
        let base = open(&root.path().join("a"));
        assert!(store.find(base.as_fd(), &name("S")).unwrap().is_none());
        let made = store.create(base.as_fd(), &name("Stream"), None).unwrap();
        rustix::io::write(&made, b"12345").unwrap();
        assert_eq!(store.create(base.as_fd(), &name("sTREAM"), None).unwrap_err(), Errno::EXIST);
        let (_, stat) = store.find(base.as_fd(), &name("STREAM")).unwrap().unwrap();
        assert_eq!(stat.st_size, 5);
        store.create(base.as_fd(), &name("b?*<"), None).unwrap();
        let list = store.list(base.as_fd()).unwrap();
        let names: Vec<_> = list.iter().map(|entry| (entry.name.as_str(), entry.size)).collect();
        assert_eq!(names, [("Stream", 5), ("b?*<", 0)]);
        store.rename(base.as_fd(), &name("stream"), &name("new"), false).unwrap();
        assert!(store.find(base.as_fd(), &name("stream")).unwrap().is_none());
        store.remove(base.as_fd(), &name("NEW"), &stat).unwrap();
        store.clear(base.as_fd(), |_| false).unwrap();
        assert!(store.list(base.as_fd()).unwrap().is_empty());
        assert!(fs::read_dir(root.path().join(".bulkhead/streams")).unwrap().next().is_none());
    }

    #[test]
    fn a_file_has_no_more_streams_than_it_may() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "x").unwrap();
        let (base, store) = (open(&root.path().join("a")), store(root.path()));
        store.create(base.as_fd(), &name("first"), None).unwrap();
        let folder = root.path().join(".bulkhead/streams");
        let folder = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        for number in 1..MAX_STREAMS {
            fs::write(folder.join(format!("{number:064}")), "").unwrap();
        }
        let one_more = store.create(base.as_fd(), &name("last"), None);
        assert_eq!(one_more.unwrap_err(), Errno::NOSPC);
        fs::remove_file(folder.join(format!("{:064}", 1))).unwrap();
        store.create(base.as_fd(), &name("last"), None).unwrap();
    }

    #[test]
    fn a_copy_has_no_streams_and_can_get_its_own() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "x").unwrap();
        fs::write(root.path().join("b"), "x").unwrap();
        let store = store(root.path());
        let (a, b) = (open(&root.path().join("a")), open(&root.path().join("b")));
        store.create(a.as_fd(), &name("s"), None).unwrap();
        let mut mark = [0; MARK_LEN];
        rustix::fs::getxattr(root.path().join("a"), MARK, &mut mark[..]).unwrap();
        rustix::fs::setxattr(root.path().join("b"), MARK, &mark, XattrFlags::empty()).unwrap();
        assert!(store.find(b.as_fd(), &name("s")).unwrap().is_none());
        let mut other =
            OwnedFd::from(fs::File::from(store.create(b.as_fd(), &name("s"), None).unwrap()));
        rustix::io::write(&mut other, b"mine").unwrap();
        assert_eq!(store.list(a.as_fd()).unwrap()[0].size, 0);
        assert_eq!(store.list(b.as_fd()).unwrap()[0].size, 4);
    }

    #[test]
    fn the_second_sweep_removes_what_nobody_names() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        let store = store(root.path());
        for file in ["d/kept", "gone", "restored"] {
            let path = root.path().join(file);
            fs::write(&path, "x").unwrap();
            store.create(open(&path).as_fd(), &name("s"), None).unwrap();
        }
        fs::remove_file(root.path().join("gone")).unwrap();
        // A backup that keeps extended attributes, but not the inode.
        let mut mark = [0; MARK_LEN];
        let restored = root.path().join("restored");
        rustix::fs::getxattr(&restored, MARK, &mut mark[..]).unwrap();
        fs::write(root.path().join("other"), "x").unwrap();
        fs::remove_file(&restored).unwrap();
        fs::rename(root.path().join("other"), &restored).unwrap();
        rustix::fs::setxattr(&restored, MARK, &mark, XattrFlags::empty()).unwrap();
        let homes = || vec![open(root.path()), open(&root.path().join("d"))];
        assert_eq!(sweep(homes()).unwrap(), Swept::All(0));
        assert_eq!(sweep(homes()).unwrap(), Swept::All(1));
        assert_eq!(sweep(homes()).unwrap(), Swept::All(0));
        for file in ["d/kept", "restored"] {
            assert_eq!(store.list(open(&root.path().join(file)).as_fd()).unwrap().len(), 1);
        }
    }
}
