//! `smbd`: reads its configuration, starts the server, and answers signals.

use std::{
    fs::File,
    io::{IsTerminal, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use ::cluster::config::Config as ClusterConfig;
use clap::Parser;
use rustix::io::Errno;
use smbd::{
    Bound, Running, Server,
    cluster::{self, Owned, Peers, witness::Feed},
    config::Config,
    control::{Control, Interface, Sockets, verbs},
    declared::Place,
    descriptors, inherit,
    iscsi::{Iscsi, config::IscsiConfig},
    observe::Observer,
    parts::{Part, Parts},
    sandbox,
    scrape::Sources,
    supervise,
    witness::Witness,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SMB 3 file server for virtual-machine disks.
#[derive(Debug, Parser)]
#[command(name = "smbd", version, about)]
struct Args {
    /// Configuration file (TOML).
    #[arg(
        long,
        value_name = "FILE",
        required = false,
        required_unless_present = "schema",
        default_value_if("schema", "true", "/dev/null")
    )]
    config: PathBuf,
    /// Print the JSON Schema of the configuration, for editors, and exit.
    #[arg(long)]
    schema: bool,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Keep the ports, start the server, and start it again when it ends.
    #[arg(long)]
    supervise: bool,
    /// With --supervise: kill a server that is silent for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "supervise",
          value_parser = clap::value_parser!(u64).range(1..))]
    watchdog: u64,
    /// Serve one role of a cluster: a node starts its servers like this.
    #[arg(long, hide = true, requires_all = ["owned_since", "gate"])]
    role: Option<String>,
    /// The commit of etcd that made the role this node's.
    #[arg(long, hide = true, value_name = "REVISION")]
    owned_since: Option<i64>,
    /// Files that are missing now are missing everywhere: the role was tried often, or was served here.
    #[arg(long, hide = true)]
    tried: bool,
    /// The descriptor of the page that says until when.
    #[arg(long, hide = true, value_name = "NUMBER")]
    gate: Option<i32>,
    /// Be the witness service of a node of a cluster: a node starts it like this.
    #[arg(long, hide = true, conflicts_with = "role")]
    witness: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SMBD_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if args.schema {
        println!("{:#}", smbd::schema::schema());
        return ExitCode::SUCCESS;
    }
    let mut parts = match Parts::load(&args.config) {
        Ok(parts) => parts,
        Err(error) => {
            eprintln!("smbd: {error}");
            return ExitCode::from(2);
        }
    };
    if args.check {
        println!("{}: correct", args.config.display());
        return ExitCode::SUCCESS;
    }
    let done = match parts.cluster.take() {
        Some(cluster) if args.role.is_some() => serve_role(args, parts, cluster),
        Some(cluster) if args.witness => serve_witness(args, parts, cluster),
        // A node supervises its servers in any case.
        Some(cluster) => node(&args, parts, cluster),
        None if args.role.is_some() => Err(anyhow::anyhow!("--role needs [cluster]")),
        None if args.witness => Err(anyhow::anyhow!("--witness needs [cluster]")),
        None if args.supervise => supervise(&args, &parts),
        None => run(args, parts, Own::default()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smbd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What runs beside the file server.
#[derive(Clone)]
struct Services {
    blocks: Arc<Iscsi>,
    witness: Option<Arc<Witness>>,
    interface: Interface,
}

impl Services {
    /// What the page of metrics tells of.
    fn sources(&self, role: Option<&(String, ClusterConfig)>) -> Arc<Sources> {
        let (targets, witness) = (Some(self.blocks.clone()), self.witness.clone());
        let (role, interface) = (Sources::role(role), self.interface.clone());
        Arc::new(Sources { targets, witness, role, interface })
    }
}

/// Says where clients are awaited.
fn announce(running: &Running) {
    for address in running.addresses() {
        tracing::info!(%address, "listening");
    }
    for address in running.rdma_addresses() {
        tracing::info!(%address, "listening for SMB Direct");
    }
}

/// Keeps the ports and a server behind them.
fn supervise(args: &Args, parts: &Parts) -> anyhow::Result<()> {
    let bound = Bound::with(&parts.config, parts.beside(), inherit::take().sockets)?;
    let plan = supervise::Plan {
        // By the name it was started by: an upgrade puts another program there.
        program: std::env::args_os().next().map_or_else(|| "smbd".into(), PathBuf::from),
        arguments: vec!["--config".into(), args.config.clone().into()],
        again: Vec::new(),
        patience: Duration::from_secs(args.watchdog),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stops = supervise::stops_by_signal()?;
        supervise::run(plan, bound, notify, &mut stops).await
    })
}

/// Is a node of a cluster.
fn node(args: &Args, parts: Parts, cluster: ClusterConfig) -> anyhow::Result<()> {
    let watchdog = Duration::from_secs(args.watchdog);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster::run(parts, cluster, args.config.clone(), watchdog, notify))
}

