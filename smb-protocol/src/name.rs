//! Text on the wire, UTF-16LE without terminator, and when two names are the same: by one table for
//! all names, of files, streams, shares and users alike.

use crate::{
    parse::{self, Input},
    upcase,
    wire::{Put, Result},
};

/// Reads UTF-16LE text without a terminator.
///
/// # Errors
/// An odd number of bytes, or a lone surrogate.
pub fn utf16(bytes: &[u8], field: &'static str) -> Result<String> {
    parse::run(Input::new(bytes), parse::text(bytes.len(), field))
}

/// Appends text as UTF-16LE.
pub fn put_utf16(out: &mut Vec<u8>, text: &str) {
    for unit in text.encode_utf16() {
        out.put_u16(unit);
    }
}

/// Text as UTF-16LE bytes.
pub fn to_utf16(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() * 2);
    put_utf16(&mut out, text);
    out
}

/// The character that Windows compares by (MS-UCODEREF 3.1.5.3). Characters beyond the first plane
/// are pairs of units to it, none of which has an upper case.
pub fn fold_char(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_uppercase();
    }
    let upper = u16::try_from(u32::from(c)).map(|unit| u32::from(upcase::upper(unit)));
    upper.ok().and_then(char::from_u32).unwrap_or(c)
}

/// A name in the form that is compared.
pub fn fold(name: &str) -> String {
    name.chars().map(fold_char).collect()
}

/// Whether two names are the same to Windows.
pub fn same_name(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        return a.eq_ignore_ascii_case(b);
    }
    a.chars().map(fold_char).eq(b.chars().map(fold_char))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_survives_the_wire(text in ".*") {
            prop_assert_eq!(utf16(&to_utf16(&text), "t").unwrap(), text);
        }
    }

    #[test]
    fn case_rules() {
        assert!(same_name("Füße.VHDX", "fÜße.vhdx"));
        assert!(!same_name("straße", "STRASSE"));
        // Names that Unicode would call the same and Windows does not.
        for (a, b) in
            [("kız", "kiz"), ("ısı", "ISI"), ("µ", "μ"), ("ſ", "s"), ("ა", "Ა"), ("𐐨", "𐐀")]
        {
            assert!(!same_name(a, b), "{a} {b}");
            assert_ne!(fold(a), fold(b), "{a} {b}");
        }
    }
}
