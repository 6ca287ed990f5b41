//! Key bytes that are wiped when dropped and never printed.

use std::fmt;

use zeroize::Zeroize;

/// A symmetric key of 1 to 32 bytes. Wiped on drop; its `Debug` shows the length only.
#[derive(Clone)]
pub struct SecretKey {
    bytes: [u8; Self::MAX_LEN],
    len: usize,
}

impl SecretKey {
    /// Longest key in bytes.
    pub const MAX_LEN: usize = 32;

    /// Copies key bytes; `None` if there are none or more than [`SecretKey::MAX_LEN`].
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        if key.is_empty() || key.len() > Self::MAX_LEN {
            return None;
        }
        let mut bytes = [0; Self::MAX_LEN];
        bytes[..key.len()].copy_from_slice(key);
        Some(Self { bytes, len: key.len() })
    }

    /// The key bytes; who copies them is to wipe the copy.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Copies the bytes, cut or padded with zeros to 16: `Session.SessionKey` of MS-SMB2 3.3.1.8.
    #[must_use]
    pub fn first_16(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out.copy_from_slice(&self.bytes[..16]);
        out
    }
}

impl From<[u8; 16]> for SecretKey {
    fn from(mut key: [u8; 16]) -> Self {
        let mut bytes = [0; Self::MAX_LEN];
        bytes[..16].copy_from_slice(&key);
        key.zeroize();
        Self { bytes, len: 16 }
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_key_bytes() {
        let key = SecretKey::from([0xab; 16]);
        assert_eq!(format!("{key:?}"), "SecretKey(16 bytes)");
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(SecretKey::new(&[]).is_none());
        assert!(SecretKey::new(&[0; 33]).is_none());
        assert_eq!(SecretKey::new(&[7; 5]).unwrap().first_16()[..6], [7, 7, 7, 7, 7, 0]);
    }
}
