//! Every call of the control interface with inputs that its description allows, and with some that it does
//! not: no answer is a failure of the server, and each is one that the description has, by its status, its
//! content type and its schema. `make api-fuzz` asks the same of Schemathesis.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use bulkhead_tests::smbd::Smbd;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// Decides by bytes, which shrink: where there are none left, the simplest.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end.max(1)
    }

    fn once_in(&mut self, times: u8) -> bool {
        self.byte() % times == times - 1
    }

    /// Names that mean something, and others.
    fn text(&mut self) -> String {
        const KNOWN: [&str; 8] = [
            "vms",
            "hour",
            "disk",
            "admin",
            "127.0.0.1",
            "..",
            "vms/disk",
            "iqn.2026-01.com.example:a",
        ];
        match self.byte() % 4 {
            0 => KNOWN[self.below(KNOWN.len())].to_owned(),
            1 => self.below(256).to_string(),
            _ => {
                let len = self.below(40).min(self.0.len());
                let (text, rest) = self.0.split_at(len);
                self.0 = rest;
                String::from_utf8_lossy(text).into_owned()
            }
        }
    }

    fn number(&mut self) -> Value {
        match self.byte() % 4 {
            0 => json!(self.byte()),
            1 => json!(u64::MAX - u64::from(self.byte())),
            2 => json!(i64::MIN + i64::from(self.byte())),
            _ => json!(f64::from(self.byte()) * 1e300),
        }
    }

    /// Any JSON at all.
    fn any(&mut self, depth: usize) -> Value {
        match self.byte() % if depth == 0 { 4 } else { 6 } {
            0 => Value::Null,
            1 => json!(self.byte().is_multiple_of(2)),
            2 => self.number(),
            3 => json!(self.text()),
            4 => (0..self.below(4)).map(|_| self.any(depth - 1)).collect(),
            _ => {
                let one = |_| (self.text(), self.any(depth - 1));
                Value::Object((0..3).map(one).collect())
            }
        }
    }

    /// What a schema of the description allows, or now and then something else.
    fn shaped(&mut self, document: &Value, schema: &Value, depth: usize) -> Value {
        if depth == 0 || self.once_in(12) {
            return self.any(2);
        }
        if let Some(place) = schema["$ref"].as_str() {
            let found = document.pointer(place.trim_start_matches('#'));
            return self.shaped(document, found.expect("references lead somewhere"), depth - 1);
        }
        if let Some(word) = schema.get("const") {
            return word.clone();
        }
        for list in ["enum", "oneOf", "anyOf"] {
            let Some(all) = schema[list].as_array() else { continue };
            let one = &all[self.below(all.len())];
            return if list == "enum" {
                one.clone()
            } else {
                self.shaped(document, one, depth - 1)
            };
        }
        let kind = match &schema["type"] {
            Value::Array(all) => all[self.below(all.len())].as_str(),
            kind => kind.as_str(),
        };
        match kind {
            Some("object") => self.object(document, schema, depth),
            Some("array") => {
                let one = |_| self.shaped(document, &schema["items"], depth - 1);
                (0..usize::from(depth > 2) + 1).map(one).collect()
            }
            Some("string") => json!(self.text()),
            Some("integer") if !self.once_in(4) => json!(self.byte()),
            Some("integer" | "number") => self.number(),
            Some("boolean") => json!(self.byte().is_multiple_of(2)),
            Some("null") => Value::Null,
            _ => self.any(2),
        }
    }

    fn object(&mut self, document: &Value, schema: &Value, depth: usize) -> Value {
        let none = Map::new();
        let required = schema["required"].as_array();
        let needed = |name: &str| required.is_some_and(|all| all.iter().any(|it| it == name));
        let mut made = Map::new();
        for (name, inner) in schema["properties"].as_object().unwrap_or(&none) {
            let leave_out =
                if needed(name) { self.once_in(12) } else { self.byte().is_multiple_of(2) };
            if !leave_out {
                made.insert(name.clone(), self.shaped(document, inner, depth - 1));
            }
        }
        if self.once_in(12) {
            made.insert(self.text(), self.any(1));
        }
        Value::Object(made)
    }
}

