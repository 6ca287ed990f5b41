//! What one node does: events in, effects out. No clock, no socket, no thread.
//!
//! ```text
//!          Grant               Join (transaction)             Renew, again and again; and Pulse
//!  alone ─────────► has a lease ─────────────────► member ◄──────────────┐
//!    ▲                                               │    └──► the gate is open a little less long
//!    │ all roles have ended                          │         than the lease and the silence, from
//!    └── isolated ◄──────────────────────────────────┘         when we asked
//!        every role is killed       the gate's time is over, or etcd says that the run is none
//!
//!  role:  idle ─ Acquire ─► owned ─ Start ─► serves ─ Stop ─► idle ─ Release ─► another's turn
//!                  │                           └─ killed when it is lost ─► idle
//!                  └ only if nobody owns it, or who did is dead: its lease is gone, and so its gate
//!                    is closed; with agents, also only when one has said that it ended that node
//!
//!  another member:  heard ─ silent as long as it said ─► Lost (transaction, if it still is) ─► dead
//! ```
//!
//! Leases of etcd are seconds long, and begin anew with each of its leaders. So a node that has a
//! `silence` also sets a key of its own several times a second, in a transaction that is refused once it
//! is no member. What the others then do is safe by that alone: a node is taken away on the condition
//! that its pulse is still the one that was heard that long ago, and its gate was open no longer than
//! from when it asked for that one.
//!
//! A node does what follows from the records that it has seen, and every change of them is a
//! transaction on the condition that they are still so. So who has seen less does less, and never
//! anything wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub use crate::events::{Effect, Event, Fence, Now, Outcome, Renewal, Settings, Timing};
use crate::{
    placement::{may_take, place},
    pulse::{Ears, Pulse},
    record::{Member, Run, Standing},
    rules,
    transaction::{self, Ended, Purpose, Transaction},
    view::View,
};

/// A role that could not be served so often in a row is served with less than all of it.
const TRIES: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    None,
    Asked,
    Held { lease: i64, beating: bool },
}

/// What a role is here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Local {
    /// Nothing of it runs. It is to be given up for a reason, if it is ours.
    Idle(Option<String>),
    /// It runs, and serves or is about to.
    Running { generation: u64, serving: bool },
    /// It ends; then it is given up, if it is ours.
    Stopping(Option<String>),
}

/// A node of a cluster.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    view: Option<Box<View>>,
    lease: Lease,
    /// A lease that we had, and that is to be given back.
    old: Option<i64>,
    /// The run that we were last.
    ended: Option<Ended>,
    /// Until when the lease lets changes be made,
    leased: Duration,
    /// and with a silence, what the others wait for, too.
    pulse: Option<Pulse>,
    gate: Duration,
    ears: Ears,
    next_beat: Duration,
    next_try: Duration,
    local: BTreeMap<String, Local>,
    unfit: BTreeMap<String, Duration>,
    /// How often each role could not be served since it was served last.
    failures: BTreeMap<String, u32>,
    busy: Option<u64>,
    transactions: u64,
    /// Nothing is decided before the view has come so far,
    awaited: i64,
    /// nor before then, unless the view changes: what was decided last did not succeed.
    pause: Duration,
    fence_after: Duration,
    fencing: BTreeSet<Run>,
    leaving: bool,
    left: bool,
}

impl Engine {
    /// A node that has just been started.
    pub fn new(settings: Settings) -> Self {
        let roles = settings.roles.keys();
        Self {
            local: roles.map(|role| (role.clone(), Local::Idle(None))).collect(),
            settings,
            view: None,
            lease: Lease::None,
            old: None,
            ended: None,
            leased: Duration::ZERO,
            pulse: None,
            gate: Duration::ZERO,
            ears: Ears::default(),
            next_beat: Duration::ZERO,
            next_try: Duration::ZERO,
            unfit: BTreeMap::new(),
            failures: BTreeMap::new(),
            busy: None,
            transactions: 0,
            awaited: 0,
            pause: Duration::ZERO,
            fence_after: Duration::ZERO,
            fencing: BTreeSet::new(),
            leaving: false,
            left: false,
        }
    }

    /// Until when changes may be made, by the steady clock.
    pub fn gate(&self) -> Duration {
        self.gate
    }

    /// Whether the node is a member now, as far as it knows.
    pub fn is_member(&self) -> bool {
        self.run().is_some()
    }

