//! Who keeps something open is asked to close it before it stands in the way, and hears of that when
//! it is back if it is away.

use smb_protocol::msg::{
    context::{DurableV2, LeaseState},
    create::{Access, CreateAction, CreateOptions, ShareAccess},
    oplock::{self, LeaseAck, LeaseBreak, OplockBreak, OplockLevel},
    query_info::InfoType,
    tree_connect::ShareCapabilities,
};
use smb_protocol::security::parts;

use super::{house::*, *};

const R: LeaseState = LeaseState(1);
const RH: LeaseState = LeaseState(3);
const NOTHING: LeaseState = LeaseState(0);
const DENIED: NtStatus = NtStatus::ACCESS_DENIED;

fn shared(name: &'static str) -> Ask {
    Ask { access: Access::ALL, share: ShareAccess(7), ..ask(name) }
}

fn folder(name: &'static str) -> Ask {
    Ask { options: CreateOptions::DIRECTORY_FILE, ..shared(name) }
}

fn with(ask: Ask, key: u8, state: LeaseState) -> Ask {
    let mut ask = ask.lease(key);
    ask.lease.as_mut().unwrap().state = state;
    ask
}

fn batch(ask: Ask) -> Ask {
    Ask { oplock: OplockLevel::BATCH, ..ask }
}

fn durable(ask: Ask, guid: u8) -> Ask {
    let durable = DurableV2 { timeout: 0, flags: 0, create_guid: [guid; 16] };
    Ask { durable: Some(durable), ..ask }
}

fn rename_to(name: &str, replace: bool) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut input = vec![0; 20];
    input[0] = replace.into();
    input[16] = name.len() as u8;
    input.extend(name);
    input.resize(input.len().max(24), 0);
    input
}

/// What a client was told last that it did not ask for.
fn told(guest: &mut Guest) -> oplock::Message {
    let runtime = guest.runtime.clone();
    loop {
        match runtime.block_on(guest.exchange.post()).unwrap() {
            ConnectionMessage::Tell(notice, _) => return notice.message,
            // Whether it has come is asked from time to time.
            ConnectionMessage::Arrived(answer) => drop(answer.send(u64::MAX)),
            ConnectionMessage::Close => panic!("the connection has failed"),
        }
    }
}

fn told_of_lease(guest: &mut Guest) -> (LeaseState, LeaseState, u16) {
    let oplock::Message::LeaseBreak(due) = told(guest) else { panic!("of no lease") };
    let LeaseBreak { current, new, epoch, .. } = due;
    (LeaseState(current), LeaseState(new), epoch)
}

fn acknowledge(guest: &mut Guest, key: u8, state: LeaseState) {
    let ack = LeaseAck { key: [key; 16], state: state.0 };
    let (answer, _) = guest.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
    assert_eq!(answer.status, NtStatus::SUCCESS);
}

/// Gives up the request that was sent last (MS-SMB2 3.3.5.16).
fn give_up(guest: &mut Guest) {
    let last = guest.next_id - 1;
    let mut header = guest.header(Command::CANCEL);
    guest.next_id = last + 1;
    header.message_id = MessageId(last);
    let mut message = header.to_bytes().to_vec();
    Empty.encode(&mut message);
    let mut out = Vec::new();
    assert!(guest.exchange.receive(&mut message, &mut out).unwrap().waits().is_empty());
    assert!(out.is_empty(), "a CANCEL has no answer");
}

fn plain(house: &House, guid: u8) -> Guest {
    house.guest(guid, "u", Dialect::SMB_3_0_2, "plain")
}

