//! A file in memory.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::sparse::Sparse;
use crate::{Error, File, IoFuture, Result};

/// A sparse file in memory that counts its flushes and writes.
#[derive(Debug, Default)]
pub struct MemFile {
    data: Mutex<Sparse>,
    read_only: bool,
    flushes: AtomicU64,
    writes: AtomicU64,
}

impl MemFile {
    /// An empty file that can be changed.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file of these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let file = Self::default();
        file.lock().write(0, bytes);
        file
    }

    /// As [`MemFile::from_bytes`], with holes where 4 KiB are zeros: a copy of an image costs what is in it.
    pub fn with_holes(bytes: &[u8]) -> Self {
        let file = Self::default();
        let mut data = file.lock();
        for (at, chunk) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
            if *chunk != [0; 4096][..chunk.len()] {
                data.write(at, chunk);
            }
        }
        data.set_len(bytes.len() as u64);
        drop(data);
        file
    }

    pub(super) fn from_sparse(data: Sparse) -> Self {
        Self { data: Mutex::new(data), ..Self::default() }
    }

    pub(super) fn sparse_into(&self, target: &mut Sparse) {
        target.clone_from(&self.lock());
    }

    /// The same content, refusing changes.
    pub fn read_only_copy(&self) -> Self {
        Self { data: Mutex::new(self.lock().clone()), read_only: true, ..Self::default() }
    }

    /// The same content, to be changed by itself.
    pub fn copy(&self) -> Self {
        Self { data: Mutex::new(self.lock().clone()), ..Self::default() }
    }

    /// The whole content. Meant for small files.
    pub fn to_bytes(&self) -> Vec<u8> {
        let data = self.lock();
        let mut bytes = vec![0; usize::try_from(data.len()).expect("a test file fits in memory")];
        data.read(0, &mut bytes);
        bytes
    }

    /// Flushes asked for so far.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    /// Writes asked for so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Sparse> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Sparse)) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        change(&mut self.lock());
        Ok(())
    }
}

impl File for MemFile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        Box::pin(async move { Ok(self.lock().read(offset, buf)) })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.writes.fetch_add(1, Ordering::SeqCst);
            self.change(|data| data.write(offset, buf))
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.flushes.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Box::pin(async move { Ok(self.lock().len()) })
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move { self.change(|data| data.set_len(len)) })
    }

    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(async move { self.change(|data| data.zero(range)) })
    }

    /// Memory that was never written costs nothing, and is there all the same.
    fn allocate(&self, _range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move { Ok(self.lock().ranges(range)) })
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}
