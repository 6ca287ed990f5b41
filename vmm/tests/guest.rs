//! The payload guest on the VMM: boots, works its disk, obeys, and leaves a disk that is right.

mod support;

use std::{sync::Arc, time::Duration};

use block_io::{Disk, LocalFile, LocalOptions, RawDisk};
use host_api::VmDefinition;
use vmm::{DRAIN_LIMIT, DiskShape, Vm, platform::lifecycle::EndReason};

fn run(
    cmdline: &str,
    vcpus: u32,
    during: impl FnOnce(&Vm),
) -> Option<(String, std::path::PathBuf, tempfile::TempDir)> {
    let kvm = support::kvm()?;
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("guest.elf");
    std::fs::write(&kernel, payload_guest::GUEST).unwrap();
    let image = dir.path().join("disk.raw");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let definition = VmDefinition::from_toml(&format!(
        "name = 'g'\nmemory_mib = 128\nvcpus = {vcpus}\nconsole = 'virtio'\n[boot]\nkernel = {kernel:?}\n\
         cmdline = '{cmdline}'\n[[disk]]\nlocation = {image:?}\n"
    ))
    .unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let disk: Arc<dyn Disk> = runtime.block_on(async {
        let file = LocalFile::open(&image, &LocalOptions::read_write()).unwrap();
        Arc::new(RawDisk::open(Arc::new(file), 512).await.unwrap())
    });
    let shape = DiskShape { geometry: disk.geometry(), read_only: false };
    let vm =
        Vm::build(&kvm, &definition, &[shape], None, Vec::new(), runtime.handle().clone()).unwrap();
    vm.load().unwrap();
    vm.attach_disks(vec![disk]).unwrap();
    vm.resume();
    during(&vm);
    let end = vm.control().wait_end(Duration::from_secs(60));
    vm.stop(DRAIN_LIMIT);
    let text = String::from_utf8_lossy(&vm.console().tail()).into_owned();
    for (_, disk) in vm.detach_disks() {
        runtime.block_on(disk.close()).unwrap();
    }
    assert_eq!(end, Some(EndReason::PowerOff), "console:\n{text}");
    // Nothing keeps the memory of a machine that is gone.
    let ram = Arc::downgrade(vm.ram());
    drop(vm);
    assert!(ram.upgrade().is_none());
    Some((text, image, dir))
}

fn verify(text: &str, image: &std::path::Path) -> payload_guest::Report {
    let last =
        payload_guest::Line::last(text, "final").unwrap_or_else(|| panic!("no end in\n{text}"));
    let start = payload_guest::Line::last(text, "start").unwrap();
    assert_eq!(last.get("verify_errors"), 0, "{text}");
    assert_eq!(last.get("memory_errors"), 0, "{text}");
    assert_eq!(last.get("flushed"), last.get("seq"), "{text}");
    support::check_raw(image, &start, last.get("flushed"), last.get("seq"))
}

#[test]
fn the_guest_writes_a_disk_that_verifies() {
    let Some((text, image, _dir)) = run("span=16 blocks=3000 seed=7 ws_mib=4", 1, |_| {}) else {
        return;
    };
    let report = verify(&text, &image);
    assert!(report.exact > 1000, "{report:?}\n{text}");
    let last = payload_guest::Line::last(&text, "final").unwrap();
    assert_eq!(last.get("seq"), 3000);
    // A read is tried at every eighth write and done where the block is known by then: some
    // hundred of them, fewer where two reads are still on the way.
    assert!(last.get("reads") > 10 && last.get("irqs") > 0, "{text}");
}

#[test]
fn a_guest_that_is_paused_again_and_again_loses_nothing() {
    let paused = |vm: &Vm| {
        for _ in 0..50 {
            support::wait_console(vm, "progress");
            vm.pause(DRAIN_LIMIT).unwrap();
            let state = vm.save().unwrap();
            assert_eq!(state.vcpus.len(), 2);
            vm.resume();
        }
        vm.type_in(b"stop\n");
    };
    let Some((text, image, _dir)) = run("span=16 seed=9 ws_mib=4", 2, paused) else { return };
    verify(&text, &image);
}

/// A host whose clock is another takes the guest to have been away as long as it was.
#[test]
fn clocks_that_were_read_here_are_told_in_the_time_of_the_other_host() {
    let read = |vm: &Vm| {
        support::wait_console(vm, "progress");
        vm.pause(DRAIN_LIMIT).unwrap();
        let mut state = vm.save().unwrap();
        let times = |state: &_| -> Vec<u64> {
            let json = serde_json::to_value(state).unwrap();
            let vcpus = json["vcpus"].as_array().unwrap();
            let power = json["power"]["read_at"].as_u64().unwrap();
            let vcpus = vcpus.iter().map(|vcpu| vcpu["read_at"].as_u64().unwrap());
            vcpus.chain([power]).collect()
        };
        let here = times(&state);
        for nanos in [5_000_000_000, -5_000_000_000] {
            state.set_clocks_forward(nanos);
            let there = times(&state);
            for (vcpu, before) in here.iter().enumerate() {
                let expected = before + if nanos > 0 { 5_000_000_000 } else { 0 };
                assert_eq!(there[vcpu], expected);
            }
        }
        vm.resume();
        vm.type_in(b"stop\n");
    };
    let Some((text, image, _dir)) = run("span=16 seed=9 ws_mib=4", 2, read) else { return };
    verify(&text, &image);
}

/// What a host cannot keep it says before the guest is paused.
#[test]
fn a_machine_says_what_it_cannot_take_over() {
    let ask = |vm: &Vm| {
        let needs = vm.needs();
        assert!(!needs.msrs.is_empty() && needs.tsc_khz > 0, "{needs:?}");
        vm.pause(DRAIN_LIMIT).unwrap();
        vm.prepare_for(&needs).unwrap();
        assert_eq!(vm.needs(), needs);
        let mut strange = needs;
        strange.msrs.push(0xdead_beef);
        let error = vm.prepare_for(&strange).unwrap_err().to_string();
        assert!(error.contains("0xdeadbeef"), "{error}");
        vm.resume();
        vm.type_in(b"stop\n");
    };
    run("span=16 seed=3 ws_mib=1", 1, ask);
}

#[test]
fn the_power_button_stops_the_guest() {
    let press = |vm: &Vm| {
        support::wait_console(vm, "progress");
        vm.press_power_button();
    };
    let Some((text, image, _dir)) = run("span=16 seed=3 ws_mib=1", 1, press) else { return };
    verify(&text, &image);
}
