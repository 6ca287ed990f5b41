//! What clients may cache of one file: oplocks and leases, and how they are broken
//! (MS-FSA 2.1.4.12, 2.1.5.18; MS-SMB2 3.3.4.6, 3.3.4.7).
//!
//! Both are the same thing here: a *hold* with a state of read, write and handle caching. The
//! holder of an oplock is one open, that of a lease is whatever opens carry its key.
//!
//! ```text
//!   held ──break──► breaking to less ──acknowledged, or the holder is gone──► held
//!                        └──────────────── time is over ──► nothing
//! ```
//! A state without write and handle caching is taken away at once, without acknowledgement.

use std::time::{Duration, Instant};

use smb_protocol::msg::{context::LeaseState, oplock::OplockLevel};

use crate::users::ClientId;
/// How long a holder may take to acknowledge (MS-SMB2, note on 3.3.4.6).
pub const BREAK_TIME: Duration = Duration::from_secs(35);

/// How long a break waits for a holder that is away and will be back: longer than any open is kept.
const AWAY_TIME: Duration = Duration::from_secs(360);

const R: LeaseState = LeaseState::READ;
const W: LeaseState = LeaseState::WRITE;
const H: LeaseState = LeaseState::HANDLE;
/// What the client of an open may cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CachingRecord {
    /// Read 1, handle 2, write 4.
    pub state: u32,
    /// Parent key and epoch of a lease of version 2.
    pub v2: Option<(Option<[u8; 16]>, u16)>,
}

/// Caches nothing.
pub const NOTHING: LeaseState = LeaseState(0);

/// A lease: the client that has it, as one user, and the key that it gave it (MS-SMB2 3.3.1.12). A
/// key that another user gives is of another lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId {
    /// Whose it is.
    pub client: ClientId,
    /// `LeaseKey`.
    pub key: [u8; 16],
}

/// Who holds the right to cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantOwner {
    /// One open, by name.
    Open(u64),
    /// All opens with this lease.
    Lease(LeaseId),
}

/// Why others must give up caching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakReason {
    /// The file is opened.
    Open,
    /// The file is opened and its content thrown away.
    Overwrite,
    /// An opener does not want to share.
    Sharing,
    /// The content or its length changes, or a range is locked.
    Change,
    /// The file gets another name.
    Rename,
    /// The file is to be deleted.
    Delete,
    /// Its access list or owner changes.
    Security,
}

/// A break to be told to the holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// Whom to tell.
    pub holder: GrantOwner,
    /// Opens of the holder.
    pub opens: Vec<u64>,
    /// State until now.
    pub from: LeaseState,
    /// State to go down to.
    pub to: LeaseState,
    /// An acknowledgement is awaited.
    pub acknowledge: bool,
    /// Epoch of leases of version 2, else 0.
    pub epoch: u16,
}

/// What is asked for at a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachingRequest {
    /// An oplock.
    Oplock(OplockLevel),
    /// A lease.
    Lease {
        /// Which.
        id: LeaseId,
        /// State.
        state: LeaseState,
        /// Parent key, if set, and epoch of version 2.
        v2: Option<(Option<[u8; 16]>, u16)>,
    },
}

impl CachingRequest {
    /// What is left of it where no client may cache writes (MS-SMB2 3.3.5.9, 3.3.5.9.8).
    pub fn without_writes(self) -> Self {
        match self {
            Self::Oplock(OplockLevel::EXCLUSIVE | OplockLevel::BATCH) => {
                Self::Oplock(OplockLevel::II)
            }
            Self::Lease { id, state, v2 } => {
                Self::Lease { id, state: state.without(LeaseState::WRITE), v2 }
            }
            other => other,
        }
    }
}

impl CachingRequest {
    /// What is left of it where several nodes serve a share, and cannot ask each other's clients to
    /// give up writes or handles (MS-SMB2 3.3.5.9, 3.3.5.9.8, 3.3.5.9.11). Of a `directory` no lease is
    /// given: nobody would hear of what another node changes in it.
    pub fn of_one_node(self, directory: bool) -> Self {
        match self.without_writes() {
            Self::Lease { id, state, v2 } => {
                let kept = if directory { NOTHING } else { R };
                Self::Lease { id, state: LeaseState(state.0 & kept.0), v2 }
            }
            other => other,
        }
    }
}

