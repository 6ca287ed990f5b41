//! CREATE (MS-SMB2 2.2.13, 2.2.14).

use nom::Parser;

use super::oplock::OplockLevel;
use crate::{
    flag_set,
    fscc::{FileAttributes, Times},
    header::{HEADER_LEN, body, file_id},
    ids::FileId,
    name, open_enum,
    parse::{
        self, Failed, Input, from, region, size16, size32, skip, structure_size, u8, u32, u64,
        utf16,
    },
    wire::{Put, Result, len16, len32},
};

flag_set! {
    /// Access mask of files and directories (MS-SMB2 2.2.13.1).
    Access: u32 {
        /// Read data, list a directory.
        READ_DATA = 0x1,
        /// Write data, add a file.
        WRITE_DATA = 0x2,
        /// Append data, add a directory.
        APPEND_DATA = 0x4,
        /// Read extended attributes.
        READ_EA = 0x8,
        /// Write extended attributes.
        WRITE_EA = 0x10,
        /// Execute, traverse.
        EXECUTE = 0x20,
        /// Delete what a directory holds.
        DELETE_CHILD = 0x40,
        /// Read attributes.
        READ_ATTRIBUTES = 0x80,
        /// Write attributes.
        WRITE_ATTRIBUTES = 0x100,
        /// Delete or rename.
        DELETE = 0x1_0000,
        /// Read the security descriptor.
        READ_CONTROL = 0x2_0000,
        /// Write the access list.
        WRITE_DAC = 0x4_0000,
        /// Change the owner.
        WRITE_OWNER = 0x8_0000,
        /// Wait on it.
        SYNCHRONIZE = 0x10_0000,
        /// Read and write the audit list.
        ACCESS_SYSTEM_SECURITY = 0x100_0000,
        /// As much as is granted.
        MAXIMUM_ALLOWED = 0x200_0000,
        /// Everything.
        GENERIC_ALL = 0x1000_0000,
        /// Execute.
        GENERIC_EXECUTE = 0x2000_0000,
        /// Write.
        GENERIC_WRITE = 0x4000_0000,
        /// Read.
        GENERIC_READ = 0x8000_0000,
        /// Everything there is for a file, spelt out.
        ALL = 0x1f_01ff,
    }
}

impl Access {
    /// Replaces generic rights by the specific ones they stand for on files
    /// (MS-SMB2 2.2.13.1.1).
    pub fn expand_generic(self) -> Self {
        let mut out = self.without(Self(0xf000_0000));
        if self.has(Self::GENERIC_READ) {
            out |= Self(0x12_0089);
        }
        if self.has(Self::GENERIC_WRITE) {
            out |= Self(0x12_0116);
        }
        if self.has(Self::GENERIC_EXECUTE) {
            out |= Self(0x12_00a0);
        }
        if self.has(Self::GENERIC_ALL) {
            out |= Self::ALL;
        }
        out
    }
}

flag_set! {
    /// `ShareAccess`.
    ShareAccess: u32 {
        /// Others may read.
        READ = 1,
        /// Others may write.
        WRITE = 2,
        /// Others may delete.
        DELETE = 4,
    }
}

open_enum! {
    /// `CreateDisposition`.
    Disposition: u32 {
        /// Replace it or make it.
        SUPERSEDE = 0,
        /// Open what is there.
        OPEN = 1,
        /// Make it; fail if it is there.
        CREATE = 2,
        /// Open it or make it.
        OPEN_IF = 3,
        /// Cut what is there to nothing.
        OVERWRITE = 4,
        /// Cut it or make it.
        OVERWRITE_IF = 5,
    }
}

flag_set! {
    /// `CreateOptions`.
    CreateOptions: u32 {
        /// Must be a directory.
        DIRECTORY_FILE = 0x1,
        /// Every write is durable before its answer.
        WRITE_THROUGH = 0x2,
        /// Access will be sequential.
        SEQUENTIAL_ONLY = 0x4,
        /// Do not cache.
        NO_INTERMEDIATE_BUFFERING = 0x8,
        /// Ignored.
        SYNCHRONOUS_IO_ALERT = 0x10,
        /// Ignored.
        SYNCHRONOUS_IO_NONALERT = 0x20,
        /// Must not be a directory.
        NON_DIRECTORY_FILE = 0x40,
        /// Fail if it has extended attributes that must be known.
        NO_EA_KNOWLEDGE = 0x200,
        /// Access will be random.
        RANDOM_ACCESS = 0x800,
        /// Delete when the last handle is closed.
        DELETE_ON_CLOSE = 0x1000,
        /// The name is a file id.
        OPEN_BY_FILE_ID = 0x2000,
        /// For backup; needs a privilege.
        OPEN_FOR_BACKUP_INTENT = 0x4000,
        /// Do not compress.
        NO_COMPRESSION = 0x8000,
        /// Fail rather than break an oplock.
        OPEN_REQUIRING_OPLOCK = 0x1_0000,
        /// Open a reparse point itself.
        OPEN_REPARSE_POINT = 0x20_0000,
        /// Do not recall from tape.
        OPEN_NO_RECALL = 0x40_0000,
        /// Open to query free space.
        OPEN_FOR_FREE_SPACE_QUERY = 0x80_0000,
    }
}

