//! `make bench-generators`: smbd and the newest Samba under load that programs of others make, in one
//! run, from one folder, in turns.
//!
//! ```text
//!  CPU 1                                             CPU 0
//!  smbtorture smb2.bench.*  ────────────────────────► smbd
//!  the crate smb2, each request in a write of its own ► Samba, plain and with vfs io_uring
//!  requests of the same sizes, no protocol  ────────► a bare server: the machine's floor
//! ```
//!
//! `bench-generators --newest FOLDER [--seconds N] [--rounds N] [--only TEXT] [--sign|--plain]`: the folder
//! has Debian's newest suite (`tests/interop/newest.sh`). A row is one generator with its options, measured
//! `--rounds` times on each server, the servers in turns; what is reported are medians. `ratio` is our
//! operations per second over the better Samba's, `cpu_ratio` our server's CPU for an operation, of all its
//! processes, over that Samba's. Writes `target/bench/generators.json`.

mod floor;
mod report;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    field,
    process::{ours, run},
    samba::{self, Samba},
    smbd::{self, Smbd},
    target::Target,
    usage::{self, Cpu},
};
use floor::{Floor, Messages};
use report::{BULKHEAD, FLOOR, Row};
use serde_json::{Map, Value, json};

const SERVER_CPU: &str = "0";
const CLIENT_CPU: &str = "1";
/// Bytes of the file that the crate reads and writes.
const FILE: u64 = 256 << 20;
/// Its name.
const NAME: &str = "generators.dat";

/// Who makes the load.
#[derive(Debug, Clone, Copy)]
enum Generator {
    /// A test of `smb2.bench`.
    Torture(&'static str),
    /// The crate smb2: `read` or `write`.
    Crate(&'static str),
}

/// A load: its name in the report, who makes it, and what goes over the wire.
const LOADS: [(&str, Generator, Messages); 12] = [
    ("bench.read 2 × QD16", Generator::Torture("read"), messages(117, 4180, 2, 16)),
    ("bench.write 2 × QD16", Generator::Torture("write"), messages(4212, 84, 2, 16)),
    ("bench.read 2 × QD1", Generator::Torture("read"), messages(117, 4180, 2, 1)),
    ("bench.write 2 × QD1", Generator::Torture("write"), messages(4212, 84, 2, 1)),
    ("bench.echo 2 × QD16", Generator::Torture("echo"), messages(72, 72, 2, 16)),
    (
        "bench.path-contention-shared 2 × QD16",
        Generator::Torture("path-contention-shared"),
        messages(140, 140, 2, 16),
    ),
    // smbd lets a connection prove two users at a time.
    ("bench.session-setup 4 × QD2", Generator::Torture("session-setup"), messages(300, 300, 4, 2)),
    ("bench.oplock1 2", Generator::Torture("oplock1"), messages(140, 140, 1, 1)),
    ("crate smb2 read QD1", Generator::Crate("read"), messages(117, 4180, 1, 1)),
    ("crate smb2 read QD32", Generator::Crate("read"), messages(117, 4180, 1, 32)),
    ("crate smb2 write QD1", Generator::Crate("write"), messages(4212, 84, 1, 1)),
    ("crate smb2 write QD32", Generator::Crate("write"), messages(4212, 84, 1, 32)),
];

const fn messages(request: u32, answer: u32, connections: u32, depth: u32) -> Messages {
    Messages { request, answer, connections, depth }
}

/// A program that is kept on one CPU.
fn pinned(cpu: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu]).arg(program);
    command
}

/// A server under load.
struct Server<'a> {
    name: &'a str,
    pid: u32,
    login: (&'a str, &'a str),
    port: u16,
}

impl Server<'_> {
    fn pin(&self) {
        let output = run(
            Command::new("taskset").args(["-a", "-c", "-p", SERVER_CPU, &self.pid.to_string()]),
            Duration::from_secs(10),
        );
        assert!(output.status.success(), "taskset failed");
    }

    /// CPU that its processes used while `work` ran, and those of its clients to their ends.
    fn cpu_of<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        let (idle, before) = (usage::members(self.pid).len(), Cpu::of_tree(self.pid));
        let result = work();
        let since = Instant::now();
        while usage::members(self.pid).len() > idle && since.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(20));
        }
        (result, Cpu::of_tree(self.pid).since(&before))
    }
}

