//! The examples of MS-XCA 3, and what must be true of all algorithms and all bytes.

use proptest::prelude::*;
use xca::{Error, lz4, lz77, lz77_huffman, lznt1};

type Compress = fn(&[u8], &mut Vec<u8>, usize) -> bool;
type Decompress = fn(&[u8], &mut [u8]) -> Result<(), Error>;

const ALL: [(&str, Compress, Decompress); 4] = [
    ("LZNT1", lznt1::compress, lznt1::decompress),
    ("LZ77", lz77::compress, lz77::decompress),
    ("LZ77+Huffman", lz77_huffman::compress, lz77_huffman::decompress),
    ("LZ4", lz4::compress, lz4::decompress),
];

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn decompressed(decompress: Decompress, input: &[u8], len: usize) -> Vec<u8> {
    let mut out = vec![0xee; len];
    decompress(input, &mut out).unwrap();
    out
}

fn compressed(compress: Compress, input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(compress(input, &mut out, usize::MAX));
    out
}

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

/// MS-XCA 3.1.
#[test]
fn the_examples_of_plain_lz77_are_read_and_written() {
    let letters = hex("3f000000 6162636465666768696a6b6c6d6e6f707172737475767778797a");
    assert_eq!(decompressed(lz77::decompress, &letters, 26), LETTERS);
    assert_eq!(compressed(lz77::compress, LETTERS), letters);
    let abc = hex("ffffff1f 616263 1700 0f ff 2601");
    assert_eq!(decompressed(lz77::decompress, &abc, 300), b"abc".repeat(100));
    assert_eq!(compressed(lz77::compress, &b"abc".repeat(100)), abc);
}

/// The table of code lengths with some places filled, and what follows it.
fn block(places: &[(usize, &str)], rest: &str) -> Vec<u8> {
    let mut block = vec![0; 256];
    for (at, text) in places {
        let bytes = hex(text);
        block[*at..at + bytes.len()].copy_from_slice(&bytes);
    }
    [block, hex(rest)].concat()
}

/// MS-XCA 3.2.
#[test]
fn the_examples_of_lz77_with_huffman_codes_are_read_and_written() {
    let letters = block(
        &[(48, "50 55555555555555555555 45 44 04"), (128, "04")],
        "d8523ed794115be9195ff9d67cdf8d0400000000",
    );
    assert_eq!(decompressed(lz77_huffman::decompress, &letters, 26), LETTERS);
    assert_eq!(compressed(lz77_huffman::compress, LETTERS).len(), letters.len());
    let abc = block(&[(48, "30 23"), (128, "02"), (143, "20")], "a8dc0000ff2601");
    assert_eq!(decompressed(lz77_huffman::decompress, &abc, 300), b"abc".repeat(100));
    assert_eq!(compressed(lz77_huffman::compress, &b"abc".repeat(100)).len(), abc.len());
}

/// MS-XCA 3.3.
#[test]
fn the_example_of_lznt1_is_read() {
    let music = hex(
        "38b0884623200020 4720410010a24701 a045204400084501 507900c045200524 138805b4024a44ef \
         0358028c09160148 4500be009e000401 189000",
    );
    let text =
        b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# \
                 G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
    assert_eq!(text.len(), 142);
    assert_eq!(decompressed(lznt1::decompress, &music, 142), text);
    assert!(compressed(lznt1::compress, text).len() <= 64);
}

/// What the samples hold.
fn sample(name: &str) -> Vec<u8> {
    let text = |lines: usize| -> Vec<u8> {
        let line = |n| format!("line {n}, whose square is {}\n", n * n).into_bytes();
        (0..lines).flat_map(line).collect()
    };
    let noise = |len: usize| {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(|_| next()).collect::<Vec<u8>>()
    };
    match name {
        "text" => text(300),
        "zeros" => vec![0; 200_000],
        "blocks" => [text(40), noise(64)].concat().repeat(60),
        _ => [vec![0; 1000], text(100), noise(500), text(100), vec![b'z'; 70_000], text(100)]
            .concat(),
    }
}

/// `samples` were compressed by others: LZ77 and LZ77+Huffman by Samba 4.25 (samba.compression), LZ4 by
/// the Python package lz4 4.4 (lz4.block). Samba's matches go on beyond the end of a block.
#[test]
fn what_others_compressed_is_read() {
    for name in ["text", "zeros", "mixed", "blocks"] {
        let wanted = sample(name);
        for (kind, decompress) in [
            ("lz77", lz77::decompress as Decompress),
            ("lz77-huffman", lz77_huffman::decompress),
            ("lz4", lz4::decompress),
        ] {
            let path = format!("{}/tests/samples/{name}.{kind}", env!("CARGO_MANIFEST_DIR"));
            let input = std::fs::read(path).unwrap();
            assert!(decompressed(decompress, &input, wanted.len()) == wanted, "{name} {kind}");
        }
    }
}

