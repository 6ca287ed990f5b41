//! Targets that the suite starts itself: smbd and tgt, each at a port and in a folder of its own.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use iscsi::chap::Account;
use tempfile::TempDir;

use super::subject::{ChapTarget, Subject};
use crate::{
    initiator::TARGET,
    iscsi::{Served, lun, thin},
    port::Port,
    process::{Stopped, installed, wait_for},
};

const CHAP_TARGET: &str = "iqn.2024-01.example:guarded";
const SIZE: u64 = 64 << 20;
const USER: (&str, &str) = ("alice", "secret-of-alice");
const MUTUAL: (&str, &str) = ("disks", "secret-of-disk");

/// A process that the suite started.
pub trait Started {
    /// Starts it again if it ended; whether it had.
    fn revive(&self) -> bool;

    /// Kills it and starts it again; `false` if what it keeps does not outlive that.
    fn kill(&self) -> bool;

    /// Has it end all sessions; `false` if it cannot be asked to.
    fn disconnect_all(&self) -> bool;
}

fn guarded() -> ChapTarget {
    let account = |(name, secret): (&str, &str)| Account::new(name, secret.as_bytes());
    ChapTarget {
        target: CHAP_TARGET.to_owned(),
        account: account(USER).expect("the secret is long enough"),
        mutual: Some(account(MUTUAL).expect("the secret is long enough")),
    }
}

struct OurSmbd {
    served: RefCell<Served>,
    _folder: TempDir,
}

impl Started for OurSmbd {
    fn revive(&self) -> bool {
        let mut served = self.served.borrow_mut();
        let ended = !served.server.alive();
        if ended {
            served.server.kill_and_restart();
        }
        ended
    }

    fn kill(&self) -> bool {
        self.served.borrow_mut().server.kill_and_restart();
        true
    }

    fn disconnect_all(&self) -> bool {
        let served = self.served.borrow();
        let output = served.server.admin(&["target", "sessions", "--json"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        // Sessions of earlier cases may go of themselves meanwhile.
        let mut any = false;
        for session in list.as_array().into_iter().flatten() {
            let id = session["id"].to_string();
            any |= served.server.admin(&["target", "disconnect", &id]).status.success();
        }
        any
    }
}

/// smbd with an open target and one that wants CHAP.
///
/// # Panics
/// If its folder cannot be written.
pub fn smbd() -> Subject {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("the folder is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path.display().to_string()
    };
    let (theirs, ours) = (secret("theirs", USER.1), secret("ours", MUTUAL.1));
    let open = lun(0, &thin(folder.path(), "open.raw", SIZE), "");
    let closed = lun(0, &thin(folder.path(), "guarded.raw", SIZE), "");
    let served = Served::start(&format!(
        "authentication = \"none\"\n{open}\n[[target]]\nname = \"{CHAP_TARGET}\"\n\
         chap = [{{ user = \"{}\", secret_file = \"{theirs}\" }}]\n\
         mutual_chap = {{ user = \"{}\", secret_file = \"{ours}\" }}\n{closed}\n\
         [limits]\nfailed_logon_ms = 0\n",
        USER.0, MUTUAL.0
    ));
    let mut subject = Subject::new(served.port.address(), TARGET, 0);
    subject.chap = Some(guarded());
    subject.started = Some(Box::new(OurSmbd { served: RefCell::new(served), _folder: folder }));
    subject
}

struct Tgt {
    process: RefCell<Option<Stopped>>,
    programs: (PathBuf, PathBuf),
    port: Port,
    folder: TempDir,
}

impl Tgt {
    fn start(&self) -> Option<()> {
        let at = self.port.address();
        let control = (self.port.number() % 30_000).to_string();
        let portal = format!("portal={at}");
        let mut daemon = Command::new(&self.programs.0);
        daemon.args(["-f", "-C", &control, "--iscsi", &portal]);
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        *self.process.borrow_mut() = Some(Stopped(daemon.spawn().ok()?));
        wait_for(at);
        let image = |name: &str| self.folder.path().join(name).display().to_string();
        let (open, closed) = (image("open.raw"), image("guarded.raw"));
        let target = ["--mode", "target", "--op"];
        let unit = ["--mode", "logicalunit", "--op", "new", "--lun", "1", "-b"];
        let account = ["--mode", "account", "--op"];
        let words: [Vec<&str>; 10] = [
            [&target[..], &["new", "--tid", "1", "-T", TARGET]].concat(),
            [&unit[..], &[&open, "--tid", "1"]].concat(),
            [&target[..], &["bind", "--tid", "1", "-I", "ALL"]].concat(),
            [&target[..], &["new", "--tid", "2", "-T", CHAP_TARGET]].concat(),
            [&unit[..], &[&closed, "--tid", "2"]].concat(),
            [&account[..], &["new", "--user", USER.0, "--password", USER.1]].concat(),
            [&account[..], &["bind", "--tid", "2", "--user", USER.0]].concat(),
            [&account[..], &["new", "--user", MUTUAL.0, "--password", MUTUAL.1]].concat(),
            [&account[..], &["bind", "--tid", "2", "--user", MUTUAL.0, "--outgoing"]].concat(),
            [&target[..], &["bind", "--tid", "2", "-I", "ALL"]].concat(),
        ];
        for words in words {
            let mut command = Command::new(&self.programs.1);
            let done =
                command.args(["-C", &control, "--lld", "iscsi"]).args(&words).output().ok()?;
            if !done.status.success() {
                eprintln!("tgtadm {words:?}: {}", String::from_utf8_lossy(&done.stderr));
                return None;
            }
        }
        Some(())
    }
}

impl Started for Tgt {
    fn revive(&self) -> bool {
        let mut process = self.process.borrow_mut();
        let running = process.as_mut().is_some_and(|it| matches!(it.0.try_wait(), Ok(None)));
        if running {
            return false;
        }
        *process = None;
        drop(process);
        self.start().expect("tgt started once");
        true
    }

    fn kill(&self) -> bool {
        // What was set up by tgtadm is gone with the process; so is what it kept.
        false
    }

    fn disconnect_all(&self) -> bool {
        false
    }
}

/// tgt with the same; `None` if it is not installed or does not start.
///
/// # Panics
/// If its folder cannot be written.
pub fn tgt() -> Option<Subject> {
    let programs = (installed("tgtd")?, installed("tgtadm")?);
    let folder = tempfile::tempdir().expect("a folder");
    make(folder.path());
    let tgt = Tgt { process: RefCell::default(), programs, port: Port::reserve(), folder };
    tgt.start()?;
    let mut subject = Subject::new(tgt.port.address(), TARGET, 1);
    subject.chap = Some(guarded());
    subject.started = Some(Box::new(tgt));
    Some(subject)
}

fn make(folder: &Path) {
    thin(folder, "open.raw", SIZE);
    thin(folder, "guarded.raw", SIZE);
}
