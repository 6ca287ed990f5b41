//! A guest whose disk is on a share of smbd: moves, and hostile company.

use std::{
    io::Write,
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use bulkhead_tests::{
    host_cli::{
        Host, Line, cli, healthy, share_url, shown, start_elsewhere, verify, write_credentials,
        write_vm,
    },
    smbd::Smbd,
};
use rustix::process::Signal;

const GUEST: &str = "span=64 flush_every=8 ws_mib=8 iops=2000 seed=7";

/// A server, two hosts, and the guest running on the first.
struct Stage {
    one: Host,
    two: Host,
    start: Line,
    url: String,
    server: Smbd,
}

impl Stage {
    fn set() -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            bulkhead_tests::skip(bulkhead_tests::Need::Kvm.because("this machine has no /dev/kvm"));
            return None;
        }
        let server = Smbd::start("encryption = \"offered\"", "");
        let folder = server.scratch();
        let url = share_url(&server, "demo.vhdx");
        cli(&["disk", "create", &url, "--size", "1GiB"]).unwrap();
        write_credentials(folder).unwrap();
        let one = Host::start("host-1", folder, &url).unwrap();
        let two = Host::start("host-2", folder, &url).unwrap();
        let vm = write_vm(folder, &url, GUEST).unwrap();
        one.ask(&["create", &shown(&vm)]).unwrap();
        one.ask(&["start", "demo"]).unwrap();
        let text = one.ask(&["console", "demo", "--replay", "--until", "progress"]).unwrap();
        let start = Line::last(&text, "start").unwrap();
        Some(Self { one, two, start, url, server })
    }

    /// Stops the guest on `host` and verifies its disk.
    fn finish(&self, host: &Host) {
        let text = host.ask(&["console", "demo", "--send", "stop", "--until", "final"]).unwrap();
        let last = Line::last(&text, "final").unwrap();
        healthy(&last).unwrap();
        while host.ask_json(&["list"]).unwrap().to_string().contains("running") {
            thread::yield_now();
        }
        verify(self.server.scratch(), &self.url, &self.start, &last).unwrap();
    }
}

#[test]
fn only_memory_moves() {
    let Some(stage) = Stage::set() else { return };
    let moved = stage.one.ask_json(&["move", "demo", "--to", &stage.two.migration]).unwrap();
    let moved = moved.get("statistics").unwrap_or(&moved);
    assert_eq!(moved["outcome"], "moved", "{moved}");
    assert_eq!(moved["disk_bytes"], 0, "{moved}");
    healthy(&stage.two.progress("progress").unwrap()).unwrap();
    stage.finish(&stage.two);
}

/// A host that stands still keeps its VM's disk from nobody who starts the VM elsewhere, and when
/// it goes on it cannot write there any more.
#[test]
fn a_vm_started_elsewhere_takes_its_disk_from_a_host_that_hangs() {
    let Some(stage) = Stage::set() else { return };
    let reason = start_elsewhere(&stage.one, &stage.two, stage.server.scratch()).unwrap();
    assert!(reason.contains("taken") && reason.contains("demo.vhdx"), "{reason}");
}

/// A host ends in its time although its storage does not answer.
#[test]
fn storage_that_does_not_answer_keeps_no_host_from_ending() {
    let Some(mut stage) = Stage::set() else { return };
    stage.server.signal(Signal::STOP);
    stage.one.signal(Signal::TERM);
    let ended = stage.one.ends(Duration::from_secs(45));
    stage.server.signal(Signal::CONT);
    assert!(ended, "the host waits for its storage");
}

#[test]
fn hostile_clients_leave_the_guest_alone() {
    let Some(stage) = Stage::set() else { return };
    let port = stage.server.port();
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = Vec::new();
            let noise: [&[u8]; 4] = [
                &[0, 0xff, 0xff, 0xff],
                &[0, 0, 0, 8, 0xfe, b'S', b'M', b'B', 64, 0, 0, 0],
                &[0x81; 64],
                &[0, 0],
            ];
            for round in 0..1000 {
                let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let _ = stream.write_all(noise[round % noise.len()]);
                held.push(stream);
            }
            enough.store(true, Ordering::Release);
        });
        while !enough.load(Ordering::Acquire) {
            healthy(&stage.one.progress("progress").unwrap()).unwrap();
        }
    });
    let before = stage.one.progress("progress").unwrap().get("seq");
    let after = stage.one.progress("progress").unwrap();
    healthy(&after).unwrap();
    assert!(after.get("seq") > before, "the guest stands still");
    stage.finish(&stage.one);
}
