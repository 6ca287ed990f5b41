//! What a cluster keeps in etcd, below `/bulkhead/<cluster>/`.
//!
//! ```text
//!  cluster           ClusterRecord   made once, by `bulkhead cluster init`
//!  member/<node>     Member          goes away with the node's lease
//!  node/<node>       NodeRecord      what an administrator wants of a node; made by `join`
//!  role/<role>       RoleRecord      who owns a role; changes by transactions only
//!  wish/<role>       Wish            where an administrator wants it
//!  fenced/<node>     Fenced          the last run of a node that a fence agent has ended
//!  history/<role>/n  Move            the last moves of a role, a ring of them
//!  identity/<role>   16 bytes in hexadecimal: what the SIDs of a role's users are made of
//! ```
//!
//! What changes with every open, or several times a second, is elsewhere, so that who watches the cluster is not told of it:
//!
//! ```text
//!  /bulkhead.store/<cluster>/<role>/        persistent opens of its shares
//!  /bulkhead.store/<cluster>/<role>.units/  reservations of its logical units
//!  /bulkhead.store/<cluster>/<role>.peers   connections of its clients, a line for each
//!  /bulkhead.pulse/<cluster>/<node>         nothing; set again and again by a run that goes on
//! ```
//!
//! Records are JSON objects. `v` is the version that wrote one and `min` the oldest version that may
//! read it: a reader takes what it knows of a newer record, and refuses one that says that this is
//! not enough. So two versions that follow each other run in one cluster.

use std::net::IpAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of the records that this program writes.
pub const VERSION: u32 = 1;

/// Moves of a role that are remembered.
pub const HISTORY: u64 = 200;

/// A record cannot be used; the text says which and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is no record of this kind.
    #[error("{key} is not a record of a cluster: {why}")]
    Malformed {
        /// Its key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// It was written by a version whose records this one cannot read.
    #[error("{key} was written by a newer version (format {version}): upgrade this node")]
    TooNew {
        /// Its key.
        key: String,
        /// The oldest format that may read it.
        version: u32,
    },
}

#[derive(Deserialize)]
struct Versions {
    v: u32,
    #[serde(default)]
    min: u32,
}

/// Something that a key of a cluster holds.
pub trait Record: Serialize + DeserializeOwned {
    /// Its bytes, with the version that writes them.
    fn to_bytes(&self) -> Vec<u8> {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("v".into(), VERSION.into());
            object.insert("min".into(), VERSION.into());
        }
        value.to_string().into_bytes()
    }

    /// Reads what stands under a key.
    ///
    /// # Errors
    /// [`RecordError`]
    fn parse(key: &str, bytes: &[u8]) -> Result<Self, RecordError> {
        let malformed = |error: serde_json::Error| RecordError::Malformed {
            key: key.to_owned(),
            why: error.to_string(),
        };
        if !bytes.starts_with(b"{") {
            let why = "it is no JSON object".to_owned();
            return Err(RecordError::Malformed { key: key.to_owned(), why });
        }
        let versions: Versions = serde_json::from_slice(bytes).map_err(malformed)?;
        if versions.min > VERSION || versions.v == 0 {
            return Err(RecordError::TooNew { key: key.to_owned(), version: versions.min });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }
}

/// One run of a node, from when it joins until it has left or was counted dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run {
    /// The node's number.
    pub node: u16,
    /// The lease of this run, which etcd gives once.
    pub lease: i64,
}

/// What a cluster is called, and since when it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Its name.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub made: u64,
}

/// How clients reach a node itself, whatever it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Its name for them.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

/// A node that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The lease of its run.
    pub lease: i64,
    /// Its name.
    pub name: String,
    /// Its version of the program.
    pub version: String,
    /// Roles that it is configured for.
    pub roles: Vec<String>,
    /// Roles that it could not serve lately.
    #[serde(default)]
    pub unfit: Vec<String>,
    /// Roles that it serves now, beyond owning them.
    #[serde(default)]
    pub serving: Vec<String>,
    /// Where it tells clients of other nodes, if it does.
    #[serde(default)]
    pub reach: Option<Reach>,
    /// After so many milliseconds without a pulse of this run its gate is closed, and it may be counted
    /// dead. None if it has no pulse: then only its lease says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<u64>,
}

/// What an administrator, or the node's own behaviour, makes of a node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It takes roles.
    #[default]
    Up,
    /// It keeps the roles it has and takes no more.
    Paused,
    /// It gives its roles away as soon as another takes them.
    Draining,
    /// It was lost too often in a short time: as draining, until it is resumed.
    Quarantined,
}

/// What is remembered of a node whether it is there or not.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Whether it takes roles.
    pub standing: Standing,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// The lease of its run, as long as it has not left in an orderly way.
    #[serde(default)]
    pub lease: i64,
    /// When it was lost lately, in milliseconds since 1970.
    #[serde(default)]
    pub lost: Vec<u64>,
}

/// Who owns a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleRecord {
    /// The run that owns it; none if it was given up.
    pub owner: Option<Run>,
    /// Counts the changes of the owner.
    pub generation: u64,
    /// When it changed, in milliseconds since 1970.
    pub since: u64,
    /// Why.
    pub reason: String,
}

/// Where an administrator wants a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The node.
    pub node: u16,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// The last run of a node that a fence agent has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// The lease of that run.
    pub lease: i64,
}

