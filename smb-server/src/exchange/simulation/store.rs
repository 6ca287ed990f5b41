//! The state store of the simulation: what was not waited for may be lost with the server.

use std::sync::{Arc, Mutex, PoisonError};

use state_store::{
    Answer, Batch, Commit, Entry, Listing, Owner, Records, Revision, Store, StoreError, Watch,
};
use volume::{
    faults::Platter,
    open::record::{LocksRecord, OpenRecord},
};

use super::{Broken, Dice};

/// A store whose durability is simulated: what was not waited for may be lost with the server,
/// from the end. And what of the files is durable.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) base: Records,
    log: Vec<Batch>,
    durable: usize,
    broken: Broken,
    /// Which server has it.
    owner: u32,
    pub(super) platter: Arc<Platter>,
    /// What servers that start on it are told to dice with.
    pub(super) seed: u64,
}

#[derive(Debug)]
pub(super) struct Shelf {
    disk: Arc<Mutex<Disk>>,
    owner: u32,
}

pub(super) fn own<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    pub(super) fn new(broken: Broken, seed: u64) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            base: Records::new(),
            log: Vec::new(),
            durable: 0,
            broken,
            owner: 0,
            platter: Arc::default(),
            seed,
        }))
    }

    /// The server that has it is killed: what nobody waited for is there up to some point.
    pub(super) fn crash(&mut self, dice: &mut Dice) {
        let loose = self.log.len() - self.durable;
        let kept = self.durable + dice.roll(loose + 1);
        let kept = if self.broken == Broken::Commit { self.durable } else { kept };
        self.log.truncate(kept);
        self.owner += 1;
    }

    /// A server starts on what there is.
    pub(super) fn take_over(disk: &Arc<Mutex<Self>>) -> (Arc<Shelf>, Records) {
        let mut now = own(disk);
        now.owner += 1;
        now.seed = now.seed.wrapping_add(1);
        let mut records = now.base.clone();
        now.log.iter().for_each(|batch| batch.apply(&mut records));
        (now.base, now.log, now.durable) = (records.clone(), Vec::new(), 0);
        (Arc::new(Shelf { disk: disk.clone(), owner: now.owner }), records)
    }
}

impl Shelf {
    fn entry(&self, value: Vec<u8>) -> Entry {
        // Which of its commits set it is not kept: nothing here is conditional.
        Entry { value, owner: self.owner(), revision: Revision(0) }
    }

    fn records(&self) -> (Records, Revision) {
        let disk = own(&self.disk);
        let mut records = disk.base.clone();
        disk.log.iter().for_each(|batch| batch.apply(&mut records));
        (records, Revision(disk.log.len() as u64))
    }

    /// What the simulated store does not have: a server of one node never asks for it.
    fn lacks<T: Send + 'static>(what: &str) -> Answer<T> {
        Box::pin(std::future::ready(Err(StoreError::Unavailable(what.into()))))
    }
}

impl Store for Shelf {
    fn owner(&self) -> Owner {
        Owner { node: 0, epoch: u64::from(self.owner) }
    }

    fn read(&self, key: &[u8]) -> Answer<Option<Entry>> {
        let value = self.records().0.remove(key);
        Box::pin(std::future::ready(Ok(value.map(|value| self.entry(value)))))
    }

    fn list(&self, prefix: &[u8]) -> Answer<Listing> {
        let (records, revision) = self.records();
        let mine = records.into_iter().filter(|(key, _)| key.starts_with(prefix));
        let entries = mine.map(|(key, value)| (key, self.entry(value))).collect();
        Box::pin(std::future::ready(Ok(Listing { entries, revision })))
    }

    fn watch(&self, _: &[u8], _: Revision) -> Answer<Watch> {
        Self::lacks("watches")
    }

    fn fence(&self, _: u16) -> Answer<Owner> {
        Self::lacks("nodes")
    }

    fn join(&self, _: u16) -> Answer<Arc<dyn Store>> {
        Self::lacks("nodes")
    }

    fn commit(&self, batch: Batch) -> Commit {
        let (disk, owner) = (self.disk.clone(), self.owner);
        let mut now = own(&disk);
        if now.owner != owner {
            return Commit::ready(Err(StoreError::Closed));
        }
        assert!(batch.conditions().is_empty(), "the simulated store knows none");
        let batch = damaged(batch, now.broken);
        now.log.push(batch);
        let end = now.log.len();
        drop(now);
        Commit::new(async move {
            let mut disk = own(&disk);
            if disk.owner == owner && disk.broken != Broken::Commit {
                disk.durable = disk.durable.max(end);
            }
            Ok(Revision(end as u64))
        })
    }

    fn commits(&self) -> u64 {
        own(&self.disk).durable as u64
    }
}

/// What a store that breaks a rule makes of a batch.
fn damaged(batch: Batch, broken: Broken) -> Batch {
    let change = |key: &[u8], value: &Option<Vec<u8>>| match (broken, key[0], value) {
        (Broken::Forgetting, _, None) => None,
        (Broken::Locks, b'l', _) | (Broken::Caching, b'c', _) => None,
        (Broken::LockNumbers, b'l', Some(bytes)) => {
            let record = LocksRecord::parse(bytes).expect("the server's own");
            Some(Some(LocksRecord { sequences: None, ..record }.to_bytes()))
        }
        (Broken::DeleteOnClose, b'o', Some(bytes)) => {
            let record = OpenRecord::parse(bytes).expect("the server's own");
            Some(Some(OpenRecord { delete_on_close: false, ..record }.to_bytes()))
        }
        _ => Some(value.clone()),
    };
    let mut damaged = Batch::new();
    for (key, value) in batch.changes() {
        damaged = match change(key, value) {
            Some(Some(value)) => damaged.put(key.clone(), value),
            Some(None) => damaged.delete(key.clone()),
            None => damaged,
        };
    }
    damaged
}
