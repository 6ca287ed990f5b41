//! One connection: the socket, its buffers and the batching of answers.
//!
//! ```text
//!  socket ─► input (one buffer) ─► every complete frame ─► exchange ─► output (one buffer) ─► socket
//!                                                     │                   ▲
//!                                                     └─► waiting futures ┘   one send per batch
//! ```
//!
//! Answers are collected while frames are at hand and sent together, at the latest when
//! [`SEND_AT`] bytes stand in the output. While a send blocks nothing more is read, so a client
//! that does not read its answers holds what is in these two buffers and no more. What it has begun
//! goes on to its end meanwhile: a channel that fell silent must not keep its requests in progress
//! for the other channels of its session.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    ops::Range,
    os::fd::AsRawFd,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use block_io::LowWater;
use bytes::BufMut;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::net::sockopt;
use smb_protocol::{
    header::{FRAME_LEN, HEADER_LEN, frame_len},
    msg::write::DATA_OFFSET,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::watch};

use crate::{
    Server,
    exchange::{Completion, Exchange, Frame},
    linger::Linger,
    meters::Meter,
    notices::Post,
};

/// After so many turns others have theirs: a client that asks again at once, each time it is
/// answered, would keep a thread for itself.
const TURNS: u32 = 2;
/// Send when this many bytes of answers stand ready: few enough that the client works on them
/// while the next are made, so many that a send costs little beside them.
const SEND_AT: usize = 64 << 10;
/// Room for input that an idle connection does not hold.
const INPUT: usize = 256 << 10;
/// About so much of a large write goes to its file at once: few enough that the second copy comes
/// from the CPU's cache.
const PIECE: usize = 256 << 10;
/// Room beyond the payload that a message may have: headers, contexts, names.
const OVERHEAD: usize = 64 << 10;
/// Buffers kept for the next connection that has something to do, and the largest that is kept.
const POOLED: usize = 32;
const POOLED_SIZE: usize = 4 << 20;

