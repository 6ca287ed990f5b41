//! A client that signs, on connections without sockets: what it knows of a session on each.

use std::sync::Arc;

use smb_protocol::{
    Command, Dialect, Header, NtStatus, SessionId,
    crypto::{
        PreauthHash, Role, SecretKey, SigningAlgorithm, SigningKey,
        kdf::{self, Binding},
    },
    header::{FRAME_LEN, HEADER_LEN},
    msg::{negotiate, session_setup, simple::Empty},
};

use super::*;

/// One connection of a client.
pub struct SigningClient {
    pub exchange: Exchange,
    pub caller: Caller,
    /// The session that the client had before.
    pub previous: SessionId,
    pub dialect: Dialect,
    algorithm: SigningAlgorithm,
    preauth: PreauthHash,
}

impl Deref for SigningClient {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl DerefMut for SigningClient {
    fn deref_mut(&mut self) -> &mut Caller {
        &mut self.caller
    }
}

/// What a client knows of a session on one connection.
pub struct Known {
    pub id: SessionId,
    pub signing: SigningKey,
}

impl SigningClient {
    pub fn new(
        server: &Arc<Server>,
        guid: u8,
        dialect: Dialect,
        algorithms: &[SigningAlgorithm],
    ) -> Self {
        let address = "127.0.0.1:1".parse().unwrap();
        let mut line = Self {
            exchange: Exchange::new(server.clone(), address, address),
            caller: Caller { credits: 8, ..Caller::default() },
            previous: SessionId(0),
            dialect,
            algorithm: match dialect.is_smb3() {
                true => SigningAlgorithm::AesCmac,
                false => SigningAlgorithm::HmacSha256,
            },
            preauth: PreauthHash::new(),
        };
        let mut contexts = Vec::new();
        if dialect == Dialect::SMB_3_1_1 {
            let hashes = vec![negotiate::HashAlgorithm::SHA_512];
            contexts.push(negotiate::Context::Preauth { hashes, salt: vec![1; 32] });
            if !algorithms.is_empty() {
                let list = algorithms.iter().map(|a| negotiate::SigningAlgorithm(a.wire_id()));
                contexts.push(negotiate::Context::Signing(list.collect()));
            }
        }
        let offer = negotiate::Request {
            dialects: vec![dialect],
            client_guid: [guid; 16],
            capabilities: negotiate::Capabilities::MULTI_CHANNEL
                | negotiate::Capabilities::PERSISTENT_HANDLES,
            contexts,
            ..Default::default()
        };
        let (header, request, response) =
            line.ask(Command::NEGOTIATE, SessionId(0), None, |out| offer.encode(out));
        assert_eq!(header.status, NtStatus::SUCCESS);
        line.preauth.update(&request);
        line.preauth.update(&response);
        // What the server chose is what it signs with.
        line.algorithm = line.exchange.negotiated.as_ref().unwrap().signing;
        line
    }

    /// Sends one message; returns the answer's header, what was sent and what came.
    pub fn ask(
        &mut self,
        command: Command,
        session: SessionId,
        key: Option<&SigningKey>,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> (Header, Vec<u8>, Vec<u8>) {
        self.caller.session = session;
        let mut message = self.caller.message(command, body);
        if let Some(key) = key {
            key.sign(&mut message, Role::Client).unwrap();
        }
        let mut out = Vec::new();
        let sent = message.clone();
        assert!(matches!(self.exchange.receive(&mut message, &mut out).unwrap(), Frame::Answered));
        let answer = out.split_off(FRAME_LEN);
        (Header::parse(&answer).unwrap(), sent, answer)
    }

    /// Authenticates: for a new session, or to bind to one that is known elsewhere, or again.
    /// The answer is checked to be signed by the key that it should be.
    pub fn setup(
        &mut self,
        user: &str,
        password: &str,
        known: Option<&Known>,
        flags: session_setup::RequestFlags,
    ) -> Result<Known, NtStatus> {
        let mut logon = Logon::new(user, password);
        let mut id = known.map_or(SessionId(0), |known| known.id);
        let mut preauth = self.preauth;
        let mut token = logon.first(&[]);
        for round in 0..2 {
            let request = session_setup::Request {
                flags,
                security_mode: 1,
                previous_session: self.previous,
                security_buffer: &token,
                ..Default::default()
            };
            let key = known.map(|known| &known.signing);
            let (header, sent, mut answer) =
                self.ask(Command::SESSION_SETUP, id, key, |out| request.encode(out));
            preauth.update(&sent);
            if round == 0 && header.status == NtStatus::MORE_PROCESSING_REQUIRED {
                if let Some(known) = known {
                    assert!(known.signing.verify(&mut answer, Role::Server));
                }
                preauth.update(&answer);
                id = header.session_id;
                let body = session_setup::Response::parse(&answer[HEADER_LEN..]).unwrap();
                token = logon.second(body.security_buffer);
                continue;
            }
            if header.status != NtStatus::SUCCESS {
                return Err(header.status);
            }
            let signing = self.signing_key(logon.key(), &preauth);
            let keeps = known.is_some() && !flags.has(session_setup::RequestFlags::BINDING);
            let signs = if keeps { &known.unwrap().signing } else { &signing };
            assert!(signs.verify(&mut answer, Role::Server), "signed with another key");
            return Ok(Known { id, signing });
        }
        panic!("an authentication without end")
    }

    pub fn signing_key(&self, secret: &SecretKey, preauth: &PreauthHash) -> SigningKey {
        let short = secret.first_16();
        let binding = match self.dialect {
            Dialect::SMB_3_1_1 => Binding::Smb311(preauth),
            _ => Binding::Smb30,
        };
        match self.dialect.is_smb3() {
            true => SigningKey::new(self.algorithm, &kdf::signing_key(&short, binding).first_16()),
            false => SigningKey::new(self.algorithm, &short),
        }
    }

    pub fn login(&mut self) -> Known {
        self.setup("u", "p", None, session_setup::RequestFlags::NONE).unwrap()
    }

    pub fn bind(&mut self, known: &Known) -> Result<Known, NtStatus> {
        self.setup("u", "p", Some(known), session_setup::RequestFlags::BINDING)
    }

    /// The status of a signed request that needs a session and a tree, of which there is none,
    /// and whether the answer is signed.
    pub fn probe(&mut self, known: &Known) -> (NtStatus, bool) {
        let key = Some(&known.signing);
        let (header, _, mut answer) =
            self.ask(Command::TREE_DISCONNECT, known.id, key, |out| Empty.encode(out));
        (header.status, known.signing.verify(&mut answer, Role::Server))
    }
}
