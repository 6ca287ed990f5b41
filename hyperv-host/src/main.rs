//! `hyperv-host`: the VM host's daemon. Everything it does is in the library; this is its
//! command line, its start and its end.

use std::{
    io::{IsTerminal, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use clap::Parser;
use hyperv_host::{
    api::{self, Interface, Verbs},
    config::Config,
    control,
    fault::{Fault, Faults},
    host::{Host, spawn, usable},
    migrate::{target, verdicts},
    recover::recover,
    schema::{File, schema},
    why, worker,
};

/// The VM host.
#[derive(Debug, Parser)]
#[command(name = "hyperv-host", version, about)]
struct Args {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        required = false,
        required_unless_present = "schema",
        default_value_if("schema", clap::builder::ArgPredicate::IsPresent, "/dev/null")
    )]
    config: PathBuf,
    /// Print the JSON Schema of this host's configuration or of VM files, for editors, and exit.
    #[arg(long, value_name = "FILE")]
    schema: Option<File>,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
    /// Break moves at a point, for tests: POINT=die|drop|stall.
    #[arg(long, hide = true)]
    fault: Vec<Fault>,
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == "worker") {
        return worker::serve::main();
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyperv-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(file) = args.schema {
        println!("{:#}", schema(file));
        return Ok(());
    }
    let config = Config::load(&args.config)?;
    if args.check {
        usable(&config)?;
        api::config(&config, &args.config)?;
        println!("{}: good", args.config.display());
        return Ok(());
    }
    let signals = signals()?;
    let api_config = api::config(&config, &args.config)?;
    let socket = config.host.control_socket.clone();
    let host = Host::open(config, Faults::new(args.fault.clone()))?;
    let listener =
        control::bind(&socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let migration = target::bind(&host).context("cannot listen for other hosts")?;
    recover(&host)?;
    if let Some(migration) = migration {
        let host = host.clone();
        let asking = host.clone();
        spawn("migration/verdicts".into(), move || verdicts::clear(&asking));
        spawn("migration/accept".into(), move || target::serve(&host, &migration));
    }
    let looking = host.clone();
    spawn("why".into(), move || {
        loop {
            looking.look();
            std::thread::sleep(why::EVERY);
        }
    });
    let verbs = Arc::new(Verbs::new(host.clone(), &api_config));
    let interface = api::serve(&verbs, api_config)?;
    spawn("control/accept".into(), move || control::serve(&verbs, &listener));
    let address =
        host.migration_address.get().map_or_else(|| "none".to_owned(), ToString::to_string);
    // Who started it may have gone since, when it takes the place of another.
    let mut out = std::io::stdout();
    let told = writeln!(out, "ready control={} migration={address}", socket.display());
    if let Err(error) = told.and_then(|()| out.flush()) {
        tracing::debug!(%error, "nobody hears that it is ready");
    }
    notify("READY=1");
    loop {
        match signals.wait()? {
            libc::SIGHUP => reload(&args.config, &interface),
            libc::SIGUSR2 => upgrade(&host),
            _ => break,
        }
    }
    notify("STOPPING=1");
    tracing::info!("stopping");
    host.shut_down();
    // A socket that is left behind is replaced by the next start.
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// Takes `[api]` of the file anew; the rest of it needs a restart.
fn reload(path: &Path, interface: &Interface) {
    let read = Config::load(path).map_err(anyhow::Error::from);
    match read.and_then(|config| api::config(&config, path)) {
        Ok(config) => {
            interface.reload(config);
            tracing::info!("the control interface's users and certificate are read again");
        }
        Err(error) => tracing::error!("nothing is read again: {error:#}"),
    }
}

/// Becomes the program that is installed now, which takes up the workers of this one. It does not where
/// that would end a guest or a move; the log says why.
fn upgrade(host: &Host) {
    if let Err(why) = host.may_be_replaced() {
        tracing::error!(why, "the daemon stays as it is");
        return;
    }
    tracing::info!("the daemon starts anew, its workers go on");
    let error = worker::launch::program().map(|program| {
        std::process::Command::new(program).args(std::env::args_os().skip(1)).exec()
    });
    let error = error.unwrap_or_else(|error| error);
    tracing::error!(%error, "the daemon stays as it is");
}

/// SIGTERM, SIGINT, SIGHUP and SIGUSR2, blocked in all threads and waited for in this one.
struct Signals(libc::sigset_t);

#[expect(unsafe_code, reason = "signal masks")]
fn signals() -> anyhow::Result<Signals> {
    // SAFETY: the set is initialised by `sigemptyset` before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGHUP);
        libc::sigaddset(&mut set, libc::SIGUSR2);
        if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            anyhow::bail!("cannot block signals");
        }
        Ok(Signals(set))
    }
}

impl Signals {
    #[expect(unsafe_code, reason = "sigwait")]
    fn wait(&self) -> anyhow::Result<libc::c_int> {
        let mut signal = 0;
        // SAFETY: the set is initialised and the signal number is written by the call.
        let result = unsafe { libc::sigwait(&self.0, &mut signal) };
        anyhow::ensure!(result == 0, "cannot wait for signals");
        Ok(signal)
    }
}

/// Tells a service manager, if there is one.
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Ok(socket) = std::os::unix::net::UnixDatagram::unbound()
        && let Err(error) = socket.send_to(state.as_bytes(), &path)
    {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
