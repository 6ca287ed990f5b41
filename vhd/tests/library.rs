//! What the crate promises to programs that use it: blocking callers, one writer, readers that never
//! write, memory that does not grow with the disk, examples that run.

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use block_io::{Disk, LocalFile, LocalOptions, testing::Rng};
use common::{MIB, sha256};
use vhd::{
    Error, Format, blocking, chain, classic, ops,
    vhdx::{self, OpenOptions, Vhdx},
};

/// The memory is the process's: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn one() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

#[test]
fn blocking_callers_do_all_that_others_do() {
    let _one = one();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let data = vec![0x5a; 70_000 / 512 * 512];
    let options = vhdx::CreateOptions { block_size: 1 << 20, ..vhdx::CreateOptions::new(8 * MIB) };
    let disk = blocking::create_vhdx(at("a.vhdx"), &options).unwrap();
    disk.write_at(3 * MIB - 512, &data).unwrap();
    disk.write_zeroes(3 * MIB, 4096).unwrap();
    disk.flush().unwrap();
    assert!(matches!(
        disk.write_at(1, &[0; 512]),
        Err(Error::Storage(block_io::Error::Misaligned { .. }))
    ));
    let read = |disk: &blocking::Disk| {
        let mut bytes = vec![0xee; disk.geometry().size as usize];
        disk.read_at(0, &mut bytes).unwrap();
        bytes
    };
    let expected = read(&disk);
    disk.close().unwrap();
    assert!(expected[3 * MIB as usize..][..4096].iter().all(|byte| *byte == 0));
    assert_eq!(expected[3 * MIB as usize - 512..][..512], data[..512]);

    // To a VHD, as threads share both.
    let source = blocking::open_read_only(at("a.vhdx")).unwrap();
    let target = blocking::create_vhd(at("b.vhd"), &classic::CreateOptions::new(8 * MIB)).unwrap();
    let done = blocking::convert(&source, &target, |_| {}).unwrap();
    assert_eq!(done.done, 8 * MIB);
    std::thread::scope(|scope| {
        for disk in [&source, &target] {
            for _ in 0..2 {
                scope.spawn(|| assert!(read(disk) == expected));
            }
        }
    });
    target.close().unwrap();
    for (name, format) in [("a.vhdx", Format::Vhdx), ("b.vhd", Format::Vhd)] {
        blocking::resize(at(name), 9 * MIB).unwrap();
        assert!(blocking::check(at(name)).unwrap().is_clean());
        let disk = blocking::open(at(name)).unwrap();
        assert_eq!(disk.geometry().size, 9 * MIB);
        assert!(read(&disk)[..8 << 20] == expected && !disk.inner().is_read_only());
        disk.close().unwrap();
        let file = blocking::file(at(name), &LocalOptions::read_write()).unwrap();
        blocking::wait(ops::compact(file.clone(), format, None, |_| {})).unwrap();
        blocking::wait(file.close()).unwrap();
    }
    let unknown = blocking::open(at("c.txt"));
    assert!(matches!(unknown, Err(Error::InvalidOptions(_))), "{unknown:?}");
}

#[test]
fn one_writes_and_others_read() {
    let _one = one();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    let writer = blocking::create_vhdx(&path, &vhdx::CreateOptions::new(64 * MIB)).unwrap();
    writer.write_at(0, &[1; 512]).unwrap();
    writer.flush().unwrap();
    let second = blocking::open(&path);
    assert!(matches!(second, Err(Error::Storage(block_io::Error::Busy(_)))), "{second:?}");
    let reader = blocking::open_read_only(&path).unwrap();
    let mut sector = [0; 512];
    reader.read_at(0, &mut sector).unwrap();
    assert_eq!(sector, [1; 512]);
    let refused = reader.write_at(0, &sector);
    assert!(matches!(refused, Err(Error::Storage(block_io::Error::ReadOnly))), "{refused:?}");
    writer.close().unwrap();
    blocking::open(&path).unwrap().close().unwrap();
}