/// A file below a folder that is renamed, by whichever client has it and whatever it caches.
#[test]
fn a_folder_is_renamed_once_who_caches_what_is_below_has_closed_it() {
    for (own, file) in [(false, "d\\a"), (true, "d\\a"), (false, "d\\b\\c"), (false, "d\\a:s")] {
        for closes in [true, false] {
            let house = House::new();
            let mut holder = plain(&house, 1);
            let mut other = plain(&house, 2);
            other.create(&folder("d")).map(|got| other.close(got.id)).unwrap();
            other.create(&folder("d\\b")).map(|got| other.close(got.id)).unwrap();
            let kept = holder.create(&with(shared(file), 9, RH)).unwrap();
            let by = if own { &mut holder } else { &mut other };
            let renamed = by.create(&folder("d")).unwrap().id;
            let begun = by.begin_set(renamed, InfoClass::RENAME, &rename_to("e", false));
            assert!(begun.waits(), "{file}");
            assert_eq!(told_of_lease(&mut holder), (RH, R, 7));
            match closes {
                true => assert_eq!(holder.close(kept.id), NtStatus::SUCCESS),
                false => acknowledge(&mut holder, 9, R),
            }
            let by = if own { &mut holder } else { &mut other };
            let wanted = if closes { NtStatus::SUCCESS } else { DENIED };
            assert_eq!(by.finish(begun).0.status, wanted, "{own} {file}");
            assert_eq!(house.files().join("e").exists(), closes);
        }
    }
}

#[test]
fn a_folder_is_renamed_once_who_has_a_batch_oplock_below_has_closed_it() {
    let house = House::new();
    let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
    let renamed = other.create(&folder("d")).unwrap().id;
    let kept = holder.create(&batch(shared("d\\a"))).unwrap();
    let begun = other.begin_set(renamed, InfoClass::RENAME, &rename_to("e", false));
    assert!(begun.waits());
    let due = OplockBreak { level: OplockLevel::NONE, file_id: kept.id };
    assert_eq!(told(&mut holder), oplock::Message::Oplock(due));
    assert_eq!(holder.close(kept.id), NtStatus::SUCCESS);
    assert_eq!(other.finish(begun).0.status, NtStatus::SUCCESS);
}

/// One after the other is asked. Who comes meanwhile is not, and is in the way once the others are gone,
/// whether it comes before the next is asked or after.
#[test]
fn a_folder_keeps_its_name_if_somebody_comes_while_others_are_asked() {
    let newcomer = |state| with(shared("d\\c"), 7, state);
    for (early, late) in [
        (None, None),
        (Some(newcomer(RH)), None),
        (None, Some(newcomer(RH))),
        (Some(shared("d\\c")), None),
        (None, Some(shared("d\\c"))),
    ] {
        let house = House::new();
        let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
        let renamed = other.create(&folder("d")).unwrap().id;
        let kept = [("d\\a", 8), ("d\\b", 9)]
            .map(|(name, key)| (holder.create(&with(shared(name), key, RH)).unwrap().id, key));
        let begun = other.begin_set(renamed, InfoClass::RENAME, &rename_to("e", false));
        let oplock::Message::LeaseBreak(due) = told(&mut holder) else { panic!("no lease") };
        let first = usize::from(due.key != [kept[0].1; 16]);
        assert_eq!(holder.close(kept[first].0), NtStatus::SUCCESS);
        let alone = early.is_none() && late.is_none();
        if let Some(early) = early {
            holder.create(&early).unwrap();
        }
        // The next is asked when the request is carried out again.
        let status = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| other.finish(begun).0.status);
            let oplock::Message::LeaseBreak(due) = told(&mut holder) else { panic!("no lease") };
            assert_eq!(due.key, [kept[1 - first].1; 16]);
            if let Some(late) = late {
                holder.create(&late).unwrap();
            }
            assert_eq!(holder.close(kept[1 - first].0), NtStatus::SUCCESS);
            waiting.join().unwrap()
        });
        assert_eq!(status, if alone { NtStatus::SUCCESS } else { DENIED });
        if alone {
            assert_eq!(house.server.open_files.breaks.told(), (2, 0), "leases, and oplocks");
        }
    }
}

