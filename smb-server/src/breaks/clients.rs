//! Clients by the identity that they give themselves and the user who has logged in: leases are
//! theirs, not a session's, and are broken on any connection of theirs (MS-SMB2 3.3.4.7). The
//! identity alone proves nothing: it goes over the network in the clear.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use smb_protocol::{
    Dialect,
    msg::oplock::{LeaseBreak, Message},
};
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
    dialect: Dialect,
    users: Vec<(UserId, Held)>,
}

/// Outboxes to clients by their `ClientGuid`, of each the oldest first.
type Outboxes = HashMap<[u8; 16], Vec<Known>>;

/// Why a connection of a client was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdded {
    /// The client speaks another dialect on its other connections.
    OtherDialect,
    /// The user has as many connections as one user may have.
    TooMany,
}

/// Connections of clients that have logged in: `GlobalClientTable` (MS-SMB2 3.3.1.5). A client is
/// there as long as one of its connections is.
#[derive(Debug, Default)]
pub struct Clients {
    outboxes: Arc<Mutex<Outboxes>>,
}

fn lock(outboxes: &Mutex<Outboxes>) -> MutexGuard<'_, Outboxes> {
    outboxes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clients {
    /// Adds a connection of a client, on which a user has logged in; once is enough.
    ///
    /// # Errors
    /// [`NotAdded::OtherDialect`] if the user has logged in on a connection of the client that
    /// speaks another dialect (MS-SMB2 3.3.5.5.3); 2.0.2 is not compared. What other users say of
    /// the identity, which anybody can show, is not looked at. [`NotAdded::TooMany`] if the user may
    /// have no more connections.
    pub fn add(
        &self,
        guid: [u8; 16],
        dialect: Dialect,
        outbox: &Arc<Outbox>,
        user: &User,
    ) -> Result<(), NotAdded> {
        let mut all = lock(&self.outboxes);
        let mine = all.entry(guid).or_default();
        let differs = |known: &Known| {
            let compared = ![known.dialect, dialect].contains(&Dialect::SMB_2_0_2);
            compared && known.dialect != dialect && known.users.iter().any(|(id, _)| *id == user.id)
        };
        if mine.iter().any(differs) {
            return Err(NotAdded::OtherDialect);
        }
        let at = mine.iter().position(|known| known.outbox.connection == outbox.connection);
        let at = at.unwrap_or_else(|| {
            mine.push(Known { outbox: outbox.clone(), dialect, users: Vec::new() });
            mine.len() - 1
        });
        let users = &mut mine[at].users;
        if users.iter().any(|(known, _)| *known == user.id) {
            return Ok(());
        }
        let counted = user.connections.take(1).map(|counted| users.push((user.id, counted)));
        mine.retain(|known| !known.users.is_empty());
        if mine.is_empty() {
            all.remove(&guid);
        }
        counted.ok_or(NotAdded::TooMany)
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
        let add = |user: &str, outbox| {
            clients.add([7; 16], Dialect::SMB_3_0, outbox, &users.get(user)).is_ok()
        };
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

    /// MS-SMB2 3.3.5.5.3: of a user's client, which goes with its last connection.
    #[test]
    fn a_client_speaks_one_dialect() {
        let clients = Clients::default();
        let users = Users::default();
        let outbox = |id| {
            let (sender, _) = mpsc::unbounded_channel();
            Outbox::new(ConnectionId(id), sender)
        };
        let add = |guid, dialect, id, user: &str| {
            clients.add([guid; 16], dialect, &outbox(id), &users.get(user))
        };
        let other = Err(NotAdded::OtherDialect);
        assert_eq!(add(1, Dialect::SMB_3_1_1, 1, "ALICE"), Ok(()));
        assert_eq!(add(1, Dialect::SMB_3_0_2, 2, "ALICE"), other);
        assert_eq!(add(1, Dialect::SMB_2_0_2, 2, "ALICE"), Ok(()));
        assert_eq!(add(1, Dialect::SMB_3_1_1, 3, "ALICE"), Ok(()));
        // Another client, and another user who shows the same identity.
        assert_eq!(add(2, Dialect::SMB_3_0_2, 4, "ALICE"), Ok(()));
        assert_eq!(add(1, Dialect::SMB_3_0_2, 5, "MALLORY"), Ok(()));
        assert_eq!(add(1, Dialect::SMB_3_1_1, 6, "ALICE"), Ok(()));
        for id in [1, 3, 6] {
            assert_eq!(add(1, Dialect::SMB_3_0_2, 7, "ALICE"), other);
            clients.remove([1; 16], ConnectionId(id));
        }
        assert_eq!(add(1, Dialect::SMB_3_0_2, 7, "ALICE"), Ok(()));
    }
}
