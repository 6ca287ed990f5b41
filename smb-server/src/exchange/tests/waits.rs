//! What waits is its user's, and what is told to a client is that client's to answer.

use smb_protocol::msg::{
    context::{DurableV2, LeaseState},
    create::{CreateOptions, ShareAccess},
    oplock::LeaseAck,
};

use super::{house::*, *};

fn folder() -> Ask {
    Ask { share: ShareAccess(7), options: CreateOptions::DIRECTORY_FILE, ..ask("") }
}

fn watch(guest: &mut Guest, file_id: FileId) -> Begun {
    let request = notify::Request { file_id, output_len: 4096, filter: 1, flags: 0 };
    guest.begin(Command::CHANGE_NOTIFY, |out| request.encode(out))
}

/// A user has one budget for what waits, whatever connections it waits on.
#[test]
fn what_waits_counts_for_its_user() {
    let full = NtStatus::INSUFFICIENT_RESOURCES;
    let mut house = House::empty();
    house.server = serve_with(house.folder.path(), "[limits]\nuser_bytes = \"64KiB\"\n");
    house.recover();
    let mut first = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    let mut second = house.guest(2, "u", Dialect::SMB_3_0_2, "plain");
    let mut other = house.guest(3, "v", Dialect::SMB_3_0_2, "plain");
    let mut waiting = Vec::new();
    let ids =
        [&mut first, &mut second, &mut other].map(|guest| guest.create(&folder()).unwrap().id);
    for _ in 0..8 {
        waiting.push(watch(&mut first, ids[0]));
    }
    let of_second = (0..8).map(|_| watch(&mut second, ids[1])).collect::<Vec<_>>();
    let waits = of_second.iter().filter(|begun| begun.waits()).count();
    assert!((1..8).contains(&waits), "{waits} of 8");
    assert!(waiting.iter().all(Begun::waits));
    for refused in of_second.iter().filter(|begun| !begun.waits()) {
        assert_eq!(refused.status(), full);
    }
    // What holds nothing else counts too, until there is room for none.
    let holder = other.create(&Ask { share: ShareAccess(7), ..ask("a") }).unwrap().id;
    assert_eq!(other.lock(holder, 0, 0, OWN), NtStatus::SUCCESS);
    let file = second.create(&Ask { share: ShareAccess(7), ..ask("a") }).unwrap().id;
    let wait = |guest: &mut Guest| {
        let locks = vec![lock::Element { offset: 0, length: 1, flags: lock::LockFlags(2) }];
        let request = lock::Request { file_id: file, sequence: 0, locks };
        guest.begin(Command::LOCK, |out| request.encode(out))
    };
    let locks = (0..16).map(|_| wait(&mut second)).collect::<Vec<_>>();
    assert_eq!(locks.last().map(Begun::status), Some(full));
    // Another has a budget of its own, and what does not wait is served.
    assert!(watch(&mut other, ids[2]).waits());
    assert!(second.create(&Ask { share: ShareAccess(7), ..ask("b") }).is_ok());
    // What has gone with its connection is given back.
    drop((first, waiting));
    assert!(wait(&mut second).waits());
}

/// A connection may have so many requests wait for an event as Windows lets it, whatever they wait for,
/// and another connection of the same user as many (MS-SMB2 3.3.4.2, note 242).
#[test]
fn each_connection_has_as_many_requests_wait_as_on_windows() {
    const MOST: usize = 511;
    let house = House::new();
    let mut guests = [(1, "plain"), (2, "plain"), (3, "IPC$"), (4, "IPC$")]
        .map(|(guid, share)| (house.guest(guid, "u", Dialect::SMB_3_0_2, share), share));
    let mut waiting = Vec::new();
    for (guest, share) in &mut guests {
        let begin = |guest: &mut Guest| match *share {
            "IPC$" => {
                let file_id = guest.create(&Ask { share: ShareAccess(7), ..ask("lsarpc") });
                let file_id = file_id.unwrap().id;
                let request = read::Request { file_id, length: 1024, ..Default::default() };
                guest.begin(Command::READ, |out| request.encode(out))
            }
            _ => {
                let file_id = guest.create(&folder()).unwrap().id;
                watch(guest, file_id)
            }
        };
        for _ in 0..MOST {
            let begun = begin(guest);
            assert!(begun.waits(), "{share}: {}", begun.status());
            waiting.push(begun);
        }
        for _ in 0..3 {
            let begun = begin(guest);
            assert!(!begun.waits(), "{share}");
            assert_eq!(begun.status(), NtStatus::INSUFFICIENT_RESOURCES, "{share}");
        }
    }
    // What waits for storage is not among them.
    let (guest, _) = &mut guests[0];
    let file = guest.create(&Ask { share: ShareAccess(7), ..ask("a") }).unwrap().id;
    let request = flush::Request { file_id: file };
    let (answer, _) = guest.ask(Command::FLUSH, |out| request.encode(out));
    assert_eq!(answer.status, NtStatus::SUCCESS);
}

