//! An open remote file.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use block_io::IoFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use smb_protocol::{
    Command, HeaderFlags, NtStatus,
    fscc::{
        FsctlCode, InfoClass,
        file_info::Standard,
        fsctl::{FileRange, encode_zero_data},
    },
    msg::{flush, ioctl, query_directory, query_info, read, set_info, write},
};

use crate::{
    ConnectOptions, Error, Result,
    connection::Response,
    direct::Transfer,
    handshake::Limits,
    open::{Live, Open, Patience},
    rules::Rule,
};

/// Requests of one large read or write that are in flight together.
const WINDOW: usize = 8;
/// Most bytes of ranges that are asked for at once.
const RANGES_LEN: u32 = 64 * 1024;

/// A file on a share. All operations may run concurrently.
///
/// As a [`block_io::File`] it is what virtual disks are kept in. Dropping it closes it at the
/// server without waiting; [`block_io::File::close`] waits.
#[derive(Debug)]
pub struct RemoteFile {
    open: Arc<Open>,
    sparse: AtomicBool,
}

impl Drop for RemoteFile {
    fn drop(&mut self) {
        self.open.close_soon();
    }
}

/// Whether a request was sent before in the same session, on a channel that was lost: it is then
/// told to the server (MS-SMB2 3.2.4.1), which carries it out when its first copy is over.
#[derive(Default)]
struct Again(Option<u64>);

impl Again {
    /// The flags of the next attempt.
    fn flags(&mut self, live: &Live, options: &ConnectOptions) -> HeaderFlags {
        let generation = live.link.generation;
        let again = self.0.replace(generation) == Some(generation);
        match again && live.link.dialect().is_smb3() && options.keeps(Rule::ReplayFlag) {
            true => HeaderFlags::REPLAY,
            false => HeaderFlags::NONE,
        }
    }
}

impl RemoteFile {
    pub(crate) fn new(open: Arc<Open>) -> Self {
        Self { open, sparse: AtomicBool::new(false) }
    }

