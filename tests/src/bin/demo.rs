//! `make demo`: the main job from end to end, with programs as an administrator would run them.
//!
//! smbd serves a share; a dynamic VHDX is made through SMB; a guest runs from it on one VM host
//! and moves to a second one and back while it writes; then every acknowledged block is looked
//! for in the image. Each step is a line with a time. Everything is private: ports, folders,
//! keys; nothing is left running.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    process::{Stopped, foreign, ours, run},
    smbd::{PASSWORD, Smbd, USER},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
/// The guest's disk activity: 512 MiB of the disk, four writes a flush and some more.
const GUEST: &str = "span=512 flush_every=8 ws_mib=64 iops=3000 seed=2026";

type Outcome<T> = Result<T, String>;

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

/// A VM host process.
struct Host {
    name: &'static str,
    _process: Stopped,
    socket: PathBuf,
    migration: String,
}

impl Host {
    fn start(name: &'static str, folder: &Path) -> Outcome<Self> {
        let root = folder.join(name);
        fs::create_dir_all(&root).map_err(|e| e.to_string())?;
        cli(&[
            "host",
            "init",
            "--ca",
            &shown(&folder.join("ca")),
            "--name",
            name,
            "--out",
            &shown(&root.join("keys")),
        ])?;
        let socket = root.join("control.sock");
        let keys = root.join("keys");
        let text = format!(
            "[host]\nstate_dir = \"{}\"\ncontrol_socket = \"{}\"\n[migration]\n\
             listen = \"127.0.0.1:0\"\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
            root.join("state").display(),
            socket.display(),
            keys.join("ca.pem").display(),
            keys.join("host.pem").display(),
            keys.join("host-key.pem").display(),
        );
        let config = root.join("hyperv-host.toml");
        fs::write(&config, text).map_err(|e| e.to_string())?;
        let log = fs::File::create(root.join("log")).map_err(|e| e.to_string())?;
        let mut child = Command::new(ours("hyperv-host"))
            .arg("--config")
            .arg(&config)
            .env("BULKHEAD_SMB_CREDENTIALS", folder.join("credentials"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("hyperv-host: {e}"))?;
        let line = first_line(&mut child)?;
        let process = Stopped(child);
        let migration = line
            .split_once("migration=")
            .map(|(_, rest)| rest.trim().to_owned())
            .ok_or_else(|| {
                let log = fs::read_to_string(root.join("log")).unwrap_or_default();
                format!("hyperv-host {name} did not start: {log}")
            })?;
        Ok(Self { name, _process: process, socket, migration })
    }

    fn ask(&self, args: &[&str]) -> Outcome<String> {
        let socket = shown(&self.socket);
        cli(&[&["vm"], args, &["--socket", &socket]].concat())
    }

    fn ask_json(&self, args: &[&str]) -> Outcome<Value> {
        let text = self.ask(&[args, &["--json"]].concat())?;
        serde_json::from_str(&text).map_err(|e| format!("{args:?}: {e}: {text}"))
    }

    /// The guest's next progress line on this host, as key and value pairs.
    fn progress(&self, word: &str) -> Outcome<Line> {
        let text = self.ask(&["console", "demo", "--until", word])?;
        Line::last(&text, word).ok_or_else(|| format!("no {word:?} on the console: {text}"))
    }
}

fn first_line(child: &mut Child) -> Outcome<String> {
    let stdout = child.stdout.take().ok_or("no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).map_err(|e| e.to_string())?;
    Ok(line)
}

/// A line of the guest: a word and `key=value` pairs.
struct Line(String);

impl Line {
    fn last(text: &str, word: &str) -> Option<Self> {
        let starts = |line: &&str| line.split(' ').next() == Some(word);
        text.lines().rev().find(starts).map(|line| Self(line.trim().to_owned()))
    }

    fn get(&self, key: &str) -> Outcome<u64> {
        let value = self.0.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let number = value.and_then(|value| value.parse().ok());
        number.ok_or_else(|| format!("no {key} in {:?}", self.0))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn cli(args: &[&str]) -> Outcome<String> {
    let mut command = Command::new(ours("bulkhead"));
    command.args(args).env("BULKHEAD_SMB_PASSWORD", PASSWORD);
    let output = run(&mut command, LIMIT);
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("bulkhead {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
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
        ("guest's longest I/O gap", format!("{:.1} ms", line.get("gap_us")? as f64 / 1e3)),
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

fn healthy(line: &Line) -> Outcome<()> {
    for key in ["verify_errors", "memory_errors"] {
        if line.get(key)? != 0 {
            return Err(format!("the guest found errors: {}", line.0));
        }
    }
    Ok(())
}

fn demo(story: &Story) -> Outcome<()> {
    if !Path::new("/dev/kvm").exists() {
        return Err("this machine has no /dev/kvm, which VM hosts need".into());
    }
    let server = Smbd::start("encryption = \"offered\"", "");
    let folder = server.scratch().to_path_buf();
    story.tell(format!("smbd serves the share \"vms\" on 127.0.0.1:{}", server.port()));
    let url = format!("smb://{USER}@127.0.0.1:{}/vms/demo.vhdx", server.port());
    cli(&["disk", "create", &url, "--size", "4GiB"])?;
    let image = server.files().join("demo.vhdx");
    let length = fs::metadata(&image).map_err(|e| e.to_string())?.len();
    story.tell(format!("made a dynamic VHDX of 4 GiB through SMB: {} KiB on disk", length / 1024));

    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(folder.join("credentials"))
        .and_then(|mut file| writeln!(file, "username={USER}\npassword={PASSWORD}"))
        .map_err(|e| e.to_string())?;
    let one = Host::start("host-1", &folder)?;
    let two = Host::start("host-2", &folder)?;
    story.tell("two VM hosts run and trust each other's certificates");

    let kernel = folder.join("guest.elf");
    let output = run(Command::new(ours("payload-guest")).arg("kernel").arg(&kernel), LIMIT);
    if !output.status.success() {
        return Err("the guest's kernel was not written".into());
    }
    let vm = folder.join("demo.toml");
    let text = format!(
        "name = \"demo\"\nmemory_mib = 256\nvcpus = 1\nconsole = \"virtio\"\n[boot]\n\
         kernel = \"{}\"\ncmdline = \"{GUEST}\"\n[[disk]]\nlocation = \"{url}\"\nformat = \"vhdx\"\n",
        kernel.display()
    );
    fs::write(&vm, text).map_err(|e| e.to_string())?;
    one.ask(&["create", &shown(&vm)])?;
    one.ask(&["start", "demo"])?;
    let text = one.ask(&["console", "demo", "--replay", "--until", "progress"])?;
    let start = Line::last(&text, "start").ok_or_else(|| format!("no start line: {text}"))?;
    let (seed, blocks) = (start.get("seed")?, start.get("blocks")?);
    let line = one.progress("progress")?;
    story.tell(format!("the guest runs on host-1 and writes: {} writes so far", line.get("seq")?));

    move_guest(story, &one, &two)?;
    thread::sleep(Duration::from_secs(1));
    move_guest(story, &two, &one)?;
    let line = one.progress("progress")?;
    healthy(&line)?;
    story.tell(format!("it is back and still writes: {} writes so far", line.get("seq")?));

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
    let (seq, flushed) = (last.get("seq")?, last.get("flushed")?);
    story.tell(format!("the guest stopped after {seq} writes, the last of them flushed"));

    let raw = folder.join("demo.raw");
    cli(&["disk", "check", &url])?;
    cli(&["disk", "convert", &url, &shown(&raw)])?;
    let output = run(
        Command::new(ours("payload-guest")).arg("check").arg(&raw).args([
            "--seed",
            &seed.to_string(),
            "--blocks",
            &blocks.to_string(),
            "--acked",
            &flushed.to_string(),
            "--submitted",
            &seq.to_string(),
        ]),
        LIMIT,
    );
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    }
    story.tell(format!("every acknowledged block is in the image: {}", text.trim()));
    if let Some(qemu) = foreign("qemu-img") {
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
