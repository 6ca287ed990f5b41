//! Commands of logical block provisioning, and those that say what blocks there are (SBC-3 4.7).
//!
//! An unmapped block reads as zeros (LBPRZ), so UNMAP asks the disk for zeros without writing
//! them, never to forget what it likes.

use std::sync::Arc;

use block_io::Disk;
use bytes::Bytes;
use nom::{
    IResult, Parser,
    number::complete::{be_u16, be_u32, be_u64},
};

use crate::{
    asc,
    call::Call,
    cdb::{Access, Extent},
    media::{write_carried, zero_carried},
    refusal::{Done, Refusal},
    unit::{Guard, MAX_SAME, MAX_UNMAP, MAX_UNMAP_DESCRIPTORS, Provisioning},
};

/// Bytes that are written at a time where one block is written over and over.
const CHUNK: u64 = 1 << 20;
/// Bytes about which the disk is asked at a time.
const WINDOW: u64 = 1 << 30;
/// PROVISIONING STATUS of unmapped blocks (SBC-3 5.5.2.3).
const DEALLOCATED: u8 = 1;
const ANCHORED: u8 = 2;
/// Most extents in one answer of GET LBA STATUS.
const MAX_EXTENTS: usize = 4096;
/// Most questions to the disk for one answer.
const MAX_WINDOWS: usize = 1024;

