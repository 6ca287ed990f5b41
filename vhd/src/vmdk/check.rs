//! Judging a VMDK: every grain of a sparse extent is read.

use std::{collections::HashSet, ops::Range, sync::Arc};

use block_io::File;

use super::{disk::describe, sparse::Sparse};
use crate::{Damage, Error, Fault, Result, Structure, vhdx::Report};

/// Checks the sparse extent in `file`, or a descriptor's text. Extents in other files are images of
/// their own. Never writes.
///
/// # Errors
/// Only what keeps the check from being made: a failing file, an unsupported image.
pub async fn check(file: Arc<dyn File>) -> Result<Report> {
    let mut report = Report::default();
    match judge(file, &mut report).await {
        Ok(()) => Ok(report),
        Err(Error::Damaged(damage)) => {
            report.error(damage);
            Ok(report)
        }
        Err(error) => Err(error),
    }
}

async fn judge(file: Arc<dyn File>, report: &mut Report) -> Result<()> {
    let (_, header) = describe(&*file).await?;
    let Some(header) = header else { return Ok(()) };
    if header.unclean {
        let fault = Fault::Field { field: "uncleanShutdown", value: 1, rule: "it was not closed" };
        report.warn(Damage::new(Structure::VmdkHeader, 72, fault));
    }
    report.blocks = header.capacity.div_ceil(header.grain);
    let sparse = Sparse::open(file).await?;
    let mut buf = vec![0; header.grain as usize];
    let mut seen = HashSet::new();
    for index in 0..header.directory_entries() {
        let place = sparse.table_place(index);
        if place == 0 {
            continue;
        }
        if !seen.insert(place) {
            // Walked once: else a small file would be work for hours.
            let (len, other) = (u64::from(header.table_entries) * 4, "another grain table".into());
            let at = header.directory.unwrap_or_default() + index * 4;
            let fault = Fault::Overlap { start: place, len, other };
            report.error(Damage::new(Structure::GrainTable, at, fault));
            continue;
        }
        let start = index * header.table_covers();
        let end = (start + header.table_covers()).min(header.capacity);
        judge_table(&sparse, start..end, &mut buf, report).await?;
    }
    Ok(())
}

/// Reads every grain of what one table covers.
async fn judge_table(
    sparse: &Sparse,
    range: Range<u64>,
    buf: &mut [u8],
    report: &mut Report,
) -> Result<()> {
    let size = sparse.header.grain;
    let mut grain = range.start;
    while grain < range.end {
        let len = size.min(range.end - grain);
        let stored = sparse.ranges(grain..grain + len).await;
        let read = match &stored {
            Ok(ranges) if ranges.is_empty() => Ok(()),
            _ => sparse.read(grain, &mut buf[..len as usize]).await,
        };
        report.allocated_blocks += u64::from(stored.is_ok_and(|ranges| !ranges.is_empty()));
        match read {
            Ok(()) => {}
            Err(block_io::Error::Corrupt(_)) => {
                let index = grain / size;
                let rule = "its grain cannot be read";
                let fault = Fault::EntryOffset { index, start: grain, rule };
                report.error(Damage::new(Structure::GrainTable, grain, fault));
            }
            Err(error) => return Err(error.into()),
        }
        grain += len;
    }
    Ok(())
}
