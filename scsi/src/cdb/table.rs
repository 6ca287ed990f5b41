//! All commands there are: how long they are, which of their bits mean something, and what a
//! reservation of another initiator does to them (SPC-4 5.13.1, SBC-3 table 14). Parsing, REPORT
//! SUPPORTED OPERATION CODES and reservations all go by this one table.

/// A command by its operation code and service action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSelect6,
    ModeSelect10,
    ModeSense6,
    ModeSense10,
    LogSense,
    Reserve,
    Release,
    StartStopUnit,
    PreventAllow,
    SendDiagnostic,
    ReadCapacity10,
    ReadCapacity16,
    Read6,
    Read10,
    Read12,
    Read16,
    Write6,
    Write10,
    Write12,
    Write16,
    WriteVerify10,
    WriteVerify12,
    WriteVerify16,
    Verify10,
    Verify12,
    Verify16,
    SynchronizeCache10,
    SynchronizeCache16,
    PreFetch10,
    PreFetch16,
    ReadDefectData10,
    ReadDefectData12,
    WriteSame10,
    WriteSame16,
    Unmap,
    CompareAndWrite,
    OrWrite,
    WriteAtomic16,
    GetLbaStatus,
    Sanitize,
    ReportLuns,
    ReportOpcodes,
    ReportTaskManagement,
    ReportTargetPortGroups,
    SetTargetPortGroups,
    PersistentReserveIn,
    PersistentReserveOut,
    ExtendedCopy1,
    ExtendedCopy4,
    PopulateToken,
    WriteUsingToken,
    CopyStatus1,
    CopyStatus4,
    CopyParameters,
    RodTokenInformation,
}

/// What a reservation that another initiator holds does to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing, not even a RESERVE(6) of another.
    Always,
    /// Nothing, if the reservation is a persistent one.
    Free,
    /// It conflicts with exclusive access.
    Read,
    /// It conflicts with any.
    Write,
    /// Its fields decide.
    ByFields,
}

/// What a logical unit must have for a command to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Unmap,
    Atomic,
    ExplicitAlua,
}

/// What a logical unit has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Features {
    /// Blocks can be unmapped.
    pub unmap: bool,
    /// Unmapped blocks are anchored (ANC_SUP).
    pub anchor: bool,
    pub atomic: bool,
    pub explicit_alua: bool,
}

impl Features {
    #[cfg(test)]
    pub(crate) const ALL: Self =
        Self { unmap: true, anchor: true, atomic: true, explicit_alua: true };

    const fn has(self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing => true,
            Needs::Unmap => self.unmap,
            Needs::Atomic => self.atomic,
            Needs::ExplicitAlua => self.explicit_alua,
        }
    }
}

/// One row.
#[derive(Debug)]
pub(crate) struct Entry {
    pub op: Op,
    pub code: u8,
    pub action: Option<u8>,
    /// CDB usage data (SPC-4 6.34.3): a bit is set if the command looks at it; the first byte is
    /// the operation code.
    pub usage: &'static [u8],
    pub access: Access,
    needs: Needs,
}

impl Entry {
    pub(crate) fn exists(&self, features: Features) -> bool {
        features.has(self.needs)
    }

    /// The usage data as they are for a logical unit, with the service action itself.
    pub(crate) fn usage(&self, features: Features) -> Vec<u8> {
        let mut usage = self.usage.to_vec();
        usage[1] = self.flags(features);
        if let Some(action) = self.action {
            usage[1] = usage[1] & !0x1f | action;
        }
        usage
    }

    /// The bits of byte 1 that a logical unit looks at: not UNMAP where nothing can be unmapped, not ANCHOR
    /// where nothing can be anchored.
    pub(crate) const fn flags(&self, features: Features) -> u8 {
        let flags = self.usage[1];
        let (unmap, anchor) = match self.op {
            Op::WriteSame10 | Op::WriteSame16 => (UNMAP, ANCHOR),
            Op::Unmap => (0, 0x01),
            _ => (0, 0),
        };
        let flags = if features.unmap { flags } else { flags & !unmap };
        if features.anchor { flags } else { flags & !anchor }
    }
}

/// UNMAP in byte 1 of WRITE SAME.
const UNMAP: u8 = 0x08;
/// ANCHOR there.
const ANCHOR: u8 = 0x10;

/// The row of a command; without one of that service action, whether the operation code has others.
pub(crate) fn find(cdb: &[u8], features: Features) -> Result<&'static Entry, Unknown> {
    let Some(&code) = cdb.first() else { return Err(Unknown::OperationCode) };
    let action = cdb.get(1).map_or(0, |byte| byte & 0x1f);
    let mut known = false;
    let rows = TABLE[usize::from(FIRST[usize::from(code)])..].iter();
    for entry in rows.take_while(|entry| entry.code == code).filter(|it| it.exists(features)) {
        known = true;
        if entry.action.is_none_or(|it| it == action) {
            return Ok(entry);
        }
    }
    Err(if known { Unknown::ServiceAction } else { Unknown::OperationCode })
}

