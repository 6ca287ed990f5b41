//! Live migration between two host processes, with the guest writing all the time.

use std::{
    io::Write,
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use host_api::{Client, MoveOptions, Reply, Request, VmState};
use test_support::host::{HostProcess, Payload};

/// The number of a run far ahead of all clocks, and one that a host takes from another.
const AHEAD: u64 = 1 << 62;

#[test]
fn twenty_moves_in_a_row_lose_nothing() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts =
        [HostProcess::start(dir.path(), "a", 0, &[]), HostProcess::start(dir.path(), "b", 0, &[])];
    let payload = Payload::create(dir.path(), &hosts[0], 128, "ws_mib=8 iops=3000");
    let name = &payload.name;
    // Its last run was numbered on a host whose clock is far ahead.
    let run = dir.path().join("a/state/vms/payload/run.json");
    std::fs::write(&run, AHEAD.to_string()).unwrap();
    hosts[0].call(&Request::Start { name: name.clone() }).unwrap();
    hosts[0].console(name).unwrap().next_line("progress");
    for turn in 0..20 {
        let (from, to) = (&hosts[turn % 2], &hosts[(turn + 1) % 2]);
        let moved = from.move_to(name, to).unwrap();
        assert_eq!(moved.outcome, "moved");
        assert_eq!(moved.disk_bytes, 0);
        assert!(moved.rounds.len() >= 2, "{moved:?}");
        assert_eq!(from.state(name), None);
        assert_eq!(to.state(name), Some(VmState::Running));
        let line = to.console(name).unwrap().next_line("progress");
        assert_eq!((line.get("verify_errors"), line.get("memory_errors")), (0, 0), "{line:?}");
    }
    let mut console = hosts[0].console(name).unwrap();
    console.type_line("stop");
    let last = console.next_line("final");
    hosts[0].wait_state(name, Some(VmState::Off));
    assert_eq!((last.get("verify_errors"), last.get("memory_errors")), (0, 0), "{last:?}");
    assert_eq!(last.get("flushed"), last.get("seq"));
    assert!(last.get("reads") > 0);
    let report = payload.verify(last.get("flushed"), last.get("seq"));
    assert_eq!(report.newer, 0);
    // The number went with it from run to run: one start and twenty moves.
    let last: u64 = std::fs::read_to_string(&run).unwrap().parse().unwrap();
    assert_eq!(last, AHEAD + 21 * hyperv_host::disks::Run::SPAN);
    assert_eq!(hosts[0].call(&Request::Delete { name: name.clone() }).unwrap(), Reply::Ok);
}

/// What a guest said before it was moved can be read where it is.
#[test]
fn what_a_guest_printed_moves_with_it() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start(dir.path(), "a", 0, &[]);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=1 iops=500");
    let name = &payload.name;
    a.call(&Request::Start { name: name.clone() }).unwrap();
    a.console(name).unwrap().next_line("progress");
    a.move_to(name, &b).unwrap();
    let mut console = b.console(name).unwrap();
    let said = format!("start seed={} ", payload.seed);
    while !console.text.contains(&said) {
        assert!(console.read() && !console.text.contains("final"), "{}", console.text);
    }
}

/// A move is called off while memory is on its way: the guest goes on where it is, and can be moved.
#[test]
fn a_move_that_is_called_off_leaves_the_guest_where_it_is() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // The first round ends when the move has been called off.
    let a = HostProcess::start_with(dir.path(), "a", 0, &["source.precopy=stall"], 2);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=4 iops=500");
    let name = &payload.name;
    a.call(&Request::Start { name: name.clone() }).unwrap();
    a.console(name).unwrap().next_line("progress");
    let cancel = Request::CancelMove { name: name.clone() };
    let error = a.call(&cancel).unwrap_err().to_string();
    assert!(error.contains("running"), "nothing is to be called off: {error}");
    let options = MoveOptions { to: b.address.clone(), ..MoveOptions::default() };
    let request = Request::Move { name: name.clone(), options };
    let mut called_off = false;
    let moved = Client::connect(a.socket()).unwrap().call_with(&request, |progress| {
        if progress.phase == "precopy" && !called_off {
            called_off = true;
            assert_eq!(a.call(&cancel).unwrap(), Reply::Ok);
        }
    });
    let error = moved.unwrap_err().to_string();
    assert!(error.contains("not moved") && error.contains("cancelled"), "{error}");
    assert_eq!(a.state(name), Some(VmState::Running));
    b.wait_state(name, None);
    assert_eq!(a.move_to(name, &b).unwrap().outcome, "moved");
}

