//! A chain of images behaves like an array of bytes, whatever is done to it and however often it is
//! opened anew: in either format, up to five images deep, with every operation on images among
//! reads and writes.

mod common;
#[path = "common/family.rs"]
mod family;

use std::sync::Arc;

use block_io::{Disk, testing::Rng};
use common::MIB;
use family::{Family, Shape, block};
use proptest::prelude::*;
use vhd::{
    Error, Format, Place,
    ops::{self, Level, ResizeOptions},
};

const DEEPEST: usize = 5;
/// Sizes are whole multiples of this: whole sectors in any image.
const GRAIN: u64 = 4096;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
    Read(u64, u64),
    Flush,
    Reopen,
    Drop,
    Snapshot(u32),
    Resize(u64, bool),
    Merge,
    MergeInto(usize),
    /// Onto the parent's parent.
    Rebase,
    Compact,
    Trim(bool),
    Repair,
    Clone,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Places and lengths in units of 1/4 MiB and of sectors mixed, so that whole blocks happen.
    let place = prop_oneof![(0u64..60).prop_map(|q| q << 18), any::<u32>().prop_map(u64::from)];
    let len = prop_oneof![(1u64..20).prop_map(|q| q << 18), (1u64..200_000)];
    let size = prop_oneof![(1u64..40).prop_map(|q| q << 18), (1u64..14 * MIB)];
    let op = prop_oneof![
        9 => (place.clone(), len.clone(), any::<u64>()).prop_map(|(a, b, c)| Op::Write(a, b, c)),
        3 => (place.clone(), len.clone()).prop_map(|(a, b)| Op::Zero(a, b)),
        3 => (place.clone(), len.clone()).prop_map(|(a, b)| Op::Discard(a, b)),
        2 => (place, len).prop_map(|(a, b)| Op::Read(a, b)),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::Drop),
        4 => (0u32..3).prop_map(Op::Snapshot),
        2 => (size, any::<bool>()).prop_map(|(size, force)| Op::Resize(size, force)),
        1 => Just(Op::Merge),
        1 => (1usize..5).prop_map(Op::MergeInto),
        1 => Just(Op::Rebase),
        1 => Just(Op::Compact),
        1 => any::<bool>().prop_map(Op::Trim),
        1 => Just(Op::Repair),
        1 => Just(Op::Clone),
    ];
    proptest::collection::vec(op, 1..40)
}

fn image() -> impl Strategy<Value = (Format, Shape)> {
    (any::<bool>(), 1u64..14 * MIB, 0u32..3, 0u8..4, any::<bool>()).prop_map(
        |(vhdx, size, shift, fixed, big)| {
            let format = if vhdx { Format::Vhdx } else { Format::Vhd };
            let sector = if big && vhdx { 4096 } else { 512 };
            let (size, block) = (size.next_multiple_of(GRAIN), block(format) << shift);
            (format, Shape { size, block, sector, fixed: fixed == 0 })
        },
    )
}

/// A chain, what its newest image reads as, and what those below read as.
struct World {
    family: Family,
    sector: u64,
    fixed: bool,
    /// Which files make the chain, the newest last.
    levels: Vec<usize>,
    made: usize,
    model: Vec<u8>,
    frozen: Vec<Vec<u8>>,
}

impl World {
    async fn new(format: Format, shape: Shape) -> Self {
        let family = Family::new(format);
        family.make(shape).await;
        let model = vec![0; shape.size as usize];
        let (sector, fixed) = (u64::from(shape.sector), shape.fixed);
        Self { family, sector, fixed, levels: vec![0], made: 1, model, frozen: Vec::new() }
    }

    fn top(&self) -> usize {
        self.levels[self.levels.len() - 1]
    }

    async fn open(&self) -> Arc<dyn Disk> {
        self.family.open(self.top()).await.unwrap()
    }

    /// The disk `down` levels below the newest image's, if there is one.
    async fn below(&self, down: usize) -> Option<Arc<dyn Disk>> {
        let at = self.levels.len().checked_sub(1 + down)?;
        Some(self.family.open(self.levels[at]).await.unwrap())
    }

