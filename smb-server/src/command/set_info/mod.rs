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
        fs_info,
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
    fs::{
        attributes,
        descriptor::{cluster_size, set_length},
        eas, listing,
        reparse::takes_eas,
        security,
        space::reserve,
    },
    open::{Open, persistent::of_store},
    sharing::caching::BreakReason,
    status::of_errno,
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
            let permit = open.volume().permit(open.ceiling)?;
            needs_of_parts(&open, which)?;
            let change =
                Descriptor::parse(request.input).map_err(|_| NtStatus::INVALID_SECURITY_DESCR)?;
            if which & parts::OWNER != 0 && change.owner.is_none() {
                return Err(NtStatus::INVALID_OWNER.into());
            }
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
            open.note_change();
            Vec::new()
        }
        InfoType::FILESYSTEM => return Err(file_system(&open, request.class, request.input).into()),
        // MS-SMB2 3.3.5.21.4: there are no quotas.
        _ => return Err(NtStatus::NOT_SUPPORTED.into()),
    };
    let sized = matches!(request.class, InfoClass::END_OF_FILE | InfoClass::ALLOCATION);
    if request.info_type == InfoType::FILE && sized {
        open.tell_written();
    } else if let Some(filter) = modified(request.info_type, request.class, request.input) {
        open.tell_modified(filter);
    }
    if ctx.tree()?.continuous {
        return Ok(stays(open, request.class, noted).into());
    }
    Response.encode(out);
    Ok(Outcome::SUCCESS)
}

/// Fails unless the open has the rights that a change of parts of the security descriptor needs
/// (MS-SMB2 3.3.5.21.3, MS-FSA 2.1.5.17).
fn needs_of_parts(open: &Open, which: u32) -> Result<(), NtStatus> {
    for (part, right) in [
        (parts::DACL | parts::ATTRIBUTE | parts::BACKUP, Access::WRITE_DAC),
        (parts::OWNER | parts::GROUP | parts::LABEL | parts::BACKUP, Access::WRITE_OWNER),
        (parts::SACL | parts::SCOPE | parts::BACKUP, Access::ACCESS_SYSTEM_SECURITY),
    ] {
        if which & part != 0 {
            open.need(right)?;
        }
    }
    Ok(())
}

