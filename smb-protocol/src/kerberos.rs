//! Kerberos 5 as a server needs it: keys from a keytab, a client's AP-REQ checked, an AP-REP for
//! it (RFC 4120, RFC 4121, MS-KILE).
//!
//! ```text
//!  SPNEGO ─► GSS token ─► AP-REQ ─┬─ ticket ────────(key of the keytab)──► session key, client, times
//!                                 └─ authenticator ─(session key)────────► subkey, time, flags
//!         ◄─ GSS token ◄─ AP-REP ◄──────────────────(session key)────────── the client's time again
//! ```
//!
//! [`crypto`] has the AES encryption types of RFC 3962 and RFC 8009; RC4 and DES are not spoken.
//! [`keytab`] reads MIT's format, [`message`] the messages. [`Service`] is the server with its
//! memory of authenticators that were used; [`Messages`] signs and seals what is said afterwards.
//!
//! RPC has a third part (MS-KILE 3.4.5.1): the client answers the AP-REP with one of its own.

pub mod crypto;
pub mod gss;
pub mod keytab;
pub mod message;
mod service;
mod wrap;

pub use service::{Accepted, Established, Service, ThirdLeg};
pub use wrap::{Messages, Numbered};

use crate::WireError;

/// Why a client was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A message or keytab ends within a field, or has an element that it cannot have.
    #[error("malformed Kerberos message: {0}")]
    Wire(#[from] WireError),
    /// A message is not what it should be.
    #[error("malformed Kerberos message: {0}")]
    Malformed(&'static str),
    /// Encryption that is not spoken.
    #[error("encryption type {0} is not supported")]
    Encryption(i32),
    /// The keytab has no key for the ticket.
    #[error("no key for {principal}, version {version:?}, encryption type {etype}")]
    NoKey {
        /// The service that the ticket is for.
        principal: String,
        /// The version of its key.
        version: Option<u32>,
        /// How the ticket is encrypted.
        etype: i32,
    },
    /// Something does not decrypt: another key, or it was changed.
    #[error("{0} does not decrypt")]
    Forged(&'static str),
    /// The ticket's time is over, or yet to come.
    #[error("the ticket is not valid now")]
    TicketTime,
    /// The clocks of client and server differ too much.
    #[error("the client's clock is {0} seconds off")]
    Skew(u64),
    /// The authenticator names another client than the ticket.
    #[error("ticket and authenticator name different clients")]
    Mismatch,
    /// The same request came before.
    #[error("the request was used before")]
    Replay,
    /// The request is older than what the server remembers, and may have been used.
    #[error("the request was made before this server started, which cannot know if it was used")]
    BeforeStart,
    /// Too many requests are remembered.
    #[error("too many logons at once")]
    Busy,
    /// What the client wants and is not done here.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

impl Error {
    /// Whether the token itself was at fault and not the logon.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Wire(_))
    }
}

#[cfg(test)]
pub(crate) use service::tests as service_tests;
