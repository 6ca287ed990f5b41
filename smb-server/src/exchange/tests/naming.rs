//! Names: how paths are read, what a pattern means, and what a file or stream can be called.

use smb_protocol::msg::create::{CreateOptions, Disposition};

use super::{
    files::{FILE, FOLDER, logged_in},
    *,
};

const BAD: NtStatus = NtStatus::INVALID_PARAMETER;
const INVALID: NtStatus = NtStatus::OBJECT_NAME_INVALID;
const NO_NAME: NtStatus = NtStatus::OBJECT_NAME_NOT_FOUND;
const NO_PATH: NtStatus = NtStatus::OBJECT_PATH_NOT_FOUND;

impl Direct {
    fn list(
        &mut self,
        id: FileId,
        pattern: &str,
        flags: query_directory::Flags,
        class: u8,
    ) -> NtStatus {
        let request = query_directory::Request {
            class: InfoClass(class),
            flags,
            file_id: id,
            output_len: 4096,
            pattern: pattern.into(),
            ..Default::default()
        };
        self.ask(Command::QUERY_DIRECTORY, |out| request.encode(out)).0.status
    }
}

/// MS-FSCC 2.1.5.1; MS-SMB2 3.3.5.9 and its note 303; MS-FSA 2.1.5.1 phase 3.
#[test]
fn dots_in_a_path_are_resolved_before_anything_is_looked_for() {
    let mut direct = logged_in();
    for folder in ["D", "D\\E"] {
        let made = direct.create(folder, Disposition::CREATE, FOLDER).unwrap();
        direct.close(made);
    }
    for (kind, name) in [(FILE, "X"), (FOLDER, "Y")] {
        let made = direct.create(&format!("D\\.\\{name}"), Disposition::CREATE, kind).unwrap();
        direct.close(made);
        for same in ["D\\", ".\\D\\", "D\\E\\..\\", "D\\\\", "D/E/../", "D\\.\\E\\.\\..\\"] {
            let name = format!("{same}{name}");
            let open = direct.create(&name, Disposition::OPEN, kind);
            direct.close(open.unwrap_or_else(|status| panic!("{name}: {status}")));
        }
        for (before, want) in [
            ("D\\..\\", BAD),
            ("..\\", NtStatus::OBJECT_PATH_SYNTAX_BAD),
            ("D\\E\\..\\..\\..\\", NtStatus::OBJECT_PATH_SYNTAX_BAD),
        ] {
            let name = format!("{before}{name}");
            assert_eq!(direct.create(&name, Disposition::OPEN_IF, kind), Err(want), "{name}");
        }
    }
    for root in [".", "D\\..", "D\\E\\..\\.."] {
        let open = direct.create(root, Disposition::OPEN, FOLDER).unwrap();
        assert!(direct.names(open, "D", 4096).contains(&"D".to_owned()), "{root}");
    }
    // The open is called as the file is.
    let open = direct.create("D\\E\\..\\x", Disposition::OPEN, FILE).unwrap();
    let all = direct.query(open, InfoClass::ALL).unwrap();
    let shown = smb_protocol::name::utf16(&all[100..], "name").unwrap();
    assert_eq!(shown, "\\D\\X");
    // So are new names.
    assert_eq!(direct.rename(open, InfoClass::LINK, 0, "D\\.\\L"), NtStatus::SUCCESS);
    assert_eq!(direct.rename(open, InfoClass::RENAME, 0, "D\\E\\..\\\\Z"), NtStatus::SUCCESS);
    assert_eq!(direct.rename(open, InfoClass::RENAME, 0, "D\\..\\Z"), BAD);
    direct.close(open);
    for name in ["D\\L", "D\\Z"] {
        assert!(direct.create(name, Disposition::OPEN, FILE).is_ok(), "{name}");
    }
}

/// A part of a namespace that is served elsewhere cannot be passed by.
#[test]
fn dots_do_not_lead_past_a_link() {
    let mut direct = Direct::with("[[dfs]]\npath='\\\\s\\Link'\ntargets=['\\\\other\\share']\n");
    direct.login();
    for folder in ["a", "a\\b", "Link"] {
        let _ = direct.create(folder, Disposition::OPEN_IF, FOLDER);
    }
    for name in ["Link\\f", ".\\Link\\f", "a\\b\\..\\..\\link\\f", "a\\\\..\\.\\Link"] {
        let status = direct.create(name, Disposition::OPEN_IF, CreateOptions::NONE).unwrap_err();
        let wants = [NtStatus::PATH_NOT_COVERED, BAD];
        assert!(wants.contains(&status), "{name}: {status}");
        assert_eq!(status == BAD, name.starts_with("a\\\\.."), "{name}: {status}");
    }
}

