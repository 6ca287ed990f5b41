//! A model of etcd: keys, revisions, leases that end by true time, leaders that change.

use std::collections::BTreeMap;

use crate::{engine::Outcome, transaction::Transaction};

/// A commit: its revision, and its keys with what they are now.
pub(super) type Commit = (i64, Vec<(String, Option<Vec<u8>>)>);

/// A key with its new value and the lease it goes away with; none if it is taken away.
type Change = (String, Option<(Vec<u8>, Option<i64>)>);

/// Times are microseconds of true time.
#[derive(Debug, Default)]
pub(super) struct Etcd {
    keys: BTreeMap<String, (Vec<u8>, i64, Option<i64>)>,
    pub(super) revision: i64,
    leases: BTreeMap<i64, (u64, u64)>,
    next_lease: i64,
    pub(super) term: u64,
    pub(super) commits: Vec<Commit>,
}

impl Etcd {
    pub(super) fn grant(&mut self, now: u64, ttl: u64) -> i64 {
        self.next_lease += 1;
        self.leases.insert(self.next_lease, (now + ttl, ttl));
        self.next_lease
    }

    /// Begins a lease anew; whether it was there.
    pub(super) fn renew(&mut self, now: u64, lease: i64) -> bool {
        let found = self.leases.get_mut(&lease);
        found.map(|(end, ttl)| *end = now + *ttl).is_some()
    }

    pub(super) fn ttl(&self, lease: i64) -> Option<u64> {
        self.leases.get(&lease).map(|(_, ttl)| *ttl)
    }

    pub(super) fn revoke(&mut self, lease: i64) {
        self.leases.remove(&lease);
        let gone = self.keys.iter().filter(|(_, (.., of))| *of == Some(lease));
        let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
        if !gone.is_empty() {
            self.commit(gone.into_iter().map(|key| (key, None)).collect());
        }
    }

    /// Ends what is over.
    pub(super) fn expire(&mut self, now: u64) {
        let over = self.leases.iter().filter(|(_, (end, _))| *end <= now);
        for lease in over.map(|(lease, _)| *lease).collect::<Vec<_>>() {
            self.revoke(lease);
        }
    }

    /// A new leader gives every lease its whole time.
    pub(super) fn elect(&mut self, now: u64) {
        self.term += 1;
        self.leases.values_mut().for_each(|(end, ttl)| *end = (*end).max(now + *ttl));
    }

    fn commit(&mut self, changes: Vec<Change>) -> i64 {
        self.revision += 1;
        let mut told = Vec::new();
        for (key, change) in changes {
            told.push((key.clone(), change.as_ref().map(|(value, _)| value.clone())));
            match change {
                Some((value, lease)) => {
                    drop(self.keys.insert(key, (value, self.revision, lease)));
                }
                None => drop(self.keys.remove(&key)),
            }
        }
        self.commits.push((self.revision, told));
        self.revision
    }

    pub(super) fn put(&mut self, key: String, value: Vec<u8>) {
        self.commit(vec![(key, Some((value, None)))]);
    }

    pub(super) fn transact(&mut self, transaction: Transaction) -> Outcome {
        let holds = |(key, revision): &(String, i64)| {
            self.keys.get(key).map_or(0, |(_, at, _)| *at) == *revision
        };
        let lives =
            |lease: &Option<i64>| lease.is_none_or(|lease| self.leases.contains_key(&lease));
        let Transaction { conditions, puts, deletes, .. } = transaction;
        if !conditions.iter().all(holds) || !puts.iter().all(|(.., lease)| lives(lease)) {
            return Outcome::Refused;
        }
        let puts = puts.into_iter().map(|(key, value, lease)| (key, Some((value, lease))));
        let deletes = deletes.into_iter().map(|key| (key, None));
        Outcome::Carried(self.commit(puts.chain(deletes).collect()))
    }

    /// Sets a node's pulse to its lease, if that is the one of its member.
    pub(super) fn pulse(&mut self, member: &str, pulse: String, lease: i64) -> Outcome {
        let is_member = self.keys.get(member).is_some_and(|(.., of)| *of == Some(lease));
        if !is_member || !self.leases.contains_key(&lease) {
            return Outcome::Refused;
        }
        let value = lease.to_string().into_bytes();
        Outcome::Carried(self.commit(vec![(pulse, Some((value, Some(lease))))]))
    }

    /// Everything, and at which revision it is so.
    pub(super) fn all(&self) -> Vec<(String, Vec<u8>, i64)> {
        let one = |(key, (value, at, _)): (&String, &(Vec<u8>, i64, _))| {
            (key.clone(), value.clone(), *at)
        };
        self.keys.iter().map(one).collect()
    }
}
