//! From received bytes to answers: decrypting, verifying, taking compounds apart, dispatching,
//! signing and sealing (MS-SMB2 3.3.5.2, 3.3.4.1).
//!
//! No socket and no clock: a frame goes in, bytes come out, and what must wait comes back as a
//! future whose completion is fed in again.

mod admission;
mod answer;
mod credits;
mod waiting;

use std::{collections::HashMap, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use block_io::SplicePipe;
use smb_protocol::{
    Command, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId,
    crypto::TransformHeader,
    header::{HEADER_LEN, PROTOCOL_SMB1, PROTOCOL_SMB2, PROTOCOL_TRANSFORM},
    msg::error,
};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use volume::{budget::Budget, open::table::Creating, work::Turn};

use crate::{
    Server,
    breaks::delivery::{Line, Notice, Post},
    command::{
        self, Ctx, Fail,
        negotiate::Negotiated,
        session_setup::{Authentication, BindingRequest},
    },
    connection::Dropped,
    exchange::credits::CreditWindow,
    meters::Meter,
    session::{Channel, ConnectionId, Session},
};

use self::{
    admission::Admitted,
    answer::{Answer, Place, Protection, Sealed},
    waiting::{Pending, Suspended, Wait, awaited},
};
pub use self::{
    answer::{plain_frame, plain_header},
    waiting::Completion,
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
    /// Bytes of a WRITE's data that are in the file already.
    placed: usize,
}

/// Whether the next request of a frame can be carried out.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Suspended,
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
    /// When it connected.
    pub since: tokio::time::Instant,
    /// What was negotiated.
    pub negotiated: Option<Negotiated>,
    /// Sessions of this connection: `Connection.SessionTable`.
    pub sessions: HashMap<SessionId, Arc<Channel>>,
    /// What it counts.
    pub meter: Arc<Meter>,
    /// Sessions that are being authenticated.
    pub authentications: HashMap<SessionId, Authentication>,
    /// Logons that have failed.
    pub failed_logons: u32,
    /// Counted: each refusal of a logon that waits holds a copy.
    pub refusals: Arc<()>,
    /// Bytes between the body of a READ answer and the data; none but in a test of clients.
    pub read_padding: u8,
    window: CreditWindow,
    pending: HashMap<u64, Pending>,
    pending_bytes: usize,
    next_key: u64,
    limits: crate::config::Limits,
    max_message: usize,
    line: Arc<Line>,
    posts: UnboundedReceiver<Post>,
    /// Bytes of the next message's data that are in the file already.
    placed: usize,
}

/// State that goes from one request of a compound to the next related one
/// (MS-SMB2 3.3.5.2.7, 3.3.5.2.7.2).
#[derive(Default, Clone)]
struct Chain {
    session_id: SessionId,
    tree: u64,
    file: Option<Result<FileId, NtStatus>>,
    /// How the request before ended, if it failed before it had a session or tree.
    failed: Option<NtStatus>,
}

impl Exchange {
    /// The state of a new connection.
    pub fn new(server: Arc<Server>, peer: SocketAddr, local: SocketAddr) -> Self {
        let current = server.current();
        let limits = current.config.limits.clone();
        let max_message = current.config.max_io_size as usize;
        let id = server.new_connection_id();
        let (sender, posts) = mpsc::unbounded_channel();
        Self {
            id,
            meter: server.meters.begin(id),
            server,
            peer,
            local,
            since: tokio::time::Instant::now(),
            negotiated: None,
            sessions: HashMap::new(),
            authentications: HashMap::new(),
            failed_logons: 0,
            refusals: Arc::default(),
            read_padding: 0,
            window: CreditWindow::new(limits.credits),
            pending: HashMap::new(),
            pending_bytes: 0,
            next_key: 1,
            limits,
            max_message,
            line: Line::new(id, sender),
            posts,
            placed: 0,
        }
    }

    /// How the client is told something unasked.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// What this connection is asked to do for others next.
    pub async fn post(&mut self) -> Option<Post> {
        self.posts.recv().await
    }

    /// What it is asked to do now, if there is anything.
    pub fn post_now(&mut self) -> Option<Post> {
        self.posts.try_recv().ok()
    }

