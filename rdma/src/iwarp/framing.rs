//! FPDUs (RFC 5044 4): each ULPDU behind its length, padded to four bytes, with a CRC32C behind it.
//!
//! ```text
//!  0      2                             2 + length        multiple of 4      + 4
//!  ┌──────┬──────────────────────────────┬─────────────────┬──────────────────┐
//!  │length│ ULPDU                        │ zeros           │ CRC32C, or zeros │
//!  └──────┴──────────────────────────────┴─────────────────┴──────────────────┘
//! ```
//! Markers are refused when a connection begins, so there are none.

/// The longest ULPDU that its length can say, in bytes. Rounded down so that a frame needs no padding.
pub const MOST_ULPDU: usize = 65_534;
/// Bytes of the length and of the CRC.
pub const LENGTH: usize = 2;
/// Bytes behind the padding.
pub const TRAILER: usize = 4;

/// What stands in an FPDU, or why it cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// More bytes are needed, so many altogether, before anything can be said.
    Needs(usize),
    /// A ULPDU of so many bytes stands behind the length, and the frame ends after so many.
    Whole {
        /// Bytes of the ULPDU.
        ulpdu: usize,
        /// Bytes of the frame.
        frame: usize,
    },
    /// Its CRC is wrong.
    Damaged,
}

/// How both ends frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// Frames have a CRC.
    pub crc: bool,
}

impl Framing {
    /// Bytes of zeros behind a ULPDU.
    pub fn padding(ulpdu: usize) -> usize {
        (LENGTH + ulpdu).next_multiple_of(4) - LENGTH - ulpdu
    }

    /// The frame at the front of `bytes`.
    pub fn first(self, bytes: &[u8]) -> Frame {
        let Some(length) = bytes.first_chunk::<LENGTH>() else { return Frame::Needs(LENGTH) };
        let ulpdu = usize::from(u16::from_be_bytes(*length));
        let covered = LENGTH + ulpdu + Self::padding(ulpdu);
        let frame = covered + TRAILER;
        let Some(trailer) = bytes.get(covered..frame) else { return Frame::Needs(frame) };
        // A CRC that nobody asked for may be anything.
        if self.crc && crc32c::crc32c(&bytes[..covered]).to_le_bytes() != trailer {
            return Frame::Damaged;
        }
        Frame::Whole { ulpdu, frame }
    }

    /// What stands behind a ULPDU that is made of these pieces: zeros and the CRC. The length comes
    /// first and is part of what the CRC is over.
    pub fn trailer(self, head: &[u8], body: &[u8]) -> ([u8; 8], usize) {
        let padding = Self::padding(head.len() - LENGTH + body.len());
        let mut trailer = [0; 8];
        if self.crc {
            let crc = crc32c::crc32c_append(crc32c::crc32c(head), body);
            let crc = crc32c::crc32c_append(crc, &trailer[..padding]);
            trailer[padding..padding + TRAILER].copy_from_slice(&crc.to_le_bytes());
        }
        (trailer, padding + TRAILER)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(framing: Framing, ulpdu: &[u8], cut: usize) -> Vec<u8> {
        let mut head = u16::try_from(ulpdu.len()).unwrap().to_be_bytes().to_vec();
        head.extend(&ulpdu[..cut]);
        let (trailer, len) = framing.trailer(&head, &ulpdu[cut..]);
        [&head[..], &ulpdu[cut..], &trailer[..len]].concat()
    }

    #[test]
    fn the_crc_is_that_of_iscsi() {
        // RFC 7143 A.4: 32 bytes of zeros have the CRC aa 36 91 8a, in the order of the wire. Here the
        // first two are the length of nothing.
        let crc = Framing { crc: true };
        let bytes = frame(crc, &[], 0);
        assert_eq!(bytes.len(), 8);
        assert_eq!(bytes[4..], crc32c::crc32c(&[0; 4]).to_le_bytes());
        assert_eq!(crc32c::crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    proptest! {
        /// A frame is found in what it was made of, wherever it is cut, and a bit that turns is seen.
        #[test]
        fn frames_are_found_again(ulpdu in prop::collection::vec(any::<u8>(), 0..300),
                                  cut in any::<prop::sample::Index>(), crc: bool,
                                  bit in any::<prop::sample::Index>()) {
            let framing = Framing { crc };
            let bytes = frame(framing, &ulpdu, cut.index(ulpdu.len() + 1));
            prop_assert_eq!(bytes.len() % 4, 0);
            let whole = Frame::Whole { ulpdu: ulpdu.len(), frame: bytes.len() };
            prop_assert_eq!(framing.first(&bytes), whole);
            for end in 0..bytes.len() {
                let needs = if end < LENGTH { LENGTH } else { bytes.len() };
                prop_assert_eq!(framing.first(&bytes[..end]), Frame::Needs(needs));
            }
            if crc {
                let mut harmed = bytes.clone();
                let at = LENGTH * 8 + bit.index((bytes.len() - LENGTH) * 8);
                harmed[at / 8] ^= 1 << (at % 8);
                prop_assert_eq!(framing.first(&harmed), Frame::Damaged);
            }
        }
    }
}
