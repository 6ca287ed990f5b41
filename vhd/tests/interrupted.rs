//! Every operation on an image, cut off at any point by a crash that loses and tears what was not
//! flushed: the image opens, passes the check and reads as before or as after; the same operation
//! again completes.

mod common;
#[path = "common/family.rs"]
mod family;

use std::{ops::Range, sync::Arc};

use block_io::{
    Disk, File,
    testing::{CrashFile, MemFile, Rng, Survival},
};
use common::MIB;
use family::{Family, Shape, block};
use vhd::{
    Format, chain,
    ops::{self, Level, ResizeOptions},
};

/// Crash points of each operation and format.
const POINTS: u64 = 1000;
/// Images on which these are tried.
const VARIANTS: u64 = 8;

/// What is done to a chain of three levels, of which 2 is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    /// The table must move, in both formats.
    GrowFar,
    Grow,
    /// Below it is a longer disk, which must not show.
    GrowOver,
    Shrink,
    /// A fixed image, both ways.
    GrowFixed,
    ShrinkFixed,
    Merge,
    MergeInto,
    Rebase,
    Relink,
    Compact,
    Set,
}

impl Op {
    /// The level that is looked at, and those that are changed.
    fn levels(self) -> (usize, Range<usize>) {
        match self {
            Self::GrowFixed | Self::ShrinkFixed => (0, 0..1),
            Self::Grow | Self::GrowFar | Self::GrowOver | Self::Shrink | Self::Compact => (2, 2..3),
            Self::Rebase | Self::Relink | Self::Set => (2, 2..3),
            Self::Merge => (2, 1..3),
            Self::MergeInto => (2, 0..3),
        }
    }

    fn size(self, format: Format) -> Option<u64> {
        Some(match (self, format) {
            (Self::Grow, _) => SIZE + 2 * MIB + 512,
            (Self::GrowOver, _) => SIZE + MIB,
            (Self::GrowFar, Format::Vhdx) => 140_000 * MIB,
            (Self::GrowFar, _) => 2_000 * MIB,
            (Self::Shrink, _) => SIZE - 2 * MIB - 1024,
            (Self::GrowFixed, _) => SIZE + 2 * MIB,
            (Self::ShrinkFixed, _) => SIZE - MIB - 512,
            _ => return None,
        })
    }
}

const SIZE: u64 = 5 * MIB + 512;

async fn apply(op: Op, family: &Family) -> vhd::Result<()> {
    let format = family.format;
    let below = async |level: usize| {
        let disk: vhd::Result<Option<Arc<dyn Disk>>> = match level {
            0 => Ok(None),
            level => frozen(family, level - 1).await.map(Some),
        };
        disk
    };
    let quiet = |_: ops::Progress| {};
    let (top, _) = op.levels();
    match op {
        Op::Grow | Op::GrowFar | Op::GrowOver | Op::Shrink | Op::GrowFixed | Op::ShrinkFixed => {
            let parent = below(top).await?;
            let options = ResizeOptions { force: true, parent, ..ResizeOptions::default() };
            let size = op.size(format).unwrap();
            ops::resize(family.file(top), format, size, options).await
        }
        Op::Merge => {
            let (child, parent) = (family.file(2), family.file(1));
            ops::merge(child, parent, format, below(1).await?, quiet).await
        }
        Op::MergeInto => {
            // After an interrupted call the chain may have become shorter.
            let mut locations = Vec::new();
            match format {
                Format::Vhdx => {
                    let links = chain::links(family.file(2), &family.name(2), family).await?;
                    locations.extend(links.into_iter().map(|link| link.location));
                }
                _ => {
                    let images = chain::vhd_images(family.file(2), &family.name(2), family).await?;
                    locations.extend(images.into_iter().map(|(location, _)| location));
                }
            }
            let level = |location: String| {
                let file = family.files.lock().unwrap()[&location].clone();
                Level { location, file }
            };
            let levels: Vec<Level> = locations.into_iter().map(level).collect();
            ops::merge_into(&levels, format, None, quiet).await
        }
        Op::Rebase => {
            let (old, new) = (parent_of(family, 2).await?, frozen(family, 3).await?);
            let (child, parent) = (family.file(2), family.file(3));
            let name = family.name(3);
            ops::rebase(child, parent, format, &name, (old, new), quiet).await.map(drop)
        }
        Op::Relink => {
            let (child, parent) = (family.file(2), family.file(4));
            ops::relink(child, parent, format, &family.name(4)).await
        }
        Op::Set => {
            let physical_sector = (format == Format::Vhdx).then_some(512);
            let disk_id = Some("01234567-89ab-cdef-0123-456789abcdef".parse().unwrap());
            let what = ops::Set { physical_sector, disk_id };
            ops::set(family.file(2), format, what).await
        }
        Op::Compact => ops::compact(family.file(2), format, below(2).await?, quiet).await.map(drop),
    }
}

