//! What a file has from the beginning: attributes, access list, extended attributes.

use std::os::fd::BorrowedFd;

use smb_protocol::{
    NtStatus,
    fscc::{FileAttributes, ea::Ea},
    msg::{
        context::{self, names},
        create::Request,
    },
    security::{Descriptor, Sid},
};

use crate::{
    fs::{
        attributes, eas,
        permit::Permit,
        security::{self, Above},
    },
    sharing::file::Refused,
};

/// What the maker of a file wants, and what the file's folder hands down.
pub(super) struct Beginning<'a> {
    directory: bool,
    attributes: FileAttributes,
    above: Above,
    list: Option<Descriptor>,
    eas: Vec<Ea>,
    sids: &'a [Sid],
}

impl<'a> Beginning<'a> {
    /// What a request wants.
    ///
    /// # Errors
    /// Of a list or of extended attributes that are none.
    pub(super) fn of(
        request: &Request<'_>,
        directory: bool,
        above: Above,
        sids: &'a [Sid],
    ) -> Result<Self, NtStatus> {
        // MS-SMB2 3.3.5.9.2.
        let list = match context::find(&request.contexts, names::SECD) {
            Some(data) => {
                Some(Descriptor::parse(data).map_err(|_| NtStatus::INVALID_SECURITY_DESCR)?)
            }
            None => None,
        };
        let attributes = request.attributes.without(FileAttributes::DIRECTORY);
        Ok(Self { directory, attributes, above, list, eas: wanted_eas(request)?, sids })
    }

    /// Whether it has a list, its own or its folder's, that may keep somebody out.
    pub(super) fn keeps_out(&self) -> bool {
        self.list.is_some() || self.above.hands_down()
    }

    /// Gives it to the file.
    ///
    /// # Errors
    /// As [`security::begin`] and [`eas::set`]; what the file system says.
    pub(super) fn give(self, permit: Permit<'_>, fd: BorrowedFd<'_>) -> Result<(), Refused> {
        let usual = FileAttributes::NORMAL.or(FileAttributes::ARCHIVE);
        if self.attributes.without(usual) != FileAttributes::NONE {
            let base = match self.directory {
                true => FileAttributes::NONE,
                false => FileAttributes::ARCHIVE,
            };
            attributes::set_attributes(fd, self.attributes.or(base))?;
        }
        security::begin(permit, fd, self.above, self.directory, self.list, self.sids)?;
        if !self.eas.is_empty() {
            eas::set(permit, fd, self.eas)?;
        }
        Ok(())
    }
}

/// The extended attributes that a new file gets (MS-SMB2 3.3.5.9.1).
///
/// # Errors
/// `INVALID_EA_NAME`; of a list that is none.
pub(super) fn wanted_eas(request: &Request<'_>) -> Result<Vec<Ea>, NtStatus> {
    let Some(data) = context::find(&request.contexts, names::EXTA) else {
        return Ok(Vec::new());
    };
    let list = eas::parse(data)?;
    if !list.iter().all(Ea::is_valid) {
        return Err(NtStatus::INVALID_EA_NAME);
    }
    Ok(list)
}
