//! Requests of one frame: what goes from one to the next, and those that wait without a word.

use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, NtStatus,
    fscc::{InfoClass, file_info::Rename},
    header::HEADER_LEN,
    msg::{
        close,
        context::{Lease, LeaseState, names},
        create::{self, Access, Disposition, RawContext, ShareAccess},
        oplock::{LeaseAck, OplockLevel},
        query_info::{self, InfoType},
        set_info,
        simple::Empty,
    },
};

use super::{
    peer::{House, KINDS, Peer},
    protected::cancel,
};

fn house() -> House {
    House::new("signing='enabled'\nencryption='offered'")
}

/// A request about the file of the request before it.
fn related(mut message: Vec<u8>) -> Vec<u8> {
    let mut header = Header::parse(&message).unwrap();
    header.flags |= HeaderFlags::RELATED;
    message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    message
}

fn opening(name: &str) -> create::Request<'static> {
    create::Request {
        access: Access::ALL,
        share: ShareAccess(7),
        disposition: Disposition::OPEN_IF,
        name: name.into(),
        impersonation: 2,
        ..Default::default()
    }
}

fn statuses(answers: &[Vec<u8>]) -> Vec<NtStatus> {
    answers.iter().map(|answer| Header::parse(answer).unwrap().status).collect()
}

/// MS-SMB2 3.3.4.2: a change of information waits without a word. What stands before it in its frame
/// is answered with it, protected as it must be; others are served meanwhile.
#[test]
fn a_rename_that_waits_is_answered_with_its_compound() {
    let house = house();
    for (number, kind) in KINDS.into_iter().enumerate() {
        for before in 0..2 {
            let name = format!("from-{number}-{before}");
            let mut owner = Peer::new(&house, KINDS[0]);
            let held = LeaseState::READ.or(LeaseState::HANDLE);
            let lease = Lease { key: [number as u8; 16], state: held, flags: 0, v2: None };
            open_leased(&mut owner, &name, lease);
            let mut peer = Peer::new(&house, kind);
            let mut messages = Vec::new();
            for _ in 0..before {
                messages.push(peer.message(Command::ECHO, |out| Empty.encode(out)));
            }
            let opens = opening(&name);
            messages.push(peer.message(Command::CREATE, |out| opens.encode(out)));
            let mut input = Vec::new();
            Rename { name: format!("to-{number}-{before}"), ..Rename::default() }
                .encode(&mut input);
            let renames = set_info::Request {
                info_type: InfoType::FILE,
                class: InfoClass::RENAME,
                file_id: FileId::RELATED,
                input: &input,
                ..Default::default()
            };
            let message = peer.message(Command::SET_INFO, |out| renames.encode(out));
            messages.push(related(message));
            let closes = close::Request { flags: 0, file_id: FileId::RELATED };
            let message = peer.message(Command::CLOSE, |out| closes.encode(out));
            messages.push(related(message));
            let frame = peer.frame(&messages);
            peer.send_frame(&frame);
            let told = owner.receive().pop().unwrap();
            assert_eq!(Header::parse(&told).unwrap().command, Command::OPLOCK_BREAK);
            // Nothing has come of the compound when this is answered.
            let (header, _) = peer.ask(Command::ECHO, |out| Empty.encode(out));
            assert_eq!((header.command, header.status), (Command::ECHO, NtStatus::SUCCESS));
            let ack = LeaseAck { key: lease.key, state: LeaseState::READ.0 };
            let (header, _) = owner.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
            assert_eq!(header.status, NtStatus::SUCCESS);
            let answers = peer.receive();
            assert_eq!(statuses(&answers), vec![NtStatus::SUCCESS; messages.len()], "{kind:?}");
            let headers: Vec<_> = answers.iter().map(|a| Header::parse(a).unwrap()).collect();
            assert!(headers.iter().all(|header| !header.flags.has(HeaderFlags::ASYNC)));
            assert!(headers.iter().all(|header| header.credits > 0), "each is paid for");
            // The next requests are signed and answered as ever.
            let (header, _) = peer.ask(Command::ECHO, |out| Empty.encode(out));
            assert_eq!(header.status, NtStatus::SUCCESS);
        }
    }
}

