//! Space of files: copying, sharing and zeroing ranges, filling holes, setting aside. Everything here may
//! wait for the disk and belongs on a thread that may.

use std::{
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{FallocateFlags, Mode, OFlags, SeekFrom},
    io::Errno,
};

use crate::work::aside;

/// Most bytes that one step of a copy moves through memory.
const STEP: usize = 1 << 20;

/// Copies `len` bytes between descriptors, in the kernel where it can, sharing blocks where the
/// file system can. Ranges of one file that overlap come out as if the source had been read
/// first, up to `STEP` bytes. Returns the bytes copied; fewer than `len` come only with an
/// error or at the end of the source.
pub fn copy(
    source: BorrowedFd<'_>,
    from: u64,
    target: BorrowedFd<'_>,
    to: u64,
    len: u64,
) -> (u64, Result<(), Errno>) {
    // As long as it is now: a copy within one file may move its end.
    let size = match rustix::fs::fstat(source) {
        Ok(stat) => u64::try_from(stat.st_size).unwrap_or(0),
        Err(error) => return (0, Err(error)),
    };
    let len = len.min(size.saturating_sub(from));
    let mut done = 0;
    while done < len {
        let (mut at, mut put) = (from + done, to + done);
        let want = usize::try_from(len - done).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut at), target, Some(&mut put), want) {
            Ok(0) => break,
            Ok(n) => done += n as u64,
            Err(Errno::INTR) => {}
            // Two file systems, one file with overlap, or one that has no such call.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF) => {
                let (rest, result) =
                    copy_through(source, from + done, target, to + done, len - done);
                return (done + rest, result);
            }
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// Copies through memory, a step at a time.
fn copy_through(
    source: BorrowedFd<'_>,
    from: u64,
    target: BorrowedFd<'_>,
    to: u64,
    len: u64,
) -> (u64, Result<(), Errno>) {
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(STEP).min(STEP)];
    let mut done = 0;
    while done < len {
        let want = buffer.len().min(usize::try_from(len - done).unwrap_or(usize::MAX));
        let got = match read_full(source, from + done, &mut buffer[..want]) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) => return (done, Err(error)),
        };
        let (put, result) = write_full(target, to + done, &buffer[..got]);
        done += put;
        if result.is_err() {
            return (done, result);
        }
    }
    (done, Ok(()))
}

fn read_full(fd: BorrowedFd<'_>, at: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn write_full(fd: BorrowedFd<'_>, at: u64, buffer: &[u8]) -> (u64, Result<(), Errno>) {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pwrite(fd, &buffer[done..], at + done as u64) {
            Ok(0) => return (done as u64, Err(Errno::IO)),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(error) => return (done as u64, Err(error)),
        }
    }
    (done as u64, Ok(()))
}

/// Lets a range of `target` have the blocks of a range of `source`: nothing is copied, and each
/// file keeps its content when the other is written. A length of 0 means up to the end of the
/// source. Both ranges begin and end at blocks, except at the end of the source.
///
/// # Errors
/// `EOPNOTSUPP` where the file system cannot, `EINVAL` for ranges it does not take, `EXDEV` for
/// files of two file systems.
#[expect(unsafe_code, reason = "FICLONERANGE has no safe wrapper")]
pub fn share(
    source: BorrowedFd<'_>,
    from: u64,
    target: BorrowedFd<'_>,
    to: u64,
    len: u64,
) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;

    use rustix::ioctl::{Setter, ioctl, opcode};

    /// `struct file_clone_range` (linux/fs.h).
    #[repr(C)]
    struct CloneRange {
        source: i64,
        from: u64,
        len: u64,
        to: u64,
    }
    const FICLONERANGE: rustix::ioctl::Opcode = opcode::write::<CloneRange>(0x94, 13);
    let range = CloneRange { source: source.as_raw_fd().into(), from, len, to };
    // SAFETY: FICLONERANGE reads one `file_clone_range`, which `CloneRange` lays out field by
    // field; the descriptor in it is borrowed for the whole call.
    unsafe { ioctl(target, Setter::<FICLONERANGE, CloneRange>::new(range)) }
}

/// Whether files in `folder` can share blocks; found out with two files that have no name.
pub fn can_share(folder: BorrowedFd<'_>) -> bool {
    const BLOCK: usize = 64 << 10;
    let nameless = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(folder, ".", flags, Mode::from_raw_mode(0o600))
    };
    let (Ok(source), Ok(target)) = (nameless(), nameless()) else { return false };
    write_full(source.as_fd(), 0, &[0; BLOCK]).1.is_ok()
        && share(source.as_fd(), 0, target.as_fd(), 0, BLOCK as u64).is_ok()
}

