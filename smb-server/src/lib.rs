//! The SMB server: from frames to answers (MS-SMB2 3.3), without the program around it.
//!
//! ```text
//!  transport (TCP: the socket, what comes from it put together)
//!      │  messages
//!      ▼
//!  connection (one task: batching of answers, what waits)
//!      │  messages
//!      ▼
//!  exchange (decrypt, verify, split compounds, answer, sign, seal)
//!      │  one request at a time, synchronously
//!      ▼
//!  command::<name> ─► volume (names, opens, sharing, attributes) ─► block-io
//!                 └─► rpc (remote procedures on IPC$)
//! ```
//!
//! A connection is one task that owns its state. Everything that the page cache can answer is
//! answered inline into one output buffer; what must wait is a future that the same task polls,
//! and its answer goes out when it is ready. Tables shared between connections (sessions, files)
//! are never held across a wait.

mod breaks;
pub mod census;
mod command;
pub mod config;
pub mod connection;
pub mod descriptors;
mod dfs;
mod dropped;
mod exchange;
mod ids;
pub mod interfaces;
pub mod logons;
pub mod meters;
mod recovery;
mod rpc;
mod server;
pub mod session;
pub mod transport;
pub mod why_not_rdma;

#[cfg(feature = "testing")]
pub use exchange::testing;
pub use server::Server;
