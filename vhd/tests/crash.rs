//! A crash at any point leaves an image that opens, passes the check and holds all flushed data.
//!
//! Tasks write, zero, discard and flush at once over a file that fails after some operations and
//! then loses, reorders and tears what was not flushed. Every sector found after it must be one
//! that the last flush or anything begun after it could have left.

mod common;

use std::sync::{Arc, Mutex};

use block_io::{
    Disk, File,
    testing::{CrashFile, MemFile, Rng, Survival},
};
use common::{MIB, assert_clean, have_qemu, mem_image, small};
use vhd::{
    classic,
    vhdx::{OpenOptions, Vhdx},
};

const CELL: u64 = 4096;
const CELLS_PER_BLOCK: usize = 5;
const BLOCKS: usize = 18;
const TASKS: usize = 3;
const SEEDS: u64 = 334;
const ROUNDS: u64 = 3;
/// Forty table pages of 1 MiB blocks, so that each commit changes some of them only.
const DISK: u64 = 20_000 * MIB;

/// What a cell may hold: each step is the values it could have had from then on (0: zeros).
#[derive(Debug, Clone)]
struct Cell {
    offset: u64,
    steps: Vec<Vec<u64>>,
    /// Steps completed.
    completed: usize,
    /// First step that a crash may fall back to.
    floor: usize,
}

impl Cell {
    fn allowed(&self) -> Vec<u64> {
        let mut values: Vec<u64> = self.steps[self.floor..].concat();
        values.sort_unstable();
        values.dedup();
        values
    }
}

fn sector(offset: u64, index: usize, value: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    if value != 0 {
        Rng::new(offset.wrapping_mul(31).wrapping_add(index as u64) ^ value << 32).fill(&mut bytes);
    }
    bytes
}

fn content(offset: u64, value: u64) -> Vec<u8> {
    (0..CELL as usize / 512).flat_map(|i| sector(offset, i, value)).collect()
}

