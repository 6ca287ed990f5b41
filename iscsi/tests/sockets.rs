//! The service on real sockets, with an initiator that may be honest, mute, slow or lying.

use std::{sync::atomic::Ordering, time::Duration};

use client::{Client, TARGET, Who, house, plain_house};
use iscsi::{
    ServiceConfig,
    config::{Admission, Limits, TargetConfig},
    pdu::{Pdu, function, outcome},
};
use tokio::io::AsyncWriteExt;

mod client;
mod memory;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 % 253) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_read_with_every_digest_and_burst() {
    let house = plain_house().await;
    for (at, digests) in ["None", "CRC32C"].into_iter().enumerate() {
        for r2t in ["Yes", "No"] {
            let keys = [
                ("HeaderDigest", digests),
                ("DataDigest", digests),
                ("InitialR2T", r2t),
                ("MaxBurstLength", "16384"),
                ("FirstBurstLength", "4096"),
                ("MaxOutstandingR2T", "3"),
            ];
            let who = Who { isid: u8::try_from(at).unwrap(), keys: &keys, ..Who::default() };
            let (mut client, response) = Client::log_in(house.at, who).await;
            assert_eq!(response.status, 0);
            let data = pattern(100 * 512);
            let write = client.transfer(true, 0, 1, 3, 100);
            client.send(Pdu::ScsiCommand(write), &data[..2000]).await;
            assert_eq!(client.until_done(1, &data).await.1, 0);
            client.read(0, 2, 3, 100).await;
            assert_eq!(client.until_done(2, &[]).await, (data, 0));
            assert_eq!(client.log_out(0, 0).await, 0);
            assert!(client.next().await.is_none());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_says_nothing_or_nonsense_is_dropped() {
    let config =
        ServiceConfig { login_time: Duration::from_millis(100), ..ServiceConfig::default() };
    let house = house(config, TargetConfig::open(TARGET)).await;
    let mut mute = Client::connect(house.at).await;
    let mut slow = Client::connect(house.at).await;
    slow.stream.write_all(&[0x43, 0x87, 0]).await.unwrap();
    let mut odd = Client::connect(house.at).await;
    odd.stream.write_all(&[0xff; 4096]).await.unwrap();
    assert!(mute.next().await.is_none());
    assert!(slow.next().await.is_none());
    assert!(odd.next().await.is_none());
    let (mut client, _) = Client::log_in(house.at, Who::default()).await;
    client.ping(5).await;
    assert!(client.next().await.is_some(), "who is in has time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_under_way_are_bounded_by_number_and_by_the_gate() {
    let config = ServiceConfig { half_open: 1, ..ServiceConfig::default() };
    let house = house(config, TargetConfig::open(TARGET)).await;
    let mut first = Client::connect(house.at).await;
    let mut second = Client::connect(house.at).await;
    assert!(second.next().await.is_none());
    assert_eq!(first.ask_in(Who::default()).await.status, 0);
    drop(first);
    let config =
        ServiceConfig { gate: Some(std::sync::Arc::new(|_| None)), ..ServiceConfig::default() };
    let shut = client::house(config, TargetConfig::open(TARGET)).await;
    assert!(Client::connect(shut.at).await.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mute_initiator_is_asked_and_dropped() {
    let mut target = TargetConfig::open(TARGET);
    target.limits = Limits { silence: 100, ..Limits::default() };
    let house = house(ServiceConfig::default(), target).await;
    let (mut client, _) = Client::log_in(house.at, Who::default()).await;
    assert!(matches!(client.next().await, Some((Pdu::NopIn(_), _))));
    assert!(client.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_logs_in_anew_ends_the_older_session_with_its_commands() {
    let house = plain_house().await;
    let (mut first, response) = Client::log_in(house.at, Who::default()).await;
    first.write(1, 1, 0, &[9; 512]).await;
    while house.memory.begun.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let (mut second, again) = Client::log_in(house.at, Who::default()).await;
    assert_eq!(again.status, 0);
    assert_ne!(again.tsih, response.tsih);
    while first.next().await.is_some() {}
    house.memory.permits.add_permits(10);
    second.read(1, 1, 0, 1).await;
    assert_eq!(second.until_done(1, &[]).await, (vec![0; 512], 0));
    assert_eq!(house.memory.done.load(Ordering::Relaxed), 1, "the write was aborted");
    let told = house.memory.told.lock().unwrap().clone();
    let kinds: Vec<&str> = told.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(kinds, ["attach", "detach", "attach"]);
    assert!(told[0].ends_with("iqn.me,i,0x800000000001"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_a_session_share_its_numbers_and_are_bounded() {
    let house = plain_house().await;
    let keys = [("MaxConnections", "2")];
    let (mut first, response) =
        Client::log_in(house.at, Who { keys: &keys, ..Who::default() }).await;
    let who = |cid| Who { tsih: response.tsih, cid, ..Who::default() };
    let (mut second, joined) = Client::log_in(house.at, who(1)).await;
    assert_eq!((joined.status, joined.tsih), (0, response.tsih));
    assert_eq!(Client::log_in(house.at, who(2)).await.1.status, 0x0206);
    let stranger = Who { isid: 9, ..who(3) };
    assert_eq!(Client::log_in(house.at, stranger).await.1.status, 0x020a);
    assert_eq!(house.service.sessions()[0].connections.len(), 2);
    let early = {
        let _ = second.numbers();
        second.transfer(false, 0, 2, 0, 1)
    };
    second.send(Pdu::ScsiCommand(early), &[]).await;
    first.read(0, 1, 0, 1).await;
    assert_eq!(first.until_done(1, &[]).await.1, 0);
    assert_eq!(second.until_done(2, &[]).await.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_outlives_its_connection_and_is_answered_on_another() {
    let house = plain_house().await;
    let keys = [("ErrorRecoveryLevel", "2"), ("MaxConnections", "4")];
    let (mut first, response) =
        Client::log_in(house.at, Who { keys: &keys, ..Who::default() }).await;
    first.write(1, 1, 0, &[9; 512]).await;
    while house.memory.begun.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let cmd_sn = first.cmd_sn;
    drop(first);
    let who = Who { tsih: response.tsih, cid: 1, ..Who::default() };
    let (mut second, joined) = Client::log_in(house.at, who).await;
    assert_eq!((joined.status, second.cmd_sn), (0, cmd_sn));
    assert_eq!(second.log_out(2, 0).await, 0);
    second.function(function::TASK_REASSIGN, 1, 50, 1).await;
    let answer = second.next().await.unwrap().0;
    assert!(
        matches!(answer, Pdu::TaskResponse(it) if it.response == outcome::COMPLETE),
        "{answer:?}"
    );
    house.memory.permits.add_permits(1);
    assert_eq!(second.until_done(1, &[]).await.1, 0);
    assert_eq!(house.memory.content(0, 1), [9; 512]);
    assert_eq!(house.memory.begun.load(Ordering::Relaxed), 1, "it was carried out once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_ends_the_tasks_of_all_sessions_first() {
    let house = plain_house().await;
    let (mut mine, _) = Client::log_in(house.at, Who::default()).await;
    let (mut theirs, _) = Client::log_in(house.at, Who { isid: 2, ..Who::default() }).await;
    mine.read(1, 1, 0, 1).await;
    theirs.read(1, 1, 0, 1).await;
    while house.memory.begun.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    mine.function(function::LUN_RESET, 1, 2, u32::MAX).await;
    let answer = mine.next().await.unwrap().0;
    assert!(matches!(answer, Pdu::TaskResponse(it) if it.response == outcome::COMPLETE));
    house.memory.permits.add_permits(10);
    assert_eq!(house.memory.done.load(Ordering::Relaxed), 0);
    theirs.ping(3).await;
    let answer = theirs.next().await.unwrap().0;
    assert!(matches!(answer, Pdu::NopIn(_)), "an aborted task is not answered: {answer:?}");
    mine.function(function::CLEAR_TASK_SET, 0, 4, u32::MAX).await;
    mine.next().await.unwrap();
    mine.function(function::LUN_RESET, 7, 5, u32::MAX).await;
    let answer = mine.next().await.unwrap().0;
    assert!(matches!(answer, Pdu::TaskResponse(it) if it.response == outcome::NO_UNIT));
    mine.function(function::TARGET_COLD_RESET, 0, 6, u32::MAX).await;
    let answer = mine.next().await.unwrap().0;
    assert!(matches!(answer, Pdu::TaskResponse(it) if it.response == outcome::COMPLETE));
    assert!(mine.next().await.is_none());
    while theirs.next().await.is_some() {}
    let told = house.memory.told.lock().unwrap().clone();
    let told: Vec<&str> =
        told.iter().map(String::as_str).filter(|line| !line.contains("tach")).collect();
    assert_eq!(told, ["reset unit 1", "cleared 0 of 0", "reset target"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrators_see_sessions_and_end_them() {
    let house = plain_house().await;
    let keys = [("InitiatorAlias", "me"), ("ErrorRecoveryLevel", "1")];
    let (mut client, response) =
        Client::log_in(house.at, Who { keys: &keys, ..Who::default() }).await;
    let list = house.service.sessions();
    let it = &list[0];
    assert_eq!((list.len(), it.tsih, it.error_recovery_level), (1, response.tsih, 1));
    assert_eq!((it.initiator.as_str(), it.alias.as_deref()), ("iqn.me", Some("me")));
    assert_eq!(it.connections[0].1, house.at);
    assert!(house.service.disconnect(it.id, 60));
    let message = client.next().await.unwrap().0;
    assert!(matches!(message, Pdu::AsyncMessage(it) if it.event == 1));
    assert!(house.service.disconnect(it.id, 0));
    let message = client.next().await.unwrap().0;
    assert!(matches!(message, Pdu::AsyncMessage(it) if it.event == 3));
    assert!(client.next().await.is_none());
    assert!(!house.service.disconnect(4711, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_target_keeps_the_sessions_that_are_still_admitted() {
    let house = plain_house().await;
    let (mut client, _) = Client::log_in(house.at, Who::default()).await;
    let mut config = TargetConfig::open(TARGET);
    config.alias = Some("renamed".to_owned());
    house.service.set_target(config.clone(), &house.memory).unwrap();
    client.ping(1).await;
    assert!(matches!(client.next().await, Some((Pdu::NopIn(_), _))));
    config.admitted = vec![Admission { name: Some("iqn.other".to_owned()), networks: Vec::new() }];
    house.service.set_target(config.clone(), &house.memory).unwrap();
    while client.next().await.is_some() {}
    assert_eq!(Client::log_in(house.at, Who::default()).await.1.status, 0x0202);
    config.name = "not a name".to_owned();
    assert!(house.service.set_target(config, &house.memory).is_err());
    assert!(house.service.remove_target(TARGET));
    assert_eq!(Client::log_in(house.at, Who::default()).await.1.status, 0x0203);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_stops_tells_everybody_and_leaves_nothing_running() {
    let house = plain_house().await;
    let (mut client, _) = Client::log_in(house.at, Who::default()).await;
    client.write(1, 1, 0, &[9; 512]).await;
    while house.memory.begun.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    house.service.stop().await;
    assert!(house.service.sessions().is_empty());
    assert!(house.memory.told.lock().unwrap().last().unwrap().starts_with("detach"));
    let message = client.next().await.unwrap().0;
    assert!(matches!(message, Pdu::AsyncMessage(it) if it.event == 3));
    assert_eq!(Client::log_in(house.at, Who::default()).await.1.status, 0x0301);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_and_does_not_read_makes_nothing_grow() {
    let house = plain_house().await;
    let (mut greedy, _) = Client::log_in(house.at, Who::default()).await;
    const ASKED: u32 = 4000;
    for itt in 0..ASKED {
        greedy.read(0, itt, 0, 128).await;
    }
    // Others are served meanwhile, many times over.
    let (mut other, _) = Client::log_in(house.at, Who { isid: 2, ..Who::default() }).await;
    for itt in 0..2000 {
        other.read(0, itt, 0, 1).await;
        assert_eq!(other.until_done(itt, &[]).await.1, 0);
    }
    let begun = house.memory.begun.load(Ordering::Relaxed) - 2000;
    assert!(begun < 600, "{begun} commands of 64 KiB were carried out for nobody");
    // Once it reads, it gets what it asked for.
    for itt in 0..32 {
        assert_eq!(greedy.until_done(itt, &[]).await.0.len(), 65_536);
    }
    // And when it goes with answers unread, nothing of it stays.
    drop(greedy);
    while house.service.sessions().len() > 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_segment_beyond_what_was_declared_ends_the_connection() {
    let house = plain_house().await;
    let (mut client, _) = Client::log_in(house.at, Who::default()).await;
    let mut header = [0; 48];
    header[0] = 0x05;
    header[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
    client.stream.write_all(&header).await.unwrap();
    assert!(client.next().await.is_none());
    while !house.service.sessions().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(house.service.data_left(), ServiceConfig::default().data_budget);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_the_device_ends_one_session() {
    let house = plain_house().await;
    let (mut other, _) = Client::log_in(house.at, Who { isid: 2, ..Who::default() }).await;
    let (mut client, _) = Client::log_in(house.at, Who::default()).await;
    client.write(1, 1, 0, &[9; 512]).await;
    let mut command = client.transfer(false, 0, 2, 0, 1);
    command.cdb[0] = 0xc0;
    client.send(Pdu::ScsiCommand(command), &[]).await;
    while client.next().await.is_some() {}
    while house.service.sessions().len() > 1 {
        tokio::task::yield_now().await;
    }
    other.ping(1).await;
    assert!(matches!(other.next().await, Some((Pdu::NopIn(_), _))));
    assert_eq!(house.service.data_left(), ServiceConfig::default().data_budget);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_initiators_come_and_go_nothing_of_them_stays() {
    let house = plain_house().await;
    house.memory.permits.add_permits(200);
    let at = house.at;
    let visit = |guest: u8| async move {
        for round in 0..60u32 {
            let level = ["0", "1", "2"][round as usize % 3];
            let keys = [("ErrorRecoveryLevel", level), ("InitialR2T", "No")];
            // Two guests have one name: each ends the other's session.
            let who = Who { isid: guest / 2, keys: &keys, ..Who::default() };
            let (mut client, response) = Client::log_in(at, who).await;
            if response.status != 0 {
                continue;
            }
            let data = pattern(64 * 512);
            let unit = u8::from((round + u32::from(guest)).is_multiple_of(3));
            for itt in 0..6 {
                // The older of two may be gone at any time.
                let write = client.transfer(true, unit, itt, guest, 64);
                client.try_send(Pdu::ScsiCommand(write), &data[..512]).await;
                let read = client.transfer(false, unit, 100 + itt, guest, 8);
                client.try_send(Pdu::ScsiCommand(read), &[]).await;
            }
            match round % 4 {
                0 => client.try_function(function::LUN_RESET, unit, 50).await,
                1 => client.try_function(function::ABORT_TASK_SET, unit, 50).await,
                2 => client.try_function(function::CLEAR_TASK_SET, 1 - unit, 50).await,
                _ => {}
            }
            for _ in 0..round % 7 {
                if client.next().await.is_none() {
                    break;
                }
            }
        }
    };
    let guests: Vec<_> = (0..6).map(|guest| tokio::spawn(visit(guest))).collect();
    for guest in guests {
        guest.await.unwrap();
    }
    house.memory.permits.add_permits(100_000);
    // What may be recovered is kept for its time; the service's end does not wait for that.
    house.service.stop().await;
    assert!(house.service.sessions().is_empty());
    assert_eq!(house.service.data_left(), ServiceConfig::default().data_budget);
    let told = house.memory.told.lock().unwrap();
    let count = |what: &str| told.iter().filter(|line| line.starts_with(what)).count();
    assert_eq!(count("attach"), count("detach"));
    assert!(count("attach") > 20);
}
