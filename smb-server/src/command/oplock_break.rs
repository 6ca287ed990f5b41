//! Acknowledgements of oplock and lease breaks (MS-SMB2 3.3.5.22).

use smb_protocol::{
    NtStatus,
    msg::{
        context::LeaseState,
        oplock::{LeaseAck, Message, OplockBreak, OplockLevel},
    },
};
use volume::sharing::caching::{self, AckError, GrantOwner, LeaseId};

use super::{Ctx, Handled, Outcome};

/// Answers an acknowledgement of either kind.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    match Message::parse(body)? {
        Message::Oplock(ack) => oplock(ctx, ack, out),
        Message::LeaseAck(ack) => lease(ctx, ack, out),
        // A client notifies nobody.
        Message::LeaseBreak(_) => Err(NtStatus::INVALID_PARAMETER.into()),
    }
}

/// A break of an oplock is acknowledged (MS-SMB2 3.3.5.22.1).
fn oplock(ctx: &mut Ctx<'_>, ack: OplockBreak, out: &mut Vec<u8>) -> Handled {
    let open = ctx.open(ack.file_id)?;
    let kept = match ack.level {
        OplockLevel::NONE | OplockLevel::II => caching::state_of(ack.level),
        // More than it was told, or nothing that an oplock can be.
        _ => LeaseState::READ.or(LeaseState::WRITE).or(LeaseState::HANDLE),
    };
    let holder = GrantOwner::Open(open.opener_id());
    let left = open.table().acknowledge(&open.file, holder, kept).map_err(|why| match why {
        AckError::NotBreaking => not_breaking(open.oplock_level(), ack.level),
        // A break to nothing awaits no acknowledgement.
        AckError::NotHeld => NtStatus::INVALID_OPLOCK_PROTOCOL,
        AckError::TooMuch if ack.level == OplockLevel::LEASE => NtStatus::INVALID_PARAMETER,
        AckError::TooMuch => NtStatus::INVALID_OPLOCK_PROTOCOL,
    })?;
    OplockBreak { level: caching::level_of(left), file_id: open.id }.encode(out);
    Ok(Outcome::SUCCESS)
}

/// What an acknowledgement is told that nobody waits for (MS-SMB2 3.3.5.22.1). Of an oplock of level
/// II the text of 2016 told more kinds of it apart, and there are clients that were made by it.
fn not_breaking(held: OplockLevel, acknowledged: OplockLevel) -> NtStatus {
    match (held, acknowledged) {
        (OplockLevel::II, OplockLevel::LEASE) => NtStatus::INVALID_PARAMETER,
        (OplockLevel::II, level) if level != OplockLevel::NONE => NtStatus::INVALID_OPLOCK_PROTOCOL,
        _ => NtStatus::INVALID_DEVICE_STATE,
    }
}

/// A break of a lease is acknowledged (MS-SMB2 3.3.5.22.2).
fn lease(ctx: &mut Ctx<'_>, ack: LeaseAck, out: &mut Vec<u8>) -> Handled {
    let id = LeaseId { client: ctx.client()?, key: ack.key };
    let state = ctx.ex.server.open_files.acknowledge_lease(id, LeaseState(ack.state))?;
    LeaseAck { key: ack.key, state: state.0 }.encode(out);
    Ok(Outcome::SUCCESS)
}
