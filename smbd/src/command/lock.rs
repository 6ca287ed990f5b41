//! LOCK (MS-SMB2 3.3.5.14).

use smb_protocol::{NtStatus, msg::lock::Request};

use super::{Ctx, Handled};

/// Handles a LOCK.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], _out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    ctx.open(request.file_id)?;
    Err(NtStatus::NOT_SUPPORTED.into())
}
