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

    /// Reads one entry; the second value is its next offset.
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
                .filter(|_| next >= 12)
                .ok_or(WireError::Value { field: "entry.NextEntryOffset", value: next as u64 })?;
        }
        Ok(list)
    }
}
