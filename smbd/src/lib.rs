//! The file-server daemon: what is around the SMB server (`smb-server`) in its process.
//!
//! ```text
//!  main ─► config ─► supervise (keeps the ports, starts the server again)
//!              └───► sandbox ─► listener ─► smb_server::connection (one task each)
//!                                  ├─ witness what clients are told of other nodes
//!                                  ├─ control the admin socket, and the interface over HTTP
//!                                  ├─ scrape  the metrics page
//!                                  └─ observe why: figures and causes; history: thirty days of figures
//!  main ─► cluster (a node of several: a process for each role it owns, as above)
//! ```

pub mod admin;
mod changes;
pub mod cluster;
pub mod control;
pub mod declared;
pub mod history;
pub mod inherit;
pub mod iscsi;
mod listener;
pub mod observe;
pub mod parts;
pub mod sandbox;
pub mod schema;
pub mod scrape;
pub mod supervise;
pub mod why;
pub mod witness;

pub use listener::{Beside, Bound, Running, start, start_bound};
pub use smb_server::{Server, config, descriptors};
