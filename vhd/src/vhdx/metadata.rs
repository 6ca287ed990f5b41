//! The metadata region: its table and the known items (MS-VHDX 2.6).

use super::{MAX_DISK, MIB, locator::ParentLocator};
use crate::{
    Damage, Fault, Guid, Structure,
    bytes::{Fields, put},
};

/// File Parameters (MS-VHDX 2.6.2.1).
pub const FILE_PARAMETERS: Guid =
    Guid::from_fields(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
/// Virtual Disk Size (MS-VHDX 2.6.2.2).
pub const DISK_SIZE: Guid = Guid::from_fields(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
/// Virtual Disk ID (MS-VHDX 2.6.2.3).
pub const DISK_ID: Guid = Guid::from_fields(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
/// Logical Sector Size (MS-VHDX 2.6.2.4).
pub const LOGICAL_SECTOR: Guid =
    Guid::from_fields(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
/// Physical Sector Size (MS-VHDX 2.6.2.5).
pub const PHYSICAL_SECTOR: Guid =
    Guid::from_fields(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
/// Parent Locator (MS-VHDX 2.6.2.6).
pub const PARENT_LOCATOR: Guid =
    Guid::from_fields(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

const KNOWN: [Guid; 6] =
    [FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR];

const SIGNATURE: &[u8; 8] = b"metadata";
/// Size of the metadata table in bytes; items follow it in the region.
pub const TABLE_SIZE: usize = 64 << 10;
const MAX_ENTRIES: u16 = 2047;
/// Most items of users.
pub const MAX_USER_ENTRIES: usize = 1024;

/// One entry of the table: an item that lies within the region and overlaps no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Identifier of the item (MS-VHDX 2.6.1.2).
    pub id: Guid,
    /// Bytes from the beginning of the region.
    pub offset: u32,
    /// Bytes, at most 1 MiB.
    pub length: u32,
    /// User metadata rather than the system's.
    pub is_user: bool,
    /// Belongs to the disk and is copied to its descendants, rather than to the file.
    pub is_virtual_disk: bool,
    /// An implementation that does not know it must refuse the file.
    pub is_required: bool,
}

/// A metadata table (MS-VHDX 2.6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// In the order of the file; unknown ones included.
    pub entries: Vec<Entry>,
}

impl Table {
    /// Parses the first 64 KiB of the region of `region_length` bytes at `base` of the file.
    ///
    /// # Errors
    /// The [`Damage`]: a signature that is none, or an item outside of the region.
    pub fn parse(buf: &[u8], base: u64, region_length: u32) -> Result<Self, Damage> {
        let fault =
            |at: usize, fault| Damage::new(Structure::MetadataTable, base + at as u64, fault);
        if buf.len() < TABLE_SIZE {
            return Err(fault(0, Fault::Truncated));
        }
        if !buf.starts_with(SIGNATURE) {
            return Err(fault(0, Fault::Signature));
        }
        let count = buf.u16(10);
        if count > MAX_ENTRIES {
            let (field, value, rule) = ("EntryCount", u64::from(count), "must be at most 2047");
            return Err(fault(10, Fault::Field { field, value, rule }));
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(usize::from(count));
        for i in 0..usize::from(count) {
            let at = 32 + 32 * i;
            let flags = buf.u32(at + 24);
            let entry = Entry {
                id: buf.guid(at),
                offset: buf.u32(at + 16),
                length: buf.u32(at + 20),
                is_user: flags & 1 != 0,
                is_virtual_disk: flags & 2 != 0,
                is_required: flags & 4 != 0,
            };
            let field = |at, field, value: u32, rule| {
                Err(fault(at, Fault::Field { field, value: u64::from(value), rule }))
            };
            if u64::from(entry.length) > MIB {
                return field(at + 20, "Length", entry.length, "must be at most 1 MiB");
            }
            if entry.length == 0 && entry.offset != 0 {
                return field(at + 16, "Offset", entry.offset, "must be zero for an empty item");
            }
            let end = u64::from(entry.offset) + u64::from(entry.length);
            if entry.length != 0
                && ((entry.offset as usize) < TABLE_SIZE || end > u64::from(region_length))
            {
                return field(
                    at + 16,
                    "Offset",
                    entry.offset,
                    "the item must lie within the region, after the table",
                );
            }
            entries.push(entry);
        }
        let mut ids: Vec<(Guid, bool)> = entries.iter().map(|e| (e.id, e.is_user)).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(fault(32, Fault::Duplicate(pair[0].0)));
        }
        let users = entries.iter().filter(|e| e.is_user).count();
        if users > MAX_USER_ENTRIES {
            let (field, value, rule) = ("user entries", users as u64, "must be at most 1024");
            return Err(fault(32, Fault::Field { field, value, rule }));
        }
        let mut sorted: Vec<&Entry> = entries.iter().filter(|e| e.length != 0).collect();
        sorted.sort_unstable_by_key(|e| e.offset);
        if let Some(pair) = sorted.windows(2).find(|p| p[0].offset + p[0].length > p[1].offset) {
            let (start, len) = (base + u64::from(pair[1].offset), u64::from(pair[1].length));
            let other = format!("item {}", pair[0].id);
            return Err(fault(32, Fault::Overlap { start, len, other }));
        }
        Ok(Self { entries })
    }

    /// The table as its 64 KiB.
    pub fn encode(&self) -> Vec<u8> {
        let mut buf = vec![0; TABLE_SIZE];
        put(&mut buf, 0, SIGNATURE);
        put(&mut buf, 10, &(self.entries.len() as u16).to_le_bytes());
        for (i, entry) in self.entries.iter().enumerate().take(usize::from(MAX_ENTRIES)) {
            let at = 32 + 32 * i;
            let flags = u32::from(entry.is_user)
                | u32::from(entry.is_virtual_disk) << 1
                | u32::from(entry.is_required) << 2;
            put(&mut buf, at, &entry.id.to_bytes());
            put(&mut buf, at + 16, &entry.offset.to_le_bytes());
            put(&mut buf, at + 20, &entry.length.to_le_bytes());
            put(&mut buf, at + 24, &flags.to_le_bytes());
        }
        buf
    }

    /// The system item with this identifier.
    pub fn find(&self, id: Guid) -> Option<&Entry> {
        self.entries.iter().find(|e| e.id == id && !e.is_user)
    }

    /// Fails if a required item is not one of those known here. `base` is for the error.
    ///
    /// # Errors
    /// The [`Damage`]: an item that must be known and is not.
    pub fn check_required(&self, base: u64) -> Result<(), Damage> {
        match self
            .entries
            .iter()
            .position(|e| e.is_required && (e.is_user || !KNOWN.contains(&e.id)))
        {
            None => Ok(()),
            Some(i) => Err(Damage::new(
                Structure::MetadataTable,
                base + 32 + 32 * i as u64,
                Fault::UnknownRequired(self.entries[i].id),
            )),
        }
    }
}

/// What the known items say; every value is within its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes per payload block: a power of two, 1 MiB to 256 MiB.
    pub block_size: u32,
    /// The file is fully provisioned: blocks stay allocated (a fixed image).
    pub leave_allocated: bool,
    /// The file holds differences to a parent.
    pub has_parent: bool,
    /// Bytes of the disk: whole logical sectors, at most 64 TiB.
    pub disk_size: u64,
    /// Identity of the disk.
    pub disk_id: Guid,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096.
    pub physical_sector: u32,
    /// Where the parent is, in a differencing image.
    pub parent: Option<ParentLocator>,
}

impl Metadata {
    /// Reads the known items, whose bytes `item` gives; `base` is the region's offset.
    ///
    /// # Errors
    /// The [`Damage`]: an item that is missing or has a value that no image has.
    pub fn from_items<'a>(
        table: &Table,
        base: u64,
        item: impl Fn(&Entry) -> Option<&'a [u8]>,
    ) -> Result<Self, Damage> {
        table.check_required(base)?;
        let get =
            |id: Guid, name: &'static str, length: usize| -> Result<(&'a [u8], u64), Damage> {
                let damage = |at, fault| Err(Damage::new(Structure::MetadataItem(id), at, fault));
                let Some(entry) = table.find(id) else { return damage(base, Fault::Missing(name)) };
                let at = base + u64::from(entry.offset);
                if entry.length as usize != length {
                    let (field, value) = ("Length", u64::from(entry.length));
                    let rule = "not the length of this item";
                    return damage(at, Fault::Field { field, value, rule });
                }
                match item(entry) {
                    Some(bytes) if bytes.len() == length => Ok((bytes, at)),
                    _ => damage(at, Fault::Truncated),
                }
            };
        let bad = |id, at, field, value: u64, rule| {
            Damage::new(Structure::MetadataItem(id), at, Fault::Field { field, value, rule })
        };
        let (bytes, at) = get(FILE_PARAMETERS, "file parameters", 8)?;
        let (block_size, flags) = (bytes.u32(0), bytes.u32(4));
        if !block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&u64::from(block_size)) {
            let rule = "must be a power of two from 1 MiB to 256 MiB";
            return Err(bad(FILE_PARAMETERS, at, "BlockSize", u64::from(block_size), rule));
        }
        let sector = |id, name| {
            let (bytes, at) = get(id, name, 4)?;
            match bytes.u32(0) {
                value @ (512 | 4096) => Ok(value),
                value => Err(bad(id, at, "sector size", u64::from(value), "must be 512 or 4096")),
            }
        };
        let logical_sector = sector(LOGICAL_SECTOR, "logical sector size")?;
        let physical_sector = sector(PHYSICAL_SECTOR, "physical sector size")?;
        let (bytes, at) = get(DISK_SIZE, "virtual disk size", 8)?;
        let disk_size = bytes.u64(0);
        if disk_size == 0
            || disk_size > MAX_DISK
            || !disk_size.is_multiple_of(u64::from(logical_sector))
        {
            let rule = "must be a positive number of whole sectors, at most 64 TiB";
            return Err(bad(DISK_SIZE, at, "VirtualDiskSize", disk_size, rule));
        }
        let disk_id = get(DISK_ID, "virtual disk identifier", 16)?.0.guid(0);
        let has_parent = flags & 2 != 0;
        let parent = match table.find(PARENT_LOCATOR) {
            Some(entry) if has_parent => {
                let at = base + u64::from(entry.offset);
                let truncated =
                    Damage::new(Structure::MetadataItem(PARENT_LOCATOR), at, Fault::Truncated);
                Some(ParentLocator::parse(item(entry).ok_or(truncated)?, at)?)
            }
            None if has_parent => {
                let fault = Fault::Missing("parent locator");
                return Err(Damage::new(Structure::MetadataItem(PARENT_LOCATOR), base, fault));
            }
            _ => None,
        };
        Ok(Self {
            block_size,
            leave_allocated: flags & 1 != 0 && !has_parent,
            has_parent,
            disk_size,
            disk_id,
            logical_sector,
            physical_sector,
            parent,
        })
    }

    /// The table and the items behind it as the first bytes of a metadata region.
    pub fn encode(&self) -> Vec<u8> {
        let flags = u32::from(self.leave_allocated) | u32::from(self.has_parent) << 1;
        let mut parameters = self.block_size.to_le_bytes().to_vec();
        parameters.extend(flags.to_le_bytes());
        let mut items: Vec<(Guid, bool, Vec<u8>)> = vec![
            (FILE_PARAMETERS, false, parameters),
            (DISK_SIZE, true, self.disk_size.to_le_bytes().to_vec()),
            (DISK_ID, true, self.disk_id.to_bytes().to_vec()),
            (LOGICAL_SECTOR, true, self.logical_sector.to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR, true, self.physical_sector.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = &self.parent {
            items.push((PARENT_LOCATOR, false, parent.encode()));
        }
        let mut data = Vec::new();
        let mut entries = Vec::new();
        for (id, is_virtual_disk, bytes) in items {
            entries.push(Entry {
                id,
                offset: (TABLE_SIZE + data.len()) as u32,
                length: bytes.len() as u32,
                is_user: false,
                is_virtual_disk,
                is_required: true,
            });
            data.extend(bytes);
        }
        let mut region = Table { entries }.encode();
        region.extend(data);
        region
    }
}
