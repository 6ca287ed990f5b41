//! Negotiating a dialect and logging on (MS-SMB2 3.2.4.2.1, 3.2.5.2, 3.2.5.3), for a session of
//! its own or for one more channel of a session (3.2.5.3.3).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use smb_protocol::{
    Command, Dialect, Header, HeaderFlags, MessageId, NtStatus, SessionId,
    compression::Compression,
    crypto::{
        Cipher, OpeningKey, PreauthHash, Role, SealingKey, SecretKey, SigningAlgorithm, SigningKey,
        kdf::{self, Binding},
        random,
    },
    fscc::{filetime_from_unix, fsctl::ValidateNegotiate},
    header::{FRAME_LEN, HEADER_LEN, frame_len},
    msg::{
        negotiate::{self, Capabilities, Context, HashAlgorithm, SecurityMode},
        rdma::{TRANSFORM_ENCRYPTION, TRANSFORM_NONE},
        session_setup::{self, RequestFlags, SessionFlags},
    },
    spnego::Initiator,
};

use crate::{
    ConnectOptions, Encryption, Error, Result, Signing, compress,
    crypt::{Crypt, Guard, begin_frame, end_frame},
    redial::redial,
    wire::{self, Wire},
};

/// Longest response accepted while nobody is authenticated.
const MAX_HANDSHAKE: usize = 128 * 1024;
/// Rounds of session setup before the server is taken to be playing.
const MAX_ROUNDS: usize = 4;

/// What a connection is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose<'a> {
    /// A session of its own. It takes the place of the session `previous` of a lost connection;
    /// `first` are addresses at which the server was said to be, `others` those at which it may be found
    /// besides.
    Session { previous: SessionId, first: &'a [IpAddr], others: &'a [IpAddr] },
    /// One more channel of a session, at one address of the server.
    Channel { anchor: &'a Anchor, address: IpAddr },
}

impl Purpose<'_> {
    /// The purpose of a first connection: a session that is new.
    pub fn new() -> Self {
        Self::Session { previous: SessionId(0), first: &[], others: &[] }
    }
}

/// What a connection must know of a session to become one of its channels.
#[derive(Clone, Debug)]
pub(crate) struct Anchor {
    /// The session's own keys, which are those of its first channel.
    pub crypt: Arc<Crypt>,
    pub server_guid: [u8; 16],
}

/// A connection with a session on it.
#[derive(Debug)]
pub(crate) struct Established {
    pub wire: Wire,
    pub crypt: Arc<Crypt>,
    /// Whether all messages must be sealed, whatever the share says.
    pub seal_all: bool,
    pub limits: Limits,
    pub next_message: u64,
    pub credits: u32,
    /// What FSCTL_VALIDATE_NEGOTIATE_INFO has to confirm, where the dialect does not do it.
    pub validate: Option<Validation>,
    pub server_guid: [u8; 16],
    /// Sessions may have several channels.
    pub multichannel: bool,
}

/// What the server can take in one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub max_read: u32,
    pub max_write: u32,
    pub max_transact: u32,
    /// Requests of more than one credit are possible.
    pub large_mtu: bool,
}

/// Both sides of the negotiation as they were seen.
#[derive(Clone, Debug)]
pub(crate) struct Validation {
    pub request: ValidateNegotiate,
    pub capabilities: u32,
    pub guid: [u8; 16],
    pub security_mode: u16,
    pub dialect: u16,
}

struct Exchange {
    wire: Wire,
    next_message: u64,
    credits: u32,
    wanted: u16,
}

/// One answered request of the handshake: both messages from their header on.
struct Answer {
    request: Vec<u8>,
    response: Vec<u8>,
    header: Header,
}

