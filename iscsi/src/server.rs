//! The service: listeners, logins, and the targets behind them.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use scsi::{Device, Nexus};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
    time::Instant,
};

use crate::{
    budget::Budget,
    config::{ConfigError, Discovery, Limits, TargetConfig},
    driver::{Connection, READ_LITTLE, keep},
    login::{Directory, Established, Login, LoginStatus, Step},
    negotiate::DEFAULT_MAX_RECV,
    pdu::{Digests, Framer},
    session::{Announce, Output, SendTargets, Session, Setup},
    target::{Driver, Identity, Live, SessionInfo, Target, lock},
    text::Pair,
};

/// Discovery sessions at a time.
const DISCOVERIES: usize = 64;

/// Held as long as a login is under way.
pub type Permit = Box<dyn Send>;
/// Says whether an address may begin another login.
pub type Gate = Arc<dyn Fn(IpAddr) -> Option<Permit> + Send + Sync>;

/// What holds for a service as a whole.
#[derive(Clone)]
pub struct ServiceConfig {
    /// Data-out that all sessions hold together, in bytes.
    pub data_budget: usize,
    /// Logins under way at a time.
    pub half_open: usize,
    /// How long a login may take.
    pub login_time: Duration,
    /// How discovery sessions are met.
    pub discovery: Discovery,
    /// Bounds the logins of one address.
    pub gate: Option<Gate>,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            data_budget: 512 << 20,
            half_open: 256,
            login_time: Duration::from_secs(15),
            discovery: Discovery::default(),
            gate: None,
        }
    }
}

struct Inner<D> {
    targets: RwLock<BTreeMap<String, Arc<Target<D>>>>,
    discovery: RwLock<Arc<Discovery>>,
    discoveries: Mutex<Vec<Arc<Live>>>,
    budget: Arc<Budget>,
    half_open: Arc<Semaphore>,
    login_time: Duration,
    gate: Option<Gate>,
    epoch: Instant,
    next_session: AtomicU64,
    next_nexus: Arc<AtomicU64>,
    next_tsih: AtomicU16,
    stopping: AtomicBool,
    /// The second in which a refusal was told last, from 1.
    refusals: AtomicU64,
}

/// An iSCSI service: any number of targets behind any number of listeners.
pub struct Service<D> {
    inner: Arc<Inner<D>>,
}

impl<D> Clone for Service<D> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<D: Device> Service<D> {
    /// A service without targets.
    #[must_use]
    pub fn new(config: ServiceConfig) -> Self {
        let inner = Inner {
            targets: RwLock::default(),
            discovery: RwLock::new(Arc::new(config.discovery)),
            discoveries: Mutex::default(),
            budget: Arc::new(Budget::new(config.data_budget)),
            half_open: Arc::new(Semaphore::new(config.half_open)),
            login_time: config.login_time,
            gate: config.gate,
            epoch: Instant::now(),
            next_session: AtomicU64::new(1),
            next_nexus: Arc::new(AtomicU64::new(1)),
            next_tsih: AtomicU16::new(1),
            stopping: AtomicBool::new(false),
            refusals: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Adds a target, or changes one. With the same device its sessions go on as they were agreed
    /// upon, but for those whose initiator is not admitted any more; with another they end.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing changes then.
    pub fn set_target(&self, config: TargetConfig, device: &Arc<D>) -> Result<(), ConfigError> {
        config.check()?;
        let config = Arc::new(config);
        let mut targets = self.inner.targets.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = targets.get(&config.name)
            && Arc::ptr_eq(&target.device, device)
        {
            *target.config.write().unwrap_or_else(PoisonError::into_inner) = config.clone();
            for live in target.lives() {
                let mut from = lock(&live.drivers).values().map(|it| it.from).collect::<Vec<_>>();
                from.retain(|from| !config.admits(&live.identity.initiator, from.ip()));
                if !from.is_empty() {
                    live.with(None, |it| it.drop_all("its initiator is not admitted any more"));
                }
            }
            return Ok(());
        }
        let name = config.name.clone();
        let target = Target {
            config: RwLock::new(config),
            device: device.clone(),
            sessions: Mutex::default(),
        };
        if let Some(older) = targets.insert(name, Arc::new(target)) {
            end_all(&older, "its target has another device");
        }
        Ok(())
    }

    /// Takes a target away; its sessions end. Whether it was there.
    pub fn remove_target(&self, name: &str) -> bool {
        let older = self.inner.targets.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(target) = &older {
            end_all(target, "its target was removed");
        }
        older.is_some()
    }

    /// Changes how discovery sessions are met.
    pub fn set_discovery(&self, discovery: Discovery) {
        *self.inner.discovery.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(discovery);
    }

    /// All sessions with targets.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.inner.all().iter().flat_map(|target| target.infos()).collect()
    }

    /// Asks a session's initiator to log out within `seconds`, and drops it then; at once with 0.
    /// Whether there is such a session.
    pub fn disconnect(&self, id: u64, seconds: u16) -> bool {
        let lives = self.inner.all();
        let Some(live) = lives.iter().flat_map(|target| target.lives()).find(|live| live.id == id)
        else {
            return false;
        };
        let now = u64::try_from(self.inner.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        live.with(None, |it| match seconds {
            0 => it.drop_all("an administrator ended it"),
            _ => it.ask_to_leave(seconds, now),
        });
        true
    }

    /// Bytes of the data-out budget that are left.
    #[must_use]
    pub fn data_left(&self) -> usize {
        self.inner.budget.left()
    }

    /// Takes connections through a portal of the group `tag`, until the future is dropped; those
    /// that were taken go on. A listener that fails for the moment is tried again.
    pub async fn serve(&self, listener: TcpListener, tag: u16) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.greet(stream, peer, tag),
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    // Most likely there are no descriptors; connections that end give some back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn greet(&self, stream: TcpStream, peer: SocketAddr, tag: u16) {
        let Ok(half_open) = self.inner.half_open.clone().try_acquire_owned() else { return };
        let permit = match &self.inner.gate {
            Some(gate) => match gate(peer.ip()) {
                Some(permit) => Some(permit),
                None => return,
            },
            None => None,
        };
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let login = inner.clone().log_in(stream, peer, tag);
            let result = tokio::time::timeout(inner.login_time, login).await;
            drop((half_open, permit));
            match result {
                Ok(Ok(Some(connection))) => {
                    let (live, link) = (connection.live.clone(), connection.link);
                    // Whatever fails in a device fails for one session.
                    if let Err(error) = tokio::spawn(connection.serve()).await {
                        tracing::error!(session = live.id, %error, "a command failed its session");
                        lock(&live.drivers).remove(&link);
                        live.with(None, |it| it.wreck(link));
                    }
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a login broke off"),
                Err(_) => tracing::debug!(%peer, "a login took too long"),
            }
        });
    }

