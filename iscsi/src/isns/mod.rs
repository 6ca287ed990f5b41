//! The storage name service (iSNS, RFC 4171), as its clients use it: a target server registers its
//! targets and portals, and an initiator asks which targets it may use.
//!
//! ```text
//!  Registration ─► register ─► at the server for its Registration Period ─► keep … keep ─► deregister
//!                     ▲                                                        │
//!                     └── the server knows nothing of it (restarted, expired) ─┘
//! ```
//! One connection for each exchange: a server may be asked once in an hour.

mod client;
pub mod message;

pub use client::{
    IsnsError, Node, Registration, deregister, discover, keep, read_targets, register,
};

/// The port of servers (RFC 4171 2.9.1).
pub const PORT: u16 = 3205;
