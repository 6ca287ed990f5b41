//! Reservations: who may use a logical unit (SPC-4 5.13, SPC-2 5.5.1).
//!
//! ```text
//!  PERSISTENT RESERVE OUT ─► parameter list ─► state machine (state.rs) ─► store, if it is to
//!                            (list.rs)          on a copy                   outlive power
//!                                                                     ─► in force, attentions
//!  every command ─► anything reserved? (one atomic load) ─► the table of SPC-4
//! ```

mod list;
mod reports;
mod state;
mod store;
mod transport_id;

use std::sync::{
    Mutex, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

pub(crate) use list::{Out, parse_out};
pub(crate) use state::{Effects, Request, State, Who};
use tokio::sync::Semaphore;
pub(crate) use transport_id::device_name;

use crate::{
    Nexus, SenseKey, asc,
    cdb::Access,
    refusal::Refusal,
    store::{Kept, UnitStore},
};

/// The reservations of one logical unit.
#[derive(Debug)]
pub(crate) struct Reservations {
    state: RwLock<State>,
    /// The nexus that holds a RESERVE(6).
    legacy: Mutex<Option<u64>>,
    any: AtomicBool,
    /// PERSISTENT RESERVE OUT goes one after another, since each may wait for the store.
    turn: Semaphore,
    /// A change may have reached the store that never came into force: its command was aborted, or
    /// the store failed half way.
    unsure: AtomicBool,
}

impl Default for Reservations {
    fn default() -> Self {
        Self {
            state: RwLock::default(),
            legacy: Mutex::default(),
            any: AtomicBool::new(false),
            turn: Semaphore::new(1),
            unsure: AtomicBool::new(false),
        }
    }
}

impl Reservations {
    /// With what a store kept. Bytes that are no state are a reason not to start: somebody's data
    /// may depend on them.
    pub(crate) fn restore(bytes: Option<&[u8]>) -> Option<Self> {
        let reservations = Self::default();
        *reservations.write() = store::decode(bytes.unwrap_or_default())?;
        reservations.publish();
        Some(reservations)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn holder(&self) -> Option<u64> {
        *self.legacy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) {
        let legacy = self.legacy.lock().unwrap_or_else(PoisonError::into_inner);
        let any = legacy.is_some() || self.read().reservation.is_some();
        self.any.store(any, Ordering::Release);
    }

    /// Whether a nexus may carry out a command now.
    ///
    /// # Errors
    /// RESERVATION CONFLICT.
    pub(crate) fn check(&self, nexus: &Nexus, access: Access) -> Result<(), Refusal> {
        if !self.any.load(Ordering::Acquire) || access == Access::Always {
            return Ok(());
        }
        // Commands of which the fields decide ask for themselves.
        if access == Access::ByFields {
            return Ok(());
        }
        self.unless_legacy(nexus.id)?;
        if self.read().allows(&Who::of(nexus), access) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    /// Nobody else holds a RESERVE(6).
    ///
    /// # Errors
    /// RESERVATION CONFLICT.
    pub(crate) fn unless_legacy(&self, nexus: u64) -> Result<(), Refusal> {
        match self.holder() {
            Some(holder) if holder != nexus => Err(Refusal::Conflict),
            _ => Ok(()),
        }
    }

    /// RESERVE(6) and (10), beside persistent reservations as SPC-3 5.6.3 has it: a registrant's
    /// succeeds and does nothing.
    ///
    /// # Errors
    /// RESERVATION CONFLICT.
    pub(crate) fn reserve(&self, nexus: u64, who: &Who) -> Result<(), Refusal> {
        self.unless_legacy(nexus)?;
        {
            let state = self.read();
            if state.key_of(who).is_some() {
                return Ok(());
            }
            if !state.registrations.is_empty() {
                return Err(Refusal::Conflict);
            }
        }
        *self.legacy.lock().unwrap_or_else(PoisonError::into_inner) = Some(nexus);
        self.publish();
        Ok(())
    }

    /// RELEASE(6) and (10), also what a nexus that is gone leaves behind: not an error if it holds
    /// nothing.
    pub(crate) fn release(&self, nexus: u64) {
        let mut legacy = self.legacy.lock().unwrap_or_else(PoisonError::into_inner);
        if *legacy == Some(nexus) {
            *legacy = None;
        }
        drop(legacy);
        self.publish();
    }

    /// A reset ends a RESERVE(6), whoever holds it.
    pub(crate) fn reset(&self) {
        *self.legacy.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.publish();
    }

    /// PERSISTENT RESERVE OUT: the new state is in force when it is durable, if it is to be.
    ///
    /// # Errors
    /// What the state machine says; a store that failed, and then nothing is changed.
    pub(crate) async fn change(
        &self,
        who: &Who,
        request: &Request,
        unit: [u8; 16],
        store: Option<&dyn UnitStore>,
    ) -> Result<Effects, Refusal> {
        let failed = Refusal::check(SenseKey::HardwareError, asc::INTERNAL_FAILURE);
        let _turn = self.turn.acquire().await.map_err(|_| failed)?;
        let (before, mut after) = {
            let state = self.read();
            (store::encode(&state), state.clone())
        };
        let effects = after.apply(who, request)?;
        if after.persist && store.is_none() {
            return Err(Refusal::in_list(20));
        }
        let bytes = store::encode(&after);
        let unsure = self.unsure.load(Ordering::Acquire);
        if let Some(store) = store.filter(|_| unsure || bytes != before) {
            self.unsure.store(true, Ordering::Release);
            store.save(unit, Kept::Reservations, &bytes).await.map_err(|error| {
                tracing::error!(%error, "reservations could not be kept; the change is refused");
                failed
            })?;
        }
        *self.write() = after;
        self.publish();
        self.unsure.store(false, Ordering::Release);
        Ok(effects)
    }

    /// PERSISTENT RESERVE IN.
    pub(crate) fn report(&self, action: u8, can_persist: bool) -> Vec<u8> {
        reports::report(&self.read(), action, can_persist)
    }
}
