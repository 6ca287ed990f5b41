use std::sync::Arc;

use proptest::prelude::*;
use smb_protocol::{
    gss::Side,
    ntlm::{Client, Credentials, FileTime, NtHash, ServerInfo},
    spnego::{self, Completed},
};

use super::*;
use crate::{
    client::{Answered, Client as RpcClient, ClientStep, Initiate, Proof, Spnego},
    pdu::{Bind, Context, Verifier},
    security::{Acceptance, Accounts, AuthType},
};

const ECHO: SyntaxId = SyntaxId::new(1, 2, 3, [4; 8], 1, 1);
const NOW: FileTime = 0x01da_0000_0000_0000;

struct Users;

impl Accounts for Users {
    fn now(&self) -> FileTime {
        NOW
    }

    fn hash(&mut self, user: &str, _: &str) -> Option<NtHash> {
        user.eq_ignore_ascii_case("admin").then(|| NtHash::of_password("geheim"))
    }

    fn user(&mut self, done: &Completed) -> Option<String> {
        Some(done.identity.user.to_uppercase())
    }

    fn failed(&mut self, _: &spnego::Error) {}
}

struct Server;

impl Host for Server {
    fn group(&mut self, wanted: u32) -> u32 {
        if wanted == 0 { 0x1234 } else { wanted }
    }

    fn logon(&mut self, kind: AuthType) -> Option<Box<dyn Logon>> {
        let names = Arc::new(ServerInfo::standalone("server"));
        Some(Box::new(Acceptance::begin(kind, names, None, Users)?))
    }
}

fn server() -> Association {
    const INTERFACES: &[SyntaxId] = &[ECHO];
    Association::new(Settings {
        interfaces: INTERFACES,
        transfers: &[Transfer::Ndr64, Transfer::Ndr],
        address: "49152".into(),
        limits: Limits { call: 100_000, calls: 3, ..Limits::default() },
    })
}

fn credentials(password: &str) -> Credentials {
    let hash = NtHash::of_password(password);
    Credentials { user: "Admin".into(), domain: String::new(), hash }
}

/// NTLM alone, whose last leg has no answer.
struct Bare(Client, Option<smb_protocol::gss::Protection>);

impl Initiate for Bare {
    fn kind(&self) -> AuthType {
        AuthType::NTLM
    }

    fn first(&mut self) -> Option<Vec<u8>> {
        Some(self.0.negotiate())
    }

    fn next(&mut self, token: &[u8]) -> Option<Proof> {
        let (message, done) = self.0.authenticate(token, NOW).ok()?;
        self.1 = Some(smb_protocol::gss::Protection::Ntlm(done.security?, 0));
        Some(Proof::Last(message))
    }

    fn context(&self) -> Option<smb_protocol::gss::Context> {
        Some(self.1.as_ref()?.begin(Side::Initiator))
    }
}

fn bare(password: &str) -> Box<dyn Initiate> {
    Box::new(Bare(Client::new(credentials(password), "WS", "cifs/server"), None))
}

fn wrapped(password: &str) -> Box<dyn Initiate> {
    Box::new(Spnego::new(credentials(password), "WS", "cifs/server", NOW))
}

/// Carries messages to and fro until the client knows something, or the server breaks. Calls come back
/// with what was said, and wait if their operation is 9.
fn exchange(client: &mut RpcClient, server: &mut Association) -> Result<ClientStep, Broken> {
    loop {
        while let Some(message) = client.transmit() {
            server.push(&message);
        }
        let broken = loop {
            match server.step(&mut Server) {
                Ok(Step::Starved) => break None,
                Ok(Step::Call(call)) if call.opnum == 9 => {}
                Ok(Step::Call(call)) if call.opnum > 9 => {
                    server.answer(call.id, Err(FaultStatus::OP_RANGE));
                }
                Ok(Step::Call(call)) => server.answer(call.id, Ok(&call.stub)),
                Ok(_) => {}
                Err(broken) => break Some(broken),
            }
        };
        let mut moved = false;
        while let Some(message) = server.transmit() {
            client.push(&message);
            moved = true;
        }
        match client.step() {
            Ok(ClientStep::Starved) if broken.is_none() && (moved || client.has_output()) => {}
            Ok(step) if broken.is_none() => return Ok(step),
            Ok(ClientStep::Answer(answer)) => return Ok(ClientStep::Answer(answer)),
            other => return Err(broken.unwrap_or_else(|| panic!("{other:?}"))),
        }
    }
}

type Make = fn(&str) -> Box<dyn Initiate>;

fn bound(
    make: Option<(Make, Level)>,
    transfers: &[Transfer],
) -> Result<(RpcClient, Association), Broken> {
    let proof = make.map(|(make, level)| (make("geheim"), level));
    let (mut client, mut server) = (RpcClient::new(ECHO, transfers, proof), server());
    match exchange(&mut client, &mut server)? {
        ClientStep::Bound => Ok((client, server)),
        other => panic!("{other:?}"),
    }
}

