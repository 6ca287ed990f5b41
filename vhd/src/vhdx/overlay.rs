//! The effect of a log on a file: applied to it, or laid over it in memory.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use block_io::{File, IoFuture};

use super::log::{LogEntry, SECTOR, Update};

const SECTOR_SIZE: u64 = SECTOR as u64;

/// What replaying a log changes. Its memory is bounded by the log's length.
#[derive(Debug, Default)]
pub struct Overlay {
    sectors: BTreeMap<u64, Box<[u8; SECTOR]>>,
    /// First byte to the byte after the last; disjoint. A sector above wins over these.
    zeros: BTreeMap<u64, u64>,
    /// The file must be at least this long.
    min_len: u64,
}

impl Overlay {
    /// The effect of these entries in order.
    pub fn new(entries: Vec<LogEntry>) -> Self {
        let mut overlay = Self::default();
        for entry in entries {
            for update in entry.updates {
                match update {
                    Update::Data { offset, data } => {
                        overlay.min_len = overlay.min_len.max(offset + SECTOR_SIZE);
                        overlay.sectors.insert(offset, data);
                    }
                    Update::Zero { offset, length } => {
                        overlay.min_len = overlay.min_len.max(offset + length);
                        overlay.zero(offset..offset + length);
                    }
                }
            }
            overlay.min_len = overlay.min_len.max(entry.last_file_offset);
        }
        overlay
    }

    fn zero(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let covered: Vec<u64> = self.sectors.range(range.clone()).map(|(k, _)| *k).collect();
        for key in covered {
            self.sectors.remove(&key);
        }
        let mut merged = range;
        while let Some((&start, &end)) = self.zeros.range(..=merged.end).next_back() {
            if end < merged.start {
                break;
            }
            merged = merged.start.min(start)..merged.end.max(end);
            self.zeros.remove(&start);
        }
        self.zeros.insert(merged.start, merged.end);
    }

    /// Places that are changed: sectors and zeroed ranges.
    pub fn touched(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let sectors = self.sectors.keys().map(|at| *at..*at + SECTOR_SIZE);
        sectors.chain(self.zeros.iter().map(|(start, end)| *start..*end))
    }

    /// Writes the changes to `file` and extends it. They are durable after the next flush.
    pub async fn apply(&self, file: &dyn File) -> block_io::Result<()> {
        let len = file.len().await?;
        for (&start, &end) in &self.zeros {
            // What lies past the end becomes zeros by growing.
            let range = start..end.min(len);
            if !range.is_empty() {
                super::zero_range(file, range).await?;
            }
        }
        if len < self.min_len {
            file.set_len(self.min_len).await?;
        }
        for (&at, data) in &self.sectors {
            file.write_at(at, &data[..]).await?;
        }
        Ok(())
    }

    fn patch(&self, offset: u64, buf: &mut [u8]) {
        let end = offset + buf.len() as u64;
        for (&start, &stop) in self.zeros.range(..end).rev() {
            if stop <= offset {
                break;
            }
            let (from, to) = (start.max(offset), stop.min(end));
            buf[(from - offset) as usize..(to - offset) as usize].fill(0);
        }
        for (&at, data) in self.sectors.range(offset.saturating_sub(SECTOR_SIZE - 1)..end) {
            let (from, to) = (at.max(offset), (at + SECTOR_SIZE).min(end));
            if from < to {
                buf[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&data[(from - at) as usize..(to - at) as usize]);
            }
        }
    }
}

/// A file seen as if its log had been replayed; never writes to it (MS-VHDX note 5).
#[derive(Debug)]
pub struct ReplayedFile {
    file: Arc<dyn File>,
    overlay: Arc<Overlay>,
}

impl ReplayedFile {
    /// Lays `overlay` over `file`.
    pub fn new(file: Arc<dyn File>, overlay: Arc<Overlay>) -> Self {
        Self { file, overlay }
    }
}

impl File for ReplayedFile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        Box::pin(async move {
            let got = self.file.read_at(offset, buf).await?;
            let left = self.overlay.min_len.saturating_sub(offset);
            let len = got.max(buf.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            buf[got..len].fill(0);
            if len > 0 {
                self.overlay.patch(offset, &mut buf[..len]);
            }
            Ok(len)
        })
    }

    fn write_at<'a>(&'a self, _offset: u64, _buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async { Err(block_io::Error::ReadOnly) })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Box::pin(async { Ok(self.file.len().await?.max(self.overlay.min_len)) })
    }

    fn set_len(&self, _len: u64) -> IoFuture<'_, ()> {
        Box::pin(async { Err(block_io::Error::ReadOnly) })
    }

    fn punch_hole(&self, _range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(async { Err(block_io::Error::ReadOnly) })
    }

    /// The whole of `range`: the log may have put data anywhere.
    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move { Ok(vec![range]) })
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn close(&self) -> IoFuture<'_, ()> {
        self.file.close()
    }
}
