//! NEGOTIATE (MS-SMB2 3.3.5.4).

use smb_protocol::{
    Dialect, NtStatus,
    compression::{CAPABILITY_CHAINED, Compression, CompressionAlgorithm},
    crypto::{Cipher, PreauthHash, SigningAlgorithm},
    header::HEADER_LEN,
    msg::{
        negotiate::{
            self as wire, Capabilities, Context, HashAlgorithm, Request, Response, SecurityMode,
        },
        rdma::{TRANSFORM_ENCRYPTION, TRANSFORM_NONE},
    },
    spnego::Acceptor,
};
use volume::clock;

use super::{Ctx, Failure, Handled, Outcome};
use crate::config::{Config, Signing};

/// What client and server agreed on.
#[derive(Debug, Clone)]
pub struct Negotiated {
    /// The dialect.
    pub dialect: Dialect,
    /// How 3.1.1 signs.
    pub signing: SigningAlgorithm,
    /// How messages are encrypted, if they can be.
    pub cipher: Option<Cipher>,
    /// How messages are compressed, if they can be.
    pub compression: Option<Compression>,
    /// Data that go by RDMA are encrypted where their messages are: `Connection.RDMATransformIds`.
    pub seals_remote: bool,
    /// The client's identity.
    pub client_guid: [u8; 16],
    /// What the client sent, to be compared with what it says it sent.
    pub client_capabilities: u32,
    /// Likewise.
    pub client_security_mode: u16,
    /// Likewise.
    pub client_dialects: Vec<Dialect>,
    /// What we answered.
    pub capabilities: Capabilities,
    /// What we answered.
    pub security_mode: SecurityMode,
    /// Hash of the negotiation.
    pub preauth: PreauthHash,
}

impl Negotiated {
    /// Whether requests may cost more than one credit.
    pub fn large_mtu(&self) -> bool {
        self.capabilities.has(Capabilities::LARGE_MTU)
    }
}

/// The ciphers there are.
const CIPHERS: [Cipher; 4] =
    [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::Aes128Ccm, Cipher::Aes256Ccm];
/// Our preference among signing algorithms for a client with one connection.
const SIGNING: [SigningAlgorithm; 3] =
    [SigningAlgorithm::AesGmac, SigningAlgorithm::AesCmac, SigningAlgorithm::HmacSha256];
/// The same where a session may have channels. Each of them begins to count messages anew, and binding
/// requests and their answers are signed with `Session.SigningKey` on all of them (3.1.4.1,
/// 3.3.4.1.1): with AES-GMAC several messages would have one nonce, which gives the key away.
const SIGNING_WITH_CHANNELS: [SigningAlgorithm; 2] =
    [SigningAlgorithm::AesCmac, SigningAlgorithm::HmacSha256];

/// The highest dialect that both know.
fn choose(config: &Config, dialects: &[Dialect]) -> Option<Dialect> {
    [Dialect::SMB_3_1_1, Dialect::SMB_3_0_2, Dialect::SMB_3_0, Dialect::SMB_2_1, Dialect::SMB_2_0_2]
        .into_iter()
        .filter(|d| (config.min_dialect..=config.max_dialect).contains(d))
        .find(|d| dialects.contains(d))
}

/// Security mode that the server answers.
pub fn security_mode(config: &Config) -> SecurityMode {
    match config.signing {
        Signing::Required => SecurityMode::SIGNING_ENABLED | SecurityMode::SIGNING_REQUIRED,
        Signing::Enabled => SecurityMode::SIGNING_ENABLED,
    }
}

/// Largest read, write and transaction: what one credit pays for where there is no other.
pub fn max_payload(config: &Config, dialect: Dialect) -> u32 {
    if dialect == Dialect::SMB_2_0_2 { config.max_io_size.min(1 << 16) } else { config.max_io_size }
}

