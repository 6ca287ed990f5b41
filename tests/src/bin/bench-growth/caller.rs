//! A client that costs little and can be there ten thousand times: one connection, requests queued and
//! counted, nothing kept of the answers but what is asked for.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use bulkhead_tests::smbd::{PASSWORD, Smbd, USER};
use smb_client::{
    ConnectOptions, Login,
    raw::{Compounded, RawConnection},
};
use smb_protocol::{
    Command, Dialect, FileId, Header, NtStatus,
    fscc::{FileAttributes, InfoClass},
    msg::{
        close, context,
        context::{DurableV2, ReconnectV2},
        create,
        create::{Access, CreateOptions, Disposition, RawContext, ShareAccess},
        lock,
        lock::{Element, LockFlags},
        negotiate,
        notify::{self, ChangeFilter},
        query_directory, read, simple,
    },
};

/// Requests that are outstanding at a time.
const DEPTH: usize = 32;
/// Bytes of a READ.
const BLOCK: u32 = 4096;
/// Bytes of an answer to QUERY_DIRECTORY: with its header it fits into what is received at a time.
const LISTED: u32 = 60_000;

/// Where locks begin: behind all that is read.
const LOCKED: u64 = 1 << 30;

/// What fails, in words.
pub type Outcome<T> = Result<T, String>;

fn said(error: smb_client::Error) -> String {
    error.to_string()
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// One that is there, to read and write, and to be locked.
    File,
    /// One that is not there, made and deleted by its close.
    New,
    /// A folder, to be listed and watched.
    Folder,
    /// One that is there, by an open that outlives the server, with this identity.
    Persistent([u8; 16]),
    /// The same, taken up again.
    Again([u8; 16], FileId),
}

impl How {
    /// The CREATE for a path in a share, with `\` between its parts.
    fn body(self, path: &str) -> Vec<u8> {
        let (directory, new) = (self == Self::Folder, self == Self::New);
        let mut access = Access::READ_DATA | Access::READ_ATTRIBUTES | Access::SYNCHRONIZE;
        let kind = if directory {
            CreateOptions::DIRECTORY_FILE
        } else {
            CreateOptions::NON_DIRECTORY_FILE
        };
        let mut options = kind;
        if !directory {
            access |= Access::WRITE_DATA;
        }
        if new {
            access |= Access::DELETE;
            options |= CreateOptions::DELETE_ON_CLOSE;
        }
        let context = match self {
            Self::Persistent(create_guid) => {
                let flags = DurableV2::PERSISTENT;
                let asked = DurableV2 { timeout: 600_000, flags, create_guid };
                Some((context::names::DH2Q, asked.to_bytes()))
            }
            Self::Again(create_guid, file_id) => {
                let asked = ReconnectV2 { file_id, create_guid, flags: DurableV2::PERSISTENT };
                Some((context::names::DH2C, asked.to_bytes()))
            }
            _ => None,
        };
        let contexts = context.iter().map(|(name, data)| RawContext { name, data }).collect();
        let request = create::Request {
            impersonation: 2,
            access,
            attributes: FileAttributes::NORMAL,
            share: ShareAccess::READ | ShareAccess::WRITE | ShareAccess::DELETE,
            disposition: if new { Disposition::CREATE } else { Disposition::OPEN },
            options,
            name: path.to_owned(),
            contexts,
            ..Default::default()
        };
        let mut body = Vec::new();
        request.encode(&mut body);
        body
    }
}

/// A connection, logged in and connected to a share.
pub struct Caller {
    wire: RawConnection,
    /// Which of many things is next.
    turn: u64,
    /// What was opened last of many.
    last: Option<FileId>,
}

/// How to connect to a server.
pub fn options(server: &Smbd) -> ConnectOptions {
    let login = Login::new(USER, PASSWORD);
    let mut options = ConnectOptions::new("127.0.0.1", server.port(), login);
    options.credits = 128;
    options.request_timeout = Duration::from_secs(300);
    options
}

impl Caller {
    /// Connects to a share.
    pub fn new(server: &Smbd, share: &str) -> Outcome<Self> {
        let wire = RawConnection::connect_share(&options(server), share).map_err(said)?;
        Ok(Self { wire, turn: 0, last: None })
    }

    /// Connects to a share as the client of that GUID.
    pub fn of_client(server: &Smbd, share: &str, client: [u8; 16]) -> Outcome<Self> {
        let wire =
            RawConnection::connect_share_as(&options(server), share, client).map_err(said)?;
        Ok(Self { wire, turn: 0, last: None })
    }

    /// What [`Caller::open_all`] opened last.
    pub fn last_opened(&self) -> Option<FileId> {
        self.last
    }

