//! Task management (RFC 7143 4.2.3, 11.5, 11.6; RFC 7144 4): what is aborted is gone before the
//! answer says so.

use std::collections::BTreeSet;

use scsi::Lun;

use super::*;
use crate::pdu::{TaskRequest, TaskResponse, function, outcome};

/// A function that goes beyond its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outside {
    /// Names it to [`Session::function_done`].
    pub token: u64,
    /// How far it goes.
    pub reach: Reach,
}

/// How far a function goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The logical unit has only to be there.
    Unit(Lun),
    /// Whether a unit attention of a logical unit waits for this session.
    Attention(Lun),
    /// The tasks of all sessions on a logical unit.
    ClearTaskSet(Lun),
    /// A logical unit and the tasks of all sessions on it.
    ResetUnit(Lun),
    /// All logical units and all tasks.
    ResetTarget {
        /// All sessions end too.
        cold: bool,
    },
    /// What the device keeps of this session.
    ResetNexus,
}

/// A function under way.
#[derive(Debug)]
pub(super) struct Function {
    pub itt: u32,
    token: u64,
    link: u32,
    kind: u8,
    /// Tasks that are at the device still.
    waiting: Vec<TaskKey>,
    reach: Option<Reach>,
    /// Its driver has it.
    asked: bool,
    response: u8,
    /// Responses of other connections that have to arrive before (RFC 7143 4.2.2.3.4).
    fence: Option<Vec<(u32, u32)>>,
    /// Behind the response: the task that moved here, and its first missing DataSN.
    resume: Option<(u32, u32)>,
}

/// A function that waits for commands before it.
#[derive(Debug)]
pub(super) struct Deferred {
    link: u32,
    request: TaskRequest,
}

impl Function {
    pub fn is_of(&self, link: u32) -> bool {
        self.link == link
    }
}

impl Deferred {
    pub fn is_of(&self, link: u32) -> bool {
        self.link == link
    }
}

impl Session {
    pub(super) fn task_request(&mut self, link: u32, request: &TaskRequest, frame: &Frame) {
        let taken = |itt: u32| {
            self.tasks.contains_key(&itt) || self.functions.iter().any(|it| it.itt == itt)
        };
        if taken(request.itt) {
            return self.reject(link, reason::TASK_IN_PROGRESS, frame);
        }
        let under_way = self.functions.len() + self.deferred.len();
        if under_way >= self.setup.limits.immediate as usize {
            return self.reject(link, reason::IMMEDIATE, frame);
        }
        // What is about all tasks is about those that are on their way, too.
        let about_all = !matches!(
            request.function,
            function::ABORT_TASK | function::TASK_REASSIGN | function::QUERY_TASK
        );
        if about_all && before(self.exp_cmd_sn, request.sn.cmd_sn) && request.sn.immediate {
            self.deferred.push(Deferred { link, request: *request });
            return;
        }
        self.begin(link, request);
    }

    pub(super) fn catch_up_functions(&mut self) {
        let exp = self.exp_cmd_sn;
        let (now, later): (Vec<Deferred>, Vec<Deferred>) = std::mem::take(&mut self.deferred)
            .into_iter()
            .partition(|it| !before(exp, it.request.sn.cmd_sn));
        self.deferred = later;
        for it in now {
            self.begin(it.link, &it.request);
        }
    }

