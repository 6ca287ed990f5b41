//! Where the fields of each command stand.

use nom::{
    IResult, Parser,
    bytes::complete::take,
    number::complete::{be_u8, be_u16, be_u24, be_u32, be_u64},
};

use super::{ByteCheck, Command, Entry, Extent, ModeSense, Op, SanitizeAction};
use crate::refusal::Refusal;

type Read<'a, T> = IResult<&'a [u8], T>;

/// The bytes ended.
type Short<'a> = nom::Err<nom::error::Error<&'a [u8]>>;

const FORCE: u8 = 0x08;

/// The command that a descriptor block of the right length, with no reserved bit set, is.
///
/// # Errors
/// INVALID FIELD IN CDB.
pub(super) fn command(entry: &Entry, cdb: &[u8]) -> Result<Command, Refusal> {
    let short = |_| Refusal::in_cdb(cdb.len(), None);
    if let Some((extent, flags)) = extent(entry.op, cdb).map_err(short)? {
        return on_blocks(entry.op, extent, flags, cdb);
    }
    let (_, command) = simple(entry, cdb).map_err(short)?;
    command
}

/// The range of a command that has one, and its byte of flags.
fn extent(op: Op, cdb: &[u8]) -> Result<Option<(Extent, u8)>, Short<'_>> {
    let extent = |lba, blocks, flags: u8, length_at| {
        (Extent { lba, blocks, force: flags & FORCE != 0, length_at }, flags)
    };
    let found = match op {
        Op::Read6 | Op::Write6 => {
            let (_, (_, lba, blocks)) = (be_u8, be_u24, be_u8).parse(cdb)?;
            // Zero is 256 blocks (SBC-3 5.8).
            let blocks = if blocks == 0 { 256 } else { u32::from(blocks) };
            (Extent { lba: lba.into(), blocks, force: false, length_at: 4 }, 0)
        }
        Op::Read10
        | Op::Write10
        | Op::WriteVerify10
        | Op::Verify10
        | Op::PreFetch10
        | Op::SynchronizeCache10
        | Op::WriteSame10 => {
            let (_, (_, flags, lba, _, blocks)) =
                (be_u8, be_u8, be_u32, be_u8, be_u16).parse(cdb)?;
            extent(lba.into(), blocks.into(), flags, 7)
        }
        Op::Read12 | Op::Write12 | Op::WriteVerify12 | Op::Verify12 => {
            let (_, (_, flags, lba, blocks)) = (be_u8, be_u8, be_u32, be_u32).parse(cdb)?;
            extent(lba.into(), blocks, flags, 6)
        }
        Op::Read16
        | Op::Write16
        | Op::WriteVerify16
        | Op::Verify16
        | Op::PreFetch16
        | Op::SynchronizeCache16
        | Op::WriteSame16
        | Op::OrWrite => {
            let (_, (_, flags, lba, blocks)) = (be_u8, be_u8, be_u64, be_u32).parse(cdb)?;
            extent(lba, blocks, flags, 10)
        }
        Op::CompareAndWrite => {
            let (_, (_, flags, lba, _, blocks)) =
                (be_u8, be_u8, be_u64, be_u24, be_u8).parse(cdb)?;
            extent(lba, blocks.into(), flags, 13)
        }
        Op::WriteAtomic16 => {
            let (_, (_, flags, lba, _, blocks)) =
                (be_u8, be_u8, be_u64, be_u16, be_u16).parse(cdb)?;
            extent(lba, blocks.into(), flags, 12)
        }
        _ => return Ok(None),
    };
    Ok(Some(found))
}

fn on_blocks(op: Op, extent: Extent, flags: u8, cdb: &[u8]) -> Result<Command, Refusal> {
    Ok(match op {
        Op::Read6 | Op::Read10 | Op::Read12 | Op::Read16 => Command::Read(extent),
        Op::Write6 | Op::Write10 | Op::Write12 | Op::Write16 => Command::Write(extent),
        Op::Verify10 | Op::Verify12 | Op::Verify16 => Command::Verify(extent, check(flags)?),
        Op::WriteVerify10 | Op::WriteVerify12 | Op::WriteVerify16 => {
            // FUA has no bit here: what is verified is what the medium has.
            let force = Extent { force: true, ..extent };
            match check(flags)? {
                ByteCheck::One => return Err(Refusal::in_cdb(1, Some(2))),
                check => Command::WriteVerify(force, check),
            }
        }
        Op::PreFetch10 | Op::PreFetch16 => Command::PreFetch(extent),
        Op::SynchronizeCache10 | Op::SynchronizeCache16 => Command::SynchronizeCache(extent),
        // ANCHOR says what becomes of what is unmapped (SBC-3 5.43).
        Op::WriteSame10 | Op::WriteSame16 if flags & 0x18 == 0x10 => {
            return Err(Refusal::in_cdb(1, Some(4)));
        }
        Op::WriteSame10 => {
            Command::WriteSame { extent: plain(extent), unmap: flags & 0x08 != 0, no_data: false }
        }
        Op::WriteSame16 => Command::WriteSame {
            extent: plain(extent),
            unmap: flags & 0x08 != 0,
            no_data: flags & 0x01 != 0,
        },
        Op::CompareAndWrite => Command::CompareAndWrite(extent),
        Op::OrWrite => Command::OrWrite(extent),
        _ => Command::WriteAtomic { extent, boundary: u16::from_be_bytes([cdb[10], cdb[11]]) },
    })
}