/// Why a connection was dropped.
#[derive(Debug, thiserror::Error)]
pub enum Dropped {
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    /// The client broke the protocol in a way that has no answer.
    #[error("{0}")]
    Protocol(&'static str),
    /// A message is longer than any can be.
    #[error("a message of {0} bytes is longer than the server takes")]
    TooLong(usize),
    /// The client did not authenticate in time.
    #[error("not authenticated in time")]
    Unauthenticated,
    /// The client's system does not acknowledge what it is sent.
    #[error("what is sent is not acknowledged")]
    Silent,
    /// The client does not read.
    #[error("answers are not read")]
    NotReading,
}

type Waiting = FuturesUnordered<Pin<Box<dyn Future<Output = Completion> + Send>>>;

/// Buffers that no connection uses at the moment.
static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn take_buffer() -> Vec<u8> {
    let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
    pooled.unwrap_or_else(|| Vec::with_capacity(INPUT))
}

fn give_buffer(mut buffer: Vec<u8>) {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.len() < POOLED && buffer.capacity() <= POOLED_SIZE && buffer.capacity() >= INPUT {
        buffer.clear();
        pool.push(buffer);
    }
}

/// Serves one connection until it ends.
pub async fn run(
    stream: TcpStream,
    peer: SocketAddr,
    server: Arc<Server>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Dropped> {
    let current = server.current();
    let limits = current.config.limits.clone();
    let linger = Linger::new(current.config.linger);
    drop(current);
    let local = stream.local_addr()?;
    let mut exchange = Exchange::new(server, peer, local);
    let mut link = Link {
        stream,
        input: Vec::new(),
        at: 0,
        missing: FRAME_LEN,
        at_once: INPUT,
        placing: Placing::Unknown,
        placed: 0,
        low_water: LowWater::default(),
        output: Vec::new(),
        written: 0,
        write_time: Duration::from_secs(limits.write_seconds),
        held: VecDeque::new(),
        linger,
        meter: exchange.meter.clone(),
    };
    let mut waiting = Waiting::new();
    let time = Duration::from_secs(limits.authentication_seconds);
    let result = serve(&mut link, &mut exchange, &mut waiting, &mut stopped, time).await;
    // What the disk was given must be over before the files are free for others: a late write
    // must never land on a newer one.
    let mut unsent = Vec::new();
    for done in link.held.drain(..) {
        let _ = exchange.complete(done, &mut unsent);
        unsent.clear();
    }
    while let Some(done) = exchange.finish_io(&mut waiting).await {
        let _ = exchange.complete(done, &mut unsent);
        unsent.clear();
    }
    drop(waiting);
    exchange.end();
    result
}

/// Receives, answers and sends until the connection ends or the server is to stop.
async fn serve(
    link: &mut Link,
    exchange: &mut Exchange,
    waiting: &mut Waiting,
    stopped: &mut watch::Receiver<bool>,
    authentication_time: Duration,
) -> Result<(), Dropped> {
    let authentication = tokio::time::sleep(authentication_time);
    tokio::pin!(authentication);
    let mut turns = 0u32;
    loop {
        if link.output.capacity() == 0 {
            link.output = take_buffer();
        }
        let mut answered_some = false;
        while let Some(frame) = link.next_frame(exchange.max_message())? {
            answered_some = true;
            let (range, placed) = frame;
            let message = &mut link.input[range];
            match exchange.receive_rest(message, placed, &mut link.output) {
                Ok(Frame::Answered) => {}
                Ok(Frame::Waits(futures)) => waiting.extend(futures),
                Err(dropped) => {
                    // What was answered before is still the client's.
                    let _ = link.send(waiting).await;
                    return Err(dropped);
                }
            }
            if link.output.len() >= SEND_AT {
                link.send(waiting).await?;
            }
        }
        link.place(exchange);
        while let Some(done) = link.held.pop_front().or_else(|| next_now(waiting)) {
            waiting.extend(exchange.complete(done, &mut link.output)?);
            if link.output.len() >= SEND_AT {
                link.send(waiting).await?;
            }
        }
        while let Some(post) = exchange.post_now() {
            link.handle(post, exchange)?;
        }
        link.send(waiting).await?;
        if !link.held.is_empty() {
            continue;
        }
        if link.receive_now()?.is_some_and(|got| got > 0) {
            turns += 1;
            if turns.is_multiple_of(TURNS) {
                tokio::task::yield_now().await;
            }
            if !*stopped.borrow() {
                continue;
            }
        }
        let answered = Instant::now();
        if answered_some
            && waiting.is_empty()
            && exchange.authenticated()
            && !*stopped.borrow()
            && let Some(window) = link.linger.window()
            && link.look_out(answered + window).await?
        {
            continue;
        }
        link.rest();
        tokio::select! {
            biased;
            Some(done) = waiting.next(), if !waiting.is_empty() => {
                waiting.extend(exchange.complete(done, &mut link.output)?);
            }
            Some(post) = exchange.post() => link.handle(post, exchange)?,
            () = told_to_stop(stopped) => {
                while let Some(done) = exchange.finish_io(waiting).await {
                    waiting.extend(exchange.complete(done, &mut link.output)?);
                }
                link.send(waiting).await?;
                return Ok(());
            }
            got = link.receive() => {
                if !got? {
                    return Ok(());
                }
                link.linger.slept(answered.elapsed());
            }
            () = &mut authentication, if !exchange.authenticated() => {
                return Err(Dropped::Unauthenticated);
            }
        }
    }
}

/// Ends when the server is to stop.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// A completion that is ready now.
fn next_now(waiting: &mut Waiting) -> Option<Completion> {
    if waiting.is_empty() {
        return None;
    }
    let mut context = Context::from_waker(std::task::Waker::noop());
    match waiting.poll_next_unpin(&mut context) {
        Poll::Ready(done) => done,
        Poll::Pending => None,
    }
}

/// What is known of a message of which only a part has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placing {
    /// It is received as a whole.
    No,
    /// Nobody has looked yet.
    Unknown,
    /// It is a write whose data may go to their file before all have come.
    Yes,
}

/// The socket with its buffers.
struct Link {
    stream: TcpStream,
    input: Vec<u8>,
    /// Where the first byte not yet looked at stands in `input`.
    at: usize,
    /// Bytes that are missing from the frame whose beginning is in `input`.
    missing: usize,
    /// How much is received at once at most: a large frame alone, so that it stays in the CPU's
    /// cache until it is written and nothing behind it has to be moved to the front.
    at_once: usize,
    /// Whether the data of the message whose beginning is in `input` go to their file as they come.
    placing: Placing,
    /// Bytes of its data that have gone there and are not in `input` any more.
    placed: usize,
    low_water: LowWater,
    output: Vec<u8>,
    /// Bytes that were sent.
    written: u64,
    write_time: Duration,
    /// What ended while a send was under way.
    held: VecDeque<Completion>,
    linger: Linger,
    meter: Arc<Meter>,
}

impl Link {
    /// The next complete message in the input, if there is one, and how many bytes of its data
    /// have been placed and taken out.
    fn next_frame(&mut self, max: usize) -> Result<Option<(Range<usize>, usize)>, Dropped> {
        let rest = &self.input[self.at..];
        (self.missing, self.at_once) = (FRAME_LEN, INPUT);
        let Some(prefix) = rest.first_chunk::<FRAME_LEN>() else {
            self.bring_forward();
            return Ok(None);
        };
        let len = frame_len(*prefix).map_err(|_| Dropped::Protocol("not a direct-TCP frame"))?;
        if len > max + OVERHEAD {
            return Err(Dropped::TooLong(len));
        }
        let start = self.at + FRAME_LEN;
        let end = start + len - self.placed;
        if self.input.len() >= end {
            self.at = end;
            self.placing = Placing::Unknown;
            return Ok(Some((start..end, std::mem::take(&mut self.placed))));
        }
        self.missing = end - self.input.len();
        self.bring_forward();
        if len > INPUT {
            self.at_once = self.missing;
        }
        if len < 2 * PIECE {
            self.placing = Placing::No;
        }
        // Room for the whole of it, so that it is received in few calls.
        self.input.reserve(self.missing);
        Ok(None)
    }

