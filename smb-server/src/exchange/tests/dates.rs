//! What times and attributes a change leaves behind (MS-FSA 2.1.4.17, .18, .20, 2.1.5.15.2).

use smb_protocol::{
    fscc::{
        FileAttributes, Times,
        ea::{self, Ea},
        file_info::Basic,
    },
    msg::create::Disposition,
    security::{Control, Descriptor, parts},
};

use super::{
    files::{FILE, FOLDER, logged_in},
    *,
};

/// -1 and -2 of a time that is set.
const HOLD: u64 = u64::MAX;
const RELEASE: u64 = u64::MAX - 1;
/// A time long ago.
const PAST: u64 = 132_000_000_000_000_000;

impl Direct {
    fn basic(&mut self, id: FileId) -> Basic {
        Basic::parse(&self.query(id, InfoClass::BASIC).unwrap()).unwrap()
    }

    fn times(&mut self, id: FileId) -> Times {
        self.basic(id).times
    }

    fn set_times(&mut self, id: FileId, times: Times) {
        let mut input = Vec::new();
        Basic { times, ..Basic::default() }.encode(&mut input);
        assert_eq!(self.set(id, InfoClass::BASIC, &input), NtStatus::SUCCESS);
    }

    fn set_attributes(&mut self, id: FileId, attributes: FileAttributes) {
        let mut input = Vec::new();
        Basic { attributes, ..Basic::default() }.encode(&mut input);
        assert_eq!(self.set(id, InfoClass::BASIC, &input), NtStatus::SUCCESS);
    }

    fn set_end(&mut self, id: FileId, len: u64) {
        let status = self.set(id, InfoClass::END_OF_FILE, &len.to_le_bytes());
        assert_eq!(status, NtStatus::SUCCESS);
    }

    fn set_room(&mut self, id: FileId, len: u64) {
        let status = self.set(id, InfoClass::ALLOCATION, &len.to_le_bytes());
        assert_eq!(status, NtStatus::SUCCESS);
    }
}

/// Waits until the clock that the system dates files by has ticked.
fn tick() {
    let now = || rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let begun = now();
    while now() == begun {
        std::thread::yield_now();
    }
}

/// As Windows does it since 2022.
#[test]
fn a_write_shows_at_once_and_its_close_changes_nothing() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let other = direct.create("f", Disposition::OPEN, FILE).unwrap();
    let mut last = direct.times(file).write;
    for _ in 0..3 {
        tick();
        direct.store(file, b"x");
        let now = direct.times(file).write;
        assert!(now > last);
        assert_eq!(direct.times(other).write, now);
        last = now;
    }
    tick();
    direct.close(file);
    assert_eq!(direct.times(other).write, last);
}

/// The holder of a time never changes it; who writes beside him does.
#[test]
fn a_held_time_moves_by_the_writes_of_others_alone() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    let other = direct.create("f", Disposition::OPEN, FILE).unwrap();
    direct.set_times(file, Times { write: PAST, ..Times::default() });
    direct.store(file, b"x");
    direct.set_end(file, 5);
    assert_eq!((direct.times(file).write, direct.times(other).write), (PAST, PAST));
    direct.store(other, b"y");
    let now = direct.times(other).write;
    assert!(now > PAST);
    assert_eq!(direct.times(file).write, now);
    tick();
    direct.store(file, b"z");
    assert_eq!(direct.times(other).write, now);
    tick();
    direct.set_end(other, 1);
    let later = direct.times(file).write;
    assert!(later > now);
    tick();
    direct.set_end(file, 2);
    direct.close(file);
    assert_eq!(direct.times(other).write, later);
}

/// MS-FSA 2.1.5.15.1: what is set aside is no content, what is cut off was.
#[test]
fn space_that_is_set_aside_moves_the_change_time_alone() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    direct.store(file, b"content");
    for room in [4096, 65_536, 65_536] {
        let before = direct.times(file);
        tick();
        direct.set_room(file, room);
        let now = direct.times(file);
        assert_eq!(now.write, before.write, "{room}");
        assert!(now.change > before.change, "{room}");
    }
    let before = direct.times(file);
    tick();
    direct.set_room(file, 0);
    let now = direct.times(file);
    assert!(now.write > before.write && now.change > before.change);
}

