//! What etcd can do, one function for each call that is used here.

use std::{collections::VecDeque, fmt, path::PathBuf, sync::Arc, time::Duration};

use prost::Message;
use tokio::sync::{Mutex, mpsc};
use zeroize::Zeroizing;

use super::{
    CallError, Code,
    channel::{Channel, Endpoint},
    record::behind,
    tls,
    wire::{
        AuthenticateRequest, AuthenticateResponse, Done, GrantRequest, KeyValue, LeaseRequest,
        LeaseResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse, TxnRequest,
        TxnResponse, WatchCreate, WatchEvent, WatchRequest, WatchResponse,
    },
};

/// Keys that are asked for at a time.
const PAGE: i64 = 1000;
/// Revisions that a watch holds for somebody who does not read.
const AHEAD: usize = 64;
/// What a majority makes durable, or is long, may take so many attempts; whether a member is there is
/// found by what is answered at once.
pub(super) const DURABLE: u32 = 4;
/// How long a watch that has lost its member waits before it asks the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Where etcd is, and who we are there.
#[derive(Clone)]
pub struct Settings {
    /// Members: `https://host:port`, or `http://host:port` without TLS.
    pub endpoints: Vec<String>,
    /// What TLS needs, if members are asked by it.
    pub tls: Option<TlsFiles>,
    /// User and password, if etcd asks for them.
    pub login: Option<(String, Zeroizing<String>)>,
    /// How long one attempt with one member may take.
    pub attempt: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Files in PEM, for TLS to etcd.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificates of the authorities that members' certificates are from.
    pub ca: PathBuf,
    /// Our certificate and its key, if members ask for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A client of etcd. It reads all files when it is made.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    login: Option<(String, Zeroizing<String>)>,
    token: Mutex<Option<Arc<str>>>,
}

impl Client {
    /// Makes a client, which connects when it is first used.
    ///
    /// # Errors
    /// A sentence that says which endpoint or file cannot be used, and why.
    pub fn new(settings: &Settings) -> Result<Arc<Self>, String> {
        let mut endpoints = Vec::new();
        for text in &settings.endpoints {
            let endpoint = Endpoint::parse(text)
                .ok_or_else(|| format!("{text:?} is not https://host:port or http://host:port"))?;
            if endpoint.secure() && settings.tls.is_none() {
                return Err(format!("{text:?} needs a file with certificates of authorities"));
            }
            endpoints.push(endpoint);
        }
        if endpoints.is_empty() {
            return Err("there is no endpoint".to_owned());
        }
        let tls = settings.tls.as_ref().map(tls::load).transpose()?;
        let channel = Channel::new(endpoints, tls, settings.attempt);
        Ok(Arc::new(Self { channel, login: settings.login.clone(), token: Mutex::default() }))
    }

    /// The ports of the members that settings name.
    pub fn ports(settings: &Settings) -> Vec<u16> {
        let parsed = settings.endpoints.iter().filter_map(|text| Endpoint::parse(text));
        parsed.map(|endpoint| endpoint.port()).collect()
    }

    /// The token that goes with requests, asked for if there is none yet.
    async fn token(&self) -> Result<Option<Arc<str>>, CallError> {
        let Some((name, password)) = &self.login else { return Ok(None) };
        let mut token = self.token.lock().await;
        if token.is_none() {
            let request =
                AuthenticateRequest { name: name.clone(), password: password.to_string() };
            let path = "/etcdserverpb.Auth/Authenticate";
            let answer: AuthenticateResponse =
                self.channel.call(path, None, &request, DURABLE).await?;
            *token = Some(answer.token.into());
        }
        Ok(token.clone())
    }

    /// Whether a refusal says that the token is old; then it is forgotten.
    async fn is_stale(&self, error: &CallError) -> bool {
        let CallError::Refused { code, message } = error else { return false };
        let stale = *code == Code::UNAUTHENTICATED || message.contains("auth store is old");
        if stale && self.login.is_some() {
            *self.token.lock().await = None;
            return true;
        }
        false
    }

    async fn call<R: Message + Default>(
        &self,
        path: &str,
        request: &impl Message,
        times: u32,
    ) -> Result<R, CallError> {
        let token = self.token().await?;
        match self.channel.call(path, token.as_deref(), request, times).await {
            Err(error) if self.is_stale(&error).await => {
                let token = self.token().await?;
                self.channel.call(path, token.as_deref(), request, times).await
            }
            other => other,
        }
    }

