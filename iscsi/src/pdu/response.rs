//! What targets send (RFC 7143 11.4, 11.6 to 11.9, 11.11, 11.13, 11.15, 11.17, 11.19).

use super::{
    basic::{Basic, bit, halves, word},
    request::session_identifier,
};

/// StatSN, ExpCmdSN and MaxCmdSN of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// Its place among the connection's responses.
    pub stat_sn: u32,
    /// The CmdSN that the target waits for.
    pub exp_cmd_sn: u32,
    /// The last CmdSN that the target takes.
    pub max_cmd_sn: u32,
}

impl Numbers {
    fn of(basic: &Basic) -> Self {
        Self { stat_sn: basic.words[1], exp_cmd_sn: basic.words[2], max_cmd_sn: basic.words[3] }
    }

    fn put(self, basic: &mut Basic) {
        basic.words[1..4].copy_from_slice(&[self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn]);
    }
}

/// Bytes that were more (overflow) or fewer (underflow) than the initiator expected
/// (RFC 7143 11.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual {
    /// Just as many.
    #[default]
    None,
    /// The initiator expected so many too few.
    Overflow(u32),
    /// The initiator expected so many too many.
    Underflow(u32),
}

impl Residual {
    /// Of a transfer of `actual` bytes where `expected` were.
    #[must_use]
    pub fn of(expected: u32, actual: u64) -> Self {
        let expected = u64::from(expected);
        let clipped = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match actual.cmp(&expected) {
            std::cmp::Ordering::Equal => Self::None,
            std::cmp::Ordering::Greater => Self::Overflow(clipped(actual - expected)),
            std::cmp::Ordering::Less => Self::Underflow(clipped(expected - actual)),
        }
    }

    fn read(over: bool, under: bool, count: u32) -> Self {
        match (over, under) {
            (true, _) => Self::Overflow(count),
            (false, true) => Self::Underflow(count),
            (false, false) => Self::None,
        }
    }

    fn flags(self, over: u8, under: u8) -> u8 {
        match self {
            Self::None => 0,
            Self::Overflow(_) => over,
            Self::Underflow(_) => under,
        }
    }

    fn count(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Overflow(n) | Self::Underflow(n) => n,
        }
    }
}

/// NOP-In (RFC 7143 11.19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NopIn {
    /// Sequence numbers.
    pub sn: Numbers,
    /// The logical unit that an answer names.
    pub lun: [u8; 8],
    /// The NOP-Out's that is answered, or 0xffffffff.
    pub itt: u32,
    /// 0xffffffff: no answer is wanted.
    pub ttt: u32,
}

impl NopIn {
    pub(super) const OPCODE: u8 = 0x20;

    pub(super) fn read(basic: &Basic) -> Self {
        Self { sn: Numbers::of(basic), lun: basic.lun, itt: basic.itt, ttt: basic.words[0] }
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

/// SCSI Response (RFC 7143 11.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScsiResponse {
    /// Sequence numbers.
    pub sn: Numbers,
    /// 0: the command came to an end at the target; 1: the target failed.
    pub response: u8,
    /// The SCSI status.
    pub status: u8,
    /// The task.
    pub itt: u32,
    /// The R-Data SNACK's that made the data be sent again, or 0.
    pub snack_tag: u32,
    /// How many Data-In and R2T the target sent.
    pub exp_data_sn: u32,
    /// Of the data-in of a bidirectional command.
    pub bidirectional: Residual,
    /// Of all others.
    pub residual: Residual,
}

impl ScsiResponse {
    pub(super) const OPCODE: u8 = 0x21;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: Numbers::of(basic),
            response: basic.middle[0],
            status: basic.middle[1],
            itt: basic.itt,
            snack_tag: basic.words[0],
            exp_data_sn: basic.words[4],
            bidirectional: Residual::read(basic.bit(0x10), basic.bit(0x08), basic.words[5]),
            residual: Residual::read(basic.bit(0x04), basic.bit(0x02), basic.words[6]),
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80 | self.bidirectional.flags(0x10, 0x08) | self.residual.flags(0x04, 0x02),
            middle: [self.response, self.status],
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = self.snack_tag;
        self.sn.put(&mut out);
        let counts = [self.exp_data_sn, self.bidirectional.count(), self.residual.count()];
        out.words[4..].copy_from_slice(&counts);
        out
    }
}

/// Task Management Function Response (RFC 7143 11.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskResponse {
    /// Sequence numbers.
    pub sn: Numbers,
    /// How it ended: [`outcome`].
    pub response: u8,
    /// The request.
    pub itt: u32,
}

/// How a task management function ended (RFC 7143 11.6.1, RFC 7144 4.3).
pub mod outcome {
    /// It was done.
    pub const COMPLETE: u8 = 0;
    /// The task is not there.
    pub const NO_TASK: u8 = 1;
    /// The logical unit is not there.
    pub const NO_UNIT: u8 = 2;
    /// The task still belongs to a connection.
    pub const STILL_ALLEGIANT: u8 = 3;
    /// Tasks cannot move here.
    pub const NO_REASSIGNMENT: u8 = 4;
    /// There is no such function here.
    pub const NOT_SUPPORTED: u8 = 5;
    /// The initiator may not.
    pub const NOT_AUTHORIZED: u8 = 6;
    /// The answer to a query is yes.
    pub const SUCCEEDED: u8 = 7;
    /// It was refused.
    pub const REJECTED: u8 = 255;
}

