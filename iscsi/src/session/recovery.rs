//! What recovers from loss (RFC 7143 7): SNACK and kept answers (level 1), tasks that outlive
//! their connection (level 2).

use std::collections::VecDeque;

use bytes::Bytes;

use super::*;
use crate::pdu::{ScsiResponse, Snack, outcome};

/// The answer of a command.
#[derive(Debug)]
pub(super) struct Answered {
    pub id: u64,
    pub link: u32,
    /// Of its status, once that was sent.
    pub stat_sn: Option<u32>,
    pub data: Bytes,
    /// The longest Data-In, in bytes.
    pub segment: u32,
    /// DataSN of its first Data-In.
    pub first_sn: u32,
    /// What an acknowledgement of its Data-In names, and the first that was not acknowledged.
    pub ttt: u32,
    pub acknowledged: u32,
    pub lun: [u8; 8],
    pub response: ScsiResponse,
    pub sense: Bytes,
}

/// Connections of a session that are lost and not forgotten.
const LOST: usize = 16;

impl Session {
    /// Keeps an answer until its status is acknowledged; the oldest go where there are too many.
    pub(super) fn keep(&mut self, itt: u32, answered: Answered) {
        self.answered_bytes += answered.data.len();
        self.answered_order.push_back(TaskKey { itt, id: answered.id });
        if let Some(older) = self.answered.insert(itt, answered) {
            self.answered_bytes -= older.data.len();
        }
        while self.answered_bytes > self.setup.limits.kept_answers
            || self.answered.len() > KEPT_RESPONSES
            || self.answered_order.len() > 2 * KEPT_RESPONSES
        {
            let Some(key) = self.answered_order.pop_front() else { break };
            if self.answered.get(&key.itt).is_some_and(|it| it.id == key.id) {
                self.drop_answer(key.itt);
            }
        }
    }

    fn drop_answer(&mut self, itt: u32) {
        if let Some(it) = self.answered.remove(&itt) {
            self.answered_bytes -= it.data.len();
        }
        if self.answered.is_empty() {
            self.answered_order.clear();
        }
    }

    /// ExpStatSN came: what is below need not be kept.
    pub(super) fn acknowledge(&mut self, link: u32, exp_stat_sn: u32) {
        let Some(it) = self.links.get_mut(&link) else { return };
        // Nobody acknowledges what was not sent.
        if !before(it.acknowledged, exp_stat_sn) || before(it.stat_sn, exp_stat_sn) {
            return;
        }
        it.acknowledged = exp_stat_sn;
        let mut done = Vec::new();
        while let Some(kept) = it.kept.front()
            && before(kept.stat_sn, exp_stat_sn)
        {
            done.extend(kept.itt.map(|itt| (itt, kept.stat_sn)));
            it.kept.pop_front();
        }
        for (itt, stat_sn) in done {
            let same = |it: &Answered| it.link == link && it.stat_sn == Some(stat_sn);
            if self.answered.get(&itt).is_some_and(same) {
                self.drop_answer(itt);
            }
        }
    }

    pub(super) fn snack(&mut self, link: u32, snack: &Snack, frame: &Frame) {
        if self.level() == 0 {
            return self.reject(link, reason::PROTOCOL, frame);
        }
        let run = (snack.run > 0).then_some(snack.run);
        let found = match snack.kind {
            0 => self.repeat_data(link, snack, run),
            1 => self.repeat_status(link, snack.begin, run),
            3 => self.repeat_in_pieces(link, snack),
            _ if self.data_arrived(link, snack) => true,
            _ => return self.reject(link, reason::DATA_ACK, frame),
        };
        if !found {
            self.reject(link, reason::SNACK, frame);
        }
    }

    fn repeat_data(&mut self, link: u32, snack: &Snack, run: Option<u32>) -> bool {
        let itt = snack.itt;
        if let Some(task) = self.tasks.get(&itt).filter(|task| task.link == link) {
            let until = run.map_or(u32::MAX, |run| snack.begin.saturating_add(run));
            let within = |sn: u32| sn >= snack.begin && sn < until;
            let (lun, known) = (task.lun, task.data_sn > snack.begin);
            let asked: Vec<_> =
                task.asked.iter().filter(|asked| within(asked.r2t_sn)).copied().collect();
            for asked in &asked {
                self.send_r2t(link, itt, lun, asked);
            }
            return known;
        }
        let Some(answered) = self.answered.remove(&itt) else { return false };
        let same = answered.link == link;
        let known =
            same && (answered.acknowledged..answered.response.exp_data_sn).contains(&snack.begin);
        if known {
            self.send_data(&answered, snack.begin, run, None);
        }
        self.answered.insert(itt, answered);
        known
    }