/// A length that 16 bits do not hold follows two bytes of zeros (MS-XCA 2.1.4.3, 2.3.4).
#[test]
fn matches_of_more_than_65535_bytes_are_read() {
    let len: u32 = 100_000;
    let mut long = hex("ffffff7f 61 0700 0f ff 0000");
    long.extend_from_slice(&(len - 1 - 3).to_le_bytes());
    assert_eq!(decompressed(lz77::decompress, &long, 100_000), vec![b'a'; 100_000]);
    assert_eq!(compressed(lz77::compress, &vec![b'a'; 100_000]), long);
    // Codes: 'a' 0, end 10, the match 11.
    let mut long = block(&[(48, "10"), (128, "02"), (135, "20")], "0060 0000 ff 0000");
    long.extend_from_slice(&(len - 1 - 3).to_le_bytes());
    let mut out = vec![0; 100_000];
    // The first block ends with the match.
    lz77_huffman::decompress(&long, &mut out).unwrap();
    assert_eq!(out, vec![b'a'; 100_000]);
}

/// Data of many kinds: of few different bytes, with repetitions near and far, and without any.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..600),
        (any::<u8>(), 0..9000usize).prop_map(|(byte, len)| vec![byte; len]),
        (prop::collection::vec(0..4u8, 1..40), 0..700usize).prop_map(|(part, n)| part.repeat(n)),
    ];
    let pieces = prop::collection::vec((piece, any::<prop::sample::Index>()), 0..12);
    pieces.prop_map(|pieces| {
        let mut all: Vec<u8> = Vec::new();
        for (piece, from) in pieces {
            // And again something that was there before.
            let from = if all.is_empty() { 0 } else { from.index(all.len()) };
            let again: Vec<u8> = all[from..].iter().take(piece.len() * 2).copied().collect();
            all.extend(piece);
            all.extend(again);
        }
        all.truncate(200_000);
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_compressed_comes_back(input in data()) {
        for (name, compress, decompress) in ALL {
            let mut out = b"before".to_vec();
            prop_assert!(compress(&input, &mut out, usize::MAX));
            let len = out.len() - 6;
            prop_assert!(out.starts_with(b"before"), "{}", name);
            prop_assert_eq!(&decompressed(decompress, &out[6..], input.len()), &input, "{}", name);
            // So much room is enough, and less is not.
            let mut again = Vec::new();
            prop_assert!(compress(&input, &mut again, len), "{}", name);
            prop_assert_eq!(&again, &out[6..], "{}", name);
            if len > 0 {
                let mut less = b"before".to_vec();
                prop_assert!(!compress(&input, &mut less, len - 1), "{}", name);
                prop_assert_eq!(&less, b"before", "{}", name);
            }
            // Who expects another length is told.
            if !input.is_empty() {
                let mut other = vec![0; input.len() - 1];
                prop_assert!(decompress(&out[6..], &mut other).is_err(), "{}", name);
                let mut other = vec![0; input.len() + 1];
                prop_assert!(decompress(&out[6..], &mut other).is_err(), "{}", name);
            }
        }
    }

    #[test]
    fn harmed_input_gives_an_error_or_other_data(
        input in data(),
        harm in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (_, compress, decompress) in ALL {
            let mut bytes = compressed(compress, &input);
            for (at, value) in &harm {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = *value;
                }
            }
            if let Some(cut) = &cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            let mut out = vec![0; input.len()];
            let _ = decompress(&bytes, &mut out);
        }
    }

    #[test]
    fn any_bytes_are_answered(input in prop::collection::vec(any::<u8>(), 0..900), len in 0..5000usize) {
        for (_, _, decompress) in ALL {
            let mut out = vec![0; len];
            let _ = decompress(&input, &mut out);
        }
    }
}

/// What repeats over and over becomes very little with each algorithm.
#[test]
fn a_megabyte_of_one_byte_becomes_little() {
    let input = vec![7; 1 << 20];
    for (name, compress, decompress) in ALL {
        let out = compressed(compress, &input);
        // LZNT1 has a header for each 4 KiB, LZ77 with Huffman codes a table for each 64 KiB.
        assert!(out.len() <= 6144, "{name}: {}", out.len());
        assert_eq!(decompressed(decompress, &out, input.len()), input, "{name}");
    }
}
