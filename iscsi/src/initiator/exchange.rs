//! One connection's full feature phase on the initiator's side: commands, data, functions, pings
//! (RFC 7143 4.2, 4.5, 11). It has no socket and no clock: PDUs and times go in, bytes come out.
//!
//! ```text
//!  submit ─► waiting ── window (MaxCmdSN) ──► tasks ── SCSI Response, Data-In with status ──► done
//!                                              │  overdue: ABORT TASK ─► LOGICAL UNIT RESET ─► broken
//! ```
//! It has ErrorRecoveryLevel 0: whatever is lost or harmed ends the connection, and callers repeat
//! their commands on another one.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

use super::output::Output;
use crate::{
    negotiate::SessionParameters,
    pdu::{
        AsyncMessage, DataIn, DataOut, Digests, Frame, LogoutRequest, NO_TAG, NopIn, NopOut,
        Numbers, Pdu, R2t, Reject, RequestNumbers, Residual, ScsiCommand, ScsiResponse,
        TaskRequest, TaskResponse, function, outcome, reason,
    },
};

/// A SCSI command for a logical unit.
#[derive(Debug, Clone)]
pub(super) struct Command {
    pub lun: [u8; 8],
    pub cdb: [u8; 16],
    /// Data-out.
    pub out: Bytes,
    /// Bytes of data-in that are expected.
    pub read: u32,
    /// After which it is overdue.
    pub time: Duration,
}

/// How a command ended at the target.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    /// The target could not carry it out at all.
    pub failed: bool,
    pub status: u8,
    pub sense: Bytes,
    /// Data-in, in order.
    pub data: Vec<Bytes>,
    /// Bytes in `data`.
    pub length: u32,
}

/// Why a command has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// The connection ended: it may have been carried out or not.
    Connection,
    /// It was overdue, and was aborted.
    Aborted,
}

/// A command with whoever waits for it.
#[derive(Debug)]
pub(super) struct Pending {
    pub command: Command,
    pub done: oneshot::Sender<Result<Reply, Lost>>,
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Protocol(&'static str),
    #[error("a PDU does not match its digest")]
    Digest,
    #[error("a PDU was rejected with reason {0:#04x}")]
    Rejected(u8),
    #[error("the target does not answer")]
    Mute,
    #[error("the target asks to log out")]
    LogoutAsked,
    #[error("the target drops the connection")]
    Dropped,
}

/// What was agreed upon at login.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    pub session: SessionParameters,
    pub digests: Digests,
    /// The longest data segment that the target takes, in bytes.
    pub target_max_recv: u32,
    /// CmdSN of the first command.
    pub cmd_sn: u32,
    /// ExpStatSN after the login.
    pub exp_stat_sn: u32,
    /// MaxCmdSN after the login.
    pub max_cmd_sn: u32,
}

/// When things are overdue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Silence after which the target is asked for a sign of life, and without one given up.
    pub keep_alive: Duration,
    /// For which a function is waited.
    pub function: Duration,
}

#[derive(Debug)]
struct Task {
    pending: Pending,
    cmd_sn: u32,
    deadline: Instant,
    aborting: bool,
    reply: Reply,
    /// The DataSN or R2TSN that comes next.
    next_sn: u32,
}

#[derive(Debug, Clone, Copy)]
enum Function {
    Abort { task: u32 },
    Reset { lun: [u8; 8], deadline: Instant },
}

/// Whether `a` is after `b` in serial arithmetic (RFC 1982).
fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

#[derive(Debug)]
pub(super) struct Exchange {
    agreed: Agreed,
    times: Times,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    next_tag: u32,
    waiting: VecDeque<(Pending, Instant)>,
    tasks: HashMap<u32, Task>,
    functions: HashMap<u32, Function>,
    limit: usize,
    heard: Instant,
    ping: Option<Instant>,
    logout: Option<u32>,
    pub out: Output,
    pub logged_out: bool,
}

impl Exchange {
    /// One that begins after a login, with `limit` commands under way at most.
    pub fn new(agreed: Agreed, times: Times, limit: usize, now: Instant) -> Self {
        Self {
            cmd_sn: agreed.cmd_sn,
            exp_stat_sn: agreed.exp_stat_sn,
            max_cmd_sn: agreed.max_cmd_sn,
            out: Output::new(agreed.digests),
            agreed,
            times,
            next_tag: 1,
            waiting: VecDeque::new(),
            tasks: HashMap::new(),
            functions: HashMap::new(),
            limit,
            heard: now,
            ping: None,
            logout: None,
            logged_out: false,
        }
    }

    /// Whether another command is taken.
    pub fn has_room(&self) -> bool {
        self.waiting.len() + self.tasks.len() < self.limit && self.logout.is_none()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.tasks.is_empty()
    }

