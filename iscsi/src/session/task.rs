//! A command from its arrival to its answer, and the order among those of a logical unit.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::future::{AbortHandle, AbortRegistration};
use scsi::{Lun, Sense, Status, TaskAttribute};

/// Tells one life of an Initiator Task Tag from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TaskKey {
    /// Initiator Task Tag.
    pub itt: u32,
    /// Of this life of the tag.
    pub id: u64,
}

/// A command descriptor block.
#[derive(Debug, Clone)]
pub enum Cdb {
    /// In the header: bytes and how many of them count.
    Short([u8; 16], u8),
    /// With an additional header segment.
    Long(Bytes),
}

impl Cdb {
    /// From what a header and its additional segments hold.
    #[must_use]
    pub fn new(head: [u8; 16], tail: &Bytes) -> Self {
        if tail.is_empty() {
            // The group of the operation code gives the length (SPC-4 4.2.5.1).
            let length = match head[0] >> 5 {
                0 => 6,
                1 | 2 => 10,
                5 => 12,
                _ => 16,
            };
            return Self::Short(head, length);
        }
        Self::Long([&head[..], tail].concat().into())
    }

    /// The command descriptor block as bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes, length) => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// A command for the device, with all its data.
#[derive(Debug)]
pub struct Run {
    /// Whose answer it will be.
    pub key: TaskKey,
    /// The logical unit.
    pub lun: Lun,
    /// What to do.
    pub cdb: Cdb,
    /// Data-out.
    pub data_out: Bytes,
    /// How it is ordered.
    pub attribute: TaskAttribute,
    /// Ends it early.
    pub abort: AbortRegistration,
}

/// Data that were asked for by an R2T and did not all come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub ttt: u32,
    pub r2t_sn: u32,
    pub offset: u32,
    pub length: u32,
    pub received: u32,
    pub next_data_sn: u32,
}

/// Where a task stands.
#[derive(Debug)]
pub(super) struct Task {
    pub id: u64,
    /// The connection that it belongs to.
    pub link: u32,
    pub lun: Lun,
    pub attribute: TaskAttribute,
    pub immediate: bool,
    pub cdb: Cdb,
    pub write: bool,
    pub read: bool,
    /// Bytes of data-out and of data-in that the initiator announced.
    pub expected_out: u32,
    pub expected_in: u32,
    /// Data-out: one view if they came in one piece, else copied together.
    pub whole: Bytes,
    pub parts: Vec<u8>,
    pub received: u32,
    /// Unsolicited data still come, and their next DataSN.
    pub unsolicited: Option<u32>,
    /// Up to where data came unsolicited or were asked for.
    pub solicited: u32,
    pub asked: VecDeque<Asked>,
    /// Data were lost, and are asked for again at the end of their sequence.
    pub broken: bool,
    /// Data may come for tags that were given up.
    pub stale: bool,
    /// The next DataSN or R2TSN.
    pub data_sn: u32,
    /// How it will be answered without being carried out, once its data are through.
    pub refused: Option<(Status, Option<Sense>)>,
    /// Bytes of the session's and of the process's budget that it holds.
    pub held: usize,
    /// It waits for the session's budget before it asks for data.
    pub starving: bool,
    /// Its task set lets it run.
    pub enabled: bool,
    /// It is at the device, and this ends it.
    pub running: Option<AbortHandle>,
    pub aborted: bool,
}

impl Task {
    pub fn has_all_data(&self) -> bool {
        self.unsolicited.is_none() && self.received == self.expected_out
    }

    pub fn append(&mut self, data: &Bytes) {
        if self.received == 0 {
            self.whole = data.clone();
        } else {
            if !self.whole.is_empty() {
                self.parts = Vec::with_capacity(self.expected_out as usize);
                self.parts.extend_from_slice(&std::mem::take(&mut self.whole));
            }
            self.parts.extend_from_slice(data);
        }
        self.received += u32::try_from(data.len()).unwrap_or_default();
    }

