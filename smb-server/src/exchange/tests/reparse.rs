//! Reparse points as a client meets them: set, told, taken away, and never followed
//! (MS-FSA 2.1.5.10.3, .14, .37, 2.1.5.1; MS-SMB2 2.2.2.2.1, 3.3.5.9).

use smb_protocol::{
    crypto::SigningAlgorithm,
    fscc::{
        FileAttributes,
        directory::{CLASSES, Entry},
        ea::{self, Ea},
        file_info::Basic,
        reparse::{LinkNames, MAX_LEN, ReparsePoint, ReparseTag},
    },
    msg::{
        context,
        create::{Access, CreateOptions, Disposition, ShareAccess},
        error::{self, SymbolicLink},
        notify::{Action, ChangeFilter},
    },
};

use super::{
    files::{FILE, FOLDER, logged_in},
    related::related,
    signer::SigningClient,
    *,
};

const POINT: CreateOptions = CreateOptions::OPEN_REPARSE_POINT;
const OK: NtStatus = NtStatus::SUCCESS;
const DATA_INVALID: NtStatus = NtStatus::IO_REPARSE_DATA_INVALID;
const MISMATCH: NtStatus = NtStatus::IO_REPARSE_TAG_MISMATCH;
const DENIED: NtStatus = NtStatus::ACCESS_DENIED;
const STOPPED: NtStatus = NtStatus::STOPPED_ON_SYMLINK;
const NOT_HANDLED: NtStatus = NtStatus::IO_REPARSE_TAG_NOT_HANDLED;
const SET: FsctlCode = FsctlCode::SET_REPARSE_POINT;
const DELETE: FsctlCode = FsctlCode::DELETE_REPARSE_POINT;
/// A tag that Microsoft did not give out.
const FOREIGN: ReparseTag = ReparseTag(0x17);

/// A buffer with a tag.
pub(super) fn buffer(tag: ReparseTag, data: &[u8]) -> Vec<u8> {
    let guid = (!tag.is_microsoft()).then_some([7; 16]);
    let mut out = Vec::new();
    ReparsePoint { tag, guid, data }.encode(&mut out);
    out
}

/// A symbolic link.
pub(super) fn link(target: &str, flags: u32) -> Vec<u8> {
    let names = LinkNames { substitute: target.into(), print: target.into(), flags };
    let mut data = Vec::new();
    names.encode_symlink(&mut data);
    buffer(ReparseTag::SYMLINK, &data)
}

fn mount_point() -> Vec<u8> {
    let names = LinkNames { substitute: "\\??\\C:\\x".into(), ..LinkNames::default() };
    let mut data = Vec::new();
    names.encode_mount_point(&mut data);
    buffer(ReparseTag::MOUNT_POINT, &data)
}

/// One extended attribute.
fn attribute(name: &str) -> Vec<u8> {
    let mut list = Vec::new();
    let one = Ea { flags: 0, name: name.into(), value: vec![1; 4] };
    ea::encode([one].iter(), usize::MAX, &mut list);
    list
}

impl Direct {
    /// Makes a file or folder a reparse point, and closes it.
    pub(super) fn point(&mut self, name: &str, kind: CreateOptions, buffer: &[u8]) {
        let made = self.create(name, Disposition::OPEN_IF, kind | POINT).unwrap();
        assert_eq!(self.fsctl(made, SET, buffer), OK, "{name}");
        self.close(made);
    }

    /// How a CREATE that opens what is there is refused, and what it is told.
    fn refused(&mut self, name: &str, options: CreateOptions) -> (NtStatus, Vec<u8>) {
        let request = create::Request {
            access: Access::ALL,
            share: ShareAccess(7),
            disposition: Disposition::OPEN,
            options,
            name: name.into(),
            impersonation: 2,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out));
        let error = error::Response::parse(&body).unwrap();
        assert_eq!(error.context_count, 0);
        (header.status, error.data.to_vec())
    }

    fn get_point(&mut self, file_id: FileId, max_output: u32) -> (NtStatus, Vec<u8>) {
        let code = FsctlCode::GET_REPARSE_POINT;
        let request = ioctl::Request { code, file_id, max_output, flags: 1, ..Default::default() };
        let (header, body) = self.ask(Command::IOCTL, |out| request.encode(out));
        let output = ioctl::Response::parse(&body).map(|r| r.output.to_vec()).unwrap_or_default();
        (header.status, output)
    }

    /// Attributes and tag (MS-FSCC 2.4.6).
    fn tag(&mut self, file_id: FileId) -> (FileAttributes, u32) {
        let raw = self.query(file_id, InfoClass::ATTRIBUTE_TAG).unwrap();
        let word = |at: usize| u32::from_le_bytes(*raw[at..].first_chunk().unwrap());
        (FileAttributes(word(0)), word(4))
    }
}