    /// DataACK (RFC 7143 11.16.1): Data-In below a number arrived, and are not asked for again.
    fn data_arrived(&mut self, link: u32, snack: &Snack) -> bool {
        let of = |it: &&mut Answered| it.link == link && it.ttt == snack.ttt;
        let Some(it) = self.answered.values_mut().find(of) else { return false };
        let sound = snack.begin >= it.acknowledged && snack.begin <= it.response.exp_data_sn;
        if sound {
            it.acknowledged = snack.begin;
        }
        sound
    }

    fn repeat_status(&mut self, link: u32, begin: u32, run: Option<u32>) -> bool {
        let numbers = self.numbers();
        let Some(it) = self.links.get_mut(&link) else { return false };
        let within =
            |sn: u32| !before(sn, begin) && run.is_none_or(|run| sn.wrapping_sub(begin) < run);
        let mut found = false;
        for kept in it.kept.iter_mut().filter(|kept| within(kept.stat_sn)) {
            if let Some(sn) = kept.pdu.numbers() {
                *sn = Numbers { stat_sn: kept.stat_sn, ..numbers };
            }
            let digests = it.parameters.digests;
            it.output.push(kept.pdu.write(), kept.data.clone(), digests);
            found = true;
        }
        self.touch(link);
        found
    }

    /// R-Data SNACK (RFC 7143 11.16.3): all data again, as long as the initiator takes them now.
    fn repeat_in_pieces(&mut self, link: u32, snack: &Snack) -> bool {
        let Some(mut answered) = self.answered.remove(&snack.itt) else { return false };
        let same = answered.link == link;
        if same && let Some(it) = self.links.get_mut(&link) {
            answered.segment = it.parameters.initiator_max_recv;
            answered.response.snack_tag = snack.ttt;
            answered.response.exp_data_sn =
                self.send_data(&answered, answered.first_sn, None, None);
            if let Some(stat_sn) = answered.stat_sn {
                let kept = self
                    .links
                    .get_mut(&link)
                    .and_then(|it| it.kept.iter_mut().find(|kept| kept.stat_sn == stat_sn));
                if let Some(kept) = kept {
                    kept.pdu = Pdu::ScsiResponse(answered.response);
                }
                self.repeat_status(link, stat_sn, Some(1));
            }
        }
        self.answered.insert(snack.itt, answered);
        same
    }

    fn has_tasks(&self, link: u32) -> bool {
        self.tasks.values().any(|task| task.link == link)
            || self.answered.values().any(|answered| answered.link == link)
    }

    /// A connection is logged out: its tasks end, or wait for another connection to take them.
    pub(super) fn log_out(&mut self, link: u32, recover: bool) {
        if let Some(it) = self.links.get_mut(&link) {
            it.logged_out = true;
            if it.is_up() {
                it.state = State::Closing(Close::Now);
            }
            let ready = std::mem::take(&mut it.ready);
            self.stray.extend(ready);
            self.touch(link);
        }
        if !recover {
            self.abort_of(link);
        }
    }

    /// A connection has no socket any more.
    pub fn lose(&mut self, link: u32, now: u64) {
        let Some(it) = self.links.get_mut(&link) else { return };
        let (logged_out, ready) = (it.logged_out, std::mem::take(&mut it.ready));
        it.output = Output::default();
        it.text = None;
        self.stray.extend(ready);
        // Nobody is there to be told of their end; what was begun is done all the same.
        self.functions.retain(|it| !it.is_of(link));
        self.deferred.retain(|it| !it.is_of(link));
        let level = self.level();
        if self.over.is_some() || (logged_out && (level < 2 || !self.has_tasks(link))) {
            self.links.remove(&link);
            self.settle();
        } else if level < 2 {
            self.links.remove(&link);
            self.end("a connection was lost");
        } else if let Some(it) = self.links.get_mut(&link) {
            it.state = State::Lost(now);
            it.kept.clear();
            let lost = |it: &Link| matches!(it.state, State::Lost(_));
            if self.links.values().filter(|it| lost(it)).count() > LOST
                && let Some(oldest) =
                    self.links.iter().find(|(_, it)| lost(it)).map(|(key, _)| *key)
            {
                self.abandon(oldest);
            }
        }
        // Whoever clears away what is over waits for its last connection.
        self.news |= self.over.is_some();
        self.step_functions();
    }

