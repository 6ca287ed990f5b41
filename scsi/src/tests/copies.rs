//! Copies between units, and tokens.

use super::*;
use crate::{asc, inquiry::naa};

/// A second unit, 1, with blocks of the same size.
async fn two(block: u32) -> Bench {
    let bench = Bench::new(block, |_| {}).await;
    let (_, other) = disk(BLOCKS, block).await;
    bench.units.add(1, LogicalUnit::new(other, [8; 16])).await.expect("room");
    for id in 1..=4 {
        bench.calm(id).await;
        bench.send_to(1, id, &[0; 6], &[]).await;
        bench.send_to(1, id, &[0; 6], &[]).await;
    }
    bench
}

fn target(identity: [u8; 16]) -> Vec<u8> {
    let mut out = vec![0xe4, 0, 0, 0, 1, 3, 0, 8];
    out.extend(naa(&identity));
    out.resize(32, 0);
    out
}

fn segment(source: u16, destination: u16, blocks: u16, from: u64, to: u64) -> Vec<u8> {
    let mut out = vec![0x02, 0, 0, 0x18];
    out.extend(source.to_be_bytes());
    out.extend(destination.to_be_bytes());
    out.extend([0, 0]);
    out.extend(blocks.to_be_bytes());
    out.extend(from.to_be_bytes());
    out.extend(to.to_be_bytes());
    out
}

fn extended(targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (targets, segments) = (targets.concat(), segments.concat());
    let mut out = vec![1, 0];
    out.extend((targets.len() as u16).to_be_bytes());
    out.extend([0; 4]);
    out.extend((segments.len() as u32).to_be_bytes());
    out.extend([0; 4]);
    out.extend(targets);
    out.extend(segments);
    out
}