    /// When something is to be done though nothing happens.
    pub fn wake(&self) -> Duration {
        let mut wake = self.next_try;
        if self.pause > Duration::ZERO {
            wake = wake.min(self.pause);
        }
        if let Lease::Held { beating, .. } = self.lease {
            wake = wake.min(self.gate);
            if !beating {
                wake = wake.min(self.next_beat);
            }
        }
        if let Some(pulse) = &self.pulse {
            wake = wake.min(pulse.wake());
        }
        if let Some(view) = self.view.as_ref().filter(|_| self.may_transact() && self.is_member())
            && let Some(due) = self.ears.due(view, self.settings.node)
        {
            wake = wake.min(due.max(self.pause));
        }
        self.unfit.values().fold(wake, |wake, at| wake.min(*at))
    }

    /// Takes what happened, and says what is to be done.
    pub fn on(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.left {
            return out;
        }
        // Before anything else: what comes late finds the gate closed.
        if matches!(self.lease, Lease::Held { .. }) && now.steady >= self.gate {
            self.isolate(now, &mut out);
        }
        self.take(now, event, &mut out);
        self.decide(now, &mut out);
        out
    }

    fn take(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        let timing = self.settings.timing;
        match event {
            Event::Tick => {}
            Event::Granted { lease, ttl, sent } => {
                if self.lease == Lease::Asked {
                    self.lease = Lease::Held { lease, beating: false };
                    self.next_beat = now.steady + timing.beat;
                    self.open_gate(now, sent, ttl, out);
                }
            }
            Event::NotGranted => {
                // An answer that comes twice is not one to what was asked since.
                if self.lease == Lease::Asked {
                    self.lease = Lease::None;
                    self.next_try = now.steady + timing.retry;
                }
            }
            Event::Renewed(renewal) => self.renewed(now, renewal, out),
            Event::NotRenewed => {
                if let Lease::Held { beating, .. } = &mut self.lease {
                    *beating = false;
                    self.next_beat = now.steady + timing.retry;
                }
            }
            Event::Gone(lost) => {
                if matches!(self.lease, Lease::Held { lease, .. } if lease == lost) {
                    self.isolate(now, out);
                }
            }
            Event::Pulsed { lease, sent, outcome } => self.pulsed(now, lease, sent, outcome, out),
            Event::Heard { run, revision } => self.ears.hear(now.steady, run, revision),
            Event::Seen(view) => self.seen(now, view, out),
            Event::Done { id, outcome } => {
                if self.busy == Some(id) {
                    self.busy = None;
                    let later = timing.retry + timing.silence.unwrap_or_default();
                    self.ears.answered(outcome == Outcome::Refused, now.steady + later);
                    match outcome {
                        Outcome::Carried(revision) => self.awaited = revision,
                        Outcome::Refused | Outcome::Unknown => {
                            self.pause = now.steady + timing.retry;
                        }
                    }
                }
            }
            Event::Started(role) => {
                if let Some(Local::Running { serving, .. }) = self.local.get_mut(&role) {
                    *serving = true;
                    self.failures.remove(&role);
                }
            }
            Event::Stopped(role) => self.ended(&role, None),
            Event::Failed(role, why) => {
                // A volume that is not there yet comes soon; one that does not come is asked for rarely.
                let failures = self.failures.entry(role.clone()).or_default();
                let unfit = timing.unfit / 16 * (1 << *failures);
                *failures = (*failures + 1).min(4);
                self.unfit.insert(role.clone(), now.steady + unfit);
                self.ended(&role, Some(format!("node {}: {why}", self.settings.node)));
            }
            Event::Fenced(run, result) => {
                self.fencing.remove(&run);
                self.fence_after = now.steady + 4 * timing.retry;
                if result.is_ok() {
                    self.note_fenced(run, out);
                }
            }
            Event::Leave => self.leaving = true,
        }
        self.unfit.retain(|_, until| *until > now.steady);
    }

    fn ended(&mut self, role: &str, why: Option<String>) {
        let Some(local) = self.local.get_mut(role) else { return };
        let release = match std::mem::replace(local, Local::Idle(None)) {
            Local::Stopping(release) | Local::Idle(release) => release,
            Local::Running { .. } => None,
        };
        *local = Local::Idle(why.or(release));
    }

    fn open_gate(&mut self, now: Now, sent: Duration, ttl: Duration, out: &mut Vec<Effect>) {
        let begins = if rules::hold(rules::Rule::FromAsking) { sent } else { now.steady };
        let margin = self.settings.timing.margin;
        let margin = if rules::hold(rules::Rule::Margin) { margin } else { Duration::ZERO };
        let until = (begins + ttl).saturating_sub(margin);
        // A lease's answers can come in another order.
        if until > self.leased || self.leased <= now.steady {
            self.leased = until;
            self.set_gate(out);
        }
    }