impl Exchange {
    async fn call(
        &mut self,
        command: Command,
        session: SessionId,
        sign: Option<&SigningKey>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Answer> {
        let mut out = Vec::new();
        let at = begin_frame(&mut out, Guard::Plain);
        Header {
            credit_charge: 1,
            command,
            credits: self.wanted,
            message_id: MessageId(self.next_message),
            session_id: session,
            ..Header::default()
        }
        .encode(&mut out);
        encode(&mut out);
        end_frame(&mut out, at, Guard::Plain, None)?;
        if let Some(key) = sign {
            key.sign(&mut out[FRAME_LEN..], Role::Client)?;
        }
        self.next_message += 1;
        self.wire.send(&out).await.map_err(lost)?;

        let mut prefix = [0; FRAME_LEN];
        self.wire.receive_exactly(&mut prefix).await.map_err(lost)?;
        let len = frame_len(prefix)?;
        if !(HEADER_LEN..=MAX_HANDSHAKE).contains(&len) {
            return Err(Error::Protocol(format!("a response of {len} bytes to {command:?}")));
        }
        let mut response = vec![0; len];
        self.wire.receive_exactly(&mut response).await.map_err(lost)?;
        let header = Header::parse(&response)?;
        if !header.is_response()
            || header.command != command
            || header.message_id.0 + 1 != self.next_message
        {
            return Err(Error::Protocol(format!("not the response to {command:?}")));
        }
        self.credits = (self.credits - 1) + u32::from(header.credits);
        if self.credits == 0 {
            return Err(Error::Protocol("the server grants no credit".into()));
        }
        Ok(Answer { request: out.split_off(FRAME_LEN), response, header })
    }
}

fn lost(error: std::io::Error) -> Error {
    Error::disconnected(error.to_string())
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    filetime_from_unix(i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos())
}

/// What negotiation settled.
struct Negotiated {
    response: negotiate::Response,
    preauth: PreauthHash,
    signing: SigningAlgorithm,
    cipher: Option<Cipher>,
    compression: Option<Compression>,
    seals_remote: bool,
    validate: Option<Validation>,
}

/// Connects, negotiates and logs on, all of it within the connect timeout.
pub(crate) async fn establish(
    options: &ConnectOptions,
    client_guid: [u8; 16],
    purpose: Purpose<'_>,
) -> Result<Established> {
    let work = async {
        let network = options.network.as_ref();
        let wire = match purpose {
            Purpose::Session { previous: SessionId(0), .. } => {
                wire::dial(network, &options.host, options.port).await
            }
            Purpose::Session { first, others, .. } => redial(options, first, others).await,
            Purpose::Channel { address, .. } => {
                wire::dial(network, &address.to_string(), options.port).await
            }
        };
        let wire = wire.map_err(|source| Error::Connect {
            address: match purpose {
                Purpose::Session { .. } => options.address(),
                Purpose::Channel { address, .. } => {
                    SocketAddr::new(address, options.port).to_string()
                }
            },
            source: Arc::new(source),
        })?;
        let mut exchange =
            Exchange { wire, next_message: 0, credits: 1, wanted: options.credits.max(1) };
        let negotiated = negotiate(&mut exchange, options, client_guid, purpose).await?;
        log_on(exchange, options, negotiated, purpose).await
    };
    match tokio::time::timeout(options.connect_timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout { what: "connecting", after: options.connect_timeout }),
    }
}

