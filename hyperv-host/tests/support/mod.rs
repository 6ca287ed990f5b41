//! What the tests share: the guest's lines, and its disk's checker.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod hosts;

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use hyperv_host::vmm::Vm;
use kvm_ioctls::Kvm;
use payload_guest::{Expected, Report, check};

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

/// A line of the guest: a word and `key=value` pairs.
#[derive(Debug, Clone)]
pub struct Line(String);

impl Line {
    /// The last whole line that starts with `word`.
    pub fn last(text: &str, word: &str) -> Option<Self> {
        let end = text.rfind('\n')? + 1;
        let starts = |line: &&str| line.split(' ').next() == Some(word);
        text[..end].lines().rev().find(starts).map(|line| Self(line.trim().to_owned()))
    }

    /// The number of a key.
    pub fn get(&self, key: &str) -> u64 {
        let value = self.0.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{key} in {self:?}"))
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
