//! VMs that are being received: what is known of them until they are this host's or gone.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};

use disk_source::Prepared;
use vmm::{Vm, platform::bus::lock};

use super::{machine::Managed, records::MoveId};
use crate::{
    disks::Run,
    handover::target::{Effect, Event, Target},
    tls::Cutter,
};

/// A VM being received.
#[derive(Debug)]
pub struct Arrival {
    /// Identity of the move.
    pub id: MoveId,
    /// What memory connections must show.
    pub token: String,
    /// Where the source can be asked.
    pub source: String,
    /// The VM in the table.
    pub managed: Arc<Managed>,
    /// The machine that is filled.
    pub vm: Arc<Vm>,
    /// Its disks, ready to be opened.
    pub disks: Vec<Prepared>,
    /// Its run on this host.
    pub run: Run,
    /// How far it is.
    pub at: At,
    /// Why it cannot run here, if that is so.
    pub why: Mutex<String>,
    /// Memory connections that may still join.
    pub joins: AtomicUsize,
    /// A memory connection broke before its last round.
    pub broken: AtomicBool,
    /// The connections of the move.
    pub cutters: Mutex<Vec<Cutter>>,
}

/// The state of a move at its target, which several connections may change.
#[derive(Debug, Default)]
pub struct At {
    target: Mutex<Target>,
    changed: Condvar,
}

impl At {
    /// Takes what happened; what is to be done.
    pub fn apply(&self, event: Event) -> Vec<Effect> {
        let effects = lock(&self.target).apply(event);
        self.changed.notify_all();
        effects
    }

    /// As it is now.
    pub fn now(&self) -> Target {
        *lock(&self.target)
    }

    /// Waits until `done` says so, at most `limit`; as it is then.
    pub fn wait(&self, limit: Duration, done: impl Fn(Target) -> bool) -> Target {
        let target = lock(&self.target);
        let waited = self.changed.wait_timeout_while(target, limit, |target| !done(*target));
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// All VMs being received.
#[derive(Debug, Default)]
pub struct Arrivals(pub Mutex<HashMap<MoveId, Arc<Arrival>>>);

impl Arrivals {
    /// The VM that comes by this move.
    pub fn get(&self, id: &MoveId) -> Option<Arc<Arrival>> {
        lock(&self.0).get(id).cloned()
    }
}

/// Tells that a verdict may have been left over.
#[derive(Debug, Default)]
pub struct Leftover {
    noted: Mutex<bool>,
    told: Condvar,
}

impl Leftover {
    /// A connection has ended before its move's last word.
    pub fn note(&self) {
        *lock(&self.noted) = true;
        self.told.notify_all();
    }

    /// Waits until something was noted, or for that long; whether something was.
    pub fn wait(&self, limit: Option<Duration>) -> bool {
        let noted = lock(&self.noted);
        let quiet = |noted: &mut bool| !*noted;
        let mut noted = match limit {
            None => self.told.wait_while(noted, quiet).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.told.wait_timeout_while(noted, limit, quiet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        std::mem::take(&mut *noted)
    }
}
