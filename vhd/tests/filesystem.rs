//! What a file system does not use is given up, and nothing else: seen with e2fsprogs.

mod common;
#[path = "common/family.rs"]
mod family;

use std::{path::Path, process::Command, sync::Arc};

use block_io::{File, LocalOptions, RawDisk, testing::Rng};
use common::{MIB, local, run};
use family::{Family, Shape};
use vhd::{
    Error, Format,
    convert::{CopyOptions, copy},
    ops::{self, Refusal, free_space},
};

const SIZE: u64 = 96 * MIB;

fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("-V").output().is_ok();
    if !found {
        test_support::skip(test_support::Need::Programs.because(format_args!("no {tool} here")));
    }
    found
}

/// A file system with files, of which some were deleted.
fn file_system(dir: &Path, kind: &str, options: &str) -> std::path::PathBuf {
    let (folder, raw) = (dir.join("files"), dir.join("raw"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut rng = Rng::new(9);
    for i in 0..12 {
        let mut data = vec![0; 3 << 20];
        rng.fill(&mut data);
        std::fs::write(folder.join(format!("file-{i}")), data).unwrap();
    }
    std::fs::File::create(&raw).unwrap().set_len(SIZE).unwrap();
    let (folder, raw_name) = (folder.to_str().unwrap(), raw.to_str().unwrap());
    run("mke2fs", &["-q", "-F", "-t", kind, "-O", options, "-d", folder, raw_name]);
    for i in (0..12).step_by(2) {
        run("debugfs", &["-w", "-R", &format!("rm file-{i}"), raw_name]);
    }
    // As a mount and an orderly end leave it.
    let _ = Command::new("e2fsck").args(["-fy", raw_name]).output().unwrap();
    raw
}

async fn into_image(raw: &Path, format: Format) -> Family {
    let family = Family::new(format);
    let block = if format == Format::Vhdx { MIB } else { MIB / 2 };
    family.make(Shape { size: SIZE, block, sector: 512, fixed: false }).await;
    let source = RawDisk::open(local(raw, LocalOptions::read_only()), 512).await.unwrap();
    let disk = family.open(0).await.unwrap();
    copy(Arc::new(source), disk.clone(), CopyOptions::default(), |_| {}).await.unwrap();
    disk.close().await.unwrap();
    family
}

#[tokio::test]
async fn deleted_files_are_given_back_and_the_others_stay() {
    if !["mke2fs", "debugfs", "e2fsck"].into_iter().all(have) {
        return;
    }
    for (format, kind, options) in [
        (Format::Vhdx, "ext4", "metadata_csum,64bit"),
        (Format::Vhd, "ext4", "^metadata_csum,uninit_bg"),
        (Format::Vhdx, "ext2", "^resize_inode"),
        (Format::Vhdx, "ext3", "^sparse_super,^resize_inode"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let raw = file_system(dir.path(), kind, options);
        let family = into_image(&raw, format).await;
        let before = family.file(0).len().await.unwrap();
        let free = ops::discard_free(family.file(0), format, None).await.unwrap();
        // Half of 36 MiB, and what was never used.
        assert!((18 * MIB..SIZE).contains(&free), "{kind} {options}: {free}");
        let done = ops::compact(family.file(0), format, None, |_| {}).await.unwrap();
        assert!(done.after + 8 * MIB < before, "{kind} {options}: {before}, then {done:?}");
        assert!(family.check(0).await.is_clean());

        let after = dir.path().join("after");
        std::fs::write(&after, family.read(0).await.unwrap()).unwrap();
        let name = after.to_str().unwrap();
        run("e2fsck", &["-fn", name]);
        for i in (1..12).step_by(2) {
            let out = dir.path().join("out");
            let dump = format!("dump file-{i} {}", out.display());
            run("debugfs", &["-R", &dump, name]);
            let original = dir.path().join(format!("files/file-{i}"));
            assert!(common::same(&out, &original), "{kind} {options}: file-{i}");
        }
    }
}

/// Changes the superblock of a file system without checksums and looks for free space.
async fn changed(raw: &Path, at: usize, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    let file = Arc::new(block_io::testing::MemFile::from_bytes(&std::fs::read(raw).unwrap()));
    file.write_at(1024 + at as u64, bytes).await.unwrap();
    let disk = RawDisk::open(file, 512).await.unwrap();
    let mut volumes = free_space(&disk).await.unwrap();
    assert_eq!((volumes.len(), volumes[0].range.clone()), (1, 0..SIZE));
    volumes.remove(0).free.map(|free| free.map(|ranges| ranges.len()))
}

#[tokio::test]
async fn what_is_not_certain_is_refused() {
    if !["mke2fs", "debugfs", "e2fsck"].into_iter().all(have) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = file_system(dir.path(), "ext4", "^metadata_csum");
    assert!(changed(&raw, 0, &[]).await.unwrap().is_some_and(|ranges| ranges > 0));
    let journal = changed(&raw, 96, &[0x46]).await;
    assert_eq!(journal, Err(Refusal::NotClean), "a journal that waits");
    assert_eq!(changed(&raw, 58, &[0]).await, Err(Refusal::NotClean), "mounted");
    assert_eq!(changed(&raw, 58, &[3]).await, Err(Refusal::NotClean), "errors");
    assert_eq!(changed(&raw, 98, &[0x80]).await, Err(Refusal::Feature));
    assert_eq!(changed(&raw, 101, &[0x02]).await, Err(Refusal::Feature), "clusters");
    assert_eq!(changed(&raw, 7, &[9]).await, Err(Refusal::Contradiction), "longer than the disk");
    assert_eq!(changed(&raw, 56, &[0]).await, Ok(None), "no file system");
    // The count of free blocks of the first group.
    let block = 1024 << std::fs::read(&raw).unwrap()[1024 + 24];
    let first = if block == 1024 { 1024 } else { 0 };
    let counted = changed(&raw, first + block - 1024 + 12, &[1]).await;
    assert_eq!(counted, Err(Refusal::Contradiction), "a bitmap with another count");

    let family = into_image(&raw, Format::Vhdx).await;
    let disk = family.open(0).await.unwrap();
    let mut sector = [0; 512];
    disk.read_at(1024, &mut sector).await.unwrap();
    sector[58] = 0;
    disk.write_at(1024, &sector).await.unwrap();
    disk.close().await.unwrap();
    let before = family.read(0).await.unwrap();
    let error = ops::discard_free(family.file(0), Format::Vhdx, None).await.unwrap_err();
    let refused = matches!(error, Error::FileSystem { at: 0, refusal: Refusal::NotClean });
    assert!(refused, "{error}");
    assert!(family.read(0).await.unwrap() == before);
}

#[tokio::test]
async fn file_systems_in_partitions_are_found() {
    if !["mke2fs", "debugfs", "e2fsck"].into_iter().all(have) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = std::fs::read(file_system(dir.path(), "ext4", "metadata_csum")).unwrap();
    let mut bytes = vec![0; 1 << 20];
    bytes.extend(raw);
    // One entry of a master boot record: Linux, from 1 MiB on.
    bytes[446 + 4] = 0x83;
    bytes[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    bytes[446 + 12..446 + 16].copy_from_slice(&((SIZE / 512) as u32).to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let file = Arc::new(block_io::testing::MemFile::from_bytes(&bytes));
    let disk = RawDisk::open(file, 512).await.unwrap();
    let volumes = free_space(&disk).await.unwrap();
    assert_eq!(volumes.len(), 1);
    assert_eq!(volumes[0].range, MIB..MIB + SIZE);
    let free = volumes[0].free.clone().unwrap().unwrap();
    assert!(free.iter().all(|range| range.start > MIB && range.end <= MIB + SIZE));
    assert!(free.iter().map(|range| range.end - range.start).sum::<u64>() > 18 * MIB);
}
