//! What every engine promises, held for each of them: the embedded one and the one over a real etcd, by
//! the same histories against the same model.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use state_store::{
    Batch, Entry, Expect, LocalStore, MAX_VALUE, Opened, Owner, Revision, Store, StoreError, Watch,
    etcd::{Client, EtcdStore, Settings},
};
use tempfile::TempDir;
use test_support::etcd::Etcd;

/// A step that hangs is a failure.
const LIMIT: Duration = Duration::from_secs(30);

/// Where a store is.
enum Bed {
    Local(TempDir),
    Etcd(Arc<Client>, String),
}

impl Bed {
    fn local() -> Self {
        Self::Local(tempfile::tempdir().unwrap())
    }

    fn etcd(etcd: &Etcd, name: &str) -> Self {
        Self::Etcd(client(etcd), name.to_owned())
    }

    async fn open(&self) -> Opened {
        match self {
            Self::Local(folder) => LocalStore::open(folder.path(), "s").unwrap(),
            Self::Etcd(client, name) => {
                EtcdStore::open(client.clone(), name, (0, false), None, LIMIT).await.unwrap()
            }
        }
    }
}

fn settings(etcd: &Etcd) -> Settings {
    let attempt = Duration::from_millis(500);
    Settings { endpoints: etcd.endpoints(), tls: None, login: None, attempt }
}

fn client(etcd: &Etcd) -> Arc<Client> {
    Client::new(&settings(etcd)).unwrap()
}

/// Numbers that a seed makes.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most
    }
}

/// Keys are of two prefixes.
fn key(n: usize) -> Vec<u8> {
    vec![b'a' + (n % 2) as u8, n as u8]
}

type Changes = BTreeMap<Vec<u8>, Option<Entry>>;

#[derive(Default)]
struct Model {
    entries: BTreeMap<Vec<u8>, Entry>,
    epochs: BTreeMap<u16, u64>,
    /// Commits with what each changed.
    events: Vec<(Revision, Changes)>,
}

impl Model {
    fn last(&self) -> Revision {
        self.events.last().map_or(Revision(0), |(revision, _)| *revision)
    }

    fn fence(&mut self, node: u16) -> Owner {
        let epoch = self.epochs.values().max().unwrap_or(&0) + 1;
        self.epochs.insert(node, epoch);
        Owner { node, epoch }
    }

    /// What a batch must come to; `None` if it must be carried out.
    fn refusal(&self, owner: Owner, condition: Option<&(Vec<u8>, Expect)>) -> Option<StoreError> {
        let now = self.epochs.get(&owner.node).copied().unwrap_or(0);
        if now != owner.epoch {
            return Some(StoreError::Fenced { owner, now });
        }
        let (key, expect) = condition?;
        let entry = self.entries.get(key);
        let holds = match expect {
            Expect::Absent => entry.is_none(),
            Expect::At(at) => entry.is_some_and(|entry| entry.revision == *at),
            Expect::Of(owner) => entry.is_some_and(|entry| entry.owner == *owner),
        };
        let found = entry.map(|entry| entry.revision);
        (!holds).then(|| StoreError::Conflict { key: key.clone(), found })
    }

    fn carry_out(&mut self, owner: Owner, changes: &[(Vec<u8>, Option<u8>)], at: Revision) {
        let mut told = Changes::new();
        for (key, value) in changes {
            let before = self.entries.remove(key);
            let entry = value.map(|value| Entry { value: vec![value], owner, revision: at });
            if let Some(entry) = &entry {
                self.entries.insert(key.clone(), entry.clone());
            }
            // A key that goes away though it was not there, or not before this commit, may be told
            // or not.
            let new = before.is_none() || told.get(key).is_some_and(Option::is_some);
            if entry.is_none() && new {
                told.remove(key);
            } else {
                told.insert(key.clone(), entry);
            }
        }
        if !told.is_empty() {
            self.events.push((at, told));
        }
    }

    fn seen(&self, prefix: &[u8], after: Revision) -> Vec<(Revision, Changes)> {
        let later = self.events.iter().filter(|(revision, _)| *revision > after);
        let mine = later.map(|(revision, changes)| {
            let mine = changes.iter().filter(|(key, _)| key.starts_with(prefix));
            (*revision, mine.map(|(key, entry)| (key.clone(), entry.clone())).collect())
        });
        mine.filter(|(_, changes): &(_, Changes)| !changes.is_empty()).collect()
    }
}