open_enum! {
    /// `CreateAction`.
    CreateAction: u32 {
        /// Replaced.
        SUPERSEDED = 0,
        /// Opened.
        OPENED = 1,
        /// Made.
        CREATED = 2,
        /// Cut to nothing.
        OVERWRITTEN = 3,
    }
}

/// One create context as it stands on the wire (MS-SMB2 2.2.13.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawContext<'a> {
    /// Name, 4 or 16 bytes.
    pub name: &'a [u8],
    /// Content.
    pub data: &'a [u8],
}

/// Most create contexts one request may carry; more are refused.
pub const MAX_CONTEXTS: usize = 32;

fn contexts(mut list: Input<'_>) -> std::result::Result<Vec<RawContext<'_>>, Failed> {
    let mut out = Vec::new();
    while !list.is_empty() {
        let (_, (next, name_offset, name_len, _, data_offset, data_len)) = (
            size32("create_context.Next"),
            size16("create_context.NameOffset"),
            size16("create_context.NameLength"),
            skip(2, "create_context.Reserved"),
            size16("create_context.DataOffset"),
            size32("create_context.DataLength"),
        )
            .parse(list)?;
        // Offsets count from the context, not from the message.
        let context = list.rebased();
        let name = region(context, name_offset, name_len, "create_context.Name")?.bytes();
        let data = region(context, data_offset, data_len, "create_context.Data")?.bytes();
        if name_len < 4 {
            return Err(list.impossible("create_context.NameLength", name_len as u64));
        }
        if out.len() == MAX_CONTEXTS {
            return Err(list.impossible("create_context", MAX_CONTEXTS as u64 + 1));
        }
        out.push(RawContext { name, data });
        if next == 0 {
            break;
        }
        if next < 16 || !next.is_multiple_of(8) {
            return Err(list.impossible("create_context.Next", next as u64));
        }
        list = from(list, list.position().saturating_add(next), "create_context.Next")?;
    }
    Ok(out)
}

fn encode_contexts(contexts: &[RawContext<'_>], out: &mut Vec<u8>) {
    for (index, context) in contexts.iter().enumerate() {
        let at = out.len();
        let data_offset = (16 + context.name.len()).next_multiple_of(8);
        out.put_u32(0);
        out.put_u16(16);
        out.put_u16(len16(context.name.len()));
        out.put_u16(0);
        out.put_u16(if context.data.is_empty() { 0 } else { len16(data_offset) });
        out.put_u32(len32(context.data.len()));
        out.put(context.name);
        if !context.data.is_empty() {
            out.pad_to(at, 8);
            out.put(context.data);
        }
        if index + 1 < contexts.len() {
            out.pad_to(at, 8);
            let next = len32(out.len() - at);
            out.patch(at, &next.to_le_bytes());
        }
    }
}

/// CREATE request: asks to open a file, folder or pipe, or to make it (MS-SMB2 2.2.13).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// Oplock asked for.
    pub oplock: OplockLevel,
    /// `ImpersonationLevel`.
    pub impersonation: u32,
    /// Access asked for.
    pub access: Access,
    /// Attributes of a new file.
    pub attributes: FileAttributes,
    /// What others may do meanwhile.
    pub share: ShareAccess,
    /// What to do when it is there or not.
    pub disposition: Disposition,
    /// Options.
    pub options: CreateOptions,
    /// Path below the share with `\` between its parts; empty for the share itself.
    pub name: String,
    /// Create contexts.
    pub contexts: Vec<RawContext<'a>>,
}

impl<'a> Request<'a> {
    /// Reads the body of a CREATE request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, name or contexts are outside of it, the
    /// name is not UTF-16, or the contexts are more than [`MAX_CONTEXTS`] or no chain.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, _, oplock, impersonation, _, access, attributes)) = (
                structure_size(57, "create.StructureSize"),
                skip(1, "create.SecurityFlags"),
                u8("create.RequestedOplockLevel").map(OplockLevel),
                u32("create.ImpersonationLevel"),
                skip(16, "create.SmbCreateFlags"),
                u32("create.DesiredAccess").map(Access),
                u32("create.FileAttributes").map(FileAttributes),
            )
                .parse(input)?;
            let (i, (share, disposition, options, name_offset, name_len, offset, len)) = (
                u32("create.ShareAccess").map(ShareAccess),
                u32("create.CreateDisposition").map(Disposition),
                u32("create.CreateOptions").map(CreateOptions),
                size16("create.NameOffset"),
                size16("create.NameLength"),
                size32("create.CreateContextsOffset"),
                size32("create.CreateContextsLength"),
            )
                .parse(i)?;
            let name = region(input, name_offset, name_len, "create.Name")?;
            let list = region(input, offset, len, "create.CreateContexts")?;
            let request = Self {
                oplock,
                impersonation,
                access,
                attributes,
                share,
                disposition,
                options,
                name: utf16(name, "create.Name")?,
                contexts: contexts(list)?,
            };
            Ok((i, request))
        })
    }

    /// Appends the body of a CREATE request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let name = name::to_utf16(&self.name);
        out.put_u16(57);
        out.put_u8(0);
        out.put_u8(self.oplock.0);
        out.put_u32(self.impersonation);
        out.put_zeros(16);
        out.put_u32(self.access.0);
        out.put_u32(self.attributes.0);
        out.put_u32(self.share.0);
        out.put_u32(self.disposition.0);
        out.put_u32(self.options.0);
        out.put_u16(len16(HEADER_LEN + 56));
        out.put_u16(len16(name.len()));
        out.put_u64(0);
        out.put(&name);
        if name.is_empty() {
            out.put_u64(0);
        }
        if !self.contexts.is_empty() {
            out.pad_to(start, 8);
            let at = out.len();
            encode_contexts(&self.contexts, out);
            let len = len32(out.len() - at);
            out.patch(start + 48, &len32(HEADER_LEN + at - start).to_le_bytes());
            out.patch(start + 52, &len.to_le_bytes());
        }
    }
}

