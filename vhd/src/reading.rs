//! Disks of formats that are only read.

/// Makes a [`block_io::Disk`] of a type that has `geometry`, `read`, `ranges` and `close_files`: changes
/// are refused, and a flush finds nothing to do.
macro_rules! read_only_disk {
    ($kind:ty) => {
        impl block_io::Disk for $kind {
            fn geometry(&self) -> block_io::Geometry {
                self.geometry
            }

            fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> block_io::IoFuture<'a, ()> {
                Box::pin(self.read(offset, buf))
            }

            fn write_at<'a>(&'a self, _at: u64, _buf: &'a [u8]) -> block_io::IoFuture<'a, ()> {
                Box::pin(async { Err(block_io::Error::ReadOnly) })
            }

            fn flush(&self) -> block_io::IoFuture<'_, ()> {
                Box::pin(async { Ok(()) })
            }

            fn discard(&self, _at: u64, _len: u64) -> block_io::IoFuture<'_, ()> {
                Box::pin(async { Err(block_io::Error::ReadOnly) })
            }

            fn write_zeroes(&self, _at: u64, _len: u64) -> block_io::IoFuture<'_, ()> {
                Box::pin(async { Err(block_io::Error::ReadOnly) })
            }

            fn allocated_ranges(
                &self,
                range: std::ops::Range<u64>,
            ) -> block_io::IoFuture<'_, Vec<std::ops::Range<u64>>> {
                Box::pin(self.ranges(range))
            }

            fn is_read_only(&self) -> bool {
                true
            }

            fn close(&self) -> block_io::IoFuture<'_, ()> {
                Box::pin(self.close_files())
            }
        }
    };
}

pub(crate) use read_only_disk;
