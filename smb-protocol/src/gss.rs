//! What a mechanism does to messages once both sides are authenticated: GSS_WrapEx, GSS_GetMICEx and
//! their counterparts (MS-NLMP 3.4.6 to 3.4.9, MS-KILE 3.4.5.4 to 3.4.5.7).
//!
//! ```text
//!  message   ┌ before ┐┌──── body ────┐┌ behind ┐      ┌ signature ┐
//!  sign        signed       signed       signed    ─►    returned
//!  seal        signed    signed, then    signed    ─►    returned
//!                      sealed in place
//! ```
//!
//! Messages of each side are numbered: one that is lost, repeated or in another place is refused,
//! and so is all that comes after it.

use std::ops::Range;

use crate::{kerberos, ntlm};

/// Why a message is refused. Its content must not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The signature is not of the length, or not of the kind, that the mechanism's have.
    #[error("the signature is none of this mechanism")]
    Malformed,
    /// The number of the message is not the next one.
    #[error("the message is not the next in its sequence")]
    Sequence,
    /// The message or its signature was changed, or is of another key.
    #[error("the signature is wrong")]
    Forged,
    /// The client did not ask for what is needed when it logged on.
    #[error("{0} was not negotiated")]
    NotNegotiated(&'static str),
}

/// Which side of a context one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client, who began.
    Initiator,
    /// The server, who was asked.
    Acceptor,
}

/// What messages can be protected with after a logon: keys and where the numbers begin.
#[derive(Debug, Clone)]
pub enum Protection {
    /// Of NTLM, with how many messages each side has signed already.
    Ntlm(ntlm::SessionSecurity, u32),
    /// Of Kerberos.
    Kerberos(kerberos::Numbered),
}

impl Protection {
    /// Begins to protect messages as one of the sides.
    #[must_use]
    pub fn begin(&self, side: Side) -> Context {
        Context(match self {
            Self::Ntlm(security, signed) => {
                Mechanism::Ntlm(Box::new(security.messages(side, *signed)))
            }
            Self::Kerberos(numbered) => Mechanism::Kerberos(numbered.messages(side)),
        })
    }
}

/// An established context that protects messages and opens those of the other side.
#[derive(Debug)]
pub struct Context(Mechanism);

#[derive(Debug)]
enum Mechanism {
    Ntlm(Box<ntlm::Messages>),
    Kerberos(kerberos::Messages),
}

impl Context {
    /// Whether messages can be sealed, and not only signed.
    #[must_use]
    pub fn can_seal(&self) -> bool {
        match &self.0 {
            Mechanism::Ntlm(messages) => messages.can_seal(),
            Mechanism::Kerberos(_) => true,
        }
    }

    /// Length of a signature in bytes.
    #[must_use]
    pub fn signature_len(&self, seal: bool) -> usize {
        match &self.0 {
            Mechanism::Ntlm(_) => ntlm::Messages::SIGNATURE_LEN,
            Mechanism::Kerberos(messages) => messages.signature_len(seal),
        }
    }

    /// Signs a message, and with `seal` seals the part of it that is its body. Gives the signature.
    pub fn protect(&mut self, message: &mut [u8], body: Range<usize>, seal: bool) -> Vec<u8> {
        match &mut self.0 {
            Mechanism::Ntlm(messages) => messages.protect(message, body, seal).to_vec(),
            Mechanism::Kerberos(messages) => messages.protect(message, body, seal),
        }
    }

    /// Checks a message of the other side; with `seal` its body is sealed and is opened in place.
    ///
    /// # Errors
    /// [`Error`] says what is wrong with it; no later message will be right then.
    pub fn open(
        &mut self,
        message: &mut [u8],
        body: Range<usize>,
        seal: bool,
        signature: &[u8],
    ) -> Result<(), Error> {
        match &mut self.0 {
            Mechanism::Ntlm(messages) => messages.open(message, body, seal, signature),
            Mechanism::Kerberos(messages) => messages.open(message, body, seal, signature),
        }
    }
}
