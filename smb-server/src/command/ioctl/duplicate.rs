//! Blocks shared between files (MS-SMB2 3.3.5.15.17, 3.3.5.15.18; MS-FSA 2.1.5.10.4, .5).
//!
//! Only where the file system can share them: the control promises that nothing is copied, and a
//! client that is refused copies by other means.

use std::os::fd::AsFd;

use rustix::io::Errno;
use smb_protocol::{
    NtStatus,
    fscc::{FileAttributes, FsctlCode, offload::Duplicate},
    msg::create::Access,
};
use volume::{
    fs::{descriptor::cluster_size, space},
    status::of_errno,
};

use super::{Call, Ctx, DONE, Handled, sparse, touches};

/// Lets a range of this open have the blocks of a range of another.
pub fn duplicate(ctx: &Ctx<'_>, call: Call<'_>) -> Handled {
    let Call { request, open } = &call;
    let wanted = if request.code == FsctlCode::DUPLICATE_EXTENTS_TO_FILE {
        Duplicate::parse(request.input)?
    } else {
        if request.input.len() < 0x38 {
            return Err(NtStatus::INVALID_PARAMETER.into());
        }
        Duplicate::parse_ex(request.input).map_err(|_| NtStatus::NOT_SUPPORTED)?
    };
    if !open.volume().shares_blocks() {
        return Err(NtStatus::INVALID_DEVICE_REQUEST.into());
    }
    let source = ctx.other_open(wanted.file_id, NtStatus::INVALID_HANDLE)?;
    let cluster = cluster_size(open.handle())?;
    let Duplicate { source: from, target: to, length, .. } = wanted;
    let end = |start: u64| start.checked_add(length).filter(|end| *end <= i64::MAX as u64);
    let (Some(from_end), Some(to_end)) = (end(from), end(to)) else {
        return Err(NtStatus::INVALID_PARAMETER.into());
    };
    if ![from, to, length].iter().all(|value| value.is_multiple_of(cluster)) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let target = open.writable(Access::WRITE_DATA)?.clone();
    let content = source.content(Access::READ_DATA).map_err(|_| NtStatus::INVALID_PARAMETER)?;
    let content = content.clone();
    if to_end > ctx.ex.limits().file_size.0 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if length == 0 {
        return call.later(0, false, |_| DONE);
    }
    // Locks of byte ranges are not asked, as on ReFS (notes 91 and 92 of MS-FSA).
    touches(open)?;
    call.later(0, false, move |open| {
        let (theirs, ours) = (source.facts()?, open.facts()?);
        // What is asked for beyond the last block of the source is not there.
        if from_end > theirs.end_of_file.next_multiple_of(cluster) {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        let sparse = FileAttributes::SPARSE_FILE;
        if theirs.attributes.has(sparse) && !ours.attributes.has(sparse) {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        let one_file = std::sync::Arc::ptr_eq(&source.file, &open.file);
        if one_file && from < to_end && to < from_end {
            return Err(NtStatus::NOT_SUPPORTED);
        }
        // The target does not grow, and either file may end inside a block: that part is copied,
        // and what the source does not have is zero.
        let wanted = length.min(ours.end_of_file.saturating_sub(to));
        let there = wanted.min(theirs.end_of_file - from);
        let blocks = there - there % cluster;
        let (content, target) = (content.as_fd(), target.as_fd());
        if blocks > 0 {
            space::share(content, from, target, to, blocks).map_err(refusal)?;
        }
        let tail = there - blocks;
        let (done, ended) = space::copy(content, from + blocks, target, to + blocks, tail);
        ended.map_err(of_errno)?;
        space::zero(target, to + blocks + done..to + wanted, false).map_err(of_errno)?;
        sparse::flush_if_write_through(open)?;
        DONE
    })
}

/// NTSTATUS of what the file system says to sharing.
fn refusal(error: Errno) -> NtStatus {
    match error {
        Errno::XDEV => NtStatus::INVALID_PARAMETER,
        Errno::OPNOTSUPP => NtStatus::INVALID_DEVICE_REQUEST,
        other => of_errno(other),
    }
}
