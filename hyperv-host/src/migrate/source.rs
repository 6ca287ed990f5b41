//! The sending side: pre-copy, hand-over, and what happens when it breaks. The protocol and its
//! guarantees are drawn in [`super`].

use std::{
    sync::{Arc, MutexGuard, mpsc},
    time::{Duration, Instant},
};

use host_api::{MoveOptions, MoveProgress, MoveStatistics, VmName, VmState};
use vmm::{
    DRAIN_LIMIT, Vm,
    machine::state,
    platform::{
        bus::lock,
        dirty::{DirtyLog, PageSet},
        error::chain,
        lifecycle::EndReason,
    },
};

use super::{
    MoveError,
    clock::Offset,
    dial::dial,
    send::{Brake, Pace, send_round},
    wire::{self, Hello, Kind, Message, Shape, Standing, receive, send},
};
use crate::{
    config::MigrationConfig,
    disks::{self, Run},
    host::{
        Host, HostError,
        lifecycle::Starter,
        machine::Managed,
        records::{MoveId, Record},
        spawn,
    },
    tls::{Cutter, Stream, Tls},
};

/// How long a source tries to get its disks back after a failed move.
const REOPEN_LIMIT: Duration = Duration::from_secs(120);

/// How a move ended.
enum Ending {
    /// The target runs it.
    Moved,
    /// It stays here.
    Stays(MoveError),
    /// It was handed over, and the target has not said that it runs.
    Doubt(MoveError),
}

struct Mover<'a, P> {
    host: &'a Arc<Host>,
    config: &'a MigrationConfig,
    tls: &'a Tls,
    managed: &'a Arc<Managed>,
    vm: &'a Arc<Vm>,
    id: MoveId,
    options: MoveOptions,
    timeout: Duration,
    cutters: Vec<Cutter>,
    /// The connection on which the target waits for the last word, once it has given its own.
    last_word: Option<Stream>,
    /// How far the target's clock is ahead of this host's.
    offset: Option<Offset>,
    statistics: MoveStatistics,
    started: Instant,
    paused: bool,
    progress: P,
}

/// Moves a VM to another host and tells what it cost.
///
/// # Errors
/// [`HostError::NotMoved`] if it runs on here, [`HostError::InDoubt`] if the peer was lost at the
/// hand-over (it is then being asked in the background).
pub fn move_vm(
    host: &Arc<Host>,
    name: &VmName,
    options: MoveOptions,
    progress: impl FnMut(MoveProgress),
) -> Result<MoveStatistics, HostError> {
    let managed = host.find(name)?;
    let (Some(tls), Some(config)) = (&host.tls, &host.config.migration) else {
        return Err(HostError::NoMigration);
    };
    let operation = managed.try_operate()?;
    let state = managed.state();
    let (VmState::Running, Some(vm)) = (state, managed.vm()) else {
        return Err(HostError::State { name: name.clone(), state });
    };
    let id = MoveId::random().map_err(HostError::Store)?;
    {
        let mut deciding = lock(&host.deciding);
        if deciding.len() >= config.max_outgoing {
            return Err(HostError::Limit("max_outgoing"));
        }
        deciding.push(id.clone());
    }
    managed.update(|inner| inner.state = VmState::MovingOut);
    tracing::info!(vm = %name, id = id.as_str(), to = options.to, "moving");
    let peer = options.to.clone();
    let mut mover = Mover {
        host,
        config,
        tls,
        managed: &managed,
        vm: &vm,
        timeout: Duration::from_secs(u64::from(config.timeout_s)),
        cutters: Vec::new(),
        last_word: None,
        offset: None,
        statistics: MoveStatistics {
            id: id.as_str().to_owned(),
            peer: peer.clone(),
            direction: "out".into(),
            compression: "none".into(),
            ..MoveStatistics::default()
        },
        id: id.clone(),
        options,
        started: Instant::now(),
        paused: false,
        progress,
    };
    let ending = mover.run();
    let (paused, mut statistics) = (mover.paused, std::mem::take(&mut mover.statistics));
    // A record of the hand-over answers from here on, or nothing does.
    lock(&host.deciding).retain(|deciding| *deciding != id);
    match ending {
        Ending::Moved => {
            "moved".clone_into(&mut statistics.outcome);
            tracing::info!(
                vm = %name, downtime_ms = statistics.downtime_ms, total_ms = statistics.total_ms,
                "moved"
            );
            if gone(host, &managed) {
                mover.fault("source.gone");
                end(mover.last_word, &id);
            }
            Ok(statistics)
        }
        Ending::Stays(error) => {
            let why = chain(&error);
            tracing::warn!(vm = %name, error = why, "not moved, it runs on here");
            statistics.outcome = why.clone();
            managed.update(|inner| inner.last_move = Some(statistics));
            stay(host, &managed, paused, &operation);
            end(mover.last_word, &id);
            Err(HostError::NotMoved(why))
        }
        Ending::Doubt(error) => {
            let why = chain(&error);
            tracing::error!(vm = %name, error = why, "the other host was lost at the hand-over");
            statistics.outcome = format!("in doubt: {why}");
            managed.update(|inner| {
                inner.state = VmState::InDoubt;
                inner.reason = Some(format!("handed over to {peer}, which is being asked"));
                inner.last_move = Some(statistics);
            });
            let (host, managed) = (host.clone(), managed.clone());
            spawn(format!("{name}/resolve"), move || {
                let operation = managed.operate();
                resolve(&host, &managed, &id, &peer, operation);
            });
            Err(HostError::InDoubt(why))
        }
    }
}

