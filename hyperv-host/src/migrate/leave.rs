//! A move at its source, driven: what [`crate::handover::source`] says is done with records, disks and
//! connections.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use host_api::VmState;
use vmm::{
    Vm,
    devices::virtio::storage::LossRule,
    platform::{error::chain, lifecycle::EndReason},
};

use super::{
    MoveError,
    dial::dial,
    wire::{Message, receive, send},
};
use crate::{
    disks::{self, Run},
    handover::{
        Standing,
        source::{self, Effect, Event, Source},
    },
    host::{
        Host, HostError,
        lifecycle::Starter,
        machine::Managed,
        records::{MoveId, Record},
    },
    tls::Stream,
    worker::machine::Machine,
};

/// How long a source tries to get its disks back after a failed move.
const REOPEN_LIMIT: Duration = Duration::from_secs(120);
/// Pauses between questions, and between attempts to write.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// What this host, as the source of a move, answers when asked about it.
pub fn standing_of(host: &Host, id: &MoveId) -> Standing {
    host.outgoing.get(id).unwrap_or(Standing::Never)
}

/// A move of which this host is the source, and how far it is.
pub struct Leaving<'a> {
    host: &'a Arc<Host>,
    managed: &'a Arc<Managed>,
    id: MoveId,
    peer: String,
    machine: Source,
    /// The guest is paused here, and its disks may be closed.
    pub paused: bool,
    /// The connection on which the target listens.
    pub stream: Option<Stream>,
    /// Why it stays.
    pub why: Option<MoveError>,
    /// What the parts of the hand-over took.
    pub parts: Vec<(&'static str, Duration)>,
    /// When the target said that it runs.
    pub ran: Option<Instant>,
}

impl<'a> Leaving<'a> {
    /// A move that begins.
    pub fn new(host: &'a Arc<Host>, managed: &'a Arc<Managed>, id: &MoveId, peer: &str) -> Self {
        Self::with(host, managed, id, peer, Source::default())
    }

    fn with(
        host: &'a Arc<Host>,
        managed: &'a Arc<Managed>,
        id: &MoveId,
        peer: &str,
        machine: Source,
    ) -> Self {
        host.outgoing.set(id, Some(machine.standing()));
        Self {
            host,
            managed,
            id: id.clone(),
            peer: peer.to_owned(),
            machine,
            paused: true,
            stream: None,
            why: None,
            parts: Vec::new(),
            ran: None,
        }
    }

    /// How far it is.
    pub fn state(&self) -> source::State {
        self.machine.state()
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.machine.apply(event);
        // Who asks hears it as soon as it is so, and nothing when nothing here speaks of the move.
        let standing = (!self.machine.is_over()).then(|| self.machine.standing());
        self.host.outgoing.set(&self.id, standing);
        effects
    }

    /// Takes what happened and does what comes of it, up to something that takes time: a question
    /// to the target or another attempt to write, which is what is left to do. `fault` passes points
    /// where tests break moves.
    pub fn drive(
        &mut self,
        event: Event,
        operation: &MutexGuard<'_, ()>,
        fault: &dyn Fn(&str),
    ) -> Vec<Effect> {
        let effects = self.apply(event);
        self.go_on(effects, operation, fault)
    }

    fn go_on(
        &mut self,
        effects: Vec<Effect>,
        operation: &MutexGuard<'_, ()>,
        fault: &dyn Fn(&str),
    ) -> Vec<Effect> {
        let mut todo = VecDeque::from(effects);
        let mut failed = false;
        while let Some(effect) = todo.pop_front() {
            let happened = match effect {
                Effect::Ask => return vec![Effect::Ask],
                // What could not be written is not there sooner for being tried again at once.
                Effect::Write(_) if failed => {
                    todo.push_front(effect);
                    return todo.into();
                }
                Effect::Write(record) => {
                    let begin = Instant::now();
                    let good = self.write(record);
                    if good && record == source::Record::HandedOver {
                        self.parts.push(("record", begin.elapsed()));
                        self.note(Event::Written(true), &mut todo);
                        fault("source.recorded");
                        continue;
                    }
                    failed |= !good && record != source::Record::HandedOver;
                    Event::Written(good)
                }
                Effect::Give => self.give(fault),
                Effect::Abort => {
                    // The target gives up at once if it hears this, and later if it does not.
                    self.tell(&Message::Abort { id: self.id.clone() });
                    continue;
                }
                Effect::LastWord => {
                    if self.state() == source::State::Gone {
                        fault("source.gone");
                    }
                    self.tell(&Message::Forget { id: self.id.clone() });
                    continue;
                }
                Effect::Run => {
                    self.run(operation);
                    continue;
                }
                Effect::End => {
                    let taken = self.managed.update(|inner| inner.vm.take());
                    if let Some(vm) = taken.as_ref().and_then(Machine::here) {
                        self.host.tear_down(self.managed, vm, self.host.disk_limit());
                    }
                    continue;
                }
            };
            self.note(happened, &mut todo);
        }
        Vec::new()
    }

