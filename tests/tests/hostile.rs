//! Clients that mean harm: the server stays up, keeps its memory, and serves the honest ones.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use bulkhead_tests::{
    raw::{answers, ask},
    smbd::{PASSWORD, Smbd, USER},
};
use smb_client::{Client, ConnectOptions, Create, Login, OpenOptions, raw::RawConnection};
use smb_protocol::{
    Command, Dialect, FileId, Header, NtStatus,
    header::frame_prefix,
    msg::{
        close, context, create,
        lock::{self, LockFlags},
        negotiate::{Request, SecurityMode},
        notify,
        oplock::OplockLevel,
    },
};

fn connect(server: &Smbd) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn options(server: &Smbd) -> ConnectOptions {
    ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD))
}

/// Resident memory in KiB.
fn memory(server: &Smbd) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// An honest client writes and reads back.
async fn honest(server: &Smbd, name: &str) {
    let session = Client::connect(options(server)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open(name, OpenOptions::create(Create::Replace)).await.unwrap();
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    file.write(4096, &data).await.unwrap();
    file.sync().await.unwrap();
    let mut back = vec![0; data.len()];
    assert_eq!(file.read(4096, &mut back).await.unwrap(), data.len());
    assert!(back == data);
}

fn negotiate() -> Vec<u8> {
    let mut message =
        Header { command: Command::NEGOTIATE, credits: 1, ..Header::default() }.to_bytes().to_vec();
    Request {
        dialects: vec![Dialect::SMB_2_1],
        security_mode: SecurityMode::SIGNING_ENABLED,
        ..Request::default()
    }
    .encode(&mut message);
    let mut frame = frame_prefix(message.len()).unwrap().to_vec();
    frame.extend_from_slice(&message);
    frame
}

/// The server ends the connection, with or without an answer before.
fn is_dropped(mut stream: TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_cost_one_connection_each() {
    let mut server = Smbd::start("", "");
    let frames: [&[u8]; 6] = [
        &[0, 0xff, 0xff, 0xff],
        &[0x81, 0, 0, 44],
        &[0, 0, 0, 4, 1, 2, 3, 4],
        &[0, 0, 0, 5, 0xfd, b'S', b'M', b'B', 0],
        &[0, 0, 0, 0],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for frame in frames {
        let mut stream = connect(&server);
        stream.write_all(frame).unwrap();
        is_dropped(stream);
        // The same behind a proper beginning.
        let mut stream = connect(&server);
        stream.write_all(&negotiate()).unwrap();
        stream.write_all(frame).unwrap();
        is_dropped(stream);
    }
    honest(&server, "after").await;
    assert!(server.alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_dropped_in_time() {
    let server = Smbd::start("", "[limits]\nauthentication_seconds = 1\n");
    let mut silent = Vec::new();
    for round in 0..60 {
        let mut stream = connect(&server);
        match round % 3 {
            0 => {}
            1 => stream.write_all(&[0, 0]).unwrap(),
            _ => stream.write_all(&negotiate()).unwrap(),
        }
        if round % 2 == 0 {
            let _ = stream.shutdown(Shutdown::Write);
        }
        silent.push(stream);
    }
    honest(&server, "meanwhile").await;
    silent.into_iter().for_each(is_dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_sessions_cost_little() {
    let mut server = Smbd::start("encryption = \"offered\"", "");
    honest(&server, "before").await;
    let before = memory(&server);
    let mut sessions = Vec::new();
    for _ in 0..1000 {
        sessions.push(Client::connect(options(&server)).await.unwrap());
    }
    let each = (memory(&server).saturating_sub(before)) / 1000;
    assert!(each <= 64, "an idle session costs {each} KiB");
    honest(&server, "meanwhile").await;
    drop(sessions);
    assert!(server.alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_turned_away() {
    let server = Smbd::start("", "[limits]\nconnections = 3\nconnections_per_address = 3\n");
    // The connection that found the server up may still be counted; then one is turned away.
    let mut held = Vec::new();
    while held.len() < 3 {
        let mut stream = connect(&server);
        let mut answer = [0; 4];
        if stream.write_all(&negotiate()).and_then(|()| stream.read_exact(&mut answer)).is_ok() {
            held.push(stream);
        }
    }
    is_dropped(connect(&server));
}

/// Many large reads are asked for and no answer is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_pins_little_memory() {
    let server = Smbd::start("", "[limits]\nwrite_seconds = 2\n");
    let session = Client::connect(options(&server)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("big", OpenOptions::create(Create::Replace)).await.unwrap();
    file.set_length(256 << 20).await.unwrap();
    let before = memory(&server);
    // An SMB 2 client of this test's own would have to log in; what is refused before a login
    // fills the server's output just as well.
    let mut stream = connect(&server);
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&negotiate()).unwrap();
    let mut id = 1u64;
    let gone = loop {
        let header = Header {
            command: Command::LOGOFF,
            credits: 1,
            message_id: smb_protocol::MessageId(id),
            ..Header::default()
        };
        let mut message = header.to_bytes().to_vec();
        smb_protocol::msg::simple::Empty.encode(&mut message);
        let mut frame = frame_prefix(message.len()).unwrap().to_vec();
        frame.extend_from_slice(&message);
        if let Err(error) = stream.write_all(&frame) {
            break error;
        }
        id += 1;
        assert!(id < 50_000_000, "the server never pushes back");
    };
    assert_ne!(gone.kind(), std::io::ErrorKind::WouldBlock, "not dropped in time");
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 32 << 10, "grew by {grown} KiB");
    drop(file);
    honest(&server, "after").await;
}

/// A connection of this test with a session, the share `vms` and a file of its own.
fn raw(server: &Smbd, file: &str) -> RawConnection {
    RawConnection::connect(&options(server), "vms", file, true).unwrap()
}

/// One that may have many requests under way: credits come with the answer to the first.
fn with_credits(server: &Smbd) -> RawConnection {
    let options = ConnectOptions { credits: 2048, ..options(server) };
    let mut raw = RawConnection::connect(&options, "vms", "file", true).unwrap();
    raw.queue_read(0, 1);
    raw.send().unwrap();
    answers(&mut raw, 1);
    raw
}

/// A CREATE of anything that may be there or not, which others may use as they like.
fn opening<'a>(name: &str) -> create::Request<'a> {
    use create::{Access, Disposition, ShareAccess};
    create::Request {
        impersonation: 2,
        access: Access::READ_DATA | Access::WRITE_DATA,
        share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
        disposition: Disposition::OPEN_IF,
        name: name.into(),
        ..Default::default()
    }
}

fn open(raw: &mut RawConnection, request: &create::Request<'_>) -> (OplockLevel, FileId) {
    let (status, body) = ask(raw, Command::CREATE, |out| request.encode(out));
    assert_eq!(status, NtStatus::SUCCESS);
    let response = create::Response::parse(&body).unwrap();
    (response.oplock, response.file_id)
}

fn close(raw: &mut RawConnection, file_id: FileId) {
    let request = close::Request { flags: 0, file_id };
    raw.queue_request(Command::CLOSE, |out| request.encode(out));
    raw.send().unwrap();
}

/// Who has not logged in can announce no more than a login needs, and so makes the server hold
/// no more.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_announce_much() {
    let mut server = Smbd::start("", "[limits]\nauthentication_seconds = 600\n");
    honest(&server, "before").await;
    let before = memory(&server);
    let mut held = Vec::new();
    for round in 0..300 {
        let mut stream = connect(&server);
        stream.write_all(&negotiate()).unwrap();
        if round % 3 == 0 {
            // As long as the longest WRITE.
            stream.write_all(&[0, 0x80, 0, 0]).unwrap();
            is_dropped(stream);
        } else {
            // Allowed, and never finished.
            stream.write_all(&[0, 0, 0xff, 0xff]).unwrap();
            stream.write_all(&[0; 60_000]).unwrap();
            held.push(stream);
        }
    }
    honest(&server, "meanwhile").await;
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 128 << 10, "{} strangers cost {grown} KiB", held.len());
    drop(held);
    assert!(server.alive());
}

/// As many strangers as may come from one address hold little together, whatever they send: each
/// has had the server read as much as it reads of a stranger, and holds as much as it may.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_strangers_hold_little_together() {
    const STRANGERS: usize = 2048;
    descriptors(2 * STRANGERS as u64);
    let limits = "[limits]\nconnections_per_address = 3000\nunauthenticated_connections = 3000\n\
                  authentication_seconds = 600\n";
    let mut server = Smbd::start("", limits);
    honest(&server, "before").await;
    let before = memory(&server);
    // The longest message that is answered: a request of no session, and much behind it.
    let header = Header {
        command: Command::LOGOFF,
        credits: 1,
        message_id: smb_protocol::MessageId(1),
        ..Header::default()
    };
    let mut refused = header.to_bytes().to_vec();
    smb_protocol::msg::simple::Empty.encode(&mut refused);
    refused.resize(60_000, 0);
    let refused = [&frame_prefix(refused.len()).unwrap()[..], &refused].concat();
    let mut held = Vec::new();
    for _ in 0..STRANGERS {
        let mut stream = connect(&server);
        stream.write_all(&negotiate()).unwrap();
        stream.write_all(&refused).unwrap();
        // Both are answered.
        for _ in 0..2 {
            let mut prefix = [0; 4];
            stream.read_exact(&mut prefix).unwrap();
            let len = u32::from_be_bytes(prefix) as usize;
            stream.read_exact(&mut vec![0; len]).unwrap();
        }
        // Allowed, and never finished: so much each may hold whatever the others do.
        stream.write_all(&[0, 0, 0xff, 0xff]).unwrap();
        stream.write_all(&[0; 4000]).unwrap();
        held.push(stream);
    }
    honest(&server, "meanwhile").await;
    let grown = memory(&server).saturating_sub(before);
    println!("{STRANGERS} strangers with 4,000 bytes each cost {grown} KiB");
    assert!(grown < 64 << 10, "{STRANGERS} strangers cost {grown} KiB");
    // The rest of what they announced: some are let send it, the others are dropped.
    for stream in &mut held {
        let _ = stream.write_all(&[0; 56_000]);
    }
    honest(&server, "meanwhile").await;
    let grown = memory(&server).saturating_sub(before);
    println!("{STRANGERS} strangers with all that they may send cost {grown} KiB");
    assert!(grown < 64 << 10, "{STRANGERS} strangers cost {grown} KiB");
    drop(held);
    assert!(server.alive());
}

/// Lets this process have so many descriptors.
fn descriptors(count: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let current = Some(now.maximum.map_or(count, |most| most.min(count)));
    if now.current < current {
        setrlimit(Resource::Nofile, Rlimit { current, ..now }).unwrap();
    }
}

/// Logged in, and asking for far more than it ever reads.
#[test]
fn unread_data_pins_little_memory() {
    const CLIENTS: u64 = 12;
    let mut server = Smbd::start("", "");
    let content: Vec<u8> = (0..64u32 << 20).map(|at| (at >> 12) as u8).collect();
    fs::write(server.files().join("big"), content).unwrap();
    // Half of it must come from the disk.
    let file = fs::File::open(server.files().join("big")).unwrap();
    file.sync_all().unwrap();
    let half = std::num::NonZeroU64::new(32 << 20);
    rustix::fs::fadvise(&file, 0, half, rustix::fs::Advice::DontNeed).unwrap();
    let mut greedy: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let options = ConnectOptions { credits: 8192, ..options(&server) };
            RawConnection::connect(&options, "vms", "big", false).unwrap()
        })
        .collect();
    // Credits come with answers: one round of reading brings many.
    for raw in &mut greedy {
        raw.queue_read(0, 4096);
        raw.send().unwrap();
        answers(raw, 1);
    }
    let before = memory(&server);
    for raw in &mut greedy {
        raw.stream().set_nonblocking(true).unwrap();
        let mut asked = 0;
        while raw.can_queue(1 << 20) && asked < 64 {
            raw.queue_read(asked << 20, 1 << 20);
            asked += 1;
        }
        assert!(asked >= 16, "only {asked} MiB could be asked for");
        raw.send().unwrap();
    }
    // The server has done what it can when an honest client is through.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..3 {
        runtime.block_on(honest(&server, "meanwhile"));
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < CLIENTS * (8 << 10), "{CLIENTS} clients cost {grown} KiB");
    drop(greedy);
    runtime.block_on(honest(&server, "after"));
    assert!(server.alive());
}

/// Waits for changes beyond the limit are refused, the others stay, and all end with the folder.
#[test]
fn waits_for_changes_are_limited() {
    let server = Smbd::start("", "[limits]\npending_requests = 100\n");
    let mut raw = raw(&server, "file");
    let folder = create::Request {
        options: create::CreateOptions::DIRECTORY_FILE,
        access: create::Access::READ_DATA,
        disposition: create::Disposition::OPEN,
        ..opening("")
    };
    let (_, id) = open(&mut raw, &folder);
    let filter = 0x17;
    let request = notify::Request { flags: 0, output_len: 4096, file_id: id, filter };
    for _ in 0..350 {
        raw.queue_request(Command::CHANGE_NOTIFY, |out| request.encode(out));
    }
    raw.send().unwrap();
    for (_, status, _) in answers(&mut raw, 250) {
        assert_eq!(status, NtStatus::INSUFFICIENT_RESOURCES);
    }
    // What needs no waiting is served meanwhile.
    raw.queue_read(0, 10);
    raw.send().unwrap();
    assert_eq!(answers(&mut raw, 1)[0].1, NtStatus::END_OF_FILE);
    close(&mut raw, id);
    let ended = answers(&mut raw, 101);
    let cleaned = ended.iter().filter(|(_, status, _)| *status == NtStatus::NOTIFY_CLEANUP);
    assert_eq!(cleaned.count(), 100);
}

/// What a request that waits has the server hold is no more than its user is charged, so
/// `limits.user_bytes` bounds it over all connections. The rest of a connection is not in it.
#[test]
fn a_request_that_waits_costs_no_more_than_it_is_charged() {
    const CONNECTIONS: u64 = 20;
    const EACH: u64 = 511;
    /// Bytes that one is charged: what is remembered of it, with the answer that a watch is to have.
    const CHARGED: [(&str, u64); 3] = [("lock", 2048), ("open", 2048), ("change", 2048 + 4096)];
    for (kind, charged) in CHARGED {
        let mut server = Smbd::start("", "");
        let mut holder = raw(&server, "file");
        let request = locking(&holder, 0, 10_000, LockFlags::EXCLUSIVE);
        let (locked, _) = ask(&mut holder, Command::LOCK, |out| request.encode(out));
        assert_eq!(locked, NtStatus::SUCCESS);
        open(&mut holder, &create::Request { oplock: OplockLevel::BATCH, ..opening("kept") });
        let folder = create::Request {
            options: create::CreateOptions::DIRECTORY_FILE,
            access: create::Access::READ_DATA,
            disposition: create::Disposition::OPEN,
            ..opening("")
        };
        let mut waiting: Vec<_> = (0..CONNECTIONS).map(|_| with_credits(&server)).collect();
        let folders: Vec<_> = waiting.iter_mut().map(|raw| open(raw, &folder).1).collect();
        let before = memory(&server);
        for (raw, file_id) in waiting.iter_mut().zip(folders) {
            // The last is refused, so all before it wait.
            for offset in 0..=EACH {
                let change = notify::Request { flags: 0, output_len: 4096, file_id, filter: 0x17 };
                let lock = locking(raw, offset, 1, LockFlags::EXCLUSIVE);
                match kind {
                    "change" => raw.queue_request(Command::CHANGE_NOTIFY, |out| change.encode(out)),
                    "lock" => raw.queue_request(Command::LOCK, |out| lock.encode(out)),
                    _ => raw.queue_request(Command::CREATE, |out| opening("kept").encode(out)),
                };
            }
            raw.send().unwrap();
            assert_eq!(answers(raw, 1)[0].1, NtStatus::INSUFFICIENT_RESOURCES, "{kind}");
        }
        let each = (memory(&server).saturating_sub(before) << 10) / (CONNECTIONS * EACH);
        println!("{each} bytes for each request that waits, for a {kind}");
        assert!(each <= charged, "{each} bytes for a {kind}");
        assert!(server.alive());
    }
}

/// An exclusive or shared lock of a range of what a client opened first.
fn locking(raw: &RawConnection, offset: u64, length: u64, flags: LockFlags) -> lock::Request {
    let locks = vec![lock::Element { offset, length, flags }];
    lock::Request { sequence: 0, file_id: raw.file_id(), locks }
}

/// The same for locks; those that wait are granted when the holder goes away without a word.
#[test]
fn waits_for_locks_are_limited() {
    let server = Smbd::start("", "[limits]\npending_requests = 100\n");
    let (mut holder, mut waiter) = (raw(&server, "file"), raw(&server, "file"));
    let request = locking(&holder, 0, 1000, LockFlags::EXCLUSIVE);
    assert_eq!(ask(&mut holder, Command::LOCK, |out| request.encode(out)).0, NtStatus::SUCCESS);
    for offset in 0..300 {
        let request = locking(&waiter, offset, 1, LockFlags::EXCLUSIVE);
        waiter.queue_request(Command::LOCK, |out| request.encode(out));
    }
    waiter.send().unwrap();
    for (_, status, _) in answers(&mut waiter, 200) {
        assert_eq!(status, NtStatus::INSUFFICIENT_RESOURCES);
    }
    drop(holder);
    for (_, status, _) in answers(&mut waiter, 100) {
        assert_eq!(status, NtStatus::SUCCESS);
    }
}

/// A file has 16,384 locks and not one more; those it has can be released.
#[test]
fn locks_of_a_file_are_limited() {
    const LOCKS: u64 = 16_384;
    const AT_ONCE: u64 = 1024;
    let server = Smbd::start("", "");
    let mut raw = raw(&server, "file");
    let at_once = |raw: &RawConnection, first: u64, count: u64, flags| lock::Request {
        sequence: 0,
        file_id: raw.file_id(),
        locks: (first..first + count)
            .map(|n| lock::Element { offset: n * 2, length: 1, flags })
            .collect(),
    };
    let exclusive = LockFlags::EXCLUSIVE | LockFlags::FAIL_IMMEDIATELY;
    for first in (0..LOCKS).step_by(AT_ONCE as usize) {
        let request = at_once(&raw, first, AT_ONCE, exclusive);
        assert_eq!(ask(&mut raw, Command::LOCK, |out| request.encode(out)).0, NtStatus::SUCCESS);
    }
    let more = at_once(&raw, LOCKS, 1, exclusive);
    let refused = ask(&mut raw, Command::LOCK, |out| more.encode(out)).0;
    assert_eq!(refused, NtStatus::INSUFFICIENT_RESOURCES);
    let first = at_once(&raw, 0, AT_ONCE, LockFlags::UNLOCK);
    assert_eq!(ask(&mut raw, Command::LOCK, |out| first.encode(out)).0, NtStatus::SUCCESS);
    assert_eq!(ask(&mut raw, Command::LOCK, |out| more.encode(out)).0, NtStatus::SUCCESS);
}

/// As many leases as a session has opens; then no more, and what they cost is given back.
#[test]
fn leases_are_limited_by_opens() {
    let server = Smbd::start("", "[limits]\nopens_per_session = 2000\n");
    let mut raw = raw(&server, "file");
    let mut last = None;
    let before = memory(&server);
    // The connection has one file open already.
    for number in 0..2010u32 {
        let mut key = [0xaa; 16];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let lease =
            context::Lease { key, state: context::LeaseState(7), flags: 0, v2: Some(([0; 16], 1)) }
                .to_bytes();
        let request = create::Request {
            oplock: OplockLevel::LEASE,
            contexts: vec![create::RawContext { name: context::names::RQLS, data: &lease }],
            ..opening(&format!("lease{number}"))
        };
        let (status, body) = ask(&mut raw, Command::CREATE, |out| request.encode(out));
        if number < 1999 {
            assert_eq!(status, NtStatus::SUCCESS, "open {number}");
            let response = create::Response::parse(&body).unwrap();
            assert_eq!(response.oplock, OplockLevel::LEASE);
            last = Some(response.file_id);
        } else {
            assert_eq!(status, NtStatus::TOO_MANY_OPENED_FILES, "open {number}");
        }
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 2000 * 16, "2000 leases cost {grown} KiB");
    close(&mut raw, last.unwrap());
    assert_eq!(answers(&mut raw, 1)[0].1, NtStatus::SUCCESS);
    let another = opening("another");
    open(&mut raw, &another);
}

/// The holder of an oplock never answers the break: the opener goes on after the break's time,
/// and a holder that is cut off holds up nobody.
#[test]
fn an_oplock_that_is_not_given_up_is_taken() {
    for leaves in [true, false] {
        let server = Smbd::start("", "");
        let (mut holder, mut opener) = (raw(&server, "holder"), raw(&server, "opener"));
        let batch = create::Request { oplock: OplockLevel::BATCH, ..opening("disk") };
        let (level, _) = open(&mut holder, &batch);
        assert_eq!(level, OplockLevel::BATCH);
        opener.queue_request(Command::CREATE, |out| opening("disk").encode(out));
        opener.queue_read(0, 10);
        opener.send().unwrap();
        // What does not need the file is answered while the open waits.
        let first = answers(&mut opener, 1).remove(0);
        assert_eq!(first.1, NtStatus::END_OF_FILE);
        // Keeps the connection, and does not read.
        let holder = (!leaves).then_some(holder);
        let (_, status, body) = answers(&mut opener, 1).remove(0);
        assert_eq!(status, NtStatus::SUCCESS);
        let id = create::Response::parse(&body).unwrap().file_id;
        close(&mut opener, id);
        assert_eq!(answers(&mut opener, 1)[0].1, NtStatus::SUCCESS);
        drop(holder);
    }
}
