//! The initiator's side of a login (RFC 7143 6.3, 12, 13): texts in, texts out.
//!
//! ```text
//!  first ─► SecurityNegotiation: AuthMethod ─► CHAP_A ─► CHAP_N, CHAP_R (CHAP_I, CHAP_C) ─┐
//!                     └── None ───────────────────────────────────────────────────────────┤
//!                                    done ◄─ LoginOperationalNegotiation: keys ◄── proof ─┘
//! ```

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};

use super::{error::InitiatorError, exchange::Agreed};
use crate::{
    chap::{Account, Algorithm, CHALLENGE_LIMIT, ChapError, binary, hexadecimal, value},
    negotiate::{DEFAULT_MAX_RECV, DigestWish, SessionParameters},
    pdu::{Digests, LoginRequest, LoginResponse, RequestNumbers},
    text::{Assembler, Pair, number, write},
};

/// The longest text of a target, in bytes.
const TEXT_LIMIT: usize = 64 << 10;
/// Requests after which a login goes nowhere.
const ROUNDS: usize = 32;
/// The longest data segment that is taken, in bytes.
pub(super) const MAX_RECV: u32 = 256 << 10;
/// Bytes of the challenge that a target answers.
const CHALLENGE: usize = 32;

/// What a login is for and with whom.
#[derive(Debug, Clone)]
pub(super) struct Purpose {
    pub portal: String,
    /// InitiatorName.
    pub name: String,
    /// TargetName; `None` for discovery.
    pub target: Option<String>,
    pub isid: [u8; 6],
    pub chap: Option<Account>,
    pub mutual: Option<Account>,
    pub header_digest: DigestWish,
    pub data_digest: DigestWish,
    /// Only the hashes that the oldest targets have are offered for CHAP.
    pub old_hashes: bool,
}

/// What comes after a response.
#[derive(Debug)]
pub(super) enum Next {
    /// This is sent.
    Send(LoginRequest, Vec<u8>),
    /// The full feature phase begins.
    Done(Box<Agreed>),
    /// The target is elsewhere: TargetAddress.
    Moved(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Method,
    Challenge,
    Proof,
    Leaving,
    Operational,
}

#[derive(Debug)]
pub(super) struct Login {
    purpose: Purpose,
    stage: Stage,
    text: Assembler,
    session: SessionParameters,
    digests: Digests,
    target_max_recv: u32,
    /// The challenge that the target has to answer, with its identifier and algorithm.
    challenge: Option<(Algorithm, u8, [u8; CHALLENGE])>,
    cmd_sn: u32,
    exp_stat_sn: Option<u32>,
    rounds: usize,
}

impl Login {
    pub fn new(purpose: Purpose) -> Self {
        Self {
            purpose,
            stage: Stage::Method,
            text: Assembler::new(TEXT_LIMIT),
            session: SessionParameters::default(),
            digests: Digests::default(),
            target_max_recv: DEFAULT_MAX_RECV,
            challenge: None,
            cmd_sn: 1,
            exp_stat_sn: None,
            rounds: 0,
        }
    }

    /// The first request of the login.
    pub fn first(&mut self) -> (LoginRequest, Vec<u8>) {
        let (plain, secret) = (self.purpose.chap.is_none(), self.purpose.mutual.is_some());
        // A target that need not prove itself may also do without our proof.
        let method = match (plain, secret) {
            (true, _) => "None",
            (false, true) => "CHAP",
            (false, false) => "CHAP,None",
        };
        let mut pairs = vec![("InitiatorName", self.purpose.name.as_str())];
        match &self.purpose.target {
            Some(target) => pairs.extend([("SessionType", "Normal"), ("TargetName", target)]),
            None => pairs.push(("SessionType", "Discovery")),
        }
        pairs.push(("AuthMethod", method));
        let text = write(pairs);
        (self.request(plain), text)
    }

    fn request(&self, transit: bool) -> LoginRequest {
        let operational = self.stage == Stage::Operational;
        let next = if operational { 3 } else { 1 };
        LoginRequest {
            sn: RequestNumbers {
                immediate: true,
                cmd_sn: self.cmd_sn,
                exp_stat_sn: self.exp_stat_sn.unwrap_or(0),
            },
            transit,
            more: false,
            current: u8::from(operational),
            next: if transit { next } else { 0 },
            version_max: 0,
            version_min: 0,
            isid: self.purpose.isid,
            tsih: 0,
            itt: 0,
            cid: 0,
        }
    }

    fn wrong(&self, what: impl Into<String>) -> InitiatorError {
        InitiatorError::Protocol { portal: self.purpose.portal.clone(), what: what.into() }
    }