/// A log is replayed in memory: the file stays as it is to the byte, and need not be writable.
#[test]
fn a_reader_of_an_image_with_a_dirty_log_never_writes() {
    let _one = one();
    let folder = tempfile::tempdir().unwrap();
    let (path, dirty) = (folder.path().join("a.vhdx"), folder.path().join("dirty.vhdx"));
    let options = vhdx::CreateOptions { block_size: 1 << 20, ..vhdx::CreateOptions::new(64 * MIB) };
    let disk = blocking::create_vhdx(&path, &options).unwrap();
    for block in [0, 9, 63] {
        disk.write_at(block * MIB, &[block as u8 + 1; 4096]).unwrap();
        disk.flush().unwrap();
    }
    // As a crash leaves it: the table in its place is older than the log.
    fs::copy(&path, &dirty).unwrap();
    disk.close().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&dirty).unwrap();
    let table = {
        let image = blocking::file(&path, &LocalOptions::read_only()).unwrap();
        let mut regions = vec![0; vhdx::region::TABLE_SIZE];
        blocking::wait(image.read_at(vhdx::REGION_TABLE_OFFSETS[0], &mut regions)).unwrap();
        let regions = vhdx::region::RegionTable::parse(1, &regions).unwrap();
        regions.find(vhdx::region::BAT_REGION).unwrap().offset
    };
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], table).unwrap();
    drop(file);
    fs::set_permissions(&dirty, fs::Permissions::from_mode(0o444)).unwrap();
    let stamp = |path: &Path| {
        let about = fs::metadata(path).unwrap();
        (sha256(path), about.len(), about.mtime(), about.mtime_nsec(), about.ctime_nsec())
    };
    let before = stamp(&dirty);

    let info = blocking::file(&dirty, &LocalOptions::read_only()).unwrap();
    assert!(blocking::wait(vhdx::info(info)).unwrap().log_pending);
    let report = blocking::check(&dirty).unwrap();
    assert!(report.is_clean() && report.log_pending && report.allocated_blocks == 3, "{report:?}");
    let disk = blocking::open_read_only(&dirty).unwrap();
    for block in [0, 9, 63] {
        let mut data = [0; 4096];
        disk.read_at(block * MIB, &mut data).unwrap();
        assert_eq!(data, [block as u8 + 1; 4096]);
    }
    assert_eq!(disk.allocated_ranges(0..64 * MIB).unwrap().len(), 3);
    disk.close().unwrap();
    assert_eq!(stamp(&dirty), before);
}

/// Blocks all over the largest disk are written, read, given up, and the image is opened, described
/// and checked, in the memory that is promised.
#[test]
fn the_largest_image_takes_little_memory() {
    const MEMORY: usize = 64 << 20;
    const PLACES: u64 = 6000;
    let _one = one();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.vhdx");
    let before = counting::begin();
    run(async {
        let local = |options: LocalOptions| Arc::new(LocalFile::open(&path, &options).unwrap());
        let file = local(LocalOptions::create_new());
        let options =
            vhdx::CreateOptions { block_size: 1 << 20, ..vhdx::CreateOptions::new(vhdx::MAX_DISK) };
        vhdx::create(file.clone(), &options).await.unwrap();
        let disk = Vhdx::open(file, OpenOptions::default()).await.unwrap();
        let mut rng = Rng::new(5);
        let places: Vec<u64> =
            (0..PLACES).map(|_| rng.below(vhdx::MAX_DISK / 4096) * 4096).collect();
        for (n, at) in places.iter().enumerate() {
            disk.write_at(*at, &[n as u8; 4096]).await.unwrap();
        }
        disk.flush().await.unwrap();
        for (n, at) in places.iter().enumerate() {
            let mut data = [0; 4096];
            disk.read_at(*at, &mut data).await.unwrap();
            assert_eq!(data, [n as u8; 4096]);
        }
        disk.discard(places[0] / MIB * MIB, MIB).await.unwrap();
        disk.close().await.unwrap();
        let file = local(LocalOptions::read_only());
        let blocks: BTreeSet<u64> = places.iter().map(|at| at / MIB).collect();
        let stored = vhdx::info(file.clone()).await.unwrap().allocated_blocks;
        assert_eq!(stored, blocks.len() as u64 - 1);
        let report = vhdx::check(file.clone()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        let name = path.to_str().unwrap();
        let disk = chain::open_disk(file, name, Format::Vhdx, &chain::LocalFiles::beside(name))
            .await
            .unwrap();
        let mut data = [0; 4096];
        disk.read_at(places[1], &mut data).await.unwrap();
        assert_eq!(data, [1; 4096]);
    });
    let peak = counting::peak_since(before);
    println!("{} MiB at most", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
}

/// An example that was built with this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(built.exists(), "{} is built with the tests", built.display());
    built
}

#[test]
fn the_examples_run() {
    let _one = one();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let disk = blocking::create_vhdx(at("a.vhdx"), &vhdx::CreateOptions::new(40 * MIB)).unwrap();
    disk.write_at(33 * MIB, &[7; 4096]).unwrap();
    disk.close().unwrap();
    let said = |name: &str, files: &[&str]| {
        let mut command = Command::new(example(name));
        let output = command.current_dir(folder.path()).args(files).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let copied = said("snapshot", &["a.vhdx", "b.vhdx", "copy.raw"]);
    assert_eq!(copied, "copy.raw: 65536 of 41943040 bytes were data\n");
    let copy = fs::read(at("copy.raw")).unwrap();
    assert_eq!(copy.len() as u64, 40 * MIB);
    assert_eq!(copy[33 << 20..][..4096], [7; 4096]);
    let described = said("describe", &["a.vhdx", "b.vhdx"]);
    let expected = "a.vhdx: 41943040 bytes, 1 of 2 blocks stored, 0 errors\n\
        b.vhdx: 41943040 bytes, 0 of 20 blocks stored, 0 errors\n";
    assert_eq!(described, expected);
    let child = blocking::open(at("b.vhdx")).unwrap();
    let mut data = [0; 4096];
    child.read_at(33 * MIB, &mut data).unwrap();
    assert_eq!(data, [7; 4096]);
    child.close().unwrap();
}