/// A guest that writes faster than its memory is sent is not paused for as long as that takes.
#[test]
fn a_move_that_would_pause_the_guest_for_too_long_is_given_up() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start_saying(dir.path(), "a", "max_rounds = 1\n");
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 128, "ws_mib=32 iops=500");
    let name = &payload.name;
    a.call(&Request::Start { name: name.clone() }).unwrap();
    a.console(name).unwrap().next_line("progress");
    let to = |longest: u32| MoveOptions {
        to: b.address.clone(),
        downtime_ms: Some(1),
        longest_downtime_ms: Some(longest),
        streams: None,
    };
    let request = |longest| Request::Move { name: name.clone(), options: to(longest) };
    let error = a.call(&request(1)).unwrap_err().to_string();
    assert!(error.contains("not moved") && error.contains("after 1 rounds"), "{error}");
    assert_eq!(a.state(name), Some(VmState::Running));
    a.call(&request(600_000)).unwrap();
    assert_eq!(b.state(name), Some(VmState::Running));
}

#[test]
fn a_target_that_cannot_take_the_vm_says_why_and_the_guest_runs_on() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start(dir.path(), "a", 0, &[]);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 128, "ws_mib=1 iops=500");
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    Payload::create(&other, &b, 64, "");
    let name = &payload.name;
    a.call(&Request::Start { name: name.clone() }).unwrap();
    let error = a.move_to(name, &b).unwrap_err().to_string();
    assert!(error.contains("there is a VM payload already"), "{error}");
    assert_eq!(a.state(name), Some(VmState::Running));
    let line = a.console(name).unwrap().next_line("progress");
    assert_eq!(line.get("verify_errors"), 0);

    // A host of another authority is not talked to.
    let foreign = tempfile::tempdir().unwrap();
    let c = HostProcess::start(foreign.path(), "c", 0, &[]);
    let error = a.move_to(name, &c).unwrap_err().to_string();
    assert!(error.contains("not moved"), "{error}");
    assert_eq!(a.state(name), Some(VmState::Running));
    assert_eq!(c.state(name), None);
}

#[test]
fn two_vms_with_one_id_are_refused() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start(dir.path(), "a", 0, &[]);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=1 iops=500");
    let name = &payload.name;
    let mut twin = a.definition(name);
    assert!(twin.id.is_some());
    twin.name = "twin".parse().unwrap();
    let create = Request::Create { definition: twin };
    // At creation.
    let error = a.call(&create).unwrap_err().to_string();
    assert!(error.contains("has the id of VM payload"), "{error}");
    // At arrival: the guest runs on where it was.
    assert_eq!(b.call(&create).unwrap(), Reply::Ok);
    a.call(&Request::Start { name: name.clone() }).unwrap();
    let error = a.move_to(name, &b).unwrap_err().to_string();
    assert!(error.contains("has the id of VM twin"), "{error}");
    assert_eq!(a.state(name), Some(VmState::Running));
    assert_eq!(b.state(name), None);
}

