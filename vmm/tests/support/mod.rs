//! What the tests share: a machine's console, the checker of its disk.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use payload_guest::{Expected, Line, Report};
use test_support::host::check_image;
pub use test_support::kvm;
use vmm::{
    Vm,
    devices::virtio::transport::Machine,
    platform::{bus::Bus, irq::IrqRouter, layout, lifecycle::Control, memory},
};

/// Waits for the next line with `word` on a machine's console.
pub fn wait_console(vm: &Vm, word: &str) {
    let console = vm.console();
    let mut at = console.position();
    let mut seen = String::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !seen.contains(word) {
        let Some((bytes, next)) = console.read_from(at, Duration::from_secs(1)) else { break };
        at = next;
        seen.push_str(&String::from_utf8_lossy(&bytes));
        assert!(
            Instant::now() < deadline && vm.control().ended().is_none(),
            "no {word}: {:?}\n{}",
            vm.control().ended(),
            String::from_utf8_lossy(&console.tail())
        );
    }
}

/// Verifies a raw image against the guest's start line.
pub fn check_raw(image: &Path, start: &Line, acked: u64, submitted: u64) -> Report {
    let (seed, blocks) = (start.get("seed"), start.get("blocks"));
    check_image(image, &Expected { seed, blocks, acked, submitted })
}

/// What functions need, without vCPUs.
pub fn machine() -> Option<(Machine, tokio::runtime::Runtime)> {
    let kvm = kvm()?;
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.set_identity_map_address(layout::IDENTITY_MAP).unwrap();
    vm.set_tss_address(layout::TSS).unwrap();
    let ram = memory::allocate(16 << 20).unwrap();
    memory::register(&vm, &ram, 0).unwrap();
    vm.create_irq_chip().unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let control = Arc::new(Control::default());
    control.run();
    let machine = Machine {
        router: Arc::new(IrqRouter::new(vm.clone())),
        vm,
        mmio: Arc::new(Bus::default()),
        mem: ram,
        control,
        runtime: runtime.handle().clone(),
    };
    Some((machine, runtime))
}
