//! Security descriptors of files: kept in the extended attribute `user.bulkhead.sd` in their wire
//! form, enforced at every open.
//!
//! ```text
//!  nothing kept         owner: Administrators   list: the default
//!  kept without a list  owner: as kept          list: the default   (DACL_DEFAULTED)
//!  kept with a list     owner: as kept          list: as kept
//! ```
//!
//! The default list lets everyone in whom the share lets in, and is inherited. A new file in a
//! folder with that list keeps no more than its owner; one in a folder with a list of its own gets
//! what it inherits, or, if that is nothing, a list of its owner and the system alone, as Windows
//! has it.

use std::os::fd::BorrowedFd;

use rustix::{fs::XattrFlags, io::Errno};
use smb_protocol::{
    NtStatus,
    msg::create::Access,
    security::{ALLOW, Ace, AceFlags, Control, Descriptor, Sid, parts},
};

use crate::{
    fs::{descriptor::magic_path, permit::Permit},
    status::of_errno,
};

const XATTR: &str = "user.bulkhead.sd";
/// Most descriptors fit this.
const COMMON: usize = 1024;
/// Longest descriptor that is kept, in bytes; the file system may allow less.
const MAX: usize = 65_536;
const ALL_PARTS: u32 = parts::OWNER | parts::GROUP | parts::DACL | parts::SACL;

/// The list of a file that has none of its own.
fn default_list(directory: bool) -> Vec<Ace> {
    let passed = if directory {
        AceFlags::OBJECT_INHERIT | AceFlags::CONTAINER_INHERIT
    } else {
        AceFlags::NONE
    };
    vec![Ace::new(ALLOW, passed.or(AceFlags::INHERITED), Access::ALL, Sid::everyone())]
}

/// What a file keeps.
///
/// # Errors
/// `EIO` for a descriptor that does not parse: access is refused, not guessed.
fn kept(fd: BorrowedFd<'_>) -> Result<Option<Descriptor>, Errno> {
    let path = magic_path(fd);
    let mut raw = [0; COMMON];
    let parse = |raw: &[u8]| Descriptor::parse(raw).map(Some).map_err(|_| Errno::IO);
    match rustix::fs::getxattr(path.as_str(), XATTR, &mut raw[..]) {
        Ok(len) => parse(&raw[..len]),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(Errno::RANGE) => {
            let mut raw = vec![0; MAX];
            let len = rustix::fs::getxattr(path.as_str(), XATTR, &mut raw[..])?;
            parse(&raw[..len])
        }
        Err(error) => Err(error),
    }
}

fn keep(fd: BorrowedFd<'_>, descriptor: &Descriptor) -> Result<(), Errno> {
    let mut raw = Vec::new();
    descriptor.encode(ALL_PARTS, &mut raw);
    if raw.len() > MAX {
        return Err(Errno::NOMEM);
    }
    rustix::fs::setxattr(magic_path(fd).as_str(), XATTR, &raw, XattrFlags::empty())
}

/// Whether the list of a descriptor is the default.
fn is_default(descriptor: &Descriptor) -> bool {
    !descriptor.control.has(Control::DACL_PRESENT)
}

/// A kept descriptor with what it leaves out.
fn complete(kept: Option<Descriptor>, directory: bool) -> Descriptor {
    let mut descriptor = kept.unwrap_or_default();
    if is_default(&descriptor) {
        descriptor.control = descriptor
            .control
            .without(Control::DACL_DEFAULTED)
            .or(Control::DACL_PRESENT | Control::DACL_AUTO_INHERITED);
        descriptor.dacl = Some(default_list(directory));
    }
    descriptor.owner.get_or_insert_with(Sid::administrators);
    descriptor.group.get_or_insert_with(Sid::users);
    descriptor
}

/// The descriptor of a file, complete.
pub fn of(fd: BorrowedFd<'_>, directory: bool) -> Result<Descriptor, Errno> {
    Ok(complete(kept(fd)?, directory))
}

fn access_by(kept: Option<&Descriptor>, sids: &[Sid]) -> Access {
    // Who the default list lets in, it lets do everything.
    match kept {
        Some(own) if !is_default(own) => own.access_of(sids),
        _ => Access::ALL,
    }
}

/// Rights of a token in a file by the file's own list.
pub fn access(fd: BorrowedFd<'_>, sids: &[Sid]) -> Result<Access, Errno> {
    Ok(access_by(kept(fd)?.as_ref(), sids))
}

