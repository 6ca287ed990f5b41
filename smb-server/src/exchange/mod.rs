//! From received bytes to answers: decrypting, decompressing, verifying, taking compounds apart,
//! dispatching, signing, compressing and sealing (MS-SMB2 3.3.5.2, 3.3.4.1).
//!
//! No socket and no clock: a frame goes in, bytes come out, and what must wait comes back as a
//! future whose completion is fed in again.

mod admission;
mod answer;
mod credits;
mod packed;
mod pass;
mod requests;
mod waiting;

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Instant};

use block_io::SplicePipe;
use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, SessionId,
    compression::Packed,
    crypto::TransformHeader,
    header::{PROTOCOL_COMPRESSED, PROTOCOL_SMB1, PROTOCOL_SMB2, PROTOCOL_TRANSFORM},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use volume::work::Turn;

use crate::{
    Server,
    breaks::delivery::{BreakNotification, ConnectionMessage, Outbox},
    command::{self, Ctx, negotiate::Negotiated, session_setup::Authentication},
    dropped::Dropped,
    exchange::credits::CreditWindow,
    meters::{Meter, timer::PathTimer},
    session::{ById, Channel, ConnectionId},
    transport::{Carrier, Placement, RemoteMemory},
};

use self::{
    answer::{Answer, Place, Protection, Sealed},
    waiting::Pending,
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

impl Frame {
    /// What of it waits.
    pub fn waits(self) -> Vec<WaitingFuture> {
        match self {
            Self::Answered => Vec::new(),
            Self::Waits(waits) => waits,
        }
    }
}

/// What became of a message. A compound is apart, so that an idle connection has no room set aside
/// for the state of one.
pub enum Taken<'a> {
    /// It stood alone.
    Done(Result<Frame, Dropped>),
    /// The requests of a compound, of which there may be thousands: others have their turns between
    /// them, and nothing else of this connection is done meanwhile.
    Compound(Pin<Box<dyn Future<Output = Result<Frame, Dropped>> + Send + 'a>>),
}

impl Taken<'_> {
    /// Carries out what is left of it.
    ///
    /// # Errors
    /// Why the connection must end.
    pub async fn done(self) -> Result<Frame, Dropped> {
        match self {
            Self::Done(done) => done,
            Self::Compound(rest) => rest.await,
        }
    }
}

/// Bytes of an answer that are no data: headers, those of encryption among them, and fixed parts of bodies.
const HEADERS: usize = 4096;

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
    pub sessions: ById<SessionId, Arc<Channel>>,
    /// What it counts.
    pub meter: Arc<Meter>,
    /// Sessions that are being authenticated.
    pub authentications: ById<SessionId, Authentication>,
    /// Logons that have failed.
    pub failed_logons: u32,
    /// Counted: each refusal of a logon that waits holds a copy.
    pub refusals: Arc<()>,
    /// What carries the connection.
    pub carrier: Carrier,
    /// The way to the client's memory, if the connection's transport has one.
    pub remote_memory: Option<Arc<dyn RemoteMemory>>,
    /// Bytes between the body of a READ answer and the data; none but in a test of clients.
    pub read_padding: u8,
    window: CreditWindow,
    pending: ById<u64, Pending>,
    pending_bytes: usize,
    /// Those of `pending` that wait for storage.
    pending_storage: u64,
    next_key: u64,
    limits: crate::config::Limits,
    max_message: usize,
    outbox: Arc<Outbox>,
    posts: UnboundedReceiver<ConnectionMessage>,
    /// Bytes of the next message's data that are in the file already.
    placed: usize,
    /// The messages at hand came compressed.
    came_compressed: bool,
    /// When the last bytes were received.
    pub arrived: Option<Instant>,
    /// When the message at hand was received and taken up, if its request is timed.
    taking: Option<(Instant, Instant)>,
    /// Who times the answer that was made last.
    timer: PathTimer,
    batch: Batch,
}

/// What was taken up since answers were last sent.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    /// Requests.
    requests: u64,
    /// Their credits.
    credits: u64,
    /// Requests that were under way before them.
    before: u64,
}

impl Exchange {
    /// The state of a new connection.
    pub fn new(server: Arc<Server>, peer: SocketAddr, local: SocketAddr) -> Self {
        let current = server.current();
        let limits = current.config.limits.clone();
        let max_message = current.config.max_io_size as usize;
        let id = server.ids.connection();
        let (sender, posts) = mpsc::unbounded_channel();
        Self {
            id,
            meter: server.meters.begin(id),
            server,
            peer,
            local,
            since: tokio::time::Instant::now(),
            negotiated: None,
            sessions: ById::default(),
            authentications: ById::default(),
            failed_logons: 0,
            refusals: Arc::default(),
            carrier: Carrier::default(),
            remote_memory: None,
            read_padding: 0,
            window: CreditWindow::new(limits.credits),
            pending: ById::default(),
            pending_bytes: 0,
            pending_storage: 0,
            next_key: 1,
            limits,
            max_message,
            outbox: Outbox::new(id, sender),
            posts,
            placed: 0,
            came_compressed: false,
            arrived: None,
            taking: None,
            timer: PathTimer::default(),
            batch: Batch::default(),
        }
    }

    /// What was answered has been sent: what comes now is new.
    pub fn answers_sent(&mut self) {
        let Batch { requests, credits, before } = std::mem::take(&mut self.batch);
        if requests > 0 {
            let all = before + credits >= u64::from(self.limits.credits);
            self.meter.batch(before + requests, all);
        }
    }

