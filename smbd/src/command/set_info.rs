//! SET_INFO (MS-SMB2 3.3.5.21).

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, PoisonError, atomic::Ordering},
};

use rustix::fs::Stat;
use smb_protocol::{
    NtStatus,
    fscc::{
        FileAttributes, InfoClass, ea,
        file_info::{self, Basic, Disposition, Rename},
    },
    msg::{
        create::{Access, ShareAccess},
        notify::{Action, ChangeFilter},
        query_info::InfoType,
        set_info::{Request, Response},
    },
    name::same_name,
    security::{Descriptor, parts},
};

use super::{
    Ctx, Fail, Handled, Later,
    create::{job::reserve, settle},
};
use crate::volume::{
    FileName, Found, RelPath, StreamPart, attributes, eas, listing,
    node::caching::Cause,
    open::{Open, StreamOpen},
    security,
    stable::of_store,
};

/// Handles a SET_INFO.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    ctx.check_charge(request.input.len())?;
    match request.info_type {
        InfoType::FILE => file(ctx, &open, request.class, request.input)?,
        InfoType::SECURITY => {
            let which = request.additional;
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
            let directory = attributes::facts(open.handle())?.directory;
            security::update(open.handle(), directory, which, change, &ctx.session()?.sids)?;
        }
        _ => return Err(NtStatus::NOT_SUPPORTED.into()),
    }
    if let Some(filter) = modified(request.info_type, request.class, request.input) {
        open.tell_modified(filter);
    }
    if ctx.tree()?.continuous {
        return Err(Fail::Later(stays(open, request.info_type, request.class)));
    }
    Response.encode(out);
    Ok(NtStatus::SUCCESS)
}

