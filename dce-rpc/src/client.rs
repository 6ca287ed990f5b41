//! The client's side of one connection, without I/O.
//!
//! ```text
//!  new ─► bind ─► ack ─► (alter context, ack) … or auth3 ─► Bound ─► call ─► Answer
//! ```
//!
//! Bytes of the server go in by [`Client::push`], [`Client::step`] says what they came to, and what is
//! to be sent comes out of [`Client::transmit`]. Several calls may be under way.

mod spnego;

use std::collections::{BTreeMap, VecDeque};

use smb_protocol::{gss, wire::WireError};

pub use self::spnego::Spnego;
use crate::{
    FaultStatus, Features, SyntaxId, Transfer,
    association::{MAX_FRAGMENT, MIN_FRAGMENT},
    pdu::{
        Answer, Bind, BindAnswer, CALL_HEADER_LEN, Command, Context, Flags, Kind, Nak, NakReason,
        Pdu, Request, Verdict, Verification, Verifier,
    },
    security::{AuthType, Level, Secured},
};

/// Longest results of a call, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// The name of the only security context.
const SECURITY: u32 = 1;
/// One fragment that is the first and the last.
const WHOLE: Flags = Flags::FIRST.or(Flags::LAST);

/// What a client does with a server's token.
#[derive(Debug)]
pub enum Proof {
    /// It sends this one and waits for another.
    More(Vec<u8>),
    /// It sends this one, which has no answer.
    Last(Vec<u8>),
    /// It is done.
    Done,
}

/// How a client proves who it is.
pub trait Initiate: Send {
    /// By what.
    fn kind(&self) -> AuthType;
    /// The first token; `None` if there cannot be one.
    fn first(&mut self) -> Option<Vec<u8>>;
    /// What is done with a token of the server; `None` if it is refused.
    fn next(&mut self, token: &[u8]) -> Option<Proof>;
    /// What protects messages once it is done.
    fn context(&self) -> Option<gss::Context>;
}

/// Why a connection cannot be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// What came is no RPC.
    #[error("not RPC: {0}")]
    Malformed(#[from] WireError),
    /// The server does not let the client bind.
    #[error("the bind is refused: {0:?}")]
    Refused(NakReason),
    /// The server does not serve the interface, or not so that both can represent data.
    #[error("the server does not serve the interface")]
    NoInterface,
    /// One of the two has not proved who it is.
    #[error("the logon failed")]
    Logon,
    /// A message that has no place here.
    #[error("unexpected RPC message {0:?}")]
    Unexpected(Kind),
    /// A message was changed on its way.
    #[error("a message is not authentic: {0}")]
    NotAuthentic(gss::Error),
    /// Results are longer than is taken.
    #[error("results of more than 1 MiB")]
    TooLong,
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Its number.
    pub call: u32,
    /// Results, or why there are none.
    pub result: Result<Vec<u8>, FaultStatus>,
}

/// What one message of the server came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientStep {
    /// Nothing yet.
    Starved,
    /// Calls can be made.
    Bound,
    /// A call is answered.
    Answer(Answered),
}

/// The client's side of one connection.
pub struct Client {
    interface: SyntaxId,
    contexts: Vec<Context>,
    transfer: Transfer,
    /// The context that was accepted.
    context: u16,
    proof: Option<(Box<dyn Initiate>, Level)>,
    secured: Option<Secured>,
    bound: bool,
    header_signing: bool,
    fragment: u16,
    input: Vec<u8>,
    output: VecDeque<Vec<u8>>,
    /// Calls that are not answered, with what of their results has come.
    calls: BTreeMap<u32, Vec<u8>>,
    last: u32,
    /// What a verification trailer says instead of the truth.
    #[cfg(test)]
    verification: Option<Vec<Command>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("interface", &self.interface).finish_non_exhaustive()
    }
}

impl Client {
    /// Begins to bind to an interface, with the transfer syntaxes that this side has, as somebody if
    /// there is a proof.
    pub fn new(
        interface: SyntaxId,
        transfers: &[Transfer],
        proof: Option<(Box<dyn Initiate>, Level)>,
    ) -> Self {
        let offer = |(id, transfer): (usize, &Transfer)| Context {
            id: id as u16,
            interface,
            transfers: vec![transfer.syntax()],
        };
        let mut contexts: Vec<Context> = transfers.iter().enumerate().map(offer).collect();
        let features = SyntaxId::features(Features::KEEP_CONNECTION_ON_ORPHAN);
        contexts.push(Context { id: transfers.len() as u16, interface, transfers: vec![features] });
        let mut client = Self {
            interface,
            contexts,
            transfer: Transfer::Ndr,
            context: 0,
            proof,
            secured: None,
            bound: false,
            header_signing: false,
            fragment: MAX_FRAGMENT,
            input: Vec::new(),
            output: VecDeque::new(),
            calls: BTreeMap::new(),
            last: 1,
            #[cfg(test)]
            verification: None,
        };
        let token = client.proof.as_mut().and_then(|(proof, _)| proof.first());
        client.offer(Kind::BIND, &token.unwrap_or_default());
        client
    }

