//! Streams of files that are gone without this server's knowledge: looked for when it starts.
//!
//! ```text
//!  every file below every home ─► whose streams are whose ─► all seen? ── no ─► nothing is touched
//!                                                                └─ yes ─► nobody's: marked, and
//!                                                                          removed at the next start
//! ```
//!
//! Only who has seen every file can say that a stream is nobody's. A folder that could not be opened
//! or read, one too deep to be followed, or a share that was there once and is not configured now
//! makes the search incomplete, and an incomplete search removes nothing.
//!
//! What a server that was killed was just making beside the streams of a file goes in any case: it has no
//! place yet, and nobody but its process knows of it.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, XattrFlags},
    io::Errno,
    time::{ClockId, Timespec},
};

use crate::fs::{
    descriptor::{magic_path, place_of},
    path::PRIVATE,
    streams::{
        FOLDER, FRESH, Id, MARK, StreamStore, mark_of, names_in, open_below, own_fresh, unhex,
    },
};

const ORPHAN: &str = "user.bulkhead.orphan";
/// Kept by the folder of streams: where the shares lay that had streams here, each path ended by a
/// zero byte.
const HOMES: &str = "user.bulkhead.homes";
/// Folders that are open at a time while they are searched, one in the other.
const DEEPEST: usize = 4096;

/// What a search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Everything was seen; so many folders of streams were removed.
    All(usize),
    /// Something was not seen, and nothing was removed.
    Incomplete,
}

/// Who names a stream folder.
enum Reference {
    /// Nobody.
    None,
    /// The file it was made for.
    Own,
    /// One other file: it was copied or put back.
    Copy(OwnedFd, u64),
    /// Several other files.
    Copies,
}

