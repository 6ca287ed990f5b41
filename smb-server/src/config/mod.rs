//! The configuration file: TOML, unknown keys are errors, every value is checked before use.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use smb_protocol::{Dialect, compression::CompressionAlgorithm, ntlm::NtHash};

use crate::dfs::Namespace;

mod check;
mod dfs;
mod interface;
mod kerberos;
mod limits;
pub mod network;
mod share;
mod users;
mod values;

use check::{Check, read_text};
pub use interface::{Interface, Interfaces};
pub use kerberos::Kerberos;
pub use limits::Limits;
pub use network::Network;
pub use share::Share;
use values::{AlgorithmName, Compression, DialectName};
pub use values::{ClusterShare, Encryption, IoEngine, ShareCompression, Signing, Size, Sparse};

/// Longest time a thread may look out for a client's next request.
const MOST_LINGER_US: u64 = 1000;

/// A configuration that cannot be used; the text says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value that cannot be.
    #[error("{path}: {key}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, with its table.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct File {
    server: ServerSection,
    #[serde(default)]
    limits: Limits,
    kerberos: Option<kerberos::Section>,
    #[serde(default)]
    interface: Vec<interface::Section>,
    #[serde(default)]
    user: Vec<users::Section>,
    #[serde(default)]
    share: Vec<share::Section>,
    #[serde(default)]
    dfs: Vec<dfs::Section>,
    // The daemon around the file server reads these.
    #[serde(default, rename = "iscsi")]
    #[schemars(skip)]
    _iscsi: serde::de::IgnoredAny,
    #[serde(default, rename = "target")]
    #[schemars(skip)]
    _target: serde::de::IgnoredAny,
    #[serde(default, rename = "witness")]
    #[schemars(skip)]
    _witness: serde::de::IgnoredAny,
    #[serde(default, rename = "api")]
    #[schemars(skip)]
    _api: serde::de::IgnoredAny,
    #[serde(default)]
    #[schemars(skip)]
    cluster: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServerSection {
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    rdma_listen: Vec<SocketAddr>,
    #[serde(default = "default_name")]
    name: String,
    state_dir: PathBuf,
    #[serde(default)]
    signing: Signing,
    #[serde(default)]
    encryption: Encryption,
    #[serde(default)]
    compression: Compression,
    compression_algorithms: Option<Vec<AlgorithmName>>,
    users_file: Option<PathBuf>,
    min_dialect: Option<DialectName>,
    metrics: Option<SocketAddr>,
    user: Option<String>,
    #[serde(default = "yes")]
    sandbox: bool,
    max_dialect: Option<DialectName>,
    #[serde(default = "default_io_size")]
    max_io_size: Size,
    #[serde(default)]
    io_engine: IoEngine,
    threads: Option<usize>,
    #[serde(default = "default_linger")]
    linger_us: u64,
    congestion_control: Option<String>,
    #[serde(default = "yes")]
    multichannel: bool,
    #[serde(default)]
    test_controls: bool,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    admin_users: Vec<String>,
}

fn yes() -> bool {
    true
}

fn default_linger() -> u64 {
    100
}

fn default_name() -> String {
    "BULKHEAD".to_owned()
}

fn default_io_size() -> Size {
    Size(8 << 20)
}

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Addresses to listen on for SMB Direct over iWARP.
    pub rdma_listen: Vec<SocketAddr>,
    /// NetBIOS-style name of the server.
    pub name: String,
    /// Where the server keeps its state.
    pub state_dir: PathBuf,
    /// Where Prometheus finds its metrics.
    pub metrics: Option<SocketAddr>,
    /// Signing policy.
    pub signing: Signing,
    /// Encryption policy.
    pub encryption: Encryption,
    /// Compression algorithms that are offered to clients, the preferred first; with none there is no
    /// compression.
    pub compression: Vec<CompressionAlgorithm>,
    /// Lowest dialect.
    pub min_dialect: Dialect,
    /// Highest dialect.
    pub max_dialect: Dialect,
    /// Largest read, write and transaction in bytes.
    pub max_io_size: u32,
    /// What does file I/O that may wait.
    pub io_engine: IoEngine,
    /// Worker threads; `None` is one per CPU.
    pub threads: Option<usize>,
    /// How long a thread looks out for a client's next request before it sleeps.
    pub busy_poll: Duration,
    /// How TCP reacts to a full network; `None` is CUBIC where the system has it.
    pub congestion_control: Option<String>,
    /// Sessions may use several connections.
    pub multichannel: bool,
    /// What clients are told of interfaces, where it is not what the system says.
    pub interfaces: Interfaces,
    /// Clients may use the private controls of Samba's test suite.
    pub test_controls: bool,
    /// Limits.
    pub limits: Limits,
    /// Shown beside the name in listings.
    pub comment: String,
    /// Kerberos, if it is spoken.
    pub kerberos: Option<Kerberos>,
    /// Hashes of users who have one, by folded name.
    pub users: BTreeMap<String, NtHash>,
    /// All users as they are written, by folded name.
    pub user_names: BTreeMap<String, String>,
    /// Users who administer the server, folded.
    pub admin_users: HashSet<String>,
    /// Shares by folded name.
    pub shares: BTreeMap<String, Arc<Share>>,
    /// Parts of shares that are served elsewhere, by folded share name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Files with secrets that it was read from, beside its own.
    pub secrets: Vec<PathBuf>,
    /// User of the system that the server becomes once its ports are bound.
    pub user: Option<String>,
    /// The server confines itself to its folders and to the system calls it needs.
    pub sandbox: bool,
}