/// What this host, as the source of a move, answers when asked about it.
pub fn standing_of(host: &Host, id: &MoveId) -> Standing {
    if lock(&host.deciding).contains(id) {
        return Standing::Waiting;
    }
    if host.has_handed_over(id) { Standing::Given } else { Standing::Never }
}

/// The last word of a move, when nothing here speaks of it any more: the target may forget what became
/// of it. Where it does not hear that it asks.
fn end(stream: Option<Stream>, id: &MoveId) {
    if let Some(mut stream) = stream
        && let Err(error) = send(&mut stream, &Message::Forget { id: id.clone() })
    {
        tracing::debug!(id = id.as_str(), error = chain(&error), "the last word of a move is lost");
    }
}

/// The VM is the target's: ends what is here and forgets it. Whether it is forgotten: as long as a
/// record speaks of it this host asks the target about it after a restart, and the answer must be
/// there.
fn gone(host: &Arc<Host>, managed: &Arc<Managed>) -> bool {
    if let Some(vm) = managed.update(|inner| inner.vm.take()) {
        host.tear_down(managed, &vm);
    }
    if let Err(error) = host.store.delete(managed.name()) {
        tracing::error!(
            vm = %managed.name(), %error,
            "cannot forget a VM that was moved away; it is tried again at the next start"
        );
        managed.update(|inner| {
            inner.state = VmState::InDoubt;
            inner.reason = Some(format!("moved away; its record cannot be deleted here: {error}"));
        });
        return false;
    }
    host.remove(managed);
    true
}