/// A lease goes by the identity that its client shows, which anybody can show: its break is
/// acknowledged by the user whose opens have it, and nobody else (MS-SMB2 3.3.5.22.2).
#[test]
fn the_break_of_a_lease_is_its_users_to_acknowledge() {
    let house = House::new();
    let shared = Ask { share: ShareAccess(7), ..ask("a") };
    let mut owner = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    let got = owner.create(&shared.clone().lease(9)).unwrap();
    assert_eq!(got.lease.unwrap().0, RWH);
    let mut stranger = house.guest(1, "v", Dialect::SMB_3_0_2, "plain");
    let mut opener = house.guest(2, "v", Dialect::SMB_3_0_2, "plain");
    let opening = opener.begin_create(&shared);
    assert!(opening.waits());
    let acknowledge = |guest: &mut Guest, key: u8, state: u32| {
        let ack = LeaseAck { key: [key; 16], state };
        guest.ask(Command::OPLOCK_BREAK, |out| ack.encode(out)).0.status
    };
    assert_eq!(acknowledge(&mut stranger, 9, 0), NtStatus::OBJECT_NAME_NOT_FOUND);
    // Nothing has changed: the owner keeps what it was told that it may, and more is refused.
    assert_eq!(acknowledge(&mut owner, 9, 7), NtStatus::REQUEST_NOT_ACCEPTED);
    assert_eq!(acknowledge(&mut owner, 8, 3), NtStatus::OBJECT_NAME_NOT_FOUND);
    assert_eq!(acknowledge(&mut owner, 9, 3), NtStatus::SUCCESS);
    assert!(opener.finish_create(opening).is_ok());
    assert_eq!(owner.create(&shared.lease(9)).unwrap().lease.unwrap().0, LeaseState(3));
}

/// Two users who show one identity and one key have two leases: what one does is told to the other,
/// and a key that is known of one opens nothing to the other (MS-SMB2 3.3.1.12 has one table for a
/// client, which is a user's here).
#[test]
fn a_lease_is_not_shared_by_users_who_show_one_identity() {
    let house = House::new();
    let shared = Ask { share: ShareAccess(7), ..ask("a") };
    let mut owner = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    assert_eq!(owner.create(&shared.clone().lease(9)).unwrap().lease.unwrap().0, RWH);
    let mut stranger = house.guest(1, "v", Dialect::SMB_3_0_2, "plain");
    // The key is the owner's of `a`; of the stranger it is a new one, of whatever file.
    assert_eq!(
        stranger.create(&Ask { name: "b", ..shared.clone() }.lease(9)).unwrap().lease.unwrap().0,
        RWH
    );
    let opening = stranger.begin_create(&shared.clone().lease(8));
    assert!(opening.waits(), "the owner's cache is written back first");
    let ack = LeaseAck { key: [9; 16], state: 3 };
    let (answer, _) = owner.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
    assert_eq!(answer.status, NtStatus::SUCCESS);
    let got = stranger.finish_create(opening).unwrap();
    assert!(!got.lease.unwrap().0.has(LeaseState::WRITE), "{got:?}");
}

/// `CreateGuid` is known to who reads the network: another user who shows it, and the client's
/// identity, does not stand in the way of the one whose it is.
#[test]
fn a_create_is_repeated_by_its_user_whoever_else_shows_its_name() {
    let house = House::new();
    let durable = Some(DurableV2 { timeout: 0, flags: 0, create_guid: [4; 16] });
    let wanted = Ask { durable, share: ShareAccess(7), ..ask("a") }.lease(9);
    let mut owner = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    let got = owner.create(&wanted).unwrap();
    let mut stranger = house.guest(1, "v", Dialect::SMB_3_0_2, "plain");
    let same = Ask { name: "b", ..wanted.clone() };
    let theirs = stranger.create(&same).unwrap();
    owner.replay = true;
    stranger.replay = true;
    assert_eq!(owner.create(&wanted).unwrap().id, got.id);
    assert_eq!(stranger.create(&same).unwrap().id, theirs.id);
    // Who made nothing of that name is told that it is not theirs (3.3.5.9.10).
    let mut third = house.guest(1, "v", Dialect::SMB_3_0_2, "plain");
    assert_eq!(stranger.close(theirs.id), NtStatus::SUCCESS);
    third.replay = true;
    assert_eq!(third.create(&wanted).unwrap_err(), NtStatus::ACCESS_DENIED);
}

