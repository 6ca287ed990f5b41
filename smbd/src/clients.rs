//! Clients by the identity that they give themselves: leases are theirs, not a session's, and
//! are broken on any connection of theirs (MS-SMB2 3.3.4.7).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::session::{ConnectionId, Notice};

/// A connection and what takes its notices.
type Connection = (ConnectionId, UnboundedSender<Notice>);

/// Connections of clients that have logged in, the oldest first.
#[derive(Debug, Default)]
pub struct Clients {
    connections: Mutex<HashMap<[u8; 16], Vec<Connection>>>,
}

impl Clients {
    /// Adds a connection of a client; once is enough.
    pub fn add(
        &self,
        client: [u8; 16],
        connection: ConnectionId,
        notices: impl FnOnce() -> UnboundedSender<Notice>,
    ) {
        let mut all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = all.entry(client).or_default();
        if mine.iter().all(|(known, _)| *known != connection) {
            mine.push((connection, notices()));
        }
    }

    /// Takes a connection away.
    pub fn remove(&self, client: [u8; 16], connection: ConnectionId) {
        let mut all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = all.get_mut(&client) {
            mine.retain(|(known, _)| *known != connection);
            if mine.is_empty() {
                all.remove(&client);
            }
        }
    }

    /// Tells a client something on the first of its connections that takes it.
    pub fn tell(&self, client: [u8; 16], notice: Notice) -> bool {
        let all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&client)
            .is_some_and(|mine| mine.iter().any(|(_, notices)| notices.send(notice).is_ok()))
    }
}
