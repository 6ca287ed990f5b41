//! SCSI commands, their data, and their answers (RFC 7143 4.2.5, 11.3, 11.4, 11.7, 11.8).

use bytes::Bytes;
use futures_util::future::AbortHandle;
use scsi::{Completion, Lun, Rank, Sense, SenseKey, Status, TaskAttribute};

use super::{
    Session,
    recovery::Answered,
    task::{Asked, enqueue},
    *,
};
use crate::pdu::{DataIn, DataOut, R2t, Residual, ScsiCommand, ScsiResponse, ahs::Additional};

/// Additional sense codes for what goes wrong with data on their way (RFC 7143 11.4.7.2).
mod code {
    pub const UNEXPECTED_DATA: u16 = 0x0c0c;
    pub const WRONG_AMOUNT: u16 = 0x0c0d;
    pub const DIGEST: u16 = 0x4705;
}
/// INVALID FIELD IN CDB.
const INVALID_FIELD: u16 = 0x2400;
/// INVALID MESSAGE ERROR.
const INVALID_MESSAGE: u16 = 0x4900;

fn aborted(code: u16) -> (Status, Option<Sense>) {
    (Status::CheckCondition, Some(Sense::new(SenseKey::AbortedCommand, code)))
}

impl Session {
    pub(super) fn command(&mut self, link: u32, command: &ScsiCommand, frame: &Frame) {
        let itt = command.itt;
        if self.tasks.contains_key(&itt) || self.functions.iter().any(|it| it.itt == itt) {
            return self.reject(link, reason::TASK_IN_PROGRESS, frame);
        }
        if command.sn.immediate && self.immediates >= self.setup.limits.immediate {
            return self.reject(link, reason::IMMEDIATE, frame);
        }
        let Ok(additional) = Additional::read(&frame.ahs) else {
            return self.reject(link, reason::FIELD, frame);
        };
        let may_follow = command.write && !self.setup.parameters.initial_r2t;
        if itt == NO_TAG || (!command.last && !may_follow) {
            return self.reject(link, reason::PROTOCOL, frame);
        }
        let mut task = self.new_task(link, command, &additional);
        let key = TaskKey { itt, id: task.id };
        task.refused = self.objection(&task, command, frame);
        if task.refused.is_none() {
            let data = &frame.data;
            if !data.is_empty() {
                task.append(&if data.len() <= COPIED_DATA {
                    Bytes::copy_from_slice(data)
                } else {
                    data.clone()
                });
            }
            task.solicited = task.received;
            self.hold(&mut task, key);
        }
        if command.sn.immediate {
            self.immediates += 1;
        } else {
            self.open += 1;
        }
        if task.refused.is_none() {
            let set = self.set_of(task.lun);
            task.enabled = set.enter((self.member, key), task.attribute);
            task.set = Some(set);
        }
        self.tasks.insert(itt, task);
        self.go_on(itt);
    }

    fn new_task(&mut self, link: u32, command: &ScsiCommand, additional: &Additional) -> Task {
        let id = self.next_id;
        self.next_id += 1;
        let both = command.read && command.write;
        let expected_in = match additional.read_length {
            Some(length) if both => length,
            _ if command.read && !command.write => command.expected,
            _ => 0,
        };
        let attribute = match command.attribute {
            1 => TaskAttribute::Simple,
            2 => TaskAttribute::Ordered,
            3 => TaskAttribute::HeadOfQueue,
            4 => TaskAttribute::Aca,
            _ => TaskAttribute::Untagged,
        };
        // The field is reserved below protocol level 2 (RFC 7144 4.1).
        let level2 = self.setup.parameters.protocol_level >= 2;
        Task {
            id,
            link,
            lun: Lun(command.lun),
            attribute,
            rank: Rank::new(attribute, if level2 { command.priority } else { 0 }),
            immediate: command.sn.immediate,
            cdb: Cdb::new(command.cdb, &additional.cdb),
            write: command.write,
            read: command.read,
            expected_out: if command.write { command.expected } else { 0 },
            expected_in,
            whole: Bytes::new(),
            parts: Vec::new(),
            received: 0,
            unsolicited: (!command.last).then_some(0),
            solicited: 0,
            asked: VecDeque::new(),
            broken: false,
            stale: false,
            data_sn: 0,
            refused: None,
            held: 0,
            starving: false,
            set: None,
            enabled: false,
            running: None,
            aborted: false,
        }
    }

