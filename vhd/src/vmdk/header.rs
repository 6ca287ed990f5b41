//! The header of a sparse extent (VMDK, "Hosted Sparse Extents"). Little-endian, sectors of 512 bytes.

use crate::{Damage, Error, Fault, Result, Structure, bytes::Fields};

/// First bytes of a sparse extent.
pub const MAGIC: [u8; 4] = *b"KDMV";
/// The name of a sparse extent of ESX, which is another format, by its first bytes.
pub fn foreign(magic: &[u8; 8]) -> Option<&'static str> {
    // 0xcafebabe as 64 bits, little end first.
    const SESPARSE: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();
    match magic {
        [b'C', b'O', b'W', b'D', ..] => Some("a sparse extent of ESX (COWD)"),
        _ if *magic == SESPARSE => Some("a space-efficient sparse extent of ESX (SESPARSE)"),
        _ => None,
    }
}

/// Bytes of the header.
pub const LENGTH: usize = 512;
/// The unit of everything.
pub const SECTOR: u64 = 512;
/// Where a grain directory is when it is told in the footer at the file's end.
pub const AT_END: u64 = u64::MAX;
/// The end-of-line bytes show what a text transfer would have done to the file.
const NEWLINES: u32 = 1;
const ZEROED_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
/// Largest grain that is believed in.
const MAX_GRAIN: u64 = 16 << 20;
/// Largest grain directory that is believed in: it is kept in memory.
const MAX_DIRECTORY: u64 = 32 << 20;

/// What the header says, all of it possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the extent.
    pub capacity: u64,
    /// Bytes of a grain.
    pub grain: u64,
    /// First byte and length of the descriptor within, 0 if there is none.
    pub descriptor: (u64, u64),
    /// Entries of a grain table.
    pub table_entries: u32,
    /// First byte of the grain directory; `None` if the footer says it.
    pub directory: Option<u64>,
    /// Grains are compressed, each behind a marker.
    pub compressed: bool,
    /// A grain entry of 1 means zeros.
    pub zeroed_grains: bool,
    /// It was not closed.
    pub unclean: bool,
}

fn field(offset: u64, field: &'static str, value: u64, rule: &'static str) -> Error {
    Damage::new(Structure::VmdkHeader, offset, Fault::Field { field, value, rule }).into()
}

impl Header {
    /// Reads a header, or a footer, which has the same form.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the field; [`Error::Unsupported`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fault = |fault| Damage::new(Structure::VmdkHeader, 0, fault);
        if !bytes.starts_with(&MAGIC) {
            return Err(fault(Fault::Signature).into());
        }
        if bytes.len() < LENGTH {
            return Err(fault(Fault::Truncated).into());
        }
        let version = bytes.u32(4);
        if !(1..=3).contains(&version) {
            return Err(Error::Unsupported(format!("version {version} of VMDK (1 to 3)")));
        }
        let flags = bytes.u32(8);
        if flags & NEWLINES != 0 && bytes[73..77] != *b"\n \r\n" {
            let rule = "changed as by a transfer as text";
            return Err(field(73, "end-of-line bytes", bytes.u32(73).into(), rule));
        }
        let sectors = |at: usize, name: &'static str| {
            let value = bytes.u64(at);
            let rule = "fewer than 2^54 sectors";
            // A signed 64-bit number of bytes.
            if value < 1 << 54 {
                Ok(value * SECTOR)
            } else {
                Err(field(at as u64, name, value, rule))
            }
        };
        let capacity = sectors(12, "capacity")?;
        let grain = sectors(20, "grainSize")?;
        if !grain.is_power_of_two() || !(8 * SECTOR..=MAX_GRAIN).contains(&grain) {
            let rule = "a power of two, at least 8 sectors and at most 16 MiB";
            return Err(field(20, "grainSize", grain / SECTOR, rule));
        }
        let table_entries = bytes.u32(44);
        if !(1..=65_536).contains(&table_entries) {
            return Err(field(44, "numGTEsPerGT", table_entries.into(), "1 to 65536"));
        }
        let compressed = flags & COMPRESSED != 0;
        let algorithm = bytes.u16(77);
        if algorithm > 1 || compressed != (algorithm == 1) || (compressed && flags & MARKERS == 0) {
            let rule = "1 with compressed grains and markers, else 0";
            return Err(field(77, "compressAlgorithm", algorithm.into(), rule));
        }
        let header = Self {
            capacity,
            grain,
            descriptor: (sectors(28, "descriptorOffset")?, sectors(36, "descriptorSize")?),
            table_entries,
            directory: if bytes.u64(56) == AT_END { None } else { Some(sectors(56, "gdOffset")?) },
            compressed,
            zeroed_grains: flags & ZEROED_GRAINS != 0,
            unclean: bytes[72] != 0,
        };
        if header.directory_entries() * 4 > MAX_DIRECTORY {
            let rule = "a grain directory of at most 32 MiB";
            return Err(field(12, "capacity", capacity / SECTOR, rule));
        }
        Ok(header)
    }

    /// Bytes of the disk that a grain table covers.
    pub fn table_covers(&self) -> u64 {
        self.grain * u64::from(self.table_entries)
    }

    /// Entries of the grain directory.
    pub fn directory_entries(&self) -> u64 {
        self.capacity.div_ceil(self.table_covers())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(0, &MAGIC);
        put(4, &1u32.to_le_bytes());
        put(8, &3u32.to_le_bytes());
        put(12, &2048u64.to_le_bytes());
        put(20, &128u64.to_le_bytes());
        put(28, &1u64.to_le_bytes());
        put(36, &20u64.to_le_bytes());
        put(44, &512u32.to_le_bytes());
        put(56, &21u64.to_le_bytes());
        put(73, b"\n \r\n");
        bytes
    }

    #[test]
    fn a_known_header() {
        let header = Header::parse(&header()).unwrap();
        assert_eq!((header.capacity, header.grain), (1 << 20, 64 << 10));
        assert_eq!(header.descriptor, (512, 20 * 512));
        assert_eq!((header.directory, header.directory_entries()), (Some(21 * 512), 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Whatever stands there, what comes out can be worked with.
        #[test]
        fn noise_is_an_answer(
            noise in prop::collection::vec((0..LENGTH, any::<u8>()), 1..6), cut in 0..=LENGTH,
        ) {
            let mut bytes = header();
            noise.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            if let Ok(header) = Header::parse(&bytes[..cut]) {
                prop_assert!(header.directory_entries() * 4 <= MAX_DIRECTORY);
                prop_assert!(header.grain.is_power_of_two());
            }
        }
    }
}
