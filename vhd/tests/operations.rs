//! What operations on images promise beyond their outcome: readers during a merge, refusals.

mod common;
#[path = "common/family.rs"]
mod family;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use block_io::{
    File,
    testing::{CrashFile, MemFile, Rng},
};
use common::MIB;
use family::{Family, Shape, block};
use vhd::{
    Error, Format, chain,
    ops::{self, ResizeOptions},
    vhdx,
};

/// A chain of three with data in each.
async fn three(format: Format, seed: u64) -> Family {
    let mut rng = Rng::new(seed);
    let family = Family::new(format);
    let shape = Shape { size: 9 * MIB + 512, block: block(format), sector: 512, fixed: false };
    family.make(shape).await;
    family.fill(0, &mut rng, 6).await;
    family.grow(0, 1, block(format) << 1, None).await;
    family.fill(1, &mut rng, 5).await;
    family.grow(1, 2, block(format), None).await;
    family.fill(2, &mut rng, 8).await;
    family
}

/// The same bytes in a file that lets other tasks run at each step.
async fn yielding(family: &Family, level: usize, seed: u64) {
    let file = family.file(level);
    let mut bytes = vec![0; file.len().await.unwrap() as usize];
    file.read_at(0, &mut bytes).await.unwrap();
    family.put(level, Arc::new(CrashFile::new(&MemFile::from_bytes(&bytes), seed)));
}

/// Opens the newest image of a chain for reading only.
async fn open(family: &Family) -> vhd::Result<Arc<dyn block_io::Disk>> {
    let (file, name) = (family.file(2), family.name(2));
    Ok(match family.format {
        Format::Vhdx => {
            let options = vhdx::OpenOptions::read_only();
            Arc::new(chain::open(file, &name, family, options).await?)
        }
        _ => chain::open_disk(file, &name, family.format, family).await?,
    })
}

#[tokio::test]
async fn readers_of_a_child_read_the_same_while_it_is_merged() {
    for format in [Format::Vhdx, Format::Vhd] {
        let mut reads = (0, 0);
        for seed in 0..40 {
            let family = three(format, seed).await;
            let expected = family.read(2).await.unwrap();
            yielding(&family, 1, seed).await;
            yielding(&family, 2, seed + 100).await;
            let before = open(&family).await.unwrap();
            let below = family.open(0).await.unwrap();
            let done = AtomicBool::new(false);
            let merge = async {
                let (child, parent) = (family.file(2), family.file(1));
                let outcome = ops::merge(child, parent, format, Some(below), |_| {}).await;
                done.store(true, Ordering::SeqCst);
                outcome.unwrap();
            };
            let look = async {
                let mut rng = Rng::new(seed);
                let mut buf = vec![0; 1 << 16];
                let mut place = || rng.below(expected.len() as u64 / 512 - 128) * 512;
                let (mut old, mut new) = (0, 0);
                while !done.load(Ordering::SeqCst) {
                    let at = place();
                    before.read_at(at, &mut buf).await.unwrap();
                    assert!(buf == expected[at as usize..][..buf.len()], "{format} {seed}: {at}");
                    old += 1;
                    let now = open(&family).await.unwrap();
                    let at = place();
                    now.read_at(at, &mut buf).await.unwrap();
                    assert!(buf == expected[at as usize..][..buf.len()], "{format} {seed}: {at}");
                    new += 1;
                }
                (old, new)
            };
            let ((), (old, new)) = tokio::join!(merge, look);
            reads = (reads.0 + old, reads.1 + new);
            assert!(family.read(1).await.unwrap() == expected);
            assert!(family.read(2).await.unwrap() == expected);
        }
        assert!(reads.0 > 50 && reads.1 > 50, "{format}: {reads:?} reads during merges");
    }
}

