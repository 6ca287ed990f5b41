//! Clients by the identity that they give themselves: leases are theirs, not a session's, and
//! are broken on any connection of theirs (MS-SMB2 3.3.4.7).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    notices::{self, Line, Notice},
    session::ConnectionId,
};

/// Lines to clients by their `ClientGuid`, of each the oldest first.
type Lines = HashMap<[u8; 16], Vec<Arc<Line>>>;

/// Connections of clients that have logged in.
#[derive(Debug, Default)]
pub struct Clients {
    lines: Arc<Mutex<Lines>>,
}

fn lock(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    /// Adds a connection of a client; once is enough.
    pub fn add(&self, client: [u8; 16], line: &Arc<Line>) {
        let mut all = lock(&self.lines);
        let mine = all.entry(client).or_default();
        if mine.iter().all(|known| known.connection != line.connection) {
            mine.push(line.clone());
        }
    }

    /// Takes a connection away.
    pub fn remove(&self, client: [u8; 16], connection: ConnectionId) {
        let mut all = lock(&self.lines);
        if let Some(mine) = all.get_mut(&client) {
            mine.retain(|known| known.connection != connection);
            if mine.is_empty() {
                all.remove(&client);
            }
        }
    }

    /// Tells a client something on one of its connections, and on another as long as it is
    /// `awaited` that it has heard; `false` if it has none.
    pub fn tell(
        &self,
        client: [u8; 16],
        notice: Notice,
        awaited: impl Fn() -> bool + Send + 'static,
    ) -> bool {
        let lines = self.lines.clone();
        let lines = move || lock(&lines).get(&client).cloned().unwrap_or_default();
        notices::tell(lines, notice, awaited)
    }
}