/// The cells of each block; block `i` belongs to task `i % TASKS`.
fn layout(rng: &mut Rng) -> Vec<Vec<Cell>> {
    let mut numbers: Vec<u64> = Vec::new();
    while numbers.len() < BLOCKS {
        let number = rng.below(DISK / MIB);
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    let cells = |number: &u64| {
        let mut places: Vec<u64> = (0..CELLS_PER_BLOCK as u64).map(|i| i * 40 + 7).collect();
        places[0] = 0;
        places[CELLS_PER_BLOCK - 1] = MIB / CELL - 1;
        let cell = |place| Cell {
            offset: number * MIB + place * CELL,
            steps: vec![vec![0]],
            completed: 1,
            floor: 0,
        };
        places.into_iter().map(cell).collect()
    };
    numbers.iter().map(cells).collect()
}

type Blocks = Arc<Mutex<Vec<Vec<Cell>>>>;

/// Reads any cell and discards any block while others work on them. What it reads must be
/// something the cell once had: never another block's data.
async fn meddle(disk: Arc<dyn Disk>, blocks: Blocks, seed: u64, what: String) {
    let mut rng = Rng::new(seed);
    for _ in 0..60 {
        let block = rng.below(BLOCKS as u64) as usize;
        let cell = rng.below(CELLS_PER_BLOCK as u64) as usize;
        let offset = blocks.lock().unwrap()[block][cell].offset;
        if rng.chance(15) {
            // May be overtaken by a write begun later: its effect is uncertain until it ends.
            let uncertain = |blocks: &Blocks| {
                for cell in &mut blocks.lock().unwrap()[block] {
                    let next = [cell.allowed(), vec![0]].concat();
                    cell.steps.push(next);
                }
            };
            uncertain(&blocks);
            let result = disk.discard(offset / MIB * MIB, MIB).await;
            uncertain(&blocks);
            if result.is_err() {
                return;
            }
            continue;
        }
        let mut found = vec![0xee; CELL as usize];
        if disk.read_at(offset, &mut found).await.is_err() {
            return;
        }
        let ever = blocks.lock().unwrap()[block][cell].steps.concat();
        for (i, bytes) in found.chunks(512).enumerate() {
            assert!(
                ever.iter().any(|v| sector(offset, i, *v) == *bytes),
                "{what}: read foreign data in the cell at {offset:#x}"
            );
        }
    }
}

/// Works on its blocks until the file fails or the steps are done.
async fn work(disk: Arc<dyn Disk>, blocks: Blocks, task: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    for step in 0..40u64 {
        let block = task + TASKS * rng.below((BLOCKS / TASKS) as u64) as usize;
        let action = rng.below(100);
        let done = if action < 22 {
            flush(&*disk, &blocks).await
        } else {
            // One cell, or the whole block.
            let whole = action < 40;
            let cell = rng.below(CELLS_PER_BLOCK as u64) as usize;
            let cells = if whole { 0..CELLS_PER_BLOCK } else { cell..cell + 1 };
            let value = (seed << 16 | (step + 1)) & 0xffff_ffff;
            let (offset, len) = {
                let mut blocks = blocks.lock().unwrap();
                for cell in &mut blocks[block][cells.clone()] {
                    let next = match action {
                        // A discard leaves anything older, or zeros.
                        22..30 | 40..48 => [cell.allowed(), vec![0]].concat(),
                        30..37 | 48..58 => vec![0],
                        _ => vec![value],
                    };
                    cell.steps.push(next);
                }
                let first = blocks[block][cells.start].offset;
                if whole { (first / MIB * MIB, MIB) } else { (first, CELL) }
            };
            let result = match action {
                22..30 | 40..48 => disk.discard(offset, len).await,
                30..37 | 48..58 => disk.write_zeroes(offset, len).await,
                _ if whole => {
                    let mut data = vec![0; MIB as usize];
                    for cell in &blocks.lock().unwrap()[block] {
                        let at = (cell.offset - offset) as usize;
                        let value = content(cell.offset, value);
                        data[at..at + CELL as usize].copy_from_slice(&value);
                    }
                    disk.write_at(offset, &data).await
                }
                _ => disk.write_at(offset, &content(offset, value)).await,
            };
            if result.is_ok() {
                for cell in &mut blocks.lock().unwrap()[block][cells] {
                    cell.completed = cell.steps.len();
                }
            }
            result
        };
        if done.is_err() {
            return;
        }
    }
}

async fn flush(disk: &dyn Disk, blocks: &Blocks) -> block_io::Result<()> {
    let completed: Vec<Vec<usize>> = {
        let blocks = blocks.lock().unwrap();
        blocks.iter().map(|cells| cells.iter().map(|c| c.completed).collect()).collect()
    };
    disk.flush().await?;
    let mut blocks = blocks.lock().unwrap();
    for (cell, completed) in blocks.iter_mut().flatten().zip(completed.into_iter().flatten()) {
        cell.floor = cell.floor.max(completed - 1);
    }
    Ok(())
}

/// Reads all cells, checks each sector, and takes what is found as the new state.
async fn verify(disk: &dyn Disk, blocks: &mut [Vec<Cell>], what: &str) {
    for cell in blocks.iter_mut().flatten() {
        let mut found = vec![0xee; CELL as usize];
        disk.read_at(cell.offset, &mut found).await.unwrap();
        let allowed = cell.allowed();
        let mut values = Vec::new();
        for (i, bytes) in found.chunks(512).enumerate() {
            let value = allowed.iter().find(|v| sector(cell.offset, i, **v) == *bytes);
            let Some(value) = value else {
                panic!(
                    "{what}: sector {i} of the cell at {:#x} is none of {allowed:x?}",
                    cell.offset
                )
            };
            values.push(*value);
        }
        // What is there now is durable; torn cells keep all their values.
        values.sort_unstable();
        values.dedup();
        *cell = Cell { offset: cell.offset, steps: vec![values], completed: 1, floor: 0 };
    }
}

async fn one_round(
    base: &MemFile,
    blocks: &mut Vec<Vec<Cell>>,
    rng: &mut Rng,
    what: &str,
    kind: Kind,
    parent: Option<&Arc<dyn Disk>>,
) -> MemFile {
    let file = Arc::new(CrashFile::new(base, rng.next_u64()));
    // Sometimes the crash comes while opening or in the first commit.
    file.fail_after(
        [rng.below(12), rng.below(60), rng.below(300), u64::MAX / 2][rng.below(4) as usize],
    );
    let state: Blocks = Arc::new(Mutex::new(blocks.clone()));
    if let Ok(disk) = kind.open(file.clone(), parent, false).await {
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (disk, state) = (disk.clone(), state.clone());
                tokio::spawn(work(disk, state, task, rng.next_u64() >> 32))
            })
            .collect();
        let meddler = meddle(disk.clone(), state.clone(), rng.next_u64(), what.to_owned());
        tokio::spawn(meddler).await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        if rng.chance(30) && flush(&*disk, &state).await.is_ok() {
            let _ = disk.close().await;
        }
    }
    blocks.clone_from(&state.lock().unwrap());
    let survival = match rng.below(10) {
        0 => Survival::None,
        1 | 2 => Survival::All,
        _ => Survival::Some,
    };
    let after = file.crash(rng.next_u64(), survival);

    // Read-only first: the log is replayed in memory and nothing is written.
    let frozen: Arc<dyn File> = Arc::new(after.read_only_copy());
    let report = kind.check(frozen.clone()).await;
    assert!(report.is_clean(), "{what}: {report:#?}");
    let disk = kind.open(frozen, parent, true).await.unwrap();
    verify(&*disk, &mut blocks.clone(), what).await;
    after
}

