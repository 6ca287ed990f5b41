//! SESSION_SETUP (MS-SMB2 2.2.5, 2.2.6).

use nom::Parser;

use crate::{
    flag_set,
    header::{HEADER_LEN, body},
    ids::SessionId,
    parse::{self, region, size16, skip, structure_size, u8, u16, u32, u64},
    wire::{Put, Result, len16},
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

/// SESSION_SETUP request: carries a client's token of authentication (MS-SMB2 2.2.5).
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
    /// Reads the body of a SESSION_SETUP request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, flags, security_mode, capabilities, _, offset, len, previous_session)) = (
                structure_size(25, "session_setup.StructureSize"),
                u8("session_setup.Flags").map(RequestFlags),
                u8("session_setup.SecurityMode"),
                u32("session_setup.Capabilities"),
                skip(4, "session_setup.Channel"),
                size16("session_setup.SecurityBufferOffset"),
                size16("session_setup.SecurityBufferLength"),
                u64("session_setup.PreviousSessionId").map(SessionId),
            )
                .parse(input)?;
            let security_buffer = region(input, offset, len, "session_setup.Buffer")?.bytes();
            let request =
                Self { flags, security_mode, capabilities, previous_session, security_buffer };
            Ok((i, request))
        })
    }

    /// Appends the body of a SESSION_SETUP request to a message that ends with its header.
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

/// SESSION_SETUP response: carries the server's token (MS-SMB2 2.2.6).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response<'a> {
    /// Flags.
    pub flags: SessionFlags,
    /// SPNEGO token.
    pub security_buffer: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body of a SESSION_SETUP response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or a region is outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, flags, offset, len)) = (
                structure_size(9, "session_setup.StructureSize"),
                u16("session_setup.SessionFlags").map(SessionFlags),
                size16("session_setup.SecurityBufferOffset"),
                size16("session_setup.SecurityBufferLength"),
            )
                .parse(input)?;
            let security_buffer = region(input, offset, len, "session_setup.Buffer")?.bytes();
            Ok((i, Self { flags, security_buffer }))
        })
    }

    /// Appends the body of a SESSION_SETUP response to a message that ends with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(9);
        out.put_u16(self.flags.0);
        out.put_u16(len16(HEADER_LEN + 8));
        out.put_u16(len16(self.security_buffer.len()));
        out.put(self.security_buffer);
    }
}