/// Whatever one user takes, the others have the rest of what all share: opens, locks, opens that are
/// kept for clients that are away, connections (`limits.user_percent`).
#[test]
fn one_user_leaves_room_for_the_others() {
    let mut house = House::empty();
    let limits = "[limits]\nopens = 20\nlocks = 20\nkept_opens = 8\nconnections = 8\n";
    house.server = serve_with(house.folder.path(), limits);
    house.recover();
    let shared = |name| Ask { share: ShareAccess(7), ..ask(name) };
    let mut taker = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    let mut second = house.guest(2, "u", Dialect::SMB_3_0_2, "plain");
    let mut other = house.guest(3, "v", Dialect::SMB_3_0_2, "plain");

    // Opens, over two connections.
    let mut ids: Vec<_> = (0..9).map(|_| taker.create(&shared("a")).unwrap().id).collect();
    ids.push(second.create(&shared("a")).unwrap().id);
    let full = NtStatus::TOO_MANY_OPENED_FILES;
    for guest in [&mut taker, &mut second] {
        assert_eq!(guest.create(&shared("a")).unwrap_err(), full);
    }
    let theirs = other.create(&shared("b")).unwrap().id;

    // Locks: what was refused or given back is not counted.
    let none = NtStatus::INSUFFICIENT_RESOURCES;
    assert_eq!(other.lock(theirs, 0, 0, OWN), NtStatus::SUCCESS);
    for at in 0..10 {
        assert_eq!(taker.lock(ids[0], at * 10, 0, OWN), NtStatus::SUCCESS);
    }
    assert_eq!(taker.lock(ids[1], 0, 0, OWN), none);
    assert_eq!(taker.lock(ids[0], 30, 0, UNLOCK), NtStatus::SUCCESS);
    assert_eq!(taker.lock(ids[1], 40, 0, OWN), NtStatus::LOCK_NOT_GRANTED);
    assert_eq!(taker.lock(ids[1], 30, 0, OWN), NtStatus::SUCCESS);
    assert_eq!(taker.lock(ids[1], 200, 0, OWN), none);
    assert_eq!(other.lock(theirs, 10, 0, OWN), NtStatus::SUCCESS);

    // An open that is closed gives back itself and its locks.
    taker.close(ids[0]);
    assert_eq!(taker.lock(ids[1], 200, 0, OWN), NtStatus::SUCCESS);
    assert!(taker.create(&shared("a")).is_ok());

    // Connections: one that is gone counts no more, and none counts twice.
    let more = house.guest(4, "u", Dialect::SMB_3_0_2, "plain");
    let last = house.guest(5, "u", Dialect::SMB_3_0_2, "plain");
    let login = |user| house.stranger().try_login(6, user, Dialect::SMB_3_0_2);
    assert_eq!(login("u"), NtStatus::REQUEST_NOT_ACCEPTED);
    assert_eq!(login("v"), NtStatus::SUCCESS);
    assert_eq!(house.server.sessions.all().len(), 5);
    drop((more, last));
    assert_eq!(login("u"), NtStatus::SUCCESS);
}

/// Opens that are kept for clients who are away count, until their time is over.
#[test]
fn one_users_absent_clients_leave_room_for_the_others() {
    let mut house = House::empty();
    house.server = serve_with(house.folder.path(), "[limits]\nkept_opens = 8\n");
    house.recover();
    let leave = |house: &House, user: &str, name, count: u8| {
        let mut guest = house.guest(1, user, Dialect::SMB_3_0_2, "plain");
        for at in 0..count {
            let durable = Some(DurableV2 { timeout: 0, flags: 0, create_guid: [at; 16] });
            let wanted = Ask { durable, share: ShareAccess(7), ..ask(name) }.lease(9);
            guest.create(&wanted).unwrap();
        }
    };
    leave(&house, "u", "a", 8);
    assert_eq!(house.server.open_files.disconnected.len(), 4);
    leave(&house, "v", "b", 3);
    assert_eq!(house.server.open_files.disconnected.len(), 7);
}
