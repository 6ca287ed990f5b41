//! The numbers by which clients know a server, its sessions and its opens, all made here (MS-SMB2
//! 3.3.1.5, 3.3.1.8, 3.3.1.10).
//!
//! ```text
//!              63           48 47           32 31 30            16 15            0
//!  session id  epoch, 15 to 30 count, 16 to 31  0 epoch, 0 to 14   count, 0 to 15
//!              0               count, 16 to 31  1 run              count, 0 to 15    without a store
//!
//!              63 62      43 42                                                  0
//!  open id      1 epoch      count, which begins at epoch * 2^20
//!               0 0          count, which begins at a random place below 2^48        without a store
//! ```
//!
//! The epoch is that of [`Owner`]: the store gives it to one node for one run and never again, so no
//! two servers that share a store give the same number, at the same time or one after the other. As
//! long as there is no store the numbers are told apart by chance, and lie elsewhere.
//!
//! Session ids of the first 65,536 logons of the first 32,768 runs fit 32 bits, as those of other servers
//! do: smbtorture's session-id takes a longer one for one it made up. NetrFileEnum shows the lower 32
//! bits of open ids, which therefore differ in 4,096 runs in a row (a million opens each).

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use smb_protocol::SessionId;
use state_store::Owner;
use volume::clock::random;

use crate::session::ConnectionId;

/// Set in an open id that a store's epoch tells apart.
const OF_STORE: u64 = 1 << 63;
/// Set in a session id without a store.
const OF_RUN: u64 = 1 << 31;

/// Makes the numbers of one server.
#[derive(Debug)]
pub struct Ids {
    /// Kept in the state folder: what user SIDs are made of, and `ServerGuid` of node 0.
    identity: [u8; 16],
    node: AtomicU64,
    /// The bits of session ids that do not count.
    session_prefix: AtomicU64,
    next_session: AtomicU64,
    next_open: AtomicU64,
    next_connection: AtomicU64,
}

impl Ids {
    /// Those of a server with that state folder, as long as it has no store.
    ///
    /// # Errors
    /// What the system says of the files, or that one is no identity.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let seed = u64::from_le_bytes(random()?);
        let run = run_number(&state_dir.join("session-ids"))?;
        Ok(Self {
            identity: identity(&state_dir.join(IDENTITY))?,
            node: AtomicU64::new(0),
            session_prefix: AtomicU64::new(OF_RUN | u64::from(run) << 16),
            next_session: AtomicU64::new(1),
            // At a random place, so that one from before a restart does not fit by chance.
            next_open: AtomicU64::new((seed >> 16 & 0xffff_ffff_0000) | 1),
            next_connection: AtomicU64::new(1),
        })
    }

    /// Whether a server has been there with that state folder.
    pub fn exist(state_dir: &Path) -> bool {
        state_dir.join(IDENTITY).exists()
    }

    /// From now on numbers are told apart by the store in which the server is that owner.
    pub fn belong_to(&self, owner: Owner) {
        self.node.store(owner.node.into(), Ordering::Relaxed);
        self.session_prefix.store(session_prefix(owner), Ordering::Relaxed);
        self.next_open.store(first_open(owner), Ordering::Relaxed);
    }

    /// `ServerGuid`. Nodes whose state folders were copied from one another have different ones all
    /// the same.
    pub fn server_guid(&self) -> [u8; 16] {
        let node = self.node.load(Ordering::Relaxed).to_be_bytes();
        let mut guid = self.identity;
        guid[8..].iter_mut().zip(node).for_each(|(byte, node)| *byte ^= node);
        guid
    }

    /// What the SIDs of users are made of: the same on all nodes whose state folders are copies.
    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// A name for a new session.
    pub fn session(&self) -> SessionId {
        let count = self.next_session.fetch_add(1, Ordering::Relaxed);
        session_id(self.session_prefix.load(Ordering::Relaxed), count)
    }

    /// A name for a new open, persistent and volatile.
    pub fn open_file(&self) -> u64 {
        self.next_open.fetch_add(1, Ordering::Relaxed)
    }

    /// A name for a new connection, which nobody but this process knows.
    pub fn connection(&self) -> ConnectionId {
        ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }
}

fn session_prefix(owner: Owner) -> u64 {
    (owner.epoch & 0x7fff) << 16 | (owner.epoch >> 15 & 0xffff) << 48
}

fn session_id(prefix: u64, count: u64) -> SessionId {
    SessionId(prefix | (count & 0xffff) | (count >> 16 & 0xffff) << 32)
}

fn first_open(owner: Owner) -> u64 {
    OF_STORE | (owner.epoch & 0xf_ffff) << 43 | (owner.epoch & 0xfff) << 20 | 1
}