/// A level as a disk that is only read.
async fn frozen(family: &Family, level: usize) -> vhd::Result<Arc<dyn Disk>> {
    match family.format {
        Format::Vhdx => {
            let options = vhd::vhdx::OpenOptions::read_only();
            let (file, name) = (family.file(level), family.name(level));
            Ok(Arc::new(chain::open(file, &name, family, options).await?))
        }
        _ => family.open(level).await,
    }
}

/// Where the parent of a level is.
async fn location_below(family: &Family, level: usize) -> vhd::Result<String> {
    let (file, name) = (family.file(level), family.name(level));
    Ok(match family.format {
        Format::Vhdx => chain::links(file, &name, family).await?.remove(1).location,
        _ => chain::vhd_images(file, &name, family).await?.remove(1).0,
    })
}

/// The disk below a level, whichever its parent is by now.
async fn parent_of(family: &Family, level: usize) -> vhd::Result<Arc<dyn Disk>> {
    let location = location_below(family, level).await?;
    let level = (0..5).find(|level| family.name(*level) == location).unwrap();
    frozen(family, level).await
}

/// Levels 0 to 2; 3 is another base, 4 a copy of level 1 by content.
async fn base(op: Op, format: Format, seed: u64) -> Family {
    let mut rng = Rng::new(seed);
    let family = Family::new(format);
    let fixed = matches!(op, Op::GrowFixed | Op::ShrinkFixed);
    let shape = Shape { size: SIZE, block: block(format), sector: 512, fixed };
    family.make(shape).await;
    family.fill(0, &mut rng, 4).await;
    family.grow(0, 1, block(format), None).await;
    family.fill(1, &mut rng, 3).await;
    let longer = (seed % 3 == 1 && matches!(op, Op::Merge | Op::MergeInto)).then_some(SIZE + MIB);
    family.grow(1, 2, block(format) << (seed % 2), longer).await;
    family.fill(2, &mut rng, 5).await;
    if seed % 3 == 2 && matches!(op, Op::Merge | Op::MergeInto) {
        let options = ResizeOptions { force: true, ..ResizeOptions::default() };
        let parent = Some(frozen(&family, 1).await.unwrap());
        let options = ResizeOptions { parent, ..options };
        ops::resize(family.file(2), format, SIZE - MIB, options).await.unwrap();
    }
    if op == Op::GrowOver {
        let parent = Some(frozen(&family, 1).await.unwrap());
        let options = ResizeOptions { force: true, parent, ..ResizeOptions::default() };
        let size = SIZE - (2 + seed % 3) * MIB - 512 * (seed % 2);
        ops::resize(family.file(2), format, size, options).await.unwrap();
    }
    if op == Op::Compact {
        // Blocks that read as zeros or as the parent, among others, and a table behind them.
        let parent = Some(frozen(&family, 1).await.unwrap());
        let options = ResizeOptions { parent, ..ResizeOptions::default() };
        ops::resize(family.file(2), format, 2_000 * MIB, options).await.unwrap();
        let disk = family.open(2).await.unwrap();
        let unit = block(format) as usize;
        for block in [7usize, 9, 30, 700] {
            let mut data = vec![0; unit];
            rng.fill(&mut data[..4096]);
            disk.write_at((block * unit) as u64, &data).await.unwrap();
        }
        for block in [7usize, 30] {
            disk.write_at((block * unit) as u64, &vec![0; unit]).await.unwrap();
        }
        disk.close().await.unwrap();
    }
    if op == Op::Rebase {
        let other = Family::new(format);
        other.make(shape).await;
        other.fill(0, &mut rng, 4).await;
        family.put(3, other.file(0));
    }
    if op == Op::Relink {
        family.put(4, Arc::new(copy(&family.file(1)).await));
    }
    family
}

/// The bytes of a file in memory of its own.
async fn copy(file: &Arc<dyn File>) -> MemFile {
    let target = MemFile::new();
    let len = file.len().await.unwrap();
    target.set_len(len).await.unwrap();
    for range in file.allocated_ranges(0..len).await.unwrap() {
        let mut data = vec![0; (range.end - range.start) as usize];
        file.read_at(range.start, &mut data).await.unwrap();
        target.write_at(range.start, &data).await.unwrap();
    }
    target
}

