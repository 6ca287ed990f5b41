//! A transport in memory, for tests: a pipe whose two ends are a stream for a client and a
//! [`Transport`] for the server.
//!
//! ```text
//!  ClientEnd ──► up ──► ServerEnd (as much as it is allowed) ──► Input
//!  ClientEnd ◄── down ◄── on_its_way ◄── send
//!                     └── carry, or at once where the pipe flows
//! ```

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ByteSource, Input, Placement, Transport};
use crate::dropped::Dropped;

fn own<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a connection ends for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As if the server had closed it.
    Closed,
    /// By a reset.
    Reset,
}

/// Both directions of a connection, between the systems of client and server.
#[derive(Debug, Default)]
pub struct Pipe {
    /// What the client has sent and the server has not received.
    pub up: VecDeque<u8>,
    /// What has come and the client has not read.
    pub down: VecDeque<u8>,
    /// Most that is in `up`.
    pub room: usize,
    /// It ends behind what is in `down`.
    pub end: Option<End>,
    /// The client sends no more, or has dropped it.
    pub left: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The server, which waits for what the client sends.
    server: Option<Waker>,
}

impl Pipe {
    /// A new one, which keeps up to `room` bytes of what the client sends.
    pub fn new(room: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { room, ..Self::default() }))
    }

    /// The client has given it up, or its system says that it is gone.
    pub fn is_left(&self) -> bool {
        self.left || self.end.is_some()
    }

    /// The client has gone.
    fn leave(&mut self) {
        self.left = true;
        self.server.take().into_iter().for_each(Waker::wake);
    }

    /// Wakes whoever waits at it.
    pub fn wake(&mut self) {
        let all = [self.reader.take(), self.writer.take(), self.server.take()];
        all.into_iter().flatten().for_each(Waker::wake);
    }
}

/// The client's end of a pipe.
#[derive(Debug)]
pub struct ClientEnd(Arc<Mutex<Pipe>>);

impl ClientEnd {
    /// The end of that pipe.
    pub fn new(pipe: Arc<Mutex<Pipe>>) -> Self {
        Self(pipe)
    }
}

impl AsyncRead for ClientEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut pipe = own(&self.0);
        if pipe.down.is_empty() {
            return match pipe.end {
                Some(End::Closed) => Poll::Ready(Ok(())),
                Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {
                    pipe.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        }
        let len = buf.remaining().min(pipe.down.len());
        let bytes: Vec<u8> = pipe.down.drain(..len).collect();
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = own(&self.0);
        if pipe.end.is_some() || pipe.left {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = bytes.len().min(pipe.room.saturating_sub(pipe.up.len()));
        if len == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        pipe.up.extend(&bytes[..len]);
        pipe.server.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        own(&self.0).leave();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        own(&self.0).leave();
    }
}

/// The server's end of a pipe.
#[derive(Debug)]
pub struct ServerEnd {
    source: Allowed,
    input: Input,
    /// What was sent and has not come to the client's system.
    on_its_way: VecDeque<u8>,
    /// What is sent is at the client's at once, and what the client sends may all be received.
    flows: bool,
    addresses: (SocketAddr, SocketAddr),
}

/// What may be received of what the client has sent.
#[derive(Debug)]
struct Allowed {
    pipe: Arc<Mutex<Pipe>>,
    bytes: usize,
}

impl ByteSource for Allowed {
    fn read_now(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        let mut pipe = own(&self.pipe);
        let len = most.min(self.bytes).min(pipe.up.len());
        if len == 0 {
            let ended = pipe.left && pipe.up.is_empty();
            return if ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        into.extend(pipe.up.drain(..len));
        if self.bytes != usize::MAX {
            self.bytes -= len;
        }
        pipe.wake();
        Ok(len)
    }
}

impl ServerEnd {
    /// An end of that pipe between `client` and `server`, in which nothing moves by itself.
    pub fn new(pipe: Arc<Mutex<Pipe>>, client: SocketAddr, server: SocketAddr) -> Self {
        Self {
            source: Allowed { pipe, bytes: 0 },
            input: Input::new(false),
            on_its_way: VecDeque::new(),
            flows: false,
            addresses: (client, server),
        }
    }

    /// What is sent comes at once.
    pub fn flowing(mut self) -> Self {
        self.flows = true;
        self.source.bytes = usize::MAX;
        self
    }

    /// Both directions, which the client shares.
    pub fn pipe(&self) -> MutexGuard<'_, Pipe> {
        own(&self.source.pipe)
    }

    /// Up to `bytes` more of what the client has sent may be received.
    pub fn allow(&mut self, bytes: usize) {
        self.source.bytes = bytes;
    }

    /// Bytes that were sent and have not come to the client's system.
    pub fn on_its_way(&self) -> usize {
        self.on_its_way.len()
    }

    /// Up to `most` bytes of these come to it.
    pub fn carry(&mut self, most: usize) -> usize {
        let len = most.min(self.on_its_way.len());
        let mut pipe = own(&self.source.pipe);
        pipe.down.extend(self.on_its_way.drain(..len));
        pipe.wake();
        len
    }

    /// Takes what is to be sent, as [`Transport::send`] does without waiting.
    pub fn put(&mut self, messages: &[u8]) {
        self.on_its_way.extend(messages);
        if self.flows {
            self.carry(usize::MAX);
        }
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        if self.flows {
            let mut pipe = self.pipe();
            pipe.end.get_or_insert(End::Closed);
            pipe.wake();
        }
    }
}

impl Transport for ServerEnd {
    fn peer(&self) -> SocketAddr {
        self.addresses.0
    }

    fn local(&self) -> io::Result<SocketAddr> {
        Ok(self.addresses.1)
    }

    fn held(&self) -> usize {
        self.input.held()
    }

    fn receive_now(&mut self) -> Result<Option<usize>, Dropped> {
        self.input.receive_now(&mut self.source)
    }

    async fn readable(&mut self) -> Result<(), Dropped> {
        std::future::poll_fn(|context| {
            let mut pipe = own(&self.source.pipe);
            if pipe.left || !pipe.up.is_empty() {
                return Poll::Ready(Ok(()));
            }
            pipe.server = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn next_message(
        &mut self,
        placement: &mut impl Placement,
    ) -> Result<Option<(&mut [u8], usize)>, Dropped> {
        self.input.next_message(placement)
    }

    fn rest(&mut self, little: usize) {
        self.input.rest(little);
    }

    async fn send(&mut self, messages: &[u8]) -> io::Result<()> {
        self.put(messages);
        Ok(())
    }

    fn unacknowledged(&self) -> u64 {
        // The client's system is this process.
        0
    }

    fn abort(&mut self) {
        let mut pipe = self.pipe();
        pipe.end.get_or_insert(End::Reset);
        pipe.wake();
    }
}
