//! What a provider of RDMA does for a connection: the verbs that MS-SMBD needs (2.1, 3.1.4), without
//! queues and keys.
//!
//! ```text
//!  post_receive ─┐                              ┌─► Received
//!  post_send    ─┼─► the provider ─► the peer ──┼─► Sent
//!  post_read    ─┤      poll                    ├─► Read
//!  post_write   ─┘                              └─► Written, or Lost: nothing comes after it
//! ```
//!
//! Memory is given to an end and comes back from it, so nobody else looks at it while a card might.
//! What was posted is carried out in the order in which it was posted, but for reads: each waits until
//! fewer are under way than the peer allows, and what comes behind it passes it. A write is in the
//! peer's memory before a later send is received (RFC 5040 5.5).

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::memory::{Memory, Part};

/// A message to the peer: two pieces that it receives as one.
#[derive(Debug, Clone)]
pub struct Message {
    /// What its completion is called.
    pub id: u64,
    /// Its beginning.
    pub head: Vec<u8>,
    /// What is behind that.
    pub body: Bytes,
    /// The right to the peer's memory that ends as it arrives (Send with Invalidate).
    pub invalidate: Option<u32>,
}

/// Something that was posted has come to its end, or the peer has sent something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// A message, in the oldest receive that was posted.
    Received {
        /// The message.
        bytes: Vec<u8>,
        /// The memory of ours to which the peer gave its right up with it.
        invalidated: Option<u32>,
    },
    /// A message has left.
    Sent(u64),
    /// What was read stands in its buffer.
    Read(u64, Vec<u8>),
    /// What was written has left; it is in the peer's memory before anything sent later.
    Written(u64),
}

/// Why a connection has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// By its peer, in order.
    #[error("the peer has ended the connection")]
    Ended,
    /// By us.
    #[error("the connection was given up")]
    GivenUp,
    /// The peer says that we broke a rule, or that it cannot go on.
    #[error("the peer has terminated the connection: {0}")]
    Terminated(String),
    /// The peer broke a rule.
    #[error("the peer breaks the protocol: {0}")]
    Protocol(String),
    /// The peer named memory that it may not touch.
    #[error("the peer named memory that it may not touch: {0}")]
    Access(#[from] crate::memory::Refusal),
    /// The peer said nothing for too long.
    #[error("the peer is silent")]
    Silent,
    /// The network failed.
    #[error("the network failed: {0}")]
    Network(String),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Self::Network(error.to_string())
    }
}

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        let kind = match lost {
            Lost::Ended | Lost::GivenUp => io::ErrorKind::NotConnected,
            Lost::Silent => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, lost)
    }
}

/// One end of a connection.
///
/// After [`Endpoint::poll`] has said that it is lost, everything that is posted is refused and nothing is
/// touched any more.
pub trait Endpoint: Send + fmt::Debug {
    /// The peer's address.
    fn peer(&self) -> SocketAddr;

    /// Our address of this connection.
    fn local(&self) -> SocketAddr;

    /// Bytes given to the network that the peer's system has not acknowledged; 0 if that cannot be
    /// known. The function outlives the end.
    fn unacknowledged(&self) -> Box<dyn Fn() -> u64 + Send + Sync>;

    /// Allows the peer to read or write memory, and says how it names it.
    ///
    /// # Errors
    /// The memory, if there is no room for it or the connection has ended.
    fn register(&mut self, memory: Memory) -> Result<Part, Memory>;

    /// Ends what [`Endpoint::register`] allowed, and gives the memory back.
    fn deregister(&mut self, token: u32) -> Option<Memory>;

    /// One more message of up to `len` bytes may come.
    ///
    /// # Errors
    /// The connection has ended.
    fn post_receive(&mut self, len: usize) -> Result<(), Lost>;

    /// Sends a message.
    ///
    /// # Errors
    /// The connection has ended.
    fn post_send(&mut self, message: Message) -> Result<(), Lost>;

    /// Fills `buffer` from the peer's memory, one part after the other. The parts have as many bytes
    /// together as the buffer.
    ///
    /// # Errors
    /// The connection has ended.
    fn post_read(&mut self, id: u64, from: Vec<Part>, buffer: Vec<u8>) -> Result<(), Lost>;

    /// Writes `data` to the peer's memory, one part after the other. The parts have as many bytes
    /// together as the data.
    ///
    /// # Errors
    /// The connection has ended.
    fn post_write(&mut self, id: u64, to: Vec<Part>, data: Bytes) -> Result<(), Lost>;

    /// Moves everything on, and says what has come to its end.
    ///
    /// # Errors
    /// In the second place: why the connection is lost. Nothing comes after that.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Completion, Lost>>;

    /// Ends the connection; what was posted before is still sent.
    fn disconnect(&mut self);

    /// Ends the connection and throws away what is still to be sent.
    fn abort(&mut self);
}

/// A future of a provider, which is behind a pointer.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// A way to reach peers.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Connects to a peer that listens there.
    fn connect(&self, to: SocketAddr) -> Doing<'_, Box<dyn Endpoint>>;

    /// Listens for peers there.
    fn listen(&self, at: SocketAddr) -> Doing<'_, Box<dyn Listener>>;
}

/// A place where peers connect.
pub trait Listener: fmt::Debug + Send + Sync {
    /// Its address.
    ///
    /// # Errors
    /// What the system says.
    fn local(&self) -> io::Result<SocketAddr>;

    /// The next peer.
    fn accept(&self) -> Doing<'_, Box<dyn Endpoint>>;
}
