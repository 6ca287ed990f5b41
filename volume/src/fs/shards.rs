//! Locks of files, of which several share one, and of which each file system has its own: where one does
//! not answer, who holds a lock there is waited for by those alone who want something of it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
};

use rustix::fs::Stat;

use crate::fs::file_key::{self, FileKey};

/// Locks that a file system has.
const SHARDS: usize = 64;

/// Which lock of which file system.
pub(crate) type Place = (u64, usize);

/// The locks of all file systems. A KiB or two is kept for each that there was, while the process runs.
pub(crate) struct Shards<L: 'static = Mutex<()>>(RwLock<BTreeMap<u64, &'static [L; SHARDS]>>);

/// Where the lock of a file is, or of something else that a number tells apart on the same device.
pub(crate) fn place((device, number): FileKey) -> Place {
    (device, (number % SHARDS as u64) as usize)
}

impl<L: Default> Shards<L> {
    pub(crate) const fn new() -> Self {
        Self(RwLock::new(BTreeMap::new()))
    }

    /// The lock at a place.
    pub(crate) fn at(&self, (device, shard): Place) -> &'static L {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&device).copied();
        let locks = known.unwrap_or_else(|| {
            let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
            all.entry(device)
                .or_insert_with(|| Box::leak(Box::new(std::array::from_fn(|_| L::default()))))
        });
        &locks[shard]
    }

    /// The lock of a file.
    pub(crate) fn of(&self, stat: &Stat) -> &'static L {
        self.at(place(file_key::key(stat)))
    }
}

impl Shards {
    /// Keeps others off a file.
    pub(crate) fn lock(&self, stat: &Stat) -> MutexGuard<'static, ()> {
        self.of(stat).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_stuck_in_one_file_system_keeps_nobody_off_another() {
        let shards = Shards::<Mutex<()>>::new();
        let stuck = shards.at(place((1, 7))).lock().unwrap();
        assert!(shards.at(place((1, 7 + SHARDS as u64))).try_lock().is_err(), "they share one");
        assert!(shards.at(place((1, 8))).try_lock().is_ok());
        assert!(shards.at(place((2, 7))).try_lock().is_ok());
        drop(stuck);
        assert!(shards.at(place((1, 7))).try_lock().is_ok());
    }
}
