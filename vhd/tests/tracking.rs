//! What changed since a point is told, whatever happens: exactly after an orderly end, never too
//! little after a crash.

mod common;

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, Mutex},
};

use block_io::{
    Disk, File,
    testing::{CrashFile, MemFile, Rng, Survival},
};
use common::{MIB, mem_image, open, open_read_only, small};
use proptest::prelude::*;
use vhd::{
    Guid,
    tracking::{Changes, Store, Tracked},
    vhdx,
};

/// More regions than can be active at a time.
const DISK: u64 = 8192 * MIB;
const GRANULE: u64 = 64 << 10;

async fn content(file: &Arc<dyn File>) -> Guid {
    vhdx::identity(file.clone()).await.unwrap().data_write_id
}

/// A new image and what is known of its changes: nothing yet.
async fn new_pair() -> (Arc<MemFile>, Arc<MemFile>) {
    let image = mem_image(&small(DISK, MIB)).await;
    let sidecar = Arc::new(MemFile::new());
    let id = content(&(image.clone() as Arc<dyn File>)).await;
    Store::create(sidecar.clone(), DISK, id).await.unwrap();
    (image, sidecar)
}

async fn tracked(image: Arc<dyn File>, sidecar: Arc<dyn File>) -> vhd::Result<Tracked> {
    let options = vhdx::OpenOptions { table_cache: 4096, ..Default::default() };
    let disk = Arc::new(vhdx::Vhdx::open(image.clone(), options).await?);
    Tracked::vhdx(disk, image, sidecar).await
}

fn granules(changes: &Changes) -> BTreeSet<u64> {
    let Changes::Ranges(ranges) = changes else { panic!("nothing is known") };
    let all = |range: &Range<u64>| range.start / GRANULE..range.end.div_ceil(GRANULE);
    ranges.iter().flat_map(all).collect()
}

/// A place that is written, and the values it was to have, in their order.
#[derive(Debug, Clone)]
struct Cell {
    at: u64,
    begun: Vec<u64>,
    done: usize,
}

/// A point and what each cell may have held when it was made.
#[derive(Debug, Clone)]
struct Known {
    id: Guid,
    held: Vec<Vec<u64>>,
}

type Cells = Arc<Mutex<Vec<Cell>>>;

async fn work(disk: Arc<Tracked>, cells: Cells, task: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    for step in 0..30 {
        if rng.chance(10) {
            if disk.flush().await.is_err() {
                return;
            }
            continue;
        }
        let zero = rng.chance(20);
        let value = if zero { 0 } else { seed << 8 | step | 1 << 63 };
        let (index, at) = {
            let mut cells = cells.lock().unwrap();
            let index = task + 3 * rng.below(cells.len() as u64 / 3) as usize;
            cells[index].begun.push(value);
            (index, cells[index].at)
        };
        let done = if zero {
            disk.write_zeroes(at, 512).await
        } else {
            disk.write_at(at, &value.to_le_bytes().repeat(64)).await
        };
        if done.is_err() {
            return;
        }
        let cell = &mut cells.lock().unwrap()[index];
        cell.done = cell.begun.len();
    }
}

async fn points(disk: Arc<Tracked>, cells: Cells, known: Arc<Mutex<Vec<Known>>>, seed: u64) {
    let mut rng = Rng::new(seed);
    for number in 0..rng.below(4) {
        for _ in 0..rng.below(200) {
            tokio::task::yield_now().await;
        }
        let before: Vec<usize> = cells.lock().unwrap().iter().map(|cell| cell.done).collect();
        let Ok(point) = disk.point(&format!("{seed:x} {number}")).await else { return };
        let held = {
            let cells = cells.lock().unwrap();
            let held = cells.iter().zip(before);
            held.map(|(cell, done)| cell.begun[done - 1..].to_vec()).collect()
        };
        known.lock().unwrap().push(Known { id: point.id, held });
        if rng.chance(20) {
            let at = rng.below(known.lock().unwrap().len() as u64) as usize;
            let gone = known.lock().unwrap().remove(at);
            if disk.remove_point(gone.id).await.is_err() {
                return;
            }
        }
    }
}

/// What was found after a crash.
#[derive(Debug, Default)]
struct Tally {
    changed: u64,
    all: u64,
}

