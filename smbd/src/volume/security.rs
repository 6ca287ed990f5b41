//! Security descriptors of files: kept in the extended attribute `user.bulkhead.sd` in their wire
//! form, enforced at every open.
//!
//! A file without one lets everyone in whom the share lets in, and belongs to the
//! administrators; the first user who gives it a descriptor becomes its owner.

use std::os::fd::BorrowedFd;

use rustix::{fs::XattrFlags, io::Errno};
use smb_protocol::{
    msg::create::Access,
    security::{ALLOW, Ace, AceFlags, Descriptor, Sid, parts},
};

use super::magic_path;

const XATTR: &str = "user.bulkhead.sd";
/// Longest descriptor that is kept, in bytes.
const MAX: usize = 4096;
const ALL_PARTS: u32 = parts::OWNER | parts::GROUP | parts::DACL;

/// The descriptor of a file that has none of its own.
pub fn default() -> Descriptor {
    Descriptor {
        owner: Some(Sid::administrators()),
        group: Some(Sid::administrators()),
        dacl: Some(vec![Ace {
            kind: ALLOW,
            flags: AceFlags::NONE,
            access: Access::ALL,
            sid: Sid::everyone(),
        }]),
        protected: false,
    }
}

/// The descriptor that a file was given; `None` if it has none of its own.
///
/// # Errors
/// `EIO` for a descriptor that does not parse: access is refused, not guessed.
pub fn own(fd: BorrowedFd<'_>) -> Result<Option<Descriptor>, Errno> {
    let mut raw = vec![0; MAX];
    match rustix::fs::getxattr(magic_path(fd).as_str(), XATTR, &mut raw[..]) {
        Ok(len) => Descriptor::parse(&raw[..len]).map(Some).map_err(|_| Errno::IO),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives a file a descriptor.
pub fn set(fd: BorrowedFd<'_>, descriptor: &Descriptor) -> Result<(), Errno> {
    let mut raw = Vec::new();
    descriptor.encode(ALL_PARTS, &mut raw);
    if raw.len() > MAX {
        return Err(Errno::NOMEM);
    }
    rustix::fs::setxattr(magic_path(fd).as_str(), XATTR, &raw, XattrFlags::empty())
}

/// Changes the parts of a file's descriptor that `which` names; `user` becomes the owner of one
/// that had none.
pub fn update(fd: BorrowedFd<'_>, which: u32, change: Descriptor, user: &Sid) -> Result<(), Errno> {
    let mut descriptor = match own(fd)? {
        Some(descriptor) => descriptor,
        None => Descriptor { owner: Some(user.clone()), ..default() },
    };
    descriptor.update(which, change);
    set(fd, &descriptor)
}

/// Rights of a token in a file.
pub fn access(fd: BorrowedFd<'_>, sids: &[Sid]) -> Result<Access, Errno> {
    Ok(own(fd)?.map_or(Access::ALL, |descriptor| descriptor.access_of(sids)))
}
