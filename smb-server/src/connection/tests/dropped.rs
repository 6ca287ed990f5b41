//! A message that ends with its connection: what was answered before it comes whole, and after it
//! nothing, whatever stood beside it in its frame.

use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId,
    crypto::SigningAlgorithm,
    fscc::{FsctlCode, fsctl::ValidateNegotiate},
    header::HEADER_LEN,
    msg::{
        ioctl,
        lock::{self, LockFlags},
        read,
        simple::Empty,
    },
};

use super::peer::{Guard, House, KINDS, Peer};

/// What must never be seen but encrypted, or by who asked for it.
const SECRET: &[u8] = b"what the file is about";

const NOTHING: [u8; 0] = [];

/// Each way to lose the connection that a message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    SecondNegotiate,
    IdNotGranted,
    IdUsed,
    ChargeNotGranted,
    Response,
    ShortHeader,
    NextCommandInside,
    NextCommandOutside,
    NextCommandUneven,
    CancelInCompound,
    TamperedNegotiation,
    NegotiationOf311,
    NoRoomForNegotiation,
    UnsignedTreeConnect,
    UnknownCommand,
    // Of encrypted frames.
    OtherSession,
    NoSession,
}
use Ends::*;

const ALL: [Ends; 17] = [
    SecondNegotiate,
    IdNotGranted,
    IdUsed,
    ChargeNotGranted,
    Response,
    ShortHeader,
    NextCommandInside,
    NextCommandOutside,
    NextCommandUneven,
    CancelInCompound,
    TamperedNegotiation,
    NegotiationOf311,
    NoRoomForNegotiation,
    UnsignedTreeConnect,
    UnknownCommand,
    OtherSession,
    NoSession,
];

impl Ends {
    /// Whether it ends the connection there.
    fn ends(self, peer: &Peer, alone: bool) -> bool {
        match self {
            OtherSession | NoSession => peer.guard == Guard::Sealed,
            CancelInCompound => !alone,
            NegotiationOf311 => peer.dialect == Dialect::SMB_3_1_1,
            UnsignedTreeConnect => peer.dialect == Dialect::SMB_3_1_1 && peer.guard == Guard::Plain,
            // A signed one is refused before it is looked at (3.3.5.2.4).
            SecondNegotiate => peer.guard != Guard::Signed,
            _ => true,
        }
    }

