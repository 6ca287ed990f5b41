//! Controls that move data inside the server: server-side copy (MS-SMB2 2.2.31.1, 2.2.32.1,
//! 2.2.32.3), shared extents (MS-FSCC 2.3.7, 2.3.9), trim (2.3.13) and offloaded transfer
//! (2.1.11, 2.3.41 to 2.3.44).
//!
//! ```text
//!  resume key of the source ─► copychunk on the target          (both handles in one session)
//!  id of the source         ─► duplicate extents on the target  (blocks shared, nothing copied)
//!  token for a range        ─► offload write on any target      (the token stands for the data)
//! ```

use nom::Parser;

use crate::{
    header::file_id,
    ids::FileId,
    parse::{self, Input, Parsed, array, counted, skip, such, u32, u64},
    wire::{Put, Result},
};

/// Opaque name of an open as the source of a copy.
pub type ResumeKey = [u8; 24];

/// Appends `SRV_REQUEST_RESUME_KEY` (MS-SMB2 2.2.32.3): the key and an empty context, 32 bytes.
pub fn encode_resume_key(key: &ResumeKey, out: &mut Vec<u8>) {
    out.put(key);
    out.put_u64(0);
}

/// One range of a server-side copy (`SRV_COPYCHUNK`, MS-SMB2 2.2.31.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyChunk {
    /// First byte in the source.
    pub source: u64,
    /// First byte in the target.
    pub target: u64,
    /// Bytes.
    pub length: u32,
}

fn chunk(input: Input<'_>) -> Parsed<'_, CopyChunk> {
    (
        u64("copychunk.SourceOffset"),
        u64("copychunk.TargetOffset"),
        u32("copychunk.Length"),
        skip(4, "copychunk.Reserved"),
    )
        .map(|(source, target, length, ())| CopyChunk { source, target, length })
        .parse(input)
}

/// A server-side copy (`SRV_COPYCHUNK_COPY`, MS-SMB2 2.2.31.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyChunks {
    /// The source.
    pub key: ResumeKey,
    /// What to copy, in this order.
    pub chunks: Vec<CopyChunk>,
}

impl CopyChunks {
    /// Length of the part before the chunks.
    pub const FIXED: usize = 32;

    /// Reads the key, which stands in front even where the rest is malformed.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse_key(data: &[u8]) -> Result<ResumeKey> {
        parse::run(Input::new(data), array("copychunk.SourceKey"))
    }

    /// Reads the request; more than `most` chunks are an error.
    ///
    /// # Errors
    /// The data end before the chunks that they count, or count more than `most`.
    pub fn parse(data: &[u8], most: u32) -> Result<Self> {
        parse::with(Input::new(data), |input| {
            let (i, (key, count, ())) = (
                array("copychunk.SourceKey"),
                such(u32, "copychunk.ChunkCount", |count| count <= most),
                skip(4, "copychunk.Reserved"),
            )
                .parse(input)?;
            let (i, chunks) = counted(count as usize, 24, "copychunk.Chunks", chunk).parse(i)?;
            Ok((i, Self { key, chunks }))
        })
    }

    /// Appends the input of the control.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put(&self.key);
        out.put_u32(crate::wire::len32(self.chunks.len()));
        out.put_u32(0);
        for chunk in &self.chunks {
            out.put_u64(chunk.source);
            out.put_u64(chunk.target);
            out.put_u32(chunk.length);
            out.put_u32(0);
        }
    }
}

/// What a server-side copy came to, or, with INVALID_PARAMETER, what the server takes at most
/// (`SRV_COPYCHUNK_RESPONSE`, MS-SMB2 2.2.32.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyResult {
    /// Chunks written; or the most chunks of a request.
    pub chunks: u32,
    /// Bytes of a chunk that was written in part; or the most bytes of a chunk.
    pub chunk_bytes: u32,
    /// Bytes written in all; or the most bytes of a request.
    pub total: u32,
}

impl CopyResult {
    /// Length on the wire.
    pub const LEN: usize = 12;

    /// Reads the output of the control.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            u32("copychunk.ChunksWritten"),
            u32("copychunk.ChunkBytesWritten"),
            u32("copychunk.TotalBytesWritten"),
        );
        let result = fields.map(|(chunks, chunk_bytes, total)| Self { chunks, chunk_bytes, total });
        parse::run(Input::new(data), result)
    }

    /// Appends the output of the control.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.chunks);
        out.put_u32(self.chunk_bytes);
        out.put_u32(self.total);
    }
}

