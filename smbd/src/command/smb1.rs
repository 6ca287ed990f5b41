//! The one SMB 1 message that is answered: NEGOTIATE, with "use SMB 2" or "nothing in common"
//! (MS-SMB2 3.3.5.3, MS-CIFS 2.2.4.52).

use smb_protocol::{
    Command, Dialect, NtStatus,
    msg::negotiate::{Capabilities, Response},
    spnego::Acceptor,
};

use super::negotiate::security_mode;
use crate::{
    connection::Dropped,
    exchange::{Exchange, plain_frame, plain_header},
    server,
};

const SMB1_NEGOTIATE: u8 = 0x72;
const SMB1_HEADER: usize = 32;

/// Answers an SMB 1 NEGOTIATE; everything else of SMB 1 ends the connection.
pub fn answer(ex: &mut Exchange, message: &[u8], out: &mut Vec<u8>) -> Result<(), Dropped> {
    if message.get(4) != Some(&SMB1_NEGOTIATE) || message.len() < SMB1_HEADER + 3 {
        return Err(Dropped::Protocol("SMB 1 is not served"));
    }
    let dialects = &message[SMB1_HEADER + 3..];
    let wildcard = dialects.split(|b| *b == 0).any(|d| d == b"\x02SMB 2.???");
    if !wildcard {
        refuse(message, out);
        return Ok(());
    }
    let current = ex.server.current();
    let response = Response {
        security_mode: security_mode(&current.config),
        dialect: Dialect::WILDCARD,
        server_guid: ex.server.guid,
        capabilities: Capabilities::LARGE_MTU,
        max_transact_size: current.config.max_io_size,
        max_read_size: current.config.max_io_size,
        max_write_size: current.config.max_io_size,
        system_time: server::now(),
        security_buffer: Acceptor::hint(),
        contexts: Vec::new(),
    };
    let mut header = plain_header(Command::NEGOTIATE);
    header.status = NtStatus::SUCCESS;
    plain_frame(header, out, |out| response.encode(out));
    Ok(())
}

/// "None of your dialects": DialectIndex 0xffff in an SMB 1 answer.
fn refuse(message: &[u8], out: &mut Vec<u8>) {
    let mut answer = message[..SMB1_HEADER].to_vec();
    answer[5..9].fill(0);
    answer[9] |= 0x80;
    answer.extend_from_slice(&[1, 0xff, 0xff, 0, 0]);
    out.extend_from_slice(&(answer.len() as u32).to_be_bytes());
    out.extend_from_slice(&answer);
}
