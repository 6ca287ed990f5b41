//! QCOW2 images: what qemu writes reads here, what is written here reads and checks clean in qemu,
//! and damaged ones are an answer.

mod common;

use std::{path::Path, sync::Arc};

use block_io::{
    Disk, File, IoFuture, LocalOptions, RawDisk,
    testing::{MemFile, Rng},
};
use common::{MIB, have, have_qemu, local, qemu_img, read_all, run};
use proptest::prelude::*;
use tempfile::TempDir;
use vhd::{
    Format,
    chain::{self, Files},
    convert::{CopyOptions, copy},
    qcow2::{CreateOptions, Qcow2, Writer, check, info},
};

const SIZE: u64 = 23 * MIB + 512;

struct Local;

impl Files for Local {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move {
            let file = block_io::LocalFile::open(location, &LocalOptions::read_only())?;
            Ok(Arc::new(file) as Arc<dyn File>)
        })
    }

    fn trusts_raw(&self) -> bool {
        true
    }
}

/// A raw file with data that compresses a little, holes and written zeros.
fn raw_with_data(path: &Path, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let mut rng = Rng::new(seed);
    for _ in 0..30 {
        let len = [512, 4096, 70_000, 1 << 20][rng.below(4) as usize];
        let at = (rng.below(SIZE - len as u64) / 512 * 512) as usize;
        for piece in bytes[at..at + len].chunks_mut(64) {
            rng.fill(&mut piece[..32]);
            piece[32..].fill(rng.below(3) as u8);
        }
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn open_chain(path: &Path) -> Arc<dyn Disk> {
    let file = local(path, LocalOptions::read_only());
    chain::open_disk(file, text(path), Format::Qcow2, &Local).await.unwrap()
}

/// The disk's bytes, without what fills up its last sector.
async fn bytes_of(path: &Path) -> Vec<u8> {
    let disk = open_chain(path).await;
    let bytes = read_all(&*disk).await;
    let size = disk.geometry().size;
    let ranges = disk.allocated_ranges(0..size).await.unwrap();
    let mut at = 0;
    for range in ranges.into_iter().chain(std::iter::once(size..size)) {
        assert!(bytes[at..range.start as usize].iter().all(|b| *b == 0), "a hole with data");
        at = range.end as usize;
    }
    bytes
}

#[tokio::test]
async fn what_qemu_writes_reads_here() {
    if !have_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (raw, image) = (dir.path().join("raw"), dir.path().join("image.qcow2"));
    let kinds: [&[&str]; 10] = [
        &["-o", "compat=1.1"],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "cluster_size=4k,refcount_bits=1"],
        &["-o", "refcount_bits=64,lazy_refcounts=on"],
        &["-o", "preallocation=metadata"],
        &["-c"],
        &["-c", "-o", "cluster_size=4k"],
        &["-c", "-o", "compression_type=zstd"],
    ];
    for (seed, kind) in kinds.into_iter().enumerate() {
        let expected = raw_with_data(&raw, seed as u64);
        let args = [&["convert", "-f", "raw", "-O", "qcow2"], kind, &[text(&raw), text(&image)]];
        qemu_img(&args.concat());
        assert!(bytes_of(&image).await == expected, "{kind:?}");
        let report = check(local(&image, LocalOptions::read_only())).await.unwrap();
        assert!(report.is_clean() && report.warnings == 0, "{kind:?}: {report:#?}");
    }
}

#[tokio::test]
async fn what_is_written_here_reads_in_qemu() {
    if !have_qemu() {
        return;
    }
    for (seed, cluster_size) in [512, 4096, 64 << 10, 2 << 20].into_iter().enumerate() {
        let dir = TempDir::new().unwrap();
        let (raw, image) = (dir.path().join("raw"), dir.path().join("image.qcow2"));
        let expected = raw_with_data(&raw, 50 + seed as u64);
        let source = RawDisk::open(local(&raw, LocalOptions::read_only()), 512).await.unwrap();
        let options = CreateOptions { cluster_size, ..CreateOptions::new(SIZE) };
        let file = local(&image, LocalOptions::create_new());
        let target = Arc::new(Writer::new(file, options).await.unwrap());
        let options = CopyOptions { target_is_zero: true, ..Default::default() };
        copy(Arc::new(source), target.clone(), options, |_| {}).await.unwrap();
        target.close().await.unwrap();
        let said = qemu_img(&["check", "-f", "qcow2", text(&image)]);
        assert!(said.contains("No errors were found"), "{cluster_size}: {said}");
        qemu_img(&["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&image)]);
        assert!(bytes_of(&image).await == expected);
        let report = check(local(&image, LocalOptions::read_only())).await.unwrap();
        assert!(report.is_clean() && report.warnings == 0, "{cluster_size}: {report:#?}");
    }
}

#[tokio::test]
async fn backing_files_are_followed_whatever_their_format() {
    if !have_qemu() || !have("qemu-io") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut expected = raw_with_data(&at("base.raw"), 7);
    let base = at("base.raw");
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", text(&base), text(&at("base.vmdk"))]);
    for (format, name) in [("raw", "base.raw"), ("vmdk", "base.vmdk")] {
        let (middle, top) = (at("middle.qcow2"), at("top.qcow2"));
        let create = ["create", "-q", "-f", "qcow2", "-b", name, "-F", format];
        qemu_img(&[&create[..], &[text(&middle)]].concat());
        let io = |image: &Path, step: &str| drop(run("qemu-io", &["-c", step, text(image)]));
        io(&middle, "write -P 5 1M 200k");
        io(&middle, "write -z 3M 1M");
        // A full name, and longer than what is below.
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&middle)];
        qemu_img(&[&create[..], &[text(&top), "30M"]].concat());
        io(&top, "write -P 6 1100k 64k");
        expected.resize(30 << 20, 0);
        expected[1 << 20..][..200 << 10].fill(5);
        expected[3 << 20..4 << 20].fill(0);
        expected[1100 << 10..][..64 << 10].fill(6);
        assert!(bytes_of(&top).await == expected, "over {format}");
        expected = std::fs::read(&base).unwrap();
        std::fs::remove_file(&middle).unwrap();
        std::fs::remove_file(&top).unwrap();
    }
}

#[tokio::test]
async fn backing_files_that_cannot_be_followed_are_named() {
    if !have_qemu() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image.qcow2");
    for (backing, expected) in [
        ("gone.raw", "gone.raw is not there"),
        ("image.qcow2", "has no end"),
        ("nbd://127.0.0.1:1/x", "backing file nbd://"),
        ("json:{\"driver\":\"null-co\"}", "backing file json:"),
    ] {
        let format = if backing == "image.qcow2" { "qcow2" } else { "raw" };
        let create = ["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format];
        qemu_img(&[&create[..], &[text(&image), "1M"]].concat());
        let file = local(&image, LocalOptions::read_only());
        let error = chain::open_disk(file, text(&image), Format::Qcow2, &Local).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{backing}: {error}");
    }
}

#[tokio::test]
async fn snapshots_are_listed_and_left_alone() {
    if !have_qemu() || !have("qemu-io") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "8M"]);
    for (name, byte) in [("before", 1), ("after the change", 2)] {
        run("qemu-io", &["-c", &format!("write -P {byte} 1M 1M"), text(&image)]);
        qemu_img(&["snapshot", "-c", name, text(&image)]);
    }
    run("qemu-io", &["-c", "write -P 3 1M 512k", text(&image)]);
    let found = info(local(&image, LocalOptions::read_only())).await.unwrap();
    let names: Vec<_> = found.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
    assert_eq!(names, ["before", "after the change"]);
    let bytes = bytes_of(&image).await;
    assert_eq!((bytes[1 << 20], bytes[(1 << 20) + (600 << 10)]), (3, 2));
    let report = check(local(&image, LocalOptions::read_only())).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

#[tokio::test]
async fn what_is_not_known_is_refused() {
    let file = Arc::new(MemFile::new());
    let writer = Writer::new(file.clone(), CreateOptions::new(MIB)).await.unwrap();
    writer.close().await.unwrap();
    for (bit, expected) in [
        (0, None),
        (1, None),
        (2, Some("external data file")),
        (4, Some("extended L2")),
        (5, Some("0x20")),
        (63, Some("0x8000000000000000")),
    ] {
        let mut bytes = file.to_bytes();
        bytes[72..80].copy_from_slice(&(1u64 << bit).to_be_bytes());
        let opened = Qcow2::open(Arc::new(MemFile::from_bytes(&bytes)), None).await;
        match (opened, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected)),
            (opened, _) => panic!("bit {bit}: {opened:?}"),
        }
    }
}

