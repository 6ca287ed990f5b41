//! Block table entries and their arithmetic (MS-VHDX 2.5).
//!
//! ```text
//!  chunk ratio r = 2^23 * logical sector / block size   (payload blocks per bitmap block)
//!
//!  index:   0 .. r-1      r         r+1 .. 2r     2r+1   ...
//!           payload      bitmap 0   payload      bitmap 1
//! ```

use std::ops::Range;

use super::{MAX_FILE, MIB, metadata::Metadata};
use crate::{Damage, Fault, Structure};

/// Bytes per entry.
pub const ENTRY_SIZE: u64 = 8;
/// Entries in the 4 KiB page that the log changes as one.
pub const PAGE_ENTRIES: u64 = 512;
/// Bytes of such a page.
pub const PAGE_SIZE: u64 = 4096;

/// State of a payload block (MS-VHDX 2.5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Never written: reads as zeros here (from the parent in a differencing image).
    NotPresent,
    /// Content undefined: read as zeros here.
    Undefined,
    /// Reads as zeros.
    Zero,
    /// Given back by the user: reads as zeros here.
    Unmapped,
    /// Stored in this file.
    FullyPresent,
    /// Some sectors stored in this file; differencing images only.
    PartiallyPresent,
}

impl BlockState {
    /// From the three state bits; `None` for the reserved values 4 and 5.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::NotPresent),
            1 => Some(Self::Undefined),
            2 => Some(Self::Zero),
            3 => Some(Self::Unmapped),
            6 => Some(Self::FullyPresent),
            7 => Some(Self::PartiallyPresent),
            _ => None,
        }
    }

    /// The three state bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::NotPresent => 0,
            Self::Undefined => 1,
            Self::Zero => 2,
            Self::Unmapped => 3,
            Self::FullyPresent => 6,
            Self::PartiallyPresent => 7,
        }
    }
}

/// A 64-bit entry (MS-VHDX 2.5.1) as it stands in the file, not yet judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawEntry(pub u64);

impl RawEntry {
    /// An entry of this state for the space at `offset`, a multiple of 1 MiB.
    pub fn new(state: BlockState, offset: u64) -> Self {
        Self(u64::from(state.bits()) | (offset / MIB) << 20)
    }

    /// The three state bits.
    pub fn state_bits(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// The seventeen bits that must be zero.
    pub fn reserved(self) -> u64 {
        (self.0 >> 3) & 0x1ffff
    }

    /// Where the block is in the file. At most 2^64 - 1 MiB.
    pub fn offset(self) -> u64 {
        (self.0 >> 20) << 20
    }

    /// The space in the file that this payload entry owns, or `None`. States that keep their old
    /// place (MS-VHDX 2.5.1.1 "leave the field unmodified") own it.
    pub fn owned(self) -> Option<u64> {
        match BlockState::from_bits(self.state_bits()) {
            Some(BlockState::FullyPresent | BlockState::PartiallyPresent) => Some(self.offset()),
            Some(BlockState::Undefined | BlockState::Unmapped) if self.offset() != 0 => {
                Some(self.offset())
            }
            _ => None,
        }
    }

    /// Where a payload block is that is wholly in this file.
    pub fn data(self) -> Option<u64> {
        (self.state_bits() == BlockState::FullyPresent.bits()).then(|| self.offset())
    }

    /// Whether some of a payload block is in this file.
    pub fn is_stored(self) -> bool {
        matches!(self.content(), Content::Here(_) | Content::Partly(_))
    }

    /// Where reads of this payload entry go.
    pub fn content(self) -> Content {
        match BlockState::from_bits(self.state_bits()) {
            Some(BlockState::FullyPresent) => Content::Here(self.offset()),
            Some(BlockState::PartiallyPresent) => Content::Partly(self.offset()),
            Some(BlockState::NotPresent) => Content::Below,
            _ => Content::Zero,
        }
    }
}

/// Where the content of a payload block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// In this file.
    Here(u64),
    /// In this file where the sector bitmap says so, else in the parent.
    Partly(u64),
    /// In the parent; zeros without one.
    Below,
    /// Zeros.
    Zero,
}

/// Counts and places in the table of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatLayout {
    /// Bytes per payload block.
    pub block_size: u64,
    /// Payload blocks per bitmap block.
    pub chunk_ratio: u64,
    /// Payload blocks of the disk.
    pub blocks: u64,
    /// Entries the table needs.
    pub entries: u64,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// Sectors may be in a parent, so there may be sector bitmaps.
    pub has_parent: bool,
}

impl BatLayout {
    /// The arithmetic of an image with this metadata.
    pub fn new(metadata: &Metadata) -> Self {
        let block_size = u64::from(metadata.block_size);
        // At least 16 (512-byte sectors, 256 MiB blocks), at most 32768.
        let chunk_ratio = (u64::from(metadata.logical_sector) << 23) / block_size;
        let blocks = metadata.disk_size.div_ceil(block_size);
        let entries = if metadata.has_parent {
            blocks.div_ceil(chunk_ratio) * (chunk_ratio + 1)
        } else {
            // The disk has at least one block.
            blocks + (blocks - 1) / chunk_ratio
        };
        let (disk_size, has_parent) = (metadata.disk_size, metadata.has_parent);
        Self { block_size, chunk_ratio, blocks, entries, disk_size, has_parent }
    }

    /// Index of a payload block's entry.
    pub fn index(&self, block: u64) -> u64 {
        // Both are powers of two; a division would be a good part of what a read costs.
        block + (block >> self.chunk_ratio.trailing_zeros())
    }