/// Why nothing of a file system is set (MS-SMB2 3.3.5.21.2, MS-FSA 2.1.5.16).
fn file_system(open: &Open, class: InfoClass, input: &[u8]) -> NtStatus {
    let writes = open.need(Access::WRITE_DATA);
    match class.0 {
        fs_info::CONTROL | fs_info::OBJECT_ID if writes.is_err() => NtStatus::ACCESS_DENIED,
        fs_info::CONTROL if input.len() < fs_info::CONTROL_LEN => NtStatus::INFO_LENGTH_MISMATCH,
        fs_info::CONTROL => NtStatus::INVALID_PARAMETER,
        fs_info::OBJECT_ID if input.len() >= fs_info::OBJECT_ID_LEN => NtStatus::INVALID_PARAMETER,
        fs_info::LABEL | fs_info::DRIVER_PATH | fs_info::VOLUME_FLAGS => NtStatus::NOT_SUPPORTED,
        _ => NtStatus::INVALID_INFO_CLASS,
    }
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

/// What a change of information is of interest to, beside names and content.
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

/// Times and attributes that an open may be given (MS-FSA 2.1.5.15.2).
fn basic(open: &Open, input: &[u8]) -> Result<Basic, NtStatus> {
    let basic = Basic::parse(input).map_err(|_| NtStatus::INFO_LENGTH_MISMATCH)?;
    let times = [basic.times.creation, basic.times.access, basic.times.write, basic.times.change];
    if times.iter().any(|time| (i64::MAX as u64 + 1..u64::MAX - 1).contains(time))
        || basic.attributes.has(FileAttributes::DIRECTORY) && !open.directory
        || basic.attributes.has(FileAttributes::TEMPORARY) && open.directory
    {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    Ok(basic)
}

/// Changes what a class names (MS-SMB2 3.3.5.21.1); what was noted of it in the state store.
fn file(
    ctx: &mut Ctx<'_>,
    open: &Open,
    class: InfoClass,
    input: &[u8],
) -> Result<Vec<Commit>, Failure> {
    let short = |_| NtStatus::INFO_LENGTH_MISMATCH;
    if matches!(
        class,
        InfoClass::END_OF_FILE | InfoClass::ALLOCATION | InfoClass::VALID_DATA_LENGTH
    ) {
        check_length(open, file_info::parse_length(input).map_err(short)?)?;
    }
    let names = [InfoClass::RENAME, InfoClass::RENAME_EX, InfoClass::LINK, InfoClass::LINK_EX];
    if open.volume().is_snapshot() && names.contains(&class) {
        return Err(names::elsewhere(open, class, input)?.into());
    }
    if let Some(right) = right(class) {
        open.permit(right)?;
    }
    if names.contains(&class) && ctx.session()?.is_anonymous() {
        // The folder's list is asked about who the session is of now (MS-FSA 2.1.5.15.12).
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    match class {
        InfoClass::BASIC => {
            open.set_basic(&basic(open, input)?)?;
        }
        InfoClass::END_OF_FILE => {
            let data = open.writable(Access::WRITE_DATA)?;
            let len = file_info::parse_length(input).map_err(short)?;
            open.break_read_caching()?;
            open.note_write();
            set_length(data.as_fd(), len)?;
        }
        InfoClass::ALLOCATION => {
            let data = open.writable(Access::WRITE_DATA)?;
            let size = file_info::parse_length(input).map_err(short)?;
            open.break_read_caching()?;
            if size < open.facts()?.end_of_file {
                open.note_write();
                set_length(data.as_fd(), size)?;
            } else {
                // Space that is set aside is no content (MS-FSA 2.1.5.15.1).
                if size > 0 {
                    open.undated(|| reserve(data.as_fd(), size).map_err(of_errno))?;
                }
                open.note_change();
            }
        }
        // Everything up to the end of the file is valid data here, so nothing else can be said
        // (MS-FSA 2.1.5.15.15, MS-FSCC 2.4.50).
        InfoClass::VALID_DATA_LENGTH => {
            open.writable(Access::WRITE_DATA)?;
            let facts = open.facts()?;
            let len = file_info::parse_length(input).map_err(short)?;
            if len != facts.end_of_file || facts.attributes.has(FileAttributes::SPARSE_FILE) {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
        }
        // MS-FSA 2.1.5.15.10
        InfoClass::POSITION => {
            let position = file_info::parse_length(input).map_err(short)?;
            if position > i64::MAX as u64 || open.misaligned(position, 0) {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.position.store(position, Ordering::Relaxed);
        }
        InfoClass::SHORT_NAME => return Err(names::short_name(open, input).into()),
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
            return names::rename(ctx, open, &names::wanted(class, input, Rename::LEAST)?);
        }
        InfoClass::LINK | InfoClass::LINK_EX => {
            names::link(ctx, open, &names::wanted(class, input, Rename::FIXED)?)?;
        }
        InfoClass::FULL_EA => {
            let list = eas::parse(input)?;
            if !takes_eas(open.facts()?.reparse_tag) {
                return Err(NtStatus::EAS_NOT_SUPPORTED.into());
            }
            eas::set(open.permit(Access::WRITE_EA)?, open.handle(), list)?;
            open.note_change();
        }
        // MS-FSA 2.1.5.15.9, .11, .13
        InfoClass::OBJECT_ID | InfoClass::QUOTA | InfoClass::SFIO_RESERVE => {
            return Err(NtStatus::NOT_SUPPORTED.into());
        }
        _ => return Err(NtStatus::INVALID_INFO_CLASS.into()),
    }
    Ok(Vec::new())
}

/// Fails unless a file may be so long: it is none, or its last cluster would end beyond what an
/// allocation can be (MS-FSA 2.1.5.15.1, .5, .15).
fn check_length(open: &Open, len: u64) -> Result<(), Failure> {
    let cluster = cluster_size(open.handle())?;
    let whole = len.checked_next_multiple_of(cluster).filter(|end| *end <= i64::MAX as u64);
    if open.directory || whole.is_none() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    Ok(())
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
