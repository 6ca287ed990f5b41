//! Every message that can be read and written, with a sample of each.
//!
//! Tests and fuzz targets hold of all of them: what is read at all is written and read again as the
//! same.

use crate::{
    Dialect, FileId, Header, SessionId,
    compression::CompressionAlgorithm,
    dfs,
    fscc::{ea, file_info, fs_info, fsctl, offload, reparse, snapshots},
    kerberos::keytab,
    msg::{
        close, context, create, error, flush, ioctl, lock, negotiate, notify, oplock,
        query_directory, query_info, read, session_setup, set_info, tree_connect, write,
    },
    ntlm::{av, message as ntlm},
    security::{ALLOW, Ace, AceFlags, Descriptor, Sid, parts},
    spnego::token,
};

/// A well-formed message, and its parser followed by its encoder.
pub struct Case {
    /// What it is, for a person.
    pub name: &'static str,
    /// The bytes of the message.
    pub sample: Vec<u8>,
    /// Reads a message and writes it; `None` for what is none.
    pub again: fn(&[u8]) -> Option<Vec<u8>>,
}

/// A case of a type with `parse` and `encode(&mut Vec)`.
macro_rules! case {
    ($name:literal, $parse:path, $value:expr) => {{
        let mut sample = Vec::new();
        $value.encode(&mut sample);
        let again = |bytes: &[u8]| {
            let value = $parse(bytes).ok()?;
            let mut out = Vec::new();
            value.encode(&mut out);
            Some(out)
        };
        Case { name: $name, sample, again }
    }};
}

/// A case of functions: what writes the sample, and what reads and writes it again.
fn case(name: &'static str, sample: Vec<u8>, again: fn(&[u8]) -> Option<Vec<u8>>) -> Case {
    Case { name, sample, again }
}

/// What `put` appends.
fn built(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out);
    out
}

/// What stands in a region.
const DATA: &[u8] = b"sixteen bytes!!!";

const ID: FileId = FileId { persistent: 0x0102_0304_0506_0708, volatile: 0x1112_1314_1516_1718 };

/// What stands in the data of a CREATE's contexts.
pub fn create_contexts() -> Vec<Case> {
    let lease = context::Lease { key: [4; 16], v2: Some(([5; 16], 3)), ..Default::default() };
    let contexts = vec![
        create::RawContext { name: context::names::MXAC, data: &[] },
        create::RawContext { name: context::names::RQLS, data: &[7; 32] },
    ];
    vec![
        case!(
            "contexts",
            create::Request::parse,
            create::Request { name: "file".into(), contexts, ..Default::default() }
        ),
        case("lease", lease.to_bytes(), |b| context::Lease::parse(b).ok().map(|c| c.to_bytes())),
        case("durable handle", context::DurableV2::default().to_bytes(), |b| {
            context::DurableV2::parse(b).ok().map(|c| c.to_bytes())
        }),
        case("durable reconnect", context::ReconnectV2::default().to_bytes(), |b| {
            context::ReconnectV2::parse(b).ok().map(|c| c.to_bytes())
        }),
        case("app instance", context::app_instance([6; 16]), |b| {
            context::parse_app_instance(b).ok().map(context::app_instance)
        }),
        case("app version", context::AppVersion::default().to_bytes(), |b| {
            context::AppVersion::parse(b).ok().map(|c| c.to_bytes())
        }),
    ]
}

fn session_bodies() -> Vec<Case> {
    let negotiate = vec![
        negotiate::Context::Preauth {
            hashes: vec![negotiate::HashAlgorithm(1)],
            salt: vec![5; 32],
        },
        negotiate::Context::Encryption(vec![negotiate::Cipher(2), negotiate::Cipher(1)]),
        negotiate::Context::Signing(vec![negotiate::SigningAlgorithm(2)]),
        negotiate::Context::NetName("server".into()),
        negotiate::Context::Compression {
            flags: 1,
            algorithms: vec![CompressionAlgorithm::LZNT1, CompressionAlgorithm::PATTERN_V1],
        },
    ];
    let dialects = vec![Dialect::SMB_3_0, Dialect::SMB_3_1_1];
    vec![
        case!(
            "negotiate request",
            negotiate::Request::parse,
            negotiate::Request { dialects, contexts: negotiate.clone(), ..Default::default() }
        ),
        case!(
            "negotiate response",
            negotiate::Response::parse,
            negotiate::Response {
                dialect: Dialect::SMB_3_1_1,
                security_buffer: DATA.to_vec(),
                contexts: negotiate,
                ..Default::default()
            }
        ),
        case!(
            "session setup request",
            session_setup::Request::parse,
            session_setup::Request {
                previous_session: SessionId(9),
                security_buffer: DATA,
                ..Default::default()
            }
        ),
        case!(
            "session setup response",
            session_setup::Response::parse,
            session_setup::Response { security_buffer: DATA, ..Default::default() }
        ),
        case!(
            "tree connect request",
            tree_connect::Request::parse,
            tree_connect::Request { flags: 0, path: "\\\\server\\share".into() }
        ),
        case!("tree connect response", tree_connect::Response::parse, {
            tree_connect::Response::default()
        }),
    ]
}

