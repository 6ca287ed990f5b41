//! Object ids (MS-FSA 2.1.5.10.1, .2, .13, .35, .36): given to a file when someone asks for one, kept
//! with it, and taken away again.
//!
//! The specification asks for no right of the open where an id is made or taken away; here whoever
//! does it may change the attributes of the file, so nobody changes what he may only read.

use smb_protocol::{NtStatus, msg::create::Access};
use volume::fs::{
    object_id::{self, LEN, ObjectId},
    permit::Permit,
};

use super::{Call, Ctx, Handled, answer};

/// Length of what stands beside an id.
const EXTENDED: usize = LEN - 16;

/// Says that the file may be changed by who asks, whatever the open was made for.
fn permit<'a>(ctx: &Ctx<'_>, call: &'a Call<'_>) -> Result<Permit<'a>, NtStatus> {
    let open = &call.open;
    let permit = open.volume().permit(open.ceiling)?;
    let sids = &ctx.session()?.sids;
    if !open.ceiling.and(open.rights(sids)?).has(Access::WRITE_ATTRIBUTES) {
        return Err(NtStatus::ACCESS_DENIED);
    }
    Ok(permit)
}

fn give(call: &Call<'_>, id: &ObjectId, out: &mut Vec<u8>) -> Handled {
    answer(call.request, &id.encode(), out)
}

/// The id of a file, made if it has none.
pub fn create_or_get(ctx: &Ctx<'_>, call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.room() < LEN {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    if let Some(id) = object_id::of(call.open.handle())? {
        return give(&call, &id, out);
    }
    let volume = call.open.volume().identity();
    let id = object_id::get_or_create(permit(ctx, &call)?, call.open.handle(), volume)?;
    give(&call, &id, out)
}

/// The id of a file that has one.
pub fn get(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if call.room() < LEN {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    match object_id::of(call.open.handle())? {
        Some(id) => give(&call, &id, out),
        None => Err(NtStatus::OBJECTID_NOT_FOUND.into()),
    }
}

/// Object ids are not given by clients: that needs the right to restore, which nobody has here.
pub fn set(call: Call<'_>) -> Handled {
    if call.request.input.len() != LEN {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    Err(NtStatus::ACCESS_DENIED.into())
}

/// Changes what stands beside the id.
pub fn set_extended(call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    let extended: &[u8; EXTENDED] =
        call.request.input.try_into().map_err(|_| NtStatus::INVALID_PARAMETER)?;
    let permit = call.open.permit(Access::WRITE_DATA.or(Access::WRITE_ATTRIBUTES))?;
    if !object_id::extend(permit, call.open.handle(), extended)? {
        return Err(NtStatus::OBJECTID_NOT_FOUND.into());
    }
    answer(call.request, &[], out)
}

/// Takes the id away, if there is one; nothing of a volume that may not be changed (MS-FSA
/// 2.1.5.10.2).
pub fn delete(ctx: &Ctx<'_>, call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    call.open.volume().permit(call.open.ceiling)?;
    if object_id::of(call.open.handle())?.is_some() {
        object_id::remove(permit(ctx, &call)?, call.open.handle())?;
    }
    answer(call.request, &[], out)
}
