//! QUERY_DIRECTORY (MS-SMB2 3.3.5.18).
//!
//! An answer has at most [`ENTRIES`] entries. A search that is not done after [`work::SLICE`] of time goes
//! on beside the connection, whose other requests go on too.

use std::{sync::PoisonError, time::Instant};

use smb_protocol::{
    NtStatus,
    fscc::{InfoClass, directory::fixed_len},
    msg::{
        create::Access,
        query_directory::{Flags, Request},
    },
    wire::Put,
};
use volume::{
    fs::listing::{HELD, Listing, Step},
    open::Open,
    status::of_errno,
    work,
};

use super::{Ctx, Deferred, Handled, Outcome};

/// Room for the fields in front of the entries.
const PREFIX: [u8; 8] = [9, 0, 72, 0, 0, 0, 0, 0];
/// Entries of one answer.
const ENTRIES: usize = 512;

/// How a listing is answered.
#[derive(Clone, Copy)]
struct Shape {
    class: InfoClass,
    /// Bytes that entries may take.
    room: usize,
    /// Entries at most.
    most: usize,
}

/// Carries out a QUERY_DIRECTORY request.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    let room = request.output_len as usize;
    if room > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(room)?;
    let room = room.min(ctx.ex.room_of_answer());
    if !open.directory {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    open.need(Access::READ_DATA)?;
    // Those of the index of all reparse points among them: no share is the root of a volume, where that
    // would be (MS-FSA 2.1.5.6.2).
    let fixed = fixed_len(request.class).ok_or(NtStatus::INVALID_INFO_CLASS)?;
    if room < fixed {
        return Err(NtStatus::INFO_LENGTH_MISMATCH.into());
    }
    let readable_by = if ctx.tree()?.share.access_based_enumeration {
        Some(ctx.session()?.sids.clone().into())
    } else {
        None
    };
    // A file index means nothing here, as on NTFS: names have no fixed places.
    let budget = ctx.budget()?;
    let start = || {
        let held = budget.take(HELD).ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
        Listing::start(open.volume(), open.folder(), &request.pattern, readable_by, held)
    };
    let mut slot = open.listing.lock().unwrap_or_else(PoisonError::into_inner);
    match slot.as_mut() {
        // With a new pattern it is not the first query either (MS-FSA 2.1.5.6.3).
        Some(listing) if request.flags.any(Flags::REOPEN) => listing.restart(&request.pattern)?,
        Some(listing) if request.flags.has(Flags::RESTART_SCANS) => {
            if request.pattern.is_empty() {
                listing.rewind();
            } else {
                listing.restart(&request.pattern)?;
            }
        }
        Some(_) => {}
        None => *slot = Some(start()?),
    }
    drop(slot);
    let most = if request.flags.has(Flags::RETURN_SINGLE_ENTRY) { 1 } else { ENTRIES };
    let shape = Shape { class: request.class, room, most };
    let before = out.len();
    let begun = Filling::begin(out);
    match begun.fill(&open, shape, Some(work::slice_end()), out)? {
        Filled::Whole => Ok(Outcome::SUCCESS),
        Filled::Partly(filling) => {
            let mut body = out.split_off(before);
            let filling = filling.moved(before);
            Ok(Outcome::Deferred(Deferred::storage(room, async move {
                let search =
                    move || filling.fill(&open, shape, None, &mut body).map(|_filled| body);
                let found = tokio::task::spawn_blocking(search).await;
                found.unwrap_or(Err(NtStatus::INTERNAL_ERROR))
            })))
        }
    }
}

/// An answer that is being filled: where its entries are in the buffer.
#[derive(Debug)]
struct Filling {
    start: usize,
    last: Option<usize>,
    count: usize,
}

/// What came of it.
enum Filled {
    /// No more entries fit, or there are none.
    Whole,
    /// Time was over before that. A client may take a short answer for the end of the folder, so it
    /// gets none.
    Partly(Filling),
}

impl Filling {
    fn begin(out: &mut Vec<u8>) -> Self {
        out.put(&PREFIX);
        Self { start: out.len(), last: None, count: 0 }
    }

    /// The same in a buffer that begins `by` bytes later.
    fn moved(self, by: usize) -> Self {
        Self { start: self.start - by, last: self.last.map(|at| at - by), count: self.count }
    }

    /// Appends entries until the answer is whole, or for as long as others may be kept waiting.
    ///
    /// # Errors
    /// NO_SUCH_FILE and NO_MORE_FILES if there is no entry, BUFFER_OVERFLOW if there is no room for
    /// one (MS-SMB2 3.3.5.18); what the file system says.
    fn fill(
        mut self,
        open: &Open,
        shape: Shape,
        until: Option<Instant>,
        out: &mut Vec<u8>,
    ) -> Result<Filled, NtStatus> {
        let mut slot = open.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let listing = slot.as_mut().ok_or(NtStatus::FILE_CLOSED)?;
        while self.count < shape.most {
            let entry = match listing.peek(open.folder(), until).map_err(of_errno)? {
                Step::Entry(entry) => entry,
                Step::End => break,
                Step::Unknown => return Ok(Filled::Partly(self)),
            };
            let before = out.len();
            out.pad_to(self.start, 8);
            let at = out.len();
            entry.encode(shape.class, out);
            if out.len() - self.start > shape.room {
                out.truncate(before);
                if self.last.is_none() {
                    return Err(NtStatus::BUFFER_OVERFLOW);
                }
                break;
            }
            if let Some(last) = self.last {
                let next = (at - last) as u32;
                out.patch(last, &next.to_le_bytes());
            }
            self.last = Some(at);
            self.count += 1;
            listing.advance();
        }
        let first = listing.first_answer();
        if self.last.is_none() {
            return Err(if first { NtStatus::NO_SUCH_FILE } else { NtStatus::NO_MORE_FILES });
        }
        let len = (out.len() - self.start) as u32;
        out.patch(self.start - 4, &len.to_le_bytes());
        Ok(Filled::Whole)
    }
}
