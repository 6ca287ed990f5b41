//! The description of all calls (OpenAPI 3.1), made of the tables of calls and of the types themselves.

use control_socket::{Call, Interface, Method, Role};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::own::{
    AuditRecords, LogIn, NewToken, OWN, OwnCall, OwnRow, Revoked, TokenList, TokenMade, WhoAmI,
};

/// Schemas, each named once.
struct Schemas(SchemaGenerator);

impl Schemas {
    fn of<T: JsonSchema>(&mut self) -> Value {
        self.0.subschema_for::<T>().to_value()
    }

    /// The variant of an enumeration whose `tag` has this word.
    fn variant<T: JsonSchema>(&mut self, tag: &str, word: &str) -> Value {
        self.of::<T>();
        let whole = self.0.definitions().get(&*T::schema_name()).cloned().unwrap_or_default();
        let variants = whole.get("oneOf").and_then(Value::as_array).cloned().unwrap_or_default();
        let is = |it: &Value| it["properties"][tag]["const"] == word;
        variants.into_iter().find(is).unwrap_or_default()
    }
}

/// The body that a call takes: fields of its request that are not in its path.
fn body<I: Interface>(schemas: &mut Schemas, call: &Call) -> Option<Value> {
    let mut schema = schemas.variant::<I::Request>("op", call.verb);
    for field in call.fields().chain(["op"]) {
        if let Some(all) = schema["properties"].as_object_mut() {
            all.remove(field);
        }
        if let Some(required) = schema["required"].as_array_mut() {
            required.retain(|name| name != field);
        }
    }
    let fields = schema["properties"].as_object()?;
    if fields.is_empty() {
        return None;
    }
    schema.as_object_mut()?.remove("description");
    Some(schema)
}

fn answer(status: &str, description: &str, content: Option<(&str, Value)>) -> (String, Value) {
    let mut answer = json!({ "description": description });
    if let Some((kind, schema)) = content {
        answer["content"] = json!({ kind: { "schema": schema } });
    }
    (status.to_owned(), answer)
}

/// What an operation may answer beside what it is for.
fn refusals(role: Option<Role>, is_server: bool) -> Vec<(String, Value)> {
    let refusal = || Some(("application/json", json!({ "$ref": "#/components/schemas/Refusal" })));
    let mut all = vec![
        answer("400", "The request is none that this call takes", refusal()),
        answer("403", "The caller may not do that", refusal()),
        answer("413", "The body is too long", refusal()),
        answer("415", "The body is not said to be JSON", refusal()),
        answer("429", "Too often: Retry-After says when", refusal()),
        answer("500", "The server has failed", refusal()),
        answer("401", "The token or password is not good", refusal()),
    ];
    if role.is_some() {
        all.push(answer("404", "There is nothing of that name", refusal()));
    }
    if is_server || role.is_some() {
        all.push(answer("409", "The server refuses, and says why", refusal()));
    }
    all
}

fn parameters(path: &'static str, numbers: &[&str]) -> Vec<Value> {
    let fields = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let one = |name: &str| {
        let schema = if numbers.contains(&name) {
            json!({ "type": "integer", "minimum": 0 })
        } else if name == "span" {
            json!({ "type": "string", "enum": ["hour", "day", "month"] })
        } else {
            json!({ "type": "string", "minLength": 1 })
        };
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    };
    fields.map(one).collect()
}

