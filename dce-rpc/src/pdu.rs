//! The messages of connection-oriented RPC (C706 12.6, MS-RPCE 2.2.2): a common header of 16
//! bytes, then what the type says, then what proves who sent it.
//!
//! ```text
//!  ┌ header 16 ┐┌ of a call 8 ┐┌ stub or other body ┐┌ filling ┐┌ sec_trailer 8 ┐┌ token ┐
//! ```

mod answers;
mod trailer;

use nom::Parser;
use smb_protocol::{
    flag_set, open_enum,
    parse::{
        Input, Parsed, array, counted, part, rest, run, size8, size16, skip, such, u8, u16, u32,
        with,
    },
    wire::{Put, Result, len16},
};

pub use self::{
    answers::{Answer, BindAnswer, Nak, Verdicts},
    trailer::{Command, TRAILER_LEN, Verification, Verifier, without_verification},
};
use crate::{FaultStatus, Features, SyntaxId, Transfer};

open_enum! {
    /// `PTYPE`.
    Kind: u8 {
        /// A part of a call.
        REQUEST = 0,
        /// A part of its result.
        RESPONSE = 2,
        /// Why it has none.
        FAULT = 3,
        /// Begin of an association.
        BIND = 11,
        /// Its acceptance.
        BIND_ACK = 12,
        /// Its refusal.
        BIND_NAK = 13,
        /// More interfaces.
        ALTER_CONTEXT = 14,
        /// Which of them.
        ALTER_CONTEXT_RESPONSE = 15,
        /// The third part of an authentication.
        AUTH3 = 16,
        /// Give up a call.
        CANCEL = 18,
        /// Forget a call.
        ORPHANED = 19,
    }
}

flag_set! {
    /// `pfc_flags`.
    Flags: u8 {
        /// The first fragment of a call.
        FIRST = 1,
        /// The last one.
        LAST = 2,
        /// Headers are signed, too: in the messages that bind (MS-RPCE 2.2.2.3).
        SUPPORT_HEADER_SIGN = 4,
        /// Several calls may be under way.
        CONCURRENT_MULTIPLEX = 0x10,
        /// A UUID stands before the stub.
        OBJECT = 0x80,
    }
}

/// Length of the common header.
pub const HEADER_LEN: usize = 16;
/// Length of what a request or response has before its stub.
pub const CALL_HEADER_LEN: usize = HEADER_LEN + 8;

/// The common header and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pdu<'a> {
    /// What it is.
    pub kind: Kind,
    /// Where it stands among its fragments.
    pub flags: Flags,
    /// Which call it belongs to.
    pub call_id: u32,
    /// What follows the header, without authentication data.
    pub body: &'a [u8],
    /// Authentication data that it carries.
    pub auth: Option<Verifier<'a>>,
}

/// The common header without its version, which is always the same.
struct Head {
    kind: Kind,
    flags: Flags,
    /// Length of the whole message.
    len: u16,
    /// Length of its authentication data.
    auth: usize,
    call_id: u32,
}

