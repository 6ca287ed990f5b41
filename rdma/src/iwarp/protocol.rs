//! One end of an iWARP connection after its beginning, without a socket.
//!
//! ```text
//!  posted ─► Work ─► frames ─► slices ─► (socket) ─► feed ─► frames ─► segments ─► completions
//!                                                                         │
//!                              a rule is broken: Terminate, and nothing after it
//! ```

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    framing::{Frame, Framing},
    incoming::{Breach, Incoming},
    outgoing::{Outgoing, Work},
    segment::Segment,
    startup::ReadyToReceive,
    terminate::Terminate,
};
use crate::{
    memory::{Memory, Part, Regions},
    provider::{Completion, Lost, Message},
};

/// Most bytes that are taken from the socket at once.
const INPUT: usize = 256 << 10;

/// Buffers for input that no connection needs at the moment.
static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
/// How many are kept.
const POOLED: usize = 32;

/// What both ends have agreed on when a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// Frames have CRCs.
    pub crc: bool,
    /// The longest frame that is sent, in bytes.
    pub frame: usize,
    /// RDMA reads of the peer that may be under way at once.
    pub incoming_reads: u16,
    /// RDMA reads of ours that may be under way at once.
    pub outgoing_reads: u16,
    /// This end has connected; the other may send nothing before the first frame has come.
    pub active: bool,
    /// The frame that makes the connection ready in the model of two peers.
    pub ready: Option<ReadyToReceive>,
}

/// One end without a socket.
#[derive(Debug)]
pub struct Protocol {
    framing: Framing,
    input: Vec<u8>,
    incoming: Incoming,
    out: Outgoing,
    regions: Regions,
    completions: VecDeque<Completion>,
    /// It may send nothing yet.
    silent: bool,
    /// The first frame may be one of nothing.
    empty_first: bool,
    lost: Option<Lost>,
}

impl Protocol {
    /// An end that has begun like this.
    pub fn new(agreed: Agreement) -> Self {
        let framing = Framing { crc: agreed.crc };
        let mut end = Self {
            framing,
            input: Vec::new(),
            incoming: Incoming::new(agreed.incoming_reads, agreed.outgoing_reads),
            out: Outgoing::new(framing, agreed.frame),
            regions: Regions::default(),
            completions: VecDeque::new(),
            silent: !agreed.active,
            empty_first: !agreed.active && agreed.ready == Some(ReadyToReceive::Empty),
            lost: None,
        };
        match agreed.ready.filter(|_| agreed.active) {
            None => {}
            Some(ReadyToReceive::Empty) => end.out.push(Work::Empty),
            Some(ReadyToReceive::Write) => end.out.push(Work::WriteNothing),
            Some(ReadyToReceive::Read) => {
                let sink = end.regions.fresh();
                let request = end.incoming.read_nothing(sink);
                end.out.push(Work::Request(request));
            }
        }
        end
    }

    /// Grants the peer memory.
    ///
    /// # Errors
    /// The memory, if it cannot be granted.
    pub fn register(&mut self, memory: Memory) -> Result<Part, Memory> {
        match self.lost {
            None => self.regions.register(memory),
            Some(_) => Err(memory),
        }
    }

    /// Ends a grant; the memory comes back.
    pub fn deregister(&mut self, token: u32) -> Option<Memory> {
        self.regions.deregister(token)
    }

    fn alive(&self) -> Result<(), Lost> {
        self.lost.clone().map_or(Ok(()), Err)
    }

    /// One more message of up to `len` bytes may come.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn post_receive(&mut self, len: usize) -> Result<(), Lost> {
        self.alive()?;
        self.incoming.post_receive(len);
        Ok(())
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn post_send(&mut self, message: Message) -> Result<(), Lost> {
        self.alive()?;
        self.out.push(Work::Send { message, begun: 0 });
        Ok(())
    }

    /// Fills `buffer` from the peer's memory.
    ///
    /// # Errors
    /// The connection has ended, or the parts do not have as many bytes as the buffer.
    pub fn post_read(&mut self, id: u64, from: &[Part], buffer: Vec<u8>) -> Result<(), Lost> {
        self.alive()?;
        let all: u64 = from.iter().map(|part| u64::from(part.length)).sum();
        if all != buffer.len() as u64 {
            return Err(Lost::Access(crate::memory::Refusal::Bounds));
        }
        let sink = self.regions.fresh();
        let done = self.incoming.read(id, from, buffer, sink);
        self.completions.extend(done);
        self.ask();
        Ok(())
    }