/// What a folder keeps, for what is made in it.
#[derive(Debug)]
pub struct Above(Option<Descriptor>);

impl Above {
    /// Reads the descriptor of a folder.
    pub fn of(folder: BorrowedFd<'_>) -> Result<Self, Errno> {
        kept(folder).map(Self)
    }

    /// Whether what is made in the folder gets a list.
    pub fn hands_down(&self) -> bool {
        self.0.as_ref().is_some_and(|above| !is_default(above))
    }

    /// Rights of a token in the folder by its own list.
    pub fn access(&self, sids: &[Sid]) -> Access {
        access_by(self.0.as_ref(), sids)
    }
}

/// Rights of a token in a file, with those that it has through the folder: who may delete what the
/// folder holds may delete the file, who may list it sees attributes (MS-FSA 2.1.5.1.2.1).
pub fn access_in(
    fd: BorrowedFd<'_>,
    folder: BorrowedFd<'_>,
    sids: &[Sid],
) -> Result<Access, Errno> {
    let mut rights = access(fd, sids)?;
    if !rights.has(Access::DELETE | Access::READ_ATTRIBUTES) {
        let above = access(folder, sids)?;
        if above.has(Access::DELETE_CHILD) {
            rights |= Access::DELETE;
        }
        if above.has(Access::READ_DATA) {
            rights |= Access::READ_ATTRIBUTES;
        }
    }
    Ok(rights)
}

/// Whether a token holds the privileges of an administrator.
pub fn is_administrator(sids: &[Sid]) -> bool {
    sids.contains(&Sid::administrators())
}

/// Fails unless a token may make `owner` the owner of a file: who it is, or one of its groups, or
/// anyone for who has an administrator's privileges (MS-FSA 2.1.5.1.1, 2.1.5.17).
fn check_owner(owner: Option<&Sid>, sids: &[Sid]) -> Result<(), NtStatus> {
    match owner {
        Some(owner) if !is_administrator(sids) && !sids.contains(owner) => {
            Err(NtStatus::INVALID_OWNER)
        }
        _ => Ok(()),
    }
}

/// Gives a new file its descriptor (MS-DTYP 2.5.3.4.1): from what the client wants, from its
/// folder, or by default. The first of `sids` is who makes it.
///
/// # Errors
/// `INVALID_OWNER` when the token may not make that one the owner.
pub fn begin(
    _: Permit<'_>,
    fd: BorrowedFd<'_>,
    above: Above,
    directory: bool,
    wanted: Option<Descriptor>,
    sids: &[Sid],
) -> Result<(), NtStatus> {
    check_owner(wanted.as_ref().and_then(|wanted| wanted.owner.as_ref()), sids)?;
    let mut fresh = Descriptor { control: Control::DACL_DEFAULTED, ..Descriptor::default() };
    let mut lists = false;
    if let Some(wanted) = wanted {
        lists = wanted.control.has(Control::DACL_PRESENT);
        let mut which = parts::OWNER | parts::GROUP;
        if lists {
            which |= parts::DACL;
        }
        if wanted.control.has(Control::SACL_PRESENT) && is_administrator(sids) {
            which |= parts::SACL;
        }
        fresh.update(which, wanted);
    }
    let owner = fresh.owner.get_or_insert_with(|| sids[0].clone()).clone();
    if let Some(above) = above.0.filter(|above| !lists && !is_default(above)) {
        let group = fresh.group.clone().unwrap_or_else(Sid::users);
        let all = |sid| Ace::new(ALLOW, AceFlags::NONE, Access::ALL, sid);
        let list = above.inherited(&owner, &group, directory);
        let inherits = above.control.and(Control::DACL_AUTO_INHERITED);
        fresh.control = Control::DACL_PRESENT.or(inherits);
        fresh.dacl = Some(list.unwrap_or_else(|| vec![all(owner), all(Sid::system())]));
    }
    match keep(fd, &fresh) {
        // A file system without extended attributes has the default for all.
        Err(Errno::OPNOTSUPP) if is_default(&fresh) => Ok(()),
        other => other.map_err(of_errno),
    }
}