    /// The payload block of an entry, or `None` for a bitmap block's.
    pub fn block(&self, index: u64) -> Option<u64> {
        let (chunk, within) = (index / (self.chunk_ratio + 1), index % (self.chunk_ratio + 1));
        (within != self.chunk_ratio).then(|| chunk * self.chunk_ratio + within)
    }

    /// Index of the sector bitmap's entry for a payload block, and the byte of the bitmap block
    /// at which its bits begin.
    pub fn bitmap(&self, block: u64) -> (u64, u64) {
        let (chunk, within) = (block / self.chunk_ratio, block % self.chunk_ratio);
        // 2^23 bits of a bitmap block (MS-VHDX 2.4) shared by the payload blocks of a chunk.
        (chunk * (self.chunk_ratio + 1) + self.chunk_ratio, within * (MIB / self.chunk_ratio))
    }

    /// The bytes of the file that an entry owns.
    pub fn claim(&self, index: u64, entry: RawEntry) -> Option<Range<u64>> {
        let len = if self.block(index).is_some() { self.block_size } else { MIB };
        entry.owned().map(|start| start..start + len)
    }

    /// Bytes of the disk within a block: less than a block only in the last.
    pub fn used(&self, block: u64) -> u64 {
        (self.disk_size - block * self.block_size).min(self.block_size)
    }

    /// Pages of 4 KiB that hold the entries.
    pub fn pages(&self) -> u64 {
        self.entries.div_ceil(PAGE_ENTRIES)
    }

    /// Checks one entry by itself. `bat` is the region's offset and `file_len` the file's length.
    ///
    /// # Errors
    /// The [`Damage`]: a state that is none, or a block outside of the file.
    pub fn check_entry(
        &self,
        index: u64,
        entry: RawEntry,
        bat: u64,
        file_len: u64,
    ) -> Result<(), Damage> {
        let fault = |fault| Err(Damage::new(Structure::Bat, bat + index * ENTRY_SIZE, fault));
        if entry.reserved() != 0 {
            let (field, value, rule) = ("Reserved", entry.reserved(), "must be zero");
            return fault(Fault::Field { field, value, rule });
        }
        let bits = entry.state_bits();
        let state = BlockState::from_bits(bits);
        let (known, used) = match self.block(index) {
            // Blocks past the disk's end fill up the last chunk of a differencing image.
            Some(block) if block >= self.blocks => (bits == 0, 0),
            Some(block) => {
                let partly = state == Some(BlockState::PartiallyPresent);
                (state.is_some() && (self.has_parent || !partly), self.used(block))
            }
            // Without a parent there are no sector bitmaps (MS-VHDX 2.5.1.2).
            None => (bits == 0 || self.has_parent && bits == BlockState::FullyPresent.bits(), MIB),
        };
        if !known {
            return fault(Fault::EntryState { index, state: bits });
        }
        let Some(start) = entry.owned() else { return Ok(()) };
        if start < MIB {
            let rule = "within the header section";
            return fault(Fault::EntryOffset { index, start, rule });
        }
        // The last block may be cut to what the disk has of it.
        let end = start.checked_add(used).filter(|end| *end <= file_len);
        if end.is_none() || start > MAX_FILE - self.block_size {
            let rule = "past the end of the file";
            return fault(Fault::EntryOffset { index, start, rule });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Guid;

    fn layout(disk_size: u64, block_size: u32, logical_sector: u32) -> BatLayout {
        BatLayout::new(&Metadata {
            block_size,
            leave_allocated: false,
            has_parent: false,
            disk_size,
            disk_id: Guid::ZERO,
            logical_sector,
            physical_sector: 4096,
            parent: None,
        })
    }

    #[test]
    fn bits_of_a_block_lie_in_the_bitmap_behind_its_chunk() {
        let l = layout(64 << 30, 2 << 20, 512);
        assert_eq!((l.chunk_ratio, l.index(2047), l.index(2048)), (2048, 2047, 2049));
        assert_eq!(l.bitmap(0), (2048, 0));
        // 4096 sectors of a block are 512 bytes of bits.
        assert_eq!(l.bitmap(3), (2048, 3 * 512));
        assert_eq!(l.bitmap(2048 + 5), (2049 + 2048, 5 * 512));
        let l = layout(64 << 30, 256 << 20, 512);
        assert_eq!(l.bitmap(17), (33, 64 << 10));
    }

    #[test]
    fn bitmap_entries_are_interleaved() {
        let l = layout(9 << 30, 1 << 28, 512);
        assert_eq!((l.chunk_ratio, l.blocks, l.entries), (16, 36, 38));
        assert_eq!([0, 15, 16, 31, 32].map(|b| l.index(b)), [0, 15, 17, 32, 34]);
        assert_eq!(l.block(16), None);
        assert_eq!(l.block(33), None);
        for block in 0..l.blocks {
            assert_eq!(l.block(l.index(block)), Some(block));
        }
        assert_eq!(layout(64 << 40, 1 << 20, 512).entries, (1 << 26) + (1 << 14) - 1);
        assert_eq!(layout(64 << 40, 1 << 20, 4096).chunk_ratio, 32768);
    }

    #[test]
    fn entries_hold_state_and_megabytes() {
        let e = RawEntry::new(BlockState::FullyPresent, 0x1234 * MIB);
        assert_eq!(e.0, 0x1_2340_0006);
        assert_eq!((e.data(), e.owned()), (Some(0x1234 * MIB), Some(0x1234 * MIB)));
        assert_eq!(RawEntry::new(BlockState::Zero, 5 * MIB).owned(), None);
    }
}
