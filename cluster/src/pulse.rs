//! A node's pulse, and what it hears of others': how silence is told from a lease that is long.

use std::{collections::BTreeMap, time::Duration};

use crate::{events::Timing, record::Run, rules, view::View};

/// The pulse of our own run: until when what others have heard of it lets changes be made.
#[derive(Debug)]
pub(crate) struct Pulse {
    silence: Duration,
    until: Duration,
    asked: bool,
    next: Duration,
}

impl Pulse {
    /// The first one is asked for now. Others can hear it from this moment on, whatever the answer.
    pub(crate) fn first(now: Duration, silence: Duration) -> Self {
        let mut pulse = Self { silence, until: Duration::ZERO, asked: true, next: now };
        pulse.until = pulse.lasts(now);
        pulse
    }

    /// How long one counts that was asked for at this time.
    fn lasts(&self, from: Duration) -> Duration {
        let margin = Timing::pulse_of(self.silence);
        let margin = if rules::hold(rules::Rule::Margin) { margin } else { Duration::ZERO };
        from + self.silence - margin
    }

    /// Until when changes may be made.
    pub(crate) fn until(&self) -> Duration {
        self.until
    }

    /// When the next is due; never, while one is under way.
    pub(crate) fn wake(&self) -> Duration {
        if self.asked { Duration::MAX } else { self.next }
    }

    /// Whether one is due; then it is under way.
    pub(crate) fn beat(&mut self, now: Duration) -> bool {
        let due = !self.asked && now >= self.next;
        self.asked |= due;
        due
    }

    /// It is in etcd, and was asked for at `sent`.
    pub(crate) fn carried(&mut self, now: Duration, sent: Duration) {
        let from = if rules::hold(rules::Rule::FromAsking) { sent } else { now };
        self.until = self.until.max(self.lasts(from));
        self.asked = false;
        self.next = now.max(sent + Timing::pulse_of(self.silence));
    }

    /// Nobody knows whether it is.
    pub(crate) fn unknown(&mut self, now: Duration) {
        self.asked = false;
        self.next = now + Timing::pulse_of(self.silence) / 4;
    }
}

/// The last that was heard of a node.
#[derive(Debug)]
struct Heard {
    lease: i64,
    revision: i64,
    at: Duration,
    /// It is not asked about before then.
    not_before: Duration,
}

/// What a node hears of the others.
#[derive(Debug, Default)]
pub(crate) struct Ears(BTreeMap<u16, Heard>);

impl Ears {
    /// A run was heard; an earlier pulse than the last one says nothing.
    pub(crate) fn hear(&mut self, now: Duration, Run { node, lease }: Run, revision: i64) {
        if self.0.get(&node).is_none_or(|heard| heard.revision < revision) {
            let heard = Heard { lease, revision, at: now, not_before: Duration::ZERO };
            self.0.insert(node, heard);
        }
    }

    /// When each member but `me` that has a pulse was silent for as long as its run said, with what was
    /// heard of it last.
    fn ends<'a>(
        &'a self,
        view: &'a View,
        me: u16,
    ) -> impl Iterator<Item = (Duration, Run, i64)> + 'a {
        let others = view.members.iter().filter(move |(node, _)| **node != me);
        others.filter_map(|(node, seen)| {
            let silence = Duration::from_millis(seen.record.silence?);
            let heard = self.0.get(node).filter(|heard| heard.lease == seen.record.lease)?;
            let run = Run { node: *node, lease: heard.lease };
            Some(((heard.at + silence).max(heard.not_before), run, heard.revision))
        })
    }

    /// When the next node is to be asked about, if it stays silent.
    pub(crate) fn due(&self, view: &View, me: u16) -> Option<Duration> {
        self.ends(view, me).map(|(end, ..)| end).min()
    }

    /// A member that was silent too long, and the revision of what was heard last.
    pub(crate) fn silent(&self, now: Duration, view: &View, me: u16) -> Option<(Run, i64)> {
        let mut over = self.ends(view, me).filter(|(end, ..)| *end <= now);
        over.next().map(|(_, run, revision)| (run, revision))
    }

    /// Nobody asks about a run again before that time.
    pub(crate) fn put_off(&mut self, run: Run, until: Duration) {
        if let Some(heard) = self.0.get_mut(&run.node) {
            heard.not_before = until;
        }
    }
}
