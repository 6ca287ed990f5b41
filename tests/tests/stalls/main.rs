//! One user's requests that make the server work hard: another user beside it is served all the
//! same. The server has one thread, so that whoever keeps it keeps it from all.

mod lists;

use std::{
    fs,
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bulkhead_tests::{
    raw::{answers, ask},
    smbd::{PASSWORD, PASSWORD2, Smbd, USER, USER2},
};
use smb_client::{
    ConnectOptions, Login,
    raw::{Compounded, RawConnection},
};
use smb_protocol::{
    Command, FileId, NtStatus,
    fscc::InfoClass,
    msg::{
        close, context,
        create::{self, Access, CreateOptions, Disposition, ShareAccess},
        lock::{self, LockFlags},
        notify,
        oplock::OplockLevel,
        query_directory,
        query_info::InfoType,
        set_info,
        simple::Empty,
        write,
    },
};

/// What an honest client waits at most beside a hostile one.
const PATIENCE: Duration = Duration::from_secs(1);

fn options(server: &Smbd, user: &str, password: &str) -> ConnectOptions {
    ConnectOptions::new("127.0.0.1", server.port(), Login::new(user, password))
}

fn hostile(server: &Smbd, share: &str) -> RawConnection {
    RawConnection::connect_share(&options(server, USER, PASSWORD), share).unwrap()
}

fn opening(name: &str, disposition: Disposition, options: CreateOptions) -> create::Request<'_> {
    create::Request {
        impersonation: 2,
        access: Access::READ_DATA | Access::WRITE_DATA | Access::READ_ATTRIBUTES | Access::DELETE,
        share: ShareAccess(7),
        disposition,
        options,
        name: name.into(),
        ..Default::default()
    }
}

fn open(raw: &mut RawConnection, request: &create::Request<'_>) -> Result<FileId, NtStatus> {
    let (status, body) = ask(raw, Command::CREATE, |out| request.encode(out));
    match status {
        NtStatus::SUCCESS => Ok(create::Response::parse(&body).unwrap().file_id),
        status => Err(status),
    }
}

/// An honest client, which opens and closes the share's folder again and again.
struct Honest {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Duration>,
}

impl Honest {
    fn begin(server: &Smbd) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicUsize::new(0));
        let (asked, done) = (stop.clone(), rounds.clone());
        let options = options(server, USER2, PASSWORD2);
        let mut raw = RawConnection::connect_share(&options, "vms").unwrap();
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !asked.load(Ordering::Relaxed) || done.load(Ordering::Relaxed) == 0 {
                let began = Instant::now();
                let request = opening("", Disposition::OPEN, CreateOptions::DIRECTORY_FILE);
                let request = create::Request { access: Access::READ_DATA, ..request };
                let file_id = open(&mut raw, &request).unwrap();
                let request = close::Request { flags: 0, file_id };
                ask(&mut raw, Command::CLOSE, |out| request.encode(out));
                longest = longest.max(began.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
            }
            longest
        });
        Self { stop, rounds, thread }
    }

    /// Does `work`, and says how many rounds were made meanwhile.
    fn beside<T>(&self, work: impl FnOnce() -> T) -> (T, usize) {
        let before = self.rounds.load(Ordering::Relaxed);
        let done = work();
        (done, self.rounds.load(Ordering::Relaxed) - before)
    }

    /// It never waited for long. How long a connection kept the thread at most is printed, here and at
    /// the end of all tests: 10 ms on a quiet machine.
    fn end(self, server: &Smbd, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join().unwrap();
        let rounds = self.rounds.load(Ordering::Relaxed);
        let turn = Duration::from_micros(server.longest_turn().expect("the server answers"));
        println!("{what}: {rounds} rounds beside it, the longest {longest:?}, turns {turn:?}");
        assert!(longest < PATIENCE, "{what}: an honest client waited {longest:?}");
    }
}

/// One user may have all that there is: the tests take more than half of the descriptors that some
/// machines have.
const ALL: &str = "[limits]\nuser_percent = 100\n";

