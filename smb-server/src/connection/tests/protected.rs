//! What a session demands of its requests, and what it signs.

use smb_protocol::{
    Command, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId,
    header::HEADER_LEN,
    msg::{
        lock::{self, LockFlags},
        simple::Empty,
    },
};

use super::peer::{Guard, House, KINDS, Peer};

/// MS-SMB2 3.3.5.2.9: whatever is asked of a session that must be encrypted is.
#[test]
fn a_session_that_must_be_encrypted_takes_nothing_else() {
    let house = House::new("encryption='desired'");
    for kind in KINDS.into_iter().filter(|kind| kind.0 == Guard::Sealed) {
        for command in [
            Command::LOGOFF,
            Command::TREE_CONNECT,
            Command::TREE_DISCONNECT,
            Command::CREATE,
            Command::READ,
            Command::IOCTL,
            Command::ECHO,
            Command::QUERY_DIRECTORY,
            Command::OPLOCK_BREAK,
        ] {
            let mut peer = Peer::new(&house, kind);
            peer.guard = Guard::Signed;
            let (header, _) = peer.ask(command, |out| Empty.encode(out));
            assert_eq!(header.status, NtStatus::ACCESS_DENIED, "{kind:?} {command:?}");
            peer.guard = Guard::Sealed;
            let (header, _) = peer.ask(Command::ECHO, |out| Empty.encode(out));
            assert_eq!(header.status, NtStatus::SUCCESS, "it is there");
        }
    }
}

/// MS-SMB2 3.3.4.1.1 signs nothing that is encrypted. Windows signs the end of a logon in the session all
/// the same, and Samba's client takes no other: it would be without a session when its ticket ends.
#[test]
fn the_end_of_an_encrypted_logon_is_signed_as_well_and_nothing_else_is() {
    let house = House::new("encryption='offered'");
    for kind in KINDS.into_iter().filter(|kind| kind.0 == Guard::Sealed) {
        let mut peer = Peer::new(&house, kind);
        assert!(peer.log_in_again("u", "p"), "it goes on");
        let mut answer = peer.receive().pop().unwrap();
        let header = Header::parse(&answer).unwrap();
        assert_eq!(header.status, NtStatus::SUCCESS);
        assert!(header.flags.has(HeaderFlags::SIGNED) && peer.is_signed(&mut answer), "{kind:?}");
        let (header, _) = peer.ask(Command::ECHO, |out| Empty.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        assert!(!header.flags.has(HeaderFlags::SIGNED));
    }
}

/// Has a lock wait; the message id of its request and the name that the server gave it.
fn waiting(peer: &mut Peer, file: FileId, other: FileId) -> (u64, u64) {
    let lock = |file_id, flags| lock::Request {
        file_id,
        sequence: 0,
        locks: vec![lock::Element { offset: 0, length: 1, flags: LockFlags(flags) }],
    };
    let held = lock(other, 0x12);
    let (header, _) = peer.ask(Command::LOCK, |out| held.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
    let waits = lock(file, 2);
    let message = peer.message(Command::LOCK, |out| waits.encode(out));
    peer.send(&message);
    let pending = Header::parse(&peer.receive().pop().unwrap()).unwrap();
    assert_eq!(pending.status, NtStatus::PENDING);
    (pending.message_id.0, pending.async_or_tree)
}

pub(super) fn cancel(session: SessionId, (id, name): (u64, u64), by_name: bool) -> Vec<u8> {
    let mut header = Header {
        command: Command::CANCEL,
        message_id: MessageId(id),
        session_id: session,
        ..Header::default()
    };
    if by_name {
        header.flags |= HeaderFlags::ASYNC;
        header.async_or_tree = name;
    }
    let mut message = header.to_bytes().to_vec();
    Empty.encode(&mut message);
    message
}

/// MS-SMB2 3.3.5.2.4, 3.3.5.2.9, 3.3.5.16: what somebody on the path makes up gives up nothing.
#[test]
fn a_cancel_is_protected_as_what_it_gives_up() {
    let house = House::new("signing='required'\nencryption='offered'");
    let kinds = KINDS.into_iter().filter(|kind| kind.0 != Guard::Plain);
    for (kind, by_name) in kinds.flat_map(|kind| [(kind, false), (kind, true)]) {
        let mut peer = Peer::new(&house, kind);
        // One of its own: the server may not have noticed yet that the last client is gone.
        let name = format!("file-{}", peer.session.0);
        let (file, other) = (peer.create(&name), peer.create(&name));
        let target = waiting(&mut peer, file, other);
        for session in [SessionId(0), peer.session, SessionId(peer.session.0 ^ 1)] {
            // Without signature, and with one that is none.
            peer.guard = Guard::Plain;
            let plain = cancel(session, target, by_name);
            peer.send(&plain);
            let mut forged = plain;
            let mut header = Header::parse(&forged).unwrap();
            header.flags |= HeaderFlags::SIGNED;
            header.signature = [7; 16];
            forged[..HEADER_LEN].copy_from_slice(&header.to_bytes());
            peer.send(&forged);
        }
        peer.guard = kind.0;
        if kind.0 == Guard::Sealed {
            // Signed rightly, where the target was encrypted.
            peer.guard = Guard::Signed;
            let signed = cancel(peer.session, target, by_name);
            peer.send(&signed);
            peer.guard = Guard::Sealed;
        }
        let (header, _) = peer.ask(Command::ECHO, |out| Empty.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS, "the lock waits: {kind:?}");
        let right = cancel(peer.session, target, by_name);
        peer.send(&right);
        let ended = Header::parse(&peer.receive().pop().unwrap()).unwrap();
        assert_eq!((ended.status, ended.message_id.0), (NtStatus::CANCELLED, target.0));
    }
}

/// A request that waits while as many others are answered as no window of nonces holds is signed
/// all the same.
#[test]
fn what_waited_for_long_is_signed() {
    let house = House::new("signing='required'\nencryption='off'");
    let mut peer = Peer::new(&house, KINDS[2]);
    let (file, other) = (peer.create("file"), peer.create("file"));
    let target = waiting(&mut peer, file, other);
    for _ in 0..1100 {
        // Many at once: it is about their number.
        let messages: Vec<_> =
            (0..64).map(|_| peer.message(Command::ECHO, |out| Empty.encode(out))).collect();
        let frames: Vec<u8> =
            messages.iter().flat_map(|message| peer.frame(std::slice::from_ref(message))).collect();
        peer.send_frame(&frames);
        for _ in 0..64 {
            assert_eq!(peer.receive().len(), 1);
        }
    }
    let cancelled = cancel(peer.session, target, true);
    peer.send(&cancelled);
    let ended = Header::parse(&peer.receive().pop().unwrap()).unwrap();
    assert_eq!((ended.status, ended.message_id.0), (NtStatus::CANCELLED, target.0));
}
