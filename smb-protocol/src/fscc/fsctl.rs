//! File-system controls (MS-FSCC 2.3, MS-SMB2 2.2.31).

use nom::Parser;

use crate::{
    flag_set, open_enum,
    parse::{
        self, Input, Parsed, array, counted, size16, size32, skip, such, u16, u16_list, u32, u64,
    },
    wire::{Put, Reader, Result},
};

open_enum! {
    /// `CtlCode`.
    FsctlCode: u32 {
        /// DFS referral.
        DFS_GET_REFERRALS = 0x0006_0194,
        /// DFS referral with site.
        DFS_GET_REFERRALS_EX = 0x0006_01b0,
        /// Look into a pipe without taking from it.
        PIPE_PEEK = 0x0011_400c,
        /// Wait for a pipe.
        PIPE_WAIT = 0x0011_0018,
        /// Write to a pipe and read its answer.
        PIPE_TRANSCEIVE = 0x0011_c017,
        /// Copy ranges on the server.
        SRV_COPYCHUNK = 0x0014_40f2,
        /// Copy ranges on the server, target readable or not.
        SRV_COPYCHUNK_WRITE = 0x0014_80f2,
        /// List snapshots.
        SRV_ENUMERATE_SNAPSHOTS = 0x0014_4064,
        /// Key for a server-side copy.
        SRV_REQUEST_RESUME_KEY = 0x0014_0078,
        /// Resilient handle.
        LMR_REQUEST_RESILIENCY = 0x0014_01d4,
        /// Interfaces of the server.
        QUERY_NETWORK_INTERFACE_INFO = 0x0014_01fc,
        /// Check the negotiation against tampering.
        VALIDATE_NEGOTIATE_INFO = 0x0014_0204,
        /// Compression state.
        GET_COMPRESSION = 0x0009_003c,
        /// Set compression.
        SET_COMPRESSION = 0x0009_c040,
        /// Mark sparse.
        SET_SPARSE = 0x0009_00c4,
        /// Make a range zero.
        SET_ZERO_DATA = 0x0009_80c8,
        /// List ranges that hold data.
        QUERY_ALLOCATED_RANGES = 0x0009_40cf,
        /// Reparse point.
        GET_REPARSE_POINT = 0x0009_00a8,
        /// Make a reparse point.
        SET_REPARSE_POINT = 0x0009_00a4,
        /// Object id, made if there is none.
        CREATE_OR_GET_OBJECT_ID = 0x0009_00c0,
        /// Object id.
        GET_OBJECT_ID = 0x0009_009c,
        /// Give space back.
        FILE_LEVEL_TRIM = 0x0009_8208,
        /// Share blocks.
        DUPLICATE_EXTENTS_TO_FILE = 0x0009_8344,
        /// Integrity state.
        GET_INTEGRITY_INFORMATION = 0x0009_027c,
        /// Set integrity.
        SET_INTEGRITY_INFORMATION = 0x0009_c280,
        /// Offload read.
        OFFLOAD_READ = 0x0009_4264,
        /// Offload write.
        OFFLOAD_WRITE = 0x0009_8268,
        /// Is this a shared virtual disk.
        SVHDX_SYNC_TUNNEL_REQUEST = 0x0009_0304,
        /// Is the server able to share virtual disks.
        QUERY_SHARED_VIRTUAL_DISK_SUPPORT = 0x0009_0300,
        /// Further requests to a shared virtual disk.
        SVHDX_ASYNC_TUNNEL_REQUEST = 0x0009_0364,
        /// On-disk identity of a UDF volume.
        QUERY_ON_DISK_VOLUME_INFO = 0x0009_013c,
        /// Share blocks, all or nothing.
        DUPLICATE_EXTENTS_TO_FILE_EX = 0x0009_83e8,
        /// Set integrity, newer form.
        SET_INTEGRITY_INFORMATION_EX = 0x0009_0380,
        /// Take the object id away.
        DELETE_OBJECT_ID = 0x0009_00a0,
        /// Give an object id.
        SET_OBJECT_ID = 0x0009_0098,
        /// Change what stands beside the object id.
        SET_OBJECT_ID_EXTENDED = 0x0009_00bc,
        /// Take a reparse point away.
        DELETE_REPARSE_POINT = 0x0009_00ac,
        /// Ranges up to the valid data length.
        QUERY_FILE_REGIONS = 0x0009_0284,
        /// Zero what is given back.
        SET_ZERO_ON_DEALLOCATION = 0x0009_0194,
        /// Files of an owner.
        FIND_FILES_BY_SID = 0x0009_008f,
        /// Sizes of an NTFS volume.
        GET_NTFS_VOLUME_DATA = 0x0009_0064,
        /// Sizes of a ReFS volume.
        GET_REFS_VOLUME_DATA = 0x0009_02d8,
        /// Counters of the file system.
        FILESYSTEM_GET_STATISTICS = 0x0009_0060,
        /// Number of extents.
        GET_RETRIEVAL_POINTER_COUNT = 0x0009_042b,
        /// Extents.
        GET_RETRIEVAL_POINTERS = 0x0009_0073,
        /// Extents and their sharers.
        GET_RETRIEVAL_POINTERS_AND_REFCOUNT = 0x0009_03d3,
        /// Is a path well formed.
        IS_PATHNAME_VALID = 0x0009_002c,
        /// Link tracking of a server.
        LMR_SET_LINK_TRACKING_INFORMATION = 0x0014_00ec,
        /// Which copy of a mirror to read.
        MARK_HANDLE = 0x0009_00fc,
        /// First sector of a FAT volume.
        QUERY_FAT_BPB = 0x0009_0058,
        /// Spare sectors of a UDF volume.
        QUERY_SPARING_INFO = 0x0009_0138,
        /// Last change of a file in the journal.
        READ_FILE_USN_DATA = 0x0009_00eb,
        /// Bring a file back from slow storage.
        RECALL_FILE = 0x0009_0117,
        /// Snapshots of a stream.
        REFS_STREAM_SNAPSHOT_MANAGEMENT = 0x0009_0440,
        /// Defects of a UDF volume.
        SET_DEFECT_MANAGEMENT = 0x0009_8134,
        /// Encryption of a file.
        SET_ENCRYPTION = 0x0009_00d7,
        /// Single-instance copy.
        SIS_COPYFILE = 0x0009_0100,
        /// A record in the change journal.
        WRITE_USN_CLOSE_RECORD = 0x0009_00ef,
    }
}

