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
        let margin = Timing::margin_of(self.silence);
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
        self.next = now + Timing::pulse_of(self.silence) / 2;
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
pub(crate) struct Ears {
    heard: BTreeMap<u16, Heard>,
    /// Of whom etcd is asked whether it is as silent as it seems.
    asked: Option<u16>,
}

impl Ears {
    /// A run was heard; an earlier pulse than the last one says nothing.
    pub(crate) fn hear(&mut self, now: Duration, Run { node, lease }: Run, revision: i64) {
        if self.heard.get(&node).is_none_or(|heard| heard.revision < revision) {
            let heard = Heard { lease, revision, at: now, not_before: Duration::ZERO };
            self.heard.insert(node, heard);
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
            let heard = self.heard.get(node).filter(|heard| heard.lease == seen.record.lease)?;
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

    /// etcd is asked about a run, and not again before that time.
    pub(crate) fn ask(&mut self, run: Run, until: Duration) {
        self.asked = Some(run.node);
        self.put_off(run.node, until);
    }

    /// A transaction has ended. If it was the question and etcd has heard the node since, what we hear is
    /// late: until it has come, there is time for everything else.
    pub(crate) fn answered(&mut self, refused: bool, until: Duration) {
        if let Some(node) = self.asked.take()
            && refused
        {
            self.put_off(node, until);
        }
    }

    fn put_off(&mut self, node: u16, until: Duration) {
        if let Some(heard) = self.heard.get_mut(&node) {
            heard.not_before = until;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Keys, Member, Record};

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn who_is_not_as_silent_as_it_seems_is_asked_about_a_good_while_later() {
        let keys = Keys::new("c");
        let mut view = View::new(keys.clone());
        let member = Member {
            lease: 7,
            name: "n".into(),
            version: "1".into(),
            roles: vec![],
            unfit: vec![],
            serving: vec![],
            reach: None,
            silence: Some(700),
        };
        view.take(&keys.member(2), Some(&member.to_bytes()), 1).unwrap();
        let (mut ears, run) = (Ears::default(), Run { node: 2, lease: 7 });
        ears.hear(ms(0), run, 5);
        assert_eq!(ears.silent(ms(699), &view, 1), None);
        assert_eq!(ears.silent(ms(700), &view, 1), Some((run, 5)));
        ears.ask(run, ms(1100));
        // Nobody knows: again when it was said.
        ears.answered(false, ms(1900));
        assert_eq!(ears.silent(ms(1100), &view, 1), Some((run, 5)));
        ears.ask(run, ms(1500));
        ears.answered(true, ms(1900));
        assert_eq!(ears.silent(ms(1899), &view, 1), None);
        assert_eq!(ears.due(&view, 1), Some(ms(1900)));
        // Another transaction that is refused changes nothing, and what is heard counts at once.
        ears.answered(true, ms(9000));
        assert_eq!(ears.silent(ms(1900), &view, 1), Some((run, 5)));
        ears.hear(ms(1950), run, 6);
        assert_eq!(ears.due(&view, 1), Some(ms(2650)));
    }

    #[test]
    fn a_gate_leaves_time_for_what_has_passed_it() {
        for silence in [400, 700, 2000] {
            let pulse = Pulse::first(ms(0), ms(silence));
            assert!(pulse.until() + ms(150) <= ms(silence), "{silence}");
            assert!(pulse.until() > Timing::pulse_of(ms(silence)) * 2, "{silence}");
        }
    }
}