/// Carries out a NEGOTIATE request.
pub fn handle(ctx: &mut Ctx<'_>, message: &[u8], out: &mut Vec<u8>) -> Handled {
    let request = Request::parse(&message[HEADER_LEN..])?;
    if request.dialects.is_empty() {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    let server = ctx.ex.server.clone();
    let current = server.current();
    let config = &current.config;
    let dialect = choose(config, &request.dialects).ok_or(NtStatus::NOT_SUPPORTED)?;
    let signing =
        if dialect.is_smb3() { SigningAlgorithm::AesCmac } else { SigningAlgorithm::HmacSha256 };
    let mut chosen = Chosen { signing, cipher: None, compression: None, seals_remote: false };
    let mut contexts = Vec::new();
    let mut channels = dialect.is_smb3()
        && config.multichannel
        && request.capabilities.has(Capabilities::MULTI_CHANNEL);
    if dialect == Dialect::SMB_3_1_1 {
        // Nothing is compressed where data go from memory to memory (<100>, <261>).
        let remote = ctx.ex.remote_memory.is_some();
        let algorithms = if remote { &[] } else { &config.compression[..] };
        contexts = contexts_311((config, algorithms), &request, channels, &mut chosen)?;
        // It signs with nothing else, so it has one connection.
        channels &= chosen.signing != SigningAlgorithm::AesGmac;
    } else if dialect.is_smb3()
        && config.offers_encryption()
        && request.capabilities.has(Capabilities::ENCRYPTION)
    {
        chosen.cipher = Some(Cipher::Aes128Ccm);
    }
    let mut capabilities = Capabilities::NONE;
    if !config.namespaces.is_empty() {
        capabilities |= Capabilities::DFS;
    }
    if dialect != Dialect::SMB_2_0_2 {
        capabilities |= Capabilities::LARGE_MTU | Capabilities::LEASING;
    }
    if dialect.is_smb3() && request.capabilities.has(Capabilities::DIRECTORY_LEASING) {
        capabilities |= Capabilities::DIRECTORY_LEASING;
    }
    let Chosen { signing, cipher, compression, seals_remote } = chosen;
    if cipher.is_some() && dialect != Dialect::SMB_3_1_1 {
        capabilities |= Capabilities::ENCRYPTION;
    }
    if channels {
        capabilities |= Capabilities::MULTI_CHANNEL;
    }
    if dialect.is_smb3()
        && server.open_files.persistent_opens.is_there()
        && request.capabilities.has(Capabilities::PERSISTENT_HANDLES)
    {
        capabilities |= Capabilities::PERSISTENT_HANDLES;
    }
    let security_mode = security_mode(config);
    let max = max_payload(config, dialect);
    Response {
        security_mode,
        dialect,
        server_guid: server.ids.server_guid(),
        capabilities,
        max_transact_size: max,
        max_read_size: max,
        max_write_size: max,
        system_time: clock::now(),
        security_buffer: Acceptor::hint(current.kerberos.is_some()),
        contexts,
    }
    .encode(out);
    let mut preauth = PreauthHash::new();
    preauth.update(message);
    ctx.ex.negotiated = Some(Negotiated {
        dialect,
        signing,
        cipher,
        compression,
        seals_remote,
        client_guid: request.client_guid,
        client_capabilities: request.capabilities.0,
        client_security_mode: request.security_mode.0,
        client_dialects: request.dialects,
        capabilities,
        security_mode,
        preauth,
    });
    Ok(Outcome::SUCCESS)
}

/// How messages of a connection are protected and compressed.
struct Chosen {
    signing: SigningAlgorithm,
    cipher: Option<Cipher>,
    compression: Option<Compression>,
    seals_remote: bool,
}

/// Chooses among the offers of a 3.1.1 client (MS-SMB2 3.3.5.4); `compression` has the algorithms that
/// are offered on this connection.
fn contexts_311(
    (config, compression): (&Config, &[CompressionAlgorithm]),
    request: &Request,
    channels: bool,
    chosen: &mut Chosen,
) -> Result<Vec<Context>, Failure> {
    let mut answer = Vec::new();
    let singles = || request.contexts.iter().filter(|context| context.is_single());
    let of_kind = |kind| singles().filter(|context| context.kind() == kind).count();
    let hashed = singles().any(|context| matches!(context, Context::Preauth { .. }));
    if !hashed || singles().any(|context| context.lists_nothing() || of_kind(context.kind()) > 1) {
        return Err(NtStatus::INVALID_PARAMETER.into());
    }
    for context in &request.contexts {
        match context {
            Context::Preauth { hashes, .. } => {
                if !hashes.contains(&HashAlgorithm::SHA_512) {
                    return Err(NtStatus::SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP.into());
                }
                let salt = clock::random::<32>().map_err(|_| NtStatus::INTERNAL_ERROR)?;
                answer.push(Context::Preauth {
                    hashes: vec![HashAlgorithm::SHA_512],
                    salt: salt.to_vec(),
                });
            }
            // A server that does not encrypt knows no such context; a cipher of 0 says that it
            // does, and that there is none in common.
            Context::Encryption(ciphers) if config.offers_encryption() => {
                // In the client's order: what it prefers comes first (2.2.3.1.2).
                let known = |c: &wire::Cipher| CIPHERS.into_iter().find(|it| it.wire_id() == c.0);
                chosen.cipher = ciphers.iter().find_map(known);
                let id = chosen.cipher.map_or(0, Cipher::wire_id);
                answer.push(Context::Encryption(vec![wire::Cipher(id)]));
            }
            Context::Signing(algorithms) => {
                let offered = |a: &SigningAlgorithm| {
                    algorithms.contains(&wire::SigningAlgorithm(a.wire_id()))
                };
                let one = || SIGNING.into_iter().find(offered);
                let several = || SIGNING_WITH_CHANNELS.into_iter().find(offered);
                let found = if channels { several().or_else(one) } else { one() };
                // Without one in common it is AES-CMAC.
                chosen.signing = found.unwrap_or(SigningAlgorithm::AesCmac);
                let id = wire::SigningAlgorithm(chosen.signing.wire_id());
                answer.push(Context::Signing(vec![id]));
            }
            // A server that does not compress ignores the context.
            Context::Compression { flags, algorithms } if !compression.is_empty() => {
                let chained = flags & CAPABILITY_CHAINED != 0;
                let common = in_common(algorithms, compression);
                chosen.compression = Compression::agreed(compression, &common, chained);
                answer.push(Context::Compression {
                    flags: if chained { CAPABILITY_CHAINED } else { 0 },
                    // "None" says that there is none in common.
                    algorithms: match common.is_empty() {
                        true => vec![CompressionAlgorithm::NONE],
                        false => common,
                    },
                });
            }
            _ => {}
        }
    }
    // When the cipher is known, wherever its context stands.
    for offered in request.contexts.iter().filter_map(Context::rdma_transforms) {
        chosen.seals_remote = offered?.contains(&TRANSFORM_ENCRYPTION) && chosen.cipher.is_some();
        let id = if chosen.seals_remote { TRANSFORM_ENCRYPTION } else { TRANSFORM_NONE };
        answer.push(Context::of_rdma_transforms(&[id]));
    }
    Ok(answer)
}

/// The client's algorithms that are ours as well, each once, in its order.
fn in_common(
    theirs: &[CompressionAlgorithm],
    ours: &[CompressionAlgorithm],
) -> Vec<CompressionAlgorithm> {
    let mut common = Vec::new();
    for algorithm in theirs {
        if ours.contains(algorithm) && !common.contains(algorithm) {
            common.push(*algorithm);
        }
    }
    common
}
