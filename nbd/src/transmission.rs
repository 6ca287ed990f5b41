//! Requests and replies (proto.md, "Transmission").
//!
//! Requests run side by side and are answered as they are done, by one task: while a reply cannot
//! be sent, or too much is under way, nothing more is read.

use std::{future::Future, pin::Pin};

use block_io::Error as StorageError;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};

use crate::{
    Device, Error,
    handshake::Session,
    wire::{
        ALLOCATION_ID, Errno, MAX_REQUEST, REQUEST_LEN, Request, chunk, chunk_head, command,
        extent, flag, simple_reply,
    },
};

/// Bytes of reads and writes that are under way for one client, at most.
pub const MAX_IN_FLIGHT: usize = 2 * MAX_REQUEST as usize;
/// Requests that are under way for one client, at most.
pub const MAX_REQUESTS: usize = 512;
/// Extents that one answer to BLOCK_STATUS has at most.
const MAX_EXTENTS: usize = 2048;
/// Room for input that an idle connection holds.
const INPUT: usize = 64 << 10;
/// Replies are sent when so much of them is ready, or nothing more is at once.
const SEND_AT: usize = 256 << 10;

/// A request that is done: what to send, and how much was under way for it.
struct Done {
    reply: BytesMut,
    weight: usize,
}

type Running = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>;

/// Received bytes that are not handled yet. Waiting for more can be given up at any time.
struct Input<R> {
    reader: R,
    bytes: BytesMut,
}

impl<R: AsyncRead + Unpin> Input<R> {
    /// The next request with what is to be written, if all of it is here.
    fn next(&mut self) -> Result<Option<(Request, Bytes)>, Error> {
        let Some(head) = self.bytes.first_chunk::<REQUEST_LEN>() else { return Ok(None) };
        let request = Request::parse(head).ok_or(Error::Protocol("not a request"))?;
        let payload = request.payload();
        if payload > MAX_REQUEST as usize {
            // Answering would mean to take in all that follows.
            return Err(Error::Protocol("a write is longer than the server takes"));
        }
        let missing = (REQUEST_LEN + payload).saturating_sub(self.bytes.len());
        if missing > 0 {
            self.bytes.reserve(missing);
            return Ok(None);
        }
        let data = self.bytes.split_to(REQUEST_LEN + payload).freeze();
        Ok(Some((request, data.slice(REQUEST_LEN..))))
    }

    /// Waits for more bytes; `false` at the end.
    async fn more(&mut self) -> Result<bool, Error> {
        self.bytes.reserve(INPUT / 4);
        Ok(self.reader.read_buf(&mut self.bytes).await? > 0)
    }
}

/// Serves a client that has chosen its disk.
///
/// # Errors
/// [`Error`] when the client breaks the protocol or the connection breaks off.
pub async fn serve<S>(stream: S, session: Session) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, mut writer): (ReadHalf<S>, _) = tokio::io::split(stream);
    let mut input = Input { reader, bytes: BytesMut::with_capacity(INPUT) };
    let session = std::sync::Arc::new(session);
    let mut running = Running::new();
    let mut weight = 0;
    let mut out = BytesMut::new();
    let ended = loop {
        // What is here is begun as long as there is room.
        let room =
            |weight, running: &Running| weight < MAX_IN_FLIGHT && running.len() < MAX_REQUESTS;
        while room(weight, &running) {
            match input.next() {
                Ok(None) => break,
                Err(error) => return Err(error),
                Ok(Some((request, _))) if request.command == command::DISC => {
                    // All requests before it are answered first (proto.md, NBD_CMD_DISC).
                    while let Some(done) = running.next().await {
                        out.unsplit(done.reply);
                    }
                    writer.write_all(&out).await?;
                    return Ok(());
                }
                Ok(Some((request, data))) => {
                    let session = session.clone();
                    let cost = (request.length.min(MAX_REQUEST) as usize).max(REQUEST_LEN);
                    weight += cost;
                    running.push(Box::pin(async move {
                        Done { reply: handle(&session, request, &data).await, weight: cost }
                    }));
                }
            }
        }
        tokio::select! {
            biased;
            Some(done) = running.next(), if !running.is_empty() => {
                weight -= done.weight;
                out.unsplit(done.reply);
                // Those that are done at the same time share a send.
                while out.len() < SEND_AT
                    && let Some(Some(done)) = futures_util::FutureExt::now_or_never(running.next())
                {
                    weight -= done.weight;
                    out.unsplit(done.reply);
                }
                writer.write_all(&out).await?;
                out.clear();
            }
            more = input.more(), if room(weight, &running) => {
                if !more? {
                    break input.bytes.is_empty();
                }
            }
        }
    };
    // The client is gone; what it had begun is finished, so that nothing lands late.
    while running.next().await.is_some() {}
    if ended { Ok(()) } else { Err(Error::Protocol("the connection ended within a request")) }
}

fn errno(error: &StorageError) -> Errno {
    match error {
        StorageError::ReadOnly => Errno::Perm,
        StorageError::OutOfRange { .. } | StorageError::Misaligned { .. } => Errno::Inval,
        StorageError::Unsupported(_) => Errno::NotSup,
        StorageError::Closed => Errno::Shutdown,
        StorageError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Errno::NoSpc
        }
        _ => Errno::Io,
    }
}

