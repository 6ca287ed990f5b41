//! Disk images beside qemu's, in one run: converting, filling a fresh dynamic image, random access
//! to one that is full, and opening the largest.
//!
//! Writes `target/bench/disk.json` and prints tables. Each load is run in turns by all contestants,
//! and the best turn of each counts. `bench-disk [TURNS] [PART]`: turns (3), and a part of the names
//! of the loads that are wanted. `TMPDIR` says where the images are; 6 GiB are needed.
//!
//! A hypervisor may take back memory that its guest does not use, and whoever is given it first waits
//! for it: 2 GiB took 3 s instead of 0.4 s where this was written. So memory for what is written is
//! touched and given up before each turn of each contestant.
//!
//! All go through the page cache. `qemu-img convert` is measured as it comes, which leaves the data
//! in the page cache, beside ours with `--volatile`, and with `-t writeback`, which makes it durable,
//! beside ours as it comes.

mod load;
mod targets;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use block_io::{Disk, LocalFile, LocalOptions, RawDisk};
use bulkhead_tests::process::{installed, ours, run};
use load::{Access, Pattern};
use serde_json::{Map, Value, json};
use targets::{ALLOCATE, CONVERT, DURABLE, FULL_READ, FULL_WRITE, OPEN, OURS, QEMU, RAW, VOLATILE};
use vhd::vhdx::{CreateOptions, OpenOptions, Vhdx, create};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Bytes of the raw file that is converted.
const CONVERTED: u64 = 2 * GIB;
/// The disk that is filled.
const FRESH: u64 = 64 * GIB;
/// Writes to a fresh image.
const WRITES: u64 = 16_000;
/// The same by qemu, which is slow at them.
const QEMU_WRITES: u64 = 1000;
/// The disk that is full.
const FULL: u64 = 512 * MIB;
/// Accesses to a full image in a turn.
const ACCESSES: u64 = 400_000;
const LIMIT: Duration = Duration::from_secs(300);

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One way of doing a load: its name, and what does it once and says how much a second it did.
type Contestant<'a> = (&'a str, Box<dyn FnMut() -> Outcome<f64> + 'a>);

/// Collects rows and prints each as it is measured.
struct Rows {
    wanted: String,
    turns: usize,
    rows: Vec<Value>,
}

impl Rows {
    fn measure(&mut self, load: &str, unit: &str, mut all: Vec<Contestant<'_>>) -> Outcome<()> {
        if !load.contains(&self.wanted) {
            return Ok(());
        }
        let mut best = vec![0.0_f64; all.len()];
        for _ in 0..self.turns {
            for (best, (_, once)) in best.iter_mut().zip(&mut all) {
                // What was written before does not compete.
                rustix::fs::sync();
                touch_memory();
                *best = best.max(once()?);
            }
        }
        let mut results = Map::new();
        for (rate, (name, _)) in best.into_iter().zip(&all) {
            println!("{load:<40} {name:<24} {rate:>12.0} {unit}");
            results.insert((*name).to_owned(), rate.into());
        }
        self.rows.push(json!({"load": load, "unit": unit, "results": results}));
        Ok(())
    }
}

