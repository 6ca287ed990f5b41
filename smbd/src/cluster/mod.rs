//! A node of a cluster of file servers: what is around the servers of its roles.
//!
//! ```text
//!  etcd ─► cluster::driver ─► Runner ─► role: addresses, ports, `smbd --role NAME` (supervised)
//!             lease ─────────► pages ──────────────► its gate and its timer (page.rs)
//!                            witness ─► `smbd --witness` (supervised), if it is configured
//! ```
//!
//! The node's process parses nothing that a client sends, so it may keep the right to set addresses; each
//! role is served by a process of its own, which gives up everything as a single server does. To end
//! a role is to end its process: with it go its connections, its locks and all it had under way.

mod addresses;
mod announce;
mod page;
mod peers;
mod role;
mod tickle;
pub mod witness;

use std::{
    collections::BTreeMap,
    fs::File,
    os::{
        fd::{OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use cluster::{
    config::Config as ClusterConfig,
    driver::{self, Fencing, Ownership, Reports, Runner},
    engine::Settings,
    record::Run,
};
use rustix::fs::{FlockOperation, flock};
use state_store::{
    Opened,
    etcd::{Client, EtcdStore, Guard},
};
use tokio::{
    process::Command,
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    config::ClusterShare,
    inherit,
    parts::Parts,
    supervise::{self, BEAT, Stop},
};
use page::Page;
pub use peers::Peers;

/// How long a fence agent may take.
const AGENT: Duration = Duration::from_secs(60);
/// How long whoever waits for a commit to etcd waits. The gate is closed long before.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all roles of a node share.
#[derive(Debug)]
struct Node {
    parts: Parts,
    cluster: ClusterConfig,
    client: Arc<Client>,
    /// The configuration file.
    file: PathBuf,
    program: PathBuf,
    watchdog: Duration,
}

/// A role that a server process is asked to serve.
#[derive(Debug)]
pub struct Owned {
    /// Its name.
    pub role: String,
    /// The commit that made it this node's.
    pub since: i64,
    /// This node could not serve it several times in a row, and nobody else has.
    pub tried: bool,
    /// The page that says until when.
    page: Option<OwnedFd>,
    /// The cluster, as it was configured when the process was started.
    pub cluster: ClusterConfig,
    client: Arc<Client>,
}

impl Owned {
    /// A role by what the command line says of it. To be done while the process has one thread and may
    /// read what belongs to etcd.
    ///
    /// # Errors
    /// If there is no such page, or files of etcd cannot be used.
    pub fn new(
        (role, since, tried): (String, i64, bool),
        page: RawFd,
        cluster: ClusterConfig,
    ) -> anyhow::Result<Self> {
        let page = inherit::named(page).context("there is no page of that number")?;
        let client = Client::new(&cluster.etcd).map_err(anyhow::Error::msg)?;
        Ok(Self { role, since, tried, page: Some(page), cluster, client })
    }

    /// Has the process live no longer than its node's lease: begins a thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn obey(&mut self) -> anyhow::Result<()> {
        let page = self.page.take().context("it is obeyed already")?;
        page::obey(page).context("the server cannot be made to end with its node's lease")
    }

    /// The ports of etcd.
    pub fn ports(&self) -> Vec<u16> {
        Client::ports(&self.cluster.etcd)
    }

    /// Opens the state store of the role's shares: whoever had it before commits nothing any more.
    ///
    /// # Errors
    /// If etcd does not answer, or another node has the role meanwhile.
    pub async fn open_store(&self) -> anyhow::Result<Opened> {
        self.open(&self.cluster.keys().store(&self.role)).await
    }

    /// Opens the state store of the role's logical units, as [`Owned::open_store`] does.
    ///
    /// # Errors
    /// As there.
    pub async fn open_units(&self) -> anyhow::Result<Opened> {
        self.open(&self.cluster.keys().units(&self.role)).await
    }

    async fn open(&self, store: &str) -> anyhow::Result<Opened> {
        let key = self.cluster.keys().role(&self.role).into_bytes();
        let guard = Guard { key, revision: self.since };
        let (client, who) = (self.client.clone(), (self.cluster.node, true));
        Ok(EtcdStore::open(client, store, who, Some(guard), PATIENCE).await?)
    }

    /// How long the file system may hold the locks of the node that had the role before.
    pub fn locks(&self) -> Duration {
        self.cluster.roles.get(&self.role).map_or(Duration::ZERO, |role| role.locks)
    }

    /// Notes from now on who is connected, for the node that has the role next.
    pub fn note_peers(&self) -> Arc<Peers> {
        let key = self.cluster.keys();
        let (note, role) = (key.peers(&self.role), key.role(&self.role));
        let peers = Arc::<Peers>::default();
        tokio::spawn(peers::note(peers.clone(), self.client.clone(), note, (role, self.since)));
        peers
    }
}

/// Checks what `[cluster]` and the file server's part say of each other; a text that says what does not
/// go together.
///
/// # Errors
/// That text.
pub fn check(parts: &Parts, cluster: &ClusterConfig) -> Result<(), String> {
    let Parts { config, iscsi, witness, .. } = parts;
    if witness.as_ref().is_some_and(|witness| witness.nodes.len() > 1) {
        return Err(
            "[[witness.node]] and [cluster]: the cluster says which nodes there are; leave \
                    [[witness.node]] out"
                .to_owned(),
        );
    }
    for (listen, key, of_role) in [
        (&config.listen, "server.listen", "listen"),
        (&iscsi.listen, "iscsi.listen", "iscsi_listen"),
    ] {
        if !listen.is_empty() {
            return Err(format!(
                "{key} and [cluster]: each [[cluster.role]] has its own {of_role}"
            ));
        }
    }
    let folded = |share: &String| smb_protocol::ntlm::users::fold(share);
    for (name, role) in &cluster.roles {
        for share in &role.shares {
            match config.shares.get(&folded(share)) {
                None => return Err(format!("cluster.role {name:?}: there is no share {share:?}")),
                Some(share) if share.cluster == Some(ClusterShare::ScaleOut) => {
                    let what = "is of kind scale-out, which no role serves yet";
                    return Err(format!("share {:?} {what}", share.name));
                }
                Some(_) => {}
            }
        }
        for target in &role.targets {
            if !iscsi.targets.iter().any(|known| known.config.name == *target) {
                return Err(format!("cluster.role {name:?}: there is no target {target:?}"));
            }
        }
    }
    let all: Vec<_> = cluster.roles.values().flat_map(|role| &role.shares).map(folded).collect();
    if let Some((_, share)) = config.shares.iter().find(|(folded, _)| !all.contains(folded)) {
        let what = "is in no [[cluster.role]], so nobody would serve it";
        return Err(format!("share {:?} {what}", share.name));
    }
    let all: Vec<_> = cluster.roles.values().flat_map(|role| &role.targets).collect();
    match iscsi.targets.iter().find(|target| !all.contains(&&target.config.name)) {
        Some(target) => Err(format!(
            "target {:?} is in no [[cluster.role]], so nobody would serve it",
            target.config.name
        )),
        None => Ok(()),
    }
}

/// What the server of one role has of a configuration.
///
/// # Errors
/// A text: there is no such role.
pub fn of_role(parts: Parts, cluster: &ClusterConfig, name: &str) -> Result<Parts, String> {
    let role = cluster.roles.get(name).ok_or_else(|| format!("there is no role {name:?}"))?;
    Ok(role::configure(parts, name, role))
}

/// Runs a node until it is told to end by a signal. Its roles go elsewhere then, as far as others
/// take them.
///
/// # Errors
/// If another node runs with the same state folder, or etcd's files cannot be used.
pub async fn run(
    parts: Parts,
    cluster: ClusterConfig,
    file: PathBuf,
    watchdog: Duration,
    notify: impl Fn(&str) + Send + 'static,
) -> anyhow::Result<()> {
    let _mine = take_folder(&parts.config.state_dir)?;
    let attempt = cluster.timing.attempt();
    let etcd = state_store::etcd::Settings { attempt, ..cluster.etcd.clone() };
    let client = Client::new(&etcd).map_err(anyhow::Error::msg)?;
    let settings = Settings {
        reach: parts.witness.as_ref().and_then(witness::reach),
        ..cluster.settings(env!("CARGO_PKG_VERSION"))
    };
    // By the name it was started by: an upgrade puts another program there.
    let program = std::env::args_os().next().map_or_else(|| "smbd".into(), PathBuf::from);
    let mut stops = supervise::stops_by_signal()?;
    let node = Arc::new(Node { parts, cluster, client: client.clone(), file, program, watchdog });
    let witness = match &node.parts.witness {
        Some(_) => {
            let started = witness::Running::start(&node, node.parts.clone());
            Some(started.map_err(anyhow::Error::msg)?)
        }
        None => None,
    };
    let runner = Roles { node, running: BTreeMap::new(), gate: watch::channel(Duration::ZERO).0 };
    notify("READY=1");
    let beat = async {
        let mut tick = tokio::time::interval(BEAT);
        loop {
            tick.tick().await;
            notify("WATCHDOG=1");
        }
    };
    let leave = async {
        stops.recv().await;
    };
    tokio::select! {
        () = driver::run(client, settings, runner, leave) => {}
        () = beat => {}
    }
    notify("STOPPING=1");
    if let Some(witness) = witness {
        witness.stop().await;
    }
    Ok(())
}

/// Takes the state folder for this node.
fn take_folder(folder: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(folder.join("node.lock"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("another node runs with {}", folder.display())
        }
        other => other?,
    }
    Ok(lock)
}

/// A role that runs.
#[derive(Debug)]
struct Running {
    stop: mpsc::UnboundedSender<Stop>,
    page: Page,
}

/// The roles that this node serves.
#[derive(Debug)]
struct Roles {
    node: Arc<Node>,
    running: BTreeMap<String, Running>,
    gate: watch::Sender<Duration>,
}

impl Runner for Roles {
    fn start(&mut self, ownership: Ownership, reports: Reports) {
        let role = ownership.role.clone();
        tracing::info!(role, generation = ownership.generation, "this node's now");
        self.gate.send_replace(ownership.gate);
        let page = match Page::new(ownership.gate) {
            Ok(page) => page,
            Err(error) => {
                reports.failed(&role, format!("it has no memory for the gate: {error}"));
                return;
            }
        };
        let (stop, stops) = mpsc::unbounded_channel();
        self.running.insert(role, Running { stop, page: page.clone() });
        let (node, gate) = (self.node.clone(), self.gate.subscribe());
        tokio::spawn(role::serve(node, ownership, page, gate, stops, reports));
    }

    fn stop(&mut self, role: &str, orderly: bool) {
        let Some(running) = self.running.get(role) else { return };
        tracing::info!(role, orderly, "ends here");
        let how = if orderly { Stop::Orderly } else { Stop::AtOnce };
        // Whoever does not hear has ended.
        let _ = running.stop.send(how);
    }

    fn gate(&mut self, until: Duration) {
        self.gate.send_replace(until);
        for (role, running) in &self.running {
            if let Err(error) = running.page.set(until) {
                tracing::error!(%error, role, "the server was not told of the lease, and will end");
            }
        }
    }

    fn fence(&mut self, run: Run) -> Fencing {
        let command = self.node.cluster.agents.get(&run.node).cloned();
        Box::pin(async move {
            let result = fence(command, run.node).await;
            match &result {
                Ok(()) => tracing::info!(node = run.node, "fenced"),
                Err(why) => tracing::error!(
                    node = run.node,
                    why,
                    "a lost node is not fenced, so nothing is taken over from it"
                ),
            }
            result
        })
    }

    fn standing(&mut self, why_alone: Option<&str>) {
        match why_alone {
            None => tracing::info!(node = self.node.cluster.node, "a member of the cluster"),
            Some("") => {}
            Some(why) => tracing::info!(node = self.node.cluster.node, why, "no member now"),
        }
    }
}

/// Has a command end a node: its exit code 0 says that the node can do nothing any more.
async fn fence(command: Option<Vec<String>>, node: u16) -> Result<(), String> {
    let command =
        command.ok_or_else(|| format!("there is no [[cluster.fence_agent]] of node {node}"))?;
    let (program, arguments) = command.split_first().ok_or("the command is empty")?;
    let mut process = Command::new(program);
    process.args(arguments).env("BULKHEAD_FENCED_NODE", node.to_string());
    process.stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(AGENT, process.output()).await {
        Ok(output) => output.map_err(|error| format!("{program}: {error}"))?,
        Err(_) => return Err(format!("{program} did not end within {AGENT:?}")),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{program}: {}: {said}", output.status))
}
