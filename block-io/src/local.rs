//! Local files: page-cache hits inline on the caller, everything that may wait elsewhere.
//!
//! ```text
//!  read_at ──► preadv2(NOWAIT) ── hit ──► done           (no thread hop, no copy)
//!                     └───────── miss ─┐
//!  write_at ──► small and whole pages: pwritev2 inline   (the page cache takes it)
//!                     └─────── others ─┤
//!  flush ──► FlushGroup ── fdatasync ──┴──► engine: io_uring thread, or blocking threads
//! ```
//!
//! The engine owns the buffers of what it was given, so a caller may drop a future at any time.

mod append;
mod pool;
mod ring;

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{FallocateFlags, FileType, SeekFrom},
    io::{Errno, ReadWriteFlags},
};

use self::append::append_cached;
use crate::{
    Claim, Error, File, FlushGroup, IoFuture, Result, SplicePipe,
    fiemap::{self, Fiemap},
    image_lock::{self, Refusal},
};

/// Writes up to this size go to the page cache on the caller, which holds its thread for some
/// tenths of a millisecond at most, as reads from the cache do; larger ones are copied once and
/// left to the engine.
const INLINE_WRITE: usize = 1 << 20;
/// Whole pages never need a read before they can be written.
const PAGE: u64 = 4096;

/// Bytes that are written to an ext4 by one system call at most. The page cache keeps what one call
/// brings as one folio, as long as it is, and ext4 looks at every block of a folio in each later
/// write to it: after writes of 1 MiB one of 4 KiB takes 38 µs, after these 4 (docs/decisions/
/// write-pieces.md).
const EXT4_PIECE: usize = 32 << 10;
/// `f_type` of ext2, ext3 and ext4 (statfs(2)).
const EXT4: u64 = 0xef53;

/// What does the work that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// io_uring where the kernel has it, else blocking threads.
    #[default]
    Auto,
    /// io_uring; opening fails where it is missing.
    Uring,
    /// Tokio's blocking threads.
    Threads,
}

/// How to open a local file.
#[derive(Debug, Clone, Default)]
pub struct LocalOptions {
    /// Refuse writes. Whoever only looks has no claim on the file; others may write it meanwhile.
    pub read_only: bool,
    /// Nobody may write the file meanwhile, this opener neither: a reader's claim.
    pub still: bool,
    /// Make the file; fail if it is there already.
    pub create_new: bool,
    /// Make the file if it is missing.
    pub create: bool,
    /// Have no claim on the file ([`Claim`]). One writer per image is then the caller's care.
    pub no_lock: bool,
    /// What does the work that may wait.
    pub engine: Engine,
}

impl LocalOptions {
    /// For a look at a file, whatever others do with it.
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }

    /// For reading a file that nobody writes meanwhile.
    pub fn still() -> Self {
        Self { still: true, ..Self::read_only() }
    }

    /// For reading and writing a file that exists.
    pub fn read_write() -> Self {
        Self::default()
    }

    /// For reading and writing a file that must not exist yet.
    pub fn create_new() -> Self {
        Self { create_new: true, ..Self::default() }
    }

    /// What an opener with these claims.
    fn claim(&self) -> Option<Claim> {
        match (self.no_lock, self.read_only || self.still, self.still) {
            (true, ..) | (_, true, false) => None,
            (_, true, true) => Some(Claim::Still),
            (_, false, _) => Some(Claim::Writer),
        }
    }
}

/// An open local file. Cheap to share behind an `Arc`; needs a tokio runtime around its use.
///
/// A writable one claims the file ([`Claim::Writer`]) until it is closed or dropped: one writer at a
/// time, in any process, QEMU's programs among them.
#[derive(Debug)]
pub struct LocalFile {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    read_only: bool,
    closed: AtomicBool,
    /// The file system answers `RWF_NOWAIT` reads.
    nowait_reads: AtomicBool,
    /// The file system answers `RWF_NOWAIT` writes.
    nowait_writes: AtomicBool,
    /// Bytes of one call that writes.
    piece: usize,
    ring: Option<Arc<ring::Ring>>,
    flushes: FlushGroup,
}

