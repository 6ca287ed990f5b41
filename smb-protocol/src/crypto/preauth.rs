//! The pre-authentication integrity hash of SMB 3.1.1 (MS-SMB2 3.1.4.2, 3.3.5.4, 3.3.5.5).

use aws_lc_rs::digest;

/// A running SHA-512 chain: each message replaces `H` by `SHA-512(H ‖ message)`, from 64 zero
/// bytes.
///
/// A connection's chain takes the negotiate request and response; each session's chain starts as
/// a copy of it and takes every session-setup request and response but the last response. The
/// messages are hashed from their SMB2 header to their end, without the transport's length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PreauthHash([u8; 64]);

impl PreauthHash {
    /// `SHA-512` in SMB2_PREAUTH_INTEGRITY_CAPABILITIES (MS-SMB2 2.2.3.1.1).
    pub const SHA512_ID: u16 = 0x0001;

    /// The chain before any message.
    #[must_use]
    pub fn new() -> Self {
        Self([0; 64])
    }

    /// Takes one more message, in the order in which they are sent, into the hash.
    pub fn update(&mut self, message: &[u8]) {
        let mut context = digest::Context::new(&digest::SHA512);
        context.update(&self.0);
        context.update(message);
        self.0.copy_from_slice(context.finish().as_ref());
    }

    /// The chain's present value.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl Default for PreauthHash {
    fn default() -> Self {
        Self::new()
    }
}

impl From<[u8; 64]> for PreauthHash {
    fn from(value: [u8; 64]) -> Self {
        Self(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_as_the_hash_of_the_concatenation() {
        let mut chain = PreauthHash::new();
        chain.update(b"negotiate request");
        let mut plain = vec![0u8; 64];
        plain.extend_from_slice(b"negotiate request");
        let first = digest::digest(&digest::SHA512, &plain);
        assert_eq!(chain.as_bytes()[..], *first.as_ref());
        chain.update(b"negotiate response");
        let mut plain = first.as_ref().to_vec();
        plain.extend_from_slice(b"negotiate response");
        assert_eq!(chain.as_bytes()[..], *digest::digest(&digest::SHA512, &plain).as_ref());
    }
}