    fn note(&mut self, event: Event, todo: &mut VecDeque<Effect>) {
        todo.extend(self.apply(event));
    }

    /// Says something that may be lost: who does not hear it asks.
    fn tell(&mut self, message: &Message) {
        if let Some(stream) = &mut self.stream
            && let Err(error) = send(stream, message)
        {
            tracing::debug!(id = self.id.as_str(), error = chain(&error), "a word is lost");
        }
    }

    /// Writes a record; whether it is durable.
    fn write(&mut self, record: source::Record) -> bool {
        let (store, name) = (&self.host.store, self.managed.name());
        let written = match record {
            source::Record::Running => store.record(name, &Record::Running),
            source::Record::HandedOver => {
                let (id, peer) = (self.id.clone(), self.peer.clone());
                store.record(name, &Record::HandedOver { id, peer })
            }
            source::Record::Gone => store.delete(name),
        };
        let Err(error) = written else {
            if record == source::Record::Gone {
                self.host.remove(self.managed);
            }
            return true;
        };
        tracing::error!(vm = %name, ?record, %error, "cannot keep the records of a move");
        match record {
            source::Record::Running => {}
            source::Record::HandedOver => self.why = Some(MoveError::Store(error)),
            source::Record::Gone => self.managed.update(|inner| {
                inner.state = VmState::InDoubt;
                inner.reason =
                    Some(format!("moved away; its record cannot be deleted here: {error}"));
            }),
        }
        false
    }

    /// Gives the word, and hears what comes of it.
    fn give(&mut self, fault: &dyn Fn(&str)) -> Event {
        let begin = Instant::now();
        let Some(stream) = &mut self.stream else { return Event::Silence };
        let told = send(stream, &Message::Commit { id: self.id.clone() }).and_then(|()| {
            fault("source.commit-sent");
            receive(stream)
        });
        let why = match told {
            Ok(Message::Running) => {
                self.ran = Some(Instant::now());
                self.parts.push(("open and run", begin.elapsed()));
                fault("source.running");
                return Event::Heard(Standing::Given);
            }
            Ok(Message::RunFailed { why }) => {
                self.why = Some(MoveError::Refused(why));
                return Event::Heard(Standing::Never);
            }
            Ok(_) => MoveError::Protocol,
            Err(error) => error.into(),
        };
        self.why = Some(why);
        // What is said next is said on another.
        self.stream = None;
        Event::Silence
    }

    /// The VM stays: it runs on, with its disks opened again if they were closed.
    fn run(&mut self, operation: &MutexGuard<'_, ()>) {
        let (host, managed) = (self.host, self.managed);
        let name = managed.name();
        let Some(vm) = managed.vm() else {
            // The daemon was restarted meanwhile: there is nothing to go on from.
            managed.update(|inner| inner.state = VmState::Off);
            if let Err(error) = host.start_locked(managed, operation, Starter::Operator) {
                tracing::error!(vm = %name, error = chain(&error), "not started");
                managed.update(|inner| {
                    inner.state = VmState::Failed;
                    inner.reason = Some(chain(&error));
                });
            }
            return;
        };
        if self.paused {
            if let Err(error) = reopen(host, managed, &vm) {
                tracing::error!(vm = %name, error = chain(&error), "its disks cannot be opened again");
                let why = format!("its disks cannot be opened again: {}", chain(&error));
                vm.control().end(EndReason::Failed(why));
            }
            vm.resume();
        }
        managed.update(|inner| {
            inner.state = VmState::Running;
            inner.reason = None;
        });
    }

