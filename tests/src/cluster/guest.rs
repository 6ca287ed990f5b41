//! A guest of a VM host whose disk is on the nodes' share: it writes while nodes are lost.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use test_support::{
    host_cli::{Host, Line, Outcome, cli, healthy, shown, verify, write_credentials, write_vm},
    process::{Stopped, run},
    smbd::USER,
};

/// A command that hangs is a failure.
const LIMIT: Duration = Duration::from_secs(120);
/// What it writes: little, often, with a flush after every eighth block.
const WORK: &str = "span=64 flush_every=8 ws_mib=8 iops=500 seed=7";
/// What its host says to its storage: a silent server is noticed as other clients do, and no guest is
/// paused by what is shown.
const STORAGE: &str = "keep_alive_ms = 500\npause_after_s = 30";

/// A VM host with one guest.
#[derive(Debug)]
pub struct Guest {
    host: Host,
    url: String,
    start: Line,
    /// What shows us its console, and what it has told there of its progress.
    _console: Stopped,
    told: Receiver<Line>,
    /// How many blocks it had written when it was seen last.
    acked: u64,
}

/// Passes on what a guest tells of its progress.
fn listen(console: ChildStdout) -> Receiver<Line> {
    let (tell, told) = channel();
    thread::spawn(move || {
        for line in BufReader::new(console).lines().map_while(Result::ok) {
            if let Some(line) = Line::last(&format!("{line}\n"), "progress")
                && tell.send(line).is_err()
            {
                return;
            }
        }
    });
    told
}

/// Has programs here find a name at an address. The caller's mounts are to be its own.
///
/// # Panics
/// If that cannot be.
pub fn name(name: &str, address: &str, folder: &Path) {
    let hosts = folder.join("hosts");
    let text = format!("127.0.0.1 localhost\n{address} {name}\n");
    std::fs::write(&hosts, text).expect("the folder is writable");
    let mut mount = Command::new("mount");
    let output = run(mount.arg("--bind").arg(&hosts).arg("/etc/hosts"), LIMIT);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Guest {
    /// Makes a disk on the share `vms` of a server, and starts a guest that writes it, all in a folder.
    ///
    /// # Errors
    /// A sentence that says what did not succeed.
    pub fn start(name: &'static str, server: &str, folder: &Path) -> Outcome<Self> {
        let url = format!("smb://{USER}@{server}/vms/{name}.vhdx");
        cli(&["disk", "create", &url, "--size", "256MiB"])?;
        write_credentials(folder)?;
        let host = Host::start_saying(name, folder, &url, STORAGE)?;
        let vm = write_vm(folder, &url, WORK)?;
        host.ask(&["create", &shown(&vm)])?;
        host.ask(&["start", "demo"])?;
        let text = host.ask(&["console", "demo", "--replay", "--until", "progress"])?;
        let start = Line::last(&text, "start").ok_or("the guest has not said how it starts")?;
        let mut console = host.asking(&["console", "demo"]);
        let child = console.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("the console: {error}"))?;
        let told = listen(child.stdout.take().ok_or("the console has no output")?);
        Ok(Self { host, url, start, _console: Stopped(child), told, acked: 0 })
    }

    /// Waits until it has written some more, from now on; the longest time that it has waited for a
    /// block since this was called last.
    ///
    /// # Errors
    /// If the guest or its host have seen an error.
    pub fn goes_on(&mut self) -> Outcome<Duration> {
        let mut longest = Duration::ZERO;
        let mut take = |line: Line| {
            healthy(&line)?;
            longest = longest.max(Duration::from_micros(line.find("gap_us")?));
            line.find("acked")
        };
        while let Ok(line) = self.told.try_recv() {
            self.acked = take(line)?;
        }
        let before = self.acked;
        while self.acked < before + 20 {
            let line = self.told.recv_timeout(LIMIT);
            self.acked = take(line.map_err(|_| self.silent())?)?;
        }
        let shown = self.host.ask_json(&["show", "demo"])?;
        match shown["disks"][0]["errors"] == 0 {
            true => Ok(longest),
            false => Err(format!("the guest's disk has met an error: {shown}")),
        }
    }

    /// What there is to know of a guest that says nothing.
    fn silent(&self) -> String {
        let shown = self.host.ask(&["show", "demo"]).unwrap_or_else(|error| error);
        format!("the guest says nothing: {shown}\n{}", self.host.log())
    }

    /// Stops it: everything that it was told is durable is there. How many blocks it has written.
    ///
    /// # Errors
    /// A sentence that says what is not.
    ///
    /// # Panics
    /// If the guest does not end.
    pub fn end(self, folder: &Path) -> Outcome<u64> {
        let text = self.host.ask(&["console", "demo", "--send", "stop", "--until", "final"])?;
        let last = Line::last(&text, "final").ok_or("the guest has said nothing at its end")?;
        healthy(&last)?;
        self.host.wait_for_state("demo", "off");
        verify(folder, &self.url, &self.start, &last)?;
        last.find("acked")
    }
}
