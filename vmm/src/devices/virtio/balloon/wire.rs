//! What a driver of the balloon says: lists of pages, statistics, and how large its balloon is.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::platform::memory::PAGE;

/// Bytes of a page number.
const NUMBER: usize = 4;
/// Bytes of a statistic: a tag and a value, without padding.
const STATISTIC: usize = 10;
/// Most bytes of a list that are looked at: far more than drivers have in one.
pub const LIST_MOST: u64 = 64 << 10;
/// Most bytes of statistics that are looked at.
pub const STATISTICS_MOST: u64 = 1 << 10;

/// What a guest tells of its memory (virtio 1.2 §5.5.6.3), in bytes but for counts; what it does not
/// tell is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Swapped in since its start.
    pub swap_in: Option<u64>,
    /// Swapped out since its start.
    pub swap_out: Option<u64>,
    /// Faults that needed a disk, since its start.
    pub major_faults: Option<u64>,
    /// Faults that did not, since its start.
    pub minor_faults: Option<u64>,
    /// Not used for anything.
    pub free: Option<u64>,
    /// All that it has.
    pub total: Option<u64>,
    /// What programs can have without swapping.
    pub available: Option<u64>,
    /// What of that are caches of files.
    pub disk_caches: Option<u64>,
}

impl Statistics {
    /// Reads statistics; of a tag that comes twice the last counts, and tags that are not known do not.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut all = Self::default();
        for entry in bytes.as_chunks::<STATISTIC>().0 {
            let [tag_low, tag_high, value @ ..] = *entry;
            let place = match u16::from_le_bytes([tag_low, tag_high]) {
                0 => &mut all.swap_in,
                1 => &mut all.swap_out,
                2 => &mut all.major_faults,
                3 => &mut all.minor_faults,
                4 => &mut all.free,
                5 => &mut all.total,
                6 => &mut all.available,
                7 => &mut all.disk_caches,
                _ => continue,
            };
            *place = Some(u64::from_le_bytes(value));
        }
        all
    }
}

/// The bytes of guest memory that a list of page numbers names, as ranges in order that do not touch.
pub fn ranges(list: &[u8]) -> Vec<Range<u64>> {
    let mut pages: Vec<u32> =
        list.as_chunks::<NUMBER>().0.iter().map(|number| u32::from_le_bytes(*number)).collect();
    pages.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        let start = u64::from(page) * PAGE;
        match ranges.last_mut() {
            Some(last) if start <= last.end => last.end = start + PAGE,
            _ => ranges.push(start..start + PAGE),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statistics_are_read_as_a_driver_writes_them() {
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        let bytes =
            [entry(4, 7), entry(5, 9), entry(0xfff, 1), entry(4, 8), vec![6, 0, 1]].concat();
        let told = Statistics::parse(&bytes);
        assert_eq!(told, Statistics { free: Some(8), total: Some(9), ..Statistics::default() });
    }

    proptest! {
        /// The ranges have exactly the pages of the list, and are as few as they can be.
        #[test]
        fn ranges_are_the_pages_of_the_list(
            pages in prop::collection::vec(prop_oneof![0u32..40, Just(u32::MAX), any::<u32>()], 0..80),
        ) {
            let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
            let ranges = ranges(&list);
            let wanted: std::collections::BTreeSet<u64> = pages.iter().map(|page| u64::from(*page)).collect();
            let found = ranges.iter().flat_map(|range| range.start / PAGE..range.end / PAGE);
            prop_assert!(found.eq(wanted));
            prop_assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
