//! Compressed messages (MS-SMB2 2.2.42, 3.1.4.4, 3.1.5.3).
//!
//! ```text
//!  unchained: │ header 16 │ the message's beginning, as it is │ the rest, compressed │
//!  chained:   │ header 8 │ payload header 8 │ payload │ payload header 8 │ payload │ …
//!                          └ as it is, one byte so many times, or (its length and) compressed
//!
//!  send:    sign ─► Compression::compress ─► seal
//!  receive: open ─► Packed::parse (length known, nothing spent) ─► Packed::unpack ─► verify
//! ```
//!
//! The algorithms themselves are in the crate `xca`.

mod pack;
mod sample;
mod unpack;

use crate::{open_enum, wire::WireError};

pub use self::unpack::Packed;

open_enum! {
    /// `CompressionAlgorithms` of the compression context, and `CompressionAlgorithm` of a compressed
    /// message (MS-SMB2 2.2.3.1.3, 2.2.42).
    CompressionAlgorithm: u16 {
        /// None: data as they are, or nothing in common.
        NONE = 0,
        /// LZNT1.
        LZNT1 = 1,
        /// Plain LZ77.
        LZ77 = 2,
        /// LZ77 with Huffman codes.
        LZ77_HUFFMAN = 3,
        /// One byte, repeated; in chains only.
        PATTERN_V1 = 4,
        /// LZ4.
        LZ4 = 5,
    }
}

impl CompressionAlgorithm {
    /// All algorithms, the one that compresses most for its time first.
    pub const ALL: [Self; 5] =
        [Self::LZ4, Self::LZ77, Self::LZ77_HUFFMAN, Self::LZNT1, Self::PATTERN_V1];

    /// Whether it compresses any data, and not only what is one byte over and over.
    #[must_use]
    pub fn is_general(self) -> bool {
        [Self::LZNT1, Self::LZ77, Self::LZ77_HUFFMAN, Self::LZ4].contains(&self)
    }

    fn bit(self) -> u32 {
        1u32.checked_shl(self.0.into()).unwrap_or(0)
    }
}

/// `SMB2_COMPRESSION_CAPABILITIES_FLAG_CHAINED` (MS-SMB2 2.2.3.1.3).
pub const CAPABILITY_CHAINED: u32 = 1;
/// Shorter data, in bytes, are not worth the time of who is not asked to compress them.
pub const WORTHWHILE: usize = 4096;

const FLAG_CHAINED: u16 = 1;
/// SMB2_COMPRESSION_TRANSFORM_HEADER, in bytes: no compressed message is shorter.
pub const HEADER_LEN: usize = 16;
/// What a chain has of it before its first payload header.
const CHAIN_HEADER: usize = 8;
const PAYLOAD_HEADER: usize = 8;
/// Bytes that a decompressed message may have beyond the largest payload (MS-SMB2 3.3.5.2.1.2).
const BEYOND: usize = 256 + HEADER_LEN;

/// What the ends of a connection agreed on: `Connection.CompressionIds` and
/// `Connection.SupportsChainedCompression` (MS-SMB2 3.3.1.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// A bit for each algorithm.
    known: u32,
    /// What this end compresses with.
    by: CompressionAlgorithm,
    chained: bool,
}

impl Compression {
    /// What follows from the algorithms in `common`, of which this end prefers those that stand first in
    /// `preferred`; `None` if there is none in common.
    #[must_use]
    pub fn agreed(
        preferred: &[CompressionAlgorithm],
        common: &[CompressionAlgorithm],
        chained: bool,
    ) -> Option<Self> {
        let known = common.iter().fold(0, |all, algorithm| all | algorithm.bit());
        let known = known & !CompressionAlgorithm::NONE.bit();
        let usable = |a: &&CompressionAlgorithm| a.is_general() && known & a.bit() != 0;
        let by = preferred.iter().find(usable).copied().unwrap_or_default();
        (known != 0).then_some(Self { known, by, chained })
    }

    /// The algorithm that this end compresses with; `NONE` if only patterns are known.
    #[must_use]
    pub fn algorithm(&self) -> CompressionAlgorithm {
        self.by
    }

    /// Whether messages are compressed in parts.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.chained
    }

    fn knows(&self, algorithm: CompressionAlgorithm) -> bool {
        self.known & algorithm.bit() != 0
    }
}

/// Why a compressed message is none; the connection that it came on ends (MS-SMB2 3.2.5.1.1.2,
/// 3.3.5.2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompressionError {
    /// The message ends within a header.
    #[error("compressed message: {0}")]
    Header(#[from] WireError),
    /// The flags are neither those of a message by itself nor those of a chain, or of a chain where
    /// none was agreed on.
    #[error("compressed message has flags {0:#06x}, which were not agreed on")]
    Flags(u16),
    /// It is compressed with something that was not agreed on.
    #[error("compressed with {0:?}, which was not agreed on")]
    NotAgreed(CompressionAlgorithm),
    /// It would be longer than any message may be.
    #[error("compressed message announces {announced} bytes, of at most {most}")]
    TooLong {
        /// Bytes of the whole message.
        announced: usize,
        /// Bytes that it may have.
        most: usize,
    },
    /// The compressed part begins behind the end of the message.
    #[error("compressed data at offset {offset} of {len} bytes")]
    Offset {
        /// Bytes before the compressed part.
        offset: usize,
        /// Bytes that there are.
        len: usize,
    },
    /// A payload of a chain does not have the length that it says.
    #[error("a payload of {len} bytes where {have} are")]
    Payload {
        /// What its header says.
        len: usize,
        /// What there is, or may be.
        have: usize,
    },
    /// The payloads of a chain are not as long together as its header says.
    #[error("a chain of {got} bytes that announces {announced}")]
    Chain {
        /// Bytes of its payloads.
        got: usize,
        /// What its header says.
        announced: usize,
    },
    /// What was compressed is no message of SMB 2.
    #[error("something else than SMB 2 was compressed")]
    NotSmb2,
    /// The compressed data are malformed.
    #[error(transparent)]
    Data(#[from] xca::Error),
}

#[cfg(test)]
mod tests;
