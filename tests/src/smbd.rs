//! Our file server as a private process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::process::{Stopped, free_port, ours, wait_for_port};

/// The user that every share admits.
pub const USER: &str = "admin";
/// Its password.
pub const PASSWORD: &str = "pw-of-admin";
/// A second user.
pub const USER2: &str = "second";
/// Its password.
pub const PASSWORD2: &str = "pw-of-second";

/// A running smbd with the shares `vms` (open to both users), `sealed` (encryption required) and
/// `ro` (read-only), all over one folder.
#[derive(Debug)]
pub struct Smbd {
    process: Option<Stopped>,
    port: u16,
    folder: TempDir,
}

impl Smbd {
    /// Starts one; `server` and `rest` are put into the `[server]` table and behind it.
    pub fn start(server: &str, rest: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("bulkhead").tempdir().expect("a folder");
        fs::create_dir(folder.path().join("files")).expect("a new folder takes another");
        let port = free_port();
        let config = format!(
            "[server]\nlisten = [\"127.0.0.1:{port}\"]\nstate_dir = \"{state}\"\n{server}\n\
             [[user]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
             [[user]]\nname = \"{USER2}\"\npassword = \"{PASSWORD2}\"\n\
             [[share]]\nname = \"vms\"\npath = \"files\"\nusers = [\"{USER}\", \"{USER2}\"]\n\
             [[share]]\nname = \"sealed\"\npath = \"files\"\nusers = [\"{USER}\"]\n\
             encryption = \"required\"\n\
             [[share]]\nname = \"ro\"\npath = \"files\"\nusers = [\"{USER}\"]\nread_only = true\n\
             {rest}\n",
            state = folder.path().join("state").display(),
        );
        fs::write(folder.path().join("smbd.toml"), config).expect("the folder is writable");
        let mut server = Self { process: None, port, folder };
        server.spawn();
        server
    }

    fn spawn(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("the folder is writable");
        let child = Command::new(ours("smbd"))
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("smbd starts");
        self.process = Some(Stopped(child));
        wait_for_port(self.port);
    }

    /// Kills it without warning and starts it again at the same port.
    pub fn kill_and_restart(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.0.kill().expect("it runs");
            process.0.wait().expect("it was ours");
        }
        self.spawn();
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Stopped::pid)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// The shared folder.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("smbd.toml")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A folder for what the test needs beside the share.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| matches!(p.0.try_wait(), Ok(None)))
    }
}

impl Drop for Smbd {
    /// Stops it; a warning or error in its log fails the test that caused it.
    fn drop(&mut self) {
        self.process = None;
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        if std::thread::panicking() {
            eprintln!("--- smbd's log\n{log}");
            return;
        }
        let bad: Vec<_> = log
            .lines()
            .filter(|l| [" ERROR ", " WARN ", "panicked"].iter().any(|w| l.contains(w)))
            .collect();
        assert!(bad.is_empty(), "smbd complained:\n{}", bad.join("\n"));
    }
}