/// Reads the header of a message of `most` bytes at most (C706 12.6.3.1, MS-RPCE 2.2.2.1).
fn head(most: usize) -> impl Fn(Input<'_>) -> Parsed<'_, Head> {
    // Little-endian, ASCII, IEEE.
    const REPRESENTATION: u32 = 0x10;
    let possible = move |len: u16| (HEADER_LEN..=most).contains(&len.into());
    move |input| {
        let (i, (_, _, kind, flags, _, len, auth, call_id)) = (
            such(u8, "rpc.Version", |version| version == 5),
            such(u8, "rpc.MinorVersion", |minor| minor <= 1),
            u8("rpc.PType").map(Kind),
            u8("rpc.Flags").map(Flags),
            such(u32, "rpc.DataRepresentation", |value| value & 0xff == REPRESENTATION),
            such(u16, "rpc.FragLength", possible),
            size16("rpc.AuthLength"),
            u32("rpc.CallId"),
        )
            .parse(input)?;
        Ok((i, Head { kind, flags, len, auth, call_id }))
    }
}

impl<'a> Pdu<'a> {
    /// The first message of a byte stream with its length; `None` if more bytes are needed. No
    /// message is longer than `most`.
    ///
    /// # Errors
    /// The header is not one of version 5 in little-endian order, its length is less than its own
    /// or more than `most`, or the authentication data do not fit into it.
    pub fn split(bytes: &'a [u8], most: usize) -> Result<Option<(Self, usize)>> {
        if bytes.len() < HEADER_LEN {
            return Ok(None);
        }
        with(Input::new(bytes), |input| {
            let (i, Head { kind, flags, len, auth, call_id }) = head(most)(input)?;
            let len = usize::from(len);
            if bytes.len() < len {
                return Ok((i, None));
            }
            let (i, body) = part(len - HEADER_LEN, "rpc.FragLength")(i)?;
            let (body, auth) = trailer::split(body, auth)?;
            Ok((i, Some((Self { kind, flags, call_id, body, auth }, len))))
        })
    }

    /// The same with authentication data behind it; without a token there are none.
    pub fn encode_with(
        kind: Kind,
        flags: Flags,
        call_id: u32,
        verifier: &Verifier<'_>,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Vec<u8> {
        let mut out = Self::encode(kind, flags, call_id, body);
        if !verifier.token.is_empty() {
            verifier.append(&mut out);
        }
        out
    }

    /// A message: the common header and what `body` appends to it.
    pub fn encode(
        kind: Kind,
        flags: Flags,
        call_id: u32,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Vec<u8> {
        let mut out = vec![5, 0, kind.0, flags.0, 0x10, 0, 0, 0, 0, 0, 0, 0];
        out.put_u32(call_id);
        body(&mut out);
        let len = len16(out.len());
        out.patch(8, &len.to_le_bytes());
        out
    }
}

/// What a client wants to talk about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// Its name in this association.
    pub id: u16,
    /// The interface.
    pub interface: SyntaxId,
    /// How data may be represented.
    pub transfers: Vec<SyntaxId>,
}

/// Bind and alter context (C706 12.6.4.1, 12.6.4.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bind {
    /// Longest fragment that the client sends.
    pub max_transmit: u16,
    /// Longest fragment that the client takes.
    pub max_receive: u16,
    /// Association group, 0 for a new one.
    pub group: u32,
    /// What it wants.
    pub contexts: Vec<Context>,
}

/// Length of a syntax identifier.
const SYNTAX_LEN: usize = 20;

fn syntax(input: Input<'_>) -> Parsed<'_, SyntaxId> {
    (array("rpc.Syntax"), u16("rpc.SyntaxMajor"), u16("rpc.SyntaxMinor"))
        .map(|(uuid, major, minor)| SyntaxId { uuid, major, minor })
        .parse(input)
}

/// `p_cont_elem_t` (C706 12.6.3.1).
fn context(input: Input<'_>) -> Parsed<'_, Context> {
    let (i, (id, transfers, _, interface)) = (
        u16("bind.ContextId"),
        size8("bind.NumTransferSyntaxes"),
        skip(1, "bind.Reserved2"),
        syntax,
    )
        .parse(input)?;
    let (i, transfers) =
        counted(transfers, SYNTAX_LEN, "bind.NumTransferSyntaxes", syntax).parse(i)?;
    Ok((i, Context { id, interface, transfers }))
}

/// Puts an interface or transfer syntax.
fn put_syntax(out: &mut Vec<u8>, id: &SyntaxId) {
    out.put(&id.uuid);
    out.put_u16(id.major);
    out.put_u16(id.minor);
}

impl Bind {
    /// Reads the body of a bind or alter context, which starts behind the common header.
    ///
    /// # Errors
    /// It ends within a field, or before the contexts that it counts.
    pub fn parse(body: &[u8]) -> Result<Self> {
        with(Input::new(body), |input| {
            let (i, (max_transmit, max_receive, group, count, _)) = (
                u16("bind.MaxXmitFrag"),
                u16("bind.MaxRecvFrag"),
                u32("bind.AssocGroupId"),
                size8("bind.NumContexts"),
                skip(3, "bind.Reserved"),
            )
                .parse(input)?;
            let least = 4 + SYNTAX_LEN;
            let (i, contexts) = counted(count, least, "bind.NumContexts", context).parse(i)?;
            Ok((i, Self { max_transmit, max_receive, group, contexts }))
        })
    }

    /// Appends the body of a bind or alter context behind the common header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.max_transmit);
        out.put_u16(self.max_receive);
        out.put_u32(self.group);
        out.put_u32(self.contexts.len() as u32 & 0xff);
        for context in &self.contexts {
            out.put_u16(context.id);
            out.put_u16(context.transfers.len() as u16 & 0xff);
            put_syntax(out, &context.interface);
            context.transfers.iter().for_each(|id| put_syntax(out, id));
        }
    }
}

/// What became of one context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted, with this transfer syntax.
    Accepted(Transfer),
    /// Features were negotiated: these.
    Features(Features),
    /// The interface is not here.
    NoInterface,
    /// None of the transfer syntaxes is known.
    NoTransferSyntax,
}