#[tokio::test]
async fn what_is_not_the_parent_is_refused_and_left_alone() {
    for format in [Format::Vhdx, Format::Vhd] {
        let family = three(format, 1).await;
        let expected = [0, 1, 2].map(|level| family.read(level));
        let expected = futures_util::future::join_all(expected).await;
        let (top, base) = (family.file(2), family.file(0));
        let error = ops::merge(top, base.clone(), format, None, |_| {}).await.unwrap_err();
        assert!(matches!(error, Error::ParentChanged { .. }), "{error}");
        let error = ops::merge(base.clone(), base.clone(), format, None, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("has no parent"), "{error}");
        let error = ops::relink(base.clone(), base, format, "x").await.unwrap_err();
        assert!(error.to_string().contains("no parent to be exchanged"), "{error}");
        for (level, expected) in expected.into_iter().enumerate() {
            assert!(family.read(level).await.unwrap() == expected.unwrap());
        }
    }
}

#[tokio::test]
async fn a_read_only_file_is_not_changed() {
    for format in [Format::Vhdx, Format::Vhd] {
        let family = three(format, 2).await;
        let mut bytes = vec![0; family.file(0).len().await.unwrap() as usize];
        family.file(0).read_at(0, &mut bytes).await.unwrap();
        let frozen: Arc<dyn File> = Arc::new(MemFile::from_bytes(&bytes).read_only_copy());
        let quiet = |_: ops::Progress| {};
        let outcomes = [
            ops::resize(frozen.clone(), format, 20 * MIB, ResizeOptions::default()).await,
            ops::compact(frozen.clone(), format, None, quiet).await.map(drop),
            ops::trim(frozen.clone(), format, false, quiet).await.map(drop),
            ops::repair(frozen.clone(), format).await.map(drop),
            ops::set(
                frozen.clone(),
                format,
                ops::Set { disk_id: Some(vhd::Guid::random()), physical_sector: None },
            )
            .await,
        ];
        for outcome in outcomes {
            let read_only = matches!(outcome, Err(Error::Storage(block_io::Error::ReadOnly)));
            assert!(read_only, "{format}: {outcome:?}");
        }
    }
}

/// A change of the content of a parent is noticed by its children; a change that nobody can read is
/// not one.
#[tokio::test]
async fn only_what_can_be_read_renews_the_identity_of_the_content() {
    let family = three(Format::Vhdx, 3).await;
    let id = async |level| vhdx::identity(family.file(level)).await.unwrap().data_write_id;
    let before = id(1).await;
    let below = Some(family.open(0).await.unwrap());
    let quiet = |_: ops::Progress| {};
    ops::compact(family.file(1), Format::Vhdx, below.clone(), quiet).await.unwrap();
    ops::trim(family.file(1), Format::Vhdx, true, quiet).await.unwrap();
    ops::repair(family.file(1), Format::Vhdx).await.unwrap();
    ops::relink(family.file(1), family.file(0), Format::Vhdx, &family.name(0)).await.unwrap();
    assert_eq!(id(1).await, before);
    family.read(2).await.unwrap();
    let options = ResizeOptions { parent: below, ..ResizeOptions::default() };
    ops::resize(family.file(1), Format::Vhdx, 30 * MIB, options).await.unwrap();
    assert_ne!(id(1).await, before);
    let error = family.read(2).await.unwrap_err();
    assert!(matches!(error, Error::ParentChanged { .. }), "{error}");
}

#[tokio::test]
async fn trim_gives_back_what_is_unused_and_zeros_if_asked() {
    for format in [Format::Vhdx, Format::Vhd] {
        let family = three(format, 4).await;
        let disk = family.open(2).await.unwrap();
        disk.write_at(0, &vec![0; 1 << 20]).await.unwrap();
        disk.close().await.unwrap();
        let (file, expected) = (family.file(2), family.read(2).await.unwrap());
        let stored = async || {
            let len = file.len().await.unwrap();
            let ranges = file.allocated_ranges(0..len).await.unwrap();
            ranges.into_iter().map(|range| range.end - range.start).sum::<u64>()
        };
        let before = stored().await;
        ops::trim(file.clone(), format, false, |_| {}).await.unwrap();
        let between = stored().await;
        assert!(between <= before, "{format}");
        let punched = ops::trim(file.clone(), format, true, |_| {}).await.unwrap();
        let after = stored().await;
        assert!(after + MIB - 8192 <= between && punched >= between - after, "{format}: {after}");
        assert!(family.read(2).await.unwrap() == expected);
    }
}
