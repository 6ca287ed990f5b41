//! SET_INFO (MS-SMB2 2.2.39, 2.2.40).

use nom::Parser;

use super::query_info::InfoType;
use crate::{
    fscc::InfoClass,
    header::{HEADER_LEN, body, file_id},
    ids::FileId,
    parse::{self, region, size16, size32, skip, structure_size, u8, u32},
    wire::{Put, Result, len16, len32},
};

/// SET_INFO request: changes attributes, name, length or security of a file (MS-SMB2 2.2.39).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// What kind of information.
    pub info_type: InfoType,
    /// Its shape.
    pub class: InfoClass,
    /// Which parts of a security descriptor.
    pub additional: u32,
    /// What to change.
    pub file_id: FileId,
    /// The new information.
    pub input: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a SET_INFO request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, info_type, class, len, offset, _, additional, file_id)) = (
                structure_size(33, "set_info.StructureSize"),
                u8("set_info.InfoType").map(InfoType),
                u8("set_info.FileInfoClass").map(InfoClass),
                size32("set_info.BufferLength"),
                size16("set_info.BufferOffset"),
                skip(2, "set_info.Reserved"),
                u32("set_info.AdditionalInformation"),
                file_id("set_info.FileId"),
            )
                .parse(input)?;
            let data = region(input, offset, len, "set_info.Buffer")?.bytes();
            Ok((i, Self { info_type, class, additional, file_id, input: data }))
        })
    }

    /// Appends the body of a SET_INFO request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(33);
        out.put_u8(self.info_type.0);
        out.put_u8(self.class.0);
        out.put_u32(len32(self.input.len()));
        out.put_u16(len16(HEADER_LEN + 32));
        out.put_u16(0);
        out.put_u32(self.additional);
        out.put(&self.file_id.to_bytes());
        out.put(self.input);
    }
}

/// SET_INFO response: says only that it was done (MS-SMB2 2.2.40).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response;

impl Response {
    /// Reads the body of a SET_INFO response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse::run(body(bytes), structure_size(2, "set_info.StructureSize").map(|()| Self))
    }

    /// Appends the body of a SET_INFO response to a message that ends with its header.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u16(2);
    }
}
