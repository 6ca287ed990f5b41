//! What an administrator asks of a cluster: by its records alone, so it is done from any node, also when
//! none runs.

use std::collections::BTreeMap;

use serde::Serialize;
use state_store::etcd::{
    CallError, Client,
    wire::{
        CREATE, Compare, DeleteRequest, EQUAL, MOD, Op, PutRequest, RequestOp, TxnRequest, With,
    },
};

use crate::{
    driver::wall,
    placement::may_take,
    record::{ClusterRecord, Keys, Move, NodeRecord, Record, RecordError, Standing, Wish},
    view::View,
    watch::look,
};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// etcd does not answer, or refuses.
    #[error(transparent)]
    Etcd(#[from] CallError),
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It cannot be done as things are; the text says why.
    #[error("{0}")]
    Refused(String),
    /// Somebody else has changed the same at the same time.
    #[error("others change the same record all the time; look at the cluster, and try again")]
    Meanwhile,
}

/// How often a change is decided anew because a node has written its own record meanwhile.
const TRIES: usize = 8;

fn refuse<T>(why: impl Into<String>) -> Result<T, AdminError> {
    Err(AdminError::Refused(why.into()))
}

/// A cluster, as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its name.
    pub cluster: String,
    /// Its nodes by their numbers.
    pub nodes: BTreeMap<u16, NodeStatus>,
    /// Its roles by their names.
    pub roles: BTreeMap<String, RoleStatus>,
}

/// A node, as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name, if it is there.
    pub name: Option<String>,
    /// `up`, `paused`, `draining`, `quarantined`, or `down` if it is not there.
    pub state: &'static str,
    /// Why, if there is a reason.
    pub reason: String,
    /// Its version of the program, if it is there.
    pub version: Option<String>,
    /// Roles that it could not serve lately.
    pub unfit: Vec<String>,
    /// How often it was lost in the last ten minutes before it came the last time.
    pub lost: usize,
}

/// A role, as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleStatus {
    /// The node that owns it.
    pub node: Option<u16>,
    /// `serving`, `starting`, `lost` if its owner is not there, `free` if nobody owns it.
    pub state: &'static str,
    /// Counts the changes of its owner.
    pub generation: u64,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// Why it is there.
    pub reason: String,
    /// Where an administrator wants it, if it is not there.
    pub wanted: Option<u16>,
}

/// The name of a standing.
fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Up => "up",
        Standing::Paused => "paused",
        Standing::Draining => "draining",
        Standing::Quarantined => "quarantined",
    }
}

/// How a cluster is.
///
/// # Errors
/// [`AdminError`]
pub async fn status(client: &Client, keys: &Keys) -> Result<Status, AdminError> {
    let cluster = cluster(client, keys).await?;
    let view = look(client, keys).await?;
    let numbers = view.nodes.keys().chain(view.members.keys()).copied();
    let nodes = numbers.map(|number| (number, node_status(&view, number))).collect();
    let configured = view.members.values().flat_map(|seen| seen.record.roles.iter());
    let roles = view.roles.keys().chain(configured).chain(view.wishes.keys());
    let roles = roles.map(|role| (role.clone(), role_status(&view, role))).collect();
    Ok(Status { cluster: cluster.name, nodes, roles })
}

fn node_status(view: &View, number: u16) -> NodeStatus {
    let member = view.members.get(&number).map(|seen| &seen.record);
    let node = view.nodes.get(&number).map(|seen| seen.record.clone()).unwrap_or_default();
    let state = if member.is_some() { name(node.standing) } else { "down" };
    NodeStatus {
        name: member.map(|member| member.name.clone()),
        state,
        reason: node.reason,
        version: member.map(|member| member.version.clone()),
        unfit: member.map(|member| member.unfit.clone()).unwrap_or_default(),
        lost: node.lost.len(),
    }
}

