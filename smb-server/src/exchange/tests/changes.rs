//! What those who watch a folder are told, and how (MS-SMB2 3.3.5.19, MS-FSA 2.1.5.11).

use futures_util::FutureExt;
use smb_protocol::msg::{
    create::{CreateOptions, Disposition},
    notify::{Action, ChangeFilter, Event, WATCH_TREE},
    query_directory,
};

use super::{files::FILE, *};

/// A request that waits.
struct Waiting(Vec<WaitingFuture>);

impl Direct {
    fn watch(&mut self, file_id: FileId, output_len: u32, filter: ChangeFilter) -> Waiting {
        let (flags, filter) = (WATCH_TREE, filter.0);
        let request = notify::Request { flags, output_len, file_id, filter };
        let mut message = self.caller.message(Command::CHANGE_NOTIFY, |out| request.encode(out));
        let runtime = self.runtime.handle().clone();
        let _inside = runtime.enter();
        let mut out = Vec::new();
        let frame = self.exchange.receive(&mut message, &mut out).unwrap();
        assert_eq!(answers(&out)[0].0.status, NtStatus::PENDING);
        Waiting(frame.waits())
    }

    /// The answer to a request that waited, if there is one by now.
    fn told(&mut self, waiting: Waiting) -> Option<(NtStatus, Vec<u8>)> {
        let runtime = self.runtime.handle().clone();
        let _inside = runtime.enter();
        let mut out = Vec::new();
        for wait in waiting.0 {
            let done = wait.now_or_never()?;
            self.exchange.complete_at_once(done, &mut out).unwrap();
        }
        answers(&out).pop().map(|(header, body)| (header.status, body))
    }

    /// What is told of a step to who watches for that.
    pub(super) fn events(
        &mut self,
        filter: ChangeFilter,
        step: impl FnOnce(&mut Self),
    ) -> Vec<(Action, String)> {
        let root = self.open("", CreateOptions::DIRECTORY_FILE);
        let waiting = self.watch(root, 4096, filter);
        step(self);
        let told = self.told(waiting);
        self.close(root);
        let Some((status, body)) = told else { return Vec::new() };
        assert_eq!(status, NtStatus::SUCCESS);
        let output = query_directory::Response::parse(&body).unwrap().output;
        let events = Event::parse_all(output).unwrap();
        events.into_iter().map(|event| (event.action, event.name)).collect()
    }
}

fn logged_in() -> Direct {
    let mut direct = Direct::new();
    direct.login();
    direct
}

const SIZE: ChangeFilter = ChangeFilter::SIZE;
const WRITE: ChangeFilter = ChangeFilter::LAST_WRITE;
const STREAM_SIZE: ChangeFilter = ChangeFilter::STREAM_SIZE;
const STREAM_WRITE: ChangeFilter = ChangeFilter::STREAM_WRITE;
const STREAM_NAME: ChangeFilter = ChangeFilter::STREAM_NAME;

