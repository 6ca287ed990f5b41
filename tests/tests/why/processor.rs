//! Processor time: a cipher that takes much, and other programs that take it away.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Instant,
};

use bulkhead_tests::{process::Stopped, smbd::Smbd};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde_json::Value;
use smb_client::{ConnectOptions, Encryption};
use smb_protocol::crypto::Cipher;

use super::{connect, note, options, read, until, why};

/// A client whose only cipher takes one block after the other.
#[test]
fn a_cipher_that_takes_much_is_named() {
    let server = Smbd::start("", "");
    let sealed = ConnectOptions {
        encryption: Encryption::Required,
        ciphers: vec![Cipher::Aes128Ccm],
        ..options(&server)
    };
    let mut connection = connect(&server, &sealed);
    let report = until(&server, "vms", "cipher", || read(&mut connection, (40, 4), 1 << 20));
    assert!(report.to_string().contains("AES-128-CCM"), "{report:#}");
}

/// Has all threads of a process run on one processor.
fn pin(pid: u32, processors: &CpuSet) {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let name = thread.unwrap().file_name();
        let thread = Pid::from_raw(name.to_str().unwrap().parse().unwrap());
        // It may have ended.
        let _ = sched_setaffinity(thread, processors);
    }
}

/// A program that does nothing but take processor time.
fn glutton() -> Stopped {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).stdout(Stdio::null());
    let child: Child = command.spawn().unwrap();
    Stopped(child)
}

fn is_named(report: &Value, cause: &str) -> bool {
    report["causes"].as_array().unwrap().iter().any(|it| it["cause"] == cause)
}

/// Other programs on the one processor that the server may use.
#[test]
fn other_programs_that_take_the_processor_are_named() {
    let server = Smbd::start("", "");
    let mut connection = connect(&server, &options(&server));
    let all = sched_getaffinity(None).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|it| all.is_set(*it)).unwrap();
    let mut one = CpuSet::new();
    one.set(first);
    pin(server.pid(), &one);
    let gluttons: Vec<_> = (0..4).map(|_| glutton()).collect();
    gluttons.iter().for_each(|it| pin(it.pid(), &one));
    let begun = Instant::now();
    let report = loop {
        read(&mut connection, (20, 8), 256 << 10);
        let report = why(&server, "vms");
        if is_named(&report, "cpu-taken") {
            break report;
        }
        assert!(begun.elapsed().as_secs() < 60, "it is not named: {report:#}");
    };
    drop(gluttons);
    note("cpu-taken", &report, begun);
    assert!(report.to_string().contains("other programs have the processors"), "{report:#}");
}
