//! CLOSE (MS-SMB2 3.3.5.10).

use std::sync::atomic::Ordering;

use smb_protocol::{
    NtStatus,
    msg::close::{POSTQUERY_ATTRIB, Request, Response},
};

use super::{Ctx, Handled};
use crate::volume::node::caching::Cause;

/// Handles a CLOSE.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let id = ctx.resolve(request.file_id)?;
    let (session, tree) = (ctx.session()?.clone(), ctx.tree()?.id);
    if let Ok(open) = session.open(tree, id)
        && open.delete_on_close.load(Ordering::Acquire)
    {
        // Whoever keeps the file open only to be faster must let go of it first.
        open.others_let_go(Cause::Delete)?;
    }
    let open = session.close(tree, id)?;
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
