//! Random writes on a fresh dynamic image, to be compared with `qemu-img bench`.
//!
//! `load FILE DISK_MIB BLOCK_MIB OPERATIONS DEPTH FLUSH_EVERY STEP`: makes FILE, writes 4 KiB
//! OPERATIONS times with DEPTH under way and a flush after every FLUSH_EVERY writes (0: only at
//! the end), at places STEP bytes apart (0: random), and prints the rate with the last flush
//! included.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use block_io::{Disk, LocalFile, LocalOptions};
use vhd::vhdx::{CreateOptions, OpenOptions, Vhdx, create};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, numbers @ ..] = &args[..] else { return Err("no file named".into()) };
    let numbers: Vec<u64> = numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    let [disk_mib, block_mib, operations, depth, flush_every, step] = numbers[..] else {
        return Err("six numbers are wanted".into());
    };
    let size = disk_mib << 20;
    let options = LocalOptions { create: true, ..LocalOptions::default() };
    let file = Arc::new(LocalFile::open(path, &options)?);
    let block_size = u32::try_from(block_mib << 20)?;
    create(file.clone(), &CreateOptions { block_size, ..CreateOptions::new(size) }).await?;
    let disk = Arc::new(Vhdx::open(file, OpenOptions::default()).await?);

    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let workers: Vec<_> = (0..depth)
        .map(|_| {
            let (disk, next) = (disk.clone(), next.clone());
            tokio::spawn(async move {
                let data = vec![0xa5; 4096];
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= operations {
                        return Ok::<(), Failure>(());
                    }
                    // A multiplicative hash visits places in no order and seldom twice.
                    let at = if step == 0 {
                        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
                    } else {
                        n * step
                    };
                    disk.write_at(at % size / 4096 * 4096, &data).await?;
                    if flush_every != 0 && (n + 1).is_multiple_of(flush_every) {
                        disk.flush().await?;
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    let written = started.elapsed();
    disk.flush().await?;
    let flushed = started.elapsed();
    disk.close().await?;
    println!(
        "{operations} writes: {:.0}/s, with the last flush {:.0}/s",
        operations as f64 / written.as_secs_f64(),
        operations as f64 / flushed.as_secs_f64()
    );
    Ok(())
}
