//! `convert compress ALGORITHM` and `convert decompress ALGORITHM LENGTH`: from standard input to
//! standard output, to try the algorithms against programs of others.

use std::{
    env,
    io::{self, Error, Read, Write},
};

use xca::{lz4, lz77, lz77_huffman, lznt1};

fn compress(algorithm: &str, input: &[u8], out: &mut Vec<u8>) -> bool {
    match algorithm {
        "lznt1" => lznt1::compress(input, out, usize::MAX),
        "lz77" => lz77::compress(input, out, usize::MAX),
        "lz77-huffman" => lz77_huffman::compress(input, out, usize::MAX),
        "lz4" => lz4::compress(input, out, usize::MAX),
        _ => false,
    }
}

fn decompress(algorithm: &str, input: &[u8], out: &mut [u8]) -> io::Result<()> {
    match algorithm {
        "lznt1" => lznt1::decompress(input, out),
        "lz77" => lz77::decompress(input, out),
        "lz77-huffman" => lz77_huffman::decompress(input, out),
        "lz4" => lz4::decompress(input, out),
        _ => return Err(usage()),
    }
    .map_err(Error::other)
}

fn usage() -> Error {
    Error::other("usage: convert compress ALGORITHM | convert decompress ALGORITHM LENGTH")
}

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input)?;
    let mut out = Vec::new();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["compress", algorithm] => {
            if !compress(algorithm, &input, &mut out) {
                return Err(usage());
            }
        }
        ["decompress", algorithm, len] => {
            out.resize(len.parse().map_err(Error::other)?, 0);
            decompress(algorithm, &input, &mut out)?;
        }
        _ => return Err(usage()),
    }
    io::stdout().write_all(&out)
}
