//! The control socket: who may use it, what it answers to nonsense, a VM's life.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use host_api::{Reply, Request, VmState};
use support::hosts::{HostProcess, Payload};

#[test]
fn a_vm_lives_from_create_to_delete() {
    if support::kvm().is_none() {
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
    let last = support::Line::last(&console.text, "final").unwrap();
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
    if support::kvm().is_none() {
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
    if support::kvm().is_none() {
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
