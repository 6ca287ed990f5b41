//! Servers that lie, stall and break off: clear errors, bounded time, bounded memory.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use smb_client::{
    Client, ConnectOptions, Encryption, Error, Login, OpenOptions, RemoteFile, Session,
};
use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId, TreeId,
    crypto::{
        Cipher, OpeningKey, PreauthHash, Role, SealingKey, SigningAlgorithm, SigningKey,
        TransformHeader,
        kdf::{self, Binding},
    },
    header::{HEADER_LEN, frame_len, frame_prefix},
    msg::{create, error, negotiate, read, session_setup, simple::Empty, tree_connect},
    ntlm::{NtHash, ServerInfo},
    spnego::{Acceptor, Step},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

const PASSWORD: &str = "geheim";

/// What the server does with a READ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trick {
    Honest,
    CutInside,
    HugeFrame,
    WrongSignature,
    NoSignature,
    Reflected,
    PendingForEver,
    PendingTwice,
    Silent,
    NobodyAsked,
    TooMuchData,
    DataOutside,
    PlainWhenSealed,
    BadSeal,
    CompoundLoop,
    RequestInstead,
    CreditFlood,
    DeafToEcho,
}

/// Sets one byte of the n-th response of the handshake, and tells whether that changed it.
type Mutation = Option<(usize, prop::sample::Index, u8, Arc<AtomicBool>)>;

struct Server {
    address: SocketAddr,
    cancelled: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Peer {
    socket: TcpStream,
    trick: Trick,
    mutation: Mutation,
    sent: usize,
    signing: Option<SigningKey>,
    sealing: Option<(SealingKey, OpeningKey)>,
    seal: bool,
    cancelled: Arc<Notify>,
}

impl Server {
    async fn start(trick: Trick, mutation: Mutation) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancelled = Arc::new(Notify::new());
        let for_task = Arc::clone(&cancelled);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let mutation = mutation.clone();
                let cancelled = Arc::clone(&for_task);
                tokio::spawn(async move {
                    let mut peer = Peer {
                        socket,
                        trick,
                        mutation,
                        sent: 0,
                        signing: None,
                        sealing: None,
                        seal: false,
                        cancelled,
                    };
                    // The end of the client's patience is the end of the connection.
                    let _ = peer.serve().await;
                });
            }
        });
        Self { address, cancelled, task }
    }

    fn options(&self, encryption: Encryption) -> ConnectOptions {
        ConnectOptions {
            encryption,
            request_timeout: Duration::from_millis(1200),
            connect_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(1),
            reconnect_timeout: Duration::ZERO,
            ciphers: vec![Cipher::Aes128Gcm],
            signing_algorithms: vec![SigningAlgorithm::AesGmac],
            dialects: (Dialect::SMB_3_1_1, Dialect::SMB_3_1_1),
            ..ConnectOptions::new("127.0.0.1", self.address.port(), Login::new("admin", PASSWORD))
        }
    }
}

fn lookup(user: &str, _: &str) -> Option<NtHash> {
    (user == "admin").then(|| NtHash::of_password(PASSWORD))
}

impl Peer {
    async fn receive(&mut self) -> std::io::Result<(Header, Vec<u8>)> {
        let mut prefix = [0; 4];
        self.socket.read_exact(&mut prefix).await?;
        let mut message = vec![0; frame_len(prefix).unwrap()];
        self.socket.read_exact(&mut message).await?;
        if TransformHeader::starts(&message) {
            let (_, key) = self.sealing.as_ref().unwrap();
            message = key.open(&mut message).unwrap().to_vec();
            self.seal = true;
        }
        Ok((Header::parse(&message).unwrap(), message))
    }

    fn reply(request: &Header, status: NtStatus, encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = Vec::new();
        let mut header = Header {
            flags: HeaderFlags::RESPONSE,
            status,
            credits: request.credits.max(1),
            ..*request
        };
        header.set_tree_id(TreeId(7));
        header.encode(&mut message);
        encode(&mut message);
        message
    }

    async fn send(&mut self, mut message: Vec<u8>, sign: bool) -> std::io::Result<()> {
        if self.seal {
            let mut sealed = vec![0; TransformHeader::LEN];
            sealed.append(&mut message);
            message = sealed;
            self.sealing.as_ref().unwrap().0.seal(9, &mut message).unwrap();
        } else if sign && let Some(key) = &self.signing {
            key.sign(&mut message, Role::Server).unwrap();
        }
        self.send_raw(message).await
    }

