//! The header (QCOW2, "Header") and what follows it ("Header extensions").

use crate::{Damage, Error, Fault, Result, Structure, bytes::BigEndian};

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a header of version 3 that are written here.
pub const LENGTH: usize = 112;
/// Reference counts may be wrong (incompatible bit 0).
pub const DIRTY: u64 = 1;
/// Something was found to be damaged (incompatible bit 1).
pub const CORRUPT: u64 = 1 << 1;
/// The payload is in another file (incompatible bit 2).
const EXTERNAL_DATA: u64 = 1 << 2;
/// Clusters are not compressed by deflate (incompatible bit 3).
const COMPRESSION: u64 = 1 << 3;
/// Table entries with bits for parts of clusters (incompatible bit 4).
const EXTENDED_L2: u64 = 1 << 4;
/// Largest L1 table that is believed in, as QEMU does: it is kept in memory.
pub const MAX_L1: u64 = 32 << 20;
/// Header and extensions that are read, at most.
pub const MAX_HEADER: usize = 64 << 10;
/// Longest name of a backing file.
const MAX_NAME: u32 = 1023;

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Deflate without a wrapper.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// What the header says, all of it possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where the active L1 table is.
    pub l1_offset: u64,
    /// Where the table of reference counts is.
    pub refcount_offset: u64,
    /// Clusters of the table of reference counts.
    pub refcount_clusters: u32,
    /// Bits of a reference count: a power of two from 1 to 64.
    pub refcount_bits: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Where their table is.
    pub snapshots_offset: u64,
    /// Incompatible features, all of them known.
    pub incompatible: u64,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Name of the backing file, as it stands.
    pub backing: Option<String>,
    /// Format of the backing file, if it is told.
    pub backing_format: Option<String>,
}

fn fault(offset: u64, fault: Fault) -> Damage {
    Damage::new(Structure::Qcow2Header, offset, fault)
}

fn field(offset: u64, field: &'static str, value: u64, rule: &'static str) -> Damage {
    fault(offset, Fault::Field { field, value, rule })
}

impl Header {
    /// Reads the header at the beginning of `bytes`, which are the file's first 64 KiB or all of it.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the field; [`Error::Unsupported`] for an encrypted image, one with
    /// an external data file or with features that are not known.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if !bytes.starts_with(&MAGIC) {
            return Err(fault(0, Fault::Signature).into());
        }
        if bytes.len() < 72 {
            return Err(fault(0, Fault::Truncated).into());
        }
        let version = bytes.u32_be(4);
        if ![2, 3].contains(&version) {
            return Err(Error::Unsupported(format!("version {version} of QCOW (2 or 3)")));
        }
        let new = version == 3;
        if new && bytes.len() < 104 {
            return Err(fault(72, Fault::Truncated).into());
        }
        let cluster_bits = bytes.u32_be(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(field(20, "cluster_bits", cluster_bits.into(), "9 to 21").into());
        }
        let cluster_size = 1u64 << cluster_bits;
        if bytes.u32_be(32) != 0 {
            return Err(Error::Unsupported("an encrypted image".into()));
        }
        let incompatible = if new { bytes.u64_be(72) } else { 0 };
        supported(incompatible)?;
        let header_length = if new { u64::from(bytes.u32_be(100)) } else { 72 };
        if new && (header_length < 104 || header_length > cluster_size) {
            return Err(field(100, "header_length", header_length, "104 to a cluster").into());
        }
        let refcount_order = if new { bytes.u32_be(96) } else { 4 };
        if refcount_order > 6 {
            return Err(field(96, "refcount_order", refcount_order.into(), "at most 6").into());
        }
        let kind = if header_length > 104 { bytes.get(104).copied().unwrap_or(0) } else { 0 };
        let compression = match (incompatible & COMPRESSION != 0, kind) {
            (false, 0) => Compression::Deflate,
            (true, 1) => Compression::Zstd,
            (_, other) => {
                let rule = "0, or 1 with its feature bit";
                return Err(field(104, "compression_type", other.into(), rule).into());
            }
        };
        let mut header = Self {
            version,
            cluster_size,
            size: bytes.u64_be(24),
            l1_size: bytes.u32_be(36),
            l1_offset: bytes.u64_be(40),
            refcount_offset: bytes.u64_be(48),
            refcount_clusters: bytes.u32_be(56),
            refcount_bits: 1 << refcount_order,
            snapshots: bytes.u32_be(60),
            snapshots_offset: bytes.u64_be(64),
            incompatible,
            compression,
            backing: None,
            backing_format: None,
        };
        header.check()?;
        let end = header.backing_name(bytes)?;
        header.extensions(bytes, header_length, end)?;
        Ok(header)
    }

    /// Fields against each other.
    fn check(&self) -> Result<()> {
        let aligned = |at: u64, name: &'static str, value: u64| {
            if value.is_multiple_of(self.cluster_size) {
                return Ok(());
            }
            Err(field(at, name, value, "a whole number of clusters"))
        };
        aligned(40, "l1_table_offset", self.l1_offset)?;
        aligned(48, "refcount_table_offset", self.refcount_offset)?;
        aligned(64, "snapshots_offset", self.snapshots_offset)?;
        // A disk's offsets are signed 64-bit numbers to everyone who uses them.
        if self.size > i64::MAX as u64 - self.cluster_size {
            return Err(field(24, "size", self.size, "less than 2^63").into());
        }
        let l1_bytes = u64::from(self.l1_size) * 8;
        if l1_bytes > MAX_L1 {
            return Err(field(36, "l1_size", self.l1_size.into(), "at most 32 MiB of table").into());
        }
        if u64::from(self.l1_size) < self.l1_needed() {
            let rule = "enough for the disk";
            return Err(field(36, "l1_size", self.l1_size.into(), rule).into());
        }
        Ok(())
    }

    /// Entries of an L2 table, which is one cluster.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size / 8
    }

    /// Entries of the L1 table that the disk needs.
    pub fn l1_needed(&self) -> u64 {
        self.size.div_ceil(self.cluster_size * self.l2_entries())
    }

    /// Takes the backing file's name; gives where it begins, or the end of the first cluster.
    fn backing_name(&mut self, bytes: &[u8]) -> Result<u64> {
        let (at, len) = (bytes.u64_be(8), bytes.u32_be(16));
        if at == 0 {
            return Ok(self.cluster_size);
        }
        if len > MAX_NAME {
            return Err(field(16, "backing_file_size", len.into(), "at most 1023").into());
        }
        let end = at.checked_add(len.into()).filter(|end| *end <= self.cluster_size);
        let Some(end) = end else {
            return Err(field(8, "backing_file_offset", at, "in the first cluster").into());
        };
        // Both are at most 2 MiB.
        let name = bytes.get(at as usize..end as usize).ok_or(fault(at, Fault::Truncated))?;
        let name = str::from_utf8(name)
            .map_err(|_| Error::Unsupported("a backing file whose name is not UTF-8".into()))?;
        self.backing = Some(name.to_owned());
        Ok(at)
    }

    /// Walks the extensions from the header's end to the backing file's name.
    fn extensions(&mut self, bytes: &[u8], from: u64, end: u64) -> Result<()> {
        const END: u32 = 0;
        const BACKING_FORMAT: u32 = 0xe279_2aca;
        let end = (end.min(bytes.len() as u64)) as usize;
        let mut at = from as usize;
        while at + 8 <= end {
            let (kind, len) = (bytes.u32_be(at), bytes.u32_be(at + 4) as usize);
            if kind == END {
                break;
            }
            let Some(data) = bytes.get(at + 8..end).and_then(|rest| rest.get(..len)) else {
                let rule = "an extension that ends before the backing file's name";
                return Err(field(at as u64 + 4, "length", len as u64, rule).into());
            };
            if kind == BACKING_FORMAT {
                self.backing_format = Some(String::from_utf8_lossy(data).into_owned());
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(())
    }

    /// The bytes of a header of version 3, without backing file and extensions.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &3u32.to_be_bytes());
        put(20, &self.cluster_size.ilog2().to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_offset.to_be_bytes());
        put(56, &self.refcount_clusters.to_be_bytes());
        put(60, &self.snapshots.to_be_bytes());
        put(64, &self.snapshots_offset.to_be_bytes());
        put(72, &self.incompatible.to_be_bytes());
        put(96, &self.refcount_bits.ilog2().to_be_bytes());
        put(100, &(LENGTH as u32).to_be_bytes());
        put(104, &[u8::from(self.compression == Compression::Zstd)]);
        out
    }
}