/// What the command line says.
struct Options {
    newest: PathBuf,
    seconds: u32,
    rounds: usize,
    only: String,
    protection: &'static str,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let (mut newest, mut options) = (
            None,
            Self {
                newest: PathBuf::new(),
                seconds: 5,
                rounds: 3,
                only: String::new(),
                protection: "sign",
            },
        );
        while let Some(word) = words.next() {
            match &word[..] {
                "--newest" => newest = Some(PathBuf::from(words.next()?)),
                "--seconds" => options.seconds = words.next()?.parse().ok().filter(|it| *it > 0)?,
                "--rounds" => options.rounds = words.next()?.parse().ok().filter(|it| *it > 0)?,
                "--only" => options.only = words.next()?,
                "--sign" => options.protection = "sign",
                "--plain" => options.protection = "off",
                _ => return None,
            }
        }
        options.newest = fs::canonicalize(newest?).ok()?;
        Some(options)
    }
}

/// `OPERATIONS SECONDS P50 P99` of a client, as JSON.
fn singly(text: &str, used: Duration) -> Option<Value> {
    let numbers = text.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
    let [operations, seconds, p50, p99] = numbers.ok()?[..] else { return None };
    Some(json!({
        "operations_per_second": operations / seconds,
        "server_cpu_us_per_operation": used.as_secs_f64() * 1e6 / operations,
        "p50_us": p50, "p99_us": p99,
    }))
}

/// Runs the generators.
struct Bench {
    options: Options,
    /// The program with the crate smb2.
    clients: PathBuf,
    floor: Floor,
}

impl Bench {
    fn torture(
        &self,
        server: &Server<'_>,
        test: &str,
        messages: Messages,
    ) -> Result<Value, String> {
        let (user, password) = server.login;
        let option = |name: &str, value: u32| format!("--option=torture:{name}={value}");
        let mut command = pinned(CLIENT_CPU, Path::new("chroot"));
        command
            .arg(&self.options.newest)
            .args(["smbtorture", "--format=subunit", "--fullname", "-s", "/dev/null"])
            .args(["-p", &server.port.to_string(), "-U", &format!("{user}%{password}")])
            .arg(option("nprocs", messages.connections))
            .arg(option("qdepth", messages.depth))
            .arg(option("timelimit", self.options.seconds))
            .args([option("io_size", 4096), "--option=torture:progress=no".to_owned()])
            .arg("--option=client min protocol=SMB3_11")
            .arg(format!("--client-protection={}", self.options.protection))
            .args(["//127.0.0.1/vms", &format!("smb2.bench.{test}")]);
        let limit = Duration::from_secs(u64::from(self.options.seconds) + 60);
        let (output, used) = server.cpu_of(|| run(&mut command, limit));
        // What it measured it says on standard error.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        report::of_torture(&text, used)
            .ok_or_else(|| text.lines().filter(|it| !it.starts_with("time:")).collect())
    }

