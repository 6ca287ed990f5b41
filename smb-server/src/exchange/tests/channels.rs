//! Several connections of one session, driven without sockets by a client that signs.

use std::sync::Arc;

use smb_protocol::{
    Command, Dialect, Header, NtStatus, SessionId, TreeId,
    crypto::{Role, SigningAlgorithm, SigningKey},
    fscc::file_info::Rename,
    header::FRAME_LEN,
    msg::{negotiate, session_setup, simple::Empty, tree_connect},
};

use super::{
    signer::{Known, SigningClient},
    *,
};
use crate::config::Config;

/// A tree that was made on one connection is used on another, from where its share is not to be
/// used.
#[test]
fn a_share_is_not_for_a_connection_from_elsewhere() {
    let (server, _folder) = server("");
    let mut inside = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let one = inside.login();
    let mut outside = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    outside.exchange.peer = "192.0.2.66:1".parse().unwrap();
    let two = outside.bind(&one).unwrap();
    for (share, allowed) in [("s", true), ("near", false)] {
        let request = tree_connect::Request { flags: 0, path: format!("\\\\h\\{share}") };
        let connect = |line: &mut SigningClient, known: &Known| {
            let key = Some(&known.signing);
            line.ask(Command::TREE_CONNECT, known.id, key, |out| request.encode(out)).0
        };
        let tree = connect(&mut inside, &one);
        assert_eq!(tree.status, NtStatus::SUCCESS);
        let elsewhere = connect(&mut outside, &two);
        assert_eq!(elsewhere.status == NtStatus::SUCCESS, allowed, "{share}");
        let leave = |line: &mut SigningClient, known: &Known| {
            line.tree = tree.tree_id();
            let key = Some(&known.signing);
            let left = line.ask(Command::TREE_DISCONNECT, known.id, key, |out| Empty.encode(out));
            line.tree = TreeId(0);
            left.0.status
        };
        let status = leave(&mut outside, &two);
        let wanted = if allowed { NtStatus::SUCCESS } else { NtStatus::ACCESS_DENIED };
        assert_eq!(status, wanted, "{share}");
    }
}

fn server(extra: &str) -> (Arc<Server>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("files")).unwrap();
    let text = format!(
        "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nsigning='required'\n\
         encryption='off'\n{extra}\n\
         [[user]]\nname='u'\npassword='p'\n[[user]]\nname='v'\npassword='p'\n\
         [[share]]\nname='s'\npath='files'\nusers=['u']\n\
         [[share]]\nname='near'\npath='files'\nusers=['u']\nhosts_allow=['127.0.0.1']\n",
        folder.path().join("state").display()
    );
    let config = Config::parse(&text, &folder.path().join("c")).unwrap();
    (Arc::new(Server::new(config).unwrap()), folder)
}

const CMAC: &[SigningAlgorithm] = &[SigningAlgorithm::AesCmac];
const GMAC: &[SigningAlgorithm] = &[SigningAlgorithm::AesGmac];
const HMAC: &[SigningAlgorithm] = &[SigningAlgorithm::HmacSha256];
const ALL: &[SigningAlgorithm] =
    &[SigningAlgorithm::AesGmac, SigningAlgorithm::AesCmac, SigningAlgorithm::HmacSha256];
const LIVES: (NtStatus, bool) = (NtStatus::NETWORK_NAME_DELETED, true);

