//! Directory entries (MS-FSCC 2.4: `File*DirectoryInformation`, `FileNamesInformation`).

use nom::{Parser, combinator::cond};

use super::{FileAttributes, InfoClass, Times};
use crate::{
    name,
    parse::{self, Failed, Input, Parsed, part, size8, size32, skip, text, u32, u64},
    wire::{Put, Result, WireError, len32},
};

/// One entry; each class carries a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Times.
    pub times: Times,
    /// Length in bytes.
    pub end_of_file: u64,
    /// Allocated bytes.
    pub allocation_size: u64,
    /// Attributes.
    pub attributes: FileAttributes,
    /// Size of extended attributes.
    pub ea_size: u32,
    /// Tag of a reparse point, 0 if it is none.
    pub reparse_tag: u32,
    /// File number.
    pub file_id: u64,
    /// Name.
    pub name: String,
    /// Name of the form 8.3, at most 12 characters; empty if the name is of that form itself.
    pub short_name: String,
}

/// The classes of directory entries.
pub const CLASSES: [InfoClass; 12] = [
    InfoClass::NAMES,
    InfoClass::DIRECTORY,
    InfoClass::FULL_DIRECTORY,
    InfoClass::BOTH_DIRECTORY,
    InfoClass::ID_FULL_DIRECTORY,
    InfoClass::ID_BOTH_DIRECTORY,
    InfoClass::ID_EXTD_DIRECTORY,
    InfoClass::ID_EXTD_BOTH_DIRECTORY,
    InfoClass::ID_64_EXTD_DIRECTORY,
    InfoClass::ID_64_EXTD_BOTH_DIRECTORY,
    InfoClass::ID_ALL_EXTD_DIRECTORY,
    InfoClass::ID_ALL_EXTD_BOTH_DIRECTORY,
];

/// Length of the fixed part of an entry, or `None` if `class` is no directory class.
pub fn fixed_len(class: InfoClass) -> Option<usize> {
    Some(match class {
        InfoClass::NAMES => 12,
        InfoClass::DIRECTORY => 64,
        InfoClass::FULL_DIRECTORY => 68,
        InfoClass::BOTH_DIRECTORY => 94,
        InfoClass::ID_FULL_DIRECTORY => 80,
        InfoClass::ID_BOTH_DIRECTORY => 104,
        InfoClass::ID_EXTD_DIRECTORY => 88,
        InfoClass::ID_EXTD_BOTH_DIRECTORY => 114,
        InfoClass::ID_64_EXTD_DIRECTORY => 80,
        InfoClass::ID_64_EXTD_BOTH_DIRECTORY => 106,
        InfoClass::ID_ALL_EXTD_DIRECTORY => 96,
        InfoClass::ID_ALL_EXTD_BOTH_DIRECTORY => 122,
        _ => return None,
    })
}

/// Whether a class has a field of its own for the tag of a reparse point; in the others it stands
/// where the size of extended attributes does (MS-FSA 2.1.5.6.3).
fn has_tag(class: InfoClass) -> bool {
    matches!(
        class,
        InfoClass::ID_EXTD_DIRECTORY
            | InfoClass::ID_EXTD_BOTH_DIRECTORY
            | InfoClass::ID_64_EXTD_DIRECTORY
            | InfoClass::ID_64_EXTD_BOTH_DIRECTORY
            | InfoClass::ID_ALL_EXTD_DIRECTORY
            | InfoClass::ID_ALL_EXTD_BOTH_DIRECTORY
    )
}

/// Whether the field of the size of extended attributes holds the tag of a reparse point.
fn tag_for_size(class: InfoClass, attributes: FileAttributes) -> bool {
    !has_tag(class) && attributes.has(FileAttributes::REPARSE_POINT)
}