#[test]
fn a_reparse_point_is_set_told_and_taken_away() {
    let mut direct = logged_in();
    for (number, buffer) in [
        link("..\\elsewhere", 1),
        buffer(ReparseTag::NFS, &0x4f46_4946u64.to_le_bytes()),
        buffer(ReparseTag::LX_CHR, &[]),
        buffer(FOREIGN, b"what a vendor keeps"),
        // The longest that there is, wherever it is kept.
        buffer(ReparseTag(0x9000_001a), &vec![0x5a; MAX_LEN - 8]),
        mount_point(),
    ]
    .iter()
    .enumerate()
    {
        let tag = u32::from_le_bytes(*buffer.first_chunk().unwrap());
        let removal = match buffer[3] >> 7 {
            1 => [&buffer[..4], &[0; 4]].concat(),
            _ => [&buffer[..4], &[0; 4], &[7; 16]].concat(),
        };
        for kind in [FILE, FOLDER] {
            if kind == FILE && tag == ReparseTag::MOUNT_POINT.0 {
                continue;
            }
            let name = format!("{number} {kind:?}");
            let made = direct.create(&name, Disposition::CREATE, kind).unwrap();
            let plain = direct.tag(made);
            assert!(!plain.0.has(FileAttributes::REPARSE_POINT) && plain.1 == 0);
            assert_eq!(direct.get_point(made, 4096).0, NtStatus::NOT_A_REPARSE_POINT);
            assert_eq!(direct.fsctl(made, SET, buffer), OK, "{name}");
            direct.close(made);
            // It is there for who opens it anew, and nothing special is on the disk.
            let facts = std::fs::symlink_metadata(direct.files().join(&name)).unwrap();
            assert_eq!((facts.is_file(), facts.is_dir()), (kind == FILE, kind == FOLDER));
            let open = direct.create(&name, Disposition::OPEN, kind | POINT).unwrap();
            let (attributes, told) = direct.tag(open);
            assert!(attributes.has(FileAttributes::REPARSE_POINT));
            assert_eq!((told, direct.get_point(open, 20_000)), (tag, (OK, buffer.clone())));
            // As much as there is room for, and at least the header.
            let least = buffer.len().min(if buffer[3] >> 7 == 1 { 8 } else { 24 });
            assert_eq!(direct.get_point(open, least as u32 - 1).0, NtStatus::BUFFER_TOO_SMALL);
            let (status, part) = direct.get_point(open, least as u32);
            assert_eq!(part, buffer[..least]);
            let cut = least < buffer.len();
            assert_eq!(status, if cut { NtStatus::BUFFER_OVERFLOW } else { OK });
            assert_eq!(direct.fsctl(open, DELETE, &removal), OK);
            assert_eq!(direct.tag(open), plain);
            assert_eq!(direct.get_point(open, 4096).0, NtStatus::NOT_A_REPARSE_POINT);
            if kind == FILE {
                assert_eq!(direct.streams(open), ["::$DATA"]);
            }
            direct.close(open);
            let open = direct.create(&name, Disposition::OPEN, kind).unwrap();
            direct.close(open);
        }
    }
}

/// MS-FSA 2.1.5.10.37, MS-FSCC 2.3.82.
#[test]
fn what_cannot_be_a_reparse_point_is_refused_for_its_reason() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    let fifo = buffer(ReparseTag::LX_FIFO, &[]);
    let long = |len: usize| buffer(ReparseTag::NFS, &vec![0; len - 8]);
    let mut without_guid = buffer(FOREIGN, &[]);
    without_guid.truncate(8);
    let mut of_nobody = buffer(FOREIGN, &[]);
    of_nobody[8..].fill(0);
    let cut_link = buffer(ReparseTag::SYMLINK, b"\0\0\x08\0\0\0\0\0\0\0\0\0..");
    for (id, input, want) in [
        (file, vec![], NtStatus::INVALID_BUFFER_SIZE),
        (file, vec![0x24; 1], DATA_INVALID),
        (file, fifo[..7].to_vec(), DATA_INVALID),
        (file, [&fifo[..], &[0]].concat(), DATA_INVALID),
        (file, long(MAX_LEN + 1), DATA_INVALID),
        (file, vec![0; 24], DATA_INVALID),
        (file, [&[1][..], &[0; 23]].concat(), DATA_INVALID),
        (file, without_guid, DATA_INVALID),
        (file, of_nobody, DATA_INVALID),
        (file, mount_point(), NtStatus::NOT_A_DIRECTORY),
        (file, cut_link.clone(), DATA_INVALID),
        (folder, cut_link, DATA_INVALID),
        (folder, buffer(ReparseTag::MOUNT_POINT, &[]), DATA_INVALID),
    ] {
        assert_eq!(direct.fsctl(id, SET, &input), want, "{:x?}", &input[..input.len().min(40)]);
    }
    // A link has no content of its own; what else is a file may have.
    direct.store(file, b"content");
    assert_eq!(direct.fsctl(file, SET, &link("x", 1)), DATA_INVALID);
    assert_eq!(direct.fsctl(file, SET, &buffer(FOREIGN, b"x")), OK);
    assert_eq!(direct.load(file), b"content");
    // Whose it is stays so, and its owner may change it.
    for (input, want) in [
        (fifo.clone(), MISMATCH),
        ([&buffer(FOREIGN, &[])[..8], &[8; 16]].concat(), NtStatus::REPARSE_ATTRIBUTE_CONFLICT),
        (buffer(FOREIGN, b"another"), OK),
    ] {
        assert_eq!(direct.fsctl(file, SET, &input), want);
    }
    assert_eq!(direct.get_point(file, 4096).1[24..], *b"another");
    // A folder that holds something leads nowhere else, and the share itself never does.
    let within = direct.create("d\\f", Disposition::CREATE, FILE).unwrap();
    assert_eq!(direct.fsctl(folder, SET, &fifo), NtStatus::DIRECTORY_NOT_EMPTY);
    direct.close(within);
    let root = direct.create("", Disposition::OPEN, FOLDER).unwrap();
    assert_eq!(direct.fsctl(root, SET, &fifo), NtStatus::INVALID_PARAMETER);
}

