//! A host within the test's process, with a VM that runs.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use host_api::{VmDefinition, VmState};
use hyperv_host::{
    config::Config,
    fault::Faults,
    host::{Host, HostError, machine::Managed},
};
use test_support::host::PATIENCE;

/// Starts a host by the name of `a` and on it a VM with the payload guest, whose VM file has `keys` at its
/// top.
pub fn start(dir: &Path, keys: &str) -> (Arc<Host>, Arc<Managed>) {
    let root = dir.join("a");
    host_api::pki::init(&dir.join("ca"), "a", &root).unwrap();
    let at = |name: &str| root.join(name);
    let text = format!(
        "[host]\nstate_dir = {:?}\n[migration]\nlisten = '127.0.0.1:0'\nca = {:?}\ncertificate = {:?}\n\
         key = {:?}\n[storage]\nlocations = [{dir:?}]\n[boot]\nfolders = [{dir:?}]\n",
        at("state"),
        at("ca.pem"),
        at("host.pem"),
        at("host-key.pem"),
    );
    let config = Config::parse(&text, &at("host.toml")).unwrap();
    let host = Host::open(config, Faults::new(Vec::new())).unwrap();

    let kernel = dir.join("guest.elf");
    std::fs::write(&kernel, payload_guest::GUEST).unwrap();
    let image = dir.join("disk.raw");
    std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let definition = VmDefinition::from_toml(&format!(
        "name = 'a'\nmemory_mib = 64\nconsole = 'virtio'\n{keys}\n[boot]\nkernel = {kernel:?}\n\
         cmdline = 'span=16 seed=1 iops=100'\n[[disk]]\nlocation = {image:?}\n"
    ))
    .unwrap();
    let name = definition.name.clone();
    host.create(definition).unwrap();
    host.start(&name).unwrap();
    let managed = host.find(&name).unwrap();
    // Its drivers have set its devices up by then.
    let vm = managed.vm().unwrap();
    wait("the guest works", || String::from_utf8_lossy(&vm.console().tail()).contains("progress"));
    (host, managed)
}

/// Waits until something is so.
pub fn wait(what: &str, done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < PATIENCE, "not within a minute: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the VM, and waits until it is off.
pub fn end(host: &Arc<Host>, managed: &Managed) {
    // One that was just started again is not let go of yet.
    wait("it is nobody's", || match host.stop(managed.name(), true, PATIENCE) {
        Err(HostError::Busy(_)) => false,
        stopped => stopped.is_ok() || panic!("{stopped:?}"),
    });
    assert!(managed.wait(PATIENCE, |inner| inner.state == VmState::Off));
}