    fn crate_smb2(&self, server: &Server<'_>, what: &str, depth: u32) -> Result<Value, String> {
        let mut command = pinned(CLIENT_CPU, &self.clients);
        command
            .args(["load", &format!("127.0.0.1:{}", server.port), "vms", NAME, what])
            .args([depth.to_string(), self.options.seconds.to_string()])
            .env("SMB_USER", server.login.0)
            .env("SMB_PASSWORD", server.login.1);
        let limit = Duration::from_secs(u64::from(self.options.seconds) + 60);
        let (output, used) = server.cpu_of(|| run(&mut command, limit));
        singly(&String::from_utf8_lossy(&output.stdout), used)
            .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// One load on all servers, in turns, each round beginning with another.
    fn row(&self, load: (&str, Generator, Messages), servers: &[Server<'_>]) -> Row {
        let (name, generator, messages) = load;
        let mut row = Row::new(name);
        for round in 0..self.options.rounds {
            for turn in 0..servers.len() {
                let server = &servers[(round + turn) % servers.len()];
                rustix::fs::sync();
                let result = match generator {
                    Generator::Torture(test) => self.torture(server, test, messages),
                    Generator::Crate(what) => self.crate_smb2(server, what, messages.depth),
                };
                row.add(server.name, result);
            }
            let seconds = f64::from(self.options.seconds).min(2.0);
            row.add(FLOOR, Ok(self.floor.measure(messages, seconds)));
        }
        row
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some(floor::SERVER) => {
            return floor::serve().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        Some(floor::CLIENT) => {
            return floor::client(&words[1..]).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        _ => {}
    }
    let Some(options) = Options::parse(words.into_iter()) else {
        eprintln!(
            "bench-generators --newest FOLDER [--seconds N] [--rounds N] [--only TEXT] [--sign|--plain]"
        );
        return ExitCode::FAILURE;
    };
    match measure(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench-generators: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: Options) -> Result<(), String> {
    let target = ours("bulkhead");
    let target = target.ancestors().nth(2).expect("binaries stand in target/PROFILE");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/rust");
    let clients = field::build_rust_optimised(&source, &target.join("interop/clients/rust"))?;
    // One folder for all: below that of the newest suite, where its Samba sees it too.
    let signing = if options.protection == "sign" { "required" } else { "enabled" };
    let smbd = Smbd::start_in(
        &options.newest.join("tmp"),
        &format!("signing = \"{signing}\"\nthreads = 1"),
        "",
    );
    let files = smbd.files();
    fs::write(files.join(NAME), vec![0x5a; FILE as usize]).map_err(|error| error.to_string())?;
    let samba = |share: &str| Samba::of_system(&options.newest, &files, "", share);
    let (plain, uring) = (samba(""), samba("vfs objects = io_uring"));
    let (Some(plain), Some(uring)) = (plain, uring) else {
        return Err("the folder has no Samba, or this is not root (tests/interop/newest.sh)".into());
    };
    let mut servers = vec![Server {
        name: BULKHEAD,
        pid: smbd.pid(),
        login: (smbd::USER, smbd::PASSWORD),
        port: smbd.port(),
    }];
    for (name, samba) in [("samba", &plain), ("samba io_uring", &uring)] {
        let login = (samba::USER, samba::PASSWORD);
        servers.push(Server { name, pid: samba.pid(), login, port: samba.port() });
    }
    servers.iter().for_each(Server::pin);
    let (floor, clients) = (Floor::start(), clients.join("rust-clients"));
    let bench = Bench { options, clients, floor };
    report::head();
    let mut rows = Vec::new();
    for load in LOADS.into_iter().filter(|(name, ..)| name.contains(&bench.options.only)) {
        let row = bench.row(load, &servers).finish();
        report::show(&row);
        rows.push(row);
    }
    let targets = report::judge(&rows);
    println!("{:<66} {:>10} {:>10}", "target", "measured", "met");
    targets.iter().for_each(|target| println!("{target}"));
    let report = json!({
        "pinning": {"server_cpu": SERVER_CPU, "client_cpu": CLIENT_CPU, "server_threads": 1},
        "protection": bench.options.protection,
        "seconds": bench.options.seconds,
        "rounds": bench.options.rounds,
        "samba": version(&bench.options.newest),
        "rows": rows,
        "targets": targets.iter().map(Target::to_json).collect::<Vec<_>>(),
    });
    let folder = target.join("bench");
    fs::create_dir_all(&folder).expect("target is writable");
    let path = folder.join("generators.json");
    fs::write(&path, format!("{report:#}\n")).expect("target is writable");
    println!("written: {}", path.display());
    Ok(())
}

/// What the Samba in the folder calls itself.
fn version(newest: &Path) -> String {
    let mut command = Command::new("chroot");
    let output = run(command.arg(newest).args(["smbd", "--version"]), Duration::from_secs(30));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The measurements of one server for one load.
type Results = Map<String, Value>;
