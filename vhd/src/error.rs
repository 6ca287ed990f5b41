//! What can be wrong with an image, and where.

use std::fmt;

use crate::Guid;

/// Result of an operation on an image.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be made, opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file below failed.
    #[error(transparent)]
    Storage(#[from] block_io::Error),
    /// The image contradicts itself or the format.
    #[error("damaged image: {0}")]
    Damaged(#[from] Damage),
    /// The image is whole but needs something this version does not have.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The image holds differences to a parent and cannot be used alone.
    #[error("a differencing image needs its parent {parent}")]
    Differencing {
        /// Where the image says its parent is, or its identity.
        parent: String,
    },
    /// No place that a differencing image names has its parent.
    #[error("the parent {parent} is not there (looked at: {})", tried.join(", "))]
    ParentMissing {
        /// Where the image says its parent is.
        parent: String,
        /// The locations at which it was looked for.
        tried: Vec<String>,
        /// What the last of them said.
        source: Option<block_io::Error>,
    },
    /// The file at the parent's place is another disk, or was changed since the child was made.
    #[error("{parent} is not the parent or was changed since: its content is {found} now")]
    ParentChanged {
        /// Location of the file at the parent's place.
        parent: String,
        /// The identity of its content.
        found: Guid,
    },
    /// A file that is raw by its ending only bears the mark of another format.
    #[error(
        "{location} is raw by its ending and bears the mark of a {mark} image: name its format, or raw \
         if it is that"
    )]
    Disguised {
        /// Location, as it was given or as the image names it.
        location: String,
        /// Name of the format whose mark it bears.
        mark: &'static str,
    },
    /// The raw backing file of an image, which nobody said is to be trusted.
    #[error(
        "{backing} is to be read as the raw backing file of {image}: an image can name any file so, and \
         nothing in that shows that it is a disk; --trust-raw-backing reads it"
    )]
    RawBacking {
        /// Location of the image.
        image: String,
        /// Its backing file.
        backing: String,
    },
    /// A chain that comes back to where it was, or has more images than any has.
    #[error("the chain of parents has no end: {at}")]
    EndlessChain {
        /// The image at which this showed.
        at: String,
    },
    /// The disk would become shorter than its data.
    #[error("there is data up to {end}, past the new size of {size} bytes")]
    WouldLose {
        /// The size asked for, in bytes.
        size: u64,
        /// Where the last data ends.
        end: u64,
    },
    /// What the file system on a disk does not use cannot be known for certain.
    #[error("the file system at {at:#x} of the disk: {refusal}")]
    FileSystem {
        /// Where it begins, in bytes of the disk.
        at: u64,
        /// What about the file system is not certain.
        refusal: crate::ops::Refusal,
    },
    /// The parameters asked for make no valid image.
    #[error("{0}")]
    InvalidOptions(String),
}

impl From<Error> for block_io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Storage(error) => error,
            Error::Damaged(damage) => block_io::Error::Corrupt(damage.to_string()),
            other => block_io::Error::Io {
                context: other.to_string(),
                source: std::io::ErrorKind::Unsupported.into(),
            },
        }
    }
}

impl From<Damage> for block_io::Error {
    fn from(damage: Damage) -> Self {
        Error::Damaged(damage).into()
    }
}

/// A part of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The first 64 KiB (MS-VHDX 2.2.1).
    FileIdentifier,
    /// Header 1 or 2 (MS-VHDX 2.2.2).
    Header(u8),
    /// Region table 1 or 2 (MS-VHDX 2.2.3).
    RegionTable(u8),
    /// The log (MS-VHDX 2.3).
    Log,
    /// The block table (MS-VHDX 2.5, and that of a VHD).
    Bat,
    /// The metadata table (MS-VHDX 2.6.1).
    MetadataTable,
    /// A metadata item (MS-VHDX 2.6.2).
    MetadataItem(Guid),
    /// The footer of a VHD.
    Footer,
    /// The header of a dynamic or differencing VHD.
    DynamicHeader,
    /// The header of a QCOW2 image.
    Qcow2Header,
    /// The first table of a QCOW2 image.
    L1Table,
    /// A second table of a QCOW2 image.
    L2Table,
    /// The reference counts of a QCOW2 image.
    RefcountTable,
    /// The internal snapshots of a QCOW2 image.
    Snapshots,
    /// A cluster of a QCOW2 image, or a grain of a VMDK.
    Cluster,
    /// The header of a sparse VMDK.
    VmdkHeader,
    /// The text that describes a VMDK.
    Descriptor,
    /// A table of a sparse VMDK.
    GrainTable,
    /// What is kept of the changes of a disk.
    Tracking,
    /// The file as a whole.
    File,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileIdentifier => write!(f, "file identifier"),
            Self::Header(n) => write!(f, "header {n}"),
            Self::RegionTable(n) => write!(f, "region table {n}"),
            Self::Log => write!(f, "log"),
            Self::Bat => write!(f, "block table"),
            Self::MetadataTable => write!(f, "metadata table"),
            Self::MetadataItem(id) => write!(f, "metadata item {id}"),
            Self::Footer => write!(f, "footer"),
            Self::DynamicHeader => write!(f, "dynamic header"),
            Self::Qcow2Header => write!(f, "QCOW2 header"),
            Self::L1Table => write!(f, "L1 table"),
            Self::L2Table => write!(f, "L2 table"),
            Self::RefcountTable => write!(f, "reference counts"),
            Self::Snapshots => write!(f, "snapshot table"),
            Self::Cluster => write!(f, "cluster"),
            Self::VmdkHeader => write!(f, "VMDK header"),
            Self::Descriptor => write!(f, "descriptor"),
            Self::GrainTable => write!(f, "grain table"),
            Self::Tracking => write!(f, "change tracking"),
            Self::File => write!(f, "file"),
        }
    }
}

