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

/// The decoder keeps a window of the frame's own choosing, so a frame that wants more than a few
/// clusters is refused by it.
fn zstd(bytes: &[u8], out: &mut [u8]) -> Option<()> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(bytes).ok()?;
    decoder.read_exact(out).ok()
}
