//! Builds the guest with the same compiler: one source file without std, linked by a script of
//! its own into an ELF file with a PVH entry note.

use std::{env, path::PathBuf, process::Command};

fn main() {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("payload-guest.elf");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed=kernel");
    println!("cargo:rerun-if-changed=src/pattern.rs");
    let script = root.join("kernel/link.ld");
    let mut rustc = Command::new(env::var("RUSTC").expect("cargo sets it"));
    rustc
        .arg(root.join("kernel/main.rs"))
        .args(["--crate-name", "payload_guest_kernel", "--crate-type", "bin"])
        .args(["--edition", "2024", "--target", "x86_64-unknown-linux-gnu"])
        .args(["-C", "panic=abort", "-C", "opt-level=3", "-C", "relocation-model=static"])
        .args(["-C", "code-model=small", "-C", "force-frame-pointers=no", "-C", "strip=debuginfo"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-no-pie"])
        .arg("-C")
        .arg(format!("link-arg=-Wl,-T,{},--build-id=none,-z,max-page-size=4096", script.display()))
        .arg("-o")
        .arg(&out);
    let status = rustc.status().expect("rustc can be run");
    assert!(status.success(), "the guest does not build: {rustc:?}");
    println!("cargo:rustc-env=PAYLOAD_GUEST_ELF={}", out.display());
}
