//! What proves who sent a message (MS-RPCE 2.2.2.11), and the verification trailer behind the stub of
//! a request (2.2.2.13).

use nom::Parser;
use smb_protocol::{
    flag_set,
    parse::{Failed, Input, bytes, part, size8, size16, skip, u8, u32},
    wire::{Put, len16},
};

use super::{Kind, SyntaxId};

/// Length of a `sec_trailer` in bytes, without the token behind it.
pub const TRAILER_LEN: usize = 8;
/// What a `sec_trailer` is aligned to from the beginning of the body.
const ALIGNED: usize = 16;
/// Field of the errors.
const FIELD: &str = "rpc.AuthLength";

/// `sec_trailer` and token of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verifier<'a> {
    /// `auth_type`.
    pub kind: u8,
    /// `auth_level`.
    pub level: u8,
    /// `auth_context_id`: which security context.
    pub context: u32,
    /// The authentication token.
    pub token: &'a [u8],
}

/// Parts a body from its authentication data of `auth` bytes of token, and from what fills up to them.
pub(super) fn split(body: Input<'_>, auth: usize) -> Result<(&[u8], Option<Verifier<'_>>), Failed> {
    if auth == 0 {
        return Ok((body.bytes(), None));
    }
    let at = body.len().checked_sub(auth + TRAILER_LEN);
    let at = at.ok_or_else(|| body.impossible(FIELD, auth as u64))?;
    let (i, _) = part(at, FIELD)(body)?;
    let (_, (kind, level, filling, (), context, token)) =
        (u8(FIELD), u8(FIELD), size8(FIELD), skip(1, FIELD), u32(FIELD), bytes(auth, FIELD))
            .parse(i)?;
    let end = at.checked_sub(filling);
    let end = end.ok_or_else(|| body.impossible("rpc.AuthPadLength", filling as u64))?;
    let body = part(end, FIELD)(body)?.1.bytes();
    Ok((body, Some(Verifier { kind, level, context, token })))
}

impl Verifier<'_> {
    /// Appends filling and `sec_trailer` to a message whose body begins at `start` and whose token will
    /// have `token` bytes, and says so in its header. The token is the caller's to append.
    pub fn announce(&self, out: &mut Vec<u8>, start: usize, token: usize) {
        let before = out.len();
        out.pad_to(start, ALIGNED);
        let filling = out.len() - before;
        out.put(&[self.kind, self.level, filling as u8 & 0xf, 0]);
        out.put_u32(self.context);
        let whole = len16(out.len() + token);
        out.patch(8, &whole.to_le_bytes());
        out.patch(10, &len16(token).to_le_bytes());
    }

    /// Appends all of it to a message.
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        self.announce(out, super::HEADER_LEN, self.token.len());
        out.put(self.token);
    }
}

/// A command of a verification trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `rpc_sec_vt_bitmask`: whether the client signs headers.
    HeaderSigning(bool),
    /// `rpc_sec_vt_pcontext`: interface and transfer syntax of the context.
    Context(SyntaxId, SyntaxId),
    /// `rpc_sec_vt_header2`: kind, call, context and operation of the message.
    Header(Kind, u32, u16, u16),
    /// One that is not known, and that must be.
    Unknown,
}

/// A verification trailer, read one command after another. One that ends too early, or has a command
/// of a wrong length, has no end.
#[derive(Debug, Clone, Copy)]
pub struct Verification<'a>(&'a [u8]);

/// What every verification trailer begins with (MS-RPCE 2.2.2.13.1).
const SIGNATURE: [u8; 8] = [0x8a, 0xe3, 0x13, 0x71, 0x02, 0xf4, 0x36, 0x71];
/// How far from the end of a stub one is looked for; the longest has 8 + 8 + 20 + 44 bytes.
const LOOKED_AT: usize = 1024;

flag_set! {
    /// How a command is treated (MS-RPCE 2.2.2.13).
    Rules: u16 {
        /// It is the last one.
        END = 0x4000,
        /// Who does not know it refuses the request.
        MUST_PROCESS = 0x8000,
    }
}

/// Parts a stub from the verification trailer behind it, if there is one.
pub fn without_verification(stub: &[u8]) -> (&[u8], Option<Verification<'_>>) {
    let first = stub.len().saturating_sub(LOOKED_AT).next_multiple_of(4);
    let found = (first..stub.len()).step_by(4).rev().find(|at| stub[*at..].starts_with(&SIGNATURE));
    match found {
        Some(at) => (&stub[..at], Some(Verification(&stub[at + SIGNATURE.len()..]))),
        None => (stub, None),
    }
}

