//! READ (MS-SMB2 2.2.19, 2.2.20).

use nom::Parser;

use crate::{
    header::{HEADER_LEN, body, file_id},
    ids::FileId,
    parse::{self, region, size8, size16, size32, skip, structure_size, u8, u32, u64},
    wire::{Put, Result},
};

/// `SMB2_READFLAG_READ_UNBUFFERED` (3.0.2 and later).
pub const UNBUFFERED: u8 = 1;
/// `SMB2_READFLAG_REQUEST_COMPRESSED` (3.1.1).
pub const REQUEST_COMPRESSED: u8 = 2;

/// READ request: asks for bytes of a file (MS-SMB2 2.2.19).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// Where the client would like the data to start in the response.
    pub padding: u8,
    /// [`UNBUFFERED`], [`REQUEST_COMPRESSED`], both or neither.
    pub flags: u8,
    /// Bytes to read.
    pub length: u32,
    /// Where to start.
    pub offset: u64,
    /// What to read.
    pub file_id: FileId,
    /// Fewest bytes that count as success.
    pub minimum_count: u32,
    /// 0, or how `channel_info` names the client's memory (SMB Direct).
    pub channel: u32,
    /// Bytes that follow (a hint).
    pub remaining: u32,
    /// Buffer descriptors of SMB Direct.
    pub channel_info: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a READ request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, padding, flags, length, offset, file_id)) = (
                structure_size(49, "read.StructureSize"),
                u8("read.Padding"),
                u8("read.Flags"),
                u32("read.Length"),
                u64("read.Offset"),
                file_id("read.FileId"),
            )
                .parse(input)?;
            let (i, (minimum_count, channel, remaining, info_offset, info_len)) = (
                u32("read.MinimumCount"),
                u32("read.Channel"),
                u32("read.RemainingBytes"),
                size16("read.ReadChannelInfoOffset"),
                size16("read.ReadChannelInfoLength"),
            )
                .parse(i)?;
            let channel_info = region(input, info_offset, info_len, "read.Buffer")?.bytes();
            let request = Self {
                padding,
                flags,
                length,
                offset,
                file_id,
                minimum_count,
                channel,
                remaining,
                channel_info,
            };
            Ok((i, request))
        })
    }

    /// Appends the body of a READ request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(49);
        out.put_u8(self.padding);
        out.put_u8(self.flags);
        out.put_u32(self.length);
        out.put_u64(self.offset);
        out.put(&self.file_id.to_bytes());
        out.put_u32(self.minimum_count);
        out.put_u32(self.channel);
        out.put_u32(self.remaining);
        if self.channel_info.is_empty() {
            out.put_u32(0);
            out.put_u8(0);
        } else {
            out.put_u16((HEADER_LEN + 48) as u16);
            out.put_u16(crate::wire::len16(self.channel_info.len()));
            out.put(self.channel_info);
        }
    }
}

/// Where the data starts in a READ response, from the header.
pub const DATA_OFFSET: usize = HEADER_LEN + 16;

/// READ response: has the bytes that were read (MS-SMB2 2.2.20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// Bytes read.
    pub data: &'a [u8],
    /// Bytes that went by RDMA instead.
    pub remaining: u32,
}

/// Where `Flags` of a READ response stand in its body (3.1.1).
const RESPONSE_FLAGS_AT: usize = 12;
/// `SMB2_READFLAG_RESPONSE_RDMA_TRANSFORM`: the data are a [`super::rdma::Transform`].
const RESPONSE_RDMA_TRANSFORM: u8 = 1;

impl<'a> Response<'a> {
    /// Whether the response in this body says that its data are a [`super::rdma::Transform`].
    #[must_use]
    pub fn is_transform(body: &[u8]) -> bool {
        body.get(RESPONSE_FLAGS_AT).is_some_and(|flags| flags & RESPONSE_RDMA_TRANSFORM != 0)
    }

    /// As [`Response::prefix`], of a response whose data are a [`super::rdma::Transform`].
    pub fn transform_prefix(len: u32, remaining: u32) -> [u8; 16] {
        let mut prefix = Self::prefix(len, remaining);
        prefix[RESPONSE_FLAGS_AT] = RESPONSE_RDMA_TRANSFORM;
        prefix
    }

    /// Reads the body of a READ response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, offset, _, len, remaining)) = (
                structure_size(17, "read.StructureSize"),
                size8("read.DataOffset"),
                skip(1, "read.Reserved"),
                size32("read.DataLength"),
                u32("read.DataRemaining"),
            )
                .parse(input)?;
            Ok((i, Self { data: region(input, offset, len, "read.Buffer")?.bytes(), remaining }))
        })
    }

    /// Appends the body of a READ response to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put(&Self::prefix(crate::wire::len32(self.data.len()), self.remaining));
        out.put(self.data);
    }

    /// The 16 bytes in front of `len` bytes of data, for servers that read in place.
    pub fn prefix(len: u32, remaining: u32) -> [u8; 16] {
        let mut b = [0; 16];
        b[0] = 17;
        b[2] = DATA_OFFSET as u8;
        b[4..8].copy_from_slice(&len.to_le_bytes());
        b[8..12].copy_from_slice(&remaining.to_le_bytes());
        b
    }
}
