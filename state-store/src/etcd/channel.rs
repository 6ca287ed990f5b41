//! Calls to whichever member of etcd answers: gRPC over one HTTP/2 connection at a time.
//!
//! ```text
//!  call ─► live connection? ─no─► the next member ─► TCP, TLS, HTTP/2
//!            │ silent, broken, no leader: the next member's turn; calls that are under way keep the
//!            │ time that they have, watches begin anew there
//!            ▼
//!  0  length (4)  message …        one message each way, or many from etcd (watch)
//! ```

use std::{fmt, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use prost::Message;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Mutex, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

/// Longest message that is taken, in bytes.
const MOST: usize = 64 << 20;
/// Bytes that may come before we have read those before them.
const WINDOW: u32 = 8 << 20;
/// After how long a connection without a word is asked whether it is there, and how often.
const ASKED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));

/// A status of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    /// It went well.
    pub const OK: Self = Self(0);
    /// Something in the request cannot be.
    pub const INVALID_ARGUMENT: Self = Self(3);
    /// The user may not do this.
    pub const PERMISSION_DENIED: Self = Self(7);
    /// There is no room, or the request is too large.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// It is not so that this can be done: no authentication, for instance.
    pub const FAILED_PRECONDITION: Self = Self(9);
    /// Asks for what is compacted.
    pub const OUT_OF_RANGE: Self = Self(11);
    /// There is no such method.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// The token is not valid.
    pub const UNAUTHENTICATED: Self = Self(16);
    /// There is no such lease.
    pub const NOT_FOUND: Self = Self(5);

    /// Whether etcd has decided: the call was not carried out, and will not be.
    fn is_final(self) -> bool {
        [
            Self::INVALID_ARGUMENT,
            Self::NOT_FOUND,
            Self::PERMISSION_DENIED,
            Self::RESOURCE_EXHAUSTED,
            Self::FAILED_PRECONDITION,
            Self::OUT_OF_RANGE,
            Self::UNIMPLEMENTED,
            Self::UNAUTHENTICATED,
        ]
        .contains(&self)
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// etcd has refused it: it was not carried out, and will not be.
    #[error("etcd refuses: {message}")]
    Refused {
        /// What kind of refusal it is.
        code: Code,
        /// Its words.
        message: String,
    },
    /// Nobody answers, or nobody leads. Whether it was carried out, or still will be, is not known.
    #[error("no answer from etcd: {0}")]
    Lost(Arc<str>),
}

impl CallError {
    pub(super) fn lost(why: impl fmt::Display) -> Self {
        Self::Lost(why.to_string().into())
    }
}

/// Where a member of etcd is.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    host: String,
    port: u16,
    secure: bool,
}

