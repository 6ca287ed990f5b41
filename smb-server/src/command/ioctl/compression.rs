//! Compression: no file has it, so who asks is told "none" and who demands it is refused
//! (MS-FSA 2.1.5.10.9, .30; MS-HVRS wants no compressed disks).

use smb_protocol::{NtStatus, wire::Reader};

use super::{Call, Handled, answer};

/// `COMPRESSION_FORMAT_NONE`.
const NONE: u16 = 0;

/// Says that nothing is compressed.
pub fn get(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.room() < 2 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    answer(call.request, &NONE.to_le_bytes(), out)
}

/// Takes "no compression" and refuses the rest.
pub fn set(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let input = call.request.input;
    if input.len() < 2 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    match Reader::new(input).u16("CompressionState")? {
        NONE => answer(call.request, &[], out),
        // The default and LZNT1: the volume does not allow it (MS-FSCC 2.3.68).
        1 | 2 => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
        _ => Err(NtStatus::INVALID_PARAMETER.into()),
    }
}
