//! The login phase of a connection (RFC 7143 6.3), step by step or as a whole.

use iscsi::{
    chap::{Account, Algorithm, binary, hexadecimal},
    pdu::{Digests, LoginRequest, LoginResponse, Pdu, RequestNumbers},
    text,
};

use super::{
    Outcome, Stop, Subject, check,
    conn::Conn,
    fail,
    wire::{Heard, Wire},
};

pub(super) type Pairs = Vec<(String, String)>;

/// What a login is for.
#[derive(Debug, Clone)]
pub(super) struct Want<'a> {
    pub initiator: &'a str,
    /// `None`: discovery.
    pub target: Option<&'a str>,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub cid: u16,
    pub cmd_sn: u32,
    /// Operational keys.
    pub keys: Vec<(&'a str, &'a str)>,
}

/// A login under way.
pub(super) struct Login<'a> {
    pub wire: Wire,
    pub want: Want<'a>,
    /// CSG.
    pub stage: u8,
    introduced: bool,
    account: Option<&'a Account>,
    lun: [u8; 8],
    block: usize,
}

/// The value of a key.
pub(super) fn value<'a>(pairs: &'a Pairs, key: &str) -> Option<&'a str> {
    pairs.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
}

impl<'a> Login<'a> {
    pub fn open(subject: &'a Subject, want: Want<'a>) -> Outcome<Self> {
        let account = match want.target {
            Some(name) if name != subject.target => None,
            None if !subject.discovery_chap => None,
            _ => subject.account.as_ref(),
        };
        let mut wire = Wire::open(subject.at)?;
        // The first number is the target's to choose.
        wire.acknowledged = Some(0);
        let (lun, block) = (subject.lun_bytes(), subject.block());
        Ok(Self { wire, want, stage: 1, introduced: false, account, lun, block })
    }

    /// A request as it should be.
    pub fn request(&self, transit: bool, next: u8) -> LoginRequest {
        let exp_stat_sn = self.wire.exp_stat_sn();
        LoginRequest {
            sn: RequestNumbers { immediate: true, cmd_sn: self.want.cmd_sn, exp_stat_sn },
            transit,
            more: false,
            current: self.stage,
            next: if transit { next } else { 0 },
            version_max: 0,
            version_min: 0,
            isid: self.want.isid,
            tsih: self.want.tsih,
            itt: 0x10,
            cid: self.want.cid,
        }
    }

    /// The keys that say who comes and for what.
    pub fn introduction(&self) -> Vec<(&'a str, &'a str)> {
        let mut pairs = vec![("InitiatorName", self.want.initiator)];
        match self.want.target {
            Some(target) => pairs.extend([("SessionType", "Normal"), ("TargetName", target)]),
            None => pairs.push(("SessionType", "Discovery")),
        }
        pairs
    }

    /// Sends a request with any text; its answer, or `None` if the target closes the connection.
    pub fn say(
        &mut self,
        request: LoginRequest,
        text: &[u8],
    ) -> Outcome<Option<(LoginResponse, Pairs)>> {
        self.wire.send(Pdu::LoginRequest(request), text);
        self.answer(&request)
    }

    /// The answer that is due to a request.
    pub fn answer(&mut self, request: &LoginRequest) -> Outcome<Option<(LoginResponse, Pairs)>> {
        let mut whole = Vec::new();
        loop {
            let (pdu, data) = match self.wire.hear()? {
                Heard::Closed => return Ok(None),
                Heard::Pdu(pdu, data) => (pdu, data),
            };
            let Pdu::LoginResponse(response) = pdu else {
                return fail(format!("{pdu:?} where a login response is due (6.3)"));
            };
            self.wire.acknowledged = None;
            self.look(request, &response)?;
            whole.extend_from_slice(&data);
            if !response.more {
                let Ok(pairs) = text::read(&whole) else {
                    return fail(format!("the target's text is none: {whole:?} (6.1)"));
                };
                return Ok(Some((response, pairs)));
            }
            let request = self.request(false, 0);
            self.wire.send(Pdu::LoginRequest(request), &[]);
        }
    }

    /// What holds of every login response (RFC 7143 11.13).
    fn look(&self, request: &LoginRequest, response: &LoginResponse) -> Outcome {
        check(response.itt == request.itt, "Initiator Task Tag is another (11.13)")?;
        if response.status != 0 {
            return check(!response.transit, "T in a response that refuses (11.13.5)");
        }
        check(response.isid == request.isid, "ISID is another (11.13)")?;
        check(response.current == request.current, "CSG is another (11.13.3)")?;
        check(request.transit || !response.transit, "T where the request has none (11.13.2)")?;
        check(!(response.transit && response.more), "T and C together (11.13.1)")?;
        // A target may go on to an earlier stage than the initiator asked for, never to a later one.
        let within = request.current < response.next && response.next <= request.next;
        check(!response.transit || within, "NSG is another (11.13.3)")?;
        check(response.version_active == 0, "Version-active is not 0 (11.13.4)")
    }

