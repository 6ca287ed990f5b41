//! The other end: one call at a time, over TLS or the local socket. It blocks.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use control_socket::{HttpCall, Interface, Method};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::files;

/// Longest answer in bytes: a list of a quarter of a million opens.
const LONGEST: usize = 256 << 20;

/// How long a connection may take to be made, and how long nothing may come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a call may take: the server may have much to do.
const CALL: Duration = Duration::from_secs(600);

/// Authorities whose certificates the system trusts, on Debian.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The address is none.
    #[error("{0:?} is no address of the form https://host[:port]")]
    Address(String),
    /// A file cannot be used.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why, with what to do.
        why: String,
    },
    /// The server cannot be reached, or the connection broke.
    #[error("cannot ask the server at {0}: {1}")]
    Connection(String, String),
    /// The server says that it does not do it.
    #[error("{0}")]
    Refused(String),
    /// It lasts as long as its connection, which only the socket on the machine itself has.
    #[error("that can be asked for on the machine itself only, without --host")]
    OnlyThere,
    /// The answer is none.
    #[error("the server's answer is not understood")]
    Answer,
}

/// Where a server is.
#[derive(Debug, Clone)]
enum Place {
    Remote { host: String, port: u16, tls: Arc<ClientConfig> },
    Local(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Local(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A server that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
    token: Option<Zeroizing<String>>,
}

/// Host and port of an address; the port is 443 without a word.
fn host_and_port(address: &str) -> Option<(String, u16)> {
    let rest = address.strip_prefix("https://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, if port.is_empty() { "443" } else { port.strip_prefix(':')? })
        }
        None => rest.split_once(':').unwrap_or((rest, "443")),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    let good = !host.is_empty() && host.chars().all(legal);
    good.then(|| port.parse().ok().map(|port| (host.to_owned(), port)))?
}

/// The first line of a file that only its owner may read.
///
/// # Errors
/// If it cannot be read, or others can.
pub fn token_of(path: &Path) -> Result<Zeroizing<String>, CallError> {
    let bad = |why| CallError::File { path: path.to_owned(), why };
    let text = Zeroizing::new(files::read_private(path).map_err(bad)?);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().trim().to_owned()))
}

fn trust(ca: Option<&Path>) -> Result<ClientConfig, CallError> {
    let path = ca.unwrap_or(Path::new(SYSTEM));
    let bad = |why: String| CallError::File { path: path.to_owned(), why };
    let all = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in all {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        match roots.add(certificate) {
            Err(error) if ca.is_some() => return Err(bad(error.to_string())),
            _ => {}
        }
    }
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
        .map_err(|error| bad(error.to_string()))
}

impl Client {
    /// A server at `https://host[:port]`, whose certificate is of an authority in the file `ca`, or of
    /// one that the system trusts.
    ///
    /// # Errors
    /// If the address is none, or the file cannot be used.
    pub fn remote(
        address: &str,
        ca: Option<&Path>,
        token: Option<Zeroizing<String>>,
    ) -> Result<Self, CallError> {
        let place = host_and_port(address).ok_or_else(|| CallError::Address(address.to_owned()))?;
        let (host, port) = place;
        Ok(Self { place: Place::Remote { host, port, tls: Arc::new(trust(ca)?) }, token })
    }

    /// The server whose socket `api.sock` this is.
    pub fn local(path: &Path) -> Self {
        Self { place: Place::Local(path.to_owned()), token: None }
    }

    /// Has the server carry out a request.
    ///
    /// # Errors
    /// What the server says, or that it cannot be asked.
    pub fn call<I: Interface>(&self, request: &I::Request) -> Result<I::Reply, CallError> {
        let HttpCall { method, path, body } =
            HttpCall::of::<I>(request).ok_or(CallError::OnlyThere)?;
        self.exchange(method, &path, body)
    }

    /// Makes a call with a body that is JSON, or without one.
    ///
    /// # Errors
    /// What the server says, or that it cannot be asked.
    pub fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, CallError> {
        let body = body.map(serde_json::to_string).transpose().map_err(|_| CallError::Answer)?;
        self.exchange(method, path, body)
    }

    fn broken(&self, why: impl fmt::Display) -> CallError {
        CallError::Connection(self.place.to_string(), why.to_string())
    }

    fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<T, CallError> {
        let mut request = Request::builder().method(method.name()).uri(path);
        let host = match &self.place {
            Place::Remote { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Place::Remote { host, port, .. } => format!("{host}:{port}"),
            Place::Local(_) => "localhost".to_owned(),
        };
        request = request.header(header::HOST, host);
        if let Some(token) = &self.token {
            let text = Zeroizing::new(format!("Bearer {}", **token));
            let mut value = HeaderValue::from_str(&text).map_err(|_| {
                self.broken("the token is none: it has letters that no header may have")
            })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(|error| self.broken(error))?;
        let ask = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| self.broken(error))?;
            let answered = async { tokio::time::timeout(CALL, self.send(request)).await };
            runtime.block_on(answered).map_err(|_| self.broken("no answer in time"))?
        };
        // On a thread of its own: the caller's may be one of a runtime.
        let done = std::thread::scope(|scope| scope.spawn(ask).join());
        let (status, bytes) = done.map_err(|_| self.broken("the call ended early"))??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|_| CallError::Answer);
        }
        let said: Option<Value> = serde_json::from_slice(&bytes).ok();
        let message = said.as_ref().and_then(|said| said["error"]["message"].as_str());
        match (status, message) {
            (StatusCode::UNAUTHORIZED, _) => {
                Err(CallError::Refused("the token or password is not good".to_owned()))
            }
            (_, Some(message)) => Err(CallError::Refused(message.to_owned())),
            (status, None) => Err(CallError::Refused(format!("it answered {status}"))),
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), CallError> {
        match &self.place {
            Place::Local(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| self.broken(error))?;
                self.over(stream, request).await
            }
            Place::Remote { host, port, tls } => {
                let connect = async {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
                    TlsConnector::from(tls.clone()).connect(name, stream).await
                };
                let stream = tokio::time::timeout(PATIENCE, connect).await;
                let stream = stream.map_err(|_| self.broken("no answer in time"))?;
                self.over(stream.map_err(|error| self.broken(error))?, request).await
            }
        }
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        // Ends with the sender.
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = answer.status();
        let whole = Limited::new(answer.into_body(), LONGEST).collect().await;
        Ok((status, whole.map_err(|error| self.broken(error))?.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports() {
        for (text, host, port) in [
            ("https://nas", "nas", 443),
            ("https://nas.example.com:8443/", "nas.example.com", 8443),
            ("https://192.0.2.1:1", "192.0.2.1", 1),
            ("https://[2001:db8::1]", "2001:db8::1", 443),
            ("https://[2001:db8::1]:8443", "2001:db8::1", 8443),
        ] {
            assert_eq!(host_and_port(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in [
            "nas",
            "http://nas",
            "https://",
            "https://nas:",
            "https://nas:x",
            "https://nas:99999",
            "https://nas/path",
            "https://user@nas",
            "https://nas\r\nX: y",
            "https://[::1",
            "https://[::1]x",
        ] {
            assert_eq!(host_and_port(text), None, "{text}");
        }
    }
}
