//! The footer: what kind of image it is and how large its disk is.

use super::{MAX_DISK, SECTOR, checksum};
use crate::{Damage, Fault, Guid, Structure, bytes::put};

/// Bytes of a footer.
pub const LEN: usize = 512;
/// Bytes of the footer of a fixed image made before Virtual PC 2004; the last one, which is missing, is
/// zero (VHD specification, "Hard Disk Footer Format").
pub const OLD_LEN: usize = 511;
/// First bytes of a footer.
pub const SIGNATURE: &[u8; 8] = b"conectix";
const CHECKSUM_AT: usize = 64;
/// Seconds from 1970 to 2000, where the format's time begins.
const EPOCH: u64 = 946_684_800;

/// The kinds of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All of the disk is in the file.
    Fixed,
    /// Blocks are in the file from when they are first written.
    Dynamic,
    /// Only what differs from a parent is in the file.
    Differencing,
}

/// The footer of a VHD, with valid fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// What kind of image it is.
    pub kind: Kind,
    /// Where the header is; none in a fixed image.
    pub data_offset: u64,
    /// When the image was made: seconds since 2000.
    pub timestamp: u32,
    /// The program that made it.
    pub creator: [u8; 4],
    /// Bytes that the disk had when it was made.
    pub original_size: u64,
    /// Bytes of the disk. Where the geometry says less, this counts.
    pub size: u64,
    /// Identity of the image, by which its children know it.
    pub id: Guid,
    /// The file holds a machine that was stopped while it ran.
    pub saved_state: bool,
}

impl Footer {
    /// Parses a footer; `offset` is where it stands, for errors.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(buf: &[u8], offset: u64) -> Result<Self, Damage> {
        let fault = |at: usize, fault| Damage::new(Structure::Footer, offset + at as u64, fault);
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
        let version = u32_at(buf, 12);
        let wrong = |at, field, value, rule| Err(fault(at, Fault::Field { field, value, rule }));
        if version >> 16 != 1 {
            return wrong(12, "FileFormatVersion", version.into(), "must be 1.x");
        }
        let kind = match u32_at(buf, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return wrong(60, "DiskType", other.into(), "must be 2, 3 or 4"),
        };
        let size = u64_at(buf, 48);
        if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_DISK {
            return wrong(48, "CurrentSize", size, "must be whole sectors, at most 2040 GiB");
        }
        let data_offset = u64_at(buf, 16);
        if kind != Kind::Fixed && (!data_offset.is_multiple_of(SECTOR) || data_offset < SECTOR) {
            return wrong(16, "DataOffset", data_offset, "must be a sector behind the first");
        }
        let mut id = [0; 16];
        id.copy_from_slice(&buf[68..84]);
        Ok(Self {
            kind,
            data_offset,
            timestamp: u32_at(buf, 24),
            creator: [buf[28], buf[29], buf[30], buf[31]],
            original_size: u64_at(buf, 40),
            size,
            id: id_from(id),
            saved_state: buf[84] != 0,
        })
    }

    /// The footer as it is stored, with its checksum.
    pub fn encode(&self) -> [u8; LEN] {
        let mut buf = [0; LEN];
        put(&mut buf, 0, SIGNATURE);
        put(&mut buf, 8, &2u32.to_be_bytes());
        put(&mut buf, 12, &0x1_0000u32.to_be_bytes());
        put(&mut buf, 16, &self.data_offset.to_be_bytes());
        put(&mut buf, 24, &self.timestamp.to_be_bytes());
        put(&mut buf, 28, &self.creator);
        put(&mut buf, 32, &0x000a_0000u32.to_be_bytes());
        put(&mut buf, 36, b"Wi2k");
        put(&mut buf, 40, &self.original_size.to_be_bytes());
        put(&mut buf, 48, &self.size.to_be_bytes());
        let (cylinders, heads, sectors) = geometry(self.size / SECTOR);
        put(&mut buf, 56, &cylinders.to_be_bytes());
        put(&mut buf, 58, &[heads, sectors]);
        let kind = match self.kind {
            Kind::Fixed => 2u32,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        put(&mut buf, 60, &kind.to_be_bytes());
        put(&mut buf, 68, &id_bytes(self.id));
        put(&mut buf, 84, &[u8::from(self.saved_state)]);
        let sum = checksum(&buf, CHECKSUM_AT);
        put(&mut buf, CHECKSUM_AT, &sum.to_be_bytes());
        buf
    }
}

