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
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use crate::{
    Batch, Commit, Opened, Records, Store, StoreError,
    log::{self, Cursor},
    medium::{Folder, Medium},
};

/// Shortest file.
const LEAST: u64 = 256 << 10;
/// The part of a file that is kept for records that go away.
const RESERVE: u64 = 8;

/// Who waits for a batch.
type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// A store in a file of this machine; closing it waits for what was given to it.
#[derive(Debug)]
pub struct LocalStore {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    commits: AtomicU64,
}

#[derive(Debug)]
struct Queue {
    waiting: Vec<(Batch, Waiter)>,
    /// Taken by the thread when it starts, with the first batch.
    writer: Option<Box<Writer>>,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalStore {
    /// Opens the store `name` in a folder, making it if there is none. Nothing else may have it.
    ///
    /// # Errors
    /// [`StoreError::Busy`] if another process has it, [`StoreError::Damaged`] if the file is not
    /// what was written.
    pub fn open(folder: &Path, name: &'static str) -> Result<Opened, StoreError> {
        let path = folder.join(name);
        let system = |what| {
            let path = path.clone();
            move |e: io::Error| StoreError::System { path, what, source: Arc::new(e) }
        };
        let medium = Folder::lock(folder, name).map_err(system("taking the lock"))?;
        let medium = medium.ok_or_else(|| StoreError::Busy(path.clone()))?;
        Self::on(Box::new(medium), path)
    }

    fn on(medium: Box<dyn Medium>, path: PathBuf) -> Result<Opened, StoreError> {
        let writer = Box::new(Writer::open(medium, path)?);
        let records = writer.live.clone();
        let queue = Queue { waiting: Vec::new(), writer: Some(writer), closed: false };
        let shared =
            Shared { queue: Mutex::new(queue), wake: Condvar::new(), commits: AtomicU64::new(0) };
        let store = Self { shared: Arc::new(shared), thread: Mutex::new(None) };
        Ok(Opened { store: Arc::new(store), records })
    }
}

impl Store for LocalStore {
    fn commit(&self, batch: Batch) -> Commit {
        if let Err(error) = batch.check() {
            return Commit::ready(Err(error));
        }
        if batch.is_empty() {
            return Commit::ready(Ok(()));
        }
        let (tell, told) = oneshot::channel();
        let mut queue = lock(&self.shared.queue);
        queue.waiting.push((batch, tell));
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
        Commit::new(async move { told.await.unwrap_or(Err(StoreError::Closed)) })
    }

    fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the state store's thread failed; this is a defect");
        }
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
        let (batches, waiters): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let before = writer.syncs;
        let results = writer.commit(&batches);
        shared.commits.fetch_add(writer.syncs - before, Ordering::Relaxed);
        for (waiter, result) in waiters.into_iter().zip(results) {
            // Nobody need wait.
            let _ = waiter.send(result);
        }
    }
}

/// The file and what it holds.
struct Writer {
    medium: Box<dyn Medium>,
    path: PathBuf,
    cursor: Cursor,
    live: Records,
    /// What the file holds is not known.
    broken: bool,
    /// How often it was made durable.
    syncs: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A number like no other file's: the time and where this process has something.
fn salt() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_le_bytes(bytes),
        _ => {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            time.map_or(1, |time| time.as_nanos() as u64)
        }
    }
}

impl Writer {
    fn open(mut medium: Box<dyn Medium>, path: PathBuf) -> Result<Self, StoreError> {
        let at = path.clone();
        let system = |what| {
            let path = at.clone();
            move |e: io::Error| StoreError::System { path, what, source: Arc::new(e) }
        };
        let found = medium.read().map_err(system("reading"))?;
        let Some(file) = found else {
            let live = Records::new();
            let (bytes, cursor) = Cursor::begin(&live, salt(), LEAST);
            medium.replace(&bytes, cursor.capacity()).map_err(system("making the file"))?;
            return Ok(Self { medium, path, cursor, live, broken: false, syncs: 0 });
        };
        let log::Read { records: live, cursor, torn_to } =
            log::read(&file).map_err(|damage| StoreError::Damaged { path: at.clone(), damage })?;
        if torn_to > cursor.end {
            let zeros = vec![0; (torn_to - cursor.end) as usize];
            tracing::info!(bytes = zeros.len(), "the state store's last write was cut off");
            medium.write(cursor.end, &zeros).map_err(system("clearing a torn write"))?;
            medium.sync().map_err(system("clearing a torn write"))?;
        }
        Ok(Self { medium, path, cursor, live, broken: false, syncs: 0 })
    }

