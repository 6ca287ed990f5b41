//! Canonical Huffman codes of at most 15 bits (MS-XCA 2.1.4.2, 2.2.4): they are ordered by length,
//! then by symbol, so the lengths say it all.

use super::{LONGEST, SYMBOLS, TABLE};
use crate::Error;

/// Codes so long or shorter are found in one look.
const FAST: u32 = 10;
const LENGTHS: usize = LONGEST as usize + 1;

/// Finds symbols by their codes.
pub(super) struct Decoder {
    /// For each beginning of a code: the symbol and, above it, the length; 0 if the code is longer.
    fast: [u16; 1 << FAST],
    /// All symbols that have a code, in the order of their codes.
    sorted: [u16; SYMBOLS],
    /// Of each length: the first code, and the end of its codes, in 15 bits; where in `sorted` they
    /// begin.
    first: [u32; LENGTHS],
    end: [u32; LENGTHS],
    place: [usize; LENGTHS],
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            fast: [0; 1 << FAST],
            sorted: [0; SYMBOLS],
            first: [0; LENGTHS],
            end: [0; LENGTHS],
            place: [0; LENGTHS],
        }
    }

    /// Takes the lengths of the codes: of the even symbol in the lower half of each byte.
    pub(super) fn build(&mut self, table: &[u8; TABLE]) -> Result<(), Error> {
        let mut counts = [0usize; LENGTHS];
        for byte in table {
            counts[usize::from(byte & 15)] += 1;
            counts[usize::from(byte >> 4)] += 1;
        }
        let (mut code, mut place) = (0u32, 0);
        for (len, count) in counts.into_iter().enumerate().skip(1) {
            self.first[len] = code;
            self.place[len] = place;
            code += (count as u32) << (LONGEST as usize - len);
            place += count;
            self.end[len] = code;
        }
        if code != 1 << LONGEST {
            return Err(Error::Codes);
        }
        let mut next = self.place;
        for symbol in 0..SYMBOLS {
            let len = usize::from(table[symbol / 2] >> (symbol % 2 * 4) & 15);
            if len > 0 {
                self.sorted[next[len]] = symbol as u16;
                next[len] += 1;
            }
        }
        self.fill_fast();
        Ok(())
    }

    fn fill_fast(&mut self) {
        let mut at = 0;
        for len in 1..=FAST {
            let (from, count) = (self.place[len as usize], self.count(len as usize));
            for symbol in &self.sorted[from..from + count] {
                let width = 1 << (FAST - len);
                self.fast[at..at + width].fill(symbol | (len as u16) << 9);
                at += width;
            }
        }
        self.fast[at..].fill(0);
    }

    fn count(&self, len: usize) -> usize {
        ((self.end[len] - self.first[len]) >> (LONGEST as usize - len)) as usize
    }

    /// The symbol whose code the 15 bits begin with, and how many bits that has. There is one for all
    /// bits: the code is complete.
    pub(super) fn symbol(&self, bits: u32) -> (u16, u32) {
        let fast = self.fast[(bits >> (LONGEST - FAST)) as usize];
        if fast != 0 {
            return (fast & 0x1ff, u32::from(fast >> 9));
        }
        let len = (FAST + 1..LONGEST).find(|len| bits < self.end[*len as usize]);
        let len = len.unwrap_or(LONGEST);
        let within = (bits - self.first[len as usize]) >> (LONGEST - len);
        (self.sorted[self.place[len as usize] + within as usize], len)
    }
}

/// Lengths of the codes for symbols that occur so often, the best there are with at most 15 bits, or
/// nearly. At least two symbols must occur.
pub(super) fn lengths(counts: &[u32; SYMBOLS]) -> [u8; SYMBOLS] {
    let mut weights = *counts;
    loop {
        let lengths = unlimited(&weights);
        if lengths.iter().all(|len| u32::from(*len) <= LONGEST) {
            return lengths;
        }
        // Rare symbols come nearer to the others, until no code is too long.
        weights.iter_mut().filter(|weight| **weight > 0).for_each(|w| *w = (*w >> 1) | 1);
    }
}

