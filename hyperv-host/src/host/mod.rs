//! The host: the table of VMs, what is done with them, and what must be remembered.
//!
//! ```text
//!  control (unix socket) ──► Host ──┬─► machine::Managed (one VM) ──► vmm::Vm
//!  migrate (TLS)         ──►        ├─► records (durable)
//!  recover (after start) ──►        └─► disks ──► disk-source
//!
//!  Off ── start ──► Running ── move ──► MovingOut ──► (gone, or Running again)
//!   ▲                 │                    └── cut off after the hand-over ──► InDoubt
//!   └── power off ────┘        MovingIn (received) ──► Running | gone | InDoubt
//! ```
//!
//! Modules: [`machine`] one VM, [`lifecycle`] how machines start and end, [`records`] the state
//! folder, [`arrivals`] and [`outgoing`] VMs on their way in and out,
//! `guest` what guests tell and do by their agents, [`memory`] its limit, `definitions` changes of what
//! a VM is, `trouble` what becomes of VMs whose storage is away. `control`, `migrate` and `recover`
//! import this module and never the other way round.

pub mod arrivals;
mod definitions;
mod error;
mod files;
mod guest;
pub mod lifecycle;
pub mod machine;
pub mod memory;
pub mod outgoing;
pub mod records;
mod trouble;
mod watchdog;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use disk_source::{ChapLogin, Configured, IscsiUrl, Servers, Source};
use host_api::{DiskReport, VmDefinition, VmDetail, VmName, VmState, VmSummary};
use kvm_ioctls::Kvm;
use smb_client::SmbUrl;
use tokio::runtime::Runtime;
use vmm::platform::bus::lock;

pub use self::error::HostError;
use self::{
    arrivals::{Arrivals, Leftover},
    definitions::Table,
    lifecycle::FORCED,
    machine::Managed,
    outgoing::Outgoing,
    records::Store,
};
use crate::{
    allowed::{Allowed, Whose},
    config::Config,
    disks,
    fault::Faults,
    nics,
    tls::Tls,
    why::{Disks, Looks},
};

/// A VM host: its VMs, their records and what it is configured to allow.
#[derive(Debug)]
pub struct Host {
    /// The configuration file that it was started with.
    pub config: Config,
    /// The file servers that it has logins for.
    pub servers: Configured,
    /// What opens its machines' disks.
    pub disks: Source,
    /// What VMs may name.
    pub allowed: Allowed,
    /// The open `/dev/kvm`.
    pub kvm: Kvm,
    /// Where disks' I/O runs.
    pub runtime: Runtime,
    /// The records in its state folder.
    pub store: Store,
    /// Its identity, if it takes part in moves.
    pub tls: Option<Tls>,
    /// Where it listens for other hosts.
    pub migration_address: OnceLock<SocketAddr>,
    /// Faults that were asked for.
    pub faults: Faults,
    /// Moves of which this host is the source.
    pub outgoing: Outgoing,
    /// VMs being received.
    pub arrivals: Arrivals,
    /// Tells of verdicts on moves that may have been left over.
    pub leftover: Leftover,
    /// What its disks did of late.
    looks: Looks,
    vms: Mutex<Table>,
    /// Memory kept for machines that are being made.
    reserved_mib: Mutex<u64>,
    shutting_down: AtomicBool,
}

