//! Names below a share, checked part by part (MS-FSCC 2.1.5).

use std::{
    borrow::Cow,
    ffi::OsString,
    path::{Component, Path},
};

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

/// The folder in a share's root where the server keeps what is its own; no client sees it, at
/// whatever depth, because a share may lie inside another.
pub const PRIVATE: &str = ".bulkhead";

/// Whether Windows allows `part` as the name of a file.
pub fn valid_part(part: &str) -> bool {
    let forbidden = |c: char| (c as u32) < 0x20 || "\"\\/:|<>*?".contains(c);
    !part.is_empty()
        && part.len() <= MAX_PART
        && part != "."
        && part != ".."
        && !part.eq_ignore_ascii_case(PRIVATE)
        && !part.contains(forbidden)
}

/// A name without "." and "..", each taken for what it stands for (MS-FSCC 2.1.5.1). Whatever else
/// is made of a name is made of what comes of this, so nothing is hidden behind dots.
///
/// # Errors
/// `OBJECT_PATH_SYNTAX_BAD` for what leads above the share, `INVALID_PARAMETER` for what leads out of
/// the first folder and on (MS-SMB2 3.3.5.9, note 303), `OBJECT_NAME_INVALID` for what leads out of a
/// folder that no folder can be called.
pub fn without_dots(name: &str) -> Result<Cow<'_, str>, NtStatus> {
    const SEPARATORS: [char; 2] = ['\\', '/'];
    if !name.split(SEPARATORS).any(|part| part == "." || part == "..") {
        return Ok(Cow::Borrowed(name));
    }
    let slash = name.ends_with(SEPARATORS);
    let parts: Vec<_> = name.strip_suffix(SEPARATORS).unwrap_or(name).split(SEPARATORS).collect();
    let mut kept = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        match *part {
            "." => {}
            ".." => {
                let left = kept.pop().ok_or(NtStatus::OBJECT_PATH_SYNTAX_BAD)?;
                if !valid_part(left) {
                    return Err(NtStatus::OBJECT_NAME_INVALID);
                }
                if at == 1 && (at + 1 < parts.len() || slash) {
                    return Err(NtStatus::INVALID_PARAMETER);
                }
            }
            part => kept.push(part),
        }
    }
    let mut name = kept.join("\\");
    if slash && !name.is_empty() {
        name.push('\\');
    }
    Ok(Cow::Owned(name))
}

impl RelPath {
    /// The share's folder itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks the name of a file or folder as a client sends it; streams are for [`FileName`].
    pub fn parse(name: &str) -> Result<Self, NtStatus> {
        if name.is_empty() {
            return Ok(Self::root());
        }
        if name.starts_with(['\\', '/']) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        if name.len() > MAX_PATH {
            return Err(NtStatus::OBJECT_NAME_INVALID);
        }
        let name = without_dots(name)?;
        if name.is_empty() {
            return Ok(Self::root());
        }
        let name = name.strip_suffix(['\\', '/']).unwrap_or(&name);
        let mut parts = Vec::new();
        // NTFS has no name with a slash; that it separates is what Samba's clients expect.
        for part in name.split(['\\', '/']) {
            match part {
                part if valid_part(part) => parts.push(part.to_owned()),
                _ => return Err(NtStatus::OBJECT_NAME_INVALID),
            }
        }
        Ok(Self { parts })
    }

