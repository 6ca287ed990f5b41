//! Which call of HTTP each request of a daemon is, and who may make it.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// What a daemon may be asked: its requests, each an object with the tag `op`, its answers with the tag
/// `reply`, and their calls.
pub trait Interface: 'static {
    /// A request.
    type Request: Serialize + DeserializeOwned + JsonSchema + Clone + Send + 'static;
    /// An answer.
    type Reply: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// Whose it is, as a title.
    const TITLE: &'static str;
    /// Its calls, one for each request that can be one.
    const CALLS: &'static [Call];
    /// Lists that can be followed, each by the verb of its call, which has no fields.
    const FOLLOWED: &'static [&'static str];
}

/// What somebody may do; each may do what those before it may.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Runs what is there: ends sessions and takes snapshots, starts, stops and moves VMs.
    Operator,
    /// Changes what there is and who may use it, and removes what was kept.
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

    /// A row of a table whose path has no numbers.
    pub const fn new(
        verb: &'static str,
        (method, path): (Method, &'static str),
        role: Role,
        reply: &'static str,
        summary: &'static str,
    ) -> Self {
        Self { verb, method, path, numbers: &[], role, reply, summary }
    }

    /// The call that a request is, if it is one.
    pub fn of<I: Interface>(request: &I::Request) -> Option<&'static Self> {
        let op = serde_json::to_value(request).ok();
        let op = op.as_ref().and_then(|it| it.get("op")?.as_str()).unwrap_or_default();
        I::CALLS.iter().find(|call| call.verb == op)
    }

    /// Names of the fields that are in the path.
    pub fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(field)
    }

    /// The request that a call is, with the fields of its path, as [`find`] gives them, and the body.
    ///
    /// # Errors
    /// What is wrong with it, in a line without anything of what was sent but names of fields.
    pub fn request<T: DeserializeOwned>(
        &self,
        fields: Vec<(&str, String)>,
        body: &[u8],
    ) -> Result<T, String> {
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
    /// The call that a request is, if it is one.
    pub fn of<I: Interface>(request: &I::Request) -> Option<Self> {
        let call = Call::of::<I>(request)?;
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
        Some(Self { method: call.method, path, body })
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
