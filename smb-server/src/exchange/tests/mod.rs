//! The exchange without a socket: an authenticated client that sends anything at all.

use std::{
    ops::{Deref, DerefMut},
    path::Path,
    sync::Arc,
};

use proptest::prelude::*;
use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, MessageId, NtStatus, TreeId,
    fscc::{FsctlCode, InfoClass},
    header::HEADER_LEN,
    msg::{
        close, create, flush, ioctl, lock, negotiate, notify, query_directory, query_info, read,
        session_setup, set_info, simple::Empty, tree_connect, write,
    },
};
use test_support::smb_caller::{Asks, Caller, Logon, answers, setup};

mod audits;
mod changes;
mod channels;
mod classes;
mod contexts;
mod controls;
mod dates;
mod files;
mod folder_leases;
mod giving_way;
mod guessing;
mod house;
mod listing;
mod matrix;
mod naming;
mod options;
mod overwriting;
mod past;
mod persistent;
mod placing;
mod related;
mod remote;
mod reparse;
mod resilient;
pub mod signer;
mod taken_over;
mod waits;

use super::*;
use crate::config::Config;

/// A client that drives an [`Exchange`] in the same thread.
struct Direct {
    exchange: Exchange,
    caller: Caller,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

impl Asks for Direct {
    fn ask(&mut self, command: Command, body: impl FnOnce(&mut Vec<u8>)) -> (Header, Vec<u8>) {
        let mut message = self.caller.message(command, body);
        self.send(&mut message).unwrap().pop().unwrap()
    }

    fn caller(&mut self) -> &mut Caller {
        &mut self.caller
    }
}

impl Deref for Direct {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl DerefMut for Direct {
    fn deref_mut(&mut self) -> &mut Caller {
        &mut self.caller
    }
}

impl Direct {
    fn new() -> Self {
        Self::with("")
    }

    /// With more lines of configuration.
    fn with(more: &str) -> Self {
        Self::configured("", more)
    }

    /// With more lines about the server, and others.
    fn configured(server: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let text = format!(
            "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nsigning='enabled'\n\
             encryption='off'\n{server}\n[limits]\npending_requests=8\n\
             [[user]]\nname='u'\npassword='p'\n\
             [[share]]\nname='s'\npath='files'\nusers=['u']\n{more}",
            folder.path().join("state").display()
        );
        let config = Config::parse(&text, &folder.path().join(Path::new("c"))).unwrap();
        let server = Arc::new(Server::new(config).unwrap());
        let address = "127.0.0.1:1".parse().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self {
            exchange: Exchange::new(server, address, address),
            caller: Caller::default(),
            runtime,
            folder,
        }
    }

    /// Sends messages as one frame and returns the answers, each checked to be well formed.
    fn send(&mut self, frame: &mut [u8]) -> Result<Vec<(Header, Vec<u8>)>, Dropped> {
        self.send_rest(frame, 0)
    }

    /// As [`Direct::send`], but for `placed` bytes of data that are in their file already.
    fn send_rest(
        &mut self,
        frame: &mut [u8],
        placed: usize,
    ) -> Result<Vec<(Header, Vec<u8>)>, Dropped> {
        let mut out = Vec::new();
        let runtime = self.runtime.handle().clone();
        let _inside = runtime.enter();
        let waits = match self.exchange.receive_at_once(frame, placed, &mut out)? {
            Frame::Answered => Vec::new(),
            Frame::Waits(waits) => waits,
        };
        for wait in waits {
            // A wait for an event may never end; storage always answers.
            let limit = std::time::Duration::from_millis(if self.exchange.waits_for_storage() {
                10_000
            } else {
                1
            });
            if let Ok(done) =
                self.runtime.block_on(async { tokio::time::timeout(limit, wait).await })
            {
                self.exchange.complete_at_once(done, &mut out).unwrap();
            }
        }
        Ok(answers(&out))
    }

    /// Negotiates, logs in and connects to the share.
    fn login(&mut self) {
        self.login_at(Dialect::SMB_2_1);
    }

    /// The same at a dialect.
    fn login_at(&mut self, dialect: Dialect) {
        let offer = negotiate::Request {
            dialects: vec![dialect],
            security_mode: negotiate::SecurityMode::SIGNING_ENABLED,
            client_guid: [7; 16],
            ..Default::default()
        };
        self.log_in("u", &offer);
        self.connect("s");
    }