    async fn send_raw(&mut self, mut message: Vec<u8>) -> std::io::Result<()> {
        if let Some((which, index, value, changed)) = &self.mutation
            && *which == self.sent
        {
            let index = index.index(message.len());
            changed.store(message[index] != *value, Ordering::SeqCst);
            message[index] = *value;
        }
        self.sent += 1;
        let prefix = frame_prefix(message.len()).unwrap();
        message.splice(..0, prefix);
        self.socket.write_all(&message).await
    }

    async fn serve(&mut self) -> std::io::Result<()> {
        self.log_on().await?;
        self.answer().await
    }

    /// Negotiates and lets the client log on.
    async fn log_on(&mut self) -> std::io::Result<()> {
        let mut preauth = PreauthHash::new();
        let (header, request) = self.receive().await?;
        preauth.update(&request);
        let response = negotiate::Response {
            security_mode: negotiate::SecurityMode::SIGNING_ENABLED,
            dialect: Dialect::SMB_3_1_1,
            capabilities: negotiate::Capabilities::LARGE_MTU,
            max_transact_size: 1 << 20,
            max_read_size: 1 << 20,
            max_write_size: 1 << 20,
            security_buffer: Acceptor::hint(false),
            contexts: vec![
                negotiate::Context::Preauth {
                    hashes: vec![negotiate::HashAlgorithm::SHA_512],
                    salt: vec![1; 32],
                },
                negotiate::Context::Encryption(vec![negotiate::Cipher::AES_128_GCM]),
                negotiate::Context::Signing(vec![negotiate::SigningAlgorithm::AES_GMAC]),
            ],
            ..Default::default()
        };
        let message = Self::reply(&header, NtStatus::SUCCESS, |out| response.encode(out));
        preauth.update(&message);
        self.send(message, false).await?;

        let mut acceptor = Acceptor::new(Arc::new(ServerInfo::standalone("fake")), None);
        loop {
            let (mut header, request) = self.receive().await?;
            preauth.update(&request);
            header.session_id = SessionId(9);
            let body = session_setup::Request::parse(&request[HEADER_LEN..]).unwrap();
            match acceptor.step(body.security_buffer, 1 << 57, lookup) {
                Ok(Step::Continue(token)) => {
                    let body =
                        session_setup::Response { security_buffer: &token, ..Default::default() };
                    let status = NtStatus::MORE_PROCESSING_REQUIRED;
                    let message = Self::reply(&header, status, |out| body.encode(out));
                    preauth.update(&message);
                    self.send(message, false).await?;
                }
                Ok(Step::Done(done)) => {
                    let binding = Binding::Smb311(&preauth);
                    let key = kdf::signing_key(&done.session_key.first_16(), binding);
                    let signing = SigningKey::new(SigningAlgorithm::AesGmac, &key.first_16());
                    self.signing = Some(signing);
                    let cipher = Cipher::Aes128Gcm;
                    let keys = kdf::cipher_keys(&done.session_key, cipher, binding);
                    self.sealing = Some((
                        SealingKey::new(cipher, keys.server_to_client),
                        OpeningKey::new(cipher, &keys.client_to_server),
                    ));
                    let body = session_setup::Response {
                        security_buffer: &done.token,
                        ..Default::default()
                    };
                    let message = Self::reply(&header, NtStatus::SUCCESS, |out| body.encode(out));
                    self.send(message, true).await?;
                    break;
                }
                Err(_) => {
                    let body = error::Response::default();
                    let status = NtStatus::LOGON_FAILURE;
                    let message = Self::reply(&header, status, |out| body.encode(out));
                    self.send(message, false).await?;
                }
            }
        }
        Ok(())
    }

    /// Answers requests until the client has gone.
    async fn answer(&mut self) -> std::io::Result<()> {
        loop {
            let (header, request) = self.receive().await?;
            let message = match header.command {
                Command::TREE_CONNECT => {
                    let body = tree_connect::Response {
                        share_type: tree_connect::ShareType::DISK,
                        ..Default::default()
                    };
                    Self::reply(&header, NtStatus::SUCCESS, |out| body.encode(out))
                }
                Command::CREATE => {
                    let file_id = FileId { persistent: 1, volatile: 2 };
                    let body = create::Response { file_id, ..Default::default() };
                    Self::reply(&header, NtStatus::SUCCESS, |out| body.encode(out))
                }
                Command::ECHO if self.trick == Trick::DeafToEcho => continue,
                Command::CANCEL => {
                    self.cancelled.notify_one();
                    continue;
                }
                Command::ECHO => Self::reply(&header, NtStatus::SUCCESS, |out| Empty.encode(out)),
                Command::READ => {
                    self.play(&header, &request).await?;
                    continue;
                }
                _ => {
                    let body = error::Response::default();
                    Self::reply(&header, NtStatus::NOT_SUPPORTED, |out| body.encode(out))
                }
            };
            self.send(message, true).await?;
        }
    }