impl TaskResponse {
    pub(super) const OPCODE: u8 = 0x22;

    pub(super) fn read(basic: &Basic) -> Self {
        Self { sn: Numbers::of(basic), response: basic.middle[0], itt: basic.itt }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80,
            middle: [self.response, 0],
            itt: self.itt,
            ..Basic::default()
        };
        self.sn.put(&mut out);
        out
    }
}

/// Login Response (RFC 7143 11.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoginResponse {
    /// Sequence numbers.
    pub sn: Numbers,
    /// T: the stage changes as the request asked.
    pub transit: bool,
    /// C: the text goes on in the next response.
    pub more: bool,
    /// CSG, the request's.
    pub current: u8,
    /// NSG, with `transit`.
    pub next: u8,
    /// Version-max.
    pub version_max: u8,
    /// Version-active.
    pub version_active: u8,
    /// The request's.
    pub isid: [u8; 6],
    /// The session's handle, in the last response of a login.
    pub tsih: u16,
    /// The request's.
    pub itt: u32,
    /// Status-Class and Status-Detail (RFC 7143 11.13.5).
    pub status: u16,
}

impl LoginResponse {
    pub(super) const OPCODE: u8 = 0x23;

    pub(super) fn read(basic: &Basic) -> Self {
        let [isid @ .., t1, t2] = basic.lun;
        Self {
            sn: Numbers::of(basic),
            transit: basic.bit(0x80),
            more: basic.bit(0x40),
            current: basic.flags >> 2 & 3,
            next: basic.flags & 3,
            version_max: basic.middle[0],
            version_active: basic.middle[1],
            isid,
            tsih: u16::from_be_bytes([t1, t2]),
            itt: basic.itt,
            status: halves(basic.words[4]).0,
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: bit(self.transit, 0x80)
                | bit(self.more, 0x40)
                | (self.current & 3) << 2
                | self.next & 3,
            middle: [self.version_max, self.version_active],
            lun: session_identifier(self.isid, self.tsih),
            itt: self.itt,
            ..Basic::default()
        };
        self.sn.put(&mut out);
        out.words[4] = word(self.status, 0);
        out
    }
}

/// Text Response (RFC 7143 11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextResponse {
    /// Sequence numbers.
    pub sn: Numbers,
    /// F: the exchange is at its end.
    pub last: bool,
    /// C: the text goes on in the next response.
    pub more: bool,
    /// A logical unit that the next request names.
    pub lun: [u8; 8],
    /// The request's.
    pub itt: u32,
    /// The next request names it; 0xffffffff if there is none.
    pub ttt: u32,
}

impl TextResponse {
    pub(super) const OPCODE: u8 = 0x24;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: Numbers::of(basic),
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

/// SCSI Data-In (RFC 7143 11.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataIn {
    /// Sequence numbers; StatSN counts only with `status`.
    pub sn: Numbers,
    /// F: the last of its sequence.
    pub last: bool,
    /// A: the initiator is to acknowledge.
    pub acknowledge: bool,
    /// S: the SCSI status, which ends the task.
    pub status: Option<u8>,
    /// With `status`.
    pub residual: Residual,
    /// The logical unit, with `acknowledge`.
    pub lun: [u8; 8],
    /// The task.
    pub itt: u32,
    /// What an acknowledgement names, or 0xffffffff.
    pub ttt: u32,
    /// Its place among the task's Data-In and R2T, from 0.
    pub data_sn: u32,
    /// Buffer Offset, in bytes.
    pub offset: u32,
}

impl DataIn {
    pub(super) const OPCODE: u8 = 0x25;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: Numbers::of(basic),
            last: basic.bit(0x80),
            acknowledge: basic.bit(0x40),
            status: basic.bit(0x01).then_some(basic.middle[1]),
            residual: Residual::read(basic.bit(0x04), basic.bit(0x02), basic.words[6]),
            lun: basic.lun,
            itt: basic.itt,
            ttt: basic.words[0],
            data_sn: basic.words[4],
            offset: basic.words[5],
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: bit(self.last, 0x80)
                | bit(self.acknowledge, 0x40)
                | self.residual.flags(0x04, 0x02)
                | bit(self.status.is_some(), 0x01),
            middle: [0, self.status.unwrap_or_default()],
            lun: self.lun,
            itt: self.itt,
            ..Basic::default()
        };
        out.words[0] = self.ttt;
        self.sn.put(&mut out);
        out.words[4..].copy_from_slice(&[self.data_sn, self.offset, self.residual.count()]);
        out
    }
}

