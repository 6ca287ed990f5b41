//! Reads of pipes that have nothing yet (MS-SMB2 3.3.5.12).

use smb_protocol::{
    Command, FileId, Header, NtStatus,
    fscc::InfoClass,
    header::HEADER_LEN,
    msg::{
        close,
        create::{self, Access, Disposition, ShareAccess},
        query_info::InfoType,
        read, set_info, tree_connect, write,
    },
};

use super::{
    peer::{House, KINDS, Peer},
    protected::cancel,
};

/// A DCE/RPC bind to the accounts' names (C706, 12.6.4.3; MS-LSAT 1.9).
fn bind() -> Vec<u8> {
    let mut bind = vec![5, 0, 11, 3, 0x10, 0, 0, 0, 72, 0, 0, 0, 1, 0, 0, 0];
    bind.extend([0xb8, 0x10, 0xb8, 0x10, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]);
    bind.extend([0x78, 0x57, 0x34, 0x12, 0x34, 0x12, 0xcd, 0xab]);
    bind.extend([0xef, 0x00, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0, 0, 0, 0]);
    bind.extend([0x04, 0x5d, 0x88, 0x8a, 0xeb, 0x1c, 0xc9, 0x11]);
    bind.extend([0x9f, 0xe8, 0x08, 0x00, 0x2b, 0x10, 0x48, 0x60, 2, 0, 0, 0]);
    bind
}

fn open(peer: &mut Peer) -> FileId {
    let request = create::Request {
        access: Access::READ_DATA.or(Access::WRITE_DATA),
        share: ShareAccess(3),
        disposition: Disposition::OPEN,
        name: "lsarpc".into(),
        impersonation: 2,
        ..Default::default()
    };
    let (header, body) = peer.ask(Command::CREATE, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
    create::Response::parse(&body).unwrap().file_id
}

/// Asks to read what is not there yet; the message id, and the name that the server gave it.
fn reading(peer: &mut Peer, file_id: FileId) -> (u64, u64) {
    let request = read::Request { length: 1024, file_id, ..Default::default() };
    let message = peer.message(Command::READ, |out| request.encode(out));
    peer.send(&message);
    let pending = Header::parse(&peer.receive().pop().unwrap()).unwrap();
    assert_eq!((pending.command, pending.status), (Command::READ, NtStatus::PENDING));
    (pending.message_id.0, pending.async_or_tree)
}

/// The next two answers, that of the other command and that of the READ.
fn both(peer: &mut Peer) -> (NtStatus, NtStatus, Vec<u8>) {
    let mut answers = [peer.receive().pop().unwrap(), peer.receive().pop().unwrap()];
    answers.sort_by_key(|answer| Header::parse(answer).unwrap().command == Command::READ);
    let [other, read] = answers;
    let status = |answer: &[u8]| Header::parse(answer).unwrap().status;
    (status(&other), status(&read), read[HEADER_LEN..].to_vec())
}

#[test]
fn a_read_of_a_pipe_waits_for_what_is_to_be_read() {
    let house = House::new("signing='enabled'\nencryption='offered'");
    for kind in [KINDS[0], KINDS[2], KINDS[4]] {
        let mut peer = Peer::new(&house, kind);
        let request = tree_connect::Request { flags: 0, path: "\\\\h\\IPC$".into() };
        let (header, _) = peer.ask(Command::TREE_CONNECT, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        peer.tree = header.tree_id();
        // What is written makes something to be read.
        let pipe = open(&mut peer);
        reading(&mut peer, pipe);
        let data = bind();
        let request = write::Request { file_id: pipe, data: &data, ..Default::default() };
        let message = peer.message(Command::WRITE, |out| request.encode(out));
        peer.send(&message);
        let (wrote, read, body) = both(&mut peer);
        assert_eq!((wrote, read), (NtStatus::SUCCESS, NtStatus::SUCCESS), "{kind:?}");
        let answer = read::Response::parse(&body).unwrap().data.to_vec();
        assert_eq!(answer[2], 12, "a bind_ack");
        // It is given up.
        let target = reading(&mut peer, pipe);
        let message = cancel(peer.session, target, true);
        peer.send(&message);
        let ended = Header::parse(&peer.receive().pop().unwrap()).unwrap();
        assert_eq!((ended.status, ended.message_id.0), (NtStatus::CANCELLED, target.0));
        // The pipe is closed.
        reading(&mut peer, pipe);
        let request = close::Request { flags: 0, file_id: pipe };
        let message = peer.message(Command::CLOSE, |out| request.encode(out));
        peer.send(&message);
        let (closed, read, _) = both(&mut peer);
        assert_eq!((closed, read), (NtStatus::SUCCESS, NtStatus::PIPE_BROKEN), "{kind:?}");
        // A client can say that it does not want to wait (MS-FSCC 2.4.37).
        let pipe = open(&mut peer);
        let request = set_info::Request {
            info_type: InfoType::FILE,
            class: InfoClass::PIPE,
            file_id: pipe,
            input: &[1, 0, 0, 0, 1, 0, 0, 0],
            ..Default::default()
        };
        let (header, _) = peer.ask(Command::SET_INFO, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        let request = read::Request { length: 1024, file_id: pipe, ..Default::default() };
        let (header, _) = peer.ask(Command::READ, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::PIPE_EMPTY, "{kind:?}");
    }
}
