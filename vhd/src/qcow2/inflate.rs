//! Compressed clusters.

use std::io::Read;

use miniz_oxide::inflate::{TINFLStatus, core};

use super::header::Compression;

/// Fills `out` from its compressed form at the beginning of `bytes`, which may go on; `false` if
/// they do not begin with so much.
pub fn inflate(compression: Compression, bytes: &[u8], out: &mut [u8]) -> bool {
    match compression {
        Compression::Deflate => deflate(bytes, out),
        Compression::Zstd => zstd(bytes, out).is_some(),
    }
}

/// Deflate, without the wrapper of zlib.
pub(crate) fn deflate(bytes: &[u8], out: &mut [u8]) -> bool {
    let flags = core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = Box::<core::DecompressorOxide>::default();
    let (status, _, written) = core::decompress(&mut state, bytes, out, 0, flags);
    let filled = [TINFLStatus::Done, TINFLStatus::HasMoreOutput].contains(&status);
    filled && written == out.len()
}

/// Window of a frame that is believed in: four of the largest clusters. The decoder takes as much
/// memory as the frame asks for.
const MAX_WINDOW: u64 = 8 << 20;

fn zstd(bytes: &[u8], out: &mut [u8]) -> Option<()> {
    let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(bytes, MAX_WINDOW);
    decoder.ok()?.read_exact(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_wants_a_large_window_is_refused() {
        // Magic, a descriptor without content size, windows of 8 MiB and 16 MiB, one raw last block.
        let frame = |exponent: u8| {
            [&[0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 0x21, 0, 0][..], &[7; 4]].concat()
        };
        let mut out = [0; 4];
        assert!(inflate(Compression::Zstd, &frame(13), &mut out));
        assert_eq!(out, [7; 4]);
        assert!(!inflate(Compression::Zstd, &frame(14), &mut out));
    }
}
