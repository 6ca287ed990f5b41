//! The file identifier and the two headers (MS-VHDX 2.2.1, 2.2.2).

use super::{HEADER_OFFSETS, MIB};
use crate::{
    Damage, Fault, Guid, Structure,
    bytes::{Fields, checksum, put},
};

/// "vhdxfile" (MS-VHDX 2.2.1).
pub const FILE_SIGNATURE: &[u8; 8] = b"vhdxfile";
const HEADER_SIGNATURE: &[u8; 4] = b"head";
/// Size of a header in bytes.
pub const HEADER_SIZE: usize = 4096;
/// Size of the file identifier up to the end of the creator's name, in bytes.
pub const IDENTIFIER_SIZE: usize = 520;

/// The file identifier: who made the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentifier {
    /// Free text, at most 256 UTF-16 units; for people only.
    pub creator: String,
}

impl FileIdentifier {
    /// Parses the first [`IDENTIFIER_SIZE`] bytes of a file.
    ///
    /// # Errors
    /// The [`Damage`]: a signature, checksum or field that is not as it must be.
    pub fn parse(buf: &[u8]) -> Result<Self, Damage> {
        let fault = |fault| Damage::new(Structure::FileIdentifier, 0, fault);
        if buf.len() < IDENTIFIER_SIZE {
            return Err(fault(Fault::Truncated));
        }
        if !buf.starts_with(FILE_SIGNATURE) {
            return Err(fault(Fault::Signature));
        }
        let units: Vec<u16> = (8..IDENTIFIER_SIZE)
            .step_by(2)
            .map(|at| buf.u16(at))
            .take_while(|unit| *unit != 0)
            .collect();
        Ok(Self { creator: String::from_utf16_lossy(&units) })
    }

    /// The identifier as the first [`IDENTIFIER_SIZE`] bytes of a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = vec![0; IDENTIFIER_SIZE];
        put(&mut buf, 0, FILE_SIGNATURE);
        for (i, unit) in self.creator.encode_utf16().take(256).enumerate() {
            put(&mut buf, 8 + 2 * i, &unit.to_le_bytes());
        }
        buf
    }
}

/// A header (MS-VHDX 2.2.2). One that exists had the right signature, checksum and version, and
/// a log that lies on megabyte boundaries after the header section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The valid header with the greater number is current.
    pub sequence: u64,
    /// Changes with the first change of the file after each open.
    pub file_write: Guid,
    /// Changes with the first change of what the disk reads as after each open.
    pub data_write: Guid,
    /// Zero: nothing to replay. Else the identifier of the log entries that count.
    pub log: Guid,
    /// Must be 0 if there is a log to replay.
    pub log_version: u16,
    /// Bytes of the log, a multiple of 1 MiB.
    pub log_length: u32,
    /// Where the log begins, a multiple of 1 MiB.
    pub log_offset: u64,
}

impl Header {
    /// Parses header `number` (1 or 2) from its 4 KiB.
    ///
    /// # Errors
    /// The [`Damage`]: a signature, checksum or field that is not as it must be.
    pub fn parse(number: u8, buf: &[u8]) -> Result<Self, Damage> {
        let offset = HEADER_OFFSETS[usize::from(number != 1)];
        let fault = |at: u64, fault| Damage::new(Structure::Header(number), offset + at, fault);
        if buf.len() < HEADER_SIZE {
            return Err(fault(0, Fault::Truncated));
        }
        let buf = &buf[..HEADER_SIZE];
        if !buf.starts_with(HEADER_SIGNATURE) {
            return Err(fault(0, Fault::Signature));
        }
        let (stored, computed) = (buf.u32(4), checksum(buf, 4));
        if stored != computed {
            return Err(fault(4, Fault::Checksum { stored, computed }));
        }
        let version = buf.u16(66);
        if version != 1 {
            let field = "Version";
            return Err(fault(66, Fault::Version { field, value: version, expected: 1 }));
        }
        let header = Self {
            sequence: buf.u64(8),
            file_write: buf.guid(16),
            data_write: buf.guid(32),
            log: buf.guid(48),
            log_version: buf.u16(64),
            log_length: buf.u32(68),
            log_offset: buf.u64(72),
        };
        if header.log_version != 0 && !header.log.is_zero() {
            let (field, value) = ("LogVersion", header.log_version);
            return Err(fault(64, Fault::Version { field, value, expected: 0 }));
        }
        let length = u64::from(header.log_length);
        if length == 0 || !length.is_multiple_of(MIB) {
            let rule = "must be a positive multiple of 1 MiB";
            return Err(fault(68, Fault::Field { field: "LogLength", value: length, rule }));
        }
        if header.log_offset < MIB
            || !header.log_offset.is_multiple_of(MIB)
            || header.log_offset.checked_add(length).is_none()
        {
            let rule = "must be a multiple of 1 MiB after the header section";
            let value = header.log_offset;
            return Err(fault(72, Fault::Field { field: "LogOffset", value, rule }));
        }
        Ok(header)
    }

    /// The header as its 4 KiB, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = vec![0; HEADER_SIZE];
        put(&mut buf, 0, HEADER_SIGNATURE);
        put(&mut buf, 8, &self.sequence.to_le_bytes());
        put(&mut buf, 16, &self.file_write.to_bytes());
        put(&mut buf, 32, &self.data_write.to_bytes());
        put(&mut buf, 48, &self.log.to_bytes());
        put(&mut buf, 64, &self.log_version.to_le_bytes());
        put(&mut buf, 66, &1u16.to_le_bytes());
        put(&mut buf, 68, &self.log_length.to_le_bytes());
        put(&mut buf, 72, &self.log_offset.to_le_bytes());
        let crc = checksum(&buf, 4);
        put(&mut buf, 4, &crc.to_le_bytes());
        buf
    }
}

/// Which of the two headers counts (MS-VHDX 2.2.2): its index (0 or 1) and content.
///
/// # Errors
/// The [`Damage`] if neither header is good, or a whole one is not acceptable.
pub fn current(
    first: &Result<Header, Damage>,
    second: &Result<Header, Damage>,
) -> Result<(usize, Header), Damage> {
    let torn = |fault: &Fault| {
        matches!(fault, Fault::Signature | Fault::Checksum { .. } | Fault::Truncated)
    };
    // A header that is whole but not acceptable may be the current one: neither can be used.
    for header in [first, second] {
        if let Err(damage) = header
            && !torn(&damage.fault)
        {
            return Err(damage.clone());
        }
    }
    let none = |fault| Damage::new(Structure::Header(1), HEADER_OFFSETS[0], fault);
    match (first, second) {
        (Ok(a), Ok(b)) if a.sequence > b.sequence => Ok((0, *a)),
        (Ok(a), Ok(b)) if a.sequence < b.sequence => Ok((1, *b)),
        (Ok(a), Ok(b)) if a == b => Ok((0, *a)),
        (Ok(a), Ok(_)) => Err(none(Fault::AmbiguousHeaders(a.sequence))),
        (Ok(a), Err(_)) => Ok((0, *a)),
        (Err(_), Ok(b)) => Ok((1, *b)),
        (Err(a), Err(b)) => Err(none(Fault::NoValidCopy(format!("{a}; {b}")))),
    }
}