struct World {
    bed: Bed,
    model: Model,
    handles: Vec<Arc<dyn Store>>,
    watches: Vec<(&'static [u8], Revision, Watch)>,
}

fn same(found: &Result<Revision, StoreError>, wanted: &Option<StoreError>) {
    let text = |error: &StoreError| format!("{error:?}");
    match (found, wanted) {
        (Ok(_), None) => {}
        // Whoever was replaced need not be told by whom at last.
        (
            Err(StoreError::Fenced { owner, now }),
            Some(StoreError::Fenced { owner: wanted, .. }),
        ) => assert!(owner == wanted && (*now > owner.epoch || *now == 0)),
        (Err(found), Some(wanted)) => assert_eq!(text(found), text(wanted)),
        (found, wanted) => panic!("{found:?}, not {wanted:?}"),
    }
}

impl World {
    async fn new(bed: Bed) -> Self {
        let mut world = Self { bed, model: Model::default(), handles: vec![], watches: vec![] };
        world.open().await;
        world
    }

    async fn open(&mut self) {
        self.watches.clear();
        self.handles.clear();
        let Opened { store, records, revision } = self.bed.open().await;
        assert_eq!(store.owner(), self.model.fence(0));
        let values = self.model.entries.iter().map(|(key, entry)| (key, &entry.value));
        assert!(records.iter().eq(values), "{records:?}");
        assert!(revision >= self.model.last());
        self.handles = vec![store];
    }

    async fn commit(&mut self, random: &mut Random) {
        let store = self.handles[random.below(self.handles.len())].clone();
        let condition = (random.below(2) == 0).then(|| {
            let key = key(random.below(6));
            let at = self.model.entries.get(&key).map_or(0, |entry| entry.revision.0);
            let expect = match random.below(4) {
                0 => Expect::Absent,
                1 => Expect::At(Revision(at.saturating_sub(random.below(2) as u64))),
                2 => Expect::At(Revision(at)),
                _ => Expect::Of(store.owner()),
            };
            (key, expect)
        });
        let change = |random: &mut Random| {
            let value = (random.below(3) > 0).then(|| random.below(256) as u8);
            (key(random.below(6)), value)
        };
        let count = 1 + random.below(4);
        let changes: Vec<_> = (0..count).map(|_| change(random)).collect();
        let mut batch = Batch::new();
        if let Some((key, expect)) = &condition {
            batch = batch.when(key.clone(), *expect);
        }
        for (key, value) in &changes {
            batch = match value {
                Some(value) => batch.put(key.clone(), vec![*value]),
                None => batch.delete(key.clone()),
            };
        }
        let wanted = self.model.refusal(store.owner(), condition.as_ref());
        let done = store.commit(batch).await;
        same(&done, &wanted);
        if let Ok(revision) = done {
            assert!(revision > self.model.last());
            self.model.carry_out(store.owner(), &changes, revision);
        }
    }

    /// Many batches of one owner, of which nobody is waited for before the last is given.
    async fn burst(&mut self, random: &mut Random) {
        let store = self.handles.last().unwrap().clone();
        let mut commits = Vec::new();
        for _ in 0..2 + random.below(6) {
            let (key, value) = (key(random.below(6)), random.below(256) as u8);
            let conditional = random.below(2) == 0;
            let mut batch = Batch::new().put(key.clone(), vec![value]);
            if conditional {
                batch = batch.when(key.clone(), Expect::Absent);
            }
            commits.push((store.commit(batch), key, value, conditional));
        }
        for (commit, key, value, conditional) in commits {
            let condition = conditional.then(|| (key.clone(), Expect::Absent));
            let wanted = self.model.refusal(store.owner(), condition.as_ref());
            let done = commit.await;
            same(&done, &wanted);
            if let Ok(revision) = done {
                let before = self.model.last();
                if revision == before {
                    // It went as one with the batch before it.
                    let (_, told) = self.model.events.pop().unwrap();
                    let entry = Entry { value: vec![value], owner: store.owner(), revision };
                    self.model.entries.insert(key.clone(), entry.clone());
                    let told = told.into_iter().chain([(key, Some(entry))]).collect();
                    self.model.events.push((revision, told));
                } else {
                    assert!(revision > before);
                    self.model.carry_out(store.owner(), &[(key, Some(value))], revision);
                }
            }
        }
    }