/// What kind of image crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vhdx,
    VhdxChild,
    Vhd,
    VhdChild,
}

impl Kind {
    fn is_child(self) -> bool {
        matches!(self, Self::VhdxChild | Self::VhdChild)
    }

    fn is_vhdx(self) -> bool {
        matches!(self, Self::Vhdx | Self::VhdxChild)
    }

    async fn open(
        self,
        file: Arc<dyn File>,
        parent: Option<&Arc<dyn Disk>>,
        read_only: bool,
    ) -> vhd::Result<Arc<dyn Disk>> {
        let parent = parent.cloned();
        if self.is_vhdx() {
            let options = OpenOptions { table_cache: 4096, parent, read_only };
            return Ok(Arc::new(Vhdx::open(file, options).await?));
        }
        let options = classic::OpenOptions { parent, read_only };
        Ok(Arc::new(classic::Vhd::open(file, options).await?))
    }

    async fn check(self, file: Arc<dyn File>) -> vhd::vhdx::Report {
        let report =
            if self.is_vhdx() { vhd::vhdx::check(file).await } else { classic::check(file).await };
        report.unwrap()
    }

    /// An empty image of the disk, of the parent's format if there is one.
    async fn make(self, parent: Option<&Arc<MemFile>>) -> Arc<MemFile> {
        let file = Arc::new(MemFile::new());
        match (self.is_vhdx(), parent) {
            (true, None) => return mem_image(&small(DISK, MIB)).await,
            (true, Some(parent)) => {
                let info = vhd::vhdx::info(parent.clone()).await.unwrap();
                let child = vhd::vhdx::CreateOptions::child(&info, "parent.vhdx");
                let options = vhd::vhdx::CreateOptions { block_size: MIB as u32, ..child };
                return mem_image(&options).await;
            }
            (false, None) => {
                let new = classic::CreateOptions::new(DISK);
                let options = classic::CreateOptions { block_size: MIB as u32, ..new };
                classic::create(file.clone(), &options).await.unwrap();
            }
            (false, Some(parent)) => {
                let info = classic::info(parent.clone()).await.unwrap();
                let child = classic::CreateOptions::child(&info, "parent.vhd");
                let options = classic::CreateOptions { block_size: MIB as u32, ..child };
                classic::create(file.clone(), &options).await.unwrap();
            }
        }
        file
    }
}

/// A parent in which most cells have a content of their own, and what is known of it.
async fn parent(kind: Kind, blocks: &mut [Vec<Cell>], rng: &mut Rng) -> Arc<MemFile> {
    let file = kind.make(None).await;
    let orphan = if kind.is_vhdx() { Kind::Vhdx } else { Kind::Vhd };
    let disk = orphan.open(file.clone(), None, false).await.unwrap();
    for cell in blocks.iter_mut().flatten() {
        if rng.chance(70) {
            let value = 1 << 33;
            disk.write_at(cell.offset, &content(cell.offset, value)).await.unwrap();
            cell.steps = vec![vec![value]];
        }
    }
    disk.close().await.unwrap();
    file
}