    /// Why a command is not carried out, as far as its header tells.
    fn objection(
        &self,
        task: &Task,
        command: &ScsiCommand,
        frame: &Frame,
    ) -> Option<(Status, Option<Sense>)> {
        let length = u32::try_from(frame.data.len()).unwrap_or(u32::MAX);
        let most = self.setup.parameters.first_burst.min(task.expected_out);
        if length > 0 && (!command.write || !self.setup.parameters.immediate_data) {
            return Some(aborted(code::UNEXPECTED_DATA));
        }
        if length > most {
            return Some(aborted(code::WRONG_AMOUNT));
        }
        // No logical unit here establishes an allegiance (SAM-5 8.6.5).
        if task.attribute == TaskAttribute::Aca {
            let sense = Sense::new(SenseKey::IllegalRequest, INVALID_MESSAGE);
            return Some((Status::CheckCondition, Some(sense)));
        }
        if task.expected_out > self.setup.limits.command_data {
            let sense = Sense::new(SenseKey::IllegalRequest, INVALID_FIELD);
            return Some((Status::CheckCondition, Some(sense)));
        }
        None
    }

    /// Takes room for a command's data. The process's room decides at once; for the session's the
    /// command waits before it asks for more than comes of itself.
    fn hold(&mut self, task: &mut Task, key: TaskKey) {
        let bytes = task.expected_out as usize;
        if bytes == 0 {
            return;
        }
        if !self.setup.budget.take(bytes) {
            task.refused = Some((Status::Busy, None));
            return;
        }
        task.held = bytes;
        let fits = self.held == 0 || self.held + bytes <= self.setup.limits.session_data;
        if fits || task.received == task.expected_out {
            self.held += bytes;
        } else {
            task.starving = true;
            self.starving.push_back(key);
        }
    }

    fn release(&mut self, bytes: usize, starving: bool) {
        if bytes == 0 {
            return;
        }
        self.setup.budget.give(bytes);
        if !starving {
            self.held -= bytes;
        }
        self.feed();
    }

    /// Lets those ask for their data that waited for room, one after another.
    fn feed(&mut self) {
        while let Some(key) = self.starving.front().copied() {
            let Some(task) = self.tasks.get_mut(&key.itt).filter(|task| task.id == key.id) else {
                self.starving.pop_front();
                continue;
            };
            if self.held > 0 && self.held + task.held > self.setup.limits.session_data {
                return;
            }
            self.held += task.held;
            task.starving = false;
            self.starving.pop_front();
            self.go_on(key.itt);
        }
    }

    /// Does what a task's state permits: answer, run, or ask for data.
    pub(super) fn go_on(&mut self, itt: u32) {
        let Some(task) = self.tasks.get_mut(&itt) else { return };
        if task.aborted || task.running.is_some() {
            return;
        }
        if let Some((status, sense)) = task.refused {
            if task.unsolicited.is_none() {
                let wanted = u64::from(task.expected_out);
                let completion = Completion { status, sense, data_out_wanted: wanted };
                let sense = sense.map(|sense| sense.fixed());
                let sense = sense.as_ref().map_or(&[][..], |fixed| &fixed[..]);
                self.finish(itt, &completion, sense, (Bytes::new(), 0));
            }
            return;
        }
        if !task.has_all_data() {
            return self.ask(itt);
        }
        if !task.enabled {
            return;
        }
        let (abort, registration) = AbortHandle::new_pair();
        task.running = Some(abort);
        let run = Run {
            key: TaskKey { itt, id: task.id },
            lun: task.lun,
            cdb: task.cdb.clone(),
            data_out: task.take_data(),
            attribute: task.attribute,
            rank: task.rank,
            abort: registration,
        };
        let link = task.link;
        match self.links.get_mut(&link) {
            Some(it) if it.is_up() => {
                enqueue(&mut it.ready, run);
                self.touch(link);
            }
            _ => self.stray.push_back(run),
        }
    }