    /// The gate is open as long as both the lease and the pulse allow.
    fn set_gate(&mut self, out: &mut Vec<Effect>) {
        let until = self.pulse.as_ref().map_or(self.leased, |pulse| self.leased.min(pulse.until()));
        if until != self.gate {
            self.gate = until;
            out.push(Effect::Gate(until));
        }
    }

    fn pulsed(
        &mut self,
        now: Now,
        of: i64,
        sent: Duration,
        outcome: Outcome,
        out: &mut Vec<Effect>,
    ) {
        let ours = matches!(self.lease, Lease::Held { lease, .. } if lease == of);
        let Some(pulse) = self.pulse.as_mut().filter(|_| ours) else { return };
        match outcome {
            Outcome::Carried(_) => {
                pulse.carried(now.steady, sent);
                self.set_gate(out);
            }
            // Somebody has counted this run dead, before it is told by the view.
            Outcome::Refused => self.isolate(now, out),
            Outcome::Unknown => pulse.unknown(now.steady),
        }
    }

    fn renewed(&mut self, now: Now, renewal: Renewal, out: &mut Vec<Effect>) {
        let Lease::Held { lease, beating } = &mut self.lease else { return };
        if *lease != renewal.lease {
            return;
        }
        *beating = false;
        let counts = renewal.term == renewal.quorum_term || !rules::hold(rules::Rule::SameTerm);
        if counts {
            self.open_gate(now, renewal.sent, renewal.ttl, out);
        }
    }

    fn seen(&mut self, now: Now, view: Box<View>, out: &mut Vec<Effect>) {
        // Somebody may have taken our record away; what we had is in the view before.
        if self.run().is_some_and(|run| !view.is_alive(run)) {
            self.isolate(now, out);
        }
        // What kept us from serving a role that others have served since says nothing any more.
        let me = self.settings.node;
        self.failures.retain(|role, _| view.server(role).is_none_or(|server| server == me));
        self.view = Some(view);
        self.pause = Duration::ZERO;
    }

    /// The run that we are, if the view has it.
    fn run(&self) -> Option<Run> {
        let Lease::Held { lease, .. } = self.lease else { return None };
        let run = Run { node: self.settings.node, lease };
        self.view.as_ref()?.is_alive(run).then_some(run)
    }

    /// Nothing is served until there is another lease.
    fn isolate(&mut self, now: Now, out: &mut Vec<Effect>) {
        if let Lease::Held { lease, .. } = self.lease {
            self.old = Some(lease);
            let run = Run { node: self.settings.node, lease };
            let joined = self.view.as_ref().filter(|view| {
                view.nodes.get(&run.node).is_some_and(|seen| seen.record.lease == lease)
            });
            if let Some(view) = joined {
                self.ended = Some(Ended::now(view, run));
            }
        }
        self.lease = Lease::None;
        self.leased = Duration::ZERO;
        self.pulse = None;
        self.gate = Duration::ZERO;
        self.next_try = now.steady;
        if !rules::hold(rules::Rule::StopWhenIsolated) {
            return;
        }
        for (role, local) in &mut self.local {
            if matches!(local, Local::Running { .. }) {
                *local = Local::Stopping(None);
            }
            if matches!(local, Local::Stopping(_)) {
                out.push(Effect::Stop { role: role.clone(), orderly: false });
            }
        }
    }

    fn nothing_runs(&self) -> bool {
        self.local.values().all(|local| matches!(local, Local::Idle(_)))
            || !rules::hold(rules::Rule::StopWhenIsolated)
    }