impl Verification<'_> {
    /// All commands; `None` if they are malformed.
    pub fn commands(self) -> Option<Vec<Command>> {
        let mut found = Vec::new();
        let mut left = Input::new(self.0);
        loop {
            let (i, (word, len)) = (size16("vt.Command"), size16("vt.Length")).parse(left).ok()?;
            let (i, content) = bytes(len, "vt.Length")(i).ok()?;
            left = i;
            let rules = Rules(word as u16);
            match (word & 0x3fff, content) {
                (1, [bits, _, _, _]) => found.push(Command::HeaderSigning(bits & 1 != 0)),
                (2, content) if content.len() == 40 => {
                    let both = (super::syntax, super::syntax).parse(Input::new(content));
                    let (_, (interface, transfer)) = both.ok()?;
                    found.push(Command::Context(interface, transfer));
                }
                (3, &[kind, _, _, _, 0x10, _, _, _, a, b, c, d, e, f, g, h]) => {
                    let call = u32::from_le_bytes([a, b, c, d]);
                    let (context, opnum) = (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
                    found.push(Command::Header(Kind(kind), call, context, opnum));
                }
                (1..=3, _) => return None,
                _ if rules.has(Rules::MUST_PROCESS) => found.push(Command::Unknown),
                _ => {}
            }
            if rules.has(Rules::END) {
                return Some(found);
            }
        }
    }

    /// Appends a trailer of these commands to a stub.
    pub fn append(out: &mut Vec<u8>, commands: &[Command]) {
        out.pad_to(0, 4);
        out.put(&SIGNATURE);
        for (at, command) in commands.iter().enumerate() {
            let end = if at + 1 == commands.len() { Rules::END } else { Rules::NONE };
            match command {
                Command::HeaderSigning(signs) => {
                    out.put_u16(1 | end.0);
                    out.put_u16(4);
                    out.put_u32((*signs).into());
                }
                Command::Context(interface, transfer) => {
                    out.put_u16(2 | end.0);
                    out.put_u16(40);
                    super::put_syntax(out, interface);
                    super::put_syntax(out, transfer);
                }
                Command::Header(kind, call, context, opnum) => {
                    out.put_u16(3 | end.0);
                    out.put_u16(16);
                    out.put(&[kind.0, 0, 0, 0, 0x10, 0, 0, 0]);
                    out.put_u32(*call);
                    out.put_u16(*context);
                    out.put_u16(*opnum);
                }
                Command::Unknown => {
                    out.put_u16(0x3fff | end.0 | Rules::MUST_PROCESS.0);
                    out.put_u16(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command() -> impl Strategy<Value = Command> {
        let id = any::<[u8; 16]>().prop_map(|uuid| SyntaxId { uuid, major: 1, minor: 0 });
        prop_oneof![
            any::<bool>().prop_map(Command::HeaderSigning),
            (id.clone(), id).prop_map(|(a, b)| Command::Context(a, b)),
            (any::<u32>(), any::<u16>(), any::<u16>())
                .prop_map(|(call, context, opnum)| Command::Header(Kind(0), call, context, opnum)),
            Just(Command::Unknown),
        ]
    }

    /// MS-RPCE 2.2.2.13.2: the bitmask with the end of the trailer in its command.
    #[test]
    fn a_bitmask_is_written_as_the_specification_has_it() {
        let mut out = vec![1, 2, 3];
        Verification::append(&mut out, &[Command::HeaderSigning(true)]);
        assert_eq!(out[..4], [1, 2, 3, 0]);
        assert_eq!(out[4..12], SIGNATURE);
        assert_eq!(out[12..], [1, 0x40, 4, 0, 1, 0, 0, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn trailers_are_found_and_read_back(
            stub in prop::collection::vec(any::<u8>(), 0..50), filling in 0..16usize,
            commands in prop::collection::vec(command(), 1..5),
        ) {
            let mut out = stub.clone();
            Verification::append(&mut out, &commands);
            out.extend(std::iter::repeat_n(0, filling));
            let (before, found) = without_verification(&out);
            prop_assert_eq!(&before[..stub.len()], &stub[..]);
            prop_assert!(before.len() < stub.len() + 4);
            prop_assert_eq!(found.unwrap().commands(), Some(commands));
        }

        #[test]
        fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..90), cut: bool) {
            let mut stub = if cut { SIGNATURE.to_vec() } else { Vec::new() };
            stub.extend(&noise);
            if let (_, Some(found)) = without_verification(&stub)
                && let Some(commands) = found.commands()
            {
                prop_assert!(commands.len() <= noise.len() / 4);
            }
        }
    }
}
