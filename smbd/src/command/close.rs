//! CLOSE (MS-SMB2 3.3.5.10).

use smb_protocol::{
    NtStatus,
    msg::close::{POSTQUERY_ATTRIB, Request, Response},
};

use super::{Ctx, Handled};

/// Handles a CLOSE.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let id = ctx.resolve(request.file_id)?;
    let open = ctx.session()?.close(ctx.tree()?.id, id)?;
    open.closed.notify_waiters();
    let mut response = Response::default();
    open.date_writes();
    if request.flags & POSTQUERY_ATTRIB != 0
        && let Ok(facts) = open.facts()
    {
        response = Response {
            flags: POSTQUERY_ATTRIB,
            times: facts.times,
            allocation_size: facts.allocation_size,
            end_of_file: facts.end_of_file,
            attributes: facts.attributes,
        };
    }
    response.encode(out);
    Ok(NtStatus::SUCCESS)
}
