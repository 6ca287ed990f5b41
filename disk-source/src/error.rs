//! Why a disk cannot be opened.

use std::error::Error as StdError;

use iscsi::initiator::InitiatorError;
use smb_client::UrlError;

use crate::IscsiUrlError;

/// Result of finding and opening a disk.
pub type Result<T> = std::result::Result<T, Error>;

/// A disk that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The location is not a well-formed address of a share.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The location is not a well-formed address of a logical unit.
    #[error(transparent)]
    IscsiUrl(#[from] IscsiUrlError),
    /// The address names a target and not a logical unit.
    #[error("the address names a target and no logical unit of it (iscsi://…/LUN)")]
    NoLun,
    /// A logical unit was to be made.
    #[error(
        "a logical unit is there before it is opened: its content can only be replaced (--force)"
    )]
    LunExists,
    /// The target cannot be reached or refuses.
    #[error(transparent)]
    Target(#[from] InitiatorError),
    /// The name service cannot be reached or refuses.
    #[error(transparent)]
    Names(#[from] iscsi::isns::IsnsError),
    /// The location names a kind of storage that does not exist.
    #[error("{location}: no storage of kind {scheme:?}")]
    Scheme {
        /// The location as it was given.
        location: String,
        /// What is before its `://`.
        scheme: String,
    },
    /// The location names a share and not a file.
    #[error("the address names a share and no file on it")]
    NoFile,
    /// No login for the server can be found.
    #[error(transparent)]
    Login(Box<dyn StdError + Send + Sync>),
    /// The server cannot be reached or refuses.
    #[error(transparent)]
    Server(#[from] smb_client::Error),
    /// The storage refuses, or it failed.
    #[error(transparent)]
    Storage(#[from] block_io::Error),
    /// The file is raw by its ending alone, and its content bears another format's mark.
    #[error(transparent)]
    NotRaw(vhd::Error),
    /// The image cannot be opened.
    #[error(transparent)]
    Image(vhd::Error),
    /// The file with the image's change tracking cannot be used.
    #[error("{location}")]
    Tracking {
        /// Location of the file with the tracking.
        location: String,
        /// The cause, as the layer below tells it.
        #[source]
        source: vhd::Error,
    },
}

impl From<Error> for block_io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Url(error) => Self::Corrupt(error.to_string()),
            Error::IscsiUrl(error) => Self::Corrupt(error.to_string()),
            Error::Target(error) => error.into(),
            Error::Server(error) => error.into(),
            Error::Storage(error) => error,
            Error::NotRaw(error) | Error::Image(error) => error.into(),
            Error::Tracking { source, .. } => source.into(),
            Error::Login(error) => Self::Disconnected(chain(&*error)),
            Error::Names(error) => Self::Disconnected(chain(&error)),
            other @ (Error::Scheme { .. } | Error::NoFile | Error::NoLun | Error::LunExists) => {
                let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, other);
                Self::io("opening", source)
            }
        }
    }
}

/// An error with its causes on one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
