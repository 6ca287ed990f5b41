//! Reading from the page cache behind what a buffer holds, without clearing that space first: for
//! large reads clearing costs as much as the read.

#![expect(unsafe_code, reason = "the system fills memory that is not initialised yet")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Appends up to `len` bytes at `offset` of what the page cache has, in one call that does not
/// wait. Returns how many; 0 is the end of the file.
///
/// # Errors
/// What `preadv2` says: [`Errno::AGAIN`] when the next byte is not in the page cache.
pub fn append_cached(
    fd: BorrowedFd<'_>,
    offset: u64,
    len: usize,
    out: &mut Vec<u8>,
) -> Result<usize, Errno> {
    let at = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
    out.reserve(len);
    let spare = &mut out.spare_capacity_mut()[..len];
    let target = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    // SAFETY: the descriptor is open as long as it is borrowed; the offset is passed whole in the
    // first of its two words, as on every 64-bit system; and `target` describes `len` bytes of
    // spare capacity that nothing else refers to during the call.
    let read = unsafe {
        // Not `libc::preadv2`, which makes every call a point where a thread can be cancelled.
        libc::syscall(libc::SYS_preadv2, fd.as_raw_fd(), &target, 1, at, 0, libc::RWF_NOWAIT)
    };
    let Ok(read) = usize::try_from(read) else {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    };
    // SAFETY: the system has written `read` bytes, at most `len`, right behind the old length.
    unsafe { out.set_len(out.len() + read) };
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, os::fd::AsFd};

    use super::*;

    #[test]
    fn what_was_there_stays_and_the_rest_is_the_files() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut out = b"head".to_vec();
        let read = |file: &File, offset, len, out: &mut Vec<u8>| {
            append_cached(file.as_fd(), offset, len, out)
        };
        assert_eq!(read(&file, 2, 3, &mut out), Ok(3));
        assert_eq!(out, b"head234");
        assert_eq!(read(&file, 8, 100, &mut out), Ok(2));
        assert_eq!(read(&file, 10, 100, &mut out), Ok(0));
        assert_eq!(out, b"head23489");
        assert_eq!(read(&file, u64::MAX, 1, &mut out), Err(Errno::INVAL));
        assert_eq!(out, b"head23489");
    }
}
