//! What a client that has logged in sends.
//!
//! ```text
//!  input    message*      message   length u16 | bytes
//! ```
//!
//! A message is what follows the frame's length on the wire: a header of 64 bytes and a body, or a
//! compound. So that inputs reach more than the refusal of numbers that cannot be guessed, each header
//! gets the next message id, and the session and the tree of the client; 16 bytes `0xf1` become the
//! identifier of an open file, 16 bytes `0xf2` that of an open folder.
//!
//! Held: every answer is well formed and belongs to a request, or the connection ends.

use std::{path::Path, sync::Arc};

use smb_protocol::{
    Command, Dialect, FileId, Header, NtStatus, SessionId, TreeId,
    fscc::{FsctlCode, InfoClass},
    header::HEADER_LEN,
    msg::{
        close, create, flush, ioctl, lock, negotiate, query_directory, query_info, read,
        session_setup, set_info, tree_connect, write,
    },
};
use smb_server::{Server, config::Config, testing::Wireless};
use test_support::smb_caller::{Logon, answers, setup};

const FILE: [u8; 16] = [0xf1; 16];
const FOLDER: [u8; 16] = [0xf2; 16];
/// Most messages of an input that are sent.
const MESSAGES: usize = 24;

/// A client that has logged in, with a file and a folder open.
struct Client {
    wireless: Wireless,
    next: u64,
    session: SessionId,
    tree: TreeId,
    ids: [[u8; 16]; 2],
}

/// Sends the messages of an input.
pub fn run(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime with timers");
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let folder = tempfile::tempdir().expect("a place for a share");
            let mut client = Client::log_in(folder.path()).await;
            let mut rest = bytes;
            for _ in 0..MESSAGES {
                let Some((len, after)) = rest.split_first_chunk() else { break };
                let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
                if !client.message(&mut after[..len].to_vec()).await {
                    break;
                }
                rest = &after[len..];
            }
        });
    });
}

/// A server with one share in a folder.
fn serve(folder: &Path) -> Arc<Server> {
    std::fs::create_dir(folder.join("files")).expect("the folder is empty");
    let text = format!(
        "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nsigning='enabled'\nencryption='off'\n\
         [limits]\npending_requests=8\n[[user]]\nname='u'\npassword='p'\n\
         [[share]]\nname='s'\npath='files'\nusers=['u']\n",
        folder.join("state").display()
    );
    let config = Config::parse(&text, &folder.join("c")).expect("a configuration");
    Arc::new(Server::new(config).expect("the folders are there"))
}

impl Client {
    async fn log_in(folder: &Path) -> Self {
        let mut client = Self {
            wireless: Wireless::new(serve(folder)),
            next: 0,
            session: SessionId(0),
            tree: TreeId(0),
            ids: [FILE, FOLDER],
        };
        let offer = negotiate::Request {
            dialects: vec![Dialect::SMB_2_1],
            security_mode: negotiate::SecurityMode::SIGNING_ENABLED,
            ..Default::default()
        };
        let (_, body) = client.ask(Command::NEGOTIATE, |out| offer.encode(out)).await;
        let hint = negotiate::Response::parse(&body).expect("an answer").security_buffer;
        let mut logon = Logon::new("u", "p");
        let mut token = logon.first(&hint);
        loop {
            let request = setup(&token);
            let (header, body) =
                client.ask(Command::SESSION_SETUP, |out| request.encode(out)).await;
            client.session = header.session_id;
            if header.status == NtStatus::SUCCESS {
                break;
            }
            assert_eq!(header.status, NtStatus::MORE_PROCESSING_REQUIRED);
            let reply = session_setup::Response::parse(&body).expect("an answer").security_buffer;
            token = logon.second(reply);
        }
        let share = tree_connect::Request { flags: 0, path: "\\\\s\\s".into() };
        let (header, _) = client.ask(Command::TREE_CONNECT, |out| share.encode(out)).await;
        client.tree = header.tree_id();
        let file = create::CreateOptions::NON_DIRECTORY_FILE;
        let folder = create::CreateOptions::DIRECTORY_FILE;
        client.ids = [client.open("a", file).await, client.open("d", folder).await];
        client
    }

