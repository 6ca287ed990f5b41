//! The client's side.

use super::{
    Error,
    token::{InitToken, NTLM, RespToken, State, mech_list, parse_mech_list},
};
use crate::{
    crypto::SecretKey,
    gss::Protection,
    ntlm::{Client, Credentials, Established, FileTime, compute::Side},
};

/// One authentication of a client: [`first`](Self::first), [`second`](Self::second),
/// [`last`](Self::last).
#[derive(Debug)]
pub struct Initiator {
    ntlm: Client,
    mech_list: Vec<u8>,
    established: Option<Established>,
    /// The server has signed the list, too.
    signed: bool,
}

impl Initiator {
    /// Prepares a logon from `workstation` (may be empty) to the service `target`, such as
    /// `cifs/server`.
    #[must_use]
    pub fn new(credentials: Credentials, workstation: &str, target: &str) -> Self {
        Self {
            ntlm: Client::new(credentials, workstation, target),
            mech_list: mech_list(&[NTLM]),
            established: None,
            signed: false,
        }
    }

    /// The first token, given the hint of the server's negotiate response (may be empty).
    ///
    /// # Errors
    /// The hint is malformed, or the server does not speak NTLM.
    pub fn first(&mut self, hint: &[u8]) -> Result<Vec<u8>, Error> {
        if !hint.is_empty() {
            let init = InitToken::parse(hint)?;
            if !parse_mech_list(init.mech_list)?.contains(&NTLM) {
                return Err(Error::NoMechanism);
            }
        }
        let negotiate = self.ntlm.negotiate();
        let token =
            InitToken { mech_list: &self.mech_list, mech_token: Some(&negotiate), mic: None };
        Ok(token.encode())
    }

    /// Answers the server's challenge. `now` is used when the server tells no time.
    ///
    /// # Errors
    /// The token is malformed, the server rejects the logon or chose another mechanism, or its
    /// challenge is refused (see [`Client::authenticate`](crate::ntlm::Client::authenticate)).
    pub fn second(&mut self, token: &[u8], now: FileTime) -> Result<Vec<u8>, Error> {
        let response = RespToken::parse(token)?;
        if response.state == Some(State::Reject) {
            return Err(Error::Rejected);
        }
        if response.mech.is_some_and(|mech| mech != NTLM) {
            return Err(Error::NoMechanism);
        }
        let challenge = response.token.ok_or(Error::Malformed("no token"))?;
        let (message, established) = self.ntlm.authenticate(challenge, now)?;
        let mic = established
            .security
            .as_ref()
            .map(|security| security.first_signature(Side::Client, &self.mech_list));
        self.established = Some(established);
        let reply = RespToken {
            token: Some(&message),
            mic: mic.as_ref().map(|mic| &mic[..]),
            ..RespToken::default()
        };
        Ok(reply.encode())
    }

    /// Checks the server's last token, which comes with its success.
    ///
    /// # Errors
    /// The token is malformed or comes too early, the server rejects the logon, or its code for the list
    /// of mechanisms is wrong.
    pub fn last(&mut self, token: &[u8]) -> Result<(), Error> {
        let established = self.established.as_ref().ok_or(Error::OutOfOrder)?;
        if token.is_empty() {
            return Ok(());
        }
        let response = RespToken::parse(token)?;
        match response.state {
            None | Some(State::Completed) => {}
            Some(State::Reject) => return Err(Error::Rejected),
            Some(_) => return Err(Error::OutOfOrder),
        }
        match (response.mic, &established.security) {
            (None, _) => Ok(()),
            (Some(mic), Some(security))
                if security.verify_first(Side::Server, &self.mech_list, mic) =>
            {
                self.signed = true;
                Ok(())
            }
            _ => Err(Error::MechListMic),
        }
    }

    /// The session key, once the challenge is answered. It is proven only when the server's
    /// signature with a key derived of it was verified.
    #[must_use]
    pub fn session_key(&self) -> Option<&SecretKey> {
        self.established.as_ref().map(|established| &established.session_key)
    }
    /// What messages can be protected with once the server's last token was taken; `None` if signing was
    /// not negotiated, or the server has not signed the list of mechanisms as this side did.
    #[must_use]
    pub fn protection(&self) -> Option<Protection> {
        let security = self.established.as_ref()?.security.clone()?;
        self.signed.then(|| Protection::Ntlm(security, 1))
    }
}
