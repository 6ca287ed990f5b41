//! What each algorithm takes of a processor, per MiB, and what it leaves: `speed [FILE]`.

use std::{env, fs, time::Instant};

use xca::{Error, lz4, lz77, lz77_huffman, lznt1};

type Compress = fn(&[u8], &mut Vec<u8>, usize) -> bool;
type Decompress = fn(&[u8], &mut [u8]) -> Result<(), Error>;

const ALL: [(&str, Compress, Decompress); 4] = [
    ("lz4", lz4::compress, lz4::decompress),
    ("lz77", lz77::compress, lz77::decompress),
    ("lz77-huffman", lz77_huffman::compress, lz77_huffman::decompress),
    ("lznt1", lznt1::compress, lznt1::decompress),
];
const LEN: usize = 1 << 20;
const ROUNDS: u32 = 40;

/// Microseconds of the fastest of several rounds.
fn best(mut work: impl FnMut()) -> f64 {
    let time = |_| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64() * 1e6
    };
    (0..ROUNDS).map(time).fold(f64::MAX, f64::min)
}

fn main() {
    let text = (0..).flat_map(|n: usize| format!("line {n}, squared {}\n", n * n).into_bytes());
    let mut state = 1u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..LEN).map(|_| next()).collect();
    let mut half = noise.clone();
    half.chunks_mut(64).step_by(2).for_each(|piece| piece.fill(0));
    let mut inputs =
        vec![("text", text.take(LEN).collect()), ("half zeros", half), ("noise", noise)];
    if let Some(path) = env::args().nth(1) {
        let mut file = fs::read(path).expect("the file can be read");
        file.truncate(LEN);
        inputs.push(("file", file));
    }
    for (name, input) in &inputs {
        let mib = input.len() as f64 / LEN as f64;
        for (algorithm, compress, decompress) in ALL {
            let mut packed = Vec::new();
            assert!(compress(input, &mut packed, usize::MAX));
            let mut out = Vec::with_capacity(2 * LEN);
            let packing = best(|| {
                out.clear();
                compress(input, &mut out, usize::MAX);
            });
            let mut back = vec![0; input.len()];
            let unpacking = best(|| decompress(&packed, &mut back).expect("it was written here"));
            let left = packed.len() as f64 / input.len() as f64;
            println!(
                "{name:10} {algorithm:12} {left:5.2} of it left, {:6.0} us/MiB to compress, {:6.0} to decompress",
                packing / mib,
                unpacking / mib
            );
        }
    }
}
