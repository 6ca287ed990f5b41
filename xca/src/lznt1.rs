//! LZNT1 (MS-XCA 2.5): chunks of 4 KiB, each compressed by itself or as it is.

use crate::{Error, copy::Output};

/// Data of one chunk, in bytes.
const CHUNK: usize = 4096;
/// Length that a match has at least, which is not written.
const LEAST: usize = 3;
/// The signature in bits 12 to 14 of a chunk's header.
const SIGNATURE: u16 = 3 << 12;
const COMPRESSED: u16 = 1 << 15;
/// What the length in a header lacks.
const NOT_COUNTED: usize = 3;
const BITS: u32 = 11;

/// Bits of the displacement in a compressed word that stands behind `before` bytes of its chunk
/// (MS-XCA 2.5.1.4).
fn displacement_bits(before: usize) -> u32 {
    let bits = usize::BITS - before.saturating_sub(1).leading_zeros();
    bits.clamp(4, 12)
}

/// Appends the compressed form of `input` if it takes at most `most` bytes.
pub fn compress(input: &[u8], out: &mut Vec<u8>, most: usize) -> bool {
    let start = out.len();
    let mut seen = [0; 1 << BITS];
    for chunk in input.chunks(CHUNK) {
        let at = out.len();
        out.extend_from_slice(&[0; 2]);
        seen.fill(0);
        let compressed = compress_chunk(chunk, out, &mut seen);
        if !compressed {
            out.truncate(at + 2);
            out.extend_from_slice(chunk);
        }
        let len = (out.len() - at - NOT_COUNTED) as u16;
        let header = len | SIGNATURE | if compressed { COMPRESSED } else { 0 };
        out[at..at + 2].copy_from_slice(&header.to_le_bytes());
        if out.len() - start > most {
            out.truncate(start);
            return false;
        }
    }
    true
}

/// Appends the flag groups of a chunk, if they are shorter than the chunk. `seen` has where each
/// hash was seen last, counted from 1.
fn compress_chunk(chunk: &[u8], out: &mut Vec<u8>, seen: &mut [u16; 1 << BITS]) -> bool {
    let end = out.len() + chunk.len();
    let (mut at, mut flags_at, mut bit) = (0, 0, 8);
    while at < chunk.len() {
        if bit == 8 {
            (flags_at, bit) = (out.len(), 0);
            out.push(0);
        }
        let found = find(chunk, at, seen);
        if let Some((distance, len)) = found {
            let length_bits = 16 - displacement_bits(at);
            let word = (distance - 1) << length_bits | (len - LEAST);
            out.extend_from_slice(&(word as u16).to_le_bytes());
            out[flags_at] |= 1 << bit;
            at += len;
        } else {
            out.push(chunk[at]);
            at += 1;
        }
        bit += 1;
        if out.len() >= end {
            return false;
        }
    }
    true
}

/// Distance and length of a match for what stands at `at`.
fn find(chunk: &[u8], at: usize, seen: &mut [u16; 1 << BITS]) -> Option<(usize, usize)> {
    let [a, b, c] = *chunk[at..].first_chunk::<LEAST>()?;
    let word = u32::from_le_bytes([a, b, c, 0]).wrapping_mul(0x9e37_79b1);
    let place = &mut seen[(word >> (32 - BITS)) as usize];
    let before = usize::from(std::mem::replace(place, (at + 1) as u16)).checked_sub(1)?;
    let longest = (1usize << (16 - displacement_bits(at))) - 1 + LEAST;
    let same = chunk[before..].iter().zip(&chunk[at..]).take(longest);
    let len = same.take_while(|(old, new)| old == new).count();
    (len >= LEAST).then_some((at - before, len))
}

/// Fills `out` with what `input` is the compressed form of.
///
/// # Errors
/// The input is malformed, or what it holds is not as long as `out`.
pub fn decompress(input: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let mut out = Output::new(out);
    let mut rest = input;
    let truncated = |what| Error::Truncated { at: input.len(), what };
    while !rest.is_empty() {
        let header = rest.first_chunk().ok_or(truncated("the header of a chunk"))?;
        let header = u16::from_le_bytes(*header);
        if header == 0 {
            break;
        }
        if header & (7 << 12) != SIGNATURE {
            let value = header.into();
            return Err(Error::Impossible { what: "the header of a chunk", value });
        }
        let len = usize::from(header & 0xfff) + NOT_COUNTED;
        let chunk = rest.get(2..len).ok_or(truncated("a chunk"))?;
        rest = &rest[len..];
        match header & COMPRESSED {
            0 => out.literals(chunk)?,
            _ => decompress_chunk(chunk, &mut out)?,
        }
    }
    out.end()
}

fn decompress_chunk(chunk: &[u8], out: &mut Output<'_>) -> Result<(), Error> {
    let start = out.at;
    let mut at = 0;
    while at < chunk.len() {
        let flags = chunk[at];
        at += 1;
        for bit in 0..8 {
            let Some(&first) = chunk.get(at) else { break };
            at += 1;
            if flags >> bit & 1 == 0 {
                out.literal(first)?;
            } else {
                let truncated = Error::Truncated { at: chunk.len(), what: "a compressed word" };
                let second = *chunk.get(at).ok_or(truncated)?;
                at += 1;
                let before = out.at - start;
                let word = usize::from(u16::from_le_bytes([first, second]));
                let length_bits = 16 - displacement_bits(before);
                let distance = (word >> length_bits) + 1;
                if distance > before {
                    // A chunk stands for itself.
                    return Err(Error::Distance { distance, at: out.at });
                }
                out.repeat(distance, (word & ((1 << length_bits) - 1)) + LEAST)?;
            }
            if out.at - start > CHUNK {
                return Err(Error::TooLong(CHUNK));
            }
        }
    }
    Ok(())
}