/// An answer: its status, the kind of its content, its body.
#[derive(Debug)]
struct Answer {
    status: String,
    kind: String,
    body: Vec<u8>,
}

/// Asks over the socket in the state folder, where nobody needs a token.
fn ask(socket: &PathBuf, method: &str, target: &str, body: Option<&str>) -> Answer {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    if let Some(body) = body {
        text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += body.unwrap_or_default();
    // It may be answered before all of it is read.
    let _ = stream.write_all(text.as_bytes());
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|it| it == b"\r\n\r\n").expect("an answer has a head");
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let kind = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
    });
    Answer { status, kind: kind.unwrap_or_default(), body: all[end + 4..].to_vec() }
}

/// One operation of the description.
struct Operation<'a> {
    document: &'a Value,
    path: &'a str,
    method: String,
    what: &'a Value,
}

impl Operation<'_> {
    fn id(&self) -> &str {
        self.what["operationId"].as_str().unwrap_or_default()
    }

    /// Its request by some choices: its target and its body.
    fn request(&self, choices: &mut Choices<'_>) -> (String, Option<String>) {
        let mut target = self.path.to_owned();
        for parameter in self.what["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or_default();
            let value = match choices.shaped(self.document, &parameter["schema"], 4) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            // An empty part of a path is another path.
            let value = if value.is_empty() { "x".to_owned() } else { value };
            let encoded: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
            match parameter["in"].as_str() {
                Some("path") => target = target.replace(&format!("{{{name}}}"), &encoded),
                _ if choices.once_in(2) => target += &format!("?{name}={encoded}"),
                _ => {}
            }
        }
        let body = &self.what["requestBody"]["content"]["application/json"]["schema"];
        let body = body.is_object().then(|| choices.shaped(self.document, body, 8).to_string());
        (target, body)
    }

    /// What is wrong with an answer, by the description.
    fn objection(&self, answer: &Answer) -> Option<String> {
        if answer.status.starts_with('5') {
            return Some("the server has failed".to_owned());
        }
        let described = &self.what["responses"][&answer.status];
        let Some(content) = described["content"].as_object() else {
            return Some(format!("{} is not described", answer.status));
        };
        let kind = answer.kind.split(';').next().unwrap_or_default();
        let Some(content) = content.get(kind) else {
            return Some(format!("{kind:?} is not described"));
        };
        if kind != "application/json" {
            return None;
        }
        let body: Value = match serde_json::from_slice(&answer.body) {
            Ok(body) => body,
            Err(error) => return Some(error.to_string()),
        };
        mismatch(self.document, &content["schema"], &body)
    }
}

/// Whether a value is of a type by its word (JSON Schema 2020-12 Validation 6.1.1).
fn is_a(value: &Value, word: &Value) -> bool {
    match word.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_u64() || value.is_i64(),
        _ => false,
    }
}

