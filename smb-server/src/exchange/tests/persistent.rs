//! Opens that outlive the server: what is granted, what comes back after the server was killed,
//! and who does not get it.

use std::{
    collections::HashSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use smb_protocol::msg::{
    context::{DurableV2, LeaseState},
    create::{Access, CreateAction, CreateOptions, ShareAccess},
    oplock::{self, OplockLevel},
    tree_connect::ShareCapabilities,
};
use state_store::LocalStore;
use volume::{
    open::Open,
    sharing::{locks::Range, next_name::Step},
};

use super::{house::*, *};

#[test]
fn persistent_is_what_is_asked_for_where_it_can_be() {
    let house = House::new();
    let ca = ShareCapabilities::CONTINUOUS_AVAILABILITY;
    let flag = DurableV2::PERSISTENT;
    for (dialect, share, flags, granted) in [
        (Dialect::SMB_3_0_2, "ca", flag, Some((60_000, flag))),
        (Dialect::SMB_3_0_2, "ca", 0, None),
        (Dialect::SMB_3_0_2, "plain", flag, None),
        (Dialect::SMB_2_1, "ca", flag, None),
    ] {
        let mut guest = house.guest(1, "u", dialect, share);
        assert_eq!(guest.capabilities.has(ca), share == "ca" && dialect != Dialect::SMB_2_1);
        let mut wanted = ask("a").persistent(1);
        wanted.durable.as_mut().unwrap().flags = flags;
        let got = guest.create(&wanted).unwrap();
        assert_eq!(got.durable, granted, "{dialect:?} {share} {flags}");
        assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
    }
    // A time that is asked for is given up to five minutes.
    let mut guest = house.one();
    let mut long = ask("b").persistent(3);
    long.durable.as_mut().unwrap().timeout = u32::MAX;
    assert_eq!(guest.create(&long).unwrap().durable, Some((300_000, flag)));
}

#[test]
fn an_open_and_its_close_cost_two_commits_and_io_none() {
    let house = House::new();
    let mut guest = house.one();
    let commits = || house.server.open_files.persistent_opens.commits();
    let before = commits();
    let got = guest.create(&ask("a").persistent(1).lease(1)).unwrap();
    assert_eq!(commits() - before, 1);
    for n in 0..20 {
        assert_eq!(guest.write(got.id, n * 10, b"0123456789"), NtStatus::SUCCESS);
    }
    assert_eq!(commits() - before, 1);
    assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
    assert_eq!(commits() - before, 2);
    assert_eq!(house.server.open_files.persistent_opens.held(), 0);
}

/// A server that ends while it renames a file leaves the next one the old name or the new.
#[test]
fn a_file_that_was_being_renamed_is_its_clients_under_either_name() {
    for renamed in [false, true] {
        let mut house = House::new();
        let mut guest = house.one();
        let wanted = ask("a").persistent(1);
        let got = guest.create(&wanted).unwrap();
        let open = house.server.open_files.open(got.id.persistent).unwrap();
        let to = volume::fs::path::RelPath::root().child("b");
        let _inside = house.runtime.enter();
        while let Some(Step::Begin(wake)) = open.announce_name(&to).unwrap() {
            house.runtime.block_on(wake.changed);
        }
        drop(open);
        let (old, new) = (house.files().join("a"), house.files().join("b"));
        if renamed {
            std::fs::rename(&old, &new).unwrap();
        }
        // A file of another identity under the other name is not taken for it.
        std::fs::write(if renamed { &old } else { &new }, "another").unwrap();
        let mut connected = vec![guest];
        for _ in 0..2 {
            house.restart(connected);
            let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "plain");
            let (own, free) = if renamed { ("b", "a") } else { ("a", "b") };
            assert_eq!(other.create(&ask(own)), Err(NtStatus::FILE_NOT_AVAILABLE));
            assert!(other.create(&ask(free)).is_ok());
            connected = vec![other];
        }
        let mut guest = house.one();
        assert!(guest.create(&wanted.clone().back(got.id, 1)).is_ok());
        assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
    }
}

