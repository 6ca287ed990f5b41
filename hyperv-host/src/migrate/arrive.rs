//! A move at its target, driven: what [`crate::handover::target`] says is done with files, disks and
//! connections.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use host_api::VmState;
use vmm::{
    Error,
    platform::{bus::lock, error::chain},
};

use super::{
    MoveError,
    dial::dial,
    receive::{fault, timeout},
    wire::{Message, receive, send},
};
use crate::{
    disks,
    handover::{
        Standing,
        target::{Effect, Event, Record, State, Target},
    },
    host::{
        Host,
        arrivals::Arrival,
        records::{MoveId, Verdict},
    },
    worker::machine::Machine,
};

/// How long a target tries to open the disks that the source has given up.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Pauses between attempts and questions.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// What a move has to say to its source.
pub(super) enum Say {
    /// All is here.
    Ready,
    /// It runs, or does not and never will.
    Outcome(bool),
}

/// A VM that runs here and is not in the records yet. Nothing else can be done with it while
/// this is held, so no other record of it can be mixed up with these.
struct Settling<'a> {
    arrival: &'a Arrival,
    operation: Option<MutexGuard<'a, ()>>,
}

impl<'a> Settling<'a> {
    fn begin(arrival: &'a Arrival) -> Self {
        arrival.managed.update(|inner| inner.settling = true);
        Self { arrival, operation: Some(arrival.managed.operate()) }
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        // Whoever waits for the settling takes the operation at once.
        self.operation = None;
        self.arrival.managed.update(|inner| inner.settling = false);
    }
}

/// Takes what happened and does all that comes of it; what is to be said goes to `say`. Whether the
/// source is to be asked.
pub(super) fn drive(
    host: &Arc<Host>,
    arrival: &Arc<Arrival>,
    event: Event,
    say: &mut dyn FnMut(Say),
) -> bool {
    let mut todo = VecDeque::from(arrival.at.apply(event));
    let mut settling = None;
    let mut asks = false;
    let mut pause = SHORTEST;
    while let Some(effect) = todo.pop_front() {
        let happened = match effect {
            Effect::Write(record) => {
                let good = write(host, arrival, record);
                if !good {
                    if host.is_shutting_down() {
                        // What is durable says how it goes on.
                        return false;
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST);
                }
                Event::Written(good)
            }
            Effect::Open => Event::Opened(open(host, arrival)),
            Effect::SayReady => {
                say(Say::Ready);
                continue;
            }
            Effect::Run => {
                settling = Some(Settling::begin(arrival));
                arrival.vm.resume();
                arrival.vm.announce();
                host.adopt(&arrival.managed, Machine::Here(arrival.vm.clone()));
                host.correct_clock(&arrival.managed);
                tracing::info!(vm = %arrival.managed.name(), "a VM has come and runs");
                continue;
            }
            Effect::Answer(runs) => {
                fault(host, arrival, "target.running");
                say(Say::Outcome(runs));
                continue;
            }
            Effect::Ask => {
                asks = true;
                continue;
            }
            Effect::Drop => {
                drop_guest(host, arrival);
                continue;
            }
        };
        todo.extend(arrival.at.apply(happened));
    }
    let over = matches!(arrival.at.now().state(), State::Settled | State::Gone);
    if over {
        lock(&host.arrivals.0).remove(&arrival.id);
    }
    drop(settling);
    asks && !over
}

/// Writes a record; whether it is durable.
fn write(host: &Host, arrival: &Arrival, record: Record) -> bool {
    let (id, name) = (&arrival.id, arrival.managed.name());
    let written = match record {
        Record::Ran => {
            fault(host, arrival, "target.commit");
            host.store.set_verdict(id, Verdict::Ran, &arrival.source)
        }
        Record::Refused => host.store.set_verdict(id, Verdict::Refused, &arrival.source),
        Record::Vm => {
            fault(host, arrival, "target.settle");
            host.store.take_in(id, &arrival.managed.definition())
        }
        Record::NoArrival => host.store.forget_arrival(id),
        Record::NoVerdict => host.store.forget_verdict(id),
    };
    match &written {
        Ok(()) if record == Record::Ran => fault(host, arrival, "target.recorded"),
        Ok(()) if record == Record::NoArrival && arrival.at.now().outcome() == Some(true) => {
            fault(host, arrival, "target.settled");
        }
        Ok(()) => {}
        Err(error) => {
            tracing::error!(vm = %name, ?record, %error, "cannot keep the records of a move");
            if record == Record::Ran {
                *lock(&arrival.why) = format!("cannot keep the host's records: {error}");
            }
        }
    }
    written.is_ok()
}

