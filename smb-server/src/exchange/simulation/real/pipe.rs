//! The network of the real client: pipes whose other ends are in the hands of the simulation.

use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use smb_client::{Dialled, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::store::own;

/// How a connection ends for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// As if the server had closed it.
    Closed,
    /// By a reset.
    Reset,
}

/// A connection as the client's system sees it.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    /// What the client has sent and the server has not received.
    pub(super) up: VecDeque<u8>,
    /// What has come and the client has not read.
    pub(super) down: VecDeque<u8>,
    /// Most that is in `up`.
    pub(super) room: usize,
    /// It ends behind what is in `down`.
    pub(super) end: Option<End>,
    /// The client sends no more, or has dropped it.
    pub(super) left: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    /// Wakes whoever waits at it.
    pub(super) fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// The client's end of a pipe.
#[derive(Debug)]
struct ClientEnd(Arc<Mutex<Pipe>>);

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
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        own(&self.0).left = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        own(&self.0).left = true;
    }
}

/// What the clients dial.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// Connections that the server has not met yet.
    pub(super) arrivals: Vec<Arc<Mutex<Pipe>>>,
    /// Whether anybody listens.
    pub(super) listens: bool,
    /// What a system keeps of what a client sends, at most.
    pub(super) room: usize,
}

/// The way of a client to the server.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) net: Arc<Mutex<Net>>,
}

/// Where the server is, and where the clients are.
pub(super) const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
pub(super) const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

impl Network for Way {
    fn connect<'a>(
        &'a self,
        _: &'a str,
        _: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + 'a>> {
        let mut net = own(&self.net);
        let dialled = if net.listens {
            let pipe = Arc::new(Mutex::new(Pipe { room: net.room, ..Pipe::default() }));
            net.arrivals.push(pipe.clone());
            let stream = Box::new(ClientEnd(pipe));
            Ok(Dialled { stream, local: CLIENT, server: SERVER })
        } else {
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        drop(net);
        Box::pin(std::future::ready(dialled))
    }
}