    async fn play(&mut self, header: &Header, request: &[u8]) -> std::io::Result<()> {
        let asked = read::Request::parse(&request[HEADER_LEN..]).unwrap().length as usize;
        let data = vec![0x42; asked];
        let good = Self::reply(header, NtStatus::SUCCESS, |out| {
            read::Response { data: &data, remaining: 0 }.encode(out);
        });
        let pending = || {
            let mut message = Self::reply(header, NtStatus::PENDING, |out| {
                error::Response::default().encode(out);
            });
            let mut parsed = Header::parse(&message).unwrap();
            parsed.flags |= HeaderFlags::ASYNC;
            parsed.async_or_tree = 77;
            message[..HEADER_LEN].copy_from_slice(&parsed.to_bytes());
            message
        };
        match self.trick {
            Trick::Honest | Trick::DeafToEcho => self.send(good, true).await,
            Trick::CutInside => {
                self.socket.write_all(&frame_prefix(good.len()).unwrap()).await?;
                self.socket.write_all(&good[..good.len() / 2]).await?;
                self.socket.shutdown().await
            }
            Trick::HugeFrame => {
                self.socket.write_all(&[0, 0xff, 0xff, 0xff]).await?;
                let filler = vec![0; 1 << 16];
                while self.socket.write_all(&filler).await.is_ok() {}
                Ok(())
            }
            Trick::WrongSignature => {
                let mut message = good;
                self.signing.as_ref().unwrap().sign(&mut message, Role::Server).unwrap();
                let last = message.len() - 1;
                message[last] ^= 1;
                self.send_raw(message).await
            }
            Trick::NoSignature => self.send(good, false).await,
            Trick::Reflected => {
                let mut message = good;
                self.signing.as_ref().unwrap().sign(&mut message, Role::Client).unwrap();
                self.send_raw(message).await
            }
            Trick::PendingForEver => self.send(pending(), false).await,
            Trick::PendingTwice => {
                self.send(pending(), false).await?;
                self.send(pending(), false).await
            }
            Trick::Silent => Ok(()),
            Trick::NobodyAsked => {
                let mut other = *header;
                other.message_id = MessageId(header.message_id.0 + 1000);
                let message = Self::reply(&other, NtStatus::SUCCESS, |out| {
                    read::Response { data: &data, remaining: 0 }.encode(out);
                });
                self.send(message, true).await
            }
            Trick::TooMuchData => {
                let data = vec![0; asked + 1];
                let message = Self::reply(header, NtStatus::SUCCESS, |out| {
                    read::Response { data: &data, remaining: 0 }.encode(out);
                });
                self.send(message, true).await
            }
            Trick::DataOutside => {
                let mut message = good;
                message[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&u32::MAX.to_le_bytes());
                self.send(message, true).await
            }
            Trick::PlainWhenSealed => {
                self.seal = false;
                self.send(good, true).await
            }
            Trick::BadSeal => {
                let mut message = vec![0; TransformHeader::LEN];
                message.extend_from_slice(&good);
                self.sealing.as_ref().unwrap().0.seal(9, &mut message).unwrap();
                let last = message.len() - 1;
                message[last] ^= 1;
                self.send_raw(message).await
            }
            Trick::CompoundLoop => {
                let mut message = good;
                message[20..24].copy_from_slice(&8u32.to_le_bytes());
                self.send(message, true).await
            }
            Trick::RequestInstead => {
                let mut message = good;
                message[16] &= !1;
                self.send(message, true).await
            }
            Trick::CreditFlood => {
                let mut message = good;
                message[14..16].copy_from_slice(&u16::MAX.to_le_bytes());
                self.send(message, true).await
            }
        }
    }
}

async fn open(server: &Server, encryption: Encryption) -> (Session, RemoteFile) {
    let session = Client::connect(server.options(encryption)).await.unwrap();
    let tree = session.tree("vms").await.unwrap();
    let file = tree.open("disk", OpenOptions::read()).await.unwrap();
    (session, file)
}

#[tokio::test]
async fn an_honest_server_is_understood() {
    for encryption in [Encryption::IfRequired, Encryption::Required] {
        let server = Server::start(Trick::Honest, None).await;
        let (_session, file) = open(&server, encryption).await;
        let mut buf = vec![0; 3 << 20];
        assert_eq!(file.read(0, &mut buf).await.unwrap(), buf.len());
        assert!(buf.iter().all(|b| *b == 0x42));
    }
}

