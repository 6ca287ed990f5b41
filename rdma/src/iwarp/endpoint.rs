//! iWARP over a TCP socket: how a connection begins, and the provider.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    Options,
    protocol::{Agreement, Protocol},
    startup::{Depths, Frame, Kind, ReadyToReceive},
};
use crate::{
    memory::{Memory, Part},
    provider::{Completion, Doing, Endpoint, Listener, Lost, Message, Provider},
};

/// Pieces that are written at once.
const SLICES: usize = 64;
/// A frame that no TCP segment is known for: what Ethernet carries.
const ETHERNET: usize = 1448;

/// Connects over a stream, as the end that has dialled (RFC 5044 7.1).
///
/// # Errors
/// The peer refuses, is silent for too long, wants markers, or speaks something else.
pub async fn connect(mut stream: TcpStream, options: &Options) -> io::Result<Box<dyn Endpoint>> {
    let begun = tokio::time::timeout(options.startup, ask(&mut stream, options)).await;
    let agreed = begun.map_err(|_| silent())??;
    Ok(Box::new(Socket::new(stream, agreed)?))
}

/// Accepts a connection over a stream, as the end that was dialled.
///
/// # Errors
/// The peer is silent for too long, wants markers or more than there is, or speaks something else.
pub async fn accept(mut stream: TcpStream, options: &Options) -> io::Result<Box<dyn Endpoint>> {
    let begun = tokio::time::timeout(options.startup, answer(&mut stream, options)).await;
    let agreed = begun.map_err(|_| silent())??;
    Ok(Box::new(Socket::new(stream, agreed)?))
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer does not begin an iWARP connection")
}

fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, why)
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Receives one of the two frames, and not a byte more.
async fn frame(stream: &mut TcpStream, kind: Kind) -> io::Result<Frame> {
    let mut bytes = Vec::new();
    loop {
        let whole = Frame::length(&bytes, kind).map_err(invalid)?;
        let wanted = whole.unwrap_or(super::startup::HEAD);
        if whole == Some(bytes.len()) {
            return Frame::parse(&bytes, kind).map_err(invalid);
        }
        let missing = wanted - bytes.len();
        let mut room = (&mut bytes).limit(missing);
        if stream.read_buf(&mut room).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The smaller of a depth that is wanted and one that is offered, where there is one.
fn depth(wanted: u16, offered: Option<u16>) -> u16 {
    match offered {
        Some(offered) if offered < Depths::MOST => wanted.min(offered),
        _ => wanted,
    }
}

async fn ask(stream: &mut TcpStream, options: &Options) -> io::Result<Agreement> {
    let enhanced = options.revision >= 2;
    let ours =
        Depths { ird: options.incoming_reads, ord: options.outgoing_reads, ..Depths::default() };
    let wanted = options.peer_to_peer.filter(|_| enhanced);
    let request = Frame {
        kind: Kind::Request,
        markers: false,
        crc: options.crc,
        rejected: false,
        revision: if enhanced { 2 } else { 1 },
        depths: enhanced.then_some(ours.ready_with(wanted)),
        private: if enhanced { Vec::new() } else { legacy(ours.ird, ours.ord) },
    };
    stream.write_all(&request.encode()).await?;
    let reply = frame(stream, Kind::Reply).await?;
    if reply.rejected {
        let known = reply.revision;
        return Err(refused(format!("the peer refuses (its revision of MPA is {known})")));
    }
    if reply.markers {
        return Err(invalid("the peer wants markers in its stream, which are not made here"));
    }
    let given = reply.depths.map(|depths| (depths.ird, depths.ord)).or(of_legacy(&reply.private));
    let ready = match (wanted, reply.depths) {
        (Some(frame), Some(depths)) if depths.peer_to_peer && depths.offers(frame) => Some(frame),
        (None, _) => None,
        _ => return Err(refused("the peer does not make the connection ready as we can")),
    };
    let outgoing_reads = depth(options.outgoing_reads, given.map(|(ird, _)| ird));
    if outgoing_reads == 0 && ready == Some(ReadyToReceive::Read) {
        return Err(refused("the peer lets no read come"));
    }
    Ok(Agreement {
        crc: options.crc || reply.crc,
        frame: frame_size(stream, options),
        incoming_reads: options.incoming_reads,
        outgoing_reads,
        active: true,
        ready,
    })
}

async fn answer(stream: &mut TcpStream, options: &Options) -> io::Result<Agreement> {
    let request = frame(stream, Kind::Request).await?;
    let given = request.depths.map(|depths| (depths.ird, depths.ord));
    let given = given.or(of_legacy(&request.private));
    let outgoing_reads = depth(options.outgoing_reads, given.map(|(ird, _)| ird));
    let incoming_reads = depth(options.incoming_reads, given.map(|(_, ord)| ord));
    // Whoever needs no reads of its own may say so; but we must be able to read.
    let depths = request.depths.filter(|depths| depths.peer_to_peer);
    let frames = [ReadyToReceive::Write, ReadyToReceive::Read, ReadyToReceive::Empty];
    let ready = depths.and_then(|depths| frames.into_iter().find(|frame| depths.offers(*frame)));
    let refusal = if request.markers {
        Some("it wants markers in its stream, which are not made here")
    } else if outgoing_reads == 0 {
        Some("it lets no RDMA read come")
    } else if depths.is_some() && ready.is_none() {
        Some("it does not say how it makes a connection ready")
    } else {
        None
    };
    let ours = Depths { ird: incoming_reads, ord: outgoing_reads, ..Depths::default() };
    let legacy_reply = request.depths.is_none() && given.is_some();
    let reply = Frame {
        kind: Kind::Reply,
        markers: false,
        crc: options.crc || request.crc,
        rejected: refusal.is_some(),
        revision: request.revision,
        depths: request.depths.is_some().then_some(ours.ready_with(ready)),
        private: if legacy_reply { legacy(outgoing_reads, incoming_reads) } else { Vec::new() },
    };
    stream.write_all(&reply.encode()).await?;
    if let Some(why) = refusal {
        return Err(refused(format!("the peer was refused: {why}")));
    }
    Ok(Agreement {
        crc: reply.crc,
        frame: frame_size(stream, options),
        incoming_reads,
        outgoing_reads,
        active: false,
        ready,
    })
}

/// The depths as peers say them that do not know revision 2 of MPA (MS-SMBD 6.1).
fn legacy(ird: u16, ord: u16) -> Vec<u8> {
    [u32::from(ird).to_be_bytes(), u32::from(ord).to_be_bytes()].concat()
}

/// The depths that such a peer says. Some say them in the order of their own bytes, which is seen by
/// that nobody has depths of 65,536 and more.
fn of_legacy(private: &[u8]) -> Option<(u16, u16)> {
    let (ird, ord) = (private.first_chunk::<4>()?, private.get(4..8)?.first_chunk::<4>()?);
    let small = |bytes: [u8; 4]| {
        let either = u16::try_from(u32::from_be_bytes(bytes));
        either.or(u16::try_from(u32::from_le_bytes(bytes))).unwrap_or(u16::MAX)
    };
    Some((small(*ird), small(*ord)))
}

/// Most bytes of a frame: what was chosen, or what a segment of TCP holds (RFC 5044 5.1).
fn frame_size(stream: &TcpStream, options: &Options) -> usize {
    options.frame.or_else(|| segment_size(stream)).unwrap_or(ETHERNET)
}

#[expect(unsafe_code, reason = "TCP_MAXSEG has no safe wrapper")]
fn segment_size(stream: &TcpStream) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let (socket, value) = (stream.as_raw_fd(), (&raw mut bytes).cast());
    // SAFETY: the option writes one int, which lives that long, and `len` is its size.
    let failed = unsafe {
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, value, &raw mut len)
    };
    (failed == 0).then(|| usize::try_from(bytes).ok()).flatten().filter(|bytes| *bytes > 0)
}

/// A socket with the protocol of its connection.
#[derive(Debug)]
struct Socket {
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    local: SocketAddr,
    protocol: Protocol,
    ending: bool,
}

