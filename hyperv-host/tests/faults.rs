//! A move broken at every point, in every way: exactly one guest goes on, and no acknowledged
//! write is lost.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use host_api::{Request, VmState};
use test_support::host::{Console, HostProcess, PATIENCE, Payload};

/// What becomes of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It goes on as it was, at the source.
    Source,
    /// It goes on as it was, at the target.
    Target,
    /// It goes on as it was, at either.
    Live,
    /// Its host died with it: it is started afresh where it was.
    Afresh,
}

/// Whether both hosts say that the VM runs; that must never be.
fn running(a: &HostProcess, b: &HostProcess, payload: &Payload) -> (bool, bool) {
    let runs = |host: &HostProcess| {
        matches!(host.state(&payload.name), Some(VmState::Running | VmState::MovingOut))
    };
    (runs(a), runs(b))
}

fn last_acked(console: &Console) -> (u64, u64) {
    let line = payload_guest::Line::last(&console.text, "progress").expect("it made progress");
    (line.get("acked"), line.get("seq"))
}

/// Runs a scenario until its fault has happened: on a machine so busy that a move gives up for
/// want of time before it comes to the point, the move is made once more.
fn scenario(point: &str, action: &str, fate: Fate) {
    const TRIES: u32 = 8;
    if test_support::kvm().is_none() {
        return;
    }
    for _ in 0..TRIES {
        eprintln!("{point}={action}");
        if broken(point, action, fate) {
            return;
        }
        eprintln!("the move did not come to that point");
    }
    panic!("{point} was not passed");
}

/// Whether the fault happened; everything else is asserted.
fn broken(point: &str, action: &str, fate: Fate) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let fault = format!("{point}={action}");
    let at_source = point.starts_with("source");
    // A death or a cut is seen at once; only a stall must be waited out.
    let timeout = if action == "stall" { 2 } else { 10 };
    let faults = |mine: bool| if mine { vec![fault.as_str()] } else { vec![] };
    let mut a = HostProcess::start_with(dir.path(), "a", 0, &faults(at_source), timeout);
    let mut b = HostProcess::start_with(dir.path(), "b", 0, &faults(!at_source), timeout);
    let ports = (a.port(), b.port());
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=4 iops=2000");
    let name = payload.name.clone();
    a.call(&Request::Start { name: name.clone() }).unwrap();
    let mut before = a.console(&name).unwrap();
    before.next_line("progress");

    let moved = a.move_to(&name, &b);
    if !(if at_source { &a } else { &b }).said("a fault that was asked for") {
        assert!(moved.is_err(), "it moved without passing {point}");
        return false;
    }
    // What the guest said at the source is all there when that console has ended, or is what
    // was read by now.
    if action == "die" {
        let victim = if at_source { &mut a } else { &mut b };
        victim.wait_dead();
    }
    if !a.is_alive() {
        before.read_to_end();
    } else {
        before.read();
    }
    let (acked, submitted) = last_acked(&before);

    if fate == Fate::Afresh {
        // No one may run it now: all that was acknowledged must be in the image.
        payload.verify(acked, submitted + 100_000);
    }
    if !a.is_alive() {
        assert!(!running(&a, &b, &payload).1 || fate != Fate::Afresh);
        a = HostProcess::start_with(dir.path(), "a", ports.0, &[], timeout);
    }
    if !b.is_alive() {
        b = HostProcess::start_with(dir.path(), "b", ports.1, &[], timeout);
    }

    // Exactly one goes on: one runs it, the other does not know it any more.
    let deadline = Instant::now() + PATIENCE;
    let at_target = loop {
        let (at_a, at_b) = running(&a, &b, &payload);
        assert!(!(at_a && at_b), "it runs on both");
        let states = (a.state(&name), b.state(&name));
        match states {
            (Some(VmState::Running), None) => break false,
            (None, Some(VmState::Running)) => break true,
            _ => {}
        }
        assert!(Instant::now() < deadline, "{point}={action}: {states:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    match fate {
        Fate::Source => assert!(!at_target),
        Fate::Target => assert!(at_target),
        Fate::Live => {}
        Fate::Afresh => assert_eq!(at_target, !at_source),
    }
    if moved.is_ok() {
        assert!(at_target, "the source said that it moved");
    }
    let survivor = if at_target { &b } else { &a };
    let mut console = survivor.console(&name).unwrap();
    let line = loop {
        let line = console.next_line("progress");
        // One that was printed before the fault may still be in the source's ring.
        if fate == Fate::Afresh || line.get("acked") > acked {
            break line;
        }
    };
    assert_eq!((line.get("verify_errors"), line.get("memory_errors")), (0, 0), "{line:?}");
    nothing_is_left(dir.path());
    if fate == Fate::Afresh {
        let stop = Request::Stop { name: name.clone(), force: true, timeout_s: None };
        survivor.call(&stop).unwrap();
        return true;
    }
    console.type_line("stop");
    let last = console.next_line("final");
    survivor.wait_state(&name, Some(VmState::Off));
    assert_eq!((last.get("verify_errors"), last.get("memory_errors")), (0, 0), "{last:?}");
    let report = payload.verify(last.get("flushed"), last.get("seq"));
    assert_eq!(report.newer, 0);
    true
}

