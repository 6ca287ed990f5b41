//! NEGOTIATE, CHALLENGE and AUTHENTICATE (MS-NLMP 2.2.1).

use nom::Parser;

use super::{Error, compute::utf16, oem};
use crate::{
    WireError,
    parse::{self, Failed, Input, Parsed, array, region, size16, size32, skip, such, u32},
};

/// NegotiateFlags (MS-NLMP 2.2.2.5). Unknown bits are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// Strings are UTF-16.
    pub const UNICODE: Self = Self(0x0000_0001);
    /// Strings are in the OEM character set, unless they are UTF-16.
    pub const OEM: Self = Self(0x0000_0002);
    /// The server must name itself.
    pub const REQUEST_TARGET: Self = Self(0x0000_0004);
    /// Message integrity.
    pub const SIGN: Self = Self(0x0000_0010);
    /// Message confidentiality.
    pub const SEAL: Self = Self(0x0000_0020);
    /// NTLM at all.
    pub const NTLM: Self = Self(0x0000_0200);
    /// The client wants to be nobody.
    pub const ANONYMOUS: Self = Self(0x0000_0800);
    /// There is always a session key.
    pub const ALWAYS_SIGN: Self = Self(0x0000_8000);
    /// The target is a server, not a domain.
    pub const TARGET_TYPE_SERVER: Self = Self(0x0002_0000);
    /// Extended session security.
    pub const EXTENDED_SECURITY: Self = Self(0x0008_0000);
    /// CHALLENGE has an attribute list.
    pub const TARGET_INFO: Self = Self(0x0080_0000);
    /// The version field is filled in.
    pub const VERSION: Self = Self(0x0200_0000);
    /// 128-bit keys.
    pub const KEY_128: Self = Self(0x2000_0000);
    /// The client chooses the session key.
    pub const KEY_EXCHANGE: Self = Self(0x4000_0000);
    /// 56-bit keys.
    pub const KEY_56: Self = Self(0x8000_0000);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits that are in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Flags {
    /// Whether the sides can tell each other names: who clears both bits cannot (MS-NLMP 2.2.2.5).
    #[must_use]
    pub const fn has_strings(self) -> bool {
        self.0 & (Self::UNICODE.0 | Self::OEM.0) != 0
    }
}

/// What is wrong with flags without a character set.
const NO_STRINGS: &str = "neither Unicode nor an OEM character set";

/// A string as the flags say it is written.
fn string(text: &str, flags: Flags) -> Vec<u8> {
    if flags.contains(Flags::UNICODE) { utf16(text) } else { oem::encode(text) }
}

const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";

/// Whether bytes are an NTLM message at all (and not, say, SPNEGO).
#[must_use]
pub fn is_ntlm(bytes: &[u8]) -> bool {
    bytes.starts_with(SIGNATURE)
}

/// Reads what every message begins with: `Signature` and `MessageType`.
fn start<'a>(message_type: u32) -> impl Fn(Input<'a>) -> Parsed<'a, ()> {
    move |input| match array("Signature")(input)? {
        (i, signature) if signature == *SIGNATURE => {
            let (i, _) = such(u32, "MessageType", |found| found == message_type)(i)?;
            Ok((i, ()))
        }
        (_, other) => Err(input.impossible("Signature", u64::from_le_bytes(other))),
    }
}

/// Length and offset of a part of the payload.
type Place = (usize, usize);

/// Reads length, maximum length, which says nothing, and offset of a part of the payload.
fn place<'a>(field: &'static str) -> impl Parser<Input<'a>, Output = Place, Error = WireError> {
    (size16(field), skip(2, field), size32(field)).map(|(len, (), offset)| (len, offset))
}

/// The message around the parser of its parts.
struct Message {
    name: &'static str,
}

impl Message {
    fn bad(&self, what: &'static str) -> Error {
        Error::Malformed { message: self.name, what }
    }

    fn wire(&self, error: WireError) -> Error {
        Error::Wire { message: self.name, error }
    }

    /// A name, written as the flags say.
    fn text(&self, bytes: &[u8], flags: Flags) -> Result<String, Error> {
        if !flags.contains(Flags::UNICODE) {
            return Ok(oem::decode(bytes));
        }
        let text = parse::run(Input::new(bytes), parse::text(bytes.len(), "name"));
        text.map_err(|_| self.bad("name is not UTF-16"))
    }
}