/// Makes a range read as zeros without changing the length of the file. `release` gives its
/// blocks back; else they stay set aside.
pub fn zero(fd: BorrowedFd<'_>, range: Range<u64>, release: bool) -> Result<(), Errno> {
    let Some(len) = range.end.checked_sub(range.start).filter(|len| *len > 0) else {
        return Ok(());
    };
    let flags = if release { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
    match rustix::fs::fallocate(fd, flags | FallocateFlags::KEEP_SIZE, range.start, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        other => return other,
    }
    let zeros = vec![0; usize::try_from(len).unwrap_or(STEP).min(STEP)];
    let mut at = range.start;
    while at < range.end {
        let step = zeros.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        let (put, result) = write_full(fd, at, &zeros[..step]);
        result?;
        at += put;
    }
    Ok(())
}

/// Gives every hole of the first `len` bytes blocks of its own.
pub fn fill_holes(fd: BorrowedFd<'_>, len: u64) -> Result<(), Errno> {
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, 0, len) {
        // Such a file system decides by itself what takes space.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => other,
    }
}

/// The parts of a range that hold data, at most `most` of them; what lies behind the end of the
/// file holds none. A file system that does not tell gives the whole range.
pub fn data_ranges(
    fd: BorrowedFd<'_>,
    range: Range<u64>,
    most: usize,
) -> Result<Vec<Range<u64>>, Errno> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end && found.len() < most {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let len = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
                if at < len {
                    found.push(at..range.end.min(len));
                }
                break;
            }
            Err(error) => return Err(error),
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

/// Fails if so much cannot be set aside for a file that is about to give back what it has.
///
/// # Errors
/// `NOSPC`, and what the file system says.
pub fn check_room(fd: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    let space = rustix::fs::fstatvfs(fd)?;
    let own = rustix::fs::fstat(fd)?.st_blocks as u64 * 512;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if size > free.saturating_add(own) { Err(Errno::NOSPC) } else { Ok(()) }
}

/// Sets space aside without changing the length; a file system that cannot is not an error. What takes
/// long is done aside.
///
/// # Errors
/// What the file system says.
pub fn reserve(fd: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    /// Bytes that are quickly set aside.
    const SMALL: u64 = 64 << 20;
    let give = || rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, 0, size);
    match if size > SMALL { aside(give) } else { give() } {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::fs::{FileExt, MetadataExt},
    };

    use proptest::prelude::*;

    use super::*;

    fn file(content: &[u8]) -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    fn content(file: &std::fs::File) -> Vec<u8> {
        use std::io::Seek;
        let mut file = file.try_clone().unwrap();
        file.rewind().unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn zeroing_keeps_the_length_and_releases_when_asked() {
        let data = vec![7; 1 << 20];
        let kept = file(&data);
        zero(kept.as_fd(), 100..900_000, false).unwrap();
        let released = file(&data);
        zero(released.as_fd(), 100..900_000, true).unwrap();
        for file in [&kept, &released] {
            let now = content(file);
            assert_eq!(now.len(), data.len());
            assert!(now[100..900_000].iter().all(|b| *b == 0));
            assert!(now[..100].iter().chain(&now[900_000..]).all(|b| *b == 7));
        }
        assert!(released.metadata().unwrap().blocks() <= kept.metadata().unwrap().blocks());
    }

    #[test]
    fn holes_are_found_and_filled() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        let found = data_ranges(file.as_fd(), 0..8 << 20, 100).unwrap();
        assert!(found.iter().any(|range| range.contains(&(1 << 20))));
        assert!(found.iter().all(|range| range.end <= 4 << 20));
        fill_holes(file.as_fd(), 4 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4 << 20);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A copy does what the same copy of vectors does, within a file as between two.
        #[test]
        fn copies_are_as_in_memory(
            from in 0usize..9000,
            to in 0usize..9000,
            len in 0usize..9000,
            one_file in any::<bool>(),
        ) {
            let data: Vec<u8> = (0..12_000u32).map(|n| (n * 7 % 251) as u8).collect();
            let source = file(&data);
            let target = if one_file { source.try_clone().unwrap() } else { file(&[9; 10_000]) };
            let mut wanted = content(&target);
            let part = data[from.min(data.len())..(from + len).min(data.len())].to_vec();
            if !part.is_empty() {
                wanted.resize(wanted.len().max(to + part.len()), 0);
                wanted[to..to + part.len()].copy_from_slice(&part);
            }
            let (done, result) =
                copy(source.as_fd(), from as u64, target.as_fd(), to as u64, len as u64);
            result.unwrap();
            prop_assert_eq!(done as usize, part.len());
            prop_assert_eq!(content(&target), wanted);
        }
    }
}