    fn chap(&self, source: ChapError) -> InitiatorError {
        InitiatorError::Chap { portal: self.purpose.portal.clone(), source }
    }

    /// Takes a response with its data segment.
    ///
    /// # Errors
    /// [`InitiatorError`]: the login has failed.
    pub fn answer(&mut self, it: LoginResponse, data: &[u8]) -> Result<Next, InitiatorError> {
        self.rounds += 1;
        if self.rounds > ROUNDS {
            return Err(self.wrong("a login without an end"));
        }
        // Each response answers one request, so none can be missing; some targets begin anew with the
        // second stage.
        self.exp_stat_sn = Some(it.sn.stat_sn.wrapping_add(1));
        let portal = || self.purpose.portal.clone();
        if it.status >> 8 > 1 {
            return Err(InitiatorError::Refused { portal: portal(), status: it.status });
        }
        let pairs = self.text.add(data, it.more).map_err(|error| self.wrong(error.to_string()))?;
        let Some(pairs) = pairs else { return Ok(Next::Send(self.request(false), Vec::new())) };
        if it.status != 0 {
            let address = pairs.iter().find(|(key, _)| key == "TargetAddress");
            return match address {
                Some((_, address)) => Ok(Next::Moved(address.clone())),
                None => Err(InitiatorError::Refused { portal: portal(), status: it.status }),
            };
        }
        match self.stage {
            Stage::Method => self.method(it, &pairs),
            Stage::Challenge => self.respond(&pairs),
            Stage::Proof => self.proof(it, &pairs),
            Stage::Leaving => self.leave(it),
            Stage::Operational => self.operational(it, &pairs),
        }
    }

    fn method(&mut self, it: LoginResponse, pairs: &[Pair]) -> Result<Next, InitiatorError> {
        let chosen = pairs.iter().find(|(key, _)| key == "AuthMethod").map(|(_, v)| v.as_str());
        match chosen {
            Some("CHAP") if self.purpose.chap.is_some() => {
                self.stage = Stage::Challenge;
                let offered = |it: &&Algorithm| {
                    !self.purpose.old_hashes || matches!(it, Algorithm::Md5 | Algorithm::Sha1)
                };
                let list = Algorithm::ALL.iter().rev().filter(offered);
                let list = list.map(|it| (*it as u8).to_string());
                let list = list.collect::<Vec<_>>().join(",");
                Ok(Next::Send(self.request(false), write([("CHAP_A", list.as_str())])))
            }
            // A target of a discovery session may leave it out.
            Some("None") | None if self.purpose.mutual.is_none() => self.leave(it),
            _ => Err(self.wrong("no method of authentication in common")),
        }
    }

    fn leave(&mut self, it: LoginResponse) -> Result<Next, InitiatorError> {
        if !(it.transit && it.next == 1) {
            self.stage = Stage::Leaving;
            return Ok(Next::Send(self.request(true), Vec::new()));
        }
        self.stage = Stage::Operational;
        let wish = |wish| match wish {
            DigestWish::Never => "None",
            DigestWish::Allowed => "None,CRC32C",
            DigestWish::Required => "CRC32C",
        };
        let recv = MAX_RECV.to_string();
        let mut pairs = vec![
            ("HeaderDigest", wish(self.purpose.header_digest)),
            ("DataDigest", wish(self.purpose.data_digest)),
            ("MaxRecvDataSegmentLength", recv.as_str()),
            ("DefaultTime2Wait", "0"),
            ("DefaultTime2Retain", "0"),
            ("ErrorRecoveryLevel", "0"),
        ];
        if self.purpose.target.is_some() {
            pairs.extend([
                ("MaxConnections", "1"),
                ("InitialR2T", "No"),
                ("ImmediateData", "Yes"),
                ("MaxBurstLength", "1048576"),
                ("FirstBurstLength", "262144"),
                ("MaxOutstandingR2T", "8"),
                ("DataPDUInOrder", "Yes"),
                ("DataSequenceInOrder", "Yes"),
            ]);
        }
        Ok(Next::Send(self.request(true), write(pairs)))
    }

    fn respond(&mut self, pairs: &[Pair]) -> Result<Next, InitiatorError> {
        let Some(account) = self.purpose.chap.clone() else {
            return Err(self.wrong("a challenge that was not asked for"));
        };
        let (response, proof) =
            self.responses(&account, pairs).map_err(|error| self.chap(error))?;
        let mut answer = vec![("CHAP_N", account.name.as_str()), ("CHAP_R", response.as_str())];
        if let Some((id, challenge)) = &proof {
            answer.extend([("CHAP_I", id.as_str()), ("CHAP_C", challenge.as_str())]);
        }
        self.stage = Stage::Proof;
        Ok(Next::Send(self.request(true), write(answer)))
    }

