//! Images for programs without an asynchronous runtime: local files, and every other operation of
//! this crate by [`wait`].
//!
//! ```text
//!  caller's thread ──► wait(future) ──► one runtime of the process, with two threads of its own
//! ```
//!
//! ```
//! # fn main() -> Result<(), vhd::Error> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("disk.vhdx");
//! use vhd::{blocking, vhdx::CreateOptions};
//!
//! let disk = blocking::create_vhdx(&path, &CreateOptions::new(10 << 30))?;
//! disk.write_at(1 << 30, b"one sector, padded with zeros\0\0\0".repeat(16).as_slice())?;
//! disk.close()?;
//!
//! let disk = blocking::open_read_only(&path)?;
//! let mut sector = [0; 512];
//! disk.read_at(1 << 30, &mut sector)?;
//! assert!(sector.starts_with(b"one sector"));
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here may be called from within an asynchronous runtime: it would block its thread, and
//! panics instead.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use block_io::{File, Geometry, LocalFile, LocalOptions};
use tokio::runtime::Runtime;

use crate::{
    Error, Format, Result,
    chain::{self, LocalFiles},
    classic,
    convert::{CopyOptions, Progress, copy},
    ops, vhdx,
};

/// Threads of the runtime. Work that may wait for a file is done on others.
const THREADS: usize = 2;

/// The process's runtime for blocking callers.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let made = builder.worker_threads(THREADS).thread_name("vhd").enable_all().build();
    let made = made.map_err(|e| block_io::Error::io("starting a runtime", e))?;
    // Another thread may have been faster; its runtime is taken.
    Ok(RUNTIME.get_or_init(|| made))
}

/// Runs one of this crate's operations to its end: `wait(ops::compact(file, ...))`.
///
/// # Errors
/// What the operation says; [`block_io::Error::Io`] if no thread can be started.
///
/// # Panics
/// Within an asynchronous runtime.
pub fn wait<T, E: Into<Error>>(
    operation: impl Future<Output = std::result::Result<T, E>>,
) -> Result<T> {
    runtime()?.block_on(operation).map_err(Into::into)
}

/// Opens a local file for the operations that take one; [`LocalOptions`] says how. One that may be
/// written is locked against other writers until it is dropped or closed.
///
/// # Errors
/// As [`LocalFile::open`].
pub fn file(path: impl AsRef<Path>, options: &LocalOptions) -> Result<Arc<dyn File>> {
    wait(async { LocalFile::open(path, options).map(|file| Arc::new(file) as Arc<dyn File>) })
}

/// The format that a path's ending says.
fn format(path: &Path) -> Result<Format> {
    Format::from_path(path).ok_or_else(|| {
        Error::InvalidOptions(format!("{}: no ending of an image format", path.display()))
    })
}

/// Opens the image at `path` for reading and writing, in the format that its ending says, with its
/// parents if it is a differencing one. Nobody else can write it meanwhile.
///
/// # Errors
/// [`block_io::Error::Busy`] if someone writes it; what the image and its parents say.
pub fn open(path: impl AsRef<Path>) -> Result<Disk> {
    open_as(path.as_ref(), &LocalOptions::read_write())
}

/// As [`open`], for reading only. Never writes: a log that was left is replayed in memory.
///
/// # Errors
/// What the image and its parents say.
pub fn open_read_only(path: impl AsRef<Path>) -> Result<Disk> {
    open_as(path.as_ref(), &LocalOptions::read_only())
}

fn open_as(path: &Path, options: &LocalOptions) -> Result<Disk> {
    let format = format(path)?;
    open_in(file(path, options)?, path, format)
}

fn open_in(file: Arc<dyn File>, path: &Path, format: Format) -> Result<Disk> {
    let Some(location) = path.to_str() else {
        return Err(Error::InvalidOptions(format!("{}: not UTF-8", path.display())));
    };
    let disk = wait(chain::open_disk(file, location, format, &LocalFiles::beside(location)))?;
    Ok(Disk { disk })
}

/// Makes a VHDX at `path`, where nothing must be, and opens it.
///
/// # Errors
/// [`Error::InvalidOptions`]; what the operating system says.
pub fn create_vhdx(path: impl AsRef<Path>, options: &vhdx::CreateOptions) -> Result<Disk> {
    options.validate()?;
    let file = file(&path, &LocalOptions::create_new())?;
    wait(vhdx::create(file.clone(), options))?;
    open_in(file, path.as_ref(), Format::Vhdx)
}

