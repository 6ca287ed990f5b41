//! Reading and writing.

use super::*;
use crate::asc;

#[test]
fn what_is_written_is_read_in_every_form_on_both_sector_sizes() {
    run(async {
        for block in [512, 4096] {
            let bench = Bench::new(block, |_| {}).await;
            let data = bench.of(0x5a, 3);
            let ten = |code: u8| [code, 0, 0, 0, 0, 9, 0, 0, 3, 0];
            assert_eq!(
                bench.send(1, &ten(0x2a), &data).await.end.data_out_wanted,
                data.len() as u64
            );
            for cdb in [
                ten(0x28).to_vec(),
                vec![0x08, 0, 0, 9, 3, 0],
                vec![0xa8, 0, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0],
                cdb16(0x88, 0x08, 9, 3),
            ] {
                assert_eq!(bench.send(1, &cdb, &[]).await.good(), data);
            }
            for cdb in [
                vec![0x0a, 0, 0, 9, 3, 0],
                vec![0xaa, 0, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0],
                cdb16(0x8a, 0, 9, 3),
                ten(0x2e).to_vec(),
                cdb16(0x8e, 2, 9, 3),
            ] {
                let other = bench.of(cdb[0], 3);
                bench.send(1, &cdb, &other).await.good();
                assert_eq!(bench.contents(9, 3).await, other);
            }
        }
    });
}

#[test]
fn a_read_is_appended_to_what_is_there() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.on(0x8a, 0, 0, 1, &bench.of(1, 1)).await.good();
        let mut data = vec![9, 9];
        let cdb = cdb16(0x88, 0, 0, 1);
        let lun = Lun([0; 8]);
        let attribute = TaskAttribute::Untagged;
        let request =
            Request { lun, cdb: &cdb, data_out: &Bytes::new(), attribute, rank: Rank::MIDDLE };
        bench.units.execute(&nexus(1), request, &mut data).await;
        assert_eq!((data.len(), &data[..3]), (514, &[9, 9, 1][..]));
    });
}

#[test]
fn blocks_that_are_not_there_are_out_of_range_for_every_command() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        for code in [0x88, 0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93] {
            for (lba, blocks) in [(BLOCKS + 1, 0), (BLOCKS, 1), (u64::MAX, 1), (BLOCKS - 1, 2)] {
                let answer = bench.on(code, 0, lba, blocks, &bench.of(0, 1)).await;
                let expected = Some((SenseKey::IllegalRequest, asc::LBA_OUT_OF_RANGE));
                assert_eq!(answer.code(), expected, "{code:02x} at {lba}");
            }
        }
        assert_eq!(bench.on(0x88, 0, BLOCKS, 0, &[]).await.good(), []);
    });
}

#[test]
fn a_write_takes_what_came_and_says_what_it_wants() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.on(0x8a, 0, 0, 2, &bench.of(b'a', 2)).await.good();
        let one = bench.on(0x8a, 0, 0, 2, &bench.of(b'b', 1)).await;
        assert_eq!((one.status(), one.end.data_out_wanted), (Status::Good, 1024));
        assert_eq!(bench.contents(0, 2).await, [bench.of(b'b', 1), bench.of(b'a', 1)].concat());
        let long = bench.on(0x8a, 0, 0, 1, &[b'c'; 10000]).await;
        assert_eq!((long.status(), long.end.data_out_wanted), (Status::Good, 512));
        assert_eq!(bench.contents(1, 1).await, bench.of(b'a', 1));
        let part = bench.on(0x8a, 0, 0, 1, &[b'd'; 200]).await;
        assert_eq!((part.status(), part.end.data_out_wanted), (Status::Good, 512));
        let expected = [vec![b'd'; 200], vec![b'c'; 312]].concat();
        assert_eq!(bench.contents(0, 1).await, expected);
        let part = bench.on(0x8b, 0, 0, 1, &[0xff; 200]).await;
        assert_eq!(part.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_INFORMATION_UNIT)));
    });
}

#[test]
fn fua_and_a_missing_cache_flush_and_nothing_else_does() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        let data = bench.of(1, 1);
        bench.on(0x8a, 0, 0, 1, &data).await.good();
        assert_eq!(bench.file.flushes(), 0);
        bench.on(0x8a, 0x08, 0, 1, &data).await.good();
        assert_eq!(bench.file.flushes(), 1);
        bench.on(0x91, 0, 0, 0, &[]).await.good();
        assert_eq!(bench.file.flushes(), 2);
        // WCE off: the change itself empties the cache.
        let mut page = bench.send(1, &[0x1a, 8, 8, 0, 255, 0], &[]).await.good();
        page[0] = 0;
        page[4 + 2] = 0;
        bench.send(1, &[0x15, 0x10, 0, 0, page.len() as u8, 0], &page).await.good();
        assert_eq!(bench.file.flushes(), 3);
        bench.on(0x8a, 0, 0, 1, &data).await.good();
        assert_eq!(bench.file.flushes(), 4);
        assert_eq!(bench.calm(2).await, [asc::MODE_CHANGED]);
    });
}