/// The same files with some of them by others; returns those too.
fn crashing(family: &Family, at: &[(usize, MemFile)], seed: u64) -> (Family, Vec<Arc<CrashFile>>) {
    let copy_of = Family::new(family.format);
    copy_of.files.lock().unwrap().clone_from(&family.files.lock().unwrap());
    let mut files = Vec::new();
    for (level, original) in at {
        let file = Arc::new(CrashFile::new(original, seed + *level as u64));
        copy_of.put(*level, file.clone());
        files.push(file);
    }
    (copy_of, files)
}

/// Reads the start of a disk, and a few places far behind, in pieces; returns its size. A disk of
/// gigabytes is not read whole.
async fn pieces(family: &Family, level: usize, mut seen: impl FnMut(&[u8])) -> vhd::Result<u64> {
    let disk = frozen(family, level).await?;
    let size = disk.geometry().size;
    let mut buf = vec![0xee; 128 << 10];
    let start = 0..size.min(SIZE + 5 * MIB / 2);
    let far = [15 * MIB, 350 * MIB, 700 * MIB, 1999 * MIB].map(|at| at..at + (64 << 10));
    for range in std::iter::once(start).chain(far).filter(|range| range.end <= size) {
        let mut at = range.start;
        while at < range.end {
            let n = (range.end - at).min(buf.len() as u64) as usize;
            disk.read_at(at, &mut buf[..n]).await?;
            seen(&buf[..n]);
            at += n as u64;
        }
    }
    Ok(size)
}

async fn content(family: &Family, level: usize) -> vhd::Result<(u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    let size = pieces(family, level, |piece| bytes.extend_from_slice(piece)).await?;
    Ok((size, bytes))
}

/// The size and a checksum of what [`content`] reads.
async fn sum(family: &Family, level: usize) -> vhd::Result<(u64, u32)> {
    let mut sum = 0;
    let size = pieces(family, level, |piece| sum = crc32c::crc32c_append(sum, piece)).await?;
    Ok((size, sum))
}

/// Crashes an operation at seeded points; returns how many points left something half done.
async fn crash(op: Op, format: Format) -> u64 {
    let (top, changed) = op.levels();
    let mut halves = 0;
    for variant in 0..VARIANTS {
        let family = base(op, format, variant).await;
        let before = content(&family, top).await.unwrap();
        // Once to the end, to know what comes out and how many steps there are.
        let mut originals = Vec::new();
        for level in changed.clone() {
            originals.push((level, copy(&family.file(level)).await));
        }
        let (whole, files) = crashing(&family, &originals, 1);
        apply(op, &whole).await.unwrap();
        let steps: Vec<u64> = files.iter().map(|file| file.operations()).collect();
        let after = content(&whole, top).await.unwrap();
        let mut expected = before.1.clone();
        if let Some(size) = op.size(format) {
            let kept = size.min(before.0) as usize;
            assert_eq!(after.0, size);
            expected = after.1.clone();
            expected[..kept.min(before.1.len())]
                .copy_from_slice(&before.1[..kept.min(before.1.len())]);
            expected[kept.min(after.1.len())..].fill(0);
        }
        assert!(after.1 == expected, "{op:?} {format} variant {variant}: the content changed");
        let length = whole.file(top).len().await.unwrap();
        let (before, after) = (sum(&family, top).await.unwrap(), sum(&whole, top).await.unwrap());
        for point in 0..POINTS / VARIANTS {
            let what = format!("{op:?} {format} variant {variant} point {point}");
            let mut rng = Rng::new(point << 8 | variant);
            let (broken, files) = crashing(&family, &originals, rng.next_u64() >> 1);
            let which = rng.below(files.len() as u64) as usize;
            files[which].fail_after(rng.below(steps[which] + 1));
            let done = apply(op, &broken).await.is_ok();
            halves += u64::from(!done);
            let survival = match rng.below(8) {
                0 => Survival::None,
                1 => Survival::All,
                _ => Survival::Some,
            };
            let found = Family::new(format);
            found.files.lock().unwrap().clone_from(&family.files.lock().unwrap());
            for (level, file) in changed.clone().zip(&files) {
                found.put(level, Arc::new(file.crash(rng.next_u64(), survival)));
            }
            for level in changed.clone() {
                let report = found.check(level).await;
                assert!(report.is_clean(), "{what}: level {level}: {report:#?}");
            }
            let now = sum(&found, top).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(now == before || now == after, "{what}: neither as before nor as after");
            assert!(!done || now == after, "{what}: what was done is not there");
            // Again, to the end.
            apply(op, &found).await.unwrap_or_else(|e| panic!("{what}, again: {e}"));
            let now = sum(&found, top).await.unwrap();
            assert!(now == after, "{what}: not completed");
            for level in changed.clone() {
                let report = found.check(level).await;
                let clean = report.is_clean() && report.warnings == 0 && !report.log_pending;
                assert!(clean, "{what}: level {level} again: {report:#?}");
            }
            if op == Op::Compact {
                assert!(found.file(top).len().await.unwrap() <= length, "{what}: left long");
            }
        }
    }
    halves
}

