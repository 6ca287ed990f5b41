//! FLUSH request (MS-SMB2 2.2.17); the response is [`super::simple::Empty`].

use nom::Parser;

use crate::{
    header::{body, file_id},
    ids::FileId,
    parse::{self, skip, structure_size},
    wire::{Put, Result},
};

/// FLUSH request: asks to make what was written durable (MS-SMB2 2.2.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// What to flush.
    pub file_id: FileId,
}

impl Request {
    /// Reads the body of a FLUSH request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fields = (
            structure_size(24, "flush.StructureSize"),
            skip(6, "flush.Reserved"),
            file_id("flush.FileId"),
        );
        parse::run(body(bytes), fields.map(|(_, _, file_id)| Self { file_id }))
    }

    /// Appends the body of a FLUSH request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(24);
        out.put_zeros(6);
        out.put(&self.file_id.to_bytes());
    }
}
