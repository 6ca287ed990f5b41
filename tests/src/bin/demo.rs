//! `make demo`: the main job from end to end, with programs as an administrator would run them.
//!
//! smbd serves a share; a dynamic VHDX is made through SMB; a guest runs from it on one VM host
//! and moves to a second one and back while it writes; then every acknowledged block is looked
//! for in the image. Each step is a line with a time. Everything is private: ports, folders,
//! keys; nothing is left running.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    host_cli::{
        Host, Line, Outcome, cli, healthy, number, share_url, shown, verify, write_credentials,
        write_vm,
    },
    process::{installed, run},
    smbd::Smbd,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
/// The guest's disk activity: 512 MiB of the disk, four writes a flush and some more.
const GUEST: &str = "span=512 flush_every=8 ws_mib=64 iops=3000 seed=2026";

/// Prints what happens, with the time since the start.
struct Story {
    since: Instant,
}

impl Story {
    fn tell(&self, text: impl AsRef<str>) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "[{:7.3} s] {}", self.since.elapsed().as_secs_f64(), text.as_ref());
    }
}

/// Moves the guest and prints what the move was like; returns the statistics.
fn move_guest(story: &Story, from: &Host, to: &Host) -> Outcome<Value> {
    story.tell(format!("moving the guest from {} to {} while it writes", from.name, to.name));
    let answer = from.ask_json(&["move", "demo", "--to", &to.migration])?;
    let moved = answer.get("statistics").unwrap_or(&answer).clone();
    if moved["outcome"] != "moved" {
        return Err(format!("the move ended with {moved}"));
    }
    let line = to.progress("progress")?;
    let rounds = moved["rounds"].as_array().map_or(0, Vec::len);
    let rows = [
        ("rounds", rounds.to_string()),
        ("pages", format!("{} ({} of them zero)", moved["pages"], moved["zero_pages"])),
        ("bytes", format!("{:.1} MB", number(&moved, "bytes") / 1e6)),
        ("compression", moved["compression"].as_str().unwrap_or("?").to_owned()),
        ("total time", format!("{:.0} ms", number(&moved, "total_ms"))),
        ("throughput", format!("{:.0} MB/s", number(&moved, "mb_per_s"))),
        ("downtime", format!("{:.1} ms", number(&moved, "downtime_ms"))),
        ("guest's longest I/O gap", format!("{:.1} ms", line.find("gap_us")? as f64 / 1e3)),
        ("disk bytes moved between hosts", moved["disk_bytes"].to_string()),
    ];
    for (key, value) in rows {
        println!("              | {key:<32} {value:>28} |");
    }
    healthy(&line)?;
    if moved["disk_bytes"] != 0 {
        return Err("disk content went from host to host".into());
    }
    Ok(moved)
}

fn demo(story: &Story) -> Outcome<()> {
    if !Path::new("/dev/kvm").exists() {
        return Err("this machine has no /dev/kvm, which VM hosts need".into());
    }
    let server = Smbd::start("encryption = \"offered\"", "");
    let folder = server.scratch().to_path_buf();
    story.tell(format!("smbd serves the share \"vms\" on 127.0.0.1:{}", server.port()));
    let url = share_url(&server, "demo.vhdx");
    cli(&["disk", "create", &url, "--size", "4GiB"])?;
    let image = server.files().join("demo.vhdx");
    let length = fs::metadata(&image).map_err(|e| e.to_string())?.len();
    story.tell(format!("made a dynamic VHDX of 4 GiB through SMB: {} KiB on disk", length / 1024));

    write_credentials(&folder)?;
    let one = Host::start("host-1", &folder, &url)?;
    let two = Host::start("host-2", &folder, &url)?;
    story.tell("two VM hosts run and trust each other's certificates");

    let vm = write_vm(&folder, &url, GUEST)?;
    one.ask(&["create", &shown(&vm)])?;
    one.ask(&["start", "demo"])?;
    let text = one.ask(&["console", "demo", "--replay", "--until", "progress"])?;
    let start = Line::last(&text, "start").ok_or_else(|| format!("no start line: {text}"))?;
    let line = one.progress("progress")?;
    story.tell(format!("the guest runs on host-1 and writes: {} writes so far", line.find("seq")?));

    move_guest(story, &one, &two)?;
    thread::sleep(Duration::from_secs(1));
    move_guest(story, &two, &one)?;
    let line = one.progress("progress")?;
    healthy(&line)?;
    story.tell(format!("it is back and still writes: {} writes so far", line.find("seq")?));

    let text = one.ask(&["console", "demo", "--send", "stop", "--until", "final"])?;
    let last = Line::last(&text, "final").ok_or_else(|| format!("no final line: {text}"))?;
    healthy(&last)?;
    let since = Instant::now();
    while one.ask_json(&["list"])?.to_string().contains("running") {
        if since.elapsed() > LIMIT {
            return Err("the guest does not power off".into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let seq = last.find("seq")?;
    story.tell(format!("the guest stopped after {seq} writes, the last of them flushed"));

    let found = verify(&folder, &url, &start, &last)?;
    story.tell(format!("every acknowledged block is in the image: {found}"));
    if let Some(qemu) = installed("qemu-img") {
        let output = run(Command::new(qemu).args(["check", "-f", "vhdx"]).arg(&image), LIMIT);
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!(
                "qemu-img check: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        story.tell(format!("qemu-img check: {}", text.lines().next().unwrap_or_default()));
    }
    one.ask(&["delete", "demo"])?;
    Ok(())
}

fn main() -> ExitCode {
    let story = Story { since: Instant::now() };
    match demo(&story) {
        Ok(()) => {
            story.tell("nothing is left running");
            println!("demo: PASS");
            ExitCode::SUCCESS
        }
        Err(error) => {
            story.tell(format!("failed: {error}"));
            println!("demo: FAIL");
            ExitCode::FAILURE
        }
    }
}
