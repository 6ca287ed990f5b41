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
use scsi::Device;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Instant,
};

use crate::{
    budget::Budget,
    config::{ConfigError, Discovery, TargetConfig},
    driver::{Connection, READ_LITTLE},
    join::Joined,
    login::{Directory, Established, Login, LoginStatus, Step},
    negotiate::DEFAULT_MAX_RECV,
    pdu::{Digests, Framer},
    session::Output,
    target::{Live, SessionInfo, Target, lock},
};

/// Held as long as a login is under way.
pub type Permit = Box<dyn Send>;
/// Bounds what those may try who have not proved who they are.
pub trait Guard: Send + Sync {
    /// Whether an address may begin another login; the permit is held as long as that is under way.
    fn admit(&self, from: IpAddr) -> Option<Permit>;

    /// Somebody at an address could not prove who they are; how long the refusal is held back.
    fn failed(&self, from: IpAddr) -> Duration;
}

/// A guard that lets everybody try again at once.
impl<F: Fn(IpAddr) -> Option<Permit> + Send + Sync> Guard for F {
    fn admit(&self, from: IpAddr) -> Option<Permit> {
        self(from)
    }

    fn failed(&self, _: IpAddr) -> Duration {
        Duration::ZERO
    }
}

/// Is told who is connected.
pub trait Presence: Send + Sync {
    /// An initiator at `peer` has logged in at our address `local`; what this returns is held as long as
    /// the connection is.
    fn enter(self: Arc<Self>, peer: SocketAddr, local: SocketAddr) -> Box<dyn Send>;
}

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
    pub gate: Option<Arc<dyn Guard>>,
    /// Is told of connections.
    pub presence: Option<Arc<dyn Presence>>,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            data_budget: 512 << 20,
            half_open: 256,
            login_time: Duration::from_secs(15),
            discovery: Discovery::default(),
            gate: None,
            presence: None,
        }
    }
}

/// What all connections of a service share.
pub(crate) struct Inner<D> {
    pub(crate) targets: RwLock<BTreeMap<String, Arc<Target<D>>>>,
    pub(crate) discovery: RwLock<Arc<Discovery>>,
    pub(crate) discoveries: Mutex<Vec<Arc<Live>>>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) half_open: Arc<Semaphore>,
    pub(crate) login_time: Duration,
    pub(crate) gate: Option<Arc<dyn Guard>>,
    pub(crate) presence: Option<Arc<dyn Presence>>,
    pub(crate) epoch: Instant,
    pub(crate) next_session: AtomicU64,
    pub(crate) next_nexus: Arc<AtomicU64>,
    pub(crate) next_tsih: AtomicU16,
    pub(crate) stopping: AtomicBool,
    /// The second in which a refusal was told last, from 1.
    pub(crate) refusals: AtomicU64,
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
            presence: config.presence,
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
    /// upon, but for those whose initiator is not admitted any more, or is sent elsewhere; with
    /// another they end.
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
                if config.redirection.is_some() {
                    // They log in again, and are sent on.
                    live.with(None, |it| it.drop_all("its target is elsewhere now"));
                } else if !from.is_empty() {
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
            sets: Arc::default(),
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
            Some(gate) => match gate.admit(peer.ip()) {
                Some(permit) => Some(permit),
                None => return,
            },
            None => None,
        };
        let (inner, local) = (self.inner.clone(), stream.local_addr());
        tokio::spawn(async move {
            let login = inner.clone().log_in(stream, peer, tag);
            let result = tokio::time::timeout(inner.login_time, login).await;
            drop((half_open, permit));
            match result {
                Ok(Ok(Some(connection))) => {
                    let (live, link) = (connection.live.clone(), connection.link);
                    let presence = inner.presence.as_ref().zip(local.ok());
                    let _there = presence.map(|(it, local)| it.clone().enter(peer, local));
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

impl<D: Device> Inner<D> {
    pub(crate) fn all(&self) -> Vec<Arc<Target<D>>> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Target<D>>> {
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
                    if status == LoginStatus::AuthenticationFailure
                        && let Some(guard) = &self.gate
                    {
                        tokio::time::sleep(guard.failed(peer.ip())).await;
                    }
                    stream.write_all(&bytes).await?;
                    stream.shutdown().await?;
                    return Ok(None);
                }
                Step::Close => return Ok(None),
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
}
