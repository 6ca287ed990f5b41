//! NEGOTIATE (MS-SMB2 2.2.3, 2.2.4) and its contexts (2.2.3.1, 2.2.4.1).

use nom::Parser;

use crate::{
    Dialect,
    compression::CompressionAlgorithm,
    flag_set,
    header::{HEADER_LEN, body},
    name, open_enum,
    parse::{
        self, Failed, Input, Parsed, align, array, counted, from, part, region, size16, size32,
        skip, structure_size, u16, u32, u64, utf16,
    },
    wire::{Put, Result, len16, len32},
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
        algorithms: Vec<CompressionAlgorithm>,
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

impl Context {
    /// Reads the data of one context.
    fn parse(kind: u16, data: Input<'_>) -> Parsed<'_, Self> {
        const FIELD: &str = "negotiate context list";
        let bytes = data.bytes();
        let (i, context) = match kind {
            PREAUTH => {
                let (i, (hashes, salt)) =
                    (size16("preauth.HashAlgorithmCount"), size16("preauth.SaltLength"))
                        .parse(data)?;
                let (i, hashes) =
                    counted(hashes, 2, FIELD, u16("preauth.HashAlgorithms").map(HashAlgorithm))(i)?;
                let (i, salt) = parse::bytes(salt, "preauth.Salt")(i)?;
                (i, Self::Preauth { hashes, salt: salt.to_vec() })
            }
            ENCRYPTION => {
                let (i, count) = size16("encryption.CipherCount")(data)?;
                let (i, list) = counted(count, 2, FIELD, u16("encryption.Ciphers").map(Cipher))(i)?;
                (i, Self::Encryption(list))
            }
            SIGNING => {
                let (i, count) = size16("signing.SigningAlgorithmCount")(data)?;
                let algorithm = u16("signing.SigningAlgorithms").map(SigningAlgorithm);
                let (i, list) = counted(count, 2, FIELD, algorithm)(i)?;
                (i, Self::Signing(list))
            }
            // What a server is called is nothing that it needs to understand (3.3.5.4).
            NETNAME => match utf16(data, "netname.NetName") {
                Ok(name) => (data, Self::NetName(name)),
                Err(_) => (data, Self::Other { kind, data: bytes.to_vec() }),
            },
            COMPRESSION => {
                let (i, (count, _, flags)) = (
                    size16("compression.CompressionAlgorithmCount"),
                    skip(2, "compression.Padding"),
                    u32("compression.Flags"),
                )
                    .parse(data)?;
                let algorithm = u16("compression.CompressionAlgorithms").map(CompressionAlgorithm);
                let (i, algorithms) = counted(count, 2, FIELD, algorithm)(i)?;
                (i, Self::Compression { flags, algorithms })
            }
            kind => (data, Self::Other { kind, data: bytes.to_vec() }),
        };
        Ok((i, context))
    }

    /// `SMB2_RDMA_TRANSFORM_CAPABILITIES` with these transforms (2.2.3.1.6).
    #[must_use]
    pub fn of_rdma_transforms(ids: &[u16]) -> Self {
        let mut data = Vec::with_capacity(8 + 2 * ids.len());
        data.put_u16(len16(ids.len()));
        data.put_u16(0);
        data.put_u32(0);
        ids.iter().for_each(|id| data.put_u16(*id));
        Self::Other { kind: RDMA_TRANSFORM, data }
    }

    /// The transforms that it lists, if it is `SMB2_RDMA_TRANSFORM_CAPABILITIES`.
    ///
    /// # Errors
    /// It is shorter than it says.
    pub fn rdma_transforms(&self) -> Option<Result<Vec<u16>>> {
        let Context::Other { kind: RDMA_TRANSFORM, data } = self else { return None };
        Some(parse::with(Input::new(data), |input| {
            let (i, (count, ())) =
                (size16("rdma.TransformCount"), skip(6, "rdma.Reserved")).parse(input)?;
            counted(count, 2, "rdma.RDMATransformIds", u16("rdma.RDMATransformIds"))(i)
        }))
    }

    /// The `ContextType` that it has on the wire.
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
                algorithms.iter().for_each(|a| out.put_u16(a.0));
                COMPRESSION
            }
            Context::Other { kind, data } => {
                out.put(data);
                *kind
            }
        }
    }

    fn parse_list(list: Input<'_>, count: u16) -> std::result::Result<Vec<Self>, Failed> {
        // Each begins at a multiple of 8 from the first.
        let mut left = list.rebased();
        let mut contexts = Vec::new();
        for index in 0..count {
            let padding = if index > 0 { 8 } else { 1 };
            let (i, ((), kind, len, ())) = (
                align(padding, "negotiate context padding"),
                u16("negotiate context type"),
                size16("negotiate context length"),
                skip(4, "negotiate context reserved"),
            )
                .parse(left)?;
            let (i, data) = part(len, "negotiate context data")(i)?;
            contexts.push(Self::parse(kind, data)?.1);
            left = i;
        }
        Ok(contexts)
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

/// NEGOTIATE request: offers dialects and what the client can do (MS-SMB2 2.2.3).
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
    /// Reads the body of a NEGOTIATE request, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, or (3.1.1) the contexts are outside of
    /// it or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, count, security_mode, _, capabilities)) = (
                structure_size(36, "negotiate.StructureSize"),
                size16("negotiate.DialectCount"),
                u16("negotiate.SecurityMode").map(SecurityMode),
                skip(2, "negotiate.Reserved"),
                u32("negotiate.Capabilities").map(Capabilities),
            )
                .parse(input)?;
            let (i, (client_guid, context_offset, context_count, _)) = (
                array("negotiate.ClientGuid"),
                size32("negotiate.NegotiateContextOffset"),
                u16("negotiate.NegotiateContextCount"),
                skip(2, "negotiate.Reserved2"),
            )
                .parse(i)?;
            let dialect = u16("negotiate.Dialects").map(Dialect);
            let (i, dialects) = counted(count, 2, "negotiate.Dialects", dialect).parse(i)?;
            let contexts = if dialects.contains(&Dialect::SMB_3_1_1) {
                let list = from(input, context_offset, "negotiate.NegotiateContextList")?;
                Context::parse_list(list, context_count)?
            } else {
                Vec::new()
            };
            Ok((i, Self { security_mode, capabilities, client_guid, dialects, contexts }))
        })
    }

    /// Appends the body of a NEGOTIATE request to a message that ends with its header.
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