fn server_call<I: Interface>(schemas: &mut Schemas, call: &'static Call) -> Value {
    let schema = schemas.variant::<I::Reply>("reply", call.reply);
    let mut answers: Map<_, _> = refusals(Some(call.role), true).into_iter().collect();
    answers.extend([answer("200", "Done", Some(("application/json", schema)))]);
    let mut operation = json!({
        "operationId": call.verb,
        "summary": call.summary,
        "description": format!("For the role {}, and those above it.", call.role),
        "parameters": parameters(call.path, call.numbers),
        "responses": answers,
        "x-role": call.role,
    });
    if let Some(schema) = body::<I>(schemas, call) {
        let content = json!({ "application/json": { "schema": schema } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn own_call<I: Interface>(schemas: &mut Schemas, row: &'static OwnRow) -> Value {
    let json = |schema| ("application/json", schema);
    let (name, content) = match row.call {
        OwnCall::LogIn => ("login", json(schemas.of::<TokenMade>())),
        OwnCall::WhoAmI => ("whoami", json(schemas.of::<WhoAmI>())),
        OwnCall::Tokens => ("token-list", json(schemas.of::<TokenList>())),
        OwnCall::NewToken => ("token-create", json(schemas.of::<TokenMade>())),
        OwnCall::Revoke => ("token-revoke", json(schemas.of::<Revoked>())),
        OwnCall::Audit => ("audit", json(schemas.of::<AuditRecords>())),
        OwnCall::Events => ("events", events()),
        OwnCall::Metrics => ("metrics", ("application/openmetrics-text", text())),
        OwnCall::Description => ("openapi", json(json!({ "type": "object" }))),
    };
    let body = match row.call {
        OwnCall::LogIn => Some(schemas.of::<LogIn>()),
        OwnCall::NewToken => Some(schemas.of::<NewToken>()),
        _ => None,
    };
    let mut parameters = parameters(row.path, &["id"]);
    if row.call == OwnCall::Events {
        parameters[0]["schema"] = json!({ "type": "string", "enum": I::FOLLOWED });
    }
    if row.call == OwnCall::Audit {
        let schema = json!({ "type": "integer", "minimum": 0, "maximum": 1000, "default": 100 });
        let limit = json!({ "name": "limit", "in": "query", "required": false, "schema": schema });
        parameters.push(limit);
    }
    let mut answers: Map<_, _> = refusals(row.role, false).into_iter().collect();
    answers.extend([answer("200", "Done", Some(content))]);
    let mut operation = json!({
        "operationId": name,
        "summary": row.summary,
        "parameters": parameters,
        "responses": answers,
    });
    match row.role {
        Some(role) => operation["x-role"] = json!(role),
        None => operation["security"] = json!([]),
    }
    if let Some(schema) = body {
        let content = json!({ "application/json": { "schema": schema } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn events() -> (&'static str, Value) {
    ("text/event-stream", text())
}

fn place(paths: &mut Map<String, Value>, path: &str, method: Method, operation: Value) {
    let at = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
    at[method.name().to_ascii_lowercase()] = operation;
}

/// The whole description of an interface, as JSON.
pub fn document<I: Interface>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = Schemas(settings.into_generator());
    let mut paths = Map::new();
    for call in I::CALLS {
        let operation = server_call::<I>(&mut schemas, call);
        place(&mut paths, call.path, call.method, operation);
    }
    for row in &OWN {
        let operation = own_call::<I>(&mut schemas, row);
        place(&mut paths, row.path, row.method, operation);
    }
    let mut all = schemas.0.take_definitions(true);
    let error = json!({
        "type": "object",
        "properties": { "message": { "type": "string", "description": "Why, in a line" } },
        "required": ["message"],
    });
    let properties = json!({ "error": error });
    all.insert(
        "Refusal".to_owned(),
        json!({ "type": "object", "properties": properties, "required": ["error"] }),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": I::TITLE,
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": all,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use server_api::{CALLS, Server};

    use super::*;

    fn references(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(all) => {
                into.extend(all.get("$ref").and_then(Value::as_str).map(str::to_owned));
                all.values().for_each(|value| references(value, into));
            }
            Value::Array(all) => all.iter().for_each(|value| references(value, into)),
            _ => {}
        }
    }

    #[test]
    fn every_call_is_described_with_its_body_and_its_answer() {
        let document = document::<Server>();
        let mut operations = BTreeSet::new();
        for at in document["paths"].as_object().unwrap().values() {
            for operation in at.as_object().unwrap().values() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(operations.insert(id.to_owned()), "{id} is there twice");
                let content = operation["responses"]["200"]["content"].as_object().unwrap();
                let schema = &content.values().next().unwrap()["schema"];
                assert!(schema.as_object().is_some_and(|it| !it.is_empty()), "{id}");
            }
        }
        assert_eq!(operations.len(), CALLS.len() + OWN.len());
        let body = |path: &str, method: &str| {
            document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
                ["properties"]
                .as_object()
                .map(|all| all.keys().cloned().collect::<Vec<_>>())
        };
        assert_eq!(body("/v1/disconnect", "post"), Some(vec!["target".to_owned()]));
        assert_eq!(body("/v1/witness/nodes/{node}", "put"), Some(vec!["state".to_owned()]));
        assert_eq!(body("/v1/shares/{share}/snapshots", "post"), None);
        let lun = &document["paths"]["/v1/targets/{target}/luns/{lun}/resize"]["post"];
        let kinds = lun["parameters"].as_array().unwrap().iter().map(|it| &it["schema"]["type"]);
        assert_eq!(kinds.collect::<Vec<_>>(), ["string", "integer"]);
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = document::<Server>();
        let mut all = BTreeSet::new();
        references(&document, &mut all);
        assert!(all.len() > 5, "{all:?}");
        for reference in all {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }
}
