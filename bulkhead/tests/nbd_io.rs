//! What clients of network block devices do to a disk, done to `bulkhead disk serve` by theirs:
//! qemu-io with the patterns of generic block tests, fio with checksums, nbdcopy over several
//! connections. `FIO` and `NBDCOPY` may name programs that are not in the path.

mod common;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use common::{BULKHEAD, run, tool};

const SIZE: u64 = 64 << 20;
/// Images that are served, and how each is made.
const IMAGES: [(&str, &[&str]); 4] = [
    ("disk.raw", &[]),
    ("disk.vhdx", &["--block-size", "1M"]),
    ("large.vhdx", &["--block-size", "32M", "--logical-sector-size", "4096"]),
    ("disk.vhd", &["--block-size", "2M"]),
];

/// A server of a new image; checks the image when it is stopped.
struct Served {
    child: Child,
    folder: TempDir,
    image: &'static str,
    url: String,
}

impl Served {
    fn new((image, args): (&'static str, &[&str])) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(image);
        let size = SIZE.to_string();
        let create = ["disk", "create", "--size", &size];
        run(Command::new(BULKHEAD).args(create).args(args).arg(&path));
        let socket = folder.path().join("nbd");
        let mut command = Command::new(BULKHEAD);
        command.args(["disk", "serve", "--socket"]).arg(socket).arg(path);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit_once(": ").expect("it says where it is").1.to_owned();
        Self { child, folder, image, url }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join(self.image)
    }

    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        if self.image != "disk.raw" {
            run(Command::new(BULKHEAD).args(["disk", "check"]).arg(self.path()));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does these steps with qemu-io, of which the reads must find what they say.
fn steps(io: Command, url: &str, steps: &[&str]) -> String {
    let mut io = io;
    io.args(["-f", "raw", url]);
    steps.iter().for_each(|step| {
        io.args(["-c", step]);
    });
    let said = run(&mut io);
    let wrong = ["Pattern verification failed", "failed:", "error"];
    assert!(!wrong.iter().any(|wrong| said.contains(wrong)), "{steps:?}: {said}");
    said
}

#[test]
fn patterns_are_found_where_they_were_written() {
    for image in IMAGES {
        let Some(io) = tool("qemu-io") else { return };
        let served = Served::new(image);
        steps(
            io,
            &served.url,
            &[
                // The whole of it, zeros first.
                "read -P 0 0 64M",
                "write -P 0xa 0 64M",
                "read -P 0xa 0 64M",
                // Both ends, and over borders of blocks.
                "write -P 0xb 0 64k",
                "write -P 0xc 67043328 64k",
                "write -P 0xd 983040 128k",
                "write -P 0xe 33488896 128k",
                "read -P 0xb 0 64k",
                "read -P 0xa 64k 917504",
                "read -P 0xd 983040 128k",
                "read -P 0xe 33488896 128k",
                "read -P 0xc 67043328 64k",
                // Parts of sectors.
                "write -P 1 1048577 1",
                "write -P 2 1049087 2",
                "write -P 3 2097151 4098",
                "read -P 0xd 1048576 1",
                "read -P 1 1048577 1",
                "read -P 0xd 1048578 509",
                "read -P 2 1049087 2",
                "read -P 3 2097151 4098",
                "read -P 0xa 2101249 511",
                // In pieces of memory of many sizes.
                "writev -P 0x77 4M 512 1024 4k 64k 512 1536",
                "readv -P 0x77 4M 4k 512 66560 512 1536",
                // Many at once, that do not overlap.
                "aio_write -P 0x11 8M 1M",
                "aio_write -P 0x12 9M 1M",
                "aio_write -P 0x13 10M 2M",
                "aio_write -P 0x14 12M 512",
                "aio_flush",
                "aio_read -P 0x11 8M 1M",
                "aio_read -P 0x12 9M 1M",
                "aio_read -P 0x13 10M 2M",
                "aio_read -P 0x14 12M 512",
                "aio_flush",
                // Durable at once.
                "write -f -P 0x21 20M 64k",
                "flush",
                "read -P 0x21 20M 64k",
            ],
        );
        served.stop();
    }
}

#[test]
fn zeros_and_trims_keep_to_their_range() {
    for image in IMAGES {
        let Some(io) = tool("qemu-io") else { return };
        let served = Served::new(image);
        steps(
            io,
            &served.url,
            &[
                "write -P 0x55 0 64M",
                "flush",
                // Whole blocks, parts of them, parts of sectors.
                "write -z 2M 2M",
                "write -z 5000k 100k",
                "write -z -u 32M 32M",
                "write -z 6291457 1022",
                "read -P 0x55 0 2M",
                "read -P 0 2M 2M",
                "read -P 0x55 4M 925696",
                "read -P 0 5000k 100k",
                "read -P 0x55 5100k 1069056",
                "read -P 0x55 6291456 1",
                "read -P 0 6291457 1022",
                "read -P 0x55 6292479 1",
                "read -P 0 32M 32M",
                // What is not trimmed stays; what is may be anything older or zeros, until written.
                "discard 10M 3M",
                "discard 14336k 100k",
                "read -P 0x55 9M 1M",
                "read -P 0x55 13M 1M",
                "read -P 0x55 14780k 500k",
                "write -P 0x66 10M 3M",
                "read -P 0x66 10M 3M",
                "write -P 0x67 33M 4k",
                "read -P 0x67 33M 4k",
                "read -P 0 33796k 1M",
            ],
        );
        // What is told of it is what it holds: no data where there was none since.
        let Some(mut img) = tool("qemu-img") else { return };
        let map = run(img.args(["map", "--output=json", "-f", "raw", &served.url]));
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        let mut at = 0;
        for piece in map.as_array().unwrap() {
            assert_eq!(piece["start"], at, "{map}");
            at += piece["length"].as_u64().unwrap();
            let all_data = piece["data"] == true || piece["zero"] == true;
            assert!(all_data, "{map}");
        }
        assert_eq!(at, SIZE);
        served.stop();
    }
}

#[test]
fn requests_past_the_end_fail_and_nothing_else_does() {
    for image in IMAGES {
        let served = Served::new(image);
        for step in ["read 64M 512", "write 64M 512", "read 67108352 1024", "write 67108352 1024"] {
            let Some(mut io) = tool("qemu-io") else { return };
            let output = io.args(["-f", "raw", "-c", step, &served.url]).output().unwrap();
            assert!(!output.status.success(), "{step}");
        }
        let Some(io) = tool("qemu-io") else { return };
        let last = ["write -P 9 67104768 4096", "read -P 9 67104768 4096", "read -P 0 60M 512"];
        steps(io, &served.url, &last);
        served.stop();
    }
}

#[test]
fn fio_finds_every_checksum() {
    let Some(mut help) = tool("fio") else { return };
    if !run(help.arg("--enghelp")).contains("nbd") {
        test_support::skip(test_support::Need::Programs.because("this fio has no nbd engine"));
        return;
    }
    for image in IMAGES {
        let Some(mut fio) = tool("fio") else { return };
        let served = Served::new(image);
        let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64"];
        fio.args(["--name=v", "--ioengine=nbd", "--rw=randrw", "--bsrange=4k-64k"])
            .args(["--size=64M", "--io_size=48M", "--iodepth=16", "--randseed=7"])
            .args(verify)
            .arg(format!("--uri={}", served.url))
            .current_dir(served.folder.path());
        let said = run(&mut fio);
        assert!(said.contains("err= 0"), "{said}");
        served.stop();
    }
}

#[test]
fn several_connections_copy_one_disk() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("source.raw");
    let bytes: Vec<u8> =
        (0..SIZE / 4096).flat_map(|i| [(i % 251 * (i / 64 % 3)) as u8; 4096]).collect();
    std::fs::write(&source, &bytes).unwrap();
    for image in IMAGES {
        let served = Served::new(image);
        let copy = |from: &Path, to: &Path| {
            let mut nbdcopy = tool("nbdcopy")?;
            nbdcopy.args(["--connections=4", "--requests=16", "--request-size=262144", "--flush"]);
            Some(run(nbdcopy.arg(from).arg(to)))
        };
        let back = dir.path().join("back.raw");
        if copy(&source, Path::new(&served.url)).is_none() {
            return;
        }
        copy(Path::new(&served.url), &back);
        assert!(std::fs::read(&back).unwrap() == bytes, "{}", image.0);
        std::fs::remove_file(&back).unwrap();
        served.stop();
    }
}