/// Those who are waited for are told first, and who waits a moment later (MS-SMB2 3.3.4.2): not at all if
/// they were quicker.
#[test]
fn who_waits_for_others_is_told_after_them() {
    for quick in [true, false] {
        let house = House::new();
        let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
        holder.create(&with(shared("a"), 9, RWH)).unwrap();
        let mut begun = other.begin_create(&shared("a"));
        assert!(begun.waits() && begun.answered().is_empty(), "nothing is said yet");
        assert_eq!(told_of_lease(&mut holder).1, RH);
        if quick {
            acknowledge(&mut holder, 9, RH);
            other.go_on(&mut begun);
            assert_eq!(begun.answered(), [NtStatus::SUCCESS]);
            continue;
        }
        other.go_on(&mut begun);
        assert_eq!(begun.answered(), [NtStatus::PENDING]);
        assert!(begun.waits());
        acknowledge(&mut holder, 9, RH);
        let (header, _) = other.finish(begun);
        assert!(header.flags.has(HeaderFlags::ASYNC));
        assert_eq!((header.status, header.credits), (NtStatus::SUCCESS, 0));
    }
}

/// How many were asked is a request's own: one that was given up, and one that was refused, do not keep
/// the next on the same open from asking.
#[test]
fn who_gave_a_rename_up_may_begin_another() {
    for (from, file, to, replaces) in
        [(folder("d"), "d\\a", "e", false), (shared("a"), "b", "b", true)]
    {
        for gives_up in [true, false] {
            let house = House::new();
            let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
            let renamed = other.create(&from).unwrap().id;
            let wanted = with(shared(file), 9, RH);
            let kept = holder.create(&wanted).unwrap().id;
            let rename = |other: &mut Guest| {
                other.begin_set(renamed, InfoClass::RENAME, &rename_to(to, replaces))
            };
            let begun = rename(&mut other);
            assert!(begun.waits(), "{file}");
            told_of_lease(&mut holder);
            if gives_up {
                give_up(&mut other);
                assert_eq!(other.finish(begun).0.status, NtStatus::CANCELLED);
            } else {
                acknowledge(&mut holder, 9, R);
                assert_eq!(other.finish(begun).0.status, DENIED);
            }
            // As many are open as were when the last was asked.
            assert_eq!(holder.close(kept), NtStatus::SUCCESS);
            let kept = holder.create(&wanted).unwrap().id;
            let begun = rename(&mut other);
            assert!(begun.waits(), "{file}: nobody is asked");
            told_of_lease(&mut holder);
            assert_eq!(holder.close(kept), NtStatus::SUCCESS);
            assert_eq!(other.finish(begun).0.status, NtStatus::SUCCESS, "{file}");
        }
    }
}

/// What keeps a folder's name: an open without cached handle, at once and with nobody asked; and one
/// whose client will be back. A durable one of a client that is away does not.
#[test]
fn who_is_away_keeps_a_folders_name_only_if_that_was_promised() {
    let house = House::new();
    let mut other = house.guest(2, "u", Dialect::SMB_3_0_2, "ca");
    let renamed = other.create(&folder("d")).unwrap().id;
    let rename = |other: &mut Guest| {
        let begun = other.begin_set(renamed, InfoClass::RENAME, &rename_to("e", false));
        assert!(!begun.waits() || house.server.open_files.persistent_opens.is_there());
        other.finish(begun).0.status
    };
    let open = other.create(&shared("d\\a")).unwrap().id;
    assert_eq!(rename(&mut other), DENIED);
    assert_eq!(other.close(open), NtStatus::SUCCESS);
    let mut client = house.one();
    let wanted = with(shared("d\\a"), 9, RWH).persistent(1);
    let got = client.create(&wanted).unwrap();
    drop(client);
    assert_eq!(rename(&mut other), DENIED);
    let mut client = house.one();
    assert_eq!(client.create(&wanted.back(got.id, 1)).unwrap().lease, got.lease);
    assert_eq!(client.close(got.id), NtStatus::SUCCESS);
    for (kept, guid) in [(with(shared("d\\b"), 9, RWH), 1), (batch(shared("d\\c")), 2)] {
        let got = client.create(&durable(kept, guid)).unwrap();
        assert!(got.durable.is_some());
    }
    drop(client);
    assert_eq!(house.server.open_files.disconnected.len(), 2);
    assert_eq!(rename(&mut other), NtStatus::SUCCESS);
    assert!(house.server.open_files.disconnected.is_empty());
}

