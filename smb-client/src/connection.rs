//! One connection with a session: many requests in flight, two tasks for the socket.
//!
//! ```text
//!  submit ─► credits ─► encode, sign/seal in the caller ─► queue ─► writer task ─► socket
//!     └────► pending[message id] ◄── verify, open ◄── reader task ◄── socket
//!               └─► oneshot ─► Ticket::reply
//! ```
//!
//! The writer sends everything that gathered while the last send was under way at once; the only
//! request in flight is sent by its caller. The reader takes as much as the socket has and
//! answers every complete message in it. Nothing a server sends makes memory grow beyond what was
//! asked for: frames are bounded, and answers to nothing end the connection.

mod chain;
mod silence;
mod tasks;

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rustix::net::Shutdown;
use smb_protocol::{
    Command, Header, HeaderFlags, MessageId, NtStatus, TreeId, compression::Compression,
    msg::simple::Empty,
};
use tokio::{
    sync::{Notify, Semaphore, TryAcquireError, oneshot, watch},
    time::Instant,
};

pub(crate) use self::chain::Part;
use crate::{
    ConnectOptions, Error, Result,
    channel_group::{Channel, Group},
    crypt::{Crypt, Guard, begin_frame, end_frame, end_packed},
    handshake::{Established, Limits, Validation},
    path::Path,
    request,
    wire::Wire,
};

/// Payload that one credit pays for.
pub(crate) const CREDIT: u32 = 65536;
/// Requests up to this long are gathered into one buffer; longer ones are sent from their own.
const SMALL: usize = 32 * 1024;

/// Credits that a connection asks for at least: what a chain needs, and one for a sign of life.
const LEAST_CREDITS: u16 = 8;

/// A response: its header and the bytes behind it.
#[derive(Debug)]
pub(crate) struct Response {
    pub header: Header,
    pub body: Bytes,
}

/// What a request costs: credits (MS-SMB2 3.2.4.1.5), and bytes that it moves either way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    charge: u16,
    bytes: u32,
}

impl Cost {
    /// Of a request that moves little.
    pub const LEAST: Self = Self { charge: 1, bytes: 1024 };
}

struct Pending {
    reply: oneshot::Sender<Result<Response>>,
    what: &'static str,
    cost: Cost,
    guard: Guard,
    sent: Instant,
    patience: Duration,
    async_id: Option<u64>,
}

#[derive(Default)]
struct Shared {
    pending: HashMap<u64, Pending>,
    /// Small requests, one behind the other.
    small: Vec<u8>,
    large: Vec<Vec<u8>>,
    /// What is left of a frame whose beginning was sent; goes before all else.
    begun: Vec<u8>,
    /// Somebody is sending: the writer task, or a caller in [`Connection::send_now`].
    sending: bool,
    /// Bytes that all of `pending` move.
    load: u64,
    /// Set once, when the connection is given up.
    closed: Option<Error>,
}

impl Shared {
    /// Whether there is nothing to send.
    fn is_idle(&self) -> bool {
        self.begun.is_empty() && self.small.is_empty() && self.large.is_empty()
    }
}

