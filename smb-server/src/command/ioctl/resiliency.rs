//! Resilient handles (MS-SMB2 3.3.5.15.9): an open that outlives its connection whatever it caches,
//! and on a continuously available share the server, too.

use std::time::Duration;

use smb_protocol::{Dialect, NtStatus, wire::Reader};

use super::{Call, Ctx, answer};
use crate::command::{Deferred, Handled, Outcome};

/// Longest time that a client can ask for (`MaxResiliencyTimeout`).
const LONGEST: Duration = Duration::from_secs(300);
/// The time for a client that leaves it to us.
const USUAL: Duration = Duration::from_secs(120);

/// Makes an open resilient.
pub fn request(ctx: &Ctx<'_>, call: Call<'_>, out: &mut Vec<u8>) -> Handled {
    if ctx.dialect() == Dialect::SMB_2_0_2 {
        return Err(NtStatus::INVALID_DEVICE_REQUEST.into());
    }
    let mut r = Reader::new(call.request.input);
    let time = Duration::from_millis(r.u32("resiliency.Timeout")?.into());
    r.skip(4, "resiliency.Reserved")?;
    if time > LONGEST {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let time = if time.is_zero() { USUAL } else { time };
    let Some(remembered) = call.open.make_resilient(time, ctx.tree()?.continuous) else {
        return answer(call.request, &[], out);
    };
    let mut body = Vec::new();
    answer(call.request, &[], &mut body)?;
    Ok(Outcome::Deferred(Deferred::storage(body.len(), async move {
        remembered.await;
        Ok(body)
    })))
}
