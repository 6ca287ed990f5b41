//! The server's side of one pipe: binds, calls in fragments, results in fragments.
//!
//! ```text
//!  Unbound ──bind──► Bound ──request (first … last)──► the call is served ──► fragments to read
//!              ▲       │
//!              └alter──┘
//! ```

use std::collections::{BTreeMap, VecDeque};

use smb_protocol::wire::WireError;

use crate::{
    FaultStatus, SyntaxId,
    pdu::{
        Bind, BindAck, CALL_HEADER_LEN, Flags, Kind, Pdu, Request, Verdict, put_fault, put_response,
    },
};

/// Longest fragment in either direction.
const MAX_FRAGMENT: u16 = 5840;
/// Shortest that a client may ask for.
const MIN_FRAGMENT: u16 = 256;
/// Longest parameters of a call.
const MAX_CALL: usize = 1 << 20;
/// Most that may stand unread when a call is served: who wants more must read first.
const MAX_UNREAD: usize = 256 << 10;
/// Most contexts of an association.
const MAX_CONTEXTS: usize = 32;

/// A call with all its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was bound.
    pub interface: SyntaxId,
    /// The operation.
    pub opnum: u16,
    /// Parameters in NDR.
    pub stub: Vec<u8>,
}

/// Why a pipe cannot be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// What was written is no RPC.
    #[error("not RPC: {0}")]
    Malformed(#[from] WireError),
    /// A message that has no place here.
    #[error("unexpected RPC message {0:?}")]
    Unexpected(Kind),
    /// Results are not read.
    #[error("{0} bytes stand unread")]
    Unread(usize),
}

/// A call of which fragments have come.
#[derive(Debug)]
struct Partial {
    id: u32,
    context: u16,
    opnum: u16,
    stub: Vec<u8>,
    too_long: bool,
}

/// The server's side of one pipe.
#[derive(Debug)]
pub struct Association {
    interfaces: &'static [SyntaxId],
    address: String,
    fragment: u16,
    bound: bool,
    contexts: BTreeMap<u16, SyntaxId>,
    input: Vec<u8>,
    partial: Option<Partial>,
    output: VecDeque<Vec<u8>>,
    /// How much of the first of `output` was read.
    read: usize,
}

impl Association {
    /// A pipe on which `interfaces` are served; `address` is its name as clients are told.
    pub fn new(interfaces: &'static [SyntaxId], address: String) -> Self {
        Self {
            interfaces,
            address,
            fragment: MAX_FRAGMENT,
            bound: false,
            contexts: BTreeMap::new(),
            input: Vec::new(),
            partial: None,
            output: VecDeque::new(),
            read: 0,
        }
    }

    /// Takes what a client wrote; calls that are complete are given to `serve`, which returns the
    /// results or a fault.
    ///
    /// # Errors
    /// What came is no RPC or has no place here, or too many results stand unread. The pipe is of no use
    /// then.
    pub fn write(
        &mut self,
        bytes: &[u8],
        mut serve: impl FnMut(&Call) -> Result<Vec<u8>, FaultStatus>,
    ) -> Result<(), Broken> {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((pdu, len)) = Pdu::split(&input[at..], MAX_FRAGMENT.into())? {
            if self.unread() > MAX_UNREAD {
                return Err(Broken::Unread(self.unread()));
            }
            self.message(&pdu, &mut serve)?;
            at += len;
        }
        input.drain(..at);
        self.input = input;
        Ok(())
    }

    /// Takes up to `most` bytes of one fragment, and how many of it are left; `None` if there is
    /// none.
    pub fn read(&mut self, most: usize) -> Option<(Vec<u8>, usize)> {
        let front = self.output.front()?;
        let end = front.len().min(self.read.saturating_add(most));
        let taken = front[self.read..end].to_vec();
        let left = front.len() - end;
        if left == 0 {
            self.output.pop_front();
            self.read = 0;
        } else {
            self.read = end;
        }
        Some((taken, left))
    }

    /// Throws away what it holds.
    pub fn clear(&mut self) {
        (self.output, self.read) = (VecDeque::new(), 0);
        (self.input, self.partial) = (Vec::new(), None);
    }

