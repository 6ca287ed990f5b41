//! The header of dynamic and differencing images: the block table's place, the block size, and
//! where the parent is.

use super::{
    SECTOR, checksum,
    footer::{id_bytes, id_from, u32_at, u64_at},
};
use crate::{Damage, Fault, Guid, Structure, bytes::put};

/// Bytes of a header.
pub const LEN: usize = 1024;
const SIGNATURE: &[u8; 8] = b"cxsparse";
const CHECKSUM_AT: usize = 36;
const LOCATORS_AT: usize = 576;
const NAME_AT: usize = 64;
const NAME_LEN: usize = 512;
/// Bytes of a block table at most: blocks of 128 KiB on the largest disk.
const MAX_TABLE: u64 = 64 << 20;
/// Bytes of a parent's path at most.
const MAX_PATH: u32 = 64 << 10;

/// Where one of the parent's paths is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locator {
    /// What kind of path it is.
    pub platform: [u8; 4],
    /// Bytes of the file set aside for it.
    pub space: u32,
    /// Bytes of the path.
    pub length: u32,
    /// Where it is.
    pub offset: u64,
}

/// The dynamic header of a VHD, with valid fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Where the block table is.
    pub table_offset: u64,
    /// Entries of the block table.
    pub entries: u32,
    /// Bytes of a block's sectors: a power of two from 4 KiB to 256 MiB.
    pub block_size: u32,
    /// Identity of the parent of a differencing image.
    pub parent_id: Guid,
    /// When the parent was last changed: seconds since 2000. Copying a file changes it, so nothing
    /// is concluded from it.
    pub parent_timestamp: u32,
    /// The parent's name.
    pub parent_name: String,
    /// Where its paths are.
    pub locators: Vec<Locator>,
}