impl Entry {
    /// Appends the entry with a next offset of 0; `class` must be a directory class.
    pub fn encode(&self, class: InfoClass, out: &mut Vec<u8>) {
        let name = name::to_utf16(&self.name);
        out.put_u32(0);
        out.put_u32(0);
        if class == InfoClass::NAMES {
            out.put_u32(len32(name.len()));
            out.put(&name);
            return;
        }
        self.times.encode(out);
        out.put_u64(self.end_of_file);
        out.put_u64(self.allocation_size);
        out.put_u32(self.attributes.0);
        out.put_u32(len32(name.len()));
        if class != InfoClass::DIRECTORY {
            let tag = tag_for_size(class, self.attributes);
            out.put_u32(if tag { self.reparse_tag } else { self.ea_size });
        }
        if has_tag(class) {
            out.put_u32(self.reparse_tag);
        }
        match class {
            InfoClass::BOTH_DIRECTORY => self.encode_short(out),
            InfoClass::ID_BOTH_DIRECTORY => {
                self.encode_short(out);
                out.put_u16(0);
                out.put_u64(self.file_id);
            }
            InfoClass::ID_FULL_DIRECTORY => {
                out.put_u32(0);
                out.put_u64(self.file_id);
            }
            InfoClass::ID_64_EXTD_DIRECTORY => out.put_u64(self.file_id),
            InfoClass::ID_EXTD_DIRECTORY => self.encode_wide(out),
            InfoClass::ID_EXTD_BOTH_DIRECTORY => {
                self.encode_wide(out);
                self.encode_short(out);
            }
            InfoClass::ID_64_EXTD_BOTH_DIRECTORY => {
                out.put_u64(self.file_id);
                self.encode_short(out);
            }
            InfoClass::ID_ALL_EXTD_DIRECTORY => {
                out.put_u64(self.file_id);
                self.encode_wide(out);
            }
            InfoClass::ID_ALL_EXTD_BOTH_DIRECTORY => {
                out.put_u64(self.file_id);
                self.encode_wide(out);
                self.encode_short(out);
            }
            _ => {}
        }
        out.put(&name);
    }

    /// Appends the file number as one of 128 bits.
    fn encode_wide(&self, out: &mut Vec<u8>) {
        out.put_u64(self.file_id);
        out.put_u64(0);
    }

    fn encode_short(&self, out: &mut Vec<u8>) {
        let mut short = name::to_utf16(&self.short_name);
        short.truncate(24);
        out.put_u8(short.len() as u8);
        out.put_u8(0);
        let left = 24 - short.len();
        out.put(&short);
        out.put_zeros(left);
    }

