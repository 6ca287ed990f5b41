//! NTLM authentication, version 2 only (MS-NLMP).
//!
//! ```text
//!  client                                              server
//!  Client::negotiate ────── NEGOTIATE ──────────────►  Server::challenge
//!  Client::authenticate ◄── CHALLENGE ───────────────     (8 random bytes, names, time)
//!        └───────────────── AUTHENTICATE (+ MIC) ───►  Server::authenticate
//!  SessionSecurity + session key                       Authenticated
//! ```
//!
//! No I/O and no clock: times are given. NTLMv1, LM, anonymous and guest logons are refused.
//! [`message`] has the three messages, [`av`] the attribute lists in them, [`compute`] the
//! formulas, [`SessionSecurity`] the message integrity that SPNEGO uses, [`Messages`] signs and seals
//! what an application says afterwards; [`users`] is the text
//! of a file of users and their hashes.

pub mod av;
mod client;
pub mod compute;
mod hash;
pub mod message;
mod messages;
mod oem;
mod security;
mod server;
pub mod users;

pub use client::{Client, Credentials, Established};
pub use hash::{NtHash, ParseHashError};
pub use message::Flags;
pub use messages::Messages;
pub use security::SessionSecurity;
pub use server::{Authenticated, Server, ServerInfo};

use crate::WireError;

/// 100-nanosecond ticks since 1601-01-01 UTC, the FILETIME of MS-DTYP 2.3.3.
pub type FileTime = u64;

/// Why a message was refused or a logon failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A message is not well-formed.
    #[error("malformed NTLM {message}: {what}")]
    Malformed {
        /// Which message.
        message: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A message ends within a field, or has a value that it cannot have.
    #[error("malformed NTLM {message}: {error}")]
    Wire {
        /// Which message.
        message: &'static str,
        /// Field and place.
        #[source]
        error: WireError,
    },
    /// The other side does not offer what is needed.
    #[error("NTLM peer does not negotiate {0}")]
    Unsupported(&'static str),
    /// A message came out of order.
    #[error("NTLM message out of order")]
    OutOfOrder,
    /// No user name and no response were given.
    #[error("anonymous logon refused")]
    Anonymous,
    /// The response is of NTLMv1 or LM.
    #[error("NTLMv1 response refused")]
    WeakResponse,
    /// There is no such user, or the password is wrong.
    #[error("unknown user or wrong password")]
    LogonFailure,
    /// The messages were changed on their way.
    #[error("message integrity code is wrong")]
    Mic,
}
