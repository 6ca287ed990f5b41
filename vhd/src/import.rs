//! Taking over a disk that may change while it is read, such as a running block device.
//!
//! ```text
//!  pass 1   all is copied                                   (crate::convert::copy)
//!  pass 2   all is read again; what differs is written      changed: 37 MiB
//!  pass 3                                                   changed: 0: done
//! ```
//!
//! A pass that finds nothing changed proves that the copy is what the source held at the moment the
//! pass began: every byte was the same when it was read last before that moment and after it (unless
//! something was changed and changed back in between). Such a copy is what a crash of the source's
//! user at that moment would have left. A source that never rests is not taken over whole; who writes
//! to it must pause, or a snapshot of it be read.

use std::sync::Arc;

use block_io::Disk;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::Result;

/// Bytes compared at once.
const CHUNK: u64 = 1 << 20;
/// Comparisons under way.
const IN_FLIGHT: usize = 4;

/// Reads all of `source` again and writes what differs to `target`, which is at least as long, and
/// flushes it. `progress` hears how many bytes are done. Gives how many bytes were written.
///
/// # Errors
/// What either disk says.
pub async fn pass(
    source: Arc<dyn Disk>,
    target: Arc<dyn Disk>,
    mut progress: impl FnMut(u64),
) -> Result<u64> {
    let size = source.geometry().size;
    let chunks = stream::iter((0..size.div_ceil(CHUNK)).map(|i| i * CHUNK));
    let work = chunks.map(|at| {
        let (source, target) = (source.clone(), target.clone());
        async move {
            let task = tokio::spawn(async move { chunk(&*source, &*target, at).await });
            let ended = task.await.map_err(|e| {
                block_io::Error::io("comparing", std::io::Error::other(e.to_string()))
            });
            ended.and_then(|result| result)
        }
    });
    let mut work = work.buffer_unordered(IN_FLIGHT);
    let (mut done, mut changed) = (0, 0);
    while let Some(more) = work.try_next().await? {
        changed += more;
        done += CHUNK;
        progress(done.min(size));
    }
    target.flush().await?;
    Ok(changed)
}

/// Compares a chunk, and writes the sectors that differ.
async fn chunk(source: &dyn Disk, target: &dyn Disk, at: u64) -> block_io::Result<u64> {
    let sector = u64::from(target.geometry().logical_sector);
    let len = CHUNK.min(source.geometry().size - at);
    let mut new = vec![0; len.next_multiple_of(sector) as usize];
    source.read_at(at, &mut new[..len as usize]).await?;
    let mut old = vec![0; new.len()];
    target.read_at(at, &mut old).await?;
    let mut changed = 0;
    let mut from = 0;
    while from < new.len() {
        let differs = |i: usize| new[i..i + sector as usize] != old[i..i + sector as usize];
        let mut to = from;
        while to < new.len() && differs(to) {
            to += sector as usize;
        }
        if to > from {
            target.write_at(at + from as u64, &new[from..to]).await?;
            changed += (to - from) as u64;
        }
        from = to + sector as usize;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use block_io::{File, Geometry, IoFuture, RawDisk, testing::MemFile};

    use super::*;

    /// A disk that is changed by someone while its first reads go on.
    #[derive(Debug)]
    struct Restless {
        file: Arc<MemFile>,
        disk: RawDisk,
        reads: AtomicU64,
        restless: u64,
    }

    impl Disk for Restless {
        fn geometry(&self) -> Geometry {
            self.disk.geometry()
        }

        fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, ()> {
            Box::pin(async move {
                let read = self.reads.fetch_add(1, Ordering::SeqCst);
                if read < self.restless {
                    let place = (read * 7_654_321 % self.geometry().size) / 512 * 512;
                    self.file.write_at(place, &[read as u8 + 1; 512]).await?;
                }
                self.disk.read_at(offset, buf).await
            })
        }

        fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
            self.disk.write_at(offset, buf)
        }

        fn flush(&self) -> IoFuture<'_, ()> {
            self.disk.flush()
        }

        fn discard(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
            self.disk.discard(offset, len)
        }

        fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<'_, ()> {
            self.disk.write_zeroes(offset, len)
        }

        fn is_read_only(&self) -> bool {
            true
        }

        fn close(&self) -> IoFuture<'_, ()> {
            self.disk.close()
        }
    }

    #[tokio::test]
    async fn passes_end_with_what_the_source_holds() {
        const SIZE: u64 = (20 << 20) + 512;
        let file = Arc::new(MemFile::new());
        file.set_len(SIZE).await.unwrap();
        let disk = RawDisk::open(file.clone(), 512).await.unwrap();
        let (reads, restless) = (AtomicU64::new(0), 50);
        let source = Arc::new(Restless { file: file.clone(), disk, reads, restless });
        let copy = Arc::new(MemFile::new());
        copy.set_len(SIZE.next_multiple_of(4096)).await.unwrap();
        let target = Arc::new(RawDisk::open(copy.clone(), 4096).await.unwrap());
        let mut changed = Vec::new();
        while changed.last() != Some(&0) {
            changed.push(pass(source.clone(), target.clone(), |_| {}).await.unwrap());
        }
        // 21 reads a pass: changes end within the third, which the fourth may still find.
        assert!((4..=5).contains(&changed.len()), "{changed:?}");
        assert!(copy.to_bytes()[..SIZE as usize] == file.to_bytes());
    }
}