    /// Whether the server at an address answers a NEGOTIATE now.
    pub fn negotiated(address: SocketAddr) -> bool {
        let ask = || -> std::io::Result<u32> {
            let mut stream = TcpStream::connect(address)?;
            let request = negotiate::Request {
                dialects: vec![Dialect::SMB_3_0_2],
                ..negotiate::Request::default()
            };
            let header = Header { command: Command::NEGOTIATE, credits: 1, ..Header::default() };
            let mut message = header.to_bytes().to_vec();
            request.encode(&mut message);
            let length = u32::try_from(message.len()).unwrap_or(0);
            stream.write_all(&[&length.to_be_bytes()[..], &message].concat())?;
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            Ok(u32::from_be_bytes(length))
        };
        ask().is_ok_and(|length| length > 64)
    }

    /// Sends `count` messages of `parts` requests each, a few at a time, and shows the answers by their
    /// numbers, with nothing of those that ended as is `allowed`; how the first ended that failed.
    fn many(
        &mut self,
        (count, parts): (usize, usize),
        allowed: &[NtStatus],
        mut queue: impl FnMut(&mut RawConnection, usize),
        mut show: impl FnMut(u64, Option<&[u8]>),
    ) -> Outcome<()> {
        let (mut sent, mut answered, mut failed) = (0, 0, None);
        while answered < count * parts {
            while sent < count && sent * parts < answered + DEPTH && self.wire.can_queue(0) {
                queue(&mut self.wire, sent);
                sent += 1;
            }
            self.wire.send().map_err(said)?;
            answered += self
                .wire
                .receive_all(|header, body| {
                    if header.status == NtStatus::SUCCESS {
                        show(header.message_id.0, Some(body));
                    } else if allowed.contains(&header.status) {
                        show(header.message_id.0, None);
                    } else {
                        failed.get_or_insert((header.command, header.status));
                    }
                })
                .map_err(said)?;
        }
        failed.map_or(Ok(()), |(command, status)| Err(format!("{command:?}: {status}")))
    }

    /// Asks one thing; the body of the answer.
    fn ask(&mut self, command: Command, body: &[u8]) -> Outcome<Vec<u8>> {
        let mut answer = Vec::new();
        self.many(
            (1, 1),
            &[],
            |wire, _| {
                wire.queue_request(command, |out| out.extend_from_slice(body));
            },
            |_, body| answer.extend_from_slice(body.unwrap_or_default()),
        )?;
        Ok(answer)
    }

    /// Opens one thing.
    pub fn open(&mut self, path: &str, how: How) -> Outcome<FileId> {
        let answer = self.ask(Command::CREATE, &how.body(path))?;
        Ok(create::Response::parse(&answer).map_err(|error| error.to_string())?.file_id)
    }

    /// Opens many, and lets them be open; in the order in which they are named.
    pub fn open_all(
        &mut self,
        count: usize,
        what: impl Fn(usize) -> (String, How),
    ) -> Outcome<Vec<FileId>> {
        let (mut asked, mut ids) = (HashMap::new(), vec![FileId::default(); count]);
        let mut answers = Vec::new();
        self.many(
            (count, 1),
            &[],
            |wire, at| {
                let (path, how) = what(at);
                let body = how.body(&path);
                asked.insert(wire.queue_request(Command::CREATE, |out| out.extend(body)), at);
            },
            |message, body| {
                if let Ok(answer) = create::Response::parse(body.unwrap_or_default()) {
                    answers.push((message, answer.file_id));
                }
            },
        )?;
        for (message, id) in answers {
            ids[asked[&message]] = id;
        }
        self.last = ids.last().copied();
        Ok(ids)
    }

    /// Opens and closes in one message, `count` times, what `what` names by its number.
    pub fn open_close(&mut self, count: usize, what: impl Fn(u64) -> (String, How)) -> Outcome<()> {
        let mut closes = Vec::new();
        close::Request { flags: 0, file_id: FileId::RELATED }.encode(&mut closes);
        let mut turn = self.turn;
        let done = self.many(
            (count, 2),
            &[],
            |wire, _| {
                let (path, how) = what(turn);
                turn += 1;
                let body = how.body(&path);
                let part = |command, related, body| Compounded { command, related, body };
                wire.queue_compound(&[
                    part(Command::CREATE, false, &body),
                    part(Command::CLOSE, true, &closes),
                ]);
            },
            |_, _| {},
        );
        self.turn = turn;
        done
    }

