//! Space that is given back, blocks that are wiped.

use super::*;
use crate::asc;

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

    /// Address, length and whether there is space, of each extent.
    async fn status(&self, lba: u64, room: u32) -> Vec<(u64, u32, bool)> {
        let mut cdb = cdb16(0x9e, 0x12, lba, 8 + 16 * room);
        cdb[14] = 0;
        let bytes = self.send(1, &cdb, &[]).await.good();
        assert_eq!(bytes.len() as u32, u32::from_be_bytes(bytes[..4].try_into().expect("4")) + 4);
        let extent = |it: &[u8]| {
            let lba = u64::from_be_bytes(it[..8].try_into().expect("8"));
            (lba, u32::from_be_bytes(it[8..12].try_into().expect("4")), it[12] == 0)
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
fn a_thick_unit_has_no_unmap_and_keeps_its_space() {
    run(async {
        let bench = Bench::new(512, |unit| unit.thin = false).await;
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
