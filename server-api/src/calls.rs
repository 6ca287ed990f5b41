//! Which call of HTTP each request is.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Request;

/// What somebody may do; each may do what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Ends sessions, takes snapshots, tells initiators and clients of the witness service.
    Operator,
    /// Changes what is served and who may use it, and removes what was kept.
    Administrator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        })
    }
}

/// Methods of HTTP that calls use (RFC 9110 9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Looks, and changes nothing.
    Get,
    /// Does something.
    Post,
    /// Sets what the path names.
    Put,
    /// Ends or removes what the path names.
    Delete,
}

impl Method {
    /// Its word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

/// One call, as the table has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// The request that it is, by its `op`.
    pub verb: &'static str,
    /// Its method.
    pub method: Method,
    /// Its path; a name in braces is a field of the request, the other fields are in the body.
    pub path: &'static str,
    /// Fields of the path that are numbers.
    pub numbers: &'static [&'static str],
    /// Who may call it.
    pub role: Role,
    /// The kind of its answer, by its `reply`.
    pub reply: &'static str,
    /// What it does, in a clause.
    pub summary: &'static str,
}

impl Call {
    /// Whether it changes anything.
    pub fn changes(&self) -> bool {
        self.method != Method::Get
    }

    /// The call that a request is.
    ///
    /// # Panics
    /// Never: each request is in the table, as a test holds.
    pub fn of(request: &Request) -> &'static Call {
        let op = serde_json::to_value(request).ok();
        let op = op.as_ref().and_then(|it| it.get("op")?.as_str()).unwrap_or_default();
        let found = CALLS.iter().find(|call| call.verb == op);
        found.expect("each request has its call")
    }

    /// Names of the fields that are in the path.
    pub fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(field)
    }

    /// The request that a call is, with the fields of its path, as [`find`] gives them, and the body.
    ///
    /// # Errors
    /// What is wrong with it, in a line without anything of what was sent but names of fields.
    pub fn request(&self, fields: Vec<(&str, String)>, body: &[u8]) -> Result<Request, String> {
        let mut all = match body {
            [] => Map::new(),
            body => serde_json::from_slice(body).map_err(|error| format!("the body: {error}"))?,
        };
        if all.contains_key("op") {
            return Err("the body: op is what the path says".to_owned());
        }
        for (name, value) in fields {
            let value = if self.numbers.contains(&name) {
                let number = value.parse::<u64>();
                Value::from(number.map_err(|_| format!("{name} in the path is no number"))?)
            } else {
                Value::from(value)
            };
            if all.insert(name.to_owned(), value).is_some() {
                return Err(format!("the body: {name} is what the path says"));
            }
        }
        all.insert("op".to_owned(), Value::from(self.verb));
        serde_json::from_value(Value::Object(all)).map_err(|error| error.to_string())
    }
}

/// The name in braces that a part of a path is, if it is one.
fn field(part: &'static str) -> Option<&'static str> {
    part.strip_prefix('{')?.strip_suffix('}')
}

/// What stands in a path as it is (RFC 3986 2.3).
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'@').remove(b':');

/// A request as a call of HTTP.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpCall {
    /// Its method.
    pub method: Method,
    /// Its path, encoded.
    pub path: String,
    /// Its body, JSON; nothing if there are no fields for it.
    pub body: Option<String>,
}

impl HttpCall {
    /// The call that a request is.
    pub fn of(request: &Request) -> Self {
        let call = Call::of(request);
        let mut all = match serde_json::to_value(request) {
            Ok(Value::Object(all)) => all,
            _ => Map::new(),
        };
        all.remove("op");
        let mut path = String::new();
        for part in call.path.split('/').skip(1) {
            path.push('/');
            match field(part).and_then(|name| all.remove(name)) {
                None => path.push_str(part),
                Some(Value::String(text)) => {
                    path.extend(utf8_percent_encode(&text, ENCODED));
                }
                Some(number) => path.push_str(&number.to_string()),
            }
        }
        let body = (!all.is_empty()).then(|| Value::Object(all).to_string());
        Self { method: call.method, path, body }
    }
}

