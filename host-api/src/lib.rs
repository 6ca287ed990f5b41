//! The local control API of a VM host: the types both ends speak and a small blocking client.
//!
//! ```text
//!  bulkhead vm … ──► Client ── unix socket, one JSON object a line ──► hyperv-host
//!                      │  Request                    ──►
//!                      │  ◄── Event::Progress*  (while a move runs)
//!                      │  ◄── Event::Done(Reply) or Event::Failed
//!                      │  ◄─► raw bytes after Reply::ConsoleAttached
//! ```
//!
//! Most of the requests are calls of HTTP as well ([`CALLS`]).
//!
//! A connection carries one request at a time. This crate opens nothing but that socket and may
//! be used by anything; of the product it needs `control-socket` alone.

mod calls;
mod client;
mod definition;
mod guest;
pub mod pki;
mod wire;

pub use calls::{CALLS, ONLY_HERE, VmHost};
pub use client::Client;
pub use control_socket::{Call, ClientError};
pub use definition::{
    AfterHostFailure, BootDefinition, ConsoleKind, DefinitionError, DiskDefinition, DiskFormat,
    DiskLimits, FirmwareDefinition, FirmwareKind, MacAddress, NicDefinition, PanicAction,
    VmDefinition, VmId, VmName, WatchdogAction,
};
pub use guest::{AgentState, Consistency, GuestAgent, GuestInterface};
pub use wire::{
    BalloonUsage, DEFAULT_SOCKET, DiskCause, DiskPart, DiskReport, DiskUsage, Event, MAX_LINE,
    MemoryUsage, MoveOptions, MoveProgress, MoveRound, MoveStatistics, Reply, Request, VmDetail,
    VmState, VmSummary, WatchdogUsage, socket_path,
};
