//! QUERY_INFO request (MS-SMB2 2.2.37); the response is
//! [`super::query_directory::Response`].

use nom::Parser;

use crate::{
    fscc::InfoClass,
    header::{HEADER_LEN, body, file_id},
    ids::FileId,
    open_enum,
    parse::{self, region, size16, size32, skip, structure_size, u8, u32},
    wire::{Put, Result, len16, len32},
};

open_enum! {
    /// `InfoType`.
    InfoType: u8 {
        /// About the file.
        FILE = 1,
        /// About the file system.
        FILESYSTEM = 2,
        /// Security descriptor.
        SECURITY = 3,
        /// Quota.
        QUOTA = 4,
    }
}

/// QUERY_INFO request: asks about a file, a file system or a security descriptor (MS-SMB2 2.2.37).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// What kind of information.
    pub info_type: InfoType,
    /// Its shape.
    pub class: InfoClass,
    /// Most bytes to be answered.
    pub output_len: u32,
    /// Which parts of a security descriptor, or the index of an extended attribute.
    pub additional: u32,
    /// Flags.
    pub flags: u32,
    /// What to ask about.
    pub file_id: FileId,
    /// Input of quota and extended-attribute queries.
    pub input: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body of a QUERY_INFO request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, info_type, class, output_len, offset, _, len, additional, flags, file_id)) =
                (
                    structure_size(41, "query_info.StructureSize"),
                    u8("query_info.InfoType").map(InfoType),
                    u8("query_info.FileInfoClass").map(InfoClass),
                    u32("query_info.OutputBufferLength"),
                    size16("query_info.InputBufferOffset"),
                    skip(2, "query_info.Reserved"),
                    size32("query_info.InputBufferLength"),
                    u32("query_info.AdditionalInformation"),
                    u32("query_info.Flags"),
                    file_id("query_info.FileId"),
                )
                    .parse(input)?;
            let data = region(input, offset, len, "query_info.Buffer")?.bytes();
            Ok((i, Self { info_type, class, output_len, additional, flags, file_id, input: data }))
        })
    }

    /// Appends the body of a QUERY_INFO request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(41);
        out.put_u8(self.info_type.0);
        out.put_u8(self.class.0);
        out.put_u32(self.output_len);
        out.put_u16(if self.input.is_empty() { 0 } else { len16(HEADER_LEN + 40) });
        out.put_u16(0);
        out.put_u32(len32(self.input.len()));
        out.put_u32(self.additional);
        out.put_u32(self.flags);
        out.put(&self.file_id.to_bytes());
        if self.input.is_empty() {
            out.put_u8(0);
        } else {
            out.put(self.input);
        }
    }
}