    fn decide(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self.lease {
            Lease::None => {
                if now.steady < self.next_try || !self.nothing_runs() {
                    return;
                }
                // Nothing of ours runs, so the run that we were may be counted dead at once.
                if let Some(old) = self.old.take() {
                    out.push(Effect::Revoke(old));
                }
                if self.leaving {
                    self.left = true;
                    out.push(Effect::Left);
                    return;
                }
                self.lease = Lease::Asked;
                self.next_try = now.steady + self.settings.timing.retry;
                out.push(Effect::Grant(self.settings.timing.lease));
                return;
            }
            Lease::Asked => {
                self.next_try = now.steady + self.settings.timing.retry;
                return;
            }
            Lease::Held { lease, beating } => {
                if !beating && now.steady >= self.next_beat {
                    self.lease = Lease::Held { lease, beating: true };
                    self.next_beat = now.steady + self.settings.timing.beat;
                    out.push(Effect::Renew(lease));
                }
            }
        }
        let roles: Vec<String> = self.local.keys().cloned().collect();
        for role in &roles {
            self.give_up(role, out);
        }
        if now.steady >= self.next_try {
            self.next_try = now.steady + self.settings.timing.retry;
        }
        self.beat(now, out);
        if !self.may_transact() || now.steady < self.pause {
            return;
        }
        self.pause = Duration::ZERO;
        let transaction = match self.run() {
            None if self.leaving => {
                self.left = true;
                if let Lease::Held { lease, .. } = self.lease {
                    out.push(Effect::Revoke(lease));
                }
                out.push(Effect::Left);
                return;
            }
            None => self.join(now),
            Some(run) => self.next_transaction(now, run, &roles, out),
        };
        if let Some(mut transaction) = transaction {
            self.transactions += 1;
            transaction.id = self.transactions;
            self.busy = Some(transaction.id);
            out.push(Effect::Transact(transaction));
        }
    }

    /// Nothing is under way, and what was is in the view.
    fn may_transact(&self) -> bool {
        let up_to_date = self.view.as_ref().is_some_and(|view| view.revision >= self.awaited);
        self.busy.is_none() && up_to_date
    }

    /// Says that this run goes on, if it is a member's and the time has come.
    fn beat(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (Some(silence), Some(run)) = (self.settings.timing.silence, self.run()) else { return };
        let due = match &mut self.pulse {
            Some(pulse) => pulse.beat(now.steady),
            none => {
                *none = Some(Pulse::first(now.steady, silence));
                true
            }
        };
        if due {
            out.push(Effect::Pulse(run.lease));
            self.set_gate(out);
        }
    }

    fn join(&self, now: Now) -> Option<Transaction> {
        let Lease::Held { lease, .. } = self.lease else { return None };
        let view = self.view.as_ref()?;
        let me = self.settings.node;
        // A run before us, or another who has our number: until its lease is over. A run of our own that
        // we have ended is over.
        if let Some(there) = view.run(me)
            && !self.ended.as_ref().is_some_and(|ended| ended.is(there))
        {
            return None;
        }
        let who = (&self.member(lease), self.ended.as_ref());
        transaction::join(&self.settings, view, who, now)
    }