/// Bind ack and alter context response (C706 12.6.4.4, 12.6.4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindAck<'a> {
    /// Longest fragment that the server sends.
    pub max_transmit: u16,
    /// Longest fragment that the server takes.
    pub max_receive: u16,
    /// Association group.
    pub group: u32,
    /// The pipe as a secondary address, empty in the answer to alter context.
    pub address: &'a str,
    /// One for each context.
    pub verdicts: Vec<Verdict>,
}

impl BindAck<'_> {
    /// Appends the body of a bind ack or alter context response behind the common header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u16(self.max_transmit);
        out.put_u16(self.max_receive);
        out.put_u32(self.group);
        if self.address.is_empty() {
            out.put_u16(0);
        } else {
            out.put_u16(len16(self.address.len() + 1));
            out.put(self.address.as_bytes());
            out.put_u8(0);
        }
        out.pad_to(start, 4);
        out.put_u32(self.verdicts.len() as u32 & 0xff);
        for verdict in &self.verdicts {
            let (result, reason, transfer) = match verdict {
                Verdict::Accepted(transfer) => (0, 0, transfer.syntax()),
                Verdict::Features(features) => (3, features.0.into(), SyntaxId::default()),
                Verdict::NoInterface => (2, 1, SyntaxId::default()),
                Verdict::NoTransferSyntax => (2, 2, SyntaxId::default()),
            };
            out.put_u16(result);
            out.put_u16(reason);
            put_syntax(out, &transfer);
        }
    }
}

/// A part of a call (C706 12.6.4.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The context that was bound.
    pub context: u16,
    /// The operation.
    pub opnum: u16,
    /// Parameters, or a part of them.
    pub stub: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a request, which starts behind the common header.
    ///
    /// # Errors
    /// It ends before the stub.
    pub fn parse(flags: Flags, body: &'a [u8]) -> Result<Self> {
        let object = if flags.has(Flags::OBJECT) { 16 } else { 0 };
        let fields = (
            skip(4, "request.AllocHint"),
            u16("request.ContextId"),
            u16("request.OpNum"),
            skip(object, "request.Object"),
            rest,
        );
        let request = fields.map(|(_, context, opnum, _, stub)| Self { context, opnum, stub });
        run(Input::new(body), request)
    }

    /// Appends the body of a request behind the common header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.stub.len() as u32);
        out.put_u16(self.context);
        out.put_u16(self.opnum);
        out.put(self.stub);
    }
}

/// Appends the body of a response: `left` bytes of stub from here on to the end of the call, of
/// which `stub` stands in this fragment (C706 12.6.4.10).
pub fn put_response(out: &mut Vec<u8>, context: u16, left: usize, stub: &[u8]) {
    out.put_u32(left as u32);
    out.put_u16(context);
    out.put_u16(0);
    out.put(stub);
}

/// Appends the body of a fault (C706 12.6.4.7).
pub fn put_fault(out: &mut Vec<u8>, context: u16, status: FaultStatus) {
    // Fields of the header and the status are 16 bytes (MS-RPCE 2.2.2.8).
    out.put_u32(0);
    out.put_u16(context);
    out.put_u16(0);
    out.put_u32(status.0);
    out.put_u32(0);
}