#[test]
fn a_session_lives_as_long_as_one_of_its_channels() {
    for (dialect, algorithms) in
        [(Dialect::SMB_3_0, CMAC), (Dialect::SMB_3_1_1, CMAC), (Dialect::SMB_3_1_1, HMAC)]
    {
        let (server, _folder) = server("");
        let mut first = SigningClient::new(&server, 7, dialect, algorithms);
        let mut second = SigningClient::new(&server, 7, dialect, algorithms);
        let one = first.login();
        let two = second.bind(&one).unwrap();
        let session = server.sessions.get(one.id).unwrap();
        let ids = [first.exchange.id, second.exchange.id];
        assert_eq!(session.channels().iter().map(|c| c.connection).collect::<Vec<_>>(), ids);
        assert_eq!((first.probe(&one), second.probe(&two)), (LIVES, LIVES));
        if dialect == Dialect::SMB_3_1_1 {
            // Each channel has a key of its own.
            assert_eq!(second.probe(&one).0, NtStatus::ACCESS_DENIED);
        }
        first.exchange.end();
        assert!(!session.ended());
        assert_eq!(second.probe(&two), LIVES);
        second.exchange.end();
        assert!(session.ended() && server.sessions.get(one.id).is_none());
    }
}

#[test]
fn channels_sign_as_each_agreed_and_none_with_gmac() {
    for (first, second, status) in [
        (CMAC, HMAC, NtStatus::SUCCESS),
        (HMAC, CMAC, NtStatus::SUCCESS),
        (ALL, CMAC, NtStatus::SUCCESS),
        (ALL, ALL, NtStatus::SUCCESS),
        (GMAC, CMAC, NtStatus::REQUEST_OUT_OF_SEQUENCE),
        (CMAC, GMAC, NtStatus::NOT_SUPPORTED),
        (HMAC, GMAC, NtStatus::NOT_SUPPORTED),
        (GMAC, GMAC, NtStatus::REQUEST_NOT_ACCEPTED),
    ] {
        let (server, _folder) = server("");
        let mut kept = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, first);
        let one = kept.login();
        let mut line = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, second);
        let bound = line.bind(&one);
        assert_eq!(bound.as_ref().err().copied().unwrap_or_default(), status);
        if let Ok(two) = bound {
            assert_eq!(line.probe(&two), LIVES);
        }
        assert_eq!(kept.probe(&one), LIVES);
    }
}

#[test]
fn gmac_is_chosen_where_there_are_no_channels_only() {
    use negotiate::Capabilities;
    for (more, algorithms, signs, channels) in [
        ("", ALL, SigningAlgorithm::AesCmac, true),
        ("", GMAC, SigningAlgorithm::AesGmac, false),
        (
            "",
            &[SigningAlgorithm::AesGmac, SigningAlgorithm::HmacSha256][..],
            SigningAlgorithm::HmacSha256,
            true,
        ),
        ("multichannel = false", ALL, SigningAlgorithm::AesGmac, false),
    ] {
        let (server, _folder) = server(more);
        let line = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, algorithms);
        let negotiated = line.exchange.negotiated.as_ref().unwrap();
        let has = negotiated.capabilities.has(Capabilities::MULTI_CHANNEL);
        assert_eq!((negotiated.signing, has), (signs, channels), "{more} {algorithms:?}");
    }
}

