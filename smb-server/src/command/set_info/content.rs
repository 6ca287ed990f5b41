//! Renames between the content of a file and one of its named streams (MS-FSA 2.1.5.15.12.1): what the
//! one held the other holds then, and the open is one of where it went.
//!
//! ```text
//!  the open and nobody else has it ─► the content goes over (its blocks, where they can be shared)
//!      ─► the open is closed and made again, under its own name, where the content is
//! ```
//!
//! A stream and the content of its file are two files of the system, so those who have the one open
//! cannot be given the other: they keep the rename from being done.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{fs::OFlags, io::Errno};
use smb_protocol::{
    FileId, NtStatus,
    fscc::{InfoClass, file_info::Rename},
    msg::{
        context::LeaseState,
        create::{Access, CreateOptions, Disposition, Request},
        set_info::Response,
    },
};
use volume::{
    fs::{
        descriptor::{reopen, set_length},
        path::{FileName, StreamName, StreamPart},
        space,
    },
    open::{Durability, Open, create::CreateOperation},
    work::aside,
};

use super::{
    Ctx, Failure, Handled, Outcome,
    names::{stream_of, wanted},
};

/// What goes where.
pub(super) struct Move {
    /// The stream that the content goes to; `None` from a stream to the file itself.
    to: Option<StreamName>,
    replace: bool,
}

/// The move that a rename asks for, if it is one between the content of a file and a stream.
pub(super) fn asked(open: &Open, class: InfoClass, input: &[u8]) -> Option<Move> {
    if !matches!(class, InfoClass::RENAME | InfoClass::RENAME_EX) || open.directory {
        return None;
    }
    let request = wanted(class, input, Rename::LEAST).ok()?;
    let to = stream_of(open, &request.name).ok()?;
    (to.is_some() != open.stream.is_some()).then_some(Move { to, replace: request.replace })
}

/// Carries a move out.
pub(super) fn carry_out(
    ctx: &mut Ctx<'_>,
    open: Arc<Open>,
    asked: &Move,
    out: &mut Vec<u8>,
) -> Handled {
    open.permit(Access::DELETE)?;
    // It would keep the open from being closed; the one that comes after begins with its number.
    ctx.in_progress = None;
    check_alone(ctx, &open)?;
    match &asked.to {
        Some(name) => into_stream(ctx, &open, name, asked.replace)?,
        None => into_file(&open)?,
    }
    open_again(ctx, open, asked.to.as_ref())?;
    Response.encode(out);
    Ok(Outcome::SUCCESS)
}

