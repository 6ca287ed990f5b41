//! Creates that a client may repeat, because it cannot know whether they were carried out (MS-SMB2
//! 3.3.5.9, create context validation; 3.3.5.9.10).
//!
//! ```text
//!  begin ─► in progress ─► add ─► made ─► forget
//!              └ a repetition is told that it is not available      └ the open is closed
//! ```

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, Weak},
};

use crate::{
    open::Open,
    sharing::file::{CreateKey, lock},
    users::{ClientId, UserId},
};

/// The opens that creates of one name made, each of another client.
type Made = Vec<(ClientId, Weak<Open>)>;

/// Creates in progress, and the opens that others made.
///
/// `CreateGuid` and `ClientGuid` can be shown by a reader of the network as well as by their owner, so
/// the user is part of every name.
#[derive(Debug, Default)]
pub struct Creates {
    made: Mutex<HashMap<[u8; 16], Made>>,
    in_progress: Arc<Mutex<HashSet<CreateKey>>>,
}

/// A create in progress that its client may repeat.
#[derive(Debug)]
pub struct Creating {
    all: Arc<Mutex<HashSet<CreateKey>>>,
    key: CreateKey,
}

impl Drop for Creating {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.key);
    }
}

impl Creates {
    /// A create waits for others; it is in progress as long as the result lives.
    pub fn begin(&self, key: CreateKey) -> Creating {
        lock(&self.in_progress).insert(key);
        Creating { all: self.in_progress.clone(), key }
    }

    /// Whether a create is in progress.
    pub fn is_in_progress(&self, key: CreateKey) -> bool {
        lock(&self.in_progress).contains(&key)
    }

    /// An open was made, perhaps by a create that may be repeated.
    pub(super) fn add(&self, open: &Arc<Open>) {
        let Some(guid) = open.origin.create_guid else { return };
        let client = open.origin.client;
        let mut made = lock(&self.made);
        let all = made.entry(guid).or_default();
        all.retain(|(other, _)| *other != client);
        all.push((client, Arc::downgrade(open)));
    }

    /// An open is closed for good.
    pub(super) fn forget(&self, open: &Open) {
        let Some(guid) = open.origin.create_guid else { return };
        let mut made = lock(&self.made);
        if let Entry::Occupied(mut all) = made.entry(guid) {
            all.get_mut().retain(|(_, made)| !std::ptr::eq(made.as_ptr(), open));
            if all.get().is_empty() {
                all.remove();
            }
        }
    }

    /// The open that a create of a client made, if it is still there.
    pub fn made_by(&self, (guid, client): CreateKey) -> Option<Arc<Open>> {
        self.find(guid, |other| other == client).pop()
    }

    /// The persistent open that a create of that name made, whichever client it was: one of a user, or
    /// else one of another.
    pub fn made_persistent(&self, guid: [u8; 16], user: UserId) -> Option<Arc<Open>> {
        let mut all = self.find(guid, |_| true);
        all.retain(|open| open.is_persistent());
        let own = all.iter().position(|open| open.origin.client.user == user);
        own.map(|at| all.swap_remove(at)).or_else(|| all.pop())
    }

    /// Whether a create of that name has made an open of another user, whose client shows the same
    /// identity.
    pub fn made_for_another(&self, (guid, client): CreateKey) -> bool {
        let another = |other: ClientId| other.guid == client.guid && other.user != client.user;
        !self.find(guid, another).is_empty()
    }

    fn find(&self, guid: [u8; 16], whose: impl Fn(ClientId) -> bool) -> Vec<Arc<Open>> {
        // Whoever drops the last reference to an open comes here: not while this is held.
        let found: Vec<_> = {
            let made = lock(&self.made);
            let all = made.get(&guid).into_iter().flatten();
            all.filter(|(client, _)| whose(*client)).map(|(_, open)| open.clone()).collect()
        };
        found.into_iter().filter_map(|open| open.upgrade()).collect()
    }
}
