//! Logons: what a client that is not known yet may send.
//!
//! The first byte chooses between a parser alone, whose output must be read again as the same, and
//! the server's side of a whole logon, which must not let in who does not know the password.

use std::sync::{Arc, LazyLock};

use smb_protocol::{
    kerberos::{Error, Service, message},
    ntlm::{self, Credentials, NtHash, ServerInfo},
    spnego::{Acceptor, Initiator, Step, token},
    testing::{self, Case, Tickets},
};

use crate::messages::{again, samples};

const NOW: u64 = 0x01da_0000_0000_0000;

fn names() -> Arc<ServerInfo> {
    static NAMES: LazyLock<Arc<ServerInfo>> =
        LazyLock::new(|| Arc::new(ServerInfo::standalone("SERVER")));
    NAMES.clone()
}

/// The messages of NTLM among the samples.
fn ntlm_cases() -> Vec<Case> {
    let of = |case: &Case| matches!(case.name, "attributes" | "CHALLENGE" | "AUTHENTICATE");
    testing::authentication().into_iter().filter(of).collect()
}

fn spnego_cases() -> Vec<Case> {
    let of = |case: &Case| matches!(case.name, "NegTokenInit" | "NegTokenResp" | "mechanisms");
    testing::authentication().into_iter().filter(of).collect()
}

fn keytab_cases() -> Vec<Case> {
    testing::authentication().into_iter().filter(|case| case.name == "keytab").collect()
}

/// The two parts of bytes that begin with the length of the first.
fn parts(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u16::from_le_bytes(*len).into())
}

fn with_parts(kind: u8, first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((first.len() as u16).to_le_bytes());
    out.extend([first, second].concat());
    out
}

/// NTLM: a message alone, a logon at a server (kind 8), or one at a client (kind 9).
pub fn ntlm(bytes: &[u8]) {
    match bytes.split_first() {
        Some((8, rest)) => {
            let Some((first, second)) = parts(rest) else { return };
            let mut server = ntlm::Server::new(names());
            if server.challenge(first, NOW).is_ok() {
                let hash = NtHash::of_password("secret");
                let done = server.authenticate(second, |_, _| Some(hash));
                assert!(done.is_err(), "let in without a password");
            }
        }
        Some((9, challenge)) => {
            let hash = NtHash::of_password("p");
            let who = Credentials { user: "u".into(), domain: String::new(), hash };
            let mut client = ntlm::Client::new(who, "HOST", "cifs/s");
            client.negotiate();
            let _ = client.authenticate(challenge, NOW);
        }
        _ => again(ntlm_cases, bytes),
    }
}

/// A message of each kind, and the beginning of a logon.
pub fn seeds_ntlm() -> Vec<(String, Vec<u8>)> {
    let mut seeds = samples(&ntlm_cases());
    let who = || Credentials {
        user: "u".into(),
        domain: String::new(),
        hash: NtHash::of_password("wrong"),
    };
    let mut client = ntlm::Client::new(who(), "HOST", "cifs/s");
    let negotiate = client.negotiate();
    let challenge = ntlm::Server::new(names()).challenge(&negotiate, NOW).expect("its own");
    let (authenticate, _) = client.authenticate(&challenge, NOW).expect("its own");
    seeds.push(("logon".into(), with_parts(8, &negotiate, &authenticate)));
    seeds.push(("answer".into(), [&[9], &*challenge].concat()));
    seeds
}

