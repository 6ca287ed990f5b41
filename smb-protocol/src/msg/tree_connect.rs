//! TREE_CONNECT (MS-SMB2 2.2.9, 2.2.10).

use crate::{
    flag_set,
    header::HEADER_LEN,
    name, open_enum,
    wire::{Put, Reader, Result, body_region, len16},
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

/// TREE_CONNECT request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Flags (3.1.1).
    pub flags: u16,
    /// `\\server\share`.
    pub path: String,
}

impl Request {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(9, "tree_connect.StructureSize")?;
        let flags = r.u16("tree_connect.Flags")?;
        let mut offset = usize::from(r.u16("tree_connect.PathOffset")?);
        let len = r.u16("tree_connect.PathLength")?.into();
        const EXTENSION_PRESENT: u16 = 4;
        if flags & EXTENSION_PRESENT != 0 {
            // MS-SMB2 2.2.9.1: the path then stands in the extension, counted from its start,
            // which is where the fixed fields end.
            offset = offset.max(HEADER_LEN + 8);
        }
        let path = body_region(&r, offset, len, "tree_connect.Buffer")?;
        Ok(Self { flags, path: name::utf16(path, "tree_connect.PathName")? })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let path = name::to_utf16(&self.path);
        out.put_u16(9);
        out.put_u16(self.flags);
        out.put_u16(len16(HEADER_LEN + 8));
        out.put_u16(len16(path.len()));
        out.put(&path);
    }
}

/// TREE_CONNECT response.
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
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(16, "tree_connect.StructureSize")?;
        let share_type = ShareType(r.u8("tree_connect.ShareType")?);
        r.skip(1, "tree_connect.Reserved")?;
        Ok(Self {
            share_type,
            flags: ShareFlags(r.u32("tree_connect.ShareFlags")?),
            capabilities: ShareCapabilities(r.u32("tree_connect.Capabilities")?),
            maximal_access: r.u32("tree_connect.MaximalAccess")?,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(16);
        out.put_u8(self.share_type.0);
        out.put_u8(0);
        out.put_u32(self.flags.0);
        out.put_u32(self.capabilities.0);
        out.put_u32(self.maximal_access);
    }
}
