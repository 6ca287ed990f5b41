//! Any byte range of a disk that knows whole sectors only.

use std::{ops::Range, sync::Arc};

use block_io::{Disk, Result};
use tokio::sync::RwLock;

/// A disk whose requests need not be sectors.
///
/// Clients that heed the block size they are told never need it. For the others a write that is
/// not whole sectors reads the rest of its first and last sector; no other write runs meanwhile.
#[derive(Debug)]
pub struct Device {
    disk: Arc<dyn Disk>,
    read_only: bool,
    /// Shared by writes of whole sectors, held alone by the others.
    writes: RwLock<()>,
}

impl Device {
    /// A device over `disk`; with `read_only` writes are refused.
    pub fn new(disk: Arc<dyn Disk>, read_only: bool) -> Self {
        let read_only = read_only || disk.is_read_only();
        Self { disk, read_only, writes: RwLock::new(()) }
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.disk.geometry().size
    }

    /// Whether nothing may be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Smallest and preferred size of a request in bytes.
    pub fn block_sizes(&self) -> (u32, u32) {
        let geometry = self.disk.geometry();
        let smallest = geometry.logical_sector;
        (smallest, geometry.physical_sector.max(4096).max(smallest))
    }

    fn sector(&self) -> u64 {
        self.disk.geometry().logical_sector.into()
    }

    fn whole(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.sector()) && len.is_multiple_of(self.sector())
    }

    /// The sectors that hold a range.
    fn around(&self, offset: u64, len: u64) -> Range<u64> {
        let sector = self.sector();
        offset / sector * sector..(offset + len).next_multiple_of(sector)
    }

    /// Reads `len` bytes behind what `out` holds. The range must lie on the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn read(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        if self.whole(offset, len as u64) {
            out.resize(start + len, 0);
            return self.disk.read_at(offset, &mut out[start..]).await;
        }
        let around = self.around(offset, len as u64);
        let skip = (offset - around.start) as usize;
        let mut sectors = vec![0; (around.end - around.start) as usize];
        self.disk.read_at(around.start, &mut sectors).await?;
        out.extend_from_slice(&sectors[skip..skip + len]);
        Ok(())
    }

    /// Writes `data`. The range must lie on the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        if self.whole(offset, len) {
            let _shared = self.writes.read().await;
            return self.disk.write_at(offset, data).await;
        }
        let _alone = self.writes.write().await;
        let around = self.around(offset, len);
        let skip = (offset - around.start) as usize;
        let mut sectors = vec![0; (around.end - around.start) as usize];
        self.disk.read_at(around.start, &mut sectors).await?;
        sectors[skip..skip + data.len()].copy_from_slice(data);
        self.disk.write_at(around.start, &sectors).await
    }

    /// Makes a range read as zeros; `keep` asks for space that stays reserved.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn zero(&self, offset: u64, len: u64, keep: bool) -> Result<()> {
        const PIECE: u64 = 1 << 20;
        let sector = self.sector();
        let end = offset + len;
        let inner = offset.next_multiple_of(sector)..end / sector * sector;
        if inner.is_empty() || keep {
            let zeros = vec![0; len.min(PIECE) as usize];
            let mut at = offset;
            while at < end {
                let piece = (end - at).min(PIECE);
                self.write(at, &zeros[..piece as usize]).await?;
                at += piece;
            }
            return Ok(());
        }
        let zeros = vec![0; sector as usize];
        self.write(offset, &zeros[..(inner.start - offset) as usize]).await?;
        {
            let _shared = self.writes.read().await;
            self.disk.write_zeroes(inner.start, inner.end - inner.start).await?;
        }
        self.write(inner.end, &zeros[..(end - inner.end) as usize]).await
    }

    /// Gives up the whole sectors of a range.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn trim(&self, offset: u64, len: u64) -> Result<()> {
        let sector = self.sector();
        let inner = offset.next_multiple_of(sector)..(offset + len) / sector * sector;
        if inner.is_empty() {
            return Ok(());
        }
        let _shared = self.writes.read().await;
        self.disk.discard(inner.start, inner.end - inner.start).await
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn flush(&self) -> Result<()> {
        self.disk.flush().await
    }

    /// A range as pieces in order: how long each is, and whether it may hold data; what does not
    /// reads as zeros. No more than `most` pieces, so that the range may not be covered to its end.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn extents(&self, range: Range<u64>, most: usize) -> Result<Vec<(u64, bool)>> {
        let around = self.around(range.start, range.end - range.start);
        let allocated = self.disk.allocated_ranges(around).await?;
        let mut pieces = Vec::new();
        let mut at = range.start;
        for data in allocated {
            let (start, end) = (data.start.max(range.start), data.end.min(range.end));
            if start >= end {
                continue;
            }
            if start > at {
                pieces.push((start - at, false));
            }
            pieces.push((end - start, true));
            at = end;
            if pieces.len() >= most {
                pieces.truncate(most);
                return Ok(pieces);
            }
        }
        if at < range.end {
            pieces.push((range.end - at, false));
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use block_io::{RawDisk, testing::MemFile};
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Vec<u8>),
        Zero(u64, u64, bool),
    }

    fn step(size: u64) -> impl Strategy<Value = Step> {
        let range = (0..size).prop_flat_map(move |at| (Just(at), 0..=(size - at).min(5000)));
        prop_oneof![
            (range.clone(), any::<u8>())
                .prop_map(|((at, len), byte)| Step::Write(at, vec![byte; len as usize])),
            (range, any::<bool>()).prop_map(|((at, len), keep)| Step::Zero(at, len, keep)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Bytes are as in an array, whatever the sectors are, and what is no data is zeros.
        #[test]
        fn any_range_is_as_in_memory(
            steps in prop::collection::vec(step(65536), 1..20), big: bool,
            (at, len) in (0u64..65536).prop_flat_map(|at| (Just(at), 0..=(65536 - at))),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let file = Arc::new(MemFile::new());
                block_io::File::set_len(&*file, 65536).await.unwrap();
                let disk = RawDisk::open(file, if big { 4096 } else { 512 }).await.unwrap();
                let device = Device::new(Arc::new(disk), false);
                let mut model = vec![0; 65536];
                for step in steps {
                    match step {
                        Step::Write(at, data) => {
                            device.write(at, &data).await.unwrap();
                            model[at as usize..at as usize + data.len()].copy_from_slice(&data);
                        }
                        Step::Zero(at, len, keep) => {
                            device.zero(at, len, keep).await.unwrap();
                            model[at as usize..(at + len) as usize].fill(0);
                        }
                    }
                }
                let mut got = Vec::new();
                device.read(at, len as usize, &mut got).await.unwrap();
                prop_assert_eq!(&got, &model[at as usize..(at + len) as usize]);
                let mut place = at;
                for (len, data) in device.extents(at..at + len, usize::MAX).await.unwrap() {
                    let bytes = &model[place as usize..(place + len) as usize];
                    prop_assert!(data || bytes.iter().all(|byte| *byte == 0));
                    place += len;
                }
                prop_assert_eq!(place, at + len);
                Ok(())
            })?;
        }
    }
}
