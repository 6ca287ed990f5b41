//! A disk of a LUN that goes from node to node: it is changed for as long as nobody counts this node dead
//! (see `volume::fs::gate`).

use std::{ops::Range, sync::Arc};

use block_io::{Disk, Geometry, IoFuture};
use volume::fs::gate;

/// A disk behind the process's gate.
#[derive(Debug)]
pub(super) struct Gated(pub(super) Arc<dyn Disk>);

impl Disk for Gated {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
        self.0.read_at(offset, buf)
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        gate::pass();
        self.0.write_at(offset, buf)
    }

    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        gate::pass();
        self.0.write_whole(offset, buf)
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        gate::pass();
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        gate::pass();
        self.0.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        gate::pass();
        self.0.write_zeroes(offset, len)
    }

    fn write_zeroes_kept(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
        gate::pass();
        self.0.write_zeroes_kept(offset, len)
    }

    fn keeps_space(&self) -> bool {
        self.0.keeps_space()
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.0.allocated_ranges(range)
    }

    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        self.0.written_ranges(range)
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn close(&self) -> IoFuture<'_, ()> {
        gate::pass();
        self.0.close()
    }
}