fn supported(incompatible: u64) -> Result<()> {
    let what = if incompatible & EXTERNAL_DATA != 0 {
        "an external data file".to_owned()
    } else if incompatible & EXTENDED_L2 != 0 {
        "extended L2 entries".to_owned()
    } else {
        let unknown = incompatible & !(DIRTY | CORRUPT | COMPRESSION);
        if unknown == 0 {
            return Ok(());
        }
        format!("the incompatible features {unknown:#x}")
    };
    Err(Error::Unsupported(what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_header() -> impl Strategy<Value = Header> {
        (9u32..=21, any::<u32>(), 0u32..=6, any::<[u16; 4]>(), any::<bool>(), 0u64..4).prop_map(
            |(bits, size, order, places, zstd, state)| {
                let cluster_size = 1u64 << bits;
                let [l1, refcounts, clusters, snapshots] = places;
                let mut header = Header {
                    version: 3,
                    cluster_size,
                    size: size.into(),
                    l1_size: 0,
                    l1_offset: u64::from(l1) * cluster_size,
                    refcount_offset: u64::from(refcounts) * cluster_size,
                    refcount_clusters: clusters.into(),
                    refcount_bits: 1 << order,
                    snapshots: snapshots.into(),
                    snapshots_offset: u64::from(snapshots) * cluster_size,
                    incompatible: state | if zstd { COMPRESSION } else { 0 },
                    compression: if zstd { Compression::Zstd } else { Compression::Deflate },
                    backing: None,
                    backing_format: None,
                };
                header.l1_size = header.l1_needed() as u32;
                header
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn headers_come_back_and_noise_is_an_answer(
            header in any_header(), at in 0..LENGTH, noise: u8,
        ) {
            let mut bytes = header.encode().to_vec();
            bytes.resize(512, 0);
            prop_assert_eq!(&Header::parse(&bytes).unwrap(), &header);
            bytes[at] = noise;
            if let Ok(read) = Header::parse(&bytes) {
                prop_assert!(u64::from(read.l1_size) >= read.l1_needed());
            }
            prop_assert!(Header::parse(&bytes[..at.min(103)]).is_err());
        }
    }
}