/// MS-FSA 2.1.5.10.3, MS-FSCC 2.3.6.
#[test]
fn a_reparse_point_is_taken_away_by_its_owner_alone() {
    let mut direct = logged_in();
    let plain = direct.create("plain", Disposition::CREATE, FILE).unwrap();
    direct.point("f", FILE, &buffer(FOREIGN, b"x"));
    direct.point("l", FILE, &link("x", 1));
    let [foreign, link] =
        ["f", "l"].map(|name| direct.create(name, Disposition::OPEN, FILE | POINT).unwrap());
    let tag = |tag: u32, more: &[u8]| [&tag.to_le_bytes(), &[0; 4], more].concat();
    let symlink = tag(ReparseTag::SYMLINK.0, &[]);
    for (id, input, want) in [
        (plain, symlink.clone(), NtStatus::NOT_A_REPARSE_POINT),
        (link, tag(0, &[]), NtStatus::IO_REPARSE_TAG_INVALID),
        (link, tag(1, &[]), NtStatus::IO_REPARSE_TAG_INVALID),
        (link, symlink[..7].to_vec(), DATA_INVALID),
        (link, tag(ReparseTag::SYMLINK.0, &[0]), DATA_INVALID),
        (link, [&symlink[..4], &[1, 0, 0, 0]].concat(), DATA_INVALID),
        (link, tag(ReparseTag::NFS.0, &[]), MISMATCH),
        (link, tag(FOREIGN.0, &[7; 16]), MISMATCH),
        (foreign, symlink.clone(), MISMATCH),
        (foreign, tag(FOREIGN.0, &[]), DATA_INVALID),
        (foreign, tag(FOREIGN.0, &[0; 16]), DATA_INVALID),
        (foreign, tag(FOREIGN.0, &[8; 16]), NtStatus::REPARSE_ATTRIBUTE_CONFLICT),
        (foreign, tag(FOREIGN.0, &[7; 16]), OK),
        (link, symlink, OK),
    ] {
        assert_eq!(direct.fsctl(id, DELETE, &input), want, "{input:x?}");
    }
    assert_eq!(direct.load(foreign), b"");
}

/// MS-FSA 2.1.5.10.37, 2.1.5.15.6: extended attributes and reparse points exclude each other, but for
/// those of the Windows Subsystem for Linux, which are what they are by both.
#[test]
fn extended_attributes_are_for_special_files_of_linux_alone() {
    let mut direct = logged_in();
    let eas = attribute("$LXMOD");
    for (number, (tag, both)) in [
        (ReparseTag::NFS, false),
        (FOREIGN, false),
        (ReparseTag::LX_FIFO, true),
        (ReparseTag::LX_BLK, true),
        (ReparseTag::AF_UNIX, true),
        (ReparseTag::LX_SYMLINK, true),
    ]
    .into_iter()
    .enumerate()
    {
        let want = if both { OK } else { NtStatus::EAS_NOT_SUPPORTED };
        let point = buffer(tag, &[2, 0, 0, 0, b'x']);
        // With the attributes first, as Linux' client has it.
        let request = create::Request {
            access: Access::ALL,
            share: ShareAccess(7),
            disposition: Disposition::CREATE,
            options: FILE | POINT,
            name: format!("first {number}"),
            impersonation: 2,
            contexts: vec![create::RawContext { name: context::names::EXTA, data: &eas }],
            ..Default::default()
        };
        let (header, body) = direct.ask(Command::CREATE, |out| request.encode(out));
        assert_eq!(header.status, OK);
        let first = create::Response::parse(&body).unwrap().file_id;
        assert_eq!(direct.fsctl(first, SET, &point), want, "{tag:?}");
        // And behind it.
        let name = format!("then {number}");
        direct.point(&name, FILE, &point);
        let then = direct.create(&name, Disposition::OPEN, FILE | POINT).unwrap();
        assert_eq!(direct.set(then, InfoClass::FULL_EA, &eas), want, "{tag:?}");
        let overwrite = create::Request {
            disposition: Disposition::OVERWRITE,
            name,
            contexts: vec![create::RawContext { name: context::names::EXTA, data: &eas }],
            ..request.clone()
        };
        let (header, _) = direct.ask(Command::CREATE, |out| overwrite.encode(out));
        assert_eq!(header.status, want, "{tag:?}");
        assert_eq!(direct.tag(then).1, tag.0, "what is overwritten stays what it is");
    }
}

