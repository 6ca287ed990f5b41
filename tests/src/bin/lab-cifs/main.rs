//! Inside the lab VM (`make lab SCENARIO=cifs`, tests/lab/scenarios/cifs.sh): the Linux kernel's
//! SMB client mounts smbd's share in many ways and works on it.
//!
//! ```text
//!  per mount: mount ─► what was agreed? ─► random operations beside a local folder
//!             └► unmount, mount again: everything still there? ─► complaints of the kernel?
//!  some mounts: fio with checksums, git clone and fsck, a longer soak
//! ```

mod mounts;
mod programs;

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, ExitCode},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::files::{Abilities, Options, compare, compare_links, soak};

use crate::mounts::{Mount, Mounted, Server, Work};

/// Why a run ended early.
type Outcome<T> = Result<T, String>;

/// Operations that every mount sees.
const QUICK: u64 = 250;
/// What the client must be able to do, else smbd lacks something.
const NEEDED: [&str; 4] = ["Copy", "Link", "SetAttribute", "Holes"];
/// And from SMB 3.0 on; before, the client does not try.
const NEEDED_OF_SMB3: [&str; 2] = ["Punch", "Zero"];

/// What the command line says.
struct Arguments {
    address: String,
    port: u16,
    /// Whether the port is that of SMB Direct.
    rdma: bool,
    seed: u64,
    seconds: u64,
    only: Option<String>,
}

impl Arguments {
    fn read() -> Outcome<Self> {
        let mut found = Self {
            address: "10.0.2.2".to_owned(),
            port: 445,
            rdma: false,
            seed: 1,
            seconds: 20,
            only: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().ok_or(format!("{word} wants a value"))?;
            let number = || value.parse::<u64>().map_err(|e| format!("{word} {value}: {e}"));
            match word.as_str() {
                "--address" => found.address = value,
                "--rdma" => found.rdma = number()? != 0,
                "--port" => found.port = u16::try_from(number()?).map_err(|e| e.to_string())?,
                "--seed" => found.seed = number()?,
                "--seconds" => found.seconds = number()?,
                "--only" => found.only = Some(value),
                _ => return Err(format!("unknown: {word}")),
            }
        }
        Ok(found)
    }
}

/// Prints what happens, with the time since the start.
struct Story(Instant);

impl Story {
    fn tell(&self, text: impl AsRef<str>) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "[{:6.1} s] {}", self.0.elapsed().as_secs_f64(), text.as_ref());
    }
}

/// What the kernel's log holds since it was last asked.
fn kernel_says() -> Outcome<String> {
    let said = Command::new("dmesg").arg("-c").output().map_err(|e| format!("dmesg: {e}"))?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// Lines in which the kernel complains of the share or of itself.
fn complaints(log: &str) -> Vec<&str> {
    let bad = ["CIFS", "BUG", "Oops", "WARNING", "Call Trace", "soft lockup", "I/O error"];
    // Said of every mount by its name, and of old dialects.
    let harmless = [
        "Attempting to mount",
        "Use of the less secure dialect",
        "RDMA transport established",
        "Signing is enabled, and RDMA read/write will be disabled",
    ];
    // The answer to the acknowledgement of a break comes when an unmount has taken its session away:
    // ENOENT, which a wrong signature is not.
    let late = [
        "smb3_get_sign_key: Could not find session",
        "smb3_calc_signature: Could not get signing key",
    ];
    let lines: Vec<_> = log.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        // A break (command 0x12) that crosses the close of what it is about finds nobody here.
        let crossed = line.contains("No task to wake, unknown frame received")
            && lines
                .get(at + 1)
                .is_some_and(|dump| dump.contains("424d53fe 00000040 00000000 00000012"));
        let unsigned = late.iter().any(|text| line.contains(text))
            || line.trim_end().ends_with("SMB signature verification returned error = -2");
        let known = crossed || unsigned || harmless.iter().any(|text| line.contains(text));
        if !known && bad.iter().any(|word| line.contains(word)) {
            found.push(*line);
        }
    }
    found
}

/// Empties the kernel's caches, so that what is compared comes from the server.
fn drop_caches() -> Outcome<()> {
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| format!("drop_caches: {e}"))
}

