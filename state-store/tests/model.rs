//! The embedded engine against a model of what every engine promises: conditions, owners, epochs,
//! listings and watches, over the ends of the process.

use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;
use state_store::{
    Batch, Entry, Event, Expect, LocalStore, Opened, Owner, Revision, Store, StoreError, Watch,
};

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    /// A batch by one of the handles: condition on a key, and changes of keys.
    Commit(usize, Option<(u8, Wish)>, Vec<(u8, Option<u8>)>),
    /// Several at once, of which nobody is waited for before the last is given.
    Burst(Vec<(usize, u8, u8)>),
    Fence(u16),
    Join(u16),
    Watch(u8, u8),
    /// The process ends and begins again.
    Reopen,
}

/// What is expected of a key, in the words of the model.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Absent,
    /// As it is, or as it was so many commits ago.
    Last(u8),
    Mine,
}

/// Keys are of two prefixes.
fn key(n: u8) -> Vec<u8> {
    vec![b'a' + n % 2, n]
}

#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<Vec<u8>, Entry>,
    epochs: BTreeMap<u16, u64>,
    revision: u64,
    events: Vec<Event>,
}

/// What the model says a batch comes to.
#[derive(Debug, PartialEq)]
enum Comes {
    Done(Revision),
    Conflict(Vec<u8>, Option<Revision>),
    Fenced(u64),
}

fn comes(result: Result<Revision, StoreError>) -> Comes {
    match result {
        Ok(revision) => Comes::Done(revision),
        Err(StoreError::Conflict { key, found }) => Comes::Conflict(key, found),
        Err(StoreError::Fenced { now, .. }) => Comes::Fenced(now),
        Err(error) => panic!("{error}"),
    }
}

impl Model {
    fn fence(&mut self, node: u16) -> Owner {
        let epoch = self.epochs.values().max().unwrap_or(&0) + 1;
        self.epochs.insert(node, epoch);
        Owner { node, epoch }
    }

    fn expect(&self, owner: Owner, key: &[u8], wish: Wish) -> Expect {
        match wish {
            Wish::Absent => Expect::Absent,
            Wish::Last(ago) => {
                let at = self.entries.get(key).map_or(0, |entry| entry.revision.0);
                Expect::At(Revision(at.saturating_sub(u64::from(ago))))
            }
            Wish::Mine => Expect::Of(owner),
        }
    }