    /// Takes a command, which is sent as soon as the window permits.
    pub fn submit(&mut self, pending: Pending, now: Instant) {
        self.waiting.push_back((pending, now));
        self.pump(now);
    }

    /// Asks for the end of the session (RFC 7143 11.14).
    pub fn log_out(&mut self) {
        let itt = self.tag();
        let request = LogoutRequest { sn: self.at_once(), reason: 0, itt, cid: 0 };
        self.logout = Some(itt);
        self.out.pdu(&Pdu::LogoutRequest(request), &Bytes::new());
    }

    fn at_once(&self) -> RequestNumbers {
        RequestNumbers { immediate: true, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn }
    }

    fn tag(&mut self) -> u32 {
        loop {
            let tag = self.next_tag;
            self.next_tag = self.next_tag.wrapping_add(1);
            if tag != NO_TAG
                && !self.tasks.contains_key(&tag)
                && !self.functions.contains_key(&tag)
                && self.logout != Some(tag)
            {
                return tag;
            }
        }
    }

    fn pump(&mut self, now: Instant) {
        // What is sent beside a reset may be among what it ends, or not.
        if self.is_resetting() {
            return;
        }
        while !after(self.cmd_sn, self.max_cmd_sn)
            && let Some((pending, _)) = self.waiting.pop_front()
        {
            // Whoever no longer waits needs no command.
            if !pending.done.is_closed() {
                self.start(pending, now);
            }
        }
    }

    fn start(&mut self, pending: Pending, now: Instant) {
        let itt = self.tag();
        let command = &pending.command;
        let session = &self.agreed.session;
        let length = command.out.len();
        let burst = length.min(session.first_burst as usize);
        let segment = self.agreed.target_max_recv as usize;
        let at_once = if session.immediate_data { burst.min(segment) } else { 0 };
        let unsolicited = if session.initial_r2t { at_once } else { burst };
        let pdu = ScsiCommand {
            sn: RequestNumbers {
                immediate: false,
                cmd_sn: self.cmd_sn,
                exp_stat_sn: self.exp_stat_sn,
            },
            last: unsolicited == at_once,
            read: command.read > 0,
            write: length > 0,
            attribute: 1,
            priority: 0,
            lun: command.lun,
            itt,
            expected: if length > 0 {
                u32::try_from(length).unwrap_or(u32::MAX)
            } else {
                command.read
            },
            cdb: command.cdb,
        };
        self.out.pdu(&Pdu::ScsiCommand(pdu), &command.out.slice(..at_once));
        if unsolicited > at_once {
            let (lun, out) = (command.lun, command.out.clone());
            self.data_out(lun, itt, NO_TAG, &out, at_once..unsolicited);
        }
        let deadline = now + pending.command.time;
        let cmd_sn = self.cmd_sn;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let reply = Reply::default();
        let task = Task { pending, cmd_sn, deadline, aborting: false, reply, next_sn: 0 };
        self.tasks.insert(itt, task);
    }

    /// Sends a sequence of Data-Out (RFC 7143 11.7).
    fn data_out(
        &mut self,
        lun: [u8; 8],
        itt: u32,
        ttt: u32,
        data: &Bytes,
        range: std::ops::Range<usize>,
    ) {
        let segment = (self.agreed.target_max_recv as usize).max(1);
        let (mut at, mut data_sn) = (range.start, 0);
        while at < range.end {
            let end = range.end.min(at + segment);
            let pdu = DataOut {
                last: end == range.end,
                lun,
                itt,
                ttt,
                exp_stat_sn: self.exp_stat_sn,
                data_sn,
                offset: u32::try_from(at).unwrap_or(u32::MAX),
            };
            self.out.pdu(&Pdu::DataOut(pdu), &data.slice(at..end));
            (at, data_sn) = (end, data_sn + 1);
        }
    }

    /// Takes a PDU of the target.
    ///
    /// # Errors
    /// [`Broken`]: the connection cannot go on.
    pub fn apply(&mut self, frame: Frame, now: Instant) -> Result<(), Broken> {
        self.heard = now;
        if !frame.intact {
            return Err(Broken::Digest);
        }
        let pdu = Pdu::read(&frame.basic).map_err(|_| Broken::Protocol("an unknown PDU"))?;
        match pdu {
            Pdu::DataIn(it) => self.data_in(it, frame.data)?,
            Pdu::ScsiResponse(it) => self.response(it, &frame.data)?,
            Pdu::R2t(it) => self.ready(it)?,
            Pdu::NopIn(it) => self.nop_in(it, &frame.data)?,
            Pdu::TaskResponse(it) => self.function_done(it, now)?,
            Pdu::LogoutResponse(it) => {
                self.numbers(it.sn, true)?;
                if self.logout != Some(it.itt) {
                    return Err(Broken::Protocol("an answer to no logout"));
                }
                self.logged_out = true;
            }
            Pdu::AsyncMessage(it) => self.event(it)?,
            Pdu::Reject(it) => self.rejected(it)?,
            _ => return Err(Broken::Protocol("a PDU that no target sends now")),
        }
        self.pump(now);
        Ok(())
    }

