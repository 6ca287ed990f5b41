//! Names of the form 8.3 (MS-FSCC 2.1.5.2.1) for those that are not: old programs ask for them,
//! and Windows servers have them.
//!
//! They are computed, not kept: the first letter, six digits to base 36 of a hash of the name
//! around a tilde, and the extension: `Z0A4B7~1.TXT`. The same name always gives the same short
//! one. Two names of one folder may meet in one (about 1 in 10⁹ for a pair); then neither is found
//! by it.

use smb_protocol::name::{fold_char, same_name};

/// Whether a character can be in a short name.
fn plain(c: char) -> bool {
    c.is_ascii_graphic() && !"\"*+,./:;<=>?[\\]|".contains(c)
}

/// Whether a name is of the form 8.3 itself.
pub fn is_short(name: &str) -> bool {
    let (base, extension) = match name.split_once('.') {
        Some((_, "")) => return false,
        Some(parts) => parts,
        None => (name, ""),
    };
    (1..=8).contains(&base.len())
        && extension.len() <= 3
        && base.chars().chain(extension.chars()).all(plain)
}

/// Whether `path` is `place` or lies below it, each part by its name or by its short one.
pub fn leads_to<S: AsRef<str>>(place: &[String], path: &[S]) -> bool {
    let same = |(a, b): (&String, &S)| {
        let short = || short_name(a).is_some_and(|short| same_name(&short, b.as_ref()));
        same_name(a, b.as_ref()) || short()
    };
    place.len() <= path.len() && place.iter().zip(path).all(same)
}

/// The short name of `name`; `None` if it is one itself.
pub fn short_name(name: &str) -> Option<String> {
    const DIGITS: &[u8; 36] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    if is_short(name) {
        return None;
    }
    // FNV-1a of the folded name.
    let mut hash = name.chars().map(fold_char).fold(0xcbf2_9ce4_8422_2325u64, |hash, c| {
        (hash ^ u64::from(u32::from(c))).wrapping_mul(0x0100_0000_01b3)
    });
    hash ^= hash >> 32;
    let mut digit = || {
        let digit = DIGITS[(hash % 36) as usize];
        hash /= 36;
        char::from(digit)
    };
    let upper = |c: char| c.to_ascii_uppercase();
    let first = name.chars().find(|c| c.is_ascii_alphanumeric()).map_or('_', upper);
    let mut short = String::from(first);
    short.extend((0..5).map(|_| digit()));
    short.push('~');
    short.push(digit());
    if let Some((_, extension)) = name.rsplit_once('.') {
        let extension: String =
            extension.chars().filter(|c| plain(*c)).take(3).map(upper).collect();
        if !extension.is_empty() {
            short.push('.');
            short.push_str(&extension);
        }
    }
    Some(short)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn short_names_are_short_and_do_not_depend_on_case(name in "[a-zA-Z0-9 .é+~]{1,40}") {
            if let Some(short) = short_name(&name) {
                prop_assert!(is_short(&short), "{}", short);
                prop_assert_eq!(short_name(&name.to_ascii_uppercase()), Some(short.clone()));
                prop_assert_eq!(short_name(&short), None);
            }
        }
    }

    #[test]
    fn what_is_short_already() {
        for name in ["a", "FILE.TXT", "file.t", "a~1.b", "12345678.123", "$x"] {
            assert!(is_short(name), "{name}");
        }
        for name in ["123456789", "a.b.c", "a b", "a.html", "a.", ".a", "é", ""] {
            assert!(!is_short(name), "{name}");
        }
    }
}
