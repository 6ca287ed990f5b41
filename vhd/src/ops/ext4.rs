//! Which blocks of an ext2, ext3 or ext4 file system are free.
//!
//! ```text
//!  superblock (at 1024) ─► group descriptors ─► one block bitmap for each group
//! ```
//!
//! A bitmap is believed only if the file system was ended in an orderly way, all its features are
//! known, and the bitmap agrees with its checksum and with the count of free blocks.

use std::ops::Range;

use block_io::Disk;

use super::free::Refusal;
use crate::{Result, bytes::Fields};

const MAGIC: u16 = 0xef53;
/// Bytes of a superblock, and where it stands.
const SUPER: usize = 1024;
/// Compression, an external journal and groups with descriptors of their own change what is read
/// here; the others do not.
const KNOWN_INCOMPAT: u32 = 0x2 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x3_0000;
const RECOVER: u32 = 0x4;
const WIDE: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// All but clusters of blocks and orphans that wait.
const KNOWN_RO_COMPAT: u32 =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x8000;
const METADATA_CSUM: u32 = 0x400;
const CLEAN: u16 = 1;
/// The group's bitmap was never written.
const BLOCK_UNINIT: u16 = 2;

/// A superblock that is within its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Superblock {
    block: u64,
    blocks: u64,
    first: u64,
    per_group: u64,
    descriptor: usize,
    seed: u32,
    checksums: bool,
}

/// What the superblock at the beginning of a volume of `len` bytes says; `None` if there is none.
fn parse(bytes: &[u8], len: u64) -> std::result::Result<Option<Superblock>, Refusal> {
    if bytes.len() < SUPER || bytes.u16(56) != MAGIC {
        return Ok(None);
    }
    let (incompat, ro_compat) = (bytes.u32(96), bytes.u32(100));
    if incompat & RECOVER != 0 {
        return Err(Refusal::NotClean);
    }
    // An orphan file that is in use (0x10000 of these) waits for the next mount.
    if incompat & !KNOWN_INCOMPAT != 0 || ro_compat & !KNOWN_RO_COMPAT != 0 {
        return Err(Refusal::Feature);
    }
    if bytes.u16(58) != CLEAN || bytes.u32(232) != 0 {
        return Err(Refusal::NotClean);
    }
    let shift = bytes.u32(24);
    let wide = incompat & WIDE != 0;
    let high = if wide { u64::from(bytes.u32(336)) << 32 } else { 0 };
    let blocks = high | u64::from(bytes.u32(4));
    let (first, per_group) = (u64::from(bytes.u32(20)), u64::from(bytes.u32(32)));
    let descriptor = if wide { usize::from(bytes.u16(254)) } else { 32 };
    let block = if shift <= 6 { 1024u64 << shift } else { 0 };
    let fits = blocks.checked_mul(block).is_some_and(|bytes| bytes <= len);
    if block == 0
        || !fits
        || first >= blocks
        || per_group == 0
        || per_group > 8 * block
        || !per_group.is_multiple_of(8)
        || !(32..=1024).contains(&descriptor)
        || !descriptor.is_power_of_two()
        || wide && descriptor < 64
    {
        return Err(Refusal::Contradiction);
    }
    let seed = match incompat & CSUM_SEED {
        0 => crc(u32::MAX, &bytes[104..120]),
        _ => bytes.u32(624),
    };
    let checksums = ro_compat & METADATA_CSUM != 0;
    Ok(Some(Superblock { block, blocks, first, per_group, descriptor, seed, checksums }))
}

