//! Names of what is being made in a folder of a share, until it has its own.
//!
//! They hold a colon, so they are none to clients: nobody meets such a file. A server that is killed
//! in between leaves one behind. It keeps no folder from being empty, and goes with it.

use std::{
    ffi::{CStr, OsStr},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags},
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

/// A folder that has not got its list yet.
pub const NEW: &str = ":new-";
/// A further name of a file, which is about to take another's place.
pub const LINK: &str = ":link-";

/// A fresh name of a kind.
///
/// # Errors
/// The system has no random numbers.
pub fn name(kind: &str) -> Result<String, Errno> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!("{kind}{:016x}", u64::from_le_bytes(random)))
}

/// Whether an entry's name is one of these.
pub fn is(name: &[u8]) -> bool {
    let digits = [NEW, LINK].into_iter().find_map(|kind| name.strip_prefix(kind.as_bytes()));
    digits.is_some_and(|digits| digits.len() == 16 && digits.iter().all(u8::is_ascii_hexdigit))
}

/// Removes what was being made in the folder `name`, if there is nothing else in it. Whoever is making it
/// just now finds that it is gone, as the folder is about to be.
///
/// # Errors
/// `NOTEMPTY` if there is something else; what the file system says.
pub fn clear(above: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    const READ: OFlags =
        OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
    let folder = rustix::fs::openat(above, name, READ, Mode::empty())?;
    let mut left = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name if is(name) => left.push(entry.file_name().to_owned()),
            _ => return Err(Errno::NOTEMPTY),
        }
    }
    left.iter().try_for_each(|name| remove(folder.as_fd(), name))
}

fn remove(folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = if name.to_bytes().starts_with(NEW.as_bytes()) {
        AtFlags::REMOVEDIR
    } else {
        AtFlags::empty()
    };
    match rustix::fs::unlinkat(folder, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: &std::path::Path) -> std::os::fd::OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    /// What a server was making when it was killed keeps nobody from removing the folder it lies in.
    #[test]
    fn what_was_being_made_goes_with_its_folder_and_only_then() {
        let root = tempfile::tempdir().unwrap();
        let within = root.path().join("within");
        fs::create_dir(&within).unwrap();
        fs::create_dir(within.join(name(NEW).unwrap())).unwrap();
        fs::write(within.join(name(LINK).unwrap()), "").unwrap();
        fs::write(within.join("real"), "").unwrap();
        let above = open(root.path());
        assert_eq!(clear(above.as_fd(), OsStr::new("within")), Err(Errno::NOTEMPTY));
        assert_eq!(fs::read_dir(&within).unwrap().count(), 3);
        fs::remove_file(within.join("real")).unwrap();
        clear(above.as_fd(), OsStr::new("within")).unwrap();
        assert_eq!(fs::read_dir(&within).unwrap().count(), 0);
    }

    #[test]
    fn other_names_with_a_colon_are_somebody_elses() {
        for name in
            [":new-", ":new-12345", ":new-0123456789abcdeg", "new-0123456789abcdef", ":old-"]
        {
            assert!(!is(name.as_bytes()), "{name}");
        }
        assert!(is(b":new-0123456789abcdef") && is(b":link-0123456789ABCDEF"));
    }
}