    /// Our response to the target's challenge, and ours to it if it has to prove itself.
    fn responses(
        &mut self,
        account: &Account,
        pairs: &[Pair],
    ) -> Result<(String, Option<(String, String)>), ChapError> {
        let code = number(value(pairs, "CHAP_A")?);
        let known = |it: &Algorithm| Some(u64::from(*it as u8)) == code;
        let algorithm = Algorithm::ALL.into_iter().find(known).ok_or(ChapError::Algorithm)?;
        let id = number(value(pairs, "CHAP_I")?).and_then(|n| u8::try_from(n).ok());
        let id = id.ok_or(ChapError::Invalid("CHAP_I"))?;
        let challenge = binary(value(pairs, "CHAP_C")?, CHALLENGE_LIMIT)
            .filter(|bytes| !bytes.is_empty())
            .ok_or(ChapError::Invalid("CHAP_C"))?;
        let response = hexadecimal(&algorithm.hash(id, &account.secret, &challenge));
        if self.purpose.mutual.is_none() {
            return Ok((response, None));
        }
        let (mut our_id, mut ours) = ([0], [0; CHALLENGE]);
        rand::fill(&mut our_id).map_err(|_| ChapError::Random)?;
        rand::fill(&mut ours).map_err(|_| ChapError::Random)?;
        self.challenge = Some((algorithm, our_id[0], ours));
        Ok((response, Some((our_id[0].to_string(), hexadecimal(&ours)))))
    }

    fn proof(&mut self, it: LoginResponse, pairs: &[Pair]) -> Result<Next, InitiatorError> {
        self.verify(pairs).map_err(|error| self.chap(error))?;
        self.leave(it)
    }

    fn verify(&self, pairs: &[Pair]) -> Result<(), ChapError> {
        let (Some(account), Some((algorithm, id, challenge))) =
            (&self.purpose.mutual, &self.challenge)
        else {
            return Ok(());
        };
        let name = value(pairs, "CHAP_N")?;
        let response = binary(value(pairs, "CHAP_R")?, 64).ok_or(ChapError::Invalid("CHAP_R"))?;
        let right = algorithm.hash(*id, &account.secret, challenge);
        if verify_slices_are_equal(&right, &response).is_err() || name != account.name {
            return Err(ChapError::Wrong);
        }
        Ok(())
    }

    fn operational(&mut self, it: LoginResponse, pairs: &[Pair]) -> Result<Next, InitiatorError> {
        let mut unknown = Vec::new();
        for (key, value) in pairs {
            if !self.settle(key, value)? {
                unknown.push((key.as_str(), "NotUnderstood"));
            }
        }
        if it.transit && it.next == 3 {
            return self.finish(it).map(|agreed| Next::Done(Box::new(agreed)));
        }
        Ok(Next::Send(self.request(true), write(unknown)))
    }

    fn finish(&self, it: LoginResponse) -> Result<Agreed, InitiatorError> {
        for (wish, got, name) in [
            (self.purpose.header_digest, self.digests.header, "HeaderDigest"),
            (self.purpose.data_digest, self.digests.data, "DataDigest"),
        ] {
            if (wish == DigestWish::Required && !got) || (wish == DigestWish::Never && got) {
                return Err(self.wrong(format!("{name} is not as it was asked for")));
            }
        }
        Ok(Agreed {
            session: self.session.clone(),
            digests: self.digests,
            target_max_recv: self.target_max_recv,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: it.sn.stat_sn.wrapping_add(1),
            max_cmd_sn: it.sn.max_cmd_sn,
        })
    }

