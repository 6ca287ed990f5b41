//! Reparse points (MS-FSA 2.1.5.10.3, .14, .37; MS-SMB2 3.3.5.15.13): set, told and taken away. To this
//! server they are data, of whoever may write the file: nothing here follows them, so they lead nobody
//! anywhere, and a symbolic link needs no right beyond that.

use smb_protocol::{
    NtStatus,
    fscc::reparse::{LinkNames, ReparsePoint, ReparseRemoval, ReparseTag},
    msg::{create::Access, notify::ChangeFilter},
};
use volume::{
    fs::{
        attributes::{self, Facts},
        eas, listing,
        reparse::{self, Point, takes_eas},
    },
    open::Open,
};

use super::{Call, DONE, Handled, answer, answer_as};

/// Rights either of which allows a change.
const CHANGES: Access = Access(Access::WRITE_DATA.0 | Access::WRITE_ATTRIBUTES.0);

/// The reparse point of a file, as much of it as there is room for.
pub fn get(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let point = reparse::of(call.open.volume(), call.open.handle())?
        .ok_or(NtStatus::NOT_A_REPARSE_POINT)?;
    let (room, buffer) = (call.room(), point.buffer());
    if room < ReparsePoint::header_len(point.tag()) {
        return Err(NtStatus::BUFFER_TOO_SMALL.into());
    }
    match buffer.get(..room) {
        Some(part) if room < buffer.len() => {
            answer_as(NtStatus::BUFFER_OVERFLOW, call.request, part, out)
        }
        _ => answer(call.request, buffer, out),
    }
}

/// Makes a file or folder a reparse point, or changes the data of one.
pub fn set(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let open = &call.open;
    let permit = open.permit(CHANGES)?;
    let input = call.request.input;
    if input.is_empty() {
        return Err(NtStatus::INVALID_BUFFER_SIZE.into());
    }
    let wrong = |_| NtStatus::IO_REPARSE_DATA_INVALID;
    let point = ReparsePoint::parse(input).map_err(wrong)?;
    let facts = attributes::facts(open.handle())?;
    if point.tag == ReparseTag::MOUNT_POINT && !facts.directory {
        return Err(NtStatus::NOT_A_DIRECTORY.into());
    }
    match point.tag {
        ReparseTag::SYMLINK => drop(LinkNames::parse_symlink(point.data).map_err(wrong)?),
        ReparseTag::MOUNT_POINT => drop(LinkNames::parse_mount_point(point.data).map_err(wrong)?),
        _ => {}
    }
    may_be(open, &facts, point.tag)?;
    if let Some(old) = reparse::of(open.volume(), open.handle())? {
        same_owner(&old, point.tag, point.guid)?;
    }
    if facts.directory && facts.reparse_tag == 0 {
        reparse::keep_on_folder(permit, open.folder(), &point)?;
    } else {
        reparse::keep(permit, open.handle(), &point)?;
    }
    changed(open, ChangeFilter::ATTRIBUTES);
    done(call, out)
}

/// Whether a file or folder can be a reparse point with this tag.
fn may_be(open: &Open, facts: &Facts, tag: ReparseTag) -> Result<(), NtStatus> {
    if open.last_path()?.is_root() {
        // The share would lead away from itself.
        return Err(NtStatus::INVALID_PARAMETER);
    }
    if facts.directory && !listing::is_empty(open.folder()).map_err(volume::status::of_errno)? {
        return Err(NtStatus::DIRECTORY_NOT_EMPTY);
    }
    if tag == ReparseTag::SYMLINK && !facts.directory && open.length()? != 0 {
        return Err(NtStatus::IO_REPARSE_DATA_INVALID);
    }
    if facts.reparse_tag == 0 && eas::size(open.handle()) != 0 && !takes_eas(tag.0) {
        return Err(NtStatus::EAS_NOT_SUPPORTED);
    }
    Ok(())
}

/// Fails unless a reparse point is of whoever wants to change it or take it away.
fn same_owner(old: &Point, tag: ReparseTag, guid: Option<[u8; 16]>) -> Result<(), NtStatus> {
    if old.tag() != tag {
        return Err(NtStatus::IO_REPARSE_TAG_MISMATCH);
    }
    if old.guid() != guid {
        return Err(NtStatus::REPARSE_ATTRIBUTE_CONFLICT);
    }
    Ok(())
}

/// Takes a reparse point away; the file stays, with its content.
pub fn delete(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let open = &call.open;
    let permit = open.permit(CHANGES)?;
    let wanted =
        ReparseRemoval::parse(call.request.input).map_err(|_| NtStatus::IO_REPARSE_DATA_INVALID)?;
    if wanted.tag.is_reserved() {
        return Err(NtStatus::IO_REPARSE_TAG_INVALID.into());
    }
    let old = reparse::of(open.volume(), open.handle())?.ok_or(NtStatus::NOT_A_REPARSE_POINT)?;
    same_owner(&old, wanted.tag, wanted.guid)?;
    reparse::remove(permit, open.handle())?;
    // MS-FSA 2.1.5.10.3 names the time of the last access alone; the attributes have changed as well.
    changed(open, ChangeFilter::ATTRIBUTES | ChangeFilter::LAST_ACCESS);
    done(call, out)
}

/// The file is dated, and those who watch are told.
fn changed(open: &Open, filter: ChangeFilter) {
    open.note_change();
    open.tell_modified(filter);
}

/// Answers, once the change is durable where the open wants that.
fn done(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if !call.open.write_through() {
        return answer(call.request, &[], out);
    }
    call.later(0, false, |open| {
        open.sync_all()?;
        DONE
    })
}
