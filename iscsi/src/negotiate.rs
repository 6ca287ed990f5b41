//! Operational keys (RFC 7143 13, RFC 7144 7): what the two sides agree upon.
//!
//! The initiator offers or declares, the target answers. A key is settled once in a login; whoever
//! brings it up again breaks the protocol (RFC 7143 6.3). A value that cannot be is answered by
//! Reject, and the default stands.

use std::collections::BTreeSet;

use crate::{
    pdu::Digests,
    text::{Pair, number},
};

/// What the target thinks of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DigestWish {
    /// Never.
    Never,
    /// As the initiator likes.
    #[default]
    Allowed,
    /// CRC32C, or there is no login.
    Required,
}

/// What the target offers; each is the most, or the least, that it agrees to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishes {
    /// HeaderDigest.
    pub header_digest: DigestWish,
    /// DataDigest.
    pub data_digest: DigestWish,
    /// MaxConnections.
    pub max_connections: u16,
    /// InitialR2T: whether all data have to be asked for.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength of the target, in bytes.
    pub max_recv_data: u32,
    /// MaxBurstLength, in bytes.
    pub max_burst: u32,
    /// FirstBurstLength, in bytes.
    pub first_burst: u32,
    /// DefaultTime2Wait, in seconds.
    pub time2wait: u16,
    /// DefaultTime2Retain, in seconds.
    pub time2retain: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// ErrorRecoveryLevel.
    pub error_recovery_level: u8,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            header_digest: DigestWish::Allowed,
            data_digest: DigestWish::Allowed,
            max_connections: 4,
            initial_r2t: false,
            immediate_data: true,
            max_recv_data: 256 << 10,
            max_burst: 1 << 20,
            first_burst: 256 << 10,
            time2wait: 2,
            time2retain: 20,
            max_outstanding_r2t: 4,
            error_recovery_level: 2,
        }
    }
}

/// What holds for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionParameters {
    /// MaxConnections.
    pub max_connections: u16,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxBurstLength, in bytes.
    pub max_burst: u32,
    /// FirstBurstLength, in bytes.
    pub first_burst: u32,
    /// DefaultTime2Wait, in seconds.
    pub time2wait: u16,
    /// DefaultTime2Retain, in seconds.
    pub time2retain: u16,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// ErrorRecoveryLevel.
    pub error_recovery_level: u8,
    /// TaskReporting is ResponseFence, or FastAbort, which has the same fence.
    pub response_fence: bool,
    /// TaskReporting is FastAbort.
    pub fast_abort: bool,
    /// iSCSIProtocolLevel.
    pub protocol_level: u8,
}

impl Default for SessionParameters {
    /// The defaults of RFC 7143 13.
    fn default() -> Self {
        Self {
            max_connections: 1,
            initial_r2t: true,
            immediate_data: true,
            max_burst: 262_144,
            first_burst: 65_536,
            time2wait: 2,
            time2retain: 20,
            max_outstanding_r2t: 1,
            error_recovery_level: 0,
            response_fence: false,
            fast_abort: false,
            protocol_level: 1,
        }
    }
}

/// What holds for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionParameters {
    /// Digests, from the full feature phase on.
    pub digests: Digests,
    /// The longest data segment that the initiator takes, in bytes.
    pub initiator_max_recv: u32,
}

/// MaxRecvDataSegmentLength where nobody declared one.
pub const DEFAULT_MAX_RECV: u32 = 8192;

impl Default for ConnectionParameters {
    fn default() -> Self {
        Self { digests: Digests::default(), initiator_max_recv: DEFAULT_MAX_RECV }
    }
}

/// An offence against the rules of negotiation: the login, or the exchange, fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// The key was settled before.
    #[error("{0} was settled before")]
    Reneged(String),
    /// A digest is required that the initiator does not offer.
    #[error("{0} has to be CRC32C")]
    DigestRequired(&'static str),
}

