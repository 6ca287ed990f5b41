//! CHANGE_NOTIFY (MS-SMB2 3.3.5.19).

use smb_protocol::{
    NtStatus,
    msg::{
        create::Access,
        notify::{ChangeFilter, Request, WATCH_TREE},
        query_directory::Response,
    },
};
use tokio::sync::oneshot;

use super::{Ctx, Deferred, Handled, Outcome};

/// Bytes of changes that are kept for a folder between two requests.
const MOST: usize = 64 << 10;

/// Handles a CHANGE_NOTIFY: it waits until something happens in the folder, or the client cancels
/// it or closes the folder.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8]) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    let room = request.output_len as usize;
    if !open.directory || room > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    ctx.check_charge(room)?;
    open.need(Access::READ_DATA)?;
    if open.delete_pending() {
        return Err(NtStatus::DELETE_PENDING.into());
    }
    let budget = ctx.budget()?;
    let hides = ctx.tree()?.share.access_based_enumeration;
    let watch = open.watch(|watches| {
        let tree = request.flags & WATCH_TREE != 0;
        let filter = ChangeFilter(request.filter);
        // A client that may not see every name is told that something changed, and not what.
        let most = if hides { 0 } else { room.min(MOST) };
        watches.watch(open.file.key(), filter, tree, most, budget)
    });
    let (cancel, cancelled) = oneshot::channel::<()>();
    let ended = open.closed.clone().notified_owned();
    drop(open);
    Ok(Outcome::Deferred(Deferred::event(room.min(4096), cancel, async move {
        let (status, events) = tokio::select! {
            biased;
            Ok(()) = cancelled => return Err(NtStatus::CANCELLED),
            () = ended => (NtStatus::NOTIFY_CLEANUP, Vec::new()),
            events = watch.next(room) => match events? {
                Some(events) => (NtStatus::SUCCESS, events),
                None => (NtStatus::NOTIFY_ENUM_DIR, Vec::new()),
            },
        };
        // MS-SMB2 3.3.4.4: none of these is a failure, so the response is a CHANGE_NOTIFY's own.
        let mut body = Vec::with_capacity(8 + events.len());
        Response { output: &events }.encode(&mut body);
        Ok((status, body))
    })))
}