impl Endpoint {
    /// Of `http://host:port` or `https://host:port`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (secure, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("http://")?),
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let plain = !host.is_empty() && !host.contains(['/', '@', '?']);
        plain.then_some(())?;
        Some(Self { host, port: port.parse().ok()?, secure })
    }

    pub(super) fn secure(&self) -> bool {
        self.secure
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection that is used, until it fails.
struct Live {
    number: u64,
    send: SendRequest<Bytes>,
    endpoint: usize,
    task: AbortHandle,
    /// Says that it is given up.
    given_up: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    /// Whose turn it is.
    next: usize,
    connections: u64,
}

/// The way to etcd.
pub(super) struct Channel {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<ClientConfig>>,
    /// How long one attempt may take.
    attempt: Duration,
    state: Mutex<State>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// A connection for one call: whose it is, and what says that it is given up.
struct Lent {
    number: u64,
    send: SendRequest<Bytes>,
    endpoint: usize,
    given_up: watch::Receiver<bool>,
}

/// One call that is under way.
struct Call {
    messages: Messages,
    connection: u64,
}

impl Live {
    fn lend(&self) -> Lent {
        let (number, endpoint) = (self.number, self.endpoint);
        let given_up = self.given_up.subscribe();
        Lent { number, send: self.send.clone(), endpoint, given_up }
    }
}

impl Channel {
    pub(super) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<Arc<ClientConfig>>,
        attempt: Duration,
    ) -> Self {
        Self { endpoints, tls, attempt, state: Mutex::default() }
    }

    /// Makes a call with one message each way, which may take so many times as long as an attempt.
    pub(super) async fn call<R: Message + Default>(
        &self,
        path: &str,
        token: Option<&str>,
        request: &impl Message,
        times: u32,
    ) -> Result<R, CallError> {
        let mut call = self.begin(path, token, request, true).await?;
        let patience = self.attempt * times;
        let answer = match timeout(patience, call.messages.only()).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::lost(format_args!("nothing within {patience:?}"))),
        };
        if let Err(CallError::Lost(_)) = answer {
            self.give_up(call.connection).await;
        }
        answer
    }

    /// Begins a call that etcd answers with many messages.
    pub(super) async fn stream(
        &self,
        path: &str,
        token: Option<&str>,
        request: &impl Message,
    ) -> Result<Messages, CallError> {
        Ok(self.begin(path, token, request, false).await?.messages)
    }

    async fn begin(
        &self,
        path: &str,
        token: Option<&str>,
        request: &impl Message,
        only: bool,
    ) -> Result<Call, CallError> {
        let Lent { number: connection, send, endpoint, given_up } = self.live().await?;
        let begun = timeout(self.attempt, async {
            let mut send = send.ready().await.map_err(CallError::lost)?;
            let endpoint = &self.endpoints[endpoint];
            let scheme = if endpoint.secure { "https" } else { "http" };
            let mut head = Request::post(format!("{scheme}://{}{path}", endpoint.authority()))
                .version(http::Version::HTTP_2)
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            if let Some(token) = token {
                head = head.header("token", token);
            }
            if !only {
                // A member without a leader has nothing to tell, and would say nothing.
                head = head.header("hasleader", "true");
            }
            let head = head.body(()).map_err(CallError::lost)?;
            let (response, mut out) = send.send_request(head, false).map_err(CallError::lost)?;
            out.send_data(framed(request), only).map_err(CallError::lost)?;
            Ok(Messages {
                _out: out,
                response: Some(response),
                body: None,
                buffer: BytesMut::new(),
                given_up: (!only).then_some(given_up),
            })
        });
        match begun.await.unwrap_or_else(|_| Err(CallError::lost("the connection is stuck"))) {
            Ok(messages) => Ok(Call { messages, connection }),
            Err(error) => {
                self.give_up(connection).await;
                Err(error)
            }
        }
    }

    /// The connection that is used now.
    async fn live(&self) -> Result<Lent, CallError> {
        let mut state = self.state.lock().await;
        if let Some(live) = state.live.as_ref().filter(|live| !live.task.is_finished()) {
            return Ok(live.lend());
        }
        let mut why = "there is no member".into();
        for _ in 0..self.endpoints.len() {
            let at = state.next % self.endpoints.len();
            let connected = timeout(self.attempt, self.connect(&self.endpoints[at])).await;
            match connected.unwrap_or_else(|_| Err("it does not answer".into())) {
                Ok((send, task, given_up)) => {
                    state.connections += 1;
                    let number = state.connections;
                    let live = Live { number, send, endpoint: at, task, given_up };
                    return Ok(state.live.insert(live).lend());
                }
                Err(error) => {
                    why = format!("{}: {error}", self.endpoints[at].authority());
                    state.next += 1;
                }
            }
        }
        Err(CallError::lost(why))
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> Result<
        (SendRequest<Bytes>, AbortHandle, watch::Sender<bool>),
        Box<dyn std::error::Error + Send + Sync>,
    > {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        notice_death(&stream)?;
        let io: Box<dyn Wire> = match &self.tls {
            Some(tls) if endpoint.secure => {
                let name = ServerName::try_from(endpoint.host.clone())?;
                Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?)
            }
            _ => Box::new(stream),
        };
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(io)
            .await?;
        let (given_up, mut told) = watch::channel(false);
        // Nothing that is under way when a connection is given up may take longer than this.
        let last = self.attempt * super::client::DURABLE;
        let task = tokio::spawn(async move {
            let over = async {
                let _ = told.wait_for(|given_up| *given_up).await;
                sleep(last).await;
            };
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to etcd is lost");
                },
                () = over => {}
            }
        });
        Ok((send, task.abort_handle(), given_up))
    }

    /// A connection is not used any more, and the next member has its turn. Another call on it may be
    /// one that only takes longer, as what a majority makes durable does.
    async fn give_up(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.live.as_ref().is_some_and(|live| live.number == number)
            && let Some(live) = state.live.take()
        {
            live.given_up.send_replace(true);
            state.next = live.endpoint + 1;
        }
    }
}

/// Has the system end a connection whose peer is gone without a word.
fn notice_death(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, ASKED.0)?;
    sockopt::set_tcp_keepintvl(stream, ASKED.1)?;
    sockopt::set_socket_keepalive(stream, true)?;
    let ms = u32::try_from((ASKED.0 + ASKED.1).as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, ms)?;
    Ok(())
}

fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.encoded_len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    out.extend_from_slice(&message.encode_to_vec());
    out.freeze()
}