/// Where a negotiation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The login of a session's first connection.
    Leading,
    /// The login of another connection.
    Joining,
    /// The full feature phase.
    Full,
}

/// The negotiation of one connection.
#[derive(Debug, Clone)]
pub struct Negotiation {
    wishes: Wishes,
    /// Where it stands.
    pub phase: Phase,
    /// The session is for discovery: most keys have no meaning.
    pub discovery: bool,
    /// What is agreed upon for the session.
    pub session: SessionParameters,
    /// What is agreed upon for the connection.
    pub connection: ConnectionParameters,
    settled: BTreeSet<String>,
}

const REJECT: &str = "Reject";
const IRRELEVANT: &str = "Irrelevant";
const LENGTHS: std::ops::RangeInclusive<u64> = 512..=0xff_ffff;

/// Keys that have no meaning in a discovery session.
const NORMAL_ONLY: [&str; 10] = [
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "TaskReporting",
    "iSCSIProtocolLevel",
];

/// Keys that only a session's first login may bring.
const LEADING_ONLY: [&str; 13] = [
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "TaskReporting",
    "iSCSIProtocolLevel",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "ErrorRecoveryLevel",
];

/// Keys that only targets send, or that a login names before anything else.
const OUT_OF_PLACE: [&str; 10] = [
    "TargetAddress",
    "TargetAlias",
    "TargetPortalGroupTag",
    "AuthMethod",
    "InitiatorName",
    "TargetName",
    "SessionType",
    "CHAP_A",
    "CHAP_N",
    "CHAP_R",
];

impl Negotiation {
    /// One where nothing is settled.
    #[must_use]
    pub fn new(wishes: Wishes, phase: Phase) -> Self {
        Self {
            wishes,
            phase,
            discovery: false,
            session: SessionParameters::default(),
            connection: ConnectionParameters::default(),
            settled: BTreeSet::new(),
        }
    }

    /// Answers a text, key by key. The target's own MaxRecvDataSegmentLength goes with the first
    /// answer of a login.
    ///
    /// # Errors
    /// [`NegotiationError`] if a key comes again in a login, or a digest is required in vain.
    pub fn answer(&mut self, pairs: &[Pair]) -> Result<Vec<Pair>, NegotiationError> {
        let mut answers = Vec::new();
        // What FirstBurstLength can be depends on others.
        let late = |pair: &&Pair| pair.0 == "FirstBurstLength";
        let (last, first): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().partition(late);
        for (key, value) in first.into_iter().chain(last) {
            if self.phase != Phase::Full && !self.settled.insert(key.clone()) {
                return Err(NegotiationError::Reneged(key.clone()));
            }
            // What comes back as an answer to nothing that was offered settles nothing.
            if value == "NotUnderstood" || value == IRRELEVANT || value == REJECT {
                continue;
            }
            if let Some(answer) = self.one(key, value)? {
                answers.push((key.clone(), answer));
            }
        }
        // Behind a Reject of the same key it waits: a key stands in a text once.
        let free = answers.iter().all(|(key, _)| key != "MaxRecvDataSegmentLength");
        if free && self.phase != Phase::Full && self.settled.insert("(declared)".to_owned()) {
            let length = self.wishes.max_recv_data.to_string();
            answers.push(("MaxRecvDataSegmentLength".to_owned(), length));
        }
        Ok(answers)
    }

    /// What has to be settled before the full feature phase.
    ///
    /// # Errors
    /// [`NegotiationError::DigestRequired`].
    pub fn finish(&self) -> Result<(), NegotiationError> {
        let required = |wish, got: bool| wish == DigestWish::Required && !got && !self.discovery;
        let digests = self.connection.digests;
        if required(self.wishes.header_digest, digests.header) {
            return Err(NegotiationError::DigestRequired("HeaderDigest"));
        }
        if required(self.wishes.data_digest, digests.data) {
            return Err(NegotiationError::DigestRequired("DataDigest"));
        }
        Ok(())
    }