/// Two who rename one file at the same time do so one after the other, and the next server knows the
/// last name.
#[test]
fn renames_at_the_same_time_are_known_one_after_the_other() {
    let mut house = House::new();
    let all =
        |guid| Ask { access: Access::ALL, share: ShareAccess(7), ..ask("a").persistent(guid) };
    let mut guests = [1, 2].map(|guid| house.guest(guid, "u", Dialect::SMB_3_0_2, "ca"));
    let got = [0, 1].map(|at| guests[at].create(&all(at as u8 + 1)).unwrap());
    let begun = [("x", 0), ("y", 1)]
        .map(|(to, at)| guests[at].begin_set(got[at].id, InfoClass::RENAME, &rename_to(to)));
    for (guest, begun) in guests.iter_mut().zip(begun) {
        assert!(begun.waits(), "the state store is told first");
        assert_eq!(guest.finish(begun).0.status, NtStatus::SUCCESS);
    }
    assert!(house.files().join("y").exists() && !house.files().join("x").exists());
    house.restart(guests.into());
    for (guid, got) in [1, 2].into_iter().zip(got) {
        let mut guest = house.guest(guid, "u", Dialect::SMB_3_0_2, "ca");
        assert_eq!(guest.create(&all(guid).back(got.id, guid)).unwrap().id, got.id);
    }
}

#[test]
fn an_open_comes_back_with_its_lease_and_locks_to_its_client_alone() {
    let mut house = House::new();
    let mut guest = house.one();
    let wanted = ask("a").persistent(1).lease(9);
    let got = guest.create(&wanted).unwrap();
    assert_eq!(got.lease, Some((RWH, Some(6))));
    assert_eq!(guest.write(got.id, 0, b"kept"), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 100, 0x11, OWN), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 200, 0x21, OWN), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 200, 0x31, UNLOCK), NtStatus::SUCCESS);
    house.restart(vec![guest]);

    // Others wait until its client, which caches the handle, can be asked.
    let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "plain");
    assert!(other.begin_create(&ask("a")).waits());
    let mut old = house.guest(3, "v", Dialect::SMB_2_1, "plain");
    assert!(old.begin_create(&ask("a")).waits());

    // Whoever is not its client does not get it.
    let back = wanted.clone().back(got.id, 1);
    let strange = FileId { persistent: got.id.persistent + 1, ..got.id };
    let mut without_flag = back.clone();
    without_flag.reconnect.as_mut().unwrap().flags = 0;
    let no_lease = Ask { lease: None, oplock: OplockLevel::NONE, ..back.clone() };
    let not_found = NtStatus::OBJECT_NAME_NOT_FOUND;
    for (who, share, tried, status) in [
        ((1, "v"), "ca", back.clone(), NtStatus::ACCESS_DENIED),
        ((2, "u"), "ca", back.clone(), not_found),
        ((1, "u"), "ca2", back.clone(), not_found),
        ((1, "u"), "plain", back.clone(), not_found),
        ((1, "u"), "ca", wanted.clone().back(got.id, 2), not_found),
        ((1, "u"), "ca", wanted.clone().back(strange, 3), not_found),
        ((1, "u"), "ca", without_flag, not_found),
        ((1, "u"), "ca", no_lease, not_found),
        ((1, "u"), "ca", back.clone().lease(8), not_found),
        ((1, "u"), "ca", Ask { name: "b", ..back.clone() }, NtStatus::INVALID_PARAMETER),
    ] {
        let mut guest = house.guest(who.0, who.1, Dialect::SMB_3_0_2, share);
        assert_eq!(guest.create(&tried), Err(status), "{who:?} {share} {}", tried.name);
    }

    let mut guest = house.one();
    let again = guest.create(&back).unwrap();
    assert_eq!((again.id, again.lease), (got.id, got.lease));
    // It has it; nobody gets it a second time.
    assert_eq!(house.one().create(&back), Err(not_found));
    assert_eq!(guest.write(got.id, 4, b" on"), NtStatus::SUCCESS);
    assert_eq!(std::fs::read(house.files().join("a")).unwrap(), b"kept on");
    // What was locked and unlocked before stays so, and its repetition does nothing.
    assert_eq!(guest.lock(got.id, 100, 0x11, OWN), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 200, 0x31, UNLOCK), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 100, 0x12, OWN), NtStatus::LOCK_NOT_GRANTED);
    assert_eq!(guest.lock(got.id, 200, 0x32, UNLOCK), NtStatus::RANGE_NOT_LOCKED);
    assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
    // Closed is closed, for the next server too.
    house.restart(vec![guest, other, old]);
    assert_eq!(house.server.open_files.persistent_opens.held(), 0);
    assert!(house.guest(2, "v", Dialect::SMB_3_0_2, "plain").create(&ask("a")).is_ok());
}

