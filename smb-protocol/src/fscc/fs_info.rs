//! Information classes of file systems (MS-FSCC 2.5).

use nom::Parser;

use crate::{
    flag_set, name,
    parse::{self, Input, u32, u64},
    wire::{Put, Result, len32},
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
/// `FileFsDriverPathInformation`.
pub const DRIVER_PATH: u8 = 9;
/// Length of its fixed part (2.5.3).
pub const DRIVER_PATH_LEN: usize = 12;
/// Length of `FileFsControlInformation` (2.5.2).
pub const CONTROL_LEN: usize = 48;
/// Length of `FileFsObjectIdInformation` (2.5.6).
pub const OBJECT_ID_LEN: usize = 64;
/// `FileFsVolumeFlagsInformation`.
pub const VOLUME_FLAGS: u8 = 10;
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
        /// Reparse points.
        REPARSE_POINTS = 0x80,
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
    /// Appends `FileFsSizeInformation` (2.5.8), 24 bytes.
    pub fn encode_size(&self, out: &mut Vec<u8>) {
        out.put_u64(self.total);
        out.put_u64(self.caller_free);
        out.put_u32(self.sectors_per_unit);
        out.put_u32(self.bytes_per_sector);
    }

    /// Appends `FileFsFullSizeInformation` (2.5.4), 32 bytes.
    pub fn encode_full_size(&self, out: &mut Vec<u8>) {
        out.put_u64(self.total);
        out.put_u64(self.caller_free);
        out.put_u64(self.free);
        out.put_u32(self.sectors_per_unit);
        out.put_u32(self.bytes_per_sector);
    }

    /// Reads `FileFsFullSizeInformation` (2.5.4), 32 bytes.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse_full_size(data: &[u8]) -> Result<Self> {
        let fields = (
            u64("full_size.TotalAllocationUnits"),
            u64("full_size.CallerAvailableAllocationUnits"),
            u64("full_size.ActualAvailableAllocationUnits"),
            u32("full_size.SectorsPerAllocationUnit"),
            u32("full_size.BytesPerSector"),
        );
        let space = fields.map(|(total, caller_free, free, sectors_per_unit, bytes_per_sector)| {
            Self { total, caller_free, free, sectors_per_unit, bytes_per_sector }
        });
        parse::run(Input::new(data), space)
    }
}

/// Appends `FileFsVolumeInformation` (2.5.9); `created` is a FILETIME.
pub fn encode_volume(created: u64, serial: u32, label: &str, out: &mut Vec<u8>) {
    let label = name::to_utf16(label);
    out.put_u64(created);
    out.put_u32(serial);
    out.put_u32(len32(label.len()));
    out.put_u16(0);
    out.put(&label);
}

/// Appends `FileFsAttributeInformation` (2.5.1); `max_name` is in characters, `kind` the file system's
/// name.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One field as MS-FSCC 2.5 draws it: where it begins, its length, what it is to hold.
    fn check(raw: &[u8], fields: &[(usize, usize, u64)]) {
        for (at, len, value) in fields {
            assert_eq!(raw[*at..at + len], value.to_le_bytes()[..*len], "at {at}");
        }
    }

    fn wide(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    proptest! {
        #[test]
        fn fields_stand_where_the_specification_draws_them(
            (total, caller_free, free) in any::<(u64, u64, u64)>(),
            (sectors_per_unit, bytes_per_sector) in any::<(u32, u32)>(),
            (created, serial, attributes, max_name) in any::<(u64, u32, u32, u32)>(),
            label in "[a-zé\u{1f600} ]{0,32}",
        ) {
            let space = Space { total, caller_free, free, sectors_per_unit, bytes_per_sector };
            let units = (u64::from(sectors_per_unit), u64::from(bytes_per_sector));
            let mut size = Vec::new();
            space.encode_size(&mut size);
            check(&size, &[(0, 8, total), (8, 8, caller_free), (16, 4, units.0), (20, 4, units.1)]);
            prop_assert_eq!(size.len(), 24);
            let mut full = Vec::new();
            space.encode_full_size(&mut full);
            check(&full, &[(0, 8, total), (8, 8, caller_free), (16, 8, free), (24, 4, units.0)]);
            check(&full, &[(28, 4, units.1)]);
            prop_assert_eq!(full.len(), 32);
            prop_assert_eq!(Space::parse_full_size(&full).unwrap(), space);
            for cut in 0..full.len() {
                prop_assert!(Space::parse_full_size(&full[..cut]).is_err());
            }
            let mut volume = Vec::new();
            encode_volume(created, serial, &label, &mut volume);
            let len = wide(&label).len() as u64;
            check(&volume, &[(0, 8, created), (8, 4, serial.into()), (12, 4, len), (16, 2, 0)]);
            prop_assert_eq!(&volume[18..], &wide(&label)[..]);
            let mut attribute = Vec::new();
            encode_attribute(FsAttributes(attributes), max_name, &label, &mut attribute);
            check(&attribute, &[(0, 4, attributes.into()), (4, 4, max_name.into()), (8, 4, len)]);
            prop_assert_eq!(&attribute[12..], &wide(&label)[..]);
            let mut sectors = Vec::new();
            encode_sector_size(sectors_per_unit, bytes_per_sector, &mut sectors);
            check(&sectors, &[(0, 4, units.0), (4, 4, units.1), (8, 4, units.1), (12, 4, units.1)]);
            check(&sectors, &[(20, 4, 0), (24, 4, 0)]);
            prop_assert_eq!(sectors.len(), 28);
        }
    }

    #[test]
    fn classes_without_a_value_have_the_length_that_is_drawn() {
        let (mut device, mut control) = (Vec::new(), Vec::new());
        encode_device(&mut device);
        encode_control(&mut control);
        assert_eq!(device, [7, 0, 0, 0, 0x20, 0, 0, 0]);
        check(&control, &[(0, 8, 0), (8, 8, 0), (16, 8, 0), (24, 8, u64::MAX), (32, 8, u64::MAX)]);
        assert_eq!(control.len(), CONTROL_LEN);
    }
}
