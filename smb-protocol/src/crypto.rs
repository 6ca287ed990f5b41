//! Integrity and secrecy of SMB messages: key derivation, pre-authentication integrity, signing
//! and encryption.
//!
//! ```text
//!  session key ──► kdf ──► signing key ──► SigningKey   (HMAC-SHA256 | AES-CMAC | AES-GMAC)
//!  (NTLM, …)        ▲ └──► cipher keys ──► SealingKey / OpeningKey   (AES-CCM | AES-GCM)
//!                   │
//!      PreauthHash ─┘ (3.1.1: SHA-512 over negotiate and session setup)
//! ```
//!
//! Everything works in place on the buffer that goes to, or came from, the wire.

mod ccm;
pub mod kdf;
pub mod once;
pub mod preauth;
pub mod seal;
mod secret;
pub mod sign;

pub use once::NonceError;
pub use preauth::PreauthHash;
pub use seal::{Cipher, OpeningKey, SealError, SealingKey, TransformHeader};
pub use secret::SecretKey;
pub use sign::{Role, SigningAlgorithm, SigningKey};

/// Whether two byte strings are equal, in time that depends on their lengths only.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Fills an array with random bytes from the operating system's generator.
///
/// # Panics
/// Only if the operating system cannot give random bytes, where nothing secure can go on.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
pub(crate) mod testing {
    /// Bytes of a hexadecimal literal; blanks are skipped.
    pub(crate) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_digit(16).expect("hexadecimal") as u8)
            .collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }
}