/// `FSCTL_VALIDATE_NEGOTIATE_INFO` request (MS-SMB2 2.2.31.4).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValidateNegotiate {
    /// Capabilities the client sent.
    pub capabilities: u32,
    /// Its identity.
    pub guid: [u8; 16],
    /// Its security mode.
    pub security_mode: u16,
    /// Its dialects.
    pub dialects: Vec<u16>,
}

impl ValidateNegotiate {
    /// Reads the input of the control.
    ///
    /// # Errors
    /// The data end before the dialects that they count.
    pub fn parse(data: &[u8]) -> Result<Self> {
        parse::with(Input::new(data), |input| {
            let (i, (capabilities, guid, security_mode, count)) = (
                u32("validate.Capabilities"),
                array("validate.Guid"),
                u16("validate.SecurityMode"),
                size16("validate.DialectCount"),
            )
                .parse(input)?;
            let (i, dialects) = u16_list(count, "validate.Dialects").parse(i)?;
            Ok((i, Self { capabilities, guid, security_mode, dialects }))
        })
    }

    /// Appends the input of the control.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.capabilities);
        out.put(&self.guid);
        out.put_u16(self.security_mode);
        out.put_u16(crate::wire::len16(self.dialects.len()));
        self.dialects.iter().for_each(|d| out.put_u16(*d));
    }
}

/// `FSCTL_VALIDATE_NEGOTIATE_INFO` response (MS-SMB2 2.2.32.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ValidateNegotiateResponse {
    /// Capabilities the server answered.
    pub capabilities: u32,
    /// Its identity.
    pub guid: [u8; 16],
    /// Its security mode.
    pub security_mode: u16,
    /// The dialect it chose.
    pub dialect: u16,
}

impl ValidateNegotiateResponse {
    /// Length on the wire.
    pub const LEN: usize = 24;

    /// Reads the output of the control, 24 bytes.
    ///
    /// # Errors
    /// The data end within the structure.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let fields = (
            u32("validate.Capabilities"),
            array("validate.Guid"),
            u16("validate.SecurityMode"),
            u16("validate.Dialect"),
        );
        let response = fields.map(|(capabilities, guid, security_mode, dialect)| Self {
            capabilities,
            guid,
            security_mode,
            dialect,
        });
        parse::run(Input::new(data), response)
    }

    /// Appends the output of the control, 24 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.capabilities);
        out.put(&self.guid);
        out.put_u16(self.security_mode);
        out.put_u16(self.dialect);
    }
}

