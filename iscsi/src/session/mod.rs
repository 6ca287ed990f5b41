//! The full feature phase of a session over all its connections, without sockets and clock.
//!
//! ```text
//!   first login ─► LOGGED IN ── last connection logged out, or lost below ErrorRecoveryLevel 2 ─► over
//!                   │     ▲                                            (RFC 7143 8.3.2, 7.1.5)
//!   all connections │     │ a login with the TSIH, then Logout for recovery and TASK REASSIGN
//!   lost, level 2   ▼     │ (RFC 7143 7.2.2, 7.3)
//!                  FAILED ── Time2Wait + Time2Retain pass ─► over
//!
//!   a connection:  Up ── logout, or an offence ─► Closing ─► (gone)
//!                   └─── its socket is lost, level 2 ─► Lost ─► (gone)       (RFC 7143 8.1)
//!
//!   a command:     early (a CmdSN before it is missing) ─► in its task set ─► ready ─► at the device
//!                    └ data: immediate, unsolicited, asked for by R2T ┘            ─► answered
//! ```
//! Below ErrorRecoveryLevel 2 the loss of one connection ends the session: a command that was under
//! way may have left a hole in CmdSN that nobody fills.
//!
//! Whoever drives it (server.rs, the simulation) holds it behind a lock, gives it what came
//! ([`Session::receive`]), takes what is to be sent and run ([`Session::take`]), says how commands
//! ended ([`Session::complete`], [`Session::ended`]), and carries out what goes beyond the session
//! ([`Session::take_outside`]). Nothing in here waits.

mod commands;
mod connection;
mod exchange;
mod functions;
mod output;
mod recovery;
mod task;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

pub use connection::Close;
pub use functions::{Outside, Reach};
pub use output::Output;
pub use task::{Cdb, Run, TaskKey};

use crate::{
    budget::Budget,
    config::Limits,
    negotiate::{ConnectionParameters, SessionParameters, Wishes},
    pdu::{Frame, NO_TAG, NopIn, Numbers, Pdu, Reject, WireError, reason},
    task_sets::{TaskSet, TaskSets},
    text::Pair,
};
use connection::{Kept, Link, State, TextExchange};
use functions::{Deferred, Function};
use recovery::Answered;
use task::{Task, enqueue};

/// Responses of a connection that are kept for a SNACK.
const KEPT_RESPONSES: usize = 1024;
/// Data up to here are copied out of the receive buffer, which is longer than they.
const COPIED_DATA: usize = 2048;

/// Which targets SendTargets asks for (RFC 7143 appendix C).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendTargets<'a> {
    /// All that the initiator may use.
    All,
    /// One, or the session's own if the name is empty.
    One(&'a str),
}

/// Who answers SendTargets for a session.
pub trait Announce: Send + Sync {
    /// The records for `initiator`; `target` is the session's own.
    fn targets(&self, initiator: &str, target: Option<&str>, which: SendTargets<'_>) -> Vec<Pair>;
}

/// What a session is told at its beginning.
pub struct Setup {
    /// InitiatorName.
    pub initiator: String,
    /// The target's name; `None` for discovery.
    pub target: Option<String>,
    /// What was agreed upon.
    pub parameters: SessionParameters,
    /// What the target offers in later texts.
    pub wishes: Wishes,
    /// What the initiator can make the target keep.
    pub limits: Limits,
    /// Whether it may reset the whole target.
    pub resets: bool,
    /// The process's data-out.
    pub budget: Arc<Budget>,
    /// The order among the tasks of all sessions of the target.
    pub sets: Arc<TaskSets>,
    /// Who answers SendTargets for a session.
    pub announce: Arc<dyn Announce>,
}

/// A command whose turn has not come.
enum Early {
    /// The connection, the command, and the data that came behind it.
    Request(u32, Box<Frame>, Vec<Frame>),
    /// Aborted before it came.
    Void,
}

/// A session of an initiator with a target.
pub struct Session {
    setup: Setup,
    links: BTreeMap<u32, Link>,
    next_link: u32,
    exp_cmd_sn: u32,
    early: BTreeMap<u32, Early>,
    early_bytes: usize,
    tasks: HashMap<u32, Task>,
    /// Its number in the task sets.
    member: u64,
    last_set: Option<Arc<TaskSet>>,
    /// Commands that the window counts, and immediate ones.
    open: u32,
    immediates: u32,
    next_id: u64,
    next_ttt: u32,
    held: usize,
    starving: VecDeque<TaskKey>,
    functions: Vec<Function>,
    deferred: Vec<Deferred>,
    outside: Vec<Outside>,
    answered: HashMap<u32, Answered>,
    answered_order: VecDeque<TaskKey>,
    answered_bytes: usize,
    stray: VecDeque<Run>,
    touched: Vec<u32>,
    news: bool,
    over: Option<&'static str>,
}

/// Whether `a` comes before `b` in serial numbers (RFC 1982).
fn before(a: u32, b: u32) -> bool {
    let distance = b.wrapping_sub(a);
    distance != 0 && distance < 1 << 31
}

impl Session {
    /// One without connections, whose first command has the number `cmd_sn`.
    #[must_use]
    pub fn new(setup: Setup, cmd_sn: u32) -> Self {
        let member = setup.sets.join();
        Self {
            setup,
            member,
            last_set: None,
            links: BTreeMap::new(),
            next_link: 0,
            exp_cmd_sn: cmd_sn,
            early: BTreeMap::new(),
            early_bytes: 0,
            tasks: HashMap::new(),
            open: 0,
            immediates: 0,
            next_id: 0,
            next_ttt: 0,
            held: 0,
            starving: VecDeque::new(),
            functions: Vec::new(),
            deferred: Vec::new(),
            outside: Vec::new(),
            answered: HashMap::new(),
            answered_order: VecDeque::new(),
            answered_bytes: 0,
            stray: VecDeque::new(),
            touched: Vec::new(),
            news: false,
            over: None,
        }
    }

