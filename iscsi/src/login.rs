//! The login phase of a connection (RFC 7143 6.3, 11.12, 11.13), without socket and clock.
//!
//! ```text
//!            CSG 0                       CSG 1                    (RFC 7143 8.1, states of a target)
//!  start ─► security ── T, NSG 1 ─► operational ── T, NSG 3 ─► finish ─► full feature phase
//!    │         └─────────────── T, NSG 3 ───────────────────────┘  │
//!    └──────► (first request has CSG 1) ─► operational             └─► whoever keeps the sessions
//!                                                                      accepts, or gives a status
//!  any offence ─► one response with its status (RFC 7143 11.13.5) ─► closed
//! ```
//! The first whole text says who the initiator is and what it wants: a target, or only to know
//! which there are. Nothing of it is believed before authentication, and of a stranger no more is
//! kept than the text of one exchange.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    chap::{Chap, ChapError, ChapSettings},
    config::{Discovery, TargetConfig, check_name},
    negotiate::{ConnectionParameters, Negotiation, Phase, SessionParameters, Wishes},
    pdu::{Digests, Frame, LoginRequest, LoginResponse, Numbers, Pdu, frame},
    text::{self, Assembler, Pair},
};

/// Bytes of text that are kept of a stranger.
const TEXT_LIMIT: usize = 8192;
/// Requests of one login.
const REQUESTS_LIMIT: u32 = 32;

/// Status-Class and Status-Detail of a login response (RFC 7143 11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub enum LoginStatus {
    Success = 0x0000,
    MovedTemporarily = 0x0101,
    MovedPermanently = 0x0102,
    InitiatorError = 0x0200,
    AuthenticationFailure = 0x0201,
    AuthorizationFailure = 0x0202,
    NotFound = 0x0203,
    TargetRemoved = 0x0204,
    UnsupportedVersion = 0x0205,
    TooManyConnections = 0x0206,
    MissingParameter = 0x0207,
    CannotIncludeInSession = 0x0208,
    SessionTypeNotSupported = 0x0209,
    SessionDoesNotExist = 0x020a,
    InvalidDuringLogin = 0x020b,
    TargetError = 0x0300,
    ServiceUnavailable = 0x0301,
    OutOfResources = 0x0302,
}

/// Which targets there are.
pub trait Directory {
    /// The target of that name.
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>>;

    /// How discovery sessions are met.
    fn discovery(&self) -> Arc<Discovery>;
}

/// What one request of a login leads to.
#[derive(Debug)]
pub enum Step {
    /// The bytes of a response; the login goes on.
    Respond(Vec<u8>),
    /// The bytes of the last response; the connection ends after it. The words are for a log.
    Refuse(Vec<u8>, LoginStatus, String),
    /// No login began: the connection ends without a word (RFC 7143 6.3).
    Close,
    /// The initiator is through: the sessions' keeper accepts or refuses.
    Finish(Box<Established>),
}

/// A login that came to its end.
#[derive(Debug)]
pub struct Established {
    /// InitiatorName.
    pub initiator: String,
    /// InitiatorAlias.
    pub alias: Option<String>,
    /// The target; `None` for discovery.
    pub target: Option<Arc<TargetConfig>>,
    /// What holds for the session, if this is its first connection.
    pub session: SessionParameters,
    /// What holds for the connection.
    pub connection: ConnectionParameters,
    /// The last request: ISID, TSIH, CID and CmdSN.
    pub request: LoginRequest,
    /// The StatSN of the last response.
    pub stat_sn: u32,
    answers: Vec<Pair>,
}

impl Established {
    /// The last response: accepted, into the session `tsih`.
    #[must_use]
    pub fn accept(&self, tsih: u16, numbers: Numbers) -> Vec<u8> {
        let response = LoginResponse {
            sn: Numbers { stat_sn: self.stat_sn, ..numbers },
            transit: true,
            current: self.request.current,
            next: 3,
            isid: self.request.isid,
            tsih,
            itt: self.request.itt,
            ..LoginResponse::default()
        };
        bytes(response, &self.answers)
    }

    /// The last response: refused.
    #[must_use]
    pub fn refuse(&self, status: LoginStatus) -> Vec<u8> {
        refusal(&self.request, self.stat_sn, status, &[])
    }
}

/// Refusals inside of this module.
struct Refusal(LoginStatus, String, Vec<Pair>);

fn refuse<T>(status: LoginStatus, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(status, why.into(), Vec::new()))
}