    fn one(&mut self, key: &str, value: &str) -> Result<Option<String>, NegotiationError> {
        let fixed = |text: &str| Ok(Some(text.to_owned()));
        if LEADING_ONLY.contains(&key) && self.phase != Phase::Leading {
            return fixed(REJECT);
        }
        if self.discovery && NORMAL_ONLY.contains(&key) {
            return fixed(IRRELEVANT);
        }
        let wishes = &self.wishes;
        let session = &mut self.session;
        let answer = match key {
            "InitiatorAlias" => return Ok(None),
            "MaxRecvDataSegmentLength" => match number(value).filter(|n| LENGTHS.contains(n)) {
                Some(length) => {
                    self.connection.initiator_max_recv =
                        u32::try_from(length).unwrap_or(DEFAULT_MAX_RECV);
                    return Ok(None);
                }
                None => REJECT.to_owned(),
            },
            "HeaderDigest" | "DataDigest" if self.phase != Phase::Full => {
                return self.digest(key == "HeaderDigest", value).map(Some);
            }
            "HeaderDigest" | "DataDigest" => return fixed(REJECT),
            "InitialR2T" => {
                yes_no(value, |offer| offer || wishes.initial_r2t, &mut session.initial_r2t)
            }
            "ImmediateData" => {
                yes_no(value, |offer| offer && wishes.immediate_data, &mut session.immediate_data)
            }
            // Data out of order is never agreed to: either side may insist on order.
            "DataPDUInOrder" | "DataSequenceInOrder" => yes_no(value, |_| true, &mut true),
            "MaxConnections" => {
                let ours = u64::from(wishes.max_connections);
                least(value, 1..=65535, ours, &mut session.max_connections)
            }
            "MaxOutstandingR2T" => {
                let ours = u64::from(wishes.max_outstanding_r2t);
                least(value, 1..=65535, ours, &mut session.max_outstanding_r2t)
            }
            "MaxBurstLength" => {
                let answer = least(value, LENGTHS, wishes.max_burst.into(), &mut session.max_burst);
                session.first_burst = session.first_burst.min(session.max_burst);
                answer
            }
            "FirstBurstLength" if session.initial_r2t && !session.immediate_data => {
                IRRELEVANT.to_owned()
            }
            "FirstBurstLength" => {
                let ours = wishes.first_burst.min(session.max_burst);
                least(value, LENGTHS, ours.into(), &mut session.first_burst)
            }
            "DefaultTime2Wait" => most(value, wishes.time2wait, &mut session.time2wait),
            "DefaultTime2Retain" => {
                least(value, 0..=3600, wishes.time2retain.into(), &mut session.time2retain)
            }
            "ErrorRecoveryLevel" => {
                let ours = u64::from(wishes.error_recovery_level.min(2));
                least(value, 0..=2, ours, &mut session.error_recovery_level)
            }
            "TaskReporting" => {
                let known = ["RFC3720", "ResponseFence", "FastAbort"];
                match value.split(',').find(|offer| known.contains(offer)) {
                    Some(choice) => {
                        session.response_fence = choice != "RFC3720";
                        session.fast_abort = choice == "FastAbort";
                        choice.to_owned()
                    }
                    None => REJECT.to_owned(),
                }
            }
            "iSCSIProtocolLevel" => least(value, 0..=31, 2, &mut session.protocol_level),
            // Obsolete (RFC 7143 13.25).
            "IFMarker" | "OFMarker" => "No".to_owned(),
            "IFMarkInt" | "OFMarkInt" => REJECT.to_owned(),
            _ if OUT_OF_PLACE.contains(&key) => REJECT.to_owned(),
            _ => "NotUnderstood".to_owned(),
        };
        Ok(Some(answer))
    }

