//! Judging a VMDK: every grain of a sparse extent is read.

use std::sync::Arc;

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
    let mut at = 0;
    while at < header.capacity {
        let window = at..(at + header.table_covers()).min(header.capacity);
        at = window.end;
        let mut grain = window.start;
        while grain < window.end {
            let len = header.grain.min(header.capacity - grain);
            let stored = sparse.ranges(grain..grain + len).await;
            let read = match &stored {
                Ok(ranges) if ranges.is_empty() => Ok(()),
                _ => sparse.read(grain, &mut buf[..len as usize]).await,
            };
            report.allocated_blocks += u64::from(stored.is_ok_and(|ranges| !ranges.is_empty()));
            match read {
                Ok(()) => {}
                Err(block_io::Error::Corrupt(_)) => {
                    let index = grain / header.grain;
                    let rule = "its grain cannot be read";
                    let fault = Fault::EntryOffset { index, start: grain, rule };
                    report.error(Damage::new(Structure::GrainTable, grain, fault));
                }
                Err(error) => return Err(error.into()),
            }
            grain += len;
        }
    }
    Ok(())
}
