//! Several nodes that serve one thing at a time: who is there, who owns what, and that never two do.
//!
//! ```text
//!  etcd ─► view (the records) ─► engine (events in, effects out) ─► transactions ─► etcd
//!                                   │  placement: which node        leases, renewals
//!                                   ▼
//!                 driver: clock, etcd, and a Runner that starts and stops what a role is
//! ```
//!
//! What is served together is a role. Its owner stands in one record of etcd that changes by transactions;
//! a node owns nothing longer than its lease lives, and stops by itself before that is over. The engine
//! has neither clock nor socket, so `simulation` plays thousands of histories of it.
//!
//! This crate knows no protocol and no file: what a role is, is its runner's.

pub mod admin;
pub mod config;
pub mod driver;
pub mod engine;
mod events;
pub mod placement;
mod pulse;
pub mod record;
mod rules;
#[cfg(test)]
mod simulation;
mod transaction;
pub mod validate;
pub mod view;
pub mod watch;
