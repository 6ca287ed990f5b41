//! What is granted of a lease beside others, and who hears of changes of a folder that they cache.

use smb_protocol::msg::{
    context::LeaseState,
    create::{Access, CreateOptions, ShareAccess},
    oplock,
};

use super::{house::*, *};

const NOTHING: LeaseState = LeaseState(0);
const R: LeaseState = LeaseState(1);
const RH: LeaseState = LeaseState(3);
/// `SMB2_LEASE_FLAG_PARENT_LEASE_KEY_SET`.
const PARENT: u32 = 4;

fn shared(name: &'static str) -> Ask {
    Ask { access: Access::ALL, share: ShareAccess(7), ..ask(name) }
}

fn with(ask: Ask, key: u8, state: LeaseState) -> Ask {
    let mut ask = ask.lease(key);
    ask.lease.as_mut().unwrap().state = state;
    ask
}

/// A file in a folder on which its client says it has the lease `parent`.
fn below(name: &'static str, key: u8, parent: Option<u8>) -> Ask {
    let mut ask = with(shared(name), key, R);
    let lease = ask.lease.as_mut().unwrap();
    if let Some(parent) = parent {
        (lease.flags, lease.v2) = (PARENT, Some(([parent; 16], 5)));
    }
    ask
}

fn folder(key: u8) -> Ask {
    with(Ask { options: CreateOptions::DIRECTORY_FILE, ..shared("d") }, key, RH)
}

fn plain(house: &House, guid: u8) -> Guest {
    house.guest(guid, "u", Dialect::SMB_3_0_2, "plain")
}

/// What a client has by a key on the folder.
fn held(guest: &mut Guest, key: u8) -> LeaseState {
    let got = guest.create(&with(folder(key), key, NOTHING)).unwrap();
    assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
    got.lease.unwrap().0
}

/// Takes the break of a lease on the folder to nothing, and acknowledges it; whose key it has.
fn broken(guest: &mut Guest) -> u8 {
    let runtime = guest.runtime.clone();
    let due = loop {
        match runtime.block_on(guest.exchange.post()).unwrap() {
            ConnectionMessage::Tell(notice, _) => match notice.message {
                oplock::Message::LeaseBreak(due) => break due,
                other => panic!("{other:?}"),
            },
            ConnectionMessage::Arrived(answer) => drop(answer.send(u64::MAX)),
            ConnectionMessage::Close => panic!("the connection has failed"),
        }
    };
    assert_eq!((due.current, due.new), (RH.0, NOTHING.0));
    let ack = oplock::LeaseAck { key: due.key, state: due.new };
    let (answer, _) = guest.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
    assert_eq!(answer.status, NtStatus::SUCCESS);
    due.key[0]
}

/// The key of a lease says whose change it is, whichever client shows it; no key and another do not.
#[test]
fn a_change_of_a_folder_is_told_to_who_does_not_show_its_key() {
    for (own, parent) in [(true, 9), (false, 9), (true, 8), (false, 8), (true, 0), (false, 0)] {
        let house = House::new();
        let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
        holder.create(&folder(9)).unwrap();
        let by = if own { &mut holder } else { &mut other };
        let wanted = below("d\\a", 3, (parent != 0).then_some(parent));
        let made = by.create(&wanted).unwrap().id;
        if parent != 9 {
            assert_eq!(broken(&mut holder), 9);
            assert_eq!(holder.create(&folder(9)).unwrap().lease.unwrap().0, RH);
        }
        let by = if own { &mut holder } else { &mut other };
        let end = 7_u64.to_le_bytes();
        assert_eq!(by.set(made, InfoClass::END_OF_FILE, &end), NtStatus::SUCCESS);
        match parent {
            9 => assert_eq!(held(&mut holder, 9), RH, "{own}"),
            _ => assert_eq!(broken(&mut holder), 9, "{own} {parent}"),
        }
    }
}

/// A file goes with the last who has it open: who said so and who closes last know of it if they know
/// the folder by one lease.
#[test]
fn a_deletion_is_told_unless_both_who_bring_it_about_show_one_key() {
    for on_close in [false, true] {
        for (first, last, told) in [(8, 9, vec![8, 9]), (8, 8, vec![9])] {
            let house = House::new();
            let mut guest = plain(&house, 1);
            let made = guest.create(&Ask { options: CreateOptions::DIRECTORY_FILE, ..shared("d") });
            assert_eq!(made.map(|got| guest.close(got.id)), Ok(NtStatus::SUCCESS));
            let file = guest.create(&shared("d\\a")).map(|got| guest.close(got.id));
            assert_eq!(file, Ok(NtStatus::SUCCESS));
            for key in [8, 9] {
                assert_eq!(guest.create(&folder(key)).unwrap().lease.unwrap().0, RH);
            }
            let mut deleter = below("d\\a", 3, Some(first));
            if on_close {
                deleter.options = deleter.options.or(CreateOptions::DELETE_ON_CLOSE);
            }
            let deleter = guest.create(&deleter).unwrap().id;
            let other = guest.create(&below("d\\a", 4, Some(last))).unwrap().id;
            if !on_close {
                assert_eq!(guest.set(deleter, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
            }
            assert_eq!(guest.close(deleter), NtStatus::SUCCESS);
            assert!([8, 9].iter().all(|key| held(&mut guest, *key) == RH));
            assert_eq!(guest.close(other), NtStatus::SUCCESS);
            let mut heard: Vec<_> = told.iter().map(|_| broken(&mut guest)).collect();
            heard.sort_unstable();
            assert_eq!(heard, told);
            if told == [9] {
                assert_eq!(held(&mut guest, 8), RH);
            }
        }
    }
}

/// Locks keep others from caching what they are of, and what is not granted counts as no change.
#[test]
fn a_lease_beside_locks_is_granted_where_they_are_of_nothing() {
    for (content, granted) in [(false, (RH, 6)), (true, (NOTHING, 5))] {
        let house = House::new();
        let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
        let file = holder.create(&shared("a")).unwrap().id;
        if content {
            assert_eq!(holder.write(file, 0, b"content"), NtStatus::SUCCESS);
        }
        assert_eq!(holder.lock(file, 0, 0, OWN), NtStatus::SUCCESS);
        let got = other.create(&with(shared("a"), 9, RH)).unwrap();
        assert_eq!(got.lease, Some((granted.0, Some(granted.1))));
    }
}

/// Who only looks at attributes is not in the way of cached writes, who reads the access list is.
#[test]
fn writes_are_cached_beside_who_looks_at_attributes() {
    let looks = Access::READ_ATTRIBUTES.or(Access::SYNCHRONIZE);
    for (access, granted) in [(looks, RWH), (looks.or(Access::READ_CONTROL), RH)] {
        let house = House::new();
        let (mut first, mut second) = (plain(&house, 1), plain(&house, 2));
        first.create(&Ask { access, ..shared("a") }).unwrap();
        assert_eq!(second.create(&shared("a").lease(9)).unwrap().lease.unwrap().0, granted);
    }
}
