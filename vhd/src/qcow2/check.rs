//! Judging an image: its tables, and its reference counts against what they count.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use block_io::File;

use super::{
    disk::{header, table},
    entry::{Cluster, l2_offset},
    header::{CORRUPT, DIRTY, Header, MAX_L1},
    info::snapshots,
};
use crate::{Damage, Error, Fault, Result, Structure, vhdx::Report};

/// Clusters of a file whose references are counted; the tables of larger files are only read.
const COUNTED: u64 = 64 << 20;

/// Checks the image in `file` without writing to it.
///
/// # Errors
/// Only what keeps the check from being made: a failing file, an unsupported image.
pub async fn check(file: Arc<dyn File>) -> Result<Report> {
    let mut report = Report::default();
    match judge(&*file, &mut report).await {
        Ok(()) => Ok(report),
        Err(Error::Damaged(damage)) => {
            report.error(damage);
            Ok(report)
        }
        Err(error) => Err(error),
    }
}

async fn judge(file: &dyn File, report: &mut Report) -> Result<()> {
    let (header, file_len) = header(file).await?;
    for (bit, what) in [(DIRTY, "it was not closed"), (CORRUPT, "it was found damaged before")] {
        if header.incompatible & bit != 0 {
            let (field, value) = ("incompatible_features", header.incompatible);
            let fault = Fault::Field { field, value, rule: what };
            let damage = Damage::new(Structure::Qcow2Header, 72, fault);
            // With wrong counts nothing that is read is wrong.
            if bit == DIRTY { report.warn(damage) } else { report.error(damage) }
        }
    }
    report.blocks = header.size.div_ceil(header.cluster_size);
    let clusters = file_len.div_ceil(header.cluster_size);
    let counts = if clusters <= COUNTED { vec![0; clusters as usize] } else { Vec::new() };
    let mut judge = Judge { file, header: &header, file_len, counts, report };
    judge.count(0..1);
    let l1 = (header.l1_offset, u64::from(header.l1_size));
    judge.tables(l1, true).await?;
    let found = snapshots(file, &header).await?;
    let mut walked = BTreeMap::from([(l1.0, l1.0 + l1.1 * 8)]);
    for snapshot in &found {
        let entries = u64::from(snapshot.l1.1);
        if entries * 8 > MAX_L1 || !snapshot.l1.0.is_multiple_of(header.cluster_size) {
            let (field, value) = ("l1_size", entries);
            let fault = Fault::Field { field, value, rule: "at most 32 MiB, at a cluster" };
            return Err(Damage::new(Structure::Snapshots, header.snapshots_offset, fault).into());
        }
        // Each has a table of its own: else a small file with many would be work for hours.
        let (start, len) = (snapshot.l1.0, entries * 8);
        let other = walked.range(..start.saturating_add(len)).next_back();
        if len > 0 && other.is_some_and(|(_, end)| *end > start) {
            let fault = Fault::Overlap { start, len, other: "another L1 table".to_owned() };
            let place = header.snapshots_offset;
            judge.report.error(Damage::new(Structure::Snapshots, place, fault));
            continue;
        }
        walked.insert(start, start.saturating_add(len));
        judge.tables((start, entries), false).await?;
    }
    if header.snapshots > 0 {
        // The table's own length is known by reading it; it is given no names of its own here.
        judge.count(header.snapshots_offset..header.snapshots_offset + 1);
    }
    let dirty = header.incompatible & DIRTY != 0;
    judge.references(dirty, !found.is_empty()).await
}

struct Judge<'a> {
    file: &'a dyn File,
    header: &'a Header,
    file_len: u64,
    /// How often each cluster of the file is used; empty if they are too many.
    counts: Vec<u32>,
    report: &'a mut Report,
}