    /// Sends as many R2T as may be outstanding (RFC 7143 11.8).
    fn ask(&mut self, itt: u32) {
        let most = usize::from(self.setup.parameters.max_outstanding_r2t);
        let burst = self.setup.parameters.max_burst;
        loop {
            let ttt = self.fresh_ttt();
            let Some(task) = self.tasks.get_mut(&itt) else { return };
            let up = self.links.get(&task.link).is_some_and(Link::is_up);
            let rest = task.expected_out - task.solicited;
            let waits = task.starving || task.broken || task.unsolicited.is_some();
            if !up || waits || rest == 0 || task.asked.len() >= most {
                return;
            }
            let asked = Asked {
                ttt,
                r2t_sn: task.data_sn,
                offset: task.solicited,
                length: rest.min(burst),
                received: 0,
                next_data_sn: 0,
            };
            task.data_sn += 1;
            task.solicited += asked.length;
            task.asked.push_back(asked);
            let (link, lun) = (task.link, task.lun);
            self.send_r2t(link, itt, lun, &asked);
        }
    }

    pub(super) fn send_r2t(&mut self, link: u32, itt: u32, lun: Lun, asked: &Asked) {
        let r2t = R2t {
            sn: Numbers::default(),
            lun: lun.0,
            itt,
            ttt: asked.ttt,
            r2t_sn: asked.r2t_sn,
            offset: asked.offset,
            length: asked.length,
        };
        self.send(link, Pdu::R2t(r2t), Bytes::new(), None);
    }

    pub(super) fn data_out(&mut self, link: u32, data: &DataOut, frame: &Frame) {
        // Data of a task that was aborted or answered meanwhile.
        let Some(task) = self.tasks.get_mut(&data.itt) else {
            if !self.data_of_early(link, data.itt, frame) && !frame.intact {
                self.reject(link, reason::DATA_DIGEST, frame);
            }
            return;
        };
        if task.link != link {
            return self.reject(link, reason::PROTOCOL, frame);
        }
        if task.aborted || task.running.is_some() {
            return;
        }
        let solicited = data.ttt != NO_TAG;
        if solicited && !task.asked.iter().any(|asked| asked.ttt == data.ttt) {
            // Tags that were given up, and data that nobody asked for.
            if !frame.intact {
                self.reject(link, reason::DATA_DIGEST, frame);
            } else if !task.stale {
                self.reject(link, reason::PROTOCOL, frame);
            }
            return;
        }
        let recover = self.setup.parameters.error_recovery_level > 0;
        if !frame.intact {
            if recover {
                task.broken = true;
            } else if task.refused.is_none() {
                task.refused = Some(aborted(code::DIGEST));
            }
            self.reject(link, reason::DATA_DIGEST, frame);
        }
        let first_burst = self.setup.parameters.first_burst;
        let Some(task) = self.tasks.get_mut(&data.itt) else { return };
        if task.refused.is_none() && !task.broken {
            let sound = if solicited {
                take_solicited(task, data, &frame.data)
            } else {
                take_unsolicited(task, data, &frame.data, first_burst)
            };
            match sound {
                Err(()) if recover => task.broken = true,
                Err(()) => task.refused = Some(aborted(code::WRONG_AMOUNT)),
                Ok(()) => {}
            }
        }
        if data.last {
            if !solicited {
                task.unsolicited = None;
            }
            if task.broken && task.refused.is_none() {
                // Asked for again from the first byte that is missing (RFC 7143 7.4.1).
                task.give_up_asked();
            } else if !solicited && task.asked.is_empty() {
                task.solicited = task.received;
            }
        }
        if task.refused.is_some() && solicited {
            task.unsolicited = None;
        }
        self.go_on(data.itt);
    }