/// A lease as it stands, for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseView {
    /// Which.
    pub id: LeaseId,
    /// State.
    pub state: LeaseState,
    /// A break waits for its acknowledgement.
    pub breaking: bool,
    /// Parent key, if set, and epoch of version 2.
    pub v2: Option<(Option<[u8; 16]>, u16)>,
}

#[derive(Debug)]
struct Breaking {
    to: LeaseState,
    deadline: Instant,
    /// What must be given up as well, once this is acknowledged.
    then: LeaseState,
    /// It follows on another, and who had to wait for that waits for this too.
    chained: bool,
    /// The holder is away and has still to be told, when it is back.
    untold: bool,
}

#[derive(Debug)]
struct Grant {
    holder: GrantOwner,
    opens: Vec<u64>,
    state: LeaseState,
    breaking: Option<Breaking>,
    /// What the break that was acknowledged last left to be done.
    then: Option<LeaseState>,
    v2: Option<(Option<[u8; 16]>, u16)>,
}

impl Grant {
    /// What the holder may cache once it has done as told.
    fn remaining(&self) -> LeaseState {
        self.breaking.as_ref().map_or(self.state, |breaking| breaking.to)
    }

    fn is_oplock(&self) -> bool {
        matches!(self.holder, GrantOwner::Open(_))
    }

    /// Begins to take away what is not in `to`; what the holder is to be told.
    fn start_break(&mut self, to: LeaseState, chained: bool, now: Instant) -> Break {
        let acknowledge = self.state.any(W.or(H));
        let epoch = self.v2.as_mut().map_or(0, |(_, epoch)| {
            *epoch = epoch.wrapping_add(1);
            *epoch
        });
        let (holder, opens, from) = (self.holder, self.opens.clone(), self.state);
        if acknowledge {
            let deadline = now + BREAK_TIME;
            let untold = false;
            self.breaking = Some(Breaking { to, deadline, then: to, chained, untold });
        } else {
            self.state = to;
        }
        Break { holder, opens, from, to, acknowledge, epoch }
    }

    /// What `cause` leaves of the state.
    fn left_by(&self, cause: BreakReason) -> LeaseState {
        let now = self.remaining();
        match (cause, self.is_oplock()) {
            (BreakReason::Open, true) if now.any(W) => R,
            (BreakReason::Open, _) => now.without(W),
            (BreakReason::Overwrite | BreakReason::Change, _) => NOTHING,
            (BreakReason::Sharing | BreakReason::Delete, true) if now.any(H) => R,
            (BreakReason::Rename, true) if now.any(H) => NOTHING,
            // MS-FSA 2.1.4.12: of oplocks an access list takes nothing.
            (BreakReason::Security, true) => now,
            (
                BreakReason::Sharing
                | BreakReason::Delete
                | BreakReason::Rename
                | BreakReason::Security,
                _,
            ) => now.without(H),
        }
    }
}

/// Everything that is held of one file.
#[derive(Debug, Default)]
pub struct Caching {
    holds: Vec<Grant>,
}

/// The level of an oplock with that state.
pub fn level_of(state: LeaseState) -> OplockLevel {
    match (state.any(H), state.any(W), state.any(R)) {
        (true, ..) => OplockLevel::BATCH,
        (_, true, _) => OplockLevel::EXCLUSIVE,
        (_, _, true) => OplockLevel::II,
        _ => OplockLevel::NONE,
    }
}

/// The state of an oplock of that level.
pub fn state_of(level: OplockLevel) -> LeaseState {
    match level {
        OplockLevel::BATCH => R.or(W).or(H),
        OplockLevel::EXCLUSIVE => R.or(W),
        OplockLevel::II => R,
        _ => NOTHING,
    }
}

impl Caching {
    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Whether `open` belongs to the holder.
    fn is_mine(hold: &Grant, open: u64, lease: Option<LeaseId>) -> bool {
        hold.opens.contains(&open) || lease.is_some_and(|id| hold.holder == GrantOwner::Lease(id))
    }

