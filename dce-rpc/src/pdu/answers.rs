//! What a server answers, as its client reads it.

use nom::Parser;
use smb_protocol::{
    parse::{Input, align, bytes, counted, rest, run, size8, size16, skip, u16, u32, with},
    wire::Result,
};

use super::{NakReason, SYNTAX_LEN, Verdict, syntax};
use crate::{FaultStatus, Features, SyntaxId, Transfer};

/// One verdict for each context that was offered; `None` for one that makes no sense.
pub type Verdicts = Vec<Option<Verdict>>;

/// Bind ack and alter context response (C706 12.6.4.4, 12.6.4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindAnswer {
    /// Longest fragment that the server takes.
    pub max_receive: u16,
    /// Association group.
    pub group: u32,
    /// What became of the contexts.
    pub verdicts: Verdicts,
}

fn verdict(result: u16, reason: u16, transfer: SyntaxId) -> Option<Verdict> {
    match (result, reason) {
        (0, _) if transfer == SyntaxId::NDR => Some(Verdict::Accepted(Transfer::Ndr)),
        (0, _) if transfer == SyntaxId::NDR64 => Some(Verdict::Accepted(Transfer::Ndr64)),
        (3, features) => Some(Verdict::Features(Features(features as u8))),
        (1 | 2, 1) => Some(Verdict::NoInterface),
        (1 | 2, _) => Some(Verdict::NoTransferSyntax),
        _ => None,
    }
}

impl BindAnswer {
    /// Reads the body, which starts behind the common header.
    ///
    /// # Errors
    /// It ends within a field, or before the verdicts that it counts.
    pub fn parse(body: &[u8]) -> Result<Self> {
        with(Input::new(body), |input| {
            let (i, (_, max_receive, group, address)) = (
                u16("ack.MaxXmitFrag"),
                u16("ack.MaxRecvFrag"),
                u32("ack.AssocGroupId"),
                size16("ack.SecAddrLength"),
            )
                .parse(input)?;
            let (i, _) = bytes(address, "ack.SecAddr")(i)?;
            let (i, (_, count, _)) =
                (align(4, "ack.Pad"), size8("ack.NumResults"), skip(3, "ack.Reserved")).parse(i)?;
            let one = (u16("ack.Result"), u16("ack.Reason"), syntax)
                .map(|(result, reason, transfer)| verdict(result, reason, transfer));
            let (i, verdicts) = counted(count, 4 + SYNTAX_LEN, "ack.NumResults", one).parse(i)?;
            Ok((i, Self { max_receive, group, verdicts }))
        })
    }
}

/// Bind nak (C706 12.6.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nak(pub NakReason);

impl Nak {
    /// Reads the body, which starts behind the common header.
    ///
    /// # Errors
    /// It ends within the reason.
    pub fn parse(body: &[u8]) -> Result<Self> {
        run(Input::new(body), u16("nak.Reason").map(|reason| Self(NakReason(reason))))
    }
}

/// A response, or a part of it (C706 12.6.4.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Results, or a part of them.
    pub stub: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Reads the body, which starts behind the common header.
    ///
    /// # Errors
    /// It ends before the stub.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        run(Input::new(body), (skip(8, "response.Header"), rest).map(|(_, stub)| Self { stub }))
    }

    /// Reads the status of a fault (C706 12.6.4.7), whose body starts behind the common header.
    ///
    /// # Errors
    /// It ends before the status.
    pub fn parse_fault(body: &[u8]) -> Result<FaultStatus> {
        let fields = (skip(8, "fault.Header"), u32("fault.Status"));
        run(Input::new(body), fields.map(|(_, status)| FaultStatus(status)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::{BindAck, put_fault, put_nak, put_response};

    #[test]
    fn what_a_server_writes_its_client_reads() {
        let verdicts = vec![
            Verdict::Accepted(Transfer::Ndr64),
            Verdict::NoTransferSyntax,
            Verdict::Features(Features::KEEP_CONNECTION_ON_ORPHAN),
            Verdict::NoInterface,
        ];
        for address in ["", "135", "49152"] {
            let ack = BindAck {
                max_transmit: 5840,
                max_receive: 4280,
                group: 7,
                address,
                verdicts: verdicts.clone(),
            };
            let mut out = Vec::new();
            ack.encode(&mut out);
            let answer = BindAnswer::parse(&out).unwrap();
            assert_eq!((answer.max_receive, answer.group), (4280, 7));
            assert_eq!(answer.verdicts, verdicts.iter().copied().map(Some).collect::<Vec<_>>());
        }
        let mut out = Vec::new();
        put_nak(&mut out, NakReason::INVALID_CHECKSUM);
        assert_eq!(Nak::parse(&out), Ok(Nak(NakReason::INVALID_CHECKSUM)));
        let mut out = Vec::new();
        put_fault(&mut out, 1, FaultStatus::OP_RANGE);
        assert_eq!(Answer::parse_fault(&out), Ok(FaultStatus::OP_RANGE));
        let mut out = Vec::new();
        put_response(&mut out, 1, 3, b"abc");
        assert_eq!(Answer::parse(&out), Ok(Answer { stub: b"abc" }));
    }
}
