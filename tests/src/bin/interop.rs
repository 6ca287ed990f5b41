//! `make interop`: every smbtorture suite that says something about a file server, against smbd.
//!
//! ```text
//!  queue of suites, the longest first ─► workers, each: private smbd ─► smbtorture ─► counts
//!                                                                                      │
//!  target/interop/smbtorture.json (every test)  ◄── table beside Samba's own counts ◄──┘
//! ```
//!
//! Suites mostly sleep, so more run at a time than there are CPUs. Multichannel dials port 445 of
//! every address that the server names, and some suites cut their connections with a packet
//! filter, so these run in network namespaces of their own. The floor
//! is `tests/interop/expected.tsv`, our own counts: fewer passes fail the run, and any other
//! change is named. `--record` writes the counts of this run as the new floor. Names of suites
//! as arguments run just those. `--newest FOLDER` runs the suite of the Debian system in a folder
//! (`tests/interop/newest.sh` makes one), with a floor of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use bulkhead_tests::{
    process::{installed, run},
    smbd::Smbd,
    torture::{Torture, persistent_shares},
    volume::{Kind, Volume},
};
use serde_json::{Value, json};

/// What Samba makes of its own suites.
const SAMBA: &str = include_str!("../../interop/samba-4.17.tsv");
/// Our floor.
const EXPECTED: &str = "interop/expected.tsv";
/// The same for the newest suite there is.
const EXPECTED_NEWEST: &str = "interop/expected-newest.tsv";
/// Suites that run at a time.
const JOBS: usize = 6;
/// Suites that cut connections.
const CUTTING: [&str; 3] = ["smb2.multichannel", "smb2.oplock", "smb2.replay"];
/// The suite of CREATEs that meet a persistent open whose client is away.
const CONTENDED: &str = "smb2.persistent-open-reconnect-contended";
/// What a suite gets if nothing else is said.
const LIMIT: Duration = Duration::from_secs(150);

/// How a suite is run.
struct Suite {
    name: String,
    /// Seconds that Samba takes, to begin with the longest.
    seconds: f64,
}

impl Suite {
    /// How long it may take.
    fn limit(&self) -> Duration {
        // Notify's test of filters sleeps for more than a minute, multichannel waits for many
        // connections in turn, and Samba's own runs of both were cut off.
        let long = ["smb2.notify", "smb2.multichannel"].contains(&self.name.as_str());
        let least = match long {
            // It has 300 cases, and sleeps for seconds in each.
            _ if self.name == CONTENDED => LIMIT * 10,
            // Nobody has said how long it takes.
            _ if self.seconds == 0.0 => LIMIT * 3,
            true => LIMIT * 2,
            false => LIMIT,
        };
        least.max(Duration::from_secs_f64(self.seconds * 1.5))
    }

    /// What stands in the `[server]` table. Some tests send requests that no session signs.
    fn server(&self) -> &'static str {
        match self.name.as_str() {
            "smb2.session-require-signing" => "signing = \"required\"",
            "smb2.read" | "smb2.ioctl" => {
                "signing = \"enabled\"\nencryption = \"offered\"\ntest_controls = true"
            }
            _ => "signing = \"enabled\"\nencryption = \"offered\"",
        }
    }
}

/// Passes, failures and skips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    pass: usize,
    fail: usize,
    skip: usize,
}

impl Counts {
    fn show(self) -> String {
        format!("{}/{}/{}", self.pass, self.fail, self.skip)
    }

    fn add(&mut self, other: Self) {
        self.pass += other.pass;
        self.fail += other.fail;
        self.skip += other.skip;
    }
}

/// Rows of a table: suite, passes, failures, skips, and perhaps seconds.
fn table(text: &str) -> BTreeMap<String, (Counts, f64)> {
    let row = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse().ok();
        let counts = Counts { pass: number()?, fail: number()?, skip: number()? };
        let seconds = fields.next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Some((name, (counts, seconds)))
    };
    text.lines().filter(|line| line.starts_with("smb2.")).filter_map(row).collect()
}

