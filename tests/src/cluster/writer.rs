//! A client that writes while nodes are lost, and knows what it was told of each block.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use block_io::File;
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, Session};
use test_support::smbd::{PASSWORD, USER};
use tokio::task::JoinHandle;

use super::Nodes;

/// A client that waits for longer is a failure.
const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// When a block was acknowledged last, and the longest time without one.
#[derive(Debug)]
struct Pace {
    last: Instant,
    longest: Duration,
}

impl Pace {
    /// A block was acknowledged.
    fn step(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

/// A client that writes numbered blocks over and over, one after the other.
pub struct Writer {
    stop: Arc<AtomicBool>,
    /// The last number that was acknowledged.
    written: Arc<AtomicU64>,
    pace: Arc<Mutex<Pace>>,
    task: JoinHandle<u64>,
    name: String,
    /// The session that it writes by.
    pub session: Session,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("name", &self.name).finish_non_exhaustive()
    }
}

fn block(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(BLOCK / 8)
}

/// How a client of the nodes' role connects that notices a silent server within two seconds.
pub fn options(nodes: &Nodes) -> ConnectOptions {
    let address = nodes.address;
    let login = Login::new(USER, PASSWORD);
    ConnectOptions {
        keep_alive: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(3600),
        reconnect_timeout: Duration::from_secs(60),
        ..ConnectOptions::new(&address.ip().to_string(), address.port(), login)
    }
}

impl Writer {
    /// Makes a file on the role's share, and begins to write it.
    ///
    /// # Panics
    /// If the server does not let it, or promises nothing.
    pub async fn start(options: ConnectOptions, name: &str) -> Self {
        let session = Client::connect(options).await.expect("the role is served");
        let tree = session.tree("vms").await.expect("the share is there");
        let file = tree.open(name, OpenOptions::create(Create::New)).await.expect("it is new");
        assert!(file.is_durable());
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pace = Pace { last: Instant::now(), longest: Duration::ZERO };
        let pace = Arc::new(Mutex::new(pace));
        let (stopped, counted, paced) = (stop.clone(), written.clone(), pace.clone());
        let task = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Ordering::SeqCst) {
                n += 1;
                file.write_at(n % BLOCKS * BLOCK as u64, &block(n)).await.expect("it is written");
                counted.store(n, Ordering::SeqCst);
                paced.lock().unwrap_or_else(PoisonError::into_inner).step();
                if n.is_multiple_of(100) {
                    let before = n - 50;
                    let mut found = vec![0; BLOCK];
                    let at = before % BLOCKS * BLOCK as u64;
                    file.read_at(at, &mut found).await.expect("it is read");
                    assert_eq!(found, block(before));
                }
            }
            File::close(&file).await.expect("it is closed");
            n
        });
        Self { stop, written, pace, task, name: name.to_owned(), session }
    }

    /// Waits until it has written some more.
    ///
    /// # Panics
    /// If it does not, or has seen an error.
    pub async fn goes_on(&self) {
        let from = self.written.load(Ordering::SeqCst);
        let more = async {
            while self.written.load(Ordering::SeqCst) < from + 20 && !self.task.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, more).await.expect("the client goes on");
        assert!(!self.task.is_finished(), "the client has seen an error");
    }

    /// The longest time between two blocks since this was asked last.
    pub fn longest_pause(&self) -> Duration {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = std::mem::take(&mut pace.longest);
        longest.max(pace.last.elapsed())
    }

    /// Ends it; all that it has written is there. How many blocks that were.
    ///
    /// # Panics
    /// If a block that was acknowledged is not in the file, which lies in `files`.
    pub async fn end(self, files: &Path) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let last = tokio::time::timeout(LIMIT, self.task).await.expect("it ends");
        let last = last.expect("it has seen no error");
        let disk = fs::File::open(files.join(&self.name)).expect("the file is there");
        for n in last.saturating_sub(BLOCKS - 1).max(1)..=last {
            let mut found = vec![0; BLOCK];
            disk.read_exact_at(&mut found, n % BLOCKS * BLOCK as u64).expect("it is read");
            assert_eq!(found, block(n), "block {n}");
        }
        last
    }
}
