//! The services without a client: noise for every operation, and answers that agree.

use dce_rpc::ndr::{Handle, Reader, Writer};
use proptest::prelude::*;
use smb_protocol::{
    Dialect, SessionId,
    crypto::{SigningAlgorithm, SigningKey},
    security::Sid,
};
use volume::users::Users;

use super::{super::handles::Object, *};
use crate::{
    config::Config,
    session::{Keys, Logon, NEVER, NegotiatedContext},
};

fn server() -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("files")).unwrap();
    let text = format!(
        "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\nadmin_users=['Ute']\n\
         [[user]]\nname='Ute'\npassword='p'\n[[user]]\nname='Jörg'\npassword='p'\n\
         [[share]]\nname='s'\npath='files'\nusers=['Ute']\n",
        folder.path().join("state").display()
    );
    let config = Config::parse(&text, &folder.path().join("c")).unwrap();
    (Server::new(config).unwrap(), folder)
}

fn session(user: &str) -> Session {
    let signing = SigningKey::new(SigningAlgorithm::HmacSha256, &[0; 16]);
    Session::new(Logon {
        id: SessionId(1),
        user: Users::default().get(user),
        sids: Vec::new(),
        keys: Keys { signing, sealing: None },
        must_sign: false,
        must_encrypt: false,
        origin: NegotiatedContext { dialect: Dialect::SMB_2_1, cipher: None, client_guid: [0; 16] },
        expires: NEVER,
    })
}

fn open_policy(caller: &Caller<'_>, handles: &mut Handles) -> Handle {
    let stub = lsarpc::serve(caller, handles, 44, Reader::new(&[])).unwrap();
    Reader::new(&stub).handle().unwrap()
}

const ALL: [SyntaxId; 4] =
    [srvsvc::INTERFACE, wkssvc::INTERFACE, lsarpc::INTERFACE, samr::INTERFACE];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever stands in a stub, every operation gives results or a fault, in bounds.
    #[test]
    fn any_parameters_are_answered(
        noise in prop::collection::vec(any::<u8>(), 0..150), with_handle: bool, small: bool,
    ) {
        let (server, _folder) = server();
        let session = session("UTE");
        let caller = Caller { server: &server, session: &session, accounts: Accounts::of(&server) };
        let mut handles = Handles::default();
        for interface in ALL {
            for opnum in 0..80 {
                let mut stub = Vec::new();
                if with_handle {
                    let object = match (interface, opnum) {
                        (lsarpc::INTERFACE, _) => Object::Policy,
                        (_, 5..=7) => Object::Accounts,
                        (_, 36..=47) => Object::User(500),
                        _ => Object::Machine,
                    };
                    stub.extend_from_slice(&handles.add(object).map_or([0; 20], |h| h.0));
                }
                // Small numbers are more often counts and levels than others.
                stub.extend(noise.iter().map(|b| if small { b & 3 } else { *b }));
                let transfer = dce_rpc::Transfer::Ndr;
                let call = Call { id: 1, interface, transfer, opnum, stub, caller: None };
                if let Ok(answer) = serve(&caller, &mut handles, &call) {
                    prop_assert!(answer.len() <= 100_000);
                }
            }
        }
    }

    /// An identifier that a name gives leads back to that name.
    #[test]
    fn names_and_identifiers_agree(which in 0usize..7, case: bool) {
        let (server, _folder) = server();
        let session = session("UTE");
        let caller = Caller { server: &server, session: &session, accounts: Accounts::of(&server) };
        let names = [
            "Ute", "Jörg", "None", "Administrators", "Everyone", "NT AUTHORITY\\SYSTEM",
            "BUILTIN\\Users",
        ];
        let asked = if case { names[which].to_uppercase() } else { names[which].to_owned() };
        let account = caller.accounts.named(&asked).unwrap();
        prop_assert_eq!(caller.accounts.identified(&account.sid), Some(account.clone()));
        let mut handles = Handles::default();
        let policy = open_policy(&caller, &mut handles);
        // LsarLookupSids with one identifier.
        let mut w = Writer::new();
        w.handle(&policy).u32(1).pointer(true).u32(1).pointer(true).sid(&account.sid);
        let stub = lsarpc::serve(&caller, &mut handles, 15, Reader::new(&w.finish())).unwrap();
        let mut r = Reader::new(&stub);
        // One domain with its name and identifier; one name of its kind in it.
        prop_assert!(r.pointer("").unwrap());
        prop_assert_eq!(r.u32("").unwrap(), 1);
        r.pointer("").unwrap();
        r.u32("").unwrap();
        r.u32("").unwrap();
        r.unicode_header("").unwrap();
        r.pointer("").unwrap();
        prop_assert_eq!(r.string("").unwrap(), account.domain);
        prop_assert_eq!(r.sid("").unwrap(), account.domain_sid);
        prop_assert_eq!(r.u32("").unwrap(), 1);
        r.pointer("").unwrap();
        r.u32("").unwrap();
        prop_assert_eq!(r.u16("").unwrap(), account.kind as u16);
        r.unicode_header("").unwrap();
        prop_assert_eq!(r.u32("").unwrap(), 0);
        prop_assert_eq!(r.string("").unwrap(), account.name);
        prop_assert_eq!((r.u32("").unwrap(), r.u32("").unwrap()), (1, 0));
    }
}