/// The time now, in seconds since the year 2000.
pub fn now() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs()).saturating_sub(EPOCH);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Cylinders, heads and sectors per track that the format gives a disk of so many sectors
/// (its appendix "CHS Calculation"). They may come to less than the disk.
pub fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65_535 * 16 * 255) as u32;
    let (cylinder_heads, heads, per_track);
    if total >= 65_535 * 16 * 63 {
        (per_track, heads) = (255, 16);
        cylinder_heads = total / per_track;
    } else {
        let mut per = 17;
        let mut over = total / per;
        let mut wanted = over.div_ceil(1024).max(4);
        if over >= wanted * 1024 || wanted > 16 {
            (per, wanted) = (31, 16);
            over = total / per;
        }
        if over >= wanted * 1024 {
            (per, wanted) = (63, 16);
            over = total / per;
        }
        (per_track, heads, cylinder_heads) = (per, wanted, over);
    }
    ((cylinder_heads / heads) as u16, heads as u8, per_track as u8)
}

/// An identifier from its stored bytes, which stand as they are printed.
pub(super) fn id_from(bytes: [u8; 16]) -> Guid {
    let n = |range: std::ops::Range<usize>| {
        bytes[range].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte))
    };
    Guid::from_fields(n(0..4) as u32, n(4..6) as u16, n(6..8) as u16, n(8..16))
}

/// The stored bytes of an identifier.
pub(super) fn id_bytes(id: Guid) -> [u8; 16] {
    let mut bytes = id.to_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

pub(super) fn u32_at(buf: &[u8], at: usize) -> u32 {
    let bytes = buf.get(at..).and_then(|rest| rest.first_chunk::<4>());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

pub(super) fn u64_at(buf: &[u8], at: usize) -> u64 {
    u64::from(u32_at(buf, at)) << 32 | u64::from(u32_at(buf, at + 4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn geometry_is_that_of_the_format() {
        // Sizes and geometries that Virtual PC and Hyper-V write.
        assert_eq!(geometry(1 << 11), (30, 4, 17));
        assert_eq!(geometry((127 << 30) / 512), (65_278, 16, 255));
        assert_eq!(geometry((1 << 30) / 512), (2_080, 16, 63));
        assert_eq!(geometry(MAX_DISK / 512), (65_535, 16, 255));
    }

    proptest! {
        #[test]
        fn footers_round_trip(
            kind in 0u8..3, offset in 1u64..1 << 40, timestamp: u32, creator: [u8; 4],
            original_size: u64, sectors in 1u64..=MAX_DISK / 512, id: [u8; 16], saved_state: bool,
        ) {
            let kind = [Kind::Fixed, Kind::Dynamic, Kind::Differencing][usize::from(kind)];
            let footer = Footer {
                kind,
                data_offset: if kind == Kind::Fixed { u64::MAX } else { offset * 512 },
                timestamp, creator, original_size, size: sectors * 512,
                id: id_from(id), saved_state,
            };
            prop_assert_eq!(id_bytes(footer.id), id);
            prop_assert_eq!(Footer::parse(&footer.encode(), 0), Ok(footer.clone()));
            // A byte that is wrong is noticed.
            let mut bytes = footer.encode();
            let at = usize::from(creator[0]) * 2;
            bytes[at] = bytes[at].wrapping_add(1);
            prop_assert!(Footer::parse(&bytes, 0).is_err());
        }

        #[test]
        fn parsing_is_total(mut bytes in prop::collection::vec(any::<u8>(), 0..600), valid: bool) {
            if valid && bytes.len() >= LEN {
                bytes[..8].copy_from_slice(SIGNATURE);
                let sum = checksum(&bytes[..LEN], CHECKSUM_AT).to_be_bytes();
                bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum);
            }
            if let Ok(footer) = Footer::parse(&bytes, 0) {
                prop_assert_eq!(Footer::parse(&footer.encode(), 0), Ok(footer));
            }
        }
    }
}
