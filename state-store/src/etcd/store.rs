//! The engine over etcd.
//!
//! ```text
//!  commit ─► queue of the owner ─► one transaction at a time:
//!     when  s/n/<node> = (epoch, n)   nobody took our place, and it was not carried out yet
//!           the guard, the conditions
//!     then  s/n/<node> = (epoch, n + 1), the changes
//!     else  what is there instead
//!  no answer ─► the same transaction again: if it was carried out, its first condition fails and
//!               the node's key says so, with its revision
//! ```
//!
//! Whoever waits is told [`StoreError::Unavailable`] when its patience is over; the batch keeps its
//! place, and the engine goes on asking. So batches of an owner are carried out in their order whatever
//! etcd does, each once.
//!
//! Batches without conditions that wait together go as one transaction.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    CallError, Client, Code, KeyWatch, KeyWatchEvent,
    record::{self, NodeRecord, above, entry, epoch_bytes, of, parse_epoch, value},
    wire::{
        CREATE, Compare, DELETE, DeleteRequest, EQUAL, GREATER, KeyValue, LESS, MOD, Op, OpDone,
        PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse, VALUE, WatchEvent, With,
    },
};
use crate::{
    Answer, Batch, Commit, Entry, Event, Expect, Listing, Opened, Owner, Revision, Store,
    StoreError,
    watch::{Watch, Watched},
};

/// Steps that etcd takes in one transaction unless it is told otherwise (`--max-txn-ops`).
const MOST_STEPS: usize = 128;
/// Bytes of batches that go as one; etcd takes 1.5 MiB (`--max-request-bytes`).
const MOST_BYTES: usize = 1 << 20;
/// How long before the same is asked again, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// What must be so in all that a store's handle commits: a key that is not the store's own, as the
/// commit with this revision left it. Who has it changed has taken the store away from the handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key in etcd.
    pub key: Vec<u8>,
    /// Its `mod_revision`.
    pub revision: i64,
}

/// A store in etcd, in the hands of one node. It needs a tokio runtime.
#[derive(Debug)]
pub struct EtcdStore {
    shared: Arc<Shared>,
    owner: Owner,
    queue: mpsc::UnboundedSender<Job>,
}

#[derive(Debug)]
struct Shared {
    client: Arc<Client>,
    name: Vec<u8>,
    guard: Option<Guard>,
    patience: Duration,
    commits: AtomicU64,
    /// The last revision that was seen.
    seen: AtomicU64,
}

#[derive(Debug)]
struct Job {
    batch: Batch,
    tell: oneshot::Sender<Result<Revision, StoreError>>,
}

/// What became of a batch, and how many of the owner's batches are counted now.
struct Carried {
    result: Result<Revision, StoreError>,
    batches: u64,
}

impl EtcdStore {
    /// Opens the store `name` as a node, begins a new epoch of it, and gives what is there. With
    /// `alone` every other node is fenced by the same commit. Waiting ends after `patience`.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the guard does not hold, [`StoreError::Unavailable`],
    /// [`StoreError::Foreign`] if something in it is no record.
    pub async fn open(
        client: Arc<Client>,
        name: &str,
        (node, alone): (u16, bool),
        guard: Option<Guard>,
        patience: Duration,
    ) -> Result<Opened, StoreError> {
        let name = name.as_bytes().to_vec();
        let (commits, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Arc::new(Shared { client, name, guard, patience, commits, seen });
        let owner = shared.begin(node, alone).await?;
        let listing = shared.list(Vec::new()).await?;
        let records = listing.entries.into_iter().map(|(key, entry)| (key, entry.value)).collect();
        let store = Arc::new(Self::with(shared, owner));
        Ok(Opened { store, records, revision: listing.revision })
    }

    fn with(shared: Arc<Shared>, owner: Owner) -> Self {
        let (queue, jobs) = mpsc::unbounded_channel();
        tokio::spawn(write(shared.clone(), owner, jobs));
        Self { shared, owner, queue }
    }
}

/// Whether etcd has refused for now only.
fn is_busy(message: &str) -> bool {
    message.contains("too many requests")
}

fn refused(code: Code, message: String, len: usize) -> StoreError {
    let has = |words: &str| message.contains(words);
    if has("space exceeded") {
        StoreError::Full
    } else if has("too large") || has("too many operations") || code == Code::RESOURCE_EXHAUSTED {
        StoreError::TooLong(len)
    } else {
        StoreError::Unavailable(format!("etcd refuses: {message}").into())
    }
}

fn op(op: Op) -> RequestOp {
    RequestOp { request: Some(op) }
}

fn get(key: Vec<u8>) -> RequestOp {
    op(Op::Range(RangeRequest { key, ..RangeRequest::default() }))
}

fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    op(Op::Put(PutRequest { key, value, lease: 0 }))
}

