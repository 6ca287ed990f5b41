//! What a CREATE asks for beside its file, and what is told of it later: contexts that do not go
//! together, clients that change their dialect, acknowledgements that nobody waits for.

use std::mem::MaybeUninit;

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use smb_protocol::{
    msg::{
        context::{self, DurableV2, Lease, LeaseState, ReconnectV2},
        create::{Access, Disposition, ShareAccess},
        oplock::{OplockBreak, OplockLevel},
    },
    security::{Control, Descriptor, Sid, parts},
};

use super::{
    files::{FILE, logged_in},
    house::*,
    *,
};

const DIALECTS: [Dialect; 4] =
    [Dialect::SMB_2_0_2, Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_0_2];

/// One of the contexts about durable opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    Request,
    RequestV2,
    Reconnect,
    ReconnectV2,
}
use Durability::*;

impl Durability {
    fn add(self, ask: Ask, file: FileId) -> Ask {
        let create_guid = [7; 16];
        match self {
            Request => Ask { durable_v1: true, ..ask },
            RequestV2 => {
                Ask { durable: Some(DurableV2 { timeout: 0, flags: 0, create_guid }), ..ask }
            }
            Reconnect => Ask { reconnect_v1: Some(file), ..ask },
            ReconnectV2 => {
                Ask { reconnect: Some(ReconnectV2 { file_id: file, create_guid, flags: 0 }), ..ask }
            }
        }
    }
}

/// MS-SMB2 3.3.5.9.6, 3.3.5.9.7, 3.3.5.9.10, 3.3.5.9.12: a server that knows 3.0 knows the contexts
/// of version 2, whatever dialect is spoken.
#[test]
fn contexts_of_durable_opens_that_do_not_go_together_are_refused() {
    let house = House::new();
    for dialect in DIALECTS {
        for (one, other) in [
            (Request, RequestV2),
            (Request, ReconnectV2),
            (RequestV2, ReconnectV2),
            (Reconnect, RequestV2),
            (Reconnect, ReconnectV2),
        ] {
            let mut owner = house.guest(1, "u", dialect, "plain");
            let shared = Ask { share: ShareAccess(7), oplock: OplockLevel::BATCH, ..ask("f") };
            let durable = Request.add(shared.clone(), FileId::RELATED);
            let file = owner.create(&durable).unwrap().id;
            drop(owner);
            let mut again = house.guest(1, "u", dialect, "plain");
            let both = one.add(other.add(shared.clone(), file), file);
            let refused = again.create(&both);
            assert_eq!(refused, Err(NtStatus::INVALID_PARAMETER), "{dialect:?} {one:?} {other:?}");
            // Nothing is lost by that.
            let taken = again.create(&Reconnect.add(shared, file)).unwrap();
            assert_eq!(again.close(taken.id), NtStatus::SUCCESS);
        }
        let mut stranger = house.guest(2, "u", dialect, "plain");
        let nothing = ReconnectV2.add(ask("f"), FileId { persistent: 77, volatile: 77 });
        let missing = Err(NtStatus::OBJECT_NAME_NOT_FOUND);
        assert_eq!(stranger.create(&nothing), missing, "{dialect:?}");
    }
}

/// MS-SMB2 3.3.5.5.3: before anything of the client's other session is touched.
#[test]
fn a_client_that_comes_with_another_dialect_is_refused() {
    let house = House::new();
    let log_in = |guest: &mut Guest, guid: u8, dialect, user: &str, previous| {
        let offer = negotiate::Request {
            dialects: vec![dialect],
            client_guid: [guid; 16],
            ..Default::default()
        };
        let (_, body) = guest.ask(Command::NEGOTIATE, |out| offer.encode(out));
        let hint = negotiate::Response::parse(&body).unwrap().security_buffer;
        let mut logon = Logon::new(user, "p");
        let first = logon.first(&hint);
        let (header, body) = guest.ask(Command::SESSION_SETUP, |out| setup(&first).encode(out));
        guest.caller.session = header.session_id;
        let token = session_setup::Response::parse(&body).unwrap().security_buffer;
        let second = logon.second(token);
        let request = session_setup::Request { previous_session: previous, ..setup(&second) };
        guest.ask(Command::SESSION_SETUP, |out| request.encode(out)).0.status
    };
    let none = SessionId(0);
    let mut first = house.stranger();
    assert_eq!(log_in(&mut first, 1, Dialect::SMB_2_1, "u", none), NtStatus::SUCCESS);
    let known = first.session;
    let lives = |first: &mut Guest| first.ask(Command::ECHO, |out| Empty.encode(out)).0.status;
    let mut second = house.stranger();
    let refused = log_in(&mut second, 1, Dialect::SMB_3_0_2, "u", known);
    assert_eq!(refused, NtStatus::USER_SESSION_DELETED);
    assert_eq!(lives(&mut first), NtStatus::SUCCESS);
    assert_eq!(second.ask(Command::LOGOFF, |out| Empty.encode(out)).0.status, refused);
    // The dialect of another client, of another user's, and that of clients that have no name.
    for (guid, dialect, user) in
        [(2, Dialect::SMB_3_0_2, "u"), (1, Dialect::SMB_3_0_2, "v"), (1, Dialect::SMB_2_0_2, "u")]
    {
        let mut other = house.stranger();
        assert_eq!(log_in(&mut other, guid, dialect, user, none), NtStatus::SUCCESS);
    }
    drop(first);
    let mut third = house.stranger();
    assert_eq!(log_in(&mut third, 1, Dialect::SMB_3_0_2, "u", none), NtStatus::SUCCESS);
}