    /// Breaks what does not go together with `cause`, done by `open` (with `lease`, if it has
    /// one), where `concerns` says so of the opens of a holder. Returns until when the doer must
    /// wait at most, if it must, and adds to `breaks` what is to be told.
    pub fn break_for(
        &mut self,
        cause: BreakReason,
        (open, lease): (u64, Option<LeaseId>),
        concerns: impl Fn(&GrantOwner, &[u64]) -> bool,
        now: Instant,
        breaks: &mut Vec<Break>,
    ) -> Option<Instant> {
        self.expire(now);
        let mut wait: Option<Instant> = None;
        for hold in &mut self.holds {
            // Not even its holder may change what an oplock of level II shows others.
            let shared = hold.is_oplock() && !hold.state.any(W) && cause == BreakReason::Change;
            if Self::is_mine(hold, open, lease) && !shared || !concerns(&hold.holder, &hold.opens) {
                continue;
            }
            let to = hold.left_by(cause);
            let lost = hold.state.without(to);
            // What is waited for: write caching by an open, handle caching where it hinders.
            let awaited = match cause {
                BreakReason::Open | BreakReason::Overwrite => W,
                BreakReason::Sharing
                | BreakReason::Delete
                | BreakReason::Rename
                | BreakReason::Security => H,
                BreakReason::Change => W,
            };
            let awaited = if hold.is_oplock() { W.or(H) } else { awaited };
            let wait_for = |wait: &mut Option<Instant>, deadline: Instant| {
                *wait = Some(wait.map_or(deadline, |other| other.min(deadline)));
            };
            match &mut hold.breaking {
                Some(breaking) => {
                    // It goes on from there when that is acknowledged; who must wait, waits.
                    breaking.then = LeaseState(breaking.then.0 & to.0);
                    let chained = breaking.chained
                        && matches!(cause, BreakReason::Open | BreakReason::Overwrite);
                    if lost.any(awaited) || chained {
                        wait_for(&mut wait, breaking.deadline);
                    }
                }
                None if lost != NOTHING => {
                    breaks.push(hold.start_break(to, false, now));
                    if let Some(breaking) = &hold.breaking
                        && lost.any(awaited)
                    {
                        wait_for(&mut wait, breaking.deadline);
                    }
                }
                None => {}
            }
        }
        self.tidy();
        wait
    }

    /// Takes everything from those who did not acknowledge in time.
    fn expire(&mut self, now: Instant) {
        for hold in &mut self.holds {
            if hold.breaking.as_ref().is_some_and(|breaking| breaking.deadline <= now) {
                hold.breaking = None;
                hold.state = NOTHING;
            }
        }
        self.tidy();
    }

    /// Oplocks without caching are nothing; a lease lasts as long as its opens.
    fn tidy(&mut self) {
        self.holds.retain(|hold| !hold.is_oplock() || hold.state != NOTHING);
    }

    /// Grants what can be granted of `want` to `open`. `others` says whether an open that has no
    /// part in the lease, and reads or writes, is there; `locked` whether ranges are locked.
    pub fn acquire(
        &mut self,
        open: u64,
        want: CachingRequest,
        directory: bool,
        others: bool,
        locked: bool,
    ) -> LeaseState {
        let (holder, mut state, v2) = match want {
            CachingRequest::Oplock(level) => (GrantOwner::Open(open), state_of(level), None),
            CachingRequest::Lease { id, state, v2 } => (GrantOwner::Lease(id), state, v2),
        };
        if directory {
            state = if holder == GrantOwner::Open(open) { NOTHING } else { state.without(W) };
        }
        // Only R, RH, RW and RWH can be had.
        if !state.any(R) || locked {
            state = NOTHING;
        }
        let theirs = |hold: &&Grant| hold.holder != holder;
        let oplock = |hold: &Grant| hold.is_oplock();
        let exclusive = self.holds.iter().filter(theirs).any(|h| h.state.any(W));
        let handles = self.holds.iter().filter(theirs).any(|h| h.state.any(H));
        let two = self.holds.iter().filter(theirs).any(|h| oplock(h) && h.state != NOTHING);
        if exclusive {
            state = NOTHING;
        }
        match holder {
            GrantOwner::Open(_) => {
                if state.any(W) && others {
                    state = R;
                }
                if handles {
                    state = NOTHING;
                }
            }
            GrantOwner::Lease(_) => {
                if others || handles {
                    state = state.without(W);
                }
                if two {
                    state = state.without(H.or(W));
                }
            }
        }
        match self.holds.iter_mut().find(|hold| hold.holder == holder) {
            Some(hold) => {
                hold.opens.push(open);
                // A lease grows by all that is asked for or by nothing (MS-SMB2 3.3.5.9.8).
                let whole = matches!(want, CachingRequest::Lease { state: asked, .. } if asked == state)
                    || directory;
                let more = whole
                    && state.without(hold.state) != NOTHING
                    && hold.state.without(state) == NOTHING
                    && hold.breaking.is_none();
                if more {
                    hold.state = state;
                    if let Some((_, epoch)) = &mut hold.v2 {
                        *epoch = epoch.wrapping_add(1);
                    }
                }
                hold.state
            }
            None => {
                if holder == GrantOwner::Open(open) && state == NOTHING {
                    return NOTHING;
                }
                // What is not granted changes nothing, and counts as no change.
                let step = u16::from(state != NOTHING);
                let v2 = v2.map(|(parent, epoch)| (parent, epoch.wrapping_add(step)));
                let opens = vec![open];
                self.holds.push(Grant { holder, opens, state, breaking: None, then: None, v2 });
                state
            }
        }
    }

