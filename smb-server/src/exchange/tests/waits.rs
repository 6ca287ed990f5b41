//! What waits is its user's, and what is told to a client is that client's to answer.

use smb_protocol::msg::{
    context::LeaseState,
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
