//! Information classes of files (MS-FSCC 2.4).

use nom::Parser;

use super::{FileAttributes, Times};
use crate::{
    flag_set, name,
    parse::{self, Input, Parsed, size32, skip, text, u8, u32, u64},
    wire::{Put, Result, len32},
};

/// `FileBasicInformation` (2.4.7). In a set a time of 0 leaves it as it is, -1 stops and -2
/// resumes its automatic update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Basic {
    /// Times.
    pub times: Times,
    /// Attributes; 0 in a set leaves them.
    pub attributes: FileAttributes,
}

impl Basic {
    /// Reads the structure from the input of a set or the output of a query.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let attributes = u32("basic.FileAttributes").map(FileAttributes);
        let fields = (Times::read, attributes, skip(4, "basic.Reserved"));
        let basic = fields.map(|(times, attributes, ())| Self { times, attributes });
        parse::run(Input::new(data), basic)
    }

    /// Appends the structure with all of its fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.times.encode(out);
        out.put_u32(self.attributes.0);
        out.put_u32(0);
    }
}

/// `FileStandardInformation` (2.4.41): lengths and links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standard {
    /// Allocated bytes.
    pub allocation_size: u64,
    /// Length in bytes.
    pub end_of_file: u64,
    /// Hard links.
    pub links: u32,
    /// Will be deleted on close.
    pub delete_pending: bool,
    /// Is a directory.
    pub directory: bool,
}

impl Standard {
    /// Reads the structure from the input of a set or the output of a query.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            u64("standard.AllocationSize"),
            u64("standard.EndOfFile"),
            u32("standard.NumberOfLinks"),
            u8("standard.DeletePending").map(|v| v != 0),
            u8("standard.Directory").map(|v| v != 0),
        );
        let standard =
            fields.map(|(allocation_size, end_of_file, links, delete_pending, directory)| Self {
                allocation_size,
                end_of_file,
                links,
                delete_pending,
                directory,
            });
        parse::run(Input::new(data), standard)
    }

    /// Appends the structure with all of its fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.allocation_size);
        out.put_u64(self.end_of_file);
        out.put_u32(self.links);
        out.put_u8(self.delete_pending.into());
        out.put_u8(self.directory.into());
        out.put_u16(0);
    }
}

/// `FileNetworkOpenInformation` (2.4.29): what most clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkOpen {
    /// Times.
    pub times: Times,
    /// Allocated bytes.
    pub allocation_size: u64,
    /// Length in bytes.
    pub end_of_file: u64,
    /// Attributes.
    pub attributes: FileAttributes,
}

impl NetworkOpen {
    /// Reads the structure from the input of a set or the output of a query.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            Times::read,
            u64("network_open.AllocationSize"),
            u64("network_open.EndOfFile"),
            u32("network_open.FileAttributes").map(FileAttributes),
        );
        let open = fields.map(|(times, allocation_size, end_of_file, attributes)| Self {
            times,
            allocation_size,
            end_of_file,
            attributes,
        });
        parse::run(Input::new(data), open)
    }

    /// Appends the structure with all of its fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.times.encode(out);
        out.put_u64(self.allocation_size);
        out.put_u64(self.end_of_file);
        out.put_u32(self.attributes.0);
        out.put_u32(0);
    }
}

/// `FileRenameInformation` type 2 and `FileLinkInformation` type 2 (2.4.42.2, 2.4.28.2), and their
/// `Ex` forms, whose first field has more bits (2.4.43).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rename {
    /// Replace what has the new name already.
    pub replace: bool,
    /// Replace it even if it is open.
    pub posix: bool,
    /// Replace it even if it is read-only.
    pub ignore_readonly: bool,
    /// The folder that the name begins at; a client of SMB has none to name.
    pub root_directory: u64,
    /// The new name, from the root of the share.
    pub name: String,
}

impl Rename {
    /// Bytes in front of the name.
    pub const FIXED: usize = 20;
    /// Least length of a rename: that of the structure with its padding.
    pub const LEAST: usize = 24;

    /// Reads the structure without flags.
    ///
    /// # Errors
    /// The data end before the name does, or it is not UTF-16.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (u8("rename.ReplaceIfExists"), skip(7, "rename.Reserved"), Self::name);
        let rename = fields.map(|(replace, (), (root_directory, name))| Self {
            replace: replace != 0,
            root_directory,
            name,
            ..Self::default()
        });
        parse::run(Input::new(data), rename)
    }

    /// Reads the structure with flags: 1 replaces, 2 has POSIX' rules, 0x40 ignores READONLY.
    ///
    /// # Errors
    /// The data end before the name does, or it is not UTF-16.
    pub fn parse_ex(data: &[u8]) -> Result<Self> {
        let fields = (u32("rename.Flags"), skip(4, "rename.Reserved"), Self::name);
        let rename = fields.map(|(flags, (), (root_directory, name))| Self {
            replace: flags & 1 != 0,
            posix: flags & 2 != 0,
            ignore_readonly: flags & 0x40 != 0,
            root_directory,
            name,
        });
        parse::run(Input::new(data), rename)
    }

    fn name(input: Input<'_>) -> Parsed<'_, (u64, String)> {
        let (i, (root, len)) =
            (u64("rename.RootDirectory"), size32("rename.FileNameLength")).parse(input)?;
        let (i, name) = text(len, "rename.FileName")(i)?;
        Ok((i, (root, name)))
    }

    /// Appends the structure without flags.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let name = name::to_utf16(&self.name);
        out.put_u8(self.replace.into());
        out.put_zeros(7);
        out.put_u64(self.root_directory);
        out.put_u32(len32(name.len()));
        out.put(&name);
        // Windows wants at least 24 bytes in all.
        if name.len() < 4 {
            out.put_zeros(4 - name.len());
        }
    }
}