/// MS-SMB2 3.3.5.22.1: nothing was to be acknowledged.
#[test]
fn an_acknowledgement_that_nobody_waits_for_changes_nothing() {
    let house = House::new();
    let levels = [
        (OplockLevel::NONE, NtStatus::INVALID_DEVICE_STATE, NtStatus::INVALID_DEVICE_STATE),
        (OplockLevel::II, NtStatus::INVALID_OPLOCK_PROTOCOL, NtStatus::INVALID_DEVICE_STATE),
        (OplockLevel::EXCLUSIVE, NtStatus::INVALID_OPLOCK_PROTOCOL, NtStatus::INVALID_DEVICE_STATE),
        (OplockLevel::BATCH, NtStatus::INVALID_OPLOCK_PROTOCOL, NtStatus::INVALID_DEVICE_STATE),
        (OplockLevel::LEASE, NtStatus::INVALID_PARAMETER, NtStatus::INVALID_DEVICE_STATE),
    ];
    for dialect in DIALECTS {
        let mut owner = house.guest(1, "u", dialect, "plain");
        for (level, of_second, of_others) in levels {
            for held in [OplockLevel::II, OplockLevel::EXCLUSIVE, OplockLevel::BATCH] {
                let opened = Ask { share: ShareAccess(7), oplock: held, ..ask("f") };
                let file_id = owner.create(&opened).unwrap().id;
                let ack = OplockBreak { level, file_id };
                let (header, _) = owner.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
                let want = if held == OplockLevel::II { of_second } else { of_others };
                assert_eq!(header.status, want, "{held:?} held, {level:?} acknowledged");
                assert_eq!(owner.close(file_id), NtStatus::SUCCESS);
            }
        }
    }
}

/// MS-SMB2 3.3.5.9.8 and 3.3.5.9.11, notes 340 and 345.
#[test]
fn a_lease_beside_no_oplock_is_granted_to_the_dialects_that_knew_it() {
    let house = House::new();
    for (guid, dialect) in (1..).zip(DIALECTS) {
        for level in [OplockLevel::NONE, OplockLevel::II] {
            let lease = Lease { key: [guid; 16], state: RWH, flags: 0, v2: None };
            let wanted = Ask { oplock: level, lease: Some(lease), ..ask("f") };
            let mut guest = house.guest(guid, "u", dialect, "plain");
            let got = guest.create(&wanted).unwrap();
            let old = [Dialect::SMB_3_0, Dialect::SMB_3_0_2].contains(&dialect);
            let granted = (old && level == OplockLevel::NONE).then_some((LeaseState(7), None));
            assert_eq!(got.lease, granted, "{dialect:?} {level:?}");
            assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
        }
    }
}

/// Nobody sees a file before it has its access list: one whose list is refused was never there.
#[test]
fn a_file_has_its_access_list_before_it_has_its_name() {
    let mut direct = logged_in();
    let mine = direct.exchange.server.user_sid("U");
    let watch = inotify::init(CreateFlags::NONBLOCK).unwrap();
    let folder = direct.folder.path().join("files");
    inotify::add_watch(&watch, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO).unwrap();
    let seen = || {
        let mut room = [MaybeUninit::uninit(); 4096];
        inotify::Reader::new(&watch, &mut room)
            .next()
            .map(|event| event.file_name().unwrap().to_str().unwrap().to_owned())
    };
    let mut create = |name: &str, owner: Sid| {
        let descriptor = Descriptor {
            owner: Some(owner),
            control: Control::DACL_PRESENT,
            dacl: Some(Vec::new()),
            ..Descriptor::default()
        };
        let mut data = Vec::new();
        descriptor.encode(parts::OWNER | parts::DACL, &mut data);
        let request = create::Request {
            access: Access::READ_ATTRIBUTES,
            share: ShareAccess(7),
            disposition: Disposition::CREATE,
            options: FILE,
            name: name.into(),
            impersonation: 2,
            contexts: vec![create::RawContext { name: context::names::SECD, data: &data }],
            ..Default::default()
        };
        direct.ask(Command::CREATE, |out| request.encode(out)).0.status
    };
    assert_eq!(create("refused", Sid::new(5, &[21, 7, 7])), NtStatus::INVALID_OWNER);
    assert_eq!(seen(), Err(Errno::AGAIN));
    assert_eq!(create("made", mine), NtStatus::SUCCESS);
    assert_eq!(seen(), Ok("made".into()));
}