impl Judge<'_> {
    /// Counts a use of the clusters of a range.
    fn count(&mut self, range: Range<u64>) {
        let size = self.header.cluster_size;
        for cluster in range.start / size..range.end.div_ceil(size) {
            if let Some(count) = self.counts.get_mut(cluster as usize) {
                *count = count.saturating_add(1);
            }
        }
    }

    fn entry(&mut self, structure: Structure, at: u64, index: u64, start: u64) {
        let rule = "not a cluster's place in the file";
        let fault = Fault::EntryOffset { index, start, rule };
        self.report.error(Damage::new(structure, at, fault));
    }

    /// Walks an L1 table and all below it.
    async fn tables(&mut self, (at, entries): (u64, u64), active: bool) -> Result<()> {
        let l1 = table(self.file, Structure::L1Table, at, entries).await?;
        self.count(at..at + entries * 8);
        let size = self.header.cluster_size;
        let mut seen = HashSet::new();
        for (index, raw) in l1.into_iter().enumerate() {
            let offset = l2_offset(raw);
            if offset == 0 {
                continue;
            }
            let place = at + index as u64 * 8;
            if !offset.is_multiple_of(size) || offset + size > self.file_len {
                self.entry(Structure::L1Table, place, index as u64, offset);
                continue;
            }
            self.count(offset..offset + size);
            if !seen.insert(offset) {
                // Walked once: else a small file would be work for hours.
                let (len, other) = (size, "another L2 table".to_owned());
                let fault = Fault::Overlap { start: offset, len, other };
                self.report.error(Damage::new(Structure::L1Table, place, fault));
                continue;
            }
            let entries = self.header.l2_entries();
            let l2 = table(self.file, Structure::L2Table, offset, entries).await?;
            for (index, raw) in l2.into_iter().enumerate() {
                let cluster = Cluster::parse(raw, size);
                let place = cluster.and_then(|cluster| cluster.place(size));
                let start = place.as_ref().map_or(raw, |place| place.start);
                if cluster.is_none() || (place.is_some() && start >= self.file_len) {
                    let at = offset + index as u64 * 8;
                    self.entry(Structure::L2Table, at, index as u64, start);
                    continue;
                }
                if let Some(place) = place {
                    self.report.allocated_blocks += u64::from(active);
                    self.count(place);
                }
            }
        }
        Ok(())
    }

    /// Compares the reference counts with the uses.
    async fn references(&mut self, dirty: bool, snapshots: bool) -> Result<()> {
        let (size, bits) = (self.header.cluster_size, u64::from(self.header.refcount_bits));
        let at = self.header.refcount_offset;
        let bytes = u64::from(self.header.refcount_clusters) * size;
        if bytes > 8 << 20 || self.counts.is_empty() {
            // So large a file is not counted.
            return Ok(());
        }
        let blocks = table(self.file, Structure::RefcountTable, at, bytes / 8).await?;
        self.count(at..at + bytes);
        let per_block = size * 8 / bits;
        let mut stored: HashMap<u64, Vec<u8>> = HashMap::new();
        for (index, offset) in blocks.iter().enumerate() {
            let covers = (index as u64).saturating_mul(per_block);
            if *offset == 0 {
                continue;
            }
            if !offset.is_multiple_of(size) || offset + size > self.file_len {
                self.entry(Structure::RefcountTable, at + index as u64 * 8, index as u64, *offset);
                continue;
            }
            self.count(*offset..offset + size);
            if covers < self.counts.len() as u64 {
                let mut block = vec![0; size as usize];
                block_io::read_exact_at(self.file, *offset, &mut block).await?;
                stored.insert(index as u64, block);
            }
        }
        for cluster in 0..self.counts.len() as u64 {
            let block = stored.get(&(cluster / per_block));
            let is = block.map_or(0, |block| refcount(block, cluster % per_block, bits));
            let counted = u64::from(self.counts[cluster as usize]);
            if is == counted {
                continue;
            }
            let fault = Fault::References { stored: is, counted };
            let damage = Damage::new(Structure::Cluster, cluster * size, fault);
            if is < counted && !dirty {
                self.report.error(damage);
            } else if is > counted && !snapshots {
                self.report.leaked += size;
                self.report.warn(damage);
            }
        }
        Ok(())
    }
}

/// A reference count of a block of them; those of less than a byte begin at its lowest bit.
fn refcount(block: &[u8], index: u64, bits: u64) -> u64 {
    let bit = index * bits;
    let at = (bit / 8) as usize;
    if bits < 8 {
        let byte = block.get(at).copied().unwrap_or(0);
        return u64::from(byte) >> (bit % 8) & ((1 << bits) - 1);
    }
    let bytes = block.get(at..at + (bits / 8) as usize).unwrap_or_default();
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::refcount;

    #[test]
    fn counts_of_every_width() {
        let block = [0b1110_0100, 0x12, 0x34, 0x56, 0, 0, 0, 1];
        assert_eq!([0, 1, 2, 3].map(|i| refcount(&block, i, 2)), [0, 1, 2, 3]);
        assert_eq!([0, 1].map(|i| refcount(&block, i, 4)), [4, 14]);
        assert_eq!(refcount(&block, 1, 8), 0x12);
        assert_eq!(refcount(&block, 1, 16), 0x3456);
        assert_eq!(refcount(&block, 1, 32), 1);
        assert_eq!(refcount(&block, 0, 64), 0xe412_3456_0000_0001);
    }
}
