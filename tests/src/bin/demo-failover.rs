//! `make demo-failover`: a guest does not notice that its file server dies.
//!
//! smbd serves a continuously available share below its supervisor; a guest runs from a VHDX on it
//! and writes with flushes; the server is killed with SIGKILL twenty times and upgraded in place
//! five times. The guest sees no error, every write that was acknowledged to it is in the image,
//! and the longest pause of each kind is printed. Beside each pause stands how long the file system
//! itself took at most to make a small write durable meanwhile: no server can be faster than that.
//! Everything is private; nothing is left running.

use std::{
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    host_cli::{
        Host, Line, Outcome, cli, healthy, shown, url_in, verify, write_credentials, write_vm,
    },
    smbd::Smbd,
};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(60);
/// The guest's disk activity: 256 MiB of the disk, eight writes a flush.
const GUEST: &str = "span=256 flush_every=8 ws_mib=16 iops=2000 seed=2027";
const SHARE: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                     continuously_available = true";
const KILLS: usize = 20;
const UPGRADES: usize = 5;
/// Aims in milliseconds, for a kill and for an upgrade.
const AIMS: [f64; 2] = [500.0, 200.0];

fn tell(since: Instant, text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "[{:7.3} s] {text}", since.elapsed().as_secs_f64());
}

/// Waits until another process than `pid` serves.
fn successor(server: &Smbd, pid: u32) -> Outcome<u32> {
    let since = Instant::now();
    loop {
        if let Some(now) = server.serving_pid().filter(|now| *now != pid) {
            return Ok(now);
        }
        if since.elapsed() > LIMIT {
            return Err("no other server comes".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// What the pauses of one kind were like, in milliseconds.
#[derive(Default)]
struct Pauses(Vec<f64>);

impl Pauses {
    fn describe(&mut self, what: &str) -> String {
        self.0.sort_by(f64::total_cmp);
        let last = self.0.last().copied().unwrap_or_default();
        let median = self.0.get(self.0.len() / 2).copied().unwrap_or_default();
        format!(
            "{} {what}: longest pause of the guest {last:.0} ms, median {median:.0} ms",
            self.0.len()
        )
    }

    fn longest(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }
}

/// Writes a little to a file of its own beside the image and waits until it is durable, over and
/// over, and keeps the longest time that took.
struct Disk {
    longest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Disk {
    fn watch(folder: &Path) -> Outcome<Self> {
        let file = std::fs::File::create(folder.join("probe")).map_err(|e| e.to_string())?;
        let (longest, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (told, ends) = (longest.clone(), over.clone());
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let since = Instant::now();
                let done = file.write_all_at(b"probe", 0).and_then(|()| file.sync_data());
                if done.is_err() {
                    return;
                }
                told.fetch_max(since.elapsed().as_micros() as u64, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        Ok(Self { longest, over })
    }

    /// The longest time since the last call in milliseconds.
    fn longest(&self) -> f64 {
        self.longest.swap(0, Ordering::Relaxed) as f64 / 1e3
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// The longest time without a completed request that the guest saw, until it goes on.
fn pause(host: &Host, before: u64) -> Outcome<(f64, u64)> {
    let mut longest = 0;
    let since = Instant::now();
    loop {
        let line = host.progress("progress")?;
        healthy(&line)?;
        longest = longest.max(line.find("gap_us")?);
        let acked = line.find("acked")?;
        // Two lines at least: the first may have begun before.
        if acked > before + 100 {
            let line = host.progress("progress")?;
            healthy(&line)?;
            longest = longest.max(line.find("gap_us")?);
            return Ok((longest as f64 / 1e3, line.find("acked")?));
        }
        if since.elapsed() > LIMIT {
            return Err("the guest does not go on".into());
        }
    }
}

fn demo(since: Instant) -> Outcome<()> {
    if !Path::new("/dev/kvm").exists() {
        return Err("this machine has no /dev/kvm, which VM hosts need".into());
    }
    let mut server = Smbd::supervised(&[], "encryption = \"offered\"", SHARE);
    let folder = server.scratch().to_path_buf();
    let url = url_in(&server, "ca", "demo.vhdx");
    cli(&["disk", "create", &url, "--size", "2GiB"])?;
    write_credentials(&folder)?;
    let host = Host::start("host", &folder, &url)?;
    let vm = write_vm(&folder, &url, GUEST)?;
    host.ask(&["create", &shown(&vm)])?;
    host.ask(&["start", "demo"])?;
    let text = host.ask(&["console", "demo", "--replay", "--until", "progress"])?;
    let start = Line::last(&text, "start").ok_or_else(|| format!("no start line: {text}"))?;
    tell(since, "a guest runs from a continuously available share and writes");

    let disk = Disk::watch(&server.files())?;
    let mut pid = server.serving_pid().ok_or("the server does not answer")?;
    let mut acked = host.progress("progress")?.find("acked")?;
    let (mut kills, mut upgrades) = (Pauses::default(), Pauses::default());
    for round in 0..KILLS + UPGRADES {
        let _ = disk.longest();
        let upgrade = round % 5 == 4;
        if upgrade {
            let asked = server.admin(&["server", "upgrade"]);
            if !asked.status.success() {
                return Err(String::from_utf8_lossy(&asked.stderr).into_owned());
            }
        } else {
            let gone = Pid::from_raw(pid.cast_signed()).ok_or("no process")?;
            kill_process(gone, Signal::KILL).map_err(|e| e.to_string())?;
        }
        pid = successor(&server, pid)?;
        let (longest, now) = pause(&host, acked)?;
        acked = now;
        let pauses = if upgrade { &mut upgrades } else { &mut kills };
        pauses.0.push(longest);
        let what = if upgrade { "upgraded" } else { "killed" };
        tell(
            since,
            &format!(
                "{what}: paused {longest:.0} ms (the disk alone {:.0} ms), {acked} writes acknowledged",
                disk.longest()
            ),
        );
    }
    let text = host.ask(&["console", "demo", "--send", "stop", "--until", "final"])?;
    let last = Line::last(&text, "final").ok_or_else(|| format!("no final line: {text}"))?;
    healthy(&last)?;
    let stopped = Instant::now();
    while host.ask_json(&["list"])?.to_string().contains("running") {
        if stopped.elapsed() > LIMIT {
            return Err("the guest does not power off".into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let found = verify(&folder, &url, &start, &last)?;
    tell(
        since,
        &format!("no error in the guest; every acknowledged block is in the image: {found}"),
    );
    tell(since, &kills.describe("kills"));
    tell(since, &upgrades.describe("upgrades"));
    for (pauses, aim) in [(&kills, AIMS[0]), (&upgrades, AIMS[1])] {
        if pauses.longest() > aim {
            tell(since, &format!("a pause was longer than the {aim} ms that are aimed at"));
        }
    }
    host.ask(&["delete", "demo"])?;
    // That it ended and was started again is in its log as it must be; nothing else is.
    let bad = server.stop();
    let others = bad.iter().filter(|line| !line.contains("has ended and is started again")).count();
    match others {
        0 => Ok(()),
        _ => Err(format!("smbd complained:\n{}", bad.join("\n"))),
    }
}

fn main() -> ExitCode {
    let since = Instant::now();
    match demo(since) {
        Ok(()) => {
            println!("demo-failover: PASS");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(since, &format!("failed: {error}"));
            println!("demo-failover: FAIL");
            ExitCode::FAILURE
        }
    }
}