impl LocalFile {
    /// Opens or makes the regular file (or block device) at `path`.
    ///
    /// # Errors
    /// [`Error::Busy`], with their name, if someone uses the file in a way that does not go together
    /// with this; [`Error::NoLocks`] if its file system cannot tell; [`Error::Io`] for what the
    /// operating system says; [`Error::Unsupported`] if io_uring was demanded and is missing.
    pub fn open(path: impl AsRef<Path>, options: &LocalOptions) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let at = |what: &str| format!("{what} {}", path.display());
        let file = fs::OpenOptions::new()
            .read(true)
            .write(!options.read_only && !options.still)
            .create_new(options.create_new)
            .create(options.create && !options.read_only && !options.still)
            // A pipe without a writer is not waited for: it is refused. To files and block devices this
            // is nothing.
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
            .map_err(|e| Error::io(at("opening"), e))?;
        Self::take(file, path, options)
    }

    /// Takes over a file that was opened by other means, with the claim that `options` say; how to open
    /// it they do not say any more. `path` is for messages only.
    ///
    /// # Errors
    /// As [`LocalFile::open`].
    pub fn take(file: fs::File, path: impl Into<PathBuf>, options: &LocalOptions) -> Result<Self> {
        let path = path.into();
        let at = |what: &str| format!("{what} {}", path.display());
        let kind = file.metadata().map_err(|e| Error::io(at("looking at"), e))?.file_type();
        if kind.is_dir() {
            return Err(Error::io(at("opening"), io::ErrorKind::IsADirectory.into()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            let what = io::Error::new(io::ErrorKind::InvalidInput, "no file and no block device");
            return Err(Error::io(at("opening"), what));
        }
        if let Some(claim) = options.claim() {
            image_lock::claim(file.as_fd(), None, claim).map_err(|refusal| match refusal {
                Refusal::InUse => {
                    Error::Busy(format!("{} is {}", path.display(), image_lock::who(file.as_fd())))
                }
                Refusal::NoLocks => Error::NoLocks(path.display().to_string()),
                Refusal::System(error) => Error::io(at("locking"), error),
            })?;
        }
        let read_only = options.read_only || options.still;
        Self::from_fd(file.into(), path, read_only, options.engine)
    }

    /// Takes over a descriptor that was opened by other means, without a claim on it. `path`
    /// is for messages only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if io_uring was demanded and is missing.
    pub fn from_fd(
        fd: OwnedFd,
        path: impl Into<PathBuf>,
        read_only: bool,
        engine: Engine,
    ) -> Result<Self> {
        let ring = match engine {
            Engine::Threads => None,
            Engine::Auto => ring::shared(),
            Engine::Uring => {
                Some(ring::shared().ok_or(Error::Unsupported("io_uring on this kernel"))?)
            }
        };
        let ext4 =
            rustix::fs::fstatfs(&fd).is_ok_and(|found| u64::try_from(found.f_type) == Ok(EXT4));
        Ok(Self {
            piece: if ext4 { EXT4_PIECE } else { usize::MAX },
            fd: Arc::new(fd),
            path: path.into(),
            read_only,
            closed: AtomicBool::new(false),
            nowait_reads: AtomicBool::new(true),
            nowait_writes: AtomicBool::new(true),
            ring,
            flushes: FlushGroup::new(),
        })
    }

    /// Appends to `out` up to `len` bytes from `offset`, if that needs no waiting. `None` means
    /// that some of it is not in the page cache; `out` is then as it was. Fewer bytes than `len`
    /// come only at the end of the file.
    ///
    /// # Errors
    /// What the operating system says; that it would wait is none.
    pub fn read_now(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<Option<usize>> {
        self.usable()?;
        let start = out.len();
        let mut done = 0;
        while done < len && self.nowait_reads.load(Ordering::Relaxed) {
            match append_cached(self.fd.as_fd(), offset + done as u64, len - done, out) {
                Ok(0) => return Ok(Some(done)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.nowait_reads.store(false, Ordering::Relaxed);
                }
                Err(error) => {
                    out.truncate(start);
                    return Err(self.error("reading", error));
                }
            }
        }
        if done == len {
            return Ok(Some(done));
        }
        out.truncate(start);
        Ok(None)
    }

    /// Writes `buf` at `offset` if the page cache takes it at once; `false` means that nothing
    /// or a part was written and the whole is to be written again by [`File::write_at`].
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; what the operating system says.
    pub fn write_now(&self, offset: u64, buf: &[u8]) -> Result<bool> {
        self.writable()?;
        Ok(self.write_cached(offset, buf)? == buf.len())
    }

    /// As [`LocalFile::write_now`], for the first `len` bytes of what `pipe` holds, with no copy but
    /// the one to the page cache. Says how many of them were taken; the others stay in the pipe.
    ///
    /// # Errors
    /// What the file system says; nothing was taken then.
    pub fn write_piped(&self, offset: u64, pipe: &mut SplicePipe, len: usize) -> Result<usize> {
        self.writable()?;
        let piece = |at, len| piece(self.piece, at, len);
        let len = len.min(INLINE_WRITE);
        pipe.drain(&*self.fd, offset, len, piece).map_err(|e| self.error("writing", e))
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn context(&self, what: &str) -> String {
        format!("{what} {}", self.path.display())
    }

    fn error(&self, what: &str, source: impl Into<io::Error>) -> Error {
        Error::io(self.context(what), source.into())
    }

    fn usable(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn writable(&self) -> Result<()> {
        self.usable()?;
        if self.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// Reads what the page cache has, without waiting. Returns the bytes read and whether the
    /// end of the file was met.
    fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<(usize, bool)> {
        let mut done = 0;
        while done < buf.len() && self.nowait_reads.load(Ordering::Relaxed) {
            let mut slices = [IoSliceMut::new(&mut buf[done..])];
            let at = offset + done as u64;
            match rustix::io::preadv2(&*self.fd, &mut slices, at, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Ok((done, true)),
                Ok(n) => done += n,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.nowait_reads.store(false, Ordering::Relaxed);
                }
                Err(e) => return Err(self.error("reading", e)),
            }
        }
        Ok((done, false))
    }

    /// Puts a small write into the page cache on the caller; returns the bytes taken.
    fn write_cached(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let part = &buf[done..done + piece(self.piece, at, buf.len() - done)];
            let nowait = self.nowait_writes.load(Ordering::Relaxed);
            // File systems that cannot promise not to wait (ext4) take a whole page into the
            // cache in microseconds all the same; a thread hop costs ten times that.
            let plain = buf.len() <= INLINE_WRITE
                && offset.is_multiple_of(PAGE)
                && (buf.len() as u64).is_multiple_of(PAGE);
            let result = if nowait {
                rustix::io::pwritev2(&*self.fd, &[IoSlice::new(part)], at, ReadWriteFlags::NOWAIT)
            } else if plain {
                rustix::io::pwrite(&*self.fd, part, at)
            } else {
                break;
            };
            match result {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if nowait => break,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if nowait => {
                    self.nowait_writes.store(false, Ordering::Relaxed);
                }
                Err(e) => return Err(self.error("writing", e)),
            }
        }
        Ok(done)
    }

    /// Runs a system call that may wait on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&OwnedFd) -> rustix::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let fd = self.fd.clone();
        pool::run(move || call(&fd)).await?.map_err(|e| self.error(what, e))
    }

    async fn fallocate(
        &self,
        what: &'static str,
        flags: FallocateFlags,
        range: Range<u64>,
    ) -> Result<()> {
        self.writable()?;
        let Some(len) = range.end.checked_sub(range.start).filter(|len| *len > 0) else {
            return Ok(());
        };
        let fd = self.fd.clone();
        let call = move || match rustix::fs::fallocate(&*fd, flags, range.start, len) {
            // A device with blocks larger than these bytes, which cannot be zeroed by it.
            Err(Errno::INVAL) if is_device(&fd) => Err(Errno::OPNOTSUPP),
            other => other,
        };
        match pool::run(call).await? {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(Error::Unsupported(what)),
            Err(e) => Err(self.error(what, e)),
        }
    }
}

impl AsFd for LocalFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl File for LocalFile {
    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> IoFuture<'a, usize> {
        Box::pin(async move {
            self.usable()?;
            let (done, ended) = self.read_cached(offset, buf)?;
            if ended || done == buf.len() {
                return Ok(done);
            }
            let rest = &mut buf[done..];
            let at = offset + done as u64;
            let owned = vec![0; rest.len()];
            let (result, owned) = match &self.ring {
                Some(ring) => ring.read(self.fd.clone(), at, owned).await?,
                None => pool::read(self.fd.clone(), at, owned).await?,
            };
            let n = result.map_err(|e| self.error("reading", e))?;
            rest[..n].copy_from_slice(&owned[..n]);
            Ok(done + n)
        })
    }

    fn write_whole<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.writable()?;
            // What has no room for all of it is to have none of it.
            let range = offset..offset + buf.len() as u64;
            match self.fallocate("reserving space", FallocateFlags::empty(), range).await {
                Ok(()) | Err(Error::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
            pool::write(self.fd.clone(), offset, buf.to_vec(), usize::MAX)
                .await?
                .map_err(|e| self.error("writing", e))
        })
    }

    fn write_at<'a>(&'a self, offset: u64, buf: &'a [u8]) -> IoFuture<'a, ()> {
        Box::pin(async move {
            self.writable()?;
            let done = self.write_cached(offset, buf)?;
            if done == buf.len() {
                return Ok(());
            }
            let (at, rest) = (offset + done as u64, &buf[done..]);
            // Whoever gives up in the middle leaves no half of a write: the pieces are one job.
            match &self.ring {
                Some(ring) if piece(self.piece, at, rest.len()) == rest.len() => {
                    ring.write(self.fd.clone(), at, rest.to_vec()).await?
                }
                _ => pool::write(self.fd.clone(), at, rest.to_vec(), self.piece).await?,
            }
            .map_err(|e| self.error("writing", e))
        })
    }

    fn flush(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.usable()?;
            self.flushes
                .run(|| async {
                    match &self.ring {
                        Some(ring) => ring.sync(self.fd.clone()).await?,
                        None => pool::sync(self.fd.clone()).await?,
                    }
                    .map_err(|e| self.error("flushing", e))
                })
                .await
        })
    }

    fn len(&self) -> IoFuture<'_, u64> {
        Box::pin(async move {
            self.usable()?;
            let stat = rustix::fs::fstat(&*self.fd).map_err(|e| self.error("looking at", e))?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device() {
                return rustix::fs::seek(&*self.fd, SeekFrom::End(0))
                    .map_err(|e| self.error("measuring", e));
            }
            Ok(u64::try_from(stat.st_size).unwrap_or(0))
        })
    }

    fn set_len(&self, len: u64) -> IoFuture<'_, ()> {
        Box::pin(async move {
            self.writable()?;
            self.blocking("resizing", move |fd| rustix::fs::ftruncate(fd, len)).await
        })
    }

    fn punch_hole(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Box::pin(self.fallocate("punching holes", flags, range))
    }

    fn allocate(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        Box::pin(self.fallocate("reserving space", FallocateFlags::empty(), range))
    }

    fn zero_range(&self, range: Range<u64>) -> IoFuture<'_, ()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        Box::pin(async move {
            match self.fallocate("zeroing in place", flags, range.clone()).await {
                Err(Error::Unsupported(_)) => {}
                other => return other,
            }
            // tmpfs has only the two steps.
            self.punch_hole(range.clone()).await?;
            self.allocate(range).await
        })
    }

    fn allocated_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move {
            self.usable()?;
            let end = range.end.min(self.len().await?);
            if range.start >= end {
                return Ok(Vec::new());
            }
            self.blocking("looking for holes in", move |fd| data_ranges(fd, range.start..end)).await
        })
    }

    fn written_ranges(&self, range: Range<u64>) -> IoFuture<'_, Vec<Range<u64>>> {
        Box::pin(async move {
            self.usable()?;
            let end = range.end.min(self.len().await?);
            if range.start >= end {
                return Ok(Vec::new());
            }
            let looked = move |fd: &OwnedFd| written_ranges(fd, range.start..end);
            self.blocking("looking for what is written in", looked).await
        })
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn close(&self) -> IoFuture<'_, ()> {
        Box::pin(async move {
            if !self.closed.swap(true, Ordering::AcqRel) {
                // Given up now even if someone still holds the value.
                image_lock::release(self.fd.as_fd());
            }
            Ok(())
        })
    }
}

