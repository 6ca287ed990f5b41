//! Who has something open: users, what each has of what all share, and clients as one user has them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::budget::Budget;

/// A user by number: what is kept for users is compared by it, and never mistaken. It means nothing
/// outside the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(u32);

/// A client, as one user has it. `ClientGuid` alone proves nothing: it goes over the network in the
/// clear, and whoever shows that of another still is another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientId {
    /// `ClientGuid` of its connections.
    pub guid: [u8; 16],
    /// Who has logged in.
    pub user: UserId,
}

/// A user, over all sessions and connections.
#[derive(Debug)]
pub struct User {
    /// The folded name.
    pub name: String,
    /// The number.
    pub id: UserId,
    /// Bytes that the server holds for them.
    pub bytes: Arc<Budget>,
    /// Opens.
    pub opens: Arc<Budget>,
    /// Byte-range locks.
    pub locks: Arc<Budget>,
    /// Opens that are kept when their client is away, or are promised to outlive the server.
    pub kept: Arc<Budget>,
    /// Connections on which they have logged in.
    pub connections: Arc<Budget>,
}

/// What one user may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Bytes.
    pub bytes: usize,
    /// Opens.
    pub opens: usize,
    /// Byte-range locks.
    pub locks: usize,
    /// Opens that are kept.
    pub kept: usize,
    /// Connections.
    pub connections: usize,
}

impl Most {
    /// No bound.
    pub const ANY: Self = Self {
        bytes: usize::MAX,
        opens: usize::MAX,
        locks: usize::MAX,
        kept: usize::MAX,
        connections: usize::MAX,
    };
}

impl User {
    fn new(name: &str, id: UserId, most: Most) -> Self {
        let Most { bytes, opens, locks, kept, connections } = most;
        let [bytes, opens, locks, kept, connections] =
            [bytes, opens, locks, kept, connections].map(Budget::new);
        Self { name: name.to_owned(), id, bytes, opens, locks, kept, connections }
    }

    fn limit(&self, most: Most) {
        self.bytes.limit(most.bytes);
        self.opens.limit(most.opens);
        self.locks.limit(most.locks);
        self.kept.limit(most.kept);
        self.connections.limit(most.connections);
    }
}

#[derive(Debug)]
struct State {
    all: HashMap<String, Arc<User>>,
    most: Most,
}

/// All users who have logged in, or had something open before the server began. Only who was
/// authenticated is among them, and stays.
#[derive(Debug)]
pub struct Users(Mutex<State>);

impl Default for Users {
    fn default() -> Self {
        Self(Mutex::new(State { all: HashMap::new(), most: Most::ANY }))
    }
}

impl Users {
    /// The user of a folded name.
    pub fn get(&self, name: &str) -> Arc<User> {
        let State { all, most } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(name) {
            return known.clone();
        }
        let id = UserId(u32::try_from(all.len()).unwrap_or(u32::MAX));
        let user = Arc::new(User::new(name, id, *most));
        all.insert(name.to_owned(), user.clone());
        user
    }

    /// Says what each of them may have from now on.
    pub fn limit(&self, most: Most) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.most = most;
        state.all.values().for_each(|user| user.limit(most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_number_and_budgets_of_their_own() {
        let users = Users::default();
        let (ann, bob) = (users.get("ANN"), users.get("BOB"));
        assert_eq!((ann.id, bob.id), (users.get("ANN").id, users.get("BOB").id));
        assert_ne!(ann.id, bob.id);
        users.limit(Most { opens: 1, ..Most::ANY });
        let held = ann.opens.take(1).unwrap();
        assert!(users.get("ANN").opens.take(1).is_none());
        assert!(bob.opens.take(1).is_some());
        assert!(users.get("EVE").opens.take(2).is_none());
        drop(held);
        assert!(ann.opens.take(1).is_some());
    }
}