#[test]
fn only_administrators_see_sessions_files_and_paths() {
    let (server, _folder) = server();
    for (user, denied) in [("UTE", 0), ("JÖRG", 5)] {
        let session = session(user);
        let caller = Caller { server: &server, session: &session, accounts: Accounts::of(&server) };
        // NetrSessionEnum at level 1, NetrFileEnum at level 3: an empty container, no limit.
        for (opnum, level, texts) in [(12, 1, 3), (9, 3, 3)] {
            let mut w = Writer::new();
            (0..texts).for_each(|_| {
                w.pointer(false);
            });
            w.u32(level).u32(level).pointer(true).u32(0).pointer(false).u32(u32::MAX).u32(0);
            let stub = srvsvc::serve(&caller, opnum, Reader::new(&w.finish())).unwrap();
            assert_eq!(stub[stub.len() - 4..], u32::to_le_bytes(denied), "{user} {opnum}");
        }
        // NetrSessionDel of everyone, NetrFileClose of nothing.
        let mut w = Writer::new();
        w.pointer(false).u32(7);
        let stub = srvsvc::serve(&caller, 11, Reader::new(&w.finish())).unwrap();
        assert_eq!(stub, u32::to_le_bytes(if denied == 0 { 2314 } else { denied }));
        let mut w = Writer::new();
        w.pointer(false).pointer(false).pointer(false);
        let stub = srvsvc::serve(&caller, 13, Reader::new(&w.finish())).unwrap();
        assert_eq!(stub, u32::to_le_bytes(if denied == 0 { 87 } else { denied }));
    }
}

#[test]
fn handles_are_bounded_and_belong_to_their_kind() {
    let (server, _folder) = server();
    let session = session("UTE");
    let caller = Caller { server: &server, session: &session, accounts: Accounts::of(&server) };
    let mut handles = Handles::default();
    let policy = open_policy(&caller, &mut handles);
    // SamrEnumerateDomains with a policy, and a handle that was never given.
    for handle in [policy, Handle([7; 20])] {
        let mut w = Writer::new();
        w.handle(&handle).u32(0).u32(100);
        let refused = samr::serve(&caller, &mut handles, 6, Reader::new(&w.finish()));
        assert_eq!(refused, Err(FaultStatus::CONTEXT_MISMATCH));
    }
    let open = |handles: &mut Handles| lsarpc::serve(&caller, handles, 44, Reader::new(&[]));
    let refused = (0..1000).find_map(|_| open(&mut handles).err());
    assert_eq!(refused, Some(FaultStatus::OUT_OF_MEMORY));
    let mut w = Writer::new();
    w.handle(&policy);
    let stub = w.finish();
    assert!(lsarpc::serve(&caller, &mut handles, 0, Reader::new(&stub)).is_ok());
    assert!(open(&mut handles).is_ok());
    let again = lsarpc::serve(&caller, &mut handles, 0, Reader::new(&stub));
    assert_eq!(again, Err(FaultStatus::CONTEXT_MISMATCH));
}

#[test]
fn a_users_number_stands_below_the_server() {
    let (server, _folder) = server();
    let sid = server.user_sid("UTE");
    assert_eq!(sid.number_below(&server.machine_sid()), Some(crate::rpc::accounts::rid("UTE")));
    assert_eq!(Sid::new(5, &[32]).number_below(&server.machine_sid()), None);
}
