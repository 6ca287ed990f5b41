//! A disk of a VM as its host sees it: a guest that asks for much at a time, and storage that is slow.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    host_cli::{Host, cli, shown, url_in, write_credentials, write_vm},
    proxy::{Fate, Proxy, Way},
    smbd::Smbd,
};
use serde_json::Value;

use super::{causes, note};

/// What the tool says of the guest's disk.
fn why(folder: &Path) -> Value {
    let socket = shown(&folder.join("host-1/control.sock"));
    let text = cli(&["why", "--vms", "demo/0", "--json", "--vm-socket", &socket]).unwrap();
    let reports: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(reports.as_array().map(Vec::len), Some(1), "{reports}");
    reports[0].clone()
}

/// Asks until this is what costs most, or nothing is wrong.
fn until(folder: &Path, cause: Option<&str>) -> Value {
    let begun = Instant::now();
    loop {
        let report = why(folder);
        let busy = report["operations"].as_u64() > Some(100);
        if busy && causes(&report).first().copied() == cause {
            note(cause.unwrap_or("nothing"), &report, begun);
            return report;
        }
        assert!(begun.elapsed() < Duration::from_secs(100), "not {cause:?}: {report:#}");
    }
}

#[test]
fn the_queue_of_a_guest_and_slow_storage_are_told_apart() {
    if !Path::new("/dev/kvm").exists() {
        bulkhead_tests::skip(bulkhead_tests::Need::Kvm.because("this machine has no /dev/kvm"));
        return;
    }
    let server = Smbd::start("encryption = \"offered\"", "");
    let folder = server.scratch();
    let proxy = Proxy::start(server.address());
    let url = url_in(&server, "vms", "demo.vhdx");
    cli(&["disk", "create", &url, "--size", "1GiB"]).unwrap();
    let url = url.replace(&format!(":{}/", server.port()), &format!(":{}/", proxy.port()));
    write_credentials(folder).unwrap();
    // One connection, whose answers come one after the other: a disk with one arm.
    let host = Host::start_saying("host-1", folder, &url, "channels = 1").unwrap();
    let start = |guest: &str| {
        let guest = format!("span=64 flush_every=1000000 ws_mib=8 seed=7 {guest}");
        let vm = write_vm(folder, &url, &guest).unwrap();
        host.ask(&["create", &shown(&vm)]).unwrap();
        host.ask(&["start", "demo"]).unwrap();
    };
    let end = || {
        host.ask(&["stop", "demo", "--force"]).unwrap();
        host.wait_for_state("demo", "off");
        host.ask(&["delete", "demo"]).unwrap();
    };
    let delay = |time| {
        proxy.rule(move |way, _| match way {
            Way::Answer => Fate::Delay(time),
            Way::Request => Fate::Pass,
        });
    };
    // One that asks for little: only what its storage takes can be slow.
    start("depth=1 iops=100");
    until(folder, None);
    delay(Duration::from_millis(40));
    until(folder, Some("slow-storage"));
    end();
    // One that asks for much: the same way is quick enough for each alone.
    delay(Duration::from_millis(2));
    start("depth=48");
    let report = until(folder, Some("guest-queue"));
    assert!(report["sentence"].as_str().unwrap().contains("under way at a time"), "{report:#}");
    proxy.rule(|_, _| Fate::Pass);
    let socket = shown(&folder.join("host-1/control.sock"));
    let nothing = cli(&["why", "--vms", "nothing", "--vm-socket", &socket]);
    assert!(nothing.unwrap_err().contains("has that disk"));
    end();
}
