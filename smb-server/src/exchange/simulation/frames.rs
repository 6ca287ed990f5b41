//! What both simulations have in common: how a server takes frames and answers them, and another
//! program that tries to open a client's file.

use std::time::Duration;

use smb_protocol::{
    Command, MessageId, NtStatus, SessionId, TreeId,
    crypto::SigningAlgorithm,
    msg::{
        create::{self, Access, Disposition, ShareAccess},
        tree_connect,
    },
};

use test_support::smb_caller::Caller;

use super::{
    super::{Exchange, Frame, WaitingFuture},
    Checked,
    world::House,
};
use crate::dropped::Dropped;

/// Longest wait for what the server's threads do.
const LIMIT: Duration = Duration::from_secs(60);

/// What a file is for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Absent,
    Open,
    Closed,
}

/// The server takes a frame; what it sends at once, and whether it keeps the connection.
pub(super) fn receive(
    house: &House,
    exchange: &mut Exchange,
    waits: &mut Vec<WaitingFuture>,
    frame: &mut [u8],
) -> (Vec<u8>, Result<(), Dropped>) {
    let mut out = Vec::new();
    let _inside = house.runtime.enter();
    let taken = exchange.receive(frame, &mut out).map(|taken| {
        if let Frame::Waits(more) = taken {
            waits.extend(more);
        }
    });
    (out, taken)
}

/// Whether the signatures of a connection have nonces.
pub(super) fn signs_with_gmac(exchange: &Exchange) -> bool {
    let negotiated = exchange.negotiated.as_ref();
    negotiated.is_some_and(|negotiated| negotiated.signing == SigningAlgorithm::AesGmac)
}

/// Something that the server began is done, or lets wait for longer; what it answers.
pub(super) fn complete(
    house: &House,
    exchange: &mut Exchange,
    waits: &mut Vec<WaitingFuture>,
    which: usize,
) -> Result<Vec<u8>, String> {
    let mut wait = waits.swap_remove(which);
    let _inside = house.runtime.enter();
    let limit = async { tokio::time::timeout(LIMIT, &mut wait).await };
    let done = house.runtime.block_on(limit).map_err(|_| "something never ends".to_owned())?;
    let mut out = Vec::new();
    waits.extend(exchange.complete_at_once(done, &mut out).map_err(|e| e.to_string())?);
    Ok(out)
}

/// A request, and its number.
pub(super) fn request(
    caller: &mut Caller,
    session: SessionId,
    tree: TreeId,
    command: Command,
    body: impl FnOnce(&mut Vec<u8>),
) -> (MessageId, Vec<u8>) {
    let id = MessageId(caller.next_id);
    let mut asks = Caller { session, tree, credits: 64, ..caller.clone() };
    let message = asks.message(command, body);
    caller.next_id = asks.next_id;
    (id, message)
}

/// The share that clients and others use.
pub(super) fn share(out: &mut Vec<u8>) {
    tree_connect::Request { flags: 0, path: "\\\\s\\s".into() }.encode(out);
}

/// Another program's open of a file, which it wants for itself.
pub(super) fn intrusion(name: &str) -> create::Request<'static> {
    create::Request {
        access: Access(0x0012_019f),
        share: ShareAccess::NONE,
        disposition: Disposition::OPEN,
        name: name.to_owned(),
        impersonation: 2,
        ..Default::default()
    }
}

/// Whether what the other program is told of the file of a client is right; `there` says whether
/// the file is when it is closed.
pub(super) fn judge(client: usize, place: Place, there: bool, status: NtStatus) -> Checked {
    let refused = matches!(status, NtStatus::SHARING_VIOLATION | NtStatus::FILE_NOT_AVAILABLE);
    let wanted = if there { NtStatus::SUCCESS } else { NtStatus::OBJECT_NAME_NOT_FOUND };
    match place {
        Place::Open if refused => Ok(()),
        Place::Closed if status == wanted => Ok(()),
        _ => {
            Err(format!("another opens the file of client {client}, which is {place:?}: {status}"))
        }
    }
}