    /// Takes an answer or a declaration; whether the key is known.
    fn settle(&mut self, key: &str, value: &str) -> Result<bool, InitiatorError> {
        let default = ["Irrelevant", "NotUnderstood", "Reject"].contains(&value);
        let session = &mut self.session;
        let length = || {
            number(value)
                .filter(|n| (512..=0xff_ffff).contains(n))
                .and_then(|n| u32::try_from(n).ok())
        };
        let sound = match key {
            _ if default => true,
            "HeaderDigest" | "DataDigest" => {
                let place = match key {
                    "HeaderDigest" => &mut self.digests.header,
                    _ => &mut self.digests.data,
                };
                *place = value == "CRC32C";
                *place || value == "None"
            }
            "MaxRecvDataSegmentLength" => length().map(|n| self.target_max_recv = n).is_some(),
            "MaxBurstLength" => length().map(|n| session.max_burst = n).is_some(),
            "FirstBurstLength" => length().map(|n| session.first_burst = n).is_some(),
            "InitialR2T" => {
                session.initial_r2t = value == "Yes";
                session.initial_r2t || value == "No"
            }
            "ImmediateData" => {
                session.immediate_data = value == "Yes";
                session.immediate_data || value == "No"
            }
            "ErrorRecoveryLevel" => value == "0",
            "MaxConnections" => value == "1",
            "DataPDUInOrder" | "DataSequenceInOrder" => value == "Yes",
            "MaxOutstandingR2T" | "DefaultTime2Wait" | "DefaultTime2Retain" => {
                number(value).is_some()
            }
            "TargetAlias" | "TargetPortalGroupTag" | "TargetAddress" => true,
            _ => return Ok(false),
        };
        if sound { Ok(true) } else { Err(self.wrong(format!("{key}={value}"))) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn purpose(chap: bool, mutual: bool) -> Purpose {
        let account = |name: &str, secret: &[u8]| Account::new(name, secret).unwrap();
        Purpose {
            portal: "127.0.0.1:3260".to_owned(),
            name: "iqn.me".to_owned(),
            target: Some("iqn.it".to_owned()),
            isid: [0x80, 0, 0, 0, 0, 1],
            chap: chap.then(|| account("alice", b"a secret of alice")),
            mutual: mutual.then(|| account("target", b"another secret!")),
            header_digest: DigestWish::Allowed,
            data_digest: DigestWish::Required,
            old_hashes: false,
        }
    }

    fn response(transit: bool, next: u8, current: u8) -> LoginResponse {
        LoginResponse { transit, next, current, ..LoginResponse::default() }
    }

    fn sent(next: Result<Next, InitiatorError>) -> (LoginRequest, String) {
        match next {
            Ok(Next::Send(request, text)) => (request, String::from_utf8(text).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_login_goes_through_its_stages() {
        let mut login = Login::new(purpose(true, true));
        let (first, text) = login.first();
        assert!((first.current, first.transit) == (0, false));
        assert!(String::from_utf8(text).unwrap().ends_with("\0AuthMethod=CHAP\0"));
        let (_, text) = sent(login.answer(response(false, 0, 0), b"AuthMethod=CHAP\0"));
        assert_eq!(text, "CHAP_A=8,7,6,5\0");
        let challenge = b"CHAP_A=5\0CHAP_I=7\0CHAP_C=0x0102\0";
        let (request, text) = sent(login.answer(response(false, 0, 0), challenge));
        assert!(request.transit && request.next == 1 && text.contains("\0CHAP_C=0x"));
        // What proves nothing is no proof, also our own response given back.
        let ours = text.split('\0').find_map(|it| it.strip_prefix("CHAP_R=")).unwrap();
        let proof = format!("CHAP_N=target\0CHAP_R={ours}\0");
        let wrong = login.answer(response(true, 1, 0), proof.as_bytes());
        assert!(matches!(wrong, Err(InitiatorError::Chap { source: ChapError::Wrong, .. })));
    }

    #[test]
    fn what_was_required_is_not_given_up() {
        for (answer, good) in [("DataDigest=None\0", false), ("DataDigest=CRC32C\0", true)] {
            let mut login = Login::new(purpose(false, false));
            let (first, _) = login.first();
            assert!(first.transit);
            let (request, text) = sent(login.answer(response(true, 1, 0), b"AuthMethod=None\0"));
            assert!(
                request.current == 1 && request.next == 3 && text.contains("DataDigest=CRC32C\0")
            );
            let last = login.answer(response(true, 3, 1), answer.as_bytes());
            assert_eq!(last.is_ok(), good);
        }
    }

    proptest! {
        #[test]
        fn any_target_is_logged_in_to_or_refused(
            steps in prop::collection::vec(
                (
                    any::<(bool, bool)>(),
                    0u8..4,
                    prop::sample::select(vec![0u16, 0, 0, 0, 0x0101, 0x0201, 0x0300]),
                    prop::collection::vec(
                        (
                            "AuthMethod|CHAP_[AICNR]|(Header|Data)Digest|MaxBurstLength|X-a",
                            "CHAP|None|5|7|0x0102|CRC32C|[0-9]{1,9}|Yes",
                        ),
                        0..5,
                    ),
                ),
                1..40,
            ),
            chap in any::<bool>(),
            mutual in any::<bool>(),
        ) {
            let mut login = Login::new(purpose(chap, chap && mutual));
            login.first();
            for ((transit, more), next, status, pairs) in steps {
                let text = write(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
                let it = LoginResponse { more, status, ..response(transit, next, 0) };
                match login.answer(it, &text) {
                    Ok(Next::Send(..)) => {}
                    Ok(Next::Done(agreed)) => {
                        prop_assert!(agreed.digests.data && !(chap && mutual));
                        break;
                    }
                    _ => break,
                }
            }
        }
    }
}
