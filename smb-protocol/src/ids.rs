//! Identifiers that must never be mixed up.

use std::fmt;

/// `SessionId`: names an authenticated session, 0 before there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// `TreeId`: names a connection to a share within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct TreeId(pub u32);

/// `MessageId`: sequence number of a request on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct MessageId(pub u64);

impl MessageId {
    /// Used by messages the server sends unasked (oplock breaks), MS-SMB2 2.2.1.
    pub const UNSOLICITED: Self = Self(u64::MAX);
}

/// `SMB2_FILEID` (MS-SMB2 2.2.14.1): names an open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct FileId {
    /// Survives a reconnect of a durable open.
    pub persistent: u64,
    /// Valid within one session.
    pub volatile: u64,
}

impl FileId {
    /// In a related compound request: "the file of the request before" (MS-SMB2 3.3.5.2.7.2).
    pub const RELATED: Self = Self { persistent: u64::MAX, volatile: u64::MAX };

    /// Reads the 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let (mut persistent, mut volatile) = ([0; 8], [0; 8]);
        persistent.copy_from_slice(&bytes[..8]);
        volatile.copy_from_slice(&bytes[8..]);
        Self { persistent: u64::from_le_bytes(persistent), volatile: u64::from_le_bytes(volatile) }
    }

    /// The 16 bytes on the wire.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.persistent.to_le_bytes());
        bytes[8..].copy_from_slice(&self.volatile.to_le_bytes());
        bytes
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({:x}:{:x})", self.persistent, self.volatile)
    }
}
