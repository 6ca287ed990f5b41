//! The program as a user runs it, and foreign ones beside it.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// The program that is tested.
pub const BULKHEAD: &str = env!("CARGO_BIN_EXE_bulkhead");

/// Runs the program in a folder.
pub fn bulkhead(dir: &Path, args: &[&str]) -> Output {
    Command::new(BULKHEAD).current_dir(dir).args(args).output().unwrap()
}

/// What was printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs and returns what was printed; fails with both outputs if it fails.
pub fn ok(dir: &Path, args: &[&str]) -> String {
    run(Command::new(BULKHEAD).current_dir(dir).args(args))
}

/// Runs, expects failure, and returns the message.
pub fn fails(dir: &Path, args: &[&str]) -> String {
    let output = bulkhead(dir, args);
    assert!(!output.status.success(), "{args:?} succeeded: {}", text(&output.stdout));
    text(&output.stderr)
}

/// Runs and returns the JSON that was printed.
pub fn json(dir: &Path, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&ok(dir, args)).unwrap()
}

/// A raw file with data at both ends and in the middle, 9 MiB and `extra` bytes.
pub fn raw(path: &Path, extra: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; (9 << 20) + extra];
    let len = bytes.len();
    for (i, at) in [0, 3 << 20, 5_000_000, len - 700].into_iter().enumerate() {
        bytes[at..at + 700].fill(i as u8 + 1);
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

/// A foreign program, or that which the variable of its name in capitals names, unless it is not
/// here.
pub fn tool(name: &str) -> Option<Command> {
    let path = std::env::var(name.to_uppercase().replace('-', "_")).unwrap_or(name.to_owned());
    let there = Command::new(&path).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        test_support::skip(
            test_support::Need::Programs.because(format_args!("{name} is not installed")),
        );
    }
    there.then(|| Command::new(path))
}

/// Runs a program and returns what it printed; fails with both outputs if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{error}", output.status);
    text
}
