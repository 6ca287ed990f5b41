//! The control socket: who may use it, what it answers to nonsense, a VM's life.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    thread,
    time::Duration,
};

use host_api::{MAX_LINE, Reply, Request, VmState};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use test_support::host::{HostProcess, Payload};

#[test]
fn a_vm_lives_from_create_to_delete() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    let payload = Payload::create(dir.path(), &host, 64, "ws_mib=1 iops=500");
    let name = payload.name.clone();
    let refused = |request: Request| host.call(&request).unwrap_err().to_string();
    assert!(
        refused(Request::Stop { name: name.clone(), force: false, timeout_s: None })
            .contains("is off")
    );
    host.call(&Request::Start { name: name.clone() }).unwrap();
    assert!(refused(Request::Start { name: name.clone() }).contains("is running"));
    assert!(refused(Request::Delete { name: name.clone() }).contains("is running"));
    assert!(refused(Request::Resolve { name: name.clone(), run: true }).contains("is running"));
    let mut console = host.console(&name).unwrap();
    console.next_line("progress");
    let Reply::Show { vm } = host.call(&Request::Show { name: name.clone() }).unwrap() else {
        panic!("not shown")
    };
    assert!(vm.disks[0].writes > 0 && vm.disks[0].errors == 0, "{vm:?}");
    // The disk is this machine's alone.
    let lock = block_io::LocalFile::open(&payload.image, &block_io::LocalOptions::read_write());
    assert!(matches!(lock, Err(block_io::Error::Busy(_))), "{lock:?}");
    let stop = Request::Stop { name: name.clone(), force: false, timeout_s: None };
    assert_eq!(host.call(&stop).unwrap(), Reply::Ok);
    assert_eq!(host.state(&name), Some(VmState::Off));
    console.read_to_end();
    let last = payload_guest::Line::last(&console.text, "final").unwrap();
    payload.verify(last.get("flushed"), last.get("seq"));
    // And once more, ended by force.
    host.call(&Request::Start { name: name.clone() }).unwrap();
    let stop = Request::Stop { name: name.clone(), force: true, timeout_s: None };
    assert_eq!(host.call(&stop).unwrap(), Reply::Ok);
    assert_eq!(host.call(&Request::Delete { name: name.clone() }).unwrap(), Reply::Ok);
    assert_eq!(host.state(&name), None);
}

#[test]
fn the_socket_is_its_owners_and_nonsense_is_refused() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    let socket = dir.path().join("a/control.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::metadata(dir.path().join("a/host-key.pem")).unwrap().permissions().mode();
    assert_eq!(key & 0o777, 0o600);
    for nonsense in ["hello\n", "{}\n", "{\"op\":\"start\",\"name\":\"../x\"}\n", "[[[[\n"] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.contains("bad request"), "{answer}");
    }
    assert_eq!(host.call(&Request::List).unwrap(), Reply::List { vms: vec![] });
}

#[test]
fn what_is_not_tls_leaves_the_host_alone() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start_with(dir.path(), "a", 0, &[], 1);
    let mut idle = Vec::new();
    for index in 0..40u8 {
        let mut stream = std::net::TcpStream::connect(&host.address).unwrap();
        if index % 2 == 0 {
            // It may already have been cut off.
            let _ = stream.write_all(&[index; 300]);
        }
        idle.push(stream);
    }
    assert_eq!(host.call(&Request::List).unwrap(), Reply::List { vms: vec![] });
}

#[test]
fn a_line_has_a_largest_length() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    let ask = |len: usize| {
        let mut line = serde_json::to_vec(&Request::List).unwrap();
        line.resize(len - 1, b' ');
        line.push(b'\n');
        let mut stream = UnixStream::connect(dir.path().join("a/control.sock")).unwrap();
        stream.write_all(&line).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    };
    let answer = ask(MAX_LINE);
    assert!(answer.contains("vms"), "{answer}");
    let answer = ask(MAX_LINE + 1);
    assert!(answer.contains("longer than 1048576 bytes"), "{answer}");
    drop(host);
}

#[test]
fn a_client_that_takes_no_answers_is_let_go() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _host = HostProcess::start(dir.path(), "a", 0, &[]);
    let mut stream = UnixStream::connect(dir.path().join("a/control.sock")).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut line = serde_json::to_vec(&Request::List).unwrap();
    line.push(b'\n');
    let error = loop {
        if let Err(error) = stream.write_all(&line) {
            break error;
        }
    };
    assert!(
        matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
        "the host holds on to it: {error}"
    );
}

#[test]
fn a_host_without_descriptors_waits_for_some() {
    if test_support::kvm().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = HostProcess::start(dir.path(), "a", 0, &[]);
    assert_eq!(host.call(&Request::List).unwrap(), Reply::List { vms: vec![] });
    let pid = Pid::from_raw(host.pid() as i32);
    // It keeps those that it has.
    let none = Rlimit { current: Some(0), ..getrlimit(Resource::Nofile) };
    let before = prlimit(pid, Resource::Nofile, none).unwrap();
    let waiting = UnixStream::connect(dir.path().join("a/control.sock")).unwrap();
    assert!(host.said("control socket"));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(host.lines_with("control socket"), 1);
    prlimit(pid, Resource::Nofile, before).unwrap();
    drop(waiting);
    assert_eq!(host.call(&Request::List).unwrap(), Reply::List { vms: vec![] });
}
