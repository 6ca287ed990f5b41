//! Who has one file open, and whether somebody new goes together with all of them.
//!
//! A file may be open thousands of times, and each open of it asks who is in the way. Most often nobody
//! is, which a count of what they do and of what they let nobody do says at once; only where somebody is
//! are they looked at one by one.

use block_io::Claim;
use smb_protocol::msg::create::{Access, ShareAccess};

use crate::sharing::{
    file::Use,
    image,
    modes::{READS, WRITES, takes_part},
};

/// What excludes others, and what lets it be shared (MS-FSA 2.1.5.1.2).
const KINDS: [(Access, ShareAccess); 3] = [
    (READS, ShareAccess::READ),
    (WRITES, ShareAccess::WRITE),
    (Access::DELETE, ShareAccess::DELETE),
];

/// All who have a file open.
#[derive(Debug, Default)]
pub(crate) struct Openers {
    /// In the order of their names, which is mostly that in which they came.
    uses: Vec<Use>,
    /// Of those that take part in sharing, how many do each of [`KINDS`].
    doing: [u32; 3],
    /// How many of them let nobody do it.
    refusing: [u32; 3],
    /// How many claim the file of other programs to write it, and how many to have it as it is.
    writers: u32,
    still: u32,
}

impl Openers {
    /// Adds one that is not there yet.
    pub(crate) fn add(&mut self, new: Use) {
        self.count(&new, |number| *number += 1);
        let at = self.uses.partition_point(|user| user.id < new.id);
        self.uses.insert(at, new);
    }

    /// Takes one away, if it is there.
    pub(crate) fn remove(&mut self, id: u64) {
        if let Ok(at) = self.at(id) {
            let gone = self.uses.remove(at);
            self.count(&gone, |number| *number -= 1);
        }
    }

    /// Has each number changed that a use counts in.
    fn count(&mut self, user: &Use, change: impl Fn(&mut u32)) {
        if takes_part(user.access) {
            for (at, (access, share)) in KINDS.into_iter().enumerate() {
                if user.access.any(access) {
                    change(&mut self.doing[at]);
                }
                if !user.share.has(share) {
                    change(&mut self.refusing[at]);
                }
            }
        }
        match image::claim_of(user.access, user.share) {
            Some(Claim::Writer) => change(&mut self.writers),
            Some(Claim::Still) => change(&mut self.still),
            None => {}
        }
    }

    fn at(&self, id: u64) -> Result<usize, usize> {
        self.uses.binary_search_by_key(&id, |user| user.id)
    }

    /// How one has it open.
    pub(crate) fn get(&self, id: u64) -> Option<&Use> {
        self.at(id).ok().map(|at| &self.uses[at])
    }

    /// All of them.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Use> {
        self.uses.iter()
    }

    /// Whether nobody has it open.
    pub(crate) fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// Whether one of them and an opener with that access, who takes part and shares like this, exclude
    /// each other.
    pub(crate) fn exclude(&self, access: Access, share: ShareAccess) -> bool {
        KINDS.into_iter().enumerate().any(|(at, (kind, shared))| {
            access.any(kind) && self.refusing[at] > 0 || !share.has(shared) && self.doing[at] > 0
        })
    }

    /// Whether openers other than `id` let nobody delete or rename the file.
    pub(crate) fn others_refuse_delete(&self, id: u64) -> bool {
        let refuses = |user: &Use| takes_part(user.access) && !user.share.has(ShareAccess::DELETE);
        self.refusing[2] > u32::from(self.get(id).is_some_and(refuses))
    }

    /// The most that one of them claims of the file, of other programs.
    pub(crate) fn claim(&self) -> Option<Claim> {
        match (self.writers, self.still) {
            (0, 0) => None,
            (0, _) => Some(Claim::Still),
            _ => Some(Claim::Writer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sharing::modes::{STREAM_BASE, conflicts};

    fn access() -> impl Strategy<Value = Access> {
        let bits = [
            Access::READ_DATA,
            Access::EXECUTE,
            Access::WRITE_DATA,
            Access::APPEND_DATA,
            Access::DELETE,
            Access::READ_ATTRIBUTES,
            STREAM_BASE,
        ];
        prop::collection::vec(prop::sample::select(bits.to_vec()), 0..4)
            .prop_map(|list| list.into_iter().fold(Access::NONE, Access::or))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// What the counts say is what looking at each opener says.
        #[test]
        fn counts_are_of_those_who_are_there(
            steps in prop::collection::vec((0u64..12, access(), 0u32..8), 1..40),
            asked in prop::collection::vec((access(), 0u32..8), 8),
        ) {
            let mut openers = Openers::default();
            let mut model: Vec<Use> = Vec::new();
            for (id, access, share) in steps {
                let before = model.len();
                model.retain(|user| user.id != id);
                openers.remove(id);
                if model.len() == before {
                    let share = ShareAccess(share);
                    let new = Use { id, link: 0, access, share, lease: None };
                    model.push(new);
                    openers.add(new);
                }
                for (access, share) in &asked {
                    let share = ShareAccess(*share);
                    let hinders = |user: &Use| {
                        takes_part(user.access)
                            && (conflicts(*access, user.share) || conflicts(user.access, share))
                    };
                    prop_assert_eq!(openers.exclude(*access, share), model.iter().any(hinders));
                }
                for id in 0..12 {
                    let refuses = |user: &Use| {
                        user.id != id && takes_part(user.access) && !user.share.has(ShareAccess::DELETE)
                    };
                    prop_assert_eq!(openers.others_refuse_delete(id), model.iter().any(refuses));
                    prop_assert_eq!(openers.get(id).is_some(), model.iter().any(|user| user.id == id));
                }
                let claim = model.iter().filter_map(|user| image::claim_of(user.access, user.share)).max();
                prop_assert_eq!(openers.claim(), claim);
                prop_assert_eq!(openers.is_empty(), model.is_empty());
                prop_assert_eq!(openers.iter().count(), model.len());
            }
        }
    }
}
