//! What is deleted when its last user leaves, and what has gone before: a server that warns of what is
//! in order fails these tests when it is stopped.

use bulkhead_tests::{
    raw::ask,
    smbd::{PASSWORD, Smbd, USER},
};
use smb_client::{ConnectOptions, Login, raw::RawConnection};
use smb_protocol::{
    Command, FileId, NtStatus,
    fscc::{InfoClass, file_info},
    msg::{
        close,
        create::{self, Access, CreateOptions, Disposition, ShareAccess},
        query_info::InfoType,
        set_info,
    },
};

struct Client(RawConnection);

impl Client {
    fn new(server: &Smbd) -> Self {
        let options = ConnectOptions::new("127.0.0.1", server.port(), Login::new(USER, PASSWORD));
        Self(RawConnection::connect_share(&options, "vms").unwrap())
    }

    fn ask(&mut self, command: Command, encode: impl FnOnce(&mut Vec<u8>)) -> (NtStatus, Vec<u8>) {
        ask(&mut self.0, command, encode)
    }

    fn open(&mut self, name: &str, options: CreateOptions) -> FileId {
        let request = create::Request {
            impersonation: 2,
            access: Access::READ_DATA | Access::WRITE_DATA | Access::DELETE,
            share: ShareAccess(7),
            disposition: Disposition::OPEN_IF,
            options,
            name: name.into(),
            ..Default::default()
        };
        let (status, body) = self.ask(Command::CREATE, |out| request.encode(out));
        assert_eq!(status, NtStatus::SUCCESS, "{name}");
        create::Response::parse(&body).unwrap().file_id
    }

    fn set(&mut self, file_id: FileId, class: InfoClass, input: &[u8]) {
        let info_type = InfoType::FILE;
        let request = set_info::Request { info_type, class, file_id, input, ..Default::default() };
        let (status, _) = self.ask(Command::SET_INFO, |out| request.encode(out));
        assert_eq!(status, NtStatus::SUCCESS, "{class:?}");
    }

    fn close(&mut self, file_id: FileId) {
        let request = close::Request { flags: 0, file_id };
        let (status, _) = self.ask(Command::CLOSE, |out| request.encode(out));
        assert_eq!(status, NtStatus::SUCCESS);
    }
}

/// The streams of all files of the share.
fn streams(server: &Smbd) -> usize {
    let folder = server.files().join(".bulkhead/streams");
    std::fs::read_dir(folder).map_or(0, |entries| {
        entries.map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap().count()).sum()
    })
}

#[test]
fn a_stream_that_went_with_its_file_is_no_failure() {
    let server = Smbd::start("", "");
    let mut client = Client::new(&server);
    // Its file is deleted by POSIX' rules, while the stream is open and to be deleted itself.
    let file = client.open("file", CreateOptions::NONE);
    let stream = client.open("file:stream", CreateOptions::DELETE_ON_CLOSE);
    let flags = file_info::Disposition::DELETE | file_info::Disposition::POSIX_SEMANTICS;
    client.set(file, InfoClass::DISPOSITION_EX, &flags.0.to_le_bytes());
    client.close(file);
    assert!(!server.files().join("file").exists());
    assert_eq!(streams(&server), 0, "it goes with its file");
    client.close(stream);
}

#[test]
fn a_stream_is_deleted_once_by_whoever_leaves_last() {
    let server = Smbd::start("", "");
    let mut client = Client::new(&server);
    let first = client.open("file:stream", CreateOptions::DELETE_ON_CLOSE);
    let second = client.open("file:stream", CreateOptions::NONE);
    let kept = client.open("file:kept", CreateOptions::NONE);
    client.close(second);
    client.close(first);
    assert_eq!(streams(&server), 1);
    client.close(kept);
    // All at once, when the connection goes.
    client.open("file:kept", CreateOptions::DELETE_ON_CLOSE);
    client.open("file:other", CreateOptions::DELETE_ON_CLOSE);
    client.open("file", CreateOptions::DELETE_ON_CLOSE);
    drop(client);
    let mut next = Client::new(&server);
    while server.files().join("file").exists() {
        let folder = next.open("", CreateOptions::DIRECTORY_FILE);
        next.close(folder);
    }
    assert_eq!(streams(&server), 0);
}
