//! The local control API of a file server: the types both ends speak and a small blocking client.
//!
//! ```text
//!  bulkhead server … ──► Client ── unix socket, one JSON object a line ──► smbd
//!  bulkhead share …        │  Request           ──►
//!                          │  ◄── Event::Done(Reply) or Event::Failed
//! ```
//!
//! The same requests are calls of HTTP ([`CALLS`]): one table says which, for the server, for the tool
//! that asks from afar, and for the description of the interface.
//!
//! The socket is `admin.sock` in the server's state folder; only its owner may use it. A
//! connection carries one request at a time. This crate opens nothing but that socket and may be
//! used by anything; of the product it needs `control-socket` alone.

mod calls;
mod client;
mod declared;
mod why;
mod wire;

pub use calls::{CALLS, Server};
pub use client::Client;
pub use control_socket::{Call, ClientError, Found, HttpCall, Method, Role, find};
pub use declared::{Action, Declared, Object, ObjectChange, ObjectKind};
pub use why::{HistoryPoint, Span, WhyCause, WhyPhase, WhyReport};
pub use wire::{
    Event, LockInfo, LunInfo, MAX_LINE, OpenInfo, Reply, Request, SOCKET, SessionInfo, ShareInfo,
    Status, Target, TargetInfo, TargetSession, WitnessClient, WitnessNode,
};
