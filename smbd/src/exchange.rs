//! From received bytes to answers: decrypting, verifying, taking compounds apart, dispatching,
//! signing and sealing (MS-SMB2 3.3.5.2, 3.3.4.1).
//!
//! No socket and no clock: a frame goes in, bytes come out, and what must wait comes back as a
//! future whose completion is fed in again.

use std::{
    collections::HashMap, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Instant,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use smb_protocol::{
    Command, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId,
    crypto::{Role, SigningKey, TransformHeader},
    header::{
        FRAME_LEN, HEADER_LEN, PROTOCOL_SMB1, PROTOCOL_SMB2, PROTOCOL_TRANSFORM, frame_prefix,
    },
    msg::error,
};
use tokio::sync::{
    Notify,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
    oneshot,
};

use crate::{
    Server,
    command::{
        self, Ctx, Ends, Fail, Handled, Later,
        negotiate::Negotiated,
        session_setup::{self, Authentication, BindingRequest},
    },
    connection::Dropped,
    credits::CreditWindow,
    meters::Meter,
    server,
    session::{Channel, ConnectionId, Notice, Session},
    volume::{
        node::{Creating, Wake},
        open::InProgress,
    },
};

/// A future whose end becomes an answer.
pub type WaitingFuture = Pin<Box<dyn Future<Output = Completion> + Send>>;

/// What became of a frame.
pub enum Frame {
    /// All of it is answered in the output.
    Answered,
    /// Some of it waits; poll these and feed their results to [`Exchange::complete`].
    Waits(Vec<WaitingFuture>),
}

/// The end of something that waited.
pub struct Completion {
    key: u64,
    outcome: Outcome,
}

enum Outcome {
    /// The body of the answer, or why there is none.
    Answer(Result<Vec<u8>, NtStatus>),
    /// Status and body of the answer; a failure without body is answered as an error.
    Ended(NtStatus, Vec<u8>),
    /// The request is to be carried out again.
    Again,
}

/// A request that is to wait for its answer.
struct Wait {
    future: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    cancel: Option<oneshot::Sender<()>>,
    interim: bool,
    bytes: usize,
    io: bool,
    /// When it was taken up, if it is timed.
    since: Option<Instant>,
}

impl From<Later> for Wait {
    fn from(later: Later) -> Self {
        let Later { future, cancel, interim, bytes, io } = later;
        let future = Box::pin(async move { Outcome::Answer(future.await) });
        Self { future, cancel, interim, bytes, io, since: None }
    }
}

impl From<Ends> for Wait {
    fn from(ends: Ends) -> Self {
        let Ends { future, interim, bytes } = ends;
        let future = Box::pin(async move {
            let (status, body) = future.await;
            Outcome::Ended(status, body)
        });
        Self { future, cancel: None, interim, bytes, io: true, since: None }
    }
}

/// Waits in place for something that ends by itself.
fn awaited<T>(future: Pin<Box<dyn Future<Output = T> + Send>>) -> T {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| runtime.block_on(future))
}

/// What is remembered of a request that waits.
struct Pending {
    /// The header of its answer.
    header: Header,
    protection: Protection,
    cancel: Option<oneshot::Sender<()>>,
    bytes: usize,
    io: bool,
    since: Option<Instant>,
    rest: Rest,
}

/// How a request that waits goes on.
enum Rest {
    /// Its answer is signed with this key.
    Answer(Option<Arc<SigningKey>>),
    /// It is carried out again, and what stands behind it in its compound after it.
    Again(Box<Suspended>),
}

/// A compound from a request on that could not be carried out yet.
struct Suspended {
    bytes: Vec<u8>,
    accepted: Accepted,
    chain: Chain,
    first: bool,
    /// What it waits for, and until when.
    again: (Arc<Notify>, Instant),
}

impl Suspended {
    /// The connection is lost. Until what a CREATE waited for has happened, its repetition on
    /// another channel is told that it is in progress.
    fn outlive(self) {
        let Some(creating) = self.accepted.creating else { return };
        let (again, until) = self.again;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout_at(until.into(), again.notified()).await;
                drop(creating);
            });
        }
    }
}

/// A request whose place, credits and protection were checked.
struct Accepted {
    header: Header,
    channel: Option<Arc<Channel>>,
    binding: Option<BindingRequest>,
    credits: u16,
    /// Its name once it was answered with PENDING.
    async_id: Option<u64>,
    /// A CREATE that its client may repeat while it waits.
    creating: Option<Creating>,
}

/// Whether the next request of a frame can be carried out.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Suspended,
}

/// How the answers to one frame are protected.
#[derive(Clone)]
enum Protection {
    Plain,
    Sealed(Arc<Session>),
}