fn is_device(fd: &OwnedFd) -> bool {
    let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind == Ok(FileType::BlockDevice)
}

/// How much of `len` bytes at `at` one call writes: up to the next multiple of `most`, as folios lie.
fn piece(most: usize, at: u64, len: usize) -> usize {
    len.min(most - usize::try_from(at % most as u64).unwrap_or(0))
}

/// Walks `SEEK_DATA`/`SEEK_HOLE`; a file system without them gives the whole range.
fn data_ranges(fd: &OwnedFd, range: Range<u64>) -> rustix::io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                found.push(at..range.end);
                break;
            }
            Err(e) => return Err(e),
        };
        if start >= range.end {
            break;
        }
        let end = rustix::fs::seek(fd, SeekFrom::Hole(start))?.min(range.end);
        found.push(start..end);
        at = end;
    }
    Ok(found)
}

/// What [`data_ranges`] says, without extents that were never written: `SEEK_DATA` takes those for
/// data of which a page was read. A file system that tells of no extents leaves it at that.
fn written_ranges(fd: &OwnedFd, range: Range<u64>) -> rustix::io::Result<Vec<Range<u64>>> {
    let data = data_ranges(fd, range.clone())?;
    let mut found: Vec<Range<u64>> = Vec::new();
    let (mut map, mut flags) = (Fiemap::new(), fiemap::SYNC);
    for part in data {
        let mut at = part.start;
        while at < part.end {
            let extents = match map.ask(fd.as_fd(), at..part.end, flags, fiemap::STEP) {
                Ok(extents) => extents,
                Err(Errno::OPNOTSUPP | Errno::NOTTY) => return data_ranges(fd, range),
                Err(e) => return Err(e),
            };
            flags = 0;
            // Data that no extent holds have gone since the first look.
            let Some(last) = extents.last() else { break };
            let next = last.logical.saturating_add(last.length);
            for extent in extents.iter().filter(|extent| extent.flags & fiemap::UNWRITTEN == 0) {
                let start = extent.logical.max(at);
                let end = extent.logical.saturating_add(extent.length).min(part.end);
                match found.last_mut() {
                    Some(last) if last.end >= start => last.end = last.end.max(end),
                    _ if start < end => found.push(start..end),
                    _ => {}
                }
            }
            if next <= at {
                break;
            }
            at = next;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