/// Random operations on `below` of a mount, then once more what is there from a fresh mount.
fn work_on(
    story: &Story,
    server: &Server,
    mount: &Mount,
    name: &str,
    options: &Options,
) -> Outcome<()> {
    let local = Path::new("/tmp").join(name);
    let shared = Path::new("/mnt").join(name);
    fs::create_dir_all(&local).map_err(|e| format!("{}: {e}", local.display()))?;
    let mounted = Mounted::new(server, mount)?;
    mount.was_agreed()?;
    fs::create_dir(&shared).map_err(|e| format!("mkdir on the share: {e}"))?;
    let summary = soak(&shared, &local, options)?;
    story.tell(format!("  {summary}"));
    let never = summary.never();
    let newer: &[&str] = if mount.dialect == "2.1" { &[] } else { &NEEDED_OF_SMB3 };
    if let Some(kind) = NEEDED.iter().chain(newer).find(|kind| never.contains(kind)) {
        return Err(format!("{kind} was never possible"));
    }
    mounted.end()?;
    drop_caches()?;
    let mounted = Mounted::new(server, mount)?;
    let differences = compare_links(&shared, &local)
        .and_then(|links| Ok([links, compare(&shared, &local)?].concat()))
        .map_err(|e| format!("after a new mount: {e}"))?;
    if !differences.is_empty() {
        return Err(format!("after a new mount:\n{}", differences.join("\n")));
    }
    for folder in [&shared, &local] {
        fs::remove_dir_all(folder).map_err(|e| format!("removing {}: {e}", folder.display()))?;
    }
    mounted.end()
}

fn one(story: &Story, arguments: &Arguments, server: &Server, mount: &Mount) -> Outcome<()> {
    story.tell(format!("mount {}", mount.name()));
    let able = Abilities {
        // Past the page cache, a mapping and a read do not agree in this kernel.
        maps: !mount.options.contains("cache=none"),
        symlinks: mount.options.contains("mfsymlinks"),
        locks: true,
        // This kernel writes the zeros for a range's holes from one buffer, and seals in place what
        // it sends: from the second hole on they are what the first were sealed to.
        reserves: !mount.options.contains("seal"),
    };
    let options = Options {
        seed: arguments.seed,
        operations: QUICK,
        time: Duration::from_secs(600),
        compare_every: 50,
        able,
    };
    work_on(story, server, mount, "quick", &options)?;
    for work in mount.work {
        match work {
            Work::Soak => {
                let options = Options {
                    seed: arguments.seed ^ 0x5eed,
                    operations: u64::MAX,
                    time: Duration::from_secs(arguments.seconds),
                    compare_every: 500,
                    able,
                };
                work_on(story, server, mount, "soak", &options)?;
            }
            Work::Fio => {
                let mounted = Mounted::new(server, mount)?;
                programs::fio(Path::new("/mnt"))?;
                mounted.end()?;
                story.tell("  fio: every block has its checksum");
            }
            Work::Git => {
                let mounted = Mounted::new(server, mount)?;
                programs::git_on(Path::new("/tmp/repository"), Path::new("/mnt/clone"))?;
                mounted.end()?;
                story.tell("  git: cloned, checked, committed, packed, checked");
            }
        }
    }
    let log = kernel_says()?;
    let complaints = complaints(&log);
    if complaints.is_empty() {
        Ok(())
    } else {
        Err(format!("the kernel: {}", complaints.join("\n")))
    }
}

/// Ends the run when one mount takes too long, and tells where in the kernel it waits.
fn watch(limit: Duration) -> mpsc::Sender<()> {
    let (alive, watched) = mpsc::channel();
    thread::spawn(move || {
        loop {
            match watched.recv_timeout(limit) {
                Ok(()) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => break,
            }
        }
        println!("nothing ended within {} s; the kernel waits in", limit.as_secs());
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let stack = fs::read_to_string(process.path().join("stack")).unwrap_or_default();
            if stack.contains("cifs") {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                println!("{name}{stack}");
            }
        }
        println!("{}\n{}", kernel_says().unwrap_or_default(), mounts::debug_data());
        println!("lab: failed");
        let _ = fs::write("/proc/sysrq-trigger", "o");
    });
    alive
}

fn lab(story: &Story) -> Outcome<()> {
    let arguments = Arguments::read()?;
    let alive = watch(Duration::from_secs(240 + 2 * arguments.seconds));
    let server = Server { address: arguments.address.clone(), port: arguments.port };
    story.tell(format!("seed {}", arguments.seed));
    fs::create_dir_all("/mnt").map_err(|e| e.to_string())?;
    kernel_says()?;
    let mut failed = 0;
    let mounts = if arguments.rdma { mounts::rdma() } else { mounts::all() };
    let wanted = |m: &&Mount| arguments.only.as_ref().is_none_or(|only| m.name() == *only);
    for mount in mounts.iter().filter(wanted) {
        let _ = alive.send(());
        if let Err(error) = one(story, &arguments, &server, mount) {
            failed += 1;
            story.tell(format!("FAILED {}: {error}", mount.name()));
            story.tell(format!("the kernel's log:\n{}", kernel_says()?));
            mounts::forget();
        }
    }
    if failed > 0 { Err(format!("{failed} mounts failed")) } else { Ok(()) }
}

fn main() -> ExitCode {
    let story = Story(Instant::now());
    match lab(&story) {
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
