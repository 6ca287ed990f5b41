//! The VHD format: what qemu writes reads back right and the other way round; images of other makers; damage is named.

mod common;

use std::{path::Path, sync::Arc};

use block_io::{
    Disk, File, IoFuture, LocalFile, LocalOptions, RawDisk,
    testing::{MemFile, Rng},
};
use common::{MIB, have_qemu, local, qemu_img, read_all, same, sample, sha256};
use proptest::prelude::*;
use vhd::{
    Error, Fault, Structure,
    chain::{self, Files},
    classic::{CreateOptions, OpenOptions, Vhd, check, create, footer::Kind, info},
    convert::{CopyOptions, copy},
};

async fn image(options: &CreateOptions) -> Arc<MemFile> {
    let file = Arc::new(MemFile::new());
    create(file.clone(), options).await.unwrap();
    file
}

/// Opens a chain, the newest image last; all others for reading only.
async fn open(chain: &[Arc<MemFile>]) -> Vhd {
    let mut parent: Option<Arc<dyn Disk>> = None;
    let (last, below) = chain.split_last().unwrap();
    for file in below {
        let options = OpenOptions { parent: parent.take(), read_only: true };
        parent = Some(Arc::new(Vhd::open(file.clone(), options).await.unwrap()));
    }
    let options = OpenOptions { parent, read_only: false };
    Vhd::open(last.clone(), options).await.unwrap()
}

async fn assert_clean(file: Arc<dyn File>) {
    let report = check(file).await.unwrap();
    assert!(report.is_clean() && report.warnings == 0 && report.leaked == 0, "{report:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    /// Whatever is in the structures, an image opens or says what is wrong, and what it then
    /// reads is an answer or an error.
    #[test]
    fn damage_is_no_panic(
        changes in proptest::collection::vec((0usize..4096, any::<u8>()), 1..6), mend: bool,
        cut in 0usize..3000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let file = image(&CreateOptions::new(8 * MIB)).await;
            let disk = open(std::slice::from_ref(&file)).await;
            disk.write_at(0, &[7; 4096]).await.unwrap();
            disk.close().await.unwrap();
            let mut bytes = file.to_bytes();
            for (at, value) in changes {
                bytes[at] = value;
            }
            if mend {
                for (range, at) in [(0..512, 64), (512..1536, 36)] {
                    let part = &mut bytes[range];
                    part[at..at + 4].fill(0);
                    let sum = !part.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
                    part[at..at + 4].copy_from_slice(&sum.to_be_bytes());
                }
                // The copy counts only without the footer.
                let end = bytes.len() - 512;
                bytes[end..].fill(0);
            }
            bytes.truncate(bytes.len() - cut / 512 * 512);
            let file = Arc::new(MemFile::from_bytes(&bytes));
            let report = check(file.clone()).await.unwrap();
            match Vhd::open(file.clone(), OpenOptions::default()).await {
                Ok(disk) => {
                    assert!(report.is_clean(), "{report:?}");
                    let _ = disk.read_at(0, &mut [0; 512]).await;
                    let _ = disk.write_at(512, &[0; 512]).await;
                    let _ = disk.close().await;
                }
                Err(Error::Damaged(_)) => assert!(!report.is_clean(), "{report:?}"),
                Err(Error::Differencing { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        });
    }
}

/// A raw file with data, holes and written zeros.
async fn raw_with_data(path: &Path, size: u64, seed: u64) {
    let file = local(path, LocalOptions::create_new());
    file.set_len(size).await.unwrap();
    let mut rng = Rng::new(seed);
    for _ in 0..30 {
        let mut data = vec![0; [512, 4096, 70_000, 3 << 20][rng.below(4) as usize]];
        if rng.chance(80) {
            rng.fill(&mut data);
        }
        let at = rng.below(size - data.len() as u64) / 512 * 512;
        file.write_at(at, &data).await.unwrap();
    }
    file.close().await.unwrap();
}

#[tokio::test]
async fn qemu_reads_what_is_written_here_and_the_other_way_round() {
    if !have_qemu() {
        return;
    }
    // A size that no geometry gives, so that a reader who believes the geometry is found out.
    const SIZE: u64 = 41 * MIB + 512;
    for (i, (block, fixed)) in
        [(512 << 10, false), (2 << 20, false), (32 << 20, false), (2 << 20, true)]
            .into_iter()
            .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        raw_with_data(&path("raw"), SIZE, i as u64).await;
        let file = local(path("ours.vhd"), LocalOptions::create_new());
        let options = CreateOptions { block_size: block, fixed, ..CreateOptions::new(SIZE) };
        create(file.clone(), &options).await.unwrap();
        let disk = Arc::new(Vhd::open(file, OpenOptions::default()).await.unwrap());
        let source = local(path("raw"), LocalOptions::read_only());
        let source = RawDisk::open(source, 512).await.unwrap();
        let options = CopyOptions { target_is_zero: true, ..CopyOptions::default() };
        copy(Arc::new(source), disk.clone(), options, |_| {}).await.unwrap();
        disk.close().await.unwrap();
        let name = |name: &str| path(name).to_str().unwrap().to_owned();
        qemu_img(&["compare", "-f", "vpc", "-F", "raw", &name("ours.vhd"), &name("raw")]);
        qemu_img(&["convert", "-f", "vpc", "-O", "raw", &name("ours.vhd"), &name("back")]);
        assert!(same(&path("raw"), &path("back")));

        let kind = format!("subformat={},force_size=on", if fixed { "fixed" } else { "dynamic" });
        let (raw, theirs) = (name("raw"), name("theirs.vhd"));
        qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", &kind, &raw, &theirs]);
        let file = local(path("theirs.vhd"), LocalOptions::read_write());
        let disk = Vhd::open(file, OpenOptions::default()).await.unwrap();
        assert_eq!(disk.geometry().size, SIZE);
        assert!(read_all(&disk).await == std::fs::read(path("raw")).unwrap());
        // Changed here and read again there.
        let target = local(path("raw"), LocalOptions::read_write());
        let target = RawDisk::open(target, 512).await.unwrap();
        let mut rng = Rng::new(7);
        for _ in 0..20 {
            let mut data = vec![0; 512 * (1 + rng.below(3000)) as usize];
            let at = rng.below(SIZE - data.len() as u64) / 512 * 512;
            rng.fill(&mut data);
            disk.write_at(at, &data).await.unwrap();
            target.write_at(at, &data).await.unwrap();
        }
        disk.close().await.unwrap();
        target.close().await.unwrap();
        qemu_img(&["compare", "-f", "vpc", "-F", "raw", &theirs, &raw]);
    }
}

#[tokio::test]
async fn images_of_other_makers_read_as_qemu_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    for (name, creator) in [
        ("hyperv2012r2-dynamic.vhd.bz2", "win"),
        ("d2v-zerofilled.vhd.bz2", "d2v"),
        ("ext2.vhd.gz", "qemu"),
    ] {
        let Some(path) = sample(name, dir.path()) else { return };
        let file = local(&path, LocalOptions::read_only());
        assert!(check(file.clone()).await.unwrap().is_clean());
        let about = info(file.clone()).await.unwrap();
        assert_eq!(about.creator, creator, "{name}");
        let disk = Vhd::open(file, OpenOptions::default()).await.unwrap();
        if !have_qemu() || about.disk_size > 4 << 30 {
            continue;
        }
        let raw = dir.path().join("raw");
        let (path, raw_name) = (path.to_str().unwrap(), raw.to_str().unwrap());
        qemu_img(&["convert", "-f", "vpc", "-O", "raw", path, raw_name]);
        let theirs = local(&raw, LocalOptions::read_only());
        let len = theirs.len().await.unwrap().min(about.disk_size);
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0;
        while at < len {
            let n = (len - at).min(1 << 20) as usize;
            disk.read_at(at, &mut a[..n]).await.unwrap();
            block_io::read_exact_at(&*theirs, at, &mut b[..n]).await.unwrap();
            assert!(a[..n] == b[..n], "{name}: differs in the MiB at {at:#x}");
            at += n as u64;
        }
    }
}

