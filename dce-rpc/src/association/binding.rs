//! Binding: which interfaces are spoken and how data are represented, who the client is, and what both
//! sides can do (C706 12.6.4.3, MS-RPCE 3.3.1.5.2 to 3.3.1.5.7).

use std::sync::Arc;

use super::{Association, Broken, Logon, MIN_FRAGMENT, WHOLE};
use crate::{
    FaultStatus, Features, SyntaxId, Transfer,
    pdu::{Bind, BindAck, Flags, Kind, NakReason, Pdu, Verdict, Verifier, put_nak},
    security::{AuthType, Caller, Host, Leg, Level, Secured},
};

/// A logon of which more legs are to come.
pub(super) struct Begun {
    kind: AuthType,
    level: Level,
    logon: Box<dyn Logon>,
}

/// Why a client's token is of no use.
enum Failed {
    /// Its kind or level is not spoken.
    Unknown,
    /// There are enough security contexts.
    TooMany,
    /// It has no place here.
    Rule,
    /// It proves nothing.
    Refused,
}

/// Features that this side has.
const FEATURES: Features =
    Features::SECURITY_CONTEXT_MULTIPLEXING.or(Features::KEEP_CONNECTION_ON_ORPHAN);

impl Association {
    pub(super) fn bind(&mut self, pdu: &Pdu<'_>, host: &mut dyn Host) -> Result<(), Broken> {
        let bind = Bind::parse(pdu.body)?;
        let token = match self.logon(pdu, host) {
            Ok(token) => token,
            Err(failed) => {
                let reason = match failed {
                    Failed::Unknown => NakReason::AUTHENTICATION_TYPE_NOT_RECOGNIZED,
                    Failed::TooMany => NakReason::LOCAL_LIMIT_EXCEEDED,
                    Failed::Rule => NakReason::NOT_SPECIFIED,
                    Failed::Refused => NakReason::INVALID_CHECKSUM,
                };
                let put = |out: &mut Vec<u8>| put_nak(out, reason);
                self.output.push_back(Pdu::encode(Kind::BIND_NAK, WHOLE, pdu.call_id, put));
                return match failed {
                    Failed::Refused => Err(Broken::Refused),
                    // It may try otherwise.
                    _ => Ok(()),
                };
            }
        };
        self.fragment = bind.max_receive.clamp(MIN_FRAGMENT, self.settings.limits.fragment);
        self.group = host.group(bind.group);
        self.bound = true;
        self.acknowledge(Kind::BIND_ACK, pdu, &bind, &token);
        Ok(())
    }

    pub(super) fn alter(&mut self, pdu: &Pdu<'_>, host: &mut dyn Host) -> Result<(), Broken> {
        let bind = Bind::parse(pdu.body)?;
        match self.logon(pdu, host) {
            Ok(token) => {
                self.acknowledge(Kind::ALTER_CONTEXT_RESPONSE, pdu, &bind, &token);
                Ok(())
            }
            Err(Failed::Refused) => {
                self.fault(pdu.call_id, 0, FaultStatus::SECURITY);
                Err(Broken::Refused)
            }
            Err(Failed::Unknown) => {
                // MS-RPCE 3.3.3.5.3.
                let reason = NakReason::AUTHENTICATION_TYPE_NOT_RECOGNIZED.0;
                self.fault(pdu.call_id, 0, FaultStatus(reason.into()));
                Ok(())
            }
            Err(Failed::TooMany) => Err(self.against(pdu.call_id, "too many security contexts")),
            Err(Failed::Rule) => Err(self.against(pdu.call_id, "a logon that has no place here")),
        }
    }

    /// Takes the last of an odd number of legs, which has no answer (MS-RPCE 2.2.2.10).
    pub(super) fn third_leg(&mut self, pdu: &Pdu<'_>) {
        let Some(verifier) = &pdu.auth else { return };
        let Some(begun) = self.security.begun.remove(&verifier.context) else { return };
        if !matches!(self.leg(verifier, begun), Ok(token) if token.is_empty()) {
            self.security.begun.remove(&verifier.context);
            self.security.failed.insert(verifier.context);
        }
    }

    /// Takes a leg of a logon, if the message has one. Gives the token of the answer.
    fn logon(&mut self, pdu: &Pdu<'_>, host: &mut dyn Host) -> Result<Vec<u8>, Failed> {
        let Some(verifier) = &pdu.auth else { return Ok(Vec::new()) };
        let context = verifier.context;
        if self.security.header_signing.is_none() {
            let theirs = pdu.flags.has(Flags::SUPPORT_HEADER_SIGN);
            self.security.header_signing = Some(theirs);
        }
        let known = self.security.secured.contains_key(&context);
        if known || self.security.failed.contains(&context) {
            return Err(Failed::Rule);
        }
        let begun = match self.security.begun.remove(&context) {
            Some(begun) => begun,
            None => {
                let several = self.features.has(Features::SECURITY_CONTEXT_MULTIPLEXING);
                let have = self.security.begun.len()
                    + self.security.secured.len()
                    + self.security.failed.len();
                if have >= self.settings.limits.logons || have > 0 && !several {
                    return Err(Failed::TooMany);
                }
                let kind = AuthType(verifier.kind);
                let level = Level::new(verifier.level).ok_or(Failed::Unknown)?;
                let logon = host.logon(kind).ok_or(Failed::Unknown)?;
                Begun { kind, level, logon }
            }
        };
        self.leg(verifier, begun)
    }