/// MS-FSA 2.1.5.5, 2.1.5.1.2: what becomes of a stream is told as that, to those who watch for
/// streams, and what becomes of its file's attributes as the file's.
#[test]
fn changes_of_streams_are_told_as_changes_of_streams() {
    type Step = fn(&mut Direct, FileId);
    let steps: [(&str, Step, Action, &[ChangeFilter]); 9] = [
        (
            "write",
            |d, id| d.store(id, b"more"),
            Action::MODIFIED_STREAM,
            &[STREAM_SIZE, STREAM_WRITE],
        ),
        (
            "set end of file",
            |d, id| {
                assert_eq!(
                    d.set(id, InfoClass::END_OF_FILE, &[9, 0, 0, 0, 0, 0, 0, 0]),
                    NtStatus::SUCCESS
                )
            },
            Action::MODIFIED_STREAM,
            &[STREAM_SIZE, STREAM_WRITE],
        ),
        (
            "set allocation",
            |d, id| assert_eq!(d.set(id, InfoClass::ALLOCATION, &[0; 8]), NtStatus::SUCCESS),
            Action::MODIFIED_STREAM,
            &[STREAM_SIZE, STREAM_WRITE],
        ),
        (
            "set zero data",
            |d, id| {
                let range = [[0u8; 8], [4, 0, 0, 0, 0, 0, 0, 0]].concat();
                assert_eq!(d.fsctl(id, FsctlCode::SET_ZERO_DATA, &range), NtStatus::SUCCESS);
            },
            Action::MODIFIED_STREAM,
            &[STREAM_SIZE, STREAM_WRITE],
        ),
        (
            "overwrite",
            |d, _| _ = d.create("f:s", Disposition::OVERWRITE, FILE).unwrap(),
            Action::MODIFIED_STREAM,
            &[STREAM_SIZE, STREAM_WRITE],
        ),
        (
            "supersede",
            |d, _| _ = d.create("f:s", Disposition::SUPERSEDE, FILE).unwrap(),
            Action::MODIFIED_STREAM,
            &[STREAM_SIZE, STREAM_WRITE],
        ),
        (
            "create",
            |d, _| _ = d.create("f:new", Disposition::CREATE, FILE).unwrap(),
            Action::ADDED_STREAM,
            &[STREAM_NAME],
        ),
        (
            "delete",
            |d, _| {
                let id = d.open("f:new", FILE);
                assert_eq!(d.set(id, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
                d.close(id);
            },
            Action::REMOVED_STREAM,
            &[STREAM_NAME],
        ),
        (
            "delete on close",
            |d, _| {
                let id =
                    d.create("f:new", Disposition::OPEN, FILE | CreateOptions::DELETE_ON_CLOSE);
                d.close(id.unwrap());
            },
            Action::REMOVED_STREAM,
            &[STREAM_NAME],
        ),
    ];
    for filter in [SIZE, WRITE, STREAM_SIZE, STREAM_WRITE, STREAM_NAME] {
        for (what, step, action, filters) in &steps {
            let mut direct = logged_in();
            let stream = direct.open("f:s", FILE);
            direct.store(stream, b"what is there");
            if what.starts_with("delete") {
                let new = direct.open("f:new", FILE);
                direct.close(new);
            }
            let seen = direct.events(filter, |direct| step(direct, stream));
            let name = if filters[0] == STREAM_NAME { "f:new" } else { "f:s" };
            let told = filters.contains(&filter);
            let wanted = if told { vec![(*action, name.to_owned())] } else { vec![] };
            assert_eq!(seen, wanted, "{what}, watched for {filter:?}");
        }
    }
}

/// What is the file's is told as the file's, through whichever stream it was changed.
#[test]
fn changes_of_attributes_are_the_files() {
    let mut direct = logged_in();
    let stream = direct.open("f:s", FILE);
    for (at, filter) in [
        (0, ChangeFilter::CREATION),
        (16, ChangeFilter::LAST_WRITE),
        (32, ChangeFilter::ATTRIBUTES),
    ] {
        let mut basic = [0; 40];
        basic[at] = 0x20;
        basic[at + 1] = 0x10 * u8::from(at < 32);
        let seen = direct.events(filter, |direct| {
            assert_eq!(direct.set(stream, InfoClass::BASIC, &basic), NtStatus::SUCCESS);
        });
        assert_eq!(seen, [(Action::MODIFIED, "f".to_owned())], "{filter:?}");
    }
}

/// A file's own changes stay what they are.
#[test]
fn changes_of_files_are_told_to_nobody_who_watches_for_streams() {
    let mut direct = logged_in();
    let file = direct.open("f", FILE);
    for (filter, told) in [
        (SIZE, true),
        (WRITE, true),
        (STREAM_SIZE, false),
        (STREAM_WRITE, false),
        (STREAM_NAME, false),
    ] {
        let seen = direct.events(filter, |direct| direct.store(file, b"more"));
        let wanted = if told { vec![(Action::MODIFIED, "f".to_owned())] } else { vec![] };
        assert_eq!(seen, wanted, "{filter:?}");
    }
}

/// MS-SMB2 3.3.4.4, 2.2.36: what is no failure is answered as what was asked for.
#[test]
fn the_end_of_a_watch_is_no_error_response() {
    type End = fn(&mut Direct, FileId);
    let ends: [(&str, u32, End, NtStatus); 5] = [
        ("close", 4096, |d, id| d.close(id), NtStatus::NOTIFY_CLEANUP),
        (
            "tree disconnect",
            4096,
            |d, _| _ = d.ask(Command::TREE_DISCONNECT, |out| Empty.encode(out)),
            NtStatus::NOTIFY_CLEANUP,
        ),
        (
            "logoff",
            4096,
            |d, _| _ = d.ask(Command::LOGOFF, |out| Empty.encode(out)),
            NtStatus::NOTIFY_CLEANUP,
        ),
        ("no room", 0, |d, _| _ = d.open("new", FILE), NtStatus::NOTIFY_ENUM_DIR),
        ("little room", 16, |d, _| _ = d.open("new", FILE), NtStatus::NOTIFY_ENUM_DIR),
    ];
    for (what, room, end, status) in ends {
        let mut direct = logged_in();
        let folder = direct.open("", CreateOptions::DIRECTORY_FILE);
        let waiting = direct.watch(folder, room, ChangeFilter::FILE_NAME);
        end(&mut direct, folder);
        let told = direct.told(waiting).expect(what);
        // StructureSize 9, OutputBufferOffset behind header and body, OutputBufferLength 0.
        assert_eq!(told, (status, vec![9, 0, 0x48, 0, 0, 0, 0, 0]), "{what}");
    }
    // What is a failure has an ERROR response, as ever.
    let mut direct = logged_in();
    let folder = direct.open("d", CreateOptions::DIRECTORY_FILE);
    let waiting = direct.watch(folder, 4096, ChangeFilter::FILE_NAME);
    assert_eq!(direct.set(folder, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    let told = direct.told(waiting).unwrap();
    assert_eq!(told, (NtStatus::DELETE_PENDING, vec![9, 0, 0, 0, 0, 0, 0, 0, 0]));
}