/// Two ranges of one length that are to share their blocks (MS-FSCC 2.3.7.2, 2.3.9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Duplicate {
    /// The open of the source.
    pub file_id: FileId,
    /// First byte in the source.
    pub source: u64,
    /// First byte in the target.
    pub target: u64,
    /// Bytes.
    pub length: u64,
    /// All or nothing (only in the extended form).
    pub atomic: bool,
}

impl Duplicate {
    /// Length of the extended form, which it states itself.
    const EX_LEN: u64 = 0x30;

    fn ranges(input: Input<'_>) -> Parsed<'_, Self> {
        (
            file_id("duplicate.SourceFileID"),
            u64("duplicate.SourceFileOffset"),
            u64("duplicate.TargetFileOffset"),
            u64("duplicate.ByteCount"),
        )
            .map(|(file_id, source, target, length)| Self {
                file_id,
                source,
                target,
                length,
                atomic: false,
            })
            .parse(input)
    }

    /// Reads `SMB2_DUPLICATE_EXTENTS_DATA`, which has no flags.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        parse::run(Input::new(data), Self::ranges)
    }

    /// Reads `SMB2_DUPLICATE_EXTENTS_DATA_EX`; a length other than it states is an error.
    ///
    /// # Errors
    /// The data end within the structure, or it states another length than it has.
    pub fn parse_ex(data: &[u8]) -> Result<Self> {
        let fields = (
            such(u64, "duplicate.StructureSize", |size| size == Self::EX_LEN),
            Self::ranges,
            u32("duplicate.Flags"),
            skip(4, "duplicate.Reserved"),
        );
        let ranges = fields.map(|(_, ranges, flags, ())| Self { atomic: flags & 1 != 0, ..ranges });
        parse::run(Input::new(data), ranges)
    }

    /// Appends `SMB2_DUPLICATE_EXTENTS_DATA`, which has no flags.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put(&self.file_id.to_bytes());
        out.put_u64(self.source);
        out.put_u64(self.target);
        out.put_u64(self.length);
    }

    /// Appends `SMB2_DUPLICATE_EXTENTS_DATA_EX` with its flags.
    pub fn encode_ex(&self, out: &mut Vec<u8>) {
        out.put_u64(Self::EX_LEN);
        self.encode(out);
        out.put_u32(self.atomic.into());
        out.put_u32(0);
    }
}

/// Reads `FILE_LEVEL_TRIM` (MS-FSCC 2.3.13): offset and length of each range.
///
/// # Errors
/// There is a key, which only local callers may give, or no range, or the data end before the
/// ranges that they count.
pub fn parse_trim(data: &[u8]) -> Result<Vec<(u64, u64)>> {
    parse::with(Input::new(data), |input| {
        let (i, (_, count)) =
            (such(u32, "trim.Key", |key| key == 0), such(u32, "trim.NumRanges", |count| count > 0))
                .parse(input)?;
        let range = (u64("trim.Offset"), u64("trim.Length"));
        counted(count as usize, 16, "trim.NumRanges", range).parse(i)
    })
}

/// Appends `FILE_LEVEL_TRIM` without a key: offset and length of each range.
pub fn encode_trim(ranges: &[(u64, u64)], out: &mut Vec<u8>) {
    out.put_u32(0);
    out.put_u32(crate::wire::len32(ranges.len()));
    for (offset, length) in ranges {
        out.put_u64(*offset);
        out.put_u64(*length);
    }
}

/// `STORAGE_OFFLOAD_TOKEN` (MS-FSCC 2.1.11): stands for the data of a range. Type and length are
/// big-endian, the rest belongs to who made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; Token::LEN]);

impl Token {
    /// Length on the wire.
    pub const LEN: usize = 512;
    /// Longest content of a token.
    pub const ID_LEN: usize = Self::LEN - 8;
    /// `STORAGE_OFFLOAD_TOKEN_TYPE_ZERO_DATA`.
    pub const ZERO_DATA: u32 = 0xffff_0001;

    /// The well-known token for zeros.
    pub fn zero() -> Self {
        Self::new(Self::ZERO_DATA, &[]).with_length(Self::ID_LEN as u16)
    }

    /// A token of a type with content; what does not fit is cut.
    pub fn new(kind: u32, id: &[u8]) -> Self {
        let len = id.len().min(Self::ID_LEN);
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&kind.to_be_bytes());
        bytes[8..8 + len].copy_from_slice(&id[..len]);
        Self(bytes).with_length(len as u16)
    }

    fn with_length(mut self, len: u16) -> Self {
        self.0[6..8].copy_from_slice(&len.to_be_bytes());
        self
    }

    /// Its type, which says who made it.
    pub fn kind(&self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Its content; empty if it claims more than a token holds.
    pub fn id(&self) -> &[u8] {
        let len = usize::from(u16::from_be_bytes([self.0[6], self.0[7]]));
        self.0[8..].get(..len).unwrap_or_default()
    }
}

