//! What the file systems on a disk do not use.
//!
//! ```text
//!  disk ─► partitions (MBR, GPT; none: one volume) ─► ext2/3/4, NTFS ─► free ranges
//! ```

use std::{ops::Range, sync::Arc};

use block_io::{Disk, File};

use super::{Image, ext4, ntfs};
use crate::{Error, Format, Result, bytes::Fields};

/// Partitions looked at.
const MAX_PARTITIONS: u32 = 128;

/// Why a file system's free space is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It was not ended in an orderly way, or has errors; or it is in use.
    #[error("it was not unmounted in an orderly way")]
    NotClean,
    /// It has a feature that is not known here.
    #[error("it has features that are not known here")]
    Feature,
    /// Its structures contradict each other.
    #[error("its structures contradict each other")]
    Contradiction,
}

/// A part of a disk that may hold a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where it is on the disk, in bytes.
    pub range: Range<u64>,
    /// What it does not use, ascending, in bytes of the disk; `None` if it is no file system that
    /// is known here; or why it is not known.
    pub free: std::result::Result<Option<Vec<Range<u64>>>, Refusal>,
}

/// Looks for file systems on a disk and for what they do not use.
///
/// # Errors
/// What the disk says.
pub async fn free_space(disk: &dyn Disk) -> Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    for range in partitions(disk).await? {
        let free = match ext4::free(disk, range.clone()).await? {
            Ok(None) => ntfs::free(disk, range.clone()).await?,
            known => known,
        };
        volumes.push(Volume { range, free });
    }
    Ok(volumes)
}

/// The partitions of a disk; all of it if there are none.
async fn partitions(disk: &dyn Disk) -> Result<Vec<Range<u64>>> {
    let size = disk.geometry().size;
    let sector = u64::from(disk.geometry().logical_sector);
    let first = ext4::read(disk, 0, 512, size).await?;
    let whole = std::iter::once(0..size).collect();
    // The boot sector of NTFS ends as a partition table does.
    if first.u16(510) != 0xaa55 || ntfs::is_boot_sector(&first) {
        return Ok(whole);
    }
    let mut found = Vec::new();
    for i in 0..4 {
        let at = 446 + 16 * i;
        let (kind, start, count) = (first.get(at + 4), first.u32(at + 8), first.u32(at + 12));
        if kind == Some(&0xee) {
            return gpt(disk, sector).await;
        }
        // What is within an extended partition is left alone.
        let plain = !matches!(kind, None | Some(0 | 0x05 | 0x0f | 0x85));
        let range = u64::from(start) * sector..(u64::from(start) + u64::from(count)) * sector;
        if plain && !range.is_empty() && range.end <= size {
            found.push(range);
        }
    }
    Ok(found)
}

/// The partitions of a GUID partition table; none if it is not whole.
async fn gpt(disk: &dyn Disk, sector: u64) -> Result<Vec<Range<u64>>> {
    let size = disk.geometry().size;
    let header = ext4::read(disk, sector, 512, size).await?;
    let mut summed = header.get(..92).unwrap_or_default().to_vec();
    if !header.starts_with(b"EFI PART") || header.u32(12) != 92 {
        return Ok(Vec::new());
    }
    summed[16..20].fill(0);
    let (count, len) = (header.u32(80), header.u32(84));
    if crc32(&summed) != header.u32(16) || count > MAX_PARTITIONS || !(128..=4096).contains(&len) {
        return Ok(Vec::new());
    }
    let Some(at) = header.u64(72).checked_mul(sector) else { return Ok(Vec::new()) };
    let table = ext4::read(disk, at, count as usize * len as usize, size).await?;
    if crc32(&table) != header.u32(88) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in table.chunks_exact(len as usize).filter(|entry| entry[..16] != [0; 16]) {
        let (first, last) = (entry.u64(32), entry.u64(40));
        let end = last.checked_add(1).and_then(|end| end.checked_mul(sector));
        if let Some(end) = end.filter(|end| *end <= size && first <= last) {
            found.push(first * sector..end);
        }
    }
    Ok(found)
}

/// CRC-32 of IEEE 802.3, as the partition table has it. It sums up 16 KiB at most.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 != 0 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// Gives up what the file systems on the disk do not use: it reads as zeros then, or as what it was.
/// Blocks that hold nothing else are dropped by [`super::compact()`] afterwards. Returns the bytes
/// that were free.
///
/// # Errors
/// [`Error::FileSystem`] for a file system whose free space cannot be known for certain; nothing is
/// given up then, of any. What the image says.
pub async fn discard_free(
    file: Arc<dyn File>,
    format: Format,
    parent: Option<Arc<dyn Disk>>,
) -> Result<u64> {
    let image = Image::open(file, format, parent, false).await?;
    let disk = image.disk();
    let sector = u64::from(disk.geometry().logical_sector);
    let mut free = Vec::new();
    for volume in free_space(disk).await? {
        let at = volume.range.start;
        match volume.free {
            Ok(ranges) => free.extend(ranges.into_iter().flatten()),
            Err(refusal) => return Err(Error::FileSystem { at, refusal }),
        }
    }
    let mut given_up = 0;
    for range in free {
        let (start, end) = (range.start.next_multiple_of(sector), range.end / sector * sector);
        if start < end {
            disk.discard(start, end - start).await?;
            given_up += end - start;
        }
    }
    match &image {
        Image::Vhdx(disk) => disk.end().await?,
        Image::Vhd(disk) => disk.flush().await?,
    }
    Ok(given_up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_partition_table() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
