//! QUERY_DIRECTORY (MS-SMB2 3.3.5.18).
//!
//! An answer has at most [`ENTRIES`] entries, and what is found in [`SLICE`] of time; a search that
//! finds nothing in that time goes on beside the connection, whose other requests go on too.

use std::{
    sync::{Arc, PoisonError},
    time::Instant,
};

use smb_protocol::{
    NtStatus,
    fscc::{InfoClass, directory::fixed_len},
    msg::{
        create::Access,
        query_directory::{Flags, Request},
    },
    wire::Put,
};

use super::{Ctx, Fail, Handled, Later};
use crate::{
    status::of_errno,
    volume::{
        listing::{HELD, Listing, Step},
        open::Open,
    },
    work::SLICE,
};

/// Room for the fields in front of the entries.
const PREFIX: [u8; 8] = [9, 0, 72, 0, 0, 0, 0, 0];
/// Entries of one answer.
const ENTRIES: usize = 512;

/// How a listing is answered.
#[derive(Clone, Copy)]
struct Shape {
    class: InfoClass,
    room: usize,
    single: bool,
}

/// Handles a QUERY_DIRECTORY.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    let room = request.output_len as usize;
    if room > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(room)?;
    if !open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    open.need(Access::READ_DATA)?;
    let fixed = fixed_len(request.class).ok_or(NtStatus::INVALID_INFO_CLASS)?;
    if room < fixed {
        return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
    }
    let readable_by =
        if ctx.tree()?.hides_unreadable { Some(ctx.session()?.sids.clone().into()) } else { None };
    // A file index means nothing here, as on NTFS: names have no fixed places.
    let budget = ctx.budget()?;
    let start = || {
        let held = budget.take(HELD).ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
        Listing::start(open.folder(), &request.pattern, readable_by, held)
    };
    let mut slot = open.listing.lock().unwrap_or_else(PoisonError::into_inner);
    match slot.as_mut() {
        Some(_) if request.flags.any(Flags::REOPEN) => *slot = Some(start()?),
        Some(listing) if request.flags.has(Flags::RESTART_SCANS) => {
            if request.pattern.is_empty() {
                listing.rewind();
            } else {
                *slot = Some(start()?);
            }
        }
        Some(_) => {}
        None => *slot = Some(start()?),
    }
    drop(slot);
    let single = request.flags.has(Flags::RETURN_SINGLE_ENTRY);
    let shape = Shape { class: request.class, room, single };
    let before = out.len();
    if fill(&open, shape, Some(Instant::now() + SLICE), out)? {
        return Ok(NtStatus::SUCCESS);
    }
    out.truncate(before);
    Err(Fail::Later(Later::storage(room, async move {
        let search = move || {
            let mut body = Vec::new();
            fill(&open, shape, None, &mut body).map(|_| body)
        };
        let found = tokio::task::spawn_blocking(search).await;
        found.unwrap_or(Err(NtStatus::INTERNAL_ERROR))
    })))
}

/// Appends an answer; `false` if nothing was found until then.
fn fill(
    open: &Arc<Open>,
    shape: Shape,
    until: Option<Instant>,
    out: &mut Vec<u8>,
) -> Result<bool, NtStatus> {
    let mut slot = open.listing.lock().unwrap_or_else(PoisonError::into_inner);
    let listing = slot.as_mut().ok_or(NtStatus::FILE_CLOSED)?;
    out.put(&PREFIX);
    let start = out.len();
    let (mut last, mut count) = (None, 0);
    while count < if shape.single { 1 } else { ENTRIES } {
        let entry = match listing.peek(open.folder(), until).map_err(of_errno)? {
            Step::Entry(entry) => entry,
            Step::End => break,
            Step::Unknown if last.is_some() => break,
            Step::Unknown => return Ok(false),
        };
        let before = out.len();
        out.pad_to(start, 8);
        let at = out.len();
        entry.encode(shape.class, out);
        if out.len() - start > shape.room {
            out.truncate(before);
            if last.is_none() {
                return Err(NtStatus::BUFFER_OVERFLOW);
            }
            break;
        }
        if let Some(last) = last {
            let next = (at - last) as u32;
            out.patch(last, &next.to_le_bytes());
        }
        last = Some(at);
        count += 1;
        listing.advance();
    }
    let first = listing.first_answer();
    if last.is_none() {
        return Err(if first { NtStatus::NO_SUCH_FILE } else { NtStatus::NO_MORE_FILES });
    }
    let len = (out.len() - start) as u32;
    out.patch(start - 4, &len.to_le_bytes());
    Ok(true)
}