    /// Puts what has come of the data of the message at the front into its file, if it is a large
    /// write that allows that; the room it took is used again.
    fn place(&mut self, exchange: &mut Exchange) {
        let Some(message) = self.input.get_mut(FRAME_LEN..) else { return };
        if self.placing == Placing::Unknown && message.len() >= HEADER_LEN {
            let may = Exchange::may_place(message);
            self.placing = if may { Placing::Yes } else { Placing::No };
        }
        if self.placing != Placing::Yes {
            return;
        }
        if message.len() >= DATA_OFFSET + PIECE / 2 {
            match exchange.place(message, self.placed, self.missing) {
                Some(piece) => {
                    self.placed += piece.len();
                    self.input.drain(FRAME_LEN + piece.start..FRAME_LEN + piece.end);
                }
                None => self.placing = Placing::No,
            }
        }
        if self.placing == Placing::Yes {
            let full = FRAME_LEN + DATA_OFFSET + PIECE;
            self.at_once = self.missing.min(full.saturating_sub(self.input.len()).max(1));
        }
    }

    /// Puts what is left to the front.
    fn bring_forward(&mut self) {
        if self.at > 0 {
            self.input.drain(..self.at);
            self.at = 0;
        }
    }

    /// Sees that there is room.
    fn make_room(&mut self) {
        if self.input.capacity() == 0 {
            self.input = take_buffer();
        }
        if self.input.capacity() - self.input.len() < FRAME_LEN {
            self.input.reserve(INPUT);
        }
    }

    /// Receives what is there; `Some(0)` at the end, `None` if there is nothing yet.
    fn receive_now(&mut self) -> Result<Option<usize>, Dropped> {
        self.make_room();
        let mut space = (&mut self.input).limit(self.at_once);
        match self.stream.try_read_buf(&mut space) {
            Ok(got) => {
                self.meter.received(got);
                Ok(Some(got))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks for input until then, while others have their turns; whether some came.
    async fn look_out(&mut self, until: Instant) -> Result<bool, Dropped> {
        loop {
            tokio::task::yield_now().await;
            match self.receive_now()? {
                Some(0) => return Ok(false),
                Some(_) => {
                    self.linger.hit();
                    return Ok(true);
                }
                None if Instant::now() < until => {}
                None => {
                    self.linger.missed();
                    return Ok(false);
                }
            }
        }
    }

    /// Waits for input; `false` at its end. An idle connection holds no buffer meanwhile.
    async fn receive(&mut self) -> Result<bool, Dropped> {
        self.low_water.wait_for(&self.stream, self.missing.min(self.at_once));
        self.stream.readable().await?;
        Ok(self.receive_now()? != Some(0))
    }

    /// Gives buffers back that hold nothing.
    fn rest(&mut self) {
        if self.input.is_empty() && self.input.capacity() > 0 {
            give_buffer(std::mem::take(&mut self.input));
        }
        if self.output.is_empty() && self.output.capacity() > 0 {
            give_buffer(std::mem::take(&mut self.output));
        }
    }

    /// Does what others ask of this connection.
    fn handle(&mut self, post: Post, exchange: &Exchange) -> Result<(), Dropped> {
        match post {
            Post::Tell(notice, receipt) => match exchange.tell(notice, &mut self.output) {
                true => receipt.sent(self.written + self.output.len() as u64),
                false => receipt.lost(),
            },
            Post::Arrived(answer) => {
                let arrived = self.written.saturating_sub(unacknowledged(&self.stream));
                let _ = answer.send(arrived);
            }
            Post::Close => {
                // Nobody waits for what is still to be sent, and the client, if it hears, hears
                // at once.
                let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
                return Err(Dropped::Silent);
            }
        }
        Ok(())
    }

    async fn send(&mut self, waiting: &mut Waiting) -> Result<(), Dropped> {
        if self.output.is_empty() {
            return Ok(());
        }
        let held = &mut self.held;
        let work = async {
            let write = self.stream.write_all(&self.output);
            tokio::pin!(write);
            loop {
                tokio::select! {
                    biased;
                    sent = &mut write => return sent,
                    Some(done) = waiting.next(), if !waiting.is_empty() => held.push_back(done),
                }
            }
        };
        let sent = tokio::time::timeout(self.write_time, work).await;
        sent.map_err(|_| Dropped::NotReading)??;
        self.meter.sent(self.output.len());
        self.written += self.output.len() as u64;
        self.output.clear();
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        give_buffer(std::mem::take(&mut self.input));
        give_buffer(std::mem::take(&mut self.output));
    }
}

/// Bytes that were sent and that the client's system has not acknowledged.
#[expect(unsafe_code, reason = "SIOCOUTQ has no safe wrapper")]
fn unacknowledged(stream: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request (the same number as TIOCOUTQ) writes one int, which lives that long.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } < 0;
    // A socket that says nothing has not delivered anything.
    if failed { u64::MAX } else { u64::try_from(bytes).unwrap_or(0) }
}
