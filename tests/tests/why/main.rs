//! `bulkhead why` names what is wrong while it is, and nothing when nothing is: causes put in for real on a
//! server under load, or on a host. Those that have no place here are tried by their figures
//! (`smbd/src/why/rules/tests.rs`, `hyperv-host/src/why/rules.rs`).
//!
//! With `BULKHEAD_WHY_JSON` each adds a line to that file: what was put in, what was named, how soon.

mod disk;
mod host;
mod network;
mod processor;

use std::{
    fs::{self, File},
    io::Write,
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::smbd::{PASSWORD, PASSWORD2, Smbd, USER, USER2};
use serde_json::{Value, json};
use smb_client::{ConnectOptions, Encryption, Login, raw::RawConnection};
use smb_protocol::{
    Command,
    msg::lock::{Element, LockFlags, Request},
};

/// Bytes of the file that is read.
const SIZE: usize = 4 << 20;

fn options(server: &Smbd) -> ConnectOptions {
    ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD))
}

fn connect(server: &Smbd, options: &ConnectOptions) -> RawConnection {
    fs::write(server.files().join("disk"), vec![7; SIZE]).unwrap();
    RawConnection::connect(options, "vms", "disk", true).unwrap()
}

/// What the tool says of one subject.
fn why(server: &Smbd, what: &str) -> Value {
    let out = server.admin(&["why", what, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let reports: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(reports.as_array().map(Vec::len), Some(1), "{reports}");
    reports[0].clone()
}

/// Causes by name. Whether other programs have the processors is the machine's affair, here.
fn causes(report: &Value) -> Vec<&str> {
    let all = report["causes"].as_array().unwrap().iter().filter_map(|it| it["cause"].as_str());
    all.filter(|cause| !["cpu-taken", "server-queue"].contains(cause)).collect()
}

/// Reads `rounds` times what `depth` and the credits allow at a time.
fn read(connection: &mut RawConnection, (rounds, depth): (usize, usize), len: u32) {
    for round in 0..rounds {
        let mut asked = 0;
        while asked < depth && connection.can_queue(len) {
            let block = (round + asked) * len as usize % (SIZE - len as usize + 1);
            connection.queue_read(block as u64, len);
            asked += 1;
        }
        connection.send().unwrap();
        while asked > 0 {
            asked -= connection.receive(|_| {}).unwrap();
        }
    }
}

/// Asks, with load meanwhile, until a cause is the one that costs most.
fn until(server: &Smbd, what: &str, cause: &str, mut meanwhile: impl FnMut()) -> Value {
    let begun = Instant::now();
    loop {
        meanwhile();
        let report = why(server, what);
        if causes(&report).first() == Some(&cause) {
            note(cause, &report, begun);
            return report;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{cause} is not named: {report:#}");
    }
}

/// Adds a line to the table of what was put in and what was named.
fn note(put_in: &str, report: &Value, begun: Instant) {
    let Some(path) = std::env::var_os("BULKHEAD_WHY_JSON") else { return };
    let seconds = begun.elapsed().as_secs_f64();
    let all = report["causes"].as_array().unwrap();
    let named: Vec<_> = all.iter().map(|it| &it["cause"]).collect();
    // Beside what was put in the machine may have its own: other programs that take the processors.
    let own = all.iter().find(|it| it["cause"] == put_in).unwrap_or(report);
    let line = json!({
        "put_in": put_in, "subject": report["subject"], "named": named, "after_s": seconds,
        "sentence": own["sentence"], "window_s": report["window_s"],
    });
    let file = File::options().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())).unwrap();
}

fn phase<'a>(report: &'a Value, name: &str) -> Option<&'a Value> {
    report["phases"].as_array().unwrap().iter().find(|it| it["phase"] == name)
}

#[test]
fn nothing_is_wrong_with_a_client_that_asks_for_one_thing_at_a_time() {
    let server = Smbd::start("", "");
    let mut connection = connect(&server, &options(&server));
    read(&mut connection, (400, 1), 4096);
    for what in ["vms", "VMS/disk", "\\vms\\disk"] {
        let report = why(&server, what);
        assert_eq!(causes(&report), [""; 0], "{report:#}");
        assert!(
            phase(&report, "read").is_some_and(|it| it["count"].as_u64() >= Some(300)),
            "{report:#}"
        );
        assert!(phase(&report, "queue").is_some(), "{report:#}");
        assert!(phase(&report, "sync").is_none(), "{report:#}");
    }
    let report = why(&server, "vms");
    if report["causes"].as_array().is_some_and(Vec::is_empty) {
        assert!(report["sentence"].as_str().unwrap().contains("one thing at a time"), "{report:#}");
    }
    let nothing = server.admin(&["why", "nothing"]);
    assert!(!nothing.status.success());
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("is no share"));
}

