//! Object ids (MS-FSA 2.1.1.3, `ObjectId` and what stands beside it): kept in the extended attribute
//! `user.bulkhead.oid` as `FILE_OBJECTID_BUFFER` (MS-FSCC 2.1.3.1), and behind it the file's inode
//! number, which tells a file from its copy: a copy made with its extended attributes has no id.

use std::{os::fd::BorrowedFd, sync::MutexGuard};

use rustix::{fs::XattrFlags, io::Errno};

use crate::fs::{descriptor::magic_path, permit::Permit, shards::Shards};

const XATTR: &str = "user.bulkhead.oid";
/// Length of `FILE_OBJECTID_BUFFER` in bytes.
pub const LEN: usize = 64;
const KEPT: usize = LEN + 8;

/// An object id with what stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectId {
    /// `ObjectId`, and then `BirthVolumeId`, `BirthObjectId` and `DomainId`.
    raw: [u8; LEN],
}

impl ObjectId {
    /// One of an object that is born with it, on that volume.
    fn born(id: [u8; 16], volume: [u8; 16]) -> Self {
        let mut raw = [0; LEN];
        raw[..16].copy_from_slice(&id);
        raw[16..32].copy_from_slice(&volume);
        raw[32..48].copy_from_slice(&id);
        Self { raw }
    }

    /// The structure, 64 bytes.
    pub fn encode(&self) -> [u8; LEN] {
        self.raw
    }

    /// The same id with other birth ids and another domain, as they stand in the structure.
    fn with_extended(mut self, extended: &[u8; LEN - 16]) -> Self {
        self.raw[16..].copy_from_slice(extended);
        self
    }
}

/// The id of a file, if it has one.
///
/// # Errors
/// What the file system says.
pub fn of(fd: BorrowedFd<'_>) -> Result<Option<ObjectId>, Errno> {
    let mut kept = [0; KEPT];
    match rustix::fs::getxattr(magic_path(fd).as_str(), XATTR, &mut kept[..]) {
        Ok(KEPT) => {
            let (raw, inode) = kept.split_at(LEN);
            let own = rustix::fs::fstat(fd)?.st_ino.to_le_bytes();
            let raw = *raw.first_chunk().ok_or(Errno::IO)?;
            Ok((inode == own).then_some(ObjectId { raw }))
        }
        Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One change of a file's id at a time: of two that ask for that of a file without one, both get the same.
fn changing(fd: BorrowedFd<'_>) -> Result<MutexGuard<'static, ()>, Errno> {
    static FILES: Shards = Shards::new();
    Ok(FILES.lock(&rustix::fs::fstat(fd)?))
}

fn keep(fd: BorrowedFd<'_>, id: &ObjectId) -> Result<(), Errno> {
    let mut kept = id.raw.to_vec();
    kept.extend_from_slice(&rustix::fs::fstat(fd)?.st_ino.to_le_bytes());
    rustix::fs::setxattr(magic_path(fd).as_str(), XATTR, &kept, XattrFlags::empty())
}

/// The id of a file; if it has none, one that no other has.
///
/// # Errors
/// What the file system says; `EIO` if the system gives no random numbers.
pub fn get_or_create(
    _: Permit<'_>,
    fd: BorrowedFd<'_>,
    volume: [u8; 16],
) -> Result<ObjectId, Errno> {
    let _alone = changing(fd)?;
    if let Some(id) = of(fd)? {
        return Ok(id);
    }
    let id = ObjectId::born(crate::clock::random().map_err(|_| Errno::IO)?, volume);
    keep(fd, &id)?;
    Ok(id)
}

/// Changes what stands beside the id of a file; whether it has one.
///
/// # Errors
/// What the file system says.
pub fn extend(_: Permit<'_>, fd: BorrowedFd<'_>, extended: &[u8; LEN - 16]) -> Result<bool, Errno> {
    let _alone = changing(fd)?;
    let Some(id) = of(fd)? else { return Ok(false) };
    keep(fd, &id.with_extended(extended))?;
    Ok(true)
}

/// Takes the id of a file away.
///
/// # Errors
/// What the file system says; none if there is no id.
pub fn remove(_: Permit<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let _alone = changing(fd)?;
    match rustix::fs::removexattr(magic_path(fd).as_str(), XATTR) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use smb_protocol::msg::create::Access;

    use super::*;
    use crate::fs::volume::Volume;

    #[test]
    fn an_id_stays_with_its_file_and_no_copy_has_it() {
        let root = tempfile::tempdir().unwrap();
        let volume = Volume::open(root.path()).unwrap();
        let permit = volume.permit(Access::ALL).unwrap();
        let file = std::fs::File::create(root.path().join("f")).unwrap();
        let copy = std::fs::File::create(root.path().join("copy")).unwrap();
        assert_eq!(of(file.as_fd()), Ok(None));
        assert_eq!(extend(permit, file.as_fd(), &[9; 48]), Ok(false));
        // All who ask at once are told the same.
        let all: Vec<ObjectId> = std::thread::scope(|scope| {
            let ask = || get_or_create(permit, file.as_fd(), [7; 16]).unwrap();
            let askers: Vec<_> = (0..16).map(|_| scope.spawn(ask)).collect();
            askers.into_iter().map(|asker| asker.join().unwrap()).collect()
        });
        let id = all[0];
        assert_eq!(all, [id; 16]);
        assert_eq!(of(file.as_fd()), Ok(Some(id)));
        let raw = id.encode();
        assert_eq!(
            (&raw[16..32], &raw[32..48], &raw[48..]),
            (&[7; 16][..], &raw[..16], &[0; 16][..])
        );
        let mut kept = [0; KEPT];
        rustix::fs::fgetxattr(&file, XATTR, &mut kept[..]).unwrap();
        rustix::fs::fsetxattr(&copy, XATTR, &kept, XattrFlags::empty()).unwrap();
        assert_eq!(of(copy.as_fd()), Ok(None));
        assert_eq!(extend(permit, file.as_fd(), &[9; 48]), Ok(true));
        let other = of(file.as_fd()).unwrap().unwrap().encode();
        assert_eq!((&other[..16], &other[16..]), (&raw[..16], &[9; 48][..]));
        remove(permit, file.as_fd()).unwrap();
        remove(permit, file.as_fd()).unwrap();
        assert_eq!(of(file.as_fd()), Ok(None));
    }
}
