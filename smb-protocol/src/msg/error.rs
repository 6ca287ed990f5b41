//! ERROR response (MS-SMB2 2.2.2).

use nom::Parser;

use crate::{
    fscc::reparse::ReparseTag,
    header::body,
    parse::{self, Input, bytes, rest, size16, size32, skip, structure_size, such, u8, u16, u32},
    wire::{Put, Result, len16, len32},
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

/// Puts error data into one error context, as 3.1.1 has them (MS-SMB2 2.2.2.1); none stay none.
pub fn in_context(data: &[u8]) -> Vec<u8> {
    const DEFAULT: u32 = 0;
    let mut out = Vec::with_capacity(8 + data.len());
    if !data.is_empty() {
        out.put_u32(len32(data.len()));
        out.put_u32(DEFAULT);
        out.put(data);
    }
    out
}

/// The data of the first error context.
///
/// # Errors
/// They end before the context does.
pub fn of_context(data: &[u8]) -> Result<&[u8]> {
    parse::with(Input::new(data), |input| {
        let (i, (len, ())) =
            (size32("error.ErrorDataLength"), skip(4, "error.ErrorId")).parse(input)?;
        bytes(len, "error.ErrorContextData")(i)
    })
}

/// What a CREATE is told that met a symbolic link (MS-SMB2 2.2.2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SymbolicLink<'a> {
    /// Bytes of the name, as it was sent, that stand behind the link's.
    pub unparsed_path_len: u16,
    /// The data of the link's reparse point (MS-FSCC 2.1.2.4), from `SubstituteNameOffset` on.
    pub link: &'a [u8],
}

impl<'a> SymbolicLink<'a> {
    /// `SymLinkErrorTag`: "SYML".
    const TAG: u32 = 0x4c4d_5953;
    /// From behind `SymLinkLength` to the link's data.
    const FIXED: usize = 12;

    /// Reads the error data.
    ///
    /// # Errors
    /// They end within a field, or are of another structure.
    pub fn parse(data: &'a [u8]) -> Result<Self> {
        parse::with(Input::new(data), |input| {
            let (i, (_, _, _, len, unparsed_path_len)) = (
                size32("symlink.SymLinkLength"),
                such(u32, "symlink.SymLinkErrorTag", |tag| tag == Self::TAG),
                such(u32, "symlink.ReparseTag", |tag| tag == ReparseTag::SYMLINK.0),
                size16("symlink.ReparseDataLength"),
                u16("symlink.UnparsedPathLength"),
            )
                .parse(input)?;
            let (i, link) = bytes(len, "symlink.PathBuffer")(i)?;
            let (i, _) = rest(i)?;
            Ok((i, Self { unparsed_path_len, link }))
        })
    }

    /// Appends the error data.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(len32(Self::FIXED + self.link.len()));
        out.put_u32(Self::TAG);
        out.put_u32(ReparseTag::SYMLINK.0);
        out.put_u16(len16(self.link.len()));
        out.put_u16(self.unparsed_path_len);
        out.put(self.link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fscc::reparse::LinkNames;

    /// The second example of MS-SMB2 2.2.2.2.1.1: what is behind the link has 0x2e bytes, and the
    /// substitute name 0x34.
    #[test]
    fn a_relative_link_as_the_specification_shows_it() {
        let target = "..\\DonHall\\Documents\\PDocs".to_owned();
        let names = LinkNames { substitute: target.clone(), print: target, flags: 1 };
        let mut link = Vec::new();
        names.encode_symlink(&mut link);
        let answer = SymbolicLink { unparsed_path_len: 0x2e, link: &link };
        let mut raw = Vec::new();
        answer.encode(&mut raw);
        assert_eq!(raw[4..12], *b"SYML\x0c\0\0\xa0");
        // SymLinkLength counts all that follows it, ReparseDataLength the names and 12 bytes.
        assert_eq!(raw[..4], (raw.len() as u32 - 4).to_le_bytes());
        assert_eq!(raw[12..14], (2 * 0x34u16 + 12).to_le_bytes());
        assert_eq!(raw[14..16], [0x2e, 0]);
        assert_eq!(raw[16..24], [0, 0, 0x34, 0, 0x34, 0, 0x34, 0]);
        assert_eq!(raw[24..28], [1, 0, 0, 0]);
        assert_eq!(SymbolicLink::parse(&raw).unwrap(), answer);
        let context = in_context(&raw);
        assert_eq!(context[..8], [(raw.len() as u32).to_le_bytes(), [0; 4]].concat()[..]);
        assert_eq!(of_context(&context).unwrap(), raw);
        assert!(in_context(&[]).is_empty());
    }
}
