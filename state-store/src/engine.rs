//! A store in a file of this machine.
//!
//! ```text
//!  commit ─► queue ─► thread: all that waits ─► one frame ─► write ─► fdatasync ─► every waiter
//!                        └─ no room: a new file with what is left, put in the old one's place
//! ```
//!
//! When a write or the disk fails, nobody knows what the file holds: nothing more is written to
//! it, and the next commit begins with a new file. Records that only go away may use the last
//! part of a file that cannot be replaced because the disk is full.

use std::{
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use crate::{
    Answer, Batch, Commit, Entry, Listing, Opened, Owner, Revision, Store, StoreError,
    log::Content,
    medium::{Folder, Medium},
    watch::{History, LocalWatch, Watch},
    writer::{Done, Job, Writer},
};

/// Who waits for a job.
type Waiter = oneshot::Sender<Done>;

/// A store in a file of this machine, in the hands of one node. When the last handle of a store goes,
/// it waits for what was given to it.
#[derive(Debug)]
pub struct LocalStore {
    engine: Arc<Engine>,
    owner: Owner,
}

/// What all handles of a store share.
#[derive(Debug)]
struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is durable, and what was lately committed.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) content: Content,
    pub(crate) history: History,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    commits: AtomicU64,
    state: Arc<RwLock<State>>,
}

#[derive(Debug)]
struct Queue {
    waiting: Vec<(Job, Waiter)>,
    /// Taken by the thread when it starts, with the first batch.
    writer: Option<Box<Writer>>,
    closed: bool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read(state: &RwLock<State>) -> RwLockReadGuard<'_, State> {
    state.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state.write().unwrap_or_else(PoisonError::into_inner)
}

impl LocalStore {
    /// Opens the store `name` in a folder as node 0, making it if there is none, and begins a new
    /// epoch of that node. Nothing else may have the file.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if another process has it, [`StoreError::Damaged`] if the file is not
    /// what was written, [`StoreError::Full`] if there is no room for the epoch.
    pub fn open(folder: &Path, name: &'static str) -> Result<Opened, StoreError> {
        let path = folder.join(name);
        let system = |what| {
            let path = path.clone();
            move |e: io::Error| StoreError::System { path, what, source: Arc::new(e) }
        };
        let medium = Folder::lock(folder, name).map_err(system("taking the lock"))?;
        let medium = medium.ok_or_else(|| StoreError::Busy(path.clone()))?;
        Self::on(Box::new(medium), path).map(Self::opened)
    }

    fn on(medium: Box<dyn Medium>, path: PathBuf) -> Result<Self, StoreError> {
        let mut writer = Box::new(Writer::open(medium, path)?);
        let first = writer.commit(&[Job::Fence(0)]).pop();
        let (owner, _) = first.unwrap_or(Err(StoreError::Closed))?;
        let state = writer.state.clone();
        let queue = Queue { waiting: Vec::new(), writer: Some(writer), closed: false };
        let (queue, wake, commits) = (Mutex::new(queue), Condvar::new(), AtomicU64::new(0));
        let shared = Arc::new(Shared { queue, wake, commits, state });
        let engine = Arc::new(Engine { shared, thread: Mutex::new(None) });
        Ok(Self { engine, owner })
    }

    fn opened(self) -> Opened {
        let state = read(&self.engine.shared.state);
        let entries = state.content.entries.iter();
        let records = entries.map(|(key, entry)| (key.clone(), entry.value.clone())).collect();
        let revision = state.content.revision;
        drop(state);
        Opened { store: Arc::new(self), records, revision }
    }
}

impl Engine {
    /// Puts a job in its place in the order.
    fn queue(&self, job: Job) -> oneshot::Receiver<Done> {
        let (tell, told) = oneshot::channel();
        let mut queue = lock(&self.shared.queue);
        queue.waiting.push((job, tell));
        // The thread begins here and not earlier, so that it has what the process has given up
        // by the time it serves anyone.
        if let Some(writer) = queue.writer.take() {
            let shared = self.shared.clone();
            let run = move || run(&shared, *writer);
            match std::thread::Builder::new().name("state".to_owned()).spawn(run) {
                Ok(thread) => *lock(&self.thread) = Some(thread),
                Err(_) => queue.waiting.clear(),
            }
        }
        drop(queue);
        self.shared.wake.notify_one();
        told
    }
}

impl Store for LocalStore {
    fn owner(&self) -> Owner {
        self.owner
    }

