//! `make bench`: smbd beside Samba, in one run, with the same client, the same file size and the
//! same pinning (server on CPU 0, client on CPU 1), unsigned, signed and encrypted.
//!
//! Writes `target/bench/smb.json` and prints tables. A row is one combination of what is done
//! and how it is protected; `ratio` is our operations per second over Samba's best. Beside the
//! rows stand what the machine allows, the memory of idle sessions, and each target with what
//! was measured. The first argument is how many seconds a row takes: 5, or 1 for a quick look; the
//! second, if there is one, a part of the names of the loads that are wanted (`bench-smb 1 files`).
//! The shares are made in `TMPDIR`: `TMPDIR=/dev/shm` takes the disk out of the rows of small
//! files. Take the rows of reads from a disk's file system: tmpfs cannot read without waiting, so
//! that our reads from it go through io_uring. `BULKHEAD_BEFORE=PROGRAM` names an earlier build of
//! smbd, which is measured in turn with today's: its columns are no peer's, and `beside_before` says
//! what changed.

mod targets;

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use bulkhead_tests::{
    process::{ours, run},
    samba::{self, Samba},
    smbd::{self, Smbd},
};
use serde_json::{Map, Value, json};
use targets::{
    BEFORE, BULKHEAD, FAIR_READ, RAND_READ, RAND_READ_1, RAND_WRITE, SEQ_READ, SEQ_WRITE, SMALL,
};

/// Loads on one file: name and arguments of `bulkhead bench smb`.
const LOADS: [(&str, &[&str]); 5] = [
    (RAND_READ, &["--rw", "read", "--queue-depth", "32"]),
    (RAND_WRITE, &["--rw", "write", "--queue-depth", "32"]),
    (RAND_READ_1, &["--rw", "read", "--queue-depth", "1"]),
    (SEQ_READ, &["--rw", "read", "--pattern", "seq", "--block-size", "1M", "--queue-depth", "8"]),
    (SEQ_WRITE, &["--rw", "write", "--pattern", "seq", "--block-size", "1M", "--queue-depth", "8"]),
];

/// Queue depths of small files, in the order of their names.
const SMALL_DEPTHS: [&str; 2] = ["1", "8"];

const FAIR: &[&str] = &["--rw", "read", "--queue-depth", "16", "--connections", "64"];

const PROTECTIONS: [(&str, &[&str]); 3] = [
    ("unsigned", &["--sign", "off", "--encrypt", "off"]),
    ("signed", &["--sign", "on", "--encrypt", "off"]),
    ("encrypted", &["--sign", "on", "--encrypt", "on"]),
];

/// Idle sessions opened on our server.
const SESSIONS: u32 = 1000;
/// Idle sessions opened on Samba, which has a process for each.
const SESSIONS_OF_SAMBA: u32 = 200;

/// How often each of two builds is measured.
const TURNS: usize = 3;

const SERVER_CPU: &str = "0";
const CLIENT_CPU: &str = "1";

const SERVER_OPTIONS: &str = "signing = \"enabled\"\nencryption = \"offered\"\nthreads = 1";

struct Server<'a> {
    name: &'a str,
    pid: u32,
    user: &'a str,
    password: &'a str,
    port: u16,
}

impl<'a> Server<'a> {
    fn bulkhead(name: &'a str, server: &Smbd) -> Self {
        Self {
            name,
            pid: server.pid(),
            user: smbd::USER,
            password: smbd::PASSWORD,
            port: server.port(),
        }
    }

    fn samba(name: &'a str, server: &Samba) -> Self {
        Self {
            name,
            pid: server.pid(),
            user: samba::USER,
            password: samba::PASSWORD,
            port: server.port(),
        }
    }

    fn pin(&self) {
        let output = run(
            Command::new("taskset").args(["-a", "-c", "-p", SERVER_CPU, &self.pid.to_string()]),
            Duration::from_secs(10),
        );
        assert!(output.status.success(), "taskset failed");
    }

    /// Runs `bulkhead bench WHAT` against `path` on its share.
    fn bench(&self, what: &str, path: &str, args: &[&[&str]]) -> Value {
        let mut command = client();
        command
            .args([what, "--json", "--server-pid", &self.pid.to_string()])
            .args(args.concat())
            .arg(format!("smb://{}@127.0.0.1:{}/vms/{path}", self.user, self.port))
            .env("BULKHEAD_SMB_PASSWORD", self.password);
        json_of(&mut command, self.name)
    }
}

fn client() -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", CLIENT_CPU]).arg(ours("bulkhead")).arg("bench");
    command
}

