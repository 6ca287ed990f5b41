//! Compressing (MS-XCA 2.1.4): matches of a block, how often each symbol occurs, then the codes.

use super::{BLOCK, END, LEAST, LONGEST, MORE, SYMBOLS, TABLE, codes};
use crate::finder::{Finder, Part};

/// Farthest that a match goes back, in bytes.
const WINDOW: usize = 65_535;
/// A match is no longer than its token has room for.
const LONGEST_MATCH: usize = 0x7fff + LEAST;

/// A byte, or a match: its length, less three, above its distance.
#[derive(Clone, Copy)]
struct Token(u32);

impl Token {
    const MATCH: u32 = 1 << 31;

    fn repeat(distance: usize, len: usize) -> Self {
        Self(Self::MATCH | ((len - LEAST) as u32) << 16 | distance as u32)
    }

    /// Length, less three, and distance of a match.
    fn as_match(self) -> Option<(usize, usize)> {
        let is = self.0 & Self::MATCH != 0;
        is.then_some(((self.0 >> 16 & 0x7fff) as usize, (self.0 & 0xffff) as usize))
    }

    fn symbol(self) -> usize {
        match self.as_match() {
            None => self.0 as usize,
            Some((len, distance)) => {
                usize::from(END) + len.min(MORE) + 16 * distance.ilog2() as usize
            }
        }
    }
}

/// Appends the compressed form of `input` if it takes at most `most` bytes.
pub fn compress(input: &[u8], out: &mut Vec<u8>, most: usize) -> bool {
    if most < TABLE {
        return false;
    }
    let start = out.len();
    let mut finder = Finder::new(input.len());
    let mut tokens = Vec::with_capacity(input.len().min(BLOCK));
    let mut at = 0;
    loop {
        let range = at..input.len().min(at + BLOCK);
        at = range.end;
        tokens.clear();
        finder.parts(input, range, (WINDOW, LONGEST_MATCH), |part| {
            match part {
                Part::Literals(bytes) => tokens.extend(bytes.iter().map(|b| Token((*b).into()))),
                Part::Match { distance, len } => tokens.push(Token::repeat(distance, len)),
            }
            true
        });
        let last = at == input.len();
        block(&tokens, last, out);
        if out.len() - start > most {
            out.truncate(start);
            return false;
        }
        if last {
            return true;
        }
    }
}

/// Appends one block.
fn block(tokens: &[Token], last: bool, out: &mut Vec<u8>) {
    let mut counts = [0u32; SYMBOLS];
    tokens.iter().for_each(|token| counts[token.symbol()] += 1);
    // The end is counted in each block: a code needs two symbols.
    counts[usize::from(END)] += 1;
    if counts.iter().filter(|count| **count > 0).count() < 2 {
        counts[0] += 1;
    }
    let lengths = codes::lengths(&counts);
    let codes = codes::codes(&lengths);
    out.extend(lengths.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
    let mut bits = Bits::begin(out);
    for token in tokens {
        let symbol = token.symbol();
        bits.put(lengths[symbol].into(), codes[symbol].into());
        if let Some((len, distance)) = token.as_match() {
            if let Some(more) = len.checked_sub(MORE) {
                bits.length(more, len);
            }
            let high = distance.ilog2();
            bits.put(high, distance as u32 - (1 << high));
        }
    }
    if last {
        bits.put(lengths[usize::from(END)].into(), codes[usize::from(END)].into());
    }
    bits.flush();
}

/// Writes codes in words of 16 bits, of which two are always set aside: what is not a code stands
/// where whoever reads would read the next word.
struct Bits<'a> {
    out: &'a mut Vec<u8>,
    first: usize,
    second: usize,
    word: u32,
    free: u32,
}

impl<'a> Bits<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        let first = out.len();
        out.extend_from_slice(&[0; 4]);
        Self { out, first, second: first + 2, word: 0, free: 16 }
    }

    fn put_word(&mut self, word: u32) {
        self.out[self.first..self.first + 2].copy_from_slice(&(word as u16).to_le_bytes());
    }

    /// Writes `count` bits, at most 15.
    fn put(&mut self, count: u32, bits: u32) {
        debug_assert!(count <= LONGEST, "{count} bits");
        if self.free >= count {
            self.free -= count;
            self.word = self.word << count | bits;
            return;
        }
        let left = count - self.free;
        self.put_word(self.word << self.free | bits >> left);
        self.first = self.second;
        self.second = self.out.len();
        self.out.extend_from_slice(&[0; 2]);
        self.free = 16 - left;
        self.word = bits & ((1 << left) - 1);
    }

    /// The length of a match that its symbol does not hold: what is left of it, or the whole.
    fn length(&mut self, more: usize, whole: usize) {
        if more < 255 {
            self.out.push(more as u8);
        } else {
            self.out.push(255);
            self.out.extend_from_slice(&(whole as u16).to_le_bytes());
        }
    }

    fn flush(&mut self) {
        self.put_word(self.word << self.free);
    }
}
