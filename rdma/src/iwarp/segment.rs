//! Headers of DDP segments with what RDMAP says in them (RFC 5041 4, RFC 5040 4).
//!
//! ```text
//!  tagged    T L ····· DV │ RV ·· opcode │ STag │ offset (8)                         │ data
//!  untagged  T L ····· DV │ RV ·· opcode │ STag to invalidate │ queue │ MSN │ offset │ data
//! ```

use nom::{
    IResult, Parser,
    combinator::rest,
    number::complete::{be_u8, be_u32, be_u64},
};

const TAGGED: u8 = 0x80;
const LAST: u8 = 0x40;
/// Version of DDP, the lowest two bits.
const DDP_VERSION: u8 = 1;
/// Version of RDMAP, the highest two bits.
const RDMAP_VERSION: u8 = 1;

/// Bytes of the header of a tagged segment.
pub const TAGGED_HEAD: usize = 14;
/// Bytes of the header of an untagged segment.
pub const UNTAGGED_HEAD: usize = 18;

/// The queue of Sends.
pub const QUEUE_SEND: u32 = 0;
/// The queue of Read Requests.
pub const QUEUE_READ: u32 = 1;
/// The queue of Terminates.
pub const QUEUE_TERMINATE: u32 = 2;

/// What RDMAP does with a segment (RFC 5040 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// Data for memory that its owner named.
    Write,
    /// What is asked for of memory.
    ReadRequest,
    /// The data that were asked for.
    ReadResponse,
    /// A message.
    Send,
    /// A message with which a right to memory ends.
    SendInvalidate,
    /// A message about which its receiver is to be told at once.
    SendSolicited,
    /// Both.
    SendSolicitedInvalidate,
    /// What was wrong.
    Terminate,
    /// None that RFC 5040 has.
    Other(u8),
}

impl Opcode {
    fn number(self) -> u8 {
        match self {
            Self::Write => 0,
            Self::ReadRequest => 1,
            Self::ReadResponse => 2,
            Self::Send => 3,
            Self::SendInvalidate => 4,
            Self::SendSolicited => 5,
            Self::SendSolicitedInvalidate => 6,
            Self::Terminate => 7,
            Self::Other(number) => number & 0x0f,
        }
    }

    fn of(number: u8) -> Self {
        match number {
            0 => Self::Write,
            1 => Self::ReadRequest,
            2 => Self::ReadResponse,
            3 => Self::Send,
            4 => Self::SendInvalidate,
            5 => Self::SendSolicited,
            6 => Self::SendSolicitedInvalidate,
            7 => Self::Terminate,
            other => Self::Other(other),
        }
    }

    /// Whether it is a message with which a right ends.
    pub fn invalidates(self) -> bool {
        matches!(self, Self::SendInvalidate | Self::SendSolicitedInvalidate)
    }
}

/// Where the data of a segment go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// To memory that its owner named.
    Tagged {
        /// The steering tag.
        token: u32,
        /// Where in that memory, in bytes as its owner counts.
        offset: u64,
    },
    /// To the oldest receive of a queue.
    Untagged {
        /// The right that ends, where the opcode says so.
        token: u32,
        /// The queue.
        queue: u32,
        /// The number of the message in its queue, from 1 on.
        number: u32,
        /// Where in the message, in bytes.
        offset: u32,
    },
}

/// One segment of DDP with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// It is the last of its message.
    pub last: bool,
    /// What it is for.
    pub opcode: Opcode,
    /// Where it goes.
    pub place: Place,
    /// The data, in its frame.
    pub data: &'a [u8],
}

/// Why a ULPDU is no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSegment {
    /// It is shorter than a header.
    Short,
    /// Its version of DDP is not 1; whether it is tagged.
    DdpVersion(bool),
    /// Its version of RDMAP is not 1.
    RdmapVersion,
}

impl<'a> Segment<'a> {
    /// Reads a ULPDU.
    ///
    /// # Errors
    /// It is no segment.
    pub fn parse(ulpdu: &'a [u8]) -> Result<Self, NoSegment> {
        let short = |_: nom::Err<nom::error::Error<&'a [u8]>>| NoSegment::Short;
        let (after, (ddp, rdmap)) = (be_u8, be_u8).parse(ulpdu).map_err(short)?;
        let tagged = ddp & TAGGED != 0;
        if ddp & 0x03 != DDP_VERSION {
            return Err(NoSegment::DdpVersion(tagged));
        }
        if rdmap >> 6 != RDMAP_VERSION {
            return Err(NoSegment::RdmapVersion);
        }
        let (_, (place, data)) = match tagged {
            true => (Place::tagged, rest).parse(after).map_err(short)?,
            false => (Place::untagged, rest).parse(after).map_err(short)?,
        };
        Ok(Self { last: ddp & LAST != 0, opcode: Opcode::of(rdmap & 0x0f), place, data })
    }

