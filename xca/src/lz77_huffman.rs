//! LZ77 with Huffman codes (MS-XCA 2.1, 2.2): blocks of 64 KiB, each with its own codes.
//!
//! ```text
//!  block: │ lengths of the 512 codes, 4 bits each │ codes in words of 16 bits, long lengths between │
//!  symbol: 0–255 a byte │ 256 + 16 × bits of the distance + length − 3 (15: more follows)
//! ```
//!
//! A match goes back at most 65,535 bytes, also into blocks before.

mod codes;
mod encode;

use crate::{Error, copy::Output};

use self::codes::Decoder;
pub use self::encode::compress;

/// Data of one block, in bytes.
const BLOCK: usize = 1 << 16;
/// Symbols: bytes, and matches.
const SYMBOLS: usize = 512;
/// Bytes of the lengths of all codes.
const TABLE: usize = SYMBOLS / 2;
/// The symbol behind the last data; elsewhere it is a match like others.
const END: u16 = 256;
/// Length that a match has at least, which is not written.
const LEAST: usize = 3;
/// The length that says that more follows.
const MORE: usize = 15;
/// Longest code in bits.
const LONGEST: u32 = 15;

/// Fills `out` with what `input` is the compressed form of.
///
/// # Errors
/// The input is malformed, or what it holds is not as long as `out`.
pub fn decompress(input: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let mut out = Output::new(out);
    let mut at = 0;
    let mut decoder = Box::new(Decoder::new());
    while let Some(table) = input[at..].first_chunk::<TABLE>() {
        decoder.build(table)?;
        let mut bits = Bits { input, at: at + TABLE, next: 0, extra: 0 };
        bits.begin()?;
        let end = out.at + BLOCK;
        while out.at < end {
            let (symbol, len) = decoder.symbol(bits.next >> (32 - LONGEST));
            bits.skip(len)?;
            if symbol < END {
                out.literal(symbol as u8)?;
            } else if symbol == END && out.is_full() && bits.at == input.len() {
                return Ok(());
            } else {
                let (distance, len) = bits.repeat(usize::from(symbol - END))?;
                out.repeat(distance, len)?;
            }
        }
        at = bits.at;
    }
    out.end()
}

/// Reads codes: the next 16 bits at least are at hand, and what is not in them is where the next word
/// would be.
struct Bits<'a> {
    input: &'a [u8],
    at: usize,
    next: u32,
    extra: i32,
}

impl Bits<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let truncated = Error::Truncated { at: self.input.len(), what: "a block" };
        let taken = self.input[self.at..].first_chunk().ok_or(truncated)?;
        self.at += N;
        Ok(*taken)
    }

    fn begin(&mut self) -> Result<(), Error> {
        let first = u16::from_le_bytes(self.take()?);
        let second = u16::from_le_bytes(self.take()?);
        self.next = u32::from(first) << 16 | u32::from(second);
        self.extra = 16;
        Ok(())
    }

    /// Is done with `count` bits, at most 15.
    fn skip(&mut self, count: u32) -> Result<(), Error> {
        self.next <<= count;
        self.extra -= count as i32;
        if self.extra < 0 {
            let word = u16::from_le_bytes(self.take()?);
            self.next |= u32::from(word) << self.extra.unsigned_abs();
            self.extra += 16;
        }
        Ok(())
    }

    /// Distance and length of the match that a symbol begins.
    fn repeat(&mut self, symbol: usize) -> Result<(usize, usize), Error> {
        let (mut len, bits) = (symbol % 16, (symbol / 16) as u32);
        if len == MORE {
            let [more] = self.take()?;
            len = match more {
                255 => self.long()?,
                _ => MORE + usize::from(more),
            };
        }
        let low = self.next.checked_shr(32 - bits).unwrap_or(0);
        self.skip(bits)?;
        Ok(((1 << bits) + low as usize, len + LEAST))
    }

    fn long(&mut self) -> Result<usize, Error> {
        let whole = match u16::from_le_bytes(self.take()?) {
            0 => u32::from_le_bytes(self.take()?),
            short => short.into(),
        };
        if (whole as usize) < MORE {
            return Err(Error::Impossible { what: "the length of a match", value: whole });
        }
        Ok(whole as usize)
    }
}
