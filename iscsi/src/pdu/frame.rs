//! Where a PDU ends in a stream of bytes, and whether it arrived as it was sent
//! (RFC 7143 11.1, 13.1).

use bytes::{Buf, Bytes, BytesMut};

use super::basic::{Basic, HEADER_LENGTH, WireError};

/// Bytes of a digest.
const DIGEST: usize = 4;

/// Whether headers and data of a connection are followed by a CRC32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digests {
    /// HeaderDigest is CRC32C.
    pub header: bool,
    /// DataDigest is CRC32C.
    pub data: bool,
}

/// One PDU as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The basic header.
    pub basic: Basic,
    /// Additional header segments.
    pub ahs: Bytes,
    /// The data segment without padding: a view of what was received.
    pub data: Bytes,
    /// Whether the data segment matches its digest, if there is one.
    pub intact: bool,
}

/// A stream that cannot be read on: nobody knows where the next PDU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// The header does not match its digest (RFC 7143 7.7).
    #[error("a header does not match its digest")]
    HeaderDigest,
    /// A data segment is longer than was declared.
    #[error("a data segment of {length} bytes where {limit} are the most")]
    TooLong {
        /// What the header says.
        length: u32,
        /// MaxRecvDataSegmentLength.
        limit: u32,
    },
    /// The header is none.
    #[error("no header of a PDU")]
    Header(#[from] WireError),
}

/// Cuts a stream of bytes into PDUs.
#[derive(Debug, Clone, Copy)]
pub struct Framer {
    /// What follows headers and data.
    pub digests: Digests,
    /// The longest data segment, in bytes.
    pub max_data: u32,
    /// The longest chain of additional headers, in words of four bytes.
    pub max_ahs_words: u8,
}

impl Framer {
    /// Takes the next PDU from `input`; `None` if it is not all there.
    ///
    /// # Errors
    /// [`FramingError`]; the stream cannot be read on after it.
    pub fn next(&self, input: &mut BytesMut) -> Result<Option<Frame>, FramingError> {
        if input.len() < HEADER_LENGTH {
            return Ok(None);
        }
        let basic = Basic::read(&input[..HEADER_LENGTH])?;
        // A digest may stand behind what cannot be trusted before it is checked, but no more is
        // awaited than a sound header could ask for.
        if basic.ahs_words > self.max_ahs_words {
            return Err(FramingError::Header(WireError::Field("TotalAHSLength")));
        }
        if basic.data_length > self.max_data {
            return Err(FramingError::TooLong { length: basic.data_length, limit: self.max_data });
        }
        let head = HEADER_LENGTH + usize::from(basic.ahs_words) * 4;
        let head_digest = if self.digests.header { DIGEST } else { 0 };
        if input.len() < head + head_digest {
            return Ok(None);
        }
        if self.digests.header && !matches(&input[..head], &input[head..head + DIGEST]) {
            return Err(FramingError::HeaderDigest);
        }
        let length = basic.data_length as usize;
        let padded = length.next_multiple_of(4);
        let data_digest = if self.digests.data && length > 0 { DIGEST } else { 0 };
        let total = head + head_digest + padded + data_digest;
        if input.len() < total {
            input.reserve(total - input.len());
            return Ok(None);
        }
        let ahs = if head > HEADER_LENGTH {
            Bytes::copy_from_slice(&input[HEADER_LENGTH..head])
        } else {
            Bytes::new()
        };
        if length == 0 {
            input.advance(total);
            return Ok(Some(Frame { basic, ahs, data: Bytes::new(), intact: true }));
        }
        input.advance(head + head_digest);
        let mut data = input.split_to(padded + data_digest).freeze();
        let intact = data_digest == 0 || matches(&data[..padded], &data[padded..]);
        data.truncate(length);
        Ok(Some(Frame { basic, ahs, data, intact }))
    }
}

/// CRC32C of bytes as it stands in a digest: the lowest byte first.
#[must_use]
pub fn digest(bytes: &[u8]) -> [u8; DIGEST] {
    crc32c::crc32c(bytes).to_le_bytes()
}

fn matches(bytes: &[u8], found: &[u8]) -> bool {
    digest(bytes) == found
}

/// Writes a PDU whole: for what is small, and for tests.
#[must_use]
pub fn write(mut basic: Basic, ahs: &[u8], data: &[u8], digests: Digests) -> Vec<u8> {
    basic.ahs_words = u8::try_from(ahs.len() / 4).unwrap_or(u8::MAX);
    basic.data_length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut out = basic.write().to_vec();
    out.extend_from_slice(ahs);
    if digests.header {
        out.extend_from_slice(&digest(&out));
    }
    if !data.is_empty() {
        let start = out.len();
        out.extend_from_slice(data);
        out.resize(start + data.len().next_multiple_of(4), 0);
        if digests.data {
            let check = digest(&out[start..]);
            out.extend_from_slice(&check);
        }
    }
    out
}
