//! Making sessions, and making them again when all their connections are lost.
//!
//! ```text
//!            ┌────────────── all channels lost ────────────┐
//!            ▼                                             │
//!  connect ─► Up(link n) ─► lost ─► Down ─► link n+1, opens taken up again ─► Up(link n+1)
//!                                    └── out of time, or refused ─► Failed
//! ```

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use smb_protocol::{SessionId, crypto::random};
use tokio::time::Instant;

use crate::{
    ConnectOptions, Error, Result, Session,
    handshake::{Purpose, establish},
    session::{Inner, Link, State},
};

/// Makes sessions by [`Client::connect`], each with its own connections.
#[derive(Debug)]
pub struct Client;

impl Client {
    /// Connects and logs on. The session keeps itself up as the options say.
    ///
    /// # Errors
    /// [`Error::Connect`] if the server is not reached, [`Error::Logon`] if it refuses the user, and what else of
    /// [`Error`] its answers lead to.
    pub async fn connect(options: ConnectOptions) -> Result<Session> {
        let client_guid = random();
        let established = establish(&options, client_guid, Purpose::new()).await?;
        let (link, anchor) = Link::start(established, &options, 1)?;
        let watched = Watched::of(&link);
        let inner = Inner::new(options, client_guid, Arc::clone(&link));
        inner.keep_channels(&link, anchor);
        drop(link);
        tokio::spawn(supervise(Arc::downgrade(&inner), watched));
        Ok(Session { inner })
    }
}

/// Makes the next session and takes all opens up again, with so long to connect and log on. `previous`
/// is the last session that was established, on which opens may be; it is kept up to date even on failure.
async fn revive(
    inner: &Arc<Inner>,
    generation: u64,
    previous: &mut SessionId,
    connect_timeout: Duration,
) -> Result<Arc<Link>> {
    let (first, others) = (inner.preferred(), inner.addresses());
    let purpose = Purpose::Session { previous: *previous, first: &first, others: &others };
    let options = ConnectOptions { connect_timeout, ..inner.options.clone() };
    let established = establish(&options, inner.client_guid, purpose).await?;
    *previous = established.crypt.session_id;
    let (link, anchor) = Link::start(established, &inner.options, generation)?;
    for open in inner.opens() {
        open.restore(&link).await?;
    }
    inner.keep_channels(&link, anchor);
    Ok(link)
}

/// What the supervisor has to know of a link without keeping it alive.
struct Watched {
    ended: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    link: Weak<Link>,
    generation: u64,
    session: SessionId,
}

impl Watched {
    fn of(link: &Arc<Link>) -> Self {
        Self {
            ended: Box::pin(link.channels.ended()),
            link: Arc::downgrade(link),
            generation: link.generation,
            session: link.channels.main().crypt.session_id,
        }
    }
}

/// Keeps a session up until it is dropped or cannot be restored.
async fn supervise(inner: Weak<Inner>, mut watched: Watched) {
    const FIRST_PAUSE: Duration = Duration::from_millis(20);
    const LONGEST_PAUSE: Duration = Duration::from_millis(500);
    /// What the first attempt has, at least.
    const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
    loop {
        watched.ended.await;
        let link = watched.link.upgrade();
        let reason = link.map_or(Error::Closed, |link| link.channels.main().reason());
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        // The system of a node that stands still takes connections, and nobody there answers. Meanwhile
        // its address goes to another node, which only a new connection finds; so attempts are short at
        // first, and longer where a server is only slow.
        let mut attempt = FIRST_ATTEMPT;
        let mut last = reason;
        let link = loop {
            let Some(this) = inner.upgrade() else { return };
            if this.options.reconnect_timeout.is_zero() {
                this.set(State::Failed(last));
                return;
            }
            this.set(State::Down);
            let left = this.options.reconnect_timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                tracing::warn!(server = %this.options.address(), "session cannot be restored");
                this.set(State::Failed(last));
                return;
            }
            let limit = attempt.max(this.options.keep_alive).min(this.options.connect_timeout);
            match revive(&this, watched.generation + 1, &mut watched.session, limit).await {
                Ok(link) => {
                    tracing::info!(server = %this.options.address(), "session restored");
                    this.set(State::Up(Arc::clone(&link)));
                    break link;
                }
                // A server that is just starting may not know its shares or users yet.
                Err(error) if error.is_disconnect() || error.nt_status().is_some() => {
                    last = Error::disconnected(describe(&error));
                }
                Err(error) => {
                    this.set(State::Failed(error));
                    return;
                }
            }
            drop(this);
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempt = limit * 2;
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
