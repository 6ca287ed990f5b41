//! WRITE and FLUSH (MS-SMB2 3.3.5.13, 3.3.5.11).

use std::{
    io::IoSlice,
    sync::{Arc, atomic::Ordering},
};

use block_io::{File, LocalFile, SplicePipe};
use rustix::{
    fs::OFlags,
    io::{Errno, ReadWriteFlags},
};
use smb_protocol::{
    NtStatus,
    fscc::FileAttributes,
    header::HEADER_LEN,
    msg::{
        create::Access,
        flush,
        rdma::CHANNEL_NONE,
        simple::Empty,
        write::{DATA_OFFSET, Request, Response, UNBUFFERED, WRITE_THROUGH},
    },
};
use volume::{
    fs::descriptor::reopen,
    open::{Open, whole_sectors},
    status::{of_errno, of_storage},
};

use super::{
    Ctx, Deferred, Failure, Handled, Outcome,
    remote::{Remote, taken_back_by_the_answer},
};
use crate::meters::path::Phase;

const MAX_OFFSET: u64 = i64::MAX as u64;
/// Parts of pages are not placed: what is not in the page cache would have to be read for them.
const PAGE: u64 = 4096;

/// Handles a WRITE: the page cache takes it inline; write-through waits for the disk.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse_rest(body, ctx.placed)?;
    if request.channel != CHANNEL_NONE {
        taken_back_by_the_answer(ctx, request.channel, request.channel_info);
        if let Some(remote) = from_remote(ctx, body, &request)? {
            return write_remote(ctx, request, remote);
        }
    }
    ctx.check_charge(request.length as usize)?;
    let (open, data) = begin(ctx, &request)?;
    let through = request.flags & WRITE_THROUGH != 0 || open.write_through();
    let count = request.length;
    if count == 0 {
        // Nothing is written, so nothing changes (MS-FSA 2.1.5.4).
        Response { count }.encode(out);
        return Ok(Outcome::SUCCESS);
    }
    open.note_write();
    let offset = request.offset + ctx.placed as u64;
    #[cfg(test)]
    let late = open.table().faults.is_late();
    #[cfg(not(test))]
    let late = false;
    let begun = ctx.path.begin();
    let written = if appends_only(&open) && offset == open.length()? {
        append(&data, request.data)?;
        true
    } else {
        !late && data.write_now(offset, request.data)?
    };
    if written {
        ctx.path.end(Phase::Write, begun);
    }
    if written && !through {
        Response { count }.encode(out);
        return Ok(Outcome::SUCCESS);
    }
    let rest = if written { Vec::new() } else { request.data.to_vec() };
    let timer = ctx.timer(&open);
    Ok(Outcome::Deferred(Deferred::storage(rest.len(), async move {
        if !rest.is_empty() {
            let write = data.write_at(offset, &rest);
            timer.storage(Phase::Write, write).await.map_err(|error| of_storage(&error))?;
        }
        if through {
            timer.storage(Phase::Sync, open.make_durable()).await?;
        }
        let mut body = Vec::with_capacity(16);
        Response { count }.encode(&mut body);
        Ok(body)
    })))
}

