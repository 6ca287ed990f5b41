//! From a request to its answer: which call it is, whether the caller may make it, and what comes of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use control_socket::{Call, Found, Interface, Role, find};
use http::{HeaderMap, Request, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    Audit, Backend, Caller, Change, ReplyOf, RequestOf, Room, browser,
    door::{Door, Origin},
    events::{self, Streams},
    openapi,
    own::{AuditRecords, NewToken, OWN, OwnCall, Revoked, TokenList, WhoAmI},
    pages::Pages,
    respond::{self, Answer, Refusal},
};

/// Longest body of somebody who is known, in bytes.
const LONGEST: usize = 1 << 20;

/// Longest body of a stranger: a name and a password.
const LONGEST_OF_STRANGER: usize = 4 << 10;

/// How long a body may take to come.
const BODY: Duration = Duration::from_secs(10);

/// Records of changes that are shown, without a word and at most.
const RECORDS: (usize, usize) = (100, 1000);

/// What all connections share.
pub(crate) struct Router<S> {
    pub(crate) backend: Arc<S>,
    pub(crate) door: Arc<Door>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) streams: Streams,
    pub(crate) counters: Counters,
    pub(crate) pages: Pages,
}

/// What came of calls.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    done: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    fn add(&self, status: StatusCode) {
        let counter = match status {
            status if status.is_server_error() => &self.failed,
            status if status.is_client_error() => &self.refused,
            _ => &self.done,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls that were carried out, refused, and failed.
    pub(crate) fn get(&self) -> [u64; 3] {
        [&self.done, &self.refused, &self.failed].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// What a path and a method name.
#[derive(Clone, Copy)]
enum Entry {
    Server(&'static Call),
    Own(OwnCall, Option<Role>),
}

/// What is at a path; a query is for the call.
fn entry<I: Interface>(method: &str, path: &str) -> Found<Entry> {
    let server = I::CALLS.iter().map(|call| (call.method, call.path, Entry::Server(call)));
    let own = OWN.iter().map(|row| (row.method, row.path, Entry::Own(row.call, row.role)));
    find(server.chain(own), method, path)
}

/// A request as far as it is known before its body is read.
struct Asked {
    parts: Parts,
    origin: Origin,
}

impl<S: Backend> Router<S> {
    /// Answers a request; says whether the caller is known.
    pub(crate) async fn answer<B>(
        self: &Arc<Self>,
        origin: Origin,
        request: Request<B>,
    ) -> (Answer, bool)
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let (parts, body) = request.into_parts();
        let mut known = false;
        let asked = Asked { parts, origin };
        let done = self.carry_out(&asked, body, &mut known).await;
        let answer = done.unwrap_or_else(Refusal::answer);
        // Files are no calls.
        if self.pages.find(asked.parts.uri.path()).is_none() {
            self.counters.add(answer.status());
        }
        (answer, known)
    }

    async fn carry_out<B>(
        self: &Arc<Self>,
        asked: &Asked,
        body: B,
        known: &mut bool,
    ) -> Result<Answer, Refusal>
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let Asked { parts, origin } = asked;
        browser::once(&parts.headers)?;
        browser::name(origin, &parts.headers)?;
        if let Some(page) = self.pages.find(parts.uri.path()) {
            return page.answer(parts.method.as_str(), &parts.headers).await;
        }
        browser::page(origin, &parts.headers)?;
        let (entry, fields) = match entry::<S::Interface>(parts.method.as_str(), parts.uri.path()) {
            Found::Call(entry, fields) => (entry, fields),
            Found::Otherwise(methods) => return Err(Refusal::Otherwise(methods)),
            Found::Nothing => return Err(Refusal::NoCall),
        };
        let role = match entry {
            Entry::Server(call) => Some(call.role),
            Entry::Own(_, role) => role,
        };
        let Some(role) = role else {
            return self.for_strangers(entry, asked, body).await;
        };
        let caller = self.door.caller(origin, &parts.headers)?;
        *known = true;
        if caller.role < role {
            return Err(Refusal::Forbidden("this is for another role"));
        }
        let body = read(&parts.headers, body, LONGEST).await?;
        match entry {
            Entry::Server(call) => {
                let request = call.request(fields, &body).map_err(Refusal::Malformed)?;
                let reply = self.server(caller, request).await?;
                Ok(respond::value(&reply))
            }
            Entry::Own(call, _) => {
                let fields = Fields { path: fields, query: parts.uri.query().unwrap_or_default() };
                self.own(call, caller, fields, &body).await
            }
        }
    }

    async fn for_strangers<B>(
        &self,
        entry: Entry,
        asked: &Asked,
        body: B,
    ) -> Result<Answer, Refusal>
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let body = read(&asked.parts.headers, body, LONGEST_OF_STRANGER).await?;
        match entry {
            Entry::Own(OwnCall::LogIn, _) => {
                let wanted = parsed(&body)?;
                let (caller, made) = self.door.log_in(&asked.origin, wanted).await?;
                // A stranger who guesses takes no room: who has it keeps the file from turning.
                let room = match self.room().await {
                    Ok(room) => room,
                    Err(refusal) => {
                        let door = self.door.clone();
                        aside(move || door.revoke(&caller, made.id)).await??;
                        return Err(refusal);
                    }
                };
                let after = json!({ "token": made.id, "expires": made.expires });
                let request = json!({ "op": "login" });
                self.note(room, (caller, request), [Value::Null, after]).await;
                Ok(respond::value(&made))
            }
            Entry::Own(OwnCall::Description, _) => {
                Ok(respond::value(&openapi::document::<S::Interface>()))
            }
            _ => Err(Refusal::NoCall),
        }
    }

    /// Has the server carry out a request.
    async fn server(
        self: &Arc<Self>,
        caller: Caller,
        request: RequestOf<S>,
    ) -> Result<ReplyOf<S>, Refusal> {
        let backend = self.backend.clone();
        let done = tokio::task::spawn_blocking(move || backend.carry_out(&caller, request));
        done.await.map_err(|_| Refusal::Failed)?.map_err(Refusal::Refused)
    }

    /// Takes room for a change of what the interface itself keeps.
    async fn room(&self) -> Result<Room, Refusal> {
        let audit = self.audit.clone();
        let room = aside(move || audit.make_room()).await?;
        room.map_err(|error| Refusal::Refused(error.to_string()))
    }

    /// Writes down a change of what the interface itself keeps.
    async fn note(&self, room: Room, (caller, request): (Caller, Value), states: [Value; 2]) {
        let [before, after] = states;
        let written = tokio::task::spawn_blocking(move || {
            let outcome = Ok(&Value::Null);
            room.write(&Change { caller: &caller, request, before, after, outcome })
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a change could not be written down"),
            Err(error) => tracing::error!(%error, "a change could not be written down"),
        }
    }

    async fn own(
        self: &Arc<Self>,
        call: OwnCall,
        caller: Caller,
        fields: Fields<'_>,
        body: &[u8],
    ) -> Result<Answer, Refusal> {
        let door = self.door.clone();
        match call {
            OwnCall::WhoAmI => {
                let Caller { name: user, role, from, .. } = caller;
                let server = S::Interface::TITLE.to_owned();
                Ok(respond::value(&WhoAmI { user, role, from, server }))
            }
            OwnCall::Tokens => Ok(respond::value(&TokenList { tokens: door.tokens(&caller) })),
            OwnCall::NewToken => {
                let asked: NewToken = parsed(body)?;
                let (who, room) = (caller.clone(), self.room().await?);
                let made = aside(move || door.new_token(&who, &asked)).await??;
                let after = json!({ "token": made.id, "role": made.role, "expires": made.expires });
                let request = json!({ "op": "token-create" });
                self.note(room, (caller, request), [Value::Null, after]).await;
                Ok(respond::value(&made))
            }
            OwnCall::Revoke => {
                let id = fields.id().ok_or(Refusal::Gone("there is no such token"))?;
                let before = door.tokens(&caller).into_iter().find(|token| token.id == id);
                let (who, room) = (caller.clone(), self.room().await?);
                aside(move || door.revoke(&who, id)).await??;
                let request = json!({ "op": "token-revoke", "id": id });
                self.note(room, (caller, request), [json!(before), Value::Null]).await;
                Ok(respond::value(&Revoked { id }))
            }
            OwnCall::Audit => {
                let count = fields.number("limit", RECORDS)?;
                let audit = self.audit.clone();
                let records = aside(move || audit.last(count)).await?.map_err(|error| {
                    tracing::error!(%error, "the log of changes cannot be read");
                    Refusal::Failed
                })?;
                Ok(respond::value(&AuditRecords { records }))
            }
            OwnCall::Events => {
                let wanted = fields.of("list").unwrap_or_default();
                let mut lists = S::Interface::FOLLOWED.iter();
                let name = lists.find(|name| **name == wanted).ok_or(Refusal::NoCall)?;
                events::follow(self, caller, name)
            }
            OwnCall::Metrics => {
                let page = self.backend.metrics().await;
                Ok(respond::whole(
                    page,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                ))
            }
            // These are for strangers, too.
            OwnCall::LogIn | OwnCall::Description => Err(Refusal::NoCall),
        }
    }
}

/// What stands in a path and behind it.
struct Fields<'a> {
    path: Vec<(&'static str, String)>,
    query: &'a str,
}

impl Fields<'_> {
    fn of(&self, wanted: &str) -> Option<&str> {
        self.path.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str())
    }

    fn id(&self) -> Option<u64> {
        self.of("id")?.parse().ok()
    }

    /// The number of that name in the query, or the first of `bounds`; at most the second.
    fn number(&self, name: &str, bounds: (usize, usize)) -> Result<usize, Refusal> {
        let mut number = bounds.0;
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let value = pair.strip_prefix(name).and_then(|pair| pair.strip_prefix('='));
            let value = value.and_then(|value| value.parse().ok());
            let wrong = || format!("the query: {name}= and a number up to {}", bounds.1);
            number = value.filter(|n| *n <= bounds.1).ok_or_else(|| Refusal::Malformed(wrong()))?;
        }
        Ok(number)
    }
}