    fn leg(&mut self, verifier: &Verifier<'_>, begun: Begun) -> Result<Vec<u8>, Failed> {
        let Begun { kind, level, mut logon } = begun;
        if (kind.0, level as u8) != (verifier.kind, verifier.level) {
            return Err(Failed::Rule);
        }
        let id = verifier.context;
        match logon.leg(verifier.token).map_err(|_| Failed::Refused)? {
            Leg::More(token) => {
                self.security.begun.insert(id, Begun { kind, level, logon });
                Ok(token)
            }
            Leg::Done { token, user, context } => {
                let enough = match (level, &context) {
                    (Level::Connect, _) => true,
                    (_, None) => false,
                    (Level::Integrity, Some(_)) => true,
                    (Level::Privacy, Some(context)) => context.can_seal(),
                };
                if !enough {
                    return Err(Failed::Refused);
                }
                let header_signing = self.security.header_signing == Some(true);
                let secured = Secured { kind, level, id, header_signing, context };
                let caller = Arc::new(Caller { user, level, kind });
                self.security.secured.insert(id, (secured, caller));
                Ok(token)
            }
        }
    }

    /// Accepts contexts and sends the acknowledgement.
    fn acknowledge(&mut self, answer: Kind, pdu: &Pdu<'_>, bind: &Bind, token: &[u8]) {
        let verdicts = self.verdicts(bind);
        let limit = self.settings.limits.fragment;
        let ack = BindAck {
            max_transmit: self.fragment,
            max_receive: limit,
            group: self.group,
            address: if answer == Kind::BIND_ACK { &self.settings.address } else { "" },
            verdicts,
        };
        // What a client can do beside, this side can, too.
        let both = Flags::SUPPORT_HEADER_SIGN.or(Flags::CONCURRENT_MULTIPLEX);
        let flags = WHOLE | pdu.flags.and(both);
        let verifier = pdu.auth.map_or(Verifier { kind: 0, level: 0, context: 0, token }, |it| {
            Verifier { token, ..it }
        });
        let put = |out: &mut Vec<u8>| ack.encode(out);
        self.output.push_back(Pdu::encode_with(answer, flags, pdu.call_id, &verifier, put));
    }

    /// What becomes of each context. Of the transfer syntaxes that a client offers for one interface,
    /// in one context or several, one is accepted (MS-RPCE 3.3.1.5.6).
    fn verdicts(&mut self, bind: &Bind) -> Vec<Verdict> {
        let known = |wanted: &SyntaxId| {
            self.settings.interfaces.iter().find(|own| own.serves(wanted)).copied()
        };
        let chosen = |wanted: &SyntaxId| -> Option<Transfer> {
            let offers = bind.contexts.iter().filter(|context| context.interface == *wanted);
            let offers: Vec<&SyntaxId> = offers.flat_map(|context| &context.transfers).collect();
            let own = self.settings.transfers.iter();
            own.copied().find(|own| offers.contains(&&own.syntax()))
        };
        let mut verdicts = Vec::new();
        let mut accepted = Vec::new();
        for context in &bind.contexts {
            let features = context.transfers.iter().find_map(SyntaxId::offered_features);
            let interface = known(&context.interface);
            let transfer = chosen(&context.interface)
                .filter(|transfer| context.transfers.contains(&transfer.syntax()));
            verdicts.push(match (features, interface, transfer) {
                (Some(features), ..) => Verdict::Features(features.and(FEATURES)),
                (None, None, _) => Verdict::NoInterface,
                (None, Some(_), None) => Verdict::NoTransferSyntax,
                (None, Some(interface), Some(transfer)) => {
                    accepted.push((context.id, (interface, transfer)));
                    Verdict::Accepted(transfer)
                }
            });
        }
        for verdict in &verdicts {
            if let Verdict::Features(features) = verdict {
                self.features |= *features;
            }
        }
        let (limit, mut accepted) = (self.settings.limits.contexts, accepted.into_iter());
        for verdict in verdicts.iter_mut().filter(|it| matches!(it, Verdict::Accepted(_))) {
            let Some((id, how)) = accepted.next() else { break };
            if self.contexts.len() >= limit && !self.contexts.contains_key(&id) {
                *verdict = Verdict::NoInterface;
                continue;
            }
            self.contexts.insert(id, how);
        }
        verdicts
    }
}
