//! Compression and integrity streams: kept by no file, so what asks is told "none" and what
//! demands is refused (MS-FSA 2.1.5.10.9, .10, .30, .33, .34; MS-HVRS wants no compressed disks).

use smb_protocol::{
    NtStatus,
    wire::{Put, Reader},
};
use volume::fs::descriptor::cluster_size;

use super::{Call, Handled, answer};

/// `CHECKSUM_TYPE_NONE`, and `COMPRESSION_FORMAT_NONE` alike.
const NONE: u16 = 0;
/// `CHECKSUM_TYPE_UNCHANGED`.
const UNCHANGED: u16 = 0xffff;

fn needs(input: &[u8], len: usize) -> Result<Reader<'_>, NtStatus> {
    if input.len() < len { Err(NtStatus::INVALID_PARAMETER) } else { Ok(Reader::new(input)) }
}

/// Says that nothing is compressed.
pub fn compression(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.room() < 2 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    answer(call.request, &NONE.to_le_bytes(), out)
}

/// Takes "no compression" and refuses the rest.
pub fn set_compression(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    match needs(call.request.input, 2)?.u16("CompressionState")? {
        NONE => answer(call.request, &[], out),
        // The default and LZNT1.
        1 | 2 => Err(NtStatus::NOT_SUPPORTED.into()),
        _ => Err(NtStatus::INVALID_PARAMETER.into()),
    }
}

/// Says that no checksums are kept.
pub fn integrity(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.room() < 16 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let mut output = Vec::new();
    output.put_u16(NONE);
    output.put_u16(0);
    output.put_u32(0);
    output.put_u32(0);
    output.put_u32(u32::try_from(cluster_size(call.open.handle())?).unwrap_or(4096));
    answer(call.request, &output, out)
}

/// Takes "none" and "unchanged".
pub fn set_integrity(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let mut r = needs(call.request.input, 8)?;
    let algorithm = r.u16("ChecksumAlgorithm")?;
    r.skip(2, "Reserved")?;
    // Not to enforce checksums has a meaning only where there are some.
    if r.u32("Flags")? != 0 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    match algorithm {
        NONE | UNCHANGED => answer(call.request, &[], out),
        1 | 2 => Err(NtStatus::INVALID_DEVICE_REQUEST.into()),
        _ => Err(NtStatus::INVALID_PARAMETER.into()),
    }
}

/// The same in its newer form.
pub fn set_integrity_ex(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let mut r = needs(call.request.input, 16)?;
    let (enable, keep) = (r.u8("EnableIntegrity")?, r.u8("KeepIntegrityStateUnchanged")?);
    r.skip(2, "Reserved1")?;
    let (flags, version) = (r.u32("Flags")?, r.u8("Version")?);
    if version != 1 || flags != 0 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if keep == 0 && enable != 0 {
        return Err(NtStatus::INVALID_DEVICE_REQUEST.into());
    }
    answer(call.request, &[], out)
}
