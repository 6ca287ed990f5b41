//! What is too long for an extended attribute of a file: it lies beside the file's streams, in
//! `<id>/reparse`, goes with them when the file does, and is none of them.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use crate::fs::streams::{StreamStore, fresh_name, open_below};

/// The name of the file that has it.
const ASIDE: &str = "reparse";

impl StreamStore {
    /// Keeps data beside the streams of `base`, durable and instead of those that are there.
    pub(crate) fn keep_aside(&self, base: BorrowedFd<'_>, data: &[u8]) -> Result<(), Errno> {
        let folder = self.make_folder(base)?;
        let fresh = fresh_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&folder, fresh.as_str(), flags, mode)?;
        let written = || -> Result<(), Errno> {
            let mut left = data;
            while !left.is_empty() {
                let count = rustix::io::write(&file, left)?;
                left = left.get(count..).ok_or(Errno::IO)?;
            }
            rustix::fs::fsync(&file)?;
            rustix::fs::renameat(&folder, fresh.as_str(), &folder, ASIDE)
        };
        written().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&folder, fresh.as_str(), AtFlags::empty());
        })
    }

    /// The first `len` bytes of what is kept beside the streams of `base`; `None` if it is shorter.
    pub(crate) fn aside(&self, base: BorrowedFd<'_>, len: usize) -> Result<Option<Vec<u8>>, Errno> {
        let Some(folder) = self.folder(base)? else { return Ok(None) };
        let file = match open_below(folder.as_fd(), ASIDE, OFlags::RDONLY | OFlags::NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let mut data = vec![0; len];
        let mut done = 0;
        while done < len {
            match rustix::io::read(&file, &mut data[done..])? {
                0 => return Ok(None),
                count => done += count,
            }
        }
        Ok(Some(data))
    }

    /// Removes what is kept beside the streams of `base`, if anything is.
    pub(crate) fn drop_aside(&self, base: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some(folder) = self.folder(base)? else { return Ok(()) };
        match rustix::fs::unlinkat(&folder, ASIDE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
