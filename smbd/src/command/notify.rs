//! CHANGE_NOTIFY (MS-SMB2 3.3.5.19).

use smb_protocol::{
    NtStatus,
    msg::{create::Access, notify::Request},
};
use tokio::sync::oneshot;

use super::{Ctx, Fail, Handled, Later};

/// Handles a CHANGE_NOTIFY: it waits until the client cancels it or closes the folder.
///
/// No change completes it: clients that are not told look again by themselves.
pub fn handle(ctx: &mut Ctx<'_>, body: &[u8]) -> Handled {
    let request = Request::parse(body)?;
    let open = ctx.open(request.file_id)?;
    if !open.directory || request.output_len as usize > ctx.ex.max_message() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    open.need(Access::READ_DATA)?;
    let (cancel, cancelled) = oneshot::channel();
    let ended = open.closed.clone().notified_owned();
    Err(Fail::Later(Later {
        future: Box::pin(async move {
            tokio::select! {
                () = ended => Err(NtStatus::NOTIFY_CLEANUP),
                _ = cancelled => Err(NtStatus::CANCELLED),
            }
        }),
        cancel: Some(cancel),
        interim: true,
        bytes: 0,
        io: false,
    }))
}