/// SPNEGO: a token alone, a logon of two tokens (kind 8), or one at a client (kind 9).
pub fn spnego(bytes: &[u8]) {
    match bytes.split_first() {
        Some((8, rest)) => {
            let Some((first, second)) = parts(rest) else { return };
            let mut acceptor = Acceptor::new(names(), None);
            let hash = || Some(NtHash::of_password("secret"));
            if let Ok(step) = acceptor.step(first, NOW, |_, _| hash()) {
                assert!(matches!(step, Step::Continue(_)), "let in by one token");
                let done = acceptor.step(second, NOW, |_, _| hash());
                assert!(!matches!(done, Ok(Step::Done(_))), "let in without a password");
            }
        }
        Some((9, rest)) => {
            let Some((first, second)) = parts(rest) else { return };
            let hash = NtHash::of_password("p");
            let who = Credentials { user: "u".into(), domain: String::new(), hash };
            let mut initiator = Initiator::new(who, "", "cifs/s");
            if initiator.first(first).is_ok() && initiator.second(second, NOW).is_ok() {
                // One mechanism is offered, so its list needs no code (RFC 4178 5); one that is
                // there must be right.
                let believed = initiator.last(second).is_ok();
                let coded = token::RespToken::parse(second).is_ok_and(|token| token.mic.is_some());
                assert!(!(believed && coded), "believed a code that nobody made");
            }
        }
        _ => again(spnego_cases, bytes),
    }
}

/// A token of each kind, and the beginning of a logon on both sides.
pub fn seeds_spnego() -> Vec<(String, Vec<u8>)> {
    let mut seeds = samples(&spnego_cases());
    let hash = NtHash::of_password("wrong");
    let who = Credentials { user: "u".into(), domain: String::new(), hash };
    let mut initiator = Initiator::new(who, "", "cifs/s");
    let mut acceptor = Acceptor::new(names(), None);
    let hint = Acceptor::hint(false);
    let first = initiator.first(&hint).expect("its own");
    let Ok(Step::Continue(reply)) = acceptor.step(&first, NOW, |_, _| None) else {
        panic!("the first token is answered")
    };
    let second = initiator.second(&reply, NOW).expect("its own");
    seeds.push(("logon".into(), with_parts(8, &first, &second)));
    seeds.push(("answers".into(), with_parts(9, &hint, &reply)));
    seeds.push(("both".into(), with_parts(8, &token::mech_list(&[token::KERBEROS]), &second)));
    seeds
}

/// Kerberos: a token (0), what is within the encryption of a right one (1), a message alone (2), or
/// a keytab.
pub fn kerberos(bytes: &[u8]) {
    static TICKETS: LazyLock<(Tickets, Service)> = LazyLock::new(|| {
        let tickets = Tickets::default();
        let service = tickets.service();
        (tickets, service)
    });
    let (tickets, service) = &*TICKETS;
    match bytes.split_first() {
        Some((0, token)) => {
            let done = service.accept(token, tickets.now());
            assert!(done.is_err(), "let in by a ticket that nobody gave");
        }
        Some((1, rest)) => {
            let Some((ticket, authenticator)) = parts(rest) else { return };
            let token = tickets.token(ticket, authenticator);
            let service = tickets.service();
            if let Ok(done) = service.accept(&token, tickets.now()) {
                let mic = done.mic(b"text");
                assert!(!done.verify_mic(b"text", &mic), "its own code is not the client's");
                let again = service.accept(&token, tickets.now());
                assert!(matches!(again, Err(Error::Replay)), "let in twice: {again:?}");
            }
        }
        Some((2, message)) => {
            let _ = message::ApReq::parse(message);
            let _ = message::TicketPart::parse(message);
            let _ = message::Authenticator::parse(message);
            let _ = message::client_time(message);
        }
        _ => again(keytab_cases, bytes),
    }
}

/// A token, its parts and a keytab.
pub fn seeds_kerberos() -> Vec<(String, Vec<u8>)> {
    let tickets = Tickets::default();
    let (ticket, proof) = (tickets.ticket(), tickets.authenticator());
    let other = tickets.token(&ticket[1..], &proof);
    let mut seeds = vec![
        ("token".into(), [&[0], &*other].concat()),
        ("inside".into(), with_parts(1, &ticket, &proof)),
        ("ticket".into(), [&[2], &*ticket].concat()),
        ("authenticator".into(), [&[2], &*proof].concat()),
    ];
    for (name, mut bytes) in samples(&keytab_cases()) {
        bytes[0] = 3;
        seeds.push((name, bytes));
    }
    seeds
}
