//! `make bench`: live migration over loopback, with the disk on a share of smbd. A guest of 1 GiB
//! rewrites 64 MiB of memory all the time and writes its disk; it moves to and fro.
//!
//! Writes `target/bench/migration.json`: for each move downtime, throughput, rounds.

use std::{fs, path::Path, process::ExitCode};

use bulkhead_tests::{
    host_cli::{
        Host, Line, Outcome, cli, healthy, number, share_url, shown, verify, write_credentials,
        write_vm_of,
    },
    process::ours,
    smbd::Smbd,
};
use serde_json::{Value, json};

const MOVES: usize = 6;
const MEMORY_MIB: u32 = 1024;
const GUEST: &str = "span=256 flush_every=16 ws_mib=64 iops=2000 seed=11";

fn bench() -> Outcome<Value> {
    let server = Smbd::start("encryption = \"offered\"", "");
    let folder = server.scratch();
    let url = share_url(&server, "bench.vhdx");
    cli(&["disk", "create", &url, "--size", "4GiB"])?;
    write_credentials(folder)?;
    let hosts = [Host::start("host-1", folder, &url)?, Host::start("host-2", folder, &url)?];
    let vm = write_vm_of(folder, &url, GUEST, MEMORY_MIB)?;
    hosts[0].ask(&["create", &shown(&vm)])?;
    hosts[0].ask(&["start", "demo"])?;
    let text = hosts[0].ask(&["console", "demo", "--replay", "--until", "progress"])?;
    let start = Line::last(&text, "start").ok_or("the guest says nothing")?;
    let mut moves = Vec::new();
    for turn in 0..MOVES {
        let (from, to) = (&hosts[turn % 2], &hosts[(turn + 1) % 2]);
        let answer = from.ask_json(&["move", "demo", "--to", &to.migration])?;
        let moved = answer.get("statistics").unwrap_or(&answer).clone();
        healthy(&to.progress("progress")?)?;
        println!(
            "move {}: {} in {:.0} ms, downtime {:.1} ms, {:.0} MB/s",
            turn + 1,
            moved["outcome"],
            number(&moved, "total_ms"),
            number(&moved, "downtime_ms"),
            number(&moved, "mb_per_s"),
        );
        moves.push(moved);
    }
    let text = hosts[0].ask(&["console", "demo", "--send", "stop", "--until", "final"])?;
    let last = Line::last(&text, "final").ok_or("the guest does not stop")?;
    while hosts[0].ask_json(&["list"])?.to_string().contains("running") {
        std::thread::yield_now();
    }
    let verified = verify(folder, &url, &start, &last)?;
    let mut downtimes: Vec<f64> = moves.iter().map(|m| number(m, "downtime_ms")).collect();
    downtimes.sort_by(f64::total_cmp);
    Ok(json!({
        "memory_mib": MEMORY_MIB,
        "guest": GUEST,
        "downtime_ms_median": downtimes[MOVES / 2],
        "downtime_ms_worst": downtimes[MOVES - 1],
        "verified": verified,
        "moves": moves,
    }))
}

fn main() -> ExitCode {
    if !Path::new("/dev/kvm").exists() {
        bulkhead_tests::skip(bulkhead_tests::Need::Kvm.because("this machine has no /dev/kvm"));
        return ExitCode::SUCCESS;
    }
    let report = match bench() {
        Ok(report) => report,
        Err(error) => {
            eprintln!("bench-migration: {error}");
            return ExitCode::FAILURE;
        }
    };
    let folder = ours("bulkhead").ancestors().nth(2).map(|target| target.join("bench"));
    let folder = folder.expect("binaries stand in target/PROFILE");
    fs::create_dir_all(&folder).expect("target is writable");
    let path = folder.join("migration.json");
    fs::write(&path, format!("{report:#}\n")).expect("target is writable");
    println!("written: {}", path.display());
    ExitCode::SUCCESS
}