/// MS-FSA 2.1.5.6.3, 2.1.5.12: every class that can tells of it.
#[test]
fn listings_and_classes_tell_the_tag() {
    let mut direct = logged_in();
    direct.point("link", FILE, &link("file", 1));
    direct.point("fifo", FILE, &buffer(ReparseTag::LX_FIFO, &[]));
    direct.create("file", Disposition::CREATE, FILE).unwrap();
    let fifo = direct.create("fifo", Disposition::OPEN, FILE | POINT).unwrap();
    assert_eq!(direct.set(fifo, InfoClass::FULL_EA, &attribute("$LXMOD")), OK);
    let root = direct.create("", Disposition::OPEN, FOLDER).unwrap();
    let size = 8 + 6 + 1 + 4;
    for class in CLASSES {
        let entries = direct.entries(root, class, "*", 4096);
        let of = |name: &str| entries.iter().find(|e| e.name == name).cloned().unwrap();
        let seen = ["file", "link", "fifo"].map(|name| {
            let Entry { attributes, ea_size, reparse_tag, .. } = of(name);
            (attributes.has(FileAttributes::REPARSE_POINT), ea_size, reparse_tag)
        });
        let tags = (ReparseTag::SYMLINK.0, ReparseTag::LX_FIFO.0);
        let want = match class {
            InfoClass::NAMES => [(false, 0, 0); 3],
            InfoClass::DIRECTORY => [(false, 0, 0), (true, 0, 0), (true, 0, 0)],
            // The tag stands where the size would.
            InfoClass::FULL_DIRECTORY
            | InfoClass::BOTH_DIRECTORY
            | InfoClass::ID_FULL_DIRECTORY
            | InfoClass::ID_BOTH_DIRECTORY => [(false, 0, 0), (true, 0, tags.0), (true, 0, tags.1)],
            _ => [(false, 0, 0), (true, 0, tags.0), (true, size, tags.1)],
        };
        assert_eq!(seen, want, "{class:?}");
    }
    // Attributes in classes of one file, at the places that MS-FSCC 2.4 draws.
    for (class, at) in [(InfoClass::BASIC, 32), (InfoClass::ALL, 32), (InfoClass::NETWORK_OPEN, 48)]
    {
        assert_eq!(direct.query(fifo, class).unwrap()[at + 1] & 4, 4, "{class:?}");
    }
    // The volume says that it has them (MS-FSCC 2.5.1), and each change of attributes leaves them.
    let (_, attributes) = direct.file_system(fifo, 5, 100);
    assert_eq!(attributes[0] & 0x80, 0x80);
    let mut basic = Vec::new();
    Basic { attributes: FileAttributes::HIDDEN, ..Basic::default() }.encode(&mut basic);
    assert_eq!(direct.set(fifo, InfoClass::BASIC, &basic), OK);
    let (attributes, tag) = direct.tag(fifo);
    assert!(attributes.has(FileAttributes::REPARSE_POINT | FileAttributes::HIDDEN));
    assert_eq!(tag, ReparseTag::LX_FIFO.0);
    // No client makes one by asking for the attribute.
    let file = direct.create("file", Disposition::OPEN, FILE).unwrap();
    let mut basic = Vec::new();
    Basic { attributes: FileAttributes::REPARSE_POINT, ..Basic::default() }.encode(&mut basic);
    assert_eq!(direct.set(file, InfoClass::BASIC, &basic), OK);
    assert!(!direct.tag(file).0.has(FileAttributes::REPARSE_POINT));
}

/// MS-FSA 2.1.5.6.2, 2.1.5.12.25: the index of all reparse points is below the root of a volume, which
/// no share is.
#[test]
fn the_index_of_all_reparse_points_is_in_no_share() {
    let mut direct = logged_in();
    direct.point("link", FILE, &link("file", 1));
    let name = "$Extend\\$Reparse:$R:$INDEX_ALLOCATION";
    let index = direct.create(name, Disposition::OPEN, CreateOptions::NONE);
    assert_eq!(index, Err(NtStatus::OBJECT_PATH_NOT_FOUND));
    let root = direct.create("", Disposition::OPEN, FOLDER).unwrap();
    let request = query_directory::Request {
        class: InfoClass::REPARSE_POINT,
        file_id: root,
        output_len: 4096,
        ..Default::default()
    };
    let (header, _) = direct.ask(Command::QUERY_DIRECTORY, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::INVALID_INFO_CLASS);
    let link = direct.create("link", Disposition::OPEN, FILE | POINT).unwrap();
    assert_eq!(direct.query(link, InfoClass::REPARSE_POINT), Err(NtStatus::NOT_SUPPORTED));
}

