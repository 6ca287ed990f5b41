//! The sending side: what goes over before the hand-over. The protocol and its guarantees are drawn in
//! [`super`]; what happens from then on, and when it breaks, is in [`super::leave`].

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use host_api::{MoveOptions, MoveProgress, MoveStatistics, VmName, VmState};
use vmm::{
    DRAIN_LIMIT, Vm,
    machine::state,
    platform::{
        clock,
        dirty::{DirtyLog, PageSet},
        error::chain,
    },
};

use super::{
    MoveError,
    clock::Offset,
    dial::dial,
    leave::{Leaving, finish},
    send::{Brake, Next, Pace, send_round},
    wire::{self, Hello, Kind, Message, Shape, receive, send},
};
use crate::{
    config::MigrationConfig,
    disks,
    handover::source::{Event, State},
    host::{
        Host, HostError,
        machine::Managed,
        outgoing::Cancel,
        records::{MoveId, Record},
        spawn,
    },
    tls::{Stream, Tls},
};

struct Mover<'a, P> {
    host: &'a Arc<Host>,
    config: &'a MigrationConfig,
    tls: &'a Tls,
    managed: &'a Arc<Managed>,
    vm: &'a Arc<Vm>,
    id: MoveId,
    options: MoveOptions,
    timeout: Duration,
    cancel: Arc<Cancel>,
    /// How far the target's clock is ahead of this host's.
    offset: Option<Offset>,
    statistics: MoveStatistics,
    paused: bool,
    progress: P,
}

/// What has come of the part of a move before the hand-over.
struct Sent<'a> {
    control: Option<Stream>,
    ready: Result<(Instant, DirtyLog<'a>), MoveError>,
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
    if managed.machine().is_some_and(|machine| machine.here().is_none()) {
        return Err(HostError::Apart(name.clone()));
    }
    let (VmState::Running, Some(vm)) = (state, managed.vm()) else {
        return Err(HostError::State { name: name.clone(), state });
    };
    managed.check_unchanged()?;
    // This host knows what it froze and goes on to thaw it; the other one would not.
    if managed.agent().is_some_and(|agent| agent.is_frozen()) {
        return Err(HostError::Frozen(name.clone()));
    }
    let id = MoveId::random().map_err(HostError::Store)?;
    if !host.outgoing.begin(&id, config.max_outgoing) {
        return Err(HostError::Limit("max_outgoing"));
    }
    let cancel = Arc::new(Cancel::default());
    managed.update(|inner| {
        inner.state = VmState::MovingOut;
        inner.cancel = Some(cancel.clone());
    });
    tracing::info!(vm = %name, id = id.as_str(), to = options.to, "moving");
    let peer = options.to.clone();
    let started = Instant::now();
    let timeout = Duration::from_secs(u64::from(config.timeout_s));
    let mut mover = Mover {
        host,
        config,
        tls,
        managed: &managed,
        vm: &vm,
        timeout,
        cancel: cancel.clone(),
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
        paused: false,
        progress,
    };
    let Sent { control, ready } = mover.run();
    let ready =
        ready.and_then(|ready| if cancel.decide() { Ok(ready) } else { Err(MoveError::Cancelled) });
    let (paused, mut statistics) = (mover.paused, std::mem::take(&mut mover.statistics));
    let mut leaving = Leaving::new(host, &managed, &id, &peer);
    (leaving.stream, leaving.paused) = (control, paused);
    let fault = |point: &str| host.faults.pass(point, timeout, || cancel.cut());
    // Dirty logging goes on until the hand-over is done.
    let (event, log) = match ready {
        Ok(ready) => (Event::Ready, Some(ready)),
        Err(error) => {
            leaving.why = Some(if cancel.is_cancelled() { MoveError::Cancelled } else { error });
            (Event::Failed, None)
        }
    };
    let left = leaving.drive(event, &operation, &fault);
    managed.update(|inner| inner.cancel = None);
    for (part, took) in &leaving.parts {
        statistics.downtime_parts.push(((*part).to_owned(), took.as_secs_f64() * 1e3));
    }
    if let (Some(ran), Some((paused_at, _))) = (leaving.ran, &log) {
        statistics.downtime_ms = (ran - *paused_at).as_secs_f64() * 1e3;
        statistics.total_ms = (ran - started).as_secs_f64() * 1e3;
    }
    drop(log);
    let why = leaving.why.take().map(|error| chain(&error)).unwrap_or_default();
    let result = outcome(&managed, &peer, leaving.state(), why, statistics);
    if !left.is_empty() {
        let (machine, peer) = (leaving.into_machine(), peer.clone());
        let (host, managed) = (host.clone(), managed.clone());
        spawn(format!("{name}/resolve"), move || {
            finish(&host, &managed, &id, &peer, machine, left)
        });
    }
    result
}

