//! What can go wrong with storage, in terms that each front end maps to its own codes.

use std::io;

/// Result of a storage operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed storage operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request reaches past the end of the disk or file.
    #[error("{len} bytes at offset {offset} reach past the end at {size}")]
    OutOfRange {
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// Size of the disk or file in bytes.
        size: u64,
    },
    /// The request is not a whole number of logical sectors.
    #[error("{len} bytes at offset {offset} are not aligned to {align}-byte sectors")]
    Misaligned {
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// Required alignment in bytes.
        align: u32,
    },
    /// A change was asked of something opened for reading only.
    #[error("opened for reading only")]
    ReadOnly,
    /// The storage cannot do this at all; callers may fall back.
    #[error("{0} is not supported by this storage")]
    Unsupported(&'static str),
    /// The file or disk was closed before.
    #[error("already closed")]
    Closed,
    /// Another user holds the file or a range of it: the whole message, with who it is if that is known.
    #[error("{0}")]
    Busy(String),
    /// Nothing would keep two writers of a file apart.
    #[error(
        "{0}: its file system has no record locks, so nothing would keep another program from writing \
         it meanwhile; use it from a file system that has them, or through a share"
    )]
    NoLocks(String),
    /// A file that an image names lies where it must not: the whole message.
    #[error("{0}")]
    Outside(String),
    /// Writing was fenced: this opener no longer owns the file.
    #[error("no longer the owner: {0}")]
    Fenced(String),
    /// The volume is full.
    #[error("no space left")]
    NoSpace,
    /// The connection to remote storage is gone and could not be restored in time.
    #[error("storage is not reachable: {0}")]
    Disconnected(String),
    /// The content contradicts itself (a damaged image).
    #[error("damaged: {0}")]
    Corrupt(String),
    /// Everything the operating system or a server says beyond the above.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Wraps an operating-system error, keeping "no space" and "busy" recognisable.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace,
            io::ErrorKind::ResourceBusy => {
                Error::Busy(format!("in use by another: {}", context.into()))
            }
            _ => Error::Io { context: context.into(), source },
        }
    }

    /// Checks that `len` bytes at `offset` end at or before `size`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::OutOfRange { offset, len, size }),
        }
    }
}