/// A file that another replaces.
#[test]
fn a_file_is_replaced_once_who_caches_it_has_closed_it() {
    for oplock in [true, false] {
        for closes in [true, false] {
            let house = House::new();
            let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
            let file = with(shared("b"), 9, RWH);
            let wanted = if oplock { batch(shared("b")) } else { file };
            let kept = holder.create(&wanted).unwrap().id;
            let from = other.create(&shared("a")).unwrap().id;
            let begun = other.begin_set(from, InfoClass::RENAME, &rename_to("b", true));
            assert!(begun.waits());
            let due = told(&mut holder);
            match (closes, due) {
                (true, _) => assert_eq!(holder.close(kept), NtStatus::SUCCESS),
                (_, oplock::Message::LeaseBreak(due)) => {
                    assert_eq!(due.new, 5, "the handle and nothing else");
                    acknowledge(&mut holder, 9, LeaseState(5));
                }
                (_, oplock::Message::Oplock(ack)) => {
                    assert_eq!(ack.level, OplockLevel::NONE);
                    let (answer, _) = holder.ask(Command::OPLOCK_BREAK, |out| ack.encode(out));
                    assert_eq!(answer.status, NtStatus::SUCCESS);
                }
                (_, due) => panic!("{due:?}"),
            }
            let wanted = if closes { NtStatus::SUCCESS } else { DENIED };
            assert_eq!(other.finish(begun).0.status, wanted);
            // Nothing is left to be asked for.
            if !closes {
                let again = other.begin_set(from, InfoClass::RENAME, &rename_to("b", true));
                assert_eq!(again.status(), DENIED);
            }
        }
    }
}

/// A durable open of a client that is away does not keep a file from being replaced, a stream of it that
/// is open and not cached does.
#[test]
fn a_file_is_replaced_whose_client_is_away() {
    let house = House::new();
    let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
    holder.create(&durable(with(shared("b"), 9, RWH), 1)).unwrap();
    drop(holder);
    let stream = other.create(&shared("b:s"));
    let from = other.create(&shared("a")).unwrap().id;
    let rename = |other: &mut Guest| other.set(from, InfoClass::RENAME, &rename_to("b", true));
    assert_eq!(rename(&mut other), DENIED);
    assert_eq!(house.server.open_files.disconnected.len(), 1, "nobody is asked in vain");
    assert_eq!(other.close(stream.unwrap().id), NtStatus::SUCCESS);
    assert_eq!(rename(&mut other), NtStatus::SUCCESS);
    assert!(house.server.open_files.disconnected.is_empty());
}

/// The folder that a name is to be in is opened without letting others delete it.
#[test]
fn a_folder_is_entered_once_who_may_delete_it_has_closed_it() {
    for closes in [true, false] {
        let house = House::new();
        let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
        let deletes = Ask { access: Access::DELETE, ..folder("d") };
        let kept = holder.create(&with(deletes, 9, RH)).unwrap().id;
        let from = other.create(&shared("a")).unwrap().id;
        let begun = other.begin_set(from, InfoClass::RENAME, &rename_to("d\\a", false));
        assert!(begun.waits());
        assert_eq!(told_of_lease(&mut holder).1, R);
        match closes {
            true => assert_eq!(holder.close(kept), NtStatus::SUCCESS),
            false => acknowledge(&mut holder, 9, R),
        }
        let wanted = if closes { NtStatus::SUCCESS } else { NtStatus::SHARING_VIOLATION };
        assert_eq!(other.finish(begun).0.status, wanted);
    }
}

