//! 128-bit identifiers as Windows stores and prints them.

use std::{fmt, str::FromStr};

/// A GUID in its stored form: the first three fields little-endian (MS-DTYP 2.3.4.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All bits zero.
    pub const ZERO: Self = Self([0; 16]);

    /// From its stored bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// From its printed fields: `2DC27766-F623-4200-9D64-115E9BFD4A08` is
    /// `from_fields(0x2DC27766, 0xF623, 0x4200, 0x9D64_115E9BFD4A08)`.
    pub const fn from_fields(a: u32, b: u16, c: u16, d: u64) -> Self {
        let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ])
    }

    /// A new random one (version 4).
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            // The kernel's generator answers short or interrupted requests only before it is
            // seeded at boot.
            if let Ok(n) =
                rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            {
                filled += n;
            }
        }
        bytes[7] = (bytes[7] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// The 16 bytes as they are stored.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether all bits are zero.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.0;
        write!(
            f,
            "{:02x}{:02x}{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-",
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9]
        )?;
        b[10..].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for Guid {
    type Err = NoGuid;

    /// Reads the printed form, in braces or without.
    fn from_str(text: &str) -> Result<Self, NoGuid> {
        let bare = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let parts: Vec<&str> = bare.split('-').collect();
        let lengths = parts.iter().map(|part| part.len());
        let hex = bare.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
        if !hex || !lengths.eq([8, 4, 4, 4, 12]) {
            return Err(NoGuid);
        }
        let number = |text: &str| u64::from_str_radix(text, 16).map_err(|_| NoGuid);
        let [a, b, c, d, e] = parts[..] else { return Err(NoGuid) };
        Ok(Self::from_fields(
            number(a)? as u32,
            number(b)? as u16,
            number(c)? as u16,
            number(d)? << 48 | number(e)?,
        ))
    }
}

/// A text is no GUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID of 32 hexadecimal digits with hyphens")]
pub struct NoGuid;

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_windows_does() {
        let bat = Guid::from_fields(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
        assert_eq!(bat.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(bat.to_bytes()[..4], [0x66, 0x77, 0xc2, 0x2d]);
        assert_ne!(Guid::random(), Guid::random());
        let random = Guid::random();
        assert_eq!(random.to_string().parse(), Ok(random));
        assert_eq!(format!("{{{}}}", random.to_string().to_uppercase()).parse(), Ok(random));
        for bad in [
            "",
            "{}",
            "2dc27766-f623-4200-9d64-115e9bfd4a0",
            "2dc27766-f623-4200-9d64-115e9bfd4a0+",
        ] {
            assert_eq!(bad.parse::<Guid>(), Err(NoGuid), "{bad}");
        }
    }
}