/// Answers when what was changed is durable, and with it what is remembered of persistent opens.
fn stays(open: Arc<Open>, info_type: InfoType, class: InfoClass) -> Later {
    let renames = matches!(
        class,
        InfoClass::RENAME
            | InfoClass::RENAME_EX
            | InfoClass::DISPOSITION
            | InfoClass::DISPOSITION_EX
    );
    let mut noted = Vec::new();
    if info_type == InfoType::FILE && renames {
        let others = open.node.remembered().into_iter();
        let others = others.filter_map(|id| open.nodes().open(id));
        // What is open of its streams has the file's name, too.
        let of_it = |stream: &StreamOpen| Arc::ptr_eq(&stream.base, &open.node);
        let streams = open.nodes().all_opens().into_iter();
        let streams = streams.filter(|other| other.stream.as_ref().is_some_and(of_it));
        noted = others.chain(streams).filter_map(|other| other.remember_anew()).collect();
    }
    Later::storage(0, async move {
        for noted in noted {
            noted.await.map_err(|error| of_store(&error))?;
        }
        // What stands in no file needs no disk.
        if !matches!(class, InfoClass::POSITION | InfoClass::MODE) {
            settle(open).await?;
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

fn file(ctx: &Ctx<'_>, open: &Open, class: InfoClass, input: &[u8]) -> Result<(), Fail> {
    let short = |_| NtStatus::INFO_LENGTH_MISMATCH;
    match class {
        InfoClass::BASIC => {
            open.need(Access::WRITE_ATTRIBUTES)?;
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
            let data = open.content(Access::WRITE_DATA)?;
            let len = file_info::parse_length(input).map_err(short)?;
            if len > i64::MAX as u64 {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.others_forget()?;
            open.base_node().times.settle();
            rustix::fs::ftruncate(data.as_fd(), len)?;
        }
        InfoClass::ALLOCATION => {
            let data = open.content(Access::WRITE_DATA)?;
            let size = file_info::parse_length(input).map_err(short)?;
            if size > i64::MAX as u64 {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.others_forget()?;
            if size < open.facts()?.end_of_file {
                rustix::fs::ftruncate(data.as_fd(), size)?;
            } else if size > 0 {
                reserve(data.as_fd(), size)?;
            }
        }
        // Everything up to the end of the file is valid data here.
        InfoClass::VALID_DATA_LENGTH => {
            open.content(Access::WRITE_DATA)?;
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
        }
        InfoClass::DISPOSITION_EX => {
            set_disposition(open, Disposition::parse(input).map_err(short)?)?;
        }
        InfoClass::RENAME | InfoClass::RENAME_EX => {
            open.need(Access::DELETE)?;
            let ex = class == InfoClass::RENAME_EX;
            let parse = if ex { Rename::parse_ex } else { Rename::parse };
            rename(ctx, open, &parse(input).map_err(short)?)?;
        }
        InfoClass::LINK | InfoClass::LINK_EX => {
            let ex = class == InfoClass::LINK_EX;
            let parse = if ex { Rename::parse_ex } else { Rename::parse };
            link(ctx, open, &parse(input).map_err(short)?)?;
        }
        InfoClass::FULL_EA => {
            open.need(Access::WRITE_EA)?;
            let list = ea::parse(input).map_err(|_| NtStatus::EA_LIST_INCONSISTENT)?;
            eas::set(open.handle(), list)?;
        }
        _ => return Err(NtStatus::INVALID_INFO_CLASS.into()),
    }
    Ok(())
}

/// Marks a file to be deleted when its last opener leaves, or with POSIX' rules when this one does
/// (MS-FSA 2.1.5.15.3, 2.1.5.15.4).
fn set_disposition(open: &Open, flags: Disposition) -> Result<(), Fail> {
    if flags.without(Disposition::ALL) != Disposition::NONE {
        return Err(NtStatus::NOT_SUPPORTED.into());
    }
    open.need(Access::DELETE)?;
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
        open.others_let_go(Cause::Delete)?;
        let root = open.stream.is_none() && open.path()?.is_root();
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
    open.node.set_delete_pending(open.node_id(), delete);
    if delete && open.directory {
        open.nodes().watches.gone(open.node.key());
    }
    Ok(())
}

/// Whether a name that is taken may be taken away for another file; its file is no folder.
fn check_replaced(
    ctx: &Ctx<'_>,
    open: &Open,
    request: &Rename,
    (target, stat, path): (&OwnedFd, &Stat, &RelPath),
) -> Result<(), Fail> {
    let denied = NtStatus::ACCESS_DENIED;
    let facts = attributes::facts(target.as_fd())?;
    let in_use = !request.posix && ctx.ex.server.nodes.is_open(stat);
    let readonly = facts.attributes.has(FileAttributes::READONLY) && !request.ignore_readonly;
    if facts.directory || in_use || readonly {
        return Err(denied.into());
    }
    let folder = open.volume().folder_of(path)?;
    let sids = &ctx.session()?.sids;
    if !security::access_in(target.as_fd(), folder.as_fd(), sids)?.has(Access::DELETE) {
        return Err(denied.into());
    }
    Ok(())
}

/// Gives a file one more name (MS-FSA 2.1.5.15.7).
fn link(ctx: &Ctx<'_>, open: &Open, request: &Rename) -> Result<(), Fail> {
    /// Names that NTFS lets a file have.
    const MOST: u32 = 1024;
    if open.stream.is_some() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if open.directory {
        return Err(NtStatus::FILE_IS_A_DIRECTORY.into());
    }
    if open.delete_pending() {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    let facts = open.facts()?;
    if facts.links >= MOST {
        return Err(NtStatus::TOO_MANY_LINKS.into());
    }
    let wanted = RelPath::parse(request.name.trim_start_matches('\\'))?;
    if wanted.is_root() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let to = match open.volume().find(&wanted)? {
        Found::Missing { path, .. } => path,
        Found::Here { .. } if !request.replace => {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        Found::Here { fd, stat, path } => {
            let own = rustix::fs::fstat(open.handle())?;
            if (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino) {
                return Ok(());
            }
            check_replaced(ctx, open, request, (&fd, &stat, &path))?;
            open.volume().remove(&path, &stat)?;
            open.volume().forget_streams(fd.as_fd())?;
            path
        }
    };
    enter_folder(ctx, open, &to)?;
    open.volume().link(open.handle(), &to)?;
    open.tell_at(&to, Action::ADDED, open.name_filter());
    Ok(())
}

/// Gives a file another name in the same share, or a stream one of the same file
/// (MS-FSA 2.1.5.15.12).
fn rename(ctx: &Ctx<'_>, open: &Open, request: &Rename) -> Result<(), Fail> {
    if request.name.starts_with(':') {
        return rename_stream(ctx, open, request);
    }
    if open.stream.is_some() && request.name.contains(':') {
        // The name of a stream stands alone; with its file's name it means the file that this open
        // keeps from being renamed.
        return Err(NtStatus::SHARING_VIOLATION.into());
    }
    let wanted = RelPath::parse(request.name.trim_start_matches('\\'))?;
    let from = open.path()?;
    if wanted.is_root() || from.is_root() || open.stream.is_some() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    open.others_let_go(Cause::Rename)?;
    let nodes = &ctx.ex.server.nodes;
    if open.node.others_forbid_delete(open.node_id()) {
        return Err(NtStatus::SHARING_VIOLATION.into());
    }
    let stat = rustix::fs::fstat(open.handle())?;
    if open.directory
        && let Some(folder) = open.node.path(open.node_id())
        && nodes.any_below(stat.st_dev, &folder)
    {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    let mut replaced = None;
    let to = match open.volume().find(&wanted)? {
        Found::Missing { path, .. } => path,
        Found::Here { fd, stat: target, path } => {
            let itself = (target.st_dev, target.st_ino) == (stat.st_dev, stat.st_ino);
            let (Some((folder, name)), Some((_, new))) = (path.split(), wanted.split()) else {
                return Err(NtStatus::INVALID_PARAMETER.into());
            };
            if itself && same_name(name, new) {
                // The same name in another case.
                folder.child(new)
            } else {
                if !request.replace {
                    return Err(NtStatus::OBJECT_NAME_COLLISION.into());
                }
                if itself {
                    // Two names of one file: the old one goes.
                    open.volume().remove(&from, &stat)?;
                    open.tell_at(&from, Action::REMOVED, open.name_filter());
                    open.node.set_path(open.node_id(), open.volume().system(&path));
                    return Ok(());
                }
                check_replaced(ctx, open, request, (&fd, &target, &path))?;
                replaced = Some(fd);
                path
            }
        }
    };
    if to == from {
        return Ok(());
    }
    enter_folder(ctx, open, &to)?;
    open.volume().rename(&from, &to, replaced.is_some())?;
    let filter = open.name_filter();
    let stays = from.split().map(|(folder, _)| folder) == to.split().map(|(folder, _)| folder);
    let (was, is) = match stays {
        true => (Action::RENAMED_OLD_NAME, Action::RENAMED_NEW_NAME),
        false => (Action::REMOVED, Action::ADDED),
    };
    open.tell_at(&from, was, filter);
    open.tell_at(&to, is, filter);
    if !open.directory {
        // Who does not watch for names hears of it as Windows tells it.
        let filter = ChangeFilter::ATTRIBUTES | ChangeFilter::CREATION;
        open.tell_unless(&to, Action::MODIFIED, filter, ChangeFilter::FILE_NAME);
    }
    open.node.set_path(open.node_id(), open.volume().system(&to));
    if let Some(replaced) = replaced {
        open.volume().forget_streams(replaced.as_fd())?;
    }
    Ok(())
}

/// Whether a file may be given a name in a folder: the one who does it may add to the folder, and
/// those who have it open do not mind. It is opened for that without letting others delete it
/// (MS-FSA 2.1.5.15.12).
fn enter_folder(ctx: &Ctx<'_>, open: &Open, to: &RelPath) -> Result<(), Fail> {
    let folder = open.volume().folder_of(to)?;
    let adds = if open.directory { Access::APPEND_DATA } else { Access::WRITE_DATA };
    let rights = security::access(folder.as_fd(), &ctx.session()?.sids)?;
    if !ctx.tree()?.maximal_access.and(rights).has(adds) {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    let stat = rustix::fs::fstat(&folder)?;
    if let Some(node) = ctx.ex.server.nodes.get(&stat)
        && node.forbids(adds, ShareAccess::READ | ShareAccess::WRITE)
    {
        return Err(NtStatus::SHARING_VIOLATION.into());
    }
    Ok(())
}

/// Gives a stream another name (MS-FSA 2.1.5.15.12.1).
fn rename_stream(ctx: &Ctx<'_>, open: &Open, request: &Rename) -> Result<(), Fail> {
    let invalid = NtStatus::INVALID_PARAMETER;
    let part = FileName::parse(&request.name).map_err(|_| invalid)?.part;
    let StreamPart::Named(to) = part else { return Err(invalid.into()) };
    let Some(stream) = &open.stream else { return Err(invalid.into()) };
    let mut name = stream.name.lock().unwrap_or_else(PoisonError::into_inner);
    if same_name(name.as_str(), to.as_str()) {
        return Ok(());
    }
    let store = open.volume().streams();
    if let Some((_, target)) = store.find(open.handle(), &to)? {
        if !request.replace {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        if ctx.ex.server.nodes.is_open(&target) || target.st_size != 0 {
            return Err(invalid.into());
        }
    }
    store.rename(open.handle(), &name, &to, request.replace)?;
    *name = to;
    Ok(())
}