/// Opens the disks that the source has given up; whether the guest has them.
fn open(host: &Host, arrival: &Arrival) -> bool {
    let deadline = Instant::now() + OPEN_LIMIT;
    let opened = loop {
        let limit = deadline.saturating_duration_since(Instant::now());
        match host.runtime.block_on(disks::open_all(&arrival.disks, &arrival.run, limit)) {
            Ok(disks) => break arrival.vm.attach_disks(disks),
            // A server may take a moment to see that the source has closed a file.
            Err(Error::Disk { source: block_io::Error::Busy(_), .. })
                if Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => break Err(error),
        }
    };
    match opened {
        Ok(()) => {
            fault(host, arrival, "target.disk-open");
            true
        }
        Err(error) => {
            let why = chain(&error);
            tracing::error!(
                vm = %arrival.managed.name(), why, "a VM that was handed over cannot run here"
            );
            *lock(&arrival.why) = why;
            false
        }
    }
}

fn drop_guest(host: &Host, arrival: &Arrival) {
    tracing::info!(vm = %arrival.managed.name(), "a VM that was coming does not run here");
    for cutter in lock(&arrival.cutters).iter() {
        cutter.cut();
    }
    arrival.vm.stop(Duration::ZERO);
    host.remove(&arrival.managed);
}

/// The word was given: does what it says, and answers what came of it.
pub(super) fn answer_commit(
    host: &Arc<Host>,
    stream: &mut crate::tls::Stream,
    arrival: &Arc<Arrival>,
) -> Result<(), MoveError> {
    let mut sent = None;
    drive(host, arrival, Event::Heard(Standing::Given), &mut |say| {
        if let Say::Outcome(runs) = say {
            sent = Some(send(stream, &answer(arrival, runs)));
        }
    });
    if let Some(sent) = sent {
        return Ok(sent?);
    }
    // It was given before, and somebody is at it.
    let at = arrival.at.wait(timeout(host), |at| at.outcome().is_some());
    let runs = at.outcome().ok_or(MoveError::Protocol)?;
    Ok(send(stream, &answer(arrival, runs))?)
}

fn answer(arrival: &Arrival, runs: bool) -> Message {
    if runs {
        return Message::Running;
    }
    let mut why = lock(&arrival.why).clone();
    if why.is_empty() {
        "it is not complete here".clone_into(&mut why);
    }
    Message::RunFailed { why }
}

/// Nothing at the source speaks of the move any more: the verdict may go, once the VM is settled.
///
/// # Errors
/// [`MoveError::Protocol`] if it is not; [`MoveError::Store`].
pub(super) fn forget_verdict(host: &Host, id: &MoveId) -> Result<(), MoveError> {
    if let Some(arrival) = host.arrivals.get(id) {
        let is_over = |at: Target| matches!(at.state(), State::Settled | State::Gone);
        // Another connection may be settling it just now.
        if !is_over(arrival.at.wait(timeout(host), is_over)) {
            return Err(MoveError::Protocol);
        }
    }
    let verdict = host.store.verdict(id).map_err(MoveError::Store)?;
    let Some((mut target, _)) = Target::recovered(false, verdict.map(|it| it == Verdict::Ran))
    else {
        return Ok(());
    };
    if target.apply(Event::Heard(Standing::Never)).contains(&Effect::Write(Record::NoVerdict)) {
        host.store.forget_verdict(id).map_err(MoveError::Store)?;
        host.faults.pass("target.forgotten", timeout(host), || {});
    }
    Ok(())
}

/// Everything is here and the source is lost: asks it until the word is known.
pub(super) fn in_doubt(host: &Arc<Host>, arrival: &Arc<Arrival>, error: &MoveError) {
    let managed = &arrival.managed;
    let nothing = &mut |_: Say| {};
    if !arrival.at.now().is_waiting() {
        return;
    }
    tracing::warn!(vm = %managed.name(), error = chain(error), "the source was lost, asking it");
    managed.update(|inner| {
        inner.state = VmState::InDoubt;
        inner.reason = Some(format!("complete here, {} must say whose it is", arrival.source));
    });
    let mut asks = drive(host, arrival, Event::Lost, nothing);
    let mut pause = SHORTEST;
    while asks {
        let said = match managed.update(|inner| inner.resolve.take()) {
            Some(true) => Ok(Standing::Given),
            Some(false) => Ok(Standing::Never),
            None => ask_source(host, &arrival.source, &arrival.id),
        };
        let event = said.map(Event::Heard).unwrap_or_else(|error| {
            tracing::debug!(error = chain(&error), "asking the source");
            Event::Lost
        });
        // Whether it runs or is refused is in the verdict, which the source asks for.
        asks = drive(host, arrival, event, nothing);
        if asks {
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
