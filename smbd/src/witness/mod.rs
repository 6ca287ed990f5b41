//! The witness service of the daemon: RPC over TCP around the engine of the `witness` crate.
//!
//! ```text
//!  [witness] ─► config ─► Configured (Cluster) ─► View ─┐
//!  etcd ─► cluster::watch ─► Followed (Cluster) ─► View ┤
//!  bulkhead witness state, move ─► admin ───────────────┼─► Engine ─► answers ─► each to its connection
//!  client ═ TCP ═► listener ─► connection ─► Association┘
//!                     └─ logons: the file server's users
//! ```
//!
//! The engine is asked under one lock, which is held for as long as a call takes to look something up.

mod cluster;
pub mod config;
mod connection;
mod logons;
mod mapper;

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dce_rpc::{Call, FaultStatus, Transfer, epm};
use smb_server::{
    Server,
    census::{Census, Room},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::Instant};
use witness::{
    Cluster, Engine, Limits, NodeState, Outcome, Reply, Request,
    engine::{From, NotMoved, RegistrationInfo, Waiter},
};

use self::{
    cluster::{Configured, Followed, Source},
    config::{Access, WitnessConfig},
};
use crate::cluster::witness::Feed;

/// How often it is looked whether somebody has waited for long enough.
const TICK: Duration = Duration::from_millis(500);
/// How a client is told that the service takes no new groups: there are four billion of them.
const FIRST_GROUP: u32 = 0x1_0000;

/// Where answers of a connection go that come later.
type Line = mpsc::Sender<(u32, Reply)>;

/// The groups of connections that share handles (MS-RPCE 3.3.1.5.7).
#[derive(Default)]
struct Groups {
    next: u32,
    /// From where its connections come, and how many there are.
    known: HashMap<u32, (IpAddr, usize)>,
}

/// The witness service of the daemon.
pub struct Witness {
    server: Arc<Server>,
    cluster: Source,
    access: RwLock<Access>,
    engine: Mutex<Engine>,
    began: Instant,
    lines: Mutex<HashMap<u64, Line>>,
    groups: Mutex<Groups>,
    census: Arc<Census>,
    next: AtomicU64,
    /// Ports that the endpoint mapper tells.
    ports: RwLock<Vec<epm::Registered>>,
}

impl fmt::Debug for Witness {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Witness").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node, for lists.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub addresses: Vec<IpAddr>,
    /// How it is.
    pub state: NodeState,
    /// It is this one.
    pub own: bool,
}

impl Witness {
    /// The service beside a file server.
    pub fn new(server: Arc<Server>, config: WitnessConfig) -> Self {
        let (limits, access) = (config.limits, config.access);
        let cluster = Source::Configured(Box::new(Configured::new(server.clone(), config)));
        Self::with(server, cluster, limits, access)
    }

    /// The service of a node of a cluster, which sees the other nodes, and who serves what, in etcd. Must
    /// run inside a tokio runtime.
    pub fn of_node(server: Arc<Server>, config: WitnessConfig, feed: &Feed) -> Self {
        let (limits, access) = (config.limits, config.access);
        let name = server.current().config.name.clone();
        let cluster = Source::Followed(Box::new(Followed::new(name, config, feed)));
        Self::with(server, cluster, limits, access)
    }

    fn with(server: Arc<Server>, cluster: Source, limits: Limits, access: Access) -> Self {
        let engine = Engine::new(limits, cluster.view());
        Self {
            server,
            cluster,
            access: RwLock::new(access),
            engine: Mutex::new(engine),
            began: Instant::now(),
            lines: Mutex::default(),
            groups: Mutex::new(Groups { next: FIRST_GROUP, ..Groups::default() }),
            census: Arc::default(),
            next: AtomicU64::new(1),
            ports: RwLock::default(),
        }
    }