/// MS-SMB2 3.3.5.9, 2.2.2.2.1.1: links are followed by the client, which is told where they lead and
/// what of its name is left.
#[test]
fn a_symbolic_link_stops_a_create_and_says_where_it_leads() {
    let mut direct = logged_in();
    direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    direct.create("d\\target", Disposition::CREATE, FILE).unwrap();
    direct.point("d\\Link", FILE, &link("target", 1));
    direct.point("d\\Folder", FOLDER, &link("\\??\\UNC\\other\\share", 0));
    for (name, target, left) in [
        ("d\\Link", "target", ""),
        ("D\\LINK", "target", ""),
        ("d\\Link:stream", "target", ":stream"),
        ("d\\Link::$DATA", "target", "::$DATA"),
        ("d\\Link\\a\\b", "target", "\\a\\b"),
        ("d\\LINK\\a", "target", "\\a"),
        ("d\\.\\Link\\.\\a", "target", "\\.\\a"),
        ("d\\Folder", "\\??\\UNC\\other\\share", ""),
        ("d\\Folder\\", "\\??\\UNC\\other\\share", "\\"),
        ("d\\Folder\\é.txt", "\\??\\UNC\\other\\share", "\\é.txt"),
        ("d\\folder\\x\\y\\z", "\\??\\UNC\\other\\share", "\\x\\y\\z"),
    ] {
        for options in [CreateOptions::NONE, FOLDER, FILE] {
            let (status, data) = direct.refused(name, options);
            assert_eq!(status, STOPPED, "{name} {options:?}");
            let told = SymbolicLink::parse(&data).unwrap();
            let want = left.encode_utf16().count() * 2;
            assert_eq!(usize::from(told.unparsed_path_len), want, "{name}");
            let names = LinkNames::parse_symlink(told.link).unwrap();
            assert_eq!((names.substitute.as_str(), names.print.as_str()), (target, target));
            assert_eq!(names.flags, u32::from(target == "target"));
        }
    }
    // Whatever is to become of the name, of what is there and of what is not.
    for disposition in (0..=5).map(Disposition) {
        for name in ["d\\Link", "d\\Folder", "d\\Folder\\new", "d\\Link\\new", "d\\Folder\\n\\m"] {
            let made = direct.create(name, disposition, CreateOptions::NONE);
            assert_eq!(made, Err(STOPPED), "{name} {disposition:?}");
        }
    }
    assert!(std::fs::read_dir(direct.files().join("d/Folder")).unwrap().next().is_none());
    // In the middle the option does not help; at the end it opens the link itself.
    let through = direct.create("d\\Folder\\x", Disposition::OPEN_IF, FILE | POINT);
    assert_eq!(through, Err(STOPPED));
    for (name, kind) in [("d\\Link", FILE), ("d\\Folder", FOLDER)] {
        direct.create(name, Disposition::OPEN, kind | POINT).unwrap();
        let taken = direct.create(name, Disposition::CREATE, kind | POINT);
        assert_eq!(taken, Err(NtStatus::OBJECT_NAME_COLLISION));
    }
    direct.create("d\\Link:stream", Disposition::CREATE, FILE | POINT).unwrap();
}

/// MS-SMB2 2.2.2.1: 3.1.1 has error data in a context.
#[test]
fn error_data_stand_in_a_context_at_the_newest_dialect() {
    let mut direct = logged_in();
    direct.point("l", FILE, &link("target", 1));
    let server = direct.exchange.server.clone();
    let algorithms = &[SigningAlgorithm::AesCmac];
    let mut line = SigningClient::new(&server, 9, Dialect::SMB_3_1_1, algorithms);
    let known = line.login();
    let key = Some(&known.signing);
    let connect = tree_connect::Request { flags: 0, path: "\\\\s\\s".into() };
    let (header, ..) = line.ask(Command::TREE_CONNECT, known.id, key, |out| connect.encode(out));
    line.caller.tree = header.tree_id();
    let request = create::Request {
        access: Access::READ_DATA,
        share: ShareAccess(7),
        disposition: Disposition::OPEN,
        name: "l\\x".into(),
        impersonation: 2,
        ..Default::default()
    };
    let (header, _, answer) = line.ask(Command::CREATE, known.id, key, |out| request.encode(out));
    assert_eq!(header.status, STOPPED);
    let error = error::Response::parse(&answer[HEADER_LEN..]).unwrap();
    assert_eq!(error.context_count, 1);
    let told = SymbolicLink::parse(error::of_context(error.data).unwrap()).unwrap();
    assert_eq!(told.unparsed_path_len, 4);
    assert_eq!(LinkNames::parse_symlink(told.link).unwrap().substitute, "target");
}

