//! What goes to the peer: messages cut into FPDUs, no sooner than they are needed.
//!
//! ```text
//!  Work (in order) ──fill──► pieces: headers and small data copied together, large data as they are
//!                               │ one vectored write
//!                               ▼
//!                            the socket ──advance──► completions of what has left
//! ```

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

use super::{
    framing::{Framing, LENGTH, TRAILER},
    segment::{
        Opcode, Place, QUEUE_READ, QUEUE_SEND, QUEUE_TERMINATE, ReadRequest, Segment, TAGGED_HEAD,
        UNTAGGED_HEAD,
    },
    terminate::Terminate,
};
use crate::{
    memory::Part,
    provider::{Completion, Message},
};

/// Data up to this length are copied behind their header; a piece of their own costs more.
const COPIED: usize = 2048;
/// Frames are made until so many bytes wait for the socket.
const AHEAD: usize = 256 << 10;

/// Something to be sent.
#[derive(Debug)]
pub(super) enum Work {
    /// A frame of nothing, which makes a connection ready.
    Empty,
    /// An RDMA Write of nothing, which does the same.
    WriteNothing,
    Send {
        message: Message,
        begun: u32,
    },
    Write {
        id: u64,
        to: VecDeque<Part>,
        data: Bytes,
    },
    Request(ReadRequest),
    Response {
        sink: u32,
        offset: u64,
        data: Bytes,
    },
    Terminate(Terminate),
}

