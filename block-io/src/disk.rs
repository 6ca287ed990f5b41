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

    /// As [`Disk::write_at`], so that what the storage below promises of one request at a loss of power
    /// holds for all of `buf`.
    ///
    /// # Errors
    /// Those of [`Disk::write_at`]; [`Error::Unsupported`] where `buf` would come to lie in several places.
    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        let _ = (offset, buf);
        Box::pin(async { Err(Error::Unsupported("writing as a whole")) })
    }

    /// Makes every write that completed before this call durable, metadata included.
    fn flush(&self) -> IoFuture<'_, ()>;

    /// Declares `len` bytes at `offset` unused; they may read as anything older or zero after.
    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()>;

    /// Makes `len` bytes at `offset` read as zeros, without writing them where possible.
    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()>;

    /// As [`Disk::write_zeroes`], but no space is given back: what could be written before can be
    /// written after.
    fn write_zeroes_kept(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.geometry().check(offset, len)?;
            plain_zeros(self, offset..offset + len).await
        })
    }

    /// Whether [`Disk::write_zeroes_kept`] does it without writing the zeros, where the storage below can.
    fn keeps_space(&self) -> bool {
        false
    }

    /// The parts of `range` that may hold data, ascending and disjoint; everything else in it
    /// reads as zeros. A disk that cannot tell answers the whole of `range`.
    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move { Ok(vec![range]) })
    }

    /// As [`Disk::allocated_ranges`], without blocks that keep their space and were not written since
    /// [`Disk::write_zeroes_kept`], where the storage can tell. It costs more: what is written may have to
    /// reach the storage first.
    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.allocated_ranges(range)
    }

    /// Whether writes will be refused with [`Error::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// Flushes, records an orderly end in the image, and gives up the file below.
    fn close(&self) -> IoFuture<'_, ()>;
}

