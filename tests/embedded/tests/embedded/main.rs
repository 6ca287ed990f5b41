//! Our clients and tools against servers that run in the test's own process.
//!
//! One program has them all: each would link the whole server, and that is most of what a build
//! after a change costs.

mod bulkhead_smb;
mod relative_paths;
mod smb_client;
mod smb_compression;
mod smb_direct;