#[test]
fn compare_and_write_says_where_it_differs_and_writes_nothing_then() {
    run(async {
        let bench = Bench::new(512, |_| {}).await;
        bench.on(0x8a, 0, 4, 2, &bench.of(b'A', 2)).await.good();
        let mut data = bench.of(b'A', 4);
        data[1024..].fill(b'B');
        data[700] = b'C';
        let answer = bench.on(0x89, 0, 4, 2, &data).await;
        assert_eq!(answer.code(), Some((SenseKey::Miscompare, asc::MISCOMPARE)));
        assert_eq!(answer.end.sense.and_then(|it| it.information), Some(700));
        assert_eq!(answer.end.data_out_wanted, 2048);
        assert_eq!(bench.contents(4, 2).await, bench.of(b'A', 2));
        data[700] = b'A';
        bench.on(0x89, 0, 4, 2, &data).await.good();
        assert_eq!(bench.contents(4, 2).await, bench.of(b'B', 2));
        // Data of another size than the command asks for.
        for blocks in [1, 3] {
            let answer = bench.on(0x89, 0, 4, blocks, &data).await;
            assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::FIELD_IN_CDB)));
        }
    });
}

#[test]
fn or_write_verify_and_atomic_do_what_they_say() {
    run(async {
        let bench = Bench::new(512, |unit| unit.atomic_blocks = 512).await;
        bench.on(0x8a, 0, 0, 2, &bench.of(0xa5, 2)).await.good();
        bench.on(0x8b, 0, 0, 2, &bench.of(0x5a, 2)).await.good();
        assert_eq!(bench.contents(0, 2).await, bench.of(0xff, 2));
        bench.on(0x8f, 0, 0, 2, &[]).await.good();
        bench.on(0x8f, 2, 0, 2, &bench.of(0xff, 2)).await.good();
        bench.on(0x8f, 6, 0, 2, &bench.of(0xff, 1)).await.good();
        for (flags, data) in [(2, bench.of(0xfe, 2)), (6, bench.of(0xfe, 1))] {
            let answer = bench.on(0x8f, flags, 0, 2, &data).await;
            assert_eq!(answer.code(), Some((SenseKey::Miscompare, asc::MISCOMPARE)));
        }
        assert!(bench.on(0x8f, 4, 0, 1, &[]).await.code().is_some(), "BYTCHK 2 is reserved");
        let mut atomic = cdb16(0x9c, 0, 0, 256);
        bench.send(1, &atomic, &bench.of(3, 256)).await.good();
        assert_eq!(bench.contents(255, 1).await, bench.of(3, 1));
        atomic[11] = 1;
        assert!(bench.send(1, &atomic, &bench.of(3, 256)).await.code().is_some(), "a boundary");
    });
}

#[test]
fn a_protected_unit_reads_and_refuses_every_write() {
    run(async {
        let bench = Bench::new(512, |unit| unit.read_only = true).await;
        bench.contents(0, 1).await;
        // There is nothing to flush, and so nothing that could be refused.
        bench.on(0x91, 0, 0, 0, &[]).await.good();
        bench.on(0x88, 0x08, 0, 1, &[]).await.good();
        assert_eq!(bench.file.flushes(), 0);
        let zeros = bench.of(0, 2);
        for code in [0x8a, 0x8b, 0x8e, 0x89, 0x93] {
            let length = if code == 0x89 { 1024 } else { 512 };
            let answer = bench.on(code, 0, 0, 1, &zeros[..length]).await;
            assert_eq!(
                answer.code(),
                Some((SenseKey::DataProtect, asc::WRITE_PROTECTED)),
                "{code:x}"
            );
        }
        let sense = bench.send(1, &[0x1a, 8, 0x3f, 0, 255, 0], &[]).await.good();
        assert_eq!(sense[2], 0x90);
    });
}

/// Every nexus tries to make a counter one more than it found it: no step is lost.
#[test]
fn compare_and_write_is_one_step_beside_plain_writes() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let bench = Arc::new(Bench::new(512, |_| {}).await);
        let mut tasks = tokio::task::JoinSet::new();
        for id in 1..=4u64 {
            let bench = Arc::clone(&bench);
            tasks.spawn(async move {
                let mut done = 0u64;
                while done < 50 {
                    let found = bench.send(id, &cdb16(0x88, 0, 0, 1), &[]).await.good();
                    let count = u64::from_be_bytes(found[..8].try_into().expect("eight")) + 1;
                    let mut data = found.clone();
                    data.extend(&found);
                    data[512..520].copy_from_slice(&count.to_be_bytes());
                    let answer = bench.send(id, &cdb16(0x89, 0, 0, 1), &data).await;
                    done += u64::from(answer.status() == Status::Good);
                    // Beside it, where nobody counts.
                    bench.send(id, &cdb16(0x8a, 0, id, 1), &found).await.good();
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        assert_eq!(bench.contents(0, 1).await[..8], 200u64.to_be_bytes());
    });
}
