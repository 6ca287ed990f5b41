//! Sockets: who may connect, for how long, and TLS.
//!
//! Until somebody on a connection has shown who they are, it is a stranger's: there is room for half
//! of all connections and so many of each address, and [`STRANGERS`] until it is closed. Where there is no
//! room for another, the address with the most strangers loses the one that came first: whoever fills
//! the places keeps nobody else out.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::Notify,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Audit, Backend, Caller, SOCKET,
    config::ApiConfig,
    door::{Door, Origin},
    events::Streams,
    pages::Pages,
    patience::network,
    router::{Counters, Router},
};

/// File of the tokens in the state folder.
const TOKENS: &str = "api-tokens.json";

/// How long a client may take for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client may take for the head of a request, and say nothing between two.
const HEAD: Duration = Duration::from_secs(15);

/// How long somebody who is not known may stay.
const STRANGERS: Duration = Duration::from_secs(30);

/// Longest head of a request in bytes.
const LONGEST_HEAD: usize = 16 << 10;

/// Headers of a request.
const HEADERS: usize = 64;

/// Connections of the local socket.
const LOCAL: usize = 64;

/// Who is connected.
#[derive(Debug, Default)]
struct Census {
    all: usize,
    /// By the order in which they came: their network, and what tells them to go.
    strangers: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
    addresses: HashMap<IpAddr, usize>,
    came: u64,
}

impl Census {
    /// Tells a stranger to go: of the network that has most of them the one that came first. Whether
    /// there was one.
    fn make_room(&mut self) -> bool {
        let mut networks = HashMap::<IpAddr, (usize, u64)>::new();
        for (number, (network, _)) in &self.strangers {
            networks.entry(*network).or_insert((0, *number)).0 += 1;
        }
        // Of two that have as many, the one that has been there longer.
        let most =
            networks.values().max_by_key(|(count, first)| (*count, std::cmp::Reverse(*first)));
        let Some((_, told)) = most.and_then(|(_, first)| self.strangers.remove(first)) else {
            return false;
        };
        told.notify_one();
        true
    }
}

/// What came of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Connections from other machines now.
    pub connections: usize,
    /// Calls that were carried out.
    pub done: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls in which the server failed.
    pub failed: u64,
    /// Wrong passwords and tokens.
    pub failed_logins: u64,
}

/// The interface, beside its server.
pub struct Api<S> {
    router: Arc<Router<S>>,
    config: RwLock<ApiConfig>,
    census: Mutex<Census>,
    local: tokio::sync::Semaphore,
}

/// A connection that is counted.
struct Counted<S> {
    api: Arc<Api<S>>,
    address: IpAddr,
    /// What is counted of the address.
    network: IpAddr,
    known: AtomicBool,
    /// Somebody on it has shown who they are.
    shown: Notify,
    /// Its place among strangers.
    number: u64,
    /// Another stranger is to have its place.
    told_to_go: Arc<Notify>,
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        let mut census = self.api.census.lock().unwrap_or_else(PoisonError::into_inner);
        census.all -= 1;
        census.strangers.remove(&self.number);
        if let Some(count) = census.addresses.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                census.addresses.remove(&self.network);
            }
        }
    }
}

impl<S> Counted<S> {
    fn enter(api: &Arc<Api<S>>, address: IpAddr) -> Option<Arc<Self>> {
        let (most, each) = api.config().connections;
        let network = network(address);
        let mut census = api.census.lock().unwrap_or_else(PoisonError::into_inner);
        let own = census.addresses.get(&network).copied().unwrap_or_default();
        if own >= each {
            return None;
        }
        // Who is told to go is gone in a moment; until then there is one more.
        let full = census.all >= most || census.strangers.len() >= most.div_ceil(2);
        if full && !census.make_room() {
            return None;
        }
        census.all += 1;
        census.came += 1;
        let (number, told_to_go) = (census.came, Arc::<Notify>::default());
        census.strangers.insert(number, (network, told_to_go.clone()));
        census.addresses.insert(network, own + 1);
        let (known, shown, api) = (AtomicBool::new(false), Notify::new(), api.clone());
        Some(Arc::new(Self { api, address, network, known, shown, number, told_to_go }))
    }

    fn is_known(&self) {
        if !self.known.swap(true, Ordering::Relaxed) {
            let mut census = self.api.census.lock().unwrap_or_else(PoisonError::into_inner);
            // Who was told to go before goes.
            if census.strangers.remove(&self.number).is_some() {
                self.shown.notify_one();
            }
        }
    }
}