fn one_thread() -> Smbd {
    Smbd::start("threads = 1", ALL)
}

fn fill(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    for number in 0..count {
        fs::write(folder.join(format!("{}{number:06}.txt", "f".repeat(150))), "").unwrap();
    }
}

#[test]
fn no_pattern_keeps_others_waiting() {
    let server = one_thread();
    fill(&server.files().join("many"), 4096);
    let mut raw = hostile(&server, "vms");
    let folder = opening("many", Disposition::OPEN, CreateOptions::DIRECTORY_FILE);
    let folder = open(&mut raw, &folder).unwrap();
    let honest = Honest::begin(&server);
    for (pattern, want) in [
        ("*".repeat(254) + "z", NtStatus::NO_SUCH_FILE),
        ("*f".repeat(127) + "z", NtStatus::NO_MORE_FILES),
        ("?*".repeat(127) + "z", NtStatus::NO_MORE_FILES),
        ("<*".repeat(127) + "z", NtStatus::NO_MORE_FILES),
        ("*".repeat(32_000), NtStatus::OBJECT_NAME_INVALID),
    ] {
        let request = query_directory::Request {
            class: InfoClass::DIRECTORY,
            flags: query_directory::Flags::REOPEN,
            file_id: folder,
            pattern,
            output_len: 65_536,
            ..Default::default()
        };
        let (status, _) = ask(&mut raw, Command::QUERY_DIRECTORY, |out| request.encode(out));
        assert_eq!(status, want);
    }
    honest.end(&server, "patterns");
}

#[test]
fn no_name_that_is_not_there_keeps_others_waiting() {
    let server = one_thread();
    for folder in 0..6 {
        fill(&server.files().join(format!("folder{folder}")), 5000);
    }
    let mut raw = hostile(&server, "vms");
    let honest = Honest::begin(&server);
    for round in 0..120 {
        let name = format!("folder{}\\missing{round}", round % 6);
        let request = opening(&name, Disposition::OPEN, CreateOptions::NONE);
        assert_eq!(open(&mut raw, &request), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    }
    honest.end(&server, "missing names");
}

#[test]
fn no_depth_keeps_others_waiting() {
    let server = one_thread();
    let depth = 1500;
    let mut place = server.files();
    for _ in 0..depth {
        place.push("d");
    }
    // The test's own path to it is too long for one call: it is made from the share's folder.
    let mut at = rustix::fs::open(server.files(), rustix::fs::OFlags::PATH, 0.into()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, "d", 0o755.into()).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::PATH, 0.into()).unwrap();
    }
    let mut raw = hostile(&server, "vms");
    let path = vec!["d"; depth].join("\\");
    let name = format!("{path}\\file");
    let file = opening(&name, Disposition::OPEN_IF, CreateOptions::NONE);
    let file = open(&mut raw, &file).unwrap();
    let mut watcher = hostile(&server, "vms");
    let root = opening("", Disposition::OPEN, CreateOptions::DIRECTORY_FILE);
    let root = create::Request { access: Access::READ_DATA, ..root };
    let root = open(&mut watcher, &root).unwrap();
    let request = notify::Request {
        flags: notify::WATCH_TREE,
        output_len: 4096,
        file_id: root,
        filter: notify::ChangeFilter::SIZE.0,
    };
    watcher.queue_request(Command::CHANGE_NOTIFY, |out| request.encode(out));
    watcher.send().unwrap();
    let honest = Honest::begin(&server);
    // Each write is told to whoever watches a folder above it.
    for _ in 0..50 {
        let request = write::Request { file_id: file, data: b"x", ..Default::default() };
        let (status, _) = ask(&mut raw, Command::WRITE, |out| {
            write::Request { length: 1, ..request.clone() }.encode(out);
        });
        assert_eq!(status, NtStatus::SUCCESS);
    }
    // In another case each part of the path is looked for among the names of its folder.
    let other = format!("{}\\FILE", vec!["D"; depth].join("\\"));
    for _ in 0..5 {
        let request = opening(&other, Disposition::OPEN, CreateOptions::NONE);
        open(&mut raw, &request).unwrap();
    }
    honest.end(&server, "depth");
    // What the test made is too deep for the usual way to remove it.
    drop(raw);
    remove_deep(&server.files(), depth);
}