    /// Takes connections at listeners that are bound, as long as the result lives.
    ///
    /// # Errors
    /// If the runtime does not take a listener.
    pub fn serve(
        self: &Arc<Self>,
        bound: Vec<std::net::TcpListener>,
        mapper: Vec<std::net::TcpListener>,
    ) -> io::Result<JoinSet<()>> {
        let mut listeners = JoinSet::new();
        for listener in bound {
            let listener = TcpListener::from_std(listener)?;
            let address = listener.local_addr()?;
            tracing::info!(%address, "listening for witness clients");
            let port = epm::Registered { interface: witness::INTERFACE, port: address.port() };
            self.ports.write().unwrap_or_else(PoisonError::into_inner).push(port);
            listeners.spawn(self.clone().accept(listener, Kind::Witness));
        }
        for listener in mapper {
            let listener = TcpListener::from_std(listener)?;
            tracing::info!(address = %listener.local_addr()?, "the endpoint mapper is listening");
            listeners.spawn(self.clone().accept(listener, Kind::Mapper));
        }
        let service = self.clone();
        listeners.spawn(async move { service.keep_time().await });
        if let Source::Followed(followed) = &self.cluster {
            let (service, mut changes) = (self.clone(), followed.changes());
            listeners.spawn(async move {
                // At once, not at the next look: clients wait for nothing else.
                while changes.changed().await.is_ok() {
                    let mut engine = lock(&service.engine);
                    service.look(&mut engine);
                    service.deliver(engine);
                }
            });
        }
        Ok(listeners)
    }

    /// Takes another configuration; where it listens stays as it was.
    pub fn apply(&self, config: WitnessConfig) {
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = config.access;
        let limits = config.limits;
        self.cluster.configure(config);
        let mut engine = lock(&self.engine);
        engine.set_limits(limits);
        self.look(&mut engine);
        self.deliver(engine);
    }