open_enum! {
    /// Why a bind is refused (C706 12.6.3.1, MS-RPCE 2.2.2.5).
    NakReason: u16 {
        /// For a reason that has no number.
        NOT_SPECIFIED = 0,
        /// There is no room.
        LOCAL_LIMIT_EXCEEDED = 2,
        /// The message is none.
        PROTOCOL_VERSION_NOT_SPECIFIED = 4,
        /// This authentication is not spoken.
        AUTHENTICATION_TYPE_NOT_RECOGNIZED = 8,
        /// The logon failed.
        INVALID_CHECKSUM = 9,
    }
}

/// Appends the body of a bind nak behind the common header (C706 12.6.4.5): the one version is 5.0.
pub fn put_nak(out: &mut Vec<u8>, reason: NakReason) {
    out.put_u16(reason.0);
    out.put(&[1, 5, 0]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> impl Strategy<Value = SyntaxId> {
        (any::<[u8; 16]>(), any::<u16>(), any::<u16>()).prop_map(|(uuid, major, minor)| SyntaxId {
            uuid,
            major,
            minor,
        })
    }

    fn bind() -> impl Strategy<Value = Bind> {
        let context = (any::<u16>(), id(), prop::collection::vec(id(), 0..4))
            .prop_map(|(id, interface, transfers)| Context { id, interface, transfers });
        (any::<u16>(), any::<u16>(), any::<u32>(), prop::collection::vec(context, 0..5)).prop_map(
            |(max_transmit, max_receive, group, contexts)| Bind {
                max_transmit,
                max_receive,
                group,
                contexts,
            },
        )
    }

    #[test]
    fn the_uuid_of_ndr_is_written_as_it_is_known() {
        assert_eq!(format!("{:?}", SyntaxId::NDR), "8a885d04-1ceb-11c9-9fe8-08002b104860 v2.0");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn binds_and_requests_round_trip(
            bind in bind(), call_id: u32, context: u16, opnum: u16,
            stub in prop::collection::vec(any::<u8>(), 0..200), behind in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let whole = Flags::FIRST.or(Flags::LAST);
            let bytes = Pdu::encode(Kind::BIND, whole, call_id, |out| bind.encode(out));
            let (pdu, len) = Pdu::split(&bytes, 5000).unwrap().unwrap();
            prop_assert_eq!((len, pdu.kind, pdu.call_id), (bytes.len(), Kind::BIND, call_id));
            prop_assert_eq!(Bind::parse(pdu.body).unwrap(), bind.clone());
            let verifier = Verifier { kind: 9, level: 6, context: 3, token: &stub };
            let bytes = Pdu::encode_with(Kind::BIND, whole, call_id, &verifier, |out| bind.encode(out));
            let (pdu, _) = Pdu::split(&bytes, 5000).unwrap().unwrap();
            prop_assert_eq!(Bind::parse(pdu.body).unwrap(), bind);
            prop_assert_eq!(pdu.auth, (!stub.is_empty()).then_some(verifier));
            let request = Request { context, opnum, stub: &stub };
            let mut bytes = Pdu::encode(Kind::REQUEST, Flags::FIRST, call_id, |out| request.encode(out));
            let whole = bytes.len();
            bytes.extend(behind);
            let (pdu, len) = Pdu::split(&bytes, 5000).unwrap().unwrap();
            prop_assert_eq!(len, whole);
            prop_assert_eq!(Request::parse(pdu.flags, pdu.body).unwrap(), request);
            prop_assert_eq!(Pdu::split(&bytes[..whole - 1], 5000).unwrap(), None);
        }

        #[test]
        fn parsing_is_total(mut noise in prop::collection::vec(any::<u8>(), 0..120), real: bool) {
            if real && noise.len() >= 10 {
                noise[0] = 5; noise[1] = 0; noise[4] = 0x10;
                let len = noise.len() as u16;
                noise[8..10].copy_from_slice(&len.to_le_bytes());
            }
            if let Ok(Some((pdu, len))) = Pdu::split(&noise, 5000) {
                prop_assert!(len <= noise.len() && pdu.body.len() + HEADER_LEN <= len);
                let _ = Bind::parse(pdu.body);
                let _ = BindAnswer::parse(pdu.body);
                let _ = Nak::parse(pdu.body);
                let _ = Answer::parse(pdu.body);
                let _ = Answer::parse_fault(pdu.body);
                let _ = Request::parse(pdu.flags, pdu.body);
            }
        }
    }
}