/// Where the rows of each operation code begin; for one without rows, somewhere else.
static FIRST: [u8; 256] = {
    let mut first = [0; 256];
    let mut at = TABLE.len();
    while at > 0 {
        at -= 1;
        first[TABLE[at].code as usize] = at as u8;
    }
    first
};

/// What of a command is not in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    OperationCode,
    ServiceAction,
}

const fn row(op: Op, usage: &'static [u8], access: Access) -> Entry {
    Entry { op, code: usage[0], action: None, usage, access, needs: Needs::Nothing }
}

const fn act(op: Op, action: u8, usage: &'static [u8], access: Access) -> Entry {
    Entry { action: Some(action), ..row(op, usage, access) }
}

const fn if_unmap(entry: Entry) -> Entry {
    Entry { needs: Needs::Unmap, ..entry }
}

/// Ten bytes: address, group and a length of two bytes.
const fn ten(code: u8, flags: u8) -> [u8; 10] {
    [code, flags, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0]
}

/// Twelve bytes: address, length of four bytes, group.
const fn twelve(code: u8, flags: u8) -> [u8; 12] {
    [code, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0]
}

/// Sixteen bytes: address of eight, length of four, group.
const fn sixteen(code: u8, flags: u8) -> [u8; 16] {
    let f = 0xff;
    [code, flags, f, f, f, f, f, f, f, f, f, f, f, f, 0x1f, 0]
}

/// Sixteen bytes with a length in bytes 10 to 13 and what else is said of bytes 2 to 9.
const fn service16(code: u8, middle: [u8; 8]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = middle;
    [code, 0x1f, a, b, c, d, e, f, g, h, 0xff, 0xff, 0xff, 0xff, 0, 0]
}

/// DPO, FUA, and the obsolete FUA_NV, which says nothing.
const WRITE_FLAGS: u8 = 0x1a;
/// As for writes, and RARC.
const READ_FLAGS: u8 = 0x1e;
/// DPO and BYTCHK.
const VERIFY_FLAGS: u8 = 0x16;

const LIST_4: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
const LIST_1: [u8; 8] = [0xff, 0, 0, 0, 0, 0, 0, 0];
const TOKEN: [u8; 16] =
    [0x83, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0];
