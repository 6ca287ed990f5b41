//! Which call of HTTP each request is.

use control_socket::{Call, Interface, Method, Role};

use crate::{Reply, Request};

/// The interface of a file server.
#[derive(Debug)]
pub struct Server;

impl Interface for Server {
    type Request = Request;
    type Reply = Reply;
    const TITLE: &'static str = "Bulkhead file server";
    const CALLS: &'static [Call] = &CALLS;
    const FOLLOWED: &'static [&'static str] = &["sessions", "opens"];
}

use Method::{Delete, Get, Post, Put};
use Role::{Administrator, Operator, Viewer};

/// All calls, one for each request.
pub const CALLS: [Call; 23] = [
    Call::new("status", (Get, "/v1/status"), Viewer, "status", "How the server is"),
    Call::new("sessions", (Get, "/v1/sessions"), Viewer, "sessions", "All sessions of SMB clients"),
    Call::new("opens", (Get, "/v1/opens"), Viewer, "opens", "All open files and folders"),
    Call::new("locks", (Get, "/v1/locks"), Viewer, "locks", "All byte-range locks"),
    Call::new("shares", (Get, "/v1/shares"), Viewer, "shares", "All shares, with who uses them"),
    Call::new(
        "why",
        (Get, "/v1/why"),
        Viewer,
        "why",
        "Why shares, files and LUNs are slow, each with its cause or that nothing is wrong",
    ),
    Call::new(
        "why-of",
        (Get, "/v1/why/{what}"),
        Viewer,
        "why",
        "Why a share, a file (share/path) or a LUN (target/number) is slow",
    ),
    Call::new(
        "history",
        (Get, "/v1/history/{span}"),
        Viewer,
        "history",
        "What the server did in the last hour, day or month",
    ),
    Call::new(
        "targets",
        (Get, "/v1/targets"),
        Viewer,
        "targets",
        "All iSCSI targets with their LUNs",
    ),
    Call::new(
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
    Call::new(
        "witness-list",
        (Get, "/v1/witness"),
        Viewer,
        "witness",
        "Nodes and clients of the witness service",
    ),
    Call::new(
        "witness-state",
        (Put, "/v1/witness/nodes/{node}"),
        Operator,
        "ok",
        "Says how a node is",
    ),
    Call::new(
        "witness-move",
        (Post, "/v1/witness/move"),
        Operator,
        "witness-moved",
        "Has clients of the witness service go elsewhere",
    ),
    Call::new(
        "disconnect",
        (Post, "/v1/disconnect"),
        Operator,
        "disconnected",
        "Ends sessions with all they have open, or closes one open",
    ),
    Call::new("reload", (Post, "/v1/reload"), Administrator, "ok", "Reads the configuration again"),
    Call::new(
        "upgrade",
        (Post, "/v1/upgrade"),
        Administrator,
        "ok",
        "Has the program that is installed now take over",
    ),
    Call::new(
        "declared-show",
        (Get, "/v1/declared"),
        Administrator,
        "declared",
        "Shares, users and targets as they are declared, without secrets",
    ),
    Call::new(
        "apply",
        (Put, "/v1/declared"),
        Administrator,
        "applied",
        "Makes shares, users and targets what is declared, all or nothing",
    ),
    Call::new(
        "snapshot-create",
        (Post, "/v1/shares/{share}/snapshots"),
        Operator,
        "snapshot-taken",
        "Takes a snapshot of a share",
    ),
    Call::new(
        "snapshot-list",
        (Get, "/v1/shares/{share}/snapshots"),
        Viewer,
        "snapshots",
        "The snapshots of a share, the last first",
    ),
    Call::new(
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

    use control_socket::{Found, HttpCall, find};
    use schemars::{JsonSchema, schema_for};
    use serde_json::{Map, Value};

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
            let HttpCall { method, path, body } = HttpCall::of::<Server>(&request).unwrap();
            assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>".contains(&byte)));
            let Found::Call(call, fields) = at(method.name(), &path) else { panic!("{path}") };
            assert_eq!(Some(call), Call::of::<Server>(&request));
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
        assert_eq!(
            call.request::<Request>(fields, b"").unwrap_err(),
            "session in the path is no number"
        );
        let Found::Call(call, fields) = at("PUT", "/v1/witness/nodes/a") else { panic!() };
        let twice =
            call.request::<Request>(fields.clone(), br#"{"state":"up","node":"b"}"#).unwrap_err();
        assert_eq!(twice, "the body: node is what the path says");
        for bad in
            [&b"[]"[..], b"{", b"{}", br#"{"op":"reload"}"#, br#"{"state":"up","x":1}"#, b"7"]
        {
            assert!(call.request::<Request>(fields.clone(), bad).is_err(), "{bad:?}");
        }
    }
}
