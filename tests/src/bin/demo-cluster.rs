//! `make demo-cluster`: clients write on while the node that serves them is killed, frozen, cut off,
//! drained, upgraded, and told to give their share away.
//!
//! Three nodes in networks of their own, etcd with three members, GlusterFS with a brick on each node or
//! CephFS beside them.
//! Two clients with persistent handles, one of which has a witness, write numbered blocks and see no error, and
//! so do two guests of VM hosts whose disks are on that share; at the end every block that was acknowledged is there. How long they waited at each event is printed, and written as JSON. All of it
//! is in processes, mounts and a folder of its own, which are gone afterwards.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_tests::cluster::{
    FLOATING, Networks, Nodes, Setup, WITNESS,
    faults::Fault,
    guest::{self, Guest},
    network::Named,
    volumes,
    writer::{Writer, options},
};

/// Set where networks, mounts and processes are our own.
const INSIDE: &str = "BULKHEAD_DEMO_CLUSTER";
const NODES: usize = 3;
/// What is shown; each happens as often as the first argument says.
const SHOWN: [Fault; 9] = [
    Fault::Moved,
    Fault::Drained,
    Fault::Upgraded,
    Fault::ServerKilled,
    Fault::NodeKilled,
    Fault::Frozen,
    Fault::CutOff,
    Fault::Deaf,
    Fault::Mute,
];

/// The clients: what each is called, and its file.
const CLIENTS: [(&str, &str); 2] = [("alone", "first"), ("with a witness", "second")];
/// The guests: what each is called, and the name by which its host knows the cluster, which has witnesses
/// then; by its address without one.
const GUESTS: [(&str, Option<&str>); 2] = [("guest", None), ("guest, witness", Some(NAME))];
/// The cluster's name for clients that have a witness.
const NAME: &str = "files";

/// When clients wait: at a fault, or when all nodes are there again and the volume is made whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    Fault(Fault),
    Mended,
}

impl When {
    fn name(self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.name(),
            Self::Mended => "mended",
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::Mended => f.write_str("all of it is mended"),
        }
    }
}

/// What a client waited at one kind of event.
type Pauses = BTreeMap<(When, &'static str), Vec<Duration>>;

fn tell(since: Instant, text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "[{:7.3} s] {text}", since.elapsed().as_secs_f64());
}

fn milliseconds(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
}

/// The pause that so many of a hundred do not exceed.
fn at(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((sorted.len() * percent / 100).min(last)).copied().unwrap_or_default()
}

fn report(pauses: &mut Pauses, blocks: u64, volume: &str, path: &Path) {
    let head = ["WHAT HAPPENS", "CLIENT", "PAUSES", "MEDIAN", "LONGEST"];
    println!("\n{:34} {:14} {:>6} {:>9} {:>9}", head[0], head[1], head[2], head[3], head[4]);
    let mut all = Vec::new();
    for ((when, client), pauses) in pauses {
        pauses.sort_unstable();
        let (median, longest) = (milliseconds(at(pauses, 50)), milliseconds(at(pauses, 100)));
        let (what, count) = (when.to_string(), pauses.len());
        println!("{what:34} {client:14} {count:>6} {median:>6} ms {longest:>6} ms");
        let list: Vec<u64> = pauses.iter().map(|pause| milliseconds(*pause)).collect();
        all.push(serde_json::json!({
            "event": when.name(), "client": client, "pauses_ms": list,
        }));
    }
    println!("\n{blocks} blocks were acknowledged, and are there; no client has seen an error.");
    let json = serde_json::json!({
        "volume": volume, "nodes": NODES, "blocks": blocks, "errors": 0, "pauses": all,
    });
    let written = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = written.and_then(|()| fs::write(path, format!("{json:#}\n")));
    match written {
        Ok(()) => println!("{}", path.display()),
        Err(error) => println!("{}: {error}", path.display()),
    }
}

/// A folder for each guest and its host.
fn folders(folder: &Path) -> impl Iterator<Item = PathBuf> {
    (1..=GUESTS.len()).map(move |n| folder.join(format!("guest-{n}")))
}

/// Starts the guests, where this machine has KVM; none elsewhere, and it says so.
fn start_guests(folder: &Path) -> Result<Vec<Guest>, String> {
    if !Path::new("/dev/kvm").exists() {
        println!("There is no /dev/kvm here, so there are no guests.");
        return Ok(Vec::new());
    }
    let address = FLOATING.to_string();
    guest::name(NAME, &address, folder);
    let start = |((_, name), folder): (&(&str, Option<&str>), PathBuf)| {
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let host = if name.is_some() { "host-2" } else { "host-1" };
        Guest::start(host, name.unwrap_or(&address), &folder)
    };
    GUESTS.iter().zip(folders(folder)).map(start).collect()
}