/// Huffman's lengths, with two queues: symbols by weight, and sums in the order they are made.
fn unlimited(weights: &[u32; SYMBOLS]) -> [u8; SYMBOLS] {
    let mut symbols: Vec<usize> = (0..SYMBOLS).filter(|at| weights[*at] > 0).collect();
    symbols.sort_by_key(|at| weights[*at]);
    let leaves = symbols.len();
    let mut nodes: Vec<u32> = symbols.iter().map(|at| weights[*at]).collect();
    let mut parents = vec![0usize; 2 * leaves];
    let (mut leaf, mut sum) = (0, leaves);
    while nodes.len() + 1 < 2 * leaves {
        let node = nodes.len();
        let mut weight = 0;
        for _ in 0..2 {
            let takes_leaf = leaf < leaves && (sum >= node || nodes[leaf] <= nodes[sum]);
            let taken = if takes_leaf { &mut leaf } else { &mut sum };
            parents[*taken] = node;
            weight += nodes[*taken];
            *taken += 1;
        }
        nodes.push(weight);
    }
    // A parent stands behind its children.
    let mut depths = vec![0u8; nodes.len()];
    for node in (0..nodes.len().saturating_sub(1)).rev() {
        depths[node] = depths[parents[node]].saturating_add(1);
    }
    let mut lengths = [0; SYMBOLS];
    for (node, symbol) in symbols.into_iter().enumerate() {
        lengths[symbol] = depths[node];
    }
    lengths
}

/// The codes that have these lengths.
pub(super) fn codes(lengths: &[u8; SYMBOLS]) -> [u16; SYMBOLS] {
    let mut codes = [0; SYMBOLS];
    let mut next = 0u32;
    for len in 1..=LONGEST {
        for symbol in 0..SYMBOLS {
            if u32::from(lengths[symbol]) == len {
                codes[symbol] = (next >> (LONGEST - len)) as u16;
                next += 1 << (LONGEST - len);
            }
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(lengths: &[u8; SYMBOLS]) -> [u8; TABLE] {
        std::array::from_fn(|at| lengths[2 * at] | lengths[2 * at + 1] << 4)
    }

    proptest! {
        #[test]
        fn codes_of_any_counts_are_complete_and_found(
            some in prop::collection::btree_map(0..SYMBOLS, 1..65_536u32, 2..80),
        ) {
            let mut counts = [0; SYMBOLS];
            some.iter().for_each(|(symbol, count)| counts[*symbol] = *count);
            let lengths = lengths(&counts);
            let codes = codes(&lengths);
            let mut decoder = Decoder::new();
            decoder.build(&table(&lengths)).unwrap();
            for (symbol, _) in some {
                let len = u32::from(lengths[symbol]);
                let low = u32::from(codes[symbol]) << (LONGEST - len);
                for bits in [low, low | ((1 << (LONGEST - len)) - 1)] {
                    prop_assert_eq!(decoder.symbol(bits), (symbol as u16, len));
                }
            }
        }

        #[test]
        fn lengths_that_are_no_code_are_refused(
            table in prop::array::uniform32(any::<u8>()),
        ) {
            let mut all = [0; TABLE];
            all[..32].copy_from_slice(&table);
            let sum: u32 = all.iter().flat_map(|byte| [byte & 15, byte >> 4])
                .filter(|len| *len > 0).map(|len| 1 << (LONGEST - u32::from(len))).sum();
            prop_assert_eq!(Decoder::new().build(&all).is_ok(), sum == 1 << LONGEST);
        }
    }

    /// Fibonacci's numbers make the longest codes.
    #[test]
    fn no_code_is_longer_than_15_bits() {
        let mut counts = [0; SYMBOLS];
        let (mut a, mut b) = (1u32, 1u32);
        for count in counts.iter_mut().take(40) {
            *count = a;
            (a, b) = (b, a.saturating_add(b));
        }
        assert!(unlimited(&counts).iter().any(|len| u32::from(*len) > LONGEST));
        let lengths = lengths(&counts);
        assert_eq!(lengths.iter().max(), Some(&15));
        Decoder::new().build(&table(&lengths)).unwrap();
    }
}