/// Whoever replays what was signed for a session, on a connection of their own and whatever its
/// message id, gets nothing that an AES-GMAC key has signed: it would be a second tag under one
/// nonce. Other keys sign the refusal, and that alone, since clients drop one that is not signed;
/// what was not signed with the key is refused without a signature.
#[test]
fn a_replayed_request_gets_no_second_tag_under_a_nonce() {
    for (algorithms, more) in [(GMAC, ""), (ALL, "multichannel = false"), (CMAC, ""), (HMAC, "")] {
        let (server, _folder) = server(more);
        let mut victim = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, algorithms);
        let one = victim.login();
        let mut seen = Vec::new();
        for command in [
            Command::ECHO,
            Command::TREE_DISCONNECT,
            Command::CREATE,
            Command::SESSION_SETUP,
            Command::IOCTL,
        ] {
            let (_, sent, _) =
                victim.ask(command, one.id, Some(&one.signing), |out| Empty.encode(out));
            seen.push(sent);
        }
        let request = session_setup::Request {
            flags: session_setup::RequestFlags::BINDING,
            ..Default::default()
        };
        let (_, binding, _) =
            victim.ask(Command::SESSION_SETUP, one.id, Some(&one.signing), |o| request.encode(o));
        if algorithms == GMAC || !more.is_empty() {
            // Where channels cannot be had, asking for one is a request like any other.
            seen.push(binding);
        }
        let mut stranger = SigningClient::new(&server, 9, Dialect::SMB_3_1_1, algorithms);
        let mut forger = SigningClient::new(&server, 9, Dialect::SMB_3_1_1, algorithms);
        for sent in seen {
            let id = Header::parse(&sent).unwrap().message_id.0;
            while stranger.next_id < id {
                stranger.ask(Command::LOGOFF, SessionId(0), None, |out| Empty.encode(out));
            }
            let mut out = Vec::new();
            stranger.exchange.receive(&mut sent.clone(), &mut out).unwrap();
            stranger.next_id += 1;
            let answer = Header::parse(&out[FRAME_LEN..]).unwrap();
            let gmac = one.signing.algorithm() == SigningAlgorithm::AesGmac;
            assert!(answer.status.is_error());
            let signed = answer.flags.has(HeaderFlags::SIGNED);
            assert!(!(gmac && signed), "{answer:?}");
            let gone = answer.status == NtStatus::USER_SESSION_DELETED;
            assert!(gmac || !gone || one.signing.verify(&mut out[FRAME_LEN..], Role::Server));
            assert_eq!(answer.signature == [0; 16], !signed);
            let mut forged = sent;
            forged[24..32].copy_from_slice(&forger.next_id.to_le_bytes());
            out.clear();
            forger.exchange.receive(&mut forged, &mut out).unwrap();
            forger.next_id += 1;
            assert!(!Header::parse(&out[FRAME_LEN..]).unwrap().flags.has(HeaderFlags::SIGNED));
        }
        assert_eq!(victim.probe(&one), LIVES);
    }
}

/// Clients drop a refusal that is not signed. A session that AES-GMAC signs uses up no nonce of its key
/// for it: the connection's own algorithm signs (3.1.4.1).
#[test]
fn a_session_of_gmac_is_refused_elsewhere_with_the_algorithm_of_the_connection() {
    for (algorithms, more) in [(CMAC, ""), (HMAC, ""), (CMAC, "multichannel = false")] {
        let (server, _folder) = server(more);
        let mut kept = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, GMAC);
        let one = kept.login();
        let mut line = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, algorithms);
        let refusals = one.signing.of_connection(algorithms[0]).unwrap();
        for (flags, status) in [
            (session_setup::RequestFlags::BINDING, NtStatus::REQUEST_OUT_OF_SEQUENCE),
            (session_setup::RequestFlags::default(), NtStatus::USER_SESSION_DELETED),
            (session_setup::RequestFlags::BINDING, NtStatus::REQUEST_OUT_OF_SEQUENCE),
        ] {
            let request = session_setup::Request { flags, ..Default::default() };
            let key = Some(&one.signing);
            let (header, _, mut answer) =
                line.ask(Command::SESSION_SETUP, one.id, key, |out| request.encode(out));
            assert_eq!(header.status, status);
            assert!(header.flags.has(HeaderFlags::SIGNED));
            assert!(refusals.verify(&mut answer, Role::Server));
        }
        // Who does not have the key gets nothing signed.
        let wrong = SigningKey::new(SigningAlgorithm::AesGmac, &[1; 16]);
        let (header, ..) = line.ask(Command::ECHO, one.id, Some(&wrong), |out| Empty.encode(out));
        assert!(!header.flags.has(HeaderFlags::SIGNED));
        assert!(!server.sessions.get(one.id).unwrap().ended());
    }
}

/// Which algorithms do not go together is said first, also by a server without channels.
#[test]
fn gmac_joins_no_session_of_another_algorithm() {
    for more in ["", "multichannel = false"] {
        for dialect in [Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_1_1] {
            let (server, _folder) = server(more);
            let mut kept = SigningClient::new(&server, 7, dialect, CMAC);
            let one = kept.login();
            let mut line = SigningClient::new(&server, 9, Dialect::SMB_3_1_1, GMAC);
            assert_eq!(line.bind(&one).err(), Some(NtStatus::NOT_SUPPORTED), "{more} {dialect:?}");
            assert_eq!(kept.probe(&one), LIVES);
        }
    }
}

