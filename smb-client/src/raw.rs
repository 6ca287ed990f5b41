//! A blocking connection without tasks, for load generators.
//!
//! The same handshake and protection as [`crate::Session`], but whoever holds it drives it: queue
//! requests, [`send`](RawConnection::send) them together, and
//! [`receive`](RawConnection::receive) whatever has come. No hand-over between tasks and no
//! allocation per request, so that the generator costs little beside the server it measures.

mod block;
mod calls;

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

pub use self::block::Block;

use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, MessageId, NtStatus, TreeId,
    compression::{self, Compression, Packed},
    crypto::{Cipher, Role, SigningAlgorithm, random},
    fscc::FileAttributes,
    header::{FRAME_LEN, HEADER_LEN, frame_len, frame_prefix},
    msg::{
        close, create,
        create::{Access, CreateOptions, Disposition, ShareAccess},
        read, tree_connect,
        tree_connect::ShareFlags,
        write,
    },
};

use crate::{
    Compress, ConnectOptions, Error, Result,
    compress::unpack,
    connection::CREDIT,
    crypt::{Crypt, Guard, begin_frame, end_frame, end_packed, split_compound},
    handshake::{Limits, Purpose, establish},
    open::{IMPERSONATION, wire_path},
    request::{self, Credits},
};

/// Room in the receive buffer beyond the longest payload.
const OVERHEAD: usize = 64 * 1024;
/// Data of an unprotected write that are so long are sent from where they are.
const NOT_COPIED: usize = 64 * 1024;

/// A response as [`RawConnection::receive`] shows it.
#[derive(Debug)]
pub struct Answer<'a> {
    /// What the method that queued the request gave.
    pub message: u64,
    /// The server's verdict.
    pub status: NtStatus,
    /// The bytes of a READ.
    pub data: &'a [u8],
    /// The file of a CREATE.
    pub file: Option<FileId>,
}

/// One request of a message of several.
#[derive(Debug)]
pub struct Compounded<'a> {
    /// Command of the request.
    pub command: Command,
    /// Whether it is about the file of the one before it.
    pub related: bool,
    /// The encoded body, without header.
    pub body: &'a [u8],
}

/// A blocking connection with a session, and with one share and one file if it was asked for them.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    host: String,
    crypt: Arc<Crypt>,
    seal: bool,
    limits: Limits,
    next_message: u64,
    credits: u32,
    wanted_credits: u32,
    in_flight: u32,
    tree: TreeId,
    file: FileId,
    out: Vec<u8>,
    /// Bytes from `taken` to `filled` have come and are not yet handled.
    received: Vec<u8>,
    taken: usize,
    filled: usize,
    guard: Guard,
    /// When reads and writes are compressed, and how they are on this share.
    compress: Compress,
    compression: Option<Compression>,
    compress_from: u32,
    /// The messages of a frame that came compressed.
    unpacked: Vec<u8>,
    /// What went wrong when a request was sent as it was queued.
    failed: Option<Error>,
}

impl RawConnection {
    /// Connects, logs on, connects to a share and opens a file: to read, or to read and write
    /// and made if it is missing. Others may do as they like with it meanwhile.
    ///
    /// Blocks the thread, and so must not be called from a task of an asynchronous runtime.
    ///
    /// # Errors
    /// [`Error`] if the connection, the logon, the share or the file is refused.
    pub fn connect(options: &ConnectOptions, share: &str, path: &str, write: bool) -> Result<Self> {
        let mut connection = Self::connect_share(options, share)?;
        let longest = connection.limits.max_read.min(8 << 20) as usize;
        connection.received.resize(longest + OVERHEAD, 0);
        connection.open(path, write)?;
        Ok(connection)
    }

    /// Connects, logs on and connects to a share. Takes 64 KiB for what is received: enough for
    /// everything but reads. Blocks the thread as [`RawConnection::connect`] does.
    ///
    /// # Errors
    /// [`Error`] if the connection, the logon or the share is refused.
    pub fn connect_share(options: &ConnectOptions, share: &str) -> Result<Self> {
        Self::connect_share_as(options, share, random())
    }

