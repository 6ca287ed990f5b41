//! What comes from the peer, and what of ours it may touch (RFC 5040 5 and 7, RFC 5041 5).
//!
//! ```text
//!  segment ─► tagged    Write          ─► memory that was granted for it
//!          │            Read Response  ─► the oldest read that is under way, and nothing else
//!          └► untagged  Send           ─► the oldest receive that was posted
//!                       Read Request   ─► memory that was granted for it, into the answer
//!                       Terminate      ─► the end
//! ```
//! What breaks a rule is answered with a Terminate, and nothing has changed by it.

use std::collections::VecDeque;

use super::{
    segment::{Opcode, Place, QUEUE_READ, QUEUE_SEND, QUEUE_TERMINATE, ReadRequest, Segment},
    terminate::Terminate,
};
use crate::{
    memory::{Part, Refusal, Regions},
    provider::{Completion, Lost},
};

/// A rule that the peer broke, or its word that we did: what it is told, and why the connection ends.
#[derive(Debug)]
pub(super) struct Breach {
    pub tell: Option<Terminate>,
    pub lost: Lost,
}

impl Breach {
    fn of(tell: Terminate) -> Self {
        Self { tell: Some(tell), lost: Lost::Protocol(tell.to_string()) }
    }

    fn refused(refusal: Refusal, reads: bool) -> Self {
        Self { tell: Some(Terminate::refused(refusal, reads)), lost: refusal.into() }
    }
}

impl From<Terminate> for Breach {
    fn from(tell: Terminate) -> Self {
        Self::of(tell)
    }
}

/// A message that has come in part.
#[derive(Debug)]
struct Coming {
    bytes: Vec<u8>,
    room: usize,
    opcode: Opcode,
    token: u32,
}

/// A read of ours.
#[derive(Debug)]
struct Reading {
    id: u64,
    buffer: Vec<u8>,
    filled: usize,
}

/// A part of a read that was asked for, or one of nothing that makes a connection ready.
#[derive(Debug)]
struct Asked {
    sink: u32,
    offset: u64,
    left: u32,
    of_a_read: bool,
}

/// What an end waits for.
#[derive(Debug)]
pub(super) struct Incoming {
    receives: VecDeque<usize>,
    coming: Option<Coming>,
    /// The numbers of the next Send and the next Read Request.
    send_number: u32,
    read_number: u32,
    reads: VecDeque<Reading>,
    asked: VecDeque<Asked>,
    to_ask: VecDeque<ReadRequest>,
    /// Reads that may be under way at once: the peer's, and ours.
    depths: (usize, usize),
}

/// What the peer asks for with a Read Request: bytes of ours, and where they go.
pub(super) struct Answer {
    pub sink: u32,
    pub offset: u64,
    pub data: bytes::Bytes,
}

impl Incoming {
    pub fn new(incoming_reads: u16, outgoing_reads: u16) -> Self {
        Self {
            receives: VecDeque::new(),
            coming: None,
            send_number: 1,
            read_number: 1,
            reads: VecDeque::new(),
            asked: VecDeque::new(),
            to_ask: VecDeque::new(),
            depths: (usize::from(incoming_reads).max(1), usize::from(outgoing_reads).max(1)),
        }
    }

    pub fn post_receive(&mut self, len: usize) {
        self.receives.push_back(len);
    }

    /// A read, whose sink is called `sink`; its completion if there is nothing to be read.
    pub fn read(
        &mut self,
        id: u64,
        from: &[Part],
        buffer: Vec<u8>,
        sink: u32,
    ) -> Option<Completion> {
        let mut sink_offset = 0;
        for part in from.iter().filter(|part| part.length > 0) {
            let (length, source, source_offset) = (part.length, part.token, part.offset);
            self.to_ask.push_back(ReadRequest { sink, sink_offset, length, source, source_offset });
            sink_offset += u64::from(length);
        }
        if sink_offset == 0 {
            return Some(Completion::Read(id, buffer));
        }
        self.reads.push_back(Reading { id, buffer, filled: 0 });
        None
    }

    /// A read of nothing, which makes the connection ready.
    pub fn read_nothing(&mut self, sink: u32) -> ReadRequest {
        self.asked.push_back(Asked { sink, offset: 0, left: 0, of_a_read: false });
        ReadRequest { sink, sink_offset: 0, length: 0, source: sink, source_offset: 0 }
    }

    /// The next Read Request that may be sent.
    pub fn next_request(&mut self) -> Option<ReadRequest> {
        if self.asked.len() >= self.depths.1 {
            return None;
        }
        let request = self.to_ask.pop_front()?;
        self.asked.push_back(Asked {
            sink: request.sink,
            offset: request.sink_offset,
            left: request.length,
            of_a_read: true,
        });
        Some(request)
    }

    /// Nothing comes any more: buffers are let go.
    pub fn clear(&mut self) {
        self.receives.clear();
        self.reads.clear();
        self.asked.clear();
        self.to_ask.clear();
        self.coming = None;
    }

