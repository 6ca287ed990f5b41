//! What is too long for an extended attribute of a file: it lies beside the file's streams, in
//! `<id>/reparse-0` or `<id>/reparse-1`, goes with them when the file does, and is none of them. What the
//! attribute names of the two is what there is: a change goes to the other, so that a crash leaves the old
//! or the new.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use crate::fs::streams::{StreamStore, fresh_name, open_below};

/// Names of the files that have it.
const ASIDE: [&str; 2] = ["reparse-0", "reparse-1"];

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    First,
    Second,
}

impl Slot {
    /// The other one.
    pub(crate) fn other(self) -> Self {
        if self == Self::First { Self::Second } else { Self::First }
    }

    fn name(self) -> &'static str {
        ASIDE[usize::from(self == Self::Second)]
    }
}

impl StreamStore {
    /// Keeps data beside the streams of `base`, durable and instead of those that are there.
    pub(crate) fn keep_aside(
        &self,
        base: BorrowedFd<'_>,
        slot: Slot,
        data: &[u8],
    ) -> Result<(), Errno> {
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
            rustix::fs::renameat(&folder, fresh.as_str(), &folder, slot.name())
        };
        written().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&folder, fresh.as_str(), AtFlags::empty());
        })
    }

    /// The first `len` bytes of what is kept beside the streams of `base`; `None` if it is shorter.
    pub(crate) fn aside(
        &self,
        base: BorrowedFd<'_>,
        slot: Slot,
        len: usize,
    ) -> Result<Option<Vec<u8>>, Errno> {
        let Some(folder) = self.folder(base)? else { return Ok(None) };
        let file = match open_below(folder.as_fd(), slot.name(), OFlags::RDONLY | OFlags::NOFOLLOW)
        {
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

    /// Removes what is kept beside the streams of `base`, if anything is, but for that of one slot.
    pub(crate) fn drop_aside(&self, base: BorrowedFd<'_>, but: Option<Slot>) -> Result<(), Errno> {
        let Some(folder) = self.folder(base)? else { return Ok(()) };
        for slot in [Slot::First, Slot::Second].into_iter().filter(|slot| Some(*slot) != but) {
            match rustix::fs::unlinkat(&folder, slot.name(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