const SANITIZE: [u8; 10] = [0x48, 0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
const RESERVE_IN: [u8; 10] = [0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
const RESERVE_OUT: [u8; 10] = [0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];

use Access::{Always, ByFields, Free, Read, Write};

/// Every command, in order of operation code and service action.
pub(crate) const TABLE: &[Entry] = &[
    row(Op::TestUnitReady, &[0x00, 0, 0, 0, 0, 0], Free),
    row(Op::RequestSense, &[0x03, 0x01, 0, 0, 0xff, 0], Always),
    row(Op::Read6, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0], Read),
    row(Op::Write6, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0], Write),
    row(Op::Inquiry, &[0x12, 0x01, 0xff, 0xff, 0xff, 0], Always),
    row(Op::ModeSelect6, &[0x15, 0x11, 0, 0, 0xff, 0], Write),
    row(Op::Reserve, &[0x16, 0, 0, 0, 0, 0], ByFields),
    row(Op::Release, &[0x17, 0, 0, 0, 0, 0], ByFields),
    row(Op::ModeSense6, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0], Write),
    row(Op::StartStopUnit, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0], ByFields),
    row(Op::SendDiagnostic, &[0x1d, 0x07, 0, 0, 0, 0], Write),
    row(Op::PreventAllow, &[0x1e, 0, 0, 0, 0x03, 0], ByFields),
    row(Op::ReadCapacity10, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], Free),
    row(Op::Read10, &ten(0x28, READ_FLAGS), Read),
    row(Op::Write10, &ten(0x2a, WRITE_FLAGS), Write),
    row(Op::WriteVerify10, &ten(0x2e, VERIFY_FLAGS), Write),
    row(Op::Verify10, &ten(0x2f, VERIFY_FLAGS), Read),
    row(Op::PreFetch10, &ten(0x34, 0x02), Read),
    row(Op::SynchronizeCache10, &ten(0x35, 0x06), Write),
    row(Op::ReadDefectData10, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0], Read),
    row(Op::WriteSame10, &ten(0x41, UNMAP | ANCHOR), Write),
    if_unmap(row(Op::Unmap, &[0x42, 0x01, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0], Write)),
    act(Op::Sanitize, 0x01, &SANITIZE, Write),
    if_unmap(act(Op::Sanitize, 0x02, &SANITIZE, Write)),
    act(Op::Sanitize, 0x1f, &SANITIZE, Write),
    row(Op::LogSense, &[0x4d, 0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0], Free),
    row(Op::ModeSelect10, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0], Write),
    row(Op::Reserve, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0], ByFields),
    row(Op::Release, &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0], ByFields),
    row(Op::ModeSense10, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0], Write),
    act(Op::PersistentReserveIn, 0x00, &RESERVE_IN, Free),
    act(Op::PersistentReserveIn, 0x01, &RESERVE_IN, Free),
    act(Op::PersistentReserveIn, 0x02, &RESERVE_IN, Free),
    act(Op::PersistentReserveIn, 0x03, &RESERVE_IN, Free),
    act(Op::PersistentReserveOut, 0x00, &RESERVE_OUT, ByFields),
    act(Op::PersistentReserveOut, 0x01, &RESERVE_OUT, ByFields),
    act(Op::PersistentReserveOut, 0x02, &RESERVE_OUT, ByFields),
    act(Op::PersistentReserveOut, 0x03, &RESERVE_OUT, ByFields),
    act(Op::PersistentReserveOut, 0x04, &RESERVE_OUT, ByFields),
    act(Op::PersistentReserveOut, 0x05, &RESERVE_OUT, ByFields),
    act(Op::PersistentReserveOut, 0x06, &RESERVE_OUT, ByFields),
    act(Op::PersistentReserveOut, 0x07, &RESERVE_OUT, ByFields),
    act(Op::ExtendedCopy1, 0x00, &service16(0x83, [0; 8]), Write),
    act(Op::ExtendedCopy4, 0x01, &service16(0x83, [0; 8]), Write),
    act(Op::PopulateToken, 0x10, &TOKEN, Read),
    act(Op::WriteUsingToken, 0x11, &TOKEN, Write),
    act(Op::CopyStatus1, 0x00, &service16(0x84, LIST_1), Write),
    act(Op::CopyParameters, 0x03, &service16(0x84, [0; 8]), Free),
    act(Op::CopyStatus4, 0x05, &service16(0x84, LIST_4), Write),
    act(Op::RodTokenInformation, 0x07, &service16(0x84, LIST_4), Free),
    row(Op::Read16, &sixteen(0x88, READ_FLAGS), Read),
    row(
        Op::CompareAndWrite,
        &[
            0x89,
            WRITE_FLAGS,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0,
            0,
            0,
            0xff,
            0x1f,
            0,
        ],
        Write,
    ),
    row(Op::Write16, &sixteen(0x8a, WRITE_FLAGS), Write),
    row(Op::OrWrite, &sixteen(0x8b, WRITE_FLAGS), Write),
    row(Op::WriteVerify16, &sixteen(0x8e, VERIFY_FLAGS), Write),
    row(Op::Verify16, &sixteen(0x8f, VERIFY_FLAGS), Read),
    row(Op::PreFetch16, &sixteen(0x90, 0x02), Read),
    row(Op::SynchronizeCache16, &sixteen(0x91, 0x06), Write),
    row(Op::WriteSame16, &sixteen(0x93, UNMAP | ANCHOR | 0x01), Write),
    Entry { needs: Needs::Atomic, ..row(Op::WriteAtomic16, &sixteen(0x9c, 0x18), Write) },
    act(Op::ReadCapacity16, 0x10, &service16(0x9e, [0; 8]), Free),
    act(Op::GetLbaStatus, 0x12, &service16(0x9e, [0xff; 8]), Read),
    row(Op::ReportLuns, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], Always),
    act(
        Op::ReportTargetPortGroups,
        0x0a,
        &[0xa3, 0x3f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        Free,
    ),
    act(
        Op::ReportOpcodes,
        0x0c,
        &[0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        Free,
    ),
    act(
        Op::ReportTaskManagement,
        0x0d,
        &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        Free,
    ),
    Entry {
        needs: Needs::ExplicitAlua,
        ..act(
            Op::SetTargetPortGroups,
            0x0a,
            &[0xa4, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
            Write,
        )
    },
    row(Op::Read12, &twelve(0xa8, READ_FLAGS), Read),
    row(Op::Write12, &twelve(0xaa, WRITE_FLAGS), Write),
    row(Op::WriteVerify12, &twelve(0xae, VERIFY_FLAGS), Write),
    row(Op::Verify12, &twelve(0xaf, VERIFY_FLAGS), Read),
    row(
        Op::ReadDefectData12,
        &[0xb7, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        Read,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_order_and_as_long_as_their_group_code_says() {
        for pair in TABLE.windows(2) {
            let key = |entry: &Entry| (entry.code, entry.action);
            assert!(key(&pair[0]) < key(&pair[1]), "{:?} before {:?}", pair[0].op, pair[1].op);
        }
        for entry in TABLE {
            let length = match entry.code >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("group {group}"),
            };
            assert_eq!(entry.usage.len(), length, "{:?}", entry.op);
            assert_eq!(entry.usage[length - 1], 0, "{:?}: the control byte", entry.op);
        }
    }
}
