//! CLOSE (MS-SMB2 3.3.5.10).

use std::sync::atomic::Ordering;

use smb_protocol::msg::close::{POSTQUERY_ATTRIB, Request, Response};
use volume::{open::Ended, sharing::caching::BreakReason};

use super::{Ctx, Deferred, Handled, Outcome};

/// Carries out a CLOSE request.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(body)?;
    let id = ctx.resolve(request.file_id)?;
    let (session, tree) = (ctx.session()?.clone(), ctx.tree()?.id);
    if let Ok(open) = session.open(tree, id)
        && open.delete_on_close.load(Ordering::Acquire)
    {
        // Whoever keeps the file open only to be faster must let go of it first.
        open.break_conflicting(BreakReason::Delete)?;
    }
    let open = session.close(tree, id)?;
    open.closed.notify_waiters();
    let mut response = Response::default();
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
    // A request that is still under way has it, and closes it with its own end.
    let Some(Ended { forgotten, failed }) = open.let_go() else {
        response.encode(out);
        return Ok(Outcome::SUCCESS);
    };
    if let Some(status) = failed {
        // It is closed all the same.
        return Err(status.into());
    }
    if let Some(forgotten) = forgotten {
        let mut body = Vec::new();
        response.encode(&mut body);
        return Ok(Outcome::Deferred(Deferred::storage(body.len(), async move {
            // If that failed the open is closed all the same; after a crash it would be there
            // again until its time is over.
            if let Err(error) = forgotten.await {
                tracing::debug!(%error, "a closed open is not forgotten");
            }
            Ok(body)
        })));
    }
    response.encode(out);
    Ok(Outcome::SUCCESS)
}