/// The VM stays: it runs on, with its disks opened again if they were closed.
fn stay(host: &Arc<Host>, managed: &Arc<Managed>, paused: bool, operation: &MutexGuard<'_, ()>) {
    let name = managed.name();
    if let Err(error) = host.store.record(name, &Record::Running) {
        tracing::error!(vm = %name, %error, "cannot record that it runs here");
    }
    managed.update(|inner| inner.handed_over = None);
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
    if paused {
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

fn reopen(host: &Host, managed: &Managed, vm: &Vm) -> Result<(), HostError> {
    let closed = vm.detach_disks();
    if closed.len() == vm.disks().len() {
        // They were not taken away yet.
        return Ok(vm.attach_disks(closed.into_iter().map(|(_, disk)| disk).collect())?);
    }
    // The target may have opened them: this is later than that.
    let number = host.store.next_run(managed.name()).map_err(HostError::Store)?;
    let run = Run::new(managed.definition.id, number);
    let deadline = Instant::now() + REOPEN_LIMIT;
    loop {
        let opened = host.runtime.block_on(async {
            let prepared = disks::prepare_all(&managed.definition, &host.disks, &run).await?;
            disks::open_all(&prepared, &run).await
        });
        match opened {
            Ok(disks) => return Ok(vm.attach_disks(disks)?),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(error) => {
                managed.update(|inner| inner.reason = Some(chain(&error)));
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

/// Asks the target until the outcome of a hand-over is known, then acts on it. Takes the
/// operator's word instead if there is one.
pub fn resolve(
    host: &Arc<Host>,
    managed: &Arc<Managed>,
    id: &MoveId,
    peer: &str,
    operation: MutexGuard<'_, ()>,
) {
    const LONGEST: Duration = Duration::from_secs(5);
    let mut pause = Duration::from_millis(100);
    let (stays, stream) = loop {
        if let Some(run) = managed.update(|inner| inner.resolve.take()) {
            break (run, None);
        }
        match ask(host, id, peer) {
            Ok((Standing::Given, stream)) => break (false, Some(stream)),
            Ok((Standing::Never, stream)) => break (true, Some(stream)),
            Ok((Standing::Waiting, _)) => {}
            Err(error) => {
                tracing::debug!(vm = %managed.name(), error = chain(&error), "asking the target");
                managed.update(|inner| {
                    inner.reason = Some(format!("handed over to {peer}: {}", chain(&error)));
                });
            }
        }
        managed.wait(pause, |inner| inner.resolve.is_some());
        pause = (pause * 2).min(LONGEST);
    };
    tracing::info!(vm = %managed.name(), stays, "the hand-over is resolved");
    if stays {
        stay(host, managed, true, &operation);
    } else if !gone(host, managed) {
        return;
    }
    end(stream, id);
}

/// Asks the target about a hand-over; gives the word again if it waits for it. What it says comes with
/// the connection on which it waits for the last word.
fn ask(host: &Host, id: &MoveId, peer: &str) -> Result<(Standing, Stream), MoveError> {
    let Some(tls) = &host.tls else { return Err(MoveError::Protocol) };
    let mut stream = dial(tls, peer)?;
    send(&mut stream, &Message::Query { id: id.clone(), from_source: true })?;
    let Message::Standing { standing } = receive(&mut stream)? else {
        return Err(MoveError::Protocol);
    };
    if standing == Standing::Waiting {
        send(&mut stream, &Message::Commit { id: id.clone() })?;
        return match receive(&mut stream)? {
            Message::Running => Ok((Standing::Given, stream)),
            Message::RunFailed { .. } => Ok((Standing::Never, stream)),
            _ => Err(MoveError::Protocol),
        };
    }
    Ok((standing, stream))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

impl<'a, P: FnMut(MoveProgress)> Mover<'a, P> {
    fn fault(&self, point: &str) {
        self.host.faults.pass(point, self.timeout, || {
            for cutter in &self.cutters {
                cutter.cut();
            }
        });
    }

    /// Does `work`, which may take long, and lets the target know meanwhile that this host is
    /// still there. A connection that fails meanwhile shows at its next use.
    fn keeping_alive<T: Send>(
        &self,
        control: &mut Stream,
        round: u32,
        work: impl FnOnce() -> T + Send,
    ) -> T {
        std::thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let worker = scope.spawn(move || {
                let result = work();
                // The receiver waits for just this.
                let _ = tell.send(());
                result
            });
            while let Err(mpsc::RecvTimeoutError::Timeout) = told.recv_timeout(self.timeout / 4) {
                let _ = send(control, &Message::Alive { round });
            }
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn tell(&mut self, phase: &str, round: u32, sent_pages: u64, total_pages: u64) {
        let bytes = self.statistics.bytes;
        let phase = phase.to_owned();
        (self.progress)(MoveProgress { phase, round, sent_pages, total_pages, bytes });
    }

    fn run(&mut self) -> Ending {
        let mut control = match self.connect() {
            Ok(control) => control,
            Err(error) => return Ending::Stays(error),
        };
        let ready = self.until_ready(&mut control);
        let (paused_at, _log) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                // The target gives up at once if it hears this, and later if it does not.
                let _ = send(&mut control, &Message::Abort { id: self.id.clone() });
                return Ending::Stays(error);
            }
        };
        self.tell("commit", 0, 0, 0);
        let record = Record::HandedOver { id: self.id.clone(), peer: self.options.to.clone() };
        let recording = Instant::now();
        if let Err(error) = self.host.store.record(self.managed.name(), &record) {
            let _ = send(&mut control, &Message::Abort { id: self.id.clone() });
            return Ending::Stays(MoveError::Store(error));
        }
        self.managed.update(|inner| inner.handed_over = Some(self.id.clone()));
        self.part("record", recording);
        self.fault("source.recorded");
        let running = Instant::now();
        let ending = self.commit(&mut control);
        if matches!(ending, Ending::Moved) {
            self.statistics.downtime_ms = millis(paused_at);
            self.statistics.total_ms = millis(self.started);
            self.part("open and run", running);
            self.fault("source.running");
        }
        if !matches!(ending, Ending::Doubt(_)) {
            self.last_word = Some(control);
        }
        ending
        // Dirty logging stops only here, when the log is dropped.
    }

    fn part(&mut self, name: &str, since: Instant) {
        self.statistics.downtime_parts.push((name.to_owned(), millis(since)));
    }

    fn commit(&mut self, control: &mut Stream) -> Ending {
        let mut exchange = || -> Result<Message, MoveError> {
            send(control, &Message::Commit { id: self.id.clone() })?;
            self.fault("source.commit-sent");
            Ok(receive(control)?)
        };
        match exchange() {
            Ok(Message::Running) => Ending::Moved,
            Ok(Message::RunFailed { why }) => Ending::Stays(MoveError::Refused(why)),
            Ok(_) => Ending::Doubt(MoveError::Protocol),
            Err(error) => Ending::Doubt(error),
        }
    }

    fn connect(&mut self) -> Result<Stream, MoveError> {
        self.tell("connect", 0, 0, 0);
        let control = dial(self.tls, &self.options.to)?;
        self.cutters.extend(control.cutter().ok());
        Ok(control)
    }

    /// Everything up to the target's word that it has it all. Afterwards the guest is paused and
    /// its disks are closed; the log goes on until the hand-over is done.
    fn until_ready(&mut self, control: &mut Stream) -> Result<(Instant, DirtyLog<'a>), MoveError> {
        let mut streams = self.open_streams(control)?;
        let record = Record::MovingOut { id: self.id.clone(), peer: self.options.to.clone() };
        let (host, name) = (self.host, self.managed.name());
        self.keeping_alive(control, 0, || host.store.record(name, &record))
            .map_err(MoveError::Store)?;
        self.fault("source.connected");
        let vm: &'a Vm = self.vm;
        let log = DirtyLog::start(vm.fd(), vm.ram())?;
        let brake = Brake::default();
        let (pending, round) = std::thread::scope(|scope| {
            scope.spawn(|| brake.run(vm));
            let result = self.precopy(control, &mut streams, &log, &brake);
            brake.end();
            result
        })?;

        self.tell("handover", round, 0, 0);
        let paused_at = Instant::now();
        self.keeping_alive(control, round, || vm.pause(DRAIN_LIMIT))?;
        self.paused = true;
        self.part("pause and drain", paused_at);
        if self.vm.control().ended().is_some() {
            return Err(MoveError::Ended);
        }
        self.fault("source.paused");
        let mut last = log.take()?;
        last.join(&pending);
        let begin = Instant::now();
        let (sent, closed, close_ms) = self.keeping_alive(control, round, || {
            std::thread::scope(|scope| {
                let sending =
                    scope.spawn(|| send_round(&mut streams, vm.ram(), &last, round, |_| Ok(())));
                let begin = Instant::now();
                let closed = close_disks(host, vm);
                let close_ms = millis(begin);
                let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (sent, closed, close_ms)
            })
        });
        let sent = sent?;
        closed?;
        self.part("last pages", begin);
        self.statistics.downtime_parts.push(("close disks (meanwhile)".into(), close_ms));
        self.count(sent);
        self.fault("source.disk-closed");

        let begin = Instant::now();
        let mut state = self.vm.save()?;
        state.set_clocks_forward(self.offset.map_or(0, |offset| offset.nanos));
        let state = serde_json::to_vec(&state).map_err(wire::WireError::from)?;
        self.statistics.bytes += state.len() as u64;
        wire::write_frame(control, Kind::State, &state)?;
        std::io::Write::flush(control).map_err(wire::WireError::from)?;
        self.fault("source.state-sent");
        match receive(control)? {
            Message::Ready => {}
            Message::Refused { why } => return Err(MoveError::Refused(why)),
            _ => return Err(MoveError::Protocol),
        }
        self.part("state", begin);
        self.fault("source.ready");
        Ok((paused_at, log))
    }

    fn open_streams(&mut self, control: &mut Stream) -> Result<Vec<Stream>, MoveError> {
        self.tell("check", 0, 0, 0);
        let count = self.options.streams.unwrap_or(self.config.streams).clamp(1, 16);
        let shapes = self.vm.disks().iter().zip(&self.managed.definition.disks);
        let address = self.host.migration_address.get().map(ToString::to_string);
        // From here on whatever runs here again is later than the run there.
        let run = self.host.store.next_run(self.managed.name()).map_err(MoveError::Store)?;
        let hello = Hello {
            version: wire::VERSION,
            state_version: state::VERSION,
            id: self.id.clone(),
            definition: self.managed.definition.clone(),
            model: self.vm.model().clone(),
            shapes: shapes
                .map(|((_, blk), definition)| Shape::new(blk.geometry(), definition.read_only))
                .collect(),
            source: self.config.advertise.clone().or(address).unwrap_or_default(),
            streams: count,
            run: Some(run),
        };
        send(control, &Message::Hello(Box::new(hello)))?;
        let token = match receive(control)? {
            Message::Accepted { token } => token,
            Message::Refused { why } => return Err(MoveError::Refused(why)),
            _ => return Err(MoveError::Protocol),
        };
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = dial(self.tls, &self.options.to)?;
            self.cutters.extend(stream.cutter().ok());
            let asked = state::now();
            send(&mut stream, &Message::Join { id: self.id.clone(), token: token.clone() })?;
            let Message::Joined { now } = receive(&mut stream)? else {
                return Err(MoveError::Protocol);
            };
            if let Some(theirs) = now {
                let offset = Offset::of(asked, theirs, state::now());
                self.offset = Some(self.offset.map_or(offset, |known| known.better(offset)));
            }
            streams.push(stream);
        }
        self.statistics.streams = count;
        Ok(streams)
    }

    fn count(&mut self, round: host_api::MoveRound) {
        self.statistics.pages += round.pages;
        self.statistics.zero_pages += round.zero_pages;
        self.statistics.bytes += round.bytes;
        self.statistics.rounds.push(round);
    }

    /// Rounds with the guest running; returns the pages left for the last round and its number.
    fn precopy(
        &mut self,
        control: &mut Stream,
        streams: &mut [Stream],
        log: &DirtyLog<'_>,
        brake: &Brake,
    ) -> Result<(PageSet, u32), MoveError> {
        let limit = self.options.downtime_ms.unwrap_or(self.config.downtime_ms);
        let mut pace = Pace::new(Duration::from_millis(u64::from(limit)), self.config.max_rounds);
        let ram = self.vm.ram().clone();
        // What was never touched is zero here and fresh there: it is counted, not sent.
        let mut set = PageSet::touched(&ram);
        let untouched = PageSet::all(&ram).count() - set.count();
        let begin = Instant::now();
        let mut round = 0;
        loop {
            let total = set.count();
            self.tell("precopy", round, 0, total);
            send(control, &Message::Alive { round })?;
            let mut sent = send_round(streams, &ram, &set, round, |pages| {
                self.tell("precopy", round, pages, total);
                send(control, &Message::Alive { round })
            })?;
            self.fault("source.precopy");
            pace.learn(&sent);
            if round == 0 {
                sent.pages += untouched;
                sent.zero_pages += untouched;
            }
            self.count(sent);
            if self.vm.control().ended().is_some() {
                return Err(MoveError::Ended);
            }
            // What is flushed now need not be flushed while the guest is paused.
            let (host, vm) = (self.host, self.vm);
            self.keeping_alive(control, round, || host.runtime.block_on(vm.flush_disks()));
            set = log.take()?;
            round += 1;
            let dirty = set.count();
            if pace.is_last(round, dirty) {
                let seconds = begin.elapsed().as_secs_f64().max(1e-6);
                self.statistics.mb_per_s = self.statistics.bytes as f64 / 1e6 / seconds;
                return Ok((set, round));
            }
            if pace.is_losing(dirty) {
                brake.harder();
            }
        }
    }
}

fn close_disks(host: &Host, vm: &Vm) -> Result<(), vmm::Error> {
    let mut result = Ok(());
    for (location, disk) in vm.detach_disks() {
        if let Err(source) = host.runtime.block_on(disk.close()) {
            result = Err(vmm::Error::Disk { location, source });
        }
    }
    result
}
