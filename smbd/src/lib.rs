//! The file-server daemon.
//!
//! ```text
//!  listener ─► connection (one task: socket, buffers, batching)
//!                  │  frames
//!                  ▼
//!               exchange (decrypt, verify, split compounds, answer, sign, seal)
//!                  │  one request at a time, synchronously
//!                  ▼
//!               command::<name> ─► volume (names, opens, sharing, attributes) ─► block-io
//!                              └─► pipe (remote procedures on IPC$)
//! ```
//!
//! A connection is one task that owns its state. Everything that the page cache can answer is
//! answered inline into one output buffer; what must wait is a future that the same task polls,
//! and its answer goes out when it is ready. Tables shared between connections (sessions, nodes)
//! are never held across a wait.

mod accounts;
pub mod admin;
mod census;
mod clients;
mod command;
pub mod config;
mod connection;
mod credits;
pub mod descriptors;
mod dfs;
mod exchange;
pub mod inherit;
mod interfaces;
mod linger;
mod listener;
mod logons;
mod meters;
pub mod network;
mod notices;
mod pipe;
mod recovery;
pub mod sandbox;
mod scrape;
mod server;
mod session;
pub mod supervise;

pub use listener::{Bound, Running, start, start_bound};
pub use server::Server;