async fn verify(
    image: &MemFile,
    sidecar: &MemFile,
    cells: &mut [Cell],
    known: &mut Vec<Known>,
    tally: &mut Tally,
    what: &str,
) {
    let image: Arc<dyn File> = Arc::new(image.read_only_copy());
    let id = content(&image).await;
    let disk = open_read_only(image).await;
    let store = Store::open(Arc::new(sidecar.read_only_copy())).await.unwrap();
    let mut values = Vec::new();
    for cell in cells.iter() {
        // One sector: it is whole or not there.
        let mut bytes = [0; 512];
        disk.read_at(cell.at, &mut bytes).await.unwrap();
        let [value, rest @ ..] = bytes.as_chunks::<8>().0 else { unreachable!() };
        assert!(rest.iter().all(|other| other == value), "{what}: a torn sector");
        values.push(u64::from_le_bytes(*value));
    }
    for point in known.iter() {
        let changes = store.changes_since(point.id, DISK, id).await;
        let changes = match changes {
            Ok(changes) => changes,
            Err(error) => panic!("{what}: a point is gone: {error}"),
        };
        if changes == Changes::All {
            tally.all += 1;
            continue;
        }
        let told = granules(&changes);
        for ((cell, held), found) in cells.iter().zip(&point.held).zip(&values) {
            let same = held.contains(found);
            tally.changed += u64::from(!same);
            assert!(
                same || told.contains(&(cell.at / GRANULE)),
                "{what}: {:#x} held {held:x?} at the point, holds {found:x}, and no change is told",
                cell.at
            );
        }
    }
    if !store.belongs(DISK, id) {
        // The next session begins anew.
        known.clear();
    }
    for (cell, found) in cells.iter_mut().zip(values) {
        *cell = Cell { at: cell.at, begun: vec![found], done: 1 };
    }
}

fn first_seed() -> u64 {
    std::env::var("BULKHEAD_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0)
}

#[test]
fn no_crash_hides_a_change() {
    const SEEDS: u64 = 350;
    const ROUNDS: u64 = 3;
    let mut tally = Tally::default();
    for seed in first_seed()..first_seed() + SEEDS {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let mut rng = Rng::new(seed);
            let mut places = BTreeSet::new();
            while places.len() < 30 {
                places.insert(rng.below(DISK / 4096) * 4096);
            }
            let cell = |at| Cell { at, begun: vec![0], done: 1 };
            let mut cells: Vec<Cell> = places.into_iter().map(cell).collect();
            let mut known = Vec::new();
            let (image, sidecar) = new_pair().await;
            let (mut image, mut sidecar) = (image.read_only_copy(), sidecar.read_only_copy());
            for round in 0..ROUNDS {
                let what = format!("seed {seed} round {round}");
                let a = Arc::new(CrashFile::new(&image, rng.next_u64()));
                let b = Arc::new(CrashFile::new(&sidecar, rng.next_u64()));
                // Either file may be the first to fail; the other goes no further then.
                let limits = [rng.below(10), rng.below(60), rng.below(300), u64::MAX / 2];
                let failing = if rng.chance(50) { &a } else { &b };
                failing.fail_after(limits[rng.below(4) as usize]);
                let state: Cells = Arc::new(Mutex::new(cells.clone()));
                let list = Arc::new(Mutex::new(known.clone()));
                if let Ok(disk) = tracked(a.clone(), b.clone()).await {
                    let disk = Arc::new(disk);
                    let mut tasks = tokio::task::JoinSet::new();
                    for task in 0..3 {
                        let seed = rng.next_u64() >> 32;
                        tasks.spawn(work(disk.clone(), state.clone(), task, seed));
                    }
                    let seed = rng.next_u64() >> 32;
                    tasks.spawn(points(disk.clone(), state.clone(), list.clone(), seed));
                    tasks.join_all().await;
                    if rng.chance(30) {
                        // Failing is as good here.
                        let _ = disk.close().await;
                    }
                }
                cells.clone_from(&state.lock().unwrap());
                known.clone_from(&list.lock().unwrap());
                let survival = [Survival::None, Survival::All, Survival::Some, Survival::Some];
                let survival = survival[rng.below(4) as usize];
                image = a.crash(rng.next_u64(), survival);
                sidecar = b.crash(rng.next_u64(), survival);
                verify(&image, &sidecar, &mut cells, &mut known, &mut tally, &what).await;
            }
        });
    }
    println!("{} crash points, {tally:?}", SEEDS * ROUNDS);
    assert!(tally.changed > 10_000, "{tally:?}");
    assert!(tally.all < 100, "{tally:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
    Point,
    Remove(prop::sample::Index),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..DISK / 4096 - 64, 1u64..64).prop_map(|(at, len)| (at * 4096, len * 4096));
    prop_oneof![
        6 => range.clone().prop_map(|(at, len)| Step::Write(at, len)),
        1 => range.clone().prop_map(|(at, len)| Step::Zero(at, len)),
        1 => range.prop_map(|(at, len)| Step::Discard(at, len)),
        3 => Just(Step::Point),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Without a crash exactly what was touched is told, over restarts and removed points.
    #[test]
    fn changes_are_exact(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let (image, sidecar) = new_pair().await;
            let mut disk = tracked(image.clone(), sidecar.clone()).await.unwrap();
            let mut points: Vec<(Guid, BTreeSet<u64>)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                let mut touch = |at: u64, len: u64| {
                    for (_, touched) in &mut points {
                        touched.extend(at / GRANULE..(at + len).div_ceil(GRANULE));
                    }
                };
                match step {
                    Step::Write(at, len) => {
                        touch(at, len);
                        disk.write_at(at, &vec![7; len as usize]).await.unwrap();
                    }
                    Step::Zero(at, len) => {
                        touch(at, len);
                        disk.write_zeroes(at, len).await.unwrap();
                    }
                    Step::Discard(at, len) => {
                        touch(at, len);
                        disk.discard(at, len).await.unwrap();
                    }
                    Step::Point => {
                        let point = disk.point(&number.to_string()).await.unwrap();
                        points.push((point.id, BTreeSet::new()));
                    }
                    Step::Remove(_) if points.is_empty() => {}
                    Step::Remove(which) => {
                        let (id, _) = points.remove(which.index(points.len()));
                        disk.remove_point(id).await.unwrap();
                    }
                    Step::Reopen => {
                        disk.close().await.unwrap();
                        disk = tracked(image.clone(), sidecar.clone()).await.unwrap();
                    }
                }
                for (id, touched) in &points {
                    let told = granules(&disk.changes_since(*id).await.unwrap());
                    prop_assert_eq!(&told, touched);
                }
            }
            disk.close().await.unwrap();
            let id = content(&(image as Arc<dyn File>)).await;
            let store = Store::open(sidecar).await.unwrap();
            for (point, touched) in &points {
                let changes = store.changes_since(*point, DISK, id).await.unwrap();
                prop_assert_eq!(&granules(&changes), touched);
            }
            Ok(())
        })?;
    }

    #[test]
    fn noise_is_an_answer(
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let (_, sidecar) = new_pair().await;
            let mut bytes = sidecar.to_bytes();
            for (at, byte) in noise {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len() - cut.index(bytes.len()));
            if let Ok(store) = Store::open(Arc::new(MemFile::from_bytes(&bytes))).await {
                for point in &store.state().points {
                    let _ = store.changes_since(point.id, DISK, Guid::ZERO).await;
                }
            }
        });
    }
}

