//! A client at the other end of a real socket, which protects what it sends as the test says.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use smb_protocol::{
    Command, Dialect, FileId, Header, HeaderFlags, MessageId, NtStatus, SessionId, TreeId,
    compression::{Compression, CompressionAlgorithm, Packed},
    crypto::{
        Cipher, OpeningKey, PreauthHash, Role, SealingKey, SigningAlgorithm, SigningKey,
        TransformHeader,
        kdf::{self, Binding},
    },
    header::{FRAME_LEN, HEADER_LEN, frame_len, frame_prefix},
    msg::{
        create::{self, Access, Disposition, ShareAccess},
        negotiate::{self, Capabilities, HashAlgorithm},
        session_setup, tree_connect, write,
    },
    ntlm::{Credentials, NtHash},
    spnego::Initiator,
};
use tokio::sync::watch;

use crate::{Server, config::Config};

/// Longest wait for what must come.
const LIMIT: Duration = Duration::from_secs(60);

/// A server with one share, which any number of clients connect to.
pub(super) struct House {
    server: Arc<Server>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
    _folder: tempfile::TempDir,
}

impl House {
    pub(super) fn new(more: &str) -> Self {
        Self::sharing(more, "")
    }

    /// One with more lines for the server, and for its share.
    pub(super) fn sharing(more: &str, share: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("files")).unwrap();
        let text = format!(
            "[server]\nlisten=['127.0.0.1:0']\nstate_dir='{}'\n{more}\n\
             [[user]]\nname='u'\npassword='p'\n\
             [[share]]\nname='s'\npath='files'\nusers=['u']\n{share}\n",
            folder.path().join("state").display()
        );
        let config = Config::parse(&text, &folder.path().join("c")).unwrap();
        let server = Arc::new(Server::new(config).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = watch::channel(false);
        let serves = server.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, peer)) = listener.accept().await {
                let census = std::sync::Arc::<crate::census::Census>::default();
                let room = crate::census::Room { all: 100, each: 100, strangers: 100 };
                let (server, stopped) = (server.clone(), stopped.clone());
                tokio::spawn(async move {
                    let counted = census.enter(peer.ip(), room).await.expect("there is room");
                    let transport = crate::transport::Tcp::new(stream, peer);
                    super::super::run(transport, server, stopped, &counted).await
                });
            }
        });
        Self { server: serves, address, stop, runtime: Some(runtime), _folder: folder }
    }
}

impl House {
    /// Waits until something is so.
    pub(super) fn until(&self, mut what: impl FnMut(&Server) -> bool) {
        let begin = std::time::Instant::now();
        while !what(&self.server) {
            assert!(begin.elapsed() < LIMIT, "it does not come to that");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(LIMIT);
        }
    }
}

/// How a client protects what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    Plain,
    Signed,
    Sealed,
}

/// Protection with a dialect and an algorithm.
pub(super) const KINDS: [(Guard, Dialect, SigningAlgorithm); 6] = [
    (Guard::Plain, Dialect::SMB_2_1, SigningAlgorithm::HmacSha256),
    (Guard::Plain, Dialect::SMB_3_1_1, SigningAlgorithm::AesGmac),
    (Guard::Signed, Dialect::SMB_3_1_1, SigningAlgorithm::AesGmac),
    (Guard::Signed, Dialect::SMB_3_0_2, SigningAlgorithm::AesCmac),
    (Guard::Sealed, Dialect::SMB_3_1_1, SigningAlgorithm::AesGmac),
    (Guard::Sealed, Dialect::SMB_3_0_2, SigningAlgorithm::AesCmac),
];

/// Keys of a session.
struct Keys {
    signing: SigningKey,
    sealing: Option<(SealingKey, OpeningKey)>,
}

pub(super) struct Peer {
    stream: TcpStream,
    pub(super) guard: Guard,
    pub(super) dialect: Dialect,
    algorithm: SigningAlgorithm,
    preauth: PreauthHash,
    keys: Option<Keys>,
    /// Credits that each request asks for.
    pub(super) credits: u16,
    /// Credits that the last answer to a logon granted.
    pub(super) granted: u16,
    /// What it asks for.
    pub(super) capabilities: Capabilities,
    /// Compression algorithms that it offers, and whether with chains.
    pub(super) offered: Option<(Vec<CompressionAlgorithm>, bool)>,
    /// What was agreed on of them, and whether what it sends is compressed.
    pub(super) agreed: Option<Compression>,
    pub(super) packs: bool,
    /// The last frame came compressed.
    pub(super) came_packed: bool,
    /// What the server answered to that.
    pub(super) given: Option<negotiate::Response>,
    pub(super) next_id: u64,
    pub(super) session: SessionId,
    pub(super) tree: TreeId,
}

