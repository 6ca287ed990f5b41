//! Images made by Windows read back right, a dirty log included.

mod common;

use std::{path::Path, sync::Arc};

use block_io::{Disk, LocalOptions, RawDisk};
use common::{assert_clean, local, open, open_read_only, sample, sha256};
use tempfile::TempDir;
use vhd::convert::{CopyOptions, copy};

/// Converts the image to a raw file beside it.
async fn to_raw(disk: Arc<dyn Disk>, raw: &Path) {
    let file = local(raw, LocalOptions::create_new());
    block_io::File::set_len(&*file, disk.geometry().size).await.unwrap();
    let target = Arc::new(RawDisk::open(file, 512).await.unwrap());
    let options = CopyOptions { target_is_zero: true, ..Default::default() };
    copy(disk, target.clone(), options, |_| {}).await.unwrap();
    target.close().await.unwrap();
}

const REPLAYED: &str = "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e";

#[tokio::test]
async fn a_dirty_log_is_replayed_in_memory_when_read_only() {
    let dir = TempDir::new().unwrap();
    let Some(path) = sample("vhdx-log-replay.vhdx.gz", dir.path()) else { return };
    let before = sha256(&path);
    let file = local(&path, LocalOptions::read_only());
    assert!(assert_clean(file.clone()).await.log_pending);
    let disk = Arc::new(open_read_only(file).await);
    let raw = dir.path().join("raw");
    to_raw(disk, &raw).await;
    assert_eq!(sha256(&raw), REPLAYED);
    assert_eq!(sha256(&path), before, "a read-only open wrote to the file");
}

#[tokio::test]
async fn a_dirty_log_is_replayed_into_the_file() {
    let dir = TempDir::new().unwrap();
    let Some(path) = sample("vhdx-log-replay.vhdx.gz", dir.path()) else { return };
    let disk = open(local(&path, LocalOptions::read_write())).await;
    disk.close().await.unwrap();
    let file = local(&path, LocalOptions::read_only());
    assert!(!assert_clean(file.clone()).await.log_pending);
    let disk = Arc::new(open_read_only(file).await);
    let raw = dir.path().join("raw");
    to_raw(disk, &raw).await;
    assert_eq!(sha256(&raw), REPLAYED);
    if common::have_qemu() {
        common::qemu_check(&path);
    }
}

#[tokio::test]
async fn clean_images_read_as_qemu_reads_them() {
    if !common::have_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    for name in ["btrfs.vhdx.gz", "swap.vhdx.gz", "iotest-dynamic-1G.vhdx.bz2"] {
        let Some(path) = sample(name, dir.path()) else { return };
        let file = local(&path, LocalOptions::read_only());
        assert_clean(file.clone()).await;
        let disk = Arc::new(open_read_only(file).await);
        let raw = dir.path().join("raw");
        to_raw(disk, &raw).await;
        let (path, raw_name) = (path.to_str().unwrap(), raw.to_str().unwrap());
        common::qemu_img(&["compare", "-f", "vhdx", "-F", "raw", path, raw_name]);
        std::fs::remove_file(&raw).unwrap();
    }
}

#[tokio::test]
async fn the_iotest_image_has_its_known_bytes() {
    let dir = TempDir::new().unwrap();
    let Some(path) = sample("iotest-dynamic-1G.vhdx.bz2", dir.path()) else { return };
    let disk = open_read_only(local(&path, LocalOptions::read_only())).await;
    let mut buf = vec![0; 1 << 20];
    for (mib, byte) in [(0, 0xa5), (32, 0xa5), (33, 0x96), (65, 0x96), (66, 0), (1023, 0)] {
        disk.read_at(mib << 20, &mut buf).await.unwrap();
        assert!(buf.iter().all(|b| *b == byte), "MiB {mib}");
    }
}
