//! Judging an image: everything that is wrong with it, not only the first thing.

use std::{ops::Range, sync::Arc};

use block_io::File;

use super::{
    Vhdx, header,
    load::{headers, load, region_tables},
    scan::scan,
};
use crate::{Damage, Error, Result};

/// Findings of one kind kept in a report; more are counted only.
const KEEP: usize = 1000;

/// Something that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A contradiction: data may be wrong or lost.
    Error(Damage),
    /// Not as it should be, without harm to data.
    Warning(Damage),
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Errors and warnings, the first thousand of each.
    pub findings: Vec<Finding>,
    /// Errors found.
    pub errors: u64,
    /// Warnings found.
    pub warnings: u64,
    /// Space in the file that nothing uses, each run once. Empty for an image in use.
    pub leaks: Vec<Range<u64>>,
    /// Bytes of these.
    pub leaked: u64,
    /// Payload blocks stored in the file.
    pub allocated_blocks: u64,
    /// Payload blocks of the disk.
    pub blocks: u64,
    /// A log waits to be replayed; the check judged the image as it will be then.
    pub log_pending: bool,
}

impl Report {
    /// Whether no error was found.
    pub fn is_clean(&self) -> bool {
        self.errors == 0
    }

    pub(crate) fn error(&mut self, damage: Damage) {
        self.errors += 1;
        if self.errors <= KEEP as u64 {
            self.findings.push(Finding::Error(damage));
        }
    }

    pub(crate) fn warn(&mut self, damage: Damage) {
        self.warnings += 1;
        if self.warnings <= KEEP as u64 {
            self.findings.push(Finding::Warning(damage));
        }
    }
}

/// Checks the image in `file` without writing to it.
///
/// # Errors
/// Only what keeps the check from being made: a failing file, an unsupported image. An image too
/// damaged to go on with has its damage in the report.
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
    // What is doubled may have one bad copy and still open.
    let [first, second] = headers(&*file).await?;
    if header::current(&first, &second).is_ok() {
        [first, second].into_iter().filter_map(|h| h.err()).for_each(|d| report.warn(d));
    }
    let image = load(file).await?;
    match region_tables(&*image.view).await? {
        [Ok(first), Ok(second)] if first != second => {
            let fault = crate::Fault::NoValidCopy("the two copies differ".into());
            let structure = crate::Structure::RegionTable(2);
            report.warn(Damage::new(structure, super::REGION_TABLE_OFFSETS[1], fault));
        }
        tables => tables.into_iter().filter_map(|t| t.err()).for_each(|d| report.warn(d)),
    }
    report.log_pending = image.overlay.is_some();
    report.blocks = image.layout.blocks;
    let mut allocated = 0;
    let seen = |index, entry: super::bat::RawEntry| {
        allocated += u64::from(entry.is_stored() && image.layout.block(index).is_some());
    };
    let found = |damage| {
        report.error(damage);
        Ok(())
    };
    let space = scan(&image, found, seen, |_, _| {}).await?;
    report.allocated_blocks = allocated;
    report.leaks = space.free_runs(image.file_len);
    report.leaked = report.leaks.iter().map(|r| r.end - r.start).sum();
    report.leaks.truncate(KEEP);
    Ok(())
}

impl Vhdx {
    /// Checks the image while it is in use. Commits wait meanwhile, reads and writes do not.
    ///
    /// The judged state is the one a crash at this moment would leave. Space that is ready for
    /// new blocks or not yet given back is not reported.
    ///
    /// # Errors
    /// What the file says; what is wrong with the image is in the report.
    pub async fn check(&self) -> Result<Report> {
        let inner = &self.inner;
        let _guard = inner.enter()?;
        if !inner.read_only {
            inner.flush().await?;
        }
        let _no_commit = inner.log.lock().await;
        let mut report = check(inner.file.clone()).await?;
        report.leaks = Vec::new();
        report.leaked = 0;
        Ok(report)
    }
}