/// The schema of the file, but for tables that the daemon around the server reads.
pub fn schema(generator: &mut SchemaGenerator) -> Schema {
    File::json_schema(generator)
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is for messages and relative paths.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            message: syntax_message(text, &error),
        })?;
        let check = Check::new(path);
        let ServerSection { name, listen, .. } = &file.server;
        // In a cluster each role has addresses of its own.
        if listen.is_empty() && file.cluster.is_none() {
            return Err(check.bad("server.listen", "give at least one address, \"0.0.0.0:445\""));
        }
        let mut rdma = file.server.rdma_listen.iter().filter(|at| at.port() != 0);
        if let Some(both) = rdma.find(|at| listen.contains(at)) {
            let why = format!("{both} is in server.listen, too; SMB Direct has port 5445");
            return Err(check.bad("server.rdma_listen", why));
        }
        let ok_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > 15 || !name.chars().all(ok_name) {
            return Err(check.bad("server.name", "1 to 15 letters, digits and hyphens"));
        }
        let max_io = file.server.max_io_size.0;
        if !(65_536..=8 << 20).contains(&max_io) {
            return Err(check.bad("server.max_io_size", "between 64KiB and 8MiB"));
        }
        if !(1..=100).contains(&file.limits.user_percent) {
            return Err(check.bad("limits.user_percent", "between 1 and 100"));
        }
        if !(16..=8192).contains(&file.limits.credits) {
            return Err(check.bad("limits.credits", "between 16 and 8192"));
        }
        if file.server.threads == Some(0) {
            return Err(check.bad("server.threads", "at least 1"));
        }
        if file.server.linger_us > MOST_LINGER_US {
            return Err(check.bad("server.linger_us", "at most 1000 microseconds; 0 is never"));
        }
        let min = file.server.min_dialect.unwrap_or(DialectName::V2_0_2).dialect();
        let max = file.server.max_dialect.unwrap_or(DialectName::V3_1_1).dialect();
        if min > max {
            return Err(check.bad("server.min_dialect", "must not be above max_dialect"));
        }
        let compression = check.compression(&file.server)?;
        let (users, user_names) = check.users(&file)?;
        let admin_users =
            check.known(&file.server.admin_users, &user_names, "server.admin_users")?;
        let shares = check.shares(&file, &user_names)?;
        let namespaces = check.namespaces(&file.dfs, &shares)?;
        let section = file.kerberos.as_ref();
        let kerberos = section.map(|section| check.kerberos(section, &user_names)).transpose()?;
        Ok(Self {
            listen: file.server.listen,
            rdma_listen: file.server.rdma_listen,
            name: file.server.name,
            state_dir: check.relative(&file.server.state_dir),
            metrics: file.server.metrics,
            secrets: check.secrets(),
            user: file.server.user,
            sandbox: file.server.sandbox,
            signing: file.server.signing,
            encryption: file.server.encryption,
            compression,
            min_dialect: min,
            max_dialect: max,
            max_io_size: u32::try_from(max_io).unwrap_or(8 << 20),
            io_engine: file.server.io_engine,
            threads: file.server.threads,
            busy_poll: Duration::from_micros(file.server.linger_us),
            congestion_control: file.server.congestion_control,
            multichannel: file.server.multichannel,
            interfaces: check.interfaces(&file.interface)?,
            test_controls: file.server.test_controls,
            comment: file.server.comment,
            limits: file.limits,
            kerberos,
            users,
            user_names,
            admin_users,
            shares,
            namespaces,
        })
    }

    /// Whether encryption is offered to clients at all.
    pub fn offers_encryption(&self) -> bool {
        self.encryption != Encryption::Off
            || self.shares.values().any(|s| s.encryption == Some(Encryption::Required))
    }
}

