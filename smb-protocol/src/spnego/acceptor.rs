//! The server's side.
//!
//! ```text
//!  Start ──NegTokenInit──► (NTLM first, with token) ──► Challenged ──► Done
//!    │                └──► (NTLM later, or no token) ─► Chosen ─────► Challenged
//!    └──bare NTLM──────────────────────────────────────► Challenged (bare)
//! ```

use std::sync::Arc;

use super::{
    Error,
    token::{InitToken, NTLM, RespToken, State as NegState, mech_list, parse_mech_list},
};
use crate::{
    crypto::SecretKey,
    ntlm::{self, FileTime, NtHash, ServerInfo, compute::Side, message::is_ntlm},
};

/// Who was authenticated.
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
    /// NTLM is chosen but its first message is yet to come.
    Chosen(Wrap),
    /// CHALLENGE was sent.
    Challenged(Option<Wrap>),
    Ended,
}

/// What SPNEGO has to remember; bare NTLM has nothing.
#[derive(Debug)]
struct Wrap {
    mech_list: Vec<u8>,
    /// The client would have preferred another mechanism.
    not_preferred: bool,
}

/// One authentication at a server. After an error it has ended.
#[derive(Debug)]
pub struct Acceptor {
    ntlm: ntlm::Server,
    state: State,
}

impl Acceptor {
    /// Prepares one authentication.
    #[must_use]
    pub fn new(info: Arc<ServerInfo>) -> Self {
        Self { ntlm: ntlm::Server::new(info), state: State::Start }
    }

    /// The token of the negotiate response, which tells the client the mechanisms.
    #[must_use]
    pub fn hint() -> Vec<u8> {
        let list = mech_list(&[NTLM]);
        InitToken { mech_list: &list, mech_token: None, mic: None }.encode_hint()
    }

    /// Takes a client's token. `now` is told to the client; `lookup` gives the hash of
    /// `(user, domain)`, with user names compared without regard to case.
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
            State::Start => self.start(token, now),
            State::Chosen(wrap) => {
                let token = RespToken::parse(token)?.token;
                self.challenge(token.ok_or(Error::Malformed("no token"))?, now, wrap, None)
            }
            State::Challenged(None) => {
                let done = self.ntlm.authenticate(token, lookup)?;
                Ok(Step::Done(completed(done, Vec::new())))
            }
            State::Challenged(Some(wrap)) => self.finish(token, &wrap, lookup),
            State::Ended => Err(Error::OutOfOrder),
        }
    }

    fn start(&mut self, token: &[u8], now: FileTime) -> Result<Step, Error> {
        let init = InitToken::parse(token)?;
        let mechs = parse_mech_list(init.mech_list)?;
        let place = mechs.iter().position(|oid| *oid == NTLM).ok_or(Error::NoMechanism)?;
        let wrap = Wrap { mech_list: init.mech_list.to_vec(), not_preferred: place > 0 };
        match init.mech_token {
            Some(negotiate) if place == 0 => {
                self.challenge(negotiate, now, wrap, Some(NegState::Incomplete))
            }
            _ => {
                let state = if place > 0 { NegState::RequestMic } else { NegState::Incomplete };
                let reply =
                    RespToken { state: Some(state), mech: Some(NTLM), ..RespToken::default() };
                self.state = State::Chosen(wrap);
                Ok(Step::Continue(reply.encode()))
            }
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
        Ok(Step::Done(completed(done, reply.encode())))
    }
}

fn completed(done: ntlm::Authenticated, token: Vec<u8>) -> Completed {
    let ntlm::Authenticated { user, domain, workstation, session_key, .. } = done;
    Completed { token, identity: Identity { user, domain, workstation }, session_key }
}
