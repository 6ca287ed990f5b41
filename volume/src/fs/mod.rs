//! The file system below a share as MS-FSA describes one, on Linux.

pub(crate) mod aside;
pub mod attributes;
pub mod descriptor;
pub mod eas;
mod entry;
pub mod extents;
pub mod file_key;
pub(crate) mod identity;
pub mod listing;
pub mod nameless;
pub mod names;
pub mod number;
pub mod object_id;
pub mod path;
pub mod pattern;
pub mod permit;
pub mod reparse;
pub mod security;
mod shards;
pub mod short;
pub mod snapshots;
pub mod space;
pub mod streams;
pub mod sweep;
pub mod times;
pub mod tunnel;
pub mod volume;
