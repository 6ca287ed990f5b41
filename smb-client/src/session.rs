//! A session that outlives its connections: what callers hold, and the link that it is at present.
//! [`crate::reconnect`] makes the next link when one is lost.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::future::BoxFuture;
use smb_protocol::{
    Command, Dialect, FileId, HeaderFlags, NtStatus, TreeId,
    fscc::{FsctlCode, fsctl::ValidateNegotiateResponse},
    msg::{
        ioctl,
        tree_connect::{self, ShareCapabilities, ShareFlags},
    },
};
use tokio::sync::Notify;

use crate::{
    ConnectOptions, Error, Result, Tree,
    channel_group::Group,
    channels::{self, Channels},
    connection::{Connection, Cost, Response},
    handshake::{Anchor, Established},
};

/// A user's session at a server. Cheap to clone; ends when it and everything opened through it
/// is dropped.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) inner: Arc<Inner>,
}

impl Session {
    /// Connects to a share.
    ///
    /// # Errors
    /// [`Error::Status`] if there is no such share or it refuses the user; [`Error::Disconnected`].
    pub async fn tree(&self, share: &str) -> Result<Tree> {
        let tree = Tree::new(Arc::clone(&self.inner), share);
        tree.connect().await?;
        Ok(tree)
    }

    /// Asks the server for a sign of life.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if there is none in time.
    pub async fn echo(&self) -> Result<()> {
        let link = self.inner.link().await?;
        let encode = |out: &mut Vec<u8>| smb_protocol::msg::simple::Empty.encode(out);
        let response = link.channels.main().call(Command::ECHO, TreeId(0), encode).await?;
        expect(&response, || "echo".into())
    }

    /// The dialect in use.
    ///
    /// # Errors
    /// [`Error`] why the session has ended, if it has.
    pub async fn dialect(&self) -> Result<Dialect> {
        Ok(self.inner.link().await?.dialect())
    }

    /// Whether all messages are encrypted.
    ///
    /// # Errors
    /// [`Error`] why the session has ended, if it has.
    pub async fn is_encrypted(&self) -> Result<bool> {
        Ok(self.inner.link().await?.channels.main().is_sealed())
    }

    /// The connections that the session has at present: their local address and the server's.
    ///
    /// # Errors
    /// [`Error`] why the session has ended, if it has.
    pub async fn channels(&self) -> Result<Vec<(IpAddr, IpAddr)>> {
        let link = self.inner.link().await?;
        let channels = link.channels.all();
        let live = channels.iter().filter(|channel| !channel.is_closed());
        Ok(live.map(|channel| (channel.path.local, channel.path.server)).collect())
    }

    /// Gives the present connections up as if they were lost, so that new ones are made.
    ///
    /// # Errors
    /// [`Error`] why no new connection could be made in time.
    pub async fn reset(&self) -> Result<()> {
        let link = self.inner.link().await?;
        link.channels.close(&Error::disconnected("reset by the user"));
        self.inner.newer_link(link.generation).await.map(drop)
    }
}

/// Something open at the server that outlives a link.
pub(crate) trait Restore: fmt::Debug + Send + Sync {
    /// Takes it up again in a new link. An error means that the link failed.
    fn restore<'a>(&'a self, link: &'a Arc<Link>) -> BoxFuture<'a, Result<()>>;
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub options: ConnectOptions,
    pub client_guid: [u8; 16],
    state: Mutex<State>,
    /// Wakes who waits for another state, in the order in which they came.
    changed: Notify,
    opens: Mutex<Vec<Weak<dyn Restore>>>,
    /// What the server told last of where it is.
    addresses: Mutex<Vec<IpAddr>>,
    /// Where it is by the word of a witness, which is tried first.
    preferred: Mutex<Vec<IpAddr>>,
    /// Shares that a witness is asked about.
    witnessed: Mutex<HashSet<String>>,
}

#[derive(Clone, Debug)]
pub(crate) enum State {
    Up(Arc<Link>),
    Down,
    Failed(Error),
}

/// A session at the server: its channels and the trees in it.
#[derive(Debug)]
pub(crate) struct Link {
    pub channels: Channels,
    /// Counts the sessions that this one has been.
    pub generation: u64,
    trees: tokio::sync::Mutex<HashMap<String, ConnectedTree>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectedTree {
    pub id: TreeId,
    pub capabilities: ShareCapabilities,
}

impl Inner {
    /// One whose first link is up.
    pub fn new(options: ConnectOptions, client_guid: [u8; 16], link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self {
            options,
            client_guid,
            state: Mutex::new(State::Up(link)),
            changed: Notify::new(),
            opens: Mutex::default(),
            addresses: Mutex::default(),
            preferred: Mutex::default(),
            witnessed: Mutex::default(),
        })
    }

    /// What is open now.
    pub fn opens(&self) -> Vec<Arc<dyn Restore>> {
        let opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        opens.iter().filter_map(Weak::upgrade).collect()
    }