/// Runs one suite against a server of its own, at `address` or wherever, and returns what became of each test.
fn measure(suite: &Suite, address: Option<SocketAddr>, how: &How) -> Option<Value> {
    // Some of these tests apply only where files can share blocks.
    let sharing = ["smb2.ioctl", "smb2.twrp"].contains(&suite.name.as_str());
    let volume = if sharing { Volume::mount(Kind::Xfs) } else { None };
    let files = suite.name.starts_with("smb2.persistent").then(tempfile::tempdir);
    let files = files.transpose().ok()?;
    let shares = files.as_ref().map_or(String::new(), |files| persistent_shares(files.path()));
    let mut server = match (address, &volume) {
        (Some(address), _) => Smbd::start_at(address, suite.server(), ""),
        (None, Some(volume)) => Smbd::start_in(&volume.path(), suite.server(), ""),
        (None, None) => Smbd::start(suite.server(), &shares),
    };
    let torture = match &how.newest {
        Some(root) => Torture::of_system(root)?,
        None => Torture::installed(&server)?,
    };
    // With an address it is alone in its namespace, where it may cut what it likes.
    let options = address.and_then(|_| torture.filter()).unwrap_or_default();
    let mut results =
        torture.attempt(&server, &suite.name, &how.protection, &options, suite.limit());
    if files.is_some() {
        torture.elsewhere(&server, &how.protection, &mut results, LIMIT);
    }
    let alive = server.alive();
    let mut complaints = server.stop();
    if !alive {
        complaints.push("smbd ended".to_owned());
    }
    let mut tests = serde_json::Map::new();
    for (list, what) in
        [(&results.passed, "pass"), (&results.failed, "fail"), (&results.skipped, "skip")]
    {
        for name in list {
            tests.insert(name.clone(), json!(what));
        }
    }
    Some(json!({
        "suite": suite.name,
        "pass": results.passed.len(),
        "fail": results.failed.len(),
        "skip": results.skipped.len(),
        "seconds": results.time.as_secs_f64(),
        "ended": results.ended,
        "complaints": complaints,
        "tests": tests,
        "output": if results.failed.is_empty() { json!(null) } else { json!(results.output) },
    }))
}

/// Runs this program again for one suite, in a network namespace where port 445 is free and the
/// server has two addresses on two links.
fn in_namespace(suite: &Suite, how: &How) -> Option<Value> {
    let me = env::current_exe().ok()?;
    let script = "set -e; ip link set lo up; \
        for n in 1 2; do ip link add \"ve$n\" type veth peer name \"vp$n\"; \
        ip addr add \"192.0.2.$n/32\" dev \"ve$n\"; ip link set \"ve$n\" up; \
        ip link set \"vp$n\" up; done; exec \"$0\" \"$@\"";
    let mut command = Command::new(installed("unshare")?);
    command.args(["-n", "sh", "-c", script]).arg(me);
    command.args(["--inside", &suite.name, "--protection", &how.protection]);
    if let Some(root) = &how.newest {
        command.arg("--newest").arg(root);
    }
    let output = run(&mut command, suite.limit() + Duration::from_secs(30));
    let value = serde_json::from_slice(&output.stdout).ok();
    if value.is_none() {
        eprintln!("{}: {}", suite.name, String::from_utf8_lossy(&output.stderr));
    }
    value
}

fn one(suite: &Suite, how: &How) -> Option<Value> {
    let root = rustix::process::geteuid().is_root();
    match CUTTING.contains(&suite.name.as_str()) {
        true if root => in_namespace(suite, how),
        true if suite.name == "smb2.multichannel" => {
            bulkhead_tests::skip(
                bulkhead_tests::Need::Root
                    .because(format_args!("{} needs root for a network namespace", suite.name)),
            );
            None
        }
        true => {
            bulkhead_tests::skip(
                bulkhead_tests::Need::Root
                    .because(format_args!("what cuts connections in {} needs root", suite.name)),
            );
            measure(suite, None, how)
        }
        false => measure(suite, None, how),
    }
}

