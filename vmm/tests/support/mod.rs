//! What the tests share: a machine's console, the checker of its disk.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use payload_guest::{Expected, Line, Report};
use test_support::host::check_image;
pub use test_support::kvm;
use vmm::Vm;

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
