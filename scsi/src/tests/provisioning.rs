//! Space that is given back, blocks that are wiped.

use super::*;
use crate::{Space, asc};

fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = ((6 + 16 * ranges.len()) as u16).to_be_bytes().to_vec();
    list.extend(((16 * ranges.len()) as u16).to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

impl Bench {
    async fn unmap(&self, ranges: &[(u64, u32)]) -> Answer {
        let list = unmap_list(ranges);
        let [high, low] = (list.len() as u16).to_be_bytes();
        self.send(1, &[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], &list).await
    }

    /// Address, length and whether it is mapped, of each extent.
    async fn status(&self, lba: u64, room: u32) -> Vec<(u64, u32, bool)> {
        let all = self.statuses(lba, room).await.into_iter();
        all.map(|(lba, blocks, status)| (lba, blocks, status == 0)).collect()
    }

    /// Address, length and PROVISIONING STATUS of each extent.
    async fn statuses(&self, lba: u64, room: u32) -> Vec<(u64, u32, u8)> {
        let mut cdb = cdb16(0x9e, 0x12, lba, 8 + 16 * room);
        cdb[14] = 0;
        let bytes = self.send(1, &cdb, &[]).await.good();
        assert_eq!(bytes.len() as u32, u32::from_be_bytes(bytes[..4].try_into().expect("4")) + 4);
        let extent = |it: &[u8]| {
            let lba = u64::from_be_bytes(it[..8].try_into().expect("8"));
            (lba, u32::from_be_bytes(it[8..12].try_into().expect("4")), it[12])
        };
        bytes[8..].chunks(16).map(extent).collect()
    }
}

#[test]
fn unmapped_blocks_read_as_zeros_and_are_told() {
    run(async {
        let bench = Bench::new(4096, |_| {}).await;
        assert_eq!(bench.status(0, 4).await, [(0, BLOCKS as u32, false)]);
        bench.on(0x8a, 0, 0, 32, &bench.of(1, 32)).await.good();
        bench.unmap(&[(4, 2), (9, 1), (BLOCKS, 0)]).await.good();
        assert_eq!(bench.contents(4, 2).await, bench.of(0, 2));
        assert_eq!(bench.contents(3, 1).await, bench.of(1, 1));
        assert_eq!(
            bench.status(0, 8).await,
            [
                (0, 4, true),
                (4, 2, false),
                (6, 3, true),
                (9, 1, false),
                (10, 22, true),
                (32, BLOCKS as u32 - 32, false)
            ]
        );
        assert_eq!(bench.status(5, 1).await, [(5, 1, false)]);
        let mut beyond = cdb16(0x9e, 0x12, BLOCKS, 24);
        beyond[14] = 0;
        let answer = bench.send(1, &beyond, &[]).await;
        assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::LBA_OUT_OF_RANGE)));
    });
}

#[test]
fn an_unmap_with_one_wrong_descriptor_does_nothing() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.on(0x8a, 0, 0, 8, &bench.of(1, 8)).await.good();
        let answer = bench.unmap(&[(0, 8), (BLOCKS, 1)]).await;
        assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::LBA_OUT_OF_RANGE)));
        assert_eq!(bench.contents(0, 8).await, bench.of(1, 8));
        let many = vec![(0, 1); 257];
        let answer = bench.unmap(&many).await;
        assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_LIST)));
        bench.send(1, &[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await.good();
    });
}

#[test]
fn blocks_of_a_thick_unit_are_anchored_when_they_are_unmapped() {
    run(async {
        let bench = Bench::new(4096, |unit| unit.thin = false).await;
        bench.on(0x8a, 0, 0, 32, &bench.of(1, 32)).await.good();
        bench.unmap(&[(4, 2)]).await.good();
        // WRITE SAME with ANCHOR and without, UNMAP with it.
        bench.on(0x93, 0x18, 8, 1, &bench.of(0, 1)).await.good();
        bench.on(0x93, 0x08, 9, 1, &bench.of(0, 1)).await.good();
        let list = unmap_list(&[(10, 1)]);
        bench.send(1, &[0x42, 1, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list).await.good();
        let zeros = bench.of(0, 3);
        assert_eq!(bench.contents(8, 3).await, zeros);
        let all = bench.statuses(0, 9).await;
        assert_eq!(all[..4], [(0, 4, 0), (4, 2, 2), (6, 2, 0), (8, 3, 2)]);
        let anchored = bench.on(0x93, 0x10, 0, 1, &bench.of(0, 1)).await;
        assert_eq!(anchored.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_CDB)));
        let capacity = bench.send(1, &cdb16(0x9e, 0x10, 0, 32), &[]).await.good();
        assert_eq!(capacity[14], 0xc0, "LBPME, LBPRZ");
        let vital = bench.send(1, &[0x12, 1, 0xb2, 0, 255, 0], &[]).await.good();
        assert_eq!(vital[4..8], [0, 0xe6, 1, 0], "ANC_SUP, resource provisioned");
    });
}

