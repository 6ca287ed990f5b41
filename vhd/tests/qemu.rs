//! What qemu writes reads back right here, what is written here reads back right in qemu.

mod common;

use std::{path::Path, sync::Arc};

use block_io::{Disk, File, LocalOptions, RawDisk, testing::Rng};
use common::{
    MIB, assert_clean, have_qemu, local, open, open_read_only, qemu_check, qemu_img, same,
};
use tempfile::TempDir;
use vhd::{
    convert::{CopyOptions, copy},
    vhdx::{CreateOptions, create},
};

const SIZE: u64 = 150 * MIB + 512;

/// A raw file with data, holes and written zeros.
async fn raw_with_data(path: &Path, seed: u64) {
    let file = local(path, LocalOptions::create_new());
    file.set_len(SIZE).await.unwrap();
    let mut rng = Rng::new(seed);
    for _ in 0..40 {
        let len = [512, 4096, 70_000, 3 << 20][rng.below(4) as usize];
        let mut data = vec![0; len];
        if rng.chance(80) {
            rng.fill(&mut data);
        }
        let at = rng.below(SIZE - len as u64) / 512 * 512;
        file.write_at(at, &data).await.unwrap();
    }
    file.close().await.unwrap();
}

#[tokio::test]
async fn qemu_reads_what_is_written_here() {
    if !have_qemu() {
        return;
    }
    for (i, (block_mib, fixed)) in
        [(1, false), (2, false), (32, false), (256, false), (1, true), (8, true)]
            .into_iter()
            .enumerate()
    {
        let dir = TempDir::new().unwrap();
        let (raw, image) = (dir.path().join("raw"), dir.path().join("image.vhdx"));
        raw_with_data(&raw, i as u64).await;
        let file = local(&image, LocalOptions::create_new());
        let block_size = (block_mib * MIB) as u32;
        let options = CreateOptions { fixed, block_size, ..CreateOptions::new(SIZE) };
        create(file.clone(), &options).await.unwrap();
        let disk = Arc::new(open(file).await);
        let source = RawDisk::open(local(&raw, LocalOptions::read_only()), 512).await.unwrap();
        let options = CopyOptions { target_is_zero: true, ..Default::default() };
        let done = copy(Arc::new(source), disk.clone(), options, |_| {}).await.unwrap();
        assert_eq!((done.done, done.total), (SIZE, SIZE));
        assert!(done.written < SIZE / 2, "{done:?}");
        disk.close().await.unwrap();
        qemu_check(&image);
        let report = assert_clean(local(&image, LocalOptions::read_only())).await;
        assert_eq!(report.leaked, 0, "{report:?}");
        let (image, raw) = (image.to_str().unwrap(), raw.to_str().unwrap());
        qemu_img(&["compare", "-f", "vhdx", "-F", "raw", image, raw]);
        let back = dir.path().join("back");
        qemu_img(&["convert", "-f", "vhdx", "-O", "raw", image, back.to_str().unwrap()]);
        assert!(same(Path::new(raw), &back));
    }
}

#[tokio::test]
async fn what_qemu_writes_reads_here() {
    if !have_qemu() {
        return;
    }
    let kinds = [
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,block_size=8M",
        "subformat=dynamic,block_size=256M",
        "subformat=dynamic,block_size=2M,block_state_zero=off",
        "subformat=fixed,block_size=1M",
        "subformat=fixed,block_size=64M",
        "subformat=dynamic,block_size=1M,log_size=4M",
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let dir = TempDir::new().unwrap();
        let (raw, image) = (dir.path().join("raw"), dir.path().join("image.vhdx"));
        raw_with_data(&raw, 100 + i as u64).await;
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "vhdx",
            "-o",
            kind,
            raw.to_str().unwrap(),
            image.to_str().unwrap(),
        ]);
        assert_clean(local(&image, LocalOptions::read_only())).await;
        let disk = open_read_only(local(&image, LocalOptions::read_only())).await;
        let source = RawDisk::open(local(&raw, LocalOptions::read_only()), 512).await.unwrap();
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0;
        while at < SIZE {
            let n = (SIZE - at).min(1 << 20) as usize;
            disk.read_at(at, &mut a[..n]).await.unwrap();
            source.read_at(at, &mut b[..n]).await.unwrap();
            assert!(a[..n] == b[..n], "{kind}: differs in the MiB at {at:#x}");
            at += n as u64;
        }
        drop(disk);

        // Changed here and read again there.
        let disk = open(local(&image, LocalOptions::read_write())).await;
        let target = RawDisk::open(local(&raw, LocalOptions::read_write()), 512).await.unwrap();
        let mut rng = Rng::new(7);
        for _ in 0..30 {
            let len = 512 * (1 + rng.below(3000));
            let at = rng.below(SIZE - len) / 512 * 512;
            let mut data = vec![0; len as usize];
            rng.fill(&mut data);
            disk.write_at(at, &data).await.unwrap();
            target.write_at(at, &data).await.unwrap();
            if rng.chance(30) {
                let at = at / (4 * MIB) * (4 * MIB);
                let len = (8 * MIB).min(SIZE - at);
                disk.write_zeroes(at, len).await.unwrap();
                target.write_zeroes(at, len).await.unwrap();
            }
            if rng.chance(20) {
                disk.flush().await.unwrap();
            }
        }
        disk.close().await.unwrap();
        target.close().await.unwrap();
        qemu_check(&image);
        let (image, raw) = (image.to_str().unwrap(), raw.to_str().unwrap());
        qemu_img(&["compare", "-f", "vhdx", "-F", "raw", image, raw]);
    }
}