async fn negotiate(
    exchange: &mut Exchange,
    options: &ConnectOptions,
    client_guid: [u8; 16],
    purpose: Purpose<'_>,
) -> Result<Negotiated> {
    let mut dialects = options.offered_dialects();
    if let Purpose::Channel { anchor, .. } = purpose {
        dialects.retain(|dialect| *dialect == anchor.crypt.dialect);
    }
    if dialects.is_empty() {
        return Err(Error::NotOffered("a dialect between the oldest and the newest allowed"));
    }
    let security_mode = match options.signing {
        Signing::Required => SecurityMode::SIGNING_ENABLED | SecurityMode::SIGNING_REQUIRED,
        Signing::IfRequired => SecurityMode::SIGNING_ENABLED,
    };
    let mut capabilities = Capabilities::LARGE_MTU;
    if dialects.iter().any(|dialect| dialect.is_smb3()) {
        capabilities |= Capabilities::PERSISTENT_HANDLES | Capabilities::ENCRYPTION;
        if options.may_have_channels() {
            capabilities |= Capabilities::MULTI_CHANNEL;
        }
    }
    let mut contexts = Vec::new();
    if dialects.contains(&Dialect::SMB_3_1_1) {
        contexts.push(Context::Preauth {
            hashes: vec![HashAlgorithm::SHA_512],
            salt: random::<32>().to_vec(),
        });
        if !options.ciphers.is_empty() {
            let list = options.ciphers.iter().map(|cipher| negotiate::Cipher(cipher.wire_id()));
            contexts.push(Context::Encryption(list.collect()));
        }
        let list = options.offered_signing();
        if !list.is_empty() {
            let list = list.iter();
            let list = list.map(|a| negotiate::SigningAlgorithm(a.wire_id())).collect();
            contexts.push(Context::Signing(list));
        }
        contexts.extend(compress::offer(options));
        if exchange.wire.direct().is_some() && !options.ciphers.is_empty() {
            contexts.push(Context::of_rdma_transforms(&[TRANSFORM_ENCRYPTION]));
        }
    }
    let request = negotiate::Request {
        security_mode,
        capabilities,
        client_guid,
        dialects: dialects.clone(),
        contexts,
    };
    let answer =
        exchange.call(Command::NEGOTIATE, SessionId(0), None, |out| request.encode(out)).await?;
    if answer.header.status != NtStatus::SUCCESS {
        return Err(match answer.header.status {
            NtStatus::NOT_SUPPORTED => Error::NotOffered("any of the dialects allowed"),
            status => Error::status("negotiate", status),
        });
    }
    let response = negotiate::Response::parse(&answer.response[HEADER_LEN..])?;
    if !dialects.contains(&response.dialect) {
        return Err(Error::Protocol(format!("chose the dialect {:?}", response.dialect)));
    }
    // What answers at another address must be the same server (MS-SMB2 3.2.5.2).
    if let Purpose::Channel { anchor, .. } = purpose
        && response.server_guid != anchor.server_guid
    {
        return Err(Error::NotAuthentic("another server answers at this address"));
    }
    let mut preauth = PreauthHash::new();
    preauth.update(&answer.request);
    preauth.update(&answer.response);
    let (signing, cipher) = choose(&response, options)?;
    if options.encryption == Encryption::Required && cipher.is_none() {
        return Err(Error::NotOffered("encryption"));
    }
    // MS-SMB2 3.2.5.5: whatever the dialect is, if a newer one was offered and could have been taken
    // out on the way. 3.1.1 proves the whole negotiation by itself.
    let offered_newer = dialects.last().is_some_and(|newest| newest.is_smb3());
    let validate = (response.dialect != Dialect::SMB_3_1_1 && offered_newer).then(|| Validation {
        request: ValidateNegotiate {
            capabilities: request.capabilities.0,
            guid: client_guid,
            security_mode: request.security_mode.0,
            dialects: dialects.iter().map(|dialect| dialect.0).collect(),
        },
        capabilities: response.capabilities.0,
        guid: response.server_guid,
        security_mode: response.security_mode.0,
        dialect: response.dialect.0,
    });
    let compression = compress::accept(&response, options)?;
    let mut seals_remote = false;
    for ids in response.contexts.iter().filter_map(Context::rdma_transforms) {
        let offered = exchange.wire.direct().is_some() && cipher.is_some();
        seals_remote = match ids?[..] {
            [TRANSFORM_ENCRYPTION] if offered => true,
            [TRANSFORM_NONE] => false,
            ref ids => return Err(Error::Protocol(format!("chose the RDMA transforms {ids:?}"))),
        };
    }
    Ok(Negotiated { response, preauth, signing, cipher, compression, seals_remote, validate })
}

