//! What carries a connection's messages: the seam between [`crate::connection`] and TCP, or whatever
//! else brings SMB messages here (MS-SMB2 2.1).
//!
//! ```text
//!  connection::run<T: Transport>
//!      │ next_message, send, unacknowledged, abort      remote_memory: read, write, invalidate
//!      ▼                                                      ▼
//!  tcp.rs: one socket; its bytes are put together          a transport of MS-SMBD; TCP has none
//!  by input.rs, which any stream of bytes can use
//!  rdma.rs: a connection of the crate `rdma`, whose messages are whole
//!      │ large WRITEs on their way
//!      ▼
//!  Placement: the exchange, which says where the data go before all of a message has come
//! ```
//!
//! Nothing but this folder names a socket. The trait is generic to the connection, so that every
//! request of a connection over TCP is a direct call. Remote memory is behind a pointer: who moves
//! data there waits for the network card anyway.

mod input;
#[cfg(test)]
pub mod memory;
mod rdma;
mod tcp;

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc};

use block_io::SplicePipe;
use smb_protocol::{MessageId, msg::rdma::BufferDescriptor};

use crate::dropped::Dropped;

pub(crate) use self::input::{give_buffer, take_buffer};
pub use self::{
    input::{ByteSource, Input},
    rdma::Rdma,
    tcp::Tcp,
};

/// What carries a connection, as administrators name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carrier {
    /// Direct TCP (MS-SMB2 2.1).
    #[default]
    Tcp,
    /// SMB Direct (MS-SMBD).
    Rdma,
}

impl Carrier {
    /// Its name in lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }
}

/// How the network of a connection is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Network {
    /// Smoothed time from a segment to its acknowledgement, in microseconds (RFC 6298); 0 if nobody knows.
    pub rtt: u64,
    /// Segments that were sent again since the connection began.
    pub retransmitted: u64,
    /// Segments that were sent since then.
    pub sent: u64,
    /// Bytes a second that arrived when much was under way; 0 if nobody knows.
    pub rate: u64,
}

/// One connection's way to its client and back.
///
/// What is sent and received are messages. [`Transport::send`] takes any number of them at once, each
/// behind the four bytes that say its length on TCP (MS-SMB2 2.1); a transport without these takes
/// them off. Bytes are counted as they stand in what is sent, with these four.
pub trait Transport: Send {
    /// The client's address.
    fn peer(&self) -> SocketAddr;

    /// Our address that the client dialled.
    ///
    /// # Errors
    /// The transport has failed already.
    fn local(&self) -> io::Result<SocketAddr>;

    /// What carries it.
    fn carrier(&self) -> Carrier {
        Carrier::Tcp
    }

    /// Bytes that have come, are not answered, and take memory.
    fn held(&self) -> usize;

    /// Receives what is there, a bounded number of bytes: how many came, `Some(0)` at the end, `None`
    /// if there is nothing yet.
    ///
    /// # Errors
    /// The transport has failed.
    fn receive_now(&mut self) -> Result<Option<usize>, Dropped>;

    /// Waits until there is something to receive that is worth it, or the end. Nothing is lost when
    /// the future is dropped.
    fn readable(&mut self) -> impl Future<Output = Result<(), Dropped>> + Send;

    /// The next message that has come whole, and how many bytes of its data `placement` has put in
    /// their file, which are not in it any more.
    ///
    /// # Errors
    /// The client breaks the rules of the transport, or sends a message longer than any may be.
    fn next_message(
        &mut self,
        placement: &mut impl Placement,
    ) -> Result<Option<(&mut [u8], usize)>, Dropped>;

    /// Gives memory back in which no more than `little` bytes are.
    fn rest(&mut self, little: usize);

    /// Sends messages; resolves when the transport has taken them all. A future that is dropped may
    /// have sent a part, so the connection must end.
    fn send(&mut self, messages: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Bytes that were sent and that the client's system has not acknowledged; `u64::MAX` if the
    /// transport cannot say. One that never can takes what was sent for acknowledged, and says 0.
    fn unacknowledged(&self) -> u64;

    /// How the network is, if the transport can say.
    fn network(&self) -> Option<Network> {
        None
    }

    /// Ends it at once: what is still to be sent is thrown away, and the client hears of it, if it
    /// hears anything.
    fn abort(&mut self);

    /// The way to the client's memory, if this transport is one of MS-SMBD.
    fn remote_memory(&self) -> Option<Arc<dyn RemoteMemory>> {
        None
    }
}

/// Whoever says where the data of a large WRITE go while they come.
pub trait Placement {
    /// Longest payload of a message, in bytes.
    fn max_message(&self) -> usize;

    /// Whether the data of a message that begins like this, header and fixed part of its body, may go
    /// to their file before all of it has come.
    fn may_place(&self, beginning: &[u8]) -> bool;

    /// Puts what has come of the data of such a message into its file, behind the `placed` bytes
    /// before it; `missing` are to come. The data are in the message, or in `pipe` if there is one.
    /// Says how many bytes went, which may be taken out of the message and are out of the pipe;
    /// `None` if the rest is to be received with the message.
    fn place(
        &mut self,
        message: &mut [u8],
        placed: usize,
        missing: usize,
        pipe: Option<&mut SplicePipe>,
    ) -> Option<usize>;
}

/// What a transfer from or to the client's memory comes to.
pub type Transfer<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// The client's memory, as buffer descriptors name it (MS-SMBD 3.1.4).
///
/// Descriptors are the client's words: whether they name memory that may be accessed, the client's
/// network card says, and a transfer that it refuses fails and ends the connection. Each call names
/// no more bytes than its descriptors have together.
pub trait RemoteMemory: fmt::Debug + Send + Sync {
    /// The longest message that the client puts together (MS-SMBD 3.1.5.2), in bytes.
    fn longest_message(&self) -> usize;

    /// Writes `data` to the beginning of what `to` names, one buffer after the other (MS-SMBD 3.1.4.5).
    fn write(&self, to: &[BufferDescriptor], data: Vec<u8>) -> Transfer<()>;

    /// Reads `len` bytes from the beginning of what `from` names (MS-SMBD 3.1.4.6).
    fn read(&self, from: &[BufferDescriptor], len: usize) -> Transfer<Vec<u8>>;

    /// The answer to the request `answered`, which is still to be sent, takes the right to the memory
    /// `token` back from us as it comes (MS-SMBD 3.1.4.2). At most one for each request.
    fn invalidate(&self, answered: MessageId, token: u32);

    /// The answers to `answered` go out in an encrypted message, which cannot be looked into and is known
    /// by the signature in its header (MS-SMB2 2.2.41): what they take back goes with that.
    fn hidden(&self, answered: &[MessageId], signature: Signature);
}

/// The signature in the header of an encrypted message.
pub type Signature = [u8; 16];
