//! Live migration between two host processes, with the guest writing all the time.

mod support;

use host_api::{Reply, Request, VmState};
use support::hosts::{HostProcess, Payload};

#[test]
fn twenty_moves_in_a_row_lose_nothing() {
    if support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hosts =
        [HostProcess::start(dir.path(), "a", 0, &[]), HostProcess::start(dir.path(), "b", 0, &[])];
    let payload = Payload::create(dir.path(), &hosts[0], 128, "ws_mib=8 iops=3000");
    let name = &payload.name;
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
    assert_eq!(hosts[0].call(&Request::Delete { name: name.clone() }).unwrap(), Reply::Ok);
}

#[test]
fn a_target_that_cannot_take_the_vm_says_why_and_the_guest_runs_on() {
    if support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = HostProcess::start(dir.path(), "a", 0, &[]);
    let b = HostProcess::start(dir.path(), "b", 0, &[]);
    let payload = Payload::create(dir.path(), &a, 128, "ws_mib=1 iops=500");
    let other = tempfile::tempdir().unwrap();
    Payload::create(other.path(), &b, 64, "");
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