/// A part of the payload.
fn payload<'a>(
    whole: Input<'a>,
    (len, offset): Place,
    field: &'static str,
) -> Result<&'a [u8], Failed> {
    region(whole, offset, len, field).map(Input::bytes)
}

/// Writes the fixed part first and the payload behind it.
struct Writer {
    fixed: Vec<u8>,
    payload: Vec<u8>,
    fixed_len: usize,
}

impl Writer {
    fn new(message_type: u32, fixed_len: usize) -> Self {
        let mut fixed = SIGNATURE.to_vec();
        fixed.extend_from_slice(&message_type.to_le_bytes());
        Self { fixed, payload: Vec::new(), fixed_len }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.fixed.extend_from_slice(bytes);
    }

    /// Describes `(offset, len)` of the payload in the fixed part.
    fn describe(&mut self, (offset, len): (usize, usize)) {
        let len = u16::try_from(len).expect("payload parts are cut at 65,535 bytes");
        self.put(&len.to_le_bytes());
        self.put(&len.to_le_bytes());
        let offset = u32::try_from(self.fixed_len + offset).expect("a few parts of 64 KiB");
        self.put(&offset.to_le_bytes());
    }

    fn payload(&mut self, bytes: &[u8]) -> (usize, usize) {
        let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
        let offset = self.payload.len();
        self.payload.extend_from_slice(bytes);
        (offset, bytes.len())
    }

    fn finish(mut self) -> Vec<u8> {
        debug_assert_eq!(self.fixed.len(), self.fixed_len);
        self.fixed.append(&mut self.payload);
        self.fixed
    }
}

/// VERSION: the revision of NTLM only (MS-NLMP 2.2.2.10).
const VERSION: [u8; 8] = [6, 1, 0, 0, 0, 0, 0, 15];

fn version(flags: Flags) -> [u8; 8] {
    if flags.contains(Flags::VERSION) { VERSION } else { [0; 8] }
}

/// NEGOTIATE_MESSAGE; domain and workstation are not used by anyone and not kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiate {
    /// What the client can do.
    pub flags: Flags,
}

impl Negotiate {
    /// Reads a message without a frame of SPNEGO.
    ///
    /// # Errors
    /// It is no NEGOTIATE, is cut, or allows no character set.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const MESSAGE: Message = Message { name: "NEGOTIATE" };
        let fields = (start(1), u32("NegotiateFlags").map(Flags));
        let (_, flags) = parse::run(Input::new(bytes), fields).map_err(|e| MESSAGE.wire(e))?;
        match flags.has_strings() {
            true => Ok(Self { flags }),
            false => Err(MESSAGE.bad(NO_STRINGS)),
        }
    }

    /// The message's bytes, with the version where the flags have it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(1, 40);
        writer.put(&self.flags.0.to_le_bytes());
        writer.describe((0, 0));
        writer.describe((0, 0));
        writer.put(&version(self.flags));
        writer.finish()
    }
}

/// CHALLENGE_MESSAGE (MS-NLMP 2.2.1.2): what the server chose, and its nonce.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Challenge {
    /// What the server chose.
    pub flags: Flags,
    /// The server's nonce.
    pub server_challenge: [u8; 8],
    /// Name of the server.
    pub target_name: String,
    /// Attribute list; see [`super::av::AvList::parse`].
    pub target_info: Vec<u8>,
}

impl Challenge {
    /// Reads a message without a frame of SPNEGO.
    ///
    /// # Errors
    /// It is no CHALLENGE, is cut, a part is outside of it, the name is not UTF-16, or the server does
    /// not speak Unicode.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const MESSAGE: Message = Message { name: "CHALLENGE" };
        let (flags, server_challenge, name, info) = parse::with(Input::new(bytes), |input| {
            let (i, ((), name, flags, challenge, (), info)) = (
                start(2),
                place("TargetName"),
                u32("NegotiateFlags").map(Flags),
                array("ServerChallenge"),
                skip(8, "Reserved"),
                place("TargetInfo"),
            )
                .parse(input)?;
            let name = payload(input, name, "TargetName")?;
            let info = payload(input, info, "TargetInfo")?;
            Ok((i, (flags, challenge, name, info)))
        })
        .map_err(|e| MESSAGE.wire(e))?;
        if !flags.contains(Flags::UNICODE) {
            return Err(Error::Unsupported("Unicode"));
        }
        let target_name = MESSAGE.text(name, flags)?;
        Ok(Self { flags, server_challenge, target_name, target_info: info.to_vec() })
    }

    /// The message's bytes; strings are as the flags say.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(2, 56);
        let name = writer.payload(&string(&self.target_name, self.flags));
        let info = writer.payload(&self.target_info);
        writer.describe(name);
        writer.put(&self.flags.0.to_le_bytes());
        writer.put(&self.server_challenge);
        writer.put(&[0; 8]);
        writer.describe(info);
        writer.put(&version(self.flags));
        writer.finish()
    }
}