    /// Bytes that stand to be read, and those of the first fragment.
    pub fn available(&self) -> (usize, usize) {
        (self.unread(), self.output.front().map_or(0, |front| front.len() - self.read))
    }

    /// Bytes that it holds: what stands to be read, and what is not yet a whole call.
    pub fn held(&self) -> usize {
        let partial = self.partial.as_ref().map_or(0, |partial| partial.stub.len());
        self.unread() + self.input.len() + partial
    }

    fn unread(&self) -> usize {
        self.output.iter().map(Vec::len).sum::<usize>() - self.read
    }

    fn message(
        &mut self,
        pdu: &Pdu<'_>,
        serve: &mut impl FnMut(&Call) -> Result<Vec<u8>, FaultStatus>,
    ) -> Result<(), Broken> {
        match pdu.kind {
            Kind::BIND if !self.bound => self.bind(pdu, Kind::BIND_ACK),
            Kind::ALTER_CONTEXT if self.bound => self.bind(pdu, Kind::ALTER_CONTEXT_RESPONSE),
            Kind::REQUEST if self.bound => self.request(pdu, serve),
            // Calls are served before anything else is read: there is none to give up.
            Kind::CANCEL | Kind::ORPHANED | Kind::AUTH3 if self.bound => Ok(()),
            kind => Err(Broken::Unexpected(kind)),
        }
    }

    fn bind(&mut self, pdu: &Pdu<'_>, answer: Kind) -> Result<(), Broken> {
        const WHOLE: Flags = Flags::FIRST.or(Flags::LAST);
        if pdu.authenticated {
            // Who it is is known from the session; nothing more is offered here.
            const AUTHENTICATION_TYPE_NOT_RECOGNIZED: u16 = 8;
            let nak = Pdu::encode(Kind::BIND_NAK, WHOLE, pdu.call_id, |out| {
                out.extend_from_slice(&AUTHENTICATION_TYPE_NOT_RECOGNIZED.to_le_bytes());
                // One version: 5.0.
                out.extend_from_slice(&[1, 5, 0]);
            });
            self.output.push_back(nak);
            return Ok(());
        }
        let bind = Bind::parse(pdu.body)?;
        if answer == Kind::BIND_ACK {
            let least = bind.max_receive.clamp(MIN_FRAGMENT, MAX_FRAGMENT);
            self.fragment = least;
        }
        let mut verdicts = Vec::new();
        for context in &bind.contexts {
            let features = context.transfers.iter().any(SyntaxId::is_feature_negotiation);
            let known = self.interfaces.iter().find(|known| {
                let wanted = &context.interface;
                known.uuid == wanted.uuid
                    && known.major == wanted.major
                    && known.minor >= wanted.minor
            });
            verdicts.push(match known {
                _ if features => Verdict::NoFeatures,
                None => Verdict::NoInterface,
                Some(_) if !context.transfers.contains(&SyntaxId::NDR) => Verdict::NoTransferSyntax,
                Some(_) if self.contexts.len() >= MAX_CONTEXTS => Verdict::NoInterface,
                Some(interface) => {
                    self.contexts.insert(context.id, *interface);
                    Verdict::Accepted
                }
            });
        }
        self.bound = true;
        let ack = BindAck {
            max_transmit: self.fragment,
            max_receive: MAX_FRAGMENT,
            group: if bind.group == 0 { 0x53f0 } else { bind.group },
            address: if answer == Kind::BIND_ACK { &self.address } else { "" },
            verdicts,
        };
        self.output.push_back(Pdu::encode(answer, WHOLE, pdu.call_id, |out| ack.encode(out)));
        Ok(())
    }