/// Its old connection has ended, but the server has not come to that yet.
#[test]
fn a_client_that_is_back_at_once_waits_until_its_loss_is_noticed() {
    let house = House::new();
    let mut guest = house.one();
    let wanted = ask("a").persistent(1).lease(9);
    let got = guest.create(&wanted).unwrap();
    let mut anew = house.one();
    let begun = anew.begin_create(&wanted.back(got.id, 1));
    assert!(begun.waits());
    drop(guest);
    assert_eq!(anew.finish_create(begun).map(|again| again.id), Ok(got.id));
}

#[test]
fn a_create_whose_answer_was_lost_is_repeated_and_made_once() {
    let mut house = House::new();
    let wanted = ask("a").persistent(1);
    let mut guest = house.one();
    let got = guest.create(&wanted).unwrap();
    assert_eq!(got.action, CreateAction::CREATED);
    // On the same session it is answered again.
    guest.replay = true;
    assert_eq!(guest.create(&wanted).unwrap(), got);
    guest.replay = false;
    assert_eq!(guest.create(&wanted), Err(NtStatus::DUPLICATE_OBJECTID));
    house.restart(vec![guest]);
    let mut guest = house.one();
    guest.replay = true;
    let other = Ask { share: ShareAccess::READ, ..wanted.clone() };
    assert_eq!(guest.create(&other), Err(NtStatus::CONTEXT_MISMATCH));
    let mut thief = house.guest(1, "v", Dialect::SMB_3_0_2, "ca");
    thief.replay = true;
    assert_eq!(thief.create(&wanted), Err(NtStatus::ACCESS_DENIED));
    assert_eq!(guest.create(&wanted).unwrap(), got);
    assert_eq!(guest.write(got.id, 0, b"x"), NtStatus::SUCCESS);
}

#[test]
fn a_file_that_was_replaced_is_not_the_file_that_was_open() {
    let mut house = House::new();
    let mut guest = house.one();
    let replaced = guest.create(&ask("replaced").persistent(1)).unwrap();
    let removed = guest.create(&ask("removed").persistent(2)).unwrap();
    let moved = Ask { access: Access::ALL, ..ask("old").persistent(3) };
    let renamed = guest.create(&moved).unwrap();
    let mut rename = vec![0; 20];
    rename[16] = 6;
    rename.extend("new".encode_utf16().flat_map(u16::to_le_bytes));
    assert_eq!(guest.set(renamed.id, InfoClass::RENAME, &rename), NtStatus::SUCCESS);
    house.kill(vec![guest]);
    let at = |name| house.files().join(name);
    std::fs::write(at("x"), "another").unwrap();
    std::fs::rename(at("x"), at("replaced")).unwrap();
    std::fs::remove_file(at("removed")).unwrap();
    house.recover();
    assert_eq!(house.server.open_files.persistent_opens.held(), 1);
    let mut guest = house.one();
    let gone = Err(NtStatus::OBJECT_NAME_NOT_FOUND);
    assert_eq!(guest.create(&ask("replaced").back(replaced.id, 1)), gone);
    assert_eq!(guest.create(&ask("removed").back(removed.id, 2)), gone);
    assert_eq!(guest.create(&moved.back(renamed.id, 3)).unwrap().id, renamed.id);
    assert!(guest.create(&ask("replaced")).is_ok(), "it is like any other file");
}

fn rename_to(name: &str) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut input = vec![0; 20];
    input[16] = name.len() as u8;
    input.extend(name);
    input.resize(input.len().max(24), 0);
    input
}

