//! The header of a request, with the credits that it pays and asks for (MS-SMB2 3.2.4.1.2, 3.2.4.1.5).

use smb_protocol::{Command, Header, MessageId, SessionId, TreeId};

/// What a connection has in credits when it sends a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credits {
    /// What the request costs.
    pub charge: u16,
    /// Credits available and in flight.
    pub held: u32,
    /// Credits to hold in the end.
    pub wanted: u32,
    /// Whether requests may cost more than one credit, and say so.
    pub large_mtu: bool,
}

/// The header of a request. It asks for what it costs and for what is lacking.
pub(crate) fn header(
    command: Command,
    session_id: SessionId,
    tree: TreeId,
    message_id: MessageId,
    credits: Credits,
) -> Header {
    let lacking = credits.wanted.saturating_sub(credits.held);
    let asked = lacking.saturating_add(credits.charge.into());
    let mut header = Header {
        credit_charge: if credits.large_mtu { credits.charge } else { 0 },
        command,
        credits: u16::try_from(asked).unwrap_or(u16::MAX),
        message_id,
        session_id,
        ..Header::default()
    };
    header.set_tree_id(tree);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_asks_for_its_cost_and_for_what_is_lacking() {
        let of = |held, wanted, large_mtu| {
            let credits = Credits { charge: 3, held, wanted, large_mtu };
            let (session, tree) = (SessionId(7), TreeId(5));
            header(Command::READ, session, tree, MessageId(9), credits)
        };
        let header = of(10, 64, true);
        assert_eq!((header.credit_charge, header.credits), (3, 57));
        assert_eq!((header.session_id, header.tree_id()), (SessionId(7), TreeId(5)));
        assert_eq!(header.message_id, MessageId(9));
        assert_eq!((of(64, 64, true).credits, of(80, 64, true).credits), (3, 3));
        // MS-SMB2 3.2.4.1.5: the charge is 0 where the server has no multi-credit requests.
        assert_eq!(of(10, 64, false).credit_charge, 0);
        assert_eq!(of(0, u32::MAX, true).credits, u16::MAX);
    }
}
