//! QUERY_DIRECTORY (MS-SMB2 3.3.5.18).

use std::sync::PoisonError;

use smb_protocol::{
    NtStatus,
    fscc::directory::fixed_len,
    msg::{
        create::Access,
        query_directory::{Flags, Request},
    },
    wire::Put,
};

use super::{Ctx, Handled};
use crate::volume::listing::Listing;

/// Room for the fields in front of the entries.
const PREFIX: [u8; 8] = [9, 0, 72, 0, 0, 0, 0, 0];

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
    let mut slot = open.listing.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() || request.flags.any(Flags::REOPEN) {
        let limit = ctx.ex.limits().directory_entries;
        *slot = Some(Listing::start(open.folder(), &request.pattern, limit)?);
    } else if request.flags.has(Flags::RESTART_SCANS) {
        match slot.as_mut() {
            Some(listing) if request.pattern.is_empty() => listing.rewind(),
            _ => {
                let limit = ctx.ex.limits().directory_entries;
                *slot = Some(Listing::start(open.folder(), &request.pattern, limit)?);
            }
        }
    }
    let Some(listing) = slot.as_mut() else { return Err(NtStatus::INTERNAL_ERROR.into()) };
    out.put(&PREFIX);
    let start = out.len();
    let mut last = None;
    while let Some(entry) = listing.peek(open.folder()) {
        let before = out.len();
        out.pad_to(start, 8);
        let at = out.len();
        entry.encode(request.class, out);
        if out.len() - start > room {
            out.truncate(before);
            if last.is_none() {
                return Err(NtStatus::BUFFER_OVERFLOW.into());
            }
            break;
        }
        if let Some(last) = last {
            let next = (at - last) as u32;
            out.patch(last, &next.to_le_bytes());
        }
        last = Some(at);
        listing.advance();
        if request.flags.has(Flags::RETURN_SINGLE_ENTRY) {
            break;
        }
    }
    let first = listing.first_answer();
    if last.is_none() {
        let none = if first { NtStatus::NO_SUCH_FILE } else { NtStatus::NO_MORE_FILES };
        return Err(none.into());
    }
    let len = (out.len() - start) as u32;
    out.patch(start - 4, &len.to_le_bytes());
    Ok(NtStatus::SUCCESS)
}
