//! Calls that are the interface's own: who is who, tokens, what was changed, what changes.

use control_socket::{Method, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Somebody who wants a token.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// Their name.
    pub user: String,
    /// Their password.
    pub password: String,
    /// How long the token is to be good, in hours.
    #[serde(default = "half_a_day")]
    pub hours: u32,
}

fn half_a_day() -> u32 {
    12
}

/// A token that is wanted by somebody who is known.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// How long it is to be good, in hours.
    pub hours: u32,
    /// What it is good for, at most what the caller may do; that without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// What it is for, at most 200 bytes.
    #[serde(default)]
    pub note: String,
}

/// A token that was made: it is told here and nowhere else.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct TokenMade {
    /// What is to be shown, behind `Authorization: Bearer`.
    pub token: String,
    /// Its number, by which it is revoked.
    pub id: u64,
    /// What it is good for.
    pub role: Role,
    /// Until when, in seconds since 1970.
    pub expires: u64,
}

/// A token that there is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TokenInfo {
    /// Its number.
    pub id: u64,
    /// Whose it is.
    pub user: String,
    /// What it is good for at most.
    pub role: Role,
    /// Since when there is it, in seconds since 1970.
    pub created: u64,
    /// Until when it is good, in seconds since 1970.
    pub expires: u64,
    /// What it is for.
    pub note: String,
}

/// Tokens that are good.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TokenList {
    /// By number; an administrator's has those of all.
    pub tokens: Vec<TokenInfo>,
}

/// A token that is good no more.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Revoked {
    /// Its number.
    pub id: u64,
}

/// Who the caller is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WhoAmI {
    /// Their name.
    pub user: String,
    /// What they may do now.
    pub role: Role,
    /// Where they ask from.
    pub from: String,
    /// What they have reached, as its description is titled.
    pub server: String,
}

/// What was changed, and by whom.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AuditRecords {
    /// Records of changes, the last first: time, who, role, from, what, before, after, result.
    pub records: Vec<Value>,
}

/// A call of the interface's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnCall {
    /// Shows a password, and is given a token.
    LogIn,
    /// Asks who one is.
    WhoAmI,
    /// Lists tokens.
    Tokens,
    /// Makes a token.
    NewToken,
    /// Revokes a token.
    Revoke,
    /// Lists changes.
    Audit,
    /// Follows a list.
    Events,
    /// Reads metrics.
    Metrics,
    /// Reads the description of all calls.
    Description,
}

/// A row of the table of own calls.
#[derive(Debug)]
pub struct OwnRow {
    /// What it is.
    pub call: OwnCall,
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// Who may call it; `None` is everybody.
    pub role: Option<Role>,
    /// What it does, in a clause.
    pub summary: &'static str,
}

const fn row(
    call: OwnCall,
    (method, path): (Method, &'static str),
    role: Option<Role>,
    summary: &'static str,
) -> OwnRow {
    OwnRow { call, method, path, role, summary }
}

use Method::{Delete, Get, Post};
const VIEWER: Option<Role> = Some(Role::Viewer);

/// All calls that are no request of the server.
pub const OWN: [OwnRow; 9] = [
    row(OwnCall::LogIn, (Post, "/v1/login"), None, "Gives a token for a password"),
    row(OwnCall::WhoAmI, (Get, "/v1/whoami"), VIEWER, "Who the caller is, and what they may do"),
    row(
        OwnCall::Tokens,
        (Get, "/v1/tokens"),
        VIEWER,
        "Tokens of the caller; an administrator sees all",
    ),
    row(OwnCall::NewToken, (Post, "/v1/tokens"), VIEWER, "Makes a token for the caller"),
    row(
        OwnCall::Revoke,
        (Delete, "/v1/tokens/{id}"),
        VIEWER,
        "Revokes a token of the caller; an administrator any",
    ),
    row(
        OwnCall::Audit,
        (Get, "/v1/audit"),
        Some(Role::Administrator),
        "The last changes, at most 1000",
    ),
    row(
        OwnCall::Events,
        (Get, "/v1/events/{list}"),
        VIEWER,
        "Follows a list: an event each time that it has changed",
    ),
    row(
        OwnCall::Metrics,
        (Get, "/v1/metrics"),
        VIEWER,
        "The page of metrics, as Prometheus reads it",
    ),
    row(OwnCall::Description, (Get, "/v1/openapi.json"), None, "This description"),
];
