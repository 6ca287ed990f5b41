//! SET_INFO (MS-SMB2 3.3.5.21).

use std::{
    os::fd::AsFd,
    sync::{PoisonError, atomic::Ordering},
};

use rustix::io::Errno;
use smb_protocol::{
    NtStatus,
    fscc::{
        FileAttributes, InfoClass,
        file_info::{self, Basic, Rename},
    },
    msg::{
        create::Access,
        query_info::InfoType,
        set_info::{Request, Response},
    },
    name::same_name,
    security::{Descriptor, parts},
};

use super::{Ctx, Fail, Handled, create::job::reserve};
use crate::volume::{
    FileName, Found, RelPath, StreamPart, attributes, listing::Listing, node::caching::Cause,
    open::Open, security,
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
    Response.encode(out);
    Ok(NtStatus::SUCCESS)
}

fn file(ctx: &Ctx<'_>, open: &Open, class: InfoClass, input: &[u8]) -> Result<(), Fail> {
    let short = |_| NtStatus::INFO_LENGTH_MISMATCH;
    match class {
        InfoClass::BASIC => {
            open.need(Access::WRITE_ATTRIBUTES)?;
            let basic = Basic::parse(input).map_err(short)?;
            if basic.attributes != FileAttributes::NONE {
                if basic.attributes.has(FileAttributes::DIRECTORY) && !open.directory {
                    return Err(NtStatus::INVALID_PARAMETER.into());
                }
                attributes::set_attributes(open.handle(), basic.attributes)?;
            }
            attributes::set_times(open.handle(), &basic.times)?;
        }
        InfoClass::END_OF_FILE => {
            let data = open.content(Access::WRITE_DATA)?;
            let len = file_info::parse_length(input).map_err(short)?;
            if len > i64::MAX as u64 {
                return Err(NtStatus::INVALID_PARAMETER.into());
            }
            open.others_forget()?;
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
                reserve(&rustix::io::fcntl_dupfd_cloexec(data.as_fd(), 0)?, size)?;
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
            file_info::parse_length(&[input, &[0; 4]].concat()).map_err(short)?;
        }
        InfoClass::DISPOSITION | InfoClass::DISPOSITION_EX => {
            open.need(Access::DELETE)?;
            set_disposition(open, file_info::parse_disposition(input).map_err(short)?)?;
        }
        InfoClass::RENAME => {
            open.need(Access::DELETE)?;
            rename(ctx, open, &Rename::parse(input).map_err(short)?)?;
        }
        InfoClass::FULL_EA => return Err(NtStatus::EAS_NOT_SUPPORTED.into()),
        InfoClass::LINK => return Err(NtStatus::NOT_SUPPORTED.into()),
        _ => return Err(NtStatus::INVALID_INFO_CLASS.into()),
    }
    Ok(())
}

/// Marks a file to be deleted when its last opener leaves (MS-FSA 2.1.5.15.3).
fn set_disposition(open: &Open, delete: bool) -> Result<(), Fail> {
    if delete {
        open.others_let_go(Cause::Delete)?;
        let root = open.stream.is_none() && open.path()?.is_root();
        if root || open.facts()?.attributes.has(FileAttributes::READONLY) {
            return Err(NtStatus::CANNOT_DELETE.into());
        }
        if open.directory {
            let mut listing =
                Listing::start(open.folder(), "*", 3).map_err(|error| match error {
                    Errno::NOMEM => NtStatus::DIRECTORY_NOT_EMPTY.into(),
                    other => Fail::from(other),
                })?;
            let mut entries = 0;
            while listing.peek(open.folder()).is_some() {
                listing.advance();
                entries += 1;
            }
            if entries > 2 {
                return Err(NtStatus::DIRECTORY_NOT_EMPTY.into());
            }
        }
    } else {
        open.delete_on_close.store(false, Ordering::Release);
    }
    open.node.set_delete_pending(delete);
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
    if open.directory && nodes.any_below(stat.st_dev, &open.node.path()) {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    let mut replaced = None;
    let to = match open.volume().find(&wanted)? {
        Found::Missing { path } => path,
        Found::Here { fd, stat: target, path } => {
            let itself = (target.st_dev, target.st_ino) == (stat.st_dev, stat.st_ino);
            let (Some((folder, name)), Some((_, new))) = (path.split(), wanted.split()) else {
                return Err(NtStatus::INVALID_PARAMETER.into());
            };
            if itself && same_name(name, new) {
                // The same name in another case.
                folder.child(new)
            } else {
                let directory = rustix::fs::FileType::from_raw_mode(target.st_mode)
                    == rustix::fs::FileType::Directory;
                if !request.replace {
                    return Err(NtStatus::OBJECT_NAME_COLLISION.into());
                }
                if directory || nodes.is_open(&target) {
                    return Err(NtStatus::ACCESS_DENIED.into());
                }
                replaced = Some(fd);
                path
            }
        }
    };
    if to == from {
        return Ok(());
    }
    open.volume().rename(&from, &to, replaced.is_some())?;
    open.node.set_path(to);
    if let Some(replaced) = replaced {
        open.volume().forget_streams(replaced.as_fd())?;
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
