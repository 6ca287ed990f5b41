//! A private Samba server on a loopback port, as a partner nobody here wrote.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use smb_client::{ConnectOptions, Login};

pub mod proxy;

const SMBD: &str = "/usr/sbin/smbd";
pub const USER: &str = "root";
pub const PASSWORD: &str = "ge heim-42";

/// A running server; stopped with all its processes when dropped.
pub struct Samba {
    directory: tempfile::TempDir,
    port: u16,
    child: Child,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Samba {
    /// Starts a server, or says in one line why the test is skipped.
    pub fn start(extra: &str) -> Option<Self> {
        if !std::path::Path::new(SMBD).exists() || !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs {SMBD} and root");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("samba").tempdir().unwrap();
        let root = directory.path();
        for name in ["private", "lock", "state", "cache", "run", "rpc", "share", "log"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let port = free_port();
        let d = root.display();
        let config = format!(
            "[global]\n\
             server role = standalone\nworkgroup = LAB\nnetbios name = LAB\n\
             smb ports = {port}\ninterfaces = 127.0.0.1\nbind interfaces only = yes\n\
             disable netbios = yes\nload printers = no\nmap to guest = never\n\
             passdb backend = tdbsam:{d}/private/passdb.tdb\nprivate dir = {d}/private\n\
             lock directory = {d}/lock\nstate directory = {d}/state\n\
             cache directory = {d}/cache\npid directory = {d}/run\nncalrpc dir = {d}/rpc\n\
             log file = {d}/log/%m\nkernel oplocks = no\nkernel share modes = no\n\
             posix locking = no\ndurable handles = yes\nserver min protocol = SMB2_10\n\
             {extra}\n\
             [vms]\npath = {d}/share\nread only = no\n\
             [sealed]\npath = {d}/share\nread only = no\nserver smb encrypt = required\n"
        );
        let file = root.join("smb.conf");
        fs::write(&file, config).unwrap();
        let mut add = Command::new("smbpasswd")
            .args(["-s", "-a", USER, "-c"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        {
            use std::io::Write;
            write!(add.stdin.take().unwrap(), "{PASSWORD}\n{PASSWORD}\n").unwrap();
        }
        let added = add.wait_with_output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let child = Self::spawn(&file);
        let samba = Self { directory, port, child };
        samba.wait_up();
        Some(samba)
    }

    fn spawn(config: &std::path::Path) -> Child {
        Command::new(SMBD)
            .args(["-F", "--no-process-group", "-s"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn wait_up(&self) {
        let since = Instant::now();
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        while TcpStream::connect(address).is_err() {
            assert!(since.elapsed() < Duration::from_secs(30), "smbd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).unwrap()) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// Kills all its processes and starts it again at the same port.
    pub fn restart(&mut self) {
        self.stop();
        self.child = Self::spawn(&self.directory.path().join("smb.conf"));
        self.wait_up();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the share's files are.
    pub fn files(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    pub fn options(&self) -> ConnectOptions {
        ConnectOptions::new("127.0.0.1", self.port, Login::new(USER, PASSWORD))
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in fs::read_dir(self.directory.path().join("log")).into_iter().flatten() {
                let path = entry.unwrap().path();
                let text = fs::read_to_string(&path).unwrap_or_default();
                let tail: Vec<_> = text.lines().rev().take(15).collect();
                eprintln!("--- {}", path.display());
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        self.stop();
    }
}

/// Bytes that depend on their place, so that a misplaced one is noticed.
pub fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}
