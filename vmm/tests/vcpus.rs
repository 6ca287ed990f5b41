//! vCPU threads that a device holds up: nobody waits for them without an end, and what they use stays
//! until they have ended.

mod support;

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use vm_memory::{Bytes, GuestAddress};
use vmm::{
    machine::vcpu::Vcpus,
    platform::{
        bus::{Bus, BusDevice},
        layout,
        memory::{self, GuestRam},
    },
};

/// A device that keeps whoever writes to it until it is let go.
struct Sticky {
    held: Arc<AtomicBool>,
    free: mpsc::Receiver<()>,
}

impl BusDevice for Sticky {
    fn read(&mut self, _: u64, _: &mut [u8]) {}

    fn write(&mut self, _: u64, _: &[u8]) {
        self.held.store(true, Ordering::Release);
        let _ = self.free.recv();
    }
}

/// A vCPU in the hands of a sticky device, what lets it go, and its memory.
fn held() -> Option<(Vcpus, mpsc::Sender<()>, Weak<GuestRam>)> {
    let vm = support::kvm()?.create_vm().unwrap();
    vm.set_identity_map_address(layout::IDENTITY_MAP).unwrap();
    vm.set_tss_address(layout::TSS).unwrap();
    let ram = memory::allocate(1 << 20).unwrap();
    memory::register(&vm, &ram, 0).unwrap();
    vm.create_irq_chip().unwrap();
    // OUT 0x10, AL; JMP back to it.
    ram.write_slice(&[0xe6, 0x10, 0xeb, 0xfc], GuestAddress(0x1000)).unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let mut special = fd.get_sregs().unwrap();
    (special.cs.base, special.cs.selector) = (0, 0);
    fd.set_sregs(&special).unwrap();
    let mut registers = fd.get_regs().unwrap();
    (registers.rip, registers.rflags) = (0x1000, 2);
    fd.set_regs(&registers).unwrap();
    let (free, freed) = mpsc::channel();
    let held = Arc::new(AtomicBool::new(false));
    let (pio, mmio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));
    pio.insert(0x10..0x11, Arc::new(Mutex::new(Sticky { held: held.clone(), free: freed })));
    let vcpus = Vcpus::start("sticky", vec![fd], &pio, &mmio, &ram).unwrap();
    vcpus.resume();
    wait("vCPU", || held.load(Ordering::Acquire));
    Some((vcpus, free, Arc::downgrade(&ram)))
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "no {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_pause_has_a_deadline_and_can_be_had_later() {
    let Some((vcpus, free, _)) = held() else { return };
    assert!(!vcpus.pause(Instant::now() + Duration::from_millis(50)));
    vcpus.resume();
    // The sender is gone: the device keeps nobody any more.
    drop(free);
    assert!(vcpus.pause(Instant::now() + Duration::from_secs(20)));
}

#[test]
fn a_machine_ends_without_a_thread_that_is_held_up_and_leaves_it_what_it_uses() {
    let Some((vcpus, free, ram)) = held() else { return };
    drop(vcpus);
    assert!(ram.upgrade().is_some());
    drop(free);
    wait("end of the thread", || ram.upgrade().is_none());
}
