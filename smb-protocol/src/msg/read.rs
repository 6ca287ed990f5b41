//! READ (MS-SMB2 2.2.19, 2.2.20).

use crate::{
    header::{HEADER_LEN, file_id},
    ids::FileId,
    wire::{Put, Reader, Result, body_region},
};

/// `SMB2_READFLAG_READ_UNBUFFERED` (3.0.2 and later).
pub const UNBUFFERED: u8 = 1;

/// READ request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// Where the client would like the data to start in the response.
    pub padding: u8,
    /// [`UNBUFFERED`] or 0.
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
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(49, "read.StructureSize")?;
        let padding = r.u8("read.Padding")?;
        let flags = r.u8("read.Flags")?;
        let length = r.u32("read.Length")?;
        let offset = r.u64("read.Offset")?;
        let file_id = file_id(&mut r, "read.FileId")?;
        let minimum_count = r.u32("read.MinimumCount")?;
        let channel = r.u32("read.Channel")?;
        let remaining = r.u32("read.RemainingBytes")?;
        let info_offset = r.u16("read.ReadChannelInfoOffset")?.into();
        let info_len = r.u16("read.ReadChannelInfoLength")?.into();
        let channel_info = body_region(&r, info_offset, info_len, "read.Buffer")?;
        Ok(Self {
            padding,
            flags,
            length,
            offset,
            file_id,
            minimum_count,
            channel,
            remaining,
            channel_info,
        })
    }

    /// Appends the body.
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

/// READ response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// Bytes read.
    pub data: &'a [u8],
    /// Bytes that went by RDMA instead.
    pub remaining: u32,
}

impl<'a> Response<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(17, "read.StructureSize")?;
        let offset = r.u8("read.DataOffset")?.into();
        r.skip(1, "read.Reserved")?;
        let len = r.u32("read.DataLength")? as usize;
        let remaining = r.u32("read.DataRemaining")?;
        Ok(Self { data: body_region(&r, offset, len, "read.Buffer")?, remaining })
    }

    /// Appends the body.
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