#[tokio::test]
async fn every_trick_gives_its_error() {
    type Check = fn(&Error) -> bool;
    let protocol: Check = |e| matches!(e, Error::Protocol(_));
    let forged: Check = |e| matches!(e, Error::NotAuthentic(_));
    let late: Check = |e| matches!(e, Error::Timeout { what: "READ", .. });
    let gone: Check = |e| matches!(e, Error::Disconnected(_));
    let (plain, sealed) = (Encryption::IfRequired, Encryption::Required);
    for (trick, encryption, check) in [
        (Trick::CutInside, plain, gone),
        (Trick::HugeFrame, plain, protocol),
        (Trick::WrongSignature, plain, forged),
        (Trick::NoSignature, plain, forged),
        (Trick::Reflected, plain, forged),
        (Trick::PendingForEver, plain, late),
        (Trick::PendingTwice, plain, protocol),
        (Trick::Silent, plain, late),
        (Trick::Silent, sealed, late),
        (Trick::NobodyAsked, plain, protocol),
        (Trick::TooMuchData, plain, protocol),
        (Trick::TooMuchData, sealed, protocol),
        (Trick::DataOutside, plain, protocol),
        (Trick::PlainWhenSealed, sealed, forged),
        (Trick::NoSignature, sealed, |_| false),
        (Trick::BadSeal, sealed, forged),
        (Trick::CompoundLoop, plain, protocol),
        (Trick::RequestInstead, plain, protocol),
    ] {
        let server = Server::start(trick, None).await;
        let (_session, file) = open(&server, encryption).await;
        let mut buf = vec![0; 100_000];
        let result = tokio::time::timeout(Duration::from_secs(20), file.read(0, &mut buf)).await;
        let result = result.unwrap_or_else(|_| panic!("{trick:?}: the client hangs"));
        match result {
            Err(error) => assert!(check(&error), "{trick:?}: {error:?}"),
            // A sealed message needs no signature.
            Ok(_) => assert_eq!((trick, encryption), (Trick::NoSignature, sealed)),
        }
    }
}

#[tokio::test]
async fn a_flood_of_credits_is_bounded() {
    let server = Server::start(Trick::CreditFlood, None).await;
    let (_session, file) = open(&server, Encryption::IfRequired).await;
    let mut buf = [0; 512];
    for _ in 0..200 {
        file.read(0, &mut buf).await.unwrap();
    }
}

#[tokio::test]
async fn a_dropped_operation_is_cancelled_at_the_server() {
    for encryption in [Encryption::IfRequired, Encryption::Required] {
        for announced in [false, true] {
            let server = Server::start(Trick::PendingForEver, None).await;
            let (session, file) = open(&server, encryption).await;
            let mut buf = [0; 512];
            let until = async {
                if announced {
                    // Answered after the announcement that the read is pending.
                    session.echo().await.unwrap();
                }
            };
            tokio::select! {
                biased;
                result = file.read(0, &mut buf) => panic!("answered: {result:?}"),
                () = until => {}
            }
            let cancelled = server.cancelled.notified();
            tokio::time::timeout(Duration::from_secs(20), cancelled).await.expect("no CANCEL");
        }
    }
}

#[tokio::test]
async fn an_idle_connection_to_a_dead_server_is_given_up() {
    let server = Server::start(Trick::DeafToEcho, None).await;
    let (session, file) = open(&server, Encryption::IfRequired).await;
    let noticed = tokio::time::timeout(Duration::from_secs(30), async {
        // Nothing is asked of the server meanwhile: this looks at the session's state only.
        while session.dialect().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    noticed.await.expect("the dead server is not noticed");
    let error = file.read(0, &mut [0; 512]).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { what: "ECHO", .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_only_listens_is_given_up() {
    let server = Server::start(Trick::Honest, None).await;
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ConnectOptions {
        port: mute.local_addr().unwrap().port(),
        connect_timeout: Duration::from_millis(200),
        ..server.options(Encryption::IfRequired)
    };
    let error = Client::connect(options).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// No byte of negotiation and logon can be changed without the logon failing, not even those
    /// that carry nothing: pre-authentication integrity covers all of them.
    #[test]
    fn changed_handshakes_fail(
        which in 0..3usize, index in any::<prop::sample::Index>(), value: u8,
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let changed = Arc::new(AtomicBool::new(false));
            let mutation = Some((which, index, value, Arc::clone(&changed)));
            let server = Server::start(Trick::Honest, mutation).await;
            let options = ConnectOptions {
                connect_timeout: Duration::from_secs(10),
                ..server.options(Encryption::IfRequired)
            };
            let result = Client::connect(options).await;
            assert_eq!(result.is_err(), changed.load(Ordering::SeqCst), "{result:?}");
        });
    }
}