/// Where and what, without repeating the line: it may hold a secret.
pub fn syntax_message(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/tmp/smbd.toml")).map_err(|e| e.to_string())
    }

    const HEAD: &str = "[server]\nlisten = [\"127.0.0.1:0\"]\nstate_dir = \"/tmp/x\"\n";

    #[test]
    fn a_thread_lingers_as_long_as_it_is_told_and_no_longer_than_a_millisecond() {
        let busy_poll = |line: &str| parse(&format!("{HEAD}{line}\n")).map(|c| c.busy_poll);
        assert_eq!(busy_poll("").unwrap(), Duration::from_micros(100));
        assert_eq!(busy_poll("linger_us = 0").unwrap(), Duration::ZERO);
        assert!(busy_poll("linger_us = 1001").unwrap_err().contains("server.linger_us"));
    }

    #[test]
    fn defaults_are_the_safe_ones() {
        let config = parse(HEAD).unwrap();
        assert_eq!(config.signing, Signing::Required);
        assert_eq!(config.encryption, Encryption::Desired);
        assert_eq!(config.max_io_size, 8 << 20);
    }

    #[test]
    fn compression_is_offered_unless_it_is_off() {
        let of = |text: &str| parse(&format!("{HEAD}{text}"));
        assert_eq!(of("").unwrap().compression, CompressionAlgorithm::ALL);
        assert!(of("compression = 'off'\n").unwrap().compression.is_empty());
        let some = of("compression_algorithms = ['lznt1', 'lz77-huffman']\n").unwrap().compression;
        assert_eq!(some, [CompressionAlgorithm::LZNT1, CompressionAlgorithm::LZ77_HUFFMAN]);
        let twice = of("compression_algorithms = ['lz4', 'lz4']\n").unwrap_err();
        assert!(twice.contains("server.compression_algorithms"), "{twice}");
        let share = |more: &str| of(&format!("{more}[[share]]\nname='a'\npath='/tmp'\n"));
        assert_eq!(share("").unwrap().shares["A"].compression, ShareCompression::On);
        let forced = "[[share]]\nname='a'\npath='/tmp'\ncompression='force'\n";
        assert_eq!(of(forced).unwrap().shares["A"].compression, ShareCompression::Force);
        let error = of(&format!("compression = 'off'\n{forced}")).unwrap_err();
        assert!(error.contains("needs compression"), "{error}");
    }

    #[test]
    fn unknown_keys_name_their_line_and_hide_values() {
        let error = parse(&format!("{HEAD}pasword = \"secret\"\n")).unwrap_err();
        assert!(error.contains("line 4") && error.contains("pasword"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        for (text, want) in [
            ("[[share]]\nname='a'\npath='/nowhere'\n", "no such folder"),
            ("[[share]]\nname='a'\npath='/tmp'\nusers=['bob']\n", "\"bob\" is not defined"),
            ("[[share]]\nname='IPC$'\npath='/tmp'\n", "the server's own"),
            ("[[share]]\nname='..'\npath='/tmp'\n", "not a share name"),
            ("[[share]]\nname='.'\npath='/tmp'\n", "not a share name"),
            ("[[user]]\nname='a'\n", "exactly one of"),
            ("[[user]]\nname='a'\npassword=''\n", "empty"),
            ("[[user]]\nname='a'\npassword='x'\n[[user]]\nname='A'\npassword='y'\n", "twice"),
            ("[[share]]\nname='a'\npath='/tmp'\ncompression='no'\n", "unknown variant"),
            ("[limits]\ncredits = 1\n", "between 16"),
            ("[limits]\nuser_percent = 0\n", "between 1 and 100"),
            ("[[share]]\nname='a'\npath='/tmp'\nhosts_allow=['1.2.3']\n", "no address"),
            ("[[share]]\nname='a'\npath='/tmp'\ngroup='no such'\n", "has no group"),
        ] {
            let error = parse(&format!("{HEAD}{text}")).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn smb_direct_has_ports_of_its_own() {
        let of = |direct: &str| {
            let head = HEAD.replace("127.0.0.1:0", "0.0.0.0:445");
            parse(&format!("{head}{direct}\n")).map(|config| config.rdma_listen)
        };
        assert_eq!(of("").unwrap(), []);
        assert_eq!(of("rdma_listen = ['0.0.0.0:5445']").unwrap().len(), 1);
        let error = of("rdma_listen = ['0.0.0.0:445']").unwrap_err();
        assert!(error.contains("server.rdma_listen") && error.contains("5445"), "{error}");
        let interface = "[[interface]]\nname = 'eth0'\nrdma = false";
        let told = parse(&format!("{HEAD}{interface}\n")).unwrap().interfaces["eth0"];
        assert_eq!(told.rdma, Some(false));
    }

    #[test]
    fn shares_admit_by_address() {
        let text = "[[share]]\nname='a'\npath='/tmp'\nhosts_allow=['192.0.2.0/24', '::1']\n\
                    hosts_deny=['192.0.2.66']\ngroup='12'\n";
        let config = parse(&format!("{HEAD}{text}")).unwrap();
        let share = &config.shares["A"];
        let admits = |address: &str| share.admits(address.parse().unwrap());
        assert!(admits("192.0.2.1") && admits("::1"));
        assert!(!admits("192.0.2.66") && !admits("127.0.0.1"));
        assert_eq!(share.group, Some(12));
    }

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("pw");
        std::fs::write(&secret, "hunter2\n").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
        let text = format!("{HEAD}[[user]]\nname='a'\npassword_file='pw'\n");
        let at = dir.path().join("smbd.toml");
        let error = Config::parse(&text, &at).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let config = Config::parse(&text, &at).unwrap();
        assert_eq!(config.users["A"], NtHash::of_password("hunter2"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,200}") {
            let _ = parse(&text);
            let _ = text.parse::<Size>();
        }
    }
}
