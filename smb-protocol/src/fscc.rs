//! What file systems say (MS-FSCC): attributes, times, information classes, directory entries,
//! controls.

pub mod directory;
pub mod ea;
pub mod file_info;
pub mod fs_info;
pub mod fsctl;
pub mod offload;
pub mod reparse;
pub mod snapshots;

use nom::Parser;

use crate::{
    flag_set, open_enum,
    parse::{Input, Parsed, u64},
    wire::{Put, Reader, Result},
};

pub use fsctl::FsctlCode;

flag_set! {
    /// File attributes (MS-FSCC 2.6).
    FileAttributes: u32 {
        /// Cannot be written.
        READONLY = 0x1,
        /// Not shown in plain listings.
        HIDDEN = 0x2,
        /// Belongs to the system.
        SYSTEM = 0x4,
        /// Directory.
        DIRECTORY = 0x10,
        /// To be backed up.
        ARCHIVE = 0x20,
        /// None of the others.
        NORMAL = 0x80,
        /// Short-lived.
        TEMPORARY = 0x100,
        /// Has holes.
        SPARSE_FILE = 0x200,
        /// Points elsewhere.
        REPARSE_POINT = 0x400,
        /// Compressed.
        COMPRESSED = 0x800,
        /// On slow storage.
        OFFLINE = 0x1000,
        /// Not indexed.
        NOT_CONTENT_INDEXED = 0x2000,
        /// Encrypted.
        ENCRYPTED = 0x4000,
        /// With checksums, on ReFS.
        INTEGRITY_STREAM = 0x8000,
        /// Not to be scrubbed, on ReFS.
        NO_SCRUB_DATA = 0x2_0000,
        /// Brought back from slow storage when it is opened.
        RECALL_ON_OPEN = 0x4_0000,
        /// To be kept here.
        PINNED = 0x8_0000,
        /// Need not be kept here.
        UNPINNED = 0x10_0000,
        /// Brought back from slow storage when its content is read.
        RECALL_ON_DATA_ACCESS = 0x40_0000,
    }
}

/// The four times of a file, as FILETIME: 100 ns since 1601-01-01 UTC, 0 if unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// Made.
    pub creation: u64,
    /// Last read.
    pub access: u64,
    /// Content last changed.
    pub write: u64,
    /// Anything last changed.
    pub change: u64,
}

impl Times {
    /// Reads the four times, 32 bytes, in the order of the fields.
    ///
    /// # Errors
    /// Fewer are left.
    pub fn parse(r: &mut Reader<'_>) -> Result<Self> {
        r.take(Self::read)
    }

    /// Reads 32 bytes, as a parser among others.
    pub(crate) fn read(input: Input<'_>) -> Parsed<'_, Self> {
        (u64("CreationTime"), u64("LastAccessTime"), u64("LastWriteTime"), u64("ChangeTime"))
            .map(|(creation, access, write, change)| Self { creation, access, write, change })
            .parse(input)
    }

    /// Appends the four times, 32 bytes, in the order of the fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.creation);
        out.put_u64(self.access);
        out.put_u64(self.write);
        out.put_u64(self.change);
    }
}

/// 100 ns intervals between 1601-01-01 and 1970-01-01.
const UNIX_EPOCH: i64 = 116_444_736_000_000_000;

/// FILETIME of a time since 1970; times before 1601 become 0.
pub fn filetime_from_unix(seconds: i64, nanos: u32) -> u64 {
    let intervals = seconds
        .saturating_mul(10_000_000)
        .saturating_add(i64::from(nanos / 100))
        .saturating_add(UNIX_EPOCH);
    u64::try_from(intervals).unwrap_or(0)
}

/// Seconds and nanoseconds since 1970 of a FILETIME.
pub fn filetime_to_unix(filetime: u64) -> (i64, u32) {
    let intervals = i64::try_from(filetime).unwrap_or(i64::MAX) - UNIX_EPOCH;
    (intervals.div_euclid(10_000_000), (intervals.rem_euclid(10_000_000) * 100) as u32)
}

open_enum! {
    /// Information classes of files and directories (MS-FSCC 2.4) and, where the type says so,
    /// of file systems (2.5).
    InfoClass: u8 {
        /// Directory entry.
        DIRECTORY = 1,
        /// Directory entry with the size of extended attributes.
        FULL_DIRECTORY = 2,
        /// Directory entry with the short name too.
        BOTH_DIRECTORY = 3,
        /// Times and attributes.
        BASIC = 4,
        /// Sizes, links, delete state.
        STANDARD = 5,
        /// File number.
        INTERNAL = 6,
        /// Size of extended attributes.
        EA = 7,
        /// Access of the open.
        ACCESS = 8,
        /// Full name.
        NAME = 9,
        /// New name.
        RENAME = 10,
        /// New hard link.
        LINK = 11,
        /// Directory entry with names only.
        NAMES = 12,
        /// Delete on close.
        DISPOSITION = 13,
        /// Position of the open.
        POSITION = 14,
        /// All extended attributes.
        FULL_EA = 15,
        /// Mode of the open.
        MODE = 16,
        /// Alignment the device wants.
        ALIGNMENT = 17,
        /// The common ones in one.
        ALL = 18,
        /// Allocation.
        ALLOCATION = 19,
        /// End of file.
        END_OF_FILE = 20,
        /// Short name.
        ALTERNATE_NAME = 21,
        /// Streams.
        STREAM = 22,
        /// Named pipe.
        PIPE = 23,
        /// Named pipe, local end.
        PIPE_LOCAL = 24,
        /// Mailslot.
        MAILSLOT_QUERY = 26,
        /// Compression.
        COMPRESSION = 28,
        /// Object id, on this side of the wire alone.
        OBJECT_ID = 29,
        /// Quota of a user.
        QUOTA = 32,
        /// Reparse point, in the index of all.
        REPARSE_POINT = 33,
        /// What opening over the network wants to know.
        NETWORK_OPEN = 34,
        /// Attributes and reparse tag.
        ATTRIBUTE_TAG = 35,
        /// Directory entry with file number and short name.
        ID_BOTH_DIRECTORY = 37,
        /// Directory entry with file number.
        ID_FULL_DIRECTORY = 38,
        /// Valid data length.
        VALID_DATA_LENGTH = 39,
        /// New short name.
        SHORT_NAME = 40,
        /// Bandwidth set aside.
        SFIO_RESERVE = 44,
        /// Bandwidth of a file system.
        SFIO_VOLUME = 45,
        /// Names of a file.
        HARD_LINK = 46,
        /// Number of names of a file.
        STANDARD_LINK = 54,
        /// Normalised name.
        NORMALIZED_NAME = 48,
        /// 128-bit file number and volume.
        ID = 59,
        /// Directory entry with 128-bit file number.
        ID_EXTD_DIRECTORY = 60,
        /// Directory entry with 128-bit file number and short name.
        ID_EXTD_BOTH_DIRECTORY = 63,
        /// Delete with POSIX rules.
        DISPOSITION_EX = 64,
        /// Rename with POSIX rules.
        RENAME_EX = 65,
        /// Hard link with POSIX rules.
        LINK_EX = 72,
        /// Directory entry with 64-bit file number and reparse tag.
        ID_64_EXTD_DIRECTORY = 78,
        /// The same with short name.
        ID_64_EXTD_BOTH_DIRECTORY = 79,
        /// Directory entry with file numbers of both lengths and reparse tag.
        ID_ALL_EXTD_DIRECTORY = 80,
        /// The same with short name.
        ID_ALL_EXTD_BOTH_DIRECTORY = 81,
    }
}
