//! A session that outlives its connections.
//!
//! ```text
//!            ┌────────────── connection lost ──────────────┐
//!            ▼                                             │
//!  connect ─► Up(link n) ─► lost ─► Down ─► link n+1, opens taken up again ─► Up(link n+1)
//!                                    └── out of time, or refused ─► Failed
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use smb_protocol::{
    Command, Dialect, FileId, NtStatus, SessionId, TreeId,
    crypto::random,
    fscc::{FsctlCode, fsctl::ValidateNegotiateResponse},
    msg::{
        ioctl,
        tree_connect::{self, ShareCapabilities, ShareFlags},
    },
};
use tokio::sync::watch;

use crate::{
    ConnectOptions, Error, Result, Tree,
    connection::{Connection, Handle, Response},
    handshake::establish,
    open::Open,
};

/// Connects to servers.
#[derive(Debug)]
pub struct Client;

impl Client {
    /// Connects and logs on. The session keeps itself up as the options say.
    pub async fn connect(options: ConnectOptions) -> Result<Session> {
        let client_guid = random();
        let established = establish(&options, client_guid, SessionId(0)).await?;
        let link = Arc::new(Link::new(Connection::start(established, &options), 1));
        let watched = Watched::of(&link);
        let inner = Arc::new(Inner {
            options,
            client_guid,
            state: watch::Sender::new(State::Up(link)),
            opens: Mutex::default(),
        });
        tokio::spawn(supervise(Arc::downgrade(&inner), watched));
        Ok(Session { inner })
    }
}

/// A user's session at a server. Cheap to clone; ends when it and everything opened through it
/// is dropped.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) inner: Arc<Inner>,
}

impl Session {
    /// Connects to a share.
    pub async fn tree(&self, share: &str) -> Result<Tree> {
        let tree = Tree::new(Arc::clone(&self.inner), share);
        let link = self.inner.link().await?;
        link.tree(&self.inner.options, share).await?;
        Ok(tree)
    }

    /// Asks the server for a sign of life.
    pub async fn echo(&self) -> Result<()> {
        let link = self.inner.link().await?;
        let encode = |out: &mut Vec<u8>| smb_protocol::msg::simple::Empty.encode(out);
        let response = link.connection.call(Command::ECHO, TreeId(0), 1, encode).await?;
        expect(&response, || "echo".into())
    }

    /// The dialect in use.
    pub async fn dialect(&self) -> Result<Dialect> {
        Ok(self.inner.link().await?.connection.crypt.dialect)
    }

    /// Whether all messages are encrypted.
    pub async fn is_encrypted(&self) -> Result<bool> {
        Ok(self.inner.link().await?.connection.is_sealed())
    }

    /// Gives the present connection up as if it were lost, so that a new one is made.
    pub async fn reset(&self) -> Result<()> {
        let link = self.inner.link().await?;
        link.connection.close(Error::disconnected("reset by the user"));
        self.inner.newer_link(link.generation).await.map(drop)
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub options: ConnectOptions,
    client_guid: [u8; 16],
    state: watch::Sender<State>,
    opens: Mutex<Vec<Weak<Open>>>,
}

#[derive(Clone, Debug)]
enum State {
    Up(Arc<Link>),
    Down,
    Failed(Error),
}

/// One connection of a session and the trees on it.
#[derive(Debug)]
pub(crate) struct Link {
    pub connection: Handle,
    /// Counts the session's connections.
    pub generation: u64,
    trees: tokio::sync::Mutex<HashMap<String, ConnectedTree>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectedTree {
    pub id: TreeId,
    pub capabilities: ShareCapabilities,
}

impl Inner {
    /// The present connection; waits while one is being made.
    pub async fn link(&self) -> Result<Arc<Link>> {
        self.newer_link(0).await
    }

    /// A connection after number `generation`; waits while one is being made.
    pub async fn newer_link(&self, generation: u64) -> Result<Arc<Link>> {
        let mut state = self.state.subscribe();
        let settled = |state: &State| match state {
            State::Up(link) => link.generation > generation,
            State::Down => false,
            State::Failed(_) => true,
        };
        let state = state.wait_for(settled).await.map_err(|_| Error::Closed)?;
        match &*state {
            State::Up(link) => Ok(Arc::clone(link)),
            State::Failed(error) => Err(error.clone()),
            State::Down => Err(Error::Closed),
        }
    }

    /// Has an open taken up again with every new connection.
    pub fn register(&self, open: &Arc<Open>) {
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        opens.retain(|open| open.strong_count() > 0);
        opens.push(Arc::downgrade(open));
    }

    /// Makes the next connection and takes all opens up again. `previous` is the last session
    /// that was established, on which opens may be; it is kept up to date even on failure.
    async fn revive(&self, generation: u64, previous: &mut SessionId) -> Result<Arc<Link>> {
        let established = establish(&self.options, self.client_guid, *previous).await?;
        *previous = established.crypt.session_id;
        let handle = Connection::start(established, &self.options);
        let link = Arc::new(Link::new(handle, generation));
        let opens: Vec<_> = {
            let opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
            opens.iter().filter_map(Weak::upgrade).collect()
        };
        for open in opens {
            open.restore(&link).await?;
        }
        Ok(link)
    }
}

impl Link {
    fn new(connection: Handle, generation: u64) -> Self {
        Self { connection, generation, trees: tokio::sync::Mutex::default() }
    }