fn third_party(action: u8, list: u32, length: usize) -> Vec<u8> {
    let mut cdb = vec![0x83, action, 0, 0, 0, 0];
    cdb.extend(list.to_be_bytes());
    cdb.extend((length as u32).to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

impl Bench {
    async fn copy(&self, list: &[u8]) -> Answer {
        self.send(1, &third_party(0, 0, list.len()), list).await
    }

    async fn of_unit(&self, lun: u8, lba: u64, blocks: u32) -> Vec<u8> {
        self.send_to(lun, 1, &cdb16(0x88, 0, lba, blocks), &[]).await.good()
    }
}

#[test]
fn segments_are_copied_between_units_and_within_one() {
    run(async {
        for block in [512, 4096] {
            let bench = two(block).await;
            let data: Vec<u8> = (0..600 * block).map(|n| (n / block) as u8).collect();
            bench.on(0x8a, 0, 0, 600, &data).await.good();
            let targets = [target([7; 16]), target([8; 16])];
            // To the other unit; and over itself, where the ranges overlap.
            let list = extended(&targets, &[segment(0, 1, 600, 0, 5), segment(0, 0, 600, 0, 100)]);
            bench.copy(&list).await.good();
            assert_eq!(bench.of_unit(1, 5, 600).await, data);
            assert_eq!(bench.of_unit(0, 100, 600).await, data);
            let status =
                bench.send(1, &[0x84, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[]).await;
            let bytes = (1200 * block).to_be_bytes();
            let expected = [&[0, 0, 0, 8, 1, 0, 2, 0][..], &bytes].concat();
            assert_eq!(status.good(), expected);
        }
    });
}

#[test]
fn a_copy_with_a_long_identifier_and_offsets_in_bytes_is_carried_out() {
    run(async {
        let bench = two(512).await;
        let data: Vec<u8> = (0..16 * 512).map(|n| (n / 512) as u8).collect();
        bench.on(0x8a, 0, 0, 16, &data).await.good();
        // Block 4 and two blocks more, to block 9 and one more: ten blocks, counted in bytes.
        let mut segment = vec![0x0a, 0, 0, 0x1c, 0, 0, 0, 1];
        segment.extend((10u32 * 512).to_be_bytes());
        segment.extend(4u64.to_be_bytes());
        segment.extend(9u64.to_be_bytes());
        segment.extend(1024u16.to_be_bytes());
        segment.extend(512u16.to_be_bytes());
        let targets = [target([7; 16]), target([8; 16])].concat();
        let mut list = vec![1, 0, 0, 0x20];
        list.resize(16, 0);
        list.extend([0xff, 0, 0, 0, 0, 0, 0, 77]);
        list.resize(42, 0);
        list.extend((targets.len() as u16).to_be_bytes());
        list.extend((segment.len() as u16).to_be_bytes());
        list.extend([0, 0]);
        list.extend(targets);
        list.extend(&segment);
        bench.send(1, &third_party(1, 0, list.len()), &list).await.good();
        assert_eq!(bench.of_unit(1, 10, 10).await, data[6 * 512..]);
        let status = [0x84, 5, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let bytes = bench.send(1, &status, &[]).await.good();
        assert_eq!(bytes[..6], [0, 0, 0, 28, 1, 1]);
        assert_eq!(bytes[16..26], [0, 0, 0, 0, 0, 0, 0x14, 0, 0, 1]);
        // Of an identifier that was not used nothing is known, nor to another nexus.
        assert!(bench.send(2, &status, &[]).await.code().is_some());
        // What is no whole number of blocks cannot be copied.
        let last = list.len() - 1;
        list[last] = 1;
        let refused = bench.send(1, &third_party(1, 0, list.len()), &list).await;
        assert_eq!(refused.code(), Some((SenseKey::CopyAborted, asc::NONE)));
        let bytes = bench.send(1, &status, &[]).await.good();
        assert_eq!((bytes[5], bytes[12], bytes[14]), (2, 2, 18), "how it failed");
    });
}

#[test]
fn what_is_wrong_with_a_copy_is_said() {
    run(async {
        let bench = two(512).await;
        let own = || target([7; 16]);
        let illegal = |code| Some((SenseKey::IllegalRequest, code));
        let aborted = |code| Some((SenseKey::CopyAborted, code));
        let one = segment(0, 0, 8, 0, 16);
        let cases = [
            (
                extended(&vec![own(); 17], std::slice::from_ref(&one)),
                illegal(asc::TOO_MANY_TARGETS),
            ),
            (extended(&[own()], &vec![one.clone(); 65]), illegal(asc::TOO_MANY_SEGMENTS)),
            (
                extended(&vec![own(); 17], &vec![one.clone(); 65]),
                illegal(asc::PARAMETER_LIST_LENGTH),
            ),
            (extended(&[own()], &[segment(0, 1, 8, 0, 16)]), aborted(asc::UNREACHABLE_COPY_TARGET)),
            (extended(&[own()], &[segment(0, 0, 8, 0, BLOCKS - 1)]), aborted(asc::NONE)),
            (
                extended(&[target([9; 16])], std::slice::from_ref(&one)),
                aborted(asc::COPY_TARGET_NOT_REACHABLE),
            ),
            (extended(&[[&[0xe0][..], &own()[1..]].concat()], &[one]), illegal(asc::TARGET_TYPE)),
            (extended(&[own()], &[vec![3, 0, 0, 0x10]]), illegal(asc::SEGMENT_TYPE)),
        ];
        for (list, expected) in cases {
            assert_eq!(bench.copy(&list).await.code(), expected);
        }
        let whole = extended(&[own()], &[segment(0, 0, 8, 0, 16)]);
        for end in 1..whole.len() {
            let answer = bench.copy(&whole[..end]).await;
            assert_eq!(answer.code(), illegal(asc::PARAMETER_LIST_LENGTH), "{end} bytes");
        }
        bench.copy(&[]).await.good();
    });
}

#[test]
fn a_copy_respects_reservations_of_others() {
    run(async {
        let bench = two(512).await;
        bench.send_to(1, 2, &[0x16, 0, 0, 0, 0, 0], &[]).await.good();
        let list = extended(&[target([7; 16]), target([8; 16])], &[segment(0, 1, 1, 0, 0)]);
        assert_eq!(bench.copy(&list).await.status(), Status::ReservationConflict);
    });
}

fn ranges(list: &[(u64, u32)]) -> Vec<u8> {
    let mut out = ((16 * list.len()) as u16).to_be_bytes().to_vec();
    for (lba, blocks) in list {
        out.extend(lba.to_be_bytes());
        out.extend(blocks.to_be_bytes());
        out.extend([0; 4]);
    }
    out
}

impl Bench {
    async fn populate(&self, list: &[(u64, u32)]) -> Answer {
        let mut bytes = vec![0; 14];
        bytes.extend(ranges(list));
        self.send(1, &third_party(0x10, 77, bytes.len()), &bytes).await
    }

    /// Status and, of a command that made one, the token.
    async fn information(&self) -> (u8, u64, Vec<u8>) {
        let cdb = [0x84, 7, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        let bytes = self.send(1, &cdb, &[]).await.good();
        let count = u64::from_be_bytes(bytes[16..24].try_into().expect("8"));
        let behind = 32 + usize::from(bytes[13]);
        (bytes[5], count, bytes.get(behind + 6..).unwrap_or_default().to_vec())
    }

    async fn use_token(&self, lun: u8, token: &[u8], skip: u64, list: &[(u64, u32)]) -> Answer {
        let mut bytes = vec![0; 8];
        bytes.extend(skip.to_be_bytes());
        bytes.extend(token);
        bytes.extend([0; 6]);
        bytes.extend(ranges(list));
        self.send_to(lun, 1, &third_party(0x11, 77, bytes.len()), &bytes).await
    }
}

#[test]
fn a_token_stands_for_its_data_until_they_change() {
    run(async {
        let bench = two(512).await;
        let data: Vec<u8> = (0..40 * 512).map(|n| (n / 512) as u8).collect();
        bench.on(0x8a, 0, 0, 40, &data).await.good();
        bench.populate(&[(30, 10), (0, 10)]).await.good();
        let (status, count, token) = bench.information().await;
        assert_eq!((status, count, token.len()), (1, 20, 512));
        bench.use_token(1, &token, 5, &[(100, 2), (200, 20)]).await.good();
        let (status, count, _) = bench.information().await;
        assert_eq!((status, count), (3, 15), "five fewer than there was room for");
        assert_eq!(bench.of_unit(1, 100, 2).await, data[35 * 512..37 * 512]);
        let rest = [&data[37 * 512..], &data[..10 * 512]].concat();
        assert_eq!(bench.of_unit(1, 200, 13).await, rest);
        // What changes beside the token does not matter.
        bench.on(0x8a, 0, 10, 1, &bench.of(9, 1)).await.good();
        bench.use_token(1, &token, 0, &[(0, 1)]).await.good();
        bench.on(0x8a, 0, 39, 1, &bench.of(9, 1)).await.good();
        let answer = bench.use_token(1, &token, 0, &[(0, 1)]).await;
        assert_eq!(answer.code(), Some((SenseKey::IllegalRequest, asc::TOKEN_REVOKED)));
    });
}

#[test]
fn tokens_that_are_none_are_refused_and_the_one_of_zeros_is_known() {
    run(async {
        let bench = two(512).await;
        bench.on(0x8a, 0, 0, 8, &bench.of(1, 8)).await.good();
        bench.populate(&[(0, 4)]).await.good();
        let (_, _, token) = bench.information().await;
        for at in [0, 6, 15, 130] {
            let mut forged = token.clone();
            forged[at] ^= 0x40;
            assert!(bench.use_token(1, &forged, 0, &[(0, 1)]).await.code().is_some(), "{at}");
        }
        let mut zero = vec![0xff, 0xff, 0, 1, 0, 0, 1, 0xf8];
        zero.resize(512, 0);
        bench.use_token(0, &zero, 0, &[(0, 2), (4, 1)]).await.good();
        assert_eq!(
            bench.contents(0, 5).await,
            [bench.of(0, 2), bench.of(1, 2), bench.of(0, 1)].concat()
        );
        for wrong in [&[(0, 4), (2, 4)][..], &[(BLOCKS, 1)], &[]] {
            assert!(bench.populate(wrong).await.code().is_some());
        }
    });
}

#[test]
fn tokens_have_a_bound() {
    run(async {
        let bench = two(512).await;
        let mut made = 0;
        while bench.populate(&[(0, 1)]).await.status() == Status::Good {
            made += 1;
            assert!(made <= 1024);
        }
        assert_eq!(made, 1024);
        // A change voids all of them, and there is room again.
        bench.on(0x8a, 0, 0, 1, &bench.of(1, 1)).await.good();
        bench.populate(&[(0, 1)]).await.good();
    });
}

/// Another target of the same program.
struct Another(Units);

impl ForeignTokens for Another {
    fn find(&self, token: &[u8]) -> Option<Arc<dyn TokenData>> {
        self.0.token(token)
    }
}

/// A target with blocks of a size that knows the tokens of another.
async fn beside(other: &Bench, block: u32) -> Bench {
    let foreign: Option<Arc<dyn ForeignTokens>> = Some(Arc::new(Another(other.units.clone())));
    Bench::with(block, UnitsOptions { foreign, ..UnitsOptions::default() }, |_| {}).await
}

#[test]
fn a_token_of_another_target_stands_for_its_data_in_blocks_of_any_size() {
    run(async {
        let small = Bench::new(512, |_| {}).await;
        let data: Vec<u8> = (0..40 * 512).map(|n| (n / 100 % 251) as u8).collect();
        small.on(0x8a, 0, 0, 40, &data).await.good();
        small.populate(&[(3, 20), (30, 3)]).await.good();
        let (_, _, token) = small.information().await;
        let stands = [&data[3 * 512..23 * 512], &data[30 * 512..33 * 512]].concat();

        let large = beside(&small, 4096).await;
        large.use_token(0, &token, 0, &[(9, 1), (5, 3)]).await.good();
        let (status, count, _) = large.information().await;
        assert_eq!((status, count), (3, 2), "of a block that is not all there nothing is written");
        assert_eq!(large.contents(9, 1).await, stands[..4096]);
        assert_eq!(large.contents(5, 1).await, stands[4096..8192]);
        assert_eq!(large.contents(6, 2).await, large.of(0, 2));

        // Parts of larger blocks, across the border of two ranges.
        large.populate(&[(9, 1), (5, 1)]).await.good();
        let (_, _, token_of_large) = large.information().await;
        let back = beside(&large, 512).await;
        back.use_token(0, &token_of_large, 3, &[(100, 7), (7, 1)]).await.good();
        assert_eq!(back.contents(100, 7).await, stands[3 * 512..10 * 512]);
        assert_eq!(back.contents(7, 1).await, stands[10 * 512..11 * 512]);

        // What those who are no initiators of it may not read, and what has changed.
        small.send(2, &[0x16, 0, 0, 0, 0, 0], &[]).await.good();
        let answer = large.use_token(0, &token, 0, &[(0, 1)]).await;
        assert_eq!(answer.status(), Status::ReservationConflict);
        small.send(2, &[0x17, 0, 0, 0, 0, 0], &[]).await.good();
        small.on(0x8a, 0, 31, 1, &small.of(1, 1)).await.good();
        let answer = large.use_token(0, &token, 0, &[(0, 1)]).await;
        assert_eq!(answer.code().map(|(key, _)| key), Some(SenseKey::IllegalRequest));
    });
}
