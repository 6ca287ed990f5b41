//! The receiving side. The protocol and its guarantees are drawn in [`super`].
//!
//! ```text
//!  Receiving ── state restored ──► Waiting ── Commit (from any connection), or the source
//!      │ lost                         │       answers `given` ──► verdict ran ──► Ran
//!      ▼                              │ Abort, or the source answers `never`
//!     Gone ◄──────────────────────────┘           (a disk that cannot be opened: verdict refused)
//! ```

use std::{
    io,
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use host_api::VmState;
use vmm::{
    Error, Vm,
    machine::{cpu::CpuModel, state},
    platform::{bus::lock, error::chain},
};

use super::{
    MoveError,
    dial::dial,
    door::{Door, Place},
    receive::{fault, join, timeout},
    source::standing_of,
    wire::{self, Hello, Kind, Message, Standing, WireError, read_frame, receive, send},
};
use crate::{
    allowed::Whose,
    disks::{self, Run},
    host::{
        Host, HostError,
        arrivals::{Arrival, Phase},
        machine::Managed,
        records::{self, MoveId, Verdict},
        spawn,
    },
    tls::{Cutter, Stream},
};

/// How long a target tries to open the disks that the source has given up.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Binds the address for other hosts.
///
/// # Errors
/// Of the operating system.
pub fn bind(host: &Host) -> io::Result<Option<TcpListener>> {
    let Some(config) = &host.config.migration else { return Ok(None) };
    if !host.allowed.takes_others() {
        tracing::warn!(
            "VMs can go from here and none can come: the configuration must say where VMs of other hosts may have \
             their disks and kernels, `locations` in [storage] and `folders` in [boot]"
        );
    }
    let listener = TcpListener::bind(config.listen)?;
    let address = listener.local_addr()?;
    host.migration_address.get_or_init(|| address);
    Ok(Some(listener))
}

/// Serves other hosts for ever.
pub fn serve(host: &Arc<Host>, listener: &TcpListener) {
    let door = Arc::new(Door::default());
    let mut failures = 0u32;
    loop {
        let accepted = listener
            .accept()
            .and_then(|(socket, peer)| Ok((Cutter::of(&socket)?, socket, peer.ip())));
        let (cutter, socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if failures.is_multiple_of(1000) {
                    tracing::warn!(%error, failures, "cannot accept other hosts");
                }
                failures = failures.wrapping_add(1);
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        failures = 0;
        let Some(place) = door.enter(address, cutter) else { continue };
        let host = host.clone();
        spawn("migration".into(), move || {
            if let Err(error) = connection(&host, socket, place) {
                tracing::debug!(error = chain(&error), "migration connection");
            }
        });
    }
}

fn connection(host: &Arc<Host>, socket: TcpStream, mut place: Place) -> Result<(), MoveError> {
    let Some(tls) = &host.tls else { return Err(MoveError::Protocol) };
    let mut stream = tls.accept(socket)?;
    if !place.known() {
        return Err(MoveError::Refused("as many hosts are connected as may be".into()));
    }
    wire::greet(&mut stream)?;
    match receive(&mut stream)? {
        Message::Hello(hello) => incoming(host, stream, *hello),
        Message::Join { id, token } => join(host, stream, &id, &token),
        Message::Query { id, from_source: true } => {
            query(host, stream, &id).inspect_err(|_| host.leftover.note())
        }
        Message::Query { id, from_source: false } => {
            let standing = standing_of(host, &id);
            Ok(send(&mut stream, &Message::Standing { standing })?)
        }
        _ => Err(MoveError::Protocol),
    }
}

/// The source asks; if we wait for its word it may give it on the same connection.
fn query(host: &Arc<Host>, mut stream: Stream, id: &MoveId) -> Result<(), MoveError> {
    let arrival = host.arrivals.get(id);
    let phase = arrival.as_ref().map(|arrival| *lock(&arrival.phase));
    let standing = match phase {
        Some(Phase::Waiting | Phase::Receiving) => Standing::Waiting,
        Some(Phase::Ran) => Standing::Given,
        Some(Phase::Gone) | None => match host.store.verdict(id).map_err(MoveError::Store)? {
            Some(Verdict::Ran) => Standing::Given,
            Some(Verdict::Refused) | None => Standing::Never,
        },
    };
    send(&mut stream, &Message::Standing { standing })?;
    loop {
        match receive(&mut stream)? {
            Message::Commit { id: given } if given == *id => {
                let Some(arrival) = &arrival else { return Err(MoveError::Protocol) };
                answer_commit(host, &mut stream, arrival)?;
            }
            Message::Forget { id: known } if known == *id => {
                return forget_verdict(host, id);
            }
            _ => return Err(MoveError::Protocol),
        }
    }
}

fn answer_commit(
    host: &Arc<Host>,
    stream: &mut Stream,
    arrival: &Arc<Arrival>,
) -> Result<(), MoveError> {
    let (answer, settling) = match commit(host, arrival) {
        Ok(settling) => (Message::Running, settling),
        Err(why) => (Message::RunFailed { why }, None),
    };
    fault(host, arrival, "target.running");
    // The source waits for the answer with its guest paused: the records come after it.
    let sent = send(stream, &answer);
    if let Some(settling) = settling {
        settling.settle();
    }
    Ok(sent?)
}

/// A VM that runs here and is not in the records yet. Nothing else can be done with it while
/// this is held, so no other record of it can be mixed up with these.
struct Settling<'a> {
    host: &'a Arc<Host>,
    arrival: &'a Arc<Arrival>,
    settled: MutexGuard<'a, bool>,
    operation: Option<MutexGuard<'a, ()>>,
}

impl Settling<'_> {
    /// Makes it one of this host's by its records, however often that must be tried: the
    /// verdict, which counts meanwhile, may be forgotten only after it.
    fn settle(mut self) {
        const LONGEST: Duration = Duration::from_secs(5);
        let (host, arrival) = (self.host, self.arrival);
        fault(host, arrival, "target.settle");
        let mut pause = Duration::from_millis(100);
        while let Err(error) = host.store.settle(&arrival.id, &arrival.managed.definition) {
            tracing::error!(
                vm = %arrival.managed.name(), %error,
                "cannot record a VM that came; nothing can be done with it until that is possible"
            );
            if host.is_shutting_down() {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
        *self.settled = true;
        fault(host, arrival, "target.settled");
        lock(&host.arrivals.0).remove(&arrival.id);
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        // Whoever waits for the settling takes the operation at once.
        self.operation = None;
        self.arrival.managed.update(|inner| inner.settling = false);
    }
}

/// Waits for the word that the source has settled the move, too.
fn last_word(host: &Host, stream: &mut Stream, id: &MoveId) -> Result<(), MoveError> {
    match receive(stream)? {
        Message::Forget { id: known } if known == *id => forget_verdict(host, id),
        _ => Err(MoveError::Protocol),
    }
}

/// The source has heard what became of the VM and will not ask again.
fn forget_verdict(host: &Host, id: &MoveId) -> Result<(), MoveError> {
    let arrival = host.arrivals.get(id);
    // Another connection may be settling it just now: this waits for that.
    if arrival.as_ref().is_some_and(|arrival| !*lock(&arrival.settled)) {
        return Err(MoveError::Protocol);
    }
    host.store.forget_verdict(id).map_err(MoveError::Store)?;
    host.faults.pass("target.forgotten", timeout(host), || {});
    Ok(())
}

/// Whether this host can take the VM; builds it if so.
fn admit(host: &Arc<Host>, hello: &Hello) -> Result<Arc<Arrival>, String> {
    if hello.version != wire::VERSION || hello.state_version != state::VERSION {
        return Err(format!(
            "it speaks version {}.{}, this host {}.{}",
            hello.version,
            hello.state_version,
            wire::VERSION,
            state::VERSION
        ));
    }
    let text = |error: &(dyn std::error::Error + 'static)| chain(error);
    if host.is_shutting_down() {
        return Err(text(&HostError::ShuttingDown));
    }
    let definition = &hello.definition;
    definition.check().map_err(|error| text(&error))?;
    // What it starts from is needed here at its next reset.
    host.check_usable(definition, Whose::Sent).map_err(|error| text(&error))?;
    if !(1..=16).contains(&hello.streams) {
        return Err(format!("{} memory connections", hello.streams));
    }
    let number = hello.run.unwrap_or_else(records::first_run);
    if number > records::LAST_RUN {
        return Err(format!("the number {number} of its run is not possible"));
    }
    let shapes: Option<Vec<_>> = hello.shapes.iter().map(wire::Shape::checked).collect();
    let shapes = shapes
        .filter(|shapes| shapes.len() == definition.disks.len())
        .ok_or("the shapes of its disks are not possible")?;
    let here = CpuModel::of_host(&host.kvm).map_err(|error| text(&error))?;
    if let Some(missing) = hello.model.missing_on(&here) {
        return Err(format!("this host lacks {missing}"));
    }
    let _memory = host.reserve_memory(definition.memory_mib).map_err(|error| text(&error))?;
    let run = Run::new(definition.id, number);
    let disks = host
        .runtime
        .block_on(disks::prepare_all(definition, &host.disks, &run))
        .map_err(|error| text(&error))?;
    let managed = Managed::new(definition.clone(), VmState::MovingIn);
    host.insert(&managed).map_err(|error| text(&error))?;
    let build = || -> Result<Arc<Arrival>, String> {
        let runtime = host.runtime.handle().clone();
        let vm = Vm::build(&host.kvm, definition, &shapes, Some(hello.model.clone()), runtime)
            .map_err(|error| text(&error))?;
        let token = MoveId::random().map_err(|error| text(&error))?;
        let arrival = Arc::new(Arrival {
            id: hello.id.clone(),
            token: token.into(),
            source: hello.source.clone(),
            managed: managed.clone(),
            vm: Arc::new(vm),
            disks,
            run,
            phase: Mutex::new(Phase::Receiving),
            joins: AtomicUsize::new(hello.streams as usize),
            broken: AtomicBool::new(false),
            settled: Mutex::new(false),
            cutters: Mutex::default(),
        });
        let limit = host.config.migration.as_ref().map_or(0, |migration| migration.max_incoming);
        let mut arrivals = lock(&host.arrivals.0);
        if arrivals.len() >= limit {
            return Err("as many VMs as allowed are on their way in".into());
        }
        if arrivals.contains_key(&hello.id)
            || host.store.verdict(&hello.id).ok().flatten().is_some()
        {
            return Err("this move was here before".into());
        }
        host.store.arrive(&hello.id, definition, number).map_err(|error| text(&error))?;
        arrivals.insert(hello.id.clone(), arrival.clone());
        Ok(arrival)
    };
    build().inspect_err(|_| host.remove(&managed))
}

/// The control connection of a move.
fn incoming(host: &Arc<Host>, mut stream: Stream, hello: Hello) -> Result<(), MoveError> {
    let arrival = match admit(host, &hello) {
        Ok(arrival) => arrival,
        Err(why) => {
            tracing::info!(vm = %hello.definition.name, why, "a VM is refused");
            return Ok(send(&mut stream, &Message::Refused { why })?);
        }
    };
    let name = arrival.managed.name();
    tracing::info!(vm = %name, id = arrival.id.as_str(), "a VM is coming");
    lock(&arrival.cutters).extend(stream.cutter().ok());
    let token = arrival.token.clone();
    if let Err(error) = receive_all(host, &mut stream, &arrival, token) {
        tracing::warn!(vm = %name, error = chain(&error), "a VM did not come");
        let why = chain(&error);
        give_up(host, &arrival, "it did not come");
        let _ = send(&mut stream, &Message::Refused { why });
        return Err(error);
    }
    let word = send(&mut stream, &Message::Ready).map_err(MoveError::from).and_then(|()| {
        fault(host, &arrival, "target.ready");
        loop {
            match receive(&mut stream)? {
                Message::Alive { .. } => {}
                message => return Ok(message),
            }
        }
    });
    match word {
        Ok(Message::Commit { id }) if id == arrival.id => {
            let last = answer_commit(host, &mut stream, &arrival)
                .and_then(|()| last_word(host, &mut stream, &arrival.id));
            last.inspect_err(|_| host.leftover.note())
        }
        Ok(Message::Abort { id }) if id == arrival.id => {
            give_up(host, &arrival, "the source keeps it");
            Ok(())
        }
        Ok(_) => {
            in_doubt(host, &arrival, &MoveError::Protocol);
            Ok(())
        }
        Err(error) => {
            in_doubt(host, &arrival, &error);
            Ok(())
        }
    }
}

fn receive_all(
    host: &Arc<Host>,
    stream: &mut Stream,
    arrival: &Arrival,
    token: String,
) -> Result<(), MoveError> {
    send(stream, &Message::Accepted { token })?;
    fault(host, arrival, "target.accepted");
    let mut body = Vec::new();
    loop {
        match read_frame(stream, &[Kind::Message, Kind::State], &mut body)? {
            Kind::State => break,
            _ => match serde_json::from_slice(&body).map_err(WireError::from)? {
                Message::Alive { .. } => {}
                Message::Abort { .. } => return Err(MoveError::Refused("it stays there".into())),
                _ => return Err(MoveError::Protocol),
            },
        }
        if arrival.broken.load(Ordering::Acquire) {
            return Err(WireError::Io(io::ErrorKind::ConnectionReset.into()).into());
        }
    }
    fault(host, arrival, "target.state");
    let saved: state::MachineState = serde_json::from_slice(&body).map_err(WireError::from)?;
    arrival.vm.restore(&saved)?;
    *lock(&arrival.phase) = Phase::Waiting;
    Ok(())
}

/// The word was given: from the verdict on the VM is ours. What is given back, once, is to be
/// settled after the answer.
fn commit<'a>(
    host: &'a Arc<Host>,
    arrival: &'a Arc<Arrival>,
) -> Result<Option<Settling<'a>>, String> {
    let mut phase = lock(&arrival.phase);
    match *phase {
        Phase::Ran => return Ok(None),
        Phase::Waiting => {}
        Phase::Receiving | Phase::Gone => return Err("it is not complete here".into()),
    }
    fault(host, arrival, "target.commit");
    let name = arrival.managed.name();
    let ours = host.store.set_verdict(&arrival.id, Verdict::Ran, &arrival.source);
    let opened = match ours {
        Ok(()) => {
            fault(host, arrival, "target.recorded");
            open_disks(host, arrival).map_err(|error| chain(&error))
        }
        Err(error) => Err(format!("cannot keep the host's records: {error}")),
    };
    if let Err(why) = opened {
        tracing::error!(vm = %name, why, "a VM that was handed over cannot run here");
        // The source may take it back only after this is written.
        let (id, source) = (&arrival.id, &arrival.source);
        while let Err(error) = host.store.set_verdict(id, Verdict::Refused, source) {
            tracing::error!(vm = %name, %error, "cannot record the refusal");
            std::thread::sleep(Duration::from_secs(1));
        }
        *phase = Phase::Gone;
        drop(phase);
        forget(host, arrival);
        return Err(why);
    }
    fault(host, arrival, "target.disk-open");
    arrival.managed.update(|inner| inner.settling = true);
    let settling = Settling {
        host,
        arrival,
        operation: Some(arrival.managed.operate()),
        settled: lock(&arrival.settled),
    };
    arrival.vm.resume();
    host.adopt(&arrival.managed, arrival.vm.clone());
    *phase = Phase::Ran;
    tracing::info!(vm = %name, "a VM has come and runs");
    Ok(Some(settling))
}

fn open_disks(host: &Host, arrival: &Arrival) -> Result<(), Error> {
    let deadline = Instant::now() + OPEN_LIMIT;
    loop {
        match host.runtime.block_on(disks::open_all(&arrival.disks, &arrival.run)) {
            Ok(disks) => return arrival.vm.attach_disks(disks),
            // A server may take a moment to see that the source has closed a file.
            Err(Error::Disk { source: block_io::Error::Busy(_), .. })
                if Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The VM will not run here by this move.
fn give_up(host: &Host, arrival: &Arc<Arrival>, why: &str) {
    {
        let mut phase = lock(&arrival.phase);
        if !matches!(*phase, Phase::Receiving | Phase::Waiting) {
            return;
        }
        *phase = Phase::Gone;
    }
    tracing::info!(vm = %arrival.managed.name(), why, "a VM that was coming is given up");
    forget(host, arrival);
}

fn forget(host: &Host, arrival: &Arc<Arrival>) {
    for cutter in lock(&arrival.cutters).iter() {
        cutter.cut();
    }
    arrival.vm.stop();
    host.remove(&arrival.managed);
    if let Err(error) = host.store.forget_arrival(&arrival.id) {
        tracing::warn!(%error, "cannot clear away a VM that did not come");
    }
    lock(&host.arrivals.0).remove(&arrival.id);
}

/// Everything is here and the source is lost: asks it until the word is known.
fn in_doubt(host: &Arc<Host>, arrival: &Arc<Arrival>, error: &MoveError) {
    const LONGEST: Duration = Duration::from_secs(5);
    let managed = &arrival.managed;
    let waiting = || *lock(&arrival.phase) == Phase::Waiting;
    if !waiting() {
        return;
    }
    tracing::warn!(vm = %managed.name(), error = chain(error), "the source was lost, asking it");
    managed.update(|inner| {
        inner.state = VmState::InDoubt;
        inner.reason = Some(format!("complete here, {} must say whose it is", arrival.source));
    });
    let mut pause = Duration::from_millis(100);
    while waiting() {
        let said = match managed.update(|inner| inner.resolve.take()) {
            Some(true) => Ok(Standing::Given),
            Some(false) => Ok(Standing::Never),
            None => ask_source(host, &arrival.source, &arrival.id),
        };
        match said {
            Ok(Standing::Given) => {
                // Whether it runs or is refused is in the verdict, which the source asks for.
                match commit(host, arrival) {
                    Ok(Some(settling)) => settling.settle(),
                    Ok(None) => {}
                    Err(why) => {
                        tracing::warn!(vm = %managed.name(), why, "it does not run here");
                    }
                }
            }
            Ok(Standing::Never) => give_up(host, arrival, "the source keeps it"),
            Ok(Standing::Waiting) => {}
            Err(error) => tracing::debug!(error = chain(&error), "asking the source"),
        }
        if waiting() {
            managed.wait(pause, |inner| inner.resolve.is_some());
            pause = (pause * 2).min(LONGEST);
        }
    }
    // An operator may have settled it at the source, which does not ask then.
    host.leftover.note();
}

/// Asks the source of a move, at its migration address, where that stands.
pub(super) fn ask_source(host: &Host, source: &str, id: &MoveId) -> Result<Standing, MoveError> {
    let Some(tls) = &host.tls else { return Err(MoveError::Protocol) };
    let mut stream = dial(tls, source)?;
    send(&mut stream, &Message::Query { id: id.clone(), from_source: false })?;
    match receive(&mut stream)? {
        Message::Standing { standing } => Ok(standing),
        _ => Err(MoveError::Protocol),
    }
}
