//! A logical unit as the bytes of a file, for what reads and writes files.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use block_io::{Disk, Error, File, IoFuture, Result};
use tokio::sync::Mutex;

/// A disk seen as a file. It can be cut, and grow again to what the disk has: what is beyond its end
/// is made zeros when it is cut.
#[derive(Debug)]
pub(crate) struct LunFile {
    disk: Arc<dyn Disk>,
    len: AtomicU64,
    /// Held by who writes a part of a sector.
    parts: Mutex<()>,
}

impl LunFile {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        let len = AtomicU64::new(disk.geometry().size);
        Self { disk, len, parts: Mutex::default() }
    }

    fn sector(&self) -> u64 {
        self.disk.geometry().logical_sector.into()
    }

    fn size(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// The whole sectors around a range.
    fn around(&self, offset: u64, len: u64) -> Range<u64> {
        let sector = self.sector();
        offset / sector * sector..(offset + len).next_multiple_of(sector)
    }

    fn is_whole(&self, offset: u64, len: u64) -> bool {
        self.around(offset, len) == (offset..offset + len)
    }

    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let left = self.size().saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..count];
        if self.is_whole(offset, count as u64) {
            self.disk.read_at(offset, buf).await?;
            return Ok(count);
        }
        let range = self.around(offset, count as u64);
        let mut whole = vec![0; (range.end - range.start) as usize];
        self.disk.read_at(range.start, &mut whole).await?;
        let start = (offset - range.start) as usize;
        buf.copy_from_slice(&whole[start..start + count]);
        Ok(count)
    }

    async fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let len = buf.len() as u64;
        let end = offset.checked_add(len).ok_or(Error::NoSpace)?;
        if end > self.disk.geometry().size {
            return Err(Error::NoSpace);
        }
        if self.is_whole(offset, len) {
            self.disk.write_at(offset, buf).await?;
        } else {
            let _alone = self.parts.lock().await;
            let range = self.around(offset, len);
            let mut whole = vec![0; (range.end - range.start) as usize];
            self.disk.read_at(range.start, &mut whole).await?;
            let start = (offset - range.start) as usize;
            whole[start..start + buf.len()].copy_from_slice(buf);
            self.disk.write_at(range.start, &whole).await?;
        }
        self.len.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// Zeros, with the parts of sectors at both ends written.
    async fn zero(&self, range: Range<u64>) -> Result<()> {
        let sector = self.sector();
        let first = range.start.next_multiple_of(sector).min(range.end);
        let last = (range.end / sector * sector).max(first);
        for part in [range.start..first, last..range.end] {
            if !part.is_empty() {
                self.write(part.start, &vec![0; (part.end - part.start) as usize]).await?;
            }
        }
        if first < last {
            self.disk.write_zeroes(first, last - first).await?;
        }
        Ok(())
    }
}

impl File for LunFile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        Box::pin(self.read(offset, buf))
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.write(offset, buf))
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        self.disk.flush()
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Box::pin(async move { Ok(self.size()) })
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            if self.disk.is_read_only() {
                return Err(Error::ReadOnly);
            }
            let all = self.disk.geometry().size;
            if len > all {
                return Err(Error::NoSpace);
            }
            let old = self.size();
            if len < old {
                self.zero(len..old).await?;
            }
            self.len.store(len, Ordering::Release);
            Ok(())
        })
    }

    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(async move {
            let range = range.start..range.end.min(self.size());
            if range.is_empty() { Ok(()) } else { self.zero(range).await }
        })
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move {
            let range = range.start..range.end.min(self.size());
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let around = self.around(range.start, range.end - range.start);
            let found = self.disk.allocated_ranges(around).await?;
            let cut = |it: Range<u64>| it.start.max(range.start)..it.end.min(range.end);
            Ok(found.into_iter().map(cut).filter(|it| !it.is_empty()).collect())
        })
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn close(&self) -> IoFuture<'_, ()> {
        self.disk.close()
    }
}

#[cfg(test)]
mod tests {
    use block_io::{
        RawDisk,
        testing::{MemFile, Rng},
    };

    use super::*;

    #[tokio::test]
    async fn any_bytes_of_it_are_as_they_were_written() {
        let file = Arc::new(MemFile::from_bytes(&[0; 64 << 10]));
        let disk = Arc::new(RawDisk::open(file.clone(), 512).await.unwrap());
        let lun = LunFile::new(disk);
        let mut shadow = vec![0; 64 << 10];
        let mut rng = Rng::new(3);
        for _ in 0..500 {
            let start = rng.below(64 << 10) as usize;
            let end = start + rng.below((64 << 10) - start as u64 + 1) as usize;
            if rng.chance(20) {
                lun.punch_hole(start as u64..end as u64).await.unwrap();
                shadow[start..end].fill(0);
            } else {
                rng.fill(&mut shadow[start..end]);
                lun.write_at(start as u64, &shadow[start..end]).await.unwrap();
            }
            let mut back = vec![1; end - start];
            assert_eq!(lun.read_at(start as u64, &mut back).await.unwrap(), end - start);
            assert!(back == shadow[start..end]);
        }
        assert!(file.to_bytes() == shadow);
        lun.set_len(1000).await.unwrap();
        assert_eq!(lun.read_at(0, &mut [0; 2000]).await.unwrap(), 1000);
        lun.set_len(64 << 10).await.unwrap();
        shadow[1000..].fill(0);
        assert!(file.to_bytes() == shadow);
        assert!(matches!(lun.set_len((64 << 10) + 1).await, Err(Error::NoSpace)));
        assert!(matches!(lun.write_at(64 << 10, &[1]).await, Err(Error::NoSpace)));
    }
}
