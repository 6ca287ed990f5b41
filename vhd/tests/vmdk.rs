//! VMDK images of every kind that qemu writes read here, and damaged ones are an answer.

mod common;

use std::{path::Path, sync::Arc};

use block_io::{
    Disk, File, IoFuture, LocalOptions,
    testing::{MemFile, Rng},
};
use common::{MIB, have_qemu, local, qemu_img, read_all};
use proptest::prelude::*;
use tempfile::TempDir;
use vhd::{
    Format,
    chain::{self, Files},
    vmdk::{Vmdk, check, info},
};

struct Local;

impl Files for Local {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move {
            let file = block_io::LocalFile::open(location, &LocalOptions::read_only())?;
            Ok(Arc::new(file) as Arc<dyn File>)
        })
    }
}

fn raw_with_data(path: &Path, size: u64, seed: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut rng = Rng::new(seed);
    for _ in 0..25 {
        let len = [512, 4096, 70_000, 1 << 20][rng.below(4) as usize];
        let at = rng.below(size - len as u64) / 512 * 512;
        let mut data = vec![0; len];
        for piece in data.chunks_mut(64) {
            let half = piece.len() / 2;
            rng.fill(&mut piece[..half]);
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &data, at).unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn every_kind_reads_as_qemu_wrote_it() {
    if !have_qemu() {
        return;
    }
    // The last grain is not whole.
    let size = 19 * MIB + 1024;
    for (seed, kind) in [
        "monolithicSparse",
        "streamOptimized",
        "monolithicFlat",
        "twoGbMaxExtentFlat",
        "twoGbMaxExtentSparse",
    ]
    .into_iter()
    .enumerate()
    {
        let dir = TempDir::new().unwrap();
        let (raw, image) = (dir.path().join("raw"), dir.path().join("image.vmdk"));
        raw_with_data(&raw, size, seed as u64);
        let kind_is = format!("subformat={kind}");
        let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", &kind_is, text(&raw), text(&image)];
        qemu_img(&args);
        let file = local(&image, LocalOptions::read_only());
        let found = info(file.clone()).await.unwrap();
        assert_eq!((found.create_type.as_str(), found.disk_size), (kind, size));
        let disk = chain::open_disk(file.clone(), text(&image), Format::Vmdk, &Local);
        let disk = disk.await.unwrap();
        let bytes = read_all(&*disk).await;
        assert!(bytes == std::fs::read(&raw).unwrap(), "{kind}");
        let ranges = disk.allocated_ranges(0..size).await.unwrap();
        let stored: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(stored < size, "{kind}: {ranges:?}");
        let mut at = 0;
        for range in ranges.into_iter().chain(std::iter::once(size..size)) {
            assert!(bytes[at..range.start as usize].iter().all(|b| *b == 0), "{kind}");
            at = range.end as usize;
        }
        let report = check(file).await.unwrap();
        assert!(report.is_clean(), "{kind}: {report:#?}");
    }
}

#[tokio::test]
async fn a_disk_in_several_files_reads_over_their_borders() {
    if !have_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (raw, image) = (dir.path().join("raw"), dir.path().join("image.vmdk"));
    let size = 5 << 30;
    let file = std::fs::File::create(&raw).unwrap();
    file.set_len(size).unwrap();
    let mut data = vec![0; 3 << 20];
    Rng::new(1).fill(&mut data);
    for border in [2u64 << 30, 4 << 30] {
        std::os::unix::fs::FileExt::write_all_at(&file, &data, border - (1 << 20)).unwrap();
    }
    for kind in ["twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
        let kind_is = format!("subformat={kind}");
        let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", &kind_is, text(&raw), text(&image)];
        qemu_img(&args);
        let file = local(&image, LocalOptions::read_only());
        assert_eq!(info(file.clone()).await.unwrap().extents.len(), 3);
        let disk = chain::open_disk(file, text(&image), Format::Vmdk, &Local).await.unwrap();
        for border in [2u64 << 30, 4 << 30] {
            let mut found = vec![0; data.len()];
            disk.read_at(border - (1 << 20), &mut found).await.unwrap();
            assert!(found == data, "{kind} at {border}");
        }
        std::fs::remove_file(&image).unwrap();
    }
}

#[tokio::test]
async fn extents_elsewhere_are_not_followed() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("secret"), [1; 512]).unwrap();
    let below = dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let image = below.join("image.vmdk");
    for (name, expected) in
        [("../secret", "outside"), ("/etc/hostname", "outside"), ("gone", "gone is not there")]
    {
        let descriptor = format!("# Disk DescriptorFile\nRW 1 FLAT \"{name}\" 0\n");
        std::fs::write(&image, descriptor).unwrap();
        let file = local(&image, LocalOptions::read_only());
        let opened = chain::open_disk(file, text(&image), Format::Vmdk, &Local).await;
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// Tables that lie over each other, and all of whose entries name one grain, are work for a moment:
/// each place of the file is read once.
#[tokio::test]
async fn a_check_takes_the_time_of_the_file_not_of_what_it_claims() {
    const TABLES: usize = 2000;
    let sectors = TABLES as u64 * 65_536;
    let mut bytes = vec![0; 4 << 20];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, b"KDMV");
    put(4, &1u32.to_le_bytes());
    put(8, &3u32.to_le_bytes());
    for (at, number) in [(12, sectors), (20, 128), (28, 1), (36, 20), (48, 21), (56, 26), (64, 128)]
    {
        put(at, &number.to_le_bytes());
    }
    put(44, &512u32.to_le_bytes());
    put(73, b"\n \r\n");
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"monolithicSparse\"\nRW {sectors} SPARSE \"disk.vmdk\"\n"
    );
    put(512, text.as_bytes());
    for table in 0..TABLES {
        put(26 * 512 + table * 4, &(64 + table as u32).to_le_bytes());
        put((64 + table) * 512, &4000u32.to_le_bytes().repeat(512));
    }
    let report = check(Arc::new(MemFile::from_bytes(&bytes))).await.unwrap();
    let grains = TABLES as u64 * 512;
    assert_eq!((report.allocated_blocks, report.errors), (grains, grains - 1));
}

#[test]
fn noise_is_an_answer() {
    if !have_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let raw = dir.path().join("raw");
    raw_with_data(&raw, 2 * MIB, 3);
    let mut images = Vec::new();
    for kind in ["monolithicSparse", "streamOptimized"] {
        let image = dir.path().join(kind);
        let kind_is = format!("subformat={kind}");
        let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", &kind_is, text(&raw), text(&image)];
        qemu_img(&args);
        images.push(std::fs::read(&image).unwrap());
    }
    let index = any::<prop::sample::Index>;
    let noise = prop::collection::vec((index(), any::<u8>()), 1..8);
    let config = ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&(0..2usize, noise, index()), |(which, noise, cut)| {
        let mut bytes = images[which].clone();
        for (at, byte) in noise {
            let within = if byte % 2 == 0 { bytes.len() } else { 512.min(bytes.len()) };
            bytes[at.index(within)] = byte;
        }
        bytes.truncate(bytes.len() - cut.index(2048));
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let file: Arc<dyn File> = Arc::new(MemFile::from_bytes(&bytes));
            let _ = check(file.clone()).await;
            let _ = info(file.clone()).await;
            if let Ok(disk) = Vmdk::open(file).await {
                let size = disk.geometry().size.min(4 << 20) / 512 * 512;
                let mut buf = vec![0; size as usize];
                let _ = disk.read_at(0, &mut buf).await;
                let _ = disk.allocated_ranges(0..size).await;
            }
        });
        Ok(())
    });
    result.unwrap();
}