    fn digest(&mut self, header: bool, offers: &str) -> Result<String, NegotiationError> {
        let (name, wish, place) = if header {
            ("HeaderDigest", self.wishes.header_digest, &mut self.connection.digests.header)
        } else {
            ("DataDigest", self.wishes.data_digest, &mut self.connection.digests.data)
        };
        let acceptable = |offer: &&str| match *offer {
            "CRC32C" => wish != DigestWish::Never,
            "None" => wish != DigestWish::Required || self.discovery,
            _ => false,
        };
        match offers.split(',').find(acceptable) {
            Some(choice) => {
                *place = choice == "CRC32C";
                Ok(choice.to_owned())
            }
            None if wish == DigestWish::Required => Err(NegotiationError::DigestRequired(name)),
            None => Ok(REJECT.to_owned()),
        }
    }
}

fn yes_no(value: &str, result: impl Fn(bool) -> bool, place: &mut bool) -> String {
    let offer = match value {
        "Yes" => true,
        "No" => false,
        _ => return REJECT.to_owned(),
    };
    *place = result(offer);
    if *place { "Yes" } else { "No" }.to_owned()
}

fn least<T: TryFrom<u64>>(
    value: &str,
    range: std::ops::RangeInclusive<u64>,
    ours: u64,
    place: &mut T,
) -> String {
    let Some(offer) = number(value).filter(|n| range.contains(n)) else {
        return REJECT.to_owned();
    };
    let agreed = offer.min(ours);
    match T::try_from(agreed) {
        Ok(value) => {
            *place = value;
            agreed.to_string()
        }
        Err(_) => REJECT.to_owned(),
    }
}

