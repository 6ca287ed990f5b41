//! Command descriptor blocks (SPC-4 4.2, SBC-3 5): bytes become a typed [`Command`].
//!
//! ```text
//!  bytes ─► table::find (operation code, service action) ─► reserved bits ─► layout ─► Command
//! ```
//!
//! A command that exists is well-formed; what its fields ask of a logical unit (is there such a
//! block? is the list that long?) its handler checks.

mod layout;
mod table;

pub(crate) use table::{Access, Entry, Features, Op, TABLE, Unknown, find};

use crate::refusal::Refusal;

/// A range of logical blocks, and how it is to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub lba: u64,
    pub blocks: u32,
    /// FUA: done when the medium has it.
    pub force: bool,
    /// Where the command says how many blocks, for field pointers.
    pub length_at: usize,
}

/// BYTCHK of the VERIFY commands (SBC-3 5.33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteCheck {
    /// The medium alone.
    None,
    /// Each block with its own.
    All,
    /// Each block with the same one.
    One,
}

/// Service actions of SANITIZE (SBC-3 5.30).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SanitizeAction {
    Overwrite,
    BlockErase,
    ExitFailureMode,
}

/// A command that is well-formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    TestUnitReady,
    RequestSense { descriptor: bool, allocation: u32 },
    Inquiry { page: Option<u8>, allocation: u32 },
    ModeSelect { ten: bool, page_format: bool, save: bool, length: u32 },
    ModeSense(ModeSense),
    LogSense { control: u8, page: u8, subpage: u8, pointer: u16, allocation: u32 },
    Reserve,
    Release,
    StartStopUnit { start: bool, load_eject: bool, power_condition: u8 },
    PreventAllow { prevent: bool },
    SendDiagnostic,
    ReadCapacity10,
    ReadCapacity16 { allocation: u32 },
    Read(Extent),
    Write(Extent),
    Verify(Extent, ByteCheck),
    WriteVerify(Extent, ByteCheck),
    SynchronizeCache(Extent),
    PreFetch(Extent),
    ReadDefectData { ten: bool, format: u8, allocation: u32 },
    WriteSame { extent: Extent, unmap: bool, no_data: bool },
    Unmap { length: u32 },
    CompareAndWrite(Extent),
    OrWrite(Extent),
    WriteAtomic { extent: Extent, boundary: u16 },
    GetLbaStatus { lba: u64, allocation: u32 },
    Sanitize { action: SanitizeAction, immediate: bool, length: u32 },
    ReportLuns { select: u8, allocation: u32 },
    ReportOpcodes { timeouts: bool, options: u8, code: u8, action: u16, allocation: u32 },
    ReportTaskManagement { extended: bool, allocation: u32 },
    ReportTargetPortGroups { extended: bool, allocation: u32 },
    SetTargetPortGroups { length: u32 },
    PersistentReserveIn { action: u8, allocation: u32 },
    PersistentReserveOut { action: u8, scope: u8, kind: u8, length: u32 },
    ExtendedCopy { long_list: bool, length: u32 },
    PopulateToken { list: u32, length: u32 },
    WriteUsingToken { list: u32, length: u32 },
    CopyStatus { long_list: bool, list: u32, allocation: u32 },
    CopyParameters { allocation: u32 },
    RodTokenInformation { list: u32, allocation: u32 },
}

/// MODE SENSE(6) and (10) (SPC-4 6.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModeSense {
    pub ten: bool,
    pub no_block_descriptors: bool,
    pub long_lba: bool,
    pub control: u8,
    pub page: u8,
    pub subpage: u8,
    pub allocation: u32,
}

impl Command {
    /// Bytes of data-out the command asks for.
    pub(crate) fn data_out(&self, block: u32) -> u64 {
        let block = u64::from(block);
        let blocks = |extent: &Extent| u64::from(extent.blocks) * block;
        match self {
            Self::Write(extent) | Self::OrWrite(extent) | Self::WriteAtomic { extent, .. } => {
                blocks(extent)
            }
            Self::CompareAndWrite(extent) => 2 * blocks(extent),
            Self::Verify(extent, check) => match check {
                ByteCheck::None => 0,
                ByteCheck::All => blocks(extent),
                ByteCheck::One => block,
            },
            Self::WriteVerify(extent, _) => blocks(extent),
            Self::WriteSame { no_data, .. } => block * u64::from(!no_data),
            Self::Unmap { length }
            | Self::ModeSelect { length, .. }
            | Self::Sanitize { length, .. }
            | Self::SetTargetPortGroups { length }
            | Self::PersistentReserveOut { length, .. }
            | Self::ExtendedCopy { length, .. }
            | Self::PopulateToken { length, .. }
            | Self::WriteUsingToken { length, .. } => u64::from(*length),
            _ => 0,
        }
    }
}

/// Parses a command whose row in the table is known.
///
/// # Errors
/// INVALID FIELD IN CDB with the field: a bit that is reserved or means what is not supported, a
/// value that is reserved; also where the command descriptor block ends too soon.
pub(crate) fn parse(entry: &Entry, features: Features, cdb: &[u8]) -> Result<Command, Refusal> {
    if cdb.len() < entry.usage.len() {
        return Err(Refusal::in_cdb(cdb.len(), None));
    }
    for (at, (&byte, &used)) in cdb.iter().zip(entry.usage).enumerate().skip(1) {
        let used = if at == 1 { entry.flags(features) } else { used };
        let wrong = byte & !used;
        if wrong != 0 {
            return Err(Refusal::in_cdb(at, Some(7 - wrong.leading_zeros() as u8)));
        }
    }
    layout::command(entry, &cdb[..entry.usage.len()])
}

#[cfg(test)]
mod tests;
