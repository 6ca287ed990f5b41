//! The byte stream under a connection: a TCP socket, or what a [`Network`] puts in its place.
//!
//! ```text
//!  Exchange (handshake) ─┐          ┌─► Tcp: try first, then wait for readiness; low-water mark
//!  Connection's tasks ───┴─► Wire ──┤
//!                                   └─► Other: any AsyncRead + AsyncWrite behind a lock
//! ```

use std::{
    fmt, future, io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use block_io::LowWater;
use bytes::BytesMut;
use rustix::net::{Shutdown, shutdown};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{Error, Result, path::Path};

/// What is taken at once from a stream that is no socket.
const CHUNK: usize = 16 * 1024;

/// Bytes in both directions. Everything that tokio reads and writes is one.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that a [`Network`] has made.
pub struct Dialled {
    /// Its bytes. That it ends means that the connection is lost.
    pub stream: Box<dyn Stream>,
    /// Our own address on it.
    pub local: IpAddr,
    /// The address of the server's side.
    pub server: IpAddr,
    /// The connection of SMB Direct below it, if there is one: data may go by RDMA.
    pub direct: Option<rdma::Handle>,
}

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialled")
            .field("local", &self.local)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// How servers are reached where that is not over the system's TCP: through a tunnel, or over
/// pipes to a server in the same process.
pub trait Network: fmt::Debug + Send + Sync {
    /// Connects to a server by its name or one of its addresses.
    ///
    /// # Errors
    /// What a socket would say.
    fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + 'a>>;

    /// Whether a server that is not reached so is tried by the system's TCP.
    fn or_tcp(&self) -> bool {
        false
    }

    /// Whether its addresses are those of this system's interfaces, which then say who has a link.
    fn is_of_this_system(&self) -> bool {
        false
    }

    /// Whether the interface with an address of ours has its link. A connection over one that
    /// has not is given up if the session has others.
    fn has_link(&self, local: IpAddr) -> bool {
        let _ = local;
        true
    }
}

/// A stream that was dialled.
pub(crate) enum Wire {
    Tcp(TcpStream),
    /// `None` once it was shut down.
    Other {
        stream: Mutex<Option<Box<dyn Stream>>>,
        local: IpAddr,
        server: IpAddr,
        direct: Option<rdma::Handle>,
    },
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<Dialled> for Wire {
    fn from(Dialled { stream, local, server, direct }: Dialled) -> Self {
        Self::Other { stream: Mutex::new(Some(stream)), local, server, direct }
    }
}

/// Connects to a server by its name or one of its addresses.
pub(crate) async fn dial(
    network: Option<&Arc<dyn Network>>,
    host: &str,
    port: u16,
) -> io::Result<Wire> {
    if let Some(network) = network {
        match network.connect(host, port).await {
            Ok(dialled) => return Ok(dialled.into()),
            Err(error) if network.or_tcp() => {
                tracing::debug!(host, %error, "not reached by SMB Direct; going on by TCP");
            }
            Err(error) => return Err(error),
        }
    }
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    // What paces by timers, as BBR does, costs a fast network more than it gives. A system that
    // does not have it, or does not let us, keeps its own.
    let _ = rustix::net::sockopt::set_tcp_congestion(&stream, "cubic");
    Ok(stream.into())
}

type Held<'a> = MutexGuard<'a, Option<Box<dyn Stream>>>;

fn lock(stream: &Mutex<Option<Box<dyn Stream>>>) -> Held<'_> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open<'a>(held: &'a mut Held<'_>) -> io::Result<Pin<&'a mut Box<dyn Stream>>> {
    match &mut **held {
        Some(stream) => Ok(Pin::new(stream)),
        None => Err(io::ErrorKind::NotConnected.into()),
    }
}

impl Wire {
    /// Sends what can be sent without waiting; fails with `WouldBlock` if that is nothing.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_write(bytes),
            Self::Other { stream, .. } => {
                let mut context = Context::from_waker(Waker::noop());
                match open(&mut lock(stream))?.poll_write(&mut context, bytes) {
                    Poll::Ready(sent) => sent,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Sends all of `bytes`.
    pub async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = match self {
                Self::Tcp(socket) => match socket.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.writable().await?;
                        0
                    }
                    sent => sent?,
                },
                Self::Other { stream, .. } => {
                    let write = |context: &mut Context<'_>| {
                        open(&mut lock(stream))?.poll_write(context, bytes)
                    };
                    match future::poll_fn(write).await? {
                        0 => return Err(io::ErrorKind::WriteZero.into()),
                        sent => sent,
                    }
                }
            };
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Appends what has come to `buffer`, in which there is room; 0 at the end of the stream.
    /// Who calls has no use for fewer than `missing` bytes.
    pub async fn receive(
        &self,
        buffer: &mut BytesMut,
        missing: usize,
        low_water: &mut LowWater,
    ) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => loop {
                match socket.try_read_buf(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        low_water.wait_for(socket, missing);
                        socket.readable().await?;
                    }
                    got => return got,
                }
            },
            Self::Other { stream, .. } => {
                let read = |context: &mut Context<'_>| {
                    let mut chunk = [0; CHUNK];
                    let mut chunk = ReadBuf::new(&mut chunk);
                    ready!(open(&mut lock(stream))?.poll_read(context, &mut chunk))?;
                    buffer.extend_from_slice(chunk.filled());
                    Poll::Ready(Ok(chunk.filled().len()))
                };
                future::poll_fn(read).await
            }
        }
    }

    /// Reads until `buf` is full.
    pub async fn receive_exactly(&self, buf: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let got = match self {
                Self::Tcp(socket) => match socket.try_read(rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.readable().await?;
                        continue;
                    }
                    got => got?,
                },
                Self::Other { stream, .. } => {
                    let mut rest = ReadBuf::new(rest);
                    let read = |context: &mut Context<'_>| {
                        open(&mut lock(stream))?.poll_read(context, &mut rest)
                    };
                    future::poll_fn(read).await?;
                    rest.filled().len()
                }
            };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += got;
        }
        Ok(())
    }

    /// Says that nothing more is sent, and with [`Shutdown::Both`] that nothing is received.
    pub fn shutdown(&self, how: Shutdown) {
        match self {
            Self::Tcp(socket) => {
                // One that is gone already needs no end.
                let _ = shutdown(socket, how);
            }
            Self::Other { stream, .. } => {
                let mut held = lock(stream);
                if let Ok(stream) = open(&mut held) {
                    let mut context = Context::from_waker(Waker::noop());
                    let _ = stream.poll_shutdown(&mut context);
                }
                if how == Shutdown::Both {
                    *held = None;
                }
            }
        }
    }

    /// Where it goes; `weight` says how much slower it is than the fastest.
    pub fn path(&self, weight: u32) -> Result<Path> {
        let lost = |error: io::Error| Error::disconnected(error.to_string());
        let (server, local) = match self {
            Self::Tcp(socket) => (
                socket.peer_addr().map_err(lost)?.ip().to_canonical(),
                socket.local_addr().map_err(lost)?.ip().to_canonical(),
            ),
            Self::Other { local, server, .. } => (*server, *local),
        };
        Ok(Path { server, local, weight })
    }

    /// The connection of SMB Direct below it, if there is one.
    pub fn direct(&self) -> Option<&rdma::Handle> {
        match self {
            Self::Tcp(_) => None,
            Self::Other { direct, .. } => direct.as_ref(),
        }
    }

    /// The socket, if it is one.
    pub fn into_tcp(self) -> Result<TcpStream> {
        match self {
            Self::Tcp(socket) => Ok(socket),
            Self::Other { .. } => Err(Error::NotOffered("a TCP socket")),
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(socket) => socket.fmt(f),
            Self::Other { local, server, .. } => {
                f.debug_struct("Other").field("local", local).field("server", server).finish()
            }
        }
    }
}
