//! Taking up an open again: durable reconnect (MS-SMB2 3.3.5.9.7, 3.3.5.9.12) and a repeated
//! CREATE (3.3.5.9.10).

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use smb_protocol::{
    FileId, NtStatus,
    header::HeaderFlags,
    msg::{
        context::{self, DurableV2, Lease, LeaseState, ReconnectV2, names},
        create::{CreateAction, CreateOptions, Request},
        oplock::OplockLevel,
    },
};
use tokio::time::Instant;
use volume::open::{Durability, Open};

use super::{CreateContexts, answer};
use crate::{
    command::{Ctx, Failure, Handled},
    config::ClusterShare,
    session::Session,
};

/// How long after a client has come back on a new connection the end of its old one may still be
/// unnoticed, though the client closed it before.
const LOSS_NOTICED: Duration = Duration::from_secs(1);

/// What is to be taken up again.
struct ReconnectRequest {
    file: FileId,
    create_guid: Option<[u8; 16]>,
    /// `SMB2_DHANDLE_FLAG_PERSISTENT`.
    persistent: bool,
}

/// Handles the CREATE if it takes up an open again; `None` if it does not.
pub fn handle(
    ctx: &mut Ctx<'_>,
    request: &Request<'_>,
    wishes: &CreateContexts,
    out: &mut Vec<u8>,
) -> Option<Handled> {
    let find = |name| context::find(&request.contexts, name);
    let claim = match (find(names::DHNC), find(names::DH2C)) {
        (None, None) => return replay(ctx, request, wishes, out),
        (Some(_), Some(_)) => return Some(Err(NtStatus::INVALID_PARAMETER.into())),
        (Some(data), None) => {
            if find(names::DH2Q).is_some() {
                return Some(Err(NtStatus::INVALID_PARAMETER.into()));
            }
            let Ok(file) = context::parse_reconnect_v1(data) else {
                return Some(Err(NtStatus::INVALID_PARAMETER.into()));
            };
            ReconnectRequest { file, create_guid: None, persistent: false }
        }
        (None, Some(data)) => {
            if find(names::DHNQ).is_some() || find(names::DH2Q).is_some() {
                return Some(Err(NtStatus::INVALID_PARAMETER.into()));
            }
            let Ok(v2) = ReconnectV2::parse(data) else {
                return Some(Err(NtStatus::INVALID_PARAMETER.into()));
            };
            ReconnectRequest {
                file: v2.file_id,
                create_guid: Some(v2.create_guid),
                persistent: v2.flags & DurableV2::PERSISTENT != 0,
            }
        }
    };
    Some(take_up(ctx, request, &claim, out))
}

fn take_up(
    ctx: &mut Ctx<'_>,
    request: &Request<'_>,
    claim: &ReconnectRequest,
    out: &mut Vec<u8>,
) -> Handled {
    let session = ctx.session()?.clone();
    let tree = ctx.tree()?.clone();
    let open_files = ctx.ex.server.open_files.clone();
    let by_guid = || {
        let guid = claim.create_guid.filter(|_| claim.persistent && tree.continuous)?;
        open_files.creates.made_persistent(guid, session.user.id)
    };
    let open = match open_files.disconnected.get(claim.file.persistent).or_else(by_guid) {
        Some(open) => {
            check(ctx, request, claim, &open)?;
            open
        }
        None => {
            let held =
                open_files.open(claim.file.persistent).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
            match check(ctx, request, claim, &held) {
                Ok(()) => held,
                Err(NtStatus::OBJECT_NAME_NOT_FOUND) => {
                    return Err(NtStatus::OBJECT_NAME_NOT_FOUND.into());
                }
                // What is wrong is told as soon as nobody has it, and not before.
                Err(_) => return Err(still_held(ctx, &held, &session)),
            }
        }
    };
    take(ctx, &open, &session)?;
    tracing::debug!(user = session.user.name, file = %volume::quoted::Quoted(&request.name), "taken up again");
    session.add_open(tree.id, open.clone());
    let lease = context::find(&request.contexts, names::RQLS).and_then(|b| Lease::parse(b).ok());
    let epoch = lease.and_then(|lease| lease.v2).map(|(_, epoch)| epoch);
    open_files.client_came(&open, epoch, tree.share.cluster != Some(ClusterShare::ScaleOut));
    let oplock = open.oplock_level();
    let handled = answer(ctx, &open, oplock, None, Vec::new(), CreateAction::OPENED, out);
    open_files.tell_client(&open);
    handled
}