#[tokio::test]
async fn a_change_without_tracking_is_seen() {
    let (image, sidecar) = new_pair().await;
    let disk = tracked(image.clone(), sidecar.clone()).await.unwrap();
    let point = disk.point("one").await.unwrap();
    disk.write_at(MIB, &[1; 4096]).await.unwrap();
    disk.close().await.unwrap();
    let now = content(&(image.clone() as Arc<dyn File>)).await;
    let store = Store::open(sidecar.clone()).await.unwrap();
    let one = Changes::Ranges(Vec::from_iter([(MIB, MIB + GRANULE)].map(|(a, b)| a..b)));
    assert_eq!(store.changes_since(point.id, DISK, now).await.unwrap(), one);

    let other = open(image.clone()).await;
    other.write_at(2 * MIB, &[2; 4096]).await.unwrap();
    other.close().await.unwrap();
    let now = content(&(image.clone() as Arc<dyn File>)).await;
    assert_eq!(store.changes_since(point.id, DISK, now).await.unwrap(), Changes::All);
    // From here on it begins anew.
    let disk = tracked(image, sidecar).await.unwrap();
    assert!(disk.points().await.is_empty());
    assert!(disk.changes_since(point.id).await.is_err());
}

#[tokio::test]
async fn a_write_costs_a_flush_for_each_region_only() {
    let (image, sidecar) = new_pair().await;
    let disk = tracked(image, sidecar.clone()).await.unwrap();
    disk.point("one").await.unwrap();
    disk.write_at(0, &[1; 4096]).await.unwrap();
    let before = sidecar.flushes();
    for granule in 0..256 {
        disk.write_at(granule * GRANULE, &[1; 4096]).await.unwrap();
    }
    assert_eq!(sidecar.flushes(), before);
    disk.write_at(256 * GRANULE, &[1; 4096]).await.unwrap();
    assert_eq!(sidecar.flushes(), before + 1);
}
