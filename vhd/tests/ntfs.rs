//! What an NTFS volume does not use is given up, and nothing else: seen with ntfs-3g's tools.

mod common;

use std::{path::Path, process::Command, sync::Arc};

use block_io::{Disk, File, LocalOptions, RawDisk, testing::MemFile, testing::Rng};
use common::{MIB, have, local, run};
use vhd::{
    Error, Format, classic,
    convert::{CopyOptions, copy},
    ops::{self, Refusal, free_space},
    vhdx,
};

const SIZE: u64 = 64 * MIB;
/// Where the volume begins on a disk with partitions.
const PART: u64 = MIB;

fn tools() -> bool {
    ["mkntfs", "ntfscp", "ntfscat", "ntfsfix"].into_iter().all(have)
}

/// A volume with files, on ground that was used before.
fn volume(dir: &Path, cluster: &str) -> std::path::PathBuf {
    let raw = dir.join("raw");
    let mut rng = Rng::new(11);
    let mut noise = vec![0; SIZE as usize];
    rng.fill(&mut noise);
    std::fs::write(&raw, noise).unwrap();
    let name = raw.to_str().unwrap();
    run("mkntfs", &["-q", "-Q", "-F", "-c", cluster, "-p", "0", "-H", "0", "-S", "0", name]);
    for i in 0..5 {
        let mut data = vec![0; (i + 1) * 700_000];
        rng.fill(&mut data);
        let file = dir.join(format!("file-{i}"));
        std::fs::write(&file, data).unwrap();
        run("ntfscp", &["-q", name, file.to_str().unwrap(), &format!("file-{i}")]);
    }
    raw
}

/// What is free in what is at `PART` of a disk with a partition table, or at its start.
async fn free_in(bytes: &[u8], partitioned: bool) -> Result<Option<u64>, Refusal> {
    let mut disk = bytes.to_vec();
    if partitioned {
        disk = vec![0; PART as usize];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[446 + 4] = 7;
        disk[446 + 8..446 + 12].copy_from_slice(&((PART / 512) as u32).to_le_bytes());
        disk[446 + 12..446 + 16].copy_from_slice(&((bytes.len() / 512) as u32).to_le_bytes());
        disk.extend(bytes);
    }
    let start = if partitioned { PART } else { 0 };
    let disk = RawDisk::open(Arc::new(MemFile::from_bytes(&disk)), 512).await.unwrap();
    let mut volumes = free_space(&disk).await.unwrap();
    assert_eq!((volumes.len(), volumes[0].range.start), (1, start));
    let free = volumes.remove(0).free?;
    Ok(free.map(|ranges| {
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        assert!(ranges.iter().all(|range| range.start > start));
        ranges.iter().map(|range| range.end - range.start).sum()
    }))
}

#[tokio::test]
async fn what_a_volume_does_not_use_is_given_back_and_its_files_stay() {
    if !tools() {
        return;
    }
    for cluster in ["4096", "512", "65536"] {
        let dir = tempfile::tempdir().unwrap();
        let raw = volume(dir.path(), cluster);
        let bytes = std::fs::read(&raw).unwrap();
        let expected = free_in(&bytes, false).await.unwrap().unwrap();
        assert_eq!(free_in(&bytes, true).await, Ok(Some(expected)));
        // The files have 10.5 MB, the log and the rest some more.
        assert!((SIZE / 2..SIZE - 11 * MIB).contains(&expected), "{cluster}: {expected}");

        let file: Arc<dyn File> = Arc::new(MemFile::new());
        let options = vhdx::CreateOptions { block_size: 1 << 20, ..vhdx::CreateOptions::new(SIZE) };
        vhdx::create(file.clone(), &options).await.unwrap();
        let source = RawDisk::open(local(&raw, LocalOptions::read_only()), 512).await.unwrap();
        let disk: Arc<dyn Disk> = Arc::new(common::open(file.clone()).await);
        copy(Arc::new(source), disk.clone(), CopyOptions::default(), |_| {}).await.unwrap();
        disk.close().await.unwrap();
        drop(disk);
        // Closing a disk closes its file; this one is in memory and is used on.
        let given_up = ops::discard_free(file.clone(), Format::Vhdx, None).await.unwrap();
        assert_eq!(given_up, expected);
        let before = file.len().await.unwrap();
        let done = ops::compact(file.clone(), Format::Vhdx, None, |_| {}).await.unwrap();
        assert!(done.after + 16 * MIB < before, "{cluster}: {before}, then {done:?}");
        common::assert_clean(file.clone()).await;

        let after = dir.path().join("after");
        std::fs::write(&after, common::read_all(&common::open(file).await).await).unwrap();
        let name = after.to_str().unwrap();
        run("ntfsfix", &["-n", name]);
        for i in 0..5 {
            let out = run("ntfscat", &["-q", name, &format!("file-{i}")]).stdout;
            let original = std::fs::read(dir.path().join(format!("file-{i}"))).unwrap();
            assert!(out == original, "{cluster}: file-{i}");
        }
    }
}

