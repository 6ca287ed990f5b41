//! How to connect and how to open.

use std::{sync::Arc, time::Duration};

use smb_protocol::{
    Dialect,
    compression::{self, CompressionAlgorithm},
    crypto::{Cipher, SigningAlgorithm},
};

use crate::{DIRECT_PORT, Direct, Login, Network, SmbUrl, url::DEFAULT_PORT};

/// When messages are signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signing {
    /// Always, and servers that do not sign are refused. The default.
    Required,
    /// When the server demands it. What tampering would be noticed is then up to the server.
    IfRequired,
}

/// When messages are encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encryption {
    /// Always, and servers that cannot are refused.
    Required,
    /// When the server or the share demands it. The default.
    IfRequired,
}

/// When what is read and written is compressed on its way. Needs SMB 3.1.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compress {
    /// Never: compression is not offered. The default.
    Never,
    /// On shares that ask for it.
    IfAsked,
    /// On all shares of servers that can.
    Always,
}

/// Whether another node of a cluster is asked to tell when the one in use is gone (MS-SWN). Needs a
/// server that is reached by a name, not by an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// Never.
    Never,
    /// On shares that say that they are of a cluster; its port is what the endpoint mapper says, which
    /// is asked at port 135. The default.
    Mapped,
    /// On shares that say that they are of a cluster, at this port of every node.
    Port(u16),
}

/// When a server is reached by SMB Direct instead of TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Rdma {
    /// Never. The default.
    #[default]
    Never,
    /// Where it is there at port 5445, else by TCP.
    IfPossible,
    /// Always; a server that is not there is not reached.
    Always,
}

/// Bytes below which compression saves less than it costs.
const WORTHWHILE: u32 = compression::WORTHWHILE as u32;

/// Where, who and how.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User and password (or its hash).
    pub login: Login,
    /// Oldest and newest dialect offered.
    pub dialects: (Dialect, Dialect),
    /// When messages are signed.
    pub signing: Signing,
    /// When messages are encrypted.
    pub encryption: Encryption,
    /// Ciphers offered with 3.1.1, best first.
    pub ciphers: Vec<Cipher>,
    /// Signing algorithms offered with 3.1.1, best first.
    pub signing_algorithms: Vec<SigningAlgorithm>,
    /// When what is read and written is compressed.
    pub compress: Compress,
    /// From how many bytes on a read or write is compressed.
    pub compress_from: u32,
    /// Compression algorithms offered, best first.
    pub compression: Vec<CompressionAlgorithm>,
    /// Whether messages may be compressed in parts: what is one byte over and over is then one byte
    /// and a number.
    pub chained_compression: bool,
    /// Credits to hold at most, which bounds what is in flight: 64 KiB each. At least 8.
    pub credits: u16,
    /// Longest single read or write in bytes, further bounded by the server.
    pub max_io: u32,
    /// How long one attempt to connect and log on may take. When a connection is lost the first attempt
    /// has as long as [`ConnectOptions::keep_alive`], a second at least, and each that follows twice as long.
    pub connect_timeout: Duration,
    /// How long the server may take to answer a request; after that the connection is given up.
    pub request_timeout: Duration,
    /// How long a connection may be silent: after half of that time the server is asked for a sign
    /// of life, and without one the connection is given up before all of it has passed, so that
    /// what was under way goes on elsewhere by then. At least 200 ms.
    pub keep_alive: Duration,
    /// How long a lost connection is tried to be restored; zero for not at all. So long, too, is
    /// waited for a file that another has open who is away.
    pub reconnect_timeout: Duration,
    /// Connections that a session has at most; with 1 it has one, and the server is not asked for
    /// its other addresses. Needs SMB 3.
    pub max_channels: u16,
    /// Connections to each of the server's interfaces at most; 0 for what it offers: four to one
    /// that spreads connections over queues (RSS), one to any other.
    pub channels_per_interface: u16,
    /// Whether another node of a cluster tells when the one in use is gone.
    pub witness: Witness,
    /// How servers are reached; `None` for the system's TCP.
    pub network: Option<Arc<dyn Network>>,
    /// A rule that the client breaks, for tests of tests.
    #[cfg(feature = "testing")]
    pub broken: Option<crate::Rule>,
}

impl ConnectOptions {
    /// Defaults for a server.
    #[must_use]
    pub fn new(host: &str, port: u16, login: Login) -> Self {
        Self {
            host: host.to_owned(),
            port,
            login,
            dialects: (Dialect::SMB_2_1, Dialect::SMB_3_1_1),
            signing: Signing::Required,
            encryption: Encryption::IfRequired,
            ciphers: vec![
                Cipher::Aes128Gcm,
                Cipher::Aes256Gcm,
                Cipher::Aes128Ccm,
                Cipher::Aes256Ccm,
            ],
            signing_algorithms: vec![
                SigningAlgorithm::AesGmac,
                SigningAlgorithm::AesCmac,
                SigningAlgorithm::HmacSha256,
            ],
            compress: Compress::Never,
            compress_from: WORTHWHILE,
            compression: CompressionAlgorithm::ALL.to_vec(),
            chained_compression: true,
            credits: 512,
            max_io: 1 << 20,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(2),
            reconnect_timeout: Duration::from_secs(60),
            max_channels: 1,
            channels_per_interface: 0,
            witness: Witness::Mapped,
            network: None,
            #[cfg(feature = "testing")]
            broken: None,
        }
    }

    /// Defaults for the server of an address.
    #[must_use]
    pub fn for_url(url: &SmbUrl, login: Login) -> Self {
        Self::new(&url.host, url.port, login)
    }

