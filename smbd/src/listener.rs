//! Accepting connections, and ending them in an orderly way.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ::rdma::{Connection, Parameters, iwarp};
use http_api::ApiConfig;
use rustix::net::sockopt;
use smb_server::{
    Server,
    census::{Census, Counted, Room},
    config::{Config, Limits},
    connection::{self, Dropped},
    descriptors,
    transport::{Carrier, Rdma, Tcp},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use volume::work::Timed;

use crate::{
    cluster::Peers,
    inherit,
    iscsi::config::IscsiConfig,
    scrape::{self, Sources},
    witness::config::WitnessConfig,
};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A server that accepts connections.
#[derive(Debug)]
pub struct Running {
    server: Arc<Server>,
    addresses: Vec<SocketAddr>,
    rdma_addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    listeners: JoinSet<()>,
}

/// Binds the configured addresses and begins to accept. Must run inside a tokio runtime.
pub fn start(server: Arc<Server>) -> io::Result<Running> {
    let bound = Bound::new(&server.current().config)?;
    start_bound(server, bound)
}

/// Ports that are bound and that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    clients: Vec<std::net::TcpListener>,
    rdma: Vec<std::net::TcpListener>,
    iscsi: Vec<std::net::TcpListener>,
    witness: Vec<std::net::TcpListener>,
    mapper: Vec<std::net::TcpListener>,
    api: Vec<std::net::TcpListener>,
    metrics: Option<std::net::TcpListener>,
    /// What the metrics page tells of beside the file server.
    sources: Arc<Sources>,
    /// Where it is noted who is connected.
    peers: Option<Arc<Peers>>,
}

/// Where the services beside the file server listen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Portals of iSCSI.
    pub iscsi: &'a [SocketAddr],
    /// The witness service.
    pub witness: &'a [SocketAddr],
    /// The endpoint mapper.
    pub mapper: &'a [SocketAddr],
    /// The control interface.
    pub api: &'a [SocketAddr],
}

impl<'a> Beside<'a> {
    /// What the configurations of these services say.
    pub fn new(
        iscsi: &'a IscsiConfig,
        witness: Option<&'a WitnessConfig>,
        api: &'a ApiConfig,
    ) -> Self {
        Self {
            api: &api.listen,
            iscsi: &iscsi.listen,
            witness: witness.map_or(&[], |config| &config.listen),
            mapper: witness.map_or(&[], |config| &config.endpoint_mapper),
        }
    }
}

impl Bound {
    /// Binds what the configuration says; needs no runtime, so that it can be done before the
    /// right to do so is given up.
    ///
    /// # Errors
    /// If an address cannot be had; the text says which.
    pub fn new(config: &Config) -> io::Result<Self> {
        Self::with(config, Beside::default(), Vec::new())
    }

    /// Takes what the configuration says, and the services `beside`, from sockets that are bound
    /// already, and binds the rest. Sockets that nobody wants are closed.
    ///
    /// # Errors
    /// As for [`Bound::new`].
    pub fn with(
        config: &Config,
        beside: Beside<'_>,
        mut sockets: Vec<std::net::TcpListener>,
    ) -> io::Result<Self> {
        let mut get = |address: SocketAddr| match inherit::bound_to(address, &mut sockets) {
            Some(socket) => {
                socket.set_nonblocking(true)?;
                Ok(socket)
            }
            None => bind(address),
        };
        let mut all = |list: &[SocketAddr]| list.iter().map(|address| get(*address)).collect();
        let iscsi: io::Result<_> = all(beside.iscsi);
        let witness: io::Result<_> = all(beside.witness);
        let mapper: io::Result<_> = all(beside.mapper);
        let api: io::Result<_> = all(beside.api);
        let mut get_for_clients = |address: &SocketAddr| {
            let listener = get(*address)?;
            choose_congestion_control(&listener, config)?;
            Ok(listener)
        };
        Ok(Self {
            clients: config.listen.iter().map(&mut get_for_clients).collect::<io::Result<_>>()?,
            rdma: config.rdma_listen.iter().map(get_for_clients).collect::<io::Result<_>>()?,
            iscsi: iscsi?,
            witness: witness?,
            mapper: mapper?,
            api: api?,
            metrics: config.metrics.map(get).transpose()?,
            sources: Arc::default(),
            peers: None,
        })
    }

    /// Has the metrics page tell of what is beside the file server, too.
    #[must_use]
    pub fn telling_of(self, sources: Arc<Sources>) -> Self {
        Self { sources, ..self }
    }

    /// Has it noted who is connected.
    #[must_use]
    pub fn noting(self, peers: Option<Arc<Peers>>) -> Self {
        Self { peers, ..self }
    }