/// What etcd sends in answer to a call.
pub(super) struct Messages {
    /// The call is over when this goes.
    _out: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    buffer: BytesMut,
    /// Whether an answer that has no end is not to be waited for.
    given_up: Option<watch::Receiver<bool>>,
}

impl Messages {
    /// The one message of an answer that has no more.
    async fn only<R: Message + Default>(&mut self) -> Result<R, CallError> {
        let message = self.next().await?;
        match self.next::<R>().await {
            Err(CallError::Refused { code: Code::OK, .. }) => Ok(message),
            Err(error) => Err(error),
            Ok(_) => Err(CallError::lost("a second answer")),
        }
    }

    /// The next message; a refusal with [`Code::OK`] when the answer is complete.
    pub(super) async fn next<R: Message + Default>(&mut self) -> Result<R, CallError> {
        let Some(mut given_up) = self.given_up.clone() else { return self.read().await };
        tokio::select! {
            message = self.read() => message,
            _ = given_up.wait_for(|given_up| *given_up) => {
                Err(CallError::lost("the connection is given up"))
            }
        }
    }

    async fn read<R: Message + Default>(&mut self) -> Result<R, CallError> {
        if let Some(response) = &mut self.response {
            let response = response.await.map_err(CallError::lost)?;
            self.response = None;
            if !response.status().is_success() {
                return Err(CallError::lost(format_args!("HTTP says {}", response.status())));
            }
            if response.headers().contains_key("grpc-status") {
                return Err(refusal(response.headers()));
            }
            self.body = Some(response.into_body());
        }
        let Some(body) = &mut self.body else { return Err(CallError::lost("the call is over")) };
        loop {
            if let Some(message) = take(&mut self.buffer)? {
                return R::decode(message).map_err(CallError::lost);
            }
            match body.data().await {
                Some(Ok(data)) => {
                    let _ = body.flow_control().release_capacity(data.len());
                    self.buffer.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(CallError::lost(error)),
                None => {
                    let trailers = body.trailers().await.map_err(CallError::lost)?;
                    let trailers = trailers.ok_or_else(|| CallError::lost("the answer is cut"))?;
                    return Err(refusal(&trailers));
                }
            }
        }
    }
}

/// Takes a whole message from the front of what has come.
fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, CallError> {
    let Some((head, rest)) = buffer.split_first_chunk::<5>() else { return Ok(None) };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || len > MOST {
        return Err(CallError::lost("a message that cannot be"));
    }
    if rest.len() < len {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(len).freeze()))
}

/// How a call ended, as its headers say.
fn refusal(headers: &HeaderMap) -> CallError {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status").and_then(|code| code.parse().ok()).map_or(Code(2), Code);
    let message = text("grpc-message").unwrap_or_default().replace("%20", " ");
    match code == Code::OK || code.is_final() {
        true => CallError::Refused { code, message },
        false => CallError::lost(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_by_scheme_host_and_port() {
        for (text, host, port, secure) in [
            ("http://127.0.0.1:2379", "127.0.0.1", 2379, false),
            ("https://etcd.example:1/", "etcd.example", 1, true),
            ("https://[::1]:2379", "::1", 2379, true),
        ] {
            let found = Endpoint::parse(text).unwrap();
            assert_eq!((found.host.as_str(), found.port, found.secure), (host, port, secure));
        }
        for bad in ["etcd:2379", "ftp://a:1", "http://a", "http://:1", "http://a:x", "http://u@h:1"]
        {
            assert!(Endpoint::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_message_is_taken_when_all_of_it_has_come() {
        let whole = [0, 0, 0, 0, 2, 7, 8, 0, 0];
        for cut in 0..7 {
            assert!(take(&mut BytesMut::from(&whole[..cut])).unwrap().is_none());
        }
        let mut buffer = BytesMut::from(&whole[..]);
        assert_eq!(take(&mut buffer).unwrap().unwrap(), [7, 8][..]);
        assert_eq!(buffer, [0, 0][..]);
        assert!(take(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
        assert!(take(&mut BytesMut::from(&[0, 0xff, 0, 0, 0][..])).is_err());
    }

    #[test]
    fn only_what_etcd_has_decided_is_a_refusal() {
        let ended = |code: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.parse().unwrap());
            headers.insert("grpc-message", "some%20words".parse().unwrap());
            refusal(&headers)
        };
        let refused = ended("8");
        assert!(matches!(refused, CallError::Refused { code: Code::RESOURCE_EXHAUSTED, .. }));
        assert!(refused.to_string().ends_with("some words"));
        // Unavailable, deadline exceeded, unknown, internal, and what is no number.
        for unknown in ["14", "4", "2", "13", "x"] {
            assert!(matches!(ended(unknown), CallError::Lost(_)), "{unknown}");
        }
    }
}