/// MS-FSA 2.1.5.1 phases 5 to 7: a folder and a file are looked for before the kind of an index is
/// judged.
#[test]
fn what_is_missing_comes_before_the_kind_of_an_index() {
    let mut direct = logged_in();
    direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    direct.create("d\\f", Disposition::CREATE, FILE).unwrap();
    for disposition in [Disposition::OPEN, Disposition::OPEN_IF, Disposition::CREATE] {
        for (name, want) in [
            ("none\\\\new", NO_PATH),
            ("$Extend\\$Quota:$Q:$INDEX_ALLOCATION", NO_PATH),
            ("d\\none:$Q:$INDEX_ALLOCATION", NO_NAME),
            ("d\\f:$Q:$INDEX_ALLOCATION", BAD),
            ("d:$Q:$INDEX_ALLOCATION", BAD),
            ("none\\f:s:$NotDATA", INVALID),
            ("d\\f:s:$NotDATA", INVALID),
            ("none\\a*", INVALID),
        ] {
            let status = direct.create(name, disposition, CreateOptions::NONE);
            assert_eq!(status, Err(want), "{disposition:?} {name}");
        }
    }
}

/// MS-FSA 2.1.4.4, 2.1.5.6.3.
#[test]
fn patterns_mean_what_they_mean_to_windows() {
    let mut direct = logged_in();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    let files = ["a.txt", "b.b.txt", "c.html", "d.jpg", "plain"];
    for name in files {
        direct.create(&format!("d\\{name}"), Disposition::CREATE, FILE).unwrap();
    }
    for (pattern, want) in [
        ("<txt", &["a.txt", "b.b.txt"][..]),
        ("<", &[".", "..", "plain"]),
        ("a.<", &["a.txt"]),
        ("c<html", &["c.html"]),
        ("*.*", &[".", "..", "a.txt", "b.b.txt", "c.html", "d.jpg", "plain"]),
        // By the short name that one with a long extension has.
        ("*.htm", &["c.html"]),
        (">>>>>>>>\">>", &[".", ".."]),
        ("?", &[".", ".."]),
        ("??", &[]),
        ("*", &[".", "..", "a.txt", "b.b.txt", "c.html", "d.jpg", "plain"]),
    ] {
        let mut found = direct.names(folder, pattern, 4096);
        found.sort();
        if pattern.starts_with('>') {
            found.retain(|name| name.starts_with('.'));
        }
        assert_eq!(found, want, "{pattern}");
    }
}

/// MS-FSA 2.1.5.6.3: only of the first search it is said that there is no such file.
#[test]
fn a_search_that_begins_again_is_not_the_first() {
    use query_directory::Flags;

    let mut direct = logged_in();
    direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    for flags in [Flags::RESTART_SCANS, Flags::REOPEN] {
        let folder = direct.create("d", Disposition::OPEN, FOLDER).unwrap();
        assert_eq!(direct.list(folder, "none*", flags, 37), NtStatus::NO_SUCH_FILE);
        assert_eq!(direct.list(folder, "none*", Flags::NONE, 37), NtStatus::NO_MORE_FILES);
        assert_eq!(direct.list(folder, "*", flags, 37), NtStatus::SUCCESS);
        assert_eq!(direct.list(folder, "none*", flags, 37), NtStatus::NO_MORE_FILES);
    }
    let folder = direct.create("d", Disposition::OPEN, FOLDER).unwrap();
    for pattern in ["a\\b", "a/*", "a:b"] {
        assert_eq!(direct.list(folder, pattern, Flags::NONE, 37), INVALID, "{pattern}");
    }
    for (class, want) in
        [(80, NtStatus::SUCCESS), (81, NtStatus::NO_MORE_FILES), (82, NtStatus::INVALID_INFO_CLASS)]
    {
        assert_eq!(direct.list(folder, "*", Flags::NONE, class), want, "{class}");
    }
}

/// MS-FSCC 2.4.22: what is above is nobody's business.
#[test]
fn the_folder_above_has_no_number() {
    let mut direct = logged_in();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    for class in [37, 38, 60, 63, 78, 79].map(InfoClass) {
        let entries = direct.entries(folder, class, "*", 4096);
        let number = |name: &str| {
            entries.iter().find(|entry| entry.name == name).map(|entry| entry.file_id).unwrap()
        };
        assert_ne!(number("."), 0, "{class:?}");
        assert_eq!(number(".."), 0, "{class:?}");
    }
}

