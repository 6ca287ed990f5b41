//! SET_INFO (MS-SMB2 3.3.5.21): what each class changes and which right it needs. What changes names
//! is in [`names`].

mod names;

use std::{
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
};

use smb_protocol::{
    NtStatus,
    fscc::{
        FileAttributes, InfoClass,
        file_info::{self, Basic, Disposition, Rename},
    },
    msg::{
        create::Access,
        notify::ChangeFilter,
        query_info::InfoType,
        set_info::{Request, Response},
    },
    security::{Descriptor, parts},
};
use state_store::Commit;
use volume::{
    fs::{attributes, descriptor::set_length, eas, listing, security},
    open::{Open, create::reserve, persistent::of_store},
    sharing::caching::BreakReason,
};

use super::{Ctx, Deferred, Failure, Handled, Outcome, create::sync_all};

/// Carries out a SET_INFO request.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    ctx.check_charge(request.input.len())?;
    let noted = match request.info_type {
        InfoType::FILE => file(ctx, &open, request.class, request.input)?,
        InfoType::SECURITY => {
            let which = request.additional;
            // MS-SMB2 3.3.5.21.3, MS-FSA 2.1.5.17.
            let permit = open.volume().permit(open.ceiling)?;
            if which & parts::DACL != 0 {
                open.need(Access::WRITE_DAC)?;
            }
            if which & (parts::OWNER | parts::GROUP) != 0 {
                open.need(Access::WRITE_OWNER)?;
            }
            if which & parts::SACL != 0 {
                open.need(Access::ACCESS_SYSTEM_SECURITY)?;
            }
            let change =
                Descriptor::parse(request.input).map_err(|_| NtStatus::INVALID_SECURITY_DESCR)?;
            // MS-FSA 2.1.5.17: who caches the handle opens anew under another list.
            open.break_conflicting(BreakReason::Security)?;
            let directory = attributes::facts(open.handle())?.directory;
            security::update(
                permit,
                open.handle(),
                directory,
                which,
                change,
                &ctx.session()?.sids,
            )?;
            Vec::new()
        }
        // MS-SMB2 3.3.5.21.2, 3.3.5.21.4: of a file system nothing is set, and there are no quotas.
        _ => return Err(NtStatus::NOT_SUPPORTED.into()),
    };
    if let Some(filter) = modified(request.info_type, request.class, request.input) {
        open.tell_modified(filter);
    }
    if ctx.tree()?.continuous {
        return Ok(stays(open, request.class, noted).into());
    }
    Response.encode(out);
    Ok(Outcome::SUCCESS)
}

/// Answers when what was changed is durable, and with it what is remembered of persistent opens.
fn stays(open: Arc<Open>, class: InfoClass, noted: Vec<Commit>) -> Deferred {
    Deferred::storage(0, async move {
        for noted in noted {
            noted.await.map_err(|error| of_store(&error))?;
        }
        // What stands in no file needs no disk.
        if !matches!(class, InfoClass::POSITION | InfoClass::MODE) {
            sync_all(open).await?;
        }
        let mut body = Vec::new();
        Response.encode(&mut body);
        Ok(body)
    })
}

/// What a change of information is of interest to, beside names.
fn modified(info_type: InfoType, class: InfoClass, input: &[u8]) -> Option<ChangeFilter> {
    if info_type == InfoType::SECURITY {
        return Some(ChangeFilter::SECURITY);
    }
    match class {
        InfoClass::BASIC => {
            let set = |at: usize, len: usize| {
                input.get(at..at + len).is_some_and(|field| field.iter().any(|byte| *byte != 0))
            };
            let mut filter = ChangeFilter::NONE;
            for (at, len, flag) in [
                (0, 8, ChangeFilter::CREATION),
                (8, 8, ChangeFilter::LAST_ACCESS),
                (16, 8, ChangeFilter::LAST_WRITE),
                (32, 4, ChangeFilter::ATTRIBUTES),
            ] {
                if set(at, len) {
                    filter |= flag;
                }
            }
            Some(filter)
        }
        InfoClass::END_OF_FILE | InfoClass::ALLOCATION => {
            Some(ChangeFilter::SIZE | ChangeFilter::LAST_WRITE)
        }
        InfoClass::FULL_EA => Some(ChangeFilter::EA),
        _ => None,
    }
}

/// The right that a class needs on the open; none for what changes nothing that others see, and for
/// a link, whose rights are those in the file and in its new folder.
fn right(class: InfoClass) -> Option<Access> {
    Some(match class {
        // MS-FSA 2.1.5.15.2
        InfoClass::BASIC => Access::WRITE_ATTRIBUTES,
        // MS-FSA 2.1.5.15.1, .5, .15
        InfoClass::ALLOCATION | InfoClass::END_OF_FILE | InfoClass::VALID_DATA_LENGTH => {
            Access::WRITE_DATA
        }
        // MS-FSA 2.1.5.15.3, .4, .12
        InfoClass::DISPOSITION
        | InfoClass::DISPOSITION_EX
        | InfoClass::RENAME
        | InfoClass::RENAME_EX => Access::DELETE,
        // MS-FSA 2.1.5.15.6
        InfoClass::FULL_EA => Access::WRITE_EA,
        _ => return None,
    })
}

