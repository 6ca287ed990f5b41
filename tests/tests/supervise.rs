//! A server that is killed, hangs or is upgraded while clients work: they see a pause.

use std::{
    fs,
    net::TcpListener,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use block_io::File;
use bulkhead_tests::{
    process::{Stopped, ours},
    smbd::{PASSWORD, Smbd, USER},
};
use rustix::process::{Pid, Signal, kill_process};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, RemoteFile};

const SHARE: &str = "[[share]]\nname = \"ca\"\npath = \"files\"\nusers = [\"admin\"]\n\
                     continuously_available = true";

fn login(server: &Smbd) -> ConnectOptions {
    ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD))
}

async fn open(server: &Smbd) -> RemoteFile {
    let session = Client::connect(login(server)).await.unwrap();
    let tree = session.tree("ca").await.unwrap();
    let file = tree.open("disk", OpenOptions::create(Create::New)).await.unwrap();
    assert!(file.is_durable());
    file
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Waits until another process serves.
fn successor(server: &Smbd, pid: u32) -> u32 {
    let since = Instant::now();
    loop {
        if let Some(now) = server.serving_pid().filter(|now| *now != pid) {
            return now;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no other server comes");
    }
}

/// Writes block `n` with its number, and reads it and the first back.
async fn step(file: &RemoteFile, n: u64) {
    let block = [n as u8 + 1; 4096];
    file.write_at(n * 4096, &block).await.unwrap();
    file.flush().await.unwrap();
    for (at, value) in [(n, n as u8 + 1), (0, 1)] {
        let mut found = [0; 4096];
        assert_eq!(file.read_at(at * 4096, &mut found).await.unwrap(), 4096);
        assert_eq!(found, [value; 4096]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_server_that_is_killed_or_upgraded_go_on() {
    let mut server = Smbd::supervised(&[], "", SHARE);
    let file = open(&server).await;
    step(&file, 0).await;
    let mut pid = server.serving_pid().unwrap();
    for n in 1..7 {
        match n % 3 {
            0 => {
                let asked = server.admin(&["server", "upgrade"]);
                assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
            }
            1 => signal(pid, Signal::KILL),
            _ => server.signal(Signal::USR2),
        }
        step(&file, n).await;
        pid = successor(&server, pid);
        step(&file, n + 10).await;
    }
    File::close(&file).await.unwrap();
    // Nothing of it is left: another may have the file at once.
    let session = Client::connect(login(&server)).await.unwrap();
    session.tree("ca").await.unwrap().open("disk", OpenOptions::write()).await.unwrap();
    // That servers ended and others came is told, and nothing else.
    let bad = server.stop();
    let killed = |line: &&String| line.contains("has ended and is started again");
    assert!(bad.iter().all(|line| killed(&line)) && bad.len() == 2, "{bad:#?}");
}

/// Puts a program in the place of another that may be running, as a package manager does.
fn install(from: &Path, to: &Path) {
    let fresh = to.with_extension("fresh");
    fs::copy(from, &fresh).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(fresh, to).unwrap();
}

/// The new program takes over; one that does not start leaves the old server where it is, and the
/// next that does takes over again. Clients see no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_to_the_program_that_is_installed_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("smbd");
    let mut server = Smbd::supervised_copy(&program, "", SHARE);
    let running = |pid: u32| fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino();
    let supervisor = running(server.pid());
    let file = open(&server).await;
    step(&file, 0).await;
    let mut pid = server.serving_pid().unwrap();
    assert_eq!(running(pid), supervisor);

    let (working, broken) = (ours("smbd"), folder.path().join("broken"));
    fs::write(&broken, "#!/bin/sh\nexit 1\n").unwrap();
    for (n, starts) in [(1, true), (2, false), (3, true)] {
        install(if starts { &working } else { &broken }, &program);
        let installed = fs::metadata(&program).unwrap().ino();
        let asked = server.admin(&["server", "upgrade"]);
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        step(&file, 2 * n).await;
        if starts {
            pid = successor(&server, pid);
            assert_eq!(running(pid), installed);
        } else {
            server.wait_for_log("the old one stays");
            assert_eq!(server.serving_pid(), Some(pid));
        }
        step(&file, 2 * n + 1).await;
    }
    // The supervisor is still the program that it was.
    assert_eq!(running(server.pid()), supervisor);
    File::close(&file).await.unwrap();
    let bad = server.stop();
    assert!(bad.len() == 1 && bad[0].contains("the new server does not start"), "{bad:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_replaced() {
    let mut server = Smbd::supervised(&["--watchdog", "1"], "", SHARE);
    let file = open(&server).await;
    step(&file, 0).await;
    let pid = server.serving_pid().unwrap();
    signal(pid, Signal::STOP);
    step(&file, 1).await;
    assert_ne!(successor(&server, pid), pid);
    let bad = server.stop();
    assert!(bad.iter().any(|line| line.contains("silent and is killed")), "{bad:#?}");
}

#[test]
fn without_a_supervisor_there_is_no_upgrade() {
    let server = Smbd::start("", "");
    let asked = server.admin(&["server", "upgrade"]);
    let text = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.status.success() && text.contains("--supervise"), "{text}");
    // And nobody else has its state.
    let mut second = Command::new(ours("smbd"));
    let config = fs::read_to_string(server.config()).unwrap();
    let other = server.scratch().join("other.toml");
    let port = server.port().to_string();
    fs::write(&other, config.replace(&port, "0")).unwrap();
    let output = second.arg("--config").arg(&other).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("another server uses"), "{text}");
}

/// A server whose supervisor is gone ends, so that its ports are free for another.
#[test]
fn a_server_ends_with_its_supervisor() {
    let mut server = Smbd::supervised(&[], "", "");
    let pid = server.serving_pid().unwrap();
    server.signal(Signal::KILL);
    let since = Instant::now();
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(since.elapsed() < Duration::from_secs(30), "it goes on");
        std::thread::yield_now();
    }
    drop(server.stop());
}

/// Sockets come from the service manager, which had them before the server was there.
#[tokio::test]
async fn a_socket_that_was_passed_on_is_served() {
    let server = Smbd::start("", "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let early = std::net::TcpStream::connect(address).unwrap();
    let config = fs::read_to_string(server.config()).unwrap();
    let config = config.replace(&server.address().to_string(), &address.to_string());
    let folder = tempfile::tempdir().unwrap();
    let state = server.scratch().join("state").display().to_string();
    let config = config.replace(&state, &folder.path().display().to_string());
    let path = server.scratch().join("passed.toml");
    fs::write(&path, config).unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    // As systemd does: by number from 3 on, to the process that is named.
    let script = format!(
        "exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --config \"$1\"",
        listener.as_raw_fd()
    );
    let child = Command::new("bash")
        .args(["-c", &script])
        .arg(ours("smbd"))
        .arg(&path)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _child = Stopped(child);
    drop(listener);
    let options = ConnectOptions::new("127.0.0.1", address.port(), Login::new(USER, PASSWORD));
    let session = Client::connect(options).await.unwrap();
    session.tree("vms").await.unwrap();
    drop(early);
}