#[tokio::test]
async fn an_image_that_was_not_closed_is_none() {
    let file = Arc::new(MemFile::new());
    let writer = Writer::new(file.clone(), CreateOptions::new(MIB)).await.unwrap();
    writer.write_at(0, &[1; 4096]).await.unwrap();
    writer.flush().await.unwrap();
    let error = Qcow2::open(file, None).await.unwrap_err();
    assert!(error.to_string().contains("QCOW2 header at offset 0x0: wrong signature"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A writer is an array of bytes, before and after it is closed.
    #[test]
    fn writes_are_as_in_memory(
        steps in prop::collection::vec((0u64..2000, 1u64..300, any::<u8>(), 0..4), 1..30),
        bits in 9u32..17,
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let size = 2000 * 512;
            let file = Arc::new(MemFile::new());
            let options = CreateOptions { cluster_size: 1 << bits, ..CreateOptions::new(size) };
            let writer = Writer::new(file.clone(), options).await.unwrap();
            let mut model = vec![0; size as usize];
            for (at, len, byte, what) in steps {
                let (at, len) = (at * 512, len.min(2000 - at) * 512);
                let part = at as usize..(at + len) as usize;
                if what == 0 {
                    writer.write_zeroes(at, len).await.unwrap();
                    model[part].fill(0);
                } else {
                    writer.write_at(at, &vec![byte; len as usize]).await.unwrap();
                    model[part].fill(byte);
                }
            }
            prop_assert!(read_all(&writer).await == model);
            writer.close().await.unwrap();
            let report = check(file.clone()).await.unwrap();
            prop_assert!(report.is_clean() && report.warnings == 0, "{:#?}", report);
            let disk = Qcow2::open(file, None).await.unwrap();
            prop_assert!(read_all(&disk).await == model);
            Ok(())
        })?;
    }

    /// Whatever is changed in an image, all there is to do with it comes to an end.
    #[test]
    fn noise_is_an_answer(
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let file = Arc::new(MemFile::new());
            let options = CreateOptions { cluster_size: 512, ..CreateOptions::new(128 << 10) };
            let writer = Writer::new(file.clone(), options).await.unwrap();
            writer.write_at(0, &[1; 40 << 10]).await.unwrap();
            writer.close().await.unwrap();
            let mut bytes = file.to_bytes();
            for (at, byte) in noise {
                // Half of the noise where it tells most.
                let within = if byte % 2 == 0 { bytes.len() } else { 2048 };
                bytes[at.index(within)] = byte;
            }
            bytes.truncate(bytes.len() - cut.index(4096));
            let file: Arc<dyn File> = Arc::new(MemFile::from_bytes(&bytes));
            let _ = check(file.clone()).await;
            let _ = info(file.clone()).await;
            if let Ok(disk) = Qcow2::open(file, None).await {
                let size = disk.geometry().size.min(1 << 20);
                let mut buf = vec![0; size as usize];
                let _ = disk.read_at(0, &mut buf).await;
                let _ = disk.allocated_ranges(0..size).await;
            }
        });
    }
}
