//! Units that come and go, what they say of themselves, and what they remember of nexuses.

use super::*;
use crate::asc;

#[test]
fn a_nexus_is_owed_the_power_on_and_a_reset_once() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.units.attach(&nexus(5));
        bench.send(5, &[0x12, 0, 0, 0, 36, 0], &[]).await.good();
        assert_eq!(bench.calm(5).await, [asc::POWER_ON]);
        bench.units.reset_unit(&nexus(1), Lun([0; 8]));
        for id in 1..=5 {
            assert_eq!(bench.calm(id).await, [asc::DEVICE_RESET]);
        }
        bench.units.tasks_cleared(&nexus(1), Lun([0; 8]), &[nexus(1), nexus(2)]);
        assert_eq!(bench.calm(1).await, []);
        // REQUEST SENSE tells it as well, and in the format that was asked for.
        let sense = bench.send(2, &[0x03, 1, 0, 0, 252, 0], &[]).await.good();
        assert_eq!(sense[..4], [0x72, 6, 0x2f, 0]);
        assert_eq!(bench.calm(2).await, []);
        bench.units.reset_target(&nexus(1));
        assert_eq!(bench.calm(2).await, [asc::POWER_ON]);
    });
}

#[test]
fn units_come_grow_and_go_and_initiators_are_told() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let (_, other) = disk(64, 4096).await;
        bench.units.add(300, LogicalUnit::new(other.clone(), [8; 16])).await.expect("room");
        assert_eq!(bench.calm(1).await, [asc::LUNS_CHANGED]);
        // REPORT LUNS is as good as being told.
        let luns = bench.send(2, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], &[]).await.good();
        assert_eq!(luns[..8], [0, 0, 0, 16, 0, 0, 0, 0]);
        assert_eq!(luns[16..18], [0x41, 0x2c]);
        assert_eq!(bench.calm(2).await, []);
        let taken = LogicalUnit::new(other.clone(), [9; 16]);
        assert!(matches!(bench.units.add(300, taken).await, Err(UnitsError::Taken(300))));
        let twin = LogicalUnit::new(other, [8; 16]);
        assert!(matches!(bench.units.add(301, twin).await, Err(UnitsError::Identity(300))));

        let (_, larger) = disk(2 * BLOCKS, 512).await;
        bench.units.resize(0, larger).expect("it grows");
        assert_eq!(bench.calm(1).await, [asc::CAPACITY_CHANGED]);
        let capacity = bench.send(1, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await.good();
        assert_eq!(capacity[..4], (2 * BLOCKS as u32 - 1).to_be_bytes());
        let (_, smaller) = disk(BLOCKS, 512).await;
        let refused = bench.units.resize(0, smaller.clone());
        assert!(matches!(refused, Err(UnitsError::Shrinks { number: 0, .. })));
        for id in 1..=4 {
            bench.units.detach(&nexus(id));
        }
        bench.units.resize(0, smaller).expect("nobody is there");
        bench.units.remove(0).await.expect("it is there");
        assert!(matches!(bench.units.remove(0).await, Err(UnitsError::Missing(0))));
        assert_eq!(bench.units.list().len(), 1);
    });
}

#[test]
fn without_a_unit_zero_it_still_says_what_there_is() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.units.remove(0).await.expect("it is there");
        assert_eq!(bench.send(1, &[0x12, 0, 0, 0, 96, 0], &[]).await.good()[0], 0x20);
        assert_eq!(bench.send_to(5, 1, &[0x12, 0, 0, 0, 96, 0], &[]).await.good()[0], 0x7f);
        let luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(bench.send(1, &luns, &[]).await.good(), [0; 8]);
        let expected = Some((SenseKey::IllegalRequest, asc::UNIT_NOT_SUPPORTED));
        assert_eq!(bench.send(1, &[0; 6], &[]).await.code(), expected);
        assert_eq!(bench.send(1, &[0xff; 6], &[]).await.code(), expected);
        let sense = bench.send(1, &[3, 0, 0, 0, 18, 0], &[]).await.good();
        assert_eq!(sense[12..14], [0x25, 0]);
        assert!(!bench.units.has_unit(&nexus(1), Lun([0; 8])));
    });
}

#[test]
fn masking_hides_units_from_those_who_may_not_see_them() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let hidden = |initiator: &str, _: u16| initiator == "iqn.2020-01.example:1";
        bench.units.set_access(Arc::new(hidden));
        assert!(bench.units.has_unit(&nexus(1), Lun([0; 8])));
        assert!(!bench.units.has_unit(&nexus(2), Lun([0; 8])));
        let luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(bench.send(1, &luns, &[]).await.good().len(), 16);
        assert_eq!(bench.send(2, &luns, &[]).await.good().len(), 8);
        assert!(bench.send(2, &cdb16(0x88, 0, 0, 1), &[]).await.code().is_some());
    });
}

