//! SMB Direct (MS-SMBD): a [`Network`] whose connections are RDMA, and reads and writes by it.
//!
//! ```text
//!  requests, answers ─► Frames ─► rdma::Connection       a stream of frames, as TCP's, over messages
//!  data of a READ    ─► granted buffer ◄── the server writes ── answer ends the grant
//!  data of a WRITE   ─► granted buffer ──► the server reads ─── answer ends the grant
//! ```
//! Data go by RDMA only if they are long enough, and where nothing is signed (MS-SMB2 3.2.4.6, 3.2.4.7);
//! where messages are encrypted, encrypted as well, if the server can (2.2.43). All else is in the
//! messages.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use rdma::{
    Connection as Rdma, Handle, Memory, Parameters, Part,
    iwarp::{self, Iwarp},
    provider::Provider,
};
use smb_protocol::{
    Command, Dialect, FileId, HeaderFlags, NtStatus, TreeId,
    crypto::{OpeningKey, SealingKey},
    header::{FRAME_LEN, frame_len, frame_prefix},
    msg::{
        rdma::{
            BufferDescriptor, CHANNEL_RDMA_TRANSFORM, CHANNEL_RDMA_V1, CHANNEL_RDMA_V1_INVALIDATE,
            Transform,
        },
        read, write,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    Dialled, Error, Network, Result,
    connection::{Connection, Response},
    crypt::Guard,
    open::Live,
};

/// Reads and writes up to this many bytes go in their messages: a registration and an operation of
/// its own cost more than copying.
const IN_MESSAGE: usize = 4096;
/// Room beside the data of a read or write in its message.
const BESIDE: u32 = 4096;

/// How long an address of SMB Direct is tried where there is TCP as well.
const TRIED: Duration = Duration::from_secs(1);

/// The port of SMB Direct over iWARP (MS-SMBD 1.9).
pub const DIRECT_PORT: u16 = iwarp::PORT;

/// Reaches servers by SMB Direct.
#[derive(Debug, Clone)]
pub struct Direct {
    provider: Arc<dyn Provider>,
    parameters: Parameters,
    /// The port of SMB Direct, where the other one is TCP's and is gone on to.
    or_tcp: Option<u16>,
    of_this_system: bool,
}

impl Direct {
    /// By iWARP over the system's TCP: no card is needed.
    #[must_use]
    pub fn iwarp() -> Self {
        Self { of_this_system: true, ..Self::over(Arc::new(Iwarp::default())) }
    }

    /// By another provider, or with other options of it.
    #[must_use]
    pub fn over(provider: Arc<dyn Provider>) -> Self {
        let parameters = Parameters::active();
        Self { provider, parameters, or_tcp: None, of_this_system: false }
    }

    /// At this port if the server is there, else by TCP at the port that is asked for. Each connection
    /// is tried so, also one in place of a lost one.
    #[must_use]
    pub fn at_port_or_tcp(self, port: u16) -> Self {
        Self { or_tcp: Some(port), ..self }
    }

    async fn dial(&self, to: SocketAddr) -> io::Result<Rdma> {
        let dial = async {
            let endpoint = self.provider.connect(to).await?;
            Rdma::active(endpoint, self.parameters.clone()).await
        };
        match self.or_tcp {
            Some(_) => tokio::time::timeout(TRIED, dial).await?,
            None => dial.await,
        }
    }
}

impl Network for Direct {
    fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + 'a>> {
        let port = self.or_tcp.unwrap_or(port);
        Box::pin(async move {
            let mut failed = io::Error::from(io::ErrorKind::NotFound);
            for to in tokio::net::lookup_host((host, port)).await? {
                match self.dial(to).await {
                    Ok(connection) => {
                        let handle = connection.handle().clone();
                        let (local, server) = (handle.local().ip(), handle.peer().ip());
                        let stream = Box::new(Frames::new(connection));
                        let (local, server) = (local.to_canonical(), server.to_canonical());
                        return Ok(Dialled { stream, local, server, direct: Some(handle) });
                    }
                    Err(error) => failed = error,
                }
            }
            Err(failed)
        })
    }

    fn or_tcp(&self) -> bool {
        self.or_tcp.is_some()
    }

    fn is_of_this_system(&self) -> bool {
        self.of_this_system
    }
}

