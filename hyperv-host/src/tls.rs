//! TLS 1.3 between hosts, with certificates on both sides.
//!
//! Trust is the private authority: who has a certificate of it that names the role
//! `hyperv-host` is a VM host; `peers` in the configuration can narrow that to some names. What
//! address a host has does not matter, so hosts can be renumbered.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    client::verify_server_name,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
};

use crate::config::MigrationConfig;

/// The name that every host's certificate carries beside its own.
pub const ROLE: &str = host_api::pki::ROLE;

/// How long a stranger may take to show its certificate, with all that it sends for that.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why TLS cannot be set up or a peer is not trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate or key file is not usable.
    #[error("{path}: {why}")]
    File {
        /// Path of the file that the error is about.
        path: String,
        /// The reason, as a sentence for a person.
        why: String,
    },
    /// The configuration as a whole is not usable.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
    /// The connection could not be made or broke.
    #[error("cannot connect to {address}")]
    Connect {
        /// Address of the peer, `host:port`.
        address: String,
        /// The cause, as the layer below tells it.
        #[source]
        source: io::Error,
    },
    /// The peer is not who it must be.
    #[error("the peer is not trusted: {0}")]
    Untrusted(String),
    /// The connection broke.
    #[error("the connection broke while it was set up")]
    Io(#[from] io::Error),
}

/// An encrypted connection, from either side.
pub enum Stream {
    /// A connection that this host made.
    Client(Box<StreamOwned<ClientConnection, Buffered>>),
    /// A connection that this host accepted.
    Server(Box<StreamOwned<ServerConnection, Buffered>>),
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.socket().fmt(f)
    }
}

impl Stream {
    /// The socket below the encryption, to set its options.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Client(stream) => &stream.sock.socket,
            Self::Server(stream) => &stream.sock.socket,
        }
    }

    /// A handle that can cut the connection from another thread.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn cutter(&self) -> io::Result<Cutter> {
        Cutter::of(self.socket())
    }
}

/// A socket that is read in large pieces: TLS asks for 4 KiB at a time.
pub struct Buffered {
    socket: TcpStream,
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Buffered {
    const SIZE: usize = 256 << 10;

    fn new(socket: TcpStream) -> Self {
        Self { socket, buffer: vec![0; Self::SIZE].into(), at: 0, end: 0 }
    }
}

impl io::Read for Buffered {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end {
            self.end = self.socket.read(&mut self.buffer)?;
            self.at = 0;
        }
        let len = into.len().min(self.end - self.at);
        into[..len].copy_from_slice(&self.buffer[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

impl io::Write for Buffered {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.socket.write(from)
    }

    fn write_vectored(&mut self, from: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.socket.write_vectored(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Cuts a connection from another thread, whatever waits on it.
#[derive(Debug)]
pub struct Cutter(TcpStream);

impl Cutter {
    /// One for a socket.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn of(socket: &TcpStream) -> io::Result<Self> {
        socket.try_clone().map(Self)
    }

    /// Cuts it; both ends see it at once.
    pub fn cut(&self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl io::Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Client(stream) => stream.read(into),
            Self::Server(stream) => stream.read(into),
        }
    }
}

impl io::Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Client(stream) => stream.write(from),
            Self::Server(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Client(stream) => stream.flush(),
            Self::Server(stream) => stream.flush(),
        }
    }
}

/// A host's identity and whom it trusts.
#[derive(Debug, Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    peers: Vec<String>,
    timeout: Duration,
}

fn bad(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.display().to_string(), why: why.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad(path, error))
}

impl Tls {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(config: &MigrationConfig) -> Result<Self, TlsError> {
        // One provider, the fast cipher first; all that is offered is TLS 1.3.
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let provider: Arc<CryptoProvider> = Arc::new(provider);
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&config.ca)? {
            roots.add(certificate).map_err(|error| bad(&config.ca, error))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&config.certificate)?;
        let mode = std::fs::metadata(&config.key)
            .map_err(|error| bad(&config.key, error))?
            .permissions()
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            let why =
                format!("its mode is {mode:03o}; a key must be readable by its owner only (600)");
            return Err(bad(&config.key, why));
        }
        let key =
            || PrivateKeyDer::from_pem_file(&config.key).map_err(|error| bad(&config.key, error));
        let versions = &[&rustls::version::TLS13];
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key()?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|error| bad(&config.ca, error))?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key()?)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            peers: config.peers.clone(),
            timeout: Duration::from_secs(u64::from(config.timeout_s)),
        })
    }

    fn prepare(&self, socket: &TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(self.timeout))?;
        socket.set_write_timeout(Some(self.timeout))
    }

    /// Connects to another host.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn connect(&self, address: &str) -> Result<Stream, TlsError> {
        let failed = |source| TlsError::Connect { address: address.to_owned(), source };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
        for candidate in addresses {
            match TcpStream::connect_timeout(&candidate, self.timeout) {
                Ok(socket) => {
                    let name = ServerName::try_from(ROLE).expect("the role is a DNS name");
                    let mut tls = ClientConnection::new(self.client.clone(), name)?;
                    complete(&socket, self.timeout, |socket| {
                        tls.complete_io(socket).map(|_| tls.is_handshaking())
                    })
                    .map_err(failed)?;
                    self.prepare(&socket)?;
                    self.check_peer(tls.peer_certificates())?;
                    return Ok(Stream::Client(Box::new(StreamOwned::new(
                        tls,
                        Buffered::new(socket),
                    ))));
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Sets up an accepted connection.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn accept(&self, socket: TcpStream) -> Result<Stream, TlsError> {
        let mut tls = ServerConnection::new(self.server.clone())?;
        complete(&socket, self.timeout.min(HANDSHAKE), |socket| {
            tls.complete_io(socket).map(|_| tls.is_handshaking())
        })?;
        self.prepare(&socket)?;
        self.check_peer(tls.peer_certificates())?;
        Ok(Stream::Server(Box::new(StreamOwned::new(tls, Buffered::new(socket)))))
    }

    fn check_peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<(), TlsError> {
        let untrusted = |why: &str| TlsError::Untrusted(why.to_owned());
        let certificate =
            chain.and_then(<[_]>::first).ok_or_else(|| untrusted("it has no certificate"))?;
        let certificate = ParsedCertificate::try_from(certificate)?;
        let named = |name: &str| {
            ServerName::try_from(name.to_owned())
                .is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
        };
        if !named(ROLE) {
            return Err(untrusted("its certificate is not a VM host's"));
        }
        if !self.peers.is_empty() && !self.peers.iter().any(|peer| named(peer)) {
            return Err(untrusted("its name is not among the configured peers"));
        }
        Ok(())
    }
}

/// A socket until a point in time: what comes later, however little at a time, is too late.
struct Until<'a> {
    socket: &'a TcpStream,
    end: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"));
        }
        Ok(Some(left))
    }
}

impl io::Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(into)
    }
}

impl io::Write for Until<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Runs a handshake to its end, which must come in `time`.
fn complete(
    socket: &TcpStream,
    time: Duration,
    mut step: impl FnMut(&mut Until<'_>) -> io::Result<bool>,
) -> io::Result<()> {
    let mut until = Until { socket, end: Instant::now() + time };
    while step(&mut until)? {}
    Ok(())
}
