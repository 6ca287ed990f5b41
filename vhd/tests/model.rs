//! An image behaves like an array of bytes, whatever is done to it and however often it is
//! opened anew.

mod common;

use std::sync::Arc;

use block_io::{
    Disk,
    testing::{MemFile, Rng},
};
use common::{MIB, assert_clean, open, read_all};
use proptest::prelude::*;
use vhd::vhdx::{CreateOptions, create};

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
    Read(u64, u64),
    Flush,
    Reopen,
    Drop,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Places and lengths in units of 1/4 MiB and of sectors mixed, so that whole blocks happen.
    let place = prop_oneof![(0u64..60).prop_map(|q| q << 18), any::<u32>().prop_map(u64::from)];
    let len = prop_oneof![(1u64..20).prop_map(|q| q << 18), (1u64..200_000)];
    let op = prop_oneof![
        4 => (place.clone(), len.clone(), any::<u64>()).prop_map(|(a, b, c)| Op::Write(a, b, c)),
        2 => (place.clone(), len.clone()).prop_map(|(a, b)| Op::Zero(a, b)),
        2 => (place.clone(), len.clone()).prop_map(|(a, b)| Op::Discard(a, b)),
        2 => (place, len).prop_map(|(a, b)| Op::Read(a, b)),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::Drop),
    ];
    proptest::collection::vec(op, 1..40)
}

fn image() -> impl Strategy<Value = CreateOptions> {
    (1u64..14 * MIB, 0u32..3, any::<bool>(), any::<bool>()).prop_map(|(size, shift, fixed, big)| {
        let logical_sector = if big { 4096 } else { 512 };
        CreateOptions {
            fixed,
            block_size: (MIB as u32) << shift,
            logical_sector,
            ..CreateOptions::new(size.next_multiple_of(4096))
        }
    })
}

async fn behaves(options: CreateOptions, ops: Vec<Op>) {
    let file = Arc::new(MemFile::new());
    create(file.clone(), &options).await.unwrap();
    let mut disk = open(file.clone()).await;
    let mut model = vec![0u8; options.size as usize];
    let sector = u64::from(options.logical_sector);
    let fit = |at: u64, len: u64| {
        let at = at % options.size / sector * sector;
        (at, len.next_multiple_of(sector).min(options.size - at))
    };
    for op in ops {
        match op {
            Op::Write(at, len, seed) => {
                let (at, len) = fit(at, len);
                let range = at as usize..(at + len) as usize;
                Rng::new(seed).fill(&mut model[range.clone()]);
                disk.write_at(at, &model[range]).await.unwrap();
            }
            Op::Zero(at, len) => {
                let (at, len) = fit(at, len);
                model[at as usize..(at + len) as usize].fill(0);
                disk.write_zeroes(at, len).await.unwrap();
            }
            Op::Discard(at, len) => {
                let (at, len) = fit(at, len);
                disk.discard(at, len).await.unwrap();
                let mut now = vec![0xee; len as usize];
                disk.read_at(at, &mut now).await.unwrap();
                let old = &mut model[at as usize..(at + len) as usize];
                for (now, old) in now.chunks(512).zip(old.chunks(512)) {
                    assert!(now == old || now.iter().all(|b| *b == 0), "neither old nor zero");
                }
                old.copy_from_slice(&now);
            }
            Op::Read(at, len) => {
                let (at, len) = fit(at, len);
                let mut now = vec![0xee; len as usize];
                disk.read_at(at, &mut now).await.unwrap();
                assert!(now == model[at as usize..(at + len) as usize], "at {at} for {len}");
            }
            Op::Flush => disk.flush().await.unwrap(),
            Op::Reopen => {
                disk.close().await.unwrap();
                assert_clean(file.clone()).await;
                disk = open(file.clone()).await;
            }
            // As a crash of the program after a flush: the log is replayed.
            Op::Drop => {
                disk.flush().await.unwrap();
                drop(disk);
                assert_clean(file.clone()).await;
                disk = open(file.clone()).await;
            }
        }
    }
    assert!(read_all(&disk).await == model);
    disk.close().await.unwrap();
    let report = assert_clean(file.clone()).await;
    assert!(!report.log_pending);
    let disk = common::open_read_only(file).await;
    assert!(read_all(&disk).await == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn an_image_is_an_array_of_bytes(options in image(), ops in ops()) {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(behaves(options, ops));
    }
}