    /// Path below the share.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.open.path
    }

    /// Whether the server has promised to keep the file open when the connection is lost.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.open.is_durable()
    }

    /// Fills `buf` from `offset` and gives how much there was before the end of the file.
    ///
    /// # Errors
    /// [`Error::Status`] if the server refuses, [`Error::WritesLost`] and [`Error::HandleLost`] if it has lost the open,
    /// [`Error::Disconnected`] if the connection could not be restored in time.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let piece = self.piece(|limits| limits.max_read)?;
        if buf.len() <= piece {
            return self.read_piece(offset, buf).await;
        }
        let mut pieces = (offset..).step_by(piece).zip(buf.chunks_mut(piece));
        let mut flight = FuturesOrdered::new();
        let mut done = 0;
        loop {
            while flight.len() < WINDOW
                && let Some((at, part)) = pieces.next()
            {
                let wanted = part.len();
                flight.push_back(async move { (self.read_piece(at, part).await, wanted) });
            }
            let Some((got, wanted)) = flight.next().await else { return Ok(done) };
            let got = got?;
            done += got;
            if got < wanted {
                return Ok(done);
            }
        }
    }

    /// How much one request moves at most.
    fn piece(&self, limit: impl Fn(&Limits) -> u32) -> Result<usize> {
        let main = self.open.live()?.link.channels.main();
        Ok(main.max_io(limit(&main.limits), self.open.session.options.max_io) as usize)
    }

    /// Reads what one request can; more of them if a channel takes less than it did.
    async fn read_piece(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut patience = Patience::default();
        let mut done = 0;
        while done < buf.len() {
            let live = self.open.live()?;
            match self.try_read(&live, offset + done as u64, &mut buf[done..]).await {
                Ok((got, wanted)) => {
                    done += got;
                    if got < wanted {
                        break;
                    }
                }
                Err(error) => self.open.recover(&mut patience, &live, error).await?,
            }
        }
        Ok(done)
    }

    /// One READ: the bytes that came, and that were asked for.
    async fn try_read(&self, live: &Live, offset: u64, buf: &mut [u8]) -> Result<(usize, usize)> {
        let channel = live.pick();
        let most = channel.max_io(channel.limits.max_read, self.open.session.options.max_io);
        let len = buf.len().min(most as usize);
        if let Some(handle) = channel.by_rdma(len) {
            let transfer = Transfer::new(&channel, handle, live, offset);
            let (response, data, got) = transfer.read(wire_len(len)).await?;
            if response.header.status == NtStatus::END_OF_FILE {
                return Ok((0, len));
            }
            self.expect(&response, "read")?;
            buf[..got].copy_from_slice(&data[..got]);
            return Ok((got, len));
        }
        let compressed = channel.compression(live.tree, wire_len(len)).is_some();
        let request = read::Request {
            flags: if compressed { read::REQUEST_COMPRESSED } else { 0 },
            length: wire_len(len),
            offset,
            file_id: live.file,
            ..Default::default()
        };
        let cost = channel.cost(wire_len(len));
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let ticket =
            channel.submit(Command::READ, live.tree, cost, HeaderFlags::NONE, encode).await?;
        let response = ticket.reply().await?;
        if response.header.status == NtStatus::END_OF_FILE {
            return Ok((0, len));
        }
        self.expect(&response, "read")?;
        let data = read::Response::parse(&response.body)?.data;
        if data.len() > len {
            return Err(Error::Protocol("more read than was asked for".into()));
        }
        buf[..data.len()].copy_from_slice(data);
        Ok((data.len(), len))
    }

    /// Writes all of `buf` at `offset`.
    ///
    /// Of writes that overlap and are under way together any may be the last. One whose answer is
    /// lost with its connection is sent again, and then comes over the others; who begins a write
    /// when the one before it on the same range is answered sees each take effect once.
    ///
    /// # Errors
    /// Those of [`RemoteFile::read`].
    pub async fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let piece = self.piece(|limits| limits.max_write)?;
        if buf.len() <= piece {
            return self.write_piece(offset, buf).await;
        }
        let mut pieces = (offset..).step_by(piece).zip(buf.chunks(piece));
        let mut flight = FuturesUnordered::new();
        loop {
            while flight.len() < WINDOW
                && let Some((at, part)) = pieces.next()
            {
                flight.push(self.write_piece(at, part));
            }
            match flight.next().await {
                Some(written) => written?,
                None => return Ok(()),
            }
        }
    }

    /// Writes what one request can; more of them if a channel takes less than it did. Each request
    /// has an answer, or was lost with its channel, before it is sent again.
    async fn write_piece(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let mut patience = Patience::default();
        let mut again = Again::default();
        let mut done = 0;
        while done < buf.len() {
            let live = self.open.live()?;
            let flags = again.flags(&live, &self.open.session.options);
            match self.try_write(&live, flags, offset + done as u64, &buf[done..]).await {
                Ok(written) => {
                    done += written;
                    again = Again::default();
                }
                Err(error) => self.open.recover(&mut patience, &live, error).await?,
            }
        }
        Ok(())
    }

    /// One WRITE: the bytes that were written.
    async fn try_write(
        &self,
        live: &Live,
        flags: HeaderFlags,
        offset: u64,
        buf: &[u8],
    ) -> Result<usize> {
        let channel = live.pick();
        let most = channel.max_io(channel.limits.max_write, self.open.session.options.max_io);
        let len = buf.len().min(most as usize);
        let response = if let Some(handle) = channel.by_rdma(len) {
            let transfer = Transfer::new(&channel, handle, live, offset);
            transfer.write(buf[..len].to_vec(), flags).await?
        } else {
            let (file_id, data) = (live.file, &buf[..len]);
            let request = write::Request { offset, file_id, data, ..Default::default() };
            let encode = |out: &mut Vec<u8>| {
                out.reserve(len + 128);
                request.encode(out);
            };
            let cost = channel.cost(wire_len(len));
            let ticket = channel.submit(Command::WRITE, live.tree, cost, flags, encode).await?;
            ticket.reply().await?
        };
        self.expect(&response, "write")?;
        let count = write::Response::parse(&response.body)?.count as usize;
        self.open.note_write(live)?;
        if count != len {
            return Err(Error::Protocol(format!("wrote {count} bytes of {len}")));
        }
        Ok(len)
    }

    fn expect(&self, response: &Response, what: &str) -> Result<()> {
        crate::session::expect(response, || format!("{what} {:?}", self.open.path))
    }

    /// Sends a request that may be sent again on a new connection, until it is answered.
    /// `changes` says that it changes the file, so that its success counts as a write.
    async fn ask(
        &self,
        command: Command,
        moves: u32,
        changes: bool,
        encode: impl Fn(&Live, &mut Vec<u8>),
    ) -> Result<Response> {
        let mut patience = Patience::default();
        let mut again = Again::default();
        loop {
            let live = self.open.live()?;
            let flags = again.flags(&live, &self.open.session.options);
            let error = match self.ask_once(&live, command, moves, flags, &encode).await {
                Ok(response) if response.header.status.is_success() => {
                    let counted = if changes { self.open.note_write(&live) } else { Ok(()) };
                    match counted {
                        Ok(()) => return Ok(response),
                        Err(error) => error,
                    }
                }
                Ok(response) => {
                    let status = response.header.status;
                    let error = Error::status(format!("use {:?}", self.open.path), status);
                    if !error.is_disconnect() && status != NtStatus::FILE_NOT_AVAILABLE {
                        return Ok(response);
                    }
                    error
                }
                Err(error) => error,
            };
            self.open.recover(&mut patience, &live, error).await?;
        }
    }

    async fn ask_once(
        &self,
        live: &Live,
        command: Command,
        moves: u32,
        flags: HeaderFlags,
        encode: &impl Fn(&Live, &mut Vec<u8>),
    ) -> Result<Response> {
        let channel = live.pick();
        let cost = channel.cost(moves);
        let encode = |out: &mut Vec<u8>| encode(live, out);
        channel.submit(command, live.tree, cost, flags, encode).await?.reply().await
    }

    /// Makes every write that was acknowledged before durable.
    ///
    /// # Errors
    /// Those of [`RemoteFile::read`].
    pub async fn sync(&self) -> Result<()> {
        let mut writes = self.open.writes();
        let encode = |live: &Live, out: &mut Vec<u8>| {
            flush::Request { file_id: live.file }.encode(out);
        };
        let response = self.ask(Command::FLUSH, 0, false, encode).await?;
        self.expect(&response, "flush")?;
        if !self.open.session.options.keeps(Rule::FlushBarrier) {
            writes = self.open.writes();
        }
        self.open.note_flush(writes);
        Ok(())
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// Those of [`RemoteFile::read`].
    pub async fn length(&self) -> Result<u64> {
        Ok(self.standard().await?.end_of_file)
    }

    async fn standard(&self) -> Result<Standard> {
        let encode = |live: &Live, out: &mut Vec<u8>| {
            query_info::Request {
                info_type: query_info::InfoType::FILE,
                class: InfoClass::STANDARD,
                output_len: 24,
                file_id: live.file,
                ..Default::default()
            }
            .encode(out);
        };
        let response = self.ask(Command::QUERY_INFO, 0, false, encode).await?;
        self.expect(&response, "ask the length of")?;
        let output = query_directory::Response::parse(&response.body)?.output;
        Ok(Standard::parse(output)?)
    }

    /// Grows or cuts the file.
    ///
    /// # Errors
    /// Those of [`RemoteFile::read`].
    pub async fn set_length(&self, len: u64) -> Result<()> {
        let encode = |live: &Live, out: &mut Vec<u8>| {
            set_info::Request {
                info_type: query_info::InfoType::FILE,
                class: InfoClass::END_OF_FILE,
                file_id: live.file,
                input: &len.to_le_bytes(),
                ..Default::default()
            }
            .encode(out);
        };
        let response = self.ask(Command::SET_INFO, 0, true, encode).await?;
        self.expect(&response, "set the length of")
    }

    /// Has the server reserve space for everything before `end`, which must not lie before the
    /// end of the file.
    async fn reserve(&self, end: u64) -> Result<()> {
        let encode = |live: &Live, out: &mut Vec<u8>| {
            set_info::Request {
                info_type: query_info::InfoType::FILE,
                class: InfoClass::ALLOCATION,
                file_id: live.file,
                input: &end.to_le_bytes(),
                ..Default::default()
            }
            .encode(out);
        };
        let response = self.ask(Command::SET_INFO, 0, true, encode).await?;
        self.expect(&response, "reserve space for")
    }

    async fn control(&self, code: FsctlCode, input: &[u8], max_output: u32) -> Result<Response> {
        let encode = |live: &Live, out: &mut Vec<u8>| {
            ioctl::Request {
                code,
                file_id: live.file,
                input,
                max_output,
                flags: ioctl::IS_FSCTL,
                ..Default::default()
            }
            .encode(out);
        };
        let changes = code == FsctlCode::SET_ZERO_DATA;
        self.ask(Command::IOCTL, max_output.max(wire_len(input.len())), changes, encode).await
    }

    /// Makes a range read as zeros and gives its space back.
    ///
    /// # Errors
    /// Those of [`RemoteFile::read`].
    pub async fn zero(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        // A file gives space back only once it is marked; that fails where it makes no sense.
        if !self.sparse.swap(true, Ordering::Relaxed) {
            let response = self.control(FsctlCode::SET_SPARSE, &[], 0).await?;
            if response.header.status != NtStatus::SUCCESS {
                tracing::debug!(status = %response.header.status, "file cannot be made sparse");
            }
        }
        let mut input = Vec::with_capacity(16);
        encode_zero_data(range, &mut input);
        let response = self.control(FsctlCode::SET_ZERO_DATA, &input, 0).await?;
        self.expect(&response, "zero a range of")
    }

    /// The parts of a range that may hold data, ascending and disjoint.
    ///
    /// # Errors
    /// Those of [`RemoteFile::read`].
    pub async fn ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let mut input = Vec::with_capacity(16);
            FileRange { offset: at, length: range.end - at }.encode(&mut input);
            let code = FsctlCode::QUERY_ALLOCATED_RANGES;
            let response = self.control(code, &input, RANGES_LEN).await?;
            let more = response.header.status == NtStatus::BUFFER_OVERFLOW;
            if !more {
                self.expect(&response, "ask the ranges of")?;
            }
            let output = ioctl::Response::parse(&response.body)?.output;
            for FileRange { offset, length } in FileRange::parse_list(output)? {
                let part = offset.max(at)..(offset + length).min(range.end);
                if part.is_empty() || offset + length <= at {
                    return Err(Error::Protocol("ranges are not in order".into()));
                }
                at = part.end;
                match found.last_mut() {
                    Some(last) if last.end == part.start => last.end = part.end,
                    _ => found.push(part),
                }
            }
            if !more {
                break;
            }
            if output.is_empty() {
                return Err(Error::Protocol("more ranges, but none of them".into()));
            }
        }
        Ok(found)
    }
}

fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Whether a server refused because it cannot do such a thing at all.
fn cannot(error: &Error) -> bool {
    matches!(
        error.nt_status(),
        Some(
            NtStatus::NOT_SUPPORTED | NtStatus::INVALID_DEVICE_REQUEST | NtStatus::NOT_IMPLEMENTED
        )
    )
}

impl RemoteFile {
    fn check_writable(&self) -> block_io::Result<()> {
        if self.open.options.write { Ok(()) } else { Err(block_io::Error::ReadOnly) }
    }
}

impl block_io::File for RemoteFile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        Box::pin(async move { Ok(self.read(offset, buf).await?) })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.check_writable()?;
            Ok(self.write(offset, buf).await?)
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            if !self.open.options.write {
                return Ok(());
            }
            Ok(self.sync().await?)
        })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Box::pin(async move { Ok(self.length().await?) })
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.check_writable()?;
            Ok(self.set_length(len).await?)
        })
    }

    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.check_writable()?;
            match self.zero(range).await {
                Err(error) if cannot(&error) => {
                    Err(block_io::Error::Unsupported("making holes on this share"))
                }
                other => Ok(other?),
            }
        })
    }

    /// The protocol reserves from the start of a file to some place at or behind its end, so this
    /// may reserve more than `range`, and cannot where the file goes on behind it.
    fn allocate(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.check_writable()?;
            if range.end < self.length().await? {
                return Err(block_io::Error::Unsupported("reserving a part of a file on a share"));
            }
            match self.reserve(range.end).await {
                Err(error) if cannot(&error) => {
                    Err(block_io::Error::Unsupported("reserving space on this share"))
                }
                Err(error) => Err(error.into()),
                // Some servers agree and do nothing.
                Ok(()) if self.standard().await?.allocation_size < range.end => {
                    Err(block_io::Error::Unsupported("reserving space on this share"))
                }
                Ok(()) => Ok(()),
            }
        })
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move {
            match self.ranges(range.clone()).await {
                Err(error) if cannot(&error) => {
                    let end = range.end.min(self.length().await?);
                    Ok(Some(range.start..end).into_iter().filter(|r| !r.is_empty()).collect())
                }
                other => Ok(other?),
            }
        })
    }

    fn is_read_only(&self) -> bool {
        !self.open.options.write
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(async move { Ok(self.open.close().await?) })
    }
}
