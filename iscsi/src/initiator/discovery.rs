//! Which targets a portal knows: SendTargets (RFC 7143 appendix C).

use std::time::Duration;

use tokio::{io::AsyncWriteExt, time::timeout};

use super::{
    error::InitiatorError,
    link::{Wire, log_in, receive},
    login::Purpose,
};
use crate::{
    chap::Account,
    negotiate::DigestWish,
    pdu::{LogoutRequest, NO_TAG, Pdu, RequestNumbers, TextRequest, frame},
    text,
};

/// For how long a portal may take.
const TIME: Duration = Duration::from_secs(30);
/// The longest list, in bytes.
const LIMIT: usize = 4 << 20;
/// Texts of a list: one that adds nothing is no step.
const ROUNDS: usize = 4096;

/// A target and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// Its iSCSI name.
    pub name: String,
    /// Its portals.
    pub portals: Vec<DiscoveredPortal>,
}

/// An address of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredPortal {
    /// `host:port`.
    pub address: String,
    /// The target portal group tag.
    pub tag: u16,
}

/// Who asks, and whom.
#[derive(Debug, Clone)]
pub struct DiscoveryOptions {
    /// `host:port`.
    pub portal: String,
    /// InitiatorName.
    pub name: String,
    /// ISID.
    pub isid: [u8; 6],
    /// By which this initiator proves who it is.
    pub chap: Option<Account>,
    /// By which the target has to.
    pub mutual: Option<Account>,
}

/// Asks a portal for its targets.
///
/// # Errors
/// [`InitiatorError`]: it cannot be reached, refuses, or breaks the protocol.
pub async fn discover(options: &DiscoveryOptions) -> Result<Vec<DiscoveredTarget>, InitiatorError> {
    let purpose = Purpose {
        portal: options.portal.clone(),
        name: options.name.clone(),
        target: None,
        isid: options.isid,
        chap: options.chap.clone(),
        mutual: options.mutual.clone(),
        header_digest: DigestWish::Allowed,
        data_digest: DigestWish::Allowed,
        old_hashes: false,
    };
    timeout(TIME, ask(&purpose)).await.unwrap_or(Err(InitiatorError::TimedOut(TIME)))
}

async fn ask(purpose: &Purpose) -> Result<Vec<DiscoveredTarget>, InitiatorError> {
    let mut wire = log_in(purpose, TIME).await?;
    let wrong = |what: &str| InitiatorError::Protocol {
        portal: purpose.portal.clone(),
        what: what.to_owned(),
    };
    let mut numbers = RequestNumbers {
        immediate: false,
        cmd_sn: wire.agreed.cmd_sn,
        exp_stat_sn: wire.agreed.exp_stat_sn,
    };
    let mut list = Vec::new();
    let (mut data, mut lun, mut ttt) = (text::write([("SendTargets", "All")]), [0; 8], NO_TAG);
    for round in 0.. {
        if round == ROUNDS || list.len() > LIMIT {
            return Err(wrong("a list without an end"));
        }
        let request = TextRequest { sn: numbers, last: true, more: false, lun, itt: 1, ttt };
        send(&mut wire, purpose, &Pdu::TextRequest(request), &data).await?;
        numbers.cmd_sn = numbers.cmd_sn.wrapping_add(1);
        let answer = loop {
            let Wire { stream, framer, input, .. } = &mut wire;
            let frame = receive(stream, framer, input, purpose).await?;
            match Pdu::read(&frame.basic) {
                Ok(Pdu::TextResponse(it)) if frame.intact && it.itt == 1 => {
                    list.extend_from_slice(&frame.data);
                    break it;
                }
                // A ping that wants no answer before the logout.
                Ok(Pdu::NopIn(_)) => {}
                _ => return Err(wrong("no answer to SendTargets")),
            }
        };
        numbers.exp_stat_sn = answer.sn.stat_sn.wrapping_add(1);
        if answer.last && !answer.more {
            break;
        }
        (data, lun, ttt) = (Vec::new(), answer.lun, answer.ttt);
    }
    let sn = RequestNumbers { immediate: true, ..numbers };
    let logout = LogoutRequest { sn, reason: 0, itt: 2, cid: 0 };
    // The list is complete, whatever becomes of the logout.
    if send(&mut wire, purpose, &Pdu::LogoutRequest(logout), &[]).await.is_ok() {
        let Wire { stream, framer, input, .. } = &mut wire;
        let farewell = receive(stream, framer, input, purpose);
        let _ = timeout(Duration::from_secs(2), farewell).await;
    }
    read(&list).ok_or_else(|| wrong("its list is none"))
}

async fn send(
    wire: &mut Wire,
    purpose: &Purpose,
    pdu: &Pdu,
    data: &[u8],
) -> Result<(), InitiatorError> {
    let bytes = frame::write(pdu.write(), &[], data, wire.agreed.digests);
    wire.stream.write_all(&bytes).await.map_err(|source| InitiatorError::Connect {
        portal: purpose.portal.clone(),
        source: std::sync::Arc::new(source),
    })
}

/// Reads a list, in which keys come again and again; `None` if it is none.
fn read(list: &[u8]) -> Option<Vec<DiscoveredTarget>> {
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    for pair in list.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
        let (key, value) = str::from_utf8(pair).ok()?.split_once('=')?;
        match key {
            "TargetName" => {
                targets.push(DiscoveredTarget { name: value.to_owned(), portals: Vec::new() });
            }
            "TargetAddress" => {
                let (address, tag) = value.split_once(',').unwrap_or((value, "1"));
                let portal =
                    DiscoveredPortal { address: address.to_owned(), tag: tag.parse().ok()? };
                targets.last_mut()?.portals.push(portal);
            }
            // What is not known is left alone.
            _ => {}
        }
    }
    Some(targets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_names_targets_and_their_portals() {
        let list =
            b"TargetName=iqn.a\0TargetAddress=10.0.0.1:3260,1\0TargetAddress=[fd00::1]:860,2\0\
                     TargetName=iqn.b\0X-more=1\0";
        let targets = read(list).unwrap();
        assert_eq!((targets.len(), targets[0].portals.len()), (2, 2));
        assert_eq!(targets[0].portals[1].address, "[fd00::1]:860");
        assert_eq!((targets[0].portals[1].tag, &*targets[1].name), (2, "iqn.b"));
        assert_eq!(read(b"TargetAddress=x,1\0"), None);
    }

    proptest! {
        #[test]
        fn any_list_is_read_or_refused(list in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&list);
        }
    }
}
