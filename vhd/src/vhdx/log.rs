//! Log entries and the search for the ones to replay (MS-VHDX 2.3).
//!
//! ```text
//!  entry:  | header 64 B, descriptors 32 B each ... | data sector | data sector | ...
//!            4 KiB sectors ──────────────────────────────────────────────────────►
//! ```

use super::{MAX_FILE, MIB};
use crate::{
    Guid,
    bytes::{Fields, checksum, put},
};

/// The unit of everything in the log, in bytes.
pub const SECTOR: usize = 4096;
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;

/// One change that an entry describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// 4 KiB to put at `offset` of the file.
    Data {
        /// A multiple of 4 KiB.
        offset: u64,
        /// What to put there.
        data: Box<[u8; SECTOR]>,
    },
    /// Zeros to put at `offset` of the file.
    Zero {
        /// A multiple of 4 KiB.
        offset: u64,
        /// Bytes, a multiple of 4 KiB.
        length: u64,
    },
}

/// A log entry (MS-VHDX 2.3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// One greater than the entry's before.
    pub sequence: u64,
    /// Offset in the log of the oldest entry still to be replayed with this one.
    pub tail: u32,
    /// Must equal the header's for the entry to count.
    pub guid: Guid,
    /// The file was at least this long, for certain, when the entry was written.
    pub flushed_file_offset: u64,
    /// Every structure of the file ends before this.
    pub last_file_offset: u64,
    /// In the order to apply.
    pub updates: Vec<Update>,
}

/// Sectors that hold the header and `count` descriptors.
fn descriptor_sectors(count: u64) -> u64 {
    (HEADER as u64 + DESCRIPTOR as u64 * count).div_ceil(SECTOR as u64)
}

/// How many data updates fit in an entry of at most `length` bytes.
pub fn data_capacity(length: u64) -> usize {
    let sectors = length / SECTOR as u64;
    let mut count = sectors.saturating_sub(1);
    while count > 0 && descriptor_sectors(count) + count > sectors {
        count -= 1;
    }
    count as usize
}

impl LogEntry {
    /// The entry's bytes, whole sectors, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let head = descriptor_sectors(self.updates.len() as u64) as usize * SECTOR;
        let data = self.updates.iter().filter(|u| matches!(u, Update::Data { .. })).count();
        let mut buf = vec![0; head + data * SECTOR];
        let length = buf.len() as u32;
        put(&mut buf, 0, b"loge");
        put(&mut buf, 8, &length.to_le_bytes());
        put(&mut buf, 12, &self.tail.to_le_bytes());
        put(&mut buf, 16, &self.sequence.to_le_bytes());
        put(&mut buf, 24, &(self.updates.len() as u32).to_le_bytes());
        put(&mut buf, 32, &self.guid.to_bytes());
        put(&mut buf, 48, &self.flushed_file_offset.to_le_bytes());
        put(&mut buf, 56, &self.last_file_offset.to_le_bytes());
        let mut sector_at = head;
        for (i, update) in self.updates.iter().enumerate() {
            let at = HEADER + DESCRIPTOR * i;
            put(&mut buf, at + 24, &self.sequence.to_le_bytes());
            match update {
                Update::Data { offset, data } => {
                    put(&mut buf, at, b"desc");
                    put(&mut buf, at + 4, &data[SECTOR - 4..]);
                    put(&mut buf, at + 8, &data[..8]);
                    put(&mut buf, at + 16, &offset.to_le_bytes());
                    put(&mut buf, sector_at, b"data");
                    put(&mut buf, sector_at + 4, &((self.sequence >> 32) as u32).to_le_bytes());
                    put(&mut buf, sector_at + 8, &data[8..SECTOR - 4]);
                    let low = (self.sequence as u32).to_le_bytes();
                    put(&mut buf, sector_at + SECTOR - 4, &low);
                    sector_at += SECTOR;
                }
                Update::Zero { offset, length } => {
                    put(&mut buf, at, b"zero");
                    put(&mut buf, at + 8, &length.to_le_bytes());
                    put(&mut buf, at + 16, &offset.to_le_bytes());
                }
            }
        }
        let crc = checksum(&buf, 4);
        put(&mut buf, 4, &crc.to_le_bytes());
        buf
    }

    /// The entry that begins at `at` (a multiple of 4 KiB) of the ring `log`, or `None` if there
    /// is no valid one with this `guid`.
    ///
    /// The sectors are looked at one by one before anything is summed up or copied, and an
    /// entry's inner sectors cannot look like an entry's first: so walking a whole log costs no
    /// more than a small multiple of its length, whatever is in it.
    pub fn parse(log: &[u8], at: usize, guid: Guid) -> Option<Self> {
        let length = Self::measure(log, at, guid)?;
        let mut buf = Vec::with_capacity(length);
        let first = length.min(log.len() - at);
        buf.extend_from_slice(&log[at..at + first]);
        buf.extend_from_slice(&log[..length - first]);
        if buf.u32(4) != checksum(&buf, 4) {
            return None;
        }
        let count = buf.u32(24) as usize;
        let mut sector_at = descriptor_sectors(count as u64) as usize * SECTOR;
        let mut updates = Vec::with_capacity(count);
        for i in 0..count {
            let at = HEADER + DESCRIPTOR * i;
            let offset = buf.u64(at + 16);
            if buf[at..].starts_with(b"desc") {
                let mut data = Box::new([0; SECTOR]);
                data[..8].copy_from_slice(&buf[at + 8..at + 16]);
                data[8..SECTOR - 4].copy_from_slice(&buf[sector_at + 8..sector_at + SECTOR - 4]);
                data[SECTOR - 4..].copy_from_slice(&buf[at + 4..at + 8]);
                sector_at += SECTOR;
                updates.push(Update::Data { offset, data });
            } else {
                updates.push(Update::Zero { offset, length: buf.u64(at + 8) });
            }
        }
        Some(Self {
            sequence: buf.u64(16),
            tail: buf.u32(12),
            guid,
            flushed_file_offset: buf.u64(48),
            last_file_offset: buf.u64(56),
            updates,
        })
    }

    /// Checks all but the checksum and returns the entry's length in bytes.
    fn measure(log: &[u8], at: usize, guid: Guid) -> Option<usize> {
        let sector = |i: usize| {
            let start = (at + i * SECTOR) % log.len();
            &log[start..start + SECTOR]
        };
        let head = sector(0);
        if !head.starts_with(b"loge") || head.guid(32) != guid {
            return None;
        }
        let (length, tail) = (head.u32(8) as usize, head.u32(12) as usize);
        let (sequence, count) = (head.u64(16), head.u32(24) as usize);
        let sectors = length / SECTOR;
        let head_sectors = descriptor_sectors(count as u64) as usize;
        let files = [head.u64(48), head.u64(56)];
        if length == 0
            || !length.is_multiple_of(SECTOR)
            || length > log.len()
            || tail >= log.len()
            || !tail.is_multiple_of(SECTOR)
            || sequence == 0
            || head_sectors > sectors
            || files.iter().any(|f| !f.is_multiple_of(MIB) || *f > MAX_FILE)
        {
            return None;
        }
        let mut data = 0;
        for i in 0..count {
            let place = HEADER + DESCRIPTOR * i;
            let descriptor = &sector(place / SECTOR)[place % SECTOR..][..DESCRIPTOR];
            let offset = descriptor.u64(16);
            let length = match &descriptor[..4] {
                b"desc" => {
                    data += 1;
                    SECTOR as u64
                }
                b"zero" => descriptor.u64(8),
                _ => return None,
            };
            if descriptor.u64(24) != sequence
                || !offset.is_multiple_of(SECTOR as u64)
                || !length.is_multiple_of(SECTOR as u64)
                || offset.checked_add(length).is_none_or(|end| end > MAX_FILE)
            {
                return None;
            }
        }
        if head_sectors + data != sectors {
            return None;
        }
        for i in head_sectors..sectors {
            let sector = sector(i);
            if !sector.starts_with(b"data")
                || u64::from(sector.u32(4)) != sequence >> 32
                || sector.u32(SECTOR - 4) != sequence as u32
            {
                return None;
            }
        }
        Some(length)
    }
}