/// Changes what a class names (MS-SMB2 3.3.5.21.1); what was noted of it in the state store.
fn file(
    ctx: &Ctx<'_>,
    open: &Open,
    class: InfoClass,
    input: &[u8],
) -> Result<Vec<Commit>, Failure> {
    let short = |_| NtStatus::INFO_LENGTH_MISMATCH;
    if let Some(right) = right(class) {
        open.permit(right)?;
    }
    match class {
        InfoClass::BASIC => {
            let basic = Basic::parse(input).map_err(short)?;
            let kinds = FileAttributes::DIRECTORY;
            let times =
                [basic.times.creation, basic.times.access, basic.times.write, basic.times.change];
            if times.iter().any(|time| (i64::MAX as u64 + 1..u64::MAX - 1).contains(time))
                || basic.attributes.has(kinds) && !open.directory
                || basic.attributes.has(FileAttributes::TEMPORARY) && open.directory
            {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.set_basic(&basic)?;
        }
        InfoClass::END_OF_FILE => {
            let data = open.writable(Access::WRITE_DATA)?;
            let len = file_info::parse_length(input).map_err(short)?;
            if len > i64::MAX as u64 {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.break_read_caching()?;
            open.base_file().times.settle();
            set_length(data.as_fd(), len)?;
        }
        InfoClass::ALLOCATION => {
            let data = open.writable(Access::WRITE_DATA)?;
            let size = file_info::parse_length(input).map_err(short)?;
            if size > i64::MAX as u64 {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.break_read_caching()?;
            if size < open.facts()?.end_of_file {
                set_length(data.as_fd(), size)?;
            } else if size > 0 {
                reserve(data.as_fd(), size)?;
            }
        }
        // Everything up to the end of the file is valid data here.
        InfoClass::VALID_DATA_LENGTH => {
            open.writable(Access::WRITE_DATA)?;
            file_info::parse_length(input).map_err(short)?;
        }
        InfoClass::POSITION => {
            let position = file_info::parse_length(input).map_err(short)?;
            open.position.store(position, Ordering::Relaxed);
        }
        InfoClass::MODE => {
            let mode = input.first_chunk::<4>().ok_or(NtStatus::INFO_LENGTH_MISMATCH)?;
            open.set_mode(u32::from_le_bytes(*mode))?;
        }
        InfoClass::DISPOSITION => {
            let delete = file_info::parse_disposition(input).map_err(short)?;
            let flags = if delete { Disposition::DELETE } else { Disposition::NONE };
            set_disposition(open, flags)?;
            return Ok(open.note_file());
        }
        InfoClass::DISPOSITION_EX => {
            set_disposition(open, Disposition::parse(input).map_err(short)?)?;
            return Ok(open.note_file());
        }
        InfoClass::RENAME | InfoClass::RENAME_EX => {
            let ex = class == InfoClass::RENAME_EX;
            let parse = if ex { Rename::parse_ex } else { Rename::parse };
            return names::rename(ctx, open, &parse(input).map_err(short)?);
        }
        InfoClass::LINK | InfoClass::LINK_EX => {
            let ex = class == InfoClass::LINK_EX;
            let parse = if ex { Rename::parse_ex } else { Rename::parse };
            names::link(ctx, open, &parse(input).map_err(short)?)?;
        }
        InfoClass::FULL_EA => {
            let list = eas::parse(input)?;
            eas::set(open.permit(Access::WRITE_EA)?, open.handle(), list)?;
        }
        _ => return Err(NtStatus::INVALID_INFO_CLASS.into()),
    }
    Ok(Vec::new())
}

/// Marks a file to be deleted when its last opener leaves, or with POSIX' rules when this one does
/// (MS-FSA 2.1.5.15.3, 2.1.5.15.4).
fn set_disposition(open: &Open, flags: Disposition) -> Result<(), Failure> {
    if flags.without(Disposition::ALL) != Disposition::NONE {
        return Err(NtStatus::NOT_SUPPORTED.into());
    }
    let delete = flags.has(Disposition::DELETE);
    if flags.has(Disposition::ON_CLOSE) {
        // It speaks of what the open was made for, and only of that.
        if !open.delete_on_close.load(Ordering::Acquire) {
            return Err(NtStatus::NOT_SUPPORTED.into());
        }
        open.delete_on_close.store(delete, Ordering::Release);
        open.posix_delete
            .store(delete && flags.has(Disposition::POSIX_SEMANTICS), Ordering::Release);
        return Ok(());
    }
    if delete {
        open.break_conflicting(BreakReason::Delete)?;
        let root = open.stream.is_none() && open.last_path()?.is_root();
        let ignores =
            flags.has(Disposition::IGNORE_READONLY) && open.access.has(Access::WRITE_ATTRIBUTES);
        let readonly = open.facts()?.attributes.has(FileAttributes::READONLY);
        if root || readonly && !ignores {
            return Err(NtStatus::CANNOT_DELETE.into());
        }
        if open.directory && open.stream.is_none() && !listing::is_empty(open.folder())? {
            return Err(NtStatus::DIRECTORY_NOT_EMPTY.into());
        }
    } else {
        open.delete_on_close.store(false, Ordering::Release);
    }
    open.posix_delete.store(delete && flags.has(Disposition::POSIX_SEMANTICS), Ordering::Release);
    open.set_delete_pending(delete);
    if delete && open.directory {
        open.table().watches.gone(open.file.key());
    }
    Ok(())
}