impl Peer {
    /// Connects, and says nothing.
    pub(super) fn strange(house: &House, kind: (Guard, Dialect, SigningAlgorithm)) -> Self {
        let stream = TcpStream::connect(house.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        let (guard, dialect, algorithm) = kind;
        Self {
            stream,
            guard,
            dialect,
            algorithm,
            preauth: PreauthHash::new(),
            keys: None,
            credits: 32,
            granted: 0,
            capabilities: Capabilities::ENCRYPTION,
            offered: None,
            agreed: None,
            packs: false,
            came_packed: false,
            given: None,
            next_id: 0,
            session: SessionId(0),
            tree: TreeId(0),
        }
    }

    /// One that has logged in and connected to the share.
    pub(super) fn new(house: &House, kind: (Guard, Dialect, SigningAlgorithm)) -> Self {
        Self::strange(house, kind).connected()
    }

    /// Logs in and connects to the share.
    pub(super) fn connected(self) -> Self {
        let guard = self.guard;
        let mut peer = self;
        peer.enter();
        // Whatever its user wants, a client of 3.1.1 signs that.
        if peer.guard == Guard::Plain && peer.dialect == Dialect::SMB_3_1_1 {
            peer.guard = Guard::Signed;
        }
        let message = peer.tree_connect();
        peer.send(&message);
        let answer = peer.receive().pop().unwrap();
        let header = Header::parse(&answer).unwrap();
        assert_eq!(header.status, NtStatus::SUCCESS);
        peer.tree = header.tree_id();
        peer.guard = guard;
        peer
    }

    /// Negotiates and logs in.
    pub(super) fn enter(&mut self) {
        self.negotiate();
        self.log_in();
    }

    pub(super) fn tree_connect(&mut self) -> Vec<u8> {
        let request = tree_connect::Request { flags: 0, path: "\\\\h\\s".into() };
        self.message(Command::TREE_CONNECT, |out| request.encode(out))
    }

    pub(super) fn offer(&self) -> negotiate::Request {
        let mut contexts = Vec::new();
        if self.dialect == Dialect::SMB_3_1_1 {
            let hashes = vec![HashAlgorithm::SHA_512];
            contexts = vec![
                negotiate::Context::Preauth { hashes, salt: vec![1; 32] },
                negotiate::Context::Encryption(vec![negotiate::Cipher(
                    Cipher::Aes128Gcm.wire_id(),
                )]),
                negotiate::Context::Signing(vec![negotiate::SigningAlgorithm(
                    self.algorithm.wire_id(),
                )]),
            ];
        }
        if let Some((algorithms, chained)) = &self.offered {
            let (flags, algorithms) = (u32::from(*chained), algorithms.clone());
            contexts.push(negotiate::Context::Compression { flags, algorithms });
        }
        negotiate::Request {
            dialects: vec![self.dialect],
            // A client speaks one dialect.
            client_guid: [self.dialect.0.to_le_bytes()[0]; 16],
            capabilities: self.capabilities,
            contexts,
            ..Default::default()
        }
    }

    pub(super) fn negotiate(&mut self) {
        let offer = self.offer();
        let message = self.message(Command::NEGOTIATE, |out| offer.encode(out));
        self.preauth.update(&message);
        self.send(&message);
        let answer = self.receive().pop().unwrap();
        self.preauth.update(&answer);
        let given = negotiate::Response::parse(&answer[HEADER_LEN..]).unwrap();
        self.agreed = given.contexts.iter().find_map(|context| match context {
            negotiate::Context::Compression { flags, algorithms } => {
                Compression::agreed(algorithms, algorithms, *flags == 1)
            }
            _ => None,
        });
        self.given = Some(given);
    }

    fn log_in(&mut self) {
        let hash = NtHash::of_password("p");
        let who = Credentials { user: "u".into(), domain: String::new(), hash };
        let mut initiator = Initiator::new(who, "", "cifs/s");
        let mut token = initiator.first(&[]).unwrap();
        for _ in 0..2 {
            let request = session_setup::Request {
                security_mode: 1,
                security_buffer: &token,
                ..Default::default()
            };
            let message = self.message(Command::SESSION_SETUP, |out| request.encode(out));
            self.preauth.update(&message);
            self.send(&message);
            let mut answer = self.receive().pop().unwrap();
            let header = Header::parse(&answer).unwrap();
            self.session = header.session_id;
            self.granted = header.credits;
            if header.status == NtStatus::MORE_PROCESSING_REQUIRED {
                self.preauth.update(&answer);
                let body = session_setup::Response::parse(&answer[HEADER_LEN..]).unwrap();
                token = initiator.second(body.security_buffer, 0).unwrap();
                continue;
            }
            assert_eq!(header.status, NtStatus::SUCCESS);
            let secret = initiator.session_key().unwrap();
            let short = secret.first_16();
            let binding = match self.dialect {
                Dialect::SMB_3_1_1 => Binding::Smb311(&self.preauth),
                _ => Binding::Smb30,
            };
            let three = self.dialect.is_smb3();
            let key = match three {
                true => kdf::signing_key(&short, binding).first_16(),
                false => short,
            };
            let cipher = match self.dialect {
                Dialect::SMB_3_1_1 => Cipher::Aes128Gcm,
                _ => Cipher::Aes128Ccm,
            };
            let sealing = three.then(|| {
                let keys = kdf::cipher_keys(secret, cipher, binding);
                (
                    SealingKey::new(cipher, keys.client_to_server),
                    OpeningKey::new(cipher, &keys.server_to_client),
                )
            });
            let signing = SigningKey::new(self.algorithm, &key);
            assert!(signing.verify(&mut answer, Role::Server) || !three);
            self.keys = Some(Keys { signing, sealing });
        }
        assert!(self.keys.is_some());
    }

    fn setup(&mut self, token: &[u8]) {
        let request = session_setup::Request {
            security_mode: 1,
            security_buffer: token,
            ..Default::default()
        };
        let message = self.message(Command::SESSION_SETUP, |out| request.encode(out));
        self.send(&message);
    }

    /// Begins a logon as another session; what the server says to it.
    pub(super) fn begin_new_log_in(&mut self) -> NtStatus {
        self.session = SessionId(0);
        let hash = NtHash::of_password("p");
        let who = Credentials { user: "u".into(), domain: String::new(), hash };
        let token = Initiator::new(who, "", "cifs/s").first(&[]).unwrap();
        self.setup(&token);
        Header::parse(&self.receive().pop().unwrap()).unwrap().status
    }

    /// Gives a password, and does not wait for what comes of it.
    pub(super) fn begin_log_in(&mut self, user: &str, password: &str) -> bool {
        self.session = SessionId(0);
        self.log_in_again(user, password)
    }

    /// The same in the session that it has.
    pub(super) fn log_in_again(&mut self, user: &str, password: &str) -> bool {
        let hash = NtHash::of_password(password);
        let who = Credentials { user: user.into(), domain: String::new(), hash };
        let mut initiator = Initiator::new(who, "", "cifs/s");
        let token = initiator.first(&[]).unwrap();
        self.setup(&token);
        let Some(answer) = self.receive().pop() else { return false };
        let header = Header::parse(&answer).unwrap();
        assert_eq!(header.status, NtStatus::MORE_PROCESSING_REQUIRED);
        self.session = header.session_id;
        let body = session_setup::Response::parse(&answer[HEADER_LEN..]).unwrap();
        let token = initiator.second(body.security_buffer, 0).unwrap();
        self.setup(&token);
        true
    }

    /// Whether the server signed a message.
    pub(super) fn is_signed(&self, message: &mut [u8]) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.signing.verify(message, Role::Server))
    }

    /// What came of it; nothing if the connection has ended.
    pub(super) fn end_log_in(&mut self) -> Option<NtStatus> {
        let answer = self.receive().pop()?;
        Some(Header::parse(&answer).unwrap().status)
    }

    pub(super) fn try_log_in(&mut self, password: &str) -> Option<NtStatus> {
        if self.begin_log_in("u", password) { self.end_log_in() } else { None }
    }

    /// A message of its session and tree.
    pub(super) fn message(&mut self, command: Command, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut header = Header {
            command,
            credit_charge: 1,
            credits: self.credits,
            message_id: MessageId(self.next_id),
            session_id: self.session,
            ..Header::default()
        };
        header.set_tree_id(self.tree);
        self.next_id += 1;
        let mut message = header.to_bytes().to_vec();
        body(&mut message);
        message
    }

    /// Puts messages into one frame, protected as the client does; one alone stays as long as it
    /// is.
    pub(super) fn frame(&self, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut all = Vec::new();
        for (at, message) in messages.iter().enumerate() {
            let start = all.len();
            all.extend_from_slice(message);
            if at + 1 < messages.len() {
                all.resize(start + message.len().next_multiple_of(8), 0);
                let next = (all.len() - start) as u32;
                let field = start + Header::NEXT_COMMAND_AT;
                all[field..field + 4].copy_from_slice(&next.to_le_bytes());
            }
            if self.guard == Guard::Signed
                && let Some(keys) = &self.keys
                && all.len() >= start + HEADER_LEN
            {
                // What a test makes on purpose may be no message whose nonce is new.
                let _ = keys.signing.sign(&mut all[start..], Role::Client);
            }
        }
        if self.packs {
            let agreed = self.agreed.expect("there is an agreement");
            let mut packed = Vec::new();
            assert!(agreed.compress(&all, HEADER_LEN + 48, &mut packed), "it is smaller");
            all = packed;
        }
        self.wrap(all)
    }

    /// A frame of what was signed and compressed as it has to be.
    pub(super) fn wrap(&self, mut all: Vec<u8>) -> Vec<u8> {
        if self.guard == Guard::Sealed
            && let Some(Keys { sealing: Some((seals, _)), .. }) = &self.keys
        {
            let mut room = vec![0; TransformHeader::LEN];
            room.append(&mut all);
            seals.seal(self.session.0, &mut room).unwrap();
            all = room;
        }
        let mut frame = frame_prefix(all.len()).unwrap().to_vec();
        frame.append(&mut all);
        frame
    }

    pub(super) fn send_frame(&mut self, frame: &[u8]) {
        self.stream.write_all(frame).unwrap();
    }

    /// Sends as much as the server takes.
    pub(super) fn offer_frame(&mut self, frame: &[u8]) {
        let _ = self.stream.write_all(frame);
    }

    pub(super) fn send(&mut self, message: &[u8]) {
        let frame = self.frame(&[message.to_vec()]);
        self.send_frame(&frame);
    }

    /// The messages of the next frame, opened and verified; none at the end of the connection.
    pub(super) fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut prefix = [0; FRAME_LEN];
        match self.stream.read_exact(&mut prefix) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return Vec::new(),
            Err(error) => panic!("nothing comes: {error}"),
        }
        let mut frame = vec![0; frame_len(prefix).unwrap()];
        self.stream.read_exact(&mut frame).unwrap();
        let sealed = TransformHeader::starts(&frame);
        if let Some(Keys { sealing: Some((_, opens)), .. }) = &self.keys {
            assert_eq!(sealed, self.guard == Guard::Sealed, "protected as the request was");
            if sealed {
                frame = opens.open(&mut frame).unwrap().to_vec();
            }
        }
        self.came_packed = Packed::starts(&frame);
        if self.came_packed {
            let agreed = self.agreed.expect("nobody compresses without");
            let mut whole = Vec::new();
            Packed::parse(&agreed, &frame, 8 << 20).unwrap().unpack(&mut whole).unwrap();
            frame = whole;
        }
        let mut messages = Vec::new();
        let mut rest = &mut frame[..];
        while !rest.is_empty() {
            let header = Header::parse(rest).unwrap();
            assert!(header.is_response());
            let next = header.next_command as usize;
            let (message, more) = rest.split_at_mut(if next == 0 { rest.len() } else { next });
            if let Some(keys) = &self.keys
                && self.guard == Guard::Signed
                && header.status != NtStatus::PENDING
            {
                assert!(header.flags.has(HeaderFlags::SIGNED));
                assert!(keys.signing.verify(message, Role::Server));
            }
            messages.push(message.to_vec());
            rest = more;
        }
        messages
    }

    /// Asks and waits for the answer.
    pub(super) fn ask(
        &mut self,
        command: Command,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> (Header, Vec<u8>) {
        let message = self.message(command, body);
        self.send(&message);
        loop {
            let answer = self.receive().pop().expect("the connection stays");
            let header = Header::parse(&answer).unwrap();
            if header.status != NtStatus::PENDING {
                return (header, answer[HEADER_LEN..].to_vec());
            }
        }
    }

    /// Whether the connection has ended, of which nothing more is to come.
    pub(super) fn has_ended(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let read = self.stream.read(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        match read {
            Ok(count) => count == 0,
            Err(error) => is_end(&error),
        }
    }

    /// All that comes until the connection ends, as it comes.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match self.stream.read_to_end(&mut all) {
            Ok(_) => all,
            Err(error) if is_end(&error) => all,
            Err(error) => {
                panic!("the connection does not end: {error}; {} bytes came: {all:02x?}", all.len())
            }
        }
    }

    pub(super) fn create(&mut self, name: &str) -> FileId {
        let request = create::Request {
            access: Access::ALL,
            share: ShareAccess(7),
            disposition: Disposition::OPEN_IF,
            name: name.into(),
            impersonation: 2,
            ..Default::default()
        };
        let (header, body) = self.ask(Command::CREATE, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        create::Response::parse(&body).unwrap().file_id
    }

    pub(super) fn write(&mut self, file_id: FileId, data: &[u8]) {
        let request = write::Request { file_id, data, ..Default::default() };
        let (header, _) = self.ask(Command::WRITE, |out| request.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
    }
}

/// Whether the other end is gone.
fn is_end(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
}
