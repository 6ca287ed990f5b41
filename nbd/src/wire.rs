//! Numbers and layouts of the protocol; all are big-endian (proto.md, "Values").

use bytes::{BufMut, BytesMut};

/// Longest data of an option in bytes.
pub const MAX_OPTION: u32 = 64 << 10;
/// Most bytes that a READ or WRITE moves.
pub const MAX_REQUEST: u32 = 32 << 20;

/// `NBDMAGIC`
pub const INIT: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`
pub const OPTION: u64 = 0x4948_4156_454f_5054;
/// Begins the answer to an option.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Begins a request.
pub const REQUEST: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub const CHUNK: u32 = 0x668e_33ef;

/// Handshake flags of server and client.
pub mod hello {
    /// Fixed newstyle negotiation.
    pub const FIXED: u32 = 1;
    /// No 124 zeros behind the answer to EXPORT_NAME.
    pub const NO_ZEROES: u32 = 2;
}

/// Options (proto.md, "Option types").
pub mod option {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Answers to options (proto.md, "Option reply types").
pub mod answer {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// Pieces of information about an export (proto.md, `NBD_REP_INFO`).
pub mod info {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export (proto.md, "Transmission flags").
pub mod export {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
}

/// Requests (proto.md, "Request types").
pub mod command {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests (proto.md, "Command flags").
pub mod flag {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of structured replies (proto.md, "Structured reply chunk types").
pub mod chunk {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = 1 << 15 | 1;
}

/// The only metadata context there is: what is a hole and what reads as zeros.
pub const ALLOCATION: &str = "base:allocation";
/// Our number for it.
pub const ALLOCATION_ID: u32 = 1;
/// States of an extent in it.
pub mod extent {
    #![expect(missing_docs, reason = "the names are the specification's")]
    pub const HOLE: u32 = 1;
    pub const ZERO: u32 = 2;
}

/// Errors as the client sees them (proto.md, "Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not allowed: the export is read-only.
    Perm = 1,
    /// The storage failed.
    Io = 5,
    /// The request makes no sense.
    Inval = 22,
    /// There is no space left, or the request goes beyond the end.
    NoSpc = 28,
    /// The request is larger than is taken.
    Overflow = 75,
    /// It cannot be done as asked.
    NotSup = 95,
    /// The server goes down.
    Shutdown = 108,
}

/// Bytes of a request without what is written.
pub const REQUEST_LEN: usize = 28;

/// A client's request, without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// The client's name for it.
    pub cookie: u64,
    /// First byte that the request is about.
    pub offset: u64,
    /// Bytes that the request is about.
    pub length: u32,
}

impl Request {
    /// Reads one; `None` if it does not begin as one does.
    pub fn parse(raw: &[u8; REQUEST_LEN]) -> Option<Self> {
        let (magic, rest) = raw.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (command, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let (offset, length) = rest.split_first_chunk::<8>()?;
        (u32::from_be_bytes(*magic) == REQUEST).then_some(Self {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length: u32::from_be_bytes(*length.first_chunk()?),
        })
    }

    /// The bytes of it.
    pub fn to_bytes(self) -> [u8; REQUEST_LEN] {
        let mut raw = BytesMut::with_capacity(REQUEST_LEN);
        raw.put_u32(REQUEST);
        raw.put_u16(self.flags);
        raw.put_u16(self.command);
        raw.put_u64(self.cookie);
        raw.put_u64(self.offset);
        raw.put_u32(self.length);
        *raw.first_chunk().expect("as many bytes were put as there are in one")
    }

    /// Bytes that follow it.
    pub fn payload(&self) -> usize {
        if self.command == command::WRITE { self.length as usize } else { 0 }
    }
}

/// Puts a simple reply; what is read follows it.
pub fn simple_reply(out: &mut BytesMut, cookie: u64, error: Option<Errno>) {
    out.put_u32(SIMPLE_REPLY);
    out.put_u32(error.map_or(0, |error| error as u32));
    out.put_u64(cookie);
}

/// Puts the head of a chunk with `length` bytes.
pub fn chunk_head(out: &mut BytesMut, flags: u16, kind: u16, cookie: u64, length: usize) {
    out.put_u32(CHUNK);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(u32::try_from(length).expect("chunks are bounded by the largest request"));
}

/// Puts an answer to an option.
pub fn option_reply(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(data.len()).expect("answers are short"));
    out.put_slice(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A request is what it was made of, and nothing else passes for one.
        #[test]
        fn requests_round_trip(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32,
            raw in prop::array::uniform28(any::<u8>()),
        ) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::parse(&request.to_bytes()), Some(request));
            if let Some(parsed) = Request::parse(&raw) {
                prop_assert_eq!(parsed.to_bytes(), raw);
            }
        }
    }
}
