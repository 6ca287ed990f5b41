//! DCE/RPC without I/O: the messages of an association and the data in them (C706 chapters
//! 12 and 14, MS-RPCE).
//!
//! ```text
//!  bytes ─► Pdu::split ─► security (verify, open) ─► bind, request, … ─► stub ─► ndr::Reader ─► parameters
//!  bytes ◄─ fragments ◄── security (sign, seal) ◄─── response, fault  ◄─ stub ◄─ ndr::Writer ◄─ results
//! ```
//!
//! [`pdu`] has the messages, [`ndr`] the transfer syntaxes NDR and NDR64, [`association`] the server's
//! side of one connection with who is at its other end ([`security`]), [`pipe`] that of a named pipe,
//! [`client`] the client's side, [`epm`] the endpoint mapper. What the interfaces mean is the server's.
//! The crate uses of `smb-protocol` what both have on the wire: numbers, text, SIDs and authentication.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod association;
pub mod client;
pub mod epm;
pub mod ndr;
pub mod pdu;
pub mod pipe;
pub mod security;

use std::fmt;

pub use association::{Association, Broken, Call};
pub use pipe::PipeEnd;

/// How parameters are represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transfer {
    /// NDR, with pointers and counts of 4 bytes.
    #[default]
    Ndr,
    /// NDR64, with pointers and counts of 8 bytes.
    Ndr64,
}

impl Transfer {
    /// By what it is named when it is negotiated.
    pub const fn syntax(self) -> SyntaxId {
        match self {
            Self::Ndr => SyntaxId::NDR,
            Self::Ndr64 => SyntaxId::NDR64,
        }
    }

    /// Length of a pointer or count in bytes.
    pub const fn wide(self) -> usize {
        match self {
            Self::Ndr => 4,
            Self::Ndr64 => 8,
        }
    }
}

/// An interface or transfer syntax: UUID in wire order, major and minor version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SyntaxId {
    /// UUID as its fields stand on the wire, little-endian.
    pub uuid: [u8; 16],
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

impl SyntaxId {
    /// From the fields of a UUID as it is written.
    pub const fn new(a: u32, b: u16, c: u16, d: [u8; 8], major: u16, minor: u16) -> Self {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let uuid = [
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ];
        Self { uuid, major, minor }
    }

    /// NDR with 32-bit pointers (C706 14, MS-RPCE 2.2.4.12).
    pub const NDR: Self = Self::new(
        0x8a88_5d04,
        0x1ceb,
        0x11c9,
        [0x9f, 0xe8, 0x08, 0x00, 0x2b, 0x10, 0x48, 0x60],
        2,
        0,
    );

    /// NDR64 (MS-RPCE 2.2.5.1).
    pub const NDR64: Self = Self::new(
        0x7171_0533,
        0xbeba,
        0x4937,
        [0x83, 0x19, 0xb5, 0xdb, 0xef, 0x9c, 0xcc, 0x36],
        1,
        0,
    );

    /// What offers features at bind time in the place of a transfer syntax (MS-RPCE 3.3.1.5.3).
    pub const fn features(features: Features) -> Self {
        Self::new(0x6cb7_1c2c, 0x9812, 0x4540, [features.0, 0, 0, 0, 0, 0, 0, 0], 1, 0)
    }

    /// The features that it offers at bind time, if it does and is no transfer syntax.
    pub fn offered_features(&self) -> Option<Features> {
        let prefix = self.uuid[..8] == [0x2c, 0x1c, 0xb7, 0x6c, 0x12, 0x98, 0x40, 0x45];
        prefix.then_some(Features(self.uuid[8]))
    }

    /// Whether who serves this interface serves who asks for that one: the same interface and major
    /// version, and a minor version that is not newer.
    pub fn serves(&self, wanted: &Self) -> bool {
        self.uuid == wanted.uuid && self.major == wanted.major && self.minor >= wanted.minor
    }
}

impl fmt::Debug for SyntaxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let u = &self.uuid;
        let a = u32::from_le_bytes([u[0], u[1], u[2], u[3]]);
        let (b, c) = (u16::from_le_bytes([u[4], u[5]]), u16::from_le_bytes([u[6], u[7]]));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{:02x}{:02x}-", u[8], u[9])?;
        u[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, " v{}.{}", self.major, self.minor)
    }
}

smb_protocol::open_enum! {
    /// Status of a fault (C706 appendix E, MS-ERREF).
    FaultStatus: u32 {
        /// No such operation.
        OP_RANGE = 0x1c01_0002,
        /// No such interface.
        UNKNOWN_INTERFACE = 0x1c01_0003,
        /// A message at the wrong time.
        PROTOCOL_ERROR = 0x1c01_000b,
        /// A context handle that is not there.
        CONTEXT_MISMATCH = 0x1c00_001a,
        /// Parameters that are none.
        BAD_STUB = 0x0000_06f7,
        /// Not allowed.
        ACCESS_DENIED = 0x0000_0005,
        /// The logon, or the protection of a message, is wrong (`RPC_S_SEC_PKG_ERROR`).
        SECURITY = 0x0000_0721,
        /// The caller has given the call up (`RPC_S_CALL_CANCELLED`).
        CANCELLED = 0x0000_071a,
        /// Too much.
        OUT_OF_MEMORY = 0x1c00_001b,
    }
}

smb_protocol::flag_set! {
    /// Features that are negotiated at bind time (MS-RPCE 2.2.2.14, 2.2.2.15).
    Features: u8 {
        /// Several security contexts on one connection.
        SECURITY_CONTEXT_MULTIPLEXING = 1,
        /// The connection stays when a call is orphaned.
        KEEP_CONNECTION_ON_ORPHAN = 2,
    }
}