#[test]
fn a_thick_unit_whose_disk_cannot_keep_space_has_no_unmap() {
    run(async {
        let plain = |unit: &mut LogicalUnit| {
            unit.thin = false;
            unit.disk = Arc::new(super::aborted::Hanging::new(unit.disk.clone()));
        };
        let bench = Bench::new(512, plain).await;
        let unknown = Some((SenseKey::IllegalRequest, asc::OPERATION_CODE));
        assert_eq!(bench.unmap(&[(0, 1)]).await.code(), unknown);
        let answer = bench.on(0x93, 8, 0, 1, &bench.of(0, 1)).await;
        assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_CDB)));
        assert_eq!(bench.status(8, 4).await, [(8, BLOCKS as u32 - 8, true)]);
        let writes = bench.file.writes();
        bench.on(0x93, 0, 0, 8, &bench.of(0, 1)).await.good();
        assert_eq!(bench.file.writes(), writes + 1);
        let capacity = bench.send(1, &cdb16(0x9e, 0x10, 0, 32), &[]).await.good();
        assert_eq!((capacity.len(), capacity[14]), (32, 0));
    });
}

#[test]
fn initiators_of_a_thin_unit_are_warned_before_the_room_below_it_ends() {
    const SET: u64 = 1 << 20;
    let space = |left| Space { available: left * SET, used: SET, warn_below: 10 * SET };
    let sense = [0x5a, 8, 0x1c, 0x02, 0, 0, 0, 0, 255, 0];
    let log = [0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 255, 0];
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.units.set_space(0, space(11)).expect("a unit");
        let page = bench.send(1, &sense, &[]).await.good();
        assert_eq!(page[8 + 16..], [0x80, 1, 0, 0, 0, 0, 0, 10]);
        assert_eq!(bench.send(1, &log, &[]).await.good()[8..12], [0, 0, 0, 11]);
        let vital = bench.send(1, &[0x12, 1, 0xb2, 0, 255, 0], &[]).await.good();
        assert_eq!(SET, 512 << vital[4], "THRESHOLD EXPONENT");
        bench.units.set_space(0, space(10)).expect("a unit");
        let answer = bench.send(1, &[0; 6], &[]).await;
        assert_eq!(answer.code(), Some((SenseKey::UnitAttention, asc::SPACE_LOW)));
        bench.units.set_space(0, space(9)).expect("a unit");
        bench.send(1, &[0; 6], &[]).await.good();
        assert!(bench.units.set_space(7, space(9)).is_err());
    });
    run(async {
        let bench = Bench::new(512, |unit| unit.thin = false).await;
        bench.units.set_space(0, space(0)).expect("a unit");
        bench.send(1, &[0; 6], &[]).await.good();
        let wrong = Some((SenseKey::IllegalRequest, asc::FIELD_IN_CDB));
        assert_eq!(bench.send(1, &sense, &[]).await.code(), wrong);
        assert_eq!(bench.send(1, &log, &[]).await.code(), wrong);
        assert_eq!(bench.send(1, &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 255, 0], &[]).await.good()[3], 1);
    });
}

#[test]
fn write_same_repeats_its_block_as_often_as_it_says() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.on(0x93, 0, 3, 5, &bench.of(7, 1)).await.good();
        assert_eq!(bench.contents(3, 6).await, [bench.of(7, 5), bench.of(0, 1)].concat());
        let answer = bench.on(0x93, 0, 0, 0, &bench.of(8, 1)).await;
        assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_CDB)), "WSNZ");
        // UNMAP with other data than zeros writes them, since unmapped blocks read as zeros.
        bench.on(0x93, 8, 3, 1, &bench.of(9, 1)).await.good();
        assert_eq!(bench.contents(3, 1).await, bench.of(9, 1));
        bench.on(0x93, 9, 3, 5, &[]).await.good();
        assert_eq!(bench.contents(3, 5).await, bench.of(0, 5));
        for length in [0, 256, 1024] {
            let answer = bench.on(0x93, 0, 0, 1, &vec![1; length]).await;
            assert!(answer.code().is_some(), "{length} bytes");
        }
        assert!(bench.on(0x93, 0x18, 0, 1, &bench.of(0, 1)).await.code().is_some(), "ANCHOR");
    });
}