/// Takes as much memory as the largest load fills, or half of what there is, and gives it up again.
fn touch_memory() {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = field.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let available = kib.map_or(0, |kib| kib << 10);
    let mut memory = vec![0_u8; (CONVERTED + GIB).min(available / 2) as usize];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

fn local(path: &Path, options: &LocalOptions) -> Outcome<Arc<LocalFile>> {
    Ok(Arc::new(LocalFile::open(path, options)?))
}

/// A file of bytes that neither repeat within a block nor are zeros.
fn random_file(path: &Path, len: u64) -> Outcome<()> {
    use std::io::Write;
    let mut block = vec![0; MIB as usize + 4096];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in block.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
    let mut file = fs::File::create(path)?;
    for at in 0..len / MIB {
        let skip = (at % 512 * 8) as usize;
        file.write_all(&block[skip..skip + MIB as usize])?;
    }
    file.sync_all()?;
    Ok(())
}

/// Seconds a command takes, which must succeed.
fn timed(command: &mut Command) -> Outcome<f64> {
    let since = Instant::now();
    let output = run(command, LIMIT);
    let seconds = since.elapsed().as_secs_f64();
    if output.status.success() {
        return Ok(seconds);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Removes a file, so that the next that takes its name begins anew.
fn gone(path: &Path) {
    // It need not have been there.
    let _ = fs::remove_file(path);
}

fn converts(rows: &mut Rows, folder: &Path, qemu: Option<&Path>) -> Outcome<()> {
    let (raw, target) = (folder.join("data.raw"), folder.join("data.vhdx"));
    let megabytes = CONVERTED as f64 / 1e6;
    random_file(&raw, CONVERTED)?;
    let ours = ours("bulkhead");
    let once = |command: &mut Command| {
        gone(&target);
        timed(command.arg(&raw).arg(&target)).map(|seconds| megabytes / seconds)
    };
    let mut all: Vec<Contestant<'_>> =
        vec![(OURS, Box::new(|| once(Command::new(&ours).args(["disk", "convert"]))))];
    let volatile = ["disk", "convert", "--volatile"];
    all.push((VOLATILE, Box::new(|| once(Command::new(&ours).args(volatile)))));
    for (name, cache) in [(QEMU, "unsafe"), (DURABLE, "writeback")] {
        if let Some(qemu) = qemu {
            let args = ["convert", "-t", cache, "-f", "raw", "-O", "vhdx"];
            all.push((name, Box::new(move || once(Command::new(qemu).args(args)))));
        }
    }
    let done = rows.measure(CONVERT, "MB/s", all);
    gone(&raw);
    gone(&target);
    done
}

/// A new dynamic image of a disk; `full` has all its blocks.
async fn image(path: &Path, size: u64, block_size: u64, full: bool) -> Outcome<Arc<dyn Disk>> {
    gone(path);
    let file = local(path, &LocalOptions::create_new())?;
    let block_size = u32::try_from(block_size)?;
    create(file.clone(), &CreateOptions { block_size, ..CreateOptions::new(size) }).await?;
    let disk = Vhdx::open(file, OpenOptions::default()).await?;
    if full {
        fill(&disk).await?;
    }
    Ok(Arc::new(disk))
}

async fn raw(path: &Path, size: u64, full: bool) -> Outcome<Arc<dyn Disk>> {
    gone(path);
    let file = local(path, &LocalOptions::create_new())?;
    block_io::File::set_len(&*file, size).await?;
    let disk = RawDisk::open(file, 512).await?;
    if full {
        fill(&disk).await?;
    }
    Ok(Arc::new(disk))
}

/// Fills a disk in pieces so small that the page cache has room for each in one: ext4 walks all
/// blocks of the piece that a write goes to, and of larger ones whoever is filled first has more.
async fn fill(disk: &dyn Disk) -> Outcome<()> {
    const PIECE: usize = 64 << 10;
    let data = vec![0x5a; PIECE];
    for at in (0..disk.geometry().size).step_by(PIECE) {
        disk.write_at(at, &data).await?;
    }
    Ok(disk.flush().await?)
}

/// Writes a second by `qemu-img bench` to a fresh image, with a step that comes everywhere.
fn qemu_bench(qemu: &Path, path: &Path, format: &str) -> Outcome<f64> {
    let step = load::step(FRESH);
    let seconds = timed(
        Command::new(qemu)
            .args(["bench", "-w", "-d", "32", "-s", "4096", "-t", "writeback", "-f", format])
            .args(["-c", &QEMU_WRITES.to_string(), "-S", &step.to_string()])
            .arg(path),
    )?;
    Ok(QEMU_WRITES as f64 / seconds)
}

fn allocations(rows: &mut Rows, folder: &Path, qemu: Option<&Path>) -> Outcome<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let path = folder.join("fresh");
    let pattern = Pattern { access: Access::Write, size: FRESH, count: WRITES };
    for block_size in [MIB, 32 * MIB] {
        let mut all: Vec<Contestant<'_>> = vec![
            (
                OURS,
                Box::new(|| {
                    runtime.block_on(async {
                        let disk = image(&path, FRESH, block_size, false).await?;
                        let rate = load::run(disk.clone(), pattern).await?;
                        disk.close().await?;
                        Ok(rate)
                    })
                }),
            ),
            (
                RAW,
                Box::new(|| {
                    runtime.block_on(async {
                        let disk = raw(&path, FRESH, false).await?;
                        let rate = load::run(disk.clone(), pattern).await?;
                        disk.close().await?;
                        Ok(rate)
                    })
                }),
            ),
        ];
        if let Some(qemu) = qemu {
            let path = &path;
            all.push((
                QEMU,
                Box::new(move || {
                    gone(path);
                    let block = format!("block_size={block_size}");
                    timed(
                        Command::new(qemu)
                            .args(["create", "-q", "-f", "vhdx", "-o", &block])
                            .arg(path)
                            .arg(FRESH.to_string()),
                    )?;
                    qemu_bench(qemu, path, "vhdx")
                }),
            ));
        }
        rows.measure(&targets::allocate(block_size / MIB), "op/s", all)?;
    }
    gone(&path);
    Ok(())
}

fn accesses(rows: &mut Rows, folder: &Path) -> Outcome<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (a, b) = (folder.join("full.vhdx"), folder.join("full.raw"));
    let (image, raw) = runtime.block_on(async {
        let image = image(&a, FULL, 32 * MIB, true).await?;
        Outcome::Ok((image, raw(&b, FULL, true).await?))
    })?;
    for (load, access) in [(FULL_READ, Access::Read), (FULL_WRITE, Access::Write)] {
        let pattern = Pattern { access, size: FULL, count: ACCESSES };
        let once = |disk: &Arc<dyn Disk>| runtime.block_on(load::run(disk.clone(), pattern));
        let all: Vec<Contestant<'_>> =
            vec![(OURS, Box::new(|| once(&image))), (RAW, Box::new(|| once(&raw)))];
        rows.measure(load, "op/s", all)?;
    }
    runtime.block_on(async {
        image.close().await?;
        raw.close().await
    })?;
    gone(&a);
    gone(&b);
    Ok(())
}