    /// Ends all sessions and refuses further logins; returns when nothing runs any more.
    pub async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        let mut lives: Vec<Arc<Live>> = std::mem::take(&mut *lock(&self.inner.discoveries));
        lives.extend(self.inner.all().iter().flat_map(|target| target.lives()));
        for live in &lives {
            live.with(None, |it| it.drop_all("the service stops"));
        }
        for live in &lives {
            live.wait_gone().await;
        }
    }
}

fn end_all<D: Device>(target: &Target<D>, why: &'static str) {
    for live in target.lives() {
        live.with(None, |it| it.drop_all(why));
    }
}

impl<D: Device> Directory for Inner<D> {
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>> {
        self.find(name).map(|target| target.config())
    }

    fn discovery(&self) -> Arc<Discovery> {
        self.discovery.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers SendTargets for a session that came from and to these addresses.
struct Here<D> {
    inner: Arc<Inner<D>>,
    from: IpAddr,
    to: SocketAddr,
    tag: u16,
}

impl<D: Device> Announce for Here<D> {
    fn targets(&self, initiator: &str, own: Option<&str>, which: SendTargets<'_>) -> Vec<Pair> {
        let wanted = |config: &TargetConfig| match (which, own) {
            (SendTargets::All, _) => true,
            (SendTargets::One(""), own) => own == Some(config.name.as_str()),
            // A session with a target learns of no other.
            (SendTargets::One(name), Some(own)) => name == own && config.name == own,
            (SendTargets::One(name), None) => config.name == name.to_lowercase(),
        };
        let configs = self.inner.all().into_iter().map(|target| target.config());
        configs
            .filter(|config| wanted(config) && config.admits(initiator, self.from))
            .flat_map(|config| config.announcement(self.to, self.tag))
            .collect()
    }
}

impl<D: Device> Inner<D> {
    fn all(&self) -> Vec<Arc<Target<D>>> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Arc<Target<D>>> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The login phase on a socket.
    async fn log_in(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        tag: u16,
    ) -> io::Result<Option<Connection<D>>> {
        stream.set_nodelay(true)?;
        let to = stream.local_addr()?;
        let mut login = Login::new(peer, tag);
        let framer =
            Framer { digests: Digests::default(), max_data: DEFAULT_MAX_RECV, max_ahs_words: 0 };
        let mut input = BytesMut::with_capacity(1024);
        loop {
            let frame = loop {
                match framer.next(&mut input) {
                    Ok(Some(frame)) => break frame,
                    Ok(None) => {}
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                }
                if stream.read_buf(&mut input).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            };
            match login.receive(&frame, &*self) {
                Step::Respond(bytes) => stream.write_all(&bytes).await?,
                Step::Refuse(bytes, status, why) => {
                    self.tell_refusal(peer, status, &why);
                    stream.write_all(&bytes).await?;
                    stream.shutdown().await?;
                    return Ok(None);
                }
                Step::Finish(established) => {
                    let joined = self.join(&established, peer, to, tag).await;
                    return match joined {
                        Ok(joined) => {
                            Ok(Some(self.connection(*established, joined, stream, input)))
                        }
                        Err(status) => {
                            self.tell_refusal(peer, status, "at its end");
                            stream.write_all(&established.refuse(status)).await?;
                            stream.shutdown().await?;
                            Ok(None)
                        }
                    };
                }
            }
        }
    }

    /// Strangers can be refused as often as they like; the log tells of one a second.
    fn tell_refusal(&self, peer: SocketAddr, status: LoginStatus, why: &str) {
        let second = self.epoch.elapsed().as_secs() + 1;
        if self.refusals.swap(second, Ordering::Relaxed) != second {
            tracing::info!(%peer, ?status, why, "a login was refused");
        }
    }

    fn connection(
        &self,
        established: Established,
        (target, live, link, wake): Joined<D>,
        stream: TcpStream,
        input: BytesMut,
    ) -> Connection<D> {
        let numbers = lock(&live.engine).numbers();
        let mut output = Output::default();
        output.push_bytes(&established.accept(live.tsih, numbers));
        let max_data = match &established.target {
            Some(config) => config.wishes.max_recv_data,
            None => DEFAULT_MAX_RECV.max(self.discovery().wishes.max_recv_data),
        };
        let framer =
            Framer { digests: established.connection.digests, max_data, max_ahs_words: 67 };
        Connection {
            target,
            live,
            link,
            stream,
            framer,
            input,
            want: READ_LITTLE,
            output,
            behind: false,
            wake,
            epoch: self.epoch,
            fresh: self.next_nexus.clone(),
        }
    }

    /// A login is through: a new session, or one that is there.
    async fn join(
        self: &Arc<Self>,
        established: &Established,
        from: SocketAddr,
        to: SocketAddr,
        tag: u16,
    ) -> Result<Joined<D>, LoginStatus> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(LoginStatus::ServiceUnavailable);
        }
        let identity = Identity {
            initiator: established.initiator.clone(),
            alias: established.alias.clone(),
            isid: established.request.isid,
            tag,
        };
        let place = Place { from, to, tag };
        let Some(config) = &established.target else {
            return self.discover(established, identity, place);
        };
        let target = self.find(&config.name).ok_or(LoginStatus::TargetRemoved)?;
        if established.request.tsih != 0 {
            let found = lock(&target.sessions).get(&established.request.tsih).cloned();
            let live = found
                .filter(|it| {
                    it.identity.initiator == identity.initiator && it.identity.isid == identity.isid
                })
                .ok_or(LoginStatus::SessionDoesNotExist)?;
            if live.identity.tag != tag {
                return Err(LoginStatus::CannotIncludeInSession);
            }
            let (link, wake) = self.add(&live, established, place)?;
            return Ok((Some(target), live, link, wake));
        }
        loop {
            let same = |it: &Arc<Live>| {
                it.identity.initiator == identity.initiator
                    && it.identity.isid == identity.isid
                    && it.identity.tag == tag
            };
            let older = target.lives().into_iter().find(same);
            if let Some(older) = older {
                // Session reinstatement (RFC 7143 6.3.5): nothing of the old one may still run.
                older.with(None, |it| it.end("its initiator logged in anew"));
                older.wait_gone().await;
                continue;
            }
            let mut sessions = lock(&target.sessions);
            if sessions.values().any(same) {
                continue;
            }
            if sessions.len() >= config.limits.sessions.min(usize::from(u16::MAX) - 1) {
                return Err(LoginStatus::OutOfResources);
            }
            let mut tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed);
            while tsih == 0 || sessions.contains_key(&tsih) {
                tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed);
            }
            let live = self.new_live(established, identity, place, tsih);
            sessions.insert(tsih, live.clone());
            drop(sessions);
            target.device.attach(&live.nexus());
            let added = self.add(&live, established, place);
            let silence = config.limits.silence;
            tokio::spawn(keep(Some(target.clone()), live.clone(), self.epoch, silence));
            let (link, wake) = added?;
            // What changed between the login's beginning and now did not see this session.
            if let Some(status) = self.change_of_mind(&target, &live, from) {
                live.with(None, |it| it.end("its target changed during its login"));
                return Err(status);
            }
            tracing::info!(
                session = live.id,
                initiator = live.identity.initiator,
                target = config.name,
                "session begins"
            );
            return Ok((Some(target), live, link, wake));
        }
    }

    fn change_of_mind(
        &self,
        target: &Arc<Target<D>>,
        live: &Live,
        from: SocketAddr,
    ) -> Option<LoginStatus> {
        let config = target.config();
        if self.stopping.load(Ordering::Acquire) {
            Some(LoginStatus::ServiceUnavailable)
        } else if !self.find(&config.name).is_some_and(|it| Arc::ptr_eq(&it, target)) {
            Some(LoginStatus::TargetRemoved)
        } else if !config.admits(&live.identity.initiator, from.ip()) {
            Some(LoginStatus::AuthorizationFailure)
        } else {
            None
        }
    }

    fn discover(
        self: &Arc<Self>,
        established: &Established,
        identity: Identity,
        place: Place,
    ) -> Result<Joined<D>, LoginStatus> {
        if established.request.tsih != 0 {
            return Err(LoginStatus::SessionDoesNotExist);
        }
        let live = {
            let mut discoveries = lock(&self.discoveries);
            discoveries.retain(|live| !*live.gone.borrow());
            if discoveries.len() >= DISCOVERIES {
                return Err(LoginStatus::OutOfResources);
            }
            let tsih = self.next_tsih.fetch_add(1, Ordering::Relaxed).max(1);
            let live = self.new_live(established, identity, place, tsih);
            discoveries.push(live.clone());
            live
        };
        let added = self.add(&live, established, place);
        let silence = Limits::default().silence;
        tokio::spawn(keep::<D>(None, live.clone(), self.epoch, silence));
        let (link, wake) = added?;
        Ok((None, live, link, wake))
    }

    fn new_live(
        self: &Arc<Self>,
        established: &Established,
        identity: Identity,
        place: Place,
        tsih: u16,
    ) -> Arc<Live> {
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let isid: String = identity.isid.iter().map(|byte| format!("{byte:02x}")).collect();
        let nexus = Nexus {
            id: self.next_nexus.fetch_add(1, Ordering::Relaxed),
            initiator: format!("{},i,0x{isid}", identity.initiator).into(),
            port: place.tag,
        };
        let config = established.target.as_deref();
        let setup = Setup {
            initiator: identity.initiator.clone(),
            target: config.map(|config| config.name.clone()),
            parameters: established.session.clone(),
            wishes: config.map_or_else(|| self.discovery().wishes.clone(), |it| it.wishes.clone()),
            limits: config.map_or_else(Limits::default, |config| config.limits.clone()),
            resets: config.is_some_and(|config| config.resets),
            budget: self.budget.clone(),
            announce: Arc::new(Here {
                inner: self.clone(),
                from: place.from.ip(),
                to: place.to,
                tag: place.tag,
            }),
        };
        Arc::new(Live {
            id,
            tsih,
            identity,
            nexus: RwLock::new(Arc::new(nexus)),
            engine: Mutex::new(Session::new(setup, established.request.sn.cmd_sn)),
            drivers: Mutex::default(),
            changes: watch::Sender::new(0),
            gone: watch::Sender::new(false),
        })
    }

    fn add(
        &self,
        live: &Arc<Live>,
        established: &Established,
        place: Place,
    ) -> Result<(u32, Arc<Notify>), LoginStatus> {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        let cid = established.request.cid;
        let link = live.with(None, |engine| {
            if engine.over().is_some() {
                return Err(LoginStatus::SessionDoesNotExist);
            }
            if !engine.has_room(cid) {
                return Err(LoginStatus::TooManyConnections);
            }
            let stat_sn = established.stat_sn.wrapping_add(1);
            Ok(engine.join(cid, established.connection, stat_sn, now))
        })?;
        let wake = Arc::new(Notify::new());
        let driver = Driver { wake: wake.clone(), from: place.from, to: place.to };
        lock(&live.drivers).insert(link, driver);
        // What happened to the connection before anybody could wake its driver.
        wake.notify_one();
        Ok((link, wake))
    }
}

type Joined<D> = (Option<Arc<Target<D>>>, Arc<Live>, u32, Arc<Notify>);

/// Where a connection came from and to.
#[derive(Debug, Clone, Copy)]
struct Place {
    from: SocketAddr,
    to: SocketAddr,
    tag: u16,
}