    /// The device came to the end of a command; `sense` is how it lays out its sense data.
    pub fn complete(
        &mut self,
        key: TaskKey,
        completion: &Completion,
        sense: &[u8],
        data_in: Vec<u8>,
    ) {
        let Some(task) = self.tasks.get_mut(&key.itt).filter(|task| task.id == key.id) else {
            return;
        };
        task.running = None;
        if task.aborted {
            self.ended(key);
            return;
        }
        let mut data = Bytes::from(data_in);
        let (actual, expected) = (data.len() as u64, task.expected_in);
        data.truncate(expected as usize);
        self.finish(key.itt, completion, sense, (data, actual));
        self.step_functions();
    }

    /// Answers a command: with its data-in, as far as they are expected, and how many there were.
    fn finish(
        &mut self,
        itt: u32,
        completion: &Completion,
        sense: &[u8],
        (data, actual): (Bytes, u64),
    ) {
        let Some(task) = self.tasks.get(&itt) else { return };
        let inward = Residual::of(task.expected_in, actual);
        let outward = Residual::of(task.expected_out, completion.data_out_wanted);
        let (bidirectional, residual) = match (task.read, task.write) {
            (true, true) => (inward, outward),
            (_, true) => (Residual::None, outward),
            (_, false) if actual == 0 && !task.read => (Residual::None, outward),
            (_, false) => (Residual::None, inward),
        };
        let sense = if completion.status == Status::CheckCondition && !sense.is_empty() {
            let length = u16::try_from(sense.len()).unwrap_or_default();
            [&length.to_be_bytes()[..], sense].concat().into()
        } else {
            Bytes::new()
        };
        let link = task.link;
        let segment = self.links.get(&link).map_or(8192, |link| link.parameters.initiator_max_recv);
        let answered = Answered {
            id: task.id,
            link,
            stat_sn: None,
            data,
            segment,
            first_sn: task.data_sn,
            ttt: NO_TAG,
            acknowledged: 0,
            lun: task.lun.0,
            response: ScsiResponse {
                status: completion.status as u8,
                itt,
                bidirectional,
                residual,
                ..ScsiResponse::default()
            },
            sense,
        };
        self.remove_task(itt);
        self.answer(answered);
    }

    /// Sends data and status, and keeps both where they may be asked for again.
    fn answer(&mut self, mut answered: Answered) {
        let itt = answered.response.itt;
        let plain = answered.response.status == Status::Good as u8
            && answered.response.residual == Residual::None
            && answered.response.bidirectional == Residual::None;
        let collapse = plain && self.level() == 0 && !answered.data.is_empty();
        if self.level() > 0 {
            answered.ttt = self.fresh_ttt();
        }
        self.send_answer(&mut answered, 0, collapse);
        if self.level() > 0 {
            self.keep(itt, answered);
        }
    }

    /// Sends Data-In from the number `from` on, and the status.
    pub(super) fn send_answer(&mut self, answered: &mut Answered, from: u32, collapse: bool) {
        let status = collapse.then_some(answered.response.status);
        let sent = self.send_data(answered, from, None, status);
        // R2T are not counted (RFC 7143 11.4.8).
        answered.response.exp_data_sn = if answered.data.is_empty() { 0 } else { sent };
        if collapse {
            return;
        }
        let (itt, response) = (answered.response.itt, Pdu::ScsiResponse(answered.response));
        answered.stat_sn = self.send(answered.link, response, answered.sense.clone(), Some(itt));
    }