fn json_of(command: &mut Command, name: &str) -> Value {
    let output = run(command, Duration::from_secs(300));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("bulkhead bench prints JSON")
}

/// What the machine allows, with the file in `folder`.
fn machine(folder: &Path, seconds: f64) -> Value {
    let mut command = client();
    command
        .args(["machine", "--json", "--size", "256M"])
        .args(["--server-cpu", SERVER_CPU, "--client-cpu", CLIENT_CPU])
        .args(["--seconds", &seconds.min(3.0).to_string()])
        .arg(folder.join("machine.dat"));
    let report = json_of(&mut command, "machine");
    for (name, value) in report.as_object().into_iter().flatten() {
        if let Some(name) = name.strip_suffix("_megabytes_per_second") {
            println!("{name:<28} {:>37.1} MB/s", value.as_f64().unwrap_or(0.0));
        }
    }
    report
}

/// The name of the file system that a folder is on.
fn file_system(folder: &Path) -> String {
    let mut command = Command::new("stat");
    let output = run(command.args(["-f", "-c", "%T"]).arg(folder), Duration::from_secs(10));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Collects the rows and prints each as it is measured.
struct Rows {
    /// Part of the names of the loads that are wanted.
    wanted: String,
    rows: Vec<Value>,
    machine: Value,
}

impl Rows {
    fn measure(
        &mut self,
        load: &str,
        protection: &str,
        servers: &[Server<'_>],
        measure: impl Fn(&Server<'_>, usize) -> Value,
    ) {
        if !load.contains(&self.wanted) {
            return;
        }
        let mut results = Map::new();
        for (server, result) in in_turns(servers, measure) {
            let latency = ["read", "write", "file"]
                .into_iter()
                .find(|kind| result[kind]["operations"].as_u64() > Some(0))
                .unwrap_or("read");
            println!(
                "{load:<28} {protection:<10} {:<15} {:>10.0} {:>9.1} {:>8.2} {:>9.1}",
                server,
                result["operations_per_second"].as_f64().unwrap_or(0.0),
                result["megabytes_per_second"].as_f64().unwrap_or(0.0),
                result["server_cpu_us_per_operation"].as_f64().unwrap_or(0.0),
                result[latency]["p50_us"].as_f64().unwrap_or(0.0),
            );
            results.insert(server.to_owned(), result);
        }
        let mut row = json!({
            "load": load,
            "protection": protection,
            "ratio": targets::ratio(&results),
            "servers": results,
        });
        if let Some(change) = row["servers"].as_object().and_then(targets::beside_before) {
            println!("{load:<28} {protection:<10} beside before   {change}");
            row["beside_before"] = change;
        }
        if let Some(limits) = targets::limits(load, &row, &self.machine) {
            row["limits"] = limits;
        }
        self.rows.push(row);
    }
}

/// Measures the servers one after the other, each once. Beside an earlier build the machine's moods
/// count for more than what is looked for, so that builds are measured in several turns and the middle one
/// of each is taken.
fn in_turns<'a>(
    servers: &'a [Server<'_>],
    measure: impl Fn(&Server<'_>, usize) -> Value,
) -> Vec<(&'a str, Value)> {
    let turns = if servers.iter().any(|server| server.name == BEFORE) { TURNS } else { 1 };
    let mut results: Vec<_> = servers.iter().map(|server| (server.name, Vec::new())).collect();
    for turn in 0..turns {
        for (server, (name, measured)) in servers.iter().zip(&mut results) {
            if turn == 0 || [BULKHEAD, BEFORE].contains(name) {
                // What was written before does not compete.
                rustix::fs::sync();
                measured.push(measure(server, turn));
            }
        }
    }
    let rate = |result: &Value| result["operations_per_second"].as_f64().unwrap_or(0.0);
    let middle = |(name, mut measured): (&'a str, Vec<Value>)| {
        measured.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        (name, measured.swap_remove(measured.len() / 2))
    };
    results.into_iter().map(middle).collect()
}

fn sessions(servers: &[Server<'_>]) -> Value {
    let mut results = Map::new();
    for server in servers {
        let count = if server.name == BULKHEAD { SESSIONS } else { SESSIONS_OF_SAMBA };
        let result = server.bench("smb-sessions", "", &[&["--sessions", &count.to_string()]]);
        let kib = |name: &str| result[name].as_f64().unwrap_or(0.0) / 1024.0;
        println!(
            "{:<28} {:<10} {:<15} {:>8.1} KiB resident, {:.1} KiB when shared pages count once",
            format!("{count} idle sessions, each"),
            "signed",
            server.name,
            kib("server_rss_per_session"),
            kib("server_pss_per_session"),
        );
        results.insert(server.name.to_owned(), result);
    }
    Value::Object(results)
}

fn main() -> ExitCode {
    let text = env::args().nth(1).unwrap_or_else(|| "5".to_owned());
    let Some(seconds) = text.parse::<f64>().ok().filter(|s| (0.1..=600.0).contains(s)) else {
        eprintln!("bench-smb [SECONDS]: {text:?} is not a number of seconds from 0.1 to 600");
        return ExitCode::FAILURE;
    };
    let wanted = env::args().nth(2).unwrap_or_default();
    let ours_server = Smbd::start(SERVER_OPTIONS, "");
    // Idle sessions are weighed on a server that has done nothing yet, whose free memory cannot
    // hide what they take.
    let ours_idle = Smbd::start(SERVER_OPTIONS, "");
    let plain = Samba::start("", "");
    let uring = Samba::start("", "vfs objects = io_uring");
    let before = env::var_os("BULKHEAD_BEFORE")
        .map(|program| Smbd::start_program(Path::new(&program), SERVER_OPTIONS, ""));
    let mut servers = vec![Server::bulkhead(BULKHEAD, &ours_server)];
    let mut idle = vec![Server::bulkhead(BULKHEAD, &ours_idle)];
    servers.extend(before.as_ref().map(|before| Server::bulkhead(BEFORE, before)));
    if let Some(plain) = &plain {
        servers.push(Server::samba("samba", plain));
        idle.push(Server::samba("samba", plain));
    }
    if let Some(uring) = &uring {
        servers.push(Server::samba("samba io_uring", uring));
    }
    servers.iter().chain(&idle).for_each(Server::pin);

    let sessions = sessions(&idle);
    drop(ours_idle);
    let mut rows =
        Rows { wanted, rows: Vec::new(), machine: machine(&ours_server.files(), seconds) };
    println!(
        "{:<28} {:<10} {:<15} {:>10} {:>9} {:>8} {:>9}",
        "load", "protection", "server", "op/s", "MB/s", "CPU µs", "p50 µs"
    );
    let time: &[&str] = &["--seconds", &text];
    let size: &[&str] = &["--size", "256M"];
    for (load, args) in LOADS {
        // What the page cache has of a file that was read and written at random is in small pieces,
        // which makes large requests slow, and is not so in what the machine is measured with.
        let file = if [SEQ_READ, SEQ_WRITE].contains(&load) { "seq.dat" } else { "bench.dat" };
        for (name, protection) in PROTECTIONS {
            rows.measure(load, name, &servers, |server, _| {
                server.bench("smb", file, &[time, size, args, protection])
            });
        }
    }
    for (load, depth) in SMALL.into_iter().zip(SMALL_DEPTHS) {
        for (name, protection) in PROTECTIONS {
            rows.measure(load, name, &servers, |server, turn| {
                let folder = format!("files-{depth}-{name}-{turn}");
                // Nothing is removed meanwhile: ext4 passes over the inodes of files that have just
                // gone, which takes it long.
                let args: &[&str] = &["--keep", "--queue-depth", depth];
                server.bench("smb-files", &folder, &[time, args, protection])
            });
        }
    }
    let (name, protection) = PROTECTIONS[1];
    rows.measure(FAIR_READ, name, &servers, |server, _| {
        server.bench("smb", "bench.dat", &[time, size, FAIR, protection])
    });

    let mut report = json!({
        "pinning": {"server_cpu": SERVER_CPU, "client_cpu": CLIENT_CPU, "server_threads": 1},
        "file": "256 MiB, page-cached",
        "file_system": file_system(&ours_server.files()),
        "seconds_per_row": seconds,
        "machine": rows.machine,
        "rows": rows.rows,
        "sessions": sessions,
    });
    let targets = targets::judge(&report);
    println!("{:<66} {:>10} {:>10}", "target", "measured", "met");
    for target in &targets {
        println!("{target}");
    }
    report["targets"] = targets.iter().map(bulkhead_tests::target::Target::to_json).collect();
    let folder = ours("bulkhead").ancestors().nth(2).map(|target| target.join("bench"));
    let folder = folder.expect("binaries stand in target/PROFILE");
    fs::create_dir_all(&folder).expect("target is writable");
    let path = folder.join("smb.json");
    fs::write(&path, format!("{report:#}\n")).expect("target is writable");
    println!("written: {}", path.display());
    ExitCode::SUCCESS
}
