//! One VM of a host: its definition, its state, and who may change it.
//!
//! The state changes only under the operation lock; without it the state can be looked at.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, TryLockError},
    time::{Duration, Instant},
};

use host_api::{MoveStatistics, VmDefinition, VmName, VmState, VmSummary};
use vmm::{
    Vm,
    devices::virtio::storage::Trouble,
    platform::bus::{lock, lock_within},
};

use super::{HostError, outgoing::Cancel};
use crate::{agent::Agent, worker::machine::Machine};

/// How long an operation waits for a VM that has come to be in the records.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// What of a VM can be looked at at any time.
#[derive(Debug)]
pub struct Inner {
    /// State that the VM is in.
    pub state: VmState,
    /// The machine while it runs or is paused here.
    pub vm: Option<Machine>,
    /// The agent of its guest, while there is a machine.
    pub agent: Option<Arc<Agent>>,
    /// More about the state.
    pub reason: Option<String>,
    /// The last move.
    pub last_move: Option<MoveStatistics>,
    /// The operator's word on a VM in doubt: run it here or not.
    pub resolve: Option<bool>,
    /// It has come by a move and the records are being written: what is asked of it waits.
    pub settling: bool,
    /// When its machine began, and how often in a row one ended soon after that by a reset.
    pub resets: (Option<Instant>, u32),
    /// It is off and will be started without being asked; cleared by who does not want that.
    pub starting: bool,
    /// What keeps its machine from going on.
    pub trouble: Option<Trouble>,
    /// Why its disks cannot be opened again yet, after a move that failed.
    pub away: Option<String>,
    /// It is paused because its watchdog has expired.
    pub stands: bool,
    /// How often its machine's watchdog has expired, as far as that was told.
    pub expired: u64,
    /// Its last machine was reset by its watchdog, which its next guest may ask.
    pub reset_by_watchdog: bool,
    /// Calls off the move that is under way.
    pub cancel: Option<Arc<Cancel>>,
}

impl Inner {
    /// Whether this is its machine.
    pub fn has(&self, machine: &Machine) -> bool {
        self.vm.as_ref().is_some_and(|current| current.is(machine))
    }

    /// The state as it is told: one whose storage is away does not run, whatever is wanted of it.
    pub fn shown(&self) -> VmState {
        match (self.state, &self.trouble, &self.away) {
            (VmState::Running, Some(Trouble::Fenced(_)), _) => VmState::Fenced,
            (VmState::Running, Some(Trouble::Away(_)), _) | (VmState::Running, _, Some(_)) => {
                VmState::PausedCritical
            }
            (VmState::Running, None, None) if self.stands => VmState::Paused,
            (state, _, _) => state,
        }
    }

    /// Why it is in that state, where there is more to say.
    pub fn shown_reason(&self) -> Option<String> {
        let trouble = self.trouble.as_ref().map(|trouble| match trouble {
            Trouble::Fenced(why) | Trouble::Away(why) => why,
        });
        match self.state {
            VmState::Running => trouble.or(self.away.as_ref()).or(self.reason.as_ref()).cloned(),
            _ => self.reason.clone(),
        }
    }
}

/// A VM of this host.
#[derive(Debug)]
pub struct Managed {
    name: VmName,
    definition: Mutex<Arc<VmDefinition>>,
    operation: Mutex<()>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Managed {
    /// A VM that is not running.
    pub fn new(definition: VmDefinition, state: VmState) -> Arc<Self> {
        Arc::new(Self {
            name: definition.name.clone(),
            definition: Mutex::new(Arc::new(definition)),
            operation: Mutex::new(()),
            inner: Mutex::new(Inner {
                state,
                vm: None,
                agent: None,
                reason: None,
                last_move: None,
                resolve: None,
                settling: false,
                resets: (None, 0),
                starting: false,
                trouble: None,
                away: None,
                stands: false,
                expired: 0,
                reset_by_watchdog: false,
                cancel: None,
            }),
            changed: Condvar::new(),
        })
    }

    /// Name of the VM, unique on its host.
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// The definition of its next machine; the one that runs may be of an earlier one.
    pub fn definition(&self) -> Arc<VmDefinition> {
        lock(&self.definition).clone()
    }

    /// Replaces the definition by one of the same name and id.
    pub(super) fn set_definition(&self, definition: VmDefinition) {
        *lock(&self.definition) = Arc::new(definition);
    }

    /// Waits for the right to change its standing.
    pub fn operate(&self) -> MutexGuard<'_, ()> {
        lock(&self.operation)
    }

    /// Takes the right to change its standing if no one has it. Waits for a VM that has just
    /// come to be in the records: that is no one's operation.
    ///
    /// # Errors
    /// [`HostError::Busy`].
    pub fn try_operate(&self) -> Result<MutexGuard<'_, ()>, HostError> {
        self.wait(SETTLE_LIMIT, |inner| !inner.settling);
        match self.operation.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poison)) => Ok(poison.into_inner()),
            Err(TryLockError::WouldBlock) => Err(HostError::Busy(self.name().clone())),
        }
    }

    /// As [`Managed::try_operate`], but waits up to `limit` for another operation to end.
    ///
    /// # Errors
    /// [`HostError::Busy`].
    pub fn operate_within(&self, limit: Duration) -> Result<MutexGuard<'_, ()>, HostError> {
        let begin = Instant::now();
        self.wait(limit, |inner| !inner.settling);
        lock_within(&self.operation, limit.saturating_sub(begin.elapsed()))
            .ok_or_else(|| HostError::Busy(self.name().clone()))
    }

    /// State that the VM is in at present.
    pub fn state(&self) -> VmState {
        lock(&self.inner).shown()
    }

    /// The machine, if there is one.
    pub fn machine(&self) -> Option<Machine> {
        lock(&self.inner).vm.clone()
    }

    /// The machine, if there is one in this process.
    pub fn vm(&self) -> Option<Arc<Vm>> {
        lock(&self.inner).vm.as_ref().and_then(Machine::here).cloned()
    }

    /// Whether this is its machine.
    pub fn has(&self, machine: &Machine) -> bool {
        lock(&self.inner).has(machine)
    }

    /// The agent of its guest, if there is a machine; it may not be running.
    pub fn agent(&self) -> Option<Arc<Agent>> {
        let inner = lock(&self.inner);
        inner.agent.clone().filter(|_| inner.vm.is_some())
    }

    /// Changes what can be looked at and tells those who wait.
    pub fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = change(&mut inner);
        self.changed.notify_all();
        result
    }

    /// Waits until `done` says so, at most `limit`; whether it did.
    pub fn wait(&self, limit: Duration, mut done: impl FnMut(&Inner) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut inner = lock(&self.inner);
        while !done(&inner) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
        true
    }

    /// Looks at what can be looked at.
    pub fn look<T>(&self, at: impl FnOnce(&Inner) -> T) -> T {
        at(&lock(&self.inner))
    }

    /// Its line in a list of VMs.
    pub fn summary(&self) -> VmSummary {
        let (state, reason) = self.look(|inner| (inner.shown(), inner.shown_reason()));
        let definition = self.definition();
        VmSummary {
            name: self.name().clone(),
            state,
            vcpus: definition.vcpus,
            memory_mib: definition.memory_mib,
            reason,
        }
    }
}