/// Who logs in, and into what.
#[derive(Debug)]
struct Introduction {
    initiator: String,
    alias: Option<String>,
    target: Option<Arc<TargetConfig>>,
    chap: Option<ChapSettings>,
}

/// One login, from the first request of a connection on.
#[derive(Debug)]
pub struct Login {
    peer: SocketAddr,
    tag: u16,
    text: Assembler,
    first: Option<LoginRequest>,
    stage: u8,
    requests: u32,
    stat_sn: u32,
    who: Option<Introduction>,
    chap: Option<Chap>,
    negotiation: Negotiation,
}

impl Login {
    /// A connection from `peer` through a portal of the group `tag`.
    #[must_use]
    pub fn new(peer: SocketAddr, tag: u16) -> Self {
        Self {
            peer,
            tag,
            text: Assembler::new(TEXT_LIMIT),
            first: None,
            stage: 0,
            requests: 0,
            stat_sn: 0,
            who: None,
            chap: None,
            negotiation: Negotiation::new(Wishes::default(), Phase::Leading),
        }
    }

    /// Takes one PDU of the login phase.
    pub fn receive(&mut self, frame: &Frame, directory: &impl Directory) -> Step {
        let request = match Pdu::read(&frame.basic) {
            Ok(Pdu::LoginRequest(request)) => request,
            _ if self.first.is_none() => return Step::Close,
            _ => {
                let request = LoginRequest {
                    sn: Default::default(),
                    transit: false,
                    more: false,
                    current: self.stage,
                    next: 0,
                    version_max: 0,
                    version_min: 0,
                    isid: self.first.map_or([0; 6], |first| first.isid),
                    tsih: 0,
                    itt: frame.basic.itt,
                    cid: 0,
                };
                let status = LoginStatus::InvalidDuringLogin;
                let bytes = refusal(&request, self.stat_sn, status, &[]);
                return Step::Refuse(bytes, status, "not a login request".to_owned());
            }
        };
        let result = self.one(&request, frame, directory);
        let stat_sn = self.stat_sn;
        self.stat_sn = self.stat_sn.wrapping_add(1);
        match result {
            Ok(Answer::Go(transit, answers)) => {
                let response = LoginResponse {
                    sn: numbers(&request, stat_sn),
                    transit,
                    current: request.current,
                    next: if transit { request.next } else { 0 },
                    isid: request.isid,
                    tsih: request.tsih,
                    itt: request.itt,
                    ..LoginResponse::default()
                };
                Step::Respond(bytes(response, &answers))
            }
            Ok(Answer::End(answers)) => match self.who.take() {
                Some(who) => Step::Finish(Box::new(Established {
                    initiator: who.initiator,
                    alias: who.alias,
                    target: who.target,
                    session: self.negotiation.session.clone(),
                    connection: self.negotiation.connection,
                    request,
                    stat_sn,
                    answers,
                })),
                None => {
                    let status = LoginStatus::MissingParameter;
                    let bytes = refusal(&request, stat_sn, status, &[]);
                    Step::Refuse(bytes, status, "no InitiatorName".to_owned())
                }
            },
            Err(Refusal(status, why, pairs)) => {
                Step::Refuse(refusal(&request, stat_sn, status, &pairs), status, why)
            }
        }
    }

    fn one(
        &mut self,
        request: &LoginRequest,
        frame: &Frame,
        directory: &impl Directory,
    ) -> Result<Answer, Refusal> {
        self.check(request)?;
        let pairs = match self.text.add(&frame.data, request.more) {
            Ok(Some(pairs)) => pairs,
            Ok(None) => return Ok(Answer::Go(false, Vec::new())),
            Err(error) => return refuse(LoginStatus::InitiatorError, error.to_string()),
        };
        let mut answers: Vec<Pair> = Vec::new();
        if self.who.is_none() {
            self.introduce(request, &pairs, directory, &mut answers)?;
        }
        let introductory =
            |key: &str| matches!(key, "InitiatorName" | "TargetName" | "SessionType");
        // What the target says of itself in this very answer is no key to answer: it would stand twice.
        let said = |key: &str| answers.iter().any(|(name, _)| name == key);
        let rest: Vec<Pair> =
            pairs.into_iter().filter(|(key, _)| !introductory(key) && !said(key)).collect();
        if request.current == 0 {
            let done = self.security(&rest, &mut answers)?;
            if request.transit && !done && !self.is_asking(&answers) {
                return refuse(LoginStatus::AuthenticationFailure, "no authentication");
            }
            if !request.transit || !done {
                return Ok(Answer::Go(false, answers));
            }
        } else {
            if !self.is_authentic() {
                return refuse(LoginStatus::AuthenticationFailure, "no authentication");
            }
            match self.negotiation.answer(&rest) {
                Ok(more) => answers.extend(more),
                Err(error) => return refuse(LoginStatus::InitiatorError, error.to_string()),
            }
            if !request.transit {
                return Ok(Answer::Go(false, answers));
            }
        }
        if request.next != 3 {
            self.stage = request.next;
            return Ok(Answer::Go(true, answers));
        }
        match self.negotiation.finish() {
            Ok(()) => Ok(Answer::End(answers)),
            Err(error) => refuse(LoginStatus::MissingParameter, error.to_string()),
        }
    }

