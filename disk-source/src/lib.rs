//! From the location of a disk to the open disk: the one place that knows locations, logins and
//! formats together.
//!
//! ```text
//!  location ── Source::prepare ──► Prepared ── open ──► Disk ◄── its parents (read only)
//!      │                                         ▲
//!      │  local path: LocalFile                  └── change tracking beside the image
//!      │  smb://…:    RemoteFile, one session for the image and what is beside it
//!      └── Source::open ──► File
//! ```
//!
//! Modules: [`location`] what a location says, [`servers`] who a program is to a file server,
//! [`claim`] what an opener does and leaves to others, [`parents`] the files that an image may name,
//! [`source`](mod@source) what opens.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

pub mod claim;
mod error;
pub mod location;
pub mod parents;
pub mod servers;
pub mod source;

pub use claim::Claim;
pub use error::{Error, Result};
pub use location::Location;
pub use parents::{ParentRule, Parents};
pub use servers::{Configured, Server, Servers};
pub use source::{Damaged, Named, Prepared, Source, tracking_of};