/// The client's memory in which the data of a WRITE are, if they are not in the message.
fn from_remote(
    ctx: &Ctx<'_>,
    body: &[u8],
    request: &Request<'_>,
) -> Result<Option<Remote>, NtStatus> {
    let elsewhere = request.length == 0 && Request::data_offset(body).is_ok_and(|at| at == 0);
    let used = elsewhere && request.remaining > 0;
    let Some(remote) = Remote::of_write(ctx, request.channel, used, request.channel_info)? else {
        return Ok(None);
    };
    let too_long = request.remaining as usize > ctx.ex.max_message();
    if too_long || remote.begins_empty() || remote.len() < u64::from(request.remaining) {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    Ok(Some(remote))
}

/// A WRITE whose data are fetched from the client's memory, once all else has been checked. It pays
/// for `Length`, which is 0 (3.3.5.13).
fn write_remote(ctx: &mut Ctx<'_>, mut request: Request<'_>, remote: Remote) -> Handled {
    (request.length, request.remaining) = (request.remaining, 0);
    let (open, data) = begin(ctx, &request)?;
    let through = request.flags & WRITE_THROUGH != 0 || open.write_through();
    open.note_write();
    let (offset, count) = (request.offset, request.length);
    let timer = ctx.timer(&open);
    Ok(Outcome::Deferred(Deferred::storage(count as usize, async move {
        let bytes = remote.get(count as usize).await?;
        if appends_only(&open) && offset == open.length()? {
            append(&data, &bytes)?;
        } else {
            let write = data.write_at(offset, &bytes);
            timer.storage(Phase::Write, write).await.map_err(|error| of_storage(&error))?;
        }
        if through {
            timer.storage(Phase::Sync, open.make_durable()).await?;
        }
        let mut body = Vec::with_capacity(16);
        Response { count }.encode(&mut body);
        Ok(body)
    })))
}

/// Puts what has come of the data of a WRITE into its file, behind the `placed` bytes before it,
/// while the rest is still on its way: whole pages, if the WRITE could be carried out at once. They
/// are in the message, or in `pipe` if there is one; `missing` are still to come. Says how many
/// bytes went.
pub fn place(
    ctx: &mut Ctx<'_>,
    message: &[u8],
    placed: usize,
    missing: usize,
    pipe: Option<&mut SplicePipe>,
) -> Option<usize> {
    let (head, data) = message.split_at_checked(DATA_OFFSET)?;
    if Request::data_offset(&head[HEADER_LEN..]).ok()? != DATA_OFFSET {
        return None;
    }
    let request = Request::parse_rest(&head[HEADER_LEN..], usize::MAX).ok()?;
    let here = pipe.as_ref().map_or(data.len(), |pipe| pipe.held());
    if request.channel != CHANNEL_NONE {
        return None;
    }
    let left = (request.length as usize).checked_sub(placed)?;
    if left > here + missing {
        // It names more than its message has, and will be refused.
        return None;
    }
    let offset = request.offset.checked_add(placed as u64)?;
    let here = here.min(left);
    let pages = here.checked_sub((offset.checked_add(here as u64)? % PAGE) as usize)?;
    ctx.check_charge(request.length as usize).ok()?;
    let (open, file) = begin(ctx, &request).ok()?;
    if appends_only(&open) {
        // It is put behind the end as a whole.
        return None;
    }
    match pipe {
        _ if pages == 0 => Some(0),
        Some(pipe) => file.write_piped(offset, pipe, pages).ok().filter(|taken| *taken > 0),
        None => file.write_now(offset, &data[..pages]).ok()?.then_some(pages),
    }
}

/// Checks all that is to be checked of a WRITE, and does what goes before the data: others lose
/// what they cache.
fn begin(ctx: &mut Ctx<'_>, request: &Request<'_>) -> Result<(Arc<Open>, Arc<LocalFile>), Failure> {
    let open = ctx.open(request.file_id)?;
    let len = request.length as usize;
    if len > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let data = open.writable(Access::WRITE_DATA.or(Access::APPEND_DATA))?.clone();
    // MS-FSA 2.1.5.4
    let unbuffered = request.flags & UNBUFFERED != 0 && ctx.may_ask_unbuffered();
    if open.misaligned(request.offset, len as u64)
        || unbuffered && !whole_sectors(request.offset, len as u64)
    {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let end = request.offset.checked_add(len as u64);
    let Some(end) = end.filter(|end| *end <= MAX_OFFSET) else {
        return Err(NtStatus::INVALID_PARAMETER.into());
    };
    if len > 0 && end > ctx.ex.limits().file_size.0 {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if len > 0 && end > open.known_end.load(Ordering::Relaxed) {
        check_gap(&open, request.offset, end)?;
    }
    if len == 0 {
        return Ok((open, data));
    }
    if appends_only(&open) && request.offset < open.length()? {
        // MS-SMB2 3.3.5.13: the right to append is none to change what is there.
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    open.file.check_io(open.opener_id(), request.offset, len as u64, true)?;
    open.break_read_caching()?;
    open.position.store(end, Ordering::Relaxed);
    if !open.written.load(Ordering::Relaxed) {
        open.written.store(true, Ordering::Relaxed);
    }
    if open.table().is_watched() {
        open.tell_written();
    }
    Ok((open, data))
}

/// Whether what is there already is not to be changed through this open.
pub fn appends_only(open: &Open) -> bool {
    !open.access.has(Access::WRITE_DATA)
}

/// Puts data behind the end of a file. The system looks for the end, so of two who append at the
/// same time neither writes over the other.
fn append(data: &LocalFile, mut bytes: &[u8]) -> Result<(), NtStatus> {
    while !bytes.is_empty() {
        let parts = [IoSlice::new(bytes)];
        match rustix::io::pwritev2(data, &parts, 0, ReadWriteFlags::APPEND) {
            Ok(0) => return Err(NtStatus::DISK_FULL),
            Ok(taken) => bytes = &bytes[taken..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(of_errno(error)),
        }
    }
    Ok(())
}

/// A write may not leave a gap that the volume could never fill: as on NTFS, only a file that was
/// made sparse may be longer than the space there is.
fn check_gap(open: &Open, offset: u64, end: u64) -> Result<(), Failure> {
    if offset == 0 {
        // Nothing is before it.
        open.known_end.store(end, Ordering::Relaxed);
        return Ok(());
    }
    let length = open.length()?;
    if offset > length {
        let space = rustix::fs::fstatvfs(open.handle())?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let sparse = FileAttributes::SPARSE_FILE;
        if offset - length > free && !open.facts()?.attributes.has(sparse) {
            return Err(NtStatus::DISK_FULL.into());
        }
    }
    open.known_end.store(end.max(length), Ordering::Relaxed);
    Ok(())
}

/// Handles a FLUSH: answered when the disk has everything that was answered before.
pub fn flush(ctx: &mut Ctx<'_>, body: &[u8]) -> Handled {
    let request = flush::Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    let writes = Access::WRITE_DATA.or(Access::APPEND_DATA);
    open.need(writes)?;
    let hardened = open.make_durable();
    let timer = ctx.timer(&open);
    Ok(Outcome::Deferred(Deferred::storage(0, async move {
        if open.directory {
            // MS-FSA 2.1.5.7: what the folder itself holds.
            let folder = rustix::io::fcntl_dupfd_cloexec(open.handle(), 0).map_err(of_errno)?;
            let flushed = tokio::task::spawn_blocking(move || {
                rustix::fs::fsync(reopen(&folder, OFlags::RDONLY | OFlags::DIRECTORY)?)
            });
            flushed.await.unwrap_or(Err(Errno::IO)).map_err(of_errno)?;
        } else {
            timer.storage(Phase::Sync, hardened).await?;
        }
        let mut body = Vec::new();
        Empty.encode(&mut body);
        Ok(body)
    })))
}