/// Waits until all go on, and notes how long each has waited since this was called last; the longest.
async fn waited(
    writers: &[Writer],
    guests: &mut [Guest],
    pauses: &mut Pauses,
    when: When,
) -> Result<Duration, String> {
    let mut waited = Vec::new();
    for writer in writers {
        writer.goes_on().await;
        waited.push(writer.longest_pause());
    }
    for guest in guests {
        waited.push(guest.goes_on()?);
    }
    let names = CLIENTS.iter().map(|(name, _)| *name).chain(GUESTS.iter().map(|(name, _)| *name));
    for (client, waited) in names.zip(&waited) {
        pauses.entry((when, client)).or_default().push(*waited);
    }
    Ok(waited.into_iter().max().unwrap_or_default())
}

async fn show(rounds: usize, json: &Path, volume: &str) -> Result<(), String> {
    let since = Instant::now();
    let folder = tempfile::Builder::new().prefix("demo-cluster").tempdir();
    let folder = folder.map_err(|error| format!("no folder: {error}"))?;
    let networks = Networks::new(NODES);
    let mut shared = volumes::start(volume, &networks, NODES, folder.path());
    let volume = shared.as_ref().map_or("one folder of this machine", |volume| volume.name());
    let files: Vec<PathBuf> =
        shared.iter().flat_map(|it| (0..NODES).map(|at| it.mounted(at))).collect();
    let fence = shared.as_ref().map_or("fence = \"gate\"\n".to_owned(), |volume| volume.fence());
    tell(since, &format!("the volume is {volume}"));
    let setup = Setup {
        nodes: NODES,
        members: 3,
        lease: 3,
        networks: true,
        files: files.clone(),
        fence: format!("silence_milliseconds = 700\n{fence}"),
        more: WITNESS.to_owned(),
        ..Setup::default()
    };
    let mut nodes = Nodes::start_in(&setup, networks).ok_or("etcd is not installed")?;
    let mounted = files.first().cloned().unwrap_or_else(|| nodes.files());
    nodes.wait_until_served(0);
    nodes.wait_for_members(NODES);
    let mut writers = Vec::new();
    for (client, name) in CLIENTS {
        let mut options = options(&nodes);
        if client == "with a witness" {
            options.host = NAME.to_owned();
            options.network = Some(Arc::new(Named { name: NAME, address: FLOATING.into() }));
        }
        writers.push(Writer::start(options, name).await);
    }
    for writer in &writers {
        writer.goes_on().await;
    }
    let mut guests = start_guests(folder.path())?;
    tell(since, &format!("two clients and {} guests write", guests.len()));
    let mut pauses = Pauses::new();
    waited(&writers, &mut guests, &mut Pauses::new(), When::Mended).await?;
    for round in 1..=rounds {
        for fault in SHOWN {
            let broken = nodes.suffer(fault);
            nodes.wait_over(&broken);
            let longest = waited(&writers, &mut guests, &mut pauses, When::Fault(fault)).await?;
            tell(since, &format!("{round}: {fault}; {} ms", milliseconds(longest)));
            nodes.undo(&broken);
            if let Some(volume) = &mut shared {
                volume.make_whole(&nodes.networks);
            }
            nodes.bring_back(broken);
            waited(&writers, &mut guests, &mut pauses, When::Mended).await?;
        }
    }
    let mut blocks = 0;
    for (guest, folder) in guests.into_iter().zip(folders(folder.path())) {
        blocks += guest.end(&folder)?;
    }
    for writer in writers {
        blocks += writer.end(&mounted).await;
    }
    report(&mut pauses, blocks, volume, json);
    drop((nodes, shared));
    Ok(())
}

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("demo-cluster: networks and mounts of one's own need root");
        return ExitCode::FAILURE;
    }
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(2);
    let json = arguments.next().unwrap_or_else(|| "target/demo-cluster.json".to_owned());
    let volume = arguments.next().unwrap_or_else(|| "glusterfs".to_owned());
    if std::env::var_os(INSIDE).is_none() {
        // With the first process of this namespace all others of it end.
        let ourselves = std::env::current_exe().expect("a running program has a path");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(ourselves).arg(rounds.to_string()).arg(json).arg(volume);
        let error = command.env(INSIDE, "1").exec();
        eprintln!("demo-cluster: unshare: {error}");
        return ExitCode::FAILURE;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        eprintln!("demo-cluster: no loopback in the new network");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.expect("threads can be had").block_on(show(rounds, Path::new(&json), &volume)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("demo-cluster: {why}");
            ExitCode::FAILURE
        }
    }
}
