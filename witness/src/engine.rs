//! The server's side: registrations, and what they wait for (MS-SWN 3.1).
//!
//! ```text
//!                       Register, RegisterEx
//!                              │
//!                              ▼            unused for too long, connection lost, UnRegister
//!                   ┌──────► Idle ─────────────────────────────────────────────► gone
//!     notice, or    │          │ AsyncNotify                                       ▲
//!     ERROR_TIMEOUT │          ▼                                                   │
//!                   └────── Waiting ───────────────────────────────────────────────┘
//!                              │ the call is given up ─► Idle
//!
//!  what a registration is to be told gathers while it is Idle: one state for each resource, the last
//!  move of the client and of its share, addresses that have changed
//! ```
//!
//! All is given: calls, the cluster's view, the time since some moment. What waits is answered later,
//! by [`Engine::answers`].

mod registration;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use dce_rpc::{
    ndr::Handle,
    security::{Caller, Level},
};
use smb_protocol::crypto::random;

use self::registration::{Pending, Registration};
use crate::{
    Status, Version,
    message::{Interface, Register, Reply, Request},
    notice::Change,
    view::{Floating, Node, NodeState, View, same},
};

/// What clients may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Registrations of all clients.
    pub registrations: usize,
    /// Registrations of one user.
    pub registrations_per_user: usize,
    /// Clients that may wait for a node to come up.
    pub waiting: usize,
    /// How long a registration stays that waits for nothing (MS-SWN 3.1.5.1).
    pub unused: Duration,
    /// Longest time that a client may ask to wait (MS-SWN 3.1.5.2).
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            registrations: 10_000,
            registrations_per_user: 2_000,
            waiting: 256,
            unused: Duration::from_secs(30),
            keep_alive: Duration::from_secs(24 * 3600),
        }
    }
}

/// Longest name or address that a client may give, in characters.
const MAX_NAME: usize = 260;

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiter {
    /// The connection that it came on.
    pub connection: u64,
    /// Its number there.
    pub call: u32,
}

/// Where a call came from.
#[derive(Debug, Clone, Copy)]
pub struct From<'a> {
    /// The call.
    pub waiter: Waiter,
    /// The association group of its connection: handles are good in it and nowhere else.
    pub group: u32,
    /// Who calls, if that was proven.
    pub caller: Option<&'a Caller>,
}

/// What becomes of a call at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered.
    Done(Reply),
    /// It is answered later.
    Waits,
    /// It is refused, because of the limit of this name in the configuration.
    Limited(Reply, &'static str),
}

/// A registration, for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationInfo {
    /// Its number, which no other registration had since the service began.
    pub id: u64,
    /// The client as it names itself.
    pub client: String,
    /// The user.
    pub user: String,
    /// The version that it speaks.
    pub version: u32,
    /// The name by which it reaches the cluster.
    pub net_name: String,
    /// The share that it asked about.
    pub share: Option<String>,
    /// The address that it uses.
    pub address: String,
    /// It waits to be told.
    pub waiting: bool,
}

/// Why nobody was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotMoved {
    /// There is no such node or address of one.
    NoDestination,
    /// Nobody is registered who would be told.
    NoClient,
}

/// The server's side: registrations of all clients, and what they wait for.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    view: View,
    registrations: BTreeMap<Handle20, Registration>,
    /// Those who wait for a node to come up.
    waiting: Vec<Waiter>,
    answers: Vec<(Waiter, Reply)>,
    made: u64,
}

/// A handle as a key.
type Handle20 = [u8; 20];

impl Engine {
    /// A service without clients, in a cluster that looks like this.
    pub fn new(limits: Limits, view: View) -> Self {
        let (registrations, made) = (BTreeMap::new(), 0);
        Self { limits, view, registrations, waiting: Vec::new(), answers: Vec::new(), made }
    }

    /// What the cluster looks like.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Changes what clients may take; registrations beyond that stay.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// All registrations, by their numbers.
    pub fn registrations(&self) -> Vec<RegistrationInfo> {
        let mut list: Vec<_> = self.registrations.values().map(Registration::info).collect();
        list.sort_by_key(|info| info.id);
        list
    }

    /// Takes the answers to calls that waited.
    pub fn answers(&mut self) -> Vec<(Waiter, Reply)> {
        std::mem::take(&mut self.answers)
    }

