//! A VM's life when something around it goes wrong: its storage is late, its guest resets itself again
//! and again, its disk does not answer.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use host_api::{Reply, Request, VmDefinition, VmName, VmState};
use test_support::host::{HostProcess, Payload};

/// A kernel of one instruction, which is none: the processor has no handler for that, and no handler
/// for having none.
fn write_triple_fault(folder: &Path) -> PathBuf {
    const ENTRY: u64 = 0x10_0000;
    let mut elf = vec![0u8; 0x1010];
    elf[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    // Executable, x86-64, version 1, entry, program headers at 64.
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &ENTRY.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    // Sizes of the header and of program headers, two of these.
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let mut segment = |at: usize, kind: u32, offset: u64, address: u64, len: u64, align: u64| {
        put(at, &kind.to_le_bytes());
        put(at + 4, &5u32.to_le_bytes());
        for (index, value) in [offset, address, address, len, len, align].into_iter().enumerate() {
            put(at + 8 + 8 * index, &value.to_le_bytes());
        }
    };
    segment(64, 1, 0x1000, ENTRY, 16, 0x1000);
    segment(120, 4, 0x200, 0, 24, 4);
    // A note of Xen: XEN_ELFNOTE_PHYS32_ENTRY, where a 32-bit boot enters.
    put(0x200, &4u32.to_le_bytes());
    put(0x204, &8u32.to_le_bytes());
    put(0x208, &18u32.to_le_bytes());
    put(0x20c, b"Xen\0");
    put(0x210, &ENTRY.to_le_bytes());
    // UD2
    put(0x1000, &[0x0f, 0x0b]);
    let path = folder.join("triple-fault.elf");
    fs::write(&path, elf).unwrap();
    path
}

fn reason(host: &HostProcess, name: &VmName) -> String {
    match host.call(&Request::Show { name: name.clone() }).unwrap() {
        Reply::Show { vm } => vm.reason.unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

/// Waits until the reason for a VM's state says this.
fn wait_reason(host: &HostProcess, name: &VmName, text: &str) {
    let since = Instant::now();
    while !reason(host, name).contains(text) {
        assert!(since.elapsed() < Duration::from_secs(120), "{:?}", reason(host, name));
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guest_that_resets_itself_again_and_again_is_slowed_down_and_given_up() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    let kernel = write_triple_fault(dir.path());
    let text = format!("name = 'loop'\nmemory_mib = 64\n[boot]\nkernel = '{}'\n", kernel.display());
    let definition = VmDefinition::from_toml(&text).unwrap();
    let name = definition.name.clone();
    host.call(&Request::Create { definition }).unwrap();
    // While it waits to be started again it can be stopped.
    host.call(&Request::Start { name: name.clone() }).unwrap();
    wait_reason(&host, &name, "started again in");
    let stop = Request::Stop { name: name.clone(), force: true, timeout_s: None };
    assert_eq!(host.call(&stop).unwrap(), Reply::Ok);
    assert_eq!(host.state(&name), Some(VmState::Off));
    // Left alone it is given up, and says why.
    host.call(&Request::Start { name: name.clone() }).unwrap();
    host.wait_state(&name, Some(VmState::Failed));
    let why = reason(&host, &name);
    assert!(why.contains("in a row") && why.contains("triple fault"), "{why}");
    assert_eq!(host.call(&Request::Delete { name: name.clone() }).unwrap(), Reply::Ok);
}

/// VMs that start at the same time do not pass the limit together.
#[test]
fn memory_of_vms_that_are_being_started_counts() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start_saying(dir.path(), "a", "[limits]\nmemory_mib = 100\n");
    let kernel = dir.path().join("guest.elf");
    fs::write(&kernel, payload_guest::GUEST).unwrap();
    let names: Vec<VmName> = (0..8).map(|n| format!("vm-{n}").parse().unwrap()).collect();
    for name in &names {
        // Without a disk its guest would end at once, and leave its memory to the next.
        let disk = dir.path().join(format!("{name}.raw"));
        fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
        let text = format!(
            "name = '{name}'\nmemory_mib = 64\nconsole = 'virtio'\n[boot]\nkernel = {kernel:?}\n\
             cmdline = 'span=16 ws_mib=1 iops=100'\n[[disk]]\nlocation = {disk:?}\n"
        );
        let definition = VmDefinition::from_toml(&text).unwrap();
        host.call(&Request::Create { definition }).unwrap();
    }
    let started = thread::scope(|scope| {
        let starts: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| host.call(&Request::Start { name: name.clone() })))
            .collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(started.iter().filter(|result| result.is_ok()).count(), 1, "{started:?}");
    let refused = started.into_iter().find_map(Result::err).unwrap().to_string();
    assert!(refused.contains("memory_mib"), "{refused}");
}

#[test]
fn a_vm_starts_when_its_storage_comes_after_its_host() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    let payload = Payload::create(dir.path(), &host, 64, "ws_mib=1 iops=100");
    let name = payload.name.clone();
    host.call(&Request::Start { name: name.clone() }).unwrap();
    host.console(&name).unwrap().next_line("progress");
    // Without warning, as a power cut ends it.
    drop(host);
    // The host is back before its storage is.
    let away = dir.path().join("away");
    fs::rename(&payload.image, &away).unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    wait_reason(&host, &name, "not started yet");
    assert_eq!(host.state(&name), Some(VmState::Off));
    fs::rename(&away, &payload.image).unwrap();
    host.wait_state(&name, Some(VmState::Running));
    // Nobody has to wait for it who does not want it.
    let stop = Request::Stop { name: name.clone(), force: true, timeout_s: None };
    assert_eq!(host.call(&stop).unwrap(), Reply::Ok);
    assert_eq!(host.state(&name), Some(VmState::Off));
}

#[test]
fn a_vm_that_is_stopped_or_deleted_while_it_waits_for_its_storage_does_not_start() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    let payload = Payload::create(dir.path(), &host, 64, "ws_mib=1 iops=100");
    let name = payload.name.clone();
    host.call(&Request::Start { name: name.clone() }).unwrap();
    host.console(&name).unwrap().next_line("progress");
    drop(host);
    let away = dir.path().join("away");
    fs::rename(&payload.image, &away).unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    wait_reason(&host, &name, "not started yet");
    let stop = Request::Stop { name: name.clone(), force: true, timeout_s: None };
    assert_eq!(host.call(&stop).unwrap(), Reply::Ok);
    // It stays off, also over the next start of the host, and so does another of its name.
    drop(host);
    fs::rename(&away, &payload.image).unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    assert_eq!(host.state(&name), Some(VmState::Off));
    assert_eq!(reason(&host, &name), "");
    host.call(&Request::Start { name: name.clone() }).unwrap();
    drop(host);
    fs::rename(&payload.image, &away).unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    wait_reason(&host, &name, "not started yet");
    while let Err(error) = host.call(&Request::Delete { name: name.clone() }) {
        // An attempt to start it was under way.
        assert!(error.to_string().contains("busy"), "{error}");
    }
    fs::rename(&away, &payload.image).unwrap();
    let other = Payload::create(dir.path(), &host, 64, "ws_mib=1 iops=100");
    // Longer than the pause after which the one that is gone would have been tried again.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(host.state(&other.name), Some(VmState::Off));
}