    /// How the client is told something unasked.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// What this connection is asked to do for others next.
    pub async fn post(&mut self) -> Option<ConnectionMessage> {
        self.posts.recv().await
    }

    /// What it is asked to do now, if there is anything.
    pub fn post_now(&mut self) -> Option<ConnectionMessage> {
        self.posts.try_recv().ok()
    }

    /// Writes the message that tells a client to give up caching (MS-SMB2 3.3.4.6, 3.3.4.7);
    /// `false` if the session is not on this connection any more.
    pub fn tell(&self, notice: BreakNotification, out: &mut Vec<u8>) -> bool {
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

    /// Most bytes of data that an answer has room for. Over SMB Direct the client says how long a message
    /// it puts together, and some ask for more than that (Linux' client with encryption does).
    pub fn room_of_answer(&self) -> usize {
        let longest = self.remote_memory.as_ref().map(|memory| memory.longest_message());
        longest.map_or(usize::MAX, |bytes| bytes.saturating_sub(HEADERS))
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
        let elsewhere = !tree.share.admits(self.peer.ip());
        if tree.share.must_encrypt() || tree.volume.is_none() || elsewhere {
            return None;
        }
        let mut ctx = Ctx::new(self, header, Some(session));
        ctx.tree = Some(tree);
        command::write::place(&mut ctx, message, placed, missing, pipe)
    }

    /// Takes a message of whose data `placed` bytes are in their file and not in the message.
    pub fn take<'a>(
        &'a mut self,
        message: &'a mut [u8],
        placed: usize,
        out: &'a mut Vec<u8>,
        turn: &'a mut Turn,
    ) -> Taken<'a> {
        let timed = self.arrived.filter(|_| self.meter.next_is_timed());
        self.taking = timed.map(|arrived| (arrived, Instant::now()));
        if message.first_chunk() == Some(&PROTOCOL_SMB1) {
            return Taken::Done(self.smb1(message, out));
        }
        let (message, protection) = match self.unprotect(message) {
            Ok(opened) => opened,
            Err(dropped) => return Taken::Done(Err(dropped)),
        };
        if Packed::starts(message) {
            return self.take_packed(message, protection, out, turn);
        }
        self.placed = placed;
        if requests::is_compound(message) {
            return Taken::Compound(Box::pin(async move {
                let done = self.compound(message, protection, out, turn).await;
                self.placed = 0;
                done
            }));
        }
        let done = self.alone(message, protection, out);
        self.placed = 0;
        Taken::Done(done)
    }

    /// What was received, decrypted if it was encrypted (MS-SMB2 3.3.5.2.1).
    fn unprotect<'m>(&self, message: &'m mut [u8]) -> Result<(&'m mut [u8], Protection), Dropped> {
        let protocol = message.first_chunk::<4>().copied().unwrap_or_default();
        match protocol {
            PROTOCOL_SMB2 | PROTOCOL_COMPRESSED => Ok((message, Protection::Plain)),
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
                match message.first_chunk::<4>() {
                    Some(&PROTOCOL_SMB2 | &PROTOCOL_COMPRESSED) => {
                        Ok((message, Protection::Sealed(sealed)))
                    }
                    _ => Err(Dropped::Protocol("something else than SMB 2 was encrypted")),
                }
            }
            _ => Err(Dropped::Protocol("not SMB")),
        }
    }

    /// Answers an SMB 1 NEGOTIATE; nothing else of SMB 1 is served.
    fn smb1(&mut self, message: &[u8], out: &mut Vec<u8>) -> Result<Frame, Dropped> {
        if self.negotiated.is_some() {
            return Err(Dropped::Protocol("SMB 1 is not served"));
        }
        command::smb1::answer(self, message, out)?;
        Ok(Frame::Answered)
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

impl Placement for Exchange {
    fn max_message(&self) -> usize {
        Self::max_message(self)
    }

    fn may_place(&self, beginning: &[u8]) -> bool {
        self.authenticated() && Self::may_place(beginning)
    }

    fn place(
        &mut self,
        message: &mut [u8],
        placed: usize,
        missing: usize,
        pipe: Option<&mut SplicePipe>,
    ) -> Option<usize> {
        Self::place(self, message, placed, missing, pipe)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end();
        self.server.meters.end(self.id);
    }
}

/// Without other tasks that could have turns.
#[cfg(test)]
impl Exchange {
    /// Takes a message that is whole.
    pub fn receive(&mut self, message: &mut [u8], out: &mut Vec<u8>) -> Result<Frame, Dropped> {
        self.receive_at_once(message, 0, out)
    }

    /// As [`Exchange::take`], in one turn without end.
    pub fn receive_at_once(
        &mut self,
        message: &mut [u8],
        placed: usize,
        out: &mut Vec<u8>,
    ) -> Result<Frame, Dropped> {
        let mut turn = Turn::endless();
        at_once(self.take(message, placed, out, &mut turn).done())
    }

    /// As [`Exchange::complete`], in one turn without end.
    pub fn complete_at_once(
        &mut self,
        completion: Completion,
        out: &mut Vec<u8>,
    ) -> Result<Vec<WaitingFuture>, Dropped> {
        let mut turn = Turn::endless();
        at_once(self.complete(completion, out, &mut turn).done()).map(Frame::waits)
    }
}

/// The end of work that waits for nothing, or for storage within a compound.
#[cfg(test)]
fn at_once<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match futures_util::FutureExt::now_or_never(work.as_mut()) {
        Some(done) => done,
        None => {
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| runtime.block_on(work))
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;