/// A named stream is as a file: it comes back with its locks and its lease, to its client alone,
/// under the names that it and its file have by then.
#[test]
fn an_open_stream_comes_back_too() {
    let mut house = House::new();
    let mut guest = house.one();
    let wanted = Ask { access: Access(0x0013_019f), ..ask("a:s").persistent(1).lease(4) };
    let got = guest.create(&wanted).unwrap();
    assert_eq!(got.durable, Some((60_000, DurableV2::PERSISTENT)));
    assert_eq!(guest.write(got.id, 0, b"content"), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 100, 0x11, OWN), NtStatus::SUCCESS);
    assert_eq!(guest.set(got.id, InfoClass::RENAME, &rename_to(":t")), NtStatus::SUCCESS);
    let other = guest.create(&ask("b:s").persistent(2)).unwrap();
    let streams = house.files().join(".bulkhead/streams");
    let stream_files = || -> HashSet<std::path::PathBuf> {
        let folders = std::fs::read_dir(&streams).unwrap().map(|folder| folder.unwrap().path());
        let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    };
    let before = stream_files();
    let gone = guest.create(&ask("c:s").persistent(3)).unwrap();
    let all = stream_files();
    let mut new = all.difference(&before);
    let (Some(last), None) = (new.next(), new.next()) else { panic!("not one: {all:?}") };
    house.kill(vec![guest]);
    std::fs::rename(house.files().join("b"), house.files().join("elsewhere")).unwrap();
    std::fs::copy(last, last.with_extension("x")).unwrap();
    std::fs::rename(last.with_extension("x"), last).unwrap();
    house.recover();
    assert_eq!(house.server.open_files.persistent_opens.held(), 1);

    let mut stranger = house.guest(2, "u", Dialect::SMB_3_0_2, "ca");
    assert!(stranger.begin_create(&ask("a:t")).waits(), "until its client can be asked");
    assert!(stranger.create(&ask("a:u")).is_ok(), "another stream is another's");
    let missing = Err(NtStatus::OBJECT_NAME_NOT_FOUND);
    assert_eq!(stranger.create(&wanted.clone().back(got.id, 1)), missing);
    let mut guest = house.one();
    assert_eq!(guest.create(&ask("b:s").back(other.id, 2)), missing);
    assert_eq!(guest.create(&ask("c:s").back(gone.id, 3)), missing);
    let again = guest.create(&wanted.back(got.id, 1)).unwrap();
    assert_eq!((again.id, again.lease), (got.id, got.lease));
    assert_eq!(guest.lock(got.id, 100, 0x12, OWN), NtStatus::LOCK_NOT_GRANTED);
    assert_eq!(guest.write(got.id, 7, b"!"), NtStatus::SUCCESS);
    assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
    assert_eq!(house.server.open_files.persistent_opens.held(), 0);
    assert!(stranger.create(&ask("a:t")).is_ok());
}

/// A folder that is open is as a file: others meet it, and it comes back to its client alone.
#[test]
fn an_open_folder_comes_back_too() {
    let mut house = House::new();
    let folder =
        |guid: u8| Ask { options: CreateOptions::DIRECTORY_FILE, ..ask("d").persistent(guid) };
    let mut guest = house.one();
    let got = guest.create(&folder(2)).unwrap();
    assert_eq!(got.durable, Some((60_000, DurableV2::PERSISTENT)));
    house.restart(vec![guest]);
    let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "ca");
    assert_eq!(other.create(&folder(3)).err(), Some(NtStatus::FILE_NOT_AVAILABLE));
    let mut guest = house.one();
    let gone = Err(NtStatus::OBJECT_NAME_NOT_FOUND);
    assert_eq!(guest.create(&folder(9).back(got.id, 9)), gone);
    let back = guest.create(&folder(2).back(got.id, 2)).unwrap();
    assert_eq!(back.id, got.id);
    assert_eq!(other.create(&folder(3)).err(), Some(NtStatus::SHARING_VIOLATION));
    assert_eq!(guest.close(back.id), NtStatus::SUCCESS);
    assert!(other.create(&folder(3)).is_ok());
    assert_eq!(house.server.open_files.persistent_opens.held(), 1);
}

