//! Protocol data units of RFC 7143 11: types, parsers, and what writes them.
//!
//! ```text
//!  bytes ─► frame.rs (where one ends, digests) ─► Frame ─► Pdu::read ─► request.rs, response.rs
//!                                                   └─ header (basic.rs), ahs.rs, data (a view)
//! ```
//! Nothing here knows a session. A field that may hold what this crate does not know is kept as
//! the number it is.

pub mod ahs;
mod basic;
pub mod frame;
mod request;
mod response;

pub(crate) use basic::plain;
pub use basic::{Basic, HEADER_LENGTH, Parsed, WireError, field};
pub use frame::{Digests, Frame, Framer, FramingError};
pub use request::{
    DataOut, LoginRequest, LogoutRequest, NopOut, RequestNumbers, ScsiCommand, Snack, TaskRequest,
    TextRequest, function,
};
pub use response::{
    AsyncMessage, DataIn, LoginResponse, LogoutResponse, NopIn, Numbers, R2t, Reject, Residual,
    ScsiResponse, TaskResponse, TextResponse, outcome, reason,
};

/// The tag that stands for none.
pub const NO_TAG: u32 = u32::MAX;

/// The header of any PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the type it holds")]
pub enum Pdu {
    NopOut(NopOut),
    ScsiCommand(ScsiCommand),
    TaskRequest(TaskRequest),
    LoginRequest(LoginRequest),
    TextRequest(TextRequest),
    DataOut(DataOut),
    LogoutRequest(LogoutRequest),
    Snack(Snack),
    NopIn(NopIn),
    ScsiResponse(ScsiResponse),
    TaskResponse(TaskResponse),
    LoginResponse(LoginResponse),
    TextResponse(TextResponse),
    DataIn(DataIn),
    LogoutResponse(LogoutResponse),
    R2t(R2t),
    AsyncMessage(AsyncMessage),
    Reject(Reject),
}

impl Pdu {
    /// Gives a basic header its meaning.
    ///
    /// # Errors
    /// [`WireError::Opcode`] if no PDU has this opcode, [`WireError::Field`] if a field has a value
    /// that no PDU can have.
    pub fn read(basic: &Basic) -> Result<Self, WireError> {
        Ok(match basic.opcode {
            NopOut::OPCODE => Self::NopOut(NopOut::read(basic)),
            ScsiCommand::OPCODE => Self::ScsiCommand(ScsiCommand::read(basic)?),
            TaskRequest::OPCODE => Self::TaskRequest(TaskRequest::read(basic)),
            LoginRequest::OPCODE => Self::LoginRequest(LoginRequest::read(basic)),
            TextRequest::OPCODE => Self::TextRequest(TextRequest::read(basic)),
            DataOut::OPCODE => Self::DataOut(DataOut::read(basic)),
            LogoutRequest::OPCODE => Self::LogoutRequest(LogoutRequest::read(basic)),
            Snack::OPCODE => Self::Snack(Snack::read(basic)?),
            NopIn::OPCODE => Self::NopIn(NopIn::read(basic)),
            ScsiResponse::OPCODE => Self::ScsiResponse(ScsiResponse::read(basic)),
            TaskResponse::OPCODE => Self::TaskResponse(TaskResponse::read(basic)),
            LoginResponse::OPCODE => Self::LoginResponse(LoginResponse::read(basic)),
            TextResponse::OPCODE => Self::TextResponse(TextResponse::read(basic)),
            DataIn::OPCODE => Self::DataIn(DataIn::read(basic)),
            LogoutResponse::OPCODE => Self::LogoutResponse(LogoutResponse::read(basic)),
            R2t::OPCODE => Self::R2t(R2t::read(basic)),
            AsyncMessage::OPCODE => Self::AsyncMessage(AsyncMessage::read(basic)),
            Reject::OPCODE => Self::Reject(Reject::read(basic)),
            other => return Err(WireError::Opcode(other)),
        })
    }

    /// The basic header; its lengths are those of whoever adds data.
    #[must_use]
    pub fn write(&self) -> Basic {
        match self {
            Self::NopOut(it) => it.write(),
            Self::ScsiCommand(it) => it.write(),
            Self::TaskRequest(it) => it.write(),
            Self::LoginRequest(it) => it.write(),
            Self::TextRequest(it) => it.write(),
            Self::DataOut(it) => it.write(),
            Self::LogoutRequest(it) => it.write(),
            Self::Snack(it) => it.write(),
            Self::NopIn(it) => it.write(),
            Self::ScsiResponse(it) => it.write(),
            Self::TaskResponse(it) => it.write(),
            Self::LoginResponse(it) => it.write(),
            Self::TextResponse(it) => it.write(),
            Self::DataIn(it) => it.write(),
            Self::LogoutResponse(it) => it.write(),
            Self::R2t(it) => it.write(),
            Self::AsyncMessage(it) => it.write(),
            Self::Reject(it) => it.write(),
        }
    }

    /// The ExpStatSN that a request brings.
    #[must_use]
    pub fn exp_stat_sn(&self) -> Option<u32> {
        match self {
            Self::DataOut(it) => Some(it.exp_stat_sn),
            Self::Snack(it) => Some(it.exp_stat_sn),
            _ => self.request().map(|sn| sn.exp_stat_sn),
        }
    }

    /// The numbers of a request that has a CmdSN.
    #[must_use]
    pub fn request(&self) -> Option<RequestNumbers> {
        match self {
            Self::NopOut(it) => Some(it.sn),
            Self::ScsiCommand(it) => Some(it.sn),
            Self::TaskRequest(it) => Some(it.sn),
            Self::LoginRequest(it) => Some(it.sn),
            Self::TextRequest(it) => Some(it.sn),
            Self::LogoutRequest(it) => Some(it.sn),
            _ => None,
        }
    }

    /// The sequence numbers of a response, to be filled in when it is sent.
    pub fn numbers(&mut self) -> Option<&mut Numbers> {
        Some(match self {
            Self::NopIn(it) => &mut it.sn,
            Self::ScsiResponse(it) => &mut it.sn,
            Self::TaskResponse(it) => &mut it.sn,
            Self::LoginResponse(it) => &mut it.sn,
            Self::TextResponse(it) => &mut it.sn,
            Self::DataIn(it) => &mut it.sn,
            Self::LogoutResponse(it) => &mut it.sn,
            Self::R2t(it) => &mut it.sn,
            Self::AsyncMessage(it) => &mut it.sn,
            Self::Reject(it) => &mut it.sn,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
