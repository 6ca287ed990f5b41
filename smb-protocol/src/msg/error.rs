//! ERROR response (MS-SMB2 2.2.2).

use nom::Parser;

use crate::{
    header::body,
    parse::{self, size32, skip, structure_size, u8},
    wire::{Put, Result, len32},
};

/// Body of a response whose status is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// Number of error contexts in `data` (3.1.1).
    pub context_count: u8,
    /// Error data; for BUFFER_TOO_SMALL the needed length, for a symbolic link its target.
    pub data: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of an error, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, context_count, _, len)) = (
                structure_size(9, "error.StructureSize"),
                u8("error.ErrorContextCount"),
                skip(1, "error.Reserved"),
                size32("error.ByteCount"),
            )
                .parse(input)?;
            let (i, data) = parse::bytes(len, "error.ErrorData")(i)?;
            Ok((i, Self { context_count, data }))
        })
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
