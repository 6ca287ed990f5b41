//! Reading little-endian fields at fixed places of a buffer that is known to be long enough.

use crate::Guid;

/// Little-endian fields by offset. A place past the end reads as zeros, so that these never
/// panic; callers check lengths first.
pub(crate) trait Fields {
    fn array<const N: usize>(&self, at: usize) -> [u8; N];

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
    fn guid(&self, at: usize) -> Guid {
        Guid::from_bytes(self.array(at))
    }
}

impl Fields for [u8] {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
    }
}

/// Puts `bytes` at `at`.
pub(crate) fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    buf[at..at + bytes.len()].copy_from_slice(bytes);
}

/// CRC-32C over `buf` with the four bytes at `at` taken as zero (MS-VHDX 2.2.2, 2.3.1.1).
pub(crate) fn checksum(buf: &[u8], at: usize) -> u32 {
    let crc = crc32c::crc32c(&buf[..at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &buf[at + 4..])
}

/// Big-endian fields by offset, as total as [`Fields`].
pub(crate) trait BigEndian: AsRef<[u8]> {
    fn u32_be(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.as_ref().array(at))
    }
    fn u64_be(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.as_ref().array(at))
    }
}

impl BigEndian for [u8] {}