impl Socket {
    fn new(stream: TcpStream, agreed: Agreement) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        tracing::debug!(%peer, ?agreed, "an iWARP connection has begun");
        let protocol = Protocol::new(agreed);
        Ok(Self { stream: Arc::new(stream), peer, local, protocol, ending: false })
    }

    /// Writes what can be written; whether that was something.
    fn write(&mut self, context: Option<&mut Context<'_>>) -> io::Result<bool> {
        if !self.protocol.has_output() {
            return Ok(false);
        }
        if let Some(context) = context
            && self.stream.poll_write_ready(context)?.is_pending()
        {
            return Ok(false);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let used = self.protocol.slices(&mut slices);
        match self.stream.try_write_vectored(&slices[..used]) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                self.protocol.written(written);
                Ok(true)
            }
            // The next look asks to be woken.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Reads what is there; whether that was something.
    fn read(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        if self.stream.poll_read_ready(context)?.is_pending() {
            return Ok(false);
        }
        let stream = &self.stream;
        let got = self.protocol.receive(|into, room| stream.try_read_buf(&mut into.limit(room)));
        match got {
            Ok(0) => {
                self.protocol.lose(Lost::Ended);
                Ok(true)
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Moves everything on; whether anything moved.
    fn advance(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let wrote = self.write(Some(context))?;
        Ok(self.read(context)? || wrote)
    }

    /// Says what is still to be said, if that can be done at once, and says nothing more.
    fn close(&mut self) {
        // What does not fit into the socket now is not waited for: the connection is lost.
        let _ = self.write(None);
        // One that is gone already needs no end.
        let _ = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
    }
}

impl Endpoint for Socket {
    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn local(&self) -> SocketAddr {
        self.local
    }

    fn unacknowledged(&self) -> Box<dyn Fn() -> u64 + Send + Sync> {
        // It does not keep the socket open.
        let stream = Arc::downgrade(&self.stream);
        Box::new(move || stream.upgrade().map_or(0, |stream| unacknowledged(&stream)))
    }

    fn register(&mut self, memory: Memory) -> Result<Part, Memory> {
        self.protocol.register(memory)
    }

    fn deregister(&mut self, token: u32) -> Option<Memory> {
        self.protocol.deregister(token)
    }

    fn post_receive(&mut self, len: usize) -> Result<(), Lost> {
        self.protocol.post_receive(len)
    }

    fn post_send(&mut self, message: Message) -> Result<(), Lost> {
        self.protocol.post_send(message)
    }

    fn post_read(&mut self, id: u64, from: Vec<Part>, buffer: Vec<u8>) -> Result<(), Lost> {
        self.protocol.post_read(id, &from, buffer)
    }

    fn post_write(&mut self, id: u64, to: Vec<Part>, data: Bytes) -> Result<(), Lost> {
        self.protocol.post_write(id, to, data)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Completion, Lost>> {
        loop {
            if let Some(done) = self.protocol.completion() {
                return Poll::Ready(Ok(done));
            }
            if let Some(lost) = self.protocol.lost().cloned() {
                self.close();
                return Poll::Ready(Err(lost));
            }
            if self.ending && !self.protocol.has_output() {
                self.protocol.lose(Lost::GivenUp);
                continue;
            }
            match self.advance(context) {
                Ok(true) => {}
                Ok(false) => {
                    self.protocol.rest();
                    return Poll::Pending;
                }
                Err(error) => self.protocol.lose(error.into()),
            }
        }
    }

    fn disconnect(&mut self) {
        self.ending = true;
    }

    fn abort(&mut self) {
        // The peer hears of it at once, and nobody waits for what is still to be sent.
        let nought = Some(std::time::Duration::ZERO);
        let _ = rustix::net::sockopt::set_socket_linger(&*self.stream, nought);
        self.protocol.lose(Lost::GivenUp);
    }
}

#[expect(unsafe_code, reason = "SIOCOUTQ has no safe wrapper")]
fn unacknowledged(stream: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request (the same number as TIOCOUTQ) writes one int, which lives that long.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } < 0;
    if failed { u64::MAX } else { u64::try_from(bytes).unwrap_or(0) }
}

/// iWARP over the system's TCP.
#[derive(Debug, Clone, Default)]
pub struct Iwarp {
    /// What each connection wants.
    pub options: Options,
}

impl Provider for Iwarp {
    fn connect(&self, to: SocketAddr) -> Doing<'_, Box<dyn Endpoint>> {
        Box::pin(async move { connect(TcpStream::connect(to).await?, &self.options).await })
    }

    fn listen(&self, at: SocketAddr) -> Doing<'_, Box<dyn Listener>> {
        let options = self.options.clone();
        Box::pin(async move {
            let listener = TcpListener::bind(at).await?;
            Ok(Box::new(Listening { listener, options }) as Box<dyn Listener>)
        })
    }
}

/// A port where peers connect.
#[derive(Debug)]
struct Listening {
    listener: TcpListener,
    options: Options,
}

impl Listener for Listening {
    fn local(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn accept(&self) -> Doing<'_, Box<dyn Endpoint>> {
        Box::pin(async move { accept(self.listener.accept().await?.0, &self.options).await })
    }
}