fn most(value: &str, ours: u16, place: &mut u16) -> String {
    match number(value).and_then(|n| u16::try_from(n).ok()).filter(|n| *n <= 3600) {
        Some(offer) => {
            *place = offer.max(ours);
            place.to_string()
        }
        None => REJECT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(negotiation: &mut Negotiation, key: &str, value: &str) -> Option<String> {
        let answers = negotiation.answer(&[(key.to_owned(), value.to_owned())]).unwrap();
        answers.into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn leading() -> Negotiation {
        let mut it = Negotiation::new(Wishes::default(), Phase::Leading);
        // The declaration goes with the first answer.
        assert_eq!(ask(&mut it, "X-nothing", "1").as_deref(), Some("NotUnderstood"));
        it
    }

    #[test]
    fn every_key_is_answered_by_its_rule() {
        let table = [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("DataDigest", "X-md5,None", "None"),
            ("MaxConnections", "9", "4"),
            ("InitialR2T", "No", "No"),
            ("ImmediateData", "Yes", "Yes"),
            ("MaxBurstLength", "0x1000", "4096"),
            ("DefaultTime2Wait", "0", "2"),
            ("DefaultTime2Retain", "3600", "20"),
            ("MaxOutstandingR2T", "65535", "4"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "Yes", "Yes"),
            ("ErrorRecoveryLevel", "2", "2"),
            ("TaskReporting", "FastAbort,ResponseFence,RFC3720", "FastAbort"),
            ("iSCSIProtocolLevel", "7", "2"),
            ("IFMarker", "Yes", "No"),
            ("OFMarkInt", "2048~8192", "Reject"),
            ("TargetAddress", "1.2.3.4", "Reject"),
            ("com.example.Key", "x", "NotUnderstood"),
        ];
        let mut it = leading();
        for (key, offer, answer) in table {
            assert_eq!(ask(&mut it, key, offer).as_deref(), Some(answer), "{key}");
        }
        assert_eq!(ask(&mut it, "FirstBurstLength", "65536").as_deref(), Some("4096"));
        assert_eq!(ask(&mut it, "MaxRecvDataSegmentLength", "16777215"), None);
        assert_eq!(it.connection.initiator_max_recv, 16_777_215);
        assert_eq!(it.connection.digests, Digests { header: true, data: false });
    }

    #[test]
    fn values_that_cannot_be_are_rejected_and_the_default_stands() {
        for (key, value) in [
            ("MaxConnections", "0"),
            ("MaxBurstLength", "511"),
            ("FirstBurstLength", "16777216"),
            ("ErrorRecoveryLevel", "3"),
            ("InitialR2T", "yes"),
            ("DefaultTime2Wait", "3601"),
            ("HeaderDigest", "MD5"),
            ("TaskReporting", "Slowly"),
            ("MaxRecvDataSegmentLength", "100"),
        ] {
            let mut it = leading();
            assert_eq!(ask(&mut it, key, value).as_deref(), Some("Reject"), "{key}");
            assert_eq!(it.session, SessionParameters::default());
            assert_eq!(it.connection, ConnectionParameters::default());
        }
    }

    #[test]
    fn a_key_that_comes_again_fails_the_login() {
        let mut it = leading();
        assert_eq!(ask(&mut it, "InitialR2T", "Yes").as_deref(), Some("Yes"));
        let again = [("InitialR2T".to_owned(), "No".to_owned())];
        assert_eq!(it.answer(&again), Err(NegotiationError::Reneged("InitialR2T".to_owned())));
    }

    #[test]
    fn keys_without_meaning_are_irrelevant() {
        let mut it = leading();
        it.discovery = true;
        assert_eq!(ask(&mut it, "MaxConnections", "2").as_deref(), Some("Irrelevant"));
        assert_eq!(ask(&mut it, "ErrorRecoveryLevel", "1").as_deref(), Some("1"));
        let mut it = leading();
        ask(&mut it, "InitialR2T", "Yes");
        ask(&mut it, "ImmediateData", "No");
        assert_eq!(ask(&mut it, "FirstBurstLength", "512").as_deref(), Some("Irrelevant"));
    }

    #[test]
    fn a_later_connection_and_a_later_text_change_no_session() {
        for phase in [Phase::Joining, Phase::Full] {
            let mut it = Negotiation::new(Wishes::default(), phase);
            assert_eq!(ask(&mut it, "MaxBurstLength", "4096").as_deref(), Some("Reject"));
        }
        let mut full = Negotiation::new(Wishes::default(), Phase::Full);
        assert_eq!(ask(&mut full, "HeaderDigest", "CRC32C").as_deref(), Some("Reject"));
        assert_eq!(ask(&mut full, "MaxRecvDataSegmentLength", "4096"), None);
        assert_eq!(ask(&mut full, "MaxRecvDataSegmentLength", "8192"), None);
        assert_eq!(full.connection.initiator_max_recv, 8192);
    }

    #[test]
    fn a_required_digest_is_required() {
        let wishes = Wishes { data_digest: DigestWish::Required, ..Wishes::default() };
        let mut it = Negotiation::new(wishes, Phase::Leading);
        assert!(it.finish().is_err());
        let offer = [("DataDigest".to_owned(), "None".to_owned())];
        assert_eq!(it.clone().answer(&offer), Err(NegotiationError::DigestRequired("DataDigest")));
        assert_eq!(ask(&mut it, "DataDigest", "None,CRC32C").as_deref(), Some("CRC32C"));
        assert_eq!(it.finish(), Ok(()));
    }

    proptest! {
        #[test]
        fn whatever_is_offered_what_is_agreed_is_within_bounds(
            offers in prop::collection::vec(
                (prop::sample::select(&LEADING_ONLY[..]), "[0-9]{1,8}|Yes|No|[ -~]{0,12}"), 0..20),
        ) {
            let mut it = Negotiation::new(Wishes::default(), Phase::Leading);
            for (key, value) in offers {
                let _ = it.answer(&[(key.to_owned(), value)]);
            }
            let wishes = Wishes::default();
            prop_assert!((1..=wishes.max_connections).contains(&it.session.max_connections));
            prop_assert!((512..=wishes.max_burst).contains(&it.session.max_burst));
            prop_assert!(it.session.first_burst <= it.session.max_burst);
            prop_assert!(it.session.first_burst >= 512);
            prop_assert!((1..=wishes.max_outstanding_r2t).contains(&it.session.max_outstanding_r2t));
            prop_assert!(it.session.error_recovery_level <= 2);
        }
    }
}
