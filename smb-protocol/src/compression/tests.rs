//! What is compressed comes back, and what lies is told from what does not.

use proptest::prelude::*;

use super::*;
use crate::header::{HEADER_LEN, PROTOCOL_COMPRESSED, PROTOCOL_SMB2};

const LARGEST: usize = 1 << 20;
const PATTERN: CompressionAlgorithm = CompressionAlgorithm::PATTERN_V1;

fn agreed(by: CompressionAlgorithm, chained: bool) -> Compression {
    Compression::agreed(&[by], &[by, PATTERN], chained).unwrap()
}

/// Both forms with each algorithm.
fn all() -> impl Iterator<Item = Compression> {
    CompressionAlgorithm::ALL.into_iter().flat_map(|by| [agreed(by, false), agreed(by, true)])
}

fn message(data: &[u8]) -> Vec<u8> {
    let mut message = PROTOCOL_SMB2.to_vec();
    message.resize(HEADER_LEN + 16, 9);
    message.extend_from_slice(data);
    message
}

fn unpack(agreed: &Compression, packed: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let parsed = Packed::parse(agreed, packed, LARGEST)?;
    let mut out = b"before".to_vec();
    parsed.unpack(&mut out)?;
    assert_eq!(out.len(), 6 + parsed.len());
    Ok(out.split_off(6))
}

fn compressed(agreed: &Compression, message: &[u8], lead: usize) -> Option<Vec<u8>> {
    let mut out = b"before".to_vec();
    let done = agreed.compress(message, lead, &mut out);
    assert!(done || out == b"before");
    done.then(|| out.split_off(6))
}

