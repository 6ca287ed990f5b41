//! Objects that are declared: shares, users and targets as the configuration file writes them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A table of the configuration: its keys with their values.
pub type Object = Map<String, Value>;

/// Objects, as `[[share]]`, `[[user]]` and `[[target]]` of the server's configuration have them. A user
/// who is there keeps the password that they have where none is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Declared {
    /// Users of shares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<Object>,
    /// Shares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub share: Vec<Object>,
    /// iSCSI targets with their LUNs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<Object>,
}

impl Declared {
    /// The objects of a kind.
    pub fn of(&self, kind: ObjectKind) -> &[Object] {
        match kind {
            ObjectKind::User => &self.user,
            ObjectKind::Share => &self.share,
            ObjectKind::Target => &self.target,
        }
    }

    /// The objects of a kind, to be added to.
    pub fn of_mut(&mut self, kind: ObjectKind) -> &mut Vec<Object> {
        match kind {
            ObjectKind::User => &mut self.user,
            ObjectKind::Share => &mut self.share,
            ObjectKind::Target => &mut self.target,
        }
    }
}

/// What an object is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A user of shares.
    User,
    /// A share.
    Share,
    /// An iSCSI target.
    Target,
}

/// What is done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is new.
    Create,
    /// Some of its keys have other values.
    Change,
    /// It goes.
    Remove,
    /// It is as it was.
    Nothing,
}

/// What was done, or would be, with one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectChange {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// What is done.
    pub action: Action,
    /// Keys with the values before and after; null where there is none.
    pub difference: BTreeMap<String, [Value; 2]>,
    /// Opens, sessions or initiators that use it now.
    pub users: u64,
}