/// Changes the parts of a file's descriptor that `which` names.
///
/// # Errors
/// `INVALID_OWNER` when the token may not make that one the owner (MS-FSA 2.1.5.17).
pub fn update(
    _: Permit<'_>,
    fd: BorrowedFd<'_>,
    directory: bool,
    which: u32,
    change: Descriptor,
    sids: &[Sid],
) -> Result<(), NtStatus> {
    let mut descriptor = kept(fd).map_err(of_errno)?.unwrap_or_default();
    let owner = change.owner.as_ref().filter(|_| which & parts::OWNER != 0);
    if owner != descriptor.owner.as_ref() {
        check_owner(owner, sids)?;
    }
    if which & parts::DACL == 0 && is_default(&descriptor) {
        descriptor.control |= Control::DACL_DEFAULTED;
    } else {
        descriptor = complete(Some(descriptor), directory);
    }
    descriptor.update(which, change);
    keep(fd, &descriptor).map_err(of_errno)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;
    use crate::fs::volume::Volume;

    fn tree() -> (tempfile::TempDir, Volume, File, File) {
        let root = tempfile::tempdir().unwrap();
        let folder = File::open(root.path()).unwrap();
        let file = File::create(root.path().join("f")).unwrap();
        let volume = Volume::open(root.path()).unwrap();
        (root, volume, folder, file)
    }

    #[test]
    fn a_new_file_belongs_to_its_maker_and_lets_everyone_in() {
        let (_root, volume, folder, file) = tree();
        let me = [Sid::new(5, &[21, 1]), Sid::everyone()];
        begin(
            volume.permit(Access::ALL).unwrap(),
            file.as_fd(),
            Above::of(folder.as_fd()).unwrap(),
            false,
            None,
            &me,
        )
        .unwrap();
        let descriptor = of(file.as_fd(), false).unwrap();
        assert_eq!(descriptor.owner.as_ref(), Some(&me[0]));
        assert_eq!(descriptor.dacl, Some(default_list(false)));
        assert_eq!(access(file.as_fd(), &[Sid::new(5, &[21, 2])]).unwrap(), Access::ALL);
        // The folder was never touched.
        assert_eq!(of(folder.as_fd(), true).unwrap().owner, Some(Sid::administrators()));
    }

    #[test]
    fn a_folder_whose_list_is_not_inherited_gives_files_to_their_makers_alone() {
        let (_root, volume, folder, file) = tree();
        let me = [Sid::new(5, &[21, 1]), Sid::everyone()];
        let other = [Sid::new(5, &[21, 2]), Sid::everyone()];
        let list = vec![Ace::new(ALLOW, AceFlags::NONE, Access::ALL, Sid::everyone())];
        let change = Descriptor {
            control: Control::DACL_PRESENT,
            dacl: Some(list),
            ..Descriptor::default()
        };
        update(volume.permit(Access::ALL).unwrap(), folder.as_fd(), true, parts::DACL, change, &me)
            .unwrap();
        begin(
            volume.permit(Access::ALL).unwrap(),
            file.as_fd(),
            Above::of(folder.as_fd()).unwrap(),
            false,
            None,
            &me,
        )
        .unwrap();
        assert_eq!(access(file.as_fd(), &me).unwrap(), Access::ALL);
        assert_eq!(access(file.as_fd(), &other).unwrap(), Access::NONE);
        // But who may delete what the folder holds may do that.
        let through = access_in(file.as_fd(), folder.as_fd(), &other).unwrap();
        assert_eq!(through, Access::DELETE | Access::READ_ATTRIBUTES);
    }

    #[test]
    fn only_an_administrator_gives_files_away() {
        let (_root, volume, _folder, file) = tree();
        let me = Sid::new(5, &[21, 1]);
        let you = Sid::new(5, &[21, 2]);
        let change = Descriptor { owner: Some(you.clone()), ..Descriptor::default() };
        let give = |sids: &[Sid]| {
            update(
                volume.permit(Access::ALL).unwrap(),
                file.as_fd(),
                false,
                parts::OWNER,
                change.clone(),
                sids,
            )
        };
        assert_eq!(give(std::slice::from_ref(&me)), Err(NtStatus::INVALID_OWNER));
        assert_eq!(give(&[me.clone(), Sid::administrators()]), Ok(()));
        let take = Descriptor { owner: Some(me.clone()), ..Descriptor::default() };
        assert_eq!(
            update(
                volume.permit(Access::ALL).unwrap(),
                file.as_fd(),
                false,
                parts::OWNER,
                take,
                &[me]
            ),
            Ok(())
        );
    }

    #[test]
    fn a_descriptor_that_does_not_parse_lets_nobody_in() {
        let (_root, _volume, _folder, file) = tree();
        rustix::fs::fsetxattr(&file, XATTR, &[7; 30], XattrFlags::empty()).unwrap();
        assert_eq!(access(file.as_fd(), &[]), Err(Errno::IO));
    }
}
