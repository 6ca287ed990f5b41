//! What is wrong with bytes, a cursor over [`crate::parse`]'s combinators for callers, little-endian
//! writing, and the macros for open enumerations and flag sets.

use nom::Parser;

use crate::parse::{self, Input};

/// Bytes that do not form the structure they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The buffer ends inside a field.
    #[error("{field} at byte {at}: needs {need} bytes, {have} are left")]
    Short {
        /// Field or structure that was being read.
        field: &'static str,
        /// Where it stands, in bytes from where the message's offsets count.
        at: usize,
        /// Bytes it needs.
        need: usize,
        /// Bytes at hand.
        have: usize,
    },
    /// A region named by offset and length is not inside the message.
    #[error("{field}: {len} bytes at offset {offset} lie outside the message of {have} bytes")]
    Outside {
        /// Region that was named.
        field: &'static str,
        /// Its offset.
        offset: usize,
        /// Its length.
        len: usize,
        /// Length of what it must lie in.
        have: usize,
    },
    /// A field holds a value its structure cannot have.
    #[error("{field} at byte {at}: {value:#x} is not possible here")]
    Impossible {
        /// Field that was read.
        field: &'static str,
        /// Where it stands, in bytes from where the message's offsets count.
        at: usize,
        /// What it held.
        value: u64,
    },
    /// A structure is well formed, and who uses it cannot take a value of it.
    #[error("{field}: {value:#x} is not possible here")]
    Value {
        /// Field that was read.
        field: &'static str,
        /// What it held.
        value: u64,
    },
    /// Text is not well-formed in its encoding.
    #[error("{field} at byte {at}: not well-formed text")]
    Text {
        /// Field that was read.
        field: &'static str,
        /// Where the first wrong character stands, in bytes from where the message's offsets count.
        at: usize,
    },
}

/// Result of reading a structure.
pub type Result<T> = std::result::Result<T, WireError>;

/// A cursor over a byte slice, for structures that are read field by field.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    left: Input<'a>,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `all`.
    pub fn new(all: &'a [u8]) -> Self {
        Self { left: Input::new(all) }
    }

    /// Takes what `parser` reads and stands behind it; an error leaves the cursor where it is.
    ///
    /// # Errors
    /// What the parser finds wrong.
    pub fn take<T>(
        &mut self,
        parser: impl Parser<Input<'a>, Output = T, Error = WireError>,
    ) -> Result<T> {
        parse::step(&mut self.left, parser)
    }

    /// Bytes not yet read.
    pub fn rest(&self) -> &'a [u8] {
        self.left.bytes()
    }

    /// Position from the start.
    pub fn position(&self) -> usize {
        self.left.position()
    }

    /// Takes the next `n` bytes.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn bytes(&mut self, n: usize, field: &'static str) -> Result<&'a [u8]> {
        self.take(parse::bytes(n, field))
    }

    /// Takes the next `N` bytes as an array.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        self.take(parse::array(field))
    }

    /// Skips the next `n` bytes, whatever they are.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn skip(&mut self, n: usize, field: &'static str) -> Result<()> {
        self.take(parse::skip(n, field))
    }

    /// Takes the next byte.
    ///
    /// # Errors
    /// None is left.
    pub fn u8(&mut self, field: &'static str) -> Result<u8> {
        self.take(parse::u8(field))
    }

    /// Takes a 16-bit number.
    ///
    /// # Errors
    /// Fewer than two bytes are left.
    pub fn u16(&mut self, field: &'static str) -> Result<u16> {
        self.take(parse::u16(field))
    }

    /// Takes a 32-bit number.
    ///
    /// # Errors
    /// Fewer than four bytes are left.
    pub fn u32(&mut self, field: &'static str) -> Result<u32> {
        self.take(parse::u32(field))
    }

    /// Takes a 64-bit number.
    ///
    /// # Errors
    /// Fewer than eight bytes are left.
    pub fn u64(&mut self, field: &'static str) -> Result<u64> {
        self.take(parse::u64(field))
    }
}

/// Little-endian appending, for any growable buffer.
pub trait Put {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);
    /// Number of bytes so far.
    fn position(&self) -> usize;
    /// Overwrites bytes already written.
    fn patch(&mut self, at: usize, bytes: &[u8]);

    /// Appends one byte.
    fn put_u8(&mut self, v: u8) {
        self.put(&[v]);
    }
    /// Appends a 16-bit number.
    fn put_u16(&mut self, v: u16) {
        self.put(&v.to_le_bytes());
    }
    /// Appends a 32-bit number.
    fn put_u32(&mut self, v: u32) {
        self.put(&v.to_le_bytes());
    }
    /// Appends a 64-bit number.
    fn put_u64(&mut self, v: u64) {
        self.put(&v.to_le_bytes());
    }
    /// Appends a signed 64-bit number.
    fn put_i64(&mut self, v: i64) {
        self.put(&v.to_le_bytes());
    }
    /// Appends `n` zero bytes.
    fn put_zeros(&mut self, n: usize) {
        const ZEROS: [u8; 64] = [0; 64];
        let mut left = n;
        while left > 0 {
            let now = left.min(ZEROS.len());
            self.put(&ZEROS[..now]);
            left -= now;
        }
    }
    /// Appends zeros until the distance from `start` is a multiple of `align`.
    fn pad_to(&mut self, start: usize, align: usize) {
        let over = (self.position() - start) % align;
        if over != 0 {
            self.put_zeros(align - over);
        }
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
    fn position(&self) -> usize {
        self.len()
    }
    fn patch(&mut self, at: usize, bytes: &[u8]) {
        self[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A length as the 32-bit number the wire wants.
///
/// Messages are bounded far below 4 GiB by the frame (24-bit length), so this cannot cut.
pub fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A length as the 16-bit number the wire wants; callers keep such regions below 64 KiB.
pub fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Declares an open enumeration: a number with names for the values that are known.
#[macro_export]
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident : $repr:ty { $($(#[$vdoc:meta])* $variant:ident = $value:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $repr);
        impl $name {
            $($(#[$vdoc])* pub const $variant: Self = Self($value);)*
            /// The name of a known value.
            pub fn known_name(self) -> Option<&'static str> {
                $(if self == Self::$variant { return Some(stringify!($variant)); })*
                None
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.known_name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}

/// Declares a set of flags; bits without a name are kept.
#[macro_export]
macro_rules! flag_set {
    ($(#[$doc:meta])* $name:ident : $repr:ty { $($(#[$vdoc:meta])* $flag:ident = $value:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $repr);
        impl $name {
            $($(#[$vdoc])* pub const $flag: Self = Self($value);)*
            /// No flag at all.
            pub const NONE: Self = Self(0);
            /// Whether every flag of `other` is set.
            pub const fn has(self, other: Self) -> bool { self.0 & other.0 == other.0 }
            /// Whether any flag of `other` is set.
            pub const fn any(self, other: Self) -> bool { self.0 & other.0 != 0 }
            /// These flags without those of `other`.
            pub const fn without(self, other: Self) -> Self { Self(self.0 & !other.0) }
            /// The flags that both have.
            pub const fn and(self, other: Self) -> Self { Self(self.0 & other.0) }
            /// The flags that either has.
            pub const fn or(self, other: Self) -> Self { Self(self.0 | other.0) }
        }
        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self { Self(self.0 | other.0) }
        }
        impl std::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) { self.0 |= other.0; }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x}"), self.0)?;
                $(if self.has(Self::$flag) && Self::$flag.0 != 0 { write!(f, concat!(" ", stringify!($flag)))?; })*
                f.write_str(")")
            }
        }
    };
}
