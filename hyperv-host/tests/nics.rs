//! Network cards on bridges of the host, all in a network namespace of the test's own: hosts that it
//! starts are in it, too.

use std::process::Command;

use host_api::{Reply, Request, VmDefinition, VmName, VmState};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use test_support::host::{HostProcess, Payload};

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Puts this thread into a namespace with the bridge `br0`; `false` where that cannot be.
#[expect(unsafe_code, reason = "unsharing a namespace")]
fn alone_with_a_bridge() -> bool {
    if test_support::kvm().is_none() {
        return false;
    }
    // SAFETY: only the network namespace is left, of which this thread has nothing open.
    if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        let why = format_args!("a network namespace of its own is needed: {error}");
        test_support::skip(test_support::Need::Root.because(why));
        return false;
    }
    ip("link set lo up");
    ip("link add br0 type bridge");
    ip("link set br0 up");
    true
}

/// Interfaces in the bridge.
fn plugged_in() -> Vec<String> {
    let text = ip("-o link show master br0");
    text.lines().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
}

/// Waits until there are so many of them: a machine ends after it is told that its VM has.
fn wait_plugged_in(count: usize) {
    let since = std::time::Instant::now();
    while plugged_in().len() != count {
        assert!(since.elapsed().as_secs() < 60, "{:?}", plugged_in());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The payload VM's definition with this card, as another VM.
fn with_card(of: &VmDefinition, name: &str, card: &str) -> VmDefinition {
    let text = format!("{}[[nic]]\n{card}\n", of.to_toml());
    let mut definition = VmDefinition::from_toml(&text).unwrap();
    (definition.name, definition.id) = (name.parse().unwrap(), None);
    definition
}

#[test]
fn a_card_is_in_its_bridge_as_long_as_its_vm_runs_and_moves_with_it() {
    if !alone_with_a_bridge() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let more = format!(
        "[network]\nbridges = ['br0']\n[storage]\nlocations = [{:?}]\n[boot]\nfolders = [{0:?}]\n",
        dir.path()
    );
    let (a, b) = (
        HostProcess::start_saying(dir.path(), "a", &more),
        HostProcess::start_saying(dir.path(), "b", &more),
    );
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=1 iops=500");
    let plain = a.definition(&payload.name);
    a.call(&Request::Delete { name: payload.name.clone() }).unwrap();
    let definition = with_card(&plain, "wired", "bridge = 'br0'\nsend_mbit = 100");
    let name: VmName = definition.name.clone();
    a.call(&Request::Create { definition }).unwrap();
    assert_eq!(plugged_in().len(), 0);
    a.call(&Request::Start { name: name.clone() }).unwrap();
    a.console(&name).unwrap().next_line("progress");
    assert_eq!(plugged_in().len(), 1);
    let address = a.definition(&name).mac(0);

    a.move_to(&name, &b).unwrap();
    assert_eq!(b.state(&name), Some(VmState::Running));
    wait_plugged_in(1);
    assert_eq!(b.definition(&name).mac(0), address);
    // The bridge has learnt where the card is from its announcement: its guest sends nothing.
    let known = Command::new("bridge").args(["fdb", "show", "br", "br0"]).output().unwrap();
    let known = String::from_utf8(known.stdout).unwrap();
    let place = plugged_in()[0].trim_end_matches(':').to_owned();
    let learnt = format!("{} dev {place}", String::from(address));
    assert!(known.contains(&learnt), "{learnt} is not in\n{known}");

    let stop = Request::Stop { name: name.clone(), force: true, timeout_s: None };
    assert_eq!(b.call(&stop).unwrap(), Reply::Ok);
    wait_plugged_in(0);
}

#[test]
fn a_card_is_where_its_host_allows_it() {
    if !alone_with_a_bridge() {
        return;
    }
    ip("link add br1 type bridge");
    let dir = tempfile::tempdir().unwrap();
    let places = format!("[storage]\nlocations = [{:?}]\n[boot]\nfolders = [{0:?}]\n", dir.path());
    let a = HostProcess::start_saying(dir.path(), "a", &places);
    let b = HostProcess::start_saying(dir.path(), "b", &places);
    let payload = Payload::create(dir.path(), &a, 64, "ws_mib=1 iops=500");
    let plain = a.definition(&payload.name);
    let create = |host: &HostProcess, definition: VmDefinition| {
        host.call(&Request::Create { definition }).map_err(|error| error.to_string())
    };
    let missing = create(&a, with_card(&plain, "x", "bridge = 'br7'")).unwrap_err();
    assert!(missing.contains("br7") && missing.contains("ip link add"), "{missing}");
    // One that nobody has allowed is this host's own VMs' to use, and no other host's.
    a.call(&Request::Delete { name: payload.name.clone() }).unwrap();
    create(&a, with_card(&plain, "free", "bridge = 'br1'")).unwrap();
    let name: VmName = "free".parse().unwrap();
    a.call(&Request::Start { name: name.clone() }).unwrap();
    let refused = a.move_to(&name, &b).unwrap_err().to_string();
    assert!(refused.contains("bridges") && refused.contains("br1"), "{refused}");
    assert_eq!(a.state(&name), Some(VmState::Running));
    drop(b);
    let b = HostProcess::start_saying(
        dir.path(),
        "b",
        &format!("[network]\nbridges = ['br0']\n{places}"),
    );
    let refused = a.move_to(&name, &b).unwrap_err().to_string();
    assert!(refused.contains("br1") && refused.contains("none of this host's"), "{refused}");
}