/// A connection with a session on it: one of its channels.
pub(crate) struct Connection {
    wire: Wire,
    pub crypt: Arc<Crypt>,
    pub limits: Limits,
    pub validate: Option<Validation>,
    /// What it has in common with the other channels of its session.
    pub group: Arc<Group<Connection>>,
    /// The addresses of both ends.
    pub path: Path,
    /// What [`Group::pick`] looks at: bytes under way, and whether it is to be spared.
    pub load: AtomicU64,
    pub suspect: AtomicBool,
    pub retired: AtomicBool,
    pub is_closed: AtomicBool,
    credits: Semaphore,
    /// One more credit is kept for a question for a sign of life: a server that is silent while
    /// all others are in use is noticed too.
    echo_credit: AtomicBool,
    /// Credits available and in flight.
    total_credits: AtomicU32,
    wanted_credits: u32,
    next_message: AtomicU64,
    shared: Mutex<Shared>,
    wake_writer: Notify,
    closed: watch::Sender<bool>,
    started: Instant,
    /// Milliseconds after `started` when something was last received.
    last_heard: AtomicU64,
    request_timeout: Duration,
    keep_alive: Duration,
    compress_from: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that was sent. Dropping it abandons the answer.
pub(crate) struct Ticket {
    connection: Weak<Connection>,
    message: u64,
    answer: oneshot::Receiver<Result<Response>>,
    answered: bool,
}

impl Ticket {
    /// Waits for the answer, whatever its status.
    pub async fn reply(mut self) -> Result<Response> {
        let answer = (&mut self.answer).await;
        self.answered = true;
        match answer {
            Ok(result) => result,
            Err(_) => Err(match self.connection.upgrade() {
                Some(connection) => connection.reason(),
                None => Error::Closed,
            }),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered
            && let Some(connection) = self.connection.upgrade()
        {
            connection.abandon(self.message);
        }
    }
}

impl Connection {
    /// Starts the tasks of an established connection, which goes over `path` and was counted
    /// into `group`.
    pub fn start(
        established: Established,
        options: &ConnectOptions,
        group: Arc<Group<Connection>>,
        path: Path,
    ) -> Arc<Self> {
        let Established { wire, crypt, limits, next_message, credits, validate, .. } = established;
        let connection = Arc::new(Self {
            wire,
            crypt,
            limits,
            validate,
            group,
            path,
            load: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            credits: Semaphore::new(credits.max(2) as usize - 1),
            echo_credit: AtomicBool::new(credits > 1),
            total_credits: AtomicU32::new(credits),
            wanted_credits: options.credits.max(LEAST_CREDITS).into(),
            next_message: AtomicU64::new(next_message),
            shared: Mutex::default(),
            wake_writer: Notify::new(),
            closed: watch::Sender::new(false),
            started: Instant::now(),
            last_heard: AtomicU64::new(0),
            request_timeout: options.request_timeout,
            compress_from: options.compress_from,
            keep_alive: options.keep_alive.max(Duration::from_millis(200)),
        });
        tokio::spawn(Arc::clone(&connection).write_loop());
        tokio::spawn(Arc::clone(&connection).read_loop());
        tokio::spawn(Self::tend(Arc::downgrade(&connection)));
        connection
    }

