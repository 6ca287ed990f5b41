//! What comes from a client as a stream of bytes: frames put together, and the data of large writes
//! on their way to their files.
//!
//! ```text
//!  socket ──► bytes ──► whole frames                            (small messages, many at once)
//!     │         └─────► a piece of a large WRITE ──► its file   (it came with its header)
//!     └─────► pipe ───► the rest of it ────────────► its file   (no copy but the page cache's)
//! ```
//!
//! After a write that went to its file in pieces only as much is received at once as the header of
//! another has: what stands behind it goes through the pipe.

use std::{
    io,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use block_io::SplicePipe;
use smb_protocol::{
    header::{FRAME_LEN, frame_len},
    msg::write::DATA_OFFSET,
};

use super::Placement;
use crate::dropped::Dropped;

/// Room for input that an idle connection does not hold.
const INPUT: usize = 256 << 10;
/// About so much of a large write goes from the buffer to its file at once: few enough that the
/// second copy comes from the CPU's cache.
const PIECE: usize = 256 << 10;
/// Most that goes through the pipe at once.
const PIPED: usize = 1 << 20;
/// Less than this is not worth a pipe.
const LEAST_PIPED: usize = 16 << 10;
/// Frame and message up to the data of a WRITE.
const WRITE_HEAD: usize = FRAME_LEN + DATA_OFFSET;
/// Room beyond the payload that a message may have: headers, contexts, names.
const OVERHEAD: usize = 64 << 10;
/// Buffers kept for the next connection that has something to do, and the largest that is kept.
const POOLED: usize = 32;
const POOLED_SIZE: usize = 4 << 20;

/// Buffers that no connection uses at the moment.
static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
/// Pipes that no connection uses at the moment, all of them empty.
static PIPES: Mutex<Vec<SplicePipe>> = Mutex::new(Vec::new());

/// A buffer with room for input, empty.
pub(crate) fn take_buffer() -> Vec<u8> {
    let pooled = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
    pooled.unwrap_or_else(|| Vec::with_capacity(INPUT))
}

/// Keeps a buffer for whoever needs one next.
pub(crate) fn give_buffer(mut buffer: Vec<u8>) {
    let mut pool = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.len() < POOLED && buffer.capacity() <= POOLED_SIZE && buffer.capacity() >= INPUT {
        buffer.clear();
        pool.push(buffer);
    }
}

/// A pipe, if there may be another.
fn take_pipe() -> Option<SplicePipe> {
    let pooled = PIPES.lock().unwrap_or_else(PoisonError::into_inner).pop();
    pooled.or_else(|| SplicePipe::new().ok())
}

fn give_pipe(pipe: SplicePipe) {
    let mut pool = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.len() < POOLED && pipe.held() == 0 {
        pool.push(pipe);
    }
}

/// Where bytes come from.
pub trait ByteSource {
    /// Puts up to `most` bytes that are there behind the others; 0 at the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing yet, else what has failed.
    fn read_now(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<usize>;

    /// Puts up to `most` bytes that are there into a pipe; 0 at the end.
    ///
    /// # Errors
    /// As [`ByteSource::read_now`]; [`io::ErrorKind::Unsupported`] if these bytes are no system's.
    fn splice_now(&mut self, _pipe: &mut SplicePipe, _most: usize) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where the data of the message go whose beginning stands in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// They are received with their message.
    Whole,
    /// Nobody has looked yet.
    Unknown,
    /// They go to their file as they come.
    Placed,
}

/// What has come from the client and is not answered yet.
#[derive(Debug)]
pub struct Input {
    bytes: Vec<u8>,
    /// Where the first byte not yet looked at stands in `bytes`.
    at: usize,
    /// Bytes that are still to come of the frame whose beginning is in `bytes`.
    missing: usize,
    /// How much is received at once at most: a large frame alone, so that it stays in the CPU's
    /// cache until it is written and nothing behind it has to be moved to the front.
    at_once: usize,
    data: Data,
    /// Bytes of these data that have gone to their file and are not here any more.
    placed: usize,
    /// What came of them behind `bytes`.
    pipe: Option<SplicePipe>,
    /// The message before had data that were placed.
    again: bool,
    /// There may be a pipe.
    splices: bool,
}

impl Input {
    /// Nothing has come; `splices` says whether its source can fill a pipe.
    pub fn new(splices: bool) -> Self {
        Self {
            bytes: Vec::new(),
            at: 0,
            missing: FRAME_LEN,
            at_once: INPUT,
            data: Data::Unknown,
            placed: 0,
            pipe: None,
            again: false,
            splices,
        }
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that are worth waiting for: with fewer nothing can be done.
    pub fn wanted(&self) -> usize {
        self.missing.min(self.at_once)
    }

    /// The next complete message, if there is one, and how many bytes of its data have gone to
    /// their file and are not in it.
    ///
    /// # Errors
    /// It is no direct-TCP frame, or longer than any may be.
    pub fn next_message(
        &mut self,
        placement: &mut impl Placement,
    ) -> Result<Option<(&mut [u8], usize)>, Dropped> {
        self.place(placement)?;
        let Some(range) = self.message(placement.max_message())? else {
            if self.data == Data::Unknown && self.bytes.len() >= WRITE_HEAD {
                let may = placement.may_place(&self.bytes[FRAME_LEN..]);
                self.data = if may { Data::Placed } else { Data::Whole };
                self.place(placement)?;
            }
            if self.data == Data::Placed {
                self.receive_data();
            }
            return Ok(None);
        };
        self.at = range.end;
        self.data = Data::Unknown;
        self.again = self.placed > 0;
        Ok(Some((&mut self.bytes[range], std::mem::take(&mut self.placed))))
    }

    /// Where the next message stands, if all of it has come.
    fn message(&mut self, max: usize) -> Result<Option<Range<usize>>, Dropped> {
        let rest = &self.bytes[self.at..];
        let head = if self.again { WRITE_HEAD.saturating_sub(rest.len()) } else { 0 };
        self.at_once = if head > 0 { head } else { INPUT };
        let Some(prefix) = rest.first_chunk::<FRAME_LEN>() else {
            self.missing = FRAME_LEN;
            self.bring_forward();
            return Ok(None);
        };
        let len = frame_len(*prefix).map_err(|_| Dropped::Protocol("not a direct-TCP frame"))?;
        if len > max + OVERHEAD {
            return Err(Dropped::TooLong(len));
        }
        let start = self.at + FRAME_LEN;
        let end = start + len - self.placed;
        let there = self.bytes.len() + self.piped();
        if there >= end {
            self.pour()?;
            return Ok(Some(start..end));
        }
        self.missing = end - there;
        self.bring_forward();
        if len < 2 * PIECE {
            self.data = Data::Whole;
        }
        if head == 0 && len > INPUT {
            self.at_once = self.missing;
        }
        Ok(None)
    }

    /// Puts what has come of the data of the message at the front into their file, if it is a large
    /// write that allows that; the room they took is used again.
    fn place(&mut self, placement: &mut impl Placement) -> Result<(), Dropped> {
        if self.data != Data::Placed {
            return Ok(());
        }
        let message = &mut self.bytes[FRAME_LEN..];
        let here = message.len() - DATA_OFFSET;
        let pipe = self.pipe.as_mut().filter(|pipe| pipe.held() > 0);
        if pipe.is_some() || (here >= PIECE / 2 && self.missing > 0) {
            let piped = pipe.is_some();
            match placement.place(message, self.placed, self.missing, pipe) {
                Some(taken) => {
                    self.placed += taken;
                    if !piped {
                        self.bytes.drain(WRITE_HEAD..WRITE_HEAD + taken);
                    }
                }
                None => {
                    self.data = Data::Whole;
                    self.pour()?;
                }
            }
        }
        Ok(())
    }

    /// The next bytes are data to be placed: a piece of them, or a pipe full.
    fn receive_data(&mut self) {
        let room = (WRITE_HEAD + PIECE).saturating_sub(self.bytes.len()).max(1);
        self.at_once = self.missing.min(room);
        let worth_it = self.splices && self.missing >= LEAST_PIPED;
        if self.pipe.is_none() && worth_it && self.bytes.len() == WRITE_HEAD {
            self.pipe = take_pipe();
        }
    }

    /// Bytes in the pipe.
    fn piped(&self) -> usize {
        self.pipe.as_ref().map_or(0, SplicePipe::held)
    }

    /// Puts what is in the pipe behind the other bytes.
    fn pour(&mut self) -> Result<(), Dropped> {
        match &mut self.pipe {
            Some(pipe) if pipe.held() > 0 => Ok(pipe.pour(&mut self.bytes)?),
            _ => Ok(()),
        }
    }

    /// Puts what is left to the front.
    fn bring_forward(&mut self) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
    }

    /// Sees that there is room, for a large message so much that it comes in few calls.
    fn make_room(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes = take_buffer();
        }
        let room = self.missing.min(self.at_once);
        if self.bytes.capacity() - self.bytes.len() < room {
            self.bytes.reserve(room.max(INPUT));
        }
    }

    /// Receives what is there; `Some(0)` at the end, `None` if there is nothing yet.
    ///
    /// # Errors
    /// What has failed at the source.
    pub fn receive_now(&mut self, source: &mut impl ByteSource) -> Result<Option<usize>, Dropped> {
        let got = match &mut self.pipe {
            Some(pipe)
                if self.data == Data::Placed
                    && self.bytes.len() == WRITE_HEAD
                    && self.missing >= LEAST_PIPED =>
            {
                let most = self.missing.min(PIPED);
                source.splice_now(pipe, most)
            }
            _ => {
                self.pour()?;
                self.make_room();
                source.read_now(&mut self.bytes, self.at_once)
            }
        };
        match got {
            Ok(got) => {
                self.missing = self.missing.saturating_sub(got);
                Ok(Some(got))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error.into()),
            },
        }
    }

    /// Gives back what holds nothing, and a large buffer that holds so little.
    pub fn rest(&mut self, little: usize) {
        if self.bytes.len() <= little && self.bytes.capacity() > little {
            let few = self.bytes.as_slice().to_vec();
            give_buffer(std::mem::replace(&mut self.bytes, few));
        }
        if let Some(pipe) = self.pipe.take_if(|pipe| pipe.held() == 0 && self.bytes.is_empty()) {
            give_pipe(pipe);
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        give_buffer(std::mem::take(&mut self.bytes));
        if let Some(pipe) = self.pipe.take() {
            give_pipe(pipe);
        }
    }
}
