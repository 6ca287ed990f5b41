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
    /// The file is to be deleted, or its access list changes.
    Delete,
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
            self.breaking = Some(Breaking { to, deadline, then: to, chained });
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
            (BreakReason::Sharing | BreakReason::Delete | BreakReason::Rename, _) => now.without(H),
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
                BreakReason::Sharing | BreakReason::Delete | BreakReason::Rename => H,
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
                let v2 = v2.map(|(parent, epoch)| (parent, epoch.wrapping_add(1)));
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

    /// What an open holds as it would be remembered: until a break is acknowledged, all of it.
    pub fn held(&self, open: u64) -> Option<CachingRecord> {
        let hold = self.holds.iter().find(|hold| hold.opens.contains(&open))?;
        Some(CachingRecord { state: hold.state.0, v2: hold.v2 })
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
                breaking: hold.breaking.is_some(),
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::users::Users;

    const RWH: LeaseState = LeaseState(7);
    const RH: LeaseState = LeaseState(3);

    fn lease(client: u8) -> LeaseId {
        let user = Users::default().get("U").id;
        let client = ClientId { guid: [client; 16], user };
        LeaseId { client, key: [1; 16] }
    }

    fn want(client: u8, state: LeaseState) -> CachingRequest {
        CachingRequest::Lease { id: lease(client), state, v2: Some((None, 0)) }
    }

    fn break_all(caching: &mut Caching, cause: BreakReason, open: u64) -> (Vec<Break>, bool) {
        let mut breaks = Vec::new();
        let wait = caching.break_for(cause, (open, None), |_, _| true, Instant::now(), &mut breaks);
        (breaks, wait.is_some())
    }

    #[test]
    fn an_open_takes_write_caching_and_waits_for_it() {
        let mut caching = Caching::default();
        assert_eq!(caching.acquire(1, want(1, RWH), false, false, false), RWH);
        let (breaks, waits) = break_all(&mut caching, BreakReason::Open, 2);
        assert!(waits && breaks.len() == 1 && breaks[0].acknowledge);
        assert_eq!((breaks[0].from, breaks[0].to, breaks[0].epoch), (RWH, RH, 2));
        let (breaks, waits) = break_all(&mut caching, BreakReason::Open, 3);
        assert!(waits && breaks.is_empty(), "it was told once");
        assert_eq!(caching.acknowledge(GrantOwner::Lease(lease(1)), RWH), Err(AckError::TooMuch));
        assert!(caching.awaits(GrantOwner::Lease(lease(1)), RH));
        assert_eq!(caching.acknowledge(GrantOwner::Lease(lease(1)), RH), Ok(RH));
        assert!(!caching.awaits(GrantOwner::Lease(lease(1)), RH));
        assert_eq!(
            caching.acknowledge(GrantOwner::Lease(lease(1)), RH),
            Err(AckError::NotBreaking)
        );
        assert!(!break_all(&mut caching, BreakReason::Open, 2).1);
        assert_eq!(caching.acquire(2, want(2, RWH), false, true, false), RH);
    }

    #[test]
    fn who_does_not_answer_loses_everything() {
        let mut caching = Caching::default();
        caching.acquire(1, CachingRequest::Oplock(OplockLevel::BATCH), false, false, false);
        let now = Instant::now();
        let mut breaks = Vec::new();
        let who = (2, None);
        let until =
            caching.break_for(BreakReason::Open, who, |_, _| true, now, &mut breaks).unwrap();
        assert_eq!(
            caching.break_for(BreakReason::Open, who, |_, _| true, until, &mut breaks),
            None
        );
        assert_eq!(caching.state(1), (NOTHING, false));
        assert!(caching.is_empty());
    }

    #[test]
    fn more_that_is_asked_meanwhile_follows_in_steps() {
        let mut caching = Caching::default();
        caching.acquire(1, want(1, RWH), false, false, false);
        let holder = GrantOwner::Lease(lease(1));
        assert!(break_all(&mut caching, BreakReason::Open, 2).1);
        assert!(break_all(&mut caching, BreakReason::Overwrite, 3).1);
        let mut told = Vec::new();
        let mut state = RH;
        while caching.acknowledge(holder, state).is_ok() {
            let Some(due) = caching.next_break(holder, Instant::now()) else { break };
            told.push((due.from, due.to, due.acknowledge));
            state = due.to;
        }
        assert_eq!(told, [(RH, R, true), (R, NOTHING, false)]);
    }

    #[test]
    fn a_write_takes_level_ii_from_its_own_open_too() {
        let mut caching = Caching::default();
        let two = CachingRequest::Oplock(OplockLevel::II);
        assert_eq!(caching.acquire(1, two, false, false, false), R);
        assert_eq!(caching.acquire(2, two, false, true, false), R);
        let (breaks, waits) = break_all(&mut caching, BreakReason::Change, 1);
        assert!(!waits && breaks.len() == 2 && breaks.iter().all(|b| !b.acknowledge));
        assert!(caching.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Acquire(u8, u32),
        Oplock(u8),
        Break(u8, u64),
        Acknowledge(u8),
        Leave(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..3, 0u32..8).prop_map(|(client, state)| Step::Acquire(client, state)),
            (0u8..3).prop_map(Step::Oplock),
            (0u8..6, 0u64..8).prop_map(|(cause, open)| Step::Break(cause, open)),
            (0u8..8).prop_map(Step::Acknowledge),
            (0u64..12).prop_map(Step::Leave),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whoever may cache writes is alone, and what is broken gets less, never more.
        #[test]
        fn writers_are_alone(steps in prop::collection::vec(step(), 1..60)) {
            let mut caching = Caching::default();
            let mut next = 100;
            for step in steps {
                let before: Vec<_> = caching.holds.iter().map(|h| (h.holder, h.state)).collect();
                match step {
                    Step::Acquire(client, state) => {
                        next += 1;
                        let others = caching.holds.iter()
                            .any(|h| h.holder != GrantOwner::Lease(lease(client)));
                        caching.acquire(next, want(client, LeaseState(state)), false, others, false);
                    }
                    Step::Oplock(level) => {
                        next += 1;
                        let level = [OplockLevel::II, OplockLevel::EXCLUSIVE, OplockLevel::BATCH]
                            [usize::from(level)];
                        let others = !caching.is_empty();
                        caching.acquire(next, CachingRequest::Oplock(level), false, others, false);
                    }
                    Step::Break(cause, open) => {
                        let cause = [BreakReason::Open, BreakReason::Overwrite, BreakReason::Sharing, BreakReason::Change,
                            BreakReason::Rename, BreakReason::Delete][usize::from(cause)];
                        let (breaks, _) = break_all(&mut caching, cause, open);
                        for due in breaks {
                            prop_assert!(due.to.without(due.from) == NOTHING && due.to != due.from);
                        }
                        for (holder, state) in before {
                            let now = caching.holds.iter().find(|h| h.holder == holder);
                            let now = now.map_or(NOTHING, |h| h.state);
                            prop_assert_eq!(now.without(state), NOTHING);
                        }
                    }
                    Step::Acknowledge(which) => {
                        let hold = caching.holds.get(usize::from(which));
                        let due = hold.and_then(|h| Some((h.holder, h.breaking.as_ref()?.to)));
                        if let Some((holder, to)) = due {
                            prop_assert_eq!(caching.acknowledge(holder, to), Ok(to));
                            caching.next_break(holder, Instant::now());
                        }
                    }
                    Step::Leave(which) => {
                        caching.leave(101 + which);
                    }
                }
                let writers = caching.holds.iter().filter(|h| h.state.any(W)).count();
                let holders = caching.holds.iter().filter(|h| h.state != NOTHING).count();
                prop_assert!(writers == 0 || holders == 1, "{:?}", caching);
            }
        }
    }
}