#[tokio::test]
async fn what_is_not_certain_is_refused() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = volume(dir.path(), "4096");
    let good = std::fs::read(&raw).unwrap();
    assert!(free_in(&good, false).await.is_ok_and(|free| free.is_some()));
    let table = u64::from_le_bytes(good[48..56].try_into().unwrap()) as usize * 4096;
    let record = |number: usize| table + number * 1024;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    // Where the value of an attribute of a record begins, or the attribute itself.
    let attribute = |number: usize, kind: u32| {
        let mut at =
            record(number) + usize::from(u16::from_le_bytes([good[record(number) + 20], 0]));
        loop {
            let field = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap());
            assert_ne!(field(at), u32::MAX, "record {number} has no {kind:#x}");
            if field(at) == kind {
                return at;
            }
            at += field(at + 4) as usize;
        }
    };
    let volume = attribute(3, 0x70);
    let flags = volume + usize::from(good[volume + 20]) + 10;
    let bitmap = attribute(6, 0x80);
    for (name, bytes, expected) in [
        ("dirty", with(&|b| b[flags] |= 1), Refusal::NotClean),
        ("to be checked", with(&|b| b[flags + 1] |= 0x40), Refusal::NotClean),
        ("version 9", with(&|b| b[flags - 2] = 9), Refusal::Feature),
        ("a torn record", with(&|b| b[record(6) + 510] ^= 1), Refusal::Contradiction),
        ("no record", with(&|b| b[record(6)] = 0), Refusal::Contradiction),
        ("a compressed bitmap", with(&|b| b[bitmap + 12] = 1), Refusal::Feature),
        ("a short bitmap", with(&|b| b[bitmap + 48..bitmap + 64].fill(0)), Refusal::Contradiction),
        ("no table", with(&|b| b[48..56].fill(0xff)), Refusal::Contradiction),
        ("clusters of 3", with(&|b| b[13] = 3), Refusal::Contradiction),
    ] {
        assert_eq!(free_in(&bytes, false).await, Err(expected), "{name}");
    }
    // A volume that is longer than its partition.
    let short = free_in(&good[..good.len() - MIB as usize], false).await;
    assert_eq!(short, Err(Refusal::Contradiction));
    // Another file system, or none.
    assert_eq!(free_in(&with(&|b| b[3] = b'X'), true).await, Ok(None));
    // Wherever a bit is changed in these records: refused, or the answer is the same.
    let expected = free_in(&good, false).await;
    let mut rng = Rng::new(3);
    for _ in 0..60 {
        let at = record([0, 2, 3][rng.below(3) as usize]) + rng.below(1024) as usize;
        let bit = 1 << rng.below(8);
        let found = free_in(&with(&|b| b[at] ^= bit), false).await;
        assert!(found.is_err() || found == expected, "{at:#x}: {found:?}");
    }
}

