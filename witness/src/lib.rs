//! The witness service (MS-SWN): a client that uses one node of a cluster has another node tell it when
//! the first is gone, or where it should go instead, long before a connection would time out.
//!
//! ```text
//!  client ══ SMB ══════════════════════════ node A
//!     └───── RPC, AsyncNotify pending ────► node B: Engine ◄── Cluster's view (nodes, addresses, states)
//!                ◄── A is unavailable ─────────┘        ◄── an administrator (move)
//! ```
//!
//! [`message`] has the calls, [`notice`] what clients are told, [`view`] what the cluster looks like,
//! [`engine`] the server's side. There is no I/O and no clock here: calls, changes and the time are
//! given, and answers come out. Versions 1 and 2 are spoken.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod engine;
pub mod message;
pub mod notice;
pub mod view;

pub use engine::{Engine, Limits, Outcome};
pub use message::{Reply, Request};
pub use notice::Notice;
pub use view::{Cluster, Floating, Node, NodeState, View};

use dce_rpc::SyntaxId;
use smb_protocol::open_enum;

/// The interface (MS-SWN 1.9).
pub const INTERFACE: SyntaxId = SyntaxId::new(
    0xccd8_c074,
    0xd0e5,
    0x4a40,
    [0x92, 0xb4, 0xd0, 0x74, 0xfa, 0xa6, 0xba, 0x28],
    1,
    1,
);

open_enum! {
    /// What a call came to: Win32 codes (MS-ERREF 2.2).
    Status: u32 {
        /// `ERROR_SUCCESS`.
        SUCCESS = 0,
        /// `ERROR_ACCESS_DENIED`.
        ACCESS_DENIED = 5,
        /// `ERROR_INVALID_PARAMETER`.
        INVALID_PARAMETER = 0x57,
        /// `ERROR_NO_MORE_ITEMS`.
        NO_MORE_ITEMS = 0x103,
        /// `ERROR_NOT_FOUND`.
        NOT_FOUND = 0x490,
        /// `ERROR_REVISION_MISMATCH`.
        REVISION_MISMATCH = 0x51a,
        /// `ERROR_NO_SYSTEM_RESOURCES`.
        NO_SYSTEM_RESOURCES = 0x5aa,
        /// `ERROR_TIMEOUT`.
        TIMEOUT = 0x5b4,
        /// `ERROR_INVALID_STATE`.
        INVALID_STATE = 0x139f,
    }
}

open_enum! {
    /// A version of the protocol (MS-SWN 1.7).
    Version: u32 {
        /// Of Windows 8 and Windows Server 2012.
        V1 = 0x0001_0001,
        /// With shares, addresses and a time-out.
        V2 = 0x0002_0000,
    }
}