/// A range of a file: `FILE_ALLOCATED_RANGE_BUFFER` (MS-FSCC 2.3.52).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileRange {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl FileRange {
    /// Length on the wire.
    pub const LEN: usize = 16;

    fn read(input: Input<'_>) -> Parsed<'_, Self> {
        let (i, (offset, length)) = (u64("range.FileOffset"), u64("range.Length")).parse(input)?;
        match offset.checked_add(length) {
            Some(end) if end <= i64::MAX as u64 => Ok((i, Self { offset, length })),
            _ => Err(input.impossible("range", offset)),
        }
    }

    /// Reads one range of 16 bytes.
    ///
    /// # Errors
    /// Fewer than 16 bytes are left, or the range does not end within 2^63 - 1.
    pub fn parse(r: &mut Reader<'_>) -> Result<Self> {
        r.take(Self::read)
    }

    /// Appends one range of 16 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.offset);
        out.put_u64(self.length);
    }

    /// Reads as many ranges as `data` holds.
    ///
    /// # Errors
    /// One of them does not end within 2^63 - 1.
    pub fn parse_list(data: &[u8]) -> Result<Vec<Self>> {
        let count = data.len() / Self::LEN;
        parse::run(Input::new(data), counted(count, Self::LEN, "ranges", Self::read))
    }
}

/// `FILE_ZERO_DATA_INFORMATION` (MS-FSCC 2.3.71): first byte and first byte after.
///
/// # Errors
/// The data end within the structure, or the range ends before it begins or beyond 2^63 - 1.
pub fn parse_zero_data(data: &[u8]) -> Result<std::ops::Range<u64>> {
    parse::with(Input::new(data), |input| {
        let (i, start) = u64("zero_data.FileOffset")(input)?;
        let possible = |end| start <= end && end <= i64::MAX as u64;
        let (i, end) = such(u64, "zero_data.BeyondFinalZero", possible)(i)?;
        Ok((i, start..end))
    })
}

/// Appends `FILE_ZERO_DATA_INFORMATION` (MS-FSCC 2.3.71), 16 bytes.
pub fn encode_zero_data(range: std::ops::Range<u64>, out: &mut Vec<u8>) {
    out.put_u64(range.start);
    out.put_u64(range.end);
}

flag_set! {
    /// `Capability` of an interface (MS-SMB2 2.2.32.5).
    InterfaceCapability: u32 {
        /// Receive-side scaling.
        RSS = 1,
        /// RDMA.
        RDMA = 2,
    }
}

/// One address of one interface: `NETWORK_INTERFACE_INFO` (MS-SMB2 2.2.32.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkInterface {
    /// Interface number.
    pub index: u32,
    /// What it can do.
    pub capability: InterfaceCapability,
    /// Bits per second.
    pub link_speed: u64,
    /// Address.
    pub address: std::net::IpAddr,
}

/// Length of one [`NetworkInterface`] on the wire.
const INTERFACE_LEN: usize = 152;

/// Appends a chain of interfaces.
pub fn encode_interfaces(list: &[NetworkInterface], out: &mut Vec<u8>) {
    for (position, interface) in list.iter().enumerate() {
        let at = out.len();
        let next = if position + 1 < list.len() { INTERFACE_LEN as u32 } else { 0 };
        out.put_u32(next);
        out.put_u32(interface.index);
        out.put_u32(interface.capability.0);
        out.put_u32(0);
        out.put_u64(interface.link_speed);
        // SockAddr_Storage (MS-SMB2 2.2.32.5.1): family, then port and address in network order.
        match interface.address {
            std::net::IpAddr::V4(v4) => {
                out.put_u16(2);
                out.put_u16(0);
                out.put(&v4.octets());
            }
            std::net::IpAddr::V6(v6) => {
                out.put_u16(0x17);
                out.put_u16(0);
                out.put_u32(0);
                out.put(&v6.octets());
                out.put_u32(0);
            }
        }
        let used = out.len() - at;
        out.put_zeros(INTERFACE_LEN - used);
    }
}