    fn commit(&self, batch: Batch) -> Commit {
        if let Err(error) = batch.check() {
            return Commit::ready(Err(error));
        }
        if batch.is_empty() {
            return Commit::ready(Ok(read(&self.engine.shared.state).content.revision));
        }
        let told = self.engine.queue(Job::Commit(self.owner, batch));
        Commit::new(async move {
            let (_, revision) = told.await.unwrap_or(Err(StoreError::Closed))?;
            Ok(revision)
        })
    }

    fn read(&self, key: &[u8]) -> Answer<Option<Entry>> {
        let entry = read(&self.engine.shared.state).content.entries.get(key).cloned();
        Box::pin(std::future::ready(Ok(entry)))
    }

    fn list(&self, prefix: &[u8]) -> Answer<Listing> {
        let state = read(&self.engine.shared.state);
        let from = (Bound::Included(prefix.to_vec()), Bound::Unbounded);
        let all = state.content.entries.range::<Vec<u8>, _>(from);
        let mine = all.take_while(|(key, _)| key.starts_with(prefix));
        let entries = mine.map(|(key, entry)| (key.clone(), entry.clone())).collect();
        let listing = Listing { entries, revision: state.content.revision };
        Box::pin(std::future::ready(Ok(listing)))
    }

    fn watch(&self, prefix: &[u8], after: Revision) -> Answer<Watch> {
        let watch = LocalWatch::new(&self.engine.shared.state, prefix, after).map(Watch::new);
        Box::pin(std::future::ready(watch))
    }

    fn fence(&self, node: u16) -> Answer<Owner> {
        let told = self.engine.queue(Job::Fence(node));
        Box::pin(async move {
            let (owner, _) = told.await.unwrap_or(Err(StoreError::Closed))?;
            Ok(owner)
        })
    }

    fn join(&self, node: u16) -> Answer<Arc<dyn Store>> {
        let (engine, owner) = (self.engine.clone(), self.fence(node));
        Box::pin(async move {
            let owner = owner.await?;
            Ok(Arc::new(Self { engine, owner }) as Arc<dyn Store>)
        })
    }

    fn commits(&self) -> u64 {
        self.engine.shared.commits.load(Ordering::Relaxed)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the state store's thread failed; this is a defect");
        }
        write(&self.shared.state).history.close();
    }
}

/// Carries out what is queued until the store is closed.
fn run(shared: &Shared, mut writer: Writer) {
    loop {
        let mut queue = lock(&shared.queue);
        while queue.waiting.is_empty() && !queue.closed {
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let group = std::mem::take(&mut queue.waiting);
        drop(queue);
        if group.is_empty() {
            return;
        }
        let (jobs, waiters): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let before = writer.syncs;
        let results = writer.commit(&jobs);
        shared.commits.fetch_add(writer.syncs - before, Ordering::Relaxed);
        for (waiter, result) in waiters.into_iter().zip(results) {
            // Nobody need wait.
            let _ = waiter.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn batches_that_come_together_share_a_commit() {
        let folder = tempfile::tempdir().unwrap();
        let Opened { store, records, .. } = LocalStore::open(folder.path(), "state").unwrap();
        assert!(records.is_empty());
        let busy = LocalStore::open(folder.path(), "state").unwrap_err();
        assert!(matches!(busy, StoreError::Busy(_)), "{busy}");
        let put = |n: u32| Batch::new().put(n.to_be_bytes().to_vec(), vec![1; 200]);
        let all: Vec<_> = (0..500).map(|n| store.commit(put(n))).collect();
        for commit in all {
            commit.await.unwrap();
        }
        assert!(store.commits() < 250, "{} for 500", store.commits());
        let long = store.commit(Batch::new().put(vec![], vec![])).await;
        assert!(matches!(long, Err(StoreError::TooLong(0))));
        // What nobody waits for is carried out all the same.
        drop(store.commit(Batch::new().delete(7u32.to_be_bytes().to_vec())));
        drop(store);
        let Opened { records, .. } = LocalStore::open(folder.path(), "state").unwrap();
        assert_eq!(records.len(), 499);
        drop(LocalStore::open(folder.path(), "state").unwrap());
        let path = folder.path().join("state");
        let len = std::fs::metadata(&path).unwrap().len();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len - 1).unwrap();
        let error = LocalStore::open(folder.path(), "state").unwrap_err();
        assert!(error.to_string().contains("bytes long where"), "{error}");
    }
}