#[tokio::test]
async fn an_image_without_its_parent_and_one_with_wrong_checksums_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let attempt = async |path: &Path| {
        let file = local(path, LocalOptions::read_only());
        let about = info(file.clone()).await;
        (about, Vhd::open(file, OpenOptions::default()).await.unwrap_err())
    };
    let Some(path) = sample("fat-differential.vhd.gz", dir.path()) else { return };
    let (about, error) = attempt(&path).await;
    let about = about.unwrap();
    assert_eq!(about.kind, Kind::Differencing);
    let (_, places) = about.parent.unwrap();
    assert!(
        places.relative[0].ends_with(".vhd") && places.absolute[0].contains(":\\"),
        "{places:?}"
    );
    assert!(matches!(&error, Error::Differencing { parent } if *parent == places.relative[0]));
    for name in ["image.vhd.gz", "image-differential.vhd.gz"] {
        let Some(path) = sample(name, dir.path()) else { return };
        let (about, error) = attempt(&path).await;
        let wrong = |error: &Error| match error {
            Error::Damaged(damage) => {
                damage.structure == Structure::Footer
                    && matches!(damage.fault, Fault::Checksum { .. })
            }
            _ => false,
        };
        assert!(wrong(&error) && about.as_ref().is_err_and(wrong), "{name}: {error}");
    }
}

#[tokio::test]
async fn structures_that_overlap_or_lie_outside_are_named() {
    let file = image(&CreateOptions::new(8 * MIB)).await;
    let disk = open(std::slice::from_ref(&file)).await;
    disk.write_at(0, &vec![7; 4 << 20]).await.unwrap();
    disk.close().await.unwrap();
    let good = file.to_bytes();
    let refused = async |entry: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[1536 + 4 * entry..][..4].copy_from_slice(&value.to_be_bytes());
        let error = Vhd::open(Arc::new(MemFile::from_bytes(&bytes)), OpenOptions::default()).await;
        match error.unwrap_err() {
            Error::Damaged(damage) => damage,
            other => panic!("{other}"),
        }
    };
    let first = u32::from_be_bytes(good[1536..1540].try_into().unwrap());
    let damage = refused(2, first + 8).await;
    assert!(matches!(damage.fault, Fault::Overlap { .. }) && damage.offset == 1544, "{damage}");
    let damage = refused(0, 0).await;
    assert!(matches!(damage.fault, Fault::Overlap { .. }) && damage.offset == 1536, "{damage}");
    let damage = refused(3, 0x7fff_ffff).await;
    assert!(matches!(damage.fault, Fault::EntryOffset { index: 3, .. }), "{damage}");
}