/// Removes folders that lie one in the other, from the outside in.
fn remove_deep(files: &Path, depth: usize) {
    let aside = files.join("aside");
    for _ in 0..depth {
        if !files.join("d/d").exists() {
            break;
        }
        fs::rename(files.join("d/d"), &aside).unwrap();
        fs::remove_dir_all(files.join("d")).unwrap();
        fs::rename(&aside, files.join("d")).unwrap();
    }
    fs::remove_dir_all(files.join("d")).unwrap();
}

/// Room for more is in no message, and credits for more has no client.
const COMPOUND: usize = 4000;

/// A message of thousands of requests is carried out between the turns of others.
#[test]
fn no_compound_keeps_others_waiting() {
    let server = one_thread();
    let options = ConnectOptions { credits: 8192, ..options(&server, USER, PASSWORD) };
    let mut raw = RawConnection::connect(&options, "vms", "own", true).unwrap();
    for round in 0..200 {
        raw.queue_read(round, 1);
        raw.send().unwrap();
        answers(&mut raw, 1);
    }
    let mut create = Vec::new();
    opening("file", Disposition::OPEN_IF, CreateOptions::NONE).encode(&mut create);
    let mut end = Vec::new();
    close::Request { flags: 1, file_id: FileId::RELATED }.encode(&mut end);
    let pair = || {
        [(Command::CREATE, false, &create), (Command::CLOSE, true, &end)]
            .map(|(command, related, body)| Compounded { command, related, body })
    };
    let compound: Vec<_> = (0..COMPOUND).flat_map(|_| pair()).collect();
    let honest = Honest::begin(&server);
    for _ in 0..3 {
        raw.queue_compound(&compound);
        raw.send().unwrap();
        for (at, (_, status, _)) in answers(&mut raw, compound.len()).into_iter().enumerate() {
            assert_eq!(status, NtStatus::SUCCESS, "request {at}");
        }
    }
    honest.end(&server, "compounds");
}

/// As many ranges as a file can have are locked and released by one request each.
#[test]
fn no_list_of_locks_keeps_others_waiting() {
    const LOCKS: u64 = 16_384;
    let server = one_thread();
    let mut raw = hostile(&server, "vms");
    let file = open(&mut raw, &opening("file", Disposition::OPEN_IF, CreateOptions::NONE)).unwrap();
    let honest = Honest::begin(&server);
    let element = |n: u64, flags| lock::Element { offset: n * 2, length: 1, flags };
    let exclusive = LockFlags::EXCLUSIVE | LockFlags::FAIL_IMMEDIATELY;
    for _ in 0..2 {
        let locks = (0..LOCKS).map(|n| element(n, exclusive)).collect();
        let request = lock::Request { sequence: 0, file_id: file, locks };
        assert_eq!(ask(&mut raw, Command::LOCK, |out| request.encode(out)).0, NtStatus::SUCCESS);
        // From the last on, so that each is looked for among all.
        let locks = (0..LOCKS).rev().map(|n| element(n, LockFlags::UNLOCK)).collect();
        let request = lock::Request { sequence: 0, file_id: file, locks };
        assert_eq!(ask(&mut raw, Command::LOCK, |out| request.encode(out)).0, NtStatus::SUCCESS);
    }
    honest.end(&server, "lists of locks");
}