    /// Reads 4 KiB of a file at different places, `count` times.
    pub fn read(&mut self, file: FileId, blocks: u64, count: usize) -> Outcome<()> {
        let mut turn = self.turn;
        let done = self.many(
            (count, 1),
            &[],
            |wire, _| {
                turn = turn.wrapping_add(7919);
                let offset = turn % blocks * u64::from(BLOCK);
                let request =
                    read::Request { length: BLOCK, offset, file_id: file, ..Default::default() };
                wire.queue_request(Command::READ, |out| request.encode(out));
            },
            |_, _| {},
        );
        self.turn = turn;
        done
    }

    /// Lists a folder from its start, up to that many answers; how many bytes came and whether that was
    /// all.
    pub fn list(&mut self, folder: FileId, most: usize) -> Outcome<Listed> {
        let mut listed = Listed::default();
        for at in 0..most {
            let flags = match at {
                0 => query_directory::Flags::RESTART_SCANS,
                _ => query_directory::Flags::NONE,
            };
            let request = query_directory::Request {
                class: InfoClass::ID_BOTH_DIRECTORY,
                flags,
                file_id: folder,
                output_len: LISTED,
                pattern: "*".to_owned(),
                ..Default::default()
            };
            self.many(
                (1, 1),
                &[NtStatus::NO_MORE_FILES],
                |wire, _| {
                    wire.queue_request(Command::QUERY_DIRECTORY, |out| request.encode(out));
                },
                |_, body| match body.map(query_directory::Response::parse) {
                    Some(Ok(answer)) => listed.entries += entries(answer.output),
                    Some(Err(_)) | None => listed.whole = true,
                },
            )?;
            if listed.whole {
                break;
            }
        }
        Ok(listed)
    }

    /// Locks a range of a file for itself alone and lets go of it, `count` times, at places of which
    /// none is locked.
    pub fn lock_unlock(&mut self, file: FileId, places: u64, count: usize) -> Outcome<()> {
        let mut turn = self.turn;
        let done = self.many(
            (count * 2, 1),
            &[],
            |wire, at| {
                if at % 2 == 0 {
                    turn = turn.wrapping_add(7919);
                }
                let flags = match at % 2 {
                    0 => LockFlags::EXCLUSIVE | LockFlags::FAIL_IMMEDIATELY,
                    _ => LockFlags::UNLOCK,
                };
                let offset = LOCKED + turn % places * 16 + 8;
                let locks = vec![Element { offset, length: 4, flags }];
                let request = lock::Request { file_id: file, sequence: 0, locks };
                wire.queue_request(Command::LOCK, |out| request.encode(out));
            },
            |_, _| {},
        );
        self.turn = turn;
        done
    }

    /// Locks that many ranges of a file, which stay locked.
    pub fn lock_all(&mut self, file: FileId, count: usize) -> Outcome<()> {
        self.many(
            (count, 1),
            &[],
            |wire, at| {
                let flags = LockFlags::EXCLUSIVE | LockFlags::FAIL_IMMEDIATELY;
                let locks = vec![Element { offset: LOCKED + at as u64 * 16, length: 4, flags }];
                let request = lock::Request { file_id: file, sequence: 0, locks };
                wire.queue_request(Command::LOCK, |out| request.encode(out));
            },
            |_, _| {},
        )
    }

    /// Begins to watch folders, for which there is no answer until something happens.
    pub fn watch_all(&mut self, folders: &[FileId]) -> Outcome<()> {
        for chunk in folders.chunks(DEPTH) {
            for folder in chunk {
                let request = notify::Request {
                    flags: 0,
                    output_len: 4096,
                    file_id: *folder,
                    filter: (ChangeFilter::FILE_NAME | ChangeFilter::LAST_WRITE).0,
                };
                self.wire.queue_request(Command::CHANGE_NOTIFY, |out| request.encode(out));
            }
            // What it answers to this it does after it has those.
            let mut body = Vec::new();
            simple::Empty.encode(&mut body);
            self.ask(Command::ECHO, &body)?;
        }
        Ok(())
    }

    /// Connects to a share and leaves it again, `count` times.
    pub fn come_and_go(&mut self, share: &str, count: usize) -> Outcome<()> {
        for _ in 0..count {
            self.wire.visit(share).map_err(said)?;
        }
        Ok(())
    }
}

/// What a listing came to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Listed {
    /// Entries that came.
    pub entries: usize,
    /// There are no more.
    pub whole: bool,
}

/// Counts entries, each of which begins with the way to the next (MS-FSCC 2.4).
fn entries(mut list: &[u8]) -> usize {
    let mut count = 0;
    while let Some(next) = list.first_chunk::<4>() {
        count += 1;
        match u32::from_le_bytes(*next) as usize {
            0 => break,
            next => list = list.get(next..).unwrap_or_default(),
        }
    }
    count
}