/// What a process of a cluster's node has of the cluster, if it is one.
#[derive(Default)]
struct Own {
    role: Option<Owned>,
    witness: Option<Feed>,
}

impl Own {
    /// The ports that it connects to.
    fn ports(&self) -> Vec<u16> {
        let role = self.role.as_ref().map(Owned::ports);
        role.or_else(|| self.witness.as_ref().map(Feed::ports)).unwrap_or_default()
    }

    /// Which part of a configuration it serves.
    fn part(&self) -> Part {
        match (&self.role, &self.witness) {
            (Some(role), _) => Part::Role(role.role.clone(), role.cluster.clone()),
            (None, Some(feed)) => Part::Witness(feed.cluster.clone()),
            (None, None) => Part::Whole,
        }
    }

    fn is_of_a_cluster(&self) -> bool {
        self.role.is_some() || self.witness.is_some()
    }
}

/// Serves a role of a cluster.
fn serve_role(args: Args, parts: Parts, cluster: ClusterConfig) -> anyhow::Result<()> {
    let (Some(role), Some(since), Some(page)) = (args.role.clone(), args.owned_since, args.gate)
    else {
        anyhow::bail!("--role needs --owned-since and --gate");
    };
    let owned = Owned::new((role, since, args.tried), page, cluster)?;
    let own = Own { role: Some(owned), ..Own::default() };
    run(args, parts, own)
}

/// Is the witness service of a node.
fn serve_witness(args: Args, parts: Parts, cluster: ClusterConfig) -> anyhow::Result<()> {
    let own = Own { witness: Some(Feed::new(cluster)?), ..Own::default() };
    run(args, parts, own)
}

/// The line to the supervisor, if there is one.
#[derive(Clone, Default)]
struct Line(Option<Arc<UnixStream>>);

impl Line {
    fn say(&self, what: &str) -> Result<(), String> {
        let line = self.0.as_deref().ok_or("smbd was not started with --supervise")?;
        match (&mut &*line).write_all(format!("{what}\n").as_bytes()) {
            // It has not read for long; there is nothing to add to what it finds then.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            other => other.map_err(|error| error.to_string()),
        }
    }

    /// Says again and again that the server is alive; ends when nobody listens any more.
    async fn beat(self) {
        if self.0.is_none() {
            return std::future::pending().await;
        }
        let mut tick = tokio::time::interval(supervise::BEAT);
        while self.say("alive").is_ok() {
            tick.tick().await;
        }
    }
}

/// Takes the state folder for this process, waiting for one that is about to end if a supervisor
/// has arranged that.
fn take_state(folder: &Path, line: &Line) -> anyhow::Result<File> {
    std::fs::create_dir_all(folder)?;
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(folder.join("server.lock"))?;
    use rustix::fs::{FlockOperation, flock};
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) if line.0.is_some() => {
            let _ = line.say("waiting");
            flock(&lock, FlockOperation::LockExclusive)?;
        }
        Err(Errno::WOULDBLOCK) => anyhow::bail!("another server uses {}", folder.display()),
        other => other?,
    }
    Ok(lock)
}

/// Says where the limits of the configuration are more than the process has descriptors for.
fn descriptors_for(config: &Config) {
    let limits = &config.limits;
    for (key, limit, most) in [
        ("limits.connections", limits.connections, descriptors::most_connections()),
        ("limits.opens", limits.opens, descriptors::most_opens()),
    ] {
        if limit > most {
            tracing::info!(
                "{key} = {limit}, but the process may have descriptors for {most} only: raise its \
                 limit (ulimit -Hn, LimitNOFILE= of a service)"
            );
        }
    }
}

