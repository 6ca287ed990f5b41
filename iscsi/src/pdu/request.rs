//! What initiators send (RFC 7143 11.3, 11.5, 11.7, 11.10, 11.12, 11.14, 11.16, 11.18).

use super::basic::{Basic, WireError, bit, halves, word};

/// CmdSN and ExpStatSN of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestNumbers {
    /// The I bit.
    pub immediate: bool,
    /// Its place among the session's commands.
    pub cmd_sn: u32,
    /// All responses of this connection below it have arrived.
    pub exp_stat_sn: u32,
}

impl RequestNumbers {
    fn of(basic: &Basic) -> Self {
        Self { immediate: basic.immediate, cmd_sn: basic.words[1], exp_stat_sn: basic.words[2] }
    }

    fn put(self, basic: &mut Basic) {
        basic.immediate = self.immediate;
        basic.words[1] = self.cmd_sn;
        basic.words[2] = self.exp_stat_sn;
    }
}

/// NOP-Out (RFC 7143 11.18): a ping, or the answer to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopOut {
    /// Sequence numbers.
    pub sn: RequestNumbers,
    /// The logical unit that the answered NOP-In named.
    pub lun: [u8; 8],
    /// 0xffffffff: no answer is wanted.
    pub itt: u32,
    /// The answered NOP-In's, or 0xffffffff.
    pub ttt: u32,
}

impl NopOut {
    pub(super) const OPCODE: u8 = 0x00;

    pub(super) fn read(basic: &Basic) -> Self {
        Self { sn: RequestNumbers::of(basic), lun: basic.lun, itt: basic.itt, ttt: basic.words[0] }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80,
            lun: self.lun,
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = self.ttt;
        self.sn.put(&mut out);
        out
    }
}

/// SCSI Command (RFC 7143 11.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Sequence numbers.
    pub sn: RequestNumbers,
    /// F: no unsolicited Data-Out follows.
    pub last: bool,
    /// R: data come to the initiator.
    pub read: bool,
    /// W: data come from the initiator.
    pub write: bool,
    /// ATTR: 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
    pub attribute: u8,
    /// PRI: the command's priority (RFC 7144 4.1).
    pub priority: u8,
    /// The logical unit.
    pub lun: [u8; 8],
    /// Names the task from here on.
    pub itt: u32,
    /// Expected Data Transfer Length, in bytes.
    pub expected: u32,
    /// The first sixteen bytes of the command descriptor block.
    pub cdb: [u8; 16],
}

impl ScsiCommand {
    pub(super) const OPCODE: u8 = 0x01;

    pub(super) fn read(basic: &Basic) -> Result<Self, WireError> {
        let mut cdb = [0; 16];
        for (place, word) in cdb.chunks_exact_mut(4).zip(&basic.words[3..]) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        let attribute = basic.flags & 7;
        if attribute > 4 {
            return Err(WireError::Field("ATTR"));
        }
        Ok(Self {
            sn: RequestNumbers::of(basic),
            last: basic.bit(0x80),
            read: basic.bit(0x40),
            write: basic.bit(0x20),
            attribute,
            priority: basic.middle[0] & 0x0f,
            lun: basic.lun,
            itt: basic.itt,
            expected: basic.words[0],
            cdb,
        })
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: bit(self.last, 0x80)
                | bit(self.read, 0x40)
                | bit(self.write, 0x20)
                | self.attribute & 7,
            middle: [self.priority & 0x0f, 0],
            lun: self.lun,
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = self.expected;
        self.sn.put(&mut out);
        for (place, four) in out.words[3..].iter_mut().zip(self.cdb.as_chunks::<4>().0) {
            *place = u32::from_be_bytes(*four);
        }
        out
    }
}

/// Task Management Function Request (RFC 7143 11.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskRequest {
    /// Sequence numbers.
    pub sn: RequestNumbers,
    /// What is asked for: [`function`].
    pub function: u8,
    /// The logical unit.
    pub lun: [u8; 8],
    /// Of this request.
    pub itt: u32,
    /// Referenced Task Tag: the task it is about.
    pub referenced: u32,
    /// The CmdSN of the task it is about.
    pub ref_cmd_sn: u32,
    /// TASK REASSIGN: the first Data-In or R2T that did not arrive.
    pub exp_data_sn: u32,
}

