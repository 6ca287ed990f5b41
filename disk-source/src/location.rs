//! What a location says: a local path, or `smb://[user@]host[:port]/share/path`.

use std::{path::PathBuf, str::FromStr};

use smb_client::SmbUrl;

use crate::{Error, Result};

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// On this machine.
    Local(PathBuf),
    /// On a share. Its path may be empty: then it names the share itself.
    Share(SmbUrl),
}

impl FromStr for Location {
    type Err = Error;

    /// Reads a location.
    ///
    /// # Errors
    /// [`Error::Url`] for a bad address of a share, [`Error::Scheme`] for any other scheme.
    fn from_str(text: &str) -> Result<Self> {
        if SmbUrl::looks_like(text) {
            return Ok(Self::Share(text.parse()?));
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
    /// Those of [`Location::from_str`]; [`Error::NoFile`] for a share without a path.
    pub fn of_file(text: &str) -> Result<Self> {
        match text.parse()? {
            Self::Share(url) if url.path.is_empty() => Err(Error::NoFile),
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
    }
}