    /// Writes data to the peer's memory.
    ///
    /// # Errors
    /// The connection has ended, or the parts do not have as many bytes as the data.
    pub fn post_write(&mut self, id: u64, to: Vec<Part>, data: Bytes) -> Result<(), Lost> {
        self.alive()?;
        let all: u64 = to.iter().map(|part| u64::from(part.length)).sum();
        if all != data.len() as u64 {
            return Err(Lost::Access(crate::memory::Refusal::Bounds));
        }
        if data.is_empty() {
            self.completions.push_back(Completion::Written(id));
            return Ok(());
        }
        let to = to.into_iter().filter(|part| part.length > 0).collect();
        self.out.push(Work::Write { id, to, data });
        Ok(())
    }

    /// Sends the Read Requests that may be sent.
    fn ask(&mut self) {
        while let Some(request) = self.incoming.next_request() {
            self.out.push(Work::Request(request));
        }
    }

    /// What has come to its end.
    pub fn completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Why it has ended, if it has.
    pub fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// Ends it, for this reason, without a word.
    pub fn lose(&mut self, why: Lost) {
        if self.lost.is_none() {
            self.lost = Some(why);
            self.incoming.clear();
            self.out.clear();
        }
    }

    /// Whether something could be written.
    pub fn has_output(&self) -> bool {
        !self.silent && !self.out.is_empty()
    }

    /// Bytes in frames that wait for the socket.
    pub fn waiting(&self) -> usize {
        self.out.waiting()
    }

    /// What is to be written next: how many slices it is.
    pub fn slices<'a>(&'a mut self, into: &mut [IoSlice<'a>]) -> usize {
        if self.silent { 0 } else { self.out.slices(into) }
    }

    /// So many bytes of these were written.
    pub fn written(&mut self, bytes: usize) {
        self.out.advance(bytes, &mut self.completions);
    }

    /// Has `read` append bytes to what has come, up to a bound, and looks at them.
    ///
    /// # Errors
    /// What `read` says.
    pub fn receive(
        &mut self,
        read: impl FnOnce(&mut Vec<u8>, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.input.capacity() == 0 {
            let kept = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
            self.input = kept.unwrap_or_else(|| Vec::with_capacity(INPUT));
        }
        let room = INPUT - self.input.len().min(INPUT - 1);
        self.input.reserve(room);
        let got = read(&mut self.input, room)?;
        self.digest();
        Ok(got)
    }

    /// Nothing comes for a while: an end that has nothing begun holds no buffer.
    pub fn rest(&mut self) {
        if self.input.is_empty() && self.input.capacity() >= INPUT {
            let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
            if buffers.len() < POOLED {
                buffers.push(std::mem::take(&mut self.input));
            } else {
                self.input = Vec::new();
            }
        }
    }

    /// Takes bytes as if they had come.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.digest();
    }

    /// Takes every frame that is there whole.
    fn digest(&mut self) {
        let mut input = std::mem::take(&mut self.input);
        let mut at = 0;
        while self.lost.is_none() {
            match self.framing.first(&input[at..]) {
                Frame::Needs(_) => break,
                Frame::Whole { ulpdu, frame } => {
                    let start = at + super::framing::LENGTH;
                    let taken = self.segment(&input[start..start + ulpdu]);
                    at += frame;
                    if let Err(breach) = taken {
                        self.end(breach);
                    }
                }
                Frame::Damaged => self.end(Terminate::CRC.into()),
            }
        }
        input.drain(..at);
        if self.lost.is_some() {
            input = Vec::new();
        }
        self.input = input;
    }

    fn segment(&mut self, ulpdu: &[u8]) -> Result<(), Breach> {
        let first = std::mem::take(&mut self.silent);
        if std::mem::take(&mut self.empty_first) && first && ulpdu.is_empty() {
            return Ok(());
        }
        let segment = Segment::parse(ulpdu).map_err(Terminate::from)?;
        let answering = self.out.responses();
        let (regions, completions) = (&mut self.regions, &mut self.completions);
        let answer = self.incoming.take(segment, regions, answering, completions)?;
        if let Some(answer) = answer {
            let (sink, offset, data) = (answer.sink, answer.offset, answer.data);
            self.out.push(Work::Response { sink, offset, data });
        }
        self.ask();
        Ok(())
    }

    fn end(&mut self, breach: Breach) {
        self.incoming.clear();
        match breach.tell {
            Some(tell) => self.out.terminate(tell),
            None => self.out.clear(),
        }
        self.lost = Some(breach.lost);
    }

    /// The request that a peer would send for these, for tests of what it may not.
    #[cfg(test)]
    pub(super) fn push_request(&mut self, request: super::segment::ReadRequest) {
        self.out.push(Work::Request(request));
    }
}
