//! Inside the lab VM (`make lab`, tests/lab/run.sh): Debian's kernel as a guest of one VM host,
//! its disk a VHDX on smbd's share, moved live to a second host while it writes checksummed files
//! to an ext4 file system (tests/lab/guest-init), then asked to verify them all and to power off.

use std::{
    fs,
    io::Write,
    mem,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    host_cli::{Host, Line, Outcome, cli, share_url, shown, write_credentials},
    process::{Stopped, ours},
    smbd::Smbd,
};

const LIMIT: Duration = Duration::from_secs(120);
/// An emulated CPU is some fifty times slower than the one the default is for.
const DOWNTIME_MS: &str = "3000";
const VM: &str = "linux";

/// Prints what happens, with the time since the start.
struct Story {
    since: Instant,
}

impl Story {
    fn tell(&self, text: impl AsRef<str>) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "[{:6.1} s] {}", self.since.elapsed().as_secs_f64(), text.as_ref());
    }
}

/// Prints the hosts' logs and the guest's consoles when it is dropped, so on every way to fail.
struct Witness<'a> {
    hosts: &'a [Host],
    folder: &'a Path,
}

impl Witness<'_> {
    fn nothing_to_tell(self) {
        mem::forget(self);
    }
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        for host in self.hosts {
            let log = fs::read_to_string(self.folder.join(host.name).join("log"));
            println!("--- {}: log\n{}", host.name, log.unwrap_or_default());
            let console = fs::read(self.folder.join(host.name).join("console"));
            let console = console.unwrap_or_default();
            println!("--- {}: console\n{}", host.name, String::from_utf8_lossy(&console));
        }
    }
}

/// Keeps what the guest prints on a host in a file, which outlives the guest.
fn keep_console(host: &Host, folder: &Path) -> Outcome<Stopped> {
    let folder = folder.join(host.name);
    let file = fs::File::create(folder.join("console")).map_err(|e| e.to_string())?;
    let mut command = Command::new(ours("bulkhead"));
    command.args(["vm", "console", VM, "--replay", "--socket"]).arg(folder.join("control.sock"));
    let child = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn();
    child.map(Stopped).map_err(|e| e.to_string())
}

/// Writes the VM file: the lab VM's own kernel, the guest's initramfs, the disk on the share.
fn write_linux(folder: &Path, url: &str) -> Outcome<PathBuf> {
    let path = folder.join("linux.toml");
    let text = format!(
        "name = \"{VM}\"\nmemory_mib = 384\nvcpus = 1\nconsole = \"serial\"\n[boot]\n\
         kernel = \"/boot/vmlinuz\"\ninitrd = \"/boot/initrd\"\n\
         cmdline = \"console=ttyS0 earlyprintk=ttyS0 panic=-1 mitigations=off\"\n\
         [[disk]]\nlocation = \"{url}\"\nformat = \"vhdx\"\n"
    );
    fs::write(&path, text).map_err(|e| e.to_string())?;
    Ok(path)
}

/// The guest's next line that starts with `word`, from what its console shows from now on, or
/// from all it showed if `more` says `--replay`.
fn line(host: &Host, more: &[&str], word: &str) -> Outcome<Line> {
    let text = host.ask(&[&["console", VM, "--until", word], more].concat())?;
    Line::last(&text, word).ok_or_else(|| format!("no {word:?} on the console: {text}"))
}

/// Waits for a line of work after which at least `files` files are written without an error.
fn work(host: &Host, files: u64) -> Outcome<u64> {
    let since = Instant::now();
    loop {
        let line = line(host, &[], "lab-work")?;
        if line.find("errors")? != 0 {
            return Err(format!("the guest found errors: {line:?}"));
        }
        let done = line.find("files")?;
        if done >= files {
            return Ok(done);
        }
        if since.elapsed() > LIMIT {
            return Err(format!("the guest is at {done} files, not at {files}"));
        }
    }
}

