//! The initiator against the target of this crate, over cables that fail.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use block_io::{
    Disk, Error, RawDisk,
    testing::{MemFile, Rng},
};
use cable::Cable;
use iscsi::{
    Service, ServiceConfig,
    chap::{Account, Algorithm, ChapError, ChapSettings},
    config::TargetConfig,
    initiator::{
        DiscoveryOptions, Initiator, InitiatorError, IscsiDisk, Options, Reservation,
        ReservationType, discover,
    },
    negotiate::{DigestWish, Wishes},
};
use proptest::prelude::*;
use scsi::{AccessState, Alua, LogicalUnit, PortGroup, Units, UnitsOptions};
use tokio::net::TcpListener;

mod cable;
mod memory;

const TARGET: &str = "iqn.2024-01.example:disk";
const NAME: &str = "iqn.2024-01.example:host";
/// What a test waits for comes, or never will.
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 8 << 20;

struct House {
    units: Arc<Units>,
    service: Service<Units>,
    file: Arc<MemFile>,
    at: SocketAddr,
}

async fn house_of(config: TargetConfig, options: UnitsOptions) -> House {
    let service = Service::new(ServiceConfig::default());
    let units = Arc::new(Units::new(options));
    let file = Arc::new(MemFile::from_bytes(&vec![0; SIZE as usize]));
    units.add(0, LogicalUnit::new(raw(&file).await, [7; 16])).await.unwrap();
    service.set_target(config, &units).unwrap();
    let at = listen(&service, 1).await;
    House { units, service, file, at }
}

async fn house() -> House {
    house_of(TargetConfig::open(TARGET), UnitsOptions::default()).await
}

async fn raw(file: &Arc<MemFile>) -> Arc<dyn Disk> {
    Arc::new(RawDisk::open(file.clone(), 512).await.unwrap())
}

async fn listen<D: scsi::Device>(service: &Service<D>, tag: u16) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let service = service.clone();
    tokio::spawn(async move { service.serve(listener, tag).await });
    at
}

fn options(portals: &[SocketAddr]) -> Options {
    let portals = portals.iter().map(ToString::to_string).collect();
    Options { reconnect_time: PATIENCE, ..Options::new(portals, TARGET, 0, NAME).unwrap() }
}

async fn connect(options: Options) -> Arc<IscsiDisk> {
    Initiator::connect(options).await.unwrap()
}

/// Fails a test that comes to no end.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it comes to no end")
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(seed + 1).fill(&mut bytes);
    bytes
}