/// Looks for stream folders below `homes`, all on one file system, that no file names any more.
/// The first time one is marked, the next time it is removed: a file that was moved while the
/// search went on is not lost. A folder whose file was put back from a backup, and so has another
/// inode, is given to it when no other file names it.
///
/// The search reads every file's attributes, but only where there are stream folders at all.
///
/// # Errors
/// What the file system says to a change; nothing that was not proved to be nobody's is removed.
pub fn sweep(mut homes: Vec<OwnedFd>) -> Result<Swept, Errno> {
    // The clock that files are dated by: what is made from now on is not older.
    let began = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    let mut known: HashMap<Id, Reference> = HashMap::new();
    let mut stores = Vec::new();
    for home in &homes {
        match open_below(home.as_fd(), &format!("{PRIVATE}/streams"), FOLDER) {
            Ok(folders) => {
                let names = names_in(folders.as_fd())?;
                let ids = names.iter().filter_map(|name| unhex(name.as_bytes()));
                known.extend(ids.map(|id| (id, Reference::None)));
                stores.push(folders);
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    if known.is_empty() {
        return Ok(Swept::All(0));
    }
    let store = StreamStore::new(
        homes
            .iter()
            .map(|home| rustix::io::fcntl_dupfd_cloexec(home, 0))
            .collect::<Result<_, _>>()?,
    );
    for id in known.keys() {
        if let Some(folder) = store.folder_of(*id)? {
            clear_unfinished(&folder, began)?;
        }
    }
    let mut complete = former_homes(&mut homes, &stores)?;
    for home in &homes {
        complete &= search(home, &mut known)?;
    }
    if !complete {
        return Ok(Swept::Incomplete);
    }
    let mut removed = 0;
    for (id, reference) in known {
        let Some(folder) = store.folder_of(id)? else { continue };
        let path = magic_path(folder.as_fd());
        let mut mark = [0; 1];
        let marked = rustix::fs::getxattr(path.as_str(), ORPHAN, &mut mark[..]).is_ok();
        match reference {
            Reference::Own => {
                if marked {
                    rustix::fs::removexattr(path.as_str(), ORPHAN)?;
                }
            }
            Reference::Copy(file, inode) => {
                let mut mark = id.to_vec();
                mark.extend_from_slice(&inode.to_le_bytes());
                let file = magic_path(file.as_fd());
                rustix::fs::setxattr(file.as_str(), MARK, &mark, XattrFlags::REPLACE)?;
            }
            Reference::Copies => {}
            Reference::None if marked => {
                store.clear_folder(id, |_| false)?;
                removed += 1;
            }
            Reference::None => {
                rustix::fs::setxattr(path.as_str(), ORPHAN, &[1], XattrFlags::empty())?;
            }
        }
    }
    Ok(Swept::All(removed))
}

/// Removes what was being made in a folder of streams when its server ended. What this process makes,
/// and what another one does that still runs, is left alone: it is of this process, or younger.
fn clear_unfinished(folder: &OwnedFd, began: Timespec) -> Result<(), Errno> {
    for name in names_in(folder.as_fd())? {
        let text = name.to_string_lossy();
        if !text.starts_with(FRESH) || text.starts_with(own_fresh()) {
            continue;
        }
        let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW);
        let older = |stat: &Stat| {
            let changed = (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0));
            changed < (began.tv_sec, began.tv_nsec)
        };
        if stat.is_ok_and(|stat| older(&stat)) {
            match rustix::fs::unlinkat(folder, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Adds the folders of shares that had streams here and are not configured now, and notes those
/// that are; `false` if one of them cannot be looked into.
fn former_homes(homes: &mut Vec<OwnedFd>, stores: &[OwnedFd]) -> Result<bool, Errno> {
    let mut places: Vec<PathBuf> =
        homes.iter().map(|home| place_of(home.as_fd())).collect::<Result<_, _>>()?;
    let device = rustix::fs::fstat(&homes[0])?.st_dev;
    let mut complete = true;
    for store in stores {
        let path = magic_path(store.as_fd());
        let mut noted = vec![0; 64 << 10];
        let used = match rustix::fs::getxattr(path.as_str(), HOMES, &mut noted[..]) {
            Ok(used) => used,
            Err(Errno::NODATA) => 0,
            Err(error) => return Err(error),
        };
        for place in noted[..used].split(|byte| *byte == 0).filter(|place| !place.is_empty()) {
            let place = Path::new(OsStr::from_bytes(place));
            if places.iter().any(|known| known == place) {
                continue;
            }
            match rustix::fs::open(place, FOLDER, Mode::empty()) {
                Ok(home) if rustix::fs::fstat(&home)?.st_dev == device => homes.push(home),
                // It is gone, or another file system lies there now: its files may have moved.
                _ => {
                    tracing::warn!(
                        ?place,
                        "a share that had named streams is not there: streams of files that are \
                         gone are kept until it is back, or until the attribute {HOMES} of the \
                         folder of streams does not name it"
                    );
                    complete = false;
                }
            }
            places.push(place.to_owned());
        }
    }
    let mut noted = Vec::new();
    for place in places {
        noted.extend_from_slice(&place.into_os_string().into_vec());
        noted.push(0);
    }
    for store in stores {
        rustix::fs::setxattr(
            magic_path(store.as_fd()).as_str(),
            HOMES,
            &noted,
            XattrFlags::empty(),
        )?;
    }
    Ok(complete)
}

/// Looks at every file below a home; `false` if some could not be seen.
fn search(home: &OwnedFd, known: &mut HashMap<Id, Reference>) -> Result<bool, Errno> {
    const READ: OFlags =
        OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let open = |above: &OwnedFd, name: &std::ffi::CStr| -> Result<(OwnedFd, Dir), Errno> {
        let folder = rustix::fs::openat(above, name, READ, Mode::empty())?;
        let entries = Dir::new(rustix::io::fcntl_dupfd_cloexec(&folder, 0)?)?;
        Ok((folder, entries))
    };
    let mut complete = true;
    let mut level = match open(home, c".") {
        Ok(first) => vec![first],
        Err(_) => return Ok(false),
    };
    while let Some((here, entries)) = level.last_mut() {
        let entry = match entries.read() {
            Some(Ok(entry)) => entry,
            Some(Err(_)) => {
                complete = false;
                level.pop();
                continue;
            }
            None => {
                level.pop();
                continue;
            }
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || name.to_bytes() == PRIVATE.as_bytes() {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&*here, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            // Removed meanwhile; if it was moved, its streams are only marked this time.
            Err(Errno::NOENT) => continue,
            Err(_) => {
                complete = false;
                continue;
            }
        };
        let stat = rustix::fs::fstat(&fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && kind != FileType::RegularFile {
            continue;
        }
        let mark = match mark_of(&magic_path(fd.as_fd())) {
            Ok(mark) => mark,
            Err(_) => {
                complete = false;
                None
            }
        };
        if let Some((id, inode)) = mark
            && let Some(reference) = known.get_mut(&id)
        {
            match reference {
                _ if inode == stat.st_ino => *reference = Reference::Own,
                Reference::None => *reference = Reference::Copy(fd, stat.st_ino),
                // Seen before through a share inside another.
                Reference::Copy(_, seen) if *seen == stat.st_ino => {}
                Reference::Copy(..) => *reference = Reference::Copies,
                Reference::Own | Reference::Copies => {}
            }
        }
        if kind == FileType::Directory {
            match open(here, name) {
                Ok(below) if level.len() < DEEPEST => level.push(below),
                Err(Errno::NOENT) => {}
                _ => complete = false,
            }
        }
    }
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fs::path::StreamName;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// Gives a file a stream, in the store of the first home.
    fn give(homes: &[&Path], file: &Path) {
        let store = StreamStore::new(homes.iter().map(|home| open(home)).collect());
        store.create(open(file).as_fd(), &StreamName::new("s").unwrap(), None).unwrap();
    }

    fn has(homes: &[&Path], file: &Path) -> bool {
        let store = StreamStore::new(homes.iter().map(|home| open(home)).collect());
        store.find(open(file).as_fd(), &StreamName::new("s").unwrap()).unwrap().is_some()
    }

    fn start(homes: &[&Path]) -> Swept {
        sweep(homes.iter().map(|home| open(home)).collect()).unwrap()
    }

    #[test]
    fn streams_of_files_in_deep_folders_stay() {
        let root = tempfile::tempdir().unwrap();
        // Built from the inside, as one may by moving folders: no path is too long.
        let mut inner = root.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("file"), "").unwrap();
        give(&[root.path()], &inner.join("file"));
        let file = open(&inner.join("file"));
        for round in 0..700 {
            let outer = root.path().join(format!("outer-{round}"));
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("d")).unwrap();
            inner = outer;
        }
        for _ in 0..3 {
            assert_eq!(start(&[root.path()]), Swept::All(0));
        }
        let store = StreamStore::new(vec![open(root.path())]);
        assert!(store.find(file.as_fd(), &StreamName::new("s").unwrap()).unwrap().is_some());
        // The folder of a test is removed part by part, too.
        for _ in 0..700 {
            let next = root.path().join("next");
            fs::rename(inner.join("d"), &next).unwrap();
            fs::remove_dir(&inner).unwrap();
            inner = root.path().join("inner");
            fs::rename(next, &inner).unwrap();
        }
    }

    #[test]
    fn what_a_killed_server_was_making_beside_streams_goes_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("f");
        fs::write(&file, "").unwrap();
        give(&[root.path()], &file);
        let store = StreamStore::new(vec![open(root.path())]);
        let folder = fs::read_dir(root.path().join(".bulkhead/streams")).unwrap();
        let folder = folder.map(|entry| entry.unwrap().path()).next().unwrap();
        let ours = crate::fs::streams::fresh_name();
        for name in ["new-1-0", "new-1-00ff-3", &ours, "aside"] {
            fs::write(folder.join(name), "half").unwrap();
        }
        clear_unfinished(&open(&folder), Timespec { tv_sec: 0, tv_nsec: 0 }).unwrap();
        assert!(folder.join("new-1-0").exists(), "another server makes it just now");
        // The next server starts a tick later.
        let made = rustix::fs::stat(folder.join("aside")).unwrap();
        let made = (made.st_ctime, i64::try_from(made.st_ctime_nsec).unwrap());
        let tick = || rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        while (tick().tv_sec, tick().tv_nsec) <= made {
            std::thread::yield_now();
        }
        assert_eq!(start(&[root.path()]), Swept::All(0));
        let mut left: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.len() != 64)
            .collect();
        left.sort();
        assert_eq!(left, ["aside".to_owned(), ours]);
        assert!(store.find(open(&file).as_fd(), &StreamName::new("s").unwrap()).unwrap().is_some());
    }

    #[test]
    fn what_lies_in_a_share_that_is_not_configured_now_is_seen_or_nothing_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        for name in ["moved", "gone"] {
            fs::write(a.join(name), "").unwrap();
            give(&[&a, &b], &a.join(name));
        }
        // Somebody moves a file to another share, whose streams stay where they are.
        fs::rename(a.join("moved"), b.join("moved")).unwrap();
        fs::remove_file(a.join("gone")).unwrap();
        assert_eq!(start(&[&a, &b]), Swept::All(0));
        assert_eq!(start(&[&a]), Swept::All(1));
        assert!(has(&[&a], &b.join("moved")));
        // The other share is not mounted: nobody knows what it holds.
        fs::rename(&b, root.path().join("away")).unwrap();
        for _ in 0..3 {
            assert_eq!(start(&[&a]), Swept::Incomplete);
        }
        fs::rename(root.path().join("away"), &b).unwrap();
        assert_eq!(start(&[&a, &b]), Swept::All(0));
        assert!(has(&[&a, &b], &b.join("moved")));
    }
}