#[test]
fn inquiry_is_the_same_however_much_of_it_is_asked_for() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let whole = bench.send(1, &[0x12, 0, 0, 2, 0, 0], &[]).await.good();
        assert_eq!((whole.len(), whole[2], whole[3] & 0x0f, whole[4]), (96, 6, 2, 91));
        assert_eq!(&whole[8..28], b"BULKHEADVirtual Disk");
        for length in 0..=255u8 {
            let part = bench.send(1, &[0x12, 0, 0, 0, length, 0], &[]).await.good();
            assert_eq!(part, whole[..usize::from(length).min(96)]);
        }
        let pages = bench.send(1, &[0x12, 1, 0, 0, 255, 0], &[]).await.good();
        for page in &pages[4..] {
            let answer = bench.send(1, &[0x12, 1, *page, 2, 0, 0], &[]).await.good();
            assert_eq!(answer[1], *page);
            let length = usize::from(u16::from_be_bytes([answer[2], answer[3]]));
            assert_eq!(answer.len(), 4 + length, "page {page:02x}");
        }
        assert!(bench.send(1, &[0x12, 0, 1, 0, 255, 0], &[]).await.code().is_some());
        assert!(bench.send(1, &[0x12, 1, 0xc0, 0, 255, 0], &[]).await.code().is_some());
    });
}

#[test]
fn sense_data_are_in_the_format_that_the_control_page_says() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let sense = Sense::new(SenseKey::IllegalRequest, asc::FIELD_IN_CDB);
        assert_eq!(bench.units.encode_sense(Lun([0; 8]), &sense)[0], 0x70);
        let mut page = bench.send(1, &[0x5a, 8, 0x0a, 0, 0, 0, 0, 0, 255, 0], &[]).await.good();
        page[0..2].fill(0);
        page[8 + 2] |= 0x04;
        bench.send(1, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, page.len() as u8, 0], &page).await.good();
        assert_eq!(bench.units.encode_sense(Lun([0; 8]), &sense)[0], 0x72);
    });
}

#[test]
fn a_medium_is_ejected_unless_somebody_prevents_it() {
    run(async {
        let bench = Bench::new(512, |unit| unit.removable = true).await;
        let prevent = |prevent| [0x1e, 0, 0, 0, prevent, 0];
        let (eject, load) = ([0x1b, 0, 0, 0, 2, 0], [0x1b, 0, 0, 0, 3, 0]);
        bench.send(1, &prevent(1), &[]).await.good();
        let refused = Some((SenseKey::IllegalRequest, asc::REMOVAL_PREVENTED));
        assert_eq!(bench.send(2, &eject, &[]).await.code(), refused);
        bench.units.detach(&nexus(1));
        bench.send(2, &eject, &[]).await.good();
        let none = Some((SenseKey::NotReady, asc::NO_MEDIUM));
        assert_eq!(bench.send(2, &[0; 6], &[]).await.code(), none);
        assert_eq!(bench.send(2, &cdb16(0x88, 0, 0, 1), &[]).await.code(), none);
        bench.send(2, &load, &[]).await.good();
        bench.send(2, &[0; 6], &[]).await.good();
        assert_eq!(bench.calm(3).await, [asc::MEDIUM_CHANGED]);
        let fixed = Bench::new(512, |_| {}).await;
        assert!(fixed.send(1, &eject, &[]).await.code().is_some());
        fixed.send(1, &[0x1b, 0, 0, 0, 0, 0], &[]).await.good();
        fixed.send(1, &[0; 6], &[]).await.good();
    });
}

#[test]
fn a_port_in_standby_is_told_of_and_refuses_data() {
    run(async {
        let groups = [1u16, 2].map(|id| PortGroup {
            id,
            preferred: id == 1,
            state: AccessState::ActiveOptimized,
            ports: vec![id],
        });
        let alua = Alua { implicit: true, explicit: true };
        let options = UnitsOptions { groups: groups.to_vec(), alua, ..UnitsOptions::default() };
        let bench = Bench::with(512, options, |_| {}).await;
        assert!(bench.units.set_state(1, AccessState::Standby));
        assert!(!bench.units.set_state(9, AccessState::Standby));
        let answer = bench.send(1, &cdb16(0x88, 0, 0, 1), &[]).await;
        assert_eq!(answer.code(), Some((SenseKey::UnitAttention, asc::ACCESS_CHANGED)));
        let answer = bench.send(1, &cdb16(0x88, 0, 0, 1), &[]).await;
        assert_eq!(answer.code(), Some((SenseKey::NotReady, asc::STANDBY)));
        let report = bench.send(1, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]).await.good();
        assert_eq!(report[..5], [0, 0, 0, 24, 0x82]);
        let set = [0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
        bench.send(1, &set, &[0, 0, 0, 0, 0, 0, 0, 1]).await.good();
        bench.contents(0, 1).await;
        assert_eq!(bench.units.groups()[0].state, AccessState::ActiveOptimized);
    });
}

