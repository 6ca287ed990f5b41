//! Additional header segments (RFC 7143 11.2.2): the rest of a long command descriptor block, and
//! the length of a bidirectional command's data-in.

use bytes::Bytes;
use nom::{
    Parser,
    bytes::complete::take,
    number::complete::{be_u8, be_u16},
};

use super::basic::{Parsed, WireError, field, plain};

/// The longest command descriptor block: 16 bytes in the header and 244 behind it.
const EXTENDED_LIMIT: usize = 260 - 16;

/// What a SCSI command has behind its basic header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Additional {
    /// The command descriptor block from its seventeenth byte on.
    pub cdb: Bytes,
    /// Bytes of data-in that a bidirectional command expects.
    pub read_length: Option<u32>,
}

impl Additional {
    /// Reads a chain of segments.
    ///
    /// # Errors
    /// [`WireError`] if a segment ends beyond the chain, comes twice, or has a type that nobody
    /// defined.
    pub fn read(chain: &[u8]) -> Result<Self, WireError> {
        let mut found = Self::default();
        let mut rest = chain;
        while !rest.is_empty() {
            let (after, (kind, body)) = segment(rest).map_err(plain)?;
            rest = after;
            match kind {
                1 if found.cdb.is_empty() && body.len() > 1 && body.len() <= EXTENDED_LIMIT + 1 => {
                    // The first byte is reserved.
                    found.cdb = Bytes::copy_from_slice(&body[1..]);
                }
                2 if found.read_length.is_none() && body.len() == 5 => {
                    found.read_length =
                        body[1..].first_chunk().map(|four| u32::from_be_bytes(*four));
                }
                _ => return Err(WireError::Field("AHS")),
            }
        }
        Ok(found)
    }

    /// The chain, a multiple of four bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut add = |kind: u8, body: &[u8]| {
            let length = u16::try_from(body.len() + 1).unwrap_or(u16::MAX);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&[kind, 0]);
            out.extend_from_slice(body);
            out.resize(out.len().next_multiple_of(4), 0);
        };
        if !self.cdb.is_empty() {
            add(1, &self.cdb);
        }
        if let Some(length) = self.read_length {
            add(2, &length.to_be_bytes());
        }
        out
    }
}

/// One segment: its type and what AHSLength counts, which is padded to four bytes.
fn segment(input: &[u8]) -> Parsed<'_, (u8, &[u8])> {
    let (input, (length, kind)) =
        (field("AHSLength", be_u16), field("AHSType", be_u8)).parse(input)?;
    let length = usize::from(length);
    let (input, body) = field("AHS", take(length)).parse(input)?;
    let padding = (length + 3).next_multiple_of(4) - (length + 3);
    let (input, _) = field("padding of AHS", take(padding)).parse(input)?;
    Ok((input, (kind & 0x3f, body)))
}