    fn request(
        &mut self,
        pdu: &Pdu<'_>,
        serve: &mut impl FnMut(&Call) -> Result<Vec<u8>, FaultStatus>,
    ) -> Result<(), Broken> {
        let request = Request::parse(pdu.flags, pdu.body)?;
        if pdu.flags.has(Flags::FIRST) {
            self.partial = Some(Partial {
                id: pdu.call_id,
                context: request.context,
                opnum: request.opnum,
                stub: Vec::new(),
                too_long: false,
            });
        }
        let Some(partial) = self.partial.as_mut().filter(|partial| partial.id == pdu.call_id)
        else {
            return Err(Broken::Unexpected(pdu.kind));
        };
        if partial.stub.len() + request.stub.len() > MAX_CALL {
            partial.too_long = true;
        } else {
            partial.stub.extend_from_slice(request.stub);
        }
        if !pdu.flags.has(Flags::LAST) {
            return Ok(());
        }
        let Some(partial) = self.partial.take() else { return Ok(()) };
        let Partial { id, context, opnum, stub, too_long } = partial;
        let result = match self.contexts.get(&context) {
            _ if too_long => Err(FaultStatus::OUT_OF_MEMORY),
            None => Err(FaultStatus::UNKNOWN_INTERFACE),
            Some(interface) => serve(&Call { interface: *interface, opnum, stub }),
        };
        match result {
            Ok(stub) => self.respond(id, context, &stub),
            Err(status) => {
                let flags = Flags::FIRST.or(Flags::LAST);
                let put = |out: &mut Vec<u8>| put_fault(out, context, status);
                self.output.push_back(Pdu::encode(Kind::FAULT, flags, id, put));
            }
        }
        Ok(())
    }