/// A list of extended attributes is as long as the server takes.
#[test]
fn no_list_of_attributes_keeps_others_waiting() {
    let server = one_thread();
    let options = ConnectOptions { credits: 8192, ..options(&server, USER, PASSWORD) };
    let mut raw = RawConnection::connect(&options, "vms", "own", true).unwrap();
    let mut file = opening("file", Disposition::OPEN_IF, CreateOptions::NONE);
    file.access |= Access::WRITE_EA;
    let file_id = open(&mut raw, &file).unwrap();
    let count = 60_000 / 16;
    let mut input = Vec::new();
    for number in 0..count {
        let next = if number + 1 < count { 16u32 } else { 0 };
        input.extend_from_slice(&next.to_le_bytes());
        input.extend_from_slice(&[0, 6, 1, 0]);
        input.extend_from_slice(format!("{number:06x}\0").as_bytes());
        input.push(0);
    }
    let honest = Honest::begin(&server);
    for _ in 0..5 {
        let request = set_info::Request {
            info_type: InfoType::FILE,
            class: InfoClass::FULL_EA,
            file_id,
            input: &input,
            ..Default::default()
        };
        let (status, _) = ask(&mut raw, Command::SET_INFO, |out| request.encode(out));
        // What fits is the file system's to say.
        assert!([NtStatus::SUCCESS, NtStatus::EA_TOO_LARGE].contains(&status), "{status}");
    }
    honest.end(&server, "lists of attributes");
}

/// A file that is open thousands of times, each time with a lease of its own, is written.
#[test]
fn no_number_of_breaks_keeps_others_waiting() {
    let server = one_thread();
    let mut raw = hostile(&server, "vms");
    let write = |raw: &mut RawConnection, file_id| {
        let request = write::Request { length: 1, file_id, data: b"x", ..Default::default() };
        let (status, _) = ask(raw, Command::WRITE, |out| request.encode(out));
        assert_eq!(status, NtStatus::SUCCESS);
    };
    let plain = opening("file", Disposition::OPEN_IF, CreateOptions::NONE);
    let writer = open(&mut raw, &plain).unwrap();
    for number in 0..4000u32 {
        let mut key = [7; 16];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let state = context::LeaseState::READ;
        let lease = context::Lease { key, state, flags: 0, v2: None }.to_bytes();
        let request = create::Request {
            oplock: OplockLevel::LEASE,
            contexts: vec![create::RawContext { name: context::names::RQLS, data: &lease }],
            ..plain.clone()
        };
        open(&mut raw, &request).unwrap();
    }
    let honest = Honest::begin(&server);
    write(&mut raw, writer);
    honest.end(&server, "4,000 breaks");
    let honest = Honest::begin(&server);
    drop(raw);
    honest.end(&server, "the end of 4,000 leases");
}

/// A folder that is watched thousands of times changes, and is not watched any more.
#[test]
fn no_number_of_watches_keeps_others_waiting() {
    const WATCHES: usize = 4000;
    let server = Smbd::start("threads = 1", &format!("{ALL}pending_requests = 8192\n"));
    let mut raw = hostile(&server, "vms");
    let folder = opening("", Disposition::OPEN, CreateOptions::DIRECTORY_FILE);
    let folder = create::Request { access: Access::READ_DATA, ..folder };
    for _ in 0..WATCHES {
        let file_id = open(&mut raw, &folder).unwrap();
        let filter = notify::ChangeFilter::FILE_NAME.0;
        let request = notify::Request { flags: 0, output_len: 4096, file_id, filter };
        raw.queue_request(Command::CHANGE_NOTIFY, |out| request.encode(out));
        raw.send().unwrap();
    }
    let honest = Honest::begin(&server);
    let file = opening("file", Disposition::CREATE, CreateOptions::NONE);
    raw.queue_request(Command::CREATE, |out| file.encode(out));
    raw.send().unwrap();
    answers(&mut raw, WATCHES + 1);
    honest.end(&server, "4,000 watches");
    let honest = Honest::begin(&server);
    let (status, _) = ask(&mut raw, Command::LOGOFF, |out| Empty.encode(out));
    assert_eq!(status, NtStatus::SUCCESS);
    honest.end(&server, "the end of 4,000 watches");
}

