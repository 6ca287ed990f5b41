//! Names below a share, checked part by part (MS-FSCC 2.1.5).

use std::ffi::OsString;

use smb_protocol::NtStatus;

/// A path below the share's folder whose parts are all valid; the root has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelPath {
    parts: Vec<String>,
}

/// Longest part that file systems take, in bytes.
const MAX_PART: usize = 255;
/// Longest path in characters.
const MAX_PATH: usize = 32_760;

/// Whether Windows allows `part` as the name of a file.
pub fn valid_part(part: &str) -> bool {
    let forbidden = |c: char| (c as u32) < 0x20 || "\"\\/:|<>*?".contains(c);
    !part.is_empty()
        && part.len() <= MAX_PART
        && part != "."
        && part != ".."
        && !part.contains(forbidden)
}

impl RelPath {
    /// The share's folder itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks a name as a client sends it. The stream `::$DATA` is the file itself; other
    /// streams are refused.
    pub fn parse(name: &str) -> Result<Self, NtStatus> {
        if name.is_empty() {
            return Ok(Self::root());
        }
        if name.starts_with('\\') {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        if name.len() > MAX_PATH {
            return Err(NtStatus::OBJECT_NAME_INVALID);
        }
        let name = match name.split_once(':') {
            Some((file, stream)) if stream.eq_ignore_ascii_case(":$DATA") => file,
            Some(_) => return Err(NtStatus::OBJECT_NAME_INVALID),
            None => name,
        };
        let name = name.strip_suffix('\\').unwrap_or(name);
        let mut parts = Vec::new();
        for part in name.split('\\') {
            match part {
                // What remains of ".." would name something above the share.
                "." | ".." => return Err(NtStatus::OBJECT_PATH_SYNTAX_BAD),
                part if valid_part(part) => parts.push(part.to_owned()),
                _ => return Err(NtStatus::OBJECT_NAME_INVALID),
            }
        }
        Ok(Self { parts })
    }

    /// The parts from the root down.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// Whether this is the share's folder itself.
    pub fn is_root(&self) -> bool {
        self.parts.is_empty()
    }

    /// A part below this path.
    pub fn child(&self, part: &str) -> Self {
        let mut parts = self.parts.clone();
        parts.push(part.to_owned());
        Self { parts }
    }

    /// The folder and the name in it; `None` for the root.
    pub fn split(&self) -> Option<(Self, &str)> {
        let (name, folder) = self.parts.split_last()?;
        Some((Self { parts: folder.to_vec() }, name))
    }

    /// Whether `self` lies below `folder`.
    pub fn is_below(&self, folder: &Self) -> bool {
        self.parts.len() > folder.parts.len() && self.parts.starts_with(&folder.parts)
    }

    /// The path for the system, relative to the share's folder.
    pub fn to_os(&self) -> OsString {
        OsString::from(self.parts.join("/"))
    }

    /// The path as Windows writes it, from the root of the share: `\a\b`.
    pub fn to_windows(&self) -> String {
        let mut text = String::new();
        for part in &self.parts {
            text.push('\\');
            text.push_str(part);
        }
        if text.is_empty() { "\\".to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_and_forbidden_names_are_refused() {
        for name in ["..", "a\\..\\b", ".", "a\\.", "\\a", "a/b", "a\\\\b", "a:b", "a*", "x\u{1}"] {
            assert!(RelPath::parse(name).is_err(), "{name:?}");
        }
        assert_eq!(RelPath::parse("a\\b::$DATA").unwrap().to_windows(), "\\a\\b");
        assert!(RelPath::parse("").unwrap().is_root());
    }

    proptest! {
        /// What is accepted never has a part that the system would read as something else.
        #[test]
        fn accepted_names_stay_below(name in "[a.\\\\/:\u{0}é]{0,12}") {
            if let Ok(path) = RelPath::parse(&name) {
                for part in path.parts() {
                    prop_assert!(!part.is_empty() && part != "." && part != "..");
                    prop_assert!(!part.contains(['/', '\0', '\\']));
                }
            }
        }
    }
}