    /// Connects to a share, which requests are about from now on.
    fn connect(&mut self, share: &str) -> TreeId {
        self.tree = self.tree_connect(share).0;
        self.tree
    }

    fn open(&mut self, name: &str, options: create::CreateOptions) -> FileId {
        let request = create::Request {
            access: create::Access::ALL,
            share: create::ShareAccess(7),
            disposition: create::Disposition::OPEN_IF,
            options,
            name: name.into(),
            impersonation: 2,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        create::Response::parse(&body).unwrap().file_id
    }
}

/// A well-formed body for each command, to be damaged.
#[allow(clippy::too_many_lines, reason = "a table")]
fn body(command: u16, id: FileId, number: u64) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    let (small, class) = (number as u32 % 70_000, InfoClass(number as u8 % 70));
    match Command(command) {
        Command::CREATE => create::Request {
            access: create::Access(number as u32),
            share: create::ShareAccess(number as u32 % 8),
            disposition: create::Disposition(number as u32 % 6),
            options: create::CreateOptions((number >> 8) as u32 & 0x1fff),
            name: ["a", "d", "d\\x", "..\\x", "a:b", "*"][number as usize % 6].into(),
            contexts: vec![create::RawContext { name: b"MxAc", data: &[] }],
            ..Default::default()
        }
        .encode(&mut out),
        Command::CLOSE => close::Request { flags: 1, file_id: id }.encode(&mut out),
        Command::FLUSH => flush::Request { file_id: id }.encode(&mut out),
        Command::READ => {
            read::Request { length: small, offset: number, file_id: id, ..Default::default() }
                .encode(&mut out);
        }
        Command::WRITE => write::Request {
            offset: number % (1 << 30),
            file_id: id,
            data: &[7; 100],
            flags: number as u32 & 1,
            ..Default::default()
        }
        .encode(&mut out),
        Command::LOCK => lock::Request {
            file_id: id,
            locks: vec![lock::Element {
                offset: number,
                length: 5,
                flags: lock::LockFlags(number as u32 & 0x1f),
            }],
            ..Default::default()
        }
        .encode(&mut out),
        Command::IOCTL => {
            let codes = [
                FsctlCode::SET_SPARSE,
                FsctlCode::SET_ZERO_DATA,
                FsctlCode::QUERY_ALLOCATED_RANGES,
                FsctlCode::CREATE_OR_GET_OBJECT_ID,
                FsctlCode::QUERY_NETWORK_INTERFACE_INFO,
                FsctlCode::DFS_GET_REFERRALS,
                FsctlCode::QUERY_FILE_REGIONS,
                FsctlCode::FILE_LEVEL_TRIM,
                FsctlCode::SRV_REQUEST_RESUME_KEY,
                FsctlCode::SRV_COPYCHUNK,
                FsctlCode::DUPLICATE_EXTENTS_TO_FILE,
                FsctlCode::DUPLICATE_EXTENTS_TO_FILE_EX,
                FsctlCode::OFFLOAD_READ,
                FsctlCode::OFFLOAD_WRITE,
                FsctlCode::SET_COMPRESSION,
                FsctlCode::SET_OBJECT_ID_EXTENDED,
                FsctlCode::GET_RETRIEVAL_POINTERS,
                FsctlCode::READ_FILE_USN_DATA,
                FsctlCode::DELETE_REPARSE_POINT,
                FsctlCode::SET_REPARSE_POINT,
                FsctlCode::GET_REPARSE_POINT,
                FsctlCode::GET_NTFS_VOLUME_DATA,
            ];
            ioctl::Request {
                code: codes[number as usize % codes.len()],
                file_id: id,
                input: &number.to_le_bytes().repeat([1, 2, 4, 5, 7, 68][number as usize % 6]),
                max_output: small,
                flags: 1,
                ..Default::default()
            }
            .encode(&mut out);
        }
        Command::QUERY_DIRECTORY => query_directory::Request {
            class,
            file_id: id,
            output_len: small,
            pattern: "*".into(),
            flags: query_directory::Flags(number as u8),
            ..Default::default()
        }
        .encode(&mut out),
        Command::CHANGE_NOTIFY => {
            notify::Request { file_id: id, output_len: small, ..Default::default() }
                .encode(&mut out)
        }
        Command::QUERY_INFO => query_info::Request {
            info_type: query_info::InfoType(number as u8 % 5),
            class,
            output_len: small,
            additional: 7,
            file_id: id,
            ..Default::default()
        }
        .encode(&mut out),
        Command::SET_INFO => set_info::Request {
            info_type: query_info::InfoType(number as u8 % 5),
            class,
            file_id: id,
            input: &number.to_le_bytes().repeat(8),
            ..Default::default()
        }
        .encode(&mut out),
        _ => Empty.encode(&mut out),
    }
    out.split_off(HEADER_LEN)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever an authenticated client sends, it gets well-formed answers with its own message
    /// ids, or loses its connection; the next client is served.
    #[test]
    fn anything_is_answered_or_ends_the_connection(
        requests in prop::collection::vec(
            (0u16..20, any::<u64>(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), any::<bool>(), 0u8..3),
            1..25,
        )
    ) {
        let mut direct = Direct::new();
        direct.login();
        let files = [
            direct.open("a", create::CreateOptions::NON_DIRECTORY_FILE),
            direct.open("d", create::CreateOptions::DIRECTORY_FILE),
            FileId::RELATED,
        ];
        let mut frame = Vec::new();
        let mut last = 0;
        let mut sent = Vec::new();
        for (command, number, damage, related, file) in requests {
            // A session that ends makes all that follows trivial.
            if [0, 1, 2, 4].contains(&command) { continue; }
            let mut header = direct.header(Command(command));
            if related { header.flags |= HeaderFlags::RELATED; }
            sent.push(header.message_id);
            let mut body = body(command, files[file as usize], number);
            for (at, value) in damage {
                let at = at.index(body.len());
                body[at] = value;
            }
            if related && !frame.is_empty() {
                frame.resize(frame.len().next_multiple_of(8), 0);
                let next = (frame.len() - last) as u32;
                frame[last + 20..last + 24].copy_from_slice(&next.to_le_bytes());
            } else if !frame.is_empty() {
                match direct.send(&mut std::mem::take(&mut frame)) {
                    Ok(list) => for (header, _) in list { prop_assert!(sent.contains(&header.message_id)); },
                    Err(_) => return Ok(()),
                }
            }
            last = frame.len();
            frame.extend_from_slice(&header.to_bytes());
            frame.extend_from_slice(&body);
        }
        let _ = direct.send(&mut frame);
    }