/// A structure of one 64-bit length: `FileEndOfFileInformation`, `FileAllocationInformation`,
/// `FileValidDataLengthInformation`, `FilePositionInformation`.
///
/// # Errors
/// The data end within the structure.
pub fn parse_length(data: &[u8]) -> Result<u64> {
    parse::run(Input::new(data), u64("length"))
}

flag_set! {
    /// `FileDispositionInformationEx` (2.4.12).
    Disposition: u32 {
        /// Delete it.
        DELETE = 1,
        /// The name goes when this open is closed, whoever else has it open.
        POSIX_SEMANTICS = 2,
        /// Only if nobody runs it.
        FORCE_IMAGE_SECTION_CHECK = 4,
        /// Changes what the open does when it is closed.
        ON_CLOSE = 8,
        /// Even if it is read-only.
        IGNORE_READONLY = 0x10,
    }
}

impl Disposition {
    /// All flags that there are.
    pub const ALL: Self = Self(0x1f);

    /// Reads the structure from the input of a set or the output of a query.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        parse::run(Input::new(data), u32("disposition.Flags").map(Self))
    }
}

/// `FileDispositionInformation` (2.4.11): delete on close.
///
/// # Errors
/// There are no data.
pub fn parse_disposition(data: &[u8]) -> Result<bool> {
    parse::run(Input::new(data), u8("disposition.DeletePending").map(|v| v != 0))
}

/// `FileNameInformation` (2.4.25) and its kin: a length and a name.
pub fn encode_name(name: &str, out: &mut Vec<u8>) {
    let name = name::to_utf16(name);
    out.put_u32(len32(name.len()));
    out.put(&name);
}

/// Reads `FileNameInformation` (2.4.32) and its kin.
///
/// # Errors
/// The data end before the name does, or it is not UTF-16.
pub fn parse_name(data: &[u8]) -> Result<String> {
    parse::with(Input::new(data), |input| {
        let (i, len) = size32("name.FileNameLength")(input)?;
        text(len, "name.FileName")(i)
    })
}

/// `FileStreamInformation` (2.4.49): entries of name (`:name:$DATA`), length and allocation,
/// chained as directory entries are.
pub fn encode_streams<'a>(streams: impl Iterator<Item = (&'a str, u64, u64)>, out: &mut Vec<u8>) {
    let start = out.len();
    let mut last = None;
    for (name, size, allocation) in streams {
        let name = name::to_utf16(name);
        out.pad_to(start, 8);
        let at = out.len();
        if let Some(last) = last {
            out.patch(last, &len32(at - last).to_le_bytes());
        }
        last = Some(at);
        out.put_u32(0);
        out.put_u32(len32(name.len()));
        out.put_u64(size);
        out.put_u64(allocation);
        out.put(&name);
    }
}

/// Reads how far behind its beginning the next entry begins, and the entry.
fn stream(input: Input<'_>) -> Parsed<'_, (usize, (String, u64, u64))> {
    let (i, (next, len, size, allocation)) = (
        size32("stream.NextEntryOffset"),
        size32("stream.StreamNameLength"),
        u64("stream.StreamSize"),
        u64("stream.AllocationSize"),
    )
        .parse(input)?;
    let (i, name) = text(len, "stream.StreamName")(i)?;
    Ok((i, (next, (name, size, allocation))))
}

/// Reads `FileStreamInformation`: name, length and allocation of each stream.
///
/// # Errors
/// An entry ends before its name does, a name is not UTF-16, or the next entry is not behind the one
/// before or not in the data.
pub fn parse_streams(data: &[u8]) -> Result<Vec<(String, u64, u64)>> {
    parse::with(Input::new(data), |mut left| {
        let mut list = Vec::new();
        while !left.is_empty() {
            let (i, (next, stream)) = stream(left)?;
            list.push(stream);
            if next == 0 {
                break;
            }
            if next < left.len() - i.len() {
                return Err(left.impossible("stream.NextEntryOffset", next as u64));
            }
            let behind = left.position().saturating_add(next);
            left = parse::from(left, behind, "stream.NextEntryOffset")?;
        }
        Ok((left, list))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn renames_with_flags() {
        let plain = Rename { replace: true, name: "a\\b".into(), ..Rename::default() };
        let mut data = Vec::new();
        plain.encode(&mut data);
        assert_eq!(Rename::parse(&data).unwrap(), plain);
        data[0] = 0x43;
        let ex = Rename { posix: true, ignore_readonly: true, ..plain };
        assert_eq!(Rename::parse_ex(&data).unwrap(), ex);
    }

    proptest! {
        #[test]
        fn streams_round_trip(list in prop::collection::vec((".{0,20}", any::<u64>(), any::<u64>()), 0..6)) {
            let mut out = vec![7; 3];
            encode_streams(list.iter().map(|(name, size, room)| (name.as_str(), *size, *room)), &mut out);
            prop_assert_eq!(parse_streams(&out[3..]).unwrap(), list);
        }

        /// Entries that would overlap are refused: names are no longer than what was sent.
        #[test]
        fn stream_names_take_no_more_than_was_sent(len in 0u32..2000, next in 0u32..60, count in 1usize..40) {
            let mut data = Vec::new();
            for _ in 0..count {
                data.put_u32(next);
                data.put_u32(len);
                data.put_zeros(16);
                data.put_zeros(next.saturating_sub(24) as usize);
            }
            if let Ok(list) = parse_streams(&data) {
                let names: usize = list.iter().map(|(name, ..)| name.encode_utf16().count() * 2).sum();
                prop_assert!(names <= data.len());
            }
        }

        #[test]
        fn parsing_streams_is_total(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_streams(&bytes);
        }
    }
}
