//! Persistent reservations of one logical unit as a machine without clock, disk or nexus
//! (SPC-4 5.13): a request changes the state, and says who has to be told what.
//!
//! ```text
//!   unregistered ── REGISTER ──► registered ── RESERVE ──► holder
//!        ▲                          │  ▲                     │
//!        └─ key 0, CLEAR, PREEMPT ──┘  └── RELEASE ──────────┘
//! ```

use std::sync::Arc;

use crate::{asc, cdb::Access, refusal::Refusal};

/// Most registrations of one logical unit.
pub(crate) const MAX_REGISTRATIONS: usize = 256;

/// An initiator port as a target port sees it: what registrations are kept by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    pub initiator: Arc<str>,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    pub who: Who,
    pub key: u64,
}

/// The type of a reservation (SPC-4 6.15.3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrants,
        Self::ExclusiveAccessRegistrants,
        Self::WriteExclusiveAll,
        Self::ExclusiveAccessAll,
    ];

    pub(crate) fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Every registrant holds it.
    pub(crate) const fn all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    /// What registrants may do does not end with the holder's own rights.
    const fn for_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    const fn exclusive(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess | Self::ExclusiveAccessRegistrants | Self::ExclusiveAccessAll
        )
    }
}

/// A reservation; of a kind that all registrants hold there is no single holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub kind: Kind,
    pub holder: Option<Who>,
}

/// Everything that PERSISTENT RESERVE OUT changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub generation: u32,
    pub registrations: Vec<Registration>,
    pub reservation: Option<Reservation>,
    /// The last registration asked that all this outlives a loss of power.
    pub persist: bool,
}

/// A service action with its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Register { key: u64, new: u64, ignore: bool, persist: bool, others: Vec<Who> },
    Reserve { key: u64, kind: Kind },
    Release { key: u64, kind: u8 },
    Clear { key: u64 },
    Preempt { key: u64, victim: u64, kind: Option<Kind>, abort: bool },
    Move { key: u64, new: u64, unregister: bool, persist: bool, to: Who },
}

/// What has to happen besides.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Unit attentions.
    pub tell: Vec<(Who, u16)>,
    /// Commands of those who were preempted must be over before the answer.
    pub fence: bool,
}

type Applied = Result<Effects, Refusal>;

impl State {
    pub(crate) fn key_of(&self, who: &Who) -> Option<u64> {
        self.registrations.iter().find(|it| it.who == *who).map(|it| it.key)
    }

    pub(crate) fn holds(&self, who: &Who) -> bool {
        self.reservation.as_ref().is_some_and(|it| match &it.holder {
            Some(holder) => holder == who,
            None => self.key_of(who).is_some(),
        })
    }

    /// Whether a command of `who` may be carried out (SPC-4 table 50, SBC-3 table 14).
    pub(crate) fn allows(&self, who: &Who, access: Access) -> bool {
        let Some(reservation) = &self.reservation else { return true };
        let kind = reservation.kind;
        let conflicts = match access {
            Access::Always | Access::Free | Access::ByFields => false,
            Access::Read => kind.exclusive(),
            Access::Write => true,
        };
        !conflicts || self.holds(who) || (kind.for_registrants() && self.key_of(who).is_some())
    }

    /// Carries out a service action.
    ///
    /// # Errors
    /// RESERVATION CONFLICT or what is wrong with the parameters; the state is as it was.
    pub(crate) fn apply(&mut self, who: &Who, request: &Request) -> Applied {
        match request {
            Request::Register { key, new, ignore, persist, others } => {
                self.register(who, *key, *new, (*ignore, *persist), others)
            }
            Request::Reserve { key, kind } => self.reserve(who, *key, *kind),
            Request::Release { key, kind } => self.release(who, *key, *kind),
            Request::Clear { key } => self.clear(who, *key),
            Request::Preempt { key, victim, kind, abort } => {
                self.check(who, *key)?;
                let tell = self.preempt(who, *victim, *kind)?;
                Ok(Effects { tell, fence: *abort })
            }
            Request::Move { key, new, unregister, persist, to } => {
                self.move_to(who, *key, *new, (*unregister, *persist), to)
            }
        }
    }

