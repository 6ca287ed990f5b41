//! Which call of HTTP each request is.

use control_socket::{Call, Interface, Method, Role};

use crate::{Reply, Request};

/// The interface of a VM host.
#[derive(Debug)]
pub struct VmHost;

impl Interface for VmHost {
    type Request = Request;
    type Reply = Reply;
    const TITLE: &'static str = "Bulkhead VM host";
    const CALLS: &'static [Call] = &CALLS;
    const FOLLOWED: &'static [&'static str] = &["list"];
}

use Method::{Delete, Get, Post, Put};
use Role::{Administrator, Operator, Viewer};

/// All calls, one for each request that is not in [`ONLY_HERE`].
pub const CALLS: [Call; 16] = [
    Call::new("list", (Get, "/v1/vms"), Viewer, "list", "All VMs"),
    Call::new("show", (Get, "/v1/vms/{name}"), Viewer, "show", "Everything about one VM"),
    Call::new(
        "why",
        (Get, "/v1/why"),
        Viewer,
        "why",
        "Why disks of VMs are slow, each with its cause or that nothing is wrong",
    ),
    Call::new(
        "why-of",
        (Get, "/v1/why/{what}"),
        Viewer,
        "why",
        "Why a VM, a disk of one (VM/number) or a disk's location is slow",
    ),
    Call::new("start", (Post, "/v1/vms/{name}/start"), Operator, "ok", "Starts a VM that is off"),
    Call::new(
        "stop",
        (Post, "/v1/vms/{name}/stop"),
        Operator,
        "ok",
        "Presses a VM's power button and waits, or ends it at once",
    ),
    Call::new(
        "resume",
        (Post, "/v1/vms/{name}/resume"),
        Operator,
        "ok",
        "Has a VM run on that its watchdog has paused",
    ),
    Call::new(
        "memory",
        (Put, "/v1/vms/{name}/memory"),
        Operator,
        "ok",
        "Leaves the guest of a running VM with so much memory",
    ),
    Call::new(
        "move",
        (Post, "/v1/vms/{name}/move"),
        Operator,
        "moved",
        "Moves a running VM to another host",
    ),
    Call::new(
        "cancel-move",
        (Delete, "/v1/vms/{name}/move"),
        Operator,
        "ok",
        "Calls a move off that is under way",
    ),
    Call::new("create", (Post, "/v1/vms"), Administrator, "ok", "Takes a VM into the host's state"),
    Call::new(
        "check",
        (Post, "/v1/checks"),
        Administrator,
        "ok",
        "Says whether a VM would be taken in, without doing it",
    ),
    Call::new(
        "edit",
        (Put, "/v1/vms"),
        Administrator,
        "ok",
        "Replaces the definition of a VM by another of the same name and id",
    ),
    Call::new(
        "rename",
        (Post, "/v1/vms/{name}/rename"),
        Administrator,
        "ok",
        "Gives a VM that is off another name",
    ),
    Call::new(
        "delete",
        (Delete, "/v1/vms/{name}"),
        Administrator,
        "ok",
        "Forgets a VM that is off; its disks stay",
    ),
    Call::new(
        "resolve",
        (Post, "/v1/vms/{name}/resolve"),
        Administrator,
        "ok",
        "Decides by hand about a VM that waits for its peer after a broken move",
    ),
];

/// Requests that are no calls, each with the reason.
pub const ONLY_HERE: [(&str, &str); 3] = [
    ("console", "the connection carries the console's bytes both ways from then on"),
    ("quiesce", "it lasts as long as its connection, so that nobody's guest stays frozen"),
    ("thaw", "it ends what its own connection has begun"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use control_socket::{Found, HttpCall, find};
    use schemars::{JsonSchema, schema_for};
    use serde_json::Value;

    use super::*;
    use crate::{MoveOptions, VmDefinition};

    /// The words that a tag has in the schema of an enumeration.
    fn words<T: JsonSchema>(tag: &str) -> BTreeSet<String> {
        let schema = schema_for!(T).to_value();
        let variants = schema["oneOf"].as_array().expect("one schema for each variant");
        let word =
            |variant: &Value| variant["properties"][tag]["const"].as_str().map(str::to_owned);
        variants.iter().map(|variant| word(variant).expect("a tag")).collect()
    }

    #[test]
    fn every_request_is_one_call_or_has_a_reason() {
        let verbs = CALLS.iter().map(|call| call.verb);
        let verbs: Vec<_> =
            verbs.chain(ONLY_HERE.map(|(verb, _)| verb)).map(str::to_owned).collect();
        let set: BTreeSet<_> = verbs.iter().cloned().collect();
        assert_eq!(set.len(), verbs.len(), "a verb is there twice");
        assert_eq!(set, words::<Request>("op"));
        let places: BTreeSet<_> = CALLS.iter().map(|call| (call.method, call.path)).collect();
        assert_eq!(places.len(), CALLS.len(), "a path has two meanings");
        let replies = words::<Reply>("reply");
        assert!(CALLS.iter().all(|call| replies.contains(call.reply)));
        let followed = VmHost::FOLLOWED.iter();
        let call = |verb: &&str| CALLS.iter().find(|call| call.verb == *verb);
        assert!(followed.map(call).all(|call| call.is_some_and(|call| call.fields().count() == 0)));
    }

    #[test]
    fn a_request_is_the_same_after_its_way_as_a_call() {
        let name = || "a-vm.1".parse().unwrap();
        let definition: VmDefinition = toml::from_str("name = \"a\"\nmemory_mib = 64\n").unwrap();
        let options = MoveOptions { to: "host:1".to_owned(), ..MoveOptions::default() };
        let all = [
            Request::List,
            Request::Show { name: name() },
            Request::Why,
            Request::WhyOf { what: "smb://u@h/s/ü?%2f.vhdx".to_owned() },
            Request::Start { name: name() },
            Request::Stop { name: name(), force: true, timeout_s: Some(7) },
            Request::Resume { name: name() },
            Request::Memory { name: name(), mib: 512 },
            Request::Move { name: name(), options },
            Request::CancelMove { name: name() },
            Request::Create { definition: definition.clone() },
            Request::Check { definition: definition.clone(), new: vec!["x".to_owned()] },
            Request::Edit { was: Box::new(definition.clone()), definition: Box::new(definition) },
            Request::Rename { name: name(), to: "b".parse().unwrap() },
            Request::Delete { name: name() },
            Request::Resolve { name: name(), run: false },
        ];
        assert_eq!(all.len(), CALLS.len(), "each call is here");
        for request in all {
            let HttpCall { method, path, body } = HttpCall::of::<VmHost>(&request).unwrap();
            let calls = CALLS.iter().map(|call| (call.method, call.path, call));
            let Found::Call(call, fields) = find(calls, method.name(), &path) else {
                panic!("{path}")
            };
            let back = call.request(fields, body.unwrap_or_default().as_bytes());
            assert_eq!(back, Ok(request), "{path}");
        }
        assert_eq!(HttpCall::of::<VmHost>(&Request::Thaw), None);
    }
}
