//! What every engine of a store gives.
//!
//! # What an engine for several nodes must give
//!
//! Many nodes open one store, each as an [`Owner`] of its own. The table says how an engine over etcd
//! gives what the trait promises; whatever else takes its place must give the same.
//!
//! | here | etcd ([`crate::etcd::EtcdStore`]) |
//! | --- | --- |
//! | [`Batch`] | one transaction: a compare for each condition and one for the epoch, then its puts and deletes; fewer than 128 changes (`max-txn-ops`), else [`StoreError::TooLong`] |
//! | [`Revision`] | the revision of the transaction; [`Entry::revision`] is the key's `mod_revision` |
//! | [`Owner`], epochs | the key of the node's number holds its epoch, put by whoever opens or fences it; a key beside it has the last epoch of all nodes, and the same transaction counts it up, so epochs stay small enough to number sessions and opens by |
//! | [`StoreError::Fenced`] | the compare "the node's key has my epoch, and as many batches as I know of" stands in every transaction and has failed by the epoch |
//! | [`StoreError::Conflict`] | another compare has failed; the transaction's other branch has read what is there |
//! | [`Entry::owner`] | stands in front of the value, since etcd keeps no author |
//! | [`Store::list`] | a serializable read is not enough: linearizable range reads, all at the revision of the first one's header |
//! | [`Store::watch`] | a watch of the prefix from `after + 1`; `compacted` is [`StoreError::Compacted`]. A key that was set and taken away by one batch is not told |
//! | [`StoreError::Unavailable`] | no quorum, or nobody answers, for as long as whoever waits has patience. Whether the batch was carried out is not known then; the engine keeps it in its place and asks on: the number of batches in the node's key says whether an attempt without an answer was carried out, and keeps it from being so twice |
//! | order of commits | transactions of one owner go out one after another, or as one. Of two owners there is no order before one's commit has resolved |
//!
//! A node whose epoch was replaced learns it by [`StoreError::Fenced`] at its next batch, however
//! late that comes; before somebody acts on what a node has left behind he fences it. What the node
//! may still do to files is for the fence of the storage (see `docs/decisions`).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use crate::{Batch, StoreError, watch::Watch};

/// Counts the commits of a store: each has a greater one than those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// In whose name batches are committed: a node, for as long as nobody has taken its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Owner {
    /// The node's number. A store of one node has number 0.
    pub node: u16,
    /// Greater than every epoch that any node had in this store before.
    pub epoch: u64,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} in epoch {}", self.node, self.epoch)
    }
}

/// A record with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its bytes.
    pub value: Vec<u8>,
    /// Who set it last. All zeros if a version of the program did that had no owners.
    pub owner: Owner,
    /// The commit that did.
    pub revision: Revision,
}

/// Records as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The records in the order of their keys.
    pub entries: Vec<(Vec<u8>, Entry)>,
    /// The last commit that is in them: a watch from here misses nothing.
    pub revision: Revision,
}

/// Resolves when a batch is durable, to its revision. Dropping it does not undo the batch.
pub struct Commit(Answer<Revision>);

/// What a store gives later.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

impl Commit {
    /// Resolves with a future.
    pub fn new(
        future: impl Future<Output = Result<Revision, StoreError>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(future))
    }

    /// A commit that has resolved already.
    pub fn ready(result: Result<Revision, StoreError>) -> Self {
        Self::new(std::future::ready(result))
    }
}

impl Future for Commit {
    type Output = Result<Revision, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Commit")
    }
}

/// A map that changes in atomic, durable batches.
///
/// Batches are carried out in the order of the calls of [`Store::commit`], and whoever opens the
/// store after a crash finds the effect of some number of the first of them: at least of those
/// whose commit has resolved. A batch whose conditions do not hold when its turn comes, or whose
/// owner was replaced, changes nothing. Reads see all that has resolved before they were begun.
pub trait Store: fmt::Debug + Send + Sync {
    /// In whose name this handle commits.
    fn owner(&self) -> Owner;

    /// Puts a batch in its place in the order now. The future resolves when it is durable, to
    /// [`StoreError::Conflict`] if a condition does not hold, [`StoreError::Fenced`] if the owner was
    /// replaced, [`StoreError::Full`] or [`StoreError::TooLong`] if there is no room for it.
    fn commit(&self, batch: Batch) -> Commit;

    /// How many changes a batch may have; a store says what its medium takes at once.
    fn most_changes(&self) -> usize {
        usize::MAX
    }

    /// The record under a key.
    fn read(&self, key: &[u8]) -> Answer<Option<Entry>>;

    /// All records whose keys begin with `prefix`, as they are at one moment.
    fn list(&self, prefix: &[u8]) -> Answer<Listing>;

    /// Every commit after `after` that changes keys which begin with `prefix`: each once, in the
    /// order of their revisions. [`StoreError::Compacted`] if the first of them are not known any
    /// more; then a listing says what there is.
    fn watch(&self, prefix: &[u8], after: Revision) -> Answer<Watch>;

    /// Begins a new epoch of a node, its first or one in the place of the one before: when it has
    /// resolved, to the owner that the node is now, no batch of an earlier epoch of this node is
    /// carried out any more.
    fn fence(&self, node: u16) -> Answer<Owner>;

    /// As [`Store::fence`], and gives a handle that commits in that node's name.
    fn join(&self, node: u16) -> Answer<Arc<dyn Store>>;

    /// How often the storage was made durable so far. Batches that come together share one.
    fn commits(&self) -> u64;
}