    /// As [`RawConnection::connect_share`], as the client of that GUID: a server keeps opens for a
    /// client, by whatever connection it comes back.
    ///
    /// # Errors
    /// [`Error`] if the connection, the logon or the share is refused.
    pub fn connect_share_as(
        options: &ConnectOptions,
        share: &str,
        client: [u8; 16],
    ) -> Result<Self> {
        let mut connection = Self::log_on(options, client)?;
        connection.tree_connect(share)?;
        Ok(connection)
    }

    /// Connects and logs on. Blocks the thread as [`RawConnection::connect`] does.
    fn log_on(options: &ConnectOptions, client: [u8; 16]) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(lost)?;
        let established = runtime.block_on(establish(options, client, Purpose::new()))?;
        let stream = established.wire.into_tcp()?.into_std().and_then(|stream| {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(options.request_timeout))?;
            Ok(stream)
        });
        Ok(Self {
            stream: stream.map_err(lost)?,
            host: options.host.clone(),
            guard: established.crypt.guard(established.seal_all),
            crypt: established.crypt,
            seal: established.seal_all,
            limits: established.limits,
            next_message: established.next_message,
            credits: established.credits,
            wanted_credits: options.credits.into(),
            in_flight: 0,
            tree: TreeId(0),
            file: FileId::default(),
            out: Vec::new(),
            received: vec![0; OVERHEAD],
            taken: 0,
            filled: 0,
            compress: options.compress,
            compression: None,
            compress_from: options.compress_from,
            unpacked: Vec::new(),
            failed: None,
        })
    }

    /// The dialect in use.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.crypt.dialect
    }

    /// How messages are signed, if they are.
    #[must_use]
    pub fn signing(&self) -> Option<SigningAlgorithm> {
        (self.guard == Guard::Signed).then(|| self.crypt.signing.algorithm())
    }

    /// How messages are encrypted, if they are.
    #[must_use]
    pub fn cipher(&self) -> Option<Cipher> {
        match (&self.crypt.sealing, self.guard) {
            (Some(keys), Guard::Sealed) => Some(keys.0.cipher()),
            _ => None,
        }
    }

    /// How reads and writes are compressed, if they are.
    #[must_use]
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Longest read and write in bytes.
    #[must_use]
    pub fn max_io(&self) -> (u32, u32) {
        let most = if self.limits.large_mtu { 8 << 20 } else { CREDIT };
        (self.limits.max_read.min(most), self.limits.max_write.min(most))
    }

    fn tree_connect(&mut self, share: &str) -> Result<()> {
        let path = format!("\\\\{}\\{share}", self.host);
        let request = tree_connect::Request { flags: 0, path };
        if self.guard == Guard::Plain {
            self.guard = Guard::Signed;
        }
        let (header, body) = self.call(Command::TREE_CONNECT, |out| request.encode(out))?;
        expect(&header, || format!("connect to share {share:?}"))?;
        self.tree = header.tree_id();
        let flags = tree_connect::Response::parse(&body)?.flags;
        if flags.has(ShareFlags::ENCRYPT_DATA) {
            self.seal = true;
        }
        let compressed = match self.compress {
            Compress::Never => false,
            Compress::IfAsked => flags.has(ShareFlags::COMPRESS_DATA),
            Compress::Always => true,
        };
        self.compression = self.crypt.compression.filter(|_| compressed);
        if self.seal && self.crypt.sealing.is_none() {
            return Err(Error::NotOffered("encryption, which the share demands"));
        }
        self.guard = self.crypt.guard(self.seal);
        Ok(())
    }

    fn open(&mut self, path: &str, write: bool) -> Result<()> {
        let read = Access::READ_DATA | Access::READ_ATTRIBUTES | Access::SYNCHRONIZE;
        let request = create::Request {
            impersonation: IMPERSONATION,
            access: if write {
                read | Access::WRITE_DATA | Access::APPEND_DATA | Access::WRITE_ATTRIBUTES
            } else {
                read
            },
            attributes: FileAttributes::NORMAL,
            share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            disposition: if write { Disposition::OPEN_IF } else { Disposition::OPEN },
            options: CreateOptions::NON_DIRECTORY_FILE,
            name: wire_path(path)?,
            ..Default::default()
        };
        let (header, body) = self.call(Command::CREATE, |out| request.encode(out))?;
        expect(&header, || format!("open {path:?}"))?;
        self.file = create::Response::parse(&body)?.file_id;
        Ok(())
    }

    /// Sends one request and waits for its answer; nothing else may be in flight.
    fn call(
        &mut self,
        command: Command,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(Header, Vec<u8>)> {
        let asked = self.next_message;
        self.queue(command, 1, encode);
        self.send()?;
        let mut answer = None;
        while answer.is_none() {
            self.receive_messages(|header, body| {
                if header.message_id.0 == asked {
                    answer = Some((*header, body.to_vec()));
                }
                Ok(())
            })?;
        }
        answer.ok_or(Error::Closed)
    }

    /// Whether there are credits for a read or write of `len` bytes.
    #[must_use]
    pub fn can_queue(&self, len: u32) -> bool {
        self.credits >= u32::from(self.charge(len))
    }

    fn charge(&self, len: u32) -> u16 {
        if !self.limits.large_mtu || len == 0 {
            return 1;
        }
        u16::try_from((len - 1) / CREDIT + 1).unwrap_or(u16::MAX)
    }

    /// Queues a read; [`RawConnection::can_queue`] must have said yes.
    pub fn queue_read(&mut self, offset: u64, len: u32) -> u64 {
        let compressed = self.compression.is_some() && len >= self.compress_from;
        let flags = if compressed { read::REQUEST_COMPRESSED } else { 0 };
        let request =
            read::Request { flags, length: len, offset, file_id: self.file, ..Default::default() };
        self.queue(Command::READ, self.charge(len), |out| request.encode(out))
    }

    /// Queues any request, with one credit; `encode` appends its body. For measuring and testing
    /// what no file of this client asks; its answer is shown by [`RawConnection::receive_all`].
    pub fn queue_request(&mut self, command: Command, encode: impl FnOnce(&mut Vec<u8>)) -> u64 {
        self.queue(command, 1, encode)
    }

    /// The identifier of the open file.
    #[must_use]
    pub fn file_id(&self) -> FileId {
        self.file
    }

    /// Queues a write; [`RawConnection::can_queue`] must have said yes.
    pub fn queue_write(&mut self, offset: u64, data: &[u8]) -> u64 {
        self.queue_write_to(self.file, offset, data)
    }

    /// Queues a CREATE that makes a new file to be written and fails if there is one;
    /// [`RawConnection::can_queue`] must have said yes. The answer has its file.
    ///
    /// # Errors
    /// [`Error::Path`] for a path that no file can have.
    pub fn queue_create(&mut self, path: &str) -> Result<u64> {
        let request = create::Request {
            impersonation: IMPERSONATION,
            access: Access::READ_ATTRIBUTES
                | Access::SYNCHRONIZE
                | Access::WRITE_DATA
                | Access::APPEND_DATA
                | Access::WRITE_ATTRIBUTES,
            attributes: FileAttributes::NORMAL,
            share: ShareAccess::READ,
            disposition: Disposition::CREATE,
            options: CreateOptions::NON_DIRECTORY_FILE,
            name: wire_path(path)?,
            ..Default::default()
        };
        Ok(self.queue(Command::CREATE, 1, |out| request.encode(out)))
    }

    /// Queues a CREATE of a file or an empty directory that is gone once its answer's file is
    /// closed; [`RawConnection::can_queue`] must have said yes.
    ///
    /// # Errors
    /// [`Error::Path`] for a path that no file can have.
    pub fn queue_remove(&mut self, path: &str) -> Result<u64> {
        let request = create::Request {
            impersonation: IMPERSONATION,
            access: Access::DELETE,
            share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            disposition: Disposition::OPEN,
            options: CreateOptions::DELETE_ON_CLOSE,
            name: wire_path(path)?,
            ..Default::default()
        };
        Ok(self.queue(Command::CREATE, 1, |out| request.encode(out)))
    }

    /// Queues a write to a file of [`RawConnection::queue_create`];
    /// [`RawConnection::can_queue`] must have said yes.
    pub fn queue_write_to(&mut self, file_id: FileId, offset: u64, data: &[u8]) -> u64 {
        let request = write::Request { offset, file_id, data, ..Default::default() };
        let charge = self.charge(u32::try_from(data.len()).unwrap_or(u32::MAX));
        self.queue(Command::WRITE, charge, |out| request.encode(out))
    }

    /// As [`RawConnection::queue_write`] with the block's data. Long ones without protection are
    /// sent at once, with what is queued; [`RawConnection::send`] says if that failed.
    pub fn queue_block(&mut self, offset: u64, block: &Block) -> u64 {
        let data = block.data();
        let copied = self.guard != Guard::Plain || self.compression.is_some();
        if copied || data.len() < NOT_COPIED {
            return self.queue_write(offset, data);
        }
        let request = write::Request { offset, file_id: self.file, data, ..Default::default() };
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let (charge, at) = (self.charge(len), self.out.len());
        let message = self.queue(Command::WRITE, charge, |out| request.encode_head(len, out));
        if self.failed.is_some() {
            return message;
        }
        let whole = self.out.len() - at - FRAME_LEN + data.len();
        let prefix = frame_prefix(whole).expect("requests are bounded below 16 MiB");
        self.out[at..at + FRAME_LEN].copy_from_slice(&prefix);
        let sent = block.send_behind(&self.out, &mut self.stream);
        self.failed = sent.map_err(lost).err();
        self.out.clear();
        message
    }

    /// Queues the close of a file of [`RawConnection::queue_create`] or
    /// [`RawConnection::queue_remove`]; [`RawConnection::can_queue`] must have said yes.
    pub fn queue_close(&mut self, file_id: FileId) -> u64 {
        let request = close::Request { flags: 0, file_id };
        self.queue(Command::CLOSE, 1, |out| request.encode(out))
    }

    /// Queues requests with their bodies as one message, each with one credit; one that is `related`
    /// is about the file of the one before it. Their answers are shown by
    /// [`RawConnection::receive_all`].
    pub fn queue_compound(&mut self, requests: &[Compounded<'_>]) {
        let guard = self.guard;
        let at = begin_frame(&mut self.out, guard);
        for (index, request) in requests.iter().enumerate() {
            let mut header = self.header(request.command, 1);
            if request.related {
                header.flags |= HeaderFlags::RELATED;
            }
            let start = self.out.len();
            header.encode(&mut self.out);
            self.out.extend_from_slice(request.body);
            if index + 1 < requests.len() {
                let len = (self.out.len() - start).next_multiple_of(8);
                self.out.resize(start + len, 0);
                let next = u32::try_from(len).expect("requests are bounded below 16 MiB");
                let field = start + Header::NEXT_COMMAND_AT;
                self.out[field..field + 4].copy_from_slice(&next.to_le_bytes());
            }
            if guard == Guard::Signed
                && let Err(error) = self.crypt.signing.sign(&mut self.out[start..], Role::Client)
            {
                self.failed.get_or_insert(error.into());
            }
        }
        // What is signed is so message by message.
        let whole = if guard == Guard::Signed { Guard::Plain } else { guard };
        if let Err(error) = end_frame(&mut self.out, at, whole, Some(&self.crypt)) {
            self.failed.get_or_insert(error);
        }
    }

    fn queue(&mut self, command: Command, charge: u16, encode: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let header = self.header(command, charge);
        let at = begin_frame(&mut self.out, self.guard);
        header.encode(&mut self.out);
        encode(&mut self.out);
        let worth = self.out.len() - at >= self.compress_from as usize;
        let packs = command == Command::WRITE && worth;
        let ended = match self.compression.filter(|_| packs) {
            None => end_frame(&mut self.out, at, self.guard, Some(&self.crypt)),
            Some(agreed) => end_packed(&mut self.out, at, self.guard, &self.crypt, &agreed),
        };
        if let Err(error) = ended {
            self.out.truncate(at);
            self.failed.get_or_insert(error);
        }
        header.message_id.0
    }

    /// The header of the next request.
    fn header(&mut self, command: Command, charge: u16) -> Header {
        let message = self.next_message;
        self.next_message += u64::from(charge);
        self.credits = self.credits.saturating_sub(charge.into());
        self.in_flight += u32::from(charge);
        let credits = Credits {
            charge,
            held: self.credits + self.in_flight,
            wanted: self.wanted_credits,
            large_mtu: self.limits.large_mtu,
        };
        request::header(command, self.crypt.session_id, self.tree, MessageId(message), credits)
    }

    /// Sends all that is queued at once.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if the connection is lost, now or when something was queued.
    pub fn send(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).map_err(lost)?;
            self.out.clear();
        }
        Ok(())
    }

    /// Waits for something to come and shows all answers that are complete; there may be none
    /// yet. Gives their number.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if the connection is lost; [`Error::Protocol`] and [`Error::NotAuthentic`] for an answer
    /// that cannot be one.
    pub fn receive(&mut self, mut show: impl FnMut(Answer<'_>)) -> Result<usize> {
        self.receive_messages(|header, body| {
            let mut answer = Answer {
                message: header.message_id.0,
                status: header.status,
                data: &[],
                file: None,
            };
            match header.command {
                _ if header.status != NtStatus::SUCCESS => {}
                Command::READ => answer.data = read::Response::parse(body)?.data,
                Command::CREATE => answer.file = Some(create::Response::parse(body)?.file_id),
                _ => {}
            }
            show(answer);
            Ok(())
        })
    }

    /// As [`RawConnection::receive`], with header and body of each answer. Interim answers and
    /// what the server says unasked are passed over.
    ///
    /// # Errors
    /// Those of [`RawConnection::receive`].
    pub fn receive_all(&mut self, mut show: impl FnMut(&Header, &[u8])) -> Result<usize> {
        self.receive_messages(|header, body| {
            show(header, body);
            Ok(())
        })
    }

    /// The socket, to bound how long sending may block.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn receive_messages(
        &mut self,
        mut show: impl FnMut(&Header, &[u8]) -> Result<()>,
    ) -> Result<usize> {
        let count = loop {
            match self.stream.read(&mut self.received[self.filled..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.map_err(lost)?,
            }
        };
        if count == 0 {
            return Err(Error::disconnected("the server closed it"));
        }
        self.filled += count;
        let (mut at, mut shown) = (self.taken, 0);
        while let Some(prefix) = self.received[at..self.filled].first_chunk::<FRAME_LEN>() {
            let len = frame_len(*prefix)?;
            if len < compression::HEADER_LEN || FRAME_LEN + len > self.received.len() {
                return Err(Error::Protocol(format!("a message of {len} bytes")));
            }
            if at + FRAME_LEN + len > self.received.len() {
                // Its end has no room behind what was handled: move its start to the front.
                self.received.copy_within(at..self.filled, 0);
                self.filled -= at;
                at = 0;
            }
            let Some(frame) = self.received[at..self.filled].get_mut(FRAME_LEN..FRAME_LEN + len)
            else {
                break;
            };
            at += FRAME_LEN + len;
            let (plain, sealed) = Crypt::open(Some(&self.crypt), frame)?;
            let mut plain = &mut frame[plain];
            if Packed::starts(plain) {
                self.unpacked.clear();
                let Limits { max_read, max_write, max_transact, .. } = self.limits;
                let largest = max_read.max(max_write).max(max_transact).min(16 << 20);
                let agreed = self.crypt.compression.as_ref();
                unpack(agreed, plain, largest as usize, &mut self.unpacked)?;
                plain = &mut self.unpacked;
            }
            while !plain.is_empty() {
                let (header, len) = split_compound(plain)?;
                let (message, rest) = plain.split_at_mut(len);
                plain = rest;
                if header.message_id == MessageId::UNSOLICITED {
                    continue;
                }
                Crypt::check(Some(&self.crypt), message, &header, sealed, self.guard)?;
                self.credits = self.credits.saturating_add(header.credits.into()).min(65536);
                if header.status == NtStatus::PENDING && header.flags.has(HeaderFlags::ASYNC) {
                    continue;
                }
                // One message in flight is one credit at least; several are booked together.
                let charge = u32::from(header.credit_charge.max(1));
                self.in_flight = self.in_flight.saturating_sub(charge);
                show(&header, &message[HEADER_LEN..])?;
                shown += 1;
            }
        }
        self.taken = at;
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        } else if self.received.len() - self.filled < FRAME_LEN {
            self.received.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
        }
        Ok(shown)
    }
}

fn expect(header: &Header, what: impl FnOnce() -> String) -> Result<()> {
    match header.status {
        NtStatus::SUCCESS => Ok(()),
        status => Err(Error::status(what(), status)),
    }
}

fn lost(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            Error::disconnected("the server does not answer")
        }
        _ => Error::disconnected(error.to_string()),
    }
}
