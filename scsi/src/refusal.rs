//! How a command ends that is not carried out, and what failed storage is to an initiator.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::{Sense, SenseKey, Status, asc};

/// Why a command ends without GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// CHECK CONDITION.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
    /// BUSY: somebody else holds what the command needs.
    Busy,
}

/// What a handler answers: nothing more to say than GOOD, or why not.
pub(crate) type Done = Result<(), Refusal>;

impl Refusal {
    pub(crate) const fn check(key: SenseKey, code: u16) -> Self {
        Self::Check(Sense::new(key, code))
    }

    pub(crate) const fn illegal(code: u16) -> Self {
        Self::check(SenseKey::IllegalRequest, code)
    }

    pub(crate) const fn protect(code: u16) -> Self {
        Self::check(SenseKey::DataProtect, code)
    }

    /// INVALID FIELD IN CDB, and which (SPC-4 4.5.2.4.2): a byte, and the most significant bit of
    /// the field in it.
    pub(crate) fn in_cdb(byte: usize, bit: Option<u8>) -> Self {
        Self::pointing(asc::FIELD_IN_CDB, 0x40, byte, bit)
    }

    /// INVALID FIELD IN PARAMETER LIST, and which.
    pub(crate) fn in_list(byte: usize) -> Self {
        Self::pointing(asc::FIELD_IN_LIST, 0, byte, None)
    }

    fn pointing(code: u16, where_to: u8, byte: usize, bit: Option<u8>) -> Self {
        let place = u16::try_from(byte).unwrap_or(u16::MAX).to_be_bytes();
        let head = 0x80 | where_to | bit.map_or(0, |bit| 0x08 | (bit & 7));
        Self::Check(Sense {
            specific: Some([head, place[0], place[1]]),
            ..Sense::new(SenseKey::IllegalRequest, code)
        })
    }

    /// LOGICAL BLOCK ADDRESS OUT OF RANGE, with the first address that is none.
    pub(crate) fn out_of_range(lba: u64) -> Self {
        Self::Check(Sense {
            information: Some(lba),
            ..Sense::new(SenseKey::IllegalRequest, asc::LBA_OUT_OF_RANGE)
        })
    }

    pub(crate) const fn status(&self) -> Status {
        match self {
            Self::Check(_) => Status::CheckCondition,
            Self::Conflict => Status::ReservationConflict,
            Self::Busy => Status::Busy,
        }
    }

    pub(crate) const fn sense(&self) -> Option<Sense> {
        match self {
            Self::Check(sense) => Some(*sense),
            Self::Conflict | Self::Busy => None,
        }
    }

    /// What a failed read of the disk is.
    pub(crate) fn reading(error: block_io::Error) -> Self {
        Self::storage(error, asc::READ_ERROR)
    }

    /// What a failed write or flush of the disk is.
    pub(crate) fn writing(error: block_io::Error) -> Self {
        Self::storage(error, asc::WRITE_ERROR)
    }

    /// The one place where errors of storage become sense data. Who reads the log must act on
    /// them, and an initiator is told no more than a disk would tell.
    fn storage(error: block_io::Error, medium: u16) -> Self {
        use block_io::Error as E;
        if once_a_second() {
            tracing::warn!(%error, "a logical unit's disk failed");
        }
        match error {
            E::OutOfRange { .. } => Self::illegal(asc::LBA_OUT_OF_RANGE),
            E::ReadOnly => Self::protect(asc::WRITE_PROTECTED),
            E::NoSpace => Self::protect(asc::NO_SPACE),
            E::Busy(_) => Self::Busy,
            E::Disconnected(_) | E::Closed => {
                Self::check(SenseKey::NotReady, asc::COMMUNICATION_FAILURE)
            }
            E::Corrupt(_) | E::Io { .. } => Self::check(SenseKey::MediumError, medium),
            _ => Self::check(SenseKey::HardwareError, asc::INTERNAL_FAILURE),
        }
    }
}

/// Whether something is to be said now: an initiator that repeats what fails must not fill a log.
fn once_a_second() -> bool {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    static SAID: AtomicU64 = AtomicU64::new(u64::MAX);
    let now = BEGAN.elapsed().as_secs();
    SAID.swap(now, Ordering::Relaxed) != now
}
