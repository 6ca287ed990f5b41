//! `[limits]`: everything a peer can make grow.

use schemars::JsonSchema;
use serde::Deserialize;

use volume::users::Most;

use super::Size;
use crate::descriptors;

/// Everything a peer can make grow.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections from one address at a time.
    pub connections_per_address: usize,
    /// Connections at a time that have not authenticated.
    pub unauthenticated_connections: usize,
    /// Sessions of one connection.
    pub sessions_per_connection: usize,
    /// Trees of one session.
    pub trees_per_session: usize,
    /// Opens of one session.
    pub opens_per_session: usize,
    /// Opens of the whole server.
    pub opens: usize,
    /// Durable and resilient opens that are kept for clients that are away.
    pub kept_opens: usize,
    /// Byte-range locks of the whole server.
    pub locks: usize,
    /// Credits a connection may hold: requests in flight.
    pub credits: u16,
    /// Requests of one connection that wait for an event: a change, a lock, another client, what a
    /// pipe has to say.
    pub pending_requests: usize,
    /// Memory of one connection for pending requests.
    pub pending_bytes: Size,
    /// Memory that one user may have held, over all sessions and connections.
    pub user_bytes: Size,
    /// The part, in percent, that one user may have of all connections, opens, kept opens and
    /// locks, over all sessions: the rest is for the others.
    pub user_percent: u8,
    /// Seconds a connection has to authenticate.
    pub authentication_seconds: u64,
    /// Memory for what all clients have sent who have not logged in, beyond 4 KiB of each. A logon
    /// with a password needs less; with a large ticket it may need 64 KiB.
    pub unauthenticated_bytes: Size,
    /// Milliseconds that one failed logon of an address costs it, after the first few.
    pub failed_logon_ms: u64,
    /// Failed logons of one connection before it is ended.
    pub failed_logons_per_connection: u32,
    /// Seconds a client may leave answers unread.
    pub write_seconds: u64,
    /// Length that a write may give a file. NTFS ends at 16 TiB less 64 KiB, and clients know.
    pub file_size: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 2048,
            unauthenticated_connections: 512,
            sessions_per_connection: 64,
            trees_per_session: 256,
            opens_per_session: 16_384,
            opens: 262_144,
            kept_opens: 65_536,
            locks: 1_048_576,
            credits: 8192,
            // As on Windows, where the 512th is refused (MS-SMB2 3.3.4.2, note 242).
            pending_requests: 511,
            pending_bytes: Size(64 << 20),
            user_bytes: Size(1 << 30),
            user_percent: 50,
            authentication_seconds: 20,
            unauthenticated_bytes: Size(16 << 20),
            failed_logon_ms: 500,
            failed_logons_per_connection: 6,
            write_seconds: 60,
            file_size: Size(0xfff_ffff_0000),
        }
    }
}

impl Limits {
    /// What one user may have.
    pub(crate) fn of_one_user(&self) -> Most {
        let part = |all: usize| {
            let part = all as u128 * u128::from(self.user_percent) / 100;
            usize::try_from(part).unwrap_or(usize::MAX).max(1)
        };
        Most {
            bytes: usize::try_from(self.user_bytes.0).unwrap_or(usize::MAX),
            opens: part(self.opens.min(descriptors::most_opens())),
            locks: part(self.locks),
            kept: part(self.kept_opens),
            connections: part(self.connections.min(descriptors::most_connections())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_a_part_of_what_all_share() {
        let limits = Limits { locks: 200, kept_opens: 1, user_percent: 30, ..Limits::default() };
        let Most { bytes, locks, kept, .. } = limits.of_one_user();
        assert_eq!((bytes, locks, kept), (1 << 30, 60, 1));
        let all = Limits { user_percent: 100, opens: usize::MAX, ..limits }.of_one_user();
        assert_eq!((all.locks, all.opens), (200, descriptors::most_opens()));
    }
}
