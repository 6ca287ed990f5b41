use std::{slice, sync::Arc};

use tempfile::TempDir;

use super::*;
use crate::{read_exact_at, testing::Rng};

fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Threads];
    if ring::shared().is_some() {
        engines.push(Engine::Uring);
    } else {
        test_support::skip("io_uring: this kernel gives none");
    }
    engines
}

fn fresh(dir: &TempDir, engine: Engine) -> LocalFile {
    let path = dir.path().join(format!("{engine:?}"));
    LocalFile::open(path, &LocalOptions { engine, ..LocalOptions::create_new() }).unwrap()
}

/// Tells the kernel to forget the cached pages, so that the next read is a miss.
fn drop_cache(file: &LocalFile) {
    rustix::fs::fadvise(&*file.fd, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// System calls of this process that write.
fn calls_that_write() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("syscw: "));
    count.unwrap().parse().unwrap()
}

/// On an ext4 other writes come in pieces.
#[tokio::test]
async fn a_write_as_a_whole_is_one_system_call() {
    let dir = TempDir::new().unwrap();
    for engine in engines() {
        let mut file = fresh(&dir, engine);
        file.piece = EXT4_PIECE;
        let data = vec![7; 4 << 20];
        let before = calls_that_write();
        file.write_at(4096, &data).await.unwrap();
        let pieces = calls_that_write() - before;
        file.write_whole(4096, &data).await.unwrap();
        let whole = calls_that_write() - before - pieces;
        // Threads wake one another by some.
        assert!(pieces >= 128 && whole < 16, "{pieces} and {whole}");
        let mut found = vec![0; data.len()];
        read_exact_at(&file, 4096, &mut found).await.unwrap();
        assert_eq!(found, data);
    }
}

