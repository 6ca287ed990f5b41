//! The iSCSI target beside tgt, in one run: rates and the server's CPU time of each command.
//!
//! Writes `target/bench/iscsi.json` and prints a table. The load comes from an initiator of our own
//! that sends together what falls due together, and from libiscsi's `iscsi-perf` where it is installed,
//! in five turns on each target.
//! `bench-iscsi [SECONDS]`: of each load in all (3). `TGTD` and `TGTADM` say where tgt's programs are if
//! they are not installed; it runs as a process of this program, never as a service. Images are in
//! `TMPDIR` and in the page cache. `bench-iscsi idle`: only what LUNs cost that nobody uses.

mod load;
mod many;
mod perf;

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use bulkhead_tests::{
    initiator::TARGET,
    iscsi::{Served, lun, thick, vhdx},
    port::Port,
    process::{Stopped, installed, wait_for},
};
use load::{Access, Load, Session};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
/// How often each load has its turn on each target.
const ROUNDS: u32 = 5;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A target and the process that serves it.
struct Contestant {
    name: &'static str,
    at: SocketAddr,
    lun: u8,
    pid: u32,
}

/// What a load came to.
struct Measured {
    /// Commands in a second.
    rate: f64,
    /// Microseconds of the server's CPU for each.
    cpu: f64,
    /// How many times as many the fastest session did as the slowest.
    apart: f64,
}

/// CPU time of a process so far, in seconds.
fn cpu(pid: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').ok_or("no process")?.1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Runs a load over several sessions.
fn measure(who: &Contestant, load: Load, sessions: u8) -> Outcome<Measured> {
    let load = Load { lun: who.lun, ..load };
    let logged_in: Outcome<Vec<Session>> =
        (0..sessions).map(|n| Session::log_in(who.at, TARGET, n, load.digests)).collect();
    let before = cpu(who.pid)?;
    let threads =
        logged_in?.into_iter().map(|mut session| thread::spawn(move || session.run(&load)));
    let (mut all, mut counts) = (0, Vec::new());
    for thread in threads.collect::<Vec<_>>() {
        let (done, counted) = thread.join().map_err(|_| "a session failed")??;
        all += done;
        counts.push(counted as f64);
    }
    let used = cpu(who.pid)? - before;
    let most = counts.iter().copied().fold(0.0, f64::max);
    let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(Measured {
        rate: counts.iter().sum::<f64>() / load.time.as_secs_f64(),
        cpu: used * 1e6 / (all as f64).max(1.0),
        apart: most / least.max(1.0),
    })
}

/// Starts tgt with one logical unit on an image; `None` if it is not there.
fn tgt(image: &Path) -> Outcome<Option<(Stopped, SocketAddr, Port)>> {
    let find = |key: &str, name| env::var_os(key).map(PathBuf::from).or_else(|| installed(name));
    let (Some(daemon), Some(admin)) = (find("TGTD", "tgtd"), find("TGTADM", "tgtadm")) else {
        return Ok(None);
    };
    let port = Port::reserve();
    let at = port.address();
    let control = (port.number() % 30_000).to_string();
    let portal = format!("portal={at}");
    let daemon = Command::new(daemon)
        .args(["-f", "-C", &control, "--iscsi", &portal])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let daemon = Stopped(daemon);
    wait_for(at);
    let image = image.to_str().ok_or("the path is no UTF-8")?;
    for words in [
        &["--mode", "target", "--op", "new", "--tid", "1", "-T", TARGET][..],
        &["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", image],
        &["--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL"],
    ] {
        let mut command = Command::new(&admin);
        let output = command.args(["-C", &control, "--lld", "iscsi"]).args(words).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
    }
    Ok(Some((daemon, at, port)))
}

/// The loads by name, with how many sessions each has.
fn loads(time: Duration) -> Vec<(&'static str, Load, u8)> {
    let small = Load {
        lun: 0,
        access: Access::Read,
        bytes: 4096,
        depth: 32,
        random: true,
        digests: false,
        size: SIZE,
        time,
    };
    let large = Load { bytes: 1 << 20, depth: 8, random: false, ..small };
    let write = Access::Write;
    vec![
        ("4 KiB random reads QD32", small, 1),
        ("4 KiB random writes QD32", Load { access: write, ..small }, 1),
        ("1 MiB reads", large, 1),
        ("1 MiB writes", Load { access: write, ..large }, 1),
        ("4 KiB random reads QD32, digests", Load { digests: true, ..small }, 1),
        ("1 MiB reads, digests", Load { digests: true, ..large }, 1),
        // The threads of 64 sessions have their turns at the processors, too: in a short time that alone
        // sets them apart.
        ("4 KiB random reads, 64 sessions of QD4", Load { depth: 4, time: time * 4, ..small }, 64),
    ]
}

fn bench() -> Outcome<()> {
    let word = env::args().nth(1);
    let rows = match word.as_deref() {
        Some("idle") => Vec::new(),
        Some(seconds) => beside(seconds.parse()?)?,
        None => beside(3)?,
    };
    let idle = many::idle_luns()?;
    fs::create_dir_all("target/bench")?;
    let report = json!({"rows": rows, "idle_luns": idle});
    fs::write("target/bench/iscsi.json", serde_json::to_vec_pretty(&report)?)?;
    Ok(())
}

/// Every load on ours and on tgt.
fn beside(seconds: u64) -> Outcome<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    let raw = thick(folder.path(), "a.raw", SIZE);
    let other = thick(folder.path(), "tgt.raw", SIZE);
    let disk = vhdx(folder.path(), "a.vhdx", "256M");
    let luns = format!("{}{}", lun(0, &raw, ""), lun(1, &disk, ""));
    let served = Served::start(&format!("authentication = \"none\"\n{luns}"));
    let (at, pid) = (served.port.address(), served.server.pid());
    let mut all = vec![
        Contestant { name: "bulkhead", at, lun: 0, pid },
        Contestant { name: "bulkhead, VHDX", at, lun: 1, pid },
    ];
    let peer = tgt(&other)?;
    match &peer {
        Some((daemon, at, _)) => {
            all.push(Contestant { name: "tgt", at: *at, lun: 1, pid: daemon.pid() });
        }
        None => println!("tgt is not here (TGTD, TGTADM): measured alone"),
    }
    // All blocks are there and in the page cache before anything is measured.
    let (_, filling, _) = loads(Duration::from_secs(2)).swap_remove(3);
    for who in &all {
        measure(who, filling, 1)?;
    }
    let mut rows: Vec<Value> = Vec::new();
    let time = Duration::from_secs(seconds) / ROUNDS;
    for (name, load, sessions) in loads(time) {
        told(name, &all, in_turns(&all, |who| Some(measure(who, load, sessions))), &mut rows)?;
    }
    match in_turns(&all, |who| perf::measure(who, time)) {
        none if none.is_empty() => println!("iscsi-perf is not here: not measured"),
        measured => told(perf::NAME, &all, measured, &mut rows)?,
    }
    Ok(rows)
}

