//! Create contexts (MS-SMB2 2.2.13.2, 2.2.14.2): their names and contents.

use super::create::RawContext;
use crate::{
    flag_set,
    ids::FileId,
    wire::{Put, Reader, Result},
};

/// Names of create contexts.
pub mod names {
    /// Extended attributes.
    pub const EXTA: &[u8] = b"ExtA";
    /// Security descriptor.
    pub const SECD: &[u8] = b"SecD";
    /// Durable handle request.
    pub const DHNQ: &[u8] = b"DHnQ";
    /// Durable handle reconnect.
    pub const DHNC: &[u8] = b"DHnC";
    /// Allocation size.
    pub const ALSI: &[u8] = b"AlSi";
    /// Maximal access.
    pub const MXAC: &[u8] = b"MxAc";
    /// Snapshot time.
    pub const TWRP: &[u8] = b"TWrp";
    /// Identity on disk.
    pub const QFID: &[u8] = b"QFid";
    /// Lease.
    pub const RQLS: &[u8] = b"RqLs";
    /// Durable handle request, version 2.
    pub const DH2Q: &[u8] = b"DH2Q";
    /// Durable handle reconnect, version 2.
    pub const DH2C: &[u8] = b"DH2C";
    /// Instance of an application (MS-SMB2 2.2.13.2.13).
    pub const APP_INSTANCE_ID: &[u8] =
        b"\x45\xbc\xa6\x6a\xef\xa7\xf7\x4a\x90\x08\xfa\x46\x2e\x14\x4d\x74";
    /// Version of an instance (MS-SMB2 2.2.13.2.15).
    pub const APP_INSTANCE_VERSION: &[u8] =
        b"\xb9\x82\xd0\xb7\x3b\x56\x07\x4f\xa0\x7b\x52\x4a\x81\x16\xa0\x10";
}

/// Finds a context by name.
pub fn find<'a>(contexts: &[RawContext<'a>], name: &[u8]) -> Option<&'a [u8]> {
    contexts.iter().find(|c| c.name == name).map(|c| c.data)
}

flag_set! {
    /// State of a lease (MS-SMB2 2.2.13.2.8).
    LeaseState: u32 {
        /// Reads may be cached.
        READ = 1,
        /// The handle may be kept.
        HANDLE = 2,
        /// Writes may be cached.
        WRITE = 4,
    }
}

/// `SMB2_CREATE_REQUEST_LEASE` and `_V2`, request and response alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lease {
    /// The lease.
    pub key: [u8; 16],
    /// State asked for or granted.
    pub state: LeaseState,
    /// Flags: 2 break in progress, 4 parent key set.
    pub flags: u32,
    /// What only version 2 has: parent key and epoch.
    pub v2: Option<([u8; 16], u16)>,
}

impl Lease {
    /// Reads either version, told apart by length.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let mut r = Reader::new(data);
        let key = r.array("lease.LeaseKey")?;
        let state = LeaseState(r.u32("lease.LeaseState")?);
        let flags = r.u32("lease.Flags")?;
        r.skip(8, "lease.LeaseDuration")?;
        let v2 = if data.len() >= 52 {
            Some((r.array("lease.ParentLeaseKey")?, r.u16("lease.Epoch")?))
        } else {
            None
        };
        Ok(Self { key, state, flags, v2 })
    }

    /// The content of the context.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(52);
        out.put(&self.key);
        out.put_u32(self.state.0);
        out.put_u32(self.flags);
        out.put_u64(0);
        if let Some((parent, epoch)) = &self.v2 {
            out.put(parent);
            out.put_u16(*epoch);
            out.put_u16(0);
        }
        out
    }
}

/// `SMB2_CREATE_DURABLE_HANDLE_REQUEST_V2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DurableV2 {
    /// How long to keep the open, in milliseconds; 0 leaves it to the server.
    pub timeout: u32,
    /// 2 for a persistent handle.
    pub flags: u32,
    /// Identity of this create.
    pub create_guid: [u8; 16],
}

