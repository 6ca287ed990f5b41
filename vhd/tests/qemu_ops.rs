//! What each operation on an image leaves is accepted and read the same by programs nobody here
//! wrote: qemu-img, and libvhdi for differencing images.

mod common;

use std::{path::Path, sync::Arc};

use block_io::{Disk, File, IoFuture, LocalFile, LocalOptions, testing::Rng};
use common::{MIB, have_qemu, libvhdi_sum, local, qemu_check, qemu_img, read_all, sha256};
use vhd::{
    Format,
    chain::{self, Files},
    classic,
    ops::{self, ResizeOptions},
    vhdx,
};

const SIZE: u64 = 40 * MIB;

/// Local files by path.
struct Local;

impl Files for Local {
    fn open<'a>(&'a self, location: &'a str) -> IoFuture<'a, Arc<dyn File>> {
        Box::pin(async move {
            let file = LocalFile::open(location, &LocalOptions::read_only())?;
            Ok(Arc::new(file) as Arc<dyn File>)
        })
    }
}

async fn open(path: &str, format: Format, read_only: bool) -> Arc<dyn Disk> {
    let options = if read_only { LocalOptions::read_only() } else { LocalOptions::read_write() };
    chain::open_disk(local(path, options), path, format, &Local).await.unwrap()
}

/// Writes in many places, and zeros over whole blocks.
async fn fill(path: &str, format: Format, seed: u64) {
    let disk = open(path, format, false).await;
    let size = disk.geometry().size;
    let mut rng = Rng::new(seed);
    for _ in 0..14 {
        let mut data = vec![0; 512 * (1 + rng.below(3000)) as usize];
        rng.fill(&mut data);
        let at = rng.below(size - data.len() as u64) / 512 * 512;
        disk.write_at(at, &data).await.unwrap();
    }
    disk.close().await.unwrap();
}

/// Makes whole blocks zeros.
async fn zero(path: &str, format: Format) {
    let disk = open(path, format, false).await;
    disk.write_zeroes(8 * MIB, 4 * MIB).await.unwrap();
    disk.close().await.unwrap();
}

async fn make(path: &str, format: Format, fixed: bool) {
    let file = local(path, LocalOptions::create_new());
    match format {
        Format::Vhdx => {
            let options = vhdx::CreateOptions {
                fixed,
                block_size: 1 << 20,
                ..vhdx::CreateOptions::new(SIZE)
            };
            vhdx::create(file.clone(), &options).await.unwrap();
        }
        _ => {
            let options = classic::CreateOptions { fixed, ..classic::CreateOptions::new(SIZE) };
            classic::create(file.clone(), &options).await.unwrap();
        }
    }
    file.close().await.unwrap();
    fill(path, format, u64::from(fixed)).await;
    zero(path, format).await;
}

/// A child of `parent` in the same folder.
async fn child(path: &str, parent: &str, format: Format) {
    let name = Path::new(parent).file_name().unwrap().to_str().unwrap().to_owned();
    let (file, below) =
        (local(path, LocalOptions::create_new()), local(parent, LocalOptions::read_only()));
    match format {
        Format::Vhdx => {
            let about = vhdx::info(below).await.unwrap();
            let options = vhdx::CreateOptions::child(&about, &name);
            vhdx::create(file.clone(), &options).await.unwrap();
        }
        _ => {
            let about = classic::info(below).await.unwrap();
            let options = classic::CreateOptions::child(&about, &name);
            classic::create(file.clone(), &options).await.unwrap();
        }
    }
    file.close().await.unwrap();
}

/// qemu reads this from an image without a parent, and finds nothing wrong with it.
fn qemu_agrees(path: &str, format: Format, expected: &[u8], what: &str) {
    let raw = format!("{path}.raw");
    std::fs::write(&raw, expected).unwrap();
    if format == Format::Vhdx {
        qemu_check(Path::new(path));
    }
    let name = if format == Format::Vhdx { "vhdx" } else { "vpc" };
    let said = qemu_img(&["compare", "-f", name, "-F", "raw", path, &raw]);
    let same = said.contains("identical") && !said.contains("arning");
    assert!(same, "{format} {what}: {said}");
    std::fs::remove_file(raw).unwrap();
}