/// In WRITE SAME the bit of FUA is UNMAP.
const fn plain(extent: Extent) -> Extent {
    Extent { force: false, ..extent }
}

fn check(flags: u8) -> Result<ByteCheck, Refusal> {
    match flags >> 1 & 3 {
        0 => Ok(ByteCheck::None),
        1 => Ok(ByteCheck::All),
        3 => Ok(ByteCheck::One),
        _ => Err(Refusal::in_cdb(1, Some(2))),
    }
}

/// Everything that has no range of blocks.
fn simple<'a>(entry: &Entry, cdb: &'a [u8]) -> Read<'a, Result<Command, Refusal>> {
    match entry.op {
        Op::ModeSelect6
        | Op::ModeSelect10
        | Op::ModeSense6
        | Op::ModeSense10
        | Op::LogSense
        | Op::RequestSense
        | Op::Inquiry
        | Op::StartStopUnit
        | Op::PreventAllow
        | Op::SendDiagnostic
        | Op::TestUnitReady
        | Op::Reserve
        | Op::Release => primary(entry.op, cdb),
        Op::ExtendedCopy1
        | Op::ExtendedCopy4
        | Op::PopulateToken
        | Op::WriteUsingToken
        | Op::CopyStatus1
        | Op::CopyStatus4
        | Op::CopyParameters
        | Op::RodTokenInformation => copy(entry.op, cdb),
        _ => reports(entry, cdb),
    }
}

fn primary(op: Op, cdb: &[u8]) -> Read<'_, Result<Command, Refusal>> {
    let (rest, (_, flags)) = (be_u8, be_u8).parse(cdb)?;
    let (rest, command) = match op {
        Op::RequestSense => {
            let (rest, (_, allocation)) = (be_u16, be_u8).parse(rest)?;
            (
                rest,
                Command::RequestSense { descriptor: flags & 1 != 0, allocation: allocation.into() },
            )
        }
        Op::Inquiry => {
            let (rest, (page, allocation)) = (be_u8, be_u16).parse(rest)?;
            if flags & 1 == 0 && page != 0 {
                return Ok((rest, Err(Refusal::in_cdb(2, Some(7)))));
            }
            let page = (flags & 1 != 0).then_some(page);
            (rest, Command::Inquiry { page, allocation: allocation.into() })
        }
        Op::ModeSelect6 | Op::ModeSelect10 => {
            let ten = op == Op::ModeSelect10;
            let (rest, length) = if ten {
                let (rest, (_, length)) = (take(5usize), be_u16).parse(rest)?;
                (rest, u32::from(length))
            } else {
                let (rest, (_, length)) = (be_u16, be_u8).parse(rest)?;
                (rest, u32::from(length))
            };
            let (page_format, save) = (flags & 0x10 != 0, flags & 1 != 0);
            (rest, Command::ModeSelect { ten, page_format, save, length })
        }
        Op::LogSense => {
            let (rest, (page, subpage, _, pointer, allocation)) =
                (be_u8, be_u8, be_u8, be_u16, be_u16).parse(rest)?;
            let (control, page) = (page >> 6, page & 0x3f);
            let allocation = allocation.into();
            (rest, Command::LogSense { control, page, subpage, pointer, allocation })
        }
        Op::ModeSense6 | Op::ModeSense10 => {
            let ten = op == Op::ModeSense10;
            let (rest, (page, subpage)) = (be_u8, be_u8).parse(rest)?;
            let (rest, allocation) = if ten {
                let (rest, (_, length)) = (take(3usize), be_u16).parse(rest)?;
                (rest, u32::from(length))
            } else {
                let (rest, length) = be_u8(rest)?;
                (rest, u32::from(length))
            };
            (
                rest,
                Command::ModeSense(ModeSense {
                    ten,
                    no_block_descriptors: flags & 0x08 != 0,
                    long_lba: flags & 0x10 != 0,
                    control: page >> 6,
                    page: page & 0x3f,
                    subpage,
                    allocation,
                }),
            )
        }
        Op::StartStopUnit => {
            let (rest, (_, last)) = (be_u16, be_u8).parse(rest)?;
            (
                rest,
                Command::StartStopUnit {
                    start: last & 1 != 0,
                    load_eject: last & 2 != 0,
                    power_condition: last >> 4,
                },
            )
        }
        Op::PreventAllow => {
            let (rest, (_, last)) = (be_u16, be_u8).parse(rest)?;
            (rest, Command::PreventAllow { prevent: last & 1 != 0 })
        }
        Op::SendDiagnostic => (rest, Command::SendDiagnostic),
        Op::Reserve => (rest, Command::Reserve),
        Op::Release => (rest, Command::Release),
        _ => (rest, Command::TestUnitReady),
    };
    Ok((rest, Ok(command)))
}

