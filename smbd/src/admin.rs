//! The admin socket: what administrators ask of the running server (see `server-api`).
//!
//! ```text
//!  bulkhead server … ──► state_dir/admin.sock (mode 0600) ──► one task a connection
//!                                                                  │ a thread that may wait
//!                                                                  ▼
//!                                    sessions, opens, locks, shares, snapshots, reload
//! ```
//!
//! The same requests come as calls of HTTP (`http-api`): both ways lead to [`Verbs`], which writes every
//! change down.
//!
//! Nothing here is on the path of a client's request: lists are made from the tables that are
//! there anyway, when someone asks.

use std::{
    fs,
    future::Future,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use ::witness::NodeState;
use http_api::{Audit, Backend, Caller};
use server_api::{
    Call, Event, LockInfo, LunInfo, ObjectKind, OpenInfo, Reply, Request, SOCKET, SessionInfo,
    ShareInfo, Status, Target, TargetInfo, TargetSession, WitnessClient, WitnessNode,
};
use smb_protocol::{Dialect, SessionId, fscc::snapshots::SnapshotTime, ntlm::users};
use smb_server::{
    Server,
    session::{ChannelInfo, Session},
    transport::Carrier,
    why_not_rdma,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use volume::{fs::volume::Volume, open::Open};

use crate::{
    changes,
    declared::{self, How},
    iscsi::Iscsi,
    observe::Observer,
    scrape::{self, Sources},
    witness::Witness,
};

/// Longest request.
const MAX_REQUEST: u64 = 64 << 10;
/// Connections at a time.
const CONNECTIONS: usize = 16;

/// Reads the configuration again and hands it to the server.
pub type Reload = Box<dyn Fn(&Server) -> Result<(), String> + Send + Sync>;

/// What the program around the server does.
pub struct Program {
    /// At the wish of an administrator.
    pub reload: Reload,
    /// What is served by iSCSI.
    pub iscsi: Arc<Iscsi>,
    /// What looks at the server.
    pub observer: Arc<Observer>,
    /// What tells clients of other nodes, if it is configured.
    pub witness: Option<Arc<Witness>>,
    /// Where objects are declared; nowhere in a cluster, whose nodes have one configuration.
    pub declared: Option<declared::Place>,
    /// Held by who changes what is declared.
    pub changing: Mutex<()>,
    /// Has another program take over.
    pub upgrade: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// What administrators may ask, whichever way they do.
pub struct Verbs {
    /// The file server.
    pub server: Arc<Server>,
    /// What is around it.
    pub program: Program,
    /// What the page of metrics tells of beside it.
    pub sources: Arc<Sources>,
    /// Where changes are written down.
    pub audit: Arc<Audit>,
}

impl Backend for Verbs {
    type Interface = server_api::Server;

    fn carry_out(&self, caller: &Caller, request: Request) -> Result<Reply, String> {
        let Self { server, program, .. } = self;
        if !Call::of::<server_api::Server>(&request).is_none_or(Call::changes) {
            return carry_out(server, request, program);
        }
        let about = request.clone();
        let state = || changes::state(server, program, &about);
        let change = || carry_out(server, request, program);
        self.audit.write_down(caller, changes::shown(&about), state, change)
    }

    fn metrics(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        Box::pin(std::future::ready(scrape::page(&self.server, &self.sources)))
    }
}

/// That no server listens in the state folder.
///
/// # Errors
/// `AddrInUse` if one does.
pub fn is_free(state_dir: &Path) -> io::Result<()> {
    if std::os::unix::net::UnixStream::connect(state_dir.join(SOCKET)).is_ok() {
        let text = format!("another server uses {}", state_dir.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    Ok(())
}

/// Binds the admin socket in the state folder, for its owner only. Must run inside a tokio
/// runtime.
///
/// # Errors
/// `AddrInUse` if a server listens there, else what the operating system says.
pub fn bind(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(SOCKET);
    is_free(state_dir)?;
    // It is made where nobody else can reach it, so that it never has wider permissions.
    let hidden = state_dir.join(format!(".admin-{}", std::process::id()));
    let _ = fs::remove_dir_all(&hidden);
    fs::DirBuilder::new().mode(0o700).create(&hidden)?;
    let made = hidden.join("s");
    let listener = UnixListener::bind(&made);
    let placed = listener.and_then(|listener| {
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
        fs::rename(&made, &path)?;
        Ok(listener)
    });
    let _ = fs::remove_dir_all(&hidden);
    placed
}

/// Serves the socket for ever.
pub async fn serve(verbs: Arc<Verbs>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let verbs = verbs.clone();
        tokio::spawn(async move {
            if let Err(error) = connection(verbs, stream).await {
                tracing::debug!(%error, "admin connection");
            }
            drop(permit);
        });
    }
}

async fn connection(verbs: Arc<Verbs>, stream: UnixStream) -> io::Result<()> {
    let caller = Arc::new(Caller::local(stream.peer_cred()?.uid(), SOCKET));
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        if (&mut read).take(MAX_REQUEST).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let event = match serde_json::from_slice(&line) {
            Ok(request) => {
                let (verbs, caller) = (verbs.clone(), caller.clone());
                let done = tokio::task::spawn_blocking(move || verbs.carry_out(&caller, request));
                match done.await.map_err(io::Error::other)? {
                    Ok(reply) => Event::Done { reply },
                    Err(message) => Event::Failed { message },
                }
            }
            Err(error) => Event::Failed { message: format!("bad request: {error}") },
        };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        write.write_all(&line).await?;
    }
}

fn carry_out(server: &Server, request: Request, program: &Program) -> Result<Reply, String> {
    Ok(match request {
        Request::Status => Reply::Status { status: Box::new(status(server)) },
        Request::Sessions => Reply::Sessions { sessions: sessions(server) },
        Request::Opens => Reply::Opens { opens: opens(server) },
        Request::Locks => Reply::Locks { locks: locks(server) },
        Request::Shares => Reply::Shares { shares: shares(server) },
        Request::Why => Reply::Why { reports: program.observer.watch.reports(None)? },
        Request::WhyOf { what } => {
            Reply::Why { reports: program.observer.watch.reports(Some(&what))? }
        }
        Request::History { span } => {
            let none = "there is no history: the log of the server's start says why";
            let history = program.observer.history.as_ref().ok_or(none)?;
            let (step_s, points) = history.points(span);
            Reply::History { step_s, points }
        }
        Request::Targets => Reply::Targets { targets: targets(&program.iscsi) },
        Request::TargetSessions => {
            let sessions = program.iscsi.sessions().into_iter().map(target_session).collect();
            Reply::TargetSessions { sessions }
        }
        Request::TargetDisconnect { session } => {
            if !program.iscsi.disconnect(session) {
                return Err(format!("there is no session {session}"));
            }
            tracing::info!(session, "an initiator was disconnected by an administrator");
            Reply::Disconnected { count: 1 }
        }
        Request::LunResize { target, lun } => {
            let runtime = tokio::runtime::Handle::current();
            let size = runtime.block_on(program.iscsi.resize(&target, lun))?;
            tracing::info!(target, lun, size, "a LUN was looked at again");
            Reply::LunResized { size }
        }
        Request::WitnessList => match program.witness.as_deref() {
            Some(witness) => witness_list(witness),
            None => Reply::Witness { nodes: Vec::new(), clients: Vec::new(), configured: false },
        },
        Request::WitnessState { node, state } => {
            let state = match &*state {
                "up" => NodeState::Up,
                "down" => NodeState::Down,
                "unknown" => NodeState::Unknown,
                _ => return Err(format!("{state} is no state: up, down or unknown")),
            };
            witness(program)?.set_state(&node, state)?;
            Reply::Ok
        }
        Request::WitnessMove { client, share, to } => {
            let told = witness(program)?.move_to(client.as_deref(), share.as_deref(), &to)?;
            Reply::WitnessMoved { count: told as u64 }
        }
        Request::Disconnect { target } => {
            let count = disconnect(server, &target);
            if count == 0 {
                return Err("nothing to disconnect by that name".to_owned());
            }
            tracing::info!(?target, count, "disconnected by an administrator");
            Reply::Disconnected { count }
        }
        Request::Reload => {
            (program.reload)(server)?;
            Reply::Ok
        }
        Request::Upgrade => {
            (program.upgrade)()?;
            tracing::info!("an administrator has asked for an upgrade");
            Reply::Ok
        }
        Request::DeclaredShow => {
            Reply::Declared { declared: declared::all(declared_place(program)?)? }
        }
        Request::Apply { declared, plan, cut, prune } => {
            let place = declared_place(program)?;
            let how = How { plan, cut, prune };
            let in_use = |kind, name: &str| in_use(server, program, kind, name);
            let reload = || (program.reload)(server);
            let _one = program.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let changes = declared::apply(place, &declared, how, &in_use, &reload)?;
            Reply::Applied { changes }
        }
        Request::SnapshotCreate { share } => {
            let time = volume(server, &share)?.take_snapshot().map_err(|e| e.to_string())?;
            tracing::info!(share, %time, "snapshot taken");
            Reply::SnapshotTaken { time: time.to_string() }
        }
        Request::SnapshotList { share } => {
            let times = volume(server, &share)?.snapshots().map_err(|e| e.to_string())?;
            Reply::Snapshots { times: times.iter().map(SnapshotTime::to_string).collect() }
        }
        Request::SnapshotDelete { share, time } => {
            let moment = time.parse().map_err(|e| format!("{time}: {e}"))?;
            volume(server, &share)?.delete_snapshot(moment).map_err(|e| e.to_string())?;
            tracing::info!(share, time, "snapshot deleted");
            Reply::Ok
        }
    })
}

fn declared_place(program: &Program) -> Result<&declared::Place, String> {
    let none = "the nodes of a cluster have one configuration: change it there";
    program.declared.as_ref().ok_or_else(|| none.to_owned())
}

/// Opens, sessions or initiators that use an object now.
fn in_use(server: &Server, program: &Program, kind: ObjectKind, name: &str) -> u64 {
    let folded = users::fold(name);
    let count = match kind {
        ObjectKind::User => {
            server.sessions.all().iter().filter(|session| session.user.name == folded).count()
        }
        ObjectKind::Share => {
            let opens = server.open_files.all_opens();
            opens.iter().filter(|open| open.origin.share == folded).count()
        }
        ObjectKind::Target => {
            program.iscsi.sessions().iter().filter(|session| session.target == name).count()
        }
    };
    count as u64
}

fn witness(program: &Program) -> Result<&Witness, String> {
    let none = "the server is no witness: its configuration has no [witness]";
    program.witness.as_deref().ok_or_else(|| none.to_owned())
}

pub(crate) fn witness_list(witness: &Witness) -> Reply {
    let node = |node: crate::witness::NodeInfo| WitnessNode {
        name: node.name,
        addresses: node.addresses.iter().map(ToString::to_string).collect(),
        state: node.state.to_string(),
        own: node.own,
    };
    let client = |info: ::witness::engine::RegistrationInfo| WitnessClient {
        id: info.id,
        client: info.client,
        user: info.user,
        version: info.version >> 16,
        net_name: info.net_name,
        share: info.share,
        address: info.address,
        waiting: info.waiting,
    };
    Reply::Witness {
        nodes: witness.nodes().into_iter().map(node).collect(),
        clients: witness.registrations().into_iter().map(client).collect(),
        configured: true,
    }
}

pub(crate) fn targets(iscsi: &Iscsi) -> Vec<TargetInfo> {
    let all = iscsi.targets();
    let lun = |(unit, path): (scsi::UnitInfo, String)| LunInfo {
        number: unit.number,
        path,
        size: unit.size,
        block: unit.block,
        read_only: unit.read_only,
        id: format!("{:032x}", u128::from_be_bytes(unit.identity)),
        registrations: unit.registrations as u64,
        reserved: unit.reserved,
    };
    let target = |target: crate::iscsi::TargetInfo| TargetInfo {
        name: target.name,
        luns: target.luns.into_iter().map(lun).collect(),
    };
    all.into_iter().map(target).collect()
}

pub(crate) fn target_session(session: iscsi::SessionInfo) -> TargetSession {
    TargetSession {
        id: session.id,
        target: session.target,
        initiator: session.initiator,
        clients: session.connections.iter().map(|(from, _)| from.to_string()).collect(),
        commands: session.commands as u64,
    }
}

pub(crate) fn volume(server: &Server, share: &str) -> Result<Arc<Volume>, String> {
    let found = server.current().volumes.get(&users::fold(share)).cloned();
    found.ok_or_else(|| format!("no share {share}"))
}

fn status(server: &Server) -> Status {
    let current = server.current();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: current.config.name.clone(),
        pid: std::process::id(),
        uptime_s: server.started.elapsed().as_secs(),
        listen: current.config.listen.iter().map(ToString::to_string).collect(),
        connections: server.connections.load(Ordering::Relaxed) as u64,
        sessions: server.sessions.count() as u64,
        opens: server.open_files.open_count() as u64,
        files: server.open_files.file_count() as u64,
        shares: current.config.shares.len() as u64,
        longest_turn_us: server.meters.longest.get().as_micros() as u64,
    }
}

fn sessions(server: &Server) -> Vec<SessionInfo> {
    let listens = !server.current().config.rdma_listen.is_empty();
    let info = |session: &Arc<Session>| SessionInfo {
        why_not_rdma: why_not_rdma(session, listens),
        ..session_info(session)
    };
    let mut list: Vec<_> = server.sessions.all().iter().map(info).collect();
    list.sort_by_key(|session| session.id);
    list
}

pub(crate) fn session_info(session: &Session) -> SessionInfo {
    let channels = session.channels();
    SessionInfo {
        id: session.id.0,
        user: session.user.name.clone(),
        clients: channels.iter().map(|channel| channel.peer.to_string()).collect(),
        transports: channels.iter().map(|channel| channel.carrier.name().to_owned()).collect(),
        why_not_rdma: Vec::new(),
        dialect: dialect(session.origin.dialect),
        cipher: session.origin.cipher.map(|cipher| format!("{cipher:?}")),
        encrypted: session.must_encrypt,
        signed: session.must_sign,
        shares: session.tree_shares(),
        opens: session.open_count() as u64,
    }
}

/// Why the data of each of a session's connections do not go by RDMA.
fn why_not_rdma(session: &Session, listens: bool) -> Vec<Option<String>> {
    let channels = session.channels();
    let beside = channels.iter().any(|channel| channel.carrier == Carrier::Rdma);
    let of = |channel: &ChannelInfo| {
        let facts = why_not_rdma::Facts {
            dialect: session.origin.dialect,
            carrier: channel.carrier,
            listens,
            beside,
            knows: session.told.knows(),
            signed: session.must_sign,
            encrypted: session.must_encrypt,
            seals_remote: channel.seals_remote,
        };
        why_not_rdma::why_not_rdma(&facts).map(str::to_owned)
    };
    channels.iter().map(of).collect()
}

/// A dialect as the configuration writes it.
fn dialect(dialect: Dialect) -> String {
    let (major, minor, patch) = (dialect.0 >> 8, dialect.0 >> 4 & 0xf, dialect.0 & 0xf);
    if patch == 0 { format!("{major}.{minor}") } else { format!("{major}.{minor}.{patch}") }
}

pub(crate) fn open_info(open: &Open) -> OpenInfo {
    OpenInfo {
        id: open.id.persistent,
        session: open.session_id().map(|id| id.0),
        user: open.origin.user.name.clone(),
        share: open.origin.share.clone(),
        path: open.full_name().unwrap_or_else(|_| open.origin.name.clone()),
        directory: open.directory,
        access: open.access.0,
        caching: caching(open),
        locks: open.file.locks_of(open.opener_id()).len() as u64,
    }
}

/// The users who have a file of the system open through a share, with the name that each uses; a few,
/// for messages.
pub fn users_of(server: &Server, path: &Path) -> Vec<String> {
    /// Users that are named at most.
    const NAMED: usize = 4;
    let Ok(file) = fs::metadata(path) else { return Vec::new() };
    let is_it = |open: &Open| {
        rustix::fs::fstat(open.handle())
            .is_ok_and(|other| (other.st_dev, other.st_ino) == (file.dev(), file.ino()))
    };
    let opens = server.open_files.all_opens();
    let users = opens.iter().filter(|open| is_it(open)).map(|open| {
        let info = open_info(open);
        format!("{} as \\\\{}{}", info.user, info.share, info.path)
    });
    users.take(NAMED).collect()
}

/// What an open may cache, in the letters of leases.
fn caching(open: &Open) -> String {
    let (state, _) = open.file.caching(open.opener_id());
    let letters = [(1, 'R'), (2, 'H'), (4, 'W')];
    let held = letters.iter().filter(|(bit, _)| state.0 & bit != 0);
    held.map(|(_, letter)| *letter).collect()
}

fn opens(server: &Server) -> Vec<OpenInfo> {
    let mut list: Vec<_> =
        server.open_files.all_opens().iter().map(|open| open_info(open)).collect();
    list.sort_by(|a, b| (&a.share, &a.path, a.id).cmp(&(&b.share, &b.path, b.id)));
    list
}

fn locks(server: &Server) -> Vec<LockInfo> {
    let mut list = Vec::new();
    for open in server.open_files.all_opens() {
        for (range, exclusive) in open.file.locks_of(open.opener_id()) {
            let info = open_info(&open);
            list.push(LockInfo {
                open: info.id,
                user: info.user,
                share: info.share,
                path: info.path,
                offset: range.offset,
                length: range.length,
                exclusive,
            });
        }
    }
    list.sort_by(|a, b| (&a.share, &a.path, a.offset).cmp(&(&b.share, &b.path, b.offset)));
    list
}

fn shares(server: &Server) -> Vec<ShareInfo> {
    let current = server.current();
    let sessions = server.sessions.all();
    let opens = server.open_files.all_opens();
    let info = |(key, share): (&String, &std::sync::Arc<smb_server::config::Share>)| {
        let trees = sessions.iter().flat_map(|session| session.tree_shares());
        let volume = current.volumes.get(key);
        ShareInfo {
            name: share.name.clone(),
            path: share.path.display().to_string(),
            read_only: share.read_only,
            connected: trees.filter(|name| name == key).count() as u64,
            opens: opens.iter().filter(|open| open.origin.share == *key).count() as u64,
            snapshots: volume.and_then(|v| v.snapshots().ok()).map_or(0, |list| list.len()) as u64,
            shares_blocks: volume.is_some_and(|volume| volume.shares_blocks()),
            comment: share.comment.clone(),
        }
    };
    current.config.shares.iter().map(info).collect()
}

/// The sessions that are meant, or the open.
pub(crate) fn meant(server: &Server, target: &Target) -> (Vec<Arc<Session>>, Vec<Arc<Open>>) {
    let by = |wanted: &dyn Fn(&Session) -> bool| {
        let sessions = server.sessions.all().into_iter().filter(|session| wanted(session));
        (sessions.collect(), Vec::new())
    };
    match target {
        Target::Session(id) => by(&|session| session.id == SessionId(*id)),
        Target::User(name) => {
            let folded = users::fold(name);
            by(&|session| session.user.name == folded)
        }
        Target::Address(text) => by(&|session| {
            let its = |address: &std::net::SocketAddr| {
                address.to_string() == *text || address.ip().to_string() == *text
            };
            session.channels().iter().any(|channel| its(&channel.peer))
        }),
        Target::Open(id) => {
            let opens = server.open_files.all_opens().into_iter();
            (Vec::new(), opens.filter(|open| open.id.persistent == *id).collect())
        }
    }
}

/// Ends sessions with all their opens, or closes one open; how many there were.
fn disconnect(server: &Server, target: &Target) -> u64 {
    let (sessions, opens) = meant(server, target);
    for session in &sessions {
        for open in server.open_files.all_opens() {
            if open.session_id() == Some(session.id) {
                open.close_for_good();
            }
        }
        server.sessions.end(session.id);
    }
    opens.iter().for_each(|open| open.close_for_good());
    (sessions.len() + opens.len()) as u64
}
