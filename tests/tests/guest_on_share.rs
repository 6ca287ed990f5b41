//! A guest whose disk is on a share of smbd: moves, and hostile company.

use std::{
    io::Write,
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    host_cli::{
        Host, Line, cli, healthy, shown, start_elsewhere, url_in, verify, write_credentials,
        write_vm,
    },
    smbd::Smbd,
};
use rustix::process::Signal;

/// A share whose opens live on over an end of the server.
const AVAILABLE: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                         continuously_available = true\n";

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);

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
        Self::set_saying("vms", "")
    }

    /// With its disk on this share, and these keys in `[storage]` of the hosts.
    fn set_saying(share: &str, storage: &str) -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            bulkhead_tests::skip(bulkhead_tests::Need::Kvm.because("this machine has no /dev/kvm"));
            return None;
        }
        let server = Smbd::start("encryption = \"offered\"", AVAILABLE);
        let folder = server.scratch();
        let url = url_in(&server, share, "demo.vhdx");
        cli(&["disk", "create", &url, "--size", "1GiB"]).unwrap();
        write_credentials(folder).unwrap();
        let one = Host::start_saying("host-1", folder, &url, storage).unwrap();
        let two = Host::start_saying("host-2", folder, &url, storage).unwrap();
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
    // What is left of it ends by force, and can be forgotten; nobody moves it.
    let moved = stage.one.ask(&["move", "demo", "--to", &stage.two.migration]).unwrap_err();
    assert!(moved.contains("fenced"), "{moved}");
    let stopped = stage.one.ask(&["stop", "demo"]).unwrap_err();
    assert!(stopped.contains("--force"), "{stopped}");
    stage.one.ask(&["stop", "demo", "--force"]).unwrap();
    stage.one.wait_for_state("demo", "off");
    stage.one.ask(&["delete", "demo"]).unwrap();
    stage.finish(&stage.two);
}

/// What a host's list says of a VM.
fn listed(host: &Host) -> String {
    host.ask(&["list"]).unwrap().lines().find(|line| line.contains("demo")).unwrap().to_owned()
}

fn errors(host: &Host) -> u64 {
    host.ask_json(&["show", "demo"]).unwrap()["disks"][0]["errors"].as_u64().unwrap()
}

/// Storage that is silent, and storage that has gone and come back, is nothing that a guest sees.
#[test]
fn a_guest_waits_for_its_storage_and_sees_no_error() {
    let Some(mut stage) = Stage::set_saying("ca", "pause_after_s = 1\nreconnect_s = 2") else {
        return;
    };
    for gone in [false, true] {
        let before = stage.one.progress("progress").unwrap().get("seq");
        stage.server.signal(Signal::STOP);
        stage.one.wait_for_state("demo", "paused-critical");
        let line = listed(&stage.one);
        assert!(line.contains("paused-critical") && line.contains("demo.vhdx"), "{line}");
        let moved = stage.one.ask(&["move", "demo", "--to", &stage.two.migration]).unwrap_err();
        assert!(moved.contains("paused-critical"), "{moved}");
        if gone {
            stage.server.kill_and_restart();
        } else {
            stage.server.signal(Signal::CONT);
        }
        stage.one.wait_for_state("demo", "running");
        assert!(!listed(&stage.one).contains("demo.vhdx"));
        let after = stage.one.progress("progress").unwrap();
        healthy(&after).unwrap();
        assert!(after.get("seq") > before);
        assert_eq!(errors(&stage.one), 0);
    }
    stage.finish(&stage.one);
}

/// Who wants it otherwise has the guest see errors when the host's patience has ended.
#[test]
fn a_guest_sees_errors_where_they_are_to_be_reported() {
    let more = "on_storage_loss = \"report\"\npause_after_s = 1\nreconnect_s = 1";
    let Some(stage) = Stage::set_saying("vms", more) else { return };
    stage.server.signal(Signal::STOP);
    let since = Instant::now();
    while errors(&stage.one) == 0 {
        assert!(since.elapsed() < LIMIT, "the guest sees no error");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(listed(&stage.one).contains("running"));
    stage.one.ask(&["stop", "demo", "--force"]).unwrap();
    stage.server.signal(Signal::CONT);
}

/// `stop --force` waits for no storage: the limit that it is given is the promise.
#[test]
fn a_vm_is_stopped_by_force_whatever_its_storage_does() {
    let Some(stage) = Stage::set_saying("vms", "pause_after_s = 1") else { return };
    stage.server.signal(Signal::STOP);
    stage.one.wait_for_state("demo", "paused-critical");
    stage.one.ask(&["stop", "demo", "--force", "--timeout", "2"]).unwrap();
    stage.one.wait_for_state("demo", "off");
    stage.server.signal(Signal::CONT);
    // When its disks are closed, or given up, it can be started again.
    let since = Instant::now();
    while let Err(error) = stage.one.ask(&["start", "demo"]) {
        assert!(error.contains("busy") && since.elapsed() < LIMIT, "{error}");
        thread::sleep(Duration::from_millis(100));
    }
    healthy(&stage.one.progress("progress").unwrap()).unwrap();
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