    /// What every request of a login has to keep to.
    fn check(&mut self, request: &LoginRequest) -> Result<(), Refusal> {
        self.requests += 1;
        if self.requests > REQUESTS_LIMIT {
            return refuse(LoginStatus::InitiatorError, "the login does not come to an end");
        }
        if request.version_min > 0 {
            return refuse(LoginStatus::UnsupportedVersion, "another version");
        }
        match &self.first {
            None => {
                self.first = Some(*request);
                // Any value does; the initiator's guess pleases those that look.
                self.stat_sn = request.sn.exp_stat_sn;
                self.stage = request.current;
            }
            Some(first) => {
                let same = |it: &LoginRequest| (it.isid, it.tsih, it.cid, it.itt);
                if same(first) != same(request) {
                    let why = "ISID, TSIH, CID or task tag changed";
                    return refuse(LoginStatus::InitiatorError, why);
                }
            }
        }
        let forward = !request.transit
            || (request.next > request.current && request.next != 2 && !request.more);
        if request.current > 1 || request.current != self.stage || !forward {
            return refuse(LoginStatus::InvalidDuringLogin, "a stage that does not follow");
        }
        Ok(())
    }

    fn introduce(
        &mut self,
        request: &LoginRequest,
        pairs: &[Pair],
        directory: &impl Directory,
        answers: &mut Vec<Pair>,
    ) -> Result<(), Refusal> {
        let find =
            |key: &str| pairs.iter().find_map(|(k, value)| (k == key).then(|| value.clone()));
        let Some(initiator) = find("InitiatorName") else {
            return refuse(LoginStatus::MissingParameter, "no InitiatorName");
        };
        if let Err(error) = check_name(&initiator.to_lowercase()) {
            return refuse(LoginStatus::InitiatorError, error.to_string());
        }
        let initiator = initiator.to_lowercase();
        let alias = find("InitiatorAlias").filter(|alias| alias.len() <= 255);
        let phase = if request.tsih == 0 { Phase::Leading } else { Phase::Joining };
        let session_type = find("SessionType").unwrap_or_else(|| "Normal".to_owned());
        let (target, chap, wishes) = match session_type.as_str() {
            "Discovery" => {
                let discovery = directory.discovery();
                (None, discovery.chap.clone(), discovery.wishes.clone())
            }
            "Normal" => {
                let Some(name) = find("TargetName") else {
                    return refuse(LoginStatus::MissingParameter, "no TargetName");
                };
                let target = self.admit(&name.to_lowercase(), &initiator, directory)?;
                answers.push(("TargetPortalGroupTag".to_owned(), self.tag.to_string()));
                if let Some(alias) = &target.alias {
                    answers.push(("TargetAlias".to_owned(), alias.clone()));
                }
                let (chap, wishes) = (target.chap.clone(), target.wishes.clone());
                (Some(target), chap, wishes)
            }
            _ => return refuse(LoginStatus::SessionTypeNotSupported, "unknown SessionType"),
        };
        self.negotiation = Negotiation::new(wishes, phase);
        self.negotiation.discovery = target.is_none();
        self.who = Some(Introduction { initiator, alias, target, chap });
        Ok(())
    }

    fn admit(
        &self,
        name: &str,
        initiator: &str,
        directory: &impl Directory,
    ) -> Result<Arc<TargetConfig>, Refusal> {
        let Some(target) = directory.target(name).filter(|target| target.is_at(self.tag)) else {
            return refuse(LoginStatus::NotFound, format!("no target {name}"));
        };
        if !target.admits(initiator, self.peer.ip()) {
            let why = format!("{initiator} may not use {name} from {}", self.peer.ip());
            return refuse(LoginStatus::AuthorizationFailure, why);
        }
        if let Some(there) = &target.redirection {
            let status = if there.permanent {
                LoginStatus::MovedPermanently
            } else {
                LoginStatus::MovedTemporarily
            };
            let address = vec![("TargetAddress".to_owned(), there.address.clone())];
            return Err(Refusal(status, format!("{name} is at {}", there.address), address));
        }
        Ok(target)
    }

