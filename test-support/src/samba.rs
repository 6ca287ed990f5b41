//! Samba as a private process: a partner that nobody here wrote, and the peer of benchmarks.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    port::Port,
    process::{foreign, wait_for_port},
    skip::{Need, skip},
};

/// The user of the private server; Samba wants one that the system knows.
pub const USER: &str = "root";
/// Its password.
pub const PASSWORD: &str = "ge heim-42";

/// A running Samba with the shares `vms` and, over the same files, `sealed` (encryption required).
#[derive(Debug)]
pub struct Samba {
    child: Child,
    port: Port,
    /// How it is started: the program, and what stands before its own arguments.
    starts: Vec<OsString>,
    /// Its configuration, as it sees it.
    config: PathBuf,
    folder: TempDir,
    files: PathBuf,
}

/// Enters the system in the folder `$1` to be its program: what it has of this machine is its processes,
/// of which Samba needs `/proc/self/fd`.
const ENTER: &str = "mount -t proc proc \"$1/proc\" && exec chroot \"$@\"";

impl Samba {
    /// Starts one with lines added to the global section and to the share; `None` if it is not
    /// installed or we are not root.
    pub fn start(global: &str, share: &str) -> Option<Self> {
        let program = foreign("smbd").filter(|path| path.starts_with("/usr/sbin"))?;
        if !rustix::process::geteuid().is_root() {
            skip(Need::Root.because("a private Samba needs root"));
            return None;
        }
        let folder = tempfile::Builder::new().prefix("samba").tempdir().ok()?;
        let files = folder.path().join("files");
        fs::create_dir(&files).ok()?;
        let inside = folder.path().to_owned();
        let adds = vec![foreign("smbpasswd")?.into()];
        Self::start_from(
            (vec![program.into()], adds),
            (folder, &inside),
            (files, None),
            global,
            share,
        )
    }

    /// Starts the one of the system in the folder `root` (see `tests/interop/newest.sh`), which shares
    /// `files`, a folder below `root`; `None` if it has none or we are not root.
    pub fn of_system(root: &Path, files: &Path, global: &str, share: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !root.join("usr/sbin/smbd").is_file() {
            skip(Need::Root.because("a Samba in a folder needs root and the folder"));
            return None;
        }
        let shared = Path::new("/").join(files.strip_prefix(root).ok()?);
        let folder = tempfile::Builder::new().prefix("samba").tempdir_in(root.join("tmp")).ok()?;
        let inside = Path::new("/tmp").join(folder.path().file_name()?);
        let within = |program: &str| {
            let words = ["unshare", "-m", "--propagation", "private", "sh", "-c", ENTER, "sh"];
            let mut words: Vec<OsString> = words.iter().map(OsString::from).collect();
            words.extend([root.as_os_str().to_owned(), program.into()]);
            words
        };
        let programs = (within("/usr/sbin/smbd"), within("/usr/bin/smbpasswd"));
        let files = (files.to_owned(), Some(shared));
        Self::start_from(programs, (folder, &inside), files, global, share)
    }

    /// Starts one by the words that begin its command and that of `smbpasswd`, in a folder with its name
    /// as it sees it; likewise for the shared folder, where the two names differ.
    fn start_from(
        (starts, adds): (Vec<OsString>, Vec<OsString>),
        (folder, inside): (TempDir, &Path),
        (files, shared): (PathBuf, Option<PathBuf>),
        global: &str,
        share: &str,
    ) -> Option<Self> {
        let root = folder.path();
        for name in ["private", "lock", "state", "cache", "run", "rpc", "log"] {
            fs::create_dir(root.join(name)).ok()?;
        }
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).ok()?;
        let reserved = Port::reserve();
        let port = reserved.number();
        let d = inside.display();
        let shared = shared.unwrap_or_else(|| files.clone());
        let shared = shared.display();
        let text = format!(
            "[global]\nserver role = standalone\nworkgroup = LAB\nnetbios name = LAB\n\
             smb ports = {port}\ninterfaces = 127.0.0.1\nbind interfaces only = yes\n\
             disable netbios = yes\nload printers = no\nmap to guest = never\n\
             passdb backend = tdbsam:{d}/private/passdb.tdb\nprivate dir = {d}/private\n\
             lock directory = {d}/lock\nstate directory = {d}/state\ncache directory = {d}/cache\n\
             pid directory = {d}/run\nncalrpc dir = {d}/rpc\nlog file = {d}/log/%m\n{global}\n\
             [vms]\npath = {shared}\nread only = no\n{share}\n\
             [sealed]\npath = {shared}\nread only = no\nserver smb encrypt = required\n"
        );
        fs::write(root.join("smb.conf"), text).ok()?;
        let config = inside.join("smb.conf");
        let mut add = Command::new(&adds[0])
            .args(&adds[1..])
            .args(["-s", "-a", USER, "-c"])
            .arg(&config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        writeln!(add.stdin.take()?, "{PASSWORD}\n{PASSWORD}").ok()?;
        assert!(add.wait().is_ok_and(|status| status.success()), "smbpasswd failed");
        let child = Self::spawn(&starts, &config);
        wait_for_port(port);
        Some(Self { child, port: reserved, starts, config, folder, files })
    }

    fn spawn(starts: &[OsString], config: &Path) -> Child {
        Command::new(&starts[0])
            .args(&starts[1..])
            .args(["-F", "--no-process-group", "-s"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("Samba starts")
    }

    /// Kills all its processes and starts it again at the same port.
    pub fn restart(&mut self) {
        self.stop();
        self.child = Self::spawn(&self.starts, &self.config);
        wait_for_port(self.port());
    }

    fn stop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The process id of the one that accepts; those that serve are its children.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The shared folder.
    pub fn files(&self) -> PathBuf {
        self.files.clone()
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in
                fs::read_dir(self.folder.path().join("log")).into_iter().flatten().flatten()
            {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<_> = text.lines().rev().take(15).collect();
                eprintln!("--- {}", entry.path().display());
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        self.stop();
    }
}