    /// The share's tree on this connection, connected on first use.
    pub async fn tree(&self, options: &ConnectOptions, share: &str) -> Result<ConnectedTree> {
        let mut trees = self.trees.lock().await;
        if let Some(tree) = trees.get(share) {
            return Ok(*tree);
        }
        let connection = &self.connection;
        let path = format!("\\\\{}\\{share}", options.host);
        let request = tree_connect::Request { flags: 0, path };
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let response = connection.call(Command::TREE_CONNECT, TreeId(0), 1, encode).await?;
        expect(&response, || format!("connect to share {share:?}"))?;
        let body = tree_connect::Response::parse(&response.body)?;
        if body.flags.has(ShareFlags::ENCRYPT_DATA) {
            connection.seal_all()?;
        }
        let tree = ConnectedTree { id: response.header.tree_id(), capabilities: body.capabilities };
        if trees.is_empty() {
            validate(connection, tree.id).await?;
        }
        trees.insert(share.to_owned(), tree);
        Ok(tree)
    }
}

/// Has the server confirm, signed, what it negotiated unsigned (MS-SMB2 3.2.5.5, dialects 3.0
/// and 3.0.2).
async fn validate(connection: &Arc<Connection>, tree: TreeId) -> Result<()> {
    let Some(validation) = &connection.validate else { return Ok(()) };
    let mut input = Vec::new();
    validation.request.encode(&mut input);
    let request = ioctl::Request {
        code: FsctlCode::VALIDATE_NEGOTIATE_INFO,
        file_id: FileId::RELATED,
        input: &input,
        max_output: 24,
        flags: ioctl::IS_FSCTL,
        ..Default::default()
    };
    let encode = |out: &mut Vec<u8>| request.encode(out);
    let response = connection.call(Command::IOCTL, tree, 1, encode).await?;
    // An old server that does not know it answers signed that it does not.
    if matches!(
        response.header.status,
        NtStatus::INVALID_DEVICE_REQUEST | NtStatus::NOT_SUPPORTED | NtStatus::FILE_CLOSED
    ) {
        return Ok(());
    }
    expect(&response, || "validate the negotiation".into())?;
    let body = ioctl::Response::parse(&response.body)?;
    let seen = ValidateNegotiateResponse::parse(body.output)?;
    let same = seen.capabilities == validation.capabilities
        && seen.guid == validation.guid
        && seen.security_mode == validation.security_mode
        && seen.dialect == validation.dialect;
    if same { Ok(()) } else { Err(Error::NotAuthentic("the negotiation was changed on its way")) }
}

/// Fails unless a response has status SUCCESS.
pub(crate) fn expect(response: &Response, what: impl FnOnce() -> String) -> Result<()> {
    match response.header.status {
        NtStatus::SUCCESS => Ok(()),
        status => Err(Error::status(what(), status)),
    }
}

/// What the supervisor has to know of a link without keeping it alive.
struct Watched {
    closed: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    connection: Weak<Connection>,
    generation: u64,
    session: SessionId,
}

impl Watched {
    fn of(link: &Arc<Link>) -> Self {
        Self {
            closed: Box::pin(link.connection.wait_closed()),
            connection: Arc::downgrade(&link.connection),
            generation: link.generation,
            session: link.connection.session_id(),
        }
    }
}

/// Keeps a session up until it is dropped or cannot be restored.
async fn supervise(inner: Weak<Inner>, mut watched: Watched) {
    const FIRST_PAUSE: Duration = Duration::from_millis(20);
    const LONGEST_PAUSE: Duration = Duration::from_millis(500);
    loop {
        watched.closed.await;
        let reason = watched.connection.upgrade().map_or(Error::Closed, |link| link.reason());
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut last = reason;
        let link = loop {
            let Some(this) = inner.upgrade() else { return };
            if this.options.reconnect_timeout.is_zero() {
                this.state.send_replace(State::Failed(last));
                return;
            }
            this.state.send_replace(State::Down);
            let left = this.options.reconnect_timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                tracing::warn!(server = %this.options.address(), "session cannot be restored");
                this.state.send_replace(State::Failed(last));
                return;
            }
            match this.revive(watched.generation + 1, &mut watched.session).await {
                Ok(link) => {
                    tracing::info!(server = %this.options.address(), "session restored");
                    this.state.send_replace(State::Up(Arc::clone(&link)));
                    break link;
                }
                // A server that is just starting may not know its shares or users yet.
                Err(error) if error.is_disconnect() || error.nt_status().is_some() => {
                    last = Error::disconnected(describe(&error));
                }
                Err(error) => {
                    this.state.send_replace(State::Failed(error));
                    return;
                }
            }
            drop(this);
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        watched = Watched::of(&link);
    }
}

/// An error and its cause in one line.
fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Connection::fmt(self, f)
    }
}
