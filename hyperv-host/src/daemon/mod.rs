//! The daemon: the table of VMs, what is done with them, and what must be remembered.
//!
//! ```text
//!  control (unix socket) ──► Host ──┬─► Managed (one VM) ──► vmm::Vm
//!  migrate::target (TLS) ──►        ├─► store (durable)
//!                                   └─► migrate::source ═══► another host
//!
//!  Off ── start ──► Running ── move ──► MovingOut ──► (gone, or Running again)
//!   ▲                 │                    └── cut off after the hand-over ──► InDoubt
//!   └── power off ────┘        MovingIn (received) ──► Running | gone | InDoubt
//! ```
//!
//! A VM's standing changes only under its operation lock; its state word is for looking at.

pub mod control;
pub mod memory;
pub mod store;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, TryLockError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use disk_source::{Configured, Source};
use host_api::{
    AfterHostFailure, DiskUsage, MoveStatistics, VmDefinition, VmDetail, VmName, VmState, VmSummary,
};
use kvm_ioctls::Kvm;
use smb_client::SmbUrl;
use tokio::runtime::Runtime;
use vmm::{
    DiskShape, Vm,
    platform::{
        bus::{lock, lock_within},
        error::chain,
        lifecycle::EndReason,
    },
};

use self::store::{MoveId, Record, Store};
use crate::{
    allowed::{Allowed, NotAllowed, Whose},
    config::Config,
    disks,
    migrate::{fault::Faults, target::Arrivals, tls::Tls, wire::Standing},
};

