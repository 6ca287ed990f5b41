//! Requests by hand on one connection, and their answers.

use smb_client::raw::RawConnection;
use smb_protocol::{Command, NtStatus};

/// Receives until `count` requests are answered: message id, status and body of each.
///
/// # Panics
/// If the connection ends before.
pub fn answers(raw: &mut RawConnection, count: usize) -> Vec<(u64, NtStatus, Vec<u8>)> {
    let mut all = Vec::new();
    while all.len() < count {
        raw.receive_all(|header, body| {
            if header.status != NtStatus::PENDING {
                all.push((header.message_id.0, header.status, body.to_vec()));
            }
        })
        .expect("the connection stays");
    }
    all
}

/// Sends one request and waits for its answer: status and body.
///
/// # Panics
/// If the connection ends before.
pub fn ask(
    raw: &mut RawConnection,
    command: Command,
    encode: impl FnOnce(&mut Vec<u8>),
) -> (NtStatus, Vec<u8>) {
    raw.queue_request(command, encode);
    raw.send().expect("the connection stays");
    let (_, status, body) = answers(raw, 1).remove(0);
    (status, body)
}