/// Nothing that was written for a move alone stays at either host.
fn nothing_is_left(dir: &Path) {
    let folders = ["a", "b"].map(|host| ["moves", "arriving"].map(|part| (host, part)));
    let deadline = Instant::now() + PATIENCE;
    for (host, part) in folders.into_iter().flatten() {
        let folder = dir.join(host).join("state").join(part);
        let left = || std::fs::read_dir(&folder).unwrap().flatten().collect::<Vec<_>>();
        while !left().is_empty() {
            assert!(Instant::now() < deadline, "{:?} are left", left());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

macro_rules! points {
    ($($test:ident $point:literal die $die:ident drop $drop:ident stall $stall:ident;)*) => {
        $(
            #[test]
            fn $test() {
                scenario($point, "die", Fate::$die);
                scenario($point, "drop", Fate::$drop);
                scenario($point, "stall", Fate::$stall);
            }
        )*

        #[test]
        fn every_point_has_a_test() {
            let tested = [$($point),*];
            for point in hyperv_host::fault::POINTS {
                assert!(tested.contains(&point), "{point}");
            }
        }
    };
}

points! {
    target_accepted "target.accepted" die Source drop Source stall Source;
    source_connected "source.connected" die Afresh drop Source stall Source;
    source_precopy "source.precopy" die Afresh drop Source stall Source;
    target_precopy "target.precopy" die Source drop Source stall Source;
    source_paused "source.paused" die Afresh drop Source stall Source;
    source_disk_closed "source.disk-closed" die Afresh drop Source stall Source;
    // The target's "ready" may be here already when the link is cut; then the source records the
    // hand-over, and the guest goes on at the target. Else it goes on at the source.
    source_state_sent "source.state-sent" die Afresh drop Live stall Live;
    target_state "target.state" die Source drop Source stall Source;
    target_ready "target.ready" die Source drop Live stall Live;
    source_ready "source.ready" die Afresh drop Target stall Target;
    source_recorded "source.recorded" die Target drop Target stall Target;
    source_commit_sent "source.commit-sent" die Target drop Target stall Target;
    target_commit "target.commit" die Source drop Target stall Target;
    target_recorded "target.recorded" die Afresh drop Target stall Target;
    target_disk_open "target.disk-open" die Afresh drop Target stall Target;
    target_running "target.running" die Afresh drop Target stall Target;
    target_settle "target.settle" die Afresh drop Target stall Target;
    target_settled "target.settled" die Afresh drop Target stall Target;
    source_running "source.running" die Target drop Target stall Target;
    source_gone "source.gone" die Target drop Target stall Target;
    target_forgotten "target.forgotten" die Afresh drop Target stall Target;
}