    /// Keeps StatSN and the window (RFC 7143 4.2.2).
    fn numbers(&mut self, sn: Numbers, status: bool) -> Result<(), Broken> {
        if status {
            if sn.stat_sn != self.exp_stat_sn {
                return Err(Broken::Protocol("a response is missing"));
            }
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        let sound = !after(sn.exp_cmd_sn.wrapping_sub(1), sn.max_cmd_sn);
        if sound && after(sn.max_cmd_sn, self.max_cmd_sn) {
            self.max_cmd_sn = sn.max_cmd_sn;
        }
        Ok(())
    }

    fn data_in(&mut self, it: DataIn, data: Bytes) -> Result<(), Broken> {
        self.numbers(it.sn, it.status.is_some())?;
        let task = self.tasks.get_mut(&it.itt).ok_or(Broken::Protocol("data of no task"))?;
        let reply = &mut task.reply;
        if it.data_sn != task.next_sn || it.offset != reply.length {
            return Err(Broken::Protocol("data are missing"));
        }
        task.next_sn += 1;
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if length > task.pending.command.read - reply.length {
            return Err(Broken::Protocol("more data than were expected"));
        }
        reply.length += length;
        if !data.is_empty() {
            reply.data.push(data);
        }
        if let Some(status) = it.status {
            reply.status = status;
            self.end(it.itt, it.residual);
        }
        Ok(())
    }

    fn response(&mut self, it: ScsiResponse, data: &Bytes) -> Result<(), Broken> {
        self.numbers(it.sn, true)?;
        let task = self.tasks.get_mut(&it.itt).ok_or(Broken::Protocol("a response to no task"))?;
        task.reply.failed = it.response != 0;
        task.reply.status = it.status;
        if let [high, low, ..] = data[..] {
            let length = usize::from(u16::from_be_bytes([high, low]));
            task.reply.sense = data.slice(2..data.len().min(2 + length));
        }
        self.end(it.itt, it.residual);
        Ok(())
    }

    fn end(&mut self, itt: u32, residual: Residual) {
        if let Some(mut task) = self.tasks.remove(&itt) {
            // Data that were announced and did not come: nothing was read.
            let short = match residual {
                Residual::Underflow(count) => count,
                _ => 0,
            };
            let expected = task.pending.command.read.saturating_sub(short);
            if task.reply.status == 0 && task.reply.length < expected {
                task.reply.failed = true;
            }
            // Whoever no longer waits is not told.
            let _ = task.pending.done.send(Ok(task.reply));
        }
    }

    fn ready(&mut self, it: R2t) -> Result<(), Broken> {
        self.numbers(it.sn, false)?;
        let task = self.tasks.get_mut(&it.itt).ok_or(Broken::Protocol("an R2T of no task"))?;
        if it.r2t_sn != task.next_sn {
            return Err(Broken::Protocol("an R2T is missing"));
        }
        task.next_sn += 1;
        let (start, length) = (it.offset as usize, it.length as usize);
        let data = task.pending.command.out.clone();
        if length == 0
            || length > self.agreed.session.max_burst as usize
            || start + length > data.len()
        {
            return Err(Broken::Protocol("an R2T for what is not there"));
        }
        self.data_out(it.lun, it.itt, it.ttt, &data, start..start + length);
        Ok(())
    }

    fn nop_in(&mut self, it: NopIn, data: &Bytes) -> Result<(), Broken> {
        self.numbers(it.sn, it.itt != NO_TAG)?;
        if it.itt != NO_TAG {
            self.ping = None;
        }
        if it.ttt != NO_TAG {
            let answer = NopOut { sn: self.at_once(), lun: it.lun, itt: NO_TAG, ttt: it.ttt };
            self.out.pdu(&Pdu::NopOut(answer), data);
        }
        Ok(())
    }

    fn event(&mut self, it: AsyncMessage) -> Result<(), Broken> {
        self.numbers(it.sn, true)?;
        match it.event {
            1 | 4 => Err(Broken::LogoutAsked),
            2 | 3 => Err(Broken::Dropped),
            // What a logical unit has to say comes again as a unit attention.
            _ => Ok(()),
        }
    }

    fn rejected(&mut self, it: Reject) -> Result<(), Broken> {
        self.numbers(it.sn, true)?;
        match it.reason {
            // A ping or a function too many: it is overdue later.
            reason::IMMEDIATE => Ok(()),
            other => Err(Broken::Rejected(other)),
        }
    }

    fn function_done(&mut self, it: TaskResponse, now: Instant) -> Result<(), Broken> {
        self.numbers(it.sn, true)?;
        let what = self.functions.remove(&it.itt);
        match what.ok_or(Broken::Protocol("an answer to no function"))? {
            Function::Abort { task } => match it.response {
                outcome::COMPLETE => {
                    if let Some(task) = self.tasks.remove(&task) {
                        let _ = task.pending.done.send(Err(Lost::Aborted));
                    }
                    Ok(())
                }
                // Its response is lost, unless it crossed the request.
                outcome::NO_TASK if self.tasks.contains_key(&task) => {
                    Err(Broken::Protocol("a response is missing"))
                }
                outcome::NO_TASK => Ok(()),
                _ => {
                    let lun = self.tasks.get(&task).map(|task| task.pending.command.lun);
                    lun.into_iter().for_each(|lun| self.reset(lun, now));
                    Ok(())
                }
            },
            Function::Reset { lun, .. } if it.response == outcome::COMPLETE => {
                let gone: Vec<u32> = self
                    .tasks
                    .iter()
                    .filter(|(_, task)| task.pending.command.lun == lun)
                    .map(|(itt, _)| *itt)
                    .collect();
                for task in gone.into_iter().filter_map(|itt| self.tasks.remove(&itt)) {
                    let _ = task.pending.done.send(Err(Lost::Aborted));
                }
                Ok(())
            }
            Function::Reset { .. } => Err(Broken::Mute),
        }
    }

    fn reset(&mut self, lun: [u8; 8], now: Instant) {
        if self.is_resetting() {
            return;
        }
        let deadline = now + self.times.function;
        self.function(function::LUN_RESET, lun, NO_TAG, 0, Function::Reset { lun, deadline });
    }

    fn is_resetting(&self) -> bool {
        self.functions.values().any(|it| matches!(it, Function::Reset { .. }))
    }

    fn function(&mut self, code: u8, lun: [u8; 8], task: u32, cmd_sn: u32, what: Function) {
        let itt = self.tag();
        let request = TaskRequest {
            sn: self.at_once(),
            function: code,
            lun,
            itt,
            referenced: task,
            ref_cmd_sn: cmd_sn,
            exp_data_sn: 0,
        };
        self.functions.insert(itt, what);
        self.out.pdu(&Pdu::TaskRequest(request), &Bytes::new());
    }

    /// Does what is due.
    ///
    /// # Errors
    /// [`Broken::Mute`] if the target does not answer.
    pub fn tick(&mut self, now: Instant) -> Result<(), Broken> {
        let silent = now.saturating_duration_since(self.heard);
        match self.ping {
            Some(sent) if silent.min(now - sent) >= self.times.keep_alive => {
                return Err(Broken::Mute);
            }
            None if silent >= self.times.keep_alive && self.logout.is_none() => {
                let itt = self.tag();
                let nop = NopOut { sn: self.at_once(), lun: [0; 8], itt, ttt: NO_TAG };
                self.out.pdu(&Pdu::NopOut(nop), &Bytes::new());
                self.ping = Some(now);
            }
            _ => {}
        }
        if self.waiting.front().is_some_and(|(it, since)| now >= *since + it.command.time)
            && self.tasks.is_empty()
        {
            return Err(Broken::Mute);
        }
        let reset_overdue =
            |it: &Function| matches!(it, Function::Reset { deadline, .. } if now >= *deadline);
        if self.functions.values().any(reset_overdue) {
            return Err(Broken::Mute);
        }
        let overdue: Vec<u32> =
            self.tasks.iter().filter(|(_, it)| now >= it.deadline).map(|(itt, _)| *itt).collect();
        for itt in overdue {
            let Some(task) = self.tasks.get_mut(&itt) else { continue };
            let (lun, cmd_sn) = (task.pending.command.lun, task.cmd_sn);
            if std::mem::replace(&mut task.aborting, true) {
                self.reset(lun, now);
            } else {
                task.deadline = now + self.times.function;
                self.function(
                    function::ABORT_TASK,
                    lun,
                    itt,
                    cmd_sn,
                    Function::Abort { task: itt },
                );
            }
        }
        Ok(())
    }

    /// Tells all who wait that the connection is gone.
    pub fn fail(&mut self) {
        let waiting = self.waiting.drain(..).map(|(pending, _)| pending);
        for pending in waiting.chain(self.tasks.drain().map(|(_, task)| task.pending)) {
            let _ = pending.done.send(Err(Lost::Connection));
        }
    }
}