/// `FSCTL_OFFLOAD_READ_INPUT` (MS-FSCC 2.3.41): asks for a token for a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadRead {
    /// Length that the structure states.
    pub size: u32,
    /// Milliseconds that the token should live; 0 is the server's choice.
    pub time_to_live: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl OffloadRead {
    /// Length on the wire.
    pub const LEN: u32 = 32;

    /// Reads the input of the control.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            u32("offload_read.Size"),
            skip(4, "offload_read.Flags"),
            u32("offload_read.TokenTimeToLive"),
            skip(4, "offload_read.Reserved"),
            u64("offload_read.FileOffset"),
            u64("offload_read.CopyLength"),
        );
        let request = fields.map(|(size, _, time_to_live, _, offset, length)| Self {
            size,
            time_to_live,
            offset,
            length,
        });
        parse::run(Input::new(data), request)
    }

    /// Appends the input of the control.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.size);
        out.put_u32(0);
        out.put_u32(self.time_to_live);
        out.put_u32(0);
        out.put_u64(self.offset);
        out.put_u64(self.length);
    }
}

/// `FSCTL_OFFLOAD_READ_OUTPUT` (MS-FSCC 2.3.42): the token, and how much it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadReadAnswer {
    /// Everything behind the range is zero.
    pub zero_beyond: bool,
    /// Bytes that the token stands for.
    pub length: u64,
    /// The token.
    pub token: Token,
}

impl OffloadReadAnswer {
    /// Length on the wire.
    pub const LEN: u32 = 16 + Token::LEN as u32;

    /// Reads the output of the control.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            skip(4, "offload_read.Size"),
            u32("offload_read.Flags"),
            u64("offload_read.TransferLength"),
            array("offload_read.Token").map(Token),
        );
        let answer = fields.map(|(_, flags, length, token)| Self {
            zero_beyond: flags & 1 != 0,
            length,
            token,
        });
        parse::run(Input::new(data), answer)
    }

    /// Appends the output of the control.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(Self::LEN);
        out.put_u32(self.zero_beyond.into());
        out.put_u64(self.length);
        out.put(&self.token.0);
    }
}

/// `FSCTL_OFFLOAD_WRITE_INPUT` (MS-FSCC 2.3.43): writes what a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadWrite {
    /// Length that the structure states.
    pub size: u32,
    /// First byte in the target.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// First byte in what the token stands for.
    pub token_offset: u64,
    /// What to write.
    pub token: Token,
}

impl OffloadWrite {
    /// Length on the wire.
    pub const LEN: u32 = 32 + Token::LEN as u32;

    /// Reads the input of the control.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            u32("offload_write.Size"),
            skip(4, "offload_write.Flags"),
            u64("offload_write.FileOffset"),
            u64("offload_write.CopyLength"),
            u64("offload_write.TransferOffset"),
            array("offload_write.Token").map(Token),
        );
        let request = fields.map(|(size, _, offset, length, token_offset, token)| Self {
            size,
            offset,
            length,
            token_offset,
            token,
        });
        parse::run(Input::new(data), request)
    }

    /// Appends the input of the control.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.size);
        out.put_u32(0);
        out.put_u64(self.offset);
        out.put_u64(self.length);
        out.put_u64(self.token_offset);
        out.put(&self.token.0);
    }
}

/// Length of `FSCTL_OFFLOAD_WRITE_OUTPUT` (MS-FSCC 2.3.44).
pub const OFFLOAD_WRITE_ANSWER_LEN: u32 = 16;

/// Appends `FSCTL_OFFLOAD_WRITE_OUTPUT`: `length` bytes were written.
pub fn encode_offload_written(length: u64, out: &mut Vec<u8>) {
    out.put_u32(OFFLOAD_WRITE_ANSWER_LEN);
    out.put_u32(0);
    out.put_u64(length);
}