/// Ready To Transfer (RFC 7143 11.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct R2t {
    /// Sequence numbers; StatSN is the next that will be used.
    pub sn: Numbers,
    /// The logical unit, which the data name again.
    pub lun: [u8; 8],
    /// The task.
    pub itt: u32,
    /// What the data name.
    pub ttt: u32,
    /// R2TSN: its place among the task's Data-In and R2T, from 0.
    pub r2t_sn: u32,
    /// Buffer Offset, in bytes.
    pub offset: u32,
    /// Desired Data Transfer Length, in bytes.
    pub length: u32,
}

impl R2t {
    pub(super) const OPCODE: u8 = 0x31;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: Numbers::of(basic),
            lun: basic.lun,
            itt: basic.itt,
            ttt: basic.words[0],
            r2t_sn: basic.words[4],
            offset: basic.words[5],
            length: basic.words[6],
        }
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
        out.words[4..].copy_from_slice(&[self.r2t_sn, self.offset, self.length]);
        out
    }
}

/// Asynchronous Message (RFC 7143 11.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsyncMessage {
    /// Sequence numbers.
    pub sn: Numbers,
    /// The logical unit, for SCSI events.
    pub lun: [u8; 8],
    /// 0 SCSI, 1 log out, 2 a connection is dropped, 3 all are, 4 negotiate, 5 tasks ended.
    pub event: u8,
    /// AsyncVCode.
    pub code: u8,
    /// Parameter1 to Parameter3.
    pub parameters: [u16; 3],
}

impl AsyncMessage {
    pub(super) const OPCODE: u8 = 0x32;

    pub(super) fn read(basic: &Basic) -> Self {
        let (codes, first) = halves(basic.words[4]);
        let (second, third) = halves(basic.words[5]);
        let [event, code] = codes.to_be_bytes();
        Self {
            sn: Numbers::of(basic),
            lun: basic.lun,
            event,
            code,
            parameters: [first, second, third],
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80,
            lun: self.lun,
            itt: u32::MAX,
            ..Basic::default()
        };
        self.sn.put(&mut out);
        let [first, second, third] = self.parameters;
        out.words[4] = word(u16::from_be_bytes([self.event, self.code]), first);
        out.words[5] = word(second, third);
        out
    }
}

/// Reject (RFC 7143 11.17); its data segment is the header that was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// Sequence numbers.
    pub sn: Numbers,
    /// Why: [`reason`].
    pub reason: u8,
    /// The DataSN or R2TSN that the target waits for, where the reason has one.
    pub data_sn: u32,
}

/// Reasons of a [`Reject`] (RFC 7143 11.17.1).
pub mod reason {
    /// The data segment does not match its digest.
    pub const DATA_DIGEST: u8 = 0x02;
    /// What a SNACK asks for is not there.
    pub const SNACK: u8 = 0x03;
    /// The PDU may not come here.
    pub const PROTOCOL: u8 = 0x04;
    /// The opcode is not supported.
    pub const NOT_SUPPORTED: u8 = 0x05;
    /// Too many immediate commands.
    pub const IMMEDIATE: u8 = 0x06;
    /// A task with this tag is there.
    pub const TASK_IN_PROGRESS: u8 = 0x07;
    /// An acknowledgement of data that were not sent.
    pub const DATA_ACK: u8 = 0x08;
    /// A field is wrong.
    pub const FIELD: u8 = 0x09;
    /// The exchange of texts cannot go on.
    pub const LONG_OPERATION: u8 = 0x0a;
    /// The connection waits for a logout.
    pub const WAITING_FOR_LOGOUT: u8 = 0x0c;
}

impl Reject {
    pub(super) const OPCODE: u8 = 0x3f;

    pub(super) fn read(basic: &Basic) -> Self {
        Self { sn: Numbers::of(basic), reason: basic.middle[0], data_sn: basic.words[4] }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80,
            middle: [self.reason, 0],
            itt: u32::MAX,
            ..Basic::default()
        };
        self.sn.put(&mut out);
        out.words[4] = self.data_sn;
        out
    }
}

/// Logout Response (RFC 7143 11.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogoutResponse {
    /// Sequence numbers.
    pub sn: Numbers,
    /// 0 done, 1 no such connection, 2 no recovery here, 3 it failed.
    pub response: u8,
    /// The request's.
    pub itt: u32,
    /// Time2Wait and Time2Retain, in seconds.
    pub times: (u16, u16),
}

impl LogoutResponse {
    pub(super) const OPCODE: u8 = 0x26;

    pub(super) fn read(basic: &Basic) -> Self {
        Self {
            sn: Numbers::of(basic),
            response: basic.middle[0],
            itt: basic.itt,
            times: halves(basic.words[5]),
        }
    }

    pub(super) fn write(&self) -> Basic {
        let mut out = Basic {
            opcode: Self::OPCODE,
            flags: 0x80,
            middle: [self.response, 0],
            itt: self.itt,
            ..Basic::default()
        };
        self.sn.put(&mut out);
        out.words[5] = word(self.times.0, self.times.1);
        out
    }
}
