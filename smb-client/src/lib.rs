//! A pipelined SMB 2.1–3.1.1 client for virtual-disk files.
//!
//! ```text
//!  RemoteFile (block_io::File) ─► Open ─┐        ┌─► supervisor: reconnect, open handles again
//!  Tree: open, stat, list, rename … ────┼► Session ┤
//!                                       │        └─► Link ─► channels ─► Connection ═══ wire ═══ server
//!                                       │             (one or several)  │
//!                                       │                      │  callers encode, sign and seal
//!                                       │                      ├─ writer task: one send per batch
//!                                       │                      └─ reader task: verify, open, answer
//!  bench ─► raw::RawConnection ─────────┘ (same handshake, a blocking socket, no tasks)
//! ```
//!
//! - [`Client::connect`] gives a [`Session`], [`Session::tree`] a [`Tree`], [`Tree::open`] a
//!   [`RemoteFile`].
//! - Many requests are in flight at once, limited by the server's credits; large reads and
//!   writes are split and merged.
//! - A session may have several connections ([`ConnectOptions::max_channels`]), over all paths
//!   to the server; requests are spread over them, and what a lost one had under way is repeated
//!   on another so that the server carries it out once.
//! - When the last connection is lost, the session is set up again for as long as
//!   [`ConnectOptions::reconnect_timeout`] says; durable opens are taken up again and what was in
//!   flight is sent again. An open that the server has lost while acknowledged writes were not
//!   yet flushed gives [`Error::WritesLost`] from then on: nothing is lost silently.
//! - On a share of a cluster another node tells at once when the one in use is gone, or where to go
//!   instead ([`ConnectOptions::witness`]).
//! - Servers are reached by TCP, by SMB Direct ([`Direct`]), or by what another [`Network`] puts in its
//!   place.
//! - [`SmbUrl`] reads `smb://` addresses; passwords come from the environment, a file or the
//!   program, never from an address.

#![warn(clippy::missing_errors_doc)]

mod channel_group;
mod channels;
mod compress;
mod connection;
mod credentials;
mod crypt;
mod direct;
mod error;
mod file;
mod handshake;
mod open;
mod options;
mod path;
pub mod raw;
mod reconnect;
mod redial;
mod request;
mod rules;
mod session;
mod tree;
mod url;
mod wire;
mod witness;

pub use credentials::{CredentialsError, Login};
pub use direct::{DIRECT_PORT, Direct};
pub use error::{Error, Result};
pub use file::RemoteFile;
pub use options::{
    Compress, ConnectOptions, Create, Encryption, Instance, OpenOptions, Rdma, Share, Signing,
    Witness, parse_dialect,
};
pub use reconnect::Client;
#[cfg(feature = "testing")]
pub use rules::Rule;
pub use session::Session;
pub use tree::{DirEntry, Metadata, Tree};
pub use url::{SmbUrl, UrlError};
pub use wire::{Dialled, Network, Stream};