/// AUTHENTICATE_MESSAGE (MS-NLMP 2.2.1.3): who the client is, and the proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authenticate {
    /// What was negotiated.
    pub flags: Flags,
    /// LmChallengeResponse.
    pub lm_response: Vec<u8>,
    /// NtChallengeResponse: for NTLMv2 16 bytes of proof and the NTLMv2_CLIENT_CHALLENGE.
    pub nt_response: Vec<u8>,
    /// Domain of the user.
    pub domain: String,
    /// Name of the user.
    pub user: String,
    /// Name of the client's computer.
    pub workstation: String,
    /// EncryptedRandomSessionKey.
    pub encrypted_key: Vec<u8>,
    /// Message integrity code, if the message has room for one before its payload.
    pub mic: Option<[u8; 16]>,
}

impl Authenticate {
    /// Where the MIC lies in a message that has one.
    pub const MIC: std::ops::Range<usize> = 72..88;

    /// Reads flags, and where the parts of the payload are said to be, and these.
    #[expect(clippy::type_complexity, reason = "six places and six parts, used once")]
    fn parts(input: Input<'_>) -> Parsed<'_, (Flags, [Place; 6], [&[u8]; 6])> {
        const FIELDS: [&str; 6] = [
            "LmChallengeResponse",
            "NtChallengeResponse",
            "DomainName",
            "UserName",
            "Workstation",
            "EncryptedRandomSessionKey",
        ];
        let (mut i, ()) = start(3)(input)?;
        let (mut places, mut parts) = ([(0, 0); 6], [&[][..]; 6]);
        for (at, field) in FIELDS.into_iter().enumerate() {
            (i, places[at]) = place(field).parse(i)?;
        }
        let (i, flags) = u32("NegotiateFlags").map(Flags).parse(i)?;
        for (at, field) in FIELDS.into_iter().enumerate() {
            parts[at] = payload(input, places[at], field)?;
        }
        Ok((i, (flags, places, parts)))
    }

    /// Reads a message without a frame of SPNEGO.
    ///
    /// # Errors
    /// It is no AUTHENTICATE, is cut, allows no character set, a part is outside of it, or a name is not
    /// UTF-16.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const MESSAGE: Message = Message { name: "AUTHENTICATE" };
        let (flags, places, parts) =
            parse::with(Input::new(bytes), Self::parts).map_err(|e| MESSAGE.wire(e))?;
        if !flags.has_strings() {
            return Err(MESSAGE.bad(NO_STRINGS));
        }
        // The MIC is there if the payload leaves room for it.
        let start = places.iter().filter(|(len, _)| *len > 0).map(|(_, offset)| *offset).min();
        let mic = (start.unwrap_or(bytes.len()) >= Self::MIC.end).then(|| bytes.get(Self::MIC));
        let [lm, nt, domain, user, workstation, key] = parts;
        Ok(Self {
            flags,
            lm_response: lm.to_vec(),
            nt_response: nt.to_vec(),
            domain: MESSAGE.text(domain, flags)?,
            user: MESSAGE.text(user, flags)?,
            workstation: MESSAGE.text(workstation, flags)?,
            encrypted_key: key.to_vec(),
            mic: mic.flatten().and_then(|mic| mic.try_into().ok()),
        })
    }

    /// The message's bytes; strings are as the flags say.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(3, if self.mic.is_some() { 88 } else { 72 });
        let domain = writer.payload(&string(&self.domain, self.flags));
        let user = writer.payload(&string(&self.user, self.flags));
        let workstation = writer.payload(&string(&self.workstation, self.flags));
        let lm = writer.payload(&self.lm_response);
        let nt = writer.payload(&self.nt_response);
        let key = writer.payload(&self.encrypted_key);
        for part in [lm, nt, domain, user, workstation, key] {
            writer.describe(part);
        }
        writer.put(&self.flags.0.to_le_bytes());
        writer.put(&version(self.flags));
        if let Some(mic) = self.mic {
            writer.put(&mic);
        }
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crypto::testing::hex;

