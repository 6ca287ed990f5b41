//! CLOSE (MS-SMB2 2.2.15, 2.2.16).

use nom::Parser;

use crate::{
    fscc::{FileAttributes, Times},
    header::{body, file_id},
    ids::FileId,
    parse::{self, skip, structure_size, u16, u32, u64},
    wire::{Put, Result},
};

/// `SMB2_CLOSE_FLAG_POSTQUERY_ATTRIB`: answer with the attributes after the close.
pub const POSTQUERY_ATTRIB: u16 = 1;

/// CLOSE request: asks to close an open (MS-SMB2 2.2.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// [`POSTQUERY_ATTRIB`] or 0.
    pub flags: u16,
    /// What to close.
    pub file_id: FileId,
}

impl Request {
    /// Reads the body of a CLOSE request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fields = (
            structure_size(24, "close.StructureSize"),
            u16("close.Flags"),
            skip(4, "close.Reserved"),
            file_id("close.FileId"),
        );
        parse::run(body(bytes), fields.map(|(_, flags, _, file_id)| Self { flags, file_id }))
    }

    /// Appends the body of a CLOSE request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(24);
        out.put_u16(self.flags);
        out.put_u32(0);
        out.put(&self.file_id.to_bytes());
    }
}

/// CLOSE response: says what became of the file, if that was asked for (MS-SMB2 2.2.16); zeros when no attributes were asked for.
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
    /// Reads the body of a CLOSE response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fields = (
            structure_size(60, "close.StructureSize"),
            u16("close.Flags"),
            skip(4, "close.Reserved"),
            Times::read,
            u64("close.AllocationSize"),
            u64("close.EndofFile"),
            u32("close.FileAttributes").map(FileAttributes),
        );
        let response =
            fields.map(|(_, flags, _, times, allocation_size, end_of_file, attributes)| Self {
                flags,
                times,
                allocation_size,
                end_of_file,
                attributes,
            });
        parse::run(body(bytes), response)
    }

    /// Appends the body of a CLOSE response to a message that ends with its header.
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