/// It is tried again in a moment.
fn soon(open: &Open) -> Failure {
    let in_a_while = Instant::now() + Duration::from_millis(20);
    Failure::Busy(open.file.wake_by(in_a_while.into_std()))
}

/// An open that a session has. The loss of that session's connection may not have been noticed yet,
/// which is waited for if this one is new.
fn still_held(ctx: &Ctx<'_>, open: &Open, session: &Session) -> Failure {
    let elsewhere = open.session_id() != Some(session.id);
    match elsewhere && ctx.ex.since.elapsed() < LOSS_NOTICED {
        true => soon(open),
        false => NtStatus::OBJECT_NAME_NOT_FOUND.into(),
    }
}

/// Takes an open from those that nobody has.
fn take(ctx: &Ctx<'_>, open: &Arc<Open>, session: &Session) -> Result<(), Failure> {
    let open_files = &ctx.ex.server.open_files;
    if !open_files.disconnected.has(open.id.persistent) {
        return Err(still_held(ctx, open, session));
    }
    // Requests of the connection that is gone may still be on their way to the disk, and its file may be
    // held for a node that is gone.
    if Arc::strong_count(open) > 2 || open_files.disconnected.is_late(open.id.persistent) {
        return Err(soon(open));
    }
    session.room_for_open(ctx.ex.limits().opens_per_session)?;
    open_files.disconnected.take(open.id.persistent).ok_or(NtStatus::OBJECT_NAME_NOT_FOUND)?;
    open.note_away(false);
    // The client's numbers go on from where they are now.
    open.sequence.start(ctx.header.channel_sequence());
    Ok(())
}

fn check(
    ctx: &Ctx<'_>,
    request: &Request<'_>,
    claim: &ReconnectRequest,
    open: &Open,
) -> Result<(), NtStatus> {
    const NOT_FOUND: NtStatus = NtStatus::OBJECT_NAME_NOT_FOUND;
    let find = |name| context::find(&request.contexts, name);
    let session = ctx.session()?;
    let tree = ctx.tree()?;
    if open.origin.share != tree.name
        || claim.create_guid.is_some_and(|guid| guid != open.origin.create_guid.unwrap_or_default())
    {
        return Err(NOT_FOUND);
    }
    if claim.create_guid.is_some() && open.is_persistent() != claim.persistent {
        // A promise is called in as it was given.
        return Err(match claim.persistent {
            true => NtStatus::INVALID_PARAMETER,
            false => NOT_FOUND,
        });
    }
    if open.is_persistent() && claim.create_guid.is_none() {
        return Err(NOT_FOUND);
    }
    let resilient = open.is_resilient();
    let lease = find(names::RQLS).map(Lease::parse).transpose();
    let lease = lease.map_err(|_| NtStatus::INVALID_PARAMETER)?;
    match (open.lease, lease) {
        (None, None) => {
            let (state, _) = open.file.caching(open.opener_id());
            if !resilient && !state.has(LeaseState::HANDLE) {
                return Err(NOT_FOUND);
            }
        }
        (Some(id), Some(asked)) => {
            let view = open.file.lease(open.opener_id()).ok_or(NOT_FOUND)?;
            if id.client.guid != ctx.client_guid()
                || asked.key != id.key
                || asked.v2.is_some() != view.v2.is_some()
                || !resilient && !view.state.has(LeaseState::HANDLE)
            {
                return Err(NOT_FOUND);
            }
            if !smb_protocol::name::same_name(&open.origin.name, &request.name) {
                return Err(NtStatus::INVALID_PARAMETER);
            }
        }
        _ => return Err(NOT_FOUND),
    }
    if open.origin.user.name != session.user.name {
        return Err(NtStatus::ACCESS_DENIED);
    }
    Ok(())
}

