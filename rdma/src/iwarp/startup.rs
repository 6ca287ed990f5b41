//! The two frames that begin a connection (RFC 5044 7.1, RFC 6581 4 and 9).
//!
//! ```text
//!  who connects                                   who is connected to
//!  request: key, M C R S, revision, private ──►
//!           [S: A B IRD, C D ORD]                  markers? refused.  Depths: the smaller of both.
//!                                             ◄── reply: key, M C R S, revision, private
//!  first FPDU, or the frame that makes it ready ─► only now it may send FPDUs
//! ```

use nom::{
    IResult, Parser,
    bytes::complete::{tag, take},
    combinator::{map, value},
    number::complete::{be_u8, be_u16},
};

/// What a request begins with.
pub const KEY_REQUEST: &[u8; 16] = b"MPA ID Req Frame";
/// What a reply begins with.
pub const KEY_REPLY: &[u8; 16] = b"MPA ID Rep Frame";
/// Most bytes of private data (RFC 5044 7.1.1).
pub const MOST_PRIVATE: usize = 512;
/// Bytes of a frame without its private data.
pub const HEAD: usize = 20;
/// Bytes of private data that say the depths (RFC 6581 4).
const ENHANCED: usize = 4;

const MARKERS: u8 = 0x80;
const CRC: u8 = 0x40;
const REJECT: u8 = 0x20;
const ENHANCED_FLAG: u8 = 0x10;

/// Which of the two frames it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From whoever connects.
    Request,
    /// What that is answered with.
    Reply,
}

/// With which frame whoever has connected makes the connection ready in the model of two peers
/// (RFC 6581 9.1): none of them has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyToReceive {
    /// A frame of nothing.
    Empty,
    /// An RDMA Write of nothing.
    Write,
    /// An RDMA Read of nothing.
    Read,
}

/// The depths of reads, and the model, of MPA revision 2 (RFC 6581 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depths {
    /// The model of two peers is wanted.
    pub peer_to_peer: bool,
    /// A frame of nothing can make it ready.
    pub empty: bool,
    /// An RDMA Write of nothing can.
    pub write: bool,
    /// An RDMA Read of nothing can.
    pub read: bool,
    /// RDMA reads that its sender lets come at once, 14 bits.
    pub ird: u16,
    /// RDMA reads that its sender wants to make at once, 14 bits.
    pub ord: u16,
}

impl Depths {
    /// The largest depth there is; as a value it says that nothing was agreed on (RFC 6581 4).
    pub const MOST: u16 = 0x3fff;

    fn parse(bytes: &[u8]) -> IResult<&[u8], Self> {
        map((be_u16, be_u16), |(ird, ord)| Self {
            peer_to_peer: ird & 0x8000 != 0,
            empty: ird & 0x4000 != 0,
            write: ord & 0x8000 != 0,
            read: ord & 0x4000 != 0,
            ird: ird & Self::MOST,
            ord: ord & Self::MOST,
        })
        .parse(bytes)
    }

    fn encode(self, out: &mut Vec<u8>) {
        let bit = |set: bool, at: u16| u16::from(set) << at;
        let ird = bit(self.peer_to_peer, 15) | bit(self.empty, 14) | self.ird.min(Self::MOST);
        let ord = bit(self.write, 15) | bit(self.read, 14) | self.ord.min(Self::MOST);
        out.extend(ird.to_be_bytes());
        out.extend(ord.to_be_bytes());
    }

    /// Whether the frame is one of those that its sender can make ready with.
    pub fn offers(self, frame: ReadyToReceive) -> bool {
        match frame {
            ReadyToReceive::Empty => self.empty,
            ReadyToReceive::Write => self.write,
            ReadyToReceive::Read => self.read,
        }
    }

    /// The same depths with that frame alone.
    pub fn ready_with(self, frame: Option<ReadyToReceive>) -> Self {
        let is = |one| frame == Some(one);
        Self {
            peer_to_peer: frame.is_some(),
            empty: is(ReadyToReceive::Empty),
            write: is(ReadyToReceive::Write),
            read: is(ReadyToReceive::Read),
            ..self
        }
    }
}

/// A frame that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It does not begin as it must: whoever sent it speaks something else, as SMB over TCP.
    #[error("not a frame of MPA: is this the port of SMB Direct?")]
    Key,
    /// Its revision is none that is known here.
    #[error("revision {0} of MPA is not known")]
    Revision(u8),
    /// It has more private data than a frame may have.
    #[error("{0} bytes of private data")]
    Private(u16),
    /// It says that it has depths and has no room for them.
    #[error("an enhanced frame without its depths")]
    Depths,
}

/// One of the two frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which of the two.
    pub kind: Kind,
    /// Its sender wants markers in what it receives.
    pub markers: bool,
    /// Its sender wants CRCs.
    pub crc: bool,
    /// The connection is refused; nothing in a request.
    pub rejected: bool,
    /// 1 or 2.
    pub revision: u8,
    /// The depths of reads, if it is enhanced.
    pub depths: Option<Depths>,
    /// What the upper layer says with it.
    pub private: Vec<u8>,
}