/// Prints what a load came to on each, and adds it to the rows.
fn told(
    name: &str,
    all: &[Contestant],
    measured: Vec<Outcome<Measured>>,
    rows: &mut Vec<Value>,
) -> Outcome<()> {
    for (who, measured) in all.iter().zip(measured) {
        // A load that the peer cannot do is no row, and is told.
        match measured {
            Ok(Measured { rate, cpu, apart }) => {
                let apart_is =
                    if apart > 1.0 { format!(", sessions x {apart:.2}") } else { String::new() };
                println!("{name:<40} {:<16} {rate:>9.0} /s {cpu:>8.1} µs CPU{apart_is}", who.name);
                rows.push(json!({"load": name, "target": who.name,
                    "operations_per_second": rate, "cpu_microseconds": cpu,
                    "fastest_session_by_slowest": apart}));
            }
            Err(error) if who.name == "tgt" => println!("{name:<40} tgt: {error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A load on one after the other and from the begin again, so that what the machine does beside it meets
/// all of them: the medians of each. Nothing where the load is not to be had.
fn in_turns(
    all: &[Contestant],
    load: impl Fn(&Contestant) -> Option<Outcome<Measured>>,
) -> Vec<Outcome<Measured>> {
    let mut measured: Vec<Outcome<Vec<Measured>>> = all.iter().map(|_| Ok(Vec::new())).collect();
    for _ in 0..ROUNDS {
        for (who, so_far) in all.iter().zip(&mut measured) {
            let Ok(rounds) = so_far else { continue };
            match load(who) {
                None => return Vec::new(),
                Some(Ok(round)) => rounds.push(round),
                Some(Err(error)) => *so_far = Err(error),
            }
        }
    }
    let median = |rounds: &[Measured], of: fn(&Measured) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let medians = |rounds: Vec<Measured>| Measured {
        rate: median(&rounds, |it| it.rate),
        cpu: median(&rounds, |it| it.cpu),
        apart: median(&rounds, |it| it.apart),
    };
    measured.into_iter().map(|rounds| rounds.map(medians)).collect()
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-iscsi: {error}");
            ExitCode::FAILURE
        }
    }
}
