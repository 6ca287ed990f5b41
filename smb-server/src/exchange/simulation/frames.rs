//! What both simulations have in common: how a server takes frames and answers them, and another
//! program that tries to open a client's file.

use std::time::Duration;

use smb_protocol::{
    Command, Header, MessageId, NtStatus, SessionId, TreeId,
    crypto::SigningAlgorithm,
    header::{FRAME_LEN, HEADER_LEN, frame_len},
    msg::{
        create::{self, Access, Disposition, ShareAccess},
        tree_connect,
    },
};

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
    next_id: &mut u64,
    session: SessionId,
    tree: TreeId,
    command: Command,
    body: impl FnOnce(&mut Vec<u8>),
) -> (MessageId, Vec<u8>) {
    let message_id = MessageId(*next_id);
    *next_id += 1;
    let mut header = Header {
        command,
        credit_charge: 1,
        credits: 64,
        message_id,
        session_id: session,
        ..Header::default()
    };
    header.set_tree_id(tree);
    let mut message = header.to_bytes().to_vec();
    body(&mut message);
    (message_id, message)
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

/// Takes what the server sent apart.
pub(super) fn answers(mut out: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut list = Vec::new();
    while let Some(prefix) = out.first_chunk::<FRAME_LEN>() {
        let len = frame_len(*prefix).expect("the server's own");
        let frame = &out[FRAME_LEN..FRAME_LEN + len];
        out = &out[FRAME_LEN + len..];
        let header = Header::parse(frame).expect("the server's own");
        assert_eq!(header.next_command, 0);
        list.push((header, frame[HEADER_LEN..].to_vec()));
    }
    list
}