    /// How the nodes are, as the service sees them.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let engine = lock(&self.engine);
        let view = engine.view();
        let info = |(at, node): (usize, &witness::Node)| NodeInfo {
            name: node.name.clone(),
            addresses: node.addresses.clone(),
            state: node.state,
            own: at == view.own,
        };
        view.nodes.iter().enumerate().map(info).collect()
    }

    /// The clients that are registered, by their numbers.
    pub fn registrations(&self) -> Vec<RegistrationInfo> {
        lock(&self.engine).registrations()
    }

    /// Says how a node is; clients that use it are told.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_state(&self, node: &str, state: NodeState) -> Result<(), String> {
        self.cluster.set_state(node, state)?;
        let mut engine = lock(&self.engine);
        self.look(&mut engine);
        self.deliver(engine);
        tracing::info!(node, %state, "a node's state was set by an administrator");
        Ok(())
    }

    /// Has clients go to a node or address: one by its name, those of a share, or one of these. How many
    /// registrations were told.
    ///
    /// # Errors
    /// There is no such destination, or nobody to be told.
    pub fn move_to(
        &self,
        client: Option<&str>,
        share: Option<&str>,
        to: &str,
    ) -> Result<usize, String> {
        let now = self.now();
        let mut engine = lock(&self.engine);
        let told = match (client, share) {
            (client, Some(share)) => engine.move_share(share, client, to, now),
            (Some(client), None) => engine.move_client(client, to, now),
            (None, None) => return Err("say which client or share moves".to_owned()),
        };
        self.deliver(engine);
        let told = told.map_err(|why| match why {
            NotMoved::NoDestination => format!("{to} is neither a node nor an address of one"),
            NotMoved::NoClient => "nobody is registered who would be told".to_owned(),
        })?;
        tracing::info!(?client, ?share, to, told, "clients were told to move by an administrator");
        Ok(told)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn access(&self) -> Access {
        *self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the cluster looks like now.
    fn look(&self, engine: &mut Engine) {
        let view = self.cluster.view();
        if view != *engine.view() {
            engine.set_view(view, self.now());
        }
    }

    /// Hands answers to their connections.
    fn deliver(&self, mut engine: MutexGuard<'_, Engine>) {
        let answers = engine.answers();
        drop(engine);
        let lines = lock(&self.lines);
        for (Waiter { connection, call }, reply) in answers {
            if let Some(line) = lines.get(&connection) {
                // There is room for the answer to each call that may wait; a connection that is about to
                // end waits for nothing.
                let _ = line.try_send((call, reply));
            }
        }
    }

    async fn keep_time(&self) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let mut engine = lock(&self.engine);
            self.look(&mut engine);
            let gone = engine.tick(self.now());
            self.deliver(engine);
            if gone > 0 {
                tracing::debug!(gone, "witness registrations that waited for nothing are gone");
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, kind: Kind) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "could not accept a witness client");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let access = self.access();
            let room = Room {
                all: access.connections,
                each: access.connections_per_address,
                strangers: access.unauthenticated,
            };
            let Some(counted) = self.census.enter(peer.ip(), room).await else {
                tracing::debug!(%peer, "a witness client is refused: witness.limits.connections");
                continue;
            };
            let service = self.clone();
            connections.spawn(async move {
                let end = match kind {
                    Kind::Witness => connection::run(&service, stream, peer, &counted).await,
                    Kind::Mapper => mapper::run(&service, stream, peer, &counted).await,
                };
                tracing::debug!(%peer, %end, "a witness connection ended");
            });
        }
    }

    /// Carries out a call of the interface: an answer at once, or one that comes later.
    fn call(&self, connection: u64, group: u32, call: &Call) -> Result<Option<Reply>, FaultStatus> {
        let request = Request::parse(call.opnum, &call.stub, call.transfer);
        let request = request.map_err(|error| {
            tracing::debug!(%error, "malformed parameters of a witness client");
            FaultStatus::BAD_STUB
        })?;
        let request = request.ok_or(FaultStatus::OP_RANGE)?;
        let waiter = Waiter { connection, call: call.id };
        let from = From { waiter, group, caller: call.caller.as_deref() };
        let mut engine = lock(&self.engine);
        let outcome = engine.call(&from, request, self.now());
        self.deliver(engine);
        Ok(match outcome {
            Outcome::Done(reply) => Some(reply),
            Outcome::Waits => None,
            Outcome::Limited(reply, limit) => {
                if self.server.strangers.may_log() {
                    let user = call.caller.as_ref().map_or("", |caller| &caller.user);
                    tracing::info!(user, limit, "a witness client is refused");
                }
                Some(reply)
            }
        })
    }

    /// A connection joins a group of its address, or begins one.
    fn join(&self, wanted: u32, from: IpAddr) -> u32 {
        let mut groups = lock(&self.groups);
        if let Some((address, count)) = groups.known.get_mut(&wanted)
            && *address == from
        {
            *count += 1;
            return wanted;
        }
        while groups.next == 0 || groups.known.contains_key(&groups.next) {
            groups.next = groups.next.wrapping_add(1);
        }
        let group = groups.next;
        groups.next = groups.next.wrapping_add(1);
        groups.known.insert(group, (from, 1));
        group
    }

    /// A connection leaves its group; whether it was the last one.
    fn leave(&self, group: u32) -> bool {
        let mut groups = lock(&self.groups);
        let Some((_, count)) = groups.known.get_mut(&group) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            groups.known.remove(&group);
        }
        last
    }

    /// A connection has ended.
    fn ended(&self, connection: u64, group: Option<u32>) {
        lock(&self.lines).remove(&connection);
        let last = group.filter(|group| self.leave(*group));
        let mut engine = lock(&self.engine);
        engine.connection_ended(connection, last, self.now());
        self.deliver(engine);
    }

    /// Nobody waits for the answer to a call any more.
    fn given_up(&self, connection: u64, call: u32) {
        let mut engine = lock(&self.engine);
        engine.given_up(Waiter { connection, call }, self.now());
        self.deliver(engine);
    }

    fn registered(&self) -> Vec<epm::Registered> {
        self.ports.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The line of a connection on which so many calls may wait.
    fn open_line(&self, calls: usize) -> (u64, mpsc::Receiver<(u32, Reply)>) {
        let (line, answers) = mpsc::channel(calls);
        let connection = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.lines).insert(connection, line);
        (connection, answers)
    }
}

/// What is served at a port.
#[derive(Clone, Copy)]
enum Kind {
    Witness,
    Mapper,
}

/// The transfer syntaxes of the service, the preferred first.
const TRANSFERS: &[Transfer] = &[Transfer::Ndr64, Transfer::Ndr];

/// The port of an address as clients are told it.
fn endpoint(address: SocketAddr) -> String {
    address.port().to_string()
}
