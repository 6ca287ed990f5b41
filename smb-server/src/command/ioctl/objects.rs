//! What hangs on a file or its volume: owners, sizes of the volume (MS-FSA 2.1.5.10.8, .11, .40).

use smb_protocol::{NtStatus, msg::create::Access, wire::Put};
use volume::fs::descriptor::cluster_size;

use super::{Call, Handled, answer};

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
    let cluster = cluster_size(call.open.handle())?;
    let mut output = Vec::with_capacity(96);
    output.put_u64(call.open.volume().serial().into());
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