fn lab(story: &Story, hosts: &mut Vec<Host>) -> Outcome<()> {
    let server = Smbd::start("encryption = \"offered\"", "");
    let folder = server.scratch().to_path_buf();
    let url = share_url(&server, "linux.vhdx");
    cli(&["disk", "create", &url, "--size", "512MiB"])?;
    story.tell("smbd serves a dynamic VHDX of 512 MiB");
    write_credentials(&folder)?;
    hosts.push(Host::start("host-1", &folder, &url)?);
    hosts.push(Host::start("host-2", &folder, &url)?);
    let witness = Witness { hosts, folder: &folder };
    move_linux(story, &hosts[0], &hosts[1], &folder, &url)?;
    witness.nothing_to_tell();
    hosts.clear();
    story.tell("the image: ".to_owned() + cli(&["disk", "check", &url])?.trim());
    Ok(())
}

/// Waits until the guest's first process runs. QEMU's emulation of SVM now and then ends the boot of a
/// nested kernel in a triple fault; the host then resets the machine, as it should, and it boots
/// again. Once its first process runs, nothing of the kind is let pass.
fn started(story: &Story, host: &Host) -> Outcome<()> {
    const BOOTS: u32 = 3;
    let (mut boot, since) = (1, Instant::now());
    loop {
        match line(host, &["--replay"], "lab-start") {
            Err(error) if boot < BOOTS && error.contains("the console ended first") => {
                story.tell(format!("boot {boot} ended in a reset"));
                boot += 1;
            }
            // Between its end and its next start it is off.
            Err(error) if boot > 1 && error.contains("is off") && since.elapsed() < LIMIT => {
                thread::sleep(Duration::from_millis(200));
            }
            other => return other.map(drop),
        }
    }
}

fn move_linux(story: &Story, one: &Host, two: &Host, folder: &Path, url: &str) -> Outcome<()> {
    one.ask(&["create", &shown(&write_linux(folder, url)?)])?;
    one.ask(&["start", VM])?;
    let _console = keep_console(one, folder)?;
    story.tell("hyperv-host starts Debian's kernel from the bzImage");
    started(story, one)?;
    story.tell("Linux runs: ext4 made on /dev/vda and mounted");
    let before = work(one, 8)?;
    story.tell(format!("{before} files are written; moving the guest while it writes"));

    let answer = one.ask_json(&["move", VM, "--to", &two.migration, "--downtime", DOWNTIME_MS])?;
    let moved = answer.get("statistics").unwrap_or(&answer);
    if moved["outcome"] != "moved" || moved["disk_bytes"] != 0 {
        return Err(format!("the move ended with {moved}"));
    }
    let rounds = moved["rounds"].as_array().map_or(0, Vec::len);
    story.tell(format!(
        "moved: {rounds} rounds, {} pages ({} zero), {} bytes, {} ms, downtime {} ms, \
         disk bytes between hosts {}",
        moved["pages"],
        moved["zero_pages"],
        moved["bytes"],
        moved["total_ms"],
        moved["downtime_ms"],
        moved["disk_bytes"]
    ));
    let _console = keep_console(two, folder)?;
    let after = work(two, before + 8)?;
    story.tell(format!("{after} files are written on host-2"));

    let last = line(two, &["--send", "stop"], "lab-final")?;
    let files = last.find("files")?;
    if last.find("errors")? != 0 || last.find("complaints")? != 0 || last.find("verified")? != files
    {
        return Err(format!("the guest found errors: {last:?}"));
    }
    story.tell(format!("every one of {files} files has its checksum after a fresh mount"));
    let since = Instant::now();
    while two.ask_json(&["list"])?.to_string().contains("running") {
        if since.elapsed() > LIMIT {
            return Err("the guest does not power off".into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    story.tell("the guest powered off");
    two.ask(&["delete", VM])?;
    Ok(())
}

fn main() -> ExitCode {
    let story = Story { since: Instant::now() };
    match lab(&story, &mut Vec::new()) {
        Ok(()) => {
            println!("lab: passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            story.tell(format!("failed: {error}"));
            println!("lab: failed");
            ExitCode::FAILURE
        }
    }
}