    pub fn take_data(&mut self) -> Bytes {
        if self.parts.is_empty() {
            std::mem::take(&mut self.whole)
        } else {
            std::mem::take(&mut self.parts).into()
        }
    }

    /// Forgets what was asked for, so that it can be asked for again.
    pub fn give_up_asked(&mut self) {
        self.stale |= !self.asked.is_empty();
        self.asked.clear();
        self.solicited = self.received;
        self.broken = false;
    }
}

/// The tasks of one logical unit, ordered by their attributes (SAM-5 8.6).
#[derive(Debug, Default)]
pub(super) struct TaskSet {
    simple: usize,
    ordered: usize,
    head: usize,
    waiting: VecDeque<(u32, TaskAttribute)>,
}

impl TaskSet {
    /// A task comes in; whether it may run at once.
    pub fn enter(&mut self, itt: u32, attribute: TaskAttribute) -> bool {
        let free = self.waiting.is_empty() || attribute == TaskAttribute::HeadOfQueue;
        if free && self.permits(attribute) {
            *self.count(attribute) += 1;
            return true;
        }
        self.waiting.push_back((itt, attribute));
        false
    }

    fn permits(&self, attribute: TaskAttribute) -> bool {
        match attribute {
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => true,
            TaskAttribute::Ordered => self.simple + self.ordered + self.head == 0,
            TaskAttribute::Simple | TaskAttribute::Untagged => self.ordered + self.head == 0,
        }
    }

    fn count(&mut self, attribute: TaskAttribute) -> &mut usize {
        match attribute {
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => &mut self.head,
            TaskAttribute::Ordered => &mut self.ordered,
            TaskAttribute::Simple | TaskAttribute::Untagged => &mut self.simple,
        }
    }

    /// A task leaves; those that may run now are added to `enabled`.
    pub fn leave(
        &mut self,
        itt: u32,
        attribute: TaskAttribute,
        was_enabled: bool,
        enabled: &mut Vec<u32>,
    ) {
        if was_enabled {
            let count = self.count(attribute);
            *count = count.saturating_sub(1);
        } else {
            self.waiting.retain(|(waiting, _)| *waiting != itt);
        }
        while let Some((next, attribute)) = self.waiting.front().copied() {
            if !self.permits(attribute) {
                break;
            }
            *self.count(attribute) += 1;
            self.waiting.pop_front();
            enabled.push(next);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.simple + self.ordered + self.head == 0 && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordered_tasks_wait_for_all_before_and_hold_all_behind() {
        let mut set = TaskSet::default();
        assert!(set.enter(1, TaskAttribute::Simple));
        assert!(set.enter(2, TaskAttribute::Simple));
        assert!(!set.enter(3, TaskAttribute::Ordered));
        assert!(!set.enter(4, TaskAttribute::Simple));
        assert!(set.enter(5, TaskAttribute::HeadOfQueue));
        let mut enabled = Vec::new();
        set.leave(1, TaskAttribute::Simple, true, &mut enabled);
        set.leave(2, TaskAttribute::Simple, true, &mut enabled);
        assert!(enabled.is_empty());
        set.leave(5, TaskAttribute::HeadOfQueue, true, &mut enabled);
        assert_eq!(enabled, [3]);
        set.leave(3, TaskAttribute::Ordered, true, &mut enabled);
        assert_eq!(enabled, [3, 4]);
        set.leave(4, TaskAttribute::Simple, true, &mut enabled);
        assert!(set.is_empty());
    }

    #[test]
    fn a_waiting_task_that_is_aborted_holds_nobody() {
        let mut set = TaskSet::default();
        set.enter(1, TaskAttribute::Simple);
        set.enter(2, TaskAttribute::Ordered);
        set.enter(3, TaskAttribute::Simple);
        let mut enabled = Vec::new();
        set.leave(2, TaskAttribute::Ordered, false, &mut enabled);
        assert_eq!(enabled, [3]);
    }
}
