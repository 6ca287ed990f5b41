//! The region table (MS-VHDX 2.2.3).

use super::{MIB, REGION_TABLE_OFFSETS};
use crate::{
    Damage, Fault, Guid, Structure,
    bytes::{Fields, checksum, put},
};

/// The block allocation table's region.
pub const BAT_REGION: Guid = Guid::from_fields(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
/// The metadata region.
pub const METADATA_REGION: Guid =
    Guid::from_fields(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);

const SIGNATURE: &[u8; 4] = b"regi";
/// Size of a region table in bytes.
pub const TABLE_SIZE: usize = 64 << 10;
const MAX_ENTRIES: u32 = 2047;

/// One region: on megabyte boundaries, after the header section, not past 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Identifier of the region (MS-VHDX 2.2.3.2).
    pub id: Guid,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
    /// An implementation that does not know it must refuse the file.
    pub required: bool,
}

impl Region {
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

/// A region table whose checksum is right and whose regions do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionTable {
    /// In the order of the file; unknown ones included.
    pub regions: Vec<Region>,
}

impl RegionTable {
    /// Parses table `number` (1 or 2) from its 64 KiB.
    ///
    /// # Errors
    /// The [`Damage`]: a signature or checksum that is wrong, or regions that overlap.
    pub fn parse(number: u8, buf: &[u8]) -> Result<Self, Damage> {
        let base = REGION_TABLE_OFFSETS[usize::from(number != 1)];
        let fault =
            |at: usize, fault| Damage::new(Structure::RegionTable(number), base + at as u64, fault);
        if buf.len() < TABLE_SIZE {
            return Err(fault(0, Fault::Truncated));
        }
        let buf = &buf[..TABLE_SIZE];
        if !buf.starts_with(SIGNATURE) {
            return Err(fault(0, Fault::Signature));
        }
        let (stored, computed) = (buf.u32(4), checksum(buf, 4));
        if stored != computed {
            return Err(fault(4, Fault::Checksum { stored, computed }));
        }
        let count = buf.u32(8);
        if count > MAX_ENTRIES {
            let (field, value, rule) = ("EntryCount", u64::from(count), "must be at most 2047");
            return Err(fault(8, Fault::Field { field, value, rule }));
        }
        let mut regions: Vec<Region> = Vec::with_capacity(count as usize);
        for i in 0..count as usize {
            let at = 16 + 32 * i;
            let region = Region {
                id: buf.guid(at),
                offset: buf.u64(at + 16),
                length: buf.u32(at + 24),
                required: buf.u32(at + 28) & 1 != 0,
            };
            let (offset, length) = (region.offset, u64::from(region.length));
            if offset < MIB || !offset.is_multiple_of(MIB) || offset.checked_add(length).is_none() {
                let rule = "must be a multiple of 1 MiB after the header section";
                let field = "FileOffset";
                return Err(fault(at + 16, Fault::Field { field, value: offset, rule }));
            }
            if length == 0 || !length.is_multiple_of(MIB) {
                let rule = "must be a positive multiple of 1 MiB";
                return Err(fault(at + 24, Fault::Field { field: "Length", value: length, rule }));
            }
            regions.push(region);
        }
        let mut ids: Vec<Guid> = regions.iter().map(|r| r.id).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(fault(16, Fault::Duplicate(pair[0])));
        }
        let mut sorted: Vec<&Region> = regions.iter().collect();
        sorted.sort_unstable_by_key(|r| r.offset);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].end() > pair[1].offset) {
            let (start, len) = (pair[1].offset, u64::from(pair[1].length));
            let other = format!("region {}", pair[0].id);
            return Err(fault(16, Fault::Overlap { start, len, other }));
        }
        Ok(Self { regions })
    }

    /// The table as its 64 KiB, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = vec![0; TABLE_SIZE];
        put(&mut buf, 0, SIGNATURE);
        put(&mut buf, 8, &(self.regions.len() as u32).to_le_bytes());
        for (i, region) in self.regions.iter().enumerate().take(MAX_ENTRIES as usize) {
            let at = 16 + 32 * i;
            put(&mut buf, at, &region.id.to_bytes());
            put(&mut buf, at + 16, &region.offset.to_le_bytes());
            put(&mut buf, at + 24, &region.length.to_le_bytes());
            put(&mut buf, at + 28, &u32::from(region.required).to_le_bytes());
        }
        let crc = checksum(&buf, 4);
        put(&mut buf, 4, &crc.to_le_bytes());
        buf
    }

    /// The region with this identifier.
    pub fn find(&self, id: Guid) -> Option<&Region> {
        self.regions.iter().find(|r| r.id == id)
    }

    /// Checks what needs more than the table: every required region is known, the two that must
    /// be there are, none overlaps the log (MS-VHDX 2.2.3.2). Returns BAT and metadata region.
    ///
    /// # Errors
    /// The [`Damage`]: a region that is missing, or one that must be known and is not.
    pub fn known(&self, number: u8, log: std::ops::Range<u64>) -> Result<(Region, Region), Damage> {
        let base = REGION_TABLE_OFFSETS[usize::from(number != 1)];
        let fault = |fault| Damage::new(Structure::RegionTable(number), base, fault);
        for region in &self.regions {
            if region.required && ![BAT_REGION, METADATA_REGION].contains(&region.id) {
                return Err(fault(Fault::UnknownRequired(region.id)));
            }
            if region.offset < log.end && log.start < region.end() {
                let (start, len) = (region.offset, u64::from(region.length));
                return Err(fault(Fault::Overlap { start, len, other: "the log".into() }));
            }
        }
        let bat = self.find(BAT_REGION).ok_or(fault(Fault::Missing("block table region")))?;
        let metadata =
            self.find(METADATA_REGION).ok_or(fault(Fault::Missing("metadata region")))?;
        Ok((*bat, *metadata))
    }
}