    async fn open(&mut self, name: &str, options: create::CreateOptions) -> [u8; 16] {
        let request = opening(name, options);
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out)).await;
        assert_eq!(header.status, NtStatus::SUCCESS);
        let id = create::Response::parse(&body).expect("an answer").file_id;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&id.persistent.to_le_bytes());
        bytes[8..].copy_from_slice(&id.volatile.to_le_bytes());
        bytes
    }

    /// Sends one request that is answered at once.
    async fn ask(&mut self, command: Command, put: impl FnOnce(&mut Vec<u8>)) -> (Header, Vec<u8>) {
        let mut message = head(command).to_bytes().to_vec();
        put(&mut message);
        self.number(&mut message);
        let out = self.wireless.send(&mut message).await.expect("the connection stays");
        answers(&out).pop().expect("an answer")
    }

    /// Gives each header of a message its numbers, and the message the identifiers of what is open.
    /// Returns the message ids.
    fn number(&mut self, message: &mut [u8]) -> Vec<u64> {
        let mut sent = Vec::new();
        let mut at = 0;
        while let Some(header) = message.get_mut(at..at + HEADER_LEN) {
            header[24..32].copy_from_slice(&self.next.to_le_bytes());
            header[36..40].copy_from_slice(&self.tree.0.to_le_bytes());
            header[40..48].copy_from_slice(&self.session.0.to_le_bytes());
            sent.push(self.next);
            let charge = u64::from(u16::from_le_bytes([header[6], header[7]]));
            self.next += charge.clamp(1, 64);
            let next =
                u32::from_le_bytes([header[20], header[21], header[22], header[23]]) as usize;
            if next < HEADER_LEN || sent.len() > 64 {
                break;
            }
            at += next;
        }
        for (mark, id) in [FILE, FOLDER].iter().zip(self.ids) {
            let mut at = 0;
            while let Some(found) = message[at..].windows(16).position(|part| part == mark) {
                message[at + found..at + found + 16].copy_from_slice(&id);
                at += found + 16;
            }
        }
        sent
    }

    /// Sends a message; false once the connection is over.
    async fn message(&mut self, message: &mut [u8]) -> bool {
        let sent = self.number(message);
        let Some(out) = self.wireless.send(message).await else { return false };
        for (header, _) in answers(&out) {
            let id = header.message_id.0;
            assert!(id == u64::MAX || id < self.next, "an answer to nothing: {id}, sent {sent:?}");
        }
        true
    }
}

fn head(command: Command) -> Header {
    Header { command, credit_charge: 1, credits: 32, ..Header::default() }
}

fn opening(name: &str, options: create::CreateOptions) -> create::Request<'_> {
    create::Request {
        access: create::Access::ALL,
        share: create::ShareAccess(7),
        disposition: create::Disposition::OPEN_IF,
        options,
        name: name.into(),
        impersonation: 2,
        ..Default::default()
    }
}

/// A message of each command.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let id = |bytes: [u8; 16]| {
        let half = u64::from_le_bytes([bytes[0]; 8]);
        FileId { persistent: half, volatile: half }
    };
    let (file, folder) = (id(FILE), id(FOLDER));
    let message = |command: Command, put: &dyn Fn(&mut Vec<u8>)| {
        let mut message = head(command).to_bytes().to_vec();
        put(&mut message);
        [&(message.len() as u16).to_le_bytes()[..], &message].concat()
    };
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, bytes| seeds.push((name.into(), bytes));
    let contexts = vec![create::RawContext { name: b"MxAc", data: &[] }];
    let mut create = opening("b", create::CreateOptions(0));
    create.contexts = contexts;
    add("create", message(Command::CREATE, &|out| create.encode(out)));
    let write = write::Request { file_id: file, data: &[7; 100], ..Default::default() };
    let write = message(Command::WRITE, &|out| write.encode(out));
    let read = read::Request { length: 100, file_id: file, ..Default::default() };
    let read = message(Command::READ, &|out| read.encode(out));
    add("write-read", [write, read].concat());
    add("flush", message(Command::FLUSH, &|out| flush::Request { file_id: file }.encode(out)));
    let element = lock::Element { offset: 1, length: 5, flags: lock::LockFlags(2 | 0x10) };
    let locks = lock::Request { file_id: file, locks: vec![element], ..Default::default() };
    add("lock", message(Command::LOCK, &|out| locks.encode(out)));
    for (name, code, input) in [
        ("regions", FsctlCode::QUERY_FILE_REGIONS, 0),
        ("copychunk", FsctlCode::SRV_COPYCHUNK, 56),
        ("zero", FsctlCode::SET_ZERO_DATA, 16),
        ("offload", FsctlCode::OFFLOAD_READ, 32),
    ] {
        let input = vec![1; input];
        let request = ioctl::Request {
            code,
            file_id: file,
            input: &input,
            max_output: 4096,
            flags: 1,
            ..Default::default()
        };
        add(name, message(Command::IOCTL, &|out| request.encode(out)));
    }
    let list = query_directory::Request {
        class: InfoClass(37),
        file_id: folder,
        output_len: 4096,
        pattern: "*".into(),
        ..Default::default()
    };
    add("list", message(Command::QUERY_DIRECTORY, &|out| list.encode(out)));
    let (info_type, class) = (query_info::InfoType(1), InfoClass(18));
    let query = query_info::Request {
        info_type,
        class,
        output_len: 4096,
        file_id: file,
        ..Default::default()
    };
    add("query", message(Command::QUERY_INFO, &|out| query.encode(out)));
    let set = set_info::Request {
        info_type,
        class: InfoClass(20),
        file_id: file,
        input: &[1, 0, 0, 0, 0, 0, 0, 0],
        ..Default::default()
    };
    add("set", message(Command::SET_INFO, &|out| set.encode(out)));
    let close = close::Request { flags: 1, file_id: file };
    add("close", message(Command::CLOSE, &|out| close.encode(out)));
    seeds
}
