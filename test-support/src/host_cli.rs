//! VM hosts as private processes, driven by `bulkhead vm` as an administrator would, and the
//! payload guest's lines on its console.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

pub use payload_guest::Line;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    host::HostProcess,
    process::{ours, run},
    smbd::{PASSWORD, Smbd, USER},
};

const LIMIT: Duration = Duration::from_secs(120);

/// A result whose error is a sentence for a person.
pub type Outcome<T> = Result<T, String>;

/// Address of a file on a server's share `vms`.
pub fn share_url(server: &Smbd, name: &str) -> String {
    url_in(server, "vms", name)
}

/// Address of a file on a share of a server.
pub fn url_in(server: &Smbd, share: &str, name: &str) -> String {
    format!("smb://{USER}@127.0.0.1:{}/{share}/{name}", server.port())
}

/// Writes the credentials that hosts in `folder` use for shares.
pub fn write_credentials(folder: &Path) -> Outcome<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(folder.join("credentials"))
        .and_then(|mut file| write!(file, "username={USER}\npassword={PASSWORD}\n"))
        .map_err(|e| e.to_string())
}

/// Writes the payload guest and a VM file for it; returns the VM file.
pub fn write_vm(folder: &Path, url: &str, guest: &str) -> Outcome<PathBuf> {
    write_vm_of(folder, url, guest, 256)
}

/// Likewise, with as many MiB of memory.
pub fn write_vm_of(folder: &Path, url: &str, guest: &str, memory: u32) -> Outcome<PathBuf> {
    let kernel = folder.join("guest.elf");
    let output = run(Command::new(ours("payload-guest")).arg("kernel").arg(&kernel), LIMIT);
    if !output.status.success() {
        return Err("the guest's kernel was not written".into());
    }
    let vm = folder.join("demo.toml");
    let text = format!(
        "name = \"demo\"\nmemory_mib = {memory}\nvcpus = 1\nconsole = \"virtio\"\n[boot]\n\
         kernel = \"{}\"\ncmdline = \"{guest}\"\n[[disk]]\nlocation = \"{url}\"\n\
         format = {:?}\n",
        kernel.display(),
        if is_unit(url) { "raw" } else { "vhdx" },
    );
    fs::write(&vm, text).map_err(|e| e.to_string())?;
    Ok(vm)
}