/// What is at a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// This, with the fields of its path, decoded.
    Call(T, Vec<(&'static str, String)>),
    /// Something, for these methods only.
    Otherwise(Vec<Method>),
    /// Nothing at all.
    Nothing,
}

/// Looks for what is at a path (without its query) among entries with a method and a path. A path that
/// is not encoded as UTF-8 is the path of nothing.
pub fn find<T>(
    entries: impl Iterator<Item = (Method, &'static str, T)>,
    method: &str,
    path: &str,
) -> Found<T> {
    let mut others = Vec::new();
    for (at, pattern, entry) in entries {
        let Some(fields) = fields(pattern, path) else { continue };
        if at.name() == method {
            return Found::Call(entry, fields);
        }
        others.push(at);
    }
    if others.is_empty() { Found::Nothing } else { Found::Otherwise(others) }
}

/// The fields of a path by a pattern; `None` if it is not one of that pattern.
fn fields(pattern: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut found = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(found),
            (Some(wanted), Some(given)) => match field(wanted) {
                Some(name) if !given.is_empty() => {
                    let value = percent_decode_str(given).decode_utf8().ok()?;
                    found.push((name, value.into_owned()));
                }
                None if wanted == given => {}
                _ => return None,
            },
            _ => return None,
        }
    }
}