/// Messages as a stream of frames: each behind its length, as on TCP.
#[derive(Debug)]
struct Frames {
    connection: Rdma,
    /// What has come and was not read: a length, then its message.
    prefix: Bytes,
    message: Bytes,
    /// What was written of the next message.
    begun: BytesMut,
}

impl Frames {
    fn new(connection: Rdma) -> Self {
        let (prefix, message) = (Bytes::new(), Bytes::new());
        Self { connection, prefix, message, begun: BytesMut::new() }
    }
}

impl AsyncRead for Frames {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.prefix.is_empty() && this.message.is_empty() {
            let Some(upper) = ready!(this.connection.poll_receive(context)) else {
                return match this.connection.handle().lost() {
                    None | Some(rdma::Lost::Ended | rdma::Lost::GivenUp) => Poll::Ready(Ok(())),
                    Some(lost) => Poll::Ready(Err(lost.into())),
                };
            };
            this.message = Bytes::from(upper.bytes).slice(upper.start..);
            let prefix = frame_prefix(this.message.len());
            this.prefix = Bytes::copy_from_slice(&prefix.ok_or(io::ErrorKind::InvalidData)?);
        }
        for part in [&mut this.prefix, &mut this.message] {
            let here = part.len().min(into.remaining());
            into.put_slice(&part[..here]);
            part.advance(here);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Frames {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // What the session's credits allow to be sent is bounded, so nobody waits here.
        let this = &mut *self;
        this.begun.extend_from_slice(bytes);
        while let Some(prefix) = this.begun.first_chunk::<FRAME_LEN>() {
            let len = frame_len(*prefix).map_err(|_| io::ErrorKind::InvalidData)?;
            if this.begun.len() < FRAME_LEN + len {
                break;
            }
            this.begun.advance(FRAME_LEN);
            let message = this.begun.split_to(len).freeze();
            this.connection.handle().post(message)?;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.handle().disconnect();
        Poll::Ready(Ok(()))
    }
}

impl Connection {
    /// How data of `len` bytes go by RDMA, if they do: the connection is one of SMB Direct, and nothing
    /// is signed, or all is encrypted, data too (MS-SMB2 3.2.4.6, 3.2.4.7).
    pub fn by_rdma(&self, len: usize) -> Option<&Handle> {
        let can = match self.crypt.guard(self.is_sealed()) {
            Guard::Plain => self.crypt.dialect.is_smb3(),
            Guard::Signed => false,
            Guard::Sealed => self.crypt.seals_remote,
        };
        self.direct().filter(|_| can && len > IN_MESSAGE)
    }

    /// The keys of data that go by RDMA, if they are encrypted there.
    fn remote_keys(&self) -> Option<&(SealingKey, OpeningKey)> {
        let sealed = self.crypt.guard(self.is_sealed()) == Guard::Sealed;
        self.crypt.sealing.as_deref().filter(|_| sealed)
    }

    /// Most bytes of one read or write, by what the transport says.
    pub fn most_by_transport(&self) -> u32 {
        let Some(direct) = self.direct() else { return u32::MAX };
        let agreed = direct.agreed();
        match self.by_rdma(usize::MAX) {
            Some(_) => agreed.max_read_write_size,
            // The server is the one that puts together what we send, and we what it sends.
            None => {
                let least = Parameters::active().max_fragmented_size;
                agreed.max_fragmented_send_size.min(least).saturating_sub(BESIDE)
            }
        }
    }
}

/// One read or write by RDMA. It is a task of its own: memory that the server may touch stays where
/// it is until the server has answered, whatever becomes of who asked.
#[derive(Debug)]
pub(crate) struct Transfer {
    channel: Arc<Connection>,
    handle: Handle,
    tree: TreeId,
    file: FileId,
    offset: u64,
}

impl Transfer {
    /// A transfer at `offset` of an open, over one channel.
    pub fn new(channel: &Arc<Connection>, handle: &Handle, live: &Live, offset: u64) -> Self {
        let (channel, handle) = (channel.clone(), handle.clone());
        Self { channel, handle, tree: live.tree, file: live.file, offset }
    }

    /// Reads up to `len` bytes: the answer, and the buffer, of which the first bytes were filled that
    /// the second number says.
    pub async fn read(self, len: u32) -> Result<(Response, Vec<u8>, usize)> {
        let done = tokio::spawn(async move {
            let memory = Memory::writable(vec![0; len as usize]);
            let (part, info, channel) = self.grant(memory).await?;
            let request = read::Request {
                length: len,
                offset: self.offset,
                file_id: self.file,
                channel,
                remaining: len,
                channel_info: &info,
                ..Default::default()
            };
            let encode = |out: &mut Vec<u8>| request.encode(out);
            let answer = self.ask(Command::READ, len, HeaderFlags::NONE, encode).await;
            let memory = self.handle.deregister(part.token).await;
            let response = answer?;
            if response.header.status != NtStatus::SUCCESS {
                return Ok((response, Vec::new(), 0));
            }
            let there = read::Response::parse(&response.body)?.remaining as usize;
            let mut buffer = memory.map(Memory::into_vec).ok_or_else(|| self.channel.reason())?;
            let data = buffer.get_mut(..there);
            let data =
                data.ok_or_else(|| Error::Protocol("more read than was asked for".into()))?;
            if let Some((_, key)) = self.channel.remote_keys() {
                open(key, &response.body, data)?;
            }
            Ok((response, buffer, there))
        });
        done.await.map_err(|_| Error::Closed)?
    }

    /// Writes `data`: the answer.
    pub async fn write(self, mut data: Vec<u8>, flags: HeaderFlags) -> Result<Response> {
        let done = tokio::spawn(async move {
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let keys = self.channel.remote_keys();
            let sealed = keys.map(|keys| keys.0.seal_apart(&mut data)).transpose()?;
            let (part, mut info, mut channel) =
                self.grant(Memory::Readable(Bytes::from(data))).await?;
            if let Some((nonce, signature)) = sealed {
                let mut transform = Vec::new();
                let descriptors = &info;
                Transform { channel, nonce: &nonce, signature, descriptors }.encode(&mut transform);
                (info, channel) = (transform, CHANNEL_RDMA_TRANSFORM);
            }
            let request = write::Request {
                offset: self.offset,
                file_id: self.file,
                channel,
                remaining: len,
                channel_info: &info,
                ..Default::default()
            };
            let encode = |out: &mut Vec<u8>| request.encode_remote(out);
            let answer = self.ask(Command::WRITE, len, flags, encode).await;
            self.handle.deregister(part.token).await;
            answer
        });
        done.await.map_err(|_| Error::Closed)?
    }

    /// Grants the server memory: what it is called, as it stands in a request, and the channel that
    /// the request names.
    async fn grant(&self, memory: Memory) -> Result<(Part, Vec<u8>, u32)> {
        let part = self.handle.register(memory).await.map_err(|_| self.channel.reason())?;
        let Part { offset, token, length } = part;
        let mut info = Vec::with_capacity(BufferDescriptor::LEN);
        BufferDescriptor { offset, token, length }.encode(&mut info);
        let channel = match self.channel.crypt.dialect == Dialect::SMB_3_0 {
            true => CHANNEL_RDMA_V1,
            false => CHANNEL_RDMA_V1_INVALIDATE,
        };
        Ok((part, info, channel))
    }

    async fn ask(
        &self,
        command: Command,
        moves: u32,
        flags: HeaderFlags,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Response> {
        let cost = self.channel.cost(moves);
        self.channel.submit(command, self.tree, cost, flags, encode).await?.reply().await
    }
}

/// Decrypts what the answer to a READ says how it was encrypted (MS-SMB2 3.2.5.11).
fn open(key: &OpeningKey, answer: &[u8], data: &mut [u8]) -> Result<()> {
    let forged = || Error::NotAuthentic("data by RDMA are not what the server encrypted");
    if !read::Response::is_transform(answer) {
        return Err(Error::NotAuthentic("data by RDMA are not encrypted"));
    }
    let transform = Transform::parse(read::Response::parse(answer)?.data)?;
    key.open_apart(transform.nonce, &transform.signature, data).map_err(|_| forged())
}
