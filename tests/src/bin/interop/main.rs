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
//! (`tests/interop/newest.sh` makes one), with a floor of its own; `--beside` has Samba's server of that
//! folder tried in the same run. `--protection`, `--available`, `--two-channels`, `--rdma` and `--files`
//! change what the suites run on; each such run has a floor of its own, once one was recorded.

mod beside;
mod tables;

use std::{
    collections::{BTreeMap, VecDeque},
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, mpsc},
    thread,
    time::Instant,
};

use bulkhead_tests::{
    bridge::{Bridge, Bridged},
    kdc::Kdc,
    port::Port,
    process::{installed, run},
    smbd::{PASSWORD, Smbd, USER, USER2},
    torture::{Results, Served, Torture, persistent_shares},
    volume::{Kind, Volume},
};
use serde_json::{Value, json};
use tables::{CONTENDED, LIMIT, Suite, counts, record, show, table};

/// What Samba makes of its own suites.
const SAMBA: &str = include_str!("../../../interop/samba-4.17.tsv");
/// The same of the newest ones, as a run beside it has shown.
const SAMBA_NEWEST: &str = include_str!("../../../interop/samba-4.25.tsv");
/// Our floors are there; the suite of Debian's release has `expected.tsv`.
const FLOORS: &str = "interop/expected";
/// Suites that run at a time.
const JOBS: usize = 6;
/// Suites that cut connections.
const CUTTING: [&str; 3] = ["smb2.multichannel", "smb2.oplock", "smb2.replay"];
/// The suite that tries tickets that end, and algorithms that sign; what tickets are encrypted with.
const SESSIONS: &str = "smb2.session";
const TICKETS_ETYPE: &str = "aes256-cts-hmac-sha1-96";
/// Suites of which some tests apply only where files can share blocks.
const SHARING: [&str; 2] = ["smb2.ioctl", "smb2.twrp"];
/// The continuously available share over the files of the usual one.
const AVAILABLE: &str = "available";

/// Runs one suite against a server of its own, at `address` or wherever, and returns what became of each test.
fn measure(suite: &Suite, address: Option<SocketAddr>, how: &How) -> Option<Value> {
    let kind = how.files.or_else(|| SHARING.contains(&suite.name.as_str()).then_some(Kind::Xfs));
    let volume = kind.and_then(Volume::mount);
    if how.files.is_some() && volume.is_none() {
        return None;
    }
    let base = volume.as_ref().map_or_else(env::temp_dir, Volume::path);
    let files = suite.name.starts_with("smb2.persistent").then(|| tempfile::tempdir_in(&base));
    let files = files.transpose().ok()?;
    let mut shares = files.as_ref().map_or(String::new(), |files| persistent_shares(files.path()));
    if how.available {
        shares += &format!(
            "[[share]]\nname = \"{AVAILABLE}\"\npath = \"files\"\nusers = [\"{USER}\", \"{USER2}\"]\n\
             continuously_available = true\n"
        );
    }
    let kdc = (suite.name == SESSIONS).then(|| Kdc::start(TICKETS_ETYPE)).flatten();
    let kdc = kdc.filter(|_| rustix::process::geteuid().is_root());
    let keys = tempfile::tempdir().ok()?;
    if let Some(kdc) = &kdc {
        kdc.admin(&format!("addprinc -pw {PASSWORD} {USER}"));
        let keytab = keys.path().join("keytab");
        kdc.keytab(&keytab);
        shares += &format!("[kerberos]\nkeytab = \"{}\"\n", keytab.display());
    }
    let direct = how.rdma.then(Port::reserve);
    let listens = |port: &Port| format!("\nrdma_listen = [\"{}\"]", port.address());
    let settings = suite.server().to_owned() + &direct.as_ref().map_or_else(String::new, listens);
    // A bridge has the address in place of the server.
    let mut server = match address.filter(|_| !how.rdma) {
        Some(address) => Smbd::start_at_in(address, &base, &settings, &shares),
        None => Smbd::start_in(&base, &settings, &shares),
    };
    let bridge = direct.as_ref().map(|direct| {
        let anywhere = address.map_or(0, |address| address.port());
        let at = address.map_or([127, 0, 0, 1], |_| [0; 4]);
        Bridge::start((at, anywhere).into(), direct.address())
    });
    let bridge = bridge.transpose().ok()?;
    let torture = match &how.newest {
        Some(root) => Torture::of_system(root)?,
        None => Torture::installed(&server)?,
    };
    let torture = if how.available { torture.on_share(AVAILABLE) } else { torture };
    // With an address it is alone in its namespace, where it may cut what it likes.
    let options = address.and_then(|_| torture.filter()).unwrap_or_default();
    let bridged = bridge
        .as_ref()
        .map(|bridge| Bridged { server: &server, at: address.unwrap_or_else(|| bridge.address()) });
    let served = bridged.as_ref().map_or(&server as &dyn Served, |bridged| bridged);
    let mut results =
        torture.attempt(served, &suite.name, &how.protection, &options, suite.limit());
    if files.is_some() {
        torture.elsewhere(served, &how.protection, &mut results, LIMIT);
    }
    if let Some(kdc) = &kdc {
        torture.with_tickets(served, kdc, &how.protection, &mut results);
    }
    if suite.name == SESSIONS {
        torture.binding_with_gmac(served, &how.protection, &mut results);
    }
    drop(bridge);
    let alive = server.alive();
    let mut complaints = server.stop();
    if suite.name == SESSIONS {
        let mut plain = Smbd::start(&format!("{}\nmultichannel = false", suite.server()), &shares);
        torture.without_channels(&plain, &how.protection, &mut results);
        complaints.extend(plain.stop());
    }
    if !alive {
        complaints.push("smbd ended".to_owned());
    }
    drop((server, files));
    let mut report = report(suite, &results);
    report["complaints"] = json!(complaints);
    if let Some(root) = how.newest.as_ref().filter(|_| how.beside) {
        let samba = beside::Samba::start(root, address)?;
        let mut peer =
            torture.attempt(&samba, &suite.name, &how.protection, &options, suite.limit());
        if suite.name.starts_with("smb2.persistent") {
            torture.elsewhere(&samba, &how.protection, &mut peer, LIMIT);
        }
        report["samba"] = self::report(suite, &peer);
    }
    Some(report)
}

