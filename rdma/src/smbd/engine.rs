//! One connection of MS-SMBD 3.1: what may happen in which state, and what comes of it.
//!
//! ```text
//!            Active: request sent ──response──┐
//!  new ──►                                    ├──► Established ──► Ended
//!            Passive: nothing ──request───────┘        ▲   │  received, send, taken, sent, tick
//!                │                                     └───┘
//!                └── no common version, silence, nonsense ────────► Ended
//! ```
//!
//! Messages, completions and time go in; [`Engine::next`] gives what is to be done, in order. Whoever
//! drives the engine does all of it before the next message. Nothing is sent in any other order than
//! this, so no two senders can use the same credit.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;

use super::{
    Agreed, LEAST_FRAGMENTED, LEAST_RECEIVE, NEGOTIATION_RECEIVE, Parameters,
    credits::Credits,
    message::{
        DATA_OFFSET, Data, Malformed, NegotiateRequest, NegotiateResponse, RESPONSE_REQUESTED,
        STATUS_NOT_SUPPORTED, VERSION,
    },
    reassembly::{Disorder, Reassembly},
};

/// A message of the upper layer that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// The message, from [`Upper::start`] on.
    pub bytes: Vec<u8>,
    /// Where it begins in `bytes`.
    pub start: usize,
    /// The memory of ours to which the peer has given its right up with it.
    pub invalidated: Option<u32>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A receive of so many bytes is to be posted.
    PostReceive(usize),
    /// A message is to be sent; [`Engine::sent`] is to be told when it has left.
    Send {
        /// Its head, with padding.
        head: Vec<u8>,
        /// The data behind it.
        body: Bytes,
        /// The right to the peer's memory that ends with it.
        invalidate: Option<u32>,
        /// The number of the upper layer's message, if this is its last part.
        last_of: Option<u64>,
    },
    /// Negotiation has succeeded.
    Established(Agreed),
    /// A message for the upper layer, which says [`Engine::taken`] when it has it.
    Deliver(Upper),
    /// The connection is to be ended, after what was sent has left.
    End(Fault),
}

/// Why a connection does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A message is not as it must be.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Fragments do not fit together.
    #[error(transparent)]
    Disorder(#[from] Disorder),
    /// A message came for which the peer had no credit.
    #[error("a message without a credit")]
    Overrun,
    /// The peer refuses the connection, with this NTSTATUS.
    #[error("the peer refuses the connection with status {0:#010x}")]
    Refused(u32),
    /// The versions of both ends have none in common.
    #[error("no common version: the peer has {0:#06x} to {1:#06x}")]
    Version(u16, u16),
    /// Nothing came in time.
    #[error("the peer is silent")]
    Silent,
    /// The upper layer has ended it.
    #[error("the connection was given up")]
    GivenUp,
}

/// Why the upper layer's message is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// It is longer than the peer puts together.
    #[error("a message of {0} bytes is longer than the peer takes")]
    TooLong(usize),
    /// The connection is not established, or has ended.
    #[error("the connection is not there")]
    NotConnected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Active,
    Passive,
    Established,
    Ended,
}

/// `Connection.KeepaliveRequested`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keepalive {
    None,
    Pending,
    Sent,
}

/// A message of the upper layer that is not sent whole.
#[derive(Debug)]
struct Queued {
    number: u64,
    left: Bytes,
    invalidate: Option<u32>,
}

/// Messages that may be on their way to the provider at once. The others wait here.
const MOST_POSTED: usize = 255;

/// The rules of one connection.
#[derive(Debug)]
pub struct Engine {
    role: Role,
    local: Parameters,
    agreed: Agreed,
    credits: Credits,
    queue: VecDeque<Queued>,
    numbered: u64,
    /// Messages given to the provider that have not left.
    posted: usize,
    reassembly: Reassembly,
    /// Bytes delivered that the upper layer has not taken.
    held: usize,
    keepalive: Keepalive,
    /// `Connection.SendImmediate`.
    send_immediate: bool,
    deadline: Instant,
    effects: VecDeque<Effect>,
}

