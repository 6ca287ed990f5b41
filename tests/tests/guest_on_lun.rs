//! A guest whose disk is a logical unit of smbd's: it moves with its reservation, and nobody else
//! writes its disk.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use block_io::Disk;
use bulkhead_tests::{
    host_cli::{Host, Line, cli, healthy, shown, start_elsewhere, verify, write_vm},
    initiator::TARGET,
    iscsi::{Served, lun, vhdx},
};
use iscsi::initiator::{Initiator, IscsiDisk, Options};

const GUEST: &str = "span=64 flush_every=8 ws_mib=8 iops=2000 seed=7";
const MOVES: usize = 20;

/// A server with one unit, which anybody may use, two hosts, and the guest running on the first.
struct Stage {
    one: Host,
    two: Host,
    start: Line,
    url: String,
    served: Served,
    _images: tempfile::TempDir,
}

impl Stage {
    fn set() -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            bulkhead_tests::skip(bulkhead_tests::Need::Kvm.because("this machine has no /dev/kvm"));
            return None;
        }
        let images = tempfile::tempdir().unwrap();
        let image = vhdx(images.path(), "unit.vhdx", "1GiB");
        let keys = format!("authentication = \"none\"\n{}", lun(0, &image, ""));
        let served = Served::start(&keys);
        let (folder, url) = (served.server.scratch(), served.url("", 0));
        let one = Host::start("host-1", folder, &url).unwrap();
        let two = Host::start("host-2", folder, &url).unwrap();
        let vm = write_vm(folder, &url, GUEST).unwrap();
        one.ask(&["create", &shown(&vm)]).unwrap();
        one.ask(&["start", "demo"]).unwrap();
        let text = one.ask(&["console", "demo", "--replay", "--until", "progress"]).unwrap();
        let start = Line::last(&text, "start").unwrap();
        Some(Self { one, two, start, url, served, _images: images })
    }

    /// An initiator that nobody waits for.
    async fn stranger(&self) -> Arc<IscsiDisk> {
        let portal = self.served.port.address().to_string();
        let name = "iqn.2024-01.example:stranger";
        Initiator::connect(Options::new(vec![portal], TARGET, 0, name).unwrap()).await.unwrap()
    }

    /// Stops the guest on `host` and verifies its disk.
    fn finish(&self, host: &Host) {
        let text = host.ask(&["console", "demo", "--send", "stop", "--until", "final"]).unwrap();
        let last = Line::last(&text, "final").unwrap();
        healthy(&last).unwrap();
        while host.ask_json(&["list"]).unwrap().to_string().contains("running") {
            thread::yield_now();
        }
        verify(self.served.server.scratch(), &self.url, &self.start, &last).unwrap();
    }
}

/// Writes to the unit's last block as long as the guest runs, and counts refusals.
fn disturb(stage: &Stage, over: &AtomicBool) -> usize {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let disk = stage.stranger().await;
        let mut refused = 0;
        while !over.load(Ordering::Acquire) {
            let at = disk.geometry().size - 4096;
            let written = disk.write_at(at, &[0xee; 4096]).await;
            assert!(matches!(written, Err(block_io::Error::Fenced(_))), "{written:?}");
            let holders = disk.registrants().await.unwrap();
            assert!(holders.iter().any(|it| it.holds), "nobody has the reservation");
            let ours = |name: &str| name.starts_with("iqn.2024-01.bulkhead.vm:");
            assert!(holders.iter().all(|it| ours(&it.initiator)), "{holders:?}");
            refused += 1;
        }
        refused
    })
}

#[test]
fn a_guest_moves_twenty_times_with_its_reservation() {
    let Some(stage) = Stage::set() else { return };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let stranger = scope.spawn(|| disturb(&stage, &over));
        let hosts = [&stage.one, &stage.two];
        let moves = || {
            for n in 0..MOVES {
                let (from, to) = (hosts[n % 2], hosts[(n + 1) % 2]);
                let moved = from.ask_json(&["move", "demo", "--to", &to.migration])?;
                let moved = moved.get("statistics").unwrap_or(&moved);
                if moved["outcome"] != "moved" || moved["disk_bytes"] != 0 {
                    return Err(moved.to_string());
                }
                healthy(&to.progress("progress")?)?;
            }
            Ok(())
        };
        let moved = moves();
        over.store(true, Ordering::Release);
        let refused = stranger.join().unwrap();
        moved.unwrap();
        assert!(refused > MOVES, "{refused} attempts in {MOVES} moves");
    });
    stage.finish(&stage.one);
    // What is off is nobody's.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let disk = stage.stranger().await;
        assert!(disk.registrants().await.unwrap().is_empty());
        disk.close().await.unwrap();
    });
}

/// A host that stands still keeps its VM's disk from nobody who starts the VM elsewhere, and when
/// it goes on it cannot write there any more.
#[test]
fn a_vm_started_elsewhere_takes_its_unit_from_a_host_that_hangs() {
    let Some(stage) = Stage::set() else { return };
    let folder = stage.served.server.scratch();
    let text = std::fs::read_to_string(folder.join("demo.toml")).unwrap();
    let other = folder.join("other.toml");
    std::fs::write(&other, text.replace("\"demo\"", "\"other\"")).unwrap();
    stage.two.ask(&["create", &shown(&other)]).unwrap();
    let refused = stage.two.ask(&["start", "other"]).unwrap_err();
    assert!(
        refused.contains("in use") && refused.contains("iqn.2024-01.bulkhead.vm:"),
        "{refused}"
    );
    let refused = cli(&[
        "disk",
        "convert",
        &shown(&folder.join("guest.elf")),
        &stage.url,
        "--from",
        "raw",
        "--force",
    ])
    .unwrap_err();
    assert!(refused.contains("has reserved it"), "{refused}");

    let reason = start_elsewhere(&stage.one, &stage.two, folder).unwrap();
    assert!(reason.contains("taken") && reason.contains("iscsi://"), "{reason}");
}