/// One contradiction, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{structure} at offset {offset:#x}: {fault}")]
pub struct Damage {
    /// The part that is wrong.
    pub structure: Structure,
    /// Byte offset in the file of the part or of the field.
    pub offset: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

impl Damage {
    /// A fault at a place.
    pub fn new(structure: Structure, offset: u64, fault: Fault) -> Self {
        Self { structure, offset, fault }
    }
}

/// What is wrong with a structure of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A signature is not the expected one.
    #[error("wrong signature")]
    Signature,
    /// A checksum does not match.
    #[error("checksum {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// Value in the file.
        stored: u32,
        /// Value over what is in the file.
        computed: u32,
    },
    /// The file ends before the structure does.
    #[error("the file ends before it")]
    Truncated,
    /// Neither copy of a doubled structure is valid.
    #[error("no valid copy: {0}")]
    NoValidCopy(String),
    /// Both headers claim to be current with different content.
    #[error("both headers have sequence number {0} but differ")]
    AmbiguousHeaders(u64),
    /// A version this format description does not cover.
    #[error("{field} is {value}, expected {expected}")]
    Version {
        /// Name of the field, as the specification has it.
        field: &'static str,
        /// Value of the field.
        value: u16,
        /// The one value known.
        expected: u16,
    },
    /// A field has a value it must not have.
    #[error("{field} is {value:#x}: {rule}")]
    Field {
        /// Name of the field, as the specification has it.
        field: &'static str,
        /// Value of the field.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// Two structures claim the same bytes.
    #[error("{len:#x} bytes at {start:#x} overlap {other}")]
    Overlap {
        /// First byte claimed.
        start: u64,
        /// Bytes claimed.
        len: u64,
        /// The other claimant.
        other: String,
    },
    /// The same identifier twice.
    #[error("{0} appears twice")]
    Duplicate(Guid),
    /// A required structure is not there.
    #[error("no {0}")]
    Missing(&'static str),
    /// A required structure is not known to this version.
    #[error("{0} is required but not known")]
    UnknownRequired(Guid),
    /// The log must be replayed but holds no valid sequence.
    #[error("it must be replayed but holds no valid entry sequence")]
    NoLogSequence,
    /// A table entry has a state it must not have in this kind of image.
    #[error("entry {index} has state {state}, not valid here")]
    EntryState {
        /// Index in the table.
        index: u64,
        /// Its state bits.
        state: u8,
    },
    /// Some sectors of a block are here, and nothing says which.
    #[error("entry {index}: a partly present block without its sector bitmap")]
    NoBitmap {
        /// Index in the table.
        index: u64,
    },
    /// A table entry points where no block can be.
    #[error("entry {index} points to {start:#x}: {rule}")]
    EntryOffset {
        /// Index in the table.
        index: u64,
        /// Where it points.
        start: u64,
        /// What is wrong there.
        rule: &'static str,
    },
    /// Compressed bytes are not what they should be.
    #[error("it cannot be decompressed")]
    Compressed,
    /// A reference count is not the number of uses.
    #[error("reference count {stored}, used {counted} times")]
    References {
        /// Value in the file.
        stored: u64,
        /// Uses found.
        counted: u64,
    },
    /// A line of a text is not as it should be.
    #[error("line {line}: {rule}")]
    Line {
        /// Number of the line, from 1.
        line: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// A string is not well-formed UTF-16.
    #[error("{0} is not well-formed UTF-16")]
    Text(&'static str),
}