impl Engine {
    /// The end that has connected, at `now`: sends its request (3.1.4.1, 3.1.5.2).
    pub fn active(local: Parameters, now: Instant) -> Self {
        let mut engine = Self::new(Role::Active, local, now);
        let request = NegotiateRequest {
            min_version: VERSION,
            max_version: VERSION,
            credits_requested: engine.local.send_credits,
            preferred_send_size: engine.local.max_send_size,
            max_receive_size: engine.local.max_receive_size,
            max_fragmented_size: engine.local.max_fragmented_size,
        };
        engine.plain(request.encode());
        engine
    }

    /// The end that was connected to, at `now`: waits for a request (3.1.7.2).
    pub fn passive(local: Parameters, now: Instant) -> Self {
        Self::new(Role::Passive, local, now)
    }

    fn new(role: Role, local: Parameters, now: Instant) -> Self {
        let agreed = Agreed {
            max_send_size: local.max_send_size,
            max_receive_size: local.max_receive_size,
            max_fragmented_send_size: 0,
            max_read_write_size: local.max_read_write_size,
        };
        Self {
            role,
            agreed,
            credits: Credits::new(local.receive_credits),
            queue: VecDeque::new(),
            numbered: 0,
            posted: 0,
            reassembly: Reassembly::default(),
            held: 0,
            keepalive: Keepalive::None,
            send_immediate: false,
            deadline: now + local.negotiation,
            effects: VecDeque::from([Effect::PostReceive(NEGOTIATION_RECEIVE)]),
            local,
        }
    }

