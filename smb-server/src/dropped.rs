//! Why a connection ends other than by its client's or the server's wish.

use std::io;

use smb_protocol::{compression::CompressionError, crypto::NonceError};

/// Why a connection was dropped.
#[derive(Debug, thiserror::Error)]
pub enum Dropped {
    /// The transport failed.
    #[error("transport: {0}")]
    Transport(#[from] io::Error),
    /// The client broke the protocol in a way that has no answer.
    #[error("{0}")]
    Protocol(&'static str),
    /// A message is longer than any can be.
    #[error("a message of {0} bytes is longer than the server takes")]
    TooLong(usize),
    /// A compressed message is not what it says (MS-SMB2 3.3.5.2.1.2).
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// A compressed message would be more than the connection, or its user, may have held.
    #[error("no room for the {0} bytes of a compressed message")]
    NoRoom(usize),
    /// Clients that have not logged in hold as much memory as they may.
    #[error("clients that have not logged in have sent as much as they may together")]
    Crowded,
    /// The client did not authenticate in time.
    #[error("not authenticated in time")]
    Unauthenticated,
    /// It had not authenticated when others needed its place.
    #[error("not authenticated while others need the place")]
    MadeRoom,
    /// The client's system does not acknowledge what it is sent.
    #[error("what is sent is not acknowledged")]
    Silent,
    /// An answer cannot be protected as it must be.
    #[error("an answer cannot be signed or encrypted: {0}")]
    Unprotected(#[from] NonceError),
    /// The client does not read.
    #[error("answers are not read")]
    NotReading,
}

impl Dropped {
    /// Whether a message is the reason, of a client that is there and reads.
    pub fn is_of_a_message(&self) -> bool {
        matches!(
            self,
            Self::Protocol(_)
                | Self::TooLong(_)
                | Self::Unprotected(_)
                | Self::Compression(_)
                | Self::NoRoom(_)
        )
    }
}
