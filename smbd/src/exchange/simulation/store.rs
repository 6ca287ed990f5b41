//! The state store of the simulation: what was not waited for may be lost with the server.

use std::sync::{Arc, Mutex, PoisonError};

use state_store::{Batch, Commit, Records, Store};

use super::Broken;

/// A store whose durability is simulated: what was not waited for may be lost with the server,
/// from the end.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) base: Records,
    pub(super) log: Vec<Batch>,
    pub(super) durable: usize,
    pub(super) broken: Broken,
    /// Which server has it.
    pub(super) owner: u32,
}

#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) disk: Arc<Mutex<Disk>>,
    pub(super) owner: u32,
}

pub(super) fn own<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for Shelf {
    fn commit(&self, batch: Batch) -> Commit {
        let (disk, owner) = (self.disk.clone(), self.owner);
        let mut now = own(&disk);
        if now.owner != owner {
            return Commit::ready(Err(state_store::StoreError::Closed));
        }
        let batch = match now.broken {
            Broken::Forgetting => filter(&batch, |_, value| value.is_some()),
            Broken::Locks => filter(&batch, |key, _| key[0] != b'l'),
            _ => batch,
        };
        now.log.push(batch);
        let end = now.log.len();
        drop(now);
        Commit::new(async move {
            let mut disk = own(&disk);
            if disk.owner == owner && disk.broken != Broken::Durability {
                disk.durable = disk.durable.max(end);
            }
            Ok(())
        })
    }

    fn commits(&self) -> u64 {
        own(&self.disk).durable as u64
    }
}

pub(super) fn filter(batch: &Batch, keep: impl Fn(&[u8], &Option<Vec<u8>>) -> bool) -> Batch {
    let kept = batch.changes().iter().filter(|(key, value)| keep(key, value));
    kept.fold(Batch::new(), |batch, (key, value)| match value {
        Some(value) => batch.put(key.clone(), value.clone()),
        None => batch.delete(key.clone()),
    })
}
