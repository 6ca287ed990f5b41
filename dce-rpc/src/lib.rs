//! DCE/RPC without I/O: the messages of an association and the data in them (C706 chapters
//! 12 and 14, MS-RPCE).
//!
//! ```text
//!  pipe bytes ─► Pdu::split ─► bind, request, … ─► stub ─► ndr::Reader ─► parameters
//!  pipe bytes ◄─ fragments ◄── response, fault  ◄─ stub ◄─ ndr::Writer ◄─ results
//! ```
//!
//! [`pdu`] has the messages, [`ndr`] the 32-bit transfer syntax NDR, [`association`] the server's
//! side of one association. What the interfaces mean is the server's. The crate uses of `smb-protocol`
//! what both have on the wire: numbers, text and SIDs.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod association;
pub mod ndr;
pub mod pdu;

use std::fmt;

pub use association::{Association, Broken, Call};

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

    /// Whether it offers features at bind time (MS-RPCE 3.3.1.5.3) and is no transfer syntax.
    pub fn is_feature_negotiation(&self) -> bool {
        self.uuid[..8] == [0x2c, 0x1c, 0xb7, 0x6c, 0x12, 0x98, 0x40, 0x45]
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
        /// Too much.
        OUT_OF_MEMORY = 0x1c00_001b,
    }
}