/// CRC-32C as the file system has it: without the inversions at both ends.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The free parts of the file system in `volume` of the disk, ascending; `None` if there is no such
/// file system.
pub(super) async fn free(
    disk: &dyn Disk,
    volume: Range<u64>,
) -> Result<std::result::Result<Option<Vec<Range<u64>>>, Refusal>> {
    let len = volume.end - volume.start;
    let bytes = read(disk, volume.start + SUPER as u64, SUPER, volume.end).await?;
    let superblock = match parse(&bytes, len) {
        Ok(Some(superblock)) => superblock,
        Ok(None) => return Ok(Ok(None)),
        Err(refusal) => return Ok(Err(refusal)),
    };
    let Superblock { block, blocks, first, per_group, descriptor, .. } = superblock;
    let groups = (blocks - first).div_ceil(per_group);
    let table = volume.start + (first + 1) * block;
    let mut found: Vec<Range<u64>> = Vec::new();
    for group in 0..groups {
        let at = table + group * descriptor as u64;
        let about = read(disk, at, descriptor, volume.end).await?;
        if about.len() < descriptor {
            return Ok(Err(Refusal::Contradiction));
        }
        if about.u16(18) & BLOCK_UNINIT != 0 {
            continue;
        }
        let wide = descriptor >= 64;
        let high = |at| if wide { u64::from(about.u32(at)) } else { 0 };
        let place = high(32) << 32 | u64::from(about.u32(0));
        let start = first + group * per_group;
        let count = per_group.min(blocks - start);
        if place >= blocks {
            return Ok(Err(Refusal::Contradiction));
        }
        let bitmap = volume.start + place * block;
        let bitmap = read(disk, bitmap, block as usize, volume.end).await?;
        if bitmap.len() < block as usize {
            return Ok(Err(Refusal::Contradiction));
        }
        if superblock.checksums {
            let computed = crc(superblock.seed, &bitmap[..(per_group / 8) as usize]);
            let low = computed as u16 == about.u16(24);
            let high = !wide || (computed >> 16) as u16 == about.u16(56);
            if !low || !high {
                return Ok(Err(Refusal::Contradiction));
            }
        }
        let is_free = |i: u64| bitmap[(i / 8) as usize] >> (i % 8) & 1 == 0;
        let free = (0..count).filter(|i| is_free(*i)).count() as u64;
        let said = u64::from(about.u16(12)) | if wide { u64::from(about.u16(44)) << 16 } else { 0 };
        if free != said {
            return Ok(Err(Refusal::Contradiction));
        }
        for i in (0..count).filter(|i| is_free(*i)) {
            let at = volume.start + (start + i) * block;
            match found.last_mut() {
                Some(last) if last.end == at => last.end = at + block,
                _ => found.push(at..at + block),
            }
        }
    }
    Ok(Ok(Some(found)))
}

/// Reads bytes of the disk, which need not be whole sectors; fewer at `end`.
pub(super) async fn read(disk: &dyn Disk, at: u64, len: usize, end: u64) -> Result<Vec<u8>> {
    let sector = u64::from(disk.geometry().logical_sector);
    let end = end.min(disk.geometry().size);
    let stop = at.saturating_add(len as u64).min(end);
    if at >= stop {
        return Ok(Vec::new());
    }
    let (low, high) = (at / sector * sector, stop.next_multiple_of(sector));
    let mut bytes = vec![0; (high - low) as usize];
    disk.read_at(low, &mut bytes).await?;
    Ok(bytes[(at - low) as usize..(stop - low) as usize].to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is in a superblock, what is believed of it lies within the volume.
        #[test]
        fn a_superblock_is_within_its_volume(
            mut bytes in prop::collection::vec(any::<u8>(), SUPER), plain: bool, len in 0u64..1 << 45,
            shift in 0u32..8, blocks: u32, per_group in 0u32..70_000,
        ) {
            bytes[56..58].copy_from_slice(&MAGIC.to_le_bytes());
            if plain {
                bytes[58..60].copy_from_slice(&CLEAN.to_le_bytes());
                bytes[232..236].fill(0);
                bytes[92..104].fill(0);
                bytes[24..28].copy_from_slice(&shift.to_le_bytes());
                bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
                bytes[32..36].copy_from_slice(&(per_group / 8 * 8).to_le_bytes());
                bytes[20..24].fill(0);
            }
            if let Ok(Some(found)) = parse(&bytes, len) {
                prop_assert!(found.blocks * found.block <= len && found.first < found.blocks);
                prop_assert!((8..=8 * found.block).contains(&found.per_group));
                let expected = (1024 << shift, u64::from(blocks));
                prop_assert!(!plain || (found.block, found.blocks) == expected);
            }
        }
    }
}