#[test]
fn the_end_of_thousands_of_opens_keeps_nobody_waiting() {
    let server = one_thread();
    let mut raw = hostile(&server, "vms");
    for number in 0..3000 {
        let name = format!("file{number}");
        let going = CreateOptions::DELETE_ON_CLOSE;
        open(&mut raw, &opening(&name, Disposition::CREATE, going)).unwrap();
    }
    let honest = Honest::begin(&server);
    let (status, _) = ask(&mut raw, Command::LOGOFF, |out| Empty.encode(out));
    assert_eq!(status, NtStatus::SUCCESS);
    honest.end(&server, "3,000 files that go with a session");
    assert_eq!(fs::read_dir(server.files()).unwrap().count(), 0);
}

/// Calls whose answers nobody reads are not carried out.
#[test]
fn calls_on_a_pipe_wait_until_their_answers_are_read() {
    let users: String = (0..300)
        .map(|n| format!("[[user]]\nname = \"some-user-with-a-name-{n}\"\npassword = \"x\"\n"))
        .collect();
    let server = Smbd::start("threads = 1", &users);
    let mut raw = hostile(&server, "IPC$");
    let request = opening("srvsvc", Disposition::OPEN, CreateOptions::NONE);
    let pipe = open(&mut raw, &request).unwrap();
    let put = |raw: &mut RawConnection, data: &[u8]| {
        let length = data.len() as u32;
        let request = write::Request { length, file_id: pipe, data, ..Default::default() };
        ask(raw, Command::WRITE, |out| request.encode(out)).0
    };
    let pdu = |kind: u8, call: u32, body: &[u8]| {
        let mut pdu = vec![5, 0, kind, 3, 0x10, 0, 0, 0];
        pdu.extend_from_slice(&(16 + body.len() as u16).to_le_bytes());
        pdu.extend_from_slice(&[0, 0]);
        pdu.extend_from_slice(&call.to_le_bytes());
        pdu.extend_from_slice(body);
        pdu
    };
    // srvsvc 3.0 over NDR 2.0.
    let mut bind = vec![0xd0, 0x16, 0xd0, 0x16, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0];
    bind.extend_from_slice(&[
        0xc8, 0x4f, 0x32, 0x4b, 0x70, 0x16, 0xd3, 0x01, 0x12, 0x78, 0x5a, 0x47, 0xbf, 0x6e, 0xe1,
        0x88, 3, 0, 0, 0, 0x04, 0x5d, 0x88, 0x8a, 0xeb, 0x1c, 0xc9, 0x11, 0x9f, 0xe8, 0x08, 0x00,
        0x2b, 0x10, 0x48, 0x60, 2, 0, 0, 0,
    ]);
    assert_eq!(put(&mut raw, &pdu(11, 1, &bind)), NtStatus::SUCCESS);
    // NetrShareEnum, level 1.
    let mut call = vec![0; 8];
    call[6] = 15;
    call.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 2, 0]);
    call.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let call = pdu(0, 2, &call);
    let calls = call.repeat(60_000 / call.len());
    let honest = Honest::begin(&server);
    let mut refused = 0;
    for _ in 0..20 {
        if put(&mut raw, &calls) != NtStatus::SUCCESS {
            refused += 1;
        }
    }
    honest.end(&server, "calls on a pipe");
    assert!(refused > 0, "what stands unread has a limit");
}

/// Strangers without end take neither the places nor the descriptors of others.
#[test]
fn strangers_without_end_leave_room() {
    let limits = "[limits]\nconnections = 60\nconnections_per_address = 50\n\
                  unauthenticated_connections = 40\n";
    let mut server = Smbd::start("threads = 1", limits);
    let honest = Honest::begin(&server);
    let strangers: Vec<TcpStream> =
        (0..500).map(|_| TcpStream::connect(("127.0.0.1", server.port())).unwrap()).collect();
    // Who comes now has a place, and who was there keeps it.
    for _ in 0..5 {
        drop(hostile(&server, "vms"));
    }
    honest.end(&server, "strangers");
    drop(strangers);
    assert!(server.alive());
}