/// NEGOTIATE response: names the dialect and what the server can do (MS-SMB2 2.2.4).
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
    /// Reads the body of a NEGOTIATE response, which starts behind the message's header.
    ///
    /// # Errors
    /// The body ends within a field or is of another structure, the token is outside of it, or (3.1.1)
    /// the contexts are outside of it or malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse::with(body(bytes), |input| {
            let (i, (_, security_mode, dialect, context_count, server_guid, capabilities)) = (
                structure_size(65, "negotiate.StructureSize"),
                u16("negotiate.SecurityMode").map(SecurityMode),
                u16("negotiate.DialectRevision").map(Dialect),
                u16("negotiate.NegotiateContextCount"),
                array("negotiate.ServerGuid"),
                u32("negotiate.Capabilities").map(Capabilities),
            )
                .parse(input)?;
            let (i, (max_transact_size, max_read_size, max_write_size, system_time, _)) = (
                u32("negotiate.MaxTransactSize"),
                u32("negotiate.MaxReadSize"),
                u32("negotiate.MaxWriteSize"),
                u64("negotiate.SystemTime"),
                skip(8, "negotiate.ServerStartTime"),
            )
                .parse(i)?;
            let (i, (offset, len, context_offset)) = (
                size16("negotiate.SecurityBufferOffset"),
                size16("negotiate.SecurityBufferLength"),
                size32("negotiate.NegotiateContextOffset"),
            )
                .parse(i)?;
            let security_buffer = region(input, offset, len, "negotiate.Buffer")?.bytes().to_vec();
            // The offset of no contexts may be anything, as the writer's is.
            let contexts = if dialect == Dialect::SMB_3_1_1 && context_count > 0 {
                let list = from(input, context_offset, "negotiate.NegotiateContextOffset")?;
                Context::parse_list(list, context_count)?
            } else {
                Vec::new()
            };
            let response = Self {
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
            };
            Ok((i, response))
        })
    }

    /// Appends the body of a NEGOTIATE response to a message that ends with its header.
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