    /// The security stage; whether it may be left.
    fn security(&mut self, pairs: &[Pair], answers: &mut Vec<Pair>) -> Result<bool, Refusal> {
        let required = self.who.as_ref().and_then(|who| who.chap.clone());
        let (chap, others): (Vec<Pair>, Vec<Pair>) =
            pairs.iter().cloned().partition(|(key, _)| key.starts_with("CHAP_"));
        for (key, value) in &others {
            let answer = match (key.as_str(), &required) {
                ("InitiatorAlias", _) => continue,
                ("AuthMethod", Some(settings)) => {
                    if self.chap.is_some() {
                        return refuse(LoginStatus::InitiatorError, "AuthMethod comes again");
                    }
                    if !value.split(',').any(|method| method == "CHAP") {
                        let why = format!("AuthMethod is {value}; CHAP is required");
                        return refuse(LoginStatus::AuthenticationFailure, why);
                    }
                    self.chap = Some(Chap::new(settings.clone()));
                    "CHAP"
                }
                ("AuthMethod", None) if value.split(',').any(|method| method == "None") => "None",
                ("AuthMethod", None) => {
                    let why = format!("AuthMethod is {value}; here is None");
                    return refuse(LoginStatus::AuthenticationFailure, why);
                }
                (key, _) if is_operational(key) => "Reject",
                _ => "NotUnderstood",
            };
            answers.push((key.clone(), answer.to_owned()));
        }
        if !chap.is_empty() {
            let Some(it) = &mut self.chap else {
                return refuse(LoginStatus::InitiatorError, "CHAP was not agreed upon");
            };
            match it.step(&chap) {
                Ok(more) => answers.extend(more),
                Err(ChapError::Missing(key)) => {
                    return refuse(LoginStatus::MissingParameter, format!("no {key}"));
                }
                Err(error) => {
                    return refuse(LoginStatus::AuthenticationFailure, error.to_string());
                }
            }
        }
        Ok(self.is_authentic())
    }

    fn is_authentic(&self) -> bool {
        let required = self.who.as_ref().is_none_or(|who| who.chap.is_some());
        !required || self.chap.as_ref().is_some_and(Chap::is_done)
    }

    /// Whether the response asks the initiator for more of its authentication.
    fn is_asking(&self, answers: &[Pair]) -> bool {
        answers.iter().any(|(key, _)| key == "AuthMethod" || key == "CHAP_C")
    }
}

fn is_operational(key: &str) -> bool {
    let digest = key == "HeaderDigest" || key == "DataDigest";
    let named = ["MaxRecvDataSegmentLength", "InitialR2T", "ImmediateData", "ErrorRecoveryLevel"];
    let more = ["MaxConnections", "MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T"];
    let last = ["DefaultTime2Wait", "DefaultTime2Retain", "DataPDUInOrder", "DataSequenceInOrder"];
    digest || named.contains(&key) || more.contains(&key) || last.contains(&key)
}

enum Answer {
    /// On, with T or without.
    Go(bool, Vec<Pair>),
    /// Into the full feature phase.
    End(Vec<Pair>),
}

fn numbers(request: &LoginRequest, stat_sn: u32) -> Numbers {
    let cmd_sn = request.sn.cmd_sn;
    Numbers { stat_sn, exp_cmd_sn: cmd_sn, max_cmd_sn: cmd_sn }
}

fn bytes(response: LoginResponse, pairs: &[Pair]) -> Vec<u8> {
    let text = text::write(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    frame::write(Pdu::LoginResponse(response).write(), &[], &text, Digests::default())
}

fn refusal(request: &LoginRequest, stat_sn: u32, status: LoginStatus, pairs: &[Pair]) -> Vec<u8> {
    let response = LoginResponse {
        sn: numbers(request, stat_sn),
        current: request.current.min(1),
        isid: request.isid,
        tsih: request.tsih,
        itt: request.itt,
        status: status as u16,
        ..LoginResponse::default()
    };
    bytes(response, pairs)
}

#[cfg(test)]
mod tests;