    /// Carries out a call at a time.
    pub fn call(&mut self, from: &From<'_>, request: Request, now: Duration) -> Outcome {
        // MS-SWN 3.1.4 <4>: whoever has not proved who it is, or does not protect its calls.
        let known = from.caller.filter(|caller| caller.level >= Level::Integrity);
        let Some(caller) = known else {
            return Outcome::Done(refusal(&request, Status::ACCESS_DENIED));
        };
        match request {
            Request::GetInterfaceList => self.interfaces(from.waiter),
            Request::Register(register) => self.register(from, caller, register, Version::V1, now),
            Request::RegisterEx(register) => {
                self.register(from, caller, register, Version::V2, now)
            }
            Request::Unregister(handle) => Outcome::Done(Reply::Unregistered(
                self.unregister(from, caller, &handle)
                    .map_or_else(|status| status, |()| Status::SUCCESS),
            )),
            Request::UnregisterEx(handle) => {
                Outcome::Done(match self.unregister(from, caller, &handle) {
                    Ok(()) => Reply::UnregisteredEx(Handle::default(), Status::SUCCESS),
                    Err(status) => Reply::UnregisteredEx(handle, status),
                })
            }
            Request::AsyncNotify(handle) => self.async_notify(from, caller, &handle, now),
        }
    }

    /// WitnessrGetInterfaceList (MS-SWN 3.1.4.1).
    fn interfaces(&mut self, waiter: Waiter) -> Outcome {
        let list = self.interface_list();
        if list.is_empty() {
            return Outcome::Done(Reply::Interfaces(Err(Status::NO_MORE_ITEMS)));
        }
        if list.iter().any(|interface| interface.state == NodeState::Up) {
            return Outcome::Done(Reply::Interfaces(Ok(list)));
        }
        if self.waiting.len() >= self.limits.waiting {
            let reply = Reply::Interfaces(Err(Status::NO_SYSTEM_RESOURCES));
            return Outcome::Limited(reply, "witness.waiting");
        }
        self.waiting.push(waiter);
        Outcome::Waits
    }

    fn interface_list(&self) -> Vec<Interface> {
        let nodes = self.view.nodes.iter().enumerate();
        let of = |(at, node): (usize, &Node)| {
            let interface = |address: &IpAddr| Interface {
                group: node.name.clone(),
                version: Version::V2.0,
                state: node.state,
                address: Some(*address),
                witness: at != self.view.own,
            };
            node.addresses.iter().map(interface).collect::<Vec<_>>()
        };
        nodes.flat_map(of).collect()
    }

    /// WitnessrRegister and WitnessrRegisterEx (MS-SWN 3.1.4.2, 3.1.4.5).
    fn register(
        &mut self,
        from: &From<'_>,
        caller: &Caller,
        asked: Register,
        version: Version,
        now: Duration,
    ) -> Outcome {
        let refused = |status| Outcome::Done(Reply::Registered(Err(status)));
        let Register { net_name, share_name, address, client, .. } = asked;
        if asked.version != version.0 {
            return refused(Status::REVISION_MISMATCH);
        }
        let (Some(net_name), Some(address), Some(client)) = (net_name, address, client) else {
            return refused(Status::INVALID_PARAMETER);
        };
        let texts = [Some(&net_name), Some(&address), Some(&client), share_name.as_ref()];
        let too_long = |text: &&String| text.chars().count() > MAX_NAME;
        if texts.into_iter().flatten().any(|text| too_long(&text))
            || !self.view.answers_to(&net_name)
        {
            return refused(Status::INVALID_PARAMETER);
        }
        let share = match self.share(share_name, &address) {
            Ok(share) => share,
            Err(status) => return refused(status),
        };
        let reply = Reply::Registered(Err(Status::NO_SYSTEM_RESOURCES));
        if self.registrations.len() >= self.limits.registrations {
            return Outcome::Limited(reply, "witness.registrations");
        }
        let of_user = self.registrations.values().filter(|it| it.user == caller.user).count();
        if of_user >= self.limits.registrations_per_user {
            return Outcome::Limited(reply, "witness.registrations_per_user");
        }
        self.made += 1;
        let keep_alive = Duration::from_secs(asked.keep_alive.into());
        let registration = Registration {
            id: self.made,
            group: from.group,
            user: caller.user.clone(),
            version,
            client,
            net_name,
            share,
            address,
            all_addresses: asked.all_addresses,
            // Version 1 has no time-out.
            keep_alive: match version {
                Version::V2 => Some(keep_alive.min(self.limits.keep_alive)),
                _ => None,
            },
            last_use: now,
            waiter: None,
            pending: Pending::default(),
        };
        let mut handle = Handle::default();
        handle.0[4..].copy_from_slice(&random::<16>());
        self.registrations.insert(handle.0, registration);
        Outcome::Done(Reply::Registered(Ok(handle)))
    }

    /// The share that a registration is about, if it is about one.
    fn share(&self, name: Option<String>, address: &str) -> Result<Option<String>, Status> {
        let shares = &self.view.shares;
        let scale_out = shares.iter().any(|share| share.scale_out);
        let known = || address.parse().is_ok_and(|address| self.view.at(address).is_some());
        let Some(name) = name else {
            // Version 1, or a client that asks about no share.
            return if scale_out && !known() { Err(Status::INVALID_STATE) } else { Ok(None) };
        };
        if shares.is_empty() {
            return Err(Status::INVALID_STATE);
        }
        if !scale_out {
            return Ok(None);
        }
        let share = self.view.share(&name).ok_or(Status::INVALID_STATE)?;
        if share.scale_out && !known() {
            return Err(Status::INVALID_STATE);
        }
        Ok(Some(name))
    }