fn copy(op: Op, cdb: &[u8]) -> Read<'_, Result<Command, Refusal>> {
    let (rest, (_, list, middle, length)) = (be_u16, be_u32, be_u32, be_u32).parse(cdb)?;
    let command = match op {
        Op::ExtendedCopy1 => Command::ExtendedCopy { long_list: false, length },
        Op::ExtendedCopy4 => Command::ExtendedCopy { long_list: true, length },
        Op::PopulateToken => Command::PopulateToken { list: middle, length },
        Op::WriteUsingToken => Command::WriteUsingToken { list: middle, length },
        Op::CopyStatus1 => {
            Command::CopyStatus { long_list: false, list: list >> 24, allocation: length }
        }
        Op::CopyStatus4 => Command::CopyStatus { long_list: true, list, allocation: length },
        Op::CopyParameters => Command::CopyParameters { allocation: length },
        _ => Command::RodTokenInformation { list, allocation: length },
    };
    Ok((rest, Ok(command)))
}

fn reports<'a>(entry: &Entry, cdb: &'a [u8]) -> Read<'a, Result<Command, Refusal>> {
    let (rest, (_, flags)) = (be_u8, be_u8).parse(cdb)?;
    let command = match entry.op {
        Op::ReadCapacity16 | Op::GetLbaStatus => {
            let (_, (lba, allocation)) = (be_u64, be_u32).parse(rest)?;
            match entry.op {
                Op::GetLbaStatus => Command::GetLbaStatus { lba, allocation },
                _ => Command::ReadCapacity16 { allocation },
            }
        }
        Op::ReadDefectData10 => {
            let (_, (format, _, allocation)) = (be_u8, take(4usize), be_u16).parse(rest)?;
            Command::ReadDefectData { ten: true, format, allocation: allocation.into() }
        }
        Op::ReadDefectData12 => {
            let (_, (_, allocation)) = (be_u32, be_u32).parse(rest)?;
            Command::ReadDefectData { ten: false, format: flags, allocation }
        }
        Op::Unmap => {
            let (_, (_, length)) = (take(5usize), be_u16).parse(rest)?;
            Command::Unmap { length: length.into() }
        }
        Op::Sanitize => {
            let (_, (_, length)) = (take(5usize), be_u16).parse(rest)?;
            let action = match entry.action {
                Some(1) => SanitizeAction::Overwrite,
                Some(2) => SanitizeAction::BlockErase,
                _ => SanitizeAction::ExitFailureMode,
            };
            Command::Sanitize { action, immediate: flags & 0x80 != 0, length: length.into() }
        }
        Op::PersistentReserveIn => {
            let (_, (_, allocation)) = (take(5usize), be_u16).parse(rest)?;
            Command::PersistentReserveIn { action: flags & 0x1f, allocation: allocation.into() }
        }
        Op::PersistentReserveOut => {
            let (_, (kind, _, length)) = (be_u8, be_u16, be_u32).parse(rest)?;
            let (action, scope) = (flags & 0x1f, kind >> 4);
            Command::PersistentReserveOut { action, scope, kind: kind & 0x0f, length }
        }
        Op::ReportLuns => {
            let (_, (select, _, allocation)) = (be_u8, be_u24, be_u32).parse(rest)?;
            Command::ReportLuns { select, allocation }
        }
        Op::ReportOpcodes => {
            let (_, (how, code, action, allocation)) =
                (be_u8, be_u8, be_u16, be_u32).parse(rest)?;
            let (timeouts, options) = (how & 0x80 != 0, how & 7);
            Command::ReportOpcodes { timeouts, options, code, action, allocation }
        }
        Op::ReportTaskManagement => {
            let (_, (how, _, allocation)) = (be_u8, be_u24, be_u32).parse(rest)?;
            Command::ReportTaskManagement { extended: how & 0x80 != 0, allocation }
        }
        Op::ReportTargetPortGroups | Op::SetTargetPortGroups => {
            let (_, (_, length)) = (be_u32, be_u32).parse(rest)?;
            match entry.op {
                Op::SetTargetPortGroups => Command::SetTargetPortGroups { length },
                _ => Command::ReportTargetPortGroups {
                    extended: flags >> 5 == 1,
                    allocation: length,
                },
            }
        }
        _ => Command::ReadCapacity10,
    };
    Ok((rest, Ok(command)))
}
