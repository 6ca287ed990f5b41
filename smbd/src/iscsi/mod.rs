//! The iSCSI service of the daemon: the targets and LUNs of its configuration, on images and block
//! devices that the file server, the VM host and the tools respect, as it respects theirs.
//!
//! ```text
//!  [iscsi], [[target]] ─► config ─► Iscsi::apply ─► scsi::Units of each target ─► iscsi::Service
//!                                       │                    │
//!                            disk-source: path ► image       └─ unit_state ─► state store
//! ```

pub mod config;
mod gated;
mod lun;
mod metrics;
mod name_service;
mod offload;
mod space;
mod strangers;
mod timed;
mod unit_state;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use iscsi::{
    Guard, Service, ServiceConfig, SessionInfo,
    isns::{Node, Registration},
};
use metric_catalogue::Page;
use scsi::{ForeignTokens, UnitInfo, Units, UnitsOptions};
use smb_server::{Server, meters::path::PathFigures};
use tokio::{
    net::TcpListener,
    sync::{Mutex, OnceCell},
    task::JoinSet,
    time::Instant,
};

use self::{
    config::{IscsiConfig, Target},
    lun::{Disks, Opened},
    name_service::NameService,
    offload::Offload,
    strangers::Strangers,
    unit_state::UnitState,
};

/// The portal group of all listeners.
const PORTAL_GROUP: u16 = 1;
/// How long until a LUN that could not be had is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// Who sees which LUN of a target: a LUN that is not named is seen by all.
type Masks = Arc<RwLock<BTreeMap<u16, Vec<String>>>>;

/// Identities of LUNs, with what each is and the path of its image.
type Identities = BTreeMap<[u8; 16], (String, String)>;

/// What to do about two LUNs that are one disk to initiators.
const SET_ID: &str =
    "give one an id of its own, or its image one by `bulkhead disk set --disk-id new`";

/// Tells who among the file server's users has an image open.
pub type Users = Box<dyn Fn(&Path) -> Vec<String> + Send + Sync>;

/// A target that is served.
struct Served {
    units: Arc<Units>,
    masks: Masks,
    luns: BTreeMap<u16, Opened>,
}

/// The iSCSI service of the daemon.
pub struct Iscsi {
    service: Service<Units>,
    state_dir: PathBuf,
    /// Opened with the first target: who serves none does not depend on it.
    state: OnceCell<Arc<UnitState>>,
    disks: Disks,
    users: Users,
    served: Mutex<BTreeMap<String, Served>>,
    names: NameService,
    offload: Arc<Offload>,
    /// Another process takes this one's place.
    replaced: AtomicBool,
}

impl fmt::Debug for Iscsi {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Iscsi").field("state_dir", &self.state_dir).finish_non_exhaustive()
    }
}

/// A target, for lists.
#[derive(Debug, Clone)]
pub struct TargetInfo {
    /// Its iSCSI name.
    pub name: String,
    /// Its LUNs and the path of each.
    pub luns: Vec<(UnitInfo, String)>,
}

impl Iscsi {
    /// A service without targets beside a file server, which keeps what of units outlives it in the
    /// state folder. `users` tells of an image that cannot be had who of the file server's users has
    /// it. Must run inside a tokio runtime.
    pub fn new(server: Arc<Server>, state_dir: &Path, users: Users) -> Self {
        let offload = Offload::new(&server.tokens);
        let gate: Arc<dyn Guard> = Arc::new(Strangers::new(server));
        Self {
            service: Service::new(ServiceConfig { gate: Some(gate), ..ServiceConfig::default() }),
            state_dir: state_dir.to_owned(),
            state: OnceCell::new(),
            disks: Disks::new(),
            users,
            served: Mutex::default(),
            names: NameService::default(),
            offload,
            replaced: AtomicBool::new(false),
        }
    }

    /// A service of a role of a cluster: what of units outlives it is in the store that goes with the
    /// role, and nothing is changed once the node's time is over.
    #[must_use]
    pub fn of_role(mut self, opened: state_store::Opened) -> Self {
        self.state = OnceCell::new_with(Some(Arc::new(UnitState::on(opened))));
        self.disks = self.disks.gated();
        self
    }

