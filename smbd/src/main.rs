//! `smbd`: reads its configuration, starts the server, and answers signals.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use smbd::{Bound, Server, config::Config, sandbox};
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
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SMBD_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("smbd: {error}");
            return ExitCode::from(2);
        }
    };
    if args.check {
        println!("{}: correct", args.config.display());
        return ExitCode::SUCCESS;
    }
    match run(args, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smbd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args, config: Config) -> anyhow::Result<()> {
    // While there is one thread: ports first, then everything that is given up.
    let bound = Bound::new(&config)?;
    sandbox::become_user(&config)?;
    let server = Arc::new(Server::new(config.clone())?);
    let mut folders = None;
    if config.sandbox {
        if !sandbox::confine(&config, &args.config)?.folders {
            tracing::info!("the kernel has no Landlock: folders outside the shares stay in reach");
        }
        folders = Some(sandbox::folders(&config));
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
        let socket = smbd::admin::bind(&state_dir)?;
        let running = smbd::start_bound(server.clone(), bound)?;
        for address in running.addresses() {
            tracing::info!(%address, "listening");
        }
        let (file, confined) = (args.config.clone(), folders.clone());
        let again = Box::new(move |server: &Server| reload(&file, confined.as_deref(), server));
        let admin = tokio::spawn(smbd::admin::serve(server, socket, again));
        notify("READY=1");
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    notify("RELOADING=1");
                    let done = reload(&args.config, folders.as_deref(), running.server());
                    if let Err(error) = done {
                        tracing::error!(error, "configuration not reloaded; the old one stays");
                    }
                    notify("READY=1");
                }
            }
        }
        tracing::info!("draining");
        notify("STOPPING=1");
        admin.abort();
        running.drain().await;
        let _ = std::fs::remove_file(state_dir.join(server_api::SOCKET));
        Ok(())
    })
}

/// Takes the new configuration if it is correct; else the old one stays. A server that was
/// confined to `folders` takes no share outside of them.
fn reload(file: &Path, folders: Option<&[PathBuf]>, server: &Server) -> Result<(), String> {
    let config = Config::load(file).map_err(|error| error.to_string())?;
    if let Some(share) = folders.and_then(|folders| sandbox::outside(folders, &config)) {
        return Err(format!(
            "share {share}: its folder lies outside of those that the server was confined to when \
             it started; restart it"
        ));
    }
    server.reload(config).map_err(|error| error.to_string())?;
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