    /// The client has done as told; the state it kept. The error says why that is wrong.
    pub fn acknowledge(
        &mut self,
        holder: GrantOwner,
        kept: LeaseState,
    ) -> Result<LeaseState, AckError> {
        let hold = self.holds.iter_mut().find(|h| h.holder == holder).ok_or(AckError::NotHeld)?;
        let Some(breaking) = &hold.breaking else { return Err(AckError::NotBreaking) };
        if kept.without(breaking.to) != NOTHING {
            if hold.is_oplock() {
                hold.state = NOTHING;
                hold.breaking = None;
                self.tidy();
            }
            return Err(AckError::TooMuch);
        }
        hold.then = Some(breaking.then);
        hold.state = kept;
        hold.breaking = None;
        self.tidy();
        Ok(kept)
    }

    /// Whether the holder has still to acknowledge that it goes down to `to`.
    pub fn awaits(&self, holder: GrantOwner, to: LeaseState) -> bool {
        let hold = self.holds.iter().find(|hold| hold.holder == holder);
        hold.and_then(|hold| hold.breaking.as_ref()).is_some_and(|breaking| breaking.to == to)
    }

    /// What the holder is to be told after it has acknowledged, because more was asked of it
    /// meanwhile.
    pub fn next_break(&mut self, holder: GrantOwner, now: Instant) -> Option<Break> {
        let hold = self.holds.iter_mut().find(|h| h.holder == holder)?;
        let then = hold.then.take()?;
        let end = LeaseState(hold.state.0 & then.0);
        if hold.breaking.is_some() || hold.state.without(end) == NOTHING {
            return None;
        }
        // In steps: the handle first, what was read after that.
        let to = if hold.state.any(H) && !end.any(H) { hold.state.without(H) } else { end };
        let due = hold.start_break(to, true, now);
        if let Some(breaking) = &mut hold.breaking {
            breaking.then = end;
        }
        Some(due)
    }

    /// Takes an open away from what it holds; the lease that ended with it.
    pub fn leave(&mut self, open: u64) -> Option<LeaseId> {
        let at = self.holds.iter().position(|hold| hold.opens.contains(&open))?;
        let hold = &mut self.holds[at];
        hold.opens.retain(|id| *id != open);
        if !hold.opens.is_empty() {
            return None;
        }
        match self.holds.swap_remove(at).holder {
            GrantOwner::Lease(id) => Some(id),
            GrantOwner::Open(_) => None,
        }
    }

    /// What an open holds as it would be remembered: until a break is acknowledged, all of it; but of a
    /// break that others did not wait for nobody would tell the holder.
    pub fn held(&self, open: u64) -> Option<CachingRecord> {
        let hold = self.holds.iter().find(|hold| hold.opens.contains(&open))?;
        let (mut state, mut v2) = (hold.state.0, hold.v2);
        // Who must wait for cached writes has seen nothing yet, and waits again.
        let passed = |breaking: &&Breaking| breaking.untold && !hold.state.any(W);
        if let Some(breaking) = hold.breaking.as_ref().filter(passed) {
            state = breaking.to.0;
            v2 = v2.map(|(parent, epoch)| (parent, epoch.wrapping_add(1)));
        }
        Some(CachingRecord { state, v2 })
    }