fn role_status(view: &View, role: &str) -> RoleStatus {
    let record = view.roles.get(role).map(|seen| &seen.record);
    let owner = view.owner(role);
    let state = match owner {
        None => "free",
        Some(run) if !view.is_alive(run) => "lost",
        Some(_) if view.server(role).is_some() => "serving",
        Some(_) => "starting",
    };
    RoleStatus {
        node: owner.map(|run| run.node),
        state,
        generation: record.map_or(0, |record| record.generation),
        since: record.map_or(0, |record| record.since),
        reason: record.map(|record| record.reason.clone()).unwrap_or_default(),
        wanted: view.wished(role),
    }
}

/// The record of the cluster.
///
/// # Errors
/// [`AdminError::Refused`] if there is none.
pub async fn cluster(client: &Client, keys: &Keys) -> Result<ClusterRecord, AdminError> {
    let key = keys.cluster();
    match client.get(key.as_bytes()).await?.kvs.pop() {
        Some(kv) => Ok(ClusterRecord::parse(&key, &kv.value)?),
        None => refuse("there is no such cluster yet: run `bulkhead cluster init` on one node"),
    }
}

fn key_at(key: &str, target: i32, with: With) -> Compare {
    Compare { result: EQUAL, target, key: key.as_bytes().to_vec(), with: Some(with) }
}

fn put(key: &str, value: Vec<u8>) -> RequestOp {
    let put = PutRequest { key: key.as_bytes().to_vec(), value, lease: 0 };
    RequestOp { request: Some(Op::Put(put)) }
}

async fn carry_out(
    client: &Client,
    compare: Vec<Compare>,
    success: Vec<RequestOp>,
) -> Result<bool, AdminError> {
    let request = TxnRequest { compare, success, failure: Vec::new() };
    Ok(client.txn(&request).await?.succeeded)
}

/// Makes a cluster.
///
/// # Errors
/// [`AdminError::Refused`] if there is one of that name.
pub async fn init(client: &Client, keys: &Keys, name: &str) -> Result<(), AdminError> {
    let record = ClusterRecord { name: name.to_owned(), made: wall() };
    let key = keys.cluster();
    let absent = vec![key_at(&key, CREATE, With::CreateRevision(0))];
    match carry_out(client, absent, vec![put(&key, record.to_bytes())]).await? {
        true => Ok(()),
        false => refuse(format!("there is a cluster {name} in this etcd already")),
    }
}

/// Adds a node to a cluster. One that was added is added already.
///
/// # Errors
/// [`AdminError`]
pub async fn join(client: &Client, keys: &Keys, node: u16) -> Result<(), AdminError> {
    cluster(client, keys).await?;
    let key = keys.node(node);
    let absent = vec![key_at(&key, CREATE, With::CreateRevision(0))];
    carry_out(client, absent, vec![put(&key, NodeRecord::default().to_bytes())]).await?;
    Ok(())
}

/// Takes a node out of a cluster for good.
///
/// # Errors
/// [`AdminError::Refused`] if it is there, or owns a role still.
pub async fn remove(client: &Client, keys: &Keys, node: u16) -> Result<(), AdminError> {
    let view = look(client, keys).await?;
    let Some(seen) = view.nodes.get(&node) else {
        return refuse(format!("the cluster has no node {node}"));
    };
    if view.members.contains_key(&node) {
        return refuse(format!("node {node} runs: drain it and stop it first"));
    }
    let owned =
        view.roles.iter().find(|(_, role)| role.record.owner.is_some_and(|o| o.node == node));
    if let Some((role, _)) = owned {
        return refuse(format!("role {role} is still node {node}'s: no other node could take it"));
    }
    let key = keys.node(node);
    let as_seen = vec![
        key_at(&key, MOD, With::ModRevision(seen.revision)),
        key_at(&keys.member(node), CREATE, With::CreateRevision(0)),
    ];
    let delete = DeleteRequest { key: key.into_bytes() };
    let delete = vec![RequestOp { request: Some(Op::Delete(delete)) }];
    carry_out(client, as_seen, delete).await?.then_some(()).ok_or(AdminError::Meanwhile)
}