/// Carries out a request; gives its whole reply.
async fn handle(session: &Session, request: Request, data: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let result = match request.command {
        command::READ => match read(session, &request, &mut out).await {
            Ok(()) => return out,
            Err(error) => Err(error),
        },
        command::BLOCK_STATUS => match status(session, &request, &mut out).await {
            Ok(()) => return out,
            Err(error) => Err(error),
        },
        _ => change(&session.device, &request, data).await,
    };
    out.clear();
    match result {
        Err(error) if session.structured => {
            chunk_head(&mut out, chunk::DONE, chunk::ERROR, request.cookie, 6);
            out.put_u32(error as u32);
            out.put_u16(0);
        }
        result => simple_reply(&mut out, request.cookie, result.err()),
    }
    out
}

/// Fails unless the request lies on the disk and has no flags but these.
fn check(device: &Device, request: &Request, flags: u16, beyond: Errno) -> Result<(), Errno> {
    if request.flags & !flags != 0 {
        return Err(Errno::Inval);
    }
    let end = request.offset.checked_add(request.length.into());
    if end.is_none_or(|end| end > device.size()) { Err(beyond) } else { Ok(()) }
}

async fn read(session: &Session, request: &Request, out: &mut BytesMut) -> Result<(), Errno> {
    let (device, cookie, len) = (&session.device, request.cookie, request.length as usize);
    check(device, request, flag::DF, Errno::Inval)?;
    if request.length > MAX_REQUEST {
        return Err(Errno::Overflow);
    }
    if !session.structured {
        let mut bytes = Vec::with_capacity(16 + len);
        let mut head = BytesMut::with_capacity(16);
        simple_reply(&mut head, cookie, None);
        bytes.extend_from_slice(&head);
        device.read(request.offset, len, &mut bytes).await.map_err(|error| errno(&error))?;
        *out = BytesMut::from(Bytes::from(bytes));
        return Ok(());
    }
    /// A read that is not longer is not looked into for holes.
    const WORTH: usize = 64 << 10;
    let range = request.offset..request.offset + len as u64;
    let pieces = if len <= WORTH || request.flags & flag::DF != 0 {
        vec![(len as u64, true)]
    } else {
        let pieces = device.extents(range.clone(), usize::MAX).await;
        pieces.map_err(|error| errno(&error))?
    };
    out.reserve(len + 64);
    let (mut at, count) = (request.offset, pieces.len());
    for (index, (piece, has_data)) in pieces.into_iter().enumerate() {
        let done = if index + 1 == count { chunk::DONE } else { 0 };
        if has_data {
            chunk_head(out, done, chunk::OFFSET_DATA, cookie, 8 + piece as usize);
            out.put_u64(at);
            let mut bytes = Vec::new();
            let got = device.read(at, piece as usize, &mut bytes).await;
            got.map_err(|error| errno(&error))?;
            out.put_slice(&bytes);
        } else {
            chunk_head(out, done, chunk::OFFSET_HOLE, cookie, 12);
            out.put_u64(at);
            out.put_u32(u32::try_from(piece).map_err(|_| Errno::Overflow)?);
        }
        at += piece;
    }
    if count == 0 {
        chunk_head(out, chunk::DONE, chunk::NONE, cookie, 0);
    }
    Ok(())
}

async fn status(session: &Session, request: &Request, out: &mut BytesMut) -> Result<(), Errno> {
    let device = &session.device;
    check(device, request, flag::REQ_ONE, Errno::Inval)?;
    if !session.allocation || request.length == 0 {
        return Err(Errno::Inval);
    }
    let most = if request.flags & flag::REQ_ONE != 0 { 1 } else { MAX_EXTENTS };
    let range = request.offset..request.offset + u64::from(request.length);
    let pieces = device.extents(range, most).await.map_err(|error| errno(&error))?;
    let cookie = request.cookie;
    chunk_head(out, chunk::DONE, chunk::BLOCK_STATUS, cookie, 4 + 8 * pieces.len());
    out.put_u32(ALLOCATION_ID);
    for (len, data) in pieces {
        out.put_u32(u32::try_from(len).map_err(|_| Errno::Overflow)?);
        out.put_u32(if data { 0 } else { extent::HOLE | extent::ZERO });
    }
    Ok(())
}

/// Everything that is answered without data.
async fn change(device: &Device, request: &Request, data: &[u8]) -> Result<(), Errno> {
    let storage = |error: StorageError| errno(&error);
    let (at, len) = (request.offset, u64::from(request.length));
    match request.command {
        command::FLUSH => return device.flush().await.map_err(storage),
        // What is read ahead is the page cache's business.
        command::CACHE => return check(device, request, 0, Errno::Inval),
        command::WRITE | command::TRIM | command::WRITE_ZEROES => {}
        _ => return Err(Errno::Inval),
    }
    let mut flags = flag::FUA;
    if request.command == command::WRITE_ZEROES {
        flags |= flag::NO_HOLE;
    }
    if device.is_read_only() {
        return Err(Errno::Perm);
    }
    check(device, request, flags, Errno::NoSpc)?;
    match request.command {
        command::WRITE => device.write(at, data).await,
        command::TRIM => device.trim(at, len).await,
        _ => device.zero(at, len, request.flags & flag::NO_HOLE != 0).await,
    }
    .map_err(storage)?;
    if request.flags & flag::FUA != 0 {
        device.flush().await.map_err(storage)?;
    }
    Ok(())
}