    /// One key as it is now: the answer is what a quorum agrees on.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn get(&self, key: &[u8]) -> Result<RangeResponse, CallError> {
        let request = RangeRequest { key: key.to_vec(), ..RangeRequest::default() };
        self.call("/etcdserverpb.KV/Range", &request, 1).await
    }

    /// One key as it was at a revision.
    ///
    /// # Errors
    /// [`CallError`]; a refusal with [`Code::OUT_OF_RANGE`] if that is compacted, or is still to come.
    pub async fn get_at(&self, key: &[u8], revision: i64) -> Result<RangeResponse, CallError> {
        let request = RangeRequest { key: key.to_vec(), revision, ..RangeRequest::default() };
        self.call("/etcdserverpb.KV/Range", &request, 1).await
    }

    /// All keys that begin with a prefix, as they were at one revision, which is told.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn list(&self, prefix: &[u8]) -> Result<(Vec<KeyValue>, i64), CallError> {
        let mut all: Vec<KeyValue> = Vec::new();
        let (mut key, mut revision) = (prefix.to_vec(), 0);
        loop {
            let range_end = behind(prefix);
            let request = RangeRequest { key, range_end, limit: PAGE, revision };
            let page: RangeResponse =
                self.call("/etcdserverpb.KV/Range", &request, DURABLE).await?;
            if revision == 0 {
                revision = page.header.unwrap_or_default().revision;
            }
            all.extend(page.kvs);
            let Some(last) = all.last().filter(|_| page.more) else { return Ok((all, revision)) };
            key = last.key.clone();
            key.push(0);
        }
    }

    /// A transaction, once: after [`CallError::Lost`] it may have been carried out, or still be.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, CallError> {
        self.call("/etcdserverpb.KV/Txn", request, DURABLE).await
    }

    /// A transaction that is of use only at once: as [`Client::txn`], within a single attempt.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn txn_now(&self, request: &TxnRequest) -> Result<TxnResponse, CallError> {
        self.call("/etcdserverpb.KV/Txn", request, 1).await
    }

    /// A new lease of at least so many seconds.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn grant(&self, ttl: i64) -> Result<LeaseResponse, CallError> {
        self.call("/etcdserverpb.Lease/LeaseGrant", &GrantRequest { ttl }, DURABLE).await
    }

    /// Has a lease begin anew.
    ///
    /// # Errors
    /// [`CallError`]; a lease that is gone is an answer whose time is 0.
    pub async fn keep_alive(&self, id: i64) -> Result<LeaseResponse, CallError> {
        self.call("/etcdserverpb.Lease/LeaseKeepAlive", &LeaseRequest { id }, 1).await
    }

    /// Ends a lease, with the keys that go away with it.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn revoke(&self, id: i64) -> Result<(), CallError> {
        let path = "/etcdserverpb.Lease/LeaseRevoke";
        self.call::<Done>(path, &LeaseRequest { id }, DURABLE).await.map(drop)
    }

    /// How the member is that answers.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn status(&self) -> Result<StatusResponse, CallError> {
        self.call("/etcdserverpb.Maintenance/Status", &StatusRequest {}, 1).await
    }

    /// Everything that happens after a revision to keys that begin with a prefix. Goes on with
    /// another member when one is lost.
    pub fn watch(self: &Arc<Self>, prefix: &[u8], after: i64) -> KeyWatch {
        let (told, events) = mpsc::channel(AHEAD);
        let watcher = Watcher { client: self.clone(), prefix: prefix.to_vec(), after, told };
        tokio::spawn(watcher.run());
        KeyWatch(events)
    }
}

/// What a watch of keys tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyWatchEvent {
    /// What one commit changed.
    Changed {
        /// The commit.
        revision: i64,
        /// The keys, each once.
        events: Vec<WatchEvent>,
    },
    /// What comes next is not known any more; all before this revision is compacted. The last event.
    Compacted(i64),
}

/// A watch of keys, from the call to [`Client::watch`] until it is dropped.
#[derive(Debug)]
pub struct KeyWatch(mpsc::Receiver<KeyWatchEvent>);

impl KeyWatch {
    /// The next event; `None` behind the last. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<KeyWatchEvent> {
        self.0.recv().await
    }

    /// The same, for who polls.
    pub fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<KeyWatchEvent>> {
        self.0.poll_recv(context)
    }
}

struct Watcher {
    client: Arc<Client>,
    prefix: Vec<u8>,
    after: i64,
    told: mpsc::Sender<KeyWatchEvent>,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let told = self.told.clone();
            let over = tokio::select! {
                over = self.session() => over,
                () = told.closed() => return,
            };
            match over {
                Ok(compacted) => {
                    let _ = self.told.send(KeyWatchEvent::Compacted(compacted)).await;
                    return;
                }
                Err(error) => tracing::debug!(%error, "a watch begins anew"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One watch at one member, until it is over: by compaction, else it begins anew.
    async fn session(&mut self) -> Result<i64, CallError> {
        let create = WatchCreate {
            key: self.prefix.clone(),
            range_end: behind(&self.prefix),
            start_revision: self.after + 1,
        };
        let token = self.client.token().await?;
        let request = WatchRequest { create: Some(create) };
        let path = "/etcdserverpb.Watch/Watch";
        let mut answers = self.client.channel.stream(path, token.as_deref(), &request).await?;
        loop {
            let answer: WatchResponse = match answers.next().await {
                Ok(answer) => answer,
                Err(error) => {
                    self.client.is_stale(&error).await;
                    return Err(error);
                }
            };
            if answer.compact_revision > 0 {
                return Ok(answer.compact_revision);
            }
            if answer.canceled {
                *self.client.token.lock().await = None;
                return Err(CallError::lost(answer.cancel_reason));
            }
            let mut events = VecDeque::from(answer.events);
            let at = |event: &WatchEvent| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            while let Some(first) = events.front() {
                let revision = at(first);
                let count = events.iter().take_while(|event| at(event) == revision).count();
                let events: Vec<_> = events.drain(..count).collect();
                if revision <= self.after {
                    continue;
                }
                self.after = revision;
                if self.told.send(KeyWatchEvent::Changed { revision, events }).await.is_err() {
                    return Err(CallError::lost("nobody listens"));
                }
            }
        }
    }
}