    /// Serves what a configuration says at listeners that are bound, as long as the result lives. Where
    /// the file system may still hold the locks of a lost node, initiators wait until all LUNs are there,
    /// for as long as that may take: to a LUN that is missing they would say that the disk is gone.
    ///
    /// # Errors
    /// As for [`Iscsi::serve`].
    pub async fn begin(
        self: &Arc<Self>,
        config: &IscsiConfig,
        bound: Vec<std::net::TcpListener>,
    ) -> io::Result<JoinSet<()>> {
        if config.locks.is_zero() {
            self.apply(config).await;
            return self.serve(bound);
        }
        let (service, config) = (self.clone(), config.clone());
        let mut listeners = JoinSet::new();
        listeners.spawn(async move {
            let until = Instant::now() + config.locks;
            while !service.attempt(&config).await.is_empty() && Instant::now() < until {
                tokio::time::sleep(AGAIN).await;
            }
            service.apply(&config).await;
            match service.serve(bound) {
                Ok(mut portals) => while portals.join_next().await.is_some() {},
                Err(error) => tracing::error!(%error, "targets are not served"),
            }
        });
        Ok(listeners)
    }

    /// Serves what a configuration says, and nothing else: LUNs and targets that are as they were
    /// stay as they are. Says what of it cannot be served, also to the log; all else is. Without the
    /// reservations of an earlier process no target is served: somebody's data may depend on them.
    pub async fn apply(&self, config: &IscsiConfig) -> Vec<String> {
        let failures = self.attempt(config).await;
        failures.iter().for_each(|failure| tracing::error!("{failure}"));
        failures
    }

    async fn attempt(&self, config: &IscsiConfig) -> Vec<String> {
        let mut failures = Vec::new();
        let mut served = self.served.lock().await;
        self.service.set_discovery(config.discovery());
        let gone = |name: &String| !config.targets.iter().any(|target| target.config.name == *name);
        let gone = served.keys().filter(|name| gone(name)).cloned().collect::<Vec<_>>();
        for name in gone {
            self.service.remove_target(&name);
            self.offload.forget(&name);
            if let Some(target) = served.remove(&name) {
                target.close().await;
                tracing::info!(target = name, "a target is not served any more");
            }
        }
        let state = match &config.targets[..] {
            [] => None,
            _ => self.state().await.map_err(|why| failures.push(why)).ok(),
        };
        let targets = config.targets.iter().filter_map(|target| Some((target, state.as_ref()?)));
        for (target, state) in targets {
            let name = &target.config.name;
            let others = identities(&served, name);
            let now = served
                .entry(name.clone())
                .or_insert_with(|| new_target(state, self.offload.foreign(name)));
            self.offload.set(name, target.offload_user.as_deref(), &now.units);
            now.apply(target, &others, self, &mut failures).await;
            if let Err(error) = self.service.set_target(target.config.clone(), &now.units) {
                failures.push(format!("target {name}: {error}"));
            }
        }
        self.names.tell(&config.isns, &registration(config, &served));
        drop(served);
        // Not waited for: a file system that does not answer keeps nobody from a reload.
        drop(self.look_at_space().await);
        failures
    }

    /// Another process will serve the same: name servers are not told that the targets go.
    pub fn is_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    async fn state(&self) -> Result<&Arc<UnitState>, String> {
        let open = || async { UnitState::open(&self.state_dir).map(Arc::new) };
        self.state.get_or_try_init(open).await.map_err(|error| {
            format!("no target is served, for the reservations are not known: {error}")
        })
    }

    /// Takes connections at listeners that are bound, as long as the result lives.
    ///
    /// # Errors
    /// If the runtime does not take a listener.
    pub fn serve(self: &Arc<Self>, bound: Vec<std::net::TcpListener>) -> io::Result<JoinSet<()>> {
        let mut listeners = JoinSet::new();
        for listener in bound {
            let listener = TcpListener::from_std(listener)?;
            tracing::info!(address = %listener.local_addr()?, "listening for iSCSI");
            let service = self.service.clone();
            listeners.spawn(async move { service.serve(listener, PORTAL_GROUP).await });
        }
        let service = self.clone();
        listeners.spawn(async move { service.watch_space().await });
        Ok(listeners)
    }

    /// All targets with their LUNs.
    pub async fn targets(&self) -> Vec<TargetInfo> {
        let served = self.served.lock().await;
        let info = |(name, target): (&String, &Served)| {
            let path = |unit: &UnitInfo| target.luns.get(&unit.number).map(Opened::path);
            let luns = target.units.list().into_iter();
            let luns = luns.map(|unit| (unit.clone(), path(&unit).unwrap_or_default())).collect();
            TargetInfo { name: name.clone(), luns }
        };
        served.iter().map(info).collect()
    }

