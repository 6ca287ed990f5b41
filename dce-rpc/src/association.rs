//! The server's side of one connection: binds, logons, calls in fragments, results in fragments.
//!
//! ```text
//!  Unbound ──bind──► Bound ──request (first … last)──► Call ──► pending ──answer──► fragments
//!              ▲       │                                          │
//!              └alter──┤ (contexts, further legs of a logon)      └─ cancel, orphaned ─► GivenUp
//!                      └auth3 (the last of an odd number of legs)
//! ```
//!
//! Nothing here waits or reads a clock: bytes go in by [`Association::push`], one message is carried out
//! by each [`Association::step`], and what is to be sent comes out of [`Association::transmit`]. A call
//! is answered when its server likes, others meanwhile. After [`Broken`] nothing more is taken, and what
//! is still to be sent says why.

mod binding;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use smb_protocol::{gss, wire::WireError};

use crate::{
    FaultStatus, Features, SyntaxId, Transfer,
    pdu::{
        CALL_HEADER_LEN, Command, Flags, HEADER_LEN, Kind, Pdu, Request, put_fault, put_response,
        without_verification,
    },
    security::{Caller, Host, Level, Logon, Secured},
};

/// Longest fragment that is sent or taken, unless the settings say less.
pub const MAX_FRAGMENT: u16 = 5840;
/// Shortest that a client may ask for.
pub(crate) const MIN_FRAGMENT: u16 = 256;

/// What one connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest fragment in either direction, in bytes.
    pub fragment: u16,
    /// Longest parameters of a call, in bytes.
    pub call: usize,
    /// Presentation contexts.
    pub contexts: usize,
    /// Security contexts, those that are being established among them.
    pub logons: usize,
    /// Calls that are not answered yet.
    pub calls: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { fragment: MAX_FRAGMENT, call: 1 << 20, contexts: 32, logons: 8, calls: 16 }
    }
}

/// What is served on a connection.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The interfaces.
    pub interfaces: &'static [SyntaxId],
    /// How data may be represented, the preferred first.
    pub transfers: &'static [Transfer],
    /// The endpoint as clients are told: the name of a pipe, or a port.
    pub address: String,
    /// What a client may take.
    pub limits: Limits,
}

/// A call with all its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its number on this connection.
    pub id: u32,
    /// What was bound.
    pub interface: SyntaxId,
    /// How data are represented.
    pub transfer: Transfer,
    /// The operation.
    pub opnum: u16,
    /// Parameters.
    pub stub: Vec<u8>,
    /// Who calls, if that was proven.
    pub caller: Option<Arc<Caller>>,
}

/// Why a connection cannot be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// What came is no RPC.
    #[error("not RPC: {0}")]
    Malformed(#[from] WireError),
    /// A message that has no place here.
    #[error("unexpected RPC message {0:?}")]
    Unexpected(Kind),
    /// A message that breaks a rule.
    #[error("RPC message refused: {0}")]
    Rule(&'static str),
    /// Results are not read.
    #[error("{0} bytes stand unread")]
    Unread(usize),
    /// The client has not proved who it is.
    #[error("the logon is refused")]
    Refused,
    /// A message was changed on its way, or is of somebody else.
    #[error("a message is not authentic: {0}")]
    NotAuthentic(gss::Error),
}

/// What one step has done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// No whole message is there.
    Starved,
    /// A message was carried out.
    Moved,
    /// A call is to be answered by [`Association::answer`].
    Call(Box<Call>),
    /// Nobody waits for the answer to this call any more, or its client asks that it end soon.
    GivenUp(u32),
}

/// A call of which fragments have come.
#[derive(Debug)]
struct Partial {
    id: u32,
    context: u16,
    opnum: u16,
    security: Option<u32>,
    stub: Vec<u8>,
    too_long: bool,
}

/// A call that is not answered yet.
#[derive(Debug)]
struct Pending {
    context: u16,
    security: Option<u32>,
}

