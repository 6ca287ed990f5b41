//! One registration, and what it is to be told.

use std::time::Duration;

use super::{RegistrationInfo, Waiter};
use crate::{
    Version,
    notice::{Change, Notice},
    view::{NodeState, View},
};

/// `WitnessRegistration` (MS-SWN 3.1.1.3).
#[derive(Debug)]
pub(super) struct Registration {
    pub id: u64,
    pub group: u32,
    pub user: String,
    pub version: Version,
    pub client: String,
    pub net_name: String,
    pub share: Option<String>,
    pub address: String,
    pub all_addresses: bool,
    /// After how long a call that waits is answered in any case.
    pub keep_alive: Option<Duration>,
    pub last_use: Duration,
    /// The call that waits to be told.
    pub waiter: Option<Waiter>,
    pub pending: Pending,
}

impl Registration {
    /// Nothing waits any more.
    pub fn rest(&mut self, now: Duration) {
        (self.waiter, self.last_use) = (None, now);
    }

    pub fn info(&self) -> RegistrationInfo {
        RegistrationInfo {
            id: self.id,
            client: self.client.clone(),
            user: self.user.clone(),
            version: self.version.0,
            net_name: self.net_name.clone(),
            share: self.share.clone(),
            address: self.address.clone(),
            waiting: self.waiter.is_some(),
        }
    }
}

/// What a registration is to be told; bounded by the nodes that there are.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: Vec<Change>,
    addresses: Vec<String>,
    /// Where the client is to go.
    pub client_move: Option<String>,
    /// Where its share is.
    pub share_move: Option<String>,
}

impl Pending {
    /// A resource has changed; what was to be told of it before is out of date.
    pub fn change(&mut self, change: Change) {
        self.changes.retain(|other| other.name != change.name);
        self.changes.push(change);
    }

    /// A floating address is served again, where it was or elsewhere. That it was not for a while stays
    /// to be told before: whoever used it lost its connections then.
    pub fn comes(&mut self, address: &str) {
        let up = Change { name: address.to_owned(), state: NodeState::Up };
        self.changes.retain(|other| *other != up);
        self.changes.push(up);
    }

    /// Addresses of a node have changed.
    pub fn addresses(&mut self, node: &str) {
        if !self.addresses.iter().any(|other| other == node) {
            self.addresses.push(node.to_owned());
        }
    }

    /// Takes what is to be told next: one kind at a time, as an answer has one. A destination that is
    /// not there any more is not told.
    pub fn next(&mut self, view: &View) -> Option<Notice> {
        if !self.changes.is_empty() {
            return Some(Notice::Changed(std::mem::take(&mut self.changes)));
        }
        let there = |to: Option<String>| {
            to.map(|to| view.addresses_of(&to)).filter(|list| !list.is_empty())
        };
        if let Some(list) = there(self.client_move.take()) {
            return Some(Notice::MoveClient(list));
        }
        if let Some(list) = there(self.share_move.take()) {
            return Some(Notice::MoveShare(list));
        }
        let nodes = std::mem::take(&mut self.addresses);
        let list: Vec<_> = nodes.iter().flat_map(|node| view.addresses_of(node)).collect();
        (!list.is_empty()).then_some(Notice::Addresses(list))
    }
}