/// Verifies every acknowledged write of a guest that stopped with the line `last`, in the image
/// at `url` with nobody writing; returns what the checker said.
pub fn verify(folder: &Path, url: &str, start: &Line, last: &Line) -> Outcome<String> {
    let raw = folder.join("demo.raw");
    if !is_unit(url) {
        cli(&["disk", "check", url])?;
    }
    cli(&["disk", "convert", url, &shown(&raw)])?;
    let mut check = Command::new(ours("payload-guest"));
    check.arg("check").arg(&raw);
    for (flag, line, key) in [
        ("--seed", start, "seed"),
        ("--blocks", start, "blocks"),
        ("--acked", last, "flushed"),
        ("--submitted", last, "seq"),
    ] {
        check.args([flag, &line.find(key)?.to_string()]);
    }
    let output = run(&mut check, LIMIT);
    let text = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        Ok(text.trim().to_owned())
    } else {
        Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// What a host's configuration says of where disks are: beside this one.
fn storage(disk: &str, folder: &Path) -> Outcome<String> {
    if let Some((target, _)) = disk.rsplit_once('/').filter(|_| is_unit(disk)) {
        return Ok(format!("[storage]\nlocations = [{target:?}]\n"));
    }
    let (server, share) = disk
        .split_once('@')
        .and_then(|(_, place)| place.rsplit_once('/')?.0.split_once('/'))
        .ok_or_else(|| format!("{disk} is not on a share"))?;
    let credentials = folder.join("credentials");
    Ok(format!(
        "[storage]\nlocations = [\"smb://{server}/{share}\"]\n[[storage.server]]\n\
         host = {server:?}\ncredentials = {credentials:?}\n"
    ))
}

/// Whether an address names a logical unit, which is raw.
fn is_unit(disk: &str) -> bool {
    disk.starts_with("iscsi://")
}

/// A VM host process; asked to end when dropped.
#[derive(Debug)]
pub struct Host {
    /// What it is called.
    pub name: &'static str,
    process: HostProcess,
    /// Where other hosts connect.
    pub migration: String,
}

impl Host {
    /// Starts one in a folder below `folder`, with a certificate of the authority in it. Its VMs may
    /// have their disks beside the one at `disk`, and their kernels in `folder` and in `/boot`.
    pub fn start(name: &'static str, folder: &Path, disk: &str) -> Outcome<Self> {
        Self::start_saying(name, folder, disk, "")
    }

    /// As [`Host::start`], with these keys in `[storage]`.
    pub fn start_saying(
        name: &'static str,
        folder: &Path,
        disk: &str,
        more: &str,
    ) -> Outcome<Self> {
        let root = folder.join(name);
        let authority = shown(&folder.join("ca"));
        let keys = root.join("keys");
        fs::create_dir_all(&root).map_err(|e| e.to_string())?;
        cli(&["host", "init", "--ca", &authority, "--name", name, "--out", &shown(&keys)])?;
        let storage =
            storage(disk, folder)?.replacen("[storage]\n", &format!("[storage]\n{more}\n"), 1);
        let text = format!(
            "[host]\nstate_dir = \"{}\"\ncontrol_socket = \"{}\"\nshutdown_s = 2\n[migration]\n\
             listen = \"127.0.0.1:0\"\nca = \"{}\"\ncertificate = \"{}\"\nkey = \"{}\"\n\
             {storage}[boot]\nfolders = [{:?}, \"/boot\"]\n",
            root.join("state").display(),
            root.join("control.sock").display(),
            keys.join("ca.pem").display(),
            keys.join("host.pem").display(),
            keys.join("host-key.pem").display(),
            folder,
        );
        fs::write(root.join("host.toml"), text).map_err(|e| e.to_string())?;
        let process = HostProcess::launch(&root, name, &[]);
        let migration = process.address.clone();
        Ok(Self { name, process, migration })
    }

    /// Waits for a VM's state, a minute at most.
    ///
    /// # Panics
    /// If it does not come to it.
    pub fn wait_for_state(&self, vm: &str, state: &str) {
        let since = Instant::now();
        loop {
            let shown = self.ask_json(&["show", vm]).expect("the host answers");
            if shown["summary"]["state"] == state {
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(60), "{shown}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends the host a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// What the host has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether the host ends by itself within `limit`.
    pub fn ends(&mut self, limit: Duration) -> bool {
        self.process.ends(limit)
    }

    /// Runs `bulkhead vm` for this host.
    pub fn ask(&self, args: &[&str]) -> Outcome<String> {
        let socket = shown(self.process.socket());
        cli(&[&["vm"], args, &["--socket", &socket]].concat())
    }

    /// The command of `bulkhead vm` for this host, for who reads what it prints while it runs.
    pub fn asking(&self, args: &[&str]) -> Command {
        let mut command = Command::new(ours("bulkhead"));
        command.arg("vm").args(args).arg("--socket").arg(self.process.socket());
        command
    }

    /// Runs `bulkhead vm --json` for this host.
    pub fn ask_json(&self, args: &[&str]) -> Outcome<Value> {
        let text = self.ask(&[args, &["--json"]].concat())?;
        serde_json::from_str(&text).map_err(|e| format!("{args:?}: {e}: {text}"))
    }

    /// The guest's next line that starts with `word`.
    pub fn progress(&self, word: &str) -> Outcome<Line> {
        let text = self.ask(&["console", "demo", "--until", word])?;
        Line::last(&text, word).ok_or_else(|| format!("no {word:?} on the console: {text}"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.ends(Duration::from_secs(5));
    }
}

/// A path as text.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A number in a JSON object; NaN if there is none.
pub fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

/// Runs `bulkhead`.
pub fn cli(args: &[&str]) -> Outcome<String> {
    let mut command = Command::new(ours("bulkhead"));
    command.args(args).env("BULKHEAD_SMB_PASSWORD", PASSWORD);
    let output = run(&mut command, LIMIT);
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("bulkhead {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

/// Fails if the guest found an error in its disk or memory.
pub fn healthy(line: &Line) -> Outcome<()> {
    for key in ["verify_errors", "memory_errors"] {
        if line.find(key)? != 0 {
            return Err(format!("the guest found errors: {line}"));
        }
    }
    Ok(())
}

/// Starts the VM `demo` of `one`, which stands still meanwhile, on `two`, from its file in `folder`: it
/// has to run there, and `one` has to give it up once it goes on. Returns why it says it did.
pub fn start_elsewhere(one: &Host, two: &Host, folder: &Path) -> Outcome<String> {
    let about = one.ask_json(&["show", "demo"])?;
    let id = about["definition"]["id"].as_str().ok_or("the VM has no id")?;
    let text = fs::read_to_string(folder.join("demo.toml")).map_err(|e| e.to_string())?;
    let vm = folder.join("again.toml");
    fs::write(&vm, format!("id = \"{id}\"\n{text}")).map_err(|e| e.to_string())?;
    one.signal(Signal::STOP);
    let started = two.ask(&["create", &shown(&vm)]).and_then(|_| two.ask(&["start", "demo"]));
    one.signal(Signal::CONT);
    started?;
    two.ask(&["console", "demo", "--replay", "--until", "progress"])?;
    // It is paused, and says why: its guest would only meet errors. It does not start again by itself.
    one.wait_for_state("demo", "fenced");
    let reason = one.ask_json(&["show", "demo"])?["reason"].to_string();
    let before = two.progress("progress")?.get("seq");
    let after = two.progress("progress")?;
    healthy(&after)?;
    if after.get("seq") > before { Ok(reason) } else { Err("the guest stands still".into()) }
}
