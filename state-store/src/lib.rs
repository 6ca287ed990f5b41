//! State that must outlive the process that promised it: opens, locks, leases.
//!
//! ```text
//!  server ─► Batch (records that it sets and deletes) ─► Store::commit ─► durable
//!                                                                  │
//!                             one node: LocalStore (engine) ───────┤
//!                               queue ─► one frame for all that waits ─► write, fdatasync ─► answers
//!                               writer: conditions, epochs, the file      watch: who is told
//!                               log: the bytes of the file, nothing else
//!                             many nodes: EtcdStore (etcd) ────────┘
//!                               queue ─► one transaction at a time ─► a quorum of etcd ─► answers
//! ```
//!
//! A store is a small map that changes in atomic batches, on conditions if the batch has some. What a
//! reader of the records needs after a crash is given once, when the store is opened ([`Opened`]);
//! who shares a store with other nodes reads, lists and watches. Every record has an owner, the node
//! that set it, and the epoch in which it did: a node that was replaced cannot commit any more.
//! Reading and writing files never comes here: only opening, closing, locking and what changes what a
//! client may cache.
//!
//! This crate knows no protocol: a record is bytes under a key.

mod batch;
mod engine;
pub mod etcd;
pub mod log;
mod medium;
mod store;
mod watch;
mod writer;

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

pub use self::{
    batch::{Batch, Expect},
    engine::LocalStore,
    store::{Answer, Commit, Entry, Listing, Owner, Revision, Store},
    watch::{Event, Watch, Watched},
};

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
    /// A record is not as the batch expects it to be.
    #[error("a record of the state store was changed by another")]
    Conflict {
        /// Its key.
        key: Vec<u8>,
        /// The commit that set it; `None` if it is not there.
        found: Option<Revision>,
    },
    /// The node was replaced: another has taken over what was its own.
    #[error("{owner} was replaced in epoch {now}")]
    Fenced {
        /// Who tried to commit.
        owner: Owner,
        /// The node's epoch now; 0 if it has none.
        now: u64,
    },
    /// The store cannot be reached. Whether a batch was carried out is not known.
    #[error("the state store cannot be reached: {0}")]
    Unavailable(Arc<str>),
    /// What is to be watched happened longer ago than is remembered.
    #[error("the state store remembers nothing before revision {now}", now = .0.0)]
    Compacted(Revision),
    /// Something is in the store that no version of this program has written there that is known here.
    #[error("the state store has something under {0:?} that is no record of this version")]
    Foreign(Arc<str>),
    /// The store was closed.
    #[error("the state store is closed")]
    Closed,
}

/// A store with what it held when it was opened.
#[derive(Debug)]
pub struct Opened {
    /// Takes batches.
    pub store: Arc<dyn Store>,
    /// The records.
    pub records: Records,
    /// The last commit that is in them.
    pub revision: Revision,
}