/// The system does not date a file whose stream is written.
#[test]
fn a_change_of_a_stream_dates_its_file() {
    let mut direct = logged_in();
    for (base, kind) in [("f", FILE), ("d", FOLDER)] {
        let file = direct.create(base, Disposition::CREATE, kind).unwrap();
        let stream = direct.create(&format!("{base}:s"), Disposition::CREATE, FILE).unwrap();
        type Change = fn(&mut Direct, FileId);
        let changes: [(&str, Change); 4] = [
            ("write", |d, id| d.store(id, b"content")),
            ("end of file", |d, id| d.set_end(id, 3)),
            ("cut by allocation", |d, id| d.set_room(id, 0)),
            ("rename", |d, id| {
                assert_eq!(d.rename(id, InfoClass::RENAME, 0, ":t"), NtStatus::SUCCESS);
            }),
        ];
        for (what, change) in changes {
            let before = direct.times(file);
            tick();
            change(&mut direct, stream);
            let now = direct.times(stream);
            assert!(now.write > before.write && now.change > before.change, "{base}, {what}");
            assert_eq!(direct.times(file), now, "{base}, {what}");
        }
        let before = direct.times(file);
        tick();
        direct.set_room(stream, 1 << 20);
        let now = direct.times(file);
        assert!(now.write == before.write && now.change > before.change, "{base}");
        tick();
        direct.close(stream);
        assert_eq!(direct.times(file).write, now.write, "{base}");
        tick();
        let again = direct.create(&format!("{base}:t"), Disposition::OVERWRITE, FILE).unwrap();
        assert!(direct.times(again).write > now.write, "{base}");
    }
}

/// MS-FSCC 2.4.7: held by -1, moving again by -2, of a file and of a folder's stream.
#[test]
fn a_time_that_is_let_go_moves_again() {
    let mut direct = logged_in();
    direct.create("d", Disposition::CREATE, FOLDER).unwrap();
    for name in ["f", "d:s"] {
        let file = direct.create(name, Disposition::CREATE, FILE).unwrap();
        let all = |time| Times { creation: 0, access: time, write: time, change: time };
        direct.set_times(file, all(HOLD));
        let before = direct.times(file);
        tick();
        direct.set_end(file, 10);
        direct.store(file, b"x");
        assert_eq!(direct.times(file), before, "{name}");
        direct.set_times(file, all(RELEASE));
        tick();
        let before = direct.times(file);
        tick();
        direct.set_end(file, 11);
        direct.store(file, b"x");
        let now = direct.times(file);
        assert!(now.write > before.write, "{name}");
        assert!(now.change > before.change, "{name}");
        assert!(now.access > before.access, "{name}");
    }
}

/// MS-FSA 2.1.4.20: neither a read nor a write by the one who set it.
#[test]
fn an_access_time_that_was_set_stands() {
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    direct.store(file, b"content");
    tick();
    direct.set_times(file, Times { access: PAST, ..Times::default() });
    assert_eq!(direct.load(file), b"content");
    assert_eq!(direct.times(file).access, PAST);
    direct.store(file, b"more");
    assert_eq!(direct.times(file).access, PAST);
    let change = direct.times(file).change;
    direct.close(file);
    let file = direct.create("f", Disposition::OPEN, FILE).unwrap();
    let now = direct.times(file);
    assert_eq!((now.access, now.change), (PAST, change));
    // A write of another open is an access.
    tick();
    direct.store(file, b"x");
    let now = direct.times(file);
    assert_eq!(now.access, now.write);
}

/// MS-FSA 2.1.4.17, .18, 2.1.5.15.6, .12, 2.1.5.17.
#[test]
fn what_is_changed_is_to_be_backed_up() {
    let mut list = Vec::new();
    let one = Ea { flags: 0, name: "ONE".into(), value: b"1".to_vec() };
    ea::encode([&one].into_iter(), 100, &mut list);
    let mut input = Vec::new();
    Descriptor { control: Control::DACL_PRESENT, ..Descriptor::default() }
        .encode(parts::DACL, &mut input);
    type Change = Box<dyn Fn(&mut Direct, FileId)>;
    let changes: [(&str, Change); 7] = [
        ("write", Box::new(|d, id| d.store(id, b"content"))),
        ("end of file", Box::new(|d, id| d.set_end(id, 3))),
        ("end of file as it was", Box::new(|d, id| d.set_end(id, 3))),
        ("allocation", Box::new(|d, id| d.set_room(id, 1 << 20))),
        (
            "attributes",
            Box::new(move |d, id| {
                assert_eq!(d.set(id, InfoClass::FULL_EA, &list), NtStatus::SUCCESS);
            }),
        ),
        (
            "name",
            Box::new(|d, id| {
                assert_eq!(d.rename(id, InfoClass::RENAME, 0, "g"), NtStatus::SUCCESS);
            }),
        ),
        (
            "access list",
            Box::new(move |d, id| {
                let kind = query_info::InfoType::SECURITY;
                assert_eq!(d.set_as(id, kind, 0, parts::DACL, &input), NtStatus::SUCCESS);
            }),
        ),
    ];
    let mut direct = logged_in();
    let file = direct.create("f", Disposition::CREATE, FILE).unwrap();
    for (what, change) in changes {
        direct.set_attributes(file, FileAttributes::NORMAL);
        assert_eq!(direct.basic(file).attributes, FileAttributes::NORMAL, "{what}");
        let before = direct.times(file).change;
        tick();
        change(&mut direct, file);
        let now = direct.basic(file);
        assert_eq!(now.attributes, FileAttributes::ARCHIVE, "{what}");
        assert!(now.times.change > before, "{what}");
    }
}
