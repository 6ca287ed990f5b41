//! The NT hash, which is all that NTLM needs to know of a password.

use std::{fmt, str::FromStr};

use md4::{Digest, Md4};
use zeroize::{Zeroize, Zeroizing};

/// MD4 of the UTF-16LE password (NTOWFv1, MS-NLMP 3.3.1). It is as good as the password to
/// whoever has it: wiped on drop, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct NtHash([u8; 16]);

impl NtHash {
    /// The hash of a password (`NTOWFv1`, MS-NLMP 3.3.1).
    #[must_use]
    pub fn of_password(password: &str) -> Self {
        let mut utf16 = Zeroizing::new(Vec::with_capacity(password.len() * 2));
        for unit in password.encode_utf16() {
            utf16.extend_from_slice(&unit.to_le_bytes());
        }
        Self(Md4::digest(&*utf16).into())
    }

    /// Takes the 16 bytes of a hash.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The 32 hexadecimal digits that [`FromStr`] reads, for writing a users file.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("below 16");
        let digits = self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
        let mut text = Zeroizing::new(String::with_capacity(32));
        text.extend(digits);
        text
    }
}

impl Drop for NtHash {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for NtHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NtHash(..)")
    }
}

/// A text that is not 32 hexadecimal digits. Does not repeat the text, which may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an NT hash is 32 hexadecimal digits")]
pub struct ParseHashError;

impl FromStr for NtHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let digits: &[u8; 32] = text.as_bytes().try_into().map_err(|_| ParseHashError)?;
        let value = |digit: u8| {
            char::from(digit).to_digit(16).and_then(|v| u8::try_from(v).ok()).ok_or(ParseHashError)
        };
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::hex;

    /// MS-NLMP 4.2.2.1.2.
    #[test]
    fn hash_of_the_example_password() {
        let hash = NtHash::of_password("Password");
        assert_eq!(hash.as_bytes()[..], hex("a4f49c406510bdcab6824ee7c30fd852"));
        assert_eq!(hash.to_hex().as_str(), "a4f49c406510bdcab6824ee7c30fd852");
        assert_eq!(hash.to_hex().parse(), Ok(hash));
    }

    #[test]
    fn bad_digits_are_refused_and_nothing_is_printed() {
        for text in
            ["", "a4f4", &"g".repeat(32), &"0".repeat(33), "é1234567890123456789012345678901"]
        {
            assert_eq!(text.parse::<NtHash>(), Err(ParseHashError));
        }
        assert_eq!(format!("{:?}", NtHash::of_password("secret")), "NtHash(..)");
    }
}