fn run(op: Op) {
    for format in [Format::Vhdx, Format::Vhd] {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let halves = runtime.block_on(crash(op, format));
        println!("{op:?} {format}: {POINTS} crash points, {halves} within");
        assert!(halves > POINTS / 3, "{op:?} {format}: only {halves} points were within");
    }
}

#[test]
fn growing() {
    run(Op::Grow);
}

#[test]
fn growing_past_the_tables_end() {
    run(Op::GrowFar);
}

#[test]
fn growing_over_a_longer_parent() {
    run(Op::GrowOver);
}

#[test]
fn shrinking() {
    run(Op::Shrink);
}

#[test]
fn growing_a_fixed_image() {
    run(Op::GrowFixed);
}

#[test]
fn shrinking_a_fixed_image() {
    run(Op::ShrinkFixed);
}

#[test]
fn merging() {
    run(Op::Merge);
}

#[test]
fn merging_a_chain() {
    run(Op::MergeInto);
}

#[test]
fn rebasing() {
    run(Op::Rebase);
}

#[test]
fn relinking() {
    run(Op::Relink);
}

#[test]
fn compacting() {
    run(Op::Compact);
}

#[test]
fn setting() {
    run(Op::Set);
}

/// A snapshot, or a copy, that was cut off is no image, or a whole one.
#[test]
fn snapshotting_and_copying() {
    for format in [Format::Vhdx, Format::Vhd] {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (none, whole) = runtime.block_on(async {
            let family = base(Op::Merge, format, 0).await;
            let before = sum(&family, 2).await.unwrap();
            // What the copy is to have below, of another name.
            family.put(4, Arc::new(copy(&family.file(1)).await));
            let (mut none, mut whole) = (0, 0);
            for point in 0..POINTS {
                let mut rng = Rng::new(point);
                let file = Arc::new(CrashFile::new(&MemFile::new(), rng.next_u64()));
                file.fail_after(rng.below(if point % 2 == 0 { 14 } else { 70 }));
                let made = if point % 2 == 0 {
                    snapshot(&family, file.clone()).await
                } else {
                    let (parent, name) = (family.file(4), family.name(4));
                    let (parent, quiet) = (Some((parent, name.as_str())), |_: ops::Progress| {});
                    ops::clone(family.file(2), file.clone(), format, parent, quiet).await
                };
                let left = file.crash(rng.next_u64(), Survival::Some);
                family.put(3, Arc::new(left));
                let report = family.check(3).await;
                if report.is_clean() {
                    let now = sum(&family, 3).await.unwrap();
                    assert!(now == before, "{format} point {point}: an image of something else");
                    let below = location_below(&family, 3).await.unwrap();
                    let expected = family.name(if point % 2 == 0 { 2 } else { 4 });
                    assert_eq!(below, expected, "{format} point {point}");
                    whole += 1;
                } else {
                    assert!(made.is_err(), "{format} point {point}: {report:#?}");
                    none += 1;
                }
            }
            (none, whole)
        });
        println!("{format}: {none} of {POINTS} points left no image, {whole} a whole one");
        assert!(none > POINTS / 10 && whole > POINTS / 10);
    }
}

/// A child of level 2 in this file.
async fn snapshot(family: &Family, file: Arc<dyn File>) -> vhd::Result<()> {
    let (parent, name) = (family.file(2), family.name(2));
    match family.format {
        Format::Vhdx => {
            let about = vhd::vhdx::info(parent).await?;
            let options = vhd::vhdx::CreateOptions::child(&about, &name);
            vhd::vhdx::create(file, &options).await
        }
        _ => {
            let about = vhd::classic::info(parent).await?;
            let options = vhd::classic::CreateOptions::child(&about, &name);
            vhd::classic::create(file, &options).await
        }
    }
}