#[test]
fn a_file_to_be_deleted_is_deleted_when_its_client_stays_away() {
    let mut house = House::new();
    let mut guest = house.one();
    let own = Ask {
        access: Access::ALL,
        options: CreateOptions::NON_DIRECTORY_FILE.or(CreateOptions::DELETE_ON_CLOSE),
        ..ask("made to go").persistent(1)
    };
    guest.create(&own).unwrap();
    let later = Ask { access: Access::ALL, ..ask("marked later").persistent(2) };
    let marked = guest.create(&later).unwrap();
    assert_eq!(guest.set(marked.id, InfoClass::DISPOSITION, &[1]), NtStatus::SUCCESS);
    guest.create(&ask("stays").persistent(3)).unwrap();
    house.restart(vec![guest]);
    let names = || {
        let entries = std::fs::read_dir(house.files()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["made to go", "marked later", "stays"]);
    let kept = &house.server.open_files.disconnected;
    assert_eq!(kept.len(), 3);
    kept.sweep(Instant::now() + Duration::from_secs(59));
    assert_eq!(kept.len(), 3, "they have a minute");
    kept.sweep(Instant::now() + Duration::from_secs(61));
    assert_eq!((kept.len(), names()), (0, vec!["stays".to_owned()]));
    assert!(house.one().create(&ask("stays")).is_ok());
}

#[test]
fn time_goes_on_over_restarts() {
    let mut house = House::new();
    let mut guest = house.one();
    let short = |timeout| Some(DurableV2 { timeout, flags: 2, create_guid: [4; 16] });
    guest.create(&Ask { durable: short(20_000), ..ask("a") }).unwrap();
    house.restart(vec![guest]);
    // The clock of the first absence goes on, however often the server starts.
    let (mut records, mut before) = (Vec::new(), None);
    for _ in 0..3 {
        house.restart(Vec::new());
        let away = house.server.open_files.persistent_opens.is_there();
        assert!(away && house.server.open_files.disconnected.len() == 1);
        house.kill(Vec::new());
        let store = state_store::LocalStore::open(&house.folder.path().join("state"), "opens");
        let (opens, bad) = volume::open::record::opens(&store.unwrap().records);
        assert!(bad.is_empty());
        let since = opens[0].away.unwrap().since;
        assert_eq!(*before.get_or_insert(since), since);
        records.push(opens);
        house.recover();
    }
    assert!(records.iter().all(|opens| opens.len() == 1));
}

#[test]
fn a_lease_that_was_given_up_stays_given_up() {
    let mut house = House::new();
    let mut guest = house.one();
    let shared = Ask { share: ShareAccess(7), ..ask("a") };
    let wanted = shared.clone().persistent(1).lease(9);
    let got = guest.create(&wanted).unwrap();
    assert_eq!(got.lease.unwrap().0, RWH);
    // Another opens it: writes are no longer cached, once the client has said so.
    let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "ca");
    let second = shared.clone().persistent(2).lease(8);
    let (server, runtime) = (house.server.clone(), house.runtime.handle().clone());
    let opener = std::thread::spawn(move || {
        let got = other.create(&second);
        drop((server, runtime));
        (other, got)
    });
    let post = house.runtime.block_on(guest.exchange.post()).unwrap();
    let ConnectionMessage::Tell(notice, _) = post else { panic!("{post:?}") };
    let oplock::Message::LeaseBreak(due) = notice.message else { panic!("{notice:?}") };
    assert_eq!(due.new, 3);
    let ack = oplock::LeaseAck { key: due.key, state: due.new };
    let (header, _) = guest.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
    assert_eq!(header.status, NtStatus::SUCCESS);
    let (other, second) = opener.join().unwrap();
    assert_eq!(second.unwrap().lease.unwrap().0, LeaseState(3));
    house.restart(vec![guest, other]);
    let mut guest = house.one();
    let again = guest.create(&wanted.back(got.id, 1)).unwrap();
    assert_eq!(again.lease, Some((LeaseState(3), Some(7))));
}