fn call(client: &mut RpcClient, server: &mut Association, stub: &[u8]) -> Result<Answered, Broken> {
    client.call(0, stub);
    match exchange(client, server)? {
        ClientStep::Answer(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

const WAYS: [(Make, Level); 6] = [
    (bare, Level::Connect),
    (bare, Level::Integrity),
    (bare, Level::Privacy),
    (wrapped, Level::Connect),
    (wrapped, Level::Integrity),
    (wrapped, Level::Privacy),
];

#[test]
fn clients_prove_who_they_are_by_ntlm_and_spnego_at_every_level() {
    for way in WAYS {
        let (mut client, mut server) = bound(Some(way), &[Transfer::Ndr]).unwrap();
        client.call(9, b"who am I");
        while let Some(message) = client.transmit() {
            server.push(&message);
        }
        // The last leg of bare NTLM has no answer and may come with the call.
        let call = loop {
            match server.step(&mut Server).unwrap() {
                Step::Call(call) => break call,
                Step::Moved => {}
                other => panic!("{other:?}"),
            }
        };
        let caller = call.caller.clone().unwrap();
        assert_eq!((&*caller.user, caller.level), ("ADMIN", way.1));
        assert_eq!(call.stub, b"who am I");
        assert!(server.is_known() && server.group() == Some(0x1234));
    }
    let (mut client, mut server) = bound(None, &[Transfer::Ndr]).unwrap();
    assert_eq!(call(&mut client, &mut server, b"x").unwrap().result, Ok(b"x".to_vec()));
    assert!(!server.is_known());
}

#[test]
fn who_does_not_know_the_password_is_refused() {
    for (make, level) in WAYS {
        let proof = Some((make("Geheim"), level));
        let (mut client, mut server) = (RpcClient::new(ECHO, &[Transfer::Ndr], proof), server());
        let bound = exchange(&mut client, &mut server);
        match bound {
            Err(broken) => assert_eq!(broken, Broken::Refused),
            // A last leg without an answer is refused when its context is used.
            Ok(_) => {
                client.call(0, b"x");
                while let Some(message) = client.transmit() {
                    server.push(&message);
                }
                let mut nobody = false;
                while let Ok(step) = server.step(&mut Server) {
                    match step {
                        Step::Starved => break,
                        // Where nothing is protected it is nobody's call.
                        Step::Call(call) => nobody = call.caller.is_none(),
                        step => assert_eq!(step, Step::Moved),
                    }
                }
                assert_eq!(nobody, level == Level::Connect);
                if !nobody {
                    let fault = server.transmit().unwrap();
                    assert_eq!(fault[24..28], FaultStatus::SECURITY.0.to_le_bytes());
                }
            }
        }
        assert!(!server.is_known());
    }
}

#[test]
fn the_preferred_transfer_syntax_is_chosen_of_those_that_are_offered() {
    for (offered, chosen) in [
        (&[Transfer::Ndr][..], Transfer::Ndr),
        (&[Transfer::Ndr64], Transfer::Ndr64),
        (&[Transfer::Ndr, Transfer::Ndr64], Transfer::Ndr64),
    ] {
        let (client, _) = bound(None, offered).unwrap();
        assert_eq!(client.transfer(), chosen);
    }
}

#[test]
fn calls_are_answered_in_any_order_and_orphans_not_at_all() {
    let way = Some((wrapped as Make, Level::Integrity));
    let (mut client, mut server) = bound(way, &[Transfer::Ndr]).unwrap();
    let (first, second, third) = (client.call(9, b"1"), client.call(9, b"2"), client.call(9, b"3"));
    let fourth = client.call(0, b"4");
    let ClientStep::Answer(answer) = exchange(&mut client, &mut server).unwrap() else {
        panic!("no answer");
    };
    // Three are under way, and there is no room for more.
    assert_eq!((answer.call, answer.result), (fourth, Err(FaultStatus::OUT_OF_MEMORY)));
    server.push(&client.orphan(second));
    assert_eq!(server.step(&mut Server), Ok(Step::GivenUp(second)));
    server.answer(second, Ok(b"late"));
    for (id, text) in [(third, b"three"), (first, b"first")] {
        server.answer(id, Ok(text));
        let ClientStep::Answer(answer) = exchange(&mut client, &mut server).unwrap() else {
            panic!("no answer");
        };
        assert_eq!((answer.call, answer.result), (id, Ok(text.to_vec())));
    }
    assert_eq!(server.pending(), 0);
}

#[test]
fn a_fragment_of_another_context_and_a_second_call_within_one_are_against_the_rules() {
    let way = Some((wrapped as Make, Level::Integrity));
    for spoil in [0, 1] {
        let (mut client, mut server) = bound(way, &[Transfer::Ndr]).unwrap();
        client.call(0, &[7; 9000]);
        server.push(&client.transmit().unwrap());
        assert_eq!(server.step(&mut Server), Ok(Step::Moved));
        let flags = if spoil == 0 { Flags::LAST } else { Flags::FIRST };
        let id = if spoil == 0 { client.last_call() } else { 77 };
        let request = Request { context: 0, opnum: 0, stub: &[1] };
        let plain = Pdu::encode(Kind::REQUEST, flags, id, |out| request.encode(out));
        server.push(&plain);
        assert!(matches!(server.step(&mut Server), Err(Broken::Rule(_))));
        let fault = server.transmit().unwrap();
        assert_eq!(fault[24..28], FaultStatus::PROTOCOL_ERROR.0.to_le_bytes());
    }
}

#[test]
fn a_wrong_verification_trailer_is_denied() {
    let way = Some((wrapped as Make, Level::Integrity));
    for (commands, right) in [
        (vec![Command::HeaderSigning(true)], true),
        (vec![Command::Context(ECHO, SyntaxId::NDR)], true),
        (vec![Command::Context(ECHO, SyntaxId::NDR64)], false),
        (vec![Command::Header(Kind::REQUEST, 2, 0, 0)], true),
        (vec![Command::Header(Kind::REQUEST, 2, 0, 1)], false),
        (vec![Command::HeaderSigning(true), Command::Unknown], false),
    ] {
        let (mut client, mut server) = bound(way, &[Transfer::Ndr]).unwrap();
        client.set_verification(commands);
        let answer = call(&mut client, &mut server, b"1234").unwrap();
        let want = if right { Ok(b"1234".to_vec()) } else { Err(FaultStatus::ACCESS_DENIED) };
        assert_eq!(answer.result, want);
    }
}

#[test]
fn security_contexts_are_several_only_where_that_was_negotiated_and_have_a_bound() {
    for offered in [Features::NONE, Features::SECURITY_CONTEXT_MULTIPLEXING] {
        let mut server = server();
        let context = Context { id: 0, interface: ECHO, transfers: vec![SyntaxId::NDR] };
        let features =
            Context { id: 1, transfers: vec![SyntaxId::features(offered)], ..context.clone() };
        let bind = Bind {
            max_transmit: 4280,
            max_receive: 4280,
            group: 0,
            contexts: vec![context, features],
        };
        let mut denied = None;
        for id in 0..20 {
            let token = Client::new(credentials("geheim"), "WS", "x").negotiate();
            let verifier = Verifier { kind: 10, level: 5, context: id, token: &token };
            let kind = if id == 0 { Kind::BIND } else { Kind::ALTER_CONTEXT };
            server.push(&Pdu::encode_with(kind, WHOLE, id + 1, &verifier, |out| bind.encode(out)));
            if let Err(broken) = server.step(&mut Server) {
                assert!(matches!(broken, Broken::Rule(_)), "{broken}");
                denied = Some(id);
                break;
            }
        }
        let several = offered != Features::NONE;
        assert_eq!(denied, Some(if several { 8 } else { 1 }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Calls of any length come back whole at every level, whatever a client can take.
    #[test]
    fn calls_survive_being_cut_and_protected(
        way in 0..WAYS.len(), stub in prop::collection::vec(any::<u8>(), 0..20_000),
        wide: bool, again in 1..4usize,
    ) {
        let transfer = if wide { Transfer::Ndr64 } else { Transfer::Ndr };
        let (mut client, mut server) = bound(Some(WAYS[way]), &[transfer]).unwrap();
        for _ in 0..again {
            let answer = call(&mut client, &mut server, &stub).unwrap();
            let back = answer.result.unwrap();
            // What fills up to the verification trailer comes back, too.
            prop_assert_eq!(&back[..stub.len()], &stub[..]);
            prop_assert!(back.len() < stub.len() + 4);
        }
    }

    /// One changed bit in a protected message is noticed, and nothing is carried out.
    #[test]
    fn a_changed_request_is_not_carried_out(
        way in prop::sample::select(vec![1usize, 2, 4, 5]), bit in any::<prop::sample::Index>(),
    ) {
        let (mut client, mut server) = bound(Some(WAYS[way]), &[Transfer::Ndr]).unwrap();
        while let Some(message) = client.transmit() {
            server.push(&message);
        }
        while server.step(&mut Server).unwrap() != Step::Starved {}
        client.call(0, b"to be changed");
        let mut message = client.transmit().unwrap();
        // Lengths decide where the message ends: the rest of it would be waited for.
        let bit = bit.index((message.len() - 12) * 8) + 12 * 8;
        message[bit / 8] ^= 1 << (bit % 8);
        server.push(&message);
        let step = server.step(&mut Server);
        prop_assert!(!matches!(step, Ok(Step::Call(_))), "carried out: {step:?}");
    }

    /// Noise breaks the connection or is answered; it does no harm, and what is held has a bound.
    #[test]
    fn noise_is_survived(
        messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..200), any::<u8>()), 1..8),
    ) {
        let mut server = server();
        for (kind, noise, auth) in messages {
            let verifier = Verifier {
                kind: [9, 10, 16, 7][usize::from(auth % 4)], level: 2 + auth % 6, context: u32::from(auth / 64),
                token: &noise[..usize::from(auth).min(noise.len()) / 2],
            };
            server.push(&Pdu::encode_with(Kind(kind % 20), WHOLE, 3, &verifier, |out| out.extend(&noise)));
            let step = server.step(&mut Server);
            prop_assert!(server.held() <= 100_000);
            if step.is_err() { break; }
        }
    }
}
