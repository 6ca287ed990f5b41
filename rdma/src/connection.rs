//! A connection of SMB Direct: the task between the engine and a provider, and what its users hold.
//!
//! ```text
//!  Handle (many) ── commands ──► task: Engine ── effects ──► Endpoint
//!     ▲   └─ permits for bytes        ▲                          │
//!     └──── completions ──────────────┴────── completions ◄──────┘
//!  Connection (one) ◄── messages ─────┘
//! ```
//! One task owns the engine and the end, so credits have one user. A message that was sent waits in the
//! task until the peer gives credits for it; how many bytes wait there the permits bound. What the
//! upper layer does not take is not credited to the peer.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{
    memory::{Memory, Part, Pool},
    provider::{Completion, Endpoint, Lost, Message},
    smbd::{Agreed, Effect, Engine, Fault, Parameters, Upper},
};

/// Bytes of messages that may wait to be sent; a longer message waits alone.
const WAITING: u32 = 4 << 20;
/// How long an ending connection has to send what it has.
const FAREWELL: Duration = Duration::from_secs(5);
/// Buffers of one connection that are kept to be read into, and how long each is.
const BUFFERS: (usize, usize) = (1 << 20, 4);

/// What users ask of the task.
#[derive(Debug)]
enum Command {
    Send { message: Bytes, invalidate: Option<u32>, permits: u32 },
    Read { from: Vec<Part>, len: usize, done: oneshot::Sender<io::Result<Vec<u8>>> },
    Write { to: Vec<Part>, data: Bytes, done: oneshot::Sender<io::Result<()>> },
    Register { memory: Memory, done: oneshot::Sender<Result<Part, Memory>> },
    Deregister { token: u32, done: oneshot::Sender<Option<Memory>> },
    Taken(usize),
    End,
    Abort,
}

/// What all users of a connection share.
#[derive(Debug)]
struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    permits: Arc<Semaphore>,
    lost: watch::Receiver<Option<Lost>>,
    /// Bytes of messages that have come and were not taken, and parts of others.
    held: Arc<AtomicUsize>,
    /// Bytes of messages that were sent and have not left.
    leaving: Arc<AtomicU64>,
    pool: Pool,
    peer: SocketAddr,
    local: SocketAddr,
    agreed: Agreed,
}

/// Sends, and moves data; any number of users have one.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    unacknowledged: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// A connection: its messages, and a handle for everything else. It ends when it is dropped.
#[derive(Debug)]
pub struct Connection {
    handle: Handle,
    inbox: mpsc::UnboundedReceiver<Upper>,
    /// Bytes that were taken and of which the task was not told, and with how many it is.
    untold: usize,
    tell_at: usize,
}

impl Connection {
    /// Negotiates as the end that has connected (MS-SMBD 3.1.4.1).
    ///
    /// # Errors
    /// The peer does not agree, is silent, or is lost.
    pub async fn active(endpoint: Box<dyn Endpoint>, parameters: Parameters) -> io::Result<Self> {
        let tell_at = parameters.most_held / 4;
        let engine = Engine::active(parameters, Instant::now());
        Self::begin(endpoint, engine, tell_at).await
    }

    /// Negotiates as the end that was connected to (MS-SMBD 3.1.7.2).
    ///
    /// # Errors
    /// The peer does not agree, is silent, or is lost.
    pub async fn passive(endpoint: Box<dyn Endpoint>, parameters: Parameters) -> io::Result<Self> {
        let tell_at = parameters.most_held / 4;
        let engine = Engine::passive(parameters, Instant::now());
        Self::begin(endpoint, engine, tell_at).await
    }

    async fn begin(
        endpoint: Box<dyn Endpoint>,
        engine: Engine,
        tell_at: usize,
    ) -> io::Result<Self> {
        let (commands, asked) = mpsc::unbounded_channel();
        let (messages, inbox) = mpsc::unbounded_channel();
        let (agreed, established) = oneshot::channel();
        let (lost, loss) = watch::channel(None);
        let (peer, local) = (endpoint.peer(), endpoint.local());
        let unacknowledged = endpoint.unacknowledged().into();
        let permits = Arc::new(Semaphore::new(WAITING as usize));
        let (held, leaving) = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let pool = Pool::new(BUFFERS.0, BUFFERS.1);
        let task = Task {
            endpoint,
            engine,
            asked,
            messages,
            agreed: Some(agreed),
            permits: permits.clone(),
            held: held.clone(),
            leaving: leaving.clone(),
            pool: pool.clone(),
            numbered: 0,
            sends: HashMap::new(),
            waiting: HashMap::new(),
            reads: HashMap::new(),
            writes: HashMap::new(),
        };
        tokio::spawn(task.run(lost));
        let mut loss = loss;
        let agreed = match established.await {
            Ok(agreed) => agreed,
            Err(_) => {
                let why = loss.wait_for(Option::is_some).await.map_or(None, |lost| lost.clone());
                return Err(why.unwrap_or(Lost::Ended).into());
            }
        };
        let shared =
            Shared { commands, permits, lost: loss, held, leaving, pool, peer, local, agreed };
        let handle = Handle { shared: Arc::new(shared), unacknowledged };
        Ok(Self { handle, inbox, untold: 0, tell_at })
    }