#[test]
fn an_orderly_end_hands_over_what_a_kill_loses() {
    let mut house = House::new();
    let durable = DurableV2 { timeout: 90_000, flags: 0, create_guid: [1; 16] };
    let wanted = Ask { durable: Some(durable), ..ask("a").lease(9) };
    let mut guest = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    let got = guest.create(&wanted).unwrap();
    assert_eq!(got.durable, Some((90_000, 0)));
    assert_eq!(guest.write(got.id, 0, b"kept"), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 100, 0x11, OWN), NtStatus::SUCCESS);
    let plain = guest.create(&ask("b")).unwrap();
    drop(guest);
    house.runtime.block_on(house.server.hand_off());
    house.restart(Vec::new());

    let mut guest = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    let mut back = wanted.back(got.id, 1);
    back.reconnect.as_mut().unwrap().flags = 0;
    let again = guest.create(&back).unwrap();
    assert_eq!((again.id, again.lease), (got.id, got.lease));
    assert_eq!(guest.lock(got.id, 100, 0x12, OWN), NtStatus::LOCK_NOT_GRANTED);
    assert_eq!(guest.write(plain.id, 0, b"x"), NtStatus::FILE_CLOSED, "it was promised nothing");
    // The next server is killed, and has nothing to hand over.
    house.restart(vec![guest]);
    let mut guest = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    assert_eq!(guest.create(&back), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    assert!(guest.create(&ask("a")).is_ok());
}

/// Channels lock at the same time; what the store has at last is what both have locked.
#[test]
fn locks_are_noted_in_the_order_they_are_taken() {
    let mut house = House::empty();
    let mut opened = LocalStore::open(&house.folder.path().join("state"), "opens").unwrap();
    // Something that happens once, when the store is told of a change.
    let hook = Arc::<Mutex<Option<Box<dyn FnOnce() + Send>>>>::default();
    let hooked = hook.clone();
    opened.store = Guarded::new(opened.store.clone(), move |_| {
        let hook = hooked.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
        Ok(())
    });
    house.server.recover_from(opened).unwrap();
    let mut guest = house.one();
    let wanted = ask("a").persistent(1);
    let got = guest.create(&wanted).unwrap();
    let open = house.server.open_files.open(got.id.persistent).unwrap();
    let (another, runtime) = (open.clone(), house.runtime.handle().clone());
    let take = move |open: &Open, offset| {
        let range = Range::new(offset, 10).unwrap();
        assert_eq!(open.file.lock_range(open.opener_id(), range, true), Ok(true));
        runtime.block_on(open.note_locks().unwrap()).unwrap();
    };
    // The second comes when the store is just being told of the first.
    let (tell, told) = std::sync::mpsc::channel();
    let second = take.clone();
    *hook.lock().unwrap() = Some(Box::new(move || {
        assert!(another.is_being_noted(), "what is noted may be old by now");
        tell.send(std::thread::spawn(move || second(&another, 200))).unwrap();
    }));
    take(&open, 100);
    told.recv().unwrap().join().unwrap();
    drop((open, hook));
    house.restart(vec![guest]);
    let mut guest = house.one();
    let again = guest.create(&wanted.back(got.id, 1)).unwrap();
    for (offset, sequence) in [(100, 0x11), (200, 0x21)] {
        assert_eq!(guest.lock(again.id, offset, sequence, OWN), NtStatus::LOCK_NOT_GRANTED);
    }
}

#[test]
fn a_full_store_refuses_new_opens_and_the_old_ones_are_served() {
    let (house, full) = House::that_fills();
    let mut guest = house.one();
    let old = guest.create(&ask("a").persistent(1)).unwrap();
    full.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(guest.create(&ask("b").persistent(2)), Err(NtStatus::DISK_FULL));
    // Nothing of it stays, and what needs no promise is served.
    assert_eq!(guest.create(&ask("b")).map(|got| got.durable), Ok(None));
    assert_eq!(guest.lock(old.id, 0, 0x11, OWN), NtStatus::DISK_FULL);
    assert_eq!(guest.write(old.id, 0, b"served"), NtStatus::SUCCESS);
    assert_eq!(guest.close(old.id), NtStatus::SUCCESS);
    assert_eq!(guest.create(&ask("a")).map(|got| got.durable), Ok(None));
}

#[test]
fn a_damaged_store_is_refused() {
    let mut house = House::new();
    house.kill(Vec::new());
    let path = house.folder.path().join("state/opens");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let _inside = house.runtime.enter();
    let error = house.server.recover().unwrap_err().to_string();
    assert!(error.contains("damaged at byte 4096") && error.contains("opens"), "{error}");
}
