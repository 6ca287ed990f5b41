//! Create contexts (MS-SMB2 2.2.13.2, 2.2.14.2): their names and contents.

use nom::{Parser, combinator::cond};

use super::create::RawContext;
use crate::{
    flag_set,
    header::file_id,
    ids::FileId,
    parse::{self, Input, array, skip, structure_size, u16, u32, u64},
    wire::{Put, Result},
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
    ///
    /// # Errors
    /// The content is shorter than the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let v1 = (
            array("lease.LeaseKey"),
            u32("lease.LeaseState").map(LeaseState),
            u32("lease.Flags"),
            skip(8, "lease.LeaseDuration"),
        );
        let v2 = (array("lease.ParentLeaseKey"), u16("lease.Epoch"));
        let lease = (v1, cond(data.len() >= 52, v2));
        let lease = lease.map(|((key, state, flags, ()), v2)| Self { key, state, flags, v2 });
        parse::run(Input::new(data), lease)
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

/// `SMB2_CREATE_DURABLE_HANDLE_REQUEST_V2`: the open is to outlive its connection (MS-SMB2 2.2.13.2.11).
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

    /// Reads the content of the request's context.
    ///
    /// # Errors
    /// The content is shorter than the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            u32("durable_v2.Timeout"),
            u32("durable_v2.Flags"),
            skip(8, "durable_v2.Reserved"),
            array("durable_v2.CreateGuid"),
        );
        let request =
            fields.map(|(timeout, flags, (), create_guid)| Self { timeout, flags, create_guid });
        parse::run(Input::new(data), request)
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

/// `SMB2_CREATE_DURABLE_HANDLE_RECONNECT_V2`: takes up an open after a lost connection
/// (MS-SMB2 2.2.13.2.12).
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
    /// Reads the content of the request's context.
    ///
    /// # Errors
    /// The content is shorter than the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            file_id("reconnect_v2.FileId"),
            array("reconnect_v2.CreateGuid"),
            u32("reconnect_v2.Flags"),
        );
        let request =
            fields.map(|(file_id, create_guid, flags)| Self { file_id, create_guid, flags });
        parse::run(Input::new(data), request)
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
///
/// # Errors
/// The content is shorter than the structure, or states another length.
pub fn parse_app_instance(data: &[u8]) -> Result<[u8; 16]> {
    let fields = (
        structure_size(20, "app_instance.StructureSize"),
        skip(2, "app_instance.Reserved"),
        array("app_instance.AppInstanceId"),
    );
    parse::run(Input::new(data), fields.map(|(_, _, id)| id))
}

/// The content of `SMB2_CREATE_APP_INSTANCE_ID`.
pub fn app_instance(id: [u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    out.put_u16(20);
    out.put_u16(0);
    out.put(&id);
    out
}

/// `SMB2_CREATE_APP_INSTANCE_VERSION`: how new an instance of an application is (MS-SMB2 2.2.13.2.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct AppVersion {
    /// The higher half.
    pub high: u64,
    /// The lower half.
    pub low: u64,
}