    /// Writes the message that tells a client to give up caching (MS-SMB2 3.3.4.6, 3.3.4.7);
    /// `false` if the session is not on this connection any more.
    pub fn tell(&self, notice: Notice, out: &mut Vec<u8>) -> bool {
        let channel = match notice.session {
            Some(id) => self.sessions.get(&id),
            None => self.sessions.values().next(),
        };
        let Some(channel) = channel else { return false };
        let header = Header {
            command: Command::OPLOCK_BREAK,
            message_id: MessageId::UNSOLICITED,
            session_id: notice.session.unwrap_or_default(),
            ..Header::default()
        };
        // What is of a session that must be encrypted is (3.3.4.1.4). The break of a lease is of no
        // session: its header names none (3.3.4.7), and a client throws away what names another
        // session inside than outside (3.2.5.1.1.1), so it goes in the clear. It tells a key that
        // the client made up and what may be cached.
        let session = notice.session.map(|_| &channel.session);
        let protection = match session.filter(|session| session.must_encrypt).map(Sealed::of) {
            None => Protection::Plain,
            Some(Some(sealed)) => Protection::Sealed(sealed),
            Some(None) => return false,
        };
        let mut answer = Answer::begin(out, &protection);
        let body_at = answer.open(&header);
        notice.message.encode(answer.out);
        let place = Place { first: true, last: true };
        answer.close(header, body_at, None, place).is_ok() && answer.end().is_ok()
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

    /// What a session's user may still have held, over all connections.
    pub fn budget(&self, session: &Session) -> Arc<Budget> {
        let most = usize::try_from(self.limits.user_bytes.0).unwrap_or(usize::MAX);
        self.server.budgets.of(&session.user, most)
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

    /// Whether the data of a message that begins like this may go to their file before all of it
    /// has come: a WRITE that stands alone and has no signature to be verified first.
    pub fn may_place(message: &[u8]) -> bool {
        Header::parse(message).is_ok_and(|header| {
            let not = HeaderFlags::SIGNED | HeaderFlags::RELATED | HeaderFlags::ASYNC;
            header.command == Command::WRITE
                && header.next_command == 0
                && !header.is_response()
                && !header.flags.any(not)
        })
    }

    /// Puts what has come of the data of such a message into its file, behind the `placed` bytes
    /// before it, if the whole message, of which `missing` are to come, would be let in now. The
    /// data are in the message, or in `pipe` if there is one. Says how many bytes went, which may
    /// be taken out of the message and are out of the pipe. Each part is checked anew: a client may
    /// have come back on another connection and have gone on there.
    pub fn place(
        &mut self,
        message: &mut [u8],
        placed: usize,
        missing: usize,
        pipe: Option<&mut SplicePipe>,
    ) -> Option<usize> {
        let header = Header::parse(message).ok()?;
        let admitted = self.admit(&header, message, &Protection::Plain).ok()?;
        let session = admitted.channel?.session.clone();
        let tree = session.tree(header.tree_id())?;
        let elsewhere = tree.hosts.as_ref().is_some_and(|hosts| !hosts.admit(self.peer.ip()));
        if tree.must_encrypt || tree.volume.is_none() || elsewhere {
            return None;
        }
        let mut ctx = Ctx::new(self, header, Some(session));
        ctx.tree = Some(tree);
        command::write::place(&mut ctx, message, placed, missing, pipe)
    }

    /// Takes a message of whose data `placed` bytes are in their file and not in the message. Others
    /// have their turns between the requests of a compound, of which there may be thousands; nothing
    /// else of this connection is done meanwhile.
    pub async fn receive_rest(
        &mut self,
        message: &mut [u8],
        placed: usize,
        out: &mut Vec<u8>,
        turn: &mut Turn,
    ) -> Result<Frame, Dropped> {
        self.placed = placed;
        let result = self.take(message, out, turn).await;
        self.placed = 0;
        result
    }

    /// Takes one message apart, answers what can be answered.
    async fn take(
        &mut self,
        message: &mut [u8],
        out: &mut Vec<u8>,
        turn: &mut Turn,
    ) -> Result<Frame, Dropped> {
        let protocol = message.first_chunk::<4>().copied().unwrap_or_default();
        match protocol {
            PROTOCOL_SMB2 => self.messages(message, Protection::Plain, out, turn).await,
            // MS-SMB2 3.3.5.2.1.
            PROTOCOL_TRANSFORM => {
                let header = TransformHeader::parse(message)
                    .map_err(|_| Dropped::Protocol("malformed transform header"))?;
                let id = SessionId(header.session_id);
                let session = self.sessions.get(&id).map(|channel| channel.session.clone());
                let session = session.filter(|session| !session.ended());
                let session = session.ok_or(Dropped::Protocol("encrypted for no session"))?;
                let sealed = Sealed::of(&session);
                let sealed = sealed.ok_or(Dropped::Protocol("encrypted without a cipher"))?;
                let message = sealed.open(message)?;
                if message.first_chunk::<4>() != Some(&PROTOCOL_SMB2) {
                    return Err(Dropped::Protocol("something else than SMB 2 was encrypted"));
                }
                self.messages(message, Protection::Sealed(sealed), out, turn).await
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
    async fn messages(
        &mut self,
        mut rest: &mut [u8],
        protection: Protection,
        out: &mut Vec<u8>,
        turn: &mut Turn,
    ) -> Result<Frame, Dropped> {
        let mut answer = Answer::begin(out, &protection);
        #[cfg(test)]
        {
            answer.leaks = !self.server.nodes.faults.keeps(volume::faults::Rule::TakenBack);
        }
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
            if !rest.is_empty() {
                turn.pass().await;
            }
        }
        answer.end()?;
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
        // 3.3.5.2.2.
        if self.negotiated.is_none() && header.command != Command::NEGOTIATE {
            return Err(Dropped::Protocol("a request before NEGOTIATE"));
        }
        let related = header.flags.has(HeaderFlags::RELATED);
        if let Protection::Sealed(sealed) = protection {
            // What is inside names the session that it is sealed for (3.3.5.2.1.1).
            if !related && header.session_id != sealed.session.id {
                return Err(Dropped::Protocol("encrypted for one session, and names another"));
            }
        }
        if header.command == Command::CANCEL {
            if !(place.first && place.last) {
                // It has no answer that could stand in the answer to a compound.
                return Err(Dropped::Protocol("CANCEL in a compound"));
            }
            self.cancel(&header, message, protection);
            return Ok(None);
        }
        let multi = self.negotiated.as_ref().is_none_or(Negotiated::large_mtu);
        let charge = if multi { header.credit_charge.max(1) } else { 1 };
        if !self.window.consume(header.message_id, charge) {
            return Err(Dropped::Protocol("a message id that was not granted"));
        }
        let credits = self.grant(&header);
        if related && place.first {
            let signer = self.signer(&header);
            answer.failure(&header, NtStatus::INVALID_PARAMETER, credits, signer.as_ref())?;
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
            answer.failure(&header, status, credits, signer.as_ref())?;
            return Ok(None);
        }
        let Admitted { channel, binding } = match self.admit(&header, message, protection) {
            Ok(admitted) => admitted,
            Err(status) => {
                // What is related to a request without session has none either (3.3.5.2.7.2).
                chain.failed = Some(NtStatus::INVALID_PARAMETER);
                let signer = self.refusal_signer(&header, message);
                self.meter.answered(header.command, status);
                answer.failure(&header, status, credits, signer.as_ref())?;
                return Ok(None);
            }
        };
        let placed = std::mem::take(&mut self.placed);
        Ok(Some(Accepted {
            header,
            channel,
            binding,
            credits,
            async_id: None,
            creating: None,
            placed,
        }))
    }

    /// Carries out one request, which stands at the start of `rest` and is `len` bytes long.
    #[expect(clippy::too_many_arguments, reason = "the state of one pass over a frame")]
    #[allow(clippy::too_many_lines, reason = "all that can become of one request")]
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
        let Accepted { header, channel, binding, credits, async_id, creating, placed } = accepted;
        if !answer.has_room(self.max_message) {
            // One frame cannot carry more; the client may ask again in another.
            let signer = self.signer(&header);
            answer.failure(&header, NtStatus::INSUFFICIENT_RESOURCES, credits, signer.as_ref())?;
            return Ok(Flow::On);
        }
        let since = self.meter.taken();
        let related = header.flags.has(HeaderFlags::RELATED);
        let session = channel.as_ref().map(|channel| channel.session.clone());
        let mut ctx = Ctx {
            binding,
            sealed: matches!(protection, Protection::Sealed(_)),
            related_file: if related { chain.file } else { None },
            creating,
            placed,
            ..Ctx::new(self, header, session)
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
        let Ok(held) = self.room_to_wait(&result, rest.len(), channel.as_deref()) else {
            answer.reset(body_at);
            error::Response::default().encode(answer.out);
            response.status = NtStatus::INSUFFICIENT_RESOURCES;
            answer.close(response, body_at, signs.as_ref(), place)?;
            return Ok(Flow::On);
        };
        let mut answered = true;
        match result {
            Ok(status) => {
                response.status = status;
                answer.close(response, body_at, signs.as_ref(), place)?;
                if command::is_hashed(&response) {
                    command::after_answer(self, &response, answer.settle()?);
                }
            }
            Err(Fail::Status(status)) => {
                answer.reset(body_at);
                error::Response::default().encode(answer.out);
                response.status = status;
                answer.close(response, body_at, signs.as_ref(), place)?;
            }
            Err(Fail::Data(status, data)) => {
                answer.reset(body_at);
                error::Response { context_count: 0, data: &data }.encode(answer.out);
                response.status = status;
                answer.close(response, body_at, signs.as_ref(), place)?;
            }
            Err(Fail::Drop(why)) => return Err(Dropped::Protocol(why)),
            Err(Fail::Later(later)) => {
                answer.reset(body_at);
                answered = false;
                let wait = Wait::from(later).since(since).holds(held);
                self.wait(wait, in_progress, response, body_at, protection, signs, answer, waits)?;
            }
            Err(Fail::Ends(ends)) => {
                answer.reset(body_at);
                answered = false;
                let wait = Wait::from(ends).since(since).holds(held);
                self.wait(wait, in_progress, response, body_at, protection, signs, answer, waits)?;
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
                        placed,
                    },
                    chain: chain.clone(),
                    first: place.first,
                    again: (wake.again.clone(), wake.until),
                };
                let wait = (wake, held);
                self.suspend(wait, suspended, response, body_at, protection, answer, waits)?;
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

    /// Credits for the answer to a request: what it asks for, at least what it used.
    fn grant(&mut self, header: &Header) -> u16 {
        let authenticated = self.authenticated();
        let wanted = header.credits.max(header.credit_charge).max(1);
        // Until someone is authenticated a few are enough.
        let wanted = if authenticated { wanted } else { wanted.min(64) };
        self.window.grant(wanted)
    }

    /// Takes the connection out of its sessions; those without another end.
    pub fn end(&mut self) {
        if let Some(negotiated) = &self.negotiated {
            self.server.clients.remove(negotiated.client_guid, self.id);
        }
        self.drop_pending();
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

/// The header of the first message and its length with what pads it (MS-SMB2 3.3.5.2.7.1).
fn split(rest: &[u8]) -> Result<(Header, usize), Dropped> {
    let header = Header::parse(rest).map_err(|_| Dropped::Protocol("malformed header"))?;
    if header.is_response() {
        return Err(Dropped::Protocol("a response from a client"));
    }
    // 3.3.5.2.6.
    if !header.command.is_known() {
        return Err(Dropped::Protocol("a command that there is not"));
    }
    let next = header.next_command as usize;
    let len = if next == 0 { rest.len() } else { next };
    if len < HEADER_LEN || len > rest.len() || (next != 0 && !next.is_multiple_of(8)) {
        return Err(Dropped::Protocol("malformed compound"));
    }
    Ok((header, len))
}

/// Without other tasks that could have turns.
#[cfg(test)]
impl Exchange {
    /// Takes a message that is whole.
    pub fn receive(&mut self, message: &mut [u8], out: &mut Vec<u8>) -> Result<Frame, Dropped> {
        self.receive_at_once(message, 0, out)
    }

    /// As [`Exchange::receive_rest`], in one turn without end.
    pub fn receive_at_once(
        &mut self,
        message: &mut [u8],
        placed: usize,
        out: &mut Vec<u8>,
    ) -> Result<Frame, Dropped> {
        let mut turn = Turn::endless();
        at_once(self.receive_rest(message, placed, out, &mut turn))
    }

    /// As [`Exchange::complete`], in one turn without end.
    pub fn complete_at_once(
        &mut self,
        completion: Completion,
        out: &mut Vec<u8>,
    ) -> Result<Vec<WaitingFuture>, Dropped> {
        let mut turn = Turn::endless();
        at_once(self.complete(completion, out, &mut turn))
    }
}

#[cfg(test)]
fn at_once<T>(work: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(work).expect("a turn without end")
}

#[cfg(test)]
mod channels;
#[cfg(test)]
mod simulation;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;
