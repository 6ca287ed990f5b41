//! Why a disk cannot be opened.

use std::error::Error as StdError;

use smb_client::UrlError;

/// Result of finding and opening a disk.
pub type Result<T> = std::result::Result<T, Error>;

/// A disk that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The location is not a well-formed address of a share.
    #[error(transparent)]
    Url(#[from] UrlError),
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
            Error::Server(error) => error.into(),
            Error::Storage(error) => error,
            Error::NotRaw(error) | Error::Image(error) => error.into(),
            Error::Tracking { source, .. } => source.into(),
            Error::Login(error) => Self::Disconnected(chain(&*error)),
            other @ (Error::Scheme { .. } | Error::NoFile) => {
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