/// A CREATE that came before, on a connection that may have been lost.
fn replay(
    ctx: &mut Ctx<'_>,
    request: &Request<'_>,
    wishes: &CreateContexts,
    out: &mut Vec<u8>,
) -> Option<Handled> {
    let guid = wishes.create_guid()?;
    let replays = ctx.header.flags.has(HeaderFlags::REPLAY);
    let key = (guid, ctx.client().ok()?);
    let open_files = ctx.ex.server.open_files.clone();
    if replays && ctx.creating.is_none() && open_files.creates.is_in_progress(key) {
        return Some(Err(NtStatus::FILE_NOT_AVAILABLE.into()));
    }
    let found = open_files.creates.made_by(key);
    if found.is_none() && replays && open_files.creates.made_for_another(key) {
        return Some(Err(NtStatus::ACCESS_DENIED.into()));
    }
    let eligible = found.filter(|open| open.replayable.load(Ordering::Acquire));
    if !replays {
        return eligible.map(|_| Err(NtStatus::DUPLICATE_OBJECTID.into()));
    }
    match eligible {
        Some(open) if open.client().is_none() => Some(after_loss(ctx, request, wishes, &open, out)),
        Some(open) => Some(again(ctx, request, wishes, &open, out)),
        None => persistent_again(ctx, request, wishes, guid, out),
    }
}

/// The CREATE of a persistent open is repeated, perhaps by another client of its user (MS-SMB2 3.3.5.9,
/// create context validation).
fn persistent_again(
    ctx: &mut Ctx<'_>,
    request: &Request<'_>,
    wishes: &CreateContexts,
    guid: [u8; 16],
    out: &mut Vec<u8>,
) -> Option<Handled> {
    if !wishes.wants_persistence() || !ctx.tree().ok()?.continuous || !ctx.keeps_persistent() {
        return None;
    }
    let user = ctx.session().ok()?.user.id;
    let open = ctx.ex.server.open_files.creates.made_persistent(guid, user)?;
    match open.client() {
        Some(_) => Some(Err(NtStatus::FILE_NOT_AVAILABLE.into())),
        None => Some(after_loss(ctx, request, wishes, &open, out)),
    }
}

/// A CREATE is repeated because its answer was lost with the session, and its open has outlived that.
fn after_loss(
    ctx: &mut Ctx<'_>,
    request: &Request<'_>,
    wishes: &CreateContexts,
    open: &Arc<Open>,
    out: &mut Vec<u8>,
) -> Handled {
    let (session, tree) = (ctx.session()?.clone(), ctx.tree()?.clone());
    let origin = &open.origin;
    if origin.user.name != session.user.name || open.lease != wishes.lease() {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    if origin.share != tree.name
        || !smb_protocol::name::same_name(&origin.name, &request.name)
        || origin.desired_access != request.access
        || origin.share_access != request.share
        || open.options.without(CreateOptions::WRITE_THROUGH)
            != request.options.without(CreateOptions::WRITE_THROUGH)
    {
        return Err(NtStatus::CONTEXT_MISMATCH.into());
    }
    take(ctx, open, &session)?;
    session.add_open(tree.id, open.clone());
    let oplock = open.oplock_level().min(request.oplock);
    let action = CreateAction(open.origin.action);
    let handled = answer(ctx, open, oplock, wishes.durable, Vec::new(), action, out);
    open.table().tell_client(open);
    handled
}

fn again(
    ctx: &mut Ctx<'_>,
    request: &Request<'_>,
    wishes: &CreateContexts,
    open: &Arc<Open>,
    out: &mut Vec<u8>,
) -> Handled {
    let session = ctx.session()?.clone();
    let durability = open.state().durability;
    if open.origin.user.name != session.user.name || open.lease != wishes.lease() {
        return Err(NtStatus::ACCESS_DENIED.into());
    }
    if open.session_id() != Some(session.id) {
        return Err(NtStatus::DUPLICATE_OBJECTID.into());
    }
    if open.is_persistent() && !wishes.wants_persistence() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let action = CreateAction(open.origin.action);
    // No more than this copy of the request asks for, and without an oplock no durability, unless
    // what it was given does not hang on one.
    let oplock = open.oplock_level().min(request.oplock);
    let owned = match durability {
        Durability::None => false,
        Durability::Resilient(_) | Durability::Persistent(_) => true,
        Durability::Durable(_) => matches!(oplock, OplockLevel::BATCH | OplockLevel::LEASE),
    };
    let durable = wishes.durable.filter(|_| owned);
    answer(ctx, open, oplock, durable, Vec::new(), action, out)
}
