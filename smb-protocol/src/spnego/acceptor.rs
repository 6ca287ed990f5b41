//! The server's side.
//!
//! ```text
//!  Start ──NegTokenInit──► (NTLM first, with token) ──► Challenged ──► Done
//!    │                ├──► (Kerberos first, with token) ────────────► Done
//!    │                └──► (neither first, or no token) ► Chosen ───► as above
//!    └──bare NTLM──────────────────────────────────────► Challenged (bare)
//! ```
//!
//! Kerberos that the client did not prefer is done only when the list of mechanisms is signed:
//! Chosen ─► Unsigned ─► Done. Kerberos in three parts, where that is allowed, has one state more:
//! Start or Chosen ─► Third ─► Done.

use std::sync::Arc;

use super::{
    Error,
    token::{
        InitToken, KERBEROS, MS_KERBEROS, NTLM, RespToken, State as NegState, mech_list,
        parse_mech_list,
    },
};
use crate::{
    crypto::SecretKey,
    gss::Protection,
    kerberos::{Accepted, Established, Service, ThirdLeg, gss, message::Principal},
    ntlm::{self, FileTime, NtHash, ServerInfo, compute::Side, message::is_ntlm},
};

/// Who was authenticated, as the mechanism names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// User name as the client sent it.
    pub user: String,
    /// Domain as the client sent it.
    pub domain: String,
    /// Client computer as the client sent it; not proven.
    pub workstation: String,
}

/// Result of a successful authentication.
#[derive(Clone, Debug)]
pub struct Completed {
    /// Last token to send, with the success; may be empty.
    pub token: Vec<u8>,
    /// Who it is.
    pub identity: Identity,
    /// Key to derive the session's keys from.
    pub session_key: SecretKey,
    /// What Kerberos vouches for, when it did.
    pub ticket: Option<Ticket>,
    /// What the messages that follow can be protected with; none if the client did not want that.
    pub protection: Option<Box<Protection>>,
}

/// What a client's ticket said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The client.
    pub client: Principal,
    /// When it ends, and with it the right to the session.
    pub expires: FileTime,
}

/// What to do after a client's token.
#[derive(Clone, Debug)]
pub enum Step {
    /// Send this token and wait for the next (STATUS_MORE_PROCESSING_REQUIRED).
    Continue(Vec<u8>),
    /// The client is authenticated.
    Done(Completed),
}

#[derive(Debug)]
enum State {
    Start,
    /// A mechanism is chosen but its first message is yet to come.
    Chosen(Wrap),
    /// Kerberos is done; the client is yet to sign the list of mechanisms.
    Unsigned(Box<Established>, Wrap),
    /// The client is yet to answer our AP-REP.
    Third(Box<ThirdLeg>, Option<Wrap>),
    /// CHALLENGE was sent.
    Challenged(Option<Wrap>),
    Ended,
}

/// Longest list of mechanisms, in bytes, that is kept until its integrity code comes. Clients send
/// some sixty.
const MOST_MECHANISMS: usize = 1024;

/// What SPNEGO has to remember; bare NTLM has nothing.
#[derive(Debug)]
struct Wrap {
    mech_list: Vec<u8>,
    /// The client would have preferred another mechanism.
    not_preferred: bool,
    /// What was chosen.
    mechanism: &'static [u8],
}

/// One authentication at a server. After an error it has ended.
#[derive(Debug)]
pub struct Acceptor {
    ntlm: ntlm::Server,
    kerberos: Option<Arc<Service>>,
    three_parts: bool,
    state: State,
}

impl Acceptor {
    /// Prepares one authentication, with Kerberos if there is a service for it.
    #[must_use]
    pub fn new(info: Arc<ServerInfo>, kerberos: Option<Arc<Service>>) -> Self {
        let ntlm = ntlm::Server::new(info);
        Self { ntlm, kerberos, three_parts: false, state: State::Start }
    }

    /// Lets Kerberos have three parts, as RPC does (MS-KILE 3.4.5.1).
    #[must_use]
    pub fn with_three_parts(self) -> Self {
        Self { three_parts: true, ..self }
    }

    /// The token of the negotiate response, which tells the client the mechanisms.
    #[must_use]
    pub fn hint(kerberos: bool) -> Vec<u8> {
        let list = match kerberos {
            true => mech_list(&[MS_KERBEROS, KERBEROS, NTLM]),
            false => mech_list(&[NTLM]),
        };
        InitToken { mech_list: &list, mech_token: None, mic: None }.encode_hint()
    }