    /// The holder of an open is away and will be back: it keeps what it has until it has been told of
    /// the break that is due, if one is (MS-SMB2 3.3.4.7, `Lease.BreakNotification`).
    pub fn tell_later(&mut self, open: u64, now: Instant) {
        let hold = self.holds.iter_mut().find(|hold| hold.opens.contains(&open));
        let Some(hold) = hold else { return };
        let Some(breaking) = &mut hold.breaking else { return };
        breaking.deadline = now + AWAY_TIME;
        if !breaking.untold {
            breaking.untold = true;
            if let Some((_, epoch)) = &mut hold.v2 {
                *epoch = epoch.wrapping_sub(1);
            }
        }
    }

    /// The holder of an open is back: what it is to be told now.
    pub fn tell_now(&mut self, open: u64, now: Instant) -> Option<Break> {
        let hold = self.holds.iter_mut().find(|hold| hold.opens.contains(&open))?;
        let breaking = hold.breaking.as_mut().filter(|breaking| breaking.untold)?;
        breaking.untold = false;
        breaking.deadline = now + BREAK_TIME;
        let (from, to, acknowledge) = (hold.state, breaking.to, true);
        let epoch = hold.v2.as_mut().map_or(0, |(_, epoch)| {
            *epoch = epoch.wrapping_add(1);
            *epoch
        });
        let (holder, opens) = (hold.holder, hold.opens.clone());
        Some(Break { holder, opens, from, to, acknowledge, epoch })
    }

    /// Who holds what an open does, and all its opens.
    pub fn holder_of(&self, open: u64) -> Option<(GrantOwner, &[u64])> {
        let hold = self.holds.iter().find(|hold| hold.opens.contains(&open))?;
        Some((hold.holder, &hold.opens))
    }

    /// The first open of a lease without handle caching is taken up again, with this of its epoch in
    /// the request. Numbers go on from the later of both, and a lease that is read by is another then
    /// (MS-SMB2, note on 3.3.5.9.12).
    pub fn take_epoch(&mut self, open: u64, asked: u16) {
        let Some(hold) = self.holds.iter_mut().find(|hold| hold.opens.contains(&open)) else {
            return;
        };
        let Some((_, epoch)) = &mut hold.v2 else { return };
        if !hold.state.any(H) && (1..0x8000).contains(&asked.wrapping_sub(*epoch)) {
            *epoch = asked.wrapping_add(u16::from(hold.state == R));
        }
    }

    /// Takes from the holder of an open all that it has, and tells nobody.
    pub fn lose(&mut self, open: u64) {
        if let Some((holder, _)) = self.holder_of(open) {
            self.unreachable(holder);
        }
    }

    /// Gives an open back what it held when the server ended.
    pub fn restore(
        &mut self,
        open: u64,
        holder: GrantOwner,
        state: LeaseState,
        v2: Option<(Option<[u8; 16]>, u16)>,
    ) {
        match self.holds.iter_mut().find(|hold| hold.holder == holder) {
            Some(hold) => hold.opens.push(open),
            None => {
                let opens = vec![open];
                self.holds.push(Grant { holder, opens, state, breaking: None, then: None, v2 });
            }
        }
    }

    /// What an open holds; a break that waits counts as done.
    pub fn state(&self, open: u64) -> (LeaseState, bool) {
        let hold = self.holds.iter().find(|hold| hold.opens.contains(&open));
        hold.map_or((NOTHING, false), |hold| (hold.state, hold.breaking.is_some()))
    }

    /// The lease that an open has part in.
    pub fn lease(&self, open: u64) -> Option<LeaseView> {
        let hold = self.holds.iter().find(|hold| hold.opens.contains(&open))?;
        match hold.holder {
            GrantOwner::Lease(id) => Some(LeaseView {
                id,
                state: hold.state,
                breaking: hold.breaking.as_ref().is_some_and(|breaking| !breaking.untold),
                v2: hold.v2,
            }),
            GrantOwner::Open(_) => None,
        }
    }

    /// The holder cannot be told: it loses everything at once.
    pub fn unreachable(&mut self, holder: GrantOwner) {
        if let Some(hold) = self.holds.iter_mut().find(|hold| hold.holder == holder) {
            hold.state = NOTHING;
            hold.breaking = None;
        }
        self.tidy();
    }
}

/// Why an acknowledgement is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckError {
    /// The holder holds nothing.
    NotHeld,
    /// Nothing was to be acknowledged.
    NotBreaking,
    /// It keeps more than it may.
    TooMuch,
}

#[cfg(test)]
mod tests;
