//! Who is at the other end of a connection, and how its messages are protected (MS-RPCE 3.3.1.5.2).
//!
//! ```text
//!  bind ─► Host::logon ─► Logon ─ leg ─► bind ack
//!  alter context, auth3 ─► ─ leg ─ … ─► Secured: who it is, the context that signs and seals
//! ```
//!
//! [`Logon`] is one authentication at the server, whatever the mechanism; [`Acceptance`] is the one
//! that NTLM, Kerberos and SPNEGO of `smb-protocol` give.

mod acceptance;

use smb_protocol::{gss, open_enum};

pub use self::acceptance::{Acceptance, Accounts};
use crate::pdu::{CALL_HEADER_LEN, TRAILER_LEN, Verifier};

open_enum! {
    /// `auth_type`: by what a client proves who it is (MS-RPCE 2.2.1.1.7).
    AuthType: u8 {
        /// SPNEGO, which chooses one of the others.
        NEGOTIATE = 9,
        /// NTLM alone.
        NTLM = 10,
        /// Kerberos alone.
        KERBEROS = 16,
    }
}

/// `auth_level`: how far messages are protected (MS-RPCE 2.2.1.1.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not at all, once the client is known.
    Connect = 2,
    /// They are signed.
    Integrity = 5,
    /// They are signed, and their bodies sealed.
    Privacy = 6,
}

impl Level {
    /// The level of a number; `None` for those that are not spoken.
    pub fn new(number: u8) -> Option<Self> {
        [Self::Connect, Self::Integrity, Self::Privacy].into_iter().find(|it| *it as u8 == number)
    }
}

/// Why a client is not let in; who refuses has said so where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the logon is refused")]
pub struct Refused;

/// What comes of a token.
#[derive(Debug)]
pub enum Leg {
    /// This token is sent, and another is to come.
    More(Vec<u8>),
    /// The client is known.
    Done {
        /// Last token to send; may be empty.
        token: Vec<u8>,
        /// Who it is, as the server names its users.
        user: String,
        /// What protects its messages; `None` if the mechanism gave nothing.
        context: Option<gss::Context>,
    },
}

/// One authentication at the server.
pub trait Logon: Send {
    /// Takes a client's token.
    ///
    /// # Errors
    /// [`Refused`]: the exchange is over.
    fn leg(&mut self, token: &[u8]) -> Result<Leg, Refused>;
}

/// What a connection asks of the server that it belongs to.
pub trait Host {
    /// The association group of a client that wants to join `wanted`; 0 asks for a new one
    /// (MS-RPCE 3.3.1.5.7).
    fn group(&mut self, wanted: u32) -> u32;
    /// Begins an authentication; `None` if its kind is not spoken.
    fn logon(&mut self, kind: AuthType) -> Option<Box<dyn Logon>>;
}

/// Who calls, and how the call came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is, as the server names its users.
    pub user: String,
    /// How its messages are protected.
    pub level: Level,
    /// By what it has proved who it is.
    pub kind: AuthType,
}

/// An established security context of a connection (MS-RPCE 3.3.1.5.2.2).
#[derive(Debug)]
pub struct Secured {
    /// `auth_type`.
    pub kind: AuthType,
    /// How messages are protected.
    pub level: Level,
    /// `auth_context_id`.
    pub id: u32,
    /// Headers and `sec_trailer` are signed, too.
    pub header_signing: bool,
    /// What signs and seals. There is one at the levels that need it.
    pub context: Option<gss::Context>,
}

impl Secured {
    fn seals(&self) -> bool {
        self.level == Level::Privacy
    }

    fn verifier(&self) -> Verifier<'static> {
        Verifier { kind: self.kind.0, level: self.level as u8, context: self.id, token: &[] }
    }

    /// The context that protects messages, if the level asks for that.
    fn protecting(&self) -> Option<&gss::Context> {
        self.context.as_ref().filter(|_| self.level >= Level::Integrity)
    }

    /// Most bytes of stub in a fragment of at most `fragment` bytes: a multiple of 16.
    pub fn room(&self, fragment: usize) -> usize {
        let signature = self.protecting().map_or(0, |it| it.signature_len(self.seals()));
        let around = CALL_HEADER_LEN + TRAILER_LEN + signature;
        fragment.saturating_sub(around).max(16) & !15
    }

    /// Protects a request or response, which is whole but for its authentication data.
    pub fn protect(&mut self, message: &mut Vec<u8>) {
        let (seal, verifier) = (self.seals(), self.verifier());
        let Some(len) = self.protecting().map(|it| it.signature_len(seal)) else { return };
        verifier.announce(message, CALL_HEADER_LEN, len);
        let body = CALL_HEADER_LEN..message.len() - TRAILER_LEN;
        let Some(context) = &mut self.context else { return };
        let signature = match self.header_signing {
            true => context.protect(message, body, seal),
            false => {
                let body = &mut message[body];
                let whole = 0..body.len();
                context.protect(body, whole, seal)
            }
        };
        message.extend_from_slice(&signature);
    }

    /// Checks a request or response with its authentication data, and opens its body in place, which
    /// begins at `header`. Gives where the body ends.
    ///
    /// # Errors
    /// The message has no place for what it should have, or was changed.
    pub fn open(
        &mut self,
        message: &mut [u8],
        header: usize,
        token: usize,
    ) -> Result<usize, gss::Error> {
        let seal = self.seals();
        let at = message.len().checked_sub(token + TRAILER_LEN).filter(|at| *at >= header);
        let at = at.ok_or(gss::Error::Malformed)?;
        if self.level >= Level::Integrity {
            let context = self.context.as_mut().ok_or(gss::Error::NotNegotiated("signing"))?;
            let (signed, signature) = message.split_at_mut(at + TRAILER_LEN);
            match self.header_signing {
                true => context.open(signed, header..at, seal, signature)?,
                false => context.open(&mut signed[header..at], 0..at - header, seal, signature)?,
            }
        }
        let filling = usize::from(message[at + 2]);
        at.checked_sub(filling).filter(|end| *end >= header).ok_or(gss::Error::Malformed)
    }
}