/// The functions of a [`TaskRequest`] (RFC 7143 11.5.1, RFC 7144 4.2).
pub mod function {
    /// One task.
    pub const ABORT_TASK: u8 = 1;
    /// All tasks of this session on a logical unit.
    pub const ABORT_TASK_SET: u8 = 2;
    /// An automatic contingent allegiance.
    pub const CLEAR_ACA: u8 = 3;
    /// All tasks of all sessions on a logical unit.
    pub const CLEAR_TASK_SET: u8 = 4;
    /// One logical unit.
    pub const LUN_RESET: u8 = 5;
    /// All logical units.
    pub const TARGET_WARM_RESET: u8 = 6;
    /// All logical units, and all sessions end.
    pub const TARGET_COLD_RESET: u8 = 7;
    /// A task moves to this connection.
    pub const TASK_REASSIGN: u8 = 8;
    /// Whether a task is there.
    pub const QUERY_TASK: u8 = 9;
    /// Whether any task is there.
    pub const QUERY_TASK_SET: u8 = 10;
    /// All tasks and state of this session.
    pub const NEXUS_RESET: u8 = 11;
    /// Whether a unit attention waits.
    pub const QUERY_ASYNC_EVENT: u8 = 12;
}

impl TaskRequest {
    pub(super) const OPCODE: u8 = 0x02;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: RequestNumbers::of(basic),
            function: basic.flags & 0x7f,
            lun: basic.lun,
            itt: basic.itt,
            referenced: basic.words[0],
            ref_cmd_sn: basic.words[3],
            exp_data_sn: basic.words[4],
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80 | self.function & 0x7f,
            lun: self.lun,
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = self.referenced;
        self.sn.put(&mut out);
        out.words[3] = self.ref_cmd_sn;
        out.words[4] = self.exp_data_sn;
        out
    }
}

/// Login Request (RFC 7143 11.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginRequest {
    /// Sequence numbers.
    pub sn: RequestNumbers,
    /// T: on to `next`.
    pub transit: bool,
    /// C: the text goes on in the next request.
    pub more: bool,
    /// CSG: 0 security, 1 operational.
    pub current: u8,
    /// NSG: 1 operational, 3 full feature phase; meaningful with `transit`.
    pub next: u8,
    /// Version-max.
    pub version_max: u8,
    /// Version-min.
    pub version_min: u8,
    /// The initiator's part of the session's identifier.
    pub isid: [u8; 6],
    /// The target's part; 0 for a new session.
    pub tsih: u16,
    /// Initiator Task Tag, the same through a login.
    pub itt: u32,
    /// The connection's identifier in its session.
    pub cid: u16,
}

impl LoginRequest {
    pub(super) const OPCODE: u8 = 0x03;

    pub(super) fn read(basic: &Basic) -> Self {
        let [isid @ .., t1, t2] = basic.lun;
        Self {
            sn: RequestNumbers::of(basic),
            transit: basic.bit(0x80),
            more: basic.bit(0x40),
            current: basic.flags >> 2 & 3,
            next: basic.flags & 3,
            version_max: basic.middle[0],
            version_min: basic.middle[1],
            isid,
            tsih: u16::from_be_bytes([t1, t2]),
            itt: basic.itt,
            cid: halves(basic.words[0]).0,
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: bit(self.transit, 0x80)
                | bit(self.more, 0x40)
                | (self.current & 3) << 2
                | self.next & 3,
            middle: [self.version_max, self.version_min],
            lun: session_identifier(self.isid, self.tsih),
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = word(self.cid, 0);
        self.sn.put(&mut out);
        out
    }
}

/// ISID and TSIH as they stand in a login's header.
pub(super) fn session_identifier(isid: [u8; 6], tsih: u16) -> [u8; 8] {
    let mut out = [0; 8];
    out[..6].copy_from_slice(&isid);
    out[6..].copy_from_slice(&tsih.to_be_bytes());
    out
}

/// Text Request (RFC 7143 11.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRequest {
    /// Sequence numbers.
    pub sn: RequestNumbers,
    /// F: the initiator has nothing more to say in this exchange.
    pub last: bool,
    /// C: the text goes on in the next request.
    pub more: bool,
    /// A logical unit, as the response that is answered had it.
    pub lun: [u8; 8],
    /// Of the exchange.
    pub itt: u32,
    /// The response's that is answered, or 0xffffffff.
    pub ttt: u32,
}