/// Who caches a handle opens anew under another access list.
#[test]
fn an_access_list_changes_once_nobody_caches_the_handle() {
    let list = || {
        let mut input = vec![1, 0, 4, 0x80];
        input.extend([0; 16]);
        input
    };
    let house = House::new();
    let (mut holder, mut other) = (plain(&house, 1), plain(&house, 2));
    holder.create(&with(shared("a"), 9, RH)).unwrap();
    let id = other.create(&shared("a")).unwrap().id;
    let begun = other.begin(Command::SET_INFO, |out| {
        set_info::Request {
            info_type: InfoType::SECURITY,
            additional: parts::DACL,
            file_id: id,
            input: &list(),
            ..Default::default()
        }
        .encode(out)
    });
    assert!(begun.waits());
    assert_eq!(told_of_lease(&mut holder), (RH, R, 7));
    acknowledge(&mut holder, 9, R);
    assert_eq!(other.finish(begun).0.status, NtStatus::SUCCESS);
}

/// A lease on a folder is there after a restart, and its client hears of changes.
#[test]
fn a_lease_on_a_folder_outlives_the_server() {
    let mut house = House::new();
    let mut guest = house.one();
    let wanted = with(folder("d"), 9, RH).persistent(1);
    let got = guest.create(&wanted).unwrap();
    assert_eq!(got.lease, Some((RH, Some(6))));
    house.restart(vec![guest]);
    let mut guest = house.one();
    assert_eq!(guest.create(&wanted.back(got.id, 1)).unwrap().lease, got.lease);
    let mut other = plain(&house, 2);
    other.create(&shared("d\\child")).unwrap();
    assert_eq!(told_of_lease(&mut guest), (RH, NOTHING, 7));
}

/// Whoever a persistent open is of may come back as another client, unless a lease is that client's.
#[test]
fn a_persistent_open_without_lease_is_its_users_whatever_the_client() {
    let house = House::new();
    let mut first = house.one();
    let wanted = ask("a").persistent(1);
    let got = first.create(&wanted).unwrap();
    drop(first);
    let mut second = house.guest(2, "u", Dialect::SMB_3_0_2, "ca");
    let back = wanted.clone().back(got.id, 1);
    assert_eq!(second.create(&back).unwrap().id, got.id);
    drop(second);
    // By its name alone, too.
    let mut third = house.guest(3, "u", Dialect::SMB_3_0_2, "ca");
    let strange = FileId { persistent: u64::MAX - 1, volatile: u64::MAX - 1 };
    assert_eq!(third.create(&wanted.clone().back(strange, 1)).unwrap().id, got.id);
    drop(third);
    let mut thief = house.guest(3, "v", Dialect::SMB_3_0_2, "ca");
    assert_eq!(thief.create(&back), Err(DENIED));
    thief.replay = true;
    assert_eq!(thief.create(&wanted), Err(DENIED));
    // And by repeating the CREATE.
    let mut fourth = house.guest(4, "u", Dialect::SMB_3_0_2, "ca");
    fourth.replay = true;
    let again = fourth.create(&wanted).unwrap();
    assert_eq!((again.id, again.action), (got.id, CreateAction::CREATED));
    // Once it is used it is no answer that was lost.
    assert_eq!(fourth.write(got.id, 0, b"x"), NtStatus::SUCCESS);
    assert_eq!(fourth.create(&wanted), Err(NtStatus::FILE_NOT_AVAILABLE));
}

/// A CREATE whose answer was lost with the connection, of an open that is durable and no more.
#[test]
fn a_durable_create_is_repeated_on_another_session() {
    let house = House::new();
    let wanted = durable(shared("a").lease(9), 1);
    let mut guest = plain(&house, 1);
    let got = guest.create(&wanted).unwrap();
    let mut beside = plain(&house, 1);
    beside.replay = true;
    assert_eq!(beside.create(&wanted), Err(NtStatus::DUPLICATE_OBJECTID));
    drop(guest);
    let again = beside.create(&wanted).unwrap();
    assert_eq!((again.id, again.action), (got.id, CreateAction::CREATED));
    assert_eq!(beside.create(&wanted).unwrap(), again);
    assert_eq!(beside.write(got.id, 0, b"x"), NtStatus::SUCCESS);
    let next = beside.create(&wanted).unwrap();
    assert_ne!(next.id, got.id);
    assert_eq!(next.action, CreateAction::OPENED);
}

