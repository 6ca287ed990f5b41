//! The files whose requests are timed apart: those that are used most. All others have one meter
//! together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use volume::{fs::file_key::FileKey, open::Open};

use super::path::PathMeter;

/// Files that have a meter of their own.
pub const FILES: usize = 64;

/// Meters of the files that are used most, and one of all others.
#[derive(Debug, Default)]
pub struct FileMeters {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    own: HashMap<FileKey, Own, foldhash::fast::RandomState>,
    rest: Arc<PathMeter>,
}

#[derive(Debug)]
struct Own {
    share: String,
    path: String,
    meter: Arc<PathMeter>,
    /// How often it was used of late. When a file without a meter is used, all lose one, and whose is none
    /// left makes room: who has more than one use in [`FILES`] keeps a place (Misra and Gries).
    used: u64,
}

/// One of the files that are timed apart.
#[derive(Debug, Clone)]
pub struct FileEntry {
    /// Which file it is.
    pub key: FileKey,
    /// The share by which it was opened, folded.
    pub share: String,
    /// Its path in the share, with slashes, as it was opened.
    pub path: String,
    /// Its meter.
    pub meter: Arc<PathMeter>,
}

impl FileMeters {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The meter of the file of an open.
    pub fn of(&self, open: &Open) -> Arc<PathMeter> {
        self.used(open.file.key(), || {
            (open.origin.share.clone(), open.origin.name.replace('\\', "/"))
        })
    }

    fn used(&self, key: FileKey, name: impl FnOnce() -> (String, String)) -> Arc<PathMeter> {
        let mut state = self.lock();
        if let Some(own) = state.own.get_mut(&key) {
            own.used += 1;
            return own.meter.clone();
        }
        if state.own.len() >= FILES {
            let State { own, rest } = &mut *state;
            own.retain(|_, file| {
                file.used -= 1;
                if file.used == 0 {
                    rest.absorb(&file.meter.figures());
                }
                file.used > 0
            });
            return rest.clone();
        }
        let (share, path) = name();
        let path = path.trim_matches('/').to_owned();
        let meter = Arc::<PathMeter>::default();
        state.own.insert(key, Own { share, path, meter: meter.clone(), used: 1 });
        meter
    }

    /// The meter of a file that has one already.
    pub fn known(&self, key: FileKey) -> Option<Arc<PathMeter>> {
        self.lock().own.get(&key).map(|own| own.meter.clone())
    }

    /// Lets what was used long ago count half, so that what is used now finds a place.
    pub fn age(&self) {
        self.lock().own.values_mut().for_each(|own| own.used = own.used.div_ceil(2));
    }

    /// The files that have a meter of their own.
    pub fn all(&self) -> Vec<FileEntry> {
        let state = self.lock();
        let entry = |(key, own): (&FileKey, &Own)| FileEntry {
            key: *key,
            share: own.share.clone(),
            path: own.path.clone(),
            meter: own.meter.clone(),
        };
        state.own.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meters::path::Phase;

    fn name() -> (String, String) {
        ("VMS".to_owned(), "/a".to_owned())
    }

    #[test]
    fn who_is_used_most_keeps_a_meter_and_nothing_is_lost() {
        let files = FileMeters::default();
        let mut noted = 0;
        for round in 0..2000 {
            for key in [(1, 1), (1, 2), (2, 1000 + round)] {
                files.used(key, name).note(Phase::Read, Duration::from_micros(9), 1);
                noted += 1;
            }
        }
        let all = files.all();
        assert!(all.len() <= FILES);
        assert!(files.known((1, 1)).is_some() && files.known((1, 2)).is_some());
        let counted = |meter: &PathMeter| meter.figures().of(Phase::Read).count();
        let own: u64 = all.iter().map(|file| counted(&file.meter)).sum();
        assert_eq!(own + counted(&files.lock().rest), noted);
    }

    #[test]
    fn what_was_used_long_ago_makes_room() {
        let files = FileMeters::default();
        for key in 0..FILES as u64 {
            (0..1000).for_each(|_| drop(files.used((0, key), name)));
        }
        (0..12).for_each(|_| files.age());
        (0..3).for_each(|_| drop(files.used((9, 9), name)));
        assert!(files.known((9, 9)).is_some());
    }
}