/// What is known of a valid entry while the log is searched.
#[derive(Debug, Clone, Copy)]
struct Found {
    at: usize,
    length: usize,
    tail: usize,
    sequence: u64,
}

/// Finds the active sequence (MS-VHDX 2.3.3): the entries to replay, in order, or `None` if there
/// is no valid sequence. `log` is the whole log, whole sectors.
///
/// Entries that follow each other in the ring with consecutive sequence numbers form chains. A
/// chain counts if its last entry's tail is one of its entries; the one whose last entry has the
/// greatest sequence number is active.
pub fn active_sequence(log: &[u8], guid: Guid) -> Option<Vec<LogEntry>> {
    let sectors = log.len() / SECTOR;
    let mut found: Vec<Option<Found>> = vec![None; sectors];
    for (i, slot) in found.iter_mut().enumerate() {
        let at = i * SECTOR;
        // Parsed once to be judged and dropped: only the active ones are kept in memory.
        if let Some(entry) = LogEntry::parse(log, at, guid) {
            let length = LogEntry::measure(log, at, guid)?;
            *slot = Some(Found { at, length, tail: entry.tail as usize, sequence: entry.sequence });
        }
    }
    let next = |f: &Found| -> Option<Found> {
        found[(f.at + f.length) % log.len() / SECTOR].filter(|n| n.sequence == f.sequence + 1)
    };
    let mut continues = vec![false; sectors];
    for n in found.iter().flatten().filter_map(next) {
        continues[n.at / SECTOR] = true;
    }
    let mut best: Option<Vec<Found>> = None;
    for start in found.iter().flatten().filter(|f| !continues[f.at / SECTOR]) {
        let mut chain = vec![*start];
        while let Some(n) = chain.last().and_then(next) {
            chain.push(n);
        }
        let (head, best_head) = (chain.last()?, best.as_ref().and_then(|b| b.last()));
        if best_head.is_some_and(|b| b.sequence >= head.sequence) {
            continue;
        }
        if let Some(first) = chain.iter().position(|f| f.at == head.tail) {
            chain.drain(..first);
            best = Some(chain);
        }
    }
    best?.iter().map(|f| LogEntry::parse(log, f.at, guid)).collect()
}
