//! What a location says: a local path, `smb://[user@]host[:port]/share/path`, or
//! `iscsi://[user@]host[:port]/target/LUN`.

use std::{path::PathBuf, str::FromStr};

use smb_client::SmbUrl;

use crate::{Error, IscsiUrl, Result};

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// On this machine.
    Local(PathBuf),
    /// On a share. Its path may be empty: then it names the share itself.
    Share(SmbUrl),
    /// A logical unit of an iSCSI target. Its number may be missing: then it names the target.
    Lun(IscsiUrl),
}

impl FromStr for Location {
    type Err = Error;

    /// Reads a location.
    ///
    /// # Errors
    /// [`Error::Url`] for a bad address of a share, [`Error::IscsiUrl`] for one of a logical unit,
    /// [`Error::Scheme`] for any other scheme.
    fn from_str(text: &str) -> Result<Self> {
        if SmbUrl::looks_like(text) {
            return Ok(Self::Share(text.parse()?));
        }
        if IscsiUrl::looks_like(text) {
            return Ok(Self::Lun(text.parse()?));
        }
        match text.split_once("://") {
            Some((scheme, _)) => {
                Err(Error::Scheme { location: text.to_owned(), scheme: scheme.to_owned() })
            }
            None => Ok(Self::Local(text.into())),
        }
    }
}

impl Location {
    /// Reads the location of a file.
    ///
    /// # Errors
    /// Those of [`Location::from_str`]; [`Error::NoFile`] for a share without a path,
    /// [`Error::NoLun`] for a target without a number.
    pub fn of_file(text: &str) -> Result<Self> {
        match text.parse()? {
            Self::Share(url) if url.path.is_empty() => Err(Error::NoFile),
            Self::Lun(url) if url.lun.is_none() => Err(Error::NoLun),
            location => Ok(location),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_path_or_a_share() {
        assert_eq!("/vms/a.raw".parse::<Location>().unwrap(), Location::Local("/vms/a.raw".into()));
        let Location::Share(url) = "SMB://h/s/a.vhdx".parse().unwrap() else { panic!("a share") };
        assert_eq!((&*url.host, &*url.share, &*url.path), ("h", "s", "a.vhdx"));
        assert!(
            matches!("nfs://h/a".parse::<Location>(), Err(Error::Scheme { scheme, .. }) if scheme == "nfs")
        );
        assert!(matches!("smb://h".parse::<Location>(), Err(Error::Url(_))));
        assert!(matches!(Location::of_file("smb://h/s"), Err(Error::NoFile)));
        assert!(Location::of_file("smb://h/s/a").is_ok());
        assert!(matches!(Location::of_file("iscsi://h/iqn.a/0"), Ok(Location::Lun(_))));
        assert!(matches!(Location::of_file("iscsi://h/iqn.a"), Err(Error::NoLun)));
    }
}