/// The signing algorithm and the cipher, if any, that the response settles.
fn choose(
    response: &negotiate::Response,
    options: &ConnectOptions,
) -> Result<(SigningAlgorithm, Option<Cipher>)> {
    if !response.dialect.is_smb3() {
        return Ok((SigningAlgorithm::HmacSha256, None));
    }
    if response.dialect != Dialect::SMB_3_1_1 {
        let can = response.capabilities.has(Capabilities::ENCRYPTION);
        return Ok((SigningAlgorithm::AesCmac, can.then_some(Cipher::Aes128Ccm)));
    }
    let (mut signing, mut cipher, mut hash) = (SigningAlgorithm::AesCmac, None, false);
    for context in &response.contexts {
        match context {
            Context::Preauth { hashes, .. } => hash = hashes[..] == [HashAlgorithm::SHA_512],
            // A server without a common cipher answers 0 (MS-SMB2 3.3.5.4).
            Context::Encryption(list) if list[..] != [negotiate::Cipher(0)] => {
                let known = list.first().and_then(|id| Cipher::from_wire_id(id.0));
                match known {
                    Some(known) if list.len() == 1 && options.ciphers.contains(&known) => {
                        cipher = Some(known);
                    }
                    _ => return Err(Error::Protocol(format!("chose the ciphers {list:?}"))),
                }
            }
            Context::Signing(list) => {
                let known = list.first().and_then(|id| SigningAlgorithm::from_wire_id(id.0));
                match known {
                    Some(known)
                        if list.len() == 1 && options.offered_signing().contains(&known) =>
                    {
                        signing = known;
                    }
                    _ => return Err(Error::Protocol(format!("chose to sign with {list:?}"))),
                }
            }
            _ => {}
        }
    }
    if !hash {
        return Err(Error::Protocol("no pre-authentication integrity with SMB 3.1.1".into()));
    }
    Ok((signing, cipher))
}

async fn log_on(
    mut exchange: Exchange,
    options: &ConnectOptions,
    negotiated: Negotiated,
    purpose: Purpose<'_>,
) -> Result<Established> {
    let Negotiated { response, mut preauth, signing, cipher, compression, seals_remote, validate } =
        negotiated;
    let target = format!("cifs/{}", options.host);
    let mut initiator = Initiator::new(options.login.0.clone(), "", &target);
    let mut token = initiator.first(&response.security_buffer)?;
    let mode = match options.signing {
        Signing::Required => SecurityMode::SIGNING_ENABLED | SecurityMode::SIGNING_REQUIRED,
        Signing::IfRequired => SecurityMode::SIGNING_ENABLED,
    };
    let (anchor, previous) = match purpose {
        Purpose::Session { previous, .. } => (None, previous),
        Purpose::Channel { anchor, .. } => (Some(&*anchor.crypt), SessionId(0)),
    };
    let mut session = anchor.map_or(SessionId(0), |crypt| crypt.session_id);
    for _ in 0..MAX_ROUNDS {
        let request = session_setup::Request {
            flags: if anchor.is_some() { RequestFlags::BINDING } else { RequestFlags::NONE },
            security_mode: mode.0 as u8,
            previous_session: previous,
            security_buffer: &token,
            ..Default::default()
        };
        let key = anchor.map(|crypt| &crypt.signing);
        let encode = |out: &mut Vec<u8>| request.encode(out);
        let mut answer = exchange.call(Command::SESSION_SETUP, session, key, encode).await?;
        if anchor.is_some() && answer.header.session_id != session {
            return Err(Error::Protocol("bound to another session".into()));
        }
        session = answer.header.session_id;
        preauth.update(&answer.request);
        let status = answer.header.status;
        if status == NtStatus::MORE_PROCESSING_REQUIRED {
            preauth.update(&answer.response);
            let body = session_setup::Response::parse(&answer.response[HEADER_LEN..])?;
            token = initiator.second(body.security_buffer, now())?;
            continue;
        }
        if status != NtStatus::SUCCESS {
            let user = options.login.user().to_owned();
            return Err(Error::Logon { user, status });
        }
        let body = session_setup::Response::parse(&answer.response[HEADER_LEN..])?;
        if body.flags.any(SessionFlags::IS_GUEST | SessionFlags::IS_NULL) {
            return Err(Error::Guest);
        }
        // That the session is encrypted was said when it began (MS-SMB2 3.2.5.3.3).
        let wants_sealing = body.flags.has(SessionFlags::ENCRYPT_DATA) && anchor.is_none();
        initiator.last(body.security_buffer)?;
        let key = initiator
            .session_key()
            .ok_or(Error::Protocol("logged on before the challenge was answered".into()))?;
        let mut crypt = session_keys(response.dialect, session, key, signing, cipher, &preauth);
        crypt.compression = compression;
        crypt.seals_remote = seals_remote;
        // The last response proves that the server knows the session key, and with 3.1.1 that
        // nothing before it was changed.
        if !answer.header.flags.has(HeaderFlags::SIGNED) {
            return Err(Error::NotAuthentic("the end of the logon should be signed"));
        }
        if !crypt.signing.verify(&mut answer.response, Role::Server) {
            return Err(Error::NotAuthentic("the signature of the logon is wrong"));
        }
        if let Some(anchor) = anchor {
            // A channel has a signing key of its own, and encrypts with the session's.
            crypt.sealing = anchor.sealing.clone();
        }
        return finish(exchange, options, &response, crypt, wants_sealing, validate);
    }
    Err(Error::Protocol("session setup does not end".into()))
}