#[derive(Debug)]
enum Piece {
    Copied(Vec<u8>),
    Shared(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
pub(super) struct Outgoing {
    framing: Framing,
    most_ulpdu: usize,
    work: VecDeque<Work>,
    /// Responses to reads among the work.
    responses: usize,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that have gone.
    gone: usize,
    waiting: usize,
    /// Bytes that were ever put into pieces, and that have ever gone.
    made: u64,
    written: u64,
    marks: VecDeque<(u64, Completion)>,
    /// The numbers of the next Send and the next Read Request.
    send_number: u32,
    read_number: u32,
}

impl Outgoing {
    /// Frames have up to `frame` bytes.
    pub fn new(framing: Framing, frame: usize) -> Self {
        // At least some data behind each header, and no padding but at the end of a message.
        let ulpdu = frame.saturating_sub(LENGTH + TRAILER).clamp(128, super::MOST_ULPDU);
        let most_ulpdu = (ulpdu + LENGTH) / 4 * 4 - LENGTH;
        Self {
            framing,
            most_ulpdu,
            work: VecDeque::new(),
            responses: 0,
            pieces: VecDeque::new(),
            gone: 0,
            waiting: 0,
            made: 0,
            written: 0,
            marks: VecDeque::new(),
            send_number: 1,
            read_number: 1,
        }
    }

    pub fn push(&mut self, work: Work) {
        self.responses += usize::from(matches!(work, Work::Response { .. }));
        self.work.push_back(work);
    }

    /// Throws away what is not in frames yet, and sends that instead.
    pub fn terminate(&mut self, why: Terminate) {
        self.clear();
        self.work.push_back(Work::Terminate(why));
    }

    /// Throws away what is not in frames yet.
    pub fn clear(&mut self) {
        self.work.clear();
        self.responses = 0;
    }

    /// Responses to reads that are not sent whole.
    pub fn responses(&self) -> usize {
        self.responses
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty() && self.waiting == 0
    }

    /// Bytes that wait for the socket, without those that are not in frames yet.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// What is to be written next; makes frames if there are few. How many slices it is.
    pub fn slices<'a>(&'a mut self, into: &mut [IoSlice<'a>]) -> usize {
        while self.waiting < AHEAD && self.step() {}
        let mut gone = self.gone;
        let mut used = 0;
        for (slot, piece) in into.iter_mut().zip(&self.pieces) {
            *slot = IoSlice::new(&piece.bytes()[gone..]);
            (gone, used) = (0, used + 1);
        }
        used
    }

    /// So many bytes have been written: what has left with them.
    pub fn advance(&mut self, mut written: usize, completions: &mut VecDeque<Completion>) {
        self.written += written as u64;
        self.waiting -= written;
        while let Some(first) = self.pieces.front() {
            let left = first.bytes().len() - self.gone;
            if written < left {
                self.gone += written;
                break;
            }
            (written, self.gone) = (written - left, 0);
            self.pieces.pop_front();
        }
        while self.marks.front().is_some_and(|(at, _)| *at <= self.written) {
            completions.extend(self.marks.pop_front().map(|(_, done)| done));
        }
    }

    /// Makes the next frame, if there is one to be made.
    fn step(&mut self) -> bool {
        let Some(work) = self.work.pop_front() else { return false };
        match work {
            Work::Empty => self.frame(None, &[], Bytes::new()),
            Work::WriteNothing => {
                // Some cards take tag 0 for all of memory, even for nothing.
                let place = Place::Tagged { token: 1, offset: 0 };
                self.frame(Some((true, Opcode::Write, place)), &[], Bytes::new());
            }
            Work::Send { message, begun } => self.send(message, begun),
            Work::Write { id, to, data } => self.write(id, to, data),
            Work::Request(request) => {
                let number = take_number(&mut self.read_number);
                let place = Place::Untagged { token: 0, queue: QUEUE_READ, number, offset: 0 };
                self.frame(
                    Some((true, Opcode::ReadRequest, place)),
                    &request.encode(),
                    Bytes::new(),
                );
            }
            Work::Response { sink, offset, mut data } => {
                let here = data.split_to(data.len().min(self.most_ulpdu - TAGGED_HEAD));
                let (last, next) = (data.is_empty(), offset + here.len() as u64);
                let place = Place::Tagged { token: sink, offset };
                self.frame(Some((last, Opcode::ReadResponse, place)), &[], here);
                match last {
                    true => self.responses -= 1,
                    false => self.work.push_front(Work::Response { sink, offset: next, data }),
                }
            }
            Work::Terminate(why) => {
                let place =
                    Place::Untagged { token: 0, queue: QUEUE_TERMINATE, number: 1, offset: 0 };
                self.frame(Some((true, Opcode::Terminate, place)), &why.encode(), Bytes::new());
            }
        }
        true
    }

    /// One frame of a message.
    fn send(&mut self, mut message: Message, begun: u32) {
        let room = self.most_ulpdu - UNTAGGED_HEAD;
        let head_len = message.head.len().min(room);
        let rest_of_head = message.head.split_off(head_len);
        let here = message.body.split_to(if rest_of_head.is_empty() {
            message.body.len().min(room - head_len)
        } else {
            0
        });
        let last = rest_of_head.is_empty() && message.body.is_empty();
        let opcode = match message.invalidate {
            Some(_) => Opcode::SendSolicitedInvalidate,
            None => Opcode::SendSolicited,
        };
        let place = Place::Untagged {
            token: message.invalidate.unwrap_or(0),
            queue: QUEUE_SEND,
            number: self.send_number,
            offset: begun,
        };
        // Both are bounded by what the peer receives, which 32 bits hold.
        let next = begun + (head_len + here.len()) as u32;
        self.frame(Some((last, opcode, place)), &message.head, here);
        if last {
            take_number(&mut self.send_number);
            self.marks.push_back((self.made, Completion::Sent(message.id)));
        } else {
            let message = Message { head: rest_of_head, ..message };
            self.work.push_front(Work::Send { message, begun: next });
        }
    }

    /// One frame of what is written to the peer's memory; each part is a message of its own.
    fn write(&mut self, id: u64, mut to: VecDeque<Part>, mut data: Bytes) {
        let Some(part) = to.front_mut() else { return };
        let room = self.most_ulpdu - TAGGED_HEAD;
        let here = data.split_to(room.min(part.length as usize).min(data.len()));
        let place = Place::Tagged { token: part.token, offset: part.offset };
        // No longer than the part, whose length has 32 bits.
        part.length -= here.len() as u32;
        part.offset = part.offset.wrapping_add(here.len() as u64);
        let last = part.length == 0 || data.is_empty();
        if last {
            to.pop_front();
        }
        self.frame(Some((last, Opcode::Write, place)), &[], here);
        if to.is_empty() || data.is_empty() {
            self.marks.push_back((self.made, Completion::Written(id)));
        } else {
            self.work.push_front(Work::Write { id, to, data });
        }
    }

    /// Puts a frame of one segment behind the others; of none, if it is one of nothing.
    fn frame(&mut self, segment: Option<(bool, Opcode, Place)>, head: &[u8], body: Bytes) {
        if !matches!(self.pieces.back(), Some(Piece::Copied(_))) {
            self.pieces.push_back(Piece::Copied(Vec::with_capacity(256)));
        }
        let Some(Piece::Copied(out)) = self.pieces.back_mut() else { return };
        let start = out.len();
        out.extend([0; LENGTH]);
        if let Some((last, opcode, place)) = segment {
            Segment { last, opcode, place, data: &[] }.encode_head(out);
        }
        out.extend(head);
        // What a frame has at most, a length of 16 bits can say.
        let ulpdu = (out.len() - start - LENGTH + body.len()) as u16;
        out[start..start + LENGTH].copy_from_slice(&ulpdu.to_be_bytes());
        let (trailer, len) = self.framing.trailer(&out[start..], &body);
        let added = out.len() - start + body.len() + len;
        if body.len() <= COPIED {
            out.extend(body.chunk());
            out.extend(&trailer[..len]);
        } else {
            self.pieces.push_back(Piece::Shared(body));
            let mut behind = Vec::with_capacity(256);
            behind.extend(&trailer[..len]);
            self.pieces.push_back(Piece::Copied(behind));
        }
        self.waiting += added;
        self.made = self.written + self.waiting as u64;
    }
}

/// Numbers of messages begin with 1 and go round (RFC 5041 4.3).
fn take_number(next: &mut u32) -> u32 {
    let number = *next;
    *next = next.wrapping_add(1);
    number
}