    /// Sends Data-In of an answer, from the number `from` on and `run` of them; gives the number
    /// behind the last there is.
    pub(super) fn send_data(
        &mut self,
        answered: &Answered,
        from: u32,
        run: Option<u32>,
        status: Option<u8>,
    ) -> u32 {
        let burst = self.setup.parameters.max_burst;
        let length = u32::try_from(answered.data.len()).unwrap_or(u32::MAX);
        let mut data_sn = answered.first_sn;
        let (mut offset, mut burst_end) = (0, burst.min(length));
        let until = run.map(|run| from.saturating_add(run));
        while offset < length {
            let end = offset.saturating_add(answered.segment).min(burst_end);
            let wanted = data_sn >= from && until.is_none_or(|until| data_sn < until);
            if wanted {
                // The last sequence is acknowledged with its status.
                let acknowledge = self.level() > 0 && end == burst_end && end < length;
                let pdu = DataIn {
                    last: end == burst_end,
                    acknowledge,
                    status: status.filter(|_| end == length),
                    lun: if acknowledge { answered.lun } else { [0; 8] },
                    itt: answered.response.itt,
                    ttt: if acknowledge { answered.ttt } else { NO_TAG },
                    data_sn,
                    offset,
                    ..DataIn::default()
                };
                let data = answered.data.slice(offset as usize..end as usize);
                self.send(answered.link, Pdu::DataIn(pdu), data, None);
            }
            data_sn += 1;
            offset = end;
            if end == burst_end {
                burst_end = burst_end.saturating_add(burst).min(length);
            }
        }
        data_sn
    }

    /// The task set of a unit; initiators use one after another far less than the same again.
    fn set_of(&mut self, lun: Lun) -> Arc<TaskSet> {
        match &self.last_set {
            Some(set) if set.lun() == lun => set.clone(),
            _ => self.last_set.insert(self.setup.sets.of(lun)).clone(),
        }
    }

    /// A task leaves its set; those of this session that may run now.
    pub(super) fn leave_set(&self, itt: u32, task: &Task) -> Vec<TaskKey> {
        let Some(set) = &task.set else { return Vec::new() };
        let place = (self.member, TaskKey { itt, id: task.id });
        self.setup.sets.leave(set, place, task.attribute)
    }

    /// A task is gone: what it held is free, and those behind it may run.
    pub(super) fn remove_task(&mut self, itt: u32) {
        let Some(task) = self.tasks.remove(&itt) else { return };
        self.news |= task.aborted;
        if task.immediate {
            self.immediates -= 1;
        } else {
            self.open -= 1;
        }
        for key in self.leave_set(itt, &task) {
            self.enable(key);
        }
        self.release(task.held, task.starving);
    }
}

/// Data that an R2T asked for: in order, and no more than it asked for.
fn take_solicited(task: &mut Task, data: &DataOut, bytes: &Bytes) -> Result<(), ()> {
    let length = u32::try_from(bytes.len()).map_err(|_| ())?;
    let asked = task.asked.front_mut().filter(|asked| asked.ttt == data.ttt).ok_or(())?;
    let rest = asked.length - asked.received;
    let in_order = data.data_sn == asked.next_data_sn
        && data.offset == asked.offset + asked.received
        && data.offset == task.received;
    if !in_order || length > rest || (data.last && length != rest) {
        return Err(());
    }
    asked.received += length;
    asked.next_data_sn += 1;
    if asked.received == asked.length {
        task.asked.pop_front();
    }
    task.append(bytes);
    Ok(())
}

/// Data that come of themselves: in order, and no more than FirstBurstLength.
fn take_unsolicited(
    task: &mut Task,
    data: &DataOut,
    bytes: &Bytes,
    first_burst: u32,
) -> Result<(), ()> {
    let length = u32::try_from(bytes.len()).map_err(|_| ())?;
    let next = task.unsolicited.as_mut().ok_or(())?;
    let end = data.offset.checked_add(length).ok_or(())?;
    let most = first_burst.min(task.expected_out);
    if data.data_sn != *next || data.offset != task.received || end > most {
        return Err(());
    }
    *next += 1;
    task.append(bytes);
    Ok(())
}
