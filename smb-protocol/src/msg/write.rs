//! WRITE (MS-SMB2 2.2.21, 2.2.22).

use nom::Parser;

use crate::{
    header::{HEADER_LEN, body, file_id},
    ids::FileId,
    parse::{self, region, size16, skip, structure_size, u32, u64},
    wire::{Put, Result, len16, len32},
};

/// `SMB2_WRITEFLAG_WRITE_THROUGH`: durable before the answer (2.1 and later).
pub const WRITE_THROUGH: u32 = 1;
/// `SMB2_WRITEFLAG_WRITE_UNBUFFERED` (3.0.2 and later).
pub const UNBUFFERED: u32 = 2;
/// Where our requests put the data, from the header.
pub const DATA_OFFSET: usize = HEADER_LEN + 48;

/// WRITE request: has bytes to write to a file (MS-SMB2 2.2.21).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// Where to write.
    pub offset: u64,
    /// What to write to.
    pub file_id: FileId,
    /// 0, or how `channel_info` names the client's memory (SMB Direct).
    pub channel: u32,
    /// Bytes that follow (a hint), or the length to fetch by RDMA.
    pub remaining: u32,
    /// [`WRITE_THROUGH`], [`UNBUFFERED`].
    pub flags: u32,
    /// Length that the request names (more than `data` only with RDMA).
    pub length: u32,
    /// The bytes.
    pub data: &'a [u8],
    /// Buffer descriptors of SMB Direct.
    pub channel_info: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a WRITE request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::parse_rest(bytes, 0)
    }

    /// Reads the body of a request out of which the first `taken` bytes of the data were taken, or
    /// all if there are not so many; `data` is what is left.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse_rest(bytes: &'a [u8], taken: usize) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, data_offset, length, offset, file_id)) = (
                structure_size(49, "write.StructureSize"),
                size16("write.DataOffset"),
                u32("write.Length"),
                u64("write.Offset"),
                file_id("write.FileId"),
            )
                .parse(input)?;
            let (i, (channel, remaining, info_offset, info_len, flags)) = (
                u32("write.Channel"),
                u32("write.RemainingBytes"),
                size16("write.WriteChannelInfoOffset"),
                size16("write.WriteChannelInfoLength"),
                u32("write.Flags"),
            )
                .parse(i)?;
            let channel_info = region(input, info_offset, info_len, "write.ChannelInfo")?.bytes();
            let left = (length as usize).saturating_sub(taken);
            let data = region(input, data_offset, left, "write.Buffer")?.bytes();
            let request =
                Self { offset, file_id, channel, remaining, flags, length, data, channel_info };
            Ok((i, request))
        })
    }

    /// Where the data stand, from the message's header; the rest of the body need not have come.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn data_offset(bytes: &[u8]) -> Result<usize> {
        let fields = (structure_size(49, "write.StructureSize"), size16("write.DataOffset"));
        parse::run(body(bytes), fields.map(|((), offset)| offset))
    }

    /// Appends the body; `length` is taken from `data`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_head(len32(self.data.len()), out);
        out.put(self.data);
    }

    /// Appends the body of a request whose data are in the client's memory: `channel_info` stands
    /// where the data would.
    pub fn encode_remote(&self, out: &mut Vec<u8>) {
        out.put_u16(49);
        out.put_u16(0);
        out.put_u32(0);
        out.put_u64(self.offset);
        out.put(&self.file_id.to_bytes());
        out.put_u32(self.channel);
        out.put_u32(self.remaining);
        out.put_u16(len16(DATA_OFFSET));
        out.put_u16(len16(self.channel_info.len()));
        out.put_u32(self.flags);
        out.put(self.channel_info);
    }

    /// Appends the body up to the data, of which `length` bytes are to follow.
    pub fn encode_head(&self, length: u32, out: &mut Vec<u8>) {
        out.put_u16(49);
        out.put_u16(len16(DATA_OFFSET));
        out.put_u32(length);
        out.put_u64(self.offset);
        out.put(&self.file_id.to_bytes());
        out.put_u32(self.channel);
        out.put_u32(self.remaining);
        out.put_u32(0);
        out.put_u32(self.flags);
    }
}

/// WRITE response: says how many bytes were written (MS-SMB2 2.2.22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response {
    /// Bytes written.
    pub count: u32,
}

impl Response {
    /// Reads the body of a WRITE response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fields = (
            structure_size(17, "write.StructureSize"),
            skip(2, "write.Reserved"),
            u32("write.Count"),
        );
        parse::run(body(bytes), fields.map(|(_, _, count)| Self { count }))
    }

    /// Appends the body of a WRITE response to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(17);
        out.put_u32(self.count);
        out.put_u64(0);
    }
}