/// What became of a suite and of each of its tests.
fn report(suite: &Suite, results: &Results) -> Value {
    let mut tests = serde_json::Map::new();
    for (list, what) in
        [(&results.passed, "pass"), (&results.failed, "fail"), (&results.skipped, "skip")]
    {
        for name in list {
            tests.insert(name.clone(), json!(what));
        }
    }
    json!({
        "suite": suite.name,
        "pass": results.passed.len(),
        "fail": results.failed.len(),
        "skip": results.skipped.len(),
        "seconds": results.time.as_secs_f64(),
        "ended": results.ended,
        "tests": tests,
        "output": if results.failed.is_empty() { json!(null) } else { json!(results.output) },
    })
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
    command.args(["--inside", &suite.name]).args(how.arguments());
    // Against Samba, and perhaps what is tried elsewhere, too.
    let output = run(&mut command, suite.limit() * 2 + LIMIT);
    let value = serde_json::from_slice(&output.stdout).ok();
    if value.is_none() {
        eprintln!("{}: {}", suite.name, String::from_utf8_lossy(&output.stderr));
    }
    value
}

fn one(suite: &Suite, how: &How) -> Option<Value> {
    let root = rustix::process::geteuid().is_root();
    match how.two_channels || CUTTING.contains(&suite.name.as_str()) {
        true if root => in_namespace(suite, how),
        true if how.two_channels || suite.name == "smb2.multichannel" => {
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

/// How all suites are run.
#[derive(Debug, Clone)]
struct How {
    protection: String,
    /// A folder with the system whose suite is run, if not the one that is installed here.
    newest: Option<PathBuf>,
    /// The file system that the share is on, if not that of the folder for temporary files.
    files: Option<Kind>,
    /// The share is continuously available.
    available: bool,
    /// The server has two addresses in every suite.
    two_channels: bool,
    /// Messages go by SMB Direct, over a bridge.
    rdma: bool,
    /// Samba's own server is tried beside smbd.
    beside: bool,
}

impl How {
    /// As it stands on the command line.
    fn arguments(&self) -> Vec<String> {
        let mut given = vec!["--protection".to_owned(), self.protection.clone()];
        if let Some(root) = &self.newest {
            given.extend(["--newest".to_owned(), root.display().to_string()]);
        }
        if let Some(kind) = self.files {
            given.extend(["--files".to_owned(), format!("{kind:?}").to_lowercase()]);
        }
        for (set, flag) in [
            (self.available, "--available"),
            (self.two_channels, "--two-channels"),
            (self.rdma, "--rdma"),
            (self.beside, "--beside"),
        ] {
            if set {
                given.push(flag.to_owned());
            }
        }
        given
    }

    /// What tells this run from the usual one, as names of files have it.
    fn variant(&self) -> String {
        let mut words = String::new();
        if self.newest.is_some() {
            words.push_str("-newest");
        }
        if self.protection != "sign" {
            words.push_str(&format!("-{}", self.protection));
        }
        if let Some(kind) = self.files {
            words.push_str(&format!("-{kind:?}").to_lowercase());
        }
        for (set, word) in [
            (self.available, "-available"),
            (self.two_channels, "-two-channels"),
            (self.rdma, "-rdma"),
        ] {
            if set {
                words.push_str(word);
            }
        }
        words
    }
}

/// What was asked for on the command line.
struct Args {
    record: bool,
    inside: bool,
    jobs: Option<usize>,
    how: How,
    suites: Vec<String>,
}

const USAGE: &str = "give --record, --jobs N, --protection sign|encrypt|off, --newest FOLDER, \
    --files ext4|xfs|btrfs, --available, --two-channels, --rdma, --beside, or names of suites";

fn arguments() -> Result<Args, String> {
    let how = How {
        protection: "sign".to_owned(),
        newest: None,
        files: None,
        available: false,
        two_channels: false,
        rdma: false,
        beside: false,
    };
    let mut args = Args { record: false, inside: false, jobs: None, how, suites: Vec::new() };
    let mut given = env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut value = || given.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--record" => args.record = true,
            "--inside" => args.inside = true,
            "--available" => args.how.available = true,
            "--two-channels" => args.how.two_channels = true,
            "--rdma" => args.how.rdma = true,
            "--beside" => args.how.beside = true,
            "--jobs" => args.jobs = Some(value()?.parse().map_err(|e| format!("--jobs: {e}"))?),
            "--protection" => args.how.protection = value()?,
            "--newest" => args.how.newest = Some(value()?.into()),
            "--files" => {
                args.how.files = Some(match value()?.as_str() {
                    "ext4" => Kind::Ext4,
                    "xfs" => Kind::Xfs,
                    "btrfs" => Kind::Btrfs,
                    other => return Err(format!("no file system {other}: {USAGE}")),
                });
            }
            name if name.starts_with("smb2.") => args.suites.push(arg),
            _ => return Err(format!("what is {arg}? {USAGE}")),
        }
    }
    if args.how.beside && args.how.newest.is_none() {
        return Err("--beside runs the server of the system that --newest names".to_owned());
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
    let how = args.how;
    let beside = how.beside;
    let samba = match &how.newest {
        None => table(SAMBA),
        Some(root) => match Torture::of_system(root) {
            Some(it) => {
                let known = table(SAMBA_NEWEST);
                let row =
                    |name: String| (name.clone(), known.get(&name).copied().unwrap_or_default());
                it.suites().into_iter().map(row).collect()
            }
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
    let of = if how.newest.is_some() { "4.25.1" } else { "4.17.12" };
    let floor = format!("{FLOORS}{}.tsv", how.variant());
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join(floor);
    let floor = table(&fs::read_to_string(&expected).unwrap_or_default());
    let file = format!("smbtorture{}.json", how.variant());
    let (totals, findings) = show(&results, &samba, &floor);
    println!("{:.0} s, {}", since.elapsed().as_secs_f64(), how.arguments().join(" "));
    let report = json!({
        "suite": format!("smbtorture {of}"),
        "how": how.arguments(),
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
        let how = how.variant().replace('-', " ");
        let comment = format!(
            "smbtorture {of} against smbd{how}: what is expected.\n# Written by `interop --record`."
        );
        let samba = format!(
            "smbtorture {of} against its own server; `interop --beside --record` writes what a run shows."
        );
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/samba-4.25.tsv");
        let written = record(&expected, &comment, &results, false).and_then(|()| match beside {
            true => record(&peers, &samba, &results, true),
            false => Ok(()),
        });
        if let Err(error) = written {
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