    /// Reads a short name: its length, and room for 12 characters.
    fn short(input: Input<'_>) -> Parsed<'_, String> {
        let (i, (len, (), field)) = (
            size8("entry.ShortNameLength"),
            skip(1, "entry.Reserved"),
            part(24, "entry.ShortName"),
        )
            .parse(input)?;
        if len > field.len() {
            return Err(input.impossible("entry.ShortNameLength", len as u64));
        }
        let (_, name) = text(len, "entry.ShortName")(field)?;
        Ok((i, name))
    }

    /// Reads what all classes but the names have, and the length of the name.
    fn common<'a>(&mut self, class: InfoClass, input: Input<'a>) -> Parsed<'a, usize> {
        let (i, (times, end_of_file, allocation_size, attributes, name_len, ea_size, tag)) = (
            Times::read,
            u64("entry.EndOfFile"),
            u64("entry.AllocationSize"),
            u32("entry.FileAttributes").map(FileAttributes),
            size32("entry.FileNameLength"),
            cond(class != InfoClass::DIRECTORY, u32("entry.EaSize")),
            cond(has_tag(class), u32("entry.ReparsePointTag")),
        )
            .parse(input)?;
        (self.times, self.end_of_file, self.allocation_size) =
            (times, end_of_file, allocation_size);
        self.attributes = attributes;
        let ea_size = ea_size.unwrap_or_default();
        (self.ea_size, self.reparse_tag) = match tag {
            Some(tag) => (ea_size, tag),
            None if tag_for_size(class, attributes) => (0, ea_size),
            None => (ea_size, 0),
        };
        Ok((i, name_len))
    }

    /// Reads what stands between that and the name: file number and short name, in this order or
    /// the other.
    fn identity<'a>(
        &mut self,
        class: InfoClass,
        input: Input<'a>,
    ) -> std::result::Result<Input<'a>, Failed> {
        let number = || u64("entry.FileId");
        // Of 128 bits the lower half is a number here.
        let wide = || (number(), skip(8, "entry.FileId")).map(|(id, ())| id);
        // Of two numbers the first is of 64 bits.
        let both = || (number(), skip(16, "entry.FileId128")).map(|(id, ())| id);
        let (i, (file_id, short_name)) = match class {
            InfoClass::BOTH_DIRECTORY => Self::short.map(|name| (0, name)).parse(input)?,
            InfoClass::ID_BOTH_DIRECTORY => {
                (Self::short, skip(2, "entry.Reserved"), u64("entry.FileId"))
                    .map(|(name, (), id)| (id, name))
                    .parse(input)?
            }
            InfoClass::ID_FULL_DIRECTORY => (skip(4, "entry.Reserved"), number())
                .map(|((), id)| (id, String::new()))
                .parse(input)?,
            InfoClass::ID_64_EXTD_DIRECTORY => {
                number().map(|id| (id, String::new())).parse(input)?
            }
            InfoClass::ID_EXTD_DIRECTORY => wide().map(|id| (id, String::new())).parse(input)?,
            InfoClass::ID_EXTD_BOTH_DIRECTORY => (wide(), Self::short).parse(input)?,
            InfoClass::ID_64_EXTD_BOTH_DIRECTORY => (number(), Self::short).parse(input)?,
            InfoClass::ID_ALL_EXTD_DIRECTORY => {
                both().map(|id| (id, String::new())).parse(input)?
            }
            InfoClass::ID_ALL_EXTD_BOTH_DIRECTORY => (both(), Self::short).parse(input)?,
            _ => (input, (0, String::new())),
        };
        (self.file_id, self.short_name) = (file_id, short_name);
        Ok(i)
    }

    /// Reads one entry; the second value is its next offset, which is not within it.
    fn read(class: InfoClass) -> impl Fn(Input<'_>) -> Parsed<'_, (Self, usize)> {
        move |input| {
            let (i, (next, ())) =
                (size32("entry.NextEntryOffset"), skip(4, "entry.FileIndex")).parse(input)?;
            let mut entry = Self::default();
            let (i, name_len) = if class == InfoClass::NAMES {
                size32("entry.FileNameLength")(i)?
            } else {
                entry.common(class, i)?
            };
            let i = entry.identity(class, i)?;
            let (i, name) = text(name_len, "entry.FileName")(i)?;
            entry.name = name;
            if next != 0 && next < input.len() - i.len() {
                return Err(input.impossible("entry.NextEntryOffset", next as u64));
            }
            Ok((i, (entry, next)))
        }
    }

    /// Reads a chain of entries.
    ///
    /// # Errors
    /// `class` is none of [`CLASSES`], an entry ends before its name does, a name is not UTF-16, or the
    /// next entry is within the one before or not in the data.
    pub fn parse_list(class: InfoClass, data: &[u8]) -> Result<Vec<Self>> {
        if fixed_len(class).is_none() {
            return Err(WireError::Value { field: "entry class", value: class.0.into() });
        }
        parse::with(Input::new(data), |mut left| {
            let mut list = Vec::new();
            while !left.is_empty() {
                let (_, (entry, next)) = Self::read(class)(left)?;
                list.push(entry);
                if next == 0 {
                    break;
                }
                let behind = left.position().saturating_add(next);
                left = parse::from(left, behind, "entry.NextEntryOffset")?;
            }
            Ok((left, list))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fscc::filetime_from_unix;

    /// Where the drawings of MS-FSCC 2.4 have `FileId`, `ShortNameLength` and `FileName`.
    fn places(class: InfoClass) -> (Option<usize>, Option<usize>, usize) {
        match class {
            InfoClass::NAMES => (None, None, 12),
            InfoClass::DIRECTORY => (None, None, 64),
            InfoClass::FULL_DIRECTORY => (None, None, 68),
            InfoClass::BOTH_DIRECTORY => (None, Some(68), 94),
            InfoClass::ID_FULL_DIRECTORY => (Some(72), None, 80),
            InfoClass::ID_BOTH_DIRECTORY => (Some(96), Some(68), 104),
            InfoClass::ID_EXTD_DIRECTORY => (Some(72), None, 88),
            InfoClass::ID_EXTD_BOTH_DIRECTORY => (Some(72), Some(88), 114),
            InfoClass::ID_64_EXTD_DIRECTORY => (Some(72), None, 80),
            InfoClass::ID_64_EXTD_BOTH_DIRECTORY => (Some(72), Some(80), 106),
            InfoClass::ID_ALL_EXTD_DIRECTORY => (Some(72), None, 96),
            InfoClass::ID_ALL_EXTD_BOTH_DIRECTORY => (Some(72), Some(96), 122),
            other => panic!("{other:?}"),
        }
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let times = any::<[u32; 4]>().prop_map(|t| Times {
            creation: filetime_from_unix(t[0].into(), 100),
            access: filetime_from_unix(t[1].into(), 200),
            write: filetime_from_unix(t[2].into(), 300),
            change: filetime_from_unix(t[3].into(), 400),
        });
        let numbers = any::<(u64, u64, u64, u32, u32, u32)>();
        let entry = (times, numbers, "[a-zé\u{1f600}~. ]{0,40}", "[A-Z0-9~.]{0,12}").prop_map(
            |(times, numbers, name, short)| {
                let (end_of_file, allocation_size, file_id, attributes, ea_size, tag) = numbers;
                Entry {
                    times,
                    end_of_file,
                    allocation_size,
                    attributes: FileAttributes(attributes),
                    ea_size,
                    reparse_tag: tag,
                    file_id,
                    name,
                    short_name: short,
                }
            },
        );
        proptest::collection::vec(entry, 1..8)
    }

    /// The entries behind one another, each at a multiple of 8.
    fn chain(class: InfoClass, entries: &[Entry]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut last = None;
        for entry in entries {
            out.resize(out.len().next_multiple_of(8), 0);
            let at = out.len();
            if let Some(last) = last.replace(at) {
                out[last..last + 4].copy_from_slice(&((at - last) as u32).to_le_bytes());
            }
            entry.encode(class, &mut out);
        }
        out
    }

    proptest! {
        #[test]
        fn fields_stand_where_the_specification_draws_them(
            entries in entries(),
            class in prop::sample::select(&CLASSES[..]),
        ) {
            let entry = &entries[0];
            let mut raw = Vec::new();
            entry.encode(class, &mut raw);
            let u32_at = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
            let u64_at = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().unwrap());
            let (id, short, name) = places(class);
            prop_assert_eq!(Some(name), fixed_len(class));
            let wide: Vec<u8> = entry.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            prop_assert_eq!(&raw[name..], &wide[..]);
            let length_at = if class == InfoClass::NAMES { 8 } else { 60 };
            prop_assert_eq!(u32_at(length_at) as usize, wide.len());
            if class == InfoClass::NAMES {
                return Ok(());
            }
            let Times { creation, access, write, change } = entry.times;
            for (at, time) in [(8, creation), (16, access), (24, write), (32, change)] {
                prop_assert_eq!(u64_at(at), time);
            }
            prop_assert_eq!((u64_at(40), u64_at(48)), (entry.end_of_file, entry.allocation_size));
            prop_assert_eq!(u32_at(56), entry.attributes.0);
            if class != InfoClass::DIRECTORY {
                let tag = entry.attributes.has(FileAttributes::REPARSE_POINT) && !has_tag(class);
                prop_assert_eq!(u32_at(64), if tag { entry.reparse_tag } else { entry.ea_size });
            }
            if has_tag(class) {
                prop_assert_eq!(u32_at(68), entry.reparse_tag);
            }
            if let Some(at) = id {
                prop_assert_eq!(u64_at(at), entry.file_id);
            }
            if let Some(at) = short {
                let wide: Vec<u8> =
                    entry.short_name.encode_utf16().flat_map(u16::to_le_bytes).collect();
                prop_assert_eq!(usize::from(raw[at]), wide.len());
                prop_assert_eq!(&raw[at + 2..at + 2 + wide.len()], &wide[..]);
                prop_assert!(raw[at + 2 + wide.len()..at + 26].iter().all(|byte| *byte == 0));
            }
        }

        #[test]
        fn a_chain_is_read_as_it_was_written(
            entries in entries(),
            class in prop::sample::select(&CLASSES[..]),
        ) {
            let (id, short, _) = places(class);
            let expected: Vec<Entry> = entries.iter().map(|entry| match class {
                InfoClass::NAMES => Entry { name: entry.name.clone(), ..Entry::default() },
                _ => Entry {
                    ea_size: match class {
                        InfoClass::DIRECTORY => 0,
                        class if tag_for_size(class, entry.attributes) => 0,
                        _ => entry.ea_size,
                    },
                    reparse_tag: match class {
                        InfoClass::DIRECTORY => 0,
                        class if has_tag(class) || tag_for_size(class, entry.attributes) => {
                            entry.reparse_tag
                        }
                        _ => 0,
                    },
                    file_id: id.map_or(0, |_| entry.file_id),
                    short_name: short.map_or(String::new(), |_| entry.short_name.clone()),
                    ..entry.clone()
                },
            }).collect();
            let raw = chain(class, &entries);
            prop_assert_eq!(Entry::parse_list(class, &raw).unwrap(), expected);
        }

        /// Whatever a server sends: an error, or names that are no longer than what was sent.
        #[test]
        fn names_never_take_more_than_was_sent(
            entries in entries(),
            class in prop::sample::select(&CLASSES[..]),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut raw = chain(class, &entries);
            let at = at.index(raw.len());
            raw[at] = byte;
            raw.truncate(cut.index(raw.len()) + 1);
            if let Ok(list) = Entry::parse_list(class, &raw) {
                let names: usize = list.iter().map(|e| e.name.encode_utf16().count() * 2).sum();
                prop_assert!(names <= raw.len());
            }
        }
    }
}
