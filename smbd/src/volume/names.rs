//! Which names large folders hold, without regard to case.
//!
//! The system finds a name only as it is written. That no other name is the same to Windows can
//! only be seen by looking at all of them, and a client that fills a folder asks that for each new
//! file. So the names of large folders are remembered, as hashes, as long as the folder's own change
//! time says that nobody else has changed it; what this server changes is put in.
//!
//! A change by another program in the instant between ours and our look at the folder's time is
//! seen when the names are read anew, after half a minute at the latest.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    os::fd::BorrowedFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{fs::Stat, io::Errno};
use smb_protocol::name::fold_char;

use super::node::{self, NodeKey};

/// Folders with fewer names are quickly looked through.
const LEAST: usize = 32;
/// Folders with more are not remembered.
const MOST: usize = 512 << 10;
/// Folders that are remembered.
const FOLDERS: usize = 4;
/// After that time the names are read anew.
const TIME: Duration = Duration::from_secs(30);

/// Change time of a folder.
type Stamp = (i64, u64);

#[derive(Debug)]
struct Folder {
    key: NodeKey,
    stamp: Stamp,
    since: Instant,
    /// How many names have a hash.
    names: HashMap<u64, u32>,
}

/// The names of some folders.
#[derive(Debug, Default)]
pub struct Names {
    hasher: RandomState,
    folders: Mutex<VecDeque<Folder>>,
}

/// The names of a folder while they are read.
#[derive(Debug)]
pub struct Reading {
    key: NodeKey,
    stamp: Stamp,
    names: HashMap<u64, u32>,
    count: usize,
}

fn stamp(stat: &Stat) -> Stamp {
    (stat.st_ctime, stat.st_ctime_nsec)
}

impl Names {
    fn folders(&self) -> MutexGuard<'_, VecDeque<Folder>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, name: &str) -> u64 {
        // Hashed in the form that is compared, char by char.
        self.hasher.hash_one(name.chars().map(fold_char).collect::<String>())
    }

    /// Whether `folder` surely holds no name that is the same as `name`.
    pub fn lacks(&self, folder: &Stat, name: &str) -> bool {
        let key = node::key(folder);
        let mut folders = self.folders();
        let Some(at) = folders.iter().position(|known| known.key == key) else { return false };
        if folders[at].stamp != stamp(folder) || folders[at].since.elapsed() > TIME {
            folders.remove(at);
            return false;
        }
        !folders[at].names.contains_key(&self.hash(name))
    }

    /// Begins to read a folder that is as `folder` says.
    pub fn read(folder: &Stat) -> Reading {
        Reading { key: node::key(folder), stamp: stamp(folder), names: HashMap::new(), count: 0 }
    }

    /// One name of a folder that is read.
    pub fn saw(&self, reading: &mut Reading, name: &str) {
        reading.count += 1;
        if reading.count <= MOST {
            *reading.names.entry(self.hash(name)).or_default() += 1;
        }
    }

    /// All names were read.
    pub fn done(&self, reading: Reading) {
        if !(LEAST..=MOST).contains(&reading.count) {
            return;
        }
        let Reading { key, stamp, names, .. } = reading;
        let mut folders = self.folders();
        folders.retain(|known| known.key != key);
        folders.push_back(Folder { key, stamp, since: Instant::now(), names });
        if folders.len() > FOLDERS {
            folders.pop_front();
        }
    }

    /// Does something that takes the name `gone` from the folder and puts `come` into it.
    pub fn change<T>(
        &self,
        folder: BorrowedFd<'_>,
        (gone, come): (Option<&str>, Option<&str>),
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut folders = self.folders();
        if folders.is_empty() {
            drop(folders);
            return change();
        }
        let before = rustix::fs::fstat(folder)?;
        let key = node::key(&before);
        let Some(at) = folders.iter().position(|known| known.key == key) else {
            drop(folders);
            return change();
        };
        // Nobody else of this server changes it or asks meanwhile.
        let done = change();
        match rustix::fs::fstat(folder) {
            Ok(after) if done.is_ok() && folders[at].stamp == stamp(&before) => {
                let known = &mut folders[at];
                known.stamp = stamp(&after);
                if let Some(gone) = gone.map(|name| self.hash(name))
                    && let Some(count) = known.names.get_mut(&gone)
                {
                    *count -= 1;
                    if *count == 0 {
                        known.names.remove(&gone);
                    }
                }
                if let Some(come) = come {
                    *known.names.entry(self.hash(come)).or_default() += 1;
                }
                if known.names.len() > MOST {
                    folders.remove(at);
                }
            }
            // It failed and changed nothing, or the next look finds another time.
            _ => {}
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use super::*;

    #[test]
    fn names_are_known_until_someone_else_changes_the_folder() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..LEAST {
            fs::write(root.path().join(format!("File {number}")), "").unwrap();
        }
        let folder = fs::File::open(root.path()).unwrap();
        let stat = || rustix::fs::fstat(&folder).unwrap();
        let names = Names::default();
        assert!(!names.lacks(&stat(), "other"));
        let mut reading = Names::read(&stat());
        for entry in fs::read_dir(root.path()).unwrap() {
            names.saw(&mut reading, entry.unwrap().file_name().to_str().unwrap());
        }
        names.done(reading);
        assert!(names.lacks(&stat(), "other"));
        assert!(!names.lacks(&stat(), "FILE 7"));
        // What we do is known.
        let path = root.path().join("Other");
        names
            .change(folder.as_fd(), (None, Some("Other")), || {
                fs::write(&path, "").unwrap();
                Ok(())
            })
            .unwrap();
        assert!(!names.lacks(&stat(), "oTHER"));
        names
            .change(folder.as_fd(), (Some("Other"), None), || {
                fs::remove_file(&path).unwrap();
                Ok(())
            })
            .unwrap();
        assert!(names.lacks(&stat(), "other"));
        // What someone else does ends it.
        let before = stamp(&stat());
        while stamp(&stat()) == before {
            fs::write(&path, "").unwrap();
            fs::remove_file(&path).unwrap();
        }
        assert!(!names.lacks(&stat(), "other"));
    }

    #[test]
    fn small_folders_are_not_remembered() {
        let root = tempfile::tempdir().unwrap();
        let stat = rustix::fs::stat(root.path()).unwrap();
        let names = Names::default();
        let mut reading = Names::read(&stat);
        names.saw(&mut reading, "one");
        names.done(reading);
        assert!(!names.lacks(&stat, "two"));
    }
}
