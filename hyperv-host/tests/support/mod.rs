//! What the tests share.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod hosts;

use kvm_ioctls::Kvm;

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