fn compare(key: Vec<u8>, target: i32, result: i32, with: With) -> Compare {
    Compare { result, target, key, with: Some(with) }
}

/// The revision in which a key came to be, for what must not be there 0.
fn expect(key: Vec<u8>, expect: Expect) -> Vec<Compare> {
    match expect {
        Expect::Absent => vec![compare(key, CREATE, EQUAL, With::CreateRevision(0))],
        Expect::At(Revision(at)) => {
            // Nothing has a revision that is no revision.
            let at = i64::try_from(at).ok().filter(|at| *at > 0).unwrap_or(-1);
            vec![compare(key, MOD, EQUAL, With::ModRevision(at))]
        }
        Expect::Of(owner) => vec![
            compare(key.clone(), VALUE, GREATER, With::Value(of(owner))),
            compare(key, VALUE, LESS, With::Value(above(owner))),
        ],
    }
}

fn holds(found: Option<&Entry>, expect: Expect) -> bool {
    match expect {
        Expect::Absent => found.is_none(),
        Expect::At(at) => found.is_some_and(|entry| entry.revision == at),
        Expect::Of(owner) => found.is_some_and(|entry| entry.owner == owner),
    }
}

/// The key that each reading step of a transaction has found.
fn found(answer: TxnResponse) -> Vec<Option<KeyValue>> {
    let one = |response: super::wire::ResponseOp| match response.response {
        Some(OpDone::Range(range)) => Some(range.kvs.into_iter().next()),
        _ => None,
    };
    answer.responses.into_iter().filter_map(one).collect()
}

fn revision(answer: &TxnResponse) -> Revision {
    let revision = answer.header.unwrap_or_default().revision;
    Revision(u64::try_from(revision).unwrap_or(0))
}

impl Shared {
    fn key(&self, kind: &[u8], rest: &[u8]) -> Vec<u8> {
        [&self.name, kind, rest].concat()
    }

    fn epoch_key(&self) -> Vec<u8> {
        self.key(b"/e", b"")
    }

    fn node_key(&self, node: u16) -> Vec<u8> {
        self.key(b"/n/", format!("{node:05}").as_bytes())
    }

    fn record_key(&self, key: &[u8]) -> Vec<u8> {
        self.key(b"/r/", key)
    }

    /// The key of a record without what stands before it in etcd.
    fn own_key(&self, key: &[u8]) -> Option<Vec<u8>> {
        Some(key.strip_prefix(&*self.record_key(b""))?.to_vec())
    }

    fn foreign(&self, key: &[u8]) -> StoreError {
        StoreError::Foreign(String::from_utf8_lossy(key).into())
    }

    fn guard(&self) -> Option<Compare> {
        let Guard { key, revision } = self.guard.clone()?;
        Some(compare(key, MOD, EQUAL, With::ModRevision(revision)))
    }