    fn commit(
        &mut self,
        owner: Owner,
        condition: Option<&(Vec<u8>, Expect)>,
        changes: &[(Vec<u8>, Option<Vec<u8>>)],
    ) -> Comes {
        let now = self.epochs.get(&owner.node).copied().unwrap_or(0);
        if now != owner.epoch {
            return Comes::Fenced(now);
        }
        if let Some((key, expect)) = condition {
            let entry = self.entries.get(key);
            let holds = match expect {
                Expect::Absent => entry.is_none(),
                Expect::At(at) => entry.is_some_and(|entry| entry.revision == *at),
                Expect::Of(owner) => entry.is_some_and(|entry| entry.owner == *owner),
            };
            if !holds {
                return Comes::Conflict(key.clone(), entry.map(|entry| entry.revision));
            }
        }
        if changes.is_empty() {
            return Comes::Done(Revision(self.revision));
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        let mut told = Vec::new();
        for (key, value) in changes {
            let entry = value.clone().map(|value| Entry { value, owner, revision });
            match &entry {
                Some(entry) => drop(self.entries.insert(key.clone(), entry.clone())),
                None => drop(self.entries.remove(key)),
            }
            told.push((key.clone(), entry));
        }
        self.events.push(Event { revision, changes: told });
        Comes::Done(revision)
    }

    /// What a watch of `prefix` that began after `after` has seen by now.
    fn seen(&self, prefix: &[u8], after: Revision) -> Vec<Event> {
        let later = self.events.iter().filter(|event| event.revision > after);
        let mine = |event: &Event| {
            let changes = event.changes.iter().filter(|(key, _)| key.starts_with(prefix));
            Event { revision: event.revision, changes: changes.cloned().collect() }
        };
        later.map(mine).filter(|event| !event.changes.is_empty()).collect()
    }
}

/// All that a watch has to tell now.
fn drain(watch: &mut Watch) -> Result<Vec<Event>, StoreError> {
    let mut all = Vec::new();
    loop {
        let next = std::pin::pin!(watch.next());
        match next.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => all.push(event?),
            Poll::Pending => return Ok(all),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let wish = prop_oneof![Just(Wish::Absent), (0u8..3).prop_map(Wish::Last), Just(Wish::Mine),];
    let change = (0u8..6, prop::option::of(any::<u8>()));
    prop_oneof![
        8 => (
            any::<usize>(),
            prop::option::of((0u8..6, wish)),
            prop::collection::vec(change, 0..4),
        )
            .prop_map(|(by, when, changes)| Step::Commit(by, when, changes)),
        2 => prop::collection::vec((any::<usize>(), 0u8..6, any::<u8>()), 1..8)
            .prop_map(Step::Burst),
        1 => (0u16..3).prop_map(Step::Fence),
        2 => (0u16..3).prop_map(Step::Join),
        2 => (0u8..3, 0u8..4).prop_map(|(prefix, ago)| Step::Watch(prefix, ago)),
        1 => Just(Step::Reopen),
    ]
}

/// A store with the model of it.
struct World<'a> {
    folder: &'a Path,
    model: Model,
    handles: Vec<Arc<dyn Store>>,
    /// Watches: prefix, where each began, and what it has told.
    watches: Vec<(Vec<u8>, Revision, Watch, Vec<Event>)>,
    begins: Revision,
}

impl World<'_> {
    fn open(&mut self) {
        for (.., watch, _) in &mut self.watches {
            // What was told before the end is told to the end.
            drain(watch).unwrap();
        }
        self.handles.clear();
        let Opened { store, records, revision } = LocalStore::open(self.folder, "s").unwrap();
        assert_eq!(store.owner(), self.model.fence(0));
        let values = self.model.entries.iter().map(|(key, entry)| (key, &entry.value));
        assert!(records.iter().eq(values), "{records:?}");
        assert_eq!(revision, Revision(self.model.revision));
        self.begins = revision;
        self.handles = vec![store];
        for (.., watch, _) in &mut self.watches {
            assert!(matches!(drain(watch), Err(StoreError::Closed)));
        }
        self.watches.clear();
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Commit(by, when, changes) => {
                let store = &self.handles[by % self.handles.len()];
                let when =
                    when.map(|(n, wish)| (key(n), self.model.expect(store.owner(), &key(n), wish)));
                let changes: Vec<_> = changes
                    .into_iter()
                    .map(|(n, value)| (key(n), value.map(|v| vec![v])))
                    .collect();
                let mut batch = Batch::new();
                if let Some((key, expect)) = &when {
                    batch = batch.when(key.clone(), *expect);
                }
                for (key, value) in &changes {
                    batch = match value {
                        Some(value) => batch.put(key.clone(), value.clone()),
                        None => batch.delete(key.clone()),
                    };
                }
                let empty = batch.is_empty();
                let done = comes(store.commit(batch).await);
                let wanted = self.model.commit(store.owner(), when.as_ref(), &changes);
                // An empty batch is nobody's.
                assert!(done == wanted || empty, "{done:?}, not {wanted:?}");
            }
            Step::Burst(all) => {
                // Each sets a key only if the one before it in the burst has set it not.
                let mut wanted = Vec::new();
                let mut commits = Vec::new();
                for (by, n, value) in all {
                    let store = &self.handles[by % self.handles.len()];
                    let (key, value) = (key(n), vec![value]);
                    let batch = Batch::new().when(key.clone(), Expect::Absent);
                    commits.push(store.commit(batch.put(key.clone(), value.clone())));
                    let condition = (key.clone(), Expect::Absent);
                    let changes = [(key, Some(value))];
                    wanted.push(self.model.commit(store.owner(), Some(&condition), &changes));
                }
                for (commit, wanted) in commits.into_iter().zip(wanted) {
                    assert_eq!(comes(commit.await), wanted);
                }
            }
            Step::Fence(node) => {
                let owner = self.handles[0].fence(node).await.unwrap();
                assert_eq!(owner, self.model.fence(node));
            }
            Step::Join(node) => {
                let store = self.handles[0].join(node).await.unwrap();
                assert_eq!(store.owner(), self.model.fence(node));
                self.handles.push(store);
            }
            Step::Watch(prefix, ago) => {
                let prefix: &[u8] = [&b""[..], b"a", b"b"][usize::from(prefix)];
                let after = Revision(self.model.revision.saturating_sub(u64::from(ago)));
                match self.handles[0].watch(prefix, after).await {
                    Ok(watch) if after >= self.begins => {
                        self.watches.push((prefix.to_vec(), after, watch, Vec::new()));
                    }
                    Err(StoreError::Compacted(now)) if after < self.begins => {
                        assert_eq!(now, self.begins);
                    }
                    other => panic!("{other:?} after {after:?}"),
                }
            }
            Step::Reopen => self.open(),
        }
        self.check().await;
    }

    async fn check(&mut self) {
        for (prefix, after, watch, told) in &mut self.watches {
            told.extend(drain(watch).unwrap());
            assert_eq!(*told, self.model.seen(prefix, *after));
        }
        let store = self.handles.last().unwrap();
        for prefix in [&b""[..], b"a", b"b", b"c"] {
            let listing = store.list(prefix).await.unwrap();
            assert_eq!(listing.revision, Revision(self.model.revision));
            let all = self.model.entries.iter().filter(|(key, _)| key.starts_with(prefix));
            let all: Vec<_> = all.map(|(key, entry)| (key.clone(), entry.clone())).collect();
            assert_eq!(listing.entries, all);
        }
        for n in 0..6 {
            let entry = store.read(&key(n)).await.unwrap();
            assert_eq!(entry.as_ref(), self.model.entries.get(&key(n)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_engine_is_as_the_model_says(steps in prop::collection::vec(step(), 1..50)) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut world = World {
            folder: folder.path(),
            model: Model::default(),
            handles: Vec::new(),
            watches: Vec::new(),
            begins: Revision(0),
        };
        world.open();
        runtime.block_on(async {
            for step in steps {
                world.take(step).await;
            }
        });
    }
}

#[tokio::test]
async fn a_watch_that_falls_behind_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let Opened { store, .. } = LocalStore::open(folder.path(), "s").unwrap();
    let mut watch = store.watch(b"", Revision(0)).await.unwrap();
    let value = vec![7; 1 << 20];
    for _ in 0..5 {
        store.commit(Batch::new().put(b"k".to_vec(), value.clone())).await.unwrap();
    }
    let Err(StoreError::Compacted(now)) = watch.next().await else { panic!("it is 5 MiB behind") };
    assert!(now >= Revision(1));
    let mut watch = store.watch(b"", now).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, Revision(now.0 + 1));
}

