//! Wire types and codecs of SMB 2 and 3: no sockets, no runtime, no clock.
//!
//! ```text
//!  bytes ─► frame ─► header ─► msg::<command>::Request ─► (engine) ─► msg::<command>::Response ─► bytes
//!                                   │
//!                                   └── fscc: what file systems say (information classes, FSCTLs)
//! ```
//!
//! Every message has `parse` and `encode` for both roles, so that server, client and tests share
//! one definition. `crypto` signs and seals, `ntlm`, `kerberos` and `spnego` authenticate; [`parse`]
//! has the combinators that all of it is read by. A parser is total: any input gives a value or a
//! typed error, and no allocation is sized by a length that was not checked against the bytes at
//! hand. Values the peer chooses from an enumeration stay open (unknown values are kept).
#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod compression;
pub mod crypto;
pub mod dfs;
pub mod fscc;
pub mod gss;
pub mod header;
pub mod ids;
pub mod kerberos;
pub mod msg;
pub mod name;
pub mod ntlm;
pub mod parse;
pub mod security;
pub mod spnego;
pub mod status;
#[cfg(feature = "testing")]
pub mod testing;
mod upcase;
pub mod wire;

pub use header::{Command, Dialect, Header, HeaderFlags};
pub use ids::{FileId, MessageId, SessionId, TreeId};
pub use status::NtStatus;
pub use wire::WireError;