impl TextRequest {
    pub(super) const OPCODE: u8 = 0x04;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: RequestNumbers::of(basic),
            last: basic.bit(0x80),
            more: basic.bit(0x40),
            lun: basic.lun,
            itt: basic.itt,
            ttt: basic.words[0],
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: bit(self.last, 0x80) | bit(self.more, 0x40),
            lun: self.lun,
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = self.ttt;
        self.sn.put(&mut out);
        out
    }
}

/// SCSI Data-Out (RFC 7143 11.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOut {
    /// F: the last of its sequence.
    pub last: bool,
    /// The logical unit, as the R2T had it.
    pub lun: [u8; 8],
    /// The task.
    pub itt: u32,
    /// The R2T that asked for it, or 0xffffffff.
    pub ttt: u32,
    /// All responses below it have arrived.
    pub exp_stat_sn: u32,
    /// Its place in its sequence, from 0.
    pub data_sn: u32,
    /// Buffer Offset, in bytes.
    pub offset: u32,
}

impl DataOut {
    pub(super) const OPCODE: u8 = 0x05;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            last: basic.bit(0x80),
            lun: basic.lun,
            itt: basic.itt,
            ttt: basic.words[0],
            exp_stat_sn: basic.words[2],
            data_sn: basic.words[4],
            offset: basic.words[5],
        }
    }

    pub(super) fn write(&self) -> Basic {
        let words = [self.ttt, 0, self.exp_stat_sn, 0, self.data_sn, self.offset, 0];
        Basic {
            opcode: Self::OPCODE,
            flags: bit(self.last, 0x80),
            lun: self.lun,
            itt: self.itt,
            words,
            ..Basic::default()
        }
    }
}

/// Logout Request (RFC 7143 11.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogoutRequest {
    /// Sequence numbers.
    pub sn: RequestNumbers,
    /// 0 the session, 1 a connection, 2 a connection whose tasks move to another.
    pub reason: u8,
    /// Initiator Task Tag.
    pub itt: u32,
    /// The connection, for reasons 1 and 2.
    pub cid: u16,
}

impl LogoutRequest {
    pub(super) const OPCODE: u8 = 0x06;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: RequestNumbers::of(basic),
            reason: basic.flags & 0x7f,
            itt: basic.itt,
            cid: halves(basic.words[0]).0,
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80 | self.reason & 0x7f,
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = word(self.cid, 0);
        self.sn.put(&mut out);
        out
    }
}

/// SNACK Request (RFC 7143 11.16): something is to be sent again, or arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snack {
    /// 0 Data-In or R2T, 1 status, 2 acknowledges Data-In, 3 Data-In in other pieces.
    pub kind: u8,
    /// The logical unit.
    pub lun: [u8; 8],
    /// The task, or 0xffffffff.
    pub itt: u32,
    /// Target Transfer Tag, or SNACK Tag.
    pub ttt: u32,
    /// All responses below it have arrived.
    pub exp_stat_sn: u32,
    /// The first number that is asked for.
    pub begin: u32,
    /// How many; 0 for all from there on.
    pub run: u32,
}

impl Snack {
    pub(super) const OPCODE: u8 = 0x10;

    pub(super) fn read(basic: &Basic) -> Result<Self, WireError> {
        let kind = basic.flags & 0x0f;
        if kind > 3 {
            return Err(WireError::Field("SNACK type"));
        }
        Ok(Self {
            kind,
            lun: basic.lun,
            itt: basic.itt,
            ttt: basic.words[0],
            exp_stat_sn: basic.words[2],
            begin: basic.words[5],
            run: basic.words[6],
        })
    }

    pub(super) fn write(&self) -> Basic {
        Basic {
            opcode: Self::OPCODE,
            flags: 0x80 | self.kind & 0x0f,
            lun: self.lun,
            itt: self.itt,
            words: [self.ttt, 0, self.exp_stat_sn, 0, 0, self.begin, self.run],
            ..Basic::default()
        }
    }
}