    /// The registration of a handle, if it is the caller's.
    fn find(&self, from: &From<'_>, caller: &Caller, handle: &Handle) -> Option<&Registration> {
        let found = self.registrations.get(&handle.0)?;
        (found.group == from.group && found.user == caller.user).then_some(found)
    }

    /// WitnessrUnRegister and WitnessrUnRegisterEx (MS-SWN 3.1.4.3, 3.1.4.6). A call that waits is told
    /// that what it waited for is gone.
    fn unregister(
        &mut self,
        from: &From<'_>,
        caller: &Caller,
        handle: &Handle,
    ) -> Result<(), Status> {
        self.find(from, caller, handle).ok_or(Status::INVALID_PARAMETER)?;
        if let Some(Registration { waiter: Some(waiter), .. }) =
            self.registrations.remove(&handle.0)
        {
            self.answers.push((waiter, Reply::Notified(Err(Status::NOT_FOUND))));
        }
        Ok(())
    }

    /// WitnessrAsyncNotify (MS-SWN 3.1.4.4).
    fn async_notify(
        &mut self,
        from: &From<'_>,
        caller: &Caller,
        handle: &Handle,
        now: Duration,
    ) -> Outcome {
        let refused = |status| Reply::Notified(Err(status));
        if self.find(from, caller, handle).is_none() {
            return Outcome::Done(refused(Status::NOT_FOUND));
        }
        let Self { registrations, view, .. } = self;
        let Some(found) = registrations.get_mut(&handle.0) else {
            return Outcome::Done(refused(Status::NOT_FOUND));
        };
        if found.waiter.is_some() {
            return Outcome::Limited(
                refused(Status::NO_SYSTEM_RESOURCES),
                "one pending WitnessrAsyncNotify of a registration",
            );
        }
        found.last_use = now;
        match found.pending.next(view) {
            Some(notice) => Outcome::Done(Reply::Notified(Ok(notice))),
            None => {
                found.waiter = Some(from.waiter);
                Outcome::Waits
            }
        }
    }

    /// Answers all who wait and have something to be told.
    fn wake(&mut self, now: Duration) {
        let Self { registrations, answers, view, .. } = self;
        for registration in registrations.values_mut() {
            if let Some(waiter) = registration.waiter
                && let Some(notice) = registration.pending.next(view)
            {
                registration.rest(now);
                answers.push((waiter, Reply::Notified(Ok(notice))));
            }
        }
    }

    /// The cluster looks like this now; who is registered for what has changed is told
    /// (MS-SWN 3.1.6.1, 3.1.6.4).
    pub fn set_view(&mut self, view: View, now: Duration) {
        let old = std::mem::replace(&mut self.view, view);
        let gone = old.nodes.iter().filter(|node| self.view.named(&node.name).is_none());
        let gone = gone.map(|node| Node { state: NodeState::Down, ..node.clone() });
        let changed: Vec<Node> = self.view.nodes.iter().cloned().chain(gone).collect();
        for node in &changed {
            let before = old.named(&node.name);
            let (was, had) =
                before.map_or((NodeState::Unknown, &[][..]), |it| (it.state, &it.addresses[..]));
            let other_state = was != node.state && node.state != NodeState::Unknown;
            // One that is heard of for the first time and serves has not changed.
            let other_state = other_state && before.is_some();
            if other_state {
                self.note_change(node, had);
            }
            if other_state || before.is_some() && had != node.addresses {
                self.note_addresses(&node.name);
            }
        }
        self.note_floating(&old);
        self.wake(now);
        if self.view.nodes.iter().any(|node| node.state == NodeState::Up) {
            let list = self.interface_list();
            for waiter in std::mem::take(&mut self.waiting) {
                self.answers.push((waiter, Reply::Interfaces(Ok(list.clone()))));
            }
        }
    }

    /// A node is in another state: those who use one of its addresses are told.
    fn note_change(&mut self, node: &Node, had: &[IpAddr]) {
        for registration in self.registrations.values_mut() {
            let uses = registration
                .address
                .parse::<IpAddr>()
                .is_ok_and(|address| node.addresses.contains(&address) || had.contains(&address));
            if uses {
                let change = Change { name: node.name.clone(), state: node.state };
                registration.pending.change(change);
            }
        }
    }