/// Opens a file with a lease.
fn open_leased(owner: &mut Peer, name: &str, lease: Lease) {
    let data = lease.to_bytes();
    let mut request = opening(name);
    request.oplock = OplockLevel::LEASE;
    request.contexts = vec![RawContext { name: names::RQLS, data: &data }];
    let (header, _) = owner.ask(Command::CREATE, |out| request.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
}

/// MS-SMB2 3.3.5.16: what stands behind a request that waits is cancelled before it waits itself; what
/// is cancelled of another session is not.
#[test]
fn a_request_behind_one_that_waits_is_cancelled() {
    let house = house();
    for (number, kind) in KINDS.into_iter().enumerate() {
        let lease = |key| Lease {
            key: [key; 16],
            state: LeaseState::READ.or(LeaseState::WRITE),
            flags: 0,
            v2: None,
        };
        let mut owner = Peer::new(&house, KINDS[0]);
        let leases = [lease(2 * number as u8), lease(2 * number as u8 + 1)];
        let names = [format!("first-{number}"), format!("second-{number}")];
        for (name, lease) in names.iter().zip(leases) {
            open_leased(&mut owner, name, lease);
        }
        let mut peer = Peer::new(&house, kind);
        let creates = names.each_ref().map(|name| {
            let opens = opening(name);
            peer.message(Command::CREATE, |out| opens.encode(out))
        });
        let [first, second] =
            creates.each_ref().map(|create| Header::parse(create).unwrap().message_id);
        let frame = peer.frame(&creates);
        peer.send_frame(&frame);
        assert_eq!(statuses(&peer.receive()), [NtStatus::PENDING]);
        let told = owner.receive().pop().unwrap();
        assert_eq!(Header::parse(&told).unwrap().command, Command::OPLOCK_BREAK);
        let gives_up = cancel(peer.session, (second.0, 0), false);
        peer.send(&gives_up);
        // That was read when this is answered.
        let (header, _) = peer.ask(Command::ECHO, |out| Empty.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        let ack = LeaseAck { key: leases[0].key, state: LeaseState::READ.0 };
        let (header, _) = owner.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        let mut ends = Vec::new();
        while ends.len() < 2 {
            for answer in peer.receive() {
                let header = Header::parse(&answer).unwrap();
                if header.status != NtStatus::PENDING {
                    ends.push((header.message_id, header.status));
                }
            }
        }
        assert_eq!(ends, [(first, NtStatus::SUCCESS), (second, NtStatus::CANCELLED)], "{kind:?}");
    }
}

/// MS-SMB2 3.3.5.2.7.2: a related request is about the file of the one before, whatever it names.
#[test]
fn a_related_request_names_no_file_of_its_own() {
    let house = house();
    for kind in KINDS {
        let mut peer = Peer::new(&house, kind);
        let other = peer.create("other");
        peer.write(other, b"much more");
        let none = FileId { persistent: u64::MAX, volatile: 0 };
        for named in [FileId::RELATED, none, other, FileId { persistent: 77, volatile: 77 }] {
            let opens = opening(&format!("file-{}", peer.session.0));
            let asks = query_info::Request {
                info_type: InfoType::FILE,
                class: InfoClass::STANDARD,
                output_len: 24,
                file_id: named,
                ..Default::default()
            };
            let closes = close::Request { flags: 0, file_id: named };
            let messages = [
                peer.message(Command::CREATE, |out| opens.encode(out)),
                related(peer.message(Command::QUERY_INFO, |out| asks.encode(out))),
                related(peer.message(Command::CLOSE, |out| closes.encode(out))),
            ];
            let frame = peer.frame(&messages);
            peer.send_frame(&frame);
            let answers = peer.receive();
            assert_eq!(statuses(&answers), [NtStatus::SUCCESS; 3], "{kind:?} {named:?}");
            // EndOfFile of a file that has nothing in it.
            assert_eq!(answers[1][HEADER_LEN + 8 + 8..][..8], [0; 8]);
        }
        // There is no file before it.
        let asks = close::Request { flags: 0, file_id: other };
        let messages = [
            peer.message(Command::ECHO, |out| Empty.encode(out)),
            related(peer.message(Command::CLOSE, |out| asks.encode(out))),
        ];
        let frame = peer.frame(&messages);
        peer.send_frame(&frame);
        let want = [NtStatus::SUCCESS, NtStatus::INVALID_HANDLE];
        assert_eq!(statuses(&peer.receive()), want, "{kind:?}");
        let (header, _) = peer.ask(Command::CLOSE, |out| asks.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS, "it is open still");
    }
}

/// MS-SMB2 3.3.1.2: who has logged in is granted what it asks for at once.
#[test]
fn the_end_of_a_logon_grants_what_is_asked_for() {
    let house = house();
    let mut peer = Peer::strange(&house, (KINDS[0].0, Dialect::SMB_2_1, KINDS[0].2));
    peer.credits = 1000;
    peer.enter();
    assert_eq!(peer.granted, 1000);
}