/// Locks outlive a connection with whoever caches writes.
#[test]
fn a_durable_open_with_locks_is_kept_if_it_caches_writes() {
    for (state, kept) in [(RWH, 1), (RH, 0)] {
        let house = House::new();
        let mut guest = plain(&house, 1);
        let got = guest.create(&durable(with(ask("a"), 9, state), 1)).unwrap();
        assert!(got.durable.is_some());
        assert_eq!(guest.lock(got.id, 0, 0, OWN), NtStatus::SUCCESS);
        drop(guest);
        assert_eq!(house.server.open_files.disconnected.len(), kept);
    }
}

/// Another opens what a persistent open caches whose client is away: it waits, and the client is told
/// when it is back (MS-SMB2, note 301 on 3.3.5.9).
#[test]
fn who_is_away_with_a_cached_handle_is_asked_when_it_is_back() {
    let house = House::new();
    let wanted = with(shared("a"), 9, RWH).persistent(1);
    let mut guest = house.one();
    let got = guest.create(&wanted).unwrap();
    drop(guest);
    let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "plain");
    let begun = other.begin_create(&shared("a").lease(8));
    assert!(begun.waits());
    let mut guest = house.one();
    let again = guest.create(&wanted.back(got.id, 1)).unwrap();
    assert_eq!(again.lease, got.lease, "it has what it had");
    assert_eq!(told_of_lease(&mut guest), (RWH, RH, 7));
    acknowledge(&mut guest, 9, RH);
    assert_eq!(other.finish_create(begun).unwrap().lease.unwrap().0, RH);
}

/// The client itself waits only for writes that are cached (MS-SMB2, note 301 on 3.3.5.9): it is to take
/// up what it has before it opens the file anew, unless by the same lease.
#[test]
fn a_client_takes_up_what_it_has_before_it_opens_the_file_anew() {
    for state in [RWH, RH] {
        let house = House::new();
        let wanted = with(shared("a"), 9, state).persistent(1);
        let mut guest = house.one();
        let got = guest.create(&wanted).unwrap();
        drop(guest);
        let mut guest = house.one();
        for anew in [shared("a"), with(shared("a"), 8, state).persistent(2)] {
            if state == RWH {
                assert!(guest.begin_create(&anew).waits());
            } else {
                assert_eq!(guest.create(&anew), Err(NtStatus::FILE_NOT_AVAILABLE));
            }
        }
        if state == RH {
            guest.create(&with(shared("a"), 9, state)).unwrap();
        }
        guest.create(&wanted.back(got.id, 1)).unwrap();
        if state == RH {
            guest.create(&with(shared("a"), 9, state)).unwrap();
        }
    }
}

/// What a client was being told when it was lost it is told again.
#[test]
fn a_break_that_was_lost_with_the_connection_is_told_again() {
    let house = House::new();
    let wanted = with(shared("a"), 9, RWH).persistent(1);
    let mut guest = house.one();
    let got = guest.create(&wanted).unwrap();
    let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "plain");
    let begun = other.begin_create(&shared("a").lease(8));
    assert!(begun.waits());
    drop(guest);
    let mut guest = house.one();
    assert_eq!(guest.create(&wanted.back(got.id, 1)).unwrap().lease, got.lease);
    assert_eq!(told_of_lease(&mut guest), (RWH, RH, 7));
    acknowledge(&mut guest, 9, RH);
    assert!(other.finish_create(begun).is_ok());
}

