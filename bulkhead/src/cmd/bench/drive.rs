//! Requests that are kept under way until the time is up, on anything that is read and written by offset.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{histogram::Histogram, load::Pattern, verify::next_random};

/// What is asked of a file or disk.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub pattern: Pattern,
    /// Reads among 100 operations.
    pub reads: u32,
    pub block_size: u64,
    /// Requests under way.
    pub depth: u16,
    /// Blocks of the file or disk.
    pub blocks: u64,
    pub time: Duration,
}

/// What a load is run on.
pub trait Driven: Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes; fewer only at the end.
    fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
    ) -> impl Future<Output = anyhow::Result<usize>> + Send;

    /// Writes all of `data`.
    fn write(&self, offset: u64, data: &[u8]) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Keeps so many requests under way until the time is up; gives the times of reads and writes, and the
/// seconds that it took.
///
/// # Errors
/// The first of a request; the others end with it.
pub async fn drive<T: Driven>(
    target: &Arc<T>,
    load: Load,
) -> anyhow::Result<(Histogram, Histogram, f64)> {
    let over = Arc::new(AtomicBool::new(false));
    let cursor = Arc::new(AtomicU64::new(0));
    let since = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..load.depth {
        let (target, over, cursor) = (target.clone(), over.clone(), cursor.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = 0x5eed_0000 + u64::from(number);
            let (mut reads, mut writes) = (Histogram::new(), Histogram::new());
            let mut data = vec![number.to_le_bytes()[0]; usize::try_from(load.block_size)?];
            while !over.load(Ordering::Relaxed) && since.elapsed() < load.time {
                let block = match load.pattern {
                    Pattern::Rand => next_random(&mut random),
                    Pattern::Seq => cursor.fetch_add(1, Ordering::Relaxed),
                } % load.blocks;
                let offset = block * load.block_size;
                let begun = Instant::now();
                if next_random(&mut random) % 100 < load.reads.into() {
                    let got = target.read(offset, &mut data).await;
                    if got.inspect_err(|_| over.store(true, Ordering::Relaxed))? < data.len() {
                        bail!("it ends before {}", offset + load.block_size);
                    }
                    reads.add(begun.elapsed());
                } else {
                    let written = target.write(offset, &data).await;
                    written.inspect_err(|_| over.store(true, Ordering::Relaxed))?;
                    writes.add(begun.elapsed());
                }
            }
            Ok((reads, writes))
        }));
    }
    let (mut reads, mut writes) = (Histogram::new(), Histogram::new());
    for task in tasks {
        let (read, written) = task.await??;
        reads.merge(&read);
        writes.merge(&written);
    }
    Ok((reads, writes, since.elapsed().as_secs_f64()))
}
