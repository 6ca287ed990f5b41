//! NEGOTIATE (MS-SMB2 2.2.3, 2.2.4) and its contexts (2.2.3.1, 2.2.4.1).

use crate::{
    Dialect, flag_set,
    header::HEADER_LEN,
    name, open_enum,
    wire::{Put, Reader, Result, WireError, body_region, len16, len32},
};

flag_set! {
    /// `SecurityMode`.
    SecurityMode: u16 {
        /// Signing is possible.
        SIGNING_ENABLED = 1,
        /// Signing is demanded.
        SIGNING_REQUIRED = 2,
    }
}

flag_set! {
    /// `Capabilities`.
    Capabilities: u32 {
        /// Distributed file system.
        DFS = 0x1,
        /// Leases.
        LEASING = 0x2,
        /// Requests of more than one credit.
        LARGE_MTU = 0x4,
        /// Several connections per session.
        MULTI_CHANNEL = 0x8,
        /// Persistent handles.
        PERSISTENT_HANDLES = 0x10,
        /// Directory leases.
        DIRECTORY_LEASING = 0x20,
        /// Encryption (3.0 and 3.0.2; a context in 3.1.1).
        ENCRYPTION = 0x40,
    }
}

open_enum! {
    /// `HashAlgorithms` of the pre-auth integrity context.
    HashAlgorithm: u16 {
        /// SHA-512.
        SHA_512 = 1,
    }
}

open_enum! {
    /// `Ciphers` of the encryption context.
    Cipher: u16 {
        /// AES-128-CCM.
        AES_128_CCM = 1,
        /// AES-128-GCM.
        AES_128_GCM = 2,
        /// AES-256-CCM.
        AES_256_CCM = 3,
        /// AES-256-GCM.
        AES_256_GCM = 4,
    }
}

open_enum! {
    /// `SigningAlgorithms` of the signing context.
    SigningAlgorithm: u16 {
        /// HMAC-SHA256.
        HMAC_SHA256 = 0,
        /// AES-CMAC.
        AES_CMAC = 1,
        /// AES-GMAC.
        AES_GMAC = 2,
    }
}

/// One negotiate context of SMB 3.1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Context {
    /// `SMB2_PREAUTH_INTEGRITY_CAPABILITIES`.
    Preauth {
        /// Hash algorithms, best first.
        hashes: Vec<HashAlgorithm>,
        /// Salt.
        salt: Vec<u8>,
    },
    /// `SMB2_ENCRYPTION_CAPABILITIES`: ciphers, best first.
    Encryption(Vec<Cipher>),
    /// `SMB2_SIGNING_CAPABILITIES`: algorithms, best first.
    Signing(Vec<SigningAlgorithm>),
    /// `SMB2_NETNAME_NEGOTIATE_CONTEXT_ID`: the server name the client dialled.
    NetName(String),
    /// `SMB2_COMPRESSION_CAPABILITIES`: flags and algorithms.
    Compression {
        /// 1 when chained compression is possible.
        flags: u32,
        /// Algorithms, best first.
        algorithms: Vec<u16>,
    },
    /// Any other context, kept as it came.
    Other {
        /// `ContextType`.
        kind: u16,
        /// `Data`.
        data: Vec<u8>,
    },
}

const PREAUTH: u16 = 1;
const ENCRYPTION: u16 = 2;
const COMPRESSION: u16 = 3;
const NETNAME: u16 = 5;
const RDMA_TRANSFORM: u16 = 7;
const SIGNING: u16 = 8;