/// Ended by the tools or not: what `ntfsfix` says is dirty is refused.
#[test]
fn a_volume_that_is_marked_dirty_is_refused() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = volume(dir.path(), "4096");
    // It schedules a check by Windows, as after an unclean end.
    let done = Command::new("ntfsfix").arg(&raw).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bytes = std::fs::read(&raw).unwrap();
    assert_eq!(runtime.block_on(free_in(&bytes, false)), Err(Refusal::NotClean));
}

/// A disk as people have it: the volume is a partition of a GUID partition table that sfdisk made.
#[tokio::test]
async fn a_volume_in_a_guid_partition_is_compacted_or_refused() {
    if !tools() || !have("sfdisk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = volume(dir.path(), "4096");
    let whole = dir.path().join("whole");
    let clean = std::fs::read(&raw).unwrap();
    std::fs::File::create(&whole).unwrap().set_len(PART + SIZE + MIB).unwrap();
    partition(&whole);
    let mut bytes = std::fs::read(&whole).unwrap();
    let expected = free_in(&clean, false).await.unwrap().unwrap();
    // A check is pending: nothing is given up, and the image is what it was.
    run("ntfsfix", &[raw.to_str().unwrap()]);
    for (volume, is_clean) in [(std::fs::read(&raw).unwrap(), false), (clean, true)] {
        bytes[PART as usize..(PART + SIZE) as usize].copy_from_slice(&volume);
        for format in [Format::Vhdx, Format::Vhd] {
            let file: Arc<dyn File> = Arc::new(MemFile::new());
            let size = bytes.len() as u64;
            if format == Format::Vhdx {
                let options =
                    vhdx::CreateOptions { block_size: 1 << 20, ..vhdx::CreateOptions::new(size) };
                vhdx::create(file.clone(), &options).await.unwrap();
            } else {
                let options = classic::CreateOptions {
                    block_size: 512 << 10,
                    ..classic::CreateOptions::new(size)
                };
                classic::create(file.clone(), &options).await.unwrap();
            }
            let disk = vhd::open_disk(file.clone(), format).await.unwrap();
            disk.write_at(0, &bytes).await.unwrap();
            disk.close().await.unwrap();
            let before = file.len().await.unwrap();
            let given_up = ops::discard_free(file.clone(), format, None).await;
            if !is_clean {
                let refused = Error::FileSystem { at: PART, refusal: Refusal::NotClean };
                assert_eq!(given_up.unwrap_err().to_string(), refused.to_string());
                let disk = vhd::open_disk(file, format).await.unwrap();
                assert!(common::read_all(&*disk).await == bytes, "{format}: given up");
                continue;
            }
            assert_eq!(given_up.unwrap(), expected);
            let done = ops::compact(file.clone(), format, None, |_| {}).await.unwrap();
            assert!(done.after + 16 * MIB < before, "{format}: {before}, then {done:?}");
            let disk = vhd::open_disk(file, format).await.unwrap();
            let now = common::read_all(&*disk).await;
            let (start, end) = (PART as usize, (PART + SIZE) as usize);
            assert!(now[..start] == bytes[..start] && now[end..] == bytes[end..], "the tables");
            let after = dir.path().join("after");
            std::fs::write(&after, &now[start..end]).unwrap();
            let name = after.to_str().unwrap();
            run("ntfsfix", &["-n", name]);
            for i in 0..5 {
                let out = run("ntfscat", &["-q", name, &format!("file-{i}")]).stdout;
                let original = std::fs::read(dir.path().join(format!("file-{i}"))).unwrap();
                assert!(out == original, "{format}: file-{i}");
            }
        }
    }
}

/// Gives a disk a GUID partition table with one partition at `PART`.
fn partition(disk: &Path) {
    use std::io::Write;
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(disk)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let table = format!("label: gpt\nstart={}, size={}\n", PART / 512, SIZE / 512);
    sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
}
