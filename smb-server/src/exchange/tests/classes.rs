//! Information classes: which there are, what they want and what they refuse (MS-FSA 2.1.5.12 to 17).

use smb_protocol::{
    fscc::{FileAttributes, file_info::Basic},
    msg::{
        context,
        create::{Access, CreateOptions, Disposition, ShareAccess},
    },
    security::{Control, Descriptor, parts},
};

use super::{
    files::{FILE, FOLDER, logged_in},
    *,
};

const BAD: NtStatus = NtStatus::INVALID_PARAMETER;
const DENIED: NtStatus = NtStatus::ACCESS_DENIED;
const LENGTH: NtStatus = NtStatus::INFO_LENGTH_MISMATCH;
const NO_CLASS: NtStatus = NtStatus::INVALID_INFO_CLASS;
const NOT_SERVED: NtStatus = NtStatus::NOT_SUPPORTED;

fn number(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

fn at(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*raw[at..].first_chunk().unwrap())
}

impl Direct {
    fn set_file_system(&mut self, id: FileId, class: u8, input: &[u8]) -> NtStatus {
        self.set_as(id, query_info::InfoType::FILESYSTEM, class, 0, input)
    }

    fn descriptor_status(&mut self, id: FileId, which: u32, room: u32) -> NtStatus {
        let request = query_info::Request {
            info_type: query_info::InfoType::SECURITY,
            additional: which,
            output_len: room,
            file_id: id,
            ..Default::default()
        };
        self.ask(Command::QUERY_INFO, |out| request.encode(out)).0.status
    }
}

/// MS-SMB2 3.3.5.20.1, 3.3.5.21.1; MS-FSA 2.1.5.12.13, .22, .24 to .26, .28, 2.1.5.15.9, .11, .13.
#[test]
fn classes_that_are_not_for_clients_are_told_from_those_that_are_not() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    for (class, want) in [
        (9, NOT_SERVED),
        (26, NOT_SERVED),
        (29, NOT_SERVED),
        (32, BAD),
        (33, NOT_SERVED),
        (44, NOT_SERVED),
        (45, NOT_SERVED),
        (46, NOT_SERVED),
        (54, NOT_SERVED),
        (41, NO_CLASS),
        (200, NO_CLASS),
    ] {
        assert_eq!(direct.query(file, InfoClass(class)), Err(want), "{class}");
    }
    for (class, want) in [(29, NOT_SERVED), (32, NOT_SERVED), (44, NOT_SERVED), (200, NO_CLASS)] {
        assert_eq!(direct.set(file, InfoClass(class), &[0; 64]), want, "{class}");
    }
}

/// MS-SMB2 3.3.5.20.2, 3.3.5.21.2; MS-FSA 2.1.5.13.2, .6, .9, 2.1.5.16.
#[test]
fn nothing_of_a_file_system_is_set_and_each_class_says_why() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let reads =
        direct.create_as("f", Access::READ_DATA, Disposition::OPEN, CreateOptions::NONE).unwrap();
    for class in [1, 3, 4, 5, 7, 11, 12, 0, 99] {
        assert_eq!(direct.set_file_system(file, class, &[0; 64]), NO_CLASS, "{class}");
    }
    for class in [2, 9, 10] {
        assert_eq!(direct.set_file_system(file, class, &[0; 64]), NOT_SERVED, "{class}");
    }
    for (id, class, len, want) in [
        (reads, 6, 48, DENIED),
        (reads, 6, 1, DENIED),
        (file, 6, 47, LENGTH),
        (file, 6, 48, BAD),
        (reads, 8, 64, DENIED),
        (file, 8, 63, NO_CLASS),
        (file, 8, 64, BAD),
    ] {
        assert_eq!(direct.set_file_system(id, class, &vec![0; len]), want, "{class}, {len}");
    }
    for (class, room, want) in [
        (2, 100, NOT_SERVED),
        (10, 100, NOT_SERVED),
        (9, 100, NOT_SERVED),
        (9, 12, NOT_SERVED),
        (9, 11, LENGTH),
        (6, 48, NtStatus::SUCCESS),
        (12, 100, NO_CLASS),
    ] {
        assert_eq!(direct.file_system(file, class, room).0, want, "{class}, {room}");
    }
}