    /// The same server by SMB Direct over iWARP, as `rdma` says. [`Rdma::Always`] is at port 5445 if the
    /// address names no other.
    #[must_use]
    pub fn by(mut self, rdma: Rdma) -> Self {
        match rdma {
            Rdma::Never => {}
            Rdma::IfPossible => {
                let network = Direct::iwarp().at_port_or_tcp(DIRECT_PORT);
                self.network = Some(Arc::new(network));
            }
            Rdma::Always => {
                if self.port == DEFAULT_PORT {
                    self.port = DIRECT_PORT;
                }
                self.network = Some(Arc::new(Direct::iwarp()));
            }
        }
        self
    }

    /// Whether a session may have more than one connection. AES-GMAC makes its nonces of message ids,
    /// which every connection counts anew, and the messages that bind a connection are all signed
    /// with one key (MS-SMB2 3.1.4.1, 3.2.4.1.1): who signs with nothing else has one connection.
    pub(crate) fn may_have_channels(&self) -> bool {
        let gmac = |algorithm: &SigningAlgorithm| *algorithm == SigningAlgorithm::AesGmac;
        let other = self.dialects.1 < Dialect::SMB_3_1_1
            || self.signing_algorithms.is_empty()
            || !self.signing_algorithms.iter().all(gmac);
        self.max_channels > 1 && other
    }

    /// The signing algorithms offered, the preferred first.
    pub(crate) fn offered_signing(&self) -> Vec<SigningAlgorithm> {
        let channels = self.may_have_channels();
        let safe = |a: &SigningAlgorithm| !channels || *a != SigningAlgorithm::AesGmac;
        self.signing_algorithms.iter().copied().filter(safe).collect()
    }

    /// The dialects offered, oldest first.
    pub(crate) fn offered_dialects(&self) -> Vec<Dialect> {
        let (oldest, newest) = self.dialects;
        [Dialect::SMB_2_1, Dialect::SMB_3_0, Dialect::SMB_3_0_2, Dialect::SMB_3_1_1]
            .into_iter()
            .filter(|dialect| (oldest..=newest).contains(dialect))
            .collect()
    }

    pub(crate) fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Reads `2.1`, `3.0`, `3.0.2` or `3.1.1`.
#[must_use]
pub fn parse_dialect(text: &str) -> Option<Dialect> {
    match text {
        "2.1" => Some(Dialect::SMB_2_1),
        "3.0" => Some(Dialect::SMB_3_0),
        "3.0.2" => Some(Dialect::SMB_3_0_2),
        "3.1.1" => Some(Dialect::SMB_3_1_1),
        _ => None,
    }
}

/// What to do when the file is there or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Create {
    /// Open what is there.
    Open,
    /// Make it; fail if it is there.
    New,
    /// Open it or make it.
    OpenOrNew,
    /// Make it or cut it to nothing.
    Replace,
}

/// What others may do with the file meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Nothing: one owner at any time.
    None,
    /// Read: one writer at any time, as for the disk of a virtual machine.
    Read,
    /// Read and write.
    ReadWrite,
}

/// Which run of an application opens a file, so that a later run elsewhere takes it over at once
/// and an earlier one never gets it back (MS-SMB2 3.3.5.9.13). Needs SMB 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instance {
    /// The application, the same in all its runs.
    pub id: [u8; 16],
    /// Grows from run to run; with SMB 3.1.1 a server refuses a file to one that is not newer than
    /// the one that has it.
    pub version: u64,
}

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenOptions {
    /// Whether to write too.
    pub write: bool,
    /// What to do when it is there or not.
    pub create: Create,
    /// What others may do meanwhile.
    pub share: Share,
    /// Whether every write is to be durable before it is answered.
    pub write_through: bool,
    /// Whether to ask that the open survives a lost connection.
    pub durable: bool,
    /// Whether a file may be opened anew when the server has lost the open and nothing
    /// unflushed was lost. Meanwhile another may have opened and changed it.
    pub reopen: bool,
    /// Which run of which application this is, if there can be several.
    pub instance: Option<Instance>,
}

impl OpenOptions {
    /// To read what is there; others may do as they like.
    #[must_use]
    pub fn read() -> Self {
        Self {
            write: false,
            create: Create::Open,
            share: Share::ReadWrite,
            write_through: false,
            durable: false,
            reopen: true,
            instance: None,
        }
    }

    /// To read and write what is there, as its only writer.
    #[must_use]
    pub fn write() -> Self {
        Self { write: true, share: Share::Read, durable: true, reopen: false, ..Self::read() }
    }

    /// To read and write as the only writer, with what to do when it is there or not.
    #[must_use]
    pub fn create(create: Create) -> Self {
        Self { create, ..Self::write() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channels would give one nonce to several messages (MS-SMB2 3.1.4.1).
    #[test]
    fn gmac_is_offered_for_one_connection_only() {
        use SigningAlgorithm::{AesCmac, AesGmac, HmacSha256};
        let of = |max_channels, algorithms: &[SigningAlgorithm]| {
            let mut options = ConnectOptions::new("h", 445, Login::new("u", "p"));
            options.max_channels = max_channels;
            options.signing_algorithms = algorithms.to_vec();
            (options.may_have_channels(), options.offered_signing())
        };
        let all = [AesGmac, AesCmac, HmacSha256];
        assert_eq!(of(1, &all), (false, all.to_vec()));
        assert_eq!(of(4, &all), (true, vec![AesCmac, HmacSha256]));
        assert_eq!(of(4, &[AesGmac]), (false, vec![AesGmac]));
        assert_eq!(of(4, &[]), (true, vec![]));
    }
}