/// CREATE response: names the open and describes what was opened (MS-SMB2 2.2.14).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// Oplock granted.
    pub oplock: OplockLevel,
    /// 1 if the path went through a reparse point.
    pub flags: u8,
    /// What was done.
    pub action: CreateAction,
    /// Times.
    pub times: Times,
    /// Allocated bytes.
    pub allocation_size: u64,
    /// Length in bytes.
    pub end_of_file: u64,
    /// Attributes.
    pub attributes: FileAttributes,
    /// The open.
    pub file_id: FileId,
    /// Create contexts.
    pub contexts: Vec<RawContext<'a>>,
}

impl<'a> Response<'a> {
    /// Reads the body of a CREATE response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or the contexts are outside of it, more
    /// than [`MAX_CONTEXTS`] or no chain.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, oplock, flags, action, times, allocation_size, end_of_file, attributes)) =
                (
                    structure_size(89, "create.StructureSize"),
                    u8("create.OplockLevel").map(OplockLevel),
                    u8("create.Flags"),
                    u32("create.CreateAction").map(CreateAction),
                    Times::read,
                    u64("create.AllocationSize"),
                    u64("create.EndofFile"),
                    u32("create.FileAttributes").map(FileAttributes),
                )
                    .parse(input)?;
            let (i, (_, file_id, offset, len)) = (
                skip(4, "create.Reserved2"),
                file_id("create.FileId"),
                size32("create.CreateContextsOffset"),
                size32("create.CreateContextsLength"),
            )
                .parse(i)?;
            let list = region(input, offset, len, "create.CreateContexts")?;
            let response = Self {
                oplock,
                flags,
                action,
                times,
                allocation_size,
                end_of_file,
                attributes,
                file_id,
                contexts: contexts(list)?,
            };
            Ok((i, response))
        })
    }

    /// Appends the body of a CREATE response to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u16(89);
        out.put_u8(self.oplock.0);
        out.put_u8(self.flags);
        out.put_u32(self.action.0);
        self.times.encode(out);
        out.put_u64(self.allocation_size);
        out.put_u64(self.end_of_file);
        out.put_u32(self.attributes.0);
        out.put_u32(0);
        out.put(&self.file_id.to_bytes());
        out.put_u64(0);
        if !self.contexts.is_empty() {
            let at = out.len();
            encode_contexts(&self.contexts, out);
            let len = len32(out.len() - at);
            out.patch(start + 80, &len32(HEADER_LEN + at - start).to_le_bytes());
            out.patch(start + 84, &len.to_le_bytes());
        }
    }
}