/// The protocol state of one connection.
pub struct Exchange {
    /// What all connections share.
    pub server: Arc<Server>,
    /// Its name.
    pub id: ConnectionId,
    /// The client's address.
    pub peer: SocketAddr,
    /// Our address that the client dialled.
    pub local: SocketAddr,
    /// What was negotiated.
    pub negotiated: Option<Negotiated>,
    /// Sessions of this connection: `Connection.SessionTable`.
    pub sessions: HashMap<SessionId, Arc<Channel>>,
    /// What it counts.
    pub meter: Arc<Meter>,
    /// Sessions that are being authenticated.
    pub authentications: HashMap<SessionId, Authentication>,
    window: CreditWindow,
    pending: HashMap<u64, Pending>,
    pending_bytes: usize,
    next_key: u64,
    limits: crate::config::Limits,
    max_message: usize,
    notices: (UnboundedSender<Notice>, UnboundedReceiver<Notice>),
}

/// State that goes from one request of a compound to the next related one
/// (MS-SMB2 3.3.5.2.7.2).
#[derive(Default, Clone)]
struct Chain {
    session_id: SessionId,
    tree: u64,
    file: Option<Result<FileId, NtStatus>>,
    /// How the request before ended, if it failed before it had a session or tree.
    failed: Option<NtStatus>,
}

/// What is known of a request before it is dispatched.
#[derive(Default)]
struct Admitted {
    channel: Option<Arc<Channel>>,
    /// It wants to bind the connection to a session.
    binding: Option<BindingRequest>,
}

impl Admitted {
    fn to(channel: &Arc<Channel>) -> Self {
        Self { channel: Some(channel.clone()), binding: None }
    }
}

/// Refuses what a session may not do any more when its time is over (MS-SMB2 3.3.5.2.9).
fn alive(header: &Header, session: &Session) -> Result<(), NtStatus> {
    session.touch();
    let always = [Command::SESSION_SETUP, Command::LOGOFF, Command::CLOSE, Command::LOCK];
    if session.expired(server::now) && !always.contains(&header.command) {
        return Err(NtStatus::NETWORK_SESSION_EXPIRED);
    }
    Ok(())
}

impl Exchange {
    /// The state of a new connection.
    pub fn new(server: Arc<Server>, peer: SocketAddr, local: SocketAddr) -> Self {
        let current = server.current();
        let limits = current.config.limits.clone();
        let max_message = current.config.max_io_size as usize;
        let id = server.new_connection_id();
        Self {
            id,
            meter: server.meters.begin(id),
            server,
            peer,
            local,
            negotiated: None,
            sessions: HashMap::new(),
            authentications: HashMap::new(),
            window: CreditWindow::new(limits.credits),
            pending: HashMap::new(),
            pending_bytes: 0,
            next_key: 1,
            limits,
            max_message,
            notices: mpsc::unbounded_channel(),
        }
    }

    /// Where the client's sessions leave what it is told unasked.
    pub fn notices(&self) -> UnboundedSender<Notice> {
        self.notices.0.clone()
    }

    /// The next thing to tell the client.
    pub async fn notice(&mut self) -> Option<Notice> {
        self.notices.1.recv().await
    }

    /// The next thing to tell the client, if there is one now.
    pub fn notice_now(&mut self) -> Option<Notice> {
        self.notices.1.try_recv().ok()
    }

    /// Writes the message that tells a client to give up caching (MS-SMB2 3.3.4.6, 3.3.4.7).
    pub fn tell(&self, notice: Notice, out: &mut Vec<u8>) {
        let channel = match notice.session {
            Some(id) => self.sessions.get(&id),
            None => self.sessions.values().next(),
        };
        let Some(channel) = channel else { return };
        let header = Header {
            command: Command::OPLOCK_BREAK,
            message_id: MessageId::UNSOLICITED,
            session_id: notice.session.unwrap_or_default(),
            ..Header::default()
        };
        let protection = if channel.session.must_encrypt {
            Protection::Sealed(channel.session.clone())
        } else {
            Protection::Plain
        };
        let mut answer = Answer::begin(out, &protection);
        let body_at = answer.open(&header);
        notice.message.encode(answer.out);
        answer.close(header, body_at, None, Place { first: true, last: true });
        answer.end();
    }

    /// Longest payload of a message; what one credit pays for where there is no more than one
    /// (MS-SMB2 3.3.5.4).
    pub fn max_message(&self) -> usize {
        match &self.negotiated {
            // Nobody who has not logged in makes the server hold more than a long ticket.
            _ if !self.authenticated() => self.max_message.min(1 << 16),
            Some(negotiated) if !negotiated.large_mtu() => self.max_message.min(1 << 16),
            _ => self.max_message,
        }
    }