/// The security contexts of a connection.
#[derive(Default)]
struct Security {
    begun: BTreeMap<u32, binding::Begun>,
    secured: BTreeMap<u32, (Secured, Arc<Caller>)>,
    /// Those whose last leg failed, which is told when they are used (MS-RPCE 3.3.1.5.2.1).
    failed: BTreeSet<u32>,
    /// Whether headers are signed, once that is settled.
    header_signing: Option<bool>,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Security").field("secured", &self.secured).finish_non_exhaustive()
    }
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Association {
    settings: Settings,
    fragment: u16,
    bound: bool,
    group: u32,
    features: Features,
    contexts: BTreeMap<u16, (SyntaxId, Transfer)>,
    security: Security,
    input: Vec<u8>,
    partial: Option<Partial>,
    pending: BTreeMap<u32, Pending>,
    output: VecDeque<Vec<u8>>,
}

/// One fragment that is the first and the last.
const WHOLE: Flags = Flags::FIRST.or(Flags::LAST);

impl Association {
    /// A connection on which nothing was said yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            fragment: settings.limits.fragment,
            settings,
            bound: false,
            group: 0,
            features: Features::NONE,
            contexts: BTreeMap::new(),
            security: Security::default(),
            input: Vec::new(),
            partial: None,
            pending: BTreeMap::new(),
            output: VecDeque::new(),
        }
    }

    /// Takes bytes that a client sent.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Whether a whole message, or what is none, is there.
    pub fn is_due(&self) -> bool {
        !matches!(Pdu::split(&self.input, self.settings.limits.fragment.into()), Ok(None))
    }

    /// Carries out one message, if a whole one is there.
    ///
    /// # Errors
    /// [`Broken`]: the connection is of no use any more.
    pub fn step(&mut self, host: &mut dyn Host) -> Result<Step, Broken> {
        let most = self.settings.limits.fragment.into();
        let Some((_, len)) = Pdu::split(&self.input, most)? else { return Ok(Step::Starved) };
        let mut raw: Vec<u8> = self.input.drain(..len).collect();
        let Some((pdu, _)) = Pdu::split(&raw, most)? else { return Ok(Step::Starved) };
        match pdu.kind {
            Kind::BIND if !self.bound => self.bind(&pdu, host)?,
            Kind::ALTER_CONTEXT if self.bound => self.alter(&pdu, host)?,
            Kind::AUTH3 if self.bound => self.third_leg(&pdu),
            Kind::REQUEST if self.bound => {
                let call = self.request(&mut raw)?;
                return Ok(call.map_or(Step::Moved, |call| Step::Call(Box::new(call))));
            }
            Kind::CANCEL if self.bound => {
                let there = self.pending.contains_key(&pdu.call_id);
                return Ok(if there { Step::GivenUp(pdu.call_id) } else { Step::Moved });
            }
            Kind::ORPHANED if self.bound => return Ok(self.orphaned(pdu.call_id)),
            kind => return Err(Broken::Unexpected(kind)),
        }
        Ok(Step::Moved)
    }

    /// Answers a call with results or a fault; one that was orphaned has no answer.
    pub fn answer(&mut self, id: u32, result: Result<&[u8], FaultStatus>) {
        let Some(Pending { context, security }) = self.pending.remove(&id) else { return };
        match result {
            Ok(stub) => self.respond(id, context, security, stub),
            Err(status) => self.fault(id, context, status),
        }
    }

    /// Takes the next message that is to be sent.
    pub fn transmit(&mut self) -> Option<Vec<u8>> {
        self.output.pop_front()
    }

    /// Bytes that are to be sent, and those of the first message.
    pub fn unsent(&self) -> (usize, usize) {
        let all = self.output.iter().map(Vec::len).sum();
        (all, self.output.front().map_or(0, Vec::len))
    }

    /// Bytes that it holds: what is to be sent, and what is not yet a whole call.
    pub fn held(&self) -> usize {
        let partial = self.partial.as_ref().map_or(0, |partial| partial.stub.len());
        self.unsent().0 + self.input.len() + partial
    }

    /// Calls that are not answered yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether a client has proved who it is.
    pub fn is_known(&self) -> bool {
        !self.security.secured.is_empty()
    }

    /// The association group that it belongs to, once it is bound.
    pub fn group(&self) -> Option<u32> {
        self.bound.then_some(self.group)
    }

    /// Throws away what it holds of calls and results.
    pub fn clear(&mut self) {
        (self.output, self.input, self.partial) = (VecDeque::new(), Vec::new(), None);
    }

    fn orphaned(&mut self, id: u32) -> Step {
        if self.partial.as_ref().is_some_and(|partial| partial.id == id) {
            self.partial = None;
        }
        match self.pending.remove(&id) {
            Some(_) => Step::GivenUp(id),
            None => Step::Moved,
        }
    }

    fn fault(&mut self, id: u32, context: u16, status: FaultStatus) {
        let put = |out: &mut Vec<u8>| put_fault(out, context, status);
        self.output.push_back(Pdu::encode(Kind::FAULT, WHOLE, id, put));
    }

    /// Says that a message breaks a rule, and is done with the connection (MS-RPCE 3.3.3.5.7).
    fn against(&mut self, id: u32, rule: &'static str) -> Broken {
        self.fault(id, 0, FaultStatus::PROTOCOL_ERROR);
        Broken::Rule(rule)
    }

    /// Finds out whose request it is, and opens it in place. Gives its security context, and where its
    /// body ends.
    fn authentic(&mut self, raw: &mut [u8]) -> Result<(Option<u32>, usize), Broken> {
        let most = self.settings.limits.fragment.into();
        let Some((pdu, _)) = Pdu::split(raw, most)? else { return Ok((None, 0)) };
        let (id, header) = (pdu.call_id, if pdu.flags.has(Flags::OBJECT) { 16 } else { 0 });
        let Some(verifier) = pdu.auth else {
            // MS-RPCE 3.3.1.5.4: the only context, where it protects nothing.
            let mut all = self.security.secured.iter();
            let only = all.next().filter(|(_, (it, _))| it.level == Level::Connect);
            let only = only.map(|(id, _)| *id).filter(|_| all.next().is_none());
            return Ok((only, raw.len()));
        };
        let (context, token) = (verifier.context, verifier.token.len());
        let (kind, level) = (verifier.kind, verifier.level);
        if self.security.failed.contains(&context) || self.security.begun.contains_key(&context) {
            self.fault(id, 0, FaultStatus::SECURITY);
            return Err(Broken::Refused);
        }
        let Some((secured, _)) = self.security.secured.get_mut(&context) else {
            return Err(self.against(id, "a security context that is not there"));
        };
        if secured.kind.0 != kind || secured.level as u8 != level {
            return Err(self.against(id, "another kind or level of authentication than was agreed"));
        }
        match secured.open(raw, CALL_HEADER_LEN + header, token) {
            Ok(end) => Ok((Some(context), end)),
            Err(error) => {
                self.fault(id, 0, FaultStatus::SECURITY);
                Err(Broken::NotAuthentic(error))
            }
        }
    }

    fn request(&mut self, raw: &mut [u8]) -> Result<Option<Call>, Broken> {
        let (security, end) = self.authentic(raw)?;
        let flags = Flags(raw[3]);
        let id = u32::from_le_bytes([raw[12], raw[13], raw[14], raw[15]]);
        let request = Request::parse(flags, &raw[HEADER_LEN..end.max(HEADER_LEN)])?;
        if flags.has(Flags::FIRST) {
            if self.partial.is_some() {
                return Err(self.against(id, "a call before the one before it is whole"));
            }
            if self.pending.contains_key(&id) {
                return Err(self.against(id, "a call by the number of another"));
            }
            self.partial = Some(Partial {
                id,
                context: request.context,
                opnum: request.opnum,
                security,
                stub: Vec::new(),
                too_long: false,
            });
        }
        let Some(partial) = self.partial.as_mut().filter(|partial| partial.id == id) else {
            return Err(Broken::Unexpected(Kind::REQUEST));
        };
        if partial.security != security || partial.context != request.context {
            return Err(self.against(id, "fragments of one call in several contexts"));
        }
        let last = flags.has(Flags::LAST);
        let signed = last && self.protects(security);
        let (stub, verification) = match signed {
            true => without_verification(request.stub),
            false => (request.stub, None),
        };
        let Some(partial) = self.partial.as_mut() else { return Ok(None) };
        if partial.stub.len() + stub.len() > self.settings.limits.call {
            partial.too_long = true;
        } else {
            partial.stub.extend_from_slice(stub);
        }
        if !last {
            return Ok(None);
        }
        let Some(partial) = self.partial.take() else { return Ok(None) };
        let commands = verification.map(|it| it.commands());
        if !commands.is_none_or(|commands| self.verified(&partial, commands)) {
            self.fault(id, partial.context, FaultStatus::ACCESS_DENIED);
            return Ok(None);
        }
        Ok(self.whole(partial))
    }

    /// Whether messages of a security context are signed.
    fn protects(&self, security: Option<u32>) -> bool {
        let secured = security.and_then(|id| self.security.secured.get(&id));
        secured.is_some_and(|(secured, _)| secured.level >= Level::Integrity)
    }

    /// Whether what a verification trailer says of the call is so (MS-RPCE 2.2.2.13).
    fn verified(&self, call: &Partial, commands: Option<Vec<Command>>) -> bool {
        let signing = self.security.header_signing == Some(true);
        let bound = self.contexts.get(&call.context);
        commands.is_some_and(|commands| {
            commands.iter().all(|command| match command {
                Command::HeaderSigning(theirs) => !theirs || signing,
                Command::Context(interface, transfer) => bound
                    .is_some_and(|(own, how)| own.serves(interface) && how.syntax() == *transfer),
                Command::Header(kind, id, context, opnum) => {
                    (*kind, *id, *context, *opnum)
                        == (Kind::REQUEST, call.id, call.context, call.opnum)
                }
                Command::Unknown => false,
            })
        })
    }

    /// What becomes of a call that is whole.
    fn whole(&mut self, call: Partial) -> Option<Call> {
        let Partial { id, context, opnum, security, stub, too_long } = call;
        let found = self.contexts.get(&context).copied();
        let refused = match found {
            _ if too_long || self.pending.len() >= self.settings.limits.calls => {
                Some(FaultStatus::OUT_OF_MEMORY)
            }
            None => Some(FaultStatus::UNKNOWN_INTERFACE),
            Some(_) => None,
        };
        if let Some(status) = refused {
            self.fault(id, context, status);
            return None;
        }
        let (interface, transfer) = found?;
        self.pending.insert(id, Pending { context, security });
        let caller = security.and_then(|id| self.security.secured.get(&id));
        let caller = caller.map(|(_, caller)| caller.clone());
        Some(Call { id, interface, transfer, opnum, stub, caller })
    }

    /// Cuts results into fragments.
    fn respond(&mut self, id: u32, context: u16, security: Option<u32>, stub: &[u8]) {
        let Self { security: all, fragment, output, .. } = self;
        let mut secured = security.and_then(|id| all.secured.get_mut(&id)).map(|(it, _)| it);
        let room = match &secured {
            Some(secured) => secured.room((*fragment).into()),
            None => (usize::from(*fragment) - CALL_HEADER_LEN) & !7,
        };
        let mut at = 0;
        loop {
            let end = stub.len().min(at + room);
            let mut flags = Flags::NONE;
            if at == 0 {
                flags |= Flags::FIRST;
            }
            if end == stub.len() {
                flags |= Flags::LAST;
            }
            let put = |out: &mut Vec<u8>| {
                put_response(out, context, stub.len() - at, &stub[at..end]);
            };
            let mut message = Pdu::encode(Kind::RESPONSE, flags, id, put);
            if let Some(secured) = &mut secured {
                secured.protect(&mut message);
            }
            output.push_back(message);
            if end == stub.len() {
                return;
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests;