    /// How it is told that tasks of it may run because those of other sessions left.
    pub fn tell_by(&self, tell: impl Fn() + Send + Sync + 'static) {
        self.setup.sets.tell_by(self.member, Arc::new(tell));
    }

    /// Goes on with the tasks that may run because those of other sessions left.
    pub fn take_enabled(&mut self) {
        for key in self.setup.sets.take(self.member) {
            self.enable(key);
        }
    }

    fn enable(&mut self, key: TaskKey) {
        if let Some(task) = self.tasks.get_mut(&key.itt).filter(|task| task.id == key.id) {
            task.enabled = true;
            self.go_on(key.itt);
        }
    }

    fn level(&self) -> u8 {
        self.setup.parameters.error_recovery_level
    }

    /// ExpCmdSN and MaxCmdSN as they are now.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        let room = self.setup.limits.window.saturating_sub(self.open);
        Numbers {
            stat_sn: 0,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.exp_cmd_sn.wrapping_add(room).wrapping_sub(1),
        }
    }

    /// What was agreed upon.
    #[must_use]
    pub fn parameters(&self) -> &SessionParameters {
        &self.setup.parameters
    }

    /// Connections that have a socket.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.links.values().filter(|link| !matches!(link.state, State::Lost(_))).count()
    }

    /// Commands that wait or run.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.tasks.len()
    }

    /// Commands at the device.
    #[must_use]
    pub fn running(&self) -> usize {
        self.tasks.values().filter(|task| task.running.is_some()).count()
    }

    /// Whether a task of that key is there still.
    #[must_use]
    pub fn has(&self, key: TaskKey) -> bool {
        self.tasks.get(&key.itt).is_some_and(|task| task.id == key.id)
    }

    /// Why the session is over, if it is. Its drivers close their sockets, and once nothing runs
    /// ([`Session::running`]) it may be forgotten.
    #[must_use]
    pub fn over(&self) -> Option<&'static str> {
        self.over
    }

    /// Whether anything is left that a connection or the device has to come to an end with.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.links.is_empty() && self.tasks.is_empty()
    }

    /// Whether another connection may join, as `cid`: one that takes the place of an older one does
    /// not count.
    #[must_use]
    pub fn has_room(&self, cid: u16) -> bool {
        let others = self.links.values().filter(|link| link.is_up() && link.cid != cid).count();
        self.over.is_none() && others < usize::from(self.setup.parameters.max_connections)
    }

    /// A connection joins. An older one of that number is logged out (RFC 7143 7.2.3).
    pub fn join(
        &mut self,
        cid: u16,
        parameters: ConnectionParameters,
        stat_sn: u32,
        now: u64,
    ) -> u32 {
        let older: Vec<u32> =
            self.links.iter().filter(|(_, link)| link.cid == cid).map(|(key, _)| *key).collect();
        let key = self.next_link;
        self.next_link += 1;
        self.links.insert(key, Link::new(cid, parameters, stat_sn, now));
        for link in older {
            self.log_out(link, self.level() == 2);
        }
        key
    }

    /// Takes one PDU of a connection; `now` is in milliseconds.
    pub fn receive(&mut self, link: u32, frame: &Frame, now: u64) {
        let Some(it) = self.links.get_mut(&link).filter(|link| link.is_up()) else { return };
        it.heard = now;
        it.asked = None;
        let pdu = match Pdu::read(&frame.basic) {
            Ok(pdu) => pdu,
            Err(WireError::Opcode(_)) => return self.reject(link, reason::NOT_SUPPORTED, frame),
            Err(_) => return self.reject(link, reason::FIELD, frame),
        };
        if let Some(exp_stat_sn) = pdu.exp_stat_sn() {
            self.acknowledge(link, exp_stat_sn);
        }
        match &pdu {
            Pdu::DataOut(data) => self.data_out(link, data, frame),
            // What cannot be trusted is as if it had not come (RFC 7143 7.8).
            _ if !frame.intact => self.reject(link, reason::DATA_DIGEST, frame),
            Pdu::Snack(snack) => self.snack(link, snack, frame),
            Pdu::LoginRequest(_) => self.reject(link, reason::PROTOCOL, frame),
            _ => match pdu.request() {
                Some(sn) if sn.immediate => self.deliver(link, pdu, frame),
                Some(sn) => self.ordered(link, sn.cmd_sn, pdu, frame),
                // Only targets send it.
                None => self.reject(link, reason::NOT_SUPPORTED, frame),
            },
        }
        self.step_functions();
    }

    /// Commands are carried out in the order of CmdSN, whichever connection they come by
    /// (RFC 7143 4.2.2.1). What is outside of the window, or was there before, is not there.
    fn ordered(&mut self, link: u32, cmd_sn: u32, pdu: Pdu, frame: &Frame) {
        if cmd_sn == self.exp_cmd_sn && self.open < self.setup.limits.window {
            self.exp_cmd_sn = cmd_sn.wrapping_add(1);
            self.deliver(link, pdu, frame);
            self.catch_up();
            return;
        }
        let ahead = cmd_sn.wrapping_sub(self.exp_cmd_sn);
        let last = self.numbers().max_cmd_sn.wrapping_sub(self.exp_cmd_sn);
        let within = ahead < 1 << 31 && last < 1 << 31 && ahead <= last;
        let room = self.early_bytes + frame.data.len() <= self.setup.limits.session_data;
        if let Some(Early::Request(of, _, _)) = self.early.get_mut(&cmd_sn) {
            // Sent again after its connection was lost: it is answered where it came last.
            if !self.links.get(of).is_some_and(Link::is_up) {
                self.drop_early(cmd_sn);
                self.keep_early(link, cmd_sn, frame);
            }
        } else if within && room && !self.early.contains_key(&cmd_sn) {
            self.keep_early(link, cmd_sn, frame);
        }
    }

    fn keep_early(&mut self, link: u32, cmd_sn: u32, frame: &Frame) {
        self.early_bytes += frame.data.len();
        self.early.insert(cmd_sn, Early::Request(link, Box::new(frame.clone()), Vec::new()));
    }

    fn drop_early(&mut self, cmd_sn: u32) {
        if let Some(Early::Request(_, frame, data)) = self.early.remove(&cmd_sn) {
            let bytes: usize = data.iter().map(|frame| frame.data.len()).sum();
            self.early_bytes -= frame.data.len() + bytes;
        }
    }

    /// Unsolicited data of a command whose turn has not come wait with it; whether there is one.
    fn data_of_early(&mut self, link: u32, itt: u32, frame: &Frame) -> bool {
        let room = self.early_bytes + frame.data.len() <= self.setup.limits.session_data;
        let most = self.setup.parameters.first_burst as usize / 512 + 8;
        let Some((_, data)) = self
            .early_commands()
            .find(|(of, command, _)| **of == link && command.basic.itt == itt)
            .map(|(_, command, data)| (command, data))
        else {
            return false;
        };
        // What does not fit is lost; the command ends by it.
        if room && data.len() < most {
            data.push(frame.clone());
            self.early_bytes += frame.data.len();
        }
        true
    }

    /// The commands whose turn has not come: connection, header and data.
    fn early_commands(&mut self) -> impl Iterator<Item = (&mut u32, &Frame, &mut Vec<Frame>)> {
        self.early.values_mut().filter_map(|early| match early {
            Early::Request(of, frame, data)
                if matches!(Pdu::read(&frame.basic), Ok(Pdu::ScsiCommand(_))) =>
            {
                Some((of, &**frame, data))
            }
            _ => None,
        })
    }

    fn catch_up(&mut self) {
        // Those that come early are within the window, which only tasks before them fill.
        while let Some(early) = self.early.remove(&self.exp_cmd_sn) {
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
            if let Early::Request(link, frame, data) = early {
                let bytes: usize = data.iter().map(|frame| frame.data.len()).sum();
                self.early_bytes -= frame.data.len() + bytes;
                let up = self.links.get(&link).is_some_and(Link::is_up);
                // Nobody is there to be answered.
                if !up && self.level() < 2 {
                    continue;
                }
                if let Ok(pdu) = Pdu::read(&frame.basic) {
                    self.deliver(link, pdu, &frame);
                }
                for frame in &data {
                    if let Ok(Pdu::DataOut(pdu)) = Pdu::read(&frame.basic) {
                        self.data_out(link, &pdu, frame);
                    }
                }
            }
        }
        self.catch_up_functions();
    }

    fn deliver(&mut self, link: u32, pdu: Pdu, frame: &Frame) {
        match pdu {
            Pdu::ScsiCommand(command) if self.setup.target.is_some() => {
                self.command(link, &command, frame);
            }
            Pdu::TaskRequest(request) if self.setup.target.is_some() => {
                self.task_request(link, &request, frame);
            }
            // A discovery session is for texts (RFC 7143 4.3).
            Pdu::ScsiCommand(_) | Pdu::TaskRequest(_) => {
                self.reject(link, reason::PROTOCOL, frame);
            }
            Pdu::NopOut(nop) => self.nop_out(link, &nop, frame),
            Pdu::TextRequest(text) => self.text(link, &text, frame),
            Pdu::LogoutRequest(logout) => self.logout(link, &logout),
            _ => self.reject(link, reason::PROTOCOL, frame),
        }
    }

    fn touch(&mut self, link: u32) {
        if let Some(it) = self.links.get_mut(&link)
            && !it.touched
        {
            it.touched = true;
            self.touched.push(link);
        }
    }

    /// Puts a response into a connection's output, with the numbers of this moment. What advances
    /// StatSN may be asked for again.
    fn send(&mut self, link: u32, mut pdu: Pdu, data: Bytes, itt: Option<u32>) -> Option<u32> {
        let now = self.numbers();
        let recover = self.level() > 0;
        let it = self.links.get_mut(&link).filter(|it| !matches!(it.state, State::Lost(_)))?;
        let advances = match &pdu {
            Pdu::R2t(_) => false,
            Pdu::DataIn(data) => data.status.is_some(),
            Pdu::NopIn(nop) => nop.itt != NO_TAG,
            _ => true,
        };
        let stat_sn = it.stat_sn;
        if let Some(numbers) = pdu.numbers() {
            *numbers = Numbers { stat_sn, ..now };
        }
        if advances {
            it.stat_sn = stat_sn.wrapping_add(1);
        }
        if advances && recover {
            if it.kept.len() == KEPT_RESPONSES {
                it.kept.pop_front();
            }
            it.kept.push_back(Kept { stat_sn, pdu, data: data.clone(), itt });
        }
        it.output.push(pdu.write(), data, it.parameters.digests);
        self.touch(link);
        advances.then_some(stat_sn)
    }

    fn reject(&mut self, link: u32, reason: u8, frame: &Frame) {
        let pdu = Pdu::Reject(Reject { sn: Numbers::default(), reason, data_sn: 0 });
        let header = Bytes::copy_from_slice(&frame.basic.write());
        self.send(link, pdu, header, None);
    }

    /// Connections whose drivers have something to do: they [`Session::take`] it.
    pub fn take_touched(&mut self, touched: &mut Vec<u32>) {
        for link in &self.touched {
            if let Some(it) = self.links.get_mut(link) {
                it.touched = false;
            }
        }
        touched.append(&mut self.touched);
    }

    /// Whether, since this was asked last, an aborted task went or the session came to its end, or
    /// whether commands have no connection to run them: what others may wait for.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news) || !self.stray.is_empty()
    }

    /// What a connection has to send and to run, and whether it is to end. `output` is exchanged if
    /// it is empty.
    pub fn take(
        &mut self,
        link: u32,
        output: &mut Output,
        ready: &mut VecDeque<Run>,
    ) -> Option<Close> {
        let Some(it) = self.links.get_mut(&link) else { return Some(Close::Now) };
        if output.is_empty() {
            std::mem::swap(&mut it.output, output);
        }
        if ready.is_empty() {
            std::mem::swap(&mut it.ready, ready);
        } else {
            it.ready.drain(..).for_each(|run| enqueue(ready, run));
        }
        match it.state {
            State::Up => None,
            State::Closing(close) => Some(close),
            State::Lost(_) => Some(Close::Now),
        }
    }

    /// Commands that have no connection to run them.
    pub fn take_stray(&mut self) -> VecDeque<Run> {
        std::mem::take(&mut self.stray)
    }

    /// What goes beyond this session, for its driver to carry out.
    pub fn take_outside(&mut self) -> Vec<Outside> {
        std::mem::take(&mut self.outside)
    }

    /// A connection ends because of its initiator: its framing or the digest of a header is broken,
    /// or it is mute. The session's other connections are told (AsyncEvent 2).
    pub fn offend(&mut self, link: u32) {
        let Some(it) = self.links.get_mut(&link).filter(|it| it.is_up()) else { return };
        it.state = State::Closing(Close::Now);
        let cid = it.cid;
        self.touch(link);
        self.tell_dropped(cid);
    }

    /// Time passes: mute initiators are asked and given up, lost connections forgotten.
    pub fn tick(&mut self, now: u64) {
        let silence = self.setup.limits.silence;
        let parameters = &self.setup.parameters;
        let retained = u64::from(parameters.time2wait) + u64::from(parameters.time2retain);
        let mut ping = Vec::new();
        let mut close = Vec::new();
        let mut forget = Vec::new();
        for (key, link) in &self.links {
            match (link.state, link.asked) {
                (State::Up, _) if link.leave_by.is_some_and(|until| now >= until) => {
                    close.push(*key);
                }
                (State::Up, Some(asked)) if now >= asked + silence => close.push(*key),
                (State::Up, None) if now >= link.heard + silence => ping.push(*key),
                (State::Lost(since), _) if now >= since + retained * 1000 => forget.push(*key),
                _ => {}
            }
        }
        for link in ping {
            self.ping(link);
            if let Some(it) = self.links.get_mut(&link) {
                it.asked = Some(now);
            }
        }
        for link in close {
            self.offend(link);
        }
        for link in forget {
            self.abandon(link);
        }
        self.settle();
        self.step_functions();
    }

    fn ping(&mut self, link: u32) {
        let ttt = self.fresh_ttt();
        let nop = NopIn { sn: Numbers::default(), lun: [0; 8], itt: NO_TAG, ttt };
        self.send(link, Pdu::NopIn(nop), Bytes::new(), None);
    }

    fn fresh_ttt(&mut self) -> u32 {
        let ttt = self.next_ttt;
        self.next_ttt = if ttt == NO_TAG - 1 { 0 } else { ttt + 1 };
        ttt
    }

    /// A session without connections is over.
    fn settle(&mut self) {
        if self.links.is_empty() && self.next_link > 0 {
            self.end("its last connection ended");
        }
    }

    /// Ends the session: every task is aborted, every connection closed.
    pub fn end(&mut self, why: &'static str) {
        if self.over.is_some() {
            return;
        }
        self.over = Some(why);
        self.news = true;
        let all: Vec<u32> = self.tasks.keys().copied().collect();
        for itt in all {
            self.abort(itt);
        }
        self.functions.clear();
        self.deferred.clear();
        self.early.clear();
        self.early_bytes = 0;
        self.answered.clear();
        self.answered_order.clear();
        self.answered_bytes = 0;
        // Nobody drives those that are lost.
        self.links.retain(|_, it| !matches!(it.state, State::Lost(_)));
        let links: Vec<u32> = self.links.keys().copied().collect();
        for link in links {
            if let Some(it) = self.links.get_mut(&link) {
                it.logged_out = true;
                if it.is_up() {
                    it.state = State::Closing(Close::AfterOutput);
                }
            }
            self.touch(link);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for (itt, task) in &self.tasks {
            // Its own tasks that are let run by this leave in their turn.
            self.leave_set(*itt, task);
        }
        self.setup.sets.forget(self.member);
    }
}