/// What nothing here understands leads nowhere, at the end of a name and on the way.
#[test]
fn other_tags_are_not_handled() {
    let mut direct = logged_in();
    let fifo = buffer(ReparseTag::LX_FIFO, &[]);
    direct.point("mount", FOLDER, &mount_point());
    direct.point("fifo", FILE, &fifo);
    direct.point("vendor", FOLDER, &buffer(FOREIGN, b"x"));
    for name in ["mount", "mount\\x", "MOUNT\\x\\y", "fifo", "fifo\\x", "fifo:s", "vendor\\new"] {
        assert_eq!(direct.refused(name, CreateOptions::NONE), (NOT_HANDLED, vec![]), "{name}");
        let made = direct.create(name, Disposition::OPEN_IF, CreateOptions::NONE);
        assert_eq!(made, Err(NOT_HANDLED), "{name}");
    }
    // A folder whose tag says that it holds something is entered (the D bit, MS-FSCC 2.1.2.1).
    let cloud = buffer(ReparseTag(0x9000_101a), b"x");
    direct.point("cloud", FOLDER, &cloud);
    assert_eq!(direct.create("cloud", Disposition::OPEN, FOLDER), Err(NOT_HANDLED));
    for _ in 0..2 {
        let within = direct.create("cloud\\Sub", Disposition::OPEN_IF, FOLDER).unwrap();
        direct.close(within);
        let within = direct.create("CLOUD\\sub\\f", Disposition::OPEN_IF, FILE).unwrap();
        direct.close(within);
    }
}

/// Rename, hard link and deletion are of the point itself; what it leads to is not touched.
#[test]
fn names_of_a_reparse_point_are_its_own() {
    let mut direct = logged_in();
    let target = direct.create("target", Disposition::CREATE, FILE).unwrap();
    direct.store(target, b"content");
    direct.point("l", FILE, &link("target", 1));
    direct.point("away", FOLDER, &link("elsewhere", 1));
    direct.create("other", Disposition::CREATE, FILE).unwrap();
    let open = direct.create("l", Disposition::OPEN, FILE | POINT).unwrap();
    assert_eq!(direct.rename(open, InfoClass::LINK, 0, "second"), OK);
    assert_eq!(direct.rename(open, InfoClass::RENAME, 0, "first"), OK);
    // No new name leads through a link, nor through what is none.
    for class in [InfoClass::LINK, InfoClass::RENAME, InfoClass::LINK_EX, InfoClass::RENAME_EX] {
        assert_eq!(direct.rename(open, class, 0, "away\\x"), STOPPED, "{class:?}");
        assert_eq!(direct.rename(open, class, 0, "away\\x\\y"), STOPPED, "{class:?}");
    }
    direct.close(open);
    for name in ["first", "second"] {
        assert_eq!(direct.refused(name, FILE).0, STOPPED);
        let goes = FILE | CreateOptions::DELETE_ON_CLOSE;
        assert_eq!(direct.refused(name, goes).0, STOPPED);
        let open = direct.create(name, Disposition::OPEN, goes | POINT).unwrap();
        direct.close(open);
        assert_eq!(direct.refused(name, FILE | POINT).0, NtStatus::OBJECT_NAME_NOT_FOUND);
    }
    // One that is in the place of a new name goes, not what it leads to.
    direct.point("l", FILE, &link("target", 1));
    let other = direct.create("other", Disposition::OPEN, FILE).unwrap();
    assert_eq!(direct.rename(other, InfoClass::RENAME, 1, "l"), OK);
    assert_eq!(direct.load(target), b"content");
    let folder = direct.create("away", Disposition::OPEN, FOLDER | POINT).unwrap();
    assert_eq!(direct.rename(folder, InfoClass::RENAME, 0, "further"), OK);
    assert_eq!(direct.set(folder, InfoClass::DISPOSITION, &[1]), OK);
    direct.close(folder);
    assert_eq!(direct.refused("further", FOLDER | POINT).0, NtStatus::OBJECT_NAME_NOT_FOUND);
}

#[test]
fn who_watches_a_folder_is_told() {
    let mut direct = logged_in();
    direct.create("f", Disposition::CREATE, FILE).unwrap();
    let changed = vec![(Action::MODIFIED, "f".to_owned())];
    let told = direct.events(ChangeFilter::ATTRIBUTES, |d| d.point("f", FILE, &link("x", 1)));
    assert_eq!(told, changed);
    for filter in [ChangeFilter::ATTRIBUTES, ChangeFilter::LAST_ACCESS] {
        let told = direct.events(filter, |d| {
            let open = d.create("f", Disposition::OPEN, FILE | POINT).unwrap();
            let removal = [&link("", 1)[..4], &[0; 4]].concat();
            assert_eq!(d.fsctl(open, DELETE, &removal), OK);
            d.close(open);
        });
        assert_eq!(told, changed, "{filter:?}");
        direct.point("f", FILE, &link("x", 1));
    }
}