    /// The driver of a connection failed, and the device with it: the session is over, and what that
    /// driver ran is not waited for.
    pub fn wreck(&mut self, link: u32) {
        self.end("its driver failed");
        let of = |(itt, task): (&u32, &Task)| (task.link == link).then_some(*itt);
        let tasks: Vec<u32> = self.tasks.iter().filter_map(of).collect();
        for itt in tasks {
            self.remove_task(itt);
        }
        self.links.remove(&link);
        self.news = true;
    }

    /// A lost connection is not waited for any longer.
    pub(super) fn abandon(&mut self, link: u32) {
        self.abort_of(link);
        self.links.remove(&link);
        self.settle();
    }

    fn abort_of(&mut self, link: u32) {
        let of = |(itt, task): (&u32, &Task)| (task.link == link).then_some(*itt);
        let tasks: Vec<u32> = self.tasks.iter().filter_map(of).collect();
        for itt in tasks {
            self.abort(itt);
        }
        let of = |(itt, it): (&u32, &Answered)| (it.link == link).then_some(*itt);
        let answers: Vec<u32> = self.answered.iter().filter_map(of).collect();
        for itt in answers {
            self.drop_answer(itt);
        }
    }

    /// TASK REASSIGN (RFC 7143 11.5.1): the outcome, and what is to be done behind the response.
    pub(super) fn reassign(&mut self, link: u32, itt: u32, from: u32) -> (u8, bool) {
        if self.level() < 2 {
            return (outcome::NO_REASSIGNMENT, false);
        }
        let owner = self
            .tasks
            .get(&itt)
            .map(|task| task.link)
            .or_else(|| self.answered.get(&itt).map(|answered| answered.link))
            .or_else(|| self.early_of(itt).map(|of| *of));
        let Some(owner) = owner else { return (outcome::NO_TASK, false) };
        if self.links.get(&owner).is_some_and(|it| it.is_up() && !it.logged_out) {
            return (outcome::STILL_ALLEGIANT, false);
        }
        if let Some(task) = self.tasks.get_mut(&itt) {
            task.link = link;
            task.unsolicited = None;
            task.give_up_asked();
            task.data_sn = task.data_sn.min(from);
        }
        if let Some(answered) = self.answered.get_mut(&itt) {
            answered.link = link;
        }
        if let Some(of) = self.early_of(itt) {
            *of = link;
        }
        (outcome::COMPLETE, true)
    }

    /// The connection of a command whose turn has not come.
    fn early_of(&mut self, itt: u32) -> Option<&mut u32> {
        self.early_commands().find(|(_, frame, _)| frame.basic.itt == itt).map(|(of, ..)| of)
    }

    /// Goes on with a task on the connection that took it over.
    pub(super) fn resume(&mut self, link: u32, itt: u32, from: u32) {
        if self.tasks.contains_key(&itt) {
            return self.go_on(itt);
        }
        let Some(mut answered) = self.answered.remove(&itt) else { return };
        let segment =
            self.links.get(&link).map_or(answered.segment, |it| it.parameters.initiator_max_recv);
        // Shorter pieces have other numbers; the initiator asks from the first one then.
        if from == 0 || segment < answered.segment {
            answered.segment = segment;
        }
        answered.response.snack_tag = 0;
        self.send_answer(&mut answered, from, false);
        self.answered.insert(itt, answered);
    }

    /// Takes a command out of a queue; whether it was in there.
    pub(super) fn take_out(runs: &mut VecDeque<Run>, key: TaskKey) -> bool {
        let before = runs.len();
        runs.retain(|run| run.key != key);
        runs.len() < before
    }
}