fn text() -> Vec<u8> {
    (0..2000)
        .flat_map(|line| format!("{line} lines of text, {}\n", line * line).into_bytes())
        .collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn messages_come_back_in_both_forms_with_each_algorithm() {
    let zeros = [vec![0; 5000], text(), vec![0xff; 70]].concat();
    for agreed in all() {
        for (data, general) in [(text(), true), (vec![0; 100_000], false), (zeros.clone(), false)] {
            let message = message(&data);
            for lead in [0, HEADER_LEN, HEADER_LEN + 16] {
                let packed = compressed(&agreed, &message, lead);
                let can = agreed.algorithm().is_general();
                if !can && (general || !agreed.is_chained()) {
                    assert_eq!(packed, None, "{agreed:?}");
                    continue;
                }
                // Patterns alone leave the text as it is, and stand at the beginning or the end.
                let Some(packed) = packed else {
                    assert!(!can && lead < HEADER_LEN + 16, "{agreed:?} {} {lead}", data.len());
                    continue;
                };
                assert!(packed.len() <= message.len() - message.len() / 16, "{agreed:?}");
                assert!(packed.starts_with(&PROTOCOL_COMPRESSED));
                assert_eq!(unpack(&agreed, &packed), Ok(message.clone()), "{agreed:?}");
                if lead > 0 && !agreed.is_chained() {
                    assert_eq!(packed[16..16 + lead], message[..lead], "{agreed:?}");
                }
            }
        }
    }
}

/// MS-SMB2 3.1.4.4: what begins and ends with one byte over and over has payloads for that.
#[test]
fn a_chain_has_what_is_repeated_in_payloads_of_its_own() {
    let agreed = agreed(CompressionAlgorithm::LZ77, true);
    let data = [vec![0; 4096], text(), vec![7; 64]].concat();
    let packed = compressed(&agreed, &message(&data), HEADER_LEN + 16).unwrap();
    assert_eq!(packed[4..8], ((HEADER_LEN + 16 + data.len()) as u32).to_le_bytes());
    let (mut at, mut kinds) = (8, Vec::new());
    while at < packed.len() {
        let word = |at: usize| u32::from_le_bytes(*packed[at..].first_chunk().unwrap());
        let flags = u16::from_le_bytes([packed[at + 2], packed[at + 3]]);
        assert_eq!(flags, u16::from(at == 8), "the first says that it is a chain");
        kinds.push((packed[at], word(at + 8), word(at + 12)));
        at += 8 + word(at + 4) as usize;
    }
    let kinds: Vec<_> = kinds
        .iter()
        .map(|(by, first, second)| match *by {
            4 => (4, *first as usize, *second as usize),
            2 => (2, *first as usize, 0),
            by => (by, 0, 0),
        })
        .collect();
    assert_eq!(kinds, [(0, 0, 0), (4, 0, 4096), (2, text().len(), 0), (4, 7, 64)]);
}

/// What is short is compressed too, where that saves bytes: with the examples of MS-XCA 3.
#[test]
fn short_messages_are_compressed_where_that_saves_bytes() {
    let music =
        b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# \
                  G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
    let abc = b"abc".repeat(100);
    for (by, data) in [
        (CompressionAlgorithm::LZ77, &abc[..]),
        (CompressionAlgorithm::LZ77_HUFFMAN, &abc),
        (CompressionAlgorithm::LZ4, &abc),
        (CompressionAlgorithm::LZNT1, &music[..]),
    ] {
        let agreed = agreed(by, false);
        let packed = compressed(&agreed, &message(data), 80).expect("it is shorter");
        assert_eq!(unpack(&agreed, &packed), Ok(message(data)), "{by:?}");
    }
    for by in CompressionAlgorithm::ALL {
        let (agreed, data) = (agreed(by, true), [0xe0; 1024]);
        let packed = compressed(&agreed, &message(&data), 80).expect("it is shorter");
        assert_eq!(packed.len(), 8 + 8 + 80 + 8 + 8);
        assert_eq!(unpack(&agreed, &packed), Ok(message(&data)), "{by:?}");
        if by.is_general() {
            let agreed = Compression::agreed(&[by], &[by], true).unwrap();
            assert!(compressed(&agreed, &message(&data), 80).is_some(), "{by:?}");
        }
    }
}

#[test]
fn what_is_short_or_has_no_pattern_is_left_as_it_is() {
    for agreed in all() {
        assert_eq!(compressed(&agreed, &message(&noise(100_000)), 80), None, "{agreed:?}");
        assert_eq!(compressed(&agreed, &message(&[0; 63]), 80), None, "{agreed:?}");
        assert_eq!(compressed(&agreed, &message(b"abc"), 80), None, "{agreed:?}");
        assert_eq!(compressed(&agreed, &[0; 79], 80), None, "{agreed:?}");
    }
    // Nothing in common is no compression.
    let none = [CompressionAlgorithm::NONE];
    assert_eq!(Compression::agreed(&CompressionAlgorithm::ALL, &none, true), None);
    assert_eq!(Compression::agreed(&CompressionAlgorithm::ALL, &[], true), None);
    // The preferred of those in common is taken.
    let [lz77, lznt1] = [CompressionAlgorithm::LZ77, CompressionAlgorithm::LZNT1];
    let agreed = Compression::agreed(&CompressionAlgorithm::ALL, &[lznt1, lz77, PATTERN], true);
    assert_eq!(agreed.unwrap().algorithm(), lz77);
}

fn alone(size: u32, by: u16, flags: u16, offset: u32, rest: &[u8]) -> Vec<u8> {
    let header = [&PROTOCOL_COMPRESSED[..], &size.to_le_bytes(), &by.to_le_bytes()].concat();
    [&header[..], &flags.to_le_bytes(), &offset.to_le_bytes(), rest].concat()
}

fn chain(size: u32, payloads: &[(u16, u32, &[u8])]) -> Vec<u8> {
    let mut out = [&PROTOCOL_COMPRESSED[..], &size.to_le_bytes()].concat();
    for (at, (by, len, payload)) in payloads.iter().enumerate() {
        out.extend_from_slice(&by.to_le_bytes());
        out.extend_from_slice(&u16::from(at == 0).to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(payload);
    }
    out
}

fn pattern(byte: u8, count: u32) -> Vec<u8> {
    [&[byte, 0, 0, 0][..], &count.to_le_bytes()].concat()
}

/// MS-SMB2 3.3.5.2.1.2.
#[test]
fn messages_that_lie_by_themselves_are_refused() {
    use CompressionError as E;
    let agreed = agreed(CompressionAlgorithm::LZ77, false);
    // One literal after another.
    let data = [&[0, 0, 0, 0][..], &PROTOCOL_SMB2, &[5; 28], &[0xff; 4]].concat();
    let good = alone(32, 2, 0, 0, &data);
    assert_eq!(unpack(&agreed, &good).unwrap().len(), 32);
    let most = LARGEST + 256 + 16;
    let cases = [
        (alone(32, 1, 0, 0, &data), E::NotAgreed(CompressionAlgorithm::LZNT1)),
        (alone(32, 0, 0, 0, &data), E::NotAgreed(CompressionAlgorithm::NONE)),
        // A pattern is nothing by itself.
        (alone(32, 4, 0, 0, &data), E::NotAgreed(PATTERN)),
        (alone(32, 77, 0, 0, &data), E::NotAgreed(CompressionAlgorithm(77))),
        (alone(32, 2, 1, 0, &data), E::Flags(1)),
        (alone(32, 2, 2, 0, &data), E::Flags(2)),
        (alone(32, 2, 0, 41, &data), E::Offset { offset: 41, len: 40 }),
        (alone(32, 2, 0, u32::MAX, &data), E::Offset { offset: u32::MAX as usize, len: 40 }),
        (alone(31, 2, 0, 0, &data), E::Data(xca::Error::TooLong(31))),
        (alone(33, 2, 0, 0, &data), E::Data(xca::Error::TooShort { got: 32, wanted: 33 })),
        (alone(most as u32 + 1, 2, 0, 0, &data), E::TooLong { announced: most + 1, most }),
        // What stays as it is counts.
        (alone(most as u32, 2, 0, 1, &data), E::TooLong { announced: most + 1, most }),
    ];
    for (bytes, error) in cases {
        assert_eq!(unpack(&agreed, &bytes), Err(error), "{bytes:x?}");
    }
    assert!(matches!(unpack(&agreed, &good[..15]), Err(E::Header(_))));
    // Compressed or encrypted once more.
    for id in [0xfc, 0xfd, 0xff] {
        let mut nested = good.clone();
        nested[20] = id;
        assert_eq!(unpack(&agreed, &nested), Err(E::NotSmb2));
    }
}

/// MS-SMB2 3.1.5.3.
#[test]
fn chains_that_lie_are_refused() {
    use CompressionError as E;
    let agreed = agreed(CompressionAlgorithm::LZ77, true);
    let head = message(&[]);
    let len = head.len() as u32;
    let zeros = pattern(0, 100);
    let first = (0, len, &head[..]);
    let good = chain(len + 100, &[first, (4, 8, &zeros)]);
    assert_eq!(unpack(&agreed, &good), Ok(message(&[0; 100])));
    // What cannot be a payload any more is ignored.
    assert!(unpack(&agreed, &[&good[..], &[1; 7]].concat()).is_ok());
    let literals = [&100u32.to_le_bytes()[..], &[0; 4], &[7; 32]].concat();
    let none = CompressionAlgorithm::LZNT1;
    let cases = [
        (chain(len + 100, &[first, (1, 8, &zeros)]), E::NotAgreed(none)),
        (chain(len + 100, &[first, (9, 8, &zeros)]), E::NotAgreed(CompressionAlgorithm(9))),
        (chain(len + 100, &[first, (4, 9, &zeros)]), E::Payload { len: 9, have: 8 }),
        (
            chain(len + 100, &[first, (4, 9, &[&zeros[..], &[0]].concat())]),
            E::Payload { len: 9, have: 8 },
        ),
        (
            chain(len + 100, &[first, (4, u32::MAX, &zeros)]),
            E::Payload { len: u32::MAX as usize, have: 8 },
        ),
        (chain(len + 99, &[first, (4, 8, &zeros)]), E::Payload { len: 100, have: 99 }),
        (
            chain(len + 101, &[first, (4, 8, &zeros)]),
            E::Chain { got: head.len() + 100, announced: head.len() + 101 },
        ),
        (
            chain(len + 100, &[first, (4, 8, &pattern(0, u32::MAX))]),
            E::Payload { len: u32::MAX as usize, have: 100 },
        ),
        (chain(len - 1, &[first]), E::Payload { len: head.len(), have: head.len() - 1 }),
        (
            chain(len + 99, &[first, (2, literals.len() as u32, &literals)]),
            E::Payload { len: 100, have: 99 },
        ),
        (
            chain(len + 100, &[first, (2, 3, &literals[..3]), (0, 9, &[0; 9])]),
            E::Header(WireError::Short {
                field: "compression.OriginalPayloadSize",
                at: 0,
                need: 4,
                have: 3,
            }),
        ),
        (chain(0, &[(4, 8, &pattern(0, 0))]), E::NotSmb2),
        (chain(64, &[(4, 8, &pattern(0xfc, 64))]), E::NotSmb2),
    ];
    for (bytes, error) in cases {
        assert_eq!(unpack(&agreed, &bytes), Err(error), "{bytes:x?}");
    }
    let truncated = chain(len + 100, &[first, (2, literals.len() as u32, &literals)]);
    assert!(matches!(unpack(&agreed, &truncated), Err(E::Data(_))));
    // Without chains there is none.
    let alone = super::tests::agreed(CompressionAlgorithm::LZ77, false);
    assert_eq!(unpack(&alone, &good), Err(E::Flags(1)));
    // Nor patterns that were not agreed on.
    let lz77 = [CompressionAlgorithm::LZ77];
    let without = Compression::agreed(&lz77, &lz77, true).unwrap();
    assert_eq!(unpack(&without, &good), Err(E::NotAgreed(PATTERN)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_message_comes_back(
        pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..50), 1..300usize), 0..30),
        lead in 0..100usize,
    ) {
        let data: Vec<u8> = pieces.iter().flat_map(|(piece, times)| piece.repeat(*times)).collect();
        let message = message(&data[..data.len().min(LARGEST)]);
        for agreed in all() {
            if let Some(packed) = compressed(&agreed, &message, lead.min(message.len())) {
                prop_assert_eq!(unpack(&agreed, &packed), Ok(message.clone()), "{:?}", agreed);
            }
        }
    }

    #[test]
    fn harmed_messages_are_answered(
        harm in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let message = message(&[vec![0; 500], text()].concat());
        for agreed in all().filter(|agreed| agreed.algorithm().is_general()) {
            let mut packed = compressed(&agreed, &message, 80).unwrap();
            for (at, value) in &harm {
                // The headers, more often than not.
                let at = at.index(packed.len());
                packed[if at % 2 == 0 { at % 120 } else { at }] = *value;
            }
            if let Some(cut) = &cut {
                packed.truncate(cut.index(packed.len()));
            }
            let _ = unpack(&agreed, &packed);
        }
    }
}
