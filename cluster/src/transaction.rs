//! The transactions by which a cluster's records change: each on the condition that what it was decided
//! on is still so.

use crate::{
    engine::{Now, Settings},
    record::{Fenced, Keys, Member, Move, NodeRecord, Record, RoleRecord, Run, Standing},
    rules,
    view::View,
};

/// Within that time so many losses of a node put it into quarantine.
const LATELY: u64 = 600_000;
const LOSSES: usize = 5;

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A node becomes a member.
    Join,
    /// A member says something else of itself.
    Update,
    /// A role becomes a node's.
    Acquire,
    /// A role becomes nobody's.
    Release,
    /// A member leaves.
    Leave,
    /// A member that is silent is one no more.
    Lost,
    /// A fence agent has ended a run.
    Fenced,
}

/// Changes that are made together if all keys are as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Counts the transactions of a node.
    pub id: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// Keys with the revision that each was set at; 0 for one that is not there.
    pub conditions: Vec<(String, i64)>,
    /// Keys that are set, each with its value and the lease that it goes away with, if any.
    pub puts: Vec<(String, Vec<u8>, Option<i64>)>,
    /// Keys that are taken away.
    pub deletes: Vec<String>,
}

impl Transaction {
    fn new(purpose: Purpose) -> Self {
        Self { id: 0, purpose, conditions: Vec::new(), puts: Vec::new(), deletes: Vec::new() }
    }

    fn when(mut self, key: String, revision: i64) -> Self {
        self.conditions.push((key, revision));
        self
    }

    fn put(mut self, key: String, record: &impl Record, lease: Option<i64>) -> Self {
        self.puts.push((key, record.to_bytes(), lease));
        self
    }
}

/// What a node remembers of its run before, which it has ended itself.
#[derive(Debug)]
pub(crate) struct Ended {
    run: Run,
    /// The roles that it had, and the other members then.
    roles: Vec<String>,
    others: Vec<Run>,
}

impl Ended {
    /// The run of `view`, which ends now.
    pub(crate) fn now(view: &View, run: Run) -> Self {
        let owned = view.roles.iter().filter(|(_, seen)| seen.record.owner == Some(run));
        let members = view.members.iter();
        Self {
            run,
            roles: owned.map(|(role, _)| role.clone()).collect(),
            others: members
                .map(|(node, seen)| Run { node: *node, lease: seen.record.lease })
                .filter(|other| *other != run)
                .collect(),
        }
    }

    /// Whether it is that run.
    pub(crate) fn is(&self, run: Run) -> bool {
        self.run == run
    }

    /// Whether nobody who was there then and still is has one of its roles. So it is when all nodes have
    /// lost etcd at once: that says nothing of this one.
    fn unharmed(&self, view: &View) -> bool {
        let taken = |role: &String| view.owner(role).is_some_and(|by| self.others.contains(&by));
        !self.roles.iter().any(taken)
    }
}

/// A node becomes a member. `None` if the cluster has no such node.
pub(crate) fn join(
    settings: &Settings,
    view: &View,
    (member, before): (&Member, Option<&Ended>),
    now: Now,
) -> Option<Transaction> {
    let (keys, me) = (&settings.keys, settings.node);
    let seen = view.nodes.get(&me)?;
    let mut node = seen.record.clone();
    let ended = before.filter(|ended| ended.run.lease == node.lease);
    if node.lease != 0 && !ended.is_some_and(|ended| ended.unharmed(view)) {
        node.lost.retain(|at| at + LATELY > now.wall);
        node.lost.push(now.wall);
        let others = view.members.keys().any(|other| view.standing(*other) == Standing::Up);
        if node.lost.len() >= LOSSES && others && node.standing == Standing::Up {
            node.standing = Standing::Quarantined;
            node.reason = format!("lost {LOSSES} times within ten minutes");
        }
    }
    node.lease = member.lease;
    Some(
        Transaction::new(Purpose::Join)
            .when(keys.member(me), view.members.get(&me).map_or(0, |seen| seen.revision))
            .when(keys.node(me), seen.revision)
            .put(keys.member(me), member, Some(member.lease))
            .put(keys.node(me), &node, None),
    )
}

/// A member says something else of itself.
pub fn update(keys: &Keys, revision: i64, run: Run, member: &Member) -> Transaction {
    let key = keys.member(run.node);
    Transaction::new(Purpose::Update).when(key.clone(), revision).put(key, member, Some(run.lease))
}

/// A member that owns nothing leaves.
pub fn leave(keys: &Keys, view: &View, run: Run) -> Option<Transaction> {
    let member = view.members.get(&run.node)?;
    let seen = view.nodes.get(&run.node)?;
    let node = NodeRecord { lease: 0, ..seen.record.clone() };
    let mut transaction = Transaction::new(Purpose::Leave)
        .when(keys.member(run.node), member.revision)
        .when(keys.node(run.node), seen.revision)
        .put(keys.node(run.node), &node, None);
    transaction.deletes.push(keys.member(run.node));
    Some(transaction)
}

/// A member whose pulse is still the one that was heard at a revision, long ago, is one no more.
pub fn lost(keys: &Keys, view: &View, run: Run, heard: i64) -> Option<Transaction> {
    let member = view.members.get(&run.node)?;
    let mut transaction =
        Transaction::new(Purpose::Lost).when(keys.member(run.node), member.revision);
    if rules::hold(rules::Rule::StillSilent) {
        transaction = transaction.when(keys.pulse(run.node), heard);
    }
    transaction.deletes = vec![keys.member(run.node), keys.pulse(run.node)];
    Some(transaction)
}