/// Reads `FSCTL_OFFLOAD_WRITE_OUTPUT`: the bytes written.
///
/// # Errors
/// The data end within the structure.
pub fn parse_offload_written(data: &[u8]) -> Result<u64> {
    let fields = (skip(8, "offload_write.Size"), u64("offload_write.LengthWritten"));
    parse::run(Input::new(data), fields.map(|(_, length)| length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_zero_token_is_the_well_known_one() {
        let token = Token::zero();
        assert_eq!(token.0[..8], [0xff, 0xff, 0, 1, 0, 0, 0x01, 0xf8]);
        assert!(token.0[8..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn limits_are_checked_before_anything_is_kept() {
        let mut many = vec![0; 24];
        many.put_u32(u32::MAX);
        many.put_u32(0);
        assert!(CopyChunks::parse(&many, 256).is_err());
        assert!(CopyChunks::parse_key(&many).is_ok());
        let mut trim = Vec::new();
        trim.put_u32(0);
        trim.put_u32(u32::MAX);
        assert!(parse_trim(&trim).is_err());
    }

    proptest! {
        /// What is written is read again as it was.
        #[test]
        fn all_round_trips(
            key in any::<[u8; 24]>(),
            chunks in prop::collection::vec(any::<(u64, u64, u32)>(), 0..20),
            numbers in any::<[u64; 5]>(),
            id in prop::collection::vec(any::<u8>(), 0..600),
            flag in any::<bool>(),
        ) {
            let chunks = chunks.into_iter();
            let chunks = chunks.map(|(source, target, length)| CopyChunk { source, target, length });
            let copy = CopyChunks { key, chunks: chunks.collect() };
            let mut out = Vec::new();
            copy.encode(&mut out);
            prop_assert_eq!(CopyChunks::parse(&out, 20).unwrap(), copy);

            let [a, b, c, d, e] = numbers;
            let result = CopyResult { chunks: a as u32, chunk_bytes: b as u32, total: c as u32 };
            let mut out = Vec::new();
            result.encode(&mut out);
            prop_assert_eq!(out.len(), CopyResult::LEN);
            prop_assert_eq!(CopyResult::parse(&out).unwrap(), result);

            let file_id = FileId { persistent: a, volatile: b };
            let plain = Duplicate { file_id, source: c, target: d, length: e, atomic: false };
            let mut out = Vec::new();
            plain.encode(&mut out);
            prop_assert_eq!(Duplicate::parse(&out).unwrap(), plain);
            let ex = Duplicate { atomic: flag, ..plain };
            let mut out = Vec::new();
            ex.encode_ex(&mut out);
            prop_assert_eq!(Duplicate::parse_ex(&out).unwrap(), ex);

            let ranges = [(a, b), (c, d)];
            let mut out = Vec::new();
            encode_trim(&ranges, &mut out);
            prop_assert_eq!(parse_trim(&out).unwrap(), ranges);

            let token = Token::new(a as u32, &id);
            prop_assert_eq!(token.kind(), a as u32);
            prop_assert_eq!(token.id(), &id[..id.len().min(Token::ID_LEN)]);

            let read = OffloadRead { size: 32, time_to_live: b as u32, offset: c, length: d };
            let mut out = Vec::new();
            read.encode(&mut out);
            prop_assert_eq!(out.len() as u32, OffloadRead::LEN);
            prop_assert_eq!(OffloadRead::parse(&out).unwrap(), read);

            let answer = OffloadReadAnswer { zero_beyond: flag, length: e, token };
            let mut out = Vec::new();
            answer.encode(&mut out);
            prop_assert_eq!(out.len() as u32, OffloadReadAnswer::LEN);
            prop_assert_eq!(OffloadReadAnswer::parse(&out).unwrap(), answer);

            let write = OffloadWrite { size: 544, offset: a, length: b, token_offset: c, token };
            let mut out = Vec::new();
            write.encode(&mut out);
            prop_assert_eq!(out.len() as u32, OffloadWrite::LEN);
            prop_assert_eq!(OffloadWrite::parse(&out).unwrap(), write);

            let mut out = Vec::new();
            encode_offload_written(d, &mut out);
            prop_assert_eq!(parse_offload_written(&out).unwrap(), d);
        }

        /// Any bytes give a value or an error.
        #[test]
        fn any_bytes_are_answered(data in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = CopyChunks::parse(&data, 256);
            let _ = CopyResult::parse(&data);
            let _ = Duplicate::parse(&data);
            let _ = Duplicate::parse_ex(&data);
            if let Ok(ranges) = parse_trim(&data) {
                prop_assert!(ranges.len() * 16 + 8 <= data.len());
            }
            let _ = OffloadRead::parse(&data);
            let _ = OffloadReadAnswer::parse(&data);
            if let Ok(write) = OffloadWrite::parse(&data) {
                prop_assert!(write.token.id().len() <= Token::ID_LEN);
            }
            let _ = parse_offload_written(&data);
        }
    }
}