/// A disk that fails is told as a disk would tell it, and nothing is appended.
#[test]
fn failures_of_the_disk_become_sense_data() {
    use block_io::{Error, Geometry, IoFuture};

    #[derive(Debug)]
    struct Broken;

    fn fail<'a, T>() -> IoFuture<'a, T> {
        Box::pin(async { Err(Error::Corrupt("broken".to_owned())) })
    }

    impl Disk for Broken {
        fn geometry(&self) -> Geometry {
            let (logical_sector, physical_sector) = (512, 4096);
            Geometry { size: 1 << 20, logical_sector, physical_sector, discard_granularity: 0 }
        }
        fn read_at<'a>(&'a self, _: u64, _: &'a mut [u8]) -> IoFuture<'a, ()> {
            fail()
        }
        fn write_at<'a>(&'a self, _: u64, _: &'a [u8]) -> IoFuture<'a, ()> {
            Box::pin(async { Err(Error::NoSpace) })
        }
        fn flush(&self) -> IoFuture<'_, ()> {
            Box::pin(async { Err(Error::Disconnected("gone".to_owned())) })
        }
        fn discard(&self, _: u64, _: u64) -> IoFuture<'_, ()> {
            fail()
        }
        fn write_zeroes(&self, _: u64, _: u64) -> IoFuture<'_, ()> {
            fail()
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn close(&self) -> IoFuture<'_, ()> {
            fail()
        }
    }

    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.units.add(1, LogicalUnit::new(Arc::new(Broken), [9; 16])).await.expect("room");
        while bench.send_to(1, 1, &[0; 6], &[]).await.status() != Status::Good {}
        let cases = [
            (cdb16(0x88, 0, 0, 1), SenseKey::MediumError, asc::READ_ERROR),
            (cdb16(0x8a, 0, 0, 1), SenseKey::DataProtect, asc::NO_SPACE),
            (cdb16(0x91, 0, 0, 1), SenseKey::NotReady, asc::COMMUNICATION_FAILURE),
        ];
        for (cdb, key, code) in cases {
            let answer = bench.send_to(1, 1, &cdb, &bench.of(1, 1)).await;
            assert_eq!(answer.code(), Some((key, code)));
            assert!(answer.data.is_empty());
        }
        let capacity = bench.send_to(1, 1, &cdb16(0x9e, 0x10, 0, 32), &[]).await.good();
        assert_eq!(capacity[13..15], [3, 0], "4096 bytes in a physical block; thick");
    });
}

#[test]
fn what_a_unit_does_is_counted_and_limited() {
    run(async {
        let bench = Bench::new(512, |_| ()).await;
        let before = bench.units.list()[0].usage;
        bench.on(0x8a, 0, 0, 8, &bench.of(7, 8)).await.good();
        bench.contents(0, 4).await;
        assert_eq!(bench.on(0x88, 0, BLOCKS, 1, &[]).await.status(), Status::CheckCondition);
        let usage = bench.units.list()[0].usage;
        assert_eq!((usage.reads - before.reads, usage.writes - before.writes), (2, 1));
        let bytes =
            (usage.bytes_read - before.bytes_read, usage.bytes_written - before.bytes_written);
        assert_eq!(bytes, (5 * 512, 8 * 512));
        assert_eq!((usage.failed - before.failed, usage.delayed), (1, 0));
        let limits = Limits { commands: Some(20), bytes: None };
        bench.units.set_limits(0, limits).unwrap();
        for _ in 0..5 {
            bench.contents(0, 1).await;
        }
        let delayed = bench.units.list()[0].usage.delayed;
        assert!(delayed > 0, "five at once are more than a tenth of a second's");
        bench.units.set_limits(0, Limits::default()).unwrap();
        for _ in 0..100 {
            bench.contents(0, 1).await;
        }
        assert_eq!(bench.units.list()[0].usage.delayed, delayed);
        assert!(bench.units.set_limits(9, limits).is_err());
    });
}
