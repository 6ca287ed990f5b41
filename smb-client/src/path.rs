//! The way of a connection.

use std::net::IpAddr;

/// Where a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Path {
    /// The server's address.
    pub server: IpAddr,
    /// The address of this side.
    pub local: IpAddr,
    /// How much slower it is than the fastest, at least 1.
    pub weight: u32,
}
