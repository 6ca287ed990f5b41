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
use http_api::ApiConfig;
use rustix::io::Errno;
use smbd::{
    Beside, Bound, Running, Server,
    cluster::{self, Owned},
    config::Config,
    control::{Control, Interface, Sockets, verbs},
    declared::{self, Place},
    descriptors, inherit,
    iscsi::{Iscsi, config::IscsiConfig},
    sandbox,
    scrape::Sources,
    supervise,
    witness::{Witness, config::WitnessConfig},
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
    /// The descriptor of the page that says until when.
    #[arg(long, hide = true, value_name = "NUMBER")]
    gate: Option<i32>,
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
    let mut all = match All::load(&args.config) {
        Ok(all) => all,
        Err(error) => {
            eprintln!("smbd: {error}");
            return ExitCode::from(2);
        }
    };
    if args.check {
        println!("{}: correct", args.config.display());
        return ExitCode::SUCCESS;
    }
    let done = match all.cluster.take() {
        Some(cluster) if args.role.is_some() => serve_role(args, all, cluster),
        // A node supervises the servers of its roles in any case.
        Some(cluster) => node(&args, all.config, cluster),
        None if args.role.is_some() => Err(anyhow::anyhow!("--role needs [cluster]")),
        None if args.supervise => supervise(&args, &all),
        None => run(args, all, None),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smbd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All that the configuration says.
struct All {
    config: Config,
    iscsi: IscsiConfig,
    witness: Option<WitnessConfig>,
    cluster: Option<ClusterConfig>,
    api: ApiConfig,
}

impl All {
    fn load(file: &Path) -> Result<Self, String> {
        let text = declared::whole_text(file)?;
        let config = Config::parse(&text, file).map_err(|error| error.to_string())?;
        let iscsi = IscsiConfig::parse(&text, file).map_err(|error| error.to_string())?;
        let witness = WitnessConfig::load(file).map_err(|error| error.to_string())?;
        let cluster = ClusterConfig::load(file).map_err(|error| error.to_string())?;
        let api = Self::api(file)?;
        if let Some(cluster) = &cluster {
            cluster::check(&config, cluster, !iscsi.listen.is_empty(), witness.is_some())?;
            if !api.listen.is_empty() {
                return Err(
                    "api.listen: the servers of a cluster have local sockets only".to_owned()
                );
            }
        }
        Ok(Self { config, iscsi, witness, cluster, api })
    }

    fn api(file: &Path) -> Result<ApiConfig, String> {
        ApiConfig::load(file).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// What one role of a cluster has.
    fn of_role(file: &Path, cluster: &ClusterConfig, role: &str) -> Result<Self, String> {
        let config = Config::load(file).map_err(|error| error.to_string())?;
        let config = cluster::of_role(config, cluster, role)?;
        let api = Self::api(file)?;
        Ok(Self { config, iscsi: IscsiConfig::default(), witness: None, cluster: None, api })
    }

    fn beside(&self) -> Beside<'_> {
        Beside::new(&self.iscsi, self.witness.as_ref(), &self.api)
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

/// Where objects are declared, but for a server of a cluster.
fn place(
    file: &Path,
    state_dir: &Path,
    folders: Option<&Vec<PathBuf>>,
    of_cluster: bool,
) -> Option<Place> {
    let (file, state_dir) = (file.to_owned(), state_dir.to_owned());
    (!of_cluster).then(|| Place { file, state_dir, folders: folders.cloned() })
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
fn supervise(args: &Args, all: &All) -> anyhow::Result<()> {
    let bound = Bound::with(&all.config, all.beside(), inherit::take().sockets)?;
    let plan = supervise::Plan {
        // By the name it was started by: an upgrade puts another program there.
        program: std::env::args_os().next().map_or_else(|| "smbd".into(), PathBuf::from),
        arguments: vec!["--config".into(), args.config.clone().into()],
        patience: Duration::from_secs(args.watchdog),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stops = supervise::stops_by_signal()?;
        supervise::run(plan, bound, notify, &mut stops).await
    })
}

/// Is a node of a cluster.
fn node(args: &Args, config: Config, cluster: ClusterConfig) -> anyhow::Result<()> {
    let watchdog = Duration::from_secs(args.watchdog);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster::run(config, cluster, args.config.clone(), watchdog, notify))
}

/// Serves a role of a cluster.
fn serve_role(args: Args, all: All, cluster: ClusterConfig) -> anyhow::Result<()> {
    let (Some(role), Some(since), Some(page)) = (args.role.clone(), args.owned_since, args.gate)
    else {
        anyhow::bail!("--role needs --owned-since and --gate");
    };
    let config = cluster::of_role(all.config, &cluster, &role).map_err(anyhow::Error::msg)?;
    let owned = Owned::new(role, since, page, cluster)?;
    run(args, All { config, ..all }, Some(owned))
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

fn run(args: Args, all: All, mut owned: Option<Owned>) -> anyhow::Result<()> {
    // While there is one thread: ports first, then everything that is given up.
    let inherited = inherit::take();
    if let Some(line) = &inherited.supervisor {
        line.set_nonblocking(true)?;
    }
    let line = Line(inherited.supervisor.map(Arc::new));
    descriptors::raise()?;
    descriptors::make_room()?;
    descriptors_for(&all.config);
    let mut bound = Bound::with(&all.config, all.beside(), inherited.sockets)?;
    let All { mut config, iscsi, witness, api, .. } = all;
    config.secrets.extend(api.secrets.iter().cloned());
    sandbox::become_user(&config)?;
    if owned.is_some() {
        // Its node may set addresses.
        sandbox::give_up_capabilities()?;
    }
    let server = Arc::new(Server::new(config.clone())?);
    let mut folders = None;
    if config.sandbox {
        let ports = owned.as_ref().map(Owned::ports).unwrap_or_default();
        if !sandbox::confine(&config, &iscsi, (&args.config, &api.folders), &ports)?.folders {
            tracing::info!("the kernel has no Landlock: folders outside the shares stay in reach");
        }
        folders = Some(sandbox::folders(&config, &iscsi, &api.folders));
    }
    if let Some(owned) = &mut owned {
        owned.obey()?;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.threads {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()?.block_on(async {
        let signals = Signals::new()?;
        let state_dir = config.state_dir.clone();
        let _mine = take_state(&state_dir, &line)?;
        let sockets = Sockets::bind(&state_dir)?;
        // First what was promised to clients of an earlier server: it holds its images.
        match &owned {
            Some(owned) => server.recover_from(owned.open_store().await?),
            None => server.recover()?,
        }
        let asked = server.clone();
        let users = Box::new(move |path: &Path| smbd::admin::users_of(&asked, path));
        let blocks = Arc::new(Iscsi::new(server.clone(), &state_dir, users));
        blocks.apply(&iscsi).await;
        let portals = blocks.serve(bound.take_iscsi())?;
        let witness = witness.map(|config| Arc::new(Witness::new(server.clone(), config)));
        let (clients, mapper) = bound.take_witness();
        let witnesses = witness.as_ref().map(|it| it.serve(clients, mapper)).transpose()?;
        let services =
            Services { blocks: blocks.clone(), witness, interface: Interface::default() };
        let role = owned.map(|owned| (owned.role, owned.cluster));
        let sources = services.sources(role.as_ref());
        let ports = bound.take_api();
        let running = smbd::start_bound(server.clone(), bound.telling_of(sources.clone()))?;
        announce(&running);
        let (file, confined, of) = (args.config.clone(), folders.clone(), role.clone());
        let upgrader = line.clone();
        let program = smbd::admin::Program {
            reload: Box::new({
                let services = services.clone();
                move |server| reload(&file, confined.as_deref(), server, &services, of.as_ref())
            }),
            iscsi: blocks.clone(),
            witness: services.witness.clone(),
            declared: place(&args.config, &state_dir, folders.as_ref(), role.is_some()),
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
            let (file, folders) = (args.config.clone(), folders.clone());
            let (server, services) = (running.server().clone(), services.clone());
            move || reload(&file, folders.as_deref(), &server, &services, role.as_ref())
        };
        attend(signals, &line, Arc::new(again)).await?;
        tracing::info!("draining");
        notify("STOPPING=1");
        // Before the state is let go of: who comes next makes its own.
        control.end();
        drop((portals, witnesses));
        blocks.stop().await;
        running.drain().await;
        Ok(())
    })
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
/// confined to `folders` takes no share and no LUN outside of them. On a thread that may wait.
fn reload(
    file: &Path,
    folders: Option<&[PathBuf]>,
    server: &Server,
    services: &Services,
    role: Option<&(String, ClusterConfig)>,
) -> Result<(), String> {
    let All { config, iscsi, witness, api, .. } = match role {
        None => All::load(file)?,
        // What is a cluster's, a node reads when it starts.
        Some((role, cluster)) => All::of_role(file, cluster, role)?,
    };
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