/// Does what may wait on a thread that may.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::Failed)
}

/// A body that is to be JSON of that form; the message repeats no value of it.
fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "has not the fields of the call",
            _ => "is no JSON",
        };
        Refusal::Malformed(format!("the body {what} (column {})", error.column()))
    })
}

/// Reads a body of at most `longest` bytes, which says that it is JSON if there is one.
async fn read<B>(headers: &HeaderMap, body: B, longest: usize) -> Result<Bytes, Refusal>
where
    B: hyper::body::Body<Data = Bytes> + Send,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if !kind.trim().eq_ignore_ascii_case("application/json") {
        return Err(Refusal::NotJson);
    }
    if body.size_hint().lower() > longest as u64 {
        return Err(Refusal::TooLong);
    }
    let whole = tokio::time::timeout(BODY, Box::pin(Limited::new(body, longest).collect()));
    match whole.await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Refusal::TooLong),
        Ok(Err(_)) => Err(Refusal::Malformed("the body has not come".to_owned())),
        Err(_) => Err(Refusal::Malformed("the body has not come in time".to_owned())),
    }
}

/// All places of calls, for the test that none is there twice.
#[cfg(test)]
fn places<I: Interface>() -> Vec<(control_socket::Method, &'static str)> {
    let server = I::CALLS.iter().map(|call| (call.method, call.path));
    server.chain(OWN.iter().map(|row| (row.method, row.path))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_own_call_stands_where_a_request_does() {
        let all = places::<server_api::Server>();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_limit_is_a_number_that_may_be() {
        let of = |query| Fields { path: Vec::new(), query }.number("limit", (10, 20)).ok();
        assert_eq!((of(""), of("limit=7"), of("limit=20")), (Some(10), Some(7), Some(20)));
        for bad in ["limit=21", "limit=", "limit=-1", "limit", "x=1", "limit=1&y=2"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