/// Has a node take roles, keep what it has, or give it away.
///
/// # Errors
/// [`AdminError`]
pub async fn stand(
    client: &Client,
    keys: &Keys,
    node: u16,
    standing: Standing,
    reason: &str,
) -> Result<(), AdminError> {
    // A node that comes back writes its losses to the same record, which is no reason to refuse.
    for _ in 0..TRIES {
        let view = look(client, keys).await?;
        let Some(seen) = view.nodes.get(&node) else {
            return refuse(format!("the cluster has no node {node}"));
        };
        let lost = match standing {
            // Whoever resumes it has looked at it.
            Standing::Up => Vec::new(),
            _ => seen.record.lost.clone(),
        };
        let reason = reason.to_owned();
        let record = NodeRecord { standing, reason, lost, ..seen.record.clone() };
        let key = keys.node(node);
        let as_seen = vec![key_at(&key, MOD, With::ModRevision(seen.revision))];
        if carry_out(client, as_seen, vec![put(&key, record.to_bytes())]).await? {
            return Ok(());
        }
    }
    Err(AdminError::Meanwhile)
}

/// Moves a role to a node: its owner gives it up, and that node takes it.
///
/// # Errors
/// [`AdminError::Refused`] if the node cannot take it, with the reason.
pub async fn move_role(
    client: &Client,
    keys: &Keys,
    role: &str,
    node: u16,
    reason: &str,
) -> Result<(), AdminError> {
    let view = look(client, keys).await?;
    let known = view.members.values().any(|seen| seen.record.roles.iter().any(|r| r == role));
    if !known && !view.roles.contains_key(role) {
        return refuse(format!("no node is configured for a role {role}"));
    }
    if view.owner(role).is_some_and(|run| run.node == node && view.is_alive(run)) {
        return refuse(format!("node {node} has role {role} already"));
    }
    if !may_take(&view, role, node) {
        let status = node_status(&view, node);
        let why = match status.state {
            "up" if status.unfit.iter().any(|unfit| unfit == role) => "could not serve it lately",
            "up" => "is not configured for it",
            state => state,
        };
        return refuse(format!("node {node} cannot take role {role}: it is {why}"));
    }
    let wish = Wish { node, reason: reason.to_owned() };
    carry_out(client, Vec::new(), vec![put(&keys.wish(role), wish.to_bytes())]).await?;
    Ok(())
}

/// The last moves of a role, or of all, the oldest first, each with the role's name.
///
/// # Errors
/// [`AdminError`]
pub async fn history(
    client: &Client,
    keys: &Keys,
    role: Option<&str>,
) -> Result<Vec<(String, Move)>, AdminError> {
    let prefix = keys.histories(role);
    let begin = keys.histories(None).len();
    let (all, _) = client.list(prefix.as_bytes()).await?;
    let mut moves = Vec::new();
    for kv in all {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        let name = key[begin..].rsplit_once('/').map_or("", |(name, _)| name).to_owned();
        moves.push((name, Move::parse(&key, &kv.value)?));
    }
    moves.sort_by_key(|(name, moved)| (moved.at, name.clone(), moved.generation));
    Ok(moves)
}

/// What the SIDs of a role's users are made of: the same on all nodes. `made` is taken if there is none
/// yet.
///
/// # Errors
/// [`AdminError`]
pub async fn identity(
    client: &Client,
    keys: &Keys,
    role: &str,
    made: [u8; 16],
) -> Result<[u8; 16], AdminError> {
    let key = keys.identity(role);
    let text: String = made.iter().map(|byte| format!("{byte:02x}")).collect();
    let absent = vec![key_at(&key, CREATE, With::CreateRevision(0))];
    carry_out(client, absent, vec![put(&key, text.into_bytes())]).await?;
    let found = client.get(key.as_bytes()).await?.kvs.pop().unwrap_or_default();
    let text = String::from_utf8_lossy(&found.value).into_owned();
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..16).map(byte).collect();
    let bytes = bytes.filter(|_| text.len() == 32).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| {
        let why = "it is not 32 hexadecimal digits".to_owned();
        AdminError::Record(RecordError::Malformed { key, why })
    })
}