/// Reads an interface, `None` with an address of an unknown family, and how far behind its
/// beginning the next one begins.
fn interface(input: Input<'_>) -> Parsed<'_, (Option<NetworkInterface>, usize)> {
    const INTERNETWORK: u16 = 2;
    const INTERNETWORKV6: u16 = 0x17;
    let (i, (next, index, capability, _, link_speed, family, _)) = (
        size32("interface.Next"),
        u32("interface.IfIndex"),
        u32("interface.Capability").map(InterfaceCapability),
        skip(4, "interface.Reserved"),
        u64("interface.LinkSpeed"),
        u16("interface.Family"),
        skip(2, "interface.Port"),
    )
        .parse(input)?;
    let (i, address) = match family {
        INTERNETWORK => array::<4>("interface.IPv4Address")
            .map(|address| Some(std::net::IpAddr::from(address)))
            .parse(i)?,
        INTERNETWORKV6 => (skip(4, "interface.FlowInfo"), array::<16>("interface.IPv6Address"))
            .map(|((), address)| Some(std::net::IpAddr::from(address)))
            .parse(i)?,
        _ => (i, None),
    };
    let interface =
        address.map(|address| NetworkInterface { index, capability, link_speed, address });
    Ok((i, (interface, next)))
}

/// Reads a chain of interfaces; addresses of unknown families are left out.
///
/// # Errors
/// An entry ends within a field, or the next one is not behind it or not in the data.
pub fn parse_interfaces(data: &[u8]) -> Result<Vec<NetworkInterface>> {
    let mut list = Vec::new();
    let mut left = Input::new(data);
    loop {
        let (interface, next) = parse::run(left, interface)?;
        list.extend(interface);
        if next == 0 {
            return Ok(list);
        }
        left = parse::with(left, |input| {
            if next < INTERFACE_LEN {
                return Err(input.impossible("interface.Next", next as u64));
            }
            let behind = input.position().saturating_add(next);
            let rest = parse::from(input, behind, "interface.Next")?;
            Ok((rest, rest))
        })?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn interface() -> impl Strategy<Value = NetworkInterface> {
        (any::<u32>(), any::<u32>(), any::<u64>(), any::<std::net::IpAddr>()).prop_map(
            |(index, capability, link_speed, address)| NetworkInterface {
                index,
                capability: InterfaceCapability(capability),
                link_speed,
                address,
            },
        )
    }

    proptest! {
        #[test]
        fn interfaces_come_back(list in prop::collection::vec(interface(), 1..9)) {
            let mut data = Vec::new();
            encode_interfaces(&list, &mut data);
            prop_assert_eq!(data.len(), list.len() * INTERFACE_LEN);
            prop_assert_eq!(parse_interfaces(&data).unwrap(), list);
        }

        /// A damaged chain ends: every link leads forward by one interface at least.
        #[test]
        fn damaged_interfaces_are_answered(
            list in prop::collection::vec(interface(), 1..6),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut data = Vec::new();
            encode_interfaces(&list, &mut data);
            for (index, value) in changes {
                let at = index.index(data.len());
                data[at] = value;
            }
            data.truncate(cut.index(data.len() + 1));
            if let Ok(found) = parse_interfaces(&data) {
                prop_assert!(found.len() <= data.len().div_ceil(INTERFACE_LEN));
                if !found.is_empty() {
                    let mut again = Vec::new();
                    encode_interfaces(&found, &mut again);
                    prop_assert_eq!(parse_interfaces(&again).unwrap(), found);
                }
            }
        }

        /// Ranges are taken if they lie in a file of any length, and only then.
        #[test]
        fn ranges_are_checked(
            numbers in prop::collection::vec((any::<u64>(), any::<u64>(), 0..4u32), 0..9),
        ) {
            let mut data = Vec::new();
            let mut all = Vec::new();
            for (offset, length, shift) in numbers {
                let range = FileRange { offset: offset >> shift, length: length >> shift };
                range.encode(&mut data);
                all.push(range);
            }
            let end = |r: &FileRange| u128::from(r.offset) + u128::from(r.length);
            let right = all.iter().all(|range| end(range) <= i64::MAX as u128);
            prop_assert_eq!(FileRange::parse_list(&data).ok(), right.then_some(all));
        }

        #[test]
        fn zeroed_ranges_are_checked(start in any::<u64>(), end in any::<u64>(), shift in 0..3u32) {
            let (start, end) = (start >> shift, end >> shift);
            let mut data = Vec::new();
            encode_zero_data(start..end, &mut data);
            let right = start <= end && end <= i64::MAX as u64;
            prop_assert_eq!(parse_zero_data(&data).ok(), right.then_some(start..end));
            prop_assert!(parse_zero_data(&data[..15]).is_err());
        }

        #[test]
        fn negotiations_to_validate_come_back(
            guid in any::<[u8; 16]>(),
            dialects in prop::collection::vec(any::<u16>(), 1..20),
        ) {
            let value = ValidateNegotiate { guid, dialects, ..Default::default() };
            let mut data = Vec::new();
            value.encode(&mut data);
            prop_assert!(ValidateNegotiate::parse(&data[..data.len() - 1]).is_err());
            prop_assert_eq!(ValidateNegotiate::parse(&data).unwrap(), value);
        }
    }
}