fn session_keys(
    dialect: Dialect,
    session_id: SessionId,
    key: &SecretKey,
    algorithm: SigningAlgorithm,
    cipher: Option<Cipher>,
    preauth: &PreauthHash,
) -> Crypt {
    let session_key = key.first_16();
    if !dialect.is_smb3() {
        let signing = SigningKey::new(algorithm, &session_key);
        return Crypt {
            dialect,
            session_id,
            signing,
            sign: true,
            sealing: None,
            compression: None,
            seals_remote: false,
        };
    }
    let binding = match dialect {
        Dialect::SMB_3_1_1 => Binding::Smb311(preauth),
        _ => Binding::Smb30,
    };
    let signing = SigningKey::new(algorithm, &kdf::signing_key(&session_key, binding).first_16());
    let sealing = cipher.map(|cipher| {
        let keys = kdf::cipher_keys(key, cipher, binding);
        Arc::new((
            SealingKey::new(cipher, keys.client_to_server),
            OpeningKey::new(cipher, &keys.server_to_client),
        ))
    });
    let (sign, compression, seals_remote) = (true, None, false);
    Crypt { dialect, session_id, signing, sign, sealing, compression, seals_remote }
}

fn finish(
    exchange: Exchange,
    options: &ConnectOptions,
    response: &negotiate::Response,
    mut crypt: Crypt,
    wants_sealing: bool,
    validate: Option<Validation>,
) -> Result<Established> {
    let seal_all = wants_sealing || options.encryption == Encryption::Required;
    if seal_all && crypt.sealing.is_none() {
        return Err(Error::NotOffered("encryption"));
    }
    crypt.sign = options.signing == Signing::Required
        || response.security_mode.has(SecurityMode::SIGNING_REQUIRED);
    const LEAST: u32 = 4096;
    let limits = Limits {
        max_read: response.max_read_size,
        max_write: response.max_write_size,
        max_transact: response.max_transact_size,
        large_mtu: response.capabilities.has(Capabilities::LARGE_MTU),
    };
    if limits.max_read.min(limits.max_write).min(limits.max_transact) < LEAST {
        return Err(Error::Protocol(format!("takes only {limits:?}")));
    }
    Ok(Established {
        wire: exchange.wire,
        crypt: Arc::new(crypt),
        seal_all,
        limits,
        next_message: exchange.next_message,
        credits: exchange.credits,
        validate,
        server_guid: response.server_guid,
        multichannel: response.dialect.is_smb3()
            && response.capabilities.has(Capabilities::MULTI_CHANNEL)
            && options.may_have_channels(),
    })
}