/// MS-FSA 2.1.5.15.12, 2.1.5.15.7; MS-SMB2 3.3.5.21.1.
#[test]
fn a_new_name_is_one_of_a_remote_client() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let input = |root: u64, len: u32, name: &str| {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        [&[0; 8][..], &root.to_le_bytes(), &len.to_le_bytes(), &name].concat()
    };
    let mismatch = NtStatus::INFO_LENGTH_MISMATCH;
    for class in [InfoClass::RENAME, InfoClass::RENAME_EX, InfoClass::LINK, InfoClass::LINK_EX] {
        for (input, want) in [
            (input(1, 6, "new"), BAD),
            (input(0, 5, "new"), BAD),
            (input(0, 8, "new"), BAD),
            (input(0, 0x6e00_6500, "new"), BAD),
            (input(0, u32::MAX, "new"), BAD),
            (input(0, 0, "new"), BAD),
            (input(0, 8, "\\new"), BAD),
            (input(0, 6, "")[..19].to_vec(), mismatch),
            (vec![], mismatch),
            // The layout of SMB 1, whose fields are shorter.
            ([&[0; 8][..], &[6, 0, 0, 0], b"n\0e\0w\0w\0e\0r\0"].concat(), BAD),
        ] {
            assert_eq!(direct.set(file, class, &input), want, "{class:?} {input:?}");
        }
    }
    for class in [InfoClass::RENAME, InfoClass::RENAME_EX] {
        for len in [20, 22, 23] {
            let short = &input(0, 2, "nn")[..len];
            assert_eq!(direct.set(file, class, short), mismatch, "{class:?} {len}");
        }
    }
    assert_eq!(direct.set(file, InfoClass::LINK, &input(0, 2, "l")), NtStatus::SUCCESS);
    assert_eq!(direct.set(file, InfoClass::RENAME, &input(0, 6, "new")), NtStatus::SUCCESS);
}

/// MS-FSA 2.1.5.15.12.1, in its order.
#[test]
fn a_stream_gets_a_name_that_a_stream_can_have() {
    let mut direct = logged_in();
    direct.create("f", Disposition::CREATE, FILE).unwrap();
    let other = direct.create("f:other", Disposition::CREATE, FILE).unwrap();
    let stream = direct.create("f:s", Disposition::CREATE, FILE).unwrap();
    let folder = direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    let of_folder = direct.create("d:s", Disposition::CREATE, FILE).unwrap();
    let content = direct.create("f::$DATA", Disposition::OPEN, FILE).unwrap();
    let plain = direct.create("f", Disposition::OPEN, FILE).unwrap();
    let kind = NtStatus::OBJECT_TYPE_MISMATCH;
    let long = format!(":{}", "x".repeat(256));
    for (id, name, want) in [
        (stream, ":", BAD),
        (stream, ":x:", BAD),
        (stream, "::", BAD),
        (stream, ":x:$DATA:y", BAD),
        (stream, ":x/y", BAD),
        (stream, &*long, BAD),
        (of_folder, "::$DATA", BAD),
        (stream, "::$INDEX_ALLOCATION", kind),
        (stream, ":z:$NotDATA", kind),
        (content, "::$INDEX_ALLOCATION", kind),
        (content, ":x:$NotDATA", kind),
        (plain, ":x:$NotDATA", kind),
        (plain, "::$INDEX_ALLOCATION", kind),
        (folder, ":x:$DATA", kind),
        (folder, ":x:$INDEX_ALLOCATION", BAD),
        (stream, ":S:$data", NtStatus::SUCCESS),
        (content, "::$DATA", NtStatus::SUCCESS),
        (stream, ":other", NtStatus::OBJECT_NAME_COLLISION),
        (stream, ":x:$DATA", NtStatus::SUCCESS),
    ] {
        assert_eq!(direct.rename(id, InfoClass::RENAME, 0, name), want, "{name}");
    }
    // One that is open or holds something is not replaced.
    assert_eq!(direct.rename(stream, InfoClass::RENAME, 1, ":other"), BAD);
    direct.store(other, b"content");
    direct.close(other);
    assert_eq!(direct.rename(stream, InfoClass::RENAME, 1, ":other"), BAD);
    assert_eq!(direct.streams(plain), ["::$DATA", ":other:$DATA", ":x:$DATA"]);
}

/// The content of a file is no stream that could take another name, and no stream becomes it.
#[test]
fn the_content_of_a_file_stays_its_content() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    direct.store(file, b"content");
    let stream = direct.create("f:s", Disposition::CREATE, FILE).unwrap();
    assert_eq!(direct.rename(file, InfoClass::RENAME, 0, ":x:$DATA"), BAD);
    assert_eq!(direct.rename(stream, InfoClass::RENAME, 1, "::$DATA"), BAD);
    assert_eq!(direct.load(file), b"content");
}
