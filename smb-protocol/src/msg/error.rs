//! ERROR response (MS-SMB2 2.2.2).

use crate::wire::{Put, Reader, Result, len32};

/// Body of a response whose status is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// Number of error contexts in `data` (3.1.1).
    pub context_count: u8,
    /// Error data; for BUFFER_TOO_SMALL the needed length, for a symbolic link its target.
    pub data: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(9, "error.StructureSize")?;
        let context_count = r.u8("error.ErrorContextCount")?;
        r.skip(1, "error.Reserved")?;
        let len = r.u32("error.ByteCount")? as usize;
        Ok(Self { context_count, data: r.bytes(len, "error.ErrorData")? })
    }

    /// Appends the body; an empty one has the one byte that old clients expect.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(9);
        out.put_u8(self.context_count);
        out.put_u8(0);
        out.put_u32(len32(self.data.len()));
        if self.data.is_empty() {
            out.put_u8(0);
        } else {
            out.put(self.data);
        }
    }
}