#[tokio::test]
async fn a_lost_footer_is_taken_from_its_copy_and_written_again() {
    let file = image(&CreateOptions::new(8 * MIB)).await;
    let disk = open(std::slice::from_ref(&file)).await;
    disk.write_at(MIB, &[9; 512]).await.unwrap();
    disk.close().await.unwrap();
    let len = file.len().await.unwrap();
    file.set_len(len - 512).await.unwrap();
    // What a crash left behind the last block must not show in the next one.
    file.write_at(len - 512, &vec![0xcc; 3 << 20]).await.unwrap();
    assert!(info(file.clone()).await.unwrap().lost_footer);
    let disk = open(std::slice::from_ref(&file)).await;
    disk.write_at(4 * MIB, &[8; 512]).await.unwrap();
    disk.close().await.unwrap();
    assert_clean(file.clone()).await;
    let bytes = read_all(&open(&[file]).await).await;
    assert!(bytes[1 << 20..][..512].iter().all(|b| *b == 9));
    assert!(bytes[4 << 20..][..512].iter().all(|b| *b == 8));
    assert!(bytes[(4 << 20) + 512..].iter().all(|b| *b == 0));
}

/// A bitmap that another program wrote: some sectors are here, the others the parent's.
#[tokio::test]
async fn sector_bitmaps_say_what_is_here_and_what_is_below() {
    let parent = image(&CreateOptions::new(4 * MIB)).await;
    let disk = open(std::slice::from_ref(&parent)).await;
    disk.write_at(0, &vec![1; 4 << 20]).await.unwrap();
    disk.close().await.unwrap();
    let options = CreateOptions::child(&info(parent.clone()).await.unwrap(), "parent.vhd");
    let child = image(&options).await;
    let chain = [parent, child.clone()];
    let disk = open(&chain).await;
    disk.write_at(0, &vec![2; 2 << 20]).await.unwrap();
    disk.close().await.unwrap();
    let bytes = child.to_bytes();
    let at = u64::from(u32::from_be_bytes(bytes[1536..1540].try_into().unwrap())) * 512;
    let mut bits = [0u8; 512];
    let mut model = vec![1u8; 4 << 20];
    for sector in [0usize, 7, 8, 1000, 4095] {
        bits[sector / 8] |= 0x80 >> (sector % 8);
        model[sector * 512..][..512].fill(2);
    }
    child.write_at(at, &bits).await.unwrap();
    let disk = open(&chain).await;
    assert!(read_all(&disk).await == model);
    disk.write_at(512, &[3; 512]).await.unwrap();
    model[512..1024].fill(3);
    disk.close().await.unwrap();
    assert!(read_all(&open(&chain).await).await == model);
}

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

/// Parents are found by their paths; libvhdi reads the same from a chain.
#[tokio::test]
async fn libvhdi_reads_the_same_from_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = |level: usize| dir.path().join(format!("level-{level}.vhd")).display().to_string();
    let mut rng = Rng::new(5);
    let size = 30 * MIB;
    for level in 0..3 {
        let file = local(path(level), LocalOptions::create_new());
        let options = if level == 0 {
            CreateOptions::new(size)
        } else {
            let below = local(path(level - 1), LocalOptions::read_only());
            CreateOptions::child(&info(below).await.unwrap(), &format!("level-{}.vhd", level - 1))
        };
        create(file.clone(), &options).await.unwrap();
        let disk = chain::open_vhd(file, &path(level), &Local).await.unwrap();
        for _ in 0..8 {
            let mut data = vec![0; 512 * (1 + rng.below(3000)) as usize];
            rng.fill(&mut data);
            let at = rng.below(size - data.len() as u64) / 512 * 512;
            disk.write_at(at, &data).await.unwrap();
        }
        disk.close().await.unwrap();
    }
    let file = local(path(2), LocalOptions::read_only());
    let disk = chain::open_vhd(file, &path(2), &Local).await.unwrap();
    let raw = dir.path().join("raw");
    std::fs::write(&raw, read_all(&disk).await).unwrap();
    if let Some(sum) = common::libvhdi_sum(&[&path(2), &path(1), &path(0)]) {
        assert_eq!(sum, sha256(&raw));
    }
    // Another image in the parent's place.
    let other = local(path(0), LocalOptions { create: true, ..LocalOptions::default() });
    create(other, &CreateOptions::new(size)).await.unwrap();
    let file = local(path(2), LocalOptions::read_only());
    let error = chain::open_vhd(file, &path(2), &Local).await.unwrap_err();
    assert!(matches!(&error, Error::ParentChanged { parent, .. } if *parent == path(0)), "{error}");
}
