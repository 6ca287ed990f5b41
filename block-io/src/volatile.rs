//! A file whose flushes do nothing.

use std::{ops::Range, sync::Arc};

use crate::{File, IoFuture, Result};

/// A file that is not made durable until it is closed, and then not by this: for work that is begun
/// anew if the machine fails meanwhile. What was written is as safe as a plain write is.
#[derive(Debug)]
pub struct Volatile(Arc<dyn File>);

impl Volatile {
    /// The same file without its flushes.
    pub fn new(file: Arc<dyn File>) -> Self {
        Self(file)
    }
}

impl File for Volatile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        self.0.read_at(offset, buf)
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        self.0.write_at(offset, buf)
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async { Result::Ok(()) })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        self.0.set_len(len)
    }

    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        self.0.punch_hole(range)
    }

    fn allocate(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        self.0.allocate(range)
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.0.allocated_ranges(range)
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn close(&self) -> IoFuture<'_, ()> {
        self.0.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemFile;

    #[tokio::test]
    async fn everything_but_flushes_reaches_the_file() {
        let file = Arc::new(MemFile::new());
        let volatile = Volatile::new(file.clone());
        volatile.write_at(3, b"abc").await.unwrap();
        volatile.set_len(5).await.unwrap();
        volatile.flush().await.unwrap();
        volatile.close().await.unwrap();
        assert_eq!((file.to_bytes(), file.flushes()), (b"\0\0\0ab".to_vec(), 0));
    }
}
