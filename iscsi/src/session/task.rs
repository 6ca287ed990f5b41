//! A command from its arrival to its answer.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures_util::future::{AbortHandle, AbortRegistration};
use scsi::{Lun, Rank, Sense, Status, TaskAttribute};

use crate::task_sets::TaskSet;

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

/// Puts a command among others that wait for the device.
pub(super) fn enqueue(ready: &mut VecDeque<Run>, run: Run) {
    let behind = ready.iter().rev().take_while(|other| other.rank > run.rank).count();
    ready.insert(ready.len() - behind, run);
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
    /// Its place among those that wait for the device.
    pub rank: Rank,
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
    pub rank: Rank,
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
    /// The task set that it entered.
    pub set: Option<Arc<TaskSet>>,
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