    /// Cuts results into fragments.
    fn respond(&mut self, id: u32, context: u16, stub: &[u8]) {
        let room = (usize::from(self.fragment) - CALL_HEADER_LEN) & !7;
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
            self.output.push_back(Pdu::encode(Kind::RESPONSE, flags, id, put));
            if end == stub.len() {
                return;
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pdu::{Context, HEADER_LEN};

    const ECHO: SyntaxId = SyntaxId::new(1, 2, 3, [4; 8], 1, 0);
    const NDR64: SyntaxId = SyntaxId::new(0x7171_0533, 0xbeba, 0x4937, [7; 8], 1, 0);
    const FEATURES: SyntaxId =
        SyntaxId::new(0x6cb7_1c2c, 0x9812, 0x4540, [3, 0, 0, 0, 0, 0, 0, 0], 1, 0);

    fn echo(call: &Call) -> Result<Vec<u8>, FaultStatus> {
        match call.opnum {
            0 => Ok(call.stub.clone()),
            _ => Err(FaultStatus::OP_RANGE),
        }
    }

    fn bind(max_receive: u16) -> Vec<u8> {
        let context = |id, interface, transfers: &[SyntaxId]| Context {
            id,
            interface,
            transfers: transfers.to_vec(),
        };
        let other = SyntaxId { major: 9, ..ECHO };
        let bind = Bind {
            max_transmit: 4280,
            max_receive,
            group: 0,
            contexts: vec![
                context(0, ECHO, &[SyntaxId::NDR]),
                context(1, ECHO, &[NDR64]),
                context(2, ECHO, &[FEATURES]),
                context(3, other, &[SyntaxId::NDR]),
            ],
        };
        Pdu::encode(Kind::BIND, Flags::FIRST.or(Flags::LAST), 1, |out| bind.encode(out))
    }

    fn bound(max_receive: u16) -> Association {
        const INTERFACES: &[SyntaxId] = &[ECHO];
        let mut pipe = Association::new(INTERFACES, "\\PIPE\\echo".into());
        pipe.write(&bind(max_receive), echo).unwrap();
        let (ack, left) = pipe.read(usize::MAX).unwrap();
        assert_eq!((ack[2], left), (Kind::BIND_ACK.0, 0));
        // Each context has its verdict: accepted, no transfer syntax, no features, no interface.
        let results = ack.len() - 4 * 24;
        let verdict = |n: usize| (ack[results + n * 24], ack[results + n * 24 + 2]);
        assert_eq!([0, 1, 2, 3].map(verdict), [(0, 0), (2, 2), (3, 0), (2, 1)]);
        pipe
    }

    fn request(context: u16, opnum: u16, flags: Flags, stub: &[u8]) -> Vec<u8> {
        let request = Request { context, opnum, stub };
        Pdu::encode(Kind::REQUEST, flags, 7, |out| request.encode(out))
    }

    #[test]
    fn faults_name_what_is_wrong() {
        let mut pipe = bound(4280);
        for (context, opnum, status) in
            [(0, 5, FaultStatus::OP_RANGE), (9, 0, FaultStatus::UNKNOWN_INTERFACE)]
        {
            pipe.write(&request(context, opnum, Flags::FIRST.or(Flags::LAST), &[]), echo).unwrap();
            let (fault, _) = pipe.read(usize::MAX).unwrap();
            assert_eq!(fault[2], Kind::FAULT.0);
            assert_eq!(fault[24..28], status.0.to_le_bytes());
        }
    }

    #[test]
    fn what_has_no_place_breaks_the_pipe() {
        let mut pipe = Association::new(&[], String::new());
        let early = request(0, 0, Flags::FIRST.or(Flags::LAST), &[]);
        assert_eq!(pipe.write(&early, echo), Err(Broken::Unexpected(Kind::REQUEST)));
        let mut pipe = bound(4280);
        let middle = request(0, 0, Flags::LAST, &[]);
        assert_eq!(pipe.write(&middle, echo), Err(Broken::Unexpected(Kind::REQUEST)));
        assert!(matches!(pipe.write(&[9; 16], echo), Err(Broken::Malformed(_))));
    }

    #[test]
    fn a_call_that_is_too_long_is_a_fault_and_unread_results_are_bounded() {
        let mut pipe = bound(4280);
        let part = vec![0; 5000];
        let mut flags = Flags::FIRST;
        for _ in 0..=MAX_CALL / part.len() {
            pipe.write(&request(0, 0, flags, &part), echo).unwrap();
            flags = Flags::NONE;
        }
        pipe.write(&request(0, 0, Flags::LAST, &part), echo).unwrap();
        let (fault, _) = pipe.read(usize::MAX).unwrap();
        assert_eq!(fault[24..28], FaultStatus::OUT_OF_MEMORY.0.to_le_bytes());
        let whole = request(0, 0, Flags::FIRST.or(Flags::LAST), &part);
        let refused = (0..2000).find_map(|_| pipe.write(&whole, echo).err());
        assert!(matches!(refused, Some(Broken::Unread(unread)) if unread < MAX_UNREAD + 10_000));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// A call cut anywhere into fragments and writes comes back whole, cut into fragments
        /// that the client can take.
        #[test]
        fn calls_survive_being_cut(
            stub in prop::collection::vec(any::<u8>(), 0..20_000), cut in 1usize..5000,
            piece in 1usize..700, max_receive in 200u16..6000, most in 1usize..3000,
        ) {
            let mut pipe = bound(max_receive);
            let mut bytes = Vec::new();
            let mut parts = stub.chunks(cut).peekable();
            let mut flags = Flags::FIRST;
            if parts.peek().is_none() {
                bytes = request(0, 0, Flags::FIRST.or(Flags::LAST), &[]);
            }
            while let Some(part) = parts.next() {
                if parts.peek().is_none() { flags |= Flags::LAST; }
                bytes.extend(request(0, 0, flags, part));
                flags = Flags::NONE;
            }
            for piece in bytes.chunks(piece) {
                pipe.write(piece, echo).unwrap();
            }
            let (mut back, mut fragment) = (Vec::new(), Vec::new());
            while let Some((taken, left)) = pipe.read(most) {
                prop_assert!(taken.len() <= most);
                fragment.extend(taken);
                if left == 0 {
                    prop_assert!(fragment.len() <= usize::from(max_receive.max(MIN_FRAGMENT)));
                    let (pdu, len) = Pdu::split(&fragment, 6000).unwrap().unwrap();
                    prop_assert_eq!((pdu.kind, pdu.call_id, len), (Kind::RESPONSE, 7, fragment.len()));
                    back.extend_from_slice(&fragment[CALL_HEADER_LEN..]);
                    fragment.clear();
                }
            }
            prop_assert_eq!(back, stub);
            prop_assert_eq!(pipe.available(), (0, 0));
        }

        /// Noise breaks the pipe or is answered; it never does harm.
        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..200), kind: u8) {
            let mut pipe = bound(4280);
            let bytes = Pdu::encode(Kind(kind % 20), Flags::FIRST.or(Flags::LAST), 3, |out| {
                out.extend_from_slice(&noise);
            });
            let _ = pipe.write(&bytes, echo);
            prop_assert!(pipe.available().0 <= 4 * (noise.len() + HEADER_LEN + 1024));
        }
    }
}