    /// Takes the sockets of iSCSI.
    pub fn take_iscsi(&mut self) -> Vec<std::net::TcpListener> {
        std::mem::take(&mut self.iscsi)
    }

    /// Takes the sockets of the witness service, and those of the endpoint mapper.
    pub fn take_witness(&mut self) -> (Vec<std::net::TcpListener>, Vec<std::net::TcpListener>) {
        (std::mem::take(&mut self.witness), std::mem::take(&mut self.mapper))
    }

    /// Takes the sockets of the control interface.
    pub fn take_api(&mut self) -> Vec<std::net::TcpListener> {
        std::mem::take(&mut self.api)
    }

    /// The sockets, to be handed to another process.
    pub fn into_fds(self) -> Vec<OwnedFd> {
        let clients = self.clients.into_iter().chain(self.rdma).chain(self.iscsi);
        let all =
            clients.chain(self.witness).chain(self.mapper).chain(self.api).chain(self.metrics);
        all.map(OwnedFd::from).collect()
    }
}

/// Begins to accept at ports that are bound. Must run inside a tokio runtime.
///
/// # Errors
/// If the runtime does not take the sockets or no thread can be started.
pub fn start_bound(server: Arc<Server>, bound: Bound) -> io::Result<Running> {
    // Before anyone is served: a client that comes back finds what it had.
    server.recover()?;
    if let Some(kerberos) = &server.current().kerberos
        && !server.is_first
    {
        kerberos.begin(volume::clock::now());
    }
    let (stop, stopped) = watch::channel(false);
    let census = Arc::new(Census::default());
    let (mut addresses, mut rdma_addresses) = (Vec::new(), Vec::new());
    let mut listeners = JoinSet::new();
    let peers = bound.peers;
    let mut add = |listener: std::net::TcpListener, carrier| {
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let end = (census.clone(), stopped.clone());
        listeners.spawn(accept(listener, carrier, server.clone(), peers.clone(), end));
        io::Result::Ok(address)
    };
    for listener in bound.clients {
        addresses.push(add(listener, Carrier::Tcp)?);
    }
    for listener in bound.rdma {
        rdma_addresses.push(add(listener, Carrier::Rdma)?);
    }
    if let Some(listener) = bound.metrics {
        let listener = TcpListener::from_std(listener)?;
        let serve = scrape::serve(server.clone(), bound.sources, listener);
        let mut stopped = stopped.clone();
        listeners.spawn(async move {
            tokio::select! {
                () = serve => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        });
    }
    listeners.spawn(keep_house(server.clone(), stopped));
    let sweeper = server.clone();
    std::thread::Builder::new()
        .name("streams".to_owned())
        .spawn(move || sweeper.sweep_streams())?;
    Ok(Running { server, addresses, rdma_addresses, stop, listeners })
}

/// Closes, every second, the opens whose clients have stayed away for too long.
async fn keep_house(server: Arc<Server>, mut stopped: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            now = tick.tick() => server.open_files.disconnected.sweep(now.into_std()),
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Binds an address; one that was used a moment ago is had again.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let bound = || {
        let listener = std::net::TcpListener::bind(address)?;
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bound().map_err(|e: io::Error| {
        io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"))
    })
}

/// Chooses how the connections of a listener react to a full network. CUBIC unless something else
/// is configured: what is made for wide-area networks, as BBR is, sends by timers, which on a
/// storage network cost more than the copying.
fn choose_congestion_control(listener: &std::net::TcpListener, config: &Config) -> io::Result<()> {
    let choose = |name| rustix::net::sockopt::set_tcp_congestion(listener, name);
    match config.congestion_control.as_deref() {
        Some("system") => Ok(()),
        Some(name) => choose(name).map_err(|error| {
            let (key, error) = ("server.congestion_control", io::Error::from(error));
            io::Error::new(error.kind(), format!("{key} = {name:?}: {error}"))
        }),
        None => {
            if let Err(error) = choose("cubic") {
                tracing::debug!(%error, "CUBIC is not to be had; the system's choice stays");
            }
            Ok(())
        }
    }
}

impl Running {
    /// The addresses that were bound.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The addresses that were bound for SMB Direct.
    pub fn rdma_addresses(&self) -> &[SocketAddr] {
        &self.rdma_addresses
    }

    /// The server behind it.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Stops accepting, lets requests that were received finish, and ends all connections.
    pub async fn drain(mut self) {
        let _ = self.stop.send(true);
        while self.listeners.join_next().await.is_some() {}
        self.server.hand_off().await;
    }
}

async fn accept(
    listener: TcpListener,
    carrier: Carrier,
    server: Arc<Server>,
    peers: Option<Arc<Peers>>,
    (census, mut stopped): (Arc<Census>, watch::Receiver<bool>),
) {
    let mut connections = JoinSet::new();
    let mut failures = 0u64;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task failed; this is a defect");
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                failures = 0;
                let room = room(&server.current().config.limits);
                let Some(counted) = census.enter(peer.ip(), room).await else {
                    tracing::debug!(%peer, "refused: too many connections");
                    continue;
                };
                let (server, stopped) = (server.clone(), stopped.clone());
                let local = stream.local_addr();
                let noted = peers.as_ref().zip(local.ok());
                let noted = noted.map(|(peers, local)| peers.enter(peer, local));
                connections.spawn(async move {
                    serve((stream, carrier), peer, server, stopped, counted).await;
                    drop(noted);
                });
            }
            // Out of descriptors, or the peer is gone already: others may still be served.
            Err(error) => {
                // The first of a row, and every thousandth, which is one in ten seconds at most.
                if failures.is_multiple_of(1000) {
                    tracing::warn!(%error, failures, "could not accept a connection");
                }
                failures += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// How many connections the limits and the descriptors of the process allow.
fn room(limits: &Limits) -> Room {
    let all = limits.connections.min(descriptors::most_connections());
    Room {
        all,
        each: limits.connections_per_address,
        strangers: limits.unauthenticated_connections.min(all),
    }
}

async fn serve(
    (stream, carrier): (TcpStream, Carrier),
    peer: SocketAddr,
    server: Arc<Server>,
    stopped: watch::Receiver<bool>,
    counted: Counted,
) {
    let _ = stream.set_nodelay(true);
    let patience = Duration::from_secs(server.current().config.limits.write_seconds);
    if let Err(error) = notice_death(&stream, patience) {
        tracing::debug!(%peer, %error, "the system will not notice that the client is gone");
    }
    server.connections.fetch_add(1, Ordering::Relaxed);
    let served = match carrier {
        Carrier::Tcp => {
            let run = connection::run(Tcp::new(stream, peer), server.clone(), stopped, &counted);
            Timed::new(run, &server.meters.longest).await
        }
        Carrier::Rdma => serve_direct(stream, &server, stopped, &counted).await,
    };
    match served {
        Ok(()) => tracing::debug!(%peer, "connection ended"),
        Err(error) => tracing::debug!(%peer, %error, "connection dropped"),
    }
    server.connections.fetch_sub(1, Ordering::Relaxed);
}

/// Serves a connection of SMB Direct, once both ends have agreed on one.
async fn serve_direct(
    stream: TcpStream,
    server: &Arc<Server>,
    mut stopped: watch::Receiver<bool>,
    counted: &Counted,
) -> Result<(), Dropped> {
    let begin = async {
        let endpoint = iwarp::accept(stream, &iwarp::Options::default()).await?;
        Connection::passive(endpoint, Parameters::passive()).await
    };
    let connection = tokio::select! {
        connection = begin => connection?,
        // Who has begun and says no more stays no longer than others do that have not logged in.
        () = counted.told_to_go() => return Err(Dropped::MadeRoom),
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let handle = connection.handle().clone();
    let run = connection::run(Rdma::new(connection), server.clone(), stopped, counted);
    let served = Timed::new(run, &server.meters.longest).await;
    // The last answers are still the client's.
    handle.finished().await;
    served
}

/// Has the system end a connection whose client is gone without a word: one that does not
/// acknowledge what it was sent for `patience`, and an idle one that does not answer to being
/// asked whether it is there.
pub(crate) fn notice_death(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    /// After how long an idle client is asked, and how long until it is asked again.
    const ASKED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));
    let ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, ms)?;
    sockopt::set_tcp_keepidle(stream, ASKED.0)?;
    sockopt::set_tcp_keepintvl(stream, ASKED.1)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn bound(line: &str) -> io::Result<Bound> {
        let text = format!("[server]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"/x\"\n{line}\n");
        Bound::new(&Config::parse(&text, Path::new("smbd.toml")).unwrap())
    }

    #[test]
    fn a_congestion_control_that_is_not_there_is_named() {
        let error = bound("congestion_control = \"carrier-pigeon\"").unwrap_err().to_string();
        assert!(error.starts_with("server.congestion_control = \"carrier-pigeon\": "), "{error}");
        let listener = &bound("congestion_control = \"reno\"").unwrap().clients[0];
        assert_eq!(rustix::net::sockopt::tcp_congestion(listener).unwrap(), "reno");
        bound("congestion_control = \"system\"").unwrap();
        bound("").unwrap();
    }
}
