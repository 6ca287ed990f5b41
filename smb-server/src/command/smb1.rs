//! The one SMB 1 message that is answered: NEGOTIATE, with "use SMB 2" or "nothing in common"
//! (MS-SMB2 3.3.5.3, MS-CIFS 2.2.4.52).

use smb_protocol::{
    Command, Dialect, NtStatus,
    crypto::{PreauthHash, SigningAlgorithm},
    msg::negotiate::{Capabilities, Response},
    spnego::Acceptor,
};
use volume::clock;

use super::negotiate::{Negotiated, max_payload, security_mode};
use crate::{
    dropped::Dropped,
    exchange::{Exchange, plain_frame, plain_header},
};

const SMB1_NEGOTIATE: u8 = 0x72;
const SMB1_HEADER: usize = 32;

/// Answers an SMB 1 NEGOTIATE; everything else of SMB 1 ends the connection. A client that knows
/// `SMB 2.???` is asked to negotiate again (MS-SMB2 3.3.5.3.1), one that knows `SMB 2.002` alone
/// speaks that from now on (MS-SMB2 3.3.5.3.2).
pub fn answer(ex: &mut Exchange, message: &[u8], out: &mut Vec<u8>) -> Result<(), Dropped> {
    if message.get(4) != Some(&SMB1_NEGOTIATE) || message.len() < SMB1_HEADER + 3 {
        return Err(Dropped::Protocol("SMB 1 is not served"));
    }
    let offers = |name: &[u8]| message[SMB1_HEADER + 3..].split(|b| *b == 0).any(|d| d == name);
    let current = ex.server.current();
    let config = &current.config;
    let wildcard = offers(b"\x02SMB 2.???") && config.max_dialect > Dialect::SMB_2_0_2;
    let old = offers(b"\x02SMB 2.002") && config.min_dialect == Dialect::SMB_2_0_2;
    if !wildcard && !old {
        refuse(message, out);
        return Ok(());
    }
    let dialect = if wildcard { Dialect::WILDCARD } else { Dialect::SMB_2_0_2 };
    let mut capabilities = if wildcard { Capabilities::LARGE_MTU } else { Capabilities::NONE };
    if !config.namespaces.is_empty() {
        capabilities |= Capabilities::DFS;
    }
    let security_mode = security_mode(config);
    let max = max_payload(config, dialect);
    let response = Response {
        security_mode,
        dialect,
        server_guid: ex.server.ids.server_guid(),
        capabilities,
        max_transact_size: max,
        max_read_size: max,
        max_write_size: max,
        system_time: clock::now(),
        security_buffer: Acceptor::hint(current.kerberos.is_some()),
        contexts: Vec::new(),
    };
    let mut header = plain_header(Command::NEGOTIATE);
    header.status = NtStatus::SUCCESS;
    plain_frame(header, out, |out| response.encode(out));
    // The SMB 1 request took the first message id (3.3.5.3).
    ex.skip_message_id();
    if !wildcard {
        ex.negotiated = Some(Negotiated {
            dialect,
            signing: SigningAlgorithm::HmacSha256,
            cipher: None,
            compression: None,
            seals_remote: false,
            client_guid: [0; 16],
            client_capabilities: 0,
            client_security_mode: 0,
            client_dialects: vec![dialect],
            capabilities,
            security_mode,
            preauth: PreauthHash::new(),
        });
    }
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
