//! Finds what was there before: a table of where each four bytes were seen last.

/// Shortest match that is looked for.
const LEAST: usize = 4;
/// Bits of a hash, by how long the input is: a short one is not worth a large table.
const BITS: std::ops::RangeInclusive<u32> = 8..=14;
/// After so many places without a match, the next are tried one step further apart.
const PATIENCE: u32 = 6;

/// A part of the input, in order.
pub(crate) enum Part<'a> {
    /// Bytes as they are.
    Literals(&'a [u8]),
    /// Bytes that were there before.
    Match { distance: usize, len: usize },
}

/// Where each hash was seen last, counted from 1.
pub(crate) struct Finder {
    table: Vec<u32>,
    bits: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
}

fn hash(word: u32, bits: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize
}

/// How many bytes are the same at two places, up to `end`.
fn common(bytes: &[u8], mut a: usize, mut b: usize, end: usize) -> usize {
    let began = b;
    while b + 8 <= end {
        let (x, y) = (&bytes[a..a + 8], &bytes[b..b + 8]);
        if x != y {
            break;
        }
        a += 8;
        b += 8;
    }
    while b < end && bytes[a] == bytes[b] {
        a += 1;
        b += 1;
    }
    b - began
}

impl Finder {
    /// For an input of so many bytes.
    pub(crate) fn new(len: usize) -> Self {
        let bits = len.max(1).ilog2().clamp(*BITS.start(), *BITS.end());
        Self { table: vec![0; 1 << bits], bits }
    }

    /// Takes the bytes of `range` apart. A match goes back at most `window` bytes, which may be
    /// before the range, has at most `longest` bytes, and ends in the range. `show` says whether to
    /// go on.
    pub(crate) fn parts<'a>(
        &mut self,
        bytes: &'a [u8],
        range: std::ops::Range<usize>,
        (window, longest): (usize, usize),
        mut show: impl FnMut(Part<'a>) -> bool,
    ) -> bool {
        let (mut at, mut literals, end) = (range.start, range.start, range.end);
        let mut misses = 0u32;
        while at + LEAST <= end {
            let here = word(bytes, at);
            let seen = &mut self.table[hash(here, self.bits)];
            let before = std::mem::replace(seen, place(at)) as usize;
            let distance = (at + 1).saturating_sub(before);
            if before == 0 || distance > window || word(bytes, before - 1) != here {
                at += 1 + (misses >> PATIENCE) as usize;
                misses += 1;
                continue;
            }
            misses = 0;
            let most = end.min(at.saturating_add(longest));
            let len = LEAST + common(bytes, before - 1 + LEAST, at + LEAST, most);
            if literals < at && !show(Part::Literals(&bytes[literals..at])) {
                return false;
            }
            if !show(Part::Match { distance, len }) {
                return false;
            }
            at += len;
            literals = at;
            // Where a match ends, the next often begins.
            for near in [at - 2, at - 1] {
                if near + LEAST <= end {
                    self.table[hash(word(bytes, near), self.bits)] = place(near);
                }
            }
        }
        literals == end || show(Part::Literals(&bytes[literals..end]))
    }
}

/// A place as the table has it. Inputs are shorter than 4 GiB: a place beyond is not found again.
fn place(at: usize) -> u32 {
    u32::try_from(at + 1).unwrap_or(0)
}