    async fn assert_clean(&self, level: usize) {
        let report = self.family.check(level).await;
        assert!(report.is_clean() && report.warnings == 0 && !report.log_pending, "{report:#?}");
    }

    fn fit(&self, at: u64, len: u64) -> (u64, u64) {
        let size = self.model.len() as u64;
        let at = at % size / self.sector * self.sector;
        (at, len.next_multiple_of(self.sector).min(size - at))
    }

    /// Reads, writes and what goes with them.
    async fn access(&mut self, disk: &dyn Disk, op: &Op) {
        match *op {
            Op::Write(at, len, seed) => {
                let (at, len) = self.fit(at, len);
                let range = at as usize..(at + len) as usize;
                Rng::new(seed).fill(&mut self.model[range.clone()]);
                disk.write_at(at, &self.model[range]).await.unwrap();
            }
            Op::Zero(at, len) => {
                let (at, len) = self.fit(at, len);
                self.model[at as usize..(at + len) as usize].fill(0);
                disk.write_zeroes(at, len).await.unwrap();
            }
            Op::Discard(at, len) => {
                let (at, len) = self.fit(at, len);
                disk.discard(at, len).await.unwrap();
                let mut now = vec![0xee; len as usize];
                disk.read_at(at, &mut now).await.unwrap();
                let old = &mut self.model[at as usize..(at + len) as usize];
                for (now, old) in now.chunks(512).zip(old.chunks(512)) {
                    assert!(now == old || now.iter().all(|b| *b == 0), "neither old nor zero");
                }
                old.copy_from_slice(&now);
            }
            Op::Read(at, len) => {
                let (at, len) = self.fit(at, len);
                let mut now = vec![0xee; len as usize];
                disk.read_at(at, &mut now).await.unwrap();
                let expected = &self.model[at as usize..(at + len) as usize];
                assert!(now == expected, "at {at} for {len}");
            }
            _ => disk.flush().await.unwrap(),
        }
    }

    /// An operation on the image, which is not open.
    async fn operate(&mut self, op: &Op) {
        let (format, top) = (self.family.format, self.top());
        let file = self.family.file(top);
        let quiet = |_: ops::Progress| {};
        match *op {
            Op::Snapshot(shift) if self.levels.len() < DEEPEST => {
                self.frozen.push(self.model.clone());
                self.family.grow(top, self.made, block(format) << shift, None).await;
                self.levels.push(self.made);
                self.made += 1;
            }
            Op::Resize(size, force) => self.resize(size.next_multiple_of(GRAIN), force).await,
            Op::Merge if self.levels.len() > 1 => self.merge(1).await,
            Op::MergeInto(down) if down < self.levels.len() => self.merge(down).await,
            Op::Rebase if self.levels.len() > 2 => {
                let onto = self.levels[self.levels.len() - 3];
                let pair = (self.below(1).await.unwrap(), self.below(2).await.unwrap());
                let (name, parent) = (self.family.name(onto), self.family.file(onto));
                ops::rebase(file, parent, format, &name, pair, quiet).await.unwrap();
                self.levels.remove(self.levels.len() - 2);
                self.frozen.pop();
            }
            Op::Compact => {
                let before = file.len().await.unwrap();
                let done = ops::compact(file.clone(), format, self.below(1).await, quiet).await;
                if self.fixed && self.levels.len() == 1 {
                    assert!(matches!(done, Err(Error::InvalidOptions(_))), "{done:?}");
                } else {
                    let (done, now) = (done.unwrap(), file.len().await.unwrap());
                    assert!((done.before, done.after) == (before, now) && now <= before);
                }
            }
            Op::Trim(zeros) => drop(ops::trim(file, format, zeros, quiet).await.unwrap()),
            Op::Repair => {
                let done = ops::repair(file, format).await.unwrap();
                assert!(done.repairs.is_empty() && done.report.is_clean(), "{done:?}");
            }
            Op::Clone => {
                let copy = Arc::new(block_io::testing::MemFile::new());
                ops::clone(file, copy.clone(), format, None, quiet).await.unwrap();
                self.family.put(top, copy);
            }
            _ => {}
        }
    }

