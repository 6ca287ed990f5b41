//! Related requests of one message (MS-SMB2 3.3.5.2.7.2).

use smb_protocol::{
    FileId,
    fscc::InfoClass,
    msg::{
        close, create,
        lock::{self, LockFlags},
        query_info,
    },
};

use super::*;

/// What encodes the body of a request.
type Body<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Sends requests as one related compound; the answers.
pub(super) fn related<const N: usize>(
    direct: &mut Direct,
    bodies: [(Command, Body<'_>); N],
) -> Vec<(Header, Vec<u8>)> {
    let mut frame: Vec<u8> = Vec::new();
    let mut last = None;
    for (command, body) in bodies {
        frame.resize(frame.len().next_multiple_of(8), 0);
        let at = frame.len();
        let mut header = direct.header(command);
        if let Some(last) = last.replace(at) {
            header.flags |= HeaderFlags::RELATED;
            let next = (at - last) as u32;
            frame[last + 20..last + 24].copy_from_slice(&next.to_le_bytes());
        }
        let mut message = header.to_bytes().to_vec();
        body(&mut message);
        frame.extend_from_slice(&message);
    }
    direct.send(&mut frame).unwrap()
}

/// A session whose ticket has ended is a session all the same: what is related to a request that is
/// refused for it is refused alike, and so a client knows that it is to log on again. Of a session that
/// there is not nothing is related to anything.
#[test]
fn what_is_related_to_a_request_of_an_expired_session_is_refused_alike() {
    let mut direct = Direct::new();
    direct.login();
    let create = create::Request {
        access: create::Access::READ_ATTRIBUTES,
        share: create::ShareAccess(7),
        disposition: create::Disposition::OPEN,
        impersonation: 2,
        ..Default::default()
    };
    let query = query_info::Request {
        info_type: query_info::InfoType::FILE,
        class: InfoClass::ALL,
        output_len: 4096,
        file_id: FileId::RELATED,
        ..Default::default()
    };
    let closing = close::Request { flags: 1, file_id: FileId::RELATED };
    let ask = |direct: &mut Direct| {
        let answers = related(
            direct,
            [
                (Command::CREATE, &|out| create.encode(out)),
                (Command::QUERY_INFO, &|out| query.encode(out)),
                (Command::CLOSE, &|out| closing.encode(out)),
            ],
        );
        answers.iter().map(|(header, _)| header.status).collect::<Vec<_>>()
    };
    assert_eq!(ask(&mut direct), [NtStatus::SUCCESS; 3]);
    let session = direct.exchange.server.sessions.get(direct.session).unwrap();
    session.renew(1);
    assert_eq!(ask(&mut direct), [NtStatus::NETWORK_SESSION_EXPIRED; 3]);
    direct.session = SessionId(0x1234_5678);
    let gone = [NtStatus::USER_SESSION_DELETED, NtStatus::INVALID_PARAMETER];
    assert_eq!(ask(&mut direct), [gone[0], gone[1], gone[1]]);
}

/// An expired session gives up what it has and takes nothing more (MS-SMB2 3.3.5.2.9).
#[test]
fn an_expired_session_unlocks_and_locks_nothing() {
    const EXCLUSIVE_AT_ONCE: u32 = 0x12;
    const UNLOCK: u32 = 4;
    let mut direct = Direct::new();
    direct.login();
    let file_id = direct.open("f", create::CreateOptions::NON_DIRECTORY_FILE);
    let ask = |direct: &mut Direct, flags: u32| {
        let element = lock::Element { offset: 0, length: 1, flags: LockFlags(flags) };
        let request = lock::Request { file_id, sequence: 0, locks: vec![element] };
        direct.ask(Command::LOCK, |out| request.encode(out)).0.status
    };
    assert_eq!(ask(&mut direct, EXCLUSIVE_AT_ONCE), NtStatus::SUCCESS);
    direct.exchange.server.sessions.get(direct.session).unwrap().renew(1);
    assert_eq!(ask(&mut direct, UNLOCK), NtStatus::SUCCESS);
    assert_eq!(ask(&mut direct, EXCLUSIVE_AT_ONCE), NtStatus::NETWORK_SESSION_EXPIRED);
    assert_eq!(ask(&mut direct, UNLOCK), NtStatus::RANGE_NOT_LOCKED);
}