#[test]
fn what_cannot_be_bound_is_refused_and_the_session_unharmed() {
    let (server, _folder) = server("");
    let mut first = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let one = first.login();
    let new = |dialect| SigningClient::new(&server, 7, dialect, CMAC);
    let binding = session_setup::RequestFlags::BINDING;
    let refusal = |line: &mut SigningClient, user: &str, password: &str| {
        line.setup(user, password, Some(&one), binding).err()
    };
    // Another dialect, and one that has no channels.
    let mut other = new(Dialect::SMB_3_0);
    assert_eq!(refusal(&mut other, "u", "p"), Some(NtStatus::INVALID_PARAMETER));
    let mut old = new(Dialect::SMB_2_1);
    assert_eq!(refusal(&mut old, "u", "p"), Some(NtStatus::REQUEST_NOT_ACCEPTED));
    // Another user, a wrong password.
    let mut line = new(Dialect::SMB_3_1_1);
    assert_eq!(refusal(&mut line, "v", "p"), Some(NtStatus::ACCESS_DENIED));
    assert_eq!(refusal(&mut line, "u", "wrong"), Some(NtStatus::LOGON_FAILURE));
    // Without a signature, with a wrong one, to a session that is not there.
    let request = session_setup::Request { flags: binding, ..Default::default() };
    let ask = |line: &mut SigningClient, id, key: Option<&SigningKey>| {
        line.ask(Command::SESSION_SETUP, id, key, |out| request.encode(out)).0.status
    };
    assert_eq!(ask(&mut line, one.id, None), NtStatus::INVALID_PARAMETER);
    let wrong = SigningKey::new(SigningAlgorithm::AesCmac, &[1; 16]);
    assert_eq!(ask(&mut line, one.id, Some(&wrong)), NtStatus::ACCESS_DENIED);
    assert_eq!(ask(&mut line, SessionId(99), Some(&wrong)), NtStatus::USER_SESSION_DELETED);
    // Where it is a channel already.
    assert_eq!(refusal(&mut first, "u", "p"), Some(NtStatus::REQUEST_NOT_ACCEPTED));
    // A session of other connections cannot be used, which its key says.
    assert_eq!(line.probe(&one), (NtStatus::USER_SESSION_DELETED, true));
    assert_eq!(first.probe(&one), LIVES);
    assert!(line.bind(&one).is_ok());
}

#[test]
fn a_server_without_multichannel_says_so() {
    let (server, _folder) = server("multichannel = false");
    let mut first = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let negotiated = first.exchange.negotiated.as_ref().unwrap();
    assert!(!negotiated.capabilities.has(negotiate::Capabilities::MULTI_CHANNEL));
    let one = first.login();
    let mut second = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    assert_eq!(second.bind(&one).err(), Some(NtStatus::REQUEST_NOT_ACCEPTED));
}

#[test]
fn channels_of_a_session_are_limited() {
    let (server, _folder) = server("");
    let mut first = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let one = first.login();
    let mut lines = Vec::new();
    for _ in 1..32 {
        let mut line = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
        line.bind(&one).unwrap();
        lines.push(line);
    }
    let mut more = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    assert_eq!(more.bind(&one).err(), Some(NtStatus::INSUFFICIENT_RESOURCES));
    lines.pop();
    assert!(more.bind(&one).is_ok());
}

#[test]
fn logging_on_again_keeps_the_keys_and_failing_to_ends_the_session() {
    let (server, _folder) = server("");
    let mut line = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, GMAC);
    let one = line.login();
    let none = session_setup::RequestFlags::NONE;
    line.setup("u", "p", Some(&one), none).unwrap();
    assert_eq!(line.probe(&one), LIVES);
    let failed = line.setup("u", "wrong", Some(&one), none);
    assert_eq!(failed.err(), Some(NtStatus::LOGON_FAILURE));
    assert_eq!(line.probe(&one), (NtStatus::USER_SESSION_DELETED, true));
}