/// Fails where others have the content open, or what would not go over hangs on the open: what it
/// caches, its locks, and promises to keep it.
fn check_alone(ctx: &Ctx<'_>, open: &Arc<Open>) -> Result<(), Failure> {
    /// The session's, and this request's.
    const OWN: usize = 2;
    let id = open.opener_id();
    if !open.file.only_content_of(id) || Arc::strong_count(open) > OWN {
        return Err(NtStatus::SHARING_VIOLATION.into());
    }
    let plain = open.file.caching(id).0 == LeaseState::NONE
        && open.lease.is_none()
        && open.file.locks_of(id).is_empty()
        && matches!(open.state().durability, Durability::None)
        && !ctx.tree()?.continuous;
    // To end the open would delete what is moved.
    let deletes = open.delete_pending() || open.delete_on_close.load(super::Ordering::Acquire);
    if !plain || deletes {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    Ok(())
}

/// Copies all that a file holds into an empty one, where it is durable: it is then taken away where it
/// was, and a loss of power must not take both.
fn carry_over(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let len = u64::try_from(rustix::fs::fstat(from)?.st_size).unwrap_or(0);
    let copied = aside(|| {
        let (done, result) = space::copy(from.as_fd(), 0, to.as_fd(), 0, len);
        result.and_then(|()| rustix::fs::fsync(to)).map(|()| done)
    });
    if copied? == len { Ok(()) } else { Err(Errno::IO) }
}

/// The content of a file becomes a stream, and leaves an empty file.
fn into_stream(
    ctx: &Ctx<'_>,
    open: &Open,
    name: &StreamName,
    replace: bool,
) -> Result<(), Failure> {
    let store = open.volume().streams();
    let found = store.find(open.handle(), name)?;
    let made = found.is_none();
    let target = match found {
        Some(_) if !replace => return Err(NtStatus::OBJECT_NAME_COLLISION.into()),
        Some((_, target)) if ctx.ex.server.open_files.is_open(&target) || target.st_size != 0 => {
            return Err(NtStatus::INVALID_PARAMETER.into());
        }
        Some((file, _)) => reopen(file, OFlags::WRONLY)?,
        None => store.create(open.handle(), name, None)?,
    };
    let source = reopen(open.handle(), OFlags::RDWR)?;
    let moved = carry_over(&source, &target).and_then(|()| set_length(source.as_fd(), 0));
    if let Err(error) = moved {
        match rustix::fs::fstat(&target) {
            Ok(stat) if made => store.remove(open.handle(), name, &stat)?,
            _ => set_length(target.as_fd(), 0)?,
        }
        return Err(error.into());
    }
    Ok(())
}

/// A stream becomes the content of its file, which holds nothing and nobody uses.
fn into_file(open: &Open) -> Result<(), Failure> {
    let stream = open.stream.as_ref().ok_or(NtStatus::INVALID_PARAMETER)?;
    let stat = rustix::fs::fstat(open.handle())?;
    if stat.st_size != 0 || !stream.base.only_content_of(open.opener_id()) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let source = reopen(&stream.file, OFlags::RDONLY)?;
    let target = reopen(open.handle(), OFlags::WRONLY)?;
    if let Err(error) = carry_over(&source, &target) {
        set_length(target.as_fd(), 0)?;
        return Err(error.into());
    }
    let name = stream.name.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let stat = rustix::fs::fstat(&source)?;
    Ok(open.volume().streams().remove(open.handle(), &name, &stat)?)
}

/// Makes the open one of where its content went; it keeps its name, its rights and its options.
fn open_again(ctx: &mut Ctx<'_>, open: Arc<Open>, to: Option<&StreamName>) -> Result<(), Failure> {
    let session = ctx.session()?.clone();
    let tree = ctx.tree()?.id;
    let server = ctx.ex.server.clone();
    let part = to.map_or(StreamPart::Content, |name| StreamPart::Named(name.clone()));
    let name = FileName { path: open.last_path()?, part, slash: false };
    let request = Request {
        access: open.access,
        share: open.origin.share_access,
        disposition: Disposition::OPEN,
        options: open.options.without(CreateOptions::DELETE_ON_CLOSE),
        name: open.origin.name.clone(),
        ..Request::default()
    };
    let (id, ceiling, volume) = (open.id, open.ceiling, open.volume().clone());
    let (origin, position) = (open.origin.clone(), open.position.load(super::Ordering::Relaxed));
    drop(session.close(tree, id)?);
    drop(open);
    let counted = session.user.opens.take(1).ok_or(NtStatus::TOO_MANY_OPENED_FILES)?;
    let again = CreateOperation {
        request: &request,
        ceiling,
        sids: &session.sids,
        volume,
        open_files: server.open_files.clone(),
        id: FileId { ..id },
        name,
        engine: server.current().config.io_engine.into(),
        lease: None,
        origin,
        smb3: ctx.dialect().is_smb3(),
        mark: None,
        replays: false,
    };
    let (mut again, _) = again.run()?;
    again.counted = Some(counted);
    let again = Arc::new(again);
    again.position.store(position, super::Ordering::Relaxed);
    server.open_files.add_open(&again);
    again.sequence.start(ctx.header.channel_sequence());
    session.add_open(tree, again.clone());
    again.note_write();
    Ok(())
}