    fn member(&self, lease: i64) -> Member {
        let serves = |(role, local): (&String, &Local)| {
            matches!(local, Local::Running { serving: true, .. }).then(|| role.clone())
        };
        Member {
            lease,
            name: self.settings.name.clone(),
            version: self.settings.version.clone(),
            roles: self.settings.roles.keys().cloned().collect(),
            unfit: self.unfit.keys().cloned().collect(),
            serving: self.local.iter().filter_map(serves).collect(),
            reach: self.settings.reach.clone(),
            silence: self
                .settings
                .timing
                .silence
                .map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Why a role of ours goes elsewhere, if it does.
    fn reason_to_give(&self, view: &View, role: &str) -> Option<String> {
        let me = self.settings.node;
        let others = place(view, role, &self.settings.roles[role], Some(me)).is_some();
        if self.leaving {
            return Some(format!("node {me} has left"));
        }
        if let Some(wish) = view.wishes.get(role)
            && wish.record.node != me
            && may_take(view, role, wish.record.node)
        {
            let why = Some(&wish.record.reason).filter(|why| !why.is_empty());
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            return Some(format!("moved to node {}{why}", wish.record.node));
        }
        let reason = view.nodes.get(&me).map_or("", |seen| &seen.record.reason);
        match view.standing(me) {
            Standing::Draining if others => Some(format!("node {me} is drained: {reason}")),
            Standing::Quarantined if others => Some(format!("node {me} is in quarantine")),
            _ => None,
        }
    }

    /// Stops a role that is not ours any more, or is to go elsewhere.
    fn give_up(&mut self, role: &str, out: &mut Vec<Effect>) {
        let Some(Local::Running { generation, .. }) = self.local.get(role).cloned() else { return };
        let Some(view) = self.view.as_ref().filter(|view| view.revision >= self.awaited) else {
            return;
        };
        let run = self.run();
        let seen = view.roles.get(role).map(|seen| &seen.record);
        let ours = seen.is_some_and(|seen| {
            seen.owner == run && run.is_some() && seen.generation == generation
        });
        let reason = self.reason_to_give(view, role);
        if !ours {
            self.local.insert(role.to_owned(), Local::Stopping(None));
            out.push(Effect::Stop { role: role.to_owned(), orderly: false });
        } else if let Some(reason) = reason {
            self.local.insert(role.to_owned(), Local::Stopping(Some(reason)));
            out.push(Effect::Stop { role: role.to_owned(), orderly: true });
        }
    }

    fn next_transaction(
        &mut self,
        now: Now,
        run: Run,
        roles: &[String],
        out: &mut Vec<Effect>,
    ) -> Option<Transaction> {
        // What it says of itself comes first: others, and it itself, decide by that.
        let view = self.view.as_ref()?;
        let member = self.member(run.lease);
        let seen = view.members.get(&run.node)?;
        if seen.record != member {
            return Some(transaction::update(&self.settings.keys, seen.revision, run, &member));
        }
        if let Some((silent, heard)) = self.ears.silent(now.steady, view, run.node) {
            // Asked again in a while, should nobody know whether it was carried out.
            self.ears.ask(silent, now.steady + self.settings.timing.retry);
            return transaction::lost(&self.settings.keys, view, silent, heard);
        }
        for role in roles {
            let transaction = self.of_role(now, run, role, out);
            if transaction.is_some() {
                return transaction;
            }
        }
        let view = self.view.as_ref()?;
        let owns = view.roles.values().any(|seen| seen.record.owner == Some(run));
        let leaves = self.leaving && self.nothing_runs() && !owns;
        leaves.then(|| transaction::leave(&self.settings.keys, view, run)).flatten()
    }

    /// Why the node is no member, in words for its log.
    pub fn why_alone(&self) -> Option<String> {
        let me = self.settings.node;
        let Some(view) = &self.view else { return Some("etcd has not answered yet".to_owned()) };
        let Lease::Held { lease, .. } = self.lease else {
            return Some("it has no lease".to_owned());
        };
        match (view.members.get(&me), view.nodes.get(&me)) {
            (Some(seen), _) if seen.record.lease != lease => Some(format!(
                "node {me} is there already, as {}: an earlier run of this node whose lease is not \
                 over, or another one with the same number",
                seen.record.name
            )),
            (None, None) => {
                Some(format!("the cluster has no node {me}: run `bulkhead cluster join` on it"))
            }
            _ => None,
        }
    }

    /// What is to be done about a role of which nothing runs here; or what runs and gives it up early,
    /// where that rule is broken.
    fn of_role(
        &mut self,
        now: Now,
        run: Run,
        role: &str,
        out: &mut Vec<Effect>,
    ) -> Option<Transaction> {
        let view = self.view.as_ref()?;
        let keys = &self.settings.keys;
        let owner = view.owner(role);
        let release = match self.local.get(role)? {
            Local::Idle(release) => release.clone(),
            Local::Stopping(Some(why)) if !rules::hold(rules::Rule::StopFirst) => Some(why.clone()),
            _ => return None,
        };
        if owner == Some(run) {
            let release = release.or_else(|| self.reason_to_give(view, role));
            if let Some(reason) = release {
                return transaction::release(keys, view, role, &reason, now);
            }
            let seen = view.roles.get(role)?;
            let (revision, generation) = (seen.revision, seen.record.generation);
            let role = role.to_owned();
            self.local.insert(role.clone(), Local::Running { generation, serving: false });
            let tried = self.failures.get(&role).is_some_and(|count| *count >= TRIES);
            out.push(Effect::Start { role, revision, generation, tried });
            return None;
        }
        if release.is_some() {
            // It is another's already.
            self.local.insert(role.to_owned(), Local::Idle(None));
        }
        let dead = owner.filter(|owner| !view.is_alive(*owner));
        let chosen = place(view, role, self.settings.roles.get(role)?, None);
        let free = owner.is_none() || dead.is_some() || !rules::hold(rules::Rule::OnlyTheDead);
        if self.leaving || chosen != Some(run.node) || !free {
            return None;
        }
        if let Some(dead) = dead
            && self.settings.fence == Fence::Agent
            && rules::hold(rules::Rule::FenceFirst)
            && dead.node != run.node
            && view.fenced.get(&dead.node).is_none_or(|seen| seen.record.lease != dead.lease)
        {
            if now.steady >= self.fence_after && self.fencing.insert(dead) {
                out.push(Effect::Fence(dead));
            }
            return None;
        }
        transaction::acquire(keys, view, role, run, now)
    }

    fn note_fenced(&mut self, run: Run, out: &mut Vec<Effect>) {
        self.transactions += 1;
        let mut transaction = transaction::fenced(&self.settings.keys, run);
        transaction.id = self.transactions;
        debug_assert_eq!(transaction.purpose, Purpose::Fenced);
        out.push(Effect::Transact(transaction));
    }
}
