//! A store that several nodes share: etcd, by its API version 3.
//!
//! ```text
//!  EtcdStore ─► one transaction at a time ─┐
//!  cluster   ─► leases, watches ───────────┴─► Client ─► Channel ─► HTTP/2, TLS ─► one member of etcd
//!                                              token      next member when one is silent
//! ```
//!
//! Keys of a store with the name `s`:
//!
//! ```text
//!  s/e         the last epoch of all nodes
//!  s/n/<node>  the node's epoch, and how many of its batches were carried out in it
//!  s/r/<key>   a record: its owner in front of its bytes
//! ```
//!
//! gRPC is one HTTP/2 stream for each call, with a five-byte head in front of each message, so the crate
//! `h2` and messages written down by hand (`wire.rs`) are all that it needs (docs/decisions/etcd.md).

mod channel;
mod client;
mod record;
mod store;
mod tls;
pub mod wire;

pub use self::{
    channel::{CallError, Code},
    client::{Client, KeyWatch, KeyWatchEvent, Settings, TlsFiles},
    store::{EtcdStore, Guard},
};