    /// Takes a client's token. `now` is told to the client; `lookup` gives the hash of
    /// `(user, domain)`, with user names compared without regard to case.
    ///
    /// # Errors
    /// The token is malformed or out of order, names no mechanism that is spoken, or its list is not
    /// protected; or the mechanism refuses the logon. The exchange is over then.
    pub fn step(
        &mut self,
        token: &[u8],
        now: FileTime,
        lookup: impl FnOnce(&str, &str) -> Option<NtHash>,
    ) -> Result<Step, Error> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Start if is_ntlm(token) => {
                let challenge = self.ntlm.challenge(token, now)?;
                self.state = State::Challenged(None);
                Ok(Step::Continue(challenge))
            }
            State::Start if self.kerberos.is_some() && self.is_kerberos(token) => {
                match self.ticket(token, now)? {
                    (Accepted::Done(done), reply) => Ok(Step::Done(of_ticket(&done, reply, 0))),
                    (Accepted::Third(third), reply) => {
                        self.state = State::Third(Box::new(third), None);
                        Ok(Step::Continue(reply))
                    }
                }
            }
            State::Start => self.start(token, now),
            State::Chosen(wrap) => {
                let response = RespToken::parse(token)?;
                let token = response.token.ok_or(Error::Malformed("no token"))?;
                match wrap.mechanism {
                    NTLM => self.challenge(token, now, wrap, None),
                    _ => self.kerberos(token, response.mic, now, wrap, None),
                }
            }
            State::Unsigned(done, wrap) => {
                let response = RespToken::parse(token)?;
                let mic = response.mic.ok_or(Error::MechListMic)?;
                signed(&done, &wrap, mic, None)
            }
            State::Third(third, None) => {
                Ok(Step::Done(of_ticket(&third.finish(token)?, Vec::new(), 0)))
            }
            State::Third(third, Some(wrap)) => {
                let response = RespToken::parse(token)?;
                let done = third.finish(response.token.ok_or(Error::Malformed("no token"))?)?;
                match response.mic {
                    Some(mic) => signed(&done, &wrap, mic, None),
                    None if wrap.not_preferred => Err(Error::MechListMic),
                    None => {
                        let token =
                            RespToken { state: Some(NegState::Completed), ..RespToken::default() };
                        Ok(Step::Done(of_ticket(&done, token.encode(), 0)))
                    }
                }
            }
            State::Challenged(None) => {
                let done = self.ntlm.authenticate(token, lookup)?;
                Ok(Step::Done(completed(done, Vec::new(), 0)))
            }
            State::Challenged(Some(wrap)) => self.finish(token, &wrap, lookup),
            State::Ended => Err(Error::OutOfOrder),
        }
    }

    fn start(&mut self, token: &[u8], now: FileTime) -> Result<Step, Error> {
        let init = InitToken::parse(token)?;
        if init.mech_list.len() > MOST_MECHANISMS {
            return Err(Error::Malformed("more than 1 KiB of mechanisms"));
        }
        let mechs = parse_mech_list(init.mech_list)?;
        let spoken: &[&'static [u8]] = match self.kerberos {
            Some(_) => &[MS_KERBEROS, KERBEROS, NTLM],
            None => &[NTLM],
        };
        let known = |oid: &&[u8]| spoken.iter().copied().find(|known| known == oid);
        let found = mechs.iter().enumerate().find_map(|(at, oid)| Some((at, known(oid)?)));
        let (place, mechanism) = found.ok_or(Error::NoMechanism)?;
        let wrap = Wrap { mech_list: init.mech_list.to_vec(), not_preferred: place > 0, mechanism };
        match init.mech_token {
            Some(negotiate) if place == 0 && mechanism == NTLM => {
                self.challenge(negotiate, now, wrap, Some(NegState::Incomplete))
            }
            Some(request) if place == 0 => self.kerberos(request, None, now, wrap, Some(mechanism)),
            _ => {
                let state = if place > 0 { NegState::RequestMic } else { NegState::Incomplete };
                let mech = Some(mechanism);
                let reply = RespToken { state: Some(state), mech, ..RespToken::default() };
                self.state = State::Chosen(wrap);
                Ok(Step::Continue(reply.encode()))
            }
        }
    }

    /// Whether a token is Kerberos' own, without SPNEGO around it.
    fn is_kerberos(&self, token: &[u8]) -> bool {
        gss::initial_token(token).is_ok() || self.three_parts && gss::is_request(token)
    }

    /// Checks a ticket; who came with it and the token for it.
    fn ticket(&self, token: &[u8], now: FileTime) -> Result<(Accepted, Vec<u8>), Error> {
        let service = self.kerberos.as_ref().ok_or(Error::NoMechanism)?;
        let mut accepted = match self.three_parts {
            true => service.accept_any(token, now)?,
            false => Accepted::Done(service.accept(token, now)?),
        };
        let reply = match &mut accepted {
            Accepted::Done(done) => std::mem::take(&mut done.token),
            Accepted::Third(third) => third.token(),
        };
        Ok((accepted, reply))
    }

    /// Answers a ticket; the mechanism is named when this is the first reply.
    fn kerberos(
        &mut self,
        token: &[u8],
        mic: Option<&[u8]>,
        now: FileTime,
        wrap: Wrap,
        first: Option<&[u8]>,
    ) -> Result<Step, Error> {
        let (accepted, reply) = self.ticket(token, now)?;
        let token = |state| RespToken {
            state: Some(state),
            mech: first,
            token: Some(&reply[..]).filter(|reply| !reply.is_empty()),
            mic: None,
        };
        match accepted {
            Accepted::Third(third) => {
                let step = Step::Continue(token(NegState::Incomplete).encode());
                self.state = State::Third(Box::new(third), Some(wrap));
                Ok(step)
            }
            Accepted::Done(done) => match mic {
                Some(mic) => signed(&done, &wrap, mic, Some(&reply)),
                None if wrap.not_preferred => {
                    let step = Step::Continue(token(NegState::Incomplete).encode());
                    self.state = State::Unsigned(Box::new(done), wrap);
                    Ok(step)
                }
                None => {
                    let token = token(NegState::Completed).encode();
                    Ok(Step::Done(of_ticket(&done, token, 0)))
                }
            },
        }
    }

    /// Sends CHALLENGE; the mechanism is named when this is the first reply.
    fn challenge(
        &mut self,
        negotiate: &[u8],
        now: FileTime,
        wrap: Wrap,
        first: Option<NegState>,
    ) -> Result<Step, Error> {
        let challenge = self.ntlm.challenge(negotiate, now)?;
        let reply = RespToken {
            state: Some(NegState::Incomplete),
            mech: first.map(|_| NTLM),
            token: Some(&challenge),
            mic: None,
        };
        self.state = State::Challenged(Some(wrap));
        Ok(Step::Continue(reply.encode()))
    }

    fn finish(
        &mut self,
        token: &[u8],
        wrap: &Wrap,
        lookup: impl FnOnce(&str, &str) -> Option<NtHash>,
    ) -> Result<Step, Error> {
        let response = RespToken::parse(token)?;
        let message = response.token.ok_or(Error::Malformed("no token"))?;
        let done = self.ntlm.authenticate(message, lookup)?;
        // RFC 4178 5: needed when another mechanism was preferred. MS-SPNG <8>: needed too when
        // the client protects its NTLM messages and can sign.
        let needed = wrap.not_preferred || (done.mic_present && done.security.is_some());
        let mic = match (response.mic, &done.security) {
            (Some(mic), Some(security)) => {
                if !security.verify_first(Side::Client, &wrap.mech_list, mic) {
                    return Err(Error::MechListMic);
                }
                Some(security.first_signature(Side::Server, &wrap.mech_list))
            }
            (None, _) if !needed => None,
            _ => return Err(Error::MechListMic),
        };
        let reply = RespToken {
            state: Some(NegState::Completed),
            mic: mic.as_ref().map(|mic| &mic[..]),
            ..RespToken::default()
        };
        Ok(Step::Done(completed(done, reply.encode(), mic.is_some().into())))
    }
}

