//! Compressing a message (MS-SMB2 3.1.4.4).

use super::{
    CHAIN_HEADER, Compression, CompressionAlgorithm, FLAG_CHAINED, PAYLOAD_HEADER, WORTHWHILE,
    sample::is_promising,
};
use crate::{
    header::PROTOCOL_COMPRESSED,
    wire::{Put, len32},
};

/// So often one byte must be there for a payload of its own (MS-SMB2 3.1.4.4.1).
const LEAST_REPEATED: usize = 64;
/// Shorter data are never compressed.
const LEAST: usize = 64;
/// What is left of a message that is no longer than this is not compressed in a chain.
const LEAST_PAYLOAD: usize = 1024;
/// Bytes that compression must save at least; of long data it is a sixteenth.
const LEAST_SAVED: usize = 16;
/// SMB2_COMPRESSION_PATTERN_PAYLOAD_V1, in bytes.
const PATTERN: usize = 8;

impl Compression {
    /// Appends a message, whose first `lead` bytes stay as they are, in its compressed form, if that
    /// is shorter: by a sixteenth where the rest is [`WORTHWHILE`], else by 16 bytes. Says whether it
    /// was.
    pub fn compress(&self, message: &[u8], lead: usize, out: &mut Vec<u8>) -> bool {
        let Some((lead, data)) = message.split_at_checked(lead) else { return false };
        if data.len() < LEAST {
            return false;
        }
        let start = out.len();
        let saved = if data.len() < WORTHWHILE { LEAST_SAVED } else { message.len() / 16 };
        let most = message.len() - saved;
        out.put(&PROTOCOL_COMPRESSED);
        let done = match self.chained {
            true => self.chain((lead, data), out, start + most),
            false => self.alone((lead, data), out, start + most),
        };
        if !done {
            out.truncate(start);
        }
        done
    }

    fn alone(&self, (lead, data): (&[u8], &[u8]), out: &mut Vec<u8>, end: usize) -> bool {
        out.put_u32(len32(data.len()));
        out.put_u16(self.by.0);
        out.put_u16(0);
        out.put_u32(len32(lead.len()));
        out.put(lead);
        let room = end.saturating_sub(out.len());
        is_promising(data) && compress(self.by, data, out, room)
    }

    fn chain(&self, (lead, data): (&[u8], &[u8]), out: &mut Vec<u8>, end: usize) -> bool {
        let start = out.len() + CHAIN_HEADER - PROTOCOL_COMPRESSED.len();
        out.put_u32(len32(lead.len() + data.len()));
        if !lead.is_empty() {
            as_it_is(lead, out);
        }
        let (mut before, mut behind) = (0, 0);
        if self.knows(CompressionAlgorithm::PATTERN_V1) {
            before = repeated(data, data.iter());
            if before < data.len() {
                behind = repeated(data, data.iter().rev());
            }
        }
        pattern(&data[..before], out);
        let middle = &data[before..data.len() - behind];
        let long = lead.len() + middle.len() > LEAST_PAYLOAD;
        let packed = long && self.payload(middle, out, end);
        if !packed && out.len() + middle.len() > end {
            return false;
        }
        if !packed && !middle.is_empty() {
            as_it_is(middle, out);
        }
        pattern(&data[data.len() - behind..], out);
        out.patch(start + 2, &FLAG_CHAINED.to_le_bytes());
        out.len() <= end
    }

    /// Appends a payload in its compressed form, if that is shorter.
    fn payload(&self, data: &[u8], out: &mut Vec<u8>, end: usize) -> bool {
        if !is_promising(data) {
            return false;
        }
        let at = out.len();
        header(self.by, 0, out);
        out.put_u32(len32(data.len()));
        let room = end.saturating_sub(out.len()).min(data.len());
        if !compress(self.by, data, out, room) {
            out.truncate(at);
            return false;
        }
        let len = len32(out.len() - at - PAYLOAD_HEADER);
        out.patch(at + 4, &len.to_le_bytes());
        true
    }
}

fn header(algorithm: CompressionAlgorithm, len: usize, out: &mut Vec<u8>) {
    out.put_u16(algorithm.0);
    out.put_u16(0);
    out.put_u32(len32(len));
}

fn as_it_is(data: &[u8], out: &mut Vec<u8>) {
    header(CompressionAlgorithm::NONE, data.len(), out);
    out.put(data);
}

/// Appends data that are one byte over and over, if there are any.
fn pattern(data: &[u8], out: &mut Vec<u8>) {
    let Some(byte) = data.first() else { return };
    header(CompressionAlgorithm::PATTERN_V1, PATTERN, out);
    out.put_u8(*byte);
    out.put_zeros(3);
    out.put_u32(len32(data.len()));
}

/// How often the first of `bytes` is there before another comes, if that is often enough.
fn repeated<'a>(data: &[u8], bytes: impl Iterator<Item = &'a u8> + Clone) -> usize {
    let first = bytes.clone().next();
    let count = bytes.take_while(|byte| Some(*byte) == first).count();
    debug_assert!(count <= data.len(), "no more than there are");
    if count < LEAST_REPEATED { 0 } else { count }
}

/// Appends the compressed form of data if it takes at most `most` bytes.
fn compress(by: CompressionAlgorithm, data: &[u8], out: &mut Vec<u8>, most: usize) -> bool {
    match by {
        CompressionAlgorithm::LZNT1 => xca::lznt1::compress(data, out, most),
        CompressionAlgorithm::LZ77 => xca::lz77::compress(data, out, most),
        CompressionAlgorithm::LZ77_HUFFMAN => xca::lz77_huffman::compress(data, out, most),
        CompressionAlgorithm::LZ4 => xca::lz4::compress(data, out, most),
        _ => false,
    }
}