    /// Where the server can be found, as it told last.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The present session; waits while one is being made.
    pub async fn link(&self) -> Result<Arc<Link>> {
        self.newer_link(0).await
    }

    /// A session after number `generation`; waits while one is being made.
    pub async fn newer_link(&self, generation: u64) -> Result<Arc<Link>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
                State::Up(link) if link.generation > generation => return Ok(Arc::clone(link)),
                State::Failed(error) => return Err(error.clone()),
                State::Up(_) | State::Down => {}
            }
            changed.await;
        }
    }

    /// Moves to another state and tells who waits.
    pub fn set(&self, state: State) {
        let old = std::mem::replace(
            &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner),
            state,
        );
        self.changed.notify_waiters();
        // A link that goes says goodbye, which nobody has to wait for.
        drop(old);
    }

    /// Has an open taken up again with every new connection.
    pub fn register(&self, open: Weak<dyn Restore>) {
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        opens.retain(|open| open.strong_count() > 0);
        opens.push(open);
    }

    /// Notes where the server can be found.
    pub fn note_addresses(&self, found: impl Iterator<Item = IpAddr>) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.clear();
        addresses.extend(found);
    }

    /// Where the server is to be looked for first.
    pub fn preferred(&self) -> Vec<IpAddr> {
        self.preferred.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the server looked for there first.
    pub fn prefer(&self, addresses: Vec<IpAddr>) {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Notes that a witness is asked about a share; `false` if one is already.
    pub fn note_witnessed(&self, share: &str) -> bool {
        let mut shares = self.witnessed.lock().unwrap_or_else(PoisonError::into_inner);
        shares.insert(share.to_owned())
    }

    /// Has more channels made for a session where that is wanted and can be.
    pub fn keep_channels(self: &Arc<Self>, link: &Arc<Link>, anchor: Option<Anchor>) {
        if let Some(anchor) = anchor.filter(|_| self.options.max_channels > 1) {
            let (inner, link) = (Arc::downgrade(self), Arc::downgrade(link));
            tokio::spawn(channels::keep(inner, link, anchor));
        }
    }
}

impl Link {
    /// Starts the first channel of a session. Gives what further ones must know, if there can be
    /// any.
    pub fn start(
        established: Established,
        options: &ConnectOptions,
        generation: u64,
    ) -> Result<(Arc<Self>, Option<Anchor>)> {
        let anchor = established.multichannel.then(|| Anchor {
            crypt: Arc::clone(&established.crypt),
            server_guid: established.server_guid,
        });
        let path = established.wire.path(1)?;
        let group = Group::new(established.seal_all, options);
        let first = Connection::start(established, options, group, path);
        let channels = Channels::new(first);
        Ok((Arc::new(Self { channels, generation, trees: tokio::sync::Mutex::default() }), anchor))
    }

    pub fn dialect(&self) -> Dialect {
        self.channels.main().crypt.dialect
    }

    /// Some tree of the session.
    pub fn some_tree(&self) -> Option<TreeId> {
        self.trees.try_lock().ok()?.values().next().map(|tree| tree.id)
    }

    /// The share's tree in this session, connected on first use.
    pub async fn tree(&self, options: &ConnectOptions, share: &str) -> Result<ConnectedTree> {
        let mut trees = self.trees.lock().await;
        if let Some(tree) = trees.get(share) {
            return Ok(*tree);
        }
        let connection = &self.channels.main();
        let path = format!("\\\\{}\\{share}", options.host);
        let request = tree_connect::Request { flags: 0, path };
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let response = connection.call(Command::TREE_CONNECT, TreeId(0), encode).await?;
        expect(&response, || format!("connect to share {share:?}"))?;
        let body = tree_connect::Response::parse(&response.body)?;
        if body.flags.has(ShareFlags::COMPRESS_DATA) {
            connection.group.compress(response.header.tree_id());
        }
        if body.flags.has(ShareFlags::ENCRYPT_DATA) {
            connection.seal_all()?;
        }
        let tree = ConnectedTree { id: response.header.tree_id(), capabilities: body.capabilities };
        if trees.is_empty() {
            validate(connection, tree.id).await?;
        }
        trees.insert(share.to_owned(), tree);
        self.channels.look_again();
        Ok(tree)
    }
}

/// Has the server confirm, signed, what it negotiated unsigned (MS-SMB2 3.2.5.5, all dialects below
/// 3.1.1): a negotiation that was changed on its way, to an older dialect or to one without
/// encryption, is seen here, before any file is touched.
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
    let signed = HeaderFlags::SIGNED;
    let ticket = connection.submit(Command::IOCTL, tree, Cost::LEAST, signed, encode).await?;
    // It may have been stopped just then; one that does not like what it sees ends the connection,
    // too (MS-SMB2 3.3.5.15.12), each time.
    let lost = |error: Error| if error.is_disconnect() { Error::Unconfirmed } else { error };
    let response = ticket.reply().await.map_err(lost)?;
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
