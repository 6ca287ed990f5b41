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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{fs::Stat, io::Errno};
use smb_protocol::name::fold_char;

use crate::fs::file_key::{self, FileKey};

/// Folders with fewer names are quickly looked through.
const LEAST: usize = 32;
/// Names that are remembered, of all folders together.
const MOST: usize = 1 << 20;
/// Folders that are remembered.
const FOLDERS: usize = 1024;
/// After that time the names are read anew.
const TIME: Duration = Duration::from_secs(30);

/// Change time of a folder.
type Stamp = (i64, u64);

/// What a folder holds.
#[derive(Debug)]
struct Folder {
    stamp: Stamp,
    since: Instant,
    /// How many names have a hash.
    names: HashMap<u64, u32>,
}

/// A folder that is remembered. Its lock is held while it is changed; those of others are not.
#[derive(Debug)]
struct Known {
    key: FileKey,
    /// Names that it was read with.
    count: usize,
    folder: Mutex<Option<Folder>>,
}

/// The names of some folders.
#[derive(Debug, Default)]
pub struct Names {
    hasher: RandomState,
    known: Mutex<VecDeque<Arc<Known>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of a folder while they are read.
#[derive(Debug)]
pub struct Reading {
    key: FileKey,
    stamp: Stamp,
    names: HashMap<u64, u32>,
    count: usize,
}

fn stamp(stat: &Stat) -> Stamp {
    (stat.st_ctime, stat.st_ctime_nsec)
}

impl Names {
    fn known(&self, key: FileKey) -> Option<Arc<Known>> {
        lock(&self.known).iter().find(|known| known.key == key).cloned()
    }

    fn hash(&self, name: &str) -> u64 {
        // Hashed in the form that is compared, char by char.
        self.hasher.hash_one(name.chars().map(fold_char).collect::<String>())
    }

    /// Whether `folder` surely holds no name that is the same as `name`.
    pub fn lacks(&self, folder: &Stat, name: &str) -> bool {
        let Some(known) = self.known(file_key::key(folder)) else { return false };
        let mut state = lock(&known.folder);
        match &*state {
            Some(names) if names.stamp == stamp(folder) && names.since.elapsed() <= TIME => {
                !names.names.contains_key(&self.hash(name))
            }
            _ => {
                *state = None;
                false
            }
        }
    }

    /// Begins to read a folder that is as `folder` says.
    pub fn read(folder: &Stat) -> Reading {
        Reading {
            key: file_key::key(folder),
            stamp: stamp(folder),
            names: HashMap::new(),
            count: 0,
        }
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
        let Reading { key, stamp, names, count } = reading;
        let folder = Mutex::new(Some(Folder { stamp, since: Instant::now(), names }));
        let mut known = lock(&self.known);
        known.retain(|known| known.key != key);
        known.push_back(Arc::new(Known { key, count, folder }));
        let mut all: usize = known.iter().map(|known| known.count).sum();
        while all > MOST || known.len() > FOLDERS {
            let Some(oldest) = known.pop_front() else { break };
            all -= oldest.count;
        }
    }

    /// Does something that takes the name `gone` from the folder and puts `come` into it.
    pub fn change<T>(
        &self,
        folder: BorrowedFd<'_>,
        (gone, come): (Option<&str>, Option<&str>),
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if lock(&self.known).is_empty() {
            return change();
        }
        let before = rustix::fs::fstat(folder)?;
        let Some(known) = self.known(file_key::key(&before)) else { return change() };
        // Nobody else of this server changes it or asks meanwhile.
        let mut state = lock(&known.folder);
        let before = rustix::fs::fstat(folder)?;
        let done = change();
        let Some(names) = &mut *state else { return done };
        match rustix::fs::fstat(folder) {
            Ok(after) if done.is_ok() && names.stamp == stamp(&before) => {
                names.stamp = stamp(&after);
                if let Some(gone) = gone.map(|name| self.hash(name))
                    && let Some(count) = names.names.get_mut(&gone)
                {
                    *count -= 1;
                    if *count == 0 {
                        names.names.remove(&gone);
                    }
                }
                if let Some(come) = come {
                    *names.names.entry(self.hash(come)).or_default() += 1;
                }
                if names.names.len() > 2 * known.count + LEAST {
                    // It has outgrown what it was counted as.
                    *state = None;
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