    /// How data are represented, once it is bound.
    pub fn transfer(&self) -> Transfer {
        self.transfer
    }

    /// Takes the next message that is to be sent.
    pub fn transmit(&mut self) -> Option<Vec<u8>> {
        self.output.pop_front()
    }

    /// Whether something is to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes bytes that the server sent.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Makes a call; its number. It must be bound.
    pub fn call(&mut self, opnum: u16, stub: &[u8]) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.calls.insert(self.last, Vec::new());
        let trailer = self.verification(opnum);
        let room = match &self.secured {
            Some(secured) => secured.room(self.fragment.into()),
            None => (usize::from(self.fragment) - CALL_HEADER_LEN) & !7,
        };
        let mut pieces: Vec<&[u8]> = stub.chunks(room).collect();
        // The trailer stands in the last fragment, whole.
        if let Some(last) = pieces.pop() {
            match last.len().next_multiple_of(4) + trailer.len() > room {
                true => pieces.extend(<[_; 2]>::from(last.split_at(last.len() & !15))),
                false => pieces.push(last),
            }
        } else {
            pieces.push(&[]);
        }
        let count = pieces.len();
        for (at, piece) in pieces.into_iter().enumerate() {
            let mut flags = if at == 0 { Flags::FIRST } else { Flags::NONE };
            let mut stub = piece.to_vec();
            if at + 1 == count {
                flags |= Flags::LAST;
                if !trailer.is_empty() {
                    stub.resize(stub.len().next_multiple_of(4), 0);
                    stub.extend_from_slice(&trailer);
                }
            }
            let request = Request { context: self.context, opnum, stub: &stub };
            let put = |out: &mut Vec<u8>| request.encode(out);
            let mut message = Pdu::encode(Kind::REQUEST, flags, self.last, put);
            if let Some(secured) = &mut self.secured {
                secured.protect(&mut message);
            }
            self.output.push_back(message);
        }
        self.last
    }

    /// The message that gives a call up; its answer comes to nothing.
    pub fn orphan(&mut self, call: u32) -> Vec<u8> {
        self.calls.remove(&call);
        Pdu::encode(Kind::ORPHANED, WHOLE, call, |_| {})
    }

    /// Says what the server's bytes came to.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is of no use any more.
    pub fn step(&mut self) -> Result<ClientStep, ClientError> {
        loop {
            let most = MAX_FRAGMENT.into();
            let Some((_, len)) = Pdu::split(&self.input, most)? else {
                return Ok(ClientStep::Starved);
            };
            let mut raw: Vec<u8> = self.input.drain(..len).collect();
            let kind = Kind(raw[2]);
            let step = match kind {
                Kind::BIND_ACK if !self.bound => self.acknowledged(&raw, true)?,
                Kind::ALTER_CONTEXT_RESPONSE if !self.bound => self.acknowledged(&raw, false)?,
                Kind::BIND_NAK if !self.bound => {
                    let Some((pdu, _)) = Pdu::split(&raw, most)? else { continue };
                    return Err(ClientError::Refused(Nak::parse(pdu.body)?.0));
                }
                Kind::FAULT => {
                    let Some((pdu, _)) = Pdu::split(&raw, most)? else { continue };
                    if !self.bound {
                        return Err(ClientError::Logon);
                    }
                    let result = Err(Answer::parse_fault(pdu.body)?);
                    let answered = Answered { call: pdu.call_id, result };
                    self.calls.remove(&pdu.call_id).map(|_| ClientStep::Answer(answered))
                }
                Kind::RESPONSE if self.bound => self.response(&mut raw)?,
                kind => return Err(ClientError::Unexpected(kind)),
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    /// Sends the contexts with a token, if there is one.
    fn offer(&mut self, kind: Kind, token: &[u8]) {
        let bind = Bind {
            max_transmit: MAX_FRAGMENT,
            max_receive: MAX_FRAGMENT,
            group: 0,
            contexts: self.contexts.clone(),
        };
        let flags = WHOLE | Flags::CONCURRENT_MULTIPLEX | Flags::SUPPORT_HEADER_SIGN;
        let message =
            Pdu::encode_with(kind, flags, self.last, &self.verifier(token), |out| bind.encode(out));
        self.output.push_back(message);
    }

    fn verifier<'a>(&self, token: &'a [u8]) -> Verifier<'a> {
        let (kind, level) = match &self.proof {
            Some((proof, level)) => (proof.kind().0, *level as u8),
            None => (0, 0),
        };
        Verifier { kind, level, context: SECURITY, token }
    }

    fn acknowledged(&mut self, raw: &[u8], first: bool) -> Result<Option<ClientStep>, ClientError> {
        let Some((pdu, _)) = Pdu::split(raw, MAX_FRAGMENT.into())? else { return Ok(None) };
        let answer = BindAnswer::parse(pdu.body)?;
        if first {
            let accepted = self.contexts.iter().zip(&answer.verdicts);
            let mut found = accepted.filter_map(|(context, verdict)| match verdict {
                Some(Verdict::Accepted(transfer)) => Some((context.id, *transfer)),
                _ => None,
            });
            let found = found.next_back().ok_or(ClientError::NoInterface)?;
            (self.context, self.transfer) = found;
            self.fragment = answer.max_receive.clamp(MIN_FRAGMENT, MAX_FRAGMENT);
            self.header_signing = pdu.flags.has(Flags::SUPPORT_HEADER_SIGN);
            // Only what was agreed is spoken of again.
            self.contexts.retain(|context| context.id == found.0);
        }
        let token = pdu.auth.map_or(&[][..], |verifier| verifier.token).to_vec();
        let Some((proof, _)) = &mut self.proof else {
            self.bound = true;
            return Ok(Some(ClientStep::Bound));
        };
        match proof.next(&token).ok_or(ClientError::Logon)? {
            Proof::More(token) => {
                self.offer(Kind::ALTER_CONTEXT, &token);
                return Ok(None);
            }
            Proof::Last(token) => {
                let verifier = self.verifier(&token);
                let put = |out: &mut Vec<u8>| out.extend([0; 4]);
                let message = Pdu::encode_with(Kind::AUTH3, WHOLE, self.last, &verifier, put);
                self.output.push_back(message);
            }
            Proof::Done => {}
        }
        self.secure()?;
        Ok(Some(ClientStep::Bound))
    }

    /// Protects what is said from now on.
    fn secure(&mut self) -> Result<(), ClientError> {
        let Some((proof, level)) = &self.proof else { return Ok(()) };
        let (level, context) = (*level, proof.context());
        let enough = match (level, &context) {
            (Level::Connect, _) => true,
            (_, None) => false,
            (Level::Integrity, Some(_)) => true,
            (Level::Privacy, Some(context)) => context.can_seal(),
        };
        if !enough {
            return Err(ClientError::Logon);
        }
        let (kind, header_signing) = (proof.kind(), self.header_signing);
        self.secured = Some(Secured { kind, level, id: SECURITY, header_signing, context });
        self.bound = true;
        Ok(())
    }

    /// What the server is to hold a request against (MS-RPCE 2.2.2.13).
    fn verification(&self, opnum: u16) -> Vec<u8> {
        let signs = self.secured.as_ref().is_some_and(|it| it.level >= Level::Integrity);
        if !signs {
            return Vec::new();
        }
        let commands = [
            Command::HeaderSigning(self.header_signing),
            Command::Context(self.interface, self.transfer.syntax()),
            Command::Header(Kind::REQUEST, self.last, self.context, opnum),
        ];
        #[cfg(test)]
        let commands = self.verification.clone().unwrap_or(commands.to_vec());
        let mut out = Vec::new();
        Verification::append(&mut out, &commands);
        out
    }

    fn response(&mut self, raw: &mut [u8]) -> Result<Option<ClientStep>, ClientError> {
        let Some((pdu, _)) = Pdu::split(raw, MAX_FRAGMENT.into())? else { return Ok(None) };
        let (call, flags, kind) = (pdu.call_id, pdu.flags, pdu.kind);
        let verifier = pdu.auth.map(|it| (it.kind, it.level, it.context, it.token.len()));
        let end = match (&mut self.secured, verifier) {
            (Some(secured), Some((kind, level, SECURITY, token)))
                if (kind, level) == (secured.kind.0, secured.level as u8) =>
            {
                let opened = secured.open(raw, CALL_HEADER_LEN, token);
                opened.map_err(ClientError::NotAuthentic)?
            }
            (Some(secured), None) if secured.level == Level::Connect => raw.len(),
            (None, None) => raw.len(),
            _ => return Err(ClientError::Unexpected(kind)),
        };
        let body = raw.get(crate::pdu::HEADER_LEN..end).unwrap_or_default();
        let part = Answer::parse(body)?.stub;
        // Of a call that was given up.
        let Some(whole) = self.calls.get_mut(&call) else { return Ok(None) };
        if whole.len() + part.len() > MAX_ANSWER {
            return Err(ClientError::TooLong);
        }
        whole.extend_from_slice(part);
        if !flags.has(Flags::LAST) {
            return Ok(None);
        }
        let result = Ok(self.calls.remove(&call).unwrap_or_default());
        Ok(Some(ClientStep::Answer(Answered { call, result })))
    }
}

#[cfg(test)]
impl Client {
    /// The number of the last call.
    pub(crate) fn last_call(&self) -> u32 {
        self.last
    }

    /// Has requests say something else of themselves.
    pub(crate) fn set_verification(&mut self, commands: Vec<Command>) {
        self.verification = Some(commands);
    }
}