    /// From now on every request is sealed.
    pub fn seal_all(&self) -> Result<()> {
        if self.crypt.sealing.is_none() {
            return Err(Error::NotOffered("encryption, which the share demands"));
        }
        self.group.seal_all.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub fn is_sealed(&self) -> bool {
        self.group.seal_all.load(Ordering::Relaxed)
    }

    /// How a read or write of so many bytes on a tree is compressed, if it is.
    pub fn compression(&self, tree: TreeId, bytes: u32) -> Option<Compression> {
        let worth = |_: &Compression| bytes >= self.compress_from && self.group.compresses(tree);
        self.crypt.compression.filter(worth)
    }

    /// The connection of SMB Direct below it, if there is one.
    pub fn direct(&self) -> Option<&rdma::Handle> {
        self.wire.direct()
    }

    /// What a request moving `len` bytes costs.
    pub fn cost(&self, len: u32) -> Cost {
        let charge = match self.limits.large_mtu && len > 0 {
            true => u16::try_from((len - 1) / CREDIT + 1).unwrap_or(u16::MAX),
            false => 1,
        };
        Cost { charge, bytes: len.max(Cost::LEAST.bytes) }
    }

    /// Whether it was given up.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// The longest read or write that limits and credits allow, at most `wanted` and 8 MiB, which
    /// the length of a frame has room for.
    pub fn max_io(&self, limit: u32, wanted: u32) -> u32 {
        let by_credits = if self.limits.large_mtu {
            // One is not for this.
            let total = self.total_credits.load(Ordering::Relaxed);
            total.saturating_sub(1).max(1).saturating_mul(CREDIT)
        } else {
            CREDIT
        };
        let by_transport = self.most_by_transport();
        limit.min(wanted).min(by_credits).min(by_transport).clamp(4096, 8 << 20)
    }

    /// Waits until the connection is given up.
    pub fn wait_closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            // An error means that the sender is gone, and the connection with it.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Why the connection was given up.
    pub fn reason(&self) -> Error {
        lock(&self.shared).closed.clone().unwrap_or(Error::Closed)
    }

    /// Gives the connection up. The first reason counts.
    pub fn close(&self, reason: Error) {
        let mut shared = lock(&self.shared);
        if shared.closed.is_some() {
            return;
        }
        // Before anybody learns of it: what is sent again has the next number of the session.
        self.is_closed.store(true, Ordering::Release);
        self.group.leave();
        if matches!(reason, Error::Closed) && !shared.sending && shared.large.is_empty() {
            // What can still be said without waiting: closes of files, the end of the session.
            let last = [&shared.begun[..], &shared.small[..]].concat();
            let _ = self.wire.try_write(&last);
            self.wire.shutdown(Shutdown::Write);
        } else {
            self.wire.shutdown(Shutdown::Both);
        }
        let ended = Shared { closed: Some(reason), ..Shared::default() };
        let pending = std::mem::replace(&mut *shared, ended).pending;
        drop(shared);
        // In the order in which they were sent, as they are sent again.
        let mut pending: Vec<_> = pending.into_iter().collect();
        pending.sort_unstable_by_key(|(message, _)| *message);
        drop(pending);
        self.credits.close();
        self.wake_writer.notify_one();
        self.closed.send_replace(true);
    }

    /// Sends a request that moves little and waits for its answer, whatever its status.
    pub async fn call(
        self: &Arc<Self>,
        command: Command,
        tree: TreeId,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Response> {
        let flags = HeaderFlags::NONE;
        self.submit(command, tree, Cost::LEAST, flags, encode).await?.reply().await
    }

    /// Sends a request once there are credits for it; with the flag SIGNED it is signed, and its
    /// answer must be, where the session does not ask for that.
    pub async fn submit(
        self: &Arc<Self>,
        command: Command,
        tree: TreeId,
        cost: Cost,
        flags: HeaderFlags,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Ticket> {
        self.acquire(cost.charge).await?;
        self.send(command, tree, cost, flags, encode)
    }

    /// Takes credits, waiting for them.
    async fn acquire(&self, charge: u16) -> Result<()> {
        match self.credits.try_acquire_many(charge.into()) {
            Ok(permit) => permit.forget(),
            Err(TryAcquireError::Closed) => return Err(self.reason()),
            Err(TryAcquireError::NoPermits) => {
                let acquire = self.credits.acquire_many(charge.into());
                match tokio::time::timeout(self.request_timeout, acquire).await {
                    Ok(Ok(permit)) => permit.forget(),
                    Ok(Err(_)) => return Err(self.reason()),
                    Err(_) => {
                        let after = self.request_timeout;
                        self.close(Error::Timeout { what: "a wait for credits", after });
                        return Err(self.reason());
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a request at once if there is a credit for it. Nobody waits for the answer.
    pub fn send_and_forget(
        self: &Arc<Self>,
        command: Command,
        tree: TreeId,
        encode: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Ok(permit) = self.credits.try_acquire() {
            permit.forget();
            if let Ok(mut ticket) = self.send(command, tree, Cost::LEAST, HeaderFlags::NONE, encode)
            {
                ticket.answered = true;
            }
        }
    }

    /// Asks the server for a sign of life, with the credit that is kept for that.
    fn echo(self: &Arc<Self>) {
        if !self.echo_credit.swap(false, Ordering::AcqRel) {
            return;
        }
        let encode = |out: &mut Vec<u8>| Empty.encode(out);
        let none = HeaderFlags::NONE;
        if let Ok(mut ticket) = self.send(Command::ECHO, TreeId(0), Cost::LEAST, none, encode) {
            ticket.answered = true;
        }
    }

    /// Keeps one of `granted` credits for the next question for a sign of life; the rest.
    fn keep_echo_credit(&self, granted: u32) -> u32 {
        match granted {
            0 => 0,
            more if self.echo_credit.swap(true, Ordering::AcqRel) => more,
            more => more - 1,
        }
    }

    /// Sends a request whose credits were taken.
    fn send(
        self: &Arc<Self>,
        command: Command,
        tree: TreeId,
        cost: Cost,
        flags: HeaderFlags,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Ticket> {
        let message = self.take_numbers(cost.charge.into());
        let mut guard = self.crypt.guard(self.is_sealed());
        // MS-SMB2 3.2.4.1.1: proves to the server that this is the authenticated client.
        let signed = command == Command::TREE_CONNECT || flags.has(HeaderFlags::SIGNED);
        if signed && guard == Guard::Plain {
            guard = Guard::Signed;
        }
        let mut header = self.header(command, tree, message, cost);
        header.flags |= flags.without(HeaderFlags::SIGNED);
        let mut out = Vec::with_capacity(256);
        let at = begin_frame(&mut out, guard);
        header.encode(&mut out);
        let before = out.len();
        encode(&mut out);
        let bytes = u32::try_from(out.len() - before).unwrap_or(u32::MAX);
        let compression = match command {
            Command::WRITE => self.compression(tree, bytes),
            _ => None,
        };
        match compression {
            None => end_frame(&mut out, at, guard, Some(&self.crypt))?,
            Some(agreed) => end_packed(&mut out, at, guard, &self.crypt, &agreed)?,
        }
        let (pending, ticket) = self.expected(command, message, cost, guard);
        self.enqueue(out, [(message, pending)])?;
        Ok(ticket)
    }

    /// Takes the next numbers of messages; gives the first.
    fn take_numbers(&self, count: u64) -> u64 {
        self.next_message.fetch_add(count, Ordering::Relaxed)
    }

    /// Credits available and in flight.
    fn total_credits(&self) -> u32 {
        self.total_credits.load(Ordering::Relaxed)
    }

    /// The header of a request whose credits were taken.
    fn header(&self, command: Command, tree: TreeId, message: u64, cost: Cost) -> Header {
        let credits = request::Credits {
            charge: cost.charge,
            held: self.total_credits(),
            wanted: self.wanted_credits,
            large_mtu: self.limits.large_mtu,
        };
        let session = self.crypt.session_id;
        let mut header = request::header(command, session, tree, MessageId(message), credits);
        if self.crypt.dialect.is_smb3() {
            header.status = NtStatus(self.group.sequence().into());
        }
        header
    }

    /// What is remembered of a request that is about to be sent, and who waits for its answer.
    fn expected(
        self: &Arc<Self>,
        command: Command,
        message: u64,
        cost: Cost,
        guard: Guard,
    ) -> (Pending, Ticket) {
        let (reply, answer) = oneshot::channel();
        let pending = Pending {
            reply,
            what: command.known_name().unwrap_or("a request"),
            cost,
            guard,
            sent: Instant::now(),
            patience: self.request_timeout,
            async_id: None,
        };
        let connection = Arc::downgrade(self);
        (pending, Ticket { connection, message, answer, answered: false })
    }

    /// Sends a frame with its requests, now or behind what is being sent.
    fn enqueue(
        &self,
        out: Vec<u8>,
        requests: impl IntoIterator<Item = (u64, Pending)>,
    ) -> Result<()> {
        let mut shared = lock(&self.shared);
        if let Some(reason) = &shared.closed {
            return Err(reason.clone());
        }
        let alone = shared.pending.is_empty();
        for (message, pending) in requests {
            shared.load += u64::from(pending.cost.bytes);
            shared.pending.insert(message, pending);
        }
        self.load.store(shared.load, Ordering::Relaxed);
        if alone && !shared.sending {
            shared.sending = true;
            drop(shared);
            self.send_now(out);
        } else {
            if out.len() <= SMALL {
                shared.small.extend_from_slice(&out);
            } else {
                shared.large.push(out);
            }
            let wake = !shared.sending;
            drop(shared);
            if wake {
                self.wake_writer.notify_one();
            }
        }
        Ok(())
    }

    /// Sends the only request in flight from the caller's own task, which saves the way through
    /// the writer task. The caller has set `sending`.
    fn send_now(&self, out: Vec<u8>) {
        let sent = match self.wire.try_write(&out) {
            Ok(sent) => sent,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => return self.close(Error::disconnected(error.to_string())),
        };
        let mut shared = lock(&self.shared);
        shared.sending = false;
        shared.begun.extend_from_slice(&out[sent..]);
        let more = !shared.is_idle();
        drop(shared);
        if more {
            self.wake_writer.notify_one();
        }
    }

    /// Nobody waits for a request any more: if the server is still at it for long, tell it.
    fn abandon(&self, message: u64) {
        let mut shared = lock(&self.shared);
        let Some(Pending { async_id: Some(async_id), .. }) = shared.pending.get(&message) else {
            return;
        };
        let async_id = *async_id;
        let guard = self.crypt.guard(self.is_sealed());
        let header = Header {
            command: Command::CANCEL,
            flags: HeaderFlags::ASYNC,
            message_id: MessageId(message),
            async_or_tree: async_id,
            session_id: self.crypt.session_id,
            ..Header::default()
        };
        let at = begin_frame(&mut shared.small, guard);
        header.encode(&mut shared.small);
        Empty.encode(&mut shared.small);
        if end_frame(&mut shared.small, at, guard, Some(&self.crypt)).is_err() {
            // The server goes on with it, and its answer finds nobody.
            shared.small.truncate(at);
            return;
        }
        drop(shared);
        self.wake_writer.notify_one();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("session", &self.crypt.session_id)
            .field("path", &self.path)
            .field("dialect", &self.crypt.dialect)
            .finish_non_exhaustive()
    }
}

impl Channel for Connection {
    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn is_spare(&self) -> bool {
        self.suspect.load(Ordering::Relaxed) || self.retired.load(Ordering::Relaxed)
    }

    fn weighed_load(&self) -> u64 {
        let load = self.load.load(Ordering::Relaxed) + 1;
        load.saturating_mul(self.path.weight.into())
    }

    fn close(&self, reason: Error) {
        Self::close(self, reason);
    }
}