    async fn step(&mut self, random: &mut Random) {
        match random.below(16) {
            0 => {
                let node = random.below(3) as u16;
                let owner = self.handles[0].fence(node).await.unwrap();
                assert_eq!(owner, self.model.fence(node));
            }
            1 | 2 => {
                let node = random.below(3) as u16;
                let store = self.handles[0].join(node).await.unwrap();
                assert_eq!(store.owner(), self.model.fence(node));
                self.handles.push(store);
            }
            3 => {
                let prefix: &'static [u8] = [&b""[..], b"a", b"b"][random.below(3)];
                let after = self.model.last();
                let watch = self.handles[0].watch(prefix, after).await.unwrap();
                self.watches.push((prefix, after, watch));
            }
            4 => self.open().await,
            5 | 6 => self.burst(random).await,
            _ => self.commit(random).await,
        }
        self.check().await;
    }

    async fn check(&mut self) {
        for (prefix, after, watch) in &mut self.watches {
            for (revision, wanted) in self.model.seen(prefix, *after) {
                let mut event = watch.next().await.unwrap();
                // One that only takes away what was not there.
                while event.revision < revision {
                    let left: Changes = event.changes.into_iter().collect();
                    assert!(left.values().all(Option::is_none));
                    event = watch.next().await.unwrap();
                }
                let mut told = Changes::new();
                for (key, entry) in event.changes {
                    told.insert(key, entry);
                }
                told.retain(|key, entry| entry.is_some() || wanted.contains_key(key));
                assert_eq!((event.revision, told), (revision, wanted));
                *after = revision;
            }
        }
        let store = self.handles.last().unwrap();
        for prefix in [&b""[..], b"a", b"b", b"c"] {
            let listing = store.list(prefix).await.unwrap();
            assert!(listing.revision >= self.model.last());
            let all = self.model.entries.iter().filter(|(key, _)| key.starts_with(prefix));
            let all: Vec<_> = all.map(|(key, entry)| (key.clone(), entry.clone())).collect();
            assert_eq!(listing.entries, all);
        }
        let one = key(3);
        assert_eq!(store.read(&one).await.unwrap().as_ref(), self.model.entries.get(&one));
    }
}

async fn histories(bed: impl Fn(usize) -> Bed, count: usize) {
    for seed in 0..count {
        let mut world = World::new(bed(seed)).await;
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1));
        for step in 0..40 {
            let stepped = tokio::time::timeout(LIMIT, world.step(&mut random)).await;
            assert!(stepped.is_ok(), "seed {seed} hangs in step {step}");
        }
    }
}

/// What stands in no history: limits, and conditions of batches that change nothing.
async fn limits(bed: Bed) {
    let store = bed.open().await.store;
    let long = store.commit(Batch::new().put(vec![0; 256], vec![])).await;
    assert!(matches!(long, Err(StoreError::TooLong(256))), "{long:?}");
    let long = store.commit(Batch::new().put(vec![1], vec![0; MAX_VALUE + 1])).await;
    assert!(matches!(long, Err(StoreError::TooLong(_))), "{long:?}");
    store.commit(Batch::new().put(vec![1], vec![7; MAX_VALUE])).await.unwrap();
    assert_eq!(store.read(&[1]).await.unwrap().unwrap().value.len(), MAX_VALUE);
    let only = Batch::new().when(vec![2], Expect::Absent);
    store.commit(only.clone()).await.unwrap();
    store.commit(Batch::new().put(vec![2], vec![])).await.unwrap();
    assert!(matches!(store.commit(only).await, Err(StoreError::Conflict { .. })));
    // As many changes as a lock file of a busy disk has, all in one.
    let many = (0..100u8).fold(Batch::new(), |batch, n| batch.put(vec![3, n], vec![n]));
    store.commit(many).await.unwrap();
    assert_eq!(store.list(&[3]).await.unwrap().entries.len(), 100);
    // A store is a map of bytes.
    for key in [&[0u8][..], &[0xff], &[0xff, 0xff], &[0, 0xff]] {
        store.commit(Batch::new().put(key.to_vec(), key.to_vec())).await.unwrap();
    }
    assert_eq!(store.list(&[0xff]).await.unwrap().entries.len(), 2);
    assert!(store.commits() > 0);
}

#[tokio::test]
async fn the_embedded_engine_is_as_the_model_says() {
    histories(|_| Bed::local(), 40).await;
    limits(Bed::local()).await;
}

#[tokio::test]
async fn the_engine_over_etcd_is_as_the_model_says() {
    let Some(etcd) = Etcd::start(1) else { return };
    histories(|seed| Bed::etcd(&etcd, &format!("h{seed}")), 12).await;
    limits(Bed::etcd(&etcd, "limits")).await;
}
