//! Names below a share, checked part by part (MS-FSCC 2.1.5).

use std::{
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

/// What stands between the parts of a name. NTFS has no name with a slash; that it separates is what
/// Samba's clients expect.
const SEPARATORS: [char; 2] = ['\\', '/'];

/// A part of a name, and where it ends in it, in bytes.
type Part<'a> = (&'a str, usize);

/// The parts of a name without "." and "..", and without what is between two separators in a row
/// (MS-FSCC 2.1.5.1, MS-FSA 2.1.5.1 phase 3).
fn resolved(name: &str) -> Result<Vec<Part<'_>>, NtStatus> {
    if name.len() > MAX_PATH {
        return Err(NtStatus::OBJECT_NAME_INVALID);
    }
    let mut given = name.split(SEPARATORS).filter(|part| !part.is_empty());
    if let (Some(first), Some("..")) = (given.next(), given.next())
        && !matches!(first, "." | "..")
        && (given.next().is_some() || name.ends_with(SEPARATORS))
    {
        // Windows wants no name that begins in this way, though it would resolve
        // (MS-SMB2, note 303).
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let (mut parts, mut end) = (Vec::<Part<'_>>::new(), 0);
    for part in name.split(SEPARATORS) {
        end += part.len();
        match part {
            "" | "." => {}
            ".." => match parts.pop() {
                Some((left, _)) if valid_part(left) => {}
                Some(_) => return Err(NtStatus::OBJECT_NAME_INVALID),
                // It would name something above the share.
                None => return Err(NtStatus::OBJECT_PATH_SYNTAX_BAD),
            },
            part => parts.push((part, end)),
        }
        // Both separators are one byte long.
        end += 1;
    }
    Ok(parts)
}

/// What stands in a name, as a client sends it, behind the part that is number `depth` of those that
/// `counts`: the rest from the separator on, or the stream of the last part. All of a name without so
/// many parts.
pub fn behind(name: &str, depth: usize, counts: impl Fn(&str) -> bool) -> &str {
    let parts = resolved(name).unwrap_or_default();
    let part = parts.iter().filter(|(part, _)| counts(part)).nth(depth.saturating_sub(1));
    let Some((part, end)) = part.filter(|_| depth > 0) else { return name };
    let stream = part.find(':').map_or(0, |colon| part.len() - colon);
    name.get(end - stream..).unwrap_or_default()
}

/// A name as a client sends it, with "." and ".." resolved and one backslash between its parts, so
/// that names of one file compare as equal; one that begins with a separator is left as it is, for
/// no file has it.
///
/// # Errors
/// OBJECT_PATH_SYNTAX_BAD for one that leads above the share, INVALID_PARAMETER for one that begins
/// as `part\..\` (MS-SMB2 3.3.5.9), OBJECT_NAME_INVALID for one that is too long or leads through
/// a name that no folder has.
pub fn resolve(name: &str) -> Result<String, NtStatus> {
    if name.starts_with(SEPARATORS) {
        return Ok(name.to_owned());
    }
    let parts: Vec<_> = resolved(name)?.into_iter().map(|(part, _)| part).collect();
    let mut resolved = parts.join("\\");
    if name.ends_with(SEPARATORS) && !resolved.is_empty() {
        resolved.push('\\');
    }
    Ok(resolved)
}

impl RelPath {
    /// The share's folder itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks the name of a file or folder as a client sends it; streams are for [`FileName`].
    ///
    /// # Errors
    /// INVALID_PARAMETER for one that begins with a separator; those of [`resolve`];
    /// OBJECT_NAME_INVALID for a part that no file has.
    pub fn parse(name: &str) -> Result<Self, NtStatus> {
        if name.starts_with(SEPARATORS) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        let parts = resolved(name)?;
        if !parts.iter().all(|(part, _)| valid_part(part)) {
            return Err(NtStatus::OBJECT_NAME_INVALID);
        }
        Ok(Self { parts: parts.into_iter().map(|(part, _)| part.to_owned()).collect() })
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
    /// An index that no file here has, as `:$Q:$INDEX_ALLOCATION` of NTFS' quota file.
    OtherIndex,
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
                StreamName::new(name).map(|_| StreamPart::OtherIndex).ok_or(invalid)
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
        for name in [
            "..",
            "a\\..\\b",
            "\\a",
            "a/../b",
            "/a",
            "a:b",
            "a*",
            "x\u{1}",
            "a\\..\\..",
            "a\\b\\..\\..\\..\\c",
            "...\\a:\\..",
            "\\..\\a",
            "..:s",
            ".:s",
        ] {
            assert!(RelPath::parse(name).is_err(), "{name:?}");
        }
        assert!(RelPath::parse("").unwrap().is_root());
        assert!(RelPath::parse("a\\.BulkHead\\streams").is_err());
    }

    #[test]
    fn dots_are_resolved_and_separators_in_a_row_are_one() {
        for (name, want) in [
            ("a\\.\\b", "a\\b"),
            (".", ""),
            ("a\\.", "a"),
            (".\\a\\.\\.\\b\\", "a\\b\\"),
            ("a\\b\\..\\c", "a\\c"),
            ("a/b/../c", "a\\c"),
            ("a\\..", ""),
            ("a\\b\\..\\..\\c", "c"),
            ("a\\\\b//c", "a\\b\\c"),
            ("a\\...\\..b", "a\\...\\..b"),
            ("a\\.\\..\\b", "b"),
        ] {
            assert_eq!(resolve(name).unwrap(), want, "{name:?}");
            let path = RelPath::parse(name).unwrap();
            assert_eq!(path, RelPath::parse(want).unwrap(), "{name:?}");
        }
        for (name, want) in [
            ("a\\..\\b", NtStatus::INVALID_PARAMETER),
            ("a\\..\\", NtStatus::INVALID_PARAMETER),
            ("a\\\\..\\b", NtStatus::INVALID_PARAMETER),
            ("a\\b:\\..\\c", NtStatus::OBJECT_NAME_INVALID),
            ("..", NtStatus::OBJECT_PATH_SYNTAX_BAD),
            ("..\\a", NtStatus::OBJECT_PATH_SYNTAX_BAD),
            ("a\\b\\..\\..\\..\\c", NtStatus::OBJECT_PATH_SYNTAX_BAD),
        ] {
            assert_eq!(resolve(name).unwrap_err(), want, "{name:?}");
            assert_eq!(RelPath::parse(name).unwrap_err(), want, "{name:?}");
        }
        assert_eq!(resolve("\\..\\a").unwrap(), "\\..\\a");
    }

    #[test]
    fn what_is_behind_a_part_is_told_as_it_was_sent() {
        for (name, depth, want) in [
            ("a\\b\\c", 1, "\\b\\c"),
            ("a\\b\\c", 2, "\\c"),
            ("a\\b\\c", 3, ""),
            ("a/b/c", 2, "/c"),
            ("a\\b\\", 2, "\\"),
            ("a\\.\\b\\.\\c", 2, "\\.\\c"),
            ("a\\b\\c\\..\\d", 2, "\\c\\..\\d"),
            ("a\\\\b\\\\c", 2, "\\\\c"),
            ("a\\b:s", 2, ":s"),
            ("a\\b::$DATA", 1, "\\b::$DATA"),
            ("é\\ü\\ö", 2, "\\ö"),
            ("a", 2, "a"),
            ("a\\b", 0, "a\\b"),
        ] {
            assert_eq!(behind(name, depth, |_| true), want, "{name} {depth}");
        }
        assert_eq!(behind("a\\skip\\b\\c", 2, |part| part != "skip"), "\\c");
    }

    #[test]
    fn parts_of_a_file() {
        let part = |name| FileName::parse(name).map(|name| name.part);
        let named = |name| Ok(StreamPart::Named(StreamName::new(name).unwrap()));
        assert_eq!(part("a\\b"), Ok(StreamPart::Unsaid));
        assert_eq!(part("a\\b::$data"), Ok(StreamPart::Content));
        assert_eq!(part("d::$INDEX_ALLOCATION"), Ok(StreamPart::Folder));
        assert_eq!(part("d:$I30:$INDEX_ALLOCATION"), Ok(StreamPart::Folder));
        assert_eq!(part("q:$Q:$INDEX_ALLOCATION"), Ok(StreamPart::OtherIndex));
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
            if let Ok(once) = resolve(&name) {
                prop_assert_eq!(RelPath::parse(&once), RelPath::parse(&name));
            }
            prop_assert!(name.ends_with(behind(&name, 1, |_| true)));
            if let Ok(path) = RelPath::parse(&name) {
                for part in path.parts() {
                    prop_assert!(!part.is_empty() && part != "." && part != "..");
                    prop_assert!(!part.contains(['/', '\0', '\\']));
                }
            }
        }
    }
}
