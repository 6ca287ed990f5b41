//! The message that says what was wrong before a connection ends (RFC 5040 4.8, RFC 5044 8).

use std::fmt;

use nom::{IResult, Parser, number::complete::be_u32};

use super::segment::NoSegment;
use crate::memory::Refusal;

/// What was wrong: a layer, a kind of error of it, and the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminate {
    /// 0 RDMAP, 1 DDP, 2 what is below.
    pub layer: u8,
    /// The kind of error, four bits.
    pub kind: u8,
    /// The error itself.
    pub code: u8,
}

const fn of(layer: u8, kind: u8, code: u8) -> Terminate {
    Terminate { layer, kind, code }
}

impl Terminate {
    /// Something here failed (RDMAP, local catastrophic error).
    pub const LOCAL: Self = of(0, 0, 0);
    /// An opcode that cannot be there.
    pub const OPCODE: Self = of(0, 2, 6);
    /// A version of RDMAP that is not known.
    pub const RDMAP_VERSION: Self = of(0, 2, 5);
    /// More reads than were agreed on, or another breach within the stream.
    pub const STREAM: Self = of(0, 2, 7);
    /// A right that cannot be given up.
    pub const CANNOT_INVALIDATE: Self = of(0, 2, 9);
    /// There is no such queue.
    pub const QUEUE: Self = of(1, 2, 1);
    /// No receive is posted for a message.
    pub const NO_BUFFER: Self = of(1, 2, 2);
    /// The number of a message is not the next.
    pub const NUMBER: Self = of(1, 2, 3);
    /// A segment does not stand behind the one before it.
    pub const OFFSET: Self = of(1, 2, 4);
    /// A message is longer than its receive.
    pub const TOO_LONG: Self = of(1, 2, 5);
    /// A CRC is wrong.
    pub const CRC: Self = of(2, 0, 2);

    /// What a peer is told whose operation on memory was refused: the layer differs for what it reads
    /// and what it writes.
    pub fn refused(refusal: Refusal, reads: bool) -> Self {
        match (refusal, reads) {
            (Refusal::Token, true) => of(0, 1, 0),
            (Refusal::Bounds, true) => of(0, 1, 1),
            (Refusal::Wraps, true) => of(0, 1, 4),
            (Refusal::Rights, _) => of(0, 1, 2),
            (Refusal::Token, false) => of(1, 1, 0),
            (Refusal::Bounds, false) => of(1, 1, 1),
            (Refusal::Wraps, false) => of(1, 1, 3),
        }
    }

    /// Reads the control field; what stands behind it is for people with a trace.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let control: IResult<&[u8], u32> = be_u32.parse(data);
        let [first, code, ..] = control.ok()?.1.to_be_bytes();
        Some(of(first >> 4, first & 0x0f, code))
    }

    /// Its bytes, without headers of what was wrong.
    pub fn encode(self) -> [u8; 4] {
        [(self.layer << 4) | (self.kind & 0x0f), self.code, 0, 0]
    }
}

impl From<NoSegment> for Terminate {
    fn from(wrong: NoSegment) -> Self {
        match wrong {
            NoSegment::Short => Self::STREAM,
            NoSegment::RdmapVersion => Self::RDMAP_VERSION,
            NoSegment::DdpVersion(true) => of(1, 1, 4),
            NoSegment::DdpVersion(false) => of(1, 2, 6),
        }
    }
}

impl fmt::Display for Terminate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.layer, self.kind, self.code) {
            (0, 1, 0) | (1, 1, 0) => "invalid steering tag",
            (0, 1, 1) | (1, 1, 1) => "outside the memory",
            (0, 1, 2) => "no right to the memory",
            (0, 1, 4) | (1, 1, 3) => "offset wraps",
            (0, 2, 5) => "unknown version of RDMAP",
            (0, 2, 6) => "unexpected opcode",
            (0, 2, 7) => "the stream cannot go on",
            (0, 2, 9) => "the tag cannot be invalidated",
            (1, 1, 4) | (1, 2, 6) => "unknown version of DDP",
            (1, 2, 1) => "no such queue",
            (1, 2, 2) => "no buffer for a message",
            (1, 2, 3) => "wrong number of a message",
            (1, 2, 4) => "wrong offset in a message",
            (1, 2, 5) => "message longer than its buffer",
            (2, 0, 2) => "wrong CRC",
            _ => "an error",
        };
        write!(f, "{what} (layer {}, type {}, code {})", self.layer, self.kind, self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_field_is_that_of_the_rfc() {
        // RFC 5040 4.8: layer and type in the first byte, the code in the second.
        assert_eq!(Terminate::NO_BUFFER.encode(), [0x12, 0x02, 0, 0]);
        assert_eq!(Terminate::parse(&[0x12, 0x02, 0xc0, 0, 1, 2]), Some(Terminate::NO_BUFFER));
        assert_eq!(Terminate::parse(&[0x12, 2, 0]), None);
        let said = Terminate::refused(Refusal::Bounds, true).to_string();
        assert_eq!(said, "outside the memory (layer 0, type 1, code 1)");
        assert_eq!(Terminate::CRC.encode()[0], 0x20);
    }
}