    /// What is to be done next.
    #[expect(clippy::should_implement_trait, reason = "it goes on after a None")]
    pub fn next(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Engine::tick`] is due.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Bytes that it holds for messages that have come: parts, and those that were not taken.
    pub fn held(&self) -> usize {
        self.held + self.reassembly.held()
    }

    /// Messages of the upper layer that have not been sent whole.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// What both ends have agreed on, once they have.
    pub fn agreed(&self) -> Option<Agreed> {
        (self.role == Role::Established).then_some(self.agreed)
    }

    /// Takes a message of the upper layer to be sent, and the right to the peer's memory that ends
    /// with it; gives its number (3.1.4.2).
    ///
    /// # Errors
    /// It is longer than the peer takes, or there is no connection.
    pub fn send(&mut self, message: Bytes, invalidate: Option<u32>) -> Result<u64, NotSent> {
        if self.role != Role::Established {
            return Err(NotSent::NotConnected);
        }
        if message.len() > self.agreed.max_fragmented_send_size as usize || message.is_empty() {
            return Err(NotSent::TooLong(message.len()));
        }
        self.numbered += 1;
        self.queue.push_back(Queued { number: self.numbered, left: message, invalidate });
        self.pump();
        Ok(self.numbered)
    }

    /// A message that was given to the provider has left.
    pub fn sent(&mut self) {
        self.posted = self.posted.saturating_sub(1);
        self.pump();
    }

    /// The upper layer has taken a message of `len` bytes.
    pub fn taken(&mut self, len: usize) {
        self.held = self.held.saturating_sub(len);
        if self.role == Role::Established && !self.is_full() && self.credits.is_low() {
            self.send_immediate = true;
            self.pump();
        }
    }

    /// A message has come, and with it, maybe, the end of the peer's right to memory of ours (3.1.5.5).
    pub fn received(&mut self, message: Vec<u8>, invalidated: Option<u32>, now: Instant) {
        let done = match self.role {
            Role::Passive => self.requested(&message, now),
            Role::Active => self.answered(&message, now),
            Role::Established => self.data(message, invalidated, now),
            Role::Ended => Ok(()),
        };
        if let Err(fault) = done {
            self.end(fault);
        }
    }

    /// It is `now`: what is late ends the connection or asks for a sign of life (3.1.6).
    pub fn tick(&mut self, now: Instant) {
        if now < self.deadline || self.role == Role::Ended {
            return;
        }
        if self.role != Role::Established || self.keepalive != Keepalive::None {
            return self.end(Fault::Silent);
        }
        self.keepalive = Keepalive::Pending;
        self.send_immediate = true;
        self.deadline = now + self.local.keepalive_answer;
        self.pump();
    }

    /// Ends the connection: nothing more is sent, and nothing that comes is looked at.
    pub fn end(&mut self, fault: Fault) {
        if self.role != Role::Ended {
            self.role = Role::Ended;
            self.queue.clear();
            self.effects.push_back(Effect::End(fault));
        }
    }

    /// A message of negotiation, which takes no credit.
    fn plain(&mut self, head: Vec<u8>) {
        self.posted += 1;
        let (body, invalidate, last_of) = (Bytes::new(), None, None);
        self.effects.push_back(Effect::Send { head, body, invalidate, last_of });
    }

    /// 3.1.5.6.
    fn requested(&mut self, message: &[u8], now: Instant) -> Result<(), Fault> {
        let request = NegotiateRequest::parse(message)?;
        if request.min_version > VERSION || request.max_version < VERSION {
            let status = STATUS_NOT_SUPPORTED;
            let (min_version, max_version) = (VERSION, VERSION);
            let none = NegotiateResponse::default();
            self.plain(NegotiateResponse { min_version, max_version, status, ..none }.encode());
            return Err(Fault::Version(request.min_version, request.max_version));
        }
        self.agree(
            request.credits_requested,
            request.preferred_send_size,
            request.max_receive_size,
            request.max_fragmented_size,
        )?;
        self.post();
        // The response tells of them, and no data message does it again.
        let granted = std::mem::take(&mut self.credits.untold);
        self.plain(
            NegotiateResponse {
                min_version: VERSION,
                max_version: VERSION,
                negotiated_version: VERSION,
                credits_requested: self.local.send_credits,
                credits_granted: granted,
                status: 0,
                max_read_write_size: self.agreed.max_read_write_size,
                preferred_send_size: self.agreed.max_send_size,
                max_receive_size: self.agreed.max_receive_size,
                max_fragmented_size: self.local.max_fragmented_size,
            }
            .encode(),
        );
        self.establish(now);
        Ok(())
    }

    /// 3.1.5.7.
    fn answered(&mut self, message: &[u8], now: Instant) -> Result<(), Fault> {
        let answer = NegotiateResponse::parse(message)?;
        if answer.status != 0 {
            return Err(Fault::Refused(answer.status));
        }
        if answer.negotiated_version != VERSION {
            return Err(Fault::Version(answer.min_version, answer.max_version));
        }
        if answer.credits_granted == 0 {
            return Err(Malformed::Field("CreditsGranted", 0).into());
        }
        if answer.preferred_send_size > self.local.max_receive_size {
            let size = answer.preferred_send_size.into();
            return Err(Malformed::Field("PreferredSendSize", size).into());
        }
        self.agree(
            answer.credits_requested,
            answer.preferred_send_size,
            answer.max_receive_size,
            answer.max_fragmented_size,
        )?;
        self.agreed.max_read_write_size =
            self.local.max_read_write_size.min(answer.max_read_write_size);
        self.credits.send = answer.credits_granted.into();
        self.post();
        self.establish(now);
        Ok(())
    }

    /// What both messages of negotiation say alike.
    fn agree(
        &mut self,
        requested: u16,
        preferred: u32,
        receive: u32,
        fragmented: u32,
    ) -> Result<(), Malformed> {
        let fields = [
            ("CreditsRequested", u32::from(requested), 1),
            ("MaxReceiveSize", receive, LEAST_RECEIVE),
            ("MaxFragmentedSize", fragmented, LEAST_FRAGMENTED),
        ];
        for (name, value, least) in fields {
            if value < least {
                return Err(Malformed::Field(name, value.into()));
            }
        }
        self.agreed.max_receive_size =
            self.local.max_receive_size.min(preferred).max(LEAST_RECEIVE);
        self.agreed.max_send_size = self.local.max_send_size.min(receive);
        self.agreed.max_fragmented_send_size = fragmented;
        self.credits.target = requested.into();
        Ok(())
    }

    fn establish(&mut self, now: Instant) {
        self.role = Role::Established;
        self.deadline = now + self.local.keepalive;
        self.effects.push_back(Effect::Established(self.agreed));
    }

    /// 3.1.5.8.
    fn data(
        &mut self,
        message: Vec<u8>,
        invalidated: Option<u32>,
        now: Instant,
    ) -> Result<(), Fault> {
        self.deadline = now + self.local.keepalive;
        self.keepalive = Keepalive::None;
        let head = Data::parse(&message)?;
        if !self.credits.received(head.credits_requested, head.credits_granted) {
            return Err(Fault::Overrun);
        }
        let most = self.local.max_fragmented_size;
        let whole = self.reassembly.take(&head, message, invalidated, most)?;
        if let Some(upper) = whole {
            self.held += upper.bytes.len() - upper.start;
            self.effects.push_back(Effect::Deliver(upper));
        }
        // A sign of life that asks for another would never end: ours asks for nothing.
        if head.flags & RESPONSE_REQUESTED != 0 || self.credits.is_low() && !self.is_full() {
            self.send_immediate = true;
        }
        self.pump();
        Ok(())
    }

    /// Whether the upper layer is behind, so that the peer is to send no more than it must.
    fn is_full(&self) -> bool {
        self.held > self.local.most_held
    }

    /// Posts the receives that the peer should have.
    fn post(&mut self) {
        let (waits, full) = (!self.queue.is_empty(), self.is_full());
        let receive = self.agreed.max_receive_size as usize;
        for _ in 0..self.credits.manage(waits, full) {
            self.effects.push_back(Effect::PostReceive(receive));
        }
    }

    /// Sends what may be sent (3.1.5.1).
    fn pump(&mut self) {
        while self.role == Role::Established
            && (self.send_immediate || !self.queue.is_empty())
            && self.credits.send > 0
            && self.posted < MOST_POSTED
        {
            if self.credits.untold == 0 {
                self.post();
            }
            if !self.credits.may_send() {
                return;
            }
            self.send_immediate = false;
            let mut head = Data {
                credits_requested: self.local.send_credits,
                credits_granted: self.credits.sent(),
                ..Data::default()
            };
            if self.keepalive == Keepalive::Pending {
                self.keepalive = Keepalive::Sent;
                head.flags = RESPONSE_REQUESTED;
            }
            let (body, invalidate, last_of) = self.fragment();
            if !body.is_empty() {
                head.offset = DATA_OFFSET as u32;
                head.length = len32(body.len());
                let left = self.queue.front().filter(|_| last_of.is_none());
                head.remaining = left.map_or(0, |queued| len32(queued.left.len()));
            }
            self.posted += 1;
            self.effects.push_back(Effect::Send { head: head.encode(), body, invalidate, last_of });
        }
    }

    /// The next part of the first message that waits; nothing if none does. The token goes with the
    /// last part, behind which the peer does not look for another.
    fn fragment(&mut self) -> (Bytes, Option<u32>, Option<u64>) {
        let most = self.agreed.max_send_size as usize - DATA_OFFSET;
        let Some(first) = self.queue.front_mut() else { return (Bytes::new(), None, None) };
        let body = first.left.split_to(most.min(first.left.len()));
        if !first.left.is_empty() {
            return (body, None, None);
        }
        let (invalidate, number) = (first.invalidate, first.number);
        self.queue.pop_front();
        (body, invalidate, Some(number))
    }
}

/// A length that both ends' limits of 32 bits have bounded.
fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