impl Frame {
    /// How many bytes the frame has that begins like this; `None` if that cannot be said yet.
    ///
    /// # Errors
    /// No frame begins like this. That is found with the first byte that is wrong.
    pub fn length(bytes: &[u8], kind: Kind) -> Result<Option<usize>, Malformed> {
        let key = key(kind);
        let there = bytes.len().min(key.len());
        if bytes[..there] != key[..there] {
            return Err(Malformed::Key);
        }
        let Some(length) = bytes.get(HEAD - 2..HEAD) else { return Ok(None) };
        let length = u16::from_be_bytes([length[0], length[1]]);
        // An enhanced frame has its depths beyond what the upper layer may have.
        if usize::from(length) > MOST_PRIVATE + ENHANCED {
            return Err(Malformed::Private(length));
        }
        Ok(Some(HEAD + usize::from(length)))
    }

    /// Reads a frame that is there whole.
    ///
    /// # Errors
    /// It is no such frame.
    pub fn parse(bytes: &[u8], kind: Kind) -> Result<Self, Malformed> {
        let wrong = |_: nom::Err<nom::error::Error<&[u8]>>| Malformed::Key;
        let head = (value(kind, tag(&key(kind)[..])), be_u8, be_u8, be_u16);
        let (rest, (kind, flags, revision, length)) = { head }.parse(bytes).map_err(wrong)?;
        if !(1..=2).contains(&revision) {
            return Err(Malformed::Revision(revision));
        }
        let cut = |_: nom::Err<nom::error::Error<&[u8]>>| Malformed::Private(length);
        let (_, mut private) = take(length)(rest).map_err(cut)?;
        let mut depths = None;
        if revision == 2 && flags & ENHANCED_FLAG != 0 {
            let (rest, read) = Depths::parse(private).map_err(|_| Malformed::Depths)?;
            (private, depths) = (rest, Some(read));
        }
        if private.len() > MOST_PRIVATE {
            return Err(Malformed::Private(length));
        }
        Ok(Self {
            kind,
            markers: flags & MARKERS != 0,
            crc: flags & CRC != 0,
            rejected: flags & REJECT != 0,
            revision,
            depths,
            private: private.to_vec(),
        })
    }

    /// Its bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut private = Vec::new();
        if let Some(depths) = self.depths {
            depths.encode(&mut private);
        }
        private.extend(&self.private[..self.private.len().min(MOST_PRIVATE)]);
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = bit(self.markers, MARKERS)
            | bit(self.crc, CRC)
            | bit(self.rejected, REJECT)
            | bit(self.depths.is_some(), ENHANCED_FLAG);
        let mut out = Vec::with_capacity(HEAD + private.len());
        out.extend(key(self.kind));
        out.extend([flags, self.revision]);
        // No more than the private data may have, with the depths.
        out.extend((private.len() as u16).to_be_bytes());
        out.extend(private);
        out
    }
}

fn key(kind: Kind) -> &'static [u8; 16] {
    match kind {
        Kind::Request => KEY_REQUEST,
        Kind::Reply => KEY_REPLY,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_linux_sends() {
        // Linux' siw for cifs.ko: revision 2, enhanced, and its own private data behind the depths.
        let mut bytes = KEY_REQUEST.to_vec();
        bytes.extend([0x10, 2, 0, 12, 0, 32, 0, 32, 0, 0, 0, 32, 0, 0, 0, 0]);
        assert_eq!(Frame::length(&bytes[..19], Kind::Request), Ok(None));
        assert_eq!(Frame::length(&bytes, Kind::Request), Ok(Some(bytes.len())));
        let frame = Frame::parse(&bytes, Kind::Request).unwrap();
        let depths = Depths { ird: 32, ord: 32, ..Depths::default() };
        assert_eq!((frame.depths, frame.private.len(), frame.crc), (Some(depths), 8, false));
        assert_eq!(frame.encode(), bytes);
    }

    #[test]
    fn what_is_no_frame_is_known_by_its_first_byte() {
        let smb = [0, 0, 0, 0x45, 0xfe, b'S', b'M', b'B'];
        assert_eq!(Frame::length(&smb[..1], Kind::Request), Err(Malformed::Key));
        assert_eq!(Frame::length(&KEY_REPLY[..], Kind::Request), Err(Malformed::Key));
        let mut frame = KEY_REQUEST.to_vec();
        frame.extend([0, 1, 2, 5]);
        assert_eq!(Frame::length(&frame, Kind::Request), Err(Malformed::Private(517)));
        frame[17..].copy_from_slice(&[3, 0, 0]);
        assert_eq!(Frame::parse(&frame, Kind::Request), Err(Malformed::Revision(3)));
        frame[16..].copy_from_slice(&[0x10, 2, 0, 0]);
        assert_eq!(Frame::parse(&frame, Kind::Request), Err(Malformed::Depths));
    }

    proptest! {
        /// What is written is read again.
        #[test]
        fn frames_come_back(reply: bool, flags: [bool; 3], two: bool, bits: [bool; 4],
                            ird in 0u16..0x4000, ord in 0u16..0x4000,
                            private in prop::collection::vec(any::<u8>(), 0..=MOST_PRIVATE)) {
            let [peer_to_peer, empty, write, read] = bits;
            let depths = Depths { peer_to_peer, empty, write, read, ird, ord };
            let kind = if reply { Kind::Reply } else { Kind::Request };
            let frame = Frame {
                kind, markers: flags[0], crc: flags[1], rejected: flags[2],
                revision: if two { 2 } else { 1 }, depths: two.then_some(depths), private,
            };
            let bytes = frame.encode();
            prop_assert_eq!(Frame::length(&bytes, kind), Ok(Some(bytes.len())));
            prop_assert_eq!(Frame::parse(&bytes, kind), Ok(frame));
        }
    }
}