/// MS-FSA 2.1.5.10.3, .37: what was once is told, and nothing is changed in it, nor on a share that may
/// only be read.
#[test]
fn reparse_points_of_the_past_and_of_shares_that_are_read_stay() {
    const MOMENT: &str = "@GMT-2026.01.02-03.04.05";
    let mut direct =
        Direct::with("[[share]]\nname='ro'\npath='files'\nusers=['u']\nread_only=true\n");
    direct.login();
    direct.point("f", FILE, &link("x", 1));
    let snapshot = direct.files().join(".bulkhead/snapshots").join(MOMENT);
    std::fs::create_dir_all(&snapshot).unwrap();
    let kept = std::process::Command::new("cp")
        .args(["--preserve=xattr", "--"])
        .args([direct.files().join("f"), snapshot.join("f")])
        .status();
    assert!(kept.unwrap().success());
    let past = format!("{MOMENT}\\f");
    let removal = [&link("", 1)[..4], &[0; 4]].concat();
    let (status, data) = direct.refused(&format!("{past}\\left"), CreateOptions::NONE);
    let told = SymbolicLink::parse(&data).unwrap();
    assert_eq!((status, told.unparsed_path_len), (STOPPED, 10));
    let open = |direct: &mut Direct, name: &str, access| {
        direct.create_as(name, access, Disposition::OPEN, FILE | POINT).unwrap()
    };
    let reads = Access::READ_DATA | Access::READ_ATTRIBUTES;
    let then = open(&mut direct, &past, Access::ALL);
    let write = open(&mut direct, "f", Access::WRITE_ATTRIBUTES);
    let read = open(&mut direct, "f", reads);
    let live = direct.tree;
    let only = direct.connect("ro");
    let read_only = open(&mut direct, "f", reads);
    for (tree, id, want) in [
        (live, then, NtStatus::MEDIA_WRITE_PROTECTED),
        (live, read, DENIED),
        (only, read_only, DENIED),
        (live, write, OK),
    ] {
        direct.tree = tree;
        assert_eq!(direct.get_point(id, 4096), (OK, link("x", 1)));
        assert_eq!(direct.fsctl(id, SET, &link("x", 1)), want);
        assert_eq!(direct.fsctl(id, DELETE, &removal), want);
    }
}

/// A related compound, as Linux' client makes a special file.
#[test]
fn a_link_is_made_and_looked_at_in_one_message() {
    let mut direct = logged_in();
    let create = create::Request {
        access: Access(0x0011_0180),
        share: ShareAccess(7),
        disposition: Disposition::CREATE,
        options: FILE | POINT,
        name: "fifo".into(),
        impersonation: 2,
        ..Default::default()
    };
    let input = buffer(ReparseTag::NFS, &0x4f46_4946u64.to_le_bytes());
    let set = ioctl::Request {
        code: SET,
        file_id: FileId::RELATED,
        input: &input,
        flags: 1,
        ..Default::default()
    };
    let query = query_info::Request {
        info_type: query_info::InfoType::FILE,
        class: InfoClass::ALL,
        output_len: 4096,
        file_id: FileId::RELATED,
        ..Default::default()
    };
    let closing = close::Request { flags: 1, file_id: FileId::RELATED };
    let answers = related(
        &mut direct,
        [
            (Command::CREATE, &|out| create.encode(out)),
            (Command::IOCTL, &|out| set.encode(out)),
            (Command::QUERY_INFO, &|out| query.encode(out)),
            (Command::CLOSE, &|out| closing.encode(out)),
        ],
    );
    let statuses: Vec<_> = answers.iter().map(|(header, _)| header.status).collect();
    assert_eq!(statuses, [OK; 4]);
    let all = query_directory::Response::parse(&answers[2].1).unwrap().output;
    assert_eq!(all[33] & 4, 4, "FileAllInformation has the attribute");
    assert_eq!(direct.refused("fifo", CreateOptions::NONE).0, NOT_HANDLED);
}

