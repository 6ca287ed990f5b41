//! Changes that become durable together, and what must be so for them to be made.

use crate::{MAX_KEY, MAX_VALUE, Owner, Records, Revision, StoreError};

/// What a key must be like for a batch to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is no record.
    Absent,
    /// The record is as the commit with this revision left it.
    At(Revision),
    /// Whoever set the record last was this owner, in this epoch.
    Of(Owner),
}

/// Changes that become durable together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    conditions: Vec<(Vec<u8>, Expect)>,
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// A batch that changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries the batch out only if the record `key` is as expected when its turn comes, before any
    /// of its own changes.
    #[must_use]
    pub fn when(mut self, key: Vec<u8>, expect: Expect) -> Self {
        self.conditions.push((key, expect));
        self
    }

    /// Adds a record to be set.
    #[must_use]
    pub fn put(mut self, key: Vec<u8>, value: Vec<u8>) -> Self {
        self.changes.push((key, Some(value)));
        self
    }

    /// Takes a record away; one that is not there is no error.
    #[must_use]
    pub fn delete(mut self, key: Vec<u8>) -> Self {
        self.changes.push((key, None));
        self
    }

    /// Adds what another batch expects and, behind its own changes, what that changes.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.conditions.extend(other.conditions);
        self.changes.extend(other.changes);
        self
    }

    /// The same changes in their order as batches of at most `most`, for who does not need them to be
    /// made together. One with conditions stays as it is.
    pub fn in_parts(mut self, most: usize) -> Vec<Self> {
        let mut parts = Vec::new();
        while self.conditions.is_empty() && self.changes.len() > most.max(1) {
            let rest = self.changes.split_off(most.max(1));
            parts.push(std::mem::replace(&mut self, Self { changes: rest, ..Self::default() }));
        }
        parts.push(self);
        parts
    }

    /// Whether it changes nothing and expects nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.conditions.is_empty()
    }

    /// Whether it only takes away.
    pub fn only_deletes(&self) -> bool {
        self.changes.iter().all(|(_, value)| value.is_none())
    }

    /// The changes in their order: key, and the value if it is set.
    pub fn changes(&self) -> &[(Vec<u8>, Option<Vec<u8>>)] {
        &self.changes
    }

    /// The conditions on which it is carried out.
    pub fn conditions(&self) -> &[(Vec<u8>, Expect)] {
        &self.conditions
    }

    /// Makes the changes in a map.
    pub fn apply(&self, records: &mut Records) {
        for (key, value) in &self.changes {
            match value {
                Some(value) => drop(records.insert(key.clone(), value.clone())),
                None => drop(records.remove(key)),
            }
        }
    }

    /// Whether a store can take it at all.
    ///
    /// # Errors
    /// [`StoreError::TooLong`] if a key or a value is too long, or a key is empty.
    pub fn check(&self) -> Result<(), StoreError> {
        let expected = self.conditions.iter().map(|(key, _)| (key, 0));
        let changed = self.changes.iter();
        let changed = changed.map(|(key, value)| (key, value.as_ref().map_or(0, Vec::len)));
        for (key, value) in expected.chain(changed) {
            if key.is_empty() || key.len() > MAX_KEY || value > MAX_VALUE {
                return Err(StoreError::TooLong(key.len() + value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_in_parts_changes_the_same_in_the_same_order() {
        let whole = (0..10u8).fold(Batch::new(), |batch, n| match n % 3 {
            0 => batch.delete(vec![n]),
            _ => batch.put(vec![n], vec![n]),
        });
        for (most, lens) in [(3, vec![3, 3, 3, 1]), (5, vec![5, 5]), (10, vec![10]), (99, vec![10])]
        {
            let parts = whole.clone().in_parts(most);
            assert_eq!(parts.iter().map(|part| part.changes().len()).collect::<Vec<_>>(), lens);
            assert_eq!(parts.into_iter().fold(Batch::new(), Batch::and), whole);
        }
        assert_eq!(whole.clone().in_parts(0).len(), 10, "at least one at a time");
        let alone = whole.when(vec![1], Expect::Absent);
        assert_eq!(alone.clone().in_parts(1), [alone], "what is conditional stays whole");
        assert_eq!(Batch::new().in_parts(1), [Batch::new()]);
    }
}