    /// Limits that held when the connection began.
    pub fn limits(&self) -> &crate::config::Limits {
        &self.limits
    }

    /// Takes the next message id for a message that has none of its own.
    pub fn skip_message_id(&mut self) {
        if self.window.consume(MessageId(0), 1) {
            self.window.grant(1);
        }
    }

    /// Whether anyone is authenticated.
    pub fn authenticated(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Takes one message apart, answers what can be answered.
    pub fn receive(&mut self, message: &mut [u8], out: &mut Vec<u8>) -> Result<Frame, Dropped> {
        let protocol = message.first_chunk::<4>().copied().unwrap_or_default();
        match protocol {
            PROTOCOL_SMB2 => self.messages(message, Protection::Plain, out),
            PROTOCOL_TRANSFORM => {
                let header = TransformHeader::parse(message)
                    .map_err(|_| Dropped::Protocol("malformed transform header"))?;
                let id = SessionId(header.session_id);
                let session = self.sessions.get(&id).map(|channel| channel.session.clone());
                let session = session.filter(|session| !session.ended());
                let session = session.ok_or(Dropped::Protocol("encrypted for no session"))?;
                let Some((_, opening)) = &session.sealing else {
                    return Err(Dropped::Protocol("encrypted without a cipher"));
                };
                let message = opening
                    .open(message)
                    .map_err(|_| Dropped::Protocol("a message does not decrypt"))?;
                if message.first_chunk::<4>() != Some(&PROTOCOL_SMB2) {
                    return Err(Dropped::Protocol("something else than SMB 2 was encrypted"));
                }
                self.messages(message, Protection::Sealed(session.clone()), out)
            }
            PROTOCOL_SMB1 if self.negotiated.is_none() => {
                command::smb1::answer(self, message, out)?;
                Ok(Frame::Answered)
            }
            PROTOCOL_SMB1 => Err(Dropped::Protocol("SMB 1 is not served")),
            _ => Err(Dropped::Protocol("not SMB")),
        }
    }

    /// Answers the messages of one frame, a compound or a single one.
    fn messages(
        &mut self,
        mut rest: &mut [u8],
        protection: Protection,
        out: &mut Vec<u8>,
    ) -> Result<Frame, Dropped> {
        let mut answer = Answer::begin(out, &protection);
        let mut waits = Vec::new();
        let mut chain = Chain::default();
        let mut first = true;
        while !rest.is_empty() {
            let (header, len) = split(rest)?;
            let place = Place { first, last: len == rest.len() };
            let accepted =
                self.accept(header, &mut rest[..len], place, &protection, &mut chain, &mut answer)?;
            if let Some(accepted) = accepted {
                let flow = self.one(
                    accepted,
                    rest,
                    len,
                    place,
                    &protection,
                    &mut chain,
                    &mut answer,
                    &mut waits,
                )?;
                if flow == Flow::Suspended {
                    break;
                }
            }
            first = false;
            rest = &mut rest[len..];
        }
        answer.end();
        Ok(if waits.is_empty() { Frame::Answered } else { Frame::Waits(waits) })
    }

    /// Checks a request's place, credits and protection. What it can refuse it answers.
    fn accept(
        &mut self,
        mut header: Header,
        message: &mut [u8],
        place: Place,
        protection: &Protection,
        chain: &mut Chain,
        answer: &mut Answer<'_>,
    ) -> Result<Option<Accepted>, Dropped> {
        if header.command == Command::CANCEL {
            if !(place.first && place.last) {
                // It has no answer that could stand in the answer to a compound.
                return Err(Dropped::Protocol("CANCEL in a compound"));
            }
            self.cancel(&header);
            return Ok(None);
        }
        let multi = self.negotiated.as_ref().is_none_or(Negotiated::large_mtu);
        let charge = if multi { header.credit_charge.max(1) } else { 1 };
        if !self.window.consume(header.message_id, charge) {
            return Err(Dropped::Protocol("a message id that was not granted"));
        }
        let credits = self.grant(&header);
        let related = header.flags.has(HeaderFlags::RELATED);
        if related && place.first {
            let signer = self.signer(&header);
            answer.failure(&header, NtStatus::INVALID_PARAMETER, credits, signer.as_ref());
            chain.failed = Some(NtStatus::INVALID_PARAMETER);
            return Ok(None);
        }
        if related {
            header.session_id = chain.session_id;
            header.async_or_tree = chain.tree;
        } else {
            *chain = Chain {
                session_id: header.session_id,
                tree: header.async_or_tree,
                ..Chain::default()
            };
        }
        if related && let Some(status) = chain.failed {
            let signer = self.signer(&header);
            answer.failure(&header, status, credits, signer.as_ref());
            return Ok(None);
        }
        let Admitted { channel, binding } = match self.admit(&header, message, protection) {
            Ok(admitted) => admitted,
            Err(status) => {
                // What is related to a request without session has none either (3.3.5.2.7.2).
                chain.failed = Some(NtStatus::INVALID_PARAMETER);
                let signer = self.failure_signer(&header, message);
                self.meter.answered(header.command, status);
                answer.failure(&header, status, credits, signer.as_ref());
                return Ok(None);
            }
        };
        Ok(Some(Accepted { header, channel, binding, credits, async_id: None, creating: None }))
    }

    /// Carries out one request, which stands at the start of `rest` and is `len` bytes long.
    #[expect(clippy::too_many_arguments, reason = "the state of one pass over a frame")]
    fn one(
        &mut self,
        accepted: Accepted,
        rest: &[u8],
        len: usize,
        place: Place,
        protection: &Protection,
        chain: &mut Chain,
        answer: &mut Answer<'_>,
        waits: &mut Vec<WaitingFuture>,
    ) -> Result<Flow, Dropped> {
        let Accepted { header, channel, binding, credits, async_id, creating } = accepted;
        if !answer.has_room(self.max_message) {
            // One frame cannot carry more; the client may ask again in another.
            let signer = self.signer(&header);
            answer.failure(&header, NtStatus::INSUFFICIENT_RESOURCES, credits, signer.as_ref());
            return Ok(Flow::On);
        }
        let since = self.meter.taken();
        let related = header.flags.has(HeaderFlags::RELATED);
        let mut ctx = Ctx {
            ex: self,
            header,
            session: channel.as_ref().map(|channel| channel.session.clone()),
            binding,
            tree: None,
            sealed: matches!(protection, Protection::Sealed(_)),
            related_file: if related { chain.file } else { None },
            creating,
            in_progress: None,
            file: None,
            signer: None,
        };
        let body_at = answer.open(&ctx.header);
        let result = command::dispatch(&mut ctx, &rest[..len], answer.out);
        let Ctx { header: done, tree, file, signer, creating, in_progress, .. } = ctx;
        let signed = header.flags.has(HeaderFlags::SIGNED);
        let signs =
            signer.or_else(|| channel.as_ref().filter(|_| signed).map(|c| c.signing.clone()));
        let mut response = done;
        response.credits = credits;
        if let Some(id) = async_id {
            response.flags |= HeaderFlags::ASYNC;
            response.async_or_tree = id;
        }
        let result = match result {
            Err(Fail::Later(later)) if later.io && !(place.first && place.last) => {
                // In a compound: what follows must see the effect, and what stands before is
                // signed with the place of this answer, so it is awaited.
                match awaited(later.future) {
                    Ok(body) => {
                        answer.out.extend_from_slice(&body);
                        Ok(NtStatus::SUCCESS)
                    }
                    Err(status) => Err(Fail::Status(status)),
                }
            }
            Err(Fail::Ends(ends)) if !(place.first && place.last) => {
                let (status, body) = awaited(ends.future);
                answer.out.extend_from_slice(&body);
                if body.is_empty() { Err(Fail::Status(status)) } else { Ok(status) }
            }
            // A wait for an event can only stand at the end (MS-SMB2 3.3.4.2).
            Err(Fail::Later(_)) if !place.last => Err(Fail::Status(NtStatus::INTERNAL_ERROR)),
            other => other,
        };
        if self.is_full(&result) {
            answer.reset(body_at);
            error::Response::default().encode(answer.out);
            response.status = NtStatus::INSUFFICIENT_RESOURCES;
            answer.close(response, body_at, signs.as_ref(), place);
            return Ok(Flow::On);
        }
        let mut answered = true;
        match result {
            Ok(status) => {
                response.status = status;
                answer.close(response, body_at, signs.as_ref(), place);
                command::after_answer(self, &response, answer.last_message());
            }
            Err(Fail::Status(status)) => {
                answer.reset(body_at);
                error::Response::default().encode(answer.out);
                response.status = status;
                answer.close(response, body_at, signs.as_ref(), place);
            }
            Err(Fail::Data(status, data)) => {
                answer.reset(body_at);
                error::Response { context_count: 0, data: &data }.encode(answer.out);
                response.status = status;
                answer.close(response, body_at, signs.as_ref(), place);
            }
            Err(Fail::Drop(why)) => return Err(Dropped::Protocol(why)),
            Err(Fail::Later(later)) => {
                answer.reset(body_at);
                answered = false;
                let wait = Wait { since, ..later.into() };
                self.wait(wait, in_progress, response, body_at, protection, signs, answer, waits);
            }
            Err(Fail::Ends(ends)) => {
                answer.reset(body_at);
                answered = false;
                let wait = Wait { since, ..ends.into() };
                self.wait(wait, in_progress, response, body_at, protection, signs, answer, waits);
            }
            Err(Fail::Wait(wake)) => {
                answer.reset(body_at);
                let suspended = Suspended {
                    bytes: rest.to_vec(),
                    accepted: Accepted {
                        header,
                        channel,
                        binding: None,
                        credits: 0,
                        async_id,
                        creating,
                    },
                    chain: chain.clone(),
                    first: place.first,
                    again: (wake.again.clone(), wake.until),
                };
                self.suspend(wake, suspended, response, body_at, protection, answer, waits);
                return Ok(Flow::Suspended);
            }
        }
        if answered {
            self.meter.answered(response.command, response.status);
            self.meter.timed(response.command, since);
        }
        // What a related request inherits.
        chain.session_id = response.session_id;
        if let Some(tree) = tree {
            chain.tree = u64::from(tree.id.0) << 32;
        } else if response.command == Command::TREE_CONNECT {
            chain.tree = response.async_or_tree;
        }
        if response.command == Command::CREATE && response.status.is_error() {
            chain.file = Some(Err(response.status));
        } else if let Some(file) = file {
            chain.file = Some(Ok(file));
        }
        Ok(Flow::On)
    }

    /// Whether a request that would wait finds too many that wait already.
    fn is_full(&self, result: &Handled) -> bool {
        let bytes = match result {
            Err(Fail::Later(later)) => later.bytes,
            Err(Fail::Ends(ends)) => ends.bytes,
            Err(Fail::Wait(_)) => 0,
            _ => return false,
        };
        self.pending.len() >= self.limits.pending_requests
            || self.pending_bytes + bytes > self.limits.pending_bytes.0 as usize
    }

    /// Puts a compound aside from a request on that must wait for others.
    #[expect(clippy::too_many_arguments, reason = "the state of one pass over a frame")]
    fn suspend(
        &mut self,
        wake: Wake,
        mut suspended: Suspended,
        mut response: Header,
        body_at: usize,
        protection: &Protection,
        answer: &mut Answer<'_>,
        waits: &mut Vec<WaitingFuture>,
    ) {
        let key = match suspended.accepted.async_id {
            Some(key) => {
                answer.abandon(body_at);
                key
            }
            None => {
                let key = self.new_key();
                interim(&mut response, key, body_at, answer);
                suspended.accepted.async_id = Some(key);
                key
            }
        };
        let (cancel, cancelled) = oneshot::channel();
        let bytes = suspended.bytes.len();
        self.pending_bytes += bytes;
        self.meter.waits();
        let pending = Pending {
            header: response,
            protection: protection.clone(),
            cancel: Some(cancel),
            bytes,
            io: false,
            since: None,
            rest: Rest::Again(Box::new(suspended)),
        };
        self.pending.insert(key, pending);
        waits.push(Box::pin(async move {
            let outcome = tokio::select! {
                () = wake.changed => Outcome::Again,
                () = tokio::time::sleep_until(wake.until.into()) => Outcome::Again,
                Ok(()) = cancelled => Outcome::Answer(Err(NtStatus::CANCELLED)),
            };
            Completion { key, outcome }
        }));
    }

    fn new_key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    /// The key that signs answers to a request's session on this connection.
    fn signer(&self, header: &Header) -> Option<Arc<SigningKey>> {
        self.sessions.get(&header.session_id).map(|channel| channel.signing.clone())
    }

    /// The key that signs the refusal of a request. One that names a session of other
    /// connections is refused with the session's own key, if it came with that.
    fn failure_signer(&self, header: &Header, message: &mut [u8]) -> Option<Arc<SigningKey>> {
        if !header.flags.has(HeaderFlags::SIGNED) {
            return None;
        }
        self.signer(header).or_else(|| {
            let session = self.server.sessions.get(header.session_id)?;
            session.signing.verify(message, Role::Client).then(|| session.signing.clone())
        })
    }

    /// Finds the session of a request and checks its protection (MS-SMB2 3.3.5.2.4, 3.3.5.2.9).
    fn admit(
        &self,
        header: &Header,
        message: &mut [u8],
        protection: &Protection,
    ) -> Result<Admitted, NtStatus> {
        if header.command == Command::NEGOTIATE {
            return match header.flags.has(HeaderFlags::SIGNED) {
                true => Err(NtStatus::INVALID_PARAMETER),
                false => Ok(Admitted::default()),
            };
        }
        // Another connection may have taken the place of the session (3.3.5.5.3).
        let channel = self.sessions.get(&header.session_id);
        let channel = channel.filter(|channel| !channel.session.ended());
        if let Protection::Sealed(opener) = protection {
            return match channel {
                Some(channel) if Arc::ptr_eq(&channel.session, opener) => {
                    alive(header, &channel.session)?;
                    Ok(Admitted::to(channel))
                }
                _ if header.command == Command::SESSION_SETUP => Ok(Admitted::default()),
                _ => Err(NtStatus::USER_SESSION_DELETED),
            };
        }
        let Some(channel) = channel else {
            return match header.command {
                Command::SESSION_SETUP => {
                    let binding = session_setup::binding(&self.server, header, message);
                    let id = header.session_id;
                    let known = id == SessionId(0) || self.authentications.contains_key(&id);
                    match known || session_setup::binds(message) {
                        true => Ok(Admitted { channel: None, binding }),
                        false => Err(NtStatus::USER_SESSION_DELETED),
                    }
                }
                Command::ECHO => Ok(Admitted::default()),
                _ => Err(NtStatus::USER_SESSION_DELETED),
            };
        };
        let session = &channel.session;
        if header.flags.has(HeaderFlags::SIGNED) {
            if !channel.signing.verify(message, Role::Client) {
                tracing::debug!(peer = %self.peer, "a request with a wrong signature");
                self.meter.bad_signature();
                return Err(NtStatus::ACCESS_DENIED);
            }
        } else if session.must_sign {
            self.meter.unprotected();
            return Err(NtStatus::ACCESS_DENIED);
        }
        alive(header, session)?;
        if session.must_encrypt
            && !matches!(header.command, Command::SESSION_SETUP | Command::LOGOFF)
        {
            self.meter.unprotected();
            return Err(NtStatus::ACCESS_DENIED);
        }
        Ok(Admitted::to(channel))
    }

    /// Credits for the answer to a request: what it asks for, at least what it used.
    fn grant(&mut self, header: &Header) -> u16 {
        let authenticated = self.authenticated();
        let wanted = header.credits.max(header.credit_charge).max(1);
        // Until someone is authenticated a few are enough.
        let wanted = if authenticated { wanted } else { wanted.min(64) };
        self.window.grant(wanted)
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one pass over a frame")]
    fn wait(
        &mut self,
        wait: Wait,
        in_progress: Option<InProgress>,
        mut response: Header,
        body_at: usize,
        protection: &Protection,
        signs: Option<Arc<SigningKey>>,
        answer: &mut Answer<'_>,
        waits: &mut Vec<WaitingFuture>,
    ) {
        let Wait { future, cancel, interim: tells, bytes, io, since } = wait;
        let asynchronous = response.flags.has(HeaderFlags::ASYNC);
        let key = if asynchronous { response.async_or_tree } else { self.new_key() };
        if tells && !asynchronous {
            interim(&mut response, key, body_at, answer);
        } else {
            answer.abandon(body_at);
        }
        self.pending_bytes += bytes;
        let protection = protection.clone();
        let rest = Rest::Answer(signs);
        self.meter.waits();
        let pending = Pending { header: response, protection, cancel, bytes, io, since, rest };
        self.pending.insert(key, pending);
        waits.push(Box::pin(async move {
            let outcome = future.await;
            drop(in_progress);
            Completion { key, outcome }
        }));
    }

    /// Answers a request that has waited, or carries it out again.
    pub fn complete(
        &mut self,
        completion: Completion,
        out: &mut Vec<u8>,
    ) -> Result<Vec<WaitingFuture>, Dropped> {
        let mut waits = Vec::new();
        let Some(pending) = self.pending.remove(&completion.key) else { return Ok(waits) };
        self.pending_bytes -= pending.bytes;
        let protection = pending.protection;
        let mut answer = Answer::begin(out, &protection);
        let mut header = pending.header;
        match (pending.rest, completion.outcome) {
            (Rest::Answer(signs), outcome) => {
                let (status, body) = match outcome {
                    Outcome::Ended(status, body) => (status, body),
                    Outcome::Answer(Ok(body)) => (NtStatus::SUCCESS, body),
                    Outcome::Answer(Err(status)) => (status, Vec::new()),
                    // Only what was put aside is carried out again.
                    Outcome::Again => (NtStatus::INTERNAL_ERROR, Vec::new()),
                };
                let body_at = answer.open(&header);
                header.status = status;
                if body.is_empty() {
                    error::Response::default().encode(answer.out);
                } else {
                    answer.out.extend_from_slice(&body);
                }
                let place = Place { first: true, last: true };
                answer.close(header, body_at, signs.as_ref(), place);
                self.meter.answered(header.command, status);
                self.meter.timed(header.command, pending.since);
            }
            (Rest::Again(suspended), outcome) => {
                let failed = match outcome {
                    Outcome::Answer(Err(status)) => Some(status),
                    _ => None,
                };
                self.resume(*suspended, failed, &protection, &mut answer, &mut waits)?;
            }
        }
        answer.end();
        Ok(waits)
    }

    /// Goes on with a compound where it was put aside.
    fn resume(
        &mut self,
        suspended: Suspended,
        failed: Option<NtStatus>,
        protection: &Protection,
        answer: &mut Answer<'_>,
        waits: &mut Vec<WaitingFuture>,
    ) -> Result<(), Dropped> {
        let Suspended { mut bytes, accepted, mut chain, mut first, .. } = suspended;
        let mut rest = &mut bytes[..];
        let mut next = Some(accepted);
        while !rest.is_empty() {
            let (header, len) = split(rest)?;
            let place = Place { first, last: len == rest.len() };
            let resumed = next.is_some();
            let accepted = match next.take() {
                Some(accepted) => Some(accepted),
                None => {
                    self.accept(header, &mut rest[..len], place, protection, &mut chain, answer)?
                }
            };
            match (accepted, failed) {
                (Some(accepted), Some(status)) if resumed => {
                    let mut header = accepted.header;
                    header.flags |= HeaderFlags::ASYNC;
                    header.async_or_tree = accepted.async_id.unwrap_or_default();
                    chain.file = Some(Err(status));
                    let signed = header.flags.has(HeaderFlags::SIGNED);
                    let signs = accepted.channel.filter(|_| signed).map(|c| c.signing.clone());
                    answer.failure(&header, status, 0, signs.as_ref());
                }
                (Some(accepted), _) => {
                    let flow = self
                        .one(accepted, rest, len, place, protection, &mut chain, answer, waits)?;
                    if flow == Flow::Suspended {
                        break;
                    }
                }
                (None, _) => {}
            }
            first = false;
            rest = &mut rest[len..];
        }
        Ok(())
    }

    /// Gives up a request that waits for an event (MS-SMB2 3.3.5.16); one that is being carried
    /// out ends by itself.
    fn cancel(&mut self, header: &Header) {
        let found = if header.flags.has(HeaderFlags::ASYNC) {
            Some(header.async_or_tree)
        } else {
            let mine = |p: &Pending| p.header.message_id == header.message_id;
            self.pending.iter().find(|(_, p)| mine(p)).map(|(key, _)| *key)
        };
        let pending = found.and_then(|key| self.pending.get_mut(&key));
        if let Some(cancel) = pending.and_then(|p| p.cancel.take()) {
            let _ = cancel.send(());
        }
    }

    /// The next completion of I/O that was begun; `None` when only waits for events are left.
    pub async fn finish_io(
        &self,
        waiting: &mut FuturesUnordered<WaitingFuture>,
    ) -> Option<Completion> {
        if self.pending.values().any(|pending| pending.io) { waiting.next().await } else { None }
    }

    /// Takes the connection out of its sessions; those without another end.
    pub fn end(&mut self) {
        if let Some(negotiated) = &self.negotiated {
            self.server.nodes.clients.remove(negotiated.client_guid, self.id);
        }
        for (_, pending) in self.pending.drain() {
            if let Rest::Again(suspended) = pending.rest {
                suspended.outlive();
            }
        }
        for (id, channel) in self.sessions.drain() {
            if channel.session.leave(self.id) {
                self.server.sessions.end(id);
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end();
        self.server.meters.end(self.id);
    }
}

/// The header of the first message and its length with what pads it.
fn split(rest: &[u8]) -> Result<(Header, usize), Dropped> {
    let header = Header::parse(rest).map_err(|_| Dropped::Protocol("malformed header"))?;
    if header.is_response() {
        return Err(Dropped::Protocol("a response from a client"));
    }
    let next = header.next_command as usize;
    let len = if next == 0 { rest.len() } else { next };
    if len < HEADER_LEN || len > rest.len() || (next != 0 && !next.is_multiple_of(8)) {
        return Err(Dropped::Protocol("malformed compound"));
    }
    Ok((header, len))
}

/// Tells the client that its request waits (MS-SMB2 3.3.4.2).
fn interim(response: &mut Header, key: u64, body_at: usize, answer: &mut Answer<'_>) {
    response.flags |= HeaderFlags::ASYNC;
    response.async_or_tree = key;
    response.status = NtStatus::PENDING;
    error::Response::default().encode(answer.out);
    // Not signed: the final answer has the same message id, and with it the same nonce. It is
    // the last of its frame: what stands behind it is answered later.
    answer.close(*response, body_at, None, Place { first: false, last: true });
    response.credits = 0;
}

/// Where a message stands in its frame.
#[derive(Clone, Copy)]
struct Place {
    first: bool,
    last: bool,
}

/// The answer to one frame, under construction at the end of the output.
struct Answer<'a> {
    out: &'a mut Vec<u8>,
    /// Where the frame prefix stands.
    frame: usize,
    /// Where the first message stands.
    messages: usize,
    /// Where the last closed message stands.
    last: usize,
    sealed: Option<Arc<Session>>,
}

impl<'a> Answer<'a> {
    fn begin(out: &'a mut Vec<u8>, protection: &Protection) -> Self {
        let frame = out.len();
        out.extend_from_slice(&[0; FRAME_LEN]);
        let sealed = match protection {
            Protection::Plain => None,
            Protection::Sealed(session) => {
                out.extend_from_slice(&[0; TransformHeader::LEN]);
                Some(session.clone())
            }
        };
        let messages = out.len();
        Self { out, frame, messages, last: messages, sealed }
    }

    /// Whether an answer with `payload` bytes still fits the frame, whose length has 24 bits.
    fn has_room(&self, payload: usize) -> bool {
        const OVERHEAD: usize = 64 << 10;
        self.out.len() - self.frame + payload + OVERHEAD < 1 << 24
    }

    /// Makes room for the header of a message; returns where its body begins.
    fn open(&mut self, header: &Header) -> usize {
        self.out.extend_from_slice(&header.to_bytes());
        self.out.len()
    }

    /// Drops what was written behind the header.
    fn reset(&mut self, body_at: usize) {
        self.out.truncate(body_at);
    }

    /// Drops a message that is not answered now.
    fn abandon(&mut self, body_at: usize) {
        self.out.truncate(body_at - HEADER_LEN);
    }

    /// Completes a message: header, padding, signature.
    fn close(
        &mut self,
        mut header: Header,
        body_at: usize,
        signer: Option<&Arc<SigningKey>>,
        place: Place,
    ) {
        let start = body_at - HEADER_LEN;
        header.flags =
            HeaderFlags::RESPONSE.or(header.flags.and(HeaderFlags::ASYNC.or(HeaderFlags::RELATED)));
        header.next_command = 0;
        header.signature = [0; 16];
        if !(place.first && place.last) {
            let over = (self.out.len() - start) % 8;
            if over != 0 {
                self.out.resize(self.out.len() + 8 - over, 0);
            }
        }
        if !place.last {
            // Signed as it will be: the next message begins here.
            header.next_command = (self.out.len() - start) as u32;
        }
        self.out[start..body_at].copy_from_slice(&header.to_bytes());
        if let Some(signing) = signer
            && self.sealed.is_none()
        {
            signing.sign(&mut self.out[start..], Role::Server);
        }
        self.last = start;
    }

    /// Answers a request that was refused before it was dispatched.
    fn failure(
        &mut self,
        header: &Header,
        status: NtStatus,
        credits: u16,
        signer: Option<&Arc<SigningKey>>,
    ) {
        let mut response = *header;
        let last = header.next_command == 0;
        response.status = status;
        response.credits = credits;
        let first = self.out.len() == self.messages;
        let body_at = self.open(header);
        error::Response::default().encode(self.out);
        self.close(response, body_at, signer, Place { first, last });
    }

    /// The bytes of the message that was closed last.
    fn last_message(&self) -> &[u8] {
        &self.out[self.last..]
    }

    /// Completes the frame: seals it, writes its prefix; nothing remains of an empty one.
    fn end(self) {
        if self.out.len() == self.messages {
            self.out.truncate(self.frame);
            return;
        }
        let payload = self.frame + FRAME_LEN;
        if let Some(session) = &self.sealed
            && let Some((sealing, _)) = &session.sealing
        {
            sealing.seal(session.id.0, &mut self.out[payload..]);
        }
        let len = self.out.len() - payload;
        let prefix = frame_prefix(len).expect("every message was begun with room for the largest");
        self.out[self.frame..payload].copy_from_slice(&prefix);
    }
}

/// A header for an answer to a message that is not SMB 2.
pub fn plain_header(command: Command) -> Header {
    Header { command, message_id: MessageId(0), credits: 1, ..Header::default() }
}

/// Writes one unprotected message in a frame of its own and returns where the message stands.
pub fn plain_frame(header: Header, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) -> usize {
    let mut answer = Answer::begin(out, &Protection::Plain);
    let body_at = answer.open(&header);
    body(answer.out);
    answer.close(header, body_at, None, Place { first: true, last: true });
    let start = answer.last;
    answer.end();
    start
}

#[cfg(test)]
mod channels;
#[cfg(test)]
mod tests;
