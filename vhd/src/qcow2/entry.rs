//! Table entries (QCOW2, "L1 table entry", "L2 table entry").

/// Owned by nobody else: may be written in place.
pub const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// Nowhere: the backing file has it, or it is zeros.
    Absent,
    /// It is zeros; space may be kept for it at this offset.
    Zero(Option<u64>),
    /// At this offset of the file.
    Here(u64),
    /// Compressed, in so many bytes at most at this offset.
    Compressed {
        /// First byte.
        offset: u64,
        /// Bytes that may belong to it.
        len: u64,
    },
}

impl Cluster {
    /// Reads an L2 entry of an image with such clusters; `None` if its offset is not a cluster's.
    pub fn parse(raw: u64, cluster_size: u64) -> Option<Self> {
        if raw & COMPRESSED != 0 {
            // The offset has fewer bits the more a cluster's sectors need.
            let bits = 62 - (cluster_size.ilog2() - 8);
            let offset = raw & ((1 << bits) - 1);
            let more = (raw & (COMPRESSED - 1)) >> bits;
            let len = (more + 1) * 512 - offset % 512;
            return Some(Self::Compressed { offset, len });
        }
        let offset = raw & OFFSET;
        if !offset.is_multiple_of(cluster_size) {
            return None;
        }
        Some(match (raw & ZERO != 0, offset) {
            (true, 0) => Self::Zero(None),
            (true, at) => Self::Zero(Some(at)),
            (false, 0) => Self::Absent,
            (false, at) => Self::Here(at),
        })
    }

    /// The space in the file that it takes.
    pub fn place(self, cluster_size: u64) -> Option<std::ops::Range<u64>> {
        match self {
            Self::Absent | Self::Zero(None) => None,
            Self::Zero(Some(at)) | Self::Here(at) => Some(at..at + cluster_size),
            Self::Compressed { offset, len } => Some(offset..offset + len),
        }
    }
}

/// Where an L1 entry says its L2 table is; 0: there is none.
pub fn l2_offset(raw: u64) -> u64 {
    raw & OFFSET
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_entries() {
        let parse = |raw| Cluster::parse(raw, 65536);
        assert_eq!(parse(0), Some(Cluster::Absent));
        assert_eq!(parse(1), Some(Cluster::Zero(None)));
        assert_eq!(parse(COPIED | 0x5_0000), Some(Cluster::Here(0x5_0000)));
        assert_eq!(parse(COPIED | 0x5_0001), Some(Cluster::Zero(Some(0x5_0000))));
        assert_eq!(parse(0x5_0200), None);
        // 54 bits of offset, then the sectors beyond the first.
        let raw = COMPRESSED | 2 << 54 | 0x5_0123;
        let len = 3 * 512 - 0x123;
        assert_eq!(parse(raw), Some(Cluster::Compressed { offset: 0x5_0123, len }));
    }

    proptest! {
        /// Nothing an entry can say overflows.
        #[test]
        fn every_entry_is_a_place_or_none(raw: u64, bits in 9u32..=21) {
            let place = Cluster::parse(raw, 1 << bits).and_then(|c| c.place(1 << bits));
            if let Some(place) = place {
                prop_assert!(place.start < place.end);
                prop_assert!(place.end - place.start <= (2 << bits).max(512));
            }
        }
    }
}