fn overwrite(pattern: &[u8], times: u8) -> Vec<u8> {
    let mut list = vec![times, 0];
    list.extend((pattern.len() as u16).to_be_bytes());
    list.extend(pattern);
    list
}

#[test]
fn sanitize_leaves_the_pattern_or_nothing() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.on(0x8a, 0, 0, 8, &bench.of(1, 8)).await.good();
        // Three passes that turn the bits over end with the pattern as it is.
        let list = overwrite(&[0xaa, 0xbb], 0x80 | 3);
        bench.send(1, &[0x48, 1, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list).await.good();
        let expected: Vec<u8> = [0xaa, 0xbb].into_iter().cycle().take(512).collect();
        assert_eq!(bench.contents(BLOCKS - 1, 1).await, expected);
        bench.send(1, &[0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await.good();
        assert_eq!(bench.status(0, 4).await, [(0, BLOCKS as u32, false)]);
        bench.send(1, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await.good();
        let wrong = [
            overwrite(&[1], 0),
            overwrite(&[], 1),
            overwrite(&[1; 513], 1),
            vec![1, 0, 0, 9, 1, 1],
        ];
        for list in wrong {
            let [high, low] = (list.len() as u16).to_be_bytes();
            let answer = bench.send(1, &[0x48, 1, 0, 0, 0, 0, 0, high, low, 0], &list).await;
            assert_eq!(answer.code().map(|it| it.0), Some(SenseKey::IllegalRequest));
        }
        for byte in 2..7 {
            let mut cdb = [0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[byte] = 1;
            assert!(bench.send(1, &cdb, &[]).await.code().is_some());
        }
        assert!(bench.send(1, &[0x48, 2, 0, 0, 0, 0, 0, 0, 8, 0], &[0; 8]).await.code().is_some());
    });
}

#[test]
fn sanitize_goes_on_through_resets_and_is_told_meanwhile() {
    run(async {
        // So slow that it does not end by itself in this test.
        let bench = Bench::new(512, |unit| unit.sanitize_rate = 1).await;
        let list = overwrite(&[0], 1);
        bench.send(1, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &list).await.good();
        let busy = Some((SenseKey::NotReady, asc::SANITIZE_IN_PROGRESS));
        bench.units.reset_unit(&nexus(1), Lun([0; 8]));
        bench.units.reset_target(&nexus(1));
        bench.calm(1).await;
        for cdb in [vec![0; 6], cdb16(0x88, 0, 0, 1), vec![0x1b, 0, 0, 0, 0, 0]] {
            let answer = bench.send(1, &cdb, &[]).await;
            assert_eq!(answer.code(), busy);
            assert!(answer.end.sense.is_some_and(|it| it.specific.is_some()), "how far it is");
        }
        bench.send(1, &[0x12, 0, 0, 0, 36, 0], &[]).await.good();
        let sense = bench.send(1, &[3, 0, 0, 0, 18, 0], &[]).await.good();
        assert_eq!(sense[12..14], [0x04, 0x1b]);
        assert!(matches!(bench.units.remove(0).await, Err(UnitsError::Sanitizing(0))));
    });
}

/// A set with the unit of the bench, as a process finds it that begins with this store.
async fn begun_again(
    store: &Arc<MemStore>,
    disk: &Arc<dyn Disk>,
    change: impl FnOnce(&mut LogicalUnit),
) -> Bench {
    let options = UnitsOptions { store: Some(store.clone()), ..UnitsOptions::default() };
    let units = Units::new(options);
    let mut unit = LogicalUnit::new(disk.clone(), [7; 16]);
    unit.sanitize_rate = u64::MAX;
    change(&mut unit);
    units.add(0, unit).await.expect("there is none");
    units.attach(&nexus(1));
    let bench = Bench { units, file: Arc::default(), block: 512 };
    bench.calm(1).await;
    bench
}

async fn ready(bench: &Bench) {
    while bench.send(1, &[0; 6], &[]).await.code() == BUSY {
        tokio::task::yield_now().await;
    }
}

const BUSY: Option<(SenseKey, u16)> = Some((SenseKey::NotReady, asc::SANITIZE_IN_PROGRESS));
const SANITIZE: Key = ([7; 16], Kept::Sanitize);

fn kept(store: &MemStore) -> Vec<u8> {
    store.kept.lock().expect("no panic").get(&SANITIZE).cloned().unwrap_or_default()
}

#[test]
fn a_sanitize_that_a_process_left_is_carried_out_by_the_next() {
    run(async {
        let (file, disk) = disk(BLOCKS, 512).await;
        file.write_at(0, &vec![9; (BLOCKS * 512) as usize]).await.expect("it fits");
        let store = Arc::new(MemStore::default());
        let slow = |unit: &mut LogicalUnit| unit.sanitize_rate = 1;
        let first = begun_again(&store, &disk, slow).await;
        let list = overwrite(&[0xab], 2);
        first.send(1, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &list).await.good();
        assert!(!kept(&store).is_empty(), "it is kept before it is acknowledged");
        // The process ends: it stops where it is.
        first.units.close(0).await.expect("it is there");
        let kept_then = kept(&store);
        assert!(!kept_then.is_empty());
        // One that is as slow shows that the unit is not ready from the first command on.
        let second = begun_again(&store, &disk, slow).await;
        assert_eq!(second.send(1, &cdb16(0x88, 0, 0, 1), &[]).await.code(), BUSY);
        assert!(second.units.list()[0].sanitizing);
        second.units.close(0).await.expect("it is there");
        let third = begun_again(&store, &disk, |_| {}).await;
        ready(&third).await;
        let all = third.send(1, &cdb16(0x88, 0, 0, BLOCKS as u32), &[]).await.good();
        assert!(all.iter().all(|byte| *byte == 0xab));
        assert!(kept(&store).is_empty(), "it is not carried out again");
        third.send(1, &cdb16(0x8a, 0, 0, 1), &third.of(1, 1)).await.good();
        let fourth = begun_again(&store, &disk, |_| {}).await;
        assert_eq!(fourth.send(1, &cdb16(0x88, 0, 0, 1), &[]).await.good(), fourth.of(1, 1));
    });
}

#[test]
fn a_sanitize_that_failed_has_failed_until_somebody_says_so() {
    run(async {
        let (file, disk) = disk(BLOCKS, 512).await;
        let store = Arc::new(MemStore::default());
        let failed = Some((SenseKey::MediumError, asc::SANITIZE_FAILED));
        {
            let whole: Arc<dyn Disk> = Arc::new(
                RawDisk::open(Arc::new(file.read_only_copy()), 512).await.expect("a disk"),
            );
            // What was begun on a disk that cannot be written by now has failed.
            let begun = begun_again(&store, &disk, |unit| unit.sanitize_rate = 1).await;
            begun.send(1, &[0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await;
            begun.units.close(0).await.expect("it is there");
            store.kept.lock().expect("no panic").insert(SANITIZE, vec![1, 0, 0]);
            let now = begun_again(&store, &whole, |_| {}).await;
            assert_eq!(now.send(1, &[0; 6], &[]).await.code(), failed);
        }
        store.kept.lock().expect("no panic").insert(SANITIZE, vec![1, 1, 0]);
        for _ in 0..2 {
            let now = begun_again(&store, &disk, |_| {}).await;
            for cdb in [vec![0; 6], cdb16(0x88, 0, 0, 1)] {
                assert_eq!(now.send(1, &cdb, &[]).await.code(), failed);
            }
        }
        let now = begun_again(&store, &disk, |_| {}).await;
        // As long as that cannot be kept it has not happened.
        store.broken.store(true, std::sync::atomic::Ordering::SeqCst);
        let refused = now.send(1, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await;
        assert_eq!(refused.code().map(|it| it.0), Some(SenseKey::HardwareError));
        assert_eq!(now.send(1, &[0; 6], &[]).await.code(), failed);
        store.broken.store(false, std::sync::atomic::Ordering::SeqCst);
        now.send(1, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await.good();
        now.send(1, &[0; 6], &[]).await.good();
        begun_again(&store, &disk, |_| {}).await.send(1, &[0; 6], &[]).await.good();
    });
}

#[test]
fn a_sanitize_that_cannot_be_kept_is_refused_and_damage_is_named() {
    run(async {
        let (file, disk) = disk(BLOCKS, 512).await;
        file.write_at(0, &[9; 512]).await.expect("it fits");
        let store = Arc::new(MemStore::default());
        let bench = begun_again(&store, &disk, |_| {}).await;
        store.broken.store(true, std::sync::atomic::Ordering::SeqCst);
        let refused = bench.send(1, &[0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0], &[]).await;
        assert_eq!(refused.code().map(|it| it.0), Some(SenseKey::HardwareError));
        assert_eq!(bench.send(1, &cdb16(0x88, 0, 0, 1), &[]).await.good(), bench.of(9, 1));
        store.broken.store(false, std::sync::atomic::Ordering::SeqCst);
        store.kept.lock().expect("no panic").insert(SANITIZE, vec![7]);
        let options = UnitsOptions { store: Some(store.clone()), ..UnitsOptions::default() };
        let added = Units::new(options).add(0, LogicalUnit::new(disk, [7; 16])).await;
        assert!(matches!(added, Err(UnitsError::DamagedSanitize(0))));
    });
}