    /// Bytes that are no message at all never do harm.
    #[test]
    fn noise_ends_the_connection(mut noise in prop::collection::vec(any::<u8>(), 0..200), start in 0usize..4) {
        let mut direct = Direct::new();
        let starts: [&[u8]; 4] = [&[0xfe, b'S', b'M', b'B', 64, 0], &[0xff, b'S', b'M', b'B', 0x72], &[0xfd, b'S', b'M', b'B'], &[]];
        noise.splice(0..0, starts[start].iter().copied());
        let mut out = Vec::new();
        let _ = direct.exchange.receive(&mut noise, &mut out);
        prop_assert!(out.len() <= 1024);
    }
}

#[test]
fn a_wrong_signature_is_refused() {
    let mut direct = Direct::new();
    direct.login();
    let channel = direct.exchange.sessions[&direct.session].clone();
    assert!(!channel.session.must_sign);
    // A wrong signature is refused even where none is needed.
    let mut message = direct.header(Command::ECHO).to_bytes().to_vec();
    message[16] |= 8;
    Empty.encode(&mut message);
    let answer = direct.send(&mut message).unwrap();
    assert_eq!(answer[0].0.status, NtStatus::ACCESS_DENIED);
}

/// More than a frame can carry is asked for in one compound.
#[test]
fn a_compound_of_large_reads_is_answered_in_part() {
    let mut direct = Direct::new();
    direct.login();
    let file = direct.open("a", create::CreateOptions::NON_DIRECTORY_FILE);
    let size = 8u32 << 20;
    let grow = (u64::from(size)).to_le_bytes();
    let request = set_info::Request {
        info_type: query_info::InfoType::FILE,
        class: InfoClass::END_OF_FILE,
        file_id: file,
        input: &grow,
        ..Default::default()
    };
    direct.ask(Command::SET_INFO, |out| request.encode(out));
    for _ in 0..20 {
        direct.ask(Command::ECHO, |out| Empty.encode(out));
    }
    let mut frame = Vec::new();
    for index in 0..3 {
        let mut header = direct.header(Command::READ);
        header.credit_charge = 128;
        direct.next_id += 127;
        let mut message = header.to_bytes().to_vec();
        read::Request { length: size, file_id: file, ..Default::default() }.encode(&mut message);
        if index < 2 {
            message.resize(message.len().next_multiple_of(8), 0);
            let next = message.len() as u32;
            message[20..24].copy_from_slice(&next.to_le_bytes());
        }
        frame.extend_from_slice(&message);
    }
    let answers = direct.send(&mut frame).unwrap();
    let statuses: Vec<_> = answers.iter().map(|(header, _)| header.status).collect();
    let full = NtStatus::INSUFFICIENT_RESOURCES;
    assert_eq!(statuses, [NtStatus::SUCCESS, full, full]);
}

/// Others have their turns between the requests of one message, however many stand in it.
#[test]
fn a_compound_gives_way_between_its_requests() {
    use std::task::{Context, Waker};

    let mut direct = Direct::new();
    direct.login();
    for _ in 0..20 {
        direct.ask(Command::ECHO, |out| Empty.encode(out));
    }
    let count = 20;
    let mut frame = Vec::new();
    for index in 0..count {
        let mut message = direct.header(Command::ECHO).to_bytes().to_vec();
        Empty.encode(&mut message);
        if index + 1 < count {
            message.resize(message.len().next_multiple_of(8), 0);
            let next = message.len() as u32;
            message[20..24].copy_from_slice(&next.to_le_bytes());
        }
        frame.extend_from_slice(&message);
    }
    let (mut out, mut turn, mut turns) = (Vec::new(), Turn::step_by_step(), 1);
    {
        let work = direct.exchange.take(&mut frame, 0, &mut out, &mut turn).done();
        let mut work = std::pin::pin!(work);
        while work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            turns += 1;
        }
    }
    assert_eq!(turns, count);
    assert_eq!(answers(&out).len(), count);
}

#[test]
fn a_message_id_cannot_be_used_twice() {
    let mut direct = Direct::new();
    direct.login();
    let mut message = direct.header(Command::ECHO).to_bytes().to_vec();
    Empty.encode(&mut message);
    assert_eq!(direct.send(&mut message.clone()).unwrap()[0].0.status, NtStatus::SUCCESS);
    assert!(direct.send(&mut message).is_err());
}

/// Linux' client drops all of an encrypted frame whose last message says PENDING.
#[test]
fn what_waits_in_a_compound_is_told_apart_from_what_is_answered() {
    let mut direct = Direct::new();
    direct.login();
    let create = create::Request {
        access: create::Access::ALL,
        share: create::ShareAccess(7),
        disposition: create::Disposition::OPEN_IF,
        options: create::CreateOptions::DIRECTORY_FILE,
        name: "d".into(),
        impersonation: 2,
        ..Default::default()
    };
    let mut frame = direct.header(Command::CREATE).to_bytes().to_vec();
    create.encode(&mut frame);
    frame.resize(frame.len().next_multiple_of(8), 0);
    let next = frame.len() as u32;
    frame[20..24].copy_from_slice(&next.to_le_bytes());
    let mut header = direct.header(Command::CHANGE_NOTIFY);
    header.flags |= HeaderFlags::RELATED;
    frame.extend_from_slice(&header.to_bytes());
    let watch = notify::Request {
        file_id: FileId::RELATED,
        output_len: 100,
        filter: 1,
        ..Default::default()
    };
    watch.encode(&mut frame);
    let answers = direct.send(&mut frame).unwrap();
    let seen: Vec<_> = answers.iter().map(|(h, _)| (h.status, h.next_command)).collect();
    assert_eq!(seen, [(NtStatus::SUCCESS, 0), (NtStatus::PENDING, 0)]);
    assert!(create::Response::parse(&answers[0].1).is_ok());
}