/// Where a value is not what a schema says, if it is not. Only the keywords that the description uses are
/// known; one more is an objection itself, so that nothing is passed over.
fn mismatch(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let Some(all) = schema.as_object() else {
        return (*schema != json!(true)).then(|| format!("{schema} is no schema"));
    };
    all.iter().find_map(|(keyword, said)| {
        let list = || said.as_array().into_iter().flatten();
        let fitting = || list().filter(|it| mismatch(document, it, value).is_none()).count();
        let good = match keyword.as_str() {
            "description" | "title" | "default" | "format" => true,
            "$ref" => {
                let place = said.as_str().unwrap_or_default().trim_start_matches('#');
                let Some(found) = document.pointer(place) else {
                    return Some(format!("{said} leads nowhere"));
                };
                return mismatch(document, found, value);
            }
            "properties" => {
                let (said, has) = (said.as_object()?, value.as_object()?);
                return said.iter().find_map(|(name, inner)| {
                    let why = mismatch(document, inner, has.get(name)?)?;
                    Some(format!("{name}: {why}"))
                });
            }
            "items" => return value.as_array()?.iter().find_map(|it| mismatch(document, said, it)),
            "additionalProperties" if said.is_boolean() => {
                let known = all.get("properties").and_then(Value::as_object);
                let known = |name| known.is_some_and(|all| all.contains_key(name));
                *said == json!(true) || value.as_object()?.keys().all(|name| known(name.as_str()))
            }
            "additionalProperties" => {
                return value.as_object()?.values().find_map(|it| mismatch(document, said, it));
            }
            "required" => {
                let has = value.as_object()?;
                list().all(|name| name.as_str().is_some_and(|name| has.contains_key(name)))
            }
            "type" if said.is_array() => list().any(|word| is_a(value, word)),
            "type" => is_a(value, said),
            "const" => value == said,
            "enum" => list().any(|it| it == value),
            "oneOf" => fitting() == 1,
            "anyOf" => fitting() > 0,
            "allOf" => fitting() == list().count(),
            "minimum" => value.as_f64().is_none_or(|it| Some(it) >= said.as_f64()),
            "maximum" => value.as_f64().is_none_or(|it| Some(it) <= said.as_f64()),
            _ => false,
        };
        (!good).then(|| format!("{value} is not as {keyword} {said} says"))
    })
}

#[test]
fn what_does_not_fit_a_schema_is_found() {
    let document = json!({ "components": { "schemas": { "Name": { "type": "string" } } } });
    let reference = json!({ "$ref": "#/components/schemas/Name" });
    let schema = json!({
        "type": "object", "required": ["name"],
        "properties": {
            "name": reference, "count": { "type": ["integer", "null"], "minimum": 0 },
            "kinds": { "type": "array", "items": { "enum": ["a", "b"] } },
            "way": { "oneOf": [{ "const": "in" }, { "const": "out" }] },
        },
        "additionalProperties": false,
    });
    let good = json!({ "name": "x", "count": null, "kinds": ["a"], "way": "in" });
    assert_eq!(mismatch(&document, &schema, &good), None);
    let bad = [
        json!([]),
        json!({}),
        json!({ "name": 1 }),
        json!({ "name": "x", "count": -1 }),
        json!({ "name": "x", "count": 1.5 }),
        json!({ "name": "x", "kinds": ["c"] }),
        json!({ "name": "x", "way": "up" }),
        json!({ "name": "x", "more": 1 }),
    ];
    for value in bad {
        assert!(mismatch(&document, &schema, &value).is_some(), "{value}");
    }
    assert!(mismatch(&document, &json!({ "unheard": 1 }), &good).is_some());
}

#[test]
fn every_answer_is_one_that_the_description_has() {
    let server = Smbd::start("", "");
    let socket = server.scratch().join("state/api.sock");
    let document = ask(&socket, "GET", "/v1/openapi.json", None);
    let document: Value = serde_json::from_slice(&document.body).unwrap();
    let mut asked = 0;
    for (path, at) in document["paths"].as_object().unwrap() {
        for (method, what) in at.as_object().unwrap() {
            let method = method.to_uppercase();
            let operation = Operation { document: &document, path, method, what };
            // Those do not end.
            if operation.id() == "events" {
                continue;
            }
            asked += 1;
            let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
            let inputs = prop::collection::vec(any::<u8>(), 0..200);
            let tried = TestRunner::new(config).run(&inputs, |bytes| {
                let (target, body) = operation.request(&mut Choices(&bytes));
                let answer = ask(&socket, &operation.method, &target, body.as_deref());
                let said = String::from_utf8_lossy(&answer.body);
                let objection = operation.objection(&answer);
                prop_assert!(objection.is_none(), "{objection:?}: {target} {body:?}: {said}");
                Ok(())
            });
            assert!(tried.is_ok(), "{}: {tried:?}", operation.id());
        }
    }
    assert!(asked > 25, "{asked}");
    assert_eq!(ask(&socket, "GET", "/v1/status", None).status, "200");
}