/// Writes each of `regions` again and again from a task of its own, reads it back each time, and
/// gives what is to be on the disk in the end.
async fn storm(disk: &Arc<IscsiDisk>, regions: u64, rounds: u64) -> Vec<u8> {
    let len = SIZE / regions;
    let tasks = (0..regions).map(|region| {
        let disk = disk.clone();
        tokio::spawn(async move {
            let mut last = Vec::new();
            for round in 0..rounds {
                last = pattern(region << 32 | round, len as usize);
                disk.write_at(region * len, &last).await.unwrap();
                let mut back = vec![0; len as usize];
                disk.read_at(region * len, &mut back).await.unwrap();
                assert!(back == last, "region {region}, round {round}");
            }
            last
        })
    });
    let mut all = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        all.extend(task.await.unwrap());
    }
    disk.flush().await.unwrap();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_write_at_once_is_what_is_there() {
    for (digest, wishes) in [
        (DigestWish::Allowed, Wishes::default()),
        (DigestWish::Required, Wishes::default()),
        (
            DigestWish::Required,
            // Everything has to be asked for, in small pieces.
            Wishes {
                initial_r2t: true,
                immediate_data: false,
                max_burst: 16 << 10,
                first_burst: 1024,
                max_recv_data: 1024,
                ..Wishes::default()
            },
        ),
        (
            DigestWish::Never,
            Wishes {
                max_burst: 12 << 10,
                first_burst: 5120,
                max_recv_data: 2048,
                ..Wishes::default()
            },
        ),
    ] {
        let config = TargetConfig { wishes, ..TargetConfig::open(TARGET) };
        let house = house_of(config, UnitsOptions::default()).await;
        let disk =
            connect(Options { header_digest: digest, data_digest: digest, ..options(&[house.at]) })
                .await;
        let right = within(storm(&disk, 32, 3)).await;
        assert!(house.file.to_bytes() == right);
        within(disk.close()).await.unwrap();
        assert!(matches!(disk.read_at(0, &mut [0; 512]).await, Err(Error::Closed)));
        // The target may be at the end of its session still when the answer to the logout is here.
        let gone = async {
            while !house.service.sessions().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        within(gone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cable_cut_amid_writes_loses_none() {
    let house = house().await;
    let cable = Cable::to(house.at).await;
    let disk = connect(options(&[cable.at])).await;
    let done = Arc::new(AtomicBool::new(false));
    let cutting = async {
        let mut rng = Rng::new(5);
        let mut seen = 0;
        while !done.load(Ordering::Relaxed) {
            // In a header, in data, between two PDUs.
            cable.cut_after(i64::try_from(1 + rng.below(3 << 20)).unwrap());
            while cable.accepted() == seen && !done.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            seen = cable.accepted();
        }
    };
    let writing = async {
        let right = storm(&disk, 16, 8).await;
        done.store(true, Ordering::Relaxed);
        right
    };
    let (right, ()) = within(async { tokio::join!(writing, cutting) }).await;
    assert!(house.file.to_bytes() == right);
    assert!(cable.accepted() > 3, "{}", cable.accepted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_harmed_pdu_is_noticed_and_sent_again() {
    let house = house().await;
    let cable = Cable::to(house.at).await;
    let digest = DigestWish::Required;
    let disk =
        connect(Options { header_digest: digest, data_digest: digest, ..options(&[cable.at]) })
            .await;
    let mut rng = Rng::new(9);
    for round in 0..10u64 {
        let right = pattern(round, 1 << 20);
        // One bit of the 1 MiB that goes each way; the headers of login texts have no digest.
        cable.flip_after(round % 2 == 1, i64::try_from(rng.below(900_000)).unwrap());
        within(disk.write_at(round << 16, &right)).await.unwrap();
        let mut back = vec![0; 1 << 20];
        within(disk.read_at(round << 16, &mut back)).await.unwrap();
        assert!(back == right, "round {round}");
    }
    assert!(cable.accepted() >= 10, "{}", cable.accepted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mute_target_is_given_up_and_reached_anew() {
    let house = house().await;
    let cable = Cable::to(house.at).await;
    let keep_alive = Duration::from_millis(100);
    let disk = connect(Options { keep_alive, ..options(&[cable.at]) }).await;
    let right = pattern(1, 4096);
    cable.silent(true);
    let write = disk.write_at(0, &right);
    let speak = async {
        // The one that fell silent is given up; so is the next, in its login.
        while cable.accepted() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cable.silent(false);
        cable.cut();
    };
    let (written, ()) = within(async { tokio::join!(write, speak) }).await;
    written.unwrap();
    assert_eq!(house.file.to_bytes()[..4096], right);
    // A silence in which nothing is asked is noticed too.
    let before = cable.accepted();
    cable.silent(true);
    within(async {
        while cable.accepted() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_stays_away_is_told_within_the_time_limit() {
    let house = house().await;
    let cable = Cable::to(house.at).await;
    let reconnect_time = Duration::from_millis(300);
    let disk = connect(Options { reconnect_time, ..options(&[cable.at]) }).await;
    cable.down(true);
    // What is on its way when the cable is cut may still arrive.
    let cut = async {
        loop {
            if let Err(error) = disk.read_at(0, &mut [0; 512]).await {
                break error;
            }
        }
    };
    let error = within(cut).await;
    assert!(matches!(error, Error::Disconnected(_)), "{error}");
    cable.down(false);
    let mut back = [1; 512];
    let reading = async {
        while disk.read_at(0, &mut back).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(reading).await;
    assert_eq!(back, [0; 512]);
}

fn account(name: &str, secret: &str) -> Account {
    Account::new(name, secret.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_prove_who_they_are() {
    let ours = || account("alice", "a secret of alice");
    let theirs = || account("target", "another secret!");
    for algorithm in Algorithm::ALL {
        let chap = ChapSettings::new(vec![ours()], Some(theirs()), vec![algorithm]).unwrap();
        let config = TargetConfig { chap: Some(chap), ..TargetConfig::open(TARGET) };
        let house = house_of(config, UnitsOptions::default()).await;
        let plain = options(&[house.at]);
        for mutual in [None, Some(theirs())] {
            let disk = connect(Options { chap: Some(ours()), mutual, ..plain.clone() }).await;
            disk.read_at(0, &mut [0; 512]).await.unwrap();
        }
        let wrong = account("alice", "not alice's secret");
        for chap in [Some(wrong), Some(account("bob", "a secret of alice")), None] {
            let error = Initiator::connect(Options { chap, ..plain.clone() }).await.unwrap_err();
            assert!(matches!(error, InitiatorError::Refused { status: 0x0201, .. }), "{error}");
        }
        for mutual in [account("target", "no such secret"), account("other", "another secret!")] {
            let with = Options { chap: Some(ours()), mutual: Some(mutual), ..plain.clone() };
            let error = Initiator::connect(with).await.unwrap_err();
            let wrong =
                InitiatorError::Chap { portal: house.at.to_string(), source: ChapError::Wrong };
            assert_eq!(error.to_string(), wrong.to_string());
            assert!(matches!(error, InitiatorError::Chap { source: ChapError::Wrong, .. }));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_proof_is_none_for_who_asks_for_it() {
    let house = house().await;
    let with = Options {
        chap: Some(account("alice", "a secret of alice")),
        mutual: Some(account("target", "another secret!")),
        ..options(&[house.at])
    };
    assert!(Initiator::connect(with.clone()).await.is_err());
    connect(Options { mutual: None, ..with }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_portals_one_may_fail_in_a_storm() {
    let house = house().await;
    let other = listen(&house.service, 1).await;
    let cables = [Cable::to(house.at).await, Cable::to(other).await];
    let disk = connect(options(&[cables[0].at, cables[1].at])).await;
    let done = Arc::new(AtomicBool::new(false));
    let failing = async {
        let mut turn = 0;
        while !done.load(Ordering::Relaxed) {
            while disk.paths() < 2 && !done.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            cables[turn % 2].down(true);
            while disk.paths() > 1 && !done.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            cables[turn % 2].down(false);
            turn += 1;
        }
        turn
    };
    let writing = async {
        let right = storm(&disk, 16, 12).await;
        done.store(true, Ordering::Relaxed);
        right
    };
    let (right, turns) = within(async { tokio::join!(writing, failing) }).await;
    assert!(house.file.to_bytes() == right);
    assert!(turns > 1, "{turns}");
}

fn group(id: u16, state: AccessState) -> PortGroup {
    PortGroup { id, preferred: false, state, ports: vec![id] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_go_where_access_is_best() {
    let groups =
        vec![group(1, AccessState::ActiveOptimized), group(2, AccessState::ActiveNonOptimized)];
    let alua = Alua { implicit: true, explicit: false };
    let units = UnitsOptions { groups, alua, ..UnitsOptions::default() };
    let house = house_of(TargetConfig::open(TARGET), units).await;
    let second = listen(&house.service, 2).await;
    let disk = connect(options(&[house.at, second])).await;
    within(async {
        while disk.paths() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let mut buf = [0; 512];
    let states = [
        (AccessState::Standby, AccessState::ActiveNonOptimized),
        (AccessState::ActiveNonOptimized, AccessState::Unavailable),
        (AccessState::Unavailable, AccessState::ActiveOptimized),
        (AccessState::ActiveOptimized, AccessState::Standby),
    ];
    for (first, second) in states {
        house.units.set_groups(vec![group(1, first), group(2, second)]);
        for _ in 0..8 {
            within(disk.read_at(0, &mut buf)).await.unwrap();
            within(disk.write_at(512, &buf)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_unit_has_to_say_first_keeps_no_command() {
    let house = house().await;
    let disk = connect(options(&[house.at])).await;
    let nexus = scsi::Nexus { id: 1 << 40, initiator: "other".into(), port: 1 };
    for round in 0..20 {
        // POWER ON, RESET, OR BUS DEVICE RESET OCCURRED for all.
        scsi::Device::reset_target(&*house.units, &nexus);
        let right = pattern(round, 8192);
        within(disk.write_at(0, &right)).await.unwrap();
        let mut back = vec![0; 8192];
        within(disk.read_at(0, &mut back)).await.unwrap();
        assert_eq!(back, right);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_size_is_noticed() {
    let house = house().await;
    let disk = connect(options(&[house.at])).await;
    let mut sizes = disk.sizes();
    assert_eq!((disk.size(), disk.geometry().size), (SIZE, SIZE));
    let larger = Arc::new(MemFile::from_bytes(&vec![3; SIZE as usize * 2]));
    house.units.resize(0, raw(&larger).await).unwrap();
    sizes.mark_unchanged();
    let mut buf = [0; 512];
    within(disk.read_at(0, &mut buf)).await.unwrap();
    assert_eq!(buf, [3; 512]);
    within(sizes.wait_for(|size| *size == SIZE * 2)).await.unwrap();
    assert_eq!((disk.size(), disk.geometry().size), (SIZE * 2, SIZE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reservations_keep_others_out() {
    let house = house().await;
    let ours = connect(options(&[house.at])).await;
    let other_isid = [0x80, 1, 2, 3, 0, 0];
    let theirs = connect(Options { isid: other_isid, ..options(&[house.at]) }).await;
    let kind = ReservationType::WriteExclusiveRegistrantsOnly;
    ours.register(11, false).await.unwrap();
    ours.reserve(11, kind).await.unwrap();
    let found = theirs.reservations().await.unwrap();
    assert_eq!(found.keys, [11]);
    assert_eq!(found.reservation, Some(Reservation { key: 11, kind: kind as u8 }));
    let error = theirs.write_at(0, &[1; 512]).await.unwrap_err();
    assert!(matches!(error, Error::Fenced(_)), "{error}");
    theirs.read_at(0, &mut [0; 512]).await.unwrap();
    ours.write_at(0, &[1; 512]).await.unwrap();
    // The other takes it over, and the first is out.
    theirs.register(22, false).await.unwrap();
    theirs.preempt(22, 11, kind, true).await.unwrap();
    let error = ours.write_at(0, &[2; 512]).await.unwrap_err();
    assert!(matches!(error, Error::Fenced(_)), "{error}");
    // It gives it to the first by name.
    let port = format!("{NAME},i,0x80aabbcc0001");
    theirs.register_and_move(22, 33, &port, 1, true).await.unwrap();
    let found = theirs.reservations().await.unwrap();
    assert_eq!(found.reservation, Some(Reservation { key: 33, kind: kind as u8 }));
    let isid = [0x80, 0xaa, 0xbb, 0xcc, 0, 1];
    let third = connect(Options { isid, ..options(&[house.at]) }).await;
    third.write_at(0, &[3; 512]).await.unwrap();
    third.release(33, kind).await.unwrap();
    ours.write_at(0, &[4; 512]).await.unwrap();
    third.clear(33).await.unwrap();
    assert_eq!(third.reservations().await.unwrap().keys, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_outlives_the_connection_and_is_joined_by_later_paths() {
    let house = house().await;
    let other = listen(&house.service, 1).await;
    let cables = [Cable::to(house.at).await, Cable::to(other).await];
    cables[1].down(true);
    let ours = connect(options(&[cables[0].at, cables[1].at])).await;
    ours.register(5, false).await.unwrap();
    ours.reserve(5, ReservationType::WriteExclusiveRegistrantsOnly).await.unwrap();
    cables[1].down(false);
    within(async {
        while ours.paths() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for turn in 0..4usize {
        cables[turn % 2].cut();
        for _ in 0..8 {
            within(ours.write_at(0, &[7; 512])).await.unwrap();
        }
    }
    assert_eq!(ours.reservations().await.unwrap().keys, [5, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overdue_command_is_aborted_and_given_again() {
    let service = Service::new(ServiceConfig::default());
    let memory = Arc::new(memory::Memory::new(1 << 14));
    service.set_target(TargetConfig::open(TARGET), &memory).unwrap();
    let at = listen(&service, 1).await;
    let command_time = Duration::from_millis(150);
    let disk = connect(Options { lun: 1, command_time, ..options(&[at]) }).await;
    let right = pattern(3, 4096);
    let write = disk.write_at(0, &right);
    let permit = async {
        while memory.begun.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        memory.permits.add_permits(1);
    };
    let (written, ()) = within(async { tokio::join!(write, permit) }).await;
    written.unwrap();
    assert_eq!(memory.content(0, 8), right);
    // The connection is the same: only the task was ended.
    let told = memory.told.lock().unwrap().clone();
    assert_eq!(told.iter().filter(|it| it.starts_with("attach")).count(), 1, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_and_holes_are_what_they_say() {
    let house = house().await;
    let disk = connect(options(&[house.at])).await;
    assert!(disk.geometry().discard_granularity > 0);
    disk.write_at(0, &pattern(1, 4 << 20)).await.unwrap();
    disk.write_zeroes(1 << 20, 1 << 20).await.unwrap();
    disk.discard(2 << 20, 1 << 20).await.unwrap();
    let mut back = vec![1; 2 << 20];
    disk.read_at(1 << 20, &mut back).await.unwrap();
    assert!(back[..1 << 20].iter().all(|byte| *byte == 0));
    let ranges = disk.allocated_ranges(0..SIZE).await.unwrap();
    let bytes = house.file.to_bytes();
    let mut at = 0;
    for range in ranges.iter().chain([&(SIZE..SIZE)]) {
        assert!(range.start >= at && range.end <= SIZE, "{ranges:?}");
        assert!(bytes[at as usize..range.start as usize].iter().all(|byte| *byte == 0));
        at = range.end;
    }
    assert!(disk.allocated_ranges(0..SIZE + 1).await.is_err());
    assert!(matches!(disk.write_at(SIZE, &[0; 512]).await, Err(Error::OutOfRange { .. })));
    assert!(matches!(disk.read_at(1, &mut [0; 512]).await, Err(Error::Misaligned { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_for_reading_writes_nothing() {
    let house = house().await;
    let disk = connect(Options { read_only: true, ..options(&[house.at]) }).await;
    assert!(disk.is_read_only());
    for refused in [
        disk.write_at(0, &[0; 512]).await,
        disk.discard(0, 512).await,
        disk.write_zeroes(0, 512).await,
    ] {
        assert!(matches!(refused, Err(Error::ReadOnly)));
    }
    disk.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_told() {
    let house = house().await;
    let plain = options(&[house.at]);
    let none = Initiator::connect(Options { lun: 5, ..plain.clone() }).await.unwrap_err();
    assert!(matches!(none, InitiatorError::NoUnit(5)), "{none}");
    let target = "iqn.2024-01.example:none".to_owned();
    let none = Initiator::connect(Options { target, ..plain.clone() }).await.unwrap_err();
    assert!(matches!(none, InitiatorError::Refused { status: 0x0203, .. }), "{none}");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let none = Initiator::connect(options(&[gone])).await.unwrap_err();
    assert!(matches!(none, InitiatorError::Connect { .. }), "{none}");
    for wrong in [
        Options { portals: Vec::new(), ..plain.clone() },
        Options { name: "host".to_owned(), ..plain.clone() },
        Options { queue: 0, ..plain },
    ] {
        let error = Initiator::connect(wrong).await.unwrap_err();
        assert!(matches!(error, InitiatorError::Options(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_portal_tells_its_targets() {
    let house = house().await;
    for n in 0..200 {
        let config = TargetConfig::open(format!("iqn.2024-01.example:more-{n:03}"));
        house.service.set_target(config, &Arc::new(Units::new(UnitsOptions::default()))).unwrap();
    }
    let ask = DiscoveryOptions {
        portal: house.at.to_string(),
        name: NAME.to_owned(),
        isid: [0x80, 0, 0, 1, 0, 0],
        chap: None,
        mutual: None,
    };
    let targets = within(discover(&ask)).await.unwrap();
    assert_eq!(targets.len(), 201);
    let ours = targets.iter().find(|target| target.name == TARGET).unwrap();
    assert_eq!(ours.portals[0].address, house.at.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_target_is_an_error() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut rng = Rng::new(77);
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 48 + rng.below(4096) as usize];
            rng.fill(&mut bytes);
            // Half of them begin like a response to a login.
            if rng.chance(50) {
                bytes[0] = 0x23;
                bytes[4] = 0;
                bytes[5..8].copy_from_slice(&[0, 0, 64]);
                bytes[36..38].fill(0);
            }
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(&bytes).await;
        }
    });
    for _ in 0..100 {
        within(Initiator::connect(options(&[at]))).await.unwrap_err();
    }
}

#[derive(Debug, Clone)]
enum Act {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Read(u64, u64),
    Flush,
    Cut,
}

fn act() -> impl Strategy<Value = Act> {
    let range = || (0u64..400).prop_flat_map(|at| (Just(at), 1..=(400 - at)));
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((at, n), byte)| Act::Write(at, n, byte)),
        1 => range().prop_map(|(at, n)| Act::Zero(at, n)),
        4 => range().prop_map(|(at, n)| Act::Read(at, n)),
        1 => Just(Act::Flush),
        1 => Just(Act::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_disk_is_what_was_done_to_it(acts in prop::collection::vec(act(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = house().await;
            let cable = Cable::to(house.at).await;
            let disk = connect(options(&[cable.at])).await;
            let mut shadow = vec![0u8; 400 * 512];
            for act in acts {
                let bytes = |at: u64, n: u64| (at * 512) as usize..((at + n) * 512) as usize;
                match act {
                    Act::Write(at, n, byte) => {
                        shadow[bytes(at, n)].fill(byte);
                        within(disk.write_at(at * 512, &shadow[bytes(at, n)])).await.unwrap();
                    }
                    Act::Zero(at, n) => {
                        shadow[bytes(at, n)].fill(0);
                        within(disk.write_zeroes(at * 512, n * 512)).await.unwrap();
                    }
                    Act::Read(at, n) => {
                        let mut back = vec![1; (n * 512) as usize];
                        within(disk.read_at(at * 512, &mut back)).await.unwrap();
                        assert!(back == shadow[bytes(at, n)]);
                    }
                    Act::Flush => within(disk.flush()).await.unwrap(),
                    Act::Cut => cable.cut(),
                }
            }
            within(disk.close()).await.unwrap();
            assert!(house.file.to_bytes()[..shadow.len()] == shadow);
        });
    }
}
