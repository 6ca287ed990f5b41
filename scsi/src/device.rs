//! A SCSI target device, as a transport sees it.

use std::{future::Future, sync::Arc};

use bytes::Bytes;

use crate::Sense;

/// A logical unit number in its eight bytes on the wire (SAM-5 4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lun(pub [u8; 8]);

/// One initiator port logged in to one target port (SAM-5 4.8).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Nexus {
    /// Tells this life of the nexus from every other in the process; a nexus that is made anew
    /// between the same ports has another.
    pub id: u64,
    /// The initiator port's name; iSCSI: the initiator's name, `,i,0x` and the ISID in hexadecimal.
    /// Reservations are kept by it and outlive the nexus.
    pub initiator: Arc<str>,
    /// The relative target port identifier.
    pub port: u16,
}

/// How a task is ordered among those of its logical unit (SAM-5 8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskAttribute {
    /// No attribute was given.
    Untagged,
    /// In any order.
    Simple,
    /// After all that came before it, and before all that come after it.
    Ordered,
    /// Before all others.
    HeadOfQueue,
    /// As the automatic contingent allegiance asks.
    Aca,
}

/// Where a command stands among those that wait (SAM-5 8.7): lower ones go first, and equal ones in the
/// order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(u8);

impl Rank {
    /// Of a command without a priority of its own: in the middle, so that 1 to 7 are more important
    /// than it and 8 to 15 less.
    pub const MIDDLE: Self = Self(15);

    /// Of a command with these fields. A priority is one of SIMPLE tasks; 1 is the highest, 15 the
    /// lowest, and 0 none (RFC 7144 4.1, SAM-5 8.7).
    #[must_use]
    pub fn new(attribute: TaskAttribute, priority: u8) -> Self {
        match (attribute, priority) {
            (TaskAttribute::HeadOfQueue, _) => Self(0),
            (TaskAttribute::Simple, 1..=15) => Self(2 * priority),
            _ => Self::MIDDLE,
        }
    }

    /// How many steps it is behind the best.
    pub(crate) fn steps(self) -> u32 {
        self.0.into()
    }
}

/// A command with all the data that its initiator sends for it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The logical unit it is for.
    pub lun: Lun,
    /// The command descriptor block: 6 to 260 bytes.
    pub cdb: &'a [u8],
    /// Data-out, as much of it as the initiator announced.
    pub data_out: &'a Bytes,
    /// How it is ordered.
    pub attribute: TaskAttribute,
    /// Its place among those that wait for a limit of the unit.
    pub rank: Rank,
}

/// How a command ended (SAM-5 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// Sense data say what is wrong.
    CheckCondition = 0x02,
    /// A comparison came out equal (PRE-FETCH: the blocks fit the cache).
    ConditionMet = 0x04,
    /// The logical unit cannot take the command now.
    Busy = 0x08,
    /// A reservation of another initiator stands against it.
    ReservationConflict = 0x18,
    /// The task set has no room.
    TaskSetFull = 0x28,
    /// A contingent allegiance is in force.
    AcaActive = 0x30,
    /// The task was aborted by another initiator.
    TaskAborted = 0x40,
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Its status.
    pub status: Status,
    /// Sense data, with [`Status::CheckCondition`].
    pub sense: Option<Sense>,
    /// Bytes of data-out that the command descriptor block asks for; more or fewer than came is a
    /// residual count.
    pub data_out_wanted: u64,
}

/// A set of logical units behind target ports.
///
/// Commands run concurrently. A future that is dropped aborts its command: of what it had begun to
/// write a part may be there, and is before any later command sees these blocks.
pub trait Device: Send + Sync + 'static {
    /// A nexus begins: it is owed the unit attention of a power on (SAM-5 5.14).
    fn attach(&self, nexus: &Nexus);

    /// A nexus is gone: its unit attentions, mode pages and RESERVE(6) reservations go with it.
    fn detach(&self, nexus: &Nexus);

    /// Carries out one command. Data-in is appended to `data_in`, all that the command descriptor
    /// block and its allocation length ask for; the transport cuts it to what the initiator
    /// expects and says so in a residual count.
    fn execute<'a>(
        &'a self,
        nexus: &'a Nexus,
        request: Request<'a>,
        data_in: &'a mut Vec<u8>,
    ) -> impl Future<Output = Completion> + Send + 'a;

    /// Whether `nexus` may see a logical unit of this number.
    fn has_unit(&self, nexus: &Nexus, lun: Lun) -> bool;

    /// LOGICAL UNIT RESET (SAM-5 7.7); its tasks were aborted before.
    fn reset_unit(&self, nexus: &Nexus, lun: Lun);

    /// All logical units are reset (TARGET COLD RESET and WARM RESET of RFC 7143 11.5.1).
    fn reset_target(&self, nexus: &Nexus);

    /// Sense data of a completed command as the logical unit lays them out: the fixed format,
    /// or the descriptor format where D_SENSE of its control mode page says so (SPC-4 7.5.8).
    fn encode_sense(&self, lun: Lun, sense: &Sense) -> Vec<u8> {
        let _ = lun;
        sense.fixed().to_vec()
    }

    /// Whether a unit attention of a logical unit waits for `nexus` (QUERY ASYNCHRONOUS EVENT, SAM-5
    /// 7.10).
    fn has_attention(&self, nexus: &Nexus, lun: Lun) -> bool {
        let _ = (nexus, lun);
        false
    }

    /// Tasks of other nexuses were aborted on this logical unit by `nexus` (CLEAR TASK SET): each of
    /// those in `others` is owed COMMANDS CLEARED BY ANOTHER INITIATOR.
    fn tasks_cleared(&self, nexus: &Nexus, lun: Lun, others: &[Nexus]);
}
