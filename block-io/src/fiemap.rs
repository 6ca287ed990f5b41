//! Where the system keeps the bytes of a file (FIEMAP, Documentation/filesystems/fiemap.rst).

use std::{ops::Range, os::fd::BorrowedFd};

use rustix::{
    io::Errno,
    ioctl::{Opcode, Updater, ioctl, opcode},
};

/// Extents that the system is asked for at a time.
pub const STEP: usize = 256;

/// `FIEMAP_FLAG_SYNC`: what waits in the page cache is written first.
pub const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_LAST`: the file has no extent behind it.
pub const LAST: u32 = 1;
/// `FIEMAP_EXTENT_UNKNOWN`, `DELALLOC`, `ENCODED`, `NOT_ALIGNED`, `DATA_INLINE`: those have no whole
/// clusters of their own.
pub const NO_PLACE: u32 = 0x2 | 0x4 | 0x8 | 0x100 | 0x200;
/// `FIEMAP_EXTENT_UNWRITTEN`: space that reads as zeros.
pub const UNWRITTEN: u32 = 0x800;

/// A run of bytes that lie together: `struct fiemap_extent` (linux/fiemap.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Mapped {
    /// The first of its bytes in the file.
    pub logical: u64,
    /// The first of its bytes on the volume.
    pub physical: u64,
    /// Its length in bytes.
    pub length: u64,
    reserved: [u64; 2],
    /// What kind of extent it is: `FIEMAP_EXTENT_*`.
    pub flags: u32,
    reserved2: [u32; 3],
}

/// A question and room for its answer: `struct fiemap` (linux/fiemap.h).
#[repr(C)]
#[derive(Debug)]
pub struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Mapped; STEP],
}

/// `struct fiemap` without the room, by whose size the system knows the request.
#[repr(C)]
struct Head {
    numbers: [u64; 4],
}

const FS_IOC_FIEMAP: Opcode = opcode::read_write::<Head>(b'f', 11);

impl Fiemap {
    /// Room for [`STEP`] extents.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            start: 0,
            length: 0,
            flags: 0,
            mapped: 0,
            count: 0,
            reserved: 0,
            extents: [Mapped::default(); STEP],
        })
    }

    /// Asks for at most `count` of the extents that lie in a range of bytes, the first ones. With [`SYNC`]
    /// it waits for the disk.
    ///
    /// # Errors
    /// `EOPNOTSUPP` or `ENOTTY` where the file system does not tell; what the file system says.
    #[expect(unsafe_code, reason = "FS_IOC_FIEMAP has no safe wrapper")]
    pub fn ask(
        &mut self,
        fd: BorrowedFd<'_>,
        range: Range<u64>,
        flags: u32,
        count: usize,
    ) -> Result<&[Mapped], Errno> {
        (self.start, self.length) = (range.start, range.end.saturating_sub(range.start));
        (self.flags, self.mapped, self.count) = (flags, 0, count.min(STEP) as u32);
        // SAFETY: FS_IOC_FIEMAP reads one `fiemap` and writes at most `count` of `fiemap_extent`
        // behind it, for all of which `Fiemap` has room; all their bytes may have any value.
        let asked = unsafe { ioctl(fd, Updater::<FS_IOC_FIEMAP, Self>::new(self)) };
        match asked {
            // No file is as long as that.
            Err(Errno::FBIG) => return Ok(&[]),
            other => other?,
        }
        Ok(self.extents.get(..self.mapped as usize).unwrap_or_default())
    }
}
