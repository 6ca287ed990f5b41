//! VMs with processes of their own: what ends one ends no other, and what ends the daemon ends none.

use std::{
    fs,
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use host_api::{MoveOptions, Reply, Request, VmDefinition, VmName, VmState};
use hyperv_host::worker::{link, protocol};
use rustix::process::{Pid, Signal, kill_process};
use test_support::host::{HostProcess, PATIENCE};

/// The workers of a host, which end with this. It is dropped after the host.
struct Workers(PathBuf);

impl Workers {
    fn all(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let peer = |path: PathBuf| {
            let stream = UnixStream::connect(path).ok()?;
            Some(rustix::net::sockopt::socket_peercred(&stream).ok()?.pid)
        };
        entries.filter_map(|entry| peer(entry.ok()?.path())).collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for process in self.all() {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// A host whose VMs have workers, and the folder of its disks.
struct Cell {
    host: HostProcess,
    workers: Workers,
    root: PathBuf,
    dir: tempfile::TempDir,
}

impl Cell {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a");
        host_api::pki::init(&dir.path().join("ca"), "a", &root).unwrap();
        let at = |name: &str| root.join(name);
        let text = format!(
            "[host]\nworkers = true\nshutdown_s = 1\nstate_dir = {:?}\ncontrol_socket = {:?}\n[migration]\n\
             listen = '127.0.0.1:0'\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n[storage]\n\
             locations = [{dir:?}]\n[boot]\nfolders = [{dir:?}]\n",
            at("state"),
            at("control.sock"),
            at("ca.pem"),
            at("host.pem"),
            at("host-key.pem"),
            dir = dir.path(),
        );
        fs::write(at("host.toml"), text).unwrap();
        fs::write(dir.path().join("guest.elf"), payload_guest::GUEST).unwrap();
        let workers = Workers(root.join("state/run"));
        let host = HostProcess::launch(&root, "a", &[]);
        Self { host, workers, root, dir }
    }

    /// Creates and starts a VM with the payload guest; the process that it has.
    fn start(&self, name: &str) -> (VmName, Pid) {
        let before = self.workers.all();
        let at = |name: &str| self.dir.path().join(name);
        let image = at(&format!("{name}.raw"));
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let definition = VmDefinition::from_toml(&format!(
            "name = '{name}'\nmemory_mib = 64\nminimum_mib = 32\nconsole = 'virtio'\n[boot]\nkernel = {:?}\n\
             cmdline = 'span=16 seed=1 blocks=0 iops=100'\n[[disk]]\nlocation = {image:?}\n",
            at("guest.elf"),
        ))
        .unwrap();
        let name = definition.name.clone();
        self.host.call(&Request::Create { definition }).unwrap();
        self.host.call(&Request::Start { name: name.clone() }).unwrap();
        let new = self.workers.all().into_iter().find(|process| !before.contains(process));
        (name, new.expect("it has a worker"))
    }

    /// The place in its work that a VM has come to.
    fn progress(&self, name: &VmName) -> u64 {
        let mut console = self.host.console(name).expect("a console");
        console.next_line("progress").get("seq")
    }

    /// Waits until a VM has come further than that.
    fn goes_on(&self, name: &VmName, from: u64) {
        let since = Instant::now();
        let mut console = self.host.console(name).expect("a console");
        while console.next_line("progress").get("seq") <= from {
            assert!(console.read() && since.elapsed() < PATIENCE, "{name} stands still at {from}");
        }
    }

    fn reason(&self, name: &VmName) -> String {
        match self.host.call(&Request::Show { name: name.clone() }).unwrap() {
            Reply::Show { vm } => vm.reason.unwrap_or_default(),
            other => panic!("{other:?}"),
        }
    }

    /// The daemon is killed, and another takes its place.
    fn replace_daemon(&mut self) {
        self.host.signal(Signal::KILL);
        self.host.wait_dead();
        self.host = HostProcess::launch(&self.root, "a", &[]);
    }
}

#[test]
fn a_worker_that_is_killed_takes_its_vm_along_and_no_other() {
    if test_support::kvm().is_none() {
        return;
    }
    let cell = Cell::new();
    let ((one, first), (other, second)) = (cell.start("one"), cell.start("other"));
    assert_ne!(first, second);
    for signal in [Signal::KILL, Signal::ABORT] {
        let process = if signal == Signal::KILL { first } else { cell.workers_of(second) };
        kill_process(process, signal).unwrap();
        cell.host.wait_state(&one, Some(VmState::Failed));
        assert!(cell.reason(&one).contains("signal"), "{}", cell.reason(&one));
        let at = cell.progress(&other);
        cell.goes_on(&other, at);
        cell.host.call(&Request::Start { name: one.clone() }).unwrap();
    }
}

impl Cell {
    /// The worker that is not this one.
    fn workers_of(&self, other: Pid) -> Pid {
        self.workers.all().into_iter().find(|process| *process != other).unwrap()
    }
}

#[test]
fn a_daemon_that_is_killed_or_upgraded_ends_no_guest() {
    if test_support::kvm().is_none() {
        return;
    }
    let mut cell = Cell::new();
    let (name, worker) = cell.start("one");
    let before = cell.progress(&name);
    cell.replace_daemon();
    assert_eq!(
        (cell.host.state(&name), cell.workers.all()),
        (Some(VmState::Running), vec![worker])
    );
    cell.goes_on(&name, before);
    let daemon = cell.host.pid();
    // An upgrade: the process is the same and its program is started anew.
    cell.host.signal(Signal::USR2);
    assert!(cell.host.said("starts anew"));
    let since = Instant::now();
    while cell.host.lines_with("runs on in its worker") < 2 || cell.host.state(&name).is_none() {
        assert!(since.elapsed() < PATIENCE, "{}", cell.host.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((cell.host.pid(), cell.workers.all()), (daemon, vec![worker]));
    let at = cell.progress(&name);
    cell.goes_on(&name, at);
    // What it is asked reaches the guest, and one that is stopped has no process.
    cell.host.call(&Request::Memory { name: name.clone(), mib: 48 }).unwrap();
    let options = MoveOptions { to: cell.host.address.clone(), ..MoveOptions::default() };
    let refused = cell.host.call(&Request::Move { name: name.clone(), options }).unwrap_err();
    assert!(refused.to_string().contains("worker process"), "{refused}");
    cell.host.call(&Request::Stop { name: name.clone(), force: false, timeout_s: None }).unwrap();
    assert_eq!(cell.host.state(&name), Some(VmState::Off));
    assert_eq!(cell.workers.all(), []);
}

#[test]
fn a_worker_that_hangs_holds_up_nobody_else_and_ends_by_force() {
    if test_support::kvm().is_none() {
        return;
    }
    let cell = Cell::new();
    let ((one, first), (other, _)) = (cell.start("one"), cell.start("other"));
    kill_process(first, Signal::STOP).unwrap();
    let at = cell.progress(&other);
    cell.goes_on(&other, at);
    let asked = cell.host.call(&Request::Memory { name: one.clone(), mib: 48 });
    let why = asked.unwrap_err().to_string();
    assert!(why.contains("does not answer"), "{why}");
    cell.host.call(&Request::Stop { name: one.clone(), force: true, timeout_s: None }).unwrap();
    assert_eq!(cell.host.state(&one), Some(VmState::Off));
    assert_eq!(cell.workers.all().len(), 1);
}

/// A guest that ended while there was no daemon is told of by the next.
#[test]
fn an_end_without_a_daemon_is_told_by_the_next() {
    if test_support::kvm().is_none() {
        return;
    }
    let mut cell = Cell::new();
    let (name, worker) = cell.start("one");
    cell.host.signal(Signal::KILL);
    cell.host.wait_dead();
    kill_process(worker, Signal::KILL).unwrap();
    let path: &Path = &cell.root;
    cell.host = HostProcess::launch(path, "a", &[]);
    // Its host has failed as far as anybody knows: it is started again.
    cell.host.wait_state(&name, Some(VmState::Running));
    assert!(!cell.workers.all().contains(&worker));
}

/// Connections that somebody of the same user holds cost the guest nothing, and the daemon no later one.
#[test]
fn a_worker_whose_connections_were_all_taken_is_there_for_the_next_daemon() {
    if test_support::kvm().is_none() {
        return;
    }
    let mut cell = Cell::new();
    let (name, worker) = cell.start("one");
    let sockets = fs::read_dir(cell.root.join("state/run")).unwrap();
    let socket = sockets.map(|entry| entry.unwrap().path()).next().unwrap();
    let connect = || UnixStream::connect(&socket).unwrap();
    let held: Vec<_> = (0..600).map(|_| connect()).collect();
    // The last of them is closed at once: all places are taken.
    let mut last = held.last().unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0);
    drop(held);
    let answered = |stream: &UnixStream| {
        link::send(stream, &protocol::Request::Hello, &[])?;
        link::receive::<protocol::Reply>(stream)
    };
    let since = Instant::now();
    while !matches!(answered(&connect()), Ok(Some(_))) {
        assert!(since.elapsed() < PATIENCE, "no place comes back");
    }
    let before = cell.progress(&name);
    cell.replace_daemon();
    assert_eq!(cell.workers.all(), [worker]);
    cell.goes_on(&name, before);
}
