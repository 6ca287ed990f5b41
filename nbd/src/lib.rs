//! A server for the NBD protocol: any [`Disk`] as a block device for qemu, nbd-client, fio.
//!
//! ```text
//!  client ═► handshake (fixed newstyle: LIST, INFO, GO, …) ─► Chosen export
//!              │
//!              ▼
//!         transmission: requests ─► Device (any byte range) ─► Disk (whole sectors)
//!              ▲                        │
//!              └──── replies, as they are done ◄──┘
//! ```
//!
//! The protocol is the one of the NBD project's `doc/proto.md`, named below as "proto.md" with the
//! title of the section. There is no encryption and no authentication in it: serve on a Unix socket
//! or on loopback.
//!
//! What a client can make grow is bounded: an option by [`wire::MAX_OPTION`], a request by
//! [`wire::MAX_REQUEST`], and what is under way by [`transmission::MAX_IN_FLIGHT`].

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

mod device;
mod handshake;
pub mod transmission;
pub mod wire;

use std::sync::Arc;

use block_io::Disk;
use tokio::io::{AsyncRead, AsyncWrite};

pub use device::Device;

/// A disk under a name.
#[derive(Debug, Clone)]
pub struct Export {
    /// What clients call it; empty for the one they get when they name none.
    pub name: String,
    /// Shown to those who list exports.
    pub description: String,
    /// The disk that clients of the export have.
    pub device: Arc<Device>,
}

impl Export {
    /// Offers `disk`; nothing is written if it, or the export, is read-only.
    pub fn new(name: impl Into<String>, disk: Arc<dyn Disk>, read_only: bool) -> Self {
        let device = Arc::new(Device::new(disk, read_only));
        Self { name: name.into(), description: String::new(), device }
    }
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection to the client failed.
    #[error("socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The client broke the protocol in a way that has no answer.
    #[error("{0}")]
    Protocol(&'static str),
}

/// Serves one client until it leaves. What it had written without a flush is left to the disk.
///
/// # Errors
/// [`Error`] when the client or the connection breaks off; an orderly end is none.
pub async fn serve<S>(mut stream: S, exports: &[Export]) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match handshake::negotiate(&mut stream, exports).await? {
        Some(session) => transmission::serve(stream, session).await,
        None => Ok(()),
    }
}
