//! A fixed array of sectors.

use std::{fmt::Debug, ops::Range, sync::Arc};

use crate::{Error, File, IoFuture, Result};

/// Shape of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in bytes, a whole number of logical sectors.
    pub size: u64,
    /// Smallest unit of addressing in bytes: 512 or 4096.
    pub logical_sector: u32,
    /// Smallest unit written without read-modify-write, in bytes.
    pub physical_sector: u32,
    /// Preferred unit of discard in bytes (an image's block size), 0 if discard does nothing.
    pub discard_granularity: u32,
}

impl Geometry {
    /// Checks that a request is sector aligned and within the disk.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] or [`Error::Misaligned`].
    pub fn check(&self, offset: u64, len: u64) -> Result<()> {
        let align = u64::from(self.logical_sector);
        if !offset.is_multiple_of(align) || !len.is_multiple_of(align) {
            return Err(Error::Misaligned { offset, len, align: self.logical_sector });
        }
        Error::check_range(offset, len, self.size)
    }
}

/// A fixed array of sectors. Offsets and lengths are in bytes and whole logical sectors.
///
/// All operations may run concurrently; overlapping writes in flight together land in either
/// order.
pub trait Disk: Send + Sync + Debug {
    /// Shape of the disk; constant while it is open.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from `offset`.
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()>;

    /// Writes all of `buf` at `offset`. Durable only after [`Disk::flush`].
    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()>;

    /// Makes every write that completed before this call durable, metadata included.
    fn flush(&self) -> IoFuture<'_, ()>;

    /// Declares `len` bytes at `offset` unused; they may read as anything older or zero after.
    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()>;

    /// Makes `len` bytes at `offset` read as zeros, without writing them where possible.
    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()>;

    /// The parts of `range` that may hold data, ascending and disjoint; everything else in it
    /// reads as zeros. A disk that cannot tell answers the whole of `range`.
    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move { Ok(vec![range]) })
    }

    /// Whether writes will be refused with [`Error::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// Flushes, records an orderly end in the image, and gives up the file below.
    fn close(&self) -> IoFuture<'_, ()>;
}

/// A disk whose sectors are the bytes of a file.
#[derive(Debug)]
pub struct RawDisk {
    file: Arc<dyn File>,
    geometry: Geometry,
}

impl RawDisk {
    /// Presents `file` as a disk. Of a length that is not whole sectors, the part of one at the
    /// end is filled up with zeros if the file is read-only, else left out.
    ///
    /// # Errors
    /// What the file says of its length.
    pub async fn open(file: Arc<dyn File>, logical_sector: u32) -> Result<Self> {
        let len = file.len().await?;
        let sector = u64::from(logical_sector);
        let size =
            if file.is_read_only() { len.next_multiple_of(sector) } else { len / sector * sector };
        let geometry =
            Geometry { size, logical_sector, physical_sector: 4096, discard_granularity: 4096 };
        Ok(Self { file, geometry })
    }
}

impl Disk for RawDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            let len = buf.len() as u64;
            self.geometry.check(offset, len)?;
            let got = self.file.read_at(offset, buf).await?;
            // Only the filled-up part of the last sector may be missing.
            let missing = buf.len() - got;
            if missing > 0 {
                let end = offset + len == self.geometry.size;
                if !end || missing >= self.geometry.logical_sector as usize {
                    return Err(Error::OutOfRange { offset, len, size: offset + got as u64 });
                }
                buf[got..].fill(0);
            }
            Ok(())
        })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.geometry.check(offset, buf.len() as u64)?;
            self.file.write_at(offset, buf).await
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        self.file.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.geometry.check(offset, len)?;
            match self.file.punch_hole(offset..offset + len).await {
                Err(Error::Unsupported(_)) => Ok(()),
                other => other,
            }
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.geometry.check(offset, len)?;
            match self.file.punch_hole(offset..offset + len).await {
                Err(Error::Unsupported(_)) => self.write_plain_zeros(offset, len).await,
                other => other,
            }
        })
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move {
            Error::check_range(
                range.start,
                range.end.saturating_sub(range.start),
                self.geometry.size,
            )?;
            self.file.allocated_ranges(range).await
        })
    }

    fn is_read_only(&self) -> bool {
        self.file.is_read_only()
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            if !self.file.is_read_only() {
                self.file.flush().await?;
            }
            self.file.close().await
        })
    }
}

impl RawDisk {
    async fn write_plain_zeros(&self, mut offset: u64, mut len: u64) -> Result<()> {
        const CHUNK: usize = 1 << 20;
        let zeros = vec![0u8; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
        while len > 0 {
            let n = len.min(zeros.len() as u64);
            self.file.write_at(offset, &zeros[..n as usize]).await?;
            offset += n;
            len -= n;
        }
        Ok(())
    }
}