    fn begin(&mut self, link: u32, request: &TaskRequest) {
        let token = self.next_id;
        self.next_id += 1;
        let lun = Lun(request.lun);
        let mut it = Function {
            itt: request.itt,
            token,
            link,
            kind: request.function,
            waiting: Vec::new(),
            reach: None,
            asked: false,
            response: outcome::COMPLETE,
            fence: None,
            resume: None,
        };
        let level2 = self.setup.parameters.protocol_level >= 2;
        match request.function {
            function::ABORT_TASK => it.response = self.abort_task(request, &mut it.waiting),
            function::ABORT_TASK_SET => {
                it.waiting = self.abort_all(Some(lun), Some(link));
                it.reach = Some(Reach::Unit(lun));
            }
            // No logical unit here establishes one.
            function::CLEAR_ACA => it.reach = Some(Reach::Unit(lun)),
            function::CLEAR_TASK_SET => {
                it.waiting = self.abort_all(Some(lun), Some(link));
                it.reach = Some(Reach::ClearTaskSet(lun));
            }
            function::LUN_RESET => {
                it.waiting = self.abort_all(Some(lun), Some(link));
                it.reach = Some(Reach::ResetUnit(lun));
            }
            function::TARGET_WARM_RESET | function::TARGET_COLD_RESET if !self.setup.resets => {
                it.response = outcome::NOT_AUTHORIZED;
            }
            function::TARGET_WARM_RESET | function::TARGET_COLD_RESET => {
                it.waiting = self.abort_all(None, Some(link));
                let cold = request.function == function::TARGET_COLD_RESET;
                it.reach = Some(Reach::ResetTarget { cold });
            }
            function::TASK_REASSIGN => {
                let (response, resume) =
                    self.reassign(link, request.referenced, request.exp_data_sn);
                it.response = response;
                it.resume = resume.then_some((request.referenced, request.exp_data_sn));
            }
            function::QUERY_TASK if level2 => {
                if self.tasks.contains_key(&request.referenced) {
                    it.response = outcome::SUCCEEDED;
                }
            }
            function::QUERY_TASK_SET if level2 => {
                if self.tasks.values().any(|task| task.lun == lun) {
                    it.response = outcome::SUCCEEDED;
                }
                it.reach = Some(Reach::Unit(lun));
            }
            function::NEXUS_RESET if level2 => {
                it.waiting = self.abort_all(None, Some(link));
                it.reach = Some(Reach::ResetNexus);
            }
            function::QUERY_ASYNC_EVENT if level2 => it.reach = Some(Reach::Attention(lun)),
            _ => it.response = outcome::NOT_SUPPORTED,
        }
        self.functions.push(it);
        self.step_functions();
    }

    /// ABORT TASK (RFC 7143 11.5.1): also of a command that has not come, whose CmdSN is then
    /// taken as if it had.
    fn abort_task(&mut self, request: &TaskRequest, waiting: &mut Vec<TaskKey>) -> u8 {
        if self.tasks.contains_key(&request.referenced) {
            waiting.extend(self.abort(request.referenced));
            return outcome::COMPLETE;
        }
        let cmd_sn = request.ref_cmd_sn;
        let ahead = cmd_sn.wrapping_sub(self.exp_cmd_sn);
        let window = self.setup.limits.window;
        if ahead >= window || !before(cmd_sn, request.sn.cmd_sn) {
            return outcome::NO_TASK;
        }
        match self.early.get(&cmd_sn) {
            Some(Early::Request(_, frame, _)) if frame.basic.itt != request.referenced => {
                return outcome::NO_TASK;
            }
            _ => self.drop_early(cmd_sn),
        }
        self.early.insert(cmd_sn, Early::Void);
        // The gap may be filled by it.
        self.catch_up();
        outcome::COMPLETE
    }

    /// Aborts all tasks, or those of a logical unit; gives those that are at the device still.
    /// With FastAbort the connections of those tasks are told, but the one that asked, `by`.
    fn abort_all(&mut self, lun: Option<Lun>, by: Option<u32>) -> Vec<TaskKey> {
        if self.setup.parameters.fast_abort {
            self.tell_aborted(lun, by);
        }
        let of = |(itt, task): (&u32, &Task)| lun.is_none_or(|lun| task.lun == lun).then_some(*itt);
        let all: Vec<u32> = self.tasks.iter().filter_map(of).collect();
        all.into_iter().filter_map(|itt| self.abort(itt)).collect()
    }

    /// FastAbort (RFC 7143 4.2.3.4): AsyncEvent 5 on each connection that has a task which ends, for
    /// each of its logical units.
    fn tell_aborted(&mut self, lun: Option<Lun>, by: Option<u32>) {
        let ends = |task: &&Task| lun.is_none_or(|lun| task.lun == lun) && Some(task.link) != by;
        let affected: BTreeSet<(u32, Lun)> =
            self.tasks.values().filter(ends).map(|task| (task.link, task.lun)).collect();
        for (link, lun) in affected {
            if self.links.get(&link).is_some_and(Link::is_up) {
                self.message(link, lun.0, 5, [0; 3]);
            }
        }
    }