    fn message(self, peer: &mut Peer) -> Vec<u8> {
        let field = |message: &mut Vec<u8>, value: u32| {
            let at = Header::NEXT_COMMAND_AT;
            message[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        let change = |mut message: Vec<u8>, with: &dyn Fn(&mut Header)| {
            let mut header = Header::parse(&message).unwrap();
            with(&mut header);
            message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
            message
        };
        let mut echo = peer.message(Command::ECHO, |out| Empty.encode(out));
        match self {
            SecondNegotiate => {
                let offer = peer.offer();
                let message = peer.message(Command::NEGOTIATE, |out| offer.encode(out));
                // The echo's number is not used: it may be.
                change(message, &|header| header.message_id.0 -= 1)
            }
            IdNotGranted => change(echo, &|header| header.message_id = MessageId(1 << 40)),
            IdUsed => change(echo, &|header| header.message_id = MessageId(0)),
            ChargeNotGranted => change(echo, &|header| header.credit_charge = 60_000),
            Response => change(echo, &|header| header.flags |= HeaderFlags::RESPONSE),
            ShortHeader => {
                echo.truncate(HEADER_LEN - 8);
                echo
            }
            NextCommandInside => {
                field(&mut echo, 8);
                echo
            }
            NextCommandOutside => {
                field(&mut echo, 1 << 20);
                echo
            }
            NextCommandUneven => {
                echo.resize(200, 0);
                field(&mut echo, 68);
                echo
            }
            CancelInCompound => change(echo, &|header| header.command = Command::CANCEL),
            TamperedNegotiation | NegotiationOf311 | NoRoomForNegotiation => {
                let offer = peer.offer();
                let mut claim = ValidateNegotiate {
                    capabilities: offer.capabilities.0,
                    guid: offer.client_guid,
                    security_mode: offer.security_mode.0,
                    dialects: vec![peer.dialect.0],
                };
                if self == TamperedNegotiation {
                    claim.dialects = vec![Dialect::SMB_2_0_2.0];
                }
                let mut input = Vec::new();
                claim.encode(&mut input);
                let request = ioctl::Request {
                    code: FsctlCode::VALIDATE_NEGOTIATE_INFO,
                    file_id: FileId::RELATED,
                    input: &input,
                    max_output: if self == NoRoomForNegotiation { 23 } else { 24 },
                    flags: 1,
                    ..Default::default()
                };
                let message = peer.message(Command::IOCTL, |out| request.encode(out));
                change(message, &|header| header.message_id.0 -= 1)
            }
            UnsignedTreeConnect => {
                let message = peer.tree_connect();
                change(message, &|header| header.message_id.0 -= 1)
            }
            UnknownCommand => change(echo, &|header| header.command = Command(0x0777)),
            OtherSession => change(echo, &|header| header.session_id.0 ^= 1),
            NoSession => change(echo, &|header| header.session_id = SessionId(0)),
        }
    }
}

fn reading(peer: &mut Peer, file_id: FileId) -> Vec<u8> {
    let request = read::Request { length: 64, file_id, ..Default::default() };
    peer.message(Command::READ, |out| request.encode(out))
}

fn house() -> House {
    House::new("signing='enabled'\nencryption='offered'")
}

/// A client with an open file that has something in it.
fn with_file(house: &House, kind: (Guard, Dialect, SigningAlgorithm)) -> (Peer, FileId) {
    let mut peer = Peer::new(house, kind);
    // One of its own: the server may not have noticed yet that the last client is gone.
    let file = peer.create(&name_of(&peer));
    peer.write(file, SECRET);
    (peer, file)
}

fn name_of(peer: &Peer) -> String {
    format!("file-{}", peer.session.0)
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET)
}

#[test]
fn nothing_leaves_after_a_message_that_ends_the_connection() {
    let house = house();
    for kind in KINDS {
        for ends in ALL {
            let (mut peer, _) = with_file(&house, kind);
            let message = ends.message(&mut peer);
            if !ends.ends(&peer, true) {
                continue;
            }
            peer.send(&message);
            assert_eq!(peer.rest(), NOTHING, "{kind:?} {ends:?}");
        }
    }
}

#[test]
fn nothing_of_its_compound_leaves_either() {
    let house = house();
    for kind in KINDS {
        for ends in ALL {
            for before in 1..3 {
                let (mut peer, file) = with_file(&house, kind);
                let mut messages: Vec<_> = (0..before).map(|_| reading(&mut peer, file)).collect();
                messages.push(ends.message(&mut peer));
                if !ends.ends(&peer, false) {
                    continue;
                }
                let frame = peer.frame(&messages);
                peer.send_frame(&frame);
                let rest = peer.rest();
                assert!(!has_secret(&rest), "the file in the clear: {kind:?} {ends:?}");
                assert_eq!(rest, NOTHING, "{kind:?} {ends:?} behind {before}");
            }
        }
    }
}

/// What stands in one receive with it, in frames before, is answered, and whole.
#[test]
fn what_was_answered_before_comes_whole() {
    let house = house();
    for kind in KINDS {
        for ends in ALL {
            let (mut peer, file) = with_file(&house, kind);
            let read = reading(&mut peer, file);
            let last = ends.message(&mut peer);
            if !ends.ends(&peer, true) {
                continue;
            }
            let mut frames = peer.frame(&[read]);
            frames.extend(peer.frame(&[last]));
            peer.send_frame(&frames);
            let answer = peer.receive().pop().expect("the answer to the read");
            assert_eq!(Header::parse(&answer).unwrap().status, NtStatus::SUCCESS);
            assert!(has_secret(&answer), "{kind:?} {ends:?}");
            assert_eq!(peer.rest(), NOTHING, "{kind:?} {ends:?}");
        }
    }
}

/// The same where it is no message at all: a frame of another type, and one that is too long.
#[test]
fn what_was_answered_before_no_message_comes_whole() {
    let house = house();
    for kind in KINDS {
        for prefix in [[1, 0, 0, 0], [0, 0xff, 0xff, 0xff]] {
            let (mut peer, file) = with_file(&house, kind);
            let read = reading(&mut peer, file);
            let mut frames = peer.frame(&[read]);
            frames.extend(prefix);
            peer.send_frame(&frames);
            let answer = peer.receive().pop().expect("the answer to the read");
            assert_eq!(Header::parse(&answer).unwrap().status, NtStatus::SUCCESS);
            assert!(has_secret(&answer), "{kind:?} {prefix:?}");
            assert_eq!(peer.rest(), NOTHING, "{kind:?} {prefix:?}");
        }
    }
}

/// A compound that waited, and goes on when what it waited for has happened.
#[test]
fn nothing_leaves_of_a_compound_that_waited() {
    let house = house();
    for kind in KINDS {
        for ends in ALL {
            let (mut peer, file) = with_file(&house, kind);
            let other = peer.create(&name_of(&peer));
            let locks = |flags: u32| lock::Request {
                file_id: if flags == 2 { other } else { file },
                sequence: 0,
                locks: vec![lock::Element { offset: 100, length: 1, flags: LockFlags(flags) }],
            };
            let held = locks(2);
            let (header, _) = peer.ask(Command::LOCK, |out| held.encode(out));
            assert_eq!(header.status, NtStatus::SUCCESS);
            // The lock waits at the end of its compound, so its answer comes alone; then the end.
            let read = reading(&mut peer, file);
            let waits = locks(2);
            let waits = lock::Request { file_id: file, ..waits };
            let waits = peer.message(Command::LOCK, |out| waits.encode(out));
            let frame = peer.frame(&[read, waits]);
            peer.send_frame(&frame);
            let answers = peer.receive();
            assert!(has_secret(&answers[0]));
            let pending = peer.receive().pop().unwrap();
            assert_eq!(Header::parse(&pending).unwrap().status, NtStatus::PENDING);
            let message = ends.message(&mut peer);
            if !ends.ends(&peer, true) {
                continue;
            }
            peer.send(&message);
            assert_eq!(peer.rest(), NOTHING, "{kind:?} {ends:?}");
        }
    }
}

/// Before there is a dialect nothing but the negotiation of one is answered (3.3.5.2.2).
#[test]
fn nothing_leaves_to_who_has_not_negotiated() {
    let house = house();
    let kind = KINDS[0];
    for command in (1..19).filter(|command| *command != Command::CANCEL.0) {
        let mut peer = Peer::strange(&house, kind);
        let message = peer.message(Command(command), |out| Empty.encode(out));
        peer.send(&message);
        assert_eq!(peer.rest(), NOTHING, "command {command}");
    }
}

/// MS-SMB2 3.3.5.17: nobody who has not logged in has anything to ask; who has logged off may.
#[test]
fn an_echo_of_who_has_not_logged_in_ends_the_connection() {
    let house = house();
    for kind in KINDS {
        let mut peer = Peer::strange(&house, kind);
        peer.negotiate();
        let echo = peer.message(Command::ECHO, |out| Empty.encode(out));
        peer.send(&echo);
        assert_eq!(peer.rest(), NOTHING, "{kind:?}");
        if kind.0 == Guard::Plain {
            let mut peer = Peer::new(&house, kind);
            let (header, _) = peer.ask(Command::LOGOFF, |out| Empty.encode(out));
            assert_eq!(header.status, NtStatus::SUCCESS);
            peer.session = SessionId(0);
            let (header, _) = peer.ask(Command::ECHO, |out| Empty.encode(out));
            assert_eq!(header.status, NtStatus::SUCCESS, "{kind:?}");
        }
    }
}

/// A large write that is received in pieces and charges more credits than it was granted
/// (3.3.5.2.3).
#[test]
fn a_large_write_that_charges_more_than_was_granted_ends_the_connection() {
    let house = house();
    for kind in KINDS {
        let (mut peer, file_id) = with_file(&house, kind);
        let data = vec![7; 512 << 10];
        let request =
            smb_protocol::msg::write::Request { file_id, data: &data, ..Default::default() };
        let mut message = peer.message(Command::WRITE, |out| request.encode(out));
        let mut header = Header::parse(&message).unwrap();
        header.credit_charge = 60_000;
        message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        peer.send(&message);
        assert_eq!(peer.rest(), NOTHING, "{kind:?}");
    }
}