    async fn resize(&mut self, size: u64, force: bool) {
        let (format, file) = (self.family.format, self.family.file(self.top()));
        let parent = self.below(1).await;
        let options = ResizeOptions { force, parent, content_id: None };
        let done = ops::resize(file, format, size, options).await;
        let lost = self.model.get(size as usize..).unwrap_or_default();
        if let Some(last) = lost.iter().rposition(|byte| *byte != 0).filter(|_| !force) {
            let expected = size + last as u64 + 1;
            assert!(
                matches!(done, Err(Error::WouldLose { end, .. }) if end == expected),
                "{done:?}"
            );
            return;
        }
        done.unwrap();
        self.model.resize(size as usize, 0);
    }

    /// Merges the newest `down` images into the one below them.
    async fn merge(&mut self, down: usize) {
        let top = self.levels.len() - 1;
        let level = |level: &usize| Level {
            location: self.family.name(*level),
            file: self.family.file(*level),
        };
        let levels: Vec<Level> = self.levels[top - down..].iter().rev().map(level).collect();
        let below = self.below(down + 1).await;
        ops::merge_into(&levels, self.family.format, below, |_| {}).await.unwrap();
        // All of them are the disk now.
        self.levels.truncate(top - down + 1);
        self.frozen.truncate(top - down);
    }
}

async fn behaves(format: Format, shape: Shape, ops: Vec<Op>) {
    let mut world = World::new(format, shape).await;
    let mut disk = Some(world.open().await);
    for op in ops {
        match op {
            Op::Write(..) | Op::Zero(..) | Op::Discard(..) | Op::Read(..) | Op::Flush => {
                let open = disk.take().unwrap();
                world.access(&*open, &op).await;
                disk = Some(open);
            }
            Op::Reopen => {
                disk.take().unwrap().close().await.unwrap();
                world.assert_clean(world.top()).await;
                disk = Some(world.open().await);
            }
            // As a crash of the program after a flush: a log is replayed.
            Op::Drop => {
                disk.take().unwrap().flush().await.unwrap();
                assert!(world.family.check(world.top()).await.is_clean());
                disk = Some(world.open().await);
            }
            op => {
                disk.take().unwrap().close().await.unwrap();
                world.operate(&op).await;
                world.assert_clean(world.top()).await;
                let open = world.open().await;
                assert_eq!(open.geometry().size, world.model.len() as u64, "after {op:?}");
                disk = Some(open);
            }
        }
    }
    let disk = disk.unwrap();
    assert!(common::read_all(&*disk).await == world.model);
    // What a disk calls empty is zeros.
    let size = world.model.len() as u64;
    let mut known = vec![0; world.model.len()];
    for range in disk.allocated_ranges(0..size).await.unwrap() {
        let range = range.start as usize..range.end as usize;
        known[range.clone()].copy_from_slice(&world.model[range]);
    }
    assert!(known == world.model, "data outside of the allocated ranges");
    disk.close().await.unwrap();
    maps(&world).await;
    for (level, expected) in world.levels.iter().zip(world.frozen.iter().chain([&world.model])) {
        assert!(world.family.read(*level).await.unwrap() == *expected, "level {level} changed");
        world.assert_clean(*level).await;
    }
}

/// The map is all of the disk, in order, and each file has what the disk has there.
async fn maps(world: &World) {
    let files: Vec<_> = world.levels.iter().rev().map(|level| world.family.file(*level)).collect();
    let mut parts = Vec::new();
    ops::map(&files, world.family.format, |part| parts.push(part)).await.unwrap();
    let mut at = 0;
    for part in parts {
        assert_eq!(part.range.start, at);
        at = part.range.end;
        let expected = &world.model[part.range.start as usize..part.range.end as usize];
        match part.place {
            Place::File(place) => {
                let mut bytes = vec![0; expected.len()];
                files[part.level].read_at(place, &mut bytes).await.unwrap();
                assert!(bytes == expected, "{:?}", part.range);
            }
            Place::Zero | Place::Below => assert!(expected.iter().all(|byte| *byte == 0)),
        }
    }
    assert_eq!(at, world.model.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_chain_is_an_array_of_bytes((format, shape) in image(), ops in ops()) {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(behaves(format, shape, ops));
    }
}
