//! What the tests share: KVM, a machine's console, the checker of its disk.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use kvm_ioctls::Kvm;
use payload_guest::{Expected, Line, Report, check};
use vmm::Vm;

/// KVM, or a line that says why the test is skipped.
pub fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            eprintln!("skipped: /dev/kvm cannot be used: {error}");
            None
        }
    }
}

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
    let file = File::open(image).unwrap();
    let expected =
        Expected { seed: start.get("seed"), blocks: start.get("blocks"), acked, submitted };
    check(&expected, |at, bytes| file.read_exact_at(bytes, at)).unwrap()
}
