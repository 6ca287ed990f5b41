//! Clients by the identity that they give themselves and the user who has logged in: leases are
//! theirs, not a session's, and are broken on any connection of theirs (MS-SMB2 3.3.4.7). The
//! identity alone proves nothing: it goes over the network in the clear.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use smb_protocol::msg::oplock::{LeaseBreak, Message};
use volume::{
    budget::Held,
    client::{self, Awaited},
    users::{ClientId, User, UserId},
};

use crate::{
    breaks::delivery::{self, BreakNotification, Outbox},
    session::ConnectionId,
};

/// A connection and who has logged in on it.
#[derive(Debug)]
struct Known {
    outbox: Arc<Outbox>,
    users: Vec<(UserId, Held)>,
}

/// Outboxes to clients by their `ClientGuid`, of each the oldest first.
type Outboxes = HashMap<[u8; 16], Vec<Known>>;

/// Connections of clients that have logged in.
#[derive(Debug, Default)]
pub struct Clients {
    outboxes: Arc<Mutex<Outboxes>>,
}

fn lock(outboxes: &Mutex<Outboxes>) -> MutexGuard<'_, Outboxes> {
    outboxes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    /// Adds a connection of a client, on which a user has logged in; once is enough. `false` if it
    /// was not added, since the user has as many connections as one user may have.
    pub fn add(&self, guid: [u8; 16], outbox: &Arc<Outbox>, user: &User) -> bool {
        let mut all = lock(&self.outboxes);
        let mine = all.entry(guid).or_default();
        let at = mine.iter().position(|known| known.outbox.connection == outbox.connection);
        let at = at.unwrap_or_else(|| {
            mine.push(Known { outbox: outbox.clone(), users: Vec::new() });
            mine.len() - 1
        });
        let users = &mut mine[at].users;
        if users.iter().any(|(known, _)| *known == user.id) {
            return true;
        }
        let counted = user.connections.take(1).map(|counted| users.push((user.id, counted)));
        mine.retain(|known| !known.users.is_empty());
        if mine.is_empty() {
            all.remove(&guid);
        }
        counted.is_some()
    }

    /// Takes a connection away.
    pub fn remove(&self, client: [u8; 16], connection: ConnectionId) {
        let mut all = lock(&self.outboxes);
        if let Some(mine) = all.get_mut(&client) {
            mine.retain(|known| known.outbox.connection != connection);
            if mine.is_empty() {
                all.remove(&client);
            }
        }
    }

    /// Tells a client something on one of its connections that are of a user too, and on another as
    /// long as it is `awaited` that it has heard; `false` if it has none.
    fn tell(
        &self,
        client: ClientId,
        notice: BreakNotification,
        awaited: impl Fn() -> bool + Send + 'static,
    ) -> bool {
        let outboxes = self.outboxes.clone();
        let outboxes = move || {
            let all = lock(&outboxes);
            let mine = all.get(&client.guid).into_iter().flatten();
            mine.filter(|known| known.users.iter().any(|(user, _)| *user == client.user))
                .map(|known| known.outbox.clone())
                .collect()
        };
        delivery::tell(outboxes, notice, awaited)
    }
}

impl client::Clients for Clients {
    fn break_lease(&self, client: ClientId, message: LeaseBreak, awaited: Awaited) -> bool {
        let notice = BreakNotification { session: None, message: Message::LeaseBreak(message) };
        self.tell(client, notice, awaited)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use volume::users::Users;

    use super::*;

    #[test]
    fn a_client_hears_of_its_leases_on_connections_of_their_user_only() {
        let clients = Clients::default();
        let message = LeaseBreak { epoch: 1, flags: 1, key: [1; 16], current: 7, new: 3 };
        let notice = BreakNotification { session: None, message: Message::LeaseBreak(message) };
        let users = Users::default();
        let tell = |user: &str| {
            let client = ClientId { guid: [7; 16], user: users.get(user).id };
            clients.tell(client, notice, || true)
        };
        let add = |user: &str, outbox| clients.add([7; 16], outbox, &users.get(user));
        let (sender, mut early) = mpsc::unbounded_channel();
        let stranger = Outbox::new(ConnectionId(1), sender);
        let (sender, mut late) = mpsc::unbounded_channel();
        let own = Outbox::new(ConnectionId(2), sender);
        // It shows the identity of another client, and was there before.
        assert!(add("MALLORY", &stranger));
        assert!(!tell("ALICE"));
        assert!(add("ALICE", &own));
        assert!(add("ALICE", &own));
        assert!(tell("ALICE"));
        assert!(late.try_recv().is_ok() && early.try_recv().is_err());
        assert!(tell("MALLORY"));
        assert!(late.try_recv().is_err() && early.try_recv().is_ok());
        clients.remove([7; 16], ConnectionId(2));
        assert!(!tell("ALICE"));
    }
}