fn u16_list(r: &mut Reader<'_>, count: u16, field: &'static str) -> Result<Vec<u16>> {
    let bytes = r.bytes(usize::from(count) * 2, field)?;
    Ok(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
}

impl Context {
    fn parse(kind: u16, data: &[u8]) -> Result<Self> {
        let mut r = Reader::new(data);
        Ok(match kind {
            PREAUTH => {
                let count = r.u16("preauth.HashAlgorithmCount")?;
                let salt_len = r.u16("preauth.SaltLength")?;
                let hashes = u16_list(&mut r, count, "preauth.HashAlgorithms")?;
                let salt = r.bytes(salt_len.into(), "preauth.Salt")?.to_vec();
                Context::Preauth { hashes: hashes.into_iter().map(HashAlgorithm).collect(), salt }
            }
            ENCRYPTION => {
                let count = r.u16("encryption.CipherCount")?;
                let list = u16_list(&mut r, count, "encryption.Ciphers")?;
                Context::Encryption(list.into_iter().map(Cipher).collect())
            }
            SIGNING => {
                let count = r.u16("signing.SigningAlgorithmCount")?;
                let list = u16_list(&mut r, count, "signing.SigningAlgorithms")?;
                Context::Signing(list.into_iter().map(SigningAlgorithm).collect())
            }
            // What a server is called is nothing that it needs to understand (3.3.5.4).
            NETNAME => match name::utf16(data, "netname.NetName") {
                Ok(name) => Context::NetName(name),
                Err(_) => Context::Other { kind, data: data.to_vec() },
            },
            COMPRESSION => {
                let count = r.u16("compression.CompressionAlgorithmCount")?;
                r.skip(2, "compression.Padding")?;
                let flags = r.u32("compression.Flags")?;
                let algorithms = u16_list(&mut r, count, "compression.CompressionAlgorithms")?;
                Context::Compression { flags, algorithms }
            }
            kind => Context::Other { kind, data: data.to_vec() },
        })
    }

    /// `ContextType`.
    #[must_use]
    pub fn kind(&self) -> u16 {
        match self {
            Context::Preauth { .. } => PREAUTH,
            Context::Encryption(_) => ENCRYPTION,
            Context::Signing(_) => SIGNING,
            Context::NetName(_) => NETNAME,
            Context::Compression { .. } => COMPRESSION,
            Context::Other { kind, .. } => *kind,
        }
    }

    /// Whether it is a list of something with nothing in it, which is no such context
    /// (MS-SMB2 2.2.3.1.1 to 2.2.3.1.3, 2.2.3.1.6, 2.2.3.1.7).
    #[must_use]
    pub fn lists_nothing(&self) -> bool {
        match self {
            Context::Preauth { hashes, .. } => hashes.is_empty(),
            Context::Encryption(ciphers) => ciphers.is_empty(),
            Context::Signing(algorithms) => algorithms.is_empty(),
            Context::Compression { algorithms, .. } => algorithms.is_empty(),
            Context::Other { kind: RDMA_TRANSFORM, data } => {
                data.len() < 2 || data.starts_with(&[0, 0])
            }
            Context::NetName(_) | Context::Other { .. } => false,
        }
    }

    /// Whether a request may have one of its kind only (MS-SMB2 3.3.5.4).
    #[must_use]
    pub fn is_single(&self) -> bool {
        matches!(self.kind(), PREAUTH | ENCRYPTION | COMPRESSION | RDMA_TRANSFORM | SIGNING)
    }

    fn encode_data(&self, out: &mut Vec<u8>) -> u16 {
        match self {
            Context::Preauth { hashes, salt } => {
                out.put_u16(len16(hashes.len()));
                out.put_u16(len16(salt.len()));
                hashes.iter().for_each(|h| out.put_u16(h.0));
                out.put(salt);
                PREAUTH
            }
            Context::Encryption(ciphers) => {
                out.put_u16(len16(ciphers.len()));
                ciphers.iter().for_each(|c| out.put_u16(c.0));
                ENCRYPTION
            }
            Context::Signing(algorithms) => {
                out.put_u16(len16(algorithms.len()));
                algorithms.iter().for_each(|a| out.put_u16(a.0));
                SIGNING
            }
            Context::NetName(text) => {
                name::put_utf16(out, text);
                NETNAME
            }
            Context::Compression { flags, algorithms } => {
                out.put_u16(len16(algorithms.len()));
                out.put_u16(0);
                out.put_u32(*flags);
                algorithms.iter().for_each(|a| out.put_u16(*a));
                COMPRESSION
            }
            Context::Other { kind, data } => {
                out.put(data);
                *kind
            }
        }
    }

    fn parse_list(bytes: &[u8], count: u16) -> Result<Vec<Self>> {
        let mut r = Reader::new(bytes);
        let mut list = Vec::new();
        for index in 0..count {
            if index > 0 {
                let over = r.position() % 8;
                if over != 0 {
                    r.skip(8 - over, "negotiate context padding")?;
                }
            }
            let kind = r.u16("negotiate context type")?;
            let len = r.u16("negotiate context length")?;
            r.skip(4, "negotiate context reserved")?;
            list.push(Self::parse(kind, r.bytes(len.into(), "negotiate context data")?)?);
        }
        Ok(list)
    }

    fn encode_list(list: &[Self], out: &mut Vec<u8>) {
        let start = out.len();
        for context in list {
            out.pad_to(start, 8);
            let at = out.len();
            out.put_zeros(8);
            let kind = context.encode_data(out);
            let len = len16(out.len() - at - 8);
            out.patch(at, &kind.to_le_bytes());
            out.patch(at + 2, &len.to_le_bytes());
        }
    }
}

/// NEGOTIATE request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Whether the client signs.
    pub security_mode: SecurityMode,
    /// What the client can do.
    pub capabilities: Capabilities,
    /// The client's identity.
    pub client_guid: [u8; 16],
    /// Dialects it speaks.
    pub dialects: Vec<Dialect>,
    /// Contexts; only with 3.1.1 among the dialects.
    pub contexts: Vec<Context>,
}