/// The file with the server's identity.
const IDENTITY: &str = "server-guid";

/// What tells this run's session ids from those of runs shortly before, 15 bits: a client that comes
/// back and names its session of then would end another's. The file at `path` remembers them; it
/// is not made durable, so after a power cut the number may be the last run's again, by chance.
fn run_number(path: &Path) -> io::Result<u16> {
    /// Runs that are remembered.
    const RUNS: usize = 64;
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut runs: Vec<u16> =
        bytes.chunks_exact(2).map(|run| u16::from_le_bytes([run[0], run[1]])).collect();
    let run = loop {
        let run = u16::from_le_bytes(random()?) & 0x7fff;
        if !runs.contains(&run) {
            break run;
        }
    };
    runs.push(run);
    let kept = &runs[runs.len().saturating_sub(RUNS)..];
    let fresh = path.with_extension("new");
    fs::write(&fresh, kept.iter().flat_map(|run| run.to_le_bytes()).collect::<Vec<_>>())?;
    fs::rename(&fresh, path)?;
    Ok(run)
}

/// Reads the identity of the server, making it the first time.
fn identity(path: &Path) -> io::Result<[u8; 16]> {
    match fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            let text = format!("{}: not 16 bytes; remove it to get a new identity", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let guid = random()?;
            let fresh = path.with_extension("new");
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(&guid)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            Ok(guid)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use state_store::{LocalStore, Opened};

    use super::*;

    /// A damaged or foreign file is no reason not to start.
    #[test]
    fn no_run_has_the_session_ids_of_the_runs_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session-ids");
        let even: Vec<u8> = (0..=u16::MAX).step_by(2).flat_map(u16::to_le_bytes).collect();
        for _ in 0..20 {
            fs::write(&path, &even).unwrap();
            assert!(run_number(&path).unwrap() % 2 == 1);
            assert_eq!(fs::metadata(&path).unwrap().len(), 128);
        }
        // What is in the file is no reason not to start.
        fs::write(&path, [7; 3]).unwrap();
        let mut seen = HashSet::new();
        assert!((0..60).all(|_| seen.insert(run_number(&path).unwrap())));
    }

    /// Two nodes with one store, one of which is started again and again; another had no store before.
    #[tokio::test]
    async fn servers_that_share_a_store_never_give_the_same_number() {
        let folder = tempfile::tempdir().unwrap();
        let Opened { store, .. } = LocalStore::open(folder.path(), "store").unwrap();
        // The second node's state folder was copied from the first's.
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let first = Ids::open(&one).unwrap();
        fs::copy(one.join(IDENTITY), two.join(IDENTITY)).unwrap();
        let before = (first.session(), first.open_file());
        let (mut sessions, mut opens) = (HashSet::from([before.0]), HashSet::from([before.1]));
        first.belong_to(store.owner());
        for start in 0..20 {
            let node = store.join(1).await.unwrap();
            let second = Ids::open(&two).unwrap();
            second.belong_to(node.owner());
            for _ in 0..50 {
                for ids in [&first, &second] {
                    assert!(sessions.insert(ids.session()), "in start {start}");
                    assert!(opens.insert(ids.open_file()), "in start {start}");
                }
            }
            assert_ne!(first.server_guid(), second.server_guid());
            assert_eq!(first.identity(), second.identity());
        }
        assert!(sessions.iter().all(|id| id.0 <= u64::from(u32::MAX)));
        let shown: HashSet<_> = opens.iter().map(|id| *id as u32).collect();
        assert_eq!(shown.len(), opens.len());
    }

    proptest! {
        #[test]
        fn numbers_say_which_epoch_made_them_and_which_it_was(
            epochs in any::<[u32; 2]>(),
            counts in any::<[u32; 2]>(),
        ) {
            let owner = |epoch: u32| Owner { node: 1, epoch: u64::from(epoch >> 1) };
            let session = |at: usize| {
                session_id(session_prefix(owner(epochs[at])), counts[at].into())
            };
            let same = epochs[0] >> 1 == epochs[1] >> 1 && counts[0] == counts[1];
            prop_assert_eq!(session(0) == session(1), same);
            prop_assert_eq!(session(0).0 & OF_RUN, 0);
            let owner = |epoch: u32| Owner { node: 1, epoch: u64::from(epoch & 0xf_ffff) };
            let open = |at: usize| first_open(owner(epochs[at])) + u64::from(counts[at]);
            if epochs[0] & 0xf_ffff != epochs[1] & 0xf_ffff {
                prop_assert_ne!(open(0), open(1));
            }
            prop_assert!(open(0) >= OF_STORE);
        }
    }
}
