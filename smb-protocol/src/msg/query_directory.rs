//! QUERY_DIRECTORY (MS-SMB2 2.2.33, 2.2.34).

use nom::Parser;

use crate::{
    flag_set,
    fscc::InfoClass,
    header::{HEADER_LEN, body, file_id},
    ids::FileId,
    name,
    parse::{self, region, size16, size32, structure_size, u8, u32, utf16},
    wire::{Put, Result, len16, len32},
};

flag_set! {
    /// `Flags`.
    Flags: u8 {
        /// Start from the beginning.
        RESTART_SCANS = 1,
        /// One entry only.
        RETURN_SINGLE_ENTRY = 2,
        /// Start at `FileIndex`.
        INDEX_SPECIFIED = 4,
        /// Start again with a new pattern.
        REOPEN = 0x10,
    }
}

/// QUERY_DIRECTORY request: asks for entries of a folder (MS-SMB2 2.2.33).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Shape of the entries.
    pub class: InfoClass,
    /// Flags.
    pub flags: Flags,
    /// Index to start at.
    pub file_index: u32,
    /// The directory.
    pub file_id: FileId,
    /// Most bytes to be answered.
    pub output_len: u32,
    /// Wildcard pattern.
    pub pattern: String,
}

impl Request {
    /// Reads the body of a QUERY_DIRECTORY request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or the pattern is outside of it or not
    /// UTF-16.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, class, flags, file_index, file_id, offset, len, output_len)) = (
                structure_size(33, "query_directory.StructureSize"),
                u8("query_directory.FileInformationClass").map(InfoClass),
                u8("query_directory.Flags").map(Flags),
                u32("query_directory.FileIndex"),
                file_id("query_directory.FileId"),
                size16("query_directory.FileNameOffset"),
                size16("query_directory.FileNameLength"),
                u32("query_directory.OutputBufferLength"),
            )
                .parse(input)?;
            let pattern = region(input, offset, len, "query_directory.Buffer")?;
            let pattern = utf16(pattern, "query_directory.FileName")?;
            Ok((i, Self { class, flags, file_index, file_id, output_len, pattern }))
        })
    }

    /// Appends the body of a QUERY_DIRECTORY request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let pattern = name::to_utf16(&self.pattern);
        out.put_u16(33);
        out.put_u8(self.class.0);
        out.put_u8(self.flags.0);
        out.put_u32(self.file_index);
        out.put(&self.file_id.to_bytes());
        out.put_u16(len16(HEADER_LEN + 32));
        out.put_u16(len16(pattern.len()));
        out.put_u32(self.output_len);
        out.put(&pattern);
    }
}

/// Response of QUERY_DIRECTORY, QUERY_INFO and CHANGE_NOTIFY: one buffer (MS-SMB2 2.2.34,
/// 2.2.36, 2.2.38).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// What was asked for.
    pub output: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of such a response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, offset, len)) = (
                structure_size(9, "output.StructureSize"),
                size16("output.OutputBufferOffset"),
                size32("output.OutputBufferLength"),
            )
                .parse(input)?;
            Ok((i, Self { output: region(input, offset, len, "output.Buffer")?.bytes() }))
        })
    }

    /// Appends the body of such a response to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(9);
        out.put_u16(len16(HEADER_LEN + 8));
        out.put_u32(len32(self.output.len()));
        out.put(self.output);
    }
}