/// Opens an image in a process of its own and tells what that took.
fn opens(rows: &mut Rows, folder: &Path) -> Outcome<Vec<Value>> {
    let mut opened = Vec::new();
    let path = folder.join("large.vhdx");
    let runtime = tokio::runtime::Runtime::new()?;
    for block_size in [MIB, 32 * MIB] {
        if !OPEN.contains(&rows.wanted) {
            continue;
        }
        gone(&path);
        runtime.block_on(async {
            let disk = image(&path, vhd::vhdx::MAX_DISK, block_size, false).await?;
            // Something at both ends and in the middle.
            for at in [0, vhd::vhdx::MAX_DISK / 2, vhd::vhdx::MAX_DISK - 4096] {
                disk.write_at(at, &[1; 4096]).await?;
            }
            Outcome::Ok(disk.close().await?)
        })?;
        let mut best: Option<(f64, f64)> = None;
        for _ in 0..rows.turns {
            let mut command = Command::new(env::current_exe()?);
            let output = run(command.arg("--open").arg(&path), LIMIT);
            let text = String::from_utf8(output.stdout)?;
            let mut numbers = text.split_whitespace().map(str::parse::<f64>);
            let (Some(Ok(ms)), Some(Ok(mib))) = (numbers.next(), numbers.next()) else {
                return Err(format!("opening said {text:?}").into());
            };
            best = Some(best.map_or((ms, mib), |(a, b)| (a.min(ms), b.min(mib))));
        }
        let (ms, mib) = best.unwrap_or_default();
        let load = format!("{OPEN}, {} MiB blocks", block_size / MIB);
        println!("{load:<40} {OURS:<24} {ms:>9.1} ms {mib:.1} MiB");
        opened.push(json!({"load": load, "milliseconds": ms, "peak_mebibytes": mib}));
    }
    gone(&path);
    Ok(opened)
}

/// What [`opens`] runs: prints milliseconds and the largest memory of the process in MiB.
fn open_one(path: &Path) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let since = Instant::now();
        let file = local(path, &LocalOptions::read_write())?;
        let disk = Vhdx::open(file, OpenOptions::default()).await?;
        let mut sector = [0; 4096];
        disk.read_at(vhd::vhdx::MAX_DISK / 2, &mut sector).await?;
        let ms = since.elapsed().as_secs_f64() * 1e3;
        if sector != [1; 4096] {
            return Err("the sector is not what was written".into());
        }
        let status = fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
        println!("{ms} {}", kib.ok_or("no VmHWM")? / 1024.0);
        Ok(disk.close().await?)
    })
}

fn bench(turns: usize, wanted: String) -> Outcome<PathBuf> {
    let folder = tempfile::tempdir()?;
    let qemu = installed("qemu-img");
    let qemu = qemu.as_deref();
    let mut rows = Rows { wanted, turns, rows: Vec::new() };
    let opened = opens(&mut rows, folder.path())?;
    if CONVERT.contains(&rows.wanted) {
        converts(&mut rows, folder.path(), qemu)?;
    }
    if ALLOCATE.contains(&rows.wanted) {
        allocations(&mut rows, folder.path(), qemu)?;
    }
    if [FULL_READ, FULL_WRITE].iter().any(|load| load.contains(&rows.wanted)) {
        accesses(&mut rows, folder.path())?;
    }
    let mut report = json!({"turns": turns, "rows": rows.rows, "opens": opened});
    let targets = targets::judge(&report);
    targets.iter().for_each(|target| println!("{target}"));
    report["targets"] = targets.iter().map(bulkhead_tests::target::Target::to_json).collect();
    let folder = ours("bulkhead").ancestors().nth(2).map(|target| target.join("bench"));
    let folder = folder.ok_or("binaries stand in target/PROFILE")?;
    fs::create_dir_all(&folder)?;
    let path = folder.join("disk.json");
    fs::write(&path, format!("{report:#}\n"))?;
    Ok(path)
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some("--open") if args.len() == 2 => open_one(Path::new(&args[1])),
        first => match first.map_or(Ok(3), str::parse::<usize>) {
            Ok(turns @ 1..=100) => bench(turns, args.get(1).cloned().unwrap_or_default())
                .map(|path| println!("written: {}", path.display())),
            _ => Err(format!("bench-disk [TURNS] [PART]: {first:?} is not 1 to 100 turns").into()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-disk: {error}");
            ExitCode::FAILURE
        }
    }
}