/// Makes a VHD at `path`, where nothing must be, and opens it.
///
/// # Errors
/// [`Error::InvalidOptions`]; what the operating system says.
pub fn create_vhd(path: impl AsRef<Path>, options: &classic::CreateOptions) -> Result<Disk> {
    options.validate()?;
    let file = file(&path, &LocalOptions::create_new())?;
    wait(classic::create(file.clone(), options))?;
    open_in(file, path.as_ref(), Format::Vhd)
}

/// Judges the VHDX or VHD at `path` without writing to it.
///
/// # Errors
/// As [`vhdx::check`]; [`Error::Unsupported`] for other formats.
pub fn check(path: impl AsRef<Path>) -> Result<vhdx::Report> {
    let path = path.as_ref();
    let (format, file) = (format(path)?, file(path, &LocalOptions::read_only())?);
    match format {
        Format::Vhdx => wait(vhdx::check(file)),
        Format::Vhd => wait(classic::check(file)),
        other => Err(Error::Unsupported(format!("checking a {other} image here"))),
    }
}

/// Gives the VHDX or VHD at `path`, which is not a differencing one, `size` bytes. Shorter only past
/// the end of its data.
///
/// # Errors
/// As [`ops::resize`].
pub fn resize(path: impl AsRef<Path>, size: u64) -> Result<()> {
    let path = path.as_ref();
    let (format, file) = (format(path)?, file(path, &LocalOptions::read_write())?);
    let done = wait(ops::resize(file.clone(), format, size, ops::ResizeOptions::default()));
    // The lock is given up now, not when the last helper thread lets go of the file.
    wait(file.close()).and(done)
}

/// Copies all of `source` to `target`, which reads as zeros everywhere: a new image, say.
///
/// # Errors
/// As [`copy`].
pub fn convert(source: &Disk, target: &Disk, progress: impl FnMut(Progress)) -> Result<Progress> {
    let options = CopyOptions { target_is_zero: true, ..CopyOptions::default() };
    wait(copy(source.disk.clone(), target.disk.clone(), options, progress))
}

/// An open image. Offsets and lengths are in bytes and whole logical sectors. Threads may share it.
///
/// Dropping it is like a crash of the program: what was flushed is there. [`Disk::close`] ends it in
/// an orderly way.
#[derive(Debug, Clone)]
pub struct Disk {
    disk: Arc<dyn block_io::Disk>,
}

impl Disk {
    /// Presents any disk to blocking callers.
    pub fn new(disk: Arc<dyn block_io::Disk>) -> Self {
        Self { disk }
    }

    /// The disk itself, for the operations of this crate that take one.
    pub fn inner(&self) -> &Arc<dyn block_io::Disk> {
        &self.disk
    }

    /// Capacity and sector sizes.
    pub fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// What is not whole sectors or past the end; what the file says.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        wait(self.disk.read_at(offset, buf))
    }

    /// Writes all of `buf` at `offset`. Durable only after [`Disk::flush`].
    ///
    /// # Errors
    /// As [`Disk::read_at`]; [`block_io::Error::ReadOnly`].
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        wait(self.disk.write_at(offset, buf))
    }

    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// What the file says; a failure stays.
    pub fn flush(&self) -> Result<()> {
        wait(self.disk.flush())
    }

    /// Makes `len` bytes at `offset` read as zeros, without writing them where possible.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        wait(self.disk.write_zeroes(offset, len))
    }

    /// Declares `len` bytes at `offset` unused; they may read as anything older or zero after.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        wait(self.disk.discard(offset, len))
    }

    /// The parts of `range` that may hold data; everything else in it reads as zeros.
    ///
    /// # Errors
    /// A range past the end; what the file says.
    pub fn allocated_ranges(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        wait(self.disk.allocated_ranges(range))
    }

    /// Flushes, records an orderly end in the image and gives up its file and its lock. Later
    /// operations, also through clones, fail.
    ///
    /// # Errors
    /// What the file says.
    pub fn close(self) -> Result<()> {
        wait(self.disk.close())
    }
}
