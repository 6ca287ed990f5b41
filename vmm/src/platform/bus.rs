//! Dispatch of port and memory-mapped I/O to devices.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, RwLock, TryLockError},
    time::{Duration, Instant},
};

/// A device reached by port I/O or memory-mapped I/O. `offset` counts from the start of the
/// range it was registered for. A device answers what it does not know with all ones (reads)
/// or nothing (writes); a guest can never make it fail.
pub trait BusDevice: Send {
    /// Fills `data` (1, 2, 4 or 8 bytes).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

type Entry = (Range<u64>, Arc<Mutex<dyn BusDevice>>);

/// An address space of devices; few entries, so a linear search.
#[derive(Default)]
pub struct Bus {
    entries: RwLock<Vec<Entry>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.read().unwrap_or_else(|poison| poison.into_inner());
        f.debug_list().entries(entries.iter().map(|entry| &entry.0)).finish()
    }
}

impl Bus {
    /// Adds a device at a range of addresses.
    pub fn insert(&self, range: Range<u64>, device: Arc<Mutex<dyn BusDevice>>) {
        self.write().push((range, device));
    }

    /// Takes a device away from the range that starts at `start`. Others there stay.
    pub fn remove(&self, start: u64, device: &Arc<Mutex<dyn BusDevice>>) {
        let is_it = |entry: &Entry| entry.0.start == start && Arc::ptr_eq(&entry.1, device);
        self.write().retain(|entry| !is_it(entry));
    }

    /// Reads; absent devices read as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => lock(&device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; absent devices swallow it.
    pub fn write_to(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(&device).write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, Arc<Mutex<dyn BusDevice>>)> {
        let entries = self.entries.read().unwrap_or_else(|poison| poison.into_inner());
        entries
            .iter()
            .find(|(range, _)| range.contains(&address) && range.end - address >= len as u64)
            .map(|(range, device)| (address - range.start, device.clone()))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Entry>> {
        self.entries.write().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// Locks a mutex whose data stays meaningful if a holder panicked.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// As [`lock`], but gives up after `limit`.
pub fn lock_within<T: ?Sized>(mutex: &Mutex<T>, limit: Duration) -> Option<MutexGuard<'_, T>> {
    let deadline = Instant::now() + limit;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poison)) => return Some(poison.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