#[tokio::test]
async fn qemu_reads_what_operations_leave() {
    if !have_qemu() {
        return;
    }
    for (format, fixed) in
        [(Format::Vhdx, false), (Format::Vhd, false), (Format::Vhdx, true), (Format::Vhd, true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk").display().to_string();
        make(&path, format, fixed).await;
        let mut expected = read_all(&*open(&path, format, true).await).await;
        let file = || local(&path, LocalOptions::read_write());
        let options = || ResizeOptions { force: true, ..ResizeOptions::default() };
        let large = if fixed { 60 * MIB } else { 70 * MIB + 512 };
        for size in [SIZE + 512, large, 21 * MIB + 1024] {
            ops::resize(file(), format, size, options()).await.unwrap();
            expected.resize(size as usize, 0);
            qemu_agrees(&path, format, &expected, "resize");
        }
        if !fixed {
            ops::resize(file(), format, 300 * 1024 * MIB, options()).await.unwrap();
            if format == Format::Vhdx {
                qemu_check(Path::new(&path));
            }
            ops::resize(file(), format, 21 * MIB, options()).await.unwrap();
            expected.truncate(21 << 20);
            qemu_agrees(&path, format, &expected, "resize, the table moved");
            ops::compact(file(), format, None, |_| {}).await.unwrap();
            qemu_agrees(&path, format, &expected, "compact");
        }
        ops::trim(file(), format, true, |_| {}).await.unwrap();
        qemu_agrees(&path, format, &expected, "trim");
        let what = ops::Set {
            disk_id: Some(vhd::Guid::random()),
            physical_sector: (format == Format::Vhdx).then_some(512),
        };
        ops::set(file(), format, what).await.unwrap();
        qemu_agrees(&path, format, &expected, "set");
        let copy = dir.path().join("copy").display().to_string();
        let target = local(&copy, LocalOptions::create_new());
        ops::clone(file(), target, format, None, |_| {}).await.unwrap();
        qemu_agrees(&copy, format, &expected, "clone");
        if !fixed {
            // The copy of what is doubled is lost.
            let sick = file();
            let at = if format == Format::Vhdx { 64 << 10 } else { 0 };
            sick.write_at(at, &[0; 512]).await.unwrap();
            let done = ops::repair(sick, format).await.unwrap();
            assert!(!done.repairs.is_empty() && done.report.is_clean(), "{done:?}");
            qemu_agrees(&path, format, &expected, "repair");
            fill(&path, format, 5).await;
            expected = read_all(&*open(&path, format, true).await).await;
            qemu_agrees(&path, format, &expected, "writes after them");
        }
    }
}

#[tokio::test]
async fn merged_and_rebased_images_read_the_same_elsewhere() {
    for format in [Format::Vhdx, Format::Vhd] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (base, one, two, other) = (path("base"), path("one"), path("two"), path("other"));
        make(&base, format, false).await;
        child(&one, &base, format).await;
        fill(&one, format, 21).await;
        child(&two, &one, format).await;
        fill(&two, format, 22).await;
        if format == Format::Vhd {
            // libvhdi looks below a block that a differencing VHDX says is zeros.
            zero(&two, format).await;
        }
        make(&other, format, false).await;
        fill(&other, format, 33).await;
        let expected = read_all(&*open(&two, format, true).await).await;
        let raw = path("raw");
        std::fs::write(&raw, &expected).unwrap();
        let sum = sha256(Path::new(&raw));
        let agrees = |chain: &[&str], what: &str| {
            if let Some(theirs) = libvhdi_sum(chain) {
                assert_eq!(theirs, sum, "{format}: {what}");
            }
        };

        agrees(&[&two, &one, &base], "the chain");
        // The newest onto another base: it takes over what differs.
        let pair = (open(&one, format, true).await, open(&other, format, true).await);
        let (file, parent) =
            (local(&two, LocalOptions::read_write()), local(&other, LocalOptions::read_only()));
        ops::rebase(file, parent, format, "other", pair, |_| {}).await.unwrap();
        assert!(read_all(&*open(&two, format, true).await).await == expected);
        agrees(&[&two, &other], "rebase");

        let below = None;
        let (file, parent) =
            (local(&two, LocalOptions::read_write()), local(&other, LocalOptions::read_write()));
        ops::merge(file, parent, format, below, |_| {}).await.unwrap();
        assert!(read_all(&*open(&other, format, true).await).await == expected);
        agrees(&[&other], "merge");
        agrees(&[&two, &other], "the merged child");
        if have_qemu() {
            qemu_agrees(&other, format, &expected, "merge");
        }
    }
}
