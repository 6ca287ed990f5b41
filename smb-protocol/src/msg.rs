//! One module per command; each has a `Request` and a `Response` with `parse` and `encode`.
//!
//! `parse` takes the body: the bytes after the 64-byte header up to the end of the message.
//! `encode` appends the body to a buffer whose end is right behind the header. Offsets on the
//! wire count from the header; the modules do that sum so that callers never see it.

pub mod close;
pub mod context;
pub mod create;
pub mod error;
pub mod flush;
pub mod ioctl;
pub mod lock;
pub mod negotiate;
pub mod notify;
pub mod oplock;
pub mod query_directory;
pub mod query_info;
pub mod rdma;
pub mod read;
pub mod session_setup;
pub mod set_info;
pub mod simple;
pub mod tree_connect;
pub mod write;

#[cfg(test)]
mod tests;
