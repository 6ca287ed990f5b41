//! Compressed data and compressed messages.
//!
//! For an algorithm the first three bytes say how long the data should be (modulo 256 KiB) and the
//! others are their compressed form. Held: what is read is compressed and read again as the same, and
//! data of another length are refused. For a message the first byte says what was agreed on and the
//! others are the message: what is read has the length that was announced, and is compressed and read
//! again as the same.

use smb_protocol::{
    compression::{Compression, CompressionAlgorithm, Packed},
    header::PROTOCOL_SMB2,
};
use xca::{Error, lz4, lz77, lz77_huffman, lznt1};

type Compress = fn(&[u8], &mut Vec<u8>, usize) -> bool;
type Decompress = fn(&[u8], &mut [u8]) -> Result<(), Error>;

/// Longest payload of a message.
const LARGEST: usize = 1 << 18;

fn algorithm(bytes: &[u8], compress: Compress, decompress: Decompress) {
    let Some((&[a, b, c], input)) = bytes.split_first_chunk() else { return };
    let len = u32::from_le_bytes([a, b, c & 3, 0]) as usize;
    let mut out = vec![0; len];
    if decompress(input, &mut out).is_err() {
        return;
    }
    let mut packed = Vec::new();
    assert!(compress(&out, &mut packed, usize::MAX), "there is room for it");
    let mut again = vec![0xee; len];
    assert_eq!(decompress(&packed, &mut again), Ok(()));
    assert!(again == out, "what was compressed is another");
    if len > 0 {
        assert!(decompress(&packed, &mut again[..len - 1]).is_err(), "longer than announced");
    }
}

pub fn run_lznt1(bytes: &[u8]) {
    algorithm(bytes, lznt1::compress, lznt1::decompress);
}

pub fn run_lz77(bytes: &[u8]) {
    algorithm(bytes, lz77::compress, lz77::decompress);
}

pub fn run_lz77_huffman(bytes: &[u8]) {
    algorithm(bytes, lz77_huffman::compress, lz77_huffman::decompress);
}

pub fn run_lz4(bytes: &[u8]) {
    algorithm(bytes, lz4::compress, lz4::decompress);
}

/// What ends may have agreed on.
fn agreed(choice: u8) -> Compression {
    let by = CompressionAlgorithm::ALL[usize::from(choice >> 1) % 4];
    let common = match choice & 8 {
        0 => CompressionAlgorithm::ALL.to_vec(),
        _ => vec![by],
    };
    Compression::agreed(&[by], &common, choice & 1 != 0).expect("there is one in common")
}

pub fn run(bytes: &[u8]) {
    let Some((choice, message)) = bytes.split_first() else { return };
    let agreed = agreed(*choice);
    let Ok(packed) = Packed::parse(&agreed, message, LARGEST) else { return };
    let mut out = Vec::new();
    if packed.unpack(&mut out).is_err() {
        return;
    }
    assert_eq!(out.len(), packed.len());
    assert!(out.starts_with(&PROTOCOL_SMB2));
    let mut again = Vec::new();
    if agreed.compress(&out, out.len().min(80), &mut again) {
        assert!(again.len() < out.len());
        let mut once_more = Vec::new();
        let packed = Packed::parse(&agreed, &again, LARGEST).expect("it was written here");
        packed.unpack(&mut once_more).expect("it was written here");
        assert!(once_more == out, "what was compressed is another");
    }
}

/// Text, what repeats, and what does not.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let text = (0..300).flat_map(|n| format!("line {n} of {}\n", n * n).into_bytes()).collect();
    let mixed = (0..9000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    vec![
        ("text", text),
        ("zeros", vec![0; 70_000]),
        ("abc", b"abc".repeat(100)),
        ("mixed", mixed),
        ("nothing", Vec::new()),
    ]
}

fn seeds_of(compress: Compress) -> Vec<(String, Vec<u8>)> {
    let seed = |(name, data): (&str, Vec<u8>)| {
        let mut bytes = (data.len() as u32).to_le_bytes()[..3].to_vec();
        assert!(compress(&data, &mut bytes, usize::MAX));
        (name.to_owned(), bytes)
    };
    samples().into_iter().map(seed).collect()
}

pub fn seeds_lznt1() -> Vec<(String, Vec<u8>)> {
    seeds_of(lznt1::compress)
}

pub fn seeds_lz77() -> Vec<(String, Vec<u8>)> {
    seeds_of(lz77::compress)
}

pub fn seeds_lz77_huffman() -> Vec<(String, Vec<u8>)> {
    seeds_of(lz77_huffman::compress)
}

pub fn seeds_lz4() -> Vec<(String, Vec<u8>)> {
    seeds_of(lz4::compress)
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for choice in 0..16 {
        for (name, data) in samples() {
            let mut message = PROTOCOL_SMB2.to_vec();
            message.resize(80, 1);
            message.extend([vec![0; 200], data].concat());
            let mut bytes = vec![choice];
            if agreed(choice).compress(&message, 80, &mut bytes) {
                seeds.push((format!("{name}-{choice}"), bytes));
            }
        }
    }
    seeds
}