impl Header {
    /// Parses a header; `offset` is where it stands, for errors.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(buf: &[u8], offset: u64) -> Result<Self, Damage> {
        let fault =
            |at: usize, fault| Damage::new(Structure::DynamicHeader, offset + at as u64, fault);
        if buf.len() < LEN {
            return Err(fault(0, Fault::Truncated));
        }
        if !buf.starts_with(SIGNATURE) {
            return Err(fault(0, Fault::Signature));
        }
        let (stored, computed) = (u32_at(buf, CHECKSUM_AT), checksum(&buf[..LEN], CHECKSUM_AT));
        if stored != computed {
            return Err(fault(CHECKSUM_AT, Fault::Checksum { stored, computed }));
        }
        let wrong = |at, field, value, rule| Err(fault(at, Fault::Field { field, value, rule }));
        let version = u32_at(buf, 24);
        if version >> 16 != 1 {
            return wrong(24, "HeaderVersion", version.into(), "must be 1.x");
        }
        let table_offset = u64_at(buf, 16);
        if !table_offset.is_multiple_of(SECTOR) || table_offset < SECTOR {
            return wrong(16, "TableOffset", table_offset, "must be a sector behind the first");
        }
        let entries = u32_at(buf, 28);
        if u64::from(entries) * 4 > MAX_TABLE {
            return wrong(28, "MaxTableEntries", entries.into(), "must be at most 16 Mi");
        }
        let block_size = u32_at(buf, 32);
        if !block_size.is_power_of_two() || !(4096..=256 << 20).contains(&block_size) {
            let rule = "must be a power of two from 4 KiB to 256 MiB";
            return wrong(32, "BlockSize", block_size.into(), rule);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&buf[40..56]);
        let units = buf[NAME_AT..NAME_AT + NAME_LEN].as_chunks::<2>().0.iter();
        let units: Vec<u16> =
            units.map(|pair| u16::from_be_bytes(*pair)).take_while(|unit| *unit != 0).collect();
        let mut locators = Vec::new();
        for i in 0..8 {
            let at = LOCATORS_AT + 24 * i;
            let platform = [buf[at], buf[at + 1], buf[at + 2], buf[at + 3]];
            let length = u32_at(buf, at + 8);
            if platform == [0; 4] {
                continue;
            }
            if length > MAX_PATH {
                return wrong(at + 8, "DataLength", length.into(), "must be at most 64 KiB");
            }
            let (space, offset) = (u32_at(buf, at + 4), u64_at(buf, at + 16));
            locators.push(Locator { platform, space, length, offset });
        }
        Ok(Self {
            table_offset,
            entries,
            block_size,
            parent_id: id_from(id),
            parent_timestamp: u32_at(buf, 56),
            parent_name: String::from_utf16_lossy(&units),
            locators,
        })
    }

    /// The header as it is stored, with its checksum.
    pub fn encode(&self) -> [u8; LEN] {
        let mut buf = [0; LEN];
        put(&mut buf, 0, SIGNATURE);
        put(&mut buf, 8, &u64::MAX.to_be_bytes());
        put(&mut buf, 16, &self.table_offset.to_be_bytes());
        put(&mut buf, 24, &0x1_0000u32.to_be_bytes());
        put(&mut buf, 28, &self.entries.to_be_bytes());
        put(&mut buf, 32, &self.block_size.to_be_bytes());
        put(&mut buf, 40, &id_bytes(self.parent_id));
        put(&mut buf, 56, &self.parent_timestamp.to_be_bytes());
        let name = self.parent_name.encode_utf16().take(NAME_LEN / 2);
        let name: Vec<u8> = name.flat_map(u16::to_be_bytes).collect();
        put(&mut buf, NAME_AT, &name);
        for (i, locator) in self.locators.iter().take(8).enumerate() {
            let at = LOCATORS_AT + 24 * i;
            put(&mut buf, at, &locator.platform);
            put(&mut buf, at + 4, &locator.space.to_be_bytes());
            put(&mut buf, at + 8, &locator.length.to_be_bytes());
            put(&mut buf, at + 16, &locator.offset.to_be_bytes());
        }
        let sum = checksum(&buf, CHECKSUM_AT);
        put(&mut buf, CHECKSUM_AT, &sum.to_be_bytes());
        buf
    }

    /// Bytes of the bitmap before a block's sectors.
    pub fn bitmap_len(&self) -> u64 {
        (u64::from(self.block_size) / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// The bitmap of a block of which all sectors are in the file.
    pub fn full_bitmap(&self) -> Vec<u8> {
        full_bitmap(u64::from(self.block_size), self.bitmap_len())
    }
}

/// The bitmap, of `len` bytes, of a block of which all sectors are in the file.
pub(super) fn full_bitmap(block_size: u64, len: u64) -> Vec<u8> {
    let mut bits = vec![0xff; (block_size / SECTOR).div_ceil(8) as usize];
    bits.resize(len as usize, 0);
    bits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn locator() -> impl Strategy<Value = Locator> {
        (any::<[u8; 4]>(), any::<u32>(), 0..=MAX_PATH, any::<u64>()).prop_map(
            |(mut platform, space, length, offset)| {
                platform[0] |= 1;
                Locator { platform, space, length, offset }
            },
        )
    }

    proptest! {
        #[test]
        fn headers_round_trip(
            table in 1u64..1 << 40, entries in 0u32..=16 << 20, shift in 12u32..=28, id: [u8; 16],
            parent_timestamp: u32, parent_name in "[a-zäλ 😀]{0,60}",
            locators in prop::collection::vec(locator(), 0..=8), at in 0..LEN,
        ) {
            let header = Header {
                table_offset: table * 512, entries, block_size: 1 << shift,
                parent_id: id_from(id), parent_timestamp, parent_name, locators,
            };
            prop_assert_eq!(Header::parse(&header.encode(), 0), Ok(header.clone()));
            let mut bytes = header.encode();
            bytes[at] = bytes[at].wrapping_add(1);
            prop_assert!(Header::parse(&bytes, 0).is_err());
        }

        #[test]
        fn parsing_is_total(mut bytes in prop::collection::vec(any::<u8>(), 1000..1100)) {
            if bytes.len() >= LEN {
                bytes[..8].copy_from_slice(SIGNATURE);
                let sum = checksum(&bytes[..LEN], CHECKSUM_AT).to_be_bytes();
                bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum);
            }
            let _ = Header::parse(&bytes, 0);
        }
    }
}
