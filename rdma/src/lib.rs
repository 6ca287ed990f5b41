//! SMB Direct (MS-SMBD): messages over RDMA, and data straight into the other side's memory, on any
//! network.
//!
//! ```text
//!  who sends and receives messages (a server's transport, a client's stream)
//!      │ send, receive, read, write, register
//!      ▼
//!  connection   a task: whatever the engine wants is posted, whatever completes is told to it
//!      │                    │
//!      ▼                    ▼
//!  smbd                 provider ── in_process   two ends in one process
//!  credits, fragments,      └────── iwarp        MPA, DDP and RDMAP over a TCP socket, in user space
//!  keep-alive; no I/O
//!                       memory      what the other side may touch, and how much of it
//! ```
//!
//! Imports point down: `smbd` and `memory` know nobody, `provider` knows `memory`, the providers know
//! `provider`, and only `connection` knows both sides. Nothing here knows SMB's messages.
//!
//! All lengths are in bytes. What a peer can make grow is bounded: messages by the receives that were
//! posted, fragments by `MaxFragmentedSize`, reads under way by the depth that was agreed on.

pub mod connection;
pub mod in_process;
pub mod iwarp;
pub mod memory;
pub mod provider;
pub mod smbd;

pub use connection::{Connection, Handle};
pub use memory::{Memory, Part};
pub use provider::{Endpoint, Lost};
pub use smbd::{Agreed, Parameters};