impl AppVersion {
    /// Reads the content of the context.
    ///
    /// # Errors
    /// The content is shorter than the structure, or states another length.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            structure_size(24, "app_version.StructureSize"),
            skip(6, "app_version.Reserved"),
            u64("app_version.High"),
            u64("app_version.Low"),
        );
        parse::run(Input::new(data), fields.map(|(_, _, high, low)| Self { high, low }))
    }

    /// The content of the context, 24 bytes.
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
///
/// # Errors
/// The content is shorter than the structure.
pub fn parse_reconnect_v1(data: &[u8]) -> Result<FileId> {
    parse::run(Input::new(data), file_id("reconnect.FileId"))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::msg::create::{self, MAX_CONTEXTS, RawContext};

    fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..max)
    }

    /// One content of every kind, by the context's name.
    fn content() -> impl Strategy<Value = (&'static [u8], Vec<u8>)> {
        let key = any::<[u8; 16]>;
        prop_oneof![
            (key(), any::<u32>(), any::<u32>(), prop::option::of((key(), any::<u16>()))).prop_map(
                |(key, state, flags, v2)| {
                    let lease = Lease { key, state: LeaseState(state), flags, v2 };
                    (names::RQLS, lease.to_bytes())
                }
            ),
            (any::<u32>(), any::<u32>(), key()).prop_map(|(timeout, flags, create_guid)| {
                (names::DH2Q, DurableV2 { timeout, flags, create_guid }.to_bytes())
            }),
            (any::<[u64; 2]>(), key(), any::<u32>()).prop_map(|(id, create_guid, flags)| {
                let file_id = FileId { persistent: id[0], volatile: id[1] };
                (names::DH2C, ReconnectV2 { file_id, create_guid, flags }.to_bytes())
            }),
            any::<[u8; 16]>().prop_map(|id| (names::DHNC, id.to_vec())),
            key().prop_map(|id| (names::APP_INSTANCE_ID, app_instance(id))),
            any::<(u64, u64)>().prop_map(|(high, low)| {
                (names::APP_INSTANCE_VERSION, AppVersion { high, low }.to_bytes())
            }),
        ]
    }

    /// Reads a content and writes it again; `None` if it cannot be read.
    fn again(name: &[u8], data: &[u8]) -> Option<Vec<u8>> {
        match name {
            names::RQLS => Lease::parse(data).ok().map(|v| v.to_bytes()),
            names::DH2Q => DurableV2::parse(data).ok().map(|v| v.to_bytes()),
            names::DH2C => ReconnectV2::parse(data).ok().map(|v| v.to_bytes()),
            names::DHNC => parse_reconnect_v1(data).ok().map(|v| v.to_bytes().to_vec()),
            names::APP_INSTANCE_ID => parse_app_instance(data).ok().map(app_instance),
            names::APP_INSTANCE_VERSION => AppVersion::parse(data).ok().map(AppVersion::to_bytes),
            _ => None,
        }
    }

    const ALL: [&[u8]; 6] = [
        names::RQLS,
        names::DH2Q,
        names::DH2C,
        names::DHNC,
        names::APP_INSTANCE_ID,
        names::APP_INSTANCE_VERSION,
    ];

    /// Fixed bytes that cannot drift together with both codecs.
    #[test]
    fn golden_contents() {
        // MS-SMB2 2.2.13.2.10: key, state, flags, duration, parent key, epoch, reserved.
        let mut lease = [0u8; 52];
        lease[..16].fill(0x11);
        lease[16] = 7;
        lease[20] = 4;
        lease[32..48].fill(0x22);
        lease[48] = 9;
        let parsed = Lease::parse(&lease).unwrap();
        assert_eq!(parsed.state, LeaseState::READ | LeaseState::HANDLE | LeaseState::WRITE);
        assert_eq!((parsed.flags, parsed.v2), (4, Some(([0x22; 16], 9))));
        assert_eq!(parsed.to_bytes(), lease);
        assert_eq!(Lease::parse(&lease[..32]).unwrap().v2, None);
        // MS-SMB2 2.2.13.2.13: StructureSize 20, reserved, the id.
        assert_eq!(parse_app_instance(&[&[20, 0, 0, 0][..], &[5; 16]].concat()).unwrap(), [5; 16]);
        // MS-SMB2 2.2.13.2.15: StructureSize 24, padding to 8, high, low.
        let mut version = [0u8; 24];
        (version[0], version[8], version[16]) = (24, 3, 4);
        assert_eq!(AppVersion::parse(&version).unwrap(), AppVersion { high: 3, low: 4 });
    }

    proptest! {
        /// A list of contexts comes out of a CREATE as it went in, and each content too.
        #[test]
        fn contexts_round_trip(list in prop::collection::vec(content(), 0..8)) {
            let contexts: Vec<_> =
                list.iter().map(|(name, data)| RawContext { name, data }).collect();
            let request = create::Request { contexts, ..Default::default() };
            let mut body = Vec::new();
            request.encode(&mut body);
            let parsed = create::Request::parse(&body).unwrap();
            prop_assert_eq!(&parsed, &request);
            for (name, data) in &list {
                let first = list.iter().find(|(other, _)| other == name);
                prop_assert_eq!(find(&parsed.contexts, name), first.map(|(_, data)| &data[..]));
                let back = again(name, data);
                prop_assert_eq!(back.as_ref(), Some(data));
                // Each byte counts: what is cut short is refused, or (a lease) the older form.
                let cut = again(name, &data[..data.len() - 1]);
                prop_assert!(
                    cut.is_none() || *name == names::RQLS || *name == names::DH2C,
                    "{name:?} {cut:?}"
                );
            }
        }

        /// Whatever stands in a context is answered, and what is read is written so that it is
        /// read the same.
        #[test]
        fn contents_are_total(mut data in bytes(70), size in prop::sample::select(vec![0u8, 20, 24])) {
            if let (true, [first, second, ..]) = (size > 0, &mut data[..]) {
                (*first, *second) = (size, 0);
            }
            for name in ALL {
                if let Some(written) = again(name, &data) {
                    prop_assert_eq!(again(name, &written), Some(written));
                }
            }
        }

        /// A list that is damaged anywhere is read as some list or refused; never more contexts
        /// than the limit, never bytes from outside.
        #[test]
        fn damaged_lists_are_answered(
            list in prop::collection::vec(content(), 1..6),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let contexts = list.iter().map(|(name, data)| RawContext { name, data }).collect();
            let mut body = Vec::new();
            create::Request { contexts, ..Default::default() }.encode(&mut body);
            for (index, value) in changes {
                let at = 56 + index.index(body.len() - 56);
                body[at] = value;
            }
            if let Ok(request) = create::Request::parse(&body) {
                prop_assert!(request.contexts.len() <= MAX_CONTEXTS);
                let mut written = Vec::new();
                request.encode(&mut written);
                prop_assert_eq!(create::Request::parse(&written).unwrap(), request);
            }
        }
    }
}
