//! What a host does when a VM's watchdog expires, and with a VM's balloon; the test plays the drivers.

mod support;

use std::sync::Arc;

use host_api::VmState;
use hyperv_host::{
    host::{
        HostError,
        machine::{Inner, Managed},
    },
    worker::machine::Machine,
};
use test_support::host::PATIENCE;
use vmm::{Vm, devices::pci::PciFunction, platform::bus::BusDevice};

const COMMAND: usize = 0x04;
const CONFIG: usize = 0x60;
const LOCK: usize = 0x68;

/// Writes to the window of a watchdog, after the values that unlock it.
fn put(vm: &Vm, offset: u64, value: u32) {
    let mut watchdog = vm.watchdog().unwrap().lock().unwrap();
    for unlock in [0x80u16, 0x86] {
        BusDevice::write(&mut *watchdog, 0xc, &unlock.to_le_bytes());
    }
    BusDevice::write(&mut *watchdog, offset, &value.to_le_bytes());
}

/// A driver that has the watchdog run for some milliseconds, and never feeds it.
fn neglect(vm: &Vm) {
    let config = |offset: usize, bytes: &[u8]| {
        vm.watchdog().unwrap().lock().unwrap().config_write(offset, bytes);
    };
    config(COMMAND, &[2, 0]);
    config(CONFIG, &[3, 0]);
    put(vm, 0, 50);
    put(vm, 4, 50);
    config(LOCK, &[2]);
}

fn reason(managed: &Managed) -> String {
    managed.look(|inner| inner.shown_reason()).unwrap_or_default()
}

#[test]
fn a_vm_whose_watchdog_pauses_it_stands_until_it_is_resumed() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (host, managed) = support::start(dir.path(), "on_watchdog = 'pause'");
    let (name, vm) = (managed.name().clone(), managed.vm().unwrap());
    assert!(matches!(host.resume(&name), Err(HostError::State { .. })), "it runs");
    let shown = host.show(&name).unwrap().watchdog.unwrap();
    assert_eq!((shown.enabled, shown.left_ms, shown.expired), (false, None, 0));
    neglect(&vm);
    let paused = || managed.wait(PATIENCE, |inner| inner.shown() == VmState::Paused);
    assert!(paused());
    assert!(reason(&managed).contains("vm resume"), "{}", reason(&managed));
    assert_eq!(host.show(&name).unwrap().watchdog.unwrap().expired, 1);
    // Its guest does nothing.
    let ran = vm.control().run_time();
    let refused = host.stop(&name, false, PATIENCE).unwrap_err();
    assert!(matches!(refused, HostError::Halted { .. }), "{refused}");
    assert_eq!(vm.control().run_time(), ran);
    host.resume(&name).unwrap();
    assert_eq!((managed.state(), reason(&managed).as_str()), (VmState::Running, ""));
    support::wait("it runs on", || vm.control().run_time() > ran);
    // Its driver feeds it again, and forgets it again.
    put(&vm, 0xc, 0x300);
    assert!(paused(), "again");
    support::end(&host, &managed);
}

#[test]
fn a_vm_whose_watchdog_resets_it_is_another_and_may_ask_why() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (host, managed) = support::start(dir.path(), "on_watchdog = 'reset'");
    let vm = managed.vm().unwrap();
    let asks = |vm: &Vm| {
        let mut byte = [0];
        let mut watchdog = vm.watchdog().unwrap().lock().unwrap();
        BusDevice::read(&mut *watchdog, 0xd, &mut byte);
        byte[0]
    };
    assert_eq!(asks(&vm), 0);
    neglect(&vm);
    let is_other = |now: &Arc<Vm>| !Arc::ptr_eq(now, &vm);
    let here = |inner: &Inner| inner.vm.as_ref().and_then(Machine::here).is_some_and(is_other);
    assert!(managed.wait(PATIENCE, here));
    assert_eq!(asks(&managed.vm().unwrap()), 2);
    assert_eq!(managed.state(), VmState::Running);
    support::end(&host, &managed);
}

#[test]
fn a_vm_whose_watchdog_only_tells_runs_on() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (host, managed) = support::start(dir.path(), "on_watchdog = 'nothing'");
    let vm = managed.vm().unwrap();
    neglect(&vm);
    let told = |reason: &String| reason.contains("watchdog");
    assert!(managed.wait(PATIENCE, |inner| inner.reason.as_ref().is_some_and(told)));
    assert_eq!(managed.state(), VmState::Running);
    let ran = vm.control().run_time();
    support::wait("it runs on", || vm.control().run_time() > ran);
    support::end(&host, &managed);
}

#[test]
fn a_vm_may_have_what_is_between_its_minimum_and_what_it_has_started_with() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (host, managed) = support::start(dir.path(), "minimum_mib = 32");
    let name = managed.name().clone();
    let wanted = || host.show(&name).unwrap().memory.unwrap().balloon.unwrap().wanted >> 20;
    assert_eq!(wanted(), 64);
    for mib in [0, 31, 65, u64::MAX] {
        let refused = host.set_memory(&name, mib).unwrap_err();
        assert!(matches!(refused, HostError::Memory { least: 32, most: 64, .. }), "{refused}");
    }
    host.set_memory(&name, 40).unwrap();
    assert_eq!(wanted(), 40);
    // Another minimum is for now, and another size for the next start.
    let was = (*managed.definition()).clone();
    let mut other = was.clone();
    (other.minimum_mib, other.memory_mib) = (Some(16), 128);
    host.edit(&was, other).unwrap();
    assert_eq!(managed.waiting_changes(), ["memory_mib"]);
    host.set_memory(&name, 16).unwrap();
    assert!(host.set_memory(&name, 100).is_err());
    support::end(&host, &managed);
    assert!(matches!(host.set_memory(&name, 40), Err(HostError::State { .. })));

    let dir = tempfile::tempdir().unwrap();
    let (host, managed) = support::start(dir.path(), "");
    let refused = host.set_memory(managed.name(), 40).unwrap_err();
    assert!(matches!(refused, HostError::NoBalloon(_)), "{refused}");
    assert!(host.show(managed.name()).unwrap().memory.unwrap().resident > 0);
    support::end(&host, &managed);
}