/// MS-FSA 2.1.5.12.31, 2.1.5.13.1, 2.1.5.10.11: one number, the same through every share.
#[test]
fn a_volume_has_one_serial_number() {
    let mut direct = Direct::with("[[share]]\nname='more'\npath='files'\nusers=['u']\n");
    direct.login();
    let (first, second) = (direct.tree, direct.tree_connect("more").0);
    let mut seen = Vec::new();
    for tree in [first, second] {
        direct.tree = tree;
        let file = direct.create("f", Disposition::OPEN_IF, FILE).unwrap();
        let id = direct.query(file, InfoClass::ID).unwrap();
        let (_, volume) = direct.file_system(file, 1, 100);
        let serial = u32::from_le_bytes(*volume[8..].first_chunk().unwrap());
        let request = ioctl::Request {
            code: FsctlCode::GET_NTFS_VOLUME_DATA,
            file_id: file,
            max_output: 96,
            flags: 1,
            ..Default::default()
        };
        let (_, body) = direct.ask(Command::IOCTL, |out| request.encode(out));
        let data = ioctl::Response::parse(&body).unwrap().output;
        seen.extend([at(&id, 0), serial.into(), at(data, 0)]);
        assert_ne!(serial, 0);
        // And with the number of a file that a CREATE is answered with (MS-SMB2 2.2.14.2.9).
        let request = create::Request {
            access: Access::READ_DATA,
            share: ShareAccess(7),
            disposition: Disposition::OPEN,
            name: "f".into(),
            impersonation: 2,
            contexts: vec![create::RawContext { name: b"QFid", data: &[] }],
            ..Default::default()
        };
        let (_, body) = direct.ask(Command::CREATE, |out| request.encode(out));
        let answer = create::Response::parse(&body).unwrap();
        let found = context::find(&answer.contexts, b"QFid").unwrap();
        assert_eq!(at(found, 0), at(&id, 8));
        seen.push(at(found, 8));
    }
    assert!(seen.iter().all(|serial| *serial == seen[0]), "{seen:x?}");
    // Files have object ids (MS-FSCC 2.5.1).
    let file = direct.create("f", Disposition::OPEN_IF, FILE).unwrap();
    let (_, attributes) = direct.file_system(file, 5, 100);
    let attributes = u32::from_le_bytes(*attributes.first_chunk().unwrap());
    assert_eq!(attributes & 0x0001_0000, 0x0001_0000);
}

/// MS-FSCC 2.6: those of other file systems mean nothing, those of none are refused.
#[test]
fn a_create_may_carry_every_attribute_that_there_is() {
    let mut direct = logged_in();
    for (number, (bits, there)) in [
        (0x8000, true),
        (0x8080, true),
        (0x2_0000, true),
        (0x4_0000, true),
        (0x8_0000, true),
        (0x10_0000, true),
        (0x40_0000, true),
        (0x8, false),
        (0x40, false),
        (0x1_0000, false),
        (0x80_0000, false),
    ]
    .into_iter()
    .enumerate()
    {
        let request = create::Request {
            access: Access::ALL,
            share: ShareAccess(7),
            disposition: Disposition::CREATE,
            attributes: FileAttributes(bits),
            name: format!("f{number}"),
            impersonation: 2,
            ..Default::default()
        };
        let (header, body) = direct.ask(Command::CREATE, |out| request.encode(out));
        if there {
            assert_eq!(header.status, NtStatus::SUCCESS, "{bits:#x}");
            let answer = create::Response::parse(&body).unwrap();
            assert_eq!(answer.attributes, FileAttributes::ARCHIVE, "{bits:#x}");
        } else {
            assert_eq!(header.status, BAD, "{bits:#x}");
        }
    }
}

/// MS-FSA 2.1.5.15.1, .5, .15, .10; MS-FSCC 2.4.50.
#[test]
fn lengths_and_positions_are_looked_at() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    let set = |direct: &mut Direct, id, class, value: u64| direct.set(id, class, &number(value));
    for class in [InfoClass::END_OF_FILE, InfoClass::ALLOCATION, InfoClass::VALID_DATA_LENGTH] {
        assert_eq!(set(&mut direct, folder, class, 0), BAD, "{class:?}");
        assert_eq!(direct.set(folder, class, &[0; 7]), LENGTH, "{class:?}");
        assert_eq!(direct.set(file, class, &[0; 7]), LENGTH, "{class:?}");
        // The last clusters could not be allocated.
        for value in [u64::MAX, 1 << 63, i64::MAX as u64, 0x7fff_ffff_ffff_f001] {
            assert_eq!(set(&mut direct, file, class, value), BAD, "{class:?}, {value:#x}");
        }
    }
    direct.store(file, &[1; 8192]);
    for value in [0, 4096, 8191, 8193, i64::MAX as u64] {
        let status = set(&mut direct, file, InfoClass::VALID_DATA_LENGTH, value);
        assert_eq!(status, BAD, "{value}");
    }
    let valid = InfoClass::VALID_DATA_LENGTH;
    assert_eq!(set(&mut direct, file, valid, 8192), NtStatus::SUCCESS);
    assert_eq!(direct.fsctl(file, FsctlCode::SET_SPARSE, &[]), NtStatus::SUCCESS);
    assert_eq!(set(&mut direct, file, valid, 8192), BAD);
    let position = InfoClass::POSITION;
    assert_eq!(set(&mut direct, file, position, 999), NtStatus::SUCCESS);
    for value in [u64::MAX, 1 << 63] {
        assert_eq!(set(&mut direct, file, position, value), BAD);
    }
    assert_eq!(at(&direct.query(file, position).unwrap(), 0), 999);
    let unbuffered = FILE | CreateOptions::NO_INTERMEDIATE_BUFFERING;
    let plain = direct.create("f", Disposition::OPEN, unbuffered).unwrap();
    assert_eq!(set(&mut direct, plain, position, 999), BAD);
    assert_eq!(set(&mut direct, plain, position, 1024), NtStatus::SUCCESS);
}