/// A change of a role's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The role's generation from then on.
    pub generation: u64,
    /// From which node.
    pub from: Option<u16>,
    /// To which node.
    pub to: Option<u16>,
    /// Why.
    pub reason: String,
}

impl Record for ClusterRecord {}
impl Record for Member {}
impl Record for NodeRecord {}
impl Record for RoleRecord {}
impl Record for Wish {}
impl Record for Fenced {}
impl Record for Move {}

/// The keys of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
    stores: String,
    pulses: String,
}

impl Keys {
    /// Those of the cluster with this name.
    pub fn new(cluster: &str) -> Self {
        Self {
            prefix: format!("/bulkhead/{cluster}/"),
            stores: format!("/bulkhead.store/{cluster}/"),
            pulses: format!("/bulkhead.pulse/{cluster}/"),
        }
    }

    /// What all of them begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key `cluster`, which makes it one.
    pub fn cluster(&self) -> String {
        format!("{}cluster", self.prefix)
    }

    /// The key `member/<node>` of a node that is there.
    pub fn member(&self, node: u16) -> String {
        format!("{}member/{node}", self.prefix)
    }

    /// What the keys of all nodes' pulses begin with.
    pub fn pulses(&self) -> &str {
        &self.pulses
    }

    /// The key of a node's pulse: it goes away with the lease of the run that it is of.
    pub fn pulse(&self, node: u16) -> String {
        format!("{}{node}", self.pulses)
    }

    /// The key `node/<node>` of a node that was added.
    pub fn node(&self, node: u16) -> String {
        format!("{}node/{node}", self.prefix)
    }

    /// The key `role/<role>` with the role's owner.
    pub fn role(&self, role: &str) -> String {
        format!("{}role/{role}", self.prefix)
    }

    /// The key `wish/<role>` of a role that is to move.
    pub fn wish(&self, role: &str) -> String {
        format!("{}wish/{role}", self.prefix)
    }

    /// The key `fenced/<node>` of a node that was ended.
    pub fn fenced(&self, node: u16) -> String {
        format!("{}fenced/{node}", self.prefix)
    }

    /// `history/<role>/n`, for the change to a generation.
    pub fn history(&self, role: &str, generation: u64) -> String {
        format!("{}history/{role}/{:03}", self.prefix, generation % HISTORY)
    }

    /// What the keys of a role's history, or of all, begin with.
    pub fn histories(&self, role: Option<&str>) -> String {
        let role = role.map(|role| format!("{role}/")).unwrap_or_default();
        format!("{}history/{role}", self.prefix)
    }

    /// The key `identity/<role>` for the SIDs of users.
    pub fn identity(&self, role: &str) -> String {
        format!("{}identity/{role}", self.prefix)
    }

    /// What the name of the state store of a role's shares is.
    pub fn store(&self, role: &str) -> String {
        format!("{}{role}", self.stores)
    }

    /// What the name of the state store of a role's logical units is. No role has a dot in its name.
    pub fn units(&self, role: &str) -> String {
        format!("{}{role}.units", self.stores)
    }

    /// The key of the connections that a role's clients have.
    pub fn peers(&self, role: &str) -> String {
        format!("{}{role}.peers", self.stores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_the_next_version_is_read_as_far_as_it_allows() {
        let wish = Wish { node: 3, reason: "disk".into() };
        assert_eq!(Wish::parse("k", &wish.to_bytes()), Ok(wish.clone()));
        let newer = br#"{"v":2,"min":1,"node":3,"reason":"disk","colour":"red"}"#;
        assert_eq!(Wish::parse("k", newer), Ok(wish));
        let too_new = Wish::parse("k", br#"{"v":3,"min":2,"node":3}"#).unwrap_err();
        assert!(too_new.to_string().contains("upgrade this node"), "{too_new}");
        for bad in [&b"{}"[..], b"x", br#"{"v":1}"#, br#"{"v":1,"node":70000}"#, b"[1]"] {
            let error = Wish::parse("wish/a", bad).unwrap_err();
            assert!(error.to_string().starts_with("wish/a is not a record"), "{error}");
        }
        assert!(Wish::parse("k", br#"{"v":0,"node":1}"#).is_err());
    }

    /// As version 1 writes them: who changes them changes the version.
    #[test]
    fn records_have_the_bytes_that_they_had() {
        let role = RoleRecord {
            owner: Some(Run { node: 2, lease: 7 }),
            generation: 5,
            since: 9,
            reason: "r".into(),
        };
        let text =
            r#"{"generation":5,"min":1,"owner":{"lease":7,"node":2},"reason":"r","since":9,"v":1}"#;
        assert_eq!(String::from_utf8(role.to_bytes()).unwrap(), text);
        let node = r#"{"lease":0,"lost":[],"min":1,"reason":"","standing":"up","v":1}"#;
        assert_eq!(String::from_utf8(NodeRecord::default().to_bytes()).unwrap(), node);
    }

    #[test]
    fn a_history_is_a_ring() {
        let keys = Keys::new("c");
        assert_eq!(keys.history("vms", 1), "/bulkhead/c/history/vms/001");
        assert_eq!(keys.history("vms", 1), keys.history("vms", 1 + HISTORY));
        assert!(keys.history("vms", 3).starts_with(&keys.histories(Some("vms"))));
    }
}
