//! Many small accesses at once to a disk, at places that look random and repeat in every run.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use block_io::Disk;

use crate::Outcome;

/// Requests under way.
const DEPTH: u64 = 32;
const BLOCK: u64 = 4096;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
}

/// What is done, where and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    pub access: Access,
    /// Bytes of the disk.
    pub size: u64,
    /// Requests in all.
    pub count: u64,
}

/// The distance from one request to the next: a golden section of the disk, so that they come
/// everywhere in no order. `qemu-img bench` can be told to do the same, but for distances from
/// 2 GiB on, for which a large one that has no factor with the disk's blocks must do.
pub fn step(size: u64) -> u64 {
    const LARGEST: u64 = 485_993 * BLOCK;
    let golden = (size as f64 * 0.618_033_988_749_895) as u64;
    if golden < 1 << 31 { golden / BLOCK * BLOCK } else { LARGEST }
}

/// Requests a second.
pub async fn run(disk: Arc<dyn Disk>, pattern: Pattern) -> Outcome<f64> {
    let (next, step) = (Arc::new(AtomicU64::new(0)), step(pattern.size));
    let since = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..DEPTH {
        let (disk, next) = (disk.clone(), next.clone());
        tasks.spawn(async move {
            let mut block = [0x42; BLOCK as usize];
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= pattern.count {
                    return block_io::Result::Ok(());
                }
                let at = index.wrapping_mul(step) % (pattern.size - BLOCK + 1) / BLOCK * BLOCK;
                match pattern.access {
                    Access::Read => disk.read_at(at, &mut block).await?,
                    Access::Write => disk.write_at(at, &block).await?,
                }
                // A request that is done at once leaves the others their turn.
                tokio::task::consume_budget().await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(pattern.count as f64 / since.elapsed().as_secs_f64())
}
