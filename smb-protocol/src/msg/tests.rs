//! Round trips of every message, and totality on hostile bytes.

use super::*;
use crate::{
    Dialect, FileId, Header, SessionId,
    compression::CompressionAlgorithm,
    fscc::{
        self, FileAttributes, FsctlCode, InfoClass, Times,
        directory::Entry,
        fsctl::{FileRange, NetworkInterface, ValidateNegotiate},
    },
    header::HEADER_LEN,
};
use negotiate::{Capabilities, Cipher, Context, HashAlgorithm, SecurityMode, SigningAlgorithm};
use proptest::prelude::*;

/// Encodes, parses and compares.
macro_rules! round_trip {
    ($parse:path, $value:expr) => {{
        let value = $value;
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert_eq!($parse(&bytes).unwrap(), value);
        bytes
    }};
}

fn file_id() -> impl Strategy<Value = FileId> {
    any::<(u64, u64)>().prop_map(|(persistent, volatile)| FileId { persistent, volatile })
}

fn times() -> impl Strategy<Value = Times> {
    any::<(u64, u64, u64, u64)>().prop_map(|(creation, access, write, change)| Times {
        creation,
        access,
        write,
        change,
    })
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..max)
}

proptest! {
    #[test]
    fn header_round_trips(raw in prop::array::uniform32(any::<u8>()), more in prop::array::uniform32(any::<u8>())) {
        let mut all = [0; HEADER_LEN];
        all[..32].copy_from_slice(&raw);
        all[32..].copy_from_slice(&more);
        all[..6].copy_from_slice(&[0xfe, b'S', b'M', b'B', 64, 0]);
        prop_assert_eq!(Header::parse(&all).unwrap().to_bytes(), all);
    }

    #[test]
    fn negotiate_round_trips(guid in any::<[u8; 16]>(), salt in bytes(64), name in "[a-z.0-9]{0,20}", token in bytes(200), other in bytes(9)) {
        let contexts = vec![
            Context::Preauth { hashes: vec![HashAlgorithm::SHA_512], salt },
            Context::Encryption(vec![Cipher::AES_256_GCM, Cipher(77)]),
            Context::Signing(vec![SigningAlgorithm::AES_GMAC]),
            Context::NetName(name),
            Context::Compression { flags: 1, algorithms: CompressionAlgorithm::ALL.to_vec() },
            Context::Other { kind: 0x100, data: other },
        ];
        round_trip!(negotiate::Request::parse, negotiate::Request {
            security_mode: SecurityMode::SIGNING_ENABLED,
            capabilities: Capabilities::LARGE_MTU,
            client_guid: guid,
            dialects: vec![Dialect::SMB_2_1, Dialect::SMB_3_1_1],
            contexts: contexts.clone(),
        });
        round_trip!(negotiate::Response::parse, negotiate::Response {
            dialect: Dialect::SMB_3_1_1,
            server_guid: guid,
            security_buffer: token,
            contexts,
            ..Default::default()
        });
    }

    #[test]
    fn create_round_trips(id in file_id(), times in times(), name in "[a-zäß\\\\]{0,30}", data in bytes(60), guid in any::<[u8; 16]>()) {
        let contexts = vec![
            create::RawContext { name: context::names::MXAC, data: &[] },
            create::RawContext { name: &guid, data: &data },
            create::RawContext { name: context::names::QFID, data: &data },
        ];
        round_trip!(create::Request::parse, create::Request {
            name, contexts: contexts.clone(), impersonation: 2,
            access: create::Access::ALL, share: create::ShareAccess::READ,
            disposition: create::Disposition::OPEN_IF,
            options: create::CreateOptions::NON_DIRECTORY_FILE,
            attributes: FileAttributes::ARCHIVE, oplock: oplock::OplockLevel::LEASE,
        });
        round_trip!(create::Response::parse, create::Response {
            file_id: id, times, contexts, end_of_file: 77, allocation_size: 4096,
            action: create::CreateAction::CREATED, ..Default::default()
        });
    }

    #[test]
    fn small_messages_round_trip(id in file_id(), times in times(), a in any::<u32>(), b in any::<u64>(), data in bytes(100), key in any::<[u8; 16]>()) {
        round_trip!(close::Request::parse, close::Request { flags: 1, file_id: id });
        round_trip!(close::Response::parse, close::Response { flags: 1, times, end_of_file: b, allocation_size: b, attributes: FileAttributes(a) });
        round_trip!(flush::Request::parse, flush::Request { file_id: id });
        round_trip!(read::Request::parse, read::Request { length: a, offset: b, file_id: id, channel_info: &data, ..Default::default() });
        round_trip!(read::Response::parse, read::Response { data: &data, remaining: a });
        round_trip!(write::Request::parse, write::Request { offset: b, file_id: id, flags: a, length: data.len() as u32, data: &data, ..Default::default() });
        round_trip!(write::Response::parse, write::Response { count: a });
        round_trip!(lock::Request::parse, lock::Request { sequence: a, file_id: id, locks: vec![lock::Element { offset: b, length: b, flags: lock::LockFlags::UNLOCK }; 3] });
        round_trip!(ioctl::Request::parse, ioctl::Request { code: FsctlCode::SET_SPARSE, file_id: id, input: &data, max_output: a, ..Default::default() });
        round_trip!(ioctl::Response::parse, ioctl::Response { code: FsctlCode::SET_SPARSE, file_id: id, output: &data });
        round_trip!(notify::Request::parse, notify::Request { flags: 1, output_len: a, file_id: id, filter: a });
        round_trip!(query_info::Request::parse, query_info::Request { class: InfoClass::ALL, file_id: id, input: &data, output_len: a, ..Default::default() });
        round_trip!(set_info::Request::parse, set_info::Request { class: InfoClass::BASIC, file_id: id, input: &data, additional: a, ..Default::default() });
        round_trip!(query_directory::Request::parse, query_directory::Request { class: InfoClass::NAMES, file_id: id, output_len: a, pattern: "*.vhdx".into(), ..Default::default() });
        round_trip!(query_directory::Response::parse, query_directory::Response { output: &data });
        round_trip!(session_setup::Request::parse, session_setup::Request { previous_session: SessionId(b), security_buffer: &data, ..Default::default() });
        round_trip!(session_setup::Response::parse, session_setup::Response { security_buffer: &data, ..Default::default() });
        round_trip!(tree_connect::Request::parse, tree_connect::Request { flags: 0, path: "\\\\server\\vms".into() });
        round_trip!(tree_connect::Response::parse, tree_connect::Response { maximal_access: a, ..Default::default() });
        round_trip!(error::Response::parse, error::Response { context_count: 0, data: &data });
        round_trip!(ValidateNegotiate::parse, ValidateNegotiate { guid: key, dialects: vec![0x311], ..Default::default() });
        let ack = oplock::LeaseAck { key, state: a };
        let mut out = Vec::new();
        ack.encode(&mut out);
        prop_assert_eq!(oplock::Message::parse(&out).unwrap(), oplock::Message::LeaseAck(ack));
        let lease = context::Lease { key, state: context::LeaseState::READ, flags: a, v2: Some((key, 7)) };
        prop_assert_eq!(context::Lease::parse(&lease.to_bytes()).unwrap(), lease);
        let durable = context::DurableV2 { timeout: a, flags: 2, create_guid: key };
        prop_assert_eq!(context::DurableV2::parse(&durable.to_bytes()).unwrap(), durable);
        let reconnect = context::ReconnectV2 { file_id: id, create_guid: key, flags: 2 };
        prop_assert_eq!(context::ReconnectV2::parse(&reconnect.to_bytes()).unwrap(), reconnect);
    }

    #[test]
    fn directory_entries_round_trip(times in times(), id in any::<u64>(), names in prop::collection::vec("[a-zé]{1,20}", 1..6)) {
        use crate::wire::Put;
        for class in [InfoClass::DIRECTORY, InfoClass::FULL_DIRECTORY, InfoClass::BOTH_DIRECTORY, InfoClass::ID_BOTH_DIRECTORY, InfoClass::ID_FULL_DIRECTORY, InfoClass::ID_EXTD_DIRECTORY] {
            let has_id = ![InfoClass::DIRECTORY, InfoClass::FULL_DIRECTORY, InfoClass::BOTH_DIRECTORY].contains(&class);
            let list: Vec<_> = names.iter().map(|name| Entry {
                times, end_of_file: id, file_id: if has_id { id } else { 0 }, name: name.clone(), ..Default::default()
            }).collect();
            let mut out = Vec::new();
            let mut last = 0;
            for (position, entry) in list.iter().enumerate() {
                if position > 0 {
                    out.pad_to(0, 8);
                    let next = (out.len() - last) as u32;
                    out.patch(last, &next.to_le_bytes());
                }
                last = out.len();
                entry.encode(class, &mut out);
            }
            prop_assert_eq!(Entry::parse_list(class, &out).unwrap(), list);
        }
    }

    /// Whatever a peer sends, each parser answers; and what parses, encodes to what parses the same.
    #[test]
    fn parsers_are_total(mut body in bytes(300), size in prop::sample::select(vec![2u8, 4, 9, 16, 17, 24, 25, 32, 33, 36, 41, 48, 49, 57, 60, 65, 89])) {
        if body.len() >= 2 { body[0] = size; body[1] = 0; }
        macro_rules! total { ($($parse:path),* $(,)?) => {$(
            if let Ok(value) = $parse(&body) {
                let mut again = Vec::new();
                value.encode(&mut again);
                prop_assert_eq!($parse(&again), Ok(value));
            }
        )*} }
        total!(
            negotiate::Request::parse, negotiate::Response::parse, session_setup::Request::parse, session_setup::Response::parse,
            tree_connect::Request::parse, tree_connect::Response::parse, create::Request::parse, create::Response::parse,
            close::Request::parse, close::Response::parse, flush::Request::parse, read::Request::parse, read::Response::parse,
            write::Request::parse, write::Response::parse, lock::Request::parse, ioctl::Request::parse, ioctl::Response::parse,
            query_directory::Request::parse, query_directory::Response::parse, query_info::Request::parse, set_info::Request::parse,
            notify::Request::parse, error::Response::parse, simple::Empty::parse, ValidateNegotiate::parse,
            fscc::file_info::Basic::parse, fscc::file_info::Standard::parse, fscc::file_info::Rename::parse, fscc::file_info::NetworkOpen::parse,
        );
        let _ = Header::parse(&body);
        let _ = oplock::Message::parse(&body);
        let _ = context::Lease::parse(&body);
        let _ = fscc::fsctl::parse_interfaces(&body);
        let _ = fscc::fsctl::parse_zero_data(&body);
        let _ = FileRange::parse_list(&body);
        for class in 0..70 { let _ = Entry::parse_list(InfoClass(class), &body); }
    }
}

