//! RPC over TCP: logons and signed messages of a connection, towers of the endpoint mapper, and the calls
//! of the witness service.

use std::sync::Arc;

use dce_rpc::{
    Association, SyntaxId, Transfer,
    association::{Limits, Settings, Step},
    client::{Client, ClientStep, Spnego},
    epm::{self, Registered, Tower},
    pdu::{Bind, Context, Flags, Kind, Pdu, Verifier},
    security::{Acceptance, Accounts, AuthType, Host, Level, Logon},
};
use smb_protocol::{
    ntlm::{self, Credentials, FileTime, NtHash, ServerInfo},
    spnego::{self, Completed},
};
use witness::{Notice, Reply, Request, Version, message::Register, notice::Kind as NoticeKind};

const NOW: FileTime = 0x01da_0000_0000_0000;
const ECHO: SyntaxId = SyntaxId::new(1, 2, 3, [4; 8], 1, 0);
/// Most that an association holds beside what it was given.
const HELD: usize = 256 << 10;

/// Users of whom one has this password.
struct Users(&'static str);

impl Accounts for Users {
    fn now(&self) -> FileTime {
        NOW
    }

    fn hash(&mut self, user: &str, _: &str) -> Option<NtHash> {
        (user == "u").then(|| NtHash::of_password(self.0))
    }

    fn user(&mut self, done: &Completed) -> Option<String> {
        Some(done.identity.user.clone())
    }

    fn failed(&mut self, _: &spnego::Error) {}
}

struct Server;

impl Host for Server {
    fn group(&mut self, wanted: u32) -> u32 {
        wanted.max(1)
    }

    fn logon(&mut self, kind: AuthType) -> Option<Box<dyn Logon>> {
        let names = Arc::new(ServerInfo::standalone("SERVER"));
        Some(Box::new(Acceptance::begin(kind, names, None, Users("secret"))?))
    }
}

fn server() -> Association {
    const INTERFACES: &[SyntaxId] = &[ECHO];
    let limits = Limits { call: 64 << 10, ..Limits::default() };
    let transfers = &[Transfer::Ndr64, Transfer::Ndr];
    Association::new(Settings { interfaces: INTERFACES, transfers, address: "1".into(), limits })
}

/// A connection on which nobody can prove who it is: whatever is said, nobody is let in, what is
/// answered are messages, and what is held has a bound.
pub fn logon(bytes: &[u8]) {
    let mut association = server();
    for part in bytes.chunks(3000) {
        association.push(part);
        loop {
            let step = association.step(&mut Server);
            while let Some(message) = association.transmit() {
                let split = Pdu::split(&message, usize::MAX);
                assert!(matches!(split, Ok(Some((_, len))) if len == message.len()), "{split:?}");
            }
            assert!(association.held() <= HELD, "{} bytes held", association.held());
            assert!(!association.is_known(), "let in without a password");
            match step {
                Ok(Step::Starved) => break,
                Ok(Step::Call(call)) => {
                    assert_eq!(call.caller, None);
                    association.answer(call.id, Ok(&call.stub));
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn who(password: &str) -> Credentials {
    let hash = NtHash::of_password(password);
    Credentials { user: "u".into(), domain: String::new(), hash }
}

/// A bind, a whole logon with a wrong password by SPNEGO and by NTLM, and a call.
pub fn seeds_logon() -> Vec<(String, Vec<u8>)> {
    let context = Context { id: 0, interface: ECHO, transfers: vec![SyntaxId::NDR] };
    let features = SyntaxId::features(dce_rpc::Features(3));
    let more = Context { id: 1, transfers: vec![features], ..context.clone() };
    let bind =
        Bind { max_transmit: 4280, max_receive: 4280, group: 0, contexts: vec![context, more] };
    let flags = Flags(0x17);
    let message = |kind, auth: (u8, u8), token: &[u8]| {
        let verifier = Verifier { kind: auth.0, level: auth.1, context: 1, token };
        Pdu::encode_with(kind, flags, 1, &verifier, |out| bind.encode(out))
    };
    let mut client = ntlm::Client::new(who("wrong"), "HOST", "cifs/s");
    let negotiate = client.negotiate();
    let names = Arc::new(ServerInfo::standalone("SERVER"));
    let challenge = ntlm::Server::new(names).challenge(&negotiate, NOW).expect("its own");
    let (authenticate, _) = client.authenticate(&challenge, NOW).expect("its own");
    let third = message(Kind::AUTH3, (10, 6), &authenticate);
    let first = message(Kind::BIND, (10, 6), &negotiate);
    let mut wrapped = spnego::Initiator::new(who("wrong"), "HOST", "cifs/s");
    let token = wrapped.first(&[]).expect("its own");
    let plain = message(Kind::BIND, (0, 0), &[]);
    let mut caller = Client::new(ECHO, &[Transfer::Ndr], None);
    caller.transmit();
    caller.call(0, &[7; 40]);
    let call = caller.transmit().expect("a call is sent");
    vec![
        ("bind".into(), [plain, call].concat()),
        ("ntlm".into(), [first, third].concat()),
        ("spnego".into(), message(Kind::BIND, (9, 5), &token)),
    ]
}

/// A connection of somebody who is known: a call is made, and its message is changed by the bytes. What
/// is then carried out in that client's name is what it has asked for.
pub fn signed(bytes: &[u8]) {
    let Some((choice, mask)) = bytes.split_first() else { return };
    let level = if choice & 1 == 0 { Level::Integrity } else { Level::Privacy };
    let proof = Spnego::new(who("secret"), "HOST", "cifs/s", NOW);
    let mut client = Client::new(ECHO, &[Transfer::Ndr], Some((Box::new(proof), level)));
    let mut association = server();
    loop {
        while let Some(message) = client.transmit() {
            association.push(&message);
        }
        while association.step(&mut Server).expect("its own client") != Step::Starved {}
        while let Some(message) = association.transmit() {
            client.push(&message);
        }
        match client.step().expect("its own server") {
            ClientStep::Bound => break,
            other => assert_eq!(other, ClientStep::Starved),
        }
    }
    const STUB: &[u8] = b"what it has asked for...";
    client.call(0, STUB);
    let mut message = client.transmit().expect("a call is sent");
    message.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    association.push(&message);
    while let Ok(step) = association.step(&mut Server) {
        match step {
            Step::Starved => break,
            Step::Call(call) if call.caller.is_some() => {
                assert_eq!((call.opnum, &*call.stub), (0, STUB), "another call than was made");
            }
            _ => {}
        }
    }
}

/// No change, and one of the header, of the body and of the signature.
pub fn seeds_signed() -> Vec<(String, Vec<u8>)> {
    let change = |choice: u8, at: usize| {
        let mut bytes = vec![choice];
        bytes.resize(at + 1, 0);
        bytes.push(1);
        bytes
    };
    vec![
        ("right".into(), vec![1]),
        ("operation".into(), change(0, 22)),
        ("body".into(), change(1, 30)),
        ("signature".into(), change(0, 140)),
    ]
}

/// Towers: what is read is written and read as the same; questions and answers of the mapper.
pub fn towers(bytes: &[u8]) {
    if let Ok(tower) = Tower::parse(bytes) {
        assert_eq!(Tower::parse(&tower.encode()), Ok(tower));
    }
    let _ = epm::parse_answer(bytes);
    let served = [Registered { interface: witness::INTERFACE, port: 49_152 }];
    let reached = "192.0.2.1:135".parse().expect("an address");
    for opnum in 0..6 {
        if let Ok(stub) = epm::serve(&served, reached, opnum, bytes) {
            assert!(stub.len() < 200 && epm::parse_answer(&stub).is_ok() == (opnum == 3));
        }
    }
}

/// A tower, a question and its answer.
pub fn seeds_towers() -> Vec<(String, Vec<u8>)> {
    let address = [192, 0, 2, 1].into();
    let tower =
        Tower { interface: witness::INTERFACE, transfer: SyntaxId::NDR, port: 49_152, address };
    let (opnum, question) = epm::question(witness::INTERFACE, SyntaxId::NDR);
    let served = [Registered { interface: witness::INTERFACE, port: 49_152 }];
    let reached = "192.0.2.1:135".parse().expect("an address");
    let answer = epm::serve(&served, reached, opnum, &question).expect("its own");
    vec![("tower".into(), tower.encode()), ("question".into(), question), ("answer".into(), answer)]
}

/// Calls of the witness service: the first byte says which and in which representation; what is read is
/// written and read as the same, as the server's and as the client's side.
pub fn calls(bytes: &[u8]) {
    let Some((choice, stub)) = bytes.split_first() else { return };
    let transfer = if choice & 0x80 == 0 { Transfer::Ndr } else { Transfer::Ndr64 };
    let opnum = u16::from(choice & 7);
    if let Ok(Some(request)) = Request::parse(opnum, stub, transfer) {
        let (again, written) = request.encode(transfer);
        assert_eq!(again, opnum);
        assert_eq!(Request::parse(opnum, &written, transfer), Ok(Some(request)));
    }
    if let Ok(reply) = Reply::parse(opnum, stub, transfer) {
        let written = reply.encode(transfer);
        let read = Reply::parse(opnum, &written, transfer);
        assert!(read.is_ok(), "{read:?}");
    }
    let kind = NoticeKind(u32::from(choice & 7));
    if let Ok(Some(notice)) = Notice::parse(kind, u32::from(choice >> 3), stub) {
        let (kind, count, written) = notice.encode();
        let read = Notice::parse(kind, count, &written);
        assert!(matches!(read, Ok(Some(_))), "{read:?}");
    }
}

/// A registration, an answer and a notice in either representation.
pub fn seeds_calls() -> Vec<(String, Vec<u8>)> {
    let wish = Register {
        version: Version::V2.0,
        net_name: Some("files".into()),
        share_name: Some("vms".into()),
        address: Some("192.0.2.1".into()),
        client: Some("client".into()),
        all_addresses: true,
        keep_alive: 120,
    };
    let mut seeds = Vec::new();
    for (transfer, high, name) in [(Transfer::Ndr, 0, "ndr"), (Transfer::Ndr64, 0x80, "ndr64")] {
        let (opnum, stub) = Request::RegisterEx(wish.clone()).encode(transfer);
        seeds.push((format!("register-{name}"), [&[opnum as u8 | high], &*stub].concat()));
        let address = ([192, 0, 2, 1].into(), witness::NodeState::Up);
        let notice = Notice::MoveClient(vec![address]);
        let reply = Reply::Notified(Ok(notice)).encode(transfer);
        seeds.push((format!("notified-{name}"), [&[3 | high], &*reply].concat()));
        let interface = witness::message::Interface {
            group: "ONE".into(),
            version: Version::V2.0,
            state: witness::NodeState::Up,
            address: Some([192, 0, 2, 1].into()),
            witness: true,
        };
        let reply = Reply::Interfaces(Ok(vec![interface])).encode(transfer);
        seeds.push((format!("interfaces-{name}"), [&[high], &*reply].concat()));
    }
    seeds
}