fn run(args: Args, parts: Parts, mut own: Own) -> anyhow::Result<()> {
    let part = own.part();
    let mut parts = parts.of(&part).map_err(anyhow::Error::msg)?;
    // While there is one thread: ports first, then everything that is given up.
    let inherited = inherit::take();
    if let Some(line) = &inherited.supervisor {
        line.set_nonblocking(true)?;
    }
    let line = Line(inherited.supervisor.map(Arc::new));
    descriptors::raise()?;
    descriptors::make_room()?;
    descriptors_for(&parts.config);
    let bound = Bound::with(&parts.config, parts.beside(), inherited.sockets)?;
    parts.config.secrets.extend(parts.api.secrets.iter().cloned());
    let Parts { config, iscsi, api, .. } = &parts;
    sandbox::become_user(config)?;
    if own.is_of_a_cluster() {
        // Its node may set addresses.
        sandbox::give_up_capabilities()?;
    }
    let server = Arc::new(Server::new(config.clone())?);
    let mut folders = None;
    if config.sandbox {
        let files = (&*args.config, &*api.folders);
        if !sandbox::confine(config, iscsi, files, &own.ports())?.folders {
            tracing::info!("the kernel has no Landlock: folders outside the shares stay in reach");
        }
        folders = Some(sandbox::folders(config, iscsi, &api.folders));
    }
    if let Some(owned) = &mut own.role {
        owned.obey()?;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.threads {
        builder.worker_threads(threads);
    }
    let confined = Confined { file: args.config, folders, part };
    builder.enable_all().build()?.block_on(serve(server, parts, own, bound, line, confined))
}

/// What a reload keeps to.
struct Confined {
    /// The configuration file.
    file: PathBuf,
    /// The folders that the server was confined to.
    folders: Option<Vec<PathBuf>>,
    /// What of the file it serves.
    part: Part,
}

impl Confined {
    /// Where objects are declared, but for a server of a cluster.
    fn place(&self, state_dir: &Path) -> Option<Place> {
        let Part::Whole = self.part else { return None };
        let (file, state_dir) = (self.file.clone(), state_dir.to_owned());
        Some(Place { file, state_dir, folders: self.folders.clone() })
    }
}

/// Targets of iSCSI beside a file server, with what the store knows of their units.
async fn targets(
    server: &Arc<Server>,
    state_dir: &Path,
    iscsi: &IscsiConfig,
    (role, peers): (Option<&Owned>, Option<&Arc<Peers>>),
) -> anyhow::Result<Arc<Iscsi>> {
    let asked = server.clone();
    let users = Box::new(move |path: &Path| smbd::admin::users_of(&asked, path));
    let presence = peers.cloned().map(|peers| peers as Arc<dyn iscsi::Presence>);
    let blocks = Iscsi::new(server.clone(), state_dir, users, presence);
    Ok(Arc::new(match role {
        Some(role) if !iscsi.targets.is_empty() => blocks.of_role(role.open_units().await?),
        _ => blocks,
    }))
}

/// Serves until a signal says that the server is to end.
async fn serve(
    server: Arc<Server>,
    parts: Parts,
    own: Own,
    mut bound: Bound,
    line: Line,
    confined: Confined,
) -> anyhow::Result<()> {
    let Parts { config, iscsi, witness, api, .. } = parts;
    let signals = Signals::new()?;
    let state_dir = config.state_dir.clone();
    let _mine = take_state(&state_dir, &line)?;
    let sockets = Sockets::bind(&state_dir)?;
    // First what was promised to clients of an earlier server: it holds its images.
    match &own.role {
        Some(owned) => server.take_over(owned.open_store().await?, owned.locks(), !owned.tried)?,
        None => server.recover()?,
    }
    let peers = own.role.as_ref().map(Owned::note_peers);
    let noted = (own.role.as_ref(), peers.as_ref());
    let blocks = targets(&server, &state_dir, &iscsi, noted).await?;
    let portals = blocks.begin(&iscsi, bound.take_iscsi()).await?;
    let witness = witness.map(|config| {
        Arc::new(match &own.witness {
            Some(feed) => Witness::of_node(server.clone(), config, feed),
            None => Witness::new(server.clone(), config),
        })
    });
    let (clients, mapper) = bound.take_witness();
    let witnesses = witness.as_ref().map(|it| it.serve(clients, mapper)).transpose()?;
    let services = Services { blocks: blocks.clone(), witness, interface: Interface::default() };
    let role = own.role.as_ref().map(|owned| (owned.role.clone(), owned.cluster.clone()));
    let sources = services.sources(role.as_ref());
    let ports = bound.take_api();
    let bound = bound.telling_of(sources.clone()).noting(peers);
    let running = smbd::start_bound(server.clone(), bound)?;
    announce(&running);
    let confined = Arc::new(confined);
    let (upgrader, kept) = (line.clone(), confined.clone());
    let observer = {
        let (server, blocks, state_dir) = (server.clone(), blocks.clone(), state_dir.clone());
        let begin = move || Observer::new(server, blocks, &state_dir);
        Arc::new(tokio::task::spawn_blocking(begin).await?)
    };
    let mut looking = tokio::task::JoinSet::new();
    looking.spawn(observer.clone().run());
    let program = smbd::admin::Program {
        observer: observer.clone(),
        reload: Box::new({
            let services = services.clone();
            move |server| reload(&kept, server, &services)
        }),
        iscsi: blocks.clone(),
        witness: services.witness.clone(),
        declared: confined.place(&state_dir),
        changing: Mutex::default(),
        upgrade: Box::new({
            let blocks = blocks.clone();
            move || {
                upgrader.say("upgrade")?;
                blocks.is_replaced();
                Ok(())
            }
        }),
    };
    let verbs = verbs(server, program, sources, &api);
    let control = Control::start(sockets, ports, api, verbs, &services.interface)?;
    notify("READY=1");
    let _ = line.say("ready");
    let again = {
        let (server, services) = (running.server().clone(), services.clone());
        move || reload(&confined, &server, &services)
    };
    attend(signals, &line, Arc::new(again)).await?;
    tracing::info!("draining");
    notify("STOPPING=1");
    // Before the state is let go of: who comes next makes its own.
    control.end();
    drop(looking);
    tokio::task::spawn_blocking(move || observer.end()).await?;
    drop((portals, witnesses));
    blocks.stop().await;
    running.drain().await;
    Ok(())
}

/// What a server is told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Does what signals say, until one says that the server is to end.
async fn attend(
    mut signals: Signals,
    line: &Line,
    reload: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
) -> anyhow::Result<()> {
    let beat = line.clone().beat();
    tokio::pin!(beat);
    let mut watchdog = tokio::time::interval(supervise::BEAT);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            // Nobody would start another server behind these ports.
            () = &mut beat => return Ok(()),
            _ = watchdog.tick() => notify("WATCHDOG=1"),
            _ = signals.hangup.recv() => {
                notify("RELOADING=1");
                let reload = reload.clone();
                if let Err(error) = tokio::task::spawn_blocking(move || reload()).await? {
                    tracing::error!(error, "configuration not reloaded; the old one stays");
                }
                notify("READY=1");
            }
        }
    }
}