/// A role that nobody has, or a dead run, becomes `run`'s.
pub fn acquire(keys: &Keys, view: &View, role: &str, run: Run, now: Now) -> Option<Transaction> {
    let seen = view.roles.get(role);
    let owner = seen.and_then(|seen| seen.record.owner);
    let me = view.members.get(&run.node)?;
    let mut transaction =
        Transaction::new(Purpose::Acquire).when(keys.member(run.node), me.revision);
    if rules::hold(rules::Rule::AsItWas) {
        transaction = transaction.when(keys.role(role), seen.map_or(0, |seen| seen.revision));
    }
    if let Some(owner) = owner.filter(|owner| owner.node != run.node) {
        // Another run of that node has another revision.
        let there = view.members.get(&owner.node).map_or(0, |seen| seen.revision);
        transaction = transaction.when(keys.member(owner.node), there);
    }
    let reason = match (owner, seen) {
        (Some(owner), _) => format!("node {} was lost", owner.node),
        (None, Some(seen)) => seen.record.reason.clone(),
        (None, None) => "nobody had it".to_owned(),
    };
    transaction = change(transaction, keys, view, role, (Some(run), &reason), now);
    if let Some(wish) = view.wishes.get(role)
        && wish.record.node == run.node
    {
        transaction = transaction.when(keys.wish(role), wish.revision);
        transaction.deletes.push(keys.wish(role));
    }
    Some(transaction)
}

/// A role becomes nobody's.
pub fn release(
    keys: &Keys,
    view: &View,
    role: &str,
    reason: &str,
    now: Now,
) -> Option<Transaction> {
    let seen = view.roles.get(role)?;
    let transaction = Transaction::new(Purpose::Release).when(keys.role(role), seen.revision);
    Some(change(transaction, keys, view, role, (None, reason), now))
}

/// The record of a role and of its history.
fn change(
    transaction: Transaction,
    keys: &Keys,
    view: &View,
    role: &str,
    (to, reason): (Option<Run>, &str),
    now: Now,
) -> Transaction {
    let before = view.roles.get(role).map(|seen| &seen.record);
    let generation = before.map_or(0, |before| before.generation) + 1;
    let record = RoleRecord { owner: to, generation, since: now.wall, reason: reason.to_owned() };
    let moved = Move {
        at: now.wall,
        generation,
        from: before.and_then(|before| before.owner).map(|run| run.node),
        to: to.map(|run| run.node),
        reason: reason.to_owned(),
    };
    transaction.put(keys.role(role), &record, None).put(
        keys.history(role, generation),
        &moved,
        None,
    )
}

/// A fence agent has ended a run.
pub fn fenced(keys: &Keys, run: Run) -> Transaction {
    let record = Fenced { lease: run.lease };
    Transaction::new(Purpose::Fenced).put(keys.fenced(run.node), &record, None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{engine::Timing, events::Fence};

    fn member(lease: i64) -> Member {
        Member {
            lease,
            name: "n".into(),
            version: "1".into(),
            roles: vec!["a".into()],
            unfit: vec![],
            serving: vec![],
            reach: None,
            silence: None,
        }
    }

    /// Nodes 1 and 2, with their leases, and which of them has the role.
    fn view(settings: &Settings, leases: [i64; 2], owner: Run) -> View {
        let keys = &settings.keys;
        let mut view = View::new(keys.clone());
        for (node, lease) in (1u16..).zip(leases) {
            view.take(&keys.member(node), Some(&member(lease).to_bytes()), 1).unwrap();
            let record = NodeRecord { lease: 10, ..NodeRecord::default() };
            view.take(&keys.node(node), Some(&record.to_bytes()), 1).unwrap();
        }
        let owner = Some(owner);
        let role = RoleRecord { owner, generation: 1, since: 0, reason: String::new() };
        view.take(&keys.role("a"), Some(&role.to_bytes()), 1).unwrap();
        view
    }

    #[test]
    fn a_loss_counts_if_a_member_that_was_there_has_taken_a_role() {
        let settings = Settings {
            node: 1,
            name: "n".into(),
            version: "1".into(),
            roles: [("a".to_owned(), vec![])].into(),
            timing: Timing::of_lease(5),
            fence: Fence::Gate,
            keys: Keys::new("c"),
            reach: None,
        };
        let now = Now { steady: Duration::ZERO, wall: 1 };
        let (us, other) = (Run { node: 1, lease: 10 }, Run { node: 2, lease: 20 });
        let before = view(&settings, [10, 20], us);
        let ended = Ended::now(&before, us);
        let losses = |view: &View, ended| {
            let joined = join(&settings, view, (&member(11), ended), now).unwrap();
            let (_, bytes, _) =
                joined.puts.iter().find(|(key, ..)| *key == settings.keys.node(1)).unwrap();
            NodeRecord::parse("n", bytes).unwrap().lost.len()
        };
        // It is ours still; or everybody began anew; or the other one went on.
        assert_eq!(losses(&before, Some(&ended)), 0);
        let anew = view(&settings, [10, 21], Run { node: 2, lease: 21 });
        assert_eq!(losses(&anew, Some(&ended)), 0);
        assert_eq!(losses(&view(&settings, [10, 20], other), Some(&ended)), 1);
        // A process that was started anew knows nothing, nor of a run that was not the last.
        assert_eq!(losses(&before, None), 1);
        let earlier = Ended::now(&before, Run { node: 1, lease: 9 });
        assert_eq!(losses(&before, Some(&earlier)), 1);
    }
}
