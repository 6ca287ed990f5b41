//! `bulkhead disk serve` with the clients that people have: qemu-img and qemu-io.

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use common::{BULKHEAD, run, tool as qemu};

/// A server of an image, stopped by SIGTERM.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn start(image: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(BULKHEAD);
        command.args(["disk", "serve"]).arg(image).args(more).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit_once(": ").expect("it says where it is").1.to_owned();
        Self { child, url }
    }

    /// Stops it; the image is closed in an orderly way.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_reads_and_writes_a_vhdx() {
    let (Some(mut io), Some(mut convert)) = (qemu("qemu-io"), qemu("qemu-img")) else { return };
    let dir = TempDir::new().unwrap();
    let (image, socket) = (dir.path().join("disk.vhdx"), dir.path().join("nbd"));
    run(Command::new(BULKHEAD).args(["disk", "create", "--size", "64M"]).arg(&image));
    let served = Served::start(&image, &["--socket", socket.to_str().unwrap()]);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // Whole sectors, parts of sectors, zeros, trims, and a write that is durable at once.
    let steps = [
        "write -P 1 0 4k",
        "write -P 2 1000 100",
        "write -P 3 10M 3M",
        "write -z 11M 1M",
        "discard 12M 512k",
        "write -f -P 4 63M 1M",
        "flush",
        "read -P 2 1000 100",
        "read -P 1 1100 2996",
        "read -P 3 10M 1M",
        "read -P 0 11M 1M",
        "read -P 4 63M 1M",
        "read -P 0 20M 8M",
    ];
    io.args(["-f", "raw", &served.url]);
    steps.into_iter().for_each(|step| {
        io.args(["-c", step]);
    });
    let said = run(&mut io);
    assert!(!said.contains("failed"), "{said}");
    // Only what was written is data.
    let map = run(Command::new("qemu-img").args(["map", "--output=json", &served.url]));
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let data = map.as_array().unwrap().iter().filter(|piece| piece["data"] == true);
    let bytes: u64 = data.map(|piece| piece["length"].as_u64().unwrap()).sum();
    assert!((1..=8 << 20).contains(&bytes), "{map}");
    let raw = dir.path().join("copy.raw");
    run(convert.args(["convert", "-f", "raw", "-O", "raw", &served.url]).arg(&raw));
    served.stop();
    assert!(!socket.exists());
    // What qemu read over the wire is what it reads from the file, which is whole.
    run(Command::new("qemu-img").args(["check", "-f", "vhdx"]).arg(&image));
    let compare = ["compare", "-f", "raw", "-F", "vhdx"];
    run(Command::new("qemu-img").args(compare).arg(&raw).arg(&image));
}

#[test]
fn qemu_writes_an_image_over_tcp() {
    let Some(mut convert) = qemu("qemu-img") else { return };
    let dir = TempDir::new().unwrap();
    let (raw, image) = (dir.path().join("disk.raw"), dir.path().join("disk.vhdx"));
    let mut bytes = vec![0; 16 << 20];
    bytes[3 << 20..][..100_000].fill(7);
    bytes[(16 << 20) - 700..].fill(9);
    std::fs::write(&raw, bytes).unwrap();
    run(Command::new(BULKHEAD).args(["disk", "create", "--size", "16M"]).arg(&image));
    let more = ["--listen", "127.0.0.1:0", "--export", "disk", "--until-idle"];
    let mut served = Served::start(&image, &more);
    run(convert.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&raw).arg(&served.url));
    // The last client has gone.
    let mut rest = String::new();
    served.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert!(served.child.wait().unwrap().success(), "{rest}");
    let compare = ["compare", "-f", "raw", "-F", "vhdx"];
    run(Command::new("qemu-img").args(compare).arg(&raw).arg(&image));
}

#[test]
fn a_read_only_image_is_left_to_others() {
    let Some(mut io) = qemu("qemu-io") else { return };
    let dir = TempDir::new().unwrap();
    let (image, socket) = (dir.path().join("disk.raw"), dir.path().join("nbd"));
    std::fs::write(&image, vec![5; 1 << 20]).unwrap();
    let socket = socket.to_str().unwrap();
    let served = Served::start(&image, &["--socket", socket, "--read-only"]);
    let said = run(io.args(["-r", "-f", "raw", &served.url, "-c", "read -P 5 0 1M"]));
    assert!(said.contains("read 1048576/1048576"), "{said}");
    let refused = Command::new("qemu-io")
        .args(["-f", "raw", &served.url, "-c", "write 0 512"])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    // A second server for the same socket says so.
    let second = Command::new(BULKHEAD)
        .args(["disk", "serve", "--read-only", "--socket", socket])
        .arg(&image)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(error.contains("there is something already"), "{error}");
    served.stop();
}

/// Numbers that look random and are the same in every run.
fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[test]
fn qemu_finds_every_byte_where_a_raw_file_has_it() {
    let Some(mut io) = qemu("qemu-io") else { return };
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (image, reference, socket) = (at("disk.vhdx"), at("reference.raw"), at("nbd"));
    let create = ["disk", "create", "--size", "32M", "--block-size", "1M"];
    run(Command::new(BULKHEAD).args(create).arg(&image));
    std::fs::File::create(&reference).unwrap().set_len(32 << 20).unwrap();
    let served = Served::start(&image, &["--socket", socket.to_str().unwrap()]);
    // The driver does everything twice and ends QEMU when a read differs.
    io.args(["-f", "blkverify"]).arg(format!("blkverify:{}:{}", reference.display(), served.url));
    let mut number = numbers();
    for _ in 0..300 {
        let (offset, len) = (number(63 << 10) * 512, (1 + number(256)) * 512);
        let len = len.min((32 << 20) - offset);
        // One after the other: which of two overlapping writes lands last is nobody's to say.
        let step = match number(4) {
            0 | 1 => format!("write -P {} {offset} {len}", 1 + number(255)),
            2 => "flush".to_owned(),
            _ => format!("read {offset} {len}"),
        };
        io.args(["-c", &step]);
    }
    io.args(["-c", "flush", "-c", "read 0 32M"]);
    let said = run(&mut io);
    assert!(said.contains("read 33554432/33554432"), "{said}");
    served.stop();
    let compare = ["compare", "-f", "raw", "-F", "vhdx"];
    run(Command::new("qemu-img").args(compare).arg(&reference).arg(&image));
}
