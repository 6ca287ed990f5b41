//! From the location of a disk to the open disk: the one place that knows locations, logins and
//! formats together.
//!
//! ```text
//!  location ── Source::prepare ──► Prepared ── open ──► Disk ◄── its parents (read only)
//!      │                                         ▲
//!      │  local path: LocalFile                  └── change tracking beside the image
//!      │  smb://…:    RemoteFile, one session for the image and what is beside it
//!      │  iscsi://…:  IscsiDisk, and the same as a file
//!      └── Source::open ──► File
//! ```
//!
//! Modules: [`location`] what a location says, [`servers`] who a program is to a file server,
//! `chap_login` and `lun` the same for iSCSI targets, `lun_file` a logical unit as a file,
//! [`lun_owner`] what keeps its writers apart,
//! [`claim`] what an opener does and leaves to others, [`parents`] the files that an image may name,
//! [`source`](mod@source) what opens.

#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

mod chap_login;
pub mod claim;
mod error;
mod iscsi_url;
pub mod location;
mod lun;
mod lun_file;
pub mod lun_owner;
pub mod parents;
pub mod servers;
pub mod source;

pub use chap_login::{ChapLogin, ChapLoginError};
pub use claim::Claim;
pub use error::{Error, Result};
pub use iscsi::initiator::{DiscoveredPortal, DiscoveredTarget};
pub use iscsi_url::{IscsiUrl, IscsiUrlError, portal};
pub use location::Location;
pub use lun::{IscsiTimes, discover, initiator_name};
pub use parents::{ParentRule, Parents};
pub use servers::{Configured, Server, Servers};
pub use source::{Damaged, Named, Prepared, Source, format_of, is_lun, tracking_of};
