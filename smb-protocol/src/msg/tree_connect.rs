//! TREE_CONNECT (MS-SMB2 2.2.9, 2.2.10).

use nom::Parser;

use crate::{
    flag_set,
    header::{HEADER_LEN, body},
    name, open_enum,
    parse::{self, region, size16, skip, structure_size, u8, u16, u32, utf16},
    wire::{Put, Result, len16},
};

open_enum! {
    /// `ShareType`.
    ShareType: u8 {
        /// Files.
        DISK = 1,
        /// Named pipes (IPC$).
        PIPE = 2,
        /// Printer.
        PRINT = 3,
    }
}

flag_set! {
    /// `ShareFlags`.
    ShareFlags: u32 {
        /// Offline caching is left to the user.
        MANUAL_CACHING = 0,
        /// No offline caching.
        NO_CACHING = 0x30,
        /// DFS share.
        DFS = 0x1,
        /// Root of a DFS namespace.
        DFS_ROOT = 0x2,
        /// All messages on this tree must be encrypted.
        ENCRYPT_DATA = 0x8000,
        /// Level II oplocks at most.
        FORCE_LEVELII_OPLOCK = 0x1000,
        /// Access-based enumeration.
        ACCESS_BASED_ENUM = 0x800,
        /// Reads and writes are to be compressed.
        COMPRESS_DATA = 0x10_0000,
    }
}

flag_set! {
    /// `Capabilities` of a share.
    ShareCapabilities: u32 {
        /// DFS.
        DFS = 0x8,
        /// Persistent handles.
        CONTINUOUS_AVAILABILITY = 0x10,
        /// Served by several nodes at once.
        SCALEOUT = 0x20,
        /// On a cluster; a witness can watch it.
        CLUSTER = 0x40,
        /// Served by one node at a time.
        ASYMMETRIC = 0x80,
    }
}

/// TREE_CONNECT request: asks for a share (MS-SMB2 2.2.9).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Flags (3.1.1).
    pub flags: u16,
    /// `\\server\share`.
    pub path: String,
}

impl Request {
    /// Reads the body of a TREE_CONNECT request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or the path is outside of it or not
    /// UTF-16.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        const EXTENSION_PRESENT: u16 = 4;
        parse::with(body(bytes), |input| {
            let (i, (_, flags, offset, len)) = (
                structure_size(9, "tree_connect.StructureSize"),
                u16("tree_connect.Flags"),
                size16("tree_connect.PathOffset"),
                size16("tree_connect.PathLength"),
            )
                .parse(input)?;
            // MS-SMB2 2.2.9.1: with an extension the path stands in it, counted from its start, which is
            // where the fixed fields end.
            let extended = flags & EXTENSION_PRESENT != 0;
            let offset = if extended { offset.max(HEADER_LEN + 8) } else { offset };
            let path = region(input, offset, len, "tree_connect.Buffer")?;
            Ok((i, Self { flags, path: utf16(path, "tree_connect.PathName")? }))
        })
    }

    /// Appends the body of a TREE_CONNECT request to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let path = name::to_utf16(&self.path);
        out.put_u16(9);
        out.put_u16(self.flags);
        out.put_u16(len16(HEADER_LEN + 8));
        out.put_u16(len16(path.len()));
        out.put(&path);
    }
}

/// TREE_CONNECT response: describes the share (MS-SMB2 2.2.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Response {
    /// What kind of share.
    pub share_type: ShareType,
    /// Flags.
    pub flags: ShareFlags,
    /// Capabilities.
    pub capabilities: ShareCapabilities,
    /// Access the user can have at most.
    pub maximal_access: u32,
}

impl Response {
    /// Reads the body of a TREE_CONNECT response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field, or is of another structure.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fields = (
            structure_size(16, "tree_connect.StructureSize"),
            u8("tree_connect.ShareType").map(ShareType),
            skip(1, "tree_connect.Reserved"),
            u32("tree_connect.ShareFlags").map(ShareFlags),
            u32("tree_connect.Capabilities").map(ShareCapabilities),
            u32("tree_connect.MaximalAccess"),
        );
        let response = fields.map(|(_, share_type, _, flags, capabilities, maximal_access)| Self {
            share_type,
            flags,
            capabilities,
            maximal_access,
        });
        parse::run(body(bytes), response)
    }

    /// Appends the body of a TREE_CONNECT response to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(16);
        out.put_u8(self.share_type.0);
        out.put_u8(0);
        out.put_u32(self.flags.0);
        out.put_u32(self.capabilities.0);
        out.put_u32(self.maximal_access);
    }
}