impl Host {
    /// Opens the state folder and KVM. Nothing runs yet: see [`crate::recover`].
    ///
    /// # Errors
    /// What KVM, the certificates or the state folder say.
    pub fn open(config: Config, faults: Faults) -> anyhow::Result<Arc<Self>> {
        use anyhow::Context;
        let allowed = usable(&config)?;
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let runtime =
            disks::runtime(config.host.io_threads).context("cannot start the I/O threads")?;
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
            outgoing: Outgoing::default(),
            arrivals: Arrivals::default(),
            leftover: Leftover::default(),
            looks: Looks::default(),
            vms: Mutex::default(),
            reserved_mib: Mutex::default(),
            shutting_down: AtomicBool::new(false),
        }))
    }

    /// Adds a VM that the records say is this host's: the limits held when it came.
    pub fn take_up(&self, managed: &Arc<Managed>) {
        lock(&self.vms).insert(managed.name().clone(), managed.clone());
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
        let name = managed.name().clone();
        if vms.contains_key(&name) {
            return Err(HostError::Exists(name));
        }
        self.check_room(&vms, &managed.definition())?;
        vms.insert(name, managed.clone());
        Ok(())
    }

    /// Whether there is room for one more VM in the table, of this id.
    fn check_room(&self, vms: &Table, definition: &VmDefinition) -> Result<(), HostError> {
        if vms.len() >= self.config.limits.vms {
            return Err(HostError::Limit("vms"));
        }
        let id = definition.id;
        let same = |other: &&Arc<Managed>| id.is_some() && other.definition().id == id;
        match vms.values().find(same) {
            Some(other) => Err(HostError::SameId {
                name: definition.name.clone(),
                other: other.name().clone(),
            }),
            None => Ok(()),
        }
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
        self.store.create(&managed.definition()).map_err(|error| {
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
        self.check_formats(definition)?;
        for disk in &definition.disks {
            let location = disk.location.clone();
            let refused = |source| vmm::Error::Disk { location: location.clone(), source };
            if let Ok(url) = location.parse::<SmbUrl>() {
                self.servers.login(&url).map_err(|source| HostError::Login { location, source })?;
            } else if let Ok(url) = location.parse::<IscsiUrl>() {
                self.servers.chap_login(&url).map_err(|error| refused(error.into()))?;
            }
        }
        if let Some(nic) = definition.nics.iter().find(|nic| !nics::has_bridge(&nic.bridge)) {
            return Err(HostError::NoBridge(nic.bridge.clone()));
        }
        Ok(())
    }

    /// Checks that a VM's disks are of formats that machines run from.
    fn check_formats(&self, definition: &VmDefinition) -> Result<(), HostError> {
        for disk in &definition.disks {
            let location = disk.location.clone();
            disks::format(disk).map_err(|source| vmm::Error::Disk { location, source })?;
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

    /// Calls off a move that is under way.
    ///
    /// # Errors
    /// [`HostError::State`] if it does not move, [`HostError::TooLate`] if it is handed over.
    pub fn cancel_move(&self, name: &VmName) -> Result<(), HostError> {
        let managed = self.find(name)?;
        let (state, cancel) = managed.look(|inner| (inner.shown(), inner.cancel.clone()));
        let cancel = cancel.ok_or_else(|| HostError::State { name: name.clone(), state })?;
        if !cancel.cancel() {
            return Err(HostError::TooLate(name.clone()));
        }
        tracing::info!(vm = %name, "its move is called off");
        Ok(())
    }

    /// All VMs of the host with their states, by name.
    pub fn list(&self) -> Vec<VmSummary> {
        lock(&self.vms).values().map(|managed| managed.summary()).collect()
    }

    /// Everything about a VM.
    ///
    /// # Errors
    /// [`HostError::Unknown`].
    pub fn show(&self, name: &VmName) -> Result<VmDetail, HostError> {
        let managed = self.find(name)?;
        // One that does not run answers nothing.
        let agent = managed.agent().filter(|_| managed.summary().state == VmState::Running);
        let agent = agent.and_then(|agent| guest::look(&agent));
        Ok(VmDetail { agent, ..Self::detail(&managed) })
    }

    /// All VMs, sorted by name, as the host sees them: no guest is asked anything.
    pub fn details(&self) -> Vec<VmDetail> {
        let mut all: Vec<_> = lock(&self.vms).values().cloned().collect();
        all.sort_by(|one, other| one.name().cmp(other.name()));
        all.iter().map(|managed| Self::detail(managed)).collect()
    }

    fn detail(managed: &Managed) -> VmDetail {
        let summary = managed.summary();
        let vm = managed.machine();
        // What a worker does not answer is not told.
        let usage = vm.and_then(|vm| vm.usage().ok());
        let (reason, last_move) =
            managed.look(|inner| (inner.shown_reason(), inner.last_move.clone()));
        let (memory, usage) =
            (usage.as_ref().map(|it| it.memory.clone()), usage.unwrap_or_default());
        VmDetail {
            summary,
            definition: (*managed.definition()).clone(),
            waiting: managed.waiting_changes().into_iter().map(str::to_owned).collect(),
            reason,
            disks: usage.disks,
            pauses: usage.pauses.0,
            longest_pause_us: usage.pauses.1,
            last_move,
            memory,
            watchdog: usage.watchdog,
            agent: None,
        }
    }

    /// Remembers how the disks of its machines are now, for [`Host::why`].
    pub fn look(&self) {
        self.looks.look(self.disk_figures());
    }

    /// Why disks are slow: those of a VM, one of them (`VM/number`, or its location), or all.
    ///
    /// # Errors
    /// [`HostError::NoDisk`]: nothing that runs here has that name.
    pub fn why(&self, what: Option<&str>) -> Result<Vec<DiskReport>, HostError> {
        let reports = self.looks.reports(self.disk_figures(), what);
        match what {
            Some(what) if reports.is_empty() => Err(HostError::NoDisk(what.to_owned())),
            _ => Ok(reports),
        }
    }

    /// Where the disks of machines that are there are, and how long they take.
    pub fn disk_figures(&self) -> Disks {
        let all: Vec<_> = lock(&self.vms).values().cloned().collect();
        let vms = all.into_iter().filter_map(|it| Some((it.name().clone(), it.machine()?)));
        vms.flat_map(|(name, vm)| {
            let place = |index| (name.clone(), index);
            let all = vm.figures().into_iter().enumerate();
            all.map(|(index, figures)| (place(index), figures)).collect::<Vec<_>>()
        })
        .collect()
    }

    /// Whether another daemon can take this one's place without a guest that notices.
    ///
    /// # Errors
    /// Why not.
    pub fn may_be_replaced(&self) -> Result<(), String> {
        let all: Vec<_> = lock(&self.vms).values().cloned().collect();
        for managed in all {
            let apart = managed.machine().is_none_or(|machine| machine.here().is_none());
            let (name, state) = (managed.name(), managed.state());
            let starts = managed.look(|inner| inner.starting);
            if !apart || matches!(state, VmState::MovingIn | VmState::MovingOut) {
                return Err(format!(
                    "VM {name} is in this process; stop it, or restart the daemon"
                ));
            }
            if managed.try_operate().is_err() && !starts {
                return Err(format!("something is done with VM {name}; try again after it"));
            }
        }
        Ok(())
    }

    /// Ends everything: guests get the configured time to power off and moves that are under way to
    /// end, then guests are ended. Storage that does not answer holds that up for a moment only.
    /// Records stay, so that what ran is started again with the host.
    pub fn shut_down(self: &Arc<Self>) {
        self.shutting_down.store(true, Ordering::Release);
        let all: Vec<_> = lock(&self.vms).values().cloned().collect();
        let running: Vec<_> =
            all.iter().filter_map(|managed| Some((managed.clone(), managed.machine()?))).collect();
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
            // The file may be for the targets of the server.
            if let Err(error) = smb_client::Login::from_file(file, None)
                && ChapLogin::from_file(file, None).is_err()
            {
                return Err(error).with_context(of);
            }
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