/// Without cached handle, or with locks and without cached writes, nobody can be asked.
#[test]
fn who_is_away_and_cannot_be_asked_keeps_others_out() {
    for (state, locks, epoch) in
        [(NOTHING, false, 128), (R, false, 129), (LeaseState(5), false, 128), (RH, true, 128)]
    {
        let house = House::new();
        let wanted = with(shared("a"), 9, state).persistent(1);
        let mut guest = house.one();
        let got = guest.create(&wanted).unwrap();
        assert_eq!(guest.write(got.id, 0, b"content"), NtStatus::SUCCESS);
        if locks {
            assert_eq!(guest.lock(got.id, 0, 0, OWN), NtStatus::SUCCESS);
        }
        drop(guest);
        // Those who know no better are told that it is in use.
        let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "plain");
        assert_eq!(other.create(&shared("a")), Err(NtStatus::FILE_NOT_AVAILABLE), "{state:?}");
        let mut old = house.guest(3, "v", Dialect::SMB_2_1, "plain");
        assert_eq!(old.create(&shared("a")), Err(NtStatus::SHARING_VIOLATION));
        let mut guest = house.one();
        let mut back = wanted.back(got.id, 1);
        back.lease.as_mut().unwrap().v2 = Some(([0; 16], 128));
        let left = if locks { NOTHING } else { state };
        assert_eq!(guest.create(&back).unwrap().lease, Some((left, Some(epoch))));
    }
}

/// Who repeats a CREATE that waits, after its session has ended, waits again.
#[test]
fn a_create_that_waited_ends_with_its_session() {
    let house = House::new();
    let mut guest = house.one();
    guest.create(&with(shared("a"), 9, RWH).persistent(1)).unwrap();
    drop(guest);
    let wanted = durable(shared("a"), 7);
    for replay in [false, true] {
        let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "plain");
        other.replay = replay;
        assert!(other.begin_create(&wanted).waits());
    }
}

/// A share of a cluster is told as such, and one that several nodes serve lets clients cache reads.
#[test]
fn shares_of_a_cluster_are_told_and_kept_as_such() {
    let mut house = House::empty();
    let more = "cluster='failover'\n[[share]]\nname='so'\npath='files'\nusers=['u']\n\
                cluster='scale-out'\ncontinuously_available=true\n";
    house.server = serve_with(house.folder.path(), more);
    house.recover();
    let (cluster, scales) = (ShareCapabilities::CLUSTER, ShareCapabilities::SCALEOUT);
    let one = plain(&house, 1);
    assert!(one.capabilities.has(cluster) && !one.capabilities.has(scales));
    let old = house.guest(3, "u", Dialect::SMB_2_1, "so");
    assert!(!old.capabilities.any(cluster.or(scales)));
    let mut guest = house.guest(2, "u", Dialect::SMB_3_0_2, "so");
    assert!(guest.capabilities.has(cluster.or(scales)));
    for (key, name, asked, given) in
        [(1, "a", RWH, R), (2, "b", RH, R), (3, "c", R, R), (4, "d", LeaseState(6), NOTHING)]
    {
        let got = guest.create(&with(shared(name), key, asked).persistent(key)).unwrap();
        assert_eq!(got.lease.unwrap().0, given, "{name}");
        assert!(got.durable.is_some());
    }
    let got = guest.create(&with(folder("f"), 5, RH)).unwrap();
    assert_eq!(got.lease.unwrap().0, NOTHING);
    // What is read is cached beside locks, too.
    let wanted = with(shared("l"), 6, R).persistent(6);
    let got = guest.create(&wanted).unwrap();
    assert_eq!(guest.write(got.id, 0, b"content"), NtStatus::SUCCESS);
    assert_eq!(guest.lock(got.id, 0, 0, OWN), NtStatus::SUCCESS);
    drop(guest);
    let mut guest = house.guest(2, "u", Dialect::SMB_3_0_2, "so");
    assert_eq!(guest.create(&wanted.back(got.id, 6)).unwrap().lease.unwrap().0, R);
}
