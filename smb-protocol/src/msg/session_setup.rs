//! SESSION_SETUP (MS-SMB2 2.2.5, 2.2.6).

use crate::{
    flag_set,
    header::HEADER_LEN,
    ids::SessionId,
    wire::{Put, Reader, Result, body_region, len16},
};

flag_set! {
    /// `Flags` of the request.
    RequestFlags: u8 {
        /// Bind this connection to an existing session.
        BINDING = 1,
    }
}

flag_set! {
    /// `SessionFlags` of the response.
    SessionFlags: u16 {
        /// Logged in as guest.
        IS_GUEST = 1,
        /// Logged in anonymously.
        IS_NULL = 2,
        /// All messages must be encrypted.
        ENCRYPT_DATA = 4,
    }
}

/// SESSION_SETUP request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// Flags.
    pub flags: RequestFlags,
    /// Whether the client signs (low byte of [`super::negotiate::SecurityMode`]).
    pub security_mode: u8,
    /// Client capabilities.
    pub capabilities: u32,
    /// Session of an earlier connection that this one replaces.
    pub previous_session: SessionId,
    /// SPNEGO token.
    pub security_buffer: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(25, "session_setup.StructureSize")?;
        let flags = RequestFlags(r.u8("session_setup.Flags")?);
        let security_mode = r.u8("session_setup.SecurityMode")?;
        let capabilities = r.u32("session_setup.Capabilities")?;
        r.skip(4, "session_setup.Channel")?;
        let offset = r.u16("session_setup.SecurityBufferOffset")?.into();
        let len = r.u16("session_setup.SecurityBufferLength")?.into();
        let previous_session = SessionId(r.u64("session_setup.PreviousSessionId")?);
        let security_buffer = body_region(&r, offset, len, "session_setup.Buffer")?;
        Ok(Self { flags, security_mode, capabilities, previous_session, security_buffer })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(25);
        out.put_u8(self.flags.0);
        out.put_u8(self.security_mode);
        out.put_u32(self.capabilities);
        out.put_u32(0);
        out.put_u16(len16(HEADER_LEN + 24));
        out.put_u16(len16(self.security_buffer.len()));
        out.put_u64(self.previous_session.0);
        out.put(self.security_buffer);
    }
}

/// SESSION_SETUP response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// Flags.
    pub flags: SessionFlags,
    /// SPNEGO token.
    pub security_buffer: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(9, "session_setup.StructureSize")?;
        let flags = SessionFlags(r.u16("session_setup.SessionFlags")?);
        let offset = r.u16("session_setup.SecurityBufferOffset")?.into();
        let len = r.u16("session_setup.SecurityBufferLength")?.into();
        let security_buffer = body_region(&r, offset, len, "session_setup.Buffer")?;
        Ok(Self { flags, security_buffer })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(9);
        out.put_u16(self.flags.0);
        out.put_u16(len16(HEADER_LEN + 8));
        out.put_u16(len16(self.security_buffer.len()));
        out.put(self.security_buffer);
    }
}
