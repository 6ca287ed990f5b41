//! `make bench`: smbd beside Samba, in one run, with the same client, the same file size and the
//! same pinning (server on CPU 0, client on CPU 1), signed and encrypted.
//!
//! Writes `target/bench/smb.json` and prints a table. A row is one combination of what is done
//! and how it is protected; `ratio` is our operations per second over Samba's best.

use std::{
    env, fs,
    process::{Command, ExitCode},
    time::Duration,
};

use bulkhead_tests::{
    process::{ours, run},
    samba::{self, Samba},
    smbd::{self, Smbd},
};
use serde_json::{Value, json};

/// What is measured: name and arguments of `bulkhead bench smb`.
const LOADS: [(&str, &[&str]); 5] = [
    ("4 KiB random read QD32", &["--rw", "read", "--queue-depth", "32"]),
    ("4 KiB random write QD32", &["--rw", "write", "--queue-depth", "32"]),
    ("4 KiB random read QD1", &["--rw", "read", "--queue-depth", "1"]),
    (
        "1 MiB sequential read QD8",
        &["--rw", "read", "--pattern", "seq", "--block-size", "1M", "--queue-depth", "8"],
    ),
    (
        "1 MiB sequential write QD8",
        &["--rw", "write", "--pattern", "seq", "--block-size", "1M", "--queue-depth", "8"],
    ),
];

const PROTECTIONS: [(&str, &[&str]); 3] = [
    ("unsigned", &["--sign", "off", "--encrypt", "off"]),
    ("signed", &["--sign", "on", "--encrypt", "off"]),
    ("encrypted", &["--sign", "on", "--encrypt", "on"]),
];

struct Server<'a> {
    name: &'a str,
    pid: u32,
    user: &'a str,
    password: &'a str,
    port: u16,
}

fn pin(pid: u32, cpu: &str) {
    let output = run(
        Command::new("taskset").args(["-a", "-c", "-p", cpu, &pid.to_string()]),
        Duration::from_secs(10),
    );
    assert!(output.status.success(), "taskset failed");
}

fn measure(server: &Server<'_>, seconds: &str, load: &[&str], protection: &[&str]) -> Value {
    let mut command = Command::new("taskset");
    command
        .args(["-c", "1"])
        .arg(ours("bulkhead"))
        .args(["bench", "smb", "--json", "--size", "256M", "--seconds", seconds])
        .args(["--server-pid", &server.pid.to_string()])
        .args(load)
        .args(protection)
        .arg(format!("smb://{}@127.0.0.1:{}/vms/bench.dat", server.user, server.port))
        .env("BULKHEAD_SMB_PASSWORD", server.password);
    let output = run(&mut command, Duration::from_secs(120));
    assert!(
        output.status.success(),
        "{}: {}",
        server.name,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("bulkhead bench prints JSON")
}

fn main() -> ExitCode {
    let seconds = env::args().nth(1).unwrap_or_else(|| "5".to_owned());
    let ours_server =
        Smbd::start("signing = \"enabled\"\nencryption = \"offered\"\nthreads = 1", "");
    let plain = Samba::start("", "");
    let uring = Samba::start("", "vfs objects = io_uring");
    let mut servers = vec![Server {
        name: "bulkhead",
        pid: ours_server.pid(),
        user: smbd::USER,
        password: smbd::PASSWORD,
        port: ours_server.port(),
    }];
    for (name, peer) in [("samba", &plain), ("samba io_uring", &uring)] {
        if let Some(peer) = peer {
            servers.push(Server {
                name,
                pid: peer.pid(),
                user: samba::USER,
                password: samba::PASSWORD,
                port: peer.port(),
            });
        }
    }
    servers.iter().for_each(|server| pin(server.pid, "0"));
    let mut rows = Vec::new();
    println!(
        "{:<28} {:<10} {:<15} {:>10} {:>9} {:>8} {:>9}",
        "load", "protection", "server", "op/s", "MB/s", "CPU µs", "p50 µs"
    );
    for (load_name, load) in LOADS {
        for (protection_name, protection) in PROTECTIONS {
            let mut results = serde_json::Map::new();
            for server in &servers {
                let result = measure(server, &seconds, load, protection);
                let latency =
                    if result["read"]["operations"].as_u64() > Some(0) { "read" } else { "write" };
                println!(
                    "{load_name:<28} {protection_name:<10} {:<15} {:>10.0} {:>9.1} {:>8.2} {:>9.1}",
                    server.name,
                    result["operations_per_second"].as_f64().unwrap_or(0.0),
                    result["megabytes_per_second"].as_f64().unwrap_or(0.0),
                    result["server_cpu_us_per_operation"].as_f64().unwrap_or(0.0),
                    result[latency]["p50_us"].as_f64().unwrap_or(0.0),
                );
                results.insert(server.name.to_owned(), result);
            }
            let rate = |name: &str| {
                results.get(name).and_then(|r| r["operations_per_second"].as_f64()).unwrap_or(0.0)
            };
            let best = rate("samba").max(rate("samba io_uring"));
            let ratio = (best > 0.0).then(|| rate("bulkhead") / best);
            rows.push(json!({
                "load": load_name, "protection": protection_name, "ratio": ratio, "servers": results,
            }));
        }
    }
    let report = json!({
        "pinning": "server processes on CPU 0, client on CPU 1",
        "file": "256 MiB, page-cached",
        "seconds_per_row": seconds,
        "rows": rows,
    });
    let folder = ours("bulkhead").ancestors().nth(2).map(|target| target.join("bench"));
    let folder = folder.expect("binaries stand in target/PROFILE");
    fs::create_dir_all(&folder).expect("target is writable");
    let path = folder.join("smb.json");
    fs::write(&path, format!("{report:#}\n")).expect("target is writable");
    println!("written: {}", path.display());
    ExitCode::SUCCESS
}
