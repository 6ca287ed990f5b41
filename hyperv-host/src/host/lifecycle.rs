//! How machines start, end and start again.

use std::{
    sync::{Arc, MutexGuard, mpsc},
    time::{Duration, Instant},
};

use host_api::{VmName, VmState};
use vmm::{
    DRAIN_LIMIT, DiskShape, Vm,
    platform::{bus::lock, error::chain, lifecycle::EndReason},
};

use super::{
    Host, HostError,
    machine::{Inner, Managed},
    records::Record,
    spawn,
};
use crate::{
    agent::Agent,
    allowed::Whose,
    disks::{self, Run},
    nics,
    worker::{
        launch,
        machine::Machine,
        protocol::{Request, Shape},
        remote,
    },
};

/// A machine that is reset sooner than that after its start may be in a loop.
const SOON: Duration = Duration::from_secs(10);
/// So many resets soon after a start, one after the other, are a loop.
const LOOP: u32 = 6;
/// How long a machine that is stopped by force may take to close its disks before it is off.
pub(super) const FORCED: Duration = Duration::from_millis(1500);
/// How long storage is waited for after that, in the background.
const CLOSING: Duration = Duration::from_secs(10);
/// Longest pause before a VM whose host came back is tried to be started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Who has a VM started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// Somebody who asked for it.
    Operator,
    /// The host, as long as nobody says otherwise.
    Host,
}