/// MS-FSA 2.1.5.15.2: the structure is 40 bytes, and that comes first.
#[test]
fn basic_information_comes_whole() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let mut input = Vec::new();
    Basic::default().encode(&mut input);
    assert_eq!(direct.set(file, InfoClass::BASIC, &input), NtStatus::SUCCESS);
    for len in [36, 39] {
        assert_eq!(direct.set(file, InfoClass::BASIC, &input[..len]), LENGTH, "{len}");
    }
    input[..8].copy_from_slice(&(-4_294_967_298_i64).to_le_bytes());
    assert_eq!(direct.set(file, InfoClass::BASIC, &input), BAD);
    assert_eq!(direct.set(file, InfoClass::BASIC, &input[..36]), LENGTH);
}

/// MS-FSA 2.1.5.15.14: short names follow from the long ones, and the order of what is wrong.
#[test]
fn a_short_name_cannot_be_set() {
    let mut direct = logged_in();
    let named = |name: &str| {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        [(name.len() as u32).to_le_bytes().to_vec(), name].concat()
    };
    let class = InfoClass(40);
    let none = NtStatus::SHORT_NAMES_NOT_ENABLED_ON_VOLUME;
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    for id in [file, folder] {
        for name in ["SHORT.TXT", "A", ""] {
            assert_eq!(direct.set(id, class, &named(name)), none, "{name}");
        }
        for name in ["\\SHORT", "too long a name", "A.LONG", "A B"] {
            assert_eq!(direct.set(id, class, &named(name)), BAD, "{name}");
        }
        assert_eq!(direct.set(id, class, &named("SHORT")[..13]), LENGTH);
        assert_eq!(direct.set(id, class, &[]), LENGTH);
    }
    for name in ["f:s", "d:s"] {
        let stream = direct.create(name, Disposition::CREATE, FILE).unwrap();
        assert_eq!(direct.set(stream, class, &named("SHORT")), BAD, "{name}");
    }
    let root = direct.create("", Disposition::OPEN, FOLDER).unwrap();
    assert_eq!(direct.set(root, class, &named("SHORT")), BAD);
    let open = |direct: &mut Direct, access| {
        direct.create_as("f", access, Disposition::OPEN, CreateOptions::NONE).unwrap()
    };
    let writes = open(&mut direct, Access::WRITE_DATA);
    assert_eq!(direct.set(writes, class, &named("SHORT")), DENIED);
    let deletes = open(&mut direct, Access::DELETE);
    assert_eq!(direct.set(deletes, class, &named("SHORT")), DENIED);
    assert_eq!(direct.set(deletes, class, &named("not short")), BAD);
    assert_eq!(direct.set(file, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    assert_eq!(direct.set(file, class, &named("SHORT")), DENIED);
}

/// MS-SMB2 3.3.5.20.3, 3.3.5.21.3; MS-FSA 2.1.5.14, 2.1.5.17.
#[test]
fn every_part_of_a_descriptor_has_its_right() {
    const LABEL: u32 = 0x10;
    const ATTRIBUTE: u32 = 0x20;
    const SCOPE: u32 = 0x40;
    const BACKUP: u32 = 0x1_0000;
    let mut direct = logged_in();
    let all = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let open = |direct: &mut Direct, access| {
        direct.create_as("f", access, Disposition::OPEN, CreateOptions::NONE).unwrap()
    };
    let reads = open(&mut direct, Access::READ_DATA);
    for room in [0, 1, 1000] {
        assert_eq!(direct.descriptor_status(reads, LABEL, room), DENIED);
    }
    assert_eq!(direct.descriptor_status(all, LABEL, 1000), NtStatus::SUCCESS);
    assert_eq!(direct.descriptor_status(all, LABEL, 1), NtStatus::BUFFER_TOO_SMALL);
    let mut empty = Vec::new();
    Descriptor { control: Control::NONE, ..Descriptor::default() }.encode(0, &mut empty);
    let dac = open(&mut direct, Access::WRITE_DAC);
    let owner = open(&mut direct, Access::WRITE_OWNER);
    let both = open(&mut direct, Access::WRITE_DAC | Access::WRITE_OWNER);
    let security = query_info::InfoType::SECURITY;
    for (id, which, want) in [
        (dac, LABEL, DENIED),
        (owner, LABEL, NtStatus::SUCCESS),
        (owner, ATTRIBUTE, DENIED),
        (dac, ATTRIBUTE, NtStatus::SUCCESS),
        (both, SCOPE, DENIED),
        (both, BACKUP, DENIED),
        (dac, BACKUP, DENIED),
        (owner, BACKUP, DENIED),
        // One that names no owner.
        (owner, parts::OWNER, NtStatus::INVALID_OWNER),
    ] {
        let status = direct.set_as(id, security, 0, which, &empty);
        assert_eq!(status, want, "{which:#x}");
    }
    let mine = direct.exchange.server.user_sid("U");
    let mut named = Vec::new();
    let descriptor = Descriptor { owner: Some(mine), ..Descriptor::default() };
    descriptor.encode(parts::OWNER, &mut named);
    let status = direct.set_as(owner, security, 0, parts::OWNER, &named);
    assert_eq!(status, NtStatus::SUCCESS);
}

/// MS-SMB2 3.3.5.9; MS-FSA 2.1.5.3, 2.1.5.4: who wants no buffering reads and writes whole sectors.
#[test]
fn an_unbuffered_open_moves_whole_sectors() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    direct.store(file, &[1; 8192]);
    let options = FILE | CreateOptions::NO_INTERMEDIATE_BUFFERING;
    // The right to append is none there.
    let append = Access::APPEND_DATA;
    assert_eq!(direct.create_as("f", append, Disposition::OPEN, options), Err(DENIED));
    let folder = CreateOptions::NO_INTERMEDIATE_BUFFERING;
    assert_eq!(direct.create_as("d", append, Disposition::CREATE, folder), Err(DENIED));
    let access = append | Access::WRITE_DATA | Access::READ_DATA;
    let plain = direct.create_as("f", access, Disposition::OPEN, options).unwrap();
    let granted = direct.query(plain, InfoClass::ACCESS).unwrap();
    let granted = Access(u32::from_le_bytes(*granted.first_chunk().unwrap()));
    assert!(!granted.has(append) && granted.has(Access::WRITE_DATA));
    let read = |direct: &mut Direct, id, offset, length, flags| {
        let request = read::Request { length, offset, file_id: id, flags, ..Default::default() };
        direct.ask(Command::READ, |out| request.encode(out)).0.status
    };
    for (offset, length, want) in [
        (0, 512, NtStatus::SUCCESS),
        (512, 0, NtStatus::SUCCESS),
        (4096, 4096, NtStatus::SUCCESS),
        (1, 512, BAD),
        (0, 1, BAD),
        (0, 513, BAD),
        (i64::MAX as u64 - 1, 1, BAD),
    ] {
        assert_eq!(read(&mut direct, plain, offset, length, 0), want, "{offset} {length}");
    }
    assert_eq!(read(&mut direct, file, 1, 3, 0), NtStatus::SUCCESS);
    assert_eq!(direct.write_at(plain, 2, &[1]), BAD);
    assert_eq!(direct.write_at(plain, 0, &[1; 511]), BAD);
    assert_eq!(direct.write_at(plain, 512, &[1; 512]), NtStatus::SUCCESS);
    assert_eq!(direct.write_at(file, 2, &[1]), NtStatus::SUCCESS);
    // The flag of a request means nothing at this dialect.
    assert_eq!(read(&mut direct, file, 1, 3, 1), NtStatus::SUCCESS);
}

/// MS-SMB2 2.2.19, 2.2.21: the same by the flag of a request, at 3.0.2.
#[test]
fn an_unbuffered_request_moves_whole_sectors() {
    let mut direct = Direct::new();
    direct.login_at(Dialect::SMB_3_0_2);
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    direct.store(file, &[1; 8192]);
    for (flags, offset, length, want) in [
        (0, 1, 3, NtStatus::SUCCESS),
        (1, 1, 3, BAD),
        (1, 512, 3, BAD),
        (1, 512, 1024, NtStatus::SUCCESS),
    ] {
        let request = read::Request { length, offset, file_id: file, flags, ..Default::default() };
        let status = direct.ask(Command::READ, |out| request.encode(out)).0.status;
        assert_eq!(status, want, "{flags} {offset} {length}");
        let data = vec![2; length as usize];
        let flags = u32::from(flags) * write::UNBUFFERED;
        let request =
            write::Request { offset, file_id: file, data: &data, flags, ..Default::default() };
        let status = direct.ask(Command::WRITE, |out| request.encode(out)).0.status;
        assert_eq!(status, want, "{flags} {offset} {length}");
    }
}