    /// One request with keys, after who comes was said.
    pub fn ask(
        &mut self,
        transit: bool,
        next: u8,
        keys: &[(&str, &str)],
    ) -> Outcome<Option<(LoginResponse, Pairs)>> {
        let mut pairs = Vec::new();
        if !self.introduced {
            pairs = self.introduction();
            self.introduced = true;
        }
        pairs.extend_from_slice(keys);
        let answer = self.say(self.request(transit, next), &text::write(pairs))?;
        if let Some((response, _)) = &answer
            && response.transit
            && response.status == 0
        {
            self.stage = response.next;
        }
        Ok(answer)
    }

    /// As [`Self::ask`] of a target that must go on with the login.
    pub fn go(
        &mut self,
        transit: bool,
        next: u8,
        keys: &[(&str, &str)],
    ) -> Outcome<(LoginResponse, Pairs)> {
        match self.ask(transit, next, keys)? {
            Some((response, pairs)) if response.status == 0 => Ok((response, pairs)),
            Some((response, _)) => fail(format!("the login is refused: {:04x}", response.status)),
            None => fail("the target closed the connection during the login"),
        }
    }

    /// Comes to the operational stage, where the subject wants to know who comes.
    pub fn authenticate(&mut self) -> Outcome {
        let Some(account) = self.account else { return Ok(()) };
        self.stage = 0;
        self.go(false, 0, &[("AuthMethod", "CHAP")])?;
        let (_, pairs) = self.go(false, 0, &[("CHAP_A", "5")])?;
        let answer = respond(account, &pairs)?;
        self.go(true, 1, &[("CHAP_N", &account.name), ("CHAP_R", &answer)])?;
        check(self.stage == 1, "the target does not leave the security stage (6.3.2)")
    }

    /// All of it; the status where it is refused.
    pub fn finish(mut self) -> Outcome<Result<Conn, u16>> {
        self.authenticate()?;
        let keys = self.want.keys.clone();
        let Some((mut response, mut pairs)) = self.ask(true, 3, &keys)? else {
            return fail("the target closed the connection during the login");
        };
        // A target may have more to say before it lets go.
        for _ in 0..4 {
            if response.status == 0 && !response.transit {
                let Some((next, more)) = self.ask(true, 3, &[])? else {
                    return fail("the target closed the connection during the login");
                };
                response = next;
                pairs.extend(more);
            }
        }
        if response.status != 0 {
            return Ok(Err(response.status));
        }
        check(response.transit, "the target does not leave the login phase (6.3)")?;
        self.enter(response, pairs).map(Ok)
    }

    /// The full feature phase, after the last response.
    pub fn enter(mut self, response: LoginResponse, agreed: Pairs) -> Outcome<Conn> {
        check(response.tsih != 0, "TSIH is 0 in the last response (11.13)")?;
        let crc = |key: &str| value(&agreed, key) == Some("CRC32C");
        self.wire.digests = Digests { header: crc("HeaderDigest"), data: crc("DataDigest") };
        let own = self.want.keys.iter().find(|(key, _)| *key == "MaxRecvDataSegmentLength");
        if let Some(length) = own.and_then(|(_, value)| value.parse().ok()) {
            self.wire.max_recv = length;
        }
        let cmd_sn = response.sn.exp_cmd_sn;
        if self.want.tsih == 0 && cmd_sn != self.want.cmd_sn {
            return fail(format!("ExpCmdSN is {cmd_sn}, not the login's CmdSN (4.2.2.1)"));
        }
        let (isid, cid) = (self.want.isid, self.want.cid);
        let (lun, block) = (self.lun, self.block);
        Ok(Conn {
            wire: self.wire,
            cmd_sn,
            isid,
            tsih: response.tsih,
            cid,
            agreed,
            lun,
            block,
            tag: 0x100,
        })
    }
}

/// CHAP_R to the challenge in a response.
pub(super) fn respond(account: &Account, pairs: &Pairs) -> Outcome<String> {
    let missing = |key: &str| Stop::Failed(format!("{key} is missing (12.1.3)"));
    let number = |key: &str| value(pairs, key).and_then(text::number).ok_or_else(|| missing(key));
    let code = number("CHAP_A")?;
    let Some(algorithm) = Algorithm::ALL.into_iter().find(|it| *it as u64 == code) else {
        return fail(format!("CHAP_A is {code}, which was not offered (12.1.3)"));
    };
    let Ok(id) = u8::try_from(number("CHAP_I")?) else { return fail("CHAP_I is no byte (12.1.3)") };
    let challenge = value(pairs, "CHAP_C").and_then(|text| binary(text, 1024));
    let challenge = challenge.ok_or_else(|| missing("CHAP_C"))?;
    Ok(hexadecimal(&account.response(algorithm, id, &challenge)))
}