impl Request {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(36, "negotiate.StructureSize")?;
        let count = r.u16("negotiate.DialectCount")?;
        let security_mode = SecurityMode(r.u16("negotiate.SecurityMode")?);
        r.skip(2, "negotiate.Reserved")?;
        let capabilities = Capabilities(r.u32("negotiate.Capabilities")?);
        let client_guid = r.array("negotiate.ClientGuid")?;
        let context_offset = r.u32("negotiate.NegotiateContextOffset")? as usize;
        let context_count = r.u16("negotiate.NegotiateContextCount")?;
        r.skip(2, "negotiate.Reserved2")?;
        let dialects: Vec<_> =
            u16_list(&mut r, count, "negotiate.Dialects")?.into_iter().map(Dialect).collect();
        let contexts = if dialects.contains(&Dialect::SMB_3_1_1) {
            let start = context_offset.checked_sub(HEADER_LEN).filter(|at| *at <= body.len());
            let start = start.ok_or(WireError::Outside {
                field: "negotiate.NegotiateContextList",
                offset: context_offset,
                len: 0,
                have: body.len(),
            })?;
            Context::parse_list(&body[start..], context_count)?
        } else {
            Vec::new()
        };
        Ok(Self { security_mode, capabilities, client_guid, dialects, contexts })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u16(36);
        out.put_u16(len16(self.dialects.len()));
        out.put_u16(self.security_mode.0);
        out.put_u16(0);
        out.put_u32(self.capabilities.0);
        out.put(&self.client_guid);
        out.put_u64(0);
        self.dialects.iter().for_each(|d| out.put_u16(d.0));
        if self.dialects.contains(&Dialect::SMB_3_1_1) {
            out.pad_to(start, 8);
            let offset = len32(HEADER_LEN + out.len() - start);
            out.patch(start + 28, &offset.to_le_bytes());
            out.patch(start + 32, &len16(self.contexts.len()).to_le_bytes());
            Context::encode_list(&self.contexts, out);
        }
    }
}

/// NEGOTIATE response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// Whether the server signs.
    pub security_mode: SecurityMode,
    /// Dialect chosen.
    pub dialect: Dialect,
    /// The server's identity.
    pub server_guid: [u8; 16],
    /// What the server can do.
    pub capabilities: Capabilities,
    /// Largest buffer of query/set info, directory and notify.
    pub max_transact_size: u32,
    /// Largest READ in bytes.
    pub max_read_size: u32,
    /// Largest WRITE in bytes.
    pub max_write_size: u32,
    /// Server time as FILETIME.
    pub system_time: u64,
    /// SPNEGO token.
    pub security_buffer: Vec<u8>,
    /// Contexts; only with dialect 3.1.1.
    pub contexts: Vec<Context>,
}

impl Response {
    /// Reads the body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = Reader::new(body);
        r.structure_size(65, "negotiate.StructureSize")?;
        let security_mode = SecurityMode(r.u16("negotiate.SecurityMode")?);
        let dialect = Dialect(r.u16("negotiate.DialectRevision")?);
        let context_count = r.u16("negotiate.NegotiateContextCount")?;
        let server_guid = r.array("negotiate.ServerGuid")?;
        let capabilities = Capabilities(r.u32("negotiate.Capabilities")?);
        let max_transact_size = r.u32("negotiate.MaxTransactSize")?;
        let max_read_size = r.u32("negotiate.MaxReadSize")?;
        let max_write_size = r.u32("negotiate.MaxWriteSize")?;
        let system_time = r.u64("negotiate.SystemTime")?;
        r.skip(8, "negotiate.ServerStartTime")?;
        let offset = r.u16("negotiate.SecurityBufferOffset")?.into();
        let len = r.u16("negotiate.SecurityBufferLength")?.into();
        let context_offset = r.u32("negotiate.NegotiateContextOffset")? as usize;
        let security_buffer = body_region(&r, offset, len, "negotiate.Buffer")?.to_vec();
        let contexts = if dialect == Dialect::SMB_3_1_1 {
            let start = context_offset.checked_sub(HEADER_LEN).filter(|at| *at <= body.len());
            let start = start.ok_or(WireError::Value {
                field: "negotiate.NegotiateContextOffset",
                value: context_offset as u64,
            })?;
            Context::parse_list(&body[start..], context_count)?
        } else {
            Vec::new()
        };
        Ok(Self {
            security_mode,
            dialect,
            server_guid,
            capabilities,
            max_transact_size,
            max_read_size,
            max_write_size,
            system_time,
            security_buffer,
            contexts,
        })
    }

    /// Appends the body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u16(65);
        out.put_u16(self.security_mode.0);
        out.put_u16(self.dialect.0);
        out.put_u16(len16(self.contexts.len()));
        out.put(&self.server_guid);
        out.put_u32(self.capabilities.0);
        out.put_u32(self.max_transact_size);
        out.put_u32(self.max_read_size);
        out.put_u32(self.max_write_size);
        out.put_u64(self.system_time);
        out.put_u64(0);
        out.put_u16(len16(HEADER_LEN + 64));
        out.put_u16(len16(self.security_buffer.len()));
        out.put_u32(0);
        out.put(&self.security_buffer);
        if !self.contexts.is_empty() {
            out.pad_to(start, 8);
            let offset = len32(HEADER_LEN + out.len() - start);
            out.patch(start + 60, &offset.to_le_bytes());
            Context::encode_list(&self.contexts, out);
        }
    }
}