fn file_bodies() -> Vec<Case> {
    let contexts = vec![
        create::RawContext { name: context::names::MXAC, data: &[] },
        create::RawContext { name: context::names::RQLS, data: &[7; 32] },
    ];
    let element = lock::Element { offset: 1, length: 2, ..Default::default() };
    vec![
        case!(
            "create request",
            create::Request::parse,
            create::Request {
                name: "folder\\file".into(),
                contexts: contexts.clone(),
                ..Default::default()
            }
        ),
        case!(
            "create response",
            create::Response::parse,
            create::Response { file_id: ID, contexts, ..Default::default() }
        ),
        case!("close request", close::Request::parse, close::Request { flags: 1, file_id: ID }),
        case!("close response", close::Response::parse, close::Response::default()),
        case!("flush request", flush::Request::parse, flush::Request { file_id: ID }),
        case!(
            "read request",
            read::Request::parse,
            read::Request { length: 4096, file_id: ID, channel_info: DATA, ..Default::default() }
        ),
        case!("read response", read::Response::parse, read::Response { data: DATA, remaining: 0 }),
        case!("write response", write::Response::parse, write::Response { count: 5 }),
        case!(
            "lock request",
            lock::Request::parse,
            lock::Request { locks: vec![element; 3], ..Default::default() }
        ),
        case!(
            "ioctl request",
            ioctl::Request::parse,
            ioctl::Request { input: DATA, ..Default::default() }
        ),
        case!(
            "ioctl response",
            ioctl::Response::parse,
            ioctl::Response { output: DATA, ..Default::default() }
        ),
        case!("query directory request", query_directory::Request::parse, {
            query_directory::Request { pattern: "*.vhdx".into(), ..Default::default() }
        }),
        case!(
            "output response",
            query_directory::Response::parse,
            query_directory::Response { output: DATA }
        ),
        case!(
            "query info request",
            query_info::Request::parse,
            query_info::Request { input: DATA, ..Default::default() }
        ),
        case!(
            "set info request",
            set_info::Request::parse,
            set_info::Request { input: DATA, ..Default::default() }
        ),
        case!(
            "change notify request",
            notify::Request::parse,
            notify::Request { flags: 1, output_len: 9, file_id: ID, filter: 3 }
        ),
        case!(
            "lease break",
            oplock::Message::parse,
            oplock::Message::LeaseBreak(oplock::LeaseBreak {
                epoch: 2,
                flags: 1,
                key: [4; 16],
                current: 7,
                new: 1
            })
        ),
        case!(
            "error response",
            error::Response::parse,
            error::Response { context_count: 0, data: DATA }
        ),
        case!("header", Header::parse, Header::default()),
    ]
}

