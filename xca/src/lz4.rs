//! Blocks of LZ4, without a frame around them: what SMB has of it (MS-SMB2 3.1.4.4).

use crate::Error;

/// Appends the compressed form of `input` if it takes at most `most` bytes.
pub fn compress(input: &[u8], out: &mut Vec<u8>, most: usize) -> bool {
    let start = out.len();
    let largest = lz4_flex::block::get_maximum_output_size(input.len());
    out.resize(start + largest, 0);
    let len = lz4_flex::block::compress_into(input, &mut out[start..]);
    match len {
        Ok(len) if len <= most => {
            out.truncate(start + len);
            true
        }
        _ => {
            out.truncate(start);
            false
        }
    }
}

/// Fills `out` with what `input` is the compressed form of.
///
/// # Errors
/// The input is malformed, or what it holds is not as long as `out`.
pub fn decompress(input: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let wanted = out.len();
    match lz4_flex::block::decompress_into(input, out) {
        Ok(got) if got == wanted => Ok(()),
        Ok(got) => Err(Error::TooShort { got, wanted }),
        Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) => Err(Error::TooLong(wanted)),
        Err(_) => Err(Error::Lz4),
    }
}