/// Takes the new configuration if it is correct; else the old one stays. A server that was
/// confined to folders takes no share and no LUN outside of them. On a thread that may wait.
fn reload(confined: &Confined, server: &Server, services: &Services) -> Result<(), String> {
    let parts = Parts::load(&confined.file)?.of(&confined.part)?;
    let Parts { config, iscsi, witness, api, .. } = parts;
    let folders = confined.folders.as_deref();
    if let Some(what) = folders.and_then(|folders| sandbox::outside(folders, &config, &iscsi)) {
        return Err(format!(
            "{what}: it lies outside of the folders that the server was confined to when it \
             started; restart it"
        ));
    }
    server.reload(config).map_err(|error| error.to_string())?;
    let failures = tokio::runtime::Handle::current().block_on(services.blocks.apply(&iscsi));
    if !failures.is_empty() {
        return Err(failures.join("\n"));
    }
    if let Some(interface) = services.interface.get() {
        interface.reload(api);
    }
    match (&services.witness, witness) {
        (Some(service), Some(config)) => service.apply(config),
        (None, None) => {}
        // Its ports are bound before the server gives up the right to.
        _ => return Err("the witness service begins and ends with the server: restart it".into()),
    }
    tracing::info!("configuration reloaded");
    Ok(())
}

/// Tells the service manager how we are (sd_notify(3)); without one nothing happens.
fn notify(state: &str) {
    use std::os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    };
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> std::io::Result<()> {
        let text = path.to_string_lossy();
        let address = match text.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(error) = send() {
        tracing::warn!(%error, "could not tell the service manager");
    }
}
