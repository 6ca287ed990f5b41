//! A load on one file that knows at every moment what each block must hold.
//!
//! ```text
//!  task 0: blocks 0, n, 2n, …   write (block, version + 1) ─► acknowledged: that is what it holds
//!  task 1: blocks 1, n + 1, …   read ─► must be the last acknowledged version, all of it
//!  …                            flush now and then
//! ```
//!
//! Each block belongs to one task, which has one request under way at a time. A write that is lost
//! shows in the next read; so does one that a server carries out late, after a newer one.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use block_io::File;
use smb_client::RemoteFile;

/// What a load is like.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Tasks, each with one request under way.
    pub depth: u64,
    /// Blocks of each task.
    pub blocks: u64,
    /// Bytes of a block, a multiple of 16.
    pub block: usize,
    /// A seed.
    pub seed: u64,
}

/// A load that runs.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<Result<(), String>>>,
}

#[derive(Debug)]
struct Shared {
    over: AtomicBool,
    done: AtomicU64,
    bytes: AtomicU64,
    since: Instant,
    /// When something was last done, and the longest time without anything, in microseconds.
    last: Mutex<(u64, u64)>,
    /// Requests that each task has seen answered.
    turns: Vec<AtomicU64>,
    /// How long the slowest request took, in microseconds.
    slowest: AtomicU64,
}

impl Shared {
    fn count(&self, me: u64, bytes: usize, begun: Instant) {
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest.fetch_max(took, Ordering::Relaxed);
        self.turns[me as usize].fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.gap(true);
    }

    /// The longest gap until now, which begins anew if something was done.
    fn gap(&self, done: bool) -> u64 {
        let now = self.since.elapsed().as_micros() as u64;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = last.1.max(now.saturating_sub(last.0));
        if done {
            *last = (now.max(last.0), longest);
        }
        longest
    }
}

/// Fills a block with what a version of it holds.
fn fill(block: &mut [u8], number: u64, version: u64) {
    for part in block.chunks_mut(16) {
        part[..8].copy_from_slice(&number.to_le_bytes());
        part[8..].copy_from_slice(&version.to_le_bytes());
    }
}

/// Which version a block holds, if it is one.
fn version(block: &[u8], number: u64) -> Option<u64> {
    let first = u64::from_le_bytes(*block.get(8..16)?.first_chunk()?);
    let mut wanted = vec![0; block.len()];
    fill(&mut wanted, number, first);
    (wanted == block).then_some(first)
}

async fn task(
    file: Arc<RemoteFile>,
    shared: Arc<Shared>,
    load: Load,
    me: u64,
) -> Result<(), String> {
    let mut versions = vec![0u64; load.blocks as usize];
    let mut buffer = vec![0; load.block];
    let mut dice = (load.seed ^ me.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
    let check = async |at: usize, version_of: u64, buffer: &mut Vec<u8>| {
        let number = at as u64 * load.depth + me;
        let got = file.read_at(number * load.block as u64, buffer).await;
        let got = got.map_err(|error| format!("block {number}: {error}"))?;
        match got == buffer.len() && version(buffer, number) == Some(version_of) {
            true => Ok(()),
            false => Err(format!(
                "block {number} holds {:?} of {got} bytes and not {version_of}",
                version(&buffer[..got], number)
            )),
        }
    };
    while !shared.over.load(Ordering::Relaxed) {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let at = (dice >> 8) as usize % versions.len();
        let number = at as u64 * load.depth + me;
        let begun = Instant::now();
        match dice % 32 {
            0 => file.flush().await.map_err(|error| format!("flush: {error}"))?,
            1..=12 if versions[at] > 0 => check(at, versions[at], &mut buffer).await?,
            _ => {
                fill(&mut buffer, number, versions[at] + 1);
                let offset = number * load.block as u64;
                let written = file.write_at(offset, &buffer).await;
                written.map_err(|error| format!("block {number}: {error}"))?;
                versions[at] += 1;
            }
        }
        shared.count(me, load.block, begun);
    }
    for (at, version) in versions.iter().enumerate().filter(|(_, version)| **version > 0) {
        check(at, *version, &mut buffer).await?;
    }
    Ok(())
}

impl Ledger {
    /// Starts a load on a file that nobody else writes.
    pub fn start(file: &Arc<RemoteFile>, load: Load) -> Self {
        let shared = Arc::new(Shared {
            over: AtomicBool::new(false),
            done: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            since: Instant::now(),
            last: Mutex::new((0, 0)),
            turns: (0..load.depth).map(|_| AtomicU64::new(0)).collect(),
            slowest: AtomicU64::new(0),
        });
        let start = |me| tokio::spawn(task(Arc::clone(file), Arc::clone(&shared), load, me));
        let tasks = (0..load.depth).map(start).collect();
        Self { shared, tasks }
    }

    /// Requests that were answered so far.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Bytes moved so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Waits until `more` requests were answered.
    ///
    /// # Panics
    /// If a task failed, or nothing at all is answered for two minutes.
    pub async fn go_on(&self, more: u64) {
        let goal = self.done() + more;
        self.wait(|shared| shared.done.load(Ordering::Relaxed) >= goal).await;
    }

    /// Waits until what every task has under way now was answered.
    ///
    /// # Panics
    /// As [`Ledger::go_on`].
    pub async fn each_goes_on(&self) {
        let turns = |shared: &Shared| -> Vec<u64> {
            shared.turns.iter().map(|turns| turns.load(Ordering::Relaxed)).collect()
        };
        let before = turns(&self.shared);
        let passed =
            |shared: &Shared| turns(shared).iter().zip(&before).all(|(now, was)| now > was);
        self.wait(passed).await;
    }

    async fn wait(&self, reached: impl Fn(&Shared) -> bool) {
        let (mut seen, mut since) = (self.done(), Instant::now());
        while !reached(&self.shared) {
            if self.done() > seen {
                (seen, since) = (self.done(), Instant::now());
            }
            let failed = self.tasks.iter().any(tokio::task::JoinHandle::is_finished);
            assert!(!failed, "a task failed");
            assert!(since.elapsed() < Duration::from_secs(120), "nothing is answered any more");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The longest time since the last call in which nothing at all was answered.
    pub fn longest_pause(&self) -> Duration {
        let longest = self.shared.gap(false);
        self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).1 = 0;
        Duration::from_micros(longest)
    }

    /// How long the slowest request took that was answered since the last call: what the caller of
    /// the file waited.
    pub fn slowest_request(&self) -> Duration {
        Duration::from_micros(self.shared.slowest.swap(0, Ordering::Relaxed))
    }

    /// Ends the load and looks at every block once more.
    pub async fn end(self) -> Result<(), String> {
        self.shared.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.map_err(|error| error.to_string())??;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_another_place_or_of_two_versions_is_none() {
        let mut block = vec![0; 64];
        fill(&mut block, 3, 9);
        assert_eq!((version(&block, 3), version(&block, 4)), (Some(9), None));
        block[48..].fill(0);
        assert_eq!(version(&block, 3), None);
    }
}
