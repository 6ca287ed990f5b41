//! The compression algorithms that SMB can use: those of MS-XCA, and blocks of LZ4.
//!
//! ```text
//!                  ┌─► lznt1          chunks of 4 KiB, each by itself (MS-XCA 2.5)
//!  bytes ─► finder ┼─► lz77           plain LZ77 (MS-XCA 2.3, 2.4)
//!                  └─► lz77_huffman   LZ77 with Huffman codes (MS-XCA 2.1, 2.2)
//!        lz4_flex ───► lz4            blocks of LZ4
//! ```
//!
//! Each module has `compress` and `decompress`. No I/O, no unsafe code, no state between two calls.
//!
//! - `compress(input, out, most)` appends the compressed form if that takes at most `most` bytes;
//!   else it gives `false`, early where it can, and `out` is as it was.
//! - `decompress(input, out)` fills `out` exactly: whoever calls it knows how long the data are, and
//!   neither a byte more is written nor one outside of `input` or of what is there already read.
#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

mod copy;
mod finder;
pub mod lz4;
pub mod lz77;
pub mod lz77_huffman;
pub mod lznt1;

/// Why bytes are not the compressed form of what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input ends within an element.
    #[error("compressed data end at byte {at}, within {what}")]
    Truncated {
        /// Where the input ends.
        at: usize,
        /// The element that is not whole.
        what: &'static str,
    },
    /// A match begins before the data.
    #[error("a match of distance {distance} at byte {at} begins before the data")]
    Distance {
        /// Bytes that the match goes back.
        distance: usize,
        /// Where in the decompressed data it stands.
        at: usize,
    },
    /// The data are longer than they should be.
    #[error("compressed data are more than the {0} bytes announced")]
    TooLong(usize),
    /// The data are shorter than they should be.
    #[error("compressed data are {got} bytes, not the {wanted} announced")]
    TooShort {
        /// Bytes that there are.
        got: usize,
        /// Bytes that there should be.
        wanted: usize,
    },
    /// A field holds what it cannot hold.
    #[error("{what} is {value:#x}")]
    Impossible {
        /// The field.
        what: &'static str,
        /// What it held.
        value: u32,
    },
    /// The lengths of the Huffman codes are those of no code.
    #[error("the lengths of the Huffman codes make no complete code")]
    Codes,
    /// A block of LZ4 is not well formed.
    #[error("not a block of LZ4")]
    Lz4,
}
