//! Information classes of file systems (MS-FSCC 2.5).

use crate::{
    flag_set, name,
    wire::{Put, Reader, Result, len32},
};

/// `FileFsVolumeInformation`.
pub const VOLUME: u8 = 1;
/// `FileFsLabelInformation`.
pub const LABEL: u8 = 2;
/// `FileFsSizeInformation`.
pub const SIZE: u8 = 3;
/// `FileFsDeviceInformation`.
pub const DEVICE: u8 = 4;
/// `FileFsAttributeInformation`.
pub const ATTRIBUTE: u8 = 5;
/// `FileFsControlInformation`.
pub const CONTROL: u8 = 6;
/// `FileFsFullSizeInformation`.
pub const FULL_SIZE: u8 = 7;
/// `FileFsObjectIdInformation`.
pub const OBJECT_ID: u8 = 8;
/// `FileFsSectorSizeInformation`.
pub const SECTOR_SIZE: u8 = 11;

flag_set! {
    /// `FileSystemAttributes` (MS-FSCC 2.5.1).
    FsAttributes: u32 {
        /// Names are compared with case when asked to.
        CASE_SENSITIVE_SEARCH = 0x1,
        /// Names keep their case.
        CASE_PRESERVED_NAMES = 0x2,
        /// Names are Unicode.
        UNICODE_ON_DISK = 0x4,
        /// Access lists are kept and enforced.
        PERSISTENT_ACLS = 0x8,
        /// Holes.
        SPARSE_FILES = 0x40,
        /// Object ids.
        OBJECT_IDS = 0x1_0000,
        /// Named streams.
        NAMED_STREAMS = 0x4_0000,
        /// Hard links.
        HARD_LINKS = 0x40_0000,
        /// Extended attributes.
        EXTENDED_ATTRIBUTES = 0x80_0000,
        /// Opening by file number.
        OPEN_BY_FILE_ID = 0x100_0000,
        /// Blocks may be shared between files.
        BLOCK_REFCOUNTING = 0x800_0000,
        /// Holes inside the valid data length (MS-HVRS wants it where sparse disks are shown).
        SPARSE_VDL = 0x1000_0000,
    }
}

/// Space of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Allocation units in all.
    pub total: u64,
    /// Units free to the caller.
    pub caller_free: u64,
    /// Units free.
    pub free: u64,
    /// Sectors in a unit.
    pub sectors_per_unit: u32,
    /// Bytes in a sector.
    pub bytes_per_sector: u32,
}

impl Space {
    /// Appends `FileFsSizeInformation` (2.5.8).
    pub fn encode_size(&self, out: &mut Vec<u8>) {
        out.put_u64(self.total);
        out.put_u64(self.caller_free);
        out.put_u32(self.sectors_per_unit);
        out.put_u32(self.bytes_per_sector);
    }

    /// Appends `FileFsFullSizeInformation` (2.5.4).
    pub fn encode_full_size(&self, out: &mut Vec<u8>) {
        out.put_u64(self.total);
        out.put_u64(self.caller_free);
        out.put_u64(self.free);
        out.put_u32(self.sectors_per_unit);
        out.put_u32(self.bytes_per_sector);
    }

    /// Reads `FileFsFullSizeInformation`.
    pub fn parse_full_size(data: &[u8]) -> Result<Self> {
        let mut r = Reader::new(data);
        Ok(Self {
            total: r.u64("full_size.TotalAllocationUnits")?,
            caller_free: r.u64("full_size.CallerAvailableAllocationUnits")?,
            free: r.u64("full_size.ActualAvailableAllocationUnits")?,
            sectors_per_unit: r.u32("full_size.SectorsPerAllocationUnit")?,
            bytes_per_sector: r.u32("full_size.BytesPerSector")?,
        })
    }
}

/// Appends `FileFsVolumeInformation` (2.5.9).
pub fn encode_volume(created: u64, serial: u32, label: &str, out: &mut Vec<u8>) {
    let label = name::to_utf16(label);
    out.put_u64(created);
    out.put_u32(serial);
    out.put_u32(len32(label.len()));
    out.put_u16(0);
    out.put(&label);
}

/// Appends `FileFsAttributeInformation` (2.5.1).
pub fn encode_attribute(attributes: FsAttributes, max_name: u32, kind: &str, out: &mut Vec<u8>) {
    let kind = name::to_utf16(kind);
    out.put_u32(attributes.0);
    out.put_u32(max_name);
    out.put_u32(len32(kind.len()));
    out.put(&kind);
}

/// Appends `FileFsDeviceInformation` (2.5.10): a mounted disk on the network.
pub fn encode_device(out: &mut Vec<u8>) {
    const FILE_DEVICE_DISK: u32 = 7;
    const FILE_DEVICE_IS_MOUNTED: u32 = 0x20;
    out.put_u32(FILE_DEVICE_DISK);
    out.put_u32(FILE_DEVICE_IS_MOUNTED);
}

/// Appends `FileFsControlInformation` (2.5.2) of a volume without quotas.
pub fn encode_control(out: &mut Vec<u8>) {
    const NO_LIMIT: u64 = u64::MAX;
    out.put_zeros(24);
    out.put_u64(NO_LIMIT);
    out.put_u64(NO_LIMIT);
    out.put_u64(0);
}

/// Appends `FileFsSectorSizeInformation` (2.5.7): aligned sectors, and trims that are heard.
pub fn encode_sector_size(logical: u32, physical: u32, out: &mut Vec<u8>) {
    const ALIGNED_DEVICE: u32 = 1;
    const PARTITION_ALIGNED_ON_DEVICE: u32 = 2;
    const TRIM_ENABLED: u32 = 8;
    out.put_u32(logical);
    out.put_u32(physical);
    out.put_u32(physical);
    out.put_u32(physical);
    out.put_u32(ALIGNED_DEVICE | PARTITION_ALIGNED_ON_DEVICE | TRIM_ENABLED);
    out.put_u32(0);
    out.put_u32(0);
}
