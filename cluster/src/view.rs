//! What a node has seen of the cluster: the records at one revision of etcd, and what follows.

use std::collections::BTreeMap;

use crate::record::{
    Fenced, Keys, Member, NodeRecord, Record, RecordError, RoleRecord, Run, Standing, Wish,
};

/// A record with the commit that set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<T> {
    /// What it says.
    pub record: T,
    /// The revision of etcd at which it was set.
    pub revision: i64,
}

/// The records of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    keys: Keys,
    /// The last commit that is in it.
    pub revision: i64,
    /// Nodes that are there.
    pub members: BTreeMap<u16, Seen<Member>>,
    /// What is remembered of nodes.
    pub nodes: BTreeMap<u16, Seen<NodeRecord>>,
    /// Who owns which role.
    pub roles: BTreeMap<String, Seen<RoleRecord>>,
    /// Where roles are wanted.
    pub wishes: BTreeMap<String, Seen<Wish>>,
    /// Runs that a fence agent has ended.
    pub fenced: BTreeMap<u16, Seen<Fenced>>,
}

fn put<K: Ord, T: Record>(
    map: &mut BTreeMap<K, Seen<T>>,
    name: Option<K>,
    key: &str,
    value: Option<&[u8]>,
    revision: i64,
) -> Result<(), RecordError> {
    let Some(name) = name else {
        return Err(RecordError::Malformed { key: key.to_owned(), why: "no such key".to_owned() });
    };
    match value {
        Some(bytes) => {
            let record = T::parse(key, bytes)?;
            map.insert(name, Seen { record, revision });
        }
        None => drop(map.remove(&name)),
    }
    Ok(())
}

impl View {
    /// That of a cluster in which there is nothing.
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            revision: 0,
            members: BTreeMap::new(),
            nodes: BTreeMap::new(),
            roles: BTreeMap::new(),
            wishes: BTreeMap::new(),
            fenced: BTreeMap::new(),
        }
    }

    /// Takes a key as it is now, or that it was taken away.
    ///
    /// # Errors
    /// If it is no record that this version reads; the view stays as it was.
    pub fn take(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        revision: i64,
    ) -> Result<(), RecordError> {
        self.revision = self.revision.max(revision);
        let rest = key.strip_prefix(self.keys.prefix()).unwrap_or_default();
        let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
        let number = name.parse().ok();
        match kind {
            "member" => put(&mut self.members, number, key, value, revision),
            "node" => put(&mut self.nodes, number, key, value, revision),
            "role" => put(&mut self.roles, Some(name.to_owned()), key, value, revision),
            "wish" => put(&mut self.wishes, Some(name.to_owned()), key, value, revision),
            "fenced" => put(&mut self.fenced, number, key, value, revision),
            // The rest is nobody's who decides.
            _ => Ok(()),
        }
    }

    /// The run of a node that is there.
    pub fn run(&self, node: u16) -> Option<Run> {
        let lease = self.members.get(&node)?.record.lease;
        Some(Run { node, lease })
    }

    /// Whether a run goes on, as far as is seen.
    pub fn is_alive(&self, run: Run) -> bool {
        self.run(run.node) == Some(run)
    }

    /// What an administrator makes of a node.
    pub fn standing(&self, node: u16) -> Standing {
        self.nodes.get(&node).map_or(Standing::Up, |seen| seen.record.standing)
    }

    /// The owner of a role, dead or alive.
    pub fn owner(&self, role: &str) -> Option<Run> {
        self.roles.get(role)?.record.owner
    }

    /// The node that serves a role now, beyond owning it.
    pub fn server(&self, role: &str) -> Option<u16> {
        let run = self.owner(role).filter(|run| self.is_alive(*run))?;
        let serving = &self.members.get(&run.node)?.record.serving;
        serving.iter().any(|name| name == role).then_some(run.node)
    }

    /// How many roles a node owns that is there.
    pub fn load(&self, node: u16) -> usize {
        let owners = self.roles.values().filter_map(|seen| seen.record.owner);
        owners.filter(|run| run.node == node && self.is_alive(*run)).count()
    }

    /// The node that is wanted for a role.
    pub fn wished(&self, role: &str) -> Option<u16> {
        Some(self.wishes.get(role)?.record.node)
    }
}
