//! READ (MS-SMB2 3.3.5.12).

use std::sync::atomic::Ordering;

use block_io::File;
use smb_protocol::{
    NtStatus,
    msg::{
        create::Access,
        rdma::CHANNEL_NONE,
        read::{REQUEST_COMPRESSED, Request, Response, UNBUFFERED},
    },
    wire::len32,
};
use volume::{open::whole_sectors, status::of_storage};

use super::{
    Ctx, Deferred, Handled, Outcome,
    remote::{Remote, taken_back_by_the_answer},
};
use crate::meters::path::Phase;

const MAX_OFFSET: u64 = i64::MAX as u64;

/// Handles a READ: what the page cache has is read straight into the output.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    if request.channel != CHANNEL_NONE {
        taken_back_by_the_answer(ctx, request.channel, request.channel_info);
    }
    let open = ctx.open(request.file_id)?;
    let len = request.length as usize;
    if len > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(len)?;
    let remote = match request.channel {
        CHANNEL_NONE => None,
        channel => Remote::of(ctx, channel, len > 0, request.channel_info)?,
    };
    let data = open.content(Access::READ_DATA.or(Access::EXECUTE))?;
    // MS-FSA 2.1.5.3
    let unbuffered = request.flags & UNBUFFERED != 0 && ctx.may_ask_unbuffered();
    if open.misaligned(request.offset, len as u64)
        || unbuffered && !whole_sectors(request.offset, len as u64)
    {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let end = request.offset.checked_add(len as u64);
    if end.is_none_or(|end| end > MAX_OFFSET) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    open.file.check_io(open.opener_id(), request.offset, len as u64, false)?;
    let len = if remote.is_some() { len } else { len.min(ctx.ex.room_of_answer()) };
    let least = request.minimum_count as usize;
    if let Some(remote) = remote {
        let (data, offset) = (data.clone(), request.offset);
        let timer = ctx.timer(&open);
        return Ok(Outcome::Deferred(Deferred::storage(len, async move {
            let mut content = vec![0; len];
            let got = timer.storage(Phase::Read, data.read_at(offset, &mut content)).await;
            let got = got.map_err(|error| of_storage(&error))?;
            check_count(got, len, least)?;
            open.position.store(offset + got as u64, Ordering::Relaxed);
            drop(open);
            content.truncate(got);
            remote.put(content).await
        })));
    }
    // What goes to the client's memory is not compressed. Older dialects do not know the flag, and have
    // agreed on no compression.
    if request.flags & REQUEST_COMPRESSED != 0 {
        ctx.compress_reply = Some(0);
    }
    let (start, padding) = (out.len(), ctx.ex.read_padding);
    out.resize(start + HEAD + usize::from(padding), 0);
    let begun = ctx.path.begin();
    if let Some(got) = data.read_now(request.offset, len, out)? {
        ctx.path.end(Phase::Read, begun);
        check_count(got, len, least)?;
        open.position.store(request.offset + got as u64, Ordering::Relaxed);
        out[start..start + HEAD].copy_from_slice(&head(got, padding));
        return Ok(Outcome::SUCCESS);
    }
    let (data, timer) = (data.clone(), ctx.timer(&open));
    Ok(Outcome::Deferred(Deferred::storage(len, async move {
        let start = HEAD + usize::from(padding);
        let mut body = vec![0; start + len];
        let read = data.read_at(request.offset, &mut body[start..]);
        let got = timer.storage(Phase::Read, read).await;
        let got = got.map_err(|error| of_storage(&error))?;
        drop(open);
        check_count(got, len, least)?;
        body.truncate(start + got);
        body[..HEAD].copy_from_slice(&head(got, padding));
        Ok(body)
    })))
}

/// Bytes of an answer before padding and data.
const HEAD: usize = 16;

/// The beginning of an answer with so much data.
fn head(got: usize, padding: u8) -> [u8; HEAD] {
    const DATA_OFFSET_AT: usize = 2;
    let mut head = Response::prefix(len32(got), 0);
    head[DATA_OFFSET_AT] += padding;
    head
}

/// A read that got nothing, or too little, met the end of the file.
fn check_count(got: usize, wanted: usize, least: usize) -> Result<(), NtStatus> {
    if got < least || got == 0 && wanted > 0 { Err(NtStatus::END_OF_FILE) } else { Ok(()) }
}
