//! What a simulation does to a server: rules that are broken, writes that are late, and what of the
//! files is durable.
//!
//! ```text
//!  WRITE ─► page cache ── FLUSH, write-through ─► Platter: what it was when that began
//!             │ now, or when it is waited for        │
//!             └────────────── power is lost ─────────┴─► each block is one or the other
//! ```

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A rule of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A FLUSH is answered when what was written before it is durable.
    Flush,
    /// A write on a continuously available share is answered when it is durable.
    WriteThrough,
    /// Nobody else gets a file whose client is away.
    NotAvailable,
    /// What is not finished of an answer is taken back when the connection is dropped.
    TakenBack,
    /// Each message is sealed with a nonce of its own.
    Nonces,
}

/// What a loss of power leaves of files, by inode: what they were when they were last made durable,
/// and when that began.
#[derive(Debug, Default)]
pub struct Platter {
    files: Mutex<HashMap<u64, (u64, Vec<u8>)>>,
    next: AtomicU64,
}

impl Platter {
    /// What is durable of a file, nothing if it never was made so.
    pub fn content(&self, inode: u64) -> Vec<u8> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&inode).map(|(_, content)| content.clone()).unwrap_or_default()
    }

    /// A loss of power has left this of a file: all of it is durable, and no later loss takes it.
    pub fn is_left(&self, inode: u64, content: Vec<u8>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(inode, (number, content));
    }
}

/// A file is being made durable.
#[derive(Debug)]
pub struct Hardening {
    platter: Arc<Platter>,
    inode: u64,
    number: u64,
    content: Vec<u8>,
}

impl Hardening {
    /// What was being made durable is durable now.
    pub fn done(self) {
        let mut files = self.platter.files.lock().unwrap_or_else(PoisonError::into_inner);
        let durable = files.entry(self.inode).or_default();
        if durable.0 < self.number {
            *durable = (self.number, self.content);
        }
    }
}

/// What a server is told.
#[derive(Debug)]
struct Told {
    broken: Option<Rule>,
    platter: Arc<Platter>,
    dice: AtomicU64,
}

/// Nothing, unless a simulation says so.
#[derive(Debug, Default)]
pub struct Faults(OnceLock<Told>);

impl Faults {
    /// From now on a rule is broken, some writes are late, as a seed says, and what is made durable
    /// is noted.
    pub fn begin(&self, broken: Option<Rule>, platter: Arc<Platter>, seed: u64) {
        let _ = self.0.set(Told { broken, platter, dice: AtomicU64::new(seed) });
    }

    /// Whether a rule is kept.
    pub fn keeps(&self, rule: Rule) -> bool {
        self.0.get().is_none_or(|told| told.broken != Some(rule))
    }

    /// Whether the next write is not carried out before it is waited for.
    pub fn is_late(&self) -> bool {
        self.0.get().is_some_and(|told| {
            let rolled = told.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            ((rolled ^ (rolled >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 60) < 5
        })
    }

    /// A file begins to be made durable.
    pub fn make_durable(&self, fd: BorrowedFd<'_>) -> Option<Hardening> {
        let told = self.0.get()?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Some(Hardening {
            platter: told.platter.clone(),
            inode: rustix::fs::fstat(fd).expect("it is open").st_ino,
            number: told.platter.next.fetch_add(1, Ordering::Relaxed) + 1,
            content: std::fs::read(path).expect("the owner of the test's files reads them"),
        })
    }
}
