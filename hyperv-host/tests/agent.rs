//! The client of the guest agent against Debian's `qemu-guest-agent`, which runs as a process whose whole
//! world is one small file system: it freezes and thaws that, truly, and has no other.
//!
//! ```text
//!  Agent ── Port ── bridge ── unix socket ── qemu-ga, in a mount namespace of its own
//!                                              └─ root: ext4 in a file, over a loop device
//! ```

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use hyperv_host::agent::{Agent, AgentError, answers::shown};
use tempfile::TempDir;
use test_support::{Need, process::foreign, skip};
use vmm::devices::port::{Port, PortError};
use vmm_sys_util::eventfd::EventFd;

const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's process, and the file system that it has; both go when it is dropped.
struct Guest {
    agent: Arc<Agent>,
    port: Port,
    process: Child,
    _dir: TempDir,
}

/// Copies a program with the libraries that it is linked with.
fn install(root: &Path, program: &Path, name: &str) {
    fs::copy(program, root.join("bin").join(name)).unwrap();
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(library, place).unwrap();
    }
}

/// A file system with the agent, a shell, and a program `shutdown` that only says that it was called.
fn file_system(dir: &Path, qemu_ga: &Path, busybox: &Path, mkfs: &Path) -> PathBuf {
    let root = dir.join("root");
    for folder in ["bin", "sbin", "etc", "proc", "run"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    install(&root, qemu_ga, "qemu-ga");
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    fs::write(root.join("etc/os-release"), "ID=test\nPRETTY_NAME=\"Test 1\"\n").unwrap();
    let shutdown = root.join("sbin/shutdown");
    fs::write(
        &shutdown,
        "#!/bin/sh\necho \"$@\" >/called.new\n/bin/busybox mv /called.new /called\n",
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&shutdown, mode).unwrap();
    let image = dir.join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new(mkfs).arg("-q").arg("-d").arg(&root).arg(&image).status().unwrap();
    assert!(made.success());
    image
}

impl Guest {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(Need::Root.because("file systems are mounted and frozen by root"));
            return None;
        }
        let (qemu_ga, busybox, mkfs) =
            (foreign("qemu-ga")?, foreign("busybox")?, foreign("mkfs.ext4")?);
        let dir = tempfile::tempdir().unwrap();
        let image = file_system(dir.path(), &qemu_ga, &busybox, &mkfs);
        let mount = dir.path().join("mount");
        fs::create_dir(&mount).unwrap();
        // Nothing of the machine is mounted below that root, so nothing of it is frozen.
        let script = "mount -o loop \"$0\" \"$1\" && mount -t proc proc \"$1/proc\" && \
                      exec chroot \"$1\" /bin/qemu-ga -m unix-listen -p /run/socket -t /run";
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(image).arg(mount);
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", process.id()));
        let socket = root.join("run/socket");
        let since = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) if process.try_wait().unwrap().is_none() => {
                    assert!(since.elapsed() < PATIENCE, "the agent does not listen");
                    thread::yield_now();
                }
                Err(_) => {
                    let mut why = String::new();
                    process.stderr.take().unwrap().read_to_string(&mut why).unwrap();
                    // Containers may have no loop devices.
                    skip(
                        Need::Kernel.because(format_args!("no file system can be mounted: {why}")),
                    );
                    return None;
                }
            }
        };
        let port = Port::default();
        port.set_open(true);
        bridge(&port, &stream);
        let agent = Arc::new(Agent::new(port.clone()));
        Some(Self { agent, port, process, _dir: dir })
    }

    /// A file of the agent's, as this process reaches it.
    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.process.id())).join(name)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The threads of the bridge end with the port and with the socket.
        self.port.close();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a device does between a port and a socket: a thread for each way.
fn bridge(port: &Port, stream: &UnixStream) {
    let wake = EventFd::new(0).unwrap();
    port.set_wake_to(wake.try_clone().unwrap());
    let (there, mut sink) = (port.clone(), stream.try_clone().unwrap());
    thread::spawn(move || {
        while wake.read().is_ok() && !there.has_ended() {
            // The agent may have gone.
            let _ = sink.write_all(&there.take_for_guest(usize::MAX));
        }
        let _ = sink.shutdown(Shutdown::Both);
    });
    let (there, mut source) = (port.clone(), stream.try_clone().unwrap());
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(got @ 1..) = source.read(&mut bytes) {
            there.push_from_guest(&bytes[..got]);
        }
        there.set_open(false);
    });
}

#[test]
fn debians_agent_tells_what_its_guest_is() {
    let Some(guest) = Guest::new() else { return };
    guest.agent.ping().unwrap();
    assert!(shown(&guest.agent.info().unwrap().version).starts_with(|c: char| c.is_ascii_digit()));
    let os = guest.agent.os().unwrap();
    assert_eq!(os.pretty_name.as_deref(), Some("Test 1"));
    assert!(os.kernel_release.is_some());
    let interfaces = guest.agent.interfaces().unwrap();
    let lo = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
    assert!(lo.ip_addresses.iter().any(|address| address.ip_address == "127.0.0.1"), "{lo:?}");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as i64;
    let apart = now.abs_diff(guest.agent.time().unwrap());
    assert!(apart < PATIENCE.as_nanos() as u64, "{apart} ns");
}

/// While it is frozen a write waits, and when it is let go the write is done.
#[test]
fn debians_agent_freezes_and_thaws_its_file_systems() {
    let Some(guest) = Guest::new() else { return };
    for _ in 0..3 {
        let frozen = guest.agent.freeze().unwrap();
        assert_eq!(frozen.count, 1);
        // What a frozen agent does not do it refuses, and it thaws all the same.
        let refused = guest.agent.interfaces().unwrap_err();
        assert!(matches!(refused, AgentError::Refused { .. }), "{refused}");
        let (file, written) = (guest.file("written"), Arc::new(AtomicBool::new(false)));
        let (tell, begun) = mpsc::channel();
        let writes = thread::spawn({
            let written = written.clone();
            move || {
                tell.send(()).unwrap();
                fs::write(file, "now").unwrap();
                written.store(true, Ordering::Release);
            }
        });
        begun.recv().unwrap();
        guest.agent.interfaces().unwrap_err();
        assert!(!written.load(Ordering::Acquire), "what is frozen was written");
        drop(frozen);
        writes.join().unwrap();
        assert!(!guest.agent.is_frozen());
        guest.agent.ping().unwrap();
    }
}

#[test]
fn debians_agent_powers_its_guest_off() {
    let Some(guest) = Guest::new() else { return };
    guest.agent.shut_down().unwrap();
    let called = guest.file("called");
    let since = Instant::now();
    while !called.exists() {
        assert!(since.elapsed() < PATIENCE, "nobody called shutdown");
        thread::yield_now();
    }
    let said = fs::read_to_string(called).unwrap();
    assert!(said.contains("-P"), "{said}");
}

#[test]
fn an_agent_that_dies_is_gone() {
    let Some(mut guest) = Guest::new() else { return };
    guest.agent.ping().unwrap();
    guest.process.kill().unwrap();
    guest.process.wait().unwrap();
    while guest.agent.is_there() {
        thread::yield_now();
    }
    assert_eq!(guest.agent.ping(), Err(PortError::Closed.into()));
    assert_eq!(guest.agent.freeze().unwrap_err(), PortError::Closed.into());
}
