//! The bytes of a store's keys and values in etcd.
//!
//! ```text
//!  record   1  node (2)  epoch (8)  0  value …          so a comparison by order tells an owner
//!  node     1  epoch (8)  batches (8)
//!  epoch    1  epoch (8)
//! ```
//!
//! Numbers are big-endian. A first byte of another value is of another version, and refused.

use crate::{Entry, Owner, Revision, etcd::wire::KeyValue};

const VERSION: u8 = 1;
/// Bytes in front of a value.
const HEAD: usize = 12;

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeRecord {
    pub(super) epoch: u64,
    /// Batches that were carried out in this epoch.
    pub(super) batches: u64,
}

impl NodeRecord {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.epoch.to_be_bytes());
        out.extend(self.batches.to_be_bytes());
        out
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (epoch, batches) = rest.split_at_checked(8)?;
        let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        let read = Self { epoch: number(epoch)?, batches: number(batches)? };
        (*version == VERSION).then_some(read)
    }
}

pub(super) fn epoch_bytes(epoch: u64) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend(epoch.to_be_bytes());
    out
}

pub(super) fn parse_epoch(bytes: &[u8]) -> Option<u64> {
    let (version, epoch) = bytes.split_first()?;
    let epoch = u64::from_be_bytes(epoch.try_into().ok()?);
    (*version == VERSION).then_some(epoch)
}

/// What stands before the value of every record of an owner, without its last byte: greater than it,
/// and less than [`above`], are that owner's records and no others.
pub(super) fn of(owner: Owner) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend(owner.node.to_be_bytes());
    out.extend(owner.epoch.to_be_bytes());
    out
}

/// Greater than every record of an owner.
pub(super) fn above(owner: Owner) -> Vec<u8> {
    let mut out = of(owner);
    out.push(1);
    out
}

pub(super) fn value(owner: Owner, bytes: &[u8]) -> Vec<u8> {
    let mut out = of(owner);
    out.push(0);
    out.extend_from_slice(bytes);
    out
}

/// A record as etcd keeps it; `None` if it is none.
pub(super) fn entry(kv: KeyValue) -> Option<Entry> {
    let (head, value) = kv.value.split_at_checked(HEAD)?;
    if (head[0], head[11]) != (VERSION, 0) {
        return None;
    }
    let node = u16::from_be_bytes([head[1], head[2]]);
    let epoch = u64::from_be_bytes(head[3..11].try_into().ok()?);
    let revision = Revision(u64::try_from(kv.mod_revision).ok()?);
    Some(Entry { value: value.to_vec(), owner: Owner { node, epoch }, revision })
}

/// The first key behind all that begin with a prefix.
pub(super) fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // Behind everything, as etcd writes it.
    vec![0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_owners_records_lie_between_its_bounds_and_nobody_elses(
            owners in any::<[(u16, u64); 2]>(), bytes in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let [one, two] = owners.map(|(node, epoch)| Owner { node, epoch });
            let record = value(one, &bytes);
            let within = |owner| record > of(owner) && record < above(owner);
            prop_assert!(within(one));
            prop_assert_eq!(within(two), one == two);
            let kv = KeyValue { value: record.clone(), mod_revision: 7, ..KeyValue::default() };
            let read = entry(kv).unwrap();
            prop_assert_eq!((read.owner, read.revision, read.value), (one, Revision(7), bytes));
            for len in 0..HEAD {
                let short = record[..len].to_vec();
                let short = KeyValue { value: short, ..KeyValue::default() };
                prop_assert!(entry(short).is_none());
            }
        }

        #[test]
        fn what_begins_with_a_prefix_ends_where_it_is_said(
            prefix in prop::collection::vec(any::<u8>(), 0..4),
            key in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let end = behind(&prefix);
            let within = key >= prefix && (end == [0] || key < end);
            prop_assert_eq!(within, key.starts_with(&prefix));
        }

        #[test]
        fn what_is_known_of_nodes_is_read_as_it_was_written(
            epoch in any::<u64>(), batches in any::<u64>(), noise in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let node = NodeRecord { epoch, batches };
            prop_assert_eq!(NodeRecord::parse(&node.to_bytes()), Some(node));
            prop_assert_eq!(parse_epoch(&epoch_bytes(epoch)), Some(epoch));
            if let Some(read) = NodeRecord::parse(&noise) { prop_assert_eq!(read.to_bytes(), &noise[..]); }
            if let Some(read) = parse_epoch(&noise) { prop_assert_eq!(epoch_bytes(read), &noise[..]); }
        }
    }
}