fn first_seed() -> u64 {
    std::env::var("BULKHEAD_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0)
}

#[test]
fn every_crash_leaves_a_good_image_with_all_flushed_data() {
    let replays = crashes(Kind::Vhdx, first_seed()..first_seed() + SEEDS);
    assert!(replays > SEEDS / 4, "only {replays} crashes left a log to replay");
}

#[test]
fn every_crash_leaves_a_good_differencing_image_with_all_flushed_data() {
    let replays = crashes(Kind::VhdxChild, first_seed()..first_seed() + SEEDS);
    assert!(replays > SEEDS / 4, "only {replays} crashes left a log to replay");
}

#[test]
fn every_crash_leaves_a_good_vhd_with_all_flushed_data() {
    let lost = crashes(Kind::Vhd, first_seed()..first_seed() + SEEDS);
    assert!(lost > SEEDS / 10, "only {lost} crashes lost a footer");
}

#[test]
fn every_crash_leaves_a_good_differencing_vhd_with_all_flushed_data() {
    let lost = crashes(Kind::VhdChild, first_seed()..first_seed() + SEEDS);
    assert!(lost > SEEDS / 10, "only {lost} crashes lost a footer");
}

/// Crashes of images from these seeds; says how many left a log to replay, or lost a footer.
fn crashes(kind: Kind, seeds: std::ops::Range<u64>) -> u64 {
    let with_qemu = kind == Kind::Vhdx && have_qemu();
    let mut unclean = 0;
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut rng = Rng::new(seed);
            let mut blocks = layout(&mut rng);
            let (mut file, mut below) = (None, None);
            if kind.is_child() {
                let parent = parent(kind, &mut blocks, &mut rng).await;
                let orphan = if kind.is_vhdx() { Kind::Vhdx } else { Kind::Vhd };
                below = Some(orphan.open(parent.clone(), None, true).await.unwrap());
                file = Some(parent);
            }
            let below = below.as_ref();
            let mut base = kind.make(file.as_ref()).await.read_only_copy();
            for round in 0..ROUNDS {
                let what = format!("{kind:?} seed {seed} round {round}");
                let after = one_round(&base, &mut blocks, &mut rng, &what, kind, below).await;
                let found = kind.check(Arc::new(after.read_only_copy())).await;
                unclean += u64::from(found.log_pending || found.warnings > 0);
                if with_qemu && seed % 10 == 0 {
                    qemu_accepts(&after, &what).await;
                }
                // Opened for writing, which mends it, it holds the same, and passes again.
                let file = Arc::new(after);
                let disk = kind.open(file.clone(), below, false).await.unwrap();
                verify(&*disk, &mut blocks, &what).await;
                if rng.chance(50) {
                    disk.close().await.unwrap();
                }
                let report = kind.check(file.clone()).await;
                assert!(report.is_clean() && !report.log_pending, "{what}: {report:#?}");
                base = file.read_only_copy();
            }
        });
    }
    println!("{} crash points, {unclean} with a log to replay or a lost footer", count * ROUNDS);
    unclean
}

/// qemu replays the log and finds no error.
async fn qemu_accepts(image: &MemFile, what: &str) {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("image.vhdx");
    let file = common::local(&path, block_io::LocalOptions::create_new());
    let len = image.len().await.unwrap();
    file.set_len(len).await.unwrap();
    for range in image.allocated_ranges(0..len).await.unwrap() {
        let mut data = vec![0; (range.end - range.start) as usize];
        image.read_at(range.start, &mut data).await.unwrap();
        file.write_at(range.start, &data).await.unwrap();
    }
    file.close().await.unwrap();
    let path = path.to_str().unwrap();
    let text = common::qemu_img(&["check", "-r", "all", "-f", "vhdx", path]);
    assert!(text.contains("No errors were found"), "{what}: {text}");
    assert_clean(common::local(path, block_io::LocalOptions::read_only())).await;
}