#[test]
fn a_session_without_its_user_opens_nothing_until_the_user_is_back() {
    let (server, _folder) = server("");
    let mut line = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let none = session_setup::RequestFlags::NONE;
    // Nobody begins a session.
    assert_eq!(line.setup("", "", None, none).err(), Some(NtStatus::LOGON_FAILURE));
    let one = line.login();
    let connect = |line: &mut SigningClient| {
        let request = tree_connect::Request { flags: 0, path: "\\\\h\\s".into() };
        let key = Some(&one.signing);
        line.ask(Command::TREE_CONNECT, one.id, key, |out| request.encode(out)).0
    };
    let tree = connect(&mut line);
    assert_eq!(tree.status, NtStatus::SUCCESS);
    line.tree = tree.tree_id();
    let create = create::Request {
        access: create::Access::ALL,
        disposition: create::Disposition::OPEN_IF,
        name: "f".into(),
        impersonation: 2,
        ..Default::default()
    };
    let key = Some(&one.signing);
    let (_, _, body) = line.ask(Command::CREATE, one.id, key, |out| create.encode(out));
    let file_id = create::Response::parse(&body[HEADER_LEN..]).unwrap().file_id;
    line.tree = TreeId(0);
    // Nor does it give names (MS-FSA 2.1.5.15.7, 2.1.5.15.12).
    let name = |line: &mut SigningClient, class| {
        let mut input = Vec::new();
        Rename { name: format!("{class:?}"), ..Rename::default() }.encode(&mut input);
        let info_type = query_info::InfoType::FILE;
        let request =
            set_info::Request { info_type, class, file_id, input: &input, ..Default::default() };
        line.tree = tree.tree_id();
        let (header, ..) = line.ask(Command::SET_INFO, one.id, key, |out| request.encode(out));
        line.tree = TreeId(0);
        header.status
    };
    line.setup("", "", Some(&one), none).unwrap();
    assert_eq!(connect(&mut line).status, NtStatus::ACCESS_DENIED);
    for class in [InfoClass::RENAME, InfoClass::LINK] {
        assert_eq!(name(&mut line, class), NtStatus::ACCESS_DENIED, "{class:?}");
    }
    assert_eq!(line.probe(&one), LIVES);
    line.setup("u", "p", Some(&one), none).unwrap();
    assert_eq!(connect(&mut line).status, NtStatus::SUCCESS);
    for class in [InfoClass::RENAME, InfoClass::LINK] {
        assert_eq!(name(&mut line, class), NtStatus::SUCCESS, "{class:?}");
    }
}

#[test]
fn an_expired_session_waits_for_its_user_to_log_on_again() {
    let (server, _folder) = server("");
    let mut line = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let one = line.login();
    server.sessions.get(one.id).unwrap().renew(1);
    assert_eq!(line.probe(&one), (NtStatus::NETWORK_SESSION_EXPIRED, true));
    let mut other = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    assert_eq!(other.bind(&one).err(), Some(NtStatus::NETWORK_SESSION_EXPIRED));
    line.setup("u", "p", Some(&one), session_setup::RequestFlags::NONE).unwrap();
    assert_eq!(line.probe(&one), LIVES);
}

#[test]
fn logoff_on_one_channel_is_logoff_on_all() {
    let (server, _folder) = server("");
    let mut first = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let mut second = SigningClient::new(&server, 7, Dialect::SMB_3_1_1, CMAC);
    let one = first.login();
    let two = second.bind(&one).unwrap();
    let logoff = second.ask(Command::LOGOFF, two.id, Some(&two.signing), |out| Empty.encode(out));
    assert_eq!(logoff.0.status, NtStatus::SUCCESS);
    let gone = (NtStatus::USER_SESSION_DELETED, true);
    assert_eq!((first.probe(&one), second.probe(&two)), (gone, gone));
}