    /// Floating addresses have gone, come or moved: those who use one are told of it by its own name, one
    /// of those that a resource may have (MS-SWN 2.2.2.3). One that has moved was not served meanwhile.
    fn note_floating(&mut self, old: &View) {
        for Floating { address, node: before } in &old.floating {
            let after = self.view.holder(*address);
            if before.as_deref() == after {
                continue;
            }
            let uses = |it: &&mut Registration| it.address.parse() == Ok(*address);
            for registration in self.registrations.values_mut().filter(uses) {
                let name = registration.address.clone();
                if before.is_some() {
                    let down = Change { name: name.clone(), state: NodeState::Down };
                    registration.pending.change(down);
                }
                if after.is_some() {
                    registration.pending.comes(&name);
                }
            }
        }
    }

    /// Addresses of a node have changed, or whether they can be used.
    fn note_addresses(&mut self, node: &str) {
        for registration in self.registrations.values_mut().filter(|it| it.all_addresses) {
            registration.pending.addresses(node);
        }
    }

    /// Has a client go to a node or address (MS-SWN 3.1.6.2). How many registrations were told.
    ///
    /// # Errors
    /// [`NotMoved`] says why nobody is.
    pub fn move_client(
        &mut self,
        client: &str,
        destination: &str,
        now: Duration,
    ) -> Result<usize, NotMoved> {
        let is = |it: &Registration| same(&it.client, client);
        self.tell(destination, now, is, |pending, to| pending.client_move = Some(to))
    }

    /// Tells those who use a share, all or one client, where it is now (MS-SWN 3.1.6.3). How many
    /// registrations were told.
    ///
    /// # Errors
    /// [`NotMoved`] says why nobody is.
    pub fn move_share(
        &mut self,
        share: &str,
        client: Option<&str>,
        destination: &str,
        now: Duration,
    ) -> Result<usize, NotMoved> {
        let is = |it: &Registration| {
            it.share.as_deref().is_some_and(|own| same(own, share))
                && client.is_none_or(|client| same(&it.client, client))
        };
        self.tell(destination, now, is, |pending, to| pending.share_move = Some(to))
    }

    fn tell(
        &mut self,
        destination: &str,
        now: Duration,
        is: impl Fn(&Registration) -> bool,
        note: impl Fn(&mut Pending, String),
    ) -> Result<usize, NotMoved> {
        if self.view.addresses_of(destination).is_empty() {
            return Err(NotMoved::NoDestination);
        }
        let mut told = 0;
        for registration in self.registrations.values_mut().filter(|it| is(it)) {
            note(&mut registration.pending, destination.to_owned());
            told += 1;
        }
        if told == 0 {
            return Err(NotMoved::NoClient);
        }
        self.wake(now);
        Ok(told)
    }

    /// Time passes: calls that have waited for long enough end, and registrations that are not used go
    /// (MS-SWN 3.1.5). Gives how many went.
    pub fn tick(&mut self, now: Duration) -> usize {
        let (answers, unused) = (&mut self.answers, self.limits.unused);
        let before = self.registrations.len();
        self.registrations.retain(|_, registration| {
            let rested = now.saturating_sub(registration.last_use);
            match (registration.waiter, registration.keep_alive) {
                (None, _) => rested <= unused,
                (Some(waiter), Some(keep_alive)) if rested > keep_alive => {
                    registration.rest(now);
                    answers.push((waiter, Reply::Notified(Err(Status::TIMEOUT))));
                    true
                }
                (Some(_), _) => true,
            }
        });
        before - self.registrations.len()
    }

    /// Nobody waits for the answer to a call any more.
    pub fn given_up(&mut self, waiter: Waiter, now: Duration) {
        self.waiting.retain(|other| *other != waiter);
        for registration in self.registrations.values_mut() {
            if registration.waiter == Some(waiter) {
                registration.rest(now);
            }
        }
    }

    /// A connection has ended; with the last of its group go its registrations (MS-SWN 3.1.6.5).
    pub fn connection_ended(&mut self, connection: u64, last_of_group: Option<u32>, now: Duration) {
        self.waiting.retain(|waiter| waiter.connection != connection);
        self.registrations.retain(|_, registration| Some(registration.group) != last_of_group);
        for registration in self.registrations.values_mut() {
            if registration.waiter.is_some_and(|waiter| waiter.connection == connection) {
                registration.rest(now);
            }
        }
    }
}

/// The answer that refuses a call.
fn refusal(request: &Request, status: Status) -> Reply {
    match request {
        Request::GetInterfaceList => Reply::Interfaces(Err(status)),
        Request::Register(_) | Request::RegisterEx(_) => Reply::Registered(Err(status)),
        Request::Unregister(_) => Reply::Unregistered(status),
        Request::UnregisterEx(handle) => Reply::UnregisteredEx(*handle, status),
        Request::AsyncNotify(_) => Reply::Notified(Err(status)),
    }
}

#[cfg(test)]
mod tests;
