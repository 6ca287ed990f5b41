//! The one writer of a store's file: what becomes of batches, in their order.
//!
//! ```text
//!  job ─► epoch right? conditions hold? ─► no: refused, and changes nothing
//!            └─ yes: the next revision ─► one frame for all of a group ─► durable ─► State
//! ```

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, RwLock},
};

use crate::{
    Batch, Entry, Expect, Owner, Revision, StoreError,
    engine::{State, read, write},
    log::{self, Content, Cursor},
    medium::Medium,
    watch::{Event, History},
};

/// Shortest file.
const LEAST: u64 = 256 << 10;
/// The part of a file that is kept for records that go away.
const RESERVE: u64 = 8;

/// What the writer is given.
#[derive(Debug)]
pub(crate) enum Job {
    /// A batch of that owner.
    Commit(Owner, Batch),
    /// A new epoch of that node.
    Fence(u16),
}

/// What becomes of a job: the commit, and whose it is.
pub(crate) type Done = Result<(Owner, Revision), StoreError>;

/// The file and what it holds.
pub(crate) struct Writer {
    medium: Box<dyn Medium>,
    path: PathBuf,
    cursor: Cursor,
    /// What is durable. Nobody else changes it.
    pub(crate) state: Arc<RwLock<State>>,
    /// What the file holds is not known.
    broken: bool,
    /// How often it was made durable.
    pub(crate) syncs: u64,
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

/// What a group of jobs has done so far, over what is durable.
struct Plan<'a> {
    base: &'a Content,
    /// Who set a key, in which commit; `None` if it was taken away.
    keys: HashMap<&'a [u8], Option<(Owner, Revision)>>,
    epochs: HashMap<u16, u64>,
    revision: Revision,
}

impl<'a> Plan<'a> {
    fn new(base: &'a Content) -> Self {
        let revision = base.revision;
        Self { base, keys: HashMap::new(), epochs: HashMap::new(), revision }
    }

    fn epoch(&self, node: u16) -> u64 {
        let planned = self.epochs.get(&node).or_else(|| self.base.epochs.get(&node));
        planned.copied().unwrap_or(0)
    }

    fn stamp(&self, key: &[u8]) -> Option<(Owner, Revision)> {
        match self.keys.get(key) {
            Some(planned) => *planned,
            None => self.base.entries.get(key).map(|entry| (entry.owner, entry.revision)),
        }
    }

    fn take(&mut self, job: &'a Job) -> Done {
        let (owner, batch) = match job {
            Job::Fence(node) => {
                let last = self.epochs.values().copied().max().unwrap_or(0);
                let epoch = last.max(self.base.last_epoch()) + 1;
                self.epochs.insert(*node, epoch);
                return Ok((Owner { node: *node, epoch }, self.revision));
            }
            Job::Commit(owner, batch) => (*owner, batch),
        };
        let now = self.epoch(owner.node);
        if now != owner.epoch {
            return Err(StoreError::Fenced { owner, now });
        }
        for (key, expect) in batch.conditions() {
            let found = self.stamp(key);
            let holds = match expect {
                Expect::Absent => found.is_none(),
                Expect::At(revision) => found.is_some_and(|(_, at)| at == *revision),
                Expect::Of(owner) => found.is_some_and(|(by, _)| by == *owner),
            };
            if !holds {
                let found = found.map(|(_, revision)| revision);
                return Err(StoreError::Conflict { key: key.clone(), found });
            }
        }
        if batch.changes().is_empty() {
            // It only asked, as of what is there now.
            return Ok((owner, self.revision));
        }
        self.revision.0 += 1;
        for (key, value) in batch.changes() {
            self.keys.insert(key, value.as_ref().map(|_| (owner, self.revision)));
        }
        Ok((owner, self.revision))
    }
}

/// Puts what was decided into a payload.
fn encode(jobs: &[Job], done: &[Done], out: &mut Vec<u8>) {
    for (job, done) in jobs.iter().zip(done) {
        match (job, done) {
            (Job::Fence(_), Ok((owner, _))) => log::encode_epoch(*owner, out),
            (Job::Commit(_, batch), Ok((owner, revision))) if !batch.changes().is_empty() => {
                log::encode(batch, *owner, *revision, out);
            }
            _ => {}
        }
    }
}