impl<S> Api<S> {
    fn config(&self) -> ApiConfig {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S: Backend> Api<S> {
    /// The interface of a server, with what it keeps in the state folder and the files that it gives to
    /// browsers.
    ///
    /// # Errors
    /// If tokens that were given cannot be read.
    pub fn new(
        config: ApiConfig,
        state_dir: &Path,
        audit: Arc<Audit>,
        backend: Arc<S>,
        pages: Pages,
    ) -> io::Result<Arc<Self>> {
        let door = Arc::new(Door::new(&config, &state_dir.join(TOKENS))?);
        let router = Router {
            backend,
            door,
            audit,
            streams: Streams::default(),
            counters: Counters::default(),
            pages,
        };
        Ok(Arc::new(Self {
            router: Arc::new(router),
            config: RwLock::new(config),
            census: Mutex::default(),
            local: tokio::sync::Semaphore::new(LOCAL),
        }))
    }

    /// What came of calls so far.
    pub fn counts(&self) -> Counts {
        let [done, refused, failed] = self.router.counters.get();
        let connections = self.census.lock().unwrap_or_else(PoisonError::into_inner).all;
        let failed_logins = self.router.door.failures();
        Counts { connections, done, refused, failed, failed_logins }
    }

    /// Takes users, the certificate and limits of a new configuration; addresses need a restart.
    pub fn reload(&self, config: ApiConfig) {
        self.router.door.reload(&config);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Serves sockets that are bound, as long as the result lives.
    ///
    /// # Errors
    /// If the runtime does not take a socket.
    pub fn serve(
        self: &Arc<Self>,
        local: UnixListener,
        bound: Vec<std::net::TcpListener>,
    ) -> io::Result<JoinSet<()>> {
        let mut listeners = JoinSet::new();
        listeners.spawn(self.clone().accept_local(local));
        for listener in bound {
            let listener = TcpListener::from_std(listener)?;
            tracing::info!(address = %listener.local_addr()?, "listening for the control interface");
            listeners.spawn(self.clone().accept(listener));
        }
        Ok(listeners)
    }

    async fn accept_local(self: Arc<Self>, listener: UnixListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Some(caller) = local_caller(&stream) else { continue };
            let api = self.clone();
            connections.spawn(async move {
                let Ok(_room) = api.local.try_acquire() else { return };
                api.http(stream, Origin::Local(caller), None).await;
            });
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let address = peer.ip().to_canonical();
            let Some(counted) = Counted::enter(&self, address) else { continue };
            let Some(tls) = self.config().tls else { continue };
            let api = self.clone();
            connections.spawn(async move {
                let handshake = TlsAcceptor::from(tls).accept(stream);
                let handshake = tokio::time::timeout(HANDSHAKE, handshake);
                let shaken = tokio::select! {
                    shaken = handshake => shaken,
                    () = counted.told_to_go.notified() => return,
                };
                match shaken {
                    Ok(Ok(stream)) => api.stranger(stream, counted).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                    Err(_) => tracing::debug!(%peer, "no TLS in time"),
                }
            });
        }
    }

    /// Serves somebody who must show in time who they are.
    async fn stranger(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        counted: Arc<Counted<S>>,
    ) {
        let origin = Origin::Remote(counted.address);
        let served = self.http(stream, origin, Some(counted.clone()));
        tokio::pin!(served);
        tokio::select! {
            () = &mut served => return,
            () = counted.shown.notified() => {}
            () = counted.told_to_go.notified() => return,
            () = tokio::time::sleep(STRANGERS) => return,
        }
        served.await;
    }

    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        origin: Origin,
        counted: Option<Arc<Counted<S>>>,
    ) {
        let answer = |request: hyper::Request<hyper::body::Incoming>| {
            let (router, origin, counted) = (self.router.clone(), origin.clone(), counted.clone());
            async move {
                let (answer, known) = router.answer(origin, request).await;
                if let Some(counted) = counted.filter(|_| known) {
                    counted.is_known();
                }
                Ok::<_, Infallible>(answer)
            }
        };
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(LONGEST_HEAD)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection of the control interface ended");
        }
    }
}

/// Who is at the other end of the local socket, if they may use it: the superuser and the server's own.
fn local_caller(stream: &UnixStream) -> Option<Caller> {
    let uid = stream.peer_cred().ok()?.uid();
    let own = rustix::process::geteuid().as_raw();
    (uid == 0 || uid == own).then(|| Caller::local(uid, SOCKET))
}

/// Binds a socket in the state folder, for its owner only; an older one of that name goes. Must run
/// inside a tokio runtime.
///
/// # Errors
/// What the system says.
pub fn bind(state_dir: &Path, name: &str) -> io::Result<UnixListener> {
    use std::{fs, os::unix::fs::DirBuilderExt};
    // It is made where nobody else can reach it, so that it never has wider permissions.
    let hidden = state_dir.join(format!(".{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&hidden);
    fs::DirBuilder::new().mode(0o700).create(&hidden)?;
    let made = hidden.join("s");
    let placed = UnixListener::bind(&made).and_then(|listener| {
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
        fs::rename(&made, state_dir.join(name))?;
        Ok(listener)
    });
    let _ = fs::remove_dir_all(&hidden);
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_fills_the_places_of_strangers_loses_them_and_nobody_else_does() {
        let mut census = Census::default();
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut told = Vec::new();
        let mut enter = |census: &mut Census, number: u64, n: u8| {
            let notify = Arc::<Notify>::default();
            census.strangers.insert(number, (address(n), notify.clone()));
            told.push((number, notify));
        };
        enter(&mut census, 1, 9);
        (2..34).for_each(|number| enter(&mut census, number, 1));
        (34..66).for_each(|number| enter(&mut census, number, 2));
        for expected in [2, 34, 3, 35] {
            assert!(census.make_room());
            assert!(!census.strangers.contains_key(&expected), "{expected} came first there");
        }
        for _ in 0..61 {
            assert!(census.strangers.contains_key(&1) || census.strangers.len() <= 2);
            census.make_room();
        }
        assert!(census.strangers.is_empty() && !census.make_room());
        for (_, notify) in told {
            notify.notified().await;
        }
    }
}