fn structures() -> Vec<Case> {
    let attribute = ea::Ea { flags: 0, name: "NAME".into(), value: vec![1, 2, 3] };
    let attributes = [attribute.clone(), attribute];
    let event = notify::Event { action: notify::Action::ADDED, name: "file".into() };
    let times: Vec<_> = (1..3).filter_map(snapshots::SnapshotTime::from_unix).collect();
    let interface = |address: &str| fsctl::NetworkInterface {
        index: 1,
        capability: fsctl::InterfaceCapability::RSS,
        link_speed: 1 << 30,
        address: address.parse().unwrap(),
    };
    let request = dfs::Request { level: 4, path: "\\server\\root".into() };
    let copy = offload::CopyChunks {
        key: [3; 24],
        chunks: vec![offload::CopyChunk { source: 1, target: 2, length: 3 }; 2],
    };
    let referral = dfs::Response {
        version: 3,
        prefix: "\\server\\root".into(),
        root: false,
        time_to_live: 300,
        targets: vec!["\\one\\share".into(), "\\two\\share".into()],
    };
    vec![
        case("extended attributes", built(|out| _ = ea::encode(attributes.iter(), 99, out)), |b| {
            let list = ea::parse(b).ok()?;
            Some(built(|out| _ = ea::encode(list.iter(), usize::MAX / 2, out)))
        }),
        case("changes", notify::Event::encode_all(&[event.clone(), event]), |b| {
            notify::Event::parse_all(b).ok().map(|list| notify::Event::encode_all(&list))
        }),
        case(
            "streams",
            built(|out| {
                file_info::encode_streams([("::$DATA", 1, 2), (":a:$DATA", 3, 4)].into_iter(), out)
            }),
            |b| {
                let list = file_info::parse_streams(b).ok()?;
                let list = list.iter().map(|(name, size, room)| (name.as_str(), *size, *room));
                Some(built(|out| file_info::encode_streams(list, out)))
            },
        ),
        case("snapshots", built(|out| snapshots::encode_list(&times, 999, out)), |b| {
            let (_, list) = snapshots::parse_list(b).ok()?;
            Some(built(|out| snapshots::encode_list(&list, usize::MAX, out)))
        }),
        case(
            "interfaces",
            built(|out| {
                fsctl::encode_interfaces(&[interface("10.0.0.1"), interface("fe80::1")], out)
            }),
            |b| {
                let list = fsctl::parse_interfaces(b).ok().filter(|list| !list.is_empty())?;
                Some(built(|out| fsctl::encode_interfaces(&list, out)))
            },
        ),
        case!(
            "validate negotiate",
            fsctl::ValidateNegotiate::parse,
            fsctl::ValidateNegotiate { dialects: vec![0x202, 0x311], ..Default::default() }
        ),
        case("copychunk", built(|out| copy.encode(out)), |b| {
            let copy = offload::CopyChunks::parse(b, 16).ok()?;
            Some(built(|out| copy.encode(out)))
        }),
        case("trim", built(|out| offload::encode_trim(&[(1, 2), (3, 4)], out)), |b| {
            let list = offload::parse_trim(b).ok()?;
            Some(built(|out| offload::encode_trim(&list, out)))
        }),
        case("zero data", built(|out| fsctl::encode_zero_data(5..9, out)), |b| {
            let range = fsctl::parse_zero_data(b).ok()?;
            Some(built(|out| fsctl::encode_zero_data(range, out)))
        }),
        case!(
            "rename",
            file_info::Rename::parse,
            file_info::Rename { replace: true, name: "folder\\name".into(), ..Default::default() }
        ),
        case!("basic", file_info::Basic::parse, file_info::Basic::default()),
        case!("standard", file_info::Standard::parse, file_info::Standard::default()),
        case!("network open", file_info::NetworkOpen::parse, file_info::NetworkOpen::default()),
        case("full size", built(|out| fs_info::Space::default().encode_full_size(out)), |b| {
            let space = fs_info::Space::parse_full_size(b).ok()?;
            Some(built(|out| space.encode_full_size(out)))
        }),
        case!("referral request", dfs::Request::parse, request.clone()),
        case("referral request, extended", built(|out| request.encode_ex(out)), |b| {
            let request = dfs::Request::parse_ex(b).ok()?;
            Some(built(|out| request.encode_ex(out)))
        }),
        case("referral", built(|out| referral.encode(out)), |b| {
            let referral = dfs::Response::parse(b, "\\server\\root\\file").ok()?;
            (!referral.targets.is_empty()).then(|| built(|out| referral.encode(out)))
        }),
        case("descriptor", built(|out| descriptor().encode(ALL_PARTS, out)), |b| {
            let descriptor = Descriptor::parse(b).ok()?;
            Some(built(|out| descriptor.encode(ALL_PARTS, out)))
        }),
    ]
}

const ALL_PARTS: u32 = parts::OWNER | parts::GROUP | parts::DACL | parts::SACL;

fn descriptor() -> Descriptor {
    let ace = |sid| Ace::new(ALLOW, AceFlags::NONE, create::Access::ALL, sid);
    Descriptor {
        owner: Some(Sid::administrators()),
        group: Some(Sid::users()),
        dacl: Some(vec![ace(Sid::everyone()), ace(Sid::users())]),
        sacl: Some(Vec::new()),
        ..Default::default()
    }
}

