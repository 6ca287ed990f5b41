//! iWARP in user space: MPA (RFC 5044, 6581), DDP (RFC 5041) and RDMAP (RFC 5040) over any TCP socket.
//!
//! ```text
//!  startup.rs    the two frames that begin a connection: what both ends want and can
//!  framing.rs    FPDUs: length, padding, CRC
//!  segment.rs    headers of DDP and RDMAP
//!  terminate.rs  the message that says what was wrong
//!      ▼
//!  protocol.rs   one end without a socket: what is posted and what comes in, bytes and completions out
//!   ├ incoming.rs   what comes, and what it may touch
//!   └ outgoing.rs   what goes, cut into FPDUs
//!      ▼
//!  endpoint.rs   the socket around it: a provider
//! ```
//!
//! The peer may be a network card, Linux' siw, or this. Nothing is encrypted here, as on a card.

mod endpoint;
mod framing;
mod incoming;
mod outgoing;
mod protocol;
mod segment;
mod startup;
mod terminate;
#[cfg(test)]
mod tests;

pub use endpoint::{Iwarp, accept, connect};
pub use framing::{Frame, Framing, MOST_ULPDU};
pub use protocol::{Agreement, Protocol};
pub use segment::{Opcode, Segment};
pub use startup::{
    Frame as StartupFrame, KEY_REPLY, KEY_REQUEST, Kind, MOST_PRIVATE, Malformed, ReadyToReceive,
};
pub use terminate::Terminate;

/// The port of SMB Direct over iWARP (MS-SMBD 1.9).
pub const PORT: u16 = 5445;

/// What one end of a connection wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether frames are to have a CRC32C. If one end wants it, both use it.
    pub crc: bool,
    /// The revision of MPA that is asked for: 1, or 2 with the depths of reads. Both are answered.
    pub revision: u8,
    /// Who connects asks for the model of two peers, and says with which frame it would make the
    /// connection ready (RFC 6581 9); `None` for the model of client and server.
    pub peer_to_peer: Option<ReadyToReceive>,
    /// RDMA reads of the peer that are under way at once, at most.
    pub incoming_reads: u16,
    /// RDMA reads of ours that are under way at once, at most.
    pub outgoing_reads: u16,
    /// The longest frame that is sent, in bytes; `None` for what a TCP segment holds.
    pub frame: Option<usize>,
    /// How long the peer may take for the first two frames.
    pub startup: std::time::Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            crc: false,
            revision: 2,
            peer_to_peer: None,
            incoming_reads: 32,
            outgoing_reads: 32,
            frame: None,
            startup: std::time::Duration::from_secs(5),
        }
    }
}
