//! `smbd`: reads its configuration, starts the server, and answers signals.

use std::{
    fs::File,
    io::{IsTerminal, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use rustix::io::Errno;
use smbd::{
    Beside, Bound, Server,
    config::{Config, ConfigError},
    descriptors, inherit,
    iscsi::{Iscsi, config::IscsiConfig},
    sandbox, supervise,
    witness::{Witness, config::WitnessConfig},
};
use tokio::signal::unix::{SignalKind, signal};

/// SMB 3 file server for virtual-machine disks.
#[derive(Debug, Parser)]
#[command(name = "smbd", version, about)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
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
    let all = match All::load(&args.config) {
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
    let done = match args.supervise {
        true => supervise(&args, &all),
        false => run(args, all),
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
}

impl All {
    fn load(file: &Path) -> Result<Self, ConfigError> {
        let (config, iscsi) = (Config::load(file)?, IscsiConfig::load(file)?);
        Ok(Self { config, iscsi, witness: WitnessConfig::load(file)? })
    }

    fn beside(&self) -> Beside<'_> {
        Beside::new(&self.iscsi, self.witness.as_ref())
    }
}

/// What runs beside the file server.
#[derive(Clone)]
struct Services {
    blocks: Arc<Iscsi>,
    witness: Option<Arc<Witness>>,
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
    runtime.block_on(supervise::run(plan, bound, notify))
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

fn run(args: Args, all: All) -> anyhow::Result<()> {
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
    let All { config, iscsi, witness } = all;
    sandbox::become_user(&config)?;
    let server = Arc::new(Server::new(config.clone())?);
    let mut folders = None;
    if config.sandbox {
        if !sandbox::confine(&config, &iscsi, &args.config)?.folders {
            tracing::info!("the kernel has no Landlock: folders outside the shares stay in reach");
        }
        folders = Some(sandbox::folders(&config, &iscsi));
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.threads {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let state_dir = config.state_dir.clone();
        let _mine = take_state(&state_dir, &line)?;
        let socket = smbd::admin::bind(&state_dir)?;
        // First what was promised to clients of an earlier server: it holds its images.
        server.recover()?;
        let asked = server.clone();
        let users = Box::new(move |path: &Path| smbd::admin::users_of(&asked, path));
        let blocks = Arc::new(Iscsi::new(server.clone(), &state_dir, users));
        blocks.apply(&iscsi).await;
        let portals = blocks.serve(bound.take_iscsi())?;
        let witness = witness.map(|config| Arc::new(Witness::new(server.clone(), config)));
        let (clients, mapper) = bound.take_witness();
        let witnesses = witness.as_ref().map(|it| it.serve(clients, mapper)).transpose()?;
        let services = Services { blocks: blocks.clone(), witness };
        let running = smbd::start_bound(server.clone(), bound.telling_of(blocks.clone()))?;
        for address in running.addresses() {
            tracing::info!(%address, "listening");
        }
        for address in running.rdma_addresses() {
            tracing::info!(%address, "listening for SMB Direct");
        }
        let (file, confined) = (args.config.clone(), folders.clone());
        let upgrader = line.clone();
        let program = smbd::admin::Program {
            reload: Box::new({
                let services = services.clone();
                move |server| reload(&file, confined.as_deref(), server, &services)
            }),
            iscsi: blocks.clone(),
            witness: services.witness.clone(),
            upgrade: Box::new({
                let blocks = blocks.clone();
                move || {
                    upgrader.say("upgrade")?;
                    blocks.is_replaced();
                    Ok(())
                }
            }),
        };
        let admin = tokio::spawn(smbd::admin::serve(server, socket, program));
        notify("READY=1");
        let _ = line.say("ready");
        let beat = line.clone().beat();
        tokio::pin!(beat);
        let mut watchdog = tokio::time::interval(supervise::BEAT);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // Nobody would start another server behind these ports.
                () = &mut beat => break,
                _ = watchdog.tick() => notify("WATCHDOG=1"),
                _ = hangup.recv() => {
                    notify("RELOADING=1");
                    let (file, folders) = (args.config.clone(), folders.clone());
                    let (server, services) = (running.server().clone(), services.clone());
                    let work = move || reload(&file, folders.as_deref(), &server, &services);
                    let done = tokio::task::spawn_blocking(work).await?;
                    if let Err(error) = done {
                        tracing::error!(error, "configuration not reloaded; the old one stays");
                    }
                    notify("READY=1");
                }
            }
        }
        tracing::info!("draining");
        notify("STOPPING=1");
        // Before the state is let go of: who comes next makes its own.
        let _ = std::fs::remove_file(state_dir.join(server_api::SOCKET));
        admin.abort();
        drop((portals, witnesses));
        blocks.stop().await;
        running.drain().await;
        Ok(())
    })
}

/// Takes the new configuration if it is correct; else the old one stays. A server that was
/// confined to `folders` takes no share and no LUN outside of them. On a thread that may wait.
fn reload(
    file: &Path,
    folders: Option<&[PathBuf]>,
    server: &Server,
    services: &Services,
) -> Result<(), String> {
    let All { config, iscsi, witness } = All::load(file).map_err(|error| error.to_string())?;
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