    /// Its header on the wire.
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        let tagged = matches!(self.place, Place::Tagged { .. });
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(flag(tagged, TAGGED) | flag(self.last, LAST) | DDP_VERSION);
        out.push((RDMAP_VERSION << 6) | self.opcode.number());
        match self.place {
            Place::Tagged { token, offset } => {
                out.extend(token.to_be_bytes());
                out.extend(offset.to_be_bytes());
            }
            Place::Untagged { token, queue, number, offset } => {
                for field in [token, queue, number, offset] {
                    out.extend(field.to_be_bytes());
                }
            }
        }
    }
}

impl Place {
    fn tagged(bytes: &[u8]) -> IResult<&[u8], Self> {
        let (left, (token, offset)) = (be_u32, be_u64).parse(bytes)?;
        Ok((left, Self::Tagged { token, offset }))
    }

    fn untagged(bytes: &[u8]) -> IResult<&[u8], Self> {
        let (left, (token, queue, number, offset)) =
            (be_u32, be_u32, be_u32, be_u32).parse(bytes)?;
        Ok((left, Self::Untagged { token, queue, number, offset }))
    }
}

/// What a Read Request asks for (RFC 5040 4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// Where the answer goes: the tag of whoever asks.
    pub sink: u32,
    /// Where in that memory.
    pub sink_offset: u64,
    /// Bytes that are asked for.
    pub length: u32,
    /// The memory that is read.
    pub source: u32,
    /// Where in that memory.
    pub source_offset: u64,
}

impl ReadRequest {
    /// Bytes of one on the wire.
    pub const LEN: usize = 28;

    /// Reads one, which is all of a segment's data.
    pub fn parse(data: &[u8]) -> Option<Self> {
        if data.len() != Self::LEN {
            return None;
        }
        let fields: IResult<&[u8], _> = (be_u32, be_u64, be_u32, be_u32, be_u64).parse(data);
        let (_, (sink, sink_offset, length, source, source_offset)) = fields.ok()?;
        Some(Self { sink, sink_offset, length, source, source_offset })
    }

    /// Its bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend(self.sink.to_be_bytes());
        out.extend(self.sink_offset.to_be_bytes());
        out.extend(self.length.to_be_bytes());
        out.extend(self.source.to_be_bytes());
        out.extend(self.source_offset.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_stand_as_the_rfcs_draw_them() {
        // RFC 5041 4.2: tagged, last, version 1; RFC 5040 4.1: version 1, RDMA Write.
        let tagged = Segment {
            last: true,
            opcode: Opcode::Write,
            place: Place::Tagged { token: 0x0102_0304, offset: 0x0506_0708_090a_0b0c },
            data: b"xy",
        };
        let mut bytes = Vec::new();
        tagged.encode_head(&mut bytes);
        assert_eq!(bytes, [0xc1, 0x40, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        bytes.extend(b"xy");
        assert_eq!(Segment::parse(&bytes), Ok(tagged));
        // RFC 5041 4.3: untagged; a Send with Invalidate whose first message this is.
        let place = Place::Untagged { token: 9, queue: QUEUE_SEND, number: 1, offset: 0 };
        let send = Segment { last: false, opcode: Opcode::SendInvalidate, place, data: b"" };
        let mut bytes = Vec::new();
        send.encode_head(&mut bytes);
        assert_eq!(bytes, [0x01, 0x44, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(Segment::parse(&bytes), Ok(send));
        assert_eq!(Segment::parse(&[0x02, 0x44]), Err(NoSegment::DdpVersion(false)));
        assert_eq!(Segment::parse(&[0x81, 0x84]), Err(NoSegment::RdmapVersion));
        assert_eq!(Segment::parse(&bytes[..17]), Err(NoSegment::Short));
        let all = 0..16;
        assert!(all.clone().map(|number| Opcode::of(number).number()).eq(all));
    }

    proptest! {
        /// What is read of any bytes is written as it was, but for bits that are nobody's.
        #[test]
        fn segments_come_back(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(first) = bytes.first_chunk_mut::<2>() {
                *first = [first[0] & 0xc0 | 1, first[1] & 0x0f | 0x40];
            }
            if let Ok(segment) = Segment::parse(&bytes) {
                let mut again = Vec::new();
                segment.encode_head(&mut again);
                again.extend(segment.data);
                prop_assert_eq!(&again, &bytes);
                if let Some(request) = ReadRequest::parse(segment.data) {
                    prop_assert_eq!(request.encode(), segment.data);
                }
            }
        }
    }
}
