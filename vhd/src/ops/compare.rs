//! Whether two disks read the same.

use std::ops::Range;

use block_io::Disk;

use super::Progress;
use crate::{Result, parent};

/// Bytes compared at once.
const STEP: u64 = 1 << 20;
/// Bytes of the disk whose allocation is asked for at once.
const WINDOW: u64 = 1 << 30;

/// Compares two disks of any format; where one is longer it is to be zeros. Returns the first byte
/// at which they differ.
///
/// # Errors
/// What either disk says.
pub async fn compare(
    a: &std::sync::Arc<dyn Disk>,
    b: &std::sync::Arc<dyn Disk>,
    mut progress: impl FnMut(Progress),
) -> Result<Option<u64>> {
    let total = a.geometry().size.max(b.geometry().size);
    let (mut x, mut y) = (vec![0; STEP as usize], vec![0; STEP as usize]);
    let mut at = 0;
    while at < total {
        let window = at..(at + WINDOW).min(total);
        let in_a = parent::ranges(Some(a), window.clone()).await?;
        let in_b = parent::ranges(Some(b), window.clone()).await?;
        let mut start = window.start;
        while start < window.end {
            let end = (start + STEP).min(window.end);
            if touches(&in_a, start..end) || touches(&in_b, start..end) {
                let n = (end - start) as usize;
                parent::read(Some(a), start, &mut x[..n]).await?;
                parent::read(Some(b), start, &mut y[..n]).await?;
                if let Some(i) = x[..n].iter().zip(&y[..n]).position(|(x, y)| x != y) {
                    return Ok(Some(start + i as u64));
                }
            }
            start = end;
        }
        at = window.end;
        progress(Progress { done: at, total });
    }
    Ok(None)
}

/// Whether one of these, which ascend, has a part of `range`.
pub(super) fn touches(ranges: &[Range<u64>], range: Range<u64>) -> bool {
    let first = ranges.partition_point(|one| one.end <= range.start);
    ranges.get(first).is_some_and(|one| one.start < range.end)
}