#[test]
fn interfaces_round_trip() {
    let list = vec![
        NetworkInterface {
            index: 1,
            capability: fscc::fsctl::InterfaceCapability::RSS,
            link_speed: 10_000_000_000,
            address: "192.0.2.1".parse().unwrap(),
        },
        NetworkInterface {
            index: 2,
            capability: Default::default(),
            link_speed: 1,
            address: "2001:db8::7".parse().unwrap(),
        },
    ];
    let mut out = Vec::new();
    fscc::fsctl::encode_interfaces(&list, &mut out);
    assert_eq!(fscc::fsctl::parse_interfaces(&out).unwrap(), list);
}

#[test]
fn filetimes() {
    assert_eq!(fscc::filetime_from_unix(0, 0), 116_444_736_000_000_000);
    assert_eq!(fscc::filetime_to_unix(fscc::filetime_from_unix(-5, 300)), (-5, 300));
}

/// Fixed bytes that cannot drift together with both codecs.
#[test]
fn golden_echo_and_tree_disconnect() {
    // MS-SMB2 2.2.28: StructureSize 4, Reserved 0.
    let mut out = Vec::new();
    simple::Empty.encode(&mut out);
    assert_eq!(out, [4, 0, 0, 0]);
    assert_eq!(crate::header::frame_len([0, 1, 2, 3]).unwrap(), 0x010203);
    assert!(crate::header::frame_len([0x81, 0, 0, 0]).is_err());
}
