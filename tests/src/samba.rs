//! Samba as a private process: the peer that benchmarks run beside us.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::process::{foreign, free_port, wait_for_port};

/// The user of the private server; Samba wants one that the system knows.
pub const USER: &str = "root";
/// Its password.
pub const PASSWORD: &str = "pw-of-samba";

/// A running Samba with the share `vms`.
#[derive(Debug)]
pub struct Samba {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Samba {
    /// Starts one with lines added to the global section and to the share; `None` if it is not
    /// installed or we are not root.
    pub fn start(global: &str, share: &str) -> Option<Self> {
        let program = foreign("smbd").filter(|path| path.starts_with("/usr/sbin"))?;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a private Samba needs root");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("samba").tempdir().ok()?;
        let root = folder.path();
        for name in ["private", "lock", "state", "cache", "run", "rpc", "files", "log"] {
            fs::create_dir(root.join(name)).ok()?;
        }
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).ok()?;
        let port = free_port();
        let d = root.display();
        let text = format!(
            "[global]\nserver role = standalone\nworkgroup = LAB\nnetbios name = LAB\n\
             smb ports = {port}\ninterfaces = 127.0.0.1\nbind interfaces only = yes\n\
             disable netbios = yes\nload printers = no\nmap to guest = never\n\
             passdb backend = tdbsam:{d}/private/passdb.tdb\nprivate dir = {d}/private\n\
             lock directory = {d}/lock\nstate directory = {d}/state\ncache directory = {d}/cache\n\
             pid directory = {d}/run\nncalrpc dir = {d}/rpc\nlog file = {d}/log/%m\n{global}\n\
             [vms]\npath = {d}/files\nread only = no\n{share}\n"
        );
        let config = root.join("smb.conf");
        fs::write(&config, text).ok()?;
        let mut add = Command::new(foreign("smbpasswd")?)
            .args(["-s", "-a", USER, "-c"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        writeln!(add.stdin.take()?, "{PASSWORD}\n{PASSWORD}").ok()?;
        assert!(add.wait().is_ok_and(|status| status.success()), "smbpasswd failed");
        let child = Command::new(program)
            .args(["-F", "--no-process-group", "-s"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .ok()?;
        wait_for_port(port);
        Some(Self { child, port, folder })
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the one that accepts; those that serve are its children.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The shared folder.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
