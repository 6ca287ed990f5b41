//! Judging a VMDK: every grain of a sparse extent is read.

use std::{collections::HashSet, ops::Range, sync::Arc};

use block_io::File;

use super::{
    disk::describe,
    sparse::{Grain, Sparse},
};
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
    // Each place in the file is read once, whatever names it: the work is bounded by the file.
    let mut grains = Places::default();
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
        judge_table(&sparse, start..end, (&mut buf, &mut grains), report).await?;
    }
    Ok(())
}

/// Places in the file at which a grain begins, as far as they are remembered.
#[derive(Default)]
struct Places(HashSet<u64>);

impl Places {
    /// Most that are remembered: a disk of 512 GiB in grains of 64 KiB.
    const MOST: usize = 8 << 20;

    /// Whether no grain began there yet.
    fn take(&mut self, place: u64) -> bool {
        self.0.len() >= Self::MOST || self.0.insert(place)
    }
}

/// Reads every grain of what one table covers.
async fn judge_table(
    sparse: &Sparse,
    range: Range<u64>,
    (buf, places): (&mut [u8], &mut Places),
    report: &mut Report,
) -> Result<()> {
    let size = sparse.header.grain;
    let mut grain = range.start;
    while grain < range.end {
        let len = size.min(range.end - grain);
        let read = match sparse.grain(grain / size).await {
            Ok((Grain::Zero, _)) => Ok(()),
            Ok((Grain::At(place), _)) => {
                report.allocated_blocks += 1;
                if places.take(place) {
                    sparse.read(grain, &mut buf[..len as usize]).await
                } else {
                    let fault = Fault::Overlap { start: place, len, other: "another grain".into() };
                    report.error(Damage::new(Structure::GrainTable, grain, fault));
                    Ok(())
                }
            }
            Err(error) => Err(error),
        };
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