    /// The path that the system gives; a part that is not UTF-8 is shown as well as it can be.
    pub fn from_system(path: &Path) -> Self {
        let parts = path.components().filter_map(|component| match component {
            Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        });
        Self { parts: parts.collect() }
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

    /// `path` below this one.
    pub fn join(&self, path: &Self) -> Self {
        Self { parts: self.parts.iter().chain(&path.parts).cloned().collect() }
    }

    /// This path as seen from `base`; `None` if it is not `base` or below it.
    pub fn below(&self, base: &Self) -> Option<Self> {
        let parts = self.parts.strip_prefix(base.parts.as_slice())?;
        Some(Self { parts: parts.to_vec() })
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

/// Which part of a file a name means (MS-FSA 2.1.5.1, phases 5 to 7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StreamPart {
    /// None is named: the folder, or the content of the file.
    #[default]
    Unsaid,
    /// `::$DATA`: the content of a file.
    Content,
    /// `::$INDEX_ALLOCATION`: a folder.
    Folder,
    /// A named stream.
    Named(StreamName),
}

/// The name of a stream, without colons (MS-FSCC 2.1.5.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamName(String);

impl StreamName {
    /// Checks a name: 1 to 255 UTF-16 units, none of them a separator or 0.
    pub fn new(text: &str) -> Option<Self> {
        let len = text.encode_utf16().count();
        let plain = !text.contains(['\\', '/', ':', '\0']);
        ((1..=255).contains(&len) && plain).then(|| Self(text.to_owned()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a client names in a CREATE: a file or folder and a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileName {
    /// The file or folder.
    pub path: RelPath,
    /// The part.
    pub part: StreamPart,
    /// The name ended in a backslash, so it can only be a folder's.
    pub slash: bool,
}

impl FileName {
    /// Checks a name as a client sends it.
    pub fn parse(name: &str) -> Result<Self, NtStatus> {
        let slash = name.ends_with(['\\', '/']);
        let last = name.rfind('\\').map_or(0, |at| at + 1);
        let Some(colon) = name[last..].find(':').map(|at| last + at) else {
            return Ok(Self { path: RelPath::parse(name)?, part: StreamPart::Unsaid, slash });
        };
        let path = RelPath::parse(&name[..colon])?;
        Ok(Self { path, part: parse_part(&name[colon + 1..])?, slash })
    }
}

/// What stands behind the first colon: a stream, `stream:type` or `:type`.
fn parse_part(text: &str) -> Result<StreamPart, NtStatus> {
    let (name, kind) = match text.split_once(':') {
        Some((name, kind)) => (name, Some(kind)),
        None => (text, None),
    };
    let invalid = NtStatus::OBJECT_NAME_INVALID;
    match kind {
        Some(kind) if kind.eq_ignore_ascii_case("$INDEX_ALLOCATION") => {
            if name.is_empty() || name.eq_ignore_ascii_case("$I30") {
                Ok(StreamPart::Folder)
            } else {
                Err(NtStatus::INVALID_PARAMETER)
            }
        }
        Some(kind) if !kind.eq_ignore_ascii_case("$DATA") => Err(invalid),
        Some(_) if name.is_empty() => Ok(StreamPart::Content),
        _ => StreamName::new(name).map(StreamPart::Named).ok_or(invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_and_forbidden_names_are_refused() {
        for name in
            ["..", "a\\..\\b", "\\a", "a//b", "a/../b", "/a", "a\\\\b", "a:b", "a*", "x\u{1}"]
        {
            assert!(RelPath::parse(name).is_err(), "{name:?}");
        }
        assert!(RelPath::parse("").unwrap().is_root());
        assert!(RelPath::parse("a\\.BulkHead\\streams").is_err());
    }

    #[test]
    fn dots_stand_for_folders() {
        for (name, want) in [
            ("a\\.\\b", "a\\b"),
            (".\\a", "a"),
            (".", ""),
            ("a\\.", "a"),
            ("a\\.\\", "a\\"),
            ("a\\b\\..", "a"),
            ("a/b/../c", "a\\c"),
            ("a\\b\\..\\..\\c", "c"),
            ("a\\..", ""),
            ("a\\b\\..:stream", "a\\b\\..:stream"),
            ("...\\..a\\.b", "...\\..a\\.b"),
        ] {
            assert_eq!(without_dots(name).as_deref(), Ok(want), "{name:?}");
        }
        for (name, want) in [
            ("..", NtStatus::OBJECT_PATH_SYNTAX_BAD),
            ("..\\a", NtStatus::OBJECT_PATH_SYNTAX_BAD),
            ("a\\b\\..\\..\\..", NtStatus::OBJECT_PATH_SYNTAX_BAD),
            ("a\\..\\b", NtStatus::INVALID_PARAMETER),
            ("a\\..\\", NtStatus::INVALID_PARAMETER),
            ("a\\b*\\..\\c", NtStatus::OBJECT_NAME_INVALID),
            ("a\\.BulkHead\\..\\c", NtStatus::OBJECT_NAME_INVALID),
        ] {
            assert_eq!(RelPath::parse(name), Err(want), "{name:?}");
        }
        assert_eq!(RelPath::parse("a\\b\\..\\c").unwrap().to_windows(), "\\a\\c");
        assert!(RelPath::parse("a\\..").unwrap().is_root());
        // Of a stream there is no way back.
        assert!(FileName::parse("a\\b:s\\..").is_err());
    }

    #[test]
    fn parts_of_a_file() {
        let part = |name| FileName::parse(name).map(|name| name.part);
        let named = |name| Ok(StreamPart::Named(StreamName::new(name).unwrap()));
        assert_eq!(part("a\\b"), Ok(StreamPart::Unsaid));
        assert_eq!(part("a\\b::$data"), Ok(StreamPart::Content));
        assert_eq!(part("d::$INDEX_ALLOCATION"), Ok(StreamPart::Folder));
        assert_eq!(part("d:$I30:$INDEX_ALLOCATION"), Ok(StreamPart::Folder));
        assert_eq!(part("b:s"), named("s"));
        assert_eq!(part("b:s?*<\"\n:$DATA"), named("s?*<\"\n"));
        for name in ["b:", "b::", "b:s:", "b:s:x", "b:s:$DATA:", "a:s\\b", "b:s/t", "b:s\0"] {
            assert!(part(name).is_err(), "{name:?}");
        }
        assert_eq!(FileName::parse("a\\b::$DATA").unwrap().path.to_windows(), "\\a\\b");
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