impl Call<'_> {
    /// WRITE SAME (SBC-3 5.47): one block, or zeros, over and over. No length does not mean all
    /// that is left (WSNZ), which would be too long for nearly all units.
    ///
    /// Blocks of a resource-provisioned unit are anchored when they are unmapped, asked for or not: there
    /// is nothing else that they could be.
    pub(crate) async fn write_same(&self, extent: Extent, unmap: bool, no_data: bool) -> Done {
        let blocks = u64::from(extent.blocks);
        let (offset, len) = self.unit.bytes(extent.lba, blocks)?;
        self.unit.writable()?;
        if blocks == 0 || blocks > u64::from(MAX_SAME) {
            return Err(Refusal::in_cdb(extent.length_at, Some(7)));
        }
        if self.data_out.len() != if no_data { 0 } else { self.unit.block() as usize } {
            return Err(Refusal::illegal(asc::FIELD_IN_INFORMATION_UNIT));
        }
        let disk = self.unit.disk();
        {
            let guard = self.unit.ranges.shared(extent.lba, blocks).await;
            self.still_allowed(Access::Write)?;
            self.target.tokens.changed(self.unit, offset, len);
            let zeros = self.data_out.iter().all(|byte| *byte == 0);
            // Only a thin unit is made zero in a way that gives space back, so that a later write to another
            // cannot fail for lack of it.
            let provisioning = self.unit.options.provisioning;
            if zeros && (unmap || provisioning.unmaps()) {
                zero_carried(guard, &disk, offset, len, provisioning).await?;
            } else {
                let block = self.unit.block() as usize;
                let data = if no_data { &vec![0; block] } else { &self.data_out[..] };
                repeat(guard, &disk, offset, len, data).await?;
            }
        }
        self.unit.settle(&*disk, false).await
    }

    /// UNMAP (SBC-3 5.32): all descriptors are looked at before the first is carried out.
    pub(crate) async fn unmap(&self, length: u32) -> Done {
        self.unit.writable()?;
        if length == 0 {
            return Ok(());
        }
        let list = self.list(length);
        let short = Refusal::illegal(asc::PARAMETER_LIST_LENGTH);
        let (rest, descriptors) = unmap_header(list).map_err(|_| short)?;
        let length = usize::from(descriptors).min(rest.len()) / 16 * 16;
        if length / 16 > MAX_UNMAP_DESCRIPTORS as usize {
            return Err(Refusal::in_list(2));
        }
        let mut ranges = Vec::with_capacity(length / 16);
        let mut total = 0u64;
        for descriptor in rest[..length].chunks_exact(16) {
            let (_, (lba, blocks)) = unmap_descriptor(descriptor).map_err(|_| short)?;
            let (offset, len) = self.unit.bytes(lba, blocks.into())?;
            total += u64::from(blocks);
            ranges.push((lba, u64::from(blocks), offset, len));
        }
        if total > u64::from(MAX_UNMAP) {
            return Err(Refusal::in_list(8));
        }
        let disk = self.unit.disk();
        for (lba, blocks, offset, len) in ranges.into_iter().filter(|range| range.1 > 0) {
            let guard = self.unit.ranges.shared(lba, blocks).await;
            self.still_allowed(Access::Write)?;
            self.target.tokens.changed(self.unit, offset, len);
            zero_carried(guard, &disk, offset, len, self.unit.options.provisioning).await?;
        }
        self.unit.settle(&*disk, false).await
    }

    /// GET LBA STATUS (SBC-3 5.4): as many extents as fit the allocation length.
    pub(crate) async fn lba_status(&self, lba: u64, allocation: u32) -> Result<Vec<u8>, Refusal> {
        let all = self.unit.blocks();
        if lba >= all {
            return Err(Refusal::out_of_range(lba));
        }
        let room = (allocation.saturating_sub(8) as usize / 16).clamp(1, MAX_EXTENTS);
        let extents = self.extents(lba, all, room).await?;
        let mut out = Vec::with_capacity(8 + 16 * extents.len());
        out.extend((4 + 16 * extents.len() as u32).to_be_bytes());
        out.extend([0; 4]);
        for Status { lba, blocks, mapped } in extents {
            out.extend(lba.to_be_bytes());
            out.extend(blocks.to_be_bytes());
            let unmapped = match self.unit.options.provisioning {
                Provisioning::Resource => ANCHORED,
                _ => DEALLOCATED,
            };
            out.extend([if mapped { 0 } else { unmapped }, 0, 0, 0]);
        }
        Ok(out)
    }

    async fn extents(&self, lba: u64, all: u64, room: usize) -> Result<Vec<Status>, Refusal> {
        let mut list = Extents { list: Vec::new(), next: lba, room, full: false };
        let provisioning = self.unit.options.provisioning;
        if !provisioning.unmaps() {
            list.until(all, true);
            return Ok(list.list);
        }
        let block = u64::from(self.unit.block());
        let disk = self.unit.disk();
        let size = all * block;
        for _ in 0..MAX_WINDOWS {
            let start = list.next * block;
            if start >= size || list.full {
                break;
            }
            let end = size.min(start + WINDOW);
            // What is anchored is told from what is mapped by what was written.
            let found = match provisioning {
                Provisioning::Resource => disk.written_ranges(start..end),
                _ => disk.allocated_ranges(start..end),
            };
            let found = found.await.map_err(Refusal::reading)?;
            for range in found {
                // A block of which any part is there is mapped.
                list.until(range.start / block, false);
                list.until(range.end.min(end).div_ceil(block), true);
            }
            list.until(end / block, false);
        }
        Ok(list.list)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status {
    lba: u64,
    blocks: u32,
    mapped: bool,
}

/// Extents that follow one another, those of one kind as one as far as 32 bits reach.
struct Extents {
    list: Vec<Status>,
    next: u64,
    room: usize,
    /// What comes next would be one too many.
    full: bool,
}

impl Extents {
    fn until(&mut self, end: u64, mapped: bool) {
        while self.next < end && !self.full {
            let blocks = u32::try_from(end - self.next).unwrap_or(u32::MAX);
            let longer = self
                .list
                .last_mut()
                .filter(|last| last.mapped == mapped && last.blocks.checked_add(blocks).is_some());
            if let Some(last) = longer {
                last.blocks += blocks;
            } else if self.list.len() == self.room {
                self.full = true;
                return;
            } else {
                self.list.push(Status { lba: self.next, blocks, mapped });
            }
            self.next += u64::from(blocks);
        }
    }
}

fn unmap_header(input: &[u8]) -> IResult<&[u8], u16> {
    let (rest, (_, descriptors, _)) = (be_u16, be_u16, be_u32).parse(input)?;
    Ok((rest, descriptors))
}

fn unmap_descriptor(input: &[u8]) -> IResult<&[u8], (u64, u32)> {
    (be_u64, be_u32).parse(input)
}

/// Writes one block over and over.
async fn repeat(
    mut guard: Guard,
    disk: &Arc<dyn Disk>,
    offset: u64,
    len: u64,
    block: &[u8],
) -> Done {
    let chunk = CHUNK.min(len) as usize / block.len() * block.len();
    let bytes = Bytes::from(block.repeat(chunk / block.len()));
    let mut at = 0;
    while at < len {
        let part = bytes.slice(..(len - at).min(bytes.len() as u64) as usize);
        let written = part.len() as u64;
        (guard, _) = write_carried(guard, disk, offset + at, part).await?;
        at += written;
    }
    Ok(())
}