    /// Takes a segment. `answering` says how many reads of the peer are being answered.
    pub fn take(
        &mut self,
        segment: Segment<'_>,
        regions: &mut Regions,
        answering: usize,
        completions: &mut VecDeque<Completion>,
    ) -> Result<Option<Answer>, Breach> {
        match (segment.place, segment.opcode) {
            (Place::Tagged { token, offset }, Opcode::Write) => {
                let write = regions.write(token, offset, segment.data);
                write.map_err(|refusal| Breach::refused(refusal, false))?;
            }
            (Place::Tagged { token, offset }, Opcode::ReadResponse) => {
                let done = self.response(token, offset, &segment)?;
                completions.extend(done);
            }
            (Place::Untagged { queue: QUEUE_SEND, number, offset, token }, opcode) => {
                let done = self.send((number, offset, token), opcode, &segment, regions)?;
                completions.extend(done);
            }
            (Place::Untagged { queue: QUEUE_READ, number, offset, .. }, Opcode::ReadRequest) => {
                return self.request(number, offset, &segment, regions, answering).map(Some);
            }
            (Place::Untagged { queue: QUEUE_TERMINATE, .. }, Opcode::Terminate) => {
                let said = Terminate::parse(segment.data);
                let said = said.map_or_else(|| "without a reason".to_owned(), |it| it.to_string());
                return Err(Breach { tell: None, lost: Lost::Terminated(said) });
            }
            (Place::Untagged { queue: 3.., .. }, _) => return Err(Terminate::QUEUE.into()),
            _ => return Err(Terminate::OPCODE.into()),
        }
        Ok(None)
    }

    /// Data that we asked for: only what was asked for, in the order in which it was.
    fn response(
        &mut self,
        token: u32,
        offset: u64,
        segment: &Segment<'_>,
    ) -> Result<Option<Completion>, Breach> {
        let refused = |refusal| Breach::refused(refusal, false);
        let asked = self.asked.front_mut().filter(|asked| asked.sink == token);
        let asked = asked.ok_or_else(|| refused(Refusal::Token))?;
        let len = segment.data.len();
        let left = (asked.left as usize).checked_sub(len).filter(|_| asked.offset == offset);
        let left = left.ok_or_else(|| refused(Refusal::Bounds))?;
        // The last segment is the one with which nothing is left, and no other.
        if segment.last != (left == 0) {
            return Err(Terminate::STREAM.into());
        }
        asked.offset += len as u64;
        // It is no more than what was left before.
        asked.left = left as u32;
        let of_a_read = asked.of_a_read;
        if left == 0 {
            self.asked.pop_front();
        }
        let Some(read) = self.reads.front_mut().filter(|_| of_a_read) else { return Ok(None) };
        let place = read.buffer.get_mut(read.filled..read.filled + len);
        place.ok_or_else(|| refused(Refusal::Bounds))?.copy_from_slice(segment.data);
        read.filled += len;
        if read.filled < read.buffer.len() {
            return Ok(None);
        }
        Ok(self.reads.pop_front().map(|read| Completion::Read(read.id, read.buffer)))
    }

    fn send(
        &mut self,
        (number, offset, token): (u32, u32, u32),
        opcode: Opcode,
        segment: &Segment<'_>,
        regions: &mut Regions,
    ) -> Result<Option<Completion>, Breach> {
        if !matches!(
            opcode,
            Opcode::Send
                | Opcode::SendInvalidate
                | Opcode::SendSolicited
                | Opcode::SendSolicitedInvalidate
        ) {
            return Err(Terminate::OPCODE.into());
        }
        if number != self.send_number {
            return Err(Terminate::NUMBER.into());
        }
        let there = self.coming.as_ref().map_or(0, |coming| coming.bytes.len());
        if offset as usize != there {
            return Err(Terminate::OFFSET.into());
        }
        let room = match &self.coming {
            Some(coming) if (coming.opcode, coming.token) != (opcode, token) => {
                return Err(Terminate::OPCODE.into());
            }
            Some(coming) => coming.room,
            None => self.receives.pop_front().ok_or(Terminate::NO_BUFFER)?,
        };
        if there + segment.data.len() > room {
            return Err(Terminate::TOO_LONG.into());
        }
        let mut coming = self.coming.take().unwrap_or_else(|| Coming {
            bytes: Vec::with_capacity(if segment.last { segment.data.len() } else { room }),
            room,
            opcode,
            token,
        });
        coming.bytes.extend_from_slice(segment.data);
        if !segment.last {
            self.coming = Some(coming);
            return Ok(None);
        }
        self.send_number = self.send_number.wrapping_add(1);
        let invalidated = opcode.invalidates().then_some(token);
        if invalidated.is_some_and(|token| !regions.invalidate(token)) {
            return Err(Terminate::CANNOT_INVALIDATE.into());
        }
        Ok(Some(Completion::Received { bytes: coming.bytes, invalidated }))
    }

    fn request(
        &mut self,
        number: u32,
        offset: u32,
        segment: &Segment<'_>,
        regions: &Regions,
        answering: usize,
    ) -> Result<Answer, Breach> {
        if number != self.read_number {
            return Err(Terminate::NUMBER.into());
        }
        let request = ReadRequest::parse(segment.data).filter(|_| segment.last && offset == 0);
        let request = request.ok_or(Terminate::STREAM)?;
        if answering >= self.depths.0 {
            return Err(Terminate::NO_BUFFER.into());
        }
        self.read_number = self.read_number.wrapping_add(1);
        let data = regions.read(request.source, request.source_offset, request.length as usize);
        let data = data.map_err(|refusal| Breach::refused(refusal, true))?;
        Ok(Answer { sink: request.sink, offset: request.sink_offset, data })
    }
}
