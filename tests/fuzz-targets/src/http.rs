//! Calls of HTTP, of file servers and of VM hosts: a line with method and path, and a body behind it.
//!
//! What is taken for a request is the same request after it was made a call again.

use std::fmt::Debug;

use control_socket::{Call, Found, HttpCall, Interface, find};
use host_api::VmHost;
use server_api::Server;

/// Takes a call.
pub fn calls(bytes: &[u8]) {
    call_of::<Server>(bytes);
    call_of::<VmHost>(bytes);
}

fn call_of<I: Interface<Request: PartialEq + Debug>>(bytes: &[u8]) {
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, body) = bytes.split_at(line);
    let Ok(line) = std::str::from_utf8(line) else { return };
    let Some((method, path)) = line.split_once(' ') else { return };
    let all = || I::CALLS.iter().map(|call| (call.method, call.path, call));
    let Found::Call(call, fields) = find(all(), method, path) else { return };
    let request = call.request::<I::Request>(fields, body.get(1..).unwrap_or_default());
    let Ok(request) = request else { return };
    assert_eq!(Call::of::<I>(&request), Some(call));
    let HttpCall { method, path, body } = HttpCall::of::<I>(&request).expect("each has its call");
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path:?}");
    let Found::Call(again, fields) = find(all(), method.name(), &path) else {
        panic!("{path:?} is the path of nothing")
    };
    assert_eq!(again.request(fields, body.unwrap_or_default().as_bytes()), Ok(request));
}

/// A call of each kind.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let hosts = seeds_of::<VmHost>().into_iter().map(|(verb, seed)| (format!("vm-{verb}"), seed));
    seeds_of::<Server>().into_iter().chain(hosts).collect()
}

fn seeds_of<I: Interface>() -> Vec<(String, Vec<u8>)> {
    const VM: &str =
        r#"{"name":"a","memory_mib":64,"firmware":{"kind":"bios"},"disk":[{"location":"/d"}]}"#;
    let of = |call: &Call| {
        let fields = call.fields().map(|name| match name {
            "span" => "hour",
            name if call.numbers.contains(&name) => "7",
            "name" => "web",
            _ => "a%2Fb",
        });
        let mut fields = fields.collect::<Vec<_>>().into_iter();
        let part = |part: &str| match part.starts_with('{') {
            true => fields.next().unwrap_or_default().to_owned(),
            false => part.to_owned(),
        };
        let path = call.path.split('/').map(part).collect::<Vec<_>>().join("/");
        let body = match call.verb {
            "disconnect" => r#"{"target":{"user":"bob"}}"#,
            "apply" => r#"{"declared":{"share":[{"name":"vms","path":"/srv"}]},"plan":true}"#,
            "witness-state" => r#"{"state":"up"}"#,
            "witness-move" => r#"{"client":null,"share":"vms","to":"n1"}"#,
            "memory" => r#"{"mib":64}"#,
            "move" => r#"{"options":{"to":"h:1"}}"#,
            "rename" => r#"{"to":"other"}"#,
            "resolve" => r#"{"run":true}"#,
            "create" | "check" => &format!("{{\"definition\":{VM}}}"),
            "edit" => &format!("{{\"was\":{VM},\"definition\":{VM}}}"),
            _ => "",
        };
        (call.verb.to_owned(), format!("{} {path}\n{body}", call.method.name()).into_bytes())
    };
    let seeds: Vec<_> = I::CALLS.iter().map(of).collect();
    debug_assert!(seeds.iter().all(|(_, seed)| is_request::<I>(seed)), "a seed is no request");
    seeds
}

/// Whether a seed gets as far as a request.
fn is_request<I: Interface>(seed: &[u8]) -> bool {
    let text = String::from_utf8_lossy(seed);
    let Some((line, body)) = text.split_once('\n') else { return false };
    let Some((method, path)) = line.split_once(' ') else { return false };
    let all = I::CALLS.iter().map(|call| (call.method, call.path, call));
    let Found::Call(call, fields) = find(all, method, path) else { return false };
    call.request::<I::Request>(fields, body.as_bytes()).is_ok()
}
