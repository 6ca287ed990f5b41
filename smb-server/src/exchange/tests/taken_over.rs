//! Opens of a node that was lost, on the node that has its shares now.

use std::{fs::File, os::fd::AsFd, time::Duration};

use block_io::{Claim, image_lock};

use smb_protocol::{
    fscc::{InfoClass, file_info::Rename},
    msg::create::{Access, CreateOptions, ShareAccess},
};
use state_store::LocalStore;

use super::{house::*, *};

/// As long as no test runs.
const LONG: Duration = Duration::from_secs(3600);
const GONE: NtStatus = NtStatus::OBJECT_NAME_NOT_FOUND;

/// A house whose server was lost while a client had an open, and the image as the file system still holds
/// it for the lost node.
fn lost() -> (House, Got, File) {
    let mut house = House::new();
    let mut guest = house.one();
    let got = guest.create(&ask("a").persistent(1)).unwrap();
    assert_eq!(guest.write(got.id, 0, b"content"), NtStatus::SUCCESS);
    house.kill(vec![guest]);
    let image = File::options().read(true).write(true).open(house.files().join("a")).unwrap();
    image_lock::claim(image.as_fd(), None, Claim::Writer).unwrap();
    (house, got, image)
}

#[test]
fn an_open_is_taken_up_when_the_file_system_lets_go_of_its_image_and_others_do_not_wait() {
    let (house, got, image) = lost();
    house.take_over(LONG);
    let mut guest = house.one();
    let mut back = guest.begin_create(&ask("a").back(got.id, 1));
    assert!(back.waits());
    // Who has nothing to do with it is served, and nobody else has the file.
    let other = guest.create(&ask("b")).unwrap();
    assert_eq!(guest.close(other.id), NtStatus::SUCCESS);
    let mut stranger = house.guest(2, "v", Dialect::SMB_3_0_2, "ca");
    assert_eq!(stranger.create(&ask("a")), Err(NtStatus::FILE_NOT_AVAILABLE));
    for _ in 0..3 {
        guest.go_on(&mut back);
        assert!(back.waits());
    }
    drop(image);
    let again = guest.finish_create(back).unwrap();
    assert_eq!(again.id.persistent, got.id.persistent);
    assert_eq!(guest.write(again.id, 7, b" and more"), NtStatus::SUCCESS);
    let path = house.files().join("a");
    assert_eq!(std::fs::read(&path).unwrap(), b"content and more");
    // From now on it is locked for us.
    let other = File::options().read(true).write(true).open(path).unwrap();
    let refused = image_lock::claim(other.as_fd(), None, Claim::Writer);
    assert!(matches!(refused, Err(image_lock::Refusal::InUse)), "{refused:?}");
    assert_eq!(guest.close(again.id), NtStatus::SUCCESS);
}

/// A shared file system that has just lost a part does not show all it has.
#[test]
fn an_open_whose_file_comes_late_is_there_all_the_same() {
    let (house, got, image) = lost();
    drop(image);
    let (here, away) = (house.files().join("a"), house.folder.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        std::fs::rename(away, here).unwrap();
    });
    house.take_over(LONG);
    back.join().unwrap();
    let mut guest = house.one();
    let again = guest.create(&ask("a").back(got.id, 1)).unwrap();
    assert_eq!(again.id.persistent, got.id.persistent);
    assert_eq!(guest.close(again.id), NtStatus::SUCCESS);
}

/// It is asked for on other nodes before it is given up.
#[test]
fn an_open_whose_file_does_not_come_ends_the_server_and_is_given_up_the_next_time() {
    let mut house = House::new();
    let mut guest = house.one();
    let got = guest.create(&ask("a").persistent(1)).unwrap();
    // The other one is there, and is to go with its last open: nothing of that happens meanwhile.
    let options = CreateOptions::NON_DIRECTORY_FILE.or(CreateOptions::DELETE_ON_CLOSE);
    let there = Ask { access: Access::ALL, options, ..ask("b") };
    let kept = guest.create(&there.clone().persistent(2)).unwrap();
    house.kill(vec![guest]);
    std::fs::remove_file(house.files().join("a")).unwrap();
    let take = |house: &House, whole| {
        let _inside = house.runtime.enter();
        let opened = LocalStore::open(&house.folder.path().join("state"), "opens").unwrap();
        house.server.take_over(opened, Duration::from_millis(50), whole)
    };
    let why = take(&house, true).unwrap_err().to_string();
    assert!(why.starts_with("1 files with persistent opens are not there, \"a\" among"), "{why}");
    house.kill(Vec::new());
    take(&house, false).unwrap();
    let mut guest = house.one();
    assert_eq!(guest.create(&ask("a").back(got.id, 1)), Err(GONE));
    let back = guest.create(&there.back(kept.id, 2)).unwrap();
    assert_eq!(back.id.persistent, kept.id.persistent);
}

#[test]
fn an_open_whose_image_stays_locked_for_too_long_is_lost_and_its_file_is_not_deleted() {
    let (house, got, image) = lost();
    house.take_over(Duration::ZERO);
    let mut guest = house.one();
    assert_eq!(guest.create(&ask("a").back(got.id, 1)), Err(GONE));
    assert_eq!(std::fs::read(house.files().join("a")).unwrap(), b"content");
    // It is forgotten, perhaps a moment after its client was told, and the file is anybody's.
    while house.server.open_files.persistent_opens.held() > 0 {
        std::thread::yield_now();
    }
    drop(image);
    assert!(guest.create(&ask("a")).is_ok());
}

/// A store takes so many changes at once, and a file more opens.
#[test]
fn what_many_opens_of_a_file_have_in_common_is_noted_in_parts() {
    const OPENS: u8 = 20;
    let mut house = House::empty();
    let store = LocalStore::open(&house.folder.path().join("state"), "opens").unwrap().store;
    let few = Guarded::at_most(store, 5);
    house.server.open_files.persistent_opens.begin(few);
    let mut guest = house.one();
    let shared = Ask { access: Access::ALL, share: ShareAccess(7), ..ask("a") };
    let all = |guid: u8| shared.clone().persistent(guid).lease(9);
    let got: Vec<_> = (1..=OPENS).map(|guid| guest.create(&all(guid)).unwrap()).collect();
    let mut input = Vec::new();
    Rename { name: "b".to_owned(), ..Rename::default() }.encode(&mut input);
    assert_eq!(guest.set(got[0].id, InfoClass::RENAME, &input), NtStatus::SUCCESS);
    // The lease that all of them have is broken, and its keeper does not answer: it is noted of each.
    let mut other = house.guest(2, "v", Dialect::SMB_3_0_2, "ca");
    let other_open = other.begin_create(&Ask { name: "b", ..shared.clone() });
    assert!(other_open.waits());
    house.kill(vec![guest, other]);
    house.recover();
    let mut guest = house.one();
    for (guid, got) in (1..=OPENS).zip(got) {
        // By the name that it was opened by.
        let back = guest.create(&all(guid).back(got.id, guid)).unwrap();
        assert_eq!(back.id.persistent, got.id.persistent);
        assert_eq!(guest.close(back.id), NtStatus::SUCCESS);
    }
    assert_eq!(house.server.open_files.persistent_opens.held(), 0);
}