/// Makes what was decided so; what there is to tell of it.
fn apply(jobs: &[Job], done: &[Done], content: &mut Content) -> Vec<Event> {
    let mut events = Vec::new();
    for (job, done) in jobs.iter().zip(done) {
        match (job, done) {
            (Job::Fence(_), Ok((owner, _))) => {
                content.epochs.insert(owner.node, owner.epoch);
            }
            (Job::Commit(_, batch), Ok((owner, revision))) if !batch.changes().is_empty() => {
                content.apply(batch, *owner, *revision);
                let (owner, revision) = (*owner, *revision);
                let entry = |value: &Vec<u8>| Entry { value: value.clone(), owner, revision };
                let changes = batch.changes().iter();
                let changes = changes.map(|(key, value)| (key.clone(), value.as_ref().map(entry)));
                events.push(Event { revision, changes: changes.collect() });
            }
            _ => {}
        }
    }
    events
}

impl Writer {
    pub(crate) fn open(mut medium: Box<dyn Medium>, path: PathBuf) -> Result<Self, StoreError> {
        let at = path.clone();
        let system = |what| {
            let path = at.clone();
            move |e: io::Error| StoreError::System { path, what, source: Arc::new(e) }
        };
        let found = medium.read().map_err(system("reading"))?;
        let with = |medium, cursor, content: Content| {
            let history = History::new(content.revision);
            let state = Arc::new(RwLock::new(State { content, history }));
            Self { medium, path, cursor, state, broken: false, syncs: 0 }
        };
        let Some(file) = found else {
            let content = Content::default();
            let (bytes, cursor) = Cursor::begin(&content, salt(), LEAST);
            medium.replace(&bytes, cursor.capacity()).map_err(system("making the file"))?;
            return Ok(with(medium, cursor, content));
        };
        let log::Read { content, old, cursor, torn_to } =
            log::read(&file).map_err(|damage| StoreError::Damaged { path: at.clone(), damage })?;
        if torn_to > cursor.end {
            let zeros = vec![0; (torn_to - cursor.end) as usize];
            tracing::info!(bytes = zeros.len(), "the state store's last write was cut off");
            medium.write(cursor.end, &zeros).map_err(system("clearing a torn write"))?;
            medium.sync().map_err(system("clearing a torn write"))?;
        }
        if old {
            let (bytes, cursor) = Cursor::begin(&content, salt(), LEAST);
            medium.replace(&bytes, cursor.capacity()).map_err(system("converting the file"))?;
            tracing::info!(path = %at.display(), "the state store has a newer format now");
            return Ok(with(medium, cursor, content));
        }
        Ok(with(medium, cursor, content))
    }

    /// Carries jobs out and makes them durable, as many as can be; what became of each.
    pub(crate) fn commit(&mut self, jobs: &[Job]) -> Vec<Done> {
        let (done, payload) = self.decide(jobs);
        if payload.is_empty() {
            return done;
        }
        let room = self.cursor.room().saturating_sub(self.cursor.capacity() / RESERVE);
        let fits = log::framed(payload.len()) <= room;
        if fits && !self.broken && self.append(&payload, jobs, &done) {
            return done;
        }
        match self.replace(jobs, &done) {
            Ok(()) => done,
            Err(error) => self.squeeze(jobs, &error),
        }
    }

    fn decide(&self, jobs: &[Job]) -> (Vec<Done>, Vec<u8>) {
        let state = read(&self.state);
        let mut plan = Plan::new(&state.content);
        let done: Vec<Done> = jobs.iter().map(|job| plan.take(job)).collect();
        let mut payload = Vec::new();
        encode(jobs, &done, &mut payload);
        (done, payload)
    }

    /// What is durable now is there for readers, and told to those who watch.
    fn publish(&self, content: impl FnOnce(&mut Content) -> Vec<Event>) {
        let mut state = write(&self.state);
        let events = content(&mut state.content);
        events.into_iter().for_each(|event| state.history.push(event));
    }

