//! Samba's own server of the system in a folder, to have its suites run against it beside smbd.
//!
//! Its configuration is a clean one with what it has for these suites switched on: streams, access lists
//! in extended attributes, leases, durable and persistent handles, several channels. Its two users are
//! made in the folder, and only there.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bulkhead_tests::{
    port::Port,
    process::wait_for,
    smbd::{PASSWORD, PASSWORD2, USER, USER2},
    torture::{PERSISTENT_SHARES, Served},
};
use tempfile::TempDir;

/// A running Samba.
pub struct Samba {
    child: Child,
    address: SocketAddr,
    _port: Option<Port>,
    folder: TempDir,
}

/// A command of the system in `root`, without output.
fn within(root: &Path, program: &str) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).arg(program).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Samba {
    /// Starts one, at `address` or at a port of its own; `None`, with a line, where it cannot be.
    pub fn start(root: &Path, address: Option<SocketAddr>) -> Option<Self> {
        let port = address.is_none().then(Port::reserve);
        let address = address.or_else(|| port.as_ref().map(Port::address))?;
        let folder = tempfile::tempdir_in(root.join("tmp")).ok()?;
        let inside = Path::new("/tmp").join(folder.path().file_name()?);
        for name in ["private", "lock", "state", "cache", "run", "rpc", "log", "files", "kept"] {
            fs::create_dir(folder.path().join(name)).ok()?;
        }
        for open in ["", "files", "kept"] {
            let mode = if open.is_empty() { 0o755 } else { 0o777 };
            fs::set_permissions(folder.path().join(open), fs::Permissions::from_mode(mode)).ok()?;
        }
        fs::write(folder.path().join("smb.conf"), configuration(&inside, address)).ok()?;
        let config = inside.join("smb.conf");
        for (user, password) in [(USER, PASSWORD), (USER2, PASSWORD2)] {
            add(root, &config, user, password)?;
        }
        let child = within(root, "/usr/sbin/smbd")
            .args(["-F", "--no-process-group", "-s"])
            .arg(&config)
            .process_group(0)
            .spawn()
            .ok()?;
        let samba = Self { child, address, _port: port, folder };
        wait_for(address);
        Some(samba)
    }
}

/// Makes a user of the system and of this Samba.
fn add(root: &Path, config: &Path, user: &str, password: &str) -> Option<()> {
    // It may be there from another run.
    let _ = within(root, "/usr/sbin/useradd").args(["--no-create-home", user]).status();
    let mut add = within(root, "/usr/bin/smbpasswd")
        .args(["-s", "-a", user, "-c"])
        .arg(config)
        .stdin(Stdio::piped())
        .spawn()
        .ok()?;
    writeln!(add.stdin.take()?, "{password}\n{password}").ok()?;
    let added = add.wait().is_ok_and(|status| status.success());
    if !added {
        eprintln!("interop: Samba takes no user {user}");
    }
    added.then_some(())
}

fn configuration(inside: &Path, address: SocketAddr) -> String {
    let (d, ip, port) = (inside.display(), address.ip(), address.port());
    let several = if port == 445 { " 192.0.2.2" } else { "" };
    let share = |name: &str, folder: &str, more: &str| {
        format!("[{name}]\npath = {d}/{folder}\nread only = no\n{more}\n")
    };
    let mut text = format!(
        "[global]\nserver role = standalone\nworkgroup = LAB\nnetbios name = LAB\n\
         smb ports = {port}\ninterfaces = {ip}{several}\nbind interfaces only = yes\n\
         disable netbios = yes\nload printers = no\nmap to guest = never\n\
         passdb backend = tdbsam:{d}/private/passdb.tdb\nprivate dir = {d}/private\n\
         lock directory = {d}/lock\nstate directory = {d}/state\ncache directory = {d}/cache\n\
         pid directory = {d}/run\nncalrpc dir = {d}/rpc\nlog file = {d}/log/%m\n\
         server multi channel support = yes\nsmb3 directory leases = yes\n\
         kernel oplocks = no\nkernel share modes = no\nposix locking = no\ndurable handles = yes\n\
         persistent handles = yes\nea support = yes\nstore dos attributes = yes\n\
         map archive = no\nmap acl inherit = yes\ninherit acls = yes\n\
         vfs objects = acl_xattr streams_xattr\n"
    );
    text += &share("vms", "files", "");
    text += &share("hideunread", "files", "hide unreadable = yes");
    for (name, available) in PERSISTENT_SHARES {
        let available = if available { "continuous availability = yes" } else { "" };
        text += &share(name, "kept", available);
    }
    text += &share(super::AVAILABLE, "files", "continuous availability = yes");
    text
}

impl Served for Samba {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn scratch(&self) -> &Path {
        self.folder.path()
    }

    fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    fn snapshot(&self) -> Option<String> {
        None
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