/// A row of the table whose path has no numbers.
const fn call(
    verb: &'static str,
    (method, path): (Method, &'static str),
    role: Role,
    reply: &'static str,
    summary: &'static str,
) -> Call {
    Call { verb, method, path, numbers: &[], role, reply, summary }
}

use Method::{Delete, Get, Post, Put};
use Role::{Administrator, Operator, Viewer};

/// All calls, one for each request.
pub const CALLS: [Call; 23] = [
    call("status", (Get, "/v1/status"), Viewer, "status", "How the server is"),
    call("sessions", (Get, "/v1/sessions"), Viewer, "sessions", "All sessions of SMB clients"),
    call("opens", (Get, "/v1/opens"), Viewer, "opens", "All open files and folders"),
    call("locks", (Get, "/v1/locks"), Viewer, "locks", "All byte-range locks"),
    call("shares", (Get, "/v1/shares"), Viewer, "shares", "All shares, with who uses them"),
    call(
        "why",
        (Get, "/v1/why"),
        Viewer,
        "why",
        "Why shares, files and LUNs are slow, each with its cause or that nothing is wrong",
    ),
    call(
        "why-of",
        (Get, "/v1/why/{what}"),
        Viewer,
        "why",
        "Why a share, a file (share/path) or a LUN (target/number) is slow",
    ),
    call(
        "history",
        (Get, "/v1/history/{span}"),
        Viewer,
        "history",
        "What the server did in the last hour, day or month",
    ),
    call("targets", (Get, "/v1/targets"), Viewer, "targets", "All iSCSI targets with their LUNs"),
    call(
        "target-sessions",
        (Get, "/v1/target-sessions"),
        Viewer,
        "target-sessions",
        "All sessions of iSCSI initiators",
    ),
    Call {
        verb: "target-disconnect",
        method: Delete,
        path: "/v1/target-sessions/{session}",
        numbers: &["session"],
        role: Operator,
        reply: "disconnected",
        summary: "Ends the session of an iSCSI initiator, which may log in again",
    },
    Call {
        verb: "lun-resize",
        method: Post,
        path: "/v1/targets/{target}/luns/{lun}/resize",
        numbers: &["lun"],
        role: Operator,
        reply: "lun-resized",
        summary: "Looks again how large the image or device of a LUN is",
    },
    call(
        "witness-list",
        (Get, "/v1/witness"),
        Viewer,
        "witness",
        "Nodes and clients of the witness service",
    ),
    call("witness-state", (Put, "/v1/witness/nodes/{node}"), Operator, "ok", "Says how a node is"),
    call(
        "witness-move",
        (Post, "/v1/witness/move"),
        Operator,
        "witness-moved",
        "Has clients of the witness service go elsewhere",
    ),
    call(
        "disconnect",
        (Post, "/v1/disconnect"),
        Operator,
        "disconnected",
        "Ends sessions with all they have open, or closes one open",
    ),
    call("reload", (Post, "/v1/reload"), Administrator, "ok", "Reads the configuration again"),
    call(
        "upgrade",
        (Post, "/v1/upgrade"),
        Administrator,
        "ok",
        "Has the program that is installed now take over",
    ),
    call(
        "declared-show",
        (Get, "/v1/declared"),
        Administrator,
        "declared",
        "Shares, users and targets as they are declared, without secrets",
    ),
    call(
        "apply",
        (Put, "/v1/declared"),
        Administrator,
        "applied",
        "Makes shares, users and targets what is declared, all or nothing",
    ),
    call(
        "snapshot-create",
        (Post, "/v1/shares/{share}/snapshots"),
        Operator,
        "snapshot-taken",
        "Takes a snapshot of a share",
    ),
    call(
        "snapshot-list",
        (Get, "/v1/shares/{share}/snapshots"),
        Viewer,
        "snapshots",
        "The snapshots of a share, the last first",
    ),
    call(
        "snapshot-delete",
        (Delete, "/v1/shares/{share}/snapshots/{time}"),
        Administrator,
        "ok",
        "Removes a snapshot of a share",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use schemars::schema_for;

    use super::*;
    use crate::{Declared, Reply, Span, Target};

    /// The words that a tag has in the schema of an enumeration.
    fn words<T: JsonSchema>(tag: &str) -> BTreeSet<String> {
        let schema = schema_for!(T).to_value();
        let variants = schema["oneOf"].as_array().expect("one schema for each variant");
        let word =
            |variant: &Value| variant["properties"][tag]["const"].as_str().map(str::to_owned);
        variants.iter().map(|variant| word(variant).expect("a tag")).collect()
    }

    #[test]
    fn every_request_has_one_call_and_every_call_is_a_request() {
        let verbs: Vec<_> = CALLS.iter().map(|call| call.verb.to_owned()).collect();
        let set: BTreeSet<_> = verbs.iter().cloned().collect();
        assert_eq!(set.len(), verbs.len(), "a verb has two calls");
        assert_eq!(set, words::<Request>("op"));
        let places: BTreeSet<_> = CALLS.iter().map(|call| (call.method, call.path)).collect();
        assert_eq!(places.len(), CALLS.len(), "a path has two meanings");
        let replies = words::<Reply>("reply");
        assert!(CALLS.iter().all(|call| replies.contains(call.reply)));
    }

    fn all() -> Vec<Request> {
        let name = || "a/b?ü\u{202e}%2f \"<>".to_owned();
        vec![
            Request::Status,
            Request::Sessions,
            Request::Opens,
            Request::Locks,
            Request::Shares,
            Request::Why,
            Request::WhyOf { what: name() },
            Request::History { span: Span::Month },
            Request::Targets,
            Request::TargetSessions,
            Request::TargetDisconnect { session: u64::MAX },
            Request::LunResize { target: "iqn.2024-01.com.example:web".to_owned(), lun: 7 },
            Request::WitnessList,
            Request::WitnessState { node: name(), state: "up".to_owned() },
            Request::WitnessMove { client: Some(name()), share: None, to: name() },
            Request::Disconnect { target: Target::User(name()) },
            Request::Reload,
            Request::Upgrade,
            Request::DeclaredShow,
            Request::Apply {
                declared: Declared {
                    share: vec![Map::from_iter([("name".to_owned(), Value::from(name()))])],
                    ..Declared::default()
                },
                plan: true,
                cut: false,
                prune: true,
            },
            Request::SnapshotCreate { share: name() },
            Request::SnapshotList { share: "..".to_owned() },
            Request::SnapshotDelete { share: name(), time: "@GMT-2026.11.21-00.38.05".to_owned() },
        ]
    }

    fn at(method: &str, path: &str) -> Found<&'static Call> {
        find(CALLS.iter().map(|call| (call.method, call.path, call)), method, path)
    }

    #[test]
    fn a_request_is_the_same_after_its_way_as_a_call() {
        let requests = all();
        assert_eq!(requests.len(), CALLS.len(), "each kind of request is here");
        for request in requests {
            let HttpCall { method, path, body } = HttpCall::of(&request);
            assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>".contains(&byte)));
            let Found::Call(call, fields) = at(method.name(), &path) else { panic!("{path}") };
            assert_eq!(call, Call::of(&request));
            let back = call.request(fields, body.unwrap_or_default().as_bytes());
            assert_eq!(back, Ok(request), "{path}");
        }
    }

    #[test]
    fn what_is_not_a_call_is_told_apart() {
        assert_eq!(at("PUT", "/v1/sessions"), Found::Otherwise(vec![Get]));
        let both = at("PATCH", "/v1/shares/x/snapshots");
        assert_eq!(both, Found::Otherwise(vec![Post, Get]));
        for path in [
            "",
            "/",
            "/v1",
            "/v1/",
            "/v1/sessions/",
            "/v1/shares//snapshots",
            "/v1/shares/%ff/snapshots",
        ] {
            assert_eq!(at("GET", path), Found::Nothing, "{path}");
        }
        let Found::Call(call, fields) = at("DELETE", "/v1/target-sessions/x") else { panic!() };
        assert_eq!(call.request(fields, b"").unwrap_err(), "session in the path is no number");
        let Found::Call(call, fields) = at("PUT", "/v1/witness/nodes/a") else { panic!() };
        let twice = call.request(fields.clone(), br#"{"state":"up","node":"b"}"#).unwrap_err();
        assert_eq!(twice, "the body: node is what the path says");
        for bad in
            [&b"[]"[..], b"{", b"{}", br#"{"op":"reload"}"#, br#"{"state":"up","x":1}"#, b"7"]
        {
            assert!(call.request(fields.clone(), bad).is_err(), "{bad:?}");
        }
    }
}