/// Messages of NTLM, SPNEGO and Kerberos, whose numbers are partly big-endian.
pub fn authentication() -> Vec<Case> {
    let list = token::mech_list(&[token::KERBEROS, token::NTLM]);
    let init =
        token::InitToken { mech_list: &list, mech_token: Some(&[9; 200]), mic: Some(&[8; 16]) };
    let response = token::RespToken {
        state: Some(token::State::Incomplete),
        mech: Some(token::NTLM),
        token: Some(&[9; 300]),
        mic: Some(&[8; 16]),
    };
    let pairs =
        av::AvBuilder::new().name(av::AvId::NB_COMPUTER, "SERVER").bytes(av::AvId::FLAGS, &[2; 4]);
    let challenge = ntlm::Challenge {
        flags: ntlm::Flags::UNICODE,
        server_challenge: [1; 8],
        target_name: "SERVER".into(),
        target_info: pairs.clone().finish(),
    };
    let authenticate = ntlm::Authenticate {
        flags: ntlm::Flags::UNICODE,
        lm_response: vec![0; 24],
        nt_response: vec![3; 40],
        domain: "DOMAIN".into(),
        user: "user".into(),
        workstation: "HOST".into(),
        encrypted_key: vec![4; 16],
        mic: Some([5; 16]),
    };
    vec![
        case("NegTokenInit", init.encode(), |b| {
            token::InitToken::parse(b).ok().map(|token| token.encode())
        }),
        case("NegTokenResp", response.encode(), |b| {
            token::RespToken::parse(b).ok().map(|token| token.encode())
        }),
        case("mechanisms", list.clone(), |b| {
            token::parse_mech_list(b).ok().map(|list| token::mech_list(&list))
        }),
        case("attributes", pairs.finish(), |b| {
            let list = av::AvList::parse(b).ok()?;
            let again = list.iter().fold(av::AvBuilder::new(), |all, (id, v)| all.bytes(id, v));
            Some(again.finish())
        }),
        case("CHALLENGE", challenge.encode(), |b| {
            ntlm::Challenge::parse(b).ok().map(|message| message.encode())
        }),
        case("AUTHENTICATE", authenticate.encode(), |b| {
            ntlm::Authenticate::parse(b).ok().map(|message| message.encode())
        }),
        case("keytab", keytab_file(), |b| {
            keytab::Keytab::parse(b).ok().map(|keytab| keytab.encode())
        }),
    ]
}

/// A keytab with one key for aes128-cts-hmac-sha1-96 and a hole.
fn keytab_file() -> Vec<u8> {
    let mut out = vec![5, 2, 0, 0, 0, 0];
    for part in [&b"\0\x02\0\x07EXAMPLE"[..], b"\0\x04cifs\0\x06server", &[0, 0, 0, 1], &[0; 4]] {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&[3, 0, 17, 0, 16]);
    out.extend_from_slice(&[6; 16]);
    out.extend_from_slice(&3u32.to_be_bytes());
    let len = (out.len() - 6) as u32;
    out[2..6].copy_from_slice(&len.to_be_bytes());
    out
}

/// Reparse points, what stands in them, and what a CREATE is told that met one.
pub fn reparse_points() -> Vec<Case> {
    use reparse::{LinkNames, ReparsePoint, ReparseRemoval, ReparseTag};
    let names = LinkNames {
        substitute: "..\\folder\\file".into(),
        print: "../folder/file".into(),
        flags: LinkNames::RELATIVE,
    };
    let link = built(|out| names.encode_symlink(out));
    // A named pipe of a client of NFS (MS-FSCC 2.1.2.6).
    let pipe = 0x4f46_4946u64.to_le_bytes();
    let foreign = ReparseTag(0x17);
    let guid = Some([7; 16]);
    vec![
        case!(
            "link",
            ReparsePoint::parse,
            ReparsePoint { tag: ReparseTag::SYMLINK, guid: None, data: &link }
        ),
        case!(
            "pipe of NFS",
            ReparsePoint::parse,
            ReparsePoint { tag: ReparseTag::NFS, guid: None, data: &pipe }
        ),
        case!("of a vendor", ReparsePoint::parse, {
            ReparsePoint { tag: foreign, guid, data: DATA }
        }),
        case!("removal", ReparseRemoval::parse, {
            ReparseRemoval { tag: ReparseTag::MOUNT_POINT, guid: None }
        }),
        case!("removal with an owner", ReparseRemoval::parse, {
            ReparseRemoval { tag: foreign, guid }
        }),
        case("names of a link", link.clone(), |b| {
            let names = LinkNames::parse_symlink(b).ok()?;
            Some(built(|out| names.encode_symlink(out)))
        }),
        case("names of a mount point", built(|out| names.encode_mount_point(out)), |b| {
            let names = LinkNames::parse_mount_point(b).ok()?;
            Some(built(|out| names.encode_mount_point(out)))
        }),
        case!(
            "answer",
            error::SymbolicLink::parse,
            error::SymbolicLink { unparsed_path_len: 6, link: &link }
        ),
        case("context of an error", error::in_context(DATA), |b| {
            error::of_context(b).ok().filter(|data| !data.is_empty()).map(error::in_context)
        }),
    ]
}

/// Bodies of SMB2 messages, and what stands in them.
pub fn messages() -> Vec<Case> {
    session_bodies().into_iter().chain(file_bodies()).chain(structures()).collect()
}