/// Ends with Kerberos once the client has signed the list of mechanisms.
fn signed(
    done: &Established,
    wrap: &Wrap,
    mic: &[u8],
    reply: Option<&[u8]>,
) -> Result<Step, Error> {
    if !done.verify_mic(&wrap.mech_list, mic) {
        return Err(Error::MechListMic);
    }
    let ours = done.mic(&wrap.mech_list);
    let token = RespToken {
        state: Some(NegState::Completed),
        mech: None,
        token: reply.filter(|reply| !reply.is_empty()),
        mic: Some(&ours),
    };
    Ok(Step::Done(of_ticket(done, token.encode(), 1)))
}

/// The end of Kerberos, each side having signed so many lists of mechanisms.
fn of_ticket(done: &Established, token: Vec<u8>, signed: u32) -> Completed {
    let identity = Identity {
        user: done.client.name.clone(),
        domain: done.client.realm.clone(),
        workstation: String::new(),
    };
    let ticket = Ticket { client: done.client.clone(), expires: done.expires };
    let protection = Some(Box::new(Protection::Kerberos(done.numbered(signed))));
    Completed { token, identity, session_key: done.session_key(), ticket: Some(ticket), protection }
}

/// The end of NTLM, each side having signed so many lists of mechanisms.
fn completed(done: ntlm::Authenticated, token: Vec<u8>, signed: u32) -> Completed {
    let ntlm::Authenticated { user, domain, workstation, session_key, security, .. } = done;
    let protection = security.map(|security| Box::new(Protection::Ntlm(security, signed)));
    let identity = Identity { user, domain, workstation };
    Completed { token, identity, session_key, ticket: None, protection }
}
