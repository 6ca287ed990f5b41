//! iSCSI (RFC 7143, RFC 7144): a target that carries SCSI commands to a device, and an initiator
//! (`initiator`) whose logical units are disks; `isns` is how both are found (RFC 4171).
//!
//! ```text
//!   socket ─► driver.rs ─► pdu/ (frames) ─► login.rs ─► text.rs, negotiate.rs, chap.rs
//!                │                            │
//!                │ a lock, never held across  ▼
//!                │ a wait                   session/ ── commands, functions, recovery, exchange
//!                ▼                            ▲
//!            scsi::Device ── how it ended ────┘
//! ```
//! `pdu`, `text`, `negotiate`, `chap`, `login` and `session` know neither sockets nor a clock nor a
//! runtime: bytes and times go in, bytes and commands come out. `driver.rs`, `join.rs` and
//! `server.rs` are around them, `target.rs` is what connections of a target have in common, `config.rs` what an
//! administrator says of it, `task_sets.rs` the order of tasks over sessions.
#![forbid(unsafe_code)]

pub mod budget;
pub mod chap;
pub mod config;
mod driver;
pub mod initiator;
pub mod isns;
mod join;
pub mod login;
pub mod negotiate;
pub mod pdu;
mod server;
pub mod session;
mod target;
pub mod task_sets;
pub mod text;

pub use server::{Guard, Permit, Presence, Service, ServiceConfig};
pub use target::SessionInfo;
