//! What hangs on a file or its volume: object ids, reparse points, owners, sizes of the volume
//! (MS-FSA 2.1.5.10.1, .3, .8, .11, .13, .35, .37, .40).

use smb_protocol::{
    NtStatus,
    msg::create::Access,
    wire::{Put, Reader},
};
use volume::fs::descriptor::cluster_size;

use super::{Call, Handled, answer};

/// Length of `FILE_OBJECTID_BUFFER` (MS-FSCC 2.1.3).
const OBJECT_ID: usize = 64;

/// The object id of a file: device and inode, which name it as long as it lives.
pub fn object_id(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.room() < OBJECT_ID {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let stat = rustix::fs::fstat(call.open.handle())?;
    let mut id = [0; OBJECT_ID];
    id[..8].copy_from_slice(&stat.st_ino.to_le_bytes());
    id[8..16].copy_from_slice(&stat.st_dev.to_le_bytes());
    // Birth ids: volume, object, domain.
    id[24..32].copy_from_slice(&stat.st_dev.to_le_bytes());
    id[32..40].copy_from_slice(&stat.st_ino.to_le_bytes());
    answer(call.request, &id, out)
}

/// Object ids are not given by clients: that needs the right to restore, which nobody has here.
pub fn set_object_id(call: Call<'_>) -> Handled {
    if call.request.input.len() != OBJECT_ID {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    Err(NtStatus::ACCESS_DENIED.into())
}

/// Tag at the beginning of a reparse buffer.
fn reparse_tag(input: &[u8]) -> Result<u32, NtStatus> {
    let mut r = Reader::new(input);
    let read = |r: &mut Reader<'_>| Ok((r.u32("ReparseTag")?, r.u16("ReparseDataLength")?));
    let header: smb_protocol::wire::Result<(u32, u16)> = read(&mut r);
    match header {
        Ok((0 | 1, _)) => Err(NtStatus::IO_REPARSE_TAG_INVALID),
        Ok((tag, _)) => Ok(tag),
        Err(_) => Err(NtStatus::IO_REPARSE_DATA_INVALID),
    }
}

/// No file has a reparse point: there is none to take away.
pub fn delete_reparse_point(call: Call<'_>) -> Handled {
    call.open.permit(Access::WRITE_DATA.or(Access::WRITE_ATTRIBUTES))?;
    reparse_tag(call.request.input)?;
    Err(NtStatus::NOT_A_REPARSE_POINT.into())
}

/// Nothing that would lead a later open elsewhere is kept (MS-SMB2 3.3.5.15.13).
pub fn set_reparse_point(call: Call<'_>) -> Handled {
    call.open.permit(Access::WRITE_DATA.or(Access::WRITE_ATTRIBUTES))?;
    reparse_tag(call.request.input)?;
    Err(NtStatus::INVALID_DEVICE_REQUEST.into())
}

/// Looking for the files of an owner needs the right to manage the volume, which nobody has here.
pub fn find_by_sid(call: Call<'_>) -> Handled {
    if !call.open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    Err(NtStatus::ACCESS_DENIED.into())
}

/// Nothing promises that freed blocks are overwritten.
pub fn zero_on_deallocation(call: Call<'_>) -> Handled {
    let writes = Access::WRITE_DATA.or(Access::APPEND_DATA);
    if call.open.directory || !call.open.access.any(writes) {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    Err(NtStatus::INVALID_DEVICE_REQUEST.into())
}

/// `NTFS_VOLUME_DATA_BUFFER` (MS-FSCC 2.3.22); there is no master file table to describe.
pub fn ntfs_volume_data(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    const SECTOR: u64 = 512;
    const FILE_RECORD: u32 = 1024;
    if call.room() < 96 {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    let stat = rustix::fs::fstatvfs(call.open.handle())?;
    let root = rustix::fs::fstat(call.open.volume().root())?;
    let cluster = cluster_size(call.open.handle())?;
    let mut output = Vec::with_capacity(96);
    output.put_u64((root.st_dev ^ root.st_ino) & 0xffff_ffff);
    output.put_u64(stat.f_blocks.saturating_mul(cluster / SECTOR));
    output.put_u64(stat.f_blocks);
    output.put_u64(stat.f_bavail);
    output.put_u64(stat.f_bfree - stat.f_bavail.min(stat.f_bfree));
    output.put_u32(SECTOR as u32);
    output.put_u32(u32::try_from(cluster).unwrap_or(4096));
    output.put_u32(FILE_RECORD);
    output.put_u32(0);
    output.put_zeros(40);
    answer(call.request, &output, out)
}