    /// Another session's function aborts tasks here: those at the device still, and whether there
    /// were any.
    pub fn clear(&mut self, lun: Option<Lun>) -> (Vec<TaskKey>, bool) {
        let before = self.tasks.len();
        let waiting = self.abort_all(lun, None);
        let affected = self.tasks.len() < before || !waiting.is_empty();
        self.step_functions();
        (waiting, affected)
    }

    /// Aborts one task; gives its key if it has to be waited for.
    pub(super) fn abort(&mut self, itt: u32) -> Option<TaskKey> {
        let task = self.tasks.get_mut(&itt)?;
        let key = TaskKey { itt, id: task.id };
        task.aborted = true;
        let Some(abort) = &task.running else {
            self.remove_task(itt);
            return None;
        };
        abort.abort();
        let link = task.link;
        // What nobody has begun need not be waited for.
        let queued = self.links.get_mut(&link).is_some_and(|it| Self::take_out(&mut it.ready, key));
        if queued || Self::take_out(&mut self.stray, key) {
            self.remove_task(itt);
            return None;
        }
        self.touch(link);
        Some(key)
    }

    /// The device is done with an aborted task.
    pub fn ended(&mut self, key: TaskKey) {
        if self.has(key) {
            self.remove_task(key.itt);
        }
        self.step_functions();
    }

    /// A driver carried out what went beyond the session; `response` says if it was not done.
    pub fn function_done(&mut self, token: u64, response: Option<u8>) {
        if let Some(it) = self.functions.iter_mut().find(|it| it.token == token) {
            it.reach = None;
            it.response = response.unwrap_or(it.response);
        }
        self.step_functions();
    }

    /// Answers the functions that have nothing to wait for.
    pub(super) fn step_functions(&mut self) {
        if self.functions.is_empty() {
            return;
        }
        let mut functions = std::mem::take(&mut self.functions);
        let mut done = Vec::new();
        functions.retain_mut(|it| {
            it.waiting.retain(|key| self.has(*key));
            if !it.waiting.is_empty() {
                return true;
            }
            if let Some(reach) = it.reach {
                if !it.asked {
                    it.asked = true;
                    self.outside.push(Outside { token: it.token, reach });
                    self.touch(it.link);
                }
                return true;
            }
            if !self.fence_is_passed(it) {
                return true;
            }
            done.push((it.itt, it.link, it.kind, it.response, it.resume));
            false
        });
        functions.append(&mut self.functions);
        self.functions = functions;
        for (itt, link, kind, response, resume) in done {
            let pdu = TaskResponse { sn: Numbers::default(), response, itt };
            self.send(link, Pdu::TaskResponse(pdu), Bytes::new(), None);
            if let Some((task, from)) = resume {
                self.resume(link, task, from);
            }
            if kind == function::TARGET_COLD_RESET && response == outcome::COMPLETE {
                self.end("the target was reset");
            }
        }
    }

    /// With ResponseFence, what was said on other connections has to arrive first
    /// (RFC 7143 4.2.2.3.4); a ping makes the initiator say so.
    fn fence_is_passed(&mut self, it: &mut Function) -> bool {
        let about_all = !matches!(
            it.kind,
            function::ABORT_TASK | function::TASK_REASSIGN | function::QUERY_TASK
        );
        if !self.setup.parameters.response_fence || !about_all {
            return true;
        }
        if it.fence.is_none() {
            let others: Vec<(u32, u32)> = self
                .links
                .iter()
                .filter(|(key, link)| **key != it.link && link.is_up())
                .map(|(key, link)| (*key, link.stat_sn))
                .collect();
            for (link, _) in &others {
                self.ping(*link);
            }
            it.fence = Some(others);
        }
        let fence = it.fence.iter().flatten();
        fence.into_iter().all(|(link, stat_sn)| {
            self.links
                .get(link)
                .is_none_or(|link| !link.is_up() || !before(link.acknowledged, *stat_sn))
        })
    }
}