/// A link of the host, made by an administrator of this machine, is what it leads to, and leads
/// nowhere that no name leads.
#[test]
fn links_of_the_host_reach_nothing_that_names_hide() {
    let mut direct = Direct::with(
        "[[dfs]]\npath='\\\\s\\Disks'\ntargets=['\\\\other\\share']\n\
         [[dfs]]\npath='\\\\s\\old\\vms'\ntargets=['\\\\other\\share']\n",
    );
    direct.login();
    let files = direct.files();
    let symlink = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, files.join(name)).unwrap();
    };
    std::fs::create_dir_all(files.join("real/sub")).unwrap();
    std::fs::write(files.join("real/sub/f"), "content").unwrap();
    std::fs::write(direct.folder.path().join("secret"), "secret").unwrap();
    let with_stream = direct.create("real\\sub\\f:s", Disposition::CREATE, FILE).unwrap();
    direct.close(with_stream);
    for folder in ["disks", "old/vms/deep"] {
        std::fs::create_dir_all(files.join(folder)).unwrap();
        std::fs::write(files.join(folder).join("f"), "elsewhere").unwrap();
    }
    symlink("real/sub", "good");
    symlink("sub/f", "real/file");
    symlink("../../good", "real/sub/round");
    symlink(".bulkhead", "private");
    symlink(".bulkhead/streams", "streams");
    symlink("../.bulkhead", "real/private");
    symlink("private", "chain");
    symlink("disks", "alias");
    symlink("disks/f", "file");
    symlink("old/vms/deep", "deep");
    symlink("old", "above");
    symlink("../secret", "out");
    symlink("missing", "nowhere");
    symlink("real/missing", "old/nowhere");
    std::fs::create_dir(files.join("old/vms2")).unwrap();
    for (name, kind) in [
        ("good", FOLDER),
        ("good\\f", FILE),
        ("GOOD\\F", FILE),
        ("real\\file", FILE),
        ("good\\round\\f", FILE),
        ("above", FOLDER),
    ] {
        let open = direct.create(name, Disposition::OPEN, kind);
        direct.close(open.unwrap_or_else(|status| panic!("{name}: {status}")));
    }
    let made = direct.create("good\\new", Disposition::CREATE, FILE).unwrap();
    assert!(files.join("real/sub/new").exists());
    for name in [
        "private",
        "PRIVATE",
        "private\\streams",
        "private\\new",
        "streams",
        "streams\\x",
        "real\\private\\streams",
        "Real\\Private\\x",
        "chain",
        "chain\\streams",
        "alias",
        "alias\\f",
        "alias\\new",
        "Alias\\F",
        "file",
        "deep",
        "deep\\f",
        "above\\vms",
        "above\\vms\\deep\\f",
        "ABOVE\\VMS\\new",
        "out",
        "nowhere",
        "NoWhere",
        "nowhere\\x",
        "old\\nowhere",
    ] {
        for disposition in [Disposition::OPEN, Disposition::OPEN_IF, Disposition::OVERWRITE_IF] {
            for options in [CreateOptions::NONE, FOLDER, POINT] {
                let status = direct.create(name, disposition, options).unwrap_err();
                let none = matches!(status, DENIED | NtStatus::OBJECT_PATH_NOT_FOUND);
                let cuts = options == FOLDER && disposition == Disposition::OVERWRITE_IF;
                let refused = none || cuts && status == NtStatus::INVALID_PARAMETER;
                assert!(refused, "{name} {disposition:?} {options:?}: {status}");
            }
        }
        for class in [InfoClass::RENAME, InfoClass::LINK] {
            let status = direct.rename(made, class, 0, &format!("{name}\\moved"));
            let want = matches!(status, DENIED | NtStatus::OBJECT_PATH_NOT_FOUND);
            assert!(want, "{class:?} to {name}: {status}");
        }
    }
    assert!(!files.join("disks/new").exists() && !files.join("disks/moved").exists());
    for class in [InfoClass::RENAME, InfoClass::LINK] {
        assert_eq!(direct.rename(made, class, 0, "nowhere"), DENIED, "{class:?}");
    }
    assert!(!files.join("missing").exists() && !files.join("real/missing").exists());
    assert!(!files.join(".bulkhead/new").exists() && !files.join("old/vms/new").exists());
    let listed = direct.create("above", Disposition::OPEN, FOLDER).unwrap();
    assert!(direct.names(listed, "*", 4096).contains(&"vms".to_owned()));
}

/// MS-DFSC 3.2.4.1: no name that a client gives leads to what is served elsewhere, in a CREATE or not.
#[test]
fn new_names_lead_to_nothing_that_is_served_elsewhere() {
    let mut direct = Direct::with(
        "[[dfs]]\npath='\\\\s\\Link'\ntargets=['\\\\other\\share']\n\
         [[dfs]]\npath='\\\\s\\old\\vms'\ntargets=['\\\\other\\share']\n",
    );
    direct.login();
    let files = direct.files();
    for folder in ["Link/deep", "old/vms/deep"] {
        std::fs::create_dir_all(files.join(folder)).unwrap();
    }
    std::fs::write(files.join("Link/there"), "").unwrap();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    for class in [InfoClass::RENAME, InfoClass::RENAME_EX, InfoClass::LINK, InfoClass::LINK_EX] {
        for name in [
            "Link",
            "LINK\\x",
            "link\\there",
            "Link\\deep\\x",
            "Link/x",
            ".\\Link\\x",
            "d\\.\\..\\d\\..\\Link\\x",
            "old\\vms",
            "Old\\VMS\\x",
            "old\\vms\\deep\\x",
        ] {
            let covered = NtStatus::PATH_NOT_COVERED;
            assert_eq!(direct.rename(file, class, 1, name), covered, "{class:?} {name}");
            if matches!(class, InfoClass::RENAME | InfoClass::RENAME_EX) {
                assert_eq!(direct.rename(folder, class, 0, name), covered, "{class:?} {name}");
            }
        }
    }
    assert!(files.join("f").exists() && files.join("d").exists());
    // What leads there keeps its name; beside it all is as ever.
    let old = direct.create("old", Disposition::OPEN, FOLDER).unwrap();
    assert_eq!(direct.rename(old, InfoClass::RENAME, 0, "new"), DENIED);
    direct.close(old);
    assert_eq!(direct.rename(file, InfoClass::LINK, 0, "old\\fine"), OK);
    assert_eq!(direct.rename(file, InfoClass::RENAME, 0, "Linked"), OK);
    assert_eq!(direct.rename(folder, InfoClass::RENAME, 0, "old\\vm"), OK);
}