    /// Where the time of commands goes, by target and LUN, with what each LUN has done.
    pub async fn times(&self) -> Vec<(String, UnitInfo, PathFigures)> {
        let served = self.served.lock().await;
        let mut all = Vec::new();
        for (name, target) in served.iter() {
            for unit in target.units.list() {
                if let Some(opened) = target.luns.get(&unit.number) {
                    all.push((name.clone(), unit, opened.times()));
                }
            }
        }
        all
    }

    /// Puts on a page of metrics what is about targets and LUNs.
    pub async fn show(&self, page: &mut Page) {
        metrics::show(&self.targets().await, &self.sessions(), page);
    }

    /// All sessions with targets.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.service.sessions()
    }

    /// Ends a session at once; whether there is one of that number.
    pub fn disconnect(&self, session: u64) -> bool {
        self.service.disconnect(session, 0)
    }

    /// Looks again how large the image or device of a LUN is, and tells initiators.
    ///
    /// # Errors
    /// Why the LUN stays as it is.
    pub async fn resize(&self, target: &str, number: u16) -> Result<u64, String> {
        let mut served = self.served.lock().await;
        let target =
            served.get_mut(target).ok_or_else(|| format!("there is no target {target}"))?;
        target.resize(number, &self.disks).await
    }

    /// Ends all sessions, and closes all images: what was written is in them.
    pub async fn stop(&self) {
        self.names.stop(self.replaced.load(Ordering::Relaxed)).await;
        self.service.stop().await;
        let served = std::mem::take(&mut *self.served.lock().await).into_values();
        served.map(Served::close).collect::<JoinSet<()>>().join_all().await;
    }
}

/// What name servers are told: the targets that are served, at the addresses of all portals.
fn registration(config: &IscsiConfig, served: &BTreeMap<String, Served>) -> Registration {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let served = config.targets.iter().filter(|target| served.contains_key(&target.config.name));
    let node = |target: &Target| Node {
        name: target.config.name.clone(),
        alias: target.config.alias.clone(),
    };
    Registration {
        entity: config.isns_entity.clone().unwrap_or_else(host),
        portals: smb_server::interfaces::reached_at(&config.listen),
        group: PORTAL_GROUP,
        nodes: served.map(node).collect(),
    }
}

fn new_target(state: &Arc<UnitState>, foreign: Arc<dyn ForeignTokens>) -> Served {
    let masks = Masks::default();
    let access = masks.clone();
    let may_see = move |initiator: &str, unit: u16| {
        let masks = access.read().unwrap_or_else(PoisonError::into_inner);
        masks.get(&unit).is_none_or(|seen_by| seen_by.iter().any(|name| name == initiator))
    };
    let units = Units::new(UnitsOptions {
        access: Arc::new(may_see),
        store: Some(state.clone()),
        foreign: Some(foreign),
        ..UnitsOptions::default()
    });
    Served { units: Arc::new(units), masks, luns: BTreeMap::new() }
}

/// Which identities LUNs of other targets than `name` have, with what they are.
fn identities(served: &BTreeMap<String, Served>, name: &str) -> Identities {
    let others = served.iter().filter(|(other, _)| *other != name);
    let of = |(name, served): (&String, &Served)| {
        let lun = |(number, opened): (&u16, &Opened)| {
            let what = format!("lun {number} of target {name}");
            (opened.identity(), (what, opened.path()))
        };
        served.luns.iter().map(lun).collect::<Vec<_>>()
    };
    others.flat_map(of).collect()
}