#[tokio::test]
async fn a_range_is_zeroed_and_keeps_its_space() {
    use std::os::unix::fs::MetadataExt;
    let dir = TempDir::new().unwrap();
    for engine in engines() {
        let file = fresh(&dir, engine);
        file.write_at(0, &vec![7; 4 << 20]).await.unwrap();
        file.flush().await.unwrap();
        let held = || fs::metadata(file.path()).unwrap().blocks() * 512;
        let before = held();
        match file.zero_range(4096..(3 << 20)).await {
            Err(Error::Unsupported(_)) => {
                test_support::skip("zeroing in place: this file system cannot");
                continue;
            }
            done => done.unwrap(),
        }
        file.flush().await.unwrap();
        assert!(held() + 65536 > before, "{before} bytes became {}", held());
        assert_eq!(file.len().await.unwrap(), 4 << 20);
        let mut found = vec![0; 4 << 20];
        read_exact_at(&file, 0, &mut found).await.unwrap();
        let (first, rest) = found.split_at(4096);
        let (zeros, last) = rest.split_at((3 << 20) - 4096);
        assert!(first.iter().chain(last).all(|byte| *byte == 7));
        assert!(zeros.iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn reads_back_what_was_written_cached_and_not() {
    let dir = TempDir::new().unwrap();
    for engine in engines() {
        let file = fresh(&dir, engine);
        let mut rng = Rng::new(1);
        let mut model = vec![0u8; 3 << 20];
        file.set_len(model.len() as u64).await.unwrap();
        for round in 0..60 {
            let len = [1, 512, 4096, 5000, 1 << 20][rng.below(5) as usize];
            let at = rng.below((model.len() - len) as u64) as usize;
            let at = if round % 2 == 0 { at } else { at & !4095 };
            rng.fill(&mut model[at..at + len]);
            file.write_at(at as u64, &model[at..at + len]).await.unwrap();
            if round % 20 == 19 {
                file.flush().await.unwrap();
                drop_cache(&file);
            }
            let mut back = vec![0; len];
            read_exact_at(&file, at as u64, &mut back).await.unwrap();
            assert!(back == model[at..at + len], "{engine:?} round {round}");
        }
        file.flush().await.unwrap();
        drop_cache(&file);
        let mut back = vec![0xff; model.len() + 100];
        assert_eq!(file.read_at(0, &mut back).await.unwrap(), model.len());
        assert!(back[..model.len()] == model);
        assert_eq!(file.read_at(1 << 40, &mut back).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn engine_misses_go_through_the_engine_itself() {
    let dir = TempDir::new().unwrap();
    let Some(ring) = ring::shared() else {
        test_support::skip("this kernel gives no io_uring");
        return;
    };
    let file = fresh(&dir, Engine::Uring);
    let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    ring.write(file.fd.clone(), 10, data.clone()).await.unwrap().unwrap();
    ring.sync(file.fd.clone()).await.unwrap().unwrap();
    let (n, back) = ring.read(file.fd.clone(), 10, vec![0; 200_000]).await.unwrap();
    assert_eq!(n.unwrap(), data.len());
    assert!(back[..data.len()] == data);
    // A dropped waiter leaves the ring in order.
    let many: Vec<_> = (0..1000)
        .map(|i| {
            let (ring, fd) = (ring.clone(), file.fd.clone());
            tokio::spawn(async move { ring.read(fd, i * 50, vec![0; 50]).await })
        })
        .collect();
    tokio::task::yield_now().await;
    for (i, task) in many.into_iter().enumerate() {
        if i % 2 == 0 {
            task.abort();
        } else {
            let (n, _) = task.await.unwrap().unwrap();
            assert_eq!(n.unwrap(), 50);
        }
    }
}

#[tokio::test]
async fn one_writer_at_a_time() {
    let dir = TempDir::new().unwrap();
    let first = fresh(&dir, Engine::Auto);
    let path = first.path().to_path_buf();
    let second = LocalFile::open(&path, &LocalOptions::read_write());
    assert!(matches!(second, Err(Error::Busy(_))), "{second:?}");
    let reader = LocalFile::open(&path, &LocalOptions::read_only()).unwrap();
    assert!(matches!(reader.write_at(0, b"x").await, Err(Error::ReadOnly)));
    assert!(matches!(reader.set_len(0).await, Err(Error::ReadOnly)));
    first.close().await.unwrap();
    assert!(matches!(first.write_at(0, b"x").await, Err(Error::Closed)));
    LocalFile::open(&path, &LocalOptions::read_write()).unwrap();
    let again = LocalFile::open(&path, &LocalOptions::create_new());
    assert!(matches!(again, Err(Error::Io { .. })), "{again:?}");
}

#[tokio::test]
async fn holes_and_ranges() {
    let dir = TempDir::new().unwrap();
    let file = fresh(&dir, Engine::Auto);
    file.set_len(8 << 20).await.unwrap();
    if !file.allocated_ranges(0..8 << 20).await.unwrap().is_empty() {
        test_support::skip("the file system here has no sparse files");
        return;
    }
    file.write_at(1 << 20, &vec![7; 1 << 20]).await.unwrap();
    file.write_at(4 << 20, &vec![7; 1 << 20]).await.unwrap();
    let found = file.allocated_ranges(0..u64::MAX).await.unwrap();
    assert_eq!(found, [1 << 20..2 << 20, 4 << 20..5 << 20]);
    assert_eq!(
        file.allocated_ranges((3 << 19)..(9 << 19)).await.unwrap(),
        [3 << 19..2 << 20, 4 << 20..9 << 19]
    );
    file.punch_hole(1 << 20..2 << 20).await.unwrap();
    let left = file.allocated_ranges(0..8 << 20).await.unwrap();
    assert_eq!(left, slice::from_ref(&(4 << 20..5 << 20)));
    let mut back = vec![1; 1 << 20];
    read_exact_at(&file, 1 << 20, &mut back).await.unwrap();
    assert!(back.iter().all(|b| *b == 0));
    assert_eq!(file.len().await.unwrap(), 8 << 20);
    file.allocate(8 << 20..10 << 20).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 10 << 20);
}

/// Space that was never written, or zeroed in place, is told from data also when it was read.
#[tokio::test]
async fn held_space_is_not_written_however_often_it_is_read() {
    let dir = TempDir::new().unwrap();
    const MIB: u64 = 1 << 20;
    for engine in engines() {
        let file = fresh(&dir, engine);
        file.allocate(0..8 * MIB).await.unwrap();
        let asked = Fiemap::new().ask(file.as_fd(), 0..8 * MIB, 0, 1).map(<[_]>::len);
        if !matches!(asked, Ok(1..)) {
            test_support::skip("the file system of temporary files does not tell of extents");
            return;
        }
        file.write_at(3 * MIB, &[7; 1 << 20]).await.unwrap();
        let mut all = vec![1; 8 << 20];
        read_exact_at(&file, 0, &mut all).await.unwrap();
        // What was written counts before it has reached the disk.
        let written = file.written_ranges(0..u64::MAX).await.unwrap();
        assert_eq!(written, slice::from_ref(&(3 * MIB..4 * MIB)));
        let half = MIB / 2;
        let part = file.written_ranges(0..3 * MIB + half).await.unwrap();
        assert_eq!(part, slice::from_ref(&(3 * MIB..3 * MIB + half)));
        file.zero_range(3 * MIB..4 * MIB).await.unwrap();
        read_exact_at(&file, 0, &mut all).await.unwrap();
        assert_eq!(file.written_ranges(0..8 * MIB).await.unwrap(), []);
        assert!(all.iter().all(|byte| *byte == 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_flushes_at_once() {
    let dir = TempDir::new().unwrap();
    for engine in engines() {
        let file = Arc::new(fresh(&dir, engine));
        let tasks: Vec<_> = (0..32u64)
            .map(|i| {
                let file = file.clone();
                tokio::spawn(async move {
                    for round in 0..5 {
                        file.write_at(i * 4096, &[round; 4096]).await.unwrap();
                        file.flush().await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let mut back = vec![0; 32 * 4096];
        read_exact_at(&*file, 0, &mut back).await.unwrap();
        assert!(back.iter().all(|b| *b == 4));
    }
}

/// Nobody waits for the other end of a pipe that bears the name of an image.
#[test]
fn what_is_neither_a_file_nor_a_block_device_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("fifo.raw");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .unwrap();
    for path in [fifo.as_path(), std::path::Path::new("/dev/null")] {
        for options in [LocalOptions::default(), LocalOptions::read_only()] {
            let Err(Error::Io { source, .. }) = LocalFile::open(path, &options) else {
                panic!("{} was taken", path.display());
            };
            assert_eq!(source.kind(), io::ErrorKind::InvalidInput);
        }
    }
}

/// Folios lie at multiples of their length, so pieces do as well.
#[test]
fn pieces_end_where_folios_do() {
    let all = |mut at: u64, end: u64| {
        let mut lengths = Vec::new();
        while at < end {
            let len = piece(EXT4_PIECE, at, (end - at) as usize);
            lengths.push(len >> 10);
            at += len as u64;
        }
        lengths
    };
    assert_eq!(all(0, 80 << 10), [32, 32, 16]);
    assert_eq!(all(28 << 10, 68 << 10), [4, 32, 4]);
    assert_eq!(piece(usize::MAX, 1 << 40, 16 << 20), 16 << 20);
}

/// What waits for a write may end before it, as a command does whose connection is lost.
#[test]
fn a_write_that_is_given_up_is_there_or_not_but_no_half_of_it() {
    use std::task::Context;

    const LEN: usize = 2 << 20;
    let dir = TempDir::new().unwrap();
    for engine in engines() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let file = fresh(&dir, engine);
        runtime.block_on(file.write_at(0, &[1; LEN])).unwrap();
        runtime.block_on(async {
            let mut write = file.write_at(0, &[2; LEN]);
            let mut context = Context::from_waker(std::task::Waker::noop());
            // It may be done already, where its thread was faster than we.
            let _ = write.as_mut().poll(&mut context);
        });
        // It ends with what its threads have begun.
        drop(runtime);
        let found = std::fs::read(file.path()).unwrap();
        assert!(found.iter().all(|byte| *byte == found[0]), "{engine:?}");
    }
}
