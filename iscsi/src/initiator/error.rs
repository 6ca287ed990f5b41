//! What can go wrong between an initiator and its logical unit.

use std::{io, sync::Arc, time::Duration};

use super::sense::SenseData;
use crate::chap::ChapError;

/// Why an initiator cannot do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum InitiatorError {
    /// What it was told cannot be.
    #[error("{0}")]
    Options(String),
    /// A portal cannot be reached.
    #[error("cannot connect to {portal}")]
    Connect {
        /// Its address.
        portal: String,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// A target refuses the login (RFC 7143 11.13.5).
    #[error("{portal} refuses the login: {}", login_status(*.status))]
    Refused {
        /// The portal's address.
        portal: String,
        /// Status-Class and Status-Detail.
        status: u16,
    },
    /// CHAP cannot go on, or the target did not prove who it is (RFC 7143 12.1.3).
    #[error("authentication with {portal}")]
    Chap {
        /// The portal's address.
        portal: String,
        /// What is wrong.
        #[source]
        source: ChapError,
    },
    /// The target broke the protocol.
    #[error("{portal} breaks the protocol: {what}")]
    Protocol {
        /// The portal's address.
        portal: String,
        /// How.
        what: String,
    },
    /// A command, or a login, came to no end.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// No path leads to the logical unit, for as long as one was waited for.
    #[error("no path to the logical unit: {0}")]
    Unreachable(String),
    /// There is no logical unit of this number.
    #[error("the target has no logical unit {0}")]
    NoUnit(u16),
    /// The logical unit is no disk that can be used.
    #[error("the logical unit cannot be used: {0}")]
    Unusable(String),
    /// Another initiator has a reservation of the logical unit (SPC-4 5.13).
    #[error("another initiator has reserved the logical unit")]
    ReservationConflict,
    /// What was compared is not equal; the offset in bytes, if the target tells it.
    #[error("what is on the logical unit is not what was compared with it")]
    Miscompare(Option<u64>),
    /// The logical unit says what is wrong.
    #[error("the logical unit answers: {0}")]
    Sense(SenseData),
    /// A status that means no success and nothing else that is known (SAM-5 5.3.1).
    #[error("the logical unit answers with status {0:#04x}")]
    Status(u8),
    /// The answer to a command that cannot be repeated was lost: it may be done or not.
    #[error("the answer was lost: the command may have been carried out or not")]
    InDoubt,
    /// The disk was closed.
    #[error("already closed")]
    Closed,
}

/// The words of RFC 7143 11.13.5 for a status of a login.
fn login_status(status: u16) -> &'static str {
    match status {
        0x0101 | 0x0102 => "the target has moved",
        0x0201 => "authentication failed",
        0x0202 => "this initiator may not use the target",
        0x0203 => "it has no such target",
        0x0204 => "the target is gone for good",
        0x0205 => "the version is not supported",
        0x0206 => "too many connections",
        0x0207 => "a parameter is missing",
        0x0209 => "the type of the session is not supported",
        0x0301 => "the target is not ready",
        0x0302 => "the target is out of resources",
        status if status >> 8 == 3 => "the target has failed",
        _ => "the request was wrong",
    }
}

impl From<InitiatorError> for block_io::Error {
    fn from(error: InitiatorError) -> Self {
        match error {
            InitiatorError::ReservationConflict => Self::Fenced(error.to_string()),
            InitiatorError::Closed => Self::Closed,
            InitiatorError::Sense(sense) if sense.is_full() => Self::NoSpace,
            InitiatorError::Sense(sense) if sense.is_protected() => Self::ReadOnly,
            InitiatorError::Connect { .. }
            | InitiatorError::TimedOut(_)
            | InitiatorError::Unreachable(_) => Self::Disconnected(chain(&error)),
            other => Self::Io { context: "iSCSI".to_owned(), source: io::Error::other(other) },
        }
    }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