    /// Adds a frame; `false` if that failed.
    fn append(&mut self, payload: &[u8], jobs: &[Job], done: &[Done]) -> bool {
        let mut cursor = self.cursor;
        let frame = cursor.frame(payload);
        let written = self.medium.write(self.cursor.end, &frame).and_then(|()| self.medium.sync());
        self.syncs += 1;
        match written {
            Ok(()) => {
                self.cursor = cursor;
                self.publish(|content| apply(jobs, done, content));
                true
            }
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "state store not written");
                self.broken = true;
                false
            }
        }
    }

    /// Puts a new file in the place of the old one, with the effect of `jobs`.
    fn replace(&mut self, jobs: &[Job], done: &[Done]) -> Result<(), StoreError> {
        let mut next = read(&self.state).content.clone();
        let events = apply(jobs, done, &mut next);
        let (bytes, cursor) = Cursor::begin(&next, salt(), LEAST);
        if cursor.capacity() > log::MOST {
            return Err(StoreError::Full);
        }
        self.syncs += 1;
        match self.medium.replace(&bytes, cursor.capacity()) {
            Ok(()) => {
                (self.cursor, self.broken) = (cursor, false);
                self.publish(|content| {
                    *content = next;
                    events
                });
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

    /// The file cannot be replaced: what only takes records away, and the epochs of nodes, go into
    /// the rest of it.
    fn squeeze(&mut self, jobs: &[Job], error: &StoreError) -> Vec<Done> {
        let one = |job: &Job| {
            let job = std::slice::from_ref(job);
            let (mut done, payload) = self.decide(job);
            let small = match &job[0] {
                Job::Commit(_, batch) => batch.only_deletes(),
                Job::Fence(_) => true,
            };
            let decided = done.pop().unwrap_or(Err(StoreError::Closed))?;
            if payload.is_empty() {
                return Ok(decided);
            }
            let fits = log::framed(payload.len()) <= self.cursor.room();
            match small && !self.broken && fits && self.append(&payload, job, &[Ok(decided)]) {
                true => Ok(decided),
                false => Err(error.clone()),
            }
        };
        jobs.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::{Records, engine::lock};

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

    impl Writer {
        /// Batches of node 0, which has no epoch.
        fn put(&mut self, batches: &[Batch]) -> Vec<Result<Revision, StoreError>> {
            let job = |batch: &Batch| Job::Commit(Owner::default(), batch.clone());
            let jobs: Vec<_> = batches.iter().map(job).collect();
            self.commit(&jobs).into_iter().map(|done| done.map(|(_, revision)| revision)).collect()
        }

        fn live(&self) -> Records {
            let all = read(&self.state).content.entries.clone();
            all.into_iter().map(|(key, entry)| (key, entry.value)).collect()
        }
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
                let result = store.put(std::slice::from_ref(&batch));
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
            let found = states.iter().rposition(|state| *state == store.live());
            prop_assert!(found.is_some_and(|found| found >= answered) || states[answered] == store.live());
            // It goes on as if nothing had been.
            let batch = Batch::new().put(b"after".to_vec(), b"x".to_vec());
            prop_assert!(store.put(std::slice::from_ref(&batch))[0].is_ok());
            let live = store.live();
            drop(store);
            prop_assert_eq!(writer(&disk).live(), live);
        }
    }

    #[test]
    fn a_full_disk_refuses_new_records_keeps_old_ones_and_lets_them_go() {
        let disk = Fake::default();
        let mut store = writer(&disk);
        lock(&disk.0).full = true;
        let put = |n: u32| Batch::new().put(n.to_be_bytes().to_vec(), vec![7; 4000]);
        let mut n = 0;
        while store.put(&[put(n)])[0].is_ok() {
            n += 1;
        }
        assert!(n > 40, "{n} records fit before");
        // In one group only those that take records away are carried out.
        let results = store.put(&[put(1000), Batch::new().delete(0u32.to_be_bytes().to_vec())]);
        assert!(matches!(results[..], [Err(StoreError::Full), Ok(_)]), "{results:?}");
        assert_eq!(store.live().len() as u32, n - 1);
        drop(store);
        let mut store = writer(&disk);
        assert_eq!(store.live().len() as u32, n - 1);
        lock(&disk.0).full = false;
        assert!(store.put(&[put(1000)])[0].is_ok());
    }

    #[test]
    fn after_a_failed_write_the_file_is_not_trusted() {
        let disk = Fake::default();
        let mut store = writer(&disk);
        let put = |n: u8| Batch::new().put(vec![n], vec![n]);
        assert!(store.put(&[put(1)])[0].is_ok());
        lock(&disk.0).failing = true;
        assert!(matches!(store.put(&[put(2)])[0], Err(StoreError::System { .. })));
        lock(&disk.0).failing = false;
        assert!(store.put(&[put(3)])[0].is_ok());
        assert_eq!(writer(&disk).live().keys().collect::<Vec<_>>(), [&[1u8][..], &[3]]);
    }
}