    /// Bytes of messages that have come and were not taken.
    pub fn held(&self) -> usize {
        self.handle.shared.held.load(Ordering::Relaxed).saturating_sub(self.untold)
    }

    /// What sends and moves data on it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The next message; `None` when the connection has ended.
    pub async fn receive(&mut self) -> Option<Upper> {
        let upper = self.inbox.recv().await?;
        self.take(&upper);
        Some(upper)
    }

    /// The next message that is there already.
    pub fn receive_now(&mut self) -> Option<Upper> {
        let upper = self.inbox.try_recv().ok()?;
        self.take(&upper);
        Some(upper)
    }

    /// Waits for a message, as [`Connection::receive`], in a poll.
    pub fn poll_receive(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Upper>> {
        let got = std::task::ready!(self.inbox.poll_recv(context));
        if let Some(upper) = &got {
            self.take(upper);
        }
        std::task::Poll::Ready(got)
    }

    /// The task is told of many at once: each word wakes it.
    fn take(&mut self, upper: &Upper) {
        self.untold += upper.bytes.len() - upper.start;
        if self.untold > self.tell_at {
            self.handle.ask(Command::Taken(std::mem::take(&mut self.untold)));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.handle.disconnect();
    }
}

impl Handle {
    /// The address of the peer.
    pub fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    /// Our address on this connection.
    pub fn local(&self) -> SocketAddr {
        self.shared.local
    }

    /// What both ends have agreed on.
    pub fn agreed(&self) -> Agreed {
        self.shared.agreed
    }

    /// Bytes of messages sent that the peer's system has not acknowledged, or more; each message counts
    /// four more than it has, as it would on TCP.
    pub fn unacknowledged(&self) -> u64 {
        self.shared.leaving.load(Ordering::Relaxed).saturating_add((self.unacknowledged)())
    }

    /// Why the connection has ended, if it has.
    pub fn lost(&self) -> Option<Lost> {
        self.shared.lost.borrow().clone()
    }

    fn why(&self) -> io::Error {
        self.lost().unwrap_or(Lost::Ended).into()
    }

    fn ask(&self, command: Command) {
        // Whom nobody hears the loss is known to by other ways.
        let _ = self.shared.commands.send(command);
    }

    /// Sends a message, and ends our right to the peer's memory `invalidate` with it. Resolves when
    /// there is room for it, which is when the peer takes those before it.
    ///
    /// # Errors
    /// The connection has ended, or the message is longer than the peer puts together.
    pub async fn send(&self, message: Bytes, invalidate: Option<u32>) -> io::Result<()> {
        self.check(&message)?;
        let permits = u32::try_from(message.len()).unwrap_or(WAITING).min(WAITING);
        let room = self.shared.permits.acquire_many(permits).await.map_err(|_| self.why())?;
        room.forget();
        self.shared.leaving.fetch_add(on_tcp(&message), Ordering::Relaxed);
        self.ask(Command::Send { message, invalidate, permits });
        Ok(())
    }

    /// Sends a message without waiting for room, for who bounds by other means what is under way.
    ///
    /// # Errors
    /// Those of [`Handle::send`].
    pub fn post(&self, message: Bytes) -> io::Result<()> {
        self.check(&message)?;
        self.shared.leaving.fetch_add(on_tcp(&message), Ordering::Relaxed);
        self.ask(Command::Send { message, invalidate: None, permits: 0 });
        Ok(())
    }

    /// Whether a message could be sent.
    fn check(&self, message: &Bytes) -> io::Result<()> {
        if message.len() > self.shared.agreed.max_fragmented_send_size as usize {
            let why = format!("a message of {} bytes is longer than the peer takes", message.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if self.lost().is_some() { Err(self.why()) } else { Ok(()) }
    }

    /// Reads `len` bytes from the beginning of the peer's memory `from` (MS-SMBD 3.1.4.6).
    ///
    /// # Errors
    /// The parts have fewer bytes, or the connection has ended, maybe because the peer allows nobody
    /// to read there.
    pub async fn read(&self, from: &[Part], len: usize) -> io::Result<Vec<u8>> {
        let from = Part::first(from, len).ok_or(io::ErrorKind::InvalidInput)?;
        let (done, answer) = oneshot::channel();
        self.ask(Command::Read { from, len, done });
        answer.await.map_err(|_| self.why())?
    }

    /// Writes to the beginning of the peer's memory `to` (MS-SMBD 3.1.4.5). What is sent later comes
    /// later.
    ///
    /// # Errors
    /// The parts have fewer bytes, or the connection has ended.
    pub async fn write(&self, to: &[Part], data: Bytes) -> io::Result<()> {
        let to = Part::first(to, data.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let (done, answer) = oneshot::channel();
        self.ask(Command::Write { to, data, done });
        answer.await.map_err(|_| self.why())?
    }

    /// Allows the peer to read or write memory, and says what to tell it (MS-SMBD 3.1.4.3).
    ///
    /// # Errors
    /// The memory, if it cannot be; nothing, if the connection has ended with it.
    pub async fn register(&self, memory: Memory) -> Result<Part, Option<Memory>> {
        let (done, answer) = oneshot::channel();
        self.ask(Command::Register { memory, done });
        answer.await.map_err(|_| None)?.map_err(Some)
    }

    /// Ends what [`Handle::register`] allowed and gives the memory back; `None` if the connection has
    /// ended, and the memory with it (MS-SMBD 3.1.4.4).
    pub async fn deregister(&self, token: u32) -> Option<Memory> {
        let (done, answer) = oneshot::channel();
        self.ask(Command::Deregister { token, done });
        answer.await.ok().flatten()
    }

    /// Gives back what was got by [`Handle::read`], to be read into again.
    pub fn recycle(&self, buffer: Vec<u8>) {
        self.shared.pool.give(buffer);
    }

    /// Ends the connection: what was sent before still goes.
    pub fn disconnect(&self) {
        self.ask(Command::End);
    }

    /// Ends the connection at once: what is still to be sent is thrown away.
    pub fn abort(&self) {
        self.ask(Command::Abort);
    }

    /// Waits until the connection has ended and what was sent before has left, some seconds at most.
    pub async fn finished(&self) {
        let mut lost = self.shared.lost.clone();
        while lost.changed().await.is_ok() {}
    }

    /// Waits until the connection has ended, and says why.
    pub async fn ended(&self) -> Lost {
        let mut lost = self.shared.lost.clone();
        let lost = lost.wait_for(Option::is_some).await;
        lost.ok().and_then(|lost| lost.clone()).unwrap_or(Lost::GivenUp)
    }
}

/// A message that waits in the engine: its bytes and its permits.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    bytes: u64,
    permits: u32,
}

struct Task {
    endpoint: Box<dyn Endpoint>,
    engine: Engine,
    asked: mpsc::UnboundedReceiver<Command>,
    messages: mpsc::UnboundedSender<Upper>,
    agreed: Option<oneshot::Sender<Agreed>>,
    permits: Arc<Semaphore>,
    held: Arc<AtomicUsize>,
    leaving: Arc<AtomicU64>,
    pool: Pool,
    numbered: u64,
    /// By the engine's number.
    waiting: HashMap<u64, Waiting>,
    /// By the number of the last part.
    sends: HashMap<u64, Waiting>,
    reads: HashMap<u64, oneshot::Sender<io::Result<Vec<u8>>>>,
    writes: HashMap<u64, oneshot::Sender<io::Result<()>>>,
}

impl Task {
    /// Runs until the connection ends, and says why.
    async fn run(mut self, lost: watch::Sender<Option<Lost>>) {
        let (why, farewell) = self.drive().await;
        tracing::debug!(peer = %self.endpoint.peer(), %why, "an SMB Direct connection has ended");
        lost.send_replace(Some(why));
        self.permits.close();
        // Whoever waits learns of it by that nobody answers any more, and then asks why.
        self.asked.close();
        while self.asked.try_recv().is_ok() {}
        if farewell {
            self.farewell().await;
        }
        self.leaving.store(0, Ordering::Relaxed);
    }

    /// Runs until the connection ends: why, and whether what was sent is still to leave.
    async fn drive(&mut self) -> (Lost, bool) {
        let timer = tokio::time::sleep_until(self.engine.deadline().into());
        tokio::pin!(timer);
        loop {
            match self.settle() {
                Ok(None) => {}
                Ok(Some(fault)) => return (lost_by(fault), true),
                Err(lost) => return (lost, false),
            }
            self.held.store(self.engine.held(), Ordering::Relaxed);
            tokio::select! {
                biased;
                command = self.asked.recv() => {
                    let mut next = command;
                    while let Some(command) = next {
                        self.obey(command);
                        next = self.asked.try_recv().ok();
                    }
                    if self.asked.is_closed() && self.asked.is_empty() {
                        self.engine.end(Fault::GivenUp);
                    }
                }
                done = poll_fn(|context| self.endpoint.poll(context)) => match done {
                    Ok(done) => self.complete(done),
                    Err(lost) => return (lost, false),
                },
                () = &mut timer => {
                    self.engine.tick(Instant::now());
                    timer.as_mut().reset(self.engine.deadline().into());
                }
            }
        }
    }

    /// Does what the engine wants; the fault with which it ends the connection, if it does.
    fn settle(&mut self) -> Result<Option<Fault>, Lost> {
        while let Some(effect) = self.engine.next() {
            match effect {
                Effect::PostReceive(len) => self.endpoint.post_receive(len)?,
                Effect::Send { head, body, invalidate, last_of } => {
                    let id = self.number();
                    let whole = last_of.and_then(|number| self.waiting.remove(&number));
                    self.sends.extend(whole.map(|whole| (id, whole)));
                    self.endpoint.post_send(Message { id, head, body, invalidate })?;
                }
                Effect::Established(agreed) => {
                    if let Some(established) = self.agreed.take() {
                        // Who does not wait any more has dropped the commands as well.
                        let _ = established.send(agreed);
                    }
                }
                Effect::Deliver(upper) => {
                    let _ = self.messages.send(upper);
                }
                Effect::End(fault) => return Ok(Some(fault)),
            }
        }
        Ok(None)
    }

    fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Send { message, invalidate, permits } => {
                let waiting = Waiting { bytes: on_tcp(&message), permits };
                match self.engine.send(message, invalidate) {
                    Ok(number) => {
                        self.waiting.insert(number, waiting);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a message is not sent");
                        self.left(waiting);
                    }
                }
            }
            Command::Read { from, len, done } => {
                let id = self.number();
                match self.endpoint.post_read(id, from, self.pool.take(len)) {
                    Ok(()) => {
                        self.reads.insert(id, done);
                    }
                    Err(lost) => drop(done.send(Err(lost.into()))),
                }
            }
            Command::Write { to, data, done } => {
                let id = self.number();
                match self.endpoint.post_write(id, to, data) {
                    Ok(()) => {
                        self.writes.insert(id, done);
                    }
                    Err(lost) => drop(done.send(Err(lost.into()))),
                }
            }
            Command::Register { memory, done } => {
                if let Err(Ok(part)) = done.send(self.endpoint.register(memory)) {
                    // Nobody would ever end it.
                    self.endpoint.deregister(part.token);
                }
            }
            Command::Deregister { token, done } => {
                let _ = done.send(self.endpoint.deregister(token));
            }
            Command::Taken(len) => self.engine.taken(len),
            Command::End => self.engine.end(Fault::GivenUp),
            Command::Abort => {
                self.endpoint.abort();
                self.engine.end(Fault::GivenUp);
            }
        }
    }

    fn complete(&mut self, done: Completion) {
        match done {
            Completion::Received { bytes, invalidated } => {
                self.engine.received(bytes, invalidated, Instant::now());
            }
            Completion::Sent(id) => {
                if let Some(waiting) = self.sends.remove(&id) {
                    self.left(waiting);
                }
                self.engine.sent();
            }
            Completion::Read(id, buffer) => {
                if let Some(done) = self.reads.remove(&id)
                    && let Err(Ok(buffer)) = done.send(Ok(buffer))
                {
                    self.pool.give(buffer);
                }
            }
            Completion::Written(id) => {
                if let Some(done) = self.writes.remove(&id) {
                    let _ = done.send(Ok(()));
                }
            }
        }
    }

    fn left(&self, waiting: Waiting) {
        self.leaving.fetch_sub(waiting.bytes, Ordering::Relaxed);
        self.permits.add_permits(waiting.permits as usize);
    }

    /// Ends the connection after what was sent has left, if that is soon.
    async fn farewell(&mut self) {
        self.endpoint.disconnect();
        let last = async {
            while let Ok(done) = poll_fn(|context| self.endpoint.poll(context)).await {
                // Users are told of what still comes to its end; the engine looks at nothing.
                self.complete(done);
            }
        };
        let _ = tokio::time::timeout(FAREWELL, last).await;
    }
}

/// Bytes of a message with those that say its length on TCP (MS-SMB2 2.1).
fn on_tcp(message: &Bytes) -> u64 {
    message.len() as u64 + 4
}

fn lost_by(fault: Fault) -> Lost {
    match fault {
        Fault::GivenUp => Lost::GivenUp,
        Fault::Silent => Lost::Silent,
        other => Lost::Protocol(other.to_string()),
    }
}
