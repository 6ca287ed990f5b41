//! The worker's side: one process that has one machine, its disks and its devices, and does what its
//! daemon asks. It goes on when that is gone.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use kvm_ioctls::Kvm;
use tokio::runtime::Runtime;
use vmm::{
    DRAIN_LIMIT, DiskShape, Vm,
    platform::{bus::lock, error::chain},
};

use super::{
    link, look,
    protocol::{Reply, Request, Shape, VERSION},
};
use crate::disks::{self, Run};

/// How long a worker without a machine waits for its daemon.
const UNBUILT: Duration = Duration::from_secs(300);
/// Connections that a daemon may have at a time.
const CONNECTIONS: usize = 256;
/// Pause after a connection could not be served: what is short is not there sooner for asking again at once.
const SHORT_OF: Duration = Duration::from_millis(50);
/// Longest time that a question waits for something to happen.
const WAITS: u64 = 60_000;

/// The machine of this process.
struct Built {
    vm: Vm,
    runtime: Runtime,
    patience: Duration,
}

/// What this process has.
#[derive(Default)]
struct Worker {
    built: OnceLock<Built>,
    building: AtomicBool,
    runs: AtomicBool,
    open: AtomicUsize,
}

/// The worker's program: it listens at its standard input until it is told to end.
pub fn main() -> ExitCode {
    // Who reads the log may be gone before the guest is.
    let log = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(io::stderr);
    log.init();
    match serve() {
        Ok(never) => match never {},
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "worker");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<std::convert::Infallible> {
    let socket = io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    // From now on who connects sees this process's number.
    rustix::net::listen(&socket, 64).context("a worker is started by hyperv-host alone")?;
    let worker = Arc::new(Worker::default());
    let waiting = worker.clone();
    thread::Builder::new().name("unbuilt".into()).spawn(move || {
        thread::sleep(UNBUILT);
        if !waiting.building.load(Ordering::Acquire) {
            std::process::exit(1);
        }
    })?;
    let listener = UnixListener::from(socket);
    loop {
        // The guest goes on whatever becomes of a connection.
        if let Err(error) = serve_next(&worker, &listener) {
            tracing::warn!(%error, "a connection of the daemon is not served");
            thread::sleep(SHORT_OF);
        }
    }
}

/// A connection's place among those that are open.
struct Place(Arc<Worker>);

impl Place {
    fn take(worker: &Arc<Worker>) -> Option<Self> {
        let free = |open| (open < CONNECTIONS).then_some(open + 1);
        worker.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(Self(worker.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Takes the next connection, and answers on a thread of its own what comes by it.
fn serve_next(worker: &Arc<Worker>, listener: &UnixListener) -> io::Result<()> {
    let (connection, _) = listener.accept()?;
    let peer = rustix::net::sockopt::socket_peercred(&connection)?;
    if peer.uid != rustix::process::getuid() {
        return Ok(());
    }
    let Some(place) = Place::take(worker) else { return Ok(()) };
    thread::Builder::new().name("daemon".into()).spawn(move || {
        if let Err(error) = answer(&place.0, &connection) {
            tracing::debug!(%error, "a connection of the daemon");
        }
    })?;
    Ok(())
}

/// Answers the questions that come by a connection until its end. A daemon that is gone before its
/// machine was let run does not come back for it.
fn answer(worker: &Arc<Worker>, connection: &UnixStream) -> io::Result<()> {
    while let Some((request, files)) = link::receive(connection)? {
        let quits = matches!(request, Request::Quit);
        let builds = matches!(request, Request::Build(_));
        let reply = match handle(worker, request, files) {
            Ok(reply) => reply,
            Err(why) => Reply::Failed(why),
        };
        let sent = link::send(connection, &reply, &[]);
        if quits || (builds && (sent.is_err() || worker.built.get().is_none())) {
            std::process::exit(0);
        }
        sent?;
    }
    if !worker.runs.load(Ordering::Acquire) && worker.building.load(Ordering::Acquire) {
        std::process::exit(0);
    }
    Ok(())
}

fn handle(worker: &Arc<Worker>, request: Request, files: Vec<OwnedFd>) -> Result<Reply, String> {
    match request {
        Request::Hello => {
            let runs = worker.built.get().filter(|_| worker.runs.load(Ordering::Acquire));
            let runs = runs.map(|built| Box::new(built.vm.definition().clone()));
            return Ok(Reply::Hello { version: VERSION, runs });
        }
        Request::Quit => return Ok(Reply::Done),
        Request::Build(shape) => {
            if worker.building.swap(true, Ordering::AcqRel) {
                return Err("the worker has a machine".to_owned());
            }
            let built = build(&shape, files).map_err(|error| chain(&error))?;
            let variables = built.vm.variables();
            if worker.built.set(built).is_err() {
                return Err("the worker has a machine".to_owned());
            }
            return Ok(Reply::Built(variables));
        }
        _ => {}
    }
    let built = worker.built.get().ok_or("the worker has no machine yet")?;
    if let Request::Run = request {
        worker.runs.store(true, Ordering::Release);
        built.vm.resume();
        let watched = worker.clone();
        let watches = thread::Builder::new().name("watch".into()).spawn(move || watch(&watched));
        watches.map_err(|error| format!("cannot start a thread: {error}"))?;
        return Ok(Reply::Done);
    }
    with_machine(built, request, files)
}

/// Looks at the machine whether there is a daemon or not: one whose storage is away is halted.
fn watch(worker: &Worker) {
    let Some(built) = worker.built.get() else { return };
    let mut seen = 0;
    loop {
        let news = look::news(&built.vm, seen, built.patience);
        if news.end.is_some() {
            return;
        }
        seen = news.seen;
    }
}

fn build(shape: &Shape, taps: Vec<OwnedFd>) -> Result<Built, vmm::Error> {
    let definition = &shape.definition;
    let runtime = disks::runtime(shape.io_threads).map_err(vmm::Error::os("start I/O threads"))?;
    let kvm = Kvm::new().map_err(vmm::Error::kvm("be opened"))?;
    let limit = shape.storage.disk_limit();
    let run = Run::new(definition.id, shape.run);
    let source = disks::source(disks::servers(&shape.storage));
    let open = runtime.block_on(async {
        let prepared = disks::prepare_all(definition, &source, &run, limit).await?;
        disks::open_all(&prepared, &run, limit).await
    })?;
    let shapes: Vec<DiskShape> = open
        .iter()
        .map(|disk| DiskShape { geometry: disk.geometry(), read_only: disk.is_read_only() })
        .collect();
    let handle = runtime.handle().clone();
    let built = Vm::build(&kvm, definition, &shapes, None, taps, handle).and_then(|vm| {
        vm.set_loss_rule(shape.storage.loss_rule());
        vm.load()?;
        vm.attach_disks(open.clone())?;
        if let Some(watchdog) = vm.watchdog().filter(|_| shape.by_watchdog) {
            lock(watchdog).set_expired_before();
        }
        Ok(vm)
    });
    match built {
        Ok(vm) => {
            let patience = Duration::from_secs(shape.storage.pause_after_s.into());
            Ok(Built { vm, runtime, patience })
        }
        Err(error) => {
            close(&runtime, open, limit);
            Err(error)
        }
    }
}

fn with_machine(built: &Built, request: Request, files: Vec<OwnedFd>) -> Result<Reply, String> {
    let vm = &built.vm;
    let millis = |limit_ms: u64| Duration::from_millis(limit_ms.min(WAITS));
    match request {
        Request::Variables => {
            let file = files.into_iter().next().ok_or("no file came along")?;
            vm.load_variables(file.into()).map_err(|error| chain(&error))?;
        }
        Request::News { seen } => {
            return Ok(Reply::News(look::news(vm, seen, built.patience)));
        }
        Request::End(reason) => vm.control().end(reason),
        Request::PowerButton => vm.press_power_button(),
        Request::TearDown { limit_ms } => {
            let limit = Duration::from_millis(limit_ms);
            vm.stop(limit.min(DRAIN_LIMIT));
            let disks = vm.detach_disks().into_iter().map(|(_, disk)| disk).collect();
            close(&built.runtime, disks, limit);
        }
        Request::Follow(definition) => vm.follow_limits(&definition),
        Request::WantMemory(bytes) => vm.want_memory(bytes),
        Request::ReleaseWatchdog => {
            if let Some(watchdog) = vm.watchdog() {
                lock(watchdog).release();
            }
            vm.control().tell();
        }
        Request::Usage => return Ok(Reply::Usage(Box::new(look::usage(vm)))),
        Request::Console { position, limit_ms } => {
            let console = vm.console();
            let Some(from) = position else {
                return Ok(Reply::Printed(Some((Vec::new(), console.position()))));
            };
            return Ok(Reply::Printed(console.read_from(from, millis(limit_ms))));
        }
        Request::Type(bytes) => vm.type_in(&bytes),
        Request::Port => {
            let (open, ended) = (vm.agent().is_open(), vm.agent().has_ended());
            return Ok(Reply::Port { open, ended });
        }
        Request::PortSend(bytes) => {
            return Ok(Reply::Ported(vm.agent().send(&bytes).map(|()| Vec::new())));
        }
        Request::PortReceive { limit_ms } => {
            let deadline = Instant::now() + millis(limit_ms);
            return Ok(Reply::Ported(vm.agent().receive(deadline)));
        }
        Request::PortDiscard => vm.agent().discard(),
        Request::Hello | Request::Build(_) | Request::Run | Request::Quit => {}
    }
    Ok(Reply::Done)
}

fn close(runtime: &Runtime, open: Vec<Arc<dyn block_io::Disk>>, limit: Duration) {
    for disk in open {
        let closed = runtime.block_on(disks::in_time(limit, "of the VM", disk.close()));
        if let Err(error) = closed {
            tracing::error!(error = chain(&error), "a disk was not closed in order");
        }
    }
}
