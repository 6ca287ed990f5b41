//! Extended attributes as clients keep them (MS-FSA 2.1.1.3, `ExtendedAttributes`): all of a file
//! in one extended attribute of the system, `user.bulkhead.ea`, in the form of
//! `FileFullEaInformation`.

use std::{
    collections::{HashMap, HashSet},
    os::fd::BorrowedFd,
};

use rustix::{fs::XattrFlags, io::Errno};
use smb_protocol::{
    NtStatus,
    fscc::ea::{self, Ea},
};

use crate::{
    fs::{descriptor::magic_path, permit::Permit},
    status::of_errno,
};

const XATTR: &str = "user.bulkhead.ea";
/// Longest list (MS-FSA 2.1.5.15.6); the file system may allow less.
const MAX: usize = 65_536 - 5;
/// Most lists fit this.
const COMMON: usize = 1024;

/// Reads the list and hands it to `take`; an empty one if there is none.
fn read<T>(fd: BorrowedFd<'_>, take: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
    let path = magic_path(fd);
    let mut raw = [0; COMMON];
    match rustix::fs::getxattr(path.as_str(), XATTR, &mut raw[..]) {
        Ok(len) => Ok(take(&raw[..len])),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(take(&[])),
        Err(Errno::RANGE) => {
            let mut raw = vec![0; MAX];
            let len = rustix::fs::getxattr(path.as_str(), XATTR, &mut raw[..])?;
            Ok(take(&raw[..len]))
        }
        Err(error) => Err(error),
    }
}

/// The attributes of a file.
///
/// # Errors
/// `EIO` for a list that does not parse.
pub fn list(fd: BorrowedFd<'_>) -> Result<Vec<Ea>, Errno> {
    read(fd, ea::parse)?.map_err(|_| Errno::IO)
}

/// Length of the list on the wire, 0 without attributes.
pub fn size(fd: BorrowedFd<'_>) -> u32 {
    let len = read(fd, <[u8]>::len).unwrap_or(0);
    u32::try_from(len).unwrap_or(0)
}

/// Reads a list that a client sends.
///
/// # Errors
/// `EA_TOO_LARGE` for one that no file could have, `EA_LIST_INCONSISTENT` for one that does not
/// parse.
pub fn parse(list: &[u8]) -> Result<Vec<Ea>, NtStatus> {
    if list.len() > MAX {
        return Err(NtStatus::EA_TOO_LARGE);
    }
    ea::parse(list).map_err(|_| NtStatus::EA_LIST_INCONSISTENT)
}

/// Reads a list of names that a client asks for; each once, where it came first.
///
/// # Errors
/// `EA_TOO_LARGE` for one that is longer than the attributes of any file,
/// `EA_LIST_INCONSISTENT` for one that does not parse, `INVALID_EA_NAME` for names that cannot be.
pub fn parse_names(list: &[u8]) -> Result<Vec<String>, NtStatus> {
    if list.len() > MAX {
        return Err(NtStatus::EA_TOO_LARGE);
    }
    let mut names = ea::parse_names(list).map_err(|_| NtStatus::EA_LIST_INCONSISTENT)?;
    if !names.iter().all(|name| ea::valid_name(name)) {
        return Err(NtStatus::INVALID_EA_NAME);
    }
    names.iter_mut().for_each(|name| name.make_ascii_uppercase());
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

/// Sets the attributes in `changes`, one after the other; one with an empty value is removed. All
/// of them or none.
///
/// # Errors
/// `INVALID_EA_NAME` for names and flags that cannot be, `EA_TOO_LARGE` for more than fits,
/// `EAS_NOT_SUPPORTED` where the file system keeps no extended attributes.
pub fn set(_: Permit<'_>, fd: BorrowedFd<'_>, changes: Vec<Ea>) -> Result<(), NtStatus> {
    if !changes.iter().all(Ea::is_valid) {
        return Err(NtStatus::INVALID_EA_NAME);
    }
    // Windows shows names in upper case. The last of a name counts, and stands where it came.
    let mut all = list(fd).map_err(of_errno)?;
    all.extend(changes);
    all.iter_mut().for_each(|ea| ea.name.make_ascii_uppercase());
    let last: HashMap<String, usize> =
        all.iter().enumerate().map(|(at, ea)| (ea.name.clone(), at)).collect();
    let mut at = 0..;
    all.retain(|ea| last.get(&ea.name) == at.next().as_ref() && !ea.is_empty());
    let path = magic_path(fd);
    let mut raw = Vec::new();
    if ea::encode(all.iter(), MAX, &mut raw) < all.len() {
        return Err(NtStatus::EA_TOO_LARGE);
    }
    let done = if all.is_empty() {
        rustix::fs::removexattr(path.as_str(), XATTR)
    } else {
        rustix::fs::setxattr(path.as_str(), XATTR, &raw, XattrFlags::empty())
    };
    match done {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => Err(NtStatus::EA_TOO_LARGE),
        Err(Errno::OPNOTSUPP) => Err(NtStatus::EAS_NOT_SUPPORTED),
        Err(error) => Err(of_errno(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn ea(name: &str, value: &[u8]) -> Ea {
        Ea { flags: 0, name: name.to_owned(), value: value.to_vec() }
    }

    #[test]
    fn names_are_asked_for_once_and_not_without_end() {
        let list = |count: usize| {
            let entry = |at| [if at + 1 < count { 8 } else { 0 }, 0, 0, 0, 1, b'a', 0, 0];
            (0..count).flat_map(entry).collect::<Vec<u8>>()
        };
        assert_eq!(parse_names(&list(8000)).unwrap(), ["A"]);
        assert_eq!(parse_names(&list(9000)), Err(NtStatus::EA_TOO_LARGE));
    }

    #[test]
    fn attributes_are_added_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("f")).unwrap();
        let fd = file.as_fd();
        let volume = crate::fs::volume::Volume::open(folder.path()).unwrap();
        let permit = volume.permit(smb_protocol::msg::create::Access::ALL).unwrap();
        assert_eq!(list(fd).unwrap(), []);
        set(permit, fd, vec![ea("one", b"1"), ea("TWO", b"22")]).unwrap();
        set(permit, fd, vec![ea("ONE", b"111"), ea("gone", b"")]).unwrap();
        assert_eq!(list(fd).unwrap(), [ea("TWO", b"22"), ea("ONE", b"111")]);
        assert!(size(fd) > 0);
        // One that cannot be spoils all.
        assert_eq!(
            set(permit, fd, vec![ea("x", b"1"), ea("a=b", b"1")]),
            Err(NtStatus::INVALID_EA_NAME)
        );
        assert_eq!(set(permit, fd, vec![ea("x", &[7; 65_535])]), Err(NtStatus::EA_TOO_LARGE));
        assert_eq!(list(fd).unwrap().len(), 2);
        set(permit, fd, vec![ea("one", b""), ea("two", b"")]).unwrap();
        assert_eq!((list(fd).unwrap(), size(fd)), (vec![], 0));
    }
}