    /// As far as it is, to be gone on with elsewhere.
    pub fn into_machine(self) -> Source {
        self.machine
    }

    /// Does what was left to do, with pauses, until the move is over. Takes the operator's word if
    /// there is one.
    fn finish(&mut self, mut left: Vec<Effect>, operation: &MutexGuard<'_, ()>) {
        let mut pause = SHORTEST;
        while !self.machine.is_over() && !self.host.is_shutting_down() {
            let decided = self.managed.update(|inner| inner.resolve.take());
            left = match decided {
                Some(run) if self.state() == source::State::Given => {
                    self.drive(Event::Decided(run), operation, &|_| {})
                }
                _ if left == [Effect::Ask] => {
                    let event = self.ask();
                    self.drive(event, operation, &|_| {})
                }
                _ => self.go_on(left, operation, &|_| {}),
            };
            if !self.machine.is_over() {
                self.managed.wait(pause, |inner| inner.resolve.is_some());
                pause = (pause * 2).min(LONGEST);
            }
        }
        if self.machine.is_over() {
            let (name, state) = (self.managed.name(), self.state());
            tracing::info!(vm = %name, ?state, "the hand-over is resolved");
        }
    }

    /// Asks the target where the move stands. What it says comes with the connection on which it waits
    /// for more.
    fn ask(&mut self) -> Event {
        let mut exchange = || -> Result<Standing, MoveError> {
            let Some(tls) = &self.host.tls else { return Err(MoveError::Protocol) };
            let mut stream = dial(tls, &self.peer)?;
            send(&mut stream, &Message::Query { id: self.id.clone(), from_source: true })?;
            let Message::Standing { standing } = receive(&mut stream)? else {
                return Err(MoveError::Protocol);
            };
            self.stream = Some(stream);
            Ok(standing)
        };
        match exchange() {
            Ok(standing) => Event::Heard(standing),
            Err(error) => {
                let peer = &self.peer;
                tracing::debug!(vm = %self.managed.name(), error = chain(&error), "asking the target");
                self.managed.update(|inner| {
                    inner.reason = Some(format!("handed over to {peer}: {}", chain(&error)));
                });
                Event::Silence
            }
        }
    }
}

/// Takes up a move that was handed over when this host ended, and asks the target until the outcome is
/// known.
pub fn resolve(host: &Arc<Host>, managed: &Arc<Managed>, id: &MoveId, peer: &str) {
    let (machine, left) = Source::recovered();
    finish(host, managed, id, peer, machine, left);
}

/// Goes on with a move until it is over, at what was left to do.
pub fn finish(
    host: &Arc<Host>,
    managed: &Arc<Managed>,
    id: &MoveId,
    peer: &str,
    machine: Source,
    left: Vec<Effect>,
) {
    let operation = managed.operate();
    Leaving::with(host, managed, id, peer, machine).finish(left, &operation);
}

fn reopen(host: &Host, managed: &Managed, vm: &Vm) -> Result<(), HostError> {
    let closed = vm.detach_disks();
    if closed.len() == vm.disks().len() {
        // They were not taken away yet.
        return Ok(vm.attach_disks(closed.into_iter().map(|(_, disk)| disk).collect())?);
    }
    // The target may have opened them: this is later than that.
    let number = host.store.next_run(managed.name()).map_err(HostError::Store)?;
    let run = Run::new(vm.definition().id, number);
    let waits = host.loss_rule() == LossRule::Pause;
    let deadline = Instant::now() + REOPEN_LIMIT;
    loop {
        let limit = host.disk_limit();
        let opened = host.runtime.block_on(async {
            let prepared = disks::prepare_all(vm.definition(), &host.disks, &run, limit).await?;
            disks::open_all(&prepared, &run, limit).await
        });
        let error = match opened {
            Ok(disks) => {
                managed.update(|inner| inner.away = None);
                return Ok(vm.attach_disks(disks)?);
            }
            Err(error) => error,
        };
        let given_up =
            if waits { vm.control().ended().is_some() } else { Instant::now() >= deadline };
        if given_up {
            return Err(error.into());
        }
        managed.update(|inner| {
            inner.state = VmState::Running;
            inner.away = Some(chain(&error));
        });
        std::thread::sleep(Duration::from_millis(200));
    }
}