impl Served {
    async fn apply(
        &mut self,
        target: &Target,
        others: &Identities,
        service: &Iscsi,
        failures: &mut Vec<String>,
    ) {
        let Iscsi { disks, users, .. } = service;
        let wanted = |number: u16| target.luns.iter().find(|lun| lun.number == number);
        let masks = target.luns.iter().filter(|lun| !lun.initiators.is_empty());
        let masks = masks.map(|lun| (lun.number, lun.initiators.clone())).collect();
        let changed = {
            let mut old = self.masks.write().unwrap_or_else(PoisonError::into_inner);
            let changed = *old != masks;
            *old = masks;
            changed
        };
        let gone = self
            .luns
            .iter()
            .filter(|(number, open)| wanted(**number).is_none_or(|lun| !open.is(lun)));
        for number in gone.map(|(number, _)| *number).collect::<Vec<_>>() {
            if let Err(error) = self.remove(number).await {
                failures.push(format!("target {}: {error}", target.config.name));
            }
        }
        for lun in &target.luns {
            if self.luns.contains_key(&lun.number) {
                if let Err(error) = self.units.set_limits(lun.number, lun.limits) {
                    failures.push(format!("target {}: {error}", target.config.name));
                }
                if let Some(opened) = self.luns.get_mut(&lun.number) {
                    opened.set_warn_below(lun.warn_below);
                }
                continue;
            }
            let name = &target.config.name;
            match disks.open(name, lun).await {
                Err(why) => {
                    let users = users(&lun.path);
                    let who = if users.is_empty() { "" } else { "; open by SMB: " };
                    let users = users.join(", ");
                    failures.push(format!("target {name}, lun {}: {why}{who}{users}", lun.number));
                }
                Ok(opened) => match self.serve(lun.number, &opened, others).await {
                    Ok(()) => drop(self.luns.insert(lun.number, opened)),
                    Err(why) => {
                        failures.push(format!("target {name}, lun {}: {why}", lun.number));
                        opened.close().await;
                    }
                },
            }
        }
        if changed {
            self.units.set_access(self.access());
        }
    }

    /// Initiators take units of one identity for one disk with several paths, whichever target they
    /// are of. The same image, which all only read, is one.
    async fn serve(&self, number: u16, opened: &Opened, others: &Identities) -> Result<(), String> {
        if let Some((other, path)) = others.get(&opened.identity())
            && *path != opened.path()
        {
            return Err(format!("{other} ({path}) has the same identity; {SET_ID}"));
        }
        self.units.add(number, opened.unit()).await.map_err(|error| match error {
            scsi::UnitsError::Identity(_) => format!("{error}; {SET_ID}"),
            error => error.to_string(),
        })
    }

    fn access(&self) -> Arc<dyn scsi::LunAccess> {
        let masks = self.masks.clone();
        Arc::new(move |initiator: &str, unit: u16| {
            let masks = masks.read().unwrap_or_else(PoisonError::into_inner);
            masks.get(&unit).is_none_or(|seen_by| seen_by.iter().any(|name| name == initiator))
        })
    }

    async fn remove(&mut self, number: u16) -> Result<(), scsi::UnitsError> {
        self.units.remove(number).await?;
        if let Some(opened) = self.luns.remove(&number) {
            opened.close().await;
        }
        Ok(())
    }

    /// Opens a LUN's disk anew. What can be seen before is: then the LUN stays as it is. For the rest
    /// it must be closed, since an image has one writer: where it cannot be had again the LUN goes, so
    /// that initiators are told, and a reload can serve it.
    async fn resize(&mut self, number: u16, disks: &Disks) -> Result<u64, String> {
        let opened = self.luns.get(&number).ok_or_else(|| format!("there is no lun {number}"))?;
        let size = disks.size(opened).await?;
        self.units.may_resize(number, size).map_err(|error| error.to_string())?;
        let done = self.reopen(number, disks).await;
        let Err(why) = done else { return done };
        if self.luns.contains_key(&number) {
            self.remove(number).await.map_err(|error| format!("{why}; {error}"))?;
            return Err(format!("{why}; the LUN is not served now: mend that, and reload"));
        }
        Err(why)
    }

    async fn reopen(&mut self, number: u16, disks: &Disks) -> Result<u64, String> {
        let opened =
            self.luns.get_mut(&number).ok_or_else(|| format!("there is no lun {number}"))?;
        let disk = disks.grown(opened).await?;
        let size = disk.geometry().size;
        self.units.resize(number, disk.clone()).map_err(|error| error.to_string())?;
        opened.replace(disk);
        Ok(size)
    }

    /// Closes all LUNs at the same time: one whose disk does not answer keeps no other open.
    async fn close(self) {
        let close = |(number, opened): (u16, Opened)| {
            let units = self.units.clone();
            async move {
                if let Err(error) = units.close(number).await {
                    tracing::warn!(%error, "a LUN was gone before it was closed");
                }
                opened.close().await;
            }
        };
        self.luns.into_iter().map(close).collect::<JoinSet<()>>().join_all().await;
    }
}
