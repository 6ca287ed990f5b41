//! The basic header segment: 48 bytes, of which each opcode names some (RFC 7143 11.2.1).

use nom::{
    IResult, Parser,
    bytes::complete::take,
    error::{ErrorKind, ParseError},
    number::complete::{be_u8, be_u24, be_u32},
};

/// Bytes of a basic header segment.
pub const HEADER_LENGTH: usize = 48;

/// Why bytes are no PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("the bytes end inside {0}")]
    Short(&'static str),
    /// A field has a value that it cannot have.
    #[error("{0} is not valid")]
    Field(&'static str),
    /// No PDU has this opcode, or one that only targets send.
    #[error("opcode {0:#04x} is not supported")]
    Opcode(u8),
}

impl ParseError<&[u8]> for WireError {
    fn from_error_kind(_: &[u8], _: ErrorKind) -> Self {
        Self::Short("header")
    }

    fn append(_: &[u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// What a parser of this crate gives.
pub type Parsed<'a, O> = IResult<&'a [u8], O, WireError>;

/// Names the field that `parser` reads, for its error.
pub fn field<'a, O, P>(
    name: &'static str,
    mut parser: P,
) -> impl Parser<&'a [u8], Output = O, Error = WireError>
where
    P: Parser<&'a [u8], Output = O, Error = WireError>,
{
    move |input| {
        parser.parse(input).map_err(|error| error.map(|_: WireError| WireError::Short(name)))
    }
}

/// The error of a parser that knows no incomplete input.
pub(crate) fn plain(error: nom::Err<WireError>) -> WireError {
    match error {
        nom::Err::Error(error) | nom::Err::Failure(error) => error,
        nom::Err::Incomplete(_) => WireError::Short("header"),
    }
}

/// A basic header segment by the fields that all PDUs share. `words` are bytes 20 to 47, whose
/// meaning the opcode gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Basic {
    /// What the PDU is.
    pub opcode: u8,
    /// The I bit: it is carried out at once, whatever its CmdSN.
    pub immediate: bool,
    /// Byte 1; its highest bit is F.
    pub flags: u8,
    /// Bytes 2 and 3.
    pub middle: [u8; 2],
    /// TotalAHSLength, in words of four bytes.
    pub ahs_words: u8,
    /// DataSegmentLength, in bytes without padding.
    pub data_length: u32,
    /// Bytes 8 to 15: mostly a logical unit number.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub itt: u32,
    /// Bytes 20 to 47.
    pub words: [u32; 7],
}

impl Basic {
    /// Reads the 48 bytes of a header.
    ///
    /// # Errors
    /// [`WireError::Short`] if there are fewer.
    pub fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let (_, basic) = Self::parse(bytes).map_err(plain)?;
        Ok(basic)
    }

    fn parse(input: &[u8]) -> Parsed<'_, Self> {
        let (input, (first, flags, b2, b3, ahs_words, data_length)) = (
            field("opcode", be_u8),
            field("flags", be_u8),
            field("byte 2", be_u8),
            field("byte 3", be_u8),
            field("TotalAHSLength", be_u8),
            field("DataSegmentLength", be_u24),
        )
            .parse(input)?;
        let (mut input, (lun, itt)) =
            (field("LUN", take(8usize)), field("Initiator Task Tag", be_u32)).parse(input)?;
        let mut words = [0; 7];
        for word in &mut words {
            (input, *word) = field("opcode-specific fields", be_u32).parse(input)?;
        }
        let basic = Self {
            opcode: first & 0x3f,
            immediate: first & 0x40 != 0,
            flags,
            middle: [b2, b3],
            ahs_words,
            data_length,
            lun: lun.try_into().unwrap_or_default(),
            itt,
            words,
        };
        Ok((input, basic))
    }

    /// The 48 bytes of the header.
    #[must_use]
    pub fn write(&self) -> [u8; HEADER_LENGTH] {
        let mut out = [0; HEADER_LENGTH];
        out[0] = self.opcode & 0x3f | if self.immediate { 0x40 } else { 0 };
        out[1] = self.flags;
        out[2..4].copy_from_slice(&self.middle);
        out[4] = self.ahs_words;
        out[5..8].copy_from_slice(&self.data_length.to_be_bytes()[1..]);
        out[8..16].copy_from_slice(&self.lun);
        out[16..20].copy_from_slice(&self.itt.to_be_bytes());
        for (place, word) in out[20..].chunks_exact_mut(4).zip(self.words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        out
    }

    pub(crate) fn bit(&self, mask: u8) -> bool {
        self.flags & mask != 0
    }
}

/// `mask` if `set`.
pub(crate) fn bit(set: bool, mask: u8) -> u8 {
    if set { mask } else { 0 }
}

/// The upper and the lower half of a word.
pub(crate) fn halves(word: u32) -> (u16, u16) {
    ((word >> 16) as u16, word as u16)
}

/// A word from its halves.
pub(crate) fn word(upper: u16, lower: u16) -> u32 {
    u32::from(upper) << 16 | u32::from(lower)
}
