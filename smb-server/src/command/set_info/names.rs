//! Names that SET_INFO gives: renames of files and streams, and links (MS-FSA 2.1.5.15.7, .12).
//!
//! Every check that can refuse comes before the first change, so a refusal leaves all as it was.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{PoisonError, atomic::Ordering},
};

use smb_protocol::{
    NtStatus,
    fscc::{
        FileAttributes, InfoClass,
        file_info::{Rename, parse_name},
    },
    msg::{
        create::{Access, ShareAccess},
        notify::{Action, ChangeFilter},
    },
    name::same_name,
};
use state_store::Commit;
use volume::{
    fs::{
        attributes,
        descriptor::close_removed,
        file_key,
        path::{RelPath, StreamName},
        permit::gates,
        security,
        short::is_short,
        volume::Found,
    },
    open::Open,
    sharing::{
        caching::BreakReason,
        next_name::{Renaming, Step},
    },
};

use super::{Ctx, Failure};
use crate::dfs;

/// Reads a new name from a rename or a link, at least `least` bytes (MS-FSA 2.1.5.15.12): one of a
/// remote client, so it begins at the share's root.
pub(super) fn wanted(class: InfoClass, input: &[u8], least: usize) -> Result<Rename, NtStatus> {
    if input.len() < least {
        return Err(NtStatus::INFO_LENGTH_MISMATCH);
    }
    let parse = match class {
        InfoClass::RENAME_EX | InfoClass::LINK_EX => Rename::parse_ex,
        _ => Rename::parse,
    };
    let wanted = parse(input).map_err(|_| NtStatus::INVALID_PARAMETER)?;
    if wanted.name.is_empty() || wanted.root_directory != 0 || wanted.name.starts_with('\\') {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    Ok(wanted)
}

/// Why nothing of a snapshot gets another name: one that a client gives is a name on the share as it is
/// now, which is another volume (MS-FSA 2.1.5.15.7, .12).
pub(super) fn elsewhere(open: &Open, class: InfoClass, input: &[u8]) -> Result<NtStatus, NtStatus> {
    let links = matches!(class, InfoClass::LINK | InfoClass::LINK_EX);
    wanted(class, input, if links { Rename::FIXED } else { Rename::LEAST })?;
    if !links {
        open.need(Access::DELETE)?;
    }
    Ok(NtStatus::NOT_SAME_DEVICE)
}

/// Why no file gets another short name (MS-FSA 2.1.5.15.14): they follow from the long ones.
pub(super) fn short_name(open: &Open, input: &[u8]) -> NtStatus {
    let refuse = || -> Result<NtStatus, NtStatus> {
        open.permit(Access::DELETE)?;
        let name = parse_name(input).map_err(|_| NtStatus::INFO_LENGTH_MISMATCH)?;
        let root = open.last_path()?.is_root();
        if root || open.stream.is_some() || !(name.is_empty() || is_short(&name)) {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        open.need(Access::WRITE_DATA.or(Access::WRITE_ATTRIBUTES))?;
        if open.delete_pending() || open.delete_on_close.load(Ordering::Acquire) {
            return Err(NtStatus::ACCESS_DENIED);
        }
        Ok(NtStatus::SHORT_NAMES_NOT_ENABLED_ON_VOLUME)
    };
    refuse().unwrap_or_else(|status| status)
}

/// Whether a name that is taken may be taken away for another file; its file is no folder.
fn check_replaced(
    ctx: &Ctx<'_>,
    open: &Open,
    request: &Rename,
    (target, path): (&OwnedFd, &RelPath),
) -> Result<(), Failure> {
    let denied = NtStatus::ACCESS_DENIED;
    let facts = attributes::facts(target.as_fd())?;
    let readonly = facts.attributes.has(FileAttributes::READONLY) && !request.ignore_readonly;
    if facts.directory || readonly {
        return Err(denied.into());
    }
    let folder = open.volume().folder_of(path)?;
    let sids = &ctx.session()?.sids;
    let rights = security::access_in(target.as_fd(), folder.as_fd(), sids)?;
    if !rights.has(Access::DELETE) && gates::holds(gates::Gate::Replaced) {
        return Err(denied.into());
    }
    Ok(())
}

/// Gives a file one more name (MS-FSA 2.1.5.15.7).
pub(super) fn link(ctx: &Ctx<'_>, open: &Open, request: &Rename) -> Result<(), Failure> {
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
    let permit = open.volume().permit(open.ceiling)?;
    let facts = open.facts()?;
    if facts.links >= MOST {
        return Err(NtStatus::TOO_MANY_LINKS.into());
    }
    let wanted = dfs::new_path(ctx, &request.name)?;
    if wanted.is_root() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    // A client asks for no right on the open, so what counts is what the user may do to the file.
    let rights = open.ceiling.and(open.rights(&ctx.session()?.sids)?);
    if !rights.has(Access::WRITE_ATTRIBUTES) {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    let found = open.volume().find(&wanted).map_err(NtStatus::from)?;
    let (Found::Missing { path, .. } | Found::Here { path, .. }) = &found;
    let to = &path.clone();
    enter_folder(ctx, open, to)?;
    let mut replaced = None;
    if let Found::Here { fd, stat, .. } = &found {
        if !request.replace {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        let own = rustix::fs::fstat(open.handle())?;
        if (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino) {
            return Ok(());
        }
        check_replaced(ctx, open, request, (fd, to))?;
        // MS-FSA 2.1.5.15.7 asks nobody to close it.
        if !request.posix && ctx.ex.server.open_files.is_open(stat) {
            return Err(NtStatus::ACCESS_DENIED.into());
        }
        replaced = Some((fd, stat));
    }
    let linked = permit.link(open.handle(), to, replaced.map(|(_, stat)| stat));
    linked.map_err(|error| open.volume().refusal(to, error))?;
    if let Some((fd, _)) = replaced {
        permit.forget_streams(fd.as_fd())?;
    }
    if let Found::Here { fd, .. } = found {
        close_removed(fd);
    }
    open.tell_at(to, Action::ADDED, open.name_filter());
    Ok(())
}

/// Gives a file another name in the same share, or a stream one of the same file
/// (MS-FSA 2.1.5.15.12); what was noted of it in the state store.
pub(super) fn rename(
    ctx: &mut Ctx<'_>,
    open: &Open,
    request: &Rename,
) -> Result<Vec<Commit>, Failure> {
    if request.name.starts_with(':') {
        rename_stream(ctx, open, request)?;
        return Ok(open.note_file());
    }
    if open.stream.is_some() && request.name.contains(':') {
        // The name of a stream stands alone; with its file's name it means the file that this open
        // keeps from being renamed.
        return Err(NtStatus::SHARING_VIOLATION.into());
    }
    let wanted = dfs::new_path(ctx, &request.name)?;
    let from = open.path()?;
    if wanted.is_root() || from.is_root() || open.stream.is_some() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let permit = open.permit(Access::DELETE)?;
    if open.directory {
        dfs::keeps_name(ctx, &from)?;
    }
    let found = open.volume().find(&wanted).map_err(NtStatus::from)?;
    let (Found::Missing { path: there, .. } | Found::Here { path: there, .. }) = &found;
    let there = there.clone();
    // All that can refuse comes before anything is asked of others or taken away.
    if there != from || wanted != from {
        enter_folder(ctx, open, &there)?;
    }
    open.break_conflicting(BreakReason::Rename)?;
    if open.file.others_forbid_delete(open.opener_id()) {
        return Err(NtStatus::SHARING_VIOLATION.into());
    }
    let stat = rustix::fs::fstat(open.handle())?;
    if open.directory {
        open.clear_below(&mut ctx.asked)?;
    }
    let mut replaced = None;
    let to = match found {
        Found::Missing { path, .. } => path,
        // The same name in another case.
        Found::Here { path, .. } if path == from => {
            let (Some((folder, _)), Some((_, new))) = (path.split(), wanted.split()) else {
                return Err(NtStatus::INVALID_PARAMETER.into());
            };
            folder.child(new)
        }
        Found::Here { .. } if !request.replace => {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        Found::Here { stat: target, path, .. }
            if file_key::key(&target) == file_key::key(&stat) =>
        {
            let _renaming = announce(open, &path)?;
            // Two names of one file: the old one goes.
            permit.remove(&from, &stat)?;
            open.note_change();
            open.tell_at(&from, Action::REMOVED, open.name_filter());
            open.file.set_path(open.opener_id(), open.volume().system(&path));
            return Ok(open.note_renamed());
        }
        Found::Here { fd, stat: target, path } => {
            check_replaced(ctx, open, request, (&fd, &path))?;
            if !request.posix {
                open.clear_replaced(&target, &mut ctx.asked)?;
            }
            replaced = Some((fd, target));
            path
        }
    };
    if to == from {
        return Ok(Vec::new());
    }
    let _renaming = announce(open, &to)?;
    let renamed = permit.rename((&from, &stat), &to, replaced.as_ref().map(|(_, stat)| stat));
    renamed.map_err(|error| open.volume().refusal(&to, error))?;
    open.note_change();
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
    open.file.set_path(open.opener_id(), open.volume().system(&to));
    let noted = open.note_renamed();
    if let Some((replaced, _)) = replaced {
        permit.forget_streams(replaced.as_fd())?;
        close_removed(replaced);
    }
    Ok(noted)
}

/// Nothing is called otherwise before the next server would know where to look for it. Where that
/// takes a moment the request is carried out again after it, with all its checks.
fn announce(open: &Open, to: &RelPath) -> Result<Option<Renaming>, Failure> {
    match open.announce_name(to)? {
        None => Ok(None),
        Some(Step::Ready(renaming)) => Ok(Some(renaming)),
        Some(Step::Begin(wake) | Step::Wait(wake)) => Err(Failure::Busy(wake)),
    }
}

/// Whether a file may be given a name in a folder: the one who does it may add to the folder, and
/// those who have it open do not mind. It is opened for that without letting others delete it
/// (MS-FSA 2.1.5.15.12).
fn enter_folder(ctx: &Ctx<'_>, open: &Open, to: &RelPath) -> Result<(), Failure> {
    let folder = open.volume().folder_of(to)?;
    let adds = if open.directory { Access::APPEND_DATA } else { Access::WRITE_DATA };
    let rights = security::access(folder.as_fd(), &ctx.session()?.sids)?;
    if !open.ceiling.and(rights).has(adds) && gates::holds(gates::Gate::Folder) {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    let stat = rustix::fs::fstat(&folder)?;
    ctx.ex.server.open_files.enter(&stat, adds, ShareAccess::READ | ShareAccess::WRITE)?;
    Ok(())
}

/// The stream that `:name:type` names (MS-FSA 2.1.5.15.12.1); `None` for the unnamed one.
pub(super) fn stream_of(open: &Open, wanted: &str) -> Result<Option<StreamName>, NtStatus> {
    let invalid = NtStatus::INVALID_PARAMETER;
    let text = wanted.strip_prefix(':').ok_or(invalid)?;
    let (name, kind) = text.split_once(':').unwrap_or((text, "$DATA"));
    // A character that no type has is one of a name, too.
    let is_type = StreamName::new(kind).is_some() && !kind.chars().any(char::is_control);
    if wanted.ends_with(':') || !is_type {
        return Err(invalid);
    }
    let name = match name {
        "" if open.directory || open.is_of_folder() => return Err(invalid),
        "" => None,
        name => Some(StreamName::new(name).ok_or(invalid)?),
    };
    let own = if open.directory { "$INDEX_ALLOCATION" } else { "$DATA" };
    if !kind.eq_ignore_ascii_case(own) {
        return Err(NtStatus::OBJECT_TYPE_MISMATCH);
    }
    if open.directory { Err(invalid) } else { Ok(name) }
}

/// Gives a stream another name (MS-FSA 2.1.5.15.12.1).
fn rename_stream(ctx: &Ctx<'_>, open: &Open, request: &Rename) -> Result<(), Failure> {
    let invalid = NtStatus::INVALID_PARAMETER;
    let to = stream_of(open, &request.name)?;
    open.permit(Access::DELETE)?;
    let (to, stream) = match (to, &open.stream) {
        (None, None) => return Ok(()),
        (Some(to), Some(stream)) => (to, stream),
        // The content of the file itself stays what it is: moved to a stream it would have to be
        // copied, while others write it.
        _ => return Err(invalid.into()),
    };
    let mut name = stream.name.lock().unwrap_or_else(PoisonError::into_inner);
    if same_name(name.as_str(), to.as_str()) {
        return Ok(());
    }
    let store = open.volume().streams();
    if let Some((_, target)) = store.find(open.handle(), &to)? {
        if !request.replace {
            return Err(NtStatus::OBJECT_NAME_COLLISION.into());
        }
        if ctx.ex.server.open_files.is_open(&target) || target.st_size != 0 {
            return Err(invalid.into());
        }
    }
    store.rename(open.handle(), &name, &to, request.replace)?;
    *name = to;
    drop(name);
    open.note_write();
    Ok(())
}