fn counts(result: &Value) -> Counts {
    let number = |key: &str| result[key].as_u64().map_or(0, |n| n as usize);
    Counts { pass: number("pass"), fail: number("fail"), skip: number("skip") }
}

/// How all suites are run.
struct How {
    protection: String,
    /// A folder with the system whose suite is run, if not the one that is installed here.
    newest: Option<PathBuf>,
}

/// What was asked for on the command line.
#[derive(Default)]
struct Args {
    record: bool,
    inside: bool,
    jobs: Option<usize>,
    protection: Option<String>,
    newest: Option<PathBuf>,
    suites: Vec<String>,
}

fn arguments() -> Result<Args, String> {
    let mut args = Args::default();
    let mut given = env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut value = || given.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--record" => args.record = true,
            "--inside" => args.inside = true,
            "--jobs" => args.jobs = Some(value()?.parse().map_err(|e| format!("--jobs: {e}"))?),
            "--protection" => args.protection = Some(value()?),
            "--newest" => args.newest = Some(value()?.into()),
            name if name.starts_with("smb2.") => args.suites.push(arg),
            _ => {
                return Err(format!(
                    "what is {arg}? give --record, --jobs N, --protection sign|encrypt|off, --newest FOLDER, or names of suites"
                ));
            }
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match arguments() {
        Ok(args) => args,
        Err(error) => {
            eprintln!("interop: {error}");
            return ExitCode::from(2);
        }
    };
    let protection = args.protection.unwrap_or_else(|| "sign".to_owned());
    let how = How { protection, newest: args.newest };
    let samba = match &how.newest {
        None => table(SAMBA),
        // What there is to run; nothing is known of Samba's own counts.
        Some(root) => match Torture::of_system(root) {
            Some(it) => it.suites().into_iter().map(|name| (name, Default::default())).collect(),
            None => {
                eprintln!("interop: there is no smbtorture in {}", root.display());
                return ExitCode::from(2);
            }
        },
    };
    let wanted = |name: &String| args.suites.is_empty() || args.suites.contains(name);
    let mut suites: Vec<_> = samba
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, (_, seconds))| Suite { name: name.clone(), seconds: *seconds })
        .collect();
    for name in args.suites.iter().filter(|name| !samba.contains_key(*name)) {
        suites.push(Suite { name: name.clone(), seconds: 0.0 });
    }
    if args.inside {
        let Some(suite) = suites.first() else { return ExitCode::from(2) };
        let address = SocketAddr::from(([192, 0, 2, 1], 445));
        let result = measure(suite, Some(address), &how);
        println!("{}", result.unwrap_or(Value::Null));
        return ExitCode::SUCCESS;
    }
    if how.newest.is_none() && installed("smbtorture").is_none() {
        return ExitCode::FAILURE;
    }
    // What is known to be the longest begins first.
    let first = |suite: &Suite| suite.name == CONTENDED;
    suites.sort_by(|a, b| first(b).cmp(&first(a)).then(b.seconds.total_cmp(&a.seconds)));
    let since = Instant::now();
    let results = all(suites, &how, args.jobs.unwrap_or(JOBS));
    let (floor, of, file) = match how.newest {
        None => (EXPECTED, "4.17.12", "smbtorture.json"),
        Some(_) => (EXPECTED_NEWEST, "4.25.1", "smbtorture-newest.json"),
    };
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join(floor);
    let floor = table(&fs::read_to_string(&expected).unwrap_or_default());
    let (totals, findings) = show(&results, &samba, &floor);
    println!("{:.0} s, {}", since.elapsed().as_secs_f64(), how.protection);
    let report = json!({
        "suite": format!("smbtorture {of}"),
        "protection": how.protection,
        "seconds": since.elapsed().as_secs_f64(),
        "totals": {"pass": totals.pass, "fail": totals.fail, "skip": totals.skip},
        "suites": results,
    });
    let folder = target().join("interop");
    let file = folder.join(file);
    let text = format!("{report:#}\n");
    if let Err(error) = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, text)) {
        eprintln!("interop: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    println!("{}", file.display());
    if args.record {
        if let Err(error) = record(&expected, of, floor, &results) {
            eprintln!("interop: {}: {error}", expected.display());
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    for (_, finding) in &findings {
        println!("{finding}");
    }
    if findings.iter().any(|(bad, _)| *bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The folder that cargo builds into.
fn target() -> PathBuf {
    let exe = env::current_exe().unwrap_or_default();
    exe.ancestors().nth(2).map_or_else(|| PathBuf::from("target"), Path::to_owned)
}

/// Runs suites, some at a time, and returns the results by name.
fn all(suites: Vec<Suite>, how: &How, jobs: usize) -> BTreeMap<String, Value> {
    let queue = Mutex::new(VecDeque::from(suites));
    let (done, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || {
                loop {
                    let next = queue.lock().map(|mut queue| queue.pop_front());
                    let Ok(Some(suite)) = next else { return };
                    if let Some(result) = one(&suite, how) {
                        eprintln!("{} {}", suite.name, counts(&result).show());
                        let _ = done.send((suite.name, result));
                    }
                }
            });
        }
        drop(done);
        results.iter().collect()
    })
}

/// Prints the table; returns the sum and what is to be said, the bad marked.
fn show(
    results: &BTreeMap<String, Value>,
    samba: &BTreeMap<String, (Counts, f64)>,
    floor: &BTreeMap<String, (Counts, f64)>,
) -> (Counts, Vec<(bool, String)>) {
    let (mut ours, mut theirs) = (Counts::default(), Counts::default());
    let mut findings = Vec::new();
    println!("{:32} {:>12} {:>12} {:>7}", "suite (pass/fail/skip)", "smbd", "Samba", "s");
    for (name, result) in results {
        let mine = counts(result);
        let peer = samba.get(name).map(|row| row.0).unwrap_or_default();
        ours.add(mine);
        theirs.add(peer);
        let ended = if result["ended"] == true { "" } else { "  cut off" };
        let behind = if mine.pass < peer.pass { "  behind" } else { "" };
        let seconds = result["seconds"].as_f64().unwrap_or(0.0);
        println!("{name:32} {:>12} {:>12} {seconds:7.1}{ended}{behind}", mine.show(), peer.show());
        match floor.get(name) {
            Some((least, _)) if mine.pass < least.pass => {
                findings.push((true, format!("{name}: {} pass, {} did", mine.pass, least.pass)));
            }
            Some((least, _)) if mine != *least => {
                let text = format!("{name}: {} was {}", mine.show(), least.show());
                findings.push((false, format!("{text}; take it with interop --record {name}")));
            }
            _ => {}
        }
        for line in result["complaints"].as_array().into_iter().flatten() {
            findings.push((true, format!("{name}: smbd complained: {line}")));
        }
    }
    println!("{:32} {:>12} {:>12}", "total", ours.show(), theirs.show());
    (ours, findings)
}

/// Writes the counts of this run into the table of our floor.
fn record(
    path: &Path,
    of: &str,
    mut floor: BTreeMap<String, (Counts, f64)>,
    results: &BTreeMap<String, Value>,
) -> std::io::Result<()> {
    floor.extend(results.iter().map(|(name, result)| (name.clone(), (counts(result), 0.0))));
    let mut text = format!(
        "# smbtorture {of} against smbd, signed: what `make interop` expects.\n\
         # Written by `interop --record`.\nsuite\tpass\tfail\tskip\n"
    );
    for (name, (counts, _)) in floor {
        let Counts { pass, fail, skip } = counts;
        text.push_str(&format!("{name}\t{pass}\t{fail}\t{skip}\n"));
    }
    fs::write(path, text)
}