/// What a VM may have on a host is said there, not by who makes it or sends it.
#[test]
fn a_vm_has_its_disks_and_kernel_where_its_host_allows_them() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start(dir.path(), "a", 0, &[]);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=1 iops=500");
    let name = &payload.name;
    let good = a.definition(name);
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name);
    std::fs::copy(&good.boot.as_ref().unwrap().kernel, at("guest.elf")).unwrap();
    std::fs::copy(&payload.image, at("disk.raw")).unwrap();
    let mut other_disk = good.clone();
    other_disk.disks[0].location = at("disk.raw").display().to_string();
    let mut other_kernel = good.clone();
    other_kernel.boot.as_mut().unwrap().kernel = at("guest.elf");
    let mut other_initrd = good.clone();
    other_initrd.boot.as_mut().unwrap().initrd = Some("/etc/passwd".into());
    let mut other_server = good.clone();
    other_server.disks[0].location = "smb://admin@127.0.0.1:1/vms/disk.raw".into();
    for (bad, why) in [
        (other_disk, "locations"),
        (other_server, "locations"),
        (other_kernel, "folders"),
        (other_initrd, "folders"),
    ] {
        let error = b.call(&Request::Create { definition: bad }).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    // One host allows more than the other: what it sends is held to the other's rules.
    drop(a);
    let more = "\n[storage]\nlocations = ['/']\n[boot]\nfolders = ['/']\n";
    let a = HostProcess::start_saying(dir.path(), "a", more);
    for (turn, change) in ["disk.raw", "guest.elf"].into_iter().enumerate() {
        let mut bad = good.clone();
        bad.name = format!("bad-{turn}").parse().unwrap();
        bad.id = None;
        if change == "guest.elf" {
            bad.boot.as_mut().unwrap().kernel = at(change);
        } else {
            bad.disks[0].location = at(change).display().to_string();
        }
        let name = bad.name.clone();
        a.call(&Request::Create { definition: bad }).unwrap();
        a.call(&Request::Start { name: name.clone() }).unwrap();
        let error = a.move_to(&name, &b).unwrap_err().to_string();
        assert!(error.contains("not moved") && error.contains(change), "{error}");
        assert_eq!(a.state(&name), Some(VmState::Running));
        assert_eq!(b.state(&name), None);
    }
}

/// A host that lost its place at the door before it was greeted comes back, for each connection.
#[test]
fn who_is_cut_before_a_greeting_tries_again() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start(dir.path(), "a", 0, &[]);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=1 iops=500");
    let name = &payload.name;
    a.call(&Request::Start { name: name.clone() }).unwrap();
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, behind) = (door.local_addr().unwrap(), b.address.clone());
    let cut = Arc::new(AtomicUsize::new(0));
    let count = cut.clone();
    // Lets every third connection pass; ends with the test's process.
    thread::spawn(move || {
        for number in 1.. {
            let (near, _) = door.accept().unwrap();
            if number % 3 != 0 {
                count.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let far = TcpStream::connect(&behind).unwrap();
            for (mut from, mut to) in [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far.try_clone().unwrap(), near.try_clone().unwrap()),
            ] {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    let options = MoveOptions { to: address.to_string(), ..MoveOptions::default() };
    let moved = a.call(&Request::Move { name: name.clone(), options }).unwrap();
    let Reply::Moved { statistics } = moved else { panic!("{moved:?}") };
    assert_eq!(statistics.outcome, "moved");
    // The control connection and at least one for memory came through.
    assert!(cut.load(Ordering::Relaxed) >= 4);
}

/// Strangers at the migration port, silent ones and slow ones, take no host's place.
#[test]
fn hosts_find_a_place_among_strangers_without_end() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start(dir.path(), "a", 0, &[]);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=1 iops=500");
    let name = &payload.name;
    a.call(&Request::Start { name: name.clone() }).unwrap();
    let (address, stop) = (b.address.clone(), AtomicBool::new(false));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let strangers = scope.spawn(|| {
            let mut all = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                all.retain_mut(|stream: &mut TcpStream| stream.write_all(&[0x16]).is_ok());
                while all.len() < 300 {
                    all.push(TcpStream::connect(&address).unwrap());
                }
                // All are there; who listens for that hears it once.
                let _ = tell.send(());
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        told.recv().expect("the strangers are at the door");
        let moved = a.move_to(name, &b);
        stop.store(true, Ordering::Relaxed);
        strangers.join().unwrap();
        assert_eq!(moved.unwrap().outcome, "moved");
    });
}
