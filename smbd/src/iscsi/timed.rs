//! A disk of a LUN whose work is timed, and what waits before the LUN.

use std::{ops::Range, sync::Arc, time::Duration};

use block_io::{Disk, Geometry, IoFuture};
use scsi::QueueMeter;
use smb_server::meters::path::{PathMeter, Phase};

/// A disk with the meter of its LUN.
#[derive(Debug)]
pub(super) struct Timed {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) meter: Arc<PathMeter>,
}

/// Times what waits for the limits of a LUN.
#[derive(Debug)]
pub(super) struct Queue(pub(super) Arc<PathMeter>);

impl QueueMeter for Queue {
    fn waited(&self, time: Duration) {
        self.0.note(Phase::Queue, time, 1);
    }
}

impl Disk for Timed {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.meter.storage(Phase::Read, self.disk.read_at(offset, buf)))
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.meter.storage(Phase::Write, self.disk.write_at(offset, buf)))
    }

    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(self.meter.storage(Phase::Write, self.disk.write_whole(offset, buf)))
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(self.meter.storage(Phase::Sync, self.disk.flush()))
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.meter.storage(Phase::Unmap, self.disk.discard(offset, len)))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.meter.storage(Phase::Unmap, self.disk.write_zeroes(offset, len)))
    }

    fn write_zeroes_kept(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        Box::pin(self.meter.storage(Phase::Write, self.disk.write_zeroes_kept(offset, len)))
    }

    fn keeps_space(&self) -> bool {
        self.disk.keeps_space()
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.disk.allocated_ranges(range)
    }

    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.disk.written_ranges(range)
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn close(&self) -> IoFuture<'_, ()> {
        self.disk.close()
    }
}
