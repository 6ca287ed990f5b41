//! Files, folders, links and streams as a client meets them.

use std::collections::BTreeSet;

use smb_protocol::{
    fscc::{
        ea::{self, Ea},
        file_info::{self, Rename, Standard},
    },
    msg::create::{Access, CreateOptions, Disposition, ShareAccess},
    security::{ALLOW, Ace, AceFlags, Control, Descriptor, Sid, parts},
};

use super::*;

pub(super) const FILE: CreateOptions = CreateOptions::NON_DIRECTORY_FILE;
pub(super) const FOLDER: CreateOptions = CreateOptions::DIRECTORY_FILE;

impl Direct {
    /// A create with all access and sharing.
    pub(super) fn create(
        &mut self,
        name: &str,
        disposition: Disposition,
        options: CreateOptions,
    ) -> Result<FileId, NtStatus> {
        let request = create::Request {
            access: Access::ALL,
            share: ShareAccess(7),
            disposition,
            options,
            name: name.into(),
            impersonation: 2,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out));
        match header.status {
            NtStatus::SUCCESS => Ok(create::Response::parse(&body).unwrap().file_id),
            status => Err(status),
        }
    }

    pub(super) fn close(&mut self, file_id: FileId) {
        let request = close::Request { flags: 0, file_id };
        let (header, _) = self.ask(Command::CLOSE, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
    }

    pub(super) fn set(&mut self, file_id: FileId, class: InfoClass, input: &[u8]) -> NtStatus {
        let info_type = query_info::InfoType::FILE;
        let request = set_info::Request { info_type, class, file_id, input, ..Default::default() };
        self.ask(Command::SET_INFO, |out| request.encode(out)).0.status
    }

    pub(super) fn query(&mut self, file_id: FileId, class: InfoClass) -> Result<Vec<u8>, NtStatus> {
        let request = query_info::Request {
            info_type: query_info::InfoType::FILE,
            class,
            output_len: 60_000,
            file_id,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::QUERY_INFO, |out| request.encode(out));
        match header.status {
            NtStatus::SUCCESS => {
                Ok(query_directory::Response::parse(&body).unwrap().output.to_vec())
            }
            status => Err(status),
        }
    }

    pub(super) fn rename(
        &mut self,
        file_id: FileId,
        class: InfoClass,
        flags: u8,
        name: &str,
    ) -> NtStatus {
        let mut input = Vec::new();
        Rename { name: name.into(), ..Rename::default() }.encode(&mut input);
        input[0] = flags;
        self.set(file_id, class, &input)
    }

    pub(super) fn store(&mut self, file_id: FileId, data: &[u8]) {
        let request = write::Request { file_id, data, ..Default::default() };
        let (header, _) = self.ask(Command::WRITE, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
    }

    pub(super) fn load(&mut self, file_id: FileId) -> Vec<u8> {
        let request = read::Request { length: 4096, file_id, ..Default::default() };
        let (header, body) = self.ask(Command::READ, |out| request.encode(out));
        match header.status {
            NtStatus::END_OF_FILE => Vec::new(),
            _ => read::Response::parse(&body).unwrap().data.to_vec(),
        }
    }

    pub(super) fn streams(&mut self, file_id: FileId) -> Vec<String> {
        let list = self.query(file_id, InfoClass::STREAM).unwrap();
        file_info::parse_streams(&list).unwrap().into_iter().map(|(name, ..)| name).collect()
    }

    /// All names in a folder, taken in answers of at most `room` bytes.
    pub(super) fn names(&mut self, file_id: FileId, pattern: &str, room: u32) -> Vec<String> {
        let list = self.entries(file_id, InfoClass::ID_BOTH_DIRECTORY, pattern, room);
        list.into_iter().map(|entry| entry.name).collect()
    }
}

pub(super) fn logged_in() -> Direct {
    let mut direct = Direct::new();
    direct.login();
    direct
}

#[test]
fn streams_go_with_their_file() {
    let mut direct = logged_in();
    let file = direct.create("a", Disposition::CREATE, FILE).unwrap();
    let stream = direct.create("a:Second", Disposition::CREATE, FILE).unwrap();
    direct.store(file, b"main");
    direct.store(stream, b"second");
    assert_eq!(direct.streams(file), ["::$DATA", ":Second:$DATA"]);
    assert_eq!(direct.rename(stream, InfoClass::RENAME, 0, ":third"), NtStatus::SUCCESS);
    direct.close(stream);
    assert_eq!(direct.rename(file, InfoClass::RENAME, 0, "b"), NtStatus::SUCCESS);
    let stream = direct.create("B:THIRD:$DATA", Disposition::OPEN, FILE).unwrap();
    assert_eq!(direct.load(stream), b"second");
    // The file waits for its streams; nobody can open either meanwhile.
    assert_eq!(direct.set(file, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    direct.close(file);
    for name in ["b", "b:third", "b:fourth"] {
        let status = direct.create(name, Disposition::OPEN_IF, FILE).unwrap_err();
        assert_eq!(status, NtStatus::DELETE_PENDING, "{name}");
    }
    direct.close(stream);
    assert_eq!(direct.create("b", Disposition::OPEN, FILE), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    // A new file of that name begins without streams, and nothing of the old ones is kept.
    let file = direct.create("b", Disposition::CREATE, FILE).unwrap();
    assert_eq!(direct.streams(file), ["::$DATA"]);
    let kept = direct.folder.path().join("files/.bulkhead/streams");
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 0);
}

#[test]
fn a_stream_can_be_longer_than_any_attribute_and_is_shared_by_itself() {
    let mut direct = logged_in();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    let stream = direct.create("d:big", Disposition::CREATE, FILE).unwrap();
    let grow = (1u64 << 30).to_le_bytes();
    assert_eq!(direct.set(stream, InfoClass::END_OF_FILE, &grow), NtStatus::SUCCESS);
    let standard = direct.query(stream, InfoClass::STANDARD).unwrap();
    let standard = Standard::parse(&standard).unwrap();
    assert_eq!((standard.end_of_file, standard.directory), (1 << 30, false));
    assert_eq!(direct.streams(folder), [":big:$DATA"]);
    // Deleting the stream leaves the folder.
    assert_eq!(direct.set(stream, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    direct.close(stream);
    assert_eq!(direct.streams(folder), [""; 0]);
}

/// Two shares, one inside the other: what is opened through one is the same through the other.
#[test]
fn a_share_inside_another() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let mut direct = Direct::with(&format!(
        "[[share]]\nname='outer'\npath='{}'\nusers=['u']\n\
         [[share]]\nname='inner'\npath='{}'\nusers=['u']\n",
        folder.path().display(),
        inner.display()
    ));
    direct.login();
    let outer = direct.connect("outer");
    let inside = direct.connect("inner");
    for (first, second) in [(outer, inside), (inside, outer)] {
        let name = |tree: TreeId, rest: &str| {
            if tree == outer { format!("inner\\{rest}") } else { rest.to_owned() }
        };
        direct.tree = first;
        let one = direct.create(&name(first, "f"), Disposition::CREATE, FILE).unwrap();
        let stream = direct.create(&name(first, "f:s"), Disposition::CREATE, FILE).unwrap();
        direct.store(stream, b"same");
        direct.close(stream);
        direct.tree = second;
        let two = direct.create(&name(second, "f"), Disposition::OPEN, FILE).unwrap();
        let stream = direct.create(&name(second, "f:s"), Disposition::OPEN, FILE).unwrap();
        assert_eq!(direct.load(stream), b"same");
        direct.close(stream);
        // Each sees the name from its own root, whoever changes it.
        let to = name(second, "g");
        assert_eq!(direct.rename(two, InfoClass::RENAME, 0, &to), NtStatus::SUCCESS);
        for (tree, open) in [(first, one), (second, two)] {
            direct.tree = tree;
            let shown = direct.query(open, InfoClass::ALL).unwrap();
            let shown = smb_protocol::name::utf16(&shown[100..], "name").unwrap();
            assert_eq!(shown, format!("\\{}", name(tree, "g")));
        }
        // Marked through the second, closed last through the first.
        direct.tree = second;
        assert_eq!(direct.set(two, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
        direct.close(two);
        assert!(inner.join("g").exists());
        direct.tree = first;
        direct.close(one);
        assert!(!inner.join("g").exists());
    }
    // A folder cannot be renamed while something below it is open through the other share.
    direct.tree = inside;
    direct.create("deep", Disposition::CREATE, FOLDER).unwrap();
    direct.create("deep\\f", Disposition::CREATE, FILE).unwrap();
    direct.tree = outer;
    let deep = direct.create("inner\\deep", Disposition::OPEN, FOLDER).unwrap();
    let status = direct.rename(deep, InfoClass::RENAME, 0, "inner\\other");
    assert_eq!(status, NtStatus::ACCESS_DENIED);
}

#[test]
fn hard_links_and_the_name_that_goes() {
    let mut direct = logged_in();
    let file = direct.create("a", Disposition::CREATE, FILE).unwrap();
    direct.store(file, b"content");
    assert_eq!(direct.rename(file, InfoClass::LINK, 0, "b"), NtStatus::SUCCESS);
    let taken = direct.rename(file, InfoClass::LINK, 0, "B");
    assert_eq!(taken, NtStatus::OBJECT_NAME_COLLISION);
    let other = direct.create("b", Disposition::OPEN, FILE).unwrap();
    let standard = direct.query(other, InfoClass::STANDARD).unwrap();
    assert_eq!(Standard::parse(&standard).unwrap().links, 2);
    // The name that was opened is deleted, though the file was opened by another first.
    assert_eq!(direct.set(other, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    direct.close(file);
    direct.close(other);
    assert_eq!(direct.create("b", Disposition::OPEN, FILE), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    let file = direct.create("a", Disposition::OPEN, FILE).unwrap();
    assert_eq!(direct.load(file), b"content");
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    let status = direct.rename(folder, InfoClass::LINK, 0, "e");
    assert_eq!(status, NtStatus::FILE_IS_A_DIRECTORY);
}

/// A name goes with the last open that came by it, whoever else has the file open by another.
#[test]
fn each_name_of_a_file_is_deleted_by_itself() {
    for closes_last in ["a", "b"] {
        let mut direct = logged_in();
        let a = direct.create("a", Disposition::CREATE, FILE).unwrap();
        direct.store(a, b"content");
        assert_eq!(direct.rename(a, InfoClass::LINK, 0, "b"), NtStatus::SUCCESS);
        let b = direct.create("b", Disposition::OPEN, FILE).unwrap();
        let second = direct.create("b", Disposition::OPEN, FILE).unwrap();
        assert_eq!(direct.set(b, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
        let standard = direct.query(a, InfoClass::STANDARD).unwrap();
        let standard = Standard::parse(&standard).unwrap();
        assert_eq!((standard.links, standard.delete_pending), (1, false));
        let open = |direct: &mut Direct, name| direct.create(name, Disposition::OPEN, FILE);
        assert_eq!(open(&mut direct, "b"), Err(NtStatus::DELETE_PENDING));
        let again = open(&mut direct, "a").unwrap();
        assert_eq!(direct.rename(again, InfoClass::LINK, 0, "c"), NtStatus::SUCCESS);
        direct.close(again);
        direct.close(b);
        assert_eq!(open(&mut direct, "b"), Err(NtStatus::DELETE_PENDING));
        if closes_last == "b" {
            direct.close(a);
        }
        direct.close(second);
        assert_eq!(open(&mut direct, "b"), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
        if closes_last == "a" {
            direct.close(a);
        }
        for name in ["a", "c"] {
            let file = open(&mut direct, name).unwrap();
            assert_eq!(direct.load(file), b"content", "{name}");
            direct.close(file);
        }
    }
}

/// Flags of the extended forms: a name is given to another file, or goes, while it is in use.
#[test]
fn posix_rules_on_request() {
    let mut direct = logged_in();
    let old = direct.create("target", Disposition::CREATE, FILE).unwrap();
    direct.store(old, b"old");
    let new = direct.create("new", Disposition::CREATE, FILE).unwrap();
    direct.store(new, b"new");
    assert_eq!(direct.rename(new, InfoClass::RENAME, 1, "target"), NtStatus::ACCESS_DENIED);
    assert_eq!(direct.rename(new, InfoClass::RENAME_EX, 1, "target"), NtStatus::ACCESS_DENIED);
    assert_eq!(direct.rename(new, InfoClass::RENAME_EX, 3, "target"), NtStatus::SUCCESS);
    assert_eq!(direct.load(old), b"old");
    direct.close(old);
    let again = direct.create("target", Disposition::OPEN, FILE).unwrap();
    assert_eq!(direct.load(again), b"new");
    // Deleted with POSIX rules the name is free when the deleter closes.
    let posix = 3u32.to_le_bytes();
    assert_eq!(direct.set(again, InfoClass::DISPOSITION_EX, &posix), NtStatus::SUCCESS);
    direct.close(again);
    let fresh = direct.create("target", Disposition::CREATE, FILE).unwrap();
    direct.store(fresh, b"fresh");
    assert_eq!(direct.load(new), b"new");
    direct.close(new);
    assert_eq!(direct.load(fresh), b"fresh");
    let path = direct.folder.path().join("files/target");
    assert_eq!(std::fs::read(path).unwrap(), b"fresh");
}

/// The system tells of a descriptor whose name is gone as "NAME (deleted)". Another file may really be
/// called so, and nothing that is asked of the one may be done to the other.
#[test]
fn a_name_that_is_gone_is_not_taken_for_another_files() {
    let mut direct = logged_in();
    let create = |direct: &mut Direct, name: &str, data: &[u8]| {
        let file = direct.create(name, Disposition::CREATE, FILE).unwrap();
        direct.store(file, data);
        file
    };
    let content = |direct: &mut Direct, name: &str| {
        let file = direct.create(name, Disposition::OPEN, FILE)?;
        let data = direct.load(file);
        direct.close(file);
        Ok::<_, NtStatus>(data)
    };
    for name in ["x (deleted)", "y (deleted)"] {
        let other = create(&mut direct, name, b"another's");
        direct.close(other);
    }
    // A file of two names loses the one that it was opened by, and keeps the other.
    let x = create(&mut direct, "x", b"mine");
    assert_eq!(direct.rename(x, InfoClass::LINK, 0, "x2"), NtStatus::SUCCESS);
    assert_eq!(direct.rename(x, InfoClass::RENAME, 1, "x2"), NtStatus::SUCCESS);
    let shown = |direct: &mut Direct, file| {
        // The name ends FileAllInformation (MS-FSCC 2.4.2).
        let answer = direct.query(file, InfoClass::ALL).unwrap();
        let units =
            answer[100..].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        String::from_utf16(&units.collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(shown(&mut direct, x), "\\x2");
    assert_eq!(direct.rename(x, InfoClass::RENAME, 0, "moved"), NtStatus::SUCCESS);
    assert_eq!(shown(&mut direct, x), "\\moved");
    assert_eq!(content(&mut direct, "moved").unwrap(), b"mine");
    assert_eq!(content(&mut direct, "x2"), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    assert_eq!(content(&mut direct, "x (deleted)").unwrap(), b"another's");
    direct.close(x);

    // One that has no name any more has none to give up.
    let y = create(&mut direct, "y", b"mine");
    let deleter = direct.create("y", Disposition::OPEN, FILE).unwrap();
    let posix = 3u32.to_le_bytes();
    assert_eq!(direct.set(deleter, InfoClass::DISPOSITION_EX, &posix), NtStatus::SUCCESS);
    direct.close(deleter);
    let gone = direct.rename(y, InfoClass::RENAME, 1, "taken");
    assert_eq!(gone, NtStatus::OBJECT_NAME_NOT_FOUND);
    assert!(direct.query(y, InfoClass::ALL).is_ok(), "it is there for who has it open");
    assert_eq!(direct.load(y), b"mine");
    let request = flush::Request { file_id: y };
    let (header, _) = direct.ask(Command::FLUSH, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
    let _ = direct.set(y, InfoClass::DISPOSITION, &[1]);
    direct.close(y);
    assert_eq!(content(&mut direct, "y (deleted)").unwrap(), b"another's");
    assert_eq!(content(&mut direct, "taken"), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
}

#[test]
fn folders_are_deleted_only_when_they_are_empty() {
    let mut direct = logged_in();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    let file = direct.create("d\\f", Disposition::CREATE, FILE).unwrap();
    let status = direct.set(folder, InfoClass::DISPOSITION, &[1]);
    assert_eq!(status, NtStatus::DIRECTORY_NOT_EMPTY);
    assert_eq!(direct.set(file, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    direct.close(file);
    assert_eq!(direct.set(folder, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    direct.close(folder);
    assert!(!direct.folder.path().join("files/d").exists());
    // To be deleted on close means nothing for one that is not empty then.
    let options = FOLDER | CreateOptions::DELETE_ON_CLOSE;
    let folder = direct.create("e", Disposition::CREATE, options).unwrap();
    let file = direct.create("e\\f", Disposition::CREATE, FILE).unwrap();
    direct.close(folder);
    direct.close(file);
    assert!(direct.create("e\\f", Disposition::OPEN, FILE).is_ok());
    assert!(direct.create("e\\", Disposition::OPEN, FOLDER).is_ok());
    let status = direct.create("e\\f\\", Disposition::OPEN, FILE).unwrap_err();
    assert_eq!(status, NtStatus::OBJECT_NAME_INVALID);
    // The server's own folder is not there for clients.
    let status = direct.create(".BULKHEAD", Disposition::OPEN, FOLDER).unwrap_err();
    assert_eq!(status, NtStatus::OBJECT_NAME_INVALID);
}

#[test]
fn extended_attributes_come_with_a_create_and_go_with_an_overwrite() {
    let mut direct = logged_in();
    let list = [Ea { flags: 0, name: "ONE".into(), value: b"1".to_vec() }];
    let mut data = Vec::new();
    ea::encode(list.iter(), 1000, &mut data);
    let mut request = create::Request {
        access: Access::ALL,
        share: ShareAccess(7),
        disposition: Disposition::CREATE,
        name: "a".into(),
        impersonation: 2,
        contexts: vec![create::RawContext { name: b"ExtA", data: &data }],
        ..Default::default()
    };
    let (header, body) = direct.ask(Command::CREATE, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
    let file = create::Response::parse(&body).unwrap().file_id;
    let got = direct.query(file, InfoClass::FULL_EA).unwrap();
    assert_eq!(ea::parse(&got).unwrap(), list);
    direct.close(file);
    let bad = [5u8; 20];
    request.contexts[0].data = &bad;
    request.name = "b".into();
    let (header, _) = direct.ask(Command::CREATE, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::EA_LIST_INCONSISTENT);
    let file = direct.create("a", Disposition::OVERWRITE, FILE).unwrap();
    assert_eq!(direct.query(file, InfoClass::FULL_EA), Err(NtStatus::NO_EAS_ON_FILE));
}

/// A name that is asked for again and again is answered once, and the answer ends with its room.
#[test]
fn attributes_are_asked_for_by_name() {
    let mut direct = logged_in();
    let file = direct.create("a", Disposition::CREATE, FILE).unwrap();
    let one = Ea { flags: 0, name: "A".into(), value: vec![7; 2000] };
    let mut list = Vec::new();
    ea::encode([&one].into_iter(), 4096, &mut list);
    assert_eq!(direct.set(file, InfoClass::FULL_EA, &list), NtStatus::SUCCESS);
    let mut ask = |names: &[&[u8; 1]], output_len| {
        let next = |at| if at + 1 < names.len() { 8 } else { 0 };
        let entry = |(at, name): (usize, &&[u8; 1])| [next(at), 0, 0, 0, 1, name[0], 0, 0];
        let input: Vec<u8> = names.iter().enumerate().flat_map(entry).collect();
        let request = query_info::Request {
            info_type: query_info::InfoType::FILE,
            class: InfoClass::FULL_EA,
            output_len,
            file_id: file,
            input: &input,
            ..Default::default()
        };
        let (header, body) = direct.ask(Command::QUERY_INFO, |out| request.encode(out));
        let found = query_directory::Response::parse(&body).map(|r| ea::parse(r.output).unwrap());
        (header.status, found.unwrap_or_default())
    };
    let none = Ea { name: "B".into(), ..Ea::default() };
    let names = [b"a", b"b", b"A"].repeat(1000);
    assert_eq!(ask(&names, 60_000), (NtStatus::SUCCESS, vec![one.clone(), none]));
    assert_eq!(ask(&names, 2010).0, NtStatus::BUFFER_OVERFLOW);
    assert_eq!(ask(&names, 2000).0, NtStatus::BUFFER_TOO_SMALL);
}

/// More names than one answer holds; and a search among many that leaves the connection's task.
#[test]
fn large_folders_are_listed_in_pieces() {
    const COUNT: usize = 6000;
    let mut direct = logged_in();
    let at = direct.folder.path().join("files/many");
    std::fs::create_dir(&at).unwrap();
    let mut want: BTreeSet<String> = [".".to_owned(), "..".to_owned()].into();
    for number in 0..COUNT {
        let name = format!("file-{number}");
        std::fs::write(at.join(&name), "").unwrap();
        want.insert(name);
    }
    let folder = direct.create("many", Disposition::OPEN, FOLDER).unwrap();
    let list = direct.names(folder, "*", 60_000);
    assert_eq!(list.len(), want.len());
    assert_eq!(list.into_iter().collect::<BTreeSet<_>>(), want);
    let folder = direct.create("many", Disposition::OPEN, FOLDER).unwrap();
    assert_eq!(direct.names(folder, "no-such-*", 60_000), [""; 0]);
    let folder = direct.create("many", Disposition::OPEN, FOLDER).unwrap();
    assert_eq!(direct.names(folder, "FILE-4711", 60_000), ["file-4711"]);
}

#[test]
fn what_cannot_be_read_can_be_left_out_of_listings() {
    let shown = tempfile::tempdir().unwrap();
    let mut direct = Direct::with(&format!(
        "[[share]]\nname='h'\npath='{}'\nusers=['u']\naccess_based_enumeration=true\n",
        shown.path().display()
    ));
    direct.login();
    for (share, want) in [("h", vec!["open"]), ("s", vec!["closed", "open"])] {
        direct.connect(share);
        direct.create("open", Disposition::CREATE, FILE).unwrap();
        let closed = direct.create("closed", Disposition::CREATE, FILE).unwrap();
        let mut input = Vec::new();
        let descriptor = Descriptor {
            control: Control::DACL_PRESENT,
            dacl: Some(vec![Ace::new(ALLOW, AceFlags::NONE, Access::ALL, Sid::system())]),
            ..Descriptor::default()
        };
        descriptor.encode(parts::DACL, &mut input);
        let request = set_info::Request {
            info_type: query_info::InfoType::SECURITY,
            additional: parts::DACL,
            file_id: closed,
            input: &input,
            ..Default::default()
        };
        let (header, _) = direct.ask(Command::SET_INFO, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        let root = direct.create("", Disposition::OPEN, FOLDER).unwrap();
        let mut names = direct.names(root, "*n", 60_000);
        names.extend(direct.names(root, "closed", 60_000));
        names.sort();
        assert_eq!(names, want);
    }
}

/// A stream's content survives in its own file; a file made anew by another program under the same
/// name has none of it.
#[test]
fn a_file_replaced_behind_the_server_has_no_streams() {
    let mut direct = logged_in();
    let stream = direct.create("a:s", Disposition::CREATE, FILE).unwrap();
    direct.store(stream, b"old");
    direct.close(stream);
    let path = direct.folder.path().join("files/a");
    std::fs::write(path.with_extension("new"), "").unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    let file = direct.create("a", Disposition::OPEN, FILE).unwrap();
    assert_eq!(direct.streams(file), ["::$DATA"]);
}

/// MS-FSCC 2.1.5.1; MS-SMB2 3.3.5.9, note 303.
#[test]
fn dots_in_a_path_stand_for_folders() {
    let mut direct = logged_in();
    for folder in ["d", "d\\e"] {
        let id = direct.open(folder, FOLDER);
        direct.close(id);
    }
    let path_of = |direct: &mut Direct, id| {
        let name = direct.query(id, InfoClass::NORMALIZED_NAME);
        name.map(|name| String::from_utf8(name[4..].iter().copied().filter(|b| *b != 0).collect()))
    };
    for (name, options, there) in [
        ("d\\.\\f", FILE, "d\\f"),
        ("d\\.\\g", FOLDER, "d\\g"),
        ("d\\e\\..\\h", FILE, "d\\h"),
        (".\\d\\e\\..\\i", FOLDER, "d\\i"),
    ] {
        let id = direct.create(name, Disposition::CREATE, options).unwrap();
        if let Ok(path) = path_of(&mut direct, id) {
            assert_eq!(path.unwrap(), there);
        }
        direct.close(id);
        let id = direct.create(there, Disposition::OPEN, options).unwrap();
        direct.close(id);
    }
    for (name, status) in [
        ("d\\..\\f", NtStatus::INVALID_PARAMETER),
        ("..", NtStatus::OBJECT_PATH_SYNTAX_BAD),
        ("d\\..\\..\\..", NtStatus::INVALID_PARAMETER),
        ("d\\e\\..\\..\\..", NtStatus::OBJECT_PATH_SYNTAX_BAD),
    ] {
        for options in [FILE, FOLDER] {
            let refused = direct.create(name, Disposition::OPEN_IF, options);
            assert_eq!(refused, Err(status), "{name}");
        }
    }
    // The same for the names that are given.
    let id = direct.open("d\\f", FILE);
    let renamed = |direct: &mut Direct, to| direct.rename(id, InfoClass::RENAME, 0, to);
    assert_eq!(renamed(&mut direct, "d\\e\\..\\r"), NtStatus::SUCCESS);
    assert_eq!(renamed(&mut direct, "d\\..\\r"), NtStatus::INVALID_PARAMETER);
    assert_eq!(renamed(&mut direct, "..\\r"), NtStatus::OBJECT_PATH_SYNTAX_BAD);
    direct.close(id);
    let id = direct.create("d\\r", Disposition::OPEN, FILE).unwrap();
    direct.close(id);
}
