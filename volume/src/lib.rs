//! A share's folder as Windows sees it: names, opens, sharing, attributes, listings (MS-FSA).
//!
//! ```text
//!  CREATE: a name ─► open::create ─► fs::volume (openat2 BENEATH, case folded) ─► a descriptor
//!                        │
//!                        └► open::table ─► sharing::file   who has it open and how, who caches what
//!                              │                           │ breaks
//!                              ▼                           ▼
//!                        an Open ─► block_io::LocalFile   client::{Client, Clients}
//! ```
//!
//! | folder | holds | may use |
//! | --- | --- | --- |
//! | [`open`] | opens, the table of all of them, what outlives a connection and the server | `sharing`, `fs` |
//! | [`sharing`] | one file as all its openers see it: share modes, oplocks and leases, locks, watches | `fs` |
//! | [`fs`] | the file system: names, attributes, access lists, streams, snapshots | |
//!
//! Nothing here knows a connection, a session or a message: whoever serves clients is known by the two
//! traits of [`client`].

pub mod budget;
pub mod client;
pub mod clock;
#[cfg(any(test, feature = "testing"))]
pub mod faults;
pub mod fs;
pub mod offload_tokens;
pub mod open;
pub mod quoted;
pub mod sharing;
pub mod status;
pub mod users;
pub mod work;
