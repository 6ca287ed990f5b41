//! Resilient opens on a continuously available share outlive the server as persistent ones do; on
//! others they outlive their connection, and an orderly end.

use std::time::{Duration, Instant};

use super::{house::*, *};

/// Takes it up again as a client does that never asked for a durable handle.
fn back(id: FileId) -> Ask {
    Ask { reconnect_v1: Some(id), ..ask("a") }
}

#[test]
fn a_resilient_open_comes_back_after_a_kill_with_the_locks_it_had_before() {
    let mut house = House::new();
    let mut guest = house.one();
    let commits = house.server.open_files.persistent_opens.commits();
    let got = guest.create(&ask("a")).unwrap();
    assert_eq!(guest.lock(got.id, 100, 0x11, OWN), NtStatus::SUCCESS);
    assert_eq!(
        house.server.open_files.persistent_opens.commits(),
        commits,
        "nothing is promised yet"
    );
    assert_eq!(guest.make_resilient(got.id), NtStatus::SUCCESS);
    assert_eq!(house.server.open_files.persistent_opens.commits(), commits + 1);
    // Linux asks again whenever it is back.
    assert_eq!(guest.make_resilient(got.id), NtStatus::SUCCESS);
    assert_eq!(house.server.open_files.persistent_opens.commits(), commits + 1);
    assert_eq!(house.server.open_files.persistent_opens.held(), 1);
    assert_eq!(guest.lock(got.id, 200, 0x21, OWN), NtStatus::SUCCESS);
    assert_eq!(guest.write(got.id, 0, b"kept"), NtStatus::SUCCESS);
    // It is there after the second kill as after the first, without its client between them.
    house.restart(vec![guest]);
    house.restart(Vec::new());

    // Its client is who has the file, and nobody else.
    let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "ca");
    assert_eq!(other.create(&ask("a")), Err(NtStatus::SHARING_VIOLATION));
    assert_eq!(other.create(&back(got.id)), Err(NtStatus::ACCESS_DENIED));
    let mut guest = house.one();
    assert_eq!(guest.create(&back(got.id)).map(|again| again.id), Ok(got.id));
    assert_eq!(guest.lock(got.id, 100, 0x12, OWN), NtStatus::LOCK_NOT_GRANTED);
    assert_eq!(guest.lock(got.id, 200, 0x22, OWN), NtStatus::LOCK_NOT_GRANTED);
    assert_eq!(guest.write(got.id, 4, b" on"), NtStatus::SUCCESS);
    assert_eq!(std::fs::read(house.files().join("a")).unwrap(), b"kept on");
    assert_eq!(guest.close(got.id), NtStatus::SUCCESS);
    assert_eq!(house.server.open_files.persistent_opens.held(), 0);
    house.restart(vec![guest, other]);
    assert_eq!(house.one().create(&back(got.id)), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
}

#[test]
fn elsewhere_it_outlives_an_orderly_end_alone() {
    let mut house = House::new();
    let resilient = |house: &House, share: &str| {
        let mut guest = house.guest(1, "u", Dialect::SMB_3_0_2, share);
        let got = guest.create(&ask("a")).unwrap();
        assert_eq!(guest.make_resilient(got.id), NtStatus::SUCCESS);
        (guest, got.id)
    };
    let (guest, id) = resilient(&house, "plain");
    assert_eq!(house.server.open_files.persistent_opens.held(), 0);
    drop(guest);
    house.runtime.block_on(house.server.hand_off());
    house.restart(Vec::new());
    let mut guest = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    assert_eq!(guest.create(&back(id)).map(|again| again.id), Ok(id));
    house.restart(vec![guest]);
    let mut guest = house.guest(1, "u", Dialect::SMB_3_0_2, "plain");
    assert_eq!(guest.create(&back(id)), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
}

#[test]
fn a_persistent_open_stays_one() {
    let mut house = House::new();
    let mut guest = house.one();
    let wanted = ask("a").persistent(1);
    let got = guest.create(&wanted).unwrap();
    assert_eq!(guest.make_resilient(got.id), NtStatus::SUCCESS);
    house.restart(vec![guest]);
    let mut guest = house.one();
    assert_eq!(guest.create(&back(got.id)), Err(NtStatus::OBJECT_NAME_NOT_FOUND));
    assert_eq!(guest.create(&wanted.back(got.id, 1)).map(|again| again.id), Ok(got.id));
}

#[test]
fn without_room_in_the_store_it_outlives_its_connection_alone() {
    let (house, full) = House::that_fills();
    let mut guest = house.one();
    let old = guest.create(&ask("b")).unwrap();
    assert_eq!(guest.make_resilient(old.id), NtStatus::SUCCESS);
    full.store(true, std::sync::atomic::Ordering::Relaxed);
    // What is promised stays promised, though a new time for it cannot be noted.
    let longer = [90_000_u32.to_le_bytes(), [0; 4]].concat();
    let again = guest.control(old.id, FsctlCode::LMR_REQUEST_RESILIENCY, &longer);
    assert_eq!((again, house.server.open_files.persistent_opens.held()), (NtStatus::SUCCESS, 1));
    let got = guest.create(&ask("a")).unwrap();
    assert_eq!(guest.make_resilient(got.id), NtStatus::SUCCESS);
    assert_eq!(house.server.open_files.persistent_opens.held(), 1);
    // What needs the store of an open that is there is not asked of it.
    assert_eq!(guest.lock(got.id, 100, 0x11, OWN), NtStatus::SUCCESS);
    drop(guest);
    let mut guest = house.one();
    assert_eq!(guest.create(&back(got.id)).map(|again| again.id), Ok(got.id));
    assert_eq!(guest.lock(got.id, 100, 0x12, OWN), NtStatus::LOCK_NOT_GRANTED);
}

/// MS-SMB2 3.3.5.15.9: what a client asks for last counts, be it less.
#[test]
fn a_persistent_open_is_kept_for_the_time_that_resiliency_asks_for() {
    let house = House::new();
    let mut guest = house.one();
    let got = guest.create(&ask("a").persistent(1)).unwrap();
    let input = [5_000_u32.to_le_bytes(), [0; 4]].concat();
    let code = FsctlCode::LMR_REQUEST_RESILIENCY;
    assert_eq!(guest.control(got.id, code, &input), NtStatus::SUCCESS);
    drop(guest);
    let kept = &house.server.open_files.disconnected;
    kept.sweep(Instant::now() + Duration::from_secs(4));
    assert_eq!(kept.len(), 1);
    kept.sweep(Instant::now() + Duration::from_secs(6));
    assert_eq!(kept.len(), 0);
}
