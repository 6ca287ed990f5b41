//! State that must outlive the process that promised it: opens, locks, leases.
//!
//! ```text
//!  server ─► Batch (records that it sets and deletes) ─► Store::commit ─► durable
//!                                                                  │
//!                             one node: LocalStore (engine) ───────┤
//!                               queue ─► one frame for all that waits ─► write, fdatasync ─► answers
//!                               log: the bytes of the file, nothing else
//!                             many nodes: a cluster's engine behind the same trait
//! ```
//!
//! A store is a small map that changes in atomic batches. What a reader of the records needs after
//! a crash is given once, when the store is opened ([`Opened`]). Reading and writing files never
//! comes here: only opening, closing, locking and what changes what a client may cache.
//!
//! This crate knows no protocol: a record is bytes under a key.

mod engine;
pub mod log;
mod medium;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pub use engine::LocalStore;

/// Longest key in bytes.
pub const MAX_KEY: usize = 255;
/// Longest value in bytes.
pub const MAX_VALUE: usize = 1 << 20;

/// All records, by key.
pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Why a store cannot be opened or does not take a batch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("state store {path}: {what}", path = path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process has the store.
    #[error("state store {path} is in use by another server", path = .0.display())]
    Busy(PathBuf),
    /// The file is not one that this version wrote, or was damaged.
    #[error("state store {path}: {damage}; move the file away to start without it", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        damage: log::Damage,
    },
    /// There is no room for another record; what is there stays.
    #[error("no room in the state store")]
    Full,
    /// A key or value is longer than any can be.
    #[error("a record of {0} bytes is longer than the state store takes")]
    TooLong(usize),
    /// The store was closed.
    #[error("the state store is closed")]
    Closed,
}

/// Changes that become durable together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// A batch that changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record to be set.
    #[must_use]
    pub fn put(mut self, key: Vec<u8>, value: Vec<u8>) -> Self {
        self.changes.push((key, Some(value)));
        self
    }

    /// Takes a record away; one that is not there is no error.
    #[must_use]
    pub fn delete(mut self, key: Vec<u8>) -> Self {
        self.changes.push((key, None));
        self
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether it only takes away.
    pub fn only_deletes(&self) -> bool {
        self.changes.iter().all(|(_, value)| value.is_none())
    }

    /// The changes in their order: key, and the value if it is set.
    pub fn changes(&self) -> &[(Vec<u8>, Option<Vec<u8>>)] {
        &self.changes
    }

    /// Makes the changes in a map.
    pub fn apply(&self, records: &mut Records) {
        for (key, value) in &self.changes {
            match value {
                Some(value) => drop(records.insert(key.clone(), value.clone())),
                None => drop(records.remove(key)),
            }
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        for (key, value) in &self.changes {
            let value = value.as_ref().map_or(0, Vec::len);
            if key.is_empty() || key.len() > MAX_KEY || value > MAX_VALUE {
                return Err(StoreError::TooLong(key.len() + value));
            }
        }
        Ok(())
    }
}

/// Resolves when a batch is durable. Dropping it does not undo the batch.
pub struct Commit(Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>);

impl Commit {
    /// Resolves with a future.
    pub fn new(future: impl Future<Output = Result<(), StoreError>> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }

    /// A commit that has resolved already.
    pub fn ready(result: Result<(), StoreError>) -> Self {
        Self::new(std::future::ready(result))
    }
}

impl Future for Commit {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Commit")
    }
}

/// Where batches become durable.
///
/// Batches are carried out in the order of the calls of [`Store::commit`], and whoever opens the
/// store after a crash finds the effect of some number of the first of them: at least of those
/// whose commit has resolved. A store is its owner's alone; one that shares its engine with other
/// nodes refuses batches of an owner that was replaced.
pub trait Store: fmt::Debug + Send + Sync {
    /// Puts a batch in its place in the order now; the future resolves when it is durable.
    fn commit(&self, batch: Batch) -> Commit;

    /// How often the storage was made durable so far. Batches that come together share one.
    fn commits(&self) -> u64;
}

/// A store with what it held when it was opened.
#[derive(Debug)]
pub struct Opened {
    /// Takes batches.
    pub store: Arc<dyn Store>,
    /// The records.
    pub records: Records,
}
