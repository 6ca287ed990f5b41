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
mod served;
mod space;
mod strangers;
mod timed;
mod unit_state;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use iscsi::{
    Guard, Presence, Service, ServiceConfig, SessionInfo,
    isns::{Node, Registration},
};
use metric_catalogue::Page;
use scsi::{UnitInfo, Units};
use smb_server::{Server, meters::path::PathFigures};
use tokio::{
    net::TcpListener,
    sync::{Mutex, OnceCell},
    task::JoinSet,
    time::Instant,
};

use self::{
    config::{IscsiConfig, Target},
    lun::Disks,
    name_service::NameService,
    offload::Offload,
    served::{Closing, Listed, Place, Served, identities},
    strangers::Strangers,
    unit_state::UnitState,
};

/// The portal group of all listeners.
const PORTAL_GROUP: u16 = 1;
/// How long until a LUN that could not be had is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// Tells who among the file server's users has an image open.
pub type Users = Box<dyn Fn(&Path) -> Vec<String> + Send + Sync>;

/// The iSCSI service of the daemon.
pub struct Iscsi {
    service: Service<Units>,
    state_dir: PathBuf,
    /// Opened with the first target: who serves none does not depend on it.
    state: OnceCell<Arc<UnitState>>,
    disks: Disks,
    users: Users,
    /// Held by whoever changes it, for as long as images take to open and to close.
    served: Mutex<BTreeMap<String, Served>>,
    /// What is told of them; nobody waits for a change to end.
    listed: RwLock<BTreeMap<String, Listed>>,
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
    /// it, and `presence` is told which initiators are there. Must run inside a tokio runtime.
    pub fn new(
        server: Arc<Server>,
        state_dir: &Path,
        users: Users,
        presence: Option<Arc<dyn Presence>>,
    ) -> Self {
        let offload = Offload::new(&server.tokens);
        let gate: Arc<dyn Guard> = Arc::new(Strangers::new(server));
        let config = ServiceConfig { gate: Some(gate), presence, ..ServiceConfig::default() };
        Self {
            service: Service::new(config),
            state_dir: state_dir.to_owned(),
            state: OnceCell::new(),
            disks: Disks::new(),
            users,
            served: Mutex::default(),
            listed: RwLock::default(),
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
        failures.extend(self.leave(config, &mut served).await);
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
                .or_insert_with(|| Served::new(state, self.offload.foreign(name)));
            self.offload.set(name, target.offload_user.as_deref(), &now.units);
            now.apply(target, &others, self, &mut failures).await;
            if let Err(error) = self.service.set_target(target.config.clone(), &now.units) {
                failures.push(format!("target {name}: {error}"));
            }
            self.list(&served);
        }
        self.names.tell(&config.isns, &registration(config, &served));
        drop(served);
        // Not waited for: a file system that does not answer keeps nobody from a reload.
        drop(self.look_at_space());
        failures
    }

    /// Closes targets and LUNs that a configuration does not have any more, all at the same time, before
    /// any is opened: an image may go from one to another. Says what cannot go.
    async fn leave(
        &self,
        config: &IscsiConfig,
        served: &mut BTreeMap<String, Served>,
    ) -> Vec<String> {
        let mut closing = Closing::new();
        for (name, mut target) in std::mem::take(served) {
            let wanted = config.targets.iter().find(|wanted| wanted.config.name == name);
            if let Some(wanted) = wanted {
                target.leave(wanted, &mut closing);
                served.insert(name, target);
                continue;
            }
            self.service.remove_target(&name);
            self.offload.forget(&name);
            closing.spawn(async move {
                target.close().await;
                tracing::info!(target = name, "a target is not served any more");
                None
            });
        }
        self.list(served);
        let mut failures = Vec::new();
        while let Some(closed) = closing.join_next().await {
            let Ok(Some(stays)) = closed else { continue };
            failures.push(format!("target {}: {}", stays.target, stays.why));
            if let Some(target) = served.get_mut(&stays.target) {
                target.take_back(stays);
            }
        }
        failures
    }

    /// Has what is told of targets be what they are now.
    fn list(&self, served: &BTreeMap<String, Served>) {
        let listed = served.iter().map(|(name, served)| (name.clone(), served.listed())).collect();
        *self.listed.write().unwrap_or_else(PoisonError::into_inner) = listed;
    }

    fn listed(&self) -> RwLockReadGuard<'_, BTreeMap<String, Listed>> {
        self.listed.read().unwrap_or_else(PoisonError::into_inner)
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
    pub fn targets(&self) -> Vec<TargetInfo> {
        let lun = |(unit, place): (UnitInfo, &Place)| (unit, place.path.display().to_string());
        let info = |(name, target): (&String, &Listed)| TargetInfo {
            name: name.clone(),
            luns: target.luns().map(lun).collect(),
        };
        self.listed().iter().map(info).collect()
    }

    /// Where the time of commands goes, by target and LUN, with what each LUN has done.
    pub fn times(&self) -> Vec<(String, UnitInfo, PathFigures)> {
        let of = |(name, target): (&String, &Listed)| {
            let luns = target.luns().map(|(unit, place)| (name.clone(), unit, place.times()));
            luns.collect::<Vec<_>>()
        };
        self.listed().iter().flat_map(of).collect()
    }

    /// Puts on a page of metrics what is about targets and LUNs.
    pub fn show(&self, page: &mut Page) {
        metrics::show(&self.targets(), &self.sessions(), page);
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
        let done = target.resize(number, &self.disks).await;
        self.list(&served);
        done
    }

    /// Ends all sessions, and closes all images: what was written is in them.
    pub async fn stop(&self) {
        self.names.stop(self.replaced.load(Ordering::Relaxed)).await;
        self.service.stop().await;
        let served = std::mem::take(&mut *self.served.lock().await).into_values();
        self.list(&BTreeMap::new());
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