/// What is told of a move that has come so far, and is left in doubt or over.
fn outcome(
    managed: &Managed,
    peer: &str,
    state: State,
    why: String,
    mut statistics: MoveStatistics,
) -> Result<MoveStatistics, HostError> {
    let name = managed.name();
    match state {
        State::Leaving | State::Gone => {
            "moved".clone_into(&mut statistics.outcome);
            tracing::info!(
                vm = %name, downtime_ms = statistics.downtime_ms, total_ms = statistics.total_ms,
                "moved"
            );
            Ok(statistics)
        }
        State::Given => {
            tracing::error!(vm = %name, error = why, "the other host was lost at the hand-over");
            statistics.outcome = format!("in doubt: {why}");
            managed.update(|inner| {
                inner.state = VmState::InDoubt;
                inner.reason = Some(format!("handed over to {peer}, which is being asked"));
                inner.last_move = Some(statistics);
            });
            Err(HostError::InDoubt(why))
        }
        _ => {
            tracing::warn!(vm = %name, error = why, "not moved, it runs on here");
            statistics.outcome.clone_from(&why);
            managed.update(|inner| inner.last_move = Some(statistics));
            Err(HostError::NotMoved(why))
        }
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

impl<'a, P: FnMut(MoveProgress)> Mover<'a, P> {
    fn fault(&self, point: &str) {
        self.host.faults.pass(point, self.timeout, || self.cancel.cut());
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

    /// All up to the target's word that it has everything.
    fn run(&mut self) -> Sent<'a> {
        let mut control = match self.connect() {
            Ok(control) => control,
            Err(error) => return Sent { control: None, ready: Err(error) },
        };
        let ready = self.until_ready(&mut control);
        if ready.is_ok() {
            self.tell("commit", 0, 0, 0);
        }
        Sent { control: Some(control), ready }
    }

    fn part(&mut self, name: &str, since: Instant) {
        self.statistics.downtime_parts.push((name.to_owned(), millis(since)));
    }

    fn connect(&mut self) -> Result<Stream, MoveError> {
        self.tell("connect", 0, 0, 0);
        let control = dial(self.tls, &self.options.to)?;
        control.cutter().into_iter().for_each(|cutter| self.cancel.add(cutter));
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
        let shapes = self.vm.disks().iter().zip(&self.vm.definition().disks);
        let address = self.host.migration_address.get().map(ToString::to_string);
        // From here on whatever runs here again is later than the run there.
        let run = self.host.store.next_run(self.managed.name()).map_err(MoveError::Store)?;
        let hello = Hello {
            version: wire::VERSION,
            state_version: state::VERSION,
            id: self.id.clone(),
            // The machine is what this says: what has changed since is refused before.
            definition: (*self.managed.definition()).clone(),
            model: self.vm.model().clone(),
            shapes: shapes
                .map(|((_, blk), definition)| Shape::new(blk.geometry(), definition.read_only))
                .collect(),
            source: self.config.advertise.clone().or(address).unwrap_or_default(),
            streams: count,
            run: Some(run),
            oldest: Some(wire::OLDEST),
            needs: Some(self.vm.needs()),
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
            stream.cutter().into_iter().for_each(|cutter| self.cancel.add(cutter));
            let asked = clock::now();
            send(&mut stream, &Message::Join { id: self.id.clone(), token: token.clone() })?;
            let Message::Joined { now } = receive(&mut stream)? else {
                return Err(MoveError::Protocol);
            };
            if let Some(theirs) = now {
                let offset = Offset::of(asked, theirs, clock::now());
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
        let longest = self.options.longest_downtime_ms.unwrap_or(self.config.longest_downtime_ms);
        let millis = |millis: u32| Duration::from_millis(u64::from(millis));
        let longest = millis(longest.max(limit));
        let mut pace = Pace::new(millis(limit), longest, self.config.max_rounds);
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
            let next = pace.next(round, dirty);
            if let Next::GiveUp(pause) = next {
                return Err(MoveError::TooBusy { rounds: round, pause, longest });
            }
            if next == Next::Last {
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
    // What cannot be made durable stays open: the guest goes on with it here.
    let limit = host.disk_limit();
    host.runtime.block_on(async {
        for (location, blk) in vm.disks() {
            if let Some(disk) = blk.disk()
                && !disk.is_read_only()
            {
                disks::in_time(limit, location, disk.flush()).await?;
            }
        }
        let mut result = Ok(());
        for (location, disk) in vm.detach_disks() {
            if let Err(error) = disks::in_time(limit, &location, disk.close()).await {
                result = Err(error);
            }
        }
        result
    })
}