impl Host {
    /// Starts a VM that is off.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start(self: &Arc<Self>, name: &VmName) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let operation = managed.try_operate()?;
        let state = managed.state();
        if !matches!(state, VmState::Off | VmState::Failed) {
            return Err(HostError::State { name: name.clone(), state });
        }
        self.start_locked(&managed, &operation, Starter::Operator)
    }

    /// Starts a VM that ran when the host stopped, however long its storage takes to be there: after
    /// a power cut the host may be up before its file server is. Ends when the VM runs, is gone, or
    /// nobody wants it to start any more.
    pub(crate) fn start_in_time(self: &Arc<Self>, managed: &Arc<Managed>) {
        let name = managed.name();
        let mut pause = Duration::from_secs(1);
        loop {
            let operation = managed.operate();
            if !self.is_wanted(managed) {
                break;
            }
            let started = self.start_locked(managed, &operation, Starter::Host);
            drop(operation);
            let error = match started {
                Ok(()) | Err(HostError::State { .. }) => break,
                Err(error) => chain(&error),
            };
            tracing::error!(vm = %name, error, again_in = ?pause, "not started");
            managed.update(|inner| {
                let again = format!(
                    "not started yet, tried again every {} s at most",
                    LONGEST_PAUSE.as_secs()
                );
                inner.reason = Some(format!("{again}: {error}"));
            });
            if managed.wait(pause, |inner| !inner.starting) {
                break;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether a VM that is off is still to be started without being asked: it is this one that is in
    /// the table, and not another of its name, and nobody has stopped it meanwhile.
    fn is_wanted(&self, managed: &Arc<Managed>) -> bool {
        let here = self.find(managed.name()).is_ok_and(|here| Arc::ptr_eq(&here, managed));
        let waits = managed.update(|inner| inner.starting && inner.state == VmState::Off);
        here && waits && !self.is_shutting_down()
    }

    /// Starts a VM whose operation lock is held.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start_locked(
        self: &Arc<Self>,
        managed: &Arc<Managed>,
        _operation: &MutexGuard<'_, ()>,
        starter: Starter,
    ) -> Result<(), HostError> {
        let definition = &*managed.definition();
        if self.is_shutting_down() {
            return Err(HostError::ShuttingDown);
        }
        self.allowed.check(definition, Whose::Own)?;
        let _memory = self.reserve_memory(definition.memory_mib)?;
        let number = self.store.next_run(managed.name()).map_err(HostError::Store)?;
        let by_watchdog = managed.update(|inner| std::mem::take(&mut inner.reset_by_watchdog));
        let vm = if self.config.host.workers {
            self.build_apart(managed, number, by_watchdog)?
        } else {
            self.build_here(managed, number, by_watchdog)?
        };
        let recorded = if starter == Starter::Host {
            // Its record says already that it runs. It may have been stopped while its disks were
            // opened; from here on it is stopped as one that runs.
            self.claim(managed)
        } else {
            self.store.record(managed.name(), &Record::Running).map_err(HostError::Store)
        };
        if let Err(error) = recorded.and_then(|()| Ok(vm.run()?)) {
            self.end_machine(managed, &vm, self.disk_limit());
            return Err(error);
        }
        self.adopt(managed, vm);
        tracing::info!(vm = %managed.name(), "started");
        Ok(())
    }

    /// Builds a machine in a process of its own.
    fn build_apart(
        &self,
        managed: &Managed,
        run: u64,
        by_watchdog: bool,
    ) -> Result<Machine, HostError> {
        let definition = (*managed.definition()).clone();
        let taps = nics::open_all(&definition).map_err(vmm::Error::os("make a tap"))?;
        let storage = self.config.storage.of_disks(&definition.disks);
        let io_threads = self.config.host.io_threads;
        let shape = Shape { definition, storage, io_threads, run, by_watchdog };
        let (remote, variables) = launch::start(&self.config.host.state_dir, shape, &taps)?;
        let process = remote.process();
        let machine = Machine::Apart(Arc::new(remote));
        if let Err(error) = self.give_variables(managed, &machine, variables) {
            self.end_machine(managed, &machine, self.disk_limit());
            return Err(error);
        }
        tracing::info!(vm = %managed.name(), %process, "it has a worker process");
        Ok(machine)
    }

    /// Builds a machine in this process.
    fn build_here(
        &self,
        managed: &Managed,
        number: u64,
        by_watchdog: bool,
    ) -> Result<Machine, HostError> {
        let definition = &*managed.definition();
        let run = Run::new(definition.id, number);
        let limit = self.disk_limit();
        let disks = self.runtime.block_on(async {
            let prepared = disks::prepare_all(definition, &self.disks, &run, limit).await?;
            disks::open_all(&prepared, &run, limit).await
        })?;
        let shapes: Vec<DiskShape> = disks
            .iter()
            .map(|disk| DiskShape { geometry: disk.geometry(), read_only: disk.is_read_only() })
            .collect();
        let built = nics::open_all(definition)
            .map_err(vmm::Error::os("make a tap"))
            .and_then(|taps| {
                let runtime = self.runtime.handle().clone();
                Vm::build(&self.kvm, definition, &shapes, None, taps, runtime)
            })
            .and_then(|vm| {
                vm.set_loss_rule(self.loss_rule());
                vm.load()?;
                vm.attach_disks(disks.clone())?;
                if let Some(watchdog) = vm.watchdog().filter(|_| by_watchdog) {
                    lock(watchdog).set_expired_before();
                }
                Ok(vm)
            });
        let given = built.map_err(HostError::from).and_then(|vm| {
            let variables = vm.variables();
            let machine = Machine::Here(Arc::new(vm));
            self.give_variables(managed, &machine, variables)?;
            Ok(machine)
        });
        given.inspect_err(|_| self.close_disks(managed.name(), disks, limit))
    }

    /// Gives a machine the variables that its firmware had when it ran last.
    fn give_variables(
        &self,
        managed: &Managed,
        vm: &Machine,
        first: Option<Vec<u8>>,
    ) -> Result<(), HostError> {
        let Some(first) = first else { return Ok(()) };
        let name = managed.name();
        let file = self.store.variables(name, &first).map_err(HostError::Store)?;
        vm.load_variables(file).map_err(|error| match error {
            vmm::Error::Config(why) => {
                let path = self.store.variables_file(name).display().to_string();
                vmm::Error::Config(format!(
                    "{path}: {why}; without this file it starts with new ones"
                ))
            }
            error => error,
        })?;
        Ok(())
    }

    /// Takes a VM that was to be started out of the hands of who may stop it meanwhile.
    fn claim(&self, managed: &Arc<Managed>) -> Result<(), HostError> {
        let here = self.find(managed.name()).is_ok_and(|here| Arc::ptr_eq(&here, managed));
        let may = here && !self.is_shutting_down();
        let claimed = managed.update(|inner| {
            let claimed = may && inner.starting && inner.state == VmState::Off;
            if claimed {
                (inner.starting, inner.state) = (false, VmState::Running);
            }
            claimed
        });
        if claimed {
            return Ok(());
        }
        let (name, state) = (managed.name().clone(), managed.state());
        Err(HostError::State { name, state })
    }

    /// Makes a running machine this VM's and watches over its end.
    pub fn adopt(self: &Arc<Self>, managed: &Arc<Managed>, vm: Machine) {
        managed.update(|inner| {
            inner.state = VmState::Running;
            inner.reason = None;
            inner.vm = Some(vm.clone());
            inner.agent = Some(Arc::new(Agent::new(vm.agent())));
            (inner.trouble, inner.away) = (None, None);
            (inner.stands, inner.expired) = (false, 0);
            inner.starting = false;
            inner.resets.0 = Some(Instant::now());
        });
        let (host, managed) = (self.clone(), managed.clone());
        spawn(format!("{}/watch", managed.name()), move || host.watch(&managed, &vm));
    }

    /// Waits for a machine's end and puts things in order after it.
    fn watch(self: &Arc<Self>, managed: &Arc<Managed>, vm: &Machine) {
        let reason = self.watch_over(managed, vm);
        let operation = managed.operate();
        if !managed.has(vm) {
            // It was moved away, or another machine has taken its place.
            return;
        }
        if self.is_shutting_down() {
            return;
        }
        tracing::info!(vm = %managed.name(), ?reason, "ended");
        let restart =
            matches!(reason, EndReason::Reset | EndReason::Watchdog | EndReason::TripleFault(_));
        let (state, why) = match &reason {
            EndReason::Failed(why) => (VmState::Failed, Some(why.clone())),
            EndReason::Stopped => (VmState::Off, Some("stopped by force".to_owned())),
            EndReason::PowerOff => (VmState::Off, None),
            EndReason::Reset => (VmState::Off, Some("it asked for a reset".to_owned())),
            EndReason::Watchdog => {
                tracing::error!(vm = %managed.name(), "its watchdog has expired, the machine is reset");
                managed.update(|inner| inner.reset_by_watchdog = true);
                (VmState::Off, Some("its watchdog has expired".to_owned()))
            }
            EndReason::TripleFault(place) => {
                tracing::warn!(vm = %managed.name(), place, "triple fault, the machine is reset");
                (VmState::Off, Some(format!("a triple fault: {place}")))
            }
        };
        // One that is reset is never off by the records: a host that fails meanwhile starts it.
        if !restart {
            self.record_off(managed);
        }
        let closing = if reason == EndReason::Stopped { CLOSING } else { self.disk_limit() };
        let torn_down = self.tear_down_aside(managed, vm, closing);
        let limit = if reason == EndReason::Stopped { FORCED } else { Duration::MAX };
        if torn_down.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Storage that does not answer keeps nobody from being told that the guest has ended.
            let why =
                "stopped by force; its storage does not answer, so its disks are not closed yet";
            managed.update(|inner| {
                inner.state = state;
                inner.reason = Some(why.to_owned());
                inner.vm = None;
            });
            // Until they are, nothing can be done with it.
            let _ = torn_down.recv();
            return;
        }
        if restart {
            self.restart(managed, operation, why.unwrap_or_default());
            return;
        }
        managed.update(|inner| {
            inner.state = state;
            inner.reason = why;
            inner.vm = None;
            // Whoever sees that it is off may start or delete it at once.
            drop(operation);
        });
    }

    /// Starts a VM again that was reset; with a pause if that happens again and again soon after its
    /// start, and at last not at all.
    fn restart<'a>(
        self: &Arc<Self>,
        managed: &'a Arc<Managed>,
        operation: MutexGuard<'a, ()>,
        why: String,
    ) {
        let name = managed.name();
        let resets = managed.update(|inner| {
            let soon = inner.resets.0.is_some_and(|began| began.elapsed() < SOON);
            inner.resets.1 = if soon { inner.resets.1 + 1 } else { 0 };
            inner.vm = None;
            inner.state = VmState::Off;
            inner.starting = inner.resets.1 < LOOP;
            inner.resets.1
        });
        if resets >= LOOP {
            let why = format!(
                "reset {resets} times in a row, each time less than {} s after its start; last: {why}",
                SOON.as_secs()
            );
            tracing::error!(vm = %name, why, "not started again");
            self.record_off(managed);
            managed.update(|inner| {
                (inner.state, inner.reason, inner.resets) = (VmState::Failed, Some(why), (None, 0));
            });
            return;
        }
        let mut operation = Some(operation);
        if resets > 1 {
            let pause = Duration::from_secs(1) * 2u32.pow(resets - 2);
            let reason = format!("{why}; started again in {} s", pause.as_secs());
            managed.update(|inner| inner.reason = Some(reason));
            // Who does not want that says so meanwhile.
            operation = None;
            if managed.wait(pause, |inner| !inner.starting) {
                return;
            }
        }
        let operation = match operation {
            Some(operation) => operation,
            None => managed.operate(),
        };
        if !self.is_wanted(managed) {
            return;
        }
        let started = self.start_locked(managed, &operation, Starter::Host);
        drop(operation);
        if let Err(error) = started {
            tracing::error!(vm = %name, error = chain(&error), "not started after a reset");
            self.start_in_time(managed);
        }
    }

    pub(super) fn record_off(&self, managed: &Managed) {
        if let Err(error) = self.store.record(managed.name(), &Record::Off) {
            tracing::error!(vm = %managed.name(), %error, "cannot record that it is off");
        }
    }

    /// Ends a machine and closes its disks on a thread of its own; says so when that is done.
    fn tear_down_aside(
        self: &Arc<Self>,
        managed: &Arc<Managed>,
        vm: &Machine,
        limit: Duration,
    ) -> mpsc::Receiver<()> {
        let (done, torn_down) = mpsc::channel();
        let (host, vm) = (self.clone(), vm.clone());
        let ended = managed.clone();
        spawn(format!("{}/end", managed.name()), move || {
            host.end_machine(&ended, &vm, limit);
            let _ = done.send(());
        });
        torn_down
    }

    /// Ends a machine, wherever it is, as [`Host::tear_down`] says.
    pub(super) fn end_machine(&self, managed: &Managed, vm: &Machine, limit: Duration) {
        match vm {
            Machine::Here(vm) => self.tear_down(managed, vm, limit),
            Machine::Apart(worker) => {
                let disks = worker.definition().disks.len() as u32 + 1;
                let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                let torn = Request::TearDown { limit_ms };
                if let Err(error) =
                    worker.ask(&torn, &[], DRAIN_LIMIT + limit * disks + remote::SOON)
                {
                    tracing::debug!(vm = %managed.name(), %error, "its worker");
                }
                worker.kill();
            }
        }
    }

    /// Ends a machine and closes its disks: what is in flight, and each disk, may take `limit`.
    pub fn tear_down(&self, managed: &Managed, vm: &Vm, limit: Duration) {
        vm.stop(limit.min(DRAIN_LIMIT));
        let disks = vm.detach_disks().into_iter().map(|(_, disk)| disk).collect();
        self.close_disks(managed.name(), disks, limit);
    }

    fn close_disks(&self, name: &VmName, disks: Vec<Arc<dyn block_io::Disk>>, limit: Duration) {
        for disk in disks {
            let closed = self.runtime.block_on(disks::in_time(limit, "of the VM", disk.close()));
            if let Err(error) = closed {
                tracing::error!(vm = %name, error = chain(&error), "a disk was not closed in order");
            }
        }
    }

    /// Stops a VM.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn stop(&self, name: &VmName, force: bool, limit: Duration) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let waits = managed.update(|inner| {
            let waits = inner.state == VmState::Off && inner.starting;
            if waits {
                inner.starting = false;
                inner.reason = Some("stopped while it waited to be started".to_owned());
            }
            waits
        });
        if waits {
            // An attempt that is under way sees that it is not wanted.
            return self.store.record(name, &Record::Off).map_err(HostError::Store);
        }
        let state = managed.state();
        let halted = matches!(state, VmState::PausedCritical | VmState::Fenced | VmState::Paused);
        let vm = match managed.machine() {
            Some(vm) if halted || state == VmState::Running => vm,
            _ => return Err(HostError::State { name: name.clone(), state }),
        };
        if !force {
            if halted {
                return Err(HostError::Halted { name: name.clone(), state });
            }
            return self.stop_in_order(&managed, &vm, limit);
        } else if halted {
            // Who has it waits for its storage, which nobody has to.
            vm.end(EndReason::Stopped);
        } else {
            let _operation = managed.try_operate()?;
            vm.end(EndReason::Stopped);
        }
        if wait_gone(&managed, &vm, limit) {
            Ok(())
        } else {
            Err(HostError::StillOn { name: name.clone(), seconds: limit.as_secs() })
        }
    }

    /// Has a guest power off, which it has `limit` for: by its agent, and if it is still on after half of
    /// that by the power button.
    fn stop_in_order(
        &self,
        managed: &Managed,
        vm: &Machine,
        limit: Duration,
    ) -> Result<(), HostError> {
        let (name, begin) = (managed.name(), Instant::now());
        let left = |limit: Duration| limit.saturating_sub(begin.elapsed());
        self.ask_to_stop(name, managed.agent().as_deref(), vm);
        if wait_gone(managed, vm, left(limit / 2)) {
            return Ok(());
        }
        vm.press_power_button();
        if wait_gone(managed, vm, left(limit)) {
            return Ok(());
        }
        Err(HostError::StillOn { name: name.clone(), seconds: limit.as_secs() })
    }

    /// Ends a machine when its guest has, or at `deadline`, unless it is somebody else's by then.
    pub(super) fn end_by(&self, managed: &Managed, vm: &Machine, deadline: Instant) {
        let left = || deadline.saturating_duration_since(Instant::now());
        vm.wait_end(left());
        let Ok(_operation) = managed.operate_within(left()) else { return };
        if managed.update(|inner| inner.vm.take()).is_some() {
            self.end_machine(managed, vm, CLOSING);
        }
    }
}

/// Waits until a machine is not its VM's any more; whether that is so by then.
fn wait_gone(managed: &Managed, vm: &Machine, limit: Duration) -> bool {
    managed.wait(limit, |inner: &Inner| !inner.has(vm))
}