impl DurableV2 {
    /// `SMB2_DHANDLE_FLAG_PERSISTENT`.
    pub const PERSISTENT: u32 = 2;

    /// Reads the request.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let mut r = Reader::new(data);
        let timeout = r.u32("durable_v2.Timeout")?;
        let flags = r.u32("durable_v2.Flags")?;
        r.skip(8, "durable_v2.Reserved")?;
        Ok(Self { timeout, flags, create_guid: r.array("durable_v2.CreateGuid")? })
    }

    /// The content of the request.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        out.put_u32(self.timeout);
        out.put_u32(self.flags);
        out.put_u64(0);
        out.put(&self.create_guid);
        out
    }

    /// The content of the response: granted timeout and flags.
    pub fn response(timeout: u32, flags: u32) -> [u8; 8] {
        let mut out = [0; 8];
        out[..4].copy_from_slice(&timeout.to_le_bytes());
        out[4..].copy_from_slice(&flags.to_le_bytes());
        out
    }
}

/// `SMB2_CREATE_DURABLE_HANDLE_RECONNECT_V2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReconnectV2 {
    /// The open to take up again.
    pub file_id: FileId,
    /// Identity of the create that made it.
    pub create_guid: [u8; 16],
    /// 2 for a persistent handle.
    pub flags: u32,
}

impl ReconnectV2 {
    /// Reads the request.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let mut r = Reader::new(data);
        Ok(Self {
            file_id: FileId::from_bytes(r.array("reconnect_v2.FileId")?),
            create_guid: r.array("reconnect_v2.CreateGuid")?,
            flags: r.u32("reconnect_v2.Flags")?,
        })
    }

    /// The content of the request.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(36);
        out.put(&self.file_id.to_bytes());
        out.put(&self.create_guid);
        out.put_u32(self.flags);
        out
    }
}

/// `SMB2_CREATE_APP_INSTANCE_ID`: the instance (MS-SMB2 2.2.13.2.13).
pub fn parse_app_instance(data: &[u8]) -> Result<[u8; 16]> {
    let mut r = Reader::new(data);
    r.structure_size(20, "app_instance.StructureSize")?;
    r.skip(2, "app_instance.Reserved")?;
    r.array("app_instance.AppInstanceId")
}

/// The content of `SMB2_CREATE_APP_INSTANCE_ID`.
pub fn app_instance(id: [u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    out.put_u16(20);
    out.put_u16(0);
    out.put(&id);
    out
}

/// `SMB2_CREATE_APP_INSTANCE_VERSION` (MS-SMB2 2.2.13.2.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct AppVersion {
    /// The higher half.
    pub high: u64,
    /// The lower half.
    pub low: u64,
}

impl AppVersion {
    /// Reads the content.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let mut r = Reader::new(data);
        r.structure_size(24, "app_version.StructureSize")?;
        r.skip(6, "app_version.Reserved")?;
        Ok(Self { high: r.u64("app_version.High")?, low: r.u64("app_version.Low")? })
    }

    /// The content.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.put_u16(24);
        out.put_zeros(6);
        out.put_u64(self.high);
        out.put_u64(self.low);
        out
    }
}

/// `SMB2_CREATE_DURABLE_HANDLE_RECONNECT`: the open to take up again.
pub fn parse_reconnect_v1(data: &[u8]) -> Result<FileId> {
    Reader::new(data).array("reconnect.FileId").map(FileId::from_bytes)
}

/// Response of `MxAc`: status of the query and the access (MS-SMB2 2.2.14.2.5).
pub fn maximal_access(access: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[4..].copy_from_slice(&access.to_le_bytes());
    out
}

/// Response of `QFid`: file number and volume (MS-SMB2 2.2.14.2.9).
pub fn disk_id(file: u64, volume: u64) -> [u8; 32] {
    let mut out = [0; 32];
    out[..8].copy_from_slice(&file.to_le_bytes());
    out[8..16].copy_from_slice(&volume.to_le_bytes());
    out
}