    /// The messages of MS-NLMP 4.2.4.3.
    const CHALLENGE: &str = "4e544c4d53535000020000000c000c00
        3800000033828ae20123456789abcdef 00000000000000002400240044000000
        060070170000000f5300650072007600 650072000200 0c0044006f006d006100
        69006e0001000c005300650072007600 6500720000000000";
    const AUTHENTICATE: &str = "4e544c4d535350000300000018001800
        6c00000054005400840000000c000c00 48000000080008005400000010001000
        5c00000010001000d8000000358288e2 0501280a0000000f44006f006d006100
        69006e00550073006500720043004f00 4d005000550054004500520086c35097
        ac9cec102554764a57cccc19aaaaaaaa aaaaaaaa68cd0ab851e51c96aabc927b
        ebef6a1c010100000000000000000000 00000000aaaaaaaaaaaaaaaa00000000
        02000c0044006f006d00610069006e00 01000c00530065007200760065007200
        0000000000000000c5dad2544fc97990 94ce1ce90bc9d03e";

    #[test]
    fn challenge_of_the_specification() {
        let bytes = hex(CHALLENGE);
        let message = Challenge::parse(&bytes).unwrap();
        assert_eq!(message.target_name, "Server");
        assert_eq!(message.flags, Flags(0xe28a_8233));
        let mut ours = message.encode();
        ours[48..56].copy_from_slice(&bytes[48..56]);
        assert_eq!(ours, bytes, "equal but for the operating system's version");
    }

    #[test]
    fn authenticate_of_the_specification() {
        let bytes = hex(AUTHENTICATE);
        let message = Authenticate::parse(&bytes).unwrap();
        assert_eq!((&*message.user, &*message.domain), ("User", "Domain"));
        assert_eq!(message.workstation, "COMPUTER");
        assert_eq!(message.mic, None);
        let mut ours = message.encode();
        ours[64..72].copy_from_slice(&bytes[64..72]);
        assert_eq!(ours, bytes, "equal but for the operating system's version");
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        let mut bytes = hex(AUTHENTICATE);
        bytes[0x48 + 1] = 0xd8;
        let error = Error::Malformed { message: "AUTHENTICATE", what: "name is not UTF-16" };
        assert_eq!(Authenticate::parse(&bytes), Err(error));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn authenticate_round_trips(
            user in "\\PC{0,20}", domain in "\\PC{0,20}", workstation in "\\PC{0,20}",
            nt_response in prop::collection::vec(any::<u8>(), 0..100),
            mic: Option<[u8; 16]>,
        ) {
            let message = Authenticate {
                flags: Flags::UNICODE,
                lm_response: vec![0; 24],
                nt_response, domain, user, workstation,
                encrypted_key: vec![1; 16],
                mic,
            };
            prop_assert_eq!(Authenticate::parse(&message.encode()), Ok(message));
        }

        #[test]
        fn challenge_round_trips(
            target_name in "\\PC{0,20}",
            target_info in prop::collection::vec(any::<u8>(), 0..100),
            server_challenge: [u8; 8],
            flags: u32,
        ) {
            let flags = Flags(flags | 1);
            let message = Challenge { flags, server_challenge, target_name, target_info };
            prop_assert_eq!(Challenge::parse(&message.encode()), Ok(message));
        }

        #[test]
        fn parsing_mutated_messages_is_total(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            for text in [CHALLENGE, AUTHENTICATE] {
                let mut bytes = hex(text);
                for (index, value) in &changes {
                    let index = index.index(bytes.len());
                    bytes[index] = *value;
                }
                bytes.truncate(cut.index(bytes.len()) + 1);
                let _ = Negotiate::parse(&bytes);
                if let Ok(message) = Challenge::parse(&bytes) {
                    prop_assert!(message.target_info.len() <= bytes.len());
                }
                if let Ok(message) = Authenticate::parse(&bytes) {
                    prop_assert!(message.nt_response.len() <= bytes.len());
                }
            }
        }
    }
}
