//! Decompressing a message (MS-SMB2 3.1.5.3, 3.2.5.1.1.2, 3.3.5.2.1.2).

use nom::Parser;

use super::{
    BEYOND, CHAIN_HEADER, Compression, CompressionAlgorithm, CompressionError, FLAG_CHAINED,
    HEADER_LEN, PAYLOAD_HEADER,
};
use crate::{
    header::{PROTOCOL_COMPRESSED, PROTOCOL_SMB2},
    parse::{self, Input, array, skip, u8, u16, u32},
};

type Result<T> = std::result::Result<T, CompressionError>;

/// A compressed message whose header was read: what it announces may be, and was agreed on.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    agreed: Compression,
    form: Form<'a>,
    /// Bytes of the decompressed message.
    len: usize,
}

#[derive(Debug, Clone, Copy)]
enum Form<'a> {
    Alone { lead: &'a [u8], data: &'a [u8], by: CompressionAlgorithm },
    Chain(&'a [u8]),
}

impl<'a> Packed<'a> {
    /// Whether a message is a compressed one.
    #[must_use]
    pub fn starts(message: &[u8]) -> bool {
        message.starts_with(&PROTOCOL_COMPRESSED)
    }

    /// Reads the header of a compressed message on a connection whose messages have a payload of
    /// `largest` bytes at most.
    ///
    /// # Errors
    /// The header is cut off, or says what was not agreed on, or announces more than a message may
    /// have.
    pub fn parse(agreed: &Compression, message: &'a [u8], largest: usize) -> Result<Self> {
        let fields = (
            array::<4>("compression.ProtocolId"),
            u32("compression.OriginalCompressedSegmentSize"),
            u16("compression.CompressionAlgorithm").map(CompressionAlgorithm),
            u16("compression.Flags"),
            u32("compression.Offset"),
        );
        let (_, original, by, flags, offset) = parse::run(Input::new(message), fields)?;
        let (original, offset) = (original as usize, offset as usize);
        let (form, len) = match flags {
            0 if !by.is_general() || !agreed.knows(by) => {
                return Err(CompressionError::NotAgreed(by));
            }
            0 => {
                let rest = &message[HEADER_LEN..];
                let outside = CompressionError::Offset { offset, len: rest.len() };
                let (lead, data) = rest.split_at_checked(offset).ok_or(outside)?;
                (Form::Alone { lead, data, by }, original.saturating_add(offset))
            }
            FLAG_CHAINED if agreed.chained => (Form::Chain(&message[CHAIN_HEADER..]), original),
            flags => return Err(CompressionError::Flags(flags)),
        };
        let most = largest.saturating_add(BEYOND);
        if len > most {
            return Err(CompressionError::TooLong { announced: len, most });
        }
        Ok(Self { agreed: *agreed, form, len })
    }

    /// Length of the decompressed message in bytes: so many are appended by [`Packed::unpack`], and
    /// no more memory is taken.
    #[expect(clippy::len_without_is_empty, reason = "an empty one is an error when it is unpacked")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Appends the decompressed message.
    ///
    /// # Errors
    /// The data are malformed, or not what the headers say; `out` has undefined bytes then.
    pub fn unpack(&self, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        match self.form {
            Form::Alone { lead, data, by } => {
                out.extend_from_slice(lead);
                let at = out.len();
                out.resize(start + self.len, 0);
                decompress(by, data, &mut out[at..])?;
            }
            Form::Chain(chain) => {
                out.resize(start + self.len, 0);
                self.unpack_chain(chain, &mut out[start..])?;
            }
        }
        match out[start..].starts_with(&PROTOCOL_SMB2) {
            true => Ok(()),
            false => Err(CompressionError::NotSmb2),
        }
    }

    fn unpack_chain(&self, mut rest: &[u8], room: &mut [u8]) -> Result<()> {
        let announced = room.len();
        let mut at = 0;
        // What is left when no payload can follow is ignored (3.1.5.3).
        while rest.len() > PAYLOAD_HEADER {
            let fields = (
                u16("compression.CompressionAlgorithm").map(CompressionAlgorithm),
                skip(2, "compression.Flags"),
                u32("compression.Length"),
            );
            let (by, _, len) = parse::run(Input::new(rest), fields)?;
            let (len, have) = (len as usize, rest.len() - PAYLOAD_HEADER);
            let payload = rest[PAYLOAD_HEADER..].get(..len);
            let payload = payload.ok_or(CompressionError::Payload { len, have })?;
            rest = &rest[PAYLOAD_HEADER + len..];
            at += self.unpack_payload(by, payload, &mut room[at..])?;
        }
        match at == announced {
            true => Ok(()),
            false => Err(CompressionError::Chain { got: at, announced }),
        }
    }

    /// Puts one payload at the beginning of `room`; gives its length.
    fn unpack_payload(
        &self,
        by: CompressionAlgorithm,
        payload: &[u8],
        room: &mut [u8],
    ) -> Result<usize> {
        let have = room.len();
        let beyond = |len| CompressionError::Payload { len, have };
        if by == CompressionAlgorithm::NONE {
            let room = room.get_mut(..payload.len()).ok_or(beyond(payload.len()))?;
            room.copy_from_slice(payload);
            return Ok(payload.len());
        }
        if !self.agreed.knows(by) {
            return Err(CompressionError::NotAgreed(by));
        }
        if by == CompressionAlgorithm::PATTERN_V1 {
            let fields = (
                u8("compression.Pattern"),
                skip(3, "compression.Reserved"),
                u32("compression.Repetitions"),
            );
            let (byte, _, count) = parse::run(Input::new(payload), fields)?;
            if payload.len() != PAYLOAD_HEADER {
                return Err(CompressionError::Payload { len: payload.len(), have: PAYLOAD_HEADER });
            }
            let count = count as usize;
            room.get_mut(..count).ok_or(beyond(count))?.fill(byte);
            return Ok(count);
        }
        let original = parse::run(Input::new(payload), u32("compression.OriginalPayloadSize"))?;
        let len = original as usize;
        decompress(by, &payload[4..], room.get_mut(..len).ok_or(beyond(len))?)?;
        Ok(len)
    }
}

/// Fills `out` with what `data` are the compressed form of.
fn decompress(by: CompressionAlgorithm, data: &[u8], out: &mut [u8]) -> Result<()> {
    match by {
        CompressionAlgorithm::LZNT1 => xca::lznt1::decompress(data, out)?,
        CompressionAlgorithm::LZ77 => xca::lz77::decompress(data, out)?,
        CompressionAlgorithm::LZ77_HUFFMAN => xca::lz77_huffman::decompress(data, out)?,
        CompressionAlgorithm::LZ4 => xca::lz4::decompress(data, out)?,
        other => return Err(CompressionError::NotAgreed(other)),
    }
    Ok(())
}