    /// Does something again until etcd has answered, or patience is over.
    async fn patiently<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, CallError>> + Send,
    {
        let end = Instant::now() + self.patience;
        let mut pause = PAUSE.0;
        loop {
            let why = match attempt().await {
                Ok(done) => return Ok(done),
                Err(CallError::Refused { code, message }) if !is_busy(&message) => {
                    return Err(refused(code, message, 0));
                }
                Err(error) => error,
            };
            if Instant::now() + pause >= end {
                return Err(StoreError::Unavailable(why.to_string().into()));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Begins an epoch of a node.
    async fn begin(&self, node: u16, alone: bool) -> Result<Owner, StoreError> {
        loop {
            let begun = self.patiently(|| self.try_begin(node, alone)).await?;
            // Else another has begun one meanwhile.
            if let Some(begun) = begun {
                return begun;
            }
        }
    }

    async fn try_begin(
        &self,
        node: u16,
        alone: bool,
    ) -> Result<Option<Result<Owner, StoreError>>, CallError> {
        let (nodes, _) = self.client.list(&self.key(b"/n/", b"")).await?;
        let last = self.client.get(&self.epoch_key()).await?.kvs.pop();
        let epoch = match last.as_ref().map(|kv| parse_epoch(&kv.value)) {
            Some(None) => return Ok(Some(Err(self.foreign(&self.epoch_key())))),
            Some(Some(epoch)) => epoch,
            None => 0,
        };
        let mine = self.node_key(node);
        let owner = Owner { node, epoch: epoch + 1 };
        let at = last.map_or(0, |kv| kv.mod_revision);
        let mut request = TxnRequest {
            compare: vec![compare(self.epoch_key(), MOD, EQUAL, With::ModRevision(at))],
            success: vec![
                put(self.epoch_key(), epoch_bytes(owner.epoch)),
                put(mine.clone(), NodeRecord { epoch: owner.epoch, batches: 0 }.to_bytes()),
            ],
            failure: vec![get(self.epoch_key())],
        };
        request.compare.extend(self.guard());
        let others = nodes.into_iter().filter(|kv| alone && kv.key != mine);
        let gone = others.map(|kv| op(Op::Delete(DeleteRequest { key: kv.key })));
        request.success.extend(gone.take(MOST_STEPS - 2));
        let answer = self.client.txn(&request).await?;
        if answer.succeeded {
            return Ok(Some(Ok(owner)));
        }
        let now = found(answer).into_iter().flatten().next();
        let same = now.map_or(0, |kv| kv.mod_revision) == at;
        // The epoch is as it was, so the guard does not hold.
        Ok(same.then_some(Err(StoreError::Fenced { owner, now: epoch })))
    }

    async fn read(&self, key: Vec<u8>) -> Result<Option<Entry>, StoreError> {
        let at = self.record_key(&key);
        let found = self.patiently(|| self.client.get(&at)).await?.kvs.pop();
        found.map(|kv| entry(kv).ok_or_else(|| self.foreign(&at))).transpose()
    }

    async fn list(&self, prefix: Vec<u8>) -> Result<Listing, StoreError> {
        let at = self.record_key(&prefix);
        let (all, revision) = self.patiently(|| self.client.list(&at)).await?;
        let one = |kv: KeyValue| {
            let foreign = self.foreign(&kv.key);
            let (key, entry) = (self.own_key(&kv.key), entry(kv));
            key.zip(entry).ok_or(foreign)
        };
        let entries = all.into_iter().map(one).collect::<Result<_, _>>()?;
        Ok(Listing { entries, revision: Revision(u64::try_from(revision).unwrap_or(0)) })
    }

    async fn watch(self: Arc<Self>, prefix: Vec<u8>, after: u64) -> Result<Watch, StoreError> {
        let at = i64::try_from(after).unwrap_or(i64::MAX - 1);
        let key = self.epoch_key();
        let asked = self.patiently(|| async {
            match self.client.get_at(&key, at + 1).await {
                // What has not happened yet is known when it does.
                Err(CallError::Refused { code: Code::OUT_OF_RANGE, message }) => {
                    Ok(message.contains("compacted"))
                }
                other => other.map(|_| false),
            }
        });
        if asked.await? {
            let now = self.patiently(|| self.client.get(&key)).await?;
            let now = now.header.unwrap_or_default().revision;
            return Err(StoreError::Compacted(Revision(u64::try_from(now).unwrap_or(0))));
        }
        let keys = self.client.watch(&self.record_key(&prefix), at);
        Ok(Watch::new(EtcdWatch { shared: self, keys, over: None }))
    }

    fn transaction(&self, owner: Owner, batches: u64, batch: &Batch) -> TxnRequest {
        let node = self.node_key(owner.node);
        let counted = |batches| NodeRecord { epoch: owner.epoch, batches }.to_bytes();
        let before = With::Value(counted(batches));
        let mut request = TxnRequest {
            compare: vec![compare(node.clone(), VALUE, EQUAL, before)],
            success: vec![put(node.clone(), counted(batches + 1))],
            failure: vec![get(node)],
        };
        request.compare.extend(self.guard());
        for (key, expected) in batch.conditions() {
            let key = self.record_key(key);
            request.compare.extend(expect(key.clone(), *expected));
            request.failure.push(get(key));
        }
        for (key, bytes) in last_of_each(batch) {
            let key = self.record_key(key);
            request.success.push(match bytes {
                Some(bytes) => put(key, value(owner, bytes)),
                None => op(Op::Delete(DeleteRequest { key })),
            });
        }
        request
    }

    /// Has a batch carried out, however long it takes.
    async fn carry_out(&self, owner: Owner, batches: u64, batch: &Batch) -> Carried {
        let request = self.transaction(owner, batches, batch);
        let (mut in_doubt, mut pause) = (false, PAUSE.0);
        let error = loop {
            match self.client.txn(&request).await {
                Ok(answer) if answer.succeeded => {
                    let result = Ok(revision(&answer));
                    return Carried { result, batches: batches + 1 };
                }
                Ok(answer) => match self.judge(owner, batches, batch, answer) {
                    Ok(revision) => {
                        return Carried { result: Ok(revision), batches: batches + 1 };
                    }
                    Err(error) => break error,
                },
                Err(CallError::Refused { code, message }) if !is_busy(&message) => {
                    break refused(code, message, size(batch));
                }
                Err(error) => {
                    tracing::debug!(%error, "a batch is in doubt and is tried again");
                    in_doubt = true;
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        };
        if !in_doubt || matches!(error, StoreError::Fenced { .. }) {
            return Carried { result: Err(error), batches };
        }
        // An attempt without an answer may still be under way: from now on it comes too late.
        match self.settle(owner, batches).await {
            Ok(Some(revision)) => Carried { result: Ok(revision), batches: batches + 1 },
            Ok(None) => Carried { result: Err(error), batches: batches + 2 },
            Err(fenced) => Carried { result: Err(fenced), batches },
        }
    }

    /// Why a batch was not carried out by this attempt; or by an earlier one it was.
    fn judge(
        &self,
        owner: Owner,
        batches: u64,
        batch: &Batch,
        answer: TxnResponse,
    ) -> Result<Revision, StoreError> {
        let mut found = found(answer).into_iter();
        let node = found.next().flatten();
        let at = node.as_ref().map_or(0, |kv| kv.mod_revision);
        let Some(known) = node
            .map_or(Some(NodeRecord { epoch: 0, batches: 0 }), |kv| NodeRecord::parse(&kv.value))
        else {
            return Err(self.foreign(&self.node_key(owner.node)));
        };
        let fenced = StoreError::Fenced { owner, now: known.epoch };
        if known.epoch != owner.epoch {
            return Err(fenced);
        }
        if known.batches == batches + 1 {
            return Ok(Revision(u64::try_from(at).unwrap_or(0)));
        }
        for ((key, expected), kv) in batch.conditions().iter().zip(found) {
            let entry = match kv.map(entry) {
                Some(None) => return Err(self.foreign(&self.record_key(key))),
                Some(entry) => entry,
                None => None,
            };
            if !holds(entry.as_ref(), *expected) {
                let found = entry.map(|entry| entry.revision);
                return Err(StoreError::Conflict { key: key.clone(), found });
            }
        }
        Err(fenced)
    }

    /// Counts a batch that is in doubt as one that is not to be carried out any more; if it was, says
    /// in which commit.
    async fn settle(&self, owner: Owner, batches: u64) -> Result<Option<Revision>, StoreError> {
        let counted = |batches| NodeRecord { epoch: owner.epoch, batches }.to_bytes();
        let node = self.node_key(owner.node);
        let request = TxnRequest {
            compare: vec![compare(node.clone(), VALUE, EQUAL, With::Value(counted(batches)))],
            success: vec![put(node.clone(), counted(batches + 2))],
            failure: vec![get(node)],
        };
        let mut pause = PAUSE.0;
        loop {
            match self.client.txn(&request).await {
                Ok(answer) if answer.succeeded => return Ok(None),
                Ok(answer) => {
                    let node = found(answer).into_iter().next().flatten();
                    let at = node.as_ref().map_or(0, |kv| kv.mod_revision);
                    let known = node.and_then(|kv| NodeRecord::parse(&kv.value));
                    return match known.filter(|known| known.epoch == owner.epoch) {
                        Some(known) if known.batches == batches + 1 => {
                            Ok(Some(Revision(u64::try_from(at).unwrap_or(0))))
                        }
                        // An earlier attempt of this has.
                        Some(known) if known.batches == batches + 2 => Ok(None),
                        _ => Err(StoreError::Fenced { owner, now: known.map_or(0, |k| k.epoch) }),
                    };
                }
                Err(error) => {
                    tracing::debug!(%error, "a batch stays in doubt");
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }
}

/// The last change of each key, in the order of these: etcd takes a key once in a transaction.
fn last_of_each(batch: &Batch) -> Vec<(&[u8], Option<&[u8]>)> {
    let mut seen = HashSet::new();
    let changes = batch.changes().iter().rev().filter(|(key, _)| seen.insert(key.as_slice()));
    let mut last: Vec<_> = changes.map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
    last.reverse();
    last
}

/// Bytes of keys and values.
fn size(batch: &Batch) -> usize {
    let one =
        |(key, value): &(Vec<u8>, Option<Vec<u8>>)| key.len() + value.as_ref().map_or(0, Vec::len);
    batch.changes().iter().map(one).sum()
}

/// Whether etcd takes a batch as one transaction: a step is our own, and a condition may be two.
fn fits(batch: &Batch) -> bool {
    batch.changes().len() < MOST_STEPS && 2 * batch.conditions().len() + 2 <= MOST_STEPS
}

/// Carries out an owner's batches, one transaction after the other.
async fn write(shared: Arc<Shared>, owner: Owner, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let (mut batches, mut held, mut gone) = (0, None, None);
    loop {
        let next = match held.take() {
            Some(job) => Some(job),
            None => jobs.recv().await,
        };
        let Some(Job { mut batch, tell }) = next else { return };
        let mut waiters = vec![tell];
        let mut bytes = size(&batch);
        while batch.conditions().is_empty()
            && let Ok(job) = jobs.try_recv()
        {
            bytes += size(&job.batch);
            let steps = batch.changes().len() + job.batch.changes().len();
            if !job.batch.conditions().is_empty() || steps >= MOST_STEPS || bytes > MOST_BYTES {
                held = Some(job);
                break;
            }
            batch = batch.and(job.batch);
            waiters.push(job.tell);
        }
        let result = match &gone {
            Some(gone) => Err(StoreError::clone(gone)),
            None => {
                let carried = shared.carry_out(owner, batches, &batch).await;
                batches = carried.batches;
                shared.commits.fetch_add(1, Ordering::Relaxed);
                if let Ok(Revision(revision)) = carried.result {
                    shared.seen.fetch_max(revision, Ordering::Relaxed);
                }
                carried.result
            }
        };
        if let Err(fenced @ StoreError::Fenced { .. }) = &result {
            // Nobody gets an epoch back.
            gone = Some(fenced.clone());
        }
        for waiter in waiters {
            // Nobody need wait.
            let _ = waiter.send(result.clone());
        }
    }
}

impl Store for EtcdStore {
    fn owner(&self) -> Owner {
        self.owner
    }

    fn commit(&self, batch: Batch) -> Commit {
        if let Err(error) = batch.check() {
            return Commit::ready(Err(error));
        }
        if batch.is_empty() {
            return Commit::ready(Ok(Revision(self.shared.seen.load(Ordering::Relaxed))));
        }
        if !fits(&batch) {
            return Commit::ready(Err(StoreError::TooLong(size(&batch))));
        }
        let (tell, told) = oneshot::channel();
        if self.queue.send(Job { batch, tell }).is_err() {
            return Commit::ready(Err(StoreError::Closed));
        }
        let patience = self.shared.patience;
        Commit::new(async move {
            match timeout(patience, told).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(StoreError::Closed),
                Err(_) => {
                    let why = format!("no answer from etcd within {patience:?}");
                    Err(StoreError::Unavailable(why.into()))
                }
            }
        })
    }

    fn read(&self, key: &[u8]) -> Answer<Option<Entry>> {
        let (shared, key) = (self.shared.clone(), key.to_vec());
        Box::pin(async move { shared.read(key).await })
    }

    fn list(&self, prefix: &[u8]) -> Answer<Listing> {
        let (shared, prefix) = (self.shared.clone(), prefix.to_vec());
        Box::pin(async move { shared.list(prefix).await })
    }

    fn watch(&self, prefix: &[u8], after: Revision) -> Answer<Watch> {
        Box::pin(self.shared.clone().watch(prefix.to_vec(), after.0))
    }

    fn fence(&self, node: u16) -> Answer<Owner> {
        let shared = self.shared.clone();
        Box::pin(async move { shared.begin(node, false).await })
    }

    fn join(&self, node: u16) -> Answer<Arc<dyn Store>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let owner = shared.begin(node, false).await?;
            Ok(Arc::new(Self::with(shared, owner)) as Arc<dyn Store>)
        })
    }

    fn most_changes(&self) -> usize {
        MOST_STEPS - 1
    }

    fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }
}

/// A watch of records.
struct EtcdWatch {
    shared: Arc<Shared>,
    keys: KeyWatch,
    over: Option<StoreError>,
}

impl EtcdWatch {
    fn event(&self, revision: i64, events: Vec<WatchEvent>) -> Result<Event, StoreError> {
        let mut changes = Vec::new();
        for WatchEvent { kind, kv } in events {
            let kv = kv.unwrap_or_default();
            let foreign = self.shared.foreign(&kv.key);
            let key = self.shared.own_key(&kv.key);
            let record = if kind == DELETE { Some(None) } else { record::entry(kv).map(Some) };
            let (Some(key), Some(record)) = (key, record) else { return Err(foreign) };
            changes.push((key, record));
        }
        Ok(Event { revision: Revision(u64::try_from(revision).unwrap_or(0)), changes })
    }
}

impl Watched for EtcdWatch {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, StoreError>> {
        if let Some(over) = &self.over {
            return Poll::Ready(Err(over.clone()));
        }
        let Poll::Ready(next) = self.keys.poll_next(context) else { return Poll::Pending };
        let result = match next {
            Some(KeyWatchEvent::Changed { revision, events }) => self.event(revision, events),
            Some(KeyWatchEvent::Compacted(at)) => {
                Err(StoreError::Compacted(Revision(u64::try_from(at).unwrap_or(0))))
            }
            None => Err(StoreError::Closed),
        };
        self.over = result.as_ref().err().cloned();
        Poll::Ready(result)
    }
}
