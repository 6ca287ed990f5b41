//! A positioned, growable byte range.

use std::{fmt::Debug, future::Future, ops::Range, pin::Pin};

use crate::{Error, Result};

/// The future of one storage operation. Dropping it may abandon the answer, never memory safety.
pub type IoFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A positioned, growable byte range: a local file or an open file on a share.
///
/// All operations may run concurrently from many tasks. Two writes that overlap and are in
/// flight together land in either order; the caller orders what must be ordered.
#[expect(clippy::len_without_is_empty, reason = "asking a file for its length may wait and fail")]
pub trait File: Send + Sync + Debug {
    /// Fills `buf` from `offset` and returns how many bytes were read; fewer than asked only at
    /// the end of the file.
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize>;

    /// Writes all of `buf` at `offset`, growing the file if it ends before. Durable only after
    /// [`File::flush`].
    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()>;

    /// As [`File::write_at`], by one request of the storage below, however long it is: what that promises
    /// of one holds for all of `buf`.
    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        self.write_at(offset, buf)
    }

    /// Makes every write and size change that completed before this call durable.
    fn flush(&self) -> IoFuture<'_, ()>;

    /// Current length in bytes.
    fn len(&self) -> IoFuture<'_, u64>;

    /// Grows (with zeros) or cuts the file to `len` bytes.
    fn set_len(&self, len: u64) -> IoFuture<'_, ()>;

    /// Makes `range` read as zeros, giving its space back where the storage can. The file does
    /// not grow. [`Error::Unsupported`] if it can only be done by writing zeros.
    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()>;

    /// Reserves space for `range` without changing what it reads as, so that later writes there
    /// cannot fail for lack of space. Storage that cannot answers [`Error::Unsupported`].
    fn allocate(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        let _ = range;
        Box::pin(async { Err(Error::Unsupported("reserving space")) })
    }

    /// Makes `range` read as zeros, and reserves its space as [`File::allocate`] does: what had some keeps
    /// it. `range` ends where the file does, or before. [`Error::Unsupported`] if it can only be done by
    /// writing zeros; then it may be zeros already.
    fn zero_range(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.punch_hole(range.clone()).await?;
            self.allocate(range).await
        })
    }

    /// The parts of `range` that may hold data, ascending and disjoint; everything else in it
    /// reads as zeros. A storage that cannot tell answers the whole of `range` up to its end.
    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>>;

    /// As [`File::allocated_ranges`], without space that is held and was not written since it was
    /// taken or zeroed ([`File::zero_range`]), where the storage can tell. It may have to write what
    /// waits in the page cache first.
    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.allocated_ranges(range)
    }

    /// Whether writes will be refused with [`Error::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// Gives up the file in an orderly way (a remote close); later operations fail.
    /// Dropping without it is safe, but errors then have nowhere to go.
    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Reads exactly `buf.len()` bytes or fails with [`Error::OutOfRange`].
///
/// # Errors
/// [`Error::OutOfRange`] if the file ends before; what the file says.
pub async fn read_exact_at(file: &dyn File, offset: u64, buf: &mut [u8]) -> Result<()> {
    let len = buf.len() as u64;
    let got = file.read_at(offset, buf).await? as u64;
    if got == len { Ok(()) } else { Err(Error::OutOfRange { offset, len, size: offset + got }) }
}
