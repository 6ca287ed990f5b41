//! CLOSE (MS-SMB2 2.2.15, 2.2.16).

use crate::{
    fscc::{FileAttributes, Times},
    header::file_id,
    ids::FileId,
    wire::{Put, Reader, Result},
};

/// `SMB2_CLOSE_FLAG_POSTQUERY_ATTRIB`: answer with the attributes after the close.
pub const POSTQUERY_ATTRIB: u16 = 1;

/// CLOSE request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// [`POSTQUERY_ATTRIB`] or 0.
    pub flags: u16,
    /// What to close.
    pub file_id: FileId,
}

impl Request {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(24, "close.StructureSize")?;
        let flags = r.u16("close.Flags")?;
        r.skip(4, "close.Reserved")?;
        Ok(Self { flags, file_id: file_id(&mut r, "close.FileId")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(24);
        out.put_u16(self.flags);
        out.put_u32(0);
        out.put(&self.file_id.to_bytes());
    }
}

/// CLOSE response; zeros when no attributes were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response {
    /// [`POSTQUERY_ATTRIB`] when the rest holds.
    pub flags: u16,
    /// Times.
    pub times: Times,
    /// Allocated bytes.
    pub allocation_size: u64,
    /// Length in bytes.
    pub end_of_file: u64,
    /// Attributes.
    pub attributes: FileAttributes,
}

impl Response {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(60, "close.StructureSize")?;
        let flags = r.u16("close.Flags")?;
        r.skip(4, "close.Reserved")?;
        Ok(Self {
            flags,
            times: Times::parse(&mut r)?,
            allocation_size: r.u64("close.AllocationSize")?,
            end_of_file: r.u64("close.EndofFile")?,
            attributes: FileAttributes(r.u32("close.FileAttributes")?),
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(60);
        out.put_u16(self.flags);
        out.put_u32(0);
        self.times.encode(out);
        out.put_u64(self.allocation_size);
        out.put_u64(self.end_of_file);
        out.put_u32(self.attributes.0);
    }
}
