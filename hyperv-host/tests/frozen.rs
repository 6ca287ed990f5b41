//! A VM whose guest's file systems are frozen, on a host within the test's process: the test plays the
//! guest's agent, which does not thaw until it is told.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use host_api::{Consistency, MoveOptions, VmState};
use hyperv_host::{agent::answers::Answers, host::HostError, migrate::source::move_vm};
use serde_json::{Value, json};
use test_support::host::HostProcess;
use vmm::devices::port::Port;

/// Answers what an agent is asked until the port ends. It freezes at once, and thaws only if `thaws`.
fn play(port: &Port, thaws: &AtomicBool) {
    let (mut answers, mut frozen) = (Answers::default(), false);
    while !port.has_ended() {
        answers.push(&port.take_for_guest(usize::MAX));
        let Some(Ok(line)) = answers.next_line() else {
            thread::yield_now();
            continue;
        };
        let asked: Value = serde_json::from_slice(&line).unwrap();
        let id = &asked["arguments"]["id"];
        let answer = match asked["execute"].as_str().unwrap() {
            "guest-sync-delimited" => {
                port.push_from_guest(&[0xff]);
                json!({ "return": id })
            }
            "guest-fsfreeze-freeze" => {
                frozen = true;
                json!({ "return": 1 })
            }
            "guest-fsfreeze-thaw" if !thaws.load(Ordering::Acquire) => {
                json!({ "error": { "class": "GenericError", "desc": "not yet" } })
            }
            "guest-fsfreeze-thaw" => {
                frozen = false;
                json!({ "return": 1 })
            }
            "guest-fsfreeze-status" => {
                json!({ "return": if frozen { "frozen" } else { "thawed" } })
            }
            _ => json!({ "return": {} }),
        };
        port.push_from_guest(format!("{answer}\n").as_bytes());
    }
}

/// Who froze them goes on to thaw them, on the host where it did.
#[test]
fn a_vm_is_not_moved_away_from_who_thaws_its_file_systems() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let other = HostProcess::start(dir.path(), "b", 0, &[]);
    let (host, managed) = support::start(dir.path(), "");
    let name = managed.name().clone();
    let port = managed.vm().unwrap().agent().clone();
    // The payload guest has no driver for its agent's port.
    port.set_open(true);
    let thaws = Arc::new(AtomicBool::new(false));
    let agent = thread::spawn({
        let (port, thaws) = (port.clone(), thaws.clone());
        move || play(&port, &thaws)
    });

    let options = MoveOptions { to: other.address.clone(), ..MoveOptions::default() };
    let go = || move_vm(&host, &name, options.clone(), |_| {});
    let quiet = managed.quiesce().unwrap();
    assert_eq!(quiet.consistency(), (Consistency::Application, None));
    assert!(matches!(go(), Err(HostError::Busy(_))), "it is held quiet");
    drop(quiet);
    let refused = go().unwrap_err();
    assert!(matches!(&refused, HostError::Frozen(of) if *of == name), "{refused}");
    assert_eq!((managed.state(), other.state(&name)), (VmState::Running, None));

    // It is asked again, thaws, and may go.
    thaws.store(true, Ordering::Release);
    support::wait("it is asked again", || !managed.agent().unwrap().is_frozen());
    assert_eq!(go().unwrap().outcome, "moved");
    assert_eq!(other.state(&name), Some(VmState::Running));
    agent.join().unwrap();
}