#[tokio::test]
async fn a_watch_that_waits_is_woken() {
    let folder = tempfile::tempdir().unwrap();
    let Opened { store, .. } = LocalStore::open(folder.path(), "s").unwrap();
    let mut watch = store.watch(b"k", Revision(0)).await.unwrap();
    let waits = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    store.commit(Batch::new().put(b"other".to_vec(), vec![])).await.unwrap();
    store.commit(Batch::new().put(b"k".to_vec(), vec![1])).await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap().revision, Revision(2));
}

/// A server of the version before has left its records; they are there after the first start of this
/// one, and after the next.
#[tokio::test]
async fn a_store_of_the_version_before_is_converted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    // Its file without the zeros at its end.
    let mut file = include_bytes!("version-1.bin").to_vec();
    file.resize(256 << 10, 0);
    std::fs::write(&path, file).unwrap();
    for start in 0..2u64 {
        let Opened { store, records, revision } = LocalStore::open(folder.path(), "s").unwrap();
        assert_eq!(records.len() as u64, 2 + start);
        assert_eq!(records[&b"kept"[..]], b"value");
        assert_eq!((revision, store.owner().epoch), (Revision(start), start + 1));
        let old = store.read(b"kept").await.unwrap().unwrap();
        assert_eq!((old.owner, old.revision), (Owner::default(), Revision(0)));
        store.commit(Batch::new().put(vec![start as u8 + 1], vec![])).await.unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap()[8], 2);
}