    /// Who asks must be registered with this key.
    fn check(&self, who: &Who, key: u64) -> Result<(), Refusal> {
        if self.key_of(who) == Some(key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn set(&mut self, who: &Who, key: u64) -> Result<(), Refusal> {
        if let Some(own) = self.registrations.iter_mut().find(|it| it.who == *who) {
            own.key = key;
        } else if self.registrations.len() >= MAX_REGISTRATIONS {
            return Err(Refusal::illegal(asc::REGISTRATION_RESOURCES));
        } else {
            self.registrations.push(Registration { who: who.clone(), key });
        }
        Ok(())
    }

    fn register(
        &mut self,
        who: &Who,
        key: u64,
        new: u64,
        (ignore, persist): (bool, bool),
        others: &[Who],
    ) -> Applied {
        let own = self.key_of(who);
        if !ignore && own.unwrap_or(0) != key {
            return Err(Refusal::Conflict);
        }
        if new == 0 {
            if own.is_none() {
                return Ok(Effects::default());
            }
            let mut tell = Vec::new();
            for who in std::iter::once(who).chain(others) {
                tell.extend(self.unregister(who));
            }
            // Those that go with it are told nothing.
            tell.retain(|(it, _)| self.key_of(it).is_some());
            self.persist = persist;
            self.next_generation();
            return Ok(Effects { tell, fence: false });
        }
        let mut after = self.clone();
        for who in std::iter::once(who).chain(others) {
            after.set(who, new)?;
        }
        after.persist = persist;
        after.next_generation();
        *self = after;
        Ok(Effects::default())
    }

    /// Removes a registration, and the reservation if it goes with it (SPC-4 5.13.11.3).
    fn unregister(&mut self, who: &Who) -> Vec<(Who, u16)> {
        let held = self.holds(who);
        self.registrations.retain(|it| it.who != *who);
        let Some(reservation) = self.reservation.as_ref().filter(|_| held) else {
            return Vec::new();
        };
        let kind = reservation.kind;
        if kind.all_registrants() && !self.registrations.is_empty() {
            return Vec::new();
        }
        self.reservation = None;
        if kind.for_registrants() {
            self.all_but(who, asc::RESERVATIONS_RELEASED)
        } else {
            Vec::new()
        }
    }

    fn all_but(&self, who: &Who, code: u16) -> Vec<(Who, u16)> {
        let others = self.registrations.iter().filter(|it| it.who != *who);
        others.map(|it| (it.who.clone(), code)).collect()
    }

    fn take(&mut self, who: &Who, kind: Kind) {
        let holder = (!kind.all_registrants()).then(|| who.clone());
        self.reservation = Some(Reservation { kind, holder });
    }

    fn reserve(&mut self, who: &Who, key: u64, kind: Kind) -> Applied {
        self.check(who, key)?;
        match &self.reservation {
            None => self.take(who, kind),
            Some(current) if current.kind == kind && self.holds(who) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Effects::default())
    }

    fn release(&mut self, who: &Who, key: u64, kind: u8) -> Applied {
        self.check(who, key)?;
        if !self.holds(who) {
            return Ok(Effects::default());
        }
        let Some(current) = self.reservation.as_ref().map(|it| it.kind) else {
            return Ok(Effects::default());
        };
        if current as u8 != kind {
            return Err(Refusal::illegal(asc::INVALID_RELEASE));
        }
        self.reservation = None;
        let tell = if current.for_registrants() {
            self.all_but(who, asc::RESERVATIONS_RELEASED)
        } else {
            Vec::new()
        };
        Ok(Effects { tell, fence: false })
    }

    fn clear(&mut self, who: &Who, key: u64) -> Applied {
        self.check(who, key)?;
        let tell = self.all_but(who, asc::RESERVATIONS_PREEMPTED);
        self.registrations.clear();
        self.reservation = None;
        self.next_generation();
        Ok(Effects { tell, fence: false })
    }

    /// SPC-4 5.13.11.4: takes the reservation over if `victim` names it, and registrations away.
    fn preempt(
        &mut self,
        who: &Who,
        victim: u64,
        kind: Option<Kind>,
    ) -> Result<Vec<(Who, u16)>, Refusal> {
        let takes_over = self.reservation.as_ref().is_some_and(|it| match &it.holder {
            Some(holder) => victim != 0 && self.key_of(holder) == Some(victim),
            None => victim == 0,
        });
        let everybody = takes_over && victim == 0;
        if victim == 0 && !everybody {
            return Err(Refusal::in_list(8));
        }
        if takes_over && kind.is_none() {
            return Err(Refusal::in_cdb(2, Some(3)));
        }
        let goes =
            |it: &Registration| (everybody || it.key == victim) && !(takes_over && it.who == *who);
        let gone: Vec<Who> =
            self.registrations.iter().filter(|it| goes(it)).map(|it| it.who.clone()).collect();
        if gone.is_empty() && !takes_over {
            return Err(Refusal::Conflict);
        }
        let before = self.reservation.as_ref().map(|it| it.kind);
        self.registrations.retain(|it| !goes(it));
        let mut tell: Vec<_> = gone
            .into_iter()
            .filter(|it| it != who)
            .map(|it| (it, asc::REGISTRATIONS_PREEMPTED))
            .collect();
        if let Some(kind) = kind.filter(|_| takes_over) {
            if before != Some(kind) {
                tell.extend(self.all_but(who, asc::RESERVATIONS_RELEASED));
            }
            self.take(who, kind);
        } else if self.registrations.is_empty() {
            self.reservation = None;
        }
        self.next_generation();
        Ok(tell)
    }

    fn move_to(
        &mut self,
        who: &Who,
        key: u64,
        new: u64,
        (unregister, persist): (bool, bool),
        to: &Who,
    ) -> Applied {
        self.check(who, key)?;
        if new == 0 {
            return Err(Refusal::in_list(8));
        }
        if to == who {
            return Err(Refusal::in_list(24));
        }
        let Some(reservation) = self.reservation.clone() else { return Err(Refusal::Conflict) };
        if reservation.kind.all_registrants() || !self.holds(who) {
            return Err(Refusal::Conflict);
        }
        self.set(to, new)?;
        self.reservation = Some(Reservation { holder: Some(to.clone()), ..reservation });
        if unregister {
            self.registrations.retain(|it| it.who != *who);
        }
        self.persist = persist;
        self.next_generation();
        Ok(Effects::default())
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
