//! Mending what a check finds, as far as nothing gets worse by it.

use std::sync::Arc;

use block_io::File;

use super::no_such;
use crate::{
    Damage, Error, Format, Result, classic,
    vhdx::{self, Report},
};

/// What was done about something wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Written again from its copy.
    Rewritten,
    /// A value that means nothing was put right.
    Corrected,
    /// The file was made longer, with zeros, so that what was cut off in its middle is whole.
    Extended,
    /// The bytes that it shared with another were copied to a place of its own.
    Copied,
    /// The block has no data any more: what it pointed to is not in the file.
    Emptied,
    /// The log was given up: it had nothing valid in it.
    LogGivenUp,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rewritten => "written again from its copy",
            Self::Corrected => "put right",
            Self::Extended => "the file was made longer",
            Self::Copied => "got a copy of its own",
            Self::Emptied => "the block is empty now, its data is not in the file",
            Self::LogGivenUp => "the log was given up",
        })
    }
}

/// Something wrong that was mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// What was wrong, and where.
    pub damage: Damage,
    /// What was done about it.
    pub action: Action,
}

/// What a repair did and what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// What was mended, in order.
    pub repairs: Vec<Repair>,
    /// What a check finds now.
    pub report: Report,
}

/// Mends what a check finds wrong with the image in `file`, and replays a log that waits.
///
/// What reads now reads the same after it: what two blocks share is copied, what was cut off is
/// made whole with zeros, and only a block whose data is not in the file at all is emptied. What
/// cannot be mended so (both copies of a header, metadata) is in the report.
///
/// # Errors
/// A file that fails or refuses writes; an image that is not supported.
pub async fn repair(file: Arc<dyn File>, format: Format) -> Result<Repaired> {
    if file.is_read_only() {
        return Err(block_io::Error::ReadOnly.into());
    }
    let mut repairs = Vec::new();
    let mended = match format {
        Format::Vhdx => vhdx::mend::mend(file.clone(), &mut repairs).await,
        Format::Vhd => classic::mend::mend(file.clone(), &mut repairs).await,
        other => return Err(no_such(other)),
    };
    match mended {
        Ok(()) | Err(Error::Damaged(_)) => {}
        Err(error) => return Err(error),
    }
    let report = match format {
        Format::Vhdx => vhdx::check(file).await?,
        _ => classic::check(file).await?,
    };
    Ok(Repaired { repairs, report })
}
