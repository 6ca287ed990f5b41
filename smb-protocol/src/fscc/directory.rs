//! Directory entries (MS-FSCC 2.4: `File*DirectoryInformation`, `FileNamesInformation`).

use super::{FileAttributes, InfoClass, Times};
use crate::{
    name,
    wire::{Put, Reader, Result, WireError, len32},
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
    /// Size of extended attributes, or the reparse tag.
    pub ea_size: u32,
    /// File number.
    pub file_id: u64,
    /// Name.
    pub name: String,
    /// Name of the form 8.3, at most 12 characters; empty if the name is of that form itself.
    pub short_name: String,
}

/// The classes of directory entries.
pub const CLASSES: [InfoClass; 10] = [
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
        _ => return None,
    })
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
            out.put_u32(self.ea_size);
        }
        match class {
            InfoClass::BOTH_DIRECTORY => self.encode_short(out),
            InfoClass::ID_BOTH_DIRECTORY => {
                self.encode_short(out);
                out.put_u16(0);
                out.put_u64(self.file_id);
            }
            InfoClass::ID_FULL_DIRECTORY | InfoClass::ID_64_EXTD_DIRECTORY => {
                out.put_u32(0);
                out.put_u64(self.file_id);
            }
            InfoClass::ID_EXTD_DIRECTORY => {
                out.put_u32(0);
                out.put_u64(self.file_id);
                out.put_u64(0);
            }
            InfoClass::ID_EXTD_BOTH_DIRECTORY => {
                out.put_u32(0);
                out.put_u64(self.file_id);
                out.put_u64(0);
                self.encode_short(out);
            }
            InfoClass::ID_64_EXTD_BOTH_DIRECTORY => {
                out.put_u32(0);
                out.put_u64(self.file_id);
                self.encode_short(out);
            }
            _ => {}
        }
        out.put(&name);
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

    fn parse_short(&mut self, r: &mut Reader<'_>) -> Result<()> {
        let len = usize::from(r.u8("entry.ShortNameLength")?);
        r.skip(1, "entry.Reserved")?;
        let field = r.bytes(24, "entry.ShortName")?;
        let value = len as u64;
        let short =
            field.get(..len).ok_or(WireError::Value { field: "entry.ShortNameLength", value })?;
        self.short_name = name::utf16(short, "entry.ShortName")?;
        Ok(())
    }

    /// Reads one entry; the second value is its next offset, which is not within it.
    fn parse(class: InfoClass, data: &[u8]) -> Result<(Self, usize)> {
        let mut r = Reader::new(data);
        let next = r.u32("entry.NextEntryOffset")? as usize;
        r.skip(4, "entry.FileIndex")?;
        let mut entry = Self::default();
        let name_len;
        if class == InfoClass::NAMES {
            name_len = r.u32("entry.FileNameLength")?;
        } else {
            entry.times = Times::parse(&mut r)?;
            entry.end_of_file = r.u64("entry.EndOfFile")?;
            entry.allocation_size = r.u64("entry.AllocationSize")?;
            entry.attributes = FileAttributes(r.u32("entry.FileAttributes")?);
            name_len = r.u32("entry.FileNameLength")?;
            if class != InfoClass::DIRECTORY {
                entry.ea_size = r.u32("entry.EaSize")?;
            }
        }
        match class {
            InfoClass::BOTH_DIRECTORY => entry.parse_short(&mut r)?,
            InfoClass::ID_BOTH_DIRECTORY => {
                entry.parse_short(&mut r)?;
                r.skip(2, "entry.Reserved")?;
                entry.file_id = r.u64("entry.FileId")?;
            }
            InfoClass::ID_FULL_DIRECTORY | InfoClass::ID_64_EXTD_DIRECTORY => {
                r.skip(4, "entry.Reserved")?;
                entry.file_id = r.u64("entry.FileId")?;
            }
            InfoClass::ID_EXTD_DIRECTORY => {
                r.skip(4, "entry.ReparsePointTag")?;
                entry.file_id = r.u64("entry.FileId")?;
                r.skip(8, "entry.FileId")?;
            }
            InfoClass::ID_EXTD_BOTH_DIRECTORY => {
                r.skip(4, "entry.ReparsePointTag")?;
                entry.file_id = r.u64("entry.FileId")?;
                r.skip(8, "entry.FileId")?;
                entry.parse_short(&mut r)?;
            }
            InfoClass::ID_64_EXTD_BOTH_DIRECTORY => {
                r.skip(4, "entry.ReparsePointTag")?;
                entry.file_id = r.u64("entry.FileId")?;
                entry.parse_short(&mut r)?;
            }
            _ => {}
        }
        let name = r.bytes(name_len as usize, "entry.FileName")?;
        entry.name = name::utf16(name, "entry.FileName")?;
        if next != 0 && next < r.position() {
            return Err(WireError::Value { field: "entry.NextEntryOffset", value: next as u64 });
        }
        Ok((entry, next))
    }

    /// Reads a chain of entries.
    pub fn parse_list(class: InfoClass, mut data: &[u8]) -> Result<Vec<Self>> {
        if fixed_len(class).is_none() {
            return Err(WireError::Value { field: "entry class", value: class.0.into() });
        }
        let mut list = Vec::new();
        while !data.is_empty() {
            let (entry, next) = Self::parse(class, data)?;
            list.push(entry);
            if next == 0 {
                break;
            }
            data = data
                .get(next..)
                .ok_or(WireError::Value { field: "entry.NextEntryOffset", value: next as u64 })?;
        }
        Ok(list)
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
        let numbers = any::<(u64, u64, u64, u32, u32)>();
        let entry = (times, numbers, "[a-zé\u{1f600}~. ]{0,40}", "[A-Z0-9~.]{0,12}").prop_map(
            |(times, (end_of_file, allocation_size, file_id, attributes, ea_size), name, short)| {
                Entry {
                    times,
                    end_of_file,
                    allocation_size,
                    attributes: FileAttributes(attributes),
                    ea_size,
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
                prop_assert_eq!(u32_at(64), entry.ea_size);
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
                    ea_size: if class == InfoClass::DIRECTORY { 0 } else { entry.ea_size },
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
