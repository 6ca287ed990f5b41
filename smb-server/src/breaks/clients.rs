//! Clients by the identity that they give themselves: leases are theirs, not a session's, and
//! are broken on any connection of theirs (MS-SMB2 3.3.4.7) on which the user has logged in whose
//! opens have the lease. The identity alone proves nothing: it goes over the network in the clear.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use smb_protocol::msg::oplock::{LeaseBreak, Message};
use volume::client::{self, Awaited};

use crate::{
    breaks::delivery::{self, Line, Notice},
    session::ConnectionId,
};

/// A connection and who has logged in on it, folded.
#[derive(Debug)]
struct Known {
    line: Arc<Line>,
    users: Vec<String>,
}

/// Lines to clients by their `ClientGuid`, of each the oldest first.
type Lines = HashMap<[u8; 16], Vec<Known>>;

/// Connections of clients that have logged in.
#[derive(Debug, Default)]
pub struct Clients {
    lines: Arc<Mutex<Lines>>,
}

fn lock(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    /// Adds a connection of a client on which a user has logged in; once is enough.
    pub fn add(&self, client: [u8; 16], line: &Arc<Line>, user: &str) {
        let mut all = lock(&self.lines);
        let mine = all.entry(client).or_default();
        let at = mine.iter().position(|known| known.line.connection == line.connection);
        let at = at.unwrap_or_else(|| {
            mine.push(Known { line: line.clone(), users: Vec::new() });
            mine.len() - 1
        });
        if !mine[at].users.iter().any(|known| known == user) {
            mine[at].users.push(user.to_owned());
        }
    }

    /// Takes a connection away.
    pub fn remove(&self, client: [u8; 16], connection: ConnectionId) {
        let mut all = lock(&self.lines);
        if let Some(mine) = all.get_mut(&client) {
            mine.retain(|known| known.line.connection != connection);
            if mine.is_empty() {
                all.remove(&client);
            }
        }
    }

    /// Tells a client something on one of its connections that are of a user too, and on another as
    /// long as it is `awaited` that it has heard; `false` if it has none.
    fn tell(
        &self,
        client: [u8; 16],
        user: String,
        notice: Notice,
        awaited: impl Fn() -> bool + Send + 'static,
    ) -> bool {
        let lines = self.lines.clone();
        let lines = move || {
            let all = lock(&lines);
            let mine = all.get(&client).into_iter().flatten();
            mine.filter(|known| known.users.contains(&user))
                .map(|known| known.line.clone())
                .collect()
        };
        delivery::tell(lines, notice, awaited)
    }
}

impl client::Clients for Clients {
    fn break_lease(
        &self,
        client: [u8; 16],
        user: String,
        message: LeaseBreak,
        awaited: Awaited,
    ) -> bool {
        let notice = Notice { session: None, message: Message::LeaseBreak(message) };
        self.tell(client, user, notice, awaited)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_client_hears_of_its_leases_on_connections_of_their_user_only() {
        let clients = Clients::default();
        let message = LeaseBreak { epoch: 1, flags: 1, key: [1; 16], current: 7, new: 3 };
        let notice = Notice { session: None, message: Message::LeaseBreak(message) };
        let tell = |user: &str| clients.tell([7; 16], user.into(), notice, || true);
        let (sender, mut early) = mpsc::unbounded_channel();
        let stranger = Line::new(ConnectionId(1), sender);
        let (sender, mut late) = mpsc::unbounded_channel();
        let own = Line::new(ConnectionId(2), sender);
        // It shows the identity of another client, and was there before.
        clients.add([7; 16], &stranger, "MALLORY");
        assert!(!tell("ALICE"));
        clients.add([7; 16], &own, "ALICE");
        clients.add([7; 16], &own, "ALICE");
        assert!(tell("ALICE"));
        assert!(late.try_recv().is_ok() && early.try_recv().is_err());
        assert!(tell("MALLORY"));
        assert!(late.try_recv().is_err() && early.try_recv().is_ok());
        clients.remove([7; 16], ConnectionId(2));
        assert!(!tell("ALICE"));
    }
}