/// Why something asked of the host was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no such VM.
    #[error("there is no VM {0}")]
    Unknown(VmName),
    /// There is one already.
    #[error("there is a VM {0} already")]
    Exists(VmName),
    /// Another has its id.
    #[error("VM {name} has the id of VM {other}; leave `id` out and it gets one of its own")]
    SameId {
        /// Which.
        name: VmName,
        /// The one that is here.
        other: VmName,
    },
    /// It is not in a state for that.
    #[error("VM {name} is {}", .state.as_str())]
    State {
        /// Which.
        name: VmName,
        /// How it is.
        state: VmState,
    },
    /// Something else is being done with it.
    #[error("VM {0} is busy")]
    Busy(VmName),
    /// A limit of the configuration.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// It did not end in time.
    #[error("VM {name} did not power off within {seconds} s; --force ends it")]
    StillOn {
        /// Which.
        name: VmName,
        /// How long it had.
        seconds: u64,
    },
    /// The machine failed.
    #[error(transparent)]
    Vm(#[from] vmm::Error),
    /// A definition is not possible.
    #[error(transparent)]
    Definition(#[from] host_api::DefinitionError),
    /// It names what VMs of this host may not have.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// Nobody says who this host is to the server of a disk.
    #[error("disk {location}: this host cannot log on there")]
    Login {
        /// Where it is.
        location: String,
        /// Why.
        #[source]
        source: smb_client::CredentialsError,
    },
    /// The state folder failed.
    #[error("cannot keep the host's records")]
    Store(#[source] io::Error),
    /// A move failed; the VM runs on here.
    #[error("not moved: {0}")]
    NotMoved(String),
    /// The outcome of a move is not known yet.
    #[error("the other host was lost at the hand-over; it is being asked: {0}")]
    InDoubt(String),
    /// The daemon is about to end.
    #[error("this host is being shut down")]
    ShuttingDown,
    /// The configuration has no part for moving.
    #[error("this host has no [migration] in its configuration")]
    NoMigration,
}

/// A machine that is reset sooner than that after its start may be in a loop.
const SOON: Duration = Duration::from_secs(10);
/// So many resets soon after a start, one after the other, are a loop.
const LOOP: u32 = 6;
/// How long a machine that is stopped by force may take to close its disks before it is off.
const FORCED: Duration = Duration::from_millis(1500);
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

/// How long an operation waits for a VM that has come to be in the records.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// What of a VM can be looked at at any time.
#[derive(Debug)]
pub struct Inner {
    /// How it is.
    pub state: VmState,
    /// The machine while it runs or is paused here.
    pub vm: Option<Arc<Vm>>,
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
    /// The move by which it was given to another host, until that host is known to have it.
    pub handed_over: Option<MoveId>,
}

/// A VM of this host.
#[derive(Debug)]
pub struct Managed {
    /// What it is.
    pub definition: VmDefinition,
    operation: Mutex<()>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Managed {
    /// A VM that is not running.
    pub fn new(definition: VmDefinition, state: VmState) -> Arc<Self> {
        Arc::new(Self {
            definition,
            operation: Mutex::new(()),
            inner: Mutex::new(Inner {
                state,
                vm: None,
                reason: None,
                last_move: None,
                resolve: None,
                settling: false,
                resets: (None, 0),
                starting: false,
                handed_over: None,
            }),
            changed: Condvar::new(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &VmName {
        &self.definition.name
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

    /// How it is.
    pub fn state(&self) -> VmState {
        lock(&self.inner).state
    }

    /// The machine, if there is one.
    pub fn vm(&self) -> Option<Arc<Vm>> {
        lock(&self.inner).vm.clone()
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

    fn summary(&self) -> VmSummary {
        VmSummary {
            name: self.name().clone(),
            state: self.state(),
            vcpus: self.definition.vcpus,
            memory_mib: self.definition.memory_mib,
        }
    }
}

/// A VM host.
#[derive(Debug)]
pub struct Host {
    /// Its configuration.
    pub config: Config,
    /// The file servers that it has logins for.
    pub servers: Configured,
    /// What opens its machines' disks.
    pub disks: Source,
    /// What VMs may name.
    pub allowed: Allowed,
    /// KVM.
    pub kvm: Kvm,
    /// Where disks' I/O runs.
    pub runtime: Runtime,
    /// What it remembers.
    pub store: Store,
    /// Its identity, if it takes part in moves.
    pub tls: Option<Tls>,
    /// Where it listens for other hosts.
    pub migration_address: OnceLock<SocketAddr>,
    /// Faults that were asked for.
    pub faults: Faults,
    /// Moves out that are still deciding.
    pub deciding: Mutex<Vec<MoveId>>,
    /// VMs being received.
    pub arrivals: Arrivals,
    vms: Mutex<BTreeMap<VmName, Arc<Managed>>>,
    /// Memory kept for machines that are being made.
    reserved_mib: Mutex<u64>,
    shutting_down: AtomicBool,
}

impl Host {
    /// Opens the state folder and KVM. Nothing runs yet: see [`Host::recover`].
    ///
    /// # Errors
    /// What KVM, the certificates or the state folder say.
    pub fn open(config: Config, faults: Faults) -> anyhow::Result<Arc<Self>> {
        use anyhow::Context;
        let allowed = usable(&config)?;
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.host.io_threads)
            .thread_name("disk-io")
            .enable_all()
            .build()
            .context("cannot start the I/O threads")?;
        let store = Store::open(&config.host.state_dir).with_context(|| {
            format!("cannot use the state folder {}", config.host.state_dir.display())
        })?;
        let tls = config.migration.as_ref().map(Tls::load).transpose()?;
        let servers = disks::servers(&config.storage);
        Ok(Arc::new(Self {
            disks: disks::source(servers.clone()),
            servers,
            allowed,
            config,
            kvm,
            runtime,
            store,
            tls,
            migration_address: OnceLock::new(),
            faults,
            deciding: Mutex::default(),
            arrivals: Arrivals::default(),
            vms: Mutex::default(),
            reserved_mib: Mutex::default(),
            shutting_down: AtomicBool::new(false),
        }))
    }

    /// Takes up what the records say after a start of the daemon: VMs that ran are started
    /// afresh (if they want it), VMs that were being handed over are asked for.
    ///
    /// # Errors
    /// What the state folder says.
    pub fn recover(self: &Arc<Self>) -> Result<(), HostError> {
        self.store.recover_arrivals().map_err(HostError::Store)?;
        for (definition, record) in self.store.load().map_err(HostError::Store)? {
            let managed = Managed::new(definition, VmState::Off);
            lock(&self.vms).insert(managed.name().clone(), managed.clone());
            let host = self.clone();
            match record {
                Record::Off => {}
                Record::Running | Record::MovingOut { .. } => {
                    let name = managed.name().clone();
                    self.store.record(&name, &Record::Running).map_err(HostError::Store)?;
                    if managed.definition.after_host_failure == AfterHostFailure::Restart {
                        tracing::info!(vm = %name, "ran when this host stopped, starting it");
                        managed.update(|inner| inner.starting = true);
                        spawn(format!("{name}/start"), move || host.start_in_time(&managed));
                    } else {
                        self.store.record(&name, &Record::Off).map_err(HostError::Store)?;
                        managed.update(|inner| {
                            inner.reason = Some("its host failed while it ran".into());
                        });
                    }
                }
                Record::HandedOver { id, peer } => {
                    managed.update(|inner| {
                        inner.state = VmState::InDoubt;
                        inner.handed_over = Some(id.clone());
                    });
                    spawn(format!("{}/resolve", managed.name()), move || {
                        let operation = managed.operate();
                        crate::migrate::source::resolve(&host, &managed, &id, &peer, operation);
                    });
                }
            }
        }
        Ok(())
    }

    /// What this host, as the source of a move, answers when asked about it.
    pub fn standing_as_source(&self, id: &MoveId) -> Standing {
        if lock(&self.deciding).contains(id) {
            return Standing::Waiting;
        }
        let given = |managed: &Arc<Managed>| lock(&managed.inner).handed_over.as_ref() == Some(id);
        if lock(&self.vms).values().any(given) { Standing::Given } else { Standing::Never }
    }

    /// The VM of that name.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn find(&self, name: &VmName) -> Result<Arc<Managed>, HostError> {
        lock(&self.vms).get(name).cloned().ok_or_else(|| HostError::Unknown(name.clone()))
    }

    /// Whether the host is about to end.
    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Acquire)
    }

    /// Adds a VM to the table. Two VMs with one id would take each other's disks, each being the
    /// later run of the same instance to the server (MS-SMB2 3.3.5.9.13).
    ///
    /// # Errors
    /// [`HostError::Exists`], [`HostError::SameId`], [`HostError::Limit`].
    pub fn insert(&self, managed: &Arc<Managed>) -> Result<(), HostError> {
        let mut vms = lock(&self.vms);
        if vms.len() >= self.config.limits.vms {
            return Err(HostError::Limit("vms"));
        }
        let name = managed.name().clone();
        if vms.contains_key(&name) {
            return Err(HostError::Exists(name));
        }
        let id = managed.definition.id;
        let same = |other: &&Arc<Managed>| id.is_some() && other.definition.id == id;
        if let Some(other) = vms.values().find(same) {
            return Err(HostError::SameId { name, other: other.name().clone() });
        }
        vms.insert(name, managed.clone());
        Ok(())
    }

    /// Takes a VM off the table.
    pub fn remove(&self, managed: &Managed) {
        lock(&self.vms).remove(managed.name());
    }

    /// Takes in a VM.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn create(&self, mut definition: VmDefinition) -> Result<(), HostError> {
        definition.check()?;
        self.check_usable(&definition, Whose::Own)?;
        if definition.id.is_none() {
            let mut id = [0; 16];
            let random = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
            random.map_err(|error| HostError::Store(error.into()))?;
            definition.id = Some(host_api::VmId(id));
        }
        let managed = Managed::new(definition, VmState::Off);
        self.insert(&managed)?;
        self.store.create(&managed.definition).map_err(|error| {
            self.remove(&managed);
            HostError::Store(error)
        })
    }

    /// Checks whether a VM can be one of this host's, as far as that can be told without its
    /// storage: what it names is allowed and there, and this host has a login where its disks are.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn check_usable(&self, definition: &VmDefinition, whose: Whose) -> Result<(), HostError> {
        self.allowed.check(definition, whose)?;
        for disk in &definition.disks {
            let location = disk.location.clone();
            let refused = |source| vmm::Error::Disk { location: location.clone(), source };
            disks::format(disk).map_err(refused)?;
            if let Ok(url) = location.parse::<SmbUrl>() {
                self.servers.login(&url).map_err(|source| HostError::Login { location, source })?;
            }
        }
        Ok(())
    }

    /// Forgets a VM that is off.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn delete(&self, name: &VmName) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let _operation = managed.try_operate()?;
        let state = managed.state();
        if !matches!(state, VmState::Off | VmState::Failed) {
            return Err(HostError::State { name: name.clone(), state });
        }
        self.store.delete(name).map_err(HostError::Store)?;
        managed.update(|inner| inner.starting = false);
        self.remove(&managed);
        Ok(())
    }

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
    fn start_in_time(self: &Arc<Self>, managed: &Arc<Managed>) {
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
        let definition = &managed.definition;
        if self.is_shutting_down() {
            return Err(HostError::ShuttingDown);
        }
        self.allowed.check(definition, Whose::Own)?;
        let _memory = self.reserve_memory(definition.memory_mib)?;
        let disks = self.runtime.block_on(async {
            let prepared = disks::prepare_all(definition, &self.disks).await?;
            disks::open_all(&prepared, definition.id).await
        })?;
        let shapes: Vec<DiskShape> = disks
            .iter()
            .map(|disk| DiskShape { geometry: disk.geometry(), read_only: disk.is_read_only() })
            .collect();
        let built = Vm::build(&self.kvm, definition, &shapes, None, self.runtime.handle().clone())
            .and_then(|vm| {
                vm.load()?;
                vm.attach_disks(disks.clone())?;
                Ok(vm)
            });
        let recorded = built.map_err(HostError::from).and_then(|vm| {
            // It may have been stopped while its disks were opened.
            if starter == Starter::Host && !self.is_wanted(managed) {
                let (name, state) = (managed.name().clone(), managed.state());
                return Err(HostError::State { name, state });
            }
            self.store.record(managed.name(), &Record::Running).map_err(HostError::Store)?;
            Ok(vm)
        });
        let vm = match recorded {
            Ok(vm) => Arc::new(vm),
            Err(error) => {
                self.close_disks(managed.name(), disks);
                return Err(error);
            }
        };
        vm.resume();
        self.adopt(managed, vm);
        tracing::info!(vm = %managed.name(), "started");
        Ok(())
    }

    /// Makes a running machine this VM's and watches over its end.
    pub fn adopt(self: &Arc<Self>, managed: &Arc<Managed>, vm: Arc<Vm>) {
        managed.update(|inner| {
            inner.state = VmState::Running;
            inner.reason = None;
            inner.vm = Some(vm.clone());
            inner.starting = false;
            inner.resets.0 = Some(Instant::now());
        });
        let (host, managed) = (self.clone(), managed.clone());
        spawn(format!("{}/watch", managed.name()), move || host.watch(&managed, &vm));
    }

    /// Waits for a machine's end and puts things in order after it.
    fn watch(self: &Arc<Self>, managed: &Arc<Managed>, vm: &Arc<Vm>) {
        let reason = loop {
            if let Some(reason) = vm.control().wait_end(Duration::from_secs(3600)) {
                break reason;
            }
        };
        let operation = managed.operate();
        if !managed.vm().is_some_and(|current| Arc::ptr_eq(&current, vm)) {
            // It was moved away, or another machine has taken its place.
            return;
        }
        if self.shutting_down.load(Ordering::Acquire) {
            return;
        }
        tracing::info!(vm = %managed.name(), ?reason, "ended");
        let restart = matches!(reason, EndReason::Reset | EndReason::TripleFault(_));
        let (state, why) = match &reason {
            EndReason::Failed(why) => (VmState::Failed, Some(why.clone())),
            EndReason::Stopped => (VmState::Off, Some("stopped by force".to_owned())),
            EndReason::PowerOff => (VmState::Off, None),
            EndReason::Reset => (VmState::Off, Some("it asked for a reset".to_owned())),
            EndReason::TripleFault(place) => {
                tracing::warn!(vm = %managed.name(), place, "triple fault, the machine is reset");
                (VmState::Off, Some(format!("a triple fault: {place}")))
            }
        };
        // One that is reset is never off by the records: a host that fails meanwhile starts it.
        if !restart {
            self.record_off(managed);
        }
        let torn_down = self.tear_down_aside(managed, vm);
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

    fn record_off(&self, managed: &Managed) {
        if let Err(error) = self.store.record(managed.name(), &Record::Off) {
            tracing::error!(vm = %managed.name(), %error, "cannot record that it is off");
        }
    }

    /// Ends a machine and closes its disks on a thread of its own; says so when that is done.
    fn tear_down_aside(
        self: &Arc<Self>,
        managed: &Arc<Managed>,
        vm: &Arc<Vm>,
    ) -> mpsc::Receiver<()> {
        let (done, torn_down) = mpsc::channel();
        let (host, vm) = (self.clone(), vm.clone());
        let ended = managed.clone();
        spawn(format!("{}/end", managed.name()), move || {
            host.tear_down(&ended, &vm);
            let _ = done.send(());
        });
        torn_down
    }

    /// Ends a machine and closes its disks.
    pub fn tear_down(&self, managed: &Managed, vm: &Vm) {
        vm.stop();
        let disks = vm.detach_disks().into_iter().map(|(_, disk)| disk).collect();
        self.close_disks(managed.name(), disks);
    }

    fn close_disks(&self, name: &VmName, disks: Vec<Arc<dyn block_io::Disk>>) {
        for disk in disks {
            if let Err(error) = self.runtime.block_on(disk.close()) {
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
            // An attempt may be under way, which sees that it is not wanted, or has just succeeded.
            let _operation = managed.operate_within(limit)?;
            if managed.state() == VmState::Off {
                return self.store.record(name, &Record::Off).map_err(HostError::Store);
            }
        }
        let state = managed.state();
        let vm = match (state, managed.vm()) {
            (VmState::Running, Some(vm)) => vm,
            _ => return Err(HostError::State { name: name.clone(), state }),
        };
        if force {
            let _operation = managed.try_operate()?;
            vm.control().end(EndReason::Stopped);
        } else {
            vm.press_power_button();
        }
        let gone =
            |inner: &Inner| !inner.vm.as_ref().is_some_and(|current| Arc::ptr_eq(current, &vm));
        if managed.wait(limit, gone) {
            Ok(())
        } else {
            Err(HostError::StillOn { name: name.clone(), seconds: limit.as_secs() })
        }
    }

    /// The operator's decision on a VM in doubt.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn resolve(&self, name: &VmName, run: bool) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let state = managed.state();
        if state != VmState::InDoubt {
            return Err(HostError::State { name: name.clone(), state });
        }
        tracing::warn!(vm = %name, run, "decided by the operator");
        managed.update(|inner| inner.resolve = Some(run));
        Ok(())
    }

    /// All VMs.
    pub fn list(&self) -> Vec<VmSummary> {
        lock(&self.vms).values().map(|managed| managed.summary()).collect()
    }

    /// Everything about a VM.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn show(&self, name: &VmName) -> Result<VmDetail, HostError> {
        let managed = self.find(name)?;
        let summary = managed.summary();
        let vm = managed.vm();
        let usage = |(location, blk): &(String, Arc<vmm::devices::virtio::blk::Blk>)| {
            let counters = &blk.counters;
            DiskUsage {
                location: location.clone(),
                size: blk.geometry().size,
                reads: counters.reads.load(Ordering::Relaxed),
                writes: counters.writes.load(Ordering::Relaxed),
                flushes: counters.flushes.load(Ordering::Relaxed),
                read_bytes: counters.read_bytes.load(Ordering::Relaxed),
                written_bytes: counters.written_bytes.load(Ordering::Relaxed),
                errors: counters.errors.load(Ordering::Relaxed),
                longest_us: counters.longest_us.load(Ordering::Relaxed),
                pauses: counters.pauses.load(Ordering::Relaxed),
                longest_pause_us: counters.longest_pause_us.load(Ordering::Relaxed),
            }
        };
        let disks = vm.as_ref().map(|vm| vm.disks().iter().map(usage).collect());
        let (pauses, longest_pause_us) = vm.as_ref().map(|vm| vm.pauses()).unwrap_or_default();
        let inner = lock(&managed.inner);
        Ok(VmDetail {
            summary,
            definition: managed.definition.clone(),
            reason: inner.reason.clone(),
            disks: disks.unwrap_or_default(),
            pauses,
            longest_pause_us,
            last_move: inner.last_move.clone(),
        })
    }

    /// Ends everything: guests get the configured time to power off and moves that are under way to
    /// end, then guests are ended. Storage that does not answer holds that up for a moment only.
    /// Records stay, so that what ran is started again with the host.
    pub fn shut_down(self: &Arc<Self>) {
        self.shutting_down.store(true, Ordering::Release);
        let all: Vec<_> = lock(&self.vms).values().cloned().collect();
        let running: Vec<_> =
            all.iter().filter_map(|managed| Some((managed.clone(), managed.vm()?))).collect();
        for (managed, vm) in &running {
            if managed.state() == VmState::Running {
                vm.press_power_button();
            }
        }
        let deadline = Instant::now() + Duration::from_secs(self.config.host.shutdown_s.into());
        let ends: Vec<_> = running
            .into_iter()
            .map(|(managed, vm)| {
                let (done, ended) = mpsc::channel();
                let host = self.clone();
                spawn(format!("{}/end", managed.name()), move || {
                    host.end_by(&managed, &vm, deadline);
                    let _ = done.send(());
                });
                ended
            })
            .collect();
        for ended in ends {
            let left = (deadline + FORCED).saturating_duration_since(Instant::now());
            if ended.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::warn!("a VM's disks were not closed in time");
            }
        }
    }

    /// Ends a machine when its guest has, or at `deadline`, unless it is somebody else's by then.
    fn end_by(&self, managed: &Managed, vm: &Vm, deadline: Instant) {
        let left = || deadline.saturating_duration_since(Instant::now());
        vm.control().wait_end(left());
        let Ok(_operation) = managed.operate_within(left()) else { return };
        if managed.update(|inner| inner.vm.take()).is_some() {
            self.tear_down(managed, vm);
        }
    }
}

/// Checks a configuration beyond its text: that what it names is there and can be used.
///
/// # Errors
/// The first thing that is not, by name.
pub fn usable(config: &Config) -> anyhow::Result<Allowed> {
    use anyhow::Context;
    let allowed = Allowed::of(config)
        .map_err(|(what, why)| anyhow::anyhow!("{what:?} in [storage] or [boot]: {why}"))?;
    for server in &config.storage.servers {
        let of = || format!("[[storage.server]] {}", server.host);
        format!("smb://{}/share", server.host)
            .parse::<SmbUrl>()
            .map_err(anyhow::Error::from)
            .and_then(|url| {
                anyhow::ensure!(url.user.is_none() && url.path.is_empty(), "it is no host:port");
                Ok(())
            })
            .with_context(of)?;
        if let Some(file) = &server.credentials {
            smb_client::Login::from_file(file, None).with_context(of)?;
        }
    }
    if let Some(migration) = &config.migration {
        Tls::load(migration)?;
    }
    Ok(allowed)
}

/// Starts a named thread; a host that cannot is out of resources and says so.
pub fn spawn(name: String, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name(name.clone()).spawn(work) {
        tracing::error!(thread = name, %error, "cannot start a thread");
    }
}