/// Bytes that are written at a time where a range is made zero by writing.
const ZEROS: u64 = 1 << 20;
/// Bytes that are given back at a time: a file system keeps others from a file meanwhile.
const HOLE: u64 = 64 << 20;

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

    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.geometry.check(offset, buf.len() as u64)?;
            self.file.write_whole(offset, buf).await
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        self.file.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.geometry.check(offset, len)?;
            for piece in pieces(offset..offset + len, HOLE) {
                match self.file.punch_hole(piece).await {
                    Err(Error::Unsupported(_)) => return Ok(()),
                    other => other?,
                }
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.zeros(offset, len, false))
    }

    fn write_zeroes_kept(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.zeros(offset, len, true))
    }

    fn keeps_space(&self) -> bool {
        true
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

    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move {
            let len = range.end.saturating_sub(range.start);
            Error::check_range(range.start, len, self.geometry.size)?;
            self.file.written_ranges(range).await
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
    async fn zeros(&self, offset: u64, len: u64, kept: bool) -> Result<()> {
        self.geometry.check(offset, len)?;
        for piece in pieces(offset..offset + len, HOLE) {
            let range = piece.clone();
            let done = match kept {
                true => self.file.zero_range(range).await,
                false => self.file.punch_hole(range).await,
            };
            match done {
                Err(Error::Unsupported(_)) => {
                    return plain_zeros(self, piece.start..offset + len).await;
                }
                other => other?,
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// Writes zeros. The page cache takes a piece without waiting, so without the pause between them the
/// thread would have nothing else done until the last.
async fn plain_zeros<D: Disk + ?Sized>(disk: &D, range: Range<u64>) -> Result<()> {
    let zeros = vec![0u8; ZEROS.min(range.end - range.start) as usize];
    for piece in pieces(range, ZEROS) {
        let len = (piece.end - piece.start) as usize;
        disk.write_at(piece.start, &zeros[..len]).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// A range in pieces of at most `most` bytes.
fn pieces(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let Range { start, end } = range;
    let step = usize::try_from(most).unwrap_or(usize::MAX);
    (start..end).step_by(step).map(move |at| at..end.min(at.saturating_add(most)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::testing::MemFile;

    /// What a file was asked for, in order: the length of each piece, 0 for a read.
    #[derive(Debug)]
    struct Noted {
        file: MemFile,
        holes: bool,
        asked: Mutex<Vec<u64>>,
    }

    impl Noted {
        fn note(&self, len: u64) {
            self.asked.lock().unwrap().push(len);
        }
    }

    impl File for Noted {
        fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
            self.note(0);
            self.file.read_at(offset, buf)
        }

        fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
            self.note(buf.len() as u64);
            self.file.write_at(offset, buf)
        }

        fn flush(&self) -> IoFuture<'_, ()> {
            self.file.flush()
        }

        fn len(&self) -> IoFuture<'_, u64> {
            self.file.len()
        }

        fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
            self.file.set_len(len)
        }

        fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
            if !self.holes {
                return Box::pin(async { Err(Error::Unsupported("holes")) });
            }
            self.note(range.end - range.start);
            self.file.punch_hole(range)
        }

        fn zero_range(&self, range: Range<u64>) -> IoFuture<'_, ()> {
            self.punch_hole(range)
        }

        fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
            self.file.allocated_ranges(range)
        }

        fn is_read_only(&self) -> bool {
            false
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum How {
        Discard,
        Zeros,
        Kept,
    }

    /// One thread has a long range made zero, or given back, and another request of the same disk:
    /// that is carried out after the first piece, not after the last.
    async fn others_go_on(holes: bool, how: How, most: u64) {
        const LEN: u64 = 200 << 20;
        let asked = Mutex::default();
        let file = Arc::new(Noted { file: MemFile::new(), holes, asked });
        file.set_len(LEN + 8192).await.unwrap();
        file.file.write_at(0, &[7; 4096]).await.unwrap();
        file.file.write_at(LEN + 4096, &[7; 4096]).await.unwrap();
        let disk = Arc::new(RawDisk::open(file.clone(), 512).await.unwrap());
        let clearing = tokio::spawn({
            let disk = disk.clone();
            async move {
                match how {
                    How::Discard => disk.discard(4096, LEN).await,
                    How::Zeros => disk.write_zeroes(4096, LEN).await,
                    How::Kept => disk.write_zeroes_kept(4096, LEN).await,
                }
            }
        });
        let reading = tokio::spawn({
            let disk = disk.clone();
            async move {
                let mut sector = [0; 512];
                disk.read_at(0, &mut sector).await.map(|()| sector)
            }
        });
        clearing.await.unwrap().unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), [7; 512]);
        let asked = std::mem::take(&mut *file.asked.lock().unwrap());
        assert_eq!(asked.iter().sum::<u64>(), LEN);
        assert!(asked.iter().all(|len| *len <= most), "{asked:?}");
        let read = asked.iter().position(|len| *len == 0).unwrap();
        assert!(read <= 2, "{read} pieces of {} before the read", asked.len() - 1);
        // Nothing beside it was touched.
        for (at, byte) in [(0, 7), (4096, 0), (LEN + 3584, 0), (LEN + 4096, 7)] {
            let mut sector = [1; 512];
            disk.read_at(at, &mut sector).await.unwrap();
            assert_eq!(sector, [byte; 512], "{at}");
        }
    }

    #[tokio::test]
    async fn a_long_range_of_zeros_keeps_no_other_request_waiting() {
        others_go_on(true, How::Discard, HOLE).await;
        for how in [How::Zeros, How::Kept] {
            others_go_on(false, how, ZEROS).await;
            others_go_on(true, how, HOLE).await;
        }
    }

    #[test]
    fn pieces_are_the_range() {
        let all = |range, most| pieces(range, most).collect::<Vec<_>>();
        assert_eq!(all(3..10, 3), [3..6, 6..9, 9..10]);
        assert_eq!(
            all(u64::MAX - 5..u64::MAX, 4),
            [u64::MAX - 5..u64::MAX - 1, u64::MAX - 1..u64::MAX]
        );
        assert!(all(5..5, 4).is_empty());
    }
}
