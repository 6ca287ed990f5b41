//! Where on its volume the content of a file lies (MS-FSA 2.1.1.5, `ExtentList`), as FIEMAP tells it.
//! It may wait for the disk: what is not written yet has no place, so it is written first.

use std::os::fd::BorrowedFd;

use block_io::fiemap::{Fiemap, LAST, NO_PLACE, STEP, SYNC};
use rustix::io::Errno;

use crate::fs::descriptor::cluster_size;

/// A run of clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first cluster of the file behind the run (`NextVcn`).
    pub next: u64,
    /// The first cluster of the volume that it has; `None` for a hole.
    pub cluster: Option<u64>,
}

/// What was found of a file's clusters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extents {
    /// The cluster of the file at which the first run begins.
    pub start: u64,
    /// Runs, the first of which holds the cluster that was asked for.
    pub runs: Vec<Extent>,
    /// There are more.
    pub more: bool,
}

/// The first cluster of the run that holds the cluster `from`: a hole, or an extent. The system tells
/// no more of a run than what it is asked for.
fn begins(
    fd: BorrowedFd<'_>,
    from: u64,
    hole: bool,
    cluster: u64,
    found: &mut Fiemap,
) -> Result<u64, Errno> {
    let mut same = |first: u64| -> Result<bool, Errno> {
        let first = first.saturating_mul(cluster);
        let list = found.ask(fd, first..from.saturating_mul(cluster).saturating_add(1), 0, 2)?;
        Ok(match list {
            [] => hole,
            [extent] => !hole && extent.logical <= first,
            _ => false,
        })
    };
    // All from `high` to `from` is one run, and what lies before `low` is another.
    let (mut low, mut high) = (0, from);
    while low < high {
        let middle = low + (high - low) / 2;
        if same(middle)? { high = middle } else { low = middle + 1 }
    }
    Ok(high)
}

/// The runs of a file from the one that holds the cluster `from` of the file on, at most `most` of
/// them; none if the file ends before it. `fd` is open for reading.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY` where the file system does not tell; what the file system says.
pub fn extents(fd: BorrowedFd<'_>, from: u64, most: usize) -> Result<Extents, Errno> {
    let cluster = cluster_size(fd)?;
    let size = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
    let mut found = Fiemap::new();
    let mut runs: Vec<Extent> = Vec::new();
    // The first cluster not told of.
    let mut at = from;
    let (mut behind, mut flags, mut unplaced) = (from.saturating_mul(cluster), SYNC, false);
    loop {
        let list = found.ask(fd, behind..u64::MAX, flags, STEP)?;
        let last = list.last().is_none_or(|extent| extent.flags & LAST != 0);
        flags = 0;
        for extent in list {
            behind = extent.logical.saturating_add(extent.length);
            if extent.flags & NO_PLACE != 0 {
                unplaced = true;
                continue;
            }
            let (first, next) = (extent.logical / cluster, behind.div_ceil(cluster));
            if next <= at {
                continue;
            }
            if first > at {
                runs.push(Extent { next: first, cluster: None });
            }
            // That of the cluster `at`, if the extent begins before it.
            let place = extent.physical / cluster + at.saturating_sub(first);
            runs.push(Extent { next, cluster: Some(place) });
            at = next;
        }
        if last || runs.len() > most {
            break;
        }
    }
    // What is kept beside the file's name has no clusters at all.
    let end = size.div_ceil(cluster);
    if at < end && runs.len() <= most && !(runs.is_empty() && unplaced) {
        runs.push(Extent { next: end, cluster: None });
    }
    let mut start = 0;
    if let Some(run) = runs.first_mut() {
        start = begins(fd, from, run.cluster.is_none(), cluster, &mut found)?;
        run.cluster = run.cluster.map(|place| place.saturating_sub(from - start));
    }
    let more = runs.len() > most;
    runs.truncate(most);
    Ok(Extents { start, runs, more })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::{fd::AsFd, unix::fs::FileExt},
    };

    use super::*;

    #[test]
    fn runs_follow_on_each_other_and_holes_have_no_place() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 300_000]).unwrap();
        let cluster = cluster_size(file.as_fd()).unwrap();
        let all = match extents(file.as_fd(), 0, 100) {
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => {
                eprintln!("the file system of temporary files does not tell of extents");
                return;
            }
            other => other.unwrap(),
        };
        let end = 300_000u64.div_ceil(cluster);
        assert_eq!((all.start, all.more), (0, false));
        assert!(all.runs.last().unwrap().next >= end && all.runs[0].cluster.is_some());
        // A hole, and something behind it.
        file.write_all_at(&[2; 4096], 1 << 24).unwrap();
        let all = extents(file.as_fd(), 0, 100).unwrap();
        let hole = (1 << 24) / cluster;
        assert!(all.runs.contains(&Extent { next: hole, cluster: None }), "{all:?}");
        assert!(all.runs.windows(2).all(|pair| pair[0].next < pair[1].next));
        // From within the hole on; with room for one.
        let part = extents(file.as_fd(), hole - 1, 1).unwrap();
        assert_eq!(part.runs, [Extent { next: hole, cluster: None }]);
        assert!(part.more && part.start == end);
        let exact = extents(file.as_fd(), hole, 9).unwrap();
        assert_eq!((exact.start, exact.runs.len(), exact.more), (hole, 1, false));
        let inside = extents(file.as_fd(), 1, 100).unwrap();
        assert_eq!((inside.start, inside.runs), (0, all.runs));
        // A hole at the end.
        file.set_len(1 << 25).unwrap();
        let tail = extents(file.as_fd(), hole + 9, 9).unwrap();
        let want = Extent { next: (1 << 25) / cluster, cluster: None };
        assert_eq!((tail.start, tail.runs, tail.more), (hole + 1, vec![want], false));
        let none = extents(file.as_fd(), 1 << 40, 10).unwrap();
        assert_eq!((none.runs.len(), none.more), (0, false));
    }
}