#[test]
fn nothing_is_wrong_with_a_client_that_asks_for_much() {
    let server = Smbd::start("", "");
    let mut connection = connect(&server, &options(&server));
    let begun = Instant::now();
    read(&mut connection, (40, 16), 4096);
    let report = why(&server, "vms");
    assert_eq!(causes(&report), [""; 0], "{report:#}");
    note("nothing", &report, begun);
    assert!(!report["sentence"].as_str().unwrap().contains("one thing at a time"), "{report:#}");
}

#[test]
fn clients_without_credits_are_named() {
    let server = Smbd::start("", "[limits]\ncredits = 16\n");
    let mut connection = connect(&server, &options(&server));
    let report = until(&server, "vms", "credits", || read(&mut connection, (100, 100), 4096));
    assert!(report.to_string().contains("limits.credits, which is 16"), "{report:#}");
}

/// Where the processor has instructions for it, encryption is told with its time and is no cause.
#[test]
fn what_encryption_costs_is_told() {
    let server = Smbd::start("", "");
    let sealed = ConnectOptions { encryption: Encryption::Required, ..options(&server) };
    let mut connection = connect(&server, &sealed);
    read(&mut connection, (60, 4), 1 << 20);
    let report = why(&server, "vms/disk");
    let told = |name| phase(&report, name).and_then(|it| it["count"].as_u64());
    // A request is opened, and its answer sealed.
    assert!(told("crypto") >= told("read").map(|reads| 2 * reads), "{report:#}");
    assert!(told("read") >= Some(60), "{report:#}");
}

#[test]
fn who_holds_a_lock_that_others_wait_for_is_named() {
    let server = Smbd::start("", "");
    let mut holder = connect(&server, &options(&server));
    let other = ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER2, PASSWORD2));
    let mut waiter = RawConnection::connect(&other, "vms", "disk", true).unwrap();
    let lock = |connection: &mut RawConnection, flags| {
        let file_id = connection.file_id();
        let locks = vec![Element { offset: 10, length: 100, flags }];
        let request = Request { sequence: 0, file_id, locks };
        connection.queue_request(Command::LOCK, |out| request.encode(out));
        connection.send().unwrap();
    };
    lock(&mut holder, LockFlags::EXCLUSIVE);
    while holder.receive_all(|header, _| assert!(header.status.is_success())).unwrap() == 0 {}
    assert_eq!(causes(&why(&server, "vms")), [""; 0], "a lock that nobody waits for is no cause");
    lock(&mut waiter, LockFlags::EXCLUSIVE);
    let pause = || thread::sleep(Duration::from_millis(50));
    for what in ["vms", "vms/disk"] {
        let report = until(&server, what, "lock-held", pause);
        let sentence = report["sentence"].as_str().unwrap();
        assert!(sentence.contains(&USER.to_uppercase()) || sentence.contains(USER), "{sentence}");
    }
    lock(&mut holder, LockFlags::UNLOCK);
    while waiter.receive_all(|header, _| assert!(header.status.is_success())).unwrap() == 0 {}
    let report = why(&server, "vms/disk");
    let lock = phase(&report, "lock").unwrap();
    assert_eq!(lock["count"], 1, "{report:#}");
}

#[test]
fn the_history_outlives_the_server() {
    let mut server = Smbd::start("", "");
    let mut connection = connect(&server, &options(&server));
    // A record at the end of the server is of a second at least.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1200) {
        read(&mut connection, (50, 4), 4096);
    }
    drop(connection);
    let points = |server: &Smbd, span: &str| {
        let out = server.admin(&["server", "history", span, "--json"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    let before = points(&server, "month");
    server.signal(rustix::process::Signal::TERM);
    let begun = Instant::now();
    while server.alive() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not end");
        thread::sleep(Duration::from_millis(5));
    }
    server.kill_and_restart();
    for span in ["hour", "day", "month"] {
        let after = points(&server, span);
        let last = after.as_array().unwrap().last().unwrap_or_else(|| panic!("{span}: {before}"));
        assert!(last["reads"].as_u64() >= Some(50), "{span}: {after}");
    }
    assert!(server.stop().is_empty());
}
