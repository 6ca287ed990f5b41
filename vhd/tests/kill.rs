//! A process that is killed while it writes to an image on a real file leaves a good image with
//! everything it was told is flushed.

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use block_io::{Disk, LocalFile, LocalOptions, testing::Rng};
use common::{MIB, assert_clean, have_qemu, local, open, qemu_check, small};
use tempfile::TempDir;
use vhd::vhdx::create;

const FILE: &str = "BULKHEAD_TEST_KILL_FILE";
const ROUND: &str = "BULKHEAD_TEST_KILL_ROUND";
const SIZE: u64 = 3000 * MIB;
const CELL: u64 = 4096;
const BATCH: u64 = 40;
const ROUNDS: u64 = 8;

/// The place of write `n` of a round: one of 400, so that many are written again.
fn place(n: u64) -> u64 {
    Rng::new(n % 400).below(SIZE / CELL) * CELL
}

/// What write `n` of a round puts there: `None` if it gives the block back instead.
fn content(round: u64, n: u64) -> Option<Vec<u8>> {
    if Rng::new(round << 32 | n).chance(3) {
        return None;
    }
    let mut data = vec![0; CELL as usize];
    Rng::new(!(round << 32 | n)).fill(&mut data);
    Some(data)
}

/// Writes until it is killed; says after each flush how far everything is flushed.
fn write_until_killed(path: &str, round: u64) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let disk = Arc::new(open(local(path, LocalOptions::read_write())).await);
        let mut n = 0;
        loop {
            let batch: Vec<_> = (n..n + BATCH)
                .map(|n| {
                    let disk = disk.clone();
                    tokio::spawn(async move {
                        match content(round, n) {
                            Some(data) => disk.write_at(place(n), &data).await,
                            None => disk.write_zeroes(place(n) / MIB * MIB, MIB).await,
                        }
                    })
                })
                .collect();
            for write in batch {
                write.await.unwrap().unwrap();
            }
            n += BATCH;
            disk.flush().await.unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "\nflushed {n}").and_then(|()| out.flush()).unwrap();
        }
    })
}

/// Starts this very test as the writer, kills it after some flushes, and returns how far it was.
fn killed_writer(path: &Path, round: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_loses_nothing_flushed", "--nocapture"])
        .env(FILE, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut flushed = 0;
    let mut flushes = Rng::new(round).below(12);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(n) = line.unwrap().strip_prefix("flushed ") {
            flushed = n.parse().unwrap();
            if flushes == 0 {
                // The line after a flush is as good a moment as any: the next batch is on its way.
                child.kill().unwrap();
            }
            flushes = flushes.saturating_sub(1);
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(flushed > 0, "the writer died before its first flush");
    flushed
}

/// Opens the image for writing once the kernel has let go of what the killed process had in
/// flight: it keeps the file, and with it the lock, for a moment longer than the process.
fn freed(path: &Path) -> Arc<LocalFile> {
    let since = Instant::now();
    loop {
        match LocalFile::open(path, &LocalOptions::read_write()) {
            Ok(file) => return Arc::new(file),
            Err(block_io::Error::Busy(_)) if since.elapsed() < Duration::from_secs(30) => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_flushed() {
    if let (Ok(path), Ok(round)) = (std::env::var(FILE), std::env::var(ROUND)) {
        write_until_killed(&path, round.parse().unwrap());
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image.vhdx");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let file = local(&path, LocalOptions::create_new());
        create(file.clone(), &small(SIZE, MIB)).await.unwrap();
        block_io::File::close(&*file).await.unwrap();
        for round in 0..ROUNDS {
            let flushed = killed_writer(&path, round);
            let mut report =
                vhd::vhdx::check(local(&path, LocalOptions::read_only())).await.unwrap();
            assert!(report.is_clean(), "round {round}: {report:?}");
            let disk = open(freed(&path)).await;
            verify(&disk, round, flushed).await;
            // Every round starts from zeros.
            disk.discard(0, SIZE).await.unwrap();
            disk.write_zeroes(0, SIZE).await.unwrap();
            disk.close().await.unwrap();
            report = assert_clean(local(&path, LocalOptions::read_only())).await;
            assert_eq!(report.allocated_blocks, 0);
            if have_qemu() {
                qemu_check(&path);
            }
        }
    });
}

/// Each cell holds the last flushed write there or a later one of the batch under way.
async fn verify(disk: &dyn Disk, round: u64, flushed: u64) {
    // The writer may have gone on by some batches before the signal reached it.
    let until = flushed + 50 * BATCH;
    let block = |n: u64| place(n) / MIB;
    let mut checked = 0;
    for cell in 0..400 {
        let at = place(cell);
        let mut found = vec![0; CELL as usize];
        disk.read_at(at, &mut found).await.unwrap();
        // Writes to this place and zeroings of its block, in order; a batch has no order.
        let touches = |n: &u64| match content(round, *n) {
            Some(_) => place(*n) == at,
            None => block(*n) == at / MIB,
        };
        let last = (0..flushed).rev().find(touches);
        let batch = last.map_or(0, |n| n / BATCH * BATCH);
        let allowed = (batch..until).filter(touches).map(|n| content(round, n));
        let zeros = vec![0; CELL as usize];
        let start = if last.is_none() { Some(None) } else { None };
        assert!(
            allowed.chain(start).any(|value| value.as_ref().unwrap_or(&zeros) == &found),
            "round {round}, flushed {flushed}: wrong data at {at:#x}"
        );
        checked += u32::from(last.is_some());
    }
    assert!(checked > 30, "only {checked} places were written");
}