    /// Makes batches durable, as many as can be; what became of each.
    fn commit(&mut self, batches: &[Batch]) -> Vec<Result<(), StoreError>> {
        let mut payload = Vec::new();
        batches.iter().for_each(|batch| log::encode(batch, &mut payload));
        let room = self.cursor.room().saturating_sub(self.cursor.capacity() / RESERVE);
        let fits = log::framed(payload.len()) <= room;
        if fits && !self.broken && self.append(&payload, batches) {
            return vec![Ok(()); batches.len()];
        }
        match self.replace(batches) {
            Ok(()) => vec![Ok(()); batches.len()],
            Err(error) => self.squeeze(batches, &error),
        }
    }

    /// Adds a frame; `false` if that failed.
    fn append(&mut self, payload: &[u8], batches: &[Batch]) -> bool {
        let mut cursor = self.cursor;
        let frame = cursor.frame(payload);
        let written = self.medium.write(self.cursor.end, &frame).and_then(|()| self.medium.sync());
        self.syncs += 1;
        match written {
            Ok(()) => {
                self.cursor = cursor;
                batches.iter().for_each(|batch| batch.apply(&mut self.live));
                true
            }
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "state store not written");
                self.broken = true;
                false
            }
        }
    }

    /// Puts a new file in the place of the old one, with the effect of `batches`.
    fn replace(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let mut live = self.live.clone();
        batches.iter().for_each(|batch| batch.apply(&mut live));
        let (bytes, cursor) = Cursor::begin(&live, salt(), LEAST);
        if cursor.capacity() > log::MOST {
            return Err(StoreError::Full);
        }
        self.syncs += 1;
        match self.medium.replace(&bytes, cursor.capacity()) {
            Ok(()) => {
                (self.live, self.cursor, self.broken) = (live, cursor, false);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(StoreError::Full),
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => Err(StoreError::Full),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "state store not replaced");
                // The new file may be there by its name already.
                self.broken = true;
                let (path, source) = (self.path.clone(), Arc::new(error));
                Err(StoreError::System { path, what: "writing a new file", source })
            }
        }
    }

    /// The file cannot be replaced: what only takes records away goes into the rest of it.
    fn squeeze(&mut self, batches: &[Batch], error: &StoreError) -> Vec<Result<(), StoreError>> {
        let one = |batch: &Batch| {
            if self.broken || !batch.only_deletes() {
                return Err(error.clone());
            }
            let mut payload = Vec::new();
            log::encode(batch, &mut payload);
            let fits = log::framed(payload.len()) <= self.cursor.room();
            match fits && self.append(&payload, std::slice::from_ref(batch)) {
                true => Ok(()),
                false => Err(error.clone()),
            }
        };
        batches.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is on a disk that may lose power: the file as it is durable, and writes that are not.
    #[derive(Debug, Default)]
    struct Disk {
        file: Option<Vec<u8>>,
        pending: Vec<(u64, Vec<u8>)>,
        /// Steps until the power goes; `None` if it stays.
        fuse: Option<u32>,
        full: bool,
        failing: bool,
        syncs: u32,
    }

    #[derive(Debug, Clone, Default)]
    struct Fake(Arc<Mutex<Disk>>);

    impl Disk {
        fn step(&mut self) -> io::Result<()> {
            if self.failing {
                return Err(io::ErrorKind::Other.into());
            }
            match &mut self.fuse {
                Some(0) => Err(io::ErrorKind::BrokenPipe.into()),
                Some(left) => {
                    *left -= 1;
                    Ok(())
                }
                None => Ok(()),
            }
        }

        fn settle(&mut self, keep: impl Fn(usize) -> bool) {
            let file = self.file.as_mut().expect("a write needs a file");
            let mut sector = 0;
            for (at, bytes) in self.pending.drain(..) {
                for (index, part) in bytes.chunks(64).enumerate() {
                    let start = at as usize + index * 64;
                    if keep(sector) {
                        file[start..start + part.len()].copy_from_slice(part);
                    }
                    sector += 1;
                }
            }
        }
    }

    impl Medium for Fake {
        fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
            Ok(lock(&self.0).file.clone())
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let mut disk = lock(&self.0);
            disk.step()?;
            assert!(offset + bytes.len() as u64 <= disk.file.as_ref().unwrap().len() as u64);
            disk.pending.push((offset, bytes.to_vec()));
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            let mut disk = lock(&self.0);
            disk.step()?;
            disk.syncs += 1;
            disk.settle(|_| true);
            Ok(())
        }

        fn replace(&mut self, bytes: &[u8], len: u64) -> io::Result<()> {
            let mut disk = lock(&self.0);
            disk.step()?;
            if disk.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.syncs += 1;
            disk.pending.clear();
            let mut file = bytes.to_vec();
            file.resize(len as usize, 0);
            disk.file = Some(file);
            Ok(())
        }
    }

    fn writer(disk: &Fake) -> Writer {
        Writer::open(Box::new(disk.clone()), PathBuf::from("test")).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        /// The power goes at any step, and any part of what was not yet durable is lost: after it
        /// the store has the effect of the first so many batches, all that were answered among
        /// them, and goes on.
        #[test]
        fn a_crash_keeps_a_prefix_with_all_that_was_answered(
            sizes in prop::collection::vec((0u8..8, 0usize..60_000, any::<bool>()), 1..25),
            fuse in 0u32..40,
            kept in any::<u64>(),
        ) {
            let disk = Fake::default();
            let mut store = writer(&disk);
            lock(&disk.0).fuse = Some(fuse);
            let mut states = vec![Records::new()];
            let mut answered = 0;
            for (key, size, delete) in sizes {
                let mut next = states.last().unwrap().clone();
                let batch = match delete {
                    true => Batch::new().delete(vec![b'k', key]),
                    false => Batch::new().put(vec![b'k', key], vec![key; size]),
                };
                batch.apply(&mut next);
                states.push(next);
                let result = store.commit(std::slice::from_ref(&batch));
                if result[0].is_err() {
                    break;
                }
                answered = states.len() - 1;
            }
            drop(store);
            {
                let mut disk = lock(&disk.0);
                disk.fuse = None;
                disk.settle(|sector| kept >> (sector % 64) & 1 == 1);
            }
            let mut store = writer(&disk);
            let found = states.iter().rposition(|state| *state == store.live);
            prop_assert!(found.is_some_and(|found| found >= answered) || states[answered] == store.live);
            // It goes on as if nothing had been.
            let batch = Batch::new().put(b"after".to_vec(), b"x".to_vec());
            prop_assert!(store.commit(std::slice::from_ref(&batch))[0].is_ok());
            let live = store.live.clone();
            drop(store);
            prop_assert_eq!(writer(&disk).live, live);
        }
    }

    #[test]
    fn a_full_disk_refuses_new_records_keeps_old_ones_and_lets_them_go() {
        let disk = Fake::default();
        let mut store = writer(&disk);
        lock(&disk.0).full = true;
        let put = |n: u32| Batch::new().put(n.to_be_bytes().to_vec(), vec![7; 4000]);
        let mut n = 0;
        while store.commit(&[put(n)])[0].is_ok() {
            n += 1;
        }
        assert!(n > 40, "{n} records fit before");
        // In one group only those that take records away are carried out.
        let results = store.commit(&[put(1000), Batch::new().delete(0u32.to_be_bytes().to_vec())]);
        assert!(matches!(results[..], [Err(StoreError::Full), Ok(())]), "{results:?}");
        assert_eq!(store.live.len() as u32, n - 1);
        drop(store);
        let mut store = writer(&disk);
        assert_eq!(store.live.len() as u32, n - 1);
        lock(&disk.0).full = false;
        assert!(store.commit(&[put(1000)])[0].is_ok());
    }

    #[test]
    fn after_a_failed_write_the_file_is_not_trusted() {
        let disk = Fake::default();
        let mut store = writer(&disk);
        let put = |n: u8| Batch::new().put(vec![n], vec![n]);
        assert!(store.commit(&[put(1)])[0].is_ok());
        lock(&disk.0).failing = true;
        assert!(matches!(store.commit(&[put(2)])[0], Err(StoreError::System { .. })));
        lock(&disk.0).failing = false;
        assert!(store.commit(&[put(3)])[0].is_ok());
        assert_eq!(writer(&disk).live.keys().collect::<Vec<_>>(), [&[1u8][..], &[3]]);
    }

    #[tokio::test]
    async fn batches_that_come_together_share_a_commit() {
        let folder = tempfile::tempdir().unwrap();
        let Opened { store, records } = LocalStore::open(folder.path(), "state").unwrap();
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
