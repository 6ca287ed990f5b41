//! What can go wrong with a remote file, and how it looks to storage.

use std::{io, sync::Arc, time::Duration};

use smb_protocol::{
    NtStatus, WireError,
    compression::CompressionError,
    crypto::{NonceError, SealError},
    spnego,
};

use crate::credentials::CredentialsError;

/// Result of an operation on a server.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on a server failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made.
    #[error("cannot connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// The cause, as the layer below tells it.
        #[source]
        source: Arc<io::Error>,
    },
    /// The connection was lost, and could not be restored in time if that was tried.
    #[error("connection lost: {0}")]
    Disconnected(Arc<str>),
    /// The server did not answer in time.
    #[error("no answer to {what} within {after:?}")]
    Timeout {
        /// The operation that failed, for the message.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The server sent something that is not SMB or not what was asked for.
    #[error("server breaks the protocol: {0}")]
    Protocol(String),
    /// The server ended the connection instead of confirming what was negotiated.
    #[error(
        "the server ends each connection instead of confirming what was negotiated: somebody on \
         the way changes the negotiation, or the server is not what it says"
    )]
    Unconfirmed,
    /// A message is not what the server sent: wrong signature or seal, or none where one must be.
    #[error("message from the server is not authentic: {0}")]
    NotAuthentic(&'static str),
    /// The session's key may protect nothing more: with a nonce of its own each message is safe, and
    /// there is none left. A new session has a new key.
    #[error("the session cannot protect another message: {0}")]
    KeySpent(#[from] NonceError),
    /// The server lacks something that the options demand.
    #[error("server does not offer {0}")]
    NotOffered(&'static str),
    /// Authentication broke down before the server decided.
    #[error(transparent)]
    Authentication(#[from] spnego::Error),
    /// The user or the password is wrong, or the account may not log on.
    #[error("logon as {user:?} refused: {status}")]
    Logon {
        /// User that tried to log on.
        user: String,
        /// The server's reason.
        status: NtStatus,
    },
    /// The server logged the user on as a guest or as nobody.
    #[error("server offers only a guest logon")]
    Guest,
    /// The server refused an operation.
    #[error("{what}: {status}")]
    Status {
        /// The operation that failed, for the message.
        what: String,
        /// The server's reason.
        status: NtStatus,
    },
    /// The server has lost the open of a file while writes that it had acknowledged were not
    /// yet flushed: some of them may be gone.
    #[error("server lost its open of {path:?} with acknowledged writes unflushed ({status})")]
    WritesLost {
        /// Path of the file below its share.
        path: String,
        /// What the server said to the attempt to take the open up again.
        status: NtStatus,
    },
    /// The server has lost the open of a file; nothing unflushed was lost.
    #[error("server lost its open of {path:?} ({status})")]
    HandleLost {
        /// Path of the file below its share.
        path: String,
        /// What the server said to the attempt to take the open up again.
        status: NtStatus,
    },
    /// The file was closed by this client.
    #[error("file is closed")]
    Closed,
    /// The credentials cannot be had.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A path that no server accepts.
    #[error("{0:?} is not a path on a share")]
    Path(String),
}

impl Error {
    pub(crate) fn status(what: impl Into<String>, status: NtStatus) -> Self {
        Self::Status { what: what.into(), status }
    }

    pub(crate) fn disconnected(reason: impl Into<Arc<str>>) -> Self {
        Self::Disconnected(reason.into())
    }

    /// Whether a new connection may help.
    pub(crate) fn is_disconnect(&self) -> bool {
        match self {
            Self::Disconnected(_)
            | Self::Unconfirmed
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::KeySpent(_) => true,
            Self::Status { status, .. } => matches!(
                *status,
                NtStatus::USER_SESSION_DELETED
                    | NtStatus::NETWORK_NAME_DELETED
                    | NtStatus::NETWORK_SESSION_EXPIRED
                    | NtStatus::CONNECTION_DISCONNECTED
                    | NtStatus::CONNECTION_RESET
            ),
            _ => false,
        }
    }

    /// The status the server answered, if that is what failed.
    #[must_use]
    pub fn nt_status(&self) -> Option<NtStatus> {
        match self {
            Self::Status { status, .. }
            | Self::Logon { status, .. }
            | Self::WritesLost { status, .. }
            | Self::HandleLost { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<CompressionError> for Error {
    fn from(error: CompressionError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Forged => Self::NotAuthentic("it does not decrypt"),
            other => Self::Protocol(other.to_string()),
        }
    }
}

/// The one place where an SMB failure becomes a storage failure.
impl From<Error> for block_io::Error {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let kind = match &error {
            Error::Connect { .. } | Error::Disconnected(_) | Error::Timeout { .. } => {
                return Self::Disconnected(text);
            }
            // An open that is gone does not come back, and another may have the file since.
            Error::WritesLost { .. } | Error::HandleLost { .. } => return Self::Fenced(text),
            Error::Status { status, .. } => match *status {
                NtStatus::SHARING_VIOLATION
                | NtStatus::FILE_LOCK_CONFLICT
                | NtStatus::LOCK_NOT_GRANTED
                | NtStatus::FILE_NOT_AVAILABLE => {
                    return Self::Busy(format!("in use by another: {text}"));
                }
                // The server has closed what this client has not: an administrator, or a later run
                // of the same application (MS-SMB2 3.3.5.9.13), wanted it so.
                NtStatus::FILE_FORCED_CLOSED | NtStatus::FILE_CLOSED => return Self::Fenced(text),
                NtStatus::DISK_FULL | NtStatus::QUOTA_EXCEEDED => return Self::NoSpace,
                NtStatus::NOT_SUPPORTED
                | NtStatus::INVALID_DEVICE_REQUEST
                | NtStatus::NOT_IMPLEMENTED => {
                    return Self::Unsupported("this operation of the server");
                }
                NtStatus::OBJECT_NAME_NOT_FOUND
                | NtStatus::OBJECT_PATH_NOT_FOUND
                | NtStatus::NO_SUCH_FILE
                | NtStatus::BAD_NETWORK_NAME => io::ErrorKind::NotFound,
                NtStatus::OBJECT_NAME_COLLISION => io::ErrorKind::AlreadyExists,
                NtStatus::ACCESS_DENIED | NtStatus::PRIVILEGE_NOT_HELD => {
                    io::ErrorKind::PermissionDenied
                }
                NtStatus::MEDIA_WRITE_PROTECTED => io::ErrorKind::ReadOnlyFilesystem,
                _ => io::ErrorKind::Other,
            },
            Error::Logon { .. } | Error::Guest => io::ErrorKind::PermissionDenied,
            Error::Closed => io::ErrorKind::NotConnected,
            _ => io::ErrorKind::Other,
        };
        Self::Io { context: text, source: io::Error::from(kind) }
    }
}
